//! Channels: where events wait, durably, between a source and a sink.
//!
//! This crate knows events, transactions, capacity, checkpoints and the in-memory event queue. It has never heard of
//! sockets, sinks or an async runtime: a [`Ticket`] is a plain `Future` that can also be waited on.
//!
//! ```
//! use channel::*;
//! use std::time::Duration;
//!
//! let scratch = tempfile::tempdir()?;
//! let options = || DurableOptions::new("c1", vec![scratch.path().join("data")]);
//! let channel = DurableChannel::open(options(), &Devices::new())?;
//!
//! let mut batch = EventBatch::new();
//! batch.push([("host", "web-1")], b"first");
//! batch.push([("host", "web-2")], b"second");
//! channel.producer().put(batch).wait()?; // durable now
//!
//! let limits = TakeLimits { events: 1, bytes: 1 << 20 };
//! let mut consumer = channel.consumer("sink");
//! let lease = consumer.take(limits, Duration::from_secs(9)).wait()?;
//! assert_eq!(lease.iter().next().unwrap().1.body(), b"first");
//! consumer.settle(vec![Settlement::delivered(lease.ranges())]).wait()?;
//! drop((consumer, channel));
//!
//! let channel = DurableChannel::open(options(), &Devices::new())?; // reopened: one event is left
//! assert_eq!(channel.stats().size_events, 1);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod api;
#[cfg(feature = "conformance")]
pub mod conformance;
mod durable;
mod event;
mod memory;
mod settlement;
mod ticket;
mod waiting;

pub use api::{
    Channel, ChannelStats, Consumer, Lease, LeasedSlice, Producer, PutError, PutReceipt, TakeError, TakeLimits,
    Unavailable,
};
pub use durable::inspect;
#[cfg(any(test, feature = "sim"))]
pub use durable::simulation;
pub use durable::{
    Compress, DamageReport, Devices, DurableChannel, DurableOptions, MemoryUse, OnDamage, OpenError, Recovery,
    calibrate,
};
pub use event::{EventBatch, EventRef, EventSlice, Existing, MalformedEvents};
pub use memory::{MemoryChannel, MemoryOptions, MemoryOptionsError};
pub use settlement::{NoteUpdate, Outcome, SeqRange, SettleError, Settlement};
pub use ticket::{Ticket, TicketSender};
