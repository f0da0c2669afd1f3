//! The planner against the disk: each load is predicted from raw writes, then measured, in this order.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser as _;
use serde_json::{Value, json};
use wal::calibrate::{self, Durability, Shape};
use wal::io::File;
use wal::io::real::{Backend, RealDir};

use super::model::{Disk, Load};
use crate::channel::{Arguments, load, still};
use crate::cli::{Cli, Command};
use crate::numbers::{Spread, rounded};
use crate::{device, host, output};

const PRODUCERS: [u64; 3] = [1, 8, 64];
const BATCHES: [u64; 3] = [1, 100, 1000];
const SIZES: [u64; 3] = [256, 1024, 4096];
/// Of the disk, to write raw.
const FILE_BYTES: u64 = 1 << 30;
/// Parts of a load's time: raw writes, the channel before it is measured, and measured.
const PARTS: [f64; 3] = [0.25, 0.25, 0.5];
/// The pool of segments, filled once: what a round of the fastest load needs.
const WARM: &str = "4G";

/// The disk itself, asked when the formulas ask.
struct Raw {
    file: Arc<dyn File>,
    backend: Backend,
    time: Duration,
    known: RefCell<BTreeMap<Shape, f64>>,
}

impl Disk for Raw {
    fn write_bytes_s(&self, shape: Shape) -> Result<f64, String> {
        if let Some(rate) = self.known.borrow().get(&shape) {
            return Ok(*rate);
        }
        let measured = calibrate::write(&self.file, FILE_BYTES, shape, Durability::PerWrite, self.time, self.backend);
        let rate = measured.map_err(|error| format!("raw write: {error}"))?.bytes_per_second();
        self.known.borrow_mut().insert(shape, rate);
        Ok(rate)
    }
}

pub(super) fn run(dir: &Path, budget: Duration, rounds: u32, as_json: bool) -> Result<(), String> {
    let at = |error: std::io::Error| format!("{}: {error}", dir.display());
    let raw_dir = RealDir::open_or_create(dir, None).map_err(at)?;
    let file = device::whole_file(&raw_dir, FILE_BYTES).map_err(at)?;
    let loads: Vec<Load> = PRODUCERS
        .iter()
        .flat_map(|&producers| BATCHES.map(|batch| (producers, batch)))
        .flat_map(|(producers, batch)| SIZES.map(|size| Load { producers, batch, size }))
        .collect();
    let cores = std::thread::available_parallelism().map_or(f64::INFINITY, |cores| cores.get() as f64);
    let each = budget.div_f64(f64::from(rounds) * loads.len() as f64);
    let [raw_time, warmup, time] = PARTS.map(|part| each.mul_f64(part));
    let settings = |producers: u64, batch: u64, size: u64, warm: &str| {
        let options = format!(
            "--producers {producers} --batch {batch} --size {size} --warmup {} --seconds {} --warm-pool {warm}",
            warmup.as_secs_f64(),
            time.as_secs_f64(),
        );
        parsed(dir, &options)
    };
    // However small the transactions are that will be measured, the pool is filled with large ones.
    let filling = settings(8, 100, 1024, WARM)?;
    filling.clear()?;
    let (mut found, mut averages) = (vec![Found::default(); loads.len()], Vec::new());
    let checked = filling.open().and_then(|channel| {
        still::warm(&channel, &filling)?;
        for (load, found_at) in loads.iter().cycle().zip((0..rounds).flat_map(|_| 0..loads.len())) {
            averages.extend(host::load_average());
            let backend = raw_dir.backend();
            let raw = Raw { file: Arc::clone(&file), backend, time: raw_time, known: RefCell::default() };
            let predicted = load.put_ev_s(&load.frames(1), &raw, cores)?;
            let outcome = load::measure(&channel, &settings(load.producers, load.batch, load.size, "0")?)?;
            still::drain_to(&channel, 0)?;
            let measured = outcome.put_events.unwrap_or_default() as f64 / outcome.reading.elapsed.as_secs_f64();
            found[found_at].push(predicted, measured);
        }
        Ok(())
    });
    filling.clear()?;
    device::remove_file(&raw_dir).map_err(at)?;
    checked?;
    let rows: Vec<Value> = loads.iter().zip(&found).map(|(load, found)| row(load, found)).collect();
    let errors: Vec<f64> = rows.iter().filter_map(|row| row["error"].as_f64()).map(f64::abs).collect();
    let result = json!({
        "command": "plan --check",
        "rounds": rounds,
        "seconds_each": rounded(time.as_secs_f64()),
        "block_device": device::describe(dir),
        "load_average": (!averages.is_empty()).then(|| Spread::of(&averages).json()),
        "median_error": rounded(Spread::of(&errors).median),
        "rows": rows,
    });
    output::print(as_json, &result, table);
    Ok(())
}

fn parsed(dir: &Path, options: &str) -> Result<Arguments, String> {
    let dir = dir.display().to_string();
    let words = ["penstock-bench", "channel", "--dir", &dir].into_iter().chain(options.split(' '));
    match Cli::try_parse_from(words).map(|cli| cli.command) {
        Ok(Command::Channel(arguments)) => Ok(arguments),
        Ok(_) => Err("the command is another one than was typed".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// All rounds of one load, events a second.
#[derive(Debug, Clone, Default)]
struct Found {
    predicted: Vec<f64>,
    measured: Vec<f64>,
    /// Of each round: what was predicted too much, as a part of what was measured.
    errors: Vec<f64>,
}

impl Found {
    fn push(&mut self, predicted: f64, measured: f64) {
        self.predicted.push(predicted);
        self.measured.push(measured);
        self.errors.push(if measured > 0.0 { predicted / measured - 1.0 } else { f64::INFINITY });
    }
}

fn row(load: &Load, found: &Found) -> Value {
    let frames = load.frames(1);
    let median = |rounds: &[f64]| rounded(Spread::of(rounds).median);
    json!({
        "producers": load.producers, "batch": load.batch, "size": load.size,
        "frame_bytes": frames.shape.block, "depth": frames.shape.depth,
        "predicted_ev_s": median(&found.predicted), "measured_ev_s": Spread::of(&found.measured).json(),
        "error": median(&found.errors),
    })
}

fn table(result: &Value) -> String {
    use std::fmt::Write as _;
    let mut out = format!(
        "load average {}\n\n| producers | batch | size | frame | depth | predicted ev/s | measured ev/s | error |\n\
         |---|---|---|---|---|---|---|---|\n",
        result["load_average"]["median"]
    );
    for row in result["rows"].as_array().into_iter().flatten() {
        let error = row["error"].as_f64().map_or_else(|| "-".to_owned(), |error| format!("{:+.0} %", error * 100.0));
        let [producers, batch, size, frame, depth, predicted, measured] =
            ["producers", "batch", "size", "frame_bytes", "depth", "predicted_ev_s", "measured_ev_s"]
                .map(|name| &row[name]);
        writeln!(
            out,
            "| {producers} | {batch} | {size} | {frame} | {depth} | {predicted} | {} | {error} |",
            measured["median"]
        )
        .expect("a String takes all");
    }
    let median = result["median_error"].as_f64().unwrap_or_default() * 100.0;
    writeln!(out, "\nmedian error {median:.0} %").expect("a String takes all");
    out
}
