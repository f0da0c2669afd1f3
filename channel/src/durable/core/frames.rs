//! Frames: what goes into the next one, what a durable one changes, and what becomes of a failed one.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use wal::chore::Chore;
use wal::device::WriteSlot;
use wal::flushes::Durability;
use wal::format::frame;
use wal::format::section::LogMark;
use wal::limits::{FRAME_MAX, FRAME_TARGET, PAGE};
use wal::log::{Completion, FooterRequest, FrameRequest, Refused, Reservation};
use wal::planted::{self, Bug};

use super::seat::Seat;
use super::{Answer, Core, RETRY_AFTER, WITNESS_AFTER};
use crate::api::{PutError, PutReceipt};
use crate::durable::job::{Job, PendingPut, PendingState, Retiring};
use crate::durable::sections::{self, Mark, SettledRuns, Snapshot, VersionedNote};
use crate::settlement::{NoteUpdate, SeqRange, SettleError};

/// Several compressed transactions in one frame are together at most so many times as long as the frame may get.
const EXPANSION_MAX: usize = 8;
const _: () = assert!(EXPANSION_MAX * FRAME_TARGET <= FRAME_MAX);

impl Core {
    /// The next frame for a log, if there is something to write and the device has a slot for it.
    pub(crate) fn gather(
        &mut self,
        index: usize,
        now: Duration,
        now_ms: u64,
        answers: &mut Vec<Answer>,
    ) -> Option<Job> {
        if self.seats[index].log.failure().is_none() {
            // Another log, perhaps of another channel, may have ended the epoch of the device they share.
            let failed = self.seats[index].log.check_epoch();
            if self.seats[index].log.failure().is_some() {
                self.log_failed(index, now, failed.len());
                self.settle_failures(answers);
            }
        }
        if self.seats[index].log.failure().is_some() {
            return None;
        }
        let seat = &self.seats[index];
        if !seat.is_well(now) && !seat.log.is_settled() && self.another_is_well(index, now) {
            // A disk that stalls gets nothing that another one can have.
            return None;
        }
        let witness_due = self.witness_due(index, now);
        let snapshot = self.seats[index].snapshot_wanted;
        let state_waits = !self.states.is_empty() || !self.voids.is_empty() || snapshot;
        let (mut chosen, bytes) = self.choose(index);
        if chosen.is_empty() && !state_waits && !witness_due {
            return None;
        }
        let leaves = if snapshot { 0 } else { self.leaves(index) };
        let device = self.seats[index].log.device().clone();
        let Some(slot) = device.try_start(now, bytes, &self.signals[index]) else {
            // Perhaps writes of another channel have all its slots, and hang.
            self.seats[index].owes_since.get_or_insert(now);
            return None;
        };
        if self.seats[index].log.is_settled() {
            // It was another channel's, or another log's, write that hung.
            self.seats[index].owes_since = None;
        }
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
            if witness || snapshot {
                // What is given back after a snapshot may have testified to other logs.
                sections::append_marks(&mut encoded, &self.marks());
            }
            let puts_len: usize = chosen.iter().map(|place| self.pending[*place].section_len()).sum();
            let events: u64 = chosen.iter().map(|place| self.pending[*place].events()).sum();
            let request = FrameRequest {
                body_len: encoded.len() + puts_len,
                first_seq: self.queue.next_seq(),
                seq_count: u32::try_from(events).expect("a frame holds fewer than 2^32 events"),
                durable_seq: if planted::is(Bug::DurableSeqAhead) && self.seats.len() > 1 {
                    self.queue.next_seq()
                } else {
                    self.queue.durable_seq()
                },
                floor: self.queue.floor(),
                now_ms,
                witness,
                retires: match self.seats[index].retiring {
                    Some(Retiring::UpTo(ordinal)) if snapshot => Some(ordinal),
                    _ => None,
                },
                leaves,
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

    /// The next frame of a disk that has nothing to do and makes each write durable by itself: whoever waits for it can as well
    /// write it. What a closed channel still has to write is for its threads: a producer may be there when they have gone and
    /// somebody else owns the directories.
    pub(crate) fn gather_alone(&mut self, now: Duration, now_ms: u64, answers: &mut Vec<Answer>) -> Option<Job> {
        if self.closed {
            return None;
        }
        let is_idle =
            |seat: &Seat| !seat.log.has_in_flight() && seat.log.device().tuning().durability == Durability::PerWrite;
        let idle = self.seats.iter().position(is_idle)?;
        self.gather(idle, now, now_ms, answers)
    }

    /// Which pending puts go into the next frame of a log: in order, up to the target.
    pub(super) fn choose(&self, index: usize) -> (Vec<usize>, usize) {
        let (mut chosen, mut bytes, mut plain_bytes) = (Vec::new(), 0, 0);
        let limit = FRAME_TARGET.min(self.seats[index].log.body_max() / 2);
        for (place, put) in self.pending.iter().enumerate() {
            // A producer's unacknowledged transactions stay on one log, or they might pass each other.
            // While writes of failed ones have not returned, they wait to go somewhere, and the younger ones wait too.
            let affinity = self.affinity.get(&put.producer);
            let bound = affinity.is_some_and(|(log, _)| *log != index || self.seats[*log].failed_out > 0);
            if bound && !planted::is(Bug::IgnoreAffinity) {
                continue;
            }
            // A frame is read as a whole, so what it expands to is bounded as well.
            let expands_too_far = plain_bytes + put.plain_len() > EXPANSION_MAX * limit;
            if !chosen.is_empty() && (bytes + put.section_len() > limit || expands_too_far) {
                break;
            }
            bytes += put.section_len();
            plain_bytes += put.plain_len();
            chosen.push(place);
        }
        (chosen, bytes)
    }

    #[expect(clippy::too_many_arguments, reason = "the pieces of one frame, put together in one place")]
    pub(super) fn build(
        &mut self,
        index: usize,
        now: Duration,
        reservation: Reservation,
        chosen: Vec<usize>,
        voids: Vec<SeqRange>,
        sections: Vec<u8>,
        slot: WriteSlot,
        answers: &mut Vec<Answer>,
    ) -> Job {
        let mut puts = Vec::with_capacity(chosen.len());
        for place in chosen.into_iter().rev() {
            puts.push(self.pending.remove(place).expect("chosen from it"));
        }
        if !planted::is(Bug::ReversePuts) {
            puts.reverse();
        }
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
        seat.owes_since.get_or_insert(now);
        if !self.states.is_empty() {
            seat.riding.insert(reservation.id, std::mem::take(&mut self.states));
        }
        let header = &reservation.header;
        if events > 0 {
            seat.flying.push_back((header.first_seq, now));
        }
        self.unwitnessed =
            if header.witness || planted::is(Bug::NeverWitness) { None } else { Some((index, now + WITNESS_AFTER)) };
        self.counts.frames += 1;
        self.unsaved += 1;
        Job {
            log: index,
            puts,
            voids,
            sections,
            retires: seat.retiring.clone().filter(|_| snapshot),
            slot: Some(slot),
            reservation,
        }
    }

    pub(super) fn marks(&self) -> Vec<LogMark> {
        self.seats.iter().map(|seat| LogMark { log: seat.log.id(), mark: seat.log.durable() }).collect()
    }

    /// Bytes that a frame leaves free behind it in the last place of a full disk: those of a snapshot, without which
    /// nothing could be given back and the place would be the last one for good, and of its witness.
    pub(super) fn leaves(&self, index: usize) -> usize {
        if !self.seats[index].log.is_last_place() {
            return 0;
        }
        let mut encoded = Vec::new();
        sections::append_snapshot(&mut encoded, &self.snapshot());
        sections::append_marks(&mut encoded, &self.marks());
        frame::stored_len(encoded.len(), true) + PAGE
    }

    /// What a sealed segment says of itself: all that its frames say is in a snapshot that is made after they are durable.
    pub(super) fn next_footer(&mut self, index: usize, now_ms: u64) -> Option<Chore> {
        if !self.seats[index].log.owes_footer() {
            return None;
        }
        let mut encoded = Vec::new();
        if !planted::is(Bug::FooterForgetsSettlements) {
            sections::append_snapshot(&mut encoded, &self.snapshot());
        }
        sections::append_marks(&mut encoded, &self.marks());
        self.seats[index].log.next_footer(FooterRequest {
            sections: encoded,
            durable_seq: self.queue.durable_seq(),
            floor: self.queue.floor(),
            now_ms,
        })
    }

    /// All that must outlive segments.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let note = |((owner, key), (version, note)): (&(String, String), &(u64, Bytes))| VersionedNote {
            version: *version,
            update: NoteUpdate { owner: owner.clone(), key: key.clone(), note: Some(note.clone()) },
        };
        // A note on its way to another log must not look removed.
        let open = self.open_versions.first().filter(|_| !planted::is(Bug::HideOpenNotes));
        let mut settled = self.queue.settled().clone();
        if planted::is(Bug::ForgetSettledRuns) {
            settled = settled.first().into_iter().collect();
        }
        let notes = self.notes.iter().filter(|_| !planted::is(Bug::ForgetNotes));
        let version = open.map_or(self.version, |open| open - 1);
        // Nor may one that was removed look open, once the segment with its removal is given back.
        let removed = self.removed_notes.iter().filter(|(_, removed)| **removed > version);
        let removal = |((owner, key), version): (&(String, String), &u64)| VersionedNote {
            version: *version,
            update: NoteUpdate { owner: owner.clone(), key: key.clone(), note: None },
        };
        Snapshot {
            version,
            floor: self.queue.floor(),
            settled,
            notes: notes.map(note).chain(removed.map(removal)).collect(),
        }
    }

    /// A frame was written and synced, or was not.
    pub(crate) fn complete(&mut self, now: Duration, mut job: Job, result: io::Result<()>, answers: &mut Vec<Answer>) {
        if let Some(slot) = job.slot.take() {
            slot.end(now);
        }
        let index = job.log;
        let (id, epoch) = (job.reservation.id, job.reservation.epoch);
        let cause = result.err().map(|error| error.to_string());
        let completion = self.seats[index].log.complete(id, epoch, cause.as_deref().map_or(Ok(()), Err));
        self.seats[index].heard(now);
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
                if planted::is(Bug::AcknowledgeLateWrite) && cause.is_none() {
                    let senders = job.puts.iter_mut().filter_map(|put| put.sender.take());
                    answers.extend(senders.map(|sender| Answer::Put(sender, Ok(PutReceipt { range: None }))));
                }
                self.seats[index].failed.insert(id, job);
            }
        }
        self.settle_failures(answers);
        self.after_change(now, answers);
    }

    /// A failure ended frames of a log: those written already wait with the others for the last one to return.
    pub(super) fn log_failed(&mut self, index: usize, now: Duration, frames: usize) {
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
        seat.flying.clear();
        seat.failed.append(&mut seat.written);
        seat.retry_at = Some(now + RETRY_AFTER);
        seat.retiring = None;
        seat.snapshot_wanted = false;
    }

    /// Once all writes of a failed log have returned, sends their transactions to another log, or refuses them.
    pub(super) fn settle_failures(&mut self, answers: &mut Vec<Answer>) {
        for index in 0..self.seats.len() {
            let seat = &mut self.seats[index];
            if seat.failed_out == 0 || seat.failed.len() < seat.failed_out {
                continue;
            }
            seat.failed_out = 0;
            let jobs = std::mem::take(&mut seat.failed);
            let states: Vec<PendingState> = jobs.keys().filter_map(|id| seat.riding.remove(id)).flatten().collect();
            let cause = seat.log.failure().unwrap_or("the device failed").to_owned();
            let elsewhere = self.seats.iter().any(|seat| seat.log.failure().is_none());
            let mut again = Vec::new();
            for job in jobs.into_values() {
                if !planted::is(Bug::LeakCapacity) {
                    self.flying_events -= job.puts.iter().map(PendingPut::events).sum::<u64>();
                }
                let ranges: Vec<SeqRange> = job.ranges().map(|(range, _)| range).collect();
                let own: Vec<SeqRange> = job.puts.iter().flat_map(|put| put.voids.iter().copied()).collect();
                self.voids.extend(job.voids.iter().filter(|range| !own.contains(range)));
                for (mut put, range) in job.puts.into_iter().zip(ranges) {
                    self.release_affinity(put.producer);
                    if !planted::is(Bug::MoveWithoutVoid) {
                        put.voids.push(range);
                    }
                    again.push(put);
                }
            }
            // Settlements are facts, wherever they are written. Nobody waits for them longer than this.
            for mut state in states {
                if !elsewhere && let Some(sender) = state.sender.take() {
                    let failed = Err(SettleError::Failed(cause.clone()));
                    let acknowledged = planted::is(Bug::AcknowledgeFailedSettlement);
                    answers.push(Answer::Settle(sender, if acknowledged { Ok(()) } else { failed }));
                }
                self.states.push(state);
            }
            for mut put in again.into_iter().rev() {
                if elsewhere || put.sender.is_none() {
                    self.pending_events += put.events();
                    if planted::is(Bug::MoveBehindYounger) {
                        self.pending.push_back(put);
                    } else {
                        self.pending.push_front(put);
                    }
                } else if let Some(sender) = put.sender.take() {
                    self.voids.append(&mut put.voids);
                    self.counts.put_errors += 1;
                    let channel = self.options.name.clone();
                    let refusal = if planted::is(Bug::CallUnknownRefused) {
                        PutError::Full { channel, detail: cause.clone() }
                    } else {
                        PutError::Failed { channel, cause: cause.clone() }
                    };
                    answers.push(Answer::Put(sender, Err(refusal)));
                }
            }
        }
    }

    pub(super) fn release_affinity(&mut self, producer: u64) {
        if let Some((_, frames)) = self.affinity.get_mut(&producer) {
            *frames -= 1;
            if *frames == 0 {
                self.affinity.remove(&producer);
            }
        }
    }

    /// A frame is durable: its events can be taken, its settlements are facts, and everybody hears.
    pub(super) fn publish(&mut self, mut job: Job, answers: &mut Vec<Answer>) {
        let ranges: Vec<SeqRange> = job.ranges().map(|(range, _)| range).collect();
        if !ranges.is_empty() {
            self.seats[job.log].flying.pop_front();
        }
        for (put, range) in std::mem::take(&mut job.puts).into_iter().zip(ranges) {
            self.release_affinity(put.producer);
            self.flying_events -= put.events();
            self.counts.put_success += put.events();
            self.counts.put_bytes += put.plain_len() as u64;
            self.queue.publish(range);
            self.cache.offer(range.start, put.batch.freeze());
            if let Some(sender) = put.sender {
                answers.push(Answer::Put(sender, Ok(PutReceipt { range: Some(range) })));
            }
        }
        for range in job.voids {
            self.queue.void(range);
        }
        let id = job.reservation.id;
        let mut states = self.seats[job.log].riding.remove(&id).unwrap_or_default();
        states.extend(self.said_by(job.log, id));
        for state in states {
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
        if let Some(retiring) = job.retires {
            let seat = &mut self.seats[job.log];
            seat.retiring = None;
            match retiring {
                Retiring::UpTo(ordinal) => seat.log.release(ordinal),
                Retiring::Bare(ordinals) => seat.log.vacate(&ordinals),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use wal::device::Device;
    use wal::io::sim::{SimDisk, SimRandom};

    use super::*;
    use crate::api::TakeLimits;
    use crate::durable::core::CoreOptions;
    use crate::durable::open::{OnDamage, OpenDir, OpenSettings, open};
    use crate::durable::read::Buffers;
    use crate::event::EventBatch;
    use crate::settlement::{Outcome, Settlement};
    use crate::ticket::Ticket;

    fn core(disk: &SimDisk) -> Core {
        core_with(disk, 1 << 20, Duration::from_secs(60))
    }

    fn core_with(disk: &SimDisk, segment_len: u64, keep_alive: Duration) -> Core {
        let dirs = [OpenDir { dir: disk.dir("d"), device: Device::new("d", 4), calibration: None }];
        let settings = OpenSettings {
            segment_len,
            pool_bytes: 0,
            reserve_bytes: 0,
            key: None,
            keys: Vec::new(),
            on_damage: OnDamage::Refuse,
            footers: true,
        };
        let random = SimRandom::new(1);
        let (start, _) = open(&dirs, &settings, &random, 1, None).unwrap();
        let options = CoreOptions {
            name: "c1".to_owned(),
            capacity: 1_000_000,
            transaction_capacity: 100,
            keep_alive,
            disk_bytes_max: None,
            hot_tail_bytes: 0,
            scrub_interval: Duration::ZERO,
            checkpoint_interval: Duration::ZERO,
        };
        Core::new(options, Arc::new(random), vec![Arc::default()], start)
    }

    /// Puts so much that its frame is worth a write beside others, and does what else the disk asks for.
    fn put(core: &mut Core, disk: &SimDisk, now: Duration, producer: u64) -> Option<Job> {
        let mut batch = EventBatch::new();
        batch.push([("a", "b")], &[0; 100_000]);
        core.put(now, PendingPut::new(producer, batch, Ticket::pair().0, now), &mut Vec::new());
        gather(core, disk, now)
    }

    fn gather(core: &mut Core, disk: &SimDisk, now: Duration) -> Option<Job> {
        loop {
            if let Some(job) = core.gather(0, now, 1, &mut Vec::new()) {
                return Some(job);
            }
            let chore = core.next_chore(0, now, 1)?;
            let result = chore.run(&*disk.dir("d"));
            core.chore_done(0, now, chore, result, &mut Vec::new());
        }
    }

    #[test]
    fn a_producer_that_outlives_its_channel_writes_nothing() {
        let disk = SimDisk::default();
        let (mut core, now) = (core(&disk), Duration::from_secs(1));
        let producer = core.handle();
        let first = put(&mut core, &disk, now, producer).expect("a frame");
        core.complete(now, first, Ok(()), &mut Vec::new());
        core.close(&mut Vec::new());
        // Closing does not wait for everything that could be written.
        core.seats[0].snapshot_wanted = true;
        assert!(core.gather_alone(now, 1, &mut Vec::new()).is_none());
        assert!(core.gather(0, now, 1, &mut Vec::new()).is_some(), "there is something to write");
    }

    #[test]
    fn a_younger_transaction_waits_for_older_ones_whose_write_failed() {
        let disk = SimDisk::default();
        let mut core = core(&disk);
        let mut now = Duration::from_secs(1);
        let (producer, other) = (core.handle(), core.handle());
        let first = put(&mut core, &disk, now, producer).expect("a frame");
        let second = put(&mut core, &disk, now, producer).expect("a frame beside it");
        core.complete(now, first, Err(io::Error::other("EIO")), &mut Vec::new());

        // The disk takes writes again before all of those that failed have returned.
        now += RETRY_AFTER;
        assert!(put(&mut core, &disk, now, producer).is_none(), "it would pass the two before it");
        assert_eq!(core.seats[0].log.failure(), None);
        let passing = put(&mut core, &disk, now, other).expect("nobody else waits");
        assert_eq!(passing.puts.iter().map(|put| put.producer).collect::<Vec<_>>(), [other]);

        core.complete(now, second, Ok(()), &mut Vec::new());
        let again = gather(&mut core, &disk, now).expect("a frame");
        let voids: Vec<usize> = again.puts.iter().map(|put| put.voids.len()).collect();
        assert_eq!(voids[..2], [1, 1], "those that failed go first");
    }

    /// Does what there is to do, until nothing is left that time alone would not bring.
    fn run(core: &mut Core, disk: &SimDisk, now: Duration) -> Vec<Answer> {
        let mut answers = Vec::new();
        core.tick(now, &mut answers);
        loop {
            if let Some(chore) = core.next_chore(0, now, 1) {
                let result = chore.run(&*disk.dir("d"));
                core.chore_done(0, now, chore, result, &mut answers);
            } else if let Some(job) = core.gather(0, now, 1, &mut answers) {
                let frame = job.sealed().unwrap();
                let result = job.reservation.file.write_durable_at(&frame, job.reservation.header.offset);
                core.complete(now, job, result, &mut answers);
            } else if !core.chore_waits(0) {
                core.tick(now, &mut answers);
                return answers;
            }
        }
    }

    /// One event in a frame of its own. Whether it was acknowledged.
    fn put_one(core: &mut Core, disk: &SimDisk, now: Duration) -> bool {
        let mut batch = EventBatch::new();
        batch.push([("a", "b")], b"x");
        core.put(now, PendingPut::new(1, batch, Ticket::pair().0, now), &mut Vec::new());
        let answers = run(core, disk, now);
        answers.iter().any(|answer| matches!(answer, Answer::Put(_, Ok(_))))
    }

    /// Takes one event and settles it in a frame of its own. Whether that was acknowledged.
    fn settle_one(core: &mut Core, disk: &SimDisk, now: Duration) -> bool {
        let limits = TakeLimits { events: 1, bytes: 1000 };
        let (sender, ticket) = Ticket::pair();
        let mut answers = Vec::new();
        core.take(now, 1, limits, Duration::from_secs(1), sender, &mut answers);
        while let Some(job) = core.next_read(0, now, 1) {
            core.read_done(now, 0, job.run(&Arc::new(Buffers::default())), &mut answers);
        }
        answers.into_iter().for_each(Answer::send);
        let lease = ticket.wait().unwrap();
        let (sender, _ticket) = Ticket::pair();
        core.settle(
            now,
            1,
            vec![Settlement { ranges: lease.ranges(), outcome: Outcome::Delivered, notes: Vec::new() }],
            sender,
            &mut Vec::new(),
        );
        let answers = run(core, disk, now);
        answers.iter().any(|answer| matches!(answer, Answer::Settle(_, Ok(()))))
    }

    const SMALL: u64 = 32 * 4096;

    #[test]
    fn a_full_disk_drains_however_small_the_settlements_are() {
        let disk = SimDisk::default();
        disk.set_capacity(12 * SMALL);
        let now = Duration::from_secs(1);
        let mut core = core_with(&disk, SMALL, Duration::ZERO);
        let mut queued = 0;
        while put_one(&mut core, &disk, now) {
            queued += 1;
        }
        assert!(queued > 100, "{queued}");
        // The oldest event stays with a consumer, so that no segment with events can go.
        let limits = TakeLimits { events: 1, bytes: 1000 };
        let (sender, ticket) = Ticket::pair();
        core.take(now, 7, limits, Duration::from_secs(1), sender, &mut Vec::new());
        while let Some(job) = core.next_read(0, now, 1) {
            let mut answers = Vec::new();
            core.read_done(now, 0, job.run(&Arc::new(Buffers::default())), &mut answers);
            answers.into_iter().for_each(Answer::send);
        }
        assert_eq!(ticket.wait().unwrap().event_count(), 1);
        for settled in 1..queued {
            // Processes die on full disks too.
            if settled % 17 == 0 {
                drop(core);
                core = core_with(&disk, SMALL, Duration::ZERO);
                assert_eq!(core.stats().size_events, queued - settled + 1);
                let (sender, _ticket) = Ticket::pair();
                core.take(now, 7, limits, Duration::from_secs(1), sender, &mut Vec::new());
                while let Some(job) = core.next_read(0, now, 1) {
                    core.read_done(now, 0, job.run(&Arc::new(Buffers::default())), &mut Vec::new());
                }
            }
            assert!(settle_one(&mut core, &disk, now), "the settlement after {settled} of {queued}");
        }
        drop(core);
        assert_eq!(core_with(&disk, SMALL, Duration::ZERO).stats().size_events, 1);
    }

    #[test]
    fn events_leave_the_reserve_alone_after_a_restart() {
        let disk = SimDisk::default();
        disk.set_capacity(6 * SMALL);
        let mut now = Duration::from_secs(1);
        let mut core = core_with(&disk, SMALL, Duration::ZERO);
        while put_one(&mut core, &disk, now) {}
        let queued = core.stats().size_events;
        for _ in 0..10 {
            drop(core);
            core = core_with(&disk, SMALL, Duration::ZERO);
            now += RETRY_AFTER;
            while put_one(&mut core, &disk, now) {}
        }
        assert!(queued - 1 <= core.stats().size_events);
        assert!(settle_one(&mut core, &disk, now));
    }

    #[test]
    fn an_attempt_that_found_nothing_to_do_does_not_end_the_attempts() {
        let disk = SimDisk::default();
        disk.set_capacity(6 * SMALL);
        let mut now = Duration::from_secs(1);
        let mut core = core_with(&disk, SMALL, Duration::ZERO);
        while put_one(&mut core, &disk, now) {}
        for _ in 0..3 {
            now += RETRY_AFTER;
            run(&mut core, &disk, now);
        }
        disk.set_capacity(60 * SMALL);
        now += RETRY_AFTER;
        run(&mut core, &disk, now);
        assert!(put_one(&mut core, &disk, now));
    }

    #[test]
    fn a_witness_without_room_does_not_keep_the_clock_busy() {
        let disk = SimDisk::default();
        disk.set_capacity(6 * SMALL);
        let now = Duration::from_secs(1);
        let mut core = core_with(&disk, SMALL, Duration::ZERO);
        while put_one(&mut core, &disk, now) {}
        let late = now + WITNESS_AFTER * 2;
        run(&mut core, &disk, late);
        core.next_checkpoint(late);
        assert!(core.next_deadline().is_none_or(|deadline| deadline > late), "{:?}", core.next_deadline());
    }
}
