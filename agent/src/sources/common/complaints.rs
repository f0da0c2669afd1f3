//! Log lines about peers, at most one every ten seconds for each source: whoever sends rubbish must not fill a disk.

use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

const INTERVAL: Duration = Duration::from_secs(10);

pub(crate) struct Complaints {
    /// `avro`, `netcat`.
    kind: &'static str,
    source: String,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    last: Option<Instant>,
    suppressed: u64,
}

impl Complaints {
    pub(crate) fn new(kind: &'static str, source: &str) -> Complaints {
        Complaints { kind, source: source.to_owned(), state: Mutex::default() }
    }

    /// Logs what a peer did and what was done about it, or counts it for the next line.
    pub(crate) fn say(&self, peer: SocketAddr, what: &str) {
        if let Some(suppressed) = self.due(Instant::now()) {
            tracing::warn!(source = self.source, %peer, not_logged_before = suppressed, "{}: {what}", self.kind);
        }
    }

    /// How many were suppressed since the last line, when a line is due.
    fn due(&self, now: Instant) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.last.is_some_and(|last| now.duration_since(last) < INTERVAL) {
            state.suppressed += 1;
            return None;
        }
        state.last = Some(now);
        Some(std::mem::take(&mut state.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_one_line_that_counts_what_it_left_out() {
        let complaints = Complaints::new("avro", "r1");
        let start = Instant::now();
        assert_eq!(complaints.due(start), Some(0));
        for _ in 0..1000 {
            assert_eq!(complaints.due(start + INTERVAL / 2), None);
        }
        assert_eq!(complaints.due(start + INTERVAL), Some(1000));
        assert_eq!(complaints.due(start + INTERVAL * 2), Some(0));
    }
}
