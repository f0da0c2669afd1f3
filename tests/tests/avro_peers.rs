//! Avro RPC with real peers: Flume's SDK client and another Avro client in front of Penstock's source, a real Flume
//! agent behind Penstock's sink. What is compared is every event, headers and body.

use std::fs;
use std::path::Path;
use std::time::Duration;

use system_tests::events::{self, Event};
use system_tests::flume::{FlumeAgent, Protocol, SdkClient};
use system_tests::java::{self, Module};
use system_tests::penstock::Agent;
use system_tests::process::Process;
use system_tests::{avro_file, ports, repository, until};
use tempfile::TempDir;

/// For what takes seconds on an idle machine.
const LIMIT: Duration = Duration::from_secs(120);

/// Lines for a source `name` that listens on `port`, and goes to channel `c1`.
fn avro_source(name: &str, port: u16, more: &str) -> String {
    format!(
        "a1.sources.{name}.type = avro\na1.sources.{name}.bind = 127.0.0.1\na1.sources.{name}.port = {port}\n\
         a1.sources.{name}.channels = c1\n{more}\n"
    )
}

const MEMORY_CHANNEL: &str = "a1.channels = c1\na1.channels.c1.type = memory\na1.channels.c1.capacity = 100000\n\
                              a1.channels.c1.transactionCapacity = 1000\n";

/// A sink that writes Avro containers.
fn container_sink(directory: &Path) -> String {
    format!(
        "a1.sinks = k1\na1.sinks.k1.type = file_roll\na1.sinks.k1.channel = c1\n\
         a1.sinks.k1.sink.directory = {}\na1.sinks.k1.sink.rollInterval = 0\n\
         a1.sinks.k1.sink.serializer = avro_event\n",
        directory.display()
    )
}

/// Every event in the containers of `directory`, sorted.
fn received(directory: &Path) -> Vec<Event> {
    let mut all = Vec::new();
    for entry in fs::read_dir(directory).expect("list the sink's folder") {
        let file = fs::read(entry.expect("a folder entry").path()).expect("read a container");
        all.extend(avro_file::events(&file));
    }
    all.sort();
    all
}

fn folder() -> TempDir {
    TempDir::with_prefix("penstock-out-").expect("create a folder")
}

fn sorted(mut events: Vec<Event>) -> Vec<Event> {
    events.sort();
    events
}

#[test]
fn real_sdk_clients_deliver_every_event_plain_and_deflated() {
    let (plain, deflated, out) = (ports::free(), ports::free(), folder());
    let sources =
        avro_source("r1", plain, "") + &avro_source("r2", deflated, "a1.sources.r2.compression-type = deflate");
    let configuration = format!("a1.sources = r1 r2\n{sources}{MEMORY_CHANNEL}{}", container_sink(out.path()));
    let mut agent = Agent::new(&configuration, &[plain, deflated]);
    agent.start();
    let mut all = events::mixed(3, 9_000);
    let clients = [(plain, Protocol::Avro, 1), (plain, Protocol::Avro, 100), (deflated, Protocol::AvroDeflate, 1000)];
    let parts: Vec<&[Event]> = vec![&all[..1_000], &all[1_000..4_000], &all[4_000..]];
    let started: Vec<SdkClient> = clients
        .iter()
        .zip(parts)
        .map(|(&(port, protocol, batch_size), part)| SdkClient::start(port, protocol, batch_size, part))
        .collect();
    for client in started {
        assert_eq!(client.finish(LIMIT).batches_resent, 0);
    }
    assert_eq!(agent.counter("SOURCE.r1", "AppendAcceptedCount"), Some(1_000));
    assert_eq!(agent.counter("SOURCE.r1", "AppendBatchAcceptedCount"), Some(30));
    assert_eq!(agent.counter("SOURCE.r2", "EventAcceptedCount"), Some(5_000));
    until("the sink has everything", LIMIT, || (agent.counter("CHANNEL.c1", "ChannelSize")? == 0).then_some(()));
    assert_eq!(agent.stop(), 0);
    all.sort();
    assert!(received(out.path()) == all, "other events than those that were sent");
}

#[test]
fn an_avro_client_with_another_protocol_text_is_asked_for_it_and_served() {
    let (port, out) = (ports::free(), folder());
    let parts = [avro_source("r1", port, ""), MEMORY_CHANNEL.to_owned(), container_sink(out.path())];
    let mut agent = Agent::new(&format!("a1.sources = r1\n{}", parts.concat()), &[port]);
    agent.start();
    let source = repository().join("tests/peers/flume-client/OtherProtocol.java");
    let mut arguments = java::arguments(128, &[], &java::class_path(Module::FlumeClient));
    arguments.extend([source.display().to_string(), port.to_string()]);
    let mut client = Process::start("other-protocol", agent.directory(), &java::program(), &arguments, &[]);
    assert!(client.await_end(LIMIT).success(), "{}", client.last_lines());
    let log = client.log();
    for line in ["append: OK", "later: org.apache.avro.AvroRuntimeException", "appendBatch: OK"] {
        assert!(log.contains(line), "no line `{line}` in:\n{log}");
    }
    until("the sink has everything", LIMIT, || {
        (agent.counter("SINK.k1", "EventDrainSuccessCount")? == 3).then_some(())
    });
    assert_eq!(agent.stop(), 0);
    let event = |body: &str| Event { headers: [("k".to_owned(), body.to_owned())].into(), body: body.into() };
    let expected = sorted(vec![event("one"), event("two"), event("three")]);
    assert_eq!(received(out.path()), expected);
}

#[test]
fn the_sink_delivers_to_a_real_flume_agent_that_comes_late() {
    for compression in ["none", "deflate"] {
        let (input, hop, out) = (ports::free(), ports::free(), folder());
        let mut agent = Agent::new(
            &format!(
                "a1.sources = r1\n{}{MEMORY_CHANNEL}a1.sinks = k1\na1.sinks.k1.type = avro\na1.sinks.k1.channel = c1\n\
                 a1.sinks.k1.hostname = 127.0.0.1\na1.sinks.k1.port = {hop}\na1.sinks.k1.batch-size = 300\n\
                 a1.sinks.k1.compression-type = {compression}\n",
                avro_source("r1", input, "")
            ),
            &[input],
        );
        agent.start();
        let all = events::mixed(4, 3_000);
        assert_eq!(SdkClient::start(input, Protocol::Avro, 500, &all).finish(LIMIT).batches_resent, 0);
        assert_eq!(agent.counter("CHANNEL.c1", "ChannelSize"), Some(3_000), "nobody takes them yet");
        let compressed = format!("a1.sources.r1.compression-type = {compression}");
        let parts = [avro_source("r1", hop, &compressed), MEMORY_CHANNEL.to_owned(), container_sink(out.path())];
        let mut flume = FlumeAgent::start(&format!("a1.sources = r1\n{}", parts.concat()), &[hop]);
        until("the channel is empty", LIMIT, || (agent.counter("CHANNEL.c1", "ChannelSize")? == 0).then_some(()));
        assert_eq!(agent.counter("SINK.k1", "EventDrainSuccessCount"), Some(3_000));
        assert_eq!(agent.stop(), 0);
        flume.stop();
        assert!(received(out.path()) == sorted(all), "other events than those that were sent");
    }
}
