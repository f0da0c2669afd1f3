//! Stories of channels with a disk that stalls, or that cannot be read.

use std::time::Duration;

use super::stage::{KEEP_ALIVE, SEGMENT_LEN, Stage};
use crate::api::PutError;

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
    stage.put(0, producer, 100);
    stage.put(1, other, 100);
    drop(stage.ask(producer, 100));
    assert!(stage.gather(0));
    stage.asleep[0] = true;
    traffic_on_the_second_disk(&mut stage, other, consumer);
    let mut stage = stage.restart();
    let consumer = stage.producer();
    assert_eq!(stage.take_all(consumer).0, [] as [u64; 0]);
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
