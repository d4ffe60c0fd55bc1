//! Maps the end of a call to a result for the circuit.

use http::StatusCode;

use crate::cause::{BadGatewayCause, BreakerVerdict};
use crate::exchange::{CancelReason, Outcome};

/// The meaning of the end of a call for the circuit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CallResult {
    /// The upstream is healthy.
    Success,
    /// The upstream failed.
    Failure,
    /// The upstream responds but asks for less load: ignored while the circuit is closed, a success for a probe.
    Overload,
    /// No information about the upstream.
    Neutral,
}

impl CallResult {
    /// The result of a completed call: by its cause, else by its status.
    #[inline]
    pub(crate) fn of(outcome: &Outcome, statuses: fn(StatusCode) -> bool) -> Self {
        match outcome.status() {
            Some(status) if status.as_u16() < 400 && outcome.cause().is_none() => Self::Success,
            status => Self::of_failure(outcome, status, statuses),
        }
    }

    #[cold]
    fn of_failure(outcome: &Outcome, status: Option<StatusCode>, statuses: fn(StatusCode) -> bool) -> Self {
        // an unclassified error counts as the upstream's
        let Some(status) = status else { return Self::Failure };
        let relayed = match outcome.cause() {
            None => false,
            Some(BadGatewayCause::UpstreamStatus) => true,
            Some(cause) => return Self::of_cause(cause),
        };
        match status.as_u16() {
            429 => Self::Overload,
            503 if outcome.has_retry_after() => Self::Overload,
            _ if statuses(status) => Self::Failure,
            // a failure that the HTTP status does not show, as with gRPC
            ..=499 if relayed => Self::Failure,
            _ => Self::Success,
        }
    }

    /// The result of a cancelled call.
    pub(crate) fn of_cancelled(why: CancelReason) -> Self {
        match why {
            CancelReason::TimedOut(cause) => Self::of_cause(cause),
            _ => Self::Neutral,
        }
    }

    fn of_cause(cause: BadGatewayCause) -> Self {
        match cause.breaker_verdict() {
            BreakerVerdict::Failure => Self::Failure,
            BreakerVerdict::Neutral => Self::Neutral,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::breaker::BreakerPolicy;

    fn verdict(status: u16, cause: impl Into<Option<BadGatewayCause>>, policy: BreakerPolicy) -> CallResult {
        let outcome = Outcome::response(StatusCode::from_u16(status).unwrap(), cause.into());
        CallResult::of(&outcome, policy.statuses)
    }

    #[test]
    fn the_cause_decides_and_the_status_is_the_last_resort() {
        use BadGatewayCause as Cause;
        let usual = BreakerPolicy::new();
        for cause in Cause::ALL {
            let told = match (cause, cause.breaker_verdict()) {
                (Cause::UpstreamStatus, _) => continue,
                (_, BreakerVerdict::Failure) => CallResult::Failure,
                _ => CallResult::Neutral,
            };
            for status in [200, 429, 500, 503] {
                assert_eq!(verdict(status, *cause, usual), told, "{cause}");
            }
        }
        for (status, told) in [
            (101, CallResult::Success),
            (200, CallResult::Success),
            (404, CallResult::Success),
            (429, CallResult::Overload),
            (500, CallResult::Success),
            (501, CallResult::Success),
            (502, CallResult::Failure),
            (503, CallResult::Failure),
            (504, CallResult::Failure),
        ] {
            assert_eq!(verdict(status, None, usual), told, "{status}");
            if status >= 429 {
                assert_eq!(verdict(status, Cause::UpstreamStatus, usual), told, "{status}");
            }
        }
        assert_eq!(verdict(200, Cause::UpstreamStatus, usual), CallResult::Failure, "as of gRPC");
    }

    #[test]
    fn every_500_counts_if_configured_and_overload_never_does() {
        let all = BreakerPolicy::new().statuses(|status| status.is_server_error() || status == 429);
        assert_eq!(
            [500, 501, 429].map(|status| verdict(status, None, all)),
            [CallResult::Failure, CallResult::Failure, CallResult::Overload]
        );
    }
}
