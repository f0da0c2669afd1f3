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

use tokio::net::{TcpListener, TcpStream};
use wire::avro::KnownProtocols;

use self::connection::{Connection, Ended};
use self::ip_filter::IpFilter;
use crate::component::{
    BoxFuture, ComponentError, Key, KeyDefault, Refused, Settings, Source, SourceContext, SourceEntry,
};
use crate::sources::common::server::{self, Server};

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
    known: KnownProtocols,
    deflate: bool,
    filter: Option<IpFilter>,
    frame_bytes_max: usize,
}

impl Source for AvroSource {
    fn start<'a>(&'a mut self, context: &'a SourceContext) -> BoxFuture<'a, Result<(), ComponentError>> {
        Box::pin(async move {
            self.listener = Some(server::listen("avro", context, &self.bind, self.port).await?);
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
                deflate: self.deflate,
                filter: self.filter,
                frame_bytes_max: self.frame_bytes_max,
            });
            let handle = |stream, peer, server| serve(stream, peer, server, Arc::clone(&shared));
            // The protocol has no word for a connection too many: it is closed.
            Arc::new(Server::new("avro", context)).serve(listener, b"", handle).await;
            Ok(())
        })
    }
}

async fn serve(stream: TcpStream, peer: SocketAddr, server: Arc<Server>, shared: Arc<Shared>) -> Result<(), Ended> {
    if !is_admitted(peer, &shared).await {
        server.complain(peer, "refused by ipFilterRules");
        return Ok(());
    }
    Connection::new(stream, peer, server, shared).serve().await
}

async fn is_admitted(peer: SocketAddr, shared: &Shared) -> bool {
    let Some(filter) = &shared.filter else { return true };
    if !filter.needs_names() {
        return filter.allows(peer.ip());
    }
    // A name server may take seconds.
    let filter = filter.clone();
    tokio::task::spawn_blocking(move || filter.allows(peer.ip())).await.unwrap_or(false)
}
