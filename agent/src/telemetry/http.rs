//! `-Dflume.monitoring.type=http`: Flume's JSON on `/metrics`.
//!
//! Listens on all addresses, as Flume does. Every connection has a deadline, and there is a ceiling on their number,
//! so that a scraper that hangs costs nothing.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use super::registry::Registry;

pub const DEFAULT_PORT: u16 = 41414;

/// A scraper opens one; this many is somebody else's mistake.
const CONNECTIONS_MAX: usize = 64;

/// A scrape takes milliseconds; a kept connection is opened again.
const CONNECTION_TIME_MAX: Duration = Duration::from_secs(60);

/// Binds the port; the returned future serves it for ever.
pub async fn serve(port: u16, registry: Arc<Registry>) -> std::io::Result<impl Future<Output = ()>> {
    let listener = TcpListener::bind(SocketAddr::from(([0, 0, 0, 0], port))).await?;
    Ok(accept(listener, registry))
}

async fn accept(listener: TcpListener, registry: Arc<Registry>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, most likely: accepting at once again would spin.
                tracing::warn!("metrics: a connection was not accepted: {error}");
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            }
        };
        let registry = Arc::clone(&registry);
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let response = answer(&request, &registry);
                async move { Ok::<_, Infallible>(response) }
            });
            let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            // How it ends is the scraper's business.
            drop(tokio::time::timeout(CONNECTION_TIME_MAX, connection).await);
            drop(place);
        });
    }
}

fn answer<B>(request: &Request<B>, registry: &Registry) -> Response<Full<Bytes>> {
    let forbidden = request.method() == Method::TRACE || request.method() == Method::OPTIONS;
    let (status, kind, body) = match request.uri().path() {
        _ if forbidden => (StatusCode::FORBIDDEN, "text/plain;charset=utf-8", String::new()),
        "/metrics" | "/metrics/" => (StatusCode::OK, "application/json;charset=utf-8", registry.json()),
        "/" => {
            let page = "For Flume metrics please click <a href = \"./metrics\"> here</a>.";
            (StatusCode::OK, "text/html;charset=utf-8", page.to_owned())
        }
        _ => (StatusCode::NOT_FOUND, "text/plain;charset=utf-8", "metrics are at /metrics\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
