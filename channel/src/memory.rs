//! The memory channel: Flume's `memory`, events in RAM only.
//!
//! Promises Flume's capacities, waits and words for a full channel, order by sequence number also after a rollback,
//! and that no thread blocks: a put without room and a take without events wait as entries in the queue. What it
//! holds is gone with the process. The rules are in [`queue`]; this is the lock, the clock and the handles around it.

mod limits;
mod pieces;
mod queue;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::api::{Channel, ChannelStats, Consumer, Lease, Producer, PutError, PutReceipt, TakeError, TakeLimits};
use crate::event::EventBatch;
use crate::settlement::{NoteUpdate, SettleError, Settlement};
use crate::ticket::Ticket;
use crate::waiting::{Alarm, Expire};
use limits::Limits;
use queue::{Answers, Arrival, ConsumerId, Queue};

/// How large a memory channel is. The default is Flume's.
#[derive(Debug, Clone)]
pub struct MemoryOptions {
    /// For messages.
    pub name: String,
    /// Most events, queued and leased.
    pub capacity: usize,
    /// Most events of one put or take, at most `capacity`.
    pub transaction_capacity: usize,
    /// How long a put waits for room.
    pub keep_alive: Duration,
    /// Most bytes of events; `None` is [`BYTE_CAPACITY_DEFAULT`](MemoryOptions::BYTE_CAPACITY_DEFAULT), and less than
    /// one slot of 100 bytes is no limit, as in Flume.
    pub byte_capacity: Option<u64>,
    /// The percentage of `byte_capacity` that bodies leave to headers.
    pub byte_capacity_buffer_percentage: u32,
}

impl MemoryOptions {
    /// Stands for Flume's "80 % of the heap": there is no heap size here to take a part of.
    pub const BYTE_CAPACITY_DEFAULT: u64 = 1 << 30;
}

impl Default for MemoryOptions {
    fn default() -> MemoryOptions {
        MemoryOptions {
            name: "memory".to_owned(),
            capacity: 100,
            transaction_capacity: 100,
            keep_alive: Duration::from_secs(3),
            byte_capacity: None,
            byte_capacity_buffer_percentage: 20,
        }
    }
}

/// Options that contradict each other.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MemoryOptionsError {
    #[error("channel {channel}: capacity and transactionCapacity must be at least 1")]
    Zero { channel: String },
    #[error(
        "channel {channel}: transactionCapacity = {transaction_capacity} is above capacity = {capacity}; lower the \
         first or raise the second"
    )]
    TransactionAboveCapacity { channel: String, transaction_capacity: usize, capacity: usize },
}

/// A channel in memory.
pub struct MemoryChannel {
    core: Arc<Core>,
}

impl MemoryChannel {
    pub fn new(options: MemoryOptions) -> Result<MemoryChannel, MemoryOptionsError> {
        let limits = Limits::new(&options)?;
        let core = Core {
            name: options.name,
            transaction_capacity: options.transaction_capacity,
            queue: Mutex::new(Queue::new(limits)),
            next_consumer: AtomicU64::new(0),
            alarm: Alarm::new(),
        };
        Ok(MemoryChannel { core: Arc::new(core) })
    }

    /// The message of the exception that Flume's memory channel throws where this one answers `error`: what a source
    /// tells its client.
    pub fn flume_message(error: &PutError) -> String {
        limits::flume_message(error)
    }
}

impl Channel for MemoryChannel {
    fn producer(&self) -> Box<dyn Producer> {
        Box::new(MemoryProducer { core: Arc::clone(&self.core) })
    }

    fn consumer(&self, _name: &str) -> Box<dyn Consumer> {
        let id = self.core.next_consumer.fetch_add(1, Ordering::Relaxed);
        Box::new(MemoryConsumer { core: Arc::clone(&self.core), id })
    }

    fn notes(&self, _owner: &str) -> Vec<(String, Bytes)> {
        Vec::new()
    }

    fn is_durable(&self) -> bool {
        false
    }

    fn transaction_capacity(&self) -> usize {
        self.core.transaction_capacity
    }

    fn stats(&self) -> ChannelStats {
        self.core.lock().stats()
    }

    fn close(&self) -> Ticket<Result<(), String>> {
        self.core.step(|queue, _, answers| queue.close(answers));
        Ticket::resolved(Ok(()))
    }
}

struct Core {
    name: String,
    transaction_capacity: usize,
    queue: Mutex<Queue>,
    next_consumer: AtomicU64,
    alarm: Alarm,
}

impl Core {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        // A panic under the lock is our own mistake; whoever drops a handle while it unwinds must not make it an abort.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One step of the machine; its callers are answered after the lock is free.
    fn step<T>(&self, step: impl FnOnce(&mut Queue, Instant, &mut Answers) -> T) -> T {
        let mut answers = Answers::default();
        let result = step(&mut self.lock(), Instant::now(), &mut answers);
        answers.give();
        result
    }

    /// A step that may leave somebody waiting.
    fn step_and_wait(self: &Arc<Core>, step: impl FnOnce(&mut Queue, Instant, &mut Answers)) {
        let deadline = self.step(|queue, now, answers| {
            step(queue, now, answers);
            queue.next_deadline()
        });
        if let Some(deadline) = deadline
            && let Err(error) = self.alarm.announce(deadline, self)
        {
            tracing::error!(channel = self.name, %error, "cannot start the thread that ends waits; nothing waits now");
            self.step(|queue, _, answers| queue.expire(None, answers));
        }
    }
}

impl Expire for Core {
    fn expire(&self, now: Instant) -> Option<Instant> {
        self.step(|queue, _, answers| {
            queue.expire(Some(now), answers);
            queue.next_deadline()
        })
    }
}

struct MemoryProducer {
    core: Arc<Core>,
}

impl Producer for MemoryProducer {
    fn put(&mut self, batch: EventBatch) -> Ticket<Result<PutReceipt, PutError>> {
        let (sender, ticket) = Ticket::pair();
        // Measured before the lock is taken.
        let arrival = Arrival::new(batch.freeze());
        self.core.step_and_wait(|queue, now, answers| queue.put(now, arrival, sender, answers));
        ticket
    }
}

struct MemoryConsumer {
    core: Arc<Core>,
    id: ConsumerId,
}

impl Consumer for MemoryConsumer {
    fn take(&mut self, limits: TakeLimits, wait: Duration) -> Ticket<Result<Lease, TakeError>> {
        let (sender, ticket) = Ticket::pair();
        self.core.step_and_wait(|queue, now, answers| queue.take(now, self.id, limits, wait, sender, answers));
        ticket
    }

    fn settle(&mut self, settlements: Vec<Settlement>) -> Ticket<Result<(), SettleError>> {
        Ticket::resolved(self.core.step(|queue, _, answers| queue.settle(self.id, &settlements, answers)))
    }

    fn note(&mut self, notes: Vec<NoteUpdate>) -> Ticket<Result<(), SettleError>> {
        let closed = self.core.lock().is_closed();
        Ticket::resolved(if closed { Err(SettleError::Closed) } else { limits::check_notes(&notes) })
    }
}

impl Drop for MemoryConsumer {
    fn drop(&mut self) {
        self.core.step(|queue, _, answers| queue.remove_consumer(self.id, answers));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answers_to_a_source_are_flumes() {
        let options = MemoryOptions { capacity: 3, transaction_capacity: 2, ..MemoryOptions::default() };
        let channel = MemoryChannel::new(options).unwrap();
        let mut batch = EventBatch::new();
        for _ in 0..3 {
            batch.push_body(b"x");
        }
        let error = channel.producer().put(batch).wait().unwrap_err();
        assert_eq!(
            MemoryChannel::flume_message(&error),
            "Put queue for MemoryTransaction of capacity 2 full, consider committing more frequently, increasing \
             capacity or increasing thread count"
        );
    }

    #[test]
    fn handles_outlive_the_channel_and_the_last_one_ends_it() {
        let channel = MemoryChannel::new(MemoryOptions::default()).unwrap();
        let (mut producer, mut consumer) = (channel.producer(), channel.consumer("sink"));
        let core = Arc::downgrade(&channel.core);
        drop(channel);
        let mut batch = EventBatch::new();
        batch.push_body(b"x");
        let limits = TakeLimits { events: 1, bytes: 1 };
        let first = consumer.take(limits, Duration::from_secs(3600));
        producer.put(batch).wait().unwrap();
        assert_eq!(first.wait().unwrap().event_count(), 1);
        let second = consumer.take(limits, Duration::from_secs(3600));
        drop(consumer);
        assert!(second.wait().unwrap().is_empty());
        drop(producer);
        assert!(core.upgrade().is_none(), "the alarm's thread does not keep an idle channel");
    }
}
