//! Puts: room in the channel, waiting for it, and giving up.

use std::time::Duration;

use super::seat::{Seat, Stuck};
use super::{Answer, Core, WAITING_BYTES_MAX, WAITING_MAX};
use crate::api::{PutError, PutReceipt};
use crate::durable::job::PendingPut;

impl Core {
    /// Most bytes of one transaction.
    pub(crate) fn put_bytes_max(&self) -> usize {
        // Room for the sections that may ride along is left over: they go alone when they do not fit.
        self.seats.iter().map(|seat| seat.log.body_max()).max().unwrap_or_default() / 2
    }

    pub(crate) fn put(&mut self, now: Duration, mut put: PendingPut, answers: &mut Vec<Answer>) {
        let events = put.batch.len();
        self.counts.put_attempt += events as u64;
        let channel = || self.options.name.clone();
        let refusal = if self.closed {
            Some(PutError::Closed)
        } else if events > self.options.transaction_capacity {
            Some(PutError::TooManyEvents { channel: channel(), events, limit: self.options.transaction_capacity })
        } else if put.plain_len() > self.put_bytes_max() {
            // Whether a batch is taken must not depend on how well it compresses.
            Some(PutError::TooLarge { channel: channel(), bytes: put.plain_len(), limit: self.put_bytes_max() })
        } else {
            None
        };
        let Some(sender) = put.sender.take() else { return };
        if let Some(refusal) = refusal {
            self.counts.put_errors += 1;
            answers.push(Answer::Put(sender, Err(refusal)));
            return;
        }
        if events == 0 {
            answers.push(Answer::Put(sender, Ok(PutReceipt { range: None })));
            return;
        }
        put.deadline = now + self.options.keep_alive;
        let crowded = self.waiting.len() >= WAITING_MAX || self.waiting_bytes + put.plain_len() > WAITING_BYTES_MAX;
        if crowded && !self.waiting.is_empty() {
            self.counts.put_errors += 1;
            let detail = no_room(&self.options.name);
            answers.push(Answer::Put(sender, Err(PutError::Full { channel: channel(), detail })));
            return;
        }
        put.sender = Some(sender);
        self.waiting_bytes += put.plain_len();
        self.waiting.push_back(put);
        self.admit();
        self.expire_puts(now, answers);
    }

    pub(super) fn has_room_for(&self, events: u64) -> bool {
        let bytes = self.options.disk_bytes_max.is_none_or(|max| self.disk_bytes() < max);
        bytes && self.size() + events <= self.options.capacity
    }

    /// Lets waiting puts in, in their order.
    pub(super) fn admit(&mut self) {
        while let Some(put) = self.waiting.front()
            && self.has_room_for(put.events())
        {
            let put = self.waiting.pop_front().expect("just seen");
            self.waiting_bytes -= put.plain_len();
            self.pending_events += put.events();
            self.pending.push_back(put);
        }
    }

    /// Refuses what has waited for room, in the channel or on a disk, as long as it may.
    pub(super) fn expire_puts(&mut self, now: Duration, answers: &mut Vec<Answer>) {
        let channel = self.options.name.clone();
        while let Some(put) = self.waiting.pop_front_if(|put| put.deadline <= now) {
            let detail = no_room(&channel);
            self.waiting_bytes -= put.plain_len();
            self.counts.put_errors += 1;
            if let Some(sender) = put.sender {
                answers.push(Answer::Put(sender, Err(PutError::Full { channel: channel.clone(), detail })));
            }
        }
        let mut place = 0;
        while let Some(put) = self.pending.get(place).filter(|put| put.deadline <= now) {
            let Some(Stuck { failed, cause, .. }) = self.stuck(put).filter(|stuck| stuck.from <= now) else {
                place += 1;
                continue;
            };
            let put = self.pending.remove(place).expect("just seen");
            self.pending_events -= put.events();
            self.voids.extend(&put.voids);
            self.counts.put_errors += 1;
            // What was in a frame that failed is of unknown outcome until its void is written.
            let error = if failed || !put.voids.is_empty() {
                PutError::Failed { channel: channel.clone(), cause }
            } else {
                PutError::Full { channel: channel.clone(), detail: cause }
            };
            if let Some(sender) = put.sender {
                answers.push(Answer::Put(sender, Err(error)));
            }
        }
        self.admit();
    }

    /// Why none of the logs takes a put to which it may go, if so. A producer's transactions stay on one log while older
    /// ones are under way there.
    fn stuck(&self, put: &PendingPut) -> Option<Stuck> {
        let bound = self.affinity.get(&put.producer).map(|(log, _)| *log);
        let logs = bound.map_or(0..self.seats.len(), |log| log..log + 1);
        let mut found: Option<Stuck> = None;
        for seat in &self.seats[logs] {
            let stuck = seat.stuck()?;
            found = Some(match found {
                None => stuck,
                // A full disk says more than a failed one: nothing was written.
                Some(other) => Stuck { from: other.from.max(stuck.from), ..if other.failed { stuck } else { other } },
            });
        }
        found
    }

    /// When a put may have waited long enough for disks that take none.
    pub(super) fn stuck_puts_due(&self) -> Option<Duration> {
        let deadline = self.pending.front()?.deadline;
        let from = self.seats.iter().filter_map(Seat::stuck_from).min()?;
        Some(deadline.max(from))
    }
}

/// Flume's words for a file channel at one of its limits. Senders see them; the numbers are in the metrics.
fn no_room(channel: &str) -> String {
    format!(
        "The channel has reached it's capacity. This might be the result of a sink on the channel having too low of \
         batch size, a downstream system running slower than normal, or that the channel capacity is just too low. \
         [channel={channel}]"
    )
}
