//! Senders: several connections, each with some calls on their way, as fast as they are answered.
//!
//! Calls are encoded before the first is sent, so that a sender costs little more than the copies into its socket, and what
//! that costs is counted. Promises that every call it counts was answered.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use channel::EventBatch;
use clap::ValueEnum;
use wire::avro::{ClientSession, Frame, FrameDecoder, FrameLimits, Response, Status};

use crate::host;
use crate::payload::Payload;

/// Longer than any call takes that is answered at all: a full channel lets it wait for `keep-alive`.
const PATIENCE: Duration = Duration::from_secs(60);

/// Answers are a few bytes.
const READ_BYTES: usize = 4096;

/// How events come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Source {
    /// Calls `appendBatch` of Flume's RPC
    Avro,
    /// POST of JSON
    Http,
    /// Lines, each answered by OK
    Netcat,
}

impl Source {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Source::Avro => "avro",
            Source::Http => "http",
            Source::Netcat => "netcat",
        }
    }
}

/// What to send.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    pub(crate) source: Source,
    pub(crate) connections: u32,
    /// Calls of a connection that are not yet answered
    pub(crate) pipelined: u32,
    pub(crate) batch: u32,
    pub(crate) size: u64,
}

/// What came of it.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sent {
    pub(crate) accepted: u64,
    pub(crate) refused: u64,
    /// Of the senders themselves.
    pub(crate) cpu: Duration,
}

/// Senders at work.
pub(crate) struct Sending {
    /// Calls that may still be begun, by all of them.
    left: Arc<AtomicU64>,
    senders: Vec<JoinHandle<Result<Sent, String>>>,
}

impl Load {
    /// Sends until it is stopped, or until `events` are sent.
    pub(crate) fn start(&self, port: u16, events: Option<u64>) -> Sending {
        let calls = events.map_or(u64::MAX, |events| events.div_ceil(u64::from(self.batch)));
        let left = Arc::new(AtomicU64::new(calls));
        let senders = (0..self.connections).map(|number| {
            let (load, left) = (*self, Arc::clone(&left));
            thread::spawn(move || load.send(port, number, &left))
        });
        Sending { senders: senders.collect(), left }
    }

    fn send(&self, port: u16, number: u32, left: &AtomicU64) -> Result<Sent, String> {
        let source = self.source.name();
        let failed = |error: std::io::Error| format!("{source} client: {error}");
        let mut connection = Connection::open(self.source, port).map_err(failed)?;
        let calls = connection.calls(self, number).map_err(failed)?;
        let begin = host::thread_cpu();
        let (mut sent, mut under_way) = (Sent::default(), 0);
        for call in calls.iter().cycle() {
            let may = |left: u64| left.checked_sub(1);
            if left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, may).is_err() {
                break;
            }
            connection.stream.write_all(call).map_err(failed)?;
            under_way += 1;
            if under_way == self.pipelined {
                self.count(&mut connection, &mut sent).map_err(failed)?;
                under_way -= 1;
            }
        }
        for _ in 0..under_way {
            self.count(&mut connection, &mut sent).map_err(failed)?;
        }
        sent.cpu = host::thread_cpu().saturating_sub(begin);
        Ok(sent)
    }

    fn count(&self, connection: &mut Connection, sent: &mut Sent) -> std::io::Result<()> {
        let accepted = connection.answer(self.batch)?;
        sent.accepted += u64::from(accepted);
        sent.refused += u64::from(self.batch - accepted);
        Ok(())
    }
}

impl Sending {
    /// Lets calls that are under way be answered, and no other begin.
    pub(crate) fn stop(self) -> Result<Sent, String> {
        self.left.store(0, Ordering::Relaxed);
        self.finish()
    }

    /// Waits until all is sent.
    pub(crate) fn finish(self) -> Result<Sent, String> {
        let mut sum = Sent::default();
        for sender in self.senders {
            let sent = sender.join().map_err(|_| "a sender crashed".to_owned())??;
            sum.accepted += sent.accepted;
            sum.refused += sent.refused;
            sum.cpu += sent.cpu;
        }
        Ok(sum)
    }
}

/// One client.
struct Connection {
    source: Source,
    stream: TcpStream,
    answers: BufReader<TcpStream>,
    avro: ClientSession,
    frames: FrameDecoder,
}

impl Connection {
    fn open(source: Source, port: u16) -> std::io::Result<Connection> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let answers = BufReader::with_capacity(READ_BYTES, stream.try_clone()?);
        let limits = FrameLimits { payload_bytes: 1 << 20, pieces: FrameLimits::PIECES };
        Ok(Connection { source, stream, answers, avro: ClientSession::new(), frames: FrameDecoder::new(limits) })
    }

    /// Whole calls as they go over the wire. An Avro client says who it is first, so that each of them is alike.
    fn calls(&mut self, load: &Load, number: u32) -> std::io::Result<Vec<Vec<u8>>> {
        if self.source == Source::Avro {
            let mut hello = Vec::new();
            self.avro.put_append_batch(0, std::iter::empty(), &mut hello);
            self.stream.write_all(&hello)?;
            self.avro_answer()?;
        }
        let batches = Payload::Random.batches(u64::from(number), load.batch as usize, load.size as usize);
        Ok(batches.iter().map(|batch| self.call(batch)).collect())
    }

    fn call(&self, batch: &EventBatch) -> Vec<u8> {
        let mut call = Vec::new();
        match self.source {
            Source::Avro => {
                self.avro.put_append_batch(1, (0..batch.len()).map(|index| batch.get(index)), &mut call);
            }
            Source::Http => {
                let events =
                    batch.iter().map(|event| format!(r#"{{"headers":{{}},"body":"{}"}}"#, letters(event.body())));
                let body = format!("[{}]", events.collect::<Vec<_>>().join(","));
                let head = "POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json; charset=UTF-8\r\n";
                call.extend_from_slice(format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()).as_bytes());
            }
            Source::Netcat => {
                for event in batch.iter() {
                    call.extend_from_slice(letters(event.body()).as_bytes());
                    call.push(b'\n');
                }
            }
        }
        call
    }

    /// Reads the answer to one call of `events` events: how many of them were accepted.
    fn answer(&mut self, events: u32) -> std::io::Result<u32> {
        match self.source {
            Source::Avro => Ok(if self.avro_answer()? == Status::Ok { events } else { 0 }),
            Source::Http => Ok(if self.http_status()? == 200 { events } else { 0 }),
            Source::Netcat => {
                let mut accepted = 0;
                for _ in 0..events {
                    accepted += u32::from(self.line()? == "OK");
                }
                Ok(accepted)
            }
        }
    }

    fn avro_answer(&mut self) -> std::io::Result<Status> {
        let Frame { payload, .. } = self.frame()?;
        match self.avro.response(&payload) {
            Ok(Response::Status(status)) => Ok(status),
            // What it refuses by an error is not accepted either.
            Ok(Response::Error(_)) => Ok(Status::Failed),
            Ok(Response::SendAgain) => Err(std::io::Error::other("the server does not know Flume's protocol")),
            Err(error) => Err(std::io::Error::other(error)),
        }
    }

    fn frame(&mut self) -> std::io::Result<Frame> {
        loop {
            let mut bytes = self.answers.fill_buf()?;
            let length = bytes.len();
            if length == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            let frame = self.frames.feed(&mut bytes).map_err(std::io::Error::other)?;
            let used = length - bytes.len();
            self.answers.consume(used);
            if let Some(frame) = frame {
                return Ok(frame);
            }
        }
    }

    fn http_status(&mut self) -> std::io::Result<u16> {
        let first = self.line()?;
        let status = first.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status = status.ok_or_else(|| std::io::Error::other(format!("no HTTP: {first}")))?;
        let mut length = 0;
        loop {
            let line = self.line()?.to_ascii_lowercase();
            match line.strip_prefix("content-length:") {
                Some(bytes) => length = bytes.trim().parse().map_err(std::io::Error::other)?,
                None if line.is_empty() => break,
                None => {}
            }
        }
        std::io::copy(&mut (&mut self.answers).take(length), &mut std::io::sink())?;
        Ok(status)
    }

    fn line(&mut self) -> std::io::Result<String> {
        let mut line = String::new();
        if self.answers.read_line(&mut line)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        Ok(line.trim_end().to_owned())
    }
}

/// As much text as there were bytes, in one line.
fn letters(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| char::from(b'a' + byte % 26)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    /// A server that reads `calls` calls of netcat and answers each line by `answer`.
    fn lines(calls: usize, batch: usize, answer: &'static str) -> u16 {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            for _ in 0..calls * batch {
                assert_eq!(lines.next().unwrap().unwrap().len(), 50);
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        port
    }

    #[test]
    fn every_event_is_counted_once_as_accepted_or_refused() {
        for (answer, expected) in [("OK\n", (30, 0)), ("FAILED: full\n", (0, 30))] {
            let load = Load { source: Source::Netcat, connections: 1, pipelined: 2, batch: 10, size: 50 };
            let sent = load.start(lines(3, 10, answer), Some(25)).finish().unwrap();
            assert_eq!((sent.accepted, sent.refused), expected);
        }
    }

    #[test]
    fn a_server_that_goes_away_is_an_error_and_not_a_short_count() {
        let load = Load { source: Source::Netcat, connections: 1, pipelined: 2, batch: 10, size: 50 };
        assert!(load.start(lines(1, 10, "OK\n"), Some(30)).finish().is_err());
    }
}
