//! Counts the I/O below hyper.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf, Take};

#[cfg(feature = "http2")]
use super::frames::PeerState;
use super::interim::Interim;
use crate::classify::ConnectionStats;

/// The maximum number of bytes of one read of an HTTP/1.1 connection.
///
/// hyper doubles its buffer when a read fills it, up to the largest head that it accepts, and holds three of them for a
/// body that is not read. One byte less than the initial 8 KiB prevents the growth. Measured: 1341 KiB for each such body
/// without a limit, 226 KiB with a limit of 64 KiB on the buffer alone; the CPU time of a fast download is the same.
const SHORT_READ: u64 = 8191;

/// A connection whose bytes are counted.
///
/// [`Connector`](super::Connector) creates them; hyper-util's client finds the counters among the extras of
/// [`Connected`].
#[derive(Debug)]
pub struct CountedIo<T> {
    io: TokioIo<Counter<TokioIo<T>>>,
}

impl<T: hyper::rt::Read + Unpin> CountedIo<T> {
    pub(super) fn new(io: T, stamp: ConnectionStats, interim: Interim) -> Self {
        let io = TokioIo::new(io);
        let counted = Counter {
            io: io.take(u64::MAX),
            stamp,
            interim,
            longest_read: u64::MAX,
            #[cfg(feature = "http2")]
            peer: None,
            seen: 0,
            read_last: false,
            was_full: false,
            task: None,
        };
        Self { io: TokioIo::new(counted) }
    }
}

impl<T> CountedIo<T> {
    /// Reads in short pieces, so that little is read ahead of a client that does not read.
    pub(super) fn with_short_reads(mut self) -> Self {
        self.io.inner_mut().longest_read = SHORT_READ;
        self
    }

    /// Publishes what an HTTP/2 peer announces from now on; called before its first byte is read.
    #[cfg(feature = "http2")]
    pub(super) fn watch_peer(&mut self) -> tokio::sync::watch::Receiver<PeerState> {
        let (peer, receiver) = tokio::sync::watch::channel(PeerState::default());
        self.io.inner_mut().peer = Some((peer, PeerState::default()));
        receiver
    }

    /// The connection's counters.
    pub(crate) fn stamp(&self) -> &ConnectionStats {
        &self.io.inner().stamp
    }
}

impl<T: Connection + hyper::rt::Read + Unpin> Connection for CountedIo<T> {
    fn connected(&self) -> Connected {
        let counted = self.io.inner();
        counted.io.get_ref().inner().connected().extra(counted.stamp.clone())
    }
}

impl<T: hyper::rt::Read + hyper::rt::Write + Unpin> hyper::rt::Read for CountedIo<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: hyper::rt::ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<T: hyper::rt::Read + hyper::rt::Write + Unpin> hyper::rt::Write for CountedIo<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }
}

/// Below `TokioIo`, where the bytes read are accessible without unsafe code.
#[derive(Debug)]
struct Counter<T> {
    /// Bounds each read, not their sum.
    io: Take<T>,
    stamp: ConnectionStats,
    interim: Interim,
    longest_read: u64,
    #[cfg(feature = "http2")]
    peer: Option<(tokio::sync::watch::Sender<PeerState>, PeerState)>,
    /// The number of requests when the last response began.
    seen: u32,
    read_last: bool,
    /// The task that the counters wake; nearly always the one that polls.
    task: Option<Waker>,
    /// A write was blocked since the last flush.
    was_full: bool,
}

impl<T> Counter<T> {
    fn check_alive(&self) -> io::Result<()> {
        if self.stamp.is_killed() {
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "ended by the gateway"));
        }
        Ok(())
    }

    fn listen(&mut self, task: &Waker) {
        if !self.task.as_ref().is_some_and(|known| known.will_wake(task)) {
            self.stamp.register_waker(task);
            self.task = Some(task.clone());
        }
    }

    /// A write after a read: a request starts, unless it is the rest of the previous one.
    fn direction_changed(&mut self) {
        self.read_last = false;
        let begun = self.stamp.begun();
        let begins =
            if begun == 0 { self.stamp.infer_request_start() || self.interim.is_final() } else { begun != self.seen };
        if begins {
            self.seen = begun;
            self.interim.restart();
        }
    }

    fn after_write(&mut self, wrote: &Poll<io::Result<usize>>, cx: &Context<'_>) {
        match wrote {
            Poll::Ready(Ok(bytes)) => self.stamp.record_write(*bytes),
            Poll::Ready(Err(_)) => {}
            Poll::Pending => {
                self.was_full = true;
                self.stamp.record_write_blocked();
                self.listen(cx.waker());
            }
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Counter<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        this.check_alive()?;
        let before = buf.filled().len();
        this.io.set_limit(this.longest_read);
        match Pin::new(&mut this.io).poll_read(cx, buf) {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            Poll::Pending => {
                this.listen(cx.waker());
                return Poll::Pending;
            }
        }
        let bytes = &buf.filled()[before..];
        if bytes.is_empty() {
            if buf.remaining() > 0 {
                this.stamp.record_eof();
            }
        } else {
            this.read_last = true;
            this.stamp.record_read(bytes);
            let seen = this.interim.process(bytes);
            #[cfg(feature = "http2")]
            if let Some((published, last)) = &mut this.peer {
                let peer = this.interim.peer();
                // compared here, because reading the channel takes a lock
                if std::mem::replace(last, peer) != peer {
                    published.send_replace(peer);
                }
            }
            if this.interim.heads() > 0 {
                this.stamp.record_interim(this.interim.heads());
            }
            seen?;
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Counter<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        this.check_alive()?;
        if this.read_last {
            this.direction_changed();
        }
        let wrote = Pin::new(this.io.get_mut()).poll_write(cx, buf);
        this.after_write(&wrote, cx);
        wrote
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        this.check_alive()?;
        if this.read_last {
            this.direction_changed();
        }
        let wrote = Pin::new(this.io.get_mut()).poll_write_vectored(cx, bufs);
        this.after_write(&wrote, cx);
        wrote
    }

    fn is_write_vectored(&self) -> bool {
        self.io.get_ref().is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check_alive()?;
        let flushed = Pin::new(self.io.get_mut()).poll_flush(cx);
        if flushed.is_pending() {
            self.listen(cx.waker());
            self.stamp.register_waker(cx.waker());
        } else if std::mem::take(&mut self.was_full) {
            // hyper checks for the next request before it flushes: after an early response it never flushes again
            cx.waker().wake_by_ref();
        }
        Poll::Ready(ready!(flushed))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.stamp.is_killed() {
            return Poll::Ready(Ok(()));
        }
        Pin::new(self.io.get_mut()).poll_shutdown(cx)
    }
}
