//! A process that is killed at each of its system calls: `strace` sends SIGKILL when a thread is about to make its k-th call
//! of a name, for every name that the load uses and k = 1, 2, … until nothing is killed any more.
//!
//! Kept: after each death the channel opens, and the books agree with what it holds. `strace` counts for each thread by
//! itself, so k runs until no thread makes as many calls. Calls that touch no file are sampled at k = 1, 2, 4, 8, …
//!
//! Passes alternate between directories that are made in the very run and such that an earlier life has left, between
//! plain and encrypted frames, and between direct and buffered writes. A kill loses nothing that reached the kernel, so
//! the negative control is an answer before the write: `AcknowledgeBeforeSync`.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::sync::Mutex;
use std::thread;
use std::time::Instant;

use wal::io::real::Backend;
use wal::planted::Bug;

use crate::ledger::Ledger;
use crate::load::{self, Setting};
use crate::mortal::{Mortal, judge};
use crate::tally::{Budget, Tally};

/// Events of one run, after which it ends by itself.
const EVENTS: u64 = 1000;
/// Facts of the life before, in passes that begin with one.
const FACTS_BEFORE: u64 = 120;
/// A name is done when so many runs in a row outlived it: threads share the work differently each time.
const SURVIVED_MAX: u32 = 2;
/// Not swept: without the first one nothing runs.
const UNTOUCHED: [&str; 1] = ["execve"];
/// Calls that reach no file: waiting, memory, threads, and the facts that go to the prover.
const SAMPLED: [&str; 22] = [
    "arch_prctl",
    "brk",
    "clock_nanosleep",
    "clone3",
    "exit",
    "exit_group",
    "futex",
    "getrandom",
    "gettid",
    "madvise",
    "mprotect",
    "poll",
    "prctl",
    "prlimit64",
    "read",
    "rseq",
    "rt_sigaction",
    "rt_sigprocmask",
    "sched_getaffinity",
    "set_robust_list",
    "sigaltstack",
    "write",
];

/// Where one name stands.
struct Sweep {
    name: String,
    k: u64,
    survived: u32,
}

/// How the runs of one pass are set up.
struct Pass {
    setting: Setting,
    had_a_life: bool,
    plant: Option<Bug>,
}

pub(crate) fn run(budget: &Budget) -> Tally {
    // A bug that is planted here belongs into the process that dies.
    let plant = Bug::ALL.iter().copied().find(|bug| wal::planted::is(*bug));
    let began = Instant::now();
    let mut tally = Tally::new("kills at system calls", "kills");
    tally.seeds = format!("seed {}", budget.seed);
    let (mut passes, mut left) = (0, 0);
    while budget.wants(tally.cycles) && tally.failures.is_empty() {
        let scratch = match tempfile::tempdir() {
            Ok(scratch) => scratch,
            Err(error) => {
                tally.failures.push(format!("no temporary directory: {error}"));
                break;
            }
        };
        let pass = pass(scratch.path(), budget.seed, passes, plant);
        let names = match names(&pass) {
            Ok(names) => names,
            Err(why) => {
                tally.skips.push(format!("kills at system calls: {why}"));
                break;
            }
        };
        if passes == 0 {
            tally.counts = vec![("names", names.len() as u64), ("calls in a run", names.values().sum())];
        }
        left = one_pass(budget, &mut tally, scratch.path(), &pass, names.into_keys());
        passes += u64::from(left == 0);
        if left > 0 {
            break;
        }
    }
    tally.counts.push(("whole passes", passes));
    tally.counts.push(("names not finished", left));
    tally.took = began.elapsed();
    tally
}

fn pass(scratch: &Path, seed: u64, number: u64, plant: Option<Bug>) -> Pass {
    let mut setting = Setting::new(vec![scratch.join("a"), scratch.join("b")], seed ^ number);
    setting.encrypt = number.is_multiple_of(2);
    setting.io = if (number / 2).is_multiple_of(2) { Backend::Direct } else { Backend::Buffered };
    setting.separate = number % 4 == 1;
    Pass { setting, had_a_life: number % 2 == 1, plant }
}

/// The system calls of a run that is left alone, with their counts; or why they cannot be known here.
fn names(pass: &Pass) -> Result<BTreeMap<String, u64>, String> {
    let scratch = tempfile::tempdir().map_err(|error| error.to_string())?;
    let trace = scratch.path().join("trace");
    let trace_text = trace.display().to_string();
    let setting = placed(pass, scratch.path());
    let mut command = load::command(&["strace", "-f", "-qq", "-o", &trace_text], &setting, 0, None);
    let status = Mortal::start(&mut command)?.outlive_events(&mut Ledger::new(), EVENTS)?;
    if !status.success() {
        return Err(format!("strace ends with {status}"));
    }
    let mut names: BTreeMap<String, u64> = BTreeMap::new();
    // `4711 openat(AT_FDCWD, …`; lines that resume a call have `<...` there.
    for line in fs::read_to_string(&trace).map_err(|error| error.to_string())?.lines() {
        let call = line.split_ascii_whitespace().nth(1).and_then(|call| call.split_once('('));
        let Some((name, _)) =
            call.filter(|(name, _)| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_'))
        else {
            continue;
        };
        *names.entry(name.to_owned()).or_default() += 1;
    }
    names.retain(|name, _| !UNTOUCHED.contains(&name.as_str()));
    Ok(names)
}

/// The pass's setting with directories of its own in `folder`.
fn placed(pass: &Pass, folder: &Path) -> Setting {
    let mut setting = pass.setting.clone();
    setting.dirs = ["a", "b"].iter().map(|name| folder.join(name)).collect();
    setting
}

/// Sweeps all names side by side; how many were not finished within the budget.
fn one_pass(
    budget: &Budget,
    tally: &mut Tally,
    scratch: &Path,
    pass: &Pass,
    names: impl Iterator<Item = String>,
) -> u64 {
    let sweeps: Mutex<VecDeque<Sweep>> = Mutex::new(names.map(|name| Sweep { name, k: 1, survived: 0 }).collect());
    let shared = Mutex::new(tally);
    let wants = || {
        let tally = shared.lock().expect("no run panics with the tally open");
        budget.wants(tally.cycles) && tally.failures.is_empty()
    };
    thread::scope(|scope| {
        for job in 0..budget.jobs.max(1) {
            let (sweeps, shared, wants) = (&sweeps, &shared, &wants);
            scope.spawn(move || {
                let folder = scratch.join(job.to_string());
                while wants() {
                    // One name goes round at a time, so that a small budget kills at every name.
                    let next = sweeps.lock().expect("no run panics with the sweeps open").pop_front();
                    let Some(mut sweep) = next else { break };
                    let outcome = kill(pass, &folder, &sweep);
                    let mut tally = shared.lock().expect("no run panics with the tally open");
                    match outcome {
                        Ok(true) => (tally.cycles, sweep.survived) = (tally.cycles + 1, 0),
                        Ok(false) => sweep.survived += 1,
                        Err(why) => {
                            let (name, k, setting) = (&sweep.name, sweep.k, pass.setting.arguments().join(" "));
                            tally.failures.push(format!(
                                "killed at {name} number {k} of a thread: {why}; strace -f -e \
                                 inject={name}:signal=KILL:when={k} proof load {setting}; a life before: {}",
                                pass.had_a_life
                            ));
                        }
                    }
                    drop(tally);
                    if sweep.survived < SURVIVED_MAX {
                        sweep.k = if SAMPLED.contains(&sweep.name.as_str()) { sweep.k * 2 } else { sweep.k + 1 };
                        sweeps.lock().expect("no run panics with the sweeps open").push_back(sweep);
                    }
                }
            });
        }
    });
    sweeps.into_inner().expect("no run panics with the sweeps open").len() as u64
}

/// One run; whether it was killed. An error is a broken promise.
fn kill(pass: &Pass, folder: &Path, sweep: &Sweep) -> Result<bool, String> {
    if folder.exists() {
        fs::remove_dir_all(folder).map_err(|error| format!("cannot remove {}: {error}", folder.display()))?;
    }
    fs::create_dir_all(folder).map_err(|error| format!("cannot make {}: {error}", folder.display()))?;
    let (setting, mut ledger) = (placed(pass, folder), Ledger::new());
    if pass.had_a_life {
        let first = ledger.start();
        Mortal::start(&mut load::command(&[], &setting, first, None))?.kill_after(&mut ledger, FACTS_BEFORE)?;
    }
    let inject = format!("inject={}:signal=KILL:when={}", sweep.name, sweep.k);
    let before = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={}", sweep.name), "-e", &inject];
    let first = ledger.start();
    let mut command = load::command(&before, &setting, first, pass.plant);
    let status = Mortal::start(&mut command)?.outlive_events(&mut ledger, EVENTS)?;
    let was_killed = status.signal() == Some(9);
    if !was_killed && !status.success() {
        return Err(format!("the load ended with {status}"));
    }
    judge(&setting, &mut ledger)?;
    Ok(was_killed)
}
