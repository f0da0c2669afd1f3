//! `file://`: local directories under the same rules as HDFS.
//!
//! Promises that after `sync` the bytes, the file's name and every directory made for it survive a power cut; that a
//! create or a rename never replaces a file; that no more than [`LOCAL_CALLS_MAX`](crate::limits::LOCAL_CALLS_MAX)
//! threads are busy at once, however slow the disk. There are no leases here: one counts as recovered when no thread has
//! the file any more. Raw file calls of this crate live in this module only.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::future::Future;
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use rustix::fs::{Advice, CWD, RenameFlags, fadvise, renameat_with};
use tokio::sync::Semaphore;

use crate::fs::{CutFile, FileSystem, RawFile, StoreError, StoreFuture};
use crate::limits::LOCAL_CALLS_MAX;

/// The local file system, with a bounded number of calls at once.
#[derive(Clone)]
pub struct LocalFiles {
    permits: Arc<Semaphore>,
    busy: Arc<Mutex<HashMap<String, usize>>>,
}

/// A call on a file that is under way, also after its caller has given up: the thread that a hung disk holds still
/// has the file, and may yet write to it.
struct Busy {
    files: LocalFiles,
    path: String,
}

impl Busy {
    fn new(files: &LocalFiles, path: &str) -> Busy {
        *files.lock_busy().entry(path.to_owned()).or_default() += 1;
        Busy { files: files.clone(), path: path.to_owned() }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let mut busy = self.files.lock_busy();
        if let Some(calls) = busy.get_mut(&self.path) {
            *calls -= 1;
            if *calls == 0 {
                busy.remove(&self.path);
            }
        }
    }
}

impl LocalFiles {
    /// At most `calls` calls at once, and never more than the crate's ceiling.
    pub fn new(calls: usize) -> LocalFiles {
        LocalFiles { permits: Arc::new(Semaphore::new(calls.clamp(1, LOCAL_CALLS_MAX))), busy: Arc::default() }
    }

    fn lock_busy(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `work` on a blocking thread. The permit stays with the thread: a call that was given up still counts
    /// until the disk answers.
    fn run<T: Send + 'static>(
        &self,
        call: &'static str,
        path: &str,
        work: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
    ) -> StoreFuture<T> {
        let permits = Arc::clone(&self.permits);
        let path = path.to_owned();
        Box::pin(async move {
            let permit = permits.acquire_owned().await.map_err(|_| failed(call, &path, "the store is closed"))?;
            let on_thread = PathBuf::from(&path);
            let done = tokio::task::spawn_blocking(move || {
                let result = work(&on_thread);
                drop(permit);
                result
            });
            match done.await {
                Ok(result) => result.map_err(|error| explain(call, &path, &error)),
                Err(_) => Err(failed(call, &path, "the call crashed")),
            }
        })
    }
}

impl FileSystem for LocalFiles {
    fn describe(&self) -> String {
        "file".to_owned()
    }

    fn create(&self, path: &str) -> StoreFuture<Box<dyn RawFile>> {
        let busy = Busy::new(self, path);
        let created = self.run("create", path, move |path| {
            let created = create_file(path);
            drop(busy);
            created
        });
        let (files, path) = (self.clone(), path.to_owned());
        Box::pin(async move {
            let (file, unsynced) = created.await?;
            let file = LocalFile { files, path, file: Arc::new(file), unsynced, unsynced_bytes: 0 };
            Ok(Box::new(file) as Box<dyn RawFile>)
        })
    }

    fn rename(&self, from: &str, to: &str) -> StoreFuture<()> {
        let target = PathBuf::from(to);
        let renamed = self.run("rename", from, move |from| rename_file(from, &target));
        let to = to.to_owned();
        Box::pin(async move {
            match renamed.await {
                // The error names the file that was to be renamed; what exists is the other one.
                Err(StoreError::AlreadyExists { .. }) => Err(StoreError::AlreadyExists { path: to }),
                other => other,
            }
        })
    }

    fn length(&self, path: &str) -> StoreFuture<Option<u64>> {
        self.run("length", path, |path| match fs::symlink_metadata(path) {
            Ok(found) => Ok(Some(found.len())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        })
    }

    fn recover_lease(&self, path: &str) -> StoreFuture<bool> {
        let busy = self.lock_busy().contains_key(path);
        Box::pin(async move { Ok(!busy) })
    }

    fn cut(&self, path: &str, length: u64) -> StoreFuture<CutFile> {
        let cut = self.run("cut", path, move |path| {
            let file = OpenOptions::new().write(true).open(path)?;
            if file.metadata()?.len() > length {
                file.set_len(length)?;
            }
            file.sync_all()
        });
        let path = path.to_owned();
        Box::pin(async move { cut.await.map(|()| CutFile { path }) })
    }

    fn list(&self, directory: &str) -> StoreFuture<Vec<String>> {
        self.run("list", directory, |directory| {
            let mut names = Vec::new();
            for entry in fs::read_dir(directory)? {
                names.push(entry?.file_name().to_string_lossy().into_owned());
            }
            names.sort();
            Ok(names)
        })
    }

    fn delete(&self, path: &str) -> StoreFuture<bool> {
        self.run("delete", path, |path| match fs::remove_file(path) {
            Ok(()) => sync_directory(parent(path)).map(|()| true),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        })
    }

    fn make_directories(&self, path: &str) -> StoreFuture<()> {
        self.run("make directory", path, |path| {
            for directory in create_directories(path)? {
                sync_directory(&directory)?;
            }
            Ok(())
        })
    }
}

/// A file being written.
struct LocalFile {
    files: LocalFiles,
    path: String,
    file: Arc<File>,
    /// Directories whose entries are not yet durable: the file's own, and those in which others were made for it.
    unsynced: Vec<PathBuf>,
    /// Written since the last sync.
    unsynced_bytes: usize,
}

/// From so many bytes on, what was synced leaves the page cache. Who writes gigabytes would fill the memory with them, and
/// take a new page for every old one: in a virtual machine the host has to provide each of those, which cost ten times what
/// the copy costs.
const UNCACHED_BYTES: usize = 1 << 20;

impl LocalFile {
    fn make_durable(&mut self, call: &'static str) -> StoreFuture<()> {
        let file = Arc::clone(&self.file);
        let directories = std::mem::take(&mut self.unsynced);
        let uncached = std::mem::take(&mut self.unsynced_bytes) >= UNCACHED_BYTES;
        let busy = Busy::new(&self.files, &self.path);
        self.files.run(call, &self.path, move |_| {
            let _busy = busy;
            // fdatasync covers the length; the first time the inode itself must be there too.
            if directories.is_empty() {
                file.sync_data()?
            } else {
                file.sync_all()?
            }
            if uncached {
                // Pages that are clean are dropped, all others stay; it is no more than an advice.
                let _taken = fadvise(&file, 0, None, Advice::DontNeed).is_ok();
            }
            directories.iter().try_for_each(|directory| sync_directory(directory))
        })
    }
}

impl RawFile for LocalFile {
    fn write(&mut self, bytes: Bytes) -> Pin<Box<dyn Future<Output = Result<(), StoreError>> + Send + '_>> {
        let file = Arc::clone(&self.file);
        let busy = Busy::new(&self.files, &self.path);
        self.unsynced_bytes += bytes.len();
        self.files.run("write", &self.path, move |_| {
            let _busy = busy;
            (&*file).write_all(&bytes)
        })
    }

    fn sync(&mut self) -> Pin<Box<dyn Future<Output = Result<(), StoreError>> + Send + '_>> {
        self.make_durable("sync")
    }

    fn close(&mut self) -> Pin<Box<dyn Future<Output = Result<(), StoreError>> + Send + '_>> {
        self.make_durable("close")
    }
}

/// The new file, and the directories to be synced for its name to last.
fn create_file(path: &Path) -> io::Result<(File, Vec<PathBuf>)> {
    let open = || OpenOptions::new().write(true).create_new(true).open(path);
    let mut unsynced = Vec::new();
    let file = match open() {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            unsynced = create_directories(parent(path))?;
            open()?
        }
        other => other?,
    };
    unsynced.push(parent(path).to_owned());
    Ok((file, unsynced))
}

/// Makes missing directories; gives those in which one was made.
fn create_directories(path: &Path) -> io::Result<Vec<PathBuf>> {
    let missing: Vec<&Path> = path.ancestors().take_while(|ancestor| !ancestor.exists()).collect();
    fs::create_dir_all(path)?;
    Ok(missing.into_iter().map(|made| parent(made).to_owned()).collect())
}

fn rename_file(from: &Path, to: &Path) -> io::Result<()> {
    create_directories(parent(to))?.iter().try_for_each(|directory| sync_directory(directory))?;
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Ok(()) => {}
        // Some file systems do not know the flag. A hard link is as exclusive: it fails where the name is taken.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS | rustix::io::Errno::OPNOTSUPP) => {
            fs::hard_link(from, to)?;
            fs::remove_file(from)?;
        }
        Err(error) => return Err(error.into()),
    }
    sync_directory(parent(to))?;
    if parent(from) != parent(to) {
        sync_directory(parent(from))?;
    }
    Ok(())
}

fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

fn failed(call: &'static str, path: &str, cause: &str) -> StoreError {
    StoreError::Failed { call, path: path.to_owned(), cause: cause.to_owned() }
}

fn explain(call: &'static str, path: &str, error: &io::Error) -> StoreError {
    let path = path.to_owned();
    let cause = error.to_string();
    match error.kind() {
        ErrorKind::AlreadyExists => StoreError::AlreadyExists { path },
        ErrorKind::NotFound => StoreError::NotFound { path },
        ErrorKind::InvalidFilename | ErrorKind::NotADirectory | ErrorKind::IsADirectory | ErrorKind::InvalidInput => {
            StoreError::Rejected { call, path, cause }
        }
        _ => StoreError::Failed { call, path, cause },
    }
}

/// Raises the limit of open files to `wanted`, as far as the system allows; gives what holds now.
pub fn raise_open_file_limit(wanted: u64) -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let Some(current) = limit.current else { return u64::MAX };
    if current >= wanted {
        return current;
    }
    let target = limit.maximum.map_or(wanted, |maximum| maximum.min(wanted));
    match setrlimit(Resource::Nofile, Rlimit { current: Some(target), maximum: limit.maximum }) {
        Ok(()) => target,
        Err(_) => current,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::{Store, Then};
    use std::time::Duration;

    fn store() -> Store {
        Store::new(Arc::new(LocalFiles::new(4)), tokio::runtime::Handle::current(), Duration::from_secs(30))
    }

    fn path(root: &tempfile::TempDir, name: &str) -> String {
        root.path().join(name).to_string_lossy().into_owned()
    }

    #[tokio::test]
    async fn a_file_is_written_synced_closed_and_renamed() {
        let root = tempfile::tempdir().unwrap();
        let store = store();
        let (open, done) = (path(&root, "a/b/c.tmp"), path(&root, "a/b/c"));
        let mut writer = store.create(&open).await.unwrap();
        assert_eq!(writer.append(Bytes::from_static(b"one\n"), Then::Sync).await.unwrap(), 4);
        assert_eq!(fs::read(&open).unwrap(), b"one\n");
        assert_eq!(writer.append(Bytes::from_static(b"two\n"), Then::Close).await.unwrap(), 8);
        store.rename(&open, &done).await.unwrap();
        assert_eq!(fs::read(&done).unwrap(), b"one\ntwo\n");
        assert_eq!(store.list(&path(&root, "a/b")).await.unwrap(), ["c"]);
    }

    #[tokio::test]
    async fn neither_create_nor_rename_replaces_a_file() {
        let root = tempfile::tempdir().unwrap();
        let store = store();
        let (first, second) = (path(&root, "first"), path(&root, "second"));
        fs::write(&first, "1").unwrap();
        fs::write(&second, "2").unwrap();
        assert!(matches!(store.create(&first).await, Err(StoreError::AlreadyExists { .. })));
        assert_eq!(
            store.rename(&first, &second).await.unwrap_err(),
            StoreError::AlreadyExists { path: second.clone() }
        );
        assert_eq!(fs::read_to_string(&second).unwrap(), "2");
    }

    #[tokio::test]
    async fn a_cut_file_keeps_what_was_settled_and_is_cut_again_without_harm() {
        let root = tempfile::tempdir().unwrap();
        let store = store();
        let file = path(&root, "f");
        fs::write(&file, "settled|torn").unwrap();
        for _ in 0..2 {
            assert_eq!(store.cut(&file, 7).await.unwrap(), CutFile { path: file.clone() });
            assert_eq!(fs::read_to_string(&file).unwrap(), "settled");
        }
    }

    #[tokio::test]
    async fn a_name_that_the_file_system_cannot_take_is_rejected_not_retried() {
        let root = tempfile::tempdir().unwrap();
        let store = store();
        let long = path(&root, &"x".repeat(300));
        assert!(matches!(store.create(&long).await, Err(StoreError::Rejected { .. })));
        fs::write(path(&root, "file"), "").unwrap();
        assert!(matches!(store.create(&path(&root, "file/below")).await, Err(StoreError::Rejected { .. })));
    }

    #[tokio::test]
    async fn a_file_that_a_thread_still_has_is_not_recovered() {
        let files = LocalFiles::new(1);
        let call = Busy::new(&files, "/hung");
        let other = Busy::new(&files, "/hung");
        assert!(!files.recover_lease("/hung").await.unwrap());
        drop(call);
        assert!(!files.recover_lease("/hung").await.unwrap());
        drop(other);
        assert!(files.recover_lease("/hung").await.unwrap());
    }

    #[tokio::test]
    async fn a_missing_file_has_no_length_and_its_removal_says_so() {
        let root = tempfile::tempdir().unwrap();
        let store = store();
        assert_eq!(store.length(&path(&root, "none")).await.unwrap(), None);
        assert!(!store.delete(&path(&root, "none")).await.unwrap());
        assert!(store.recover_lease(&path(&root, "none")).await.unwrap());
    }
}
