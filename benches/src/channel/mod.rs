//! `penstock-bench channel`: a durable channel under a load, filled, opened or drained.
//!
//! All modes use the folder `penstock-bench` below each data directory, and touch nothing else: `load` and `fill` begin
//! with an empty one, `load` removes it afterwards, `open` and `drain` need what `fill` left.

pub(crate) mod load;
pub(crate) mod steady;
pub(crate) mod still;

use std::path::{Path, PathBuf};
use std::time::Duration;

use channel::{Channel as _, Compress, Devices, DurableChannel, DurableOptions};
use clap::{Args, Parser as _, ValueEnum};
use serde_json::{Value, json};
use wal::flushes::Durability;
use wal::io::real::Backend;
use wal::seal::ChannelKey;
use wal::tuning::Tuning;

use steady::Steady;

use crate::cli::{Cli, Command};
use crate::meter::Reading;
use crate::numbers::{Latencies, rounded};
use crate::payload::Payload;
use crate::{cli, host, output};

/// Below each data directory, so that nothing else there is ever touched.
pub(crate) const FOLDER: &str = "penstock-bench";

/// Measure a durable channel: put and take rates, latency of a commit, CPU, bytes the disk saw
///
/// load: producers put batches one after the other (or, with --rate, at fixed times) while consumers take and settle them.
/// fill: put so many events and stop. open: how long until the channel serves, and until the first take. drain: how fast a
/// backlog is taken. Uses the folder `penstock-bench` below each directory and nothing else there.
#[derive(Debug, Clone, Args)]
pub(crate) struct Arguments {
    /// Data directories of the channel, one for each disk
    #[arg(long, value_name = "DIR", value_delimiter = ',', required = true)]
    pub(crate) dir: Vec<PathBuf>,
    #[arg(long, value_enum, default_value_t = Mode::Load)]
    pub(crate) mode: Mode,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
    /// Connections that put: each has one transaction in flight
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(crate) producers: u32,
    /// Sinks that take
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=4096))]
    pub(crate) consumers: u32,
    /// Events in one put
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) batch: u32,
    /// Events in one take
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) take_batch: u32,
    /// Bytes of an event's body
    #[arg(long, value_name = "BYTES", default_value = "1K", value_parser = cli::bytes)]
    pub(crate) size: u64,
    /// Seconds of load before the measured ones
    #[arg(long, value_name = "S", default_value = "1", value_parser = cli::seconds)]
    pub(crate) warmup: Duration,
    /// Measured seconds (load), most seconds (drain)
    #[arg(long, value_name = "S", default_value = "5", value_parser = cli::seconds)]
    pub(crate) seconds: Duration,
    /// load: producers pause while so many events are put and not yet taken
    #[arg(long, value_name = "N", requires = "consumers")]
    pub(crate) max_lag: Option<u64>,
    /// load: send so many events a second at fixed times, whether or not the channel keeps up; the latency counts from the
    /// time at which a batch should have been sent
    #[arg(long, value_name = "EVENTS_PER_S", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) rate: Option<u64>,
    /// fill: how many events
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    pub(crate) events: u64,
    /// fill, open: end with SIGKILL, so that the next open recovers
    #[arg(long)]
    pub(crate) kill: bool,
    /// fill: shortest time between two checkpoints
    #[arg(long, value_name = "S", default_value = "30", value_parser = cli::seconds)]
    pub(crate) checkpoint_interval: Duration,
    /// Encrypt with AES-256-GCM; to open or drain what was filled so, say it again
    #[arg(long)]
    pub(crate) encrypt: bool,
    /// Compress what shrinks: while that is faster (said without a word), or always
    #[arg(long, value_name = "WHEN", value_enum, num_args = 0..=1, default_value = "never", default_missing_value = "where-faster")]
    pub(crate) compress: When,
    /// How the log is written: io_uring, direct or buffered; the first that works without it
    #[arg(long, value_name = "HOW", value_parser = |name: &str| Backend::named(name).ok_or("not a way to write"))]
    pub(crate) io: Option<Backend>,
    /// How writes become durable: per-write or shared-flush; with --depth instead of what is measured when the folder is made,
    /// as the agent does
    #[arg(long, value_name = "HOW", value_parser = |name: &str| Durability::named(name).ok_or("not a way to sync"))]
    pub(crate) sync: Option<Durability>,
    /// Frames in flight on each disk
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) depth: Option<u16>,
    /// load: fill and drain so many bytes first, so that the measured puts find segments that are there already
    #[arg(long, value_name = "BYTES", default_value = "0", value_parser = cli::bytes)]
    pub(crate) warm_pool: u64,
    /// Bytes of segments that stay when they are drained, those in use included; not less than a warm pool needs
    #[arg(long, value_name = "BYTES", default_value = "0", value_parser = cli::bytes)]
    pub(crate) pool: u64,
    /// load: before and after it, write raw for so long, to see how long a durable write of this disk takes at the worst; needs
    /// 512 MiB of room in the first directory
    #[arg(long, value_name = "S", value_parser = cli::seconds)]
    pub(crate) raw_flushes: Option<Duration>,
    #[arg(long, value_enum, default_value_t = Payload::Random)]
    pub(crate) payload: Payload,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum When {
    Never,
    WhereFaster,
    Always,
}

impl When {
    fn name(self) -> &'static str {
        match self {
            When::Never => "never",
            When::WhereFaster => "where-faster",
            When::Always => "always",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    Load,
    Fill,
    Open,
    Drain,
}

impl Mode {
    fn name(self) -> &'static str {
        match self {
            Mode::Load => "load",
            Mode::Fill => "fill",
            Mode::Open => "open",
            Mode::Drain => "drain",
        }
    }
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), String> {
    let result = match arguments.mode {
        Mode::Load => load::run(arguments)?,
        Mode::Fill => still::fill(arguments)?,
        Mode::Open => still::open(arguments)?,
        Mode::Drain => still::drain(arguments)?,
    };
    output::print(arguments.json, &result, output::lines);
    if arguments.kill && matches!(arguments.mode, Mode::Fill | Mode::Open) {
        still::die()?;
    }
    Ok(())
}

impl Arguments {
    /// As one would type them below `dir`: what another command measures with them can be run by itself.
    pub(crate) fn typed(dir: &Path, seconds: Duration, more: &[&str]) -> Result<Arguments, String> {
        let (dir, seconds) = (dir.display().to_string(), seconds.as_secs_f64().to_string());
        let mut words = vec!["penstock-bench", "channel", "--dir", &dir];
        for (option, value) in [("--warmup", "0.5"), ("--seconds", seconds.as_str())] {
            if !more.contains(&option) {
                words.extend([option, value]);
            }
        }
        words.extend(more);
        match Cli::try_parse_from(words).map_err(|error| error.to_string())?.command {
            Command::Channel(parsed) => Ok(parsed),
            _ => Err("the command is another one than was typed".to_owned()),
        }
    }

    /// A load on an empty channel, which is removed afterwards.
    pub(crate) fn measured(&self) -> Result<Outcome, String> {
        debug_assert!(self.mode == Mode::Load);
        self.clear()?;
        let outcome = self.open().and_then(|channel: DurableChannel| {
            let outcome = still::warm(&channel, self).and_then(|()| load::measure(&channel, self));
            channel.close().wait()?;
            outcome
        });
        self.clear()?;
        outcome
    }

    /// The folders that the channel lives in.
    pub(crate) fn folders(&self) -> Vec<PathBuf> {
        self.dir.iter().map(|dir| dir.join(FOLDER)).collect()
    }

    /// Removes what an earlier run left in them.
    pub(crate) fn clear(&self) -> Result<(), String> {
        self.folders().iter().try_for_each(|folder| remove(folder))
    }

    pub(crate) fn open(&self) -> Result<DurableChannel, String> {
        let mut options = DurableOptions::new("bench", self.folders());
        options.capacity = u64::MAX / 2;
        options.backend = self.io;
        options.tuning = (self.sync.is_some() || self.depth.is_some()).then(|| {
            let plain = Tuning::default();
            Tuning {
                durability: self.sync.unwrap_or(plain.durability),
                depth: self.depth.map_or(plain.depth, usize::from),
            }
        });
        options.pool_bytes = options.pool_bytes.max(self.pool).max(self.warm_pool + (self.warm_pool >> 2));
        options.transaction_capacity = 10_000.max(self.batch as usize).max(self.take_batch as usize);
        options.checkpoint_interval = self.checkpoint_interval;
        options.compress = match self.compress {
            When::Never => Compress::Never,
            When::WhereFaster => Compress::WhereFaster,
            When::Always => Compress::Always,
        };
        if self.encrypt {
            options.key = Some(ChannelKey::new("bench", [7; 32])?);
        }
        wal::io::host::raise_open_files().map_err(|error| format!("the limit of open files: {error}"))?;
        DurableChannel::open(options, &Devices::new()).map_err(|error| error.to_string())
    }

    pub(crate) fn takes(&self) -> channel::TakeLimits {
        channel::TakeLimits { events: self.take_batch as usize, bytes: TAKE_BYTES }
    }

    pub(crate) fn batches(&self, producer: u64) -> Vec<channel::EventBatch> {
        self.payload.batches(producer, self.batch as usize, self.size as usize)
    }
}

/// What a sink would hold at once.
const TAKE_BYTES: usize = 16 << 20;

/// With all that is in it, so that the disk has forgotten it as well.
pub(crate) fn remove(folder: &Path) -> Result<(), String> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(format!("{}: {error}", folder.display())),
        Ok(()) => {
            folder.parent().into_iter().for_each(host::forgotten);
            Ok(())
        }
    }
}

/// What a mode found out; each has all fields.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) put_events: Option<u64>,
    pub(crate) take_events: Option<u64>,
    pub(crate) transactions: Latencies,
    /// With a rate: how late producers woke up that were free; the transactions' latencies contain it.
    pub(crate) late: Option<Latencies>,
    /// Of a load.
    pub(crate) steady: Option<Steady>,
    pub(crate) reading: Reading,
    pub(crate) first_take: Option<Duration>,
    pub(crate) depth: u64,
}

impl Outcome {
    /// Rates are over the measured time; CPU per GiB is that of what was put, or of what was taken when nothing was.
    pub(crate) fn json(&self, arguments: &Arguments) -> Value {
        let seconds = self.reading.elapsed.as_secs_f64();
        let rate = |events: Option<u64>| events.map(|events| rounded(events as f64 / seconds));
        let bytes = |events: u64| events as f64 * arguments.size as f64;
        let moved = bytes(self.put_events.or(self.take_events).unwrap_or_default());
        let cpu = self.reading.cpu.as_secs_f64();
        let per_gib = (moved > 0.0).then(|| rounded(cpu / moved * f64::from(1 << 30)));
        let device = self.reading.device;
        let put_bytes = self.put_events.map(bytes).filter(|bytes| *bytes > 0.0);
        let amplification = device.zip(put_bytes).map(|(device, put)| rounded(device.written_bytes as f64 / put));
        json!({
            "command": "channel",
            "mode": arguments.mode.name(),
            "producers": arguments.producers, "consumers": arguments.consumers, "dirs": arguments.dir.len(),
            "batch": arguments.batch, "take_batch": arguments.take_batch, "size": arguments.size,
            "rate": arguments.rate, "encrypt": arguments.encrypt, "payload": arguments.payload.name(),
            "compress": arguments.compress.name(),
            "seconds": rounded(seconds),
            "put_ev_s": rate(self.put_events),
            "put_mb_s": self.put_events.map(|events| rounded(bytes(events) / seconds / 1e6)),
            "take_ev_s": rate(self.take_events),
            "take_mb_s": self.take_events.map(|events| rounded(bytes(events) / seconds / 1e6)),
            "txn_us": self.transactions.json(),
            "late_us": self.late.as_ref().map(Latencies::json),
            "txns": self.transactions.count(),
            "cpu_s": rounded(cpu),
            "cpu_generator_s": rounded(self.reading.generator_cpu.as_secs_f64()),
            "cpu_s_per_gib": per_gib,
            "rss_max_mib": self.reading.resident_max.map(|bytes| rounded(bytes as f64 / f64::from(1 << 20))),
            "device_write_bytes": device.map(|device| device.written_bytes),
            "device_read_bytes": device.map(|device| device.read_bytes),
            "device_flushes": device.map(|device| device.flushes),
            "device_write_bytes_per_put_byte": amplification,
            "pause_us": self.steady.as_ref().map(Steady::json),
            "memory": self.steady.as_ref().map(|steady| steady.memory.json()),
            "first_take_s": self.first_take.map(|time| rounded(time.as_secs_f64())),
            "depth": self.depth,
            "load_average": host::load_average(),
        })
    }
}
