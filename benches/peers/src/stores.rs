//! The stores, each with the settings under which a commit that returned survives a power cut.

use std::path::Path;
use std::sync::Arc;

use channel::Channel as _;

/// A store by name.
pub(crate) struct Peer {
    pub(crate) name: &'static str,
    pub(crate) open: fn(&Path) -> Result<Box<dyn Store>, String>,
}

/// An open store that several threads put into.
pub(crate) trait Store: Sync {
    fn producer(&self) -> Result<Box<dyn Producer + '_>, String>;
}

/// One connection.
pub(crate) trait Producer {
    /// Makes all of `events` durable as one transaction, under the keys from `first_key` on where a store has keys.
    fn commit(&mut self, first_key: u64, events: &[Vec<u8>]) -> Result<(), String>;
}

pub(crate) static PEERS: &[Peer] = &[
    Peer { name: "penstock", open: penstock },
    Peer { name: "sqlite-wal", open: sqlite },
    Peer { name: "fjall", open: fjall },
    Peer { name: "redb", open: redb },
    Peer { name: "okaywal", open: okaywal },
];

fn said(error: impl std::fmt::Display) -> String {
    error.to_string()
}

struct Penstock(channel::DurableChannel);

/// Set for a store whose system calls are counted: a ring's writes are not calls, those of its threads are, and are the same.
pub(crate) const COUNTED: &str = "PENSTOCK_PEERS_COUNTED";

fn penstock(dir: &Path) -> Result<Box<dyn Store>, String> {
    let mut options = channel::DurableOptions::new("peer", vec![dir.join("data")]);
    options.capacity = u64::MAX / 2;
    options.backend = std::env::var_os(COUNTED).map(|_| wal::io::real::Backend::Direct);
    Ok(Box::new(Penstock(channel::DurableChannel::open(options, &channel::Devices::new()).map_err(said)?)))
}

impl Store for Penstock {
    fn producer(&self) -> Result<Box<dyn Producer + '_>, String> {
        Ok(Box::new(PenstockProducer(self.0.producer())))
    }
}

struct PenstockProducer(Box<dyn channel::Producer>);

impl Producer for PenstockProducer {
    fn commit(&mut self, _first_key: u64, events: &[Vec<u8>]) -> Result<(), String> {
        let bytes = events.iter().map(|event| event.len() + 1).sum();
        let mut batch = channel::EventBatch::with_capacity(events.len(), bytes);
        events.iter().for_each(|event| batch.push_body(event));
        self.0.put(batch).wait().map(drop).map_err(said)
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
