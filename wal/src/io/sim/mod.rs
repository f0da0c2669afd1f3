//! A simulated disk: strict POSIX, no more than it promises, everything from one seed.
//!
//! Promises what a file system promises and nothing beyond: unsynced sectors are kept, lost, torn or replaced by
//! garbage at a crash; lengths and directory entries persist separately from data; a failed sync marks its pages
//! clean, so that the next one says OK although the data never reached the disk (Linux does so). Every operation has
//! a number at which it can fail or at which the machine can stop.

mod inode;
mod random;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Access, Dir, File};
use inode::Inode;
pub use random::{Rng, SimRandom};

/// A disk that is never full.
pub const UNLIMITED: u64 = 1 << 40;

/// What becomes of unsynced writes when the power goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The process died, the machine did not: the page cache survives, still unsynced.
    ProcessKilled,
    /// Nothing unsynced survives.
    Nothing,
    /// All of it does.
    Everything,
    /// Each sector, length and directory entry for itself: old, new, torn or garbage.
    Torn(u64),
}

/// What is done to a disk, as far as faults tell it apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    Read,
    Write,
    Sync,
    /// Creating, opening, renaming, removing, listing, asking for space or length.
    Names,
    SyncDir,
}

/// How an operation fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// It does nothing and answers with this error number.
    Errno(i32),
    /// A write gets half of its bytes to the cache before the disk is full. Others answer EIO.
    Short,
}

impl Failure {
    /// Every failure that the proof tries, with its name.
    pub const ALL: [(&str, Failure); 8] = [
        ("EIO", Failure::Errno(5)),
        ("ENOSPC", Failure::Errno(28)),
        ("EDQUOT", Failure::Errno(122)),
        ("EROFS", Failure::Errno(30)),
        ("EMFILE", Failure::Errno(24)),
        ("EINTR", Failure::Errno(4)),
        ("ENOMEM", Failure::Errno(12)),
        ("short", Failure::Short),
    ];

    fn error(self) -> io::Error {
        io::Error::from_raw_os_error(if let Failure::Errno(number) = self { number } else { 5 })
    }
}

/// Operations that fail.
#[derive(Debug, Clone, Copy)]
pub struct Fault {
    /// Number of the first operation that may fail.
    pub at: u64,
    /// Which operations fail; `None` for any.
    pub only: Option<Operation>,
    /// Fail from then on, or once.
    pub forever: bool,
    pub failure: Failure,
}

#[derive(Debug, Default, Clone)]
struct Entries {
    durable: BTreeMap<String, usize>,
    current: BTreeMap<String, usize>,
    pending: Vec<Change>,
    locked: bool,
}

#[derive(Debug, Clone)]
enum Change {
    Set(String, usize),
    Remove(String),
    Rename(String, String),
}

impl Change {
    fn apply(&self, entries: &mut BTreeMap<String, usize>) {
        match self {
            Change::Set(name, inode) => {
                entries.insert(name.clone(), *inode);
            }
            Change::Remove(name) => {
                entries.remove(name);
            }
            Change::Rename(from, to) => {
                if let Some(inode) = entries.remove(from) {
                    entries.insert(to.clone(), inode);
                }
            }
        }
    }
}

#[derive(Debug)]
struct State {
    /// Shared with copies of the disk until one of them changes.
    inodes: Vec<Arc<Inode>>,
    dirs: BTreeMap<String, Entries>,
    operations: u64,
    syncs: u64,
    stop_at: Option<u64>,
    stopped: bool,
    faults: Vec<Fault>,
    /// Operations that failed, until somebody asks.
    strikes: Vec<(Operation, Fault)>,
    /// Promises that the log broke towards its disk.
    broken: Vec<String>,
    /// Bytes that must never be written.
    secret: Option<&'static [u8]>,
    /// Folded over all operations: one history, one number.
    trace: u64,
    capacity: u64,
    /// Grows with each restart; handles of an earlier life answer with errors.
    life: u64,
}

/// One simulated disk with any number of directories.
#[derive(Debug, Clone)]
pub struct SimDisk(Arc<Mutex<State>>);

impl Default for SimDisk {
    fn default() -> SimDisk {
        SimDisk::new(UNLIMITED)
    }
}

impl SimDisk {
    /// An empty disk of `capacity` bytes.
    pub fn new(capacity: u64) -> SimDisk {
        SimDisk(Arc::new(Mutex::new(State {
            inodes: Vec::new(),
            dirs: BTreeMap::new(),
            operations: 0,
            syncs: 0,
            stop_at: None,
            stopped: false,
            faults: Vec::new(),
            strikes: Vec::new(),
            broken: Vec::new(),
            secret: None,
            trace: 0,
            capacity,
            life: 0,
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A directory of this disk; made, durably, when it is new.
    pub fn dir(&self, name: &str) -> Arc<dyn Dir> {
        let mut state = self.state();
        state.dirs.entry(name.to_owned()).or_default();
        Arc::new(SimDir { disk: self.clone(), name: name.to_owned(), life: state.life })
    }

    /// Bytes of all files.
    pub fn used(&self) -> u64 {
        self.state().used()
    }

    /// Operations so far.
    pub fn operations(&self) -> u64 {
        self.state().operations
    }

    /// Syncs of files and directories so far.
    pub fn syncs(&self) -> u64 {
        self.state().syncs
    }

    pub fn set_capacity(&self, bytes: u64) {
        self.state().capacity = bytes;
    }

    /// Stops the machine during operation `number`, whose effect may or may not survive.
    pub fn stop_at(&self, number: u64) {
        self.state().stop_at = Some(number);
    }

    pub fn is_stopped(&self) -> bool {
        self.state().stopped
    }

    /// Makes operations fail.
    pub fn inject(&self, fault: Fault) {
        self.state().faults.push(fault);
    }

    /// Nothing fails or stops any more.
    pub fn heal(&self) {
        let mut state = self.state();
        state.faults.clear();
        state.stop_at = None;
    }

    /// Whether an injected fault is still to come, or goes on.
    pub fn is_faulty(&self) -> bool {
        !self.state().faults.is_empty()
    }

    /// Operations that failed since the last time this was asked.
    pub fn take_strikes(&self) -> Vec<(Operation, Fault)> {
        std::mem::take(&mut self.state().strikes)
    }

    /// The first promise that the log broke towards this disk: a page that was made durable is written again, a failed
    /// sync is tried again, a secret is written in the clear.
    pub fn broken(&self) -> Option<String> {
        self.state().broken.first().cloned()
    }

    /// Bytes that nothing may write from now on; `None` lets everything pass.
    pub fn guard(&self, secret: Option<&'static [u8]>) {
        self.state().secret = secret;
    }

    /// Folded over all operations so far.
    pub fn trace(&self) -> u64 {
        self.state().trace
    }

    /// Ends this life of the machine; what was unsynced meets its `outcome`.
    pub fn restart(&self, outcome: Outcome) {
        let mut state = self.state();
        state.life += 1;
        state.stopped = false;
        state.stop_at = None;
        state.faults.clear();
        for entries in state.dirs.values_mut() {
            entries.locked = false;
        }
        state.strikes.clear();
        if outcome == Outcome::ProcessKilled {
            state.inodes.iter_mut().for_each(|inode| Arc::make_mut(inode).forgive());
            return;
        }
        let mut rng = Rng(if let Outcome::Torn(seed) = outcome { seed } else { 0 });
        for inode in &mut state.inodes {
            Arc::make_mut(inode).meet(outcome, &mut rng);
        }
        for entries in state.dirs.values_mut() {
            for change in std::mem::take(&mut entries.pending) {
                let keep = match outcome {
                    Outcome::Nothing => false,
                    Outcome::Torn(_) => rng.chance(2),
                    _ => true,
                };
                if keep {
                    change.apply(&mut entries.durable);
                }
            }
            entries.current = entries.durable.clone();
        }
        // What no directory names any more is gone.
        let live: BTreeSet<usize> = state.dirs.values().flat_map(|entries| entries.current.values().copied()).collect();
        let empty = Arc::default();
        for (number, inode) in state.inodes.iter_mut().enumerate() {
            if !live.contains(&number) {
                *inode = Arc::clone(&empty);
            }
        }
    }

    /// An independent copy, as it is now: to try several outcomes of one crash.
    pub fn fork(&self) -> SimDisk {
        let state = self.state();
        SimDisk(Arc::new(Mutex::new(State {
            inodes: state.inodes.clone(),
            dirs: state.dirs.clone(),
            operations: state.operations,
            syncs: state.syncs,
            stop_at: state.stop_at,
            stopped: state.stopped,
            faults: state.faults.clone(),
            strikes: Vec::new(),
            broken: Vec::new(),
            secret: state.secret,
            trace: state.trace,
            capacity: state.capacity,
            life: state.life,
        })))
    }

    /// Every file as the platter has it, for tests that flip bits.
    pub fn platter(&self) -> Vec<(String, String, Vec<u8>)> {
        let state = self.state();
        let files = state.dirs.iter().flat_map(|(dir, entries)| {
            entries.current.iter().map(|(name, inode)| (dir.clone(), name.clone(), state.inodes[*inode].platter()))
        });
        files.collect()
    }

    /// Directory and name of each file that has these bytes on the platter, none of which is zero.
    pub fn files_with(&self, wanted: &[u8]) -> Vec<(String, String)> {
        let state = self.state();
        let files = state.dirs.iter().flat_map(|(dir, entries)| entries.current.iter().map(move |file| (dir, file)));
        let files = files.filter(|(_, (_, inode))| state.inodes[**inode].has(wanted));
        files.map(|(dir, (name, _))| (dir.clone(), name.clone())).collect()
    }

    /// Changes the platter behind everybody's back.
    pub fn corrupt(&self, dir: &str, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.state();
        let inode = state.dirs[dir].current[name];
        let mut bytes = state.inodes[inode].platter();
        change(&mut bytes);
        state.inode(inode).set_platter(&bytes);
    }

    /// Changes bits of one byte of the platter behind everybody's back.
    pub fn flip(&self, dir: &str, name: &str, byte: usize, mask: u8) {
        let mut state = self.state();
        let inode = state.dirs[dir].current[name];
        state.inode(inode).flip(byte, mask);
    }

    /// Takes a whole directory away, as an unmounted disk does.
    pub fn lose_dir(&self, name: &str) {
        self.state().dirs.insert(name.to_owned(), Entries::default());
    }

    /// Counts an operation; says whether it is the one during which the machine stops, or which failure it meets.
    fn begin(&self, life: u64, operation: Operation, detail: u64) -> Result<(MutexGuard<'_, State>, bool), Refusal> {
        let mut state = self.state();
        if state.stopped || state.life != life {
            return Err(Refusal::Stopped);
        }
        state.operations += 1;
        let number = state.operations;
        let folded = state.trace ^ detail ^ ((operation as u64) << 60);
        state.trace = folded.wrapping_mul(0x0100_0000_01b3).rotate_left(23);
        let hits = |fault: &Fault| fault.at <= number && fault.only.is_none_or(|only| only == operation);
        if let Some(index) = state.faults.iter().position(hits) {
            let fault = state.faults[index];
            if !fault.forever {
                state.faults.swap_remove(index);
            }
            state.strikes.push((operation, fault));
            return Err(Refusal::Fails(fault.failure));
        }
        let stops = state.stop_at == Some(number);
        state.stopped = stops;
        Ok((state, stops))
    }

    /// Ends an operation whose effect is applied; the caller hears nothing if the machine stopped in it.
    fn end<T>(_state: MutexGuard<'_, State>, stops: bool, result: T) -> io::Result<T> {
        if stops {
            return Err(Refusal::Stopped.into());
        }
        Ok(result)
    }
}

/// Why an operation does nothing.
#[derive(Debug, Clone, Copy)]
enum Refusal {
    Stopped,
    Fails(Failure),
}

impl From<Refusal> for io::Error {
    fn from(refusal: Refusal) -> io::Error {
        match refusal {
            Refusal::Stopped => io::Error::other("the machine has stopped"),
            Refusal::Fails(failure) => failure.error(),
        }
    }
}

struct SimDir {
    disk: SimDisk,
    name: String,
    life: u64,
}

impl fmt::Debug for SimDir {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "SimDir({})", self.name)
    }
}

impl SimDir {
    fn change(&self, decide: impl FnOnce(&mut State) -> io::Result<Vec<Change>>) -> io::Result<()> {
        let (mut state, stops) = self.disk.begin(self.life, Operation::Names, 1)?;
        let changes = decide(&mut state)?;
        let entries = state.dirs.get_mut(&self.name).expect("made by dir()");
        for change in changes {
            change.apply(&mut entries.current);
            entries.pending.push(change);
        }
        SimDisk::end(state, stops, ())
    }

    fn file(&self, inode: usize) -> Arc<dyn File> {
        Arc::new(SimFile { disk: self.disk.clone(), inode, life: self.life })
    }
}

impl Dir for SimDir {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let (state, stops) = self.disk.begin(self.life, Operation::Names, 3)?;
        let names = state.dirs[&self.name].current.keys().cloned().collect();
        SimDisk::end(state, stops, names)
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let mut made = 0;
        self.change(|state| {
            if state.dirs[&self.name].current.contains_key(name) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            made = state.inodes.len();
            state.inodes.push(Arc::default());
            Ok(vec![Change::Set(name.to_owned(), made)])
        })?;
        Ok(self.file(made))
    }

    fn open(&self, name: &str, _access: Access) -> io::Result<Arc<dyn File>> {
        let (state, stops) = self.disk.begin(self.life, Operation::Names, 4)?;
        let inode = state.dirs[&self.name].current.get(name).copied();
        let inode = inode.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        SimDisk::end(state, stops, self.file(inode))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.change(|state| {
            if !state.dirs[&self.name].current.contains_key(from) {
                return Err(io::ErrorKind::NotFound.into());
            }
            Ok(vec![Change::Rename(from.to_owned(), to.to_owned())])
        })
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.change(|state| {
            if !state.dirs[&self.name].current.contains_key(name) {
                return Err(io::ErrorKind::NotFound.into());
            }
            Ok(vec![Change::Remove(name.to_owned())])
        })
    }

    fn sync(&self) -> io::Result<()> {
        let (mut state, stops) = self.disk.begin(self.life, Operation::SyncDir, 2)?;
        state.syncs += 1;
        if !stops {
            let entries = state.dirs.get_mut(&self.name).expect("made by dir()");
            for change in std::mem::take(&mut entries.pending) {
                change.apply(&mut entries.durable);
            }
        }
        SimDisk::end(state, stops, ())
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let (state, stops) = self.disk.begin(self.life, Operation::Names, 5)?;
        let free = state.capacity.saturating_sub(state.used());
        SimDisk::end(state, stops, free)
    }

    fn lock(&self) -> io::Result<Box<dyn Send + Sync>> {
        let mut state = self.disk.state();
        if state.life != self.life {
            return Err(io::Error::other("the machine has stopped"));
        }
        let entries = state.dirs.get_mut(&self.name).expect("made by dir()");
        if std::mem::replace(&mut entries.locked, true) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(Box::new(SimLock { disk: self.disk.clone(), dir: self.name.clone(), life: self.life }))
    }
}

impl State {
    fn inode(&mut self, number: usize) -> &mut Inode {
        Arc::make_mut(&mut self.inodes[number])
    }

    fn used(&self) -> u64 {
        let live: BTreeSet<usize> = self.dirs.values().flat_map(|entries| entries.current.values().copied()).collect();
        live.iter().map(|inode| self.inodes[*inode].len() as u64).sum()
    }
}

struct SimLock {
    disk: SimDisk,
    dir: String,
    life: u64,
}

impl Drop for SimLock {
    fn drop(&mut self) {
        let mut state = self.disk.state();
        if state.life == self.life
            && let Some(entries) = state.dirs.get_mut(&self.dir)
        {
            entries.locked = false;
        }
    }
}

/// What a sync covers.
#[derive(Clone, Copy)]
enum Extent {
    /// From here on, so many bytes.
    Range(u64, u64),
    /// All bytes, and not the length.
    Data,
    All,
}

struct SimFile {
    disk: SimDisk,
    inode: usize,
    life: u64,
}

impl fmt::Debug for SimFile {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "SimFile({})", self.inode)
    }
}

impl SimFile {
    fn detail(&self, offset: u64) -> u64 {
        ((self.inode as u64) << 40) ^ offset
    }

    fn flush(&self, extent: Extent) -> io::Result<()> {
        let bytes = |len: usize| match extent {
            Extent::Range(start, count) => start as usize..(start + count) as usize,
            Extent::Data | Extent::All => 0..len,
        };
        let detail = self.detail(if let Extent::Range(start, _) = extent { start } else { 0 });
        match self.disk.begin(self.life, Operation::Sync, detail) {
            Ok((mut state, stops)) => {
                state.syncs += 1;
                if !stops {
                    let inode = state.inode(self.inode);
                    let kept = match extent {
                        Extent::Range(..) => inode.sync_range(bytes(inode.len())),
                        Extent::Data => inode.sync_data(),
                        Extent::All => inode.sync(),
                    };
                    state.broken.extend(kept.err());
                }
                SimDisk::end(state, stops, ())
            }
            Err(refusal) => {
                if let Refusal::Fails(_) = refusal {
                    let mut state = self.disk.state();
                    let inode = state.inode(self.inode);
                    inode.forget_dirty(bytes(inode.len()));
                }
                Err(refusal.into())
            }
        }
    }

    fn put(&self, state: &mut State, bytes: &[u8], offset: u64) -> io::Result<()> {
        if state.capacity < UNLIMITED {
            let growth = (offset + bytes.len() as u64).saturating_sub(state.inodes[self.inode].len() as u64);
            if growth > 0 && state.used() + growth > state.capacity {
                let fault = Fault {
                    at: state.operations,
                    only: Some(Operation::Write),
                    forever: false,
                    failure: Failure::Errno(28),
                };
                state.strikes.push((Operation::Write, fault));
                return Err(io::ErrorKind::StorageFull.into());
            }
        }
        if let Some(secret) = state.secret
            && contains(bytes, secret)
        {
            state.broken.push(format!("an event is written in the clear, inode {} at {offset}", self.inode));
        }
        let kept = state.inode(self.inode).write(bytes, offset as usize);
        state.broken.extend(kept.err());
        Ok(())
    }
}

/// Whether `wanted`, which begins with no zero, is in `bytes`, which are mostly zeros or noise.
pub fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    const CHUNK: usize = 64;
    const CHUNKS: usize = 8;
    let is_in = |(number, chunk): (usize, &[u8])| {
        chunk.contains(&wanted[0])
            && (0..chunk.len()).any(|at| chunk[at] == wanted[0] && bytes[number * CHUNK + at..].starts_with(wanted))
    };
    bytes.chunks(CHUNK * CHUNKS).enumerate().any(|(number, part)| {
        *part != [0; CHUNK * CHUNKS][..part.len()]
            && part.chunks(CHUNK).enumerate().any(|(chunk, bytes)| is_in((number * CHUNKS + chunk, bytes)))
    })
}

impl File for SimFile {
    fn size(&self) -> io::Result<u64> {
        let (state, stops) = self.disk.begin(self.life, Operation::Names, 6)?;
        let len = state.inodes[self.inode].len() as u64;
        SimDisk::end(state, stops, len)
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        let (state, stops) = self.disk.begin(self.life, Operation::Read, self.detail(offset))?;
        let read = state.inodes[self.inode].read(bytes, offset as usize);
        SimDisk::end(state, stops, read)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let (mut state, stops) = match self.disk.begin(self.life, Operation::Write, self.detail(offset)) {
            Err(Refusal::Fails(Failure::Short)) => {
                let half = bytes.len() / 2;
                self.put(&mut self.disk.state(), &bytes[..half], offset)?;
                return Err(io::ErrorKind::StorageFull.into());
            }
            other => other?,
        };
        self.put(&mut state, bytes, offset)?;
        SimDisk::end(state, stops, ())
    }

    fn sync_range(&self, offset: u64, len: u64) -> io::Result<()> {
        self.flush(Extent::Range(offset, len))
    }

    fn sync(&self) -> io::Result<()> {
        self.flush(Extent::All)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.flush(Extent::Data)
    }

    fn drop_cache(&self) -> io::Result<()> {
        let (mut state, stops) = self.disk.begin(self.life, Operation::Names, 7)?;
        state.inode(self.inode).drop_cache();
        SimDisk::end(state, stops, ())
    }
}
