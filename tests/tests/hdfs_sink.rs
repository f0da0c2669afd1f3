//! The hdfs sink on a real HDFS: rolled files that Hadoop's own shell reads while DataNodes and the NameNode die under
//! it, a killed agent whose files are healed at its next start, and Kerberos by keytab.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::time::Duration;

use system_tests::hdfs::Hdfs;
use system_tests::kdc::MiniKdc;
use system_tests::penstock::Agent;
use system_tests::{http, ports, until};

const LIMIT: Duration = Duration::from_secs(120);

fn configuration(port: u16, channel: &str, sink: &str) -> String {
    format!(
        "a1.sources = r1\na1.channels = c1\na1.sinks = k1\n\
         a1.sources.r1.type = netcat\na1.sources.r1.bind = 127.0.0.1\na1.sources.r1.port = {port}\na1.sources.r1.channels = c1\n\
         {channel}\
         a1.sinks.k1.type = hdfs\na1.sinks.k1.channel = c1\na1.sinks.k1.hdfs.fileType = DataStream\n\
         a1.sinks.k1.hdfs.batchSize = 50\na1.sinks.k1.hdfs.rollInterval = 0\na1.sinks.k1.hdfs.rollSize = 0\n\
         a1.sinks.k1.hdfs.callTimeout = 8000\na1.sinks.k1.hdfs.syncInterval = 100\n\
         {sink}"
    )
}

const MEMORY: &str =
    "a1.channels.c1.type = memory\na1.channels.c1.capacity = 100000\na1.channels.c1.transactionCapacity = 100\n";
const FILE: &str = "a1.channels.c1.type = file\na1.channels.c1.checkpointDir = $DIR/checkpoint\n\
     a1.channels.c1.dataDirs = $DIR/data\na1.channels.c1.capacity = 100000\na1.channels.c1.transactionCapacity = 100\n";

/// Sends numbered lines, and reads an answer for each.
struct Sender {
    stream: TcpStream,
    answers: BufReader<TcpStream>,
    next: u64,
}

impl Sender {
    fn connect(port: u16) -> Sender {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("connect to the netcat source");
        stream.set_read_timeout(Some(LIMIT)).expect("set a timeout");
        let answers = BufReader::new(stream.try_clone().expect("share a socket"));
        Sender { stream, answers, next: 0 }
    }

    fn send(&mut self, count: u64) {
        let mut text = String::new();
        for number in self.next..self.next + count {
            text.push_str(&format!("line {number} {}\n", "x".repeat((number % 200) as usize)));
        }
        self.stream.write_all(text.as_bytes()).expect("send lines");
        for _ in 0..count {
            let mut answer = String::new();
            self.answers.read_line(&mut answer).expect("read an answer");
            assert_eq!(answer, "OK\n");
        }
        self.next += count;
    }
}

fn delivered(agent: &Agent) -> Option<u64> {
    agent.counter("SINK.k1", "EventDrainSuccessCount")
}

fn await_empty(agent: &Agent) {
    until("the channel is empty", LIMIT, || (agent.counter("CHANNEL.c1", "ChannelSize")? == 0).then_some(()));
}

/// How often each number occurs in files that Hadoop's shell copied; every line must be whole.
fn count_lines(hdfs: &Hdfs, path: &str, target: &Path) -> HashMap<u64, u64> {
    let mut counts = HashMap::new();
    for file in hdfs.copy_to(path, target) {
        for line in fs::read_to_string(&file).expect("read a copied file").lines() {
            let mut words = line.split(' ');
            assert_eq!(words.next(), Some("line"), "a torn line in {}: {line}", file.display());
            let number: u64 = words.next().and_then(|word| word.parse().ok()).expect("a whole line");
            assert_eq!(words.next().map(str::len), Some((number % 200) as usize), "a torn line: {line}");
            *counts.entry(number).or_default() += 1;
        }
    }
    counts
}

fn assert_all_there(hdfs: &Hdfs, agent: &Agent, sent: u64) -> u64 {
    let names = hdfs.list("/logs");
    assert!(names.iter().all(|name| !name.ends_with(".tmp")), "left in use: {names:?}\n{}", agent.log());
    let counts = count_lines(hdfs, "/logs", &agent.directory().join("copy"));
    let missing: Vec<u64> = (0..sent).filter(|number| !counts.contains_key(number)).collect();
    assert!(missing.is_empty(), "{} lines are missing, from {:?}\n{}", missing.len(), missing.first(), agent.log());
    counts.values().map(|count| count - 1).sum()
}

#[test]
fn rolled_files_are_whole_while_a_datanode_and_the_namenode_die() {
    let mut hdfs = Hdfs::start(3);
    let port = ports::free();
    let sink = format!("a1.sinks.k1.hdfs.path = {}/logs/%{{none}}\na1.sinks.k1.hdfs.rollCount = 1000\n", hdfs.url());
    let mut agent = Agent::new(&configuration(port, MEMORY, &sink), &[port]);
    agent.env("HADOOP_CONF_DIR", hdfs.configuration().display().to_string());
    agent.start();
    let mut sender = Sender::connect(port);
    sender.send(2500);
    until("files are rolled", LIMIT, || (delivered(&agent)? >= 2500).then_some(()));

    // In mid-write: the open file has 500 synced events.
    hdfs.kill_data_node(0);
    sender.send(2500);
    until("events go on without the DataNode", LIMIT, || (delivered(&agent)? >= 5000).then_some(()));
    hdfs.restart_data_node(0);
    hdfs.await_all_live();

    hdfs.kill_name_node();
    sender.send(2500);
    hdfs.restart_name_node();
    until("events go on with the new NameNode", LIMIT, || (delivered(&agent)? >= 7500).then_some(()));

    sender.send(10);
    await_empty(&agent);
    assert_eq!(agent.stop(), 0, "{}", agent.log());
    hdfs.await_none_open(Duration::from_secs(60));
    let duplicates = assert_all_there(&hdfs, &agent, 7510);
    eprintln!("counts: hdfs sink with dying servers: 7510 lines sent, 0 missing, {duplicates} duplicates");
    // Cut to what was settled, a failed file repeats nothing; only a settlement without an answer could.
    assert_eq!(duplicates, 0);
}

#[test]
fn datanodes_that_hang_cost_a_deadline_and_no_event() {
    let mut hdfs = Hdfs::start(3);
    let port = ports::free();
    let sink = format!("a1.sinks.k1.hdfs.path = {}/logs\na1.sinks.k1.hdfs.rollCount = 0\n", hdfs.url());
    let mut agent = Agent::new(&configuration(port, MEMORY, &sink), &[port]);
    agent.env("HADOOP_CONF_DIR", hdfs.configuration().display().to_string());
    agent.start();
    let mut sender = Sender::connect(port);
    sender.send(500);
    until("the open file has settled events", LIMIT, || (delivered(&agent)? >= 500).then_some(()));

    // Two copies on three nodes: the open file has at least one of these two, and its sync waits for ever.
    hdfs.data_node(0).pause();
    hdfs.data_node(1).pause();
    sender.send(500);
    until("the deadline passes", LIMIT, || (agent.counter("SINK.k1", "ConnectionFailedCount")? > 0).then_some(()));
    assert!(agent.log().contains("gave no answer within 8000 ms"), "{}", agent.log());
    hdfs.data_node(0).resume();
    hdfs.data_node(1).resume();
    until("events go on", LIMIT, || (delivered(&agent)? >= 1000).then_some(()));
    hdfs.await_all_live();
    let in_use = || hdfs.list("/logs").iter().filter(|name| name.ends_with(".tmp")).count();
    until("what failed is healed", LIMIT, || (in_use() <= 1).then_some(()));
    assert_eq!(agent.stop(), 0, "{}", agent.log());
    hdfs.await_none_open(Duration::from_secs(60));
    assert_eq!(assert_all_there(&hdfs, &agent, 1000), 0);
}

#[test]
fn a_killed_agent_heals_its_open_files_at_the_next_start() {
    let hdfs = Hdfs::start(2);
    let port = ports::free();
    let sink = format!("a1.sinks.k1.hdfs.path = {}/logs\na1.sinks.k1.hdfs.rollCount = 0\n", hdfs.url());
    let mut agent = Agent::new(&configuration(port, FILE, &sink), &[port]);
    // Hadoop's files beside the agent's own configuration, without an environment variable.
    for name in ["core-site.xml", "hdfs-site.xml"] {
        fs::copy(hdfs.configuration().join(name), agent.directory().join("conf").join(name)).expect("copy a file");
    }
    agent.start();
    let mut sent = 0;
    for _ in 0..3 {
        let mut sender = Sender::connect(port);
        sender.next = sent;
        sender.send(500);
        until("the open file has settled events", LIMIT, || (delivered(&agent)? >= 100).then_some(()));
        sender.send(500);
        sent = sender.next;
        agent.kill();
        agent.start();
    }
    await_empty(&agent);
    until("what the kills left is published", LIMIT, || {
        let names = hdfs.list("/logs");
        (names.len() >= 3 && names.iter().filter(|name| name.ends_with(".tmp")).count() <= 1).then_some(())
    });
    assert_eq!(agent.stop(), 0, "{}", agent.log());
    hdfs.await_none_open(Duration::from_secs(60));
    let duplicates = assert_all_there(&hdfs, &agent, sent);
    eprintln!("counts: hdfs sink with 3 kills: {sent} lines sent, 0 missing, {duplicates} duplicates");
    assert_eq!(duplicates, 0, "what was not settled is cut before it is published");
}

#[test]
fn a_keytab_opens_a_secure_hdfs() {
    let centre = MiniKdc::start(&["hdfs/localhost", "HTTP/localhost", "alice"]);
    let hdfs = Hdfs::start_secure(1, &centre);
    let port = ports::free();
    let sink = format!(
        "a1.sinks.k1.hdfs.path = {}/logs\na1.sinks.k1.hdfs.rollCount = 0\n\
         a1.sinks.k1.hdfs.kerberosPrincipal = {}\na1.sinks.k1.hdfs.kerberosKeytab = {}\n",
        hdfs.url(),
        centre.principal("hdfs/localhost"),
        centre.keytab().display()
    );
    let mut agent = Agent::new(&configuration(port, MEMORY, &sink), &[port]);
    agent.env("HADOOP_CONF_DIR", hdfs.configuration().display().to_string());
    agent.env("KRB5_CONFIG", centre.krb5_conf().display().to_string());
    agent.start();
    let mut sender = Sender::connect(port);
    sender.send(300);
    until("the events are in HDFS", LIMIT, || (delivered(&agent)? == 300).then_some(()));
    assert_eq!(agent.stop(), 0, "{}", agent.log());

    // Hadoop's shell would need a ticket of its own; the NameNode's words and the DataNode's disk are proof enough.
    let closed = hdfs.name_node_log();
    assert!(closed.contains("completeFile: /logs/FlumeData."), "no file was closed\n{}", agent.log());
    let stored = blocks(&hdfs.configuration().parent().expect("the cluster's folder").join("dn1"));
    assert!(stored.contains("line 0 \n") && stored.contains("line 299 "), "the lines are not on the DataNode");
}

#[test]
fn an_event_without_a_path_becomes_a_dead_letter_and_the_others_pass() {
    let port = ports::free();
    let text =
        configuration(port, FILE, "a1.sinks.k1.hdfs.path = file://$DIR/out/%Y\na1.sinks.k1.hdfs.rollCount = 0\n")
            .replace("type = netcat", "type = http");
    let mut agent = Agent::start_new(&text, &[port]);
    let events = r#"[{"headers":{},"body":"lost in time"},{"headers":{"timestamp":"1334315471123"},"body":"good"}]"#;
    assert_eq!(http::request(port, "POST", "/", events.as_bytes()).expect("an answer").status, 200);
    await_empty(&agent);
    assert_eq!(agent.counter("CHANNEL.c1", "DeadLetteredEventCount"), Some(1), "{}", agent.log());
    assert_eq!(agent.stop(), 0, "{}", agent.log());
    let year = agent.directory().join("out/2012");
    let files: Vec<_> = fs::read_dir(&year).expect("list the files").map(|file| file.expect("a file").path()).collect();
    assert_eq!(files.len(), 1);
    assert_eq!(fs::read_to_string(&files[0]).expect("read a file"), "good\n");
    assert!(agent.log().contains("timestamp"), "the reason is nowhere\n{}", agent.log());
}

/// All block files of a DataNode as text.
fn blocks(directory: &Path) -> String {
    let mut text = String::new();
    for entry in fs::read_dir(directory).expect("list a DataNode's folder") {
        let path = entry.expect("list a DataNode's folder").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            text.push_str(&blocks(&path));
        } else if name.starts_with("blk_") && !name.ends_with(".meta") {
            text.push_str(&String::from_utf8_lossy(&fs::read(&path).expect("read a block")));
        }
    }
    text
}
