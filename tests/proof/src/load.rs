//! A load on a durable channel: producers with several puts in flight, consumers that deliver and return, and every
//! promise asked for and given reported as a [`Fact`].
//!
//! It runs in a thread of the prover ([`Load`]) or as a child process (`proof load`, [`child`] and [`command`]) that prints
//! its facts, one per line, until it is killed or its input ends. Each event says its number in its header and its body, and
//! the rest of the body follows from the number, so that an event which is changed on its way is noticed.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::ops::Range;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use channel::{
    Channel, Consumer, Devices, DurableChannel, DurableOptions, EventBatch, EventRef, Lease, OpenError, PutError,
    PutReceipt, SeqRange, Settlement, TakeLimits, Ticket,
};
use system_tests::events::Random;
use wal::io::real::Backend;
use wal::planted::{Bug, plant_in_process};
use wal::seal::ChannelKey;

use crate::ledger::Fact;

const BATCH_MAX: u64 = 12;
const TAKE_MAX: u64 = 24;
/// A take that finds nothing looks again after this.
const TAKE_WAIT: Duration = Duration::from_millis(20);
/// What a full or broken channel is left in peace for.
const PAUSE: Duration = Duration::from_millis(2);
/// No disk of a test takes longer to read back what it holds.
const DRAIN_LIMIT: Duration = Duration::from_secs(60);

/// What a load is like. All of it comes from the command line of [`child`], or is drawn from a seed by a layer.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Setting {
    /// Data directories, by commas.
    #[arg(long, value_delimiter = ',', required = true)]
    pub(crate) dirs: Vec<PathBuf>,
    #[arg(long, value_parser = backend, default_value = "io_uring")]
    pub(crate) io: Backend,
    #[arg(long)]
    pub(crate) encrypt: bool,
    #[arg(long, default_value_t = 64 << 10)]
    pub(crate) segment_len: u64,
    #[arg(long, default_value_t = 3)]
    pub(crate) producers: u64,
    /// Puts that a producer has in flight.
    #[arg(long, default_value_t = 4)]
    pub(crate) in_flight: usize,
    #[arg(long, default_value_t = 2)]
    pub(crate) consumers: u64,
    /// Events that the channel holds at most.
    #[arg(long, default_value_t = 400)]
    pub(crate) capacity: u64,
    /// How long a put waits for room.
    #[arg(long, default_value_t = 20)]
    pub(crate) keep_alive_ms: u64,
    #[arg(long, default_value_t = 50)]
    pub(crate) checkpoint_interval_ms: u64,
    /// What each producer waits after each answer, in milliseconds.
    #[arg(long, default_value_t = 0)]
    pub(crate) pace_ms: u64,
    /// Memory for events that are taken soon, in KiB; the others are read back.
    #[arg(long, default_value_t = 64)]
    pub(crate) hot_tail_kib: u64,
    /// Of eight leases so many are returned, whole or in part.
    #[arg(long, default_value_t = 2)]
    pub(crate) returns: u64,
    /// Each directory is a flush domain of its own, as if it were a disk.
    #[arg(long)]
    pub(crate) separate: bool,
    /// Drawn from, for sizes and outcomes.
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
}

fn backend(text: &str) -> Result<Backend, String> {
    Backend::named(text).ok_or_else(|| format!("one of {}", Backend::ALL.map(Backend::name).join(", ")))
}

impl Setting {
    pub(crate) fn new(dirs: Vec<PathBuf>, seed: u64) -> Setting {
        Setting {
            dirs,
            io: Backend::Uring,
            encrypt: false,
            segment_len: 64 << 10,
            producers: 3,
            in_flight: 4,
            consumers: 2,
            capacity: 400,
            keep_alive_ms: 20,
            checkpoint_interval_ms: 50,
            pace_ms: 0,
            hot_tail_kib: 64,
            returns: 2,
            separate: false,
            seed,
        }
    }

    /// As [`child`] reads it; also what a failure text says of it.
    pub(crate) fn arguments(&self) -> Vec<String> {
        let dirs: Vec<String> = self.dirs.iter().map(|dir| dir.display().to_string()).collect();
        let io = self.io.name();
        let mut arguments = vec![format!("--dirs={}", dirs.join(",")), format!("--io={io}")];
        for (name, value) in [
            ("segment-len", self.segment_len),
            ("producers", self.producers),
            ("in-flight", self.in_flight as u64),
            ("consumers", self.consumers),
            ("capacity", self.capacity),
            ("keep-alive-ms", self.keep_alive_ms),
            ("checkpoint-interval-ms", self.checkpoint_interval_ms),
            ("pace-ms", self.pace_ms),
            ("hot-tail-kib", self.hot_tail_kib),
            ("returns", self.returns),
            ("seed", self.seed),
        ] {
            arguments.push(format!("--{name}={value}"));
        }
        arguments.extend(self.encrypt.then(|| "--encrypt".to_owned()));
        arguments.extend(self.separate.then(|| "--separate".to_owned()));
        arguments
    }

    /// Opens the channel, as if in a process of its own: nothing is shared with another opening.
    pub(crate) fn open(&self) -> Result<DurableChannel, OpenError> {
        let mut options = DurableOptions::new("load", self.dirs.clone());
        options.capacity = self.capacity;
        options.transaction_capacity = TAKE_MAX.max(BATCH_MAX) as usize;
        options.keep_alive = Duration::from_millis(self.keep_alive_ms);
        options.segment_len = self.segment_len;
        options.hot_tail_bytes = (self.hot_tail_kib as usize) << 10;
        options.key = self.encrypt.then(|| ChannelKey::new("k1", [7; 32]).expect("a key with a short name"));
        options.backend = Some(self.io);
        options.checkpoint_interval = Duration::from_millis(self.checkpoint_interval_ms);
        options.separate_flush_domains = self.separate;
        DurableChannel::open(options, &Devices::new())
    }
}

/// Takes everything that the channel holds, in its order, and gives it back unsettled.
pub(crate) fn drain(channel: &dyn Channel) -> Result<Vec<u64>, String> {
    let holds = channel.stats().size_events;
    let mut consumer = channel.consumer("drain");
    let mut events = Vec::new();
    while (events.len() as u64) < holds {
        let limits = TakeLimits { events: TAKE_MAX as usize, bytes: 1 << 20 };
        let lease = consumer.take(limits, DRAIN_LIMIT).wait().map_err(|error| format!("cannot be drained: {error}"))?;
        if lease.is_empty() {
            return Err(format!("holds {holds} events by its own word and gave {} of them", events.len()));
        }
        for (seq, event) in lease.iter() {
            events.push(number(event).ok_or_else(|| format!("event {seq} is not as it was put"))?);
        }
    }
    Ok(events)
}

/// The body of an event: its number, and bytes that follow from it.
fn body(number: u64) -> Vec<u8> {
    let mut random = Random::new(number);
    let length = if random.below(16) == 0 { random.below(2000) } else { random.below(200) } as usize;
    let mut body = format!("event {number} ").into_bytes();
    let end = body.len() + length;
    while body.len() < end {
        body.extend_from_slice(&random.next().to_le_bytes());
    }
    body.truncate(end);
    body
}

/// The number of an event; `None` when anything of it was changed.
fn number(event: EventRef<'_>) -> Option<u64> {
    let number = event.header("number")?.parse().ok()?;
    (event.body() == body(number)).then_some(number)
}

/// Hears of every fact, at once.
pub(crate) type Witness = Arc<dyn Fn(Fact) + Send + Sync>;

/// Threads that put into and take from one channel.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    /// Starts on an open channel; `first` is the number of its first event.
    pub(crate) fn start(channel: &Arc<dyn Channel>, setting: &Setting, first: u64, witness: &Witness) -> Load {
        let mut load = Load { stop: Arc::default(), threads: Vec::new() };
        let next = Arc::new(AtomicU64::new(first));
        let mut seeds = Random::new(setting.seed ^ first);
        for producer in 0..setting.producers {
            let mut one = Producing {
                // Unlike any of another load on the same channel.
                producer: first + producer,
                in_flight: setting.in_flight,
                pace: Duration::from_millis(setting.pace_ms),
                next: Arc::clone(&next),
                handle: channel.producer(),
                waiting: VecDeque::new(),
                random: Random::new(seeds.next()),
                witness: Arc::clone(witness),
            };
            load.thread(format!("put {producer}"), move |stop| one.run(stop));
        }
        for consumer in 0..setting.consumers {
            let mut one = Consuming {
                handle: channel.consumer(&format!("k{consumer}")),
                settling: VecDeque::new(),
                held: Lease::default(),
                returns: setting.returns,
                random: Random::new(seeds.next()),
                witness: Arc::clone(witness),
            };
            load.thread(format!("take {consumer}"), move |stop| one.run(stop));
        }
        load
    }

    fn thread(&mut self, name: String, run: impl FnOnce(&AtomicBool) + Send + 'static) {
        let stop = Arc::clone(&self.stop);
        let thread = thread::Builder::new().name(name).spawn(move || run(&stop)).expect("start a thread of the load");
        self.threads.push(thread);
    }

    /// Asks the threads to end; they do once the channel has answered what is in flight, or is closed.
    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Release);
    }

    /// Waits until nothing more is reported.
    pub(crate) fn join(self) {
        self.stop();
        for thread in self.threads {
            thread.join().expect("a thread of the load does not panic");
        }
    }
}

struct Producing {
    producer: u64,
    in_flight: usize,
    pace: Duration,
    next: Arc<AtomicU64>,
    handle: Box<dyn channel::Producer>,
    waiting: VecDeque<(u64, Ticket<Result<PutReceipt, PutError>>)>,
    random: Random,
    witness: Witness,
}

impl Producing {
    fn run(&mut self, stop: &AtomicBool) {
        while !stop.load(Ordering::Acquire) {
            while self.waiting.len() < self.in_flight {
                self.put();
            }
            self.hear();
            if !self.pace.is_zero() {
                thread::sleep(self.pace);
            }
        }
        while !self.waiting.is_empty() {
            self.hear();
        }
    }

    fn put(&mut self) {
        let count = 1 + self.random.below(BATCH_MAX);
        let first = self.next.fetch_add(count, Ordering::AcqRel);
        let mut batch = EventBatch::new();
        for number in first..first + count {
            batch.push([("number", number.to_string().as_str())], &body(number));
        }
        (self.witness)(Fact::PutAsked { producer: self.producer, first, count });
        self.waiting.push_back((first, self.handle.put(batch)));
    }

    /// Hears the answer to the oldest put.
    fn hear(&mut self) {
        let Some((first, ticket)) = self.waiting.pop_front() else { return };
        let fact = match ticket.wait() {
            Ok(_) => Fact::PutAcknowledged { first },
            Err(PutError::Full { .. }) => Fact::PutRefused { first },
            Err(PutError::Failed { .. } | PutError::Closed) => Fact::PutFailed { first },
            Err(error) => Fact::Wrong { what: format!("put {first} of this load is refused: {error}") },
        };
        let is_kept = matches!(fact, Fact::PutAcknowledged { .. });
        (self.witness)(fact);
        if !is_kept {
            thread::sleep(PAUSE);
        }
    }
}

type Settling = (Vec<Range<u64>>, Ticket<Result<(), channel::SettleError>>);

struct Consuming {
    handle: Box<dyn Consumer>,
    settling: VecDeque<Settling>,
    /// Kept for another round, so that leases overlap.
    held: Lease,
    returns: u64,
    random: Random,
    witness: Witness,
}

impl Consuming {
    fn run(&mut self, stop: &AtomicBool) {
        while !stop.load(Ordering::Acquire) {
            let limits = TakeLimits { events: 1 + self.random.below(TAKE_MAX) as usize, bytes: 64 << 10 };
            match self.handle.take(limits, TAKE_WAIT).wait() {
                // Nothing else comes: what is kept is all that is left.
                Ok(lease) if lease.is_empty() => {
                    let held = std::mem::take(&mut self.held);
                    self.settle(held);
                }
                Ok(lease) if self.held.is_empty() && self.random.below(4) == 0 => self.held = lease,
                Ok(lease) => {
                    let held = std::mem::take(&mut self.held);
                    self.settle(lease);
                    self.settle(held);
                }
                // A disk that fails cannot be read either; what cannot be read is not skipped.
                Err(_) => thread::sleep(PAUSE),
            }
            while self.settling.len() > 3 {
                self.hear();
            }
        }
        while !self.settling.is_empty() {
            self.hear();
        }
    }

    /// Delivers the first part of a lease and returns the rest, each maybe empty.
    fn settle(&mut self, lease: Lease) {
        let count = lease.event_count();
        let delivered = match self.random.below(8) {
            draw if draw >= self.returns => count,
            0 => 0,
            _ => self.random.below(count as u64 + 1) as usize,
        };
        let (mut events, mut here, mut there) = (Vec::new(), Vec::new(), Vec::new());
        for (index, (seq, event)) in lease.iter().enumerate() {
            let Some(number) = number(event) else {
                (self.witness)(Fact::Wrong { what: format!("event {seq} was taken and is not as it was put") });
                continue;
            };
            if index < delivered {
                join(&mut events, number);
                here.push(SeqRange::new(seq, seq + 1));
            } else {
                there.push(SeqRange::new(seq, seq + 1));
            }
        }
        let mut settlements = Vec::new();
        settlements.extend((!here.is_empty()).then(|| Settlement::delivered(here)));
        settlements.extend((!there.is_empty()).then(|| Settlement::returned(there)));
        if settlements.is_empty() {
            return;
        }
        if !events.is_empty() {
            (self.witness)(Fact::SettleAsked { events: events.clone() });
        }
        self.settling.push_back((events, self.handle.settle(settlements)));
    }

    /// Hears the answer to the oldest settlement. After a failure its events may come again.
    fn hear(&mut self) {
        let Some((events, ticket)) = self.settling.pop_front() else { return };
        if ticket.wait().is_ok() && !events.is_empty() {
            (self.witness)(Fact::SettleAcknowledged { events });
        }
    }
}

/// Adds `number` to runs of numbers.
fn join(runs: &mut Vec<Range<u64>>, number: u64) {
    match runs.last_mut() {
        Some(run) if run.end == number => run.end += 1,
        _ => runs.push(number..number + 1),
    }
}

/// The hidden subcommand `load`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) setting: Setting,
    /// Number of the first event.
    #[arg(long, default_value_t = 0)]
    pub(crate) first: u64,
    /// A bug of `wal::planted` to run with.
    #[arg(long)]
    pub(crate) plant: Option<String>,
}

/// Runs until it is killed, or until its input ends: then it closes the channel, and nothing is left open.
pub(crate) fn child(arguments: &Arguments) -> ExitCode {
    if let Some(name) = &arguments.plant {
        let Some(bug) = Bug::named(name) else {
            eprintln!("no bug is called {name}");
            return ExitCode::from(2);
        };
        plant_in_process(bug);
    }
    let out = Mutex::new(std::io::stdout());
    let witness: Witness = Arc::new(move |fact: Fact| {
        // One write for each line: a kill cuts at most the last one. Nobody is left to tell when the prover is gone.
        let mut out = out.lock().expect("no thread panics while it writes");
        if out.write_all(format!("{fact}\n").as_bytes()).and_then(|()| out.flush()).is_err() {
            std::process::exit(3);
        }
    });
    let channel = match arguments.setting.open() {
        Ok(channel) => Arc::new(channel) as Arc<dyn Channel>,
        Err(error) => {
            witness(Fact::Wrong { what: format!("does not open: {error}") });
            return ExitCode::FAILURE;
        }
    };
    witness(Fact::Opened);
    let load = Load::start(&channel, &arguments.setting, arguments.first, &witness);
    let mut input = [0; 64];
    while std::io::stdin().read(&mut input).is_ok_and(|length| length > 0) {}
    load.join();
    channel.close().wait().map_or_else(|_| ExitCode::FAILURE, |()| ExitCode::SUCCESS)
}

/// The command that runs [`child`]. `before` goes in front of it: a tracer, or nothing.
pub(crate) fn command(before: &[&str], setting: &Setting, first: u64, plant: Option<Bug>) -> Command {
    let own = std::env::current_exe().expect("the prover has a path");
    let mut words = before.iter().map(std::ffi::OsString::from).chain([own.into_os_string()]);
    let mut command = Command::new(words.next().expect("at least the prover itself"));
    command.args(words).arg("load").args(setting.arguments()).arg(format!("--first={first}"));
    command.args(plant.map(|bug| format!("--plant={}", bug.name())));
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    command
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::Ledger;

    /// Runs a load in this process until it has acknowledged something, on a fresh channel each time.
    fn round(setting: &Setting, ledger: &Arc<Mutex<Ledger>>) -> Vec<String> {
        let channel: Arc<dyn Channel> = Arc::new(setting.open().unwrap());
        let mut failures = ledger.lock().unwrap().check(&drain(&*channel).unwrap());
        let (first, before) = {
            let mut ledger = ledger.lock().unwrap();
            (ledger.start(), ledger.totals)
        };
        let books = Arc::clone(ledger);
        let witness: Witness = Arc::new(move |fact| books.lock().unwrap().record(&fact));
        let load = Load::start(&channel, setting, first, &witness);
        let enough = || {
            let totals = ledger.lock().unwrap().totals;
            totals.events_settled > before.events_settled + 50 && totals.puts_acknowledged > before.puts_acknowledged
        };
        while !enough() {
            thread::yield_now();
        }
        load.join();
        drop(channel);
        failures.extend(ledger.lock().unwrap().check(&drain(&setting.open().unwrap()).unwrap()));
        failures
    }

    #[test]
    fn the_books_of_a_load_that_meets_no_crash_are_right() {
        let scratch = tempfile::tempdir().unwrap();
        for (io, encrypt) in [(Backend::Uring, false), (Backend::Direct, false), (Backend::Buffered, true)] {
            let dirs = vec![scratch.path().join(format!("{io:?}-1")), scratch.path().join(format!("{io:?}-2"))];
            let setting = Setting { io, encrypt, separate: true, ..Setting::new(dirs, 3) };
            let ledger = Arc::new(Mutex::new(Ledger::new()));
            for _ in 0..3 {
                assert_eq!(round(&setting, &ledger), Vec::<String>::new());
            }
        }
    }

    #[test]
    fn an_event_is_its_number_or_it_is_changed() {
        let mut batch = EventBatch::new();
        for (number, body) in [("7", &body(7)[..]), ("8", &body(7)), ("7", &body(7)[1..])] {
            batch.push([("number", number)], body);
        }
        assert_eq!([0, 1, 2].map(|index| number(batch.get(index))), [Some(7), None, None]);
    }
}
