//! The span of an attempt.

use http::{Request, Response};
use tracing::{Level, Span, field::Empty, span::Entered};

use crate::cause::{BadGatewayCause, Failure, is_local};
use crate::event::excerpt;

/// The span of an attempt, where a subscriber is interested in it.
///
/// Boxed, as it is rare: a call carries a pointer that is usually null.
#[derive(Default)]
pub(crate) struct AttemptSpan(Option<Box<Span>>);

impl AttemptSpan {
    /// Opens the span of a request that was sent `resends` times before.
    #[inline]
    pub(crate) fn open<B>(request: &Request<B>, resends: u32) -> Self {
        if tracing::span_enabled!(target: "tower_upstream", Level::DEBUG) {
            return Self(Some(Box::new(open(request, resends))));
        }
        Self(None)
    }

    /// Enters the span until the guard is dropped.
    #[inline]
    pub(crate) fn enter(&self) -> Option<Entered<'_>> {
        self.0.as_ref().map(|span| span.enter())
    }

    /// Records the attempt's response.
    #[inline]
    pub(crate) fn on_response<B>(&self, response: &Response<B>) {
        if let Some(span) = &self.0 {
            record_response(span, response);
        }
    }

    /// Records that the attempt had no response.
    pub(crate) fn on_failure(&self, failure: &Failure) {
        if let Some(span) = &self.0 {
            span.record("error.type", failure.cause().as_str());
        }
    }
}

#[cold]
fn record_response<B>(span: &Span, response: &Response<B>) {
    // a local response was not received
    if !is_local(response.extensions()) {
        span.record("http.response.status_code", response.status().as_u16());
    }
    if let Some(cause) = BadGatewayCause::of(response) {
        span.record("error.type", cause.as_str());
    }
}

/// The names are OpenTelemetry's for an HTTP client span.
#[cold]
fn open<B>(request: &Request<B>, resends: u32) -> Span {
    let span = tracing::debug_span!(
        target: "tower_upstream",
        "attempt",
        otel.kind = "client",
        http.request.method = &*excerpt(request.method().as_str()),
        server.address = Empty,
        http.request.resend_count = Empty,
        http.response.status_code = Empty,
        error.type = Empty,
    );
    if let Some(host) = request.uri().host() {
        span.record("server.address", &*excerpt(host));
    }
    if resends > 0 {
        span.record("http.request.resend_count", resends);
    }
    span
}
