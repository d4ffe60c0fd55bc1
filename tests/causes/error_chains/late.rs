//! A connection that hears late: what the peer did meanwhile, it learns with the first request.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use socket2::SockRef;
use tokio::net::TcpStream;

/// hyper finds nothing to read when the connection is made ready, and the peer's end when the request is
/// queued but not yet written: the order in which a client gives a request back.
pub struct Late {
    io: TokioIo<TcpStream>,
    heard: bool,
}

impl Late {
    pub async fn connect(target: Uri) -> io::Result<Self> {
        let authority = target.authority().expect("an absolute target").as_str();
        Ok(Self { io: TokioIo::new(TcpStream::connect(authority).await?), heard: false })
    }
}

impl Connection for Late {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl Read for Late {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, _: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        if !std::mem::replace(&mut self.heard, true) {
            return Poll::Pending;
        }
        // the scripted peer says nothing, so that this waits for its FIN or RST, and no longer
        let socket = SockRef::from(self.io.inner());
        socket.set_nonblocking(false)?;
        let read = socket.recv(&mut [std::mem::MaybeUninit::uninit(); 1])?;
        assert_eq!(read, 0, "the peer only ends");
        Poll::Ready(Ok(()))
    }
}

impl Write for Late {
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
