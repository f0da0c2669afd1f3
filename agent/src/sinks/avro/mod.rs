//! `type = avro`: sends batches to the next hop, a Flume agent or another Penstock.
//!
//! One call is in flight at a time; its events are settled when the server has answered OK, while the next call goes on.
//! After any error the connection is closed and the events return to the channel, so that the next hop may see some of
//! them twice but never misses one.

mod connection;
#[cfg(test)]
mod tests;

use std::time::Duration;

use channel::{Consumer, EventRef, Lease, Settlement, TakeLimits};

use self::connection::{CallError, Connection};
use super::settling::Settling;
use crate::component::{
    BoxFuture, ComponentError, Key, KeyDefault, Progress, Refused, Settings, Sink, SinkContext, SinkEntry, SinkError,
};

/// A call holds its events twice (leased and encoded), and a receiver must have room for it: below the frame limit of
/// every known one.
const CALL_BYTES_MAX: usize = 16 << 20;

/// Idle rounds are this far apart. An event, or a stop, ends the wait at once.
const TAKE_WAIT: Duration = Duration::from_secs(60);

/// Flume ignores shorter time-outs and takes its default.
const TIMEOUT_MS_MIN: i64 = 1000;
const TIMEOUT_MS_DEFAULT: i64 = 20_000;

const ONLY_WITH_TLS: &str = "it says something about TLS, which is not used";

static KEYS: &[Key] = &[
    Key::text("hostname", KeyDefault::Required, "Host name or address of the next hop."),
    Key::integer("port", 1, 65535, "", KeyDefault::Required, "Port of the next hop."),
    Key::integer("batch-size", 1, 1 << 20, "events", KeyDefault::Is("100"), "Most events in one call."),
    Key::integer(
        "connect-timeout",
        i64::MIN,
        i64::MAX,
        "ms",
        KeyDefault::Is("20000"),
        "Longest wait for a connection. Values below 1000 are ignored, as in Flume.",
    ),
    Key::integer(
        "request-timeout",
        i64::MIN,
        i64::MAX,
        "ms",
        KeyDefault::Is("20000"),
        "Longest wait for an answer. Values below 1000 are ignored, as in Flume.",
    ),
    Key::integer(
        "reset-connection-interval",
        0,
        i64::MAX,
        "s",
        KeyDefault::Is("0"),
        "After this long the connection is made anew, so that a load balancer can move it; 0 never does.",
    ),
    Key::choice(
        "compression-type",
        &["none", "deflate"],
        KeyDefault::Is("none"),
        "Whether both directions are one zlib stream each; must be the same at the next hop.",
    ),
    Key::integer("compression-level", 0, 9, "", KeyDefault::Is("6"), "0 is no, 9 the best compression."),
    Key::refused_flag("ssl", "Encrypt the connection.", "Put a TLS proxy (stunnel) in between, or remove the key."),
    Key::inert("trust-all-certs", "Accept any certificate.", ONLY_WITH_TLS),
    Key::inert("truststore", "Trust store for TLS.", ONLY_WITH_TLS),
    Key::inert("truststore-password", "Password of the trust store.", ONLY_WITH_TLS),
    Key::inert("truststore-type", "Type of the trust store.", ONLY_WITH_TLS),
    Key::inert("exclude-protocols", "TLS versions to refuse.", ONLY_WITH_TLS),
    Key::inert("include-protocols", "TLS versions to allow.", ONLY_WITH_TLS),
    Key::inert("exclude-cipher-suites", "Cipher suites to refuse.", ONLY_WITH_TLS),
    Key::inert("include-cipher-suites", "Cipher suites to allow.", ONLY_WITH_TLS),
    Key::inert("maxIoWorkers", "Number of threads.", "sinks share the agent's threads"),
];

pub static ENTRY: SinkEntry = SinkEntry {
    alias: "avro",
    class: "org.apache.flume.sink.AvroSink",
    doc: "Sends events to the Avro source of another agent.",
    keys: KEYS,
    build,
};

fn build(settings: &Settings) -> Result<Box<dyn Sink>, Refused> {
    Ok(Box::new(read(settings)))
}

fn read(settings: &Settings) -> AvroSink {
    let deflate = settings.choice("compression-type") == "deflate";
    AvroSink {
        hostname: settings.text("hostname").trim().to_owned(),
        port: u16::try_from(settings.integer("port")).unwrap_or(0),
        batch_size: settings.count("batch-size"),
        connect_timeout: timeout_of(settings, "connect-timeout"),
        request_timeout: timeout_of(settings, "request-timeout"),
        reset_interval: match settings.integer("reset-connection-interval") {
            0 => None,
            seconds => Some(Duration::from_secs(seconds.unsigned_abs())),
        },
        level: deflate.then(|| u32::try_from(settings.integer("compression-level")).unwrap_or(6)),
        connection: None,
        settling: Settling::default(),
    }
}

fn timeout_of(settings: &Settings, key: &'static str) -> Duration {
    let mut found = settings.integer(key);
    if found < TIMEOUT_MS_MIN {
        settings.warn(key, format!("{found} is below {TIMEOUT_MS_MIN} ms and ignored; {TIMEOUT_MS_DEFAULT} holds"));
        found = TIMEOUT_MS_DEFAULT;
    }
    // A year is for ever, and still can be added to a clock.
    Duration::from_millis(found.unsigned_abs()).min(Duration::from_secs(365 * 24 * 3600))
}

struct AvroSink {
    hostname: String,
    port: u16,
    batch_size: usize,
    connect_timeout: Duration,
    request_timeout: Duration,
    reset_interval: Option<Duration>,
    /// The compression level; `None` is no compression.
    level: Option<u32>,
    connection: Option<Connection>,
    settling: Settling,
}

impl AvroSink {
    async fn round(&mut self, context: &SinkContext, consumer: &mut dyn Consumer) -> Result<Progress, SinkError> {
        // Before the take: while the next hop is away nothing needs to be leased.
        self.connect(context).await.map_err(|error| self.failed(error))?;
        let limits = TakeLimits { events: self.batch_size, bytes: CALL_BYTES_MAX };
        let lease = self.settling.take(context, consumer, limits, TAKE_WAIT).await?;
        if lease.is_empty() {
            return Ok(Progress::Idle);
        }
        let ranges = lease.ranges();
        let delivered = self.deliver(context, &lease).await;
        drop(lease);
        match delivered {
            Ok(()) => {
                self.settling.delivered(context, consumer, ranges).await?;
                Ok(Progress::Worked)
            }
            Err(error) => {
                self.disconnect(context);
                context.counters.event_write_fail.add(1);
                consumer.settle(vec![Settlement::returned(ranges)]).await?;
                Err(self.failed(error))
            }
        }
    }

    async fn deliver(&mut self, context: &SinkContext, lease: &Lease) -> Result<(), CallError> {
        // The take may have waited for long.
        self.connect(context).await?;
        let Some(connection) = &mut self.connection else { return Err(CallError::Closed) };
        let events: Vec<EventRef<'_>> = lease.iter().map(|(_, event)| event).collect();
        connection.append_batch(&events, self.request_timeout).await
    }

    /// Makes sure that there is a connection: alive, and no older than the reset interval.
    async fn connect(&mut self, context: &SinkContext) -> Result<(), CallError> {
        if let Some(connection) = &self.connection {
            let is_due = self.reset_interval.is_some_and(|interval| connection.since.elapsed() >= interval);
            if !is_due && connection.is_alive() {
                return Ok(());
            }
            self.disconnect(context);
        }
        match Connection::open(&self.hostname, self.port, self.level, self.connect_timeout).await {
            Ok(connection) => {
                context.counters.connection_created.add(1);
                self.connection = Some(connection);
                Ok(())
            }
            Err(error) => {
                context.counters.connection_failed.add(1);
                Err(error)
            }
        }
    }

    fn disconnect(&mut self, context: &SinkContext) {
        if self.connection.take().is_some() {
            context.counters.connection_closed.add(1);
        }
    }

    fn failed(&self, error: CallError) -> SinkError {
        SinkError::Delivery(format!("avro sink to {}:{}: {error}", self.hostname, self.port))
    }
}

impl Sink for AvroSink {
    fn batch_size(&self) -> Option<(&'static str, usize)> {
        Some(("batch-size", self.batch_size))
    }

    fn start<'a>(&'a mut self, context: &'a SinkContext) -> BoxFuture<'a, Result<(), ComponentError>> {
        Box::pin(async move {
            // As in Flume, the next hop may come later than this one.
            if let Err(error) = self.connect(context).await {
                tracing::warn!(sink = context.name, "{}; it is tried again with the first events", self.failed(error));
            }
            Ok(())
        })
    }

    fn process<'a>(
        &'a mut self,
        context: &'a SinkContext,
        consumer: &'a mut dyn Consumer,
    ) -> BoxFuture<'a, Result<Progress, SinkError>> {
        Box::pin(self.round(context, consumer))
    }

    fn stop<'a>(
        mut self: Box<Self>,
        context: &'a SinkContext,
        _consumer: &'a mut dyn Consumer,
    ) -> BoxFuture<'a, Result<(), ComponentError>> {
        Box::pin(async move {
            self.disconnect(context);
            self.settling.finish(context).await.map_err(|error| ComponentError(error.to_string()))
        })
    }
}
