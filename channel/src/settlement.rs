//! What becomes of taken events, and the small notes that sinks keep beside them.

use std::fmt;

use bytes::Bytes;

/// Events by sequence number, half open: `start <= seq < end`. Never empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SeqRange {
    pub start: u64,
    pub end: u64,
}

impl SeqRange {
    pub fn new(start: u64, end: u64) -> SeqRange {
        assert!(start < end, "a range of events is never empty: {start}..{end}");
        SeqRange { start, end }
    }

    /// Number of events.
    pub fn count(self) -> u64 {
        self.end - self.start
    }

    pub fn contains(self, seq: u64) -> bool {
        self.start <= seq && seq < self.end
    }
}

impl fmt::Display for SeqRange {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}..{}", self.start, self.end)
    }
}

/// The end of a take, for some of its events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The sink has them where it promised to put them; they never come again.
    Delivered,
    /// Rolled back: they return to the head of the queue, in order. Nothing is written.
    Returned,
    /// They are in the dead-letter channel, for the reason given.
    DeadLettered { reason: String },
    /// Given up by decision, for the reason given.
    Dropped { reason: String },
}

/// One outcome for the events of `ranges`, which may come from several leases of the same consumer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settlement {
    pub ranges: Vec<SeqRange>,
    pub outcome: Outcome,
    /// Notes that become durable in the same frame as the outcome: both or neither survive a crash.
    pub notes: Vec<NoteUpdate>,
}

impl Settlement {
    pub fn new(ranges: Vec<SeqRange>, outcome: Outcome) -> Settlement {
        Settlement { ranges, outcome, notes: Vec::new() }
    }

    pub fn delivered(ranges: Vec<SeqRange>) -> Settlement {
        Settlement::new(ranges, Outcome::Delivered)
    }

    pub fn returned(ranges: Vec<SeqRange>) -> Settlement {
        Settlement::new(ranges, Outcome::Returned)
    }
}

/// A durable note of a sink (a file it is about to create, the length it has settled). The latest note of an
/// (owner, key) wins; `None` removes it. A note is at most 4 KiB, and a channel keeps at most 16,384 of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoteUpdate {
    pub owner: String,
    pub key: String,
    pub note: Option<Bytes>,
}

/// Why a settlement or a note is not known to be durable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettleError {
    /// The caller's mistake: these events are not leased by this consumer. Nothing was changed.
    #[error("events {0} are not leased by this consumer; settle a lease once, and only its own events")]
    NotLeased(SeqRange),
    /// The caller's mistake: too long, or too many notes. Nothing was changed.
    #[error("note refused: {0}")]
    NoteRefused(String),
    /// The disk failed under it. The events may come again after a restart.
    #[error("the settlement could not be made durable: {0}")]
    Failed(String),
    #[error("the channel is closed")]
    Closed,
}

impl crate::ticket::Abandoned for Result<(), SettleError> {
    fn abandoned() -> Self {
        Err(SettleError::Closed)
    }
}
