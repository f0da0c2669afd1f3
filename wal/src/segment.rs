//! Live segments of a log: which slots hold which frames, and where to start looking for an event.
//!
//! The index is sparse, one entry for about a mebibyte of frames, so a backlog costs far below a byte an event.

use std::sync::Arc;

use crate::format::frame::FrameHeader;
use crate::io::File;
use crate::seal::FrameKey;
use crate::spans::Spans;

/// Bytes of frames between two entries of the index. A frame with events that begins so far behind an entry has one of its
/// own.
pub const INDEX_STEP: u64 = 1 << 20;

/// One file of the log while it holds frames that may still be needed.
#[derive(Debug)]
pub struct Segment {
    pub ordinal: u64,
    pub slot: u64,
    pub len: u64,
    pub file: Arc<dyn File>,
    pub incarnations: Vec<Incarnation>,
    /// Events in it lie in `first_seq .. end_seq`; equal when there are none.
    pub first_seq: u64,
    pub end_seq: u64,
    /// Where the frames of the segment with the ordinal before this one ended, if the run that began this one wrote it.
    pub previous_end: u64,
    index: Vec<IndexEntry>,
    /// Exactly which events it holds.
    ranges: Spans,
}

/// The frames of one run in a segment.
#[derive(Debug, Clone)]
pub struct Incarnation {
    pub id: u64,
    /// Where its first frame starts.
    pub start: u64,
    /// Where its last frame ends; grows while it is written.
    pub end: u64,
    pub encrypted: bool,
    pub key: Option<Arc<FrameKey>>,
    /// Name of the channel key and salt that make `key`, for a checkpoint to remember.
    pub seal: Option<(String, [u8; 32])>,
    /// Bytes before `end` that never counted.
    pub holes: Vec<(u64, u64)>,
}

/// The frames between two entries of the index: what one read covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stretch {
    /// Its first frame, which has events.
    pub offset: u64,
    /// Where the next stretch begins, or the last frame ends.
    pub end: u64,
    /// Its events lie in `first_seq .. end_seq`.
    pub first_seq: u64,
    pub end_seq: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct IndexEntry {
    seq: u64,
    offset: u64,
}

impl Segment {
    pub fn new(ordinal: u64, slot: u64, len: u64, file: Arc<dyn File>) -> Segment {
        Segment {
            ordinal,
            slot,
            len,
            file,
            incarnations: Vec::new(),
            first_seq: 0,
            end_seq: 0,
            previous_end: 0,
            index: Vec::new(),
            ranges: Spans::default(),
        }
    }

    /// Takes note of a frame, in order of offsets.
    pub fn note(&mut self, header: &FrameHeader) {
        self.previous_end = self.previous_end.max(header.previous_end);
        if let Some(incarnation) = self.incarnations.last_mut()
            && incarnation.id == header.incarnation
        {
            incarnation.end = incarnation.end.max(header.end());
        }
        if header.seq_count == 0 {
            return;
        }
        if self.first_seq == self.end_seq {
            self.first_seq = header.first_seq;
        }
        self.end_seq = header.end_seq();
        self.ranges.push(header.first_seq, header.end_seq());
        if self.index.last().is_none_or(|last| header.offset - last.offset >= INDEX_STEP) {
            self.index.push(IndexEntry { seq: header.first_seq, offset: header.offset });
        }
    }

    /// The stretch of frames in which the event `seq` is.
    pub fn stretch_for(&self, seq: u64) -> Option<Stretch> {
        if seq < self.first_seq || seq >= self.end_seq {
            return None;
        }
        let after = self.index.partition_point(|entry| entry.seq <= seq);
        let first = self.index.get(after.saturating_sub(1))?;
        let written = self.incarnations.iter().map(|incarnation| incarnation.end).max().unwrap_or(self.len);
        let (end_seq, end) = self.index.get(after).map_or((self.end_seq, written), |next| (next.seq, next.offset));
        Some(Stretch { offset: first.offset, end: end.max(first.offset), first_seq: first.seq, end_seq })
    }

    /// The incarnation whose frames are at `offset`.
    pub fn incarnation_at(&self, offset: u64) -> Option<&Incarnation> {
        self.incarnations.iter().find(|incarnation| (incarnation.start..incarnation.end).contains(&offset))
    }

    /// Where reading goes on after a place that holds no frame: behind a hole, or at the next incarnation.
    pub fn skip(&self, offset: u64) -> Option<u64> {
        let holes = self.incarnations.iter().flat_map(|incarnation| incarnation.holes.iter());
        if let Some((_, end)) = holes.into_iter().find(|(start, end)| (*start..*end).contains(&offset)) {
            return Some(*end);
        }
        self.incarnations.iter().map(|incarnation| incarnation.start).filter(|start| *start > offset).min()
    }

    /// Exactly which events it holds: with one log they are one range, with several each frame may begin another.
    pub fn ranges(&self) -> &Spans {
        &self.ranges
    }

    /// The range of its events that holds `seq`.
    pub fn range_around(&self, seq: u64) -> Option<(u64, u64)> {
        if seq < self.first_seq || seq >= self.end_seq {
            return None;
        }
        self.ranges.iter().find(|(start, end)| (*start..*end).contains(&seq))
    }

    /// The first event that it holds from `seq` on.
    pub fn first_from(&self, seq: u64) -> Option<u64> {
        self.ranges.iter().find(|(_, end)| *end > seq).map(|(start, _)| start.max(seq))
    }

    /// The sparse index as (event, offset), for a checkpoint or a footer.
    pub(crate) fn index_entries(&self) -> impl Iterator<Item = (u64, u64)> {
        self.index.iter().map(|entry| (entry.seq, entry.offset))
    }

    /// Takes over what a checkpoint or a footer remembers.
    pub(crate) fn restore(&mut self, ranges: &[(u64, u64)], index: &[(u64, u64)]) {
        self.first_seq = ranges.first().map_or(0, |(start, _)| *start);
        self.end_seq = ranges.last().map_or(0, |(_, end)| *end);
        self.ranges = Spans::default();
        ranges.iter().for_each(|(start, end)| self.ranges.push(*start, *end));
        self.index = index.iter().map(|&(seq, offset)| IndexEntry { seq, offset }).collect();
    }

    /// Bytes of memory that the index takes.
    pub fn index_bytes(&self) -> usize {
        self.index.capacity() * size_of::<IndexEntry>() + self.ranges.bytes()
    }
}
