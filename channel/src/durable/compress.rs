//! Transactions in fewer bytes: zstd in blocks, with a table of the blocks in front (`docs/format.md`, "Compression").
//!
//! ```text
//! | expanded_len | stored length of each block | block | block | … |      numbers have four bytes
//! ```
//! A block is 64 KiB of what a plain transaction's section would hold, the last one may be shorter. One that does not
//! shrink is stored as it is. Compression happens on the producer's thread, before the lock and long before the disk:
//! everything behind it sees a section of known length. What does not shrink is tried less and less.
//!
//! Nothing that the table says is believed: no memory is taken for more than a frame may expand to, and each block must
//! expand to exactly its length.

use std::cell::RefCell;
use std::io;

use wal::limits::FRAME_MAX;
use zstd::bulk::{Compressor, Decompressor};
use zstd::zstd_safe::{CParameter, ParamSwitch, compress_bound};

use crate::event::MalformedEvents;

/// So much is compressed at once: it stays in the nearest caches, and more would gain little.
pub(crate) const BLOCK: usize = 64 << 10;
/// Where the parameters start: what is worth compressing for is a disk that is slower than the processors.
const LEVEL: i32 = 1;
/// Bytes of a length.
const NUMBER: usize = 4;
/// Shorter transactions share a page with others anyway.
const LEN_MIN: usize = 1 << 10;
/// A gain below one part in so many is not worth expanding for.
const GAIN: usize = 16;
/// Tried alone first, when the transaction is much longer.
const SAMPLE: usize = 4 << 10;
/// After so many transactions in a row that did not shrink …
const MISSES: u32 = 3;
/// … so many are passed by before the next try.
const PASSED_BY: u32 = 31;

thread_local! {
    // A context is some hundred KiB, and threads are few: producers and frames are not.
    static COMPRESSOR: RefCell<Option<(Compressor<'static>, Vec<u8>)>> = const { RefCell::new(None) };
    static DECOMPRESSOR: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
}

/// Whether transactions that shrink are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compress {
    #[default]
    Never,
    /// While that makes the channel faster, because the disk is slower than the processors.
    WhereFaster,
    /// Also where it costs time, for the space on disk.
    Always,
}

/// What one producer's transactions have been like.
#[derive(Debug, Default)]
pub(crate) struct Compression {
    misses: u32,
    passed_by: u32,
}

impl Compression {
    /// The transaction compressed, unless it is short, does not shrink, or those before it did not.
    pub(crate) fn compress(&mut self, prefix: &[u8], records: &[u8]) -> Option<Vec<u8>> {
        if prefix.len() + records.len() < LEN_MIN {
            return None;
        }
        if self.misses >= MISSES && self.passed_by < PASSED_BY {
            self.passed_by += 1;
            return None;
        }
        self.passed_by = 0;
        // What shrank last time needs no sample.
        let compressed = if self.misses == 0 || sample_shrinks(records) { compress(prefix, records) } else { None };
        self.misses = if compressed.is_some() { 0 } else { self.misses.saturating_add(1) };
        compressed
    }
}

fn is_gain(stored: usize, expanded: usize) -> bool {
    stored <= expanded - expanded.div_ceil(GAIN)
}

fn sample_shrinks(records: &[u8]) -> bool {
    if records.len() < 4 * SAMPLE {
        return true;
    }
    let start = (records.len() - SAMPLE) / 2;
    with_compressor(|compressor, scratch| {
        compressor.compress_to_buffer(&records[start..start + SAMPLE], &mut scratch[..])
    })
    .is_ok_and(|stored| is_gain(stored, SAMPLE))
}

/// The payload of a compressed transaction's section. `None` when it would not shrink.
pub(crate) fn compress(prefix: &[u8], records: &[u8]) -> Option<Vec<u8>> {
    let len = prefix.len() + records.len();
    let table = NUMBER * len.div_ceil(BLOCK);
    let mut out = Vec::with_capacity(NUMBER + table + len / 2);
    out.extend_from_slice(&u32::try_from(len).ok()?.to_le_bytes());
    out.resize(NUMBER + table, 0);
    let mut seam = Vec::new();
    for (start, place) in (0..len).step_by(BLOCK).zip((NUMBER..).step_by(NUMBER)) {
        let end = len.min(start + BLOCK);
        let block = if start >= prefix.len() {
            &records[start - prefix.len()..end - prefix.len()]
        } else {
            seam.clear();
            seam.extend_from_slice(&prefix[start..end.min(prefix.len())]);
            seam.extend_from_slice(&records[..end.saturating_sub(prefix.len())]);
            &seam
        };
        let stored = with_compressor(|compressor, scratch| {
            let stored = compressor.compress_to_buffer(block, &mut scratch[..])?;
            out.extend_from_slice(if stored < block.len() { &scratch[..stored] } else { block });
            Ok(stored.min(block.len()))
        });
        let stored = u32::try_from(stored.ok()?).ok()?;
        out[place..place + NUMBER].copy_from_slice(&stored.to_le_bytes());
    }
    is_gain(out.len(), len).then_some(out)
}

/// Level 1 spends most of its time on guesses that fail: where a line's own numbers differ from all others', it looks for a
/// match at every byte, and takes matches that save next to nothing. So it looks for longer ones, and moves on sooner where there
/// are none; a table that stays in the first cache is enough for a block. The levels below 1 skip in the same way, and leave the
/// rest as it is, which saves little time and costs a third of the gain.
fn compressor() -> io::Result<Compressor<'static>> {
    let mut compressor = Compressor::new(LEVEL)?;
    compressor.set_parameter(CParameter::MinMatch(7))?;
    compressor.set_parameter(CParameter::HashLog(12))?;
    compressor.set_parameter(CParameter::TargetLength(8))?;
    compressor.set_parameter(CParameter::LiteralCompressionMode(ParamSwitch::Enable))?;
    Ok(compressor)
}

fn with_compressor<T>(work: impl FnOnce(&mut Compressor<'static>, &mut Vec<u8>) -> io::Result<T>) -> io::Result<T> {
    COMPRESSOR.with_borrow_mut(|kept| {
        let (compressor, scratch) = match kept {
            Some(kept) => kept,
            none => none.insert((compressor()?, vec![0; compress_bound(BLOCK)])),
        };
        work(compressor, scratch)
    })
}

/// How long the transaction is that `payload` says it holds; at most what one frame may expand to.
pub(crate) fn expanded_len(payload: &[u8]) -> Result<usize, MalformedEvents> {
    let len = payload.first_chunk().map(|bytes| u32::from_le_bytes(*bytes) as usize);
    len.filter(|len| (1..=FRAME_MAX).contains(len)).ok_or(MalformedEvents("a compressed transaction of no fine length"))
}

/// The payload of the plain section that this one stands for.
pub(crate) fn expand(payload: &[u8]) -> Result<Vec<u8>, MalformedEvents> {
    let len = expanded_len(payload)?;
    let (table, mut rest) = payload[NUMBER..]
        .split_at_checked(NUMBER * len.div_ceil(BLOCK))
        .ok_or(MalformedEvents("the table of blocks is cut off"))?;
    let (lengths, _) = table.as_chunks::<NUMBER>();
    let lengths = || lengths.iter().map(|bytes| u32::from_le_bytes(*bytes) as usize);
    // Before anything is allocated: all blocks are there, and none is longer than what it stands for.
    if lengths().map(|stored| stored as u64).sum::<u64>() != rest.len() as u64 {
        return Err(MalformedEvents("the blocks are not as long as their table says"));
    }
    let mut expanded = vec![0; len];
    for (block, stored) in expanded.chunks_mut(BLOCK).zip(lengths()) {
        let (bytes, behind) = rest.split_at(stored);
        rest = behind;
        if stored == block.len() {
            block.copy_from_slice(bytes);
        } else if stored > block.len() || !expands(bytes, block) {
            return Err(MalformedEvents("a block does not expand to its length"));
        }
    }
    Ok(expanded)
}

/// Whether `bytes` expand to exactly `block`, which has them then. Never writes beyond it.
fn expands(bytes: &[u8], block: &mut [u8]) -> bool {
    DECOMPRESSOR.with_borrow_mut(|kept| {
        let decompressor = match kept {
            Some(kept) => kept,
            none => match Decompressor::new() {
                Ok(new) => none.insert(new),
                Err(_) => return false,
            },
        };
        let len = block.len();
        decompressor.decompress_to_buffer(bytes, block).is_ok_and(|expanded| expanded == len)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn noise(len: usize) -> Vec<u8> {
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        };
        (0..len).map(|_| next()).collect()
    }

    fn lines(len: usize) -> Vec<u8> {
        let line = |number: usize| format!("10.0.0.{} GET /index.html 200 {}us\n", number % 256, number * 37 % 9999);
        let mut text: Vec<u8> = (0..len / 20 + 1).flat_map(|number| line(number).into_bytes()).collect();
        text.truncate(len);
        text
    }

    #[test]
    fn every_length_around_a_block_comes_back() {
        for prefix in [1, 700, BLOCK, BLOCK + 3] {
            for len in [0, 1, 5000, BLOCK - 700, BLOCK - 1, BLOCK, 3 * BLOCK + 1] {
                let (prefix, records) = (lines(prefix), lines(len));
                let Some(compressed) = compress(&prefix, &records) else {
                    assert!(prefix.len() + len < 200, "{} + {len} shrink", prefix.len());
                    continue;
                };
                assert!(compressed.len() < prefix.len() + len);
                assert_eq!(expand(&compressed).unwrap(), [prefix, records].concat());
            }
        }
    }

    #[test]
    fn a_block_of_noise_between_others_is_stored_as_it_is() {
        let records = [lines(2 * BLOCK), noise(BLOCK), lines(2 * BLOCK)].concat();
        let compressed = compress(b"", &records).unwrap();
        assert_eq!(compressed[NUMBER + 2 * NUMBER..][..NUMBER], (BLOCK as u32).to_le_bytes());
        assert_eq!(expand(&compressed).unwrap(), records);
    }

    #[test]
    fn what_does_not_shrink_is_tried_seldom_and_what_shrinks_again_is_noticed() {
        let (noise, text) = (noise(100_000), lines(100_000));
        let mut compression = Compression::default();
        assert!(compression.compress(b"p", &lines(LEN_MIN / 2)).is_none(), "a short one is not worth it");
        assert!(compression.compress(b"p", &text).is_some());
        let tried = (0..320).filter(|_| {
            assert!(compression.compress(b"p", &noise).is_none());
            compression.passed_by == 0
        });
        assert_eq!(tried.count(), 3 + 9);
        let first = (0..).find(|_| compression.compress(b"p", &text).is_some()).unwrap();
        assert!(first <= PASSED_BY as usize && compression.compress(b"p", &text).is_some());
    }

    #[test]
    fn a_payload_that_lies_about_lengths_is_refused() {
        let whole = compress(b"prefix", &lines(BLOCK + 5000)).unwrap();
        expand(&whole).unwrap();
        let with = |at: usize, number: u32| {
            let mut bytes = whole.clone();
            bytes[at..at + NUMBER].copy_from_slice(&number.to_le_bytes());
            bytes
        };
        let number = |at: usize| u32::from_le_bytes(*whole[at..].first_chunk().unwrap());
        let (len, first, second) = (number(0), number(4), number(8));
        for lie in [0, 1, len - 1, len + 1, BLOCK as u32, FRAME_MAX as u32, FRAME_MAX as u32 + 1, u32::MAX] {
            assert!(expand(&with(0, lie)).is_err(), "{lie} bytes instead of {len}");
        }
        for lie in [0, first - 1, first + 1, BLOCK as u32, u32::MAX] {
            assert!(expand(&with(4, lie)).is_err(), "{lie} bytes instead of {first}");
        }
        // The sum holds, the blocks do not.
        let mut moved = with(4, first + 1);
        moved[8..12].copy_from_slice(&(second - 1).to_le_bytes());
        assert!(expand(&moved).is_err());
        for cut in 0..whole.len() {
            assert!(expand(&whole[..cut]).is_err(), "cut at {cut}");
        }
        assert!(expand(&[whole, vec![0]].concat()).is_err());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_refused_or_as_long_as_they_say(bytes in proptest::collection::vec(any::<u8>(), 0..200), len in 0u32..300) {
            let payload = [&len.to_le_bytes()[..], &bytes].concat();
            if let Ok(expanded) = expand(&payload) {
                prop_assert_eq!(expanded.len(), len as usize);
            }
        }
    }
}
