//! Lanes: which layers run together, and how much of each. `dev` takes a minute, `ci` ten, `long` as long as it is given.
//!
//! A lane fails with the first broken promise of any layer, after all have run, and with a skip that nobody accepted.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use system_tests::events::Random;

use crate::tally::{Budget, Tally};
use crate::{agent_faults, cuts, disks, faults, full, kills, model, planted, simulated, syscalls, two};

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Lane {
    Dev,
    Ci,
    Long,
}

/// The command line of a lane.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[arg(long, value_enum, default_value = "dev")]
    lane: Lane,
    /// How long the lane `long` goes on.
    #[arg(long, default_value_t = 60)]
    minutes: u64,
    /// A failure says which; a new one each time without it.
    #[arg(long)]
    seed: Option<u64>,
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// Adds the results to docs/evidence.md.
    #[arg(long)]
    record: bool,
}

struct Layer {
    run: fn(&Budget) -> Tally,
    /// Cycles in the lanes `dev` and `ci`; none means that the lane leaves the layer out.
    cycles: [u64; 2],
    /// Parts of the time of the lane `long`, out of all parts.
    share: u32,
}

const LAYERS: &[Layer] = &[
    Layer { run: simulated::random, cycles: [60_000, 1_000_000], share: 40 },
    Layer { run: simulated::exhaustive, cycles: [1, 1], share: 1 },
    Layer { run: simulated::flips, cycles: [0, 1], share: 2 },
    Layer { run: planted::run, cycles: [4, 20], share: 5 },
    Layer { run: kills::run, cycles: [0, 1_500], share: 15 },
    Layer { run: syscalls::run, cycles: [0, 600], share: 8 },
    Layer { run: cuts::run, cycles: [0, 4_000], share: 18 },
    Layer { run: faults::run, cycles: [0, 120], share: 8 },
    Layer { run: agent_faults::run, cycles: [0, 30], share: 3 },
    Layer { run: full::run, cycles: [0, 20], share: 3 },
    Layer { run: disks::run, cycles: [0, 20], share: 4 },
    Layer { run: model::run, cycles: [0, 2_000], share: 3 },
    Layer { run: two::run, cycles: [0, 100], share: 3 },
];

impl Arguments {
    pub(crate) fn run(&self) -> ExitCode {
        let seed = self.seed.unwrap_or_else(|| Random::from_clock().next() >> 24);
        let began = Instant::now();
        let shares: u32 = LAYERS.iter().map(|layer| layer.share).sum();
        let mut tallies = Vec::new();
        for layer in LAYERS {
            let [dev, ci] = layer.cycles;
            let (cycles, until) = match self.lane {
                Lane::Dev => (dev, None),
                Lane::Ci => (ci, None),
                Lane::Long => {
                    let part = Duration::from_secs(self.minutes * 60) * layer.share / shares;
                    (1, Some(Instant::now() + part))
                }
            };
            if cycles == 0 {
                continue;
            }
            let mut tally = (layer.run)(&Budget { cycles, until, seed, jobs: self.jobs });
            if tally.cycles < cycles && tally.skips.is_empty() {
                tally.failures.push(format!("{}: only {} of {cycles} {}", tally.layer, tally.cycles, tally.unit));
            }
            println!("{}", tally.line());
            tally.skips.iter().for_each(|skip| println!("SKIPPED: {skip}"));
            tally.failures.iter().for_each(|failure| println!("FAILED: {failure}"));
            tallies.push(tally);
        }
        let failures: usize = tallies.iter().map(|tally| tally.failures.len()).sum();
        println!("proof, lane {:?}: {failures} failures, {} s", self.lane, began.elapsed().as_secs());
        if self.record {
            match record(self.lane, &tallies) {
                Ok(path) => println!("recorded in {}", path.display()),
                Err(error) => println!("not recorded: {error}"),
            }
        }
        if failures == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

/// Adds one row for each layer to the evidence.
fn record(lane: Lane, tallies: &[Tally]) -> std::io::Result<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/evidence.md");
    let path = fs::canonicalize(path)?;
    let mut file = fs::OpenOptions::new().append(true).open(&path)?;
    let commit = commit();
    for tally in tallies {
        let counts: Vec<String> = tally.counts.iter().map(|(name, count)| format!("{name} {count}")).collect();
        writeln!(
            file,
            "| {} | {commit} | {lane:?} | {} | {} {} | {} | {} | {} | {:.0} | {} |",
            today(),
            tally.layer,
            tally.cycles,
            tally.unit,
            tally.failures.len(),
            if tally.skips.is_empty() { "-".to_owned() } else { tally.skips.join("; ") },
            if tally.seeds.is_empty() { "-" } else { &tally.seeds },
            tally.took.as_secs_f64(),
            counts.join(", ")
        )?;
    }
    Ok(path)
}

fn said(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output().ok()?;
    let said = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| said.trim().to_owned())
}

/// The commit that ran, with a mark when the tree had changes.
fn commit() -> String {
    let commit = said("git", &["rev-parse", "--short", "HEAD"]).unwrap_or_else(|| "unknown".to_owned());
    let clean = said("git", &["status", "--porcelain"]).is_some_and(|changes| changes.is_empty());
    if clean { commit } else { format!("{commit} and changes") }
}

fn today() -> String {
    said("date", &["-u", "+%F"]).unwrap_or_else(|| "unknown".to_owned())
}
