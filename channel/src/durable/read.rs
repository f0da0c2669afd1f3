//! Reading events back from disk: a rolled back transaction, or a backlog longer than memory.
//!
//! One job reads one stretch of the sparse index, about a mebibyte, in one piece; checks and decrypts each frame once, where
//! it lies; and hands back all events of the stretch, which share that memory until the last of them is gone. Several
//! jobs of a log may be under way (`core/reads.rs` decides which). A frame that recovery counted and that cannot be read
//! now is an error with its range, never a silent gap.
//!
//! A disk that answers with an error and one that answers with other bytes than were written are told apart. Bytes are
//! asked for a second time before they count as damaged, for a transfer may flip a bit; rot stays.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use wal::format::frame::{self, FrameHeader};
use wal::format::section::sections;
use wal::io::File;
use wal::io::buffer::{Buffer, LARGE_PAGE};
use wal::limits::{FRAME_MAX, FRAME_TARGET, PAGE};
use wal::planted::{self, Bug};
use wal::segment::{INDEX_STEP, Incarnation, Segment, Stretch};

use super::compress;
use super::sections::{COMPRESSED, TRANSACTION};
use crate::api::LeasedSlice;
use crate::event::EventSlice;
use crate::settlement::SeqRange;

/// Room for a usual stretch, the last of whose frames begins within a step of the index.
const PIECE: usize = LARGE_PAGE;
const _: () = assert!(INDEX_STEP as usize + FRAME_TARGET <= PIECE);
/// Bytes asked for at once before it is known how long the frames are.
const PIECE_MAX: u64 = 4 << 20;
/// Once compressed transactions have become so many bytes, no more frames are expanded in one go: a mebibyte on disk may be
/// hundreds in memory.
const EXPANDED_MAX: usize = 4 << 20;
/// Buffers that are kept to be read into again.
const SPARES_MAX: usize = 8;

/// Find the frame that holds `seq`, and what else its stretch holds behind it.
#[derive(Debug)]
pub(crate) struct ReadJob {
    pub(crate) id: u64,
    pub(crate) seq: u64,
    /// The segment that holds it.
    pub(crate) source: Option<ReadSource>,
    /// Where the stretch ends.
    pub(crate) end: u64,
    /// The next event that can be read without passing this one.
    pub(crate) next: u64,
}

/// How a job ended.
#[derive(Debug)]
pub(crate) struct Read {
    pub(crate) id: u64,
    pub(crate) done: ReadDone,
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
    Found {
        slices: Vec<LeasedSlice>,
        /// Bytes of memory that the slices keep alive, all together.
        bytes: usize,
    },
    /// The disk answers with an error; events of other disks may lie in the range as well.
    Failed { range: SeqRange, cause: String },
    /// The disk answers, twice, with something that was not written.
    Damaged { range: SeqRange, cause: String },
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
    /// The job for the event `seq`, in this stretch of a segment.
    pub(crate) fn new(id: u64, seq: u64, held_by: Option<(&Segment, Stretch)>) -> ReadJob {
        match held_by {
            Some((segment, stretch)) => {
                let source = Some(ReadSource::new(segment, stretch.offset));
                ReadJob { id, seq, source, end: stretch.end, next: stretch.end_seq }
            }
            None => ReadJob { id, seq, source: None, end: 0, next: seq + 1 },
        }
    }

    /// Bytes of the stretch.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> u64 {
        self.source.as_ref().map_or(0, |source| self.end - source.offset)
    }

    /// Reads. Blocks.
    pub(crate) fn run(&self, buffers: &Arc<Buffers>) -> Read {
        let done = match self.read(buffers) {
            ReadDone::Damaged { .. } => self.read(buffers),
            done => done,
        };
        Read { id: self.id, done }
    }

    fn read(&self, buffers: &Arc<Buffers>) -> ReadDone {
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
        let mut offset = source.offset;
        // No frame with events of this stretch begins behind it.
        let until = self.end.min(offset + INDEX_STEP);
        let mut finds = Finds::new(buffers, self.end);
        // What came in the way: a page that cannot be read, or is no header where one must be.
        let mut lost: Option<(bool, String)> = None;
        while offset < until {
            let Some(incarnation) = source.incarnation_at(offset) else {
                match source.skip(offset) {
                    Some(next) => {
                        offset = next;
                        continue;
                    }
                    None => break,
                }
            };
            let head = finds.bytes(source, offset, frame::HEADER.next_multiple_of(PAGE));
            let header = head.map(|head| source.header(head, offset));
            let header = match header {
                Ok(Ok(header)) => header,
                Ok(Err(_)) | Err(_) if finds.any() => break,
                // How long its frame was nobody knows; the next one says whose events were in it.
                Ok(Err(cause)) => {
                    lost.get_or_insert((false, format!("{}: {cause}", at(offset))));
                    offset += PAGE as u64;
                    continue;
                }
                Err(error) if lost.is_none() && error.kind() != io::ErrorKind::UnexpectedEof => {
                    lost = Some((true, format!("{}: {error}", at(offset))));
                    offset += PAGE as u64;
                    continue;
                }
                Err(error) => return failed(offset, self.next, error),
            };
            if header.seq_count > 0 && header.first_seq > self.seq && !finds.any() {
                return self.missed(header.first_seq, offset, lost);
            }
            offset = header.end();
            if header.seq_count == 0 || header.end_seq() <= self.seq {
                continue;
            }
            let bytes = finds.bytes(source, header.offset, header.stored_len as usize);
            match bytes.map(|bytes| check(bytes, &header, incarnation)) {
                Ok(Ok(())) => finds.frames.push(header),
                // Whoever wants it will hear of it.
                Ok(Err(_)) if finds.any() => {}
                Ok(Err(cause)) => {
                    return damaged(header.first_seq, header.end_seq(), format!("{}: {cause}", at(header.offset)));
                }
                Err(_) if finds.any() => break,
                Err(error) => return failed(header.offset, header.end_seq(), error),
            }
        }
        finds.decode();
        match finds.malformed {
            Some((header, cause)) if finds.slices.is_empty() => {
                damaged(header.first_seq, header.end_seq(), format!("{}: {cause}", at(header.offset)))
            }
            _ if finds.slices.is_empty() => self.missed(self.next, offset, lost),
            _ => ReadDone::Found { slices: finds.slices, bytes: finds.bytes + finds.expanded },
        }
    }

    /// The event is not there; whatever is known of why.
    fn missed(&self, end: u64, offset: u64, lost: Option<(bool, String)>) -> ReadDone {
        let range = SeqRange::new(self.seq, end.max(self.seq + 1));
        match lost {
            Some((true, cause)) => ReadDone::Failed { range, cause },
            Some((false, cause)) => ReadDone::Damaged { range, cause },
            None => {
                let slot = self.source.as_ref().map_or(0, |source| source.slot);
                ReadDone::Damaged { range, cause: format!("segment {slot} at {offset}: no frame holds it") }
            }
        }
    }
}

/// What a job has found so far.
struct Finds<'a> {
    buffers: &'a Arc<Buffers>,
    /// Reading goes no further than this without need.
    end: u64,
    chunk: Option<Chunk>,
    /// Frames of the chunk that are what was written; their bodies are plain.
    frames: Vec<FrameHeader>,
    slices: Vec<LeasedSlice>,
    bytes: usize,
    /// Bytes that compressed transactions became; they have memory of their own.
    expanded: usize,
    /// The first frame whose body is not what its header says.
    malformed: Option<(FrameHeader, String)>,
}

impl<'a> Finds<'a> {
    fn new(buffers: &'a Arc<Buffers>, end: u64) -> Finds<'a> {
        Finds {
            buffers,
            end,
            chunk: None,
            frames: Vec::new(),
            slices: Vec::new(),
            bytes: 0,
            expanded: 0,
            malformed: None,
        }
    }

    fn any(&self) -> bool {
        !self.frames.is_empty() || !self.slices.is_empty()
    }

    /// `len` bytes at `offset`; what follows is read with them.
    fn bytes(&mut self, source: &ReadSource, offset: u64, len: usize) -> io::Result<&mut [u8]> {
        if !self.chunk.as_ref().is_some_and(|chunk| chunk.holds(offset, len)) {
            self.decode();
            let ahead = self.end.saturating_sub(offset).clamp(len as u64, PIECE_MAX.max(len as u64));
            let mut buffer = self.buffers.take(ahead as usize)?;
            buffer.set_len(0);
            self.chunk = Some(Chunk { start: 0, end: self.end, buffer });
        }
        self.chunk.as_mut().expect("made just now").bytes_mut(source, offset, len)
    }

    /// Takes the events out of the chunk, whose memory is theirs from now on.
    fn decode(&mut self) {
        let Some(Chunk { start, buffer, .. }) = self.chunk.take() else { return };
        let lent = Lent { buffer: Some(buffer), home: Arc::clone(self.buffers) };
        if self.frames.is_empty() {
            return;
        }
        let bytes = Bytes::from_owner(lent);
        self.bytes += bytes.len();
        for header in self.frames.drain(..) {
            if self.expanded > EXPANDED_MAX {
                // What is left out is asked for once it is wanted, and not sooner.
                break;
            }
            let body = (header.offset - start) as usize + frame::HEADER;
            match decode_body(bytes.slice(body..body + header.body_len as usize), &header, &mut self.expanded) {
                Ok(more) => self.slices.extend(more),
                Err(cause) => {
                    self.malformed.get_or_insert((header, cause));
                }
            }
        }
    }
}

/// Memory to read into. What is read is lent to the events in it and comes back with the last of them: a drain asks the
/// kernel for memory once, not for every mebibyte.
#[derive(Debug, Default)]
pub(crate) struct Buffers {
    spare: Mutex<Vec<Buffer>>,
}

impl Buffers {
    fn take(&self, len: usize) -> io::Result<Buffer> {
        if len > PIECE {
            return Buffer::zeroed(len);
        }
        let spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner).pop();
        spare.map_or_else(|| Buffer::zeroed(PIECE), Ok)
    }

    fn give(&self, buffer: Buffer) {
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        if buffer.capacity() == PIECE && spare.len() < SPARES_MAX {
            spare.push(buffer);
        }
    }
}

/// A buffer that goes home when nobody needs it any more.
struct Lent {
    buffer: Option<Buffer>,
    home: Arc<Buffers>,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        self.buffer.as_deref().unwrap_or_default()
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some(buffer) = self.buffer.take() {
            self.home.give(buffer);
        }
    }
}

/// A piece of a segment in memory.
#[derive(Debug)]
pub(crate) struct Chunk {
    start: u64,
    /// Reading goes no further than this without need.
    end: u64,
    buffer: Buffer,
}

impl Chunk {
    /// For whoever reads a segment from front to back.
    pub(crate) fn new() -> io::Result<Chunk> {
        let mut buffer = Buffer::zeroed(PIECE)?;
        buffer.set_len(0);
        Ok(Chunk { start: 0, end: u64::MAX, buffer })
    }

    fn holds(&self, offset: u64, len: usize) -> bool {
        offset >= self.start && offset + len as u64 <= self.start + self.buffer.len() as u64
    }

    /// `len` bytes at `offset`, read together with what follows.
    pub(crate) fn bytes(&mut self, source: &ReadSource, offset: u64, len: usize) -> io::Result<&[u8]> {
        self.bytes_mut(source, offset, len).map(|bytes| &*bytes)
    }

    fn bytes_mut(&mut self, source: &ReadSource, offset: u64, len: usize) -> io::Result<&mut [u8]> {
        if !self.holds(offset, len) {
            if self.buffer.capacity() < len {
                self.buffer = Buffer::zeroed(len)?;
            }
            self.start = offset;
            let ahead = self.end.saturating_sub(offset).min(self.buffer.capacity() as u64);
            let wanted = ahead.max(len as u64).min(source.len.saturating_sub(offset)) as usize;
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
        Ok(&mut self.buffer[at..at + len])
    }
}

/// Whether a whole frame is what was written. Its body is plain afterwards.
fn check(bytes: &mut [u8], header: &FrameHeader, incarnation: &Incarnation) -> Result<(), String> {
    if !FrameHeader::body_is_intact(bytes) && !planted::is(Bug::ReadUnchecked) {
        return Err("checksum mismatch".to_owned());
    }
    let Some(key) = &incarnation.key else { return Ok(()) };
    let (head, rest) = bytes.split_at_mut(frame::HEADER);
    let sealed = rest.get_mut(..header.body_len as usize + frame::TAG).ok_or("the frame has no room for its tag")?;
    let opened = key.open(header.number, &head[..frame::AUTHENTICATED], sealed);
    opened.map_err(|_| "the frame does not authenticate".to_owned())
}

/// The transactions of one whole frame, in memory of their own.
pub(crate) fn decode(
    bytes: &[u8],
    header: &FrameHeader,
    incarnation: &Incarnation,
) -> Result<Vec<LeasedSlice>, String> {
    let mut own = bytes.to_vec();
    check(&mut own, header, incarnation)?;
    decode_body(Bytes::from(own).slice(frame::HEADER..frame::HEADER + header.body_len as usize), header, &mut 0)
}

/// The transactions of a frame's body, with the numbers of their events.
/// How far it was expanded is added to `expanded`.
fn decode_body(body: Bytes, header: &FrameHeader, expanded: &mut usize) -> Result<Vec<LeasedSlice>, String> {
    let mut slices = Vec::new();
    let (mut next, before) = (header.first_seq, *expanded);
    for section in sections(&body).map_err(|damage| damage.to_string())? {
        let encoded = match section.kind {
            TRANSACTION => Ok(body.slice_ref(section.payload)),
            COMPRESSED => {
                *expanded += compress::expanded_len(section.payload).map_err(|error| error.to_string())?;
                if *expanded - before > FRAME_MAX {
                    return Err("it expands to more than a frame".to_owned());
                }
                compress::expand(section.payload).map(Bytes::from)
            }
            _ => continue,
        };
        let events = encoded.and_then(EventSlice::decode).map_err(|error| error.to_string())?;
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
