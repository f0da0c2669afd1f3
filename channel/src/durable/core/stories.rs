//! Stories of channels with a disk that stalls, or that cannot be read.

use std::time::Duration;

use wal::limits::{INCARNATION_HEADER, PAGE};

use super::Cache;
use super::stage::{KEEP_ALIVE, SEGMENT_LEN, Stage};
use crate::api::{PutError, TakeError};
use crate::durable::open::OpenError;

const TURN: Duration = Duration::from_millis(100);

/// Puts, takes and settles on disk 1 many times what a segment holds; returns the bytes its log has then.
fn traffic_on_the_second_disk(stage: &mut Stage, producer: u64, consumer: u64) -> u64 {
    for _ in 0..40 {
        stage.put(1, producer, 10_000);
        let found: Vec<u64> = stage.take(consumer).unwrap().iter().map(|(seq, _)| seq).collect();
        assert!(!found.is_empty(), "takes go on");
        let ticket = stage.settle(consumer, &found);
        stage.turn(TURN);
        assert!(ticket.try_take().is_ok(), "settlements go on");
    }
    stage.core.seats[1].log.disk_bytes()
}

#[test]
fn space_comes_back_on_the_other_disks_while_a_put_hangs_on_one_that_stalls() {
    let mut stage = Stage::new(2);
    let (producer, other, consumer) = (stage.producer(), stage.producer(), stage.producer());
    stage.put(1, other, 100);
    // The number of the hanging put lies between those of events on the other disk.
    let hangs = stage.ask(producer, 100);
    assert!(stage.gather(0));
    stage.asleep[0] = true;
    let bytes = traffic_on_the_second_disk(&mut stage, other, consumer);
    assert!(bytes <= 4 * SEGMENT_LEN, "{bytes} bytes for no event");
    stage.asleep[0] = false;
    stage.turn(TURN);
    assert!(hangs.try_take().ok().unwrap().is_ok());
    assert_eq!(stage.take_all(consumer).0.len(), 1, "what hung comes late");
}

#[test]
fn space_given_back_around_a_hanging_put_is_understood_by_the_next_start() {
    let mut stage = Stage::new(2);
    let (producer, other, consumer) = (stage.producer(), stage.producer(), stage.producer());
    let unread = stage.put(0, producer, 100);
    stage.put(1, other, 100);
    drop(stage.ask(producer, 100));
    assert!(stage.gather(0));
    stage.asleep[0] = true;
    traffic_on_the_second_disk(&mut stage, other, consumer);
    let mut stage = stage.restart();
    let consumer = stage.producer();
    assert_eq!(stage.take_all(consumer).0, [unread]);
    let producer = stage.producer();
    stage.put(0, producer, 100);
    let bytes = traffic_on_the_second_disk(&mut stage, producer, consumer);
    assert!(bytes <= 4 * SEGMENT_LEN, "{bytes} bytes for no event after the start");
}

#[test]
fn a_settlement_that_rides_on_a_stalled_disk_is_said_on_another_one() {
    let mut stage = Stage::new(2);
    let (producer, other, consumer) = (stage.producer(), stage.producer(), stage.producer());
    let seq = stage.put(1, other, 100);
    assert_eq!(stage.take_all(consumer).0, [seq]);
    let ticket = stage.settle(consumer, &[seq]);
    drop(stage.ask(producer, 100));
    assert!(stage.gather(0), "the settlement is in this frame");
    stage.asleep[0] = true;
    stage.turn(Duration::from_secs(2));
    stage.turn(TURN);
    assert!(ticket.try_take().ok().expect("an answer while the disk stalls").is_ok());
    assert_eq!(stage.core.stats().take_success_events, 1);
    // The frame that stalled says it once more: that changes nothing.
    stage.asleep[0] = false;
    stage.turn(TURN);
    assert_eq!((stage.core.stats().take_success_events, stage.core.stats().size_events), (1, 1));
    let mut stage = stage.restart();
    let consumer = stage.producer();
    assert_eq!(stage.take_all(consumer).0, [seq + 1]);
}

#[test]
fn a_put_that_no_healthy_disk_takes_is_refused_after_keep_alive() {
    let mut stage = Stage::new(2);
    let (bound, free) = (stage.producer(), stage.producer());
    stage.put(0, bound, 100);
    stage.put(1, free, 100);
    drop(stage.ask(bound, 100));
    assert!(stage.gather(0));
    stage.asleep[0] = true;
    // Younger transactions must not pass the one that hangs.
    let younger = stage.ask(bound, 100);
    stage.turn(KEEP_ALIVE + TURN);
    let refused = younger.try_take().ok().expect("an answer within keep-alive");
    assert!(matches!(&refused, Err(PutError::Full { detail, .. }) if detail.contains("d0")), "{refused:?}");
    // Others go to the disk that is well, until it has no room either.
    stage.put(1, free, 100);
    stage.disks[1].set_capacity(stage.disks[1].used());
    let mut refused = None;
    for _ in 0..20 {
        let ticket = stage.ask(free, 10_000);
        stage.turn(KEEP_ALIVE + TURN);
        stage.turn(TURN);
        refused = match ticket.try_take().ok().expect("an answer within keep-alive") {
            Ok(_) => continue,
            Err(error) => Some(error),
        };
        break;
    }
    assert!(matches!(refused, Some(PutError::Full { .. })), "{refused:?}");
    // And nobody was told a lie: what was refused does not come.
    stage.asleep[0] = false;
    stage.disks[1].set_capacity(wal::io::sim::UNLIMITED);
    stage.turn(Duration::from_secs(1));
    assert!(stage.core.stats().put_errors >= 2);
}

#[test]
fn what_lies_on_a_disk_that_cannot_be_read_is_held_and_comes_late_and_everything_else_comes() {
    let mut stage = Stage::new(2);
    let (producer, consumer) = (stage.producer(), stage.producer());
    let on: Vec<Vec<u64>> = (0..6).map(|_| (0..2).map(|disk| stage.put(disk, producer, 100)).collect()).collect();
    let of = |disk: usize| -> Vec<u64> { on.iter().map(|seqs| seqs[disk]).collect() };
    stage.blind(0);
    let (found, last) = stage.take_all(consumer);
    assert_eq!(found, of(1));
    assert!(matches!(last, Err(TakeError::Unreadable { .. })), "what is left is not nothing: {last:?}");
    let ticket = stage.settle(consumer, &found);
    stage.turn(TURN);
    assert!(ticket.try_take().ok().unwrap().is_ok());
    let stats = stage.core.stats();
    assert_eq!((stats.size_events, stats.order_relaxed_events, stats.unhealthy), (6, 6, true));
    let held = &stats.unavailable[0];
    assert_eq!((held.disk.as_str(), held.events, held.damaged_events, held.away), ("d0", 6, 0, true));

    stage.disks[0].heal();
    stage.turn(Duration::from_secs(1));
    assert_eq!(stage.take_all(consumer).0, of(0), "in their order");
    let stats = stage.core.stats();
    assert_eq!((stats.unavailable.len(), stats.unhealthy), (0, false));
}

#[test]
fn what_was_held_comes_after_a_restart_and_what_was_settled_meanwhile_does_not() {
    let mut stage = Stage::new(2);
    let (producer, consumer) = (stage.producer(), stage.producer());
    let first = stage.put(0, producer, 100);
    stage.put(1, producer, 100);
    stage.blind(0);
    for _ in 0..40 {
        let found = stage.take_all(consumer).0;
        let ticket = stage.settle(consumer, &found);
        stage.turn(TURN);
        assert!(ticket.try_take().is_ok());
        stage.put(1, producer, 10_000);
    }
    let bytes = stage.core.seats[1].log.disk_bytes();
    assert!(bytes <= 4 * SEGMENT_LEN, "{bytes} bytes for one event");
    let mut stage = stage.restart();
    stage.disks[0].heal();
    let consumer = stage.producer();
    assert_eq!(stage.take_all(consumer).0.first(), Some(&first));
}

#[test]
fn a_backlog_on_one_disk_is_read_while_a_read_of_another_one_hangs() {
    let mut stage = Stage::new(2);
    let (producer, consumer) = (stage.producer(), stage.producer());
    let first = stage.put(0, producer, 100);
    let second = stage.put(1, producer, 100);
    stage.asleep[0] = true;
    assert_eq!(stage.take(consumer).unwrap().iter().map(|(seq, _)| seq).collect::<Vec<_>>(), [second]);
    assert_eq!(stage.core.stats().unavailable[0].disk, "d0");
    stage.asleep[0] = false;
    assert_eq!(stage.take_all(consumer).0, [first]);
    assert!(!stage.core.stats().unhealthy);
}

#[test]
fn a_backlog_is_read_while_an_older_put_hangs_on_another_disk() {
    let mut stage = Stage::new(2);
    let (producer, other, consumer) = (stage.producer(), stage.producer(), stage.producer());
    stage.put(0, producer, 100);
    drop(stage.ask(producer, 100));
    assert!(stage.gather(0));
    stage.asleep[0] = true;
    let seq = stage.put(1, other, 100);
    let found = stage.take_all(consumer).0;
    assert_eq!(found, [seq]);
}

#[test]
fn one_place_that_cannot_be_read_is_not_a_lost_disk() {
    let mut stage = Stage::new(1);
    let (producer, consumer) = (stage.producer(), stage.producer());
    let seqs: Vec<u64> = (0..3).map(|_| stage.put(0, producer, 100)).collect();
    // The read ahead fails, and so does that of the one frame.
    stage.fail_reads(0, 2);
    assert_eq!(stage.take(consumer).unwrap().iter().map(|(seq, _)| seq).collect::<Vec<_>>(), seqs[1..]);
    assert!(!stage.core.stats().unavailable[0].away);
    stage.turn(Duration::from_secs(1));
    assert_eq!(stage.take_all(consumer).0, seqs[..1]);
    assert!(!stage.core.stats().unhealthy);
}

#[test]
fn a_damaged_frame_is_held_alone_until_the_next_start_judges_it() {
    let body = |bytes: &mut Vec<u8>| bytes[INCARNATION_HEADER + PAGE + 200] ^= 1;
    let header = |bytes: &mut Vec<u8>| bytes[INCARNATION_HEADER + PAGE + 20] ^= 1;
    for damage in [body, header] {
        let mut stage = Stage::new(1);
        let (producer, consumer) = (stage.producer(), stage.producer());
        let seqs: Vec<u64> = (0..4).map(|_| stage.put(0, producer, 100)).collect();
        stage.rot(0, damage);
        let (found, last) = stage.take_all(consumer);
        assert_eq!(found, [seqs[0], seqs[2], seqs[3]]);
        assert!(matches!(last, Err(TakeError::Unreadable { range, .. }) if range.contains(seqs[1])), "{last:?}");
        let ticket = stage.settle(consumer, &found);
        stage.turn(TURN);
        assert!(ticket.try_take().is_ok());
        let stats = stage.core.stats();
        let held = &stats.unavailable[0];
        assert_eq!((stats.size_events, held.events, held.damaged_events, held.away), (1, 0, 1, false));
        assert_eq!(stage.core.reads_due(), None, "rot stays, so nobody asks again");
        stage.disks[0].restart(wal::io::sim::Outcome::ProcessKilled);
        assert!(matches!(Stage::open(stage.disks), Err(OpenError::Damaged(_))));
    }
}

/// Forty events of ten thousand bytes each, of which no segment holds more than six, and nothing of them is in memory.
fn with_a_backlog(hot_tail_bytes: usize) -> (Stage, Vec<u64>) {
    let mut stage = Stage::new(1);
    let producer = stage.producer();
    let seqs = (0..40).map(|_| stage.put(0, producer, 10_000)).collect();
    stage.core.options.hot_tail_bytes = hot_tail_bytes;
    (stage, seqs)
}

#[test]
fn a_drain_waits_for_the_disk_once_and_reads_each_segment_once() {
    let (mut stage, seqs) = with_a_backlog(8 << 20);
    let consumer = stage.producer();
    let segments = stage.core.seats[0].log.segments().filter(|segment| segment.first_seq < segment.end_seq).count();
    let mut found: Vec<u64> = stage.take(consumer).unwrap().iter().map(|(seq, _)| seq).collect();
    while found.len() < seqs.len() {
        stage.turn(Duration::ZERO);
        let lease = stage.take_at_once(consumer).expect("it was read ahead");
        found.extend(lease.iter().map(|(seq, _)| seq));
    }
    assert_eq!(found, seqs);
    assert_eq!(stage.core.reads_out, segments as u64);
}

#[test]
fn what_is_read_ahead_stays_within_its_part_of_the_hot_tail() {
    // Room for two events: the segment in which the second one is gets read, and no further one.
    let (mut stage, seqs) = with_a_backlog(8 * 20_000);
    let consumer = stage.producer();
    assert!(!stage.take(consumer).unwrap().is_empty());
    for _ in 0..10 {
        stage.turn(TURN);
    }
    let bytes = stage.core.cache.bytes_read(0);
    assert!((10_000..=SEGMENT_LEN as usize + 20_000).contains(&bytes), "{bytes} bytes of {} events", seqs.len());
}

#[test]
fn damage_that_was_met_ahead_is_told_once_a_take_wants_it_and_nothing_else_is_lost() {
    let (mut stage, seqs) = with_a_backlog(8 << 20);
    let consumer = stage.producer();
    let third = stage.core.seats[0].log.segments().nth(2).expect("a third segment");
    let (slot, rotten) = (third.slot, third.first_seq);
    stage.disks[0].corrupt("d0", &wal::chore::slot_name(slot), |bytes| bytes[INCARNATION_HEADER + 200] ^= 1);
    let first = stage.take(consumer).unwrap();
    stage.turn(TURN);
    assert_eq!(stage.core.stats().take_errors, 0, "nobody has asked for it yet");
    let (rest, last) = stage.take_all(consumer);
    let found: Vec<u64> = first.iter().map(|(seq, _)| seq).chain(rest).collect();
    assert_eq!(found, seqs.iter().copied().filter(|seq| *seq != rotten).collect::<Vec<_>>());
    assert!(matches!(last, Err(TakeError::Unreadable { range, .. }) if range.contains(rotten)), "{last:?}");
}

#[test]
fn a_consumer_that_keeps_up_reads_nothing() {
    let mut stage = Stage::new(1);
    stage.core.cache = Cache::new(1 << 20);
    stage.core.options.hot_tail_bytes = 1 << 20;
    let (producer, consumer) = (stage.producer(), stage.producer());
    for _ in 0..40 {
        stage.put(0, producer, 10_000);
        let found: Vec<u64> = stage.take_at_once(consumer).expect("in memory").iter().map(|(seq, _)| seq).collect();
        let settled = stage.settle(consumer, &found);
        stage.turn(TURN);
        assert!(settled.try_take().is_ok());
    }
    assert_eq!(stage.core.reads_out, 0);
}

#[test]
fn a_read_ahead_that_hangs_is_a_disk_that_is_away_and_comes_back() {
    let (mut stage, seqs) = with_a_backlog(8 << 20);
    let consumer = stage.producer();
    let mut found: Vec<u64> = stage.take(consumer).unwrap().iter().map(|(seq, _)| seq).collect();
    // What is on its way now returns only later.
    stage.asleep[0] = true;
    let (more, last) = stage.take_all(consumer);
    found.extend(more);
    assert!(matches!(last, Err(TakeError::Unreadable { .. })), "{last:?}");
    assert!(stage.core.stats().unavailable[0].away);
    stage.asleep[0] = false;
    stage.turn(Duration::from_secs(1));
    found.extend(stage.take_all(consumer).0);
    assert_eq!(found, seqs);
    assert!(!stage.core.stats().unhealthy);
}
