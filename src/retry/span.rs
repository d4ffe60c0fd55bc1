//! The span of an attempt.

use http::{Request, Response};
use tracing::{Level, Span, field::Empty, span::Entered};

use super::call::Told;
use crate::cause::{BadGatewayCause, is_local};
use crate::event::excerpt;

/// The span of an attempt, where somebody listens.
///
/// Boxed, as it is rare: a call carries a pointer that is null as a rule.
#[derive(Default)]
pub(crate) struct AttemptSpan(Option<Box<Span>>);

impl AttemptSpan {
    /// Opens it for a request that was sent so many times before.
    #[inline(always)]
    pub(crate) fn open<B>(request: &Request<B>, resends: u32) -> Self {
        if tracing::span_enabled!(target: "tower_upstream", Level::DEBUG) {
            return Self(Some(Box::new(open(request, resends))));
        }
        Self(None)
    }

    /// Does a part of the attempt's work, until what it returns is dropped.
    #[inline(always)]
    pub(crate) fn enter(&self) -> Option<Entered<'_>> {
        self.0.as_ref().map(|span| span.enter())
    }

    /// Tells how it ended.
    #[inline(always)]
    pub(crate) fn ended<B, E: Told>(&self, result: Result<&Response<B>, &E>) {
        if let Some(span) = &self.0 {
            record(span, result);
        }
    }
}

#[cold]
fn record<B, E: Told>(span: &Span, result: Result<&Response<B>, &E>) {
    let cause = match result {
        Ok(response) => {
            // one of our own was not received
            if !is_local(response.extensions()) {
                span.record("http.response.status_code", response.status().as_u16());
            }
            BadGatewayCause::of(response)
        }
        Err(error) => Some(error.record().cause()),
    };
    if let Some(cause) = cause {
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
