//! [`FileSystem`] on top of hdfs-native.
//!
//! Promises one client per name service and user in the process, made anew (at most once a minute) after a call that
//! got no answer. The deadlines are [`crate::fs::Store`]'s. What stays to the operator: the Kerberos library
//! (`libgssapi_krb5.so.2`), which is loaded when it is first needed.

use std::collections::HashMap;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt as _;
use hdfs_native::client::FileStatus;
use hdfs_native::file::FileWriter;
use hdfs_native::{Client, ClientBuilder, HdfsError, WriteOptions};
use tokio::runtime::{Builder, Handle, Runtime};

use super::config::HadoopConfig;
use crate::fs::{CutFile, FileSystem, RawFile, StoreError, StoreFuture};
use crate::limits::COPY_BYTES;

/// Threads for all HDFS connections of the process.
const IO_THREADS: usize = 2;

/// Least time between two clients for one name service: an old one keeps some tasks and sockets for ever.
const RECONNECT_AFTER: Duration = Duration::from_secs(60);

/// Ending of a copy that replaces a file which has more bytes than were settled.
const COPY_SUFFIX: &str = "._settled_";

/// What tells one connection from another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HdfsSettings {
    /// A name service or `host:port`; empty for `fs.defaultFS`.
    pub authority: String,
    pub hadoop: HadoopConfig,
    pub principal: Option<String>,
    pub keytab: Option<PathBuf>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    #[error("hdfs:// needs a host or name service, in the path or as fs.defaultFS in core-site.xml")]
    NoAuthority,
    #[error("{authority}: {cause}")]
    Client { authority: String, cause: String },
    #[error("the threads for HDFS cannot be started: {0}")]
    Runtime(String),
}

/// The runtime of all HDFS connections. It lives as long as the process: connections outlive the sinks that opened
/// them, and a runtime that ends under a client would hang it.
pub fn io_runtime() -> Result<Handle, ConnectError> {
    static RUNTIME: OnceLock<Result<Runtime, String>> = OnceLock::new();
    let start = || {
        let built = Builder::new_multi_thread().worker_threads(IO_THREADS).thread_name("hdfs").enable_all().build();
        built.map_err(|error| error.to_string())
    };
    RUNTIME
        .get_or_init(start)
        .as_ref()
        .map(|runtime| runtime.handle().clone())
        .map_err(|cause| ConnectError::Runtime(cause.clone()))
}

struct Connection {
    settings: HdfsSettings,
    client: Client,
    made: Instant,
}

/// One HDFS, as one user. Clones share the connection.
#[derive(Clone)]
pub struct HdfsFiles {
    shared: Arc<Mutex<Connection>>,
    authority: String,
}

impl HdfsFiles {
    /// The connection with these settings; makes it when the process has none. Connects lazily, but may read files
    /// and load a library: call it on a thread that may block.
    pub fn connect(mut settings: HdfsSettings) -> Result<HdfsFiles, ConnectError> {
        static CONNECTIONS: OnceLock<Mutex<HashMap<String, Vec<HdfsFiles>>>> = OnceLock::new();
        if settings.authority.is_empty() {
            let default = settings.hadoop.get("fs.defaultFS").unwrap_or_default();
            let authority = default.strip_prefix("hdfs://").unwrap_or_default().split('/').next().unwrap_or_default();
            settings.authority = authority.to_owned();
        }
        if settings.authority.is_empty() {
            return Err(ConnectError::NoAuthority);
        }
        let authority = settings.authority.clone();
        let connections = CONNECTIONS.get_or_init(Mutex::default);
        let mut connections = connections.lock().unwrap_or_else(PoisonError::into_inner);
        let known = connections.entry(authority.clone()).or_default();
        let same = |files: &&HdfsFiles| files.lock().settings == settings;
        if let Some(found) = known.iter().find(same) {
            return Ok(found.clone());
        }
        let client = build_client(&settings)?;
        let connection = Connection { settings, client, made: Instant::now() };
        let files = HdfsFiles { shared: Arc::new(Mutex::new(connection)), authority };
        known.push(files.clone());
        Ok(files)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Connection> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn client(&self) -> Client {
        self.lock().client.clone()
    }

    /// Runs a call of the client and explains its error.
    fn run<T: Send + 'static, F>(
        &self,
        call: &'static str,
        path: &str,
        work: impl FnOnce(Client, String) -> F,
    ) -> StoreFuture<T>
    where
        F: Future<Output = Result<T, HdfsError>> + Send + 'static,
    {
        let work = work(self.client(), path.to_owned());
        let path = path.to_owned();
        Box::pin(async move { work.await.map_err(|error| explain(call, &path, &error)) })
    }
}

fn build_client(settings: &HdfsSettings) -> Result<Client, ConnectError> {
    let mut hadoop = settings.hadoop.clone();
    // With three DataNodes or fewer there is no node to replace a dead one: go on with those that are left, unless
    // the operator decided otherwise.
    let best_effort = "dfs.client.block.write.replace-datanode-on-failure.best-effort";
    if hadoop.get(best_effort).is_none() {
        hadoop.set(best_effort, "true");
    }
    if settings.keytab.is_some() && hadoop.get("hadoop.security.authentication").is_none() {
        hadoop.set("hadoop.security.authentication", "kerberos");
    }
    let mut builder = ClientBuilder::new()
        .with_url(format!("hdfs://{}", settings.authority))
        // A directory without files: what `HADOOP_CONF_DIR` has was read before, by our rules.
        .with_config_dir("/dev/null/none")
        .with_config(hadoop.entries())
        .with_io_runtime(io_runtime()?);
    if let Some(principal) = &settings.principal {
        builder = builder.with_kerberos_principal(principal);
    }
    if let Some(keytab) = &settings.keytab {
        builder = builder.with_kerberos_keytab(keytab.to_string_lossy());
    }
    builder
        .build()
        .map_err(|error| ConnectError::Client { authority: settings.authority.clone(), cause: error.to_string() })
}

impl FileSystem for HdfsFiles {
    fn describe(&self) -> String {
        format!("hdfs://{}", self.authority)
    }

    fn create(&self, path: &str) -> StoreFuture<Box<dyn RawFile>> {
        let options = self.write_options();
        let created = self.run("create", path, |client, path| async move { client.create(&path, options).await });
        let path = path.to_owned();
        Box::pin(async move { Ok(Box::new(HdfsFile { writer: created.await?, path }) as Box<dyn RawFile>) })
    }

    fn rename(&self, from: &str, to: &str) -> StoreFuture<()> {
        let to = to.to_owned();
        let target = to.clone();
        let renamed =
            self.run("rename", from, |client, from| async move { client.rename(&from, &target, false).await });
        Box::pin(async move {
            match renamed.await {
                Err(StoreError::AlreadyExists { .. }) => Err(StoreError::AlreadyExists { path: to }),
                other => other,
            }
        })
    }

    fn length(&self, path: &str) -> StoreFuture<Option<u64>> {
        self.run("length", path, |client, path| async move {
            match client.get_file_info(&path).await {
                Ok(FileStatus { length, .. }) => Ok(Some(length as u64)),
                Err(HdfsError::FileNotFound(_)) => Ok(None),
                Err(error) => Err(error),
            }
        })
    }

    fn recover_lease(&self, path: &str) -> StoreFuture<bool> {
        self.run("recover lease", path, |client, path| async move { client.recover_lease(&path).await })
    }

    /// HDFS-native cannot truncate, so the settled part is copied. In order, so that a crash at any point can be
    /// gone over again: 1. write the copy and close it; 2. delete the file; 3. (the caller) rename the copy. The file
    /// goes only after the copy is whole; once it is gone, the copy is taken as it is.
    fn cut(&self, path: &str, length: u64) -> StoreFuture<CutFile> {
        let options = self.write_options();
        self.run("cut", path, move |client, path| async move {
            let copy = format!("{path}{COPY_SUFFIX}");
            let present = match client.get_file_info(&path).await {
                Ok(status) => status.length as u64,
                Err(HdfsError::FileNotFound(_)) => {
                    let copied = client.get_file_info(&copy).await?.length as u64;
                    if copied != length {
                        let cause = format!("{copy} has {copied} bytes instead of the {length} that were settled");
                        return Err(HdfsError::OperationFailed(cause));
                    }
                    return Ok(CutFile { path: copy });
                }
                Err(error) => return Err(error),
            };
            if present == length {
                return Ok(CutFile { path });
            }
            if present < length {
                let cause = format!("it has {present} bytes, and {length} were settled");
                return Err(HdfsError::OperationFailed(cause));
            }
            // What an earlier try left, perhaps still open for write, is worth nothing.
            client.delete(&copy, false).await?;
            let reader = client.read(&path).await?;
            let mut writer = client.create(&copy, options).await?;
            let mut at = 0;
            while at < length as usize {
                let bytes = COPY_BYTES.min(length as usize - at);
                let mut part = std::pin::pin!(reader.read_range_stream(at, bytes));
                while let Some(piece) = part.next().await {
                    writer.write_bytes(piece?).await?;
                }
                at += bytes;
            }
            writer.close().await?;
            client.delete(&path, false).await?;
            Ok(CutFile { path: copy })
        })
    }

    fn list(&self, directory: &str) -> StoreFuture<Vec<String>> {
        self.run("list", directory, |client, directory| async move {
            let found = client.list_status(&directory, false).await?;
            let name = |status: FileStatus| status.path.rsplit('/').next().unwrap_or_default().to_owned();
            let mut names: Vec<String> = found.into_iter().map(name).collect();
            names.sort();
            Ok(names)
        })
    }

    fn delete(&self, path: &str) -> StoreFuture<bool> {
        self.run("delete", path, |client, path| async move { client.delete(&path, false).await })
    }

    fn make_directories(&self, path: &str) -> StoreFuture<()> {
        self.run("make directory", path, |client, path| async move { client.mkdirs(&path, 0o755, true).await })
    }

    fn call_timed_out(&self) {
        let settings = {
            let mut connection = self.lock();
            if connection.made.elapsed() < RECONNECT_AFTER {
                return;
            }
            connection.made = Instant::now();
            connection.settings.clone()
        };
        let Ok(runtime) = io_runtime() else { return };
        let files = self.clone();
        // Logging in may read files; the caller is an async task.
        runtime.spawn_blocking(move || match build_client(&settings) {
            Ok(client) => {
                tracing::warn!("hdfs://{}: a call got no answer; connecting anew", files.authority);
                files.lock().client = client;
            }
            Err(error) => tracing::error!("hdfs://{}: cannot connect anew: {error}", files.authority),
        });
    }
}

impl HdfsFiles {
    fn write_options(&self) -> WriteOptions {
        let connection = self.lock();
        let hadoop = &connection.settings.hadoop;
        let mut options = WriteOptions::default().overwrite(false).create_parent(true);
        if let Some(replication) = hadoop.get("dfs.replication").and_then(|value| value.parse().ok()) {
            options = options.replication(replication);
        }
        if let Some(bytes) = hadoop.size("dfs.blocksize") {
            options = options.block_size(bytes);
        }
        if let Some(mask) = hadoop.get("fs.permissions.umask-mode").and_then(|mask| u32::from_str_radix(&mask, 8).ok())
        {
            options = options.permission(0o666 & !mask);
        }
        options
    }
}

struct HdfsFile {
    writer: FileWriter,
    path: String,
}

impl RawFile for HdfsFile {
    fn write(&mut self, bytes: Bytes) -> Pin<Box<dyn Future<Output = Result<(), StoreError>> + Send + '_>> {
        Box::pin(async move {
            let written = self.writer.write_bytes(bytes).await;
            written.map(drop).map_err(|error| explain("write", &self.path, &error))
        })
    }

    fn sync(&mut self) -> Pin<Box<dyn Future<Output = Result<(), StoreError>> + Send + '_>> {
        Box::pin(async move { self.writer.hsync().await.map_err(|error| explain("sync", &self.path, &error)) })
    }

    fn close(&mut self) -> Pin<Box<dyn Future<Output = Result<(), StoreError>> + Send + '_>> {
        Box::pin(async move { self.writer.close().await.map_err(|error| explain("close", &self.path, &error)) })
    }
}

/// Java classes of errors that say: this name or file never.
const REJECTING: [&str; 6] = [
    "InvalidPathException",
    "FSLimitException$PathComponentTooLongException",
    "PathComponentTooLongException",
    "ParentNotDirectoryException",
    "FileNotADirectoryException",
    "HadoopIllegalArgumentException",
];

fn explain(call: &'static str, path: &str, error: &HdfsError) -> StoreError {
    let path = path.to_owned();
    // A stack trace may follow the first line.
    let cause = error.to_string().lines().next().unwrap_or_default().to_owned();
    match error {
        HdfsError::AlreadyExists(_) => StoreError::AlreadyExists { path },
        HdfsError::FileNotFound(_) => StoreError::NotFound { path },
        HdfsError::InvalidPath(_) | HdfsError::IsADirectoryError(_) => StoreError::Rejected { call, path, cause },
        HdfsError::RPCError(class, _) if class.ends_with(".FileNotFoundException") => StoreError::NotFound { path },
        HdfsError::RPCError(class, _) if REJECTING.iter().any(|rejecting| class.ends_with(rejecting)) => {
            StoreError::Rejected { call, path, cause }
        }
        _ => StoreError::Failed { call, path, cause },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(authority: &str) -> HdfsSettings {
        HdfsSettings { authority: authority.to_owned(), hadoop: HadoopConfig::default(), principal: None, keytab: None }
    }

    #[test]
    fn there_is_one_client_per_name_service_and_user() {
        let first = HdfsFiles::connect(settings("127.0.0.1:1")).unwrap();
        let again = HdfsFiles::connect(settings("127.0.0.1:1")).unwrap();
        let other = HdfsFiles::connect(settings("127.0.0.1:2")).unwrap();
        assert!(Arc::ptr_eq(&first.shared, &again.shared));
        assert!(!Arc::ptr_eq(&first.shared, &other.shared));
    }

    #[test]
    fn the_default_file_system_comes_from_hadoops_files() {
        let mut with_default = settings("");
        assert_eq!(HdfsFiles::connect(with_default.clone()).err(), Some(ConnectError::NoAuthority));
        with_default.hadoop.set("fs.defaultFS", "hdfs://127.0.0.1:3/");
        assert_eq!(HdfsFiles::connect(with_default).unwrap().describe(), "hdfs://127.0.0.1:3");
    }

    #[test]
    fn what_a_namenode_will_never_take_is_told_from_what_it_may_take_later() {
        let answer =
            |class: &str| explain("create", "/x", &HdfsError::RPCError(class.to_owned(), "no\n\tat".to_owned()));
        let limit = "org.apache.hadoop.hdfs.protocol.FSLimitException$PathComponentTooLongException";
        assert!(matches!(answer(limit), StoreError::Rejected { .. }));
        assert!(matches!(answer("org.apache.hadoop.fs.InvalidPathException"), StoreError::Rejected { .. }));
        let quota = answer("org.apache.hadoop.hdfs.protocol.NSQuotaExceededException");
        assert!(matches!(&quota, StoreError::Failed { cause, .. } if !cause.contains("at")), "{quota}");
    }
}
