//! The channel's sections of a frame: transactions, settlements, notes and snapshots (`docs/format.md`).
//!
//! Notes carry a version that grows over all logs of the channel, so the order in which frames are read does not
//! matter. Everything here is decoded from checked frames, and still nothing is trusted: lengths are compared with
//! the bytes present before anything is allocated.

use bytes::Bytes;
use wal::format::section::{self, OPTIONAL};
use wal::planted::{self, Bug};

use super::ranges::RangeSet;
use crate::event::{MalformedEvents, put_string, put_varint, take_bytes, take_string, take_varint};
use crate::settlement::{NoteUpdate, SeqRange};

pub(crate) const TRANSACTION: u16 = 16;
pub(crate) const SETTLEMENT: u16 = 17;
pub(crate) const NOTES: u16 = 18;
pub(crate) const SNAPSHOT: u16 = 19;
/// A transaction whose payload `compress.rs` made shorter.
pub(crate) const COMPRESSED: u16 = 32;

/// Whether sections of this kind hold events.
pub(crate) fn is_transaction(kind: u16) -> bool {
    matches!(kind, TRANSACTION | COMPRESSED)
}

/// Whether this build reads a kind of section.
pub(crate) fn is_known(kind: u16) -> bool {
    matches!(kind, section::MARKS | section::FOOTER | SETTLEMENT | NOTES | SNAPSHOT) || is_transaction(kind)
}

/// What a settled run was settled as: the books depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mark {
    Delivered = 1,
    DeadLettered = 2,
    Dropped = 3,
    /// Reserved, but never acknowledged: the sequence numbers stand for nothing.
    Void = 4,
    /// Acknowledged, then lost to damage, and given up by the operator.
    Lost = 5,
}

impl Mark {
    fn from_byte(byte: u8) -> Option<Mark> {
        [Mark::Delivered, Mark::DeadLettered, Mark::Dropped, Mark::Void, Mark::Lost]
            .into_iter()
            .find(|mark| *mark as u8 == byte)
    }
}

/// Runs of events with one outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SettledRuns {
    pub(crate) mark: Mark,
    pub(crate) reason: String,
    pub(crate) runs: Vec<SeqRange>,
}

/// A note as it is kept, or its removal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VersionedNote {
    pub(crate) version: u64,
    pub(crate) update: NoteUpdate,
}

/// All that must outlive the segments that are given back.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Snapshot {
    /// Notes with a lower version that are not in it are gone.
    pub(crate) version: u64,
    pub(crate) floor: u64,
    pub(crate) settled: RangeSet,
    pub(crate) notes: Vec<VersionedNote>,
}

fn append(out: &mut Vec<u8>, kind: u16, flags: u16, write: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; section::HEADER]);
    write(out);
    let header = section::header(kind, flags, out.len() - start - section::HEADER);
    out[start..start + section::HEADER].copy_from_slice(&header);
}

pub(crate) fn append_settlements(out: &mut Vec<u8>, settled: &[SettledRuns]) {
    append(out, SETTLEMENT, 0, |out| {
        for entry in settled {
            out.push(entry.mark as u8);
            put_string(out, &entry.reason);
            let more = u64::from(planted::is(Bug::SettleOneMore));
            let runs = entry.runs.iter().map(|run| SeqRange::new(run.start, run.end + more));
            put_runs(out, runs, entry.runs.len());
        }
    });
}

pub(crate) fn append_notes(out: &mut Vec<u8>, notes: &[VersionedNote]) {
    append(out, NOTES, 0, |out| put_notes(out, notes));
}

pub(crate) fn append_snapshot(out: &mut Vec<u8>, snapshot: &Snapshot) {
    append(out, SNAPSHOT, 0, |out| put_snapshot(out, snapshot));
}

pub(crate) fn append_marks(out: &mut Vec<u8>, marks: &[section::LogMark]) {
    append(out, section::MARKS, OPTIONAL, |out| out.extend_from_slice(&section::encode_marks(marks)));
}

fn put_runs(out: &mut Vec<u8>, runs: impl Iterator<Item = SeqRange>, count: usize) {
    put_varint(out, count as u64);
    for run in runs {
        put_varint(out, run.start);
        put_varint(out, run.count());
    }
}

fn put_notes(out: &mut Vec<u8>, notes: &[VersionedNote]) {
    put_varint(out, notes.len() as u64);
    for VersionedNote { version, update } in notes {
        put_varint(out, *version);
        put_string(out, &update.owner);
        put_string(out, &update.key);
        match &update.note {
            None => out.push(0),
            Some(note) => {
                out.push(1);
                put_varint(out, note.len() as u64);
                out.extend_from_slice(note);
            }
        }
    }
}

pub(crate) fn put_snapshot(out: &mut Vec<u8>, snapshot: &Snapshot) {
    put_varint(out, snapshot.version);
    put_varint(out, snapshot.floor);
    put_runs(out, snapshot.settled.iter(), snapshot.settled.pieces());
    put_notes(out, &snapshot.notes);
}

fn take_runs(bytes: &[u8], at: &mut usize) -> Result<Vec<SeqRange>, MalformedEvents> {
    let count = take_varint(bytes, at)?;
    if count > bytes.len() as u64 {
        return Err(MalformedEvents("more runs than bytes"));
    }
    // Grows as they come: room for as many as are claimed would be many times the bytes present.
    let mut runs = Vec::new();
    for _ in 0..count {
        let (start, len) = (take_varint(bytes, at)?, take_varint(bytes, at)?);
        match start.checked_add(len) {
            Some(end) if len > 0 => runs.push(SeqRange::new(start, end)),
            _ => return Err(MalformedEvents("an impossible run")),
        }
    }
    Ok(runs)
}

fn take_notes(bytes: &[u8], at: &mut usize) -> Result<Vec<VersionedNote>, MalformedEvents> {
    let count = take_varint(bytes, at)?;
    if count > bytes.len() as u64 {
        return Err(MalformedEvents("more notes than bytes"));
    }
    let mut notes = Vec::new();
    for _ in 0..count {
        let version = take_varint(bytes, at)?;
        let owner = take_string(bytes, at)?.to_owned();
        let key = take_string(bytes, at)?.to_owned();
        let present = bytes.get(*at).copied();
        *at += 1;
        let note = match present {
            Some(0) => None,
            Some(1) => Some(Bytes::copy_from_slice(take_bytes(bytes, at)?)),
            _ => return Err(MalformedEvents("a note that is neither there nor removed")),
        };
        notes.push(VersionedNote { version, update: NoteUpdate { owner, key, note } });
    }
    Ok(notes)
}

pub(crate) fn decode_settlements(payload: &[u8]) -> Result<Vec<SettledRuns>, MalformedEvents> {
    let mut at = 0;
    let mut settled = Vec::new();
    while at < payload.len() {
        let mark = Mark::from_byte(payload[at]).ok_or(MalformedEvents("an unknown outcome"))?;
        at += 1;
        let reason = take_string(payload, &mut at)?.to_owned();
        settled.push(SettledRuns { mark, reason, runs: take_runs(payload, &mut at)? });
    }
    Ok(settled)
}

pub(crate) fn decode_notes(payload: &[u8]) -> Result<Vec<VersionedNote>, MalformedEvents> {
    let mut at = 0;
    let notes = take_notes(payload, &mut at)?;
    if at == payload.len() { Ok(notes) } else { Err(MalformedEvents("bytes behind the notes")) }
}

pub(crate) fn take_snapshot(payload: &[u8], at: &mut usize) -> Result<Snapshot, MalformedEvents> {
    Ok(Snapshot {
        version: take_varint(payload, at)?,
        floor: take_varint(payload, at)?,
        settled: take_runs(payload, at)?.into_iter().collect(),
        notes: take_notes(payload, at)?,
    })
}

pub(crate) fn decode_snapshot(payload: &[u8]) -> Result<Snapshot, MalformedEvents> {
    let mut at = 0;
    let snapshot = take_snapshot(payload, &mut at)?;
    if at == payload.len() { Ok(snapshot) } else { Err(MalformedEvents("bytes behind the snapshot")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(body: &[u8]) -> &[u8] {
        &body[section::HEADER..]
    }

    #[test]
    fn sections_come_back() {
        let update = |note| NoteUpdate { owner: "k1".into(), key: "/a/ü".into(), note };
        let notes = vec![
            VersionedNote { version: 3, update: update(Some(Bytes::from_static(b"x"))) },
            VersionedNote { version: 4, update: update(None) },
        ];
        let mut out = Vec::new();
        append_notes(&mut out, &notes);
        assert_eq!(decode_notes(payload(&out)), Ok(notes.clone()));

        let runs = vec![SeqRange::new(1, 5), SeqRange::new(9, 10)];
        let settled = vec![SettledRuns { mark: Mark::Dropped, reason: "no timestamp".into(), runs: runs.clone() }];
        out.clear();
        append_settlements(&mut out, &settled);
        assert_eq!(decode_settlements(payload(&out)), Ok(settled));

        let snapshot = Snapshot { version: 7, floor: 1, settled: runs.into_iter().collect(), notes };
        out.clear();
        append_snapshot(&mut out, &snapshot);
        assert_eq!(decode_snapshot(payload(&out)), Ok(snapshot));
        for cut in 0..payload(&out).len() {
            assert!(decode_snapshot(&payload(&out)[..cut]).is_err(), "cut at {cut}");
        }
    }
}
