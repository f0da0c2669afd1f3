//! The formulas: what a channel reaches on a disk, from what the disk reaches. No I/O, no clock.
//!
//! ```text
//! transactions ─► g of them in a frame of B bytes ─► d frames on their way ─► the disk: so many bytes a second
//! ```
//!
//! `docs/capacity.md` has them in words and units. Times are seconds, lengths bytes, rates per second.

use wal::calibrate::Shape;
use wal::format::frame;
use wal::limits::{DEPTH_DEFAULT, FRAME_TARGET, OVERLAP_MIN, RING_MEMORY, pages};

/// Of each transaction in a frame beside its events: the section's header, and counts.
const TRANSACTION_BYTES: u64 = 11;
/// Of each event beside its body: its length, twice.
const EVENT_BYTES: u64 = 3;

/// CPU time of the channel, beyond what the disk takes. Measured, see `docs/capacity.md`.
const FRAME_S: f64 = 16e-6;
const TRANSACTION_S: f64 = 5e-6;
const EVENT_S: f64 = 50e-9;
const BYTE_S: f64 = 0.25e-9;
/// Frames longer than this have no buffer that is used again: each byte costs more, for fresh memory.
const POOLED: usize = 2 * FRAME_TARGET;
const FRESH_BYTE_S: f64 = 0.75e-9;

/// What is put.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Load {
    /// Each has one transaction on its way.
    pub(crate) producers: u64,
    /// Events of a transaction.
    pub(crate) batch: u64,
    /// Bytes of an event.
    pub(crate) size: u64,
}

/// How the channel writes it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Frames {
    /// Transactions in a frame.
    pub(crate) transactions: f64,
    /// Bytes of a frame and how many are on their way on each disk.
    pub(crate) shape: Shape,
}

impl Load {
    /// Bytes of one transaction in a frame.
    pub(crate) fn transaction_bytes(&self) -> u64 {
        TRANSACTION_BYTES + self.batch * (self.size + EVENT_BYTES)
    }

    /// Bytes on disk of a frame with so many transactions.
    fn frame_bytes(&self, transactions: f64) -> usize {
        frame::stored_len((transactions * self.transaction_bytes() as f64) as usize, false)
    }

    /// As many as fit in a frame, one at least.
    fn fitting(&self) -> f64 {
        (FRAME_TARGET as u64 / self.transaction_bytes()).max(1) as f64
    }

    /// With all producers waiting for their answers and sending again at once, on each of `disks`.
    pub(crate) fn frames(&self, disks: u64) -> Frames {
        let producers = (self.producers as f64 / disks as f64).max(1.0);
        let waiting = producers * self.transaction_bytes() as f64;
        // A frame begins beside another one only when so much waits; until then those who were answered wait for one frame.
        let overlapping = (waiting / (self.transaction_bytes() as f64).max(OVERLAP_MIN as f64)).floor();
        let (depth, groups) = match overlapping {
            few if few < 2.0 => (1.0, producers.min(2.0)),
            many => (many.min(DEPTH_DEFAULT as f64), many.min(DEPTH_DEFAULT as f64)),
        };
        let transactions = (producers / groups).max(1.0).min(self.fitting());
        Frames { transactions, shape: Shape { block: self.frame_bytes(transactions), depth: depth as usize } }
    }

    /// With events coming at a rate, whoever sends them: those that come while a frame is written go into the next.
    pub(crate) fn frames_at(&self, rate: f64, disks: u64, disk: &dyn Disk) -> Result<Frames, String> {
        let transactions_s = rate / self.batch as f64 / disks as f64;
        let most = self.fitting();
        let mut frames = Frames { transactions: 1.0, shape: Shape { block: self.frame_bytes(1.0), depth: 1 } };
        // Longer frames take longer, so that more comes meanwhile: a few rounds settle it, a frame's limit ends it.
        for _ in 0..16 {
            let transactions = (transactions_s * self.cycle_s(&frames, disk)?).clamp(1.0, most);
            frames = Frames { transactions, shape: Shape { block: self.frame_bytes(transactions), depth: 1 } };
        }
        Ok(frames)
    }

    /// CPU time of the channel for one frame.
    fn frame_cpu_s(&self, frames: &Frames) -> f64 {
        let event = EVENT_S + self.size as f64 * BYTE_S;
        let fresh = if frames.shape.block > POOLED { frames.shape.block as f64 * FRESH_BYTE_S } else { 0.0 };
        FRAME_S + fresh + frames.transactions * (TRANSACTION_S + self.batch as f64 * event)
    }

    /// From the begin of a frame until the next one may take its place.
    fn cycle_s(&self, frames: &Frames, disk: &dyn Disk) -> Result<f64, String> {
        Ok(disk.latency_s(frames.shape)? + self.frame_cpu_s(frames))
    }

    /// Events a second of each disk, at the most.
    pub(crate) fn put_ev_s(&self, frames: &Frames, disk: &dyn Disk) -> Result<f64, String> {
        let events = frames.transactions * self.batch as f64;
        let cycles = frames.shape.depth as f64 * events / self.cycle_s(frames, disk)?;
        // One thread makes all frames of a disk.
        Ok(cycles.min(events / self.frame_cpu_s(frames)))
    }

    /// Cores that so many events a second keep busy.
    pub(crate) fn cores(&self, rate: f64, frames: &Frames) -> f64 {
        rate * self.frame_cpu_s(frames) / (frames.transactions * self.batch as f64)
    }

    /// Bytes on disk for each event.
    pub(crate) fn disk_bytes(&self, frames: &Frames) -> f64 {
        frames.shape.block as f64 / (frames.transactions * self.batch as f64)
    }
}

/// What one disk does.
pub(crate) trait Disk {
    /// Bytes a second, each block durable by itself.
    fn write_bytes_s(&self, shape: Shape) -> Result<f64, String>;

    /// From the begin of one write until it is durable, with so many on their way.
    fn latency_s(&self, shape: Shape) -> Result<f64, String> {
        Ok(shape.in_flight() as f64 / self.write_bytes_s(shape)?)
    }
}

/// A node that takes a rate and bears an outage of whatever it delivers to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Plan {
    pub(crate) disks: u64,
    pub(crate) frames: Frames,
    /// The part of the time that puts keep the disks busy.
    pub(crate) busy: f64,
    pub(crate) cores: f64,
    pub(crate) memory_bytes: f64,
    pub(crate) backlog_events: f64,
    /// On each disk.
    pub(crate) backlog_bytes: f64,
    /// Until each disk's room is full.
    pub(crate) full_after_s: Option<f64>,
    /// `None` when puts leave too little of the disks to drain it at all.
    pub(crate) drain_s: Option<f64>,
}

/// What a node must bear.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Demand {
    pub(crate) load: Load,
    pub(crate) rate: f64,
    pub(crate) outage_s: f64,
    /// Bytes of each disk for the log, where they are known.
    pub(crate) room: Option<u64>,
}

/// Puts may keep a disk busy for this part of the time: beyond it latencies grow without bound.
pub(crate) const BUSY_MAX: f64 = 0.5;
/// More disks than one channel has places for.
const DISKS_MAX: u64 = wal::limits::MEMBERS_MAX as u64;
/// Of the channel: events kept for takes, by default.
const HOT_TAIL: f64 = (64 << 20) as f64;
/// Of the process without events.
const BASE: f64 = (32 << 20) as f64;
/// For each queued event, measured by `penstock-bench backlog`.
const QUEUE_BYTES: f64 = 0.01;
/// Segments that are there beside what is queued: one being written, one ready.
const SEGMENTS: f64 = 2.0 * wal::limits::SEGMENT_DEFAULT as f64;

impl Demand {
    pub(crate) fn with(&self, disks: u64, disk: &dyn Disk, read_bytes_s: f64) -> Result<Plan, String> {
        let Demand { load, rate, outage_s, room } = *self;
        let frames = load.frames_at(rate, disks, disk)?;
        let busy = rate / (disks as f64 * load.put_ev_s(&load.frames(disks), disk)?);
        let bytes = load.disk_bytes(&frames);
        let backlog_events = rate * outage_s;
        let drained = (1.0 - busy).max(0.0) * disks as f64 * read_bytes_s / bytes;
        let in_flight = disks as f64 * RING_MEMORY.max(DEPTH_DEFAULT * frames.shape.block) as f64;
        let producing = (load.producers * load.transaction_bytes()) as f64;
        Ok(Plan {
            disks,
            frames,
            busy,
            cores: load.cores(rate, &frames),
            memory_bytes: BASE + HOT_TAIL + in_flight + producing + backlog_events * QUEUE_BYTES,
            backlog_events,
            backlog_bytes: backlog_events * bytes / disks as f64 + SEGMENTS,
            full_after_s: room.map(|room| (room as f64 - SEGMENTS).max(0.0) * disks as f64 / (rate * bytes)),
            drain_s: (drained > rate).then(|| backlog_events / (drained - rate)),
        })
    }

    /// Whether it bears all of the demand: half of its disks' time is left, the outage fits, and is drained in its own time.
    fn suffices(&self, plan: &Plan) -> bool {
        plan.busy <= BUSY_MAX
            && self.room.is_none_or(|room| plan.backlog_bytes <= room as f64)
            && plan.drain_s.is_some_and(|drain| drain <= self.outage_s)
    }

    /// The fewest disks that bear it.
    pub(crate) fn fewest(&self, disk: &dyn Disk, read_bytes_s: f64) -> Result<Option<Plan>, String> {
        for disks in 1..=DISKS_MAX {
            let plan = self.with(disks, disk, read_bytes_s)?;
            if self.suffices(&plan) {
                return Ok(Some(plan));
            }
        }
        Ok(None)
    }
}

const _: () = assert!(OVERLAP_MIN <= FRAME_TARGET && pages(FRAME_TARGET) == FRAME_TARGET);

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk with one latency and one bandwidth.
    struct Simple {
        latency_s: f64,
        bytes_s: f64,
    }

    impl Disk for Simple {
        fn write_bytes_s(&self, shape: Shape) -> Result<f64, String> {
            Ok(self.bytes_s.min(shape.in_flight() as f64 / (self.latency_s + shape.block as f64 / self.bytes_s)))
        }
    }

    const FAST: Simple = Simple { latency_s: 50e-6, bytes_s: 2.5e9 };
    const SLOW: Simple = Simple { latency_s: 3e-3, bytes_s: 0.3e9 };

    fn near(found: f64, expected: f64) {
        assert!((found / expected - 1.0).abs() < 0.01, "{found} is not {expected}");
    }

    fn load(producers: u64, batch: u64, size: u64) -> Load {
        Load { producers, batch, size }
    }

    #[test]
    fn a_frame_is_whole_pages_with_the_overhead_of_each_event() {
        let one = load(1, 100, 1024);
        assert_eq!(one.transaction_bytes(), 11 + 100 * 1027);
        assert_eq!(one.frames(1).shape, Shape { block: 26 * 4096, depth: 1 });
        assert_eq!(load(1, 1, 100).frames(1).shape, Shape { block: 4096, depth: 1 });
    }

    #[test]
    fn producers_of_small_transactions_share_two_frames_and_large_ones_go_side_by_side() {
        // 64 x 267 bytes never reach 64 KiB: half of them write while the others wait.
        assert_eq!(load(64, 1, 256).frames(1), Frames { transactions: 32.0, shape: Shape { block: 12_288, depth: 1 } });
        // 8 x 100 KiB: two in a frame, three of them in flight.
        let headline = load(8, 100, 1024).frames(1);
        assert_eq!((headline.transactions, headline.shape.depth), (2.0, 3));
        // A transaction longer than a frame's target is a frame.
        let long = load(8, 1000, 4096).frames(1);
        assert_eq!((long.transactions, long.shape.depth), (1.0, 3));
        // The same producers on more disks put less on each.
        assert_eq!(load(8, 100, 1024).frames(8).shape.depth, 1);
    }

    #[test]
    fn one_producer_waits_for_the_disk_and_many_for_its_bandwidth() {
        let alone = load(1, 1, 1024);
        near(alone.put_ev_s(&alone.frames(1), &SLOW).unwrap(), 1.0 / (3e-3 + 4096.0 / 0.3e9 + 21.3e-6));
        let many = load(64, 1000, 1024);
        let frames = many.frames(1);
        let limit = 0.3e9 / many.disk_bytes(&frames);
        let found = many.put_ev_s(&frames, &SLOW).unwrap();
        assert!(found > 0.5 * limit && found <= limit, "{found} of {limit}");
        // On a fast disk the thread that makes frames is what ends it.
        let found = many.put_ev_s(&frames, &Simple { latency_s: 1e-6, bytes_s: 1e12 }).unwrap();
        near(found, 1000.0 / many.frame_cpu_s(&frames));
    }

    #[test]
    fn an_outage_is_as_many_events_and_drains_with_what_puts_leave() {
        let demand =
            Demand { load: load(8, 100, 1024), rate: 100_000.0, outage_s: 3600.0, room: Some(1_000_000_000_000) };
        let plan = demand.with(1, &FAST, 2e9).unwrap();
        near(plan.backlog_events, 3.6e8);
        let bytes = demand.load.disk_bytes(&plan.frames);
        assert!((1024.0..1100.0).contains(&bytes), "{bytes}");
        near(plan.backlog_bytes, 3.6e8 * bytes + SEGMENTS);
        near(plan.full_after_s.unwrap(), (1e12 - SEGMENTS) / (1e5 * bytes));
        near(plan.drain_s.unwrap(), 3.6e8 / ((1.0 - plan.busy) * 2e9 / bytes - 1e5));
        assert!(plan.memory_bytes < (256 << 20) as f64, "{}", plan.memory_bytes);
    }

    #[test]
    fn more_disks_are_planned_until_half_of_their_time_is_left_and_the_backlog_is_drained() {
        let demand = |rate| Demand { load: load(64, 100, 1024), rate, outage_s: 600.0, room: None };
        assert_eq!(demand(10_000.0).fewest(&SLOW, 0.3e9).unwrap().unwrap().disks, 1);
        let plan = demand(500_000.0).fewest(&SLOW, 0.3e9).unwrap().unwrap();
        assert!(plan.disks > 3 && plan.busy <= BUSY_MAX && plan.drain_s.unwrap() <= 600.0, "{plan:?}");
        let fewer = demand(500_000.0).with(plan.disks - 1, &SLOW, 0.3e9).unwrap();
        assert!(!demand(500_000.0).suffices(&fewer), "{fewer:?}");
        assert_eq!(demand(1e9).fewest(&SLOW, 0.3e9).unwrap(), None);
        assert_eq!(demand(1e9).with(1, &SLOW, 0.3e9).unwrap().drain_s, None);
    }

    #[test]
    fn a_room_too_small_for_the_outage_needs_more_disks() {
        let demand = |room| Demand { load: load(8, 100, 1024), rate: 10_000.0, outage_s: 3600.0, room: Some(room) };
        assert_eq!(demand(100_000_000_000).fewest(&FAST, 2e9).unwrap().unwrap().disks, 1);
        assert_eq!(demand(20_000_000_000).fewest(&FAST, 2e9).unwrap().unwrap().disks, 2);
    }
}
