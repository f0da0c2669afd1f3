//! Scrubbing: a backlog that lies on its disks for long is read now and then, so that rot is found while somebody may still
//! have the events, and not when the drain meets it.
//!
//! In every interval one pass over each log, the oldest stretch first, slowly, while nothing else is to be done: no put on
//! its way, nothing that a take waits for. Stretches in which every event is done are passed over, and so is a log with a
//! single segment, which is young. What cannot be read is held and reported as if a take had met it (`reads.rs`), and what
//! can be read is dropped: nothing of it stays in memory. A channel without a backlog wakes nobody.

use std::time::Duration;

use wal::planted::{self, Bug};

use super::Core;
use super::seat::Reading;
use crate::durable::queue::Held;
use crate::durable::ranges::RangeSet;
use crate::durable::read::ReadDone;
use crate::settlement::SeqRange;

/// Bytes a second of one log: less than a hundredth of what a disk gives, and a full one of 4 TB in six days.
const RATE: u64 = 8 << 20;

/// How far the pass over a log is.
#[derive(Debug)]
pub(super) struct Scrub {
    began: Duration,
    /// The first event that was not looked at; 0 between two passes.
    from: u64,
    /// When the next stretch may be read.
    due: Duration,
}

impl Scrub {
    pub(super) fn new(interval: Duration) -> Scrub {
        Scrub { began: Duration::ZERO, from: 0, due: interval }
    }
}

impl Core {
    pub(super) fn scrub_is_due(&self, log: usize, now: Duration) -> bool {
        self.may_scrub(log) && self.seats[log].scrub.due <= now
    }

    /// When a scrub is due that nothing else keeps from going on.
    pub(super) fn scrub_due(&self) -> Option<Duration> {
        let free = (0..self.seats.len()).filter(|log| self.may_scrub(*log));
        free.map(|log| self.seats[log].scrub.due).min()
    }

    fn may_scrub(&self, log: usize) -> bool {
        let seat = &self.seats[log];
        let is_idle = self.pending_events + self.flying_events == 0 && seat.reads.is_empty() && !seat.is_away();
        let has_backlog = !self.queue.queued().is_empty() && seat.log.segments().nth(1).is_some();
        !self.options.scrub_interval.is_zero() && !self.closed && is_idle && has_backlog
    }

    /// The first event of the next stretch to look at.
    pub(super) fn next_scrub(&mut self, log: usize, now: Duration) -> Option<u64> {
        if !self.scrub_is_due(log, now) {
            return None;
        }
        let next = self.queued_stretch(log, self.seats[log].scrub.from);
        let scrub = &mut self.seats[log].scrub;
        if scrub.from == 0 {
            scrub.began = now;
        }
        let Some((seq, stretch)) = next else {
            *scrub = Scrub { from: 0, due: (scrub.began + self.options.scrub_interval).max(now), ..*scrub };
            return None;
        };
        scrub.from = stretch.end_seq;
        scrub.due = now + Duration::from_micros((stretch.end - stretch.offset) * 1_000_000 / RATE);
        Some(seq)
    }

    /// What was read is as it was written, or is held from now on.
    pub(super) fn scrubbed(&mut self, now: Duration, reading: Reading, log: usize, done: ReadDone) {
        if planted::is(Bug::ScrubBlindly) {
            return;
        }
        match done {
            ReadDone::Found { slices, .. } => {
                self.disk_reads(log, None);
                let found: RangeSet = slices.iter().map(|slice| slice.range()).collect();
                if let Some(missing) = self.queued_beside(log, reading.range, &found) {
                    // What is wrong with it, a read for it alone will say.
                    self.seats[log].scrub.from = missing;
                }
            }
            ReadDone::Failed { range, cause } => self.not_scrubbed(now, reading, log, Held::Failed, range, cause),
            ReadDone::Damaged { range, cause } => self.not_scrubbed(now, reading, log, Held::Damaged, range, cause),
        }
    }

    fn not_scrubbed(&mut self, now: Duration, reading: Reading, log: usize, why: Held, range: SeqRange, cause: String) {
        tracing::warn!(
            channel = self.options.name,
            device = self.seats[log].log.device().name(),
            "a scrub finds damage"
        );
        self.cannot_read(now, reading, log, why, range, cause);
        // What is held is not met again; the rest of the stretch has not been looked at.
        self.seats[log].scrub.from = reading.range.start;
    }

    /// The first event of a range that waits in this log and is not among these.
    fn queued_beside(&self, log: usize, range: SeqRange, found: &RangeSet) -> Option<u64> {
        let segment = self.seats[log].log.segments().find(|segment| segment.range_around(range.start).is_some())?;
        let mut at = range.start;
        loop {
            let own = segment.first_from(self.queue.queued().first_from(at)?).filter(|own| *own < range.end)?;
            at = match found.around(own) {
                Some(there) => there.end,
                None if self.queue.queued().around(own).is_some() => return Some(own),
                None => own + 1,
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use wal::limits::INCARNATION_HEADER;

    use super::super::stage::Stage;
    use super::*;
    use crate::api::TakeError;

    const HOUR: Duration = Duration::from_secs(3600);

    /// A channel that scrubs every hour, with a backlog in several segments.
    fn with_a_backlog() -> (Stage, Vec<u64>) {
        let mut stage = Stage::new(1);
        stage.core.options.scrub_interval = HOUR;
        stage.core.seats[0].scrub = Scrub::new(HOUR);
        let producer = stage.producer();
        let seqs = (0..40).map(|_| stage.put(0, producer, 10_000)).collect();
        // Its last frame gets a witness.
        stage.turn(Duration::from_secs(1));
        stage.turn(Duration::from_secs(1));
        (stage, seqs)
    }

    /// So much time passes, in which nobody wants anything.
    fn lie(stage: &mut Stage, time: Duration) {
        stage.turn(time);
        for _ in 0..100 {
            stage.turn(Duration::from_millis(100));
        }
    }

    #[test]
    fn a_backlog_is_read_once_in_every_interval() {
        let (mut stage, _) = with_a_backlog();
        let segments = stage.core.seats[0].log.segments().filter(|segment| segment.first_seq < segment.end_seq).count();
        assert_eq!(stage.core.reads_out, 0, "nothing is old yet");
        for pass in 1..4 {
            lie(&mut stage, HOUR);
            assert_eq!(stage.core.reads_out, pass * segments as u64);
            lie(&mut stage, Duration::from_secs(60));
            assert_eq!(stage.core.reads_out, pass * segments as u64);
        }
        assert_eq!(stage.core.memory_bytes().0, 0, "what it reads it does not keep");
    }

    #[test]
    fn rot_is_told_before_a_take_meets_it_and_all_of_it() {
        let (mut stage, seqs) = with_a_backlog();
        let frame = (10_000usize + 1000).next_multiple_of(4096);
        let mut rotten = Vec::new();
        for place in [2, 4] {
            let segment = stage.core.seats[0].log.segments().nth(place).expect("a segment");
            let (slot, first) = (segment.slot, segment.first_seq);
            // The second frame and the fourth one of each: a body and a header.
            stage.disks[0].corrupt("d0", &wal::chore::slot_name(slot), |bytes| {
                bytes[INCARNATION_HEADER + frame + 2000] ^= 1;
                bytes[INCARNATION_HEADER + 3 * frame + 20] ^= 1;
            });
            rotten.extend([first + 1, first + 3]);
        }
        lie(&mut stage, HOUR);
        let stats = stage.core.stats();
        assert_eq!((stats.unavailable[0].damaged_events, stats.unavailable[0].away, stats.take_errors), (4, false, 0));
        let consumer = stage.producer();
        let (found, last) = stage.take_all(consumer);
        assert_eq!(found, seqs.into_iter().filter(|seq| !rotten.contains(seq)).collect::<Vec<_>>());
        assert!(matches!(last, Err(TakeError::Unreadable { .. })), "{last:?}");
    }

    #[test]
    fn a_place_that_cannot_be_read_for_a_moment_is_held_and_comes_back() {
        let (mut stage, seqs) = with_a_backlog();
        stage.fail_reads(0, 2);
        stage.turn(HOUR);
        assert_eq!(stage.core.stats().unavailable[0].events, 1);
        lie(&mut stage, Duration::from_secs(1));
        assert!(!stage.core.stats().unhealthy);
        let consumer = stage.producer();
        assert_eq!(stage.take_all(consumer).0, seqs);
    }

    #[test]
    fn without_a_backlog_nobody_is_woken_and_puts_go_first() {
        let (mut stage, _) = with_a_backlog();
        assert!(stage.core.scrub_due().is_some());
        stage.now += HOUR;
        let producer = stage.producer();
        drop(stage.ask(producer, 100));
        assert_eq!(stage.core.scrub_due(), None, "a put is on its way");
        assert!(stage.gather(0));
        stage.write();
        assert!(stage.core.scrub_due().is_some());
        let consumer = stage.producer();
        let found = stage.take_all(consumer).0;
        drop(stage.settle(consumer, &found));
        stage.turn(Duration::from_secs(1));
        assert_eq!(stage.core.scrub_due(), None, "nothing is left");
    }
}
