//! Everything that is counted, under the names of Flume's JSON.
//!
//! Keyed `TYPE.name`, every value a string, so that dashboards made for Flume keep working.

use std::sync::{Arc, Mutex, PoisonError};

use channel::{ChannelStats, Unavailable};
use serde_json::{Map, Value};

use super::counters::{Gauge, SinkCounters, SourceCounters};
use crate::component::NamedChannel;
use crate::dead_letters::Grave;

/// One component that is counted.
#[derive(Clone)]
pub enum Subject {
    Source {
        name: String,
        counters: Arc<SourceCounters>,
    },
    Sink {
        name: String,
        counters: Arc<SinkCounters>,
    },
    Channel {
        channel: NamedChannel,
        start_time: Arc<Gauge>,
    },
    /// Told as a channel of its own, once there are any.
    DeadLetters(Grave),
}

/// The components that run now.
#[derive(Default)]
pub struct Registry(Mutex<State>);

#[derive(Default)]
struct State {
    subjects: Vec<Subject>,
    agent: String,
    dropped: Vec<String>,
}

impl Registry {
    /// Replaces everything, at the start and at a reload.
    pub fn replace(&self, agent: &str, subjects: Vec<Subject>, dropped: Vec<String>) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *state = State { subjects, agent: agent.to_owned(), dropped };
    }

    /// All of it, as Flume's `/metrics` answers.
    pub fn json(&self) -> String {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all = Map::new();
        for subject in &state.subjects {
            if let Some((key, values)) = describe(subject) {
                all.insert(key, Value::Object(values));
            }
        }
        if !state.dropped.is_empty() {
            let mut values = Map::new();
            put(&mut values, "Type", "AGENT");
            put(&mut values, "DroppedComponentCount", state.dropped.len());
            put(&mut values, "DroppedComponents", state.dropped.join(" "));
            all.insert(format!("AGENT.{}", state.agent), Value::Object(values));
        }
        Value::Object(all).to_string()
    }
}

fn put(values: &mut Map<String, Value>, name: &str, value: impl ToString) {
    values.insert(name.to_owned(), Value::String(value.to_string()));
}

fn describe(subject: &Subject) -> Option<(String, Map<String, Value>)> {
    let mut values = Map::new();
    let (kind, name) = match subject {
        Subject::Source { name, counters } => {
            counters.values().into_iter().for_each(|(counter, value)| put(&mut values, counter, value));
            ("SOURCE", name.as_str())
        }
        Subject::Sink { name, counters } => {
            counters.values().into_iter().for_each(|(counter, value)| put(&mut values, counter, value));
            ("SINK", name.as_str())
        }
        Subject::Channel { channel, start_time } => {
            let NamedChannel { name, channel } = channel;
            channel_values(&mut values, &channel.stats(), channel.is_durable(), start_time.get());
            ("CHANNEL", name.as_str())
        }
        Subject::DeadLetters(grave) => {
            let (stats, start_time) = grave.stats()?;
            channel_values(&mut values, &stats, true, start_time);
            ("CHANNEL", grave.name())
        }
    };
    put(&mut values, "Type", kind);
    Some((format!("{kind}.{name}"), values))
}

fn channel_values(values: &mut Map<String, Value>, stats: &ChannelStats, durable: bool, start_time: i64) {
    put(values, "ChannelSize", stats.size_events);
    put(values, "ChannelCapacity", stats.capacity_events);
    // Java writes a double with at least one digit behind the point, as `{:?}` does.
    put(values, "ChannelFillPercentage", format!("{:?}", stats.fill_percent));
    put(values, "EventPutAttemptCount", stats.put_attempt_events);
    put(values, "EventPutSuccessCount", stats.put_success_events);
    put(values, "EventTakeAttemptCount", stats.take_attempts);
    put(values, "EventTakeSuccessCount", stats.take_success_events);
    put(values, "StartTime", start_time);
    put(values, "StopTime", 0);
    put(values, "LeasedEventCount", stats.leased_events);
    put(values, "DeadLetteredEventCount", stats.dead_lettered_events);
    put(values, "DroppedEventCount", stats.dropped_events);
    if durable {
        put(values, "Open", true);
        put(values, "Closed", 0);
        put(values, "Unhealthy", u8::from(stats.unhealthy));
        put(values, "EventPutErrorCount", stats.put_errors);
        put(values, "EventTakeErrorCount", stats.take_errors);
        put(values, "CheckpointWriteErrorCount", stats.checkpoint_errors);
        put(values, "RingsDenied", stats.rings_denied);
        put(values, "CheckpointBackupWriteErrorCount", 0);
        put(values, "DiskBytes", stats.disk_bytes);
        put(values, "OrderRelaxedEventCount", stats.order_relaxed_events);
        let count = |events: fn(&Unavailable) -> u64| stats.unavailable.iter().map(events).sum::<u64>();
        put(values, "UnavailableEventCount", count(|disk| disk.events));
        put(values, "DamagedEventCount", count(|disk| disk.damaged_events));
        for disk in &stats.unavailable {
            put(values, &format!("UnavailableSince.{}", disk.disk), disk.since_ms);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use channel::{MemoryChannel, MemoryOptions};

    #[test]
    fn the_json_is_keyed_and_typed_as_flumes() {
        let registry = Registry::default();
        let memory = MemoryChannel::new(MemoryOptions { capacity: 200, ..MemoryOptions::default() }).unwrap();
        let counters = Arc::new(SourceCounters::default());
        counters.event_received.add(3);
        let channel = NamedChannel { name: "c1".to_owned(), channel: Arc::new(memory) };
        let subjects = vec![
            Subject::Source { name: "r1".to_owned(), counters },
            Subject::Sink { name: "k1".to_owned(), counters: Arc::default() },
            Subject::Channel { channel, start_time: Arc::default() },
        ];
        registry.replace("a1", subjects, vec!["sinks.k2".to_owned()]);
        let json: Value = serde_json::from_str(&registry.json()).unwrap();
        assert_eq!(json["SOURCE.r1"]["EventReceivedCount"], "3");
        assert_eq!(json["SINK.k1"]["Type"], "SINK");
        assert_eq!(json["CHANNEL.c1"]["ChannelCapacity"], "200");
        assert_eq!(json["CHANNEL.c1"]["ChannelFillPercentage"], "0.0");
        assert_eq!(json["AGENT.a1"]["DroppedComponentCount"], "1");
        let strings = json.as_object().unwrap().values().flat_map(|one| one.as_object().unwrap().values());
        assert!(strings.clone().count() > 30);
        assert!(strings.into_iter().all(Value::is_string));
    }
}
