//! The channels of this crate pass the suite that every channel passes.

use std::time::Duration;

use channel::conformance::{self, Setup, Step};
use channel::{Channel, MemoryChannel, MemoryOptions};
use proptest::prelude::*;

fn memory(setup: Setup) -> Box<dyn Channel> {
    let options = MemoryOptions {
        name: "c1".to_owned(),
        capacity: setup.capacity,
        transaction_capacity: setup.transaction_capacity,
        keep_alive: setup.keep_alive,
        ..MemoryOptions::default()
    };
    Box::new(MemoryChannel::new(options).expect("the suite asks for what is possible"))
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0u8..16).prop_map(|events| Step::Put { events }),
        4 => (any::<u8>(), 0u8..20, 0u16..1000).prop_map(|(consumer, events, bytes)| Step::Take { consumer, events, bytes }),
        5 => any::<(u8, u8, u8, u8, u8)>().prop_map(|(consumer, from, events, stride, outcome)| Step::Settle {
            consumer,
            from,
            events: events % 16,
            stride,
            outcome,
        }),
        1 => any::<(u8, u8)>().prop_map(|(consumer, event)| Step::SettleWrongly { consumer, event }),
        1 => any::<u8>().prop_map(|consumer| Step::DropConsumer { consumer }),
        1 => Just(Step::Reopen),
    ];
    prop::collection::vec(step, 1..120)
}

#[test]
fn the_memory_channel_does_what_every_channel_does() {
    conformance::check(&memory);
}

#[test]
fn the_memory_channel_leases_as_much_as_the_limits_allow() {
    let channel = memory(Setup { capacity: 100, transaction_capacity: 30, keep_alive: Duration::ZERO });
    let mut producer = channel.producer();
    for _ in 0..10 {
        let mut batch = channel::EventBatch::new();
        for _ in 0..10 {
            batch.push_body(b"12345678");
        }
        producer.put(batch).wait().expect("it fits");
    }
    let mut consumer = channel.consumer("sink");
    let mut take = |events, bytes| {
        let limits = channel::TakeLimits { events, bytes };
        consumer.take(limits, Duration::ZERO).wait().expect("it is open").event_count()
    };
    // A record of nine bytes: the count of headers and the body.
    assert_eq!(take(3, 9 * 5), 3);
    assert_eq!(take(22, usize::MAX), 22, "over the ends of transactions");
    assert_eq!(take(100, 9 * 17), 17);
    assert_eq!(take(100, 9 * 8 - 1), 7);
    assert_eq!(take(100, 0), 1);
    assert_eq!(take(100, usize::MAX), 30, "transactionCapacity");
    assert_eq!(take(100, usize::MAX), 20);
}

proptest! {
    #[test]
    fn the_memory_channel_is_its_model(steps in steps()) {
        conformance::check_steps(&memory, &steps);
    }
}
