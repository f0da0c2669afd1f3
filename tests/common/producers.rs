//! Producers that never pause: each on a thread of its own, connecting again the moment a connection breaks, and keeping
//! the books of what was acknowledged. An event whose answer is missing is never sent again, so that the books can tell what a
//! recovery kept.

use std::io::{BufRead, BufReader, BufWriter, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::books::{Books, Id};
use crate::events::Random;
use crate::http;

/// An answer takes a commit. A test that waits this long has found an agent that hangs.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// Lines on their way on one netcat connection.
const WINDOW: usize = 40;
const BATCH_MAX: u64 = 60;
const BODY_MAX: u64 = 400;
/// Between two tries to connect while the agent is down.
const RETRY: Duration = Duration::from_millis(2);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Netcat,
    Http,
}

/// What all producers of a test share.
#[derive(Default)]
pub struct Field {
    pub books: Books,
    /// Number of agent starts so far.
    pub run: AtomicU64,
    pub stop: AtomicBool,
}

pub fn start(field: &Arc<Field>, producer: u32, way: Way, port: u16, seed: u64) -> JoinHandle<()> {
    let field = Arc::clone(field);
    let body = move || {
        let mut one = Producer { field, producer, number: 0, random: Random::new(seed ^ u64::from(producer)) };
        while !one.field.stop.load(Ordering::Acquire) {
            let worked = match way {
                Way::Netcat => one.netcat(port),
                Way::Http => one.http(port),
            };
            if worked.is_none() {
                thread::sleep(RETRY);
            }
        }
    };
    thread::Builder::new().name(format!("producer {producer}")).spawn(body).expect("start a producer")
}

struct Producer {
    field: Arc<Field>,
    producer: u32,
    number: u64,
    random: Random,
}

impl Producer {
    fn batch(&mut self, size: u64) -> Vec<Id> {
        let ids = (self.number..self.number + size).map(|number| Id { producer: self.producer, number }).collect();
        self.number += size;
        ids
    }

    fn text(&mut self, id: Id) -> String {
        let length = self.random.below(BODY_MAX) as usize;
        let mut text = format!("id {} {} ", id.producer, id.number);
        while text.len() < length {
            text.push_str(&format!("{:x}", self.random.next()));
        }
        text.push_str(" end");
        text
    }

    /// One connection until it breaks: a window of lines out, the answers in. `None` when it broke.
    fn netcat(&mut self, port: u16) -> Option<()> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok()?;
        stream.set_read_timeout(Some(ANSWER_LIMIT)).ok()?;
        stream.set_write_timeout(Some(ANSWER_LIMIT)).ok()?;
        let mut output = BufWriter::new(stream.try_clone().ok()?);
        let mut input = BufReader::new(stream);
        // The window is topped up by halves, so that the connection is never silent while an answer is on its way.
        let mut waiting: std::collections::VecDeque<Id> = std::collections::VecDeque::new();
        let mut answer = String::new();
        while !self.field.stop.load(Ordering::Acquire) || !waiting.is_empty() {
            if waiting.len() <= WINDOW / 2 && !self.field.stop.load(Ordering::Acquire) {
                let size = 1 + self.random.below(WINDOW as u64 / 2);
                let ids = self.batch(size);
                self.field.books.sending(&ids, self.field.run.load(Ordering::Acquire));
                for id in ids {
                    let line = self.text(id);
                    writeln!(output, "{line}").ok()?;
                    waiting.push_back(id);
                }
                output.flush().ok()?;
            }
            answer.clear();
            // An answer without its line end was cut by the kill: it acknowledges nothing.
            if input.read_line(&mut answer).ok()? == 0 || !answer.ends_with('\n') {
                return None;
            }
            let id = waiting.pop_front()?;
            if answer == "OK\n" {
                self.field.books.acknowledged(&[id]);
            } else {
                self.field.books.refused(&[id]);
            }
        }
        Some(())
    }

    /// One POST of a batch.
    fn http(&mut self, port: u16) -> Option<()> {
        // Connecting first keeps the books free of events that were never sent.
        drop(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok()?);
        let size = 1 + self.random.below(BATCH_MAX);
        let ids = self.batch(size);
        let events: Vec<String> =
            ids.iter().map(|id| format!("{{\"headers\":{{\"h\":\"v\"}},\"body\":\"{}\"}}", self.text(*id))).collect();
        self.field.books.sending(&ids, self.field.run.load(Ordering::Acquire));
        let answer = http::request(port, "POST", "/", format!("[{}]", events.join(",")).as_bytes())?;
        if answer.status == 200 {
            self.field.books.acknowledged(&ids);
        } else {
            self.field.books.refused(&ids);
        }
        Some(())
    }
}

/// The id in a line that [`start`]'s producers wrote; `None` when the line is not whole.
pub fn id_of(line: &str) -> Option<Id> {
    let rest = line.strip_prefix("id ")?.strip_suffix(" end")?;
    let mut words = rest.split(' ');
    Some(Id { producer: words.next()?.parse().ok()?, number: words.next()?.parse().ok()? })
}
