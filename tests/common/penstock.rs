//! Penstock's own agent as a process: started from a configuration text, killed, stopped, asked for its counters.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::flume::accepts;
use crate::process::Process;
use crate::{http, ports, repository};

const START_LIMIT: Duration = Duration::from_secs(60);
const STOP_LIMIT: Duration = Duration::from_secs(60);

static BINARY: OnceLock<PathBuf> = OnceLock::new();

/// Takes this binary instead of the one under test; to be said before the first agent is started.
pub fn use_binary(path: &Path) -> std::io::Result<()> {
    let path = fs::canonicalize(path)?;
    let taken = BINARY.get_or_init(|| path.clone());
    assert_eq!(*taken, path, "an agent was started from another binary already");
    Ok(())
}

/// The binary under test: `PENSTOCK_BIN`, or the one that Cargo builds now (once per test process).
pub fn binary() -> &'static Path {
    BINARY.get_or_init(|| {
        if let Some(path) = std::env::var_os("PENSTOCK_BIN") {
            let path = PathBuf::from(path);
            assert!(path.is_file(), "PENSTOCK_BIN names no file: {}", path.display());
            return fs::canonicalize(&path).expect("resolve PENSTOCK_BIN");
        }
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let status = Command::new(cargo)
            .args(["build", "--quiet", "--package", "agent", "--bin", "penstock"])
            .current_dir(repository())
            .status()
            .expect("run cargo to build the agent");
        assert!(status.success(), "the agent does not build");
        // A test runs from TARGET/PROFILE/deps/, the prover from TARGET/PROFILE/.
        let own = std::env::current_exe().expect("a process has a path");
        let mut built = own.ancestors().skip(2).map(|target| target.join("debug/penstock"));
        built.find(|path| path.is_file()).expect("cargo built the agent into the target folder")
    })
}

/// Runs a subcommand to its end (`validate`, `keys generate` …).
pub fn run(arguments: &[&str]) -> Output {
    let mut command = Command::new("timeout");
    command.args(["-k", "5", "60"]).arg(binary()).args(arguments);
    command.env_remove("HADOOP_CONF_DIR").output().expect("run penstock")
}

pub struct Agent {
    process: Option<Process>,
    arguments: Vec<String>,
    env: Vec<(&'static str, String)>,
    ports: Vec<u16>,
    metrics_port: u16,
    log: PathBuf,
    // Last, so that the process is gone before its directory is.
    directory: TempDir,
}

impl Agent {
    /// An agent that is not started yet. `$DIR` in the text becomes its own directory; `ports` are those its sources listen on.
    pub fn new(properties: &str, ports: &[u16]) -> Agent {
        let directory = TempDir::with_prefix("penstock-agent-").expect("create a directory for the agent");
        let root = directory.path();
        let configuration = root.join("conf");
        fs::create_dir_all(&configuration).expect("create the agent's conf folder");
        let metrics_port = ports::free();
        let file = configuration.join("agent.properties");
        let arguments = ["agent", "--conf", &configuration.display().to_string(), "--conf-file"]
            .into_iter()
            .chain([file.display().to_string().as_str(), "--name", "a1", "-Dflume.monitoring.type=http"])
            .map(str::to_owned)
            .chain([format!("-Dflume.monitoring.port={metrics_port}")])
            .collect();
        let agent = Agent {
            process: None,
            arguments,
            env: Vec::new(),
            ports: ports.to_vec(),
            metrics_port,
            log: root.join("penstock.log"),
            directory,
        };
        agent.configure(properties);
        agent
    }

    pub fn start_new(properties: &str, ports: &[u16]) -> Agent {
        let mut agent = Agent::new(properties, ports);
        agent.start();
        agent
    }

    /// Writes another configuration text; a running agent sees it at its next poll.
    pub fn configure(&self, properties: &str) {
        let text = properties.replace("$DIR", &self.directory().display().to_string());
        fs::write(self.configuration_file(), text).expect("write the agent's configuration");
    }

    /// The environment of its next start.
    pub fn env(&mut self, key: &'static str, value: String) {
        self.env.push((key, value));
    }

    pub fn argument(&mut self, argument: &str) {
        self.arguments.push(argument.to_owned());
    }

    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub fn configuration_file(&self) -> PathBuf {
        self.directory().join("conf/agent.properties")
    }

    /// Leaves the agent's directory behind, as evidence.
    pub fn keep_directory(&mut self) -> &Path {
        self.directory.disable_cleanup(true);
        self.directory.path()
    }

    /// Starts the agent and waits until every source's port accepts and the counters answer.
    pub fn start(&mut self) {
        self.launch();
        let (ports, metrics_port) = (self.ports.clone(), self.metrics_port);
        let process = self.process.as_mut().expect("just launched");
        process.await_ready("the counters answer", START_LIMIT, |_| http::get(metrics_port, "/metrics").map(drop));
        for port in ports {
            process.await_ready(&format!("port {port} accepts"), START_LIMIT, |_| accepts(port));
        }
    }

    /// Starts the agent without waiting for anything, for tests in which it refuses or is killed while it starts.
    pub fn launch(&mut self) {
        assert!(self.process.is_none(), "the agent runs already");
        let process = Process::start("penstock", self.directory.path(), binary(), &self.arguments, &self.env);
        self.process = Some(process);
    }

    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("the agent was started")
    }

    /// `kill -9`; gone when this returns.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    /// SIGTERM, and the exit code.
    pub fn stop(&mut self) -> i32 {
        let mut process = self.process.take().expect("the agent was started");
        process.stop(STOP_LIMIT).code().unwrap_or(-1)
    }

    /// Everything printed over all starts.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Flume's counters by component, `None` while the agent does not answer.
    pub fn counters(&self) -> Option<Value> {
        let answer = http::get(self.metrics_port, "/metrics")?;
        serde_json::from_slice(&answer.body).ok()
    }

    /// One counter, which Flume writes as text: `counter("CHANNEL.c1", "ChannelSize")`.
    pub fn counter(&self, component: &str, name: &str) -> Option<u64> {
        http::counter(&http::get(self.metrics_port, "/metrics")?, component, name)
    }
}
