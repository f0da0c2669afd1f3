//! The few lines of HTTP that probes and tests need. HTTP/1.0, so that nobody answers in chunks.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(20);

pub struct Answer {
    pub status: u16,
    pub body: Vec<u8>,
}

/// One request to a port of this machine. `None` when nobody answers in time or the answer is no HTTP.
pub fn request(port: u16, method: &str, path: &str, body: &[u8]) -> Option<Answer> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok()?;
    stream.set_read_timeout(Some(LIMIT)).ok()?;
    stream.set_write_timeout(Some(LIMIT)).ok()?;
    let head = format!(
        "{method} {path} HTTP/1.0\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json; charset=UTF-8\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).ok()?;
    stream.write_all(body).ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok()?;
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&answer[..end]).ok()?;
    let status = head.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some(Answer { status, body: answer.split_off(end + 4) })
}

pub fn get(port: u16, path: &str) -> Option<Answer> {
    request(port, "GET", path, b"")
}

/// One counter of a `/metrics` answer in Flume's form, where every value is text.
pub fn counter(answer: &Answer, component: &str, name: &str) -> Option<u64> {
    let counters: serde_json::Value = serde_json::from_slice(&answer.body).ok()?;
    counters.get(component)?.get(name)?.as_str()?.parse().ok()
}
