//! The books of an outside witness: what a load asked of a channel, what was acknowledged, and what a recovery brings back.
//!
//! A load reports [`Fact`]s, one per line when it is a process of its own. After each crash the channel is opened again and
//! everything in it is taken without being settled; [`Ledger::check`] compares that with what was promised, and remembers
//! the answer: what a recovery once decided stays so in all later ones.
//!
//! ```text
//! put asked ──► acknowledged ──► settle asked ──► settled
//!     │              must be there      either        must not come again
//!     ├──► failed        whole or absent, decided by the next recovery
//!     └──► refused       must not be there
//! ```

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
#[cfg(test)]
use std::io::{BufRead, BufReader, Read};
use std::ops::Range;

/// What a load says about itself. Events are numbered, and no number is used twice over all runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fact {
    /// The channel is open, and a recovery (if there was one) is over.
    Opened,
    /// Said before the put: events `first..first + count` in one transaction of `producer`.
    PutAsked {
        producer: u64,
        first: u64,
        count: u64,
    },
    PutAcknowledged {
        first: u64,
    },
    /// The channel was full: nothing was written.
    PutRefused {
        first: u64,
    },
    /// Its outcome is open until the next recovery.
    PutFailed {
        first: u64,
    },
    /// Said before the settlement: delivered.
    SettleAsked {
        events: Vec<Range<u64>>,
    },
    SettleAcknowledged {
        events: Vec<Range<u64>>,
    },
    /// The load itself saw a broken promise.
    Wrong {
        what: String,
    },
}

impl fmt::Display for Fact {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let runs = |formatter: &mut fmt::Formatter<'_>, word: &str, events: &[Range<u64>]| {
            formatter.write_str(word)?;
            events.iter().try_for_each(|run| write!(formatter, " {}..{}", run.start, run.end))
        };
        match self {
            Fact::Opened => formatter.write_str("opened"),
            Fact::PutAsked { producer, first, count } => write!(formatter, "put {producer} {first} {count}"),
            Fact::PutAcknowledged { first } => write!(formatter, "put-ok {first}"),
            Fact::PutRefused { first } => write!(formatter, "put-refused {first}"),
            Fact::PutFailed { first } => write!(formatter, "put-failed {first}"),
            Fact::SettleAsked { events } => runs(formatter, "settle", events),
            Fact::SettleAcknowledged { events } => runs(formatter, "settle-ok", events),
            Fact::Wrong { what } => write!(formatter, "wrong {}", what.replace('\n', " ")),
        }
    }
}

impl Fact {
    /// The fact in a whole line, without its end.
    pub(crate) fn parse(line: &str) -> Option<Fact> {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        let numbers = || rest.split(' ').map(str::parse).collect::<Result<Vec<u64>, _>>().ok();
        let first = || numbers().and_then(|numbers| <[u64; 1]>::try_from(numbers).ok()).map(|[first]| first);
        let runs = || {
            let run = |text: &str| text.split_once("..").and_then(|(a, b)| Some(a.parse().ok()?..b.parse().ok()?));
            rest.split(' ').map(run).collect::<Option<Vec<Range<u64>>>>()
        };
        Some(match word {
            "opened" => Fact::Opened,
            "put" => {
                let [producer, first, count] = <[u64; 3]>::try_from(numbers()?).ok()?;
                Fact::PutAsked { producer, first, count }
            }
            "put-ok" => Fact::PutAcknowledged { first: first()? },
            "put-refused" => Fact::PutRefused { first: first()? },
            "put-failed" => Fact::PutFailed { first: first()? },
            "settle" => Fact::SettleAsked { events: runs()? },
            "settle-ok" => Fact::SettleAcknowledged { events: runs()? },
            "wrong" => Fact::Wrong { what: rest.to_owned() },
            _ => return None,
        })
    }
}

/// What is known of a put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PutState {
    /// Asked or failed: whole or absent.
    Open,
    /// Acknowledged, or found by a recovery, or given to a consumer: whole, for ever.
    Kept,
    /// Refused, or found absent by a recovery: absent, for ever.
    Absent,
}

/// What is known of one event of a put that is not absent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum EventState {
    Queued,
    /// Either answer is right, once.
    SettleAsked,
    /// Settled, or found settled by a recovery: never again.
    Gone,
}

#[derive(Debug)]
struct Put {
    /// The producer, and in which run of the load it lived: its acknowledged puts keep their order.
    producer: (u64, u64),
    acknowledged: bool,
    state: PutState,
    /// One for each event. Emptied once all are gone, so that long runs stay small.
    events: Vec<EventState>,
    count: u64,
}

impl Put {
    fn is_over(&self) -> bool {
        self.state == PutState::Absent || self.events.iter().all(|state| *state == EventState::Gone)
    }
}

/// What ran, for the tally.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) puts_acknowledged: u64,
    pub(crate) puts_failed: u64,
    pub(crate) puts_refused: u64,
    pub(crate) events_settled: u64,
    /// Puts without an answer that a recovery kept, and that it dropped: the interesting cases.
    pub(crate) open_kept: u64,
    pub(crate) open_dropped: u64,
}

impl Totals {
    pub(crate) fn add(&mut self, other: Totals) {
        self.puts_acknowledged += other.puts_acknowledged;
        self.puts_failed += other.puts_failed;
        self.puts_refused += other.puts_refused;
        self.events_settled += other.events_settled;
        self.open_kept += other.open_kept;
        self.open_dropped += other.open_dropped;
    }
}

/// Lives outside of what crashes.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    run: u64,
    /// By the number of the first event.
    puts: BTreeMap<u64, Put>,
    /// The first events of puts that are not over.
    live: BTreeSet<u64>,
    next_event: u64,
    failures: Vec<String>,
    pub(crate) totals: Totals,
}

impl Ledger {
    pub(crate) fn new() -> Ledger {
        Ledger::default()
    }

    /// A new run of the load begins; the answer is the number of its first event.
    pub(crate) fn start(&mut self) -> u64 {
        self.run += 1;
        self.next_event
    }

    /// Reads the facts of a load until it ends. A last line without its end was cut by the crash and says nothing.
    #[cfg(test)]
    pub(crate) fn read(&mut self, stdout: impl Read) {
        let mut lines = BufReader::new(stdout);
        let mut line = String::new();
        while lines.read_line(&mut line).is_ok_and(|length| length > 0) && line.ends_with('\n') {
            match Fact::parse(line.trim_end_matches('\n')) {
                Some(fact) => self.record(&fact),
                None => self.failures.push(format!("not a fact: {line:?}")),
            }
            line.clear();
        }
    }

    pub(crate) fn record(&mut self, fact: &Fact) {
        match fact {
            Fact::Opened => {}
            Fact::PutAsked { producer, first, count } => {
                if put_of(&mut self.puts, *first).is_some() {
                    self.failures.push(format!("event number {first} is used twice: the load is broken"));
                }
                let events = vec![EventState::Queued; *count as usize];
                let producer = (self.run, *producer);
                let put = Put { producer, acknowledged: false, state: PutState::Open, events, count: *count };
                self.puts.insert(*first, put);
                self.live.insert(*first);
                self.next_event = self.next_event.max(first + count);
            }
            Fact::PutAcknowledged { first } => {
                self.totals.puts_acknowledged += 1;
                if let Some(put) = self.asked(*first) {
                    (put.acknowledged, put.state) = (true, PutState::Kept);
                }
            }
            Fact::PutFailed { first } => {
                self.totals.puts_failed += 1;
                self.asked(*first);
            }
            Fact::PutRefused { first } => {
                self.totals.puts_refused += 1;
                if let Some(put) = self.asked(*first) {
                    let taken = put.state == PutState::Kept;
                    put.state = PutState::Absent;
                    self.live.remove(first);
                    if taken {
                        self.failures.push(format!("put {first} was refused, and its events were taken"));
                    }
                }
            }
            Fact::SettleAsked { events } => self.settle(events, EventState::SettleAsked),
            Fact::SettleAcknowledged { events } => self.settle(events, EventState::Gone),
            Fact::Wrong { what } => self.failures.push(what.clone()),
        }
    }

    fn asked(&mut self, first: u64) -> Option<&mut Put> {
        if !self.puts.contains_key(&first) {
            self.failures.push(format!("put {first} was answered and never asked: the load is broken"));
        }
        self.puts.get_mut(&first)
    }

    fn settle(&mut self, runs: &[Range<u64>], to: EventState) {
        for event in runs.iter().cloned().flatten() {
            let Some((first, put)) = put_of(&mut self.puts, event) else {
                self.failures.push(format!("event {event} was taken and never put"));
                continue;
            };
            // What a consumer was given was durable: from here on its put is whole or a promise is broken.
            if put.state == PutState::Absent {
                self.failures.push(format!("event {event} was taken, of put {first} that is known to be absent"));
                continue;
            }
            put.state = PutState::Kept;
            // The events of a put that is over are no longer listed: all of them are gone.
            let state = put.events.get((event - first) as usize).copied().unwrap_or(EventState::Gone);
            if state == EventState::Gone {
                self.failures.push(format!("event {event} was settled, acknowledged, and came again"));
                continue;
            }
            put.events[(event - first) as usize] = to;
            if to == EventState::Gone {
                self.totals.events_settled += 1;
                if put.is_over() {
                    put.events = Vec::new();
                    self.live.remove(&first);
                }
            }
        }
    }

    /// How many events must be there at least, and how many may be.
    #[cfg(test)]
    pub(crate) fn bounds(&self) -> (u64, u64) {
        let live = || self.live.iter().map(|first| &self.puts[first]);
        let queued = |put: &Put| put.events.iter().filter(|state| **state == EventState::Queued).count() as u64;
        let possible = |put: &Put| put.events.iter().filter(|state| **state != EventState::Gone).count() as u64;
        (live().filter(|put| put.state == PutState::Kept).map(queued).sum(), live().map(possible).sum())
    }

    /// Compares with `drained`, the events that a recovered channel holds, in the order in which it gave them. Says
    /// every promise that is broken, and takes what was found as the answer for later recoveries.
    pub(crate) fn check(&mut self, drained: &[u64]) -> Vec<String> {
        let mut failures = std::mem::take(&mut self.failures);
        let mut found = HashSet::with_capacity(drained.len());
        let mut last_of: HashMap<(u64, u64), u64> = HashMap::new();
        for &event in drained {
            if !found.insert(event) {
                failures.push(format!("event {event} is there twice"));
                continue;
            }
            let Some((first, put)) = put_of(&mut self.puts, event) else {
                failures.push(format!("event {event} is there and was never put"));
                continue;
            };
            if put.state == PutState::Absent {
                failures.push(format!("event {event} of put {first} is there: it was refused, or absent before"));
            } else if put.events.get((event - first) as usize).is_none_or(|state| *state == EventState::Gone) {
                failures.push(format!("event {event} of put {first} was settled, and is there again"));
            } else if put.acknowledged
                && let Some(last) = last_of.insert(put.producer, event)
                && last > event
            {
                failures.push(format!("event {event} comes after {last} of the same producer"));
            }
        }
        for first in std::mem::take(&mut self.live) {
            let put = self.puts.get_mut(&first).expect("what is live is in the books");
            let is_there: Vec<bool> = (first..first + put.count).map(|event| found.contains(&event)).collect();
            let queued = || put.events.iter().zip(&is_there).filter(|(state, _)| **state == EventState::Queued);
            let (there, of) = (queued().filter(|(_, is_there)| **is_there).count(), queued().count());
            if put.state == PutState::Open {
                // Nothing of it was ever given to a consumer, so all of its events are queued or none.
                let kept = there > 0;
                put.state = if kept { PutState::Kept } else { PutState::Absent };
                self.totals.open_kept += u64::from(kept);
                self.totals.open_dropped += u64::from(!kept);
            }
            if put.state == PutState::Kept && there < of {
                let how = if put.acknowledged { "acknowledged" } else { "kept in part, or before" };
                let lost = (first..).zip(put.events.iter().zip(&is_there));
                let lost = lost.filter(|(_, (state, is_there))| **state == EventState::Queued && !**is_there);
                let lost: Vec<u64> = lost.map(|(event, _)| event).take(8).collect();
                failures.push(format!("put {first} ({how}): {} of {of} events are missing, as {lost:?}", of - there));
            }
            for (state, is_there) in put.events.iter_mut().zip(is_there) {
                *state = if is_there { EventState::Queued } else { EventState::Gone };
            }
            if put.is_over() {
                put.events = Vec::new();
            } else {
                self.live.insert(first);
            }
        }
        failures
    }
}

/// The put that `event` belongs to, and the number of its first event.
fn put_of(puts: &mut BTreeMap<u64, Put>, event: u64) -> Option<(u64, &mut Put)> {
    let (first, put) = puts.range_mut(..=event).next_back()?;
    (event - first < put.count).then_some((*first, put))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A ledger after these lines.
    fn after(lines: &str) -> Ledger {
        let mut ledger = Ledger::new();
        ledger.start();
        ledger.read(lines.as_bytes());
        ledger
    }

    /// Puts 0..3 (acknowledged), 3..5 (open), 5..7 (refused), 7..8 (acknowledged); event 0 settled, event 1 asked.
    const LINES: &str = "opened\nput 1 0 3\nput 2 3 2\nput-ok 0\nput 1 5 2\nput-refused 5\nput 1 7 1\nput-ok 7\n\
                         settle 0..2\nsettle-ok 0..1\n";

    #[test]
    fn facts_are_lines_and_back() {
        for line in LINES.lines().chain(["put-failed 9", "settle 0..2 7..8", "wrong things happen"]) {
            assert_eq!(Fact::parse(line).map(|fact| fact.to_string()).as_deref(), Some(line));
        }
        for line in ["", "put 1 2", "put-ok", "put-ok 1 2", "settle", "settle 1-2", "settle-ok 1..", "nonsense 1"] {
            assert_eq!(Fact::parse(line), None, "{line:?}");
        }
    }

    #[test]
    fn what_was_promised_is_right_with_and_without_what_is_open() {
        let all: [&[u64]; 4] = [&[2, 7], &[1, 2, 7], &[2, 3, 4, 7], &[3, 1, 4, 2, 7]];
        for drained in all {
            assert_eq!(after(LINES).check(drained), Vec::<String>::new(), "{drained:?}");
        }
        assert_eq!(after(LINES).bounds(), (2, 5));
    }

    #[test]
    fn every_broken_promise_is_told() {
        let cases: [(&[u64], &str); 8] = [
            (&[2], "put 7 (acknowledged): 1 of 1 events are missing"),
            (&[7], "put 0 (acknowledged): 1 of 1 events are missing, as [2]"),
            (&[0, 2, 7], "event 0 of put 0 was settled, and is there again"),
            (&[2, 7, 99], "event 99 is there and was never put"),
            (&[2, 3, 7], "put 3 (kept in part, or before): 1 of 2 events are missing, as [4]"),
            (&[2, 5, 6, 7], "event 5 of put 5 is there: it was refused, or absent before"),
            (&[2, 2, 7], "event 2 is there twice"),
            (&[7, 2], "event 2 comes after 7 of the same producer"),
        ];
        for (drained, failure) in cases {
            let failures = after(LINES).check(drained);
            assert!(failures.iter().any(|text| text.contains(failure)), "{drained:?}: {failures:?}");
        }
    }

    #[test]
    fn the_answer_of_one_recovery_binds_the_next() {
        let cases: [(&[u64], &[u64]); 4] =
            [(&[2, 7], &[2, 3, 4, 7]), (&[2, 3, 4, 7], &[2, 7]), (&[1, 2, 7], &[2, 7]), (&[2, 7], &[1, 2, 7])];
        for (once, then) in cases {
            let mut ledger = after(LINES);
            assert_eq!(ledger.check(once), Vec::<String>::new());
            assert_eq!(ledger.check(once), Vec::<String>::new());
            assert_ne!(ledger.check(then), Vec::<String>::new(), "{once:?} and then {then:?}");
        }
    }

    #[test]
    fn what_a_consumer_was_given_is_no_longer_open() {
        let lines = "put 1 0 2\nsettle 0..1\n";
        assert_eq!(after(lines).check(&[1]), Vec::<String>::new());
        assert_eq!(after(lines).check(&[]).len(), 1, "half of it went to the consumer, the other half is lost");
        assert_eq!(after("put 1 0 2\nput-refused 0\nsettle 0..1\n").check(&[]).len(), 1);
        assert_eq!(after("put 1 0 1\nput-ok 0\nsettle 0..1\nsettle-ok 0..1\nsettle 0..1\n").check(&[]).len(), 1);
    }

    #[test]
    fn a_line_without_its_end_says_nothing() {
        assert_eq!(after("put 1 0 1\nput-ok 0").check(&[]), Vec::<String>::new());
        assert_eq!(after("put 1 0 1\nput-ok 0\n").check(&[]).len(), 1);
        assert_eq!(after("put 1 0 1\nwrong bytes\n").check(&[]), ["bytes"]);
    }
}
