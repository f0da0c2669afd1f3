//! A disk that is full, again and again: filled by the channel itself or by somebody else's file, drained, filled again, on
//! a small tmpfs and on a small ext4.
//!
//! One round: a load in a process of its own puts until it is refused, while another program's file may take the rest of
//! the disk at any moment, so that no space is left for a segment, a checkpoint or an identity; it is killed; the directories
//! open on the full disk, with everything that was acknowledged; puts are refused as full and nothing else; everything is
//! taken and settled; the space returns, and puts work again within a second. A new channel on a full disk is an error, and
//! works once there is space. The negative control lets events take the room of settlements: `--plant SpendLastSpare`.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use channel::{Channel, DurableChannel};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::Signal;
use system_tests::events::Random;
use wal::io::real::Backend;
use wal::planted::Bug;

use crate::ledger::{Fact, Ledger};
use crate::load::{self, Load, Setting, Witness};
use crate::mortal::{Mortal, judge};
use crate::tally::{Budget, Tally};
use crate::volume::{Kind, Volume};

/// Rounds on one disk before it is made anew.
const ROUNDS: u64 = 20;
const SEGMENT: u64 = 1 << 20;
/// Refusals after which the disk counts as full.
const REFUSALS: u64 = 8;
/// A load that is neither refused nor gets anywhere for so long has hung.
const LIMIT: Duration = Duration::from_secs(15);
/// Puts work again this soon after the space is back.
const AGAIN_MAX: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(1);

/// A small file system.
enum Disk {
    Tmpfs(PathBuf),
    Ext4(Volume),
}

impl Disk {
    fn path(&self) -> &Path {
        match self {
            Disk::Tmpfs(path) => path,
            Disk::Ext4(volume) => volume.path(),
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Disk::Tmpfs(_) => "tmpfs",
            Disk::Ext4(_) => "ext4",
        }
    }

    fn backend(&self) -> Backend {
        match self {
            Disk::Tmpfs(_) => Backend::Buffered,
            Disk::Ext4(_) => Backend::Uring,
        }
    }

    fn tmpfs(folder: &Path) -> Result<Disk, String> {
        let path = folder.join("tmpfs");
        fs::create_dir_all(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        mount("tmpfs", &path, "tmpfs", MountFlags::NOATIME, Some(c"size=64m"))
            .map_err(|error| format!("mount a tmpfs: {error}"))?;
        Ok(Disk::Tmpfs(path))
    }

    fn ext4(folder: &Path) -> Result<Disk, String> {
        Volume::create(Kind::Ext4, folder, "ext4").map(Disk::Ext4)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Disk::Tmpfs(path) = self
            && let Err(error) = unmount(path.as_path(), UnmountFlags::DETACH)
        {
            eprintln!("{} stays behind: {error}", path.display());
        }
    }
}

/// Somebody else's file, which takes all the space there is.
struct Balloon(PathBuf);

impl Balloon {
    fn blow(disk: &Disk) -> Result<Balloon, String> {
        let path = disk.path().join("balloon");
        let mut file = File::create(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        // Smaller and smaller pieces, so that not a block is left.
        for length in [1 << 20, 4096, 1] {
            while file.write_all(&vec![1; length]).is_ok() {}
        }
        Ok(Balloon(path))
    }
}

impl Drop for Balloon {
    fn drop(&mut self) {
        let _in_a_disk_that_goes_too = fs::remove_file(&self.0);
    }
}

/// The books, and what a load in this process hears.
#[derive(Default)]
struct Heard {
    ledger: Mutex<Ledger>,
    acknowledged: AtomicU64,
    refused: AtomicU64,
    failed: AtomicU64,
}

impl Heard {
    fn ledger<T>(&self, look: impl FnOnce(&mut Ledger) -> T) -> T {
        look(&mut self.ledger.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn witness(self: &Arc<Heard>) -> Witness {
        let heard = Arc::clone(self);
        Arc::new(move |fact| {
            heard.ledger(|ledger| ledger.record(&fact));
            let count = match fact {
                Fact::PutAcknowledged { .. } => &heard.acknowledged,
                Fact::PutRefused { .. } => &heard.refused,
                Fact::PutFailed { .. } => &heard.failed,
                _ => return,
            };
            count.fetch_add(1, Ordering::AcqRel);
        })
    }

    /// Runs a load of `setting` until `is_done`.
    fn load(
        self: &Arc<Heard>,
        channel: &Arc<dyn Channel>,
        setting: &Setting,
        what: &str,
        is_done: impl Fn() -> bool,
    ) -> Result<Duration, String> {
        let began = Instant::now();
        let first = self.ledger(Ledger::start);
        let load = Load::start(channel, setting, first, &self.witness());
        let took = loop {
            if is_done() {
                break Ok(began.elapsed());
            }
            if began.elapsed() > LIMIT {
                let (stats, totals) = (channel.stats(), self.ledger(|ledger| ledger.totals));
                break Err(format!("waited in vain: {what}; {} events are there; {totals:?}", stats.size_events));
            }
            thread::sleep(LOOK);
        };
        match took {
            Ok(_) => load.join(),
            // What waits for ever cannot be waited for: its threads go with the process.
            Err(_) => std::mem::forget(load),
        }
        took
    }
}

struct Round<'a> {
    disk: &'a Disk,
    heard: Arc<Heard>,
    setting: Setting,
    random: Random,
    plant: Option<Bug>,
    /// The longest time until puts worked again.
    again_max: Duration,
}

impl Round<'_> {
    fn run(&mut self) -> Result<(), String> {
        self.setting.seed = self.random.next();
        let is_balloon = self.random.below(2) == 0;
        let mut balloon = self.fill_and_die(is_balloon)?;
        // The disk is as full as it was; opening needs no space.
        self.heard.ledger(|ledger| judge(&self.setting, ledger)).map_err(|why| format!("on the full disk: {why}"))?;
        if balloon.is_none() {
            balloon = Some(Balloon::blow(self.disk)?);
        }
        let channel = self.open()?;
        self.refused(&channel)?;
        self.drain(&channel, "the full disk is drained")?;
        // A second life while full, now with nothing in it.
        channel.close().wait().map_err(|error| format!("close on the full disk: {error}"))?;
        drop(channel);
        let channel = self.open()?;
        drop(balloon);
        self.works_again(&channel)?;
        self.drain(&channel, "what came after is drained")?;
        channel.close().wait().map_err(|error| format!("close: {error}"))?;
        drop(channel);
        self.heard.ledger(|ledger| judge(&self.setting, ledger))
    }

    fn open(&self) -> Result<Arc<dyn Channel>, String> {
        let opened: DurableChannel = self.setting.open().map_err(|error| format!("does not open: {error}"))?;
        Ok(Arc::new(opened))
    }

    /// A process of its own puts until the disk is full, and is killed. The balloon comes in the middle of it, or not at all.
    fn fill_and_die(&mut self, is_balloon: bool) -> Result<Option<Balloon>, String> {
        let mut setting = self.setting.clone();
        setting.consumers = self.random.below(2);
        let first = self.heard.ledger(Ledger::start);
        let mut child = Mortal::start(&mut load::command(&[], &setting, first, self.plant))?;
        let (mut balloon, mut acknowledged, mut refused) = (None, 0, 0);
        let at = self.random.below(600);
        let began = Instant::now();
        while refused < REFUSALS {
            let Some(fact) = child.fact()? else { return Err("the load ended on the full disk".to_owned()) };
            match &fact {
                Fact::PutAcknowledged { .. } => acknowledged += 1,
                Fact::PutRefused { .. } => refused += 1,
                Fact::Wrong { what } => return Err(format!("the load says: {what}")),
                _ => {}
            }
            self.heard.ledger(|ledger| ledger.record(&fact));
            // With consumers the disk never gets full by itself.
            if balloon.is_none() && acknowledged >= at && (is_balloon || setting.consumers > 0) {
                balloon = Some(Balloon::blow(self.disk)?);
            }
            if began.elapsed() > LIMIT {
                return Err(format!("the disk never gets full: {acknowledged} puts acknowledged, {refused} refused"));
            }
        }
        child.signal(Signal::KILL);
        self.heard.ledger(|ledger| child.outlive(ledger))?;
        Ok(balloon)
    }

    /// Puts on the full disk are refused as full sooner or later, and never fail.
    fn refused(&mut self, channel: &Arc<dyn Channel>) -> Result<(), String> {
        let only_puts = Setting { consumers: 0, ..self.setting.clone() };
        let before = (self.heard.refused.load(Ordering::Acquire), self.heard.failed.load(Ordering::Acquire));
        let is_refused = || self.heard.refused.load(Ordering::Acquire) >= before.0 + REFUSALS;
        self.heard.load(channel, &only_puts, "puts are refused on a full disk", is_refused)?;
        let failed = self.heard.failed.load(Ordering::Acquire) - before.1;
        if failed > 0 { Err(format!("{failed} puts failed on a full disk instead of being refused")) } else { Ok(()) }
    }

    fn drain(&mut self, channel: &Arc<dyn Channel>, what: &str) -> Result<(), String> {
        let only_takes = Setting { producers: 0, consumers: 2, returns: 0, ..self.setting.clone() };
        let is_empty = || channel.stats().size_events == 0;
        self.heard.load(channel, &only_takes, what, is_empty).map(drop)
    }

    fn works_again(&mut self, channel: &Arc<dyn Channel>) -> Result<(), String> {
        let only_puts = Setting { consumers: 0, ..self.setting.clone() };
        let before = self.heard.acknowledged.load(Ordering::Acquire);
        let is_taken = || self.heard.acknowledged.load(Ordering::Acquire) > before;
        let took = self.heard.load(channel, &only_puts, "puts work again", is_taken)?;
        self.again_max = self.again_max.max(took);
        if took > AGAIN_MAX { Err(format!("puts worked again only after {took:?}")) } else { Ok(()) }
    }
}

/// A new channel on a full disk is an error that names the cause, and works once there is space.
fn new_channel_on_a_full_disk(disk: &Disk) -> Result<(), String> {
    let mut setting = Setting::new(vec![disk.path().join("new")], 0);
    setting.io = disk.backend();
    let balloon = Balloon::blow(disk)?;
    match setting.open() {
        Ok(_) => return Err("a new channel opens on a full disk".to_owned()),
        Err(error) if error.to_string().contains("space") => {}
        Err(error) => return Err(format!("a new channel on a full disk is refused for another reason: {error}")),
    }
    drop(balloon);
    setting.open().map(drop).map_err(|error| format!("with space again: {error}"))?;
    fs::remove_dir_all(&setting.dirs[0]).map_err(|error| error.to_string())
}

pub(crate) fn run(budget: &Budget) -> Tally {
    let began = Instant::now();
    let mut tally = Tally::new("full disks", "rounds");
    tally.seeds = format!("seed {}", budget.seed);
    // A bug that is planted here belongs into the process that dies.
    let plant = Bug::ALL.iter().copied().find(|bug| wal::planted::is(*bug));
    let (mut number, mut again_ms_max, mut refused) = (0, 0, 0);
    while budget.wants(tally.cycles) && tally.failures.is_empty() {
        let folder = match tempfile::tempdir() {
            Ok(folder) => folder,
            Err(error) => {
                tally.failures.push(format!("no temporary directory: {error}"));
                break;
            }
        };
        let made = if number % 2 == 0 { Disk::tmpfs(folder.path()) } else { Disk::ext4(folder.path()) };
        let disk = match made {
            Ok(disk) => disk,
            Err(why) => {
                tally.skips.push(format!("full disks: {why}"));
                if tally.skips.len() > 1 {
                    break;
                }
                number += 1;
                continue;
            }
        };
        let seed = budget.seed ^ (number << 20);
        if let Err(why) = new_channel_on_a_full_disk(&disk) {
            tally.failures.push(format!("{}: {why}", disk.name()));
        }
        let mut setting = Setting::new(vec![disk.path().join("a"), disk.path().join("b")], seed);
        (setting.io, setting.segment_len, setting.encrypt) = (disk.backend(), SEGMENT, true);
        setting.capacity = 100_000_000;
        let heard = Arc::<Heard>::default();
        let random = Random::new(seed);
        let mut round = Round { disk: &disk, heard, setting, random, plant, again_max: Duration::ZERO };
        // Both file systems get their turn, however small the budget is.
        for turn in 1..=ROUNDS.min(budget.cycles.div_ceil(2)) {
            if let Err(why) = round.run() {
                let (name, setting) = (disk.name(), round.setting.arguments().join(" "));
                tally.failures.push(format!("{name} with seed {seed}, round {turn}: {why}; {setting}"));
                break;
            }
            tally.cycles += 1;
        }
        again_ms_max = again_ms_max.max(u64::try_from(round.again_max.as_millis()).unwrap_or(u64::MAX));
        refused += round.heard.ledger(|ledger| ledger.totals.puts_refused);
        number += 1;
    }
    tally.counts =
        vec![("disks", number), ("puts refused", refused), ("ms until puts worked again, at most", again_ms_max)];
    tally.took = began.elapsed();
    tally
}
