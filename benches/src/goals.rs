//! `penstock-bench goals`: how much of the disk's limits the channel reaches, as ratios of one run.
//!
//! Each round measures the disk and the channel one after the other, so that both have the same mood of the machine, and
//! divides within the round; what is printed is the median of the rounds with the smallest and the largest. The numbers P1 to
//! P15 are those of `docs/performance.md`, which also says what is not measured here.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use serde_json::json;
use wal::calibrate::{self, Durability, Measured, Shape};
use wal::io::File;
use wal::io::real::{Backend, RealDir};
use wal::limits::pages;

use crate::channel::{self as load_of, Outcome, still};
use crate::numbers::{Latencies, Spread, rounded};
use crate::sheet::{self, Sheet};
use crate::{cli, device, host, output};

/// Sixteen raw measurements make a round's `W`: each takes this part of a load's time.
const RAW_PART: u32 = 10;
/// Latencies need more: p99.9 of a thousand writes is one write.
const LATENCY_PART: u32 = 2;

const HEADLINE_EVENT: usize = 1024;
const HEADLINE_BATCH: usize = 100;

/// Measure the ratios of docs/performance.md: the channel against the limits of its disk, in interleaved rounds
///
/// Takes about rounds x (40 x seconds + 40) seconds, and up to 20 GiB of room on a fast disk. Uses the folder `penstock-bench` and
/// the file `penstock-bench.device` below the directory, and removes both.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Where to measure
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Measured seconds of each load
    #[arg(long, value_name = "S", default_value = "2", value_parser = cli::seconds)]
    seconds: Duration,
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Length of the file that is overwritten and read for the limits of the disk
    #[arg(long, value_name = "BYTES", default_value = "1G", value_parser = cli::bytes)]
    bytes: u64,
    /// Bytes that the pool of each load is warm for, unless its row says that it grows; without it, what a fast disk takes
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
    let (mut sheet, mut loads) = (Sheet::default(), Vec::new());
    let measured = (0..arguments.rounds).try_for_each(|_| {
        loads.extend(host::load_average());
        round(
            arguments,
            &Raw { file: &file, backend: dir.backend(), bytes: arguments.bytes, seconds: arguments.seconds },
            &mut sheet,
        )
    });
    device::remove_file(&dir).map_err(at)?;
    measured?;
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

/// One round of everything.
fn round(arguments: &Arguments, raw: &Raw<'_>, sheet: &mut Sheet) -> Result<(), String> {
    let mb_s = |outcome: &Outcome, events: Option<u64>| {
        events.unwrap_or_default() as f64 * HEADLINE_EVENT as f64 / outcome.reading.elapsed.as_secs_f64() / 1e6
    };
    let put_mb_s = |outcome: &Outcome| mb_s(outcome, outcome.put_events);
    let gib = |events: Option<u64>| events.unwrap_or_default() as f64 * HEADLINE_EVENT as f64 / f64::from(1 << 30);
    let cpu_per_gib = |outcome: &Outcome| outcome.reading.cpu.as_secs_f64() / gib(outcome.put_events);
    let transaction = HEADLINE_BATCH * HEADLINE_EVENT;

    // P1, P10: the headline.
    let limit = raw.limit(8 * transaction)?;
    let headline = load(arguments, &[])?;
    sheet.add("P1", "W, 800 KiB in flight, MB/s", "", limit);
    sheet.add("P1", "put, 8 producers, MB/s", "", put_mb_s(&headline));
    sheet.add("P1", "put / W", ">= 0.95", put_mb_s(&headline) / limit);
    sheet.add("P10", "CPU-s/GiB put", "<= 0.4", cpu_per_gib(&headline));

    // P1, P9: with a pool that grows because nothing is taken.
    let limit = raw.limit(8 * transaction)?;
    let growing = channel_arguments(arguments, &[])?.measured()?;
    sheet.add("P1", "put / W, growing pool", "", put_mb_s(&growing) / limit);
    if let Some(device) = growing.reading.device {
        let bytes = gib(growing.put_events) * f64::from(1 << 30);
        sheet.add("P9", "device bytes / payload, growing pool", "", device.written_bytes as f64 / bytes);
    }

    // P1, P9, P10, P12, P13: with a consumer, so that segments are used again.
    let limit = raw.limit(8 * transaction)?;
    let tail = load(arguments, &["--consumers", "1"])?;
    sheet.add("P1", "put / W, one consumer, segments reused", "", put_mb_s(&tail) / limit);
    sheet.add("P10", "CPU-s/GiB put + take", "<= 0.6", cpu_per_gib(&tail));
    let took = tail.take_events.unwrap_or_default() as f64 / tail.put_events.unwrap_or_default().max(1) as f64;
    sheet.add("P13", "taken / put, one consumer", ">= 0.9", took);
    if let Some(device) = tail.reading.device {
        let bytes = gib(tail.put_events) * f64::from(1 << 30);
        sheet.add("P9", "device bytes / payload, with takes", "<= 1.03", device.written_bytes as f64 / bytes);
        sheet.add(
            "P12",
            "device reads at the tail, bytes/s",
            "0",
            device.read_bytes as f64 / tail.reading.elapsed.as_secs_f64(),
        );
    }

    // P2: one producer against raw write and sync of the same size.
    let disk = raw.alone(transaction)?;
    let alone = load(arguments, &["--producers", "1"])?;
    let alone_rate =
        alone.put_events.unwrap_or_default() as f64 / HEADLINE_BATCH as f64 / alone.reading.elapsed.as_secs_f64();
    sheet.add("P2", "L(100 KiB) p50, µs", "", disk.latencies.quantile_us(0.5));
    sheet.add("P2", "1 producer / raw write + sync", ">= 0.9 (0.75 if L < 250 µs)", alone_rate / disk.per_second);

    // P4: half of the headline's rate, 16 producers, from the intended time.
    let disk = raw.alone(transaction)?;
    let half = headline.put_events.unwrap_or_default() as f64 / headline.reading.elapsed.as_secs_f64() / 2.0;
    let open = load(arguments, &["--producers", "16", "--rate", &format!("{}", half.max(1.0) as u64)])?;
    let times = |part: f64| open.transactions.quantile_us(part) / disk.latencies.quantile_us(part);
    sheet.add("P4", "p50 / raw p50, half load, 16 producers", "<= 1.15", times(0.5));
    sheet.add("P4", "p99 / raw p99", "<= 1.5", times(0.99));
    sheet.add("P4", "p99.9 / raw p99.9", "<= 2", times(0.999));
    let disk = raw.alone(HEADLINE_EVENT)?;
    let lone = channel_arguments(arguments, &["--producers", "1", "--batch", "1"])?.measured()?;
    let over = lone.transactions.quantile_us(0.5) - disk.latencies.quantile_us(0.5);
    sheet.add("P4", "L(4 KiB) p50, µs", "", disk.latencies.quantile_us(0.5));
    sheet.add("P4", "a lone 1-event commit: p50 over L, µs", "<= 15", over);

    // P7: the same with a key, right behind one without.
    let plain = load(arguments, &[])?;
    let sealed = load(arguments, &["--encrypt"])?;
    sheet.add("P7", "put with key / without", ">= 0.95", put_mb_s(&sealed) / put_mb_s(&plain));
    sheet.add("P7", "CPU-s/GiB for the key", "<= 0.15", cpu_per_gib(&sealed) - cpu_per_gib(&plain));

    // P9, P11: many producers.
    let many = load(arguments, &["--producers", "64"])?;
    sheet.add("P11", "64 producers / 8 producers", ">= 0.98", put_mb_s(&many) / put_mb_s(&plain));
    let single = load(arguments, &["--producers", "64", "--batch", "1", "--consumers", "1"])?;
    if let Some(device) = single.reading.device {
        let bytes = gib(single.put_events) * f64::from(1 << 30);
        sheet.add("P9", "device bytes / payload, 64 x 1 event", "<= 1.25", device.written_bytes as f64 / bytes);
    }

    // P12: a backlog that memory does not hold.
    let events = arguments.drain_events.to_string();
    let settings = channel_arguments(arguments, &["--mode", "fill", "--events", &events])?;
    still::fill(&settings)?;
    let limit = raw.read()?;
    let drained = still::drained(&channel_arguments(arguments, &["--mode", "drain", "--seconds", "600"])?)?;
    settings.clear()?;
    sheet.add("P12", "R, MB/s", "", limit);
    sheet.add("P12", "drain / R", ">= 0.95", mb_s(&drained, drained.take_events) / limit);
    Ok(())
}

fn channel_arguments(arguments: &Arguments, more: &[&str]) -> Result<load_of::Arguments, String> {
    load_of::Arguments::typed(&arguments.dir, arguments.seconds, more)
}

/// A load in a pool that is warm for as much as a fast disk takes of it.
fn load(arguments: &Arguments, more: &[&str]) -> Result<Outcome, String> {
    let most = if more.contains(&"--batch") { SMALL_BYTES_S } else { WARM_BYTES_S };
    let taken = || (most * (arguments.seconds + WARM_UP).as_secs_f64()) as u64;
    let warm = arguments.warm_pool.unwrap_or_else(taken).to_string();
    let mut words = more.to_vec();
    words.extend(["--warm-pool", &warm]);
    channel_arguments(arguments, &words)?.measured()
}

/// More than the fastest disk of a single log takes in a second.
const WARM_BYTES_S: f64 = 3e9;
/// The same of commits of one event.
const SMALL_BYTES_S: f64 = 2e8;
/// Load before the seconds measured, as `Arguments::typed` has it.
const WARM_UP: Duration = Duration::from_millis(500);

/// The disk itself.
struct Raw<'a> {
    file: &'a Arc<dyn File>,
    backend: Backend,
    bytes: u64,
    seconds: Duration,
}

/// One durable write at a time.
struct Alone {
    latencies: Latencies,
    per_second: f64,
}

impl Raw<'_> {
    /// `W` of this round in MB/s: the fastest of all ways to have no more than `in_flight` bytes on their way.
    fn limit(&self, in_flight: usize) -> Result<f64, String> {
        let mut best = 0_f64;
        for depth in [1, 2, 4, 8] {
            for parts in [1, 2] {
                let shape = Shape { block: pages(in_flight.div_ceil(depth * parts)), depth };
                for durability in [Durability::PerWrite, Durability::SharedFlush] {
                    best = best.max(self.write(shape, durability, self.seconds / RAW_PART)?.bytes_per_second());
                }
            }
        }
        Ok(best / 1e6)
    }

    fn alone(&self, bytes: usize) -> Result<Alone, String> {
        let shape = Shape { block: pages(bytes), depth: 1 };
        let measured = self.write(shape, Durability::PerWrite, self.seconds / LATENCY_PART)?;
        let mut latencies = Latencies::new();
        measured.latencies.iter().for_each(|latency| latencies.record(*latency));
        Ok(Alone { latencies, per_second: measured.blocks as f64 / measured.elapsed.as_secs_f64() })
    }

    /// `R` of this round in MB/s.
    fn read(&self) -> Result<f64, String> {
        let mut best = 0_f64;
        for depth in [1, 2, 4, 8] {
            let shape = Shape { block: 1 << 20, depth };
            let measured = calibrate::read(&**self.file, self.bytes, shape, self.seconds / RAW_PART);
            best = best.max(measured.map_err(|error| format!("raw read: {error}"))?.bytes_per_second());
        }
        Ok(best / 1e6)
    }

    fn write(&self, shape: Shape, durability: Durability, time: Duration) -> Result<Measured, String> {
        let measured = calibrate::write(self.file, self.bytes, shape, durability, time, self.backend);
        measured.map_err(|error| format!("raw write: {error}"))
    }
}
