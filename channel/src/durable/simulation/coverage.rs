//! Coverage marks: which fault struck in which phase. A mark that a long run does not hit is a hole in the proof.

use std::fmt;

/// What went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    Killed,
    CutNothingSurvives,
    CutEverythingSurvives,
    CutTorn,
    WriteFails,
    DiskFull,
    SyncFails,
    NamesFail,
    DirectorySyncFails,
    ReadFails,
    DiskGone,
    DiskStalls,
}

/// What the channel was doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Nobody waits: a witness is written, a spare segment made or removed, a backlog read.
    Idle,
    /// A transaction waits for its frame.
    Put,
    /// A frame is on its way.
    Commit,
    /// A segment is prepared that frames wait for.
    Roll,
    Checkpoint,
    Recovery,
}

const FAULTS: [FaultKind; 12] = [
    FaultKind::Killed,
    FaultKind::CutNothingSurvives,
    FaultKind::CutEverythingSurvives,
    FaultKind::CutTorn,
    FaultKind::WriteFails,
    FaultKind::DiskFull,
    FaultKind::SyncFails,
    FaultKind::NamesFail,
    FaultKind::DirectorySyncFails,
    FaultKind::ReadFails,
    FaultKind::DiskGone,
    FaultKind::DiskStalls,
];
const PHASES: [Phase; 6] = [Phase::Idle, Phase::Put, Phase::Commit, Phase::Roll, Phase::Checkpoint, Phase::Recovery];

/// What cannot happen, and why.
const IMPOSSIBLE: [(FaultKind, Phase, &str); 10] = [
    (FaultKind::WriteFails, Phase::Put, "a put writes nothing before its frame is gathered"),
    (FaultKind::DiskFull, Phase::Put, "a put writes nothing before its frame is gathered"),
    (FaultKind::SyncFails, Phase::Put, "a put syncs nothing before its frame is gathered"),
    (FaultKind::NamesFail, Phase::Put, "names change only in file work"),
    (FaultKind::NamesFail, Phase::Commit, "names change only in file work"),
    (FaultKind::DirectorySyncFails, Phase::Put, "names change only in file work"),
    (FaultKind::DirectorySyncFails, Phase::Commit, "names change only in file work"),
    (FaultKind::ReadFails, Phase::Roll, "a roll reads nothing"),
    (FaultKind::ReadFails, Phase::Checkpoint, "a checkpoint reads nothing"),
    (FaultKind::DiskStalls, Phase::Recovery, "a start waits for each disk"),
];

/// How often each fault struck in each phase.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Coverage([[u64; PHASES.len()]; FAULTS.len()]);

impl Coverage {
    pub(super) fn mark(&mut self, fault: FaultKind, phase: Phase) {
        self.0[fault as usize][phase as usize] += 1;
    }

    pub fn add(&mut self, other: &Coverage) {
        for (row, others) in self.0.iter_mut().zip(&other.0) {
            row.iter_mut().zip(others).for_each(|(count, other)| *count += other);
        }
    }

    /// Marks that were not hit although they can be.
    pub fn missing(&self) -> Vec<String> {
        let mut missing = Vec::new();
        for fault in FAULTS {
            for phase in PHASES {
                let possible = !IMPOSSIBLE.iter().any(|(other, at, _)| *other == fault && *at == phase);
                if possible && self.0[fault as usize][phase as usize] == 0 {
                    missing.push(format!("{fault:?} in {phase:?}"));
                }
            }
        }
        missing
    }

    /// Marks that were hit although the table calls them impossible: the table is wrong.
    pub fn surprises(&self) -> Vec<String> {
        let hit = IMPOSSIBLE.iter().filter(|(fault, phase, _)| self.0[*fault as usize][*phase as usize] > 0);
        hit.map(|(fault, phase, why)| format!("{fault:?} in {phase:?}, although {why}")).collect()
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:22}", "")?;
        PHASES.iter().try_for_each(|phase| write!(formatter, "{:>12}", format!("{phase:?}")))?;
        for fault in FAULTS {
            write!(formatter, "\n{:22}", format!("{fault:?}"))?;
            for phase in PHASES {
                let impossible = IMPOSSIBLE.iter().any(|(other, at, _)| *other == fault && *at == phase);
                let count = self.0[fault as usize][phase as usize];
                let text = if impossible && count == 0 { "-".to_owned() } else { count.to_string() };
                write!(formatter, "{text:>12}")?;
            }
        }
        Ok(())
    }
}
