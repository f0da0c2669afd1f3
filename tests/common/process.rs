//! One foreign process: started, watched, signalled, and never left behind.
//!
//! `setpriv --pdeathsig KILL` makes the kernel kill the child when the **thread** that started it ends, so a process must be
//! started by a thread that lives as long as the process shall. `Drop` kills and waits. All output goes to one log file in
//! the process's own directory, which also answers the probes.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::until;

/// Variables a child inherits. Everything else (`HADOOP_CONF_DIR`, `JAVA_TOOL_OPTIONS` …) would make a test depend on
/// who runs it.
const INHERITED: [&str; 4] = ["PATH", "JAVA_HOME", "LANG", "TMPDIR"];
const LOG_LINES_IN_FAILURE: usize = 30;

pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    ended: Option<ExitStatus>,
    killed: bool,
}

impl Process {
    /// Starts `program` in `directory`, with its output appended to `directory/NAME.log`.
    pub fn start(
        name: &str,
        directory: &Path,
        program: &Path,
        arguments: &[String],
        env: &[(&str, String)],
    ) -> Process {
        fs::create_dir_all(directory).expect("create the directory of a process");
        let log = directory.join(format!("{name}.log"));
        let output = File::options().create(true).append(true).open(&log).expect("open the log of a process");
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(program).args(arguments);
        command.env_clear().current_dir(directory).env("HOME", directory);
        for key in INHERITED {
            if let Some(value) = std::env::var_os(key) {
                command.env(key, value);
            }
        }
        command.envs(env.iter().map(|(key, value)| (key, value)));
        command.stdin(Stdio::null()).stdout(output.try_clone().expect("share the log")).stderr(output);
        // A group of its own: Ctrl-C in a terminal reaches the test, and the test's end reaches the child.
        let child = command.process_group(0).spawn().unwrap_or_else(|error| panic!("cannot start {name}: {error}"));
        Process { name: name.to_owned(), child, log, ended: None, killed: false }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether the process still runs; a stopped one does.
    pub fn is_running(&mut self) -> bool {
        self.exit_status().is_none()
    }

    pub fn exit_status(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().expect("ask for a child's state");
        }
        self.ended
    }

    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// Everything the process has printed, over all its starts in this directory.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Length of the log now; with [`Process::log_since`] a probe sees only what is new.
    pub fn log_length(&self) -> u64 {
        fs::metadata(&self.log).map_or(0, |meta| meta.len())
    }

    pub fn log_since(&self, offset: u64) -> String {
        let bytes = fs::read(&self.log).unwrap_or_default();
        let start = usize::try_from(offset).expect("a log fits into memory").min(bytes.len());
        String::from_utf8_lossy(&bytes[start..]).into_owned()
    }

    /// Polls `probe` until it gives a value; panics with the end of the log when the process has died or time is up.
    pub fn await_ready<T>(&mut self, what: &str, limit: Duration, mut probe: impl FnMut(&Process) -> Option<T>) -> T {
        let found = until_or(limit, || {
            if let Some(value) = probe(self) {
                return Some(Ok(value));
            }
            self.exit_status().map(|status| Err(format!("ended with {status}")))
        });
        match found {
            Some(Ok(value)) => value,
            Some(Err(why)) => panic!("{} {why} before: {what}\n{}", self.name, self.last_lines()),
            None => panic!("{}: waited {limit:?} in vain: {what}\n{}", self.name, self.last_lines()),
        }
    }

    /// Waits until the log holds `text` at or after `offset` and returns that line's remainder.
    pub fn await_log(&mut self, text: &str, offset: u64, limit: Duration) -> String {
        self.await_ready(&format!("log line with `{text}`"), limit, |process| {
            let log = process.log_since(offset);
            // Only complete lines: a port number may be half written.
            let complete = &log[..=log.rfind('\n')?];
            let after = complete.find(text)? + text.len();
            complete[after..].lines().next().map(str::to_owned).or(Some(String::new()))
        })
    }

    pub fn last_lines(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        let skip = lines.len().saturating_sub(LOG_LINES_IN_FAILURE);
        format!("--- last lines of {} ---\n{}\n---", self.log.display(), lines[skip..].join("\n"))
    }

    /// SIGKILL, and gone when this returns. Ends a stopped process too.
    pub fn kill(&mut self) {
        self.killed = true;
        if self.is_running() {
            self.child.kill().expect("kill a child");
            self.ended = Some(self.child.wait().expect("wait for a killed child"));
        }
    }

    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// SIGTERM, then waits for the end. Panics when the process is still there after `limit`.
    pub fn stop(&mut self, limit: Duration) -> ExitStatus {
        self.terminate();
        self.await_end(limit)
    }

    /// SIGTERM, and SIGKILL when that has not helped within `limit`.
    pub fn stop_or_kill(&mut self, limit: Duration) {
        self.terminate();
        if until_or(limit, || self.exit_status()).is_none() {
            self.kill();
        }
    }

    pub fn await_end(&mut self, limit: Duration) -> ExitStatus {
        let status = until_or(limit, || self.exit_status());
        status.unwrap_or_else(|| panic!("{} has not ended within {limit:?}\n{}", self.name, self.last_lines()))
    }

    /// Resident memory in bytes, from the kernel.
    pub fn resident_bytes(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("0 kB");
        line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap_or(0) * 1024
    }

    fn signal(&self, signal: Signal) {
        let id = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).expect("a child has a process id");
        // A child that is already gone is reported by whoever waits for it.
        match kill_process(id, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => panic!("cannot signal {}: {error}", self.name),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // In a failing test the log is the evidence, and its directory is about to go.
        if std::thread::panicking() && !self.killed {
            eprintln!("{}", self.last_lines());
        }
        if self.ended.is_none() {
            drop(self.child.kill());
            drop(self.child.wait());
        }
    }
}

/// As [`until`], with `None` instead of a panic at the end.
fn until_or<T>(limit: Duration, mut probe: impl FnMut() -> Option<T>) -> Option<T> {
    let end = std::time::Instant::now() + limit;
    let mut late = false;
    until("the outer limit", limit + Duration::from_secs(60), || {
        let value = probe();
        if value.is_some() {
            return Some(value);
        }
        // One more probe after the limit, so that a slow machine does not fail on the last pause.
        std::mem::replace(&mut late, std::time::Instant::now() >= end).then_some(None)
    })
}
