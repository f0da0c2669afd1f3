//! One log of the channel as the core sees it: what is on its way there, and whether it can be expected to arrive.
//!
//! A disk that fails says so. One that stalls says nothing: it is known by how long it has owed an answer.

use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use wal::log::Log;
use wal::planted::{self, Bug};
use wal::segment::Segment;

use super::Core;
use super::scrub::Scrub;
use crate::durable::job::{Job, PendingState, Retiring};
use crate::durable::queue::Queue;
use crate::settlement::SeqRange;

/// A disk that owes an answer for so long stalls: nothing new is given to it while another one is well.
const STALLED_AFTER: Duration = Duration::from_secs(1);
/// So many reads in a row that fail are a lost disk; one may be a bad sector.
pub(super) const READ_ERRORS_MAX: u32 = 2;

pub(super) struct Seat {
    pub(super) log: Log,
    /// Frames that were written before those in front of them.
    pub(super) written: BTreeMap<u64, Job>,
    /// Frames that failed, kept until every write of them has returned.
    pub(super) failed: BTreeMap<u64, Job>,
    pub(super) failed_out: usize,
    pub(super) needs_segment: bool,
    pub(super) retry_at: Option<Duration>,
    /// These segments can go once a snapshot is durable here.
    pub(super) retiring: Option<Retiring>,
    pub(super) snapshot_wanted: bool,
    /// The segment at the old end and the event in it that it waits for: while that is open, nobody looks at the others.
    held_up: Cell<Option<(u64, u64)>>,
    /// Settlements and notes in frames that are not durable yet, by frame.
    pub(super) riding: BTreeMap<u64, Vec<PendingState>>,
    /// Frames with events that are not durable yet: the first event of each, and when it was made.
    pub(super) flying: VecDeque<(u64, Duration)>,
    /// Since when the disk owes an answer; each answer begins it anew.
    pub(super) owes_since: Option<Duration>,
    /// Reads that are out: at most one of them was asked for, the others are ahead of the consumers.
    pub(super) reads: Vec<Reading>,
    /// Where reading ahead goes on; `None` when nobody drains this log.
    pub(super) ahead_from: Option<u64>,
    pub(super) scrub: Scrub,
    /// What is known of a disk that does not give out what it holds.
    pub(super) unreadable: Option<Unreadable>,
}

/// Why something is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// A take waits for it.
    Wanted,
    /// To find out whether the disk is back.
    Probe,
    /// A take will soon want it. If it fails, nothing follows: whoever wants it will see.
    Ahead,
    /// To find out whether it is still there.
    Scrub,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Reading {
    pub(super) id: u64,
    pub(super) since: Duration,
    pub(super) since_ms: u64,
    /// The event it is for, and those that it brings with it.
    pub(super) range: SeqRange,
    pub(super) bytes: usize,
    pub(super) purpose: Purpose,
}

#[derive(Debug)]
pub(super) struct Unreadable {
    /// Since when, as time of day.
    pub(super) since_ms: u64,
    /// Errors in a row.
    pub(super) errors: u32,
    pub(super) cause: String,
    /// When it is tried next; `None` when there is nothing to try it with.
    pub(super) probe_at: Option<Duration>,
    /// The event that had failed with which it was tried last.
    pub(super) tried: u64,
    /// An event that was passed could be read just now.
    pub(super) answers: bool,
}

impl Unreadable {
    pub(super) fn new(since_ms: u64, probe_at: Duration, cause: String) -> Unreadable {
        Unreadable { since_ms, errors: 0, cause, probe_at: Some(probe_at), tried: 0, answers: false }
    }
}

/// Why, and from when on, a log takes no puts.
pub(super) struct Stuck {
    pub(super) from: Duration,
    /// Failed rather than full or stalled.
    pub(super) failed: bool,
    pub(super) cause: String,
}

impl Seat {
    pub(super) fn new(log: Log, scrub_interval: Duration) -> Seat {
        Seat {
            log,
            written: BTreeMap::new(),
            failed: BTreeMap::new(),
            failed_out: 0,
            needs_segment: false,
            retry_at: None,
            retiring: None,
            snapshot_wanted: false,
            held_up: Cell::default(),
            riding: BTreeMap::new(),
            flying: VecDeque::new(),
            owes_since: None,
            reads: Vec::new(),
            ahead_from: None,
            scrub: Scrub::new(scrub_interval),
            unreadable: None,
        }
    }

    /// Whether its events are passed by.
    pub(super) fn is_away(&self) -> bool {
        self.unreadable.as_ref().is_some_and(|unreadable| unreadable.errors >= READ_ERRORS_MAX)
    }

    /// The read that is out and was asked for.
    pub(super) fn asked(&self) -> Option<&Reading> {
        self.reads.iter().find(|reading| matches!(reading.purpose, Purpose::Wanted | Purpose::Probe))
    }

    /// The read that is out for longest.
    pub(super) fn oldest_read(&self) -> Option<&Reading> {
        self.reads.iter().min_by_key(|reading| reading.since)
    }

    /// Whether a read that is out brings the event.
    pub(super) fn is_being_read(&self, seq: u64) -> bool {
        self.reads.iter().any(|reading| reading.purpose != Purpose::Scrub && reading.range.contains(seq))
    }

    /// From when on the disk counts as stalled, if nothing is heard of it.
    pub(super) fn stalls_from(&self) -> Option<Duration> {
        self.owes_since.map(|since| since + STALLED_AFTER)
    }

    /// Whether the log can be expected to make durable what it is given.
    pub(super) fn is_well(&self, now: Duration) -> bool {
        self.log.failure().is_none() && self.stalls_from().is_none_or(|from| now < from)
    }

    /// The disk has answered.
    pub(super) fn heard(&mut self, now: Duration) {
        self.owes_since = (!self.log.is_settled()).then_some(now);
    }

    /// Whether every event that a segment holds is done for good. Numbers between them lie elsewhere, or stand for nothing,
    /// or are on their way to a disk that may stall: they are none of its business.
    pub(super) fn is_drained(&self, segment: &Segment, queue: &Queue) -> bool {
        let all_done = queue.last_open(segment.first_seq, segment.end_seq).is_none();
        if all_done || planted::is(Bug::WaitForStrangers) {
            return all_done;
        }
        if let Some((ordinal, seq)) = self.held_up.get()
            && ordinal == segment.ordinal
            && queue.last_open(seq, seq + 1).is_some()
        {
            return false;
        }
        let open = segment.ranges().iter().filter_map(|(start, end)| queue.last_open(start, end)).last();
        self.held_up.set(open.map(|seq| (segment.ordinal, seq)));
        open.is_none()
    }

    pub(super) fn stuck_from(&self) -> Option<Duration> {
        let full = self.log.blocked().is_some() && self.needs_segment;
        if self.log.failure().is_some() || full {
            return Some(Duration::ZERO);
        }
        self.stalls_from().filter(|_| !planted::is(Bug::TrustTheStalled))
    }

    pub(super) fn stuck(&self) -> Option<Stuck> {
        let from = self.stuck_from()?;
        let full = self.log.blocked().filter(|_| self.needs_segment);
        let (failed, cause) = match (self.log.failure(), full) {
            (Some(cause), _) => (true, cause.to_owned()),
            (None, Some(cause)) => (false, cause.to_owned()),
            (None, None) => (false, format!("the disk of {} does not answer", self.log.device().name())),
        };
        Some(Stuck { from, failed, cause })
    }
}

impl Core {
    /// Settlements and notes in frames of a disk that stalls or has failed ride along with another log's next frame as
    /// well: they are facts, and a fact may be said twice. Nobody waits for the disk, and no segment for it either.
    pub(super) fn say_elsewhere(&mut self, now: Duration) {
        for index in 0..self.seats.len() {
            let rides = !self.seats[index].riding.is_empty() && !self.seats[index].is_well(now);
            if rides && self.another_is_well(index, now) && !planted::is(Bug::SettleWithTheStalled) {
                let riding = std::mem::take(&mut self.seats[index].riding);
                for (id, states) in riding {
                    self.states.extend(states.into_iter().map(|mut state| {
                        state.said_in.push((index, id));
                        state
                    }));
                }
            }
        }
    }

    /// What was given to another log because this frame took so long, and is not durable there yet: now that this frame is, it
    /// is a fact, and no checkpoint may vouch for the frame without it.
    pub(super) fn said_by(&mut self, log: usize, id: u64) -> Vec<PendingState> {
        if planted::is(Bug::SayOnlyElsewhere) {
            return Vec::new();
        }
        let is_said = |state: &mut PendingState| state.said_in.contains(&(log, id));
        let mut said: Vec<PendingState> = self.states.extract_if(.., is_said).collect();
        for states in self.seats.iter_mut().flat_map(|seat| seat.riding.values_mut()) {
            said.extend(states.extract_if(.., is_said));
        }
        said
    }

    /// When [`say_elsewhere`](Core::say_elsewhere) may have something to do.
    pub(super) fn riding_due(&self) -> Option<Duration> {
        let due = |(index, seat): (usize, &Seat)| {
            let from = seat.stalls_from().filter(|_| !seat.riding.is_empty())?;
            self.another_is_well(index, from).then_some(from)
        };
        self.seats.iter().enumerate().filter_map(due).min()
    }

    /// Whether a log other than this one can be expected to make durable what it is given.
    pub(super) fn another_is_well(&self, index: usize, now: Duration) -> bool {
        self.seats.iter().enumerate().any(|(other, seat)| other != index && seat.is_well(now))
    }
}
