use std::cell::Cell;

use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::cause::{Detail, Failure};

const MS: Duration = Duration::from_millis(1);

/// Not sent, if a client observed it; the cause alone proves nothing.
const NOT_SENT: [Cause; 13] = [
    Cause::GatewayResources,
    Cause::DnsTimeout,
    Cause::DnsFailure,
    Cause::ConnectionRefused,
    Cause::ConnectTimeout,
    Cause::Unroutable,
    Cause::ConnectFailed,
    Cause::TlsCertificate,
    Cause::TlsAlert,
    Cause::TlsFailed,
    Cause::TlsTimeout,
    Cause::StreamRefused,
    Cause::NotDispatched,
];

/// Perhaps processed, and another attempt may help.
const PERHAPS_PROCESSED: [Cause; 12] = [
    Cause::StaleConnection,
    Cause::WriteTimeout,
    Cause::ClosedBeforeResponse,
    Cause::ResetBeforeResponse,
    Cause::StreamReset,
    Cause::PeerUnresponsive,
    Cause::HeadTimeout,
    Cause::FirstByteTimeout,
    Cause::IncompleteHead,
    Cause::UpstreamStatus,
    Cause::GatewayInternal,
    Cause::Unknown,
];

/// Rejections of the gateway itself.
const REFUSED: [Cause; 5] =
    [Cause::NoHealthyUpstream, Cause::CircuitOpen, Cause::ConnectionLimit, Cause::QueueTimeout, Cause::GatewayOverload];

/// A retry would not help, or the response had begun.
const IN_VAIN: [Cause; 19] = [
    Cause::NoRoute,
    Cause::InvalidTarget,
    Cause::LoopDetected,
    Cause::TargetProhibited,
    Cause::DnsNotFound,
    Cause::WrongProtocol,
    Cause::UploadStalled,
    Cause::InvalidResponse,
    Cause::HeadTooLarge,
    Cause::UpgradeFailed,
    Cause::IncompleteBody,
    Cause::BodyReadTimeout,
    Cause::BodyTooLarge,
    Cause::TrailerTooLarge,
    Cause::TransferCoding,
    Cause::ContentCoding,
    Cause::UnusableBody,
    Cause::RequestBodyFailed,
    Cause::ClientClosed,
];

fn methods() -> [Method; 5] {
    [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::from_bytes(b"PROPFIND").unwrap()]
}

fn granted(situation: &RetryContext<'_>) -> Decision {
    decide(&RetryPolicy::new(), situation, 0, || true)
}

fn stopped(situation: &RetryContext<'_>) -> Option<RetryStop> {
    match granted(situation) {
        Decision::Retry { .. } => None,
        Decision::Stop(stop) => Some(stop),
    }
}

fn after_status(status: u16, method: &Method) -> RetryContext<'_> {
    RetryContext::new(FailureSignal::Status(StatusCode::from_u16(status).unwrap()), method)
}

#[test]
fn every_cause_and_method_is_decided_as_the_table_says() {
    assert_eq!(NOT_SENT.len() + PERHAPS_PROCESSED.len() + REFUSED.len() + IN_VAIN.len() + 1, Cause::ALL.len());
    for cause in Cause::ALL {
        for (at, method) in methods().iter().enumerate() {
            let idempotent = [true, false, true, false, false][at];
            let expected = if NOT_SENT.contains(cause) || PERHAPS_PROCESSED.contains(cause) {
                (!idempotent).then_some(RetryStop::Method)
            } else if REFUSED.contains(cause) {
                Some(RetryStop::LocalRefusal)
            } else if *cause == Cause::DeadlineExceeded {
                Some(RetryStop::Deadline)
            } else {
                assert!(IN_VAIN.contains(cause), "{cause}");
                Some(RetryStop::NotRetryable)
            };
            let failure = Failure::new(*cause);
            for shown in [FailureSignal::Cause(*cause), FailureSignal::Failure(&failure)] {
                assert_eq!(stopped(&RetryContext::new(shown, method)), expected, "{cause} {method}");
            }
            let seen = Failure::builder(*cause).replay(Replay::NotSent, Evidence::NothingWritten).build();
            if NOT_SENT.contains(cause) {
                assert_eq!(
                    stopped(&RetryContext::new(FailureSignal::Failure(&seen), method)),
                    None,
                    "{cause} {method}"
                );
            }
        }
    }
}

#[test]
fn all_methods_of_rfc_9110_are_known() {
    for (method, idempotent) in [
        (Method::GET, true),
        (Method::HEAD, true),
        (Method::OPTIONS, true),
        (Method::TRACE, true),
        (Method::PUT, true),
        (Method::DELETE, true),
        (Method::POST, false),
        (Method::PATCH, false),
        (Method::CONNECT, false),
    ] {
        assert_eq!(stopped(&after_status(502, &method)).is_none(), idempotent, "{method}");
    }
}

#[test]
fn the_record_knows_more_than_its_kind() {
    // the client gave the request back, or only guesses that it could
    let proven = Failure::builder(Cause::ClosedBeforeResponse).replay(Replay::NotSent, Evidence::GoAway).build();
    assert_eq!(stopped(&RetryContext::new(FailureSignal::Failure(&proven), &Method::POST)), None);
    let guessed = Failure::builder(Cause::NotDispatched).replay(Replay::IdempotentOnly, Evidence::Inferred).build();
    assert_eq!(stopped(&RetryContext::new(FailureSignal::Failure(&guessed), &Method::POST)), Some(RetryStop::Method));
    let refused = Failure::builder(Cause::Unknown).replay(Replay::NotSent, Evidence::LocalRefusal).build();
    assert_eq!(
        stopped(&RetryContext::new(FailureSignal::Failure(&refused), &Method::GET)),
        Some(RetryStop::LocalRefusal)
    );
    let never = Failure::builder(Cause::ConnectionRefused).replay(Replay::Never, Evidence::Counted).build();
    assert_eq!(
        stopped(&RetryContext::new(FailureSignal::Failure(&never), &Method::GET)),
        Some(RetryStop::NotRetryable)
    );
}

#[test]
fn a_final_failure_stays_final_for_the_reason_it_has() {
    let last = Failure::builder(Cause::ConnectionRefused).retry_stop(RetryStop::Budget).build();
    assert_eq!(stopped(&RetryContext::new(FailureSignal::Failure(&last), &Method::GET)), Some(RetryStop::Budget));
}

#[test]
fn only_three_statuses_are_repeated_unless_the_user_counts_others_as_failures() {
    for status in 400..=599 {
        let repeated = [502, 503, 504].contains(&status);
        assert_eq!(stopped(&after_status(status, &Method::GET)).is_none(), repeated, "{status}");
        let status = StatusCode::from_u16(status).unwrap();
        let relayed = Failure::builder(Cause::UpstreamStatus).detail(Detail::Status(status)).build();
        assert_eq!(
            stopped(&RetryContext::new(FailureSignal::Failure(&relayed), &Method::GET)).is_none(),
            status.is_server_error(),
            "{status}: its record says that it counts"
        );
        let post = stopped(&RetryContext::new(FailureSignal::Failure(&relayed), &Method::POST));
        assert!(post.is_some(), "{status}");
    }
    let policy = RetryPolicy::new().repeat_too_many_requests();
    assert!(matches!(decide(&policy, &after_status(429, &Method::GET), 0, || true), Decision::Retry { .. }));
    let post = decide(&policy, &after_status(429, &Method::POST), 0, || true);
    assert_eq!(post, Decision::Stop(RetryStop::Method));
}

#[test]
fn a_stale_connection_is_met_with_one_more_attempt_on_a_fresh_one() {
    let mut stale = RetryContext::new(FailureSignal::Cause(Cause::StaleConnection), &Method::GET);
    let at_once = Decision::Retry { after: Duration::ZERO, target: RetryTarget::FreshConnection };
    assert_eq!(granted(&stale), at_once);
    (stale.attempt, stale.saw_stale_connection) = (2, true);
    assert_eq!(stopped(&stale), Some(RetryStop::Attempts));
    // after it, another failure may use the remaining attempts
    let refused = RetryContext { signal: FailureSignal::Cause(Cause::ConnectionRefused), ..stale };
    assert_eq!(stopped(&refused), None);
}

#[test]
fn an_idempotency_key_counts_after_a_stale_connection_where_it_is_trusted() {
    let policy = RetryPolicy::new().trust_idempotency_keys();
    let keyed = |cause| RetryContext {
        has_idempotency_key: true,
        ..RetryContext::new(FailureSignal::Cause(cause), &Method::POST)
    };
    assert_eq!(stopped(&keyed(Cause::StaleConnection)), Some(RetryStop::Method));
    assert!(matches!(decide(&policy, &keyed(Cause::StaleConnection), 0, || true), Decision::Retry { .. }));
    let unkeyed = RetryContext { has_idempotency_key: false, ..keyed(Cause::StaleConnection) };
    assert_eq!(decide(&policy, &unkeyed, 0, || true), Decision::Stop(RetryStop::Method));
    let lost = decide(&policy, &keyed(Cause::ClosedBeforeResponse), 0, || true);
    assert_eq!(lost, Decision::Stop(RetryStop::Method));
}

#[test]
fn a_request_can_be_excepted_either_way() {
    let with = |exception, attempt| RetryContext {
        exception: Some(exception),
        attempt,
        ..RetryContext::new(FailureSignal::Cause(Cause::ClosedBeforeResponse), &Method::POST)
    };
    assert_eq!(stopped(&with(RetryOverride::never(), 1)), Some(RetryStop::Override));
    assert_eq!(stopped(&with(RetryOverride::idempotent(), 1)), None);
    assert_eq!(stopped(&with(RetryOverride::with_attempts(5), 1)), Some(RetryStop::Method));
    assert_eq!(stopped(&with(RetryOverride::idempotent().attempts(5), 4)), None);
    assert_eq!(stopped(&with(RetryOverride::idempotent().attempts(5), 5)), Some(RetryStop::Attempts));
    assert_eq!(stopped(&with(RetryOverride::idempotent().attempts(1), 1)), Some(RetryStop::Attempts));
}

#[test]
fn grpc_unavailable_is_repeated_where_the_owner_says_so() {
    let grpc = |code| RetryContext::new(FailureSignal::Grpc(code), &Method::POST);
    assert_eq!(stopped(&grpc(UNAVAILABLE)), Some(RetryStop::Method));
    for code in 0..=17 {
        let said = RetryContext { exception: Some(RetryOverride::idempotent()), ..grpc(code) };
        assert_eq!(stopped(&said).is_none(), code == UNAVAILABLE, "{code}");
        let policy = RetryPolicy::new().repeat_too_many_requests();
        let repeated = matches!(decide(&policy, &said, 0, || true), Decision::Retry { .. });
        assert_eq!(repeated, [RESOURCE_EXHAUSTED, UNAVAILABLE].contains(&code), "{code}");
        let refused = RetryContext { pushback: Some(Pushback::Never), ..said };
        assert_ne!(stopped(&refused), None, "{code}");
    }
}

#[test]
fn what_was_not_sent_goes_out_again_at_once_and_then_after_pauses() {
    let pause = |cause, attempt| {
        let failure = Failure::builder(cause).replay(cause.replay(), Evidence::NoConnection).build();
        let situation = RetryContext { attempt, ..RetryContext::new(FailureSignal::Failure(&failure), &Method::GET) };
        match decide(&RetryPolicy::new().attempts(10), &situation, u64::MAX / 2 + 1, || true) {
            Decision::Retry { after, .. } => after,
            Decision::Stop(stop) => panic!("{stop}"),
        }
    };
    // half of their ceiling
    assert_eq!([1, 2, 3].map(|attempt| pause(Cause::ConnectionRefused, attempt)), [Duration::ZERO, MS * 25, MS * 50]);
    assert_eq!([1, 2, 9].map(|attempt| pause(Cause::UpstreamStatus, attempt)), [MS * 25 / 2, MS * 25, MS * 500]);
    // an unproven "not sent" does not make the retry immediate
    let guessed = RetryContext::new(FailureSignal::Cause(Cause::ConnectionRefused), &Method::GET);
    let decided = decide(&RetryPolicy::new(), &guessed, u64::MAX / 2 + 1, || true);
    assert!(matches!(decided, Decision::Retry { after, .. } if after == MS * 25 / 2));
    // descriptors are not released immediately
    assert_eq!(pause(Cause::GatewayResources, 1), MS * 25 / 2);
}

#[test]
fn the_hint_follows_the_prospect() {
    for (cause, expected) in [
        (Cause::ConnectionRefused, RetryTarget::OtherPeer),
        (Cause::UpstreamStatus, RetryTarget::OtherPeer),
        (Cause::DnsFailure, RetryTarget::SamePeer),
        (Cause::StreamRefused, RetryTarget::SamePeer),
        (Cause::NotDispatched, RetryTarget::FreshConnection),
    ] {
        let decision = granted(&RetryContext::new(FailureSignal::Cause(cause), &Method::GET));
        assert!(matches!(decision, Decision::Retry { target, .. } if target == expected), "{cause}: {decision:?}");
    }
}

#[test]
fn a_pause_that_was_asked_for_is_kept_within_patience_and_time() {
    let asked = |pause, remaining| RetryContext {
        pushback: Some(Pushback::After(pause)),
        remaining,
        median: Some(100 * MS),
        ..after_status(503, &Method::GET)
    };
    let half = u64::MAX / 2 + 1;
    let pause = |situation: &RetryContext<'_>| decide(&RetryPolicy::new(), situation, half, || true);
    let other = |after| Decision::Retry { after, target: RetryTarget::OtherPeer };
    assert_eq!(pause(&asked(1000 * MS, None)), other(1000 * MS + 25 * MS / 2));
    assert_eq!(pause(&asked(1001 * MS, None)), Decision::Stop(RetryStop::Pushback));
    assert_eq!(pause(&asked(Duration::MAX, None)), Decision::Stop(RetryStop::Pushback));
    assert_eq!(pause(&asked(500 * MS, Some(600 * MS))), other(500 * MS));
    assert_eq!(pause(&asked(501 * MS, Some(600 * MS))), Decision::Stop(RetryStop::Pushback));
    // a date in the past requires no wait
    assert_eq!(pause(&asked(Duration::ZERO, None)), other(25 * MS / 2));
}

#[test]
fn an_attempt_that_would_not_end_in_time_is_not_begun() {
    let left = |remaining, median| RetryContext { remaining, median, ..after_status(502, &Method::GET) };
    assert_eq!(stopped(&left(Some(99 * MS), Some(100 * MS))), Some(RetryStop::Deadline));
    assert_eq!(stopped(&left(Some(100 * MS), Some(100 * MS))), None);
    assert_eq!(stopped(&left(Some(MS), None)), None);
    assert_eq!(stopped(&left(Some(Duration::ZERO), None)), Some(RetryStop::Deadline));
}

#[test]
fn a_token_is_withdrawn_only_for_an_attempt_that_is_made() {
    let asked = Cell::new(0);
    let count = |granted: bool| {
        asked.set(asked.get() + 1);
        granted
    };
    let situation = after_status(503, &Method::GET);
    assert!(matches!(decide(&RetryPolicy::new(), &situation, 0, || count(true)), Decision::Retry { .. }));
    assert_eq!(decide(&RetryPolicy::new(), &situation, 0, || count(false)), Decision::Stop(RetryStop::Budget));
    assert_eq!(asked.get(), 2);
    for stopped in [
        RetryContext { replayability: Replayability::NotReplayable, ..situation },
        RetryContext { attempt: 3, ..situation },
        RetryContext { remaining: Some(Duration::ZERO), ..situation },
        after_status(500, &Method::GET),
    ] {
        assert!(matches!(decide(&RetryPolicy::new(), &stopped, 0, || count(true)), Decision::Stop(_)));
    }
    assert_eq!(asked.get(), 2);
}

/// An owned `RetryContext`.
#[derive(Debug)]
struct Drawn {
    failure: Failure,
    shown: u8,
    status: u16,
    method: Method,
    policy: RetryPolicy,
    bits: [bool; 4],
    spare: Replayability,
    attempt: u8,
    times: [Option<u64>; 3],
    exception: Option<(Option<u8>, bool)>,
}

impl Drawn {
    fn situation(&self) -> RetryContext<'_> {
        let shown = match self.shown {
            0 => FailureSignal::Failure(&self.failure),
            1 => FailureSignal::Cause(self.failure.cause()),
            2 => FailureSignal::Status(StatusCode::from_u16(self.status).unwrap()),
            _ => FailureSignal::Grpc(u8::try_from(self.status % 20).unwrap()),
        };
        let millis = self.times.map(|time| time.map(Duration::from_millis));
        RetryContext {
            signal: shown,
            method: &self.method,
            has_idempotency_key: self.bits[0],
            replayability: self.spare,
            attempt: self.attempt,
            saw_stale_connection: self.bits[1],
            conditional: self.status % 2 == 0,
            remaining: millis[0],
            median: millis[1],
            pushback: if self.bits[2] { Some(Pushback::Never) } else { millis[2].map(Pushback::After) },
            exception: self.exception.map(|(attempts, idempotent)| RetryOverride {
                attempts,
                never: false,
                idempotent,
            }),
            has_others: self.status % 3 == 0,
        }
    }
}

prop_compose! {
    fn drawn()(
        cause in select(Cause::ALL),
        replay in select(&[Replay::NotSent, Replay::IdempotentOnly, Replay::Never][..]),
        evidence in select(&[Evidence::Inferred, Evidence::Returned, Evidence::LocalRefusal, Evidence::Counted][..]),
        shown in 0..4_u8,
        status in prop_oneof![Just(429), Just(502), Just(503), Just(504), 400..600_u16],
        method in select(methods().to_vec()),
        attempts in 0..=12_u8,
        millis in [0..2000_u64, 0..2000_u64],
        bits: [bool; 4],
        spare in prop_oneof![4 => Just(Replayability::Replayable), 1 => Just(Replayability::NotReplayable), 1 => Just(Replayability::Committed)],
        attempt in 1..=12_u8,
        times in [
            prop::option::of(0..3000_u64),
            prop::option::of(0..500_u64),
            prop::option::of(0..2000_u64),
        ],
        exception in prop::option::of((prop::option::of(1..=10_u8), any::<bool>())),
    ) -> Drawn {
        let policy = RetryPolicy::new().attempts(attempts).repeat_too_many_requests();
        let policy = policy.base_backoff(Duration::from_millis(millis[0])).max_backoff(Duration::from_millis(millis[1]));
        Drawn {
            failure: Failure::builder(cause).replay(replay, evidence).build(),
            shown,
            status,
            method,
            policy: if bits[3] { policy.trust_idempotency_keys() } else { policy },
            bits,
            spare,
            attempt,
            times,
            exception,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn whatever_is_repeated_may_be(drawn in drawn(), random: u64) {
        let situation = drawn.situation();
        let Decision::Retry { after, .. } = decide(&drawn.policy, &situation, random, || true) else { return Ok(()) };
        // within the attempts, with a request that can be sent again
        let limit = drawn.exception.and_then(|exception| exception.0).unwrap_or(drawn.policy.attempts);
        prop_assert!(situation.attempt < limit && limit <= RetryPolicy::MAX_ATTEMPTS);
        prop_assert_eq!(situation.replayability, Replayability::Replayable);
        // in time, and not earlier than the pushback
        let usual = after + situation.median.unwrap_or_default();
        let in_time = situation.remaining.is_none_or(|remaining| !remaining.is_zero() && usual <= remaining);
        prop_assert!(in_time);
        match situation.pushback {
            Some(Pushback::After(pause)) => prop_assert!(after >= pause && pause <= drawn.policy.max_retry_after),
            Some(Pushback::Never) => prop_assert!(false, "the upstream forbade it"),
            None => prop_assert!(after <= drawn.policy.max_backoff),
        }
        // never a local rejection or a futile retry, and a possibly processed request only if it is repeatable
        let (replay, cause) = match situation.signal {
            FailureSignal::Failure(failure) => {
                prop_assert_ne!(failure.evidence(), Evidence::LocalRefusal);
                (failure.replay(), failure.cause())
            }
            FailureSignal::Cause(cause) => (cause.replay().inferred(), cause),
            _ => (Replay::IdempotentOnly, Cause::UpstreamStatus),
        };
        prop_assert!(cause.prospect() != Prospect::Futile && !REFUSED.contains(&cause) && replay != Replay::Never);
        let stale = cause == Cause::StaleConnection;
        prop_assert!(!(stale && situation.saw_stale_connection));
        let safe = *situation.method == Method::GET;
        let idempotent = safe || (*situation.method == Method::PUT && !situation.conditional);
        let said = drawn.exception.is_some_and(|exception| exception.1);
        let trusted = stale && situation.has_idempotency_key && drawn.bits[3];
        prop_assert!(replay == Replay::NotSent || idempotent || said || trusted);
    }
}
