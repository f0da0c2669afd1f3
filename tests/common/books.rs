//! The books of an outside witness: what producers sent, what was acknowledged to them, and what came out at the end.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Condvar, Mutex};
use std::time::Duration;

/// Who sent it, and the how-manieth of that producer it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id {
    pub producer: u32,
    pub number: u64,
}

/// What is known of one event that was sent and never acknowledged: the kill during which its answer went missing.
#[derive(Default)]
struct Inner {
    acknowledged: BTreeSet<Id>,
    /// With the number of agent starts before it was sent.
    unanswered: BTreeMap<Id, u64>,
    refused: u64,
    /// The newest run that acknowledged anything, and how much.
    latest: (u64, u64),
}

/// Shared by all producers. Lives in the test's process, which no kill touches.
#[derive(Default)]
pub struct Books {
    inner: Mutex<Inner>,
    acknowledging: Condvar,
}

/// What the final comparison says.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Balance {
    pub acknowledged: u64,
    pub lost: Vec<Id>,
    /// Events that came out once more than they were sent.
    pub duplicates: u64,
    /// Events that came out and were never sent.
    pub phantoms: Vec<Id>,
    /// Sent, never acknowledged, and yet there: allowed, and the proof that a recovery met an unacknowledged tail.
    pub unacknowledged_kept: u64,
    /// Runs of the agent (by number) whose recovery kept at least one such event.
    pub runs_with_kept_tail: BTreeSet<u64>,
    pub unacknowledged_gone: u64,
    pub refused: u64,
}

impl Books {
    /// Before the first byte of these events goes out, in the agent's run number `run`.
    pub fn sending(&self, ids: &[Id], run: u64) {
        let mut inner = self.inner.lock().expect("no producer panics with the books open");
        inner.unanswered.extend(ids.iter().map(|id| (*id, run)));
    }

    pub fn acknowledged(&self, ids: &[Id]) {
        let mut inner = self.inner.lock().expect("no producer panics with the books open");
        for id in ids {
            let run = inner.unanswered.remove(id).unwrap_or_default();
            if run > inner.latest.0 {
                inner.latest = (run, 0);
            }
            inner.latest.1 += u64::from(run == inner.latest.0);
            inner.acknowledged.insert(*id);
        }
        self.acknowledging.notify_all();
    }

    /// Waits until `count` events that were sent in run number `run` are acknowledged; `false` when `limit` passed.
    pub fn await_acknowledged(&self, run: u64, count: u64, limit: Duration) -> bool {
        let inner = self.inner.lock().expect("no producer panics with the books open");
        let waits = |inner: &mut Inner| inner.latest.0 < run || (inner.latest.0 == run && inner.latest.1 < count);
        let waited = self.acknowledging.wait_timeout_while(inner, limit, waits);
        !waited.expect("no producer panics with the books open").1.timed_out()
    }

    /// The agent answered that it did not take them.
    pub fn refused(&self, ids: &[Id]) {
        let mut inner = self.inner.lock().expect("no producer panics with the books open");
        inner.refused += ids.len() as u64;
    }

    /// Compares with everything that came out.
    pub fn balance(&self, received: &[Id]) -> Balance {
        let inner = self.inner.lock().expect("no producer panics with the books open");
        let mut counts: BTreeMap<Id, u64> = BTreeMap::new();
        for id in received {
            *counts.entry(*id).or_default() += 1;
        }
        let mut balance = Balance {
            acknowledged: inner.acknowledged.len() as u64,
            lost: inner.acknowledged.iter().filter(|id| !counts.contains_key(id)).copied().collect(),
            duplicates: counts.values().map(|count| count - 1).sum(),
            refused: inner.refused,
            ..Balance::default()
        };
        for id in counts.keys().filter(|id| !inner.acknowledged.contains(id)) {
            match inner.unanswered.get(id) {
                Some(run) => {
                    balance.unacknowledged_kept += 1;
                    balance.runs_with_kept_tail.insert(*run);
                }
                None => balance.phantoms.push(*id),
            }
        }
        balance.unacknowledged_gone = inner.unanswered.len() as u64 - balance.unacknowledged_kept;
        balance
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u64) -> Id {
        Id { producer: 1, number }
    }

    #[test]
    fn a_lost_a_doubled_and_an_invented_event_are_told_apart() {
        let books = Books::default();
        books.sending(&[id(1), id(2), id(3), id(4)], 7);
        books.acknowledged(&[id(1), id(2)]);
        let balance = books.balance(&[id(2), id(2), id(3), id(9)]);
        assert_eq!(balance.lost, [id(1)]);
        assert_eq!(balance.duplicates, 1);
        assert_eq!(balance.phantoms, [id(9)]);
        assert_eq!(balance.unacknowledged_kept, 1);
        assert_eq!(balance.runs_with_kept_tail, BTreeSet::from([7]));
        assert_eq!(balance.unacknowledged_gone, 1);
    }
}
