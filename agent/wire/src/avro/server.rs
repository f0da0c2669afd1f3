//! The server's side of a connection: requests in, answers out.
//!
//! Promises what Avro's own responder does: an established connection sends no more handshakes, an unknown client is
//! asked for its protocol and its call is not executed, an unknown message or arguments that cannot be read are
//! answered with an error, and the connection lives on. Events go straight into an `EventBatch`.

use std::borrow::Cow;
use std::collections::HashMap;

use channel::EventBatch;

use super::datum::{DatumReader, MalformedDatum, put_bytes, put_long};
use super::frame::put_frame;
use super::handshake::{HandshakeRequest, HandshakeResponse, Match};
use super::protocol::{self, KnownProtocols, PROTOCOL_HASH, PROTOCOL_TEXT, Status};

/// What the server knows about one connection.
#[derive(Debug, Default)]
pub struct ServerSession {
    established: bool,
}

/// What to do with a request.
#[derive(Debug)]
pub enum Request {
    /// Nothing but the handshake: a ping, or a call that has to come again with the client's protocol.
    Handshake(Reply),
    Call(Call),
    /// The request cannot be read or is none of ours: to be answered with this text.
    Refused(Reply, String),
}

#[derive(Debug)]
pub struct Call {
    pub message: Message,
    pub events: EventBatch,
    pub reply: Reply,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message {
    Append,
    AppendBatch,
}

/// The answer that is owed for one request.
#[derive(Debug)]
#[must_use = "a client waits for every answer"]
pub struct Reply {
    handshake: Vec<u8>,
}

impl ServerSession {
    /// Most events in one call. Each takes at least two bytes of the message, and some more in memory: this bounds
    /// what a message of nothing but empty events can grow to.
    pub const EVENTS_MAX: usize = 1 << 20;

    pub fn new() -> ServerSession {
        ServerSession::default()
    }

    /// Whether a handshake has matched.
    pub fn is_established(&self) -> bool {
        self.established
    }

    /// Reads one request.
    pub fn request(&mut self, payload: &[u8], known: &KnownProtocols) -> Request {
        let mut reader = DatumReader::new(payload);
        let mut reply = Reply { handshake: Vec::new() };
        if !self.established {
            let matched = match self.handshake(&mut reader, known, &mut reply) {
                Ok(matched) => matched,
                Err(refusal) => return Request::Refused(reply, refusal),
            };
            if matched == Match::None {
                return Request::Handshake(reply);
            }
        }
        match read_call(&mut reader) {
            Ok(Read::Ping) => Request::Handshake(reply),
            Ok(Read::Call(message, events)) => Request::Call(Call { message, events, reply }),
            Ok(Read::NoSuchMessage(name)) => {
                Request::Refused(reply, format!("No such message: {name}. This server has append and appendBatch."))
            }
            Err(error) => Request::Refused(reply, error.to_string()),
        }
    }

    fn handshake(
        &mut self,
        reader: &mut DatumReader<'_>,
        known: &KnownProtocols,
        reply: &mut Reply,
    ) -> Result<Match, String> {
        let request = HandshakeRequest::read(reader).map_err(|error| format!("handshake: {error}"))?;
        let mut is_known = known.contains(&request.client_hash);
        if !is_known && let Some(text) = &request.client_text {
            // Which of our messages it has does not matter: what it calls is answered, or refused by name.
            protocol::common_messages(text).map_err(|why| format!("the client's protocol is refused: {why}"))?;
            known.insert(request.client_hash);
            is_known = true;
        }
        let matched = match (is_known, request.server_hash == PROTOCOL_HASH) {
            (false, _) => Match::None,
            (true, false) => Match::Client,
            (true, true) => Match::Both,
        };
        let (server_text, server_hash) = match matched {
            Match::Both => (None, None),
            Match::Client | Match::None => (Some(Cow::Borrowed(PROTOCOL_TEXT)), Some(PROTOCOL_HASH)),
        };
        HandshakeResponse { matched, server_text, server_hash }.put(&mut reply.handshake);
        self.established = matched != Match::None;
        Ok(matched)
    }
}

impl Reply {
    /// Appends the frame of an answer that is only a handshake.
    pub fn put_handshake(self, serial: i32, out: &mut Vec<u8>) {
        put_frame(out, serial, &[&self.handshake]);
    }

    /// Appends the frame of an answer with a status.
    pub fn put_status(self, serial: i32, status: Status, out: &mut Vec<u8>) {
        // No error, then the index of the status.
        let mut payload = vec![0];
        put_long(&mut payload, status as i64);
        self.put_pieces(serial, &payload, out);
    }

    /// Appends the frame of an answer that says why there is none.
    pub fn put_error(self, serial: i32, text: &str, out: &mut Vec<u8>) {
        // An error, of the only type that every message may raise: a string.
        let mut payload = vec![1];
        put_long(&mut payload, 0);
        put_bytes(&mut payload, text.as_bytes());
        self.put_pieces(serial, &payload, out);
    }

    fn put_pieces(self, serial: i32, payload: &[u8], out: &mut Vec<u8>) {
        let metadata: &[u8] = &[0];
        put_frame(out, serial, &[&self.handshake, metadata, payload]);
    }
}

enum Read<'a> {
    Ping,
    Call(Message, EventBatch),
    NoSuchMessage(Cow<'a, str>),
}

fn read_call<'a>(reader: &mut DatumReader<'a>) -> Result<Read<'a>, MalformedDatum> {
    reader.skip_map()?;
    let name = reader.string()?;
    match name.as_ref() {
        "" => Ok(Read::Ping),
        "append" => {
            let mut events = EventBatch::with_capacity(1, reader.left());
            let mut scratch = Scratch::default();
            read_event(reader, &mut events, &mut scratch)?;
            Ok(Read::Call(Message::Append, events))
        }
        "appendBatch" => Ok(Read::Call(Message::AppendBatch, read_events(reader)?)),
        _ => Ok(Read::NoSuchMessage(cut(name))),
    }
}

fn read_events(reader: &mut DatumReader<'_>) -> Result<EventBatch, MalformedDatum> {
    let mut events: Option<EventBatch> = None;
    let mut scratch = Scratch::default();
    loop {
        // An event is at least an empty map and an empty body.
        let items = reader.block(2)?;
        if items == 0 {
            return Ok(events.unwrap_or_default());
        }
        let batch = events
            .get_or_insert_with(|| EventBatch::with_capacity(items.min(ServerSession::EVENTS_MAX), reader.left()));
        for _ in 0..items {
            if batch.len() == ServerSession::EVENTS_MAX {
                return Err(reader.malformed("more than 1,048,576 events in one call"));
            }
            read_event(reader, batch, &mut scratch)?;
        }
    }
}

/// The headers of one event on their way into the batch.
#[derive(Default)]
struct Scratch<'a> {
    headers: Vec<(Cow<'a, str>, Cow<'a, str>)>,
}

/// Up to here, looking for a repeated key among all earlier ones is cheaper than a table.
const HEADERS_COMPARED: usize = 16;

fn read_event<'a>(
    reader: &mut DatumReader<'a>,
    batch: &mut EventBatch,
    scratch: &mut Scratch<'a>,
) -> Result<(), MalformedDatum> {
    let headers = &mut scratch.headers;
    headers.clear();
    loop {
        let items = reader.block(2)?;
        if items == 0 {
            break;
        }
        for _ in 0..items {
            let key = reader.string()?;
            headers.push((key, reader.string()?));
        }
    }
    let body = reader.bytes()?;
    if headers.len() <= HEADERS_COMPARED {
        batch.push(headers.iter().map(|(key, value)| (key.as_ref(), value.as_ref())), body);
    } else {
        let mut distinct: HashMap<&str, &str> = HashMap::with_capacity(headers.len());
        distinct.extend(headers.iter().map(|(key, value)| (key.as_ref(), value.as_ref())));
        let mut kept = Vec::with_capacity(distinct.len());
        for (key, _) in headers.iter() {
            if let Some(value) = distinct.remove(key.as_ref()) {
                kept.push((key.as_ref(), value));
            }
        }
        batch.push_distinct(kept.into_iter(), body);
    }
    Ok(())
}

/// Text of a peer, short enough for an answer or a log line.
fn cut(text: Cow<'_, str>) -> Cow<'_, str> {
    match text.char_indices().nth(100) {
        None => text,
        Some((end, _)) => Cow::Owned(format!("{}…", &text[..end])),
    }
}
