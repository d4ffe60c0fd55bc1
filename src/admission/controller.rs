//! The admission decision and the measurements it is based on.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::Instant;

use super::clock_skew_guard::ClockSkewGuard;
use super::in_flight::{AtCapacity, InFlight};
use super::service_time::ServiceTime;
use crate::deadline::{Clock, Deadline};
use crate::exchange::{CallContext, CallKind};

/// The state that all clones of a layer share.
#[derive(Debug)]
pub(super) struct AdmissionController {
    in_flight: InFlight,
    service: ServiceTime,
    skew_guard: ClockSkewGuard,
    /// The first call: the origin of all times.
    origin: OnceLock<Instant>,
    /// Approximate time of the last admission, in milliseconds after `origin`.
    last_admitted: AtomicU64,
    expired: AtomicU64,
    too_late: AtomicU64,
    overloaded: AtomicU64,
    tolerated: AtomicU64,
}

/// The permit of an admitted call.
#[derive(Debug)]
pub(crate) struct Permit {
    number: u32,
    kind: CallKind,
    /// Admitted to confirm the estimate.
    probe: bool,
}

/// Why a call is not admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RejectReason {
    /// The deadline had passed on arrival.
    Expired,
    /// The response would come after the deadline.
    TooLate,
    /// The cap is reached; the duration is the estimated drain time.
    Overloaded(Duration),
}

/// Number of refused calls, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RejectionCounts {
    /// 504: the deadline had elapsed on arrival.
    pub expired: u64,
    /// 504: the requests ahead would have taken longer than the deadline allowed.
    pub too_late: u64,
    /// 503: the cap was reached.
    pub overloaded: u64,
    /// Admitted although too late by the client's clock, because too many such calls were refused.
    pub tolerated: u64,
}

/// Milliseconds without an admission after which the next call is admitted to confirm the estimate.
const PROBE: u64 = 1000;
const RETRY_AFTER: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

impl AdmissionController {
    pub(super) fn new(cap: usize) -> Self {
        Self {
            in_flight: InFlight::new(cap),
            service: ServiceTime::default(),
            skew_guard: ClockSkewGuard::default(),
            origin: OnceLock::new(),
            last_admitted: AtomicU64::new(0),
            expired: AtomicU64::new(0),
            too_late: AtomicU64::new(0),
            overloaded: AtomicU64::new(0),
            tolerated: AtomicU64::new(0),
        }
    }

    /// Admits a call, or returns the reason for its rejection.
    pub(super) fn admit(&self, call: &CallContext, at_once: u32) -> Result<Permit, RejectReason> {
        let age = call.now.saturating_duration_since(*self.origin.get_or_init(|| call.now));
        let callers_clock = call.deadline.is_some_and(|deadline| deadline.clock() == Clock::Client);
        if callers_clock {
            self.skew_guard.record_call(age.as_secs());
        }
        let spares = || callers_clock && self.tolerates(age.as_secs());
        let left = call.deadline.map(|deadline| deadline.remaining(call.now));
        // ignore deadlines by a client's clock while they have rejected too many calls
        let left = left.filter(|left| !left.is_zero() || !spares());
        if left.is_some_and(|left| left.is_zero()) {
            self.expired.fetch_add(1, Relaxed);
            return Err(RejectReason::Expired);
        }
        let in_time = |number| match (left, self.service.estimate(number, at_once)) {
            (Some(left), Some(estimate)) => estimate <= left,
            _ => true,
        };
        let age = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        let mut probe = false;
        let mut place = self.in_flight.try_acquire(call.kind, in_time);
        if place == Err(AtCapacity::TooLate) {
            probe = self.is_probe(age);
            if probe || spares() {
                place = self.in_flight.try_acquire(call.kind, |_| true);
            }
        }
        match place {
            Ok(number) => {
                self.note_admission(age);
                Ok(Permit { number, kind: call.kind, probe })
            }
            Err(AtCapacity::TooLate) => {
                self.too_late.fetch_add(1, Relaxed);
                Err(RejectReason::TooLate)
            }
            Err(AtCapacity::Full) => {
                self.overloaded.fetch_add(1, Relaxed);
                Err(RejectReason::Overloaded(self.retry_after(at_once)))
            }
        }
    }

    /// A call has its response head: the time until then is a sample, and the call no longer delays others.
    pub(super) fn respond(&self, permit: &mut Permit, took: Duration, at_once: u32) {
        if permit.kind == CallKind::Unbounded {
            return;
        }
        permit.kind = CallKind::Unbounded;
        self.in_flight.responded();
        if permit.probe {
            self.service.confirm(took, permit.number, at_once);
        } else {
            self.service.learn(took, permit.number, at_once);
        }
    }

    /// A call ended.
    pub(super) fn release(&self, permit: &Permit) {
        self.in_flight.release(permit.kind);
    }

    /// The client disconnected before the response head. If it had waited until its deadline, the response would have taken even longer.
    pub(super) fn cancel(
        &self,
        permit: &Permit,
        deadline: Option<Deadline>,
        began: Instant,
        now: Instant,
        at_once: u32,
    ) {
        self.in_flight.release(permit.kind);
        let waited = deadline.is_some_and(|deadline| {
            // clients disconnect by their own timers, close to the deadline
            deadline.clock() == Clock::Own && deadline.remaining(now) <= deadline.remaining(began) / 16
        });
        if waited && permit.kind == CallKind::Bounded {
            self.service.learn_at_least(now.saturating_duration_since(began), permit.number, at_once);
        }
    }

    /// Calls in flight.
    pub(super) fn in_flight(&self) -> u32 {
        self.in_flight.total()
    }

    /// The average service time, once there are enough samples.
    pub(super) fn service_time(&self) -> Option<Duration> {
        self.service.average()
    }

    pub(super) fn rejections(&self) -> RejectionCounts {
        RejectionCounts {
            expired: self.expired.load(Relaxed),
            too_late: self.too_late.load(Relaxed),
            overloaded: self.overloaded.load(Relaxed),
            tolerated: self.tolerated.load(Relaxed),
        }
    }

    /// Whether a call that is too late by its client's clock is admitted nevertheless.
    fn tolerates(&self, second: u64) -> bool {
        let spares = !self.skew_guard.may_reject(second);
        self.tolerated.fetch_add(u64::from(spares), Relaxed);
        spares
    }

    /// Notes an admission; precise to an eighth of `PROBE`, so that it is seldom written.
    fn note_admission(&self, age: u64) {
        if self.last_admitted.load(Relaxed) + PROBE / 8 <= age {
            self.last_admitted.store(age, Relaxed);
        }
    }

    /// Whether this call is admitted because no call was for the time of `PROBE`.
    fn is_probe(&self, age: u64) -> bool {
        let last = self.last_admitted.load(Relaxed);
        last + PROBE <= age && self.last_admitted.compare_exchange(last, age, Relaxed, Relaxed).is_ok()
    }

    /// The estimated drain time of the current load, sent as `Retry-After`.
    fn retry_after(&self, at_once: u32) -> Duration {
        let rounds = self.in_flight.bounded() / at_once;
        let after = self.service.average().unwrap_or_default().saturating_mul(rounds.max(1));
        after.clamp(RETRY_AFTER.0, RETRY_AFTER.1)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn call(now: Instant, left: impl Into<Option<Duration>>) -> CallContext {
        let mut call = CallContext::new(now);
        call.deadline = left.into().map(|left| Deadline::after(now, left));
        call
    }

    fn by_client_clock(now: Instant, left: Duration) -> CallContext {
        let mut call = CallContext::new(now);
        call.deadline = Some(Deadline::after(now, left).by_client_clock());
        call
    }

    /// Ends a call with a response after this time.
    fn complete(desk: &AdmissionController, mut permit: Permit, took: Duration, at_once: u32) {
        desk.respond(&mut permit, took, at_once);
        desk.release(&permit);
    }

    /// A controller that has learned this service time, with one worker.
    fn learned(cap: usize, service: Duration, now: Instant) -> AdmissionController {
        let desk = AdmissionController::new(cap);
        for _ in 0..16 {
            let permit = desk.admit(&call(now, None), 1).unwrap();
            complete(&desk, permit, service, 1);
        }
        assert_eq!(desk.service_time(), Some(service));
        desk
    }

    fn no(desk: &AdmissionController, call: &CallContext) -> Option<RejectReason> {
        desk.admit(call, 1).err()
    }

    #[test]
    fn a_deadline_that_has_passed_is_refused_even_by_an_idle_app() {
        let (desk, now) = (AdmissionController::new(9), Instant::now());
        assert_eq!(no(&desk, &call(now, Duration::ZERO)), Some(RejectReason::Expired));
        assert_eq!((desk.in_flight(), desk.rejections().expired), (0, 1));
    }

    #[test]
    fn only_calls_that_would_be_too_late_are_rejected() {
        let now = Instant::now();
        let desk = learned(9, MS * 30, now);
        let first = desk.admit(&call(now, MS), 1);
        assert!(first.is_ok(), "a free worker has nothing better to do");
        // one call is ahead: 40 ms for its work and 60 ms for this one's
        assert_eq!(no(&desk, &call(now, MS * 99)), Some(RejectReason::TooLate));
        assert_eq!(no(&desk, &call(now, MS * 100)), None);
        assert_eq!(no(&desk, &call(now, MS * 100)), Some(RejectReason::TooLate));
        assert_eq!(no(&desk, &call(now, None)), None, "who says no deadline waits");
        assert_eq!((desk.in_flight(), desk.rejections().too_late), (3, 2));
    }

    #[test]
    fn a_rejection_at_the_cap_has_the_estimated_drain_time() {
        let now = Instant::now();
        let desk = learned(3, MS * 1500, now);
        for _ in 0..3 {
            assert_eq!(no(&desk, &call(now, None)), None);
        }
        assert_eq!(no(&desk, &call(now, None)), Some(RejectReason::Overloaded(MS * 4500)));
        let quick = learned(1, MS, now);
        assert_eq!(no(&quick, &call(now, None)), None);
        assert_eq!(no(&quick, &call(now, None)), Some(RejectReason::Overloaded(Duration::from_secs(1))));
    }

    #[test]
    fn an_estimate_that_refuses_everybody_is_tried_again_each_second() {
        let now = Instant::now();
        let desk = learned(99, MS * 900, now);
        let hung = desk.admit(&call(now, None), 1);
        assert!(hung.is_ok());
        let mut let_in = 0;
        for ms in 0..10_000 {
            if let Ok(permit) = desk.admit(&call(now + MS * ms, MS * 500), 1) {
                complete(&desk, permit, MS * 20, 1);
                let_in += 1;
            }
        }
        // one a second, three times, and then the estimate has become true
        assert_eq!(let_in, 3 + 7_000 - 1);
    }

    #[test]
    fn who_left_early_proves_nothing_and_who_left_at_the_deadline_does() {
        let now = Instant::now();
        let desk = learned(9, MS * 30, now);
        let asked = call(now, MS * 500);
        for (after, average) in [(MS * 300, 30), (MS * 495, 35)] {
            let permit = desk.admit(&asked, 1).unwrap();
            desk.cancel(&permit, asked.deadline, now, now + after, 1);
            assert_eq!(desk.service_time().unwrap().as_millis(), average);
        }
        let wrong = by_client_clock(now, MS * 9000);
        let permit = desk.admit(&wrong, 1).unwrap();
        desk.cancel(&permit, wrong.deadline, now, now + MS * 9000, 1);
        assert_eq!(desk.service_time().unwrap().as_millis(), 35, "its deadline may be another than it meant");
        assert_eq!(desk.in_flight(), 0);
    }

    #[test]
    fn streams_hold_their_place_and_delay_no_other_call() {
        let now = Instant::now();
        let desk = learned(4, MS * 30, now);
        let stream = CallContext { kind: CallKind::Unbounded, ..call(now, None) };
        let streams: Vec<_> = (0..3).map(|_| desk.admit(&stream, 1).unwrap()).collect();
        assert_eq!(no(&desk, &call(now, MS * 31)), None);
        assert!(matches!(no(&desk, &call(now, MS * 31)), Some(RejectReason::Overloaded(_))));
        for permit in streams {
            complete(&desk, permit, Duration::from_secs(3600), 1);
        }
        assert_eq!((desk.in_flight(), desk.service_time()), (1, Some(MS * 30)));
    }

    #[test]
    fn who_reads_a_response_holds_a_place_and_delays_no_other_call() {
        let now = Instant::now();
        let desk = learned(4, MS * 30, now);
        let mut reading: Vec<_> = (0..3).map(|_| desk.admit(&call(now, None), 1).unwrap()).collect();
        assert_eq!(no(&desk, &call(now, MS * 31)), Some(RejectReason::TooLate));
        for permit in &mut reading {
            desk.respond(permit, MS * 30, 1);
        }
        assert_eq!(desk.in_flight(), 3);
        assert_eq!(no(&desk, &call(now, MS * 31)), None);
        assert!(matches!(no(&desk, &call(now, MS * 31)), Some(RejectReason::Overloaded(_))), "the cap counts them");
        for permit in &reading {
            desk.release(permit);
        }
        assert_eq!(desk.in_flight(), 1);
    }

    #[test]
    fn a_wrong_clock_does_not_lock_clients_out() {
        let (desk, now) = (AdmissionController::new(999), Instant::now());
        let refused = (0..100).filter(|_| desk.admit(&by_client_clock(now, Duration::ZERO), 1).is_err()).count();
        assert_eq!((refused, desk.rejections().expired, desk.rejections().tolerated), (20, 20, 80));
        // while a deadline by our own clock is trusted
        assert_eq!(no(&desk, &call(now, Duration::ZERO)), Some(RejectReason::Expired));
    }

    #[test]
    fn a_wrong_clock_does_not_make_the_work_ahead_too_much_either() {
        let now = Instant::now();
        let desk = learned(999, MS * 30, now);
        assert_eq!(no(&desk, &call(now, None)), None);
        let refused = (0..100).filter(|_| desk.admit(&by_client_clock(now, MS), 1).is_err()).count();
        assert_eq!((refused, desk.rejections().too_late, desk.rejections().tolerated), (20, 20, 80));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Admit { left: Option<u64>, stream: bool, callers: bool },
        Settle(usize),
        Abandon(usize),
        Wait(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let admit = (proptest::option::of(0_u64..400), any::<bool>(), any::<bool>())
            .prop_map(|(left, stream, callers)| Step::Admit { left, stream, callers });
        let step = prop_oneof![
            4 => admit,
            2 => any::<usize>().prop_map(Step::Settle),
            1 => any::<usize>().prop_map(Step::Abandon),
            2 => (0_u64..700).prop_map(Step::Wait),
        ];
        proptest::collection::vec(step, 0..150)
    }

    proptest! {
        #[test]
        fn places_are_exact_and_a_free_worker_refuses_only_the_dead(cap in 1_usize..6, at_once in 1_u32..4, steps in steps()) {
            let desk = AdmissionController::new(cap);
            let mut now = Instant::now();
            let mut open: Vec<(Permit, CallContext)> = Vec::new();
            for step in steps {
                match step {
                    Step::Admit { left, stream, callers } => {
                        let mut call = call(now, left.map(Duration::from_millis));
                        if stream {
                            call.kind = CallKind::Unbounded;
                        }
                        if callers {
                            call.deadline = call.deadline.map(Deadline::by_client_clock);
                        }
                        let bounded = open.iter().filter(|(permit, _)| permit.kind == CallKind::Bounded).count();
                        let dead = left == Some(0);
                        match desk.admit(&call, at_once) {
                            Ok(permit) => {
                                prop_assert!(!dead || callers);
                                open.push((permit, call));
                            }
                            Err(RejectReason::Expired) => prop_assert!(dead),
                            Err(RejectReason::TooLate) => prop_assert!(!dead && left.is_some() && bounded >= at_once as usize),
                            Err(RejectReason::Overloaded(after)) => {
                                prop_assert_eq!(open.len(), cap);
                                prop_assert!(after >= RETRY_AFTER.0 && after <= RETRY_AFTER.1);
                            }
                        }
                    }
                    Step::Settle(which) if !open.is_empty() => {
                        let (permit, call) = open.swap_remove(which % open.len());
                        complete(&desk, permit, now - call.now, at_once);
                    }
                    Step::Abandon(which) if !open.is_empty() => {
                        let (permit, call) = open.swap_remove(which % open.len());
                        desk.cancel(&permit, call.deadline, call.now, now, at_once);
                    }
                    Step::Settle(_) | Step::Abandon(_) => {}
                    Step::Wait(ms) => now += Duration::from_millis(ms),
                }
                prop_assert!(open.len() <= cap);
                prop_assert_eq!(desk.in_flight() as usize, open.len());
            }
        }
    }
}
