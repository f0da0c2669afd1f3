//! Taking on while settlements become durable.
//!
//! A settlement waits for a disk. A sink that waits with it takes one batch for each write of the channel; with this it goes
//! on, and what it has delivered is settled behind it. Promises that at most [`UNDER_WAY_MAX`] batches are delivered and
//! not yet settled (after a crash they come again), that an event counts as drained when its settlement is durable, and that
//! a settlement that failed is told by the next call. One batch is held at a time: what is returned to the channel goes
//! before what was not taken yet.

use std::collections::VecDeque;
use std::time::Duration;

use channel::{Consumer, Lease, SeqRange, SettleError, Settlement, TakeError, TakeLimits, Ticket};

use crate::component::{SinkContext, SinkError};

/// Batches that are delivered and not yet settled. As many as keep a disk busy while one of them is written.
const UNDER_WAY_MAX: usize = 16;

#[derive(Default)]
pub(super) struct Settling {
    taking: Option<Ticket<Result<Lease, TakeError>>>,
    /// In the order of delivery, with the events of each.
    under_way: VecDeque<(Ticket<Result<(), SettleError>>, u64)>,
}

impl Settling {
    /// The next batch, as [`SinkContext::take`] gives it.
    pub(super) async fn take(
        &mut self,
        context: &SinkContext,
        consumer: &mut dyn Consumer,
        limits: TakeLimits,
        wait: Duration,
    ) -> Result<Lease, SinkError> {
        loop {
            if context.stop.is_requested() {
                return Ok(Lease::default());
            }
            if self.taking.is_none() && self.under_way.len() < UNDER_WAY_MAX {
                self.taking = Some(consumer.take(limits, wait));
            }
            tokio::select! {
                biased;
                (settled, events) = oldest(&mut self.under_way) => self.settled(context, settled, events)?,
                lease = taken(&mut self.taking) => {
                    self.taking = None;
                    match &lease {
                        Ok(lease) => context.counters.count_batch(lease.event_count(), limits.events),
                        Err(_) => context.counters.channel_read_fail.add(1),
                    }
                    return Ok(lease?);
                }
                () = context.stop.requested() => return Ok(Lease::default()),
            }
        }
    }

    /// These events are where they should be.
    pub(super) async fn delivered(
        &mut self,
        context: &SinkContext,
        consumer: &mut dyn Consumer,
        ranges: Vec<SeqRange>,
    ) -> Result<(), SinkError> {
        let events = ranges.iter().map(|range| range.count()).sum();
        self.under_way.push_back((consumer.settle(vec![Settlement::delivered(ranges)]), events));
        // Those that are durable already, and without a durable channel that is all of them.
        loop {
            tokio::select! {
                biased;
                (settled, events) = oldest(&mut self.under_way) => self.settled(context, settled, events)?,
                () = std::future::ready(()) => return Ok(()),
            }
        }
    }

    /// Waits until everything that was delivered is settled, for a sink that stops.
    pub(super) async fn finish(&mut self, context: &SinkContext) -> Result<(), SinkError> {
        while !self.under_way.is_empty() {
            let (settled, events) = oldest(&mut self.under_way).await;
            self.settled(context, settled, events)?;
        }
        Ok(())
    }

    fn settled(
        &mut self,
        context: &SinkContext,
        settled: Result<(), SettleError>,
        events: u64,
    ) -> Result<(), SinkError> {
        self.under_way.pop_front();
        settled?;
        context.counters.event_drain_success.add(events);
        Ok(())
    }
}

/// The oldest settlement's end; never without one.
async fn oldest(under_way: &mut VecDeque<(Ticket<Result<(), SettleError>>, u64)>) -> (Result<(), SettleError>, u64) {
    match under_way.front_mut() {
        Some((ticket, events)) => (ticket.await, *events),
        None => std::future::pending().await,
    }
}

async fn taken(taking: &mut Option<Ticket<Result<Lease, TakeError>>>) -> Result<Lease, TakeError> {
    match taking {
        Some(ticket) => ticket.await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use channel::{Channel, Devices, DurableChannel, DurableOptions, EventBatch};
    use std::sync::Arc;

    const LIMITS: TakeLimits = TakeLimits { events: 1, bytes: 1 << 20 };
    const WAIT: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn batches_are_taken_on_and_every_one_of_them_is_settled_at_the_end() {
        let root = tempfile::tempdir().unwrap();
        let options = DurableOptions::new("c1", vec![root.path().to_path_buf()]);
        let channel: Arc<dyn Channel> = Arc::new(DurableChannel::open(options, &Devices::new()).unwrap());
        let events = 3 * UNDER_WAY_MAX as u64;
        let mut batch = EventBatch::new();
        (0..events).for_each(|_| batch.push_body(b"x"));
        channel.producer().put(batch).await.unwrap();
        let (context, _stopper) = SinkContext::over(Arc::clone(&channel));
        let mut consumer = channel.consumer("k1");
        let mut settling = Settling::default();
        for seq in 0..events {
            let lease = settling.take(&context, &mut *consumer, LIMITS, WAIT).await.unwrap();
            let taken: Vec<u64> = lease.iter().map(|(seq, _)| seq).collect();
            assert_eq!(taken, [seq], "in order");
            settling.delivered(&context, &mut *consumer, lease.ranges()).await.unwrap();
            assert!(settling.under_way.len() <= UNDER_WAY_MAX);
            let settled = context.counters.event_drain_success.get();
            assert_eq!(settled + settling.under_way.len() as u64, seq + 1, "each is one or the other");
        }
        settling.finish(&context).await.unwrap();
        assert_eq!((context.counters.event_drain_success.get(), channel.stats().size_events), (events, 0));
    }

    #[tokio::test]
    async fn a_stop_ends_the_wait_for_events_and_what_was_delivered_is_settled_after_it() {
        let root = tempfile::tempdir().unwrap();
        let options = DurableOptions::new("c1", vec![root.path().to_path_buf()]);
        let channel: Arc<dyn Channel> = Arc::new(DurableChannel::open(options, &Devices::new()).unwrap());
        let mut batch = EventBatch::new();
        batch.push_body(b"x");
        channel.producer().put(batch).await.unwrap();
        let (context, stopper) = SinkContext::over(Arc::clone(&channel));
        let mut consumer = channel.consumer("k1");
        let mut settling = Settling::default();
        let lease = settling.take(&context, &mut *consumer, LIMITS, WAIT).await.unwrap();
        settling.delivered(&context, &mut *consumer, lease.ranges()).await.unwrap();
        let waiting = settling.take(&context, &mut *consumer, LIMITS, WAIT);
        let (lease, ()) = tokio::join!(waiting, async { stopper.request() });
        assert!(lease.unwrap().is_empty());
        settling.finish(&context).await.unwrap();
        assert_eq!(channel.stats().size_events, 0);
    }
}
