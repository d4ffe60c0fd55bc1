//! Reads in short pieces, so that little is read ahead of a client that does not read.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use hyper::rt::{Read, ReadBuf, ReadBufCursor, Write};

/// hyper doubles its buffer when a read fills it, up to the largest head that it takes, and holds three of them for a body
/// that is not read: one byte less than it begins with (8 KiB) keeps it there. Measured: 1341 KiB for each such body
/// without a limit, 226 KiB with a limit of 64 KiB on the buffer alone; the CPU time of a fast download is the same.
const PIECE: usize = 8191;

/// A connection whose reads are short.
#[derive(Debug)]
pub(super) struct ShortReads<T>(pub(super) T);

impl<T: Read + Unpin> Read for ShortReads<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, mut buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        if buf.remaining() <= PIECE {
            return Pin::new(&mut self.0).poll_read(cx, buf);
        }
        // a cursor cannot be shortened without `unsafe`
        let mut piece = [MaybeUninit::uninit(); PIECE];
        let mut piece = ReadBuf::uninit(&mut piece);
        ready!(Pin::new(&mut self.0).poll_read(cx, piece.unfilled()))?;
        buf.put_slice(piece.filled());
        Poll::Ready(Ok(()))
    }
}

impl<T: Write + Unpin> Write for ShortReads<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, bufs)
    }
}
