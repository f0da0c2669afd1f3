//! One connection: bytes in, frames, calls, commits, answers out.
//!
//! Promises that a call is answered OK only after its events are committed, that calls of a connection keep their
//! order, and that nothing a peer sends costs more than its allowance: the next bytes are read when the calls before
//! them are answered. Whatever ends a connection is said in one rate-limited line, and the events of a call that was
//! not answered come again from the sender.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use channel::EventBatch;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::Instant;
use wire::avro::{
    Call, Deflater, Frame, FrameDecoder, FrameError, FrameLimits, InflateError, Inflater, Message, Request,
    ServerSession, Status,
};

use super::Shared;
use crate::component::Intake;
use crate::sources::common::allowance::{Allowance, FREE_BYTES};
use crate::sources::common::server::{PATIENCE, Server, close_gently};

/// Read at once in the middle of a large frame.
const READ_BYTES: usize = 64 * 1024;

/// Inflated at once.
const INFLATE_BYTES: usize = 64 * 1024;

/// A frame that has begun goes on by this much within [`PATIENCE`]; slower peers only hold memory.
const PROGRESS_BYTES: usize = 64 * 1024;

/// Why a connection ended before its peer wanted.
#[derive(Debug, thiserror::Error)]
pub(super) enum Ended {
    #[error("{0}; the connection was closed")]
    Frame(#[from] FrameError),
    #[error("{0}; the connection was closed")]
    Inflate(#[from] InflateError),
    #[error("a frame did not go on for {} s; the connection was closed", PATIENCE.as_secs())]
    Stalled,
    #[error("an answer was not taken for {} s; the connection was closed", PATIENCE.as_secs())]
    AnswerNotTaken,
    #[error("nothing came for {} s while most places are taken; the connection was closed", PATIENCE.as_secs())]
    Silent,
    #[error("the connection broke off in the middle of a frame")]
    CutOff,
    #[error("the connection failed: {0}")]
    Io(#[from] std::io::Error),
}

pub(super) struct Connection {
    stream: TcpStream,
    peer: SocketAddr,
    server: Arc<Server>,
    shared: Arc<Shared>,
    intake: Intake,
    session: ServerSession,
    decoder: FrameDecoder,
    allowance: Allowance,
    deflate: Option<(Inflater, Deflater)>,
    /// Bytes as they were read and not yet inflated; unused without compression.
    raw: Pending,
    /// Bytes of frames that were not yet decoded.
    plain: Pending,
}

impl Connection {
    pub(super) fn new(stream: TcpStream, peer: SocketAddr, server: Arc<Server>, shared: Arc<Shared>) -> Connection {
        let deflate = shared.deflate.then(|| (Inflater::new(), Deflater::new(Deflater::SERVER_LEVEL)));
        let limits = FrameLimits { payload_bytes: shared.frame_bytes_max, pieces: FrameLimits::PIECES };
        Connection {
            stream,
            peer,
            intake: server.context.open_intake(),
            session: ServerSession::new(),
            decoder: FrameDecoder::new(limits),
            allowance: server.allowance.of_connection(),
            deflate,
            raw: Pending::default(),
            plain: Pending::default(),
            server,
            shared,
        }
    }

    /// Serves calls until the peer closes or a stop is requested.
    pub(super) async fn serve(mut self) -> Result<(), Ended> {
        let ended = self.serve_calls().await;
        if let Err(Ended::Frame(_) | Ended::Inflate(_)) = &ended {
            // Calls before the rubbish may have answers under way.
            close_gently(&mut self.stream).await;
        }
        ended
    }

    async fn serve_calls(&mut self) -> Result<(), Ended> {
        while let Some(frame) = self.next_frame().await? {
            let answer = self.answer(frame).await;
            self.allowance.release();
            self.send(&answer).await?;
        }
        Ok(())
    }

    /// `None` when the peer has closed, or a stop is requested.
    async fn next_frame(&mut self) -> Result<Option<Frame>, Ended> {
        let mut progress = Progress::new(&self.decoder);
        loop {
            if self.server.context.stop.is_requested() {
                return Ok(None);
            }
            // One read can inflate to a thousand times its size, and each frame of it can be tiny: let others run.
            tokio::task::coop::consume_budget().await;
            if !self.plain.rest().is_empty() {
                self.cover(self.plain.rest().len(), &mut progress).await;
                let mut rest = self.plain.rest();
                let frame = self.decoder.feed(&mut rest)?;
                let left = rest.len();
                self.plain.keep_last(left);
                if let Some(frame) = frame {
                    if let Some((inflater, _)) = &mut self.deflate {
                        inflater.frame_done();
                    }
                    return Ok(Some(frame));
                }
            }
            if let Some((inflater, _)) = &mut self.deflate
                && self.raw.more_inside
            {
                let mut rest = self.raw.rest();
                let limit = if self.decoder.is_between_frames() { FREE_BYTES } else { INFLATE_BYTES };
                inflater.inflate(&mut rest, &mut self.plain.bytes, limit)?;
                let left = rest.len();
                self.raw.keep_last(left);
                self.raw.more_inside = self.plain.bytes.len() == limit;
                continue;
            }
            progress.note(&self.decoder);
            if !self.read(&mut progress).await? {
                return Ok(None);
            }
        }
    }

    /// Reads once; false when the peer has closed between two frames, or a stop is requested.
    async fn read(&mut self, progress: &mut Progress) -> Result<bool, Ended> {
        let waiting = self.decoder.is_between_frames();
        let limit = if waiting { FREE_BYTES } else { READ_BYTES };
        self.cover(limit, progress).await;
        loop {
            let deadline = if waiting { Instant::now() + PATIENCE } else { progress.deadline };
            tokio::select! {
                () = self.server.context.stop.requested() => return Ok(false),
                ready = tokio::time::timeout_at(deadline, self.stream.readable()) => match ready {
                    Ok(ready) => ready?,
                    Err(_) if !waiting => return Err(Ended::Stalled),
                    // Clients connect long before they have something to say: a silent one is only closed to make
                    // room, and one that has shown itself to be a client not at all.
                    Err(_) if !self.session.is_established() && self.server.is_crowded() => return Err(Ended::Silent),
                    Err(_) => continue,
                },
            }
            let into = if self.deflate.is_some() { &mut self.raw } else { &mut self.plain };
            into.bytes.reserve_exact(limit);
            match self.stream.try_read_buf(&mut into.bytes) {
                Ok(0) if waiting => return Ok(false),
                Ok(0) => return Err(Ended::CutOff),
                Ok(_) => {
                    into.more_inside = true;
                    if waiting {
                        // The frame begins now, however long the connection was idle before.
                        *progress = Progress::new(&self.decoder);
                    }
                    return Ok(true);
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    // Nothing is kept while waiting: a connection may be idle for days.
                    into.keep_last(0);
                }
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset && waiting => return Ok(false),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Waits until `more` bytes beyond those of the frame may be in memory. That wait is ours, not the peer's.
    async fn cover(&mut self, more: usize, progress: &mut Progress) {
        let start = Instant::now();
        self.allowance.cover(self.decoder.payload_bytes() + more).await;
        progress.deadline += start.elapsed();
    }

    /// Does what a frame asks for, and makes the frame of the answer.
    async fn answer(&mut self, frame: Frame) -> Vec<u8> {
        let Frame { serial, payload } = frame;
        let mut answer = Vec::new();
        let request = self.session.request(&payload, &self.shared.known);
        drop(payload);
        match request {
            Request::Handshake(reply) => reply.put_handshake(serial, &mut answer),
            Request::Refused(reply, why) => {
                self.server.context.counters.event_read_fail.add(1);
                self.server.complain(self.peer, &format!("a request was answered with an error: {why}"));
                reply.put_error(serial, &why, &mut answer);
            }
            Request::Call(Call { message, events, reply }) => {
                let status = self.accept(message, events).await;
                reply.put_status(serial, status, &mut answer);
            }
        }
        answer
    }

    async fn accept(&mut self, message: Message, events: EventBatch) -> Status {
        let counters = &self.server.context.counters;
        let (received, accepted) = match message {
            Message::Append => (&counters.append_received, &counters.append_accepted),
            Message::AppendBatch => (&counters.append_batch_received, &counters.append_batch_accepted),
        };
        received.add(1);
        counters.event_received.add(events.len() as u64);
        // Nothing to commit, and nothing that could fail.
        let outcome = if events.is_empty() { Ok(()) } else { self.intake.accept(events).await };
        match outcome {
            Ok(()) => {
                accepted.add(1);
                Status::Ok
            }
            Err(error) => {
                self.server.complain(self.peer, &format!("a call was answered FAILED: {error}"));
                Status::Failed
            }
        }
    }

    async fn send(&mut self, answer: &[u8]) -> Result<(), Ended> {
        let mut deflated = Vec::new();
        let bytes = match &mut self.deflate {
            Some((_, deflater)) => {
                deflater.deflate(answer, &mut deflated);
                &deflated
            }
            None => answer,
        };
        match tokio::time::timeout(PATIENCE, self.stream.write_all(bytes)).await {
            Ok(sent) => Ok(sent?),
            Err(_) => Err(Ended::AnswerNotTaken),
        }
    }
}

/// Bytes between two steps, used from the front.
#[derive(Default)]
struct Pending {
    bytes: Vec<u8>,
    used: usize,
    /// The next step may make something of what is here, or of what it has inside.
    more_inside: bool,
}

impl Pending {
    fn rest(&self) -> &[u8] {
        &self.bytes[self.used..]
    }

    /// All but the last `left` bytes are used up. Nothing left frees the memory.
    fn keep_last(&mut self, left: usize) {
        self.used = self.bytes.len() - left;
        if left == 0 {
            self.bytes = Vec::new();
            self.used = 0;
        }
    }
}

/// How far the current frame has come, and until when it must have come further.
struct Progress {
    bytes: usize,
    deadline: Instant,
}

impl Progress {
    fn new(decoder: &FrameDecoder) -> Progress {
        Progress { bytes: decoder.payload_bytes(), deadline: Instant::now() + PATIENCE }
    }

    fn note(&mut self, decoder: &FrameDecoder) {
        if decoder.is_between_frames() || decoder.payload_bytes() >= self.bytes + PROGRESS_BYTES {
            *self = Progress::new(decoder);
        }
    }
}
