//! The client's side of a connection: events into requests, answers into outcomes.
//!
//! Promises to offer a handshake until one has matched, to send its protocol's text to a server that asks for it, and
//! to refuse a server whose protocol only looks like Flume's.

use std::borrow::Cow;

use channel::EventRef;

use super::datum::{DatumReader, MalformedDatum, put_bytes, put_long};
use super::frame::put_frame;
use super::handshake::{HandshakeRequest, HandshakeResponse, Match};
use super::protocol::{self, PROTOCOL_HASH, PROTOCOL_TEXT, Status};

/// What the client knows about one connection.
#[derive(Debug)]
pub struct ClientSession {
    established: bool,
    send_text: bool,
    server_hash: [u8; 16],
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Response {
    Status(Status),
    /// The server did not know our protocol and executed nothing: send the same call again, it now carries the text.
    SendAgain,
    /// The server raised an error instead of answering.
    Error(String),
}

/// Why a connection cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResponseError {
    #[error("the server's answer cannot be read: {0}")]
    Malformed(#[from] MalformedDatum),
    #[error("the server speaks another protocol: {0}")]
    OtherProtocol(String),
    #[error("the server refuses our protocol although it has its text")]
    NotUnderstood,
}

impl ClientSession {
    pub fn new() -> ClientSession {
        ClientSession { established: false, send_text: false, server_hash: PROTOCOL_HASH }
    }

    /// Appends the frame of a call `append`.
    pub fn put_append(&self, serial: i32, event: EventRef<'_>, out: &mut Vec<u8>) {
        let mut arguments = Vec::new();
        put_event(&mut arguments, event);
        self.put_call(serial, "append", &arguments, out);
    }

    /// Appends the frame of a call `appendBatch`.
    pub fn put_append_batch<'a>(
        &self,
        serial: i32,
        events: impl ExactSizeIterator<Item = EventRef<'a>>,
        out: &mut Vec<u8>,
    ) {
        let mut arguments = Vec::new();
        if events.len() > 0 {
            put_long(&mut arguments, events.len() as i64);
            for event in events {
                put_event(&mut arguments, event);
            }
        }
        put_long(&mut arguments, 0);
        self.put_call(serial, "appendBatch", &arguments, out);
    }

    fn put_call(&self, serial: i32, name: &str, arguments: &[u8], out: &mut Vec<u8>) {
        let mut head = Vec::with_capacity(64);
        if !self.established {
            let client_text = self.send_text.then_some(Cow::Borrowed(PROTOCOL_TEXT));
            let (client_hash, server_hash) = (PROTOCOL_HASH, self.server_hash);
            HandshakeRequest { client_hash, client_text, server_hash }.put(&mut head);
        }
        // No metadata.
        put_long(&mut head, 0);
        put_bytes(&mut head, name.as_bytes());
        put_frame(out, serial, &[&head, arguments]);
    }

    /// Reads the answer to the last call.
    pub fn response(&mut self, payload: &[u8]) -> Result<Response, ResponseError> {
        let mut reader = DatumReader::new(payload);
        if !self.established {
            let handshake = HandshakeResponse::read(&mut reader)?;
            if handshake.matched != Match::Both {
                let text = handshake.server_text.unwrap_or_default();
                let common = protocol::common_messages(&text).map_err(ResponseError::OtherProtocol)?;
                if !common.contains(&"appendBatch") {
                    return Err(ResponseError::OtherProtocol("it has no message appendBatch".to_owned()));
                }
                self.server_hash = handshake.server_hash.unwrap_or(self.server_hash);
            }
            if handshake.matched == Match::None {
                if self.send_text {
                    return Err(ResponseError::NotUnderstood);
                }
                self.send_text = true;
                return Ok(Response::SendAgain);
            }
            self.established = true;
        }
        reader.skip_map()?;
        if reader.boolean()? {
            reader.index(1)?;
            return Ok(Response::Error(reader.string()?.chars().take(500).collect()));
        }
        Ok(Response::Status(Status::ALL[reader.index(Status::ALL.len())?]))
    }
}

impl Default for ClientSession {
    fn default() -> ClientSession {
        ClientSession::new()
    }
}

fn put_event(out: &mut Vec<u8>, event: EventRef<'_>) {
    let headers = event.headers().count();
    if headers > 0 {
        put_long(out, headers as i64);
        for (key, value) in event.headers() {
            put_bytes(out, key.as_bytes());
            put_bytes(out, value.as_bytes());
        }
    }
    put_long(out, 0);
    put_bytes(out, event.body());
}
