//! A simulated disk: strict POSIX, no more than it promises, everything from one seed.
//!
//! Promises what a file system promises and nothing beyond: unsynced sectors are kept, lost, torn or replaced by
//! garbage at a crash; lengths and directory entries persist separately from data; a failed sync marks its pages
//! clean, so that the next one says OK although the data never reached the disk (Linux does so). Every operation has
//! a number at which it can fail or at which the machine can stop.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Access, Dir, File};
use crate::seal::Random;

/// What disks write whole, at best.
const SECTOR: usize = 512;

/// A small generator of reproducible numbers (splitmix64).
#[derive(Debug, Clone)]
pub struct Rng(pub u64);

impl Rng {
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`, which is at least 1.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.number() % bound
    }

    pub fn chance(&mut self, one_in: u64) -> bool {
        self.below(one_in) == 0
    }
}

/// Salts and identities for simulations.
#[derive(Debug)]
pub struct SimRandom(Mutex<Rng>);

impl SimRandom {
    pub fn new(seed: u64) -> SimRandom {
        SimRandom(Mutex::new(Rng(seed)))
    }
}

impl Random for SimRandom {
    fn fill(&self, bytes: &mut [u8]) {
        let mut rng = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for chunk in bytes.chunks_mut(8) {
            let number = rng.number().to_le_bytes();
            chunk.copy_from_slice(&number[..chunk.len()]);
        }
    }
}

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

/// An operation that fails.
#[derive(Debug, Clone, Copy)]
pub struct Fault {
    /// Number of the first operation that fails.
    pub at: u64,
    pub forever: bool,
    pub error: io::ErrorKind,
}

#[derive(Debug, Default, Clone)]
struct Inode {
    /// What the platter has. Shared until written, so that copies of a disk are cheap.
    durable: Arc<Vec<u8>>,
    /// What a reader through the cache sees.
    cached: Arc<Vec<u8>>,
    dirty: BTreeSet<usize>,
    length_dirty: bool,
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
    inodes: Vec<Inode>,
    dirs: BTreeMap<String, Entries>,
    operations: u64,
    syncs: u64,
    stop_at: Option<u64>,
    stopped: bool,
    faults: Vec<Fault>,
    capacity: u64,
    /// Grows with each restart; handles of an earlier life answer with errors.
    life: u64,
}

/// One simulated disk with any number of directories.
#[derive(Debug, Clone)]
pub struct SimDisk(Arc<Mutex<State>>);

impl Default for SimDisk {
    fn default() -> SimDisk {
        SimDisk::new(1 << 40)
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

    pub fn heal(&self) {
        self.state().faults.clear();
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
        if outcome == Outcome::ProcessKilled {
            return;
        }
        let mut rng = Rng(if let Outcome::Torn(seed) = outcome { seed } else { 0 });
        for inode in &mut state.inodes {
            inode.meet(outcome, &mut rng);
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
        for (number, inode) in state.inodes.iter_mut().enumerate() {
            if !live.contains(&number) {
                *inode = Inode::default();
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
            capacity: state.capacity,
            life: state.life,
        })))
    }

    /// Every file as the platter has it, for tests that look for plaintext or flip bits.
    pub fn platter(&self) -> Vec<(String, String, Vec<u8>)> {
        let state = self.state();
        let files = state.dirs.iter().flat_map(|(dir, entries)| {
            entries
                .current
                .iter()
                .map(|(name, inode)| (dir.clone(), name.clone(), state.inodes[*inode].durable.to_vec()))
        });
        files.collect()
    }

    /// Changes the platter behind everybody's back.
    pub fn corrupt(&self, dir: &str, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.state();
        let inode = state.dirs[dir].current[name];
        change(Arc::make_mut(&mut state.inodes[inode].durable));
        state.inodes[inode].cached = Arc::clone(&state.inodes[inode].durable);
        state.inodes[inode].dirty.clear();
    }

    /// Takes a whole directory away, as an unmounted disk does.
    pub fn lose_dir(&self, name: &str) {
        self.state().dirs.insert(name.to_owned(), Entries::default());
    }

    /// Counts an operation; says whether it is the one during which the machine stops.
    fn begin(&self, life: u64) -> io::Result<(MutexGuard<'_, State>, bool)> {
        let mut state = self.state();
        if state.stopped || state.life != life {
            return Err(io::Error::other("the machine has stopped"));
        }
        state.operations += 1;
        let number = state.operations;
        if let Some(fault) =
            state.faults.iter().find(|fault| fault.at == number || (fault.forever && number > fault.at))
        {
            return Err(fault.error.into());
        }
        let stops = state.stop_at == Some(number);
        state.stopped = stops;
        Ok((state, stops))
    }

    /// Ends an operation whose effect is applied; the caller hears nothing if the machine stopped in it.
    fn end<T>(_state: MutexGuard<'_, State>, stops: bool, result: T) -> io::Result<T> {
        if stops {
            return Err(io::Error::other("the machine has stopped"));
        }
        Ok(result)
    }
}

impl Inode {
    fn sector(bytes: &[u8], sector: usize) -> [u8; SECTOR] {
        let mut found = [0; SECTOR];
        let start = (sector * SECTOR).min(bytes.len());
        let end = (start + SECTOR).min(bytes.len());
        found[..end - start].copy_from_slice(&bytes[start..end]);
        found
    }

    fn put_sector(bytes: &mut Vec<u8>, sector: usize, content: &[u8; SECTOR]) {
        let start = sector * SECTOR;
        if bytes.len() < start + SECTOR {
            bytes.resize(start + SECTOR, 0);
        }
        bytes[start..start + SECTOR].copy_from_slice(content);
    }

    fn write(&mut self, bytes: &[u8], offset: usize) {
        let end = offset + bytes.len();
        if self.cached.len() < end {
            Arc::make_mut(&mut self.cached).resize(end, 0);
            self.length_dirty = true;
        }
        Arc::make_mut(&mut self.cached)[offset..end].copy_from_slice(bytes);
        self.dirty.extend(offset / SECTOR..end.div_ceil(SECTOR));
    }

    fn flush(&mut self, range: std::ops::Range<usize>) {
        let sectors: Vec<usize> = self.dirty.range(range.start / SECTOR..range.end.div_ceil(SECTOR)).copied().collect();
        for sector in sectors {
            let content = Inode::sector(&self.cached, sector);
            Inode::put_sector(Arc::make_mut(&mut self.durable), sector, &content);
            self.dirty.remove(&sector);
        }
    }

    /// As Linux does after a failed sync: the pages are clean, the platter never saw them.
    fn forget_dirty(&mut self) {
        self.dirty.clear();
        self.length_dirty = false;
    }

    fn meet(&mut self, outcome: Outcome, rng: &mut Rng) {
        let cached_len = self.cached.len();
        for sector in std::mem::take(&mut self.dirty) {
            let new = Inode::sector(&self.cached, sector);
            let old = Inode::sector(&self.durable, sector);
            let survives = match outcome {
                Outcome::Nothing | Outcome::ProcessKilled => continue,
                Outcome::Everything => new,
                Outcome::Torn(_) => match rng.below(8) {
                    0..=2 => continue,
                    3..=5 => new,
                    6 => {
                        let mut torn = old;
                        let cut = rng.below(SECTOR as u64) as usize;
                        torn[..cut].copy_from_slice(&new[..cut]);
                        torn
                    }
                    _ => std::array::from_fn(|_| rng.number() as u8),
                },
            };
            Inode::put_sector(Arc::make_mut(&mut self.durable), sector, &survives);
        }
        // The length lives for itself: a file may grow without its data.
        if self.length_dirty && (outcome == Outcome::Everything || (outcome != Outcome::Nothing && rng.chance(2))) {
            let len = cached_len.max(self.durable.len());
            Arc::make_mut(&mut self.durable).resize(len, 0);
        }
        self.length_dirty = false;
        self.cached = Arc::clone(&self.durable);
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
        let (mut state, stops) = self.disk.begin(self.life)?;
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
        let (state, stops) = self.disk.begin(self.life)?;
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
            state.inodes.push(Inode::default());
            Ok(vec![Change::Set(name.to_owned(), made)])
        })?;
        Ok(self.file(made))
    }

    fn open(&self, name: &str, _access: Access) -> io::Result<Arc<dyn File>> {
        let (state, stops) = self.disk.begin(self.life)?;
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
        let (mut state, stops) = self.disk.begin(self.life)?;
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
        let (state, stops) = self.disk.begin(self.life)?;
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
    fn used(&self) -> u64 {
        let live: BTreeSet<usize> = self.dirs.values().flat_map(|entries| entries.current.values().copied()).collect();
        live.iter().map(|inode| self.inodes[*inode].cached.len() as u64).sum()
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
    fn flush(&self, range: Option<(u64, u64)>) -> io::Result<()> {
        let outcome = self.disk.begin(self.life);
        let (mut state, stops) = match outcome {
            Ok(begun) => begun,
            Err(error) => {
                let mut state = self.disk.state();
                if !state.stopped && state.life == self.life {
                    state.inodes[self.inode].forget_dirty();
                }
                return Err(error);
            }
        };
        state.syncs += 1;
        if !stops {
            let inode = &mut state.inodes[self.inode];
            match range {
                Some((offset, len)) => inode.flush(offset as usize..(offset + len) as usize),
                None => {
                    inode.flush(0..inode.cached.len());
                    inode.length_dirty = false;
                    let len = inode.cached.len();
                    if inode.durable.len() != len {
                        Arc::make_mut(&mut inode.durable).resize(len, 0);
                    }
                }
            }
        }
        SimDisk::end(state, stops, ())
    }
}

impl File for SimFile {
    fn size(&self) -> io::Result<u64> {
        let (state, stops) = self.disk.begin(self.life)?;
        let len = state.inodes[self.inode].cached.len() as u64;
        SimDisk::end(state, stops, len)
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        let (state, stops) = self.disk.begin(self.life)?;
        let cached = &state.inodes[self.inode].cached;
        let start = (offset as usize).min(cached.len());
        let end = (start + bytes.len()).min(cached.len());
        bytes[..end - start].copy_from_slice(&cached[start..end]);
        SimDisk::end(state, stops, end - start)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let (mut state, stops) = self.disk.begin(self.life)?;
        let growth = (offset + bytes.len() as u64).saturating_sub(state.inodes[self.inode].cached.len() as u64);
        if growth > 0 && state.used() + growth > state.capacity {
            return Err(io::ErrorKind::StorageFull.into());
        }
        state.inodes[self.inode].write(bytes, offset as usize);
        SimDisk::end(state, stops, ())
    }

    fn sync_range(&self, offset: u64, len: u64) -> io::Result<()> {
        self.flush(Some((offset, len)))
    }

    fn sync(&self) -> io::Result<()> {
        self.flush(None)
    }

    fn drop_cache(&self) -> io::Result<()> {
        let (mut state, stops) = self.disk.begin(self.life)?;
        let inode = &mut state.inodes[self.inode];
        // Dirty pages cannot be dropped, clean ones show the platter again.
        if inode.dirty.is_empty() {
            let len = inode.cached.len();
            inode.cached = Arc::clone(&inode.durable);
            if inode.cached.len() != len {
                Arc::make_mut(&mut inode.cached).resize(len, 0);
            }
        }
        SimDisk::end(state, stops, ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::buffer::Buffer;
    use crate::io::durable;
    use crate::limits::PAGE;

    fn page(byte: u8) -> Buffer {
        let mut page = Buffer::zeroed(PAGE).unwrap();
        page.fill(byte);
        page
    }

    fn read(disk: &SimDisk, name: &str) -> Option<Vec<u8>> {
        disk.platter().into_iter().find(|(_, found, _)| found == name).map(|(_, _, bytes)| bytes)
    }

    #[test]
    fn unsynced_bytes_are_lost_and_synced_ones_stay() {
        let disk = SimDisk::default();
        let dir = disk.dir("d");
        durable::put_zeroed(&*dir, "a", 2 * PAGE as u64).unwrap();
        let file = dir.open("a", Access::ReadWrite).unwrap();
        file.write_durable_at(&page(1), 0).unwrap();
        file.write_at(&page(2), PAGE as u64).unwrap();
        disk.restart(Outcome::Nothing);
        let bytes = read(&disk, "a").unwrap();
        assert!(bytes[..PAGE].iter().all(|&byte| byte == 1) && bytes[PAGE..].iter().all(|&byte| byte == 0));
    }

    #[test]
    fn after_a_failed_sync_the_next_one_says_ok_and_the_data_is_gone() {
        let disk = SimDisk::default();
        let dir = disk.dir("d");
        let file = durable::put_zeroed(&*dir, "a", PAGE as u64).unwrap();
        file.write_at(&page(3), 0).unwrap();
        disk.inject(Fault { at: disk.operations() + 1, forever: false, error: io::ErrorKind::Other });
        assert!(file.sync_range(0, PAGE as u64).is_err());
        file.sync_range(0, PAGE as u64).unwrap();
        let mut seen = page(0);
        file.read_at(&mut seen, 0).unwrap();
        assert_eq!(seen[0], 3, "the cache still shows it");
        disk.restart(Outcome::Everything);
        assert_eq!(read(&disk, "a").unwrap()[0], 0);
    }

    #[test]
    fn a_rename_without_a_directory_sync_may_be_lost() {
        let disk = SimDisk::default();
        let dir = disk.dir("d");
        dir.create("a").unwrap().sync().unwrap();
        dir.sync().unwrap();
        dir.rename("a", "b").unwrap();
        disk.restart(Outcome::Nothing);
        assert!(read(&disk, "a").is_some() && read(&disk, "b").is_none());
    }

    #[test]
    fn one_seed_gives_one_outcome() {
        let outcome = |seed| {
            let disk = SimDisk::default();
            let file = durable::put_zeroed(&*disk.dir("d"), "a", 64 * PAGE as u64).unwrap();
            for at in 0..64 {
                file.write_at(&page(at as u8), at * PAGE as u64).unwrap();
            }
            disk.restart(Outcome::Torn(seed));
            read(&disk, "a").unwrap()
        };
        assert_eq!(outcome(5), outcome(5));
        assert_ne!(outcome(5), outcome(6));
    }

    #[test]
    fn an_interrupted_creation_is_all_or_nothing() {
        for at in 1.. {
            let disk = SimDisk::default();
            disk.stop_at(at);
            let done = durable::put(&*disk.dir("d"), "a", &[9; PAGE]).is_ok();
            for outcome in [Outcome::Nothing, Outcome::Everything, Outcome::Torn(at), Outcome::Torn(at + 1000)] {
                let disk = disk.fork();
                disk.restart(outcome);
                let found = read(&disk, "a");
                assert!(found.is_some() || !done);
                assert!(found.is_none_or(|bytes| bytes == vec![9; PAGE]), "stop at {at}, {outcome:?}");
            }
            if done {
                return;
            }
        }
    }
}
