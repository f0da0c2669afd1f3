//! `penstock-bench backlog`: what a long queue costs in memory, and how long it takes to be there again.
//!
//! The channel is filled by a process that ends with SIGKILL, and opened by others that do the same, so that each open finds
//! what a crash left and no memory of an earlier one. They are this binary again, with the commands `channel --mode fill`
//! and `--mode open`, which anyone can run by hand. Puts beside the backlog are measured last, in this process, in turns with
//! puts on an empty channel: both in warm pools, with the same events.

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use crate::channel::{FOLDER, remove};
use crate::numbers::{Spread, rounded};
use crate::pool::{self, Pool};
use crate::{cli, host, output};

/// The folder of the channel without a backlog.
const EMPTY: &str = "penstock-bench.empty";
/// What the names of checkpoint files begin with.
const CHECKPOINT: &str = "checkpoint-";

/// Measure a long queue: memory for each queued event, and the time to open it after a crash
///
/// Fills a channel, kills the process, and opens what is left: with the checkpoint that was there, and with every checkpoint
/// deleted. Then puts beside it are measured in turns with puts on an empty channel. Needs room on the disk for all events, and
/// for two such rounds of puts. Uses the folders `penstock-bench` and `penstock-bench.empty` below the directory.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Where the queue lies
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Events to queue
    #[arg(long, value_name = "N", default_value_t = 10_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    events: u64,
    /// Bytes of an event's body
    #[arg(long, value_name = "BYTES", default_value = "256", value_parser = cli::bytes)]
    size: u64,
    /// Events in one put
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    batch: u32,
    /// How often it is opened in each way; medians are printed
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Shortest time between two checkpoints while it is filled
    #[arg(long, value_name = "S", default_value = "30", value_parser = cli::seconds)]
    checkpoint_interval: Duration,
    /// Seconds of puts in each round beside the backlog, and on the empty channel; 8 producers, about 100 KiB in each put
    #[arg(long, value_name = "S", default_value = "0.5", value_parser = cli::seconds)]
    put_seconds: Duration,
    /// Rounds of these puts; medians are printed
    #[arg(long, value_name = "N", default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..=1000))]
    put_rounds: u32,
    /// Encrypt with AES-256-GCM
    #[arg(long)]
    encrypt: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), String> {
    let folder = arguments.dir.join(FOLDER);
    let empty = arguments.dir.join(EMPTY);
    let measured = measure(arguments, &folder, &empty);
    remove(&folder)?;
    remove(&empty)?;
    output::print(arguments.json, &measured?, output::lines);
    Ok(())
}

fn measure(arguments: &Arguments, folder: &Path, empty: &Path) -> Result<Value, String> {
    let filled = child(arguments, "fill")?;
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for _ in 0..arguments.rounds {
        with.push(child(arguments, "open")?);
    }
    for _ in 0..arguments.rounds {
        delete_checkpoints(folder)?;
        without.push(child(arguments, "open")?);
    }
    for opened in with.iter().chain(&without) {
        if opened["depth"] != json!(arguments.events) {
            return Err(format!("{} events were queued; an open found {}", arguments.events, opened["depth"]));
        }
    }
    let disk_bytes = host::disk_use(folder);
    let put_bytes_s = filled["put_mb_s"].as_f64().unwrap_or_default() * 1e6;
    let puts = puts(arguments, empty, put_bytes_s * WARM_OF_GROWING, disk_bytes)?;
    let growth = filled["resident_mib"].as_f64().zip(filled["resident_full_tail_mib"].as_f64());
    let queue_bytes = filled["queue_bytes"].as_f64().unwrap_or_default();
    Ok(json!({
        "command": "backlog",
        "events": arguments.events, "size": arguments.size, "batch": arguments.batch, "encrypt": arguments.encrypt,
        "queue_bytes_per_event": rounded(queue_bytes / arguments.events as f64),
        "resident_growth_mib": growth.map(|(full, tail)| rounded(full - tail)),
        "resident_mib": filled["resident_mib"],
        "resident_full_tail_mib": filled["resident_full_tail_mib"],
        "put_ev_s": filled["put_ev_s"],
        "disk_bytes": disk_bytes,
        "puts": puts,
        "open_with_checkpoint": opened(&with),
        "open_without_checkpoint": opened(&without),
        "rounds": arguments.rounds,
        "load_average": host::load_average(),
    }))
}

/// In a warm pool, puts reach no more than this many times what the filling of a growing one reached.
const WARM_OF_GROWING: f64 = 3.0;
/// Bytes of one put.
const PUT_BYTES: u64 = 100 << 10;

/// Puts beside the backlog, and without one: MB/s and, of each round, the first divided by the second.
///
/// The pool is as large as backlog and puts together: where it is not, drained segments are removed and new ones are written with
/// zeros, which costs half of the disk with and without a backlog.
fn puts(arguments: &Arguments, empty: &Path, bytes_s: f64, backlog_bytes: u64) -> Result<Value, String> {
    let (size, batch) = (arguments.size.to_string(), (PUT_BYTES / arguments.size.max(1)).max(1));
    let batch = batch.to_string();
    let mut options = vec!["--size", &size, "--batch", &batch];
    options.extend(arguments.encrypt.then_some("--encrypt"));
    let bytes = pool::bytes_for(bytes_s, arguments.put_seconds);
    let pool = (backlog_bytes + 2 * bytes).to_string();
    let beside = Pool::around(&arguments.dir, bytes, &[&options[..], &["--pool", &pool]].concat())?;
    let alone = Pool::filled(empty, bytes, &options)?;
    let (mut with, mut without, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    let (mut cpu_with, mut cpu_without) = (Vec::new(), Vec::new());
    for round in 0..arguments.put_rounds {
        let load = |pool: &Pool<'_>, cpu: &mut Vec<f64>| {
            let outcome = pool.load(arguments.put_seconds, &options)?;
            let bytes = outcome.put_events.unwrap_or_default() as f64 * arguments.size as f64;
            cpu.push(outcome.reading.cpu.as_secs_f64() / bytes * f64::from(1 << 30));
            Ok::<f64, String>(bytes / outcome.reading.elapsed.as_secs_f64() / 1e6)
        };
        // Who comes first has the disk as the other one left it.
        let (own, other) = if round.is_multiple_of(2) {
            let own = load(&beside, &mut cpu_with)?;
            (own, load(&alone, &mut cpu_without)?)
        } else {
            let other = load(&alone, &mut cpu_without)?;
            (load(&beside, &mut cpu_with)?, other)
        };
        with.push(own);
        without.push(other);
        ratios.push(own / other);
    }
    beside.close()?;
    alone.close()?;
    Ok(json!({
        "beside_mb_s": Spread::of(&with).json(),
        "alone_mb_s": Spread::of(&without).json(),
        "beside_cpu_s_per_gib": Spread::of(&cpu_with).json(),
        "alone_cpu_s_per_gib": Spread::of(&cpu_without).json(),
        "beside_of_alone": Spread::of(&ratios).json(),
        "beside_of_alone_medians": rounded(Spread::of(&with).median / Spread::of(&without).median),
    }))
}

/// The opens of one kind: seconds until the channel serves, and until the first events are there.
fn opened(rounds: &[Value]) -> Value {
    let spread = |field: &str| {
        let times: Option<Vec<f64>> = rounds.iter().map(|round| round[field].as_f64()).collect();
        times.map(|times| Spread::of(&times).json())
    };
    json!({
        "ready_s": spread("ready_s"),
        "first_take_s": spread("first_take_s"),
        "rss_max_mib": spread("rss_max_mib"),
        "frames_read": rounds.last().map(|round| &round["frames_read"]),
        "segments_vouched_for": rounds.last().map(|round| &round["segments_vouched_for"]),
        "footers_read": rounds.last().map(|round| &round["footers_read"]),
    })
}

/// This binary again, in one mode of `channel`, until it kills itself.
fn child(arguments: &Arguments, mode: &str) -> Result<Value, String> {
    let own = std::env::current_exe().map_err(|error| format!("where this program is: {error}"))?;
    let mut command = Command::new(own);
    command.args(["channel", "--json", "--kill", "--mode", mode, "--dir"]).arg(&arguments.dir);
    command.args(["--events", &arguments.events.to_string(), "--size", &arguments.size.to_string()]);
    command.args(["--batch", &arguments.batch.to_string()]);
    command.args(["--checkpoint-interval", &arguments.checkpoint_interval.as_secs_f64().to_string()]);
    command.args(arguments.encrypt.then_some("--encrypt"));
    let output = command.output().map_err(|error| format!("{mode}: {error}"))?;
    if output.status.signal() != Some(rustix::process::Signal::KILL.as_raw()) {
        let told = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{mode} ended with {}: {}", output.status, told.trim()));
    }
    serde_json::from_slice(&output.stdout).map_err(|error| format!("{mode}: {error}"))
}

pub(crate) fn delete_checkpoints(folder: &Path) -> Result<(), String> {
    let at = |error: std::io::Error| format!("{}: {error}", folder.display());
    for entry in std::fs::read_dir(folder).map_err(at)? {
        let entry = entry.map_err(at)?;
        if entry.file_name().to_string_lossy().starts_with(CHECKPOINT) {
            std::fs::remove_file(entry.path()).map_err(at)?;
        }
    }
    Ok(())
}
