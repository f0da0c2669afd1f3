//! Reading back, what a consumer waits for and what it will want next, and what becomes of events that cannot be read.
//!
//! While a log is drained, the stretches behind the one that a take waited for are read ahead, a few at once, as long as
//! what was read and not yet taken stays within a part of the hot tail. Reading ahead decides nothing: what it brings is in
//! memory, what it cannot bring is asked for once a take wants it.
//!
//! Promises that events that cannot be read are never skipped in silence and never in the way. They are *held*: counted in
//! the channel's size, named in its state, passed by, and offered again, first of all, once their disk gives them out.
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
use wal::segment::Stretch;

use super::seat::{Purpose, READ_ERRORS_MAX, Reading, Seat, Unreadable};
use super::{Answer, Core};
use crate::api::{LeasedSlice, Unavailable};
use crate::durable::queue::Held;
use crate::durable::ranges::RangeSet;
use crate::durable::read::{Read, ReadDone, ReadJob};
use crate::settlement::SeqRange;

/// A read that takes longer than this hangs. The longest that a take may wait for a disk.
const READ_WAIT: Duration = Duration::from_secs(1);
/// How often a disk that cannot be read is tried.
const PROBE_AFTER: Duration = Duration::from_secs(1);
/// Reads of one log at once: while one is checked, the disk works on others.
pub(crate) const READS_MAX: usize = 4;
/// What is read ahead of each log may take this part of the hot tail's bytes, on top of it.
const AHEAD_PART: usize = 8;
/// When less than this part of what was read can be taken, it gets memory of its own.
const SPARSE_PART: usize = 4;

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
        if let Some(&Reading { since, since_ms, .. }) = seat.oldest_read()
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

    /// What to read next from the disk of a log.
    pub(crate) fn next_read(&mut self, log: usize, now: Duration, now_ms: u64) -> Option<ReadJob> {
        if self.closed {
            return None;
        }
        let (seq, purpose) = if let Some(seq) = self.wanted_of(log) {
            (seq, Purpose::Wanted)
        } else if self.probe_is_due(log, now)
            && let Some(seq) = self.probe(log)
        {
            (seq, Purpose::Probe)
        } else if let Some(seq) = self.next_ahead(log) {
            (seq, Purpose::Ahead)
        } else {
            (self.next_scrub(log, now)?, Purpose::Scrub)
        };
        self.reads_out += 1;
        let id = self.reads_out;
        let seat = &mut self.seats[log];
        let holder = seat.log.segments().find(|segment| segment.range_around(seq).is_some());
        let held_by = holder.and_then(|segment| Some((segment, segment.stretch_for(seq)?)));
        let job = ReadJob::new(id, seq, held_by);
        let range = SeqRange::new(seq, job.next.max(seq + 1));
        let bytes = held_by.map_or(0, |(_, stretch)| (stretch.end - stretch.offset) as usize);
        seat.reads.push(Reading { id, since: now, since_ms: now_ms, range, bytes, purpose });
        if purpose == Purpose::Wanted {
            self.begin_ahead(log, range);
        }
        Some(job)
    }

    /// A take waits for the first of these events: what follows them on this log and beside them on the others is next.
    fn begin_ahead(&mut self, wanted: usize, range: SeqRange) {
        for (log, seat) in self.seats.iter_mut().enumerate() {
            match seat.ahead_from {
                None => seat.ahead_from = Some(if log == wanted { range.end } else { range.start }),
                Some(from) if log == wanted => seat.ahead_from = Some(from.max(range.end)),
                Some(_) => {}
            }
        }
    }

    /// Whether there is something to read from the disk of a log.
    pub(crate) fn read_is_due(&self, log: usize, now: Duration) -> bool {
        let asked = self.wanted_of(log).is_some() || self.probe_is_due(log, now);
        !self.closed && (asked || self.may_read_ahead(log) || self.scrub_is_due(log, now))
    }

    /// The event that a take waits for, if it is on this log and nothing brings it yet.
    fn wanted_of(&self, log: usize) -> Option<u64> {
        let seat = &self.seats[log];
        let (_, seq) = self.wanted.filter(|(wanted, _)| *wanted == log)?;
        (seat.asked().is_none() && !seat.is_being_read(seq)).then_some(seq)
    }

    fn probe_is_due(&self, log: usize, now: Duration) -> bool {
        let seat = &self.seats[log];
        let due = seat.unreadable.as_ref().and_then(|unreadable| unreadable.probe_at).is_some_and(|at| at <= now);
        due && seat.asked().is_none() && !planted::is(Bug::ForgetHeld)
    }

    /// Whether a log is being drained and what was read ahead of it leaves room for more.
    fn may_read_ahead(&self, log: usize) -> bool {
        let seat = &self.seats[log];
        // One place is left for what a take waits for. Beside puts there is one read at a time: in the queue of the disk more
        // of them would be in front of each put.
        let puts = self.pending_events + self.flying_events > 0;
        let places = if puts { 1 } else { READS_MAX - usize::from(seat.asked().is_none()) };
        let has_place = seat.reads.len() < places;
        let coming: usize = seat.reads.iter().map(|reading| reading.bytes).sum();
        let has_room = coming + self.cache.bytes_read(log) < self.options.hot_tail_bytes / AHEAD_PART;
        seat.ahead_from.is_some() && has_place && has_room && !seat.is_away()
    }

    /// The first event of the next stretch to read ahead.
    fn next_ahead(&mut self, log: usize) -> Option<u64> {
        if !self.may_read_ahead(log) {
            return None;
        }
        while let Some(from) = self.seats[log].ahead_from.take() {
            let (seq, stretch) = self.queued_stretch(log, from)?;
            if self.cache.holds(seq) {
                // The drain has met the hot tail.
                return None;
            }
            self.seats[log].ahead_from = Some(stretch.end_seq);
            if !self.seats[log].is_being_read(seq) {
                return Some(seq);
            }
        }
        None
    }

    /// The next stretch of a log that has events to take from `from` on, and the first of them.
    pub(super) fn queued_stretch(&self, log: usize, mut from: u64) -> Option<(u64, Stretch)> {
        loop {
            let segment = self.seats[log].log.segments().find(|segment| segment.end_seq > from)?;
            let stretch = segment.stretch_for(from.max(segment.first_seq))?;
            let queued = self.queue.queued().first_from(from.max(stretch.first_seq))?;
            // Numbers between its ranges lie on other logs.
            match segment.first_from(queued).filter(|own| *own < stretch.end_seq) {
                Some(own) => return Some((own, stretch)),
                None => from = stretch.end_seq.max(queued),
            }
        }
    }

    /// When time alone brings about a read, or the end of waiting for one.
    pub(super) fn reads_due(&self) -> Option<Duration> {
        let due = |(log, seat): (usize, &Seat)| {
            let waits = self.wanted.is_some_and(|(wanted, _)| wanted == log) && !seat.is_away();
            let hangs = seat.oldest_read().filter(|_| waits).map(|reading| reading.since + READ_WAIT);
            let free = seat.unreadable.as_ref().filter(|_| seat.asked().is_none());
            [hangs, free.and_then(|unreadable| unreadable.probe_at)].into_iter().flatten().min()
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

    pub(crate) fn read_done(&mut self, now: Duration, log: usize, read: Read, answers: &mut Vec<Answer>) {
        let reads = &mut self.seats[log].reads;
        let Some(place) = reads.iter().position(|reading| reading.id == read.id) else { return };
        let reading = reads.swap_remove(place);
        if reading.purpose == Purpose::Scrub {
            self.scrubbed(now, reading, log, read.done);
            return self.serve_takes(now, answers);
        }
        let probed = self.seats[log].unreadable.as_mut().filter(|_| reading.purpose == Purpose::Probe);
        match read.done {
            ReadDone::Found { slices, bytes } => {
                let failed = self.queue.held(log, Held::Failed);
                if let Some(unreadable) = probed
                    && failed.is_some_and(|failed| failed.around(reading.range.start).is_none())
                {
                    unreadable.answers = true;
                    unreadable.probe_at = Some(now);
                    return;
                }
                self.disk_reads(log, (reading.purpose != Purpose::Ahead).then_some(reading.range.start));
                self.keep_read(log, slices, bytes);
            }
            ReadDone::Failed { .. } | ReadDone::Damaged { .. } if reading.purpose == Purpose::Ahead => {}
            ReadDone::Failed { cause, .. } if let Some(unreadable) = probed => {
                tracing::debug!(channel = self.options.name, seq = reading.range.start, cause, "still not to be read");
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

    /// Reading meets events that are leased or done: only what can be taken is kept.
    fn keep_read(&mut self, log: usize, slices: Vec<LeasedSlice>, bytes: usize) {
        let mut kept = Vec::with_capacity(slices.len());
        for slice in slices {
            let whole = slice.range();
            if self.queue.queued().covers(whole) {
                kept.push(slice);
                continue;
            }
            kept.extend(self.queue.queued().within(whole).into_iter().map(|range| {
                let (start, end) = (range.start - slice.first_seq, range.end - slice.first_seq);
                LeasedSlice { first_seq: range.start, events: slice.events.slice(start as usize..end as usize) }
            }));
        }
        let sparse = kept.iter().map(|slice| slice.events.bytes()).sum::<usize>() < bytes / SPARSE_PART;
        for LeasedSlice { first_seq, events } in kept {
            self.cache.keep(log, first_seq, if sparse { events.apart() } else { events });
        }
    }

    /// A read succeeded: what was not even tried is offered again, and if the event had failed before, so is all that had.
    pub(super) fn disk_reads(&mut self, log: usize, seq: Option<u64>) {
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

    pub(super) fn cannot_read(
        &mut self,
        now: Duration,
        reading: Reading,
        log: usize,
        why: Held,
        range: SeqRange,
        cause: String,
    ) {
        tracing::error!(channel = self.options.name, %range, ?why, cause, "events cannot be read back; they are held");
        self.counts.take_errors += u64::from(reading.purpose != Purpose::Scrub);
        if planted::is(Bug::SkipUnreadable) {
            let skipped = SeqRange::new(reading.range.start, reading.range.start + 1);
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
