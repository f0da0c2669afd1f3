//! Places for segments: which are wanted, prepared, kept in reserve, and given back.
//!
//! All of it is file work, so it leaves as chores, one at a time. Promises that settlements, and the verdict of a start, find
//! room on a disk that events have filled, and that a file is used again only when nothing in it counts any more.

use super::*;

/// So many segments without events are given back together; a snapshot and its witness fill at most two.
const BARE_SEGMENTS: usize = 4;

/// Places for segments that events leave alone, beside the open one. With two of them settlements never end on a full
/// disk: once the second is begun, a snapshot in it makes the first superfluous, and its space makes the next.
pub(super) const RESERVE: usize = RESERVE_OF_VERDICT + 2;
/// Places that nothing but the verdict of a start takes: without it a full disk would not open again.
const RESERVE_OF_VERDICT: usize = 1;

impl Log {
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
    pub(super) fn lacks_reserve(&self) -> bool {
        let Some(open) = &self.open else { return false };
        let begins = self.segments.len() == 1 && open.next_offset * 4 < open.segment_end;
        self.places() < RESERVE && !begins
    }

    /// Whether the open segment is the last one for now: the disk is full and nothing is in reserve.
    pub fn is_last_place(&self) -> bool {
        self.blocked.is_some() && self.places() <= RESERVE_OF_VERDICT
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

    pub(super) fn discard_ready(&mut self) {
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
}
