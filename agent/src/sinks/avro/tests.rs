//! The sink against our own source and against servers that misbehave; real Flume is in `tests/avro_peers.rs`.

use std::sync::Arc;

use channel::{Channel, EventBatch, MemoryChannel, MemoryOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use wire::avro::{Call, FrameDecoder, FrameLimits, KnownProtocols, Request, ServerSession, Status};

use super::*;
use crate::component::Stopper;

struct Rig {
    sink: AvroSink,
    context: SinkContext,
    consumer: Box<dyn Consumer>,
    channel: Arc<dyn Channel>,
    listener: TcpListener,
    _stopper: Stopper,
}

impl Rig {
    async fn new(lines: &[(&str, &str)]) -> Rig {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port().to_string();
        let mut all = vec![("hostname", "127.0.0.1"), ("port", port.as_str())];
        all.extend_from_slice(lines);
        let settings = Settings::of("sinks.k1", KEYS, &all);
        settings.check(&[]);
        assert!(settings.take_findings().is_empty());
        let channel: Arc<dyn Channel> = Arc::new(MemoryChannel::new(MemoryOptions::default()).unwrap());
        let (context, stopper) = SinkContext::over(Arc::clone(&channel));
        let consumer = channel.consumer("k1");
        Rig { sink: read(&settings), context, consumer, channel, listener, _stopper: stopper }
    }

    async fn put(&self, bodies: &[&str]) {
        let mut batch = EventBatch::new();
        bodies.iter().for_each(|body| batch.push([("k", *body)], body.as_bytes()));
        self.channel.producer().put(batch).await.unwrap();
    }

    async fn process(&mut self) -> Result<Progress, SinkError> {
        self.sink.process(&self.context, self.consumer.as_mut()).await
    }
}

/// A server that answers each call of one connection with the next of `statuses`, then closes. Returns the bodies.
async fn serve(stream: TcpStream, statuses: &[Status]) -> Vec<Vec<u8>> {
    let (mut stream, mut session, known) = (stream, ServerSession::new(), KnownProtocols::new());
    let mut decoder = FrameDecoder::new(FrameLimits { payload_bytes: 1 << 20, pieces: 100 });
    let mut bodies = Vec::new();
    for &status in statuses {
        let mut read = [0; 1];
        let frame = loop {
            assert_eq!(stream.read(&mut read).await.unwrap(), 1);
            if let Some(frame) = decoder.feed(&mut &read[..]).unwrap() {
                break frame;
            }
        };
        let Request::Call(Call { events, reply, .. }) = session.request(&frame.payload, &known) else { panic!() };
        bodies.extend(events.iter().map(|event| {
            assert_eq!(event.header("k").unwrap().as_bytes(), event.body());
            event.body().to_vec()
        }));
        let mut answer = Vec::new();
        reply.put_status(frame.serial, status, &mut answer);
        stream.write_all(&answer).await.unwrap();
    }
    bodies
}

#[tokio::test]
async fn batches_are_settled_once_the_server_has_said_ok() {
    let mut rig = Rig::new(&[("batch-size", "2")]).await;
    rig.put(&["1", "2", "3"]).await;
    let (server, rounds) =
        tokio::join!(async { serve(rig.listener.accept().await.unwrap().0, &[Status::Ok, Status::Ok]).await }, async {
            let first = rig.sink.process(&rig.context, rig.consumer.as_mut()).await;
            (first, rig.sink.process(&rig.context, rig.consumer.as_mut()).await)
        },);
    assert_eq!(server, [b"1", b"2", b"3"]);
    assert_eq!(rounds, (Ok(Progress::Worked), Ok(Progress::Worked)));
    assert_eq!(rig.channel.stats().size_events, 0);
    let counters = &rig.context.counters;
    assert_eq!((counters.batch_complete.get(), counters.batch_underflow.get()), (1, 1));
    assert_eq!((counters.event_drain_attempt.get(), counters.event_drain_success.get()), (3, 3));
    assert_eq!(counters.connection_created.get(), 1);
}

#[tokio::test]
async fn a_failed_batch_returns_and_goes_again_over_a_new_connection() {
    let mut rig = Rig::new(&[]).await;
    rig.put(&["1", "2"]).await;
    for (status, bodies_left) in [(Status::Failed, 2), (Status::Unknown, 2), (Status::Ok, 0)] {
        let (served, round) = tokio::join!(
            async { serve(rig.listener.accept().await.unwrap().0, &[status]).await },
            rig.sink.process(&rig.context, rig.consumer.as_mut()),
        );
        assert_eq!(served, [b"1", b"2"]);
        assert_eq!(round.is_ok(), bodies_left == 0, "{round:?}");
        assert_eq!(rig.channel.stats().size_events, bodies_left);
    }
    assert_eq!((rig.context.counters.connection_created.get(), rig.context.counters.event_write_fail.get()), (3, 2));
}

#[tokio::test]
async fn a_server_that_closed_while_idle_costs_no_error() {
    let mut rig = Rig::new(&[]).await;
    rig.put(&["1"]).await;
    let (first, round) = tokio::join!(
        async { serve(rig.listener.accept().await.unwrap().0, &[Status::Ok]).await },
        rig.sink.process(&rig.context, rig.consumer.as_mut()),
    );
    assert_eq!((first.len(), round), (1, Ok(Progress::Worked)));
    rig.put(&["2"]).await;
    let (second, round) = tokio::join!(
        async { serve(rig.listener.accept().await.unwrap().0, &[Status::Ok]).await },
        rig.sink.process(&rig.context, rig.consumer.as_mut()),
    );
    assert_eq!((second.len(), round), (1, Ok(Progress::Worked)));
    assert_eq!(rig.context.counters.connection_closed.get(), 1);
}

#[tokio::test]
async fn rubbish_and_silence_are_named_and_lose_nothing() {
    let mut rig = Rig::new(&[("request-timeout", "1000")]).await;
    rig.put(&["1"]).await;
    let (_, round) = tokio::join!(
        async {
            let mut stream = rig.listener.accept().await.unwrap().0;
            stream.read_u8().await.unwrap();
            stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
            let mut sink_hangs_up = Vec::new();
            stream.read_to_end(&mut sink_hangs_up).await.ok();
        },
        rig.sink.process(&rig.context, rig.consumer.as_mut()),
    );
    let error = round.unwrap_err().to_string();
    assert!(error.contains("127.0.0.1") && error.contains("no Avro RPC"), "{error}");
    let (_, round) = tokio::join!(
        async {
            let mut stream = rig.listener.accept().await.unwrap().0;
            let mut silence = Vec::new();
            stream.read_to_end(&mut silence).await.ok();
        },
        rig.sink.process(&rig.context, rig.consumer.as_mut()),
    );
    assert!(round.unwrap_err().to_string().contains("request-timeout"));
    assert_eq!(rig.channel.stats().size_events, 1);
}

#[tokio::test]
async fn nobody_listening_is_an_error_that_takes_nothing() {
    let mut rig = Rig::new(&[]).await;
    rig.put(&["1"]).await;
    let free = rig.listener.local_addr().unwrap();
    rig.listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let error = rig.process().await.unwrap_err().to_string();
    assert!(error.contains(&free.to_string()) && error.contains("cannot connect"), "{error}");
    assert_eq!((rig.channel.stats().leased_events, rig.context.counters.connection_failed.get()), (0, 1));
}

#[test]
fn short_time_outs_are_ignored_and_tls_is_refused() {
    let lines =
        [("hostname", "h"), ("port", "1"), ("connect-timeout", "999"), ("request-timeout", "1000"), ("ssl", "true")];
    let settings = Settings::of("sinks.k1", KEYS, &lines);
    settings.check(&[]);
    let sink = read(&settings);
    assert_eq!((sink.connect_timeout, sink.request_timeout), (Duration::from_secs(20), Duration::from_secs(1)));
    let found: Vec<String> = settings.take_findings().iter().map(ToString::to_string).collect();
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found.iter().any(|line| line.contains("ssl: not supported")), "{found:?}");
}
