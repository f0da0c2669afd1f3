//! A key that is rotated while the channel runs, on real files.

use std::sync::Arc;
use std::time::Duration;

use channel::inspect::{Inspection, Looking};
use channel::{Channel, Devices, DurableChannel, DurableOptions, EventBatch, OpenError, TakeLimits};
use wal::io::Dir;
use wal::io::real::{Backend, RealDir};
use wal::recover::RecoverError;
use wal::recover::scan::Depth;
use wal::seal::ChannelKey;

const LONG: Duration = Duration::from_secs(60);
const LIMITS: TakeLimits = TakeLimits { events: 100_000, bytes: 1 << 30 };

fn key(number: u8) -> ChannelKey {
    ChannelKey::new(&format!("k{number}"), [number; 32]).unwrap()
}

fn batch(number: u32) -> EventBatch {
    let mut batch = EventBatch::new();
    batch.push_body(&number.to_le_bytes());
    batch
}

#[test]
fn frames_turn_to_a_new_key_under_load_and_old_ones_stay_readable() {
    let root = tempfile::tempdir().unwrap();
    let dirs = [root.path().join("d"), root.path().join("e")];
    let options = |active: u8, all: &[u8]| DurableOptions {
        segment_len: 1 << 20,
        hot_tail_bytes: 0,
        key: Some(key(active)),
        old_keys: all.iter().map(|number| key(*number)).collect(),
        ..DurableOptions::new("c1", dirs.to_vec())
    };
    let uses = || {
        let dirs = dirs.iter().map(|dir| RealDir::open_or_create(dir, Some(Backend::Buffered)).unwrap());
        let dirs: Vec<Arc<dyn Dir>> = dirs.map(|dir| Arc::new(dir) as Arc<dyn Dir>).collect();
        let looking = Looking { keys: (1..=3).map(key).collect(), depth: Depth::Bodies, from_disk: false };
        let inspection = Inspection::look(&dirs, &looking).unwrap();
        let contents = inspection.dirs.iter().map(|dir| dir.content.as_ref().unwrap());
        let keys: Vec<_> = contents.flat_map(|content| content.key_uses().keys().flatten().cloned()).collect();
        keys
    };
    let channel = DurableChannel::open(options(1, &[]), &Devices::new()).unwrap();
    let mut producers: Vec<_> = (0..4).map(|_| channel.producer()).collect();
    let mut sent = 0..;
    let mut put = |channel_key: &str| {
        // Until a segment is begun under the key, for that takes file work.
        for _ in 0..100_000 {
            let tickets: Vec<_> =
                producers.iter_mut().zip(&mut sent).map(|(producer, number)| producer.put(batch(number))).collect();
            for ticket in tickets {
                ticket.wait().unwrap();
            }
            if uses().iter().any(|id| id == channel_key) {
                return;
            }
        }
        panic!("nothing is ever written under {channel_key}");
    };
    put("k1");
    channel.rotate(&key(2));
    put("k2");
    channel.rotate(&key(3));
    put("k3");
    let count = channel.stats().size_events;
    drop(producers);
    drop(channel);

    let refused = DurableChannel::open(options(3, &[2]), &Devices::new());
    assert!(matches!(refused, Err(OpenError::Recover(RecoverError::KeyMissing { .. }))));
    let channel = DurableChannel::open(options(3, &[1, 2]), &Devices::new()).unwrap();
    let mut consumer = channel.consumer("sink");
    let mut found = Vec::new();
    while found.len() < count as usize {
        let lease = consumer.take(LIMITS, LONG).wait().unwrap();
        found.extend(lease.iter().map(|(_, event)| u32::from_le_bytes(event.body().try_into().unwrap())));
    }
    found.sort_unstable();
    assert!(found.iter().copied().eq(0..count as u32));
}

#[test]
fn a_channel_that_is_not_encrypted_stays_so() {
    let root = tempfile::tempdir().unwrap();
    let options = || DurableOptions::new("c1", vec![root.path().join("d")]);
    let channel = DurableChannel::open(options(), &Devices::new()).unwrap();
    channel.producer().put(batch(1)).wait().unwrap();
    channel.rotate(&key(2));
    channel.producer().put(batch(2)).wait().unwrap();
    drop(channel);
    let channel = DurableChannel::open(options(), &Devices::new()).unwrap();
    assert_eq!(channel.stats().size_events, 2);
}
