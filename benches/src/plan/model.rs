//! The formulas: what a channel reaches on a disk, from what the disk reaches. No I/O, no clock.
//!
//! ```text
//! transactions ─► frames ─► g transactions in a write of B bytes ─► d writes on their way ─► the disk: so many bytes a second
//! ```
//!
//! `docs/capacity.md` has them in words and units. Times are seconds, lengths bytes, rates per second.

use wal::calibrate::Shape;
use wal::format::frame;
use wal::limits::{
    DEPTH_DEFAULT, FRAME_TARGET, FRAMES_AHEAD, FRAMES_AHEAD_MAX, OVERLAP_MIN, RING_MEMORY, WRITE_MAX, pages,
};

/// Of each transaction in a frame beside its events: the section's header, and counts.
const TRANSACTION_BYTES: u64 = 11;
/// Of each event beside its body: its length, twice.
const EVENT_BYTES: u64 = 3;

/// CPU time of the thread that writes. Measured, see `docs/capacity.md`.
const FRAME_S: f64 = 8e-6;
const TRANSACTION_S: f64 = 3.6e-6;
const EVENT_S: f64 = 50e-9;
const BYTE_S: f64 = 0.11e-9;
/// Until a thread that sleeps goes on.
const WAKE_S: f64 = 10.5e-6;
/// CPU time of a producer's thread for each transaction.
const PRODUCER_S: f64 = 8e-6;

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
    /// Frames that are written together.
    pub(crate) together: f64,
    /// Bytes of a write and how many are on their way on each disk.
    pub(crate) shape: Shape,
    pub(crate) waiting: Waiting,
}

/// What is there for the disk when one of its writes ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Waiting {
    /// Who was answered must come again first.
    Nothing,
    /// Transactions of others, of which a frame is made now.
    Transactions,
    /// Frames of others, which go at once.
    Frames,
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
        let bytes = self.transaction_bytes() as f64;
        // A frame begins beside another one only when so many wait; until then those who were answered wait for one frame.
        let worth_it = (OVERLAP_MIN as f64 / bytes).ceil();
        let groups = (producers / worth_it).floor();
        let most = DEPTH_DEFAULT as f64;
        if groups < 2.0 {
            let waiting = if producers < 2.0 { Waiting::Nothing } else { Waiting::Transactions };
            return self.written((producers / 2.0).max(1.0), 1, waiting);
        }
        if groups <= most {
            return self.written(producers / groups, groups as usize, Waiting::Nothing);
        }
        // Whoever is answered waits while those who waited are written: as many groups as writes in flight, and one.
        let under_way = producers.min(self.frames_under_way() * self.fitting());
        let joined = (WRITE_MAX as f64 / bytes).floor().max(1.0);
        self.written((under_way / (most + 1.0)).clamp(1.0, joined), DEPTH_DEFAULT, Waiting::Frames)
    }

    /// So many transactions in a write.
    fn written(&self, in_a_write: f64, depth: usize, waiting: Waiting) -> Frames {
        let transactions = in_a_write.min(self.fitting());
        let together = if waiting == Waiting::Frames { in_a_write / transactions } else { 1.0 };
        let block = pages((together * self.frame_bytes(transactions) as f64) as usize);
        Frames { transactions, together, shape: Shape { block, depth }, waiting }
    }

    /// With events coming at a rate, whoever sends them: those that come while a frame is written go into the next.
    pub(crate) fn frames_at(&self, rate: f64, disks: u64, disk: &dyn Disk) -> Result<Frames, String> {
        let transactions_s = rate / self.batch as f64 / disks as f64;
        let most = self.fitting();
        let mut frames = self.written(1.0, 1, Waiting::Transactions);
        // Longer frames take longer, so that more comes meanwhile: a few rounds settle it, a frame's limit ends it.
        for _ in 0..16 {
            let transactions = (transactions_s * self.cycle_s(&frames, disk)?).clamp(1.0, most);
            frames = self.written(transactions, 1, Waiting::Transactions);
        }
        Ok(frames)
    }

    /// Full frames that a quick disk is given at once: as many as the ring's memory holds.
    fn frames_under_way(&self) -> f64 {
        let fit = RING_MEMORY as f64 / (self.fitting() * self.transaction_bytes() as f64);
        fit.floor().clamp((DEPTH_DEFAULT + FRAMES_AHEAD) as f64, (DEPTH_DEFAULT + FRAMES_AHEAD_MAX) as f64)
    }

    /// CPU time of the thread that writes, for one write.
    fn write_cpu_s(&self, frames: &Frames) -> f64 {
        let event = EVENT_S + self.size as f64 * BYTE_S;
        frames.together * (FRAME_S + frames.transactions * (TRANSACTION_S + self.batch as f64 * event))
    }

    /// From the begin of a write until the next one takes its place.
    fn cycle_s(&self, frames: &Frames, disk: &dyn Disk) -> Result<f64, String> {
        let latency = disk.latency_s(frames.shape)?;
        Ok(match frames.waiting {
            // It writes itself.
            Waiting::Nothing if self.producers == 1 => latency + self.write_cpu_s(frames),
            Waiting::Nothing => latency + self.write_cpu_s(frames) + 2.0 * WAKE_S,
            Waiting::Transactions => latency + self.write_cpu_s(frames),
            Waiting::Frames => latency,
        })
    }

    /// Events of one write.
    fn events(&self, frames: &Frames) -> f64 {
        frames.together * frames.transactions * self.batch as f64
    }

    /// Events a second of each disk, at the most, where each has so many cores.
    pub(crate) fn put_ev_s(&self, frames: &Frames, disk: &dyn Disk, cores: f64) -> Result<f64, String> {
        let events = self.events(frames);
        let cycles = frames.shape.depth as f64 * events / self.cycle_s(frames, disk)?;
        // One thread makes all frames of a disk.
        let made = events / self.write_cpu_s(frames);
        Ok(cycles.min(made).min(cores / self.event_cpu_s(frames)))
    }

    /// CPU time of the channel and of who puts, for each event.
    fn event_cpu_s(&self, frames: &Frames) -> f64 {
        self.write_cpu_s(frames) / self.events(frames) + PRODUCER_S / self.batch as f64
    }

    /// Cores that so many events a second keep busy.
    pub(crate) fn cores(&self, rate: f64, frames: &Frames) -> f64 {
        rate * self.event_cpu_s(frames)
    }

    /// Bytes on disk for each event.
    pub(crate) fn disk_bytes(&self, frames: &Frames) -> f64 {
        frames.shape.block as f64 / self.events(frames)
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
        let busy = rate / (disks as f64 * load.put_ev_s(&load.frames(disks), disk, f64::INFINITY)?);
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

    /// As many cores as are needed.
    const ALL: f64 = f64::INFINITY;

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
        let small = load(64, 1, 256).frames(1);
        assert_eq!(
            (small.transactions, small.shape, small.waiting),
            (32.0, Shape { block: 12_288, depth: 1 }, Waiting::Transactions)
        );
        // 8 x 25 KiB: two writes of three and more are worth it, and none waits.
        let few = load(8, 100, 256).frames(1);
        assert_eq!((few.transactions, few.shape.depth, few.waiting), (4.0, 2, Waiting::Nothing));
        // 8 x 100 KiB: two in each of three writes, and two more in frames that wait.
        let headline = load(8, 100, 1024).frames(1);
        assert_eq!((headline.transactions, headline.together, headline.shape.depth), (2.0, 1.0, 3));
        assert_eq!(headline.waiting, Waiting::Frames);
        // 64 x 100 KiB: all are under way in 32 frames, and those that wait are written together.
        let many = load(64, 100, 1024).frames(1);
        assert_eq!((many.transactions, many.together, many.shape.depth), (2.0, 8.0, 3));
        // A transaction longer than a frame's target is a frame, and two of them are no longer than a write.
        let long = load(8, 100, 4096).frames(1);
        assert_eq!((long.transactions, long.together, long.shape.depth), (1.0, 2.0, 3));
        let longer = load(8, 1000, 4096).frames(1);
        assert_eq!((longer.transactions, longer.together, longer.shape.depth), (1.0, 1.0, 3));
        assert!(longer.shape.block > 4_000_000);
        // The same producers on more disks put less on each.
        assert_eq!(load(8, 100, 1024).frames(8).shape.depth, 1);
    }

    #[test]
    fn one_producer_waits_for_the_disk_and_many_for_its_bandwidth() {
        let alone = load(1, 1, 1024);
        let cycle = 3e-3 + 4096.0 / 0.3e9 + FRAME_S + TRANSACTION_S;
        near(alone.put_ev_s(&alone.frames(1), &SLOW, ALL).unwrap(), 1.0 / cycle);
        let many = load(64, 1000, 1024);
        let frames = many.frames(1);
        let limit = 0.3e9 / many.disk_bytes(&frames);
        let found = many.put_ev_s(&frames, &SLOW, ALL).unwrap();
        assert!(found > 0.5 * limit && found <= limit, "{found} of {limit}");
        // On a fast disk the thread that makes frames is what ends it.
        let quick = Simple { latency_s: 1e-6, bytes_s: 1e12 };
        let found = many.put_ev_s(&frames, &quick, ALL).unwrap();
        near(found, 2000.0 / many.write_cpu_s(&frames));
        // Or the processors are.
        let small = load(64, 1, 256);
        let frames = small.frames(1);
        near(small.put_ev_s(&frames, &quick, 1.0).unwrap(), 1.0 / (PRODUCER_S + small.write_cpu_s(&frames) / 32.0));
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
