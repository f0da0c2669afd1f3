//! One connection to an Avro source: one call at a time, each with a deadline.
//!
//! Promises that `Ok` means the server answered OK to this very call. After any error the connection is of no use:
//! the caller drops it, and the events go again over another one.

use std::time::Duration;

use channel::EventRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};
use wire::avro::{
    ClientSession, Deflater, FrameDecoder, FrameError, FrameLimits, InflateError, Inflater, Response, ResponseError,
    Status,
};

/// An answer is a status, or at most a protocol text and an error: a few KiB.
const ANSWER_LIMITS: FrameLimits = FrameLimits { payload_bytes: 1 << 20, pieces: 1024 };

/// Why a batch is not known to have arrived. The caller says where.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    #[error("cannot connect: {0}")]
    Connect(std::io::Error),
    #[error("no connection within {} ms (connect-timeout)", .0.as_millis())]
    ConnectTimeout(Duration),
    #[error(
        "no answer within {} ms (request-timeout); if there never is one, compare compression-type on both ends",
        .0.as_millis()
    )]
    AnswerTimeout(Duration),
    #[error("the server closed the connection instead of answering; if it always does, compare compression-type")]
    Closed,
    #[error("the connection failed: {0}")]
    Io(#[from] std::io::Error),
    #[error("the answer is no Avro RPC: {0}")]
    Frame(#[from] FrameError),
    #[error("the answer is not compressed as expected: {0}")]
    Inflate(#[from] InflateError),
    #[error(transparent)]
    Response(#[from] ResponseError),
    #[error("the server answered call {found} while {expected} was asked")]
    Serial { found: i32, expected: i32 },
    #[error("the server did not take the events (status {0:?}); its log says why")]
    NotTaken(Status),
    #[error("the server answered with an error: {0}")]
    Refused(String),
}

pub(super) struct Connection {
    stream: TcpStream,
    session: ClientSession,
    decoder: FrameDecoder,
    deflate: Option<(Deflater, Inflater)>,
    serial: i32,
    pub(super) since: Instant,
}

impl Connection {
    /// Connects; with a level both directions are compressed.
    pub(super) async fn open(
        host: &str,
        port: u16,
        level: Option<u32>,
        limit: Duration,
    ) -> Result<Connection, CallError> {
        let connected = timeout(limit, TcpStream::connect((host, port))).await;
        let stream = connected.map_err(|_| CallError::ConnectTimeout(limit))?.map_err(CallError::Connect)?;
        stream.set_nodelay(true)?;
        Ok(Connection {
            stream,
            session: ClientSession::new(),
            decoder: FrameDecoder::new(ANSWER_LIMITS),
            deflate: level.map(|level| (Deflater::new(level), Inflater::new())),
            serial: 0,
            since: Instant::now(),
        })
    }

    /// Whether the server still holds its end. Between two calls it has nothing to say, so anything readable is the
    /// end of the connection.
    pub(super) fn is_alive(&self) -> bool {
        let mut byte = [0];
        matches!(self.stream.try_read(&mut byte), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
    }

    /// Sends the events as one call and waits for its OK.
    pub(super) async fn append_batch(&mut self, events: &[EventRef<'_>], limit: Duration) -> Result<(), CallError> {
        let deadline = Instant::now() + limit;
        loop {
            self.serial = self.serial.wrapping_add(1);
            let mut call = Vec::new();
            self.session.put_append_batch(self.serial, events.iter().copied(), &mut call);
            if let Some((deflater, _)) = &mut self.deflate {
                let mut deflated = Vec::new();
                deflater.deflate(&call, &mut deflated);
                call = deflated;
            }
            let exchange = timeout_at(deadline, self.exchange(&call)).await;
            let payload = exchange.map_err(|_| CallError::AnswerTimeout(limit))??;
            match self.session.response(&payload)? {
                // Once at most: the session refuses to be asked twice.
                Response::SendAgain => {}
                Response::Status(Status::Ok) => return Ok(()),
                Response::Status(status) => return Err(CallError::NotTaken(status)),
                Response::Error(text) => return Err(CallError::Refused(text)),
            }
        }
    }

    async fn exchange(&mut self, call: &[u8]) -> Result<Vec<u8>, CallError> {
        self.stream.write_all(call).await?;
        let mut read = [0; 4096];
        loop {
            let count = self.stream.read(&mut read).await?;
            if count == 0 {
                return Err(CallError::Closed);
            }
            if let Some(frame) = self.decode(&read[..count])? {
                if frame.serial != self.serial {
                    return Err(CallError::Serial { found: frame.serial, expected: self.serial });
                }
                return Ok(frame.payload);
            }
        }
    }

    /// The answer, once it is whole. There is one call in flight, so nothing can follow it.
    fn decode(&mut self, mut read: &[u8]) -> Result<Option<wire::avro::Frame>, CallError> {
        let Some((_, inflater)) = &mut self.deflate else { return Ok(self.decoder.feed(&mut read)?) };
        loop {
            const STEP: usize = 16 * 1024;
            let mut plain = Vec::new();
            inflater.inflate(&mut read, &mut plain, STEP)?;
            let whole = plain.len() < STEP;
            if let Some(frame) = self.decoder.feed(&mut &plain[..])? {
                inflater.frame_done();
                return Ok(Some(frame));
            }
            if whole {
                return Ok(None);
            }
        }
    }
}
