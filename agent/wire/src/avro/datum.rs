//! Avro's binary encoding, as far as Flume's protocol needs it.
//!
//! The reader borrows, checks every length against the bytes that are left before anything is reserved, and fails
//! with a position instead of panicking. Strings that are not UTF-8 are repaired as Java repairs them.

use std::borrow::Cow;

/// Bytes that are not the datum they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("malformed Avro data at byte {at}: {what}")]
pub struct MalformedDatum {
    pub at: usize,
    pub what: &'static str,
}

/// Reads datums off the front of a payload.
#[derive(Debug, Clone)]
pub struct DatumReader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> DatumReader<'a> {
    pub fn new(bytes: &'a [u8]) -> DatumReader<'a> {
        DatumReader { bytes, at: 0 }
    }

    /// Bytes not read yet.
    pub fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// An error at the place where the reader stands.
    pub(super) fn malformed(&self, what: &'static str) -> MalformedDatum {
        MalformedDatum { at: self.at, what }
    }

    pub fn fixed(&mut self, len: usize) -> Result<&'a [u8], MalformedDatum> {
        if len > self.left() {
            return Err(self.malformed("a value reaches beyond the message"));
        }
        let found = &self.bytes[self.at..self.at + len];
        self.at += len;
        Ok(found)
    }

    pub fn boolean(&mut self) -> Result<bool, MalformedDatum> {
        match self.fixed(1)?[0] {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(MalformedDatum { at: self.at - 1, what: "a boolean is neither 0 nor 1" }),
        }
    }

    /// An int or a long: zigzag in at most ten groups of seven bits.
    pub fn long(&mut self) -> Result<i64, MalformedDatum> {
        let start = self.at;
        let mut value: u64 = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.fixed(1)?[0];
            // The tenth group holds the last bit of 64.
            if shift == 63 && byte > 1 {
                break;
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok((value >> 1) as i64 ^ -((value & 1) as i64));
            }
        }
        Err(MalformedDatum { at: start, what: "a number is longer than 64 bits" })
    }

    /// The branch of a union or the index of an enum, which has `count` of them.
    pub fn index(&mut self, count: usize) -> Result<usize, MalformedDatum> {
        let start = self.at;
        match usize::try_from(self.long()?) {
            Ok(index) if index < count => Ok(index),
            _ => Err(MalformedDatum { at: start, what: "a union or enum has no such branch" }),
        }
    }

    pub fn bytes(&mut self) -> Result<&'a [u8], MalformedDatum> {
        let start = self.at;
        let len = self.long()?;
        match usize::try_from(len) {
            Ok(len) if len <= self.left() => self.fixed(len),
            Ok(_) => Err(MalformedDatum { at: start, what: "a length reaches beyond the message" }),
            Err(_) => Err(MalformedDatum { at: start, what: "a length is negative" }),
        }
    }

    pub fn string(&mut self) -> Result<Cow<'a, str>, MalformedDatum> {
        Ok(java_text(self.bytes()?))
    }

    /// The next block of a map or array: how many items follow, 0 at the end. An item takes at least
    /// `item_bytes_min` bytes, so that a count which cannot be true is refused before anybody loops over it.
    pub fn block(&mut self, item_bytes_min: usize) -> Result<usize, MalformedDatum> {
        let start = self.at;
        let count = self.long()?;
        let items = usize::try_from(count.unsigned_abs())
            .map_err(|_| MalformedDatum { at: start, what: "a block has an impossible number of items" })?;
        if count < 0 {
            // The size of the block, for readers that skip it. It is not used, so it may be wrong, as with Flume.
            self.long()?;
        }
        if items.checked_mul(item_bytes_min).is_none_or(|least| least > self.left()) {
            return Err(MalformedDatum { at: start, what: "a block claims more items than the message has bytes" });
        }
        Ok(items)
    }

    /// Reads over a `map<bytes>`, whose entries nobody here wants.
    pub fn skip_map(&mut self) -> Result<(), MalformedDatum> {
        loop {
            let items = self.block(2)?;
            if items == 0 {
                return Ok(());
            }
            for _ in 0..items {
                self.bytes()?;
                self.bytes()?;
            }
        }
    }
}

/// Appends an int or a long.
pub fn put_long(out: &mut Vec<u8>, value: i64) {
    let mut rest = ((value << 1) ^ (value >> 63)) as u64;
    while rest >= 0x80 {
        out.push((rest as u8) | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

/// Appends bytes or a string.
pub fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    // A slice is never longer than isize::MAX.
    put_long(out, bytes.len() as i64);
    out.extend_from_slice(bytes);
}

/// `new String(bytes, UTF_8)`: each malformed sequence becomes one replacement character. Java differs from Rust in
/// one place: a surrogate (ED A0..BF xx, whole or cut off) is one malformed sequence, not one for each byte.
pub(super) fn java_text(bytes: &[u8]) -> Cow<'_, str> {
    if let Ok(text) = std::str::from_utf8(bytes) {
        return Cow::Borrowed(text);
    }
    let mut repaired = String::with_capacity(bytes.len());
    let mut rest = bytes;
    while !rest.is_empty() {
        match std::str::from_utf8(rest) {
            Ok(text) => {
                repaired.push_str(text);
                break;
            }
            Err(error) => {
                let (valid, bad) = rest.split_at(error.valid_up_to());
                repaired.push_str(std::str::from_utf8(valid).unwrap_or_default());
                repaired.push(char::REPLACEMENT_CHARACTER);
                let skipped = match bad {
                    [0xed, 0xa0..=0xbf, 0x80..=0xbf, ..] => 3,
                    [0xed, 0xa0..=0xbf, ..] => 2,
                    _ => error.error_len().unwrap_or(bad.len()),
                };
                rest = &bad[skipped..];
            }
        }
    }
    Cow::Owned(repaired)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers_of_the_avro_specification() {
        let known: [(i64, &[u8]); 7] =
            [(0, &[0]), (-1, &[1]), (1, &[2]), (-2, &[3]), (-64, &[0x7f]), (64, &[0x80, 1]), (8192, &[0x80, 0x80, 1])];
        for (value, encoded) in known {
            let mut out = Vec::new();
            put_long(&mut out, value);
            assert_eq!(out, encoded);
        }
        let eleven = [0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0];
        assert_eq!(DatumReader::new(&eleven).long().unwrap_err().what, "a number is longer than 64 bits");
    }

    #[test]
    fn a_length_is_checked_before_it_is_believed() {
        let refused = |bytes: &[u8]| DatumReader::new(bytes).bytes().unwrap_err().what;
        assert_eq!(refused(&[1]), "a length is negative");
        assert_eq!(refused(&[8, 1, 2, 3]), "a length reaches beyond the message");
        let mut huge = Vec::new();
        put_long(&mut huge, i64::MAX);
        assert_eq!(refused(&huge), "a length reaches beyond the message");
    }

    #[test]
    fn blocks_with_a_negative_count_carry_their_size() {
        // Two items in seven bytes, then the end.
        let mut map = vec![3, 14];
        for (key, value) in [("a", "1"), ("b", "23")] {
            put_bytes(&mut map, key.as_bytes());
            put_bytes(&mut map, value.as_bytes());
        }
        map.push(0);
        let mut reader = DatumReader::new(&map);
        assert_eq!(reader.skip_map(), Ok(()));
        assert_eq!(reader.left(), 0);
        let block = |bytes: &[u8]| DatumReader::new(bytes).block(2).unwrap_err().what;
        assert_eq!(DatumReader::new(&[3, 100, 0, 0, 0, 0]).block(2), Ok(2));
        assert_eq!(block(&[100, 0, 0]), "a block claims more items than the message has bytes");
        let mut least = Vec::new();
        put_long(&mut least, i64::MIN);
        least.push(0);
        assert_eq!(block(&least), "a block claims more items than the message has bytes");
    }

    #[test]
    fn text_is_repaired_as_java_does() {
        // Each line was printed by `new String(bytes, UTF_8)` of OpenJDK 17.
        let cases: [(&[u8], &str); 11] = [
            (b"plain", "plain"),
            (&[0xff, b'a'], "\u{fffd}a"),
            (&[0xe2, 0x82, b'a'], "\u{fffd}a"),
            (&[0xed, 0xa0, 0x80, b'a'], "\u{fffd}a"),
            (&[0xed, 0xa0, b'a'], "\u{fffd}a"),
            (&[0xed, 0xa0], "\u{fffd}"),
            (&[0xed, 0xbf, 0xbf, 0xed, 0xa0, 0x80], "\u{fffd}\u{fffd}"),
            (&[0xf4, 0x90, 0x80, 0x80], "\u{fffd}\u{fffd}\u{fffd}\u{fffd}"),
            (&[0xf0, 0x9f, 0x98], "\u{fffd}"),
            (&[0xc0, 0x80], "\u{fffd}\u{fffd}"),
            (&[0xf8, 0x80], "\u{fffd}\u{fffd}"),
        ];
        for (bytes, text) in cases {
            assert_eq!(java_text(bytes), text, "{bytes:x?}");
        }
    }

    proptest! {
        #[test]
        fn every_number_comes_back(value: i64) {
            let mut out = Vec::new();
            put_long(&mut out, value);
            let mut reader = DatumReader::new(&out);
            prop_assert_eq!(reader.long(), Ok(value));
            prop_assert_eq!(reader.left(), 0);
        }
    }
}
