//! The memory channel as a machine: puts, takes, settlements and time go in, answers come out.
//!
//! Promises that what is queued, leased or waiting is bounded, that events leave in the order of their sequence
//! numbers, and that a refused call changes nothing. It never blocks, reads no clock and wakes nobody: its shell
//! (`memory.rs`) holds the lock, brings the time, and gives the [`Answers`] once the lock is free.
//!
//! ```text
//! waiting puts ──space──► queued ──take──► leased by one consumer ──settle──► gone
//!                            ▲──────────────── returned ───────┘
//! ```

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::{Duration, Instant};

use super::limits::{self, Limits};
use super::pieces::{Pieces, check_leased, cut_out, events_within};
use crate::api::{ChannelStats, Lease, LeasedSlice, PutError, PutReceipt, TakeError, TakeLimits};
use crate::event::EventSlice;
use crate::settlement::{Outcome, SeqRange, SettleError, Settlement};
use crate::ticket::TicketSender;

/// Who holds a lease.
pub(super) type ConsumerId = u64;

type PutSender = TicketSender<Result<PutReceipt, PutError>>;
type TakeSender = TicketSender<Result<Lease, TakeError>>;

/// A transaction on its way in, measured.
pub(super) struct Arrival {
    events: EventSlice,
    /// `slots_until[i]` is the sum of Flume's slots of the events `0..=i`.
    slots_until: Vec<u32>,
}

impl Arrival {
    pub(super) fn new(events: EventSlice) -> Arrival {
        let mut sum = 0u32;
        let slots_until = events
            .iter()
            .map(|event| {
                sum += limits::slots_of(event.body().len());
                sum
            })
            .collect();
        Arrival { events, slots_until }
    }

    fn slots(&self) -> u64 {
        self.slots_until.last().copied().map_or(0, u64::from)
    }

    fn bytes(&self) -> usize {
        bytes_held(&self.events)
    }
}

/// What the shell owes to the callers.
#[derive(Default)]
pub(super) struct Answers {
    puts: Vec<(PutSender, Result<PutReceipt, PutError>)>,
    takes: Vec<(TakeSender, Result<Lease, TakeError>)>,
}

impl Answers {
    /// Wakes the callers; not under the lock, since a waker may run anything.
    pub(super) fn give(self) {
        for (sender, answer) in self.puts {
            sender.resolve(answer);
        }
        for (sender, answer) in self.takes {
            sender.resolve(answer);
        }
    }
}

struct WaitingPut {
    arrival: Arrival,
    /// `None` waits without an end.
    deadline: Option<Instant>,
    sender: PutSender,
}

struct WaitingTake {
    consumer: ConsumerId,
    limits: TakeLimits,
    deadline: Option<Instant>,
    sender: TakeSender,
}

/// A committed transaction of which events are left.
struct Transaction {
    events: usize,
    events_left: usize,
    /// As in [`Arrival`]; gone once few events are left, whose slots are then counted one by one.
    slots_until: Option<Vec<u32>>,
    /// Bytes of the events that are left; `bytes_left <= bytes_held`.
    bytes_left: usize,
    /// Bytes that its pieces keep in memory.
    bytes_held: usize,
}

impl Transaction {
    /// The slots of `piece`, whose first event is the one at `index`.
    fn slots(&self, index: usize, piece: &EventSlice) -> u64 {
        let Some(slots_until) = &self.slots_until else {
            return piece.iter().map(|event| u64::from(limits::slots_of(event.body().len()))).sum();
        };
        let before = if index == 0 { 0 } else { slots_until[index - 1] };
        u64::from(slots_until[index + piece.len() - 1] - before)
    }
}

pub(super) struct Queue {
    limits: Limits,
    next_seq: u64,
    /// Every queued or leased event belongs to exactly one of them.
    transactions: BTreeMap<u64, Transaction>,
    queued: Pieces,
    leased: HashMap<ConsumerId, Pieces>,
    /// `queued_events + leased_events <= limits.capacity`
    queued_events: usize,
    leased_events: usize,
    slots_used: u64,
    bytes_held: usize,
    puts: VecDeque<WaitingPut>,
    /// Bytes of `puts`.
    bytes_waiting: usize,
    takes: VecDeque<WaitingTake>,
    counters: ChannelStats,
    closed: bool,
}

impl Queue {
    pub(super) fn new(limits: Limits) -> Queue {
        Queue {
            limits,
            next_seq: 0,
            transactions: BTreeMap::new(),
            queued: Pieces::new(),
            leased: HashMap::new(),
            queued_events: 0,
            leased_events: 0,
            slots_used: 0,
            bytes_held: 0,
            puts: VecDeque::new(),
            bytes_waiting: 0,
            takes: VecDeque::new(),
            counters: ChannelStats::default(),
            closed: false,
        }
    }

    /// Takes `arrival` in, lets it wait for space, or refuses it.
    pub(super) fn put(&mut self, now: Instant, arrival: Arrival, sender: PutSender, answers: &mut Answers) {
        let (events, bytes) = (arrival.events.len(), arrival.bytes());
        self.counters.put_attempt_events += events as u64;
        let refusal =
            if self.closed { Some(PutError::Closed) } else { self.limits.refusal(events, arrival.slots(), bytes) };
        if let Some(error) = refusal {
            answers.puts.push((sender, Err(error)));
            return;
        }
        if events == 0 {
            answers.puts.push((sender, Ok(PutReceipt { range: None })));
            return;
        }
        // Whoever came first is served first, also where the newcomer alone would fit.
        if self.puts.is_empty() && self.fits(&arrival) {
            let range = self.commit(arrival);
            answers.puts.push((sender, Ok(PutReceipt { range: Some(range) })));
            self.serve_takes(answers);
            return;
        }
        let room_to_wait = self.puts.len() < limits::WAITING_PUTS_MAX
            && (self.puts.is_empty() || self.bytes_waiting + bytes <= limits::WAITING_PUT_BYTES_MAX);
        if self.limits.keep_alive.is_zero() || !room_to_wait {
            let error = self.full(&arrival);
            answers.puts.push((sender, Err(error)));
            return;
        }
        self.bytes_waiting += bytes;
        self.puts.push_back(WaitingPut { arrival, deadline: now.checked_add(self.limits.keep_alive), sender });
    }

    /// Leases what is there, or waits for the first event.
    pub(super) fn take(
        &mut self,
        now: Instant,
        consumer: ConsumerId,
        mut limits: TakeLimits,
        wait: Duration,
        sender: TakeSender,
        answers: &mut Answers,
    ) {
        limits.events = limits.events.min(self.limits.transaction_capacity);
        if self.closed {
            answers.takes.push((sender, Err(TakeError::Closed)));
        } else if self.queued_events > 0 || wait.is_zero() || limits.events == 0 {
            let lease = self.lease(consumer, limits);
            answers.takes.push((sender, Ok(lease)));
        } else if self.takes.len() >= limits::WAITING_TAKES_MAX {
            answers.takes.push((sender, Ok(Lease::default())));
        } else {
            self.takes.push_back(WaitingTake { consumer, limits, deadline: now.checked_add(wait), sender });
        }
    }

    /// All of `settlements` or nothing.
    pub(super) fn settle(
        &mut self,
        consumer: ConsumerId,
        settlements: &[Settlement],
        answers: &mut Answers,
    ) -> Result<(), SettleError> {
        if self.closed {
            return Err(SettleError::Closed);
        }
        limits::check_notes(settlements.iter().flat_map(|settlement| &settlement.notes))?;
        let mut empty = Pieces::new();
        let leased = self.leased.get_mut(&consumer).unwrap_or(&mut empty);
        check_leased(leased, settlements)?;
        // Nothing can fail from here on.
        let mut gone = Vec::new();
        for settlement in settlements {
            for &range in &settlement.ranges {
                let pieces = cut_out(leased, range);
                let count = range.count();
                self.leased_events -= count as usize;
                match &settlement.outcome {
                    Outcome::Returned => {
                        self.queued_events += count as usize;
                        self.queued.extend(pieces);
                        continue;
                    }
                    Outcome::Delivered => self.counters.take_success_events += count,
                    Outcome::DeadLettered { .. } => self.counters.dead_lettered_events += count,
                    Outcome::Dropped { .. } => self.counters.dropped_events += count,
                }
                gone.extend(pieces);
            }
        }
        self.forget(gone);
        self.admit_puts(answers);
        self.serve_takes(answers);
        Ok(())
    }

    /// Returns everything that `consumer` has leased and ends its waits.
    pub(super) fn remove_consumer(&mut self, consumer: ConsumerId, answers: &mut Answers) {
        let returned = self.leased.remove(&consumer).unwrap_or_default();
        let count: usize = returned.values().map(EventSlice::len).sum();
        self.leased_events -= count;
        self.queued_events += count;
        self.queued.extend(returned);
        // A lease for somebody who is gone would hold its events for ever.
        for take in std::mem::take(&mut self.takes) {
            if take.consumer == consumer {
                answers.takes.push((take.sender, Ok(Lease::default())));
            } else {
                self.takes.push_back(take);
            }
        }
        self.serve_takes(answers);
    }

    /// Ends the waits whose deadline has come, or all that have one without a `now`.
    pub(super) fn expire(&mut self, now: Option<Instant>, answers: &mut Answers) {
        let over = |deadline: Option<Instant>| match (deadline, now) {
            (Some(deadline), Some(now)) => deadline <= now,
            (Some(_), None) => true,
            (None, _) => false,
        };
        // All puts wait equally long, so the first to come is the first to give up.
        while let Some(put) = self.puts.pop_front_if(|put| over(put.deadline)) {
            self.bytes_waiting -= put.arrival.bytes();
            let error = self.full(&put.arrival);
            answers.puts.push((put.sender, Err(error)));
        }
        for take in std::mem::take(&mut self.takes) {
            if over(take.deadline) {
                self.counters.take_attempts += 1;
                answers.takes.push((take.sender, Ok(Lease::default())));
            } else {
                self.takes.push_back(take);
            }
        }
        // A put that gave up may have been in the way of smaller ones.
        self.admit_puts(answers);
        self.serve_takes(answers);
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let first_put = self.puts.front().and_then(|put| put.deadline);
        self.takes.iter().filter_map(|take| take.deadline).chain(first_put).min()
    }

    pub(super) fn close(&mut self, answers: &mut Answers) {
        self.closed = true;
        self.bytes_waiting = 0;
        answers.puts.extend(self.puts.drain(..).map(|put| (put.sender, Err(PutError::Closed))));
        answers.takes.extend(self.takes.drain(..).map(|take| (take.sender, Err(TakeError::Closed))));
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    pub(super) fn stats(&self) -> ChannelStats {
        let size = self.queued_events + self.leased_events;
        let fill_events = size as f64 / self.limits.capacity as f64;
        let fill_slots = self.slots_used as f64 / self.limits.slots as f64;
        let fill_bytes = self.bytes_held as f64 / self.limits.bytes as f64;
        ChannelStats {
            size_events: size as u64,
            capacity_events: self.limits.capacity as u64,
            fill_percent: 100.0 * fill_events.max(fill_slots).max(fill_bytes),
            leased_events: self.leased_events as u64,
            ..self.counters.clone()
        }
    }

    fn fits(&self, arrival: &Arrival) -> bool {
        self.fits_bytes(arrival)
            && self.queued_events + self.leased_events + arrival.events.len() <= self.limits.capacity
    }

    fn fits_bytes(&self, arrival: &Arrival) -> bool {
        self.slots_used + arrival.slots() <= self.limits.slots && self.bytes_held + arrival.bytes() <= self.limits.bytes
    }

    fn full(&self, arrival: &Arrival) -> PutError {
        let detail = if self.fits_bytes(arrival) { limits::NO_SPACE.to_owned() } else { self.limits.no_bytes() };
        PutError::Full { channel: self.limits.channel.clone(), detail }
    }

    fn commit(&mut self, arrival: Arrival) -> SeqRange {
        let (events, bytes, slots) = (arrival.events.len(), arrival.bytes(), arrival.slots());
        let range = SeqRange::new(self.next_seq, self.next_seq + events as u64);
        self.next_seq = range.end;
        self.slots_used += slots;
        self.bytes_held += bytes;
        self.queued_events += events;
        self.counters.put_success_events += events as u64;
        let transaction = Transaction {
            events,
            events_left: events,
            slots_until: Some(arrival.slots_until),
            bytes_left: bytes,
            bytes_held: bytes,
        };
        self.transactions.insert(range.start, transaction);
        self.queued.insert(range.start, arrival.events);
        range
    }

    fn admit_puts(&mut self, answers: &mut Answers) {
        while let Some(put) = self.puts.pop_front() {
            if !self.fits(&put.arrival) {
                self.puts.push_front(put);
                return;
            }
            self.bytes_waiting -= put.arrival.bytes();
            let range = self.commit(put.arrival);
            answers.puts.push((put.sender, Ok(PutReceipt { range: Some(range) })));
        }
    }

    fn serve_takes(&mut self, answers: &mut Answers) {
        while self.queued_events > 0
            && let Some(take) = self.takes.pop_front()
        {
            let lease = self.lease(take.consumer, take.limits);
            answers.takes.push((take.sender, Ok(lease)));
        }
    }

    fn lease(&mut self, consumer: ConsumerId, limits: TakeLimits) -> Lease {
        let mut lease = Lease::default();
        let (mut events_left, mut bytes_left) = (limits.events, limits.bytes);
        while events_left > 0
            && let Some((first_seq, piece)) = self.queued.pop_first()
        {
            let most = piece.len().min(events_left);
            let mut count = events_within(&piece, most, bytes_left);
            if count == 0 && lease.is_empty() {
                count = 1;
            }
            if count < piece.len() {
                self.queued.insert(first_seq + count as u64, piece.slice(count..piece.len()));
            }
            if count == 0 {
                break;
            }
            let events = if count < piece.len() { piece.slice(0..count) } else { piece };
            bytes_left = bytes_left.saturating_sub(events.bytes());
            events_left -= count;
            self.queued_events -= count;
            self.leased_events += count;
            self.leased.entry(consumer).or_default().insert(first_seq, events.clone());
            lease.slices.push(LeasedSlice { first_seq, events });
        }
        // Flume counts each event it tries to take, and so the one that is not there.
        let missed = u64::from(events_left > 0 && self.queued_events == 0);
        self.counters.take_attempts += lease.event_count() as u64 + missed;
        lease
    }

    /// Gives back the space of events that will never come again.
    fn forget(&mut self, gone: Vec<(u64, EventSlice)>) {
        for (seq, piece) in gone {
            let (&first, transaction) =
                self.transactions.range_mut(..=seq).next_back().expect("a leased event belongs to a transaction");
            let index = (seq - first) as usize;
            self.slots_used -= transaction.slots(index, &piece);
            transaction.events_left -= piece.len();
            transaction.bytes_left -= bytes_held(&piece);
            if transaction.events_left == 0 {
                self.bytes_held -= transaction.bytes_held;
                self.transactions.remove(&first);
            } else if transaction.bytes_held >= limits::COMPACT_BYTES_MIN
                && transaction.bytes_left < transaction.bytes_held / limits::COMPACT_BELOW
            {
                self.compact(first);
            }
        }
    }

    /// Copies what is left of the transaction at `first`, so that a few events do not keep the memory of all. Each
    /// copy is under a part of what it frees, so all copies together cost less than the puts did.
    fn compact(&mut self, first: u64) {
        let transaction = self.transactions.get_mut(&first).expect("the caller has just found it");
        let end = first + transaction.events as u64;
        for pieces in self.leased.values_mut().chain([&mut self.queued]) {
            for piece in pieces.range_mut(first..end).map(|(_, piece)| piece) {
                *piece = piece.to_batch().freeze();
            }
        }
        self.bytes_held -= transaction.bytes_held - transaction.bytes_left;
        transaction.bytes_held = transaction.bytes_left;
        transaction.slots_until = None;
    }
}

/// What the events of `piece` take in memory: their records, and where each of them ends.
fn bytes_held(piece: &EventSlice) -> usize {
    piece.bytes() + piece.len() * limits::EVENT_OVERHEAD_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::EventBatch;
    use crate::memory::MemoryOptions;
    use crate::ticket::Ticket;

    fn queue(options: MemoryOptions) -> Queue {
        Queue::new(Limits::new(&options).unwrap())
    }

    fn arrival(events: usize, body: usize) -> Arrival {
        let mut batch = EventBatch::new();
        for _ in 0..events {
            batch.push_body(&vec![b'x'; body]);
        }
        Arrival::new(batch.freeze())
    }

    fn put(queue: &mut Queue, now: Instant, arrival: Arrival) -> Ticket<Result<PutReceipt, PutError>> {
        let (sender, ticket) = Ticket::pair();
        let mut answers = Answers::default();
        queue.put(now, arrival, sender, &mut answers);
        answers.give();
        ticket
    }

    fn take(queue: &mut Queue, consumer: ConsumerId, events: usize) -> Lease {
        let (sender, ticket) = Ticket::pair();
        let mut answers = Answers::default();
        let limits = TakeLimits { events, bytes: usize::MAX };
        queue.take(Instant::now(), consumer, limits, Duration::ZERO, sender, &mut answers);
        answers.give();
        ticket.wait().unwrap()
    }

    fn settle(queue: &mut Queue, consumer: ConsumerId, settlement: Settlement) {
        let mut answers = Answers::default();
        queue.settle(consumer, &[settlement], &mut answers).unwrap();
        answers.give();
    }

    fn expire(queue: &mut Queue, now: Instant) {
        let mut answers = Answers::default();
        queue.expire(Some(now), &mut answers);
        answers.give();
    }

    #[test]
    fn a_put_waits_exactly_its_keep_alive_and_then_says_what_flume_says() {
        let mut queue = queue(MemoryOptions { capacity: 2, transaction_capacity: 2, ..MemoryOptions::default() });
        let start = Instant::now();
        put(&mut queue, start, arrival(2, 1)).wait().unwrap();
        let waiting = put(&mut queue, start, arrival(1, 1));
        assert_eq!(queue.next_deadline(), Some(start + Duration::from_secs(3)));
        expire(&mut queue, start + Duration::from_millis(2999));
        let waiting = waiting.try_take().expect_err("it is not yet time");
        expire(&mut queue, start + Duration::from_secs(3));
        let error = waiting.wait().unwrap_err();
        assert_eq!(queue.next_deadline(), None);
        let PutError::Full { detail, .. } = error else { panic!("{error}") };
        assert_eq!(
            detail,
            "Space for commit to queue couldn't be acquired. Sinks are likely not keeping up with sources, or the \
             buffer size is too tight"
        );
    }

    #[test]
    fn a_large_put_is_not_overtaken_and_its_end_lets_the_next_one_in() {
        let options = MemoryOptions { capacity: 4, transaction_capacity: 4, ..MemoryOptions::default() };
        let mut queue = queue(options);
        let start = Instant::now();
        put(&mut queue, start, arrival(3, 1)).wait().unwrap();
        let large = put(&mut queue, start, arrival(2, 1));
        let small = put(&mut queue, start + Duration::from_secs(1), arrival(1, 1));
        let small = small.try_take().expect_err("it would fit, but it came later");
        expire(&mut queue, start + Duration::from_secs(3));
        assert!(matches!(large.wait(), Err(PutError::Full { .. })));
        let small = small.try_take().ok().expect("nothing is in its way any more");
        assert_eq!(small.unwrap().range, Some(SeqRange::new(3, 4)));
    }

    #[test]
    fn bytes_are_counted_in_slots_of_a_hundred_as_flume_does() {
        let options =
            MemoryOptions { byte_capacity: Some(1000), keep_alive: Duration::ZERO, ..MemoryOptions::default() };
        let mut queue = queue(options);
        let now = Instant::now();
        // 80 % of 1000 bytes are 8 slots; empty bodies take none.
        put(&mut queue, now, arrival(5, 0)).wait().unwrap();
        put(&mut queue, now, arrival(3, 101)).wait().unwrap();
        put(&mut queue, now, arrival(2, 1)).wait().unwrap();
        assert_eq!(queue.stats().fill_percent, 100.0);
        let full = put(&mut queue, now, arrival(1, 1)).wait().unwrap_err();
        let PutError::Full { detail, .. } = full else { panic!("{full}") };
        assert_eq!(
            detail,
            "Cannot commit transaction. Byte capacity allocated to store event body 800.0reached. Please increase \
             heap space/byte capacity allocated to the channel as the sinks may not be keeping up with the sources"
        );
        let lease = take(&mut queue, 1, 6);
        settle(&mut queue, 1, Settlement::delivered(lease.ranges()));
        assert_eq!(queue.slots_used, 6);
        put(&mut queue, now, arrival(1, 200)).wait().unwrap();
        let lease = take(&mut queue, 1, 100);
        settle(&mut queue, 1, Settlement::delivered(lease.ranges()));
        assert_eq!((queue.slots_used, queue.bytes_held, queue.transactions.len()), (0, 0, 0));
        let too_large = put(&mut queue, now, arrival(1, 801)).wait().unwrap_err();
        assert_eq!(too_large, PutError::TooLarge { channel: "memory".into(), bytes: 900, limit: 800 });
    }

    #[test]
    fn a_few_events_left_do_not_keep_the_memory_of_its_transaction() {
        let mut queue = queue(MemoryOptions::default());
        put(&mut queue, Instant::now(), arrival(100, 1000)).wait().unwrap();
        let all = take(&mut queue, 1, 100);
        assert_eq!(queue.bytes_held, 100 * 1009);
        settle(&mut queue, 1, Settlement::delivered(vec![SeqRange::new(0, 40), SeqRange::new(42, 100)]));
        assert_eq!((queue.bytes_held, queue.leased_events), (2 * 1009, 2));
        settle(&mut queue, 1, Settlement::returned(vec![SeqRange::new(40, 42)]));
        let again = take(&mut queue, 2, 100);
        let bodies = |lease: &Lease| lease.iter().map(|(seq, event)| (seq, event.body().to_vec())).collect::<Vec<_>>();
        assert_eq!(bodies(&again), bodies(&all)[40..42]);
    }

    #[test]
    fn a_waiting_take_is_counted_once_and_ends_empty() {
        let mut queue = queue(MemoryOptions::default());
        let start = Instant::now();
        let (sender, ticket) = Ticket::pair();
        let mut answers = Answers::default();
        let limits = TakeLimits { events: 1, bytes: 1 };
        queue.take(start, 1, limits, Duration::from_secs(1), sender, &mut answers);
        answers.give();
        let ticket = ticket.try_take().expect_err("nothing was put");
        expire(&mut queue, start + Duration::from_secs(1));
        let lease = ticket.try_take().ok().expect("the time is over");
        assert!(lease.unwrap().is_empty());
        assert_eq!(queue.stats().take_attempts, 1);
    }
}
