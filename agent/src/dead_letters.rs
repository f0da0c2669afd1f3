//! Dead letters: events that a sink can never write, in a durable channel beside the one they came from.
//!
//! One sink has one [`Grave`], opened by its first burial, so that an agent without dead letters has no files for them. It
//! has the key of its channel and a byte cap of its own. `bury` answers when the letters are durable, and refuses when
//! there is no room: the sink then stops visibly, and nothing is lost. Reading them is `wal-inspect`'s.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use channel::{Channel, ChannelStats, Devices, DurableChannel, DurableOptions, EventBatch, Existing, PutError};
use wal::seal::ChannelKey;

use crate::component::{BoxFuture, DeadLetters};
use crate::telemetry::counters::Gauge;

/// Headers that a dead letter has beside its own.
pub const REASON_HEADER: &str = "penstock.dead.reason";
pub const SINK_HEADER: &str = "penstock.dead.sink";
pub const CHANNEL_HEADER: &str = "penstock.dead.channel";

/// The directory of dead letters in a data directory; each sink has its own below.
pub const DIRECTORY: &str = "penstock-dead-letters";

/// A reason is a sentence; a sink that quotes more than this quotes the event.
const REASON_BYTES_MAX: usize = 1024;

/// Events and bytes of one transaction of letters: far below what the smallest segment takes.
const COMMIT_EVENTS: usize = 10_000;
const COMMIT_BYTES: usize = 256 << 10;

/// Where the dead letters of one channel's sinks go.
#[derive(Debug, Clone)]
pub struct Graveyard {
    channel: String,
    /// The data directories of the channel, never empty.
    data_dirs: Vec<PathBuf>,
    options: DurableOptions,
    devices: Arc<Devices>,
}

impl Graveyard {
    /// Beside the channel that `options` open in `data_dirs`, with at most `bytes_max` bytes for each sink.
    pub fn new(data_dirs: Vec<PathBuf>, options: &DurableOptions, bytes_max: u64, devices: &Arc<Devices>) -> Graveyard {
        let letters = DurableOptions {
            // Bytes are the limit; many small letters are no reason to stop a sink.
            capacity: u64::from(u32::MAX),
            transaction_capacity: COMMIT_EVENTS,
            // Nobody takes from it, so there is nothing to wait for.
            keep_alive: Duration::ZERO,
            disk_bytes_max: Some(bytes_max),
            hot_tail_bytes: 0,
            ..options.clone()
        };
        Graveyard { channel: options.name.clone(), data_dirs, options: letters, devices: Arc::clone(devices) }
    }

    /// The place for one sink. Nothing is opened or made yet.
    pub fn grave(&self, sink: &str) -> Grave {
        let at = |dir: &PathBuf| dir.join(DIRECTORY).join(file_name(sink));
        // The order of the data directories may have changed since the first letter.
        let existing = self.data_dirs.iter().map(at).find(|directory| directory.is_dir());
        if let Some(directory) = &existing {
            tracing::warn!("sink {sink} has dead letters of an earlier run in {}", directory.display());
        }
        let directory = existing.unwrap_or_else(|| at(&self.data_dirs[0]));
        let options =
            DurableOptions { name: format!("{sink}-dead-letters"), data_dirs: vec![directory], ..self.options.clone() };
        Grave(Arc::new(Inner {
            sink: sink.to_owned(),
            channel: self.channel.clone(),
            options,
            devices: Arc::clone(&self.devices),
            start_time: Gauge::default(),
            state: Mutex::new(State::Unopened(None)),
        }))
    }
}

/// The dead letters of one sink.
#[derive(Clone)]
pub struct Grave(Arc<Inner>);

struct Inner {
    sink: String,
    channel: String,
    options: DurableOptions,
    devices: Arc<Devices>,
    start_time: Gauge,
    state: Mutex<State>,
}

enum State {
    /// With the key that it will have, where it is another than its options say.
    Unopened(Option<ChannelKey>),
    Open(Arc<DurableChannel>),
    Closed,
}

impl Grave {
    /// Its name among the channels.
    pub fn name(&self) -> &str {
        &self.0.options.name
    }

    /// The channel whose events it takes.
    pub fn channel(&self) -> &str {
        &self.0.channel
    }

    /// Seals new letters with another key.
    pub fn rotate(&self, key: &ChannelKey) {
        match &mut *self.0.lock() {
            State::Unopened(rotated) => *rotated = Some(key.clone()),
            State::Open(channel) => channel.rotate(key),
            State::Closed => {}
        }
    }

    /// Counters and the time of opening, once there was a letter.
    pub fn stats(&self) -> Option<(ChannelStats, i64)> {
        // While it is opening there is nothing to tell, and a scrape must not wait for a disk.
        let state = self.0.state.try_lock().ok()?;
        let State::Open(channel) = &*state else { return None };
        Some((channel.stats(), self.0.start_time.get()))
    }

    /// Refuses more letters and frees the files. Blocks.
    pub fn close(&self) {
        let state = std::mem::replace(&mut *self.0.lock(), State::Closed);
        if let State::Open(channel) = state
            && let Err(error) = channel.close().wait()
        {
            tracing::error!("{} did not close well: {error}", self.name());
        }
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn directory(&self) -> &Path {
        &self.options.data_dirs[0]
    }

    /// The channel, opened when it is not open yet. Blocks while it does.
    fn open(&self) -> Result<Arc<DurableChannel>, String> {
        let mut options = self.options.clone();
        let mut state = self.lock();
        match &*state {
            State::Open(channel) => return Ok(Arc::clone(channel)),
            State::Closed => return Err("the agent is stopping".to_owned()),
            State::Unopened(rotated) => options.key = rotated.clone().or(options.key),
        }
        let opened = DurableChannel::open(options, &self.devices).map_err(|error| error.to_string())?;
        let opened = Arc::new(opened);
        *state = State::Open(Arc::clone(&opened));
        self.start_time.set_to_now();
        tracing::warn!("events that sink {} cannot write go to {}", self.sink, self.directory().display());
        Ok(opened)
    }

    async fn bury(self: Arc<Inner>, events: EventBatch) -> Result<(), String> {
        let failed = |error: String| format!("dead letters of sink {}: {error}", self.sink);
        let opening = Arc::clone(&self);
        let channel = tokio::task::spawn_blocking(move || opening.open()).await;
        let channel = channel.map_err(|panic| failed(panic.to_string()))?.map_err(failed)?;
        let mut producer = channel.producer();
        let mut start = 0;
        // When a later part fails, the sink returns all of them: some may then be buried twice, and none is lost.
        while start < events.len() {
            let (mut end, mut bytes) = (start, 0);
            while end < events.len() && end - start < COMMIT_EVENTS && (end == start || bytes < COMMIT_BYTES) {
                bytes += events.get(end).bytes();
                end += 1;
            }
            let put = producer.put(events.sub_batch(start..end)).await;
            put.map_err(|error| self.refusal(&error, &channel.stats()))?;
            start = end;
        }
        Ok(())
    }

    fn refusal(&self, error: &PutError, stats: &ChannelStats) -> String {
        let (sink, directory) = (&self.sink, self.directory().display());
        match self.options.disk_bytes_max {
            Some(limit) if matches!(error, PutError::Full { .. }) && stats.disk_bytes >= limit => format!(
                "dead letters of sink {sink} are full: {} bytes in {directory}. Raise penstock.deadLetterMaxBytes of \
                 channel {}; or stop the agent, keep what `wal-inspect cat {directory}` prints, and set the directory aside",
                stats.disk_bytes, self.channel
            ),
            _ => format!("dead letters of sink {sink} in {directory}: {error}"),
        }
    }
}

impl DeadLetters for Grave {
    fn bury(&self, mut events: EventBatch, reason: &str) -> BoxFuture<'static, Result<(), String>> {
        let mut end = reason.len().min(REASON_BYTES_MAX);
        while !reason.is_char_boundary(end) {
            end -= 1;
        }
        let inner = Arc::clone(&self.0);
        events.set_common(REASON_HEADER, &reason[..end], Existing::Replace);
        events.set_common(SINK_HEADER, &inner.sink, Existing::Replace);
        events.set_common(CHANNEL_HEADER, &inner.channel, Existing::Replace);
        Box::pin(inner.bury(events))
    }
}

/// A sink's name as one component of a path, whatever characters it has.
fn file_name(sink: &str) -> String {
    let mut name = String::new();
    for byte in sink.bytes() {
        let plain = byte.is_ascii_alphanumeric() || b"-_".contains(&byte) || (byte == b'.' && !name.is_empty());
        if plain { name.push(char::from(byte)) } else { name.push_str(&format!("%{byte:02X}")) }
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;
    use channel::{Settlement, TakeLimits};

    const LIMIT: Duration = Duration::from_secs(10);

    fn graveyard(data: &Path) -> Graveyard {
        let options = DurableOptions { segment_len: 1 << 20, ..DurableOptions::new("c1", vec![data.join("penstock")]) };
        Graveyard::new(vec![data.to_owned()], &options, 2 << 20, &Devices::new())
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn letters_are_durable_and_say_why_and_from_where() {
        let dir = tempfile::tempdir().unwrap();
        let grave = graveyard(dir.path()).grave("k1");
        assert!(grave.stats().is_none() && !dir.path().join(DIRECTORY).exists(), "no files without letters");
        let mut batch = EventBatch::new();
        batch.push([("a", "1"), (SINK_HEADER, "forged")], b"x");
        grave.bury(batch.clone(), &"é".repeat(600)).await.unwrap();
        grave.bury(batch.clone(), "no timestamp").await.unwrap();
        assert_eq!(grave.stats().unwrap().0.size_events, 2);
        let closing = grave.clone();
        tokio::task::spawn_blocking(move || closing.close()).await.unwrap();
        assert!(grave.bury(batch, "late").await.is_err());
        let found = graveyard(dir.path()).grave("k1").0.open().unwrap();
        let mut consumer = found.consumer("test");
        let mut letters = Vec::new();
        while letters.len() < 2 {
            let lease = consumer.take(TakeLimits { events: 10, bytes: 1 << 20 }, LIMIT).await.unwrap();
            assert!(!lease.is_empty(), "both letters come");
            let header = |key: &str, event: channel::EventRef<'_>| event.header(key).unwrap_or_default().to_owned();
            letters.extend(
                lease
                    .iter()
                    .map(|(_, event)| [REASON_HEADER, SINK_HEADER, CHANNEL_HEADER, "a"].map(|key| header(key, event))),
            );
            consumer.settle(vec![Settlement::delivered(lease.ranges())]).await.unwrap();
        }
        let expected = ["é".repeat(512), "no timestamp".to_owned()]
            .map(|reason| [reason.as_str(), "k1", "c1", "1"].map(str::to_owned));
        assert_eq!(letters, expected);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_full_grave_says_so_and_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let grave = graveyard(dir.path()).grave("k1");
        let mut batch = EventBatch::new();
        (0..100).for_each(|_| batch.push_body(&[b'x'; 10_000]));
        let mut refused = None;
        for _ in 0..10 {
            refused = grave.bury(batch.clone(), "no").await.err();
            if refused.is_some() {
                break;
            }
        }
        let refused = refused.expect("2 MiB hold less than 10 MB");
        assert!(refused.contains("full") && refused.contains("penstock.deadLetterMaxBytes"), "{refused}");
    }

    #[test]
    fn a_sinks_name_never_leaves_the_directory() {
        for (sink, name) in [("k1", "k1"), ("../x", "%2E.%2Fx"), ("a.b_c-d", "a.b_c-d"), ("é", "%C3%A9"), (".", "%2E")]
        {
            assert_eq!(file_name(sink), name);
        }
    }
}
