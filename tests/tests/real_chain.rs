//! A chain of real parts: Flume's SDK client → a real Flume agent → Penstock → a real HDFS and, by its avro sink, another
//! real Flume agent. Penstock and a DataNode are each killed twice in mid-flow.
//!
//! ```text
//! SDK client ─► Flume a1 (file channel) ─► Penstock avro source ─┬─► c1 ─► hdfs sink, avro_event ─► HDFS, 3 DataNodes
//!                                                                └─► c2 ─► avro sink ─► Flume ─► file_roll, avro_event
//! ```
//! What the client was told is stored must be in both ends, header by header and byte by byte. Duplicates are bounded by
//! what was on its way when something was killed: nothing else may double an event.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use system_tests::events::{self, Event, Random};
use system_tests::flume::{FlumeAgent, Protocol, SdkClient};
use system_tests::hdfs::Hdfs;
use system_tests::penstock::{self, Agent};
use system_tests::{avro_file, ports, until};

const EVENTS: u64 = 100_000;
const BATCH: usize = 100;
/// Capacity of the channel before HDFS. A quarter of it may be on lease, which bounds the duplicates of one fault.
const CAPACITY: u64 = 20_000;
const LEASED_MAX: u64 = CAPACITY / 4;
/// Events that one fault may have caught on their way through the avro sinks: one batch in flight on each hop.
const HOP_MAX: u64 = 1_000;
const FLOW_LIMIT: Duration = Duration::from_secs(240);
const PENSTOCK_KILLS: u64 = 2;
const DATA_NODE_KILLS: u64 = 2;

fn front(port: u16, next: u16) -> String {
    format!(
        "a1.sources = r1\na1.channels = c1\na1.sinks = k1\n\
         a1.sources.r1.type = avro\na1.sources.r1.bind = 127.0.0.1\na1.sources.r1.port = {port}\na1.sources.r1.channels = c1\n\
         a1.channels.c1.type = file\na1.channels.c1.checkpointDir = $DIR/checkpoint\na1.channels.c1.dataDirs = $DIR/data\n\
         a1.channels.c1.capacity = 5000\na1.channels.c1.transactionCapacity = 1000\na1.channels.c1.keep-alive = 15\n\
         a1.channels.c1.minimumRequiredSpace = 1048576\na1.channels.c1.maxFileSize = 10485760\n\
         a1.sinks.k1.type = avro\na1.sinks.k1.channel = c1\na1.sinks.k1.hostname = 127.0.0.1\na1.sinks.k1.port = {next}\n\
         a1.sinks.k1.batch-size = 100\n"
    )
}

fn back(port: u16) -> String {
    format!(
        "a1.sources = r1\na1.channels = c1\na1.sinks = k1\n\
         a1.sources.r1.type = avro\na1.sources.r1.bind = 127.0.0.1\na1.sources.r1.port = {port}\na1.sources.r1.channels = c1\n\
         a1.channels.c1.type = memory\na1.channels.c1.capacity = 50000\na1.channels.c1.transactionCapacity = 1000\n\
         a1.channels.c1.byteCapacity = 100000000\n\
         a1.sinks.k1.type = file_roll\na1.sinks.k1.channel = c1\na1.sinks.k1.sink.directory = $DIR\n\
         a1.sinks.k1.sink.pathManager.prefix = out-\na1.sinks.k1.sink.rollInterval = 0\n\
         a1.sinks.k1.sink.serializer = avro_event\na1.sinks.k1.sink.batchSize = 100\n"
    )
}

fn middle(port: u16, next: u16, hdfs: &str) -> String {
    let encryption = |channel: &str| {
        format!(
            "a1.channels.{channel}.encryption.keyProvider = FILE\n\
             a1.channels.{channel}.encryption.keyProvider.keyFile = $DIR/k1.key\n\
             a1.channels.{channel}.encryption.activeKey = k1\n"
        )
    };
    // c1 comes first: when it is full and refuses, c2 has not got the batch either.
    format!(
        "a1.sources = r1\na1.channels = c1 c2\na1.sinks = k1 k2\n\
         a1.sources.r1.type = avro\na1.sources.r1.bind = 127.0.0.1\na1.sources.r1.port = {port}\na1.sources.r1.channels = c1 c2\n\
         a1.channels.c1.type = file\na1.channels.c1.checkpointDir = $DIR/checkpoint1\na1.channels.c1.dataDirs = $DIR/data1\n\
         a1.channels.c1.capacity = {CAPACITY}\na1.channels.c1.transactionCapacity = 1000\na1.channels.c1.keep-alive = 10\n{}\
         a1.channels.c2.type = file\na1.channels.c2.checkpointDir = $DIR/checkpoint2\na1.channels.c2.dataDirs = $DIR/data2\n\
         a1.channels.c2.capacity = 1000000\na1.channels.c2.transactionCapacity = 1000\n{}\
         a1.sinks.k1.type = hdfs\na1.sinks.k1.channel = c1\na1.sinks.k1.hdfs.path = {hdfs}/chain\n\
         a1.sinks.k1.hdfs.fileType = DataStream\na1.sinks.k1.serializer = avro_event\na1.sinks.k1.hdfs.batchSize = 500\n\
         a1.sinks.k1.hdfs.rollInterval = 0\na1.sinks.k1.hdfs.rollSize = 4194304\na1.sinks.k1.hdfs.rollCount = 0\n\
         a1.sinks.k1.hdfs.idleTimeout = 2\na1.sinks.k1.hdfs.callTimeout = 8000\n\
         a1.sinks.k2.type = avro\na1.sinks.k2.channel = c2\na1.sinks.k2.hostname = 127.0.0.1\na1.sinks.k2.port = {next}\n\
         a1.sinks.k2.batch-size = 100\n",
        encryption("c1"),
        encryption("c2"),
    )
}

#[test]
fn real_flume_before_and_behind_and_real_hdfs_lose_nothing_while_parts_are_killed() {
    let began = Instant::now();
    let seed = Random::from_clock().next();
    let mut hdfs = Hdfs::start(3);
    let (front_port, middle_port, back_port) = (ports::free(), ports::free(), ports::free());
    let mut behind = FlumeAgent::start(&back(back_port), &[back_port]);
    let mut agent = Agent::new(&middle(middle_port, back_port, &hdfs.url()), &[middle_port]);
    agent.env("HADOOP_CONF_DIR", hdfs.configuration().display().to_string());
    let key = agent.directory().join("k1.key").display().to_string();
    let made = penstock::run(&["keys", "generate", &key]);
    assert!(made.status.success(), "no key: {}", String::from_utf8_lossy(&made.stderr));
    agent.start();
    let mut before = FlumeAgent::start(&front(front_port, middle_port), &[front_port]);

    let sent = events::mixed(seed, EVENTS);
    let mut client = SdkClient::start(front_port, Protocol::Avro, BATCH, &sent);

    kill_penstock_at(15, &mut agent, &mut client);
    reach(&mut client, 30);
    in_mid_flow(&agent);
    hdfs.kill_data_node(0);
    kill_penstock_at(50, &mut agent, &mut client);
    hdfs.restart_data_node(0);
    hdfs.await_all_live();
    reach(&mut client, 70);
    in_mid_flow(&agent);
    hdfs.kill_data_node(1);
    reach(&mut client, 85);
    hdfs.restart_data_node(1);
    let report = client.finish(FLOW_LIMIT);
    assert_eq!(report.acknowledged, EVENTS);

    // Everything drains and every file is closed; then each part stops by itself.
    hdfs.await_all_live();
    // Flume does not count what its sink has taken and not yet delivered, so for a while nothing may arrive either: its
    // sink tries again within five seconds.
    let mut quiet_since = Instant::now();
    let mut accepted = 0;
    until("all channels are empty and nothing arrives any more", FLOW_LIMIT, || {
        let now = agent.counter("SOURCE.r1", "EventAcceptedCount")?;
        let sizes = [before.counter("CHANNEL.c1", "ChannelSize")?, size(&agent, "c1")?, size(&agent, "c2")?];
        if now != accepted || sizes != [0; 3] {
            (accepted, quiet_since) = (now, Instant::now());
        }
        (quiet_since.elapsed() > Duration::from_secs(6)).then_some(())
    });
    before.stop();
    assert_eq!(agent.stop(), 0, "the stop was not clean\n{}", last_lines(&agent));
    behind.stop();
    hdfs.await_none_open(Duration::from_secs(30));

    let names = hdfs.list("/chain");
    assert!(!names.iter().any(|name| name.ends_with(".tmp")), "left in use: {names:?}");
    let files = hdfs.copy_to("/chain", &agent.directory().join("copy"));
    let in_hdfs = read_all(&files);
    let out: Vec<PathBuf> = list(behind.directory(), "out-");
    let in_flume = read_all(&out);

    let (hdfs_balance, flume_balance) = (balance(&sent, &in_hdfs), balance(&sent, &in_flume));
    let line = format!(
        "counts: real chain, seed {seed}, sent {EVENTS}, kills of penstock {PENSTOCK_KILLS}, kills of a datanode {DATA_NODE_KILLS}, \
         batches resent by the client {}, hdfs: files {}, {hdfs_balance}, flume behind: {flume_balance}, seconds {}",
        report.batches_resent,
        files.len(),
        began.elapsed().as_secs()
    );
    writeln!(std::io::stderr(), "{line}").expect("print the counts");
    assert_eq!(hdfs_balance.missing, 0, "not in HDFS; seed {seed}\n{}", last_lines(&agent));
    assert_eq!(flume_balance.missing, 0, "not behind; seed {seed}\n{}", last_lines(&agent));
    assert_eq!((hdfs_balance.foreign, flume_balance.foreign), (0, 0), "events that nobody sent; seed {seed}");
    let resent = report.batches_resent * BATCH as u64;
    let faults = PENSTOCK_KILLS + DATA_NODE_KILLS;
    assert!(hdfs_balance.duplicates <= resent + faults * (LEASED_MAX + HOP_MAX), "more than was on lease; seed {seed}");
    assert!(flume_balance.duplicates <= resent + PENSTOCK_KILLS * 2 * HOP_MAX, "more than was in flight; seed {seed}");
}

fn kill_penstock_at(percent: u64, agent: &mut Agent, client: &mut SdkClient) {
    reach(client, percent);
    in_mid_flow(agent);
    agent.kill();
    agent.start();
}

/// Waits until the client has `percent` of its events acknowledged.
fn reach(client: &mut SdkClient, percent: u64) {
    let wanted = EVENTS * percent / 100;
    let last = client.acknowledged();
    let what = format!("{wanted} events acknowledged (was {last})");
    until(&what, FLOW_LIMIT, || {
        assert!(client.process().is_running(), "the client has ended early\n{}", client.process().last_lines());
        (client.acknowledged() >= wanted).then_some(())
    });
}

/// Waits until the sinks are seen to deliver: a kill of something idle would prove nothing.
fn in_mid_flow(agent: &Agent) {
    let delivered = || agent.counter("SINK.k1", "EventDrainSuccessCount");
    let first = until("the counters answer", FLOW_LIMIT, delivered);
    until("HDFS takes events", FLOW_LIMIT, || (delivered()? > first).then_some(()));
}

fn size(agent: &Agent, channel: &str) -> Option<u64> {
    agent.counter(&format!("CHANNEL.{channel}"), "ChannelSize")
}

fn last_lines(agent: &Agent) -> String {
    let log = agent.log();
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}

fn list(folder: &Path, prefix: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("list a folder").map(|entry| entry.expect("list a folder").path());
    entries.filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix))).collect()
}

fn read_all(files: &[PathBuf]) -> BTreeMap<Event, u64> {
    let mut counts = BTreeMap::new();
    for file in files {
        for event in avro_file::events(&fs::read(file).expect("read a file")) {
            *counts.entry(event).or_default() += 1;
        }
    }
    counts
}

struct Balance {
    received: u64,
    missing: u64,
    duplicates: u64,
    foreign: u64,
}

impl std::fmt::Display for Balance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Balance { received, missing, duplicates, foreign } = self;
        write!(f, "received {received}, missing {missing}, duplicates {duplicates}, foreign {foreign}")
    }
}

fn balance(sent: &[Event], received: &BTreeMap<Event, u64>) -> Balance {
    let sent: std::collections::BTreeSet<&Event> = sent.iter().collect();
    Balance {
        received: received.values().sum(),
        missing: sent.iter().filter(|event| !received.contains_key(**event)).count() as u64,
        duplicates: received.values().map(|count| count - 1).sum(),
        foreign: received.keys().filter(|event| !sent.contains(event)).count() as u64,
    }
}
