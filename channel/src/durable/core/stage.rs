//! A channel on simulated disks that single steps can be asked of, for stories about disks that stall or cannot be read.

use std::sync::Arc;
use std::time::Duration;

use wal::device::Device;
use wal::io::buffer::Buffer;
use wal::io::sim::{Failure, Fault, Operation, SimDisk, SimRandom};
use wal::tuning::Tuning;

use super::{Answer, Core, CoreOptions};
use crate::api::{Lease, PutError, PutReceipt, TakeError, TakeLimits};
use crate::durable::job::{Job, PendingPut};
use crate::durable::open::{OnDamage, OpenDir, OpenError, OpenSettings, open};
use crate::durable::read::{Buffers, ReadJob};
use crate::event::EventBatch;
use crate::settlement::{SettleError, Settlement};
use crate::ticket::Ticket;

pub(super) const KEEP_ALIVE: Duration = Duration::from_secs(3);
pub(super) const SEGMENT_LEN: u64 = 64 << 10;

pub(super) struct Stage {
    pub(super) disks: Vec<SimDisk>,
    pub(super) core: Core,
    pub(super) now: Duration,
    /// Disks that take no part.
    pub(super) asleep: Vec<bool>,
    flights: Vec<(Job, Buffer)>,
    pub(super) buffers: Arc<Buffers>,
    reads: Vec<Vec<ReadJob>>,
}

impl Stage {
    /// A new channel in so many directories, each on a disk of its own, that keeps nothing in memory.
    pub(super) fn new(disks: usize) -> Stage {
        Stage::on((0..disks).map(|_| SimDisk::default()).collect())
    }

    /// The same, whose segments are so long.
    pub(super) fn with_segments(disks: usize, segment_len: u64) -> Stage {
        Stage::open_with((0..disks).map(|_| SimDisk::default()).collect(), segment_len).unwrap()
    }

    fn on(disks: Vec<SimDisk>) -> Stage {
        Stage::open(disks).unwrap()
    }

    pub(super) fn open(disks: Vec<SimDisk>) -> Result<Stage, OpenError> {
        Stage::open_with(disks, SEGMENT_LEN)
    }

    fn open_with(disks: Vec<SimDisk>, segment_len: u64) -> Result<Stage, OpenError> {
        let dirs: Vec<OpenDir> = disks
            .iter()
            .enumerate()
            .map(|(at, disk)| OpenDir {
                dir: disk.dir(&format!("d{at}")),
                device: Device::tuned(format!("d{at}"), Tuning::default()),
                calibration: None,
            })
            .collect();
        let settings = OpenSettings {
            segment_len,
            pool_bytes: 0,
            reserve_bytes: 0,
            key: None,
            keys: Vec::new(),
            on_damage: OnDamage::Refuse,
            footers: true,
        };
        let random = SimRandom::new(1);
        let (start, _) = open(&dirs, &settings, &random, 1, None)?;
        let options = CoreOptions {
            name: "c1".to_owned(),
            capacity: 1000,
            transaction_capacity: 100,
            keep_alive: KEEP_ALIVE,
            disk_bytes_max: None,
            hot_tail_bytes: 0,
            scrub_interval: Duration::ZERO,
            checkpoint_interval: Duration::ZERO,
        };
        let signals = disks.iter().map(|_| Arc::default()).collect();
        Ok(Stage {
            core: Core::new(options, Arc::new(random), signals, start),
            now: Duration::from_secs(1),
            asleep: vec![false; disks.len()],
            flights: Vec::new(),
            buffers: Arc::default(),
            reads: disks.iter().map(|_| Vec::new()).collect(),
            disks,
        })
    }

    /// The process dies and starts again on the same disks, which are all awake.
    pub(super) fn restart(self) -> Stage {
        self.disks.iter().for_each(|disk| disk.restart(wal::io::sim::Outcome::ProcessKilled));
        Stage::on(self.disks)
    }

    pub(super) fn producer(&mut self) -> u64 {
        self.core.handle()
    }

    /// Asks to put one event of so many bytes.
    pub(super) fn ask(&mut self, producer: u64, bytes: usize) -> Ticket<Result<PutReceipt, PutError>> {
        let mut batch = EventBatch::new();
        batch.push([("a", "b")], &vec![b'x'; bytes]);
        let (sender, ticket) = Ticket::pair();
        let mut answers = Vec::new();
        self.core.put(self.now, PendingPut::new(producer, batch, sender, self.now), &mut answers);
        answers.into_iter().for_each(Answer::send);
        ticket
    }

    /// Does a step and sends the answers.
    pub(super) fn answered<T>(&mut self, step: impl FnOnce(&mut Core, &mut Vec<Answer>) -> T) -> T {
        let mut answers = Vec::new();
        let result = step(&mut self.core, &mut answers);
        answers.into_iter().for_each(Answer::send);
        result
    }

    /// Gathers a frame for a log, if there is one. It is not written yet.
    pub(super) fn gather(&mut self, index: usize) -> bool {
        let frame = self.next_frame(index);
        let any = frame.is_some();
        self.flights.extend(frame);
        any
    }

    /// The next frame for a log, if there is one, after whatever file work that takes.
    pub(super) fn next_frame(&mut self, index: usize) -> Option<(Job, Buffer)> {
        let mut answers = Vec::new();
        let job = loop {
            if let Some(job) = self.core.gather(index, self.now, 1, &mut answers) {
                break Some(job);
            }
            let Some(chore) = self.core.next_chore(index, self.now, 1).filter(|_| !self.asleep[index]) else {
                break None;
            };
            let result = chore.run(&*self.disks[index].dir(&format!("d{index}")));
            self.core.chore_done(index, self.now, chore, result, &mut answers);
        };
        answers.into_iter().for_each(Answer::send);
        let job = job?;
        let frame = job.sealed().unwrap();
        Some((job, frame))
    }

    /// Writes what is in flight on disks that are awake.
    pub(super) fn write(&mut self) {
        let asleep = &self.asleep;
        let (flights, kept) = std::mem::take(&mut self.flights).into_iter().partition(|(job, _)| !asleep[job.log]);
        self.flights = kept;
        let flights: Vec<(Job, Buffer)> = flights;
        for (job, frame) in flights {
            let result = job.reservation.file.write_durable_at(&frame, job.reservation.header.offset);
            let mut answers = Vec::new();
            self.core.complete(self.now, job, result, &mut answers);
            answers.into_iter().for_each(Answer::send);
        }
    }

    /// Puts one event of so many bytes on this disk.
    pub(super) fn put(&mut self, index: usize, producer: u64, bytes: usize) -> u64 {
        let ticket = self.ask(producer, bytes);
        assert!(self.gather(index), "a frame for disk {index}");
        self.write();
        ticket.try_take().ok().expect("an answer").expect("acknowledged").range.expect("a number").start
    }

    /// So much time passes; everything that can go on goes on once.
    pub(super) fn turn(&mut self, time: Duration) {
        self.now += time;
        let mut answers = Vec::new();
        self.core.tick(self.now, &mut answers);
        answers.into_iter().for_each(Answer::send);
        for index in 0..self.disks.len() {
            self.read(index);
            if !self.asleep[index] {
                self.gather(index);
            }
        }
        self.write();
    }

    /// What is asked of this disk is read; while it is asleep that hangs.
    fn read(&mut self, index: usize) {
        while let Some(job) = self.core.next_read(index, self.now, 1) {
            self.reads[index].push(job);
        }
        if self.asleep[index] {
            return;
        }
        for job in std::mem::take(&mut self.reads[index]) {
            let read = job.run(&self.buffers);
            let mut answers = Vec::new();
            self.core.read_done(self.now, index, read, &mut answers);
            answers.into_iter().for_each(Answer::send);
        }
    }

    /// Takes up to a hundred events, letting time pass while nothing comes.
    pub(super) fn take(&mut self, consumer: u64) -> Result<Lease, TakeError> {
        let (sender, mut ticket) = Ticket::pair();
        let limits = TakeLimits { events: 100, bytes: 1 << 20 };
        let mut answers = Vec::new();
        self.core.take(self.now, consumer, limits, Duration::from_secs(2), sender, &mut answers);
        answers.into_iter().for_each(Answer::send);
        loop {
            match ticket.try_take() {
                Ok(lease) => return lease,
                Err(waiting) => ticket = waiting,
            }
            self.turn(Duration::from_millis(20));
        }
    }

    /// Takes what is in memory, if anything is.
    pub(super) fn take_at_once(&mut self, consumer: u64) -> Option<Lease> {
        let (sender, ticket) = Ticket::pair();
        let limits = TakeLimits { events: 100, bytes: 1 << 20 };
        let mut answers = Vec::new();
        self.core.take(self.now, consumer, limits, Duration::ZERO, sender, &mut answers);
        answers.into_iter().for_each(Answer::send);
        ticket.try_take().ok()?.ok()
    }

    /// Takes until nothing comes, and gives the numbers in their order and the last answer.
    pub(super) fn take_all(&mut self, consumer: u64) -> (Vec<u64>, Result<Lease, TakeError>) {
        let mut found = Vec::new();
        loop {
            match self.take(consumer) {
                Ok(lease) if !lease.is_empty() => found.extend(lease.iter().map(|(seq, _)| seq)),
                other => return (found, other),
            }
        }
    }

    /// Asks to settle these events as delivered.
    pub(super) fn settle(&mut self, consumer: u64, seqs: &[u64]) -> Ticket<Result<(), SettleError>> {
        let ranges = seqs.iter().map(|seq| crate::settlement::SeqRange::new(*seq, seq + 1)).collect();
        let (sender, ticket) = Ticket::pair();
        let mut answers = Vec::new();
        self.core.settle(self.now, consumer, vec![Settlement::delivered(ranges)], sender, &mut answers);
        answers.into_iter().for_each(Answer::send);
        ticket
    }

    /// Every read of this disk fails from now on.
    pub(super) fn blind(&self, index: usize) {
        let disk = &self.disks[index];
        let failure = Failure::Errno(5);
        disk.inject(Fault { at: disk.operations() + 1, only: Some(Operation::Read), forever: true, failure });
    }

    /// The next so many reads of this disk fail.
    pub(super) fn fail_reads(&self, index: usize, count: u64) {
        let disk = &self.disks[index];
        for at in disk.operations() + 1..=disk.operations() + count {
            disk.inject(Fault { at, only: Some(Operation::Read), forever: false, failure: Failure::Errno(5) });
        }
    }

    /// Changes the bytes of the only segment of a disk that has frames.
    pub(super) fn rot(&self, index: usize, change: impl Fn(&mut Vec<u8>)) {
        let dir = format!("d{index}");
        let first = self.core.seats[index].log.segments().next().expect("a segment").slot;
        self.disks[index].corrupt(&dir, &wal::chore::slot_name(first), change);
    }
}
