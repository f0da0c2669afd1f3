//! One connection: bytes in, lines, commits, answers out.
//!
//! Promises that `OK` is written only after the commit of its line, that answers come in the order of the lines, and
//! that nothing more is read while lines wait for their commit: a full channel slows the sender down. What a peer makes
//! us hold is its allowance.

use std::net::SocketAddr;
use std::sync::Arc;

use channel::{EventBatch, PutError};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use wire::charset::Encoder;

use super::Terms;
use super::lines::{Lines, Next};
use crate::component::{AcceptError, Intake};
use crate::sources::common::allowance::{Allowance, FREE_BYTES};
use crate::sources::common::server::{PATIENCE, Server, close_gently, refusal_text};

/// Read first: within what a connection may hold for nothing.
const READ_BYTES: usize = FREE_BYTES;

/// Read at once while more is there already.
const READ_MORE_BYTES: usize = 64 * 1024;

/// What was sent meanwhile is read up to here and committed together: a commit takes about as long for this much as for one
/// line, and the lines behind it wait for it.
const TOGETHER_BYTES: usize = 256 * 1024;

/// Why a connection ended before its peer wanted.
#[derive(Debug, thiserror::Error)]
pub(super) enum Ended {
    #[error("a line is longer than {0} characters; the connection was closed")]
    TooLong(usize),
    #[error("what was sent is no {0} text; the connection was closed")]
    Malformed(&'static str),
    #[error("an answer was not taken for {} s; the connection was closed", PATIENCE.as_secs())]
    AnswerNotTaken,
    #[error("nothing came for {} s while most places are taken; the connection was closed", PATIENCE.as_secs())]
    Silent,
    #[error("the connection failed: {0}")]
    Io(#[from] std::io::Error),
}

pub(super) struct Connection {
    stream: TcpStream,
    peer: SocketAddr,
    server: Arc<Server>,
    intake: Intake,
    terms: Terms,
    lines: Lines,
    encoder: Encoder,
    allowance: Allowance,
    /// How the connection ended, while what came before is not taken.
    broken: Option<std::io::Error>,
}

impl Connection {
    pub(super) fn new(stream: TcpStream, peer: SocketAddr, server: Arc<Server>, terms: Terms) -> Connection {
        Connection {
            stream,
            peer,
            intake: server.context.open_intake(),
            terms,
            lines: Lines::new(terms.charset, terms.line_length_max),
            encoder: terms.charset.encoder(),
            allowance: server.allowance.of_connection(),
            broken: None,
            server,
        }
    }

    /// Serves until the peer closes or a stop is requested. A last line without a newline is none, as in Flume.
    pub(super) async fn serve(mut self) -> Result<(), Ended> {
        while self.read().await? {
            let ended = self.take_lines().await;
            if ended.is_err() {
                close_gently(&mut self.stream).await;
                return ended;
            }
            if self.lines.held_bytes() <= FREE_BYTES {
                self.allowance.release();
            }
        }
        Ok(())
    }

    /// Waits for bytes. `false` when the peer has closed its side, or a stop is requested.
    async fn read(&mut self) -> Result<bool, Ended> {
        if let Some(error) = self.broken.take() {
            return Err(error.into());
        }
        loop {
            tokio::select! {
                biased;
                () = self.server.context.stop.requested() => return Ok(false),
                ready = self.stream.readable() => ready?,
                () = tokio::time::sleep(PATIENCE) => {
                    if self.server.is_crowded() {
                        return Err(Ended::Silent);
                    }
                    continue;
                }
            }
            if let Some(goes_on) = self.read_what_is_there().await? {
                return Ok(goes_on);
            }
        }
    }

    /// Reads until nothing more is there, or enough. `None` when nothing is there at all, `false` when the peer has closed its
    /// side, or a stop is requested.
    async fn read_what_is_there(&mut self) -> Result<Option<bool>, Ended> {
        // Only now there is something to hold: idle connections have no buffer.
        let mut buffer = vec![0; READ_BYTES];
        let mut read = 0;
        while read < TOGETHER_BYTES {
            let count = match self.stream.try_read(&mut buffer) {
                Ok(0) if read == 0 => return Ok(Some(false)),
                Ok(count) => count,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => 0,
                Err(error) if read == 0 => return Err(error.into()),
                // What came before it is taken first.
                Err(error) => {
                    self.broken = Some(error);
                    0
                }
            };
            if count == 0 {
                break;
            }
            if !self.cover(count).await {
                return Ok(Some(false));
            }
            self.lines.feed(&buffer[..count]);
            read += count;
            if count < buffer.len() {
                break;
            }
            if buffer.len() < READ_MORE_BYTES {
                if !self.cover(READ_MORE_BYTES).await {
                    return Ok(Some(false));
                }
                buffer.resize(READ_MORE_BYTES, 0);
            }
        }
        Ok((read > 0).then_some(true))
    }

    /// Waits until so many bytes more may be held; `false` when a stop is requested meanwhile.
    async fn cover(&mut self, bytes: usize) -> bool {
        tokio::select! {
            biased;
            () = self.server.context.stop.requested() => false,
            () = self.allowance.cover(self.lines.held_bytes() + bytes) => true,
        }
    }

    /// Commits and answers every whole line.
    async fn take_lines(&mut self) -> Result<(), Ended> {
        let capacity = self.intake.transaction_capacity().max(1);
        loop {
            let mut batch = EventBatch::with_capacity(0, self.lines.held_bytes().min(READ_MORE_BYTES));
            let ended = loop {
                match self.lines.next() {
                    Next::Line(line) => {
                        batch.push_body(line.as_bytes());
                        if batch.len() == capacity {
                            break None;
                        }
                    }
                    Next::More => break Some(Ok(())),
                    Next::TooLong => break Some(Err(Ended::TooLong(self.terms.line_length_max))),
                    Next::Malformed => break Some(Err(Ended::Malformed(self.terms.charset.name()))),
                }
            };
            if !batch.is_empty() {
                self.commit(batch).await?;
            }
            match ended {
                None => {}
                Some(Err(Ended::TooLong(max))) => {
                    self.answer(&format!(
                        "FAILED: Event exceeds the maximum length ({max} chars, including newline)\n"
                    ))
                    .await?;
                    return Err(Ended::TooLong(max));
                }
                Some(ended) => return ended,
            }
        }
    }

    async fn commit(&mut self, batch: EventBatch) -> Result<(), Ended> {
        let count = batch.len();
        self.server.context.counters.event_received.add(count as u64);
        let again = (count > 1).then(|| batch.clone());
        match (self.intake.accept(batch).await, again) {
            (Ok(()), _) => self.answer_lines(count, None).await,
            (Err(error), Some(batch)) if may_fit_one_by_one(&error) => {
                for line in batch.iter() {
                    let mut alone = EventBatch::new();
                    alone.push_body(line.body());
                    let outcome = self.intake.accept(alone).await;
                    self.answer_lines(1, outcome.err().as_ref()).await?;
                }
                Ok(())
            }
            (Err(error), _) => self.answer_lines(count, Some(&error)).await,
        }
    }

    async fn answer_lines(&mut self, count: usize, refused: Option<&AcceptError>) -> Result<(), Ended> {
        match refused {
            None if self.terms.acks => self.answer(&"OK\n".repeat(count)).await,
            None => Ok(()),
            Some(error) => {
                self.server.complain(self.peer, &format!("a line was answered FAILED: {error}"));
                self.answer(&format!("FAILED: {}\n", refusal_text(error)).repeat(count)).await
            }
        }
    }

    async fn answer(&mut self, text: &str) -> Result<(), Ended> {
        let mut bytes = Vec::with_capacity(text.len());
        self.encoder.encode(text, &mut bytes);
        match tokio::time::timeout(PATIENCE, self.stream.write_all(&bytes)).await {
            Ok(written) => Ok(written?),
            Err(_) => Err(Ended::AnswerNotTaken),
        }
    }
}

/// Nothing of the batch was written, and less of it may find room.
fn may_fit_one_by_one(error: &AcceptError) -> bool {
    matches!(error.cause, PutError::Full { .. } | PutError::TooLarge { .. } | PutError::TooManyEvents { .. })
}
