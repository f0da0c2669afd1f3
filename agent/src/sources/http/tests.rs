//! The source over real sockets: Flume's answers, and limits.

use std::net::SocketAddr;
use std::time::Duration;

use channel::{Channel, MemoryChannel, MemoryOptions, TakeLimits};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;
use crate::component::Stopper;
use wire::charset::Charset;

struct Rig {
    address: SocketAddr,
    channel: Arc<dyn Channel>,
    stopper: Stopper,
    run: tokio::task::JoinHandle<Result<(), ComponentError>>,
}

impl Rig {
    async fn with(options: MemoryOptions, lines: &[(&str, &str)]) -> Rig {
        let mut all = vec![("bind", "127.0.0.1"), ("port", "0")];
        all.extend_from_slice(lines);
        let settings = Settings::of("sources.r1", KEYS, &all);
        settings.check(&[]);
        let terms = Arc::new(Terms {
            handler: Handler::read(&settings).unwrap_or_else(|_| panic!("{:?}", settings.take_findings())),
            request_bytes_max: settings.count("maxRequestBytes"),
        });
        let mut source = HttpSource { bind: "127.0.0.1".to_owned(), port: 0, terms, listener: None };
        let channel: Arc<dyn Channel> = Arc::new(MemoryChannel::new(options).unwrap());
        let (context, stopper) = SourceContext::over(vec![Arc::clone(&channel)]);
        source.start(&context).await.unwrap();
        let address = source.listener.as_ref().unwrap().local_addr().unwrap();
        let run = tokio::spawn(Box::new(source).run(context));
        Rig { address, channel, stopper, run }
    }

    async fn new(lines: &[(&str, &str)]) -> Rig {
        Rig::with(MemoryOptions { capacity: 1000, transaction_capacity: 1000, ..MemoryOptions::default() }, lines).await
    }

    /// `name=value|body` of every event.
    async fn events(&self) -> Vec<String> {
        let mut consumer = self.channel.consumer("test");
        let lease = consumer.take(TakeLimits { events: 1000, bytes: 1 << 30 }, Duration::ZERO).await.unwrap();
        let one = |event: channel::EventRef<'_>| {
            let headers: Vec<String> = event.headers().map(|(name, value)| format!("{name}={value}")).collect();
            format!("{}|{}", headers.join(","), String::from_utf8_lossy(event.body()))
        };
        lease.iter().map(|(_, event)| one(event)).collect()
    }

    /// Sends bytes as they are, closes the sending side, and reads all answers.
    async fn raw(&self, sent: &[u8]) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(sent).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answers = Vec::new();
        stream.read_to_end(&mut answers).await.unwrap();
        String::from_utf8(answers).unwrap()
    }

    /// The status line of the answer.
    async fn status(&self, method: &str, path: &str, content_type: &str, body: &[u8]) -> String {
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        let answer = self.raw(&[head.as_bytes(), body].concat()).await;
        answer.lines().next().unwrap_or_default().trim_start_matches("HTTP/1.1 ").to_owned()
    }

    async fn post(&self, body: &str) -> String {
        self.status("POST", "/", "application/json", body.as_bytes()).await
    }
}

const EVENT: &str = r#"[{"headers":{"k":"v"},"body":"x"}]"#;

#[tokio::test]
async fn events_are_committed_before_the_answer() {
    let rig = Rig::new(&[]).await;
    assert_eq!(rig.post(EVENT).await, "200 OK");
    assert_eq!(rig.post("[]").await, "200 OK");
    assert_eq!(rig.status("GET", "/any/path", "text/plain", "[{'body':'ü'}]".as_bytes()).await, "200 OK");
    let utf16 = Charset::UTF_16.encode(r#"[{"body":"ü"}]"#).into_owned();
    assert_eq!(rig.status("POST", "/", "application/json; charset=UTF-16", &utf16).await, "200 OK");
    assert_eq!(rig.events().await, ["k=v|x", "|ü", "|\u{fffd}\u{fffd}\0\u{fffd}"]);
}

#[tokio::test]
async fn what_is_wrong_is_answered_with_the_status_of_flume() {
    let rig = Rig::new(&[]).await;
    for (status, body) in [("400 Bad Request", "hello"), ("400 Bad Request", "[{]"), ("500 Internal Server Error", "")]
    {
        assert_eq!(rig.post(body).await, status, "{body}");
    }
    for (status, method) in [
        ("405 Method Not Allowed", "PUT"),
        ("405 Method Not Allowed", "DELETE"),
        ("403 Forbidden", "OPTIONS"),
        ("403 Forbidden", "TRACE"),
        ("501 Not Implemented", "PATCH"),
        ("500 Internal Server Error", "HEAD"),
    ] {
        assert_eq!(rig.status(method, "/", "application/json", b"").await, status, "{method}");
    }
    let latin1 = "application/json; charset=ISO-8859-1";
    assert_eq!(rig.status("POST", "/", latin1, b"[]").await, "500 Internal Server Error");
    assert!(rig.raw(b"POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\n[]").await.starts_with("HTTP/1.1 400"));
    assert!(rig.raw(b"hello\r\n\r\n").await.starts_with("HTTP/1.1 400"));
    assert!(rig.events().await.is_empty());
}

#[tokio::test]
async fn a_full_channel_is_answered_503_and_takes_nothing_of_the_request() {
    let options =
        MemoryOptions { capacity: 2, transaction_capacity: 2, keep_alive: Duration::ZERO, ..MemoryOptions::default() };
    let rig = Rig::with(options, &[]).await;
    assert_eq!(rig.post("[{},{},{}]").await, "503 Service Unavailable");
    assert_eq!(rig.post("[{'body':1}]").await, "200 OK");
    assert_eq!(rig.post("[{},{}]").await, "503 Service Unavailable");
    assert_eq!(rig.events().await, ["|1"]);
}

#[tokio::test]
async fn requests_come_in_every_form_of_http() {
    let rig = Rig::new(&[]).await;
    let old = rig.raw(b"POST / HTTP/1.0\r\nContent-Length: 14\r\n\r\n[{\"body\":\"x\"}]").await;
    assert!(old.starts_with("HTTP/1.1 200 OK\r\n"), "{old}");
    let chunked =
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n[{'b\r\na\r\nody':'y'}]\r\n0\r\n\r\n";
    assert!(rig.raw(chunked).await.starts_with("HTTP/1.1 200"));
    let pipelined = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n[]".repeat(3);
    assert_eq!(rig.raw(&pipelined).await.matches("HTTP/1.1 200 OK").count(), 3);
    assert_eq!(rig.events().await, ["|x", "|y"]);
}

#[tokio::test]
async fn a_request_that_is_too_large_is_refused_before_it_is_held() {
    let rig = Rig::new(&[("maxRequestBytes", "1024")]).await;
    let claimed = rig.raw(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n[").await;
    assert!(claimed.starts_with("HTTP/1.1 413"), "{claimed}");
    let mut chunked = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    for _ in 0..3 {
        chunked.extend_from_slice(b"200\r\n");
        chunked.extend_from_slice(&[b' '; 512]);
        chunked.extend_from_slice(b"\r\n");
    }
    assert!(rig.raw(&chunked).await.starts_with("HTTP/1.1 413"));
    let long_head = format!("POST / HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "y".repeat(400_000));
    let mut stream = TcpStream::connect(rig.address).await.unwrap();
    // The answer may come before everything was sent.
    let _sent = stream.write_all(long_head.as_bytes()).await.is_ok();
    let mut status = [0; 12];
    stream.read_exact(&mut status).await.unwrap();
    assert_eq!(&status, b"HTTP/1.1 431");
    assert!(rig.events().await.is_empty());
}

#[tokio::test]
async fn a_blob_is_one_event_with_the_parameters_of_its_query() {
    let rig = Rig::new(&[("handler", handlers::BLOB_CLASS), ("handler.mandatoryParameters", "id")]).await;
    assert_eq!(rig.status("POST", "/?id=1&a=%20", "image/png", b"\x01\nraw").await, "200 OK");
    assert_eq!(rig.status("POST", "/?other=1", "image/png", b"x").await, "500 Internal Server Error");
    assert_eq!(rig.events().await, ["id=1,a= |\x01\nraw"]);
    let refuses_all = Rig::new(&[("handler", handlers::BLOB_CLASS)]).await;
    assert_eq!(refuses_all.status("POST", "/?id=1", "image/png", b"x").await, "500 Internal Server Error");
    assert_eq!(refuses_all.status("POST", "/?=", "image/png", b"x").await, "200 OK");
}

#[tokio::test]
async fn a_stop_closes_idle_connections_and_the_port() {
    let rig = Rig::new(&[]).await;
    let mut idle = TcpStream::connect(rig.address).await.unwrap();
    idle.write_all(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n[]").await.unwrap();
    let mut status = [0; 12];
    idle.read_exact(&mut status).await.unwrap();
    assert_eq!(&status, b"HTTP/1.1 200");
    rig.stopper.request();
    let mut rest = Vec::new();
    idle.read_to_end(&mut rest).await.unwrap();
    rig.run.await.unwrap().unwrap();
    assert!(TcpStream::connect(rig.address).await.is_err());
}

#[test]
fn handlers_that_are_not_built_are_refused_by_name() {
    let lines = [("port", "0"), ("handler", "com.example.Mine")];
    let settings = Settings::of("sources.r1", KEYS, &lines);
    assert!(build(&settings).is_err());
    assert!(settings.take_findings()[0].to_string().contains("com.example.Mine is not built; there are org.apache"));
}
