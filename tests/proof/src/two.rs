//! Two processes on the same directories: two loads open them at the same moment, by the same path or by a symbolic link
//! or a bind mount, on a directory that is new or has a past.
//!
//! Kept: exactly one of them opens, and the other ends at once with an error that says who is to blame. A third one is
//! refused for as long as the holder lives, even while it is stopped; when the holder was killed the directories open, and
//! the books agree with what they hold. The negative control is a lock that somebody removes: [`run`] unlinks the file
//! once, and then two of them must open.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::thread;
use std::time::Instant;

use rustix::mount::{UnmountFlags, mount_bind, unmount};
use rustix::process::Signal;

use system_tests::events::Random;

use crate::ledger::{Fact, Ledger};
use crate::load::{self, Setting};
use crate::mortal::{Mortal, judge};
use crate::tally::{Budget, Tally};

/// Races on the same directories before they are thrown away.
const RACES_EACH: u64 = 4;
/// What the winner says before it is killed.
const FACTS_MAX: u64 = 60;
const REFUSAL: &str = "is in use by another process";

/// A place with directories, and the ways that lead there.
struct Arena {
    ways: Vec<PathBuf>,
    /// Why there is no bind mount.
    skip: Option<String>,
    ledger: Ledger,
    random: Random,
    // Last, so that it is unmounted before.
    scratch: tempfile::TempDir,
}

impl Arena {
    fn new(seed: u64) -> Result<Arena, String> {
        let failed = |error: std::io::Error| format!("a folder for a race: {error}");
        let scratch = tempfile::tempdir().map_err(failed)?;
        let (real, link, bind) =
            (scratch.path().join("real"), scratch.path().join("link"), scratch.path().join("bind"));
        fs::create_dir(&real).and_then(|()| fs::create_dir(&bind)).map_err(failed)?;
        std::os::unix::fs::symlink(&real, &link).map_err(failed)?;
        let mut arena = Arena {
            ways: vec![real.clone(), link],
            skip: None,
            ledger: Ledger::new(),
            random: Random::new(seed),
            scratch,
        };
        match mount_bind(&real, &bind) {
            Ok(()) => arena.ways.push(bind),
            Err(error) => arena.skip = Some(format!("two processes: no bind mount: {error}")),
        }
        Ok(arena)
    }

    /// The channel as one of its ways leads there.
    fn setting(&mut self) -> Setting {
        let way = self.ways[self.random.below(self.ways.len() as u64) as usize].clone();
        setting_at(&way, self.random.next())
    }

    /// One race, from the start to the judgement; whether the holder was stopped in it.
    fn race(&mut self) -> Result<bool, String> {
        let first = self.ledger.start();
        let settings = [self.setting(), self.setting()];
        let [one, two] = open_both(&settings, first)?;
        let (mut winner, loser) = match (one, two) {
            ((Fact::Opened, one), (said, two)) => (one, (said, two)),
            ((said, one), (Fact::Opened, two)) => (two, (said, one)),
            ((one, _), (two, _)) => return Err(format!("neither opens: {one}; {two}")),
        };
        refused(loser)?;
        for _ in 0..self.random.below(FACTS_MAX) {
            if let Some(fact) = winner.fact()? {
                self.ledger.record(&fact);
            }
        }
        let is_stopped = self.random.below(4) == 0;
        if is_stopped {
            winner.stop()?;
        }
        let third = self.setting();
        refused(open(&third, first)?)?;
        winner.signal(Signal::KILL);
        winner.outlive(&mut self.ledger)?;
        judge(&third, &mut self.ledger)?;
        Ok(is_stopped)
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        if self.skip.is_none() {
            let _in_a_folder_that_goes_too = unmount(self.scratch.path().join("bind"), UnmountFlags::DETACH);
        }
    }
}

fn setting_at(way: &Path, seed: u64) -> Setting {
    let mut setting = Setting::new(vec![way.join("a"), way.join("b")], seed);
    setting.encrypt = true;
    setting
}

/// Starts a load, and hears its first words.
fn open(setting: &Setting, first: u64) -> Result<(Fact, Mortal), String> {
    let mut load = Mortal::start(&mut load::command(&[], setting, first, None))?;
    let said = load.fact()?.ok_or("a load says nothing")?;
    Ok((said, load))
}

fn open_both(settings: &[Setting; 2], first: u64) -> Result<[(Fact, Mortal); 2], String> {
    thread::scope(|scope| {
        let threads = settings.each_ref().map(|setting| scope.spawn(move || open(setting, first)));
        let [one, two] = threads.map(|thread| thread.join().map_err(|_| "a thread panicked".to_owned())?);
        Ok([one?, two?])
    })
}

/// The load ended, with the error that names the cause.
fn refused((said, load): (Fact, Mortal)) -> Result<(), String> {
    if !matches!(&said, Fact::Wrong { what } if what.contains(REFUSAL)) {
        return Err(format!("a second process is not refused as it should be, but says: {said}"));
    }
    let status = load.end()?;
    if status.success() { Err("a refused process ends as if all were well".to_owned()) } else { Ok(()) }
}

pub(crate) fn run(budget: &Budget) -> Tally {
    let began = Instant::now();
    let mut tally = Tally::new("two processes", "races");
    tally.seeds = format!("seed {}", budget.seed);
    tally.counts = vec![("holder stopped", 0), ("opened twice without the lock file", 0)];
    match control(budget.seed) {
        Ok(()) => tally.counts[1].1 = 1,
        Err(why) => tally.failures.push(format!("negative control: {why}")),
    }
    let shared = Mutex::new((tally, 0));
    thread::scope(|scope| {
        for _ in 0..budget.jobs.max(1) {
            scope.spawn(|| {
                loop {
                    let number = {
                        let mut shared = shared.lock().expect("no race panics with the tally open");
                        shared.1 += 1;
                        shared.1
                    };
                    let seed = budget.seed ^ (number << 20);
                    let mut arena = match Arena::new(seed) {
                        Ok(arena) => arena,
                        Err(why) => {
                            shared.lock().expect("no race panics with the tally open").0.failures.push(why);
                            return;
                        }
                    };
                    for race in 1..=RACES_EACH {
                        if !budget.wants(shared.lock().expect("no race panics with the tally open").0.cycles) {
                            return;
                        }
                        let outcome = arena.race();
                        let tally = &mut shared.lock().expect("no race panics with the tally open").0;
                        tally.cycles += 1;
                        if !arena.skip.iter().all(|skip| tally.skips.contains(skip)) {
                            tally.skips.extend(arena.skip.clone());
                        }
                        match outcome {
                            Ok(is_stopped) => tally.counts[0].1 += u64::from(is_stopped),
                            Err(why) => {
                                tally.failures.push(format!("race {race} of an arena with seed {seed}: {why}"));
                                return;
                            }
                        }
                    }
                }
            });
        }
    });
    let (mut tally, _) = shared.into_inner().expect("no race panics with the tally open");
    tally.took = began.elapsed();
    tally
}

/// Without the file that is locked two of them open, and the layer would see it.
fn control(seed: u64) -> Result<(), String> {
    let scratch = tempfile::tempdir().map_err(|error| error.to_string())?;
    let setting = setting_at(scratch.path(), seed);
    let (said, holder) = open(&setting, 0)?;
    if said != Fact::Opened {
        return Err(format!("the first does not open: {said}"));
    }
    // A holder that goes on writes into what the second recovers, which may then rightly find damage.
    holder.stop()?;
    for dir in &setting.dirs {
        fs::remove_file(dir.join("lock")).map_err(|error| format!("no lock file in {}: {error}", dir.display()))?;
    }
    match open(&setting, 0)? {
        (Fact::Opened, _) => Ok(()),
        (said, _) => Err(format!("refused although nothing was locked: {said}")),
    }
}
