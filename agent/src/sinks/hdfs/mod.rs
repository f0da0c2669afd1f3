//! `hdfs`: rolled files under a path, on HDFS or a local file system.
//!
//! ```text
//! take ──► route: path of the event ──► file's buffer ──► job: write + sync ──► settle (with the file's note)
//!                                                └──────► job: write + close + rename ──► settle, note removed
//! ```
//!
//! Promises:
//! - An event is settled only after a sync or close that covers it. Files are synced after `hdfs.syncBytes` or
//!   `hdfs.syncInterval`, when they roll, or early when too much is on lease; never without new bytes.
//! - A file's note is durable before the file is created, and every settlement says how long the file then is. After
//!   a crash at least the settled length is published; a file that no settlement names is discarded; files without
//!   our own note are never touched.
//! - No file is ever overwritten: a taken name bumps the counter.
//! - A file that failed once is never written again: its unsettled events return to the channel and go to a new file,
//!   and the old one is healed like one that a crash left.
//! - An event that can never be written goes to the dead letters; without them it stays, as in Flume.
//!
//! Events are copied into the buffers of their files, so that a lease keeps ranges only. `keys` has the settings,
//! `file` one open file, `writing` the decisions, `jobs` what runs beside them, `note` what survives a crash.

mod file;
mod jobs;
mod keys;
mod note;
mod writing;

#[cfg(test)]
mod tests;

use std::time::Duration;

use channel::Consumer;
use store::fs::Store;
use store::local::{LocalFiles, raise_open_file_limit};
use tokio::runtime::Handle;

use crate::component::{
    BoxFuture, ComponentError, Progress, Refused, Settings, Sink, SinkContext, SinkEntry, SinkError,
};
use keys::{Plan, Target};
use note::Leftover;
use writing::Writing;

pub(super) static ENTRY: SinkEntry = SinkEntry {
    alias: "hdfs",
    class: "org.apache.flume.sink.hdfs.HDFSEventSink",
    doc: "Writes rolled files under a path on HDFS or a local file system.",
    keys: keys::KEYS,
    build,
};

fn build(settings: &Settings) -> Result<Box<dyn Sink>, Refused> {
    Ok(Box::new(HdfsSink { plan: Plan::read(settings)?, writing: None }))
}

struct HdfsSink {
    plan: Plan,
    /// `None` until it is started.
    writing: Option<Writing>,
}

/// Files that an agent has open beside those of this sink: sockets, logs, the channel.
const OTHER_OPEN_FILES: u64 = 1024;

impl Sink for HdfsSink {
    fn batch_size(&self) -> Option<(&'static str, usize)> {
        Some(("hdfs.batchSize", self.plan.batch))
    }

    fn lost_without_durable_channel(&self) -> Option<&'static str> {
        Some("files that a crash leaves open are not healed at the next start")
    }

    fn start<'a>(&'a mut self, context: &'a SinkContext) -> BoxFuture<'a, Result<(), ComponentError>> {
        Box::pin(async move {
            let store = open_store(&self.plan).await?;
            if matches!(self.plan.target, Target::Local) {
                let wanted = self.plan.files_max as u64 + OTHER_OPEN_FILES;
                let limit = raise_open_file_limit(wanted);
                if limit < wanted {
                    self.plan.files_max = usize::try_from(limit / 2).unwrap_or(usize::MAX).max(1);
                    tracing::warn!(
                        "{}: the system allows {limit} open files; hdfs.maxOpenFiles is taken as {}",
                        context.name,
                        self.plan.files_max
                    );
                }
            }
            let leftovers = read_notes(context, &store.describe());
            self.writing = Some(Writing::new(self.plan.clone(), store, context, leftovers));
            context.counters.connection_created.add(1);
            Ok(())
        })
    }

    fn process<'a>(
        &'a mut self,
        context: &'a SinkContext,
        consumer: &'a mut dyn Consumer,
    ) -> BoxFuture<'a, Result<Progress, SinkError>> {
        Box::pin(async move {
            match &mut self.writing {
                Some(writing) => writing.round(context, consumer).await,
                None => Ok(Progress::BackOff),
            }
        })
    }

    fn stop<'a>(
        self: Box<Self>,
        context: &'a SinkContext,
        consumer: &'a mut dyn Consumer,
    ) -> BoxFuture<'a, Result<(), ComponentError>> {
        Box::pin(async move {
            // Closing writes, syncs and renames: two calls and what they wait for.
            let limit = self.plan.call_timeout * 2 + Duration::from_secs(5);
            match self.writing {
                Some(writing) => writing.finish(context, consumer, limit).await,
                None => Ok(()),
            }
        })
    }
}

async fn open_store(plan: &Plan) -> Result<Store, ComponentError> {
    match &plan.target {
        Target::Local => {
            let files = LocalFiles::new(plan.local_calls);
            Ok(Store::new(std::sync::Arc::new(files), Handle::current(), plan.call_timeout))
        }
        #[cfg(feature = "hdfs")]
        Target::Hdfs(settings) => {
            let settings = settings.clone();
            let runtime = store::hdfs::io_runtime().map_err(|error| ComponentError(error.to_string()))?;
            // Logging in may read files and load the Kerberos library.
            let connected = runtime.spawn_blocking(move || store::hdfs::HdfsFiles::connect(settings)).await;
            let files = match connected {
                Ok(files) => files.map_err(|error| ComponentError(error.to_string()))?,
                Err(_) => return Err(ComponentError("the HDFS client crashed while it was set up".to_owned())),
            };
            Ok(Store::new(std::sync::Arc::new(files), runtime, plan.call_timeout))
        }
    }
}

/// The files that an earlier run of this sink left. Those on another file system are left alone and named.
fn read_notes(context: &SinkContext, system: &str) -> Vec<Leftover> {
    let mut leftovers = Vec::new();
    for (key, note) in context.channel.channel.notes(&context.name) {
        match Leftover::read(&key, &note) {
            Ok((found, leftover)) if found == system => leftovers.push(leftover),
            Ok((found, leftover)) => tracing::warn!(
                "{}: {} was left on {found} by an earlier configuration; configure that path again to have it healed",
                context.name,
                leftover.in_use
            ),
            Err(error) => tracing::warn!("{}: the note of {key} is left alone: {error}", context.name),
        }
    }
    if !leftovers.is_empty() {
        tracing::info!("{}: {} files of an earlier run are to be healed", context.name, leftovers.len());
    }
    leftovers
}
