//! Looking at a channel without opening it: for tools, beside a running agent, on what is left after an accident.
//!
//! Promises to change nothing and to hold on: a missing key, a directory that is gone, an identity that rotted or a
//! file of another channel is part of the answer, not the end of it. What it reports is what the pages say now;
//! recovery alone decides, from the disk. Memory is bounded by one segment's headers and one frame for each log.
//!
//! While the channel is written, logs are read at different moments and may disagree about the newest events. A loss
//! is only believed when [`Inspection::again`] still finds it, judged by what was durable before it looked.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;

use wal::chore::{slot_name, slot_of};
use wal::format::frame::{FrameHeader, HEADER, Mark as Place};
use wal::format::identity::{Identity, Member};
use wal::format::{Classified, Damage};
use wal::io::{Access, Dir};
use wal::limits::PAGE;
use wal::recover::known::Known;
use wal::recover::scan::{Depth, Scratch, first_header};
use wal::recover::{Finding, KeyUse, LogScan, Purpose, RecoverError, ShortSegment, read_log};
use wal::seal::ChannelKey;

use super::checkpoint::Checkpoint;
use super::compress;
use super::found::{Found, witnessed};
use super::open::{IDENTITY, OpenError, read_identity};
use super::ranges::RangeSet;
use super::read::{Chunk, ReadSource, decode};
use super::sections::{self, COMPRESSED, NOTES, SETTLEMENT, SNAPSHOT, TRANSACTION};
use crate::api::LeasedSlice;
use crate::event::{EventSlice, MalformedEvents};
use crate::settlement::SeqRange;

/// How to look.
#[derive(Debug, Clone)]
pub struct Looking {
    /// Keys to open frames with; without them what is inside stays locked.
    pub keys: Vec<ChannelKey>,
    pub depth: Depth,
    /// Drop cached pages first, so that the answer is the disk's.
    pub from_disk: bool,
}

/// Why nothing can be said at all.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    #[error("no channel in {dirs}; name the data directories of one channel")]
    NoChannel { dirs: String },
    #[error("{dir} belongs to another channel than {other}; inspect one channel at a time")]
    TwoChannels { dir: String, other: String },
    #[error("{dir} and {other} are the same directory, or one is a copy of the other; name only one of them")]
    SameDirectory { dir: String, other: String },
}

/// Whose a directory is, as far as it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IdentityState {
    Present,
    /// Segments are there; their headers say whose they are.
    Missing,
    Damaged(Damage),
}

/// One directory with a part of the channel.
#[derive(Debug)]
pub struct InspectedDir {
    pub dir: String,
    pub log: [u8; 16],
    pub identity: IdentityState,
    /// What its log says, or why it cannot be read.
    pub content: Result<Content, RecoverError>,
}

/// One log, read to its end.
#[derive(Debug)]
pub struct Content {
    scan: LogScan,
    /// Frames that count, their bytes and events.
    pub frames: u64,
    pub frame_bytes: u64,
    pub events: u64,
    /// When the first and the last of its frames were written.
    pub written_ms: Option<(u64, u64)>,
    /// Places that are not whole, judged by all logs.
    pub findings: Vec<Finding>,
    /// Checked bytes that make no sense, or need a newer version.
    pub malformed: Option<String>,
    pub unknown_section: Option<u16>,
}

impl Content {
    pub fn segments(&self) -> usize {
        self.scan.segments().count()
    }

    /// Files allocated ahead, and their bytes.
    pub fn spares(&self) -> (usize, u64) {
        self.scan.spares()
    }

    /// Bytes of all segment files.
    pub fn disk_bytes(&self) -> u64 {
        self.scan.segments().map(|segment| segment.len).sum::<u64>() + self.scan.spares().1
    }

    pub fn bytes_read(&self) -> u64 {
        self.scan.bytes_read
    }

    /// Segment files of another channel or directory.
    pub fn strays(&self) -> &[String] {
        &self.scan.strays
    }

    /// Segment files that something cut.
    pub fn short_segments(&self) -> &[ShortSegment] {
        &self.scan.short
    }

    pub fn key_uses(&self) -> &BTreeMap<Option<String>, KeyUse> {
        &self.scan.key_uses
    }
}

/// All that the given directories say about one channel.
#[derive(Debug)]
pub struct Inspection {
    pub channel: [u8; 16],
    pub generation: u64,
    /// All directories of the channel, by the newest identity; empty when no identity could be read.
    pub members: Vec<Member>,
    pub dirs: Vec<InspectedDir>,
    /// Directories without identity and segments: new, or a mount point whose disk is not there.
    pub empty: Vec<String>,
    /// Directories that cannot be read at all.
    pub unreadable: Vec<(String, io::Error)>,
    /// Directories with segments that do not say whose they are.
    pub unidentified: Vec<String>,
    /// Members that are not among the given directories.
    pub missing: Vec<Member>,
    depth: Depth,
    found: Found,
    queued: RangeSet,
    marks: BTreeMap<[u8; 16], Place>,
    lost: Vec<SeqRange>,
}

/// Which events to list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    Pending,
    /// Settled, and still on the disk; numbers that were given out twice and void are among them.
    Settled,
    All,
}

impl Inspection {
    pub fn look(dirs: &[Arc<dyn Dir>], looking: &Looking) -> Result<Inspection, InspectError> {
        Inspection::judged(dirs, looking, None)
    }

    /// Looks once more, and judges by what `self` saw: all that was durable then must be there now.
    pub fn again(&self, dirs: &[Arc<dyn Dir>], looking: &Looking) -> Result<Inspection, InspectError> {
        Inspection::judged(dirs, looking, Some(self))
    }

    fn judged(
        dirs: &[Arc<dyn Dir>],
        looking: &Looking,
        earlier: Option<&Inspection>,
    ) -> Result<Inspection, InspectError> {
        let mut inspection = Inspection::identify(dirs)?;
        inspection.depth = looking.depth;
        let mut found = Found::default();
        for known in &mut inspection.dirs {
            let dir = dirs.iter().find(|dir| dir.name() == known.dir).expect("one of the given");
            // A log that could not even be identified keeps its reason.
            if known.content.is_ok() {
                known.content = Content::read(&**dir, known.log, inspection.channel, looking, &mut found);
            }
        }
        let scans = || inspection.dirs.iter().filter_map(|dir| dir.content.as_ref().ok()).map(|content| &content.scan);
        let marks = witnessed(scans());
        let (marks_then, durable_then) =
            earlier.map_or((&marks, found.durable_seq), |earlier| (&earlier.marks, earlier.found.durable_seq));
        let findings: Vec<Vec<Finding>> =
            scans().map(|scan| scan.judge(marks_then.get(&scan.log).copied().unwrap_or_default())).collect();
        let contents = inspection.dirs.iter_mut().filter_map(|dir| dir.content.as_mut().ok());
        for (content, findings) in contents.zip(findings) {
            content.findings = findings;
        }
        inspection.queued = found.queued();
        inspection.lost = found.missing(found.floor, durable_then);
        inspection.found = found;
        inspection.marks = marks;
        Ok(inspection)
    }

    /// Whose the directories are.
    fn identify(dirs: &[Arc<dyn Dir>]) -> Result<Inspection, InspectError> {
        let mut inspection = Inspection {
            channel: [0; 16],
            generation: 0,
            members: Vec::new(),
            dirs: Vec::new(),
            empty: Vec::new(),
            unreadable: Vec::new(),
            unidentified: Vec::new(),
            missing: Vec::new(),
            depth: Depth::Bodies,
            found: Found::default(),
            queued: RangeSet::default(),
            marks: BTreeMap::new(),
            lost: Vec::new(),
        };
        let mut newest: Option<Identity> = None;
        let mut channels: Vec<(String, [u8; 16])> = Vec::new();
        for dir in dirs {
            let name = dir.name();
            match owner_of(&**dir) {
                Err(error) => inspection.unreadable.push((name, error)),
                Ok(Owner::Nobody) => inspection.empty.push(name),
                Ok(Owner::Unknown) => inspection.unidentified.push(name),
                Ok(Owner::Newer { file, damage }) => {
                    let content = Err(RecoverError::Version { dir: name.clone(), file, damage });
                    let identity = IdentityState::Damaged(damage);
                    inspection.dirs.push(InspectedDir { dir: name, log: [0; 16], identity, content });
                }
                Ok(Owner::Channel { channel, log, identity, state }) => {
                    if let Some((other, _)) = channels.iter().find(|(_, other)| *other != channel) {
                        return Err(InspectError::TwoChannels { dir: name, other: other.clone() });
                    }
                    if let Some(other) = inspection.dirs.iter().find(|other| other.log == log) {
                        return Err(InspectError::SameDirectory { dir: name, other: other.dir.clone() });
                    }
                    if let Some(identity) = identity
                        && newest.as_ref().is_none_or(|newest| newest.generation < identity.generation)
                    {
                        newest = Some(identity);
                    }
                    channels.push((name.clone(), channel));
                    let content = Ok(Content::empty(log, &name));
                    inspection.dirs.push(InspectedDir { dir: name, log, identity: state, content });
                }
            }
        }
        if inspection.dirs.is_empty() && inspection.unidentified.is_empty() && inspection.unreadable.is_empty() {
            return Err(InspectError::NoChannel { dirs: inspection.empty.join(", ") });
        }
        inspection.channel = channels.first().map_or([0; 16], |(_, channel)| *channel);
        if let Some(newest) = newest {
            inspection.generation = newest.generation;
            let here = |member: &&Member| inspection.dirs.iter().all(|dir| dir.log != member.log);
            inspection.missing = newest.members.iter().filter(here).cloned().collect();
            inspection.members = newest.members;
        }
        Ok(inspection)
    }

    fn contents(&self) -> impl Iterator<Item = &Content> {
        self.dirs.iter().filter_map(|dir| dir.content.as_ref().ok())
    }

    /// Events whose frames are there, settled ones included.
    pub fn stored_events(&self) -> u64 {
        self.found.coverage.count()
    }

    /// Keys that are needed and not there, or not the right ones.
    pub fn locked(&self) -> impl Iterator<Item = (&str, KeyUse)> {
        let uses = self.contents().flat_map(Content::key_uses);
        uses.filter(|(_, used)| used.access.is_locked()).map(|(id, used)| (id.as_deref().unwrap_or_default(), *used))
    }

    /// Whether all that is there could be read, so that settlements are known.
    pub fn knows_settlements(&self) -> bool {
        self.depth == Depth::Bodies && self.locked().next().is_none()
    }

    /// Events that are not settled; the most it can be where settlements are not known.
    pub fn pending_events(&self) -> u64 {
        self.queued.count()
    }

    pub fn is_pending(&self, seq: u64) -> bool {
        self.queued.around(seq).is_some()
    }

    /// Notes of sinks; unknown while something is locked.
    pub fn note_count(&self) -> usize {
        self.found.live_notes().len()
    }

    /// Events were given these numbers; the channel goes on at the end.
    pub fn numbers(&self) -> (u64, u64) {
        (self.found.floor, self.found.next_seq())
    }

    /// Acknowledged events that none of the directories holds; unknown while settlements are.
    pub fn lost(&self) -> Option<&[SeqRange]> {
        self.knows_settlements().then_some(&self.lost)
    }

    /// Whether acknowledged events are missing or may be.
    pub fn has_loss(&self) -> bool {
        self.lost().is_some_and(|lost| !lost.is_empty())
            || self.contents().any(|content| content.findings.iter().any(|finding| finding.case.is_loss()))
    }

    /// The events that can be read, in the order of their numbers, transaction by transaction.
    pub fn events(&self, which: Which) -> Events<'_> {
        let mut walks: Vec<Walk<'_>> = Vec::new();
        for dir in &self.dirs {
            if let Ok(content) = &dir.content {
                walks.push(Walk::new(self, content, which));
            }
        }
        Events { walks }
    }

    /// Decodes every transaction of one directory; says what does not make sense.
    pub fn check_events(&self, dir: &InspectedDir) -> impl Iterator<Item = Unreadable> {
        let walk = dir.content.as_ref().ok().map(|content| Walk::new(self, content, Which::All));
        walk.into_iter().flatten().filter_map(Result::err)
    }
}

impl Content {
    fn empty(log: [u8; 16], dir: &str) -> Content {
        Content {
            scan: LogScan::empty(log, dir),
            frames: 0,
            frame_bytes: 0,
            events: 0,
            written_ms: None,
            findings: Vec::new(),
            malformed: None,
            unknown_section: None,
        }
    }

    fn read(
        dir: &dyn Dir,
        log: [u8; 16],
        channel: [u8; 16],
        looking: &Looking,
        found: &mut Found,
    ) -> Result<Content, RecoverError> {
        let mut content = Content::empty(log, &dir.name());
        let mut own = Found::default();
        let purpose = Purpose::Inspect { depth: looking.depth, from_disk: looking.from_disk };
        let keep = |kind: u16| !sections::is_transaction(kind);
        content.scan =
            read_log(dir, log, channel, &looking.keys, purpose, &Known::default(), &keep, &mut |header, kept| {
                content.frames += 1;
                content.frame_bytes += u64::from(header.stored_len);
                content.events += u64::from(header.seq_count);
                let at = header.written_ms;
                content.written_ms =
                    Some(content.written_ms.map_or((at, at), |(first, last)| (first.min(at), last.max(at))));
                own.take(header, kept);
            })?;
        let wrong_footer = content.scan.wrong_footers.first();
        content.malformed = own.malformed.take().or_else(|| {
            wrong_footer.map(|slot| format!("the footer of {} does not say what its frames hold", slot_name(*slot)))
        });
        content.unknown_section = own.unknown;
        found.merge(own);
        Ok(content)
    }
}

enum Owner {
    /// Nothing of a channel is there.
    Nobody,
    /// Segments are there, and none says whose it is.
    Unknown,
    Newer {
        file: String,
        damage: Damage,
    },
    Channel {
        channel: [u8; 16],
        log: [u8; 16],
        identity: Option<Identity>,
        state: IdentityState,
    },
}

fn owner_of(dir: &dyn Dir) -> io::Result<Owner> {
    let state = match read_identity(dir) {
        Ok(Some(identity)) => {
            let Identity { channel, log, .. } = identity;
            return Ok(Owner::Channel { channel, log, identity: Some(identity), state: IdentityState::Present });
        }
        Ok(None) => IdentityState::Missing,
        Err(OpenError::Identity { damage: damage @ Damage::Version { .. }, .. }) => {
            return Ok(Owner::Newer { file: IDENTITY.to_owned(), damage });
        }
        Err(OpenError::Identity { damage, .. }) => IdentityState::Damaged(damage),
        Err(OpenError::Io { error, .. }) => return Err(error),
        Err(other) => return Err(io::Error::other(other.to_string())),
    };
    // The identity is no help: any segment says whose it is, too.
    let mut has_segments = false;
    for name in dir.list()?.into_iter().filter(|name| slot_of(name).is_some()) {
        has_segments = true;
        let Ok(file) = dir.open(&name, Access::Read) else { continue };
        match first_header(&*file, file.size()?, &mut Scratch::default())? {
            Classified::Present(header) => {
                let (channel, log) = (header.channel, header.log);
                return Ok(Owner::Channel { channel, log, identity: None, state });
            }
            Classified::Damaged(damage @ Damage::Version { .. }) => return Ok(Owner::Newer { file: name, damage }),
            Classified::Absent | Classified::Damaged(_) => {}
        }
    }
    Ok(if has_segments || state != IdentityState::Missing { Owner::Unknown } else { Owner::Nobody })
}

/// What could not be read although it was whole when it was looked at first.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// From here to the end of the segment: its writer gave it back, or the disk is failing.
    #[error("{0}; the rest of the segment is left out")]
    Rest(String),
    /// The events of one frame.
    #[error("{0}")]
    Frame(String),
}

/// Events of all logs, merged by their numbers.
#[derive(Debug)]
pub struct Events<'a> {
    walks: Vec<Walk<'a>>,
}

impl Iterator for Events<'_> {
    /// Events of one transaction, or what could not be read.
    type Item = Result<LeasedSlice, Unreadable>;

    fn next(&mut self) -> Option<Self::Item> {
        for walk in &mut self.walks {
            if let Err(problem) = walk.fill() {
                return Some(Err(problem));
            }
        }
        let first = |walk: &Walk<'_>| walk.ready.front().map(|slice| slice.first_seq);
        let walk = self.walks.iter_mut().filter(|walk| first(walk).is_some()).min_by_key(|walk| first(walk))?;
        walk.ready.pop_front().map(Ok)
    }
}

/// One log, frame by frame, forward.
#[derive(Debug)]
struct Walk<'a> {
    inspection: &'a Inspection,
    which: Which,
    /// Segments still to be read, the current one first.
    sources: VecDeque<ReadSource>,
    offset: u64,
    chunk: Option<Chunk>,
    /// Decoded events of the frame read last.
    ready: VecDeque<LeasedSlice>,
}

impl<'a> Walk<'a> {
    fn new(inspection: &'a Inspection, content: &Content, which: Which) -> Walk<'a> {
        let source = |segment| ReadSource::new(segment, 0);
        let sources: VecDeque<ReadSource> = content.scan.segments().map(source).collect();
        Walk { inspection, which, sources, offset: 0, chunk: None, ready: VecDeque::new() }
    }

    /// Reads on until events are ready or the log ends.
    fn fill(&mut self) -> Result<(), Unreadable> {
        while self.ready.is_empty()
            && let Some(source) = self.sources.front()
        {
            let Some(incarnation) = source.incarnation_at(self.offset) else {
                match source.skip(self.offset) {
                    Some(next) => self.offset = next,
                    None => self.next_segment(),
                }
                continue;
            };
            let at = format!("segment {} at {}", source.slot(), self.offset);
            let chunk = match &mut self.chunk {
                Some(chunk) => chunk,
                empty => match Chunk::new() {
                    Ok(chunk) => empty.insert(chunk),
                    Err(error) => {
                        self.sources.clear();
                        return Err(Unreadable::Rest(format!("{at}: {error}")));
                    }
                },
            };
            let head = chunk.bytes(source, self.offset, HEADER.next_multiple_of(PAGE));
            let header = head.map_err(|error| error.to_string()).and_then(|head| {
                let header = FrameHeader::decode(head).map_err(|damage| damage.to_string())?;
                let here = header.offset == self.offset
                    && header.incarnation == incarnation.id
                    && header.ordinal == source.ordinal();
                if here { Ok(header) } else { Err("a frame of another place".to_owned()) }
            });
            let header = match header {
                Ok(header) => header,
                Err(cause) => {
                    self.next_segment();
                    return Err(Unreadable::Rest(format!("{at}: {cause}")));
                }
            };
            self.offset = header.end();
            let locked = incarnation.encrypted && incarnation.key.is_none();
            let range = (header.seq_count > 0).then(|| SeqRange::new(header.first_seq, header.end_seq()));
            if !locked && range.is_some_and(|range| wants(self.inspection, self.which, range)) {
                let bytes = chunk.bytes(source, header.offset, header.stored_len as usize);
                let slices = bytes
                    .map_err(|error| error.to_string())
                    .and_then(|bytes| decode(bytes, &header, incarnation))
                    .map_err(|cause| Unreadable::Frame(format!("{at}: {cause}")))?;
                self.ready.extend(slices);
            }
        }
        Ok(())
    }

    fn next_segment(&mut self) {
        self.sources.pop_front();
        self.offset = 0;
        self.chunk = None;
    }
}

fn wants(inspection: &Inspection, which: Which, range: SeqRange) -> bool {
    match which {
        Which::All => true,
        Which::Pending => inspection.queued.overlaps(range),
        Which::Settled => !inspection.queued.covers(range),
    }
}

impl Iterator for Walk<'_> {
    type Item = Result<LeasedSlice, Unreadable>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.fill() {
            Ok(()) => self.ready.pop_front().map(Ok),
            Err(problem) => Some(Err(problem)),
        }
    }
}

/// Whether the payload of a section is what its kind says. Kinds that this build does not know pass.
pub fn check_section(kind: u16, payload: &[u8]) -> Result<(), MalformedEvents> {
    match kind {
        TRANSACTION => EventSlice::decode(bytes::Bytes::copy_from_slice(payload)).map(drop),
        COMPRESSED => compress::expand(payload).and_then(|plain| EventSlice::decode(plain.into())).map(drop),
        SETTLEMENT => sections::decode_settlements(payload).map(drop),
        NOTES => sections::decode_notes(payload).map(drop),
        SNAPSHOT => sections::decode_snapshot(payload).map(drop),
        _ => Ok(()),
    }
}

/// What a plain transaction's section would hold instead of this payload of a compressed one.
pub fn expand(payload: &[u8]) -> Result<Vec<u8>, MalformedEvents> {
    compress::expand(payload)
}

/// Whether these are the contents of a checkpoint.
pub fn check_checkpoint(body: &[u8]) -> Result<(), String> {
    Checkpoint::decode_body(body).map(drop)
}
