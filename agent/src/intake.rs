//! The way in: interceptors, selector, channels.
//!
//! One [`Intake`] belongs to one connection, whose order the channels keep. `accept` answers when the events are
//! committed in every required channel, never before. The required channels are filled one after the other, each in
//! one transaction, so that an error leaves the events in those before it: the sender tries again, and some channel
//! gets them twice. Optional channels come last; what they refuse is logged and counted.

use std::sync::Arc;

use channel::{Channel, EventBatch, EventRef, MemoryChannel, Producer, PutError};

use crate::telemetry::counters::SourceCounters;

/// Changes events on their way in. The chain runs in the order of the file.
pub trait Interceptor: Send + Sync {
    fn intercept(&self, batch: &mut EventBatch);
}

/// Positions in the source's list of channels.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Route {
    /// An event that does not get into all of these is not accepted.
    pub required: Vec<usize>,
    pub optional: Vec<usize>,
}

/// Says where each event goes.
pub trait Selector: Send + Sync {
    /// The one route of every event, where there is one; then `route` is never asked.
    fn common_route(&self) -> Option<&Route>;

    fn route(&self, event: EventRef<'_>) -> &Route;
}

/// The events were not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{cause}")]
pub struct AcceptError {
    /// The name of the channel that refused.
    pub channel: String,
    pub cause: PutError,
    /// Whether that channel is durable: Flume's file channel has other words than its memory channel.
    pub durable: bool,
}

impl AcceptError {
    /// Back-pressure: the same events may be accepted later.
    pub fn is_full(&self) -> bool {
        matches!(self.cause, PutError::Full { .. })
    }

    /// The message of the exception that Flume's channel throws in this case: what sources tell their senders.
    pub fn flume_message(&self) -> String {
        match &self.cause {
            cause if !self.durable => MemoryChannel::flume_message(cause),
            PutError::Full { detail, .. } => detail.clone(),
            PutError::TooManyEvents { limit, .. } => format!(
                "Put queue for FileBackedTransaction of capacity {limit} full, consider committing more frequently, \
                 increasing capacity or increasing thread count. [channel={}]",
                self.channel
            ),
            cause => cause.to_string(),
        }
    }
}

/// A channel under its name.
#[derive(Clone)]
pub struct NamedChannel {
    pub name: String,
    pub channel: Arc<dyn Channel>,
}

/// What all intakes of one source share.
pub struct IntakePlan {
    pub channels: Vec<NamedChannel>,
    pub interceptors: Vec<Box<dyn Interceptor>>,
    pub selector: Box<dyn Selector>,
    pub counters: Arc<SourceCounters>,
}

/// Everything goes into every channel: for tests, and what a source without a selector gets.
pub struct Everywhere(Route);

impl Everywhere {
    pub fn new(channels: usize) -> Everywhere {
        Everywhere(Route { required: (0..channels).collect(), optional: Vec::new() })
    }
}

impl Selector for Everywhere {
    fn common_route(&self) -> Option<&Route> {
        Some(&self.0)
    }

    fn route(&self, _: EventRef<'_>) -> &Route {
        &self.0
    }
}

/// The way in for one connection.
pub struct Intake {
    plan: Arc<IntakePlan>,
    producers: Vec<Box<dyn Producer>>,
}

impl Intake {
    pub fn new(plan: &Arc<IntakePlan>) -> Intake {
        let producers = plan.channels.iter().map(|named| named.channel.producer()).collect();
        Intake { plan: Arc::clone(plan), producers }
    }

    /// Most events in one batch: the least `transactionCapacity` of the channels.
    pub fn transaction_capacity(&self) -> usize {
        self.plan.channels.iter().map(|named| named.channel.transaction_capacity()).min().unwrap_or(usize::MAX)
    }

    /// Runs the interceptors and commits the events. `Ok` is the source's permission to acknowledge.
    pub async fn accept(&mut self, mut batch: EventBatch) -> Result<(), AcceptError> {
        for interceptor in &self.plan.interceptors {
            interceptor.intercept(&mut batch);
        }
        let count = batch.len() as u64;
        let plan = Arc::clone(&self.plan);
        let outcome = match plan.selector.common_route() {
            Some(route) => self.put_all(route, batch).await,
            None => self.put_routed(&batch).await,
        };
        match &outcome {
            Ok(()) => plan.counters.event_accepted.add(count),
            Err(_) => plan.counters.channel_write_fail.add(1),
        }
        outcome
    }

    /// Every event takes the same route: the last channel gets the batch itself.
    async fn put_all(&mut self, route: &Route, batch: EventBatch) -> Result<(), AcceptError> {
        let targets = route.required.len() + route.optional.len();
        let mut batch = Some(batch);
        for (position, &index) in route.required.iter().chain(&route.optional).enumerate() {
            let copy = if position + 1 == targets { batch.take() } else { batch.clone() };
            let Some(copy) = copy else { break };
            let put = self.put_one(index, copy).await;
            if position < route.required.len() {
                put?;
            } else {
                self.forgive(put);
            }
        }
        Ok(())
    }

    async fn put_routed(&mut self, batch: &EventBatch) -> Result<(), AcceptError> {
        let plan = Arc::clone(&self.plan);
        for required in [true, false] {
            for index in 0..plan.channels.len() {
                let part = batch.filtered(|_, event| {
                    let route = plan.selector.route(event);
                    if required { route.required.contains(&index) } else { route.optional.contains(&index) }
                });
                if part.is_empty() {
                    continue;
                }
                let put = self.put_one(index, part).await;
                if required {
                    put?;
                } else {
                    self.forgive(put);
                }
            }
        }
        Ok(())
    }

    async fn put_one(&mut self, index: usize, batch: EventBatch) -> Result<(), AcceptError> {
        let put = self.producers[index].put(batch).await;
        put.map(drop).map_err(|cause| {
            let NamedChannel { name, channel } = &self.plan.channels[index];
            AcceptError { channel: name.clone(), cause, durable: channel.is_durable() }
        })
    }

    fn forgive(&self, put: Result<(), AcceptError>) {
        if let Err(error) = put {
            self.plan.counters.channel_write_fail.add(1);
            tracing::error!(
                channel = error.channel,
                "optional channel did not take a batch, going on without it: {error}"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use channel::{MemoryOptions, TakeLimits};
    use std::time::Duration;

    #[test]
    fn a_refusal_has_the_words_of_flumes_channel_of_that_kind() {
        let text = |durable, cause| AcceptError { channel: "c1".to_owned(), cause, durable }.flume_message();
        let many = || PutError::TooManyEvents { channel: "c1".to_owned(), events: 3, limit: 2 };
        assert_eq!(
            text(true, many()),
            "Put queue for FileBackedTransaction of capacity 2 full, consider committing more frequently, increasing \
             capacity or increasing thread count. [channel=c1]"
        );
        assert!(text(false, many()).starts_with("Put queue for MemoryTransaction of capacity 2 full, "));
        let full = || PutError::Full { channel: "c1".to_owned(), detail: "no room".to_owned() };
        assert_eq!((text(true, full()), text(false, full())), ("no room".to_owned(), "no room".to_owned()));
    }

    /// Bodies that begin with `a` must go to the first channel and may go to the second; others go nowhere.
    struct ByBody(Route, Route);

    impl Selector for ByBody {
        fn common_route(&self) -> Option<&Route> {
            None
        }

        fn route(&self, event: EventRef<'_>) -> &Route {
            if event.body().starts_with(b"a") { &self.0 } else { &self.1 }
        }
    }

    fn memory(transaction_capacity: usize) -> Arc<dyn Channel> {
        let options = MemoryOptions { transaction_capacity, keep_alive: Duration::ZERO, ..MemoryOptions::default() };
        Arc::new(MemoryChannel::new(options).unwrap())
    }

    fn plan(channels: &[Arc<dyn Channel>], selector: Box<dyn Selector>) -> Arc<IntakePlan> {
        let named = |(index, channel): (usize, &Arc<dyn Channel>)| NamedChannel {
            name: format!("c{}", index + 1),
            channel: Arc::clone(channel),
        };
        let channels = channels.iter().enumerate().map(named).collect();
        Arc::new(IntakePlan { channels, interceptors: Vec::new(), selector, counters: Arc::default() })
    }

    fn batch(bodies: &[&str]) -> EventBatch {
        let mut batch = EventBatch::new();
        bodies.iter().for_each(|body| batch.push_body(body.as_bytes()));
        batch
    }

    async fn bodies(channel: &Arc<dyn Channel>) -> Vec<String> {
        let mut consumer = channel.consumer("test");
        let lease = consumer.take(TakeLimits { events: 100, bytes: 1 << 20 }, Duration::ZERO).await.unwrap();
        lease.iter().map(|(_, event)| String::from_utf8_lossy(event.body()).into_owned()).collect()
    }

    #[tokio::test]
    async fn a_required_channel_that_refuses_fails_the_batch_and_those_before_it_keep_theirs() {
        let channels = [memory(10), memory(2), memory(10)];
        let plan = plan(&channels, Box::new(Everywhere::new(3)));
        let mut intake = Intake::new(&plan);
        assert_eq!(intake.transaction_capacity(), 2);
        let error = intake.accept(batch(&["1", "2", "3"])).await.unwrap_err();
        assert_eq!(error.channel, "c2");
        assert!(!error.is_full(), "trying the same batch again cannot help: {error}");
        assert_eq!(bodies(&channels[0]).await, ["1", "2", "3"]);
        assert!(bodies(&channels[2]).await.is_empty());
        assert_eq!((plan.counters.event_accepted.get(), plan.counters.channel_write_fail.get()), (0, 1));
    }

    #[tokio::test]
    async fn an_optional_channel_that_refuses_costs_only_its_own_copy() {
        let channels = [memory(10), memory(2)];
        let plan = plan(&channels, Box::new(Everywhere(Route { required: vec![0], optional: vec![1] })));
        Intake::new(&plan).accept(batch(&["1", "2", "3"])).await.unwrap();
        assert_eq!(bodies(&channels[0]).await.len(), 3);
        assert!(bodies(&channels[1]).await.is_empty());
        assert_eq!((plan.counters.event_accepted.get(), plan.counters.channel_write_fail.get()), (3, 1));
    }

    #[tokio::test]
    async fn each_event_takes_its_own_route_in_one_transaction_per_channel() {
        let channels = [memory(10), memory(1)];
        let route = Route { required: vec![0], optional: vec![1] };
        let plan = plan(&channels, Box::new(ByBody(route, Route::default())));
        Intake::new(&plan).accept(batch(&["a1", "b1", "a2"])).await.unwrap();
        assert_eq!(bodies(&channels[0]).await, ["a1", "a2"]);
        assert!(bodies(&channels[1]).await.is_empty(), "two events are one transaction, above its limit of one");
        assert_eq!(plan.counters.event_accepted.get(), 3);
    }
}
