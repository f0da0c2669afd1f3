//! Events as bytes of a file: Flume's `text`, `header_and_text` and `avro_event`, and SequenceFile records.
//!
//! An [`Encoder`] belongs to one file and appends to a buffer of the caller. It promises that after
//! [`finish_block`](Encoder::finish_block) the bytes so far end at a boundary: a reader of just those sees whole events
//! only. The order of headers is the caller's to give ([`HeaderOrder`]); where the bytes go is left to the sink.

use std::io::Write as _;

use channel::EventRef;
use flate2::Compression;
use flate2::write::DeflateEncoder;

use crate::sequence_file::{SequenceFile, ValueClass};

/// Gives an event's headers in the order in which they are written.
pub type HeaderOrder = for<'a> fn(EventRef<'a>) -> Vec<(&'a str, &'a str)>;

/// How a file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Flume's `text`.
    Text { append_newline: bool },
    /// Flume's `header_and_text`: the headers as Java prints a map, a space, the body.
    HeaderAndText { append_newline: bool },
    /// Flume's `avro_event`: an Avro container file of `Event` records.
    AvroEvent { sync_interval_bytes: usize, codec: AvroCodec },
    /// A SequenceFile, keyed by the event's `timestamp` header.
    SequenceFile(ValueClass),
}

/// How the blocks of an Avro container file are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AvroCodec {
    Null,
    /// RFC 1951, each block on its own.
    Deflate,
}

impl AvroCodec {
    /// Avro's names, which it also writes into the file.
    pub fn for_name(name: &str) -> Option<AvroCodec> {
        [AvroCodec::Null, AvroCodec::Deflate].into_iter().find(|codec| codec.name() == name)
    }

    pub fn name(self) -> &'static str {
        match self {
            AvroCodec::Null => "null",
            AvroCodec::Deflate => "deflate",
        }
    }
}

/// An event that this format can never hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unwritable {
    #[error("its timestamp header is not a number of milliseconds, which is the key of a SequenceFile record")]
    TimestampNotANumber,
    #[error("its body has {0} bytes, and a record of the file can hold {1}")]
    TooLarge(usize, usize),
}

/// Java readers count a record's bytes in an `int`; this leaves room for the key and lengths.
const RECORD_BYTES_MAX: usize = i32::MAX as usize - 1024;

/// The schema of Flume's `avro_event`.
pub const EVENT_SCHEMA: &str = concat!(
    r#"{"type":"record","name":"Event","fields":["#,
    r#"{"name":"headers","type":{"type":"map","values":"string"}},{"name":"body","type":"bytes"}]}"#
);

/// Encodes the events of one file.
#[derive(Debug)]
pub struct Encoder {
    order: HeaderOrder,
    shape: Shape,
}

#[derive(Debug)]
enum Shape {
    Text { append_newline: bool, with_headers: bool },
    Avro { sync_interval_bytes: usize, block: AvroBlock },
    Sequence(SequenceFile),
}

impl Encoder {
    /// `marker` is 16 random bytes that separate the blocks of this one file.
    pub fn new(format: Format, order: HeaderOrder, marker: [u8; 16]) -> Encoder {
        let shape = match format {
            Format::Text { append_newline } => Shape::Text { append_newline, with_headers: false },
            Format::HeaderAndText { append_newline } => Shape::Text { append_newline, with_headers: true },
            Format::AvroEvent { sync_interval_bytes, codec } => {
                let block = AvroBlock { marker, codec, bytes: Vec::new(), records: 0 };
                Shape::Avro { sync_interval_bytes, block }
            }
            Format::SequenceFile(values) => Shape::Sequence(SequenceFile::new(values, marker)),
        };
        Encoder { order, shape }
    }

    /// What comes before the first event.
    pub fn start(&mut self, out: &mut Vec<u8>) {
        match &mut self.shape {
            Shape::Text { .. } => {}
            Shape::Avro { block, .. } => {
                out.extend_from_slice(b"Obj\x01");
                put_long(out, 2);
                for (key, value) in [("avro.codec", block.codec.name()), ("avro.schema", EVENT_SCHEMA)] {
                    put_bytes(out, key.as_bytes());
                    put_bytes(out, value.as_bytes());
                }
                put_long(out, 0);
                out.extend_from_slice(&block.marker);
            }
            Shape::Sequence(file) => file.start(out),
        }
    }

    /// Adds an event; `now_ms` is the key of a SequenceFile record without a timestamp. An error leaves `out` as it
    /// was.
    pub fn event(&mut self, event: EventRef<'_>, now_ms: i64, out: &mut Vec<u8>) -> Result<(), Unwritable> {
        let body = event.body();
        if body.len() > RECORD_BYTES_MAX {
            return Err(Unwritable::TooLarge(body.len(), RECORD_BYTES_MAX));
        }
        match &mut self.shape {
            Shape::Text { append_newline, with_headers } => {
                if *with_headers {
                    put_map_text(out, &(self.order)(event));
                    out.push(b' ');
                }
                out.extend_from_slice(body);
                if *append_newline {
                    out.push(b'\n');
                }
            }
            Shape::Avro { sync_interval_bytes, block } => {
                let headers = (self.order)(event);
                if !headers.is_empty() {
                    put_long(&mut block.bytes, headers.len() as i64);
                    for (key, value) in headers {
                        put_bytes(&mut block.bytes, key.as_bytes());
                        put_bytes(&mut block.bytes, value.as_bytes());
                    }
                }
                put_long(&mut block.bytes, 0);
                put_bytes(&mut block.bytes, body);
                block.records += 1;
                if block.bytes.len() >= *sync_interval_bytes {
                    block.end(out);
                }
            }
            Shape::Sequence(file) => {
                let key = match event.header("timestamp") {
                    Some(text) => text.parse().map_err(|_| Unwritable::TimestampNotANumber)?,
                    None => now_ms,
                };
                file.record(key, body, out);
            }
        }
        Ok(())
    }

    /// Ends the block under construction, so that every event so far is in `out`.
    pub fn finish_block(&mut self, out: &mut Vec<u8>) {
        if let Shape::Avro { block, .. } = &mut self.shape {
            block.end(out);
        }
    }

    /// Bytes of events that are not in the caller's buffer yet.
    pub fn held_bytes(&self) -> usize {
        match &self.shape {
            Shape::Avro { block, .. } => block.bytes.len(),
            Shape::Text { .. } | Shape::Sequence(_) => 0,
        }
    }
}

/// `{a=1, b=2}`, as Java prints a map.
fn put_map_text(out: &mut Vec<u8>, headers: &[(&str, &str)]) {
    out.push(b'{');
    for (index, (key, value)) in headers.iter().enumerate() {
        if index > 0 {
            out.extend_from_slice(b", ");
        }
        out.extend_from_slice(key.as_bytes());
        out.push(b'=');
        out.extend_from_slice(value.as_bytes());
    }
    out.push(b'}');
}

/// The block of an Avro file that is under construction.
#[derive(Debug)]
struct AvroBlock {
    marker: [u8; 16],
    codec: AvroCodec,
    bytes: Vec<u8>,
    records: i64,
}

impl AvroBlock {
    fn end(&mut self, out: &mut Vec<u8>) {
        if self.records == 0 {
            return;
        }
        put_long(out, self.records);
        match self.codec {
            AvroCodec::Null => put_bytes(out, &self.bytes),
            AvroCodec::Deflate => put_bytes(out, &deflated(&self.bytes)),
        }
        out.extend_from_slice(&self.marker);
        self.bytes.clear();
        self.records = 0;
    }
}

fn deflated(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = DeflateEncoder::new(Vec::with_capacity(bytes.len() / 2), Compression::default());
    encoder.write_all(bytes).expect("a Vec takes everything");
    encoder.finish().expect("a Vec takes everything")
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_long(out, bytes.len() as i64);
    out.extend_from_slice(bytes);
}

/// Avro's `long`: zigzag, then seven bits a byte.
fn put_long(out: &mut Vec<u8>, value: i64) {
    let mut left = ((value << 1) ^ (value >> 63)) as u64;
    while left >= 0x80 {
        out.push(left as u8 | 0x80);
        left >>= 7;
    }
    out.push(left as u8);
}

#[cfg(test)]
mod tests {
    use super::*;
    use channel::EventBatch;

    /// Headers and body of each event.
    type Events<'a> = &'a [(&'a [(&'a str, &'a str)], &'a [u8])];

    fn sorted(event: EventRef<'_>) -> Vec<(&str, &str)> {
        let mut headers: Vec<_> = event.headers().collect();
        headers.sort();
        headers
    }

    fn encode(format: Format, events: Events<'_>) -> Result<Vec<u8>, Unwritable> {
        let mut batch = EventBatch::new();
        for (headers, body) in events {
            batch.push(headers.iter().copied(), body);
        }
        let mut encoder = Encoder::new(format, sorted, [5; 16]);
        let mut out = Vec::new();
        encoder.start(&mut out);
        for event in batch.iter() {
            encoder.event(event, 42, &mut out)?;
        }
        encoder.finish_block(&mut out);
        assert_eq!(encoder.held_bytes(), 0);
        Ok(out)
    }

    #[test]
    fn text_is_the_body_with_or_without_a_newline() {
        let events: Events<'_> = &[(&[("k", "v")], b"one"), (&[], b"a\nb"), (&[], b"")];
        assert_eq!(encode(Format::Text { append_newline: true }, events).unwrap(), b"one\na\nb\n\n");
        assert_eq!(encode(Format::Text { append_newline: false }, events).unwrap(), b"onea\nb");
    }

    #[test]
    fn header_and_text_prints_the_headers_as_java_prints_a_map() {
        let events: Events<'_> = &[(&[("b", "2"), ("a", "1")], b"one"), (&[], b"two")];
        let out = encode(Format::HeaderAndText { append_newline: true }, events).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "{a=1, b=2} one\n{} two\n");
    }

    #[test]
    fn a_deflated_avro_block_holds_what_a_plain_one_holds() {
        let body = [b'x'; 10_000];
        let events: Events<'_> = &[(&[("k", "v")], &body)];
        let encoded = |codec| encode(Format::AvroEvent { sync_interval_bytes: 1, codec }, events).unwrap();
        // After the header's marker: one record, its length, the block, the marker.
        let block = |file: &[u8], length_bytes: usize| {
            let header = file.windows(16).position(|window| window == [5; 16]).unwrap() + 16;
            assert_eq!((file[header], &file[file.len() - 16..]), (2, [5; 16].as_slice()));
            file[header + 1 + length_bytes..file.len() - 16].to_vec()
        };
        let (plain, deflated) = (encoded(AvroCodec::Null), encoded(AvroCodec::Deflate));
        assert!(deflated.windows(7).any(|window| window == b"deflate") && deflated.len() < 1000);
        let mut inflated = Vec::new();
        std::io::Read::read_to_end(
            &mut flate2::read::DeflateDecoder::new(block(&deflated, 1).as_slice()),
            &mut inflated,
        )
        .unwrap();
        assert_eq!(inflated, block(&plain, 3));
    }

    #[test]
    fn avro_blocks_end_at_the_interval_and_when_asked() {
        let events: Events<'_> = &[(&[("k", "v")], b"one"), (&[], b"two")];
        let one_block =
            encode(Format::AvroEvent { sync_interval_bytes: 2_048_000, codec: AvroCodec::Null }, events).unwrap();
        let two_blocks = encode(Format::AvroEvent { sync_interval_bytes: 1, codec: AvroCodec::Null }, events).unwrap();
        let markers = |bytes: &[u8]| bytes.windows(16).filter(|window| *window == [5; 16]).count();
        assert_eq!((markers(&one_block), markers(&two_blocks)), (2, 3));
        // Two events, 15 bytes: one header pair, map end, body; map end, body.
        let first = [&[4, 30, 2, 2, b'k', 2, b'v', 0, 6][..], b"one", &[0, 6], b"two", &[5; 16]].concat();
        assert!(one_block.ends_with(&first), "{:?}", &one_block[one_block.len() - 40..]);
    }

    #[test]
    fn a_sequence_file_needs_a_number_or_no_timestamp_at_all() {
        let format = Format::SequenceFile(ValueClass::Text);
        encode(format, &[(&[], b"x")]).unwrap();
        let error = encode(format, &[(&[("timestamp", "abc")], b"x")]).unwrap_err();
        assert_eq!(error, Unwritable::TimestampNotANumber);
    }
}
