//! The stores, each with the settings under which a commit that returned survives a power cut.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use channel::Channel as _;

/// A store by name.
pub(crate) struct Peer {
    pub(crate) name: &'static str,
    pub(crate) open: fn(&Path) -> Result<Box<dyn Store>, String>,
}

/// An open store that several threads put into.
pub(crate) trait Store: Sync {
    fn producer(&self) -> Result<Box<dyn Producer + '_>, String>;

    /// A consumer that has up to so many transactions on their way.
    fn consumer(&self, _in_flight: usize) -> Result<Box<dyn Consumer + '_>, String> {
        Err("a store, and no queue: nothing takes from it".to_owned())
    }
}

/// One connection.
pub(crate) trait Producer {
    /// Makes all of `events` durable as one transaction, under the keys from `first_key` on where a store has keys.
    fn commit(&mut self, first_key: u64, events: &[Vec<u8>]) -> Result<(), String>;
}

/// Whoever takes.
pub(crate) trait Consumer {
    /// Takes up to so many events; returns how many became durably gone meanwhile, these or earlier ones. `None` when none
    /// came for a while and all that were taken are gone.
    fn take(&mut self, events: usize) -> Result<Option<usize>, String>;
}

pub(crate) static PEERS: &[Peer] = &[
    Peer { name: "penstock", open: penstock },
    Peer { name: "penstock-warm", open: penstock_warm },
    Peer { name: "sqlite-wal", open: sqlite },
    Peer { name: "fjall", open: fjall },
    Peer { name: "redb", open: redb },
    Peer { name: "okaywal", open: okaywal },
    #[cfg(feature = "raft-engine")]
    Peer { name: "raft-engine", open: crate::raft_engine::open },
    #[cfg(feature = "rocksdb")]
    Peer { name: "rocksdb", open: crate::rocksdb::open },
];

pub(crate) fn said(error: impl std::fmt::Display) -> String {
    error.to_string()
}

struct Penstock(channel::DurableChannel);

/// Set for a store whose system calls are counted: a ring's writes are not calls, those of its threads are, and are the same.
pub(crate) const COUNTED: &str = "PENSTOCK_PEERS_COUNTED";

/// Bytes that the log of [`penstock_warm`] has written before: what a second and a half of the fastest disk take.
const WARM: u64 = 4 << 30;
/// Batches on their way while it is filled.
const FILLING: usize = 8;
const FILL_BATCH: usize = 1000;
const FILL_EVENT: usize = 1024;
const TAKE_BYTES: usize = 16 << 20;
const TAKE_WAIT: Duration = Duration::from_millis(200);

fn penstock_with(dir: &Path, pool_bytes: Option<u64>) -> Result<channel::DurableChannel, String> {
    let mut options = channel::DurableOptions::new("peer", vec![dir.join("data")]);
    options.capacity = u64::MAX / 2;
    options.backend = std::env::var_os(COUNTED).map(|_| wal::io::real::Backend::Direct);
    options.pool_bytes = pool_bytes.unwrap_or(options.pool_bytes);
    channel::DurableChannel::open(options, &channel::Devices::new()).map_err(said)
}

/// A new channel, whose log files are written with zeros before they are used.
fn penstock(dir: &Path) -> Result<Box<dyn Store>, String> {
    Ok(Box::new(Penstock(penstock_with(dir, None)?)))
}

/// A channel that has run for a while: its log files are there, and are written again.
fn penstock_warm(dir: &Path) -> Result<Box<dyn Store>, String> {
    let store = Penstock(penstock_with(dir, Some(WARM + WARM / 4))?);
    if std::env::var_os(COUNTED).is_none() {
        let events = crate::load::noise(FILL_BATCH, FILL_EVENT);
        let (mut producer, mut filling) = (store.0.producer(), VecDeque::new());
        for _ in 0..WARM / (FILL_BATCH * FILL_EVENT) as u64 {
            filling.push_back(producer.put(batch_of(&events)));
            if filling.len() > FILLING {
                filling.pop_front().map(channel::Ticket::wait).transpose().map_err(said)?;
            }
        }
        filling.into_iter().try_for_each(|ticket| ticket.wait().map(drop)).map_err(said)?;
        let mut consumer = store.consumer(FILLING)?;
        while consumer.take(10 * FILL_BATCH)?.is_some() {}
    }
    Ok(Box::new(store))
}

impl Store for Penstock {
    fn producer(&self) -> Result<Box<dyn Producer + '_>, String> {
        Ok(Box::new(PenstockProducer(self.0.producer())))
    }

    fn consumer(&self, in_flight: usize) -> Result<Box<dyn Consumer + '_>, String> {
        Ok(Box::new(PenstockConsumer { consumer: self.0.consumer("peer"), in_flight, settling: VecDeque::new() }))
    }
}

struct PenstockProducer(Box<dyn channel::Producer>);

impl Producer for PenstockProducer {
    fn commit(&mut self, _first_key: u64, events: &[Vec<u8>]) -> Result<(), String> {
        self.0.put_and_wait(batch_of(events)).map(drop).map_err(said)
    }
}

fn batch_of(events: &[Vec<u8>]) -> channel::EventBatch {
    let bytes = events.iter().map(|event| event.len() + 1).sum();
    let mut batch = channel::EventBatch::with_capacity(events.len(), bytes);
    events.iter().for_each(|event| batch.push_body(event));
    batch
}

struct PenstockConsumer {
    consumer: Box<dyn channel::Consumer>,
    in_flight: usize,
    /// Events of each lease whose settlement is not yet durable.
    settling: VecDeque<(usize, channel::Ticket<Result<(), channel::SettleError>>)>,
}

impl Consumer for PenstockConsumer {
    fn take(&mut self, events: usize) -> Result<Option<usize>, String> {
        let limits = channel::TakeLimits { events, bytes: TAKE_BYTES };
        let lease = self.consumer.take(limits, TAKE_WAIT).wait().map_err(said)?;
        let came = lease.event_count();
        if came > 0 {
            let bytes: usize = lease.iter().map(|(_, event)| event.body().len()).sum();
            std::hint::black_box(bytes);
            let settled = self.consumer.settle(vec![channel::Settlement::delivered(lease.ranges())]);
            self.settling.push_back((came, settled));
        }
        let left = if came > 0 { self.in_flight - 1 } else { 0 };
        let mut gone = None;
        while self.settling.len() > left
            && let Some((events, settled)) = self.settling.pop_front()
        {
            settled.wait().map_err(said)?;
            gone = Some(gone.unwrap_or(0) + events);
        }
        Ok(if came > 0 { gone.or(Some(0)) } else { gone })
    }
}

/// A connection for each producer; SQLite lets one write at a time, the others wait.
struct Sqlite(std::path::PathBuf);

fn sqlite_connection(path: &Path) -> Result<rusqlite::Connection, String> {
    let connection = rusqlite::Connection::open(path).map_err(said)?;
    connection.busy_timeout(std::time::Duration::from_secs(60)).map_err(said)?;
    // FULL syncs the log at each commit; NORMAL, its usual companion, does not.
    connection.pragma_update(None, "journal_mode", "wal").map_err(said)?;
    connection.pragma_update(None, "synchronous", "full").map_err(said)?;
    Ok(connection)
}

fn sqlite(dir: &Path) -> Result<Box<dyn Store>, String> {
    let path = dir.join("db");
    let table = "create table if not exists events (key integer primary key, body blob not null)";
    sqlite_connection(&path)?.execute(table, ()).map_err(said)?;
    Ok(Box::new(Sqlite(path)))
}

impl Store for Sqlite {
    fn producer(&self) -> Result<Box<dyn Producer + '_>, String> {
        Ok(Box::new(SqliteProducer(sqlite_connection(&self.0)?)))
    }
}

struct SqliteProducer(rusqlite::Connection);

impl Producer for SqliteProducer {
    fn commit(&mut self, first_key: u64, events: &[Vec<u8>]) -> Result<(), String> {
        let transaction = self.0.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate).map_err(said)?;
        {
            let mut insert = transaction.prepare_cached("insert into events values (?, ?)").map_err(said)?;
            for (key, event) in (first_key..).zip(events) {
                insert.execute((key as i64, event)).map_err(said)?;
            }
        }
        transaction.commit().map_err(said)
    }
}

struct Fjall(fjall::Database, fjall::Keyspace);

fn fjall(dir: &Path) -> Result<Box<dyn Store>, String> {
    let database = fjall::Database::builder(dir.join("db")).open().map_err(said)?;
    let keyspace = database.keyspace("events", fjall::KeyspaceCreateOptions::default).map_err(said)?;
    Ok(Box::new(Fjall(database, keyspace)))
}

impl Store for Fjall {
    fn producer(&self) -> Result<Box<dyn Producer + '_>, String> {
        Ok(Box::new(FjallProducer(self)))
    }
}

struct FjallProducer<'a>(&'a Fjall);

impl Producer for FjallProducer<'_> {
    fn commit(&mut self, first_key: u64, events: &[Vec<u8>]) -> Result<(), String> {
        let mut batch = self.0.0.batch().durability(Some(fjall::PersistMode::SyncData));
        for (key, event) in (first_key..).zip(events) {
            batch.insert(&self.0.1, key.to_be_bytes(), event.as_slice());
        }
        batch.commit().map_err(said)
    }
}

struct Redb(redb::Database);

const EVENTS: redb::TableDefinition<'_, u64, &[u8]> = redb::TableDefinition::new("events");

fn redb(dir: &Path) -> Result<Box<dyn Store>, String> {
    Ok(Box::new(Redb(redb::Database::create(dir.join("db")).map_err(said)?)))
}

impl Store for Redb {
    fn producer(&self) -> Result<Box<dyn Producer + '_>, String> {
        Ok(Box::new(RedbProducer(self)))
    }
}

struct RedbProducer<'a>(&'a Redb);

impl Producer for RedbProducer<'_> {
    fn commit(&mut self, first_key: u64, events: &[Vec<u8>]) -> Result<(), String> {
        // Its default durability is the one that survives: said here, so that another default would not go unnoticed.
        let mut write = self.0.0.begin_write().map_err(said)?;
        write.set_durability(redb::Durability::Immediate).map_err(said)?;
        {
            let mut table = write.open_table(EVENTS).map_err(said)?;
            for (key, event) in (first_key..).zip(events) {
                table.insert(key, event.as_slice()).map_err(said)?;
            }
        }
        write.commit().map_err(said)
    }
}

struct OkayWal(Arc<okaywal::WriteAheadLog>);

fn okaywal(dir: &Path) -> Result<Box<dyn Store>, String> {
    let log = okaywal::WriteAheadLog::recover(dir.join("log"), okaywal::LogVoid).map_err(said)?;
    Ok(Box::new(OkayWal(Arc::new(log))))
}

impl Store for OkayWal {
    fn producer(&self) -> Result<Box<dyn Producer + '_>, String> {
        Ok(Box::new(OkayWalProducer(&self.0)))
    }
}

struct OkayWalProducer<'a>(&'a okaywal::WriteAheadLog);

impl Producer for OkayWalProducer<'_> {
    fn commit(&mut self, _first_key: u64, events: &[Vec<u8>]) -> Result<(), String> {
        let mut entry = self.0.begin_entry().map_err(said)?;
        for event in events {
            entry.write_chunk(event).map_err(said)?;
        }
        entry.commit().map(drop).map_err(said)
    }
}
