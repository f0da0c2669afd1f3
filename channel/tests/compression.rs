//! A channel that compresses, on real files: events come back whatever they are like, tools can read them, and damage shows.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use channel::inspect::{Inspection, Looking, Which};
use channel::{Channel, Compress, Devices, DurableChannel, DurableOptions, EventBatch, TakeLimits};
use wal::io::Dir;
use wal::io::real::{Backend, RealDir};
use wal::recover::scan::Depth;
use wal::seal::ChannelKey;

const LIMITS: TakeLimits = TakeLimits { events: 100_000, bytes: 1 << 30 };
const LONG: Duration = Duration::from_secs(60);

fn key() -> ChannelKey {
    ChannelKey::new("k1", [7; 32]).unwrap()
}

fn options(root: &Path, compress: bool, encrypt: bool) -> DurableOptions {
    DurableOptions {
        compress: if compress { Compress::Always } else { Compress::Never },
        // Everything is read back from the disk.
        hot_tail_bytes: 0,
        segment_len: 4 << 20,
        key: encrypt.then(key),
        old_keys: vec![key()],
        ..DurableOptions::new("c1", vec![root.join("d")])
    }
}

/// Batches of any kind: tiny, of several blocks, with long headers, and such that do not shrink.
fn batches() -> Vec<EventBatch> {
    let mut state = 7u64;
    let mut noise = |len: usize| -> Vec<u8> {
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        };
        (0..len).map(|_| next()).collect()
    };
    let mut batches = Vec::new();
    for (events, len) in [(1, 10), (3, 400), (100, 1000), (5000, 30), (1, 400_000), (2000, 0)] {
        let mut text = EventBatch::new();
        let mut random = EventBatch::new();
        for event in 0..events {
            let line = format!("10.0.0.{} GET /index.html HTTP/1.1 200 {event}us\n", event % 256).repeat(len / 40 + 1);
            text.push([("host", "web-1"), ("path", "/var/log/nginx/access.log")], &line.as_bytes()[..len]);
            random.push([("host", "web-2")], &noise(len));
        }
        batches.extend([text, random]);
    }
    batches
}

fn bodies(batches: &[EventBatch]) -> Vec<Vec<u8>> {
    batches.iter().flat_map(|batch| batch.iter().map(|event| event.body().to_vec()).collect::<Vec<_>>()).collect()
}

fn fill(root: &Path, compress: bool, encrypt: bool) {
    let channel = DurableChannel::open(options(root, compress, encrypt), &Devices::new()).unwrap();
    let mut producer = channel.producer();
    for batch in batches() {
        producer.put(batch).wait().unwrap();
    }
}

fn taken(channel: &DurableChannel) -> Result<Vec<Vec<u8>>, String> {
    let mut consumer = channel.consumer("sink");
    let (mut found, mut leases) = (Vec::new(), Vec::new());
    while (found.len() as u64) < channel.stats().size_events {
        let lease = consumer.take(LIMITS, LONG).wait().map_err(|error| error.to_string())?;
        if lease.is_empty() {
            return Err("nothing comes".to_owned());
        }
        found.extend(lease.iter().map(|(_, event)| event.body().to_vec()));
        leases.push(lease);
    }
    Ok(found)
}

#[test]
fn events_come_back_however_they_were_written_and_however_the_channel_is_opened() {
    let expected = bodies(&batches());
    for (compress, encrypt) in [(true, false), (true, true), (false, true)] {
        let root = tempfile::tempdir().unwrap();
        fill(root.path(), compress, encrypt);
        for compresses_now in [false, true] {
            let channel = DurableChannel::open(options(root.path(), compresses_now, encrypt), &Devices::new()).unwrap();
            assert!(taken(&channel).unwrap() == expected, "{compress} {encrypt} {compresses_now}");
        }
    }
}

#[test]
fn tools_list_compressed_transactions_and_see_that_they_are_shorter() {
    let expected = bodies(&batches());
    let mut frame_bytes = Vec::new();
    for compress in [false, true] {
        let root = tempfile::tempdir().unwrap();
        fill(root.path(), compress, false);
        let dir: Arc<dyn Dir> =
            Arc::new(RealDir::open_or_create(&root.path().join("d"), Some(Backend::Buffered)).unwrap());
        let looking = Looking { keys: Vec::new(), depth: Depth::Bodies, from_disk: false };
        let inspection = Inspection::look(&[dir], &looking).unwrap();
        let listed: Vec<Vec<u8>> = inspection
            .events(Which::All)
            .flat_map(|slice| slice.unwrap().events.iter().map(|event| event.body().to_vec()).collect::<Vec<_>>())
            .collect();
        assert!(listed == expected);
        let content = inspection.dirs[0].content.as_ref().unwrap();
        assert_eq!((content.malformed.as_deref(), content.unknown_section), (None, None));
        frame_bytes.push(content.frame_bytes);
    }
    // Half of the bytes are noise.
    assert!(frame_bytes[1] < frame_bytes[0] * 6 / 10, "{frame_bytes:?}");
}

#[test]
fn a_backlog_that_shrinks_to_next_to_nothing_comes_back_piece_by_piece() {
    let root = tempfile::tempdir().unwrap();
    let channel = DurableChannel::open(options(root.path(), true, false), &Devices::new()).unwrap();
    let mut producer = channel.producer();
    for number in 0..60_u8 {
        let mut batch = EventBatch::new();
        batch.push_body(&vec![number; 400_000]);
        producer.put(batch).wait().unwrap();
    }
    let disk_bytes = channel.stats().disk_bytes;
    assert!(disk_bytes <= 4 << 20, "{disk_bytes}");
    let found = taken(&channel).unwrap();
    assert!((0..60_u8).zip(&found).all(|(number, body)| *body == vec![number; 400_000]) && found.len() == 60);
}

#[test]
fn a_flip_in_a_compressed_transaction_is_noticed_or_hits_nothing() {
    let root = tempfile::tempdir().unwrap();
    let mut batch = EventBatch::new();
    (0..500).for_each(|event| batch.push_body(format!("GET /index.html 200 {event}us").as_bytes()));
    let expected = bodies(std::slice::from_ref(&batch));
    let channel = DurableChannel::open(options(root.path(), true, false), &Devices::new()).unwrap();
    channel.producer().put(batch).wait().unwrap();
    drop(channel);
    let file = std::fs::read_dir(root.path().join("d")).unwrap().map(|entry| entry.unwrap().path());
    let file = file.filter(|path| path.to_string_lossy().contains("segment-")).min().unwrap();
    let whole = std::fs::read(&file).unwrap();
    let frame = whole.windows(4).position(|bytes| bytes == b"PNSF").unwrap();
    let mut noticed = 0;
    for at in (frame..frame + 4096).step_by(61) {
        let mut flipped = whole.clone();
        flipped[at] ^= 1 << (at % 8);
        std::fs::write(&file, &flipped).unwrap();
        let dir: Arc<dyn Dir> =
            Arc::new(RealDir::open_or_create(&root.path().join("d"), Some(Backend::Buffered)).unwrap());
        let looking = Looking { keys: Vec::new(), depth: Depth::Bodies, from_disk: false };
        let inspection = Inspection::look(&[dir], &looking).unwrap();
        let listed: Result<Vec<_>, _> = inspection.events(Which::All).collect();
        let bodies = listed.map(|slices| {
            slices.iter().flat_map(|slice| slice.events.iter().map(|event| event.body().to_vec())).collect::<Vec<_>>()
        });
        noticed += 1;
        match bodies {
            Ok(bodies) => assert!(bodies.is_empty(), "byte {at}: it is whole in spite of a flip"),
            Err(_) => continue,
        }
        assert!(inspection.has_loss() || inspection.stored_events() < expected.len() as u64, "byte {at}");
    }
    assert!(noticed > 60);
}
