//! Stories of leases: who has them, how they end, and what a wrong settlement must not do.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::Outcome;

pub(super) const STORIES: &[(&str, Story)] = &[
    ("returned events come back at the head, in order", returned_events_come_back_at_the_head_in_order),
    ("a settlement may join leases and cut them", a_settlement_may_join_leases_and_cut_them),
    ("what is not leased cannot be settled", what_is_not_leased_cannot_be_settled),
    ("a settlement is all or nothing", a_settlement_is_all_or_nothing),
    ("a consumer that goes away returns its leases", a_consumer_that_goes_away_returns_its_leases),
    ("two consumers share without overlap", two_consumers_share_without_overlap),
    ("dropping a ticket cancels nothing", dropping_a_ticket_cancels_nothing),
    ("many threads lose and double nothing", many_threads_lose_and_double_nothing),
];

fn returned_events_come_back_at_the_head_in_order(make: Make<'_>) {
    let channel = make(Setup::of(20));
    let (mut producer, mut consumer) = (channel.producer(), channel.consumer("sink"));
    put(&mut *producer, 0..4);
    put(&mut *producer, 4..10);
    let first = take_exactly(&mut *consumer, 3);
    let second = take_exactly(&mut *consumer, 3);
    let third = take_exactly(&mut *consumer, 2);
    let first_seqs = seqs(&first);
    let (middle, ends) = (singles([first_seqs[1]]), singles([first_seqs[2], first_seqs[0]]));
    answer(consumer.settle(vec![Settlement::returned(ends), Settlement::delivered(middle)])).expect("all are leased");
    settle(&mut *consumer, Settlement::returned(second.ranges()));
    put(&mut *producer, 10..12);
    let again = take_exactly(&mut *consumer, 9);
    assert_eq!(taken(&again), [0, 2, 3, 4, 5, 8, 9, 10, 11]);
    // What comes back late comes back before what is still queued, as far as it is older.
    settle(&mut *consumer, Settlement::returned(singles(seqs(&again).into_iter().skip(5))));
    settle(&mut *consumer, Settlement::returned(third.ranges()));
    assert_eq!(taken(&take_exactly(&mut *consumer, 6)), [6, 7, 8, 9, 10, 11]);
    assert_empty(&mut *consumer);
    assert_balanced(&*channel, 11, 11);
}

fn a_settlement_may_join_leases_and_cut_them(make: Make<'_>) {
    let channel = make(Setup::of(20));
    let (mut producer, mut consumer) = (channel.producer(), channel.consumer("sink"));
    put(&mut *producer, 0..5);
    put(&mut *producer, 5..10);
    let mut all = Lease::default();
    while all.event_count() < 10 {
        all.slices.extend(take(&mut *consumer, at_most(3)).slices);
    }
    let seqs = seqs(&all);
    // One range over the ends of leases, and where the numbers allow it over both transactions.
    let mut middle: Vec<SeqRange> = Vec::new();
    for &seq in &seqs[1..9] {
        match middle.last_mut() {
            Some(last) if last.end == seq => last.end += 1,
            _ => middle.push(SeqRange::new(seq, seq + 1)),
        }
    }
    settle(&mut *consumer, Settlement::delivered(middle));
    assert_balanced(&*channel, 2, 2);
    settle(&mut *consumer, Settlement::returned(singles([seqs[9], seqs[0]])));
    assert_eq!(taken(&take_exactly(&mut *consumer, 2)), [0, 9]);
}

fn what_is_not_leased_cannot_be_settled(make: Make<'_>) {
    let channel = make(Setup::of(20));
    let (mut producer, mut mine, mut other) = (channel.producer(), channel.consumer("mine"), channel.consumer("other"));
    put(&mut *producer, 0..10);
    let lease = take_exactly(&mut *mine, 4);
    let foreign = take_exactly(&mut *other, 2);
    let range = lease.ranges()[0];
    let last = foreign.ranges().last().expect("events").end;
    let wrong = [
        ("another consumer's", foreign.ranges()),
        ("queued", vec![SeqRange::new(last, last + 1)]),
        ("never put", vec![SeqRange::new(last + 1_000_000, last + 1_000_001)]),
        ("far too many", vec![SeqRange::new(range.start, u64::MAX)]),
        ("partly another's", vec![SeqRange::new(seqs(&lease)[3], seqs(&foreign)[0] + 1)]),
        ("named twice", vec![range, range]),
        ("overlapping", vec![SeqRange::new(range.start, range.start + 1), range]),
    ];
    for (what, ranges) in wrong {
        for outcome in [Outcome::Delivered, Outcome::Returned] {
            let result = answer(mine.settle(vec![Settlement::new(ranges.clone(), outcome)]));
            assert!(matches!(result, Err(SettleError::NotLeased(_))), "{what}: {result:?}");
        }
        assert_balanced(&*channel, 10, 6);
    }
    deliver(&mut *mine, &lease);
    assert_not_leased(answer(mine.settle(vec![Settlement::delivered(lease.ranges())])));
    assert_not_leased(answer(mine.settle(vec![Settlement::returned(lease.ranges())])));
    settle(&mut *other, Settlement::returned(foreign.ranges()));
    assert_not_leased(answer(other.settle(vec![Settlement::delivered(foreign.ranges())])));
    assert_eq!(taken(&take_exactly(&mut *mine, 6)), [4, 5, 6, 7, 8, 9]);
    assert_balanced(&*channel, 6, 6);
}

fn a_settlement_is_all_or_nothing(make: Make<'_>) {
    let channel = make(Setup::of(20));
    let (mut producer, mut consumer) = (channel.producer(), channel.consumer("sink"));
    put(&mut *producer, 0..6);
    let lease = take_exactly(&mut *consumer, 4);
    let seqs = seqs(&lease);
    let queued = seqs[3] + 1;
    let good = [
        Settlement::delivered(singles([seqs[0]])),
        Settlement::returned(singles([seqs[1]])),
        Settlement::new(singles([seqs[2]]), Outcome::Dropped { reason: "by hand".to_owned() }),
    ];
    for bad in [singles([queued]), singles([seqs[1]]), singles([seqs[3], queued])] {
        let all = good.iter().cloned().chain([Settlement::delivered(bad)]).collect();
        assert_not_leased(answer(consumer.settle(all)));
        assert_balanced(&*channel, 6, 4);
    }
    answer(consumer.settle(good.to_vec())).expect("all are leased still");
    answer(consumer.settle(Vec::new())).expect("nothing to settle");
    assert_balanced(&*channel, 4, 1);
    assert_eq!(taken(&take_exactly(&mut *consumer, 3)), [1, 4, 5]);
}

fn a_consumer_that_goes_away_returns_its_leases(make: Make<'_>) {
    let channel = make(Setup::of(20));
    let (mut producer, mut stays) = (channel.producer(), channel.consumer("stays"));
    put(&mut *producer, 0..8);
    let mut goes = channel.consumer("goes");
    let first = take_exactly(&mut *goes, 2);
    let second = take_exactly(&mut *stays, 2);
    let third = take_exactly(&mut *goes, 3);
    settle(&mut *goes, Settlement::delivered(singles([seqs(&third)[1]])));
    drop(goes);
    until("the leases are back", || channel.stats().leased_events == 2);
    assert_not_leased(answer(stays.settle(vec![Settlement::delivered(first.ranges())])));
    assert_eq!(taken(&take_exactly(&mut *stays, 5)), [0, 1, 4, 6, 7]);
    deliver(&mut *stays, &second);
    assert_balanced(&*channel, 5, 5);

    // Whoever waits for what another one gives up gets it; whoever has gone gets nothing.
    let mut gone = channel.consumer("gone");
    let nobody = gone.take(ALL, FOREVER);
    drop(gone);
    drop(stays);
    assert!(answer(nobody).is_ok_and(|lease| lease.is_empty()), "nobody is there to settle it");
    let mut last = channel.consumer("last");
    assert_eq!(taken(&take_exactly(&mut *last, 5)), [0, 1, 4, 6, 7]);
}

fn two_consumers_share_without_overlap(make: Make<'_>) {
    let channel = make(Setup::of(100));
    let (mut producer, mut consumers) = (channel.producer(), [channel.consumer("one"), channel.consumer("two")]);
    for index in 0..10 {
        put(&mut *producer, index * 10..index * 10 + 10);
    }
    let mut all = Vec::new();
    let mut turn = 0;
    while all.len() < 100 {
        let lease = take(&mut *consumers[turn % 2], at_most(7));
        all.extend(taken(&lease));
        turn += 1;
        if turn % 3 == 0 {
            deliver(&mut *consumers[(turn + 1) % 2], &lease);
        }
    }
    assert_eq!(all, (0..100).collect::<Vec<_>>());
    for consumer in &mut consumers {
        assert_empty(&mut **consumer);
    }
}

fn dropping_a_ticket_cancels_nothing(make: Make<'_>) {
    let channel = make(Setup::of(10));
    let (mut producer, mut consumer) = (channel.producer(), channel.consumer("sink"));
    drop(producer.put(numbers(0..2)));
    drop(producer);
    let lease = take_exactly(&mut *consumer, 2);
    assert_eq!(taken(&lease), [0, 1]);
    drop(consumer.settle(vec![Settlement::delivered(lease.ranges())]));
    until("the settlement happens", || channel.stats().size_events == 0);
    // What a dropped take has leased is known to its consumer only, and returns with it.
    drop(consumer.take(at_most(1), FOREVER));
    put(&mut *channel.producer(), 2..3);
    until("the dropped take leases", || channel.stats().leased_events == 1);
    drop(consumer);
    let mut other = channel.consumer("other");
    assert_eq!(taken(&take_exactly(&mut *other, 1)), [2]);
    assert_balanced(&*channel, 1, 1);
}

fn many_threads_lose_and_double_nothing(make: Make<'_>) {
    const PRODUCERS: u64 = 4;
    const EVENTS: u64 = 600;
    // Too small for all of it, so that puts wait for settlements.
    let channel = make(Setup { capacity: 60, transaction_capacity: 20, keep_alive: FOREVER });
    let delivered = Mutex::new(Vec::new());
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let senders: Vec<_> = (0..PRODUCERS)
            .map(|index| {
                let mut producer = channel.producer();
                scope.spawn(move || {
                    let (mut next, end) = (index * EVENTS, (index + 1) * EVENTS);
                    while next < end {
                        let until = end.min(next + 1 + (next * 7 + index) % 20);
                        answer(producer.put(numbers(next..until))).expect("there will be room");
                        next = until;
                    }
                })
            })
            .collect();
        for index in 0..2u64 {
            let (mut consumer, delivered, done) = (channel.consumer("sink"), &delivered, &done);
            scope.spawn(move || {
                let mut round = index;
                while !done.load(Ordering::Acquire) {
                    let lease = answer(consumer.take(at_most(13), Duration::from_millis(5))).expect("it is open");
                    let ranges = lease.ranges();
                    round += 1;
                    if round % 4 == 0 {
                        settle(&mut *consumer, Settlement::returned(ranges));
                    } else {
                        let numbers = taken(&lease);
                        settle(&mut *consumer, Settlement::delivered(ranges));
                        delivered.lock().expect("no panic").extend(numbers);
                    }
                }
            });
        }
        let end = Instant::now() + LIMIT;
        let all_sent = || senders.iter().all(|sender| sender.is_finished());
        while Instant::now() < end && !(all_sent() && channel.stats().size_events == 0) {
            std::thread::yield_now();
        }
        done.store(true, Ordering::Release);
    });
    let mut delivered = delivered.into_inner().expect("no panic");
    let count = delivered.len() as u64;
    delivered.sort_unstable();
    assert_eq!(BTreeSet::from_iter(delivered.iter().copied()).len() as u64, count, "no event twice");
    assert_eq!(count, PRODUCERS * EVENTS, "every acknowledged event once");
    assert_balanced(&*channel, 0, 0);
}
