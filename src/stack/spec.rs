//! A stack as an exchange: what it does around a call, and around each attempt.

use std::sync::Arc;

use super::errors::Errors;
use super::requests::TrackUploads;
use super::stats::StatsRecorder;
use crate::breaker::BreakerComponent;
use crate::exchange::{self, ActiveCall, SpareCalls, Spec};
use crate::exchange::{CallContext, CancelReason, Component, Outcome, Rejection, UpgradeGuard};
use crate::limit::LimitComponent;
use crate::retry::Resend;
use crate::timeout::EnforcedTimeouts;

/// A stack's settings as they stand; what is changed at run time is changed in a copy.
pub(super) type Config = exchange::Config<StackSpec>;

/// The parts of a stack.
#[derive(Debug)]
pub(super) enum StackSpec {}

crate::free_list::free_list!(SPARE: std::pin::Pin<Box<ActiveCall<StackSpec>>>);

impl Spec for StackSpec {
    type PerCall = PerCall;
    type PerAttempt = Option<BreakerComponent>;
    type Timeouts = EnforcedTimeouts;
    type Requests = Resend<TrackUploads>;
    type Errors = Errors;

    const WAITS: bool = true;
    const SPANS: bool = true;

    #[inline]
    fn spare_calls() -> &'static SpareCalls<Self> {
        &SPARE
    }
}

/// The component around a call: statistics and the concurrency limit.
#[derive(Clone, Debug)]
pub(super) struct PerCall {
    pub(super) recorder: Arc<StatsRecorder>,
    pub(super) limiter: Option<LimitComponent>,
}

impl Component for PerCall {
    /// A slot; `None` in a bypass.
    type Permit = Option<<LimitComponent as Component>::Permit>;

    fn on_rejected(&self, rejection: &Rejection) {
        self.recorder.begin();
        self.recorder.end(Some(&Outcome::failure(rejection.failure())));
    }

    #[inline]
    fn admit(&self, call: &CallContext) -> Result<Self::Permit, Rejection> {
        let slot = match &self.limiter {
            Some(limiter) if !call.bypass => Some(limiter.admit(call)?),
            _ => None,
        };
        self.recorder.begin();
        Ok(slot)
    }

    #[inline]
    fn on_response(&self, slot: &mut Self::Permit, call: &CallContext, outcome: &Outcome) {
        if let (Some(limiter), Some(slot)) = (&self.limiter, slot) {
            limiter.on_response(slot, call, outcome);
        }
        self.recorder.head(call, outcome);
    }

    fn on_upgrade(&self, slot: &mut Self::Permit, guard: &UpgradeGuard) {
        if let (Some(limiter), Some(slot)) = (&self.limiter, slot) {
            limiter.on_upgrade(slot, guard);
        }
    }

    #[inline]
    fn complete(&self, slot: Self::Permit, call: &CallContext, outcome: &Outcome) {
        if let (Some(limiter), Some(slot)) = (&self.limiter, slot) {
            limiter.complete(slot, call, outcome);
        }
        self.recorder.end(Some(outcome));
    }

    fn cancel(&self, slot: Self::Permit, call: &CallContext, reason: CancelReason) {
        if let (Some(limiter), Some(slot)) = (&self.limiter, slot) {
            limiter.cancel(slot, call, reason);
        }
        self.recorder.end(None);
    }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use tokio::time::Instant;

    use super::*;
    use crate::limit::ConcurrencyLimitLayer;

    fn per_call(limit: u32) -> (PerCall, ConcurrencyLimitLayer) {
        let layer = ConcurrencyLimitLayer::fixed(limit);
        (PerCall { recorder: Arc::new(StatsRecorder::new()), limiter: Some(layer.component()) }, layer)
    }

    #[test]
    fn a_call_is_counted_and_holds_one_slot_until_its_end() {
        let (component, layer) = per_call(1);
        let call = CallContext::new(Instant::now());
        let slot = component.admit(&call).unwrap();
        assert!(component.admit(&call).is_err());
        assert_eq!((component.recorder.in_flight(), layer.handle().in_flight()), (1, 1));
        component.complete(slot, &call, &Outcome::response(StatusCode::OK, None));
        assert_eq!((component.recorder.in_flight(), layer.handle().in_flight()), (0, 0));
    }

    #[test]
    fn a_call_in_a_bypass_is_counted_and_holds_no_slot() {
        let (component, layer) = per_call(1);
        let call = CallContext { bypass: true, ..CallContext::new(Instant::now()) };
        let slot = component.admit(&call).unwrap();
        assert_eq!((component.recorder.in_flight(), layer.handle().in_flight()), (1, 0));
        component.cancel(slot, &call, CancelReason::Dropped);
        assert_eq!(component.recorder.in_flight(), 0);
    }
}
