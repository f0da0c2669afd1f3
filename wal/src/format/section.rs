//! Sections: the typed parts of a frame's body.
//!
//! ```text
//! 0      2       4       8
//! | kind | flags | len   | payload … |
//! ```
//! A section whose kind this build does not know is skipped when its flag says *optional*, and refused otherwise. The
//! payloads belong to whoever owns the kind (`docs/format.md` has the register); `MARKS` and `FOOTER` are the log's own.

use super::Damage;
use super::frame::Mark;
use crate::limits::SECTIONS_MAX;

/// Bytes before a section's payload.
pub const HEADER: usize = 8;
/// An unknown section with this flag may be skipped.
pub const OPTIONAL: u16 = 1;

/// How far other logs of the channel were durable: the witness's own section.
pub const MARKS: u16 = 1;

/// What a segment holds: in the last frame of a sealed one. `footer.rs` has the payload.
pub const FOOTER: u16 = 2;

const MARK_LEN: usize = 32;

/// One section of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Section<'a> {
    pub kind: u16,
    pub flags: u16,
    pub payload: &'a [u8],
}

impl Section<'_> {
    pub fn is_optional(&self) -> bool {
        self.flags & OPTIONAL != 0
    }
}

/// Writes a section header into its eight bytes.
pub fn header(kind: u16, flags: u16, payload_len: usize) -> [u8; HEADER] {
    let mut bytes = [0; HEADER];
    bytes[0..2].copy_from_slice(&kind.to_le_bytes());
    bytes[2..4].copy_from_slice(&flags.to_le_bytes());
    let len = u32::try_from(payload_len).expect("a section is smaller than a frame");
    bytes[4..8].copy_from_slice(&len.to_le_bytes());
    bytes
}

/// The sections of `body`, in order.
pub fn sections(body: &[u8]) -> Result<Vec<Section<'_>>, Damage> {
    let mut found = Vec::new();
    let mut rest = body;
    while !rest.is_empty() {
        if rest.len() < HEADER || found.len() == SECTIONS_MAX {
            return Err(Damage::Value("section"));
        }
        let (head, tail) = rest.split_at(HEADER);
        let len = u32::from_le_bytes([head[4], head[5], head[6], head[7]]) as usize;
        if len > tail.len() {
            return Err(Damage::Value("section length"));
        }
        let (payload, tail) = tail.split_at(len);
        let flags = u16::from_le_bytes([head[2], head[3]]);
        found.push(Section { kind: u16::from_le_bytes([head[0], head[1]]), flags, payload });
        rest = tail;
    }
    Ok(found)
}

/// That a log is durable up to a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogMark {
    pub log: [u8; 16],
    pub mark: Mark,
}

pub fn encode_marks(marks: &[LogMark]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(marks.len() * MARK_LEN);
    for mark in marks {
        bytes.extend_from_slice(&mark.log);
        bytes.extend_from_slice(&mark.mark.ordinal.to_le_bytes());
        bytes.extend_from_slice(&mark.mark.offset.to_le_bytes());
    }
    bytes
}

pub fn decode_marks(payload: &[u8]) -> Result<Vec<LogMark>, Damage> {
    let (marks, rest) = payload.as_chunks::<MARK_LEN>();
    if !rest.is_empty() {
        return Err(Damage::Value("marks"));
    }
    let number = |bytes: &[u8]| {
        let mut array = [0; 8];
        array.copy_from_slice(bytes);
        u64::from_le_bytes(array)
    };
    let decode = |bytes: &[u8; MARK_LEN]| {
        let mut log = [0; 16];
        log.copy_from_slice(&bytes[..16]);
        LogMark { log, mark: Mark { ordinal: number(&bytes[16..24]), offset: number(&bytes[24..32]) } }
    };
    Ok(marks.iter().map(decode).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_come_back_in_order_and_cut_ones_are_damage() {
        let mut body = Vec::new();
        for (kind, payload) in [(1u16, &b"abc"[..]), (700, b"")] {
            body.extend_from_slice(&header(kind, OPTIONAL, payload.len()));
            body.extend_from_slice(payload);
        }
        let found = sections(&body).unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].kind, found[0].payload, found[1].kind), (1, &b"abc"[..], 700));
        assert!(found[1].is_optional());
        for cut in (1..8).chain(9..11).chain(12..body.len()) {
            assert!(sections(&body[..cut]).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn marks_come_back() {
        let marks = vec![LogMark { log: [3; 16], mark: Mark { ordinal: 4, offset: 5 } }; 3];
        assert_eq!(decode_marks(&encode_marks(&marks)), Ok(marks.clone()));
        assert!(decode_marks(&encode_marks(&marks)[1..]).is_err());
    }
}
