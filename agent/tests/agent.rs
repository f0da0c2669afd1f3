//! The binary `penstock` as an operator meets it: exit codes, messages, signals, reload, metrics.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Nothing here takes longer on a machine that works.
const LIMIT: Duration = Duration::from_secs(60);

struct Bench {
    dir: tempfile::TempDir,
}

struct Agent {
    child: Child,
    log: PathBuf,
}

impl Bench {
    fn new() -> Bench {
        Bench { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a configuration; `$DIR` stands for the bench's directory.
    fn conf(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, text.replace("$DIR", self.dir.path().to_str().unwrap())).unwrap();
        path
    }

    fn run(&self, arguments: &[&str]) -> (i32, String) {
        let output: Output = Command::new(env!("CARGO_BIN_EXE_penstock")).args(arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        (output.status.code().unwrap_or(-1), said)
    }

    fn validate(&self, text: &str) -> (i32, String) {
        let conf = self.conf("validate.properties", text);
        self.run(&["validate", "-n", "a1", "-f", conf.to_str().unwrap()])
    }

    fn start(&self, conf: &Path, more: &[&str]) -> Agent {
        let log = self.path("agent.log");
        let file = std::fs::File::create(&log).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_penstock"))
            .args(["agent", "--name", "a1", "--conf-file", conf.to_str().unwrap()])
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file)
            .spawn()
            .unwrap();
        Agent { child, log }
    }
}

impl Agent {
    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    fn wait_for(&self, text: &str) {
        until(text, || self.log().contains(text), || self.log());
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([name, &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    /// Waits for the end and gives the exit code; -1 for a signal.
    fn end(mut self) -> (i32, String) {
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return (status.code().unwrap_or(-1), self.log());
            }
            assert!(Instant::now() < deadline, "the agent does not end:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn stop(self) -> (i32, String) {
        self.signal("-TERM");
        self.end()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // It has ended already, unless the test failed.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn until(what: &str, mut done: impl FnMut() -> bool, log: impl Fn() -> String) {
    let deadline = Instant::now() + LIMIT;
    while !done() {
        assert!(Instant::now() < deadline, "never: {what}\n{}", log());
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Sends lines and expects as many OKs.
fn send(port: u16, lines: &[&str]) {
    let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let mut answers = BufReader::new(stream.try_clone().unwrap());
    for line in lines {
        (&stream).write_all(format!("{line}\n").as_bytes()).unwrap();
        let mut answer = String::new();
        answers.read_line(&mut answer).unwrap();
        assert_eq!(answer, "OK\n");
    }
}

fn netcat_to(port: u16, rest: &str) -> String {
    format!(
        "a1.sources = r\na1.channels = c\na1.sources.r.type = netcat\na1.sources.r.bind = 127.0.0.1\n\
         a1.sources.r.port = {port}\na1.sources.r.channels = c\n{rest}"
    )
}

const MEMORY: &str = "a1.channels.c.type = memory\n";
const FILE_ROLL: &str = "a1.sinks = k\na1.sinks.k.type = file_roll\na1.sinks.k.channel = c\n\
                         a1.sinks.k.sink.directory = $DIR/out\na1.sinks.k.sink.rollInterval = 0\n";
const LOGGER: &str = "a1.sinks = k\na1.sinks.k.type = logger\na1.sinks.k.channel = c\n";

#[test]
fn validate_names_every_mistake_with_its_line_and_touches_nothing() {
    let bench = Bench::new();
    let (code, said) = bench.validate(&netcat_to(
        44444,
        "a1.sources.r.max-line-lenght = 7\na1.channels.c.type = file\na1.channels.c.dataDirs = $DIR/data\n\
         a1.sinks = k\na1.sinks.k.type = hbase\na1.sinks.k.channel = c\n",
    ));
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("validate.properties:7:1: unknown key: a1.sources.r.max-line-lenght"), "{said}");
    assert!(said.contains("did you mean max-line-length?"), "{said}");
    assert!(said.contains("validate.properties:11:1: error: a1.sinks.k.type: hbase is not built yet."), "{said}");
    assert!(said.ends_with("2 to fix\n"), "{said}");
    assert!(!bench.path("data").exists());
}

#[test]
fn a_refused_configuration_ends_with_two_and_starts_nothing() {
    let bench = Bench::new();
    let port = free_port();
    let text = netcat_to(port, &format!("{MEMORY}a1.channels.c.capacity = many\n{LOGGER}"));
    let (code, log) = bench.start(&bench.conf("a.properties", &text), &[]).end();
    assert_eq!(code, 2, "{log}");
    assert!(log.contains("a.properties:8:1: error: a1.channels.c.capacity: `many` is not a whole number"), "{log}");
    assert!(log.contains("1 to fix"), "{log}");
    let (code, said) = bench.run(&["agent", "-n", "a1", "-f", "/nowhere.properties"]);
    assert!(code == 2 && said.contains("/nowhere.properties"), "{code} {said}");
}

#[test]
fn drop_broken_runs_the_rest_and_counts_what_is_missing() {
    let bench = Bench::new();
    let (port, metrics) = (free_port(), free_port());
    let text = netcat_to(port, &format!("{MEMORY}{FILE_ROLL}a1.sinks = k bad\na1.sinks.bad.type = irc\n"));
    let conf = bench.conf("a.properties", &text);
    std::fs::create_dir(bench.path("out")).unwrap();
    let define = format!("-Dflume.monitoring.port={metrics}");
    let agent = bench.start(&conf, &["--drop-broken", "-Dflume.monitoring.type=http", &define]);
    agent.wait_for("source r started");
    send(port, &["hello"]);
    let json = get(metrics, "/metrics");
    assert!(json.contains("\"DroppedComponents\":\"sinks.bad\""), "{json}");
    assert!(json.contains("\"EventAcceptedCount\":\"1\""), "{json}");
    let (code, log) = agent.stop();
    assert_eq!(code, 0, "{log}");
    assert!(log.contains("ERROR") && log.contains("irc is not built yet"), "{log}");
}

fn get(port: u16, path: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn flumes_example_runs_and_shows_events_as_flume_does() {
    let bench = Bench::new();
    let port = free_port();
    let conf = bench.conf("example.properties", &netcat_to(port, &format!("{MEMORY}{LOGGER}")));
    let agent = bench.start(&conf, &["-Xmx64m", "-C", "lib", "-Dflume.root.logger=INFO,console"]);
    agent.wait_for("source r started");
    send(port, &["Hello world!"]);
    agent.wait_for("Event: { headers:{} body: 48 65 6C 6C 6F 20 77 6F 72 6C 64 21             Hello world! }");
    let (code, log) = agent.stop();
    assert_eq!(code, 0, "{log}");
    assert!(log.contains("-C") || log.contains("--classpath, -X accepted without effect"), "{log}");
    assert!(log.trim_end().ends_with("stopped: nothing remained"), "{log}");
}

#[test]
fn events_that_a_memory_channel_loses_are_counted_in_the_last_line_and_the_exit_code() {
    let bench = Bench::new();
    let port = free_port();
    let agent = bench.start(&bench.conf("a.properties", &netcat_to(port, MEMORY)), &[]);
    agent.wait_for("source r started");
    send(port, &["one", "two"]);
    let (code, log) = agent.stop();
    assert_eq!(code, 3, "{log}");
    assert!(log.trim_end().ends_with("2 events in memory channel c are lost (a `file` channel keeps them)"), "{log}");
}

#[test]
fn events_of_a_file_channel_survive_kill_nine_sealed_and_come_with_the_next_start() {
    let bench = Bench::new();
    let port = free_port();
    let key = bench.path("keys");
    let (code, said) = bench.run(&["keys", "generate", key.to_str().unwrap()]);
    assert_eq!(code, 0, "{said}");
    assert_eq!(bench.run(&["keys", "generate", key.to_str().unwrap()]).0, 1, "never overwritten");
    let channel = "a1.channels.c.type = file\na1.channels.c.dataDirs = $DIR/data1,$DIR/data2\n\
                   a1.channels.c.checkpointDir = $DIR/check\na1.channels.c.minimumRequiredSpace = 1048576\n\
                   a1.channels.c.encryption.activeKey = k1\na1.channels.c.encryption.keyProvider.keyFile = $DIR/keys\n";
    let agent = bench.start(&bench.conf("a.properties", &netcat_to(port, channel)), &[]);
    agent.wait_for("source r started");
    send(port, &["a secret line", "another"]);
    agent.signal("-KILL");
    agent.end();
    std::fs::create_dir(bench.path("out")).unwrap();
    let conf = bench.conf("b.properties", &netcat_to(port, &format!("{channel}{FILE_ROLL}")));
    let agent = bench.start(&conf, &[]);
    let out = || -> String {
        let files = std::fs::read_dir(bench.path("out")).unwrap();
        files.map(|file| std::fs::read_to_string(file.unwrap().path()).unwrap()).collect()
    };
    until("both lines in the file", || out() == "a secret line\nanother\n", || agent.log());
    let (code, log) = agent.stop();
    assert_eq!(code, 0, "{log}");
    let mut search = Command::new("grep");
    search.args(["-rl", "secret"]).args([bench.path("data1"), bench.path("data2")]);
    let found = search.output().unwrap();
    assert_eq!(String::from_utf8_lossy(&found.stdout), "", "no plain text in any file");
    // The key is gone: one clear error, and nothing is touched.
    std::fs::remove_file(&key).unwrap();
    let (code, log) = bench.start(&conf, &[]).end();
    assert_eq!(code, 1, "{log}");
    assert!(log.contains("penstock keys generate"), "{log}");
}

#[test]
fn a_second_process_on_the_same_directories_is_refused_by_name() {
    let bench = Bench::new();
    let channel =
        "a1.channels.c.type = file\na1.channels.c.dataDirs = $DIR/data\na1.channels.c.minimumRequiredSpace = 1048576\n";
    let first = bench.start(&bench.conf("a.properties", &netcat_to(free_port(), channel)), &[]);
    first.wait_for("source r started");
    let second = Bench { dir: tempfile::tempdir().unwrap() };
    let text = netcat_to(free_port(), channel).replace("$DIR", bench.dir.path().to_str().unwrap());
    let (code, log) = second.start(&second.conf("b.properties", &text), &[]).end();
    assert_eq!(code, 1, "{log}");
    assert!(log.contains("in use by another process"), "{log}");
    assert_eq!(first.stop().0, 0);
}

#[test]
fn a_reload_moves_to_the_new_file_and_an_invalid_one_keeps_the_old_running() {
    let bench = Bench::new();
    let (old, new) = (free_port(), free_port());
    let conf = bench.conf("a.properties", &netcat_to(old, MEMORY));
    let agent = bench.start(&conf, &["-i", "1"]);
    agent.wait_for("source r started");
    send(old, &["kept in memory over the reload"]);
    bench.conf("a.properties", &netcat_to(new, "a1.channels.c.type = jdbc\n"));
    agent.wait_for("the changed configuration does not run (1 to fix); the old one runs on");
    send(old, &["still there"]);
    std::fs::create_dir(bench.path("out")).unwrap();
    bench.conf("a.properties", &netcat_to(new, &format!("{MEMORY}{FILE_ROLL}")));
    until("the new port", || TcpStream::connect(("127.0.0.1", new)).is_ok(), || agent.log());
    assert!(TcpStream::connect(("127.0.0.1", old)).is_err(), "the old port is closed");
    send(new, &["after"]);
    let (code, log) = agent.stop();
    assert_eq!(code, 0, "{log}");
    let out: String = std::fs::read_dir(bench.path("out"))
        .unwrap()
        .map(|file| std::fs::read_to_string(file.unwrap().path()).unwrap())
        .collect();
    assert_eq!(out, "kept in memory over the reload\nstill there\nafter\n");
}

#[test]
fn a_source_whose_port_is_taken_is_tried_again_until_it_is_free() {
    let bench = Bench::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let agent = bench.start(&bench.conf("a.properties", &netcat_to(port, &format!("{MEMORY}{LOGGER}"))), &[]);
    agent.wait_for("source r did not start, trying again in 3 s");
    drop(taken);
    agent.wait_for("source r started");
    send(port, &["hello"]);
    assert_eq!(agent.stop().0, 0);
}
