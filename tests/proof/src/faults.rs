//! Failing writes and flushes below ext4 and xfs: one of three directories is on a disk in user space whose k-th write or
//! flush fails, once or for ever.
//!
//! Linux reports such a failure once and then calls the pages clean, so whoever syncs again hears success for bytes that are
//! gone. At each point the channel must go on with the other directories; then the power of all disks is cut, the failing
//! one loses what it never flushed, and after a recovery on the healed disk the books must be right. Some faults strike in
//! a recovery.

use std::fs::File;
use std::sync::Mutex;
use std::thread;
use std::time::Instant;

use system_tests::events::Random;
use tempfile::TempDir;
use wal::io::power::Journal;
use wal::io::real::Backend;

use crate::bench::{Bench, Running, lock, until};
use crate::block::{Asked, Disk, Times};
use crate::ledger::Totals;
use crate::load::Setting;
use crate::tally::{Budget, Tally};
use crate::volume::{Kind, Volume, folder};

/// Points on one set of disks.
const POINTS_EACH: u64 = 12;
/// One of so many faults strikes in a recovery.
const IN_RECOVERY: u64 = 6;
/// What must be acknowledged and settled beside a failed disk.
const PUTS_BESIDE: u64 = 30;
const SETTLED_BESIDE: u64 = 30;
/// A failure more says nothing new.
const FAILURES_MAX: usize = 20;

#[derive(Default)]
struct Progress {
    started: u64,
    tally: Tally,
    totals: Totals,
    /// Points by file system, then by what failed.
    met: [[u64; 2]; 2],
    /// The disk was not asked often enough, because the channel had left it.
    not_met: u64,
    in_recovery: u64,
    /// The file system itself needs a repair: nothing could be compared.
    not_mounted: u64,
    sectors_lost: u64,
}

pub(crate) fn run(budget: &Budget) -> Tally {
    let began = Instant::now();
    let mut tally = Tally::new("faults", "failed writes and flushes");
    tally.seeds = format!("seed {}", budget.seed);
    let progress = Mutex::new(Progress { tally, ..Progress::default() });
    let next = || {
        let mut progress = lock(&progress);
        let wanted = budget.wants(progress.tally.cycles) && progress.tally.failures.len() < FAILURES_MAX;
        progress.started += u64::from(wanted);
        wanted.then_some(progress.started - 1)
    };
    thread::scope(|scope| {
        for _ in 0..budget.jobs.max(1) {
            scope.spawn(|| {
                while let Some(number) = next() {
                    if let Err(why) = rig(number, budget, &progress) {
                        lock(&progress).tally.skips.push(format!("faults: {why}"));
                        return;
                    }
                }
            });
        }
    });
    let progress = progress.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    let (mut tally, totals) = (progress.tally, progress.totals);
    tally.counts = vec![
        ("ext4 writes", progress.met[0][0]),
        ("ext4 flushes", progress.met[0][1]),
        ("xfs writes", progress.met[1][0]),
        ("xfs flushes", progress.met[1][1]),
        ("in recovery", progress.in_recovery),
        ("not mountable", progress.not_mounted),
        ("not reached", progress.not_met),
        ("sectors lost", progress.sectors_lost),
        ("puts acknowledged", totals.puts_acknowledged),
        ("puts of unknown outcome", totals.puts_failed),
        ("open puts kept", totals.open_kept),
        ("open puts dropped", totals.open_dropped),
    ];
    tally.took = began.elapsed();
    tally
}

/// What happens at one point.
#[derive(Debug, Clone, Copy)]
struct Point {
    asked: Asked,
    left: u64,
    times: Times,
    in_recovery: bool,
    /// The disk is healed before the power is cut: the channel may use it again.
    heals: bool,
}

/// What a point without a broken promise showed.
#[derive(Debug, Clone, Copy)]
struct Outcome {
    /// Sectors that the disk lost with its power.
    lost: u64,
    /// The file system mounts again. xfs sometimes refuses (EBADMSG) and wants a repair by hand.
    is_there: bool,
}

/// Three directories on two disks; the fields are dropped in this order.
struct Rig {
    sick: Volume,
    sound: Volume,
    disk: Disk,
    bench: Bench,
    random: Random,
    _folder: TempDir,
}

/// Points on one set of disks. An error is a reason to skip.
fn rig(number: u64, budget: &Budget, progress: &Mutex<Progress>) -> Result<(), String> {
    let seed = budget.seed.wrapping_add(number);
    let mut rig = Rig::new(seed)?;
    for index in 0..POINTS_EACH {
        if !budget.wants(lock(progress).tally.cycles) {
            break;
        }
        let scale = rig.random.below(6);
        let point = Point {
            asked: if index % 2 == 0 { Asked::Write } else { Asked::Flush },
            times: if index / 2 % 2 == 0 { Times::Once } else { Times::ForEver },
            // The first ones are the commonest; the later ones meet rolls, checkpoints and probes.
            left: rig.random.below(1 << scale),
            in_recovery: index > 0 && rig.random.below(IN_RECOVERY) == 0,
            heals: rig.random.below(2) == 0,
        };
        let (met, outcome) = rig.point(point)?;
        let mut progress = lock(progress);
        progress.tally.cycles += u64::from(met);
        progress.not_met += u64::from(!met);
        progress.met[rig.sick.kind as usize][point.asked as usize] += u64::from(met);
        progress.in_recovery += u64::from(met && point.in_recovery);
        match outcome {
            Ok(outcome) => {
                progress.sectors_lost += outcome.lost;
                if !outcome.is_there {
                    progress.not_mounted += 1;
                    break;
                }
            }
            Err(failure) => {
                let setting = rig.bench.setting.arguments().join(" ");
                progress.tally.failures.push(format!(
                    "faults: {point:?} (point {index}) on {}: {failure}; load {setting}; again with: proof faults --jobs 1 \
                     --cycles {POINTS_EACH} --seed {seed}, several times, for instants are not seeded",
                    rig.sick.kind.name()
                ));
                break;
            }
        }
    }
    lock(progress).totals.add(rig.bench.totals());
    Ok(())
}

impl Rig {
    fn new(seed: u64) -> Result<Rig, String> {
        let mut random = Random::new(seed);
        let folder = folder()?;
        let kind = Kind::ALL[(seed % 2) as usize];
        let disk = Disk::create(kind.len(), kind.sector(), folder.path(), "front")?;
        let sick = Volume::on(kind, &disk.file(), &folder.path().join("sick"))?;
        let sound = Volume::create(Kind::Ext4, folder.path(), "sound")?;
        let mut dirs = vec![sick.path().join("d0"), sound.path().join("d1"), sound.path().join("d2")];
        // Checkpoints are in the first one, wherever that is.
        dirs.rotate_left(random.below(3) as usize);
        let setting = Setting {
            io: Backend::ALL[(seed / 2 % 3) as usize],
            encrypt: random.below(2) == 0,
            segment_len: [64 << 10, 256 << 10][random.below(2) as usize],
            separate: true,
            checkpoint_interval_ms: 1 + random.below(30),
            // Beside a disk that cannot be read, what is not in memory waits: puts need room meanwhile.
            hot_tail_kib: [64, 64 << 10][random.below(2) as usize],
            capacity: 3000,
            ..Setting::new(dirs, seed)
        };
        Ok(Rig { sick, sound, disk, bench: Bench::new(setting), random, _folder: folder })
    }

    /// One fault, and the power cut after it. The outer error is a reason to skip. Whether the fault was met; the
    /// inner error is a broken promise, the inner value what else was seen.
    fn point(&mut self, point: Point) -> Result<(bool, Result<Outcome, String>), String> {
        let handle = self.sound.handle()?;
        let failed_before = self.disk.failed();
        let mut lost = 0;
        let outcome = if point.in_recovery {
            self.disk.fail(point.asked, point.left, point.times);
            // It may open and it may not; either way it leaves what the next recovery needs.
            drop(self.bench.setting.open());
            lost = self.power_off(&handle)?;
            Ok(())
        } else {
            match self.bench.start() {
                Ok(running) => {
                    let outcome = self.strike(point, failed_before, &running);
                    lost = self.power_off(&handle)?;
                    running.end();
                    outcome
                }
                Err(failure) => Err(failure),
            }
        };
        drop(handle);
        let met = self.disk.failed() > failed_before;
        // Without power even now: else what is cached would be written, and a lost page would look kept.
        self.sick.unmount()?;
        self.sound.unmount()?;
        self.disk.heal();
        self.sound.mount()?;
        let is_there = self.sick.mount().is_ok();
        Ok((met, outcome.map(|()| Outcome { lost, is_there })))
    }

    /// Lets the disk fail under the load, and wants puts and takes to go on.
    fn strike(&self, point: Point, failed_before: u64, running: &Running) -> Result<(), String> {
        running.goes_on(5, 0, "before any fault")?;
        self.disk.fail(point.asked, point.left, point.times);
        let before = running.totals().puts_acknowledged;
        // A channel that needs no more of the disk than this asks it no more.
        let is_enough = || running.totals().puts_acknowledged > before + 400;
        let _met_or_not = until(|| self.disk.failed() > failed_before || is_enough());
        running.goes_on(PUTS_BESIDE, SETTLED_BESIDE, "beside a failed disk")?;
        if point.heals {
            self.disk.heal();
            running.goes_on(PUTS_BESIDE, SETTLED_BESIDE, "after the disk is healed")?;
        }
        Ok(())
    }

    /// Cuts the power of both disks, the failing one first or last.
    fn power_off(&mut self, sound: &File) -> Result<u64, String> {
        let sick_first = self.random.below(2) == 0;
        let mut lost = 0;
        for turn in 0..2 {
            if sick_first == (turn == 0) {
                lost = self.disk.cut(&mut self.random)?;
            } else {
                self.sound.cut(sound, Journal::Lost)?;
            }
        }
        Ok(lost)
    }
}
