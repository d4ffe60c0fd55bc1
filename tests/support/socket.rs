//! The gateway's end of an upstream connection, whose close a test can see.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc::UnboundedSender;
use tower_upstream::client::TlsInfo;

/// A socket of a connector that is not one of the crate; its sender is dropped when it is closed.
pub(crate) struct Socket<T> {
    io: TokioIo<T>,
    is_tls: bool,
    _open: Option<UnboundedSender<()>>,
}

impl<T> Socket<T> {
    pub(crate) fn new(io: T) -> Self {
        Self { io: TokioIo::new(io), is_tls: false, _open: None }
    }

    pub(crate) fn watched(io: T, open: UnboundedSender<()>) -> Self {
        Self { _open: Some(open), ..Self::new(io) }
    }

    /// A socket that is marked as TLS, though it is not.
    pub(crate) fn marked_as_tls(io: T) -> Self {
        Self { is_tls: true, ..Self::new(io) }
    }
}

impl<T> Connection for Socket<T> {
    fn connected(&self) -> Connected {
        let connected = Connected::new();
        if self.is_tls { connected.extra(TlsInfo::new()) } else { connected }
    }
}

impl<T: AsyncRead + Unpin> Read for Socket<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<T: AsyncWrite + Unpin> Write for Socket<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
