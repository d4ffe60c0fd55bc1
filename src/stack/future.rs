//! The future of a stack, and its response body.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::Response;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use super::BoxError;
use super::requests::RequestBody;
use super::spec::StackSpec;
use crate::body::WrapBody;
use crate::cause::Failure;
use crate::classify::SharedBody;
use crate::exchange::{ExchangeBody, ExchangeFuture, MakeBody};

pin_project! {
    /// The future of an [`Upstream`](super::Upstream).
    #[derive(Debug)]
    #[must_use = "futures do nothing unless polled"]
    pub struct UpstreamFuture<S, B>
    where
        B: Body<Data = Bytes>,
        B::Error: Into<BoxError>,
        S: WrapBody<RequestBody<B>>,
    {
        #[pin]
        pub(super) call: ExchangeFuture<S, B, StackSpec>,
    }
}

impl<S, B, X, E> Future for UpstreamFuture<S, B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
    S: WrapBody<RequestBody<B>, Body = X, ServiceError = E>,
    X: Body<Data = Bytes> + Send + Unpin + 'static,
    X::Error: Into<BoxError>,
    E: Into<BoxError>,
{
    type Output = Result<Response<UpstreamBody<X>>, Infallible>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.project().call.poll_as(cx)
    }
}

pin_project! {
    /// The response body of an [`Upstream`](super::Upstream): the inner service's, or that of a local response.
    ///
    /// Its error is a [`Failure`], reported once. `Default` and `From<Bytes>`.
    #[derive(Debug)]
    pub struct UpstreamBody<X> {
        #[pin]
        body: ExchangeBody<SharedBody<X>, StackSpec>,
    }
}

impl<X> MakeBody<ExchangeBody<SharedBody<X>, StackSpec>> for UpstreamBody<X> {
    #[inline]
    fn make(body: ExchangeBody<SharedBody<X>, StackSpec>) -> Self {
        Self { body }
    }
}

impl<X> Body for UpstreamBody<X>
where
    X: Body<Data = Bytes> + Send + Unpin + 'static,
    X::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = Failure;

    #[inline]
    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        self.project().body.poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<X> From<Bytes> for UpstreamBody<X> {
    fn from(bytes: Bytes) -> Self {
        Self { body: bytes.into() }
    }
}

impl<X> Default for UpstreamBody<X> {
    fn default() -> Self {
        Bytes::new().into()
    }
}
