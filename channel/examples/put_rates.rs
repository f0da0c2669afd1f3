//! Rough rates of the durable channel: `put_rates DIR PRODUCERS BATCH SIZE SECONDS [encrypt] [take]`.
//!
//! Closed loop, one transaction in flight for each producer. Prints one line; what counts is a ratio within one run.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use channel::{Channel, Devices, DurableChannel, DurableOptions, EventBatch, Settlement, TakeLimits};
use wal::seal::ChannelKey;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |index: usize| arguments.get(index).and_then(|text| text.parse::<usize>().ok());
    let (Some(dir), Some(producers), Some(batch), Some(size), Some(seconds)) =
        (arguments.first(), number(1), number(2), number(3), number(4))
    else {
        eprintln!("usage: put_rates DIR PRODUCERS BATCH SIZE SECONDS [encrypt] [take]");
        return ExitCode::from(2);
    };
    let has = |word: &str| arguments.iter().any(|argument| argument == word);
    let mut options = DurableOptions::new("c1", vec![PathBuf::from(dir)]);
    options.capacity = u64::MAX / 2;
    if has("encrypt") {
        options.key = ChannelKey::new("k1", [7; 32]).ok();
    }
    let channel = match DurableChannel::open(options, &Devices::new()) {
        Ok(channel) => channel,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    let (stop, put, taken) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let body: Vec<u8> = std::iter::repeat_with(|| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (random >> 56) as u8
    })
    .take(size)
    .collect();
    let started = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..producers {
            scope.spawn(|| {
                let mut producer = channel.producer();
                while !stop.load(Ordering::Relaxed) {
                    let mut events = EventBatch::with_capacity(batch, batch * (size + 1));
                    (0..batch).for_each(|_| events.push_body(&body));
                    match producer.put(events).wait() {
                        Ok(_) => put.fetch_add(batch as u64, Ordering::Relaxed),
                        Err(error) => {
                            eprintln!("{error}");
                            break;
                        }
                    };
                }
            });
        }
        if has("take") {
            scope.spawn(|| {
                let mut consumer = channel.consumer("k1");
                while !stop.load(Ordering::Relaxed) {
                    let limits = TakeLimits { events: 1000, bytes: 4 << 20 };
                    let Ok(lease) = consumer.take(limits, Duration::from_millis(100)).wait() else { break };
                    taken.fetch_add(lease.event_count() as u64, Ordering::Relaxed);
                    if !lease.is_empty() {
                        drop(consumer.settle(vec![Settlement::delivered(lease.ranges())]));
                    }
                }
            });
        }
        std::thread::sleep(Duration::from_secs(seconds as u64));
        stop.store(true, Ordering::Relaxed);
    });
    let elapsed = started.elapsed().as_secs_f64();
    let (put, taken) = (put.into_inner() as f64 / elapsed, taken.into_inner() as f64 / elapsed);
    println!("put {put:.0} events/s, {:.1} MB/s; take {taken:.0} events/s", put * size as f64 / 1e6);
    ExitCode::SUCCESS
}
