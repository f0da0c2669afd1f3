//! What runs beside the sink: each of these is a task that reports back once, and is never cancelled by the sink.
//!
//! Publishing never replaces a file: a name that is taken bumps the counter. Healing a leftover can be repeated after
//! a crash at any point, and touches no file but the one of its note.

use std::time::Duration;

use bytes::Bytes;
use channel::{SeqRange, SettleError};
use store::fs::{Store, StoreError, Then, Writer};
use tokio::sync::mpsc::UnboundedSender;

use super::note::{Leftover, Names};

/// Tells one file of a sink from another.
pub(super) type FileId = u64;

/// A job's report.
pub(super) enum Done {
    /// The notes of these files are durable: they may be created.
    Noted {
        files: Vec<FileId>,
        result: Result<(), SettleError>,
    },
    Opened {
        file: FileId,
        result: Result<Writer, StoreError>,
    },
    Synced {
        file: FileId,
        writer: Writer,
        /// The memory of what was written, empty, where the store has let go of it.
        buffer: Vec<u8>,
        result: Result<u64, StoreError>,
    },
    /// Closed, and if that worked, published.
    Closed {
        file: FileId,
        result: Result<Closed, StoreError>,
    },
    Healed {
        leftover: Leftover,
        tries: u64,
        result: Result<Healing, StoreError>,
    },
    Settled {
        delivered: u64,
        result: Result<(), SettleError>,
    },
    Buried {
        ranges: Vec<SeqRange>,
        reason: String,
        result: Result<(), String>,
    },
}

/// A file whose bytes are all durable.
pub(super) struct Closed {
    pub(super) length: u64,
    /// Its final name, or why it still has the one it was written under.
    pub(super) published: Result<String, StoreError>,
}

/// What became of a leftover.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Healing {
    Published(String),
    /// No settlement named it: its events come again, so its bytes are worth nothing.
    Discarded,
    /// Somebody, or this sink just before it was killed, has taken it away.
    AlreadyGone,
}

/// Names tried for one file before giving up.
const NAMES_MAX: i64 = 1000;

/// Time between two questions whether a lease is recovered, and questions asked in one go.
const LEASE_POLL: Duration = Duration::from_millis(500);
const LEASE_POLLS_MAX: usize = 120;

pub(super) fn open(store: Store, file: FileId, path: String, reports: UnboundedSender<Done>) {
    spawn(reports, async move { Done::Opened { file, result: store.create(&path).await } });
}

pub(super) fn sync(mut writer: Writer, file: FileId, bytes: Bytes, reports: UnboundedSender<Done>) {
    spawn(reports, async move {
        let result = writer.append(bytes.clone(), Then::Sync).await;
        Done::Synced { file, writer, buffer: emptied(bytes), result }
    });
}

/// The memory of `bytes`, if nobody else reads them.
fn emptied(bytes: Bytes) -> Vec<u8> {
    match bytes.try_into_mut() {
        Ok(mut bytes) => {
            // Before it becomes a vector, which would move what is in it.
            bytes.clear();
            bytes.into()
        }
        Err(_) => Vec::new(),
    }
}

pub(super) fn close(
    store: Store,
    mut writer: Writer,
    file: FileId,
    bytes: Bytes,
    names: Names,
    counter: i64,
    reports: UnboundedSender<Done>,
) {
    spawn(reports, async move {
        let result = match writer.append(bytes, Then::Close).await {
            Ok(length) => {
                let published = publish(&store, writer.path(), &names, counter).await;
                Ok(Closed { length, published })
            }
            Err(error) => Err(error),
        };
        Done::Closed { file, result }
    });
}

pub(super) fn heal(store: Store, leftover: Leftover, tries: u64, reports: UnboundedSender<Done>) {
    spawn(reports, async move {
        let result = heal_leftover(&store, &leftover).await;
        Done::Healed { leftover, tries, result }
    });
}

pub(super) fn spawn(reports: UnboundedSender<Done>, work: impl Future<Output = Done> + Send + 'static) {
    tokio::spawn(async move {
        let done = work.await;
        if reports.send(done).is_err() {
            tracing::debug!("a file's job ended after its sink");
        }
    });
}

async fn publish(store: &Store, from: &str, names: &Names, counter: i64) -> Result<String, StoreError> {
    for counter in counter..counter + NAMES_MAX {
        let to = names.published(counter);
        if from == to {
            return Ok(to);
        }
        match store.rename(from, &to).await {
            Ok(()) => return Ok(to),
            Err(StoreError::AlreadyExists { .. }) => tracing::warn!("{to} exists already; taking the next number"),
            Err(error) => return Err(error),
        }
    }
    Err(StoreError::AlreadyExists { path: names.published(counter + NAMES_MAX - 1) })
}

/// Heals one file, in steps that a crash may repeat from the first:
///
/// 1. End the writing.
/// 2. Nothing settled: delete the file; its events come again.
/// 3. Cut what lies beyond the settled length: those events come again too, and half of one would make the file
///    unreadable.
/// 4. Publish.
async fn heal_leftover(store: &Store, leftover: &Leftover) -> Result<Healing, StoreError> {
    let published = leftover.names.published(leftover.counter);
    let in_use = leftover.in_use.as_str();
    let mut polls = 0;
    loop {
        match store.recover_lease(in_use).await {
            Ok(true) | Err(StoreError::NotFound { .. }) => break,
            Ok(false) if polls < LEASE_POLLS_MAX => polls += 1,
            Ok(false) => {
                let cause = "its writing is not ended yet".to_owned();
                return Err(StoreError::Failed { call: "recover lease", path: in_use.to_owned(), cause });
            }
            Err(error) => return Err(error),
        }
        tokio::time::sleep(LEASE_POLL).await;
    }
    let present = store.length(in_use).await?.is_some();
    if leftover.settled == 0 {
        return Ok(if store.delete(in_use).await? { Healing::Discarded } else { Healing::AlreadyGone });
    }
    match store.cut(in_use, leftover.settled).await {
        Ok(cut) => publish(store, &cut.path, &leftover.names, leftover.counter).await.map(Healing::Published),
        Err(StoreError::NotFound { .. }) if !present => {
            if store.length(&published).await?.is_none() {
                tracing::error!(
                    "{in_use} with {} settled bytes is gone, and so is {published}: somebody removed it",
                    leftover.settled
                );
            }
            Ok(Healing::AlreadyGone)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::sync::Arc;
    use store::local::LocalFiles;
    use store::template::Place;

    fn store() -> Store {
        Store::new(Arc::new(LocalFiles::new(4)), tokio::runtime::Handle::current(), Duration::from_secs(30))
    }

    fn leftover(root: &tempfile::TempDir, settled: u64) -> Leftover {
        let directory = root.path().to_string_lossy().into_owned();
        Leftover {
            in_use: format!("{directory}/f.7.tmp"),
            names: Names { place: Place { directory, name: "f".to_owned() }, suffix: String::new() },
            counter: 7,
            settled,
        }
    }

    #[tokio::test]
    async fn the_settled_part_is_published_and_the_rest_is_cut() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("f.7.tmp"), "one\ntwo\nthr").unwrap();
        let leftover = leftover(&root, 8);
        let healing = heal_leftover(&store(), &leftover).await.unwrap();
        assert_eq!(healing, Healing::Published(leftover.names.published(7)));
        assert_eq!(fs::read_to_string(root.path().join("f.7")).unwrap(), "one\ntwo\n");
        assert_eq!(heal_leftover(&store(), &leftover).await.unwrap(), Healing::AlreadyGone);
        assert_eq!(fs::read_to_string(root.path().join("f.7")).unwrap(), "one\ntwo\n");
    }

    #[tokio::test]
    async fn a_file_that_no_settlement_names_is_discarded_and_no_other_is_touched() {
        let root = tempfile::tempdir().unwrap();
        for name in ["f.7.tmp", "f.8.tmp", "f.7"] {
            fs::write(root.path().join(name), name).unwrap();
        }
        assert_eq!(heal_leftover(&store(), &leftover(&root, 0)).await.unwrap(), Healing::Discarded);
        assert!(!root.path().join("f.7.tmp").exists());
        assert_eq!(fs::read_to_string(root.path().join("f.8.tmp")).unwrap(), "f.8.tmp");
        assert_eq!(fs::read_to_string(root.path().join("f.7")).unwrap(), "f.7");
    }

    #[tokio::test]
    async fn a_taken_name_bumps_the_counter() {
        let root = tempfile::tempdir().unwrap();
        for name in ["f.7", "f.8"] {
            fs::write(root.path().join(name), "somebody else's").unwrap();
        }
        fs::write(root.path().join("f.7.tmp"), "mine").unwrap();
        let leftover = leftover(&root, 4);
        let healing = heal_leftover(&store(), &leftover).await.unwrap();
        assert_eq!(healing, Healing::Published(leftover.names.published(9)));
        assert_eq!(fs::read_to_string(root.path().join("f.7")).unwrap(), "somebody else's");
    }
}
