//! Stories of puts, takes and their limits, without waiting.

use super::*;
use crate::{Existing, NoteUpdate, Outcome};

pub(super) const STORIES: &[(&str, Story)] = &[
    ("events leave in the order of their producer", events_leave_in_the_order_of_their_producer),
    ("who waits for a put may write it, beside others who do not wait", who_waits_for_a_put_may_write_it),
    ("events come back as they were put", events_come_back_as_they_were_put),
    ("an empty batch is acknowledged even when the channel is full", an_empty_batch_is_acknowledged_even_when_full),
    ("a batch that does not fit leaves nothing behind", a_batch_that_does_not_fit_leaves_nothing_behind),
    ("capacity counts what is queued and what is leased", capacity_counts_what_is_queued_and_what_is_leased),
    ("a transaction has its own limit", a_transaction_has_its_own_limit),
    ("a limit of bytes holds but for one event", a_limit_of_bytes_holds_but_for_one_event),
    ("the books balance", the_books_balance),
    ("notes are small, and kept only where they can be durable", notes_are_small_and_kept_where_durable),
];

fn events_leave_in_the_order_of_their_producer(make: Make<'_>) {
    let channel = make(Setup::of(100));
    let mut producer = channel.producer();
    // All at once: order must not depend on waiting for each answer.
    let tickets: Vec<_> = (0..10).map(|index| producer.put(numbers(index * 7..index * 7 + 7))).collect();
    let ranges: Vec<SeqRange> =
        tickets.into_iter().map(|ticket| answer(ticket).expect("it fits").range.expect("events")).collect();
    assert!(ranges.windows(2).all(|pair| pair[0].end <= pair[1].start), "{ranges:?}");
    let put_seqs: Vec<u64> = ranges.iter().flat_map(|range| range.start..range.end).collect();
    let mut consumer = channel.consumer("sink");
    let (mut all, mut all_seqs) = (Vec::new(), Vec::new());
    while all.len() < 70 {
        let lease = take(&mut *consumer, at_most(3));
        all.extend(taken(&lease));
        all_seqs.extend(seqs(&lease));
        deliver(&mut *consumer, &lease);
    }
    assert_eq!(all, (0..70).collect::<Vec<_>>());
    assert_eq!(all_seqs, put_seqs, "the receipts name what the leases bring");
    assert_empty(&mut *consumer);
}

fn who_waits_for_a_put_may_write_it(make: Make<'_>) {
    const PRODUCERS: u64 = 4;
    const ROUNDS: u64 = 50;
    let channel = make(Setup::of(1000));
    std::thread::scope(|scope| {
        for first in (0..PRODUCERS).map(|index| index * 1000) {
            let mut producer = channel.producer();
            scope.spawn(move || {
                for next in (first..first + 2 * ROUNDS).step_by(2) {
                    let begun = producer.put(numbers(next..next + 1));
                    let receipt = producer.put_and_wait(numbers(next + 1..next + 2)).expect("it fits");
                    let earlier = answer(begun).expect("it fits");
                    assert!(earlier.range.expect("an event").end <= receipt.range.expect("an event").start);
                }
            });
        }
    });
    let mut consumer = channel.consumer("sink");
    let mut all = Vec::new();
    while all.len() < (PRODUCERS * 2 * ROUNDS) as usize {
        let lease = take(&mut *consumer, at_most(100));
        all.extend(taken(&lease));
        deliver(&mut *consumer, &lease);
    }
    for first in (0..PRODUCERS).map(|index| index * 1000) {
        let own: Vec<u64> = all.iter().copied().filter(|number| number / 1000 * 1000 == first).collect();
        assert_eq!(own, (first..first + 2 * ROUNDS).collect::<Vec<_>>());
    }
    assert_empty(&mut *consumer);
}

fn events_come_back_as_they_were_put(make: Make<'_>) {
    let channel = make(Setup::of(100));
    let keys: Vec<String> = (0..300).map(|index| format!("key {index}")).collect();
    let large: Vec<u8> = (0..300_000u32).map(|index| (index % 251) as u8).collect();
    let mut events = EventBatch::new();
    events.push_body(b"");
    events.push([("only", "headers")], b"");
    events.push(keys.iter().map(|key| (key.as_str(), "value")), b"many headers");
    events.push([("größe", "七 🦀\u{0}\u{301}"), ("", "an empty key"), ("an empty value", "")], "ünï".as_bytes());
    events.push([("host", "own")], &[0xff, 0xfe, 0x00, 0x80, b'\n', b'\r']);
    events.push_body(&large);
    events.set_common("host", "common", Existing::Keep);
    events.set_common("only", "replaced", Existing::Replace);
    let expected: Vec<_> = events.iter().map(|event| (headers(event), event.body().to_vec())).collect();
    answer(channel.producer().put(events)).expect("it fits");

    let mut consumer = channel.consumer("sink");
    let bring =
        |lease: &Lease| lease.iter().map(|(_, event)| (headers(event), event.body().to_vec())).collect::<Vec<_>>();
    let first = take_exactly(&mut *consumer, expected.len());
    assert!(bring(&first) == expected, "headers and bodies are the same");
    assert_eq!(first.iter().nth(4).and_then(|(_, event)| event.header("host")), Some("own"));
    settle(&mut *consumer, Settlement::returned(first.ranges()));
    let again = take_exactly(&mut *consumer, expected.len());
    assert!(bring(&again) == expected, "and after a rollback");
    assert_eq!(seqs(&again), seqs(&first), "an event keeps its number");
}

fn an_empty_batch_is_acknowledged_even_when_full(make: Make<'_>) {
    let channel = make(Setup::of(1));
    let mut producer = channel.producer();
    for _ in 0..2 {
        let receipt = answer(producer.put(EventBatch::new())).expect("nothing needs no room");
        assert_eq!(receipt.range, None);
        // The second one meets a full channel.
        answer(producer.put(numbers(0..1))).ok();
    }
    assert_balanced(&*channel, 1, 0);
}

fn a_batch_that_does_not_fit_leaves_nothing_behind(make: Make<'_>) {
    let channel = make(Setup::of(10));
    let mut producer = channel.producer();
    put(&mut *producer, 0..7);
    assert_full(answer(producer.put(numbers(90..94))));
    assert_balanced(&*channel, 7, 0);
    put(&mut *producer, 7..10);
    assert_full(answer(producer.put(numbers(90..91))));
    let mut consumer = channel.consumer("sink");
    assert_eq!(taken(&take_exactly(&mut *consumer, 10)), (0..10).collect::<Vec<_>>());
    assert_empty(&mut *consumer);
}

fn capacity_counts_what_is_queued_and_what_is_leased(make: Make<'_>) {
    let channel = make(Setup::of(4));
    let (mut producer, mut consumer) = (channel.producer(), channel.consumer("sink"));
    assert_eq!(channel.stats().capacity_events, 4);
    put(&mut *producer, 0..2);
    let first = take_exactly(&mut *consumer, 2);
    put(&mut *producer, 2..4);
    assert_full(answer(producer.put(numbers(90..91))));
    let second = take_exactly(&mut *consumer, 2);
    assert_full(answer(producer.put(numbers(90..91))));
    settle(&mut *consumer, Settlement::returned(first.ranges()));
    assert_full(answer(producer.put(numbers(90..91))));
    deliver(&mut *consumer, &second);
    put(&mut *producer, 4..6);
    assert_full(answer(producer.put(numbers(90..91))));
    assert_eq!(taken(&take_exactly(&mut *consumer, 4)), [0, 1, 4, 5]);
    assert_balanced(&*channel, 4, 4);
}

fn a_transaction_has_its_own_limit(make: Make<'_>) {
    let channel = make(Setup { capacity: 10, transaction_capacity: 4, keep_alive: Duration::ZERO });
    assert_eq!(channel.transaction_capacity(), 4);
    let (mut producer, mut consumer) = (channel.producer(), channel.consumer("sink"));
    match answer(producer.put(numbers(0..5))) {
        Err(PutError::TooManyEvents { events: 5, limit: 4, .. }) => {}
        other => panic!("five events where four are allowed: {other:?}"),
    }
    assert_balanced(&*channel, 0, 0);
    put(&mut *producer, 0..4);
    put(&mut *producer, 4..8);
    let lease = take(&mut *consumer, ALL);
    assert!(lease.event_count() <= 4, "a take of {} events", lease.event_count());
    let rest = take_exactly(&mut *consumer, 8 - lease.event_count());
    assert_eq!([taken(&lease), taken(&rest)].concat(), (0..8).collect::<Vec<_>>());
}

fn a_limit_of_bytes_holds_but_for_one_event(make: Make<'_>) {
    let channel = make(Setup::of(100));
    let bodies: Vec<Vec<u8>> = (0..20u8).map(|index| vec![index; if index % 5 == 0 { 1000 } else { 100 }]).collect();
    answer(channel.producer().put(batch(&bodies))).expect("it fits");
    let mut consumer = channel.consumer("sink");
    for bytes in [0, 1, 99, 250, 1100, 3000] {
        let mut seen = Vec::new();
        let mut leased = Vec::new();
        while seen.len() < bodies.len() {
            let lease = take(&mut *consumer, TakeLimits { events: usize::MAX, bytes });
            let total: usize = lease.iter().map(|(_, event)| event.body().len()).sum();
            assert!(total <= bytes || lease.event_count() == 1, "{total} bytes in one lease of at most {bytes}");
            seen.extend(lease.iter().map(|(_, event)| event.body().to_vec()));
            leased.extend(lease.ranges());
        }
        assert!(seen == bodies, "all events, in order, with {bytes} bytes per take");
        settle(&mut *consumer, Settlement::returned(leased));
    }
}

fn the_books_balance(make: Make<'_>) {
    let channel = make(Setup::of(20));
    let (mut producer, mut consumer) = (channel.producer(), channel.consumer("sink"));
    assert_balanced(&*channel, 0, 0);
    put(&mut *producer, 0..20);
    assert_full(answer(producer.put(numbers(90..95))));
    assert_balanced(&*channel, 20, 0);
    let lease = take_exactly(&mut *consumer, 12);
    assert_balanced(&*channel, 20, 12);
    let seqs = seqs(&lease);
    let settlement =
        |range: std::ops::Range<usize>, outcome| Settlement::new(singles(seqs[range].iter().copied()), outcome);
    answer(consumer.settle(vec![
        settlement(0..3, Outcome::Delivered),
        settlement(3..5, Outcome::DeadLettered { reason: "no timestamp".to_owned() }),
        settlement(5..6, Outcome::Dropped { reason: "by hand".to_owned() }),
        settlement(6..8, Outcome::Returned),
    ]))
    .expect("all are leased");
    assert_balanced(&*channel, 14, 4);
    let stats = channel.stats();
    assert_eq!(stats.put_attempt_events, 25);
    assert_eq!(stats.put_success_events, 20);
    assert_eq!(stats.take_success_events, 3);
    assert_eq!(stats.dead_lettered_events, 2);
    assert_eq!(stats.dropped_events, 1);
    assert!(stats.take_attempts >= 1);
    drop(consumer);
    until("the leases are back", || channel.stats().leased_events == 0);
    assert_balanced(&*channel, 14, 0);
    assert_eq!(
        taken(&take_exactly(&mut *channel.consumer("other"), 14)),
        [&[6, 7], &(8..20).collect::<Vec<_>>()[..]].concat()
    );
}

fn notes_are_small_and_kept_where_durable(make: Make<'_>) {
    let channel = make(Setup::of(10));
    let mut consumer = channel.consumer("sink");
    let note = |len: usize| NoteUpdate {
        owner: "sink".to_owned(),
        key: "file".to_owned(),
        note: Some(Bytes::from(vec![b'n'; len])),
    };
    answer(consumer.note(vec![note(4096)])).expect("a note of 4 KiB");
    let kept = channel.notes("sink");
    assert_eq!(kept.len(), usize::from(channel.is_durable()));
    let refused = answer(consumer.note(vec![note(4097)]));
    assert!(matches!(refused, Err(SettleError::NoteRefused(_))), "{refused:?}");

    put(&mut *channel.producer(), 0..1);
    let lease = take_exactly(&mut *consumer, 1);
    let mut settlement = Settlement::delivered(lease.ranges());
    settlement.notes = vec![note(4097)];
    let refused = answer(consumer.settle(vec![settlement]));
    assert!(matches!(refused, Err(SettleError::NoteRefused(_))), "{refused:?}");
    assert_balanced(&*channel, 1, 1);
    assert_eq!(channel.notes("sink"), kept);
    deliver(&mut *consumer, &lease);
}
