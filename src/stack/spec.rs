//! A stack as an exchange: what it does around a call, and around each attempt.

use std::sync::Arc;

use super::errors::Errors;
use super::requests::TrackUploads;
use super::stats::{OpenTunnel, StatsRecorder};
use crate::body::UpgradeGuard;
use crate::breaker::BreakerComponent;
use crate::exchange::{self, ActiveCall, SpareCalls, Spec};
use crate::exchange::{CallContext, CancelReason, Component, Outcome, Rejection};
use crate::limit::LimitComponent;
use crate::retry::Resend;
use crate::timeout::EnforcedTimeouts;

/// The current settings of a stack; a change at run time replaces them with a changed copy.
pub(super) type Config = exchange::Config<StackSpec>;

/// The parts of a stack.
#[derive(Debug)]
pub(super) enum StackSpec {}

crate::free_list::free_list!(SPARE: std::pin::Pin<Box<ActiveCall<StackSpec>>>);

impl Spec for StackSpec {
    type PerCall = Arc<StatsRecorder>;
    /// A call that waits for its next attempt holds no slot of the limiter.
    type PerAttempt = (Option<BreakerComponent>, Option<LimitComponent>);
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

/// Counts the calls, with all their attempts.
impl Component for Arc<StatsRecorder> {
    type Permit = ();

    fn on_rejected(&self, rejection: &Rejection) {
        self.begin();
        self.end(Some(&Outcome::failure(rejection.failure())));
    }

    #[inline]
    fn admit(&self, _: &CallContext) -> Result<(), Rejection> {
        self.begin();
        Ok(())
    }

    #[inline]
    fn on_response(&self, (): &mut (), call: &CallContext, outcome: &Outcome) {
        self.head(call, outcome);
    }

    fn on_upgrade(&self, (): &mut (), guard: &UpgradeGuard) {
        // its call ends at the 101
        guard.attach(OpenTunnel::begin(self));
    }

    #[inline]
    fn complete(&self, (): (), _: &CallContext, outcome: &Outcome) {
        self.end(Some(outcome));
    }

    fn cancel(&self, (): (), _: &CallContext, _: CancelReason) {
        self.end(None);
    }
}
