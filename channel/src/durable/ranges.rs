//! Sets of sequence numbers as ranges: a backlog of any length costs a few words.

use std::collections::BTreeMap;

use crate::settlement::SeqRange;

/// A set of sequence numbers, kept as ranges that neither touch nor overlap.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct RangeSet {
    /// start → end
    ranges: BTreeMap<u64, u64>,
    count: u64,
}

impl RangeSet {
    pub(crate) fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Numbers in the set.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// Ranges it takes to say so.
    pub(crate) fn pieces(&self) -> usize {
        self.ranges.len()
    }

    pub(crate) fn first(&self) -> Option<SeqRange> {
        self.ranges.first_key_value().map(|(start, end)| SeqRange::new(*start, *end))
    }

    pub(crate) fn last_end(&self) -> Option<u64> {
        self.ranges.last_key_value().map(|(_, end)| *end)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = SeqRange> {
        self.ranges.iter().map(|(start, end)| SeqRange::new(*start, *end))
    }

    /// The range that holds `seq`.
    pub(crate) fn around(&self, seq: u64) -> Option<SeqRange> {
        let (start, end) = self.ranges.range(..=seq).next_back()?;
        (seq < *end).then(|| SeqRange::new(*start, *end))
    }

    /// The first number in the set from `seq` on.
    pub(crate) fn first_from(&self, seq: u64) -> Option<u64> {
        match self.around(seq) {
            Some(_) => Some(seq),
            None => self.ranges.range(seq..).next().map(|(start, _)| *start),
        }
    }

    pub(crate) fn covers(&self, range: SeqRange) -> bool {
        self.around(range.start).is_some_and(|found| found.end >= range.end)
    }

    pub(crate) fn overlaps(&self, range: SeqRange) -> bool {
        self.ranges.range(..range.end).next_back().is_some_and(|(_, end)| *end > range.start)
    }

    /// The pieces of `range` that are in the set.
    pub(crate) fn within(&self, range: SeqRange) -> Vec<SeqRange> {
        let first = self.around(range.start).map_or(range.start, |found| found.start);
        let pieces = self.ranges.range(first..range.end).filter(|(_, end)| **end > range.start);
        pieces.map(|(start, end)| SeqRange::new((*start).max(range.start), (*end).min(range.end))).collect()
    }

    /// Adds a range; what is in it already stays.
    pub(crate) fn insert(&mut self, range: SeqRange) {
        let SeqRange { mut start, mut end } = range;
        while let Some((found_start, found_end)) = self.ranges.range(..=end).next_back().map(|(s, e)| (*s, *e)) {
            if found_end < start {
                break;
            }
            start = start.min(found_start);
            end = end.max(found_end);
            self.ranges.remove(&found_start);
            self.count -= found_end - found_start;
        }
        self.ranges.insert(start, end);
        self.count += end - start;
    }

    /// Takes a range out; what is not in it anyway does not matter.
    pub(crate) fn remove(&mut self, range: SeqRange) {
        while let Some((start, end)) = self.ranges.range(..range.end).next_back().map(|(s, e)| (*s, *e)) {
            if end <= range.start {
                break;
            }
            self.ranges.remove(&start);
            self.count -= end - start;
            if start < range.start {
                self.ranges.insert(start, range.start);
                self.count += range.start - start;
            }
            if end > range.end {
                self.ranges.insert(range.end, end);
                self.count += end - range.end;
            }
        }
    }

    pub(crate) fn insert_all(&mut self, other: &RangeSet) {
        other.iter().for_each(|range| self.insert(range));
    }

    pub(crate) fn remove_all(&mut self, other: &RangeSet) {
        other.iter().for_each(|range| self.remove(range));
    }
}

impl FromIterator<SeqRange> for RangeSet {
    fn from_iter<I: IntoIterator<Item = SeqRange>>(ranges: I) -> RangeSet {
        let mut set = RangeSet::default();
        ranges.into_iter().for_each(|range| set.insert(range));
        set
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn it_holds_what_a_plain_set_holds(steps in proptest::collection::vec((any::<bool>(), 0u64..60, 1u64..12), 0..60)) {
            let (mut ranges, mut plain) = (RangeSet::default(), BTreeSet::new());
            for (insert, start, len) in steps {
                let range = SeqRange::new(start, start + len);
                prop_assert_eq!(ranges.overlaps(range), (start..start + len).any(|seq| plain.contains(&seq)));
                prop_assert_eq!(ranges.covers(range), (start..start + len).all(|seq| plain.contains(&seq)));
                prop_assert_eq!(ranges.first_from(start), plain.range(start..).next().copied());
                if insert {
                    ranges.insert(range);
                    plain.extend(start..start + len);
                } else {
                    ranges.remove(range);
                    plain.retain(|seq| !range.contains(*seq));
                }
                let flat: Vec<u64> = ranges.iter().flat_map(|range| range.start..range.end).collect();
                prop_assert_eq!(&flat, &plain.iter().copied().collect::<Vec<_>>());
                prop_assert_eq!(ranges.count(), plain.len() as u64);
                let joined = ranges.iter().zip(ranges.iter().skip(1)).all(|(one, next)| one.end < next.start);
                prop_assert!(joined, "neighbours are one range");
            }
        }
    }
}
