//! Planted bugs: each must be noticed by some layer, or the layers prove nothing.
//!
//! Each bug runs in a process of its own, because some of them make the channel hang or panic, which counts as noticed.

use std::io::Read;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use channel::simulation::exhaustive::{SCENARIOS, crash_everywhere, fail_everywhere, scenario};
use channel::simulation::rot::{Fixture, Flips, Part};
use channel::simulation::{Plan, shrink, simulate};
use wal::io::sim::Failure;
use wal::planted::{Bug, plant};

use crate::simulated;
use crate::tally::{Budget, Tally};

/// What one bug may cost before it counts as a hang, or as not noticed. All of them are noticed by a look that is the same
/// each time, within seconds; random histories come last, and nothing depends on their luck.
const LIMIT: Duration = Duration::from_secs(60);
const TEARS: u64 = 6;
const FIXED_SEEDS: u64 = 700;
const SEEDS: u64 = 2_000;
/// Every so manieth bit of the small channel is flipped.
const FLIP_EVERY: u64 = 29;
/// The bug whose going unnoticed would mean that the alarm is broken: every run tries it first.
const CANARY: Bug = Bug::AcknowledgeBeforeSync;

/// The command line of the process for one bug.
#[derive(Debug, clap::Args)]
pub(crate) struct One {
    bug: String,
    #[arg(long)]
    seed: u64,
    /// Looks with random histories alone, and prints the one that notices it, made small: one for `simulation/cases`.
    #[arg(long)]
    shrink: bool,
}

/// Looks for a bug; an error is a broken promise.
type Look = Box<dyn Fn() -> Result<(), String>>;

/// Which layers look for a bug, cheapest first.
fn layers(seed: u64) -> [(&'static str, Look); 10] {
    [
        ("kept cases", Box::new(|| simulated::kept_cases().map(|_| ()))),
        (
            "short histories",
            Box::new(|| SCENARIOS.iter().try_for_each(|(_, text)| simulate(&scenario(text)).map(|_| ()))),
        ),
        // The same in every run: what many of these notice, no change of the engine hides by chance.
        (
            "fixed seeds",
            Box::new(|| (0..FIXED_SEEDS).try_for_each(|seed| simulate(&Plan::from_seed(seed)).map(|_| ()))),
        ),
        (
            "exhaustive crashes",
            Box::new(|| {
                SCENARIOS.iter().try_for_each(|(_, text)| crash_everywhere(&scenario(text), TEARS).map(|_| ()))
            }),
        ),
        (
            "exhaustive errors",
            Box::new(|| {
                let failures = [Failure::ALL[0], Failure::ALL[1]];
                SCENARIOS.iter().try_for_each(|(_, text)| fail_everywhere(&scenario(text), &failures).map(|_| ()))
            }),
        ),
        ("forged frames", Box::new(|| Fixture::new(true, false).forge(Part::WHOLE).map(|_| ()))),
        ("flipped bits", Box::new(|| each_bit(Fixture::flip))),
        ("bits flipped while it runs", Box::new(|| each_bit(Fixture::flip_running))),
        ("bits flipped while it lies idle", Box::new(|| Fixture::new(false, false).flip_idle(Part::WHOLE).map(|_| ()))),
        (
            "simulation",
            Box::new(move || (seed..seed + SEEDS).try_for_each(|seed| simulate(&Plan::from_seed(seed)).map(|_| ()))),
        ),
    ]
}

fn each_bit(flip: fn(&Fixture, Range<u64>) -> Result<Flips, String>) -> Result<(), String> {
    [false, true].into_iter().try_for_each(|encrypted| {
        let fixture = Fixture::new(encrypted, false);
        let mut bits = (0..fixture.bits()).step_by(FLIP_EVERY as usize);
        bits.try_for_each(|bit| flip(&fixture, bit..bit + 1).map(|_| ()))
    })
}

/// Prints the smallest history found that notices the planted bug.
fn smallest(seed: u64) -> ExitCode {
    let notices = |plan: &Plan| catch_unwind(AssertUnwindSafe(|| simulate(plan).is_err())).unwrap_or(true);
    let Some(plan) = (seed..seed + SEEDS).map(Plan::from_seed).find(notices) else { return ExitCode::FAILURE };
    println!("{}", shrink(&plan, &notices));
    ExitCode::SUCCESS
}

/// Looks for one bug and prints which layer noticed what.
pub(crate) fn one(arguments: &One) -> ExitCode {
    let Some(bug) = Bug::named(&arguments.bug) else {
        eprintln!("no bug is called {}", arguments.bug);
        return ExitCode::from(2);
    };
    std::panic::set_hook(Box::new(|_| {}));
    plant(Some(bug));
    if arguments.shrink {
        return smallest(arguments.seed);
    }
    for (layer, look) in layers(arguments.seed) {
        let broken = match catch_unwind(AssertUnwindSafe(look)) {
            Ok(Ok(())) => continue,
            Ok(Err(broken)) => broken,
            Err(_) => "a panic".to_owned(),
        };
        println!("{layer}: {}", broken.lines().next().unwrap_or_default());
        return ExitCode::SUCCESS;
    }
    ExitCode::FAILURE
}

/// Runs the process for one bug: what noticed it.
fn look_for(bug: Bug, seed: u64) -> Option<String> {
    let program = std::env::current_exe().expect("this program has a path");
    let mut child = Command::new(program)
        .args(["planted-one", &bug.name(), "--seed", &seed.to_string()])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("this program starts again");
    let began = Instant::now();
    loop {
        match child.try_wait() {
            Ok(Some(_)) | Err(_) => break,
            Ok(None) if began.elapsed() > LIMIT => {
                let _gone_already = child.kill();
                let _its_status_says_nothing = child.wait();
                return Some(format!("a hang: no end after {} s", LIMIT.as_secs()));
            }
            Ok(None) => thread::park_timeout(Duration::from_millis(20)),
        }
    }
    let mut said = String::new();
    child.stdout.take()?.read_to_string(&mut said).ok()?;
    said.lines().next().map(str::to_owned)
}

/// As many bugs as the budget has cycles, another choice each time; the canary always.
pub(crate) fn run(budget: &Budget) -> Tally {
    let began = Instant::now();
    let mut tally = Tally::new("planted", "bugs");
    let count = (budget.cycles as usize).min(Bug::ALL.len());
    let start = (budget.seed % Bug::ALL.len() as u64) as usize;
    let mut chosen: Vec<Bug> = Bug::ALL.iter().copied().cycle().skip(start).take(count).collect();
    chosen.retain(|bug| *bug != CANARY);
    chosen.insert(0, CANARY);
    let (next, results) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..budget.jobs.max(1) {
            scope.spawn(|| {
                while let Some(bug) = chosen.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let began = Instant::now();
                    let caught = look_for(*bug, budget.seed);
                    let seconds = began.elapsed().as_secs_f64();
                    let known = if bug.seen_in().is_some() { "public" } else { "ours" };
                    let by = caught.as_deref().unwrap_or("NOT CAUGHT");
                    println!("{:28} {known:6} {seconds:6.1} s  {by}", bug.name());
                    results.lock().expect("no panic").push((*bug, caught.is_some()));
                }
            });
        }
    });
    for (bug, caught) in results.into_inner().expect("no panic") {
        tally.cycles += 1;
        if !caught {
            tally.failures.push(format!("{} is not noticed: {} (seed {})", bug.name(), bug.story(), budget.seed));
        }
    }
    let public = chosen.iter().filter(|bug| bug.seen_in().is_some()).count() as u64;
    tally.counts = vec![("known from other logs", public), ("planted in all", Bug::ALL.len() as u64)];
    tally.seeds = format!("seed {}", budget.seed);
    tally.took = began.elapsed();
    tally
}
