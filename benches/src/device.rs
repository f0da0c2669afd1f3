//! `penstock-bench device`: what a disk can do for a log. Its own code is the grid and the words; the measuring is
//! `wal::calibrate`, which is also what the channel could ask.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use wal::calibrate::{self, Durability, Shape, fastest};
use wal::io::real::{Backend, RealDir};
use wal::io::{Access, Dir, File};
use wal::limits::PAGE;

use crate::fio::{self, Comparison};
use crate::host::{self, BlockDevice};
use crate::numbers::{Latencies, Spread, rounded, size};
use crate::{cli, cpu, output};

const FILE: &str = "penstock-bench.device";
const BLOCKS: [usize; 9] = [4 << 10, 8 << 10, 16 << 10, 32 << 10, 64 << 10, 128 << 10, 256 << 10, 512 << 10, 1 << 20];
const DEPTHS: [usize; 4] = [1, 2, 4, 8];
const READ_BLOCKS: [usize; 2] = [256 << 10, 1 << 20];
/// Bytes in flight for which the limit is named, where the grid reaches so far.
const IN_FLIGHT: [usize; 8] = [4 << 10, 16 << 10, 64 << 10, 128 << 10, 256 << 10, 1 << 20, 4 << 20, 8 << 20];
/// Writes of each kind whose syncs are counted at the device.
const CHECKED: u64 = 64;

/// Measure the disk below a directory: durable writes, reads, latency, and what one core does with bytes
///
/// Writes a file from end to end, then overwrites it again and again with direct I/O: blocks of 4 KiB to 1 MiB, 1 to 8 in
/// flight, each made durable by itself (RWF_DSYNC) or all of a round with one flush (fdatasync). Prints `w`, the fastest
/// durable writer for so many bytes in flight, `l`, the latency of one durable write, and `r`, the fastest reader: the
/// limits that no log on this disk can pass. Takes about seconds x rounds x 80.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Where to measure; the file is removed afterwards
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Length of the file; longer than the disk's own cache is better
    #[arg(long, value_name = "BYTES", default_value = "1G", value_parser = cli::bytes)]
    bytes: u64,
    /// Seconds of each measurement
    #[arg(long, value_name = "S", default_value = "0.25", value_parser = cli::seconds)]
    seconds: Duration,
    /// How often the whole grid is measured, one round after the other; medians are printed
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Only these block sizes
    #[arg(long, value_name = "BYTES", value_delimiter = ',', value_parser = cli::bytes)]
    block: Vec<u64>,
    /// Only so many in flight
    #[arg(long, value_name = "N", value_delimiter = ',')]
    depth: Vec<usize>,
    /// Only these ways to make writes durable
    #[arg(long, value_delimiter = ',')]
    sync: Vec<Sync>,
    /// Also name the limit for so many bytes in flight: producers x batch x size of the load in question
    #[arg(long, value_name = "BYTES", value_delimiter = ',', value_parser = cli::bytes)]
    in_flight: Vec<u64>,
    /// Do not measure reads, the CPU and the syncs
    #[arg(long)]
    writes_only: bool,
    /// How the file is written, as in `channel`: io_uring, direct (a thread for each block in flight) or buffered
    #[arg(long, value_name = "HOW", value_parser = |name: &str| Backend::named(name).ok_or("not a way to write"))]
    io: Option<Backend>,
    /// Compare with fio instead, in turns on the same file: some shapes, or those of --block and --depth
    #[arg(long)]
    fio: bool,
    /// Leave the file there, for another tool to measure; one that is there is used again
    #[arg(long)]
    keep: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Sync {
    /// Each write by itself, RWF_DSYNC
    PerWrite,
    /// One fdatasync for all writes in flight
    SharedFlush,
}

/// All rounds of one point of the grid.
#[derive(Debug)]
struct Row {
    bytes_s: Vec<f64>,
    p50_us: Vec<f64>,
    latencies: Latencies,
}

type Writes = BTreeMap<(Durability, Shape), Row>;
type Reads = BTreeMap<Shape, Vec<f64>>;

/// What the disk reached, by point of the grid.
#[derive(Default)]
struct Grid {
    writes: Writes,
    reads: Reads,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), String> {
    let shapes = shapes(arguments)?;
    let at = |action: &str, error: io::Error| format!("{}: {action}: {error}", arguments.dir.display());
    let dir = RealDir::open_or_create(&arguments.dir, arguments.io).map_err(|error| at("open", error))?;
    let file = whole_file(&dir, arguments.bytes).map_err(|error| at("write the file to measure with", error))?;
    if arguments.fio {
        let named = !arguments.block.is_empty() || !arguments.depth.is_empty();
        let comparison = Comparison {
            file: &file,
            path: &arguments.dir.join(FILE),
            bytes: arguments.bytes,
            backend: dir.backend(),
            seconds: arguments.seconds,
            rounds: arguments.rounds,
            writes: if named { shapes } else { Vec::new() },
        };
        let compared = comparison.run();
        if !arguments.keep {
            remove_file(&dir).map_err(|error| at("remove the file", error))?;
        }
        output::print(arguments.json, &compared?, fio::table);
        return Ok(());
    }
    let load_before = host::load_average();
    let measured = measure(&file, dir.backend(), arguments, &shapes).map_err(|error| at("measure", error));
    let syncs = match (&measured, arguments.writes_only) {
        (Ok(_), false) => check_syncs(&file, dir.backend(), arguments).map_err(|error| at("count syncs", error)),
        _ => Ok(Value::Null),
    };
    if !arguments.keep {
        // After an error as well: a gibibyte must not stay behind.
        remove_file(&dir).map_err(|error| at("remove the file", error))?;
    }
    let grid = measured?;
    let mut result = json!({
        "command": "device",
        "dir": arguments.dir.display().to_string(),
        "block_device": describe(&arguments.dir),
        "direct_io": dir.backend() != Backend::Buffered,
        "file_bytes": arguments.bytes,
        "rounds": arguments.rounds,
        "load_average": load_before,
        "syncs": syncs?,
        "cpu": if arguments.writes_only { Value::Null } else { cpu::rates(3, Duration::from_millis(100)) },
    });
    summarise(&grid, arguments, &mut result);
    output::print(arguments.json, &result, table);
    Ok(())
}

/// The grid, in one order: neighbours share the mood of the machine.
fn shapes(arguments: &Arguments) -> Result<Vec<Shape>, String> {
    let depths = if arguments.depth.is_empty() { DEPTHS.to_vec() } else { arguments.depth.clone() };
    let mut blocks: Vec<usize> = arguments.block.iter().map(|block| *block as usize).collect();
    if blocks.is_empty() {
        blocks = BLOCKS.to_vec();
    }
    let grid = blocks.iter().flat_map(|&block| depths.iter().map(move |&depth| Shape { block, depth }));
    // A load whose bytes in flight are no power of two is as fast as its best division, not as the next smaller one.
    let extra = arguments.in_flight.iter().flat_map(|&bytes| {
        depths.iter().map(move |&depth| Shape { block: bytes as usize / depth / PAGE * PAGE, depth })
    });
    let mut shapes: Vec<Shape> = grid.chain(extra.filter(|shape| shape.block > 0)).collect();
    shapes.sort();
    shapes.dedup();
    for shape in &shapes {
        if shape.block == 0 || !shape.block.is_multiple_of(PAGE) {
            return Err(format!("--block {}: direct I/O takes multiples of {PAGE} bytes", shape.block));
        }
        if shape.depth == 0 || shape.depth > calibrate::DEPTH_MAX {
            return Err(format!("--depth {}: 1 to {} are possible", shape.depth, calibrate::DEPTH_MAX));
        }
        if shape.in_flight() as u64 > arguments.bytes {
            return Err(format!(
                "--bytes {}: {} blocks of {} in flight need a longer file",
                arguments.bytes, shape.depth, shape.block
            ));
        }
    }
    Ok(shapes)
}

/// A file that was written once from end to end, so that writing it again changes nothing but its bytes.
pub(crate) fn whole_file(dir: &RealDir, len: u64) -> io::Result<Arc<dyn File>> {
    if let Ok(file) = dir.open(FILE, Access::ReadWrite) {
        if file.size()? == len {
            return Ok(file);
        }
        dir.remove(FILE)?;
    }
    let file = dir.create(FILE)?;
    let whole = calibrate::fill(&*file, len).and_then(|()| dir.sync());
    if let Err(error) = whole {
        dir.remove(FILE)?;
        return Err(error);
    }
    Ok(file)
}

pub(crate) fn remove_file(dir: &RealDir) -> io::Result<()> {
    dir.remove(FILE)?;
    host::forgotten(Path::new(&dir.name()));
    Ok(())
}

fn measure(file: &Arc<dyn File>, backend: Backend, arguments: &Arguments, shapes: &[Shape]) -> io::Result<Grid> {
    let mut grid = Grid::default();
    let wanted = |durability| match durability {
        Durability::PerWrite => arguments.sync.is_empty() || arguments.sync.contains(&Sync::PerWrite),
        Durability::SharedFlush => arguments.sync.is_empty() || arguments.sync.contains(&Sync::SharedFlush),
    };
    for _ in 0..arguments.rounds {
        for &shape in shapes {
            for durability in [Durability::PerWrite, Durability::SharedFlush].into_iter().filter(|way| wanted(*way)) {
                // One block in flight shares its flush with nobody, but is another system call: both are measured.
                let measured = calibrate::write(file, arguments.bytes, shape, durability, arguments.seconds, backend)?;
                let mut latencies = Latencies::new();
                measured.latencies.iter().for_each(|latency| latencies.record(*latency));
                let row = grid.writes.entry((durability, shape)).or_insert_with(|| Row {
                    bytes_s: Vec::new(),
                    p50_us: Vec::new(),
                    latencies: Latencies::new(),
                });
                row.bytes_s.push(measured.bytes_per_second());
                row.p50_us.push(latencies.quantile_us(0.5));
                row.latencies.add(&latencies);
            }
        }
        if arguments.writes_only {
            continue;
        }
        for shape in READ_BLOCKS.iter().flat_map(|&block| DEPTHS.map(|depth| Shape { block, depth })) {
            if shape.in_flight() as u64 <= arguments.bytes {
                let measured = calibrate::read(&**file, arguments.bytes, shape, arguments.seconds, |_| ())?;
                grid.reads.entry(shape).or_default().push(measured.bytes_per_second());
            }
        }
    }
    Ok(grid)
}

/// What the numbers say: `w`, `l`, `r`, and all of them.
fn summarise(grid: &Grid, arguments: &Arguments, result: &mut Value) {
    let mb = |bytes: f64| rounded(bytes / 1e6);
    let spread = |rates: &[f64]| Spread::of(&rates.iter().map(|rate| rate / 1e6).collect::<Vec<_>>()).json();
    let writes: Vec<Value> = grid
        .writes
        .iter()
        .map(|((durability, shape), row)| {
            json!({
                "block": shape.block, "depth": shape.depth, "sync": durability.name(),
                "mb_s": spread(&row.bytes_s), "latency_us": row.latencies.json(),
            })
        })
        .collect();
    let rates: Vec<_> = grid.writes.iter().map(|(key, row)| (key, key.1, Spread::of(&row.bytes_s).median)).collect();
    let most = grid.writes.keys().map(|(_, shape)| shape.in_flight()).max().unwrap_or_default();
    let mut totals: Vec<usize> = IN_FLIGHT.into_iter().filter(|bytes| *bytes <= most).collect();
    totals.extend(arguments.in_flight.iter().map(|bytes| *bytes as usize));
    totals.sort_unstable();
    totals.dedup();
    let limits: Vec<Value> = totals
        .into_iter()
        .filter_map(|total| {
            let ((durability, shape), rate) =
                fastest(rates.iter().map(|(key, shape, rate)| (*key, *shape, *rate)), total)?;
            Some(json!({
                "in_flight": total, "mb_s": mb(rate), "block": shape.block, "depth": shape.depth,
                "sync": durability.name(),
            }))
        })
        .collect();
    let mut alone: BTreeMap<usize, (&str, &Row)> = BTreeMap::new();
    for ((durability, shape), row) in grid.writes.iter().filter(|((_, shape), _)| shape.depth == 1) {
        let p50 = |row: &Row| Spread::of(&row.p50_us).median;
        let best = alone.entry(shape.block).or_insert((durability.name(), row));
        if p50(row) < p50(best.1) {
            *best = (durability.name(), row);
        }
    }
    let latency: Vec<Value> = alone
        .into_iter()
        .map(|(block, (sync, row))| json!({"block": block, "sync": sync, "us": row.latencies.json()}))
        .collect();
    let reads: Vec<Value> = grid
        .reads
        .iter()
        .map(|(shape, rates)| json!({"block": shape.block, "depth": shape.depth, "mb_s": spread(rates)}))
        .collect();
    let best_read =
        fastest(grid.reads.iter().map(|(shape, rates)| (shape, *shape, Spread::of(rates).median)), usize::MAX);
    result["w"] = json!(limits);
    result["l"] = json!(latency);
    result["r"] = best_read
        .map_or(Value::Null, |(shape, rate)| json!({"mb_s": mb(rate), "block": shape.block, "depth": shape.depth}));
    result["writes"] = json!(writes);
    result["reads"] = json!(reads);
}

pub(crate) fn describe(dir: &Path) -> Value {
    let Some(device) = BlockDevice::below(dir) else { return Value::Null };
    json!({
        "name": device.name(),
        "number": device.number,
        "write_cache": device.queue("write_cache"),
        "fua": device.queue("fua"),
        "logical_block_size": device.queue("logical_block_size"),
    })
}

/// Whether the syncs that were asked for reach the device. The counter is the whole disk's, so that others' syncs count as
/// well: what happens without any of ours is printed beside it.
fn check_syncs(file: &Arc<dyn File>, backend: Backend, arguments: &Arguments) -> io::Result<Value> {
    let shape = Shape { block: PAGE, depth: 1 };
    let Some(device) = BlockDevice::below(&arguments.dir) else {
        return Ok(unverified("no block device is shown below the directory; try `strace -f -c`"));
    };
    let flushes = || device.counts().map(|counts| counts.flushes);
    let (Some(before), Some(cache)) = (flushes(), device.queue("write_cache")) else {
        return Ok(unverified("the device shows no counters; try `strace -f -c`"));
    };
    if cache == "write through" {
        return Ok(unverified("the device says that it has no volatile cache, so the kernel sends it no flush"));
    }
    // Writes without a sync, for as long as the others take: what the counter does by itself.
    let begin = std::time::Instant::now();
    let block = wal::io::buffer::Buffer::zeroed(PAGE)?;
    for index in 0..CHECKED {
        file.write_at(&block, index * PAGE as u64 % arguments.bytes)?;
    }
    while begin.elapsed() < CHECK_TIME {
        std::thread::sleep(CHECK_TIME.saturating_sub(begin.elapsed()));
    }
    let idle = flushes().unwrap_or(before) - before;
    let idle_s = begin.elapsed().as_secs_f64();
    let mut ways = Vec::new();
    let mut all = true;
    for durability in [Durability::PerWrite, Durability::SharedFlush] {
        let before = flushes().unwrap_or_default();
        let measured = calibrate::write(file, arguments.bytes, shape, durability, CHECK_TIME, backend)?;
        let seen = flushes().unwrap_or_default() - before;
        let with_write = durability == Durability::PerWrite && device.queue("fua").as_deref() == Some("1");
        let reached = if with_write { None } else { Some(seen >= measured.syncs) };
        all &= reached.unwrap_or(true);
        ways.push(json!({
            "sync": durability.name(), "asked": measured.syncs, "flushes_of_device": seen, "reached": reached,
            "seconds": rounded(measured.elapsed.as_secs_f64()),
        }));
    }
    Ok(json!({
        "verified": all,
        "how": "flushes counted by the block device while writes were made durable one by one; \
                with FUA the flush is part of the write and shows in no counter",
        "flushes_by_others": {"count": idle, "seconds": rounded(idle_s)},
        "ways": ways,
    }))
}

const CHECK_TIME: Duration = Duration::from_millis(100);

fn unverified(why: &str) -> Value {
    json!({"verified": null, "how": why})
}

fn table(result: &Value) -> String {
    let mut out = String::new();
    let bytes = |value: &Value| size(value.as_u64().unwrap_or_default());
    let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
    let device = &result["block_device"];
    let (cache, fua) = (text(&device["write_cache"]), text(&device["fua"]));
    let mut line = |line: String| writeln!(out, "{line}").expect("a String takes all");
    line(format!(
        "{} on {} ({cache}, FUA {fua}); load average {}",
        text(&result["dir"]),
        text(&device["name"]),
        result["load_average"]
    ));
    if result["direct_io"] == false {
        line(
            "direct I/O is refused here: writes go through the page cache, and reads say nothing about the disk".into(),
        );
    }
    match &result["syncs"]["verified"] {
        Value::Bool(true) => line("syncs: they reach the device".into()),
        Value::Bool(false) => line("syncs: the device saw FEWER flushes than were asked for; see --json".into()),
        _ if result["syncs"].is_null() => {}
        _ => line(format!("syncs: not verified: {}", text(&result["syncs"]["how"]))),
    }
    line("\nW, fastest durable writer\n  in flight      MB/s     as".into());
    for row in result["w"].as_array().into_iter().flatten() {
        let how = format!("{} x {}, {}", row["depth"], bytes(&row["block"]), text(&row["sync"]));
        line(format!("  {:>9} {:>9}     {how}", bytes(&row["in_flight"]), row["mb_s"].to_string()));
    }
    line("\nL, one durable write at a time, µs\n      block       p50       p99     p99.9       max     as".into());
    for row in result["l"].as_array().into_iter().flatten() {
        let us = &row["us"];
        line(format!(
            "  {:>9} {:>9} {:>9} {:>9} {:>9}     {}",
            bytes(&row["block"]),
            us["p50"].to_string(),
            us["p99"].to_string(),
            us["p99_9"].to_string(),
            us["max"].to_string(),
            text(&row["sync"])
        ));
    }
    if let Some(rate) = result["r"]["mb_s"].as_f64() {
        line(format!(
            "\nR, fastest reader: {rate} MB/s as {} x {}",
            result["r"]["depth"],
            bytes(&result["r"]["block"])
        ));
    }
    if let Some(members) = result["cpu"].as_object() {
        let seal: Vec<String> = members["aes_256_gcm_gb_s"]
            .as_object()
            .into_iter()
            .flatten()
            .map(|(len, rate)| format!("{rate} at {}", size(len.parse().unwrap_or_default())))
            .collect();
        line(format!(
            "\nOne core, GB/s: copy {}, CRC-32C {}, AES-256-GCM {}",
            members["copy_gb_s"],
            members["crc32c_gb_s"],
            seal.join(", ")
        ));
    }
    out
}
