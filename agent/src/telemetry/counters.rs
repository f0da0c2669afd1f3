//! Counters of sources and sinks, with Flume's names.
//!
//! Each is a plain number that components raise; promises nothing about consistency between two of them. Who prints
//! them as JSON is `telemetry::http`.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number that is set, or goes up and down.
#[derive(Debug, Default)]
pub struct Gauge(AtomicI64);

impl Gauge {
    pub fn set(&self, value: i64) {
        self.0.store(value, Ordering::Relaxed);
    }

    pub fn add(&self, change: i64) {
        self.0.fetch_add(change, Ordering::Relaxed);
    }

    /// Milliseconds since 1970, now.
    pub fn set_to_now(&self) {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.set(i64::try_from(since.as_millis()).unwrap_or(i64::MAX));
    }

    pub fn get(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Lists every field of a group of counters once: its name here and Flume's.
macro_rules! counters {
    ($(#[$doc:meta])* $group:ident { $($(#[$field_doc:meta])* $field:ident: $kind:ident = $flume:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Default)]
        pub struct $group { $($(#[$field_doc])* pub $field: $kind,)* }

        impl $group {
            /// Flume's name and the value of each.
            pub fn values(&self) -> Vec<(&'static str, String)> {
                vec![$(($flume, self.$field.get().to_string()),)*]
            }
        }
    };
}

counters! {
    /// What a source counts. `Intake` counts accepted events and failed puts; the source counts what it receives.
    SourceCounters {
        /// Events that arrived, before anything was done with them. The source raises it.
        event_received: Counter = "EventReceivedCount",
        /// Events that are in all required channels. `Intake` raises it.
        event_accepted: Counter = "EventAcceptedCount",
        append_received: Counter = "AppendReceivedCount",
        append_accepted: Counter = "AppendAcceptedCount",
        append_batch_received: Counter = "AppendBatchReceivedCount",
        append_batch_accepted: Counter = "AppendBatchAcceptedCount",
        open_connections: Gauge = "OpenConnectionCount",
        /// Input that could not be read or understood.
        event_read_fail: Counter = "EventReadFail",
        /// Puts that a channel refused. `Intake` raises it.
        channel_write_fail: Counter = "ChannelWriteFail",
        generic_processing_fail: Counter = "GenericProcessingFail",
        start_time: Gauge = "StartTime",
        stop_time: Gauge = "StopTime",
    }
}

counters! {
    /// What a sink counts; the sink raises all but the times and `channel_read_fail`.
    SinkCounters {
        connection_created: Counter = "ConnectionCreatedCount",
        connection_closed: Counter = "ConnectionClosedCount",
        connection_failed: Counter = "ConnectionFailedCount",
        batch_empty: Counter = "BatchEmptyCount",
        batch_underflow: Counter = "BatchUnderflowCount",
        batch_complete: Counter = "BatchCompleteCount",
        event_drain_attempt: Counter = "EventDrainAttemptCount",
        event_drain_success: Counter = "EventDrainSuccessCount",
        channel_read_fail: Counter = "ChannelReadFail",
        event_write_fail: Counter = "EventWriteFail",
        /// Events taken and not yet settled, for sinks that settle later than they take (hdfs).
        leased_events: Gauge = "LeasedEventCount",
        /// Age of the oldest of them.
        oldest_lease_ms: Gauge = "OldestLeaseMillis",
        /// Files made durable; on HDFS each is an edit of the namenode.
        syncs: Counter = "SyncCount",
        start_time: Gauge = "StartTime",
        stop_time: Gauge = "StopTime",
    }
}

impl SinkCounters {
    /// Counts one take as Flume does: empty, smaller than asked, or complete.
    pub fn count_batch(&self, events: usize, asked: usize) {
        match events {
            0 => self.batch_empty.add(1),
            _ if events < asked => self.batch_underflow.add(1),
            _ => self.batch_complete.add(1),
        }
        self.event_drain_attempt.add(events as u64);
    }
}
