//! Random histories on real files: the channel's own steps, one process that dies again and again, and what it finds.
//!
//! The histories are those of the simulation without the steps that only simulated disks obey. Half of them run in memory
//! (`/dev/shm`) and half on the disk of the target directory: what a file system does differently shows in one of them.

use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use channel::simulation::{Plan, Report, run_on_real_files, shrink};

use crate::tally::{Budget, Tally};

const MEMORY: &str = "/dev/shm";
/// How long a failing history is made smaller.
const SHRINKING: Duration = Duration::from_secs(60);

pub(crate) fn run(budget: &Budget) -> Tally {
    let began = Instant::now();
    let mut tally = Tally::new("model", "crash/recover cycles on real files");
    let grounds = grounds(&mut tally);
    let (next, done) = (AtomicU64::new(budget.seed), AtomicU64::new(0));
    let (total, failures) = (Mutex::new(Report::default()), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..budget.jobs {
            scope.spawn(|| {
                while budget.wants(done.load(Ordering::Relaxed)) && failures.lock().expect("no panic").is_empty() {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    let ground = &grounds[seed as usize % grounds.len()];
                    match run_in(ground, &plan(seed)) {
                        Ok(report) => {
                            // Each history ends with one more start.
                            done.fetch_add(report.crashes + 1, Ordering::Relaxed);
                            total.lock().expect("no panic").add(&report);
                        }
                        Err(broken) => {
                            let text = describe(ground, seed, &broken);
                            failures.lock().expect("no panic").push(text);
                        }
                    }
                }
            });
        }
    });
    let report = total.into_inner().expect("no panic");
    tally.failures.extend(failures.into_inner().expect("no panic"));
    tally.cycles = done.into_inner();
    tally.seeds = format!("seeds {} to {}", budget.seed, next.into_inner() - 1);
    tally.took = began.elapsed();
    tally.counts.extend([
        ("cycles per second", (tally.cycles as f64 / tally.took.as_secs_f64()) as u64),
        ("events acknowledged", report.events_acknowledged),
        ("events settled", report.events_settled),
        ("frames", report.frames),
        ("rolls", report.rolls),
        ("checkpoints", report.checkpoints),
    ]);
    tally
}

/// Where histories run in turn.
fn grounds(tally: &mut Tally) -> Vec<PathBuf> {
    let target = std::env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_owned));
    let mut grounds = vec![target.unwrap_or_else(std::env::temp_dir)];
    if Path::new(MEMORY).is_dir() {
        grounds.push(PathBuf::from(MEMORY));
    } else {
        tally.skips.push(format!("model: no {MEMORY}, so all histories run on the disk"));
    }
    grounds
}

/// The history of a seed, without what real disks cannot be told to do.
fn plan(seed: u64) -> Plan {
    let plan = Plan::from_seed(seed);
    let steps = plan.steps.iter().copied().filter(|step| !step.verb.needs_simulated_disks()).collect();
    plan.with_steps(steps)
}

fn run_in(ground: &Path, plan: &Plan) -> Result<Report, String> {
    let root = tempfile::Builder::new().prefix("model-").tempdir_in(ground).map_err(|error| error.to_string())?;
    run_on_real_files(plan, root.path())
}

/// The failing history, as small as it gets in a minute, in a file and in words.
fn describe(ground: &Path, seed: u64, first: &str) -> String {
    let (until, broken) = (Instant::now() + SHRINKING, RefCell::new(first.to_owned()));
    let small = shrink(&plan(seed), &|plan| {
        let outcome = if Instant::now() < until { run_in(ground, plan).err() } else { None };
        let fails = outcome.is_some();
        outcome.into_iter().for_each(|text| *broken.borrow_mut() = text);
        fails
    });
    let broken = broken.into_inner();
    let path = std::env::temp_dir().join(format!("model-{seed}.txt"));
    let kept = match fs::write(&path, format!("# On real files: {broken}\n{small}")) {
        Ok(()) => format!("kept in {}", path.display()),
        Err(error) => format!("not kept: {error}"),
    };
    format!(
        "seed {seed} in {}: {first}; shrunk to {} steps: {broken}; {kept}; see it again with `cargo run --profile proof -p \
         proof -- model --seed {seed} --cycles 1 --jobs 1`\n{small}",
        ground.display(),
        small.steps.len()
    )
}
