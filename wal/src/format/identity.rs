//! Identity of a data directory: whose it is, and which other directories belong to the same channel.
//!
//! An empty mount point has none, so a disk that is not there cannot be mistaken for an empty queue.

use super::{Classified, Damage, FEATURES_KNOWN, VERSION, layout};
use crate::calibrate::DEPTH_MAX;
use crate::checksum::crc32c;
use crate::flushes::Durability;
use crate::limits::{MEMBERS_MAX, PAGE};
use crate::tuning::{Calibration, Tuning};

const MAGIC_BYTES: [u8; 8] = *b"PNSTKDIR";
const MEMBER_LEN: usize = 120;
const HINT_LEN: usize = MEMBER_LEN - 16 - 2;

layout! { PAGE;
    MAGIC = "magic": 8,
    FORMAT_VERSION = "version": 2,
    FLAGS = "flags": 2,
    FEATURES = "features": 4,
    CHANNEL = "channel": 16,
    LOG = "log": 16,
    GENERATION = "generation": 8,
    CREATED_MS = "created_ms": 8,
    SYNC_METHOD = "sync_method": 2,
    DEPTH = "depth": 2,
    MEASURED_MS = "measured_ms": 8,
    FINGERPRINT = "fingerprint": 4,
    PER_WRITE = "per_write_kib_s": 4,
    SHARED_FLUSH = "shared_flush_kib_s": 4,
    LATENCY = "latency_us": 4,
    CALIBRATION = "calibration": 36,
    MEMBER_COUNT = "member_count": 2,
    ZERO = "zero": 122,
    MEMBERS = "members": MEMBERS_MAX * MEMBER_LEN,
    CHECKSUM = "checksum": 4,
}

/// A directory that holds a part of the channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    pub log: [u8; 16],
    /// The end of its path when it joined: only for messages.
    pub hint: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub channel: [u8; 16],
    pub log: [u8; 16],
    /// Grows with each change of the members; the highest one is right.
    pub generation: u64,
    pub created_ms: u64,
    /// What was measured of the disk, if it was.
    pub calibration: Option<Calibration>,
    pub members: Vec<Member>,
}

impl Identity {
    pub fn encode(&self) -> [u8; PAGE] {
        assert!(self.members.len() <= MEMBERS_MAX);
        let mut page = [0; PAGE];
        MAGIC.put(&mut page, &MAGIC_BYTES);
        FORMAT_VERSION.put(&mut page, &VERSION.to_le_bytes());
        CHANNEL.put(&mut page, &self.channel);
        LOG.put(&mut page, &self.log);
        GENERATION.put(&mut page, &self.generation.to_le_bytes());
        CREATED_MS.put(&mut page, &self.created_ms.to_le_bytes());
        if let Some(calibration) = &self.calibration {
            encode_calibration(&mut page, calibration);
        }
        MEMBER_COUNT.put(&mut page, &(self.members.len() as u16).to_le_bytes());
        for (index, member) in self.members.iter().enumerate() {
            let at = MEMBERS.offset + index * MEMBER_LEN;
            page[at..at + 16].copy_from_slice(&member.log);
            let hint = end_of(&member.hint);
            page[at + 16..at + 18].copy_from_slice(&(hint.len() as u16).to_le_bytes());
            page[at + 18..at + 18 + hint.len()].copy_from_slice(hint.as_bytes());
        }
        let checksum = crc32c(&page[..CHECKSUM.offset]);
        CHECKSUM.put(&mut page, &checksum.to_le_bytes());
        page
    }

    pub fn classify(page: &[u8; PAGE]) -> Classified<Identity> {
        if *page == [0; PAGE] {
            return Classified::Absent;
        }
        match Identity::decode(page) {
            Ok(identity) => Classified::Present(identity),
            Err(damage) => Classified::Damaged(damage),
        }
    }

    fn decode(page: &[u8; PAGE]) -> Result<Identity, Damage> {
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
        let count = MEMBER_COUNT.u16(page) as usize;
        if count > MEMBERS_MAX {
            return Err(Damage::Value("member_count"));
        }
        let members = (0..count).map(|index| {
            let member = &page[MEMBERS.offset + index * MEMBER_LEN..][..MEMBER_LEN];
            let mut log = [0; 16];
            log.copy_from_slice(&member[..16]);
            let len = u16::from_le_bytes([member[16], member[17]]) as usize;
            let hint = member[18..].get(..len).ok_or(Damage::Value("members"))?;
            let hint = std::str::from_utf8(hint).map_err(|_| Damage::Value("members"))?.to_owned();
            Ok(Member { log, hint })
        });
        Ok(Identity {
            channel: CHANNEL.array(page),
            log: LOG.array(page),
            generation: GENERATION.u64(page),
            created_ms: CREATED_MS.u64(page),
            calibration: decode_calibration(page),
            members: members.collect::<Result<_, Damage>>()?,
        })
    }
}

/// Ways to sync, as `sync_method` numbers them; 0 is none that was measured.
const METHODS: [(u16, Durability); 2] = [(1, Durability::PerWrite), (2, Durability::SharedFlush)];

fn encode_calibration(page: &mut [u8; PAGE], calibration: &Calibration) {
    let Calibration { tuning, measured_ms, fingerprint, per_write_kib_s, shared_flush_kib_s, latency_us } = calibration;
    let method = METHODS.iter().find(|(_, method)| *method == tuning.durability).map_or(0, |(number, _)| *number);
    SYNC_METHOD.put(page, &method.to_le_bytes());
    DEPTH.put(page, &(tuning.depth as u16).to_le_bytes());
    MEASURED_MS.put(page, &measured_ms.to_le_bytes());
    FINGERPRINT.put(page, &fingerprint.to_le_bytes());
    PER_WRITE.put(page, &per_write_kib_s.to_le_bytes());
    SHARED_FLUSH.put(page, &shared_flush_kib_s.to_le_bytes());
    LATENCY.put(page, &latency_us.to_le_bytes());
}

/// `None` as well for what a newer build may have measured: it is advice, and is measured again.
fn decode_calibration(page: &[u8; PAGE]) -> Option<Calibration> {
    let (_, durability) = METHODS.into_iter().find(|(number, _)| *number == SYNC_METHOD.u16(page))?;
    let depth = DEPTH.u16(page) as usize;
    (1..=DEPTH_MAX).contains(&depth).then(|| Calibration {
        tuning: Tuning { durability, depth },
        measured_ms: MEASURED_MS.u64(page),
        fingerprint: FINGERPRINT.u32(page),
        per_write_kib_s: PER_WRITE.u32(page),
        shared_flush_kib_s: SHARED_FLUSH.u32(page),
        latency_us: LATENCY.u32(page),
    })
}

/// The last bytes of a path that fit a hint, cut between characters.
fn end_of(path: &str) -> &str {
    let mut start = path.len().saturating_sub(HINT_LEN);
    while !path.is_char_boundary(start) {
        start += 1;
    }
    &path[start..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_comes_back_and_every_bit_flip_is_noticed() {
        let member = |hint: &str| Member { log: [4; 16], hint: hint.to_owned() };
        let calibration = Calibration {
            tuning: Tuning { durability: Durability::SharedFlush, depth: 8 },
            measured_ms: 5,
            fingerprint: 6,
            per_write_kib_s: 7,
            shared_flush_kib_s: 8,
            latency_us: 9,
        };
        let identity = Identity {
            channel: [1; 16],
            log: [2; 16],
            generation: 3,
            created_ms: 4,
            calibration: Some(calibration),
            members: vec![member("/data/1"), member("")],
        };
        let whole = identity.encode();
        assert_eq!(Identity::classify(&whole), Classified::Present(identity));
        for bit in 0..PAGE * 8 {
            let mut page = whole;
            page[bit / 8] ^= 1 << (bit % 8);
            assert!(matches!(Identity::classify(&page), Classified::Damaged(_)), "bit {bit}");
        }
    }

    #[test]
    fn a_way_to_write_that_is_unknown_here_was_not_measured() {
        let calibration = Calibration {
            tuning: Tuning::default(),
            measured_ms: 5,
            fingerprint: 6,
            per_write_kib_s: 7,
            shared_flush_kib_s: 8,
            latency_us: 9,
        };
        for (field, value) in [(SYNC_METHOD, 0_u16), (SYNC_METHOD, 3), (DEPTH, 0), (DEPTH, DEPTH_MAX as u16 + 1)] {
            let mut page = [0; PAGE];
            encode_calibration(&mut page, &calibration);
            assert_eq!(decode_calibration(&page), Some(calibration));
            field.put(&mut page, &value.to_le_bytes());
            assert_eq!(decode_calibration(&page), None, "{value} in {}", field.name);
        }
    }

    #[test]
    fn a_long_path_keeps_its_end() {
        let path = format!("/{}/penstock", "ä".repeat(200));
        assert!(end_of(&path).len() <= HINT_LEN && end_of(&path).ends_with("/penstock"));
    }
}
