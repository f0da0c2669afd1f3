//! A disk in user space: a FUSE file with a memory behind it, on which a loop device stands. Its writes and flushes can
//! fail, hang or vanish, and in a power cut it loses what it took and was never asked to flush.
//!
//! ```text
//! channel ─► ext4 or xfs ─► loop device ─► the file `disk` (FUSE) ─► a thread of the prover ─► a file in /dev/shm
//! ```
//!
//! The thread that answers touches nothing but that file, so it never waits for a file system that waits for it.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request,
    WriteFlags,
};
use rustix::mount::{UnmountFlags, unmount};
use system_tests::events::Random;

/// The unit of lengths.
const BLOCK: u64 = 512;
const DISK: INodeNo = INodeNo(2);
const NAME: &str = "disk";
/// Nothing else writes the file, so the kernel may keep what it knows of it.
const KEEP: Duration = Duration::from_secs(3600);

/// Which requests a plan strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    Write,
    Flush,
}

/// How often a plan strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Times {
    Once,
    ForEver,
}

#[derive(Debug)]
struct Plan {
    request: Asked,
    /// Requests of the kind that still succeed.
    left: u64,
    times: Times,
}

/// A write that no flush has covered yet, and what was there before.
#[derive(Debug)]
struct Unflushed {
    offset: u64,
    before: Vec<u8>,
}

#[derive(Debug, Default)]
struct State {
    plan: Option<Plan>,
    is_gone: bool,
    is_frozen: bool,
    unflushed: Vec<Unflushed>,
    /// Requests that hang.
    waiting: u64,
    /// Requests that were answered with an error by plan.
    failed: u64,
    writes: u64,
    flushes: u64,
}

impl State {
    /// Whether this request fails.
    fn strikes(&mut self, request: Asked) -> bool {
        let Some(plan) = self.plan.as_mut().filter(|plan| plan.request == request) else { return false };
        if plan.left > 0 {
            plan.left -= 1;
            return false;
        }
        if plan.times == Times::Once {
            self.plan = None;
        }
        self.failed += 1;
        true
    }
}

#[derive(Debug)]
struct Shared {
    memory: File,
    len: u64,
    /// Bytes that are lost or kept together in a power cut.
    sector: usize,
    state: Mutex<State>,
    thawed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state once the disk answers, which may take for ever; an error when it is gone.
    fn answering(&self) -> Result<MutexGuard<'_, State>, Errno> {
        let mut state = self.lock();
        if state.is_frozen {
            state.waiting += 1;
            let hangs = self.thawed.wait_while(state, |state| state.is_frozen && !state.is_gone);
            state = hangs.unwrap_or_else(PoisonError::into_inner);
            state.waiting -= 1;
        }
        if state.is_gone { Err(Errno::EIO) } else { Ok(state) }
    }

    fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<usize, Errno> {
        let _answers = self.answering()?;
        self.memory.read_at(bytes, offset).map_err(|_| Errno::EIO)
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), Errno> {
        let mut state = self.answering()?;
        state.writes += 1;
        let fails = state.strikes(Asked::Write);
        // What failed may be there, or in part, or not.
        let len = if fails { bytes.len() / 2 * (state.failed % 3) as usize } else { bytes.len() };
        let mut before = vec![0; len];
        let there = self.memory.read_at(&mut before, offset).map_err(|_| Errno::EIO)?;
        before[there..].fill(0);
        self.memory.write_all_at(&bytes[..len], offset).map_err(|_| Errno::EIO)?;
        state.unflushed.push(Unflushed { offset, before });
        if fails { Err(Errno::EIO) } else { Ok(()) }
    }

    fn flush(&self) -> Result<(), Errno> {
        let mut state = self.answering()?;
        state.flushes += 1;
        if state.strikes(Asked::Flush) {
            return Err(Errno::EIO);
        }
        state.unflushed.clear();
        Ok(())
    }

    /// Loses any sectors that were not flushed: of ten `odds`, and each by itself.
    fn lose(&self, random: &mut Random) -> io::Result<u64> {
        let unflushed = std::mem::take(&mut self.lock().unflushed);
        // None, all, or any: what is torn most is not what goes wrong most.
        let odds = [0, 10, 1 + random.below(9)][random.below(3) as usize];
        let (mut kept, mut lost) = (HashSet::new(), 0);
        for write in unflushed.iter().rev() {
            for (index, before) in write.before.chunks(self.sector).enumerate() {
                let offset = write.offset + (index * self.sector) as u64;
                if kept.contains(&offset) {
                    continue;
                }
                if random.below(10) < odds {
                    self.memory.write_all_at(before, offset)?;
                    lost += 1;
                } else {
                    // What is older than what is kept is overwritten anyway.
                    kept.insert(offset);
                }
            }
        }
        Ok(lost)
    }
}

/// A disk and its faults.
#[derive(Debug)]
pub(crate) struct Disk {
    shared: Arc<Shared>,
    at: PathBuf,
    session: Option<BackgroundSession>,
}

impl Disk {
    /// A new disk of `len` bytes whose file is in `folder`, both in memory. A power cut keeps or loses whole sectors.
    pub(crate) fn create(len: u64, sector: usize, folder: &Path, name: &str) -> Result<Disk, String> {
        let at = folder.join(name);
        let failed = |error: io::Error| format!("no disk in user space: {error}");
        std::fs::create_dir_all(&at).map_err(failed)?;
        let memory = tempfile::tempfile_in(folder).map_err(failed)?;
        memory.set_len(len).map_err(failed)?;
        let shared = Arc::new(Shared { memory, len, sector, state: Mutex::default(), thawed: Condvar::new() });
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("penstock-proof".to_owned())];
        let session = fuser::spawn_mount(Front(Arc::clone(&shared)), &at, &config).map_err(failed)?;
        Ok(Disk { shared, at, session: Some(session) })
    }

    /// The file that stands for the disk.
    pub(crate) fn file(&self) -> PathBuf {
        self.at.join(NAME)
    }

    /// After `left` more requests of this kind, one fails, or all do.
    pub(crate) fn fail(&self, request: Asked, left: u64, times: Times) {
        self.shared.lock().plan = Some(Plan { request, left, times });
    }

    /// Requests wait until [`heal`](Disk::heal), or until it vanishes.
    pub(crate) fn freeze(&self) {
        self.shared.lock().is_frozen = true;
    }

    /// Every request fails, those that wait too.
    pub(crate) fn vanish(&self) {
        self.shared.lock().is_gone = true;
        self.shared.thawed.notify_all();
    }

    /// Cuts its power: it is gone, and so is any of what it was not asked to flush. The count of sectors lost.
    pub(crate) fn cut(&self, random: &mut Random) -> Result<u64, String> {
        self.vanish();
        self.shared.lose(random).map_err(|error| format!("lose sectors: {error}"))
    }

    /// All requests are answered and succeed again.
    pub(crate) fn heal(&self) {
        let mut state = self.shared.lock();
        (state.plan, state.is_gone, state.is_frozen) = (None, false, false);
        drop(state);
        self.shared.thawed.notify_all();
    }

    /// Whether a request hangs.
    pub(crate) fn hangs(&self) -> bool {
        self.shared.lock().waiting > 0
    }

    /// Requests that failed by plan so far.
    pub(crate) fn failed(&self) -> u64 {
        self.shared.lock().failed
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.vanish();
        // Detached, it cannot be busy; the thread ends when the loop device has let go of the file.
        let _gone_already = unmount(&self.at, UnmountFlags::DETACH);
        drop(self.session.take());
    }
}

/// What the kernel talks to.
struct Front(Arc<Shared>);

impl Front {
    fn attributes(&self, inode: INodeNo) -> FileAttr {
        let is_disk = inode == DISK;
        let (kind, perm) = if is_disk { (FileType::RegularFile, 0o600) } else { (FileType::Directory, 0o700) };
        let size = if is_disk { self.0.len } else { 0 };
        let (atime, mtime, ctime, crtime) = (UNIX_EPOCH, UNIX_EPOCH, UNIX_EPOCH, UNIX_EPOCH);
        let (uid, gid, rdev, flags, nlink) = (0, 0, 0, 0, 1);
        let (blocks, blksize) = (size / BLOCK, 4096);
        FileAttr {
            ino: inode,
            size,
            blocks,
            atime,
            mtime,
            ctime,
            crtime,
            kind,
            perm,
            nlink,
            uid,
            gid,
            rdev,
            blksize,
            flags,
        }
    }
}

impl Filesystem for Front {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if parent == INodeNo::ROOT && name == NAME {
            reply.entry(&KEEP, &self.attributes(DISK), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&KEEP, &self.attributes(inode));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        // No page cache in between: a request of the loop device is a request here.
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let mut bytes = vec![0; size as usize];
        match self.0.read(offset, &mut bytes) {
            Ok(length) => reply.data(&bytes[..length]),
            Err(errno) => reply.error(errno),
        }
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        bytes: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.0.write(offset, bytes) {
            Ok(()) => reply.written(bytes.len() as u32),
            Err(errno) => reply.error(errno),
        }
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        match self.0.flush() {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    /// Closing the file is no flush of the disk.
    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECTOR: usize = 512;

    fn shared() -> Shared {
        let memory = tempfile::tempfile().unwrap();
        Shared { memory, len: 1 << 20, sector: SECTOR, state: Mutex::default(), thawed: Condvar::new() }
    }

    fn first_byte(shared: &Shared) -> u8 {
        let mut byte = [0];
        shared.memory.read_at(&mut byte, 0).unwrap();
        byte[0]
    }

    #[test]
    fn a_plan_strikes_at_its_request_once_or_for_ever() {
        for (times, after) in [(Times::Once, true), (Times::ForEver, false)] {
            let shared = shared();
            shared.lock().plan = Some(Plan { request: Asked::Flush, left: 1, times });
            let answers: Vec<bool> = (0..4)
                .map(|_| {
                    assert!(shared.write(0, &[1; SECTOR]).is_ok());
                    shared.flush().is_ok()
                })
                .collect();
            assert_eq!(answers, [true, false, after, after]);
        }
    }

    #[test]
    fn what_was_flushed_is_kept_and_what_was_not_is_kept_or_lost() {
        let mut seen = HashSet::new();
        for seed in 0..64 {
            let shared = shared();
            shared.write(0, &[1; SECTOR]).unwrap();
            shared.flush().unwrap();
            shared.write(0, &[2; SECTOR]).unwrap();
            shared.write(0, &[3; SECTOR]).unwrap();
            shared.lose(&mut Random::new(seed)).unwrap();
            seen.insert(first_byte(&shared));
        }
        assert_eq!(seen, HashSet::from([1, 2, 3]));
    }

    #[test]
    fn a_failed_flush_makes_nothing_durable() {
        let shared = shared();
        shared.lock().plan = Some(Plan { request: Asked::Flush, left: 0, times: Times::Once });
        shared.write(0, &[7; SECTOR]).unwrap();
        assert!(shared.flush().is_err());
        assert_eq!(shared.lock().unflushed.len(), 1);
    }
}
