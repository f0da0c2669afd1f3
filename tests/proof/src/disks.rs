//! One of three disks is lost, or stalls, while the channel runs.
//!
//! Puts and takes of others must go on while the disk is away: new producers and consumers that come after the fault get
//! their answers before it is healed. Then the disk is back, the power of all disks is cut, and nothing acknowledged may
//! be missing. How long a put takes before and during the fault is printed, and no promise.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use system_tests::events::Random;
use tempfile::TempDir;
use wal::io::power::Journal;
use wal::io::real::Backend;

use crate::bench::{Bench, Running, lock, until};
use crate::block::Disk;
use crate::ledger::{Fact, Totals};
use crate::load::{Setting, Witness};
use crate::tally::{Budget, Tally};
use crate::volume::{Kind, Volume, folder};

/// What a stall lasts at least, and one stall of a run that has time for it.
const STALL: Duration = Duration::from_secs(3);
const STALL_LONG: Duration = Duration::from_secs(30);
/// What is acknowledged and settled before the fault, while it lasts, and after it.
const PUTS: u64 = 300;
const SETTLED: u64 = 300;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Lost,
    Stalled(Duration),
}

#[derive(Default)]
struct Progress {
    started: u64,
    tally: Tally,
    totals: Totals,
    lost: u64,
    stalled: u64,
    /// How long puts took, in microseconds.
    before: Vec<u64>,
    during: Vec<u64>,
    not_mounted: u64,
}

pub(crate) fn run(budget: &Budget) -> Tally {
    let began = Instant::now();
    let mut tally = Tally::new("disks", "disks lost or stalled");
    tally.seeds = format!("seed {}", budget.seed);
    let progress = Mutex::new(Progress { tally, ..Progress::default() });
    let next = || {
        let mut progress = lock(&progress);
        let wanted = budget.wants(progress.started);
        progress.started += u64::from(wanted);
        wanted.then_some(progress.started - 1)
    };
    thread::scope(|scope| {
        for _ in 0..budget.jobs.max(1) {
            scope.spawn(|| {
                while let Some(number) = next() {
                    if let Err(why) = one(number, budget, &progress) {
                        lock(&progress).tally.skips.push(format!("disks: {why}"));
                        return;
                    }
                }
            });
        }
    });
    let progress = progress.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    let (mut tally, totals) = (progress.tally, progress.totals);
    let (before, during) = (p99(progress.before), p99(progress.during));
    tally.counts = vec![
        ("lost", progress.lost),
        ("stalled", progress.stalled),
        ("not mountable", progress.not_mounted),
        ("put p99 before in us", before),
        ("during in us", during),
        ("ratio in percent", during * 100 / before.max(1)),
        ("puts acknowledged", totals.puts_acknowledged),
        ("puts of unknown outcome", totals.puts_failed),
        ("events settled", totals.events_settled),
    ];
    tally.took = began.elapsed();
    tally
}

fn p99(mut sorted: Vec<u64>) -> u64 {
    sorted.sort_unstable();
    sorted.get(sorted.len() * 99 / 100).copied().unwrap_or(0)
}

/// Tells how long puts took, by the number of their first event.
#[derive(Default)]
struct Watch {
    asked: HashMap<u64, Instant>,
    took: Vec<(u64, u64)>,
}

impl Watch {
    fn hear(&mut self, fact: &Fact) {
        match fact {
            Fact::PutAsked { first, .. } => {
                self.asked.insert(*first, Instant::now());
            }
            Fact::PutAcknowledged { first } => {
                let asked = self.asked.remove(first);
                self.took.extend(asked.map(|asked| (*first, asked.elapsed().as_micros() as u64)));
            }
            _ => {}
        }
    }
}

/// Three disks; the fields are dropped in this order.
struct Rig {
    sick: Volume,
    sound: [Volume; 2],
    disk: Disk,
    bench: Bench,
    random: Random,
    _folder: TempDir,
}

/// One fault on fresh disks. An error is a reason to skip.
fn one(number: u64, budget: &Budget, progress: &Mutex<Progress>) -> Result<(), String> {
    let seed = budget.seed.wrapping_add(number);
    let stall = if number == 1 && budget.until.is_some() { STALL_LONG } else { STALL };
    let fault = if number.is_multiple_of(2) { Fault::Lost } else { Fault::Stalled(stall) };
    let mut rig = Rig::new(seed, Kind::ALL[(number / 2 % 2) as usize])?;
    let watch: Arc<Mutex<Watch>> = Arc::default();
    let outcome = rig.run(fault, &watch)?;
    let mut progress = lock(progress);
    progress.tally.cycles += 1;
    *(if fault == Fault::Lost { &mut progress.lost } else { &mut progress.stalled }) += 1;
    progress.totals.add(rig.bench.totals());
    match outcome {
        Ok(Some(first)) => {
            let took = std::mem::take(&mut lock(&watch).took);
            let (during, before): (Vec<_>, Vec<_>) = took.into_iter().partition(|(put, _)| *put >= first);
            progress.before.extend(before.into_iter().map(|(_, us)| us));
            progress.during.extend(during.into_iter().map(|(_, us)| us));
        }
        Ok(None) => progress.not_mounted += 1,
        Err(failure) => {
            let setting = rig.bench.setting.arguments().join(" ");
            progress.tally.failures.push(format!(
                "disks: {fault:?} on {}: {failure}; load {setting}; again with: proof disks --jobs {} --cycles {} --seed {}",
                rig.sick.kind.name(),
                budget.jobs,
                number + 1,
                budget.seed
            ));
        }
    }
    Ok(())
}

impl Rig {
    fn new(seed: u64, kind: Kind) -> Result<Rig, String> {
        let mut random = Random::new(seed);
        let folder = folder()?;
        let disk = Disk::create(kind.len(), kind.sector(), folder.path(), "front")?;
        let sick = Volume::on(kind, &disk.file(), &folder.path().join("sick"))?;
        let sound = [Kind::Ext4, Kind::Xfs].map(|kind| Volume::create(kind, folder.path(), kind.name()));
        let [one, two] = sound;
        let sound = [one?, two?];
        let mut dirs = vec![sick.path().join("d0"), sound[0].path().join("d1"), sound[1].path().join("d2")];
        dirs.rotate_left(random.below(3) as usize);
        let setting = Setting {
            io: Backend::ALL[random.below(3) as usize],
            encrypt: random.below(2) == 0,
            segment_len: 256 << 10,
            producers: 6,
            in_flight: 1,
            capacity: 20_000,
            // Most of what waits for a take must be read: what only the lost disk holds is passed by.
            hot_tail_kib: 64,
            returns: 0,
            ..Setting::new(dirs, seed)
        };
        Ok(Rig { sick, sound, disk, bench: Bench::new(setting), random, _folder: folder })
    }

    /// The outer error is a reason to skip; the inner one is a broken promise, the inner value the number of the first
    /// event that was put during the fault, `None` when the file system on the lost disk needs a repair.
    fn run(&mut self, fault: Fault, watch: &Arc<Mutex<Watch>>) -> Result<Result<Option<u64>, String>, String> {
        let handles = [self.sound[0].handle()?, self.sound[1].handle()?];
        let hears = Arc::clone(watch);
        let also: Witness = Arc::new(move |fact| lock(&hears).hear(&fact));
        let mut running = match self.bench.start_before(also) {
            Ok(running) => running,
            Err(failure) => return Ok(Err(failure)),
        };
        let outcome = self.strike(fault, &mut running);
        self.disk.cut(&mut self.random)?;
        for (volume, handle) in self.sound.iter().zip(&handles) {
            volume.cut(handle, Journal::Lost)?;
        }
        running.end();
        drop(handles);
        self.sick.unmount()?;
        self.disk.heal();
        for volume in &mut self.sound {
            volume.unmount()?;
            volume.mount()?;
        }
        if self.sick.mount().is_err() {
            return Ok(outcome.map(|_| None));
        }
        Ok(outcome.and_then(|first| {
            let running = self.bench.start()?;
            let outcome = running.goes_on(PUTS, SETTLED, "with all disks back");
            running.end();
            outcome.map(|_| Some(first))
        }))
    }

    fn strike(&self, fault: Fault, running: &mut Running) -> Result<u64, String> {
        running.goes_on(PUTS, SETTLED, "before any fault")?;
        let began = Instant::now();
        match fault {
            Fault::Lost => self.disk.vanish(),
            Fault::Stalled(_) => {
                self.disk.freeze();
                // Whoever was on the disk now waits; from here on others come.
                until(|| self.disk.hangs()).map_err(|()| "the channel does not use the disk".to_owned())?;
            }
        }
        let first = running.add_load(&self.bench.setting);
        let lasts = match fault {
            Fault::Lost => Duration::ZERO,
            Fault::Stalled(lasts) => lasts,
        };
        loop {
            running.goes_on(PUTS, SETTLED, "while a disk is away")?;
            if began.elapsed() >= lasts {
                break;
            }
        }
        if fault != Fault::Lost {
            self.disk.heal();
            running.goes_on(PUTS, SETTLED, "after the stall")?;
        }
        Ok(first)
    }
}
