//! The real Apache Flume 1.11: an agent from a properties text, and a sender that uses Flume's own SDK.

use std::fs;
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;

use crate::events::{self, Event};
use crate::java::{self, Module};
use crate::process::Process;
use crate::{http, ports, repository};

const START_LIMIT: Duration = Duration::from_secs(60);
/// An agent whose HDFS is gone does not stop by itself; after this it is killed.
const STOP_LIMIT: Duration = Duration::from_secs(20);

/// One console appender. Flume's own classes at INFO, because the start of a source is a line to wait for.
const LOG4J2: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<Configuration status="ERROR">
  <Appenders>
    <Console name="console" target="SYSTEM_OUT"><PatternLayout pattern="%d{HH:mm:ss,SSS} %p %c{1}: %m%n%ex{3}"/></Console>
  </Appenders>
  <Loggers>
    <Logger name="org.apache.hadoop" level="WARN"/>
    <Logger name="org.apache.flume.source.NettyAvro" level="WARN"/>
    <Root level="INFO"><AppenderRef ref="console"/></Root>
  </Loggers>
</Configuration>
"#;

pub struct FlumeAgent {
    process: Process,
    metrics_port: u16,
    directory: TempDir,
}

impl FlumeAgent {
    /// Starts agent `a1` of `properties` and waits until each of `ports` accepts. `$DIR` in the text becomes the agent's own
    /// directory.
    pub fn start(properties: &str, ports: &[u16]) -> FlumeAgent {
        let mut jvm = java::small(256);
        jvm.push("-XX:MaxDirectMemorySize=128m".to_owned());
        FlumeAgent::start_as(properties, ports, jvm)
    }

    /// The same in a JVM with other flags: those of the tests make it small, not fast.
    pub fn start_as(properties: &str, ports: &[u16], jvm: Vec<String>) -> FlumeAgent {
        let directory = TempDir::with_prefix("penstock-flume-").expect("create a directory for Flume");
        let root = directory.path().to_path_buf();
        let configuration = root.join("conf");
        fs::create_dir_all(&configuration).expect("create Flume's conf folder");
        fs::write(configuration.join("log4j2.xml"), LOG4J2).expect("write log4j2.xml");
        let text = properties.replace("$DIR", &root.display().to_string());
        fs::write(configuration.join("agent.properties"), text).expect("write agent.properties");
        let class_path = format!("{}:{}", configuration.display(), java::class_path(Module::FlumeAgent));
        let metrics_port = ports::free();
        let mut arguments = jvm;
        arguments.extend([
            "-Dflume.monitoring.type=http".to_owned(),
            format!("-Dflume.monitoring.port={metrics_port}"),
            "-cp".to_owned(),
            class_path,
        ]);
        let file = configuration.join("agent.properties").display().to_string();
        for text in ["org.apache.flume.node.Application", "--no-reload-conf", "--conf-file", &file, "--name", "a1"] {
            arguments.push(text.to_owned());
        }
        let mut process = Process::start("flume", &root, &java::program(), &arguments, &[]);
        for port in ports {
            process.await_ready(&format!("port {port} accepts"), START_LIMIT, |_| accepts(*port));
        }
        FlumeAgent { process, metrics_port, directory }
    }

    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// One of Flume's own counters; `None` while it does not answer.
    pub fn counter(&self, component: &str, name: &str) -> Option<u64> {
        let answer = http::get(self.metrics_port, "/metrics")?;
        http::counter(&answer, component, name)
    }

    /// SIGTERM, so that sinks close their files; SIGKILL when that does not help.
    pub fn stop(&mut self) {
        self.process.stop_or_kill(STOP_LIMIT);
    }
}

/// Whether something listens on a port of this machine.
pub fn accepts(port: u16) -> Option<()> {
    TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok().map(drop)
}

/// How `SdkClient.java` talks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Avro,
    /// Avro with `compression-type = deflate`. The source must have it too: a real client hangs otherwise.
    AvroDeflate,
}

/// A real Flume client that sends `events` in batches, sends a failed batch again, and says which numbers are acknowledged.
pub struct SdkClient {
    process: Process,
    _directory: TempDir,
}

/// What a client said at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SdkReport {
    pub acknowledged: u64,
    /// Batches sent again after an error; each may have been stored twice.
    pub batches_resent: u64,
}

impl SdkClient {
    pub fn start(port: u16, protocol: Protocol, batch_size: usize, events: &[Event]) -> SdkClient {
        let directory = TempDir::with_prefix("penstock-sdk-").expect("create a directory for the client");
        let file = directory.path().join("events");
        events::write_file(&file, events);
        let source: PathBuf = repository().join("tests/peers/flume-client/SdkClient.java");
        let mut arguments = java::arguments(256, &[], &java::class_path(Module::FlumeClient));
        arguments.extend([
            source.display().to_string(),
            port.to_string(),
            if protocol == Protocol::AvroDeflate { "deflate" } else { "none" }.to_owned(),
            batch_size.to_string(),
            file.display().to_string(),
        ]);
        let process = Process::start("sdk-client", directory.path(), &java::program(), &arguments, &[]);
        SdkClient { process, _directory: directory }
    }

    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Number of events acknowledged so far. They are acknowledged in order, from 0.
    pub fn acknowledged(&self) -> u64 {
        let log = self.process.log();
        let complete = log.rfind('\n').map_or("", |end| &log[..end]);
        let last = complete.lines().rev().find_map(|line| line.strip_prefix("acknowledged "));
        last.and_then(|number| number.parse().ok()).unwrap_or(0)
    }

    /// Waits for the end of the sender and returns its own account.
    pub fn finish(mut self, limit: Duration) -> SdkReport {
        let status = self.process.await_end(limit);
        assert!(status.success(), "the SDK client failed: {status}\n{}", self.process.last_lines());
        let log = self.process.log();
        let line = log.lines().rev().find_map(|line| line.strip_prefix("done resent ")).unwrap_or_default();
        let batches_resent = line.parse().expect("the client's last line tells the batches it sent again");
        SdkReport { acknowledged: self.acknowledged(), batches_resent }
    }
}
