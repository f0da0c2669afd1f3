//! Takes: leases from memory, in order, and what to read when it is not there.

use std::collections::VecDeque;
use std::time::Duration;

use wal::planted::{self, Bug};

use super::{Answer, Core, ORDER_WAIT, SETTLED_RUNS_MAX, TakeSender, WaitingTake};
use crate::api::{Lease, TakeError, TakeLimits};
use crate::durable::queue::ConsumerId;
use crate::event::{EventRef, EventSlice};
use crate::settlement::SeqRange;

impl Core {
    pub(crate) fn take(
        &mut self,
        now: Duration,
        consumer: ConsumerId,
        limits: TakeLimits,
        wait: Duration,
        sender: TakeSender,
        answers: &mut Vec<Answer>,
    ) {
        self.counts.take_attempts += 1;
        if self.closed {
            answers.push(Answer::Take(sender, Err(TakeError::Closed)));
            return;
        }
        let deadline = now.checked_add(wait);
        self.takes.push_back(WaitingTake { consumer, limits, deadline, sender });
        self.serve_takes(now, answers);
    }

    pub(super) fn serve_takes(&mut self, now: Duration, answers: &mut Vec<Answer>) {
        while let Some(take) = self.takes.front() {
            let (consumer, limits) = (take.consumer, take.limits);
            let lease = self.lease(now, consumer, limits);
            if lease.is_empty() {
                break;
            }
            let take = self.takes.pop_front().expect("just seen");
            answers.push(Answer::Take(take.sender, Ok(lease)));
        }
        if self.takes.is_empty() {
            self.wanted = None;
        }
        let expired = |take: &WaitingTake| take.deadline.is_some_and(|deadline| deadline <= now);
        // While a disk is being read for the first in line, it waits for that.
        let reads = self.wanted.is_some();
        let mut kept = VecDeque::new();
        for take in std::mem::take(&mut self.takes) {
            if expired(&take) && !reads {
                let nothing = self.nothing_to_take();
                self.counts.take_errors += u64::from(nothing.is_err());
                answers.push(Answer::Take(take.sender, nothing));
            } else {
                kept.push_back(take);
            }
        }
        self.takes = kept;
    }

    /// The answer when the time of a take is over: events that cannot be read are not "nothing".
    fn nothing_to_take(&self) -> Result<Lease, TakeError> {
        let Some((seq, log)) = self.queue.first_held() else { return Ok(Lease::default()) };
        let cause = self.seats[log].unreadable.as_ref().map(|unreadable| unreadable.cause.clone()).unwrap_or_default();
        let range = SeqRange::new(seq, seq + 1);
        Err(TakeError::Unreadable { channel: self.options.name.clone(), range, cause })
    }

    /// Whether so many runs of events are settled above the oldest open one that a snapshot of more would not fit a frame.
    pub(crate) fn is_scattered(&self) -> bool {
        self.queue.settled().pieces() >= SETTLED_RUNS_MAX.min(self.put_bytes_max() / 64)
    }

    /// How long a take waits for writes under way that are older than `seq`. Order is worth a short wait, a slow disk is not:
    /// each frame has its time from when it was made, so that takes are never further behind, however many are late.
    fn older_until(&self, seq: u64) -> Option<Duration> {
        let flying = self.seats.iter().flat_map(|seat| &seat.flying);
        flying.filter(|(first, _)| *first < seq).map(|(_, made)| *made + ORDER_WAIT).max()
    }

    pub(super) fn lease(&mut self, now: Duration, consumer: ConsumerId, limits: TakeLimits) -> Lease {
        let mut lease = Lease::default();
        let most = limits.events.min(self.options.transaction_capacity).max(1) as u64;
        let (mut events, mut bytes) = (0u64, 0usize);
        (self.wanted, self.order_wait) = (None, None);
        while events < most {
            let Some((head, older)) = self.queue.head() else { break };
            let held = self.queue.first_held();
            if planted::is(Bug::StopAtUnreadable) && held.is_some_and(|(seq, _)| seq < head.start) {
                break;
            }
            self.order_wait = self.older_until(head.start).filter(|until| older && now < *until);
            if self.order_wait.is_some() {
                break;
            }
            if self.is_scattered() && head.start > self.queue.floor() {
                break;
            }
            let wanted = SeqRange::new(head.start, head.end.min(head.start + most - events));
            let Some(mut slice) = self.cache.find(wanted) else {
                if self.pass_by(now, head) {
                    continue;
                }
                break;
            };
            let fitting = fitting(&slice.events, limits.bytes.saturating_sub(bytes), events == 0);
            if fitting == 0 {
                break;
            }
            let whole = fitting == slice.events.len();
            slice.events = slice.events.slice(0..fitting);
            bytes += slice.events.bytes();
            let range = slice.range();
            self.queue.lease(consumer, range);
            self.cache.leased(range);
            events += fitting as u64;
            if older || held.is_some_and(|(seq, _)| seq < range.start) {
                self.counts.order_relaxed += fitting as u64;
            }
            lease.slices.push(slice);
            if !whole {
                break;
            }
        }
        lease
    }
}

/// How many events fit `room` bytes; one is taken in any case when it is the `first`.
fn fitting(events: &EventSlice, room: usize, first: bool) -> usize {
    if events.bytes() <= room {
        return events.len();
    }
    let mut bytes = 0;
    let fits = |event: &EventRef<'_>| {
        bytes += event.bytes();
        bytes <= room
    };
    events.iter().take_while(fits).count().max(usize::from(first))
}
