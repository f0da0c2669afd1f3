//! The file channel of the real agent: killed, misconfigured, full, reloaded; and its dead letters.
//!
//! The promise behind every story: an acknowledged line is delivered, or still there, and a refusal to start names what is
//! wrong and changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use channel::{Channel, Devices, DurableChannel, DurableOptions, TakeLimits};
use system_tests::penstock::{self, Agent};
use system_tests::{ports, skipped, until};

const LIMIT: Duration = Duration::from_secs(60);

const TWO_DIRS: &str =
    "a1.channels.c1.dataDirs = $DIR/data1,$DIR/data2\na1.channels.c1.penstock.flushDomains = separate\n";
const ENCRYPTED: &str = "a1.channels.c1.encryption.activeKey = k1\na1.channels.c1.encryption.keyProvider = FILE\n\
     a1.channels.c1.encryption.keyProvider.keyFile = $DIR/keys\n";
/// Small segments keep the tests quick.
const SMALL: &str = "a1.channels.c1.maxFileSize = 1048576\na1.channels.c1.minimumRequiredSpace = 1048576\n";
const TO_FILES: &str = "a1.sinks = k1\na1.sinks.k1.type = file_roll\na1.sinks.k1.channel = c1\n\
     a1.sinks.k1.sink.directory = $DIR/out\na1.sinks.k1.sink.rollInterval = 0\n";

/// netcat into a file channel; `channel` and `sink` are lines of their own.
fn configuration(port: u16, channel: &str, sink: &str) -> String {
    format!(
        "a1.sources = r1\na1.channels = c1\n\
         a1.sources.r1.type = netcat\na1.sources.r1.bind = 127.0.0.1\na1.sources.r1.port = {port}\na1.sources.r1.channels = c1\n\
         a1.sources.r1.max-line-length = 4096\n\
         a1.channels.c1.type = file\na1.channels.c1.keep-alive = 0\n{channel}{sink}"
    )
}

fn make_key(agent: &Agent, name: &str) {
    let path = agent.directory().join(name).display().to_string();
    let made = penstock::run(&["keys", "generate", &path]);
    assert!(made.status.success(), "no key: {}", String::from_utf8_lossy(&made.stderr));
}

/// Sends numbered lines and counts what was acknowledged.
struct Sender {
    stream: TcpStream,
    answers: BufReader<TcpStream>,
}

impl Sender {
    fn connect(port: u16) -> Sender {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("connect to the netcat source");
        stream.set_read_timeout(Some(LIMIT)).expect("set a timeout");
        let answers = BufReader::new(stream.try_clone().expect("share a socket"));
        Sender { stream, answers }
    }

    /// The answers to these lines, one each.
    fn ask(&mut self, lines: &[String]) -> Vec<String> {
        self.stream.write_all((lines.join("\n") + "\n").as_bytes()).expect("send lines");
        let answer = |_: &String| {
            let mut answer = String::new();
            self.answers.read_line(&mut answer).expect("read an answer");
            answer.trim_end().to_owned()
        };
        lines.iter().map(answer).collect()
    }
}

fn lines(numbers: std::ops::Range<u32>) -> Vec<String> {
    numbers.map(|number| format!("secret-body {number}")).collect()
}

/// Sends lines that must all be acknowledged.
fn send(port: u16, numbers: std::ops::Range<u32>) -> Vec<String> {
    let lines = lines(numbers);
    let answers = Sender::connect(port).ask(&lines);
    assert!(answers.iter().all(|answer| answer == "OK"), "{answers:?}");
    lines
}

fn await_empty(agent: &Agent) {
    until("the channel is empty", LIMIT, || (agent.counter("CHANNEL.c1", "ChannelSize")? == 0).then_some(()));
}

/// Every line in the files of a folder.
fn written(directory: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for file in fs::read_dir(directory).into_iter().flatten() {
        let text = fs::read_to_string(file.expect("list the folder").path()).expect("read a rolled file");
        found.extend(text.lines().map(str::to_owned));
    }
    found
}

/// Path and bytes of every file below, but for the lock, which is empty.
fn tree(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let (mut found, mut open) = (BTreeMap::new(), vec![root.to_path_buf()]);
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten() {
            let path = entry.expect("list a folder").path();
            if path.is_dir() {
                open.push(path);
            } else if path.file_name().is_some_and(|name| name != "lock") {
                found.insert(path.clone(), fs::read(&path).expect("read a file"));
            }
        }
    }
    found
}

/// Starts the agent, which must refuse: its exit code, and what it printed this time.
fn refusal(agent: &mut Agent) -> (i32, String) {
    let before = agent.log().len();
    agent.launch();
    let status = agent.process().await_end(LIMIT);
    agent.kill();
    (status.code().unwrap_or(-1), agent.log()[before..].to_owned())
}

#[test]
fn acknowledged_lines_survive_kills_on_two_encrypted_directories() {
    let port = ports::free();
    let channel = format!("{TWO_DIRS}{ENCRYPTED}{SMALL}");
    let mut agent = Agent::new(&configuration(port, &channel, ""), &[port]);
    make_key(&agent, "keys");
    let mut sent = BTreeSet::new();
    let mut rounds = 0;
    let files = |agent: &Agent| ["data1", "data2"].map(|name| tree(&agent.directory().join(name)));
    // Which disk takes a frame is up to who is free: a few connections at once reach both.
    while rounds < 3 || files(&agent).iter().any(|files| files.len() < 2) {
        assert!(rounds < 30, "one of the directories is never used");
        agent.start();
        let first = rounds * 1000;
        let senders: Vec<_> = (0..4)
            .map(|part| std::thread::spawn(move || send(port, first + part * 250..first + (part + 1) * 250)))
            .collect();
        senders.into_iter().for_each(|sender| sent.extend(sender.join().expect("every line is acknowledged")));
        agent.kill();
        rounds += 1;
    }
    for (path, bytes) in files(&agent).into_iter().flatten() {
        assert!(!bytes.windows(11).any(|window| window == b"secret-body"), "plain text in {}", path.display());
    }
    agent.configure(&configuration(port, &channel, TO_FILES));
    agent.start();
    assert!(agent.log().contains(&format!("recovered channel=\"c1\" queued={} ", sent.len())), "{}", agent.log());

    // A second process on the same directories names them, and does no harm.
    let mut second = Agent::new(&configuration(ports::free(), &channel, ""), &[]);
    let text = fs::read_to_string(second.configuration_file()).expect("read the configuration");
    let first_dir = agent.directory().display().to_string();
    second.configure(&text.replace(&second.directory().display().to_string(), &first_dir));
    let (code, log) = refusal(&mut second);
    assert_eq!(code, 1, "{log}");
    assert!(log.contains(&format!("{first_dir}/data1/penstock is in use by another process")), "{log}");

    sent.extend(send(port, 500_000..500_100));
    await_empty(&agent);
    assert_eq!(agent.stop(), 0, "{}", agent.log());
    let written = written(&agent.directory().join("out"));
    let missing: Vec<&String> = sent.difference(&written).collect();
    assert!(missing.is_empty(), "{} lines are missing: {:?}", missing.len(), missing.first());
    assert!(!agent.log().contains("panicked"), "{}", agent.log());
}

#[test]
fn what_cannot_be_opened_is_refused_by_name_and_nothing_is_changed() {
    let port = ports::free();
    let channel = format!("{TWO_DIRS}{ENCRYPTED}{SMALL}");
    let mut agent = Agent::new(&configuration(port, &channel, ""), &[port]);
    make_key(&agent, "keys");
    make_key(&agent, "other");
    agent.start();
    let sent: BTreeSet<String> = send(port, 0..200).into_iter().collect();
    assert_eq!(agent.stop(), 0, "{}", agent.log());
    assert!(agent.log().contains("200 events stay in channel c1"), "{}", agent.log());
    // Another channel's directory.
    let foreign = configuration(port, &format!("a1.channels.c1.dataDirs = $DIR/foreign\n{SMALL}"), "");
    agent.configure(&foreign);
    agent.start();
    send(port, 0..1);
    assert_eq!(agent.stop(), 0, "{}", agent.log());

    let dir = agent.directory().to_path_buf();
    let before = (tree(&dir.join("data1")), tree(&dir.join("data2")), tree(&dir.join("foreign")));
    let check = |agent: &mut Agent, channel: &str, expected: &[&str]| {
        agent.configure(&configuration(port, channel, ""));
        let (found, log) = refusal(agent);
        assert_eq!(found, 1, "{expected:?}\n{log}");
        for part in expected {
            assert!(log.contains(part), "no `{part}` in\n{log}");
        }
        let after = (tree(&dir.join("data1")), tree(&dir.join("data2")), tree(&dir.join("foreign")));
        assert!(before == after, "{expected:?}: the refusal changed files");
    };
    let data1 = dir.join("data1/penstock").display().to_string();

    let wrong = channel.replace("$DIR/keys", "$DIR/other");
    check(&mut agent, &wrong, &[&data1, "key `k1` is not the key", "encryption.keyProvider.keyFile"]);
    let missing = channel.replace("$DIR/keys", "$DIR/none");
    check(
        &mut agent,
        &missing,
        &["encryption.keyProvider.keyFile: ", "/none", "make one with `penstock keys generate"],
    );
    fs::set_permissions(dir.join("keys"), fs::Permissions::from_mode(0o644)).expect("expose the key file");
    check(&mut agent, &channel, &["/keys can be read by others (mode 644)", "chmod 600"]);
    fs::set_permissions(dir.join("keys"), fs::Permissions::from_mode(0o600)).expect("hide the key file");
    let unknown = channel.replace("activeKey = k1", "activeKey = k9");
    check(&mut agent, &unknown, &["encryption.activeKey: ", "has no key `k9`; it has: k1"]);
    let plain = channel.replace(ENCRYPTED, "");
    check(&mut agent, &plain, &[&data1, "encrypted with key `k1`, which is not given", "encryption.activeKey"]);
    let foreign = channel.replace("$DIR/data2", "$DIR/foreign");
    check(&mut agent, &foreign, &["foreign/penstock belongs to another channel than", &data1]);
    let forgotten = channel.replace(",$DIR/data2", "");
    check(&mut agent, &forgotten, &["data2/penstock of this channel is missing", "name it again in dataDirs"]);

    // Its disk is not mounted: the empty place is not taken for an empty queue.
    fs::rename(dir.join("data2"), dir.join("away")).expect("unmount");
    fs::create_dir(dir.join("data2")).expect("leave the mount point");
    agent.configure(&configuration(port, &channel, ""));
    let (code, log) = refusal(&mut agent);
    assert_eq!(code, 1, "{log}");
    assert!(log.contains("data2/penstock of this channel is missing and may hold pending events; mount it"), "{log}");
    assert_eq!(tree(&dir.join("data2")), BTreeMap::new());
    fs::remove_dir(dir.join("data2")).expect("clear the mount point, which is still empty");
    fs::rename(dir.join("away"), dir.join("data2")).expect("mount again");
    assert!(before.0 == tree(&dir.join("data1")) && before.1 == tree(&dir.join("data2")), "the refusal changed files");

    // Another order, and one directory more.
    let grown = channel.replace("$DIR/data1,$DIR/data2", "$DIR/data2,$DIR/data3,$DIR/data1");
    agent.configure(&configuration(port, &grown, TO_FILES));
    agent.start();
    send(port, 200..400);
    await_empty(&agent);
    assert_eq!(agent.stop(), 0, "{}", agent.log());
    assert!(dir.join("data3/penstock/identity").is_file());
    let written = written(&dir.join("out"));
    assert_eq!(written.intersection(&sent).count(), 200);
    assert_eq!(written.len(), 400);
}

/// A small file system of its own; gone with the value.
struct Mount(PathBuf);

impl Mount {
    fn new(path: &Path, mebibytes: u32) -> Option<Mount> {
        fs::create_dir_all(path).expect("make the mount point");
        let size = format!("size={mebibytes}m");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(path).output();
        mounted.is_ok_and(|output| output.status.success()).then(|| Mount(path.to_path_buf()))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("-l").arg(&self.0).status();
        assert!(std::thread::panicking() || unmounted.is_ok_and(|status| status.success()), "cannot unmount");
    }
}

#[test]
fn a_full_disk_refuses_puts_and_drains() {
    let port = ports::free();
    let channel = format!("a1.channels.c1.dataDirs = $DIR/full\n{SMALL}");
    let mut agent = Agent::new(&configuration(port, &channel, ""), &[port]);
    let Some(_mount) = Mount::new(&agent.directory().join("full"), 16) else {
        return skipped("a_full_disk_refuses_puts_and_drains: mounting a tmpfs needs root");
    };
    agent.start();
    let mut acknowledged = BTreeSet::new();
    let mut sender = Sender::connect(port);
    let refused = (0..).step_by(50).find_map(|start| {
        assert!(start < 100_000, "the disk never gets full");
        let lines: Vec<String> = (start..start + 50).map(|number| format!("{number} {}", "x".repeat(2000))).collect();
        let answers = sender.ask(&lines);
        let refused = answers.iter().find(|answer| *answer != "OK").cloned();
        let good = lines.into_iter().zip(answers).filter(|(_, answer)| answer == "OK");
        acknowledged.extend(good.map(|(line, _)| line));
        refused
    });
    let refused = refused.expect("a line was refused");
    assert!(refused.starts_with("FAILED: ") && refused.contains("bytes are free"), "{refused}");
    assert!(acknowledged.len() > 1000, "{} lines fit", acknowledged.len());
    agent.kill();

    // The disk is still full. The agent starts, drains, and takes lines again.
    agent.configure(&configuration(port, &channel, TO_FILES));
    agent.start();
    await_empty(&agent);
    until("a line is taken again", LIMIT, || {
        let answers = Sender::connect(port).ask(&["again".to_owned()]);
        (answers == ["OK"]).then_some(())
    });
    await_empty(&agent);
    assert_eq!(agent.stop(), 0, "{}", agent.log());
    let written = written(&agent.directory().join("out"));
    assert_eq!(acknowledged.difference(&written).count(), 0, "acknowledged lines are missing");
    assert!(written.contains("again"));
}

#[test]
fn validating_a_file_channel_makes_no_directory() {
    let channel = format!("{TWO_DIRS}{ENCRYPTED}{SMALL}");
    let agent = Agent::new(&configuration(ports::free(), &channel, TO_FILES), &[]);
    make_key(&agent, "keys");
    let configuration = agent.configuration_file().display().to_string();
    let names = || -> BTreeSet<PathBuf> {
        fs::read_dir(agent.directory()).expect("list").map(|entry| entry.expect("list").path()).collect()
    };
    let before = names();
    let output = penstock::run(&["validate", "--conf-file", &configuration, "--name", "a1"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.trim_end().ends_with("runs"), "{text}");
    assert_eq!(names(), before);
}

#[test]
fn a_key_is_rotated_under_a_running_agent_and_everything_stays_readable() {
    let port = ports::free();
    let channel = format!("{TWO_DIRS}{ENCRYPTED}{SMALL}");
    let mut agent = Agent::new(&configuration(port, &channel, ""), &[port]);
    make_key(&agent, "keys");
    let directory = agent.directory().to_path_buf();
    let key_file = directory.join("keys").display().to_string();
    // Headers name their key; files come and go while the agent runs.
    let is_begun_under = |id: &str| {
        let name = format!("{id}\0");
        let files =
            ["data1", "data2"].iter().filter_map(|data| fs::read_dir(directory.join(data).join("penstock")).ok());
        files
            .flatten()
            .filter_map(|entry| fs::read(entry.ok()?.path()).ok())
            .any(|bytes| bytes.windows(name.len()).any(|window| window == name.as_bytes()))
    };
    agent.argument("--poll-interval=1");
    agent.start();
    let (mut sent, mut next) = (BTreeSet::new(), 0);
    for id in ["k1.2", "k1.3"] {
        assert!(!is_begun_under(id));
        let rotated = penstock::run(&["keys", "rotate", &key_file]);
        let said = String::from_utf8_lossy(&rotated.stdout);
        assert!(rotated.status.success() && said.contains(&format!("key {id} is in {key_file}")), "{said}");
        until("a segment is begun under the new key", LIMIT, || {
            sent.extend(send(port, next..next + 50));
            next += 50;
            is_begun_under(id).then_some(())
        });
        assert!(agent.log().contains(&format!("new data is sealed with key {id} ")), "{}", agent.log());
        sent.extend(send(port, next..next + 50));
        next += 50;
    }
    agent.kill();
    agent.configure(&configuration(port, &channel, TO_FILES));
    agent.start();
    sent.extend(send(port, next..next + 50));
    await_empty(&agent);
    assert_eq!(agent.stop(), 0, "{}", agent.log());
    assert_eq!(written(&directory.join("out")), sent);
}

#[test]
fn a_reload_opens_the_file_channel_again_with_what_is_in_it() {
    let port = ports::free();
    let channel = format!("{TWO_DIRS}{SMALL}");
    let mut agent = Agent::new(&configuration(port, &channel, ""), &[port]);
    agent.argument("--poll-interval=1");
    agent.start();
    let mut sent: BTreeSet<String> = send(port, 0..100).into_iter().collect();
    agent.configure(&configuration(port, &channel, TO_FILES));
    until("the sink of the new configuration runs", LIMIT, || agent.counter("SINK.k1", "EventDrainSuccessCount"));
    await_empty(&agent);
    sent.extend(send(port, 100..150));
    await_empty(&agent);
    assert_eq!(agent.stop(), 0, "{}", agent.log());
    assert_eq!(written(&agent.directory().join("out")), sent);
    assert!(agent.log().contains("recovered channel=\"c1\" queued=100 "), "{}", agent.log());
}

/// A path that needs a timestamp, which netcat's events do not have.
const NEEDS_TIMESTAMP: &str = "a1.sinks = k1\na1.sinks.k1.type = hdfs\na1.sinks.k1.channel = c1\n\
     a1.sinks.k1.hdfs.path = file://$DIR/out/%Y\na1.sinks.k1.hdfs.fileType = DataStream\n";

/// The dead letters of sink k1, as (body, headers).
fn letters(directory: &Path) -> Vec<(String, BTreeMap<String, String>)> {
    let options = DurableOptions::new("letters", vec![directory.to_path_buf()]);
    let channel = DurableChannel::open(options, &Devices::new()).expect("open the dead letters");
    let mut consumer = channel.consumer("test");
    let mut found = Vec::new();
    while (found.len() as u64) < channel.stats().size_events {
        let limits = TakeLimits { events: 1000, bytes: 8 << 20 };
        let lease = consumer.take(limits, LIMIT).wait().expect("take dead letters");
        assert!(!lease.is_empty(), "dead letters that were counted do not come");
        found.extend(lease.iter().map(|(_, event)| {
            let headers = event.headers().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
            (String::from_utf8_lossy(event.body()).into_owned(), headers)
        }));
    }
    found
}

#[test]
fn what_a_sink_can_never_write_becomes_dead_letters_until_they_are_full() {
    let port = ports::free();
    let limit = "a1.channels.c1.penstock.deadLetterMaxBytes = 2097152\n";
    let channel = format!("a1.channels.c1.dataDirs = $DIR/data1,$DIR/data2\n{SMALL}{limit}");
    let mut agent = Agent::new(&configuration(port, &channel, NEEDS_TIMESTAMP), &[port]);
    let directory = agent.directory().join("data1/penstock-dead-letters/k1");
    agent.start();
    assert!(!directory.exists(), "nothing is made for a sink without dead letters");
    let sent: BTreeSet<String> = send(port, 0..50).into_iter().collect();
    let buried = |agent: &Agent| agent.counter("CHANNEL.c1", "DeadLetteredEventCount");
    until("the lines are buried", LIMIT, || (buried(&agent)? == 50).then_some(()));
    assert_eq!(agent.counter("CHANNEL.k1-dead-letters", "ChannelSize"), Some(50));
    await_empty(&agent);
    assert_eq!(agent.stop(), 0, "{}", agent.log());
    let found = letters(&directory);
    assert_eq!(found.iter().map(|(body, _)| body.clone()).collect::<BTreeSet<_>>(), sent);
    for (_, headers) in &found {
        assert!(headers["penstock.dead.reason"].contains("timestamp"), "{headers:?}");
        assert_eq!((headers["penstock.dead.sink"].as_str(), headers["penstock.dead.channel"].as_str()), ("k1", "c1"));
    }

    // Until there is no room: the sink stops visibly, and what is not buried stays in the channel.
    agent.start();
    let mut sender = Sender::connect(port);
    let mut count = 50;
    while !agent.log().contains("dead letters of sink k1 are full") {
        assert!(count < 20_000, "the dead letters never get full");
        let lines: Vec<String> = (0..50).map(|number| format!("{} {}", count + number, "x".repeat(2000))).collect();
        let answers = sender.ask(&lines);
        assert!(answers.iter().all(|answer| answer == "OK"), "{answers:?}");
        count += 50;
    }
    assert!(agent.log().contains("penstock.deadLetterMaxBytes"), "{}", agent.log());
    drop(sender);
    assert_eq!(agent.stop(), 0, "{}", agent.log());
    let kept = agent.log();
    let kept = kept.rsplit_once(" events stay in channel c1").expect("the last line says what stays").0;
    let kept: u64 = kept.rsplit_once(' ').expect("a number").1.parse().expect("a number");
    let bodies: BTreeSet<String> = letters(&directory).into_iter().map(|(body, _)| body).collect();
    assert!(kept > 0);
    // A letter whose burial and settlement were cut by the stop may be in both.
    assert!(bodies.len() as u64 + kept >= count, "{} buried, {kept} kept, {count} acknowledged", bodies.len());
}
