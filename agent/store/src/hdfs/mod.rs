//! `hdfs://` through the client library hdfs-native, whose version is pinned because of the rules below.
//!
//! | what 0.14.8 does | what is done about it here or in [`crate::fs`] |
//! |---|---|
//! | `hsync` waits for ever when a datanode dies | deadline; the file is poison, its lease is recovered |
//! | calls to the namenode have no timeout | deadline; after one the client is made anew |
//! | two bad datanodes in one answer: panic | every call is a task of its own |
//! | after an error `close` may say Ok | a failed file is never touched again |
//! | no retry of a create that met a dead datanode | the sink creates another file |
//! | a client's tasks live as long as it was used | one client per name service and user, for the whole process |
//!
//! All of it runs on one small runtime of its own, which outlives every sink: a reload must not end its connections.

mod client;
mod config;

pub use client::{ConnectError, HdfsFiles, HdfsSettings, io_runtime};
pub use config::{ConfigError, HadoopConfig};
