//! `wal-inspect`: what a channel has on its disks, read-only.
fn main() {}
