//! One thread that ends waits: it sleeps until the nearest deadline, and without a timeout while nothing waits.
//!
//! Promises that [`Expire::expire`] is called no earlier than a deadline that was announced, and once for it unless
//! that call announces another; that an idle owner costs no CPU; and that the thread starts with the first wait and
//! ends with its [`Alarm`]. What waits, and what becomes of it, is the owner's.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

/// Something with deadlines.
pub(crate) trait Expire: Send + Sync + 'static {
    /// Ends what was to end by `now`; returns the nearest deadline that is left.
    fn expire(&self, now: Instant) -> Option<Instant>;
}

/// Wakes its owner at deadlines. The owner holds the alarm; the alarm's thread holds the owner only while it calls.
pub(crate) struct Alarm {
    shared: Arc<Shared>,
}

struct Shared {
    schedule: Mutex<Schedule>,
    changed: Condvar,
}

struct Schedule {
    /// No announced deadline is earlier.
    next: Option<Instant>,
    running: bool,
    stopped: bool,
}

impl Alarm {
    pub(crate) fn new() -> Alarm {
        let schedule = Schedule { next: None, running: false, stopped: false };
        Alarm { shared: Arc::new(Shared { schedule: Mutex::new(schedule), changed: Condvar::new() }) }
    }

    /// Asks for a call of `owner.expire` at `deadline`. Fails when the thread cannot be started; then nobody will call.
    pub(crate) fn announce<T: Expire>(&self, deadline: Instant, owner: &Arc<T>) -> io::Result<()> {
        let mut schedule = self.shared.lock();
        if !schedule.running {
            let (shared, owner) = (Arc::clone(&self.shared), Arc::downgrade(owner));
            std::thread::Builder::new().name("channel-alarm".to_owned()).spawn(move || shared.run(&owner))?;
            schedule.running = true;
        }
        if schedule.next.is_none_or(|next| deadline < next) {
            schedule.next = Some(deadline);
            self.shared.changed.notify_one();
        }
        Ok(())
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        // Not joined: the thread itself may be the one that drops its owner.
        self.shared.lock().stopped = true;
        self.shared.changed.notify_one();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Schedule> {
        // The lock covers plain assignments only, so a poisoned schedule is still a whole one.
        self.schedule.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run<T: Expire>(&self, owner: &Weak<T>) {
        let mut schedule = self.lock();
        while !schedule.stopped {
            let now = Instant::now();
            match schedule.next {
                None => schedule = self.changed.wait(schedule).unwrap_or_else(PoisonError::into_inner),
                Some(next) if now < next => {
                    let waited = self.changed.wait_timeout(schedule, next - now);
                    schedule = waited.unwrap_or_else(PoisonError::into_inner).0;
                }
                Some(_) => {
                    schedule.next = None;
                    drop(schedule);
                    let Some(present) = owner.upgrade() else { return };
                    let left = present.expire(now);
                    drop(present);
                    schedule = self.lock();
                    schedule.next = match (schedule.next, left) {
                        (Some(announced), Some(left)) => Some(announced.min(left)),
                        (announced, left) => announced.or(left),
                    };
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::sync::mpsc;
    use std::time::Duration;

    const LIMIT: Duration = Duration::from_secs(30);

    /// Reports each deadline that ended, and when.
    struct Owner {
        deadlines: Mutex<BTreeSet<Instant>>,
        ended: mpsc::SyncSender<(Instant, Instant)>,
    }

    impl Expire for Owner {
        fn expire(&self, now: Instant) -> Option<Instant> {
            let mut deadlines = self.deadlines.lock().unwrap();
            let left = deadlines.split_off(&(now + Duration::from_nanos(1)));
            for deadline in std::mem::replace(&mut *deadlines, left) {
                self.ended.send((deadline, now)).unwrap();
            }
            deadlines.first().copied()
        }
    }

    #[test]
    fn every_deadline_ends_in_order_and_none_too_early() {
        let (ended, reports) = mpsc::sync_channel(8);
        let owner = Arc::new(Owner { deadlines: Mutex::new(BTreeSet::new()), ended });
        let alarm = Alarm::new();
        let now = Instant::now();
        let deadlines = [30, 10, 20].map(|millis| now + Duration::from_millis(millis));
        for deadline in deadlines {
            owner.deadlines.lock().unwrap().insert(deadline);
            alarm.announce(deadline, &owner).unwrap();
        }
        let mut seen = Vec::new();
        for _ in deadlines {
            let (deadline, at) = reports.recv_timeout(LIMIT).expect("the alarm rings");
            assert!(at >= deadline);
            seen.push(deadline);
        }
        assert_eq!(seen, [deadlines[1], deadlines[2], deadlines[0]]);
    }

    #[test]
    fn the_thread_ends_with_its_alarm() {
        let (ended, reports) = mpsc::sync_channel(8);
        let owner = Arc::new(Owner { deadlines: Mutex::new(BTreeSet::new()), ended });
        let alarm = Alarm::new();
        alarm.announce(Instant::now() + Duration::from_secs(3600), &owner).unwrap();
        let shared = Arc::downgrade(&alarm.shared);
        drop(alarm);
        let end = Instant::now() + LIMIT;
        while shared.strong_count() > 0 {
            assert!(Instant::now() < end, "the thread goes on without its alarm");
            std::thread::yield_now();
        }
        assert!(reports.try_recv().is_err(), "the deadline was an hour away");
    }
}
