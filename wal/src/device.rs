//! Flush domains: what fails together and what may be in flight together.
//!
//! A [`Device`] is opened once per process and passed in; all directories and channels on one block device share it.
//! It promises two things: no more frames are under way than it is quick with and their writer has memory for, one beside
//! others only when enough waits; and once a write or sync has failed, everything unacknowledged on the device is of unknown outcome (its epoch has passed).

use std::ops::RangeInclusive;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use crate::io::uring::Alarm;
use crate::limits::{AHEAD_TIME, FRAMES_AHEAD, FRAMES_AHEAD_MAX, OVERLAP_MIN, RING_MEMORY};
use crate::tuning::Tuning;

#[derive(Debug, Default)]
struct Raises {
    count: u64,
    /// Threads in [`Signal::wait`]: without one, raising asks nothing of the kernel.
    waiting: usize,
}

/// Something to do, for threads that sleep until then.
#[derive(Debug, Default)]
pub struct Signal {
    raises: Mutex<Raises>,
    raised: Condvar,
    /// Of a thread that sleeps in a ring.
    alarm: OnceLock<Arc<Alarm>>,
}

impl Signal {
    /// The count to pass to [`wait`](Signal::wait); read it before looking for work.
    pub fn count(&self) -> u64 {
        self.lock().count
    }

    /// From now on raising it also wakes the thread that sleeps in a ring.
    pub fn wakes(&self, alarm: Arc<Alarm>) {
        let _one_ring_for_a_signal = self.alarm.set(alarm);
    }

    pub fn raise_one(&self) {
        if self.raise() {
            self.raised.notify_one();
        }
    }

    pub fn raise_all(&self) {
        if self.raise() {
            self.raised.notify_all();
        }
    }

    /// Whether a thread waits.
    fn raise(&self) -> bool {
        let is_waited_for = {
            let mut raises = self.lock();
            raises.count += 1;
            raises.waiting > 0
        };
        if let Some(alarm) = self.alarm.get() {
            alarm.ring();
        }
        is_waited_for
    }

    /// Sleeps until the signal was raised after `seen`, or `limit` has passed; `None` sleeps without end.
    pub fn wait(&self, seen: u64, limit: Option<Duration>) {
        let mut raises = self.lock();
        raises.waiting += 1;
        let unchanged = |raises: &mut Raises| raises.count == seen;
        let mut raises = match limit {
            None => self.raised.wait_while(raises, unchanged).unwrap_or_else(PoisonError::into_inner),
            Some(limit) => {
                let waited = self.raised.wait_timeout_while(raises, limit, unchanged);
                waited.unwrap_or_else(PoisonError::into_inner).0
            }
        };
        raises.waiting -= 1;
    }

    fn lock(&self) -> MutexGuard<'_, Raises> {
        self.raises.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
struct State {
    frames: usize,
    /// More are not under way at once, for now.
    frames_max: usize,
    /// Of the frames under way, about.
    bytes: usize,
    epoch: u64,
    failure: Option<String>,
    /// Who was refused a slot because others had them all.
    refused: Vec<Weak<Signal>>,
}

/// One flush domain.
#[derive(Debug)]
pub struct Device {
    name: String,
    tuning: Tuning,
    /// Bounds of the number of frames under way: written, or made and waiting for a write to end.
    frames: RangeInclusive<usize>,
    /// While a write is in flight another one starts only when this many bytes wait.
    overlap_min: usize,
    state: Mutex<State>,
}

impl Device {
    /// A device with `depth` writes in flight, and a frame in each.
    pub fn new(name: impl Into<String>, depth: usize) -> Arc<Device> {
        Device::with_frames(name, Tuning { depth, ..Tuning::default() }, depth..=depth, OVERLAP_MIN)
    }

    /// A device that is written as is best for it, with frames made ahead for the next write.
    pub fn tuned(name: impl Into<String>, tuning: Tuning) -> Arc<Device> {
        let frames = tuning.depth + FRAMES_AHEAD..=tuning.depth + FRAMES_AHEAD_MAX;
        Device::with_frames(name, tuning, frames, OVERLAP_MIN)
    }

    /// A device that has so many frames under way, as many of them as it is quick with and as its writer has memory for, and on
    /// which another one starts beside those as soon as `overlap_min` bytes wait.
    pub fn with_frames(
        name: impl Into<String>,
        tuning: Tuning,
        frames: RangeInclusive<usize>,
        overlap_min: usize,
    ) -> Arc<Device> {
        assert!(tuning.depth > 0 && *frames.start() > 0, "a device takes at least one write at a time");
        let state =
            State { frames: 0, frames_max: *frames.start(), bytes: 0, epoch: 0, failure: None, refused: Vec::new() };
        Arc::new(Device { name: name.into(), tuning, frames, overlap_min, state: Mutex::new(state) })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn tuning(&self) -> Tuning {
        self.tuning
    }

    /// A slot for one frame of `waiting` bytes, if one is free and so many are worth one. When all are taken, `signal` is
    /// raised once a slot comes free.
    pub fn try_start(self: &Arc<Device>, now: Duration, waiting: usize, signal: &Arc<Signal>) -> Option<WriteSlot> {
        let mut state = self.lock();
        let is_full = state.frames >= *self.frames.start() && state.bytes + waiting > RING_MEMORY;
        let is_early = state.frames > 0 && waiting < self.overlap_min;
        if state.frames >= state.frames_max || is_full || is_early {
            let known = |other: &Weak<Signal>| std::ptr::eq(other.as_ptr(), Arc::as_ptr(signal));
            if !state.refused.iter().any(known) {
                state.refused.push(Arc::downgrade(signal));
            }
            return None;
        }
        state.frames += 1;
        state.bytes += waiting;
        Some(WriteSlot { device: Arc::clone(self), began: now, bytes: waiting })
    }

    /// Grows with each failure. What was reserved in an earlier epoch is of unknown outcome.
    pub fn epoch(&self) -> u64 {
        self.lock().epoch
    }

    /// Why the device takes no writes, if it does not.
    pub fn failure(&self) -> Option<String> {
        self.lock().failure.clone()
    }

    /// A write or sync of `epoch` failed. Later reports of the same epoch add nothing.
    pub fn fail(&self, epoch: u64, cause: &str) {
        let mut state = self.lock();
        if state.epoch == epoch {
            state.epoch += 1;
            state.failure = Some(cause.to_owned());
        }
    }

    /// A probe wrote, synced and read back: new files may be tried.
    pub fn probed(&self) {
        self.lock().failure = None;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to have one frame under way; given back when dropped.
#[derive(Debug)]
pub struct WriteSlot {
    device: Arc<Device>,
    began: Duration,
    bytes: usize,
}

impl WriteSlot {
    /// Gives it back for a frame that has ended: one that was quick lets another one be under way, one that was slow halves
    /// those that are made ahead.
    pub fn end(self, now: Duration) {
        let (least, most) = self.device.frames.clone().into_inner();
        let mut state = self.device.lock();
        let max = state.frames_max;
        let took = now.saturating_sub(self.began);
        state.frames_max = if took <= AHEAD_TIME { (max + 1).min(most) } else { least + (max - least) / 2 };
    }
}

impl Drop for WriteSlot {
    fn drop(&mut self) {
        let refused = {
            let mut state = self.device.lock();
            state.frames -= 1;
            state.bytes -= self.bytes;
            std::mem::take(&mut state.refused)
        };
        for signal in refused.iter().filter_map(Weak::upgrade) {
            signal.raise_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1);

    #[test]
    fn a_second_write_starts_only_when_enough_waits() {
        let device = Device::new("d", 2);
        let signal = Arc::new(Signal::default());
        let first = device.try_start(NOW, 1, &signal).unwrap();
        let seen = signal.count();
        assert!(device.try_start(NOW, OVERLAP_MIN - 1, &signal).is_none());
        let second = device.try_start(NOW, OVERLAP_MIN, &signal).unwrap();
        assert!(device.try_start(NOW, OVERLAP_MIN, &signal).is_none(), "the depth is reached");
        drop(first);
        assert!(signal.count() > seen, "the refused one hears of a free slot");
        drop(second);
        assert!(device.try_start(NOW, 0, &signal).is_some());
    }

    /// How many frames of so many bytes the device takes at once; they have ended after `time`.
    fn frames_of(device: &Arc<Device>, bytes: usize, time: Duration) -> usize {
        let signal = Arc::new(Signal::default());
        let slots: Vec<WriteSlot> = std::iter::from_fn(|| device.try_start(NOW, bytes, &signal)).take(100).collect();
        let count = slots.len();
        slots.into_iter().for_each(|slot| slot.end(NOW + time));
        count
    }

    #[test]
    fn more_frames_are_made_ahead_while_the_disk_is_quick_with_them() {
        let device = Device::with_frames("d", Tuning { depth: 2, ..Tuning::default() }, 6..=34, OVERLAP_MIN);
        for frames in [6, 12, 24, 34] {
            assert_eq!(frames_of(&device, OVERLAP_MIN, AHEAD_TIME), frames);
        }
        assert_eq!(frames_of(&device, RING_MEMORY / 20, AHEAD_TIME), 20, "no more than its writer has memory for");
        assert_eq!(frames_of(&device, RING_MEMORY, AHEAD_TIME), 6, "but those it always has");
        assert_eq!(frames_of(&device, OVERLAP_MIN, 2 * AHEAD_TIME), 34);
        assert_eq!(frames_of(&device, OVERLAP_MIN, AHEAD_TIME), 6, "each slow one halves what is ahead");
    }

    #[test]
    fn a_failure_ends_the_epoch_once() {
        let device = Device::new("d", 2);
        let epoch = device.epoch();
        device.fail(epoch, "EIO");
        device.fail(epoch, "EIO again");
        assert_eq!((device.epoch(), device.failure().as_deref()), (epoch + 1, Some("EIO")));
        device.probed();
        assert_eq!(device.failure(), None);
    }
}
