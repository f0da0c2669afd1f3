//! Reading events back from disk: a rolled back transaction, or a backlog longer than memory.
//!
//! Reads one chunk from the nearest entry of the sparse index, checks and decrypts each frame once, and hands back
//! all events of the chunk, so that a drain reads the disk once and forward. A frame that recovery counted and that
//! cannot be read now is an error with its range, never a silent gap.
//!
//! A disk that answers with an error and one that answers with other bytes than were written are told apart. Bytes are
//! asked for a second time before they count as damaged, for a transfer may flip a bit; rot stays.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use wal::format::frame::{self, FrameHeader};
use wal::format::section::sections;
use wal::io::File;
use wal::io::buffer::Buffer;
use wal::limits::PAGE;
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
    /// The segment that holds it.
    pub(crate) source: Option<ReadSource>,
    /// The next event that can be read without passing this one.
    pub(crate) next: u64,
}

/// A segment, and where to begin in it.
#[derive(Debug)]
pub(crate) struct ReadSource {
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
    /// The disk answers with an error; events of other disks may lie in the range as well.
    Failed {
        range: SeqRange,
        cause: String,
    },
    /// The disk answers, twice, with something that was not written.
    Damaged {
        range: SeqRange,
        cause: String,
    },
}

/// Where the last read of a log ended: a drain goes on there instead of at the index.
#[derive(Debug, Default)]
pub(crate) struct Cursor(Option<Behind>);

#[derive(Debug, Clone, Copy)]
struct Behind {
    ordinal: u64,
    /// A frame at `offset` holds nothing below `seq`.
    seq: u64,
    offset: u64,
}

impl ReadSource {
    pub(crate) fn new(segment: &Segment, offset: u64) -> ReadSource {
        ReadSource {
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

    /// The header of the frame at `offset`, if it is one of this place.
    fn header(&self, head: &[u8], offset: u64) -> Result<FrameHeader, String> {
        let header = FrameHeader::decode(head).map_err(|damage| damage.to_string())?;
        let here = self.incarnation_at(offset).is_some_and(|incarnation| incarnation.id == header.incarnation);
        let is_here = here && header.offset == offset && header.ordinal == self.ordinal;
        is_here.then_some(header).ok_or_else(|| "a frame of another place".to_owned())
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
    pub(crate) fn run(&self, cursor: &mut Cursor) -> ReadDone {
        match self.read(cursor) {
            ReadDone::Damaged { .. } => {
                cursor.0 = None;
                self.read(cursor)
            }
            done => done,
        }
    }

    fn read(&self, cursor: &mut Cursor) -> ReadDone {
        let damaged = |start: u64, end: u64, cause: String| {
            let range = SeqRange::new(start.max(self.seq), end.max(self.seq + 1));
            ReadDone::Damaged { range, cause }
        };
        let Some(source) = &self.source else {
            return damaged(self.seq, self.seq + 1, "no segment holds it".to_owned());
        };
        let at = |offset: u64| format!("segment {} at {offset}", source.slot);
        let failed = |offset: u64, end: u64, error: io::Error| {
            let cause = format!("{}: {error}", at(offset));
            let end = end.max(self.seq + 1);
            match error.kind() {
                io::ErrorKind::UnexpectedEof => damaged(self.seq, end, cause),
                _ => ReadDone::Failed { range: SeqRange::new(self.seq, end), cause },
            }
        };
        let mut offset = match cursor.0 {
            Some(behind) if behind.ordinal == source.ordinal && behind.seq <= self.seq => {
                behind.offset.max(source.offset)
            }
            _ => source.offset,
        };
        let mut chunk = match Chunk::new(source.len) {
            Ok(chunk) => chunk,
            Err(error) => return failed(offset, self.seq + 1, error),
        };
        let mut slices: Vec<LeasedSlice> = Vec::new();
        // What came in the way: a page that cannot be read, or is no header where one must be.
        let mut lost: Option<(bool, String)> = None;
        let missed = |end: u64, offset: u64, lost: Option<(bool, String)>| match lost {
            Some((true, cause)) => ReadDone::Failed { range: SeqRange::new(self.seq, end.max(self.seq + 1)), cause },
            Some((false, cause)) => damaged(self.seq, end, cause),
            None => damaged(self.seq, end, format!("{}: no frame holds it", at(offset))),
        };
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
            let head = match chunk.bytes(source, offset, frame::HEADER.next_multiple_of(PAGE)) {
                Ok(head) => head,
                Err(error) if lost.is_none() && error.kind() != io::ErrorKind::UnexpectedEof => {
                    lost = Some((true, format!("{}: {error}", at(offset))));
                    offset += PAGE as u64;
                    continue;
                }
                Err(error) => return failed(offset, self.next, error),
            };
            let header = match source.header(head, offset) {
                Ok(header) => header,
                Err(_) if found => break,
                Err(cause) => {
                    // How long its frame was nobody knows; the next one says whose events were in it.
                    lost.get_or_insert((false, format!("{}: {cause}", at(offset))));
                    offset += PAGE as u64;
                    continue;
                }
            };
            if header.seq_count > 0 && header.first_seq > self.seq && !found {
                return missed(header.first_seq, offset, lost);
            }
            if header.seq_count > 0 && header.end_seq() > self.seq {
                let len = header.stored_len as usize;
                if found && !chunk.holds(offset, len) {
                    break;
                }
                let bytes = match chunk.bytes(source, offset, len) {
                    Ok(bytes) => bytes,
                    Err(error) => return failed(offset, header.end_seq(), error),
                };
                let incarnation = source.incarnation_at(offset).expect("its header was compared with it");
                match decode(bytes, &header, incarnation) {
                    Ok(more) => slices.extend(more),
                    Err(_) if found => break,
                    Err(cause) => {
                        return damaged(header.first_seq, header.end_seq(), format!("{}: {cause}", at(offset)));
                    }
                }
            }
            offset = header.end();
            if header.seq_count > 0 {
                cursor.0 = Some(Behind { ordinal: source.ordinal, seq: header.end_seq(), offset });
            }
        }
        if slices.is_empty() {
            return missed(self.next, offset, lost);
        }
        ReadDone::Found(slices)
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
            let mut read = source.file.read_at(&mut self.buffer, offset);
            if read.is_err() && wanted > len {
                // What follows may have a bad sector, and is not asked for.
                self.buffer.set_len(len);
                read = source.file.read_at(&mut self.buffer, offset);
            }
            self.buffer.set_len(*read.as_ref().unwrap_or(&0));
            let read = read?;
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
