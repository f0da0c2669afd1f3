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
struct Seen {
    mb_s: f64,
    p50_us: f64,
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
        let mut rows = Vec::new();
        for (kind, shape) in kinds.chain(reads.into_iter().map(|shape| (Kind::Read, shape))) {
            let (mut ours, mut theirs, mut rates, mut waits) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
            for round in 0..self.rounds {
                // Who comes first has the disk as the other one left it.
                let (own, other) = if round.is_multiple_of(2) {
                    let own = self.ours(kind, shape)?;
                    (own, self.fio(kind, shape)?)
                } else {
                    let other = self.fio(kind, shape)?;
                    (self.ours(kind, shape)?, other)
                };
                ours.push(own.mb_s);
                theirs.push(other.mb_s);
                rates.push(own.mb_s / other.mb_s);
                waits.push(own.p50_us / other.p50_us);
            }
            let ratio = Spread::of(&rates);
            rows.push(json!({
                "kind": if kind == Kind::Write { "write" } else { "read" }, "block": shape.block, "depth": shape.depth,
                "ours_mb_s": Spread::of(&ours).json(), "fio_mb_s": Spread::of(&theirs).json(), "ratio": ratio.json(),
                "latency_ratio": Spread::of(&waits).json(), "agrees": (ratio.median - 1.0).abs() <= AGREE,
            }));
        }
        Ok(json!({
            "command": "device --fio",
            "fio": String::from_utf8_lossy(&version.stdout).trim(),
            "engine": self.engine().0,
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
            Kind::Read => calibrate::read(&**self.file, self.bytes, shape, self.seconds),
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
        // Our reads are those of threads, as the channel's are.
        let (engine, one_job) = if kind == Kind::Write { self.engine() } else { ("psync", false) };
        let jobs = if one_job { 1 } else { shape.depth };
        let part = self.bytes / jobs as u64 / shape.block as u64 * shape.block as u64;
        let mut command = Command::new("fio");
        command.args(["--name=device", "--output-format=json", "--thread", "--group_reporting", "--time_based"]);
        command.args(["--direct=1", "--lat_percentiles=1", "--clat_percentiles=0", "--allow_file_create=0"]);
        command.arg(format!("--filename={}", self.path.display()));
        command.arg(format!("--ioengine={engine}"));
        command.arg(format!("--iodepth={}", shape.depth / jobs));
        command.arg(format!("--numjobs={jobs}"));
        command.arg(format!("--size={part}"));
        command.arg(format!("--offset_increment={part}"));
        command.arg(format!("--bs={}", shape.block));
        command.arg(format!("--runtime={}ms", self.seconds.as_millis()));
        match kind {
            Kind::Write => command.args(["--rw=write", "--sync=dsync", "--overwrite=1"]),
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
    let mut out = format!(
        "{} with {}, {} rounds of {} s in turns, load average {}\n\n| | ours, MB/s | fio, MB/s | ours / fio | latency, ours / fio |\n|---|---|---|---|---|\n",
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
            "| {} {} x {} | {} | {} | {}{} | {} |",
            row["kind"].as_str().unwrap_or_default(),
            row["depth"],
            size(row["block"].as_u64().unwrap_or_default()),
            spread("ours_mb_s"),
            spread("fio_mb_s"),
            spread("ratio"),
            if row["agrees"] == true { "" } else { " DIFFERS" },
            spread("latency_ratio"),
        )
        .expect("a String takes all");
    }
    out
}
