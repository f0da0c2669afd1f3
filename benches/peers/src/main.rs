//! `penstock-bench-peers`: the disk, the channel and other stores under the same load, at the same durability.
//!
//! Producers commit batches, each as one transaction that must be durable when the call returns. Every store begins empty in
//! each round, the rounds are interleaved, and the medians are printed with the smallest and the largest. `--verify` runs each
//! store by itself under `strace` with one producer and compares its commits with the syncs it asked the kernel for: a store
//! that syncs less often than it commits is not durable, and its rate is not comparable. `--flume` compares puts and takes
//! with those of Flume's file channel and prints the ratios.

mod java;
mod load;
#[cfg(feature = "raft-engine")]
mod raft_engine;
#[cfg(feature = "rocksdb")]
mod rocksdb;
mod stores;
mod versus;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

use clap::Parser;
use serde_json::{Value, json};

use java::{Java, SERVERS};
use load::{Load, Round};
use stores::{COUNTED, PEERS};

/// The raw limit overwrites a file of this length.
const RAW_BYTES: u64 = 1 << 30;
/// System calls that make something durable. `pwritev2` is ours alone, and always with RWF_DSYNC.
const SYNCS: [&str; 5] = ["fsync", "fdatasync", "pwritev2", "msync", "sync_file_range"];

/// The same durable load on the disk, the channel and other stores
#[derive(Debug, Parser)]
struct Arguments {
    /// Where to measure; everything is removed afterwards
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    #[arg(long)]
    json: bool,
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1024))]
    producers: u32,
    /// Events in one transaction
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    batch: u32,
    /// Bytes of an event
    #[arg(long, value_name = "BYTES", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..))]
    size: u32,
    /// Measured seconds of each store in each round
    #[arg(long, value_name = "S", default_value_t = 2.0)]
    seconds: f64,
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Only these; `raw`, `flume`, `kafka`, or the name of a store
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Puts of 16 producers, then takes of one consumer beside 8 producers: the channel's rates as multiples of those of the
    /// file channel of Flume 1.11
    #[arg(long, conflicts_with_all = ["verify", "only"])]
    flume: bool,
    /// Seconds for Flume and for Kafka before the first round, for their compiler
    #[arg(long, value_name = "S", default_value_t = 10.0)]
    warmup: f64,
    /// Compare commits with syncs, by `strace`
    #[arg(long)]
    verify: bool,
}

impl Arguments {
    fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == name)
    }

    fn load(&self) -> Load {
        let Arguments { producers, batch, size, .. } = *self;
        Load { producers, consumers: 0, takes_in_flight: 1, batch, size, time: Duration::from_secs_f64(self.seconds) }
    }

    /// A server with its code compiled; counted calls are those of the round alone.
    fn server(&self, server: &'static java::Server) -> Result<Java, String> {
        let mut java = Java::start(server)?;
        if std::env::var_os(COUNTED).is_none() {
            java.warm_up(&self.dir.join(server.name), &self.load(), Duration::from_secs_f64(self.warmup))?;
        }
        Ok(java)
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match (arguments.verify, arguments.flume) {
        (true, _) => verify(&arguments),
        (_, true) => versus::run(&arguments),
        _ => compare(&arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("penstock-bench-peers: {error}");
            ExitCode::FAILURE
        }
    }
}

fn compare(arguments: &Arguments) -> Result<(), String> {
    let mut rates: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    let mut costs: BTreeMap<&str, (Vec<f64>, u64)> = BTreeMap::new();
    let wanted = SERVERS.into_iter().filter(|server| arguments.wants(server.name));
    let mut servers = wanted.map(|server| arguments.server(server)).collect::<Result<Vec<Java>, _>>()?;
    let load = arguments.load();
    for _ in 0..arguments.rounds {
        if arguments.wants("raw") {
            rates.entry("raw").or_default().push(raw(arguments)?);
        }
        let mut add = |name, round: Round| {
            rates.entry(name).or_default().push(mb_s(round.put_ev_s(), load.size));
            let (cpu, commits) = costs.entry(name).or_default();
            cpu.push(round.cpu_s_per_gib(load.size));
            *commits += round.commits;
        };
        for peer in PEERS.iter().filter(|peer| arguments.wants(peer.name)) {
            add(peer.name, load::round(&arguments.dir.join(peer.name), peer, &load)?);
        }
        for java in &mut servers {
            let name = java.server.name;
            add(name, java.round(&arguments.dir.join(name), &load)?);
        }
    }
    let raw = rates.get("raw").map(|rates| spread(rates).1);
    let rows: Vec<Value> = rates
        .iter()
        .map(|(name, rates)| {
            let (min, median, max) = spread(rates);
            let cost = costs.get(name);
            json!({
                "store": name, "mb_s": {"min": min, "median": median, "max": max},
                "of_raw": raw.map(|raw| (median / raw * 1e4).round() / 1e4), "commits": cost.map(|cost| cost.1),
                "cpu_s_per_gib": cost.map(|cost| (spread_of(&cost.0).1 * 100.0).round() / 100.0),
            })
        })
        .collect();
    let result = json!({
        "producers": arguments.producers, "batch": arguments.batch, "size": arguments.size, "rounds": arguments.rounds,
        "seconds": arguments.seconds, "load_average": load_average(), "stores": rows,
    });
    if arguments.json {
        println!("{result}");
        return Ok(());
    }
    println!("| store | MB/s | min | max | of raw | CPU-s/GiB |\n|---|---|---|---|---|---|");
    for row in &rows {
        let rate = &row["mb_s"];
        let name = row["store"].as_str().unwrap_or_default();
        let (of_raw, cpu) = (&row["of_raw"], &row["cpu_s_per_gib"]);
        println!("| {name} | {} | {} | {} | {of_raw} | {cpu} |", rate["median"], rate["min"], rate["max"]);
    }
    Ok(())
}

/// Smallest, middle and largest.
fn spread_of(rates: &[f64]) -> (f64, f64, f64) {
    let mut sorted = rates.to_vec();
    sorted.sort_by(f64::total_cmp);
    (sorted[0], sorted[sorted.len() / 2], sorted[sorted.len() - 1])
}

/// To a tenth.
fn spread(rates: &[f64]) -> (f64, f64, f64) {
    let tenth = |rate: f64| (rate * 10.0).round() / 10.0;
    let (min, median, max) = spread_of(rates);
    (tenth(min), tenth(median), tenth(max))
}

fn mb_s(ev_s: f64, size: u32) -> f64 {
    ev_s * f64::from(size) / 1e6
}

/// Runnable processes, averaged over the last minute.
fn load_average() -> Option<f64> {
    std::fs::read_to_string("/proc/loadavg").ok()?.split(' ').next()?.parse().ok()
}

/// The fastest durable writer of the disk with as many bytes in flight as all producers together, in MB/s.
fn raw(arguments: &Arguments) -> Result<f64, String> {
    use wal::calibrate::{self, Durability, Shape};
    use wal::io::Dir;
    let folder = arguments.dir.join("raw");
    let failed = |error: std::io::Error| format!("raw: {error}");
    let dir = wal::io::real::RealDir::open_or_create(&folder, None).map_err(failed)?;
    let file = dir.create("file").map_err(failed)?;
    calibrate::fill(&*file, RAW_BYTES).map_err(failed)?;
    let in_flight = arguments.producers as usize * arguments.batch as usize * arguments.size as usize;
    let mut best = 0_f64;
    for depth in [1, 2, 4, 8] {
        let shape = Shape { block: wal::limits::pages(in_flight.div_ceil(depth)), depth };
        for durability in [Durability::PerWrite, Durability::SharedFlush] {
            let time = Duration::from_secs_f64(arguments.seconds / 8.0);
            let measured = calibrate::write(&file, RAW_BYTES, shape, durability, time, dir.backend()).map_err(failed)?;
            best = best.max(measured.bytes_per_second() / 1e6);
        }
    }
    drop(file);
    std::fs::remove_dir_all(&folder).map_err(failed)?;
    Ok(best)
}

/// Each store by itself under `strace`, with one producer: no commit can share the sync of another.
fn verify(arguments: &Arguments) -> Result<(), String> {
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    std::fs::create_dir_all(&arguments.dir).map_err(|error| format!("{}: {error}", arguments.dir.display()))?;
    let mut all = true;
    println!("| store | commits | syncs | calls | durable |\n|---|---|---|---|---|");
    let names = PEERS.iter().map(|peer| peer.name).chain(SERVERS.map(|server| server.name));
    for name in names.filter(|name| arguments.wants(name)) {
        let counts = arguments.dir.join(format!("{name}.strace"));
        let output = Command::new("strace")
            .args(["-f", "-c", "-U", "calls,name", "-o"])
            .arg(&counts)
            .arg(&own)
            .env(COUNTED, "1")
            .args(["--json", "--rounds", "1", "--producers", "1", "--seconds", "1", "--only", name, "--dir"])
            .arg(&arguments.dir)
            .output()
            .map_err(|error| format!("strace: {error}"))?;
        if !output.status.success() {
            return Err(format!("{name}: {}", String::from_utf8_lossy(&output.stderr)));
        }
        let result: Value = serde_json::from_slice(&output.stdout).map_err(|error| error.to_string())?;
        let commits = result["stores"][0]["commits"].as_u64().unwrap_or_default();
        let text = std::fs::read_to_string(&counts).map_err(|error| error.to_string())?;
        std::fs::remove_file(&counts).map_err(|error| error.to_string())?;
        let found = syncs(&text);
        let sum: u64 = found.iter().map(|(_, calls)| calls).sum();
        let durable = commits > 0 && sum >= commits;
        all &= durable;
        let calls: Vec<String> = found.iter().map(|(name, calls)| format!("{name} {calls}")).collect();
        println!("| {name} | {commits} | {sum} | {} | {} |", calls.join(", "), if durable { "yes" } else { "NO" });
    }
    if all { Ok(()) } else { Err("a store syncs less often than it commits".to_owned()) }
}

/// Calls that make something durable, in what `strace -c -U calls,name` writes.
fn syncs(text: &str) -> Vec<(String, u64)> {
    let words = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    words
        .filter_map(|words| match words[..] {
            [calls, name] if SYNCS.contains(&name) => Some((name.to_owned(), calls.parse().ok()?)),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn syncs_are_found_among_other_calls() {
        let text = "    calls syscall\n--------- ----------------\n       12 fdatasync\n      400 write\n        3 fsync\n\
                    --------- ----------------\n      415 total\n";
        assert_eq!(syncs(text), [("fdatasync".to_owned(), 12), ("fsync".to_owned(), 3)]);
    }

    #[test]
    fn the_middle_round_is_the_one_that_counts() {
        assert_eq!(spread(&[3.0, 1.0, 2.0]), (1.0, 2.0, 3.0));
    }

    #[test]
    fn every_store_takes_a_batch() {
        let scratch = std::env::temp_dir().join(format!("penstock-bench-peers-{}", std::process::id()));
        // A warm pool is gibibytes: not here.
        for peer in PEERS.iter().filter(|peer| peer.name != "penstock-warm") {
            let folder = scratch.join(peer.name);
            std::fs::create_dir_all(&folder).unwrap();
            let store = (peer.open)(&folder).unwrap();
            let events = load::noise(10, 100);
            store.producer().unwrap().commit(0, &events).unwrap();
            store.producer().unwrap().commit(10, &events).unwrap();
            let Ok(mut consumer) = store.consumer(2) else { continue };
            let mut gone = 0;
            while let Some(events) = consumer.take(7).unwrap() {
                gone += events;
            }
            assert_eq!(gone, 20, "{}", peer.name);
        }
        std::fs::remove_dir_all(&scratch).unwrap();
    }
}
