//! What the host says about a directory and a process: who holds the lock, how many files may be open.
//!
//! Promises to change nothing in the directory: the lock is looked up in the kernel's table, never tried, so that an
//! inspector cannot be in the way of an agent that starts at the same moment.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::real::LOCK;

/// Whether a process has a directory open for writing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Writer {
    None,
    Process(u32),
    /// The host does not say: no `/proc`, or a process of another user that may or may not be the one.
    Unknown(String),
}

/// Who holds the lock of the data directory at `path`.
pub fn writer_of(path: &Path) -> Writer {
    let lock = match fs::symlink_metadata(path.join(LOCK)) {
        Ok(lock) => lock,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Writer::None,
        Err(error) => return Writer::Unknown(format!("the lock file: {error}")),
    };
    let table = match fs::read_to_string("/proc/locks") {
        Ok(table) => table,
        Err(error) => return Writer::Unknown(format!("/proc/locks: {error}")),
    };
    let mut unsure = None;
    for entry in table.lines().filter_map(parse) {
        if entry.inode != lock.ino() {
            continue;
        }
        if entry.device == lock.dev() {
            return Writer::Process(entry.pid);
        }
        // Some file systems (btrfs, overlay) show another device in the table than to `stat`: ask the process.
        match has_open(entry.pid, &lock) {
            Ok(true) => return Writer::Process(entry.pid),
            Ok(false) => {}
            Err(error) => unsure = Some(format!("process {}: {error}", entry.pid)),
        }
    }
    unsure.map_or(Writer::None, Writer::Unknown)
}

/// What `/sys` says of the disk with this device number, in one line: which one it is, and how its queue is set. Without the
/// number itself, which may be another one after each start of the host. Empty where there is no block device.
pub fn describe_disk(device_number: u64) -> String {
    let (major, minor) = (rustix::fs::major(device_number), rustix::fs::minor(device_number));
    let path = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
    let whole = if path.join("partition").exists() { path.join("..") } else { path };
    let settings = ["size", "device/model", "device/serial", "queue/write_cache", "queue/fua", "queue/rotational"];
    let more = ["queue/scheduler", "queue/logical_block_size", "queue/max_sectors_kb", "queue/nr_requests"];
    let said = settings.iter().chain(&more).filter_map(|name| {
        let text = fs::read_to_string(whole.join(name)).ok()?;
        Some(format!("{name}={}", text.trim()))
    });
    said.collect::<Vec<_>>().join(" ")
}

struct Entry {
    pid: u32,
    device: u64,
    inode: u64,
}

/// One line of `/proc/locks`: `1: FLOCK  ADVISORY  WRITE 4711 fe:00:1234 0 EOF`. Who only waits has `->` and none.
fn parse(line: &str) -> Option<Entry> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let [_, "FLOCK", _, _, pid, place, ..] = words[..] else { return None };
    let mut parts = place.split(':');
    let (major, minor, inode) = (parts.next()?, parts.next()?, parts.next()?);
    let device = rustix::fs::makedev(u32::from_str_radix(major, 16).ok()?, u32::from_str_radix(minor, 16).ok()?);
    Some(Entry { pid: pid.parse().ok()?, device, inode: inode.parse().ok()? })
}

fn has_open(pid: u32, file: &fs::Metadata) -> io::Result<bool> {
    for entry in fs::read_dir(PathBuf::from(format!("/proc/{pid}/fd")))? {
        // A descriptor may be closed while we look.
        if let Ok(open) = fs::metadata(entry?.path())
            && open.dev() == file.dev()
            && open.ino() == file.ino()
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Raises the soft limit of open files to the hard one, and says what it is now: a log keeps each segment open, and
/// the usual soft limit of 1,024 ends at 64 GiB.
pub fn raise_open_files() -> io::Result<u64> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?;
    }
    Ok(limit.maximum.unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::Dir;
    use crate::io::real::{Backend, RealDir};

    #[test]
    fn the_holder_of_a_lock_is_found_and_forgotten() {
        let scratch = tempfile::tempdir().unwrap();
        assert_eq!(writer_of(scratch.path()), Writer::None);
        let dir = RealDir::open_or_create(scratch.path(), Some(Backend::Buffered)).unwrap();
        let guard = dir.lock().unwrap();
        assert_eq!(writer_of(scratch.path()), Writer::Process(std::process::id()));
        drop(guard);
        assert_eq!(writer_of(scratch.path()), Writer::None);
    }

    #[test]
    fn a_line_of_the_kernel_is_understood() {
        let entry = parse("3: FLOCK  ADVISORY  WRITE 4711 fe:01:1234 0 EOF").unwrap();
        assert_eq!((entry.pid, entry.device, entry.inode), (4711, rustix::fs::makedev(0xfe, 1), 1234));
        assert!(parse("3: -> FLOCK  ADVISORY  WRITE 4711 fe:01:1234 0 EOF").is_none());
        assert!(parse("3: POSIX  ADVISORY  WRITE 4711 fe:01:1234 0 EOF").is_none());
        assert!(parse("").is_none());
    }

    #[test]
    fn the_soft_limit_of_open_files_reaches_the_hard_one() {
        let raised = raise_open_files().unwrap();
        assert_eq!(getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX), raised);
    }
}
