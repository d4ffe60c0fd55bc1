//! Decides which calls are samples of the upstream's load, and of which kind.

use http::StatusCode;

use super::samples::SampleKind;
use crate::cause::BadGatewayCause as Cause;

/// The kind of sample of a call that ended with this status and cause; `None` if it is not a sample.
///
/// A 4xx or a 500 may come sooner or later than a good response: it shows that the upstream is not overloaded, and not how
/// fast it is. Failures that are unrelated to load are not samples.
pub(super) fn sample_kind(status: Option<StatusCode>, cause: Option<Cause>) -> Option<SampleKind> {
    match (status?.as_u16(), cause) {
        (_, Some(cause)) if is_overload(cause) => Some(SampleKind::Overloaded),
        (429 | 503, None | Some(Cause::UpstreamStatus)) => Some(SampleKind::Overloaded),
        (101, _) => None,
        (..=399, None) => Some(SampleKind::Success),
        (400..=501, None | Some(Cause::UpstreamStatus)) => Some(SampleKind::Responded),
        _ => None,
    }
}

/// Whether a cause means overload or a timeout.
pub(super) fn is_overload(cause: Cause) -> bool {
    matches!(
        cause,
        Cause::ConnectionLimit
            | Cause::QueueTimeout
            | Cause::GatewayOverload
            | Cause::ConnectTimeout
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
        sample_kind(Some(StatusCode::from_u16(status).unwrap()), cause.into())
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
        }
        assert_eq!(kind_of(503, Cause::UpstreamStatus), Some(SampleKind::Overloaded));
        for cause in [Cause::FirstByteTimeout, Cause::ConnectionLimit, Cause::GatewayOverload, Cause::BodyReadTimeout] {
            assert_eq!(kind_of(cause.status().as_u16(), cause), Some(SampleKind::Overloaded), "{cause}");
            assert_eq!(kind_of(200, cause), Some(SampleKind::Overloaded), "in the body: {cause}");
        }
    }

    #[test]
    fn other_errors_show_that_the_upstream_responds() {
        for status in [400, 404, 500, 501] {
            assert_eq!(kind_of(status, None), Some(SampleKind::Responded), "{status}");
            assert_eq!(kind_of(status, Cause::UpstreamStatus), Some(SampleKind::Responded), "{status}");
        }
    }

    #[test]
    fn failures_unrelated_to_load_are_not_samples() {
        for status in [101, 502, 504] {
            assert_eq!(kind_of(status, None), None, "{status}");
        }
        for cause in [Cause::ConnectionRefused, Cause::CircuitOpen, Cause::UploadStalled, Cause::DnsTimeout] {
            assert_eq!(kind_of(cause.status().as_u16(), cause), None, "{cause}");
        }
        assert_eq!(sample_kind(None, None), None);
    }
}
