//! Decides which calls are samples of the upstream's load, and of which kind.

use http::StatusCode;

use super::samples::SampleKind;
use crate::cause::BadGatewayCause as Cause;

/// The kind of sample of a call that ended with this status and cause; `None` if it is not a sample.
///
/// Failures that are unrelated to load are fast or slow for other reasons, and so are 4xx responses: they are not samples.
pub(super) fn sample_kind(status: Option<StatusCode>, cause: Option<Cause>) -> Option<SampleKind> {
    match (status?, cause) {
        (_, Some(cause)) if is_overload(cause) => Some(SampleKind::Overloaded),
        (StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE, None | Some(Cause::UpstreamStatus)) => {
            Some(SampleKind::Overloaded)
        }
        (StatusCode::SWITCHING_PROTOCOLS, _) => None,
        (status, None) if status.as_u16() < 400 => Some(SampleKind::Success),
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
    fn failures_unrelated_to_load_are_not_samples() {
        for status in [101, 400, 404, 500, 502, 504] {
            assert_eq!(kind_of(status, None), None, "{status}");
        }
        for cause in [Cause::ConnectionRefused, Cause::CircuitOpen, Cause::UploadStalled, Cause::DnsTimeout] {
            assert_eq!(kind_of(cause.status().as_u16(), cause), None, "{cause}");
        }
        assert_eq!(sample_kind(None, None), None);
    }
}
