//! What a layer of the proof did: how much, what failed, what could not run.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use system_tests::events::Random;
use wal::planted::{Bug, plant_in_process};

/// How much a layer is asked to do.
#[derive(Debug, Clone)]
pub(crate) struct Budget {
    /// Cycles it must reach.
    pub(crate) cycles: u64,
    /// When it may go on after that, until this instant.
    pub(crate) until: Option<Instant>,
    /// New in each run, printed with every failure.
    pub(crate) seed: u64,
    /// Threads or processes side by side.
    pub(crate) jobs: usize,
}

impl Budget {
    /// Whether another cycle is wanted after `done` of them.
    pub(crate) fn wants(&self, done: u64) -> bool {
        done < self.cycles || self.until.is_some_and(|until| Instant::now() < until)
    }
}

/// The command line of a layer that runs by itself.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Alone {
    #[arg(long, default_value_t = 100)]
    cycles: u64,
    /// How long it goes on after its cycles.
    #[arg(long, default_value_t = 0)]
    seconds: u64,
    /// A failure says which; a new one each time without it.
    #[arg(long)]
    seed: Option<u64>,
    #[arg(long, default_value_t = 3)]
    jobs: usize,
    /// A bug of `wal::planted` that the layer must notice: then a failure is what is wanted.
    #[arg(long)]
    plant: Option<String>,
}

impl Alone {
    /// Runs one layer and says what it did. With a planted bug, success means that it was noticed.
    pub(crate) fn run(&self, layer: fn(&Budget) -> Tally) -> ExitCode {
        let bug = match self.plant.as_deref().map(|name| Bug::named(name).ok_or(name)) {
            Some(Err(name)) => {
                eprintln!("no bug is called {name}");
                return ExitCode::from(2);
            }
            Some(Ok(bug)) => Some(bug),
            None => None,
        };
        bug.into_iter().for_each(plant_in_process);
        let seed = self.seed.unwrap_or_else(|| Random::from_clock().next() >> 16);
        let until = (self.seconds > 0).then(|| Instant::now() + Duration::from_secs(self.seconds));
        let tally = layer(&Budget { cycles: self.cycles, until, seed, jobs: self.jobs });
        println!("{}", tally.line());
        tally.skips.iter().for_each(|skip| println!("SKIPPED: {skip}"));
        tally.failures.iter().for_each(|failure| println!("FAILED: {failure}"));
        let is_right = tally.failures.is_empty() != bug.is_some();
        if is_right { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

/// What one layer did.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tally {
    pub(crate) layer: &'static str,
    /// What was repeated, in the plural: `crashes`, `kills`.
    pub(crate) unit: &'static str,
    pub(crate) cycles: u64,
    /// Seeds, or other words that say what ran.
    pub(crate) seeds: String,
    /// Counts that show that the run met something, by name.
    pub(crate) counts: Vec<(&'static str, u64)>,
    /// Each is one broken promise, with all that is needed to see it again.
    pub(crate) failures: Vec<String>,
    /// Why something could not run here.
    pub(crate) skips: Vec<String>,
    pub(crate) took: Duration,
}

impl Tally {
    pub(crate) fn new(layer: &'static str, unit: &'static str) -> Tally {
        Tally { layer, unit, ..Tally::default() }
    }

    /// One line for a terminal and for the log of a test run.
    pub(crate) fn line(&self) -> String {
        let mut line = format!(
            "{}: {} {}, {} failures, {:.0} s",
            self.layer,
            self.cycles,
            self.unit,
            self.failures.len(),
            self.took.as_secs_f64()
        );
        for (name, count) in &self.counts {
            line.push_str(&format!(", {name} {count}"));
        }
        if !self.seeds.is_empty() {
            line.push_str(&format!(" ({})", self.seeds));
        }
        line
    }
}
