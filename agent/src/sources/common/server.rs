//! Listening and accepting: one task per connection, bounded in number, all of them ended by a stop.
//!
//! Promises that a stop first closes the listener and then waits for what the connections have to answer, that a
//! flood of connections takes neither memory nor file descriptors beyond [`CONNECTIONS_MAX`], and that a connection
//! that ends with an error says so in one rate-limited line. What is spoken is the handler's.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::allowance::SharedAllowance;
use super::complaints::Complaints;
use crate::component::{AcceptError, ComponentError, SourceContext};

/// A connection needs a file descriptor and, while it sends, its free allowance: 4,096 of them hold at most 128 MiB.
pub(crate) const CONNECTIONS_MAX: usize = 4096;

/// From here on, connections that say nothing make room.
const CONNECTIONS_CROWDED: usize = CONNECTIONS_MAX / 2;

/// What a peer may let us wait for in the middle of something, and how long it may be silent when it is crowded.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// After a failed accept (no file descriptors left, most likely) the next try waits, or the loop would spin.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// A peer that vanished without closing is noticed after this long without an answer to a probe, and some probes.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// What a refused peer may still have under way when it is told: more than that, and it may miss the answer.
const LINGER_BYTES: usize = 1 << 20;
const LINGER: Duration = Duration::from_secs(2);

/// What all connections of one source share.
pub(crate) struct Server {
    pub(crate) context: SourceContext,
    pub(crate) allowance: SharedAllowance,
    complaints: Complaints,
    connections: AtomicUsize,
    connections_max: usize,
}

/// Listens on `bind:port`, or says what to check.
pub(crate) async fn listen(
    kind: &'static str,
    context: &SourceContext,
    bind: &str,
    port: u16,
) -> Result<TcpListener, ComponentError> {
    let listener = TcpListener::bind((bind, port)).await.map_err(|error| {
        ComponentError(format!(
            "source {} cannot listen on {bind}:{port}: {error}; check bind and port, and what else uses them",
            context.name
        ))
    })?;
    tracing::info!(source = context.name, bind, port, "{kind} source listens");
    Ok(listener)
}

impl Server {
    pub(crate) fn new(kind: &'static str, context: SourceContext) -> Server {
        Server {
            allowance: SharedAllowance::new(context.budget.clone()),
            complaints: Complaints::new(kind, &context.name),
            connections: AtomicUsize::new(0),
            connections_max: CONNECTIONS_MAX,
            context,
        }
    }

    #[cfg(test)]
    pub(crate) fn with_connections_max(self, connections_max: usize) -> Server {
        Server { connections_max, ..self }
    }

    /// Whether connections that say nothing should make room.
    pub(crate) fn is_crowded(&self) -> bool {
        self.connections.load(Ordering::Relaxed) > CONNECTIONS_CROWDED
    }

    /// Says in the log what a peer did and what was done about it.
    pub(crate) fn complain(&self, peer: SocketAddr, what: &str) {
        self.complaints.say(peer, what);
    }

    /// Accepts until a stop is requested, then waits for the connections to end. `refusal` is what a connection too
    /// many is told in the source's own protocol. An error of the handler ends its connection only.
    pub(crate) async fn serve<Handled, Ended>(
        self: Arc<Server>,
        listener: TcpListener,
        refusal: &'static [u8],
        handle: impl Fn(TcpStream, SocketAddr, Arc<Server>) -> Handled,
    ) where
        Handled: Future<Output = Result<(), Ended>> + Send + 'static,
        Ended: std::fmt::Display,
    {
        let mut tasks = JoinSet::new();
        loop {
            tokio::select! {
                biased;
                () = self.context.stop.requested() => break,
                Some(ended) = tasks.join_next() => self.report(ended),
                accepted = listener.accept() => match accepted {
                    Ok((stream, peer)) => {
                        if self.connections.load(Ordering::Relaxed) >= self.connections_max {
                            // What does not fit into the socket's buffer at once is not worth a task.
                            let told = stream.try_write(refusal).is_ok();
                            self.complain(
                                peer,
                                &format!(
                                    "refused{}: {} connections are open, which is the limit",
                                    if told { "" } else { " without a word" },
                                    self.connections_max
                                ),
                            );
                            continue;
                        }
                        let place = Place::take(&self);
                        let prepared = prepare(&stream);
                        let handled = handle(stream, peer, Arc::clone(&self));
                        tasks.spawn(async move {
                            let server = &place.0;
                            let ended = match prepared {
                                Ok(()) => handled.await.err().map(|ended| ended.to_string()),
                                Err(error) => Some(error.to_string()),
                            };
                            if let Some(ended) = ended {
                                server.context.counters.event_read_fail.add(1);
                                server.complain(peer, &ended);
                            }
                        });
                    }
                    Err(error) => {
                        tracing::warn!(source = self.context.name, "cannot accept a connection: {error}");
                        tokio::time::sleep(ACCEPT_RETRY).await;
                    }
                },
            }
        }
        drop(listener);
        while let Some(ended) = tasks.join_next().await {
            self.report(ended);
        }
    }

    fn report(&self, ended: Result<(), tokio::task::JoinError>) {
        if let Err(error) = ended {
            tracing::error!(source = self.context.name, "a connection ended by a defect of ours: {error}");
        }
    }
}

/// One of the source's places for a connection.
struct Place(Arc<Server>);

impl Place {
    fn take(server: &Arc<Server>) -> Place {
        server.connections.fetch_add(1, Ordering::Relaxed);
        server.context.counters.open_connections.add(1);
        Place(Arc::clone(server))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
        self.0.context.counters.open_connections.add(-1);
    }
}

/// Answers are small and awaited one by one: sending them at once is the whole latency.
fn prepare(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let keepalive = socket2::TcpKeepalive::new().with_time(KEEPALIVE);
    socket2::SockRef::from(stream).set_tcp_keepalive(&keepalive)
}

/// Closes a connection whose peer may still be sending. Closing at once would reset it, and the last answer with it.
pub(crate) async fn close_gently(stream: &mut TcpStream) {
    if stream.shutdown().await.is_err() {
        return;
    }
    let mut scratch = vec![0; 16 * 1024];
    let drained = async {
        let mut left = LINGER_BYTES;
        while let Ok(count @ 1..) = stream.read(&mut scratch).await {
            left = left.saturating_sub(count);
            if left == 0 {
                break;
            }
        }
    };
    // Whether the peer closed in time or not, the connection ends now.
    let _in_time = tokio::time::timeout(LINGER, drained).await.is_ok();
}

/// What Flume's exception would say, in one line: senders get to see it.
pub(crate) fn refusal_text(error: &AcceptError) -> String {
    error.flume_message().replace(|letter: char| letter.is_control(), " ")
}
