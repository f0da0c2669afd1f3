//! The harness checked against itself: what the tests say about Penstock is only worth something when the same events
//! survive the same way through the real Flume and the real HDFS alone.

use std::collections::BTreeMap;
use std::time::Duration;

use system_tests::events::{self, Event};
use system_tests::flume::{FlumeAgent, Protocol, SdkClient};
use system_tests::hdfs::Hdfs;
use system_tests::kdc::MiniKdc;
use system_tests::{avro_file, ports};

#[test]
fn real_flume_carries_the_mix_into_real_hdfs_while_a_data_node_dies() {
    let mut hdfs = Hdfs::start(2);
    let port = ports::free();
    let mut flume = FlumeAgent::start(
        &format!(
            "a1.sources = r1\na1.channels = c1\na1.sinks = k1\n\
             a1.sources.r1.type = avro\na1.sources.r1.bind = 127.0.0.1\na1.sources.r1.port = {port}\na1.sources.r1.channels = c1\n\
             a1.channels.c1.type = memory\na1.channels.c1.capacity = 10000\na1.channels.c1.transactionCapacity = 1000\n\
             a1.sinks.k1.type = hdfs\na1.sinks.k1.channel = c1\na1.sinks.k1.hdfs.path = {}/mix\n\
             a1.sinks.k1.hdfs.fileType = DataStream\na1.sinks.k1.serializer = avro_event\na1.sinks.k1.hdfs.rollInterval = 0\n\
             a1.sinks.k1.hdfs.rollSize = 0\na1.sinks.k1.hdfs.rollCount = 1000\na1.sinks.k1.hdfs.minBlockReplicas = 1\n",
            hdfs.url()
        ),
        &[port],
    );
    let sent = events::mixed(1, 2_000);
    let client = SdkClient::start(port, Protocol::Avro, 100, &sent);
    let report = client.finish(Duration::from_secs(60));
    assert_eq!(report.acknowledged, 2_000);
    flume.stop();
    hdfs.await_none_open(Duration::from_secs(30));

    let target = flume.directory().join("copy");
    let files = hdfs.copy_to("/mix", &target);
    let mut received: BTreeMap<Event, usize> = BTreeMap::new();
    for file in &files {
        for event in avro_file::events(&std::fs::read(file).expect("read a copied file")) {
            *received.entry(event).or_default() += 1;
        }
    }
    assert_eq!(received.len(), 2_000);
    assert!(sent.iter().all(|event| received.contains_key(event)));

    // A DataNode that dies and returns, and a NameNode too: the peers of later tests can do this.
    hdfs.kill_data_node(0);
    hdfs.restart_data_node(0);
    hdfs.kill_name_node();
    hdfs.restart_name_node();
    hdfs.await_all_live();
    assert_eq!(hdfs.list("/mix").len(), files.len());
}

#[test]
fn a_secure_hdfs_refuses_whoever_brings_no_ticket() {
    let centre = MiniKdc::start(&["hdfs/localhost", "HTTP/localhost"]);
    let hdfs = Hdfs::start_secure(1, &centre);
    let output = hdfs.tool("org.apache.hadoop.fs.FsShell", &["-ls", "/"]);
    assert!(!output.status.success());
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("Client cannot authenticate"), "another refusal than expected: {text}");
}
