//! The store's rules on a real HDFS: nothing is overwritten, a crashed writer's file is recovered, cut and published, a
//! dying DataNode costs a deadline and not the test, and Java reads what was written.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use channel::{EventBatch, EventRef};
use store::fs::{Store, StoreError, Then};
use store::hdfs::{HadoopConfig, HdfsFiles, HdfsSettings, io_runtime};
use store::sequence_file::ValueClass;
use store::serializer::{Encoder, Format};
use system_tests::hdfs::Hdfs;

fn store(hdfs: &Hdfs, deadline: Duration) -> Store {
    let hadoop = HadoopConfig::read(&[hdfs.configuration()]).expect("read Hadoop's files");
    let settings = HdfsSettings { authority: String::new(), hadoop, principal: None, keytab: None };
    let files = HdfsFiles::connect(settings).expect("make a client");
    Store::new(Arc::new(files), io_runtime().expect("start the runtime"), deadline)
}

async fn recover(store: &Store, path: &str) {
    for _ in 0..120 {
        if store.recover_lease(path).await.expect("recover a lease") {
            return;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    panic!("the lease of {path} is not recovered after a minute");
}

/// Writes a file, under another name each time it fails: for seconds the NameNode goes on naming a dead DataNode.
async fn write_some_file(store: &Store, bytes: Bytes) -> String {
    for attempt in 0..30 {
        let path = format!("/logs/seq{attempt}");
        let mut writer = store.create(&path).await.expect("create");
        match writer.append(bytes.clone(), Then::Close).await {
            Ok(_) => return path,
            Err(error) => eprintln!("{error}"),
        }
        drop(writer);
        recover(store, &path).await;
        store.delete(&path).await.expect("delete");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    panic!("no file could be written in thirty tries");
}

fn headers(event: EventRef<'_>) -> Vec<(&str, &str)> {
    event.headers().collect()
}

#[tokio::test]
async fn the_store_keeps_its_rules_on_a_real_hdfs() {
    let mut hdfs = Hdfs::start(3);
    let store = store(&hdfs, Duration::from_secs(20));

    // Synced bytes are seen by others; names are taken once.
    let mut writer = store.create("/logs/a.tmp").await.expect("create");
    assert_eq!(writer.append(Bytes::from_static(b"one\n"), Then::Sync).await.expect("sync"), 4);
    assert_eq!(store.length("/logs/a.tmp").await.expect("length"), Some(4));
    assert!(matches!(store.create("/logs/a.tmp").await, Err(StoreError::AlreadyExists { .. })));
    writer.append(Bytes::from_static(b"two\n"), Then::Close).await.expect("close");
    store.rename("/logs/a.tmp", "/logs/a").await.expect("rename");
    let mut second = store.create("/logs/b").await.expect("create");
    second.append(Bytes::from_static(b"b"), Then::Close).await.expect("close");
    let error = store.rename("/logs/b", "/logs/a").await.expect_err("never overwrites");
    assert_eq!(error, StoreError::AlreadyExists { path: "/logs/a".to_owned() });
    assert_eq!(hdfs.read("/logs/a"), b"one\ntwo\n");
    assert!(matches!(store.create(&format!("/{}", "x".repeat(256))).await, Err(StoreError::Rejected { .. })));
    assert!(matches!(store.create("/logs/a/below").await, Err(StoreError::Rejected { .. })));

    // A writer that is gone: its lease is recovered, what was not settled is cut away, twice without harm.
    let mut crashed = store.create("/logs/c.tmp").await.expect("create");
    crashed.append(Bytes::from_static(b"settled\n"), Then::Sync).await.expect("sync");
    crashed.append(Bytes::from_static(b"not settled, and to"), Then::Sync).await.expect("sync");
    drop(crashed);
    recover(&store, "/logs/c.tmp").await;
    let cut = store.cut("/logs/c.tmp", 8).await.expect("cut");
    assert_eq!(store.cut("/logs/c.tmp", 8).await.expect("cut again"), cut);
    assert_eq!(store.length("/logs/c.tmp").await.expect("length"), None);
    store.rename(&cut.path, "/logs/c").await.expect("rename");
    assert_eq!(hdfs.read("/logs/c"), b"settled\n");

    // A DataNode dies under a writer: within the deadline the sync succeeds with fewer copies, or the file is poison.
    let mut writer = store.create("/logs/d.tmp").await.expect("create");
    writer.append(Bytes::from_static(b"before\n"), Then::Sync).await.expect("sync");
    hdfs.kill_data_node(0);
    let mut length = 7;
    let mut failed = false;
    for _ in 0..5 {
        match writer.append(Bytes::from_static(b"after\n"), Then::Sync).await {
            Ok(now) => length = now,
            Err(error) => {
                eprintln!("the writer failed as it may: {error}");
                failed = true;
                break;
            }
        }
    }
    if failed {
        assert!(matches!(writer.append(Bytes::new(), Then::Sync).await, Err(StoreError::Poisoned { .. })));
        drop(writer);
        recover(&store, "/logs/d.tmp").await;
    } else {
        writer.append(Bytes::new(), Then::Close).await.expect("close");
    }
    let cut = store.cut("/logs/d.tmp", length).await.expect("cut");
    assert_eq!(hdfs.read(&cut.path).len() as u64, length);
    hdfs.restart_data_node(0);
    hdfs.await_all_live();

    // Java's reader takes the SequenceFile, with its escapes.
    let mut encoder = Encoder::new(Format::SequenceFile(ValueClass::Text), headers, [0xA5; 16]);
    let mut file = Vec::new();
    encoder.start(&mut file);
    let mut expected = String::new();
    for number in 0..500 {
        let mut batch = EventBatch::new();
        let (key, body) = (1_334_315_471_123_i64 + number, format!("line {number} grüße"));
        batch.push([("timestamp", key.to_string().as_str())], body.as_bytes());
        encoder.event(batch.get(0), 0, &mut file).expect("encode");
        expected.push_str(&format!("{key}\t{body}\n"));
    }
    let path = write_some_file(&store, Bytes::from(file)).await;
    let output = hdfs.tool("org.apache.hadoop.fs.FsShell", &["-text", &path]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected, "{}", String::from_utf8_lossy(&output.stderr));

    hdfs.await_none_open(Duration::from_secs(30));
}
