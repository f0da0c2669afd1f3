//! Takes: leases from memory, in order, and what to read when it is not there.

use std::collections::VecDeque;
use std::time::Duration;

use wal::planted::{self, Bug};

use super::{Answer, Core, ORDER_WAIT, SETTLED_RUNS_MAX, TakeSender, WaitingTake};
use crate::api::{Lease, TakeError, TakeLimits};
use crate::durable::queue::ConsumerId;
use crate::durable::read::{ReadDone, ReadJob, ReadSource};
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
            if let Some((range, cause)) = self.read_failed.take() {
                let channel = self.options.name.clone();
                self.counts.take_errors += 1;
                let take = self.takes.pop_front().expect("just seen");
                answers.push(Answer::Take(take.sender, Err(TakeError::Unreadable { channel, range, cause })));
                continue;
            }
            let lease = self.lease(now, consumer, limits);
            if lease.is_empty() {
                break;
            }
            let take = self.takes.pop_front().expect("just seen");
            answers.push(Answer::Take(take.sender, Ok(lease)));
        }
        let expired = |take: &WaitingTake| take.deadline.is_some_and(|deadline| deadline <= now);
        // While a disk is being read for the first in line, it waits for that.
        let reads = self.wants_read();
        let mut kept = VecDeque::new();
        for take in std::mem::take(&mut self.takes) {
            if expired(&take) && !reads {
                answers.push(Answer::Take(take.sender, Ok(Lease::default())));
            } else {
                kept.push_back(take);
            }
        }
        self.takes = kept;
    }

    pub(super) fn lease(&mut self, now: Duration, consumer: ConsumerId, limits: TakeLimits) -> Lease {
        let mut lease = Lease::default();
        let most = limits.events.min(self.options.transaction_capacity).max(1) as u64;
        let (mut events, mut bytes) = (0u64, 0usize);
        while events < most {
            let Some((head, older)) = self.queue.head() else { break };
            if older {
                // An older write is still under way: order is worth a short wait, a stalled disk is not.
                let until = *self.order_wait.get_or_insert(now + ORDER_WAIT);
                if now < until {
                    break;
                }
            } else {
                self.order_wait = None;
            }
            let scattered = self.queue.settled().pieces() >= SETTLED_RUNS_MAX.min(self.put_bytes_max() / 64);
            if scattered && head.start > self.queue.floor() {
                break;
            }
            let wanted = SeqRange::new(head.start, head.end.min(head.start + most - events));
            let Some(mut slice) = self.cache.find(wanted) else { break };
            let mut fitting = 0;
            for event in slice.events.iter() {
                let size = event.bytes();
                if bytes + size > limits.bytes && (events > 0 || fitting > 0) {
                    break;
                }
                bytes += size;
                fitting += 1;
            }
            if fitting == 0 {
                break;
            }
            let whole = fitting == slice.events.len();
            slice.events = slice.events.slice(0..fitting);
            let range = slice.range();
            self.queue.lease(consumer, range);
            self.cache.leased(range);
            events += fitting as u64;
            if older {
                self.counts.order_relaxed += fitting as u64;
            }
            lease.slices.push(slice);
            if !whole {
                break;
            }
        }
        lease
    }

    /// Whether the first take in line needs a disk.
    pub(super) fn wants_read(&self) -> bool {
        !self.takes.is_empty()
            && self.read_failed.is_none()
            && self.queue.head().is_some_and(|(head, older)| {
                !older && self.cache.find(SeqRange::new(head.start, head.start + 1)).is_none()
            })
    }

    /// What to read next, for one reader.
    pub(crate) fn next_read(&mut self) -> Option<ReadJob> {
        let (head, _) = self.queue.head()?;
        let missing = self.cache.find(SeqRange::new(head.start, head.start + 1)).is_none();
        if self.reading || self.closed || self.takes.is_empty() || !missing || self.read_failed.is_some() {
            return None;
        }
        self.reading = true;
        let sources = self.seats.iter().enumerate().flat_map(|(log, seat)| {
            seat.log.segments().filter_map(move |segment| {
                let offset = segment.start_for(head.start)?;
                Some(ReadSource::new(log, segment, offset))
            })
        });
        Some(ReadJob { seq: head.start, sources: sources.collect() })
    }

    pub(crate) fn read_done(&mut self, now: Duration, done: ReadDone, answers: &mut Vec<Answer>) {
        self.reading = false;
        match done {
            ReadDone::Found(slices) => {
                for slice in slices {
                    // Read ahead meets events that are leased or done: only what can be taken is kept.
                    for range in self.queue.queued().within(slice.range()) {
                        let (start, end) = (range.start - slice.first_seq, range.end - slice.first_seq);
                        self.cache.keep(range.start, slice.events.slice(start as usize..end as usize));
                    }
                }
            }
            ReadDone::Failed { range, cause } => {
                tracing::error!(channel = self.options.name, %range, cause, "events cannot be read back");
                if planted::is(Bug::SkipUnreadable) {
                    self.queue.lease(0, range);
                    self.queue.start_settling(0, range);
                    return self.queue.settle(range);
                }
                self.read_failed = Some((range, cause));
            }
        }
        self.serve_takes(now, answers);
    }
}
