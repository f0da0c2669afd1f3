//! `type = null`: takes events and drops them, for measuring what comes before it.

use std::time::Duration;

use channel::{Consumer, TakeLimits};

use super::settling::Settling;
use crate::component::{
    BoxFuture, ComponentError, Key, KeyDefault, Progress, Refused, Settings, Sink, SinkContext, SinkEntry, SinkError,
};

/// No channel's transaction is larger.
const BATCH_EVENTS_MAX: i64 = 1 << 30;

/// Held at once; the events are not even looked at.
const ROUND_BYTES: usize = 64 << 20;

/// How long a take waits for an event; an event or a stop ends it at once.
const TAKE_WAIT: Duration = Duration::from_secs(60);

static KEYS: &[Key] = &[
    Key::integer("batchSize", 1, BATCH_EVENTS_MAX, "events", KeyDefault::Is("100"), "Events in one transaction."),
    Key::integer(
        "logEveryNEvents",
        1,
        i64::MAX,
        "events",
        KeyDefault::Is("10000"),
        "After how many events to say how many there were.",
    ),
];

pub static ENTRY: SinkEntry =
    SinkEntry { alias: "null", class: "org.apache.flume.sink.NullSink", doc: "Drops events.", keys: KEYS, build };

fn build(settings: &Settings) -> Result<Box<dyn Sink>, Refused> {
    Ok(Box::new(NullSink {
        batch_size: settings.count("batchSize"),
        log_every: settings.count("logEveryNEvents").max(1) as u64,
        dropped: 0,
        settling: Settling::default(),
    }))
}

struct NullSink {
    batch_size: usize,
    log_every: u64,
    dropped: u64,
    settling: Settling,
}

impl NullSink {
    /// Counts, and says whether a line is due.
    fn count(&mut self, events: u64) -> bool {
        let before = self.dropped / self.log_every;
        self.dropped += events;
        self.dropped / self.log_every > before
    }
}

impl Sink for NullSink {
    fn batch_size(&self) -> Option<(&'static str, usize)> {
        Some(("batchSize", self.batch_size))
    }

    fn start<'a>(&'a mut self, _: &'a SinkContext) -> BoxFuture<'a, Result<(), ComponentError>> {
        Box::pin(async { Ok(()) })
    }

    fn process<'a>(
        &'a mut self,
        context: &'a SinkContext,
        consumer: &'a mut dyn Consumer,
    ) -> BoxFuture<'a, Result<Progress, SinkError>> {
        Box::pin(async move {
            let limits = TakeLimits { events: self.batch_size, bytes: ROUND_BYTES };
            let lease = self.settling.take(context, consumer, limits, TAKE_WAIT).await?;
            if lease.is_empty() {
                return Ok(Progress::Idle);
            }
            let count = lease.event_count() as u64;
            // Dropping them is what this sink is asked to deliver.
            self.settling.delivered(context, consumer, lease.ranges()).await?;
            if self.count(count) {
                tracing::info!(sink = context.name, "null sink has dropped {} events", self.dropped);
            }
            Ok(Progress::Worked)
        })
    }

    fn stop<'a>(
        mut self: Box<Self>,
        context: &'a SinkContext,
        _: &'a mut dyn Consumer,
    ) -> BoxFuture<'a, Result<(), ComponentError>> {
        Box::pin(async move { self.settling.finish(context).await.map_err(|error| ComponentError(error.to_string())) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use channel::{Channel, EventBatch, MemoryChannel, MemoryOptions};
    use std::sync::Arc;

    #[tokio::test]
    async fn everything_is_taken_in_batches_and_settled() {
        let channel: Arc<dyn Channel> = Arc::new(MemoryChannel::new(MemoryOptions::default()).unwrap());
        let mut batch = EventBatch::new();
        (0..100).for_each(|_| batch.push_body(b"x"));
        channel.producer().put(batch).await.unwrap();
        let (context, stopper) = SinkContext::over(Arc::clone(&channel));
        let settings = Settings::of("sinks.k1", KEYS, &[("batchSize", "30")]);
        let mut sink = build(&settings).unwrap_or_else(|_| panic!("it builds"));
        let mut consumer = channel.consumer("k1");
        for _ in 0..4 {
            assert_eq!(sink.process(&context, &mut *consumer).await, Ok(Progress::Worked));
        }
        assert_eq!((channel.stats().size_events, context.counters.event_drain_success.get()), (0, 100));
        stopper.request();
        assert_eq!(sink.process(&context, &mut *consumer).await, Ok(Progress::Idle));
    }

    #[test]
    fn a_line_is_due_whenever_a_round_number_is_passed() {
        let mut sink = NullSink { batch_size: 1, log_every: 10, dropped: 0, settling: Settling::default() };
        let due: Vec<bool> = [9, 1, 5, 4, 1, 25].map(|events| sink.count(events)).to_vec();
        assert_eq!(due, [false, true, false, false, true, true]);
    }
}
