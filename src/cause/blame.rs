//! Blame: whether the end of a call counts against the upstream.
//!
//! The one table that the circuit breaker, the limiter, learned timeouts, retry and the statistics read; the page
//! [`failure_table`](crate::guide::failure_table) shows it.

use http::StatusCode;

use super::BadGatewayCause;

/// The verdict on the upstream at the end of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Blame {
    /// It works.
    Success,
    /// It responds, and asks for less load.
    Overload,
    /// It responds, with a status that stands for a failure: it lives, but this route may not.
    ErrorResponse,
    /// It failed to respond, or to respond completely.
    Failure,
    /// No verdict: the client, the gateway or chance ended the call.
    Nothing,
}

/// The end of a call, as far as it matters for blame.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct CallEnding {
    /// The status; that of gRPC as its [HTTP equivalent](super::Protocol::http_equivalent); `None` for an error that was not
    /// classified.
    pub(crate) status: Option<StatusCode>,
    /// The cause of the failure, if it was classified.
    pub(crate) cause: Option<BadGatewayCause>,
    /// The response has `Retry-After`.
    pub(crate) has_retry_after: bool,
}

/// Judges the end of a call; `fails`: the statuses of the upstream's own responses that stand for a failure.
///
/// A cause decides, if there is one; otherwise, and for responses of the upstream itself, the status does.
#[inline]
pub(crate) fn blame(end: CallEnding, fails: fn(StatusCode) -> bool) -> Blame {
    match (end.status, end.cause) {
        (Some(status), None) if status.as_u16() < 400 => Blame::Success,
        _ => blame_failure(end, fails),
    }
}

#[cold]
fn blame_failure(end: CallEnding, fails: fn(StatusCode) -> bool) -> Blame {
    // an unclassified error counts as the upstream's
    let Some(status) = end.status else { return Blame::Failure };
    let relayed = match end.cause {
        None => false,
        Some(BadGatewayCause::UpstreamStatus) => true,
        Some(cause) if cause.is_upstream_failure() => return Blame::Failure,
        Some(_) => return Blame::Nothing,
    };
    match status.as_u16() {
        429 => Blame::Overload,
        503 if end.has_retry_after => Blame::Overload,
        _ if fails(status) => Blame::ErrorResponse,
        // a failure that the status does not show, named by a classifier
        ..=499 if relayed => Blame::ErrorResponse,
        _ => Blame::Success,
    }
}

/// Whether a status is one that gateways use: 502, 503 and 504.
///
/// A 500 is usually the fault of one request.
pub(crate) fn is_gateway_error(status: StatusCode) -> bool {
    matches!(status.as_u16(), 502..=504)
}

impl Blame {
    /// Whether the end counts against the upstream.
    pub(crate) fn is_failure(self) -> bool {
        matches!(self, Self::Failure | Self::ErrorResponse)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use BadGatewayCause as Cause;

    fn of(status: u16, cause: impl Into<Option<Cause>>, fails: fn(StatusCode) -> bool) -> Blame {
        let status = StatusCode::from_u16(status).ok();
        blame(CallEnding { status, cause: cause.into(), has_retry_after: false }, fails)
    }

    #[test]
    fn the_cause_decides_and_the_status_is_the_last_resort() {
        for cause in Cause::ALL.iter().copied().filter(|cause| *cause != Cause::UpstreamStatus) {
            let expected = if cause.is_upstream_failure() { Blame::Failure } else { Blame::Nothing };
            for status in [200, 429, 500, 503] {
                assert_eq!(of(status, cause, is_gateway_error), expected, "{cause}");
            }
        }
        for (status, expected) in [
            (101, Blame::Success),
            (200, Blame::Success),
            (404, Blame::Success),
            (429, Blame::Overload),
            (500, Blame::Success),
            (501, Blame::Success),
            (502, Blame::ErrorResponse),
            (503, Blame::ErrorResponse),
            (504, Blame::ErrorResponse),
        ] {
            assert_eq!(of(status, None, is_gateway_error), expected, "{status}");
            if status >= 429 {
                assert_eq!(of(status, Cause::UpstreamStatus, is_gateway_error), expected, "{status}");
            }
        }
        assert_eq!(of(200, Cause::UpstreamStatus, is_gateway_error), Blame::ErrorResponse, "by a classifier");
        assert_eq!(blame(CallEnding::default(), is_gateway_error), Blame::Failure, "an unclassified error");
    }

    #[test]
    fn every_500_counts_if_configured_and_overload_never_does() {
        let all = |status: StatusCode| status.is_server_error() || status == 429;
        let told = [500, 501, 429].map(|status| of(status, None, all));
        assert_eq!(told, [Blame::ErrorResponse, Blame::ErrorResponse, Blame::Overload]);
        let busy =
            CallEnding { status: StatusCode::from_u16(503).ok(), has_retry_after: true, ..CallEnding::default() };
        assert_eq!(blame(busy, all), Blame::Overload);
    }
}
