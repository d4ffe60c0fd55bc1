//! The future of a call to a pool, and its response body.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::Response;
use http_body::Body;
use pin_project_lite::pin_project;

use super::endpoint::EndpointSpec;
use crate::body::{BoxError, TrackedUpload, WrapBody};
use crate::cause::Failure;
use crate::classify::SharedBody;
use crate::exchange::{ExchangeFuture, middleware_body};

/// The call to an endpoint.
pub(super) type Call<S, B> = ExchangeFuture<S, B, EndpointSpec>;

pin_project! {
    /// The future of a [`Balance`](super::Balance).
    #[derive(Debug)]
    #[must_use = "futures do nothing unless polled"]
    pub struct BalanceFuture<S, B>
    where
        S: WrapBody<TrackedUpload<B>>,
        B: Body,
    {
        #[pin]
        call: Call<S, B>,
    }
}

impl<S, B> BalanceFuture<S, B>
where
    S: WrapBody<TrackedUpload<B>>,
    B: Body,
{
    #[inline]
    pub(super) fn new(call: Call<S, B>) -> Self {
        Self { call }
    }
}

impl<S, B, X, E> Future for BalanceFuture<S, B>
where
    S: WrapBody<TrackedUpload<B>, Body = X, ServiceError = E>,
    B: Body,
    X: Body<Data = Bytes, Error: Into<BoxError>> + Send + Unpin + 'static,
    E: Into<BoxError>,
{
    type Output = Result<Response<BalanceBody<X>>, Infallible>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.project().call.poll_as(cx)
    }
}

middleware_body! {
    /// The response body of a [`Balance`](super::Balance): the endpoint's, or that of a local response.
    ///
    /// Its error is a [`Failure`].
    BalanceBody<X> EndpointSpec, SharedBody<X>, Failure,
    { X: Body<Data = Bytes, Error: Into<BoxError>> + Send + Unpin + 'static, }
}
