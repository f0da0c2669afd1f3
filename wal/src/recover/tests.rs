//! Stories of crashes that recovery must survive twice: what it decides must still hold after the next crash.

use super::*;
use crate::chore::{Chore, slot_name};
use crate::device::Device;
use crate::io::buffer::Buffer;
use crate::io::sim::{Outcome, SimDisk, SimRandom};
use crate::limits::SEGMENT_MIN;
use crate::log::{FooterRequest, FrameRequest, Log, LogOptions, Reservation};

const SEGMENT: u64 = SEGMENT_MIN + 4 * PAGE as u64;
const LOG: [u8; 16] = [2; 16];

fn read(disk: &SimDisk) -> LogScan {
    read_with(disk, &Known::default())
}

fn read_with(disk: &SimDisk, known: &Known) -> LogScan {
    read_log(&*disk.dir("d"), LOG, [1; 16], &[], Purpose::Recover { footers: true }, known, &|_| false, &mut |_, _| {})
        .unwrap()
}

/// Opens the log as a channel would, which must find nothing lost.
fn open(disk: &SimDisk) -> Log {
    let scan = read(disk);
    let mark = scan.marks.get(&LOG).copied().unwrap_or_default();
    let lost: Vec<Finding> = scan.judge(mark).into_iter().filter(|finding| finding.case.is_loss()).collect();
    assert_eq!(lost, []);
    let options =
        LogOptions { channel: [1; 16], log: LOG, segment_len: SEGMENT, pool_bytes: 0, key: None, reserve_bytes: 0 };
    let mut log = Log::new(options, Device::new("d", 4), scan.recovered(mark, SEGMENT, false));
    while log.needs_verdict() {
        chore(&mut log, disk);
    }
    log
}

fn chore(log: &mut Log, disk: &SimDisk) {
    let random = SimRandom::new(disk.operations());
    let chore = log.next_chore(&random, true, false, 0).expect("there is something to do");
    let result = chore.run(&*disk.dir("d"));
    log.chore_done(chore, result);
}

fn reserve(log: &mut Log, disk: &SimDisk, pages: usize) -> Reservation {
    reserve_with(log, disk, pages, None)
}

fn reserve_with(log: &mut Log, disk: &SimDisk, pages: usize, retires: Option<u64>) -> Reservation {
    let request = FrameRequest {
        body_len: (pages - 1) * PAGE,
        first_seq: 0,
        seq_count: 0,
        durable_seq: 0,
        floor: 0,
        now_ms: 0,
        witness: false,
        retires,
        leaves: 0,
    };
    loop {
        match log.reserve(&request) {
            Ok(reservation) => return reservation,
            Err(_) => chore(log, disk),
        }
    }
}

fn write(reservation: &Reservation) {
    let mut frame = Buffer::zeroed(reservation.header.stored_len as usize).unwrap();
    reservation.header.encode_into(&mut frame);
    FrameHeader::seal_checksums(&mut frame);
    reservation.file.write_durable_at(&frame, reservation.header.offset).unwrap();
}

#[test]
fn a_file_that_only_the_page_cache_knows_by_name_is_durable_before_it_is_used() {
    let disk = SimDisk::default();
    let file = disk.dir("d").create(&slot_name(1)).unwrap();
    file.write_at(&Buffer::zeroed(SEGMENT as usize).unwrap(), 0).unwrap();
    file.sync().unwrap();
    // The process died between the rename and the sync of the directory.
    disk.restart(Outcome::ProcessKilled);
    assert_eq!(read(&disk).spares().0, 1);
    disk.restart(Outcome::Nothing);
    assert_eq!(read(&disk).spares().0, 1, "frames may be in it by now");
}

#[test]
fn an_incarnation_whose_first_frame_was_overtaken_stays_decided() {
    let disk = SimDisk::default();
    let mut log = open(&disk);
    let overtaken = reserve(&mut log, &disk, 5);
    let next = reserve(&mut log, &disk, 2);
    assert!(overtaken.header.ordinal < next.header.ordinal && next.header.previous_end == overtaken.header.end());
    write(&next);
    drop(log);
    disk.restart(Outcome::Nothing);

    let mut log = open(&disk);
    let first = reserve(&mut log, &disk, 1);
    write(&first);
    log.complete(first.id, first.epoch, Ok(()));
    let second = reserve(&mut log, &disk, 1);
    assert!(second.header.durable.ordinal > overtaken.header.ordinal, "it testifies for later segments only");
    write(&second);
    drop(log);
    disk.restart(Outcome::Nothing);
    open(&disk);
}

#[test]
fn a_drained_file_that_lost_its_header_is_no_damage_beside_a_checkpoint() {
    let disk = SimDisk::default();
    let mut log = open(&disk);
    let write_durable = |log: &mut Log| {
        let frame = reserve(log, &disk, 5);
        write(&frame);
        log.complete(frame.id, frame.epoch, Ok(()));
        frame.header.ordinal
    };
    let drained = write_durable(&mut log);
    write_durable(&mut log);
    let snapshot = reserve_with(&mut log, &disk, 5, Some(drained));
    write(&snapshot);
    log.complete(snapshot.id, snapshot.epoch, Ok(()));
    // The newest segment has no frame yet, so all frames that know what was given back are in the checkpoint's care.
    let unwritten = reserve(&mut log, &disk, 5);
    log.release(drained);
    let segments: Vec<KnownSegment> = log.sealed_segments().filter_map(KnownSegment::of).collect();
    let known = Known { oldest_ordinal: log.oldest_ordinal(), segments };
    assert!(known.segments.iter().all(|known| drained < known.ordinal && known.ordinal < unwritten.header.ordinal));
    drop(log);
    disk.restart(Outcome::Nothing);
    // The file was about to be used again: both copies of the new header are torn, the old frames still stand.
    disk.corrupt("d", &slot_name(1), |bytes| bytes[..INCARNATION_HEADER].fill(7));

    let scan = read_with(&disk, &known);
    assert_eq!((scan.vouched, scan.lost_headers.len()), (known.segments.len() as u64, 0));
    assert!(scan.has_all(&known));
    assert_eq!(read(&disk).lost_headers, []);
}

/// A log that rolls after `frames` frames of one event each, with one more in the next segment.
fn rolled(disk: &SimDisk, frames: u64) -> (Log, Vec<Reservation>) {
    let mut log = open(disk);
    let mut reserved = Vec::new();
    for seq in 0..=frames {
        let request = FrameRequest {
            body_len: 16,
            first_seq: seq,
            seq_count: 1,
            durable_seq: seq,
            floor: 0,
            now_ms: 0,
            witness: false,
            retires: None,
            leaves: 0,
        };
        let reservation = loop {
            match log.reserve(&request) {
                Ok(reservation) => break reservation,
                Err(_) => chore(&mut log, disk),
            }
        };
        write(&reservation);
        reserved.push(reservation);
        // A place to go to, and the reserve: only then frames leave room for a footer.
        while log.chore_waits(true) {
            chore(&mut log, disk);
        }
    }
    (log, reserved)
}

fn footer_of(log: &mut Log) -> Option<Chore> {
    log.next_footer(FooterRequest { sections: Vec::new(), durable_seq: 5, floor: 0, now_ms: 0 })
}

fn inspect(disk: &SimDisk) -> LogScan {
    let purpose = Purpose::Inspect { depth: Depth::Bodies, from_disk: false };
    read_log(&*disk.dir("d"), LOG, [1; 16], &[], purpose, &Known::default(), &|_| true, &mut |_, _| {}).unwrap()
}

#[test]
fn a_footer_comes_when_the_last_frame_before_it_is_durable_and_spares_all_of_them() {
    let disk = SimDisk::default();
    let (mut log, reserved) = rolled(&disk, 4);
    assert_eq!(reserved.iter().map(|frame| frame.header.ordinal).collect::<Vec<_>>(), [1, 1, 1, 1, 2]);
    let end = reserved[3].header.end();
    for (at, frame) in reserved.iter().enumerate() {
        assert_eq!(log.owes_footer(), at > 3, "frame {at}");
        log.complete(frame.id, frame.epoch, Ok(()));
    }
    let footer = footer_of(&mut log).expect("it is owed");
    assert!(!log.owes_footer() && log.next_chore(&SimRandom::new(1), false, false, 0).is_none(), "one chore at a time");
    let without = read(&disk);
    let result = footer.run(&*disk.dir("d"));
    log.chore_done(footer, result);
    let with = read(&disk);
    assert_eq!((without.footed, with.footed), (0, 1));
    let held = |scan: &LogScan| -> Vec<Vec<(u64, u64)>> {
        scan.segments().map(|segment| segment.ranges().iter().collect()).collect()
    };
    assert_eq!(held(&with), [[(0, 4)], [(4, 5)]]);
    assert_eq!(held(&with), held(&without));
    let begins = |segment: &Segment| segment.stretch_for(3).map(|stretch| stretch.offset);
    assert_eq!(with.segments().map(begins).collect::<Vec<_>>(), [Some(8192), None]);
    assert_eq!(with.marks[&LOG], log.durable());
    assert_eq!(inspect(&disk).wrong_footers, [0; 0]);
    disk.corrupt("d", &slot_name(1), |bytes| bytes[end as usize + 200] ^= 1);
    assert_eq!(read(&disk).footed, 0);
}

#[test]
fn a_footer_that_says_something_else_than_whole_frames_is_named() {
    let disk = SimDisk::default();
    let (mut log, reserved) = rolled(&disk, 4);
    for frame in &reserved {
        log.complete(frame.id, frame.epoch, Ok(()));
    }
    let Some(Chore::Footer { mut header, key, file, .. }) = footer_of(&mut log) else { panic!("it is owed") };
    let payload = Footer { ranges: vec![(0, 3)], index: vec![(0, 8192)] }.encode().unwrap();
    let mut body = section::header(section::FOOTER, section::OPTIONAL, payload.len()).to_vec();
    body.extend_from_slice(&payload);
    header.body_len = body.len() as u32;
    Chore::Footer { header, body, key, file }.run(&*disk.dir("d")).unwrap();
    assert_eq!(inspect(&disk).wrong_footers, [1]);
}
