//! `penstock-bench-peers`: the disk, the channel and other stores under the same load, at the same durability.
//!
//! Producers commit batches, each as one transaction that must be durable when the call returns. Every store begins empty in
//! each round, the rounds are interleaved, and the medians are printed with the smallest and the largest. `--verify` runs each
//! store by itself under `strace` with one producer and compares its commits with the syncs it asked the kernel for: a store
//! that syncs less often than it commits is not durable, and its rate is not comparable.

mod stores;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use serde_json::{Value, json};

use stores::{COUNTED, PEERS, Peer};

/// Keys of different producers never meet.
const KEYS: u64 = 1 << 40;
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
    /// Only these; `raw`, or the name of a store
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Compare commits with syncs, by `strace`
    #[arg(long)]
    verify: bool,
}

impl Arguments {
    fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == name)
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = if arguments.verify { verify(&arguments) } else { compare(&arguments) };
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
    let mut commits: BTreeMap<&str, u64> = BTreeMap::new();
    for _ in 0..arguments.rounds {
        if arguments.wants("raw") {
            rates.entry("raw").or_default().push(raw(arguments)?);
        }
        for peer in PEERS.iter().filter(|peer| arguments.wants(peer.name)) {
            let (rate, done) = load(arguments, peer)?;
            rates.entry(peer.name).or_default().push(rate);
            *commits.entry(peer.name).or_default() += done;
        }
    }
    let raw = rates.get("raw").map(|rates| spread(rates).1);
    let rows: Vec<Value> = rates
        .iter()
        .map(|(name, rates)| {
            let (min, median, max) = spread(rates);
            json!({
                "store": name, "mb_s": {"min": min, "median": median, "max": max},
                "of_raw": raw.map(|raw| (median / raw * 1e4).round() / 1e4), "commits": commits.get(name),
            })
        })
        .collect();
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let result = json!({
        "producers": arguments.producers, "batch": arguments.batch, "size": arguments.size, "rounds": arguments.rounds,
        "seconds": arguments.seconds, "load_average": load.split(' ').next(), "stores": rows,
    });
    if arguments.json {
        println!("{result}");
        return Ok(());
    }
    println!("| store | MB/s | min | max | of raw |\n|---|---|---|---|---|");
    for row in &rows {
        let rate = &row["mb_s"];
        let name = row["store"].as_str().unwrap_or_default();
        println!("| {name} | {} | {} | {} | {} |", rate["median"], rate["min"], rate["max"], row["of_raw"]);
    }
    Ok(())
}

fn spread(rates: &[f64]) -> (f64, f64, f64) {
    let mut sorted = rates.to_vec();
    sorted.sort_by(f64::total_cmp);
    let tenth = |rate: f64| (rate * 10.0).round() / 10.0;
    (tenth(sorted[0]), tenth(sorted[sorted.len() / 2]), tenth(sorted[sorted.len() - 1]))
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
            let measured = calibrate::write(&*file, RAW_BYTES, shape, durability, time).map_err(failed)?;
            best = best.max(measured.bytes_per_second() / 1e6);
        }
    }
    drop(file);
    std::fs::remove_dir_all(&folder).map_err(failed)?;
    Ok(best)
}

/// One round of one store: MB/s of what was committed, and how many commits.
fn load(arguments: &Arguments, peer: &Peer) -> Result<(f64, u64), String> {
    let folder = arguments.dir.join(peer.name);
    remove(&folder)?;
    std::fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let events = noise(arguments.batch as usize, arguments.size as usize);
    let (over, commits) = (AtomicBool::new(false), AtomicU64::new(0));
    let store = (peer.open)(&folder).map_err(|error| format!("{}: {error}", peer.name))?;
    let begin = Instant::now();
    let until = begin + Duration::from_secs_f64(arguments.seconds);
    let failed = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..u64::from(arguments.producers))
            .map(|index| {
                let (store, events, over, commits) = (&store, &events, &over, &commits);
                scope.spawn(move || {
                    let mut producer = store.producer()?;
                    let mut key = index * KEYS;
                    while Instant::now() < until && !over.load(Ordering::Relaxed) {
                        producer.commit(key, events).inspect_err(|_| over.store(true, Ordering::Relaxed))?;
                        key += events.len() as u64;
                        commits.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok::<(), String>(())
                })
            })
            .collect();
        workers.into_iter().find_map(|worker| worker.join().unwrap_or_else(|_| Err("panicked".to_owned())).err())
    });
    let (seconds, commits) = (begin.elapsed().as_secs_f64(), commits.into_inner());
    drop(store);
    remove(&folder)?;
    match failed {
        Some(error) => Err(format!("{}: {error}", peer.name)),
        None => {
            let bytes = commits as f64 * f64::from(arguments.batch) * f64::from(arguments.size);
            Ok((bytes / seconds / 1e6, commits))
        }
    }
}

fn remove(folder: &Path) -> Result<(), String> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(format!("{}: {error}", folder.display())),
        _ => Ok(()),
    }
}

/// Events that nothing compresses.
fn noise(count: usize, size: usize) -> Vec<Vec<u8>> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut event = || {
        let mut body = Vec::with_capacity(size + 8);
        while body.len() < size {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            body.extend_from_slice(&state.to_le_bytes());
        }
        body.truncate(size);
        body
    };
    (0..count).map(|_| event()).collect()
}

/// Each store by itself under `strace`, with one producer: no commit can share the sync of another.
fn verify(arguments: &Arguments) -> Result<(), String> {
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    std::fs::create_dir_all(&arguments.dir).map_err(|error| format!("{}: {error}", arguments.dir.display()))?;
    let mut all = true;
    println!("| store | commits | syncs | calls | durable |\n|---|---|---|---|---|");
    for peer in PEERS.iter().filter(|peer| arguments.wants(peer.name)) {
        let counts = arguments.dir.join(format!("{}.strace", peer.name));
        let output = Command::new("strace")
            .args(["-f", "-c", "-U", "calls,name", "-o"])
            .arg(&counts)
            .arg(&own)
            .env(COUNTED, "1")
            .args(["--json", "--rounds", "1", "--producers", "1", "--seconds", "1", "--only", peer.name, "--dir"])
            .arg(&arguments.dir)
            .output()
            .map_err(|error| format!("strace: {error}"))?;
        if !output.status.success() {
            return Err(format!("{}: {}", peer.name, String::from_utf8_lossy(&output.stderr)));
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
        println!(
            "| {} | {commits} | {sum} | {} | {} |",
            peer.name,
            calls.join(", "),
            if durable { "yes" } else { "NO" }
        );
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
        for peer in PEERS {
            let folder = scratch.join(peer.name);
            std::fs::create_dir_all(&folder).unwrap();
            let store = (peer.open)(&folder).unwrap();
            let events = noise(10, 100);
            store.producer().unwrap().commit(0, &events).unwrap();
            store.producer().unwrap().commit(10, &events).unwrap();
        }
        std::fs::remove_dir_all(&scratch).unwrap();
    }
}
