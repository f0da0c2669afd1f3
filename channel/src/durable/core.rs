//! The durable channel without threads: every step is a method that takes the time and returns what to do.
//!
//! The shell (threads) and the simulator (one loop, one seed) drive the same code. Under the lock only descriptors and
//! owners move; sealing, writing, reading and chores happen outside, in [`Job`], [`ReadJob`] and [`wal::log::Chore`].
//!
//! ```text
//! put ─► pending ─► gather ─► Job.seal ─► write ─► complete ─► queue, hot tail, answers
//! take ─► queue ─► cache, or read ─► lease ─► settle ─► pending state ─► gather …
//! ```

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use wal::device::Signal;
use wal::format::section::LogMark;
use wal::limits::FRAME_TARGET;
use wal::log::{Chore, ChoreDone, Completion, FrameRequest, Log, Refused};
use wal::planted::{self, Bug};
use wal::seal::Random;

use super::cache::Cache;
use super::job::{Job, PendingPut, PendingState, PutSender, SettleSender};
use super::queue::{ConsumerId, Queue};
use super::read::{ReadDone, ReadJob, ReadSource};
use super::sections::{self, Mark, SettledRuns, Snapshot, VersionedNote};
use crate::api::{ChannelStats, Lease, PutError, PutReceipt, TakeError, TakeLimits};
use crate::settlement::{NoteUpdate, Outcome, SeqRange, SettleError, Settlement};
use crate::ticket::TicketSender;

/// A take waits this long for an older write on a disk that stalls, before it passes it by.
const ORDER_WAIT: Duration = Duration::from_millis(50);
/// After this much idleness the last frames get a witness.
const WITNESS_AFTER: Duration = Duration::from_millis(50);
/// A full disk or a failed device is tried again after this long.
const RETRY_AFTER: Duration = Duration::from_millis(250);
/// A note is a path and a few numbers.
const NOTE_MAX: usize = 4096;
/// Notes of all owners together: thousands of open files.
pub(crate) const NOTES_MAX: usize = 16_384;
/// Bytes of all notes: they must fit one frame, together with what else a snapshot holds.
const NOTES_BYTES_MAX: usize = 8 << 20;
/// Puts that wait for room, and bytes of their events: beyond either, a put is refused at once.
const WAITING_MAX: usize = 16_384;
const WAITING_BYTES_MAX: usize = 256 << 20;
/// Runs of settled events above the oldest unsettled one. When there are more, only the oldest event is leased, until
/// the sinks have settled it: nothing is ever forgotten.
const SETTLED_RUNS_MAX: usize = 100_000;
/// Longest reason that is kept with a settlement.
const REASON_MAX: usize = 200;

pub(crate) type TakeSender = TicketSender<Result<Lease, TakeError>>;

/// What the core needs to know once.
#[derive(Debug, Clone)]
pub(crate) struct CoreOptions {
    pub(crate) name: String,
    pub(crate) capacity: u64,
    pub(crate) transaction_capacity: usize,
    pub(crate) keep_alive: Duration,
    /// Bytes of segments on disk at which puts are refused.
    pub(crate) disk_bytes_max: Option<u64>,
    pub(crate) hot_tail_bytes: usize,
}

/// A ticket's answer, sent once the lock is free.
pub(crate) enum Answer {
    Put(PutSender, Result<PutReceipt, PutError>),
    Settle(SettleSender, Result<(), SettleError>),
    Take(TakeSender, Result<Lease, TakeError>),
}

impl Answer {
    pub(crate) fn send(self) {
        match self {
            Answer::Put(sender, result) => sender.resolve(result),
            Answer::Settle(sender, result) => sender.resolve(result),
            Answer::Take(sender, result) => sender.resolve(result),
        }
    }
}

struct WaitingTake {
    consumer: ConsumerId,
    limits: TakeLimits,
    deadline: Option<Duration>,
    sender: TakeSender,
}

struct Seat {
    log: Log,
    /// Frames that were written before those in front of them.
    written: BTreeMap<u64, Job>,
    /// Frames that failed, kept until every write of them has returned.
    failed: BTreeMap<u64, Job>,
    failed_out: usize,
    needs_segment: bool,
    retry_at: Option<Duration>,
    /// The oldest segment can go once a snapshot is durable here.
    retiring: Option<u64>,
    snapshot_wanted: bool,
}

/// State that changes counters and nothing else.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) put_attempt: u64,
    pub(crate) put_success: u64,
    pub(crate) take_attempts: u64,
    pub(crate) take_success: u64,
    pub(crate) dead_lettered: u64,
    pub(crate) dropped: u64,
    pub(crate) order_relaxed: u64,
    pub(crate) put_errors: u64,
    pub(crate) take_errors: u64,
    pub(crate) checkpoint_errors: u64,
    pub(crate) frames: u64,
}

pub(crate) struct Core {
    options: CoreOptions,
    random: Arc<dyn Random>,
    signal: Arc<Signal>,
    seats: Vec<Seat>,
    queue: Queue,
    cache: Cache,
    /// Puts without room in the channel, by arrival.
    waiting: VecDeque<PendingPut>,
    waiting_bytes: usize,
    /// Puts with room, by arrival.
    pending: VecDeque<PendingPut>,
    pending_events: u64,
    /// Events in frames whose outcome is open.
    flying_events: u64,
    states: Vec<PendingState>,
    /// Numbers to declare void with the next frame.
    voids: Vec<SeqRange>,
    /// Where a producer's unacknowledged transactions are: (log, frames).
    affinity: BTreeMap<u64, (usize, usize)>,
    takes: VecDeque<WaitingTake>,
    order_wait: Option<Duration>,
    reading: bool,
    read_failed: Option<(SeqRange, String)>,
    notes: BTreeMap<(String, String), (u64, Bytes)>,
    note_bytes: usize,
    /// Removed while older versions were still on their way to a disk.
    removed_notes: BTreeMap<(String, String), u64>,
    version: u64,
    /// Versions whose frames are not durable yet.
    open_versions: BTreeSet<u64>,
    unwitnessed: Option<(usize, Duration)>,
    next_handle: u64,
    closed: bool,
    changes: u64,
    pub(crate) counts: Counts,
}

/// What recovery hands over.
pub(crate) struct Start {
    pub(crate) logs: Vec<Log>,
    pub(crate) queue: Queue,
    pub(crate) notes: BTreeMap<(String, String), (u64, Bytes)>,
    pub(crate) version: u64,
    pub(crate) voids: Vec<SeqRange>,
    pub(crate) lost: Vec<SeqRange>,
}

impl Core {
    pub(crate) fn new(options: CoreOptions, random: Arc<dyn Random>, signal: Arc<Signal>, start: Start) -> Core {
        let seat = |log| Seat {
            log,
            written: BTreeMap::new(),
            failed: BTreeMap::new(),
            failed_out: 0,
            needs_segment: false,
            retry_at: None,
            retiring: None,
            snapshot_wanted: false,
        };
        let mut core = Core {
            cache: Cache::new(options.hot_tail_bytes),
            options,
            random,
            signal,
            seats: start.logs.into_iter().map(seat).collect(),
            queue: start.queue,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            pending: VecDeque::new(),
            pending_events: 0,
            flying_events: 0,
            states: Vec::new(),
            voids: start.voids,
            affinity: BTreeMap::new(),
            takes: VecDeque::new(),
            order_wait: None,
            reading: false,
            read_failed: None,
            note_bytes: start.notes.iter().map(|((owner, key), (_, note))| owner.len() + key.len() + note.len()).sum(),
            notes: start.notes,
            removed_notes: BTreeMap::new(),
            version: start.version,
            open_versions: BTreeSet::new(),
            unwitnessed: None,
            next_handle: 0,
            closed: false,
            changes: 0,
            counts: Counts::default(),
        };
        if !start.lost.is_empty() {
            let settled = vec![SettledRuns { mark: Mark::Lost, reason: "damaged".to_owned(), runs: start.lost }];
            core.states.push(PendingState { settled, notes: Vec::new(), sender: None });
        }
        core
    }

    /// A number for a producer or consumer handle.
    pub(crate) fn handle(&mut self) -> u64 {
        self.next_handle += 1;
        self.next_handle
    }

    /// Events that the channel must still account for, as Flume counts.
    fn size(&self) -> u64 {
        self.queue.size() + self.pending_events + self.flying_events
    }

    // ---- puts ------------------------------------------------------------------------------------------------

    /// Most bytes of one transaction.
    pub(crate) fn put_bytes_max(&self) -> usize {
        // Room for the sections that may ride along is left over: they go alone when they do not fit.
        self.seats.iter().map(|seat| seat.log.body_max()).max().unwrap_or_default() / 2
    }

    pub(crate) fn put(&mut self, now: Duration, mut put: PendingPut, answers: &mut Vec<Answer>) {
        let events = put.batch.len();
        self.counts.put_attempt += events as u64;
        let channel = || self.options.name.clone();
        let refusal = if self.closed {
            Some(PutError::Closed)
        } else if events > self.options.transaction_capacity {
            Some(PutError::TooManyEvents { channel: channel(), events, limit: self.options.transaction_capacity })
        } else if put.section_len() > self.put_bytes_max() {
            Some(PutError::TooLarge { channel: channel(), bytes: put.section_len(), limit: self.put_bytes_max() })
        } else {
            None
        };
        let Some(sender) = put.sender.take() else { return };
        if let Some(refusal) = refusal {
            self.counts.put_errors += 1;
            answers.push(Answer::Put(sender, Err(refusal)));
            return;
        }
        if events == 0 {
            answers.push(Answer::Put(sender, Ok(PutReceipt { range: None })));
            return;
        }
        put.deadline = now + self.options.keep_alive;
        let crowded = self.waiting.len() >= WAITING_MAX || self.waiting_bytes + put.section_len() > WAITING_BYTES_MAX;
        if crowded && !self.waiting.is_empty() {
            self.counts.put_errors += 1;
            let detail = no_room(&self.options.name);
            answers.push(Answer::Put(sender, Err(PutError::Full { channel: channel(), detail })));
            return;
        }
        put.sender = Some(sender);
        self.waiting_bytes += put.section_len();
        self.waiting.push_back(put);
        self.admit();
        self.expire_puts(now, answers);
    }

    fn has_room_for(&self, events: u64) -> bool {
        let bytes = self.options.disk_bytes_max.is_none_or(|max| self.disk_bytes() < max);
        bytes && self.size() + events <= self.options.capacity
    }

    /// Lets waiting puts in, in their order.
    fn admit(&mut self) {
        while let Some(put) = self.waiting.front()
            && self.has_room_for(put.events())
        {
            let put = self.waiting.pop_front().expect("just seen");
            self.waiting_bytes -= put.section_len();
            self.pending_events += put.events();
            self.pending.push_back(put);
        }
    }

    /// Refuses what has waited for room, in the channel or on a disk, as long as it may.
    fn expire_puts(&mut self, now: Duration, answers: &mut Vec<Answer>) {
        let channel = self.options.name.clone();
        while let Some(put) = self.waiting.pop_front_if(|put| put.deadline <= now) {
            let detail = no_room(&channel);
            self.waiting_bytes -= put.section_len();
            self.counts.put_errors += 1;
            if let Some(sender) = put.sender {
                answers.push(Answer::Put(sender, Err(PutError::Full { channel: channel.clone(), detail })));
            }
        }
        let Some(cause) = self.no_disk_takes_puts() else { return };
        while let Some(put) = self.pending.pop_front_if(|put| put.deadline <= now) {
            self.pending_events -= put.events();
            self.voids.extend(&put.voids);
            self.counts.put_errors += 1;
            let error = match &cause {
                (true, cause) => PutError::Failed { channel: channel.clone(), cause: cause.clone() },
                (false, cause) => PutError::Full { channel: channel.clone(), detail: cause.clone() },
            };
            if let Some(sender) = put.sender {
                answers.push(Answer::Put(sender, Err(error)));
            }
        }
        self.admit();
    }

    /// Why no log takes puts now: (failed rather than full, cause).
    fn no_disk_takes_puts(&self) -> Option<(bool, String)> {
        let mut found = None;
        for seat in &self.seats {
            if let Some(cause) = seat.log.failure() {
                found = found.or_else(|| Some((true, cause.to_owned())));
            } else if let Some(cause) = seat.log.blocked().filter(|_| seat.needs_segment) {
                found = Some((false, cause.to_owned()));
            } else {
                return None;
            }
        }
        found
    }

    // ---- frames ----------------------------------------------------------------------------------------------

    /// The next frame for a log, if there is something to write and the device has a slot for it.
    pub(crate) fn gather(
        &mut self,
        index: usize,
        now: Duration,
        now_ms: u64,
        answers: &mut Vec<Answer>,
    ) -> Option<Job> {
        if self.seats[index].log.failure().is_some() {
            return None;
        }
        let witness_due = self.witness_due(index, now);
        let snapshot = self.seats[index].snapshot_wanted;
        let state_waits = !self.states.is_empty() || !self.voids.is_empty() || snapshot;
        let (mut chosen, bytes) = self.choose(index);
        if chosen.is_empty() && !state_waits && !witness_due {
            return None;
        }
        let slot = self.seats[index].log.device().clone().try_start(bytes, &self.signal)?;
        loop {
            let mut encoded = Vec::new();
            let mut settled: Vec<&SettledRuns> = self.states.iter().flat_map(|state| &state.settled).collect();
            let voids: Vec<SeqRange> =
                self.voids.iter().chain(chosen.iter().flat_map(|place| &self.pending[*place].voids)).copied().collect();
            let void_runs = SettledRuns { mark: Mark::Void, reason: String::new(), runs: voids.clone() };
            if !voids.is_empty() {
                settled.push(&void_runs);
            }
            if !settled.is_empty() {
                let settled: Vec<SettledRuns> = settled.into_iter().cloned().collect();
                sections::append_settlements(&mut encoded, &settled);
            }
            let notes: Vec<VersionedNote> = self.states.iter().flat_map(|state| state.notes.clone()).collect();
            if !notes.is_empty() {
                sections::append_notes(&mut encoded, &notes);
            }
            if snapshot {
                sections::append_snapshot(&mut encoded, &self.snapshot());
            }
            let witness = chosen.is_empty() && !state_waits;
            if witness {
                sections::append_marks(&mut encoded, &self.marks());
            }
            let puts_len: usize = chosen.iter().map(|place| self.pending[*place].section_len()).sum();
            let events: u64 = chosen.iter().map(|place| self.pending[*place].events()).sum();
            let request = FrameRequest {
                body_len: encoded.len() + puts_len,
                first_seq: self.queue.next_seq(),
                seq_count: u32::try_from(events).expect("a frame holds fewer than 2^32 events"),
                durable_seq: self.queue.durable_seq(),
                floor: self.queue.floor(),
                now_ms,
                witness,
            };
            let too_long = request.body_len > self.seats[index].log.body_max();
            if too_long && !chosen.is_empty() {
                // What rides along is unusually long: it goes first, alone.
                chosen.clear();
                if state_waits {
                    continue;
                }
                return None;
            }
            let outcome = self.seats[index].log.reserve(&request);
            let reservation = match outcome {
                Ok(reservation) => reservation,
                Err(Refused::NeedsSegment) => {
                    self.seats[index].needs_segment = true;
                    // Settlements find room where events do not.
                    if !chosen.is_empty() && state_waits {
                        chosen.clear();
                        continue;
                    }
                    return None;
                }
                Err(Refused::InFlight | Refused::Failed) => return None,
            };
            return Some(self.build(index, now, reservation, chosen, voids, encoded, slot, answers));
        }
    }

    /// Which pending puts go into the next frame of a log: in order, up to the target.
    fn choose(&self, index: usize) -> (Vec<usize>, usize) {
        let (mut chosen, mut bytes) = (Vec::new(), 0);
        let limit = FRAME_TARGET.min(self.seats[index].log.body_max() / 2);
        for (place, put) in self.pending.iter().enumerate() {
            // A producer's unacknowledged transactions stay on one log, or they might pass each other.
            if self.affinity.get(&put.producer).is_some_and(|(log, _)| *log != index) {
                continue;
            }
            if !chosen.is_empty() && bytes + put.section_len() > limit {
                break;
            }
            bytes += put.section_len();
            chosen.push(place);
        }
        (chosen, bytes)
    }

    #[expect(clippy::too_many_arguments, reason = "the pieces of one frame, put together in one place")]
    fn build(
        &mut self,
        index: usize,
        now: Duration,
        reservation: wal::log::Reservation,
        chosen: Vec<usize>,
        voids: Vec<SeqRange>,
        sections: Vec<u8>,
        slot: wal::device::WriteSlot,
        answers: &mut Vec<Answer>,
    ) -> Job {
        let mut puts = Vec::with_capacity(chosen.len());
        for place in chosen.into_iter().rev() {
            puts.push(self.pending.remove(place).expect("chosen from it"));
        }
        puts.reverse();
        let events: u64 = puts.iter().map(PendingPut::events).sum();
        self.pending_events -= events;
        self.flying_events += events;
        let range = self.queue.reserve(events);
        debug_assert!(range.is_none_or(|range| range.start == reservation.header.first_seq));
        for put in &mut puts {
            self.affinity.entry(put.producer).or_insert((index, 0)).1 += 1;
            if planted::is(Bug::AcknowledgeBeforeSync)
                && let Some(sender) = put.sender.take()
            {
                answers.push(Answer::Put(sender, Ok(PutReceipt { range: None })));
            }
        }
        self.voids.clear();
        let seat = &mut self.seats[index];
        let snapshot = std::mem::take(&mut seat.snapshot_wanted);
        let header = &reservation.header;
        self.unwitnessed = if header.witness { None } else { Some((index, now + WITNESS_AFTER)) };
        self.changes += u64::from(!header.witness);
        self.counts.frames += 1;
        Job {
            log: index,
            puts,
            states: std::mem::take(&mut self.states),
            voids,
            sections,
            retires: if snapshot { seat.retiring } else { None },
            slot: Some(slot),
            reservation,
        }
    }

    fn marks(&self) -> Vec<LogMark> {
        self.seats.iter().map(|seat| LogMark { log: seat.log.id(), mark: seat.log.durable() }).collect()
    }

    /// All that must outlive segments.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let note = |((owner, key), (version, note)): (&(String, String), &(u64, Bytes))| VersionedNote {
            version: *version,
            update: NoteUpdate { owner: owner.clone(), key: key.clone(), note: Some(note.clone()) },
        };
        Snapshot {
            // A note on its way to another log must not look removed.
            version: self.open_versions.first().map_or(self.version, |open| open - 1),
            floor: self.queue.floor(),
            settled: self.queue.settled().clone(),
            notes: self.notes.iter().map(note).collect(),
        }
    }

    /// A frame was written and synced, or was not.
    pub(crate) fn complete(&mut self, now: Duration, mut job: Job, result: io::Result<()>, answers: &mut Vec<Answer>) {
        job.slot = None;
        let index = job.log;
        let (id, epoch) = (job.reservation.id, job.reservation.epoch);
        let cause = result.err().map(|error| error.to_string());
        let completion = self.seats[index].log.complete(id, epoch, cause.as_deref().map_or(Ok(()), Err));
        match completion {
            Completion::Waits => {
                self.seats[index].written.insert(id, job);
            }
            Completion::Durable(ids) => {
                self.seats[index].written.insert(id, job);
                for id in ids {
                    let job = self.seats[index].written.remove(&id).expect("written before it is durable");
                    self.publish(job, answers);
                }
            }
            Completion::Failed(ids) => {
                self.log_failed(index, now, ids.len());
                self.seats[index].failed.insert(id, job);
            }
            Completion::Late => {
                self.seats[index].failed.insert(id, job);
            }
        }
        self.settle_failures(answers);
        self.after_change(now, answers);
    }

    /// A failure ended frames of a log: those written already wait with the others for the last one to return.
    fn log_failed(&mut self, index: usize, now: Duration, frames: usize) {
        let seat = &mut self.seats[index];
        let cause = seat.log.failure().unwrap_or_default().to_owned();
        tracing::error!(
            channel = self.options.name,
            device = seat.log.device().name(),
            cause,
            frames,
            "a disk failed; what it had not acknowledged goes elsewhere"
        );
        seat.failed_out += frames;
        seat.failed.append(&mut seat.written);
        seat.retry_at = Some(now + RETRY_AFTER);
        seat.retiring = None;
        seat.snapshot_wanted = false;
    }

    /// Once all writes of a failed log have returned, sends their transactions to another log, or refuses them.
    fn settle_failures(&mut self, answers: &mut Vec<Answer>) {
        for index in 0..self.seats.len() {
            let seat = &mut self.seats[index];
            if seat.failed_out == 0 || seat.failed.len() < seat.failed_out {
                continue;
            }
            seat.failed_out = 0;
            let jobs = std::mem::take(&mut seat.failed);
            let cause = seat.log.failure().unwrap_or("the device failed").to_owned();
            let elsewhere = self.seats.iter().any(|seat| seat.log.failure().is_none());
            let mut again = Vec::new();
            for job in jobs.into_values() {
                self.flying_events -= job.puts.iter().map(PendingPut::events).sum::<u64>();
                let ranges: Vec<SeqRange> = job.ranges().map(|(range, _)| range).collect();
                let own: Vec<SeqRange> = job.puts.iter().flat_map(|put| put.voids.iter().copied()).collect();
                self.voids.extend(job.voids.iter().filter(|range| !own.contains(range)));
                for (mut put, range) in job.puts.into_iter().zip(ranges) {
                    self.release_affinity(put.producer);
                    put.voids.push(range);
                    again.push(put);
                }
                // Settlements are facts, wherever they are written. Nobody waits for them longer than this.
                for mut state in job.states {
                    if !elsewhere && let Some(sender) = state.sender.take() {
                        answers.push(Answer::Settle(sender, Err(SettleError::Failed(cause.clone()))));
                    }
                    self.states.push(state);
                }
            }
            for mut put in again.into_iter().rev() {
                if elsewhere || put.sender.is_none() {
                    self.pending_events += put.events();
                    self.pending.push_front(put);
                } else if let Some(sender) = put.sender.take() {
                    self.voids.append(&mut put.voids);
                    self.counts.put_errors += 1;
                    let channel = self.options.name.clone();
                    answers.push(Answer::Put(sender, Err(PutError::Failed { channel, cause: cause.clone() })));
                }
            }
        }
    }

    fn release_affinity(&mut self, producer: u64) {
        if let Some((_, frames)) = self.affinity.get_mut(&producer) {
            *frames -= 1;
            if *frames == 0 {
                self.affinity.remove(&producer);
            }
        }
    }

    /// A frame is durable: its events can be taken, its settlements are facts, and everybody hears.
    fn publish(&mut self, mut job: Job, answers: &mut Vec<Answer>) {
        let ranges: Vec<SeqRange> = job.ranges().map(|(range, _)| range).collect();
        for (put, range) in std::mem::take(&mut job.puts).into_iter().zip(ranges) {
            self.release_affinity(put.producer);
            self.flying_events -= put.events();
            self.counts.put_success += put.events();
            self.queue.publish(range);
            self.cache.offer(range.start, put.batch.freeze());
            if let Some(sender) = put.sender {
                answers.push(Answer::Put(sender, Ok(PutReceipt { range: Some(range) })));
            }
        }
        for range in job.voids {
            self.queue.void(range);
        }
        for state in job.states {
            for SettledRuns { mark, runs, .. } in &state.settled {
                let count: u64 = runs.iter().map(|run| run.count()).sum();
                match mark {
                    Mark::Delivered => self.counts.take_success += count,
                    Mark::DeadLettered => self.counts.dead_lettered += count,
                    Mark::Dropped => self.counts.dropped += count,
                    Mark::Void | Mark::Lost => {}
                }
                runs.iter().for_each(|run| self.queue.settle(*run));
            }
            state.notes.into_iter().for_each(|note| self.publish_note(note));
            if let Some(sender) = state.sender {
                answers.push(Answer::Settle(sender, Ok(())));
            }
        }
        if let Some(ordinal) = job.retires {
            let seat = &mut self.seats[job.log];
            seat.retiring = None;
            seat.log.release(ordinal);
        }
    }

    // ---- takes -----------------------------------------------------------------------------------------------

    pub(crate) fn take(
        &mut self,
        now: Duration,
        consumer: ConsumerId,
        limits: TakeLimits,
        wait: Duration,
        sender: TakeSender,
        answers: &mut Vec<Answer>,
    ) {
        self.counts.take_attempts += 1;
        if self.closed {
            answers.push(Answer::Take(sender, Err(TakeError::Closed)));
            return;
        }
        let deadline = now.checked_add(wait);
        self.takes.push_back(WaitingTake { consumer, limits, deadline, sender });
        self.serve_takes(now, answers);
    }

    fn serve_takes(&mut self, now: Duration, answers: &mut Vec<Answer>) {
        while let Some(take) = self.takes.front() {
            let (consumer, limits) = (take.consumer, take.limits);
            if let Some((range, cause)) = self.read_failed.take() {
                let channel = self.options.name.clone();
                self.counts.take_errors += 1;
                let take = self.takes.pop_front().expect("just seen");
                answers.push(Answer::Take(take.sender, Err(TakeError::Unreadable { channel, range, cause })));
                continue;
            }
            let lease = self.lease(now, consumer, limits);
            if lease.is_empty() {
                break;
            }
            let take = self.takes.pop_front().expect("just seen");
            answers.push(Answer::Take(take.sender, Ok(lease)));
        }
        let expired = |take: &WaitingTake| take.deadline.is_some_and(|deadline| deadline <= now);
        // While a disk is being read for the first in line, it waits for that.
        let mut kept = VecDeque::new();
        for take in std::mem::take(&mut self.takes) {
            if expired(&take) && !self.wants_read() {
                answers.push(Answer::Take(take.sender, Ok(Lease::default())));
            } else {
                kept.push_back(take);
            }
        }
        self.takes = kept;
    }

    fn lease(&mut self, now: Duration, consumer: ConsumerId, limits: TakeLimits) -> Lease {
        let mut lease = Lease::default();
        let most = limits.events.min(self.options.transaction_capacity).max(1) as u64;
        let (mut events, mut bytes) = (0u64, 0usize);
        while events < most {
            let Some((head, older)) = self.queue.head() else { break };
            if older {
                // An older write is still under way: order is worth a short wait, a stalled disk is not.
                let until = *self.order_wait.get_or_insert(now + ORDER_WAIT);
                if now < until {
                    break;
                }
            } else {
                self.order_wait = None;
            }
            let scattered = self.queue.settled().pieces() >= SETTLED_RUNS_MAX.min(self.put_bytes_max() / 64);
            if scattered && head.start > self.queue.floor() {
                break;
            }
            let wanted = SeqRange::new(head.start, head.end.min(head.start + most - events));
            let Some(mut slice) = self.cache.find(wanted) else { break };
            let mut fitting = 0;
            for event in slice.events.iter() {
                let size = event.bytes();
                if bytes + size > limits.bytes && (events > 0 || fitting > 0) {
                    break;
                }
                bytes += size;
                fitting += 1;
            }
            if fitting == 0 {
                break;
            }
            let whole = fitting == slice.events.len();
            slice.events = slice.events.slice(0..fitting);
            let range = slice.range();
            self.queue.lease(consumer, range);
            self.cache.leased(range);
            events += fitting as u64;
            if older {
                self.counts.order_relaxed += fitting as u64;
            }
            lease.slices.push(slice);
            if !whole {
                break;
            }
        }
        lease
    }

    /// Whether the first take in line needs a disk.
    fn wants_read(&self) -> bool {
        !self.takes.is_empty()
            && self.read_failed.is_none()
            && self.queue.head().is_some_and(|(head, older)| {
                !older && self.cache.find(SeqRange::new(head.start, head.start + 1)).is_none()
            })
    }

    /// What to read next, for one reader.
    pub(crate) fn next_read(&mut self) -> Option<ReadJob> {
        let (head, _) = self.queue.head()?;
        let missing = self.cache.find(SeqRange::new(head.start, head.start + 1)).is_none();
        if self.reading || self.closed || self.takes.is_empty() || !missing || self.read_failed.is_some() {
            return None;
        }
        self.reading = true;
        let sources = self.seats.iter().enumerate().flat_map(|(log, seat)| {
            seat.log.segments().filter_map(move |segment| {
                let offset = segment.start_for(head.start)?;
                Some(ReadSource::new(log, segment, offset))
            })
        });
        Some(ReadJob { seq: head.start, sources: sources.collect() })
    }

    pub(crate) fn read_done(&mut self, now: Duration, done: ReadDone, answers: &mut Vec<Answer>) {
        self.reading = false;
        match done {
            ReadDone::Found(slices) => {
                for slice in slices {
                    // Read ahead meets events that are leased or done: only what can be taken is kept.
                    for range in self.queue.queued().within(slice.range()) {
                        let (start, end) = (range.start - slice.first_seq, range.end - slice.first_seq);
                        self.cache.keep(range.start, slice.events.slice(start as usize..end as usize));
                    }
                }
            }
            ReadDone::Failed { range, cause } => {
                tracing::error!(channel = self.options.name, %range, cause, "events cannot be read back");
                self.read_failed = Some((range, cause));
            }
        }
        self.serve_takes(now, answers);
    }

    // ---- settlements and notes ---------------------------------------------------------------------------------

    pub(crate) fn settle(
        &mut self,
        now: Duration,
        consumer: ConsumerId,
        settlements: Vec<Settlement>,
        sender: SettleSender,
        answers: &mut Vec<Answer>,
    ) {
        if self.closed {
            answers.push(Answer::Settle(sender, Err(SettleError::Closed)));
            return;
        }
        let ranges = settlements.iter().flat_map(|settlement| settlement.ranges.iter().copied());
        if let Some(range) = self.queue.not_leased(consumer, ranges) {
            answers.push(Answer::Settle(sender, Err(SettleError::NotLeased(range))));
            return;
        }
        let notes: Vec<NoteUpdate> = settlements.iter().flat_map(|settlement| settlement.notes.clone()).collect();
        if let Err(refused) = self.check_notes(&notes) {
            answers.push(Answer::Settle(sender, Err(refused)));
            return;
        }
        let mut settled = Vec::new();
        for Settlement { ranges, outcome, .. } in settlements {
            let (mark, reason) = match outcome {
                Outcome::Returned => {
                    ranges.into_iter().for_each(|range| self.queue.give_back(consumer, range));
                    continue;
                }
                Outcome::Delivered => (Mark::Delivered, String::new()),
                Outcome::DeadLettered { reason } => (Mark::DeadLettered, shortened(reason)),
                Outcome::Dropped { reason } => (Mark::Dropped, shortened(reason)),
            };
            ranges.iter().for_each(|range| self.queue.start_settling(consumer, *range));
            if !ranges.is_empty() {
                settled.push(SettledRuns { mark, reason, runs: ranges });
            }
        }
        self.enqueue_state(settled, notes, sender, answers);
        self.after_change(now, answers);
    }

    pub(crate) fn note(&mut self, notes: Vec<NoteUpdate>, sender: SettleSender, answers: &mut Vec<Answer>) {
        if self.closed {
            answers.push(Answer::Settle(sender, Err(SettleError::Closed)));
            return;
        }
        match self.check_notes(&notes) {
            Err(refused) => answers.push(Answer::Settle(sender, Err(refused))),
            Ok(()) => self.enqueue_state(Vec::new(), notes, sender, answers),
        }
    }

    fn check_notes(&self, notes: &[NoteUpdate]) -> Result<(), SettleError> {
        for NoteUpdate { owner, key, note } in notes {
            let longest = note.as_ref().map_or(0, Bytes::len).max(owner.len() + key.len());
            if longest > NOTE_MAX {
                return Err(SettleError::NoteRefused(format!("{longest} bytes; the limit is {NOTE_MAX}")));
            }
        }
        let is_new = |update: &&NoteUpdate| {
            update.note.is_some() && !self.notes.contains_key(&(update.owner.clone(), update.key.clone()))
        };
        if self.notes.len() + notes.iter().filter(is_new).count() > NOTES_MAX {
            return Err(SettleError::NoteRefused(format!("{} notes; the limit is {NOTES_MAX}", self.notes.len())));
        }
        let added: usize = notes.iter().map(note_bytes).sum::<usize>() + self.open_note_bytes();
        let limit = NOTES_BYTES_MAX.min(self.put_bytes_max() / 2);
        if self.note_bytes + added > limit {
            return Err(SettleError::NoteRefused(format!("{} bytes of notes; the limit is {limit}", self.note_bytes)));
        }
        Ok(())
    }

    fn open_note_bytes(&self) -> usize {
        self.states.iter().flat_map(|state| &state.notes).map(|note| note_bytes(&note.update)).sum()
    }

    fn enqueue_state(
        &mut self,
        settled: Vec<SettledRuns>,
        notes: Vec<NoteUpdate>,
        sender: SettleSender,
        answers: &mut Vec<Answer>,
    ) {
        if settled.is_empty() && notes.is_empty() {
            // A rollback writes nothing.
            answers.push(Answer::Settle(sender, Ok(())));
            return;
        }
        let versioned = |update: NoteUpdate| {
            self.version += 1;
            self.open_versions.insert(self.version);
            VersionedNote { version: self.version, update }
        };
        let notes = notes.into_iter().map(versioned).collect();
        self.states.push(PendingState { settled, notes, sender: Some(sender) });
    }

    /// A note is durable. Frames of different logs may become so in any order; the latest version wins.
    fn publish_note(&mut self, note: VersionedNote) {
        let VersionedNote { version, update: NoteUpdate { owner, key, note } } = note;
        self.open_versions.remove(&version);
        let key = (owner, key);
        let known = self.notes.get(&key).map(|(known, _)| *known).max(self.removed_notes.get(&key).copied());
        if known.is_none_or(|known| known < version) {
            let overhead = key.0.len() + key.1.len();
            let earlier = match note {
                Some(note) => {
                    self.note_bytes += overhead + note.len();
                    self.notes.insert(key, (version, note))
                }
                None => {
                    self.removed_notes.insert(key.clone(), version);
                    self.notes.remove(&key)
                }
            };
            if let Some((_, note)) = earlier {
                self.note_bytes -= overhead + note.len();
            }
        }
        if self.open_versions.is_empty() {
            self.removed_notes.clear();
        }
    }

    pub(crate) fn drop_consumer(&mut self, now: Duration, consumer: ConsumerId, answers: &mut Vec<Answer>) {
        self.queue.give_back_all(consumer);
        // Nobody listens to its takes any more, and what they would lease nobody would settle.
        let (gone, kept): (VecDeque<_>, VecDeque<_>) =
            std::mem::take(&mut self.takes).into_iter().partition(|take| take.consumer == consumer);
        self.takes = kept;
        answers.extend(gone.into_iter().map(|take| Answer::Take(take.sender, Ok(Lease::default()))));
        self.after_change(now, answers);
    }

    pub(crate) fn notes_of(&self, owner: &str) -> Vec<(String, Bytes)> {
        let of_owner = self.notes.iter().filter(|((found, _), _)| found == owner);
        of_owner.map(|((_, key), (_, note))| (key.clone(), note.clone())).collect()
    }

    // ---- time, chores, end -------------------------------------------------------------------------------------

    /// What follows from any change: waiting puts and takes, segments to give back.
    fn after_change(&mut self, now: Duration, answers: &mut Vec<Answer>) {
        self.admit();
        self.serve_takes(now, answers);
        for seat in &mut self.seats {
            if seat.retiring.is_some() {
                continue;
            }
            let queue = &self.queue;
            if let Some(ordinal) = seat.log.retirable(|segment| queue.is_done(segment.first_seq, segment.end_seq)) {
                seat.log.retire(ordinal);
                seat.retiring = Some(ordinal);
                seat.snapshot_wanted = true;
            }
        }
    }

    /// Time has passed.
    pub(crate) fn tick(&mut self, now: Duration, answers: &mut Vec<Answer>) {
        for index in 0..self.seats.len() {
            let failed = self.seats[index].log.check_epoch();
            if !failed.is_empty() || (self.seats[index].log.failure().is_some() && self.seats[index].retry_at.is_none())
            {
                self.log_failed(index, now, failed.len());
            }
        }
        self.settle_failures(answers);
        self.expire_puts(now, answers);
        self.after_change(now, answers);
    }

    fn witness_due(&self, index: usize, now: Duration) -> bool {
        let Some((last, due)) = self.unwitnessed else { return false };
        let idle = self.pending.is_empty() && !self.seats.iter().any(|seat| seat.log.has_in_flight());
        if now < due || !idle || self.closed {
            return false;
        }
        // Another log's word is worth more: its disk does not fail with the first one's.
        let others = (1..self.seats.len()).map(|step| (last + step) % self.seats.len());
        let fit = |other: &usize| self.seats[*other].log.failure().is_none() && !self.seats[*other].needs_segment;
        others.into_iter().find(fit).unwrap_or(last) == index
    }

    /// When [`tick`](Core::tick) is due; `None` while nothing waits for time.
    pub(crate) fn next_deadline(&self) -> Option<Duration> {
        let puts = self.waiting.front().map(|put| put.deadline);
        let stuck = self.pending.front().filter(|_| self.no_disk_takes_puts().is_some()).map(|put| put.deadline);
        let takes = self.takes.iter().filter_map(|take| take.deadline).min();
        let idle = self.pending.is_empty() && !self.seats.iter().any(|seat| seat.log.has_in_flight());
        let witness = self.unwitnessed.filter(|_| idle).map(|(_, due)| due);
        let order = self.order_wait.filter(|_| !self.takes.is_empty());
        let retries = self.seats.iter().filter_map(|seat| seat.retry_at).min();
        [puts, stuck, takes, witness, order, retries].into_iter().flatten().min()
    }

    /// File work for a log.
    pub(crate) fn next_chore(&mut self, index: usize, now: Duration, now_ms: u64) -> Option<Chore> {
        let seat = &mut self.seats[index];
        let retry = seat.retry_at.is_some_and(|at| at <= now);
        let chore = seat.log.next_chore(&*self.random, seat.needs_segment, retry, now_ms);
        if chore.is_some() || retry {
            seat.retry_at = None;
        }
        chore
    }

    pub(crate) fn chore_done(
        &mut self,
        index: usize,
        now: Duration,
        chore: Chore,
        result: io::Result<ChoreDone>,
        answers: &mut Vec<Answer>,
    ) {
        let seat = &mut self.seats[index];
        let was_blocked = seat.log.blocked().is_some();
        let failed = result.is_err();
        if let Ok(ChoreDone::Prepared { .. }) = &result {
            seat.needs_segment = false;
        }
        if let Ok(ChoreDone::Probed) = &result {
            tracing::warn!(device = seat.log.device().name(), "the disk takes writes again");
        }
        if let Err(error) = &result
            && !was_blocked
        {
            tracing::error!(channel = self.options.name, device = seat.log.device().name(), %error, "no new segment");
        }
        if let Ok(ChoreDone::Reserved { .. }) = &result {
            seat.needs_segment = false;
        }
        seat.log.chore_done(chore, result);
        if failed || seat.log.failure().is_some() {
            seat.retry_at = Some(now + RETRY_AFTER);
        }
        self.tick(now, answers);
    }

    /// Work that a log's threads could do now: something to write, or a chore.
    pub(crate) fn has_work(&self) -> bool {
        !self.pending.is_empty() || !self.states.is_empty() || self.seats.iter().any(|seat| seat.snapshot_wanted)
    }

    /// Refuses everything from now on. What was accepted is still written.
    pub(crate) fn close(&mut self, answers: &mut Vec<Answer>) {
        self.closed = true;
        for put in std::mem::take(&mut self.waiting) {
            if let Some(sender) = put.sender {
                answers.push(Answer::Put(sender, Err(PutError::Closed)));
            }
        }
        for take in std::mem::take(&mut self.takes) {
            answers.push(Answer::Take(take.sender, Err(TakeError::Closed)));
        }
    }

    /// Whether everything accepted is durable, or nothing can be done about it.
    pub(crate) fn is_flushed(&self) -> bool {
        let failed = self.seats.iter().all(|seat| seat.log.failure().is_some() || seat.log.blocked().is_some());
        let busy = self.seats.iter().any(|seat| seat.log.has_in_flight());
        !busy && (failed || (self.pending.is_empty() && self.states.iter().all(|state| state.sender.is_none())))
    }

    /// Answers whoever still waits when the threads are gone.
    pub(crate) fn abandon(&mut self, answers: &mut Vec<Answer>) {
        for put in std::mem::take(&mut self.pending) {
            if let Some(sender) = put.sender {
                answers.push(Answer::Put(sender, Err(PutError::Closed)));
            }
        }
        for sender in std::mem::take(&mut self.states).into_iter().filter_map(|state| state.sender) {
            answers.push(Answer::Settle(sender, Err(SettleError::Closed)));
        }
    }

    fn disk_bytes(&self) -> u64 {
        self.seats.iter().map(|seat| seat.log.disk_bytes()).sum()
    }

    /// Grows with everything that a checkpoint would save.
    pub(crate) fn changes(&self) -> u64 {
        self.changes
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed
    }

    /// Bytes of events in memory, and of the tables that find the others.
    #[cfg(test)]
    pub(crate) fn memory_bytes(&self) -> (usize, usize) {
        let index = self.seats.iter().flat_map(|seat| seat.log.segments()).map(|segment| segment.index_bytes()).sum();
        (self.cache.bytes(), index)
    }

    pub(crate) fn stats(&self) -> ChannelStats {
        let (size, capacity) = (self.size(), self.options.capacity);
        let events = size as f64 * 100.0 / capacity.max(1) as f64;
        let bytes = self.options.disk_bytes_max.map_or(0.0, |max| self.disk_bytes() as f64 * 100.0 / max as f64);
        ChannelStats {
            size_events: size,
            capacity_events: capacity,
            fill_percent: events.max(bytes),
            leased_events: self.queue.leased_count(),
            disk_bytes: self.disk_bytes(),
            put_attempt_events: self.counts.put_attempt,
            put_success_events: self.counts.put_success,
            take_attempts: self.counts.take_attempts,
            take_success_events: self.counts.take_success,
            dead_lettered_events: self.counts.dead_lettered,
            dropped_events: self.counts.dropped,
            order_relaxed_events: self.counts.order_relaxed,
            put_errors: self.counts.put_errors,
            take_errors: self.counts.take_errors,
            checkpoint_errors: self.counts.checkpoint_errors,
            unhealthy: self.seats.iter().any(|seat| seat.log.failure().is_some()),
        }
    }
}

/// Flume's words for a file channel at one of its limits. Senders see them; the numbers are in the metrics.
fn no_room(channel: &str) -> String {
    format!(
        "The channel has reached it's capacity. This might be the result of a sink on the channel having too low of \
         batch size, a downstream system running slower than normal, or that the channel capacity is just too low. \
         [channel={channel}]"
    )
}

fn note_bytes(update: &NoteUpdate) -> usize {
    update.owner.len() + update.key.len() + update.note.as_ref().map_or(0, Bytes::len)
}

fn shortened(mut reason: String) -> String {
    let mut end = reason.len().min(REASON_MAX);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    reason.truncate(end);
    reason
}
