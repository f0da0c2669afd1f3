//! The event queue: which events are queued, leased, being settled or done, as ranges.
//!
//! Promises that an event is in exactly one of these states, that rolled back events return to the head in order,
//! and that `floor` never passes an event that may still be needed. It knows neither disks nor payload.

use std::collections::BTreeMap;

use wal::planted::{self, Bug};

use super::ranges::RangeSet;
use crate::settlement::SeqRange;

/// Identifies a consumer handle.
pub(crate) type ConsumerId = u64;

/// Why events cannot be had although they are durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Held {
    /// Their disk is away, so nobody asked for them.
    Passed,
    /// Their disk answered with an error.
    Failed,
    /// Their disk answered with bytes that are not what was written.
    Damaged,
}

impl Held {
    pub(crate) const ALL: [Held; 3] = [Held::Passed, Held::Failed, Held::Damaged];
}

#[derive(Debug, Default)]
pub(crate) struct Queue {
    /// Durable and free to take.
    queued: RangeSet,
    /// Durable, but not to be had now: by log and reason.
    held: BTreeMap<(usize, Held), RangeSet>,
    /// Out with a consumer.
    leased: BTreeMap<ConsumerId, RangeSet>,
    leased_count: u64,
    /// Settled by a consumer; the frame that says so is not durable yet.
    settling: RangeSet,
    /// Durably settled, at or above the floor.
    settled: RangeSet,
    /// Reserved in a frame whose outcome is open, or whose void is not durable yet.
    unresolved: RangeSet,
    next_seq: u64,
    floor: u64,
}

impl Queue {
    /// The queue as recovery found it.
    pub(crate) fn recovered(queued: RangeSet, settled: RangeSet, unresolved: RangeSet, next_seq: u64) -> Queue {
        let mut queue = Queue { queued, settled, unresolved, next_seq, ..Queue::default() };
        queue.raise_floor();
        queue
    }

    pub(crate) fn next_seq(&self) -> u64 {
        self.next_seq
    }

    /// Every event below is settled, or void.
    pub(crate) fn floor(&self) -> u64 {
        self.floor
    }

    /// Every event below is durable, or void.
    pub(crate) fn durable_seq(&self) -> u64 {
        self.unresolved.first().map_or(self.next_seq, |range| range.start)
    }

    /// Bytes of all ranges, with what the trees need around them.
    pub(crate) fn state_bytes(&self) -> usize {
        let own = [&self.queued, &self.settling, &self.settled, &self.unresolved];
        let pieces: usize = own.into_iter().chain(self.leased.values()).map(RangeSet::pieces).sum();
        // Nodes of a tree are at least half full.
        2 * pieces * size_of::<SeqRange>()
    }

    pub(crate) fn settled(&self) -> &RangeSet {
        &self.settled
    }

    pub(crate) fn queued(&self) -> &RangeSet {
        &self.queued
    }

    /// Durable events that are not durably settled.
    pub(crate) fn unsettled(&self) -> RangeSet {
        let mut all = self.queued.clone();
        if planted::is(Bug::CheckpointForgetsLeases) {
            return all;
        }
        self.leased
            .values()
            .chain(self.held.values())
            .chain([&self.settling])
            .for_each(|ranges| all.insert_all(ranges));
        all
    }

    pub(crate) fn leased_count(&self) -> u64 {
        self.leased_count
    }

    /// Events that are not gone yet: queued, held, leased, or settling.
    pub(crate) fn size(&self) -> u64 {
        let held: u64 = self.held.values().map(RangeSet::count).sum();
        self.queued.count() + held + self.leased_count + self.settling.count()
    }

    /// Offers events no longer, for the disk of `log` does not give them out; those of `range` that are with a consumer
    /// stay there.
    pub(crate) fn hold(&mut self, log: usize, why: Held, range: SeqRange) {
        let mut pieces = self.queued.within(range);
        pieces.iter().for_each(|piece| self.queued.remove(*piece));
        for ((_, known), ranges) in self.held.iter_mut().filter(|((other, _), _)| *other == log) {
            if *known != why {
                pieces.extend(ranges.within(range));
                ranges.remove(range);
            }
        }
        let held = self.held.entry((log, why)).or_default();
        pieces.into_iter().for_each(|piece| held.insert(piece));
        self.held.retain(|_, ranges| !ranges.is_empty());
    }

    /// Offers again what was held of a log for this reason.
    pub(crate) fn release(&mut self, log: usize, why: Held) {
        if let Some(ranges) = self.held.remove(&(log, why)) {
            self.queued.insert_all(&ranges);
        }
    }

    pub(crate) fn held(&self, log: usize, why: Held) -> Option<&RangeSet> {
        self.held.get(&(log, why))
    }

    /// The oldest event that is held for whatever reason, and the log it is on.
    pub(crate) fn first_held(&self) -> Option<(u64, usize)> {
        self.held.iter().filter_map(|((log, _), ranges)| Some((ranges.first()?.start, *log))).min()
    }

    /// Gives out sequence numbers.
    pub(crate) fn reserve(&mut self, count: u64) -> Option<SeqRange> {
        if count == 0 {
            return None;
        }
        let range = SeqRange::new(self.next_seq, self.next_seq + count);
        self.next_seq = range.end;
        self.unresolved.insert(range);
        Some(range)
    }

    /// The frame with these events is durable.
    pub(crate) fn publish(&mut self, range: SeqRange) {
        self.unresolved.remove(range);
        self.queued.insert(range);
    }

    /// The frame that says that these numbers stand for nothing is durable.
    pub(crate) fn void(&mut self, range: SeqRange) {
        self.unresolved.remove(range);
        self.settled.insert(range);
        self.raise_floor();
    }

    /// The oldest events to take, and whether an older one is still in the making.
    pub(crate) fn head(&self) -> Option<(SeqRange, bool)> {
        let head = self.queued.first()?;
        let older = self.unresolved.first().is_some_and(|range| range.start < head.start);
        Some((head, older))
    }

    pub(crate) fn lease(&mut self, consumer: ConsumerId, range: SeqRange) {
        assert!(self.queued.covers(range), "{range} is leased without being queued");
        if !planted::is(Bug::LeaseTwice) {
            self.queued.remove(range);
        }
        self.leased.entry(consumer).or_default().insert(range);
        self.leased_count += range.count();
    }

    /// The first of `ranges` that is not leased by `consumer`, or comes twice.
    pub(crate) fn not_leased(&self, consumer: ConsumerId, ranges: impl Iterator<Item = SeqRange>) -> Option<SeqRange> {
        let mut seen = RangeSet::default();
        for range in ranges {
            if seen.overlaps(range) || !self.leased.get(&consumer).is_some_and(|leased| leased.covers(range)) {
                return Some(range);
            }
            seen.insert(range);
        }
        None
    }

    fn unlease(&mut self, consumer: ConsumerId, range: SeqRange) {
        let leased = self.leased.get_mut(&consumer).expect("checked with not_leased");
        leased.remove(range);
        self.leased_count -= range.count();
        if leased.is_empty() {
            self.leased.remove(&consumer);
        }
    }

    pub(crate) fn give_back(&mut self, consumer: ConsumerId, range: SeqRange) {
        self.unlease(consumer, range);
        if !planted::is(Bug::ForgetReturned) {
            self.queued.insert(range);
        }
    }

    /// Returns all that a consumer holds.
    pub(crate) fn give_back_all(&mut self, consumer: ConsumerId) {
        if planted::is(Bug::KeepLeasesOfGone) {
            return;
        }
        if let Some(leased) = self.leased.remove(&consumer) {
            self.leased_count -= leased.count();
            self.queued.insert_all(&leased);
        }
    }

    pub(crate) fn start_settling(&mut self, consumer: ConsumerId, range: SeqRange) {
        self.unlease(consumer, range);
        self.settling.insert(range);
    }

    /// The frame that settles these events is durable.
    pub(crate) fn settle(&mut self, range: SeqRange) {
        self.settling.remove(range);
        self.settled.insert(range);
        self.raise_floor();
    }

    fn raise_floor(&mut self) {
        let leased = self.leased.values().filter_map(RangeSet::first).map(|range| range.start).min();
        let leased = leased.filter(|_| !planted::is(Bug::FloorPassesLeases));
        let held = self.first_held().map(|(seq, _)| seq);
        let open = [self.queued.first(), self.settling.first(), self.unresolved.first()];
        let floor = open
            .into_iter()
            .flatten()
            .map(|range| range.start)
            .chain(leased)
            .chain(held)
            .min()
            .unwrap_or(self.next_seq);
        self.floor = self.floor.max(floor);
        if self.floor > 0 {
            self.settled.remove(SeqRange::new(0, self.floor));
        }
    }

    /// The last number of a range that is not done for good.
    pub(crate) fn last_open(&self, start: u64, end: u64) -> Option<u64> {
        let start = start.max(self.floor);
        if start >= end {
            return None;
        }
        match self.settled.around(end - 1) {
            None => Some(end - 1),
            Some(done) => (done.start > start).then(|| done.start - 1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rolled_back_events_come_first_and_the_floor_waits_for_them() {
        let mut queue = Queue::default();
        let range = queue.reserve(10).unwrap();
        assert_eq!(queue.head(), None, "nothing is taken before it is durable");
        queue.publish(range);
        queue.lease(1, SeqRange::new(0, 4));
        queue.lease(2, SeqRange::new(4, 6));
        queue.give_back(1, SeqRange::new(0, 2));
        assert_eq!(queue.head(), Some((SeqRange::new(0, 2), false)));
        queue.start_settling(2, SeqRange::new(4, 6));
        queue.settle(SeqRange::new(4, 6));
        assert_eq!((queue.floor(), queue.size()), (0, 8));
        queue.lease(1, SeqRange::new(0, 2));
        queue.start_settling(1, SeqRange::new(0, 4));
        queue.settle(SeqRange::new(0, 4));
        assert_eq!((queue.floor(), queue.size()), (6, 4));
        assert!(queue.settled().is_empty(), "below the floor nothing is remembered one by one");
    }

    #[test]
    fn only_own_leases_can_be_settled_and_only_once() {
        let mut queue = Queue::default();
        let range = queue.reserve(4).unwrap();
        queue.publish(range);
        queue.lease(1, range);
        let twice = [SeqRange::new(0, 2), SeqRange::new(1, 3)];
        assert_eq!(queue.not_leased(1, twice.into_iter()), Some(twice[1]));
        assert_eq!(queue.not_leased(2, [range].into_iter()), Some(range));
        assert_eq!(queue.not_leased(1, [range].into_iter()), None);
        queue.give_back_all(1);
        assert_eq!(queue.not_leased(1, [range].into_iter()), Some(range));
    }

    #[test]
    fn an_older_write_in_flight_shows_at_the_head() {
        let mut queue = Queue::default();
        let first = queue.reserve(2).unwrap();
        let second = queue.reserve(2).unwrap();
        queue.publish(second);
        assert_eq!(queue.head(), Some((second, true)));
        assert_eq!(queue.durable_seq(), 0);
        queue.void(first);
        assert_eq!((queue.head(), queue.durable_seq(), queue.floor()), (Some((second, false)), 4, 2));
    }

    #[test]
    fn what_is_held_is_passed_by_counts_and_comes_first_once_it_is_released() {
        let mut queue = Queue::default();
        let range = queue.reserve(10).unwrap();
        queue.publish(range);
        queue.lease(1, SeqRange::new(2, 4));
        queue.hold(0, Held::Passed, SeqRange::new(0, 6));
        assert_eq!((queue.head(), queue.first_held()), (Some((SeqRange::new(6, 10), false)), Some((0, 0))));
        queue.lease(1, SeqRange::new(6, 10));
        queue.start_settling(1, SeqRange::new(6, 10));
        queue.settle(SeqRange::new(6, 10));
        queue.hold(0, Held::Failed, SeqRange::new(4, 6));
        assert_eq!((queue.floor(), queue.size(), queue.unsettled().count()), (0, 6, 6));
        assert_eq!(queue.held(0, Held::Passed).map(RangeSet::count), Some(2));
        queue.release(0, Held::Passed);
        queue.give_back_all(1);
        assert_eq!(queue.head(), Some((SeqRange::new(0, 4), false)));
    }

    #[test]
    fn the_last_open_number_of_a_range_is_what_its_segment_waits_for() {
        let mut queue = Queue::default();
        let range = queue.reserve(10).unwrap();
        queue.publish(range);
        queue.lease(1, range);
        let settle = |queue: &mut Queue, start, end| {
            queue.start_settling(1, SeqRange::new(start, end));
            queue.settle(SeqRange::new(start, end));
        };
        settle(&mut queue, 0, 2);
        settle(&mut queue, 5, 8);
        assert_eq!(queue.last_open(0, 2), None, "below the floor");
        assert_eq!(queue.last_open(0, 10), Some(9));
        assert_eq!(queue.last_open(0, 8), Some(4));
        assert_eq!((queue.last_open(5, 8), queue.last_open(6, 7), queue.last_open(3, 3)), (None, None, None));
    }
}
