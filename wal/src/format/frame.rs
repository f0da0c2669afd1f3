//! Frame header: 128 bytes before each unit of write, encryption and checksum.
//!
//! Promises that a frame which classifies as present was written for exactly this place: stale, misdirected, spliced
//! or replayed bytes differ in incarnation, ordinal or offset. Each frame says how far its log and the whole channel
//! were durable when it was reserved; that is the evidence by which recovery tells a torn tail from corruption.

use super::{Damage, FEATURES_KNOWN, VERSION, layout};
use crate::checksum::crc32c;
use crate::limits::{FRAME_MAX, PAGE, pages};

pub const HEADER: usize = 128;
/// Bytes of the authentication tag after an encrypted body.
pub const TAG: usize = 16;

const MAGIC_BYTES: [u8; 4] = *b"PNSF";
const ENCRYPTED: u16 = 1;
const WITNESS: u16 = 2;

layout! { HEADER;
    MAGIC = "magic": 4,
    FORMAT_VERSION = "version": 2,
    FLAGS = "flags": 2,
    INCARNATION = "incarnation": 8,
    ORDINAL = "ordinal": 8,
    OFFSET = "offset": 8,
    NUMBER = "number": 8,
    STORED_LEN = "stored_len": 4,
    BODY_LEN = "body_len": 4,
    FIRST_SEQ = "first_seq": 8,
    SEQ_COUNT = "seq_count": 4,
    FEATURES = "features": 4,
    DURABLE_ORDINAL = "durable_ordinal": 8,
    DURABLE_OFFSET = "durable_offset": 8,
    PREVIOUS_END = "previous_end": 8,
    DURABLE_SEQ = "durable_seq": 8,
    FLOOR = "floor": 8,
    OLDEST_ORDINAL = "oldest_ordinal": 8,
    WRITTEN_MS = "written_ms": 8,
    BODY_CHECKSUM = "body_checksum": 4,
    HEADER_CHECKSUM = "header_checksum": 4,
}

/// Bytes of the header that encryption authenticates: all but the checksums, which cover the ciphertext.
pub const AUTHENTICATED: usize = BODY_CHECKSUM.offset;

/// A place in one log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Mark {
    pub ordinal: u64,
    pub offset: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrameHeader {
    pub encrypted: bool,
    /// The frame only testifies; nothing needs to testify for it.
    pub witness: bool,
    pub incarnation: u64,
    pub ordinal: u64,
    pub offset: u64,
    /// Counts the frames of the incarnation from 0: the nonce.
    pub number: u64,
    /// Bytes on disk, header and padding included: whole pages.
    pub stored_len: u32,
    /// Bytes of the sections.
    pub body_len: u32,
    /// The frame's events are `first_seq .. first_seq + seq_count`.
    pub first_seq: u64,
    pub seq_count: u32,
    /// This log was durable up to here when the frame was reserved.
    pub durable: Mark,
    /// Where the frames of ordinal - 1 ended, if this run wrote it; 0 otherwise.
    pub previous_end: u64,
    /// Every event below was durable, or void, on its log when the frame was reserved.
    pub durable_seq: u64,
    /// Every event below is settled.
    pub floor: u64,
    /// Segments of this log below this ordinal are given back.
    pub oldest_ordinal: u64,
    pub written_ms: u64,
}

/// Bytes on disk of a frame with `body_len` bytes of sections.
pub fn stored_len(body_len: usize, encrypted: bool) -> usize {
    pages(HEADER + body_len + if encrypted { TAG } else { 0 })
}

impl FrameHeader {
    /// Writes the header without its checksums, as encryption authenticates it.
    pub fn encode_into(&self, frame: &mut [u8]) {
        let flags = if self.encrypted { ENCRYPTED } else { 0 } | if self.witness { WITNESS } else { 0 };
        MAGIC.put(frame, &MAGIC_BYTES);
        FORMAT_VERSION.put(frame, &VERSION.to_le_bytes());
        FLAGS.put(frame, &flags.to_le_bytes());
        INCARNATION.put(frame, &self.incarnation.to_le_bytes());
        ORDINAL.put(frame, &self.ordinal.to_le_bytes());
        OFFSET.put(frame, &self.offset.to_le_bytes());
        NUMBER.put(frame, &self.number.to_le_bytes());
        STORED_LEN.put(frame, &self.stored_len.to_le_bytes());
        BODY_LEN.put(frame, &self.body_len.to_le_bytes());
        FIRST_SEQ.put(frame, &self.first_seq.to_le_bytes());
        SEQ_COUNT.put(frame, &self.seq_count.to_le_bytes());
        FEATURES.put(frame, &0u32.to_le_bytes());
        DURABLE_ORDINAL.put(frame, &self.durable.ordinal.to_le_bytes());
        DURABLE_OFFSET.put(frame, &self.durable.offset.to_le_bytes());
        PREVIOUS_END.put(frame, &self.previous_end.to_le_bytes());
        DURABLE_SEQ.put(frame, &self.durable_seq.to_le_bytes());
        FLOOR.put(frame, &self.floor.to_le_bytes());
        OLDEST_ORDINAL.put(frame, &self.oldest_ordinal.to_le_bytes());
        WRITTEN_MS.put(frame, &self.written_ms.to_le_bytes());
    }

    /// Fills in both checksums of a whole frame, padding included.
    pub fn seal_checksums(frame: &mut [u8]) {
        let body = crc32c(&frame[HEADER..]);
        FrameHeader::seal_header(&mut frame[..HEADER], body);
    }

    /// Fills in both checksums of a header, given that of everything behind it, padding included.
    pub fn seal_header(header: &mut [u8], body_checksum: u32) {
        BODY_CHECKSUM.put(header, &body_checksum.to_le_bytes());
        let checksum = crc32c(&header[..HEADER_CHECKSUM.offset]);
        HEADER_CHECKSUM.put(header, &checksum.to_le_bytes());
    }

    /// Reads a header, checksum and values included. Place and body are the caller's to compare.
    pub fn decode(bytes: &[u8]) -> Result<FrameHeader, Damage> {
        if bytes.len() < HEADER || MAGIC.get(bytes) != MAGIC_BYTES {
            return Err(Damage::Magic);
        }
        if HEADER_CHECKSUM.u32(bytes) != crc32c(&bytes[..HEADER_CHECKSUM.offset]) {
            return Err(Damage::Checksum);
        }
        let (found, features) = (FORMAT_VERSION.u16(bytes), FEATURES.u32(bytes));
        if found != VERSION || features & !FEATURES_KNOWN != 0 {
            return Err(Damage::Version { found, features });
        }
        let flags = FLAGS.u16(bytes);
        if flags & !(ENCRYPTED | WITNESS) != 0 {
            return Err(Damage::Value("flags"));
        }
        let encrypted = flags & ENCRYPTED != 0;
        let (stored, body) = (STORED_LEN.u32(bytes), BODY_LEN.u32(bytes));
        if stored as usize > FRAME_MAX || body > stored || stored as usize != stored_len(body as usize, encrypted) {
            return Err(Damage::Value("stored_len"));
        }
        let offset = OFFSET.u64(bytes);
        if !offset.is_multiple_of(PAGE as u64) {
            return Err(Damage::Value("offset"));
        }
        let (first_seq, seq_count) = (FIRST_SEQ.u64(bytes), SEQ_COUNT.u32(bytes));
        if first_seq.checked_add(u64::from(seq_count)).is_none() {
            return Err(Damage::Value("first_seq"));
        }
        Ok(FrameHeader {
            encrypted,
            witness: flags & WITNESS != 0,
            incarnation: INCARNATION.u64(bytes),
            ordinal: ORDINAL.u64(bytes),
            offset,
            number: NUMBER.u64(bytes),
            stored_len: stored,
            body_len: body,
            first_seq,
            seq_count,
            durable: Mark { ordinal: DURABLE_ORDINAL.u64(bytes), offset: DURABLE_OFFSET.u64(bytes) },
            previous_end: PREVIOUS_END.u64(bytes),
            durable_seq: DURABLE_SEQ.u64(bytes),
            floor: FLOOR.u64(bytes),
            oldest_ordinal: OLDEST_ORDINAL.u64(bytes),
            written_ms: WRITTEN_MS.u64(bytes),
        })
    }

    /// Whether the body of a whole frame matches its checksum.
    pub fn body_is_intact(frame: &[u8]) -> bool {
        frame.len() >= HEADER && BODY_CHECKSUM.u32(frame) == crc32c(&frame[HEADER..])
    }

    /// The event after the frame's last.
    pub fn end_seq(&self) -> u64 {
        self.first_seq + u64::from(self.seq_count)
    }

    /// Where the next frame starts.
    pub fn end(&self) -> u64 {
        self.offset + u64::from(self.stored_len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> FrameHeader {
        FrameHeader {
            encrypted: true,
            witness: false,
            incarnation: 1,
            ordinal: 2,
            offset: 8192,
            number: 4,
            stored_len: 4096,
            body_len: 100,
            first_seq: 5,
            seq_count: 6,
            durable: Mark { ordinal: 7, offset: 8 },
            previous_end: 9,
            durable_seq: 10,
            floor: 11,
            oldest_ordinal: 12,
            written_ms: 13,
        }
    }

    fn whole() -> Vec<u8> {
        let mut frame = vec![0; 4096];
        sample().encode_into(&mut frame);
        FrameHeader::seal_checksums(&mut frame);
        frame
    }

    #[test]
    fn what_is_encoded_comes_back() {
        assert_eq!(FrameHeader::decode(&whole()), Ok(sample()));
        assert!(FrameHeader::body_is_intact(&whole()));
    }

    #[test]
    fn every_single_bit_flip_of_a_frame_is_noticed() {
        let whole = whole();
        for bit in 0..whole.len() * 8 {
            let mut frame = whole.clone();
            frame[bit / 8] ^= 1 << (bit % 8);
            assert!(FrameHeader::decode(&frame).is_err() || !FrameHeader::body_is_intact(&frame), "bit {bit}");
        }
    }
}
