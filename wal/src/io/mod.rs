//! Disks, as the log needs them: directories of flat files, positioned reads and writes, syncs.
//!
//! Promises that the rest of the crate can run on a real file system (`real`) or on a simulated one (`sim`) without
//! knowing which. Creation in the one safe order is in `durable`; nothing else renames or creates files of the log.

mod arena;
pub mod buffer;
pub mod durable;
pub mod host;
pub(crate) mod pour;
#[cfg(any(test, feature = "sim"))]
pub mod power;
pub mod real;
#[cfg(any(test, feature = "sim"))]
pub mod sim;
pub mod uring;

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

/// A directory with flat files. Names are ASCII without separators.
pub trait Dir: Send + Sync + fmt::Debug {
    /// For messages: the path.
    fn name(&self) -> String;
    /// The names present, in no order.
    fn list(&self) -> io::Result<Vec<String>>;
    /// A new, empty file, opened for reading and writing. It must not exist.
    fn create(&self, name: &str) -> io::Result<Arc<dyn File>>;
    /// An existing regular file.
    fn open(&self, name: &str, access: Access) -> io::Result<Arc<dyn File>>;
    /// Replaces `to` if it exists.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes creations, renames and removals durable.
    fn sync(&self) -> io::Result<()>;
    /// Bytes a process without privileges may still use on the file system.
    fn free_bytes(&self) -> io::Result<u64>;
    /// Locks the directory against other processes until the guard is dropped; `WouldBlock` when it is taken.
    fn lock(&self) -> io::Result<Box<dyn Send + Sync>>;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    Read,
    ReadWrite,
}

/// An open file. Offsets and lengths of reads and writes are whole pages, buffers come from [`buffer::Buffer`].
pub trait File: Send + Sync + fmt::Debug {
    /// Bytes of the file.
    fn size(&self) -> io::Result<u64>;
    /// Fills `bytes` from `offset`; shorter only at the end of the file.
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes all of `bytes`. Durable only after a sync.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Makes what was written to this range durable. After an error nothing is known, and it is never asked again.
    fn sync_range(&self, offset: u64, len: u64) -> io::Result<()>;
    /// Makes all that was written to the file durable, its length included.
    fn sync(&self) -> io::Result<()>;
    /// Makes all that was written to the file durable, within the length it has had for long.
    fn sync_data(&self) -> io::Result<()>;

    /// Writes all of `bytes` and returns when they are durable.
    fn write_durable_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_at(bytes, offset)?;
        if crate::planted::is(crate::planted::Bug::SkipDataSync) {
            return Ok(());
        }
        let synced = self.sync_range(offset, bytes.len() as u64);
        if synced.is_err() && crate::planted::is(crate::planted::Bug::RetryFailedSync) {
            return self.sync_range(offset, bytes.len() as u64);
        }
        synced
    }

    /// Drops cached pages, so that the next read tells what the disk has. Nothing to do where reads bypass a cache.
    fn drop_cache(&self) -> io::Result<()>;

    /// What the kernel knows it by, for [`uring`]; `None` where there is no kernel below.
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}
