//! The threads of a durable channel, and its opening and closing; `handles.rs` is what its users hold.
//!
//! Everything is decided in [`Core`] under one lock that covers pointer moves, never I/O. A thread takes a job out,
//! does it without the lock, and brings the result back; tickets are resolved after the lock is free.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use wal::device::{Device, Signal};
use wal::io::Dir;
use wal::io::durable;
use wal::io::real::{Backend, RealDir};
use wal::limits::{SEGMENT_MAX, SEGMENT_MIN};
use wal::seal::{ChannelKey, OsRandom};
use wal::tuning::{Calibration, Tuning};

use super::compress::Compress;
use super::core::reads::READS_MAX;
use super::core::{Answer, Core, CoreOptions};
use super::handles::{DurableConsumer, DurableProducer};
use super::open::{IDENTITY, OnDamage, OpenDir, OpenError, OpenSettings, Recovery, check_members, open};
use super::pays::Trials;
use super::read::Buffers;
use super::{disks, writers};
use crate::api::{Channel, ChannelStats, Consumer, Producer};
use crate::ticket::Ticket;

/// The flush domains of the process, one for each block device. Made once and passed to every channel.
#[derive(Debug, Default)]
pub struct Devices {
    known: Mutex<BTreeMap<String, Known>>,
}

/// A device, and what was measured of it.
type Known = (Arc<Device>, Option<Calibration>);

impl Devices {
    pub fn new() -> Arc<Devices> {
        Arc::new(Devices::default())
    }

    /// The device of this name. Whoever opens it first says how it is written, others wait for that.
    fn device(&self, key: String, tune: impl FnOnce() -> (Tuning, Option<Calibration>)) -> Known {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = known.entry(key.clone()).or_insert_with(|| {
            let (tuning, calibration) = tune();
            (Device::tuned(key, tuning), calibration)
        });
        entry.clone()
    }
}

/// How to open a durable channel. Start from [`DurableOptions::new`].
#[derive(Debug, Clone)]
pub struct DurableOptions {
    /// For messages and metrics.
    pub name: String,
    /// Directories of the log, in any order; made when they do not exist.
    pub data_dirs: Vec<PathBuf>,
    /// Most events queued, leased or being put.
    pub capacity: u64,
    /// Most events in one put or take.
    pub transaction_capacity: usize,
    /// How long a put waits for room.
    pub keep_alive: Duration,
    /// Length of a segment file in bytes; whole pages.
    pub segment_len: u64,
    /// Bytes of segments in each directory up to which drained ones are kept to be used again.
    pub pool_bytes: u64,
    /// Free bytes of each file system that are left alone.
    pub reserve_bytes: u64,
    /// Most bytes of segments on disk; `None` lets the disk decide.
    pub disk_bytes_max: Option<u64>,
    /// Bytes of events kept in memory for takes.
    pub hot_tail_bytes: usize,
    /// How often a backlog that lies on disk is read to see whether it is still there; zero for never.
    pub scrub_interval: Duration,
    /// Whether transactions that shrink are compressed.
    pub compress: Compress,
    /// Encrypts new frames.
    pub key: Option<ChannelKey>,
    /// Reads old frames; the key for new ones need not be repeated.
    pub old_keys: Vec<ChannelKey>,
    pub on_damage: OnDamage,
    /// `None` probes each directory for direct I/O.
    pub backend: Option<Backend>,
    /// How disks are written. `None` measures each disk when it is new, for less than a second, and keeps what was found in
    /// its directories; whoever opens a device first in a process decides for all.
    pub tuning: Option<Tuning>,
    /// Where checkpoints go; `None` for the first data directory.
    pub checkpoint_dir: Option<PathBuf>,
    /// Shortest time between two checkpoints.
    pub checkpoint_interval: Duration,
    /// Treats each directory as a disk of its own, whatever device it is on.
    pub separate_flush_domains: bool,
}

/// A backlog that is older than this deserves a look.
const SCRUB_INTERVAL: Duration = Duration::from_secs(24 * 3600);

impl DurableOptions {
    /// A plain channel with Flume's limits.
    pub fn new(name: &str, data_dirs: Vec<PathBuf>) -> DurableOptions {
        DurableOptions {
            name: name.to_owned(),
            data_dirs,
            capacity: 1_000_000,
            transaction_capacity: 10_000,
            keep_alive: Duration::from_secs(3),
            segment_len: wal::limits::SEGMENT_DEFAULT,
            pool_bytes: wal::limits::POOL_DEFAULT,
            reserve_bytes: 0,
            disk_bytes_max: None,
            hot_tail_bytes: 64 << 20,
            scrub_interval: SCRUB_INTERVAL,
            compress: Compress::Never,
            key: None,
            old_keys: Vec::new(),
            on_damage: OnDamage::Refuse,
            backend: None,
            tuning: Some(Tuning::default()),
            checkpoint_dir: None,
            checkpoint_interval: Duration::from_secs(30),
            separate_flush_domains: false,
        }
    }
}

/// What a thread of the channel does.
pub(super) type Role = Box<dyn FnOnce() + Send>;

pub(super) struct Shared {
    core: Mutex<Core>,
    /// One for each log: something to write.
    pub(super) writes: Vec<Arc<Signal>>,
    /// One for each log: work with files.
    pub(super) chores: Vec<Signal>,
    /// One for each log: something to read.
    reads: Vec<Signal>,
    buffers: Arc<Buffers>,
    /// A deadline that is earlier than the one slept for.
    clock: Signal,
    /// What the clock sleeps for, in microseconds since the start; `u64::MAX` for nothing.
    clock_set_us: AtomicU64,
    /// A checkpoint is due.
    checkpoints: Signal,
    /// Something was written or answered; only closing waits for it.
    pub(super) progress: Signal,
    pub(super) dirs: Vec<Arc<dyn Dir>>,
    pub(super) devices: Vec<Arc<Device>>,
    checkpoint_dir: Arc<dyn Dir>,
    key: Mutex<Option<ChannelKey>>,
    /// Of the last thread that wrote its own frame.
    pub(super) desk: Mutex<Option<writers::Desk>>,
    /// Read by producers as long as they may write; closing waits for them as it does for the threads of the channel.
    pub(super) writing: RwLock<()>,
    started: Instant,
    transaction_capacity: usize,
    /// Whether what is put now is compressed.
    pub(super) compresses: AtomicBool,
    /// Who decides that.
    trials: Option<Mutex<Trials>>,
    stopping: AtomicBool,
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, Core> {
        // A panic under the lock is our bug; what is durable is on disk, and serving on would risk more than stopping.
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn now(&self) -> Duration {
        self.started.elapsed()
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Runs a step, then answers tickets and wakes whoever has work now, and nobody else: a put must not cost a
    /// round of context switches.
    pub(super) fn step<T>(&self, step: impl FnOnce(&mut Core, Duration, &mut Vec<Answer>) -> T) -> T {
        let mut answers = Vec::new();
        let (result, writes, deadline) = {
            let mut core = self.lock();
            let now = self.now();
            let result = step(&mut core, now, &mut answers);
            let due = self.reads.iter().enumerate().filter(|(log, _)| core.read_is_due(*log, now));
            due.for_each(|(_, signal)| signal.raise_one());
            (result, core.has_work(), core.next_deadline())
        };
        if writes {
            // Which log takes it is theirs to find out: the first one with a free slot does.
            self.writes.iter().for_each(|signal| signal.raise_one());
        }
        if deadline.is_some_and(|deadline| as_micros(deadline) < self.clock_set_us.load(Ordering::Acquire)) {
            self.clock.raise_one();
        }
        answers.into_iter().for_each(Answer::send);
        result
    }

    /// So many bytes of transactions have become durable so far.
    pub(super) fn durable(&self, bytes: u64) {
        if let Some(trials) = &self.trials {
            let mut trials = trials.lock().unwrap_or_else(PoisonError::into_inner);
            trials.durable(self.now(), bytes);
            self.compresses.store(trials.compresses(), Ordering::Relaxed);
        }
    }

    fn raise_everything(&self) {
        self.writes.iter().for_each(|signal| signal.raise_all());
        self.chores.iter().for_each(Signal::raise_all);
        self.reads.iter().for_each(Signal::raise_all);
        self.clock.raise_all();
        self.checkpoints.raise_all();
    }
}

fn as_micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX - 1)
}

pub(super) fn wall_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// Bytes in memory on account of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryUse {
    /// Events that a take gets without a read.
    pub hot_tail_bytes: u64,
    /// Tables that know which events there are, and where on the disks.
    pub queue_bytes: u64,
}

/// A channel whose acknowledged events survive a crash.
pub struct DurableChannel {
    shared: Arc<Shared>,
    recovery: Recovery,
    threads: Mutex<Vec<JoinHandle<()>>>,
    locks: Mutex<Vec<Box<dyn Send + Sync>>>,
    /// How each directory is written.
    backends: Vec<Backend>,
}

impl DurableChannel {
    /// Opens the channel in its directories, recovering what is there. Blocks while it reads.
    pub fn open(options: DurableOptions, devices: &Devices) -> Result<DurableChannel, OpenError> {
        check(&options)?;
        let untouched = |path: &PathBuf| OpenDir {
            dir: Arc::new(RealDir::untouched(path)),
            device: Device::tuned(path.display().to_string(), Tuning::default()),
            calibration: None,
        };
        let members: Vec<OpenDir> = options.data_dirs.iter().map(untouched).collect();
        let mut held = BTreeMap::new();
        if check_members(&members, &OsRandom).is_err() {
            // Or another process is just making the channel and has told only some of its directories, whose locks it
            // holds. What they say under locks of our own is final.
            for (path, member) in options.data_dirs.iter().zip(&members) {
                if path.join(IDENTITY).exists() {
                    held.insert(path, lock(path, &*member.dir)?);
                }
            }
            check_members(&members, &OsRandom)?;
        }
        let (mut dirs, mut locks, mut backends) = (Vec::new(), Vec::new(), Vec::new());
        for path in &options.data_dirs {
            let failed = |action: &str, error| OpenError::Io {
                dir: path.display().to_string(),
                action: action.to_owned(),
                error,
            };
            let dir = RealDir::open_or_create(path, options.backend).map_err(|error| failed("open", error))?;
            locks.push(held.remove(path).map_or_else(|| lock(path, &dir), Ok)?);
            durable::remove_leftovers(&dir).map_err(|error| failed("remove leftovers", error))?;
            let number = dir.device_number().map_err(|error| failed("stat", error))?;
            let key =
                if options.separate_flush_domains { path.display().to_string() } else { format!("device {number}") };
            let (device, calibration) = devices.device(key, || match options.tuning {
                Some(tuning) => (tuning, None),
                None => disks::tuning_of(&dir, options.reserve_bytes),
            });
            let Tuning { durability, depth } = device.tuning();
            let sync = durability.name();
            tracing::info!(channel = options.name, dir = %path.display(), backend = ?dir.backend(), sync, depth, "data directory");
            backends.push(dir.backend());
            dirs.push(OpenDir { dir: Arc::new(dir), device, calibration });
        }
        let mut keys = options.old_keys.clone();
        keys.extend(options.key.clone());
        let settings = OpenSettings {
            segment_len: options.segment_len,
            pool_bytes: options.pool_bytes,
            reserve_bytes: options.reserve_bytes,
            key: options.key.clone(),
            keys,
            on_damage: options.on_damage,
            footers: true,
        };
        let checkpoint_dir: Arc<dyn Dir> = match &options.checkpoint_dir {
            None => Arc::clone(&dirs[0].dir),
            Some(path) => {
                let failed = |error| OpenError::Io {
                    dir: path.display().to_string(),
                    action: "open the checkpoint directory".to_owned(),
                    error,
                };
                Arc::new(RealDir::open_or_create(path, Some(Backend::Buffered)).map_err(failed)?)
            }
        };
        let (start, recovery) = open(&dirs, &settings, &OsRandom, wall_ms(), Some(&*checkpoint_dir))?;
        tracing::info!(
            channel = options.name,
            queued = recovery.queued_events,
            frames = recovery.frames,
            vouched_segments = recovery.vouched_segments,
            footed_segments = recovery.footed_segments,
            torn = recovery.torn,
            unproven_frames = recovery.unproven_frames,
            lost = recovery.lost_events,
            "recovered"
        );
        let core_options = CoreOptions {
            name: options.name.clone(),
            capacity: options.capacity,
            transaction_capacity: options.transaction_capacity,
            keep_alive: options.keep_alive,
            disk_bytes_max: options.disk_bytes_max,
            hot_tail_bytes: options.hot_tail_bytes,
            scrub_interval: options.scrub_interval,
            checkpoint_interval: options.checkpoint_interval,
        };
        let writes: Vec<Arc<Signal>> = dirs.iter().map(|_| Arc::default()).collect();
        let core = Core::new(core_options, Arc::new(OsRandom), writes.clone(), start);
        let shared = Arc::new(Shared {
            core: Mutex::new(core),
            writes,
            chores: dirs.iter().map(|_| Signal::default()).collect(),
            reads: dirs.iter().map(|_| Signal::default()).collect(),
            buffers: Arc::default(),
            clock: Signal::default(),
            clock_set_us: AtomicU64::new(u64::MAX),
            checkpoints: Signal::default(),
            progress: Signal::default(),
            dirs: dirs.iter().map(|open| Arc::clone(&open.dir)).collect(),
            devices: dirs.iter().map(|open| Arc::clone(&open.device)).collect(),
            checkpoint_dir,
            key: Mutex::new(options.key.clone()),
            desk: Mutex::default(),
            writing: RwLock::default(),
            started: Instant::now(),
            transaction_capacity: options.transaction_capacity,
            compresses: AtomicBool::new(options.compress == Compress::Always),
            trials: (options.compress == Compress::WhereFaster).then(|| Mutex::new(Trials::new())),
            stopping: AtomicBool::new(false),
        });
        let mut channel =
            DurableChannel { shared, recovery, threads: Mutex::default(), locks: Mutex::new(locks), backends };
        channel.spawn(&options.name).map_err(|error| OpenError::Io {
            dir: options.name.clone(),
            action: "start a thread".to_owned(),
            error,
        })?;
        Ok(channel)
    }

    /// What opening met.
    pub fn recovery(&self) -> &Recovery {
        &self.recovery
    }

    /// What the channel keeps in memory for its events.
    pub fn memory(&self) -> MemoryUse {
        let (hot_tail, queue) = self.shared.lock().memory_bytes();
        MemoryUse { hot_tail_bytes: hot_tail as u64, queue_bytes: queue as u64 }
    }

    /// Seals what is written from now on with another key: each log goes on under it as soon as it has a place for that. What
    /// is there stays under the keys it has, so the next opening needs all of them. A channel that is not encrypted stays so.
    pub fn rotate(&self, key: &ChannelKey) {
        if let Some(current) = &mut *self.shared.key.lock().unwrap_or_else(PoisonError::into_inner) {
            *current = key.clone();
        }
        self.shared.step(|core, _, _| core.rotate(key));
        self.shared.chores.iter().for_each(Signal::raise_all);
    }

    fn spawn(&mut self, name: &str) -> std::io::Result<()> {
        let mut threads = Vec::new();
        let mut start = |role: String, run: Role| -> std::io::Result<()> {
            // Linux shows 15 bytes.
            let thread = std::thread::Builder::new().name(format!("{role}-{name}")).spawn(run)?;
            threads.push(thread);
            Ok(())
        };
        for index in 0..self.shared.dirs.len() {
            writers::spawn(&self.shared, index, self.backends[index], &mut start)?;
            let shared = Arc::clone(&self.shared);
            start(format!("f{index}"), Box::new(move || chore_loop(&shared, index)))?;
            for _ in 0..READS_MAX {
                let shared = Arc::clone(&self.shared);
                start(format!("r{index}"), Box::new(move || read_loop(&shared, index)))?;
            }
        }
        let shared = Arc::clone(&self.shared);
        start("ckpt".to_owned(), Box::new(move || checkpoint_loop(&shared)))?;
        let shared = Arc::clone(&self.shared);
        start("clock".to_owned(), Box::new(move || clock_loop(&shared)))?;
        self.threads.lock().unwrap_or_else(PoisonError::into_inner).extend(threads);
        Ok(())
    }

    /// Writes what was accepted, then ends the threads and frees the directories.
    fn shut_down(&self) {
        self.shared.step(|core, _, answers| core.close(answers));
        self.shared.raise_everything();
        let limit = Instant::now() + CLOSE_LIMIT;
        loop {
            let seen = self.shared.progress.count();
            if self.shared.lock().is_flushed() || Instant::now() >= limit {
                break;
            }
            self.shared.writes.iter().for_each(|signal| signal.raise_all());
            self.shared.progress.wait(seen, Some(Duration::from_millis(20)));
        }
        self.shared.stopping.store(true, Ordering::Release);
        self.shared.raise_everything();
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("a thread of the channel panicked");
            }
        }
        // Whoever opens the directories next must not meet a write of ours, however long it takes.
        drop(self.shared.writing.write());
        self.shared.step(|core, _, answers| core.abandon(answers));
        self.locks.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// A disk that answers at all answers within this; a hung one must not keep the agent from stopping.
const CLOSE_LIMIT: Duration = Duration::from_secs(30);

/// Takes the lock of a directory, which is held for as long as the answer lives.
pub(super) fn lock(path: &Path, dir: &dyn Dir) -> Result<Box<dyn Send + Sync>, OpenError> {
    dir.lock().map_err(|error| match error.kind() {
        std::io::ErrorKind::WouldBlock => OpenError::Locked { dir: path.display().to_string() },
        _ => OpenError::Io { dir: path.display().to_string(), action: "lock".to_owned(), error },
    })
}

fn check(options: &DurableOptions) -> Result<(), OpenError> {
    let problem = if options.data_dirs.is_empty() {
        "a durable channel needs at least one data directory".to_owned()
    } else if !(SEGMENT_MIN..=SEGMENT_MAX).contains(&options.segment_len) || !options.segment_len.is_multiple_of(4096) {
        format!("segment length {} is not whole pages from {SEGMENT_MIN} to {SEGMENT_MAX}", options.segment_len)
    } else if options.transaction_capacity == 0 || options.transaction_capacity as u64 > options.capacity {
        format!(
            "transactionCapacity {} must be at least 1 and at most capacity {}",
            options.transaction_capacity, options.capacity
        )
    } else {
        return Ok(());
    };
    Err(OpenError::Option(problem))
}

fn chore_loop(shared: &Shared, index: usize) {
    loop {
        let seen = shared.chores[index].count();
        let chore = shared.lock().next_chore(index, shared.now(), wall_ms());
        let Some(chore) = chore else {
            if shared.is_stopping() {
                return;
            }
            shared.chores[index].wait(seen, None);
            continue;
        };
        let result = chore.run(&*shared.dirs[index]);
        shared.step(|core, now, answers| core.chore_done(index, now, chore, result, answers));
        shared.writes.iter().for_each(|signal| signal.raise_one());
        shared.progress.raise_all();
    }
}

fn read_loop(shared: &Shared, index: usize) {
    loop {
        let seen = shared.reads[index].count();
        let (job, more) = {
            let (mut core, now) = (shared.lock(), shared.now());
            (core.next_read(index, now, wall_ms()), core.read_is_due(index, now))
        };
        let Some(job) = job else {
            if shared.is_stopping() {
                return;
            }
            shared.reads[index].wait(seen, None);
            continue;
        };
        if more {
            // Another thread can start on it meanwhile.
            shared.reads[index].raise_one();
        }
        let read = job.run(&shared.buffers);
        shared.step(|core, now, answers| core.read_done(now, index, read, answers));
    }
}

/// Saves what makes the next start fast. A failure costs nothing else.
fn checkpoint_loop(shared: &Shared) {
    loop {
        let seen = shared.checkpoints.count();
        let (checkpoint, channel) = {
            let mut core = shared.lock();
            (core.next_checkpoint(shared.now()), core.channel())
        };
        let Some(checkpoint) = checkpoint else {
            if shared.is_stopping() {
                return;
            }
            shared.checkpoints.wait(seen, None);
            continue;
        };
        let key = shared.key.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Err(error) = checkpoint.write(&*shared.checkpoint_dir, &channel, key.as_ref(), &OsRandom) {
            tracing::warn!(dir = shared.checkpoint_dir.name(), %error, "no checkpoint; the next start reads more");
            shared.lock().counts.checkpoint_errors += 1;
        }
    }
}

/// What is due and cannot be done yet must not spin.
const CLOCK_STEP: Duration = Duration::from_millis(5);

/// Wakes the core when time alone changes something.
fn clock_loop(shared: &Shared) {
    loop {
        let seen = shared.clock.count();
        if shared.is_stopping() {
            return;
        }
        let (deadline, now) = (shared.lock().next_deadline(), shared.now());
        if deadline.is_some_and(|deadline| deadline <= now) {
            shared.step(|core, now, answers| core.tick(now, answers));
            shared.writes.iter().for_each(|signal| signal.raise_one());
            shared.chores.iter().for_each(Signal::raise_one);
            shared.checkpoints.raise_one();
            std::thread::sleep(CLOCK_STEP);
            continue;
        }
        shared.clock_set_us.store(deadline.map_or(u64::MAX, as_micros), Ordering::Release);
        // A step between the look and the store saw the old setting: look again before sleeping.
        if shared.lock().next_deadline() == deadline {
            shared.clock.wait(seen, deadline.map(|deadline| deadline - now));
        }
    }
}

impl Channel for DurableChannel {
    fn producer(&self) -> Box<dyn Producer> {
        let id = self.shared.lock().handle();
        Box::new(DurableProducer::new(Arc::clone(&self.shared), id))
    }

    fn consumer(&self, _name: &str) -> Box<dyn Consumer> {
        let id = self.shared.lock().handle();
        Box::new(DurableConsumer::new(Arc::clone(&self.shared), id))
    }

    fn notes(&self, owner: &str) -> Vec<(String, Bytes)> {
        self.shared.lock().notes_of(owner)
    }

    fn is_durable(&self) -> bool {
        true
    }

    fn transaction_capacity(&self) -> usize {
        self.shared.transaction_capacity
    }

    fn stats(&self) -> ChannelStats {
        self.shared.lock().stats()
    }

    fn close(&self) -> Ticket<Result<(), String>> {
        self.shut_down();
        Ticket::resolved(Ok(()))
    }
}

impl Drop for DurableChannel {
    fn drop(&mut self) {
        self.shut_down();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::TakeLimits;
    use crate::event::EventBatch;

    const LIMITS: TakeLimits = TakeLimits { events: 1000, bytes: 1 << 20 };

    fn open(root: &Path, change: impl FnOnce(&mut DurableOptions)) -> DurableChannel {
        let mut options = DurableOptions::new("c1", vec![root.join("d")]);
        options.capacity = 100_000_000;
        change(&mut options);
        DurableChannel::open(options, &Devices::new()).unwrap()
    }

    fn batch(events: usize, body: &[u8]) -> EventBatch {
        let mut batch = EventBatch::new();
        (0..events).for_each(|_| batch.push_body(body));
        batch
    }

    #[test]
    fn a_backlog_of_ten_million_events_adds_next_to_no_memory() {
        let root = tempfile::tempdir().unwrap();
        let channel = open(root.path(), |options| options.hot_tail_bytes = 1 << 20);
        let body = [b'x'; 100];
        // Four producers, so that frames are as long as they get.
        let mut producers: Vec<_> = (0..4).map(|_| channel.producer()).collect();
        let mut tickets = std::collections::VecDeque::new();
        for round in 0..1000 {
            tickets.push_back(producers[round % 4].put(batch(10_000, &body)));
            if tickets.len() > 8 {
                tickets.pop_front().unwrap().wait().unwrap();
            }
        }
        for ticket in tickets {
            ticket.wait().unwrap();
        }
        assert_eq!(channel.stats().size_events, 10_000_000);
        let (cached, index) = channel.shared.lock().memory_bytes();
        assert!(cached <= 1 << 20, "the hot tail holds {cached} bytes");
        // One hundredth of a byte for each queued event.
        assert!(index <= 100_000, "the index of 10 M events takes {index} bytes");
        assert_eq!(channel.consumer("k1").take(LIMITS, Duration::from_secs(60)).wait().unwrap().event_count(), 1000);
    }

    #[test]
    fn a_thousand_restarts_of_an_idle_channel_take_no_space() {
        let root = tempfile::tempdir().unwrap();
        let used = |path: &Path| -> u64 {
            let files = std::fs::read_dir(path.join("d")).unwrap();
            files.map(|file| file.unwrap().metadata().unwrap().len()).sum()
        };
        let small = |options: &mut DurableOptions| options.segment_len = 1 << 20;
        let channel = open(root.path(), small);
        channel.producer().put(batch(10, b"kept")).wait().unwrap();
        drop(channel);
        drop(open(root.path(), small));
        let before = used(root.path());
        for _ in 0..1000 {
            drop(open(root.path(), small));
        }
        assert_eq!(used(root.path()), before);
        let channel = open(root.path(), small);
        assert_eq!(channel.consumer("k1").take(LIMITS, Duration::from_secs(60)).wait().unwrap().event_count(), 10);
    }

    #[test]
    fn a_vanished_directory_is_refused_and_nothing_is_put_in_its_place() {
        let root = tempfile::tempdir().unwrap();
        let both = |options: &mut DurableOptions| {
            (options.segment_len, options.data_dirs) = (1 << 20, vec![root.path().join("d"), root.path().join("e")]);
        };
        let channel = open(root.path(), both);
        channel.producer().put(batch(10, b"x")).wait().unwrap();
        drop(channel);
        std::fs::remove_dir_all(root.path().join("e")).unwrap();
        let mut options = DurableOptions::new("c1", Vec::new());
        both(&mut options);
        let refused = DurableChannel::open(options, &Devices::new());
        assert!(matches!(refused, Err(OpenError::MissingDirectory { .. })));
        assert!(!root.path().join("e").exists());
    }

    #[test]
    fn a_directory_that_another_process_is_about_to_make_is_in_use_and_not_missing() {
        let root = tempfile::tempdir().unwrap();
        let both = |options: &mut DurableOptions| {
            (options.segment_len, options.data_dirs) = (1 << 20, vec![root.path().join("d"), root.path().join("e")]);
        };
        drop(open(root.path(), both));
        // As the maker has it for a moment: it has locked both, and only one of them says whose it is.
        let identity = root.path().join("e").join(IDENTITY);
        let hidden = root.path().join("hidden");
        std::fs::rename(&identity, &hidden).unwrap();
        let maker = RealDir::open_or_create(&root.path().join("d"), None).unwrap().lock().unwrap();
        let mut options = DurableOptions::new("c1", Vec::new());
        both(&mut options);
        let refused = DurableChannel::open(options, &Devices::new());
        assert!(matches!(refused, Err(OpenError::Locked { .. })));
        drop(maker);
        std::fs::rename(hidden, identity).unwrap();
        drop(open(root.path(), both));
    }

    #[test]
    fn directories_stay_locked_as_long_as_a_producer_may_write() {
        let root = tempfile::tempdir().unwrap();
        let channel = open(root.path(), |options| options.segment_len = 1 << 20);
        let dir = RealDir::open_or_create(&root.path().join("d"), None).unwrap();
        let shared = Arc::clone(&channel.shared);
        let writing = shared.writing.read().unwrap();
        std::thread::scope(|scope| {
            let closing = scope.spawn(|| channel.shut_down());
            // Nobody reads any more once somebody waits to write.
            while shared.writing.try_read().is_ok() {
                assert!(!closing.is_finished(), "closing waits for no producer");
                std::thread::yield_now();
            }
            assert!(dir.lock().is_err());
            drop(writing);
        });
        assert!(dir.lock().is_ok());
    }

    #[test]
    fn an_idle_channel_wakes_nobody() {
        let root = tempfile::tempdir().unwrap();
        let channel = open(root.path(), |options| options.segment_len = 1 << 20);
        channel.producer().put(batch(10, b"x")).wait().unwrap();
        // The witness of the last frame is the last thing that time brings about.
        let limit = Instant::now() + Duration::from_secs(60);
        while channel.shared.lock().next_deadline().is_some() {
            assert!(Instant::now() < limit, "something still waits for time");
            std::thread::yield_now();
        }
    }
}
