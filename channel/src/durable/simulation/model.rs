//! What was promised, kept outside of the channel, and the comparison with what a recovery finds.

use std::collections::BTreeMap;
use std::io::Write as _;

/// Every event's body begins with this, so that it can be looked for where nothing may be in the clear.
pub(super) const SECRET: &[u8] = b"plaintext";

#[derive(Debug, Clone)]
struct Put {
    producer: usize,
    /// Its events are `first .. first + count`.
    first: u64,
    count: u64,
    known: Known,
    /// The producer heard `Ok`: only then is its place in the order promised.
    in_order: bool,
}

/// What the producer knows of its put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Known {
    /// Neither yes nor no: whole or absent.
    Open,
    Acknowledged,
    /// Refused, or found absent: it must stay away.
    Absent,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Settled {
    No,
    Asked,
    Yes,
}

#[derive(Debug, Clone)]
struct Event {
    put: usize,
    settled: Settled,
    body_len: usize,
}

/// The books of one simulation.
#[derive(Debug, Clone, Default)]
pub(super) struct Model {
    puts: Vec<Put>,
    /// Event `n` is at `n - 1`.
    events: Vec<Event>,
    /// Values of each note that a reader may find: the last one acknowledged, and those asked for after it, with their
    /// numbers. Two may be equal, and be acknowledged in any order.
    notes: BTreeMap<String, Vec<(u64, Option<u64>)>>,
    notes_asked: u64,
}

pub(super) fn body_of(event: u64, padding: usize) -> Vec<u8> {
    let mut body = [SECRET, format!(" {event} ").as_bytes()].concat();
    body.resize(body.len() + padding, b'.');
    body
}

/// Whether this is the body of the event, whatever its padding. Asked more often than anything else, so without memory of
/// its own.
fn is_body_of(event: u64, body: &[u8]) -> bool {
    let mut head = [0; 32];
    let mut rest = &mut head[..];
    write!(rest, " {event} ").expect("a number has 20 digits");
    let unused = rest.len();
    let head = &head[..head.len() - unused];
    let padding = body.strip_prefix(SECRET).and_then(|rest| rest.strip_prefix(head));
    padding.is_some_and(|padding| padding.iter().all(|byte| *byte == b'.'))
}

impl Model {
    /// Notes a put of events with these paddings; returns its number and the number of its first event.
    pub(super) fn put(&mut self, producer: usize, paddings: &[usize]) -> (usize, u64) {
        let (number, first) = (self.puts.len(), self.events.len() as u64 + 1);
        for (event, padding) in (first..).zip(paddings) {
            let body_len = body_of(event, *padding).len();
            self.events.push(Event { put: number, settled: Settled::No, body_len });
        }
        self.puts.push(Put { producer, first, count: paddings.len() as u64, known: Known::Open, in_order: false });
        (number, first)
    }

    /// The producer hears; returns how many events that concerns.
    pub(super) fn answer(&mut self, put: usize, known: Known) -> u64 {
        self.puts[put].known = known;
        self.puts[put].in_order = known == Known::Acknowledged;
        self.puts[put].count
    }

    pub(super) fn settle(&mut self, events: &[u64], settled: Settled) {
        for event in events {
            self.events[*event as usize - 1].settled = settled;
        }
    }

    /// The number of what was asked for.
    pub(super) fn note_asked(&mut self, key: &str, value: Option<u64>) -> u64 {
        self.notes_asked += 1;
        self.notes.entry(key.to_owned()).or_insert_with(|| vec![(0, None)]).push((self.notes_asked, value));
        self.notes_asked
    }

    pub(super) fn note_done(&mut self, key: &str, number: u64) {
        if let Some(possible) = self.notes.get_mut(key)
            && let Some(place) = possible.iter().position(|(asked, _)| *asked == number)
        {
            possible.drain(..place);
        }
    }

    /// An event came out: it must have been put, be whole, and not be settled for good.
    pub(super) fn seen(&self, event: u64, body: &[u8]) -> Result<(), String> {
        let Some(Event { put, settled, body_len }) = event.checked_sub(1).and_then(|at| self.events.get(at as usize))
        else {
            return Err(format!("event {event} was never put"));
        };
        if body.len() != *body_len || !is_body_of(event, body) {
            return Err(format!("event {event} came back with another body"));
        }
        if *settled == Settled::Yes {
            return Err(format!("event {event} comes again although its settlement was acknowledged"));
        }
        if self.puts[*put].known == Known::Absent {
            return Err(format!("event {event} comes although its put was refused or found absent"));
        }
        Ok(())
    }

    /// Compares with everything that a recovery holds, in the order of the queue. Every event was `seen` already.
    pub(super) fn compare(&mut self, found: &[u64], notes: &[(String, Option<u64>)]) -> Result<(), String> {
        self.compare_notes(notes)?;
        let mut present = vec![false; self.events.len()];
        let mut newest: BTreeMap<usize, u64> = BTreeMap::new();
        for event in found {
            let at = *event as usize - 1;
            if std::mem::replace(&mut present[at], true) {
                return Err(format!("event {event} comes twice"));
            }
            let put = &self.puts[self.events[at].put];
            if put.in_order
                && let Some(before) = newest.insert(put.producer, *event)
                && before > *event
            {
                return Err(format!("events {before} and {event} of producer {} changed places", put.producer));
            }
        }
        for put in &mut self.puts {
            let events = put.first as usize - 1..(put.first + put.count) as usize - 1;
            if put.known == Known::Open {
                let any = present[events.clone()].iter().any(|there| *there);
                let settled = self.events[events.clone()].iter().any(|event| event.settled != Settled::No);
                // Whether it survived is known from now on, and stays so. Events that were settled were durable.
                put.known = if any || settled { Known::Acknowledged } else { Known::Absent };
            }
            if put.known == Known::Absent {
                continue;
            }
            for at in events {
                let event = &mut self.events[at];
                match (event.settled, present[at]) {
                    (Settled::No, false) => {
                        return Err(format!(
                            "event {} is lost; its put {} was acknowledged or half there",
                            at + 1,
                            put.first
                        ));
                    }
                    // It survived its settlement once, so it must not vanish later.
                    (Settled::Asked, true) => event.settled = Settled::No,
                    (Settled::Asked, false) => event.settled = Settled::Yes,
                    _ => {}
                }
            }
        }
        Ok(())
    }

    fn compare_notes(&mut self, notes: &[(String, Option<u64>)]) -> Result<(), String> {
        for (key, value) in notes {
            let possible = self.notes.get(key).ok_or_else(|| format!("note {key} was never written"))?;
            if !possible.iter().any(|(_, possible)| possible == value) {
                return Err(format!("note {key} is {value:?} instead of one of {possible:?}"));
            }
        }
        for (key, possible) in &mut self.notes {
            let value = notes.iter().find(|(found, _)| found == key).and_then(|(_, value)| *value);
            if !possible.iter().any(|(_, possible)| *possible == value) {
                return Err(format!("note {key} is gone"));
            }
            // What a recovery found is what every later one finds.
            *possible = vec![(0, value)];
        }
        Ok(())
    }

    /// Once everything was taken and settled: nothing that was acknowledged may be missing. A settlement whose answer was
    /// an error may have come about all the same.
    pub(super) fn nothing_is_left(&self) -> Result<(), String> {
        let is_left = |event: &Event| self.puts[event.put].known == Known::Acknowledged && event.settled == Settled::No;
        let left = self.events.iter().position(is_left);
        left.map_or(Ok(()), |at| Err(format!("acknowledged event {} never came out", at + 1)))
    }
}
