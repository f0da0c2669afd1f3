//! The durable channel without threads: every step is a method that takes the time and returns what to do.
//!
//! The shell (threads) and the simulator (one loop, one seed) drive the same code. Under the lock only descriptors and
//! owners move; sealing, writing, reading and chores happen outside, in [`Job`], [`ReadJob`] and [`wal::chore::Chore`].
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
use wal::chore::{Chore, ChoreDone};
use wal::device::Signal;
use wal::limits::PAGE;
use wal::log::Log;
use wal::planted::{self, Bug};
use wal::recover::known::{Known, KnownSegment};
use wal::seal::{ChannelKey, Random};

use super::cache::Cache;
use super::checkpoint::{Checkpoint, KnownLog};
use super::job::{PendingPut, PendingState, PutSender, Retiring, SettleSender};
use super::queue::{ConsumerId, Queue};
use super::ranges::RangeSet;
use super::sections::{Mark, SettledRuns};
use crate::api::{ChannelStats, Lease, PutError, PutReceipt, TakeError, TakeLimits};
use crate::settlement::{SeqRange, SettleError};
use crate::ticket::TicketSender;

/// A take passes an older write by that is so old and still under way.
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

mod frames;
#[cfg(test)]
mod paces;
mod puts;
pub(crate) mod reads;
mod scrub;
mod seat;
mod settles;
#[cfg(test)]
mod stage;
#[cfg(test)]
mod stories;
mod takes;

use seat::Seat;

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
    /// How often what lies on disk is read to see whether it is still there; zero for never.
    pub(crate) scrub_interval: Duration,
    /// Shortest time between two checkpoints.
    pub(crate) checkpoint_interval: Duration,
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

/// State that changes counters and nothing else.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) put_attempt: u64,
    pub(crate) put_success: u64,
    /// Bytes of the transactions of these, as they are without compression.
    pub(crate) put_bytes: u64,
    pub(crate) take_attempts: u64,
    pub(crate) take_success: u64,
    pub(crate) dead_lettered: u64,
    pub(crate) dropped: u64,
    pub(crate) order_relaxed: u64,
    pub(crate) put_errors: u64,
    pub(crate) take_errors: u64,
    pub(crate) checkpoint_errors: u64,
    pub(crate) rings_denied: u64,
    pub(crate) frames: u64,
}

pub(crate) struct Core {
    options: CoreOptions,
    random: Arc<dyn Random>,
    /// One for each log, raised when its device has a slot again.
    signals: Vec<Arc<Signal>>,
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
    /// When a take goes on without waiting for older writes, if one waits.
    order_wait: Option<Duration>,
    /// What the first take in line waits for: an event on the disk of this log.
    wanted: Option<(usize, u64)>,
    /// Reads that were ever given out.
    reads_out: u64,
    /// Where the last event was found that was looked for.
    located: Option<(usize, SeqRange)>,
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
    channel: [u8; 16],
    /// Frames written since the last checkpoint.
    unsaved: u64,
    /// When the next checkpoint may be written.
    checkpoint_at: Duration,
    pub(crate) counts: Counts,
}

/// What recovery hands over.
pub(crate) struct Start {
    pub(crate) channel: [u8; 16],
    pub(crate) logs: Vec<Log>,
    pub(crate) queue: Queue,
    pub(crate) notes: BTreeMap<(String, String), (u64, Bytes)>,
    pub(crate) version: u64,
    pub(crate) voids: Vec<SeqRange>,
    pub(crate) lost: Vec<SeqRange>,
}

impl Core {
    pub(crate) fn new(options: CoreOptions, random: Arc<dyn Random>, signals: Vec<Arc<Signal>>, start: Start) -> Core {
        let scrub_interval = options.scrub_interval;
        let mut core = Core {
            cache: Cache::new(options.hot_tail_bytes),
            options,
            random,
            signals,
            seats: start.logs.into_iter().map(|log| Seat::new(log, scrub_interval)).collect(),
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
            wanted: None,
            reads_out: 0,
            located: None,
            note_bytes: start.notes.iter().map(|((owner, key), (_, note))| owner.len() + key.len() + note.len()).sum(),
            notes: start.notes,
            removed_notes: BTreeMap::new(),
            version: start.version,
            open_versions: BTreeSet::new(),
            unwitnessed: None,
            next_handle: 0,
            closed: false,
            channel: start.channel,
            unsaved: 0,
            checkpoint_at: Duration::ZERO,
            counts: Counts::default(),
        };
        if !start.lost.is_empty() {
            let settled = vec![SettledRuns { mark: Mark::Lost, reason: "damaged".to_owned(), runs: start.lost }];
            core.states.push(PendingState { settled, notes: Vec::new(), sender: None, said_in: Vec::new() });
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

    /// What follows from any change: waiting puts and takes, segments to give back.
    fn after_change(&mut self, now: Duration, answers: &mut Vec<Answer>) {
        self.admit();
        self.serve_takes(now, answers);
        for seat in &mut self.seats {
            if seat.retiring.is_some() {
                continue;
            }
            let queue = &self.queue;
            if let Some(ordinal) = seat.log.retirable(|segment| seat.is_drained(segment, queue)) {
                if planted::is(Bug::ReleaseBeforeSnapshot) {
                    seat.log.release(ordinal);
                    continue;
                }
                seat.retiring = Some(Retiring::UpTo(ordinal));
                seat.snapshot_wanted = true;
                continue;
            }
            // A full disk whose oldest segments are still needed: settlements must not run out of room.
            let bare = seat.log.vacatable();
            if !bare.is_empty() {
                seat.retiring = Some(Retiring::Bare(bare));
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
        self.say_elsewhere(now);
        self.expire_puts(now, answers);
        self.after_change(now, answers);
    }

    fn witness_due(&self, index: usize, now: Duration) -> bool {
        let Some((last, due)) = self.unwitnessed else { return false };
        let idle = self.pending.is_empty() && !self.seats.iter().any(|seat| seat.log.has_in_flight());
        // A stop does not wait: its last frames get their witness at once.
        if (now < due && !self.closed) || !idle {
            return false;
        }
        // Another log's word is worth more: its disk does not fail with the first one's.
        let others = (1..self.seats.len()).map(|step| (last + step) % self.seats.len());
        let fit = |other: &usize| self.seats[*other].is_well(now) && self.takes_witness(*other);
        others.into_iter().find(fit).unwrap_or(last) == index
    }

    /// Whether a witness, which is one page, finds room in a log.
    fn takes_witness(&self, index: usize) -> bool {
        let Seat { log, needs_segment, .. } = &self.seats[index];
        log.failure().is_none() && (!needs_segment || log.has_room(PAGE + self.leaves(index)))
    }

    /// When [`tick`](Core::tick) is due; `None` while nothing waits for time.
    pub(crate) fn next_deadline(&self) -> Option<Duration> {
        let puts = self.waiting.front().map(|put| put.deadline);
        let stuck = self.stuck_puts_due();
        let (riding, reads, scrub) = (self.riding_due(), self.reads_due(), self.scrub_due());
        let takes = self.takes.iter().filter_map(|take| take.deadline).min();
        let idle = self.pending.is_empty() && !self.seats.iter().any(|seat| seat.log.has_in_flight());
        // One that finds no room waits for that, and not for time.
        let placed = (0..self.seats.len()).any(|index| self.takes_witness(index));
        let witness = self.unwitnessed.filter(|_| idle && placed).map(|(_, due)| due);
        let order = self.order_wait.filter(|_| !self.takes.is_empty());
        // One whose disk is at work is made when that is done.
        let retries = self.seats.iter().filter(|seat| !seat.log.is_busy()).filter_map(|seat| seat.retry_at).min();
        let checkpoint = (self.unsaved > 0).then_some(self.checkpoint_at);
        [puts, stuck, riding, reads, scrub, takes, witness, order, retries, checkpoint].into_iter().flatten().min()
    }

    /// The identity of the channel.
    pub(crate) fn channel(&self) -> [u8; 16] {
        self.channel
    }

    /// A checkpoint, if something has changed and the last one is old enough, or the channel closes.
    pub(crate) fn next_checkpoint(&mut self, now: Duration) -> Option<Checkpoint> {
        let closing = self.closed && self.is_flushed();
        if self.unsaved == 0 || (now < self.checkpoint_at && !closing) {
            return None;
        }
        self.unsaved = 0;
        self.checkpoint_at = now + self.options.checkpoint_interval;
        let all = self.queue.unsettled();
        let mut unsettled = RangeSet::default();
        let mut logs = Vec::new();
        for seat in &self.seats {
            let segments: Vec<KnownSegment> = seat.log.sealed_segments().filter_map(KnownSegment::of).collect();
            // Only for events of segments that will not be read: the others must be found, or they are lost.
            for (start, end) in segments.iter().flat_map(|segment| segment.ranges()) {
                all.within(SeqRange::new(*start, *end)).into_iter().for_each(|range| unsettled.insert(range));
            }
            let known = Known { oldest_ordinal: seat.log.oldest_ordinal(), segments };
            logs.push(KnownLog { log: seat.log.id(), durable: seat.log.durable(), known });
        }
        let (snapshot, durable_seq) = (self.snapshot(), self.queue.durable_seq());
        Some(Checkpoint { snapshot, unsettled, durable_seq, logs })
    }

    /// File work for a log.
    pub(crate) fn next_chore(&mut self, index: usize, now: Duration, now_ms: u64) -> Option<Chore> {
        let footer = self.next_footer(index, now_ms);
        if footer.is_some() {
            self.seats[index].owes_since.get_or_insert(now);
            return footer;
        }
        let seat = &mut self.seats[index];
        let retry = seat.retry_at.is_some_and(|at| at <= now);
        let chore = seat.log.next_chore(&*self.random, seat.needs_segment, retry, now_ms);
        // An attempt that is due waits for work that has to be done anyway, and is not made up for by it.
        if retry && chore.as_ref().is_none_or(Chore::is_attempt) {
            seat.retry_at = None;
        }
        if chore.is_some() {
            seat.owes_since.get_or_insert(now);
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
            && !matches!(chore, Chore::Footer { .. })
        {
            tracing::error!(channel = self.options.name, device = seat.log.device().name(), %error, "no new segment");
        }
        if let Ok(ChoreDone::Reserved { .. }) = &result {
            seat.needs_segment = false;
        }
        seat.log.chore_done(chore, result);
        seat.heard(now);
        // One that was due while another chore was out has not been made.
        let waits = seat.log.blocked().is_some() && seat.retry_at.is_none();
        if failed || seat.log.failure().is_some() || waits {
            seat.retry_at = Some(now + RETRY_AFTER);
        }
        self.tick(now, answers);
    }

    /// Whether something waits to be written.
    pub(crate) fn has_work(&self) -> bool {
        let state_waits = !self.states.is_empty() || !self.voids.is_empty();
        !self.pending.is_empty() || state_waits || self.seats.iter().any(|seat| seat.snapshot_wanted)
    }

    /// Whether [`next_chore`](Core::next_chore) would find something without waiting for time.
    pub(crate) fn chore_waits(&self, index: usize) -> bool {
        let seat = &self.seats[index];
        seat.log.chore_waits(seat.needs_segment)
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
        let full = |seat: &Seat| seat.log.blocked().is_some() && seat.needs_segment;
        let failed = self.seats.iter().all(|seat| seat.log.failure().is_some() || full(seat));
        let busy = self.seats.iter().any(|seat| seat.log.has_in_flight());
        let written = self.pending.is_empty() && self.states.is_empty() && self.voids.is_empty();
        !busy && (failed || (written && self.unwitnessed.is_none()))
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

    /// Whether an event can be taken.
    #[cfg(any(test, feature = "sim"))]
    pub(crate) fn is_queued(&self, seq: u64) -> bool {
        self.queue.queued().around(seq).is_some()
    }

    /// The segments of a log that count.
    #[cfg(any(test, feature = "sim"))]
    pub(crate) fn segments(&self, index: usize) -> impl Iterator<Item = &wal::segment::Segment> {
        self.seats[index].log.segments()
    }

    /// Frames of a log whose write has returned, well or not, and that wait for others whose write has not.
    #[cfg(any(test, feature = "sim"))]
    pub(crate) fn waiting_frames(&self, index: usize) -> impl Iterator<Item = &super::job::Job> {
        self.seats[index].written.values().chain(self.seats[index].failed.values())
    }

    #[cfg(any(test, feature = "sim"))]
    pub(crate) fn disk_bytes_of(&self, index: usize) -> u64 {
        self.seats[index].log.disk_bytes()
    }

    /// Bytes of events in memory, and of the tables that find the others.
    pub(crate) fn memory_bytes(&self) -> (usize, usize) {
        let index: usize =
            self.seats.iter().flat_map(|seat| seat.log.segments()).map(|segment| segment.index_bytes()).sum();
        (self.cache.bytes(), index + self.queue.state_bytes())
    }

    /// Seals new frames of every log with another key.
    pub(crate) fn rotate(&mut self, key: &ChannelKey) {
        self.seats.iter_mut().for_each(|seat| seat.log.rotate(key.clone()));
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
            unhealthy: self.seats.iter().any(|seat| seat.log.failure().is_some() || seat.unreadable.is_some()),
            unavailable: self.unavailable(),
            rings_denied: self.counts.rings_denied,
        }
    }
}
