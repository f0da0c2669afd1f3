//! Waiting for something outside this process: polled, and always with an end.

use std::thread;
use std::time::{Duration, Instant};

/// How often a probe runs. Small beside the start of any server, large beside the cost of a probe.
const PAUSE: Duration = Duration::from_millis(30);

/// Polls `probe` until it gives a value. Panics with `what` when `limit` has passed.
pub fn until<T>(what: &str, limit: Duration, mut probe: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + limit;
    loop {
        if let Some(value) = probe() {
            return value;
        }
        assert!(Instant::now() < end, "waited {limit:?} in vain: {what}");
        thread::sleep(PAUSE);
    }
}
