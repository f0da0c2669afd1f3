//! The next hop behind an avro sink, in the test's own process, which no kill touches: it answers every call, and knows
//! from the outside which events the sink has settled.
//!
//! The sink has one call in flight, and goes on while settlements become durable: when it makes a call, at most
//! [`UNSETTLED_CALLS`] are not settled, this one included, and those before them are:
//!
//! ```text
//! agent      call 1 ──►       …   call 16 ──►      1 is durable, call 17 ──►                        ✗ kill
//! next hop             ──► OK …           ──► OK                        ──► 1 is settled    ──► 2 to 17 may come again, 1 must not
//! ```

use std::collections::{HashMap, VecDeque};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use wire::avro::{FrameDecoder, FrameLimits, KnownProtocols, Request, ServerSession, Status};

use crate::books::Id;
use crate::events::Random;
use crate::producers;

/// Above what an avro sink puts into one call.
const LIMITS: FrameLimits = FrameLimits { payload_bytes: 32 << 20, pieces: FrameLimits::PIECES };
/// As many calls of an avro sink may be delivered and not settled, the one in flight included.
pub const UNSETTLED_CALLS: usize = 16;

/// An answer takes up to this long, so that many kills meet a call that is not answered.
const ANSWER_MAX: Duration = Duration::from_millis(3);
/// On every other connection: so many calls come between two kills that most of them are seen to be settled.
const QUICK_ANSWER_MAX: Duration = Duration::from_micros(50);
/// What a dead process has sent is there at once.
const READ_LIMIT: Duration = Duration::from_secs(30);

/// Everything that arrived, and what is known of its settlement.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Receipts {
    settled: HashMap<Id, bool>,
    /// Each event as often as it came.
    pub ids: Vec<Id>,
    /// Calls whose settlement nobody witnessed: those that a kill met.
    pub open_calls: u64,
    pub open_events: u64,
    /// Events that came again although their settlement was durable. A broken promise.
    pub settled_again: Vec<Id>,
    /// Bodies that are not as they were sent. A broken promise.
    pub spoilt: Vec<String>,
}

impl Receipts {
    /// A call of these events, behind which these others are settled.
    fn call(&mut self, settled: &[Id], now: &[Id]) {
        for id in settled {
            self.settled.insert(*id, true);
        }
        for id in now {
            if *self.settled.entry(*id).or_insert(false) {
                self.settled_again.push(*id);
            }
        }
        self.ids.extend(now);
    }

    /// The connection ended after these calls, whose settlement nobody witnessed.
    fn end(&mut self, open: &VecDeque<Vec<Id>>) {
        self.open_calls += open.iter().filter(|call| !call.is_empty()).count() as u64;
        self.open_events += open.iter().map(|call| call.len() as u64).sum::<u64>();
    }

    /// Events whose settlement was witnessed.
    pub fn settled_events(&self) -> u64 {
        self.settled.values().filter(|settled| **settled).count() as u64
    }
}

/// Connections: how many are open, and from which port the newest one came.
#[derive(Default)]
struct Connections {
    now: Mutex<(usize, u16)>,
    changed: Condvar,
}

impl Connections {
    fn change(&self, change: impl FnOnce(&mut (usize, u16))) {
        change(&mut self.now.lock().expect("nobody panics with the connections open"));
        self.changed.notify_all();
    }
}

pub struct NextHop {
    port: u16,
    receipts: Arc<Mutex<Receipts>>,
    connections: Arc<Connections>,
    stop: Arc<AtomicBool>,
    accepting: Option<JoinHandle<()>>,
}

impl NextHop {
    /// Listens on a port of its own. `seed` decides how long its answers take; a sink under test may leave
    /// [`UNSETTLED_CALLS`] calls unsettled.
    pub fn start(seed: u64, unsettled_calls: usize) -> NextHop {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("the kernel has a free port");
        let port = listener.local_addr().expect("it is bound").port();
        let (receipts, stop) = (Arc::<Mutex<Receipts>>::default(), Arc::<AtomicBool>::default());
        let connections = Arc::<Connections>::default();
        let (into, here, end) = (Arc::clone(&receipts), Arc::clone(&connections), Arc::clone(&stop));
        let accept = move || {
            let mut seeds = Random::new(seed);
            for stream in listener.incoming().flatten() {
                if end.load(Ordering::Acquire) {
                    break;
                }
                let from = stream.peer_addr().map_or(0, |peer| peer.port());
                here.change(|now| *now = (now.0 + 1, from));
                let (into, here, random) = (Arc::clone(&into), Arc::clone(&here), Random::new(seeds.next()));
                let serve = move || {
                    let mut open = VecDeque::new();
                    // Whatever ends the connection, an agent that was killed first of all: the next one begins anew.
                    let _ended = serve(stream, random, &into, unsettled_calls, &mut open);
                    into.lock().expect("nobody panics with the receipts open").end(&open);
                    here.change(|now| now.0 -= 1);
                };
                thread::Builder::new().name("next hop".to_owned()).spawn(serve).expect("start a thread");
            }
        };
        let accepting = thread::Builder::new().name("next hop".to_owned()).spawn(accept).expect("start a thread");
        NextHop { port, receipts, connections, stop, accepting: Some(accepting) }
    }

    /// Waits until everything is read that a killed agent has sent, so that it cannot be taken for the next one's.
    pub fn settle_accounts(&self) {
        // Connections are accepted in their order, so whatever the agent opened is known once this one is.
        let last = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).expect("the next hop listens");
        let from = last.local_addr().expect("it is connected").port();
        drop(last);
        let now = self.connections.now.lock().expect("nobody panics with the connections open");
        let waits = |now: &mut (usize, u16)| *now != (0, from);
        drop(self.connections.changed.wait_timeout_while(now, READ_LIMIT, waits));
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn receipts(&self) -> Receipts {
        self.receipts.lock().expect("nobody panics with the receipts open").clone()
    }
}

impl Drop for NextHop {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // The thread waits in `accept`; one more connection shows it the flag.
        drop(TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)));
        self.accepting.take().map(JoinHandle::join);
    }
}

/// Answers the calls of one connection; `open` are the events of those that may be unsettled, the newest last.
fn serve(
    mut stream: TcpStream,
    mut random: Random,
    receipts: &Mutex<Receipts>,
    unsettled_calls: usize,
    open: &mut VecDeque<Vec<Id>>,
) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let (mut decoder, mut session, known) = (FrameDecoder::new(LIMITS), ServerSession::new(), KnownProtocols::new());
    let mut buffer = vec![0; 64 << 10];
    let longest = if random.below(2) == 0 { ANSWER_MAX } else { QUICK_ANSWER_MAX };
    loop {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        let mut input = &buffer[..length];
        while let Some(frame) = decoder.feed(&mut input).map_err(std::io::Error::other)? {
            let mut out = Vec::new();
            match session.request(&frame.payload, &known) {
                Request::Handshake(reply) => reply.put_handshake(frame.serial, &mut out),
                Request::Refused(reply, why) => reply.put_error(frame.serial, &why, &mut out),
                Request::Call(call) => {
                    let bodies = call.events.iter().map(|event| String::from_utf8_lossy(event.body()).into_owned());
                    let (whole, spoilt): (Vec<_>, Vec<_>) =
                        bodies.map(|body| producers::id_of(&body).ok_or(body)).partition(Result::is_ok);
                    let ids: Vec<Id> = whole.into_iter().flatten().collect();
                    {
                        let mut receipts = receipts.lock().expect("nobody panics with the receipts open");
                        let settled = if open.len() >= unsettled_calls { open.pop_front() } else { None };
                        receipts.call(&settled.unwrap_or_default(), &ids);
                        receipts.spoilt.extend(spoilt.into_iter().filter_map(Result::err));
                    }
                    open.push_back(ids);
                    let micros = u64::try_from(longest.as_micros()).expect("a short time");
                    thread::park_timeout(Duration::from_micros(random.below(micros)));
                    call.reply.put_status(frame.serial, Status::Ok, &mut out);
                }
            }
            stream.write_all(&out)?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_may_come_again_until_its_settlement_is_witnessed() {
        let ids: Vec<Id> = (0..4).map(|number| Id { producer: 1, number }).collect();
        let mut receipts = Receipts::default();
        let end = |receipts: &mut Receipts, ids: &[Id]| receipts.end(&VecDeque::from([ids.to_vec()]));
        receipts.call(&[], &ids[..2]);
        end(&mut receipts, &ids[..2]);
        receipts.call(&[], &ids[1..3]);
        assert_eq!(receipts.settled_again, []);
        receipts.call(&ids[1..3], &ids[3..]);
        end(&mut receipts, &ids[3..]);
        receipts.call(&[], &ids[2..]);
        assert_eq!(receipts.settled_again, [ids[2]]);
        assert_eq!((receipts.open_calls, receipts.open_events, receipts.settled_events()), (2, 3, 2));
    }
}
