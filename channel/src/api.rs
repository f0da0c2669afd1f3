//! The channel trait: put, take, settle, and the handles that do it.
//!
//! One connection is one [`Producer`]; one sink is one [`Consumer`]. The batch is the unit at every border. Every
//! call that may have to wait returns a [`Ticket`] at once, so no caller's thread ever blocks on a disk.

use std::time::Duration;

use crate::event::{EventBatch, EventRef, EventSlice};
use crate::settlement::{NoteUpdate, SeqRange, SettleError, Settlement};
use crate::ticket::{Abandoned, Ticket};
use bytes::Bytes;

/// A channel, shared by its sources and sinks.
pub trait Channel: Send + Sync {
    /// A handle that puts. Its acknowledged transactions keep their order.
    fn producer(&self) -> Box<dyn Producer>;

    /// A handle that takes, under a name for messages and metrics. Dropping it returns all it has leased.
    fn consumer(&self, name: &str) -> Box<dyn Consumer>;

    /// The durable notes of `owner` as (key, note), by key. Empty on a channel that is not durable.
    fn notes(&self, owner: &str) -> Vec<(String, Bytes)>;

    /// Whether an acknowledged put survives a crash.
    fn is_durable(&self) -> bool;

    /// Most events in one put or one take.
    fn transaction_capacity(&self) -> usize;

    fn stats(&self) -> ChannelStats;

    /// Stops new puts and takes, makes what was accepted durable, and releases the files. Safe at any moment: what
    /// is leased but not settled comes again after the next start.
    fn close(&self) -> Ticket<Result<(), String>>;
}

/// Puts transactions into one channel.
pub trait Producer: Send {
    /// Puts the events of `batch` as one transaction, whole or not at all. While the channel is full this waits up
    /// to its `keep-alive`. `Ok` means durable (on a durable channel). Dropping the ticket cancels nothing.
    fn put(&mut self, batch: EventBatch) -> Ticket<Result<PutReceipt, PutError>>;

    /// As [`put`](Producer::put), for a thread that has nothing to do meanwhile: it may do the work of the put itself,
    /// instead of waking another thread for it and being woken by that one. Not for an async worker, and no gain beside
    /// many other producers, whose puts a thread of the channel joins.
    fn put_and_wait(&mut self, batch: EventBatch) -> Result<PutReceipt, PutError> {
        self.put(batch).wait()
    }
}

/// Takes events from one channel and says what became of them. Many leases may be open at once.
pub trait Consumer: Send {
    /// Leases up to `limits` events from the head, as soon as there is at least one. An empty lease means that
    /// `wait` passed without an event.
    fn take(&mut self, limits: TakeLimits, wait: Duration) -> Ticket<Result<Lease, TakeError>>;

    /// Says what became of leased events, all of `settlements` or nothing. The ticket resolves when it is durable;
    /// taking may go on meanwhile.
    fn settle(&mut self, settlements: Vec<Settlement>) -> Ticket<Result<(), SettleError>>;

    /// Makes notes durable without settling anything.
    fn note(&mut self, notes: Vec<NoteUpdate>) -> Ticket<Result<(), SettleError>>;
}

/// Where a put went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PutReceipt {
    /// The sequence numbers of the events; `None` for an empty batch.
    pub range: Option<SeqRange>,
}

/// Why a put was not acknowledged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PutError {
    /// Back-pressure, the sender should try again: nothing was written.
    #[error("channel {channel} is full: {detail}")]
    Full { channel: String, detail: String },
    /// The caller's or the configuration's mistake: nothing was written, and trying again cannot help.
    #[error("{events} events in one transaction; channel {channel} has transactionCapacity = {limit}")]
    TooManyEvents { channel: String, events: usize, limit: usize },
    #[error("a transaction of {bytes} bytes is too large for channel {channel}, whose limit is {limit} bytes")]
    TooLarge { channel: String, bytes: usize, limit: usize },
    /// The disk failed under it. Whether the events survive is unknown: a sender that tries again may duplicate.
    #[error("channel {channel} could not make the events durable: {cause}")]
    Failed { channel: String, cause: String },
    #[error("the channel is closed")]
    Closed,
}

/// Why a take has no events.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TakeError {
    /// All that could be taken was taken, and there are events that their disk does not give out. Nothing is lost, and
    /// `ChannelStats::unavailable` says more.
    #[error("channel {channel} cannot read {range}: {cause}")]
    Unreadable { channel: String, range: SeqRange, cause: String },
    #[error("the channel is closed")]
    Closed,
}

/// How much one take may lease. Both limits hold; one event is leased even when it alone exceeds `bytes`.
#[derive(Debug, Clone, Copy)]
pub struct TakeLimits {
    pub events: usize,
    pub bytes: usize,
}

/// Events out on lease, in channel order. Drop the slices once they are copied: the ranges are all that is needed
/// to settle, and a rollback reads again.
#[derive(Debug, Default)]
pub struct Lease {
    pub slices: Vec<LeasedSlice>,
}

/// Consecutive events of one transaction.
#[derive(Debug, Clone)]
pub struct LeasedSlice {
    /// Sequence number of the first event; the others follow it.
    pub first_seq: u64,
    pub events: EventSlice,
}

impl LeasedSlice {
    pub fn range(&self) -> SeqRange {
        SeqRange::new(self.first_seq, self.first_seq + self.events.len() as u64)
    }
}

impl Lease {
    pub fn is_empty(&self) -> bool {
        self.slices.is_empty()
    }

    pub fn event_count(&self) -> usize {
        self.slices.iter().map(|slice| slice.events.len()).sum()
    }

    /// The leased events, neighbours joined.
    pub fn ranges(&self) -> Vec<SeqRange> {
        let mut ranges: Vec<SeqRange> = Vec::new();
        for range in self.slices.iter().map(LeasedSlice::range) {
            match ranges.last_mut() {
                Some(last) if last.end == range.start => last.end = range.end,
                _ => ranges.push(range),
            }
        }
        ranges
    }

    /// Every event with its sequence number.
    pub fn iter(&self) -> impl Iterator<Item = (u64, EventRef<'_>)> {
        self.slices.iter().flat_map(|slice| (slice.first_seq..).zip(slice.events.iter()))
    }
}

/// Counters since the channel was opened, and its fill now.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ChannelStats {
    /// Events queued, leased or reserved, as Flume's `ChannelSize` counts.
    pub size_events: u64,
    pub capacity_events: u64,
    /// The larger of the event fill and the byte fill, in percent.
    pub fill_percent: f64,
    pub leased_events: u64,
    /// Bytes of frames on disk that are not yet reclaimed.
    pub disk_bytes: u64,
    pub put_attempt_events: u64,
    pub put_success_events: u64,
    pub take_attempts: u64,
    pub take_success_events: u64,
    pub dead_lettered_events: u64,
    pub dropped_events: u64,
    /// Events delivered out of their global order because a disk stalled or could not be read.
    pub order_relaxed_events: u64,
    pub put_errors: u64,
    pub take_errors: u64,
    pub checkpoint_errors: u64,
    /// Directories that are written with threads because io_uring is denied.
    pub rings_denied: u64,
    /// A disk of the channel has failed and is fenced, or does not give out all that it holds.
    pub unhealthy: bool,
    /// Durable events that cannot be taken now, by disk. They count in `size_events`, and nothing is lost: they come once
    /// their disk gives them out.
    pub unavailable: Vec<Unavailable>,
}

/// Events that a disk holds and does not give out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unavailable {
    /// The flush domain.
    pub disk: String,
    /// Since when, in milliseconds of the epoch.
    pub since_ms: u64,
    /// It answers no read, or only with errors, so that its events are passed by without being asked for.
    pub away: bool,
    /// Events met in a take that are tried again every second. There may be more of them behind.
    pub events: u64,
    /// Events in frames that are not what was written. They wait for the next start.
    pub damaged_events: u64,
    pub cause: String,
}

impl Abandoned for Result<PutReceipt, PutError> {
    fn abandoned() -> Self {
        Err(PutError::Closed)
    }
}

impl Abandoned for Result<Lease, TakeError> {
    fn abandoned() -> Self {
        Err(TakeError::Closed)
    }
}

impl Abandoned for Result<(), String> {
    fn abandoned() -> Self {
        Ok(())
    }
}
