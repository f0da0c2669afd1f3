//! Stories of crashes that recovery must survive twice: what it decides must still hold after the next crash.

use super::*;
use crate::chore::slot_name;
use crate::device::Device;
use crate::io::buffer::Buffer;
use crate::io::sim::{Outcome, SimDisk, SimRandom};
use crate::limits::SEGMENT_MIN;
use crate::log::{FrameRequest, Log, LogOptions, Reservation};

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
