//! `type = avro`: the end of Flume's own RPC. Real Flume agents, SDK clients and log appenders send to it.
//!
//! Each connection is a task of its own with its own way into the channels ([`connection`]). An answer OK means that
//! the events are committed in every required channel. Memory is bounded by allowances, the number of connections
//! and the frame limit; rubbish is answered with an error where the protocol has one, else the connection is closed,
//! with a log line that names peer and reason.

mod connection;
mod ip_filter;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use wire::avro::KnownProtocols;

use self::connection::Connection;
use self::ip_filter::IpFilter;
use crate::component::{
    BoxFuture, ComponentError, Key, KeyDefault, Refused, Settings, Source, SourceContext, SourceEntry,
};
use crate::sources::common::allowance::SharedAllowance;
use crate::sources::common::complaints::Complaints;

/// A connection needs a file descriptor and, while it sends, its free allowance: 4,096 of them hold at most 128 MiB.
const CONNECTIONS_MAX: usize = 4096;

/// From here on, connections that never said anything make room.
const CONNECTIONS_CROWDED: usize = CONNECTIONS_MAX / 2;

/// After a failed accept (no file descriptors left, most likely) the next try waits, or the loop would spin.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// A peer that vanished without closing is noticed after this long without an answer to a probe, and some probes.
const KEEPALIVE: Duration = Duration::from_secs(60);

const ONLY_WITH_TLS: &str = "it says something about TLS, which is not used";

static KEYS: &[Key] = &[
    Key::text("bind", KeyDefault::Required, "Address or host name to listen on; 0.0.0.0 is every interface."),
    Key::integer("port", 0, 65535, "", KeyDefault::Required, "Port to listen on."),
    Key::choice(
        "compression-type",
        &["none", "deflate"],
        KeyDefault::Is("none"),
        "Whether both directions are one zlib stream each; must be the same at the clients.",
    ),
    Key::flag("ipFilter", "false", "Whether `ipFilterRules` decide who may connect."),
    Key::text(
        "ipFilterRules",
        KeyDefault::Absent,
        "Rules `allow|deny:ip|name:pattern`, separated by commas; the first that matches decides, none lets in.",
    ),
    Key::integer(
        "maxFrameBytes",
        64 * 1024,
        1 << 30,
        "bytes",
        KeyDefault::Is("67108864"),
        "Largest message of a client. Larger ones are refused and the connection is closed. Not a key of Flume.",
    ),
    Key::inert("threads", "Number of worker threads.", "connections are tasks on the threads of all sources"),
    Key::refused_flag("ssl", "Encrypt connections.", "Put a TLS proxy (stunnel, nginx) in front, or remove the key."),
    Key::inert("keystore", "Key store for TLS.", ONLY_WITH_TLS),
    Key::inert("keystore-password", "Password of the key store.", ONLY_WITH_TLS),
    Key::inert("keystore-type", "Type of the key store.", ONLY_WITH_TLS),
    Key::inert("exclude-protocols", "TLS versions to refuse.", ONLY_WITH_TLS),
    Key::inert("include-protocols", "TLS versions to allow.", ONLY_WITH_TLS),
    Key::inert("exclude-cipher-suites", "Cipher suites to refuse.", ONLY_WITH_TLS),
    Key::inert("include-cipher-suites", "Cipher suites to allow.", ONLY_WITH_TLS),
];

pub static ENTRY: SourceEntry = SourceEntry {
    alias: "avro",
    class: "org.apache.flume.source.AvroSource",
    doc: "Receives events from Flume's Avro RPC clients, log appenders and agents.",
    keys: KEYS,
    build,
};

fn build(settings: &Settings) -> Result<Box<dyn Source>, Refused> {
    let filter = match (settings.flag("ipFilter"), settings.text_opt("ipFilterRules")) {
        (false, rules) => {
            if rules.is_some() {
                settings.warn("ipFilterRules", "not applied: ipFilter is not true, so that everybody may connect");
            }
            None
        }
        (true, None) => {
            return Err(settings.refuse("ipFilter", "true, but ipFilterRules is missing; say allow:ip:… or deny:ip:…"));
        }
        (true, Some(rules)) => match IpFilter::parse(rules) {
            Ok(filter) => Some(filter),
            Err(why) => return Err(settings.refuse("ipFilterRules", why)),
        },
    };
    Ok(Box::new(AvroSource {
        bind: settings.text("bind"),
        port: u16::try_from(settings.integer("port")).unwrap_or(0),
        deflate: settings.choice("compression-type") == "deflate",
        filter,
        frame_bytes_max: settings.count("maxFrameBytes"),
        listener: None,
    }))
}

struct AvroSource {
    bind: String,
    port: u16,
    deflate: bool,
    filter: Option<IpFilter>,
    frame_bytes_max: usize,
    listener: Option<TcpListener>,
}

/// What all connections of the source share.
struct Shared {
    context: SourceContext,
    known: KnownProtocols,
    allowance: SharedAllowance,
    complaints: Complaints,
    deflate: bool,
    filter: Option<IpFilter>,
    frame_bytes_max: usize,
    connections: AtomicUsize,
}

impl Source for AvroSource {
    fn start<'a>(&'a mut self, context: &'a SourceContext) -> BoxFuture<'a, Result<(), ComponentError>> {
        Box::pin(async move {
            let listener = TcpListener::bind((self.bind.as_str(), self.port)).await.map_err(|error| {
                ComponentError(format!(
                    "source {} cannot listen on {}:{}: {error}; check bind and port, and what else uses them",
                    context.name, self.bind, self.port
                ))
            })?;
            tracing::info!(source = context.name, bind = self.bind, port = self.port, "avro source listens");
            self.listener = Some(listener);
            Ok(())
        })
    }

    fn run(mut self: Box<Self>, context: SourceContext) -> BoxFuture<'static, Result<(), ComponentError>> {
        Box::pin(async move {
            let Some(listener) = self.listener.take() else {
                return Err(ComponentError(format!("source {} was not started", context.name)));
            };
            let shared = Arc::new(Shared {
                known: KnownProtocols::new(),
                allowance: SharedAllowance::new(context.budget.clone()),
                complaints: Complaints::new("avro", &context.name),
                deflate: self.deflate,
                filter: self.filter,
                frame_bytes_max: self.frame_bytes_max,
                connections: AtomicUsize::new(0),
                context,
            });
            accept_all(listener, shared).await;
            Ok(())
        })
    }
}

/// Accepts until a stop is requested, then waits for the connections to answer what they have.
async fn accept_all(listener: TcpListener, shared: Arc<Shared>) {
    let mut tasks = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            () = shared.context.stop.requested() => break,
            Some(ended) = tasks.join_next() => report(ended, &shared),
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => admit(stream, peer, &shared, &mut tasks),
                Err(error) => {
                    tracing::warn!(source = shared.context.name, "avro: cannot accept a connection: {error}");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            },
        }
    }
    drop(listener);
    while let Some(ended) = tasks.join_next().await {
        report(ended, &shared);
    }
}

fn admit(stream: TcpStream, peer: SocketAddr, shared: &Arc<Shared>, tasks: &mut JoinSet<()>) {
    if shared.connections.load(Ordering::Relaxed) >= CONNECTIONS_MAX {
        shared.complaints.say(peer, &format!("refused: {CONNECTIONS_MAX} connections are open, which is the limit"));
        return;
    }
    let place = Place::take(shared);
    let shared = Arc::clone(shared);
    tasks.spawn(async move {
        let _place = place;
        if !is_admitted(peer, &shared).await {
            shared.complaints.say(peer, "refused by ipFilterRules");
            return;
        }
        // Answers are small and awaited one by one: sending them at once is the whole latency.
        let prepared = stream.set_nodelay(true).and_then(|()| {
            let keepalive = socket2::TcpKeepalive::new().with_time(KEEPALIVE);
            socket2::SockRef::from(&stream).set_tcp_keepalive(&keepalive)
        });
        let served = match prepared {
            Ok(()) => Connection::new(stream, peer, Arc::clone(&shared)).serve().await,
            Err(error) => Err(error.into()),
        };
        if let Err(ended) = served {
            shared.context.counters.event_read_fail.add(1);
            shared.complaints.say(peer, &ended.to_string());
        }
    });
}

async fn is_admitted(peer: SocketAddr, shared: &Arc<Shared>) -> bool {
    let Some(filter) = &shared.filter else { return true };
    if !filter.needs_names() {
        return filter.allows(peer.ip());
    }
    // A name server may take seconds.
    let filter = filter.clone();
    tokio::task::spawn_blocking(move || filter.allows(peer.ip())).await.unwrap_or(false)
}

fn report(ended: Result<(), tokio::task::JoinError>, shared: &Shared) {
    if let Err(error) = ended {
        tracing::error!(source = shared.context.name, "avro: a connection ended by a defect of ours: {error}");
    }
}

impl Shared {
    fn is_crowded(&self) -> bool {
        self.connections.load(Ordering::Relaxed) > CONNECTIONS_CROWDED
    }
}

/// One of the source's places for a connection.
struct Place(Arc<Shared>);

impl Place {
    fn take(shared: &Arc<Shared>) -> Place {
        shared.connections.fetch_add(1, Ordering::Relaxed);
        shared.context.counters.open_connections.add(1);
        Place(Arc::clone(shared))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
        self.0.context.counters.open_connections.add(-1);
    }
}
