//! The sink over a real directory.

use std::path::Path;

use channel::{Channel, EventBatch, MemoryChannel, MemoryOptions};

use super::*;
use crate::component::Stopper;

struct Rig {
    directory: tempfile::TempDir,
    channel: Arc<dyn Channel>,
    consumer: Box<dyn Consumer>,
    context: SinkContext,
    _stopper: Stopper,
    sink: Box<FileRollSink>,
}

impl Rig {
    async fn new(lines: &[(&str, &str)]) -> Rig {
        let directory = tempfile::tempdir().unwrap();
        let out = directory.path().join("made/out");
        let mut all = vec![("sink.directory", out.to_str().unwrap())];
        all.extend_from_slice(lines);
        let settings = Settings::of("sinks.k1", keys::KEYS, &all);
        settings.check(&[]);
        let plan = keys::plan(&settings).unwrap_or_else(|_| panic!("{:?}", settings.take_findings()));
        let channel: Arc<dyn Channel> = Arc::new(MemoryChannel::new(MemoryOptions::default()).unwrap());
        let (context, stopper) = SinkContext::over(Arc::clone(&channel));
        let mut sink = Box::new(FileRollSink::new(plan));
        sink.start(&context).await.unwrap();
        let consumer = channel.consumer("k1");
        Rig { directory, channel, consumer, context, _stopper: stopper, sink }
    }

    async fn put(&self, bodies: &[&str]) {
        let mut batch = EventBatch::new();
        bodies.iter().for_each(|body| batch.push([("k", "v"), ("n", "w")], body.as_bytes()));
        self.channel.producer().put(batch).await.unwrap();
    }

    async fn process(&mut self) -> Result<Progress, SinkError> {
        self.sink.process(&self.context, &mut *self.consumer).await
    }

    fn out(&self) -> PathBuf {
        self.directory.path().join("made/out")
    }

    fn files(&self) -> Vec<String> {
        contents(&self.out())
    }
}

/// Contents in the order of the names.
fn contents(directory: &Path) -> Vec<String> {
    let mut paths: Vec<_> = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| String::from_utf8_lossy(&std::fs::read(path).unwrap()).into_owned()).collect()
}

#[tokio::test]
async fn what_is_settled_is_in_the_file() {
    let mut rig = Rig::new(&[("sink.rollInterval", "0"), ("sink.batchSize", "2")]).await;
    assert!(rig.files().is_empty(), "no file before the first event");
    rig.put(&["one", "two", "three"]).await;
    assert_eq!(rig.process().await, Ok(Progress::Worked));
    assert_eq!((rig.files(), rig.channel.stats().size_events), (vec!["one\ntwo\n".to_owned()], 1));
    assert_eq!(rig.process().await, Ok(Progress::Worked));
    assert_eq!((rig.files(), rig.channel.stats().size_events), (vec!["one\ntwo\nthree\n".to_owned()], 0));
    assert_eq!(rig.context.counters.event_drain_success.get(), 3);
}

#[tokio::test]
async fn headers_are_written_in_the_order_of_flume() {
    let mut rig = Rig::new(&[("sink.serializer", "header_and_text")]).await;
    rig.put(&["one"]).await;
    rig.process().await.unwrap();
    assert_eq!(rig.files(), ["{n=w, k=v} one\n"]);
}

#[tokio::test]
async fn an_avro_file_ends_with_a_whole_block_after_every_commit() {
    let mut rig = Rig::new(&[("sink.serializer", "AVRO_EVENT")]).await;
    for body in ["one", "two"] {
        rig.put(&[body]).await;
        rig.process().await.unwrap();
        let path = std::fs::read_dir(rig.out()).unwrap().next().unwrap().unwrap().path();
        let bytes = std::fs::read(path).unwrap();
        assert!(bytes.starts_with(b"Obj\x01"));
        let head = bytes.windows(7).position(|window| window == b"\"bytes\"").unwrap();
        let marker = &bytes[bytes.len() - 16..];
        let blocks = bytes[head..].windows(16).filter(|window| *window == marker).count();
        // The header ends with the marker as well.
        assert_eq!(blocks, if body == "one" { 2 } else { 3 });
        assert!(bytes.windows(3).any(|window| window == body.as_bytes()));
    }
}

#[tokio::test]
async fn a_new_file_begins_when_the_interval_is_over() {
    let mut rig = Rig::new(&[("sink.rollInterval", "3600")]).await;
    rig.put(&["one"]).await;
    rig.process().await.unwrap();
    rig.sink.open.as_mut().unwrap().roll_at = Some(Instant::now());
    rig.put(&["two"]).await;
    rig.process().await.unwrap();
    assert_eq!(rig.files(), ["one\n", "two\n"]);
    assert_eq!((rig.context.counters.connection_created.get(), rig.context.counters.connection_closed.get()), (2, 1));
}

#[tokio::test]
async fn a_file_that_is_there_already_is_never_overwritten() {
    let mut rig = Rig::new(&[("sink.pathManager.prefix", "p-"), ("sink.pathManager.extension", "log")]).await;
    rig.sink.plan.names = Names::by_start("p-", "log", 7);
    std::fs::write(rig.out().join("p-7-1.log"), "precious").unwrap();
    rig.put(&["one"]).await;
    rig.process().await.unwrap();
    assert_eq!(rig.files(), ["precious", "one\n"]);
    assert!(rig.out().join("p-7-2.log").exists());
}

#[tokio::test]
async fn events_that_could_not_be_written_return_to_the_channel() {
    let mut rig = Rig::new(&[]).await;
    std::fs::remove_dir(rig.out()).unwrap();
    std::fs::write(rig.out(), "not a directory").unwrap();
    rig.put(&["one"]).await;
    let error = rig.process().await.unwrap_err();
    assert!(error.to_string().contains("made/out"), "{error}");
    assert_eq!(rig.channel.stats().size_events, 1);
    std::fs::remove_file(rig.out()).unwrap();
    assert_eq!(rig.process().await, Ok(Progress::Worked));
    assert_eq!((rig.files(), rig.channel.stats().size_events), (vec!["one\n".to_owned()], 0));
}

#[test]
fn what_is_not_built_is_refused_by_name() {
    let refusal = |line: (&str, &str)| {
        let lines = [("sink.directory", "/tmp"), line];
        let settings = Settings::of("sinks.k1", keys::KEYS, &lines);
        assert!(keys::plan(&settings).is_err(), "{line:?}");
        settings.take_findings()[0].to_string()
    };
    assert!(refusal(("sink.serializer", "com.example.Mine")).contains("com.example.Mine is not built"));
    assert!(refusal(("sink.pathManager", "com.example.Mine")).contains("com.example.Mine is not built"));
    assert!(refusal(("sink.pathManager.prefix", "../x")).contains("names another directory"));
}
