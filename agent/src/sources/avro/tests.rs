//! The source over real sockets, with our own client codec; real Flume clients are in `tests/avro_peers.rs`.

use std::time::Duration;

use channel::{Channel, EventBatch, MemoryChannel, MemoryOptions, TakeLimits};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use wire::avro::{ClientSession, FrameLimits, Response, put_frame};

use super::*;
use crate::component::Stopper;

struct Rig {
    address: SocketAddr,
    channel: Arc<dyn Channel>,
    context: SourceContext,
    stopper: Stopper,
    run: tokio::task::JoinHandle<Result<(), ComponentError>>,
}

impl Rig {
    async fn with(options: MemoryOptions, lines: &[(&str, &str)]) -> Rig {
        let mut all = vec![("bind", "127.0.0.1"), ("port", "0")];
        all.extend_from_slice(lines);
        let settings = Settings::of("sources.r1", KEYS, &all);
        settings.check(&[]);
        let deflate = settings.choice("compression-type") == "deflate";
        let filter = settings.text_opt("ipFilterRules").map(|rules| IpFilter::parse(rules).unwrap());
        let mut source = AvroSource {
            bind: "127.0.0.1".to_owned(),
            port: 0,
            deflate,
            filter,
            frame_bytes_max: settings.count("maxFrameBytes"),
            listener: None,
        };
        assert!(settings.take_findings().is_empty());
        let channel: Arc<dyn Channel> = Arc::new(MemoryChannel::new(options).unwrap());
        let (context, stopper) = SourceContext::over(vec![Arc::clone(&channel)]);
        source.start(&context).await.unwrap();
        let address = source.listener.as_ref().unwrap().local_addr().unwrap();
        let run = tokio::spawn(Box::new(source).run(context.clone()));
        Rig { address, channel, context, stopper, run }
    }

    async fn new() -> Rig {
        Rig::with(MemoryOptions { capacity: 10_000, transaction_capacity: 1000, ..MemoryOptions::default() }, &[]).await
    }

    async fn client(&self) -> Client {
        Client {
            stream: TcpStream::connect(self.address).await.unwrap(),
            session: ClientSession::new(),
            decoder: decoder(),
            serial: 0,
        }
    }

    async fn bodies(&self) -> Vec<Vec<u8>> {
        let mut consumer = self.channel.consumer("test");
        let lease = consumer.take(TakeLimits { events: 1000, bytes: 1 << 30 }, Duration::ZERO).await.unwrap();
        lease.iter().map(|(_, event)| event.body().to_vec()).collect()
    }
}

fn decoder() -> wire::avro::FrameDecoder {
    wire::avro::FrameDecoder::new(FrameLimits { payload_bytes: 1 << 20, pieces: 1000 })
}

struct Client {
    stream: TcpStream,
    session: ClientSession,
    decoder: wire::avro::FrameDecoder,
    serial: i32,
}

impl Client {
    fn call(&mut self, bodies: &[&[u8]]) -> Vec<u8> {
        let mut batch = EventBatch::new();
        bodies.iter().for_each(|body| batch.push_body(body));
        self.serial += 1;
        let mut sent = Vec::new();
        self.session.put_append_batch(self.serial, (0..batch.len()).map(|index| batch.get(index)), &mut sent);
        sent
    }

    async fn append_batch(&mut self, bodies: &[&[u8]]) -> Response {
        let sent = self.call(bodies);
        self.stream.write_all(&sent).await.unwrap();
        let payload = self.answer().await.expect("an answer");
        self.session.response(&payload).unwrap()
    }

    /// The payload of the next answer; `None` when the server closed instead.
    async fn answer(&mut self) -> Option<Vec<u8>> {
        let mut byte = [0];
        loop {
            match self.stream.read(&mut byte).await {
                Ok(1) => {}
                Ok(_) => return None,
                Err(error) => {
                    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
                    return None;
                }
            }
            if let Some(frame) = self.decoder.feed(&mut &byte[..]).unwrap() {
                return Some(frame.payload);
            }
        }
    }
}

const OK: Response = Response::Status(wire::avro::Status::Ok);
const FAILED: Response = Response::Status(wire::avro::Status::Failed);

#[tokio::test]
async fn batches_are_committed_in_order_and_counted_with_flumes_names() {
    let rig = Rig::new().await;
    let mut client = rig.client().await;
    assert_eq!(client.append_batch(&[b"1", b"2"]).await, OK);
    assert_eq!(client.append_batch(&[]).await, OK);
    assert_eq!(client.append_batch(&[b"3"]).await, OK);
    assert_eq!(rig.bodies().await, [b"1", b"2", b"3"]);
    let counters = &rig.context.counters;
    assert_eq!((counters.append_batch_received.get(), counters.append_batch_accepted.get()), (3, 3));
    assert_eq!((counters.event_received.get(), counters.event_accepted.get()), (3, 3));
    assert_eq!((counters.append_received.get(), counters.open_connections.get()), (0, 1));
}

#[tokio::test]
async fn a_full_channel_is_answered_failed_and_the_connection_lives_on() {
    let options =
        MemoryOptions { capacity: 2, transaction_capacity: 2, keep_alive: Duration::ZERO, ..MemoryOptions::default() };
    let rig = Rig::with(options, &[]).await;
    let mut client = rig.client().await;
    assert_eq!(client.append_batch(&[b"1", b"2"]).await, OK);
    assert_eq!(client.append_batch(&[b"3"]).await, FAILED);
    assert_eq!(client.append_batch(&[b"3", b"4", b"5"]).await, FAILED, "above transactionCapacity");
    let mut consumer = rig.channel.consumer("test");
    let lease = consumer.take(TakeLimits { events: 2, bytes: 100 }, Duration::ZERO).await.unwrap();
    consumer.settle(vec![channel::Settlement::delivered(lease.ranges())]).await.unwrap();
    assert_eq!(client.append_batch(&[b"3"]).await, OK);
    assert_eq!(rig.context.counters.channel_write_fail.get(), 2);
}

#[tokio::test]
async fn pipelined_calls_are_all_answered() {
    let rig = Rig::new().await;
    let mut client = rig.client().await;
    assert_eq!(client.append_batch(&[b"first"]).await, OK);
    let mut sent = Vec::new();
    for number in 0..100_u8 {
        sent.extend(client.call(&[&[number; 2000]]));
    }
    client.stream.write_all(&sent).await.unwrap();
    for _ in 0..100 {
        let payload = client.answer().await.unwrap();
        assert_eq!(client.session.response(&payload), Ok(OK));
    }
    assert_eq!(rig.bodies().await.len(), 101);
}

#[tokio::test]
async fn a_claim_of_two_gigabytes_closes_its_connection_and_no_other() {
    let rig = Rig::new().await;
    let mut good = rig.client().await;
    assert_eq!(good.append_batch(&[b"1"]).await, OK);
    let mut bad = rig.client().await;
    bad.stream.write_all(&[0, 0, 0, 1, 0, 0, 0, 1, 0x7f, 0xff, 0xff, 0xff]).await.unwrap();
    assert_eq!(bad.answer().await, None);
    assert_eq!(good.append_batch(&[b"2"]).await, OK);
    drop(bad);
    rig.stopper.request();
    rig.run.await.unwrap().unwrap();
    assert_eq!(rig.context.counters.event_read_fail.get(), 1);
}

#[tokio::test]
async fn a_request_that_cannot_be_read_is_answered_with_an_error() {
    let rig = Rig::new().await;
    let mut client = rig.client().await;
    assert_eq!(client.append_batch(&[b"1"]).await, OK);
    let mut sent = Vec::new();
    put_frame(&mut sent, 9, &[b"\x00\x0cnosuch"]);
    client.stream.write_all(&sent).await.unwrap();
    let payload = client.answer().await.unwrap();
    assert!(matches!(client.session.response(&payload), Ok(Response::Error(text)) if text.contains("nosuch")));
    assert_eq!(client.append_batch(&[b"2"]).await, OK);
}

#[tokio::test]
async fn frames_beyond_the_budget_still_arrive() {
    // 64 MiB of budget; four connections whose frames need more than that together.
    let options = MemoryOptions { capacity: 1000, transaction_capacity: 10, ..MemoryOptions::default() };
    let rig = Rig::with(options, &[]).await;
    let body = vec![b'x'; 12 << 20];
    let mut clients = Vec::new();
    for _ in 0..4 {
        let mut client = rig.client().await;
        let body = body.clone();
        clients.push(tokio::spawn(async move { client.append_batch(&[&body]).await }));
    }
    for client in clients {
        assert_eq!(client.await.unwrap(), OK);
    }
    assert_eq!(rig.context.counters.event_accepted.get(), 4);
}

#[tokio::test]
async fn deflate_in_both_directions() {
    let rig = Rig::with(MemoryOptions::default(), &[("compression-type", "deflate")]).await;
    let mut client = rig.client().await;
    let (mut deflater, mut inflater) = (wire::avro::Deflater::new(9), wire::avro::Inflater::new());
    for body in [vec![b'z'; 300_000], b"again".to_vec()] {
        let call = client.call(&[&body]);
        let mut sent = Vec::new();
        deflater.deflate(&call, &mut sent);
        client.stream.write_all(&sent).await.unwrap();
        let payload = loop {
            let mut read = [0; 1000];
            let count = client.stream.read(&mut read).await.unwrap();
            assert!(count > 0);
            let mut answer = Vec::new();
            inflater.inflate(&mut &read[..count], &mut answer, 1000).unwrap();
            if let Some(frame) = client.decoder.feed(&mut &answer[..]).unwrap() {
                break frame.payload;
            }
        };
        assert_eq!(client.session.response(&payload), Ok(OK));
    }
    assert_eq!(rig.bodies().await.iter().map(Vec::len).collect::<Vec<_>>(), [300_000, 5]);
    let mut plain = rig.client().await;
    let call = plain.call(&[b"plain"]);
    plain.stream.write_all(&call).await.unwrap();
    assert_eq!(plain.answer().await, None);
}

#[tokio::test]
async fn a_peer_that_the_rules_deny_is_closed() {
    let rig = Rig::with(MemoryOptions::default(), &[("ipFilter", "true"), ("ipFilterRules", "deny:ip:127.*")]).await;
    assert_eq!(rig.client().await.answer().await, None);
}

#[tokio::test]
async fn a_stop_closes_idle_connections_and_frees_the_port() {
    let rig = Rig::new().await;
    let mut client = rig.client().await;
    assert_eq!(client.append_batch(&[b"1"]).await, OK);
    rig.stopper.request();
    rig.run.await.unwrap().unwrap();
    assert_eq!(client.answer().await, None);
    assert_eq!(rig.context.counters.open_connections.get(), 0);
    TcpListener::bind(rig.address).await.expect("the port is free again");
}

#[test]
fn settings_that_cannot_work_are_refused_by_name() {
    let refused = |lines: &[(&str, &str)]| {
        let mut all = vec![("bind", "127.0.0.1"), ("port", "4141")];
        all.extend_from_slice(lines);
        let settings = Settings::of("sources.r1", KEYS, &all);
        settings.check(&[]);
        let built = build(&settings);
        let findings = settings.take_findings();
        assert!(built.is_err() || !findings.is_empty());
        findings.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    };
    assert!(refused(&[("ssl", "true")]).contains("ssl: not supported"));
    assert!(refused(&[("ipFilter", "true")]).contains("ipFilterRules is missing"));
    assert!(refused(&[("ipFilter", "true"), ("ipFilterRules", "allow:127.0.0.1")]).contains("no rule"));
    assert!(refused(&[("compression-type", "gzip")]).contains("none, deflate"));
    assert!(refused(&[("port", "99999")]).contains("99999"));
    assert!(refused(&[("ipFilterRules", "deny:ip:*")]).contains("everybody may connect"));
}
