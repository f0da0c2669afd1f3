//! Footers: what a segment holds, in the last frame of a sealed one, so that a start need not read the others.
//!
//! The payload says which events are there and where to look for them. All else that recovery would add up from the
//! frames is in the header of the footer's frame, and in the snapshot and the marks beside it. Everything is compared
//! before it is believed: a payload that could not have been written is damage, and the segment is read instead.

use super::Damage;
use crate::limits::PAGE;
use crate::segment::Segment;

/// The events of a segment, and a sparse index of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Footer {
    /// Exactly which events it holds, as (start, end), in order.
    pub ranges: Vec<(u64, u64)>,
    /// (event, offset of the frame that begins with it), in order.
    pub index: Vec<(u64, u64)>,
}

impl Footer {
    pub fn of(segment: &Segment) -> Footer {
        Footer { ranges: segment.ranges().iter().collect(), index: segment.index_entries().collect() }
    }

    /// `None` when the numbers do not ascend, which no frames of one run do.
    pub fn encode(&self) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        put(&mut out, self.ranges.len() as u64);
        let mut last_end = 0;
        for (start, end) in &self.ranges {
            put(&mut out, start.checked_sub(last_end)?);
            put(&mut out, end.checked_sub(*start)?);
            last_end = *end;
        }
        put(&mut out, self.index.len() as u64);
        let (mut last_seq, mut last_page) = (0, 0);
        for (seq, offset) in &self.index {
            let page = offset / PAGE as u64;
            put(&mut out, seq.checked_sub(last_seq)?);
            put(&mut out, page.checked_sub(last_page)?);
            (last_seq, last_page) = (*seq, page);
        }
        Some(out)
    }

    pub fn decode(payload: &[u8]) -> Result<Footer, Damage> {
        let mut rest = payload;
        let mut footer = Footer::default();
        let mut last_end: u64 = 0;
        for _ in 0..take(&mut rest)? {
            let start = last_end.checked_add(take(&mut rest)?).ok_or(Damage::Value("range"))?;
            let end = start.checked_add(take(&mut rest)?).ok_or(Damage::Value("range"))?;
            // Ranges that touch are one.
            if start == end || (start == last_end && !footer.ranges.is_empty()) {
                return Err(Damage::Value("range"));
            }
            footer.ranges.push((start, end));
            last_end = end;
        }
        let (mut seq, mut page): (u64, u64) = (0, 0);
        for _ in 0..take(&mut rest)? {
            let (events, pages) = (take(&mut rest)?, take(&mut rest)?);
            if !footer.index.is_empty() && (events == 0 || pages == 0) {
                return Err(Damage::Value("index"));
            }
            seq = seq.checked_add(events).ok_or(Damage::Value("index"))?;
            page = page.checked_add(pages).ok_or(Damage::Value("index"))?;
            let offset = page.checked_mul(PAGE as u64).ok_or(Damage::Value("index"))?;
            footer.index.push((seq, offset));
        }
        // One index entry for the first event, if there are events at all.
        let first = footer.ranges.first().map(|(start, _)| *start);
        if !rest.is_empty() || footer.index.first().map(|(seq, _)| *seq) != first {
            return Err(Damage::Value("footer"));
        }
        Ok(footer)
    }
}

/// Seven bits a byte, the low ones first; the highest bit says that more follow.
fn put(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn take(bytes: &mut &[u8]) -> Result<u64, Damage> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first().ok_or(Damage::Value("length"))?;
        *bytes = rest;
        let bits = u64::from(byte & 0x7f);
        if bits << shift >> shift != bits || (*byte == 0 && shift > 0) {
            break;
        }
        number |= bits << shift;
        if byte & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err(Damage::Value("number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Footer {
        Footer {
            ranges: vec![(0, 7), (9, 300), (1 << 40, u64::MAX)],
            index: vec![(0, 8192), (200, 1 << 20), (1 << 40, 1 << 30)],
        }
    }

    #[test]
    fn what_is_encoded_comes_back_and_cuts_are_damage() {
        for footer in [Footer::default(), sample()] {
            let payload = footer.encode().unwrap();
            assert_eq!(Footer::decode(&payload), Ok(footer));
            for cut in 0..payload.len() {
                assert!(Footer::decode(&payload[..cut]).is_err(), "cut at {cut}");
            }
        }
    }

    #[test]
    fn what_no_log_writes_is_damage() {
        let unordered = Footer { ranges: vec![(9, 12), (3, 4)], ..sample() };
        assert_eq!(unordered.encode(), None);
        let strange = [
            Footer { ranges: vec![(0, 7), (7, 9)], ..sample() },
            Footer { ranges: vec![(0, 0), (7, 9)], ..sample() },
            Footer { index: vec![(1, 8192)], ..sample() },
            Footer { index: Vec::new(), ..sample() },
            Footer { index: vec![(0, 8192), (0, 12288)], ..sample() },
        ];
        for footer in strange {
            assert!(Footer::decode(&footer.encode().unwrap()).is_err(), "{footer:?}");
        }
        assert!(Footer::decode(&[0xff; 40]).is_err());
        assert!(Footer::decode(&[0x80, 0, 0]).is_err(), "a number in more bytes than it takes");
    }
}
