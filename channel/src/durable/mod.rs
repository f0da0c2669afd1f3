//! The durable channel: a write-ahead log over several directories, an event queue of ranges, and threads.
//!
//! [`core`] is the whole machine without threads; this module is the thin shell that drives it: per directory one
//! thread for each write in flight and one for chores, a few readers; one clock. All of them sleep while nothing is to be
//! done. `docs/architecture.md` walks through a put and a take.

mod cache;
mod checkpoint;
mod compress;
mod core;
mod disks;
mod found;
mod handles;
pub mod inspect;
mod job;
mod open;
mod pays;
mod queue;
mod ranges;
mod read;
mod sections;
mod shell;
#[cfg(any(test, feature = "sim"))]
pub mod simulation;
mod writers;

pub use compress::Compress;
pub use disks::calibrate;
pub use open::{DamageReport, OnDamage, OpenError, Recovery};
pub use shell::{Devices, DurableChannel, DurableOptions, MemoryUse};
