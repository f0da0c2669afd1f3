//! Frames in memory between the disk and the consumers: the hot tail, and what was read ahead.
//!
//! Byte-capped. A frame stays until its last event is leased; a rollback reads it again. When the cap is reached, new
//! frames are not kept: the consumer is far behind and will read them from disk anyway. What was read is kept in any case,
//! and counted for each log: who reads ahead stops in time (`core/reads.rs`).

use std::collections::BTreeMap;

use wal::planted::{self, Bug};

use crate::api::LeasedSlice;
use crate::event::EventSlice;
use crate::settlement::SeqRange;

/// The events of one transaction or one frame, in memory.
#[derive(Debug)]
struct Cached {
    events: EventSlice,
    bytes: usize,
    /// Events not leased yet.
    left: usize,
    /// The log they were read from.
    log: Option<usize>,
}

#[derive(Debug)]
pub(crate) struct Cache {
    slices: BTreeMap<u64, Cached>,
    bytes: usize,
    /// Of these, those that were read, by log.
    read: BTreeMap<usize, usize>,
    cap: usize,
}

impl Cache {
    pub(crate) fn new(cap: usize) -> Cache {
        Cache { slices: BTreeMap::new(), bytes: 0, read: BTreeMap::new(), cap }
    }

    /// Keeps freshly written events if there is room.
    pub(crate) fn offer(&mut self, first_seq: u64, events: EventSlice) {
        if self.bytes + cost(&events) <= self.cap {
            self.insert(first_seq, events, None);
        }
    }

    /// Keeps events that were read from a log, because a consumer waits for them or will soon.
    pub(crate) fn keep(&mut self, log: usize, first_seq: u64, events: EventSlice) {
        self.insert(first_seq, events, Some(log));
    }

    fn insert(&mut self, first_seq: u64, events: EventSlice, log: Option<usize>) {
        let (bytes, left) = (cost(&events), events.len());
        if left > 0 && !self.slices.contains_key(&first_seq) {
            self.bytes += bytes;
            if let Some(log) = log {
                *self.read.entry(log).or_default() += bytes;
            }
            self.slices.insert(first_seq, Cached { events, bytes, left, log });
        }
    }

    /// Bytes that were read from a log and not taken yet.
    pub(crate) fn bytes_read(&self, log: usize) -> usize {
        self.read.get(&log).copied().unwrap_or(0)
    }

    /// Whether the event is in memory.
    pub(crate) fn holds(&self, seq: u64) -> bool {
        let before = self.slices.range(..=seq).next_back();
        before.is_some_and(|(first, cached)| seq - first < cached.events.len() as u64)
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Events from `range.start` on that are in memory in one piece, no further than `range.end`.
    pub(crate) fn find(&self, range: SeqRange) -> Option<LeasedSlice> {
        let (first, cached) = self.slices.range(..=range.start).next_back()?;
        let start = (range.start - first) as usize;
        let end = ((range.end - first) as usize).min(cached.events.len());
        let from = if planted::is(Bug::LeaseFromStart) { 0 } else { start };
        let events = || cached.events.slice(from..from + end - start);
        (start < end).then(|| LeasedSlice { first_seq: range.start, events: events() })
    }

    /// Notes that events were leased; what is leased as a whole leaves.
    pub(crate) fn leased(&mut self, range: SeqRange) {
        if let Some((first, cached)) = self.slices.range_mut(..=range.start).next_back() {
            cached.left = cached.left.saturating_sub(range.count() as usize);
            if cached.left == 0 {
                let first = *first;
                if let Some(gone) = self.slices.remove(&first) {
                    self.bytes -= gone.bytes;
                    if let Some(read) = gone.log.and_then(|log| self.read.get_mut(&log)) {
                        *read -= gone.bytes;
                    }
                }
            }
        }
    }
}

/// Offsets and lengths of events count too, or small events would cost more than the cap says.
fn cost(events: &EventSlice) -> usize {
    events.bytes() + 8 * events.len()
}
