//! Stories about the sink, on local files, with a channel that keeps notes over a "crash" and a disk that can fail.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use channel::{
    Channel, ChannelStats, Consumer, EventBatch, Lease, MemoryChannel, MemoryOptions, NoteUpdate, Producer,
    SettleError, Settlement, TakeError, TakeLimits, Ticket,
};
use store::fs::{CutFile, FileSystem, RawFile, Store, StoreError, StoreFuture};
use store::local::LocalFiles;
use tempfile::TempDir;
use tokio::runtime::Handle;

use super::keys::{KEYS, Plan};
use super::read_notes;
use super::writing::Writing;
use crate::component::{BoxFuture, DeadLetters, Settings, SinkContext, SinkError, Stopper};

/// A memory channel whose notes outlive the sink, as those of a durable channel do.
struct Noting {
    memory: MemoryChannel,
    notes: Arc<Mutex<BTreeMap<String, Bytes>>>,
}

struct NotingConsumer {
    inner: Box<dyn Consumer>,
    notes: Arc<Mutex<BTreeMap<String, Bytes>>>,
}

impl NotingConsumer {
    fn keep(&self, updates: Vec<NoteUpdate>) {
        let mut notes = self.notes.lock().unwrap();
        for update in updates {
            match update.note {
                Some(note) => notes.insert(update.key, note),
                None => notes.remove(&update.key),
            };
        }
    }
}

impl Channel for Noting {
    fn producer(&self) -> Box<dyn Producer> {
        self.memory.producer()
    }
    fn consumer(&self, name: &str) -> Box<dyn Consumer> {
        Box::new(NotingConsumer { inner: self.memory.consumer(name), notes: Arc::clone(&self.notes) })
    }
    fn notes(&self, _: &str) -> Vec<(String, Bytes)> {
        self.notes.lock().unwrap().clone().into_iter().collect()
    }
    fn is_durable(&self) -> bool {
        true
    }
    fn transaction_capacity(&self) -> usize {
        self.memory.transaction_capacity()
    }
    fn stats(&self) -> ChannelStats {
        self.memory.stats()
    }
    fn close(&self) -> Ticket<Result<(), String>> {
        self.memory.close()
    }
}

impl Consumer for NotingConsumer {
    fn take(&mut self, limits: TakeLimits, wait: Duration) -> Ticket<Result<Lease, TakeError>> {
        self.inner.take(limits, wait)
    }
    fn settle(&mut self, settlements: Vec<Settlement>) -> Ticket<Result<(), SettleError>> {
        self.keep(settlements.iter().flat_map(|settlement| settlement.notes.clone()).collect());
        self.inner.settle(settlements)
    }
    fn note(&mut self, notes: Vec<NoteUpdate>) -> Ticket<Result<(), SettleError>> {
        self.keep(notes);
        Ticket::resolved(Ok(()))
    }
}

/// Local files of which each sync fails while `failing` is set, and each rename while `stuck` is.
struct Faulty {
    files: LocalFiles,
    failing: Arc<AtomicBool>,
    stuck: Arc<AtomicBool>,
}

struct FaultyFile(Box<dyn RawFile>, Arc<AtomicBool>);

type Call<'a> = Pin<Box<dyn Future<Output = Result<(), StoreError>> + Send + 'a>>;

impl RawFile for FaultyFile {
    fn write(&mut self, bytes: Bytes) -> Call<'_> {
        self.0.write(bytes)
    }
    fn sync(&mut self) -> Call<'_> {
        if self.1.load(Ordering::SeqCst) {
            let cause = "input/output error".to_owned();
            return Box::pin(async move { Err(StoreError::Failed { call: "sync", path: "/f".to_owned(), cause }) });
        }
        self.0.sync()
    }
    fn close(&mut self) -> Call<'_> {
        self.0.close()
    }
}

impl FileSystem for Faulty {
    fn describe(&self) -> String {
        "file".to_owned()
    }
    fn create(&self, path: &str) -> StoreFuture<Box<dyn RawFile>> {
        let (created, failing) = (self.files.create(path), Arc::clone(&self.failing));
        Box::pin(async move { Ok(Box::new(FaultyFile(created.await?, failing)) as Box<dyn RawFile>) })
    }
    fn rename(&self, from: &str, to: &str) -> StoreFuture<()> {
        if self.stuck.load(Ordering::SeqCst) {
            let (path, cause) = (from.to_owned(), "safe mode".to_owned());
            return Box::pin(async move { Err(StoreError::Failed { call: "rename", path, cause }) });
        }
        self.files.rename(from, to)
    }
    fn length(&self, path: &str) -> StoreFuture<Option<u64>> {
        self.files.length(path)
    }
    fn recover_lease(&self, path: &str) -> StoreFuture<bool> {
        self.files.recover_lease(path)
    }
    fn cut(&self, path: &str, length: u64) -> StoreFuture<CutFile> {
        self.files.cut(path, length)
    }
    fn list(&self, directory: &str) -> StoreFuture<Vec<String>> {
        self.files.list(directory)
    }
    fn delete(&self, path: &str) -> StoreFuture<bool> {
        self.files.delete(path)
    }
    fn make_directories(&self, path: &str) -> StoreFuture<()> {
        self.files.make_directories(path)
    }
}

#[derive(Default)]
struct Graves(Mutex<Vec<(String, usize)>>);

impl DeadLetters for Graves {
    fn bury(&self, events: EventBatch, reason: &str) -> BoxFuture<'static, Result<(), String>> {
        self.0.lock().unwrap().push((reason.to_owned(), events.len()));
        Box::pin(async { Ok(()) })
    }
}

struct World {
    root: TempDir,
    context: SinkContext,
    consumer: Box<dyn Consumer>,
    channel: Arc<dyn Channel>,
    failing: Arc<AtomicBool>,
    stuck: Arc<AtomicBool>,
    _stopper: Stopper,
}

/// Flume's defaults are for tiny files; these have no rolls and sync at once.
const QUIET: [(&str, &str); 5] = [
    ("hdfs.fileType", "DataStream"),
    ("hdfs.rollInterval", "0"),
    ("hdfs.rollSize", "0"),
    ("hdfs.rollCount", "0"),
    ("hdfs.syncInterval", "1"),
];

impl World {
    fn new(durable: bool) -> World {
        let options = MemoryOptions { capacity: 10_000, transaction_capacity: 1000, ..MemoryOptions::default() };
        let memory = MemoryChannel::new(options).unwrap();
        let channel: Arc<dyn Channel> =
            if durable { Arc::new(Noting { memory, notes: Arc::default() }) } else { Arc::new(memory) };
        let (context, stopper) = SinkContext::over(Arc::clone(&channel));
        let consumer = channel.consumer("k1");
        let root = tempfile::tempdir().unwrap();
        World { root, context, consumer, channel, failing: Arc::default(), stuck: Arc::default(), _stopper: stopper }
    }

    fn sink(&self, path: &str, lines: &[(&str, &str)]) -> Writing {
        let path = format!("file://{}/{path}", self.root.path().display());
        let mut all = vec![("hdfs.path", path.as_str())];
        all.extend_from_slice(lines);
        all.extend(QUIET.iter().filter(|(name, _)| lines.iter().all(|(given, _)| given != name)));
        let plan = Plan::read(&Settings::of("sinks.k1", KEYS, &all)).unwrap();
        let files =
            Faulty { files: LocalFiles::new(4), failing: Arc::clone(&self.failing), stuck: Arc::clone(&self.stuck) };
        let store = Store::new(Arc::new(files), Handle::current(), Duration::from_secs(30));
        let leftovers = read_notes(&self.context, &store.describe());
        Writing::new(plan, store, &self.context, leftovers)
    }

    async fn put(&self, events: &[(&[(&str, &str)], &str)]) {
        let mut batch = EventBatch::new();
        for (headers, body) in events {
            batch.push(headers.iter().copied(), body.as_bytes());
        }
        self.channel.producer().put(batch).await.unwrap();
    }

    async fn put_lines(&self, count: usize) {
        let bodies: Vec<String> = (0..count).map(|number| format!("{number:03}")).collect();
        let events: Vec<(&[(&str, &str)], &str)> = bodies.iter().map(|body| (&[][..], body.as_str())).collect();
        self.put(&events).await;
    }

    /// Rounds until `enough`; errors of rounds are collected.
    async fn drive(&mut self, sink: &mut Writing, mut enough: impl FnMut(&World) -> bool) -> Vec<SinkError> {
        let end = Instant::now() + Duration::from_secs(20);
        let mut errors = Vec::new();
        while !enough(self) {
            assert!(Instant::now() < end, "still not there: {:?}, {errors:?}", self.tree());
            let round = sink.round(&self.context, &mut *self.consumer);
            if let Ok(Err(error)) = tokio::time::timeout(Duration::from_millis(200), round).await {
                errors.push(error);
            }
        }
        errors
    }

    async fn finish(&mut self, sink: Writing) {
        sink.finish(&self.context, &mut *self.consumer, Duration::from_secs(20)).await.unwrap();
    }

    fn delivered(&self) -> u64 {
        self.context.counters.event_drain_success.get()
    }

    /// The sink's process is gone: nothing is finished, and what it had leased returns.
    fn crash(&mut self, sink: Writing) {
        drop(sink);
        self.consumer = self.channel.consumer("k1");
    }

    /// Every file below the root and its content, by name.
    fn tree(&self) -> BTreeMap<String, String> {
        let mut found = BTreeMap::new();
        collect(self.root.path(), self.root.path(), &mut found);
        found
    }

    fn contents(&self) -> Vec<String> {
        self.tree().into_values().collect()
    }
}

fn collect(root: &Path, directory: &Path, found: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(root, &path, found);
        } else {
            // A file may be renamed between the two calls.
            let content = fs::read_to_string(&path).unwrap_or_default();
            found.insert(path.strip_prefix(root).unwrap().display().to_string(), content);
        }
    }
}

fn numbers(tree: &BTreeMap<String, String>) -> Vec<i64> {
    tree.keys().map(|name| name.rsplit('.').next().unwrap().parse().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_roll_before_the_event_that_is_too_many_and_count_up_by_one() {
    let mut world = World::new(false);
    let mut sink = world.sink("", &[("hdfs.rollCount", "3"), ("hdfs.filePrefix", "e")]);
    world.put_lines(10).await;
    world.drive(&mut sink, |world| world.delivered() == 10).await;
    world.finish(sink).await;
    assert_eq!(world.contents(), ["000\n001\n002\n", "003\n004\n005\n", "006\n007\n008\n", "009\n"]);
    let numbers = numbers(&world.tree());
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "{numbers:?}");
    assert_eq!(world.channel.stats().size_events, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_size_that_rolls_is_the_sum_of_bodies() {
    let mut world = World::new(false);
    let mut sink = world.sink("a/b/", &[("hdfs.rollSize", "10")]);
    world.put_lines(6).await;
    world.drive(&mut sink, |world| world.delivered() == 6).await;
    world.finish(sink).await;
    assert_eq!(world.contents(), ["000\n001\n002\n003\n", "004\n005\n"]);
    assert!(world.tree().keys().all(|name| name.starts_with("a/b/FlumeData.")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_file_is_closed_while_nothing_comes_and_the_next_event_opens_another() {
    let mut world = World::new(true);
    let mut sink = world.sink("", &[("hdfs.idleTimeout", "1")]);
    world.put_lines(2).await;
    world.drive(&mut sink, |world| world.tree().keys().any(|name| !name.ends_with(".tmp"))).await;
    world.put_lines(1).await;
    world.drive(&mut sink, |world| world.delivered() == 3).await;
    world.finish(sink).await;
    assert_eq!(world.contents(), ["000\n001\n", "000\n"]);
    assert_eq!(world.channel.notes("k1"), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beyond_the_most_open_files_the_one_unused_for_longest_is_closed() {
    let mut world = World::new(false);
    let mut sink = world.sink("%{a}", &[("hdfs.maxOpenFiles", "2")]);
    for name in ["a", "b", "c", "a", "b"] {
        world.put(&[(&[("a", name)], name)]).await;
    }
    world.drive(&mut sink, |world| world.delivered() == 5).await;
    world.finish(sink).await;
    let tree = world.tree();
    let count = |prefix: &str| tree.keys().filter(|name| name.starts_with(prefix)).count();
    assert_eq!((count("a/"), count("b/"), count("c/")), (2, 2, 1), "{tree:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_crash_the_settled_part_is_published_and_the_rest_comes_again() {
    let mut world = World::new(true);
    let mut sink = world.sink("", &[("hdfs.inUsePrefix", "_")]);
    world.put_lines(5).await;
    world.drive(&mut sink, |world| world.delivered() == 5).await;
    world.crash(sink);
    // Bytes that no settlement names, and a file of somebody else.
    let open = world.tree().into_keys().next().unwrap();
    assert!(open.starts_with('_') && open.ends_with(".tmp"));
    let mut bytes = fs::read(world.root.path().join(&open)).unwrap();
    bytes.extend_from_slice(b"00");
    fs::write(world.root.path().join(&open), bytes).unwrap();
    fs::write(world.root.path().join("_FlumeData.1.tmp"), "another writer's").unwrap();

    let mut sink = world.sink("", &[("hdfs.inUsePrefix", "_")]);
    world.put_lines(1).await;
    world.drive(&mut sink, |world| world.delivered() == 6 && world.channel.notes("k1").len() == 1).await;
    world.finish(sink).await;
    assert_eq!(world.contents(), ["000\n001\n002\n003\n004\n", "000\n", "another writer's"]);
    assert_eq!(world.channel.notes("k1"), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_without_a_settlement_is_discarded_after_a_crash() {
    let mut world = World::new(true);
    let mut sink = world.sink("", &[("hdfs.syncInterval", "600000")]);
    world.put_lines(3).await;
    world.drive(&mut sink, |world| !world.tree().is_empty()).await;
    world.crash(sink);
    assert_eq!(world.channel.notes("k1").len(), 1);
    let mut sink = world.sink("", &[]);
    world.drive(&mut sink, |world| world.delivered() == 3).await;
    world.finish(sink).await;
    assert_eq!(world.contents(), ["000\n001\n002\n"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_sync_returns_its_events_and_they_go_to_a_new_file() {
    let mut world = World::new(true);
    let mut sink = world.sink("", &[]);
    world.put_lines(2).await;
    world.drive(&mut sink, |world| world.delivered() == 2).await;
    world.failing.store(true, Ordering::SeqCst);
    world.put(&[(&[], "again")]).await;
    let failing = Arc::clone(&world.failing);
    let context = world.context.clone();
    let errors = world
        .drive(&mut sink, |world| {
            if context.counters.connection_failed.get() > 0 {
                failing.store(false, Ordering::SeqCst);
            }
            world.delivered() == 3
        })
        .await;
    world.finish(sink).await;
    assert!(errors.iter().any(|error| error.to_string().contains("input/output error")), "{errors:?}");
    assert_eq!(world.contents(), ["000\n001\n", "again\n"]);
    assert_eq!(world.channel.notes("k1"), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_file_that_could_not_be_renamed_is_published_whole_after_a_crash() {
    let mut world = World::new(true);
    let mut sink = world.sink("", &[("hdfs.rollCount", "3"), ("hdfs.syncInterval", "600000")]);
    world.stuck.store(true, Ordering::SeqCst);
    world.put_lines(4).await;
    world.drive(&mut sink, |world| world.delivered() == 3).await;
    world.crash(sink);
    world.stuck.store(false, Ordering::SeqCst);
    let mut sink = world.sink("", &[]);
    world.drive(&mut sink, |world| world.delivered() == 4 && world.channel.notes("k1").len() == 1).await;
    world.finish(sink).await;
    assert_eq!(world.contents(), ["000\n001\n002\n", "003\n"]);
    assert_eq!(world.channel.notes("k1"), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_has_no_path_stays_without_dead_letters_and_is_buried_with_them() {
    let mut world = World::new(false);
    let mut sink = world.sink("%Y", &[("hdfs.batchSize", "1")]);
    world.put(&[(&[], "bad"), (&[("timestamp", "1334315471123")], "good")]).await;
    let mut rounds = 0;
    let errors = world
        .drive(&mut sink, |_| {
            rounds += 1;
            rounds == 10
        })
        .await;
    assert!(errors[0].to_string().contains("timestamp"), "{errors:?}");
    assert_eq!(world.channel.stats().size_events, 2, "nothing is lost, nothing passes by");

    let graves = Arc::new(Graves::default());
    world.context.dead_letters = Some(Arc::clone(&graves) as Arc<dyn DeadLetters>);
    world.drive(&mut sink, |world| world.channel.stats().size_events == 0).await;
    world.finish(sink).await;
    assert_eq!(world.contents(), ["good\n"]);
    let graves = graves.0.lock().unwrap();
    assert!(graves.len() == 1 && graves[0].0.contains("timestamp") && graves[0].1 == 1, "{graves:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_the_store_rejects_becomes_dead_letters_after_three_tries() {
    let mut world = World::new(false);
    fs::write(world.root.path().join("file"), "").unwrap();
    let graves = Arc::new(Graves::default());
    world.context.dead_letters = Some(Arc::clone(&graves) as Arc<dyn DeadLetters>);
    let mut sink = world.sink("%{a}", &[]);
    world.put(&[(&[("a", "file/below")], "never"), (&[("a", "fine")], "good")]).await;
    let errors = world.drive(&mut sink, |world| world.channel.stats().size_events == 0).await;
    world.finish(sink).await;
    assert_eq!(errors.len(), 3, "{errors:?}");
    assert_eq!(graves.0.lock().unwrap().len(), 1);
    assert_eq!(world.contents(), ["", "good\n"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_files_share_one_lease_limit_and_every_event_is_delivered_once() {
    let mut world = World::new(true);
    let mut sink = world.sink("%{a}", &[("hdfs.batchSize", "1000"), ("hdfs.maxLeasedBytes", "1048576")]);
    for batch in 0..4 {
        let names: Vec<String> = (0..500).map(|number| format!("d{number}")).collect();
        let body = format!("{batch}{}", "x".repeat(1000));
        let headers: Vec<[(&str, &str); 1]> = names.iter().map(|name| [("a", name.as_str())]).collect();
        let events: Vec<(&[(&str, &str)], &str)> = headers.iter().map(|one| (&one[..], body.as_str())).collect();
        world.put(&events).await;
    }
    world.drive(&mut sink, |world| world.delivered() == 2000).await;
    world.finish(sink).await;
    let tree = world.tree();
    let directories: HashSet<&str> = tree.keys().filter_map(|name| name.split('/').next()).collect();
    assert_eq!(directories.len(), 500);
    let lines: usize = tree.values().map(|content| content.lines().count()).sum();
    assert_eq!(lines, 2000);
    assert_eq!(world.channel.notes("k1"), []);
}
