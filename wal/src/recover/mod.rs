//! Recovery: what a log has on its disk, decided from evidence and from the disk itself.
//!
//! The page cache is not trusted: every live segment is synced and its cached pages are dropped before it is read, for
//! frames that were never synced look fine after a kill and vanish in the next power cut. Segments are read newest
//! first, so that the fences of later incarnations are known when earlier ones are read, and memory stays bounded by
//! one segment. `docs/recovery.md` has the table of cases.

pub mod cases;
pub mod known;
pub mod scan;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use crate::chore::{slot_name, slot_of};
use crate::format::footer::Footer;
use crate::format::frame::{FrameHeader, Mark};
use crate::format::incarnation::{Fence, IncarnationHeader};
use crate::format::section::{self, LogMark};
use crate::format::{Classified, Damage};
use crate::io::{Access, Dir, File};
use crate::limits::{FENCES_MAX, IN_FLIGHT_MAX, INCARNATION_HEADER, PAGE};
use crate::log::Recovered;
use crate::planted::{self, Bug};
use crate::seal::ChannelKey;
use crate::segment::{Incarnation, Segment};
use cases::{Case, Content, Evidence, FenceSays, Position, decide};
use known::{Known, KnownSegment};
use scan::{Depth, FrameScan, IncarnationScan, KeyState, Scratch, SlotScan, scan_slot};

/// Why a log cannot be recovered at all. Damage is not among these: it is a [`Finding`].
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    #[error("{dir}: {action}: {error}")]
    Io { dir: String, action: String, error: io::Error },
    #[error("{dir}, {file}: {damage}")]
    Version { dir: String, file: String, damage: Damage },
    #[error("{dir}, {file}: encrypted with key `{key}`, which is not given")]
    KeyMissing { dir: String, file: String, key: String },
    #[error("{dir}, {file}: key `{key}` is not the key it was encrypted with")]
    WrongKey { dir: String, file: String, key: String },
    #[error("{dir}, {file}: belongs to another channel or directory")]
    Foreign { dir: String, file: String },
}

/// A place where the log is not whole, and what that means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub slot: u64,
    pub ordinal: u64,
    pub start: u64,
    pub end: u64,
    pub content: Content,
    pub case: Case,
}

/// A section that the owner of the log asked to keep.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    pub kind: u16,
    pub optional: bool,
    pub payload: Vec<u8>,
}

/// One log as read, before the marks of other logs are known.
#[derive(Debug)]
pub struct LogScan {
    pub log: [u8; 16],
    pub dir: String,
    segments: Vec<ScannedSegment>,
    spares: Vec<Spare>,
    lost_headers: Vec<Finding>,
    fences: Vec<Fence>,
    next_ordinal: u64,
    next_slot: u64,
    oldest_ordinal: u64,
    /// The highest marks that any frame claims, by log.
    pub marks: BTreeMap<[u8; 16], Mark>,
    pub frames: u64,
    pub bytes_read: u64,
    /// Segments taken from a checkpoint, unread.
    pub vouched: u64,
    /// Segments taken from their footers, unread.
    pub footed: u64,
    /// Slots whose footer says something else than the whole frames before it.
    pub wrong_footers: Vec<u64>,
    /// What each key encrypts, by its id; `None` is for plain frames.
    pub key_uses: BTreeMap<Option<String>, KeyUse>,
    /// Files that carry a segment's name and belong to another channel or directory. Recovery refuses them.
    pub strays: Vec<String>,
    /// Segments whose files end early: they were allocated whole, so something cut them.
    pub short: Vec<ShortSegment>,
}

/// A segment whose file is shorter than its header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShortSegment {
    pub slot: u64,
    pub len: u64,
    pub wanted: u64,
}

/// The frames of one key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyUse {
    pub access: KeyAccess,
    pub frames: u64,
    pub events: u64,
}

/// Whether frames can be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum KeyAccess {
    /// They are not encrypted.
    Plain,
    Here,
    /// The key is not given.
    Missing,
    /// A key is given under this name, and it is not the one.
    Wrong,
}

impl KeyAccess {
    pub fn is_locked(self) -> bool {
        matches!(self, KeyAccess::Missing | KeyAccess::Wrong)
    }
}

/// What a log is read for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To serve it: from the disk, not from the page cache, and only if every frame can be opened.
    Recover {
        /// Segments whose footer can be believed are not read. Without them everything is, and comes to the same.
        footers: bool,
    },
    /// To look at it, perhaps while another process writes it. Nothing is written, synced or decided; what is locked
    /// or belongs elsewhere is counted and passed by.
    Inspect {
        depth: Depth,
        /// Drop cached pages first, so that the answer is the disk's.
        from_disk: bool,
    },
}

/// A slot without frames that count.
#[derive(Debug)]
struct Spare {
    slot: u64,
    len: u64,
    file: Arc<dyn File>,
    /// There may be events in the clear in it.
    plain: bool,
}

#[derive(Debug)]
struct ScannedSegment {
    segment: Segment,
    /// None where the frames were not read.
    incarnations: Vec<Outline>,
    footed: bool,
}

/// An incarnation without its frames.
#[derive(Debug)]
struct Outline {
    id: u64,
    in_flight_max: u64,
    start: u64,
    frames_end: u64,
    frames: u64,
    gaps: Vec<scan::Gap>,
    tail: Content,
    tail_end: u64,
}

/// What is told about each frame that counts, newest segment first.
pub type Visit<'a> = dyn FnMut(&FrameHeader, &[Kept]) + 'a;

/// Reads one log. `keep` names the kinds of sections that `visit` wants to see.
#[expect(
    clippy::too_many_arguments,
    reason = "all of them are plain inputs, and a struct of them would be made for one call"
)]
pub fn read_log(
    dir: &dyn Dir,
    log: [u8; 16],
    channel: [u8; 16],
    keys: &[ChannelKey],
    purpose: Purpose,
    known: &Known,
    keep: &dyn Fn(u16) -> bool,
    visit: &mut Visit<'_>,
) -> Result<LogScan, RecoverError> {
    let name = dir.name();
    let failed = |action: &str, error| RecoverError::Io { dir: name.clone(), action: action.to_owned(), error };
    let mut scan = LogScan::empty(log, &name);
    if !known.segments.is_empty() && !planted::is(Bug::ForgetOldest) {
        // Otherwise everything is read, and frames say it.
        scan.oldest_ordinal = known.oldest_ordinal;
    }
    let recovers = matches!(purpose, Purpose::Recover { .. });
    let (depth, from_disk, footers) = match purpose {
        Purpose::Recover { footers } => (Depth::Bodies, true, footers),
        Purpose::Inspect { depth, from_disk } => (depth, from_disk, false),
    };
    let (mut slots, mut scratch) = (Vec::new(), Scratch::default());
    if recovers {
        // Names are cached as well: a process that died before it synced the directory leaves files that everybody
        // sees and that the next power cut takes away, with whatever was written into them since.
        dir.sync().map_err(|error| failed("sync", error))?;
    }
    for file_name in dir.list().map_err(|error| failed("list", error))? {
        let Some(slot) = slot_of(&file_name) else { continue };
        scan.next_slot = scan.next_slot.max(slot + 1);
        let access = if recovers { Access::ReadWrite } else { Access::Read };
        let file = match dir.open(&file_name, access) {
            Ok(file) => file,
            // The writer gave it back since the names were listed.
            Err(error) if !recovers && error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(failed(&format!("open {file_name}"), error)),
        };
        let prepare = || {
            if recovers && !planted::is(Bug::TrustPageCache) {
                file.sync()?;
            }
            if from_disk {
                file.drop_cache()?;
            }
            file.size()
        };
        let len = prepare().map_err(|error| failed(&format!("sync {file_name}"), error))?;
        let first = scan::first_header(&*file, len, &mut scratch);
        let first = first.map_err(|error| failed(&format!("read {file_name}"), error))?;
        let version = |damage| RecoverError::Version { dir: name.clone(), file: file_name.clone(), damage };
        let ordinal = match &first {
            Classified::Present(header) => {
                if header.channel != channel || header.log != log || header.slot != slot {
                    if !recovers {
                        scan.strays.push(file_name);
                        continue;
                    }
                    return Err(RecoverError::Foreign { dir: name.clone(), file: file_name });
                }
                header.ordinal
            }
            Classified::Damaged(damage @ Damage::Version { .. }) => return Err(version(*damage)),
            Classified::Absent | Classified::Damaged(_) => 0,
        };
        slots.push((ordinal, slot, len, file, first));
    }
    slots.sort_by_key(|(ordinal, ..)| std::cmp::Reverse(*ordinal));
    let mut headerless = Vec::new();
    for (_, slot, len, file, first) in slots {
        match first {
            Classified::Present(header) => {
                scan.next_ordinal = scan.next_ordinal.max(header.ordinal + 1);
                if header.ordinal < scan.oldest_ordinal {
                    // Drained: given back before it could be removed, or back from the dead.
                    scan.spares.push(Spare { slot, len, file, plain: header.key.is_none() });
                    continue;
                }
                if len < header.segment_len {
                    scan.short.push(ShortSegment { slot, len, wanted: header.segment_len });
                }
                if let Some(known) = known.segments.iter().find(|known| known.is(&header, len))
                    && let Some(segment) = known.attach(Arc::clone(&file), keys)
                {
                    scan.vouched += 1;
                    scan.segments.push(ScannedSegment { segment, incarnations: Vec::new(), footed: false });
                    continue;
                }
                if footers && scan.take_footer(&file, slot, len, &header, keys, keep, visit, &mut scratch) {
                    continue;
                }
                let found = scan_slot(file, slot, len, &header, keys, depth, keep, &mut scratch)
                    .map_err(|error| failed(&format!("read segment {slot}"), error))?;
                scan.take(found, recovers, visit)?;
            }
            // Zeroed and never used.
            Classified::Absent => scan.spares.push(Spare { slot, len, file, plain: false }),
            Classified::Damaged(_) => headerless.push((slot, len, file)),
        }
    }
    for (slot, len, file) in headerless {
        // A header that was being written when the machine stopped has no frames; one that rotted has.
        let orphans = scan::orphan_frames(&*file, len, &mut scratch);
        match orphans.map_err(|error| failed(&format!("read segment {slot}"), error))? {
            Some(ordinal) if ordinal >= scan.oldest_ordinal => {
                let start = INCARNATION_HEADER as u64;
                let case = Case::HeaderLost;
                let content = Content::Damaged;
                scan.lost_headers.push(Finding { slot, ordinal, start, end: len, content, case });
                scan.next_ordinal = scan.next_ordinal.max(ordinal + 1);
            }
            _ => scan.spares.push(Spare { slot, len, file, plain: true }),
        }
    }
    scan.segments.sort_by_key(|found| found.segment.ordinal);
    let oldest = scan.oldest_ordinal;
    let (live, drained): (Vec<_>, Vec<_>) =
        std::mem::take(&mut scan.segments).into_iter().partition(|found| found.segment.ordinal >= oldest);
    scan.segments = live;
    for ScannedSegment { segment, .. } in drained {
        let plain = segment.incarnations.iter().any(|incarnation| !incarnation.encrypted);
        scan.spares.push(Spare { slot: segment.slot, len: segment.len, file: segment.file, plain });
    }
    Ok(scan)
}

impl LogScan {
    /// A log of which nothing is known.
    pub fn empty(log: [u8; 16], dir: &str) -> LogScan {
        LogScan {
            log,
            dir: dir.to_owned(),
            segments: Vec::new(),
            spares: Vec::new(),
            lost_headers: Vec::new(),
            fences: Vec::new(),
            next_ordinal: 1,
            next_slot: 1,
            oldest_ordinal: 0,
            marks: BTreeMap::new(),
            frames: 0,
            bytes_read: 0,
            vouched: 0,
            footed: 0,
            wrong_footers: Vec::new(),
            key_uses: BTreeMap::new(),
            strays: Vec::new(),
            short: Vec::new(),
        }
    }

    /// Takes in one segment; those after it are here already.
    fn take(&mut self, found: SlotScan, recovers: bool, visit: &mut Visit<'_>) -> Result<(), RecoverError> {
        let file_name = slot_name(found.slot);
        for incarnation in &found.incarnations {
            let (dir, file) = (self.dir.clone(), file_name.clone());
            match &incarnation.key {
                KeyState::Missing(key) if recovers => {
                    return Err(RecoverError::KeyMissing { dir, file, key: key.clone() });
                }
                KeyState::Wrong(key) if recovers => {
                    return Err(RecoverError::WrongKey { dir, file, key: key.clone() });
                }
                _ => self.note_key(incarnation),
            }
            self.fences.extend(&incarnation.header.fences);
        }
        self.bytes_read += found.len;
        let mut segment = Segment::new(found.ordinal, found.slot, found.len, found.file);
        let mut outlines = Vec::new();
        for incarnation in found.incarnations {
            let IncarnationScan { header, start, frames, gaps, tail, tail_end, key } = incarnation;
            let fences: Vec<Fence> = self.fences_of(found.ordinal, header.incarnation).collect();
            let frames_end = frames.last().map_or(start, |frame| frame.header.end());
            let seal = header.key.as_ref().map(|key| (key.id.clone(), header.salt));
            segment.incarnations.push(Incarnation {
                seal,
                id: header.incarnation,
                start,
                end: start,
                encrypted: header.key.is_some(),
                key: if let KeyState::Here(key) = key { Some(key) } else { None },
                holes: gaps.iter().map(|gap| (gap.start, gap.end)).collect(),
            });
            let is_whole = gaps.is_empty();
            let outline = Outline {
                id: header.incarnation,
                in_flight_max: header.in_flight_max,
                start,
                frames_end,
                frames: frames.len() as u64,
                gaps,
                tail,
                tail_end,
            };
            outlines.push(outline);
            for frame in frames {
                let header = &frame.header;
                self.frames += 1;
                // What a frame testifies is true even if the frame itself does not count.
                self.mark_all(&frame);
                segment.previous_end = segment.previous_end.max(header.previous_end);
                if fences.iter().all(|fence| fence_says(fence, header.offset) != FenceSays::Cut) {
                    let footer = frame.kept.iter().find(|kept| kept.kind == section::FOOTER);
                    if is_whole && footer.is_some_and(|kept| Footer::decode(&kept.payload) != Ok(Footer::of(&segment)))
                    {
                        self.wrong_footers.push(found.slot);
                    }
                    // It gives segments back with the snapshot it holds, so not without it.
                    self.oldest_ordinal = self.oldest_ordinal.max(header.oldest_ordinal);
                    segment.note(header);
                    visit(header, &frame.kept);
                }
            }
        }
        self.segments.push(ScannedSegment { segment, incarnations: outlines, footed: false });
        Ok(())
    }

    /// Takes in one segment by its footer, if it has one that can be believed; those after it are here already, and the
    /// next one says where it stands. A segment that a start decided about is read.
    #[expect(clippy::too_many_arguments, reason = "what a segment is made of, and what it is read with")]
    fn take_footer(
        &mut self,
        file: &Arc<dyn File>,
        slot: u64,
        len: u64,
        first: &IncarnationHeader,
        keys: &[ChannelKey],
        keep: &dyn Fn(u16) -> bool,
        visit: &mut Visit<'_>,
        scratch: &mut Scratch,
    ) -> bool {
        let next = self.segments.last().map(|found| &found.segment);
        let Some(next) = next.filter(|next| next.ordinal == first.ordinal + 1) else { return false };
        if self.fences_of(first.ordinal, first.incarnation).next().is_some() {
            return false;
        }
        let footer = scan::footer_at(&**file, len, first, next.previous_end, keys, keep, scratch);
        let Some((frame, footer, key)) = footer else { return false };
        let header = &frame.header;
        let mut segment = Segment::new(first.ordinal, slot, len, Arc::clone(file));
        segment.incarnations.push(Incarnation {
            id: first.incarnation,
            start: first.offset + INCARNATION_HEADER as u64,
            end: header.end(),
            encrypted: first.key.is_some(),
            key,
            seal: first.key.as_ref().map(|key| (key.id.clone(), first.salt)),
            holes: Vec::new(),
        });
        segment.previous_end = header.previous_end;
        segment.restore(&footer.ranges, &footer.index);
        self.fences.extend(&first.fences);
        self.mark_all(&frame);
        self.oldest_ordinal = self.oldest_ordinal.max(header.oldest_ordinal);
        self.frames += 1;
        self.bytes_read += u64::from(header.stored_len);
        self.footed += 1;
        visit(header, &frame.kept);
        self.segments.push(ScannedSegment { segment, incarnations: Vec::new(), footed: true });
        true
    }

    /// Events that frames hold which were not read, because a footer speaks for them.
    pub fn footed_ranges(&self) -> impl Iterator<Item = (u64, u64)> {
        self.segments.iter().filter(|found| found.footed).flat_map(|found| found.segment.ranges().iter())
    }

    /// What a frame testifies of this log and of others.
    fn mark_all(&mut self, frame: &FrameScan) {
        self.mark(self.log, frame.header.durable);
        for kept in frame.kept.iter().filter(|kept| kept.kind == section::MARKS) {
            for LogMark { log, mark } in section::decode_marks(&kept.payload).unwrap_or_default() {
                self.mark(log, mark);
            }
        }
    }

    fn note_key(&mut self, incarnation: &IncarnationScan) {
        let access = match incarnation.key {
            KeyState::Plain => KeyAccess::Plain,
            KeyState::Here(_) => KeyAccess::Here,
            KeyState::Missing(_) => KeyAccess::Missing,
            KeyState::Wrong(_) => KeyAccess::Wrong,
        };
        if incarnation.frames.is_empty() {
            return;
        }
        let id = incarnation.header.key.as_ref().map(|key| key.id.clone());
        let known = self.key_uses.entry(id).or_insert(KeyUse { access, frames: 0, events: 0 });
        known.access = known.access.max(access);
        known.frames += incarnation.frames.len() as u64;
        known.events += incarnation.frames.iter().map(|frame| u64::from(frame.header.seq_count)).sum::<u64>();
    }

    fn mark(&mut self, log: [u8; 16], mark: Mark) {
        let known = self.marks.entry(log).or_default();
        *known = (*known).max(mark);
    }

    fn fences_of(&self, ordinal: u64, incarnation: u64) -> impl Iterator<Item = Fence> {
        self.fences.iter().filter(move |fence| fence.ordinal == ordinal && fence.incarnation == incarnation).copied()
    }

    /// Files with frames that count, oldest first.
    pub fn segments(&self) -> impl Iterator<Item = &Segment> {
        self.segments.iter().map(|found| &found.segment)
    }

    /// Files without frames that count, and their bytes.
    pub fn spares(&self) -> (usize, u64) {
        (self.spares.len(), self.spares.iter().map(|spare| spare.len).sum())
    }

    /// Whether a checkpoint spared no reading that matters: every segment that it knows is here, or was given back
    /// since, and no file lost its header, for which of them were given back is written in the frames that were spared.
    pub fn has_all(&self, known: &Known) -> bool {
        let here = |known: &KnownSegment| self.segments.iter().any(|found| found.segment.ordinal == known.ordinal);
        let all = known.segments.iter().all(|known| known.ordinal < self.oldest_ordinal || here(known));
        known.segments.is_empty() || (all && self.lost_headers.is_empty())
    }

    /// Where the segment at `index` must reach, by what the next one says. A gap in the ordinals says nothing: a segment
    /// without events was given back there, and the next one speaks of its end.
    fn successor_says(&self, index: usize) -> u64 {
        let next_ordinal = self.segments[index].segment.ordinal + 1;
        let next = self.segments.get(index + 1).filter(|next| next.segment.ordinal == next_ordinal);
        next.map_or(0, |next| next.segment.previous_end)
    }

    /// Decides about every place that is not whole. `witnessed` is the highest mark that any log has of this one.
    pub fn judge(&self, witnessed: Mark) -> Vec<Finding> {
        let mut findings = self.lost_headers.clone();
        for (index, found) in self.segments.iter().enumerate() {
            let successor_says = self.successor_says(index);
            let reached = match witnessed.ordinal.cmp(&found.segment.ordinal) {
                std::cmp::Ordering::Less => 0,
                std::cmp::Ordering::Equal => witnessed.offset,
                std::cmp::Ordering::Greater => successor_says,
            };
            for outline in &found.incarnations {
                let judge = Judge { scan: self, segment: &found.segment, outline, reached };
                for gap in &outline.gaps {
                    judge.region(Position::Gap, gap.start, gap.end, gap.content, &mut findings);
                }
                judge.region(Position::Tail, outline.frames_end, outline.tail_end, outline.tail, &mut findings);
            }
        }
        findings
    }

    /// What the log goes on from, once the findings are accepted.
    pub fn recovered(self, witnessed: Mark, segment_len: u64, encrypted: bool) -> Recovered {
        let mut fences = self.fences.clone();
        let mut unclean = false;
        for (index, found) in self.segments.iter().enumerate() {
            let successor_says = self.successor_says(index);
            for outline in &found.incarnations {
                let fenced = self.fences_of(found.segment.ordinal, outline.id).next().is_some();
                // Its last frames, or all of them, may be missing while one that overtook them stands in the next segment.
                let overtaken = successor_says > outline.frames_end;
                let unused = outline.frames == 0 && outline.tail == Content::Zero && !overtaken;
                if fenced || witnessed.ordinal > found.segment.ordinal || unused {
                    continue;
                }
                // A mark of this log, in whatever log it is written, would call what is missing here damage.
                unclean |= outline.tail != Content::Zero || !outline.gaps.is_empty() || overtaken;
                let fence = |hole: (u64, u64)| Fence {
                    ordinal: found.segment.ordinal,
                    incarnation: outline.id,
                    end: outline.frames_end,
                    hole_start: hole.0,
                    hole_end: hole.1,
                };
                if outline.gaps.is_empty() {
                    fences.push(fence((0, 0)));
                }
                fences.extend(outline.gaps.iter().map(|gap| fence((gap.start, gap.end))));
            }
        }
        let oldest = self.segments.first().map_or(self.next_ordinal, |found| found.segment.ordinal);
        fences.retain(|fence| fence.ordinal >= oldest);
        // Each header repeats those before it, and segments are read newest first.
        fences.sort_unstable_by_key(|fence| {
            (fence.ordinal, fence.incarnation, fence.end, fence.hole_start, fence.hole_end)
        });
        fences.dedup();
        // Only the newest fit a header. Older ones are below marks that newer frames carry.
        let surplus = fences.len().saturating_sub(FENCES_MAX);
        fences.drain(..surplus);
        let resume = self.segments.last().and_then(|found| {
            let last = found.incarnations.last()?;
            // Of a drained file only the first header is read, so that one must tell whether there is plaintext in it.
            let would_hide_plaintext = !encrypted && found.segment.incarnations.first()?.encrypted;
            // Behind everything that may have been in flight: no evidence is overwritten.
            let bound = if last.frames == 0 && last.tail == Content::Zero {
                last.start
            } else {
                last.frames_end + last.in_flight_max.min(found.segment.len)
            };
            let clean = last.tail == Content::Zero;
            let offset = if clean { last.frames_end } else { bound };
            let offset = if planted::is(Bug::OverwriteLastPage) { offset - PAGE as u64 } else { offset };
            (!would_hide_plaintext && offset + (INCARNATION_HEADER + PAGE) as u64 <= found.segment.len)
                .then_some((found.segment.ordinal, offset))
        });
        let usable = |spare: &Spare| spare.len == segment_len && !(encrypted && spare.plain);
        let (spares, removals): (Vec<_>, Vec<_>) = self.spares.into_iter().partition(usable);
        Recovered {
            segments: self.segments.into_iter().map(|found| found.segment).collect(),
            spares: spares.into_iter().map(|spare| (spare.slot, spare.len, spare.file)).collect(),
            removals: removals.into_iter().map(|spare| spare.slot).collect(),
            fences,
            unclean,
            next_ordinal: self.next_ordinal,
            next_slot: self.next_slot,
            oldest_ordinal: self.oldest_ordinal,
            resume,
        }
    }
}

fn fence_says(fence: &Fence, offset: u64) -> FenceSays {
    if offset >= fence.end || (fence.hole_start..fence.hole_end).contains(&offset) {
        FenceSays::Cut
    } else {
        FenceSays::Counts
    }
}

struct Judge<'a> {
    scan: &'a LogScan,
    segment: &'a Segment,
    outline: &'a Outline,
    reached: u64,
}

impl Judge<'_> {
    /// Cuts a region at the borders where the evidence changes, and decides about each piece.
    fn region(&self, position: Position, start: u64, end: u64, content: Content, findings: &mut Vec<Finding>) {
        let fences: Vec<Fence> = self.scan.fences_of(self.segment.ordinal, self.outline.id).collect();
        let mut borders = vec![start, end, self.reached.clamp(start, end)];
        for fence in &fences {
            borders.extend([fence.end, fence.hole_start, fence.hole_end].map(|border| border.clamp(start, end)));
        }
        borders.sort_unstable();
        borders.dedup();
        for piece in borders.windows(2) {
            let (piece_start, piece_end) = (piece[0], piece[1]);
            let fence = if fences.is_empty() || planted::is(Bug::IgnoreFences) {
                FenceSays::Nothing
            } else if fences.iter().any(|fence| fence_says(fence, piece_start) == FenceSays::Cut) {
                FenceSays::Cut
            } else {
                FenceSays::Counts
            };
            let window = self.outline.in_flight_max.min(IN_FLIGHT_MAX);
            let evidence = Evidence {
                position,
                fence,
                witnessed: piece_start < self.reached,
                beyond_window: position == Position::Gap && end - start > window,
                content,
            };
            let case = decide(&evidence);
            findings.push(Finding {
                slot: self.segment.slot,
                ordinal: self.segment.ordinal,
                start: piece_start,
                end: piece_end,
                content,
                case,
            });
        }
    }
}
