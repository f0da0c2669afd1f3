//! Segments that a checkpoint vouches for: recovery takes their outline from it instead of reading their frames.
//!
//! A segment is listed only once every frame of it is durable and no further one can come. Its file must still begin
//! with the incarnation that the checkpoint saw, or the whole checkpoint is set aside.

use std::sync::Arc;

use crate::format::Damage;
use crate::format::incarnation::IncarnationHeader;
use crate::io::File;
use crate::seal::ChannelKey;
use crate::segment::{Incarnation, Segment};

/// A segment of more ranges is read rather than vouched for: a checkpoint must stay small.
const RANGES_MAX: usize = 4096;
/// More of either in one segment is a damaged checkpoint.
const PARTS_MAX: u64 = 1 << 20;

/// A log as a checkpoint has it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Known {
    /// Segments below this one are given back. The frames that say so may be in segments that are not read.
    pub oldest_ordinal: u64,
    pub segments: Vec<KnownSegment>,
}

/// A segment as a checkpoint has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownSegment {
    pub ordinal: u64,
    pub slot: u64,
    pub len: u64,
    previous_end: u64,
    /// Exactly which events it holds, as (start, end).
    ranges: Vec<(u64, u64)>,
    incarnations: Vec<KnownIncarnation>,
    /// (event, offset)
    index: Vec<(u64, u64)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct KnownIncarnation {
    id: u64,
    start: u64,
    end: u64,
    seal: Option<(String, [u8; 32])>,
    holes: Vec<(u64, u64)>,
}

impl KnownSegment {
    /// `None` when it takes too many words to say which events it holds.
    pub fn of(segment: &Segment) -> Option<KnownSegment> {
        if segment.ranges().len() > RANGES_MAX {
            return None;
        }
        let incarnation = |found: &Incarnation| KnownIncarnation {
            id: found.id,
            start: found.start,
            end: found.end,
            seal: found.seal.clone(),
            holes: found.holes.clone(),
        };
        Some(KnownSegment {
            ordinal: segment.ordinal,
            slot: segment.slot,
            len: segment.len,
            previous_end: segment.previous_end,
            ranges: segment.ranges().iter().collect(),
            incarnations: segment.incarnations.iter().map(incarnation).collect(),
            index: segment.index_entries().collect(),
        })
    }

    /// Exactly which events it holds, as (start, end).
    pub fn ranges(&self) -> &[(u64, u64)] {
        &self.ranges
    }

    /// Whether a file that begins with `first` is this segment.
    pub fn is(&self, first: &IncarnationHeader, len: u64) -> bool {
        let same = self.incarnations.first().is_some_and(|known| known.id == first.incarnation);
        same && self.ordinal == first.ordinal && self.slot == first.slot && self.len == len
    }

    /// The segment over its file; `None` when a key is missing.
    pub fn attach(&self, file: Arc<dyn File>, keys: &[ChannelKey]) -> Option<Segment> {
        let mut segment = Segment::new(self.ordinal, self.slot, self.len, file);
        for known in &self.incarnations {
            let key = match &known.seal {
                None => None,
                Some((id, salt)) => Some(Arc::new(keys.iter().find(|key| key.id() == id)?.derive(salt).0)),
            };
            segment.incarnations.push(Incarnation {
                id: known.id,
                start: known.start,
                end: known.end,
                encrypted: known.seal.is_some(),
                key,
                seal: known.seal.clone(),
                holes: known.holes.clone(),
            });
        }
        segment.previous_end = self.previous_end;
        segment.restore(&self.ranges, &self.index);
        Some(segment)
    }

    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut put = |numbers: &[u64]| numbers.iter().for_each(|number| out.extend_from_slice(&number.to_le_bytes()));
        put(&[self.ordinal, self.slot, self.len, self.previous_end]);
        put(&[self.incarnations.len() as u64, self.index.len() as u64, self.ranges.len() as u64]);
        for (one, other) in self.index.iter().chain(&self.ranges) {
            put(&[*one, *other]);
        }
        for known in &self.incarnations {
            put_numbers(out, &[known.id, known.start, known.end, known.holes.len() as u64]);
            known.holes.iter().for_each(|(start, end)| put_numbers(out, &[*start, *end]));
            let (id, salt) = known.seal.as_ref().map_or(("", [0; 32]), |(id, salt)| (id.as_str(), *salt));
            out.push(id.len() as u8);
            out.extend_from_slice(id.as_bytes());
            out.extend_from_slice(&salt);
        }
    }

    pub fn decode(bytes: &[u8], at: &mut usize) -> Result<KnownSegment, Damage> {
        let mut number = || take_number(bytes, at);
        let (ordinal, slot, len, previous_end) = (number()?, number()?, number()?, number()?);
        let (incarnation_count, index_count, range_count) = (number()?, number()?, number()?);
        if incarnation_count.max(index_count).max(range_count) > PARTS_MAX {
            return Err(Damage::Value("segment"));
        }
        let mut pairs = |count: u64| -> Result<Vec<(u64, u64)>, Damage> {
            (0..count).map(|_| Ok((take_number(bytes, at)?, take_number(bytes, at)?))).collect()
        };
        let (index, ranges) = (pairs(index_count)?, pairs(range_count)?);
        if ranges.iter().any(|(start, end)| start >= end) || !ranges.is_sorted() {
            return Err(Damage::Value("ranges"));
        }
        let mut incarnations = Vec::new();
        for _ in 0..incarnation_count {
            let mut number = || take_number(bytes, at);
            let (id, start, end, hole_count) = (number()?, number()?, number()?, number()?);
            if hole_count > PARTS_MAX || start > end {
                return Err(Damage::Value("incarnation"));
            }
            let mut holes = Vec::new();
            for _ in 0..hole_count {
                holes.push((take_number(bytes, at)?, take_number(bytes, at)?));
            }
            let id_len = *take(bytes, at, 1)?.first().ok_or(Damage::Value("key id"))? as usize;
            let key_id = std::str::from_utf8(take(bytes, at, id_len)?).map_err(|_| Damage::Value("key id"))?.to_owned();
            let mut salt = [0; 32];
            salt.copy_from_slice(take(bytes, at, 32)?);
            let seal = (!key_id.is_empty()).then_some((key_id, salt));
            incarnations.push(KnownIncarnation { id, start, end, seal, holes });
        }
        Ok(KnownSegment { ordinal, slot, len, previous_end, ranges, incarnations, index })
    }
}

fn put_numbers(out: &mut Vec<u8>, numbers: &[u64]) {
    numbers.iter().for_each(|number| out.extend_from_slice(&number.to_le_bytes()));
}

fn take<'a>(bytes: &'a [u8], at: &mut usize, len: usize) -> Result<&'a [u8], Damage> {
    let found = bytes.get(*at..).and_then(|rest| rest.get(..len)).ok_or(Damage::Value("length"))?;
    *at += len;
    Ok(found)
}

fn take_number(bytes: &[u8], at: &mut usize) -> Result<u64, Damage> {
    let mut number = [0; 8];
    number.copy_from_slice(take(bytes, at, 8)?);
    Ok(u64::from_le_bytes(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_comes_back_and_cuts_are_damage() {
        let incarnation = |seal| KnownIncarnation { id: 1, start: 8192, end: 16384, seal, holes: vec![(1, 2)] };
        let known = KnownSegment {
            ordinal: 3,
            slot: 4,
            len: 5,
            previous_end: 6,
            ranges: vec![(6, 7), (9, 12)],
            incarnations: vec![incarnation(None), incarnation(Some(("k1".to_owned(), [9; 32])))],
            index: vec![(6, 8192)],
        };
        let mut bytes = Vec::new();
        known.encode(&mut bytes);
        assert_eq!(KnownSegment::decode(&bytes, &mut 0), Ok(known));
        for cut in 0..bytes.len() {
            assert!(KnownSegment::decode(&bytes[..cut], &mut 0).is_err(), "cut at {cut}");
        }
    }
}
