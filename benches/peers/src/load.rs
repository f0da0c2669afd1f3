//! One round of one store: producers commit and consumers take for a while, beginning with nothing.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use crate::stores::{Peer, Store};

/// Keys of different producers never meet.
const KEYS: u64 = 1 << 40;

/// What is done to a store.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    pub(crate) producers: u32,
    /// Only for stores that one can take from.
    pub(crate) consumers: u32,
    /// Transactions that one consumer has on their way; Flume knows one.
    pub(crate) takes_in_flight: usize,
    /// Events in one transaction, of a put and of a take.
    pub(crate) batch: u32,
    /// Bytes of an event.
    pub(crate) size: u32,
    pub(crate) time: Duration,
}

/// What came of it.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Round {
    pub(crate) put_events: u64,
    pub(crate) put_time: Duration,
    pub(crate) take_events: u64,
    pub(crate) take_time: Duration,
    /// Of the whole process, the load itself included.
    pub(crate) cpu: Duration,
    /// Transactions of puts and of takes.
    pub(crate) commits: u64,
}

impl Round {
    pub(crate) fn put_ev_s(&self) -> f64 {
        self.put_events as f64 / self.put_time.as_secs_f64()
    }

    pub(crate) fn take_ev_s(&self) -> f64 {
        self.take_events as f64 / self.take_time.as_secs_f64()
    }

    pub(crate) fn cpu_s_per_gib(&self, size: u32) -> f64 {
        self.cpu.as_secs_f64() / (self.put_events as f64 * f64::from(size)) * f64::from(1 << 30)
    }
}

/// One round of a store that lives in this process, in an empty folder that is removed afterwards.
pub(crate) fn round(folder: &Path, peer: &Peer, load: &Load) -> Result<Round, String> {
    empty(folder)?;
    let named = |error: String| format!("{}: {error}", peer.name);
    let store = (peer.open)(folder).map_err(named)?;
    let round = run(&*store, load).map_err(named);
    drop(store);
    remove(folder)?;
    round
}

/// Events of one thread, its transactions, and when it had done them.
type Work = Result<(u64, u64, Instant), String>;

fn run(store: &dyn Store, load: &Load) -> Result<Round, String> {
    let events = noise(load.batch as usize, load.size as usize);
    let over = AtomicBool::new(false);
    let key = AtomicU64::new(0);
    let cpu = process_cpu();
    let begin = Instant::now();
    let until = begin + load.time;
    let more = || Instant::now() < until && !over.load(Ordering::Relaxed);
    let stop = |_: &String| over.store(true, Ordering::Relaxed);
    let put = || -> Work {
        let mut producer = store.producer()?;
        let (first, mut put, mut commits) = (key.fetch_add(KEYS, Ordering::Relaxed), 0, 0);
        while more() {
            producer.commit(first + put, &events).inspect_err(stop)?;
            put += events.len() as u64;
            commits += 1;
        }
        Ok((put, commits, Instant::now()))
    };
    let take = || -> Work {
        let mut consumer = store.consumer(load.takes_in_flight)?;
        let (mut taken, mut commits) = (0, 0);
        while more() {
            let events = consumer.take(load.batch as usize).inspect_err(stop)?.unwrap_or(0);
            taken += events as u64;
            commits += u64::from(events > 0);
        }
        Ok((taken, commits, Instant::now()))
    };
    std::thread::scope(|scope| {
        let putting: Vec<_> = (0..load.producers).map(|_| scope.spawn(put)).collect();
        let taking: Vec<_> = (0..load.consumers).map(|_| scope.spawn(take)).collect();
        let (put, taken) = (sum(putting, begin), sum(taking, begin));
        let ((put_events, puts, put_end), (take_events, takes, take_end)) = (put?, taken?);
        Ok(Round {
            put_events,
            put_time: put_end - begin,
            take_events,
            take_time: take_end - begin,
            cpu: process_cpu().saturating_sub(cpu),
            commits: puts + takes,
        })
    })
}

fn sum(workers: Vec<ScopedJoinHandle<'_, Work>>, begin: Instant) -> Work {
    let mut sum = (0, 0, begin);
    for worker in workers {
        let (events, commits, end) = worker.join().unwrap_or_else(|_| Err("panicked".to_owned()))?;
        sum = (sum.0 + events, sum.1 + commits, sum.2.max(end));
    }
    Ok(sum)
}

/// CPU time of all threads of this process.
fn process_cpu() -> Duration {
    Duration::try_from(rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime)).unwrap_or_default()
}

pub(crate) fn empty(folder: &Path) -> Result<(), String> {
    remove(folder)?;
    std::fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))
}

pub(crate) fn remove(folder: &Path) -> Result<(), String> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(format!("{}: {error}", folder.display())),
        _ => Ok(()),
    }
}

/// Events that nothing compresses.
pub(crate) fn noise(count: usize, size: usize) -> Vec<Vec<u8>> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut event = || {
        let mut body = Vec::with_capacity(size + 8);
        while body.len() < size {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            body.extend_from_slice(&state.to_le_bytes());
        }
        body.truncate(size);
        body
    };
    (0..count).map(|_| event()).collect()
}
