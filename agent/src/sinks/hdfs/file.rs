//! One file of the sink: its encoder, the events it holds, and where it is in its life.
//!
//! ```text
//! Noting ──► Opening ──► Ready ◄──► Syncing          closing may be wanted at any time;
//!                          └──────► Closing ──► gone  it happens when the file is Ready
//! ```
//!
//! An event is waiting until its bytes are on their way, then in `flying` until they are known to be durable. What waits
//! behind a slow store is cut into parts, each of them for one job, so that a long wait makes no huge one. Promises that no
//! event is in both and none in neither. What is done with the ranges is the sink's.

use std::collections::VecDeque;
use std::time::Instant;

use bytes::Bytes;
use channel::{EventRef, SeqRange};
use store::fs::Writer;
use store::serializer::{Encoder, Unwritable};

use super::note::Leftover;

/// Where a file is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Its note is on the way to the disk; there is no file yet.
    Noting,
    Opening,
    Ready,
    Syncing,
    Closing,
}

/// Events and the bytes they take.
#[derive(Debug, Default)]
pub(super) struct Held {
    pub(super) ranges: Vec<SeqRange>,
    pub(super) events: u64,
    pub(super) bytes: u64,
    /// When the first of them was taken.
    pub(super) since: Option<Instant>,
}

impl Held {
    fn add(&mut self, seq: u64, bytes: u64, now: Instant) {
        match self.ranges.last_mut() {
            Some(last) if last.end == seq => last.end += 1,
            _ => self.ranges.push(SeqRange::new(seq, seq + 1)),
        }
        self.events += 1;
        self.bytes += bytes;
        self.since.get_or_insert(now);
    }
}

pub(super) struct OpenFile {
    /// What its note says. `settled` is the length that a sync confirmed.
    pub(super) leftover: Leftover,
    pub(super) stage: Stage,
    pub(super) writer: Option<Writer>,
    /// No more events: it is closed as soon as it is `Ready`.
    pub(super) closing: bool,
    /// Parts that are full, with their bytes; before those of `waiting`.
    full: VecDeque<(Held, Vec<u8>)>,
    waiting: Held,
    pub(super) flying: Held,
    /// Events and body bytes written, which decide the roll.
    pub(super) events: u64,
    pub(super) body_bytes: u64,
    pub(super) opened: Instant,
    pub(super) last_event: Instant,
    /// Counts up with every use, for the choice of the file to close.
    pub(super) used: u64,
    encoder: Encoder,
    buffer: Vec<u8>,
}

impl OpenFile {
    pub(super) fn new(leftover: Leftover, mut encoder: Encoder, now: Instant) -> OpenFile {
        let mut buffer = Vec::new();
        encoder.start(&mut buffer);
        let waiting = Held { bytes: buffer.len() as u64, ..Held::default() };
        OpenFile {
            leftover,
            stage: Stage::Noting,
            writer: None,
            closing: false,
            full: VecDeque::new(),
            waiting,
            flying: Held::default(),
            events: 0,
            body_bytes: 0,
            opened: now,
            last_event: now,
            used: 0,
            encoder,
            buffer,
        }
    }

    /// Copies an event into the file's buffer; gives the bytes this took.
    pub(super) fn add(&mut self, seq: u64, event: EventRef<'_>, now: Instant, now_ms: i64) -> Result<u64, Unwritable> {
        let before = self.buffered_bytes();
        self.encoder.event(event, now_ms, &mut self.buffer)?;
        let bytes = self.buffered_bytes().saturating_sub(before);
        self.waiting.add(seq, bytes, now);
        self.events += 1;
        self.body_bytes += event.body().len() as u64;
        self.last_event = now;
        Ok(bytes)
    }

    /// Bytes of the part that is not full.
    pub(super) fn buffered_bytes(&self) -> u64 {
        (self.buffer.len() + self.encoder.held_bytes()) as u64
    }

    /// What was added becomes a part of its own, ending at a boundary between events. What comes next goes into `empty`.
    pub(super) fn cut(&mut self, empty: Vec<u8>) {
        assert!(empty.is_empty(), "nothing of another file");
        self.encoder.finish_block(&mut self.buffer);
        self.full.push_back((std::mem::take(&mut self.waiting), std::mem::replace(&mut self.buffer, empty)));
    }

    /// Whether a part is full and waits.
    pub(super) fn has_full_part(&self) -> bool {
        !self.full.is_empty()
    }

    /// Hands out the oldest full part; from now on it is flying.
    pub(super) fn fly(&mut self) -> Bytes {
        assert!(self.flying.ranges.is_empty(), "one job at a time per file");
        let (held, bytes) = self.full.pop_front().unwrap_or_default();
        self.flying = held;
        Bytes::from(bytes)
    }

    /// When the oldest event was taken whose bytes are not on their way; `None` when all are.
    pub(super) fn waiting_since(&self) -> Option<Instant> {
        self.full.front().map_or(self.waiting.since, |(held, _)| held.since)
    }

    /// When its oldest event was taken.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.flying.since.or(self.waiting_since())
    }

    /// Everything that it holds, when nothing more becomes of it.
    pub(super) fn take_held(&mut self) -> Vec<Held> {
        let full = std::mem::take(&mut self.full).into_iter().map(|(held, _)| held);
        let flying = std::mem::take(&mut self.flying);
        [flying].into_iter().chain(full).chain([std::mem::take(&mut self.waiting)]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sinks::hdfs::note::Names;
    use channel::EventBatch;
    use store::serializer::Format;
    use store::template::Place;

    #[test]
    fn events_are_waiting_or_flying_and_never_both() {
        let place = Place { directory: "/d".to_owned(), name: "f".to_owned() };
        let names = Names { place, suffix: String::new() };
        let leftover = Leftover { in_use: "/d/f.1.tmp".to_owned(), names, counter: 1, settled: 0 };
        let encoder = Encoder::new(Format::Text { append_newline: true }, |event| event.headers().collect(), [0; 16]);
        let now = Instant::now();
        let mut file = OpenFile::new(leftover, encoder, now);
        let mut batch = EventBatch::new();
        batch.push_body(b"one");
        for seq in [5, 6, 9] {
            assert_eq!(file.add(seq, batch.get(0), now, 0).unwrap(), 4);
        }
        file.cut(Vec::new());
        file.add(10, batch.get(0), now, 0).unwrap();
        assert!(file.has_full_part());
        assert_eq!(file.fly(), Bytes::from_static(b"one\none\none\n"));
        assert_eq!(file.flying.ranges, [SeqRange::new(5, 7), SeqRange::new(9, 10)]);
        assert_eq!((file.flying.events, file.flying.bytes, file.waiting.events), (3, 12, 1));
        file.cut(Vec::new());
        file.add(11, batch.get(0), now, 0).unwrap();
        assert_eq!((file.events, file.body_bytes, file.buffered_bytes()), (5, 15, 4));
        let held: Vec<_> = file.take_held().into_iter().map(|held| (held.ranges, held.bytes)).collect();
        let range = |start, end| vec![SeqRange::new(start, end)];
        let flown = vec![SeqRange::new(5, 7), SeqRange::new(9, 10)];
        assert_eq!(held, [(flown, 12), (range(10, 11), 4), (range(11, 12), 4)]);
    }
}
