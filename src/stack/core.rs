//! What the calls of one service share.

use std::fmt;
use std::sync::Arc;

use tokio::time::Instant;

use super::parts::Parts;
use super::repeat::{Care, Repeat};
use super::waiting::Waiting;
use crate::cause::{BadGatewayCause, Detail, Failure, RetryStop};
use crate::classify::{Classify, Settings};
use crate::engine::{Engine, Held, Keep, Part, Refusal, Shared};
use crate::error_page::ErrorPage;
use crate::timeout::Enforced;

/// One attempt, as layers of their own would make it: for all attempts but the first.
pub type Attempt<S, C, W> = Engine<Classify<Waiting<S>>, C, Enforced, W>;

/// A stack's settings as they stand; what is changed at run time is changed in a copy.
#[derive(Clone, Debug)]
pub(crate) struct Set<R, L, C> {
    pub(super) name: Arc<str>,
    pub(super) shared: Shared<Parts<L, C>, Enforced>,
    pub(super) repeat: R,
    pub(super) classify: Arc<Settings>,
    /// The same for attempts, which leave it to that one to tell.
    pub(super) deferred: Arc<Settings>,
    pub(super) page: Option<ErrorPage>,
    pub(super) mode: Mode,
}

/// What a stack does with calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// What it was built for.
    Usual,
    /// Retry, breaker and limiter stand aside until then.
    Bypass(Instant),
    /// New calls are refused.
    Drain,
}

/// A set, and what repeats the calls of one service.
pub(crate) struct Core<R: Repeat, L, C, T> {
    pub(super) set: Set<R, L, C>,
    pub(super) repeat: T,
}

impl<R: Repeat, L: Part + Clone, C: Part + Clone> Set<R, L, C> {
    /// For services around `inner`.
    pub(super) fn around<S, W>(&self, inner: impl FnOnce() -> S) -> Core<R, L, C, R::Around<Attempt<S, C, W>>> {
        let repeat = self.repeat.around(|| {
            let shared = Shared::new(self.shared.parts.circuit.clone(), self.shared.limits.inside());
            Engine::new(Classify::new(Waiting::new(inner()), self.deferred.clone()), Arc::new(shared))
        });
        Core { set: self.clone(), repeat }
    }
}

impl<R, L, C> Set<R, L, C> {
    /// How much is done for a call that begins now.
    #[inline(always)]
    pub(super) fn care(&self, now: Instant) -> Result<Care, Refusal> {
        if self.mode == Mode::Usual { Ok(Care::Full) } else { self.mode.care(now) }
    }
}

impl Mode {
    #[cold]
    fn care(self, now: Instant) -> Result<Care, Refusal> {
        match self {
            Self::Bypass(until) if now < until => Ok(Care::Bare),
            Self::Usual | Self::Bypass(_) => Ok(Care::Full),
            Self::Drain => {
                let failure = Failure::builder(BadGatewayCause::GatewayOverload)
                    .refusal()
                    .retry_stop(RetryStop::LocalRefusal)
                    .detail(Detail::Text("the gateway is being drained"));
                Err(Refusal::new(failure.build()).retry_after(std::time::Duration::from_secs(1)))
            }
        }
    }
}

impl<R: Repeat, L: Part, C: Part, T> Keep for Held<Core<R, L, C, T>> {
    type Parts = Parts<L, C>;
    type Limits = Enforced;

    #[inline(always)]
    fn shared(&self) -> &Shared<Parts<L, C>, Enforced> {
        &self.set.shared
    }
}

impl<R: Repeat, L, C, T> fmt::Debug for Core<R, L, C, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Core").field("name", &self.set.name).finish_non_exhaustive()
    }
}
