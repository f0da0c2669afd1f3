//! What every channel must do, as a suite that any implementation can run (feature `conformance`).
//!
//! [`check`] is for all channels, [`check_durable`] adds what survives a restart; [`check_steps`] and
//! [`check_durable_steps`] compare a channel with a plain model over any sequence of [`Step`]s, which a caller may
//! generate. They promise to use
//! nothing but the [`Channel`] trait, to leave a channel room for its own choices (a take may lease less than it could;
//! where numbers start), and to end: every wait has a limit. They panic with the names of the stories that fail.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::{
    Channel, ChannelStats, Consumer, EventBatch, EventRef, Lease, Producer, PutError, PutReceipt, SeqRange,
    SettleError, Settlement, TakeLimits, Ticket,
};

mod basics;
mod leases;
mod model;
mod reopen;
mod waits;

pub use model::{Step, check_durable_steps, check_steps};

/// What the suite asks of a channel under test; all else is the maker's choice, but generous: bytes of any kind must
/// not run out, and notes are few.
#[derive(Debug, Clone, Copy)]
pub struct Setup {
    pub capacity: usize,
    pub transaction_capacity: usize,
    pub keep_alive: Duration,
}

impl Setup {
    /// Room for `capacity` events, also in one transaction, and no wait for more.
    fn of(capacity: usize) -> Setup {
        Setup { capacity, transaction_capacity: capacity, keep_alive: Duration::ZERO }
    }
}

/// Where a durable channel lives.
pub trait Place: Send + Sync {
    /// Opens the channel that is there, or a new one. The earlier one is closed.
    fn open(&self) -> Box<dyn Channel>;
}

type Make<'a> = &'a dyn Fn(Setup) -> Box<dyn Channel>;
type MakePlace<'a> = &'a dyn Fn(Setup) -> Box<dyn Place>;

/// Longest wait for an answer that must come. Reaching it is a failure, so it costs nothing to be patient.
const LIMIT: Duration = Duration::from_secs(60);

/// A `keep-alive` or wait that no story reaches the end of.
const FOREVER: Duration = Duration::from_secs(3600);

/// Checks a channel that `make` creates, empty, once per story.
pub fn check(make: Make<'_>) {
    let stories = [basics::STORIES, leases::STORIES, waits::STORIES].concat();
    run(&stories, |story| story(make));
}

/// Checks a durable channel: all of [`check`], and what must survive. `make` creates an empty place per story.
pub fn check_durable(make: MakePlace<'_>) {
    check(&|setup| {
        let place = make(setup);
        Box::new(Placed { channel: place.open(), _place: place })
    });
    run(reopen::STORIES, |story| story(make));
}

type Story = fn(Make<'_>);

fn run<S: Copy>(stories: &[(&'static str, S)], tell: impl Fn(S)) {
    let mut failed = Vec::new();
    for &(name, story) in stories {
        eprintln!("channel conformance: {name}");
        if catch_unwind(AssertUnwindSafe(|| tell(story))).is_err() {
            failed.push(name);
        }
    }
    assert!(failed.is_empty(), "{} of {} stories failed: {failed:?}", failed.len(), stories.len());
}

/// A channel that keeps its place as long as it lives.
struct Placed {
    channel: Box<dyn Channel>,
    // Dropped after the channel.
    _place: Box<dyn Place>,
}

impl Channel for Placed {
    fn producer(&self) -> Box<dyn Producer> {
        self.channel.producer()
    }

    fn consumer(&self, name: &str) -> Box<dyn Consumer> {
        self.channel.consumer(name)
    }

    fn notes(&self, owner: &str) -> Vec<(String, Bytes)> {
        self.channel.notes(owner)
    }

    fn is_durable(&self) -> bool {
        self.channel.is_durable()
    }

    fn transaction_capacity(&self) -> usize {
        self.channel.transaction_capacity()
    }

    fn stats(&self) -> ChannelStats {
        self.channel.stats()
    }

    fn close(&self) -> Ticket<Result<(), String>> {
        self.channel.close()
    }
}

/// The answer of a ticket that must be answered.
#[track_caller]
fn answer<T>(ticket: Ticket<T>) -> T {
    match ticket.wait_for(LIMIT) {
        Ok(answer) => answer,
        Err(_) => panic!("no answer within {LIMIT:?}"),
    }
}

/// The ticket, which must not be answered yet.
#[track_caller]
fn unanswered<T: std::fmt::Debug>(ticket: Ticket<T>) -> Ticket<T> {
    match ticket.try_take() {
        Ok(answer) => panic!("answered too early: {answer:?}"),
        Err(ticket) => ticket,
    }
}

/// Polls until `done` says so.
#[track_caller]
fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + LIMIT;
    while !done() {
        assert!(Instant::now() < end, "not within {LIMIT:?}: {what}");
        std::thread::yield_now();
    }
}

fn batch<B: AsRef<[u8]>>(bodies: impl IntoIterator<Item = B>) -> EventBatch {
    let mut batch = EventBatch::new();
    for body in bodies {
        batch.push_body(body.as_ref());
    }
    batch
}

/// A batch whose bodies are the numbers of `range`.
fn numbers(range: std::ops::Range<u64>) -> EventBatch {
    batch(range.map(|number| number.to_string()))
}

/// Puts the numbers of `range`, which must fit.
#[track_caller]
fn put(producer: &mut dyn Producer, range: std::ops::Range<u64>) -> PutReceipt {
    let count = range.end - range.start;
    let receipt = answer(producer.put(numbers(range))).expect("the events fit");
    assert_eq!(receipt.range.map_or(0, SeqRange::count), count, "one sequence number per event");
    receipt
}

#[track_caller]
fn assert_full(result: Result<PutReceipt, PutError>) {
    match result {
        Err(PutError::Full { channel, detail }) => {
            assert!(!channel.is_empty() && !detail.is_empty(), "a refusal names its channel and its reason");
        }
        other => panic!("the channel is full, and the put was answered {other:?}"),
    }
}

const ALL: TakeLimits = TakeLimits { events: usize::MAX, bytes: usize::MAX };

fn at_most(events: usize) -> TakeLimits {
    TakeLimits { events, bytes: usize::MAX }
}

/// One take that must find something.
#[track_caller]
fn take(consumer: &mut dyn Consumer, limits: TakeLimits) -> Lease {
    let lease = answer(consumer.take(limits, FOREVER)).expect("the channel is open");
    assert!(!lease.is_empty(), "an empty lease says that the wait is over, and it is not");
    assert!(lease.event_count() <= limits.events, "{} events for {limits:?}", lease.event_count());
    assert!(lease.slices.iter().all(|slice| !slice.events.is_empty()), "slices hold events");
    lease
}

/// As many takes as it needs to lease exactly `count` events.
#[track_caller]
fn take_exactly(consumer: &mut dyn Consumer, count: usize) -> Lease {
    let mut all = Lease::default();
    while all.event_count() < count {
        all.slices.extend(take(consumer, at_most(count - all.event_count())).slices);
    }
    all
}

#[track_caller]
fn assert_empty(consumer: &mut dyn Consumer) {
    let lease = answer(consumer.take(ALL, Duration::ZERO)).expect("the channel is open");
    assert!(lease.is_empty(), "nothing should be queued, and {:?} was", lease.ranges());
}

/// The numbers of a lease of [`numbers`].
#[track_caller]
fn taken(lease: &Lease) -> Vec<u64> {
    let parse = |body| std::str::from_utf8(body).expect("a number").parse().expect("a number");
    lease.iter().map(|(_, event)| parse(event.body())).collect()
}

fn seqs(lease: &Lease) -> Vec<u64> {
    lease.iter().map(|(seq, _)| seq).collect()
}

/// One range per event.
fn singles(seqs: impl IntoIterator<Item = u64>) -> Vec<SeqRange> {
    seqs.into_iter().map(|seq| SeqRange::new(seq, seq + 1)).collect()
}

#[track_caller]
fn settle(consumer: &mut dyn Consumer, settlement: Settlement) {
    answer(consumer.settle(vec![settlement])).expect("the events are leased");
}

#[track_caller]
fn deliver(consumer: &mut dyn Consumer, lease: &Lease) {
    settle(consumer, Settlement::delivered(lease.ranges()));
}

#[track_caller]
fn assert_not_leased(result: Result<(), SettleError>) {
    assert!(matches!(result, Err(SettleError::NotLeased(_))), "{result:?}");
}

/// The books of a channel whose callers all have their answers: nothing is lost or made up.
#[track_caller]
fn assert_balanced(channel: &dyn Channel, size: u64, leased: u64) {
    let stats = channel.stats();
    assert_eq!((stats.size_events, stats.leased_events), (size, leased), "{stats:?}");
    let settled = stats.take_success_events + stats.dead_lettered_events + stats.dropped_events;
    assert_eq!(stats.put_success_events, settled + stats.size_events, "{stats:?}");
    assert!(stats.put_attempt_events >= stats.put_success_events, "{stats:?}");
    assert!(stats.fill_percent >= 100.0 * size as f64 / stats.capacity_events as f64, "{stats:?}");
}

/// The headers of an event, in one order.
fn headers(event: EventRef<'_>) -> BTreeMap<String, String> {
    event.headers().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}
