//! What a layer of the proof did: how much, what failed, what could not run.

use std::time::{Duration, Instant};

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
