//! Makes a frame of its parts, in memory that the disk reads next.
//!
//! Every block is summed up and copied to its place while it is in the cache. With a key the body is copied, encrypted where it
//! stands, and summed up then: the checksum is that of what the disk gets.
//!
//! Where the disk is virtual, its host has just read the frame that was in this memory before, perhaps on a processor far
//! away, and ordinary stores fetch each line back before they change it: 2 to 6 GB/s instead of 13 to 30. Stores that go past
//! the caches do not, but then the host has to read from memory, which is slower where it is near. So it is tried out.
//! Encryption works in place: where stores go past the caches it has a place of its own, which stays in them.

use std::time::{Duration, Instant};

use crate::checksum::crc32c_append;
use crate::format::frame::{self, FrameHeader};
use crate::io::pour::pour;
use crate::limits::PAGE;
use crate::seal::FrameKey;

/// So much is read twice, by the checksum and by the copy, and comes from the nearest cache the second time.
const BLOCK: usize = 16 << 10;
const PLAINTEXT_KEPT: usize = 1 << 20;
const ZEROS: [u8; PAGE] = [0; PAGE];

/// An ordinary copy that takes longer for a kibibyte is slowed down by another processor's cache.
const SLOW_KIB: Duration = Duration::from_nanos(200);
/// So many blocks tell how fast ordinary stores are.
const TOLD_BY: u32 = 4;
/// So many frames go past the caches before ordinary stores are tried again.
const STREAMED: u32 = 64;

/// What a thread that writes frames keeps from one to the next.
#[derive(Debug, Default)]
pub struct Workbench {
    /// Where encryption works for a frame that goes past the caches.
    plaintext: Vec<u8>,
    /// Frames to come that go past the caches.
    streamed: u32,
}

/// A frame under construction: append its sections, then finish it.
pub struct FrameWriter<'a> {
    header: &'a FrameHeader,
    key: Option<&'a FrameKey>,
    bench: &'a mut Workbench,
    frame: &'a mut [u8],
    at: usize,
    checksum: u32,
    /// Whole blocks stored the ordinary way, and how long that took.
    blocks: u32,
    time: Duration,
}

impl<'a> FrameWriter<'a> {
    /// `frame` is as long as the frame on disk, with anything in it.
    ///
    /// # Panics
    /// When `frame` has another length than the header says.
    pub fn new(
        header: &'a FrameHeader,
        key: Option<&'a FrameKey>,
        bench: &'a mut Workbench,
        frame: &'a mut [u8],
    ) -> FrameWriter<'a> {
        assert_eq!(frame.len(), header.stored_len as usize);
        bench.plaintext.clear();
        // After a frame of unusual length.
        bench.plaintext.shrink_to(PLAINTEXT_KEPT);
        FrameWriter { header, key, bench, frame, at: frame::HEADER, checksum: 0, blocks: 0, time: Duration::ZERO }
    }

    /// The next bytes of the body.
    pub fn append(&mut self, bytes: &[u8]) {
        if self.key.is_none() {
            self.store(bytes);
        } else if self.bench.streamed > 0 {
            self.bench.plaintext.extend_from_slice(bytes);
        } else {
            bytes.chunks(BLOCK).for_each(|block| self.place(block));
        }
    }

    /// Sums up, and to its place.
    fn store(&mut self, bytes: &[u8]) {
        for block in bytes.chunks(BLOCK) {
            self.checksum = crc32c_append(self.checksum, block);
            self.place(block);
        }
    }

    fn place(&mut self, block: &[u8]) {
        let place = &mut self.frame[self.at..self.at + block.len()];
        if self.bench.streamed > 0 {
            pour(place, block);
        } else if block.len() == BLOCK {
            let began = Instant::now();
            place.copy_from_slice(block);
            self.time += began.elapsed();
            self.blocks += 1;
        } else {
            place.copy_from_slice(block);
        }
        self.at += block.len();
    }

    /// Encrypts, pads and sums up.
    ///
    /// # Panics
    /// When the body is not as long as the header says.
    pub fn finish(mut self) {
        let mut head = [0; frame::HEADER];
        self.header.encode_into(&mut head);
        let body_end = frame::HEADER + self.header.body_len as usize;
        let mut plaintext = std::mem::take(&mut self.bench.plaintext);
        let is_elsewhere = self.key.is_some() && self.bench.streamed > 0;
        let body_at = if is_elsewhere { self.at + plaintext.len() } else { self.at };
        assert_eq!(body_at, body_end, "the body is as long as it was reserved");
        if let Some(key) = self.key {
            let body = if is_elsewhere { &mut plaintext[..] } else { &mut self.frame[frame::HEADER..body_end] };
            let tag = key.seal(self.header.number, &head[..frame::AUTHENTICATED], body);
            if is_elsewhere {
                self.store(&plaintext);
            } else {
                self.checksum = crc32c_append(self.checksum, body);
            }
            self.store(&tag);
        }
        self.bench.plaintext = plaintext;
        self.store(&ZEROS[..self.frame.len() - self.at]);
        FrameHeader::seal_header(&mut head, self.checksum);
        self.frame[..frame::HEADER].copy_from_slice(&head);
        let is_slow = self.blocks >= TOLD_BY && self.time > SLOW_KIB * (self.blocks * (BLOCK >> 10) as u32);
        self.bench.streamed = if is_slow { STREAMED } else { self.bench.streamed.saturating_sub(1) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::frame::Mark;
    use crate::seal::ChannelKey;

    #[test]
    fn a_frame_is_the_same_whichever_way_it_is_stored() {
        let body: Vec<u8> = (0..5 * BLOCK as u32 + 777).map(|number| (number % 251) as u8).collect();
        for encrypted in [false, true] {
            let key = encrypted.then(|| ChannelKey::new("k", [7; 32]).unwrap().derive(&[1; 32]).0);
            let stored_len = frame::stored_len(body.len(), encrypted);
            let header = FrameHeader {
                encrypted,
                witness: false,
                incarnation: 1,
                ordinal: 2,
                offset: 8192,
                number: 4,
                stored_len: stored_len as u32,
                body_len: body.len() as u32,
                first_seq: 5,
                seq_count: 6,
                durable: Mark { ordinal: 7, offset: 8 },
                previous_end: 9,
                durable_seq: 10,
                floor: 11,
                oldest_ordinal: 12,
                written_ms: 13,
            };
            let make = |streamed: u32| {
                let mut bench = Workbench { plaintext: Vec::new(), streamed };
                let mut bytes = vec![255; stored_len];
                let mut writer = FrameWriter::new(&header, key.as_ref(), &mut bench, &mut bytes);
                body.chunks(40_000).for_each(|part| writer.append(part));
                writer.finish();
                bytes
            };
            let mut bytes = make(0);
            assert_eq!(bytes, make(1));
            assert_eq!(FrameHeader::decode(&bytes), Ok(header.clone()));
            assert!(FrameHeader::body_is_intact(&bytes));
            let (head, rest) = bytes.split_at_mut(frame::HEADER);
            let sealed = &mut rest[..body.len() + if encrypted { frame::TAG } else { 0 }];
            if let Some(key) = &key {
                key.open(header.number, &head[..frame::AUTHENTICATED], sealed).unwrap();
            }
            assert_eq!(sealed[..body.len()], body);
        }
    }
}
