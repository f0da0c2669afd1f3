//! An agent under measurement: Penstock's or Flume's, started from a properties text and watched from outside.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use system_tests::flume::FlumeAgent;
use system_tests::penstock::Agent;

use super::load::{Load, Sent};
use crate::host;

/// What is accepted is delivered within this, or something is wrong.
const DRAINED_WITHIN: Duration = Duration::from_secs(300);
/// An agent says what it counted within this.
const ANSWERED_WITHIN: Duration = Duration::from_secs(30);
/// Between two looks at the counters: each costs the agent something, Flume a millisecond.
const LOOK: Duration = Duration::from_millis(100);
/// The same while a drain is timed, which takes a second.
const LOOK_CLOSELY: Duration = Duration::from_millis(10);

/// As Flume's own users give it: room for the queue of its file channel, and the JVM's own choice of compilers.
const JVM: [&str; 2] = ["-Xmx2g", "-XX:MaxDirectMemorySize=512m"];

pub(crate) enum Subject {
    Penstock(Agent),
    Flume(FlumeAgent),
}

/// What an agent did with a load, from the first event sent to the last one delivered.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Passed {
    /// Events a second that the sink delivered while the load went on.
    pub(crate) ev_s: f64,
    /// CPU seconds of the agent alone, and events delivered for them.
    pub(crate) cpu: f64,
    pub(crate) events: u64,
    pub(crate) sent: Sent,
    /// Part of the host's processors that somebody used while the load went on.
    pub(crate) busy: Option<f64>,
}

impl Subject {
    pub(crate) fn penstock(properties: &str, ports: &[u16]) -> Subject {
        Subject::Penstock(Agent::start_new(properties, ports))
    }

    pub(crate) fn flume(properties: &str, ports: &[u16]) -> Subject {
        Subject::Flume(FlumeAgent::start_as(properties, ports, JVM.map(str::to_owned).to_vec()))
    }

    fn counter(&self, component: &str, name: &str) -> Option<u64> {
        match self {
            Subject::Penstock(agent) => agent.counter(component, name),
            Subject::Flume(agent) => agent.counter(component, name),
        }
    }

    /// Events that the sink has delivered since the agent started.
    fn delivered(&self) -> Result<u64, String> {
        let end = Instant::now() + ANSWERED_WITHIN;
        loop {
            // An agent that has only just started does not know its sink yet.
            if let Some(events) = self.counter("SINK.k1", "EventDrainSuccessCount") {
                return Ok(events);
            }
            if Instant::now() > end {
                return Err("the agent does not say what its sink has delivered".to_owned());
            }
            thread::sleep(LOOK);
        }
    }

    fn cpu(&mut self) -> Result<f64, String> {
        let id = match self {
            Subject::Penstock(agent) => agent.process().id(),
            Subject::Flume(agent) => agent.process().id(),
        };
        host::cpu_of(id).map(|cpu| cpu.as_secs_f64()).ok_or_else(|| format!("process {id} is gone"))
    }

    /// Sends for `warmup` and for `time`, and waits until all of it is delivered.
    pub(crate) fn pass(&mut self, load: &Load, port: u16, warmup: Duration, time: Duration) -> Result<Passed, String> {
        let (cpu, before) = (self.cpu()?, self.delivered()?);
        let sending = load.start(port, None);
        thread::sleep(warmup);
        // Flume's sink sleeps for up to five seconds after its channel was empty.
        self.wait_for(before + 1, LOOK)?;
        let (begin, first, busy) = (Instant::now(), self.delivered()?, host::busy());
        thread::sleep(time);
        let (last, elapsed, busy_then) = (self.delivered()?, begin.elapsed(), host::busy());
        let sent = sending.stop()?;
        self.wait_for(before + sent.accepted, LOOK)?;
        Ok(Passed {
            ev_s: (last - first) as f64 / elapsed.as_secs_f64(),
            cpu: self.cpu()? - cpu,
            events: sent.accepted,
            sent,
            busy: busy.zip(busy_then).and_then(|(begin, end)| end.since(begin)),
        })
    }

    fn wait_for(&self, delivered: u64, look: Duration) -> Result<(), String> {
        let end = Instant::now() + DRAINED_WITHIN;
        loop {
            let now = self.delivered()?;
            if now >= delivered {
                return Ok(());
            }
            if Instant::now() > end {
                return Err(format!("{} accepted events are not delivered", delivered - now));
            }
            thread::sleep(look);
        }
    }

    /// How fast a sink that has just been started drains `events` events, in events a second: from the first that is
    /// delivered until nine of ten are, since the last ones wait for more.
    pub(crate) fn drain(&mut self, events: u64) -> Result<Passed, String> {
        let cpu = self.cpu()?;
        self.wait_for(1, LOOK_CLOSELY)?;
        let (begin, first) = (Instant::now(), self.delivered()?);
        self.wait_for(events / 10 * 9, LOOK_CLOSELY)?;
        let (last, elapsed) = (self.delivered()?, begin.elapsed());
        self.wait_for(events, LOOK)?;
        Ok(Passed {
            ev_s: last.saturating_sub(first) as f64 / elapsed.as_secs_f64(),
            cpu: self.cpu()? - cpu,
            events,
            sent: Sent::default(),
            busy: None,
        })
    }

    /// SIGTERM, and the end.
    pub(crate) fn stop(self) {
        match self {
            Subject::Penstock(mut agent) => drop(agent.stop()),
            Subject::Flume(mut agent) => agent.stop(),
        }
    }
}

impl Passed {
    pub(crate) fn cpu_s_per_gib(&self, size: u64) -> f64 {
        self.cpu / (self.events as f64 * size as f64) * f64::from(1 << 30)
    }
}

/// Where the binary of the agent is: beside this program, as Cargo puts both.
pub(crate) fn penstock_beside() -> Result<PathBuf, String> {
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    let path = own.parent().unwrap_or(Path::new(".")).join("penstock");
    if path.is_file() {
        return Ok(path);
    }
    Err(format!("{} is not there: cargo build --release -p agent, or name it with --penstock", path.display()))
}
