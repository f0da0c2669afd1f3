//! Disks of different speed, in virtual time: how much each of them gets to do, and who waits for whom.
//!
//! A disk does one thing after the other, in the order in which it was asked, and a mebibyte takes as long as the disk's pace
//! says, read or written. Nothing else takes time. What is asserted are counts at the end, never how long anything took here.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use wal::io::buffer::Buffer;
use wal::limits::{AHEAD_TIME, DEPTH_DEFAULT, FRAMES_AHEAD, FRAMES_AHEAD_MAX};

use super::stage::Stage;
use super::{Cache, ORDER_WAIT};
use crate::api::{Lease, PutError, PutReceipt, TakeError, TakeLimits};
use crate::durable::job::{Job, PendingPut};
use crate::durable::read::ReadJob;
use crate::event::EventBatch;
use crate::settlement::{SettleError, Settlement};
use crate::ticket::Ticket;

/// More than half of what a frame takes: each put has a frame of its own.
const PUT_BYTES: usize = 140_000;
const SEGMENT_LEN: u64 = 1 << 20;
/// A mebibyte on a disk of usual speed.
const FAST: Duration = Duration::from_millis(8);
const SLOW: Duration = Duration::from_millis(80);
const NEVER: Duration = Duration::from_secs(1 << 20);
const HOT_TAIL: usize = 64 << 20;
/// So many producers for each disk: there is always a put that waits.
const PRODUCERS: usize = 8;

type PutTicket = Ticket<Result<PutReceipt, PutError>>;

enum Work {
    Write(Box<(Job, Buffer)>),
    Read(usize, ReadJob),
}

/// Several disks, each with its pace, and a channel on them.
struct Race {
    stage: Stage,
    paces: Vec<Duration>,
    /// When each disk has done all that it was asked.
    free_at: Vec<Duration>,
    /// What is on its way, by the time at which it is done.
    due: BinaryHeap<Reverse<(Duration, usize)>>,
    works: Vec<Option<Work>>,
    puts: Vec<(u64, Option<PutTicket>)>,
    takes: bool,
    consumer: u64,
    take: Option<Ticket<Result<Lease, TakeError>>>,
    settling: Vec<Ticket<Result<(), SettleError>>>,
    /// Frames with a put that were written, by disk.
    written: Vec<u64>,
    /// Bytes that were asked for, by disk.
    read_bytes: Vec<u64>,
    taken: u64,
    first: usize,
}

impl Race {
    /// A channel that keeps so much in memory.
    fn new(paces: &[Duration], cached: usize) -> Race {
        let mut stage = Stage::with_segments(paces.len(), SEGMENT_LEN);
        stage.core.options.capacity = 1 << 20;
        stage.core.options.hot_tail_bytes = HOT_TAIL;
        stage.core.cache = Cache::new(cached);
        let puts = (0..PRODUCERS * paces.len()).map(|_| (stage.producer(), None)).collect();
        let consumer = stage.producer();
        Race {
            paces: paces.to_vec(),
            free_at: vec![stage.now; paces.len()],
            stage,
            due: BinaryHeap::new(),
            works: Vec::new(),
            puts,
            takes: false,
            consumer,
            take: None,
            settling: Vec::new(),
            written: vec![0; paces.len()],
            read_bytes: vec![0; paces.len()],
            taken: 0,
            first: 0,
        }
    }

    fn ask(&mut self, disk: usize, bytes: u64, work: Work) {
        let done_at = self.free_at[disk].max(self.stage.now) + takes(bytes, self.paces[disk]);
        self.free_at[disk] = done_at;
        self.due.push(Reverse((done_at, self.works.len())));
        self.works.push(Some(work));
    }

    /// Everything that takes no time.
    fn go_on(&mut self, puts: bool) {
        if puts {
            for index in 0..self.puts.len() {
                let (producer, waits) = &mut self.puts[index];
                if let Some(ticket) = waits.take() {
                    match ticket.try_take() {
                        Ok(answer) => drop(answer.expect("acknowledged")),
                        Err(waiting) => {
                            *waits = Some(waiting);
                            continue;
                        }
                    }
                }
                let producer = *producer;
                self.puts[index].1 = Some(self.put(producer));
            }
        }
        // Which of the idle writers is the first to wake up is the scheduler's business.
        self.first += 1;
        let (first, disks) = (self.first, self.paces.len());
        for disk in (0..disks).map(|step| (first + step) % disks) {
            while let Some((job, frame)) = self.stage.next_frame(disk) {
                self.ask(disk, frame.len() as u64, Work::Write(Box::new((job, frame))));
            }
            while let Some(job) = self.stage.core.next_read(disk, self.stage.now, 1) {
                self.read_bytes[disk] += job.bytes();
                self.ask(disk, job.bytes(), Work::Read(disk, job));
            }
        }
        while self.takes && self.hear_take() {}
    }

    fn put(&mut self, producer: u64) -> PutTicket {
        let mut batch = EventBatch::new();
        batch.push_body(&vec![b'x'; PUT_BYTES]);
        let (sender, ticket) = Ticket::pair();
        let now = self.stage.now;
        self.stage.answered(|core, answers| core.put(now, PendingPut::new(producer, batch, sender, NEVER), answers));
        ticket
    }

    /// True if something was taken.
    fn hear_take(&mut self) -> bool {
        let (now, consumer) = (self.stage.now, self.consumer);
        let ticket = self.take.take().unwrap_or_else(|| {
            let (sender, ticket) = Ticket::pair();
            let limits = TakeLimits { events: 20, bytes: 16 << 20 };
            self.stage.answered(|core, answers| core.take(now, consumer, limits, NEVER, sender, answers));
            ticket
        });
        match ticket.try_take() {
            Ok(lease) => {
                let lease = lease.expect("a lease");
                self.taken += lease.event_count() as u64;
                let settlements = vec![Settlement::delivered(lease.ranges())];
                let (sender, ticket) = Ticket::pair();
                self.stage.answered(|core, answers| core.settle(now, consumer, settlements, sender, answers));
                self.settling.push(ticket);
                true
            }
            Err(waiting) => {
                self.take = Some(waiting);
                false
            }
        }
    }

    /// Lets so much time pass, or less if `over` says so.
    fn run(&mut self, time: Duration, puts: bool, over: impl Fn(&Race) -> bool) {
        let end = self.stage.now + time;
        loop {
            self.go_on(puts);
            let next = self.due.peek().map_or(end, |Reverse((at, _))| *at);
            let tick = self.stage.core.next_deadline().unwrap_or(end).max(self.stage.now + Duration::from_millis(1));
            self.stage.now = next.min(tick).max(self.stage.now);
            if self.stage.now >= end || over(self) {
                self.stage.now = self.stage.now.min(end);
                return;
            }
            if tick < next {
                let now = self.stage.now;
                self.stage.answered(|core, answers| core.tick(now, answers));
                continue;
            }
            let Some(Reverse((_, work))) = self.due.pop() else { continue };
            let now = self.stage.now;
            match self.works[work].take().expect("done once") {
                Work::Write(work) => {
                    let (job, frame) = *work;
                    self.written[job.log] += u64::from(!job.puts.is_empty());
                    let result = job.reservation.file.write_durable_at(&frame, job.reservation.header.offset);
                    self.stage.answered(|core, answers| core.complete(now, job, result, answers));
                }
                Work::Read(disk, job) => {
                    let read = job.run(&self.stage.buffers);
                    self.stage.answered(|core, answers| core.read_done(now, disk, read, answers));
                }
            }
        }
    }
}

fn takes(bytes: u64, pace: Duration) -> Duration {
    Duration::from_nanos(((pace.as_nanos() * u128::from(bytes)) >> 20) as u64)
}

/// Frames with one put that a disk of this pace can write in the time.
fn can_do(time: Duration, pace: Duration) -> u64 {
    let frame = takes((PUT_BYTES as u64).next_multiple_of(4096), pace);
    (time.as_nanos() / frame.as_nanos()) as u64
}

#[test]
fn every_disk_of_the_same_speed_adds_its_own() {
    const TIME: Duration = Duration::from_millis(100);
    for disks in [1, 2, 4, 8] {
        let mut race = Race::new(&vec![FAST; disks], HOT_TAIL);
        race.run(TIME, true, |_| false);
        for (disk, frames) in race.written.iter().enumerate() {
            assert!(frames * 100 >= can_do(TIME, FAST) * 97, "{frames} frames on disk {disk} of {disks}");
        }
    }
}

#[test]
fn a_disk_that_is_ten_times_slower_gets_a_tenth_and_holds_nobody_up() {
    const TIME: Duration = Duration::from_millis(200);
    for disks in [2, 4, 8] {
        let mut paces = vec![FAST; disks];
        paces[0] = SLOW;
        let mut race = Race::new(&paces, HOT_TAIL);
        race.takes = true;
        race.run(TIME, true, |_| false);
        for (disk, frames) in race.written.iter().enumerate() {
            let most = can_do(TIME, paces[disk]);
            assert!(frames * 100 >= most * 90, "{frames} of {most} frames on disk {disk} of {disks}");
        }
        let written: u64 = race.written.iter().sum();
        // Order is worth waiting for a write that is under way, which holds back what the others write meanwhile.
        let held_back = 5 * 10 * disks as u64;
        assert!(race.taken + held_back >= written, "{} of {written} events taken from {disks} disks", race.taken);
    }
}

#[test]
fn a_disk_whose_every_frame_is_late_keeps_takes_behind_by_one_wait_and_no_more() {
    const TIME: Duration = Duration::from_millis(800);
    // Each of its frames takes less than a wait, and all that are under way together take more than three.
    let mut race = Race::new(&[FAST, FAST, FAST * 42], HOT_TAIL);
    race.takes = true;
    race.run(TIME, true, |_| false);
    let written: u64 = race.written.iter().sum();
    let held_back = 2 * can_do(ORDER_WAIT, FAST) + 40;
    assert!(race.taken + held_back >= written, "{} of {written} events taken", race.taken);
}

#[test]
fn a_disk_that_never_answers_holds_up_only_what_it_was_given() {
    const TIME: Duration = Duration::from_millis(400);
    for disks in [2, 4, 8] {
        let mut paces = vec![FAST; disks];
        paces[disks - 1] = NEVER;
        let mut race = Race::new(&paces, HOT_TAIL);
        race.takes = true;
        race.run(TIME, true, |_| false);
        let (lost, others) = race.written.split_last().expect("disks");
        assert_eq!(*lost, 0);
        for (disk, frames) in others.iter().enumerate() {
            assert!(frames * 100 >= can_do(TIME, FAST) * 90, "{frames} frames on disk {disk} of {disks}");
        }
        let written: u64 = others.iter().sum();
        assert!(race.taken * 100 >= written * 95, "{} of {written} events taken from {disks} disks", race.taken);
    }
}

/// Frames that a disk is given at once while it needs so long for each of them, after a while.
fn given_at_once(time: Duration) -> usize {
    let mut stage = Stage::with_segments(1, 16 * SEGMENT_LEN);
    stage.core.options.capacity = 1 << 20;
    let producer = stage.producer();
    let mut most = 0;
    for _ in 0..10 {
        let _waits: Vec<_> = (0..100).map(|_| stage.ask(producer, PUT_BYTES)).collect();
        let flights: Vec<_> = std::iter::from_fn(|| stage.next_frame(0)).collect();
        most = flights.len();
        stage.now += time;
        let now = stage.now;
        for (job, frame) in flights {
            let result = job.reservation.file.write_durable_at(&frame, job.reservation.header.offset);
            stage.answered(|core, answers| core.complete(now, job, result, answers));
        }
    }
    most
}

#[test]
fn a_quick_disk_is_given_more_at_once_than_a_slow_one() {
    assert_eq!(given_at_once(AHEAD_TIME), DEPTH_DEFAULT + FRAMES_AHEAD_MAX);
    assert_eq!(given_at_once(2 * AHEAD_TIME), DEPTH_DEFAULT + FRAMES_AHEAD);
}

/// Writes for a while without a consumer, then drains. How long the drain took, and the longest that a disk had to read.
fn drain(paces: &[Duration], puts_go_on: bool) -> (Race, Duration, Duration) {
    let mut race = Race::new(paces, 0);
    race.run(Duration::from_millis(150), true, |_| false);
    race.run(Duration::from_secs(10), false, |race| race.due.is_empty());
    let backlog: u64 = race.written.iter().sum();
    race.written.fill(0);
    race.takes = true;
    let begin = race.stage.now;
    race.run(Duration::from_secs(100), puts_go_on, |race| race.taken >= backlog);
    assert!(race.taken >= backlog, "{} of {backlog} events", race.taken);
    let longest = paces.iter().zip(&race.read_bytes).map(|(pace, bytes)| takes(*bytes, *pace)).max();
    let time = race.stage.now - begin;
    (race, time, longest.expect("disks"))
}

#[test]
fn a_backlog_is_read_from_all_disks_at_once() {
    for disks in [1, 2, 4, 8] {
        let (_, time, longest) = drain(&vec![FAST; disks], false);
        assert!(time.as_micros() * 100 <= longest.as_micros() * 130, "{time:?} for {longest:?} of {disks} disks");
    }
}

#[test]
fn a_backlog_on_disks_of_different_speed_takes_as_long_as_the_one_that_has_most_to_do() {
    for disks in [2, 4, 8] {
        let mut paces = vec![FAST; disks];
        paces[0] = SLOW;
        let (_, time, longest) = drain(&paces, false);
        assert!(time.as_micros() * 100 <= longest.as_micros() * 150, "{time:?} for {longest:?} of {disks} disks");
    }
}

#[test]
fn puts_and_a_drain_share_a_disk_and_neither_starves() {
    for disks in [1, 2] {
        let (race, time, _) = drain(&vec![FAST; disks], true);
        let written: u64 = race.written.iter().sum();
        let read = race.read_bytes.iter().sum::<u64>() / PUT_BYTES as u64;
        let third = can_do(time, FAST) * disks as u64 / 3;
        assert!(written >= third && read >= third, "frames: {written} written, {read} read in {time:?}");
    }
}
