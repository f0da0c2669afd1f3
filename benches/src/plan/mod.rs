//! `penstock-bench plan`: how many disks, how much memory, for how long, from a disk that was measured; and how far such
//! predictions are from what is then measured.
//!
//! [`model`] has the formulas, [`disk`] reads what `penstock-bench device --json` wrote, [`check`] predicts and measures.

mod check;
mod disk;
mod model;

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use crate::numbers::rounded;
use crate::{cli, output};
use disk::Measured;
use model::{BUSY_MAX, Demand, Load, Plan};

/// Plan a node from a measured disk: disks, memory, time until full, time to drain after an outage
///
/// Prints the fewest disks like the measured one on which puts take no more than half of the disks' time, the outage fits, and
/// its backlog is drained in no more time than it lasted; with --disks, what so many bear. With --check, predicts the put
/// rate of 27 loads on the disk below a directory, each before it is measured, and prints how far off it was.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Events a second that come
    #[arg(long, value_name = "EV_S", required_unless_present = "check", value_parser = positive)]
    rate: Option<f64>,
    /// Bytes of an event
    #[arg(long, value_name = "BYTES", default_value = "1K", value_parser = cli::bytes)]
    size: u64,
    /// Events in one put
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    batch: u64,
    /// Connections that put
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=4096))]
    producers: u64,
    /// Seconds for which nothing is taken
    #[arg(long, value_name = "SECONDS", required_unless_present = "check", value_parser = cli::seconds)]
    outage: Option<Duration>,
    /// What `penstock-bench device --json` wrote on such a disk
    #[arg(long, value_name = "FILE", required_unless_present = "check")]
    device: Option<PathBuf>,
    /// Plan for so many disks, instead of the fewest
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=wal::limits::MEMBERS_MAX as u64))]
    disks: Option<u64>,
    /// Bytes of each disk for the log
    #[arg(long, value_name = "BYTES", value_parser = cli::bytes)]
    room: Option<u64>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Predict and measure
    #[arg(long, requires = "dir", conflicts_with_all = ["rate", "outage", "device", "disks", "room"])]
    check: bool,
    /// check: where to measure
    #[arg(long, value_name = "DIR", requires = "check")]
    dir: Option<PathBuf>,
    /// check: medians of so many rounds of all loads
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// check: seconds for raw writes and puts together; filling the pool and draining it after each load come on top
    #[arg(long, value_name = "S", default_value = "120", value_parser = cli::seconds)]
    budget: Duration,
}

fn positive(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| format!("{text:?} is no number"))?;
    if number.is_finite() && number > 0.0 { Ok(number) } else { Err("a rate is above 0".to_owned()) }
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), String> {
    if let (true, Some(dir)) = (arguments.check, &arguments.dir) {
        return check::run(dir, arguments.budget, arguments.rounds, arguments.json);
    }
    let (Some(rate), Some(outage), Some(device)) = (arguments.rate, arguments.outage, &arguments.device) else {
        return Err("--rate, --outage and --device belong together".to_owned());
    };
    let disk = Measured::load(device)?;
    let load = Load { producers: arguments.producers, batch: arguments.batch, size: arguments.size };
    let demand = Demand { load, rate, outage_s: outage.as_secs_f64(), room: arguments.room };
    let plan = match arguments.disks {
        Some(disks) => demand.with(disks, &disk, disk.read_bytes_s)?,
        None => demand.fewest(&disk, disk.read_bytes_s)?.ok_or_else(|| {
            let most = wal::limits::MEMBERS_MAX;
            format!("{most} such disks do not bear it; --disks {most} shows what they do")
        })?,
    };
    let most = load.put_ev_s(&load.frames(plan.disks), &disk, f64::INFINITY)? * plan.disks as f64;
    output::print(arguments.json, &report(&demand, &plan, most), output::lines);
    Ok(())
}

fn report(demand: &Demand, plan: &Plan, most: f64) -> Value {
    let mib = |bytes: f64| rounded(bytes / f64::from(1 << 20));
    let gib = |bytes: f64| rounded(bytes / f64::from(1 << 30));
    json!({
        "command": "plan",
        "rate_ev_s": rounded(demand.rate),
        "disks": plan.disks,
        "puts_ev_s_max": rounded(most),
        "disks_busy_with_puts": rounded(plan.busy),
        "disks_busy_is_enough": plan.busy <= BUSY_MAX,
        "cores": rounded(plan.cores),
        "memory_mib": mib(plan.memory_bytes),
        "frame_bytes": plan.frames.shape.block,
        "disk_bytes_per_event": rounded(demand.load.disk_bytes(&plan.frames)),
        "outage": {
            "backlog_events": plan.backlog_events.round(),
            "gib_on_each_disk": gib(plan.backlog_bytes),
            "fits": demand.room.map(|room| plan.backlog_bytes <= room as f64),
            "full_after_s": plan.full_after_s.map(rounded),
            "drain_s": plan.drain_s.map(rounded),
        },
    })
}
