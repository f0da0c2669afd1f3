//! Open loops: senders that send at fixed times, whether or not what they send to keeps up; and what a disk by itself answers to
//! the same arrivals.
//!
//! Promises that a latency counts from the time at which something should have been sent, and that how late a sender that was
//! free woke up for it is known: that part is the scheduler's and nobody else's. Raw writes have the same senders, the same
//! times and the same bytes as a channel's load has, one durable write for each batch, all of them through one ring.
//!
//! ```text
//! sender: wait until due ─► copy into the ring's memory ─► durable ─► woken        a channel: the same, with it between
//! ```

use std::collections::VecDeque;
use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use wal::calibrate::{self, Durability};
use wal::io::File;
use wal::io::uring::{Alarm, Ring};
use wal::limits::pages;

use crate::numbers::Latencies;

/// A sender wakes up so much before it is due, and looks at the clock until then: from a halted virtual processor it comes 30 to
/// 45 µs late, which would be a third of what is measured. This costs CPU, which is the load's.
const WAKE_UP: Duration = Duration::from_micros(50);

/// When each of several senders sends: in turns, at even distances.
pub(crate) struct Schedule {
    begin: Instant,
    /// Seconds after the begin.
    next: f64,
    gap: f64,
    /// How late the sender woke up, where it was not held up by what it had sent before.
    late: Latencies,
}

impl Schedule {
    /// Of the sender `index` of `senders`, which send `rate` times a second together. It is for the calling thread.
    pub(crate) fn new(begin: Instant, rate: f64, senders: u32, index: u32) -> Schedule {
        // The usual slack of the kernel, 50 µs, is half a commit of a fast disk.
        let _default_slack = rustix::thread::set_current_timer_slack(Some(const { NonZero::new(1).unwrap() }));
        let gap = 1.0 / rate;
        Schedule { begin, next: gap * f64::from(index), gap: gap * f64::from(senders), late: Latencies::new() }
    }

    /// Waits until the next one is due, and says when that was.
    pub(crate) fn wait(&mut self) -> Instant {
        let due = self.begin + Duration::from_secs_f64(self.next);
        self.next += self.gap;
        let ahead = due.saturating_duration_since(Instant::now());
        if !ahead.is_zero() {
            thread::sleep(ahead.saturating_sub(WAKE_UP));
            while Instant::now() < due {
                std::hint::spin_loop();
            }
            self.late.record(due.elapsed());
        }
        due
    }

    pub(crate) fn into_late(self) -> Latencies {
        self.late
    }
}

/// Writes of one size that come at a rate.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Arrivals {
    pub(crate) senders: u32,
    /// Of all senders, a second.
    pub(crate) rate: f64,
    pub(crate) bytes: usize,
    pub(crate) warmup: Duration,
    pub(crate) time: Duration,
}

/// What became of them.
pub(crate) struct Answered {
    /// From the time at which a write was due until its sender knew that it was durable.
    pub(crate) latencies: Latencies,
    /// How late senders woke up, where they were free.
    pub(crate) late: Latencies,
}

/// What the senders and the writer share.
struct Desk {
    /// Senders that want something written.
    waiting: Mutex<VecDeque<usize>>,
    senders: AtomicUsize,
    alarm: Arc<Alarm>,
}

impl Desk {
    fn waiting(&self) -> MutexGuard<'_, VecDeque<usize>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes what arrives to the first `len` bytes of a file that is whole; `None` where the kernel denies io_uring.
pub(crate) fn raw(file: &Arc<dyn File>, len: u64, arrivals: &Arrivals) -> Result<Option<Answered>, String> {
    let (block, count) = (pages(arrivals.bytes), arrivals.senders as usize);
    let blocks = len / block as u64;
    if blocks < count as u64 {
        return Err(format!("{count} blocks of {block} bytes need a longer file"));
    }
    // As many in flight as there are senders: each batch is a write of its own.
    let Ok(mut ring) = Ring::new(count, 2 * count * block, Durability::PerWrite) else { return Ok(None) };
    let failed = |error: std::io::Error| format!("raw write: {error}");
    let noise = calibrate::noise(block).map_err(failed)?;
    let desk = Desk { waiting: Mutex::default(), senders: AtomicUsize::new(count), alarm: ring.alarm() };
    let (backs, answers): (Vec<_>, Vec<_>) = (0..count).map(|_| mpsc::channel()).unzip();
    let begin = Instant::now();
    thread::scope(|scope| {
        let senders: Vec<_> = (0_u32..)
            .zip(answers)
            .map(|(index, answers)| {
                let desk = &desk;
                scope.spawn(move || send(desk, arrivals, index, begin, &answers))
            })
            .collect();
        // The writer: this thread, whose ring it is. It owns the answers' other ends, so that its end is theirs.
        let (mut number, mut ended) = (0_u64, Vec::new());
        let written = (|| loop {
            let mut taken = desk.waiting().pop_front();
            while let Some(sender) = taken {
                let offset = number % blocks * block as u64;
                number += 1;
                ring.write(sender as u64, file, offset, block, |bytes| {
                    bytes.copy_from_slice(&noise);
                    calibrate::stamp(bytes, number);
                })?;
                taken = desk.waiting().pop_front();
            }
            if ring.in_flight() == 0 && desk.senders.load(Ordering::SeqCst) == 0 {
                return Ok(());
            }
            ring.wait(&mut ended, || desk.waiting().is_empty() && desk.senders.load(Ordering::SeqCst) > 0)?;
            for written in ended.drain(..) {
                written.result?;
                let _it_waits = backs[written.token.expect("no flushes") as usize].send(());
            }
        })();
        drop(backs);
        let (mut latencies, mut late) = (Latencies::new(), Latencies::new());
        for sender in senders {
            let (own, woken) = sender.join().expect("a sender ends");
            latencies.add(&own);
            late.add(&woken);
        }
        written.map_err(failed).map(|()| Some(Answered { latencies, late }))
    })
}

/// One sender, with one write on its way, until the time is over or the writer is gone.
fn send(
    desk: &Desk,
    arrivals: &Arrivals,
    index: u32,
    begin: Instant,
    answers: &mpsc::Receiver<()>,
) -> (Latencies, Latencies) {
    let mut schedule = Schedule::new(begin, arrivals.rate, arrivals.senders, index);
    let mut latencies = Latencies::new();
    while begin.elapsed() < arrivals.warmup + arrivals.time {
        let due = schedule.wait();
        desk.waiting().push_back(index as usize);
        desk.alarm.ring();
        if answers.recv().is_err() {
            break;
        }
        if due.saturating_duration_since(begin) >= arrivals.warmup {
            latencies.record(due.elapsed());
        }
    }
    desk.senders.fetch_sub(1, Ordering::SeqCst);
    desk.alarm.ring();
    (latencies, schedule.into_late())
}

#[cfg(test)]
mod tests {
    use super::*;
    use wal::io::Dir;
    use wal::io::real::RealDir;

    #[test]
    fn every_arrival_is_answered_and_no_more_are_sent_than_were_due() {
        let scratch = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let file = RealDir::open_or_create(scratch.path(), None).unwrap().create("raw").unwrap();
        let len = 1 << 20;
        calibrate::fill(&*file, len).unwrap();
        let (warmup, time) = (Duration::from_millis(5), Duration::from_millis(50));
        let arrivals = Arrivals { senders: 4, rate: 1000.0, bytes: 5000, warmup, time };
        let begin = Instant::now();
        let Some(answered) = raw(&file, len, &arrivals).unwrap() else {
            println!("SKIPPED: io_uring is denied here");
            return;
        };
        let (count, due) = (answered.latencies.count(), arrivals.rate * begin.elapsed().as_secs_f64() + 4.0);
        assert!(count > 0 && (count as f64) <= due && answered.late.count() <= count + 100, "{count} of {due}");
        let error = raw(&file, 4096, &arrivals).err().unwrap();
        assert!(error.contains("longer file"), "{error}");
    }

    #[test]
    fn senders_take_turns_at_even_distances() {
        let begin = Instant::now() - Duration::from_secs(10);
        let mut senders: Vec<Schedule> = (0..4).map(|index| Schedule::new(begin, 1000.0, 4, index)).collect();
        let due: Vec<u128> = (0..8).map(|turn| (senders[turn % 4].wait() - begin).as_micros()).collect();
        assert_eq!(due, [0, 1000, 2000, 3000, 4000, 5000, 6000, 7000]);
        assert!(senders.into_iter().all(|sender| sender.into_late().count() == 0), "who is behind does not sleep");
    }
}
