//! Settlements and notes: checked as a whole, then carried by the next frame.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use wal::planted::{self, Bug};

use super::{Answer, Core, NOTE_MAX, NOTES_BYTES_MAX, NOTES_MAX, REASON_MAX};
use crate::api::Lease;
use crate::durable::job::{PendingState, SettleSender};
use crate::durable::queue::ConsumerId;
use crate::durable::sections::{Mark, SettledRuns, VersionedNote};
use crate::settlement::{NoteUpdate, Outcome, SettleError, Settlement};

impl Core {
    pub(crate) fn settle(
        &mut self,
        now: Duration,
        consumer: ConsumerId,
        settlements: Vec<Settlement>,
        sender: SettleSender,
        answers: &mut Vec<Answer>,
    ) {
        if self.closed {
            answers.push(Answer::Settle(sender, Err(SettleError::Closed)));
            return;
        }
        let ranges = settlements.iter().flat_map(|settlement| settlement.ranges.iter().copied());
        if let Some(range) = self.queue.not_leased(consumer, ranges) {
            answers.push(Answer::Settle(sender, Err(SettleError::NotLeased(range))));
            return;
        }
        let notes: Vec<NoteUpdate> = settlements.iter().flat_map(|settlement| settlement.notes.clone()).collect();
        if let Err(refused) = self.check_notes(&notes) {
            answers.push(Answer::Settle(sender, Err(refused)));
            return;
        }
        let mut settled = Vec::new();
        for Settlement { ranges, outcome, .. } in settlements {
            let (mark, reason) = match outcome {
                Outcome::Returned => {
                    ranges.into_iter().for_each(|range| self.queue.give_back(consumer, range));
                    continue;
                }
                Outcome::Delivered => (Mark::Delivered, String::new()),
                Outcome::DeadLettered { reason } => (Mark::DeadLettered, shortened(reason)),
                Outcome::Dropped { reason } => (Mark::Dropped, shortened(reason)),
            };
            ranges.iter().for_each(|range| self.queue.start_settling(consumer, *range));
            if !ranges.is_empty() {
                settled.push(SettledRuns { mark, reason, runs: ranges });
            }
        }
        self.enqueue_state(settled, notes, sender, answers);
        self.after_change(now, answers);
    }

    pub(crate) fn note(&mut self, notes: Vec<NoteUpdate>, sender: SettleSender, answers: &mut Vec<Answer>) {
        if self.closed {
            answers.push(Answer::Settle(sender, Err(SettleError::Closed)));
            return;
        }
        match self.check_notes(&notes) {
            Err(refused) => answers.push(Answer::Settle(sender, Err(refused))),
            Ok(()) => self.enqueue_state(Vec::new(), notes, sender, answers),
        }
    }

    pub(super) fn check_notes(&self, notes: &[NoteUpdate]) -> Result<(), SettleError> {
        for NoteUpdate { owner, key, note } in notes {
            let longest = note.as_ref().map_or(0, Bytes::len).max(owner.len() + key.len());
            if longest > NOTE_MAX {
                return Err(SettleError::NoteRefused(format!("{longest} bytes; the limit is {NOTE_MAX}")));
            }
        }
        let is_new = |update: &&NoteUpdate| {
            update.note.is_some() && !self.notes.contains_key(&(update.owner.clone(), update.key.clone()))
        };
        if self.notes.len() + notes.iter().filter(is_new).count() > NOTES_MAX {
            return Err(SettleError::NoteRefused(format!("{} notes; the limit is {NOTES_MAX}", self.notes.len())));
        }
        let added: usize = notes.iter().map(note_bytes).sum::<usize>() + self.open_note_bytes();
        let limit = NOTES_BYTES_MAX.min(self.put_bytes_max() / 2);
        if self.note_bytes + added > limit {
            return Err(SettleError::NoteRefused(format!("{} bytes of notes; the limit is {limit}", self.note_bytes)));
        }
        Ok(())
    }

    pub(super) fn open_note_bytes(&self) -> usize {
        self.states.iter().flat_map(|state| &state.notes).map(|note| note_bytes(&note.update)).sum()
    }

    pub(super) fn enqueue_state(
        &mut self,
        settled: Vec<SettledRuns>,
        notes: Vec<NoteUpdate>,
        sender: SettleSender,
        answers: &mut Vec<Answer>,
    ) {
        if settled.is_empty() && notes.is_empty() {
            // A rollback writes nothing.
            answers.push(Answer::Settle(sender, Ok(())));
            return;
        }
        let versioned = |update: NoteUpdate| {
            self.version += 1;
            self.open_versions.insert(self.version);
            VersionedNote { version: self.version, update }
        };
        let notes = notes.into_iter().map(versioned).collect();
        let mut sender = Some(sender);
        if planted::is(Bug::AcknowledgeSettlementBeforeSync) {
            answers.extend(sender.take().map(|sender| Answer::Settle(sender, Ok(()))));
        }
        self.states.push(PendingState { settled, notes, sender, said_in: Vec::new() });
    }

    /// A note is durable. Frames of different logs may become so in any order; the latest version wins.
    pub(super) fn publish_note(&mut self, note: VersionedNote) {
        let VersionedNote { version, update: NoteUpdate { owner, key, note } } = note;
        self.open_versions.remove(&version);
        let key = (owner, key);
        let known = self.notes.get(&key).map(|(known, _)| *known).max(self.removed_notes.get(&key).copied());
        if known.is_none_or(|known| known < version) {
            let overhead = key.0.len() + key.1.len();
            let earlier = match note {
                Some(note) => {
                    self.note_bytes += overhead + note.len();
                    self.notes.insert(key, (version, note))
                }
                None => {
                    self.removed_notes.insert(key.clone(), version);
                    self.notes.remove(&key)
                }
            };
            if let Some((_, note)) = earlier {
                self.note_bytes -= overhead + note.len();
            }
        }
        if self.open_versions.is_empty() {
            self.removed_notes.clear();
        }
    }

    pub(crate) fn drop_consumer(&mut self, now: Duration, consumer: ConsumerId, answers: &mut Vec<Answer>) {
        self.queue.give_back_all(consumer);
        // Nobody listens to its takes any more, and what they would lease nobody would settle.
        let (gone, kept): (VecDeque<_>, VecDeque<_>) =
            std::mem::take(&mut self.takes).into_iter().partition(|take| take.consumer == consumer);
        self.takes = kept;
        answers.extend(gone.into_iter().map(|take| Answer::Take(take.sender, Ok(Lease::default()))));
        self.after_change(now, answers);
    }

    pub(crate) fn notes_of(&self, owner: &str) -> Vec<(String, Bytes)> {
        let of_owner = self.notes.iter().filter(|((found, _), _)| found == owner);
        of_owner.map(|((_, key), (_, note))| (key.clone(), note.clone())).collect()
    }
}

fn note_bytes(update: &NoteUpdate) -> usize {
    update.owner.len() + update.key.len() + update.note.as_ref().map_or(0, Bytes::len)
}

fn shortened(mut reason: String) -> String {
    let mut end = reason.len().min(REASON_MAX);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    reason.truncate(end);
    reason
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use wal::io::sim::SimRandom;

    use super::*;
    use crate::durable::core::{CoreOptions, Start};
    use crate::durable::found::Found;
    use crate::durable::queue::Queue;
    use crate::ticket::Ticket;

    #[test]
    fn a_removal_outlives_its_segment_while_an_older_note_is_in_flight() {
        let options = CoreOptions {
            name: "c1".to_owned(),
            capacity: 1,
            transaction_capacity: 1,
            keep_alive: Duration::ZERO,
            disk_bytes_max: None,
            hot_tail_bytes: 0,
            scrub_interval: Duration::ZERO,
            checkpoint_interval: Duration::ZERO,
        };
        let start = Start {
            channel: [1; 16],
            logs: Vec::new(),
            queue: Queue::default(),
            notes: Default::default(),
            version: 0,
            voids: Vec::new(),
            lost: Vec::new(),
        };
        let mut core = Core::new(options, Arc::new(SimRandom::new(1)), Vec::new(), start);
        for (key, note) in [("stalls", Some("x")), ("removed", Some("y")), ("removed", None)] {
            let note = note.map(|note| Bytes::from(note.as_bytes()));
            let update = NoteUpdate { owner: "sink".to_owned(), key: key.to_owned(), note };
            core.enqueue_state(Vec::new(), vec![update], Ticket::pair().0, &mut Vec::new());
        }
        let notes: Vec<VersionedNote> = core.states.iter().flat_map(|state| state.notes.clone()).collect();
        // The first frame is on its way to a disk that stalls; the other two are durable on another one.
        notes[1..].iter().for_each(|note| core.publish_note(note.clone()));

        // The segment with the removal is given back after a snapshot; the one with the note itself is still there.
        let mut found = Found::default();
        found.take_note(notes[1].clone());
        found.take_snapshot(core.snapshot());
        assert!(found.live_notes().is_empty(), "{:?}", found.live_notes());
    }
}
