//! What the frames of a channel say together: which events there are, which are settled, which notes count.
//!
//! Adds up in any order, for logs are read one after the other and segments newest first. Decides nothing: opening
//! and inspection draw their own conclusions.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use wal::format::frame::{FrameHeader, Mark as Place};
use wal::planted::{self, Bug};
use wal::recover::{Kept, LogScan};

use super::checkpoint::Checkpoint;
use super::ranges::RangeSet;
use super::sections::{self, NOTES, SETTLEMENT, SNAPSHOT, Snapshot, VersionedNote};
use crate::settlement::SeqRange;

/// Everything read, before anything is decided.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) coverage: RangeSet,
    pub(crate) floor: u64,
    pub(crate) durable_seq: u64,
    pub(crate) settled: RangeSet,
    pub(crate) notes: BTreeMap<(String, String), (u64, Option<Bytes>)>,
    /// Notes older than this that no snapshot mentions are gone.
    notes_from: u64,
    /// Versions of the notes in the newest snapshot.
    snapshot_notes: BTreeSet<u64>,
    pub(crate) version: u64,
    pub(crate) unknown: Option<u16>,
    pub(crate) malformed: Option<String>,
    /// Where the newest frames end, to count those that nothing proves.
    pub(crate) ends: Vec<Place>,
}

/// The highest mark of each log that any log, itself included, has.
pub(crate) fn witnessed<'a>(scans: impl Iterator<Item = &'a LogScan> + Clone) -> BTreeMap<[u8; 16], Place> {
    let mut marks: BTreeMap<[u8; 16], Place> = scans.clone().map(|scan| (scan.log, Place::default())).collect();
    for (log, mark) in scans.flat_map(|scan| &scan.marks) {
        if let Some(known) = marks.get_mut(log) {
            *known = (*known).max(*mark);
        }
    }
    marks
}

impl Found {
    /// What a checkpoint says of the segments that it vouches for.
    pub(crate) fn take_checkpoint(&mut self, checkpoint: &Checkpoint) {
        if planted::is(Bug::CheckpointMovesBack) {
            (self.floor, self.durable_seq) = (checkpoint.snapshot.floor, checkpoint.durable_seq);
        }
        self.coverage.insert_all(&checkpoint.unsettled);
        self.durable_seq = self.durable_seq.max(checkpoint.durable_seq);
        self.take_snapshot(checkpoint.snapshot.clone());
    }

    pub(crate) fn take(&mut self, header: &FrameHeader, kept: &[Kept]) {
        self.floor = self.floor.max(header.floor);
        self.durable_seq = self.durable_seq.max(header.durable_seq);
        if header.seq_count > 0 {
            self.coverage.insert(SeqRange::new(header.first_seq, header.end_seq()));
        }
        if !header.witness {
            let end = Place { ordinal: header.ordinal, offset: header.end() };
            // Segments come newest first, and only the newest frames can be unproven.
            if self.ends.first().is_none_or(|newest| newest.ordinal <= end.ordinal + 1) {
                self.ends.push(end);
            }
        }
        for section in kept {
            if let Err(error) = self.take_section(section) {
                self.malformed = Some(error.to_string());
            }
        }
    }

    fn take_section(&mut self, section: &Kept) -> Result<(), crate::event::MalformedEvents> {
        match section.kind {
            SETTLEMENT => {
                for settled in sections::decode_settlements(&section.payload)? {
                    settled.runs.into_iter().for_each(|run| self.settled.insert(run));
                }
            }
            NOTES => sections::decode_notes(&section.payload)?.into_iter().for_each(|note| self.take_note(note)),
            SNAPSHOT => self.take_snapshot(sections::decode_snapshot(&section.payload)?),
            kind if !sections::is_known(kind) && !section.optional => self.unknown = Some(kind),
            _ => {}
        }
        Ok(())
    }

    pub(crate) fn take_snapshot(&mut self, snapshot: Snapshot) {
        self.floor = self.floor.max(snapshot.floor);
        self.settled.insert_all(&snapshot.settled);
        self.version = self.version.max(snapshot.version);
        let versions = snapshot.notes.iter().map(|note| note.version).collect();
        self.take_snapshot_notes(snapshot.version, versions);
        snapshot.notes.into_iter().for_each(|note| self.take_note(note));
    }

    fn take_snapshot_notes(&mut self, from: u64, versions: BTreeSet<u64>) {
        if from >= self.notes_from {
            self.notes_from = from;
            self.snapshot_notes = versions;
        }
    }

    pub(crate) fn take_note(&mut self, VersionedNote { version, update }: VersionedNote) {
        self.version = self.version.max(version);
        let known = self.notes.entry((update.owner, update.key)).or_insert((version, None));
        if known.0 <= version || planted::is(Bug::OlderNoteWins) {
            *known = (version, update.note);
        }
    }

    pub(crate) fn merge(&mut self, other: Found) {
        self.coverage.insert_all(&other.coverage);
        self.settled.insert_all(&other.settled);
        self.floor = self.floor.max(other.floor);
        self.durable_seq = self.durable_seq.max(other.durable_seq);
        self.version = self.version.max(other.version);
        self.take_snapshot_notes(other.notes_from, other.snapshot_notes);
        for (key, (version, note)) in other.notes {
            let known = self.notes.entry(key).or_insert((version, None));
            if known.0 <= version {
                *known = (version, note);
            }
        }
    }

    /// Events of `start..end` that are neither there nor settled.
    pub(crate) fn missing(&self, start: u64, end: u64) -> Vec<SeqRange> {
        let mut gap = RangeSet::default();
        if start < end {
            gap.insert(SeqRange::new(start, end));
        }
        gap.remove_all(&self.accounted());
        gap.iter().collect()
    }

    /// Events that are there and not settled.
    pub(crate) fn queued(&self) -> RangeSet {
        let mut queued = self.coverage.clone();
        queued.remove_all(&self.settled);
        if self.floor > 0 {
            queued.remove(SeqRange::new(0, self.floor));
        }
        queued
    }

    fn accounted(&self) -> RangeSet {
        let mut accounted = self.coverage.clone();
        accounted.insert_all(&self.settled);
        accounted
    }

    pub(crate) fn next_seq(&self) -> u64 {
        if planted::is(Bug::ReuseSequenceNumbers) {
            return self.queued().last_end().unwrap_or(self.floor);
        }
        let ends = [self.coverage.last_end(), self.settled.last_end(), Some(self.floor), Some(self.durable_seq)];
        ends.into_iter().flatten().max().unwrap_or_default()
    }

    /// The latest of each note. One that the newest snapshot left out was removed before it.
    pub(crate) fn live_notes(&self) -> BTreeMap<(String, String), (u64, Bytes)> {
        let live = |(key, (version, note)): (&(String, String), &(u64, Option<Bytes>))| {
            let known = *version > self.notes_from || self.snapshot_notes.contains(version);
            note.clone().filter(|_| known).map(|note| (key.clone(), (*version, note)))
        };
        self.notes.iter().filter_map(live).collect()
    }
}
