//! Stories of waiting: for room, for events, and for the end.

use super::*;

pub(super) const STORIES: &[(&str, Story)] = &[
    ("a put waits for room, then is refused", a_put_waits_for_room_then_is_refused),
    ("a settlement lets waiting puts in, in order", a_settlement_lets_waiting_puts_in_in_order),
    ("only what is gone makes room", only_what_is_gone_makes_room),
    ("a take waits for the first event", a_take_waits_for_the_first_event),
    ("a take waits for what another consumer returns", a_take_waits_for_what_another_consumer_returns),
    ("a take without events ends empty", a_take_without_events_ends_empty),
    ("a closed channel answers whoever waits, and refuses", a_closed_channel_answers_whoever_waits_and_refuses),
];

fn a_put_waits_for_room_then_is_refused(make: Make<'_>) {
    let channel = make(Setup { capacity: 2, transaction_capacity: 2, keep_alive: Duration::from_millis(20) });
    let mut producer = channel.producer();
    put(&mut *producer, 0..2);
    let (second, third) = (producer.put(numbers(90..92)), producer.put(numbers(92..93)));
    assert_full(answer(second));
    assert_full(answer(third));
    assert_balanced(&*channel, 2, 0);
    // The refusal leaves no reservation behind.
    let mut consumer = channel.consumer("sink");
    let lease = take_exactly(&mut *consumer, 2);
    deliver(&mut *consumer, &lease);
    put(&mut *producer, 2..4);
    assert_eq!(taken(&take_exactly(&mut *consumer, 2)), [2, 3]);
}

fn a_settlement_lets_waiting_puts_in_in_order(make: Make<'_>) {
    let channel = make(Setup { capacity: 4, transaction_capacity: 4, keep_alive: FOREVER });
    let (mut producer, mut consumer) = (channel.producer(), channel.consumer("sink"));
    put(&mut *producer, 0..3);
    // The second one would fit, but its producer sent another one before it.
    let waiting = [producer.put(numbers(3..6)), producer.put(numbers(6..7)), producer.put(numbers(7..8))];
    let lease = take_exactly(&mut *consumer, 3);
    let ([first, second, third], seqs) = (waiting.map(unanswered), seqs(&lease));
    settle(&mut *consumer, Settlement::delivered(singles([seqs[0]])));
    let (first, second) = (unanswered(first), unanswered(second));
    settle(&mut *consumer, Settlement::delivered(singles(seqs[1..].iter().copied())));
    answer(first).expect("there is room");
    answer(second).expect("there is room");
    let third = unanswered(third);
    let lease = take_exactly(&mut *consumer, 4);
    assert_eq!(taken(&lease), [3, 4, 5, 6]);
    deliver(&mut *consumer, &lease);
    answer(third).expect("there is room");
    assert_eq!(taken(&take_exactly(&mut *consumer, 1)), [7]);
    assert_balanced(&*channel, 1, 1);
}

fn only_what_is_gone_makes_room(make: Make<'_>) {
    let channel = make(Setup { capacity: 2, transaction_capacity: 2, keep_alive: FOREVER });
    let (mut producer, mut consumer) = (channel.producer(), channel.consumer("sink"));
    put(&mut *producer, 0..2);
    let waiting = producer.put(numbers(2..3));
    let lease = take_exactly(&mut *consumer, 2);
    let waiting = unanswered(waiting);
    settle(&mut *consumer, Settlement::returned(lease.ranges()));
    let waiting = unanswered(waiting);
    drop(consumer);
    let mut consumer = channel.consumer("next");
    let lease = take_exactly(&mut *consumer, 2);
    let waiting = unanswered(waiting);
    deliver(&mut *consumer, &lease);
    answer(waiting).expect("there is room");
    assert_eq!(taken(&take_exactly(&mut *consumer, 1)), [2]);
}

fn a_take_waits_for_the_first_event(make: Make<'_>) {
    let channel = make(Setup::of(10));
    let mut consumers = [channel.consumer("one"), channel.consumer("two")];
    let [first, second] = consumers.each_mut().map(|consumer| unanswered(consumer.take(at_most(2), FOREVER)));
    let mut producer = channel.producer();
    put(&mut *producer, 0..1);
    let first = answer(first).expect("open");
    assert_eq!(taken(&first), [0], "one event is enough, and whoever came first is served first");
    let second = unanswered(second);
    put(&mut *producer, 1..4);
    let second = answer(second).expect("open");
    let rest = take_exactly(&mut *consumers[0], 3 - second.event_count());
    assert_eq!([taken(&second), taken(&rest)].concat(), [1, 2, 3]);
    deliver(&mut *consumers[1], &second);
}

fn a_take_waits_for_what_another_consumer_returns(make: Make<'_>) {
    let channel = make(Setup::of(10));
    put(&mut *channel.producer(), 0..2);
    let (mut holds, mut waits) = (channel.consumer("holds"), channel.consumer("waits"));
    let lease = take_exactly(&mut *holds, 2);
    let waiting = unanswered(waits.take(at_most(1), FOREVER));
    settle(&mut *holds, Settlement::returned(singles([seqs(&lease)[1]])));
    assert_eq!(taken(&answer(waiting).expect("open")), [1]);
    let waiting = unanswered(waits.take(at_most(1), FOREVER));
    drop(holds);
    assert_eq!(taken(&answer(waiting).expect("open")), [0]);
}

fn a_take_without_events_ends_empty(make: Make<'_>) {
    let channel = make(Setup::of(10));
    let mut consumer = channel.consumer("sink");
    assert_empty(&mut *consumer);
    for wait in [Duration::from_millis(1), Duration::from_millis(10)] {
        assert!(answer(consumer.take(ALL, wait)).expect("open").is_empty());
    }
    put(&mut *channel.producer(), 0..3);
    assert_eq!(taken(&take_exactly(&mut *consumer, 3)), [0, 1, 2]);
    // Leased events are no reason to answer.
    assert!(answer(consumer.take(ALL, Duration::from_millis(1))).expect("open").is_empty());
    assert_balanced(&*channel, 3, 3);
}

fn a_closed_channel_answers_whoever_waits_and_refuses(make: Make<'_>) {
    let channel = make(Setup { capacity: 2, transaction_capacity: 2, keep_alive: FOREVER });
    let (mut producer, mut consumer) = (channel.producer(), channel.consumer("sink"));
    put(&mut *producer, 0..2);
    let lease = take_exactly(&mut *consumer, 2);
    let put_waits = unanswered(producer.put(numbers(2..3)));
    let take_waits = unanswered(consumer.take(ALL, FOREVER));
    answer(channel.close()).expect("it closes");
    assert_eq!(answer(put_waits), Err(PutError::Closed));
    let closed = |ticket| matches!(answer(ticket), Err(crate::TakeError::Closed));
    assert!(closed(take_waits));
    assert_eq!(answer(producer.put(numbers(3..4))), Err(PutError::Closed));
    assert_eq!(answer(channel.producer().put(numbers(3..4))), Err(PutError::Closed));
    assert!(closed(consumer.take(ALL, FOREVER)));
    assert!(closed(channel.consumer("late").take(ALL, Duration::ZERO)));
    assert_eq!(answer(consumer.settle(vec![Settlement::delivered(lease.ranges())])), Err(SettleError::Closed));
    drop(consumer);
    answer(channel.close()).expect("closing twice is no mistake");
}
