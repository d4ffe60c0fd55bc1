//! Decides which calls are samples of the upstream's load, and of which kind.

use http::StatusCode;

use super::samples::SampleKind;
use crate::cause::{BadGatewayCause as Cause, Blame, is_gateway_error};
use crate::exchange::Outcome;

/// The kind of sample of a call that ended like this; `None` if it is not a sample.
///
/// A 4xx or a 500 may come sooner or later than a good response: it shows that the upstream is not overloaded, and not how
/// fast it is. Failures that are unrelated to load are not samples.
pub(super) fn sample_kind(outcome: &Outcome) -> Option<SampleKind> {
    match outcome.blame(is_gateway_error) {
        Blame::Success if outcome.status() == Some(StatusCode::SWITCHING_PROTOCOLS) => None,
        Blame::Success if outcome.is_success() => Some(SampleKind::Success),
        Blame::Success => Some(SampleKind::Responded),
        Blame::Overload => Some(SampleKind::Overloaded),
        Blame::ErrorResponse if refuses(outcome) => Some(SampleKind::Overloaded),
        Blame::Failure if outcome.cause().is_some_and(is_overload) => Some(SampleKind::Overloaded),
        Blame::ErrorResponse | Blame::Failure | Blame::Nothing => None,
    }
}

/// Whether an error response is a 503 or gRPC's `UNAVAILABLE`.
fn refuses(outcome: &Outcome) -> bool {
    let by_a_classifier = outcome.cause().is_some() && outcome.status() != Some(StatusCode::SERVICE_UNAVAILABLE);
    let unavailable = |status| status == StatusCode::SERVICE_UNAVAILABLE;
    !by_a_classifier && outcome.blame(unavailable) == Blame::ErrorResponse
}

/// Whether a cause is a timeout of the wait for the upstream.
pub(super) fn is_overload(cause: Cause) -> bool {
    matches!(
        cause,
        Cause::ConnectTimeout
            | Cause::TlsTimeout
            | Cause::WriteTimeout
            | Cause::HeadTimeout
            | Cause::FirstByteTimeout
            | Cause::DeadlineExceeded
            | Cause::BodyReadTimeout
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind_of(status: u16, cause: impl Into<Option<Cause>>) -> Option<SampleKind> {
        sample_kind(&Outcome::response(StatusCode::from_u16(status).unwrap(), cause.into()))
    }

    #[test]
    fn good_responses_are_samples_of_latency() {
        for status in [200, 204, 304] {
            assert_eq!(kind_of(status, None), Some(SampleKind::Success), "{status}");
        }
    }

    #[test]
    fn refusals_and_timeouts_tell_of_load() {
        for status in [429, 503] {
            assert_eq!(kind_of(status, None), Some(SampleKind::Overloaded), "{status}");
            assert_eq!(kind_of(status, Cause::UpstreamStatus), Some(SampleKind::Overloaded), "{status}");
        }
        for cause in [Cause::FirstByteTimeout, Cause::WriteTimeout, Cause::BodyReadTimeout] {
            assert_eq!(kind_of(cause.status().as_u16(), cause), Some(SampleKind::Overloaded), "{cause}");
            assert_eq!(kind_of(200, cause), Some(SampleKind::Overloaded), "in the body: {cause}");
        }
    }

    #[test]
    fn other_errors_show_that_the_upstream_responds() {
        for status in [400, 404, 500, 501] {
            assert_eq!(kind_of(status, None), Some(SampleKind::Responded), "{status}");
        }
        assert_eq!(kind_of(500, Cause::UpstreamStatus), Some(SampleKind::Responded));
    }

    #[test]
    fn failures_unrelated_to_load_and_our_own_refusals_are_not_samples() {
        for status in [101, 502, 504] {
            assert_eq!(kind_of(status, None), None, "{status}");
        }
        assert_eq!(kind_of(200, Cause::UpstreamStatus), None, "by a classifier");
        for cause in
            [Cause::ConnectionRefused, Cause::CircuitOpen, Cause::UploadStalled, Cause::DnsTimeout, Cause::QueueTimeout]
        {
            assert_eq!(kind_of(cause.status().as_u16(), cause), None, "{cause}");
        }
        assert_eq!(sample_kind(&Outcome::error(&std::io::Error::other("unknown"))), None);
    }
}
