//! A log: one channel in one directory, as a state machine.
//!
//! It sees descriptors, never payload, and does no I/O: it hands out reservations and chores, and is told how they
//! ended. It promises that no position and no nonce is given twice, that frames become durable in order, and that
//! after a failure nothing unacknowledged counts any more.
//!
//! ```text
//! reserve ─► (seal, write) ─► complete ─► durable, in order            next_chore ─► (run) ─► chore_done
//! ```

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use crate::chore::{Chore, ChoreDone, Place, slot_name};
use crate::device::Device;
use crate::format::frame::{self, FrameHeader, Mark};
use crate::format::incarnation::{Fence, IncarnationHeader, KeyReference};
use crate::io::{Access, Dir, File};
use crate::limits::{
    FENCES_MAX, FRAME_MAX, IN_FLIGHT_MAX, INCARNATION_HEADER, SEGMENT_FIRST, SEGMENT_MAX, SEGMENT_MIN,
};
use crate::planted::{self, Bug};
use crate::seal::{ChannelKey, FrameKey, Random};
use crate::segment::{Incarnation, Segment};

mod footer;

pub use footer::FooterRequest;

/// What a log needs to know once.
#[derive(Debug, Clone)]
pub struct LogOptions {
    pub channel: [u8; 16],
    pub log: [u8; 16],
    pub segment_len: u64,
    /// Bytes of segments up to which drained ones are kept to be used again: what is written to them is written once,
    /// where a new one is zeroed first. The reserve is kept in any case.
    pub pool_bytes: u64,
    pub key: Option<ChannelKey>,
    /// Free bytes of the file system that allocation leaves alone.
    pub reserve_bytes: u64,
}

/// What a frame will hold, known before it has a place.
#[derive(Debug, Clone, Copy)]
pub struct FrameRequest {
    pub body_len: usize,
    pub first_seq: u64,
    pub seq_count: u32,
    pub durable_seq: u64,
    pub floor: u64,
    pub now_ms: u64,
    pub witness: bool,
    /// The frame holds the snapshot with which everything up to this ordinal is given back.
    pub retires: Option<u64>,
    /// Bytes behind it that it must leave free in its segment.
    pub leaves: usize,
}

/// A place, a nonce and the marks of one frame; never given twice.
#[derive(Debug, Clone)]
pub struct Reservation {
    /// Grows by one with each reservation of the log.
    pub id: u64,
    pub header: FrameHeader,
    pub file: Arc<dyn File>,
    pub key: Option<Arc<FrameKey>>,
    /// The device's epoch it belongs to.
    pub epoch: u64,
}

/// Why there is no reservation now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// A segment is being prepared, or a chore will prepare one.
    NeedsSegment,
    /// As many bytes are in flight as recovery would look through.
    InFlight,
    /// The log has failed and takes nothing until it is reopened.
    Failed,
}

/// What a completed write changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Completion {
    /// Earlier frames are still in flight.
    Waits,
    /// These frames are durable now, in order.
    Durable(Vec<u64>),
    /// These frames are of unknown outcome and will not count.
    Failed(Vec<u64>),
    /// The frame had failed already.
    Late,
}

#[derive(Debug)]
struct InFlight {
    id: u64,
    ordinal: u64,
    incarnation: u64,
    end: u64,
    stored_len: u64,
    done: bool,
    header: FrameHeader,
}

#[derive(Debug)]
struct Open {
    /// It stands alone in its segment, so that a footer can speak for it.
    alone: bool,
    ordinal: u64,
    incarnation: u64,
    next_offset: u64,
    segment_end: u64,
    next_number: u64,
    previous_end: u64,
    key: Option<Arc<FrameKey>>,
    /// How many rotations of the key it has seen.
    rotations: u64,
    file: Arc<dyn File>,
}

#[derive(Debug)]
struct Prepared {
    header: IncarnationHeader,
    key: Option<Arc<FrameKey>>,
    rotations: u64,
    file: Arc<dyn File>,
}

/// So many segments without events are given back together; a snapshot and its witness fill at most two.
const BARE_SEGMENTS: usize = 4;

/// Places for segments that events leave alone, beside the open one. With two of them settlements never end on a full
/// disk: once the second is begun, a snapshot in it makes the first superfluous, and its space makes the next.
const RESERVE: usize = RESERVE_OF_VERDICT + 2;
/// Places that nothing but the verdict of a start takes: without it a full disk would not open again.
const RESERVE_OF_VERDICT: usize = 1;

/// The state of one log.
#[derive(Debug)]
pub struct Log {
    options: LogOptions,
    device: Arc<Device>,
    epoch: u64,
    failure: Option<String>,
    segments: VecDeque<Segment>,
    open: Option<Open>,
    /// Segments of which no footer is written yet, oldest first.
    without_footer: VecDeque<Open>,
    /// Bytes that frames leave free for the footer of their segment.
    footer_room: usize,
    ready: Option<Prepared>,
    /// The key of the header that is being written, which may have been rotated meanwhile, and the rotations it has seen.
    preparing: (Option<Arc<FrameKey>>, u64),
    /// How often the channel's key was replaced.
    rotations: u64,
    /// A chore is out.
    busy: bool,
    /// The last attempt to allocate failed, and the next waits for a retry.
    blocked: Option<String>,
    /// Bytes that the next segment must have room for.
    wanted: usize,
    in_flight: VecDeque<InFlight>,
    in_flight_bytes: u64,
    /// Writes of failed frames that have not returned yet: their segments must not be reused before.
    late: usize,
    durable: Mark,
    next_id: u64,
    next_ordinal: u64,
    next_slot: u64,
    oldest_ordinal: u64,
    spares: Vec<(u64, u64, Arc<dyn File>)>,
    removals: Vec<u64>,
    /// Slots with their lengths that become spares once they are zeroed.
    renewals: Vec<(u64, u64)>,
    fences: Vec<Fence>,
    /// Fences of segments from this ordinal on are in no durable header yet.
    unfenced_from: Option<u64>,
    unclean: bool,
    /// Where the first incarnation of this run may stand behind those of earlier runs.
    resume: Option<(u64, u64)>,
}

/// What recovery found, to go on from.
#[derive(Debug, Default)]
pub struct Recovered {
    pub segments: Vec<Segment>,
    /// Slots without live frames that may be used again, with their lengths.
    pub spares: Vec<(u64, u64, Arc<dyn File>)>,
    /// Slots that may not: of another length, or with plaintext in an encrypted channel.
    pub removals: Vec<u64>,
    /// Verdict on earlier incarnations, to be written with the next header.
    pub fences: Vec<Fence>,
    /// Something was torn, so that the verdict must be durable before anything is served.
    pub unclean: bool,
    pub next_ordinal: u64,
    pub next_slot: u64,
    pub oldest_ordinal: u64,
    /// Ordinal and offset where a new incarnation may stand.
    pub resume: Option<(u64, u64)>,
}

impl Open {
    fn has_room(&self, bytes: usize) -> bool {
        self.next_offset + bytes as u64 <= self.segment_end
    }
}

impl Log {
    pub fn new(mut options: LogOptions, device: Arc<Device>, recovered: Recovered) -> Log {
        assert!((SEGMENT_MIN..=SEGMENT_MAX).contains(&options.segment_len));
        if planted::is(Bug::PlainAfterRestart) && recovered.resume.is_some() {
            options.key = None;
        }
        let epoch = device.epoch();
        let durable = recovered.segments.last().map_or(Mark::default(), |segment| Mark {
            ordinal: segment.ordinal,
            offset: segment.incarnations.iter().map(|incarnation| incarnation.end).max().unwrap_or_default(),
        });
        Log {
            epoch,
            device,
            failure: None,
            segments: recovered.segments.into(),
            open: None,
            without_footer: VecDeque::new(),
            footer_room: footer::room_for(options.segment_len, 0),
            ready: None,
            preparing: (None, 0),
            rotations: 0,
            busy: false,
            blocked: None,
            wanted: 0,
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
            late: 0,
            durable,
            next_id: 0,
            next_ordinal: recovered.next_ordinal,
            next_slot: recovered.next_slot,
            oldest_ordinal: recovered.oldest_ordinal,
            spares: recovered.spares,
            removals: recovered.removals,
            renewals: Vec::new(),
            fences: recovered.fences,
            unfenced_from: None,
            unclean: recovered.unclean,
            resume: recovered.resume,
            options,
        }
    }

    pub fn id(&self) -> [u8; 16] {
        self.options.log
    }

    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// Why the log takes no frames, if it does not.
    pub fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// Why no segment could be allocated, if that was the last thing that happened.
    pub fn blocked(&self) -> Option<&str> {
        self.blocked.as_deref()
    }

    /// How far this log is durable.
    pub fn durable(&self) -> Mark {
        self.durable
    }

    pub fn segments(&self) -> impl Iterator<Item = &Segment> {
        self.segments.iter()
    }

    /// Segments to which nothing will ever be added, and of which everything is durable: a checkpoint may vouch for
    /// them. The newest one is never among them, for a later run may go on in it.
    pub fn sealed_segments(&self) -> impl Iterator<Item = &Segment> {
        let open = self.segments.back().map_or(0, |segment| segment.ordinal);
        let open = if planted::is(Bug::CheckpointVouchesForOpen) { open + 1 } else { open };
        let in_flight = self.in_flight.iter().map(|frame| frame.ordinal).min().unwrap_or(open);
        let late = if self.late > 0 { 0 } else { open };
        // Without its fence, a start that has no checkpoint could find what one with it does not.
        let unfenced = self.unfenced_from.unwrap_or(open);
        let first_unsealed = open.min(in_flight).min(late).min(unfenced);
        self.segments.iter().take_while(move |segment| segment.ordinal < first_unsealed)
    }

    /// Segments below this one are given back, and durable frames say so.
    pub fn oldest_ordinal(&self) -> u64 {
        self.oldest_ordinal
    }

    /// Bytes of files that the log holds.
    pub fn disk_bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.len).sum()
    }

    pub fn has_in_flight(&self) -> bool {
        !self.in_flight.is_empty()
    }

    /// Writes that may still touch its files: open reservations and late ones.
    pub fn is_settled(&self) -> bool {
        self.in_flight.is_empty() && self.late == 0 && !self.busy
    }

    /// Whether a chore is out.
    pub fn is_busy(&self) -> bool {
        self.busy
    }

    /// The longest body that fits a frame of this log.
    pub fn body_max(&self) -> usize {
        let room = self.options.segment_len as usize - INCARNATION_HEADER;
        room.min(FRAME_MAX) - frame::HEADER - frame::TAG
    }

    /// Notices that another log's write ended the epoch of the device. Returns frames that failed with it.
    pub fn check_epoch(&mut self) -> Vec<u64> {
        if self.failure.is_none() && self.device.epoch() != self.epoch {
            let cause = self.device.failure().unwrap_or_else(|| "the device failed".to_owned());
            return self.fail(&cause);
        }
        Vec::new()
    }

    /// Seals new frames with another key. What is written stays under the key that its header names. Frames turn to the
    /// new key with the next place that can be prepared; until then they go on under the old one, for a disk that is full or
    /// failing must not stop them. A log that is not encrypted stays so.
    pub fn rotate(&mut self, key: ChannelKey) {
        if self.options.key.is_none() {
            return;
        }
        self.rotations += 1;
        if !planted::is(Bug::PrepareWithOldKey) {
            self.options.key = Some(key);
        }
    }

    /// Gives a frame its place, nonce and marks, in one step.
    pub fn reserve(&mut self, request: &FrameRequest) -> Result<Reservation, Refused> {
        if self.failure.is_some() || self.device.epoch() != self.epoch || self.device.failure().is_some() {
            return Err(Refused::Failed);
        }
        let stored_len = frame::stored_len(request.body_len, self.options.key.is_some());
        assert!(stored_len <= FRAME_MAX, "a frame of {stored_len} bytes: the gatherer respects body_max()");
        if self.in_flight_bytes + stored_len as u64 > IN_FLIGHT_MAX {
            return Err(Refused::InFlight);
        }
        let takes_events = request.seq_count > 0;
        if takes_events && self.lacks_reserve() && !planted::is(Bug::SpendLastSpare) {
            self.wanted = self.wanted.max(stored_len);
            return Err(Refused::NeedsSegment);
        }
        let needed = stored_len + request.leaves;
        let fits = self.open.as_ref().is_some_and(|open| open.has_room(needed));
        let rotates = self.open.as_ref().is_some_and(|open| open.rotations < self.rotations)
            && self.ready.as_ref().is_some_and(|ready| ready.rotations == self.rotations)
            && self.can_roll(needed, takes_events);
        // Without a place to go to, frames are worth more than a footer.
        if !fits || rotates || (self.would_take_footer_room(needed) && self.can_roll(stored_len, takes_events)) {
            self.roll(stored_len, takes_events)?;
        }
        let open = self.open.as_mut().expect("rolled to an incarnation with room");
        let own_place = Mark { ordinal: open.ordinal, offset: open.next_offset };
        let header = FrameHeader {
            encrypted: open.key.is_some(),
            witness: request.witness,
            incarnation: open.incarnation,
            ordinal: open.ordinal,
            offset: open.next_offset,
            number: open.next_number,
            stored_len: stored_len as u32,
            body_len: request.body_len as u32,
            first_seq: request.first_seq,
            seq_count: request.seq_count,
            durable: if planted::is(Bug::MarkAheadOfDurable) { own_place } else { self.durable },
            previous_end: open.previous_end,
            durable_seq: request.durable_seq,
            floor: request.floor,
            oldest_ordinal: self.oldest_ordinal.max(request.retires.map_or(0, |ordinal| ordinal + 1)),
            written_ms: request.now_ms,
        };
        open.next_offset += stored_len as u64;
        if !planted::is(Bug::ReuseNonce) {
            open.next_number += 1;
        }
        let reservation = Reservation {
            id: self.next_id,
            header: header.clone(),
            file: Arc::clone(&open.file),
            key: open.key.clone(),
            epoch: self.epoch,
        };
        self.next_id += 1;
        self.in_flight_bytes += stored_len as u64;
        self.in_flight.push_back(InFlight {
            id: reservation.id,
            ordinal: header.ordinal,
            incarnation: header.incarnation,
            end: header.end(),
            stored_len: stored_len as u64,
            done: false,
            header,
        });
        Ok(reservation)
    }

    /// Whether a frame may go to the prepared segment.
    fn can_roll(&self, stored_len: usize, takes_events: bool) -> bool {
        // Events leave the reserve alone, so that settlements, and with them the way out of a full disk, have room. The
        // first segment of all does not wait for it: nothing is there to be settled.
        let spends_reserve = self.spares.len() < RESERVE && !self.segments.is_empty();
        let fits = |prepared: &Prepared| {
            prepared.header.offset + (INCARNATION_HEADER + stored_len) as u64 <= prepared.header.segment_len
        };
        let may = !(takes_events && spends_reserve) || planted::is(Bug::SpendLastSpare);
        may && self.ready.as_ref().is_some_and(fits)
    }

    /// Turns to the prepared segment.
    fn roll(&mut self, stored_len: usize, takes_events: bool) -> Result<(), Refused> {
        if !self.can_roll(stored_len, takes_events) {
            self.wanted = self.wanted.max(stored_len);
            return Err(Refused::NeedsSegment);
        }
        let prepared = self.ready.take().expect("it was just looked at");
        let before = self.open.take();
        // Between them may be a place that was prepared, given back unused, and is not removed yet: it ends nowhere.
        let follows = |open: &&Open| open.ordinal + 1 == prepared.header.ordinal;
        let previous_end = before.as_ref().filter(follows).map_or(0, |open| open.next_offset);
        self.without_footer.extend(before.filter(|before| before.alone));
        self.enlist(&prepared);
        let header = prepared.header;
        self.open = Some(Open {
            alone: header.offset == 0,
            ordinal: header.ordinal,
            incarnation: header.incarnation,
            next_offset: header.offset + INCARNATION_HEADER as u64,
            segment_end: header.segment_len,
            next_number: 0,
            // Another run's frames are fenced, not continued.
            previous_end,
            key: prepared.key,
            rotations: prepared.rotations,
            file: prepared.file,
        });
        Ok(())
    }

    /// From now on a prepared place is one of the live segments.
    fn enlist(&mut self, Prepared { header, key, file, .. }: &Prepared) {
        let start = header.offset + INCARNATION_HEADER as u64;
        let incarnation = Incarnation {
            id: header.incarnation,
            start,
            end: start,
            encrypted: key.is_some(),
            key: key.clone(),
            seal: header.key.as_ref().map(|key| (key.id.clone(), header.salt)),
            holes: Vec::new(),
        };
        match self.segments.back_mut().filter(|segment| segment.ordinal == header.ordinal) {
            Some(segment) => segment.incarnations.push(incarnation),
            None => {
                let mut segment = Segment::new(header.ordinal, header.slot, header.segment_len, Arc::clone(file));
                segment.incarnations.push(incarnation);
                self.segments.push_back(segment);
            }
        }
    }

    /// A reserved frame was written and synced, or was not.
    pub fn complete(&mut self, id: u64, epoch: u64, result: Result<(), &str>) -> Completion {
        let Some(place) = self.in_flight.iter().position(|frame| frame.id == id) else {
            self.late -= 1;
            return Completion::Late;
        };
        let cause = match result {
            Err(cause) => {
                self.device.fail(epoch, cause);
                Some(cause.to_owned())
            }
            // The device failed under another write: whether this one is durable is anybody's guess.
            Ok(()) if self.device.epoch() != epoch => Some(self.device.failure().unwrap_or_default()),
            Ok(()) => None,
        };
        if let Some(cause) = cause {
            let failed = self.fail(&cause);
            // This one has returned; the others will.
            self.late -= 1;
            return Completion::Failed(failed);
        }
        self.in_flight[place].done = true;
        if planted::is(Bug::DurableOutOfOrder) {
            self.in_flight.swap(0, place);
        }
        let mut durable = Vec::new();
        while self.in_flight.front().is_some_and(|frame| frame.done) {
            let frame = self.in_flight.pop_front().expect("just seen");
            self.durable = Mark { ordinal: frame.ordinal, offset: frame.end };
            self.in_flight_bytes -= frame.stored_len;
            if let Some(segment) = self.segments.iter_mut().rev().find(|segment| segment.ordinal == frame.ordinal) {
                segment.note(&frame.header);
            }
            durable.push(frame.id);
        }
        if durable.is_empty() { Completion::Waits } else { Completion::Durable(durable) }
    }

    /// Closes the incarnation for good: what is not durable will not count, whatever the disk says later.
    fn fail(&mut self, cause: &str) -> Vec<u64> {
        self.failure = Some(cause.to_owned());
        self.late += self.in_flight.iter().filter(|frame| !frame.done).count();
        // An unsealed header may be on disk already; nothing was submitted under it.
        let mut touched: Vec<(u64, u64)> =
            self.in_flight.iter().map(|frame| (frame.ordinal, frame.incarnation)).collect();
        self.without_footer.clear();
        let is_verdict = self.open.is_none();
        if let Some(open) = self.open.take() {
            touched.push((open.ordinal, open.incarnation));
        }
        touched.dedup();
        for (ordinal, incarnation) in touched.iter().copied() {
            let segment = self.segments.iter().find(|segment| segment.ordinal == ordinal);
            let end = segment
                .and_then(|segment| segment.incarnations.iter().find(|found| found.id == incarnation))
                .map_or(0, |found| found.end);
            self.fences.push(Fence { ordinal, incarnation, end, hole_start: 0, hole_end: 0 });
        }
        let first_touched = touched.iter().map(|(ordinal, _)| *ordinal).min();
        self.unfenced_from = self.unfenced_from.into_iter().chain(first_touched).min();
        // Its header has no fence for what failed just now. But what an earlier failure or the start decided may be nowhere
        // else, and others say by now how far this log is durable: it stays until a later header repeats it.
        match self.ready.take_if(|ready| is_verdict && !ready.header.fences.is_empty()) {
            Some(verdict) => self.enlist(&verdict),
            None => self.discard_ready(),
        }
        self.resume = None;
        self.in_flight_bytes = 0;
        self.in_flight.drain(..).map(|frame| frame.id).collect()
    }

    /// Whether [`next_chore`](Log::next_chore) has something to do that no retry time holds back.
    pub fn chore_waits(&self, needed: bool) -> bool {
        let allocates = self.blocked.is_none() && (self.wants_segment(needed) || self.wants_spare(needed));
        let has_place = self.wants_segment(needed) && self.has_place();
        !self.busy
            && self.failure.is_none()
            && (!self.removals.is_empty() || !self.renewals.is_empty() || allocates || has_place || self.owes_footer())
    }

    /// Whether a segment can be prepared without allocating one.
    fn has_place(&self) -> bool {
        let needed = (INCARNATION_HEADER + self.wanted) as u64;
        self.resume_place(needed).is_some() || self.usable_spare(needed).is_some()
    }

    /// The index of a spare that may be used now, and is long enough.
    fn usable_spare(&self, needed: u64) -> Option<usize> {
        let kept = if self.open.is_some() { RESERVE_OF_VERDICT } else { 0 };
        let long_enough = self.spares.iter().position(|(_, len, _)| *len >= needed);
        long_enough.filter(|_| self.spares.len() > kept)
    }

    /// Places for segments beside the open one.
    fn places(&self) -> usize {
        self.spares.len() + usize::from(self.ready.is_some())
    }

    /// Bytes of segments in use and spare.
    fn pooled_bytes(&self) -> u64 {
        self.disk_bytes() + self.spares.iter().map(|(_, len, _)| len).sum::<u64>()
    }

    /// Whether events would take room that settlements will need. In the first quarter of the first segment of all they
    /// do not: the reserve is made meanwhile.
    fn lacks_reserve(&self) -> bool {
        let Some(open) = &self.open else { return false };
        let begins = self.segments.len() == 1 && open.next_offset * 4 < open.segment_end;
        self.places() < RESERVE && !begins
    }

    /// Whether the open segment is the last one for now: the disk is full and nothing is in reserve.
    pub fn is_last_place(&self) -> bool {
        self.blocked.is_some() && self.places() <= RESERVE_OF_VERDICT
    }

    /// Whether a frame of `stored_len` bytes without events finds room at once.
    pub fn has_room(&self, stored_len: usize) -> bool {
        self.open.as_ref().is_some_and(|open| open.has_room(stored_len)) || self.ready.is_some()
    }

    fn wants_segment(&self, needed: bool) -> bool {
        // Ahead of need: once half of the open segment is used.
        let ahead = self.open.as_ref().is_some_and(|open| open.next_offset * 2 > open.segment_end);
        let fits = |prepared: &Prepared| {
            prepared.header.offset + (INCARNATION_HEADER + self.wanted) as u64 <= prepared.header.segment_len
        };
        // A new key is turned to at once, not when the open segment is full.
        let rotates = self.open.as_ref().is_some_and(|open| open.rotations < self.rotations)
            || self.ready.as_ref().is_some_and(|ready| ready.rotations < self.rotations);
        let asked = ahead || rotates || (needed && (self.wanted > 0 || self.open.is_none())) || self.needs_verdict();
        let is_current = |prepared: &Prepared| prepared.rotations == self.rotations && fits(prepared);
        asked && !self.ready.as_ref().is_some_and(is_current)
    }

    fn wants_spare(&self, needed: bool) -> bool {
        let begun = self.open.is_some() || !self.segments.is_empty();
        self.spares.len() < RESERVE && (begun || needed)
    }

    /// The next piece of work with files. `needed` says that frames wait for a segment, `retry` that a blocked
    /// allocation or a failed device may be tried again.
    pub fn next_chore(&mut self, random: &dyn Random, needed: bool, retry: bool, now_ms: u64) -> Option<Chore> {
        if self.busy {
            return None;
        }
        if self.failure.is_some() {
            self.busy = retry;
            return retry.then_some(Chore::Probe);
        }
        if let Some(slot) = self.removals.pop() {
            self.busy = true;
            return Some(Chore::Remove { slot });
        }
        if let Some((old, len)) = self.renewals.pop() {
            self.busy = true;
            let slot = self.next_slot;
            self.next_slot += 1;
            return Some(Chore::Renew { old, slot, len });
        }
        let held = self.blocked.is_some() && !retry;
        if self.wants_segment(needed) && (!held || self.has_place()) {
            self.busy = true;
            return Some(self.prepare(random, now_ms));
        }
        if held {
            return None;
        }
        if self.wants_spare(needed) {
            self.busy = true;
            let slot = self.next_slot;
            self.next_slot += 1;
            let len = self.options.segment_len.max((INCARNATION_HEADER + self.wanted) as u64);
            return Some(Chore::Reserve { slot, len, reserve_bytes: self.options.reserve_bytes });
        }
        // Nothing is wanted any more: what will be wanted is tried at once.
        self.blocked = None;
        None
    }

    /// The segment and the offset behind an earlier run's frames, if `needed` bytes fit there.
    fn resume_place(&self, needed: u64) -> Option<(&Segment, u64)> {
        let (ordinal, offset) = self.resume?;
        let segment = self.segments.back().filter(|segment| segment.ordinal == ordinal)?;
        (offset + needed.max(SEGMENT_MIN) <= segment.len).then_some((segment, offset))
    }

    fn prepare(&mut self, random: &dyn Random, now_ms: u64) -> Chore {
        let needed = (INCARNATION_HEADER + self.wanted) as u64;
        let behind = self.resume_place(needed).map(|(segment, offset)| {
            (segment.ordinal, segment.slot, offset, segment.len, Place::Behind(Arc::clone(&segment.file)))
        });
        self.resume = None;
        let (ordinal, slot, offset, segment_len, place) = if let Some(behind) = behind {
            behind
        } else {
            let ordinal = self.next_ordinal;
            self.next_ordinal += 1;
            let first = self.segments.is_empty() && self.spares.is_empty();
            let usual = if first { SEGMENT_FIRST.min(self.options.segment_len) } else { self.options.segment_len };
            if let Some(index) = self.usable_spare(needed) {
                let (slot, len, file) = self.spares.swap_remove(index);
                (ordinal, slot, 0, len, Place::Spare(file))
            } else {
                let slot = self.next_slot;
                self.next_slot += 1;
                (ordinal, slot, 0, usual.max(needed), Place::New)
            }
        };
        let mut numbers = [0; 8 + 32];
        random.fill(&mut numbers);
        if planted::is(Bug::RepeatSalt) {
            numbers[8..].fill(0);
        }
        let (incarnation, salt) = numbers.split_at(8);
        let mut header = IncarnationHeader {
            channel: self.options.channel,
            log: self.options.log,
            slot,
            ordinal,
            offset,
            segment_len,
            incarnation: u64::from_le_bytes(incarnation.try_into().expect("eight bytes")),
            in_flight_max: IN_FLIGHT_MAX,
            created_ms: now_ms,
            salt: salt.try_into().expect("thirty-two bytes"),
            key: None,
            fences: if planted::is(Bug::ForgetFences) { Vec::new() } else { self.fences.clone() },
        };
        self.preparing = (None, self.rotations);
        if let Some(key) = &self.options.key {
            let (frame_key, check) = key.derive(&header.salt);
            header.key = Some(KeyReference { id: key.id().to_owned(), check });
            self.preparing.0 = Some(Arc::new(frame_key));
        }
        Chore::Prepare { header, place, reserve_bytes: self.options.reserve_bytes }
    }

    /// A chore ended. An error to allocate blocks the log until the next attempt; other errors fail its device.
    pub fn chore_done(&mut self, chore: Chore, result: io::Result<ChoreDone>) {
        self.busy = false;
        match (chore, result) {
            (chore, Ok(ChoreDone::Prepared { header, file, .. })) => {
                // A place that was there already says nothing of space.
                if matches!(chore, Chore::Prepare { place: Place::New, .. }) {
                    self.blocked = None;
                }
                if self.failure.is_some() {
                    // Its fences are from before the failure.
                    self.discard(&header);
                    return;
                }
                // One that was too short for what waits now goes back.
                self.discard_ready();
                self.unfenced_from = None;
                self.wanted = 0;
                let (mut key, rotations) = std::mem::take(&mut self.preparing);
                if planted::is(Bug::RotateUnderHeader) {
                    key = self.options.key.as_ref().map(|key| Arc::new(key.derive(&header.salt).0));
                }
                self.ready = Some(Prepared { header, key, rotations, file });
            }
            (chore, Ok(ChoreDone::Reserved { slot, len, file })) => {
                // A renewed one says nothing of space.
                if matches!(chore, Chore::Reserve { .. }) {
                    self.blocked = None;
                }
                self.spares.push((slot, len, file));
            }
            (_, Ok(ChoreDone::Footed)) => {}
            // There is space again.
            (_, Ok(ChoreDone::Removed)) => self.blocked = None,
            (_, Ok(ChoreDone::Probed)) => {
                if self.fences.len() < FENCES_MAX {
                    self.device.probed();
                    self.epoch = self.device.epoch();
                    self.failure = None;
                    self.blocked = None;
                }
            }
            (Chore::Footer { .. }, Err(error)) => self.device.fail(self.epoch, &error.to_string()),
            (chore @ (Chore::Prepare { .. } | Chore::Reserve { .. } | Chore::Renew { .. }), Err(error)) => {
                self.blocked = Some(error.to_string());
                let new = matches!(chore, Chore::Prepare { place: Place::New, .. } | Chore::Reserve { .. });
                let full = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
                // A full disk costs nothing but the attempt; any other failure leaves the device in doubt.
                if !(new && full) {
                    self.device.fail(self.epoch, &error.to_string());
                } else if let Chore::Prepare { header, .. } = chore
                    && header.ordinal + 1 == self.next_ordinal
                {
                    // No file ever had it, and segments without a gap testify to each other's ends.
                    self.next_ordinal = header.ordinal;
                }
            }
            (Chore::Remove { slot }, Err(error)) => {
                // The next start finds the segment below the oldest ordinal and takes it as a spare.
                tracing::warn!(slot, %error, "cannot remove a drained segment; the next start will");
            }
            (Chore::Probe, Err(error)) => self.failure = Some(error.to_string()),
        }
    }

    fn discard_ready(&mut self) {
        if let Some(unused) = self.ready.take() {
            self.discard(&unused.header);
        }
    }

    /// Gives a prepared place back unused; never the segment of an earlier run that it stands in.
    fn discard(&mut self, header: &IncarnationHeader) {
        if header.offset == 0 || planted::is(Bug::DiscardLiveSegment) {
            self.removals.push(header.slot);
        }
    }

    /// Whether the verdict of recovery must be written before anything is served. Ask for chores until it is not.
    pub fn needs_verdict(&self) -> bool {
        self.unclean && self.ready.is_none() && self.open.is_none()
    }

    /// The last of the oldest segments of which `drained` says so and nothing is in use: all up to it can be given back
    /// together, with one snapshot.
    pub fn retirable(&self, drained: impl Fn(&Segment) -> bool) -> Option<u64> {
        if self.failure.is_some() || (self.late > 0 && !planted::is(Bug::ReuseUnderLateWrite)) {
            return None;
        }
        let in_use = |segment: &Segment| {
            self.open.as_ref().is_some_and(|open| open.ordinal == segment.ordinal)
                || self.ready.as_ref().is_some_and(|ready| ready.header.ordinal == segment.ordinal)
                || self.in_flight.iter().any(|frame| frame.ordinal == segment.ordinal)
        };
        let older = self.segments.iter().take(self.segments.len().saturating_sub(1));
        let done: Vec<&Segment> = older.take_while(|segment| !in_use(segment) && drained(segment)).collect();
        // Giving back takes a snapshot, and that a witness: these frames alone must not ask for the next snapshot.
        let worth = done.len() >= BARE_SEGMENTS || done.iter().any(|segment| segment.first_seq != segment.end_seq);
        done.last().filter(|_| worth).map(|segment| segment.ordinal)
    }

    /// The frame that retires everything up to `ordinal` is durable: the segments become spares, or are removed. Only now
    /// do other frames say so too; before, one of them might outlive the snapshot.
    pub fn release(&mut self, ordinal: u64) {
        self.oldest_ordinal = self.oldest_ordinal.max(ordinal + 1);
        self.fences.retain(|fence| fence.ordinal > ordinal);
        while let Some(segment) = self.segments.pop_front_if(|segment| segment.ordinal <= ordinal) {
            // No plaintext stays behind once the channel is encrypted.
            let was_plain = segment.incarnations.iter().any(|incarnation| !incarnation.encrypted);
            let reusable = (!(was_plain && self.options.key.is_some()) || planted::is(Bug::KeepPlainSegment))
                && segment.len == self.options.segment_len
                && (self.spares.len() < RESERVE || self.pooled_bytes() + segment.len <= self.options.pool_bytes);
            if reusable {
                self.spares.push((segment.slot, segment.len, segment.file));
            } else {
                self.removals.push(segment.slot);
            }
        }
    }

    /// Segments without events that the disk needs the space of: it is full, and the reserve is touched. Once a snapshot
    /// that was made after this is durable, they say nothing any more: call [`vacate`](Log::vacate).
    pub fn vacatable(&self) -> Vec<u64> {
        let is_needed = self.blocked.is_some() && self.places() + self.renewals.len() < RESERVE;
        // Later headers repeat the fences of those that go, unless there are more than fit.
        if self.failure.is_some() || self.late > 0 || !is_needed || self.fences.len() >= FENCES_MAX {
            return Vec::new();
        }
        // The one that frames go to now, or will go to; without it they may go on in the newest.
        let current = self.open.as_ref().map(|open| open.ordinal);
        let current = current.or(self.ready.as_ref().map(|ready| ready.header.ordinal));
        let current = current.or(self.segments.back().map(|segment| segment.ordinal)).unwrap_or_default();
        let first_in_use = self.in_flight.iter().map(|frame| frame.ordinal).fold(current, u64::min);
        let older = self.segments.iter().filter(|segment| segment.ordinal < first_in_use);
        older.filter(|segment| segment.first_seq == segment.end_seq).map(|segment| segment.ordinal).collect()
    }

    /// Gives back segments without events out of their order. Their files are removed, or zeroed under a temporary name,
    /// and never written to as they are: a torn header over frames that still count would be taken for one that rotted.
    /// A crash leaves them whole or takes them away, and what they say is true.
    pub fn vacate(&mut self, ordinals: &[u64]) {
        let is_vacated = |segment: &Segment| ordinals.contains(&segment.ordinal);
        for segment in self.segments.iter().filter(|segment| is_vacated(segment)) {
            if segment.len == self.options.segment_len && self.places() + self.renewals.len() < RESERVE {
                self.renewals.push((segment.slot, segment.len));
            } else {
                self.removals.push(segment.slot);
            }
        }
        self.segments.retain(|segment| !is_vacated(segment));
    }

    /// Opens a slot's file for reading and writing; for recovery.
    pub fn open_slot(dir: &dyn Dir, slot: u64) -> io::Result<Arc<dyn File>> {
        dir.open(&slot_name(slot), Access::ReadWrite)
    }
}
