//! Flume's Avro RPC: datums, transport frames, handshake, calls and answers, on both sides of a connection.
//!
//! Promises that no length from the network is believed before the bytes are there: memory grows with what has
//! arrived, never with what was announced. Sockets, time and budgets are the caller's; so is what an event means.
//!
//! ```text
//! connection  | frame | frame | …            deflate: one zlib stream for each direction around all of it
//! frame       | serial i32 | count i32 | (length i32, bytes) × count |     payload = the pieces, joined
//! request     | handshake, until one has matched | metadata map | message name | arguments |
//! answer      | handshake, if one was asked | metadata map | error? | status or text |
//! ```

mod client;
mod datum;
mod deflate;
mod frame;
mod handshake;
mod protocol;
mod server;
#[cfg(test)]
mod tests;

pub use client::{ClientSession, Response, ResponseError};
pub use datum::{DatumReader, MalformedDatum, put_bytes, put_long};
pub use deflate::{Deflater, InflateError, Inflater};
pub use frame::{Frame, FrameDecoder, FrameError, FrameLimits, put_frame};
pub use protocol::{KnownProtocols, PROTOCOL_HASH, PROTOCOL_TEXT, Status};
pub use server::{Call, Message, Reply, Request, ServerSession};
