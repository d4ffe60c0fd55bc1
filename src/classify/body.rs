//! The response body under watch.

use std::any::Any;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{HeaderMap, Version};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::settings::{Ask, Settings};
use super::{BoxError, Scene};
use crate::cause::{BadGatewayCause, Detail, Failure};

/// The upstream's body under watch: its error is a [`Failure`], reported once.
///
/// Before an error it returns `Pending` once and wakes itself: hyper's server then flushes what came
/// before it cuts the connection, instead of dropping both. `size_hint`, `is_end_stream` and trailers
/// are those of the body.
pub struct ClassifiedBody<B> {
    body: B,
    version: Version,
    stage: Stage,
    /// Until it is over.
    ask: Option<Box<Ask>>,
    settings: Arc<Settings>,
}

pub(crate) enum Stage {
    Reading,
    /// These bytes came before the head was handed on.
    Data(Bytes),
    /// These trailers did: rare, and large.
    Trailers(Box<HeaderMap>),
    /// The failure is reported and waits for one more poll.
    Failing(Failure),
    Done,
}

impl<B> ClassifiedBody<B> {
    #[inline]
    pub(super) fn new(body: B, version: Version, stage: Stage, ask: Box<Ask>, settings: Arc<Settings>) -> Self {
        Self { body, version, stage, ask: Some(ask), settings }
    }
}

impl<B> Drop for ClassifiedBody<B> {
    #[inline]
    fn drop(&mut self) {
        if let Some(ask) = self.ask.take() {
            ask.shelve();
        }
    }
}

impl Stage {
    /// A frame was polled already.
    pub(crate) fn after(frame: Frame<Bytes>) -> Self {
        match frame.into_data().map_err(Frame::into_trailers) {
            Ok(data) => Self::Data(data),
            Err(Ok(trailers)) => Self::Trailers(Box::new(trailers)),
            Err(Err(_)) => Self::Reading,
        }
    }
}

impl<B> Body for ClassifiedBody<B>
where
    B: Body<Data = Bytes> + Unpin + 'static,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        let this = &mut *self;
        match std::mem::replace(&mut this.stage, Stage::Reading) {
            Stage::Reading => {}
            Stage::Data(data) => return Poll::Ready(Some(Ok(Frame::data(data)))),
            Stage::Trailers(trailers) => return Poll::Ready(Some(Ok(Frame::trailers(*trailers)))),
            Stage::Failing(failure) => {
                this.stage = Stage::Done;
                return Poll::Ready(Some(Err(failure)));
            }
            Stage::Done => {
                this.stage = Stage::Done;
                return Poll::Ready(None);
            }
        }
        let failure = match ready!(Pin::new(&mut this.body).poll_frame(cx)) {
            Some(Ok(frame)) => return Poll::Ready(Some(Ok(frame))),
            None if was_cut(&this.body, this.version) => cut(),
            None => {
                this.stage = Stage::Done;
                return Poll::Ready(None);
            }
            Some(Err(error)) => Failure::from_body_error(error, &Scene::default()),
        };
        let failure = match &mut this.ask {
            Some(ask) => this.settings.told(&mut ask.exchange, failure),
            None => failure,
        };
        this.stage = Stage::Failing(failure);
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn is_end_stream(&self) -> bool {
        match self.stage {
            Stage::Reading => self.body.is_end_stream(),
            Stage::Data(_) | Stage::Trailers(_) | Stage::Failing(_) => false,
            Stage::Done => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        let held = if let Stage::Data(data) = &self.stage { data.len() as u64 } else { 0 };
        let rest = if let Stage::Done = self.stage { SizeHint::with_exact(0) } else { self.body.size_hint() };
        let mut hint = SizeHint::new();
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper.saturating_add(held));
        }
        hint.set_lower(rest.lower().saturating_add(held));
        hint
    }
}

impl<B> fmt::Debug for ClassifiedBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClassifiedBody").field("ask", &self.ask).finish_non_exhaustive()
    }
}

/// Whether an HTTP/2 body that just ended was cut: `RST_STREAM(NO_ERROR)` looks like an end, but only
/// `END_STREAM` is one (RFC 9113 section 8.1). hyper's own body alone can tell.
pub(crate) fn was_cut<B: Body + 'static>(body: &B, version: Version) -> bool {
    version == Version::HTTP_2
        && (body as &dyn Any).downcast_ref::<Incoming>().is_some_and(|incoming| !incoming.is_end_stream())
}

/// The failure of such a body.
pub(crate) fn cut() -> Failure {
    Failure::builder(BadGatewayCause::IncompleteBody).detail(Detail::H2(0)).build()
}
