//! Whether a load goes evenly: the longest time in which nothing became durable, memory over time, and what a durable write of
//! the same disk takes before and after.
//!
//! Promises to be even itself: everything here has a bound, however long the load lasts.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use wal::calibrate::{self, Durability, Shape};
use wal::io::real::RealDir;
use wal::limits::{DEPTH_DEFAULT, FRAME_TARGET};

use super::Arguments;
use crate::numbers::{Latencies, rounded};
use crate::{device, host};

/// The time between two answers of the channel, whoever got them.
pub(super) struct Pauses {
    begin: Instant,
    /// Nanoseconds after the begin.
    last: AtomicU64,
    longest: AtomicU64,
    /// The longest, and when it ended.
    end: Mutex<(Duration, Duration)>,
}

impl Pauses {
    pub(super) fn new() -> Pauses {
        Pauses { begin: Instant::now(), last: AtomicU64::new(0), longest: AtomicU64::new(0), end: Mutex::default() }
    }

    /// Something became durable. Returns for how long nothing had.
    pub(super) fn durable(&self) -> Duration {
        let now = self.begin.elapsed();
        let nanos = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        let pause = nanos.saturating_sub(self.last.swap(nanos, Ordering::Relaxed));
        if pause > self.longest.fetch_max(pause, Ordering::Relaxed) {
            let mut end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
            *end = (*end).max((Duration::from_nanos(pause), now));
        }
        Duration::from_nanos(pause)
    }

    /// What was until now does not count.
    pub(super) fn forget(&self) {
        self.durable();
        self.longest.store(0, Ordering::Relaxed);
        *self.end.lock().unwrap_or_else(PoisonError::into_inner) = Default::default();
    }

    /// The longest since `since`, and how long after it that one ended.
    pub(super) fn longest(&self, since: Instant) -> (Duration, Duration) {
        // One that has not ended counts as well.
        self.durable();
        let (longest, end) = *self.end.lock().unwrap_or_else(PoisonError::into_inner);
        (longest, end.saturating_sub(since - self.begin))
    }
}

/// Memory of this process at even distances.
#[derive(Debug, Clone)]
pub(crate) struct Memory {
    every: Duration,
    samples: Vec<u64>,
}

/// More would be no better to read, and must not grow without bound.
const SAMPLES_MAX: u32 = 1000;

impl Memory {
    /// Each minute of a long load, ten times in a short one.
    pub(super) fn new(time: Duration) -> Memory {
        let every = (time / 10).min(Duration::from_secs(60)).max(time / SAMPLES_MAX);
        Memory { every, samples: Vec::new() }
    }

    /// Looks, when it is time.
    pub(super) fn look(&mut self, elapsed: Duration) {
        if elapsed >= self.every * self.samples.len() as u32 && self.samples.len() <= SAMPLES_MAX as usize {
            self.samples.extend(host::resident());
        }
    }

    /// The slope of the straight line that is nearest to all samples.
    fn slope_mib_per_h(&self) -> Option<f64> {
        let count = self.samples.len() as f64;
        let mean = self.samples.iter().map(|bytes| *bytes as f64).sum::<f64>() / count;
        let (mut above, mut below) = (0.0, 0.0);
        for (index, bytes) in self.samples.iter().enumerate() {
            let from_middle = index as f64 - (count - 1.0) / 2.0;
            above += from_middle * (*bytes as f64 - mean);
            below += from_middle * from_middle;
        }
        let every_h = self.every.as_secs_f64() / 3600.0;
        (below > 0.0).then(|| rounded(above / below / every_h / f64::from(1 << 20)))
    }

    pub(super) fn json(&self) -> Value {
        let mib: Vec<f64> = self.samples.iter().map(|bytes| rounded(*bytes as f64 / f64::from(1 << 20))).collect();
        json!({"every_s": rounded(self.every.as_secs_f64()), "rss_mib": mib, "slope_mib_per_h": self.slope_mib_per_h()})
    }
}

/// Of a load: the pauses between answers, and its memory.
#[derive(Debug)]
pub(crate) struct Steady {
    pub(crate) pauses: Latencies,
    /// The longest pause, and when it ended.
    pub(crate) longest: (Duration, Duration),
    /// The same of a thread that only looks at the clock, if one did.
    pub(crate) clock: Option<(Duration, Duration)>,
    pub(crate) memory: Memory,
}

impl Steady {
    pub(super) fn json(&self) -> Value {
        let mut pauses = self.pauses.json();
        if !pauses.is_null() {
            pauses["longest_ms"] = json!(rounded(self.longest.0.as_secs_f64() * 1e3));
            pauses["longest_ended_s"] = json!(rounded(self.longest.1.as_secs_f64()));
            if let Some((longest, end)) = self.clock {
                pauses["clock_longest_ms"] = json!(rounded(longest.as_secs_f64() * 1e3));
                pauses["clock_longest_ended_s"] = json!(rounded(end.as_secs_f64()));
            }
        }
        pauses
    }
}

/// Of the file that raw writes go to.
const RAW_BYTES: u64 = 512 << 20;
/// One measurement keeps all its latencies; many short ones keep the memory small.
const PIECE: Duration = Duration::from_millis(250);

/// Durable writes of the disk for so long, as long and as many at once as the channel's under load.
pub(super) fn raw_flushes(arguments: &Arguments, time: Duration) -> Result<Latencies, String> {
    let dir = &arguments.dir[0];
    let at = |error: std::io::Error| format!("{}: raw writes: {error}", dir.display());
    let dir = RealDir::open_or_create(dir, arguments.io).map_err(at)?;
    let file = device::whole_file(&dir, RAW_BYTES).map_err(at)?;
    let shape = Shape { block: FRAME_TARGET, depth: DEPTH_DEFAULT };
    let (mut latencies, begin) = (Latencies::new(), Instant::now());
    let mut measured = Ok(());
    while measured.is_ok() && begin.elapsed() < time {
        let piece = PIECE.min(time);
        measured = calibrate::write(&file, RAW_BYTES, shape, Durability::PerWrite, piece, dir.backend())
            .map(|measured| measured.latencies.into_iter().for_each(|latency| latencies.record(latency)));
    }
    device::remove_file(&dir).map_err(at)?;
    measured.map(|()| latencies).map_err(at)
}

/// The longest pause beside the raw writes before and after.
pub(super) fn beside(steady: Option<&Steady>, before: &Latencies, after: &Latencies) -> Value {
    let longest_us = steady.map_or(0.0, |steady| steady.longest.0.as_secs_f64() * 1e6);
    let mut both = before.clone();
    both.add(after);
    json!({
        "block": FRAME_TARGET, "depth": DEPTH_DEFAULT, "writes": both.count(),
        "before_us": before.json(), "after_us": after.json(),
        "longest_pause_of_max": rounded(longest_us / both.quantile_us(1.0)),
        "longest_pause_of_p99_9": rounded(longest_us / both.quantile_us(0.999)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_pause_is_found_even_when_it_has_not_ended() {
        let pauses = Pauses::new();
        let pause = |time: Duration| {
            let begin = Instant::now();
            while begin.elapsed() < time {}
        };
        pause(Duration::from_millis(20));
        pauses.forget();
        let since = Instant::now();
        for _ in 0..3 {
            pause(Duration::from_millis(1));
            assert!(pauses.durable() >= Duration::from_millis(1));
        }
        pause(Duration::from_millis(5));
        let (longest, end) = pauses.longest(since);
        assert!(longest >= Duration::from_millis(5) && end >= Duration::from_millis(8), "{longest:?} {end:?}");
        assert!(end <= since.elapsed());
    }

    #[test]
    fn memory_that_grows_evenly_has_its_slope_and_a_long_load_has_a_bounded_list() {
        let mut memory = Memory::new(Duration::from_secs(600));
        assert_eq!(memory.every, Duration::from_secs(60));
        memory.samples = (0..11).map(|minute| (100 + minute) << 20).collect();
        assert_eq!(memory.slope_mib_per_h(), Some(60.0));
        memory.samples.truncate(1);
        assert_eq!(memory.slope_mib_per_h(), None);
        let day = Duration::from_secs(30 * 86_400);
        let mut memory = Memory::new(day);
        (0..5000).for_each(|_| memory.look(day));
        assert_eq!(memory.samples.len(), SAMPLES_MAX as usize + 1);
    }
}
