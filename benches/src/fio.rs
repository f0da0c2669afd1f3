//! The same file and the same shapes by fio, in turns with our own measurement: whether `W`, `L` and `R` are what others see.
//!
//! Promises that a comparison is of rounds next to each other, with the same engine (io_uring, or a thread for each block in
//! flight), the same flags (`O_DIRECT`, `RWF_DSYNC`) and the same file, and that without fio it says so and compares nothing.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use wal::calibrate::{self, Durability, Shape};
use wal::io::File;
use wal::io::real::Backend;

use crate::host;
use crate::numbers::{Latencies, Spread, rounded, size};

/// Two tools that differ by more than this do not measure the same.
const AGREE: f64 = 0.05;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Write,
    Read,
}

/// What is compared unless shapes are named: the ends of the grid, and what a busy channel writes.
const WRITES: [(usize, usize); 7] =
    [(4 << 10, 1), (100 << 10, 1), (1 << 20, 1), (64 << 10, 4), (256 << 10, 4), (100 << 10, 8), (1 << 20, 4)];
const READS: [(usize, usize); 2] = [(256 << 10, 4), (1 << 20, 4)];

/// fio's buffers lie in large pages, as ours do, when so many are reserved: a disk takes only so many pieces of memory in one
/// request, and each costs.
const LARGE_PAGES: u64 = 16;

/// What is compared, on which file.
pub(crate) struct Comparison<'a> {
    pub(crate) file: &'a Arc<dyn File>,
    pub(crate) path: &'a Path,
    pub(crate) bytes: u64,
    pub(crate) backend: Backend,
    pub(crate) seconds: Duration,
    pub(crate) rounds: u32,
    /// Those that were named, if any.
    pub(crate) writes: Vec<Shape>,
}

/// Of one tool in one round.
#[derive(Debug, Clone, Copy)]
struct Seen {
    mb_s: f64,
    p50_us: f64,
}

/// All rounds of one shape.
#[derive(Debug, Default)]
struct Turns {
    ours: Vec<Seen>,
    theirs: Vec<Seen>,
}

impl Turns {
    fn row(&self, (kind, shape): (Kind, Shape)) -> Value {
        let rates = |turns: &[Seen]| turns.iter().map(|seen| seen.mb_s).collect::<Vec<f64>>();
        let (ours, theirs) = (rates(&self.ours), rates(&self.theirs));
        let median = |rates: &[f64]| Spread::of(rates).median;
        let ratio = median(&ours) / median(&theirs);
        let divided =
            |one: &[f64], other: &[f64]| one.iter().zip(other).map(|(one, other)| one / other).collect::<Vec<f64>>();
        let waits: Vec<f64> =
            self.ours.iter().zip(&self.theirs).map(|(own, other)| own.p50_us / other.p50_us).collect();
        json!({
            "kind": if kind == Kind::Write { "write" } else { "read" }, "block": shape.block, "depth": shape.depth,
            "ours_mb_s": Spread::of(&ours).json(), "fio_mb_s": Spread::of(&theirs).json(),
            "ratio_of_medians": rounded(ratio),
            "ratio": Spread::of(&divided(&ours, &theirs)).json(),
            "latency_ratio": Spread::of(&waits).json(),
            // What one and the same tool differs by from one turn to the next: nothing finer can be seen here.
            "fio_of_fio": (theirs.len() > 1).then(|| Spread::of(&divided(&theirs[1..], &theirs)).json()),
            "fio_halves": halves(&theirs).map(|(one, other)| rounded(median(&one) / median(&other))),
            "agrees": (ratio - 1.0).abs() <= AGREE,
        })
    }
}

fn has_large_pages() -> bool {
    host::huge_pages_free().is_some_and(|free| free >= LARGE_PAGES)
}

/// Every other turn, and the rest.
fn halves(rates: &[f64]) -> Option<(Vec<f64>, Vec<f64>)> {
    let half = |first: usize| rates.iter().skip(first).step_by(2).copied().collect::<Vec<f64>>();
    (rates.len() > 1).then(|| (half(0), half(1)))
}

impl Comparison<'_> {
    pub(crate) fn run(&self) -> Result<Value, String> {
        let version = Command::new("fio").arg("--version").output();
        let version =
            version.map_err(|error| format!("fio is not installed ({error}); `apt install fio` brings it"))?;
        let shape = |(block, depth)| Shape { block, depth };
        let named = !self.writes.is_empty();
        let writes = if named { self.writes.clone() } else { WRITES.map(shape).to_vec() };
        let reads = if named { Vec::new() } else { READS.map(shape).to_vec() };
        let kinds = writes.into_iter().map(|shape| (Kind::Write, shape));
        let shapes: Vec<(Kind, Shape)> = kinds.chain(reads.into_iter().map(|shape| (Kind::Read, shape))).collect();
        let mut all: Vec<Turns> = shapes.iter().map(|_| Turns::default()).collect();
        // All shapes in each round: what others do to the disk for a while falls on all of them, and on a few turns of each.
        for round in 0..self.rounds {
            for ((kind, shape), turns) in shapes.iter().zip(&mut all) {
                // Who comes first has the disk as the other one left it.
                if round.is_multiple_of(2) {
                    turns.ours.push(self.ours(*kind, *shape)?);
                    turns.theirs.push(self.fio(*kind, *shape)?);
                } else {
                    turns.theirs.push(self.fio(*kind, *shape)?);
                    turns.ours.push(self.ours(*kind, *shape)?);
                }
            }
        }
        let rows: Vec<Value> = shapes.iter().zip(&all).map(|(shape, turns)| turns.row(*shape)).collect();
        Ok(json!({
            "command": "device --fio",
            "fio": String::from_utf8_lossy(&version.stdout).trim(),
            "engine": self.engine().0,
            "fio_large_pages": has_large_pages(),
            "rounds": self.rounds,
            "seconds": rounded(self.seconds.as_secs_f64()),
            "load_average": host::load_average(),
            "rows": rows,
        }))
    }

    fn ours(&self, kind: Kind, shape: Shape) -> Result<Seen, String> {
        let measured = match kind {
            Kind::Write => {
                calibrate::write(self.file, self.bytes, shape, Durability::PerWrite, self.seconds, self.backend)
            }
            Kind::Read => calibrate::read(&**self.file, self.bytes, shape, self.seconds, |_| ()),
        };
        let measured = measured.map_err(|error| error.to_string())?;
        let mut latencies = Latencies::new();
        measured.latencies.iter().for_each(|latency| latencies.record(*latency));
        Ok(Seen { mb_s: measured.bytes_per_second() / 1e6, p50_us: latencies.quantile_us(0.5) })
    }

    /// How fio does what we do: its engine, and whether one job has all blocks in flight.
    fn engine(&self) -> (&'static str, bool) {
        if self.backend == Backend::Uring { ("io_uring", true) } else { ("psync", false) }
    }

    fn fio(&self, kind: Kind, shape: Shape) -> Result<Seen, String> {
        let (engine, one_job) = self.engine();
        let jobs = if one_job { 1 } else { shape.depth };
        let part = self.bytes / jobs as u64 / shape.block as u64 * shape.block as u64;
        let mut command = Command::new("fio");
        command.args(["--name=device", "--output-format=json", "--thread", "--group_reporting", "--time_based"]);
        command.args(["--direct=1", "--lat_percentiles=1", "--clat_percentiles=0", "--allow_file_create=0"]);
        command.arg(format!("--filename={}", self.path.display()));
        command.arg(format!("--ioengine={engine}"));
        if has_large_pages() {
            command.arg("--iomem=mmaphuge");
        }
        if one_job {
            // Memory that the kernel has mapped already, one piece for each write, and each is waited for by itself.
            command.args(["--fixedbufs=1", "--nonvectored=1", "--iodepth_batch_complete_min=1"]);
        }
        command.arg(format!("--iodepth={}", shape.depth / jobs));
        command.arg(format!("--numjobs={jobs}"));
        command.arg(format!("--size={part}"));
        command.arg(format!("--offset_increment={part}"));
        command.arg(format!("--bs={}", shape.block));
        command.arg(format!("--runtime={}ms", self.seconds.as_millis()));
        match kind {
            Kind::Write => command.args(["--rw=write", "--sync=dsync", "--overwrite=1"]),
            // One stream from front to end, so that both tools ask for the same blocks in the same order.
            Kind::Read => command.arg("--rw=read"),
        };
        let output = command.output().map_err(|error| format!("fio: {error}"))?;
        let said: Value = serde_json::from_slice(&output.stdout)
            .map_err(|error| format!("fio: {error}: {}", String::from_utf8_lossy(&output.stderr)))?;
        let of = &said["jobs"][0][if kind == Kind::Write { "write" } else { "read" }];
        let rate = of["bw_bytes"].as_f64().filter(|rate| *rate > 0.0);
        let wait = of["lat_ns"]["percentile"]["50.000000"].as_f64();
        match (rate, wait) {
            (Some(rate), Some(wait)) => Ok(Seen { mb_s: rate / 1e6, p50_us: wait / 1e3 }),
            _ => Err(format!("fio measured nothing: {}", String::from_utf8_lossy(&output.stderr))),
        }
    }
}

pub(crate) fn table(result: &Value) -> String {
    let small = if result["fio_large_pages"] == true {
        String::new()
    } else {
        format!(
            ", its buffers in small pages and ours in large ones: `sysctl vm.nr_hugepages={}` first",
            2 * LARGE_PAGES
        )
    };
    let mut out = format!(
        "{} with {}{small}, {} rounds of {} s in turns, load average {}\n\n| | ours, MB/s | fio, MB/s | ours / fio, medians | of each turn | fio / fio, turn by turn | fio / fio, halves |\n|---|---|---|---|---|---|---|\n",
        result["fio"].as_str().unwrap_or("fio"),
        result["engine"].as_str().unwrap_or_default(),
        result["rounds"],
        result["seconds"],
        result["load_average"]
    );
    for row in result["rows"].as_array().into_iter().flatten() {
        let spread = |name: &str| format!("{} ({} to {})", row[name]["median"], row[name]["min"], row[name]["max"]);
        writeln!(
            out,
            "| {} {} x {} | {} | {} | {}{} | {} | {} | {} |",
            row["kind"].as_str().unwrap_or_default(),
            row["depth"],
            size(row["block"].as_u64().unwrap_or_default()),
            spread("ours_mb_s"),
            spread("fio_mb_s"),
            row["ratio_of_medians"],
            if row["agrees"] == true { "" } else { " DIFFERS" },
            spread("ratio"),
            spread("fio_of_fio"),
            row["fio_halves"],
        )
        .expect("a String takes all");
    }
    out
}
