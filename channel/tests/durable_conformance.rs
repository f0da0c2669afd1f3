//! The durable channel passes the suite of all channels, plain and encrypted, on one directory and on several.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use channel::conformance::{self, Place, Setup};
use channel::{Channel, Devices, DurableChannel, DurableOptions, calibrate};
use wal::flushes::Durability;
use wal::io::real::{Backend, RealDir};
use wal::seal::ChannelKey;
use wal::tuning::Tuning;

struct Scratch {
    root: tempfile::TempDir,
    setup: Setup,
    dirs: usize,
    key: Option<ChannelKey>,
    how: (Option<Backend>, Option<Tuning>),
    last: Mutex<Option<Arc<DurableChannel>>>,
}

/// The suite owns its channel; the place keeps it too, to close it before the next opening.
struct Open(Arc<DurableChannel>);

impl Channel for Open {
    fn producer(&self) -> Box<dyn channel::Producer> {
        self.0.producer()
    }
    fn consumer(&self, name: &str) -> Box<dyn channel::Consumer> {
        self.0.consumer(name)
    }
    fn notes(&self, owner: &str) -> Vec<(String, bytes::Bytes)> {
        self.0.notes(owner)
    }
    fn is_durable(&self) -> bool {
        self.0.is_durable()
    }
    fn transaction_capacity(&self) -> usize {
        self.0.transaction_capacity()
    }
    fn stats(&self) -> channel::ChannelStats {
        self.0.stats()
    }
    fn close(&self) -> channel::Ticket<Result<(), String>> {
        self.0.close()
    }
}

impl Place for Scratch {
    fn open(&self) -> Box<dyn Channel> {
        let mut last = self.last.lock().unwrap();
        if let Some(earlier) = last.take() {
            earlier.close().wait().unwrap();
        }
        let dirs: Vec<PathBuf> = (0..self.dirs).map(|index| self.root.path().join(format!("d{index}"))).collect();
        let mut options = DurableOptions::new("c1", dirs);
        options.capacity = self.setup.capacity as u64;
        options.transaction_capacity = self.setup.transaction_capacity;
        options.keep_alive = self.setup.keep_alive;
        options.segment_len = 1 << 20;
        options.key = self.key.clone();
        (options.backend, options.tuning) = self.how;
        options.separate_flush_domains = true;
        let channel = Arc::new(DurableChannel::open(options, &Devices::new()).unwrap());
        *last = Some(Arc::clone(&channel));
        Box::new(Open(channel))
    }
}

fn check(dirs: usize, key: Option<ChannelKey>) {
    check_written(dirs, key, (None, Some(Tuning::default())));
}

fn check_written(dirs: usize, key: Option<ChannelKey>, how: (Option<Backend>, Option<Tuning>)) {
    conformance::check_durable(&|setup| {
        let root = tempfile::tempdir().unwrap();
        Box::new(Scratch { root, setup, dirs, key: key.clone(), how, last: Mutex::default() })
    });
}

#[test]
fn one_plain_directory() {
    check(1, None);
}

#[test]
fn three_encrypted_directories() {
    check(3, Some(ChannelKey::new("k1", [7; 32]).unwrap()));
}

#[test]
fn one_flush_for_many_writes_whatever_writes_them() {
    let tuning = Tuning { durability: Durability::SharedFlush, depth: 3 };
    for backend in Backend::ALL {
        check_written(2, None, (Some(backend), Some(tuning)));
    }
}

#[test]
fn a_disk_is_measured_once_and_again_when_it_is_written_in_another_way_or_by_command() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("d");
    let identity = || std::fs::read(dir.join("identity")).unwrap();
    let open = |backend: Option<Backend>| {
        let mut options = DurableOptions::new("c1", vec![dir.clone()]);
        (options.backend, options.tuning) = (backend, None);
        drop(DurableChannel::open(options, &Devices::new()).unwrap());
        identity()
    };
    assert!(calibrate(&dir, None).is_err(), "nothing is there yet");
    let probe = RealDir::open_or_create(root.path(), None).unwrap();
    let measurable = probe.backend() != Backend::Buffered && !probe.is_in_memory().unwrap();
    let first = open(None);
    assert_eq!(open(None), first, "what is known is used");
    let other = open(Some(Backend::Direct));
    assert_eq!(other != first, measurable);
    assert_eq!(open(Some(Backend::Buffered)), other, "what cannot be measured changes nothing");
    let measured = calibrate(&dir, None).unwrap();
    assert_eq!((measured.is_some(), identity() != other), (measurable, measurable));
    let names: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|file| file.unwrap().file_name()).collect();
    assert!(names.iter().all(|name| !name.to_string_lossy().ends_with(".new")), "{names:?}");
}

#[test]
fn a_channel_without_traffic_answers_a_take_with_an_empty_lease() {
    let root = tempfile::tempdir().unwrap();
    let options = DurableOptions::new("c1", vec![root.path().join("d")]);
    let channel = DurableChannel::open(options, &Devices::new()).unwrap();
    let mut consumer = channel.consumer("k1");
    let limits = channel::TakeLimits { events: 1, bytes: 1 };
    assert!(consumer.take(limits, Duration::from_millis(1)).wait().unwrap().is_empty());
}
