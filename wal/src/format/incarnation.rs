//! Incarnation header: what stands before the frames of one run in one segment.
//!
//! A segment file may hold several incarnations one after the other: recovery never appends to an earlier one. The
//! header is durable before the first frame under its key is submitted. It also carries the *verdict* of recovery:
//! fences that say where earlier incarnations end and which of their bytes never counted.

use super::{Classified, Damage, FEATURES_KNOWN, VERSION, layout};
use crate::checksum::crc32c;
use crate::limits::{FENCES_MAX, PAGE, SEGMENT_MAX, SEGMENT_MIN};

const MAGIC_BYTES: [u8; 8] = *b"PNSTKINC";
const FENCE_LEN: usize = 40;
const FENCES_ROOM: usize = FENCES_MAX * FENCE_LEN;

layout! { PAGE;
    MAGIC = "magic": 8,
    FORMAT_VERSION = "version": 2,
    FLAGS = "flags": 2,
    FEATURES = "features": 4,
    CHANNEL = "channel": 16,
    LOG = "log": 16,
    SLOT = "slot": 8,
    ORDINAL = "ordinal": 8,
    OFFSET = "offset": 8,
    SEGMENT_LEN = "segment_len": 8,
    INCARNATION = "incarnation": 8,
    IN_FLIGHT_MAX = "in_flight_max": 8,
    CREATED_MS = "created_ms": 8,
    SALT = "salt": 32,
    KEY_ID = "key_id": 32,
    KEY_CHECK = "key_check": 16,
    FENCE_COUNT = "fence_count": 2,
    ZERO = "zero": 1346,
    FENCES = "fences": FENCES_ROOM,
    CHECKSUM = "checksum": 4,
}

const ENCRYPTED: u16 = 1;

/// Says of an earlier incarnation of the same log where it ends, for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fence {
    pub ordinal: u64,
    pub incarnation: u64,
    /// Frames at and beyond this offset do not count.
    pub end: u64,
    /// Bytes before `end` that never counted either; empty when `hole_start == hole_end`. An incarnation with
    /// several holes has several fences.
    pub hole_start: u64,
    pub hole_end: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IncarnationHeader {
    pub channel: [u8; 16],
    /// Identity of the log: a channel in one directory.
    pub log: [u8; 16],
    pub slot: u64,
    /// Place of the segment in the log; ascending, never given twice.
    pub ordinal: u64,
    /// Where this header stands in the file.
    pub offset: u64,
    pub segment_len: u64,
    /// Random; repeated in every frame of the incarnation.
    pub incarnation: u64,
    /// Bytes that may be in flight at once: how far whole frames may lie beyond a torn one.
    pub in_flight_max: u64,
    pub created_ms: u64,
    pub salt: [u8; 32],
    /// `None` for plain frames.
    pub key: Option<KeyReference>,
    pub fences: Vec<Fence>,
}

/// Which key encrypts the frames, and a value that tells a wrong key from damage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyReference {
    /// At most 32 bytes of text.
    pub id: String,
    pub check: [u8; 16],
}

impl IncarnationHeader {
    /// One page; it is written twice.
    pub fn encode(&self) -> [u8; PAGE] {
        assert!(self.fences.len() <= FENCES_MAX);
        let mut page = [0; PAGE];
        MAGIC.put(&mut page, &MAGIC_BYTES);
        FORMAT_VERSION.put(&mut page, &VERSION.to_le_bytes());
        FLAGS.put(&mut page, &(if self.key.is_some() { ENCRYPTED } else { 0 }).to_le_bytes());
        FEATURES.put(&mut page, &0u32.to_le_bytes());
        CHANNEL.put(&mut page, &self.channel);
        LOG.put(&mut page, &self.log);
        SLOT.put(&mut page, &self.slot.to_le_bytes());
        ORDINAL.put(&mut page, &self.ordinal.to_le_bytes());
        OFFSET.put(&mut page, &self.offset.to_le_bytes());
        SEGMENT_LEN.put(&mut page, &self.segment_len.to_le_bytes());
        INCARNATION.put(&mut page, &self.incarnation.to_le_bytes());
        IN_FLIGHT_MAX.put(&mut page, &self.in_flight_max.to_le_bytes());
        CREATED_MS.put(&mut page, &self.created_ms.to_le_bytes());
        SALT.put(&mut page, &self.salt);
        if let Some(key) = &self.key {
            let mut id = [0; 32];
            id[..key.id.len()].copy_from_slice(key.id.as_bytes());
            KEY_ID.put(&mut page, &id);
            KEY_CHECK.put(&mut page, &key.check);
        }
        FENCE_COUNT.put(&mut page, &(self.fences.len() as u16).to_le_bytes());
        for (index, fence) in self.fences.iter().enumerate() {
            let numbers = [fence.ordinal, fence.incarnation, fence.end, fence.hole_start, fence.hole_end];
            for (place, number) in numbers.into_iter().enumerate() {
                let at = FENCES.offset + index * FENCE_LEN + place * 8;
                page[at..at + 8].copy_from_slice(&number.to_le_bytes());
            }
        }
        let checksum = crc32c(&page[..CHECKSUM.offset]);
        CHECKSUM.put(&mut page, &checksum.to_le_bytes());
        page
    }

    /// Reads one copy. Place and owner are the caller's to compare.
    pub fn classify(page: &[u8; PAGE]) -> Classified<IncarnationHeader> {
        if *page == [0; PAGE] {
            return Classified::Absent;
        }
        match IncarnationHeader::decode(page) {
            Ok(header) => Classified::Present(header),
            Err(damage) => Classified::Damaged(damage),
        }
    }

    fn decode(page: &[u8; PAGE]) -> Result<IncarnationHeader, Damage> {
        if MAGIC.get(page) != MAGIC_BYTES {
            return Err(Damage::Magic);
        }
        if CHECKSUM.u32(page) != crc32c(&page[..CHECKSUM.offset]) {
            return Err(Damage::Checksum);
        }
        let (found, features) = (FORMAT_VERSION.u16(page), FEATURES.u32(page));
        if found != VERSION || features & !FEATURES_KNOWN != 0 {
            return Err(Damage::Version { found, features });
        }
        let key = match FLAGS.u16(page) {
            0 => None,
            ENCRYPTED => {
                let id = KEY_ID.get(page);
                let len = id.iter().position(|&byte| byte == 0).unwrap_or(id.len());
                let id = std::str::from_utf8(&id[..len]).map_err(|_| Damage::Value("key_id"))?;
                Some(KeyReference { id: id.to_owned(), check: KEY_CHECK.array(page) })
            }
            _ => return Err(Damage::Value("flags")),
        };
        let segment_len = SEGMENT_LEN.u64(page);
        if !(SEGMENT_MIN..=SEGMENT_MAX).contains(&segment_len) || !segment_len.is_multiple_of(PAGE as u64) {
            return Err(Damage::Value("segment_len"));
        }
        let offset = OFFSET.u64(page);
        // Not `offset + SEGMENT_MIN`: the sum of a hostile offset may be small again.
        if !offset.is_multiple_of(PAGE as u64) || offset > segment_len - SEGMENT_MIN {
            return Err(Damage::Value("offset"));
        }
        let count = FENCE_COUNT.u16(page) as usize;
        if count > FENCES_MAX {
            return Err(Damage::Value("fence_count"));
        }
        let number = |index: usize, place: usize| {
            let mut bytes = [0; 8];
            let at = FENCES.offset + index * FENCE_LEN + place * 8;
            bytes.copy_from_slice(&page[at..at + 8]);
            u64::from_le_bytes(bytes)
        };
        let fences = (0..count)
            .map(|index| Fence {
                ordinal: number(index, 0),
                incarnation: number(index, 1),
                end: number(index, 2),
                hole_start: number(index, 3),
                hole_end: number(index, 4),
            })
            .collect();
        Ok(IncarnationHeader {
            channel: CHANNEL.array(page),
            log: LOG.array(page),
            slot: SLOT.u64(page),
            ordinal: ORDINAL.u64(page),
            offset,
            segment_len,
            incarnation: INCARNATION.u64(page),
            in_flight_max: IN_FLIGHT_MAX.u64(page),
            created_ms: CREATED_MS.u64(page),
            salt: SALT.array(page),
            key,
            fences,
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn sample() -> IncarnationHeader {
        IncarnationHeader {
            channel: [1; 16],
            log: [2; 16],
            slot: 3,
            ordinal: 4,
            offset: 8192,
            segment_len: 1 << 20,
            incarnation: 5,
            in_flight_max: 6,
            created_ms: 7,
            salt: [8; 32],
            key: Some(KeyReference { id: "k1".into(), check: [9; 16] }),
            fences: vec![Fence { ordinal: 1, incarnation: 2, end: 3, hole_start: 4, hole_end: 5 }; FENCES_MAX],
        }
    }

    #[test]
    fn what_is_encoded_comes_back() {
        let header = sample();
        assert_eq!(IncarnationHeader::classify(&header.encode()), Classified::Present(header));
        assert_eq!(IncarnationHeader::classify(&[0; PAGE]), Classified::Absent);
    }

    #[test]
    fn an_offset_at_the_end_of_all_numbers_is_refused() {
        let mut page = IncarnationHeader { fences: Vec::new(), ..sample() }.encode();
        OFFSET.put(&mut page, &(u64::MAX - 4095).to_le_bytes());
        let checksum = crc32c(&page[..CHECKSUM.offset]);
        CHECKSUM.put(&mut page, &checksum.to_le_bytes());
        assert_eq!(IncarnationHeader::classify(&page), Classified::Damaged(Damage::Value("offset")));
    }

    #[test]
    fn every_single_bit_flip_is_noticed() {
        let whole = sample().encode();
        for bit in 0..PAGE * 8 {
            let mut page = whole;
            page[bit / 8] ^= 1 << (bit % 8);
            assert!(matches!(IncarnationHeader::classify(&page), Classified::Damaged(_)), "bit {bit}");
        }
    }
}
