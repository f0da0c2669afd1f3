//! Every ceiling of this crate in one place, each with its reason.

/// Longest name of a file or directory, in bytes: Linux's NAME_MAX, and HDFS's default for the same thing.
pub const COMPONENT_BYTES_MAX: usize = 255;

/// Longest path below its file system, in bytes. A sink keeps a durable note with two such paths in it, and a note has
/// 4 KiB at most.
pub const PATH_BYTES_MAX: usize = 1500;

/// Longest path template, in bytes: far above any real one, far below what could make expansion slow.
pub const TEMPLATE_BYTES_MAX: usize = 8 * 1024;

/// Threads that one local store may keep busy at once. A hung disk takes them all, and no more than them.
pub const LOCAL_CALLS_MAX: usize = 64;

/// Bytes moved at a time when a settled part of a file is copied.
pub const COPY_BYTES: usize = 4 * 1024 * 1024;

/// Largest Hadoop configuration file that is read.
pub const HADOOP_XML_BYTES_MAX: u64 = 16 * 1024 * 1024;

const _: () = assert!(COMPONENT_BYTES_MAX < PATH_BYTES_MAX);
