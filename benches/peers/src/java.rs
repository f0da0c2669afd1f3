//! Peers that run on Java, each in a process of its own: Flume's file channel, and a Kafka broker.
//!
//! Their jars come from Maven Central by the coordinates of a `pom.xml` (Flume's is the one of the system tests): Maven fetches
//! them once and keeps them. A driver beside this program is the load; Java compiles it as it starts. The process stays for all
//! rounds, so that what is measured is compiled code, and it ends with its standard input.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use crate::load::{Load, Round};

/// A peer by name, and where it is.
pub(crate) struct Server {
    /// The name of this peer, and of its folder.
    pub(crate) name: &'static str,
    driver: &'static str,
    /// The folder of its `pom.xml`. Both are relative to this package.
    module: &'static str,
    /// Tails of queues can be taken from, topics of a broker are only put into.
    takes: bool,
}

pub(crate) static FLUME: Server = Server {
    name: "flume",
    driver: "flume/FileChannelDriver.java",
    module: "../../tests/peers/flume-agent",
    takes: true,
};
pub(crate) static KAFKA: Server =
    Server { name: "kafka", driver: "kafka/BrokerDriver.java", module: "kafka", takes: false };
pub(crate) static SERVERS: [&Server; 2] = [&FLUME, &KAFKA];

/// Room for what Flume's queue keeps between two checkpoints.
const HEAP: &str = "-Xmx2g";

pub(crate) struct Java {
    pub(crate) server: &'static Server,
    process: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Java {
    pub(crate) fn start(server: &'static Server) -> Result<Java, String> {
        let own = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut process = Command::new("java")
            .args([HEAP, "-cp", &class_path(&own.join(server.module))?])
            .arg(own.join(server.driver))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("java: {error}; a JDK of version 17 or newer is needed"))?;
        let (to, from) = (process.stdin.take(), process.stdout.take());
        let (Some(to), Some(from)) = (to, from) else { return Err("java: no pipes".to_owned()) };
        let mut java = Java { server, process, to, from: BufReader::new(from) };
        match java.line()?.as_str() {
            "ready" => Ok(java),
            other => Err(format!("{}: said {other:?} when it started", server.driver)),
        }
    }

    /// Each kind of load for a while, so that the compiler has seen all of it.
    pub(crate) fn warm_up(&mut self, folder: &Path, load: &Load, time: Duration) -> Result<(), String> {
        let kinds: &[u32] = if self.server.takes { &[0, 1] } else { &[0] };
        for &consumers in kinds {
            let load = Load { producers: 8, consumers, time: time / kinds.len() as u32, ..*load };
            self.round(folder, &load)?;
        }
        Ok(())
    }

    /// One round in an empty folder, which is removed afterwards.
    pub(crate) fn round(&mut self, folder: &Path, load: &Load) -> Result<Round, String> {
        crate::load::empty(folder)?;
        let Load { producers, consumers, batch, size, time, .. } = load;
        let question = format!("{} {producers} {consumers} {batch} {size} {}\n", folder.display(), time.as_secs_f64());
        let asked = self.to.write_all(question.as_bytes()).and_then(|()| self.to.flush());
        asked.map_err(|error| format!("{}: {error}", self.server.name))?;
        let answer = self.line()?;
        crate::load::remove(folder)?;
        parse(&answer).ok_or_else(|| format!("{}: {answer}", self.server.name))
    }

    /// The next line that is an answer: the peer's classes may print as well.
    fn line(&mut self) -> Result<String, String> {
        let name = self.server.name;
        loop {
            let mut line = String::new();
            match self.from.read_line(&mut line) {
                Ok(0) => return Err(format!("{name}: the Java process ended; its reason is above")),
                Ok(_) => {}
                Err(error) => return Err(format!("{name}: {error}")),
            }
            let line = line.trim_end();
            if ["ready", "done ", "failed "].iter().any(|begin| line.starts_with(begin)) {
                return Ok(line.to_owned());
            }
        }
    }
}

impl Drop for Java {
    fn drop(&mut self) {
        // It may be in the middle of a round that nobody waits for.
        let _ended_already = self.process.kill();
        let _status = self.process.wait();
    }
}

fn parse(answer: &str) -> Option<Round> {
    let numbers: Vec<u64> = answer.strip_prefix("done ")?.split(' ').map(str::parse).collect::<Result<_, _>>().ok()?;
    let [put_events, put_ns, take_events, take_ns, cpu_ns, commits] = numbers[..] else { return None };
    Some(Round {
        put_events,
        put_time: Duration::from_nanos(put_ns),
        take_events,
        take_time: Duration::from_nanos(take_ns),
        cpu: Duration::from_nanos(cpu_ns),
        commits,
    })
}

/// The jars of a server. Maven is asked once; its answer stays until the coordinates change.
fn class_path(module: &Path) -> Result<String, String> {
    let (pom, answer) = (module.join("pom.xml"), module.join("target/classpath"));
    let parent = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/peers/pom.xml");
    if !is_fresh(&answer, &[parent, pom.clone()]) {
        let output = Command::new("mvn")
            .args(["-q", "-B", "-ntp", "-f"])
            .arg(&pom)
            .arg("process-resources")
            .output()
            .map_err(|error| format!("mvn: {error}; Maven fetches the real servers from Maven Central"))?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stdout);
            return Err(format!("mvn cannot resolve {}:\n{text}", pom.display()));
        }
    }
    let text = std::fs::read_to_string(&answer).map_err(|error| format!("{}: {error}", answer.display()))?;
    Ok(text.trim().to_owned())
}

fn is_fresh(answer: &Path, sources: &[PathBuf]) -> bool {
    let changed = |path: &Path| std::fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    let Some(answered) = changed(answer) else { return false };
    sources.iter().all(|source| changed(source).is_some_and(|time| time <= answered))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_six_numbers_and_a_failure_is_none() {
        let round = parse("done 1000 2000000000 30 4000000000 5000000000 11").unwrap();
        assert_eq!((round.put_events, round.take_events, round.commits), (1000, 30, 11));
        assert_eq!((round.put_ev_s(), round.take_ev_s()), (500.0, 7.5));
        assert!(parse("failed java.io.IOException: Usable space exhausted").is_none());
        assert!(parse("done 1 2").is_none());
    }
}
