//! Durable writes through io_uring: many in flight from one thread, none of which blocks it.
//!
//! No more than `depth` writes are in flight; what comes meanwhile waits, and becomes one write where it lies one behind the
//! other. Promises that each is reported once and only after the kernel is done with its bytes, that the rest of a short write
//! is written with the same bytes at its place, and that memory outlives every write in it. It gives no order: that is the
//! log's. Files are not registered with the ring: it would keep them open, and the space of a removed segment would not
//! come back. A ring that the kernel denies is an error of [`Ring::new`], and the caller writes with threads instead.
//!
//! ```text
//! write ─► waiting ─► submission ─► kernel ─► completion ─► wait ─► Written      Alarm::ring ─► eventfd ─► wait returns
//! ```

#![expect(unsafe_code, reason = "the kernel is given addresses; each block says why they stay valid")]

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, OwnedFd};
use std::slice;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use io_uring::{IoUring, opcode, squeue, types};
use rustix::event::{EventfdFlags, eventfd};

use super::File;
use super::arena::Arena;
use super::buffer::Buffer;
use crate::flushes::Durability;
use crate::limits::WRITE_MAX;
use crate::planted::{self, Bug};

/// The completion that says that somebody rang, and not which write is done.
const RUNG: u64 = u64::MAX;
/// The completion of a flush.
const FLUSHED: u64 = u64::MAX - 1;

/// Wakes the thread that waits in [`Ring::wait`], and costs nothing while it is awake.
#[derive(Debug)]
pub struct Alarm {
    asleep: AtomicBool,
    event: OwnedFd,
}

impl Alarm {
    /// Ends the sleep of the ring's thread, if it sleeps.
    pub fn ring(&self) {
        if self.asleep.swap(false, Ordering::SeqCst) {
            // The counter cannot overflow: one sleep is rung once.
            let _cannot_fail = rustix::io::write(&self.event, &1u64.to_le_bytes());
        }
    }
}

/// A write that has ended, or a flush.
#[derive(Debug)]
pub struct Written {
    /// As given to [`Ring::write`]; `None` for a flush.
    pub token: Option<u64>,
    pub result: io::Result<()>,
}

/// The bytes of a write.
enum Bytes {
    /// In the ring's memory, one behind the other from the first of these places on.
    Placed(Vec<usize>),
    /// More than was free there.
    Own(Buffer),
}

/// One write: a frame, or several that lie one behind the other.
struct Flight {
    tokens: Vec<u64>,
    file: Arc<dyn File>,
    bytes: Bytes,
    len: usize,
    offset: u64,
    done: usize,
}

/// One ring, owned by the thread that submits to it.
pub struct Ring {
    ring: IoUring,
    /// By slot; a completion names its slot.
    flights: Vec<Option<Flight>>,
    /// Writes that the kernel does not have yet, in order.
    waiting: VecDeque<Flight>,
    memory: Buffer,
    places: Arena,
    /// The memory is mapped into the kernel.
    is_mapped: bool,
    durability: Durability,
    /// The file of the flush that is under way.
    flushing: Option<Arc<dyn File>>,
    alarm: Arc<Alarm>,
    /// The kernel watches the alarm.
    armed: bool,
}

impl Ring {
    /// A ring that has `depth` writes in flight at once, with memory of `capacity` bytes for them and for those that wait.
    /// Whether its writes are durable when they end, or after a [`flush`](Ring::flush), `durability` says. An error means
    /// that the kernel has no io_uring, or denies it here.
    pub fn new(depth: usize, capacity: usize, durability: Durability) -> io::Result<Ring> {
        // The alarm and a flush have entries of their own.
        let entries = u32::try_from((depth + 2).next_power_of_two()).map_err(io::Error::other)?;
        // One thread submits and reaps, so completions need interrupt nobody; kernels before 6.1 do not know that yet.
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .build(entries)
            .or_else(|_| IoUring::builder().build(entries))?;
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let alarm = Arc::new(Alarm { asleep: AtomicBool::new(false), event });
        let mut memory = Buffer::zeroed(capacity)?;
        let map = libc::iovec { iov_base: memory.as_mut_ptr().cast(), iov_len: memory.len() };
        // SAFETY: the kernel pins these pages until the ring is closed, whatever becomes of the memory.
        let is_mapped = match unsafe { ring.submitter().register_buffers(&[map]) } {
            Ok(()) => true,
            // The limit of locked memory is small: the kernel maps the pages for each write then.
            Err(error) => {
                tracing::debug!(%error, "io_uring without registered memory");
                false
            }
        };
        Ok(Ring {
            ring,
            flights: (0..depth).map(|_| None).collect(),
            waiting: VecDeque::new(),
            places: Arena::new(memory.len()),
            memory,
            is_mapped,
            durability,
            flushing: None,
            alarm,
            armed: false,
        })
    }

    pub fn alarm(&self) -> Arc<Alarm> {
        Arc::clone(&self.alarm)
    }

    /// Writes and flushes that have not ended.
    pub fn in_flight(&self) -> usize {
        self.flights.iter().flatten().count() + usize::from(self.flushing.is_some())
    }

    /// Starts to flush a file, whose end [`wait`](Ring::wait) reports without a token. Writes that had ended before are
    /// durable then.
    ///
    /// # Panics
    /// While another flush is under way.
    pub fn flush(&mut self, file: Arc<dyn File>) {
        assert!(self.flushing.is_none(), "one flush at a time");
        let descriptor = types::Fd(file.descriptor().expect("a file with a descriptor").as_raw_fd());
        let entry = if planted::is(Bug::SkipDataSync) {
            opcode::Nop::new().build()
        } else {
            opcode::Fsync::new(descriptor).flags(types::FsyncFlags::DATASYNC).build()
        };
        self.flushing = Some(file);
        self.enqueue(&entry.user_data(FLUSHED));
        self.submit();
    }

    /// Has `make` fill `len` bytes, which have anything in them, and writes them at `offset` of the file: at once, or after an
    /// earlier write has ended, together with what else waits before and behind them. [`wait`](Ring::wait) reports the end
    /// under `token`; durable if it went well and each write is by itself. The file must have a descriptor; direct I/O wants
    /// `offset` and `len` in whole pages.
    pub fn write(
        &mut self,
        token: u64,
        file: &Arc<dyn File>,
        offset: u64,
        len: usize,
        make: impl FnOnce(&mut [u8]),
    ) -> io::Result<()> {
        let bytes = if let Some(place) = self.places.take(len) {
            // SAFETY: the place is inside of the memory, and nobody else has it until it comes back.
            make(unsafe { slice::from_raw_parts_mut(self.memory.as_mut_ptr().add(place), len) });
            Bytes::Placed(vec![place])
        } else {
            let mut own = Buffer::zeroed(len)?;
            make(&mut own);
            Bytes::Own(own)
        };
        let flight = Flight { tokens: vec![token], file: Arc::clone(file), bytes, len, offset, done: 0 };
        if let Err(flight) = self.join_last(flight) {
            self.waiting.push_back(flight);
        }
        self.launch();
        Ok(())
    }

    /// Makes one write of the last one that waits and of what lies behind it, in the file and in memory.
    fn join_last(&mut self, flight: Flight) -> Result<(), Flight> {
        let Some(last) = self.waiting.back_mut() else { return Err(flight) };
        let (Bytes::Placed(places), Bytes::Placed(behind)) = (&mut last.bytes, &flight.bytes) else {
            return Err(flight);
        };
        let follows = places[0] + last.len == behind[0] && last.offset + last.len as u64 == flight.offset;
        if !follows || !Arc::ptr_eq(&last.file, &flight.file) || last.len + flight.len > WRITE_MAX {
            return Err(flight);
        }
        places.extend(behind);
        last.tokens.extend(flight.tokens);
        last.len += flight.len;
        Ok(())
    }

    /// Gives the kernel as many of the writes that wait as the depth allows.
    fn launch(&mut self) {
        let mut launched = false;
        while let Some(slot) = self.flights.iter().position(Option::is_none)
            && let Some(flight) = self.waiting.pop_front()
        {
            self.flights[slot] = Some(flight);
            self.push(slot);
            launched = true;
        }
        if launched {
            self.submit();
        }
    }

    /// Appends writes that have ended, without sleeping.
    pub fn look(&mut self, written: &mut Vec<Written>) {
        // The kernel shows what has ended when it is entered, and says by this that there is something to show.
        if self.ring.submission().taskrun() {
            self.submit();
        }
        self.reap(written);
    }

    /// Appends writes that have ended. While there are none it sleeps until one ends or the [`Alarm`] rings, unless
    /// `is_idle`, which is asked after the alarm was set, finds something to do. An error means that the ring is lost.
    pub fn wait(&mut self, written: &mut Vec<Written>, is_idle: impl FnOnce() -> bool) -> io::Result<()> {
        let before = written.len();
        self.look(written);
        if written.len() > before {
            return Ok(());
        }
        if !mem::replace(&mut self.armed, true) {
            let poll = opcode::PollAdd::new(types::Fd(self.alarm.event.as_raw_fd()), libc::POLLIN as u32);
            self.enqueue(&poll.build().user_data(RUNG));
        }
        self.alarm.asleep.store(true, Ordering::SeqCst);
        let outcome = if is_idle() { self.ring.submit_and_wait(1).map(drop) } else { Ok(()) };
        self.alarm.asleep.store(false, Ordering::SeqCst);
        match outcome {
            Err(error) if !is_passing(&error) => return Err(error),
            _ => self.reap(written),
        }
        Ok(())
    }

    fn push(&mut self, slot: usize) {
        let flight = self.flights[slot].as_ref().expect("a flight is pushed while it is there");
        let file = types::Fd(flight.file.descriptor().expect("a file with a descriptor").as_raw_fd());
        let length = u32::try_from(flight.len - flight.done).expect("a write is far below 4 GiB");
        let offset = flight.offset + flight.done as u64;
        let by_itself = self.durability == Durability::PerWrite && !planted::is(Bug::SkipDataSync);
        let flags = if by_itself { libc::RWF_DSYNC } else { 0 };
        let (bytes, is_mapped) = match &flight.bytes {
            Bytes::Placed(places) => (&self.memory[places[0]..], self.is_mapped),
            Bytes::Own(own) => (&own[..], false),
        };
        let bytes = bytes[flight.done..].as_ptr();
        let write = if is_mapped {
            opcode::WriteFixed::new(file, bytes, length, 0).offset(offset).rw_flags(flags).build()
        } else {
            opcode::Write::new(file, bytes, length).offset(offset).rw_flags(flags).build()
        };
        self.enqueue(&write.user_data(slot as u64));
    }

    fn enqueue(&mut self, entry: &squeue::Entry) {
        // SAFETY: the entry points into the bytes of a flight, and at its file's descriptor, or at that of the flush. They stay
        // in `memory`, `flights` and `flushing` until the completion is reaped; `drop` waits for those that are left, or leaks them.
        unsafe { self.ring.submission().push(entry) }.expect("entries for all flights, a flush and the alarm");
    }

    fn submit(&self) {
        if let Err(error) = self.ring.submit()
            && !is_passing(&error)
        {
            // `wait` submits again, and says what it meets.
            tracing::warn!(%error, "io_uring takes no submission");
        }
    }

    fn reap(&mut self, written: &mut Vec<Written>) {
        let mut again = false;
        loop {
            let entry = self.ring.completion().next();
            let Some((data, result)) = entry.map(|entry| (entry.user_data(), entry.result())) else { break };
            if data == RUNG {
                self.armed = false;
                let _nothing_left_to_read = rustix::io::read(&self.alarm.event, &mut [0; 8]);
                continue;
            }
            if data == FLUSHED {
                self.flushing = None;
                // Whatever it says, it is not asked again.
                let result = if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(()) };
                written.push(Written { token: None, result });
                continue;
            }
            let slot = data as usize;
            let flight = self.flights[slot].as_mut().expect("a completion of a flight");
            let outcome = match usize::try_from(result) {
                // Nothing was written, and there is nothing that says why.
                Ok(0) => Err(libc::EIO),
                Ok(count) => {
                    flight.done += count;
                    Ok(flight.done == flight.len)
                }
                Err(_) if is_passing(&io::Error::from_raw_os_error(-result)) => Ok(false),
                Err(_) => Err(-result),
            };
            // Only the rest of a short write is written again, with the same bytes: its nonce is not used twice.
            if let Ok(false) = outcome {
                self.push(slot);
                again = true;
                continue;
            }
            let flight = self.flights[slot].take().expect("just seen");
            if let Bytes::Placed(places) = flight.bytes {
                places.into_iter().for_each(|place| self.places.give_back(place));
            }
            let result = || outcome.map(drop).map_err(io::Error::from_raw_os_error);
            written.extend(flight.tokens.into_iter().map(|token| Written { token: Some(token), result: result() }));
        }
        if again {
            self.submit();
        }
        self.launch();
    }
}

/// Errors after which the same is simply tried again.
fn is_passing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY))
}

impl Drop for Ring {
    fn drop(&mut self) {
        let mut written = Vec::new();
        self.waiting.clear();
        while self.in_flight() > 0 {
            // Where this thread panicked the kernel may not have all of them, and would be waited for without end.
            let ended =
                if thread::panicking() { Err(io::Error::other("a panic")) } else { self.ring.submit_and_wait(1) };
            match ended {
                Err(error) if !is_passing(&error) => {
                    // The kernel may still write from them.
                    let memory = mem::replace(&mut self.memory, Buffer::empty());
                    mem::forget((memory, mem::take(&mut self.flights), self.flushing.take()));
                    return;
                }
                _ => self.reap(&mut written),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::Dir;
    use crate::io::real::{Backend, RealDir};
    use crate::limits::PAGE;

    fn write(ring: &mut Ring, token: u64, file: &Arc<dyn File>, offset: u64, pages: usize) {
        ring.write(token, file, offset, pages * PAGE, |bytes| bytes.fill(token as u8)).unwrap();
    }

    fn wait_for(ring: &mut Ring, count: usize) -> Vec<Written> {
        let mut all = Vec::new();
        while all.len() < count {
            ring.wait(&mut all, || true).unwrap();
        }
        all
    }

    #[test]
    fn writes_of_all_lengths_end_where_they_belong() {
        let scratch = tempfile::tempdir().unwrap();
        let dir = RealDir::open_or_create(scratch.path(), Some(Backend::Direct)).unwrap();
        let file = dir.create("a").unwrap();
        let Ok(mut ring) = Ring::new(4, 2 * PAGE, Durability::PerWrite) else {
            println!("SKIPPED: io_uring is denied here");
            return;
        };
        // The third is longer than the ring's memory.
        let mut offset = 0;
        for (token, pages) in [(10, 1), (11, 2), (12, 9), (13, 1)] {
            write(&mut ring, token, &file, offset, pages);
            offset += (pages * PAGE) as u64;
        }
        let mut written = wait_for(&mut ring, 4);
        written.sort_by_key(|written| written.token);
        assert!(written.iter().all(|written| written.result.is_ok()), "{written:?}");
        assert_eq!(written.iter().filter_map(|written| written.token).collect::<Vec<_>>(), [10, 11, 12, 13]);
        let mut bytes = Buffer::zeroed(13 * PAGE).unwrap();
        assert_eq!(file.read_at(&mut bytes, 0).unwrap(), 13 * PAGE);
        let pages: Vec<u8> = bytes.chunks(PAGE).map(|page| page[0]).collect();
        assert_eq!(pages, [10, 11, 11, 12, 12, 12, 12, 12, 12, 12, 12, 12, 13]);
        assert!(bytes.chunks(PAGE).all(|page| page.iter().all(|byte| *byte == page[0])));
    }

    #[test]
    fn what_waits_while_the_depth_is_reached_is_written_together() {
        let scratch = tempfile::tempdir().unwrap();
        let dir = RealDir::open_or_create(scratch.path(), Some(Backend::Direct)).unwrap();
        let (file, other) = (dir.create("a").unwrap(), dir.create("b").unwrap());
        let Ok(mut ring) = Ring::new(1, 8 * PAGE, Durability::PerWrite) else {
            println!("SKIPPED: io_uring is denied here");
            return;
        };
        let pages = |numbers: std::ops::Range<u64>| numbers.map(|number| number * PAGE as u64);
        for (token, offset) in pages(0..4).enumerate() {
            write(&mut ring, token as u64, &file, offset, 1);
        }
        // Of another file, and behind a gap.
        write(&mut ring, 4, &other, 0, 1);
        write(&mut ring, 5, &other, 2 * PAGE as u64, 1);
        assert_eq!(
            ring.waiting.iter().map(|flight| flight.tokens.clone()).collect::<Vec<_>>(),
            [vec![1, 2, 3], vec![4], vec![5]]
        );
        let written = wait_for(&mut ring, 6);
        assert!(written.iter().all(|written| written.result.is_ok()), "{written:?}");
        let tokens: Vec<u64> = written.iter().filter_map(|written| written.token).collect();
        assert_eq!(tokens, [0, 1, 2, 3, 4, 5]);
        let mut bytes = Buffer::zeroed(4 * PAGE).unwrap();
        assert_eq!(file.read_at(&mut bytes, 0).unwrap(), 4 * PAGE);
        assert!((0_u8..).zip(bytes.chunks(PAGE)).all(|(token, page)| page.iter().all(|byte| *byte == token)));
        // All memory is free again.
        assert_eq!(ring.places.take(8 * PAGE), Some(0));
    }

    #[test]
    fn a_write_that_fails_says_why_and_the_next_one_goes_on() {
        let scratch = tempfile::tempdir().unwrap();
        let dir = RealDir::open_or_create(scratch.path(), Some(Backend::Direct)).unwrap();
        dir.create("a").unwrap();
        let read_only = dir.open("a", crate::io::Access::Read).unwrap();
        let file = dir.open("a", crate::io::Access::ReadWrite).unwrap();
        let Ok(mut ring) = Ring::new(2, PAGE, Durability::PerWrite) else {
            println!("SKIPPED: io_uring is denied here");
            return;
        };
        write(&mut ring, 1, &read_only, 0, 1);
        let failed = wait_for(&mut ring, 1).remove(0);
        assert_eq!(failed.result.unwrap_err().raw_os_error(), Some(libc::EBADF));
        write(&mut ring, 2, &file, 0, 1);
        assert!(wait_for(&mut ring, 1).remove(0).result.is_ok());
    }

    #[test]
    fn a_flush_ends_by_itself_beside_writes() {
        let scratch = tempfile::tempdir().unwrap();
        let dir = RealDir::open_or_create(scratch.path(), Some(Backend::Direct)).unwrap();
        let file = dir.create("a").unwrap();
        let Ok(mut ring) = Ring::new(2, PAGE, Durability::SharedFlush) else {
            println!("SKIPPED: io_uring is denied here");
            return;
        };
        write(&mut ring, 1, &file, 0, 1);
        assert_eq!(wait_for(&mut ring, 1)[0].token, Some(1));
        ring.flush(Arc::clone(&file));
        write(&mut ring, 2, &file, PAGE as u64, 1);
        let mut ended: Vec<_> = wait_for(&mut ring, 2).into_iter().map(|written| written.token).collect();
        ended.sort_unstable();
        assert_eq!((ended, ring.in_flight()), (vec![None, Some(2)], 0));
    }

    #[test]
    fn an_alarm_ends_a_sleep_and_none_is_missed() {
        let Ok(mut ring) = Ring::new(1, PAGE, Durability::PerWrite) else {
            println!("SKIPPED: io_uring is denied here");
            return;
        };
        let alarm = ring.alarm();
        for _ in 0..1_000 {
            let asleep = Arc::clone(&alarm);
            thread::scope(|scope| {
                scope.spawn(move || {
                    while !asleep.asleep.load(Ordering::SeqCst) {
                        thread::yield_now();
                    }
                    asleep.ring();
                });
                // Returns because of the alarm, or hangs.
                ring.wait(&mut Vec::new(), || true).unwrap();
            });
        }
    }
}
