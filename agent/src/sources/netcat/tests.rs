//! The source over real sockets: what Flume answers, and what a hostile peer gets.

use std::net::SocketAddr;
use std::time::Duration;

use channel::{Channel, MemoryChannel, MemoryOptions, TakeLimits};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;
use crate::component::Stopper;

struct Rig {
    address: SocketAddr,
    channel: Arc<dyn Channel>,
    stopper: Stopper,
    run: tokio::task::JoinHandle<Result<(), ComponentError>>,
}

fn roomy() -> MemoryOptions {
    MemoryOptions { capacity: 10_000, transaction_capacity: 1000, ..MemoryOptions::default() }
}

impl Rig {
    async fn with(options: MemoryOptions, terms: Terms) -> Rig {
        let mut source = NetcatSource { bind: "127.0.0.1".to_owned(), port: 0, terms, listener: None };
        let channel: Arc<dyn Channel> = Arc::new(MemoryChannel::new(options).unwrap());
        let (context, stopper) = SourceContext::over(vec![Arc::clone(&channel)]);
        source.start(&context).await.unwrap();
        let address = source.listener.as_ref().unwrap().local_addr().unwrap();
        let run = tokio::spawn(Box::new(source).run(context));
        Rig { address, channel, stopper, run }
    }

    async fn bodies(&self) -> Vec<String> {
        let mut consumer = self.channel.consumer("test");
        let lease = consumer.take(TakeLimits { events: 1000, bytes: 1 << 30 }, Duration::ZERO).await.unwrap();
        lease.iter().map(|(_, event)| String::from_utf8(event.body().to_vec()).unwrap()).collect()
    }

    /// Sends everything, closes the sending side, and reads all answers.
    async fn talk(&self, sent: &[u8]) -> Vec<u8> {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(sent).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answers = Vec::new();
        stream.read_to_end(&mut answers).await.unwrap();
        answers
    }
}

fn terms(lines: &[(&str, &str)]) -> Terms {
    let mut all = vec![("bind", "127.0.0.1"), ("port", "0")];
    all.extend_from_slice(lines);
    let settings = Settings::of("sources.r1", KEYS, &all);
    settings.check(&[]);
    assert!(build(&settings).is_ok(), "{:?}", settings.take_findings());
    Terms {
        charset: Charset::for_name(&settings.text("encoding")).unwrap(),
        line_length_max: settings.count("max-line-length"),
        acks: settings.flag("ack-every-event"),
    }
}

async fn check(lines: &[(&str, &str)], sent: &[u8], answers: &[u8], bodies: &[&str]) {
    let rig = Rig::with(roomy(), terms(lines)).await;
    let found = rig.talk(sent).await;
    assert_eq!(found, answers, "{} for {}", found.escape_ascii(), sent.escape_ascii());
    assert_eq!(rig.bodies().await, bodies);
}

#[tokio::test]
async fn each_line_is_an_event_and_is_answered() {
    check(&[], b"hello\r\n\nworld\nlost", b"OK\nOK\nOK\n", &["hello\r", "", "world"]).await;
    check(&[("ack-every-event", "false")], b"a\nb\n", b"", &["a", "b"]).await;
    check(&[], b"", b"", &[]).await;
}

#[tokio::test]
async fn lines_and_answers_are_in_the_charset_of_the_source() {
    check(&[("encoding", "UTF-16BE")], b"\0h\0i\0\n", b"\0O\0K\0\n", &["hi"]).await;
    check(&[("encoding", "UTF-16")], b"\xff\xfea\0\n\0b\0\n\0", b"\xfe\xff\0O\0K\0\n\0O\0K\0\n", &["a", "b"]).await;
    check(&[("encoding", "ISO-8859-1")], b"gr\xfc\xdfe\n", b"OK\n", &["grüße"]).await;
}

#[tokio::test]
async fn malformed_text_closes_the_connection_after_the_lines_before_it() {
    check(&[], b"good\nba\xff\nafter\n", b"OK\n", &["good"]).await;
}

#[tokio::test]
async fn a_line_that_is_too_long_is_refused_and_the_connection_closed() {
    let refusal = b"OK\nFAILED: Event exceeds the maximum length (10 chars, including newline)\n";
    check(&[("max-line-length", "10")], b"ok\n1234567890123\nafter\n", refusal, &["ok"]).await;
    let quiet: &[(&str, &str)] = &[("max-line-length", "10"), ("ack-every-event", "false")];
    check(quiet, &[b'x'; 100_000], &refusal[3..], &[]).await;
}

#[tokio::test]
async fn lines_that_find_no_room_are_answered_one_by_one_as_by_flume() {
    let options =
        MemoryOptions { capacity: 2, transaction_capacity: 2, keep_alive: Duration::ZERO, ..MemoryOptions::default() };
    let rig = Rig::with(options, terms(&[])).await;
    let failed = "FAILED: Space for commit to queue couldn't be acquired. Sinks are likely not keeping up with \
                  sources, or the buffer size is too tight\n";
    assert_eq!(rig.talk(b"0\n").await, b"OK\n");
    // The first two do not fit together, but one of them does.
    assert_eq!(String::from_utf8(rig.talk(b"1\n2\n3\n4\n").await).unwrap(), format!("OK\n{}", failed.repeat(3)));
    assert_eq!(rig.bodies().await, ["0", "1"]);
}

#[tokio::test]
async fn more_lines_than_a_transaction_holds_become_several_commits() {
    let options = MemoryOptions { capacity: 10_000, transaction_capacity: 3, ..MemoryOptions::default() };
    let rig = Rig::with(options, terms(&[])).await;
    let lines: Vec<String> = (0..1000).map(|number| number.to_string()).collect();
    assert_eq!(rig.talk((lines.join("\n") + "\n").as_bytes()).await, b"OK\n".repeat(1000));
    assert_eq!(rig.channel.stats().size_events, 1000);
}

#[tokio::test]
async fn much_that_comes_at_once_is_read_whole_and_in_order() {
    let rig = Rig::with(roomy(), terms(&[("max-line-length", "2048")])).await;
    // Several times what is read in one go.
    let lines: Vec<String> = (0..1000).map(|number| format!("{number} {}", "x".repeat(number * 7 % 1999))).collect();
    assert_eq!(rig.talk((lines.join("\n") + "\n").as_bytes()).await, b"OK\n".repeat(1000));
    assert_eq!(rig.bodies().await, lines);
}

#[tokio::test]
async fn a_stop_ends_idle_connections_and_closes_the_port() {
    let rig = Rig::with(roomy(), terms(&[])).await;
    let mut idle = TcpStream::connect(rig.address).await.unwrap();
    idle.write_all(b"x\n").await.unwrap();
    let mut answer = [0; 3];
    idle.read_exact(&mut answer).await.unwrap();
    rig.stopper.request();
    assert_eq!(idle.read(&mut answer).await.unwrap(), 0);
    rig.run.await.unwrap().unwrap();
    assert!(TcpStream::connect(rig.address).await.is_err());
}

#[tokio::test]
async fn a_connection_too_many_is_told_so() {
    let (context, stopper) = SourceContext::over(vec![Arc::new(MemoryChannel::new(roomy()).unwrap())]);
    let listener = listen("netcat", &context, "127.0.0.1", 0).await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = Arc::new(Server::new("netcat", context).with_connections_max(1));
    let terms = terms(&[]);
    let serving =
        tokio::spawn(server.serve(listener, b"FAILED: too many connections\n", move |stream, peer, server| {
            Connection::new(stream, peer, server, terms).serve()
        }));
    let mut first = TcpStream::connect(address).await.unwrap();
    first.write_all(b"x\n").await.unwrap();
    let mut answer = [0; 3];
    first.read_exact(&mut answer).await.unwrap();
    let mut told = Vec::new();
    TcpStream::connect(address).await.unwrap().read_to_end(&mut told).await.unwrap();
    assert_eq!(told, b"FAILED: too many connections\n");
    // The place is free again once the first is gone.
    drop(first);
    let mut answered = false;
    for _ in 0..1000 {
        let mut next = TcpStream::connect(address).await.unwrap();
        if next.write_all(b"y\n").await.is_ok() && next.read_exact(&mut answer).await.is_ok() && answer == *b"OK\n" {
            answered = true;
            break;
        }
    }
    assert!(answered);
    stopper.request();
    serving.await.unwrap();
}

#[test]
fn an_encoding_that_is_not_known_is_refused_by_name() {
    let lines = [("bind", "127.0.0.1"), ("port", "0"), ("encoding", "EBCDIC-X")];
    let settings = Settings::of("sources.r1", KEYS, &lines);
    assert!(build(&settings).is_err());
    assert!(settings.take_findings()[0].to_string().contains("`EBCDIC-X` is none of: UTF-8, UTF-16"));
}
