//! The decision: again, when and towards whom; or no more, and why.

use std::time::Duration;

use http::{Method, StatusCode};

use super::backoff::{ceiling, full_jitter};
use super::{Pushback, RetryOverride, RetryPolicy, Shown};
use crate::cause::{BadGatewayCause as Cause, Evidence, Prospect, Replay, RetryStop};

/// gRPC's codes that the rules know.
const RESOURCE_EXHAUSTED: u8 = 8;
const UNAVAILABLE: u8 = 14;

/// What a decision rests on, beside the policy.
#[derive(Clone, Copy, Debug)]
pub struct Situation<'a> {
    /// What the last attempt's answer shows.
    pub shown: Shown<'a>,
    /// The request's method.
    pub method: &'a Method,
    /// The request has an `Idempotency-Key`.
    pub keyed: bool,
    /// The request has a precondition: `If-Match`, `If-None-Match`, `If-Unmodified-Since`.
    pub conditional: bool,
    /// What there is to send again.
    pub spare: Spare,
    /// The number of the attempt that failed; the first is 1.
    pub attempt: u8,
    /// An attempt before this one met a stale connection.
    pub met_stale: bool,
    /// What is left of the time for all attempts; `None` where there is no limit.
    pub remaining: Option<Duration>,
    /// How long an attempt takes as a rule; `None` while nobody knows.
    pub median: Option<Duration>,
    /// What the upstream says of a further attempt.
    pub pushback: Option<Pushback>,
    /// What is different for this request.
    pub exception: Option<RetryOverride>,
}

impl<'a> Situation<'a> {
    /// A first attempt that can be repeated, under no time limit.
    pub const fn new(shown: Shown<'a>, method: &'a Method) -> Self {
        Self {
            shown,
            method,
            keyed: false,
            conditional: false,
            spare: Spare::Kept,
            attempt: 1,
            met_stale: false,
            remaining: None,
            median: None,
            pushback: None,
            exception: None,
        }
    }
}

/// What there is to send again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spare {
    /// The whole request.
    Kept,
    /// Not all of it: no copy was made, or its body was too long for one.
    Gone,
    /// It does not matter: an answer's head was handed on.
    Committed,
}

/// Whether there is a further attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// There is; a token has been withdrawn for it, if it needs one.
    Retry {
        /// The pause before it.
        after: Duration,
        /// Where it should go.
        toward: Toward,
    },
    /// There is not.
    Stop(RetryStop),
}

/// Where a further attempt should go, if there is a choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Toward {
    /// Anywhere: the same peer will probably answer.
    SamePeer,
    /// To the same peer, but on none of the connections that are there.
    FreshConnection,
    /// To another peer, if there is one.
    OtherPeer,
}

/// Decides whether a failed request is sent again.
///
/// Without a look at the attempts before, a request that was proven not to be sent is repeated whatever its method,
/// all others if they are idempotent (RFC 9110 section 9.2.2) or were said to be. A write under a precondition is not: where
/// the first attempt was processed, a second one is answered with 412. `withdraw` takes a token from the
/// budget; it is called last, once, and only if everything else allows the attempt. All values of `random` are
/// equally likely.
///
/// The first retry of a stream that the upstream refused unprocessed takes no token: `REFUSED_STREAM`, or a GOAWAY below it
/// (RFC 9113 section 8.7). It is gRPC's "transparent retry" (proposal A6), one for each call.
pub fn decide(
    policy: &RetryPolicy,
    situation: &Situation<'_>,
    random: u64,
    withdraw: impl FnOnce() -> bool,
) -> Decision {
    let planned = may(policy, situation).and_then(|kind| {
        let after = pause(policy, situation, kind, random)?;
        Ok(Decision::Retry { after, toward: kind.toward })
    });
    match planned {
        Ok(retry) if is_transparent(situation) || withdraw() => retry,
        Ok(_) => Decision::Stop(RetryStop::Budget),
        Err(stop) => Decision::Stop(stop),
    }
}

/// Whether a retry needs no token: the upstream has refused the stream unprocessed, for the first time.
fn is_transparent(situation: &Situation<'_>) -> bool {
    situation.attempt == 1
        && matches!(situation.shown, Shown::Failure(failure)
            if failure.cause() == Cause::StreamRefused && failure.replay() == Replay::NotSent)
}

/// What the rules make of a failure.
#[derive(Clone, Copy)]
struct Kind {
    replay: Replay,
    pace: Pace,
    toward: Toward,
    stale: bool,
}

/// Whether time mends it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pace {
    /// Nothing was wrong with the peer that time would mend: the first retry needs no pause.
    Prompt,
    Pausing,
}

/// Whether a further attempt is allowed, whenever it is.
fn may(policy: &RetryPolicy, situation: &Situation<'_>) -> Result<Kind, RetryStop> {
    if let Shown::Failure(failure) = situation.shown {
        failure.retry_stop().map_or(Ok(()), Err)?;
    }
    if situation.spare == Spare::Committed {
        return Err(RetryStop::Committed);
    }
    let exception = situation.exception;
    if exception.is_some_and(|exception| exception.none) {
        return Err(RetryStop::Override);
    }
    let kind = kind(policy, situation.shown)?;
    let repeatable = kind.replay == Replay::NotSent
        || is_repeatable(situation)
        || exception.is_some_and(|exception| exception.idempotent)
        || (kind.stale && situation.keyed && policy.trusts_keys);
    if !repeatable {
        return Err(RetryStop::Method);
    }
    let limit = exception.and_then(|exception| exception.attempts).unwrap_or(policy.attempts);
    if situation.attempt >= limit || (kind.stale && situation.met_stale) {
        return Err(RetryStop::Attempts);
    }
    if situation.spare == Spare::Gone {
        return Err(RetryStop::NotReplayable);
    }
    Ok(kind)
}

/// The failure's own facts; `Err` where it is never repeated.
fn kind(policy: &RetryPolicy, shown: Shown<'_>) -> Result<Kind, RetryStop> {
    match shown {
        Shown::Failure(failure) if failure.evidence() == Evidence::LocalRefusal => Err(RetryStop::LocalRefusal),
        Shown::Failure(failure) if failure.cause() == Cause::UpstreamStatus => {
            relayed(policy, failure.status(), failure.replay())
        }
        Shown::Failure(failure) => of_cause(failure.cause(), failure.replay()),
        Shown::Cause(Cause::UpstreamStatus) => relayed(policy, Cause::UpstreamStatus.status(), Replay::IdempotentOnly),
        // a cause alone proves nothing
        Shown::Cause(cause) => of_cause(cause, cause.replay().inferred()),
        Shown::Answer(status) => relayed(policy, status, Replay::IdempotentOnly),
        Shown::Grpc(code) => relayed_grpc(policy, code),
    }
}

fn of_cause(cause: Cause, replay: Replay) -> Result<Kind, RetryStop> {
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
        _ if stale || cause == Cause::NotDispatched => Toward::FreshConnection,
        Prospect::SamePeer => Toward::SamePeer,
        Prospect::OtherPeer | Prospect::AfterDelay => Toward::OtherPeer,
        Prospect::Futile => return Err(RetryStop::NotRetryable),
    };
    let prompt = cause.prospect() != Prospect::AfterDelay && (replay == Replay::NotSent || stale);
    match replay {
        Replay::Never => Err(RetryStop::NotRetryable),
        replay => Ok(Kind { replay, pace: if prompt { Pace::Prompt } else { Pace::Pausing }, toward, stale }),
    }
}

/// An answer of the upstream's own.
fn relayed(policy: &RetryPolicy, status: StatusCode, replay: Replay) -> Result<Kind, RetryStop> {
    let repeated = match status {
        StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => true,
        StatusCode::TOO_MANY_REQUESTS => policy.repeats_too_many,
        _ => false,
    };
    match replay {
        replay @ (Replay::NotSent | Replay::IdempotentOnly) if repeated => {
            Ok(Kind { replay, pace: Pace::Pausing, toward: Toward::OtherPeer, stale: false })
        }
        _ => Err(RetryStop::NotRetryable),
    }
}

/// A gRPC status in the head: nothing was handed to the caller yet (gRPC proposal A6, "Trailers-Only").
///
/// A6 leaves it to the service's owner which codes are repeated. `UNAVAILABLE` does not prove that nothing was
/// processed, so that it is taken for a 503: all gRPC is POST, and [`RetryOverride::idempotent`] is how the owner speaks.
/// What the server's logic never saw (A6, "Transparent Retries") comes as a cause that is proven not sent.
fn relayed_grpc(policy: &RetryPolicy, code: u8) -> Result<Kind, RetryStop> {
    let status = match code {
        UNAVAILABLE => StatusCode::SERVICE_UNAVAILABLE,
        RESOURCE_EXHAUSTED => StatusCode::TOO_MANY_REQUESTS,
        _ => return Err(RetryStop::NotRetryable),
    };
    relayed(policy, status, Replay::IdempotentOnly)
}

/// Whether a request that may have been processed can be sent again and be answered alike.
fn is_repeatable(situation: &Situation<'_>) -> bool {
    is_idempotent(situation.method) && (!situation.conditional || is_safe(situation.method))
}

/// RFC 9110 section 9.2.1: nothing changes by it.
pub(super) fn is_safe(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE)
}

/// RFC 9110 section 9.2.2; what a method of an extension does is not known here.
pub(super) fn is_idempotent(method: &Method) -> bool {
    is_safe(method) || matches!(*method, Method::PUT | Method::DELETE)
}

/// The pause; `Err` where there is no time for it and an attempt of the usual length.
fn pause(policy: &RetryPolicy, situation: &Situation<'_>, kind: Kind, random: u64) -> Result<Duration, RetryStop> {
    let room = match situation.remaining {
        None => Duration::MAX,
        Some(Duration::ZERO) => return Err(RetryStop::Deadline),
        Some(remaining) => remaining.checked_sub(situation.median.unwrap_or_default()).ok_or(RetryStop::Deadline)?,
    };
    let asked = match situation.pushback {
        None => Duration::ZERO,
        Some(Pushback::After(pause)) if pause <= policy.patience.min(room) => pause,
        Some(_) => return Err(RetryStop::Pushback),
    };
    let retries = situation.attempt.saturating_sub(1);
    let spread = match kind.pace {
        Pace::Prompt if retries == 0 && asked.is_zero() => Duration::ZERO,
        // never before the time asked for, and not all of those who were asked at once
        _ => ceiling(policy.base, policy.max, retries).min(room.saturating_sub(asked)),
    };
    Ok(asked + full_jitter(spread, random))
}

#[cfg(test)]
mod tests;
