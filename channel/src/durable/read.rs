//! Reading events back from disk: a rolled back transaction, or a backlog longer than memory.
//!
//! Reads one chunk from the nearest entry of the sparse index, checks and decrypts each frame once, and hands back
//! all events of the chunk, so that a drain reads the disk once and forward. A frame that recovery counted and that
//! cannot be read now is an error with its range, never a silent gap.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use wal::format::frame::{self, FrameHeader};
use wal::format::section::sections;
use wal::io::File;
use wal::io::buffer::Buffer;
use wal::planted::{self, Bug};
use wal::recover::scan::open_body;
use wal::segment::{Incarnation, Segment};

use super::sections::TRANSACTION;
use crate::api::LeasedSlice;
use crate::event::EventSlice;
use crate::settlement::SeqRange;

/// Bytes read at once.
const CHUNK: usize = 1 << 20;

/// Find the frame that holds `seq`.
#[derive(Debug)]
pub(crate) struct ReadJob {
    pub(crate) seq: u64,
    pub(crate) sources: Vec<ReadSource>,
}

/// A segment whose events lie around the wanted one.
#[derive(Debug)]
pub(crate) struct ReadSource {
    pub(crate) log: usize,
    ordinal: u64,
    slot: u64,
    file: Arc<dyn File>,
    len: u64,
    offset: u64,
    incarnations: Vec<Incarnation>,
}

#[derive(Debug)]
pub(crate) enum ReadDone {
    Found(Vec<LeasedSlice>),
    Failed { range: SeqRange, cause: String },
}

/// Where the last read of each log ended: a drain goes on there instead of at the index.
#[derive(Debug, Default)]
pub(crate) struct Cursors(Vec<Option<Cursor>>);

#[derive(Debug, Clone, Copy)]
struct Cursor {
    ordinal: u64,
    /// A frame at `offset` holds nothing below `seq`.
    seq: u64,
    offset: u64,
}

impl ReadSource {
    pub(crate) fn new(log: usize, segment: &Segment, offset: u64) -> ReadSource {
        ReadSource {
            log,
            ordinal: segment.ordinal,
            slot: segment.slot,
            file: Arc::clone(&segment.file),
            len: segment.len,
            offset,
            incarnations: segment.incarnations.clone(),
        }
    }

    pub(crate) fn slot(&self) -> u64 {
        self.slot
    }

    pub(crate) fn ordinal(&self) -> u64 {
        self.ordinal
    }

    /// The incarnation whose frames are at `offset`.
    pub(crate) fn incarnation_at(&self, offset: u64) -> Option<&Incarnation> {
        self.incarnations.iter().find(|incarnation| {
            (incarnation.start..incarnation.end).contains(&offset)
                && !incarnation.holes.iter().any(|(start, end)| (*start..*end).contains(&offset))
        })
    }

    /// Where the next frame may be after a place that holds none.
    pub(crate) fn skip(&self, offset: u64) -> Option<u64> {
        let inside = |incarnation: &&Incarnation| (incarnation.start..incarnation.end).contains(&offset);
        if let Some(incarnation) = self.incarnations.iter().find(inside)
            && !planted::is(Bug::StopAtHole)
        {
            return incarnation.holes.iter().find(|(start, end)| (*start..*end).contains(&offset)).map(|(_, end)| *end);
        }
        self.incarnations.iter().map(|incarnation| incarnation.start).filter(|start| *start > offset).min()
    }
}

impl ReadJob {
    /// Reads. Blocks.
    pub(crate) fn run(&self, cursors: &mut Cursors) -> ReadDone {
        let range = SeqRange::new(self.seq, self.seq + 1);
        let mut failed = None;
        for source in &self.sources {
            match self.read(source, cursors) {
                Ok(slices) if slices.is_empty() => {}
                Ok(slices) => return ReadDone::Found(slices),
                // Segments of several disks may hold it: one that is lost must not hide what another one has.
                Err(cause) => failed = failed.or(Some(cause)),
            }
        }
        ReadDone::Failed { range, cause: failed.unwrap_or_else(|| "no segment holds it".to_owned()) }
    }

    fn read(&self, source: &ReadSource, cursors: &mut Cursors) -> Result<Vec<LeasedSlice>, String> {
        let at = |offset: u64| format!("segment {} at {offset}", source.slot);
        if cursors.0.len() <= source.log {
            cursors.0.resize(source.log + 1, None);
        }
        let mut offset = match cursors.0[source.log] {
            Some(cursor) if cursor.ordinal == source.ordinal && cursor.seq <= self.seq => {
                cursor.offset.max(source.offset)
            }
            _ => source.offset,
        };
        let mut chunk = Chunk::new(source.len).map_err(|error| error.to_string())?;
        let mut slices: Vec<LeasedSlice> = Vec::new();
        loop {
            if source.incarnation_at(offset).is_none() {
                match source.skip(offset) {
                    Some(next) => {
                        offset = next;
                        continue;
                    }
                    None => break,
                }
            }
            // Once the wanted event is there, only what is in memory anyway is decoded with it.
            let found = !slices.is_empty();
            if found && !chunk.holds(offset, frame::HEADER) {
                break;
            }
            let error = |error: io::Error| format!("{}: {error}", at(offset));
            let head = chunk.bytes(source, offset, frame::HEADER.next_multiple_of(4096)).map_err(error)?;
            let header = FrameHeader::decode(head).map_err(|damage| format!("{}: {damage}", at(offset)))?;
            let incarnation = source.incarnation_at(offset).filter(|incarnation| incarnation.id == header.incarnation);
            let Some(incarnation) = incarnation.filter(|_| header.offset == offset && header.ordinal == source.ordinal)
            else {
                return Err(format!("{}: a frame of another place", at(offset)));
            };
            if header.seq_count > 0 && header.first_seq > self.seq && !found {
                break;
            }
            let wanted = header.seq_count > 0 && header.end_seq() > self.seq;
            if wanted {
                let len = header.stored_len as usize;
                if found && !chunk.holds(offset, len) {
                    break;
                }
                let error = |error: io::Error| format!("{}: {error}", at(offset));
                let bytes = chunk.bytes(source, offset, len).map_err(error)?;
                slices.extend(decode(bytes, &header, incarnation).map_err(|cause| format!("{}: {cause}", at(offset)))?);
            }
            offset = header.end();
            if header.seq_count > 0 {
                cursors.0[source.log] = Some(Cursor { ordinal: source.ordinal, seq: header.end_seq(), offset });
            }
        }
        Ok(slices)
    }
}

/// A piece of a segment in memory.
#[derive(Debug)]
pub(crate) struct Chunk {
    start: u64,
    buffer: Buffer,
}

impl Chunk {
    /// For a file of `len` bytes.
    pub(crate) fn new(len: u64) -> io::Result<Chunk> {
        let mut buffer = Buffer::zeroed(CHUNK.min(len as usize))?;
        buffer.set_len(0);
        Ok(Chunk { start: 0, buffer })
    }

    fn holds(&self, offset: u64, len: usize) -> bool {
        offset >= self.start && offset + len as u64 <= self.start + self.buffer.len() as u64
    }

    /// `len` bytes at `offset`, read together with what follows.
    pub(crate) fn bytes(&mut self, source: &ReadSource, offset: u64, len: usize) -> io::Result<&[u8]> {
        if !self.holds(offset, len) {
            if self.buffer.capacity() < len {
                self.buffer = Buffer::zeroed(len)?;
            }
            self.start = offset;
            let wanted = self.buffer.capacity().min((source.len - offset) as usize);
            self.buffer.set_len(wanted);
            let read = source.file.read_at(&mut self.buffer, offset)?;
            self.buffer.set_len(read);
            if read < len {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        let at = (offset - self.start) as usize;
        Ok(&self.buffer[at..at + len])
    }
}

/// The transactions of one whole frame.
pub(crate) fn decode(
    bytes: &[u8],
    header: &FrameHeader,
    incarnation: &Incarnation,
) -> Result<Vec<LeasedSlice>, String> {
    if !FrameHeader::body_is_intact(bytes) && !planted::is(Bug::ReadUnchecked) {
        return Err("checksum mismatch".to_owned());
    }
    let body = match &incarnation.key {
        Some(key) => open_body(bytes, header, key).ok_or("the frame does not authenticate")?,
        None => bytes[frame::HEADER..frame::HEADER + header.body_len as usize].to_vec(),
    };
    decode_body(Bytes::from(body), header)
}

/// The transactions of a frame's body, with the numbers of their events.
pub(crate) fn decode_body(body: Bytes, header: &FrameHeader) -> Result<Vec<LeasedSlice>, String> {
    let mut slices = Vec::new();
    let mut next = header.first_seq;
    for section in sections(&body).map_err(|damage| damage.to_string())? {
        if section.kind != TRANSACTION {
            continue;
        }
        let events = EventSlice::decode(body.slice_ref(section.payload)).map_err(|error| error.to_string())?;
        let count = events.len() as u64;
        if count > 0 {
            slices.push(LeasedSlice { first_seq: next, events });
        }
        next += count;
    }
    if next != header.end_seq() {
        return Err(format!("{} events where the header says {}", next - header.first_seq, header.seq_count));
    }
    Ok(slices)
}
