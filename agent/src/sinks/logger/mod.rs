//! `type = logger`: shows events in the log, for trying out a configuration.
//!
//! The text is Flume's from `Event:` on: the headers, and the first 16 bytes of the body in hexadecimal and as text.
//! Events are logged first and settled then, so that after a crash some are shown twice and none is missing.

use std::time::Duration;

use channel::{Consumer, EventRef, Settlement, TakeLimits};
use wire::java;

use crate::component::{
    BoxFuture, ComponentError, Key, Progress, Refused, Settings, Sink, SinkContext, SinkEntry, SinkError,
};

/// What of a body is shown. Flume documents `maxBytesToLog`, and never reads it.
const SHOWN_BYTES: usize = 16;

/// Shown and settled together. Flume takes them one by one, which on a durable channel is one sync for each.
const ROUND_EVENTS: usize = 100;
const ROUND_BYTES: usize = 4 << 20;

/// How long a take waits for an event; an event or a stop ends it at once.
const TAKE_WAIT: Duration = Duration::from_secs(60);

static KEYS: &[Key] = &[Key::inert(
    "maxBytesToLog",
    "How much of a body to show.",
    "Flume 1.11 never reads it and always shows 16 bytes, and so does this sink",
)];

pub static ENTRY: SinkEntry = SinkEntry {
    alias: "logger",
    class: "org.apache.flume.sink.LoggerSink",
    doc: "Shows events in the log.",
    keys: KEYS,
    build,
};

fn build(_: &Settings) -> Result<Box<dyn Sink>, Refused> {
    Ok(Box::new(LoggerSink))
}

struct LoggerSink;

impl Sink for LoggerSink {
    fn start<'a>(&'a mut self, _: &'a SinkContext) -> BoxFuture<'a, Result<(), ComponentError>> {
        Box::pin(async { Ok(()) })
    }

    fn process<'a>(
        &'a mut self,
        context: &'a SinkContext,
        consumer: &'a mut dyn Consumer,
    ) -> BoxFuture<'a, Result<Progress, SinkError>> {
        Box::pin(async move {
            let events = ROUND_EVENTS.min(context.channel.channel.transaction_capacity());
            let limits = TakeLimits { events, bytes: ROUND_BYTES };
            let lease = context.take(consumer, limits, TAKE_WAIT).await?;
            if lease.is_empty() {
                return Ok(Progress::Idle);
            }
            let (count, ranges) = (lease.event_count(), lease.ranges());
            let texts: Vec<String> = lease.iter().map(|(_, event)| event_text(event)).collect();
            drop(lease);
            // A console that nobody reads blocks its writer: that must not be a worker.
            let shown = tokio::task::spawn_blocking(move || {
                for text in texts {
                    tracing::info!(target: "LoggerSink", "{text}");
                }
            });
            if shown.await.is_err() {
                consumer.settle(vec![Settlement::returned(ranges)]).await?;
                return Err(SinkError::Delivery("the log could not be written".to_owned()));
            }
            consumer.settle(vec![Settlement::delivered(ranges)]).await?;
            context.counters.event_drain_success.add(count as u64);
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

/// Flume's `EventHelper.dumpEvent`. Control characters in headers, which Flume prints as they are, are shown as
/// `\u001b`: an event must not be able to forge log lines or to command a terminal.
fn event_text(event: EventRef<'_>) -> String {
    let body = event.body();
    let shown = &body[..body.len().min(SHOWN_BYTES)];
    let mut text = String::with_capacity(128);
    text.push_str("Event: { headers:");
    push_printable(&mut text, &java::event_headers_text(event));
    text.push_str(" body:");
    if !shown.is_empty() {
        for index in 0..SHOWN_BYTES {
            match shown.get(index) {
                Some(byte) => text.push_str(&format!(" {byte:02X}")),
                None => text.push_str("   "),
            }
        }
        text.push(' ');
        text.extend(shown.iter().map(|byte| if (b' '..0x7f).contains(byte) { char::from(*byte) } else { '.' }));
    }
    text.push_str(" }");
    text
}

fn push_printable(out: &mut String, text: &str) {
    for letter in text.chars() {
        if letter.is_control() {
            out.push_str(&format!("\\u{:04x}", u32::from(letter)));
        } else {
            out.push(letter);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use channel::{Channel, EventBatch, MemoryChannel, MemoryOptions};
    use std::sync::Arc;

    fn check(headers: &[(&str, &str)], body: &[u8], expected: &str) {
        let mut batch = EventBatch::new();
        batch.push(headers.iter().copied(), body);
        assert_eq!(event_text(batch.get(0)), expected);
    }

    // The expected texts are those of a real Flume 1.11.
    #[test]
    fn events_look_as_flume_prints_them() {
        check(
            &[("k", "v")],
            b"hello",
            "Event: { headers:{k=v} body: 68 65 6C 6C 6F                                  hello }",
        );
        check(
            &[],
            b"0123456789abcdefXYZ",
            "Event: { headers:{} body: 30 31 32 33 34 35 36 37 38 39 61 62 63 64 65 66 0123456789abcdef }",
        );
        check(&[("k", "1"), ("n", "2")], b"", "Event: { headers:{n=2, k=1} body: }");
        check(
            &[("t", "json")],
            "grüße".as_bytes(),
            "Event: { headers:{t=json} body: 67 72 C3 BC C3 9F 65                            gr....e }",
        );
        check(&[], b"x\n\t\0", "Event: { headers:{} body: 78 0A 09 00                                     x... }");
    }

    #[test]
    fn an_event_cannot_forge_a_line_or_command_a_terminal() {
        check(&[("a", "1\n\u{1b}[31m\u{9b}ü")], b"", r"Event: { headers:{a=1\u000a\u001b[31m\u009bü} body: }");
    }

    #[tokio::test]
    async fn what_was_shown_is_settled() {
        let channel: Arc<dyn Channel> = Arc::new(MemoryChannel::new(MemoryOptions::default()).unwrap());
        let mut batch = EventBatch::new();
        (0..50).for_each(|_| batch.push_body(b"x"));
        channel.producer().put(batch).await.unwrap();
        let (context, _stopper) = SinkContext::over(Arc::clone(&channel));
        let mut consumer = channel.consumer("k1");
        assert_eq!(LoggerSink.process(&context, &mut *consumer).await, Ok(Progress::Worked));
        assert_eq!((channel.stats().size_events, context.counters.event_drain_success.get()), (0, 50));
    }
}
