//! The last frame of a segment: says what the others hold, so that a start need not read them.
//!
//! It is written beside the frames of the next segment, as a chore, once every frame of its own segment is durable.
//! Nobody waits for it and nothing needs it: where it is missing or torn, or where there was no room for it, the segment
//! is read. It stands where `previous_end` of the next segment's frames points, which therefore leaves it out.

use super::Log;
use crate::chore::Chore;
use crate::format::footer::Footer;
use crate::format::frame::{self, FrameHeader};
use crate::format::section::{self, OPTIONAL};
use crate::limits::{PAGE, pages};
use crate::planted::{self, Bug};

/// What a footer says beside the events of its segment.
#[derive(Debug)]
pub struct FooterRequest {
    /// Everything else that durable frames have said so far: a snapshot, and how far all logs are durable.
    pub sections: Vec<u8>,
    pub durable_seq: u64,
    pub floor: u64,
    pub now_ms: u64,
}

/// Bytes that a segment keeps free for a footer when the last one would have taken `last`: a thousandth as a rule, and
/// never so much that footers count among what a disk is given to write.
pub(super) fn room_for(segment_len: u64, last: usize) -> usize {
    let part = |divisor: u64| pages((segment_len / divisor) as usize).max(PAGE);
    part(1024).min(16 * PAGE).max(last + last / 4).min(part(64))
}

impl Log {
    /// Whether a frame of `needed` bytes would stand where the footer of the open segment is to be.
    pub(super) fn would_take_footer_room(&self, needed: usize) -> bool {
        let takes = |open: &super::Open| {
            // The first frame of a segment may be as long as the segment.
            open.alone && open.next_number > 0 && !open.has_room(needed + self.footer_room)
        };
        self.blocked.is_none() && self.open.as_ref().is_some_and(takes)
    }

    /// Whether a segment waits for its footer, and can have it now: every frame of it is durable.
    pub fn owes_footer(&self) -> bool {
        let Some(oldest) = self.without_footer.front() else { return false };
        let in_flight = self.in_flight.iter().any(|frame| frame.ordinal <= oldest.ordinal);
        let is_durable = (!in_flight && self.late == 0) || planted::is(Bug::FooterAheadOfFrames);
        is_durable && self.failure.is_none() && !self.busy
    }

    /// The footer that is owed. `None` where it finds no room, or the segment was given back meanwhile.
    pub fn next_footer(&mut self, request: FooterRequest) -> Option<Chore> {
        if !self.owes_footer() {
            return None;
        }
        let open = self.without_footer.pop_front()?;
        let segment = self.segments.iter().find(|segment| segment.ordinal == open.ordinal)?;
        let payload = Footer::of(segment).encode()?;
        let mut body = section::header(section::FOOTER, OPTIONAL, payload.len()).to_vec();
        body.extend_from_slice(&payload);
        body.extend_from_slice(&request.sections);
        let stored_len = frame::stored_len(body.len(), open.key.is_some());
        self.footer_room = room_for(self.options.segment_len, stored_len);
        if !open.has_room(stored_len) || stored_len > room_for(self.options.segment_len, usize::MAX / 2) {
            return None;
        }
        self.busy = true;
        let header = FrameHeader {
            encrypted: open.key.is_some(),
            witness: true,
            incarnation: open.incarnation,
            ordinal: open.ordinal,
            offset: open.next_offset,
            number: open.next_number,
            stored_len: stored_len as u32,
            body_len: body.len() as u32,
            first_seq: request.durable_seq,
            seq_count: 0,
            durable: self.durable,
            previous_end: open.previous_end,
            durable_seq: request.durable_seq,
            floor: request.floor,
            oldest_ordinal: if planted::is(Bug::FooterForgetsOldest) { 0 } else { self.oldest_ordinal },
            written_ms: request.now_ms,
        };
        Some(Chore::Footer { header, body, key: open.key, file: open.file })
    }
}
