//! How a disk is best written: measured once, for less than a second, and kept with each directory on it.
//!
//! Promises that a measurement leaves nothing behind (its file has a temporary name, which the next start removes), takes
//! no space that a disk does not have to spare, and is never needed: without one, [`Tuning::default`] is used. What is chosen
//! changes how fast a log is written, and nothing of what a durable write means.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::calibrate::{self, DEPTH_MAX, Shape};
use crate::checksum::crc32c;
use crate::flushes::Durability;
use crate::io::real::{Backend, RealDir};
use crate::io::{Dir, File, durable, host};
use crate::limits::{DEPTH_DEFAULT, PAGE, pages};

/// How frames are written to a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tuning {
    pub durability: Durability,
    /// Writes of one log in flight, each of one frame or more: 1 to [`DEPTH_MAX`].
    pub depth: usize,
}

impl Default for Tuning {
    fn default() -> Tuning {
        Tuning { durability: Durability::PerWrite, depth: DEPTH_DEFAULT }
    }
}

/// What was measured of a disk, and what follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Calibration {
    pub tuning: Tuning,
    pub measured_ms: u64,
    /// Of the disk, and of how it is written: with another one, this says nothing.
    pub fingerprint: u32,
    /// At the best depth, each write by itself.
    pub per_write_kib_s: u32,
    /// At the best depth, one flush for many writes.
    pub shared_flush_kib_s: u32,
    /// Of one page made durable by itself, median.
    pub latency_us: u32,
}

/// Its name says that it is a leftover, if it is ever found.
const FILE: &str = "calibrate.new";
/// Written some ten times over; a disk of 100 MB/s is done with the first time after 0.2 seconds.
const FILE_LEN: u64 = 16 << 20;
/// A disk that has less to spare than so many times that is not measured.
const SPARE_FILES: u64 = 8;
/// While a write is on the disk another one waits for it, and the answer to a third is on its way: fewer leave the disk idle,
/// which these measurements, whose writer has nothing else to do, do not show.
const DEPTHS: [usize; 3] = [3, 4, 8];
/// Bytes on their way, however many writes they are: what a busy channel has, so that more depth means shorter frames.
const IN_FLIGHT: usize = 1 << 20;
const ROUNDS: usize = 3;
const TIME: Duration = Duration::from_millis(20);

/// A second way to sync must be faster by so much, or the simpler one stays.
const WORTH: f64 = 1.1;
/// The smallest depth that comes so near to the best one is deep enough: a longer queue is a longer wait.
const NEAR: f64 = 0.95;

const _: () = assert!(DEPTHS[DEPTHS.len() - 1] <= DEPTH_MAX && IN_FLIGHT as u64 * 4 <= FILE_LEN);

/// What identifies the disk below a directory, and how it is written.
pub fn fingerprint(dir: &RealDir) -> io::Result<u32> {
    let disk = host::describe_disk(dir.device_number()?);
    Ok(crc32c(format!("{} {disk}", dir.backend().name()).as_bytes()))
}

/// Measures the disk below `dir`. `None` where that means nothing: in memory, through the page cache, or where less than
/// `reserve_bytes` and room for the measurement is free.
pub fn measure(dir: &RealDir, reserve_bytes: u64, now_ms: u64) -> io::Result<Option<Calibration>> {
    let spare = reserve_bytes.saturating_add(SPARE_FILES * FILE_LEN);
    if dir.backend() == Backend::Buffered || dir.is_in_memory()? || dir.free_bytes()? < spare {
        return Ok(None);
    }
    let file = durable::create_afresh(dir, FILE)?;
    let measured = calibrate::fill(&*file, FILE_LEN).and_then(|()| measure_file(&file, dir.backend()));
    drop(file);
    let removed = dir.remove(FILE);
    let (rates, latency) = measured?;
    removed?;
    let best = |durability| best(&rates, durability).map_or(0, |rate| (rate / 1024.0) as u32);
    Ok(Some(Calibration {
        tuning: choose(&rates),
        measured_ms: now_ms,
        fingerprint: fingerprint(dir)?,
        per_write_kib_s: best(Durability::PerWrite),
        shared_flush_kib_s: best(Durability::SharedFlush),
        latency_us: u32::try_from(latency.as_micros()).unwrap_or(u32::MAX),
    }))
}

/// Bytes per second of each way, the median of some rounds, and the latency of one durable page.
type Rates = Vec<(Tuning, f64)>;

fn measure_file(file: &Arc<dyn File>, backend: Backend) -> io::Result<(Rates, Duration)> {
    let ways = Durability::ALL.into_iter().flat_map(|durability| DEPTHS.map(|depth| Tuning { durability, depth }));
    let mut rates: Vec<(Tuning, Vec<f64>)> = ways.map(|way| (way, Vec::new())).collect();
    for _ in 0..ROUNDS {
        // In turns, so that a bad moment of the machine is one of all.
        for (Tuning { durability, depth }, seen) in &mut rates {
            let shape = Shape { block: pages(IN_FLIGHT / *depth), depth: *depth };
            seen.push(calibrate::write(file, FILE_LEN, shape, *durability, TIME, backend)?.bytes_per_second());
        }
    }
    let page = Shape { block: PAGE, depth: 1 };
    let mut alone = calibrate::write(file, FILE_LEN, page, Durability::PerWrite, TIME, backend)?.latencies;
    alone.sort_unstable();
    let median = |mut seen: Vec<f64>| {
        seen.sort_by(f64::total_cmp);
        seen[seen.len() / 2]
    };
    let rates = rates.into_iter().map(|(way, seen)| (way, median(seen))).collect();
    Ok((rates, alone.get(alone.len() / 2).copied().unwrap_or_default()))
}

fn best(rates: &[(Tuning, f64)], durability: Durability) -> Option<f64> {
    rates.iter().filter(|(way, _)| way.durability == durability).map(|(_, rate)| *rate).max_by(f64::total_cmp)
}

/// The way to write that these bytes per second speak for.
fn choose(rates: &[(Tuning, f64)]) -> Tuning {
    let of = |durability| best(rates, durability).unwrap_or_default();
    let worth_it = of(Durability::SharedFlush) > WORTH * of(Durability::PerWrite);
    let durability = if worth_it { Durability::SharedFlush } else { Durability::PerWrite };
    let near = rates.iter().filter(|(way, rate)| way.durability == durability && *rate >= NEAR * of(durability));
    near.map(|(way, _)| *way).min_by_key(|way| way.depth).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(per_write: [f64; 3], shared_flush: [f64; 3]) -> Vec<(Tuning, f64)> {
        let all = [(Durability::PerWrite, per_write), (Durability::SharedFlush, shared_flush)];
        let ways = |(durability, rates): (Durability, [f64; 3])| {
            DEPTHS.into_iter().zip(rates).map(move |(depth, rate)| (Tuning { durability, depth }, rate))
        };
        all.into_iter().flat_map(ways).collect()
    }

    #[test]
    fn the_shallowest_queue_near_the_best_is_chosen_and_a_shared_flush_only_where_it_is_worth_it() {
        let per_write = |depth| Tuning { durability: Durability::PerWrite, depth };
        let shared_flush = |depth| Tuning { durability: Durability::SharedFlush, depth };
        for (measured, expected) in [
            (rates([1.0, 2.0, 2.05], [1.0, 2.0, 2.0]), per_write(4)),
            (rates([2.0, 2.0, 2.0], [0.0, 0.0, 0.0]), per_write(3)),
            (rates([1.0, 2.0, 3.0], [3.2, 3.2, 3.2]), per_write(8)),
            (rates([1.0, 2.0, 3.0], [2.0, 3.4, 3.5]), shared_flush(4)),
            (Vec::new(), Tuning::default()),
        ] {
            assert_eq!(choose(&measured), expected, "{measured:?}");
        }
    }

    #[test]
    fn a_measurement_leaves_nothing_behind_and_takes_no_space_that_is_kept_back() {
        let scratch = tempfile::tempdir().unwrap();
        let dir = RealDir::open_or_create(scratch.path(), None).unwrap();
        assert_eq!(measure(&dir, u64::MAX, 7).unwrap(), None);
        let measured = measure(&dir, 0, 7).unwrap();
        assert_eq!(dir.list().unwrap(), Vec::<String>::new());
        let possible = dir.backend() != Backend::Buffered && !dir.is_in_memory().unwrap();
        let Some(measured) = measured else { return assert!(!possible) };
        assert!(DEPTHS.contains(&measured.tuning.depth) && measured.per_write_kib_s > 0 && measured.latency_us > 0);
        assert_eq!((measured.measured_ms, measured.fingerprint), (7, fingerprint(&dir).unwrap()));
        let buffered = RealDir::open_or_create(scratch.path(), Some(Backend::Buffered)).unwrap();
        assert_ne!(fingerprint(&buffered).unwrap(), measured.fingerprint);
        assert_eq!(measure(&buffered, 0, 7).unwrap(), None);
    }
}
