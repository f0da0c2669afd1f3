//! Producers and consumers on one channel for a while.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use channel::{Channel, DurableChannel, Settlement};
use serde_json::Value;

use super::steady::{self, Memory, Pauses, Steady};
use super::{Arguments, Outcome};
use crate::meter::{Generator, Meter};
use crate::numbers::Latencies;
use crate::open_loop::Schedule;

/// A consumer without events looks again after this, to see whether it is over.
const TAKE_WAIT: Duration = Duration::from_millis(50);
/// Settlements of one consumer that are not yet durable.
const SETTLING_MAX: usize = 16;
/// How often somebody who does nothing else looks at the clock, to see whether all of the machine stands still.
const CLOCK_STEP: Duration = Duration::from_millis(1);
/// A producer that is too far ahead of the consumers looks again after this.
const LAG_WAIT: Duration = Duration::from_micros(200);

const WARMUP: u8 = 0;
const MEASURED: u8 = 1;
const OVER: u8 = 2;

/// What the threads share.
struct Shared {
    phase: AtomicU8,
    put: AtomicU64,
    taken: AtomicU64,
    transactions: Mutex<Option<Latencies>>,
    late: Mutex<Option<Latencies>>,
    pauses: Pauses,
    /// The times in which whoever looks at the clock did not.
    clock: Pauses,
    /// The same as each producer saw them.
    seen_pauses: Mutex<Option<Latencies>>,
    error: Mutex<Option<String>>,
    generator: Generator,
}

impl Shared {
    fn new() -> Shared {
        Shared {
            phase: AtomicU8::new(WARMUP),
            put: AtomicU64::new(0),
            taken: AtomicU64::new(0),
            transactions: Mutex::default(),
            late: Mutex::default(),
            pauses: Pauses::new(),
            clock: Pauses::new(),
            seen_pauses: Mutex::default(),
            error: Mutex::default(),
            generator: Generator::default(),
        }
    }

    fn is(&self, phase: u8) -> bool {
        self.phase.load(Ordering::Relaxed) == phase
    }

    /// The first failure ends the run: a rate with failures in it means nothing.
    fn fail(&self, error: impl ToString) {
        self.error.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(|| error.to_string());
        self.phase.store(OVER, Ordering::Relaxed);
    }
}

pub(crate) fn run(arguments: &Arguments) -> Result<Value, String> {
    let Some(time) = arguments.raw_flushes else {
        return arguments.measured().map(|outcome| outcome.json(arguments));
    };
    let before = steady::raw_flushes(arguments, time)?;
    let outcome = arguments.measured()?;
    let after = steady::raw_flushes(arguments, time)?;
    let mut result = outcome.json(arguments);
    result["raw_flush"] = steady::beside(outcome.steady.as_ref(), &before, &after);
    Ok(result)
}

/// Runs the load on an open channel.
pub(crate) fn measure(channel: &DurableChannel, arguments: &Arguments) -> Result<Outcome, String> {
    let shared = Shared::new();
    let batches: Vec<_> = (0..arguments.producers).map(|index| arguments.batches(u64::from(index))).collect();
    let mut outcome = thread::scope(|scope| {
        let begin = Instant::now();
        for (index, batches) in (0..).zip(&batches) {
            let shared = &shared;
            scope.spawn(move || produce(channel, arguments, shared, index, batches, begin));
        }
        for index in 0..arguments.consumers {
            let shared = &shared;
            scope.spawn(move || consume(channel, arguments, shared, index));
        }
        if arguments.raw_flushes.is_some() {
            scope.spawn(|| {
                while !shared.is(OVER) {
                    thread::sleep(CLOCK_STEP);
                    shared.clock.durable();
                }
            });
        }
        sleep_or_end(&shared, arguments.warmup, |_| ());
        let meter = Meter::start(&arguments.folders(), &shared.generator);
        let before = (shared.put.load(Ordering::Relaxed), shared.taken.load(Ordering::Relaxed));
        shared.pauses.forget();
        shared.clock.forget();
        if shared.is(WARMUP) {
            shared.phase.store(MEASURED, Ordering::Relaxed);
        }
        let (since, mut memory) = (Instant::now(), Memory::new(arguments.seconds));
        sleep_or_end(&shared, arguments.seconds, |elapsed| memory.look(elapsed));
        let longest = shared.pauses.longest(since);
        let clock = arguments.raw_flushes.map(|_| shared.clock.longest(since));
        let reading = meter.read();
        let put = shared.put.load(Ordering::Relaxed) - before.0;
        let taken = shared.taken.load(Ordering::Relaxed) - before.1;
        shared.phase.store(OVER, Ordering::Relaxed);
        Outcome {
            put_events: Some(put),
            take_events: (arguments.consumers > 0).then_some(taken),
            transactions: Latencies::new(),
            late: None,
            steady: Some(Steady { pauses: Latencies::new(), longest, clock, memory }),
            reading,
            first_take: None,
            depth: channel.stats().size_events,
        }
    });
    if let Some(error) = shared.error.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }
    if let Some(all) = shared.transactions.into_inner().unwrap_or_else(PoisonError::into_inner) {
        outcome.transactions = all;
    }
    let pauses = shared.seen_pauses.into_inner().unwrap_or_else(PoisonError::into_inner);
    if let (Some(steady), Some(pauses)) = (&mut outcome.steady, pauses) {
        steady.pauses = pauses;
    }
    outcome.late = shared.late.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ok(outcome)
}

fn sleep_or_end(shared: &Shared, time: Duration, mut look: impl FnMut(Duration)) {
    let begin = Instant::now();
    let until = begin + time;
    while !shared.is(OVER) && Instant::now() < until {
        look(begin.elapsed());
        thread::sleep(until.saturating_duration_since(Instant::now()).min(TAKE_WAIT));
    }
    look(time);
}

fn produce(
    channel: &DurableChannel,
    arguments: &Arguments,
    shared: &Shared,
    index: u32,
    batches: &[channel::EventBatch],
    begin: Instant,
) {
    let mut producer = channel.producer();
    let (mut latencies, mut pauses) = (Latencies::new(), Latencies::new());
    let batches_s = arguments.rate.map(|rate| rate as f64 / f64::from(arguments.batch));
    let mut schedule = batches_s.map(|rate| Schedule::new(begin, rate, arguments.producers, index));
    // A source has the next batch while the last one is written.
    let mut prepared = batches.iter().cycle();
    let mut prepare = || shared.generator.own(|| prepared.next().cloned().unwrap_or_default());
    let mut events = prepare();
    loop {
        if shared.is(OVER) {
            break;
        }
        while let Some(lag) = arguments.max_lag
            && shared.put.load(Ordering::Relaxed).saturating_sub(shared.taken.load(Ordering::Relaxed)) > lag
            && !shared.is(OVER)
        {
            thread::sleep(LAG_WAIT);
        }
        let sent = match &mut schedule {
            None => Instant::now(),
            Some(schedule) => shared.generator.own(|| schedule.wait()),
        };
        let measured = shared.is(MEASURED);
        // Beside others the writer has something to join, and the thread the next batch to prepare.
        let (result, latency) = if arguments.producers == 1 {
            let result = producer.put_and_wait(events);
            let latency = sent.elapsed();
            events = prepare();
            (result, latency)
        } else {
            let ticket = producer.put(events);
            events = prepare();
            (ticket.wait(), sent.elapsed())
        };
        if let Err(error) = result {
            shared.fail(error);
            break;
        }
        shared.put.fetch_add(u64::from(arguments.batch), Ordering::Relaxed);
        let pause = shared.pauses.durable();
        if measured {
            pauses.record(pause);
            latencies.record(latency);
        }
    }
    let add = |all: &Mutex<Option<Latencies>>, own: &Latencies| {
        all.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(Latencies::new).add(own);
    };
    add(&shared.transactions, &latencies);
    add(&shared.seen_pauses, &pauses);
    if let Some(schedule) = schedule {
        add(&shared.late, &schedule.into_late());
    }
}

fn consume(channel: &DurableChannel, arguments: &Arguments, shared: &Shared, index: u32) {
    let mut consumer = channel.consumer(&format!("sink-{index}"));
    let mut settling = std::collections::VecDeque::new();
    while !shared.is(OVER) {
        let lease = match consumer.take(arguments.takes(), TAKE_WAIT).wait() {
            Ok(lease) => lease,
            Err(error) => return shared.fail(error),
        };
        if lease.is_empty() {
            continue;
        }
        // A sink reads what it takes.
        let bytes: usize = shared.generator.own(|| lease.iter().map(|(_, event)| event.body().len()).sum());
        let events = lease.event_count();
        if bytes != events * arguments.size as usize {
            return shared.fail(format!("{events} events have {bytes} bytes of body"));
        }
        settling.push_back(consumer.settle(vec![Settlement::delivered(lease.ranges())]));
        shared.taken.fetch_add(events as u64, Ordering::Relaxed);
        if settling.len() > SETTLING_MAX
            && let Some(oldest) = settling.pop_front()
            && let Err(error) = oldest.wait()
        {
            return shared.fail(error);
        }
    }
}
