//! One connection: requests in, commits, answers out.
//!
//! Promises that 200 is answered only after the commit, that requests of a connection are taken one after the other,
//! and that a request holds no more memory than its allowance, however it is sent. A stop lets the request under way
//! end.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Incoming};
use hyper::header::{ALLOW, CONNECTION, CONTENT_TYPE, HOST, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, Version};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::Terms;
use super::version::SaysVersion;
use crate::component::Intake;
use crate::sources::common::allowance::Allowance;
use crate::sources::common::server::{PATIENCE, Server, refusal_text};

/// A head that takes longer, and a connection without a request for so long, are given up, as by Flume's Jetty.
const HEAD_PATIENCE: Duration = Duration::from_secs(30);

/// Also the longest head. Jetty's limit is 8 KiB; this is what a body is read with as well.
const BUFFER_BYTES: usize = 64 * 1024;

/// Room for a body is made at once up to here.
const ANNOUNCED_BYTES_MAX: u64 = 1 << 20;

/// A body that has begun goes on by this much within the servers' patience.
const PROGRESS_BYTES: usize = 64 * 1024;

pub(super) struct Session {
    peer: SocketAddr,
    server: Arc<Server>,
    terms: Arc<Terms>,
    /// hyper asks for one answer at a time, but through a shared reference.
    state: Mutex<State>,
}

struct State {
    intake: Intake,
    allowance: Allowance,
}

/// A request that is not answered 200.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    why: String,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, why: impl Into<String>) -> Refusal {
        Refusal { status, why: why.into() }
    }
}

impl Session {
    pub(super) fn new(peer: SocketAddr, server: Arc<Server>, terms: Arc<Terms>) -> Session {
        let state = State { intake: server.context.open_intake(), allowance: server.allowance.of_connection() };
        Session { peer, server, terms, state: Mutex::new(state) }
    }

    pub(super) async fn serve(self, stream: TcpStream) -> Result<(), String> {
        let stop = self.server.context.stop.clone();
        let session = Arc::new(self);
        let service = service_fn(|request| {
            let session = Arc::clone(&session);
            async move { Ok::<_, Infallible>(session.answer(request).await) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_PATIENCE)
            .max_buf_size(BUFFER_BYTES)
            .half_close(true)
            .serve_connection(TokioIo::new(SaysVersion(stream)), service);
        tokio::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = stop.requested() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        match ended {
            Err(error) if !is_ordinary(&error) => Err(format!("{error}; the connection was closed")),
            _ => Ok(()),
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let mut state = self.state.lock().await;
        let outcome = self.take(request, &mut state).await;
        state.allowance.release();
        match outcome {
            Ok(()) => Response::new(Full::default()),
            Err(refusal) => {
                self.server.complain(self.peer, &format!("a request was answered {}: {}", refusal.status, refusal.why));
                refused(refusal)
            }
        }
    }

    async fn take(&self, request: Request<Incoming>, state: &mut State) -> Result<(), Refusal> {
        match *request.method() {
            Method::GET | Method::POST | Method::HEAD => {}
            Method::PUT | Method::DELETE => {
                return Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "only POST and GET bring events"));
            }
            Method::OPTIONS | Method::TRACE => return Err(Refusal::new(StatusCode::FORBIDDEN, "not allowed here")),
            _ => return Err(Refusal::new(StatusCode::NOT_IMPLEMENTED, "no such method")),
        }
        if request.version() == Version::HTTP_11 && !request.headers().contains_key(HOST) {
            return Err(Refusal::new(StatusCode::BAD_REQUEST, "the Host header is missing"));
        }
        let (head, body) = request.into_parts();
        let body = self.read_body(body, &mut state.allowance).await?;
        let counters = &self.server.context.counters;
        let content_type = head.headers.get(CONTENT_TYPE).map(|value| String::from_utf8_lossy(value.as_bytes()));
        let batch = self.terms.handler.events(content_type.as_deref(), head.uri.query(), &body).inspect_err(|_| {
            counters.event_read_fail.add(1);
        })?;
        drop(body);
        counters.append_batch_received.add(1);
        counters.event_received.add(batch.len() as u64);
        if !batch.is_empty() {
            state.intake.accept(batch).await.map_err(|error| {
                let why = format!("Error appending event to channel. Channel might be full. {}", refusal_text(&error));
                Refusal::new(StatusCode::SERVICE_UNAVAILABLE, why)
            })?;
        }
        counters.append_batch_accepted.add(1);
        Ok(())
    }

    async fn read_body(&self, mut body: Incoming, allowance: &mut Allowance) -> Result<Vec<u8>, Refusal> {
        let limit = self.terms.request_bytes_max;
        let too_large = || {
            let why = format!("the request has more than {limit} bytes (maxRequestBytes)");
            Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, why)
        };
        if body.size_hint().lower() > limit as u64 {
            return Err(too_large());
        }
        // What is announced and does not come costs no memory, only addresses.
        let mut bytes = Vec::with_capacity(body.size_hint().lower().min(ANNOUNCED_BYTES_MAX) as usize);
        let (mut goal, mut deadline) = (PROGRESS_BYTES, Instant::now() + PATIENCE);
        loop {
            let frame = match tokio::time::timeout_at(deadline, body.frame()).await {
                Ok(Some(Ok(frame))) => frame,
                Ok(None) => return Ok(bytes),
                Ok(Some(Err(error))) => {
                    return Err(Refusal::new(StatusCode::BAD_REQUEST, format!("the request broke off: {error}")));
                }
                Err(_) => {
                    let why = format!("the request did not go on for {} s", PATIENCE.as_secs());
                    return Err(Refusal::new(StatusCode::REQUEST_TIMEOUT, why));
                }
            };
            // Trailers bring no events.
            let Ok(data) = frame.into_data() else { continue };
            if data.len() > limit - bytes.len() {
                return Err(too_large());
            }
            allowance.cover(bytes.len() + data.len()).await;
            bytes.extend_from_slice(&data);
            // The wait for memory is ours, not the sender's.
            if bytes.len() >= goal {
                (goal, deadline) = (bytes.len() + PROGRESS_BYTES, Instant::now() + PATIENCE);
            }
        }
    }
}

fn refused(refusal: Refusal) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(refusal.why + "\n"));
    *response.status_mut() = refusal.status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    match refusal.status {
        StatusCode::METHOD_NOT_ALLOWED => {
            headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD, POST"));
        }
        // What is left of the request is not worth reading.
        StatusCode::PAYLOAD_TOO_LARGE | StatusCode::REQUEST_TIMEOUT => {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        _ => {}
    }
    response
}

/// Ends that need no line in the log: a client that went away, or had nothing more to say.
fn is_ordinary(error: &hyper::Error) -> bool {
    error.is_incomplete_message() || error.is_closed() || error.is_timeout() || error.is_canceled()
}
