//! raft-engine, the log that TiKV keeps its Raft entries in: each producer is a Raft group, each event an entry of it.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use protobuf::well_known_types::BytesValue;
use raft_engine::{Config, Engine, LogBatch, MessageExt, ReadableSize};

use crate::stores::{Producer, Store, said};

/// An entry says its own index: eight bytes before the event.
struct Entries;

const INDEX_LEN: usize = 8;

impl MessageExt for Entries {
    type Entry = BytesValue;

    fn index(entry: &BytesValue) -> u64 {
        entry.value.first_chunk().copied().map_or(0, u64::from_le_bytes)
    }
}

struct RaftEngine {
    engine: Engine,
    groups: AtomicU64,
}

pub(crate) fn open(dir: &Path) -> Result<Box<dyn Store>, String> {
    let config = Config {
        dir: dir.join("log").display().to_string(),
        // The events are noise, which it would try to compress, and the channel compresses nothing unless it is told to.
        batch_compression_threshold: ReadableSize(0),
        ..Config::default()
    };
    Ok(Box::new(RaftEngine { engine: Engine::open(config).map_err(said)?, groups: AtomicU64::new(1) }))
}

impl Store for RaftEngine {
    fn producer(&self) -> Result<Box<dyn Producer + '_>, String> {
        let group = self.groups.fetch_add(1, Ordering::Relaxed);
        Ok(Box::new(RaftEngineProducer { engine: &self.engine, group, next: 1, batch: LogBatch::default() }))
    }
}

struct RaftEngineProducer<'a> {
    engine: &'a Engine,
    group: u64,
    next: u64,
    batch: LogBatch,
}

impl Producer for RaftEngineProducer<'_> {
    fn commit(&mut self, _first_key: u64, events: &[Vec<u8>]) -> Result<(), String> {
        let entry = |(index, event): (u64, &Vec<u8>)| {
            let mut value = Vec::with_capacity(INDEX_LEN + event.len());
            value.extend_from_slice(&index.to_le_bytes());
            value.extend_from_slice(event);
            BytesValue { value, ..BytesValue::default() }
        };
        let entries: Vec<BytesValue> = (self.next..).zip(events).map(entry).collect();
        self.batch.add_entries::<Entries>(self.group, &entries).map_err(said)?;
        self.next += entries.len() as u64;
        self.engine.write(&mut self.batch, true).map(drop).map_err(said)
    }
}
