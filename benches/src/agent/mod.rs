//! `penstock-bench agent`: the whole agent, source to sink, against its own parts and against Flume.
//!
//! ```text
//! senders ──► source ──► file channel ──► hdfs sink       whole: Penstock, and Flume with the same properties
//! senders ──► source ──► memory channel ──► null sink     the source alone
//!             put    ──► channel ──► take                 the channel alone, in this process
//!                        full channel ──► hdfs sink       the sink alone
//! ```
//! All are measured in each round, one after the other. Agents are processes of their own, so that what the senders cost is
//! not counted as theirs. An event of a rate was delivered by the sink; the CPU of an agent is that of a whole load, until
//! the last event that it acknowledged is delivered.
//!
//! Two things bound the whole: its slowest part, and the processors, which the parts and the senders share in the whole and
//! have for themselves when they are measured alone.

mod load;
mod subject;

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use clap::Args;
use serde_json::json;
use system_tests::hdfs::Hdfs;
use system_tests::{penstock, ports};

use self::load::{Load, Sent, Source};
use self::subject::{Passed, Subject};
use crate::channel::{self, FOLDER};
use crate::numbers::{Spread, rounded};
use crate::sheet::{self, Sheet};
use crate::{cli, host, output};

/// Measure a whole agent: Avro source, file channel, hdfs sink, as a part of what its slowest part does alone
///
/// Starts `penstock` itself, and with --flume a real Flume 1.11 in a JVM (Maven fetches it once), both with the same properties.
/// Uses the folder `penstock-bench` below the directory. Takes about rounds x (4 x seconds + 6) seconds; Flume has to drain
/// what it accepted, and takes as long again.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Where channels and files lie
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Compare with Apache Flume 1.11
    #[arg(long)]
    flume: bool,
    /// Write to a real HDFS, started for it, instead of file://
    #[arg(long)]
    hdfs: bool,
    /// How events come in
    #[arg(long, value_enum, default_value_t = Source::Avro)]
    source: Source,
    /// The agent's binary; `penstock` beside this program without it
    #[arg(long, value_name = "FILE")]
    penstock: Option<PathBuf>,
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1024))]
    connections: u32,
    /// Calls of each connection on their way at once
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    pipelined: u32,
    /// Events in one call
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    batch: u32,
    /// Bytes of an event's body
    #[arg(long, value_name = "BYTES", default_value = "1K", value_parser = cli::bytes)]
    size: u64,
    /// Events that the channel holds before senders wait
    #[arg(long, value_name = "N", default_value_t = 200_000)]
    capacity: u64,
    /// Events to drain for the sink alone
    #[arg(long, value_name = "N", default_value_t = 400_000)]
    drain_events: u64,
    /// Measured seconds of each load
    #[arg(long, value_name = "S", default_value = "3", value_parser = cli::seconds)]
    seconds: Duration,
    /// Seconds of each load before the measured ones
    #[arg(long, value_name = "S", default_value = "1", value_parser = cli::seconds)]
    warmup: Duration,
    /// Seconds of load for Flume before the first round, for its compiler
    #[arg(long, value_name = "S", default_value = "10", value_parser = cli::seconds)]
    flume_warmup: Duration,
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), String> {
    let binary = arguments.penstock.clone().map_or_else(subject::penstock_beside, Ok)?;
    penstock::use_binary(&binary).map_err(|error| format!("{}: {error}", binary.display()))?;
    fs::create_dir_all(&arguments.dir).map_err(|error| format!("{}: {error}", arguments.dir.display()))?;
    // Agents have working directories of their own.
    let root = fs::canonicalize(&arguments.dir).map_err(|error| format!("{}: {error}", arguments.dir.display()))?;
    let root = root.join(FOLDER);
    channel::remove(&root)?;
    let measured = measure(arguments, &root);
    channel::remove(&root)?;
    let (sheet, loads) = measured?;
    let result = json!({
        "command": "agent",
        "source": arguments.source.name(), "store": if arguments.hdfs { "hdfs" } else { "file" },
        "connections": arguments.connections, "pipelined": arguments.pipelined,
        "batch": arguments.batch, "size": arguments.size, "capacity": arguments.capacity,
        "rounds": arguments.rounds,
        "seconds": rounded(arguments.seconds.as_secs_f64()),
        "load_average": (!loads.is_empty()).then(|| Spread::of(&loads).json()),
        "rows": sheet.json(),
    });
    output::print(arguments.json, &result, sheet::table);
    Ok(())
}

fn measure(arguments: &Arguments, root: &Path) -> Result<(Sheet, Vec<f64>), String> {
    let (mut sheet, mut loads) = (Sheet::default(), Vec::new());
    let mut bench = Bench::start(arguments, root)?;
    for _ in 0..arguments.rounds {
        loads.extend(host::load_average());
        bench.round(&mut sheet)?;
    }
    Ok((sheet, loads))
}

/// An agent that goes on through all rounds, and the port of its source.
struct Standing {
    subject: Subject,
    port: u16,
    /// What it writes to.
    out: String,
}

struct Bench<'a> {
    arguments: &'a Arguments,
    root: &'a Path,
    load: Load,
    source: Standing,
    whole: Standing,
    flume: Option<Standing>,
    // Last, so that it goes after those that write to it.
    hdfs: Option<Hdfs>,
}

impl<'a> Bench<'a> {
    fn start(arguments: &'a Arguments, root: &'a Path) -> Result<Bench<'a>, String> {
        let Arguments { source, connections, pipelined, batch, size, .. } = *arguments;
        let load = Load { source, connections, pipelined, batch, size };
        let hdfs = arguments.hdfs.then(|| Hdfs::start(1));
        let out = |name: &str| match &hdfs {
            Some(hdfs) => format!("{}/{name}", hdfs.url()),
            None => format!("file://{}", root.join(name).join("out").display()),
        };
        let whole = |name: &str| {
            let (port, out) = (ports::free(), out(name));
            let channel = file_channel(&root.join(name), arguments.capacity);
            (port, agent(Some(&source_lines(arguments.source, port)), &channel, Some(&hdfs_sink(&out))), out)
        };
        let (port, text) = (ports::free(), memory_channel(arguments.capacity));
        let text = agent(Some(&source_lines(arguments.source, port)), &text, Some(NULL_SINK));
        let source = Standing { subject: Subject::penstock(&text, &[port]), port, out: String::new() };
        let (port, text, folder) = whole("whole");
        let penstock = Standing { subject: Subject::penstock(&text, &[port]), port, out: folder };
        let flume = arguments.flume.then(|| {
            let (port, text, out) = whole("flume");
            Standing { subject: Subject::flume(&text, &[port]), port, out }
        });
        let mut bench = Bench { arguments, root, load, source, whole: penstock, flume, hdfs };
        if let Some(mut flume) = bench.flume.take() {
            flume.pass(&load, Duration::ZERO, arguments.flume_warmup)?;
            bench.clear(&flume)?;
            bench.flume = Some(flume);
        }
        Ok(bench)
    }

    fn round(&mut self, sheet: &mut Sheet) -> Result<(), String> {
        let Arguments { warmup, seconds, size, .. } = *self.arguments;
        let mb_s = |ev_s: f64| ev_s * size as f64 / 1e6;

        let source = self.source.pass(&self.load, warmup, seconds)?;
        let channel = self.channel()?;
        let (sink, data_node) = self.sink()?;
        let whole = self.whole.pass(&self.load, warmup, seconds)?;
        self.clear(&self.whole)?;

        sheet.add("P14", "whole, events/s", "", whole.ev_s);
        sheet.add("P14", "whole, MB/s", "", mb_s(whole.ev_s));
        sheet.add("P14", "source alone, MB/s", "", mb_s(source.ev_s));
        sheet.add("P14", "channel alone, MB/s", "", mb_s(channel.ev_s));
        sheet.add("P14", "sink alone, MB/s", "", mb_s(sink.ev_s));
        let slowest = source.ev_s.min(channel.ev_s).min(sink.ev_s);
        let senders = whole.sent.cpu.as_secs_f64() / whole.events as f64;
        let data_node = data_node / sink.events as f64;
        let cpu = [source, channel, sink].map(|part| part.cpu / part.events as f64).iter().sum::<f64>();
        let cpu = cpu + senders + data_node;
        let processors = thread::available_parallelism().map_or(1.0, |count| count.get() as f64) / cpu;
        sheet.add("P14", "processors / CPU of all parts, MB/s", "", mb_s(processors));
        // A load that is over before the first settlement has no rate.
        if slowest > 0.0 {
            sheet.add("P14", "whole / slowest part", "", whole.ev_s / slowest);
            sheet.add("P14", "whole / its bound", ">= 0.9", whole.ev_s / slowest.min(processors));
        }
        if let Some(busy) = whole.busy {
            sheet.add("P14", "processors busy meanwhile", "", busy);
        }
        sheet.add("P14", "whole, CPU-s/GiB", "", whole.cpu_s_per_gib(size));
        sheet.add("P14", "source alone, CPU-s/GiB", "", source.cpu_s_per_gib(size));
        sheet.add("P14", "channel alone, CPU-s/GiB", "", channel.cpu_s_per_gib(size));
        sheet.add("P14", "sink alone, CPU-s/GiB", "", sink.cpu_s_per_gib(size));
        let cpu_s_per_gib = |of_an_event: f64| of_an_event / size as f64 * f64::from(1 << 30);
        sheet.add("P14", "senders, CPU-s/GiB", "", cpu_s_per_gib(senders));
        if self.hdfs.is_some() {
            sheet.add("P14", "DataNode of the sink alone, CPU-s/GiB", "", cpu_s_per_gib(data_node));
        }
        sheet.add("P14", "events refused", "0", whole.sent.refused as f64);

        if let Some(mut flume) = self.flume.take() {
            let theirs = flume.pass(&self.load, warmup, seconds)?;
            self.clear(&flume)?;
            self.flume = Some(flume);
            sheet.add("P14", "Flume, events/s", "", theirs.ev_s);
            sheet.add("P14", "Flume, MB/s", "", mb_s(theirs.ev_s));
            sheet.add("P14", "Flume, CPU-s/GiB", "", theirs.cpu_s_per_gib(size));
            sheet.add("P14", "Flume, events refused", "", theirs.sent.refused as f64);
            sheet.add(
                "P14",
                "CPU of Flume / of Penstock",
                ">= 10",
                theirs.cpu_s_per_gib(size) / whole.cpu_s_per_gib(size),
            );
            sheet.add("P14", "rate of Penstock / of Flume", "", whole.ev_s / theirs.ev_s);
        }
        Ok(())
    }

    /// As many producers as there are connections, and one consumer: events that were put and taken.
    fn channel(&self) -> Result<Passed, String> {
        let Arguments { connections, batch, size, seconds, .. } = self.arguments;
        let (connections, batch, size) = (connections.to_string(), batch.to_string(), size.to_string());
        let words = ["--producers", &connections, "--batch", &batch, "--size", &size, "--consumers", "1"];
        let outcome = channel::Arguments::typed(&self.root.join("channel"), *seconds, &words)?.measured()?;
        let events = outcome.put_events.unwrap_or_default().min(outcome.take_events.unwrap_or_default());
        let ev_s = events as f64 / outcome.reading.elapsed.as_secs_f64();
        let cpu = outcome.reading.cpu.as_secs_f64();
        Ok(Passed { ev_s, cpu, events, sent: Sent::default(), busy: None })
    }

    /// One agent fills a channel, another one drains it; and the CPU seconds of who stores it, if that is not the agent itself.
    fn sink(&self) -> Result<(Passed, f64), String> {
        let folder = self.root.join("sink");
        let events = self.arguments.drain_events;
        let channel = file_channel(&folder, events * 2);
        let port = ports::free();
        let filling = Subject::penstock(&agent(Some(&source_lines(Source::Avro, port)), &channel, None), &[port]);
        let filled = Load { source: Source::Avro, ..self.load }.start(port, Some(events)).finish()?;
        filling.stop();
        let out = match &self.hdfs {
            Some(hdfs) => format!("{}/sink", hdfs.url()),
            None => format!("file://{}", folder.join("out").display()),
        };
        let mut draining = Subject::penstock(&agent(None, &channel, Some(&hdfs_sink(&out))), &[]);
        let before = self.data_node_cpu();
        let drained = draining.drain(filled.accepted)?;
        let data_node = self.data_node_cpu().saturating_sub(before);
        draining.stop();
        if let Some(hdfs) = &self.hdfs {
            remove_on(hdfs, "/sink");
        }
        channel::remove(&folder)?;
        Ok((drained, data_node.as_secs_f64()))
    }

    fn data_node_cpu(&self) -> Duration {
        self.hdfs.as_ref().and_then(|hdfs| host::cpu_of(hdfs.data_node(0).id())).unwrap_or_default()
    }

    /// Removes the files that an agent has closed: the disk may be small.
    fn clear(&self, agent: &Standing) -> Result<(), String> {
        match (&self.hdfs, agent.out.strip_prefix("file://")) {
            (None, Some(folder)) => {
                remove_closed(Path::new(folder)).map_err(|error| format!("{folder}: {error}"))?;
                host::forgotten(Path::new(folder));
                Ok(())
            }
            (Some(hdfs), _) => {
                let folder = agent.out.strip_prefix(&hdfs.url()).unwrap_or_default();
                remove_on(hdfs, &format!("{folder}/*[0-9]"));
                Ok(())
            }
            (None, None) => Ok(()),
        }
    }
}

impl Standing {
    fn pass(&mut self, load: &Load, warmup: Duration, time: Duration) -> Result<Passed, String> {
        self.subject.pass(load, self.port, warmup, time)
    }
}

fn remove_closed(folder: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "tmp") {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

fn remove_on(hdfs: &Hdfs, pattern: &str) {
    // A pattern that matches nothing is no failure of the measurement.
    drop(hdfs.tool("org.apache.hadoop.fs.FsShell", &["-rm", "-r", "-f", "-skipTrash", pattern]));
}

/// The properties of an agent `a1` from the lines of its components.
fn agent(source: Option<&str>, channel: &str, sink: Option<&str>) -> String {
    let names = |of: &str, name: &str, there: Option<&str>| there.map(|_| format!("a1.{of} = {name}\n"));
    let lists = [names("sources", "r1", source), names("sinks", "k1", sink)].into_iter().flatten().collect::<String>();
    format!("a1.channels = c1\n{lists}{}{channel}{}", source.unwrap_or_default(), sink.unwrap_or_default())
}

fn source_lines(source: Source, port: u16) -> String {
    let more = match source {
        Source::Avro | Source::Http => "",
        Source::Netcat => "a1.sources.r1.max-line-length = 1048576\n",
    };
    format!(
        "a1.sources.r1.type = {}\na1.sources.r1.bind = 127.0.0.1\na1.sources.r1.port = {port}\n\
         a1.sources.r1.channels = c1\n{more}",
        source.name()
    )
}

/// Larger than any batch of a source or sink here, and no channel may be smaller.
const TRANSACTION_EVENTS: u64 = 10_000;

fn file_channel(folder: &Path, capacity: u64) -> String {
    let (folder, capacity) = (folder.display(), capacity.max(TRANSACTION_EVENTS));
    format!(
        "a1.channels.c1.type = file\na1.channels.c1.checkpointDir = {folder}/checkpoint\n\
         a1.channels.c1.dataDirs = {folder}/data\na1.channels.c1.capacity = {capacity}\n\
         a1.channels.c1.transactionCapacity = {TRANSACTION_EVENTS}\n"
    )
}

fn memory_channel(capacity: u64) -> String {
    let capacity = capacity.max(TRANSACTION_EVENTS);
    format!(
        "a1.channels.c1.type = memory\na1.channels.c1.capacity = {capacity}\n\
         a1.channels.c1.transactionCapacity = {TRANSACTION_EVENTS}\n"
    )
}

/// Files of 256 MiB as they come; batches that a collector would have.
fn hdfs_sink(out: &str) -> String {
    format!(
        "a1.sinks.k1.type = hdfs\na1.sinks.k1.channel = c1\na1.sinks.k1.hdfs.path = {out}\n\
         a1.sinks.k1.hdfs.fileType = DataStream\na1.sinks.k1.hdfs.batchSize = 1000\na1.sinks.k1.hdfs.rollInterval = 0\n\
         a1.sinks.k1.hdfs.rollCount = 0\na1.sinks.k1.hdfs.rollSize = 268435456\n"
    )
}

const NULL_SINK: &str = "a1.sinks.k1.type = null\na1.sinks.k1.channel = c1\na1.sinks.k1.batchSize = 1000\n";
