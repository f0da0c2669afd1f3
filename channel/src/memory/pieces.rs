//! Pieces of transactions by sequence number: finding, checking and cutting them.
//!
//! Promises that a cut leaves every other event where it was. Whether events are queued or leased is the queue's.

use std::collections::BTreeMap;

use crate::event::EventSlice;
use crate::settlement::{SeqRange, SettleError, Settlement};

/// By the sequence number of their first event; they never overlap.
pub(super) type Pieces = BTreeMap<u64, EventSlice>;

/// How many of the first `most` events of `piece` have at most `bytes` bytes.
pub(super) fn events_within(piece: &EventSlice, most: usize, bytes: usize) -> usize {
    if piece.bytes() <= bytes {
        return most;
    }
    let (mut fits, mut over) = (0, most + 1);
    while over - fits > 1 {
        let middle = fits + (over - fits) / 2;
        if piece.slice(0..middle).bytes() <= bytes {
            fits = middle;
        } else {
            over = middle;
        }
    }
    fits
}

/// Whether every range of `settlements` is leased, and named once.
pub(super) fn check_leased(leased: &Pieces, settlements: &[Settlement]) -> Result<(), SettleError> {
    let mut ranges: Vec<SeqRange> =
        settlements.iter().flat_map(|settlement| settlement.ranges.iter().copied()).collect();
    ranges.sort_unstable();
    let mut named_until = 0;
    for range in ranges {
        if range.start >= range.end || range.start < named_until {
            return Err(SettleError::NotLeased(range));
        }
        named_until = range.end;
        let mut at = range.start;
        while at < range.end {
            match leased.range(..=at).next_back().map(|(&first, piece)| first + piece.len() as u64) {
                Some(end) if end > at => at = end,
                _ => return Err(SettleError::NotLeased(range)),
            }
        }
    }
    Ok(())
}

/// Removes the events of `range`, which are all there, and leaves what the pieces hold beside them.
pub(super) fn cut_out(pieces: &mut Pieces, range: SeqRange) -> Vec<(u64, EventSlice)> {
    let mut cut = Vec::new();
    let mut at = range.start;
    while at < range.end {
        let (&first, _) = pieces.range(..=at).next_back().expect("the range was checked");
        let piece = pieces.remove(&first).expect("it was just found");
        let end = first + piece.len() as u64;
        let until = end.min(range.end);
        let inner = (at - first) as usize..(until - first) as usize;
        if inner.start > 0 {
            pieces.insert(first, piece.slice(0..inner.start));
        }
        if inner.end < piece.len() {
            pieces.insert(until, piece.slice(inner.end..piece.len()));
        }
        cut.push((at, piece.slice(inner)));
        at = until;
    }
    cut
}
