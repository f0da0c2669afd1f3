//! Where sinks write: file systems behind one trait, and what is written there.
//!
//! ```text
//! sink ── event ──► template  (which directory, which file)
//!      ── event ──► serializer, sequence_file  (bytes of one file)
//!      ── bytes ──► fs::Store  (deadline on every call) ──► local  file://
//!                                                       └─► hdfs   hdfs://, feature `hdfs`
//! ```
//!
//! The crate knows events and files. When a file is rolled, what is settled and what is healed after a crash are
//! left to the sinks.

pub mod clock;
pub mod fs;
#[cfg(feature = "hdfs")]
pub mod hdfs;
pub mod limits;
pub mod local;
pub mod location;
pub mod sequence_file;
pub mod serializer;
pub mod template;
