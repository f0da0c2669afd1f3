//! Power cuts on real file systems: ext4 and xfs are shut down under a running channel, mounted again, and the books
//! compared.
//!
//! What the file system had not yet sent to its device is lost, its journal in memory included; in some cuts the journal
//! is written and the data are not. Where the channel writes through the page cache, a random subset of its dirty pages is
//! written back first, so that exactly these survive. Some cuts strike in a recovery. Several directories on two file
//! systems lose power one after the other, as disks do. A device that loses what it has already taken is not shown here.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use system_tests::events::Random;
use tempfile::TempDir;
use wal::io::buffer::Buffer;
use wal::io::power::Journal;
use wal::io::real::Backend;
use wal::limits::PAGE;

use crate::bench::{Bench, lock};
use crate::ledger::Totals;
use crate::load::Setting;
use crate::tally::{Budget, Tally};
use crate::volume::{Kind, Volume, folder};

/// Cuts on one set of file systems, after which fresh ones follow: the books stay short, and all settings get their turn.
const CUTS_EACH: u64 = 60;
/// A cut comes at most so long after the load has begun.
const RUN_MAX_US: u64 = 8_000;
/// A cut in a recovery comes at most so long after it has begun.
const RECOVERY_MAX_US: u64 = 3_000;
/// One of so many cuts strikes in a recovery.
const IN_RECOVERY: u64 = 8;
/// A failure more says nothing new.
const FAILURES_MAX: usize = 20;

/// What all threads of the layer add to.
struct Progress {
    started: u64,
    tally: Tally,
    totals: Totals,
    by_kind: [u64; 2],
    in_recovery: u64,
    pages: u64,
}

pub(crate) fn run(budget: &Budget) -> Tally {
    let began = Instant::now();
    let mut tally = Tally::new("cuts", "power cuts");
    tally.seeds = format!("seed {}", budget.seed);
    let (started, totals) = (0, Totals::default());
    let progress = Mutex::new(Progress { started, tally, totals, by_kind: [0; 2], in_recovery: 0, pages: 0 });
    thread::scope(|scope| {
        for _ in 0..budget.jobs.max(1) {
            scope.spawn(|| {
                while let Some(number) = next(budget, &progress) {
                    if let Err(why) = rig(number, budget, &progress) {
                        let mut progress = lock(&progress);
                        progress.tally.skips.push(format!("cuts: {why}"));
                        return;
                    }
                }
            });
        }
    });
    let progress = progress.into_inner().unwrap_or_else(PoisonError::into_inner);
    let (mut tally, totals) = (progress.tally, progress.totals);
    tally.skips.dedup();
    tally.counts = vec![
        ("ext4", progress.by_kind[0]),
        ("xfs", progress.by_kind[1]),
        ("in recovery", progress.in_recovery),
        ("pages kept", progress.pages),
        ("puts acknowledged", totals.puts_acknowledged),
        ("open puts kept", totals.open_kept),
        ("open puts dropped", totals.open_dropped),
        ("events settled", totals.events_settled),
    ];
    tally.took = began.elapsed();
    tally
}

/// The number of the next set of file systems, if one is wanted.
fn next(budget: &Budget, progress: &Mutex<Progress>) -> Option<u64> {
    let mut progress = lock(progress);
    let wanted = budget.wants(progress.tally.cycles) && progress.tally.failures.len() < FAILURES_MAX;
    progress.started += u64::from(wanted);
    wanted.then_some(progress.started - 1)
}

/// One set of file systems, and what lives on it.
struct Rig {
    volumes: Vec<Volume>,
    bench: Bench,
    random: Random,
    // Last: the volumes are mounted in it.
    _folder: TempDir,
}

/// Cuts the power of one set of file systems again and again. An error is a reason to skip.
fn rig(number: u64, budget: &Budget, progress: &Mutex<Progress>) -> Result<(), String> {
    let seed = budget.seed.wrapping_add(number);
    let mut rig = Rig::new(seed)?;
    for cut in 0..CUTS_EACH {
        {
            let progress = lock(progress);
            if !budget.wants(progress.tally.cycles) {
                break;
            }
        }
        let in_recovery = cut > 0 && rig.random.below(IN_RECOVERY) == 0;
        let outcome = rig.cut(in_recovery)?;
        let mut progress = lock(progress);
        progress.tally.cycles += 1;
        progress.by_kind[rig.volumes[0].kind as usize] += 1;
        progress.in_recovery += u64::from(in_recovery);
        match outcome {
            Ok(pages) => progress.pages += pages,
            Err(failures) => {
                let setting = rig.bench.setting.arguments().join(" ");
                let kinds: Vec<&str> = rig.volumes.iter().map(|volume| volume.kind.name()).collect();
                progress.tally.failures.push(format!(
                    "cuts: after cut {cut} on {kinds:?}: {failures}; load {setting}; again with: proof cuts --jobs 1 --cycles \
                     {CUTS_EACH} --seed {seed}, several times, for instants are not seeded"
                ));
                break;
            }
        }
    }
    // What the last cut left.
    let totals = rig.bench.totals();
    let mut progress = lock(progress);
    progress.totals.add(totals);
    Ok(())
}

impl Rig {
    fn new(seed: u64) -> Result<Rig, String> {
        let mut random = Random::new(seed);
        let folder = folder()?;
        let mut volumes = Vec::new();
        let disks = 1 + random.below(2);
        for disk in 0..disks {
            // xfs takes twice as long for a cycle, so it gets fewer.
            let kind = if random.below(3) == 0 { Kind::Xfs } else { Kind::Ext4 };
            volumes.push(Volume::create(kind, folder.path(), &format!("disk{disk}"))?);
        }
        let count = disks + random.below(4 - disks);
        let dir = |index: u64| volumes[(index % disks) as usize].path().join(format!("d{index}"));
        let setting = Setting {
            io: Backend::ALL[random.below(3) as usize],
            encrypt: random.below(2) == 0,
            segment_len: [64 << 10, 128 << 10, 256 << 10][random.below(3) as usize],
            producers: 1 + random.below(3),
            in_flight: 1 + random.below(4) as usize,
            consumers: 1 + random.below(2),
            separate: random.below(2) == 0,
            checkpoint_interval_ms: 1 + random.below(20),
            ..Setting::new((0..count).map(dir).collect(), seed)
        };
        Ok(Rig { volumes, bench: Bench::new(setting), random, _folder: folder })
    }

    /// Opens the channel, checks it, loads it and cuts the power. The outer error is a reason to skip; the inner one is
    /// a broken promise, the inner value the pages that were written back before the cut.
    fn cut(&mut self, in_recovery: bool) -> Result<Result<u64, String>, String> {
        let handles: Vec<File> = self.volumes.iter().map(Volume::handle).collect::<Result<_, _>>()?;
        let limit = if in_recovery { RECOVERY_MAX_US } else { RUN_MAX_US };
        let pause = Duration::from_micros(self.random.below(limit));
        let outcome = if in_recovery {
            let setting = self.bench.setting.clone();
            let opening = thread::spawn(move || drop(setting.open()));
            thread::sleep(pause);
            let pages = self.power_off(&handles)?;
            opening.join().map_err(|_| "panicked in a recovery without power".to_owned()).map(|()| pages)
        } else {
            match self.bench.start() {
                Ok(running) => {
                    thread::sleep(pause);
                    let pages = self.power_off(&handles)?;
                    running.end();
                    Ok(pages)
                }
                Err(failures) => Err(failures),
            }
        };
        drop(handles);
        for volume in &mut self.volumes {
            volume.unmount()?;
            volume.mount()?;
        }
        Ok(outcome)
    }

    /// Keeps some dirty pages, and cuts the power of one file system after the other. The count of pages asked for.
    fn power_off(&mut self, handles: &[File]) -> Result<u64, String> {
        let mut pages = 0;
        if self.bench.setting.io == Backend::Buffered && self.random.below(4) > 0 {
            for dir in &self.bench.setting.dirs {
                pages += keep_some_pages(dir, &mut self.random);
            }
        }
        let first = self.random.below(self.volumes.len() as u64) as usize;
        for index in 0..self.volumes.len() {
            let index = (index + first) % self.volumes.len();
            let journal = if self.random.below(5) == 0 { Journal::Written } else { Journal::Lost };
            self.volumes[index].cut(&handles[index], journal)?;
        }
        Ok(pages)
    }
}

/// Writes back a random subset of the dirty pages of the files in `dir`: a direct read first writes what is cached of its
/// range, and nothing else. Files come and go meanwhile, so what cannot be read is passed over.
fn keep_some_pages(dir: &Path, random: &mut Random) -> u64 {
    let Ok(mut page) = Buffer::zeroed(PAGE) else { return 0 };
    let files: Vec<PathBuf> = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    let mut kept = 0;
    for path in files {
        let mut options = fs::OpenOptions::new();
        options.read(true).custom_flags((OFlags::DIRECT | OFlags::NOFOLLOW).bits().cast_signed());
        let Ok(file) = options.open(path) else { continue };
        let len = file.metadata().map_or(0, |metadata| metadata.len());
        // Every page of some files, few of others: whole frames and torn ones.
        let odds = 1 + random.below(6);
        for offset in (0..len).step_by(PAGE) {
            if random.below(odds) == 0 && file.read_at(&mut page, offset).is_ok() {
                kept += 1;
            }
        }
    }
    kept
}
