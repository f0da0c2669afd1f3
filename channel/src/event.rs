//! Events in batches: one arena, offsets, and headers that a whole batch shares.
//!
//! An [`EventBatch`] is built once by a source and moves down to the log as it is; its arena is already laid out as
//! the records of a frame (`docs/format.md`, "Events"). A clone shares the memory until one of the two is changed, so that a
//! batch for several channels is there once. An [`EventSlice`] is the immutable form that a take hands out. Both promise that what they hold is well formed: bytes from a disk pass [`EventSlice::decode`] first.
//!
//! ```text
//! record    | count | (length key length value)* | body … |      lengths and counts are LEB128 varints
//! ```

use std::ops::{Deref, Range};
use std::sync::Arc;

use bytes::Bytes;

/// What a header of the whole batch does to events that bring the same header themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// The event's own value stays (`preserveExisting = true`).
    Keep,
    /// The batch's value hides it.
    Replace,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct CommonHeader {
    key: String,
    value: String,
    existing: Existing,
}

/// Events on their way into a channel.
#[derive(Debug, Clone, Default)]
pub struct EventBatch {
    content: Arc<Content>,
}

/// What clones, and the slices of a batch, share.
#[derive(Debug, Clone, Default)]
struct Content {
    records: Records,
    /// `ends[i]` is where record `i` ends in `records`; ascending.
    ends: Vec<u32>,
    common: Vec<CommonHeader>,
}

#[derive(Debug, Clone)]
enum Records {
    Built(Vec<u8>),
    /// Out of what was read.
    Read(Bytes),
}

/// Bytes that are not the events they claim to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed event records: {0}")]
pub struct MalformedEvents(pub &'static str);

impl EventBatch {
    pub fn new() -> EventBatch {
        EventBatch::default()
    }

    /// A batch with room for `events` events of `bytes` bytes in all.
    pub fn with_capacity(events: usize, bytes: usize) -> EventBatch {
        let records = Records::Built(Vec::with_capacity(bytes));
        EventBatch::of(Content { records, ends: Vec::with_capacity(events), common: Vec::new() })
    }

    fn of(content: Content) -> EventBatch {
        EventBatch { content: Arc::new(content) }
    }

    /// Adds an event. Where a key comes twice, the last one wins, as in Flume's map. Looking for that costs the square
    /// of the number of headers: a source whose senders choose that number uses [`push_distinct`](Self::push_distinct).
    ///
    /// # Panics
    /// When the batch would pass 4 GiB: sources cut batches long before (`docs/configuration.md`, limits).
    pub fn push<'a>(&mut self, headers: impl IntoIterator<Item = (&'a str, &'a str)>, body: &[u8]) {
        Arc::make_mut(&mut self.content).push(headers, body);
    }

    /// Adds an event whose keys the caller knows to be distinct.
    ///
    /// # Panics
    /// As [`push`](Self::push).
    pub fn push_distinct<'a>(&mut self, headers: impl ExactSizeIterator<Item = (&'a str, &'a str)>, body: &[u8]) {
        Arc::make_mut(&mut self.content).push_distinct(headers, body);
    }

    /// Adds an event that has no headers of its own.
    pub fn push_body(&mut self, body: &[u8]) {
        self.push(std::iter::empty(), body);
    }

    /// Gives every event of the batch a header.
    pub fn set_common(&mut self, key: &str, value: &str, existing: Existing) {
        let common = &mut Arc::make_mut(&mut self.content).common;
        match (common.iter_mut().find(|header| header.key == key), existing) {
            // Every event has the header already.
            (Some(_), Existing::Keep) => {}
            (Some(header), Existing::Replace) => {
                header.value = value.to_owned();
                header.existing = Existing::Replace;
            }
            (None, _) => common.push(CommonHeader { key: key.to_owned(), value: value.to_owned(), existing }),
        }
    }

    pub fn len(&self) -> usize {
        self.content.ends.len()
    }

    pub fn is_empty(&self) -> bool {
        self.content.ends.is_empty()
    }

    /// Bytes of all records, headers included.
    pub fn bytes(&self) -> usize {
        self.content.records.len()
    }

    pub fn iter(&self) -> impl Iterator<Item = EventRef<'_>> {
        (0..self.len()).map(|index| self.get(index))
    }

    /// The event at `index`.
    ///
    /// # Panics
    /// When there is none.
    pub fn get(&self, index: usize) -> EventRef<'_> {
        self.content.get(index)
    }

    /// A batch of the events for which `keep` says yes, in order.
    pub fn filtered(&self, keep: impl FnMut(usize, EventRef<'_>) -> bool) -> EventBatch {
        EventBatch::of(self.content.filtered(0..self.len(), keep))
    }

    /// A batch of the events of `range`, in order.
    pub fn sub_batch(&self, range: Range<usize>) -> EventBatch {
        let range = range.start.min(self.len())..range.end.min(self.len());
        EventBatch::of(self.content.filtered(range, |_, _| true))
    }

    /// The shared, immutable form.
    pub fn freeze(self) -> EventSlice {
        EventSlice { content: self.content, start: 0, end: None }
    }

    /// Bytes that [`encode`](EventBatch::encode) will append.
    pub fn encoded_len(&self) -> usize {
        self.encoded_prefix().len() + self.bytes()
    }

    /// Appends the batch as a frame holds it: common headers, record lengths, records.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.encoded_prefix());
        out.extend_from_slice(self.records());
    }

    /// What stands before the records in a frame: common headers and record lengths.
    pub(crate) fn encoded_prefix(&self) -> Vec<u8> {
        let Content { ends, common, .. } = &*self.content;
        let mut out = Vec::with_capacity(16 + 2 * self.len());
        put_varint(&mut out, common.len() as u64);
        for header in common {
            out.push(u8::from(header.existing == Existing::Replace));
            put_string(&mut out, &header.key);
            put_string(&mut out, &header.value);
        }
        put_varint(&mut out, self.len() as u64);
        let mut start = 0;
        for &end in ends {
            put_varint(&mut out, u64::from(end - start));
            start = end;
        }
        out
    }

    pub(crate) fn records(&self) -> &[u8] {
        &self.content.records
    }
}

impl Content {
    fn get(&self, index: usize) -> EventRef<'_> {
        EventRef { common: &self.common, record: &self.records[record_range(&self.ends, index)] }
    }

    /// Those of `events` for which `keep` says yes, apart from the others.
    fn filtered(&self, events: Range<usize>, mut keep: impl FnMut(usize, EventRef<'_>) -> bool) -> Content {
        let (mut records, mut ends) = (Vec::new(), Vec::new());
        for index in events {
            let event = self.get(index);
            if keep(index, event) {
                records.extend_from_slice(event.record);
                ends.push(records.len() as u32);
            }
        }
        Content { records: Records::Built(records), ends, common: self.common.clone() }
    }

    fn push<'a>(&mut self, headers: impl IntoIterator<Item = (&'a str, &'a str)>, body: &[u8]) {
        let records = self.records.built();
        let start = records.len();
        // Most events have fewer than 128 headers, whose count is one byte: write it in place, and repair the rest.
        records.push(0);
        let mut count: usize = 0;
        for (key, value) in headers {
            if count > 0 && remove_header(records, start, count, key) {
                count -= 1;
            }
            put_string(records, key);
            put_string(records, value);
            count += 1;
        }
        self.finish_record(start, count, body);
    }

    fn push_distinct<'a>(&mut self, headers: impl ExactSizeIterator<Item = (&'a str, &'a str)>, body: &[u8]) {
        let records = self.records.built();
        let start = records.len();
        records.push(0);
        let count = headers.len();
        for (key, value) in headers {
            put_string(records, key);
            put_string(records, value);
        }
        self.finish_record(start, count, body);
    }

    /// Writes the header count of the record at `start`, and its body.
    fn finish_record(&mut self, start: usize, count: usize, body: &[u8]) {
        let records = self.records.built();
        if count < 128 {
            records[start] = count as u8;
        } else {
            let mut encoded = Vec::with_capacity(4);
            put_varint(&mut encoded, count as u64);
            records.splice(start..=start, encoded);
        }
        records.extend_from_slice(body);
        let end = u32::try_from(records.len()).expect("a batch stays below 4 GiB");
        self.ends.push(end);
    }
}

/// Removes `key` from the record under construction at `start`, whose count byte is not yet written.
fn remove_header(records: &mut Vec<u8>, start: usize, count: usize, key: &str) -> bool {
    let mut at = start + 1;
    for _ in 0..count {
        let header_start = at;
        let found = take_string(records, &mut at).expect("own records are well formed");
        let same = found == key;
        take_string(records, &mut at).expect("own records are well formed");
        if same {
            records.drain(header_start..at);
            return true;
        }
    }
    false
}

impl Records {
    fn built(&mut self) -> &mut Vec<u8> {
        match self {
            Records::Built(built) => built,
            Records::Read(_) => unreachable!("what was read is in slices, which nobody changes"),
        }
    }
}

impl Default for Records {
    fn default() -> Records {
        Records::Built(Vec::new())
    }
}

impl Deref for Records {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Records::Built(built) => built,
            Records::Read(read) => read,
        }
    }
}

/// Shared events, cheap to clone and to cut.
#[derive(Debug, Clone)]
pub struct EventSlice {
    content: Arc<Content>,
    start: usize,
    /// `None` reaches to the last event.
    end: Option<usize>,
}

impl EventSlice {
    /// Reads what [`EventBatch::encode`] wrote, checking every length, so that the accessors cannot fail. The bodies
    /// stay where they are: the slice keeps `encoded` alive.
    pub fn decode(encoded: Bytes) -> Result<EventSlice, MalformedEvents> {
        let mut at = 0;
        let common_count = take_varint(&encoded, &mut at)?;
        if common_count > encoded.len() as u64 {
            return Err(MalformedEvents("more common headers than bytes"));
        }
        // Grows as they come: room for as many as are claimed would be many times the bytes present.
        let mut common = Vec::new();
        for _ in 0..common_count {
            let existing = match encoded.get(at) {
                Some(0) => Existing::Keep,
                Some(1) => Existing::Replace,
                _ => return Err(MalformedEvents("common header without a rule for existing ones")),
            };
            at += 1;
            let key = take_string(&encoded, &mut at)?.to_owned();
            let value = take_string(&encoded, &mut at)?.to_owned();
            common.push(CommonHeader { key, value, existing });
        }
        let count = take_varint(&encoded, &mut at)?;
        if count > encoded.len() as u64 {
            return Err(MalformedEvents("more events than bytes"));
        }
        let mut ends = Vec::with_capacity(count as usize);
        let mut end: u64 = 0;
        for _ in 0..count {
            end = end.saturating_add(take_varint(&encoded, &mut at)?);
            ends.push(u32::try_from(end).map_err(|_| MalformedEvents("records of 4 GiB"))?);
        }
        let records = encoded.slice(at..);
        if records.len() as u64 != end {
            return Err(MalformedEvents("record lengths disagree with the bytes present"));
        }
        let mut start = 0;
        for &end in &ends {
            check_record(&records[start as usize..end as usize])?;
            start = end;
        }
        Ok(EventBatch::of(Content { records: Records::Read(records), ends, common }).freeze())
    }

    pub fn len(&self) -> usize {
        self.end.unwrap_or(self.content.ends.len()) - self.start
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of the records, headers included.
    pub fn bytes(&self) -> usize {
        if self.is_empty() {
            return 0;
        }
        let last = record_range(&self.content.ends, self.start + self.len() - 1).end;
        last - record_range(&self.content.ends, self.start).start
    }

    /// The event at `index`.
    ///
    /// # Panics
    /// When there is none.
    pub fn get(&self, index: usize) -> EventRef<'_> {
        assert!(index < self.len(), "event {index} of {}", self.len());
        self.content.get(self.start + index)
    }

    pub fn iter(&self) -> impl Iterator<Item = EventRef<'_>> {
        (0..self.len()).map(|index| self.get(index))
    }

    /// The events of `range`, sharing the same memory.
    ///
    /// # Panics
    /// When the range reaches beyond the slice.
    pub fn slice(&self, range: Range<usize>) -> EventSlice {
        assert!(range.start <= range.end && range.end <= self.len(), "{range:?} of {}", self.len());
        EventSlice {
            content: Arc::clone(&self.content),
            start: self.start + range.start,
            end: Some(self.start + range.end),
        }
    }

    /// The same events in memory of their own, so that what lay around them can go.
    pub(crate) fn apart(&self) -> EventSlice {
        self.to_batch().freeze()
    }

    /// The same events as a batch that can be put again, into another channel.
    pub fn to_batch(&self) -> EventBatch {
        EventBatch::of(self.content.filtered(self.start..self.start + self.len(), |_, _| true))
    }
}

/// One event, borrowed.
#[derive(Debug, Clone, Copy)]
pub struct EventRef<'a> {
    common: &'a [CommonHeader],
    record: &'a [u8],
}

impl<'a> EventRef<'a> {
    pub fn body(&self) -> &'a [u8] {
        let mut own = OwnHeaders::new(self.record);
        own.by_ref().for_each(drop);
        &self.record[own.at..]
    }

    /// Bytes of the event's own record: headers that it shares with its batch are not counted.
    pub fn bytes(&self) -> usize {
        self.record.len()
    }

    /// The value of a header.
    pub fn header(&self, key: &str) -> Option<&'a str> {
        let common = self.common.iter().find(|header| header.key == key);
        if let Some(header) = common
            && header.existing == Existing::Replace
        {
            return Some(&header.value);
        }
        let own = OwnHeaders::new(self.record).find(|(found, _)| *found == key).map(|(_, value)| value);
        own.or(common.map(|header| header.value.as_str()))
    }

    /// How many headers the event brought itself, also those that a header of the batch hides.
    pub fn own_header_count(&self) -> usize {
        OwnHeaders::new(self.record).left as usize
    }

    /// All headers, each key once, in no promised order: the event's own first.
    pub fn headers(&self) -> impl Iterator<Item = (&'a str, &'a str)> + use<'a> {
        let (common, record) = (self.common, self.record);
        let replaced =
            move |key: &str| common.iter().any(|header| header.existing == Existing::Replace && header.key == key);
        let brought = move |key: &str| OwnHeaders::new(record).any(|(found, _)| found == key);
        let own = OwnHeaders::new(record).filter(move |(key, _)| !replaced(key));
        let shared = common
            .iter()
            .filter(move |header| header.existing == Existing::Replace || !brought(&header.key))
            .map(|header| (header.key.as_str(), header.value.as_str()));
        own.chain(shared)
    }
}

/// The headers inside a well-formed record; `at` ends where the body starts.
struct OwnHeaders<'a> {
    record: &'a [u8],
    at: usize,
    left: u64,
}

impl<'a> OwnHeaders<'a> {
    fn new(record: &'a [u8]) -> OwnHeaders<'a> {
        let mut at = 0;
        let left = take_varint(record, &mut at).expect("records are checked when they enter a batch");
        OwnHeaders { record, at, left }
    }
}

impl<'a> Iterator for OwnHeaders<'a> {
    type Item = (&'a str, &'a str);

    fn next(&mut self) -> Option<(&'a str, &'a str)> {
        if self.left == 0 {
            return None;
        }
        self.left -= 1;
        let key = take_string(self.record, &mut self.at).expect("records are checked when they enter a batch");
        let value = take_string(self.record, &mut self.at).expect("records are checked when they enter a batch");
        Some((key, value))
    }
}

fn check_record(record: &[u8]) -> Result<(), MalformedEvents> {
    let mut at = 0;
    let count = take_varint(record, &mut at)?;
    if count > record.len() as u64 {
        return Err(MalformedEvents("more headers than bytes"));
    }
    for _ in 0..count {
        take_string(record, &mut at)?;
        take_string(record, &mut at)?;
    }
    Ok(())
}

fn record_range(ends: &[u32], index: usize) -> Range<usize> {
    let start = if index == 0 { 0 } else { ends[index - 1] };
    start as usize..ends[index] as usize
}

pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value as u8) | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

pub(crate) fn put_string(out: &mut Vec<u8>, text: &str) {
    put_varint(out, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}

pub(crate) fn take_varint(bytes: &[u8], at: &mut usize) -> Result<u64, MalformedEvents> {
    let mut value: u64 = 0;
    for shift in (0..64).step_by(7) {
        let byte = *bytes.get(*at).ok_or(MalformedEvents("a number is cut off"))?;
        *at += 1;
        // The tenth byte holds the last bit of 64.
        if shift == 63 && byte > 1 {
            break;
        }
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(value);
        }
    }
    Err(MalformedEvents("a number is longer than 64 bits"))
}

pub(crate) fn take_bytes<'a>(bytes: &'a [u8], at: &mut usize) -> Result<&'a [u8], MalformedEvents> {
    let len = take_varint(bytes, at)?;
    let rest = bytes.len() - *at;
    if len > rest as u64 {
        return Err(MalformedEvents("a length reaches beyond the bytes present"));
    }
    let found = &bytes[*at..*at + len as usize];
    *at += len as usize;
    Ok(found)
}

pub(crate) fn take_string<'a>(bytes: &'a [u8], at: &mut usize) -> Result<&'a str, MalformedEvents> {
    std::str::from_utf8(take_bytes(bytes, at)?).map_err(|_| MalformedEvents("a header is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    fn headers(event: EventRef<'_>) -> HashMap<String, String> {
        let all: Vec<_> = event.headers().collect();
        let map: HashMap<_, _> = all.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
        assert_eq!(all.len(), map.len(), "each key once: {all:?}");
        for (key, value) in &map {
            assert_eq!(event.header(key), Some(value.as_str()));
        }
        map
    }

    #[test]
    fn a_clone_shares_its_memory_until_one_of_the_two_is_changed() {
        let mut batch = EventBatch::new();
        batch.push([("a", "1")], b"x");
        let (other, slice) = (batch.clone(), batch.clone().freeze());
        assert_eq!(batch.get(0).body().as_ptr(), other.get(0).body().as_ptr());
        assert_eq!(batch.get(0).body().as_ptr(), slice.get(0).body().as_ptr());
        batch.push_body(b"y");
        batch.set_common("h", "v", Existing::Replace);
        assert_eq!((batch.len(), other.len(), slice.len()), (2, 1, 1));
        for event in [other.get(0), slice.get(0)] {
            assert_eq!(headers(event), HashMap::from([("a".into(), "1".into())]));
            assert_eq!(event.body(), b"x");
        }
    }

    #[test]
    fn the_last_of_two_equal_keys_wins() {
        let mut batch = EventBatch::new();
        batch.push([("a", "1"), ("b", "2"), ("a", "3")], b"x");
        assert_eq!(headers(batch.get(0)), HashMap::from([("a".into(), "3".into()), ("b".into(), "2".into())]));
        assert_eq!(batch.get(0).body(), b"x");
    }

    #[test]
    fn common_headers_keep_or_replace_what_an_event_brings() {
        let mut batch = EventBatch::new();
        batch.push([("host", "own"), ("timestamp", "1")], b"x");
        batch.push_body(b"y");
        batch.set_common("host", "common", Existing::Keep);
        batch.set_common("timestamp", "2", Existing::Replace);
        batch.set_common("host", "ignored: everyone has one", Existing::Keep);
        assert_eq!(
            headers(batch.get(0)),
            HashMap::from([("host".into(), "own".into()), ("timestamp".into(), "2".into())])
        );
        assert_eq!(
            headers(batch.get(1)),
            HashMap::from([("host".into(), "common".into()), ("timestamp".into(), "2".into())])
        );
    }

    #[test]
    fn more_headers_than_one_byte_counts() {
        let keys: Vec<String> = (0..300).map(|index| format!("k{index}")).collect();
        let mut batch = EventBatch::new();
        batch.push(keys.iter().map(|key| (key.as_str(), "v")), b"body");
        batch.push_distinct(keys.iter().map(|key| (key.as_str(), "w")), b"again");
        assert_eq!(headers(batch.get(0)).len(), 300);
        assert_eq!(batch.get(0).body(), b"body");
        assert_eq!(headers(batch.get(1)).len(), 300);
        assert_eq!((batch.get(1).header("k299"), batch.get(1).body()), (Some("w"), b"again".as_slice()));
    }

    proptest! {
        #[test]
        fn what_is_encoded_comes_back(
            events in proptest::collection::vec(
                (proptest::collection::hash_map(".{0,9}", ".{0,200}", 0..4), proptest::collection::vec(any::<u8>(), 0..300)),
                0..20,
            ),
            shared in proptest::collection::hash_map("[a-c]", ".{0,5}", 0..3),
        ) {
            let mut batch = EventBatch::new();
            for (own, body) in &events {
                batch.push(own.iter().map(|(key, value)| (key.as_str(), value.as_str())), body);
            }
            for (key, value) in &shared {
                batch.set_common(key, value, Existing::Replace);
            }
            let mut encoded = Vec::new();
            batch.encode(&mut encoded);
            prop_assert_eq!(encoded.len(), batch.encoded_len());
            let slice = EventSlice::decode(Bytes::from(encoded)).unwrap();
            prop_assert_eq!(slice.len(), events.len());
            for (index, (own, body)) in events.iter().enumerate() {
                let mut expected = own.clone();
                expected.extend(shared.clone());
                prop_assert_eq!(headers(slice.get(index)), expected);
                prop_assert_eq!(slice.get(index).body(), body.as_slice());
            }
        }

        #[test]
        fn arbitrary_bytes_are_refused_or_read_but_never_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(slice) = EventSlice::decode(Bytes::from(bytes)) {
                for event in slice.iter() {
                    event.headers().for_each(drop);
                    let _ = event.body();
                }
            }
        }
    }
}
