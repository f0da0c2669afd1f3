//! Answers say HTTP/1.1, also to a client that spoke HTTP/1.0.
//!
//! A server names the version it speaks, not that of the request (RFC 9112, 2.3), and Flume's does so; hyper repeats
//! the version of the request. Answers have no body of ours that begins like a status line, and hyper writes each from
//! its beginning.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

const SPOKEN: &[u8] = b"HTTP/1.1 ";
const REPEATED: &[u8] = b"HTTP/1.0 ";

pub(super) struct SaysVersion<Stream>(pub(super) Stream);

impl<Stream: AsyncWrite + Unpin> AsyncWrite for SaysVersion<Stream> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let stream = Pin::new(&mut self.0);
        match bytes.strip_prefix(REPEATED) {
            Some(rest) => stream.poll_write(context, &[SPOKEN, rest].concat()),
            None => stream.poll_write(context, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

impl<Stream: AsyncRead + Unpin> AsyncRead for SaysVersion<Stream> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}
