//! A file system as sinks need it, and the store that guards every call to one.
//!
//! [`FileSystem`] is what an implementation provides. [`Store`] wraps it for sinks and promises: every call ends by its
//! deadline; a call runs as its own task, so that a panic inside a client library is an error here and nothing else;
//! a call past its deadline is abandoned together with the file it held, never resumed; a [`Writer`] that failed once
//! is poison and refuses everything after. Creating and renaming never overwrite. What a failed file holds, and what
//! to publish of it, is left to the sink.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Handle;

/// What a call to a file system gives.
pub type StoreFuture<T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send>>;

/// Why a call to a store did not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    #[error("{path} exists already, and is never overwritten")]
    AlreadyExists { path: String },
    #[error("{path} does not exist")]
    NotFound { path: String },
    /// Trying again cannot help: the store does not take this name or this file.
    #[error("{call} of {path} is refused by the store: {cause}")]
    Rejected { call: &'static str, path: String, cause: String },
    /// Whether it happened is unknown.
    #[error("{call} of {path} gave no answer within {} ms (hdfs.callTimeout)", limit.as_millis())]
    TimedOut { call: &'static str, path: String, limit: Duration },
    #[error("{call} of {path} failed: {cause}")]
    Failed { call: &'static str, path: String, cause: String },
    #[error("{path} has failed before, and is not written any more")]
    Poisoned { path: String },
}

/// A file being written. Every call is made once at a time; after an error the file is only dropped.
pub trait RawFile: Send {
    fn write(&mut self, bytes: Bytes) -> Pin<Box<dyn Future<Output = Result<(), StoreError>> + Send + '_>>;

    /// Everything written so far is on stable storage, and readers see it.
    fn sync(&mut self) -> Pin<Box<dyn Future<Output = Result<(), StoreError>> + Send + '_>>;

    /// As [`sync`](RawFile::sync), and the file is complete.
    fn close(&mut self) -> Pin<Box<dyn Future<Output = Result<(), StoreError>> + Send + '_>>;
}

/// What a store is made of. Paths are absolute and start with `/`.
pub trait FileSystem: Send + Sync {
    /// For messages: `file` or `hdfs://nameservice`.
    fn describe(&self) -> String;

    /// Creates a file and its missing parents; never opens one that exists.
    fn create(&self, path: &str) -> StoreFuture<Box<dyn RawFile>>;

    /// Renames a file within one file system, durably; never replaces one that exists.
    fn rename(&self, from: &str, to: &str) -> StoreFuture<()>;

    /// The file's length, `None` when there is no such file.
    fn length(&self, path: &str) -> StoreFuture<Option<u64>>;

    /// Ends the writing of a file whose writer is gone; `false` while that is still under way.
    fn recover_lease(&self, path: &str) -> StoreFuture<bool>;

    /// Cuts a closed file to `length` bytes. Repeatable after a crash at any point, also when the first try got as far
    /// as removing `path`.
    fn cut(&self, path: &str, length: u64) -> StoreFuture<CutFile>;

    /// Names in a directory, in order.
    fn list(&self, directory: &str) -> StoreFuture<Vec<String>>;

    /// Removes a file; `false` when there was none.
    fn delete(&self, path: &str) -> StoreFuture<bool>;

    fn make_directories(&self, path: &str) -> StoreFuture<()>;

    /// Told when a call got no answer, so that a connection can be made anew.
    fn call_timed_out(&self) {}
}

/// Where a file that was cut is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CutFile {
    pub path: String,
}

/// A file system with a deadline on every call.
#[derive(Clone)]
pub struct Store {
    files: Arc<dyn FileSystem>,
    runtime: Handle,
    deadline: Duration,
}

impl Store {
    /// Calls run on `runtime`, and end after `deadline`.
    pub fn new(files: Arc<dyn FileSystem>, runtime: Handle, deadline: Duration) -> Store {
        Store { files, runtime, deadline }
    }

    pub fn describe(&self) -> String {
        self.files.describe()
    }

    pub async fn create(&self, path: &str) -> Result<Writer, StoreError> {
        let raw = self.call("create", path, self.files.create(path)).await?;
        Ok(Writer { raw: Some(raw), store: self.clone(), path: path.to_owned(), length: 0 })
    }

    /// Renames without overwriting. When the answer is lost, what is there decides.
    pub async fn rename(&self, from: &str, to: &str) -> Result<(), StoreError> {
        match self.call("rename", from, self.files.rename(from, to)).await {
            Ok(()) => Ok(()),
            Err(error @ (StoreError::AlreadyExists { .. } | StoreError::Rejected { .. })) => Err(error),
            Err(error) => match (self.length(from).await, self.length(to).await) {
                (Ok(None), Ok(Some(_))) => Ok(()),
                _ => Err(error),
            },
        }
    }

    pub async fn length(&self, path: &str) -> Result<Option<u64>, StoreError> {
        self.call("length", path, self.files.length(path)).await
    }

    pub async fn recover_lease(&self, path: &str) -> Result<bool, StoreError> {
        self.call("recover lease", path, self.files.recover_lease(path)).await
    }

    /// Cuts a closed file. A large one on HDFS is copied, so this has ten deadlines.
    pub async fn cut(&self, path: &str, length: u64) -> Result<CutFile, StoreError> {
        self.call_within("cut", path, self.deadline * 10, self.files.cut(path, length)).await
    }

    pub async fn list(&self, directory: &str) -> Result<Vec<String>, StoreError> {
        self.call("list", directory, self.files.list(directory)).await
    }

    pub async fn delete(&self, path: &str) -> Result<bool, StoreError> {
        self.call("delete", path, self.files.delete(path)).await
    }

    pub async fn make_directories(&self, path: &str) -> Result<(), StoreError> {
        self.call("make directory", path, self.files.make_directories(path)).await
    }

    async fn call<T: Send + 'static>(
        &self,
        call: &'static str,
        path: &str,
        work: StoreFuture<T>,
    ) -> Result<T, StoreError> {
        self.call_within(call, path, self.deadline, work).await
    }

    async fn call_within<T: Send + 'static>(
        &self,
        call: &'static str,
        path: &str,
        limit: Duration,
        work: StoreFuture<T>,
    ) -> Result<T, StoreError> {
        let mut task = self.runtime.spawn(work);
        match tokio::time::timeout(limit, &mut task).await {
            Ok(Ok(result)) => result,
            Ok(Err(crashed)) => Err(StoreError::Failed { call, path: path.to_owned(), cause: crash_cause(&crashed) }),
            Err(_) => {
                task.abort();
                self.files.call_timed_out();
                Err(StoreError::TimedOut { call, path: path.to_owned(), limit })
            }
        }
    }
}

/// What a writer does with the bytes it is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    Sync,
    Close,
}

/// A file being written, with a deadline on every call.
pub struct Writer {
    /// `None` once a call failed, or took the file with it.
    raw: Option<Box<dyn RawFile>>,
    store: Store,
    path: String,
    length: u64,
}

impl Writer {
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Writes `bytes` and makes the whole file durable; gives its durable length. Any error poisons the writer.
    pub async fn append(&mut self, bytes: Bytes, then: Then) -> Result<u64, StoreError> {
        let Some(mut raw) = self.raw.take() else { return Err(StoreError::Poisoned { path: self.path.clone() }) };
        let added = bytes.len() as u64;
        let call = match then {
            Then::Sync => "write and sync",
            Then::Close => "write and close",
        };
        let work: StoreFuture<Box<dyn RawFile>> = Box::pin(async move {
            if !bytes.is_empty() {
                raw.write(bytes).await?;
            }
            match then {
                Then::Sync => raw.sync().await?,
                Then::Close => raw.close().await?,
            }
            Ok(raw)
        });
        let raw = self.store.call(call, &self.path, work).await?;
        if then == Then::Sync {
            self.raw = Some(raw);
        }
        self.length += added;
        Ok(self.length)
    }
}

fn crash_cause(crashed: &tokio::task::JoinError) -> String {
    if crashed.is_panic() { "the client library crashed".to_owned() } else { "the runtime is stopping".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    /// A file system whose files fail in a chosen way.
    struct Broken {
        how: How,
        told: Arc<AtomicBool>,
    }
    #[derive(Clone, Copy)]
    enum How {
        Hang,
        Panic,
        Fail,
    }
    struct BrokenFile(How);

    impl BrokenFile {
        async fn end(how: How) -> Result<(), StoreError> {
            match how {
                How::Hang => std::future::pending().await,
                How::Panic => panic!("two bad datanodes"),
                How::Fail => {
                    Err(StoreError::Failed { call: "sync", path: "/x".to_owned(), cause: "disk on fire".to_owned() })
                }
            }
        }
    }

    impl RawFile for BrokenFile {
        fn write(&mut self, _: Bytes) -> Pin<Box<dyn Future<Output = Result<(), StoreError>> + Send + '_>> {
            Box::pin(async { Ok(()) })
        }
        fn sync(&mut self) -> Pin<Box<dyn Future<Output = Result<(), StoreError>> + Send + '_>> {
            Box::pin(BrokenFile::end(self.0))
        }
        fn close(&mut self) -> Pin<Box<dyn Future<Output = Result<(), StoreError>> + Send + '_>> {
            Box::pin(async { Ok(()) })
        }
    }

    impl FileSystem for Broken {
        fn describe(&self) -> String {
            "broken".to_owned()
        }
        fn create(&self, _: &str) -> StoreFuture<Box<dyn RawFile>> {
            let how = self.how;
            Box::pin(async move { Ok(Box::new(BrokenFile(how)) as Box<dyn RawFile>) })
        }
        fn rename(&self, from: &str, _: &str) -> StoreFuture<()> {
            let path = from.to_owned();
            Box::pin(async move { Err(StoreError::Failed { call: "rename", path, cause: "answer lost".to_owned() }) })
        }
        fn length(&self, path: &str) -> StoreFuture<Option<u64>> {
            let length = (path == "/new").then_some(3);
            Box::pin(async move { Ok(length) })
        }
        fn recover_lease(&self, _: &str) -> StoreFuture<bool> {
            Box::pin(async { Ok(true) })
        }
        fn cut(&self, path: &str, _: u64) -> StoreFuture<CutFile> {
            let path = path.to_owned();
            Box::pin(async move { Ok(CutFile { path }) })
        }
        fn list(&self, _: &str) -> StoreFuture<Vec<String>> {
            Box::pin(async { Ok(Vec::new()) })
        }
        fn delete(&self, _: &str) -> StoreFuture<bool> {
            Box::pin(async { Ok(false) })
        }
        fn make_directories(&self, _: &str) -> StoreFuture<()> {
            Box::pin(async { Ok(()) })
        }
        fn call_timed_out(&self) {
            self.told.store(true, Ordering::SeqCst);
        }
    }

    fn broken(how: How) -> (Store, Arc<AtomicBool>) {
        let told = Arc::new(AtomicBool::new(false));
        let files = Arc::new(Broken { how, told: Arc::clone(&told) });
        (Store::new(files, Handle::current(), Duration::from_millis(50)), told)
    }

    #[tokio::test]
    async fn a_call_without_an_answer_ends_by_its_deadline_and_poisons_the_writer() {
        let (store, told) = broken(How::Hang);
        let mut writer = store.create("/x").await.unwrap();
        let error = writer.append(Bytes::from_static(b"abc"), Then::Sync).await.unwrap_err();
        assert!(matches!(error, StoreError::TimedOut { .. }), "{error}");
        assert!(told.load(Ordering::SeqCst), "the file system hears of it");
        let error = writer.append(Bytes::new(), Then::Close).await.unwrap_err();
        assert_eq!(error, StoreError::Poisoned { path: "/x".to_owned() });
    }

    #[tokio::test]
    async fn a_crash_in_a_client_library_is_an_error_of_that_file() {
        let (store, _) = broken(How::Panic);
        let mut writer = store.create("/x").await.unwrap();
        let error = writer.append(Bytes::from_static(b"abc"), Then::Sync).await.unwrap_err();
        assert!(error.to_string().contains("crashed"), "{error}");
        assert!(matches!(writer.append(Bytes::new(), Then::Close).await, Err(StoreError::Poisoned { .. })));
    }

    #[tokio::test]
    async fn a_failed_sync_is_never_tried_again_on_the_same_file() {
        let (store, _) = broken(How::Fail);
        let mut writer = store.create("/x").await.unwrap();
        writer.append(Bytes::from_static(b"abc"), Then::Sync).await.unwrap_err();
        assert!(matches!(writer.append(Bytes::new(), Then::Sync).await, Err(StoreError::Poisoned { .. })));
    }

    #[tokio::test]
    async fn a_rename_whose_answer_was_lost_is_settled_by_what_is_there() {
        let (store, _) = broken(How::Fail);
        store.rename("/old", "/new").await.unwrap();
        store.rename("/old", "/other").await.unwrap_err();
    }
}
