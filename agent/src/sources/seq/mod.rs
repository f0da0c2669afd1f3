//! `type = seq`: events whose bodies count from 0, for trying out a configuration and finding losses.
//!
//! A number that a channel refuses is tried again, so that what comes out behind the channel has no holes.

use std::time::Duration;

use channel::EventBatch;

use crate::component::{
    BoxFuture, ComponentError, Key, KeyDefault, Refused, Settings, Source, SourceContext, SourceEntry,
};

/// Larger batches than any channel's default transaction are a mistake.
const BATCH_EVENTS_MAX: i64 = 1 << 20;

static KEYS: &[Key] = &[
    Key::integer("batchSize", 1, BATCH_EVENTS_MAX, "events", KeyDefault::Is("1"), "Events in one transaction."),
    Key::integer(
        "totalEvents",
        0,
        i64::MAX,
        "events",
        KeyDefault::Is("9223372036854775807"),
        "Events after which the source has nothing more to do.",
    ),
    Key::integer(
        "backoffSleepIncrement",
        0,
        i64::MAX,
        "ms",
        KeyDefault::Is("1000"),
        "How much longer it waits after each refusal in a row.",
    ),
    Key::integer("maxBackoffSleep", 0, i64::MAX, "ms", KeyDefault::Is("5000"), "The longest wait after a refusal."),
];

pub static ENTRY: SourceEntry = SourceEntry {
    alias: "seq",
    class: "org.apache.flume.source.SequenceGeneratorSource",
    doc: "Makes events that count from 0.",
    keys: KEYS,
    build,
};

fn build(settings: &Settings) -> Result<Box<dyn Source>, Refused> {
    let millis = |name| Duration::from_millis(u64::try_from(settings.integer(name)).unwrap_or(0));
    Ok(Box::new(SeqSource {
        batch_size: settings.count("batchSize"),
        total_events: u64::try_from(settings.integer("totalEvents")).unwrap_or(0),
        backoff_increment: millis("backoffSleepIncrement"),
        backoff_max: millis("maxBackoffSleep"),
    }))
}

struct SeqSource {
    batch_size: usize,
    total_events: u64,
    backoff_increment: Duration,
    backoff_max: Duration,
}

impl SeqSource {
    fn batch_from(&self, first: u64) -> EventBatch {
        let last = first.saturating_add(self.batch_size as u64).min(self.total_events);
        let mut batch = EventBatch::new();
        for number in first..last {
            batch.push_body(number.to_string().as_bytes());
        }
        batch
    }

    fn backoff(&self, refusals: u32) -> Duration {
        self.backoff_increment.saturating_mul(refusals).min(self.backoff_max)
    }
}

impl Source for SeqSource {
    fn batch_size(&self) -> Option<(&'static str, usize)> {
        Some(("batchSize", self.batch_size))
    }

    fn start<'a>(&'a mut self, _: &'a SourceContext) -> BoxFuture<'a, Result<(), ComponentError>> {
        Box::pin(async { Ok(()) })
    }

    fn run(self: Box<Self>, context: SourceContext) -> BoxFuture<'static, Result<(), ComponentError>> {
        Box::pin(async move {
            let mut intake = context.open_intake();
            let (mut next, mut refusals) = (0, 0_u32);
            while next < self.total_events && !context.stop.is_requested() {
                let batch = self.batch_from(next);
                let count = batch.len() as u64;
                context.counters.event_received.add(count);
                context.counters.append_batch_received.add(1);
                match intake.accept(batch).await {
                    Ok(()) => {
                        context.counters.append_batch_accepted.add(1);
                        (next, refusals) = (next + count, 0);
                        // A channel in memory answers at once: others must run too.
                        tokio::task::coop::consume_budget().await;
                    }
                    Err(error) => {
                        refusals = refusals.saturating_add(1);
                        let wait = self.backoff(refusals);
                        tracing::warn!(
                            source = context.name,
                            "numbers from {next} were refused, trying again in {} ms: {error}",
                            wait.as_millis()
                        );
                        tokio::select! {
                            () = tokio::time::sleep(wait) => {}
                            () = context.stop.requested() => {}
                        }
                    }
                }
            }
            context.stop.requested().await;
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use channel::{Channel, Consumer, MemoryChannel, MemoryOptions, Settlement, TakeLimits};
    use std::sync::Arc;

    fn source(lines: &[(&str, &str)]) -> Box<dyn Source> {
        let settings = Settings::of("sources.r1", KEYS, lines);
        settings.check(&[]);
        assert!(settings.take_findings().is_empty());
        build(&settings).unwrap_or_else(|_| panic!("{lines:?} build"))
    }

    /// Takes until `count` events came, settling each take.
    async fn take(consumer: &mut dyn Consumer, count: usize) -> Vec<String> {
        let mut bodies = Vec::new();
        while bodies.len() < count {
            let lease =
                consumer.take(TakeLimits { events: 100, bytes: 1 << 20 }, Duration::from_secs(20)).await.unwrap();
            assert!(!lease.is_empty(), "only {bodies:?} came");
            bodies.extend(lease.iter().map(|(_, event)| String::from_utf8(event.body().to_vec()).unwrap()));
            consumer.settle(vec![Settlement::delivered(lease.ranges())]).await.unwrap();
        }
        bodies
    }

    #[tokio::test]
    async fn numbers_end_at_the_total_also_within_a_batch() {
        let channel: Arc<dyn Channel> = Arc::new(MemoryChannel::new(MemoryOptions::default()).unwrap());
        let (context, stopper) = SourceContext::over(vec![Arc::clone(&channel)]);
        let run = tokio::spawn(source(&[("totalEvents", "10"), ("batchSize", "4")]).run(context.clone()));
        let expected: Vec<String> = (0..10).map(|number| number.to_string()).collect();
        assert_eq!(take(&mut *channel.consumer("test"), 10).await, expected);
        stopper.request();
        run.await.unwrap().unwrap();
        assert_eq!((channel.stats().put_success_events, context.counters.event_accepted.get()), (10, 10));
    }

    #[tokio::test]
    async fn a_refused_number_is_tried_again() {
        let options = MemoryOptions {
            capacity: 3,
            transaction_capacity: 3,
            keep_alive: Duration::ZERO,
            ..MemoryOptions::default()
        };
        let channel: Arc<dyn Channel> = Arc::new(MemoryChannel::new(options).unwrap());
        let (context, _stopper) = SourceContext::over(vec![Arc::clone(&channel)]);
        let lines = [("totalEvents", "100"), ("batchSize", "2"), ("backoffSleepIncrement", "1")];
        let run = tokio::spawn(source(&lines).run(context.clone()));
        // Two fit, the next two do not: only then is something taken.
        while context.counters.channel_write_fail.get() == 0 {
            tokio::task::yield_now().await;
        }
        let expected: Vec<String> = (0..100).map(|number| number.to_string()).collect();
        assert_eq!(take(&mut *channel.consumer("test"), 100).await, expected);
        run.abort();
    }
}
