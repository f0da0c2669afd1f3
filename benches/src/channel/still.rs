//! A channel that is filled and left, opened again, and drained.

use std::collections::VecDeque;
use std::io::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use channel::{Channel, DurableChannel, DurableOptions, SettleError, Settlement, TakeLimits, Ticket};
use serde_json::{Value, json};

use super::{Arguments, Outcome};
use crate::host;
use crate::meter::{Generator, Meter, Reading};
use crate::numbers::{Latencies, rounded};

/// A consumer that gets nothing for so long has drained the channel.
const EMPTY_AFTER: Duration = Duration::from_millis(500);
/// Settlements of one consumer that are not yet durable.
const SETTLING_MAX: usize = 16;

/// Events of one take when a channel is only emptied.
const DRAINED_AT_ONCE: u64 = 10_000;

/// Puts so many events, and leaves the channel where it is.
pub(crate) fn fill(arguments: &Arguments) -> Result<Value, String> {
    arguments.clear()?;
    let channel = arguments.open()?;
    let (begin, generator) = (Instant::now(), Generator::default());
    let meter = Meter::start(&arguments.folders(), &generator);
    let first = arguments.events.min(fills_hot_tail(arguments.size));
    let mut latencies = put(&channel, arguments, first, &generator)?;
    let full_tail = host::resident();
    latencies.add(&put(&channel, arguments, arguments.events - first, &generator)?);
    let outcome = Outcome {
        put_events: Some(arguments.events),
        take_events: None,
        transactions: latencies,
        late: None,
        steady: None,
        reading: Reading { elapsed: begin.elapsed(), ..meter.read() },
        first_take: None,
        depth: channel.stats().size_events,
    };
    let mib = |bytes: Option<u64>| bytes.map(|bytes| rounded(bytes as f64 / f64::from(1 << 20)));
    let memory = channel.memory();
    let mut result = outcome.json(arguments);
    result["resident_full_tail_mib"] = json!(mib(full_tail));
    result["resident_mib"] = json!(mib(host::resident()));
    result["hot_tail_bytes"] = json!(memory.hot_tail_bytes);
    result["queue_bytes"] = json!(memory.queue_bytes);
    if arguments.kill {
        // It must not be closed: nobody closes what is killed.
        std::mem::forget(channel);
    }
    Ok(result)
}

/// So many events are surely more than the channel keeps in memory.
fn fills_hot_tail(size: u64) -> u64 {
    let tail = DurableOptions::new("", Vec::new()).hot_tail_bytes as u64;
    2 * tail / size.max(1)
}

/// Fills segments with so many bytes and drains as many events, so that they are there for whoever comes next.
pub(crate) fn warm(channel: &DurableChannel, arguments: &Arguments) -> Result<(), String> {
    let queued = channel.stats().size_events;
    put(channel, arguments, arguments.warm_pool / arguments.size.max(1), &Generator::default())?;
    drain_to(channel, queued)
}

/// Takes until no more than so many events are queued.
pub(crate) fn drain_to(channel: &DurableChannel, left: u64) -> Result<(), String> {
    let mut consumer = channel.consumer("warm");
    let (mut settling, mut unsettled) = (VecDeque::new(), 0);
    while let Some(more) = channel.stats().size_events.checked_sub(left).filter(|more| *more > 0) {
        // Those that are taken count until their settlement is durable.
        let events = more.saturating_sub(unsettled).min(DRAINED_AT_ONCE) as usize;
        let taken = if events > 0 {
            let limits = TakeLimits { events, bytes: 8 << 20 };
            let lease = consumer.take(limits, EMPTY_AFTER).wait().map_err(|error| error.to_string())?;
            if !lease.is_empty() {
                let count = lease.event_count() as u64;
                settling.push_back((count, consumer.settle(vec![Settlement::delivered(lease.ranges())])));
                unsettled += count;
            }
            lease.event_count()
        } else {
            0
        };
        while (settling.len() > SETTLING_MAX || taken == 0)
            && let Some((count, ticket)) = settling.pop_front()
        {
            settled(ticket)?;
            unsettled -= count;
        }
    }
    Ok(())
}

/// Puts `count` events with all producers, whole batches but for the last ones.
fn put(
    channel: &DurableChannel,
    arguments: &Arguments,
    count: u64,
    generator: &Generator,
) -> Result<Latencies, String> {
    let claimed = AtomicU64::new(0);
    let (latencies, failed) = (Mutex::new(Latencies::new()), Mutex::new(None));
    let batches: Vec<_> = (0..arguments.producers).map(|index| arguments.batches(u64::from(index))).collect();
    thread::scope(|scope| {
        for batches in &batches {
            scope.spawn(|| {
                let (mut producer, mut own) = (channel.producer(), Latencies::new());
                for batch in batches.iter().cycle() {
                    let first = claimed.fetch_add(batch.len() as u64, Ordering::Relaxed);
                    if first >= count {
                        break;
                    }
                    let left = usize::try_from(count - first).unwrap_or(usize::MAX);
                    // In memory of its own, as that of a source, and not shared with all of the hot tail.
                    let events = generator.own(|| batch.sub_batch(0..left.min(batch.len())));
                    let sent = Instant::now();
                    if let Err(error) = producer.put_and_wait(events) {
                        claimed.store(count, Ordering::Relaxed);
                        failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                        break;
                    }
                    own.record(sent.elapsed());
                }
                latencies.lock().unwrap_or_else(PoisonError::into_inner).add(&own);
            });
        }
    });
    match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error.to_string()),
        None => Ok(latencies.into_inner().unwrap_or_else(PoisonError::into_inner)),
    }
}

/// How long opening took.
pub(crate) struct Opened {
    pub(crate) channel: DurableChannel,
    /// Until it serves.
    pub(crate) ready: Duration,
    /// From the same begin until the first events are there; `None` when there are none.
    pub(crate) first_take: Option<Duration>,
    pub(crate) depth: u64,
    pub(crate) reading: Reading,
}

/// Opens what is there and takes once. What was taken goes back when the consumer is dropped.
pub(crate) fn reopen(arguments: &Arguments) -> Result<Opened, String> {
    for folder in arguments.folders() {
        if !folder.exists() {
            return Err(format!("{}: nothing is there; --mode fill makes it", folder.display()));
        }
    }
    let generator = Generator::default();
    let meter = Meter::start(&arguments.folders(), &generator);
    let begin = Instant::now();
    let channel = arguments.open()?;
    let ready = begin.elapsed();
    let depth = channel.stats().size_events;
    let mut first_take = None;
    if depth > 0 {
        let lease = channel.consumer("sink").take(arguments.takes(), FIRST_WAIT).wait();
        let lease = lease.map_err(|error| error.to_string())?;
        if lease.is_empty() {
            return Err(format!("{depth} events are queued, and none came in {FIRST_WAIT:?}"));
        }
        first_take = Some(begin.elapsed());
    }
    Ok(Opened { ready, first_take, depth, reading: meter.read(), channel })
}

const FIRST_WAIT: Duration = Duration::from_secs(60);

/// Time until the channel serves, and until the first take.
pub(crate) fn open(arguments: &Arguments) -> Result<Value, String> {
    let opened = reopen(arguments)?;
    let recovery = opened.channel.recovery();
    let outcome = Outcome {
        put_events: None,
        take_events: None,
        transactions: Latencies::new(),
        late: None,
        steady: None,
        reading: opened.reading,
        first_take: opened.first_take,
        depth: opened.depth,
    };
    let mut result = outcome.json(arguments);
    result["ready_s"] = json!(rounded(opened.ready.as_secs_f64()));
    result["frames_read"] = json!(recovery.frames);
    result["segments_vouched_for"] = json!(recovery.vouched_segments);
    result["footers_read"] = json!(recovery.footed_segments);
    if arguments.kill {
        std::mem::forget(opened.channel);
    }
    Ok(result)
}

/// Takes and settles as fast as it goes, until the time is over or nothing is left.
pub(crate) fn drain(arguments: &Arguments) -> Result<Value, String> {
    Ok(drained(arguments)?.json(arguments))
}

pub(crate) fn drained(arguments: &Arguments) -> Result<Outcome, String> {
    let opened = reopen(arguments)?;
    let generator = Generator::default();
    let (taken, failed) = (AtomicU64::new(0), Mutex::new(None));
    let meter = Meter::start(&arguments.folders(), &generator);
    let begin = Instant::now();
    let (until, last) = (begin + arguments.seconds, Mutex::new(Duration::ZERO));
    thread::scope(|scope| {
        for index in 0..arguments.consumers.max(1) {
            let (channel, taken, failed, last) = (&opened.channel, &taken, &failed, &last);
            let generator = &generator;
            scope.spawn(move || match take(channel, arguments, index, until, taken, generator) {
                Ok(end) => {
                    let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
                    *last = last.max(end.saturating_duration_since(begin));
                }
                Err(error) => {
                    failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                }
            });
        }
    });
    if let Some(error) = failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }
    // The last wait, for nothing, does not belong to the draining; it costs no CPU.
    let elapsed = last.into_inner().unwrap_or_else(PoisonError::into_inner);
    let reading = Reading { elapsed, ..meter.read() };
    Ok(Outcome {
        put_events: None,
        take_events: Some(taken.into_inner()),
        transactions: Latencies::new(),
        late: None,
        steady: None,
        reading,
        first_take: opened.first_take,
        depth: opened.channel.stats().size_events,
    })
}

/// Takes until the time is over or nothing comes; returns when the last settlement was durable.
fn take(
    channel: &DurableChannel,
    arguments: &Arguments,
    index: u32,
    until: Instant,
    taken: &AtomicU64,
    generator: &Generator,
) -> Result<Instant, String> {
    let mut consumer = channel.consumer(&format!("sink-{index}"));
    let (mut settling, mut last) = (VecDeque::new(), Instant::now());
    while Instant::now() < until {
        let lease = consumer.take(arguments.takes(), EMPTY_AFTER).wait().map_err(|error| error.to_string())?;
        if lease.is_empty() {
            return settling.into_iter().try_for_each(settled).map(|()| last);
        }
        // A sink reads what it takes.
        let bytes: usize = generator.own(|| lease.iter().map(|(_, event)| event.body().len()).sum());
        std::hint::black_box(bytes);
        settling.push_back(consumer.settle(vec![Settlement::delivered(lease.ranges())]));
        taken.fetch_add(lease.event_count() as u64, Ordering::Relaxed);
        if settling.len() > SETTLING_MAX
            && let Some(oldest) = settling.pop_front()
        {
            settled(oldest)?;
        }
        last = Instant::now();
    }
    settling.into_iter().try_for_each(settled).map(|()| Instant::now())
}

fn settled(ticket: Ticket<Result<(), SettleError>>) -> Result<(), String> {
    ticket.wait().map_err(|error| error.to_string())
}

/// Ends this process as a crash would: no destructor runs, nothing is closed.
pub(crate) fn die() -> Result<(), String> {
    std::io::stdout().flush().map_err(|error| error.to_string())?;
    let own = rustix::process::getpid();
    rustix::process::kill_process(own, rustix::process::Signal::KILL).map_err(|error| error.to_string())
}
