//! The layers on simulated disks: random histories from seeds, and short ones with every operation struck.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use channel::simulation::exhaustive::{SCENARIOS, crash_everywhere, fail_everywhere, scenario};
use channel::simulation::rot::{Fixture, Flips, Part};
use channel::simulation::{Plan, Report, shrink, simulate};
use wal::io::sim::Failure;

use crate::tally::{Budget, Tally};

/// Seeds a thread takes at once.
const CHUNK: u64 = 64;
/// Below this many cycles a rare combination of fault and phase may be missing by chance.
const COVERAGE_FROM: u64 = 100_000;
/// What an average cycle must have, or it proves little.
const MEDIAN_EVENTS: u32 = 20;
const MEDIAN_ROLLS: u32 = 1;
/// Seeds that run twice and must do the same.
const TWICE: u64 = 100;
const TEARS: u64 = 32;
/// Of the bits under an open channel every so manieth: a prime, so that all bits of a byte have their turn.
const RUNNING_EVERY: u64 = 31;
/// Parts of one work, for threads that are not equally fast.
const PARTS: u64 = 512;
/// So many broken promises of one kind are enough to read.
const BROKEN_MAX: usize = 5;

/// Histories that once broke a promise.
fn cases() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../channel/src/durable/simulation/cases")
}

/// Random histories: crashes, nested crashes in recovery, failing, full and stalled disks.
pub(crate) fn random(budget: &Budget) -> Tally {
    let began = Instant::now();
    let mut tally = Tally::new("simulation", "crash/recover cycles");
    match kept_cases() {
        Ok(count) => tally.counts.push(("kept cases", count)),
        Err(broken) => tally.failures.push(broken),
    }
    let (next, done) = (AtomicU64::new(budget.seed), AtomicU64::new(0));
    let (total, failed) = (Mutex::new(Report::default()), Mutex::new(None::<u64>));
    thread::scope(|scope| {
        for _ in 0..budget.jobs {
            scope.spawn(|| {
                while budget.wants(done.load(Ordering::Relaxed)) && failed.lock().expect("no panic").is_none() {
                    let first = next.fetch_add(CHUNK, Ordering::Relaxed);
                    let mut sum = Report::default();
                    for seed in first..first + CHUNK {
                        match simulate(&Plan::from_seed(seed)) {
                            Ok(report) => sum.add(&report),
                            Err(_) => *failed.lock().expect("no panic") = Some(seed),
                        }
                    }
                    // Each history ends with one more power cut.
                    done.fetch_add(sum.crashes + sum.recovery_crashes + CHUNK, Ordering::Relaxed);
                    total.lock().expect("no panic").add(&sum);
                }
            });
        }
    });
    tally.cycles = done.into_inner();
    tally.seeds = format!("seeds {} to {}", budget.seed, next.into_inner() - 1);
    if let Some(seed) = failed.into_inner().expect("no panic") {
        tally.failures.push(keep(seed));
    }
    tally.failures.extend((budget.seed..budget.seed + TWICE).filter_map(|seed| {
        let (once, again) = (simulate(&Plan::from_seed(seed)), simulate(&Plan::from_seed(seed)));
        (once != again).then(|| format!("seed {seed} has two histories"))
    }));
    let mut report = total.into_inner().expect("no panic");
    if tally.cycles >= COVERAGE_FROM {
        let (missing, surprises) = (report.coverage.missing(), report.coverage.surprises());
        tally.failures.extend(missing.into_iter().map(|mark| format!("never met: {mark}")));
        tally.failures.extend(surprises.into_iter().map(|mark| format!("the table of marks is wrong: {mark}")));
    }
    let (events, rolls) = medians(&mut report.cycles);
    if events < MEDIAN_EVENTS || rolls < MEDIAN_ROLLS {
        tally.failures.push(format!("the median cycle has {events} events and {rolls} rolls"));
    }
    tally.took = began.elapsed();
    let per_job = tally.cycles as f64 / tally.took.as_secs_f64() / budget.jobs as f64;
    tally.counts.extend([
        ("cycles per second and job", per_job as u64),
        ("crashes in recovery", report.recovery_crashes),
        ("events acknowledged", report.events_acknowledged),
        ("events settled", report.events_settled),
        ("frames", report.frames),
        ("rolls", report.rolls),
        ("torn places", report.torn),
        ("checkpoints", report.checkpoints),
        ("segments vouched for", report.vouched),
        ("footers read", report.footed),
        ("events of a median cycle", u64::from(events)),
        ("rolls of a median cycle", u64::from(rolls)),
    ]);
    println!("{}", report.coverage);
    tally
}

fn medians(cycles: &mut [(u32, u32)]) -> (u32, u32) {
    let middle = cycles.len() / 2;
    cycles.sort_unstable_by_key(|(events, _)| *events);
    let events = cycles.get(middle).map_or(0, |(events, _)| *events);
    cycles.sort_unstable_by_key(|(_, rolls)| *rolls);
    (events, cycles.get(middle).map_or(0, |(_, rolls)| *rolls))
}

/// Runs the histories that once broke a promise.
pub(crate) fn kept_cases() -> Result<u64, String> {
    let mut count = 0;
    for entry in fs::read_dir(cases()).map_err(|error| format!("{}: {error}", cases().display()))? {
        let path = entry.map_err(|error| error.to_string())?.path();
        let plan = fs::read_to_string(&path).map_err(|error| error.to_string()).and_then(|text| Plan::parse(&text));
        let outcome = plan.and_then(|plan| simulate(&plan));
        outcome.map_err(|broken| format!("{}: {broken}", path.display()))?;
        count += 1;
    }
    Ok(count)
}

/// Shrinks a failing history and keeps it, so that it runs first from now on.
fn keep(seed: u64) -> String {
    let plan = Plan::from_seed(seed);
    let Err(first) = simulate(&plan) else { return format!("seed {seed} failed once and not again") };
    let small = shrink(&plan, &|plan| simulate(plan).is_err());
    let broken = simulate(&small).err().unwrap_or_default();
    let path = cases().join(format!("found-{seed}.txt"));
    let kept = match fs::write(&path, format!("# Not mended yet: {broken}\n{small}")) {
        Ok(()) => format!("kept in {}", path.display()),
        Err(error) => format!("not kept: {error}"),
    };
    format!(
        "seed {seed}: {first}; shrunk to {} steps: {broken}; {kept}; see it again with `cargo xtask prove simulation --cycles 1 \
         --seed {seed}`\n{small}",
        small.steps.len()
    )
}

/// Every operation of the canonical histories: a crash with every outcome, and every error once and for ever.
pub(crate) fn exhaustive(budget: &Budget) -> Tally {
    let began = Instant::now();
    let mut tally = Tally::new("exhaustive", "recoveries");
    let work: Vec<(&str, &str, bool)> =
        SCENARIOS.iter().flat_map(|(name, text)| [(*name, *text, true), (*name, *text, false)]).collect();
    let (next, results) = (AtomicU64::new(0), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..budget.jobs {
            scope.spawn(|| {
                while let Some((name, text, crashes)) = work.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
                    let plan = scenario(text);
                    let sweep =
                        if *crashes { crash_everywhere(&plan, TEARS) } else { fail_everywhere(&plan, &Failure::ALL) };
                    results.lock().expect("no panic").push((*name, *crashes, sweep));
                }
            });
        }
    });
    let (mut crashed, mut failing) = (0, 0);
    for (name, crashes, sweep) in results.into_inner().expect("no panic") {
        match sweep {
            Ok(sweep) => {
                tally.cycles += sweep.recoveries;
                *(if crashes { &mut crashed } else { &mut failing }) += sweep.operations;
            }
            Err(broken) => tally.failures.push(format!("scenario {name}: {broken}")),
        }
    }
    tally.counts = vec![
        ("operations with a crash", crashed),
        ("outcomes of each", TEARS + 3),
        ("operations that fail", failing),
        ("errors of each, once and for ever", Failure::ALL.len() as u64),
    ];
    tally.took = began.elapsed();
    tally
}

/// What threads made of the parts of one work, and the first promises that were broken.
fn in_parts(
    budget: &Budget,
    encrypted: bool,
    checkpoint: bool,
    flip: impl Fn(&Fixture, Part) -> Result<Flips, String> + Sync,
) -> (Flips, Vec<String>) {
    let (next, results) = (AtomicU64::new(0), Mutex::new((Flips::default(), Vec::new())));
    thread::scope(|scope| {
        for _ in 0..budget.jobs.max(1) {
            scope.spawn(|| {
                let fixture = Fixture::new(encrypted, checkpoint);
                loop {
                    let part = Part { number: next.fetch_add(1, Ordering::Relaxed), of: PARTS };
                    if part.number >= PARTS {
                        return;
                    }
                    let flipped = flip(&fixture, part);
                    let mut results = results.lock().expect("no panic");
                    match flipped {
                        Ok(flips) => results.0.add(&flips),
                        Err(broken) => results.1.push(broken),
                    }
                }
            });
        }
    });
    let (flips, mut broken) = results.into_inner().expect("no panic");
    broken.truncate(BROKEN_MAX);
    (flips, broken)
}

/// Every single bit of every file of a small channel: noticed or harmless, and never wrong bytes.
pub(crate) fn flips(budget: &Budget) -> Tally {
    let began = Instant::now();
    let mut tally = Tally::new("flips", "flipped bits");
    for encrypted in [false, true] {
        let bits = Fixture::new(encrypted, encrypted).bits();
        let (flips, broken) = in_parts(budget, encrypted, encrypted, |fixture, part| fixture.flip(part.range(bits)));
        tally.cycles += flips.noticed + flips.harmless;
        tally.failures.extend(broken);
        let [noticed, harmless, bytes] = if encrypted {
            ["noticed, encrypted, with a checkpoint", "harmless there", "bytes there"]
        } else {
            ["noticed", "harmless", "bytes"]
        };
        tally.counts.extend([(noticed, flips.noticed), (harmless, flips.harmless), (bytes, bits / 8)]);
    }
    // Bits that flip under an open channel, another choice in each run.
    let mut running = Flips::default();
    for encrypted in [false, true] {
        let (flips, broken) = in_parts(budget, encrypted, false, |fixture, part| {
            let mut flips = Flips::default();
            for number in part.range(fixture.bits() / RUNNING_EVERY) {
                let bit = budget.seed % RUNNING_EVERY + number * RUNNING_EVERY;
                flips.add(&fixture.flip_running(bit..bit + 1)?);
            }
            Ok(flips)
        });
        running.add(&flips);
        tally.failures.extend(broken);
    }
    tally.cycles += running.noticed + running.harmless;
    tally.counts.extend([("noticed while it runs", running.noticed), ("harmless then", running.harmless)]);
    for encrypted in [false, true] {
        let (flips, broken) = in_parts(budget, encrypted, false, Fixture::flip_idle);
        tally.cycles += flips.noticed;
        tally.failures.extend(broken);
        let what = if encrypted { "told by a scrub, encrypted" } else { "told by a scrub" };
        tally.counts.push((what, flips.noticed));
    }
    let (forged, broken) = in_parts(budget, true, false, Fixture::forge);
    tally.failures.extend(broken);
    tally.counts.push(("forged frames noticed", forged.noticed));
    tally.took = began.elapsed();
    tally
}
