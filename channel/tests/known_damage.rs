//! Damage that is known to happen, one story each: what the channel says, and that it never makes events up.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use channel::{Channel, Devices, DurableChannel, DurableOptions, EventBatch, OnDamage, OpenError, TakeLimits};
use wal::io::real::Backend;
use wal::recover::RecoverError;
use wal::recover::cases::Case;
use wal::seal::ChannelKey;

const PAGE: usize = 4096;
const LIMITS: TakeLimits = TakeLimits { events: 100, bytes: 1 << 20 };

struct Place {
    root: tempfile::TempDir,
    dirs: usize,
    key: Option<ChannelKey>,
}

impl Place {
    fn new(dirs: usize, key: Option<ChannelKey>) -> Place {
        Place { root: tempfile::tempdir().unwrap(), dirs, key }
    }

    fn dir(&self, index: usize) -> PathBuf {
        self.root.path().join(format!("d{index}"))
    }

    fn options(&self) -> DurableOptions {
        let mut options = DurableOptions::new("c1", (0..self.dirs).map(|index| self.dir(index)).collect());
        options.segment_len = 8 * PAGE as u64;
        options.key = self.key.clone();
        options.backend = Some(Backend::Buffered);
        options.separate_flush_domains = true;
        options
    }

    fn open_with(&self, change: impl FnOnce(&mut DurableOptions)) -> Result<DurableChannel, OpenError> {
        let mut options = self.options();
        change(&mut options);
        DurableChannel::open(options, &Devices::new())
    }

    fn open(&self) -> Result<DurableChannel, OpenError> {
        self.open_with(|_| ())
    }

    /// Puts one transaction for each body and closes.
    fn fill(&self, bodies: &[&str]) {
        let channel = self.open().unwrap();
        let mut producer = channel.producer();
        for body in bodies {
            let mut batch = EventBatch::new();
            batch.push([("key", "value")], body.as_bytes());
            producer.put(batch).wait().unwrap();
        }
    }

    fn segments(&self, dir: usize) -> Vec<PathBuf> {
        let mut found: Vec<PathBuf> = fs::read_dir(self.dir(dir)).unwrap().map(|entry| entry.unwrap().path()).collect();
        found.retain(|path| path.file_name().unwrap().to_str().unwrap().starts_with("segment-"));
        found.sort();
        found
    }
}

fn drain(channel: &DurableChannel) -> Vec<String> {
    let mut consumer = channel.consumer("k1");
    let mut found = Vec::new();
    loop {
        let lease = consumer.take(LIMITS, Duration::from_millis(20)).wait().unwrap();
        if lease.is_empty() {
            return found;
        }
        found.extend(lease.iter().map(|(_, event)| {
            assert_eq!(event.headers().collect::<Vec<_>>(), [("key", "value")]);
            String::from_utf8(event.body().to_vec()).unwrap()
        }));
    }
}

fn change(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    fs::write(path, bytes).unwrap();
}

fn key(byte: u8) -> ChannelKey {
    ChannelKey::new("k1", [byte; 32]).unwrap()
}

/// Where the frame stands that holds the event of this number: witnesses may stand between frames with events.
fn frame_of(segment: &Path, seq: u64) -> usize {
    let bytes = fs::read(segment).unwrap();
    let holds = |offset: &usize| {
        let header = wal::format::frame::FrameHeader::decode(&bytes[*offset..]);
        header.is_ok_and(|header| (header.first_seq..header.end_seq()).contains(&seq))
    };
    (0..bytes.len()).step_by(PAGE).find(holds).unwrap()
}

#[test]
fn a_flipped_bit_in_an_acknowledged_frame_refuses_to_start_and_names_the_events() {
    let place = Place::new(1, None);
    place.fill(&["a", "b", "c"]);
    let frame = frame_of(&place.segments(0)[0], 1);
    change(&place.segments(0)[0], |bytes| bytes[frame + 200] ^= 1);
    let before = fs::read(&place.segments(0)[0]).unwrap();
    let Err(OpenError::Damaged(report)) = place.open() else { panic!("it must not open") };
    assert_eq!(report.lost.len(), 1);
    assert_eq!((report.lost[0].start, report.lost[0].count()), (1, 1));
    assert_eq!(report.findings.iter().map(|(_, finding)| finding.case).collect::<Vec<_>>(), [Case::Corrupt]);
    assert_eq!(fs::read(&place.segments(0)[0]).unwrap(), before, "nothing was changed");
    let channel = place.open_with(|options| options.on_damage = OnDamage::Continue).unwrap();
    assert_eq!(channel.recovery().lost_events, 1);
    assert_eq!(drain(&channel), ["a", "c"]);
}

#[test]
fn restart_keeps_events_after_a_torn_last_frame() {
    let place = Place::new(1, None);
    place.fill(&["a", "b"]);
    // The header of a third frame made it, its body did not.
    change(&place.segments(0)[0], |bytes| {
        let last = (0..bytes.len() / PAGE).rev().find(|page| bytes[page * PAGE..][..4] == *b"PNSF").unwrap();
        let torn: Vec<u8> = bytes[last * PAGE..][..100].to_vec();
        bytes[(last + 1) * PAGE..][..100].copy_from_slice(&torn);
    });
    let channel = place.open().unwrap();
    assert_eq!(channel.recovery().torn, 1);
    assert_eq!(drain(&channel), ["a", "b"]);
    drop(channel);
    assert_eq!(place.open().unwrap().recovery().torn, 0, "the verdict stands");
}

#[test]
fn one_rotten_copy_of_a_header_costs_nothing_and_two_are_reported() {
    let place = Place::new(1, Some(key(7)));
    place.fill(&["a"]);
    change(&place.segments(0)[0], |bytes| bytes[100] ^= 1);
    assert_eq!(drain(&place.open().unwrap()), ["a"]);
    change(&place.segments(0)[0], |bytes| bytes[PAGE + 100] ^= 1);
    let Err(OpenError::Damaged(report)) = place.open() else { panic!("it must not open") };
    assert_eq!(report.findings[0].1.case, Case::HeaderLost);
}

#[test]
fn a_wrong_key_and_a_missing_one_are_no_damage() {
    let place = Place::new(1, Some(key(7)));
    place.fill(&["a"]);
    let wrong = place.open_with(|options| options.key = Some(key(8)));
    assert!(matches!(wrong, Err(OpenError::Recover(RecoverError::WrongKey { .. }))));
    let missing = place.open_with(|options| options.key = None);
    assert!(matches!(missing, Err(OpenError::Recover(RecoverError::KeyMissing { .. }))));
    assert_eq!(drain(&place.open().unwrap()), ["a"]);
}

#[test]
fn a_plain_channel_can_be_encrypted_from_now_on() {
    let mut place = Place::new(1, None);
    place.fill(&["plain"]);
    place.key = Some(key(7));
    place.fill(&["sealed"]);
    assert_eq!(drain(&place.open().unwrap()), ["plain", "sealed"]);
}

#[test]
fn a_missing_directory_is_named_and_an_empty_one_does_not_stand_in_for_it() {
    let place = Place::new(2, None);
    place.fill(&["a", "b"]);
    let one = place.open_with(|options| drop(options.data_dirs.pop()));
    assert!(matches!(one, Err(OpenError::MissingDirectory { hint }) if hint.ends_with("d1")));
    fs::rename(place.dir(1), place.root.path().join("unmounted")).unwrap();
    fs::create_dir(place.dir(1)).unwrap();
    assert!(matches!(place.open(), Err(OpenError::MissingDirectory { .. })), "an empty mount point is not the disk");
    fs::remove_dir_all(place.dir(1)).unwrap();
    fs::rename(place.root.path().join("unmounted"), place.dir(1)).unwrap();
    let channel = place.open_with(|options| options.data_dirs.reverse()).unwrap();
    assert_eq!(drain(&channel).len(), 2, "their order does not matter");
}

#[test]
fn a_directory_can_be_added() {
    let mut place = Place::new(1, None);
    place.fill(&["a"]);
    place.dirs = 2;
    place.fill(&["b"]);
    assert_eq!(drain(&place.open().unwrap()), ["a", "b"]);
    place.dirs = 1;
    assert!(matches!(place.open(), Err(OpenError::MissingDirectory { .. })));
}

#[test]
fn directories_of_two_channels_are_not_mixed() {
    let (one, other) = (Place::new(1, None), Place::new(1, None));
    one.fill(&["a"]);
    other.fill(&["b"]);
    let mixed = one.open_with(|options| options.data_dirs.push(other.dir(0)));
    assert!(matches!(mixed, Err(OpenError::Foreign { .. })));
    let link = one.root.path().join("link");
    std::os::unix::fs::symlink(one.dir(0), &link).unwrap();
    let twice = one.open_with(|options| options.data_dirs.push(link));
    assert!(matches!(twice, Err(OpenError::Locked { .. } | OpenError::SameDirectory { .. })));
    let moved = one.segments(0)[0].clone();
    fs::copy(&other.segments(0)[0], moved).unwrap();
    assert!(matches!(one.open(), Err(OpenError::Recover(RecoverError::Foreign { .. }))));
}

#[test]
fn segments_without_an_identity_are_not_taken_over() {
    let place = Place::new(1, None);
    place.fill(&["a"]);
    fs::remove_file(place.dir(0).join("identity")).unwrap();
    assert!(matches!(place.open(), Err(OpenError::NoIdentity { .. })));
    fs::write(place.dir(0).join("identity"), b"x").unwrap();
    assert!(matches!(place.open(), Err(OpenError::Identity { .. })));
}

#[test]
fn a_segment_that_was_cut_is_damage_even_when_the_evidence_went_with_it() {
    let place = Place::new(1, None);
    place.fill(&["a", "b"]);
    let frame = frame_of(&place.segments(0)[0], 1);
    change(&place.segments(0)[0], |bytes| bytes.truncate(frame));
    assert!(matches!(place.open(), Err(OpenError::Damaged(_))));
}

#[test]
fn a_lost_disk_does_not_hide_events_that_another_disk_holds() {
    let place = Place::new(2, None);
    let change = |options: &mut DurableOptions| (options.hot_tail_bytes, options.segment_len) = (0, 1 << 20);
    let channel = place.open_with(change).unwrap();
    let mut producer = channel.producer();
    let holds = |path: &PathBuf, body: &str| {
        fs::read(path).unwrap_or_default().windows(body.len()).any(|window| window == body.as_bytes())
    };
    let mut wheres: Vec<usize> = Vec::new();
    // An event of the second disk between events of the first one: either may hold it, as far as the index knows.
    let between = loop {
        let body = format!("event-{:04}", wheres.len());
        let mut batch = EventBatch::new();
        batch.push([("key", "value")], body.as_bytes());
        producer.put(batch).wait().unwrap();
        wheres.push(usize::from(place.segments(1).iter().any(|path| holds(path, &body))));
        let between = wheres.windows(2).position(|two| two == [0, 1]).map(|index| index + 1);
        if let Some(between) = between.filter(|between| wheres[*between..].contains(&0)) {
            break between;
        }
        assert!(wheres.len() < 1000, "two disks are never used in turn: {wheres:?}");
    };
    let mut consumer = channel.consumer("k1");
    for _ in 0..between {
        let one = TakeLimits { events: 1, bytes: 1 << 20 };
        let lease = consumer.take(one, Duration::from_secs(9)).wait().unwrap();
        consumer.settle(vec![channel::Settlement::delivered(lease.ranges())]).wait().unwrap();
    }
    drop((consumer, producer, channel));
    // Nothing is in memory yet when the first disk loses its segments.
    let channel = place.open_with(change).unwrap();
    for path in place.segments(0) {
        fs::OpenOptions::new().write(true).open(path).unwrap().set_len(0).unwrap();
    }
    let mut consumer = channel.consumer("k1");
    let lease = consumer.take(LIMITS, Duration::from_secs(9)).wait().unwrap();
    assert_eq!(lease.iter().next().unwrap().1.body(), format!("event-{between:04}").as_bytes());
    assert!(consumer.take(LIMITS, Duration::from_secs(9)).wait().is_err(), "what is lost is told, not passed over");
}

#[test]
fn a_newer_format_is_refused_and_left_alone() {
    let place = Place::new(1, None);
    place.fill(&["a"]);
    change(&place.segments(0)[0], |bytes| {
        for copy in [0, PAGE] {
            bytes[copy + 8] = 2;
            let checksum = wal::checksum::crc32c(&bytes[copy..copy + PAGE - 4]).to_le_bytes();
            bytes[copy + PAGE - 4..copy + PAGE].copy_from_slice(&checksum);
        }
    });
    assert!(matches!(place.open(), Err(OpenError::Recover(RecoverError::Version { .. }))));
}

#[test]
fn a_second_opening_is_refused_by_name() {
    let place = Place::new(1, None);
    let first = place.open().unwrap();
    let second = place.open();
    assert!(matches!(second, Err(OpenError::Locked { dir }) if dir.ends_with("d0")));
    drop(first);
    place.open().unwrap();
}

#[test]
fn strange_files_in_the_directory_do_no_harm() {
    let place = Place::new(1, None);
    place.fill(&["a"]);
    for name in ["lost+found", "segment-12", "segment-abc", "notes.txt"] {
        fs::write(place.dir(0).join(name), b"?").unwrap();
    }
    fs::write(place.dir(0).join("segment-0000000099.new"), b"half").unwrap();
    assert_eq!(drain(&place.open().unwrap()), ["a"]);
    assert!(!place.dir(0).join("segment-0000000099.new").exists());
}

/// Flips one bit in each byte that holds something, and in some that do not.
fn every_flip_is_noticed_or_harmless(key: Option<ChannelKey>) {
    let place = Place::new(1, key);
    place.fill(&["first", "second"]);
    let segment = place.segments(0)[0].clone();
    let whole = fs::read(&segment).unwrap();
    let all_files: Vec<(PathBuf, Vec<u8>)> = fs::read_dir(place.dir(0))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.clone(), fs::read(path).unwrap()))
        .collect();
    let (mut noticed, mut harmless) = (0, 0);
    let interesting = |at: &usize| whole[*at] != 0 || at.is_multiple_of(97);
    for at in (0..whole.len()).filter(interesting) {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 8);
        fs::write(&segment, &bytes).unwrap();
        match place.open() {
            Ok(channel) => {
                assert_eq!(drain(&channel), ["first", "second"], "a flip at {at} changed what is delivered");
                harmless += 1;
            }
            Err(OpenError::Damaged(report)) => {
                assert!(!report.findings.is_empty(), "a flip at {at}");
                noticed += 1;
            }
            Err(error) => panic!("a flip at {at}: {error}"),
        }
        for (path, bytes) in &all_files {
            fs::write(path, bytes).unwrap();
        }
        for path in place.segments(0) {
            if !all_files.iter().any(|(known, _)| *known == path) {
                fs::remove_file(path).unwrap();
            }
        }
    }
    println!("{noticed} flips noticed, {harmless} harmless");
    assert!(noticed > 100 && harmless > 100);
}

#[test]
fn a_flip_anywhere_in_a_plain_segment_is_noticed_or_harmless() {
    every_flip_is_noticed_or_harmless(None);
}

#[test]
fn a_flip_anywhere_in_an_encrypted_segment_is_noticed_or_harmless() {
    every_flip_is_noticed_or_harmless(Some(key(7)));
}
