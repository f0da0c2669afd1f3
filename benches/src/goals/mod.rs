//! `penstock-bench goals`: how much of the disk's limits the channel reaches, as ratios of one run.
//!
//! Each round measures the disk and the channel one after the other, so that both have the same mood of the machine, and
//! divides within the round; what is printed is the median of the rounds with the smallest and the largest. The numbers P1 to
//! P15 are those of `docs/performance.md`, which also says what is not measured here.
//!
//! A round has parts, each of which serves one goal or several; `--only` leaves out those that serve none of the named ones.
//! Loads that need segments which are there already share one channel, filled once for all rounds and drained after each load.

mod raw;

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use serde_json::json;
use wal::io::real::RealDir;

use crate::channel::{self as load_of, FOLDER, Outcome, still};
use crate::numbers::{Spread, rounded};
use crate::open_loop::{self, Arrivals};
use crate::pool::{self, Pool};
use crate::sheet::{self, Sheet};
use crate::{cli, device, host, output};
use raw::Raw;

const HEADLINE_EVENT: usize = 1024;
const HEADLINE_BATCH: usize = 100;
const TRANSACTION: usize = HEADLINE_BATCH * HEADLINE_EVENT;
/// Of P4.
const OPEN_PRODUCERS: u32 = 16;

/// The goals that this command has figures for.
const GOALS: [&str; 9] = ["P1", "P2", "P4", "P7", "P9", "P10", "P11", "P12", "P13"];

/// Measure the ratios of docs/performance.md: the channel against the limits of its disk, in interleaved rounds
///
/// A round of all goals takes about 25 x seconds, and the first one fills the pools. Needs 8 GiB of room on a fast disk for
/// each second. Uses the folder `penstock-bench` and the file `penstock-bench.device` below the directory, and removes both.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Where to measure
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Only these goals, as `P1,P4`
    #[arg(long, value_name = "GOALS", value_delimiter = ',', value_parser = GOALS, ignore_case = true)]
    only: Vec<String>,
    /// Measured seconds of each load
    #[arg(long, value_name = "S", default_value = "1", value_parser = cli::seconds)]
    seconds: Duration,
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Length of the file that is overwritten and read for the limits of the disk
    #[arg(long, value_name = "BYTES", default_value = "1G", value_parser = cli::bytes)]
    bytes: u64,
    /// Bytes that the pool of each load is warm for, unless its row says that it grows; without it, what this disk takes
    /// meanwhile
    #[arg(long, value_name = "BYTES", value_parser = cli::bytes)]
    warm_pool: Option<u64>,
    /// Events to fill and drain for P12, in each round
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    drain_events: u64,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), String> {
    let at = |error: std::io::Error| format!("{}: {error}", arguments.dir.display());
    let dir = RealDir::open_or_create(&arguments.dir, None).map_err(at)?;
    let file = device::whole_file(&dir, arguments.bytes).map_err(at)?;
    let raw = Raw { file: &file, backend: dir.backend(), bytes: arguments.bytes, seconds: arguments.seconds };
    let (mut sheet, mut loads) = (Sheet::default(), Vec::new());
    let folder = arguments.dir.join(FOLDER);
    let (plain, sealed) = (folder.join("plain"), folder.join("sealed"));
    let mut pools = Pools { plain: (&plain, None), sealed: (&sealed, None) };
    let measured = (0..arguments.rounds).try_for_each(|_| {
        loads.extend(host::load_average());
        Round { arguments, raw: &raw, pools: &mut pools, sheet: &mut sheet, headline: None }.run()
    });
    let closed = pools.close();
    load_of::remove(&folder)?;
    device::remove_file(&dir).map_err(at)?;
    measured.and(closed)?;
    let result = json!({
        "command": "goals",
        "rounds": arguments.rounds,
        "seconds": rounded(arguments.seconds.as_secs_f64()),
        "block_device": device::describe(&arguments.dir),
        "load_average": (!loads.is_empty()).then(|| Spread::of(&loads).json()),
        "rows": sheet.json(),
    });
    output::print(arguments.json, &result, sheet::table);
    Ok(())
}

/// Channels with warm pools, made when they are first needed.
struct Pools<'a> {
    plain: (&'a Path, Option<Pool<'a>>),
    sealed: (&'a Path, Option<Pool<'a>>),
}

impl Pools<'_> {
    fn close(self) -> Result<(), String> {
        [self.plain.1, self.sealed.1].into_iter().flatten().try_for_each(Pool::close)
    }
}

/// One round of everything.
struct Round<'a, 'b> {
    arguments: &'a Arguments,
    raw: &'a Raw<'a>,
    pools: &'a mut Pools<'b>,
    sheet: &'a mut Sheet,
    /// The headline's load, once it was measured.
    headline: Option<Outcome>,
}

/// A part of a round, and the goals that it has figures for.
type Part<'a, 'b> = (&'static [&'static str], fn(&mut Round<'a, 'b>) -> Result<(), String>);

impl<'a, 'b> Round<'a, 'b> {
    fn run(mut self) -> Result<(), String> {
        let parts: [Part<'a, 'b>; 9] = [
            (&["P1", "P10", "P11"], Round::headline),
            (&["P1", "P9"], Round::growing),
            (&["P1", "P9", "P10", "P12", "P13"], Round::tail),
            (&["P2"], Round::alone),
            (&["P4"], Round::half_load),
            (&["P4"], Round::lone_commit),
            (&["P7"], Round::key),
            (&["P9"], Round::single),
            (&["P12"], Round::drain),
        ];
        for (goals, part) in parts {
            if goals.iter().any(|goal| self.wants(goal)) {
                part(&mut self)?;
            }
        }
        Ok(())
    }

    fn wants(&self, goal: &str) -> bool {
        let only = &self.arguments.only;
        only.is_empty() || only.iter().any(|named| named.eq_ignore_ascii_case(goal))
    }

    fn add(&mut self, goal: &'static str, what: &'static str, target: &'static str, value: f64) {
        if self.wants(goal) {
            self.sheet.add(goal, what, target, value);
        }
    }

    /// A load in a warm pool.
    fn load(&mut self, more: &[&str]) -> Result<Outcome, String> {
        let encrypt: &[&str] = if more.contains(&"--encrypt") { &["--encrypt"] } else { &[] };
        let (dir, pool) = if encrypt.is_empty() { &mut self.pools.plain } else { &mut self.pools.sealed };
        let pool = match pool {
            Some(pool) => pool,
            none => {
                let taken =
                    || self.raw.limit(8 * TRANSACTION).map(|mb_s| pool::bytes_for(mb_s * 1e6, self.arguments.seconds));
                let bytes = self.arguments.warm_pool.map_or_else(taken, Ok)?;
                none.insert(Pool::filled(dir, bytes, encrypt)?)
            }
        };
        pool.load(self.arguments.seconds, more)
    }

    /// Events a second of the headline in this round, measured now if it was not.
    fn headline_ev_s(&mut self) -> Result<f64, String> {
        if self.headline.is_none() {
            self.headline = Some(self.load(&[])?);
        }
        Ok(self.headline.as_ref().map_or(0.0, |outcome| put_mb_s(outcome) * 1e6 / HEADLINE_EVENT as f64))
    }

    /// P1, P10, and the loads that are divided by the headline's.
    fn headline(&mut self) -> Result<(), String> {
        let limit = self.raw.limit(8 * TRANSACTION)?;
        let headline = self.load(&[])?;
        self.add("P1", "W, 800 KiB in flight, MB/s", "", limit);
        self.add("P1", "put, 8 producers, MB/s", "", put_mb_s(&headline));
        self.add("P1", "put / W", ">= 0.95", put_mb_s(&headline) / limit);
        self.add("P10", "CPU-s/GiB put", "<= 0.4", cpu_per_gib(&headline));
        if self.wants("P11") {
            let many = self.load(&["--producers", "64"])?;
            self.add("P11", "64 producers / 8 producers", ">= 0.98", put_mb_s(&many) / put_mb_s(&headline));
        }
        self.headline = Some(headline);
        Ok(())
    }

    /// P1, P9: with a pool that grows because nothing is taken.
    fn growing(&mut self) -> Result<(), String> {
        let limit = self.raw.limit(8 * TRANSACTION)?;
        let growing = self.arguments.fresh(&[])?.measured()?;
        self.add("P1", "put / W, growing pool", "", put_mb_s(&growing) / limit);
        if let Some(written) = written_for_each_byte(&growing) {
            self.add("P9", "device bytes / payload, growing pool", "", written);
        }
        Ok(())
    }

    /// P1, P9, P10, P12, P13: with a consumer, so that segments are used again.
    fn tail(&mut self) -> Result<(), String> {
        let limit = self.raw.limit(8 * TRANSACTION)?;
        let tail = self.load(&["--consumers", "1"])?;
        self.add("P1", "put / W, one consumer, segments reused", "", put_mb_s(&tail) / limit);
        self.add("P10", "CPU-s/GiB put + take", "<= 0.6", cpu_per_gib(&tail));
        let took = tail.take_events.unwrap_or_default() as f64 / tail.put_events.unwrap_or_default().max(1) as f64;
        self.add("P13", "taken / put, one consumer", ">= 0.9", took);
        if let Some(written) = written_for_each_byte(&tail) {
            self.add("P9", "device bytes / payload, with takes", "<= 1.03", written);
        }
        if let Some(device) = tail.reading.device {
            let rate = device.read_bytes as f64 / tail.reading.elapsed.as_secs_f64();
            self.add("P12", "device reads at the tail, bytes/s", "0", rate);
        }
        Ok(())
    }

    /// P2: one producer against raw write and sync of the same size.
    fn alone(&mut self) -> Result<(), String> {
        let disk = self.raw.alone(TRANSACTION)?;
        let alone = self.load(&["--producers", "1"])?;
        let rate =
            alone.put_events.unwrap_or_default() as f64 / HEADLINE_BATCH as f64 / alone.reading.elapsed.as_secs_f64();
        self.add("P2", "L(100 KiB) p50, µs", "", disk.latencies.quantile_us(0.5));
        self.add("P2", "1 producer / raw write + sync", ">= 0.9 (0.75 if L < 250 µs)", rate / disk.per_second);
        Ok(())
    }

    /// P4: half of the headline's rate, 16 producers, from the time at which each should have sent; beside one raw write at a
    /// time, and beside raw writes that come as the producers' batches do.
    fn half_load(&mut self) -> Result<(), String> {
        let half = (self.headline_ev_s()? / 2.0).max(HEADLINE_BATCH as f64);
        let disk = self.raw.alone(TRANSACTION)?.latencies;
        let seconds = self.arguments.seconds;
        let arrivals = Arrivals {
            senders: OPEN_PRODUCERS,
            rate: half / HEADLINE_BATCH as f64,
            bytes: TRANSACTION,
            warmup: Duration::from_millis(200),
            time: seconds,
        };
        let raw = open_loop::raw(self.raw.file, self.raw.bytes, &arrivals)?;
        let (producers, rate) = (OPEN_PRODUCERS.to_string(), (half as u64).to_string());
        let open = self.load(&["--producers", &producers, "--rate", &rate])?;
        let (p50, p99, p99_9) = (0.5, 0.99, 0.999);
        let us = |part| open.transactions.quantile_us(part);
        let times = |part| us(part) / disk.quantile_us(part);
        self.add("P4", "L(100 KiB) p50, µs", "", disk.quantile_us(p50));
        self.add("P4", "p50 / raw p50, half load, 16 producers", "<= 1.15", times(p50));
        self.add("P4", "p50 over raw p50, µs", "or <= 20", us(p50) - disk.quantile_us(p50));
        self.add("P4", "p99 / raw p99", "<= 1.5", times(p99));
        self.add("P4", "p99.9 / raw p99.9", "<= 2", times(p99_9));
        if let Some(raw) = raw {
            let same = |part| us(part) / raw.latencies.quantile_us(part);
            self.add("P4", "raw, same arrivals: p50, µs", "", raw.latencies.quantile_us(p50));
            self.add("P4", "raw, same arrivals: p99, µs", "", raw.latencies.quantile_us(p99));
            self.add("P4", "raw, same arrivals: p99.9, µs", "", raw.latencies.quantile_us(p99_9));
            self.add("P4", "p50 / raw, same arrivals", "<= 1.15", same(p50));
            self.add("P4", "p99 / raw, same arrivals", "<= 1.5", same(p99));
            self.add("P4", "p99.9 / raw, same arrivals", "<= 2", same(p99_9));
            self.add("P4", "raw, same arrivals: senders woke up late, p50 µs", "", raw.late.quantile_us(p50));
        }
        if let Some(late) = &open.late {
            self.add("P4", "producers woke up late, p50 µs", "", late.quantile_us(p50));
            self.add("P4", "producers woke up late, p99 µs", "", late.quantile_us(p99));
        }
        let cores = |cpu: Duration| cpu.as_secs_f64() / open.reading.elapsed.as_secs_f64();
        self.add("P4", "cores of the load itself", "", cores(open.reading.generator_cpu));
        self.add("P4", "cores of the channel", "", cores(open.reading.cpu));
        Ok(())
    }

    fn lone_commit(&mut self) -> Result<(), String> {
        let disk = self.raw.alone(HEADLINE_EVENT)?;
        let lone = self.load(&["--producers", "1", "--batch", "1"])?;
        let over = lone.transactions.quantile_us(0.5) - disk.latencies.quantile_us(0.5);
        self.add("P4", "L(4 KiB) p50, µs", "", disk.latencies.quantile_us(0.5));
        self.add("P4", "a lone 1-event commit: p50 over L, µs", "<= 15", over);
        Ok(())
    }

    /// P7: the headline with a key, right behind one without.
    fn key(&mut self) -> Result<(), String> {
        let plain = self.load(&[])?;
        let sealed = self.load(&["--encrypt"])?;
        self.add("P7", "put with key / without", ">= 0.95", put_mb_s(&sealed) / put_mb_s(&plain));
        self.add("P7", "CPU-s/GiB for the key", "<= 0.15", cpu_per_gib(&sealed) - cpu_per_gib(&plain));
        Ok(())
    }

    /// P9: many producers of single events.
    fn single(&mut self) -> Result<(), String> {
        let single = self.load(&["--producers", "64", "--batch", "1", "--consumers", "1"])?;
        if let Some(written) = written_for_each_byte(&single) {
            self.add("P9", "device bytes / payload, 64 x 1 event", "<= 1.25", written);
        }
        Ok(())
    }

    /// P12: a backlog that memory does not hold.
    fn drain(&mut self) -> Result<(), String> {
        let events = self.arguments.drain_events.to_string();
        // Segments stay: those that go are discarded where the file system is mounted so, which takes a disk half of its speed.
        let pool = (2 * self.arguments.drain_events * HEADLINE_EVENT as u64).to_string();
        let settings = self.arguments.fresh(&["--mode", "fill", "--events", &events, "--pool", &pool])?;
        still::fill(&settings)?;
        let (limit, checked) = (self.raw.read()?, self.raw.read_and_sum()?);
        let drained =
            still::drained(&self.arguments.fresh(&["--mode", "drain", "--seconds", "600", "--pool", &pool])?)?;
        settings.clear()?;
        self.add("P12", "R, MB/s", "", limit);
        self.add("P12", "drain / R", ">= 0.95", mb_s(&drained, drained.take_events) / limit);
        self.add("P12", "R of a reader that sums up what it reads, MB/s", "", checked);
        self.add("P12", "drain / that", "", mb_s(&drained, drained.take_events) / checked);
        Ok(())
    }
}

impl Arguments {
    /// A channel that is new.
    fn fresh(&self, more: &[&str]) -> Result<load_of::Arguments, String> {
        load_of::Arguments::typed(&self.dir.join(FOLDER), self.seconds, more)
    }
}

fn bytes(events: Option<u64>) -> f64 {
    events.unwrap_or_default() as f64 * HEADLINE_EVENT as f64
}

fn mb_s(outcome: &Outcome, events: Option<u64>) -> f64 {
    bytes(events) / outcome.reading.elapsed.as_secs_f64() / 1e6
}

fn put_mb_s(outcome: &Outcome) -> f64 {
    mb_s(outcome, outcome.put_events)
}

fn cpu_per_gib(outcome: &Outcome) -> f64 {
    outcome.reading.cpu.as_secs_f64() / bytes(outcome.put_events) * f64::from(1 << 30)
}

/// Where there is a block device.
fn written_for_each_byte(outcome: &Outcome) -> Option<f64> {
    outcome.reading.device.map(|device| device.written_bytes as f64 / bytes(outcome.put_events))
}
