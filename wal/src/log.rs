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
mod places;

pub use footer::FooterRequest;
use places::RESERVE;

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

    /// Whether a frame of `stored_len` bytes without events finds room at once.
    pub fn has_room(&self, stored_len: usize) -> bool {
        self.open.as_ref().is_some_and(|open| open.has_room(stored_len)) || self.ready.is_some()
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

    /// Opens a slot's file for reading and writing; for recovery.
    pub fn open_slot(dir: &dyn Dir, slot: u64) -> io::Result<Arc<dyn File>> {
        dir.open(&slot_name(slot), Access::ReadWrite)
    }
}
