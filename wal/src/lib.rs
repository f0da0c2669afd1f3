//! Bytes, frames, segments, disks and keys.
