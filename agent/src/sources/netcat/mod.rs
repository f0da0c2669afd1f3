//! `type = netcat`: every line that is sent becomes an event, and is answered once it is committed.
//!
//! Answers are Flume's: `OK` for each line, `FAILED: …` for a line that a channel refused, and a line that is too long
//! is the end of the connection. Lines that came together are committed together; when a channel has no room for all
//! of them they are tried again one by one, so that each gets the answer it would have got from Flume.

mod connection;
mod lines;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use tokio::net::TcpListener;
use wire::charset::Charset;

use self::connection::Connection;
use crate::component::{
    BoxFuture, ComponentError, Key, KeyDefault, Refused, Settings, Source, SourceContext, SourceEntry,
};
use crate::sources::common::server::{Server, listen};

/// A longer line would hold the memory of all sources for itself.
const LINE_LENGTH_MAX: i64 = 16 << 20;

static KEYS: &[Key] = &[
    Key::text("bind", KeyDefault::Required, "Address or host name to listen on; 0.0.0.0 is every interface."),
    Key::integer("port", 0, 65535, "", KeyDefault::Required, "Port to listen on."),
    Key::integer(
        "max-line-length",
        1,
        LINE_LENGTH_MAX,
        "UTF-16 units",
        KeyDefault::Is("512"),
        "Longest line, its newline included; a longer one is refused and its connection closed.",
    ),
    Key::flag("ack-every-event", "true", "Whether each committed line is answered with `OK`."),
    Key::text(
        "encoding",
        KeyDefault::Is("utf-8"),
        "Java's name of the charset of lines and answers; bodies are always UTF-8.",
    ),
];

pub static ENTRY: SourceEntry = SourceEntry {
    alias: "netcat",
    class: "org.apache.flume.source.NetcatSource",
    doc: "Receives lines of text over TCP.",
    keys: KEYS,
    build,
};

fn build(settings: &Settings) -> Result<Box<dyn Source>, Refused> {
    let encoding = settings.text("encoding");
    let Some(charset) = Charset::for_name(&encoding) else {
        let names: Vec<&str> = Charset::names().collect();
        return Err(settings.refuse("encoding", format!("`{encoding}` is none of: {}", names.join(", "))));
    };
    let promise = if settings.flag("ack-every-event") {
        "netcat promises no more than its OK: a line whose OK was not read may be lost or come twice"
    } else {
        "without ack-every-event no sender learns whether its lines were kept"
    };
    settings.notice("type", promise);
    Ok(Box::new(NetcatSource {
        bind: settings.text("bind"),
        port: u16::try_from(settings.integer("port")).unwrap_or(0),
        terms: Terms {
            charset,
            line_length_max: settings.count("max-line-length"),
            acks: settings.flag("ack-every-event"),
        },
        listener: None,
    }))
}

/// What holds on every connection.
#[derive(Debug, Clone, Copy)]
struct Terms {
    charset: Charset,
    line_length_max: usize,
    acks: bool,
}

struct NetcatSource {
    bind: String,
    port: u16,
    terms: Terms,
    listener: Option<TcpListener>,
}

impl Source for NetcatSource {
    fn start<'a>(&'a mut self, context: &'a SourceContext) -> BoxFuture<'a, Result<(), ComponentError>> {
        Box::pin(async move {
            self.listener = Some(listen("netcat", context, &self.bind, self.port).await?);
            Ok(())
        })
    }

    fn run(mut self: Box<Self>, context: SourceContext) -> BoxFuture<'static, Result<(), ComponentError>> {
        Box::pin(async move {
            let Some(listener) = self.listener.take() else {
                return Err(ComponentError(format!("source {} was not started", context.name)));
            };
            let terms = self.terms;
            let server = Arc::new(Server::new("netcat", context));
            server
                .serve(listener, b"FAILED: too many connections\n", move |stream, peer, server| {
                    Connection::new(stream, peer, server, terms).serve()
                })
                .await;
            Ok(())
        })
    }
}
