//! How a service is called again: as tower's, or as hyper's.

use std::convert::Infallible;
use std::future::Future;
use std::task::{Context, Poll};

use http::{Request, Response};

use crate::cause::Failure;

/// What an error that ends an attempt tells.
///
/// Retry acts on failures that have a record. A service that never errs shows them in its responses; one whose error
/// is the record itself, as [`ReverseProxy`](https://docs.rs/tower-upstream/latest/tower_upstream/client/struct.ReverseProxy.html)'s
/// is, shows them there.
#[diagnostic::on_unimplemented(
    message = "`RetryLayer` cannot see in `{Self}` whether it is safe to send a request again",
    label = "the service inside errs with `{Self}`",
    note = "put `ClassifyLayer` right around the service, inside of `RetryLayer`: its answers carry causes, and it never errs"
)]
pub trait Told: Sized + sealed::Sealed {
    #[doc(hidden)]
    fn record(&self) -> &Failure;

    #[doc(hidden)]
    fn amend(self, amend: impl FnOnce(Failure) -> Failure) -> Self;
}

impl Told for Infallible {
    fn record(&self) -> &Failure {
        match *self {}
    }

    fn amend(self, _: impl FnOnce(Failure) -> Failure) -> Self {
        self
    }
}

impl Told for Failure {
    fn record(&self) -> &Failure {
        self
    }

    fn amend(self, amend: impl FnOnce(Failure) -> Failure) -> Self {
        amend(self)
    }
}

/// One of the two ways to call a service.
pub trait Way<S, B>: sealed::Sealed {
    #[doc(hidden)]
    type Body;
    #[doc(hidden)]
    type Error;
    #[doc(hidden)]
    type Future: Future<Output = Result<Response<Self::Body>, Self::Error>>;

    #[doc(hidden)]
    fn poll_ready(service: &mut S, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>>;

    #[doc(hidden)]
    fn call(service: &mut S, request: Request<B>) -> Self::Future;
}

/// As a `tower::Service`.
#[derive(Clone, Copy, Debug)]
pub enum ByTower {}

/// As a `hyper::service::Service`.
#[derive(Clone, Copy, Debug)]
pub enum ByHyper {}

impl<S, B, R> Way<S, B> for ByTower
where
    S: tower_service::Service<Request<B>, Response = Response<R>>,
{
    type Body = R;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(service: &mut S, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        service.poll_ready(cx)
    }

    fn call(service: &mut S, request: Request<B>) -> S::Future {
        service.call(request)
    }
}

impl<S, B, R> Way<S, B> for ByHyper
where
    S: hyper::service::Service<Request<B>, Response = Response<R>>,
{
    type Body = R;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(_: &mut S, _: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(service: &mut S, request: Request<B>) -> S::Future {
        service.call(request)
    }
}

mod sealed {
    #[allow(unnameable_types)] // that is its purpose
    pub trait Sealed {}
    impl Sealed for super::ByTower {}
    impl Sealed for super::ByHyper {}
    impl Sealed for std::convert::Infallible {}
    impl Sealed for crate::cause::Failure {}
}
