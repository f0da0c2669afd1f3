//! Any segment files: recovery and inspection read them to their ends, agree with themselves, and never panic.
//!
//! The input is a small program that writes pages: frames and headers with checksums that fit, the same with a flipped
//! byte, stale ones, zeros and noise, in up to three files.
#![no_main]

use std::sync::Arc;

use channel::inspect::{Inspection, Looking, Which};
use libfuzzer_sys::fuzz_target;
use wal::chore::slot_name;
use wal::format::frame::{AUTHENTICATED, FrameHeader, HEADER, Mark, stored_len};
use wal::format::incarnation::{Fence, IncarnationHeader, KeyReference};
use wal::format::section;
use wal::io::buffer::Buffer;
use wal::io::sim::SimDisk;
use wal::io::{Dir, durable};
use wal::limits::{INCARNATION_HEADER, PAGE};
use wal::recover::known::Known;
use wal::recover::scan::Depth;
use wal::recover::{Purpose, read_log};
use wal::seal::ChannelKey;

const CHANNEL: [u8; 16] = [1; 16];
const LOG: [u8; 16] = [2; 16];
const FILE_MAX: usize = 64 * PAGE;
const FILES_MAX: u64 = 3;

/// Takes the input apart; zeros follow its end.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> u8 {
        match self.0.split_first() {
            Some((byte, rest)) => {
                self.0 = rest;
                *byte
            }
            None => 0,
        }
    }

    fn small(&mut self) -> u64 {
        u64::from(self.byte())
    }

    fn pages(&mut self) -> u64 {
        self.small() % 64 * PAGE as u64
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken.to_vec()
    }
}

struct Writer {
    bytes: Vec<u8>,
    slot: u64,
    ordinal: u64,
    incarnation: u64,
    number: u64,
    seq: u64,
    salt: [u8; 32],
    encrypted: bool,
}

impl Writer {
    fn header(&mut self, input: &mut Input<'_>, key: &ChannelKey) {
        let flags = input.byte();
        self.incarnation = input.small();
        self.salt = [input.byte(); 32];
        self.encrypted = flags & 1 != 0;
        self.number = 0;
        let id = if flags & 2 == 0 { "k1" } else { "k2" };
        let check = key.derive(&self.salt).1;
        let fence = |input: &mut Input<'_>| Fence {
            ordinal: input.small() % 4,
            incarnation: input.small(),
            end: input.pages(),
            hole_start: input.pages(),
            hole_end: input.pages(),
        };
        let page = IncarnationHeader {
            channel: CHANNEL,
            log: LOG,
            slot: self.slot,
            ordinal: self.ordinal,
            offset: self.bytes.len() as u64,
            segment_len: FILE_MAX as u64,
            incarnation: self.incarnation,
            in_flight_max: input.pages(),
            created_ms: 0,
            salt: self.salt,
            key: self.encrypted.then(|| KeyReference { id: id.to_owned(), check }),
            fences: (0..flags >> 6).map(|_| fence(input)).collect(),
        }
        .encode();
        self.bytes.extend_from_slice(&page);
        self.bytes.extend_from_slice(&page);
    }

    fn frame(&mut self, input: &mut Input<'_>, key: &ChannelKey) {
        let flags = input.byte();
        let mut body = Vec::new();
        for _ in 0..flags % 4 {
            let kind = u16::from(input.byte() % 24);
            let len = usize::from(input.byte());
            let payload = input.bytes(len);
            body.extend_from_slice(&section::header(kind, u16::from(flags & 1), payload.len()));
            body.extend_from_slice(&payload);
        }
        if flags & 4 != 0 {
            body.extend_from_slice(&input.bytes(9));
        }
        let len = stored_len(body.len(), self.encrypted);
        let header = FrameHeader {
            encrypted: self.encrypted,
            witness: flags & 8 != 0,
            incarnation: self.incarnation,
            ordinal: self.ordinal,
            offset: self.bytes.len() as u64,
            number: self.number,
            stored_len: len as u32,
            body_len: body.len() as u32,
            first_seq: self.seq,
            seq_count: u32::from(input.byte() % 8),
            durable: Mark { ordinal: input.small() % 5, offset: input.pages() },
            previous_end: input.pages(),
            durable_seq: input.small(),
            floor: input.small() / 16,
            oldest_ordinal: input.small() / 64,
            written_ms: 0,
        };
        self.number += 1;
        self.seq = header.end_seq();
        let mut frame = vec![0; len];
        header.encode_into(&mut frame);
        frame[HEADER..HEADER + body.len()].copy_from_slice(&body);
        if self.encrypted {
            let frame_key = key.derive(&self.salt).0;
            let (head, rest) = frame.split_at_mut(HEADER);
            let tag = frame_key.seal(header.number, &head[..AUTHENTICATED], &mut rest[..body.len()]);
            rest[body.len()..body.len() + tag.len()].copy_from_slice(&tag);
        }
        FrameHeader::seal_checksums(&mut frame);
        if flags & 16 != 0 {
            let at = usize::from(input.byte()) * 16;
            let at = at.min(len - 1);
            frame[at] ^= 1 << (flags >> 5);
        }
        self.bytes.extend_from_slice(&frame);
    }
}

fn build(dir: &dyn Dir, input: &mut Input<'_>, key: &ChannelKey) {
    for slot in 1..=FILES_MAX {
        let ordinal = input.small() % 4;
        let mut writer = Writer {
            bytes: Vec::new(),
            slot,
            ordinal,
            incarnation: slot,
            number: 0,
            seq: input.small(),
            salt: [0; 32],
            encrypted: false,
        };
        if input.byte() % 8 != 0 {
            writer.header(input, key);
        }
        while writer.bytes.len() < FILE_MAX && !input.0.is_empty() {
            match input.byte() % 8 {
                0 => writer.bytes.extend_from_slice(&[0; PAGE]),
                1 => writer.bytes.extend_from_slice(&[input.byte(); PAGE]),
                2 => writer.header(input, key),
                3 => break,
                4 => {
                    // Left over from an earlier use of the file.
                    let incarnation = writer.incarnation;
                    writer.incarnation ^= 0x55;
                    writer.frame(input, key);
                    writer.incarnation = incarnation;
                }
                _ => writer.frame(input, key),
            }
        }
        if writer.bytes.is_empty() {
            continue;
        }
        let mut buffer = Buffer::zeroed(writer.bytes.len()).expect("memory");
        buffer.copy_from_slice(&writer.bytes);
        durable::put(dir, &slot_name(slot), &buffer).expect("the disk is simulated");
    }
}

fuzz_target!(|data: &[u8]| {
    let key = ChannelKey::new("k1", [7; 32]).expect("a good name");
    let mut input = Input(data);
    let dir = SimDisk::default().dir("d");
    build(&*dir, &mut input, &key);

    let keys = [key];
    let witnessed = Mark { ordinal: input.small() % 4, offset: input.pages() };
    let purposes = [
        Purpose::Recover { footers: true },
        Purpose::Recover { footers: false },
        Purpose::Inspect { depth: Depth::Bodies, from_disk: false },
        Purpose::Inspect { depth: Depth::Headers, from_disk: false },
    ];
    for purpose in purposes {
        let read = || {
            let mut seen = Vec::new();
            let scan =
                read_log(&*dir, LOG, CHANNEL, &keys, purpose, &Known::default(), &|_| true, &mut |header, kept| {
                    assert!(header.end() > header.offset);
                    seen.push((header.clone(), kept.to_vec()));
                });
            scan.map(|scan| (scan, seen))
        };
        let (Ok((scan, seen)), Ok((again, seen_again))) = (read(), read()) else { continue };
        assert_eq!(seen, seen_again);
        let findings = scan.judge(witnessed);
        assert_eq!(findings, again.judge(witnessed));
        for finding in &findings {
            assert!(finding.start < finding.end, "{finding:?}");
        }
        let recovered = scan.recovered(witnessed, FILE_MAX as u64, true);
        if let Some((_, offset)) = recovered.resume {
            assert!(offset as usize + INCARNATION_HEADER <= FILE_MAX);
        }
    }

    let dirs: [Arc<dyn Dir>; 1] = [dir];
    for depth in [Depth::Headers, Depth::Bodies] {
        let looking = Looking { keys: keys.to_vec(), depth, from_disk: false };
        let Ok(inspection) = Inspection::look(&dirs, &looking) else { continue };
        let again = inspection.again(&dirs, &looking).expect("the same directory");
        assert_eq!(inspection.pending_events(), again.pending_events());
        for which in [Which::Pending, Which::Settled, Which::All] {
            for transaction in inspection.events(which).flatten() {
                assert!(!transaction.events.is_empty());
            }
        }
    }
});
