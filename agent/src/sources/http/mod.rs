//! `type = http`: each request is a batch of events, answered once it is committed.
//!
//! Status codes are Flume's: 200 after the commit, 400 for bad JSON, 500 for what its handlers fail on, 503 when a
//! channel refuses, 403, 405 and 501 for other methods. The events of a request are one transaction, so that a sender
//! may repeat what was not answered 200. Requests and connections are bounded in size, number and time.

mod handlers;
mod session;
#[cfg(test)]
mod tests;
mod version;

use std::sync::Arc;

use tokio::net::TcpListener;

use self::handlers::Handler;
use self::session::Session;
use crate::component::{
    BoxFuture, ComponentError, Key, KeyDefault, Refused, Settings, Source, SourceContext, SourceEntry,
};
use crate::sources::common::server::{Server, listen};

const ONLY_WITH_TLS: &str = "it says something about TLS, which is not used";
const NO_JETTY: &str = "it sets up Jetty, which is not used; connections are tasks with limits of their own";
const USE_A_PROXY: &str = "Put a TLS proxy (stunnel, nginx) in front, or remove the key.";

/// A request is one transaction in memory.
const REQUEST_BYTES_MIN: i64 = 1024;
const REQUEST_BYTES_MAX: i64 = 1 << 30;

static KEYS: &[Key] = &[
    Key::text("bind", KeyDefault::Is("0.0.0.0"), "Address or host name to listen on; 0.0.0.0 is every interface."),
    Key::integer("port", 0, 65535, "", KeyDefault::Required, "Port to listen on."),
    Key::text(
        "handler",
        KeyDefault::Is(handlers::JSON_CLASS),
        "What requests hold: Flume's JSONHandler (an array of events) or BLOBHandler (one event), by class name.",
    ),
    Key::text(
        "handler.mandatoryParameters",
        KeyDefault::Absent,
        "For BLOBHandler: query parameters that each request must have, separated by commas without blanks.",
    ),
    Key::integer(
        "maxRequestBytes",
        REQUEST_BYTES_MIN,
        REQUEST_BYTES_MAX,
        "bytes",
        KeyDefault::Is("67108864"),
        "Largest request; larger ones are answered 413. Not a key of Flume.",
    ),
    Key::refused_flag("ssl", "Encrypt connections.", USE_A_PROXY),
    Key::refused_flag("enableSSL", "Encrypt connections, by its old name.", USE_A_PROXY),
    Key::inert("keystore", "Key store for TLS.", ONLY_WITH_TLS),
    Key::inert("keystore-password", "Password of the key store.", ONLY_WITH_TLS),
    Key::inert("keystorePassword", "Password of the key store, by its old name.", ONLY_WITH_TLS),
    Key::inert("keystore-type", "Type of the key store.", ONLY_WITH_TLS),
    Key::inert("exclude-protocols", "TLS versions to refuse.", ONLY_WITH_TLS),
    Key::inert("excludeProtocols", "TLS versions to refuse, by its old name.", ONLY_WITH_TLS),
    Key::inert("include-protocols", "TLS versions to allow.", ONLY_WITH_TLS),
    Key::inert("exclude-cipher-suites", "Cipher suites to refuse.", ONLY_WITH_TLS),
    Key::inert("include-cipher-suites", "Cipher suites to allow.", ONLY_WITH_TLS),
    Key::inert("SslContextFactory.*", "Properties of Jetty's TLS.", ONLY_WITH_TLS),
    Key::inert("QueuedThreadPool.*", "Properties of Jetty's threads.", NO_JETTY),
    Key::inert("HttpConfiguration.*", "Properties of Jetty's HTTP.", NO_JETTY),
    Key::inert("ServerConnector.*", "Properties of Jetty's connections.", NO_JETTY),
];

pub static ENTRY: SourceEntry = SourceEntry {
    alias: "http",
    class: "org.apache.flume.source.http.HTTPSource",
    doc: "Receives events in HTTP requests.",
    keys: KEYS,
    build,
};

fn build(settings: &Settings) -> Result<Box<dyn Source>, Refused> {
    Ok(Box::new(HttpSource {
        bind: settings.text("bind"),
        port: u16::try_from(settings.integer("port")).unwrap_or(0),
        terms: Arc::new(Terms {
            handler: Handler::read(settings)?,
            request_bytes_max: settings.count("maxRequestBytes"),
        }),
        listener: None,
    }))
}

/// What holds on every connection.
struct Terms {
    handler: Handler,
    request_bytes_max: usize,
}

struct HttpSource {
    bind: String,
    port: u16,
    terms: Arc<Terms>,
    listener: Option<TcpListener>,
}

const TOO_MANY: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";

impl Source for HttpSource {
    fn start<'a>(&'a mut self, context: &'a SourceContext) -> BoxFuture<'a, Result<(), ComponentError>> {
        Box::pin(async move {
            self.listener = Some(listen("http", context, &self.bind, self.port).await?);
            Ok(())
        })
    }

    fn run(mut self: Box<Self>, context: SourceContext) -> BoxFuture<'static, Result<(), ComponentError>> {
        Box::pin(async move {
            let Some(listener) = self.listener.take() else {
                return Err(ComponentError(format!("source {} was not started", context.name)));
            };
            let terms = self.terms;
            Arc::new(Server::new("http", context))
                .serve(listener, TOO_MANY, move |stream, peer, server| {
                    Session::new(peer, server, Arc::clone(&terms)).serve(stream)
                })
                .await;
            Ok(())
        })
    }
}
