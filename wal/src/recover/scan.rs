//! Reading one segment from its first page to its last, and saying what is there. No decisions.

use std::io;
use std::sync::Arc;

use super::Kept;
use super::cases::Content;
use crate::format::footer::Footer;
use crate::format::frame::{self, FrameHeader};
use crate::format::incarnation::IncarnationHeader;
use crate::format::section;
use crate::format::{Classified, Damage};
use crate::io::File;
use crate::io::buffer::Buffer;
use crate::limits::{INCARNATION_HEADER, PAGE};
use crate::planted::{self, Bug};
use crate::seal::{ChannelKey, FrameKey};

/// Bytes read at once: enough for full speed, little enough to have one per log.
const CHUNK: usize = 1 << 20;

/// Bytes read at once where only headers are wanted: more would read the bodies after all.
const CHUNK_OF_HEADERS: usize = 4 * PAGE;

/// Bytes read at once where a footer stands: most are one or two pages.
const CHUNK_OF_FOOTERS: usize = 16 * PAGE;

/// How closely each frame is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Only its header.
    Headers,
    /// The checksum of its body too, and its sections where they are plain or the key is there.
    Bodies,
}

/// All of a segment file.
#[derive(Debug)]
pub struct SlotScan {
    pub slot: u64,
    pub ordinal: u64,
    pub len: u64,
    pub file: Arc<dyn File>,
    pub incarnations: Vec<IncarnationScan>,
}

#[derive(Debug)]
pub struct IncarnationScan {
    pub header: IncarnationHeader,
    pub start: u64,
    pub frames: Vec<FrameScan>,
    /// Places without a frame that have frames behind them, in order.
    pub gaps: Vec<Gap>,
    /// What follows the last frame.
    pub tail: Content,
    /// Where the tail ends: at the next incarnation, or with the file.
    pub tail_end: u64,
    pub key: KeyState,
}

#[derive(Debug, Clone)]
pub enum KeyState {
    Plain,
    Here(Arc<FrameKey>),
    Missing(String),
    Wrong(String),
}

#[derive(Debug)]
pub struct FrameScan {
    pub header: FrameHeader,
    pub kept: Vec<Kept>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    pub start: u64,
    pub end: u64,
    pub content: Content,
}

/// Memory to read into, kept from one file to the next.
#[derive(Debug, Default)]
pub struct Scratch(Option<Buffer>);

/// Reads a file forward through one buffer.
struct Window<'a> {
    file: &'a dyn File,
    len: u64,
    /// Bytes read at once, if no more are needed.
    chunk: usize,
    buffer: &'a mut Buffer,
    start: u64,
}

impl<'a> Window<'a> {
    fn new(file: &'a dyn File, len: u64, chunk: usize, scratch: &'a mut Scratch) -> io::Result<Window<'a>> {
        let chunk = chunk.min(len as usize);
        let buffer = match scratch.0.take() {
            Some(buffer) if buffer.capacity() >= chunk => buffer,
            _ => Buffer::zeroed(chunk)?,
        };
        let buffer = scratch.0.insert(buffer);
        buffer.set_len(0);
        Ok(Window { file, len, chunk, buffer, start: 0 })
    }

    /// `len` bytes at `offset`; `None` beyond the end of the file. A page that the disk refuses is an error.
    fn bytes(&mut self, offset: u64, len: usize) -> io::Result<Option<&mut [u8]>> {
        if offset + len as u64 > self.len {
            return Ok(None);
        }
        let inside = offset >= self.start && offset + len as u64 <= self.start + self.buffer.len() as u64;
        if !inside {
            self.start = offset;
            if self.buffer.capacity() < len {
                *self.buffer = Buffer::zeroed(len)?;
            }
            let wanted = self.chunk.max(len).min((self.len - offset) as usize);
            self.buffer.set_len(wanted);
            let read = match self.file.read_at(self.buffer, offset) {
                Ok(read) => read,
                // One bad sector fails the whole read: ask for no more than needed.
                Err(_) => {
                    self.buffer.set_len(len);
                    match self.file.read_at(self.buffer, offset) {
                        Ok(read) => read,
                        Err(error) => {
                            self.buffer.set_len(0);
                            return Err(error);
                        }
                    }
                }
            };
            self.buffer.set_len(read);
            if read < len {
                self.buffer.set_len(0);
                return Ok(None);
            }
        }
        let at = (offset - self.start) as usize;
        Ok(Some(&mut self.buffer[at..at + len]))
    }
}

/// The header at the start of a file: either copy will do.
pub fn first_header(file: &dyn File, len: u64, scratch: &mut Scratch) -> io::Result<Classified<IncarnationHeader>> {
    let mut window = Window::new(file, len, INCARNATION_HEADER, scratch)?;
    let mut answer = Classified::Absent;
    let mut newest: Option<IncarnationHeader> = None;
    for copy in 0..2 {
        // A page that cannot be read is as good as damaged, as long as the other one is there.
        let page = window.bytes((copy * PAGE) as u64, PAGE);
        let classified = match &page {
            Ok(Some(page)) => IncarnationHeader::classify(page.first_chunk().expect("one page")),
            Ok(None) => Classified::Absent,
            Err(_) => Classified::Damaged(Damage::Checksum),
        };
        match classified {
            Classified::Present(header) if header.offset == 0 => {
                // While a spare is being reused the copies may differ: the newer one was never acknowledged to
                // anybody, but the older one's frames are drained either way.
                if newest.as_ref().is_none_or(|known| known.ordinal < header.ordinal) {
                    newest = Some(header);
                }
            }
            Classified::Present(_) => answer = Classified::Damaged(Damage::Misplaced),
            Classified::Damaged(damage @ Damage::Version { .. }) => return Ok(Classified::Damaged(damage)),
            Classified::Damaged(damage) => answer = Classified::Damaged(damage),
            Classified::Absent => {}
        }
    }
    Ok(newest.map_or(answer, Classified::Present))
}

/// The ordinal of frames in a file whose header is gone, if there are any.
pub fn orphan_frames(file: &dyn File, len: u64, scratch: &mut Scratch) -> io::Result<Option<u64>> {
    let mut window = Window::new(file, len, CHUNK, scratch)?;
    let mut found = None;
    for offset in (INCARNATION_HEADER as u64..len).step_by(PAGE) {
        if let Ok(Some(page)) = window.bytes(offset, PAGE)
            && let Ok(header) = FrameHeader::decode(page)
            && header.offset == offset
        {
            found = found.max(Some(header.ordinal));
        }
    }
    Ok(found)
}

fn key_state(header: &IncarnationHeader, keys: &[ChannelKey]) -> KeyState {
    let Some(reference) = &header.key else { return KeyState::Plain };
    let Some(key) = keys.iter().find(|key| key.id() == reference.id) else {
        return KeyState::Missing(reference.id.clone());
    };
    let (frame_key, check) = key.derive(&header.salt);
    if check == reference.check { KeyState::Here(Arc::new(frame_key)) } else { KeyState::Wrong(reference.id.clone()) }
}

/// Reads the segment that starts with `first`.
#[expect(clippy::too_many_arguments, reason = "what a segment is read from, and what it is read with")]
pub fn scan_slot(
    file: Arc<dyn File>,
    slot: u64,
    len: u64,
    first: &IncarnationHeader,
    keys: &[ChannelKey],
    depth: Depth,
    keep: &dyn Fn(u16) -> bool,
    scratch: &mut Scratch,
) -> io::Result<SlotScan> {
    let chunk = if depth == Depth::Headers { CHUNK_OF_HEADERS } else { CHUNK };
    let mut window = Window::new(&*file, len, chunk, scratch)?;
    let open = |header: IncarnationHeader| {
        let start = header.offset + INCARNATION_HEADER as u64;
        let key = key_state(&header, keys);
        IncarnationScan { header, start, frames: Vec::new(), gaps: Vec::new(), tail: Content::Zero, tail_end: len, key }
    };
    let mut incarnations = Vec::new();
    let mut current = open(first.clone());
    let mut offset = current.start;
    let mut missing: Option<Gap> = None;
    while offset + PAGE as u64 <= len {
        let content = match look(&mut window, offset, &current, depth, keep) {
            Found::Frame(frame) => {
                if let Some(gap) = missing.take() {
                    current.gaps.push(gap);
                }
                offset = frame.header.end();
                current.frames.push(*frame);
                continue;
            }
            Found::Incarnation(header) => {
                let start = header.offset;
                if let Some(gap) = missing.take() {
                    current.tail = gap.content;
                }
                current.tail_end = start;
                incarnations.push(std::mem::replace(&mut current, open(*header)));
                offset = current.start;
                continue;
            }
            Found::Nothing(content) => content,
        };
        let end = offset + PAGE as u64;
        missing = Some(match missing {
            None => Gap { start: offset, end, content },
            Some(gap) => Gap { start: gap.start, end, content: worse(gap.content, content) },
        });
        offset = if planted::is(Bug::DamageEndsLog) { len } else { end };
    }
    if let Some(gap) = missing {
        current.tail = gap.content;
    }
    incarnations.push(current);
    Ok(SlotScan { slot, ordinal: first.ordinal, len, file: Arc::clone(&file), incarnations })
}

/// The footer at `offset` of the segment that starts with `first`, with its frame and the key of both; `None` when there is
/// none that can be believed.
pub(super) fn footer_at(
    file: &dyn File,
    len: u64,
    first: &IncarnationHeader,
    offset: u64,
    keys: &[ChannelKey],
    keep: &dyn Fn(u16) -> bool,
    scratch: &mut Scratch,
) -> Option<(FrameScan, Footer, Option<Arc<FrameKey>>)> {
    let start = first.offset + INCARNATION_HEADER as u64;
    if offset < start || !offset.is_multiple_of(PAGE as u64) || offset + PAGE as u64 > len {
        return None;
    }
    let mut window = Window::new(file, len, CHUNK_OF_FOOTERS, scratch).ok()?;
    let key = key_state(first, keys);
    let (frames, gaps) = (Vec::new(), Vec::new());
    let current =
        IncarnationScan { header: first.clone(), start, frames, gaps, tail: Content::Zero, tail_end: len, key };
    let keep = |kind| kind == section::FOOTER || keep(kind);
    let Found::Frame(frame) = look(&mut window, offset, &current, Depth::Bodies, &keep) else { return None };
    let payload = &frame.kept.iter().find(|kept| kept.kind == section::FOOTER)?.payload;
    let footer = Footer::decode(payload).ok()?;
    let inside = footer.index.iter().all(|(_, at)| (start..offset).contains(at));
    let key = if let KeyState::Here(key) = current.key { Some(key) } else { None };
    (inside && frame.header.seq_count == 0).then_some((*frame, footer, key))
}

fn worse(one: Content, other: Content) -> Content {
    let rank = |content| match content {
        Content::Zero => 0,
        Content::Other => 1,
        Content::Damaged => 2,
        Content::Unreadable => 3,
    };
    if rank(one) >= rank(other) { one } else { other }
}

enum Found {
    Frame(Box<FrameScan>),
    Incarnation(Box<IncarnationHeader>),
    Nothing(Content),
}

fn look(
    window: &mut Window<'_>,
    offset: u64,
    current: &IncarnationScan,
    depth: Depth,
    keep: &dyn Fn(u16) -> bool,
) -> Found {
    let page = match window.bytes(offset, PAGE) {
        Ok(Some(page)) => page,
        // The file is shorter than it says it is.
        Ok(None) => return Found::Nothing(Content::Other),
        Err(_) => return Found::Nothing(Content::Unreadable),
    };
    match FrameHeader::decode(page) {
        Ok(header) if belongs(&header, offset, current) => {
            if depth == Depth::Headers && header.end() <= window.len {
                return Found::Frame(Box::new(FrameScan { header, kept: Vec::new() }));
            }
            return whole_frame(window, header, current, keep);
        }
        Ok(_) => return Found::Nothing(Content::Other),
        Err(Damage::Magic) => {}
        Err(_) => return Found::Nothing(Content::Other),
    }
    match IncarnationHeader::classify(page.first_chunk().expect("one page")) {
        Classified::Absent => Found::Nothing(Content::Zero),
        Classified::Present(header) => {
            let first = &current.header;
            let same = header.ordinal == first.ordinal && header.slot == first.slot && header.log == first.log;
            // The second copy stands in when the first one rotted.
            let here = header.offset == offset || header.offset + PAGE as u64 == offset;
            if same && here && header.offset >= current.start {
                Found::Incarnation(Box::new(header))
            } else {
                Found::Nothing(Content::Other)
            }
        }
        Classified::Damaged(_) => Found::Nothing(Content::Other),
    }
}

fn belongs(header: &FrameHeader, offset: u64, current: &IncarnationScan) -> bool {
    let own = header.incarnation == current.header.incarnation && header.ordinal == current.header.ordinal;
    (own || planted::is(Bug::AcceptRecycledFrames))
        && header.offset == offset
        && header.encrypted == current.header.key.is_some()
}

fn whole_frame(
    window: &mut Window<'_>,
    header: FrameHeader,
    current: &IncarnationScan,
    keep: &dyn Fn(u16) -> bool,
) -> Found {
    let damaged = Found::Nothing(Content::Damaged);
    let frame = match window.bytes(header.offset, header.stored_len as usize) {
        Ok(Some(frame)) => frame,
        Ok(None) => return damaged,
        Err(_) => return Found::Nothing(Content::Unreadable),
    };
    if !FrameHeader::body_is_intact(frame) && !planted::is(Bug::SkipBodyChecksum) {
        return damaged;
    }
    let body_len = header.body_len as usize;
    let decrypted;
    let body: Option<&[u8]> = match &current.key {
        KeyState::Plain => Some(&frame[frame::HEADER..frame::HEADER + body_len]),
        KeyState::Here(key) => match open_body(frame, &header, key) {
            Some(body) => {
                decrypted = body;
                Some(&decrypted)
            }
            None => return damaged,
        },
        // Structure and checksums are all that can be told without the key.
        KeyState::Missing(_) | KeyState::Wrong(_) => None,
    };
    let mut kept = Vec::new();
    if let Some(body) = body {
        let Ok(sections) = section::sections(body) else { return damaged };
        for section in sections {
            if section.kind == section::MARKS || keep(section.kind) {
                let payload = section.payload.to_vec();
                kept.push(Kept { kind: section.kind, optional: section.is_optional(), payload });
            }
        }
    }
    Found::Frame(Box::new(FrameScan { header, kept }))
}

/// Decrypts the body of a whole frame into fresh memory.
pub fn open_body(frame: &[u8], header: &FrameHeader, key: &FrameKey) -> Option<Vec<u8>> {
    let body_len = header.body_len as usize;
    let sealed = frame.get(frame::HEADER..frame::HEADER + body_len + frame::TAG)?;
    let mut body = sealed.to_vec();
    key.open(header.number, &frame[..frame::AUTHENTICATED], &mut body).ok()?;
    body.truncate(body_len);
    Some(body)
}
