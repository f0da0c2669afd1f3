//! The write-ahead log: bytes, frames, segments, disks and keys.
//!
//! This crate has never heard of events, configuration files, sockets or an async runtime. Its state machine
//! ([`log::Log`]) decides positions, nonces and durability; its I/O folder is the only place that touches disks.
//! `docs/format.md` specifies the bytes, `docs/recovery.md` what becomes of them after a crash.

pub mod calibrate;
pub mod checksum;
pub mod chore;
pub mod device;
pub mod flushes;
pub mod format;
pub mod frame_writer;
pub mod io;
pub mod keys;
pub mod limits;
pub mod log;
pub mod planted;
pub mod recover;
pub mod seal;
pub mod segment;
pub mod spans;
pub mod tuning;
