//! Where the kernel denies io_uring, as many containers do, the channel writes with threads and says so.

use std::collections::BTreeMap;
use std::time::Duration;

use channel::{Channel, Devices, DurableChannel, DurableOptions, EventBatch, TakeLimits};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

/// Denies io_uring to this thread, and to those that it starts.
fn deny_rings() {
    const IO_URING_SETUP: i64 = 425;
    const EPERM: u32 = 1;
    let rules = BTreeMap::from([(IO_URING_SETUP, Vec::new())]);
    let denied = SeccompAction::Errno(EPERM);
    let arch = std::env::consts::ARCH.try_into().unwrap();
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, denied, arch).unwrap();
    let program: BpfProgram = filter.try_into().unwrap();
    seccompiler::apply_filter(&program).unwrap();
}

fn open(root: &std::path::Path) -> DurableChannel {
    let options = DurableOptions::new("c1", vec![root.join("d")]);
    DurableChannel::open(options, &Devices::new()).unwrap()
}

fn put(channel: &DurableChannel, events: u64) {
    let mut batch = EventBatch::new();
    (0..events).for_each(|number| batch.push([("", ""); 0], &number.to_le_bytes()));
    channel.producer().put(batch).wait().unwrap();
}

#[test]
fn a_channel_without_io_uring_writes_with_threads_and_goes_on_with_a_ring_later() {
    let scratch = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            deny_rings();
            let channel = open(scratch.path());
            put(&channel, 100);
            assert_eq!(channel.stats().rings_denied, 1);
        });
    });
    let channel = open(scratch.path());
    put(&channel, 100);
    assert_eq!(channel.stats().rings_denied, 0, "this thread is denied nothing");
    let limits = TakeLimits { events: 1_000, bytes: 1 << 20 };
    let lease = channel.consumer("k1").take(limits, Duration::from_secs(5)).wait().unwrap();
    assert_eq!(lease.event_count(), 200);
}
