//! A request body that is kept while it is sent, so that it can be sent again.

use std::error::Error;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use super::BoxError;
use super::buffered::{CopyState, ReplayBuffer};
use super::loan::{Loan, RecallRequest};

/// The buffer lent to an attempt; boxed, so that it stays pinned while it changes owners.
type BoxedBuffer<B> = Pin<Box<ReplayBuffer<B>>>;

pin_project! {
    /// A request body whose frames are kept while an attempt reads them.
    ///
    /// Made by a [`RetryLayer`](crate::retry::RetryLayer).
    ///
    /// Nothing is read ahead: the first attempt gets each frame when it arrives. Frames are kept up to a cap; beyond it the
    /// request continues and only the replay is lost. An unread body needs no copy and is not capped. Trailers are kept
    /// like data.
    ///
    /// There is a single body, lent to one attempt at a time. The attempt returns it when it drops its `ReplayBody`, or, if the
    /// next one needs it, at its next poll. That poll returns an error, because a body that continues
    /// elsewhere must not look complete. So two attempts never read from it in turn, and none sends a part as the whole.
    ///
    /// A body that is empty from the start is passed through without an allocation.
    #[derive(Debug)]
    pub struct ReplayBody<B> {
        #[pin]
        kind: Kind<B>,
    }
}

pin_project! {
    #[project = KindProjection]
    #[derive(Debug)]
    enum Kind<B> {
        // empty from the start, or not kept
        Passing { #[pin] body: B },
        Local { bytes: Bytes },
        Lent { lent: LentBody<B> },
    }
}

/// The body while an attempt holds it.
#[derive(Debug)]
struct LentBody<B> {
    held: Option<BoxedBuffer<B>>,
    shared: Arc<Shared<B>>,
}

/// The handle to send a body again.
///
/// Dropping it ends the replay: the attempt in flight keeps the body, and no more frames are kept.
#[derive(Debug)]
pub(crate) struct ReplayHandle<B> {
    /// `None` for a body that was empty from the start, as is every copy.
    shared: Option<Arc<Shared<B>>>,
}

#[derive(Debug)]
struct Shared<B> {
    loan: Loan<BoxedBuffer<B>>,
    /// Progress, readable while an attempt holds the body.
    fate: AtomicU8,
}

const UNREAD: u8 = 0;
const READ: u8 = 1;
const LOST: u8 = 2;

/// The error of a body that was reclaimed for another attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BodyReclaimed(());

impl fmt::Display for BodyReclaimed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("another attempt sends this request body")
    }
}

impl Error for BodyReclaimed {}

impl<B: Body<Data = Bytes>> ReplayBody<B> {
    /// Returns the first attempt's body and the handle for a replay; at most `cap` bytes and 1024 frames are kept.
    pub(crate) fn new(body: B, cap: usize) -> (Self, ReplayHandle<B>) {
        if body.is_end_stream() {
            return (Self { kind: Kind::Passing { body } }, ReplayHandle { shared: None });
        }
        let shared = Arc::new(Shared { loan: Loan::new(), fate: AtomicU8::new(UNREAD) });
        let first = Self::lent(Box::pin(ReplayBuffer::new(body, cap)), shared.clone());
        (first, ReplayHandle { shared: Some(shared) })
    }
}

impl<B> ReplayBody<B> {
    /// A body that is sent once: it passes unchanged and is not kept.
    pub(crate) fn non_replayable(body: B) -> Self {
        Self { kind: Kind::Passing { body } }
    }

    fn lent(held: BoxedBuffer<B>, shared: Arc<Shared<B>>) -> Self {
        Self { kind: Kind::Lent { lent: LentBody { held: Some(held), shared } } }
    }
}

impl<B> ReplayHandle<B> {
    /// Whether a replay may still be possible.
    pub(crate) fn is_possible(&self) -> bool {
        self.fate() != LOST
    }

    /// Whether an attempt has polled the body.
    pub(crate) fn was_polled(&self) -> bool {
        self.fate() != UNREAD
    }

    fn fate(&self) -> u8 {
        self.shared.as_ref().map_or(UNREAD, |shared| shared.fate.load(Relaxed))
    }

    /// Returns the body from its start; `None` if it exceeded the cap, failed, or is held by an attempt.
    pub(crate) fn replay(&self) -> Option<ReplayBody<B>> {
        let Some(shared) = &self.shared else { return Some(ReplayBody::default()) };
        rewound(shared.loan.take()?, shared)
    }

    /// Like [`replay`](Self::replay), but recalls the body from the attempt that holds it and waits.
    ///
    /// The attempt is woken if it waits for the body. A connection that never polls it again returns it only when it
    /// ends, so callers should limit the wait. Ready with `None` if no replay is possible.
    pub(crate) fn poll_replay(&self, cx: &mut Context<'_>) -> Poll<Option<ReplayBody<B>>> {
        let Some(shared) = &self.shared else { return Poll::Ready(Some(ReplayBody::default())) };
        if !self.is_possible() {
            return Poll::Ready(None);
        }
        shared.loan.poll_take(cx).map(|held| rewound(held, shared))
    }
}

fn rewound<B>(mut held: BoxedBuffer<B>, shared: &Arc<Shared<B>>) -> Option<ReplayBody<B>> {
    if held.copying() == CopyState::Lost {
        return None;
    }
    held.as_mut().rewind();
    Some(ReplayBody::lent(held, shared.clone()))
}

impl<B> Drop for ReplayHandle<B> {
    fn drop(&mut self) {
        if let Some(shared) = &self.shared {
            shared.loan.abandon();
        }
    }
}

impl<B> Drop for LentBody<B> {
    fn drop(&mut self) {
        self.give_back();
    }
}

impl<B> LentBody<B> {
    fn give_back(&mut self) {
        if let Some(held) = self.held.take() {
            if held.copying() == CopyState::Lost {
                self.shared.fate.store(LOST, Relaxed);
            }
            self.shared.loan.give_back(held);
        }
    }
}

impl<B: Body<Data = Bytes, Error: Into<BoxError>>> LentBody<B> {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let wish = self.shared.loan.request();
        let Some(held) = self.held.as_mut() else { return reclaimed() };
        match wish {
            RecallRequest::WhenDone => {}
            RecallRequest::Abandoned => held.as_mut().forget(),
            RecallRequest::Now => {
                self.give_back();
                return reclaimed();
            }
        }
        if self.shared.fate.load(Relaxed) == UNREAD {
            self.shared.fate.store(READ, Relaxed);
        }
        let polled = held.as_mut().poll_frame(cx);
        if held.copying() == CopyState::Lost {
            self.shared.fate.store(LOST, Relaxed);
        }
        if polled.is_pending() && self.shared.loan.wait(cx.waker()) == RecallRequest::Now {
            self.give_back();
            return reclaimed();
        }
        polled.map(|frame| frame.map(|frame| frame.map_err(Into::into)))
    }
}

fn reclaimed() -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
    Poll::Ready(Some(Err(BodyReclaimed(()).into())))
}

impl<B: Body<Data = Bytes, Error: Into<BoxError>>> Body for ReplayBody<B> {
    type Data = Bytes;
    type Error = BoxError;

    #[inline]
    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.project().kind.project() {
            KindProjection::Passing { body } => {
                body.poll_frame(cx).map(|frame| frame.map(|frame| frame.map_err(Into::into)))
            }
            KindProjection::Local { bytes } if bytes.is_empty() => Poll::Ready(None),
            KindProjection::Local { bytes } => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            KindProjection::Lent { lent } => lent.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Passing { body } => body.is_end_stream(),
            Kind::Local { bytes } => bytes.is_empty(),
            // a reclaimed body has not ended
            Kind::Lent { lent } => lent.held.as_ref().is_some_and(|held| held.is_end_stream()),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Passing { body } => body.size_hint(),
            Kind::Local { bytes } => SizeHint::with_exact(bytes.len() as u64),
            Kind::Lent { lent } => lent.held.as_ref().map_or_else(SizeHint::default, |held| held.size_hint()),
        }
    }
}

impl<B> Default for ReplayBody<B> {
    fn default() -> Self {
        Bytes::new().into()
    }
}

impl<B> From<Bytes> for ReplayBody<B> {
    fn from(bytes: Bytes) -> Self {
        Self { kind: Kind::Local { bytes } }
    }
}

#[cfg(test)]
mod half_sent;
#[cfg(test)]
mod tests;
