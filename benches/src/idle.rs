//! `penstock-bench idle`: what a channel costs while nothing happens.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use channel::{Channel, Devices, DurableChannel, DurableOptions, EventBatch, Settlement, TakeLimits};
use clap::Args;
use serde_json::{Value, json};

use crate::channel::{FOLDER, remove};
use crate::meter::{Generator, Meter};
use crate::numbers::rounded;
use crate::{cli, host, output};

/// After an event, the channel still has a witness to write and a checkpoint: that is not yet idleness.
const SETTLE: Duration = Duration::from_secs(2);
const TAKE_WAIT: Duration = Duration::from_secs(60);

/// Measure an idle channel: CPU, wake-ups, memory, disk
///
/// Twice: as it was opened, and after one event was put, taken and settled. A wake-up is a voluntary context switch of one of
/// the channel's threads. Uses the folder `penstock-bench` below the directory.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Where the channel lies
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// How long to look each time
    #[arg(long, value_name = "S", default_value = "10", value_parser = cli::seconds)]
    seconds: Duration,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), String> {
    let folder = arguments.dir.join(FOLDER);
    remove(&folder)?;
    let measured = measure(arguments, &folder);
    remove(&folder)?;
    output::print(arguments.json, &measured?, output::lines);
    Ok(())
}

fn measure(arguments: &Arguments, folder: &Path) -> Result<Value, String> {
    let options = DurableOptions::new("bench", vec![folder.to_path_buf()]);
    let channel = DurableChannel::open(options, &Devices::new()).map_err(|error| error.to_string())?;
    let opened = idle(arguments, folder);
    let mut batch = EventBatch::new();
    batch.push_body(b"one event");
    channel.producer().put(batch).wait().map_err(|error| error.to_string())?;
    let mut consumer = channel.consumer("sink");
    let lease =
        consumer.take(TakeLimits { events: 1, bytes: 1 }, TAKE_WAIT).wait().map_err(|error| error.to_string())?;
    let settled = consumer.settle(vec![Settlement::delivered(lease.ranges())]).wait();
    settled.map_err(|error| error.to_string())?;
    drop((lease, consumer));
    thread::sleep(SETTLE);
    let used = idle(arguments, folder);
    Ok(json!({
        "command": "idle",
        "seconds": rounded(arguments.seconds.as_secs_f64()),
        "opened": opened,
        "used": used,
        "load_average": host::load_average(),
    }))
}

fn idle(arguments: &Arguments, folder: &Path) -> Value {
    let generator = Generator::default();
    let folders = [folder.to_path_buf()];
    let (meter, before, begin) = (Meter::start(&folders, &generator), host::wake_ups_of_others(), Instant::now());
    thread::sleep(arguments.seconds);
    let (after, seconds) = (host::wake_ups_of_others(), begin.elapsed().as_secs_f64());
    let reading = meter.read();
    let wake_ups = after.zip(before).map(|(after, before)| after.saturating_sub(before));
    json!({
        "cpu_s": rounded(reading.cpu.as_secs_f64()),
        "cpu_percent": rounded(reading.cpu.as_secs_f64() / seconds * 100.0),
        "wake_ups_per_s": wake_ups.map(|count| rounded(count as f64 / seconds)),
        "threads": host::threads(),
        "resident_mib": host::resident().map(|bytes| rounded(bytes as f64 / f64::from(1 << 20))),
        "disk_bytes": host::disk_use(folder),
    })
}
