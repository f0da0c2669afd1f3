//! Reading back, one reader for each disk, and what becomes of events that cannot be read.
//!
//! Promises that they are never skipped in silence and never in the way. They are *held*: counted in the channel's size,
//! named in its state, passed by, and offered again, first of all, once their disk gives them out.
//!
//! - *Failed*: the disk answers with an error. The next event on it is tried nevertheless, for a single bad sector is not
//!   a lost disk; two errors in a row are, and so is a read that hangs.
//! - *Passed*: lies on a disk that is away, and was not tried.
//! - *Damaged*: the disk answers, but not with what was written, twice. That is rot: asking again brings nothing, so it
//!   waits for the next start, which judges it with all evidence (`docs/recovery.md`) before anything is given up.
//!
//! Every second a disk is tried with an event that was passed. When that is read, one that had failed is tried as well:
//! if it is there too the disk is back, and all is offered, in order; otherwise what was passed is.

use std::time::Duration;

use wal::planted::{self, Bug};

use super::seat::{READ_ERRORS_MAX, Reading, Seat, Unreadable};
use super::{Answer, Core};
use crate::api::Unavailable;
use crate::durable::queue::Held;
use crate::durable::ranges::RangeSet;
use crate::durable::read::{ReadDone, ReadJob, ReadSource};
use crate::settlement::SeqRange;

/// A read that takes longer than this hangs. The longest that a take may wait for a disk.
const READ_WAIT: Duration = Duration::from_secs(1);
/// How often a disk that cannot be read is tried.
const PROBE_AFTER: Duration = Duration::from_secs(1);

impl Core {
    /// Which log holds an event, and the range of its events around it.
    fn locate(&mut self, seq: u64) -> Option<(usize, SeqRange)> {
        if let Some((_, range)) = self.located
            && range.contains(seq)
        {
            return self.located;
        }
        let held = |(log, seat): (usize, &Seat)| {
            let (start, end) = seat.log.segments().find_map(|segment| segment.range_around(seq))?;
            Some((log, SeqRange::new(start, end)))
        };
        self.located = self.seats.iter().enumerate().find_map(held);
        self.located
    }

    /// An event that is first in line is not in memory. True if its disk is away, so that it is held now and others can be
    /// taken; otherwise it is to be read.
    pub(super) fn pass_by(&mut self, now: Duration, head: SeqRange) -> bool {
        let (log, range) = self.locate(head.start).unwrap_or((0, SeqRange::new(head.start, head.start + 1)));
        let seat = &mut self.seats[log];
        if let Some(Reading { since, since_ms, .. }) = seat.reading
            && now >= since + READ_WAIT
        {
            let device = seat.log.device().name();
            if !seat.is_away() {
                tracing::error!(channel = self.options.name, device, "a read hangs; its events are passed by");
            }
            let cause = || format!("the disk of {device} does not answer");
            let unreadable = seat.unreadable.get_or_insert_with(|| Unreadable::new(since_ms, now, cause()));
            unreadable.errors = READ_ERRORS_MAX;
        }
        if seat.is_away() {
            self.queue.hold(log, Held::Passed, SeqRange::new(head.start, head.end.min(range.end)));
            return true;
        }
        self.wanted = Some((log, head.start));
        false
    }

    /// What to read next from the disk of a log, for its one reader.
    pub(crate) fn next_read(&mut self, log: usize, now: Duration, now_ms: u64) -> Option<ReadJob> {
        if !self.read_is_due(log, now) {
            return None;
        }
        let seq = match self.wanted.filter(|(wanted, _)| *wanted == log) {
            Some((_, seq)) => seq,
            None => self.probe(log)?,
        };
        let probe = self.wanted.is_none_or(|(wanted, _)| wanted != log);
        self.seats[log].reading = Some(Reading { since: now, since_ms: now_ms, seq, probe });
        let holder = self.seats[log].log.segments().find(|segment| segment.range_around(seq).is_some());
        let source = holder.and_then(|segment| Some(ReadSource::new(segment, segment.start_for(seq)?)));
        Some(ReadJob { seq, source, next: holder.map_or(seq + 1, |segment| segment.start_after(seq)) })
    }

    /// Whether a log's reader has something to read.
    pub(crate) fn read_is_due(&self, log: usize, now: Duration) -> bool {
        let seat = &self.seats[log];
        let wanted = self.wanted.is_some_and(|(wanted, _)| wanted == log);
        let probe = || seat.unreadable.as_ref().and_then(|unreadable| unreadable.probe_at).is_some_and(|at| at <= now);
        seat.reading.is_none() && !self.closed && (wanted || (probe() && !planted::is(Bug::ForgetHeld)))
    }

    /// When time alone brings about a read, or the end of waiting for one.
    pub(super) fn reads_due(&self) -> Option<Duration> {
        let due = |(log, seat): (usize, &Seat)| match &seat.reading {
            Some(reading) => {
                let waits = self.wanted.is_some_and(|(wanted, _)| wanted == log) && !seat.is_away();
                waits.then(|| reading.since + READ_WAIT)
            }
            None => seat.unreadable.as_ref()?.probe_at,
        };
        self.seats.iter().enumerate().filter(|_| !self.closed).filter_map(due).min()
    }

    /// An event with which a disk is tried; those that failed take turns.
    fn probe(&mut self, log: usize) -> Option<u64> {
        let held = |why| self.queue.held(log, why);
        let seat = &mut self.seats[log];
        let unreadable = seat.unreadable.as_mut()?;
        let passed = held(Held::Passed).and_then(RangeSet::first).map(|range| range.start);
        let failed = || held(Held::Failed).into_iter().flat_map(RangeSet::iter).map(|range| range.start);
        let turn = failed().find(|seq| *seq > unreadable.tried).or_else(|| failed().next());
        if let Some(seq) = turn.filter(|_| passed.is_none() || unreadable.answers) {
            unreadable.tried = seq;
            return turn;
        }
        if passed.is_none() {
            // Damaged events only wait. With nothing held nobody knows that anything is wrong.
            unreadable.probe_at = None;
            if held(Held::Damaged).is_none() {
                seat.unreadable = None;
            }
        }
        passed
    }

    pub(crate) fn read_done(&mut self, now: Duration, log: usize, done: ReadDone, answers: &mut Vec<Answer>) {
        let Some(reading) = self.seats[log].reading.take() else { return };
        let probed = self.seats[log].unreadable.as_mut().filter(|_| reading.probe);
        match done {
            ReadDone::Found(slices) => {
                let failed = self.queue.held(log, Held::Failed);
                if let Some(unreadable) = probed
                    && failed.is_some_and(|failed| failed.around(reading.seq).is_none())
                {
                    unreadable.answers = true;
                    unreadable.probe_at = Some(now);
                    return;
                }
                self.disk_reads(log, Some(reading.seq));
                for slice in slices {
                    // Read ahead meets events that are leased or done: only what can be taken is kept.
                    for range in self.queue.queued().within(slice.range()) {
                        let (start, end) = (range.start - slice.first_seq, range.end - slice.first_seq);
                        self.cache.keep(range.start, slice.events.slice(start as usize..end as usize));
                    }
                }
            }
            ReadDone::Failed { cause, .. } if let Some(unreadable) = probed => {
                tracing::debug!(channel = self.options.name, seq = reading.seq, cause, "still not to be read");
                unreadable.probe_at = Some(now + PROBE_AFTER);
                unreadable.cause = cause;
                if unreadable.answers {
                    self.disk_reads(log, None);
                }
            }
            ReadDone::Failed { range, cause } => self.cannot_read(now, reading, log, Held::Failed, range, cause),
            ReadDone::Damaged { range, cause } => {
                // Whatever is wrong with this frame, the disk answers.
                self.disk_reads(log, None);
                self.cannot_read(now, reading, log, Held::Damaged, range, cause);
            }
        }
        self.serve_takes(now, answers);
    }

    /// A read succeeded: what was not even tried is offered again, and if the event had failed before, so is all that had.
    fn disk_reads(&mut self, log: usize, seq: Option<u64>) {
        let Some(unreadable) = &mut self.seats[log].unreadable else { return };
        (unreadable.errors, unreadable.answers) = (0, false);
        self.queue.release(log, Held::Passed);
        let failed = self.queue.held(log, Held::Failed);
        if seq.is_some_and(|seq| failed.is_some_and(|failed| failed.around(seq).is_some())) {
            self.queue.release(log, Held::Failed);
        }
        if Held::ALL.iter().all(|why| self.queue.held(log, *why).is_none()) {
            tracing::warn!(device = self.seats[log].log.device().name(), "the disk can be read again");
            self.seats[log].unreadable = None;
        }
    }

    fn cannot_read(&mut self, now: Duration, reading: Reading, log: usize, why: Held, range: SeqRange, cause: String) {
        tracing::error!(channel = self.options.name, %range, ?why, cause, "events cannot be read back; they are held");
        self.counts.take_errors += 1;
        if planted::is(Bug::SkipUnreadable) {
            let skipped = SeqRange::new(reading.seq, reading.seq + 1);
            self.queue.lease(0, skipped);
            self.queue.start_settling(0, skipped);
            return self.queue.settle(skipped);
        }
        // Its numbers may go on in another log.
        let own = self.locate(range.start).map_or(range.start + 1, |(_, own)| own.end);
        self.queue.hold(log, why, SeqRange::new(range.start, range.end.min(own)));
        let probe_at = now + PROBE_AFTER;
        let new = || Unreadable::new(reading.since_ms, probe_at, String::new());
        let unreadable = self.seats[log].unreadable.get_or_insert_with(new);
        unreadable.probe_at = Some(probe_at);
        unreadable.cause = cause;
        unreadable.errors += u32::from(why == Held::Failed);
    }

    /// What of the channel cannot be had, by disk.
    pub(super) fn unavailable(&self) -> Vec<Unavailable> {
        let of = |(log, seat): (usize, &Seat)| {
            let unreadable = seat.unreadable.as_ref()?;
            let count = |why| self.queue.held(log, why).map_or(0, RangeSet::count);
            Some(Unavailable {
                disk: seat.log.device().name().to_owned(),
                since_ms: unreadable.since_ms,
                away: seat.is_away(),
                events: count(Held::Passed) + count(Held::Failed),
                damaged_events: count(Held::Damaged),
                cause: unreadable.cause.clone(),
            })
        };
        self.seats.iter().enumerate().filter_map(of).collect()
    }
}
