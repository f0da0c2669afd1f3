//! Hadoop's SequenceFile, uncompressed: what Flume's HDFS sink writes by default.
//!
//! Promises that Hadoop's own reader accepts the bytes. Reading, and compressed files, are left out.
//!
//! ```text
//! header | "SEQ" 6 | key class | value class | no, no (compression) | 0 metadata | 16 bytes of marker
//! record | length of key and value | length of key | key: 8 bytes | value …          integers are big-endian
//! escape | -1 | the marker                                     at least every 2,000 bytes, between records
//! ```

/// What the value of a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValueClass {
    /// `hdfs.writeFormat = Writable`
    BytesWritable,
    /// `hdfs.writeFormat = Text`
    Text,
}

/// Bytes between two escapes, as in the Hadoop 2 client that Flume 1.11 carries.
const ESCAPE_EVERY_BYTES: u64 = 2000;

/// Writes the header and records into a caller's buffer.
#[derive(Debug)]
pub struct SequenceFile {
    values: ValueClass,
    marker: [u8; 16],
    position: u64,
    escaped_at: u64,
}

impl SequenceFile {
    /// `marker` must be random: readers look for it to find a record boundary.
    pub fn new(values: ValueClass, marker: [u8; 16]) -> SequenceFile {
        SequenceFile { values, marker, position: 0, escaped_at: 0 }
    }

    pub fn start(&mut self, out: &mut Vec<u8>) {
        let before = out.len();
        out.extend_from_slice(b"SEQ\x06");
        put_text(out, b"org.apache.hadoop.io.LongWritable");
        put_text(
            out,
            match self.values {
                ValueClass::BytesWritable => b"org.apache.hadoop.io.BytesWritable",
                ValueClass::Text => b"org.apache.hadoop.io.Text",
            },
        );
        out.extend_from_slice(&[0, 0]);
        out.extend_from_slice(&0_i32.to_be_bytes());
        out.extend_from_slice(&self.marker);
        self.position += (out.len() - before) as u64;
        self.escaped_at = self.position;
    }

    /// Adds a record. The caller has checked that `value` is below 2 GiB.
    pub fn record(&mut self, key: i64, value: &[u8], out: &mut Vec<u8>) {
        let before = out.len();
        if self.position >= self.escaped_at + ESCAPE_EVERY_BYTES {
            out.extend_from_slice(&(-1_i32).to_be_bytes());
            out.extend_from_slice(&self.marker);
            self.escaped_at = self.position;
        }
        let at = out.len();
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&8_i32.to_be_bytes());
        out.extend_from_slice(&key.to_be_bytes());
        match self.values {
            ValueClass::BytesWritable => {
                out.extend_from_slice(&(value.len() as i32).to_be_bytes());
                out.extend_from_slice(value);
            }
            ValueClass::Text => put_text(out, value),
        }
        let record_bytes = (out.len() - at - 8) as i32;
        out[at..at + 4].copy_from_slice(&record_bytes.to_be_bytes());
        self.position += (out.len() - before) as u64;
    }
}

/// Hadoop's `Text`: length, then bytes.
fn put_text(out: &mut Vec<u8>, bytes: &[u8]) {
    put_vlong(out, bytes.len() as i64);
    out.extend_from_slice(bytes);
}

/// Hadoop's own variable-length integer: one byte from -112 to 127, else a byte that says sign and length, and the
/// magnitude in as few bytes as it needs.
fn put_vlong(out: &mut Vec<u8>, value: i64) {
    if (-112..=127).contains(&value) {
        out.push(value as u8);
        return;
    }
    let (magnitude, base) = if value < 0 { (!value as u64, -120_i8) } else { (value as u64, -112) };
    let bytes = 8 - magnitude.leading_zeros() as usize / 8;
    out.push((base - bytes as i8) as u8);
    out.extend_from_slice(&magnitude.to_be_bytes()[8 - bytes..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variable_length_integers_are_those_of_hadoop() {
        for (value, expected) in [
            (0_i64, vec![0_u8]),
            (127, vec![127]),
            (-112, vec![0x90]),
            (128, vec![0x8f, 0x80]),
            (255, vec![0x8f, 0xff]),
            (256, vec![0x8e, 1, 0]),
            (300_000, vec![0x8d, 4, 0x93, 0xe0]),
            (-113, vec![0x87, 0x70]),
            (i64::MAX, vec![0x88, 0x7f, 255, 255, 255, 255, 255, 255, 255]),
        ] {
            let mut out = Vec::new();
            put_vlong(&mut out, value);
            assert_eq!(out, expected, "{value}");
        }
    }

    #[test]
    fn a_file_starts_with_its_classes_and_a_record_names_its_lengths() {
        let mut file = SequenceFile::new(ValueClass::BytesWritable, [7; 16]);
        let mut out = Vec::new();
        file.start(&mut out);
        assert!(out.starts_with(b"SEQ\x06\x21org.apache.hadoop.io.LongWritable\x22org.apache.hadoop.io.BytesWritable"));
        let header = out.len();
        file.record(1_334_315_471_123, b"one", &mut out);
        let expected = [
            &15_i32.to_be_bytes()[..],
            &8_i32.to_be_bytes(),
            &1_334_315_471_123_i64.to_be_bytes(),
            &3_i32.to_be_bytes(),
            b"one",
        ]
        .concat();
        assert_eq!(&out[header..], expected);
    }

    #[test]
    fn escapes_come_between_records_at_least_every_two_thousand_bytes() {
        let mut file = SequenceFile::new(ValueClass::Text, [9; 16]);
        let mut out = Vec::new();
        file.start(&mut out);
        for key in 0..1000 {
            file.record(key, b"some line of text", &mut out);
        }
        let escape = [&(-1_i32).to_be_bytes()[..], &[9; 16]].concat();
        let places: Vec<usize> = (0..out.len() - 20).filter(|&at| out[at..at + 20] == escape).collect();
        assert!(places.len() >= out.len() / 2100, "{} escapes in {} bytes", places.len(), out.len());
    }
}
