//! `type = file_roll`: events into files of one local directory, a new file every so often.
//!
//! Promises that an event is settled only after the file that holds it was synced, and that no file is ever
//! overwritten. Two differences to Flume: Flume never syncs, so that a power cut loses what it has committed, and it
//! makes an empty file for every interval without events, where this sink makes none. After an error the events return
//! to the channel and go into a new file; the old one may hold some of them already.

mod keys;
mod names;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use channel::{Consumer, Lease, Settlement, TakeLimits};
use jiff::Zoned;
use store::fs::{Store, StoreError, Then, Writer};
use store::local::LocalFiles;
use store::serializer::{Encoder, Format};
use tokio::time::Instant;

use self::names::Names;
use super::settling::Settling;
use crate::component::{
    BoxFuture, ComponentError, Progress, Refused, Settings, Sink, SinkContext, SinkEntry, SinkError,
};

/// A disk that takes longer for one write has failed for the purposes of this sink.
const DISK_DEADLINE: Duration = Duration::from_secs(60);

/// One round is written from one buffer.
const ROUND_BYTES: usize = 16 << 20;

/// How long a take waits for an event where no roll is due before; an event or a stop ends it at once.
const TAKE_WAIT: Duration = Duration::from_secs(60);

/// Names that are taken already are passed over; so many in a row are not ours to explain.
const TAKEN_NAMES_MAX: usize = 1000;

pub static ENTRY: SinkEntry = SinkEntry {
    alias: "file_roll",
    class: "org.apache.flume.sink.RollingFileSink",
    doc: "Writes events into files of a local directory.",
    keys: keys::KEYS,
    build,
};

fn build(settings: &Settings) -> Result<Box<dyn Sink>, Refused> {
    Ok(Box::new(keys::plan(settings).map(FileRollSink::new)?))
}

/// What the configuration asks for.
#[derive(Debug)]
struct Plan {
    directory: PathBuf,
    /// `None` never rolls.
    roll_interval: Option<Duration>,
    batch_size: usize,
    format: Format,
    names: Names,
}

struct FileRollSink {
    plan: Plan,
    store: Option<Store>,
    open: Option<OpenFile>,
    settling: Settling,
}

struct OpenFile {
    writer: Writer,
    encoder: Encoder,
    /// When it is to be closed.
    roll_at: Option<Instant>,
    /// The beginning of the file, until the first write takes it along.
    head: Vec<u8>,
}

impl FileRollSink {
    fn new(plan: Plan) -> FileRollSink {
        FileRollSink { plan, store: None, open: None, settling: Settling::default() }
    }

    async fn round(&mut self, context: &SinkContext, consumer: &mut dyn Consumer) -> Result<Progress, SinkError> {
        self.roll_if_due(context).await;
        let until_roll = self.open.as_ref().and_then(|file| file.roll_at).map(|at| at - Instant::now());
        let limits = TakeLimits { events: self.plan.batch_size, bytes: ROUND_BYTES };
        let wait = until_roll.map_or(TAKE_WAIT, |left| left.min(TAKE_WAIT));
        let lease = self.settling.take(context, consumer, limits, wait).await?;
        if lease.is_empty() {
            return Ok(Progress::Idle);
        }
        // The take may have waited beyond the moment of the roll.
        self.roll_if_due(context).await;
        let ranges = lease.ranges();
        match self.write(context, &lease).await {
            Ok(()) => {
                drop(lease);
                self.settling.delivered(context, consumer, ranges).await?;
                Ok(Progress::Worked)
            }
            Err(error) => {
                self.open = None;
                drop(lease);
                context.counters.event_write_fail.add(1);
                consumer.settle(vec![Settlement::returned(ranges)]).await?;
                Err(error)
            }
        }
    }

    /// Writes and syncs the events.
    async fn write(&mut self, context: &SinkContext, lease: &Lease) -> Result<(), SinkError> {
        if self.open.is_none() {
            self.open = Some(self.create(context).await.map_err(delivery)?);
        }
        let Some(file) = &mut self.open else { return Ok(()) };
        let mut bytes = std::mem::take(&mut file.head);
        for (_, event) in lease.iter() {
            // Only a record of 2 GiB cannot be written, and no channel takes one.
            file.encoder.event(event, 0, &mut bytes).map_err(|why| SinkError::Delivery(why.to_string()))?;
        }
        file.encoder.finish_block(&mut bytes);
        file.writer.append(Bytes::from(bytes), Then::Sync).await.map_err(delivery)?;
        Ok(())
    }

    async fn create(&mut self, context: &SinkContext) -> Result<OpenFile, StoreError> {
        let Some(store) = &self.store else {
            return Err(StoreError::Poisoned { path: self.plan.directory.display().to_string() });
        };
        let mut taken = 0;
        let writer = loop {
            let path = self.plan.directory.join(self.plan.names.next(&Zoned::now()));
            match store.create(&path.to_string_lossy()).await {
                Err(StoreError::AlreadyExists { .. }) if taken < TAKEN_NAMES_MAX => taken += 1,
                created => break created?,
            }
        };
        context.counters.connection_created.add(1);
        let mut encoder = Encoder::new(self.plan.format, wire::java::event_headers, random_marker());
        let mut head = Vec::new();
        encoder.start(&mut head);
        let roll_at = self.plan.roll_interval.map(|interval| Instant::now() + interval);
        Ok(OpenFile { writer, encoder, roll_at, head })
    }

    async fn roll_if_due(&mut self, context: &SinkContext) {
        let due = self.open.as_ref().and_then(|file| file.roll_at).is_some_and(|at| at <= Instant::now());
        if due {
            self.close(context).await;
        }
    }

    /// Everything in the file was settled before: an error here loses nothing.
    async fn close(&mut self, context: &SinkContext) {
        let Some(mut file) = self.open.take() else { return };
        match file.writer.append(Bytes::new(), Then::Close).await {
            Ok(_) => context.counters.connection_closed.add(1),
            Err(error) => {
                context.counters.connection_failed.add(1);
                tracing::warn!(sink = context.name, "closing a file failed after its last event was synced: {error}");
            }
        }
    }
}

impl Sink for FileRollSink {
    fn batch_size(&self) -> Option<(&'static str, usize)> {
        Some(("sink.batchSize", self.plan.batch_size))
    }

    fn start<'a>(&'a mut self, context: &'a SinkContext) -> BoxFuture<'a, Result<(), ComponentError>> {
        Box::pin(async move {
            let directory = std::path::absolute(&self.plan.directory).map_err(|error| {
                ComponentError(format!(
                    "sink {}: {} has no absolute path: {error}",
                    context.name,
                    self.plan.directory.display()
                ))
            })?;
            self.plan.directory = directory;
            // One file is written at a time, by one call.
            let files = Arc::new(LocalFiles::new(1));
            let store = Store::new(files, tokio::runtime::Handle::current(), DISK_DEADLINE);
            let made = store.make_directories(&self.plan.directory.to_string_lossy()).await;
            made.map_err(|error| ComponentError(format!("sink {}: {error}; check sink.directory", context.name)))?;
            self.store = Some(store);
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
        _: &'a mut dyn Consumer,
    ) -> BoxFuture<'a, Result<(), ComponentError>> {
        Box::pin(async move {
            self.close(context).await;
            self.settling.finish(context).await.map_err(|error| ComponentError(error.to_string()))
        })
    }
}

fn delivery(error: StoreError) -> SinkError {
    SinkError::Delivery(error.to_string())
}

/// Separates the blocks of one Avro file; it only has to be unlikely in the data.
fn random_marker() -> [u8; 16] {
    use std::hash::{BuildHasher as _, RandomState};
    let half = |salt: u8| RandomState::new().hash_one(salt).to_le_bytes();
    let mut marker = [0; 16];
    marker[..8].copy_from_slice(&half(0));
    marker[8..].copy_from_slice(&half(1));
    marker
}
