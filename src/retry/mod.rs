//! Whether a failed request is sent again, when, and towards whom.
//!
//! [`decide`] is the one place where that is thought out: from what a response [shows](Shown), the method, the
//! attempts made, what is left of the time, and last the budget. It reads no clock, sends nothing and waits for nothing.
//!
//! | default | value |
//! |---|---|
//! | attempts | 3: the first and two more |
//! | pause before a retry | full jitter, 25 ms doubled to 1 s; none before the first one of a request that was not sent |
//! | longest `Retry-After` that is waited for | 60 s |
//! | `Idempotency-Key`, 429 and `RESOURCE_EXHAUSTED` | not retried until opted in |
//!
//! ```
//! use http::{Method, StatusCode};
//! use tower_upstream::BadGatewayCause;
//! use tower_upstream::cause::RetryStop;
//! use tower_upstream::retry::{Decision, RetryPolicy, Shown, Situation, decide};
//!
//! let policy = RetryPolicy::new();
//! let refused = Situation::new(Shown::Cause(BadGatewayCause::ConnectionRefused), &Method::POST);
//! assert!(matches!(decide(&policy, &refused, 0, || true), Decision::Retry { .. }));
//! let relayed = Situation::new(Shown::Answer(StatusCode::BAD_GATEWAY), &Method::POST);
//! assert_eq!(decide(&policy, &relayed, 0, || true), Decision::Stop(RetryStop::Method));
//! ```

mod attempts;
mod backoff;
mod budget;
mod call;
mod decision;
mod future;
mod kept_head;
mod ledger;
mod pace;
mod policy;
mod pushback;
mod ratio;
mod retry_after;
mod round;
mod settings;
mod shown;
#[cfg(feature = "tower-retry")]
mod tower_budget;

use std::fmt;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderName, Request, Response};
use http_body::Body;
use tokio::time::Instant;
use tower_layer::Layer;
use tower_service::Service;

use self::future::Core;
use self::kept_head::carry;
use self::round::Round;
use self::settings::Settings;
use crate::body::ReplayBody;
use crate::engine::Handle;

pub use self::attempts::Attempts;
pub use self::budget::{Balance, RetryBudget, Withdrawal};
pub use self::call::{ByHyper, ByTower, Told, Way};
pub use self::decision::{Decision, Situation, Spare, Toward, decide};
pub use self::future::RetryFuture;
pub use self::policy::{RetryOverride, RetryPolicy};
pub use self::pushback::Pushback;
pub use self::ratio::Ratio;
pub use self::retry_after::retry_after;
pub use self::shown::{Protocol, Shown};
#[cfg(feature = "tower-retry")]
pub use self::tower_budget::TowerBudget;

/// Sends failed requests again where that is safe, helps, and is paid for; see the [module](self).
///
/// All clones, and all services made of them, share one budget.
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct RetryLayer {
    settings: Settings,
}

impl RetryLayer {
    /// The defaults of the [module's table](self).
    pub fn new() -> Self {
        Self::default()
    }

    /// Which failures are repeated, how often, after what pauses.
    pub fn policy(mut self, policy: RetryPolicy) -> Self {
        self.settings.policy = policy;
        self
    }

    /// Draws on this budget (default: one of its own), for layers before the same upstream.
    pub fn budget(mut self, budget: RetryBudget) -> Self {
        self.settings.budget = budget;
        self
    }

    /// How many bytes of a request body are kept (default 64 KiB).
    ///
    /// A longer one goes on all the same; once an attempt has read more of it, it is simply not sent again.
    pub fn body_cap(mut self, bytes: usize) -> Self {
        self.settings.body_cap = bytes;
        self
    }

    /// Copies this type of request extension for later attempts (default: [`Deadline`](crate::deadline::Deadline) and
    /// [`RetryOverride`] alone).
    ///
    /// Never one that belongs to a single attempt: hyper's `OnUpgrade`, a captured connection.
    pub fn carry<T: Clone + Send + Sync + 'static>(mut self) -> Self {
        self.settings.carried.push(carry::<T>);
        self
    }

    /// Which field counts the attempts on a request that is sent again (default `x-envoy-attempt-count`; `None`: none).
    pub fn count(mut self, name: impl Into<Option<HeaderName>>) -> Self {
        self.settings.count = name.into();
        self
    }
}

impl<S: Clone> Layer<S> for RetryLayer {
    type Service = Retry<S>;

    fn layer(&self, inner: S) -> Retry<S> {
        let core = Core { settings: self.settings.clone(), template: Mutex::new(inner.clone()) };
        Retry { inner, core: Handle::new(Arc::new(core)) }
    }
}

/// The service of [`RetryLayer`].
pub struct Retry<S> {
    inner: S,
    core: Handle<Core<S>>,
}

impl<S: Clone> Clone for Retry<S> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), core: self.core.clone() }
    }
}

impl<S: fmt::Debug> fmt::Debug for Retry<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Retry").field("inner", &self.inner).field("settings", &self.core.settings).finish()
    }
}

impl<S, B, R> Service<Request<B>> for Retry<S>
where
    S: Service<Request<ReplayBody<B>>, Response = Response<R>> + Clone,
    S::Error: Told,
    B: Body<Data = Bytes>,
    R: Body<Data = Bytes> + Default,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = RetryFuture<S, B, ByTower>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    #[inline]
    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (round, request) = Round::begin(&self.core.settings, request, Instant::now());
        RetryFuture::new(self.inner.call(request), self.core.hold(), round)
    }
}

/// The same without `&mut`, where the inner service is hyper's: a server calls it without a clone.
impl<S, B, R> hyper::service::Service<Request<B>> for Retry<S>
where
    S: hyper::service::Service<Request<ReplayBody<B>>, Response = Response<R>> + Clone,
    S::Error: Told,
    B: Body<Data = Bytes>,
    R: Body<Data = Bytes> + Default,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = RetryFuture<S, B, ByHyper>;

    #[inline]
    fn call(&self, request: Request<B>) -> Self::Future {
        let (round, request) = Round::begin(&self.core.settings, request, Instant::now());
        RetryFuture::new(self.inner.call(request), self.core.hold_own(), round)
    }
}
