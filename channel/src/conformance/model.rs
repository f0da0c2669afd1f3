//! A channel beside a model of it that is too simple to be wrong.
//!
//! The model is a list of events in order, each queued, leased or gone. It checks what the channel answers to every
//! step and asks for its books in between; where a channel may choose (how much a take leases) the model follows.

use super::*;
use crate::Outcome;

/// Something a caller may do. Numbers that choose are taken modulo what there is, so that any sequence is a test.
#[derive(Debug, Clone)]
pub enum Step {
    /// Puts so many events, which may be more than fit.
    Put { events: u8 },
    /// Takes by a consumer.
    Take { consumer: u8, events: u8, bytes: u16 },
    /// Settles so many of the consumer's leased events, from the one chosen on, every `stride`-th of them.
    Settle { consumer: u8, from: u8, events: u8, stride: u8, outcome: u8 },
    /// Settles events that another consumer has, or nobody.
    SettleWrongly { consumer: u8, event: u8 },
    /// Drops a consumer; the next take has a new one.
    DropConsumer { consumer: u8 },
    /// Closes and opens a durable channel; nothing on another one.
    Reopen,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Status {
    Queued,
    Leased(usize),
}

/// An event that is not gone.
struct Event {
    seq: u64,
    body: Vec<u8>,
    status: Status,
}

const CONSUMERS: usize = 3;
const SETUP: Setup = Setup { capacity: 40, transaction_capacity: 12, keep_alive: Duration::ZERO };

/// Takes `steps` on a channel that `make` creates, empty, and on the model.
///
/// # Panics
/// With the number of the step at which the channel and the model differ.
pub fn check_steps(make: Make<'_>, steps: &[Step]) {
    run(make(SETUP), None, steps);
}

/// As [`check_steps`], for a durable channel: [`Step::Reopen`] closes and opens it.
///
/// # Panics
/// With the number of the step at which the channel and the model differ.
pub fn check_durable_steps(make: MakePlace<'_>, steps: &[Step]) {
    let place = make(SETUP);
    run(place.open(), Some(&*place), steps);
}

fn run(channel: Box<dyn Channel>, place: Option<&dyn Place>, steps: &[Step]) {
    let mut pair = Pair {
        channel: Some(channel),
        consumers: [const { None }; CONSUMERS],
        events: Vec::new(),
        next_body: 0,
        settled: 0,
    };
    for (index, step) in steps.iter().enumerate() {
        let context = format!("step {index}, {step:?}");
        match (step, place) {
            (Step::Reopen, Some(place)) => pair.reopen(place),
            _ => pair.step(step, &context),
        }
        pair.check_books(&context);
    }
    pair.drain();
}

struct Pair {
    /// `None` only while it is opened again.
    channel: Option<Box<dyn Channel>>,
    consumers: [Option<Box<dyn Consumer>>; CONSUMERS],
    /// What is not gone, in order of sequence.
    events: Vec<Event>,
    next_body: u64,
    /// Gone since the channel was opened.
    settled: u64,
}

impl Pair {
    fn channel(&self) -> &dyn Channel {
        self.channel.as_deref().expect("the channel is open")
    }

    fn consumer(&mut self, index: usize) -> &mut dyn Consumer {
        let channel = self.channel.as_deref().expect("the channel is open");
        &mut **self.consumers[index].get_or_insert_with(|| channel.consumer("model"))
    }

    fn step(&mut self, step: &Step, context: &str) {
        match *step {
            Step::Put { events } => self.put(usize::from(events), context),
            Step::Take { consumer, events, bytes } => {
                let limits = TakeLimits { events: 1 + usize::from(events), bytes: usize::from(bytes) };
                self.take(usize::from(consumer) % CONSUMERS, limits, context);
            }
            Step::Settle { consumer, from, events, stride, outcome } => {
                let consumer = usize::from(consumer) % CONSUMERS;
                let leased = self.leased(consumer);
                if leased.is_empty() {
                    return;
                }
                let chosen = leased.iter().copied().skip(usize::from(from) % leased.len());
                let chosen: Vec<u64> =
                    chosen.step_by(1 + usize::from(stride) % 3).take(usize::from(events).max(1)).collect();
                let outcome = match outcome % 4 {
                    0 | 1 => Outcome::Delivered,
                    2 => Outcome::Returned,
                    _ => Outcome::Dropped { reason: "the model says so".to_owned() },
                };
                self.settle(consumer, &chosen, outcome, context);
            }
            Step::SettleWrongly { consumer, event } => {
                let consumer = usize::from(consumer) % CONSUMERS;
                let mut seqs = self.leased(consumer);
                let others: Vec<u64> =
                    self.events.iter().map(|event| event.seq).filter(|seq| !seqs.contains(seq)).collect();
                let nobodys = self.events.last().map_or(0, |event| event.seq + 1);
                // A wrong one among right ones, at either end.
                seqs.push(others.get(usize::from(event) % others.len().max(1)).copied().unwrap_or(nobodys));
                let result = answer(self.consumer(consumer).settle(vec![Settlement::delivered(singles(seqs))]));
                assert!(matches!(result, Err(SettleError::NotLeased(_))), "{context}: {result:?}");
            }
            Step::DropConsumer { consumer } => {
                let consumer = usize::from(consumer) % CONSUMERS;
                self.consumers[consumer] = None;
                self.requeue(|status| status == Status::Leased(consumer));
                let leased = self.events.iter().filter(|event| event.status != Status::Queued).count() as u64;
                let channel = self.channel();
                until("a dropped consumer returns its leases", || channel.stats().leased_events == leased);
            }
            Step::Reopen => {}
        }
    }

    fn put(&mut self, events: usize, context: &str) {
        let bodies: Vec<Vec<u8>> = (self.next_body..self.next_body + events as u64)
            .map(|number| vec![number as u8; (number * 37 % 150) as usize])
            .collect();
        let result = answer(self.channel().producer().put(batch(&bodies)));
        if events > SETUP.transaction_capacity {
            assert!(matches!(result, Err(PutError::TooManyEvents { .. })), "{context}: {result:?}");
        } else if self.events.len() + events > SETUP.capacity {
            assert!(matches!(result, Err(PutError::Full { .. })), "{context}: {result:?}");
        } else {
            let range = result.unwrap_or_else(|error| panic!("{context}: {error}")).range;
            let seqs = range.map_or(0..0, |range| range.start..range.end);
            let newest = self.events.last().map_or(0, |event| event.seq);
            assert_eq!(range.map_or(0, SeqRange::count), events as u64, "{context}");
            assert!(seqs.is_empty() || self.events.is_empty() || seqs.start > newest, "{context}: {seqs:?}");
            self.next_body += events as u64;
            self.events.extend(seqs.zip(bodies).map(|(seq, body)| Event { seq, body, status: Status::Queued }));
        }
    }

    fn take(&mut self, consumer: usize, limits: TakeLimits, context: &str) {
        let queued: Vec<usize> =
            (0..self.events.len()).filter(|&index| self.events[index].status == Status::Queued).collect();
        // Where events are queued a take must find one, however long it has to look.
        let wait = if queued.is_empty() { Duration::ZERO } else { FOREVER };
        let lease = answer(self.consumer(consumer).take(limits, wait)).expect("the channel is open");
        let count = lease.event_count();
        assert_eq!(count == 0, queued.is_empty(), "{context}");
        assert!(count <= limits.events.min(SETUP.transaction_capacity), "{context}: {count} events");
        let bytes: usize = lease.iter().map(|(_, event)| event.body().len()).sum();
        assert!(count <= 1 || bytes <= limits.bytes, "{context}: {bytes} bytes");
        assert!(count <= queued.len(), "{context}: {count} events of {}", queued.len());
        for ((seq, event), index) in lease.iter().zip(queued) {
            let expected = &mut self.events[index];
            assert_eq!((seq, event.body()), (expected.seq, expected.body.as_slice()), "{context}");
            expected.status = Status::Leased(consumer);
        }
    }

    fn settle(&mut self, consumer: usize, seqs: &[u64], outcome: Outcome, context: &str) {
        let settlement = Settlement::new(singles(seqs.iter().copied()), outcome.clone());
        let result = answer(self.consumer(consumer).settle(vec![settlement]));
        assert_eq!(result, Ok(()), "{context}");
        if outcome == Outcome::Returned {
            for event in self.events.iter_mut().filter(|event| seqs.contains(&event.seq)) {
                event.status = Status::Queued;
            }
        } else {
            self.settled += seqs.len() as u64;
            self.events.retain(|event| !seqs.contains(&event.seq));
        }
    }

    fn reopen(&mut self, place: &dyn Place) {
        self.consumers = [const { None }; CONSUMERS];
        answer(self.channel().close()).expect("it closes");
        // Gone before the next one comes, as its files are.
        self.channel = None;
        self.channel = Some(place.open());
        self.requeue(|_| true);
        self.settled = 0;
    }

    fn requeue(&mut self, which: impl Fn(Status) -> bool) {
        for event in self.events.iter_mut().filter(|event| which(event.status)) {
            event.status = Status::Queued;
        }
    }

    fn leased(&self, consumer: usize) -> Vec<u64> {
        let mine = self.events.iter().filter(|event| event.status == Status::Leased(consumer));
        mine.map(|event| event.seq).collect()
    }

    fn check_books(&self, context: &str) {
        let stats = self.channel().stats();
        let leased = self.events.iter().filter(|event| event.status != Status::Queued).count();
        let settled = stats.take_success_events + stats.dead_lettered_events + stats.dropped_events;
        assert_eq!(
            (stats.size_events, stats.leased_events, settled),
            (self.events.len() as u64, leased as u64, self.settled),
            "{context}: {stats:?}"
        );
    }

    /// Everything that is left comes out, once, in order.
    fn drain(&mut self) {
        self.consumers = [const { None }; CONSUMERS];
        self.requeue(|_| true);
        while !self.events.is_empty() {
            self.take(0, ALL, "at the end");
            let leased = self.leased(0);
            self.settle(0, &leased, Outcome::Delivered, "at the end");
        }
        assert_empty(self.consumer(0));
    }
}
