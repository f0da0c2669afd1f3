//! Reads the files that `serializer = avro_event` writes, by Avro's specification and not by our own writer's code, so that
//! the two check each other. Uncompressed files only; a panic is a failed test.

use std::collections::BTreeMap;

use crate::events::Event;

/// All events of one container file.
pub fn events(file: &[u8]) -> Vec<Event> {
    // A file that was created and never written: closed without an event, or cut back to nothing after a crash.
    if file.is_empty() {
        return Vec::new();
    }
    let mut input = Input { rest: file };
    assert_eq!(input.take(4), b"Obj\x01", "the file is no Avro container");
    let metadata = input.map(|input| input.blob().to_vec());
    let codec = metadata.get("avro.codec").map_or(&b"null"[..], Vec::as_slice);
    assert_eq!(codec, b"null", "only uncompressed containers are read here");
    let schema = String::from_utf8_lossy(metadata.get("avro.schema").expect("the container names its schema"));
    assert!(schema.contains("\"headers\"") && schema.contains("\"body\""), "not the schema of Flume's event: {schema}");
    let marker = input.take(16);
    let mut events = Vec::new();
    while !input.rest.is_empty() {
        let count = input.long();
        let length = usize::try_from(input.long()).expect("a block has a length");
        let mut block = Input { rest: input.take(length) };
        for _ in 0..count {
            let headers = block.map(Input::text);
            events.push(Event { headers, body: block.blob().to_vec() });
        }
        assert!(block.rest.is_empty(), "{} bytes are left of a block of {count} events", block.rest.len());
        assert_eq!(input.take(16), marker, "a block ends without the file's marker");
    }
    events
}

struct Input<'a> {
    rest: &'a [u8],
}

impl<'a> Input<'a> {
    fn take(&mut self, length: usize) -> &'a [u8] {
        let (head, rest) = self.rest.split_at_checked(length).expect("the container is cut short");
        self.rest = rest;
        head
    }

    fn long(&mut self) -> i64 {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)[0];
            value |= u64::from(byte & 0x7F) << shift;
            if byte & 0x80 == 0 {
                return (value >> 1).cast_signed() ^ -(value & 1).cast_signed();
            }
        }
        panic!("a number has more than ten bytes");
    }

    fn blob(&mut self) -> &'a [u8] {
        let length = usize::try_from(self.long()).expect("a length is not negative");
        self.take(length)
    }

    fn text(&mut self) -> String {
        String::from_utf8(self.blob().to_vec()).expect("Avro strings are UTF-8")
    }

    fn map<T>(&mut self, mut value: impl FnMut(&mut Self) -> T) -> BTreeMap<String, T> {
        let mut map = BTreeMap::new();
        loop {
            let mut count = self.long();
            if count == 0 {
                return map;
            }
            if count < 0 {
                // A negative count is followed by the block's length in bytes, for readers that skip.
                count = -count;
                self.long();
            }
            for _ in 0..count {
                let key = self.text();
                map.insert(key, value(self));
            }
        }
    }
}
