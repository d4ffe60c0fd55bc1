//! The upstream's response body.

use std::any::Any;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::Version;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use crate::body::BoxError;
use crate::cause::{BadGatewayCause, Detail, Failure};
use crate::exchange::{Detach, Detachable};

/// A response body that the sweep can drop.
pub(crate) struct SharedBody<X>(Detachable<X>);

impl<X> SharedBody<X> {
    #[inline]
    pub(super) fn new(body: X) -> Self {
        Self(Detachable::new(body))
    }

    /// Shows the body; `None` once the sweep has dropped it.
    pub(super) fn show<R>(&self, show: impl FnOnce(&X) -> R) -> Option<R> {
        self.0.show(show)
    }
}

impl<X: Send + 'static> SharedBody<X> {
    /// Shares the body with the sweep.
    pub(super) fn share(&mut self) -> Arc<dyn Detach> {
        self.0.share()
    }
}

impl<X> Body for SharedBody<X>
where
    X: Body<Data = Bytes> + Unpin,
    X::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    #[inline]
    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let polled = self.0.poll_own(|body| body.poll_frame(cx));
        match polled {
            Some(polled) => polled.map_err(Into::into),
            None => Poll::Ready(Some(Err(Failure::new(BadGatewayCause::ClientClosed).into()))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.0.show(X::is_end_stream).unwrap_or(false)
    }

    fn size_hint(&self) -> SizeHint {
        self.0.show(X::size_hint).unwrap_or_default()
    }
}

/// Whether an HTTP/2 body that just ended was truncated: `RST_STREAM(NO_ERROR)` looks like an end, but only
/// `END_STREAM` is one (RFC 9113 section 8.1). Only hyper's own body shows the difference.
pub(super) fn was_truncated<B: Body + 'static>(body: &B, version: Version) -> bool {
    version == Version::HTTP_2
        && (body as &dyn Any).downcast_ref::<Incoming>().is_some_and(|incoming| !incoming.is_end_stream())
}

/// The failure of a truncated body.
pub(super) fn truncated() -> Failure {
    Failure::builder(BadGatewayCause::IncompleteBody).detail(Detail::H2(0)).build()
}
