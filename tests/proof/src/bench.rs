//! A channel under load whose books are kept from crash to crash: recover, compare, go on.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use channel::Channel;

use crate::ledger::{Ledger, Totals};
use crate::load::{Load, Setting, Witness, drain};

/// What must happen soon has not happened at all after this.
const SOON: Duration = Duration::from_secs(60);
/// Between two looks at what must happen.
const LOOK: Duration = Duration::from_micros(500);
/// Numbers between the loads on one channel.
const MORE: u64 = 1 << 40;
/// Of many broken promises so many are told.
const TOLD_MAX: usize = 6;

#[derive(Debug)]
pub(crate) struct Bench {
    pub(crate) setting: Setting,
    ledger: Arc<Mutex<Ledger>>,
}

impl Bench {
    pub(crate) fn new(setting: Setting) -> Bench {
        Bench { setting, ledger: Arc::default() }
    }

    /// Recovers, compares, and loads what was recovered. An error is a broken promise.
    pub(crate) fn start(&self) -> Result<Running, String> {
        self.start_before(Arc::new(|_| ()))
    }

    /// As [`start`](Bench::start); `also` hears every fact, after the books.
    pub(crate) fn start_before(&self, also: Witness) -> Result<Running, String> {
        let channel = self.setting.open().map_err(|error| format!("does not open: {error}"))?;
        let drained = drain(&channel)?;
        let mut ledger = lock(&self.ledger);
        let failures = ledger.check(&drained);
        if !failures.is_empty() {
            let told = failures.len().min(TOLD_MAX);
            return Err(format!("{} ({told} of {} told)", failures[..told].join("; "), failures.len()));
        }
        let first = ledger.start();
        drop(ledger);
        let books = Arc::clone(&self.ledger);
        let witness: Witness = Arc::new(move |fact| {
            lock(&books).record(&fact);
            also(fact);
        });
        let channel: Arc<dyn Channel> = Arc::new(channel);
        let loads = vec![Load::start(&channel, &self.setting, first, &witness)];
        Ok(Running { channel, loads, witness, ledger: Arc::clone(&self.ledger) })
    }

    pub(crate) fn totals(&self) -> Totals {
        lock(&self.ledger).totals
    }
}

/// An open channel and its load.
pub(crate) struct Running {
    channel: Arc<dyn Channel>,
    loads: Vec<Load>,
    witness: Witness,
    ledger: Arc<Mutex<Ledger>>,
}

impl Running {
    pub(crate) fn totals(&self) -> Totals {
        lock(&self.ledger).totals
    }

    /// Waits until so many more puts are acknowledged and so many more events settled.
    pub(crate) fn goes_on(&self, puts: u64, settled: u64, during: &str) -> Result<(), String> {
        let before = self.totals();
        let (puts, settled) = (before.puts_acknowledged + puts, before.events_settled + settled);
        let is_there = |totals: Totals| totals.puts_acknowledged >= puts && totals.events_settled >= settled;
        until(|| is_there(self.totals())).map_err(|()| {
            let (now, stats) = (self.totals(), self.channel.stats());
            format!("does not go on {during}: {before:?} became {now:?} in {SOON:?}, the channel says {stats:?}")
        })
    }

    /// More producers and consumers, whose events have numbers far from those of the others.
    pub(crate) fn add_load(&mut self, setting: &Setting) -> u64 {
        let first = MORE * self.loads.len() as u64;
        self.loads.push(Load::start(&self.channel, setting, first, &self.witness));
        first
    }

    /// Ends the load and closes the channel, which answers what is in flight; its disks may fail meanwhile.
    pub(crate) fn end(self) {
        self.loads.iter().for_each(Load::stop);
        let _maybe_without_disks = self.channel.close().wait();
        self.loads.into_iter().for_each(Load::join);
    }
}

/// Waits until something is so, but not for ever.
pub(crate) fn until(is_so: impl Fn() -> bool) -> Result<(), ()> {
    let limit = Instant::now() + SOON;
    while !is_so() {
        if Instant::now() > limit {
            return Err(());
        }
        thread::sleep(LOOK);
    }
    Ok(())
}

/// A thread that panicked while it held this has already failed the layer.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
