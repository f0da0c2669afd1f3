//! Durable writes through io_uring: many in flight from one thread, none of which blocks it.
//!
//! Promises that a write is reported once and only after the kernel is done with its bytes, that the rest of a short write
//! is written with the same bytes at its place, and that memory outlives every write in it. It gives no order: that is the
//! log's. Files are not registered with the ring: it would keep them open, and the space of a removed segment would not
//! come back. A ring that the kernel denies is an error of [`Ring::new`], and the caller writes with threads instead.
//!
//! ```text
//! write ─► submission ─► kernel ─► completion ─► wait ─► Written          Alarm::ring ─► eventfd ─► wait returns
//! ```

#![expect(unsafe_code, reason = "the kernel is given addresses; each block says why they stay valid")]

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use io_uring::{IoUring, opcode, squeue, types};
use rustix::event::{EventfdFlags, eventfd};

use super::File;
use super::buffer::Buffer;
use crate::flushes::Durability;
use crate::planted::{self, Bug};

/// The completion that says that somebody rang, and not which write is done.
const RUNG: u64 = u64::MAX;
/// The completion of a flush.
const FLUSHED: u64 = u64::MAX - 1;

static RINGS: AtomicU64 = AtomicU64::new(0);

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

struct Flight {
    token: u64,
    file: Arc<dyn File>,
    frame: Buffer,
    offset: u64,
    done: usize,
}

/// One ring, owned by the thread that submits to it.
pub struct Ring {
    ring: IoUring,
    /// By slot; a completion names its slot.
    flights: Vec<Option<Flight>>,
    /// Frame buffers that are not in use.
    spare: Vec<Buffer>,
    frame_capacity: usize,
    durability: Durability,
    /// The file of the flush that is under way.
    flushing: Option<Arc<dyn File>>,
    /// Marks the buffers that are mapped into this ring and no other.
    id: u64,
    alarm: Arc<Alarm>,
    /// The kernel watches the alarm.
    armed: bool,
}

impl Ring {
    /// A ring for `depth` writes at once, with a buffer of `frame_capacity` bytes for each. Whether its writes are durable
    /// when they end, or after a [`flush`](Ring::flush), `durability` says. An error means that the kernel has no io_uring,
    /// or denies it here.
    pub fn new(depth: usize, frame_capacity: usize, durability: Durability) -> io::Result<Ring> {
        // The alarm and a flush have entries of their own.
        let entries = u32::try_from((depth + 2).next_power_of_two()).map_err(io::Error::other)?;
        // One thread submits and reaps, so completions need interrupt nobody; kernels before 6.1 do not know that yet.
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .build(entries)
            .or_else(|_| IoUring::builder().build(entries))?;
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let alarm = Arc::new(Alarm { asleep: AtomicBool::new(false), event });
        let mut spare = Vec::with_capacity(depth);
        for _ in 0..depth {
            spare.push(Buffer::zeroed(frame_capacity)?);
        }
        let id = RINGS.fetch_add(1, Ordering::Relaxed);
        let maps: Vec<libc::iovec> = spare
            .iter_mut()
            .map(|buffer| libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.capacity() })
            .collect();
        // SAFETY: the kernel pins these pages until the ring is closed, whatever becomes of the buffers. Only a buffer that
        // has the mark is written from them, and the mark goes with the memory.
        match unsafe { ring.submitter().register_buffers(&maps) } {
            Ok(()) => (0..).zip(&mut spare).for_each(|(index, buffer)| buffer.mapped = Some((id, index))),
            // The limit of locked memory is small: the kernel maps the buffers for each write then.
            Err(error) => tracing::debug!(%error, "io_uring without registered buffers"),
        }
        let flights = (0..depth).map(|_| None).collect();
        let (flushing, armed) = (None, false);
        Ok(Ring { ring, flights, spare, frame_capacity, durability, flushing, id, alarm, armed })
    }

    pub fn alarm(&self) -> Arc<Alarm> {
        Arc::clone(&self.alarm)
    }

    /// A buffer for a frame of `len` bytes, with anything in it.
    pub fn buffer(&mut self, len: usize) -> io::Result<Buffer> {
        if len > self.frame_capacity {
            return Buffer::zeroed(len);
        }
        let mut buffer = self.spare.pop().map_or_else(|| Buffer::zeroed(self.frame_capacity), Ok)?;
        buffer.set_len(len);
        Ok(buffer)
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

    /// Starts a write whose end [`wait`](Ring::wait) reports under `token`; durable if it went well and each write is by
    /// itself. The file must have a descriptor; direct I/O wants `offset` and length in whole pages.
    ///
    /// # Panics
    /// When more than `depth` writes are in flight: the device's slots are fewer.
    pub fn write(&mut self, token: u64, file: &Arc<dyn File>, frame: Buffer, offset: u64) {
        let slot = self.flights.iter().position(Option::is_none).expect("no more writes than the depth");
        self.flights[slot] = Some(Flight { token, file: Arc::clone(file), frame, offset, done: 0 });
        self.push(slot);
        self.submit();
    }

    /// Appends writes that have ended. While there are none it sleeps until one ends or the [`Alarm`] rings, unless
    /// `is_idle`, which is asked after the alarm was set, finds something to do. An error means that the ring is lost.
    pub fn wait(&mut self, written: &mut Vec<Written>, is_idle: impl FnOnce() -> bool) -> io::Result<()> {
        let before = written.len();
        self.reap(written);
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
        let rest = &flight.frame[flight.done..];
        let length = u32::try_from(rest.len()).expect("a frame is far below 4 GiB");
        let offset = flight.offset + flight.done as u64;
        let by_itself = self.durability == Durability::PerWrite && !planted::is(Bug::SkipDataSync);
        let flags = if by_itself { libc::RWF_DSYNC } else { 0 };
        let write = match flight.frame.mapped.filter(|(ring, _)| *ring == self.id) {
            Some((_, index)) => {
                opcode::WriteFixed::new(file, rest.as_ptr(), length, index).offset(offset).rw_flags(flags).build()
            }
            None => opcode::Write::new(file, rest.as_ptr(), length).offset(offset).rw_flags(flags).build(),
        };
        self.enqueue(&write.user_data(slot as u64));
    }

    fn enqueue(&mut self, entry: &squeue::Entry) {
        // SAFETY: the entry points into the buffer of a flight, and at its file's descriptor, or at that of the flush. They
        // stay in `flights` and `flushing` until the completion is reaped; `drop` waits for those that are left, or leaks them.
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
                Ok(0) => Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    flight.done += count;
                    Ok(flight.done == flight.frame.len())
                }
                Err(_) => match io::Error::from_raw_os_error(-result) {
                    error if is_passing(&error) => Ok(false),
                    error => Err(error),
                },
            };
            // Only the rest of a short write is written again, with the same bytes: its nonce is not used twice.
            if let Ok(false) = outcome {
                self.push(slot);
                again = true;
                continue;
            }
            let flight = self.flights[slot].take().expect("just seen");
            if flight.frame.capacity() == self.frame_capacity && self.spare.len() < self.flights.len() {
                self.spare.push(flight.frame);
            }
            written.push(Written { token: Some(flight.token), result: outcome.map(drop) });
        }
        if again {
            self.submit();
        }
    }
}

/// Errors after which the same is simply tried again.
fn is_passing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY))
}

impl Drop for Ring {
    fn drop(&mut self) {
        let mut written = Vec::new();
        while self.in_flight() > 0 {
            match self.ring.submit_and_wait(1) {
                Err(error) if !is_passing(&error) => {
                    // The kernel may still write from them.
                    mem::forget((mem::take(&mut self.flights), self.flushing.take()));
                    return;
                }
                _ => self.reap(&mut written),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::io::Dir;
    use crate::io::real::{Backend, RealDir};
    use crate::limits::PAGE;

    fn filled(ring: &mut Ring, byte: u8, pages: usize) -> Buffer {
        let mut frame = ring.buffer(pages * PAGE).unwrap();
        frame.fill(byte);
        frame
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
        // The third is longer than a registered buffer.
        let mut offset = 0;
        for (token, pages) in [(10, 1), (11, 2), (12, 9), (13, 1)] {
            let frame = filled(&mut ring, token as u8, pages);
            ring.write(token, &file, frame, offset);
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
        let frame = filled(&mut ring, 1, 1);
        ring.write(1, &read_only, frame, 0);
        let failed = wait_for(&mut ring, 1).remove(0);
        assert_eq!(failed.result.unwrap_err().raw_os_error(), Some(libc::EBADF));
        let frame = filled(&mut ring, 2, 1);
        ring.write(2, &file, frame, 0);
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
        let frame = filled(&mut ring, 1, 1);
        ring.write(1, &file, frame, 0);
        assert_eq!(wait_for(&mut ring, 1)[0].token, Some(1));
        let frame = filled(&mut ring, 2, 1);
        ring.flush(Arc::clone(&file));
        ring.write(2, &file, frame, PAGE as u64);
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
