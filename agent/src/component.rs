//! The contract between the agent and its components: sources, sinks, channels.
//!
//! A kind of component is one folder (or file) plus one line in the table of its directory (`sources/mod.rs` …): an
//! [`Entry`] with its alias, Flume's class name, its keys, and `build`. The life of a component:
//!
//! ```text
//! build(&Settings)   no side effects: `validate` does it too      -> Result<Box<dyn Source>, Refused>
//! start(&context)    binds, connects; tried again every 3 s        -> Result<(), ComponentError>
//! source: run        until it fails or `context.stop` is requested; stops accepting, finishes what it has
//! sink:   process    one round of take → deliver → settle, called again and again
//! sink:   stop       makes what it has durable, settles it
//! ```
//!
//! Components never block a thread: they await tickets, and leave disks to pools. Payloads never reach a log.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use channel::{Channel, Consumer, Devices, EventBatch, Lease, TakeError, TakeLimits};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::dead_letters::Graveyard;
use crate::key_watch::KeyWatch;

pub use crate::config::settings::{Default as KeyDefault, Key, Kind, Refused, Setting, Settings, Status};
pub use crate::intake::{AcceptError, Everywhere, Intake, IntakePlan, Interceptor, NamedChannel, Route, Selector};
pub use crate::telemetry::counters::{SinkCounters, SourceCounters};

pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// One line of a table of components. `alias` matches in any case, `class` exactly, as in Flume.
pub struct Entry<Built> {
    pub alias: &'static str,
    pub class: &'static str,
    /// What it does, in one sentence.
    pub doc: &'static str,
    pub keys: &'static [Key],
    /// Reads the settings, which were compared with `keys` before. No side effects.
    pub build: fn(&Settings) -> Result<Built, Refused>,
}

pub type SourceEntry = Entry<Box<dyn Source>>;
pub type SinkEntry = Entry<Box<dyn Sink>>;
pub type ChannelEntry = Entry<Box<dyn OpenChannel>>;
pub type InterceptorEntry = Entry<Box<dyn Interceptor>>;

/// Brings events in.
pub trait Source: Send {
    /// Its batch size as (key, events), to be compared with the channels' `transactionCapacity`.
    fn batch_size(&self) -> Option<(&'static str, usize)> {
        None
    }

    /// Binds its port, opens its files. An error is logged, and it is called again after three seconds, as in Flume.
    fn start<'a>(&'a mut self, context: &'a SourceContext) -> BoxFuture<'a, Result<(), ComponentError>>;

    /// Runs until `context.stop` is requested, then stops accepting, answers what it has, and returns. An error
    /// means that it cannot go on; it is logged, and the source stays stopped.
    fn run(self: Box<Self>, context: SourceContext) -> BoxFuture<'static, Result<(), ComponentError>>;
}

/// Brings events out.
pub trait Sink: Send {
    /// Its batch size as (key, events), to be compared with the channel's `transactionCapacity`.
    fn batch_size(&self) -> Option<(&'static str, usize)> {
        None
    }

    /// What it cannot do on a channel that forgets, for `validate`.
    fn lost_without_durable_channel(&self) -> Option<&'static str> {
        None
    }

    /// Connects, reads the notes of an earlier run. An error is logged, and it is called again after three seconds.
    fn start<'a>(&'a mut self, context: &'a SinkContext) -> BoxFuture<'a, Result<(), ComponentError>>;

    /// One round: take (by `context.take`), deliver, settle. After an error the runner waits five seconds; the sink
    /// has settled or returned what it took.
    fn process<'a>(
        &'a mut self,
        context: &'a SinkContext,
        consumer: &'a mut dyn Consumer,
    ) -> BoxFuture<'a, Result<Progress, SinkError>>;

    /// Finishes: makes what it holds durable and settles it. What is not settled comes again.
    fn stop<'a>(
        self: Box<Self>,
        context: &'a SinkContext,
        consumer: &'a mut dyn Consumer,
    ) -> BoxFuture<'a, Result<(), ComponentError>>;
}

/// A channel that was configured but not opened. Opening it has side effects.
pub trait OpenChannel: Send {
    fn transaction_capacity(&self) -> usize;

    /// Whether an acknowledged event survives a crash, for `validate`.
    fn is_durable(&self) -> bool;

    /// Opens or creates it. May block on disks: the supervisor calls it on a blocking thread.
    fn open(self: Box<Self>, devices: &Arc<Devices>) -> Result<Opened, ComponentError>;
}

/// A channel that is open.
pub struct Opened {
    pub channel: Arc<dyn Channel>,
    /// Where its sinks put events that they can never write; durable channels have one.
    pub graveyard: Option<Graveyard>,
    /// Sees that its key was rotated; encrypted channels have one.
    pub key_watch: Option<KeyWatch>,
}

/// What one round of a sink came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Events were delivered or are on their way: go on at once.
    Worked,
    /// The take waited in vain: go on at once, the next take waits again.
    Idle,
    /// There may be events, but now is not the time (the store is slow): Flume's back-off, 1 s more each time up to 5 s.
    BackOff,
}

/// A component cannot start or go on. The message names what, where and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ComponentError(pub String);

/// A round of a sink failed. What it took was returned to the channel.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SinkError {
    #[error(transparent)]
    Take(#[from] TakeError),
    #[error(transparent)]
    Settle(#[from] channel::SettleError),
    /// The store refused or failed; the message names it.
    #[error("{0}")]
    Delivery(String),
}

/// What a source is given.
#[derive(Clone)]
pub struct SourceContext {
    pub name: String,
    pub counters: Arc<SourceCounters>,
    pub stop: Stop,
    /// The bytes in flight of all sources together.
    pub budget: Budget,
    plan: Arc<IntakePlan>,
}

impl SourceContext {
    pub fn new(name: &str, plan: Arc<IntakePlan>, stop: Stop, budget: Budget) -> SourceContext {
        SourceContext { name: name.to_owned(), counters: Arc::clone(&plan.counters), stop, budget, plan }
    }

    /// A context over these channels, without interceptors, for tests of sources. Keep the `Stopper`: dropping it
    /// requests the stop.
    pub fn over(channels: Vec<Arc<dyn Channel>>) -> (SourceContext, Stopper) {
        let named = |(index, channel)| NamedChannel { name: format!("c{}", index + 1), channel };
        let plan = IntakePlan {
            selector: Box::new(Everywhere::new(channels.len())),
            channels: channels.into_iter().enumerate().map(named).collect(),
            interceptors: Vec::new(),
            counters: Arc::default(),
        };
        let (stopper, stop) = Stop::pair();
        (SourceContext::new("r1", Arc::new(plan), stop, Budget::new(64 << 20)), stopper)
    }

    /// The way in for one connection, which keeps its order.
    pub fn open_intake(&self) -> Intake {
        Intake::new(&self.plan)
    }
}

/// What a sink is given.
#[derive(Clone)]
pub struct SinkContext {
    pub name: String,
    pub counters: Arc<SinkCounters>,
    pub stop: Stop,
    /// The channel it takes from, for its notes and limits.
    pub channel: NamedChannel,
    /// Where events go that the sink can never write. `None` where there is no data directory for them: such an event
    /// then stays at the head of its channel, as in Flume, and nothing is lost.
    pub dead_letters: Option<Arc<dyn DeadLetters>>,
}

/// The durable channel beside a channel, for events that its sink can never write.
pub trait DeadLetters: Send + Sync {
    /// Stores `events` with the reason. The sink settles them only after `Ok`, which means durable. An error says
    /// that there is no room, or that the disk failed: the sink returns the events and stops visibly.
    fn bury(&self, events: EventBatch, reason: &str) -> BoxFuture<'static, Result<(), String>>;
}

impl SinkContext {
    /// A context for tests of sinks. Keep the `Stopper`: dropping it requests the stop.
    pub fn over(channel: Arc<dyn Channel>) -> (SinkContext, Stopper) {
        let (stopper, stop) = Stop::pair();
        let channel = NamedChannel { name: "c1".to_owned(), channel };
        let name = "k1".to_owned();
        (SinkContext { name, counters: Arc::default(), stop, channel, dead_letters: None }, stopper)
    }

    /// Takes as soon as there is an event; an empty lease when `wait` passed or the stop was requested. Counts the
    /// batch (empty, underflow, complete). After a requested stop nothing more should be taken.
    pub async fn take(
        &self,
        consumer: &mut dyn Consumer,
        limits: TakeLimits,
        wait: Duration,
    ) -> Result<Lease, TakeError> {
        if self.stop.is_requested() {
            return Ok(Lease::default());
        }
        // A ticket that is dropped here may still lease events; they return when the consumer is dropped, which a
        // stop always ends in.
        let lease = tokio::select! {
            lease = consumer.take(limits, wait) => lease,
            () = self.stop.requested() => return Ok(Lease::default()),
        };
        match &lease {
            Ok(lease) => self.counters.count_batch(lease.event_count(), limits.events),
            Err(_) => self.counters.channel_read_fail.add(1),
        }
        lease
    }
}

/// Tells a component to stop. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Stop(watch::Receiver<bool>);

/// Requests the stop, also when it is dropped.
#[derive(Debug)]
pub struct Stopper(watch::Sender<bool>);

impl Stop {
    pub fn pair() -> (Stopper, Stop) {
        let (sender, receiver) = watch::channel(false);
        (Stopper(sender), Stop(receiver))
    }

    pub fn is_requested(&self) -> bool {
        *self.0.borrow() || self.0.has_changed().is_err()
    }

    /// Resolves when the stop is requested.
    pub async fn requested(&self) {
        let mut receiver = self.0.clone();
        // An error means that the stopper is gone, which requests the stop as well.
        let _gone = receiver.wait_for(|requested| *requested).await.is_err();
    }
}

impl Stopper {
    pub fn request(&self) {
        self.0.send_replace(true);
    }
}

/// One byte budget for all that sources hold in memory and have not yet handed to a channel. Waiting for it stops
/// the reading: back-pressure, never a growing queue.
#[derive(Debug, Clone)]
pub struct Budget {
    units: Arc<Semaphore>,
    total: u32,
}

/// Bytes of the budget; dropping it gives them back.
pub type BudgetShare = OwnedSemaphorePermit;

/// Semaphores count to 2^32; a unit of 1 KiB carries the budget to 4 TiB.
const BUDGET_UNIT_BYTES: u64 = 1024;

impl Budget {
    pub fn new(bytes: u64) -> Budget {
        let total = u32::try_from(bytes / BUDGET_UNIT_BYTES).unwrap_or(u32::MAX).clamp(1, 1 << 28);
        Budget { units: Arc::new(Semaphore::new(total as usize)), total }
    }

    /// Waits until `bytes` are free. More than the whole budget waits for the whole: one request at a time.
    pub async fn acquire(&self, bytes: usize) -> BudgetShare {
        let units = u32::try_from((bytes as u64).div_ceil(BUDGET_UNIT_BYTES)).unwrap_or(u32::MAX).min(self.total);
        let share = Arc::clone(&self.units).acquire_many_owned(units).await;
        share.expect("the budget is never closed")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stop_is_seen_by_every_clone_also_when_the_stopper_is_dropped() {
        let (stopper, stop) = Stop::pair();
        assert!(!stop.is_requested());
        stopper.request();
        stop.clone().requested().await;
        assert!(stop.is_requested());
        let (stopper, stop) = Stop::pair();
        drop(stopper);
        stop.requested().await;
        assert!(stop.is_requested());
    }

    #[tokio::test]
    async fn a_request_larger_than_the_budget_takes_all_of_it_instead_of_waiting_for_ever() {
        let budget = Budget::new(4096);
        let share = budget.acquire(1 << 20).await;
        assert_eq!(budget.units.available_permits(), 0);
        drop(share);
        assert_eq!(budget.units.available_permits(), 4);
    }
}
