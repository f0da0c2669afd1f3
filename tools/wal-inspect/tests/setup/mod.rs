//! Channels to look at, made by the channel itself, and a way to run the binary.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use channel::{Channel, Consumer, Devices, DurableChannel, DurableOptions, EventBatch, Settlement, TakeLimits};
use serde_json::Value;
use wal::format::frame::FrameHeader;
use wal::seal::ChannelKey;

/// The key `k1` with this byte.
pub(crate) fn key(byte: u8) -> ChannelKey {
    ChannelKey::new("k1", [byte; 32]).unwrap()
}

pub(crate) fn write_key_file(dir: &Path, byte: u8) -> PathBuf {
    let path = dir.join(format!("keys-{byte}"));
    fs::write(&path, format!("k1 {}\n", STANDARD.encode([byte; 32]))).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path
}

pub(crate) struct Fixture {
    pub(crate) root: tempfile::TempDir,
    pub(crate) dirs: Vec<PathBuf>,
    key: Option<ChannelKey>,
}

/// One header and the body.
type Written<'a> = ([(&'a str, &'a str); 1], &'a [u8]);

impl Fixture {
    pub(crate) fn new(dirs: usize, key: Option<ChannelKey>) -> Fixture {
        let root = tempfile::tempdir().unwrap();
        let dirs = (0..dirs).map(|index| root.path().join(format!("d{index}/penstock"))).collect();
        Fixture { root, dirs, key }
    }

    pub(crate) fn open(&self) -> DurableChannel {
        for dir in &self.dirs {
            fs::create_dir_all(dir).unwrap();
        }
        let mut options = DurableOptions::new("c1", self.dirs.clone());
        options.segment_len = 256 << 10;
        options.key = self.key.clone();
        options.separate_flush_domains = true;
        DurableChannel::open(options, &Devices::new()).unwrap()
    }

    /// Puts transactions of bodies `0`, `1`, …, one after the other, and settles the first `settled` events.
    pub(crate) fn fill(&self, transactions: usize, events: usize, settled: usize) {
        let open = self.open();
        let mut producer = open.producer();
        // Another producer for each transaction: they spread over the directories.
        for transaction in 0..transactions {
            let mut batch = EventBatch::new();
            for event in 0..events {
                let body = (transaction * events + event).to_string();
                batch.push([("transaction", transaction.to_string().as_str())], body.as_bytes());
            }
            if transaction % 3 == 2 {
                producer = open.producer();
            }
            producer.put(batch).wait().unwrap();
        }
        let mut consumer = open.consumer("k1");
        settle(&mut *consumer, settled);
        drop(consumer);
        open.close().wait().unwrap();
    }

    pub(crate) fn put(&self, events: &[Written<'_>]) {
        let open = self.open();
        let mut batch = EventBatch::new();
        for (headers, body) in events {
            batch.push(headers.iter().copied(), body);
        }
        open.producer().put(batch).wait().unwrap();
        open.close().wait().unwrap();
    }
}

/// Takes and settles so many events.
pub(crate) fn settle(consumer: &mut dyn Consumer, mut events: usize) {
    while events > 0 {
        let limits = TakeLimits { events, bytes: usize::MAX };
        let lease = consumer.take(limits, Duration::from_secs(10)).wait().unwrap();
        assert!(!lease.is_empty(), "{events} events short");
        events -= lease.event_count();
        consumer.settle(vec![Settlement::delivered(lease.ranges())]).wait().unwrap();
    }
}

/// Every frame of a directory with its place, in order of place.
pub(crate) fn frames(dir: &Path) -> Vec<(PathBuf, u64, FrameHeader)> {
    let mut found = Vec::new();
    let mut paths: Vec<PathBuf> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.file_name().unwrap().to_str().unwrap().starts_with("segment-"));
    paths.sort();
    for path in paths {
        for (index, page) in fs::read(&path).unwrap().chunks(4096).enumerate() {
            let offset = index as u64 * 4096;
            if let Ok(header) = FrameHeader::decode(page)
                && header.offset == offset
            {
                found.push((path.clone(), offset, header));
            }
        }
    }
    found
}

/// Everything about the files below `root` that a write would change.
pub(crate) fn tree(root: &Path) -> BTreeMap<PathBuf, (Vec<u8>, i64, i64, u32)> {
    let mut all = BTreeMap::new();
    let mut waiting = vec![root.to_owned()];
    while let Some(path) = waiting.pop() {
        let metadata = fs::symlink_metadata(&path).unwrap();
        let bytes = if metadata.is_dir() { Vec::new() } else { fs::read(&path).unwrap() };
        if metadata.is_dir() {
            waiting.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        all.insert(path, (bytes, metadata.mtime_nsec(), metadata.ctime_nsec(), metadata.mode()));
    }
    all
}

/// A finished run.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    /// Standard output, where it is JSON.
    pub(crate) lines: Vec<Value>,
}

impl Ran {
    pub(crate) fn of_type<'a>(&'a self, wanted: &'a str) -> impl Iterator<Item = &'a Value> {
        self.lines.iter().filter(move |line| line["type"] == wanted)
    }

    /// The last line of `info` and `verify`, whose code is the process's.
    pub(crate) fn summary(&self) -> &Value {
        let summary = self.lines.last().expect("a summary");
        assert_eq!(summary["exit_code"], self.code);
        summary
    }
}

pub(crate) fn inspect(arguments: &[&str]) -> Ran {
    let output = Command::new(env!("CARGO_BIN_EXE_wal-inspect")).args(arguments).output().unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    let lines = stdout.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    Ran {
        code: output.status.code().expect("ended by itself"),
        stdout,
        stderr: String::from_utf8(output.stderr).unwrap(),
        lines,
    }
}
