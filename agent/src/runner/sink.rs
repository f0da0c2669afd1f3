//! Runs one sink: round after round, with Flume's back-off, until the stop.
//!
//! ```text
//! Worked   the next round at once
//! Idle     the next round at once: the take has waited already
//! BackOff  min(n × 1 s, 5 s) after the n-th in a row
//! error    logged, 5 s
//! ```
//! At the end the sink settles what it can, and the consumer is dropped, which returns the rest.

use std::time::{Duration, Instant};

use super::{RESTART_WAIT, pause};
use crate::component::{Progress, Sink, SinkContext};

const BACK_OFF_STEP: Duration = Duration::from_secs(1);
const BACK_OFF_MAX: Duration = Duration::from_secs(5);

/// A round that says `Idle` faster than this has not waited for events; calling it again at once would spin.
const IDLE_LEAST: Duration = Duration::from_millis(5);

pub async fn run(mut sink: Box<dyn Sink>, context: SinkContext) {
    let name = context.name.clone();
    let mut consumer = context.channel.channel.consumer(&name);
    loop {
        if context.stop.is_requested() {
            return;
        }
        match sink.start(&context).await {
            Ok(()) => break,
            Err(error) => {
                tracing::error!("sink {name} did not start, trying again in {} s: {error}", RESTART_WAIT.as_secs());
            }
        }
        if !pause(&context.stop, RESTART_WAIT).await {
            return;
        }
    }
    context.counters.start_time.set_to_now();
    tracing::info!("sink {name} started");
    let mut backed_off: u32 = 0;
    while !context.stop.is_requested() {
        let begun = Instant::now();
        let wait = match sink.process(&context, consumer.as_mut()).await {
            Ok(Progress::Worked) => None,
            Ok(Progress::Idle) if begun.elapsed() >= IDLE_LEAST => None,
            Ok(Progress::Idle | Progress::BackOff) => {
                backed_off += 1;
                Some((BACK_OFF_STEP * backed_off).min(BACK_OFF_MAX))
            }
            Err(error) => {
                tracing::error!("sink {name} failed, trying again in {} s: {error}", BACK_OFF_MAX.as_secs());
                Some(BACK_OFF_MAX)
            }
        };
        match wait {
            None => backed_off = 0,
            Some(wait) => {
                pause(&context.stop, wait).await;
            }
        }
    }
    match sink.stop(&context, consumer.as_mut()).await {
        Ok(()) => tracing::info!("sink {name} stopped"),
        Err(error) => tracing::error!("sink {name} stopped, what it had not settled comes again: {error}"),
    }
    context.counters.stop_time.set_to_now();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::component::{BoxFuture, ComponentError, SinkError};
    use channel::{Channel, Consumer, EventBatch, MemoryChannel, MemoryOptions, Settlement, TakeLimits};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Fails to start twice, fails its first round, then delivers.
    struct Stubborn {
        starts: usize,
        rounds: usize,
        delivered: Arc<AtomicUsize>,
    }

    impl Sink for Stubborn {
        fn start<'a>(&'a mut self, _: &'a SinkContext) -> BoxFuture<'a, Result<(), ComponentError>> {
            self.starts += 1;
            let outcome = if self.starts > 2 { Ok(()) } else { Err(ComponentError("not yet".to_owned())) };
            Box::pin(async move { outcome })
        }

        fn process<'a>(
            &'a mut self,
            context: &'a SinkContext,
            consumer: &'a mut dyn Consumer,
        ) -> BoxFuture<'a, Result<Progress, SinkError>> {
            Box::pin(async move {
                self.rounds += 1;
                let limits = TakeLimits { events: 10, bytes: 1 << 20 };
                let lease = context.take(consumer, limits, Duration::from_secs(60)).await?;
                if lease.is_empty() {
                    return Ok(Progress::Idle);
                }
                let first = self.rounds == 1;
                let ranges = lease.ranges();
                let settled = if first { Settlement::returned(ranges) } else { Settlement::delivered(ranges) };
                consumer.settle(vec![settled]).await?;
                if first {
                    return Err(SinkError::Delivery("the store is away".to_owned()));
                }
                self.delivered.fetch_add(lease.event_count(), Ordering::SeqCst);
                Ok(Progress::Worked)
            })
        }

        fn stop<'a>(
            self: Box<Self>,
            _: &'a SinkContext,
            _: &'a mut dyn Consumer,
        ) -> BoxFuture<'a, Result<(), ComponentError>> {
            Box::pin(async { Ok(()) })
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_sink_is_started_again_and_tries_failed_rounds_again() {
        let channel: Arc<dyn Channel> = Arc::new(MemoryChannel::new(MemoryOptions::default()).unwrap());
        let (context, stopper) = SinkContext::over(Arc::clone(&channel));
        let delivered = Arc::new(AtomicUsize::new(0));
        let sink = Box::new(Stubborn { starts: 0, rounds: 0, delivered: Arc::clone(&delivered) });
        let mut batch = EventBatch::new();
        batch.push_body(b"one");
        batch.push_body(b"two");
        channel.producer().put(batch).await.unwrap();
        let counters = Arc::clone(&context.counters);
        let task = tokio::spawn(run(sink, context));
        while delivered.load(Ordering::SeqCst) < 2 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        stopper.request();
        task.await.unwrap();
        assert_eq!(channel.stats().size_events, 0);
        assert_eq!(counters.batch_underflow.get(), 2);
    }
}
