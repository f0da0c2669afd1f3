//! The dead letters of a durable channel: events that its sinks can never write, with the reason.
//!
//! A sibling durable channel with the same key and a byte cap of its own, opened with the first letter, so that an
//! agent without any has no files for them. `bury` answers when the letters are durable, and refuses when there is no
//! room: the sink then stops visibly, and nothing is lost. Reading them is `wal-inspect`'s.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use channel::{Channel, Devices, DurableChannel, DurableOptions, EventBatch, Existing};

use crate::component::{BoxFuture, DeadLetters};

/// The header that says why an event is here.
const REASON_HEADER: &str = "penstock.dead-letter.reason";

/// A reason is a sentence; a sink that quotes more than this quotes the event.
const REASON_BYTES_MAX: usize = 1024;

pub(super) struct Graveyard {
    inner: Arc<Inner>,
}

struct Inner {
    options: DurableOptions,
    devices: Arc<Devices>,
    channel: Mutex<Option<Arc<DurableChannel>>>,
}

impl Graveyard {
    pub(super) fn new(options: DurableOptions, devices: Arc<Devices>) -> Graveyard {
        Graveyard { inner: Arc::new(Inner { options, devices, channel: Mutex::default() }) }
    }
}

impl Inner {
    /// Opens the channel when it is not open yet. Blocks while it does.
    fn open(&self) -> Result<Arc<DurableChannel>, String> {
        let mut channel = self.channel.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = &*channel {
            return Ok(Arc::clone(open));
        }
        let opened = DurableChannel::open(self.options.clone(), &self.devices).map_err(|error| error.to_string())?;
        let opened = Arc::new(opened);
        *channel = Some(Arc::clone(&opened));
        let dirs: Vec<String> = self.options.data_dirs.iter().map(|dir| describe(dir)).collect();
        tracing::warn!("dead letters are in {}", dirs.join(", "));
        Ok(opened)
    }
}

fn describe(dir: &Path) -> String {
    dir.display().to_string()
}

impl DeadLetters for Graveyard {
    fn bury(&self, mut events: EventBatch, reason: &str) -> BoxFuture<'static, Result<(), String>> {
        let mut end = reason.len().min(REASON_BYTES_MAX);
        while !reason.is_char_boundary(end) {
            end -= 1;
        }
        events.set_common(REASON_HEADER, &reason[..end], Existing::Replace);
        let inner = Arc::clone(&self.inner);
        Box::pin(async move {
            let failed = |error: String| format!("dead letters: {error}");
            let opening = Arc::clone(&inner);
            let channel = tokio::task::spawn_blocking(move || opening.open()).await;
            let channel = channel.map_err(|panic| failed(panic.to_string()))?.map_err(failed)?;
            let put = channel.producer().put(events);
            put.await.map(drop).map_err(|error| failed(error.to_string()))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use channel::{Settlement, TakeLimits};
    use std::time::Duration;

    #[tokio::test(flavor = "multi_thread")]
    async fn letters_are_durable_and_carry_their_reason() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("dead");
        let options = DurableOptions::new("c1-dead", vec![data.clone()]);
        let graveyard = Graveyard::new(options.clone(), Devices::new());
        assert!(!data.exists(), "no files without letters");
        let mut batch = EventBatch::new();
        batch.push([("a", "1")], b"x");
        graveyard.bury(batch.clone(), &"é".repeat(600)).await.unwrap();
        graveyard.bury(batch, "no timestamp").await.unwrap();
        drop(graveyard);
        let channel = DurableChannel::open(options, &Devices::new()).unwrap();
        let mut consumer = channel.consumer("test");
        let mut reasons = Vec::new();
        while reasons.len() < 2 {
            let lease =
                consumer.take(TakeLimits { events: 10, bytes: 1 << 20 }, Duration::from_secs(10)).await.unwrap();
            assert!(!lease.is_empty(), "both letters come");
            reasons.extend(lease.iter().map(|(_, event)| event.header(REASON_HEADER).unwrap_or_default().to_owned()));
            consumer.settle(vec![Settlement::delivered(lease.ranges())]).await.unwrap();
        }
        assert_eq!(reasons, ["é".repeat(512), "no timestamp".to_owned()]);
    }
}
