//! The retry decision: whether, when and where to retry, or why not.

use std::time::Duration;

use http::{Method, StatusCode};

use super::backoff::{ceiling, full_jitter};
use super::failure_signal::FailureSignal;
use super::pushback::Pushback;
use super::{RetryOverride, RetryPolicy};
use crate::cause::{BadGatewayCause as Cause, Evidence, Prospect, RESOURCE_EXHAUSTED, Replay, RetryStop, UNAVAILABLE};

/// The input of a decision, in addition to the policy.
#[derive(Clone, Copy, Debug)]
#[allow(clippy::struct_excessive_bools)] // independent facts
pub(crate) struct RetryContext<'a> {
    /// The failure signal of the last attempt.
    pub(crate) signal: FailureSignal<'a>,
    /// The request's method.
    pub(crate) method: &'a Method,
    /// The request has an `Idempotency-Key`.
    pub(crate) has_idempotency_key: bool,
    /// The request has a precondition: `If-Match`, `If-None-Match`, `If-Unmodified-Since`.
    pub(crate) conditional: bool,
    /// Whether the request can be replayed.
    pub(crate) replayability: Replayability,
    /// The number of the attempt that failed; the first is 1.
    pub(crate) attempt: u8,
    /// An attempt before this one met a stale connection.
    pub(crate) saw_stale_connection: bool,
    /// The remaining time for all attempts; `None` if unlimited.
    pub(crate) remaining: Option<Duration>,
    /// The median duration of an attempt; `None` if unknown.
    pub(crate) median: Option<Duration>,
    /// The upstream's statement about further attempts.
    pub(crate) pushback: Option<Pushback>,
    /// The per-request override.
    pub(crate) exception: Option<RetryOverride>,
    /// A pool has endpoints that the request was not sent to yet.
    pub(crate) has_others: bool,
}

impl<'a> RetryContext<'a> {
    /// A first attempt that can be replayed, without a time limit.
    pub(crate) const fn new(shown: FailureSignal<'a>, method: &'a Method) -> Self {
        Self {
            signal: shown,
            method,
            has_idempotency_key: false,
            conditional: false,
            replayability: Replayability::Replayable,
            attempt: 1,
            saw_stale_connection: false,
            remaining: None,
            median: None,
            pushback: None,
            exception: None,
            has_others: false,
        }
    }
}

/// Whether the request can be replayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Replayability {
    /// The request can be sent again.
    Replayable,
    /// The request cannot be sent again: no copy was made, or its body exceeded the cap.
    NotReplayable,
    /// No copy was made, because the budget was empty when the call began.
    WithoutBudget,
    /// A response head has been returned to the client already.
    Committed,
}

/// The result of [`decide`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Retry; a token has been withdrawn, if one is needed.
    Retry {
        /// The backoff before it.
        after: Duration,
        /// The target it should use.
        target: RetryTarget,
    },
    /// Do not retry.
    Stop(RetryStop),
}

/// The target of a retry, if there is a choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RetryTarget {
    /// Any peer, the same one included.
    SamePeer,
    /// The same peer, on a new connection.
    FreshConnection,
    /// Another peer, if there is one.
    OtherPeer,
}

/// Decides whether a failed request is sent again.
///
/// A request that was proven not to be sent may be retried whatever its method, all others if they are idempotent
/// (RFC 9110 section 9.2.2) or declared to be. A write under a precondition may not: if the first attempt was processed,
/// a second one would get a 412. `withdraw` takes a token from the budget; it is called last, once, and only if
/// everything else allows the attempt. All values of `random` are equally likely.
///
/// The first retry of a stream that the upstream refused unprocessed takes no token: `REFUSED_STREAM`, or a GOAWAY below it
/// (RFC 9113 section 8.7). It is gRPC's "transparent retry" (proposal A6), one for each call. A call that began while the
/// budget was empty has none: no copy of it was kept.
pub(crate) fn decide(
    policy: &RetryPolicy,
    situation: &RetryContext<'_>,
    random: u64,
    withdraw: impl FnOnce() -> bool,
) -> Decision {
    let planned = may_retry(policy, situation).and_then(|kind| {
        let after = delay(policy, situation, kind, random)?;
        Ok(Decision::Retry { after, target: kind.target })
    });
    let is_copied = situation.replayability == Replayability::Replayable;
    match planned {
        Ok(retry) if is_transparent(situation) || (withdraw() && is_copied) => retry,
        Ok(_) => Decision::Stop(RetryStop::Budget),
        Err(stop) => Decision::Stop(stop),
    }
}

/// Whether a retry needs no token: the upstream has refused the stream unprocessed, or the circuit of one of several endpoints
/// has, for the first time.
fn is_transparent(situation: &RetryContext<'_>) -> bool {
    situation.attempt == 1
        && situation.replayability == Replayability::Replayable
        && (is_refused_by_one(situation.signal)
            || matches!(situation.signal, FailureSignal::Failure(failure)
                if failure.cause() == Cause::StreamRefused && failure.replay() == Replay::NotSent))
}

/// Whether the circuit of one of several endpoints has refused the request.
fn is_refused_by_one(signal: FailureSignal<'_>) -> bool {
    matches!(signal, FailureSignal::Failure(failure) if failure.repeats_elsewhere())
}

/// The class of a failure, for the rules.
#[derive(Clone, Copy)]
struct FailureKind {
    replay: Replay,
    delay: Delay,
    target: RetryTarget,
    stale: bool,
}

/// Whether a retry needs a backoff.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Delay {
    /// The peer does not need time to recover: the first retry is immediate.
    Immediate,
    Backoff,
}

/// Whether a retry is allowed, regardless of time.
fn may_retry(policy: &RetryPolicy, situation: &RetryContext<'_>) -> Result<FailureKind, RetryStop> {
    if let FailureSignal::Failure(failure) = situation.signal {
        failure.retry_stop().map_or(Ok(()), Err)?;
    }
    if situation.replayability == Replayability::Committed {
        return Err(RetryStop::Committed);
    }
    let exception = situation.exception;
    if exception.is_some_and(|exception| exception.never) {
        return Err(RetryStop::Override);
    }
    let kind = classify(policy, situation.signal)?;
    let repeatable = kind.replay == Replay::NotSent
        || is_repeatable(situation)
        || exception.is_some_and(|exception| exception.idempotent)
        || (kind.stale && situation.has_idempotency_key && policy.trusts_keys);
    if !repeatable {
        return Err(RetryStop::Method);
    }
    let limit = exception.and_then(|exception| exception.attempts).unwrap_or(policy.attempts);
    if situation.attempt >= limit || (kind.stale && situation.saw_stale_connection) {
        return Err(RetryStop::Attempts);
    }
    if situation.replayability == Replayability::NotReplayable {
        return Err(RetryStop::NotReplayable);
    }
    Ok(kind)
}

/// Classifies the failure; `Err` if it is never retried.
fn classify(policy: &RetryPolicy, shown: FailureSignal<'_>) -> Result<FailureKind, RetryStop> {
    match shown {
        FailureSignal::Failure(failure) if failure.repeats_elsewhere() => Ok(FailureKind {
            replay: failure.replay(),
            delay: Delay::Immediate,
            target: RetryTarget::OtherPeer,
            stale: false,
        }),
        FailureSignal::Failure(failure) if failure.evidence() == Evidence::LocalRefusal => Err(RetryStop::LocalRefusal),
        FailureSignal::Failure(failure) if failure.cause() == Cause::UpstreamStatus => {
            relayed(policy, failure.status(), failure.replay(), |status| status.is_server_error())
        }
        FailureSignal::Failure(failure) => of_cause(failure.cause(), failure.replay()),
        FailureSignal::Cause(Cause::UpstreamStatus) => {
            relayed(policy, Cause::UpstreamStatus.status(), Replay::IdempotentOnly, is_repeated)
        }
        // a cause without a record proves nothing
        FailureSignal::Cause(cause) => of_cause(cause, cause.replay().inferred()),
        FailureSignal::Status(status) => relayed(policy, status, Replay::IdempotentOnly, is_repeated),
        FailureSignal::Grpc(code) => relayed_grpc(policy, code),
    }
}

fn of_cause(cause: Cause, replay: Replay) -> Result<FailureKind, RetryStop> {
    let refused = matches!(
        cause,
        Cause::NoHealthyUpstream
            | Cause::CircuitOpen
            | Cause::ConnectionLimit
            | Cause::QueueTimeout
            | Cause::GatewayOverload
    );
    if refused {
        return Err(RetryStop::LocalRefusal);
    }
    if cause == Cause::DeadlineExceeded {
        return Err(RetryStop::Deadline);
    }
    let stale = cause == Cause::StaleConnection;
    let toward = match cause.prospect() {
        _ if stale || cause == Cause::NotDispatched => RetryTarget::FreshConnection,
        Prospect::SamePeer => RetryTarget::SamePeer,
        Prospect::OtherPeer | Prospect::AfterDelay => RetryTarget::OtherPeer,
        Prospect::Futile => return Err(RetryStop::NotRetryable),
    };
    let prompt = cause.prospect() != Prospect::AfterDelay && (replay == Replay::NotSent || stale);
    match replay {
        Replay::Never => Err(RetryStop::NotRetryable),
        replay => Ok(FailureKind {
            replay,
            delay: if prompt { Delay::Immediate } else { Delay::Backoff },
            target: toward,
            stale,
        }),
    }
}

/// The statuses after which a request is repeated without a record of a failure.
fn is_repeated(status: StatusCode) -> bool {
    matches!(status, StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT)
}

/// A failure response of the upstream itself.
///
/// With a record, somebody counts its status as a failure: by default 502, 503 and 504, and others as the user says.
fn relayed(
    policy: &RetryPolicy,
    status: StatusCode,
    replay: Replay,
    repeats: fn(StatusCode) -> bool,
) -> Result<FailureKind, RetryStop> {
    let repeated = repeats(status) || (status == StatusCode::TOO_MANY_REQUESTS && policy.repeats_too_many);
    match replay {
        replay @ (Replay::NotSent | Replay::IdempotentOnly) if repeated => {
            Ok(FailureKind { replay, delay: Delay::Backoff, target: RetryTarget::OtherPeer, stale: false })
        }
        _ => Err(RetryStop::NotRetryable),
    }
}

/// A gRPC status in the head: the client has not received anything yet (gRPC proposal A6, "Trailers-Only").
///
/// A6 leaves the retryable codes to the owner of the service. `UNAVAILABLE` does not prove that nothing was processed, so it
/// is treated like a 503: all gRPC calls are POST, and the owner opts in by [`RetryOverride::idempotent`]. Calls that the
/// server's logic never saw (A6, "Transparent Retries") have a cause that is proven not sent.
fn relayed_grpc(policy: &RetryPolicy, code: u8) -> Result<FailureKind, RetryStop> {
    let status = match code {
        UNAVAILABLE => StatusCode::SERVICE_UNAVAILABLE,
        RESOURCE_EXHAUSTED => StatusCode::TOO_MANY_REQUESTS,
        _ => return Err(RetryStop::NotRetryable),
    };
    relayed(policy, status, Replay::IdempotentOnly, is_repeated)
}

/// Whether a request that may have been processed can be sent again with the same result.
fn is_repeatable(situation: &RetryContext<'_>) -> bool {
    is_idempotent(situation.method) && (!situation.conditional || is_safe(situation.method))
}

/// Safe methods (RFC 9110 section 9.2.1).
pub(super) fn is_safe(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE)
}

/// Idempotent methods (RFC 9110 section 9.2.2); extension methods are assumed not to be.
pub(super) fn is_idempotent(method: &Method) -> bool {
    is_safe(method) || matches!(*method, Method::PUT | Method::DELETE)
}

/// The backoff; `Err` if it and a typical attempt do not fit into the remaining time.
fn delay(
    policy: &RetryPolicy,
    situation: &RetryContext<'_>,
    kind: FailureKind,
    random: u64,
) -> Result<Duration, RetryStop> {
    let room = match situation.remaining {
        None => Duration::MAX,
        Some(Duration::ZERO) => return Err(RetryStop::Deadline),
        Some(remaining) => remaining.checked_sub(situation.median.unwrap_or_default()).ok_or(RetryStop::Deadline)?,
    };
    let asked = match situation.pushback {
        None => Duration::ZERO,
        // the `Retry-After` of one circuit is not about the others
        Some(_) if is_refused_by_one(situation.signal) => Duration::ZERO,
        Some(Pushback::After(pause)) if pause <= policy.max_retry_after.min(room) => pause,
        Some(_) => return Err(RetryStop::Pushback),
    };
    let retries = situation.attempt.saturating_sub(1);
    // another endpoint needs no time to recover from what this one did
    let elsewhere = situation.has_others && kind.target == RetryTarget::OtherPeer;
    let spread = match kind.delay {
        Delay::Immediate if (retries == 0 || elsewhere) && asked.is_zero() => Duration::ZERO,
        // never earlier than requested, and spread so that clients do not retry at the same moment
        _ => ceiling(policy.base_backoff, policy.max_backoff, retries).min(room.saturating_sub(asked)),
    };
    Ok(asked + full_jitter(spread, random))
}

#[cfg(test)]
mod tests;
