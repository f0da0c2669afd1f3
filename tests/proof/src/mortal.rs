//! A load in a process that is going to die, and the judgement over what it leaves behind.

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus};

use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

use crate::ledger::{Fact, Ledger};
use crate::load::{Setting, drain};

/// Dies with this, if not before.
pub(crate) struct Mortal {
    child: Child,
    input: Option<ChildStdin>,
    lines: BufReader<ChildStdout>,
    ended: bool,
}

impl Mortal {
    pub(crate) fn start(command: &mut Command) -> Result<Mortal, String> {
        let mut child = command.spawn().map_err(|error| format!("{:?}: {error}", command.get_program()))?;
        let lines = BufReader::new(child.stdout.take().ok_or("a load without its output")?);
        let input = child.stdin.take();
        Ok(Mortal { child, input, lines, ended: false })
    }

    /// What it says next; `None` once it is silent. A last line without its end was cut by the kill and says nothing.
    pub(crate) fn fact(&mut self) -> Result<Option<Fact>, String> {
        let mut line = String::new();
        let is_whole = self.lines.read_line(&mut line).is_ok_and(|length| length > 0) && line.ends_with('\n');
        if !is_whole {
            return Ok(None);
        }
        Fact::parse(line.trim_end_matches('\n')).map(Some).ok_or_else(|| format!("not a fact: {line:?}"))
    }

    pub(crate) fn signal(&self, signal: Signal) {
        if let Some(id) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            // It may be gone already; what counts is what it leaves.
            let _gone = kill_process(id, signal);
        }
    }

    /// Stops it where it is. Once this returns no thread of it runs.
    pub(crate) fn stop(&self) -> Result<(), String> {
        self.signal(Signal::STOP);
        let id = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        match waitpid(id, WaitOptions::UNTRACED) {
            Ok(Some((_, status))) if status.stopped() => Ok(()),
            other => Err(format!("a load does not stop: {other:?}")),
        }
    }

    /// Writes down the rest of what it says, until it is dead.
    pub(crate) fn outlive(mut self, ledger: &mut Ledger) -> Result<ExitStatus, String> {
        while let Some(fact) = self.fact()? {
            ledger.record(&fact);
        }
        self.end()
    }

    /// Waits for its end, which it must have been told to come.
    pub(crate) fn end(mut self) -> Result<ExitStatus, String> {
        self.input = None;
        self.ended = true;
        self.child.wait().map_err(|error| format!("cannot wait for a load: {error}"))
    }
}

impl Drop for Mortal {
    fn drop(&mut self) {
        if !self.ended {
            let _gone = self.child.kill();
            let _gone = self.child.wait();
        }
    }
}

/// Opens what the dead left behind, and compares it with the books.
pub(crate) fn judge(setting: &Setting, ledger: &mut Ledger) -> Result<(), String> {
    let channel = setting.open().map_err(|error| format!("does not open: {error}"))?;
    let drained = drain(&channel)?;
    let failures = ledger.check(&drained);
    if failures.is_empty() {
        return Ok(());
    }
    let (some, all) = (failures.len().min(6), failures.len());
    Err(format!("{} ({some} of {all} told)", failures[..some].join("; ")))
}
