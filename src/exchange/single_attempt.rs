//! The modes of a middleware with one attempt: requests are sent once, and errors are passed on.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use tokio::time::Instant;

use super::spec::{BodyMode, ErrorMode, RequestMode, ResponseMode};
use super::{BoxError, CallContext, Expired, Outcome};
use crate::body::UploadCounters;
use crate::cause::{self, BadGatewayCause, ClientCall, ClientCalls, Failure, LocalResponse};

/// Requests are sent once, as they are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SendOnce;

impl<B> RequestMode<B> for SendOnce {
    type Body = B;
    type Started = ();
    type RetryState = ();
    type Replay = Infallible;

    #[inline]
    fn begin(&self, _: &Request<B>, _: &CallContext, _: bool) {}

    #[inline]
    fn wrap(&self, (): (), body: B, _: Instant, _: &mut Option<Arc<UploadCounters>>) -> ((), B) {
        ((), body)
    }
}

/// Passes on the inner service's errors and responses; only the middleware's own rejections become responses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PassErrors;

impl ErrorMode for PassErrors {
    type Notes = ();
    type BodyError = BoxError;

    const FLUSHES: bool = false;
    const SWEEPS_SHORT: bool = false;

    fn classify_not_ready(&self, (): &(), error: BoxError, _: ClientCalls) -> Failure {
        Failure::builder(BadGatewayCause::Unknown).source(error).build()
    }

    fn local_response(&self, (): &mut (), failure: &Failure, _: Option<Duration>) -> Response<Bytes> {
        local_response(failure)
    }

    fn body_error(error: BoxError) -> (BoxError, BadGatewayCause, Option<Failure>) {
        let failure = error.downcast_ref::<Failure>().cloned();
        let cause = failure.as_ref().map_or(BadGatewayCause::IncompleteBody, Failure::cause);
        (error, cause, failure)
    }

    fn report_expired(&self, (): &mut (), expired: Expired, failure: Failure) -> Failure {
        tracing::info!(
            target: "tower_upstream",
            limit = expired.name(),
            error.type = failure.cause().as_str(),
            "response body ended: {}", expired.reason()
        );
        failure
    }
}

/// The local response to a failure, which an outer layer completes.
pub(crate) fn local_response(failure: &Failure) -> Response<Bytes> {
    let mut response = cause::local_response(failure, failure.status(), None);
    response.extensions_mut().insert(LocalResponse);
    response
}

impl<E, X> ResponseMode<E, X> for PassErrors
where
    E: 'static,
    X: Body<Data = Bytes>,
    X::Error: Into<BoxError>,
{
    type Error = E;
    type Inner = X;

    fn failure(&self, (): &(), error: E, _: ClientCalls) -> Result<Failure, E> {
        Err(error)
    }

    fn error_outcome(error: &E) -> Outcome {
        Outcome::error(error)
    }

    fn not_ready(error: E) -> Result<BoxError, E> {
        Err(error)
    }

    #[inline]
    fn is_ordinary(&self, _: &Response<X>) -> bool {
        true
    }

    fn check(&self, (): &(), _: &mut Response<X>, _: ClientCalls, _: Option<ClientCall>) -> Option<Failure> {
        None
    }

    #[inline]
    fn inner(body: X) -> X {
        body
    }
}

impl<Y> BodyMode<Y> for PassErrors {}
