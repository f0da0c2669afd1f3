//! What a disk can do: durable sequential writes and reads of one file, with a number of them in flight.
//!
//! Promises that each write counted was durable when it was counted, that no more than `depth` blocks are on their way
//! at any moment, and that the file is only ever overwritten, never made longer. It leaves to others which file that is
//! (it must be whole: written once from end to end, and synced), how often to repeat, and what follows from the numbers.
//!
//! ```text
//! per write     each worker: write, durable │ write, durable │ …           one sync for each block
//! shared flush  all workers: write ┐ one sync for all ┐ write ┐ …          one sync for many blocks
//! ```
//! The workers are one thread with a ring, or `depth` threads where there is no io_uring.

mod ring;

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

pub use crate::flushes::Durability;
use crate::io::File;
use crate::io::buffer::{Buffer, LARGE_PAGE};
use crate::io::real::Backend;
use crate::io::uring::Ring;
use crate::limits::PAGE;

/// Writes or reads in flight at once: beyond this no disk that one log uses becomes faster.
pub const DEPTH_MAX: usize = 64;

/// Latencies kept of one measurement; later ones count as bytes only. A second of the fastest disk fits.
const LATENCIES_MAX: usize = 1 << 21;

/// How blocks are on their way: so many at once, of this size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Shape {
    /// Bytes of one write or read; whole pages.
    pub block: usize,
    pub depth: usize,
}

impl Shape {
    /// Bytes that are not yet durable (or not yet read) at any moment.
    pub fn in_flight(self) -> usize {
        self.block * self.depth
    }
}

/// What was done, and how long it took.
#[derive(Debug, Clone, Default)]
pub struct Measured {
    pub blocks: u64,
    pub bytes: u64,
    pub elapsed: Duration,
    /// Syncs asked of the file: one for each block, or one for each round of all workers.
    pub syncs: u64,
    /// From the begin of each write until it was durable (of a read: until the bytes were there), in no order.
    pub latencies: Vec<Duration>,
}

impl Measured {
    pub fn bytes_per_second(&self) -> f64 {
        self.bytes as f64 / self.elapsed.as_secs_f64().max(f64::MIN_POSITIVE)
    }
}

/// Overwrites the first `len` bytes of `file` from front to end, again and again, for about `time`, in the way of `backend`:
/// with threads where the kernel denies io_uring.
pub fn write(
    file: &Arc<dyn File>,
    len: u64,
    shape: Shape,
    durability: Durability,
    time: Duration,
    backend: Backend,
) -> io::Result<Measured> {
    if backend == Backend::Uring {
        Run::new(len, shape, time)?;
        if let Ok(ring) = Ring::new(shape.depth, 2 * shape.depth * shape.block, durability) {
            return ring::write(file, len, shape, durability, time, ring);
        }
    }
    write_with_threads(&**file, len, shape, durability, time)
}

fn write_with_threads(
    file: &dyn File,
    len: u64,
    shape: Shape,
    durability: Durability,
    time: Duration,
) -> io::Result<Measured> {
    let run = Run::new(len, shape, time)?;
    let round = Barrier::new(shape.depth);
    run.go(|done| {
        let mut block = noise(shape.block)?;
        loop {
            let (number, offset) = run.next();
            stamp(&mut block, number);
            let begin = Instant::now();
            match durability {
                Durability::PerWrite => {
                    file.write_durable_at(&block, offset)?;
                    done.add(shape.block, begin.elapsed());
                    done.syncs += 1;
                    if run.is_over() {
                        return Ok(());
                    }
                }
                Durability::SharedFlush => {
                    // Who fails still comes to the barrier: the others wait there for it.
                    run.keep_error(file.write_at(&block, offset));
                    if round.wait().is_leader() {
                        run.keep_error(file.sync_data());
                        done.syncs += 1;
                        run.end_if_over();
                    }
                    round.wait();
                    // Between two rounds nobody changes it, so that all see the same.
                    if run.has_error() {
                        return Ok(());
                    }
                    done.add(shape.block, begin.elapsed());
                    if run.is_ended() {
                        return Ok(());
                    }
                }
            }
        }
    })
}

/// Writes `len` bytes of `file` from front to end, without a sync but for one at the end: makes a file whole.
pub fn fill(file: &dyn File, len: u64) -> io::Result<()> {
    let mut block = noise(1 << 20)?;
    let mut offset = 0;
    while offset < len {
        let part = (len - offset).min(block.len() as u64);
        stamp(&mut block, offset);
        file.write_at(&block[..part as usize], offset)?;
        offset += part;
    }
    file.sync()
}

/// Reads the first `len` bytes of `file` from front to end, again and again, for about `time`. Each block is given to `look`
/// before its memory is read into again: whoever looks at what comes from a virtual disk has it in caches out of which the host
/// must fetch it back, and gets less.
pub fn read(
    file: &dyn File,
    len: u64,
    shape: Shape,
    time: Duration,
    look: impl Fn(&[u8]) + Sync,
) -> io::Result<Measured> {
    let run = Run::new(len, shape, time)?;
    run.go(|done| {
        // In large pages, as a backlog is read.
        let mut block = Buffer::zeroed(shape.block.max(LARGE_PAGE))?;
        block.set_len(shape.block);
        loop {
            let offset = run.take_offset();
            let begin = Instant::now();
            if file.read_at(&mut block, offset)? < block.len() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            done.add(shape.block, begin.elapsed());
            look(&block);
            if run.is_over() {
                return Ok(());
            }
        }
    })
}

/// The fastest of `measured` with no more than `in_flight` bytes on their way: what a writer that has so many bytes to
/// write at once cannot exceed.
pub fn fastest<'a, Key>(
    measured: impl IntoIterator<Item = (&'a Key, Shape, f64)>,
    in_flight: usize,
) -> Option<(&'a Key, f64)> {
    let fit = measured.into_iter().filter(|(_, shape, _)| shape.in_flight() <= in_flight);
    fit.map(|(key, _, rate)| (key, rate)).max_by(|(_, one), (_, other)| one.total_cmp(other))
}

/// One measurement while it runs.
struct Run {
    shape: Shape,
    blocks: u64,
    next: AtomicU64,
    begin: Instant,
    time: Duration,
    ended: AtomicBool,
    error: Mutex<Option<io::Error>>,
}

impl Run {
    fn new(len: u64, shape: Shape, time: Duration) -> io::Result<Run> {
        let blocks = len / shape.block.max(PAGE) as u64;
        let fits = shape.block > 0 && shape.block.is_multiple_of(PAGE) && (1..=DEPTH_MAX).contains(&shape.depth);
        if !fits || blocks < shape.depth as u64 {
            // Two blocks in flight must not lie on one another.
            let detail = format!("{shape:?} does not fit a file of {len} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, detail));
        }
        Ok(Run {
            shape,
            blocks,
            next: AtomicU64::new(0),
            begin: Instant::now(),
            time,
            ended: AtomicBool::new(false),
            error: Mutex::new(None),
        })
    }

    /// Runs `work` on `depth` threads and adds up what they did.
    fn go(&self, work: impl Fn(&mut Measured) -> io::Result<()> + Sync) -> io::Result<Measured> {
        let all = Mutex::new(Measured::default());
        thread::scope(|scope| {
            for _ in 0..self.shape.depth {
                scope.spawn(|| {
                    let mut done = Measured::default();
                    self.keep_error(work(&mut done));
                    let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
                    all.blocks += done.blocks;
                    all.bytes += done.bytes;
                    all.syncs += done.syncs;
                    all.latencies.append(&mut done.latencies);
                });
            }
        });
        let error = self.error.lock().unwrap_or_else(PoisonError::into_inner).take();
        let mut all = all.into_inner().unwrap_or_else(PoisonError::into_inner);
        all.elapsed = self.begin.elapsed();
        error.map_or(Ok(all), Err)
    }

    fn take_offset(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed) % self.blocks * self.shape.block as u64
    }

    /// The number of the next block, and its place.
    fn next(&self) -> (u64, u64) {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        (number, number % self.blocks * self.shape.block as u64)
    }

    /// From now on it is measured.
    fn begin_again(&mut self) {
        self.begin = Instant::now();
    }

    fn is_over(&self) -> bool {
        self.begin.elapsed() >= self.time || self.has_error()
    }

    fn end_if_over(&self) {
        self.ended.store(self.is_over(), Ordering::Release);
    }

    fn is_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// The first error is the one that counts.
    fn keep_error(&self, result: io::Result<()>) {
        if let Err(error) = result {
            self.error.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        }
    }

    fn has_error(&self) -> bool {
        self.error.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }
}

impl Measured {
    fn add(&mut self, bytes: usize, latency: Duration) {
        self.blocks += 1;
        self.bytes += bytes as u64;
        if self.latencies.len() < LATENCIES_MAX {
            self.latencies.push(latency);
        }
    }
}

/// A block of bytes that no disk can compress.
pub fn noise(len: usize) -> io::Result<Buffer> {
    let mut buffer = Buffer::zeroed(len)?;
    make_noise(&mut buffer);
    Ok(buffer)
}

fn make_noise(block: &mut [u8]) {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for word in block.chunks_exact_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        word.copy_from_slice(&state.to_le_bytes());
    }
}

/// Makes each page of `block` another one than before.
pub fn stamp(block: &mut [u8], number: u64) {
    for page in block.chunks_mut(PAGE) {
        page[..8].copy_from_slice(&number.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::Dir;
    use crate::io::real::RealDir;
    use std::sync::atomic::AtomicUsize;

    const LEN: u64 = 1 << 20;
    const SOON: Duration = Duration::from_millis(20);

    /// A file that counts what is asked of it, and fails when told to.
    #[derive(Debug)]
    struct Counting {
        inner: Arc<dyn File>,
        now: AtomicUsize,
        most: AtomicUsize,
        syncs: AtomicU64,
        fails: bool,
    }

    impl Counting {
        fn of(inner: Arc<dyn File>, fails: bool) -> Counting {
            let (now, most, syncs) = Default::default();
            Counting { inner, now, most, syncs, fails }
        }

        fn during<T>(&self, work: impl FnOnce() -> T) -> T {
            self.most.fetch_max(self.now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            let result = work();
            self.now.fetch_sub(1, Ordering::SeqCst);
            result
        }
    }

    impl File for Counting {
        fn size(&self) -> io::Result<u64> {
            self.inner.size()
        }
        fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
            self.during(|| self.inner.read_at(bytes, offset))
        }
        fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
            if self.fails && offset > 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.during(|| self.inner.write_at(bytes, offset))
        }
        fn sync_range(&self, _offset: u64, _len: u64) -> io::Result<()> {
            self.syncs.fetch_add(1, Ordering::SeqCst);
            self.inner.sync()
        }
        fn sync(&self) -> io::Result<()> {
            self.inner.sync()
        }
        fn sync_data(&self) -> io::Result<()> {
            self.syncs.fetch_add(1, Ordering::SeqCst);
            self.inner.sync_data()
        }
        fn drop_cache(&self) -> io::Result<()> {
            self.inner.drop_cache()
        }
    }

    fn file(scratch: &tempfile::TempDir, fails: bool) -> Arc<Counting> {
        let dir = RealDir::open_or_create(scratch.path(), None).unwrap();
        let file = dir.create("calibrate").unwrap();
        fill(&*file, LEN).unwrap();
        Arc::new(Counting::of(file, fails))
    }

    fn write_with_threads(
        file: &Arc<Counting>,
        shape: Shape,
        durability: Durability,
        time: Duration,
    ) -> io::Result<Measured> {
        let file: Arc<dyn File> = Arc::clone(file) as Arc<dyn File>;
        write(&file, LEN, shape, durability, time, Backend::Direct)
    }

    #[test]
    fn every_block_is_synced_by_itself_or_with_its_round_and_no_more_are_in_flight_than_asked_for() {
        let scratch = tempfile::tempdir().unwrap();
        let file = file(&scratch, false);
        for (durability, blocks_for_each_sync) in [(Durability::PerWrite, 1), (Durability::SharedFlush, 4)] {
            let before = file.syncs.load(Ordering::SeqCst);
            let shape = Shape { block: 2 * PAGE, depth: 4 };
            let measured = write_with_threads(&file, shape, durability, SOON).unwrap();
            assert_eq!(measured.bytes, measured.blocks * shape.block as u64);
            assert_eq!(measured.blocks, measured.syncs * blocks_for_each_sync, "{durability:?}");
            assert_eq!(file.syncs.load(Ordering::SeqCst) - before, measured.syncs, "{durability:?}");
            assert_eq!(measured.latencies.len() as u64, measured.blocks);
            assert!(file.most.load(Ordering::SeqCst) <= shape.depth);
            assert_eq!(file.size().unwrap(), LEN, "it is only overwritten");
        }
    }

    #[test]
    fn a_ring_counts_each_block_once_it_is_durable() {
        let scratch = tempfile::tempdir().unwrap();
        let dir = RealDir::open_or_create(scratch.path(), Some(Backend::Direct)).unwrap();
        let file = dir.create("calibrate").unwrap();
        fill(&*file, LEN).unwrap();
        for (durability, depth) in [(Durability::PerWrite, 1), (Durability::PerWrite, 4), (Durability::SharedFlush, 4)]
        {
            let shape = Shape { block: 2 * PAGE, depth };
            let measured = write(&file, LEN, shape, durability, SOON, Backend::Uring).unwrap();
            assert_eq!(measured.bytes, measured.blocks * shape.block as u64);
            assert!(measured.syncs > 0 && measured.syncs <= measured.blocks, "{durability:?} {measured:?}");
            assert_eq!(measured.latencies.len() as u64, measured.blocks);
            assert_eq!(file.size().unwrap(), LEN);
        }
    }

    #[test]
    fn reads_go_from_front_to_end_and_a_file_that_is_too_short_is_an_error() {
        let scratch = tempfile::tempdir().unwrap();
        let file = file(&scratch, false);
        assert!(read(&*file, LEN, Shape { block: PAGE, depth: 2 }, SOON, |_| ()).unwrap().blocks > 0);
        let error = read(&*file, 2 * LEN, Shape { block: LEN as usize, depth: 1 }, Duration::from_secs(60), |_| ())
            .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn one_failed_write_ends_all_workers_with_its_error() {
        let scratch = tempfile::tempdir().unwrap();
        let file = file(&scratch, true);
        for durability in [Durability::PerWrite, Durability::SharedFlush] {
            let shape = Shape { block: PAGE, depth: 4 };
            let error = write_with_threads(&file, shape, durability, Duration::from_secs(60)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::StorageFull, "{durability:?}");
        }
    }

    #[test]
    fn a_shape_that_would_lie_on_itself_or_on_half_a_page_is_refused() {
        let scratch = tempfile::tempdir().unwrap();
        let file = file(&scratch, false);
        for (block, depth) in [(100, 1), (PAGE, 0), (PAGE, DEPTH_MAX + 1), (LEN as usize, 2), (0, 1)] {
            let shape = Shape { block, depth };
            let error = write_with_threads(&file, shape, Durability::PerWrite, SOON).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{shape:?}");
        }
    }

    #[test]
    fn the_limit_for_few_bytes_in_flight_is_that_of_the_shapes_that_need_no_more() {
        let at = |block, depth| Shape { block, depth };
        let measured = [("a", at(PAGE, 1), 1.0), ("b", at(PAGE, 8), 3.0), ("c", at(2 * PAGE, 4), 2.0)];
        let rows = || measured.iter().map(|(name, shape, rate)| (name, *shape, *rate));
        assert_eq!(fastest(rows(), 8 * PAGE), Some((&"b", 3.0)));
        assert_eq!(fastest(rows(), PAGE), Some((&"a", 1.0)));
        assert_eq!(fastest(rows(), 1), None);
    }
}
