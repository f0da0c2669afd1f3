//! Every start once more by the frames alone: footers and checkpoints spare reading and must not change what is found.

use super::*;

/// What a start made of the disks.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    queued: Vec<SeqRange>,
    settled: Vec<SeqRange>,
    /// Floor, end of what is durable, next number, version of notes.
    numbers: [u64; 4],
    notes: Vec<(String, String, u64)>,
    voids: Vec<SeqRange>,
    lost: Vec<SeqRange>,
    damage: usize,
    logs: Vec<LogOutcome>,
}

/// The oldest ordinal, and the segments with what they hold.
type LogOutcome = (u64, Vec<(u64, u64, Vec<(u64, u64)>)>);

impl Outcome {
    pub(super) fn of(start: &Start, recovery: &Recovery) -> Outcome {
        let queue = &start.queue;
        let log = |log: &Log| {
            let segments = log.segments();
            let held = segments.map(|segment| (segment.ordinal, segment.slot, segment.ranges().iter().collect()));
            (log.oldest_ordinal(), held.collect())
        };
        Outcome {
            queued: queue.unsettled().iter().collect(),
            settled: queue.settled().iter().collect(),
            numbers: [queue.floor(), queue.durable_seq(), queue.next_seq(), start.version],
            notes: start.notes.iter().map(|((owner, key), note)| (owner.clone(), key.clone(), note.0)).collect(),
            voids: start.voids.clone(),
            lost: start.lost.clone(),
            damage: recovery.findings.iter().filter(|(_, finding)| finding.case.is_loss()).count(),
            logs: start.logs.iter().map(log).collect(),
        }
    }
}

impl World {
    /// What a start makes of the frames alone, tried on a copy of the disks. Nothing to compare with while a fault waits.
    pub(super) fn by_frames_alone(&mut self) -> Option<Result<Outcome, OpenError>> {
        if self.root.is_some() || self.armed.is_some() || self.is_stopped() {
            return None;
        }
        let forks = self.disks.iter().map(SimDisk::fork).collect();
        let disks = std::mem::replace(&mut self.disks, forks);
        let opened = self.open_dirs(false, &SimRandom::new(self.plan.seed));
        self.disks = disks;
        Some(opened.map(|(start, recovery)| Outcome::of(&start, &recovery)))
    }
}
