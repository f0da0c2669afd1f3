//! Channels: where events wait, durably, between a source and a sink.
//!
//! This crate knows events, transactions, capacity, checkpoints and the in-memory event queue. It has never heard of
//! sockets, sinks or an async runtime: a [`Ticket`] is a plain `Future` that can also be waited on.

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
};
pub use durable::inspect;
#[cfg(any(test, feature = "sim"))]
pub use durable::simulation;
pub use durable::{DamageReport, Devices, DurableChannel, DurableOptions, OnDamage, OpenError, Recovery};
pub use event::{EventBatch, EventRef, EventSlice, Existing, MalformedEvents};
pub use memory::{MemoryChannel, MemoryOptions, MemoryOptionsError};
pub use settlement::{NoteUpdate, Outcome, SeqRange, SettleError, Settlement};
pub use ticket::{Ticket, TicketSender};
