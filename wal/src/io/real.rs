//! Real file systems: direct I/O where it is taken, the page cache with syncs where it is not.
//!
//! Promises that a write reported durable was synced by the kernel (`RWF_DSYNC` with direct I/O, `fdatasync`
//! otherwise), and that reads for recovery come from the disk. What a file system promises and does not keep is
//! outside of it (`docs/recovery.md`, "What cannot be promised").

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Advice, OFlags};
use rustix::io::ReadWriteFlags;

use super::buffer::Buffer;
use super::{Access, Dir, File};
use crate::limits::PAGE;
use crate::planted::{self, Bug};

/// How files are read and written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// `O_DIRECT`, each write made durable with `RWF_DSYNC`, many at once from one thread through io_uring.
    Uring,
    /// `O_DIRECT`, each write made durable with `RWF_DSYNC`, a thread for each.
    Direct,
    /// Through the page cache, with `fdatasync` after each write: network and overlay file systems, tmpfs.
    Buffered,
}

impl Backend {
    pub const ALL: [Backend; 3] = [Backend::Uring, Backend::Direct, Backend::Buffered];

    /// As configurations and commands say it.
    pub fn name(self) -> &'static str {
        match self {
            Backend::Uring => "io_uring",
            Backend::Direct => "direct",
            Backend::Buffered => "buffered",
        }
    }

    /// The backend that is called `name`.
    pub fn named(name: &str) -> Option<Backend> {
        Backend::ALL.into_iter().find(|backend| backend.name() == name)
    }
}

/// A directory of a real file system.
#[derive(Debug)]
pub struct RealDir {
    path: PathBuf,
    backend: Backend,
}

pub(super) const LOCK: &str = "lock";
const PROBE: &str = "probe.new";

impl RealDir {
    /// Opens `path`, creating it (not its parents' durability: the directory is empty until an identity is in it).
    /// `wanted` of `None` probes for direct I/O; whether io_uring is allowed, [`super::uring::Ring::new`] says.
    pub fn open_or_create(path: &Path, wanted: Option<Backend>) -> io::Result<RealDir> {
        fs::create_dir_all(path)?;
        if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            fs::File::open(parent)?.sync_all()?;
        }
        RealDir::open(path, wanted, true)
    }

    /// Opens an existing directory, writing nothing.
    pub fn open_read_only(path: &Path) -> io::Result<RealDir> {
        RealDir::open(path, Some(Backend::Buffered), false)
    }

    /// `path` as it is, perhaps not there: nothing is made until something is written.
    pub fn untouched(path: &Path) -> RealDir {
        RealDir { path: path.to_owned(), backend: Backend::Buffered }
    }

    fn open(path: &Path, wanted: Option<Backend>, may_write: bool) -> io::Result<RealDir> {
        if !fs::metadata(path)?.is_dir() {
            return Err(io::Error::new(io::ErrorKind::NotADirectory, format!("{} is not a directory", path.display())));
        }
        let mut dir = RealDir { path: path.to_owned(), backend: wanted.unwrap_or(Backend::Buffered) };
        if wanted.is_none() && may_write {
            dir.backend = dir.probe()?;
        }
        Ok(dir)
    }

    pub fn backend(&self) -> Backend {
        self.backend
    }

    /// The block device (or other flush domain) behind the directory.
    pub fn device_number(&self) -> io::Result<u64> {
        Ok(fs::metadata(&self.path)?.dev())
    }

    /// Whether what is written here is nowhere but in memory.
    pub fn is_in_memory(&self) -> io::Result<bool> {
        const TMPFS: i64 = 0x0102_1994;
        const RAMFS: i64 = 0x8584_58f6;
        let kind = rustix::fs::statfs(&self.path)?.f_type;
        Ok([TMPFS, RAMFS].contains(&kind))
    }

    /// Whether direct, synchronous writes are taken here.
    fn probe(&self) -> io::Result<Backend> {
        let path = self.path.join(PROBE);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let direct = RealDir { path: self.path.clone(), backend: Backend::Direct };
        let page = Buffer::zeroed(PAGE)?;
        let outcome = direct.create(PROBE).and_then(|file| file.write_durable_at(&page, 0));
        let removed = fs::remove_file(&path);
        match outcome {
            Ok(()) => removed.map(|()| Backend::Uring),
            Err(error) => match error.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
                Some(rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP) => Ok(Backend::Buffered),
                // A full disk says nothing about direct I/O; opening with it worked, or INVAL would have come first.
                Some(rustix::io::Errno::NOSPC | rustix::io::Errno::DQUOT) => Ok(Backend::Uring),
                _ => Err(error),
            },
        }
    }

    fn flags(&self) -> i32 {
        let mut flags = OFlags::NOFOLLOW | OFlags::CLOEXEC;
        if self.backend != Backend::Buffered {
            flags |= OFlags::DIRECT;
        }
        flags.bits().cast_signed()
    }

    fn wrap(&self, file: fs::File) -> Arc<dyn File> {
        Arc::new(RealFile { file, backend: self.backend })
    }
}

impl Dir for RealDir {
    fn name(&self) -> String {
        self.path.display().to_string()
    }

    fn list(&self) -> io::Result<Vec<String>> {
        // Names that are not UTF-8 are not ours.
        fs::read_dir(&self.path)?
            .filter_map(|entry| entry.map(|entry| entry.file_name().into_string().ok()).transpose())
            .collect()
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let mut options = fs::OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o600).custom_flags(self.flags());
        Ok(self.wrap(options.open(self.path.join(name))?))
    }

    fn open(&self, name: &str, access: Access) -> io::Result<Arc<dyn File>> {
        let mut options = fs::OpenOptions::new();
        options.read(true).write(access == Access::ReadWrite);
        // Without NONBLOCK a FIFO under one of our names would hang the start.
        options.custom_flags(self.flags() | OFlags::NONBLOCK.bits().cast_signed());
        let file = options.open(self.path.join(name))?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::other("not a regular file"));
        }
        Ok(self.wrap(file))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path.join(from), self.path.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path.join(name))
    }

    fn sync(&self) -> io::Result<()> {
        fs::File::open(&self.path)?.sync_all()
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(&self.path)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    fn lock(&self) -> io::Result<Box<dyn Send + Sync>> {
        let mut options = fs::OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        options.custom_flags((OFlags::NOFOLLOW | OFlags::CLOEXEC).bits().cast_signed());
        let file = options.open(self.path.join(LOCK))?;
        match file.try_lock() {
            Ok(()) => Ok(Box::new(Locked { file })),
            Err(fs::TryLockError::WouldBlock) => Err(io::ErrorKind::WouldBlock.into()),
            Err(fs::TryLockError::Error(error)) => Err(error),
        }
    }
}

/// The lock of a directory, until it is dropped.
struct Locked {
    file: fs::File,
}

impl Drop for Locked {
    fn drop(&mut self) {
        // Closing is not enough: a process that another thread is just starting has the file open until it runs its program.
        if let Err(error) = self.file.unlock() {
            tracing::warn!(%error, "a directory stays locked until this process ends");
        }
    }
}

#[derive(Debug)]
struct RealFile {
    file: fs::File,
    backend: Backend,
}

impl File for RealFile {
    fn size(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < bytes.len() {
            match self.file.read_at(&mut bytes[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(read) => done += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    fn sync_range(&self, _offset: u64, _len: u64) -> io::Result<()> {
        self.file.sync_data()
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_all()
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn write_durable_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        if planted::is(Bug::SkipDataSync) {
            return self.write_at(bytes, offset);
        }
        if self.backend == Backend::Buffered {
            self.file.write_all_at(bytes, offset)?;
            return self.file.sync_data();
        }
        let mut done = 0;
        while done < bytes.len() {
            let rest = [io::IoSlice::new(&bytes[done..])];
            // Only the rest of a short write is written again, with the same bytes: its nonce is not used twice.
            match rustix::io::pwritev2(self.file.as_fd(), &rest, offset + done as u64, ReadWriteFlags::DSYNC) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => done += written,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.file.as_fd())
    }

    fn drop_cache(&self) -> io::Result<()> {
        if self.backend == Backend::Buffered {
            rustix::fs::fadvise(&self.file, 0, None, Advice::DontNeed)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_backends_write_durably_and_read_back() {
        let scratch = tempfile::tempdir().unwrap();
        for wanted in [None, Some(Backend::Buffered)] {
            let dir = RealDir::open_or_create(&scratch.path().join(format!("{wanted:?}")), wanted).unwrap();
            let file = dir.create("a").unwrap();
            let mut page = Buffer::zeroed(2 * PAGE).unwrap();
            page.fill(7);
            file.write_durable_at(&page, PAGE as u64).unwrap();
            let mut back = Buffer::zeroed(4 * PAGE).unwrap();
            assert_eq!(file.read_at(&mut back, 0).unwrap(), 3 * PAGE, "{:?}", dir.backend());
            assert!(back[..PAGE].iter().all(|&byte| byte == 0));
            assert!(back[PAGE..3 * PAGE].iter().all(|&byte| byte == 7));
        }
    }

    #[test]
    fn a_directory_is_locked_once() {
        let scratch = tempfile::tempdir().unwrap();
        let dir = RealDir::open_or_create(scratch.path(), None).unwrap();
        let guard = dir.lock().unwrap();
        assert_eq!(dir.lock().err().map(|error| error.kind()), Some(io::ErrorKind::WouldBlock));
        drop(guard);
        dir.lock().unwrap();
    }

    #[test]
    fn a_lock_ends_when_it_is_dropped_although_a_process_that_is_being_started_has_its_file() {
        let scratch = tempfile::tempdir().unwrap();
        let dir = RealDir::open_or_create(scratch.path(), None).unwrap();
        let file = fs::File::create(scratch.path().join(LOCK)).unwrap();
        file.try_lock().unwrap();
        // As a fork has it until it runs another program.
        let inherited = file.try_clone().unwrap();
        drop(Locked { file });
        dir.lock().unwrap();
        drop(inherited);
    }

    #[test]
    fn what_is_not_a_regular_file_is_refused_without_waiting() {
        let scratch = tempfile::tempdir().unwrap();
        let dir = RealDir::open_or_create(scratch.path(), None).unwrap();
        fs::create_dir(scratch.path().join("segment-x")).unwrap();
        assert!(dir.open("segment-x", Access::Read).is_err());
        std::os::unix::fs::symlink("/dev/zero", scratch.path().join("link")).unwrap();
        assert!(dir.open("link", Access::Read).is_err());
    }
}
