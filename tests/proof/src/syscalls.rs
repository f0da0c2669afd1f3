//! A process that is killed at each of its system calls that can change what a death leaves behind.
//!
//! The process does a history of 1,000 events and two lives with the channel's own steps, in one thread and with a clock that
//! is counted: its k-th call of a name is the same in every run, so `strace`, which kills it as it is about to make that call,
//! goes through all of them, and one that is not reached is a failure of the layer. Another run of the same history in the
//! prover knows what was promised when; the process only says how many steps it has done.
//!
//! Kept: after each death the channel opens, holds what the books say, and comes to its end. Threads are not here; `kills`
//! kills the whole agent at random instants.
//!
//! Before that, processes with planted bugs die in the same way until the loss is noticed, or the layer fails.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use channel::simulation::mortal::{Books, books, do_steps};
use channel::simulation::{Plan, Step, Verb};
use system_tests::events::Random;
use wal::io::real::Backend;
use wal::planted::{Bug, plant, plant_in_process};

use crate::tally::{Budget, Tally};

/// What is the layer's failure, and not the channel's.
const NOT_KILLED: &str = "it was not killed, so one history has several runs";
/// Events of one run.
const EVENTS: u64 = 1000;
/// Bugs that a layer of kills must notice, and that this history keeps silent about when nobody is killed: promises of a
/// moment in which nothing is written yet, and a frame that is wrong only while another one is missing.
const CONTROLS: [Bug; 3] = [Bug::AcknowledgeBeforeSync, Bug::AcknowledgeSettlementBeforeSync, Bug::DurableSeqAhead];
/// Calls at which nobody is killed, because they change no file: a death there leaves what a death at the next other call
/// leaves, and fewer promises. All names that are not here are swept.
const CHANGES_NOTHING: [(&str, &[&str]); 6] = [
    ("without it nothing runs", &["execve"]),
    ("memory", &["brk", "madvise", "mmap", "mprotect", "mremap", "munmap"]),
    (
        "the process and its threads",
        &[
            "arch_prctl",
            "exit_group",
            "futex",
            "gettid",
            "prctl",
            "prlimit64",
            "rseq",
            "rt_sigaction",
            "rt_sigprocmask",
            "sched_getaffinity",
            "set_robust_list",
            "set_tid_address",
            "sigaltstack",
            "tgkill",
            "getpid",
        ],
    ),
    ("time, randomness and waiting", &["clock_gettime", "clock_nanosleep", "getrandom", "poll"]),
    (
        "reading",
        &[
            "access",
            "faccessat2",
            "fadvise64",
            "fcntl",
            "fstat",
            "fstatfs",
            "getcwd",
            "getdents64",
            "ioctl",
            "lseek",
            "newfstatat",
            "pread64",
            "read",
            "readlink",
            "stat",
            "statfs",
            "statx",
        ],
    ),
    ("steps that are told to the prover", &["write"]),
];

/// The command line of the process that dies.
#[derive(Debug, clap::Args)]
pub(crate) struct Mortal {
    #[arg(long)]
    root: PathBuf,
    #[arg(long)]
    seed: u64,
    #[arg(long)]
    pass: u64,
    #[arg(long)]
    plant: Option<String>,
}

/// Does its history and says so, one byte for each step, until it is killed; at the end it dies without closing anything.
pub(crate) fn die(arguments: &Mortal) -> ExitCode {
    if let Some(name) = &arguments.plant {
        let Some(bug) = Bug::named(name) else {
            eprintln!("no bug is called {name}");
            return ExitCode::from(2);
        };
        plant_in_process(bug);
    }
    let (plan, backend) = pass(arguments.seed, arguments.pass);
    let mut out = std::io::stdout();
    let mut told = || {
        // Nobody is left to tell when the prover is gone.
        if out.write_all(b".").and_then(|()| out.flush()).is_err() {
            std::process::exit(3);
        }
    };
    match do_steps(&plan, backend, &arguments.root, &mut told) {
        Ok(()) => std::process::exit(0),
        Err(broken) => {
            eprintln!("{broken}");
            ExitCode::FAILURE
        }
    }
}

/// The history of a pass. Passes alternate between frames that are encrypted from the beginning, from the second life on, or
/// never; between writes through the page cache and past it; and in sizes.
fn pass(seed: u64, pass: u64) -> (Plan, Backend) {
    let mut random = Random::new(seed ^ pass << 40);
    let batch = 50;
    let mut plan = Plan {
        seed: seed.wrapping_add(pass),
        dirs: 2,
        encrypted: pass.is_multiple_of(2),
        segment_pages: 6 + random.below(3),
        depth: 2,
        overlap: true,
        one_device: false,
        hot_tail: if random.below(2) == 0 { 2000 } else { 100_000 },
        capacity: 10_000,
        pool_segments: 0,
        compressed: pass.is_multiple_of(3),
        shared_flush: pass % 3 == 1,
        measured: pass % 2 == 1,
        ahead: pass % 4 < 2,
        steps: Vec::new(),
    };
    let mut step = |verb, args| plan.steps.push(Step::new(verb, args));
    let frame = |step: &mut dyn FnMut(Verb, [u16; 3]), log: u16| {
        step(Verb::Gather, [log, 0, 0]);
        step(Verb::Chore, [0; 3]);
        step(Verb::Gather, [log, 0, 0]);
        step(Verb::Sync, [0; 3]);
    };
    let rounds = EVENTS / batch / 2;
    for round in 0..rounds {
        let log = (round % 2) as u16;
        for put in 0..2 {
            let padding = random.below(30) as u16;
            step(Verb::Put, [((round + put) % 3) as u16, batch as u16 - 1, padding]);
            step(Verb::Gather, [(log + put as u16) % 2, 0, 0]);
            step(Verb::Chore, [0; 3]);
            step(Verb::Gather, [(log + put as u16) % 2, 0, 0]);
        }
        // The younger frame is on disk before the older one.
        step(Verb::Sync, [1, 0, 0]);
        frame(&mut step, log);
        if round == 0 || round == rounds / 2 + 1 {
            // Held to the end of this life: what is settled above stays a run of its own.
            step(Verb::Take, [1, 3, 0]);
        }
        if round != rounds / 2 {
            for _ in 0..3 {
                step(Verb::Take, [0, 60, 0]);
                step(Verb::Read, [0; 3]);
                step(Verb::Settle, [1, random.below(8) as u16, random.below(12) as u16]);
            }
            frame(&mut step, 1 - log);
        }
        if round % 4 == 3 {
            step(Verb::Advance, [60, 0, 0]);
            step(Verb::Checkpoint, [0; 3]);
        }
        if round == rounds / 2 {
            // Plain segments of a channel that is encrypted from now on are removed once they are drained.
            step(Verb::Encrypt, [u16::from(pass % 4 != 3), 0, 0]);
            // Nothing is in flight at its end, so that a bug which forgets is left to the kills.
            frame(&mut step, 0);
            frame(&mut step, 1);
            step(Verb::Crash, [0; 3]);
        }
    }
    for log in [0, 1, 0, 1] {
        frame(&mut step, log);
    }
    let backend = if matches!(pass % 4, 1 | 2) { Backend::Direct } else { Backend::Buffered };
    (plan, backend)
}

/// One pass, made ready: its books, and how often a run makes each call.
struct Pass {
    seed: u64,
    number: u64,
    plant: Option<Bug>,
    books: Vec<Books>,
    settled: u64,
    calls: Vec<(String, u64)>,
}

impl Pass {
    fn new(seed: u64, number: u64, plant_it: Option<Bug>) -> Result<Pass, String> {
        let scratch = tempfile::tempdir().map_err(|error| format!("no temporary directory: {error}"))?;
        let (plan, backend) = pass(seed, number);
        // The books are those of a process with the same bug; it is the judge who has none.
        plant(plant_it);
        let kept = books(&plan, backend, &scratch.path().join("kept"));
        plant(None);
        let (books, put, settled) = kept?;
        if put != EVENTS || settled == 0 {
            return Err(format!("a history with {put} events of which {settled} are settled"));
        }
        let mut pass = Pass { seed, number, plant: plant_it, books, settled, calls: Vec::new() };
        pass.calls = pass.count(scratch.path())?;
        Ok(pass)
    }

    /// The calls of a run that is left alone, which is a death as well: nothing is closed.
    fn count(&self, scratch: &Path) -> Result<Vec<(String, u64)>, String> {
        let (root, trace) = (scratch.join("counted"), scratch.join("trace"));
        let (told, killed) = self.run(&root, &["-o", &trace.display().to_string()])?;
        if killed || told + 1 != self.books.len() {
            return Err(format!("a run that nobody kills ends after {told} of {} steps", self.books.len() - 1));
        }
        self.books[told].judge(&root).map_err(|broken| format!("after a run that nobody killed: {broken}"))?;
        let mut calls: BTreeMap<String, u64> = BTreeMap::new();
        // `4711 openat(AT_FDCWD, ...`
        for line in fs::read_to_string(&trace).map_err(|error| error.to_string())?.lines() {
            let Some((name, _)) = line.split_ascii_whitespace().nth(1).and_then(|call| call.split_once('(')) else {
                continue;
            };
            *calls.entry(name.to_owned()).or_default() += 1;
        }
        calls.retain(|name, _| !CHANGES_NOTHING.iter().any(|(_, names)| names.contains(&name.as_str())));
        Ok(calls.into_iter().collect())
    }

    /// Runs the process below `strace`: how many steps it told, and whether it was killed.
    fn run(&self, root: &Path, strace: &[&str]) -> Result<(usize, bool), String> {
        let own = std::env::current_exe().map_err(|error| error.to_string())?;
        let mut command = Command::new("strace");
        command.args(["-f", "-qq"]).args(strace).arg(own).arg("mortal").arg("--root").arg(root);
        command.arg(format!("--seed={}", self.seed)).arg(format!("--pass={}", self.number));
        command.args(self.plant.map(|bug| format!("--plant={}", bug.name())));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let output = command.output().map_err(|error| format!("strace: {error}"))?;
        let killed = output.status.signal() == Some(9);
        if !killed && !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(format!("the process ended with {}: {said}", output.status));
        }
        Ok((output.stdout.len(), killed))
    }

    /// One death, and what it left.
    fn kill(&self, root: &Path, name: &str, k: u64) -> Result<(), String> {
        if root.exists() {
            fs::remove_dir_all(root).map_err(|error| format!("cannot remove {}: {error}", root.display()))?;
        }
        let (trace, inject) = (format!("trace={name}"), format!("inject={name}:signal=KILL:when={k}"));
        let arguments = ["-o", "/dev/null", "-e", &trace, "-e", &inject];
        let outcome = self.run(root, &arguments).and_then(|(told, killed)| match self.books.get(told) {
            _ if !killed => Err(NOT_KILLED.to_owned()),
            None => Err(format!("it told {told} steps, more than there are")),
            Some(books) => books.judge(root).map_err(|broken| format!("after {told} steps: {broken}")),
        });
        outcome.map_err(|why| {
            let (seed, number) = (self.seed, self.number);
            format!(
                "killed at {name} number {k}, pass {number}, seed {seed}: {why}; strace -f -e {inject} proof mortal --root \
                 FOLDER --seed {seed} --pass {number}"
            )
        })
    }

    /// All deaths, several side by side, until the first that breaks a promise. Returns how many kept them.
    fn sweep(&self, jobs: usize, scratch: &Path) -> (u64, Option<String>) {
        let deaths: Vec<(&str, u64)> =
            self.calls.iter().flat_map(|(name, count)| (1..=*count).map(move |k| (name.as_str(), k))).collect();
        let (next, results) = (AtomicUsize::new(0), Mutex::new((0, None)));
        thread::scope(|scope| {
            for job in 0..jobs.max(1) {
                let (next, results, deaths) = (&next, &results, &deaths);
                scope.spawn(move || {
                    while results.lock().expect("no panic").1.is_none()
                        && let Some((name, k)) = deaths.get(next.fetch_add(1, Ordering::Relaxed))
                    {
                        let outcome = self.kill(&scratch.join(job.to_string()), name, *k);
                        let mut results = results.lock().expect("no panic");
                        match outcome {
                            Ok(()) => results.0 += 1,
                            Err(why) => results.1 = results.1.take().or(Some(why)),
                        }
                    }
                });
            }
        });
        results.into_inner().expect("no panic")
    }
}

/// Whole passes, at least one, until the budget has its kills. A lane without a whole pass has failed.
pub(crate) fn run(budget: &Budget) -> Tally {
    // A bug that is planted here belongs into the process that dies.
    let planted = Bug::ALL.iter().copied().find(|bug| wal::planted::is(*bug));
    let began = Instant::now();
    let mut tally = Tally::new("kills at system calls", "kills");
    tally.seeds = format!("seed {}", budget.seed);
    if let Err(error) = Command::new("strace").arg("--version").stdout(Stdio::null()).status() {
        tally.skips.push(format!("kills at system calls: no strace: {error}"));
        return tally;
    }
    let (mut passes, mut noticed, mut calls, mut settled) = (0, 0, 0, 0);
    let outcome = tempfile::tempdir().map_err(|error| format!("no temporary directory: {error}")).and_then(|scratch| {
        for bug in CONTROLS.into_iter().filter(|_| planted.is_none()) {
            // It may even be noticed without a kill, by the history itself.
            let Ok(pass) = Pass::new(budget.seed, 0, Some(bug)) else {
                noticed += 1;
                continue;
            };
            let (kept, broken) = pass.sweep(budget.jobs, scratch.path());
            let loss = broken.filter(|why| !why.contains(NOT_KILLED));
            loss.ok_or_else(|| format!("{} is not noticed at {kept} kills", bug.name()))?;
            noticed += 1;
        }
        while passes == 0 || budget.wants(tally.cycles) {
            let pass = Pass::new(budget.seed, passes, planted)?;
            (calls, settled) = (pass.calls.iter().map(|(_, count)| count).sum(), pass.settled);
            let (kept, broken) = pass.sweep(budget.jobs, scratch.path());
            tally.cycles += kept;
            broken.map_or(Ok(()), Err)?;
            passes += 1;
            tally.counts = vec![("names", pass.calls.len() as u64)];
        }
        Ok(())
    });
    tally.failures.extend(outcome.err());
    tally.counts.extend([
        ("calls of a run that change a file", calls),
        ("events of a run", EVENTS),
        ("settled in it", settled),
        ("planted bugs noticed", noticed),
        ("whole passes", passes),
    ]);
    tally.took = began.elapsed();
    tally
}
