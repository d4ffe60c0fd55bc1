//! What a stack is told before it is built.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use tower_layer::Identity;

use super::check::{self, Checked};
use super::core::{Mode, Set};
use super::misconfigured::{Misconfiguration, Misconfigured};
use super::parts::Parts;
use super::recorder::Recorder;
use super::repeat::{Repeat, Retries};
use super::steering::Steering;
use super::{UpstreamHandle, UpstreamLayer};
use crate::breaker::{Breaker, BreakerPolicy, CircuitBreakerLayer, CircuitHandle};
use crate::cause::ProxyStatus;
use crate::classify::ClassifyLayer;
use crate::deadline::Deadlines;
use crate::engine::{Part, Shared, Untouched, Watched};
use crate::error_page::ErrorPage;
use crate::event::Observer;
use crate::forward::ForwardLayer;
use crate::limit::{Limit, LimitHandle, LimitLayer};
use crate::retry::{RetryBudget, RetryLayer};
use crate::timeout::{LearnedLimits, RequestHead, TimeoutLayer, Timeouts, Topology};

/// A part of a stack that can be left out: a layer, or `()`.
pub trait Section: fmt::Debug + Send + Sync + 'static {
    /// What it adds to a call.
    type Part: Part + Clone + fmt::Debug;

    #[doc(hidden)]
    fn part(&self, name: &Arc<str>) -> Self::Part;

    #[doc(hidden)]
    fn circuit(&self) -> Option<CircuitHandle> {
        None
    }

    #[doc(hidden)]
    fn limit(&self) -> Option<LimitHandle> {
        None
    }

    /// The bounds of a limiter as they were said.
    #[doc(hidden)]
    fn bounds(&self) -> Option<(u32, u32)> {
        None
    }

    /// What takes its place where another limiter does.
    #[doc(hidden)]
    fn limited(_: &LimitLayer, _: &Arc<str>) -> Option<Self::Part> {
        None
    }
}

impl Section for () {
    type Part = ();

    fn part(&self, _: &Arc<str>) {}
}

impl Section for CircuitBreakerLayer {
    type Part = Breaker;

    fn part(&self, _: &Arc<str>) -> Breaker {
        CircuitBreakerLayer::part(self)
    }

    fn circuit(&self) -> Option<CircuitHandle> {
        Some(self.handle())
    }
}

impl Section for LimitLayer {
    type Part = Limit;

    fn part(&self, name: &Arc<str>) -> Limit {
        LimitLayer::part(self).named(name)
    }

    fn limit(&self) -> Option<LimitHandle> {
        Some(self.handle())
    }

    fn bounds(&self) -> Option<(u32, u32)> {
        Some(self.asked())
    }

    fn limited(limiter: &LimitLayer, name: &Arc<str>) -> Option<Limit> {
        Some(Section::part(limiter, name))
    }
}

/// Builds an [`UpstreamLayer`]; see its [module](super) for the defaults.
#[derive(Clone, Debug)]
#[must_use]
pub struct UpstreamBuilder<R = Retries, L = LimitLayer, C = CircuitBreakerLayer, W = Watched, H = Identity> {
    pub(super) said: Said,
    pub(super) limits: TimeoutLayer<W>,
    pub(super) repeat: R,
    pub(super) limiter: L,
    pub(super) circuit: C,
    pub(super) headers: H,
}

/// What was said that is of one type in any stack.
#[derive(Clone, Debug)]
pub(super) struct Said {
    pub(super) name: Arc<str>,
    pub(super) topology: Topology,
    /// For the checks: a layer does not tell its policy.
    pub(super) policy: Option<BreakerPolicy>,
    pub(super) classify: ClassifyLayer,
    pub(super) page: Option<ErrorPage>,
    pub(super) learned: Option<Arc<LearnedLimits>>,
    pub(super) found: Vec<Misconfiguration>,
}

impl UpstreamBuilder {
    pub(super) fn new(name: impl Into<Arc<str>>) -> Self {
        let name = name.into();
        let builder = Self {
            limits: TimeoutLayer::new(Timeouts::new()),
            repeat: Retries { layer: RetryLayer::new() },
            limiter: LimitLayer::new(),
            circuit: CircuitBreakerLayer::new(name.clone()),
            headers: Identity::new(),
            said: Said {
                name,
                topology: Topology::new(),
                policy: Some(BreakerPolicy::new()),
                classify: ClassifyLayer::new(),
                page: None,
                learned: None,
                found: Vec::new(),
            },
        };
        builder.standard()
    }
}

impl<R, L, C, W, H> UpstreamBuilder<R, L, C, W, H> {
    /// The time limits (default: the preset's).
    pub fn timeouts(mut self, timeouts: Timeouts) -> Self {
        self.limits = self.limits.with(timeouts);
        self
    }

    /// What is known of the neighbours' limits (default: nothing): what does not fit is refused by [`build`](Self::build).
    ///
    /// Attempts, pauses and hedging are taken from the stack itself, and the idle limit of [`pool_idle`](Self::pool_idle).
    pub fn topology(mut self, topology: Topology) -> Self {
        self.said.topology = topology;
        self
    }

    /// Reads the caller's deadline and writes the one that goes out (default: neither), as
    /// [`TimeoutLayer::deadlines`] says.
    pub fn deadlines(mut self, deadlines: Deadlines) -> Self {
        self.limits = self.limits.deadlines(deadlines);
        self
    }

    /// Learns how long the heads of these routes take (default: not at all), as [`TimeoutLayer::learned`] says.
    pub fn learned(
        mut self,
        limits: Arc<LearnedLimits>,
        route: impl for<'a> Fn(RequestHead<'a>) -> Option<&'a str> + Send + Sync + 'static,
    ) -> Self {
        self.said.learned = Some(limits.clone());
        self.limits = self.limits.learned(limits, route);
        self
    }

    /// Says how long the client inside keeps idle connections (default: not known), as [`TimeoutLayer::pool_idle`] says.
    pub fn pool_idle(mut self, limit: Duration) -> Self {
        self.said.topology = self.said.topology.pool_idle(limit);
        self.limits = self.limits.pool_idle(limit);
        self
    }

    /// How errors and unsafe heads become answers (default: [`ClassifyLayer::new`]).
    ///
    /// It takes the place of what [`proxy_status`](Self::proxy_status) and [`observer`](Self::observer) said before.
    pub fn classify(mut self, classify: ClassifyLayer) -> Self {
        self.said.classify = classify;
        self
    }

    /// Adds this deployment's member to `Proxy-Status` (RFC 9209) on failures (default: none).
    pub fn proxy_status(mut self, name: &str) -> Self {
        match ProxyStatus::new(name) {
            Ok(member) => self.said.classify = self.said.classify.proxy_status(member),
            Err(error) => self.said.found.push(Misconfiguration::new(
                "proxy_status",
                format!("{name:?} cannot stand in the field: {error}"),
                "set a token such as \"shop-edge\"",
            )),
        }
        self
    }

    /// Tells this one of failures as well (default: [`Log`](crate::event::Log) alone).
    pub fn observer(mut self, observer: impl Observer + 'static) -> Self {
        self.said.classify = self.said.classify.also(observer);
        self
    }

    /// Writes a page in place of the short text of our own answers (default: none).
    pub fn error_page(mut self, page: ErrorPage) -> Self {
        self.said.page = Some(page);
        self
    }

    /// Keeps the rules of forwarding in heads (default: not): for a client that does not, as hyper's and reqwest's.
    ///
    /// [`ReverseProxy`](https://docs.rs/tower-upstream/latest/tower_upstream/client/struct.ReverseProxy.html) keeps them itself.
    pub fn headers(self, rules: ForwardLayer) -> UpstreamBuilder<R, L, C, W, ForwardLayer> {
        let Self { said, limits, repeat, limiter, circuit, .. } = self;
        UpstreamBuilder { said, limits, repeat, limiter, circuit, headers: rules }
    }

    /// Leaves the limiter out: what it would cost is not there.
    pub fn without_limiter(self) -> UpstreamBuilder<R, (), C, W, H> {
        self.with_limiter(())
    }

    /// Leaves the circuit breaker out.
    pub fn without_circuit(self) -> UpstreamBuilder<R, L, (), W, H> {
        self.with_circuit((), None)
    }

    /// Leaves the retry out: the inner service gets its request body as it comes.
    pub fn without_retry(self) -> UpstreamBuilder<(), L, C, W, H> {
        self.with_repeat(())
    }

    /// How many calls may be in flight (default: [`LimitLayer::new`], from 2 to 200 as the upstream can bear).
    pub fn limiter(self, limiter: LimitLayer) -> UpstreamBuilder<R, LimitLayer, C, W, H> {
        self.with_limiter(limiter)
    }

    /// When the circuit opens, and for how long (default: [`BreakerPolicy::new`]).
    pub fn circuit(self, policy: BreakerPolicy) -> UpstreamBuilder<R, L, CircuitBreakerLayer, W, H> {
        let circuit = CircuitBreakerLayer::new(self.said.name.clone()).policy(policy);
        self.with_circuit(circuit, Some(policy))
    }

    /// What is sent again (default: [`RetryLayer::new`]); its total is that of the [time limits](Self::timeouts).
    pub fn retry(self, retry: RetryLayer) -> UpstreamBuilder<Retries, L, C, W, H> {
        self.with_repeat(Retries { layer: retry })
    }

    /// Hands the request body on as it is, for an inner service that watches it itself, as `ReverseProxy` does.
    ///
    /// For others the limit on the head begins at the call then, however long the upload takes.
    pub fn untouched(self) -> UpstreamBuilder<R, L, C, Untouched, H> {
        let Self { said, limits, repeat, limiter, circuit, headers } = self;
        UpstreamBuilder { said, limits: limits.untouched(), repeat, limiter, circuit, headers }
    }

    fn with_limiter<M>(self, limiter: M) -> UpstreamBuilder<R, M, C, W, H> {
        let Self { said, limits, repeat, circuit, headers, .. } = self;
        UpstreamBuilder { said, limits, repeat, limiter, circuit, headers }
    }

    fn with_circuit<D>(self, circuit: D, policy: Option<BreakerPolicy>) -> UpstreamBuilder<R, L, D, W, H> {
        let Self { mut said, limits, repeat, limiter, headers, .. } = self;
        said.policy = policy;
        UpstreamBuilder { said, limits, repeat, limiter, circuit, headers }
    }

    fn with_repeat<Q>(self, repeat: Q) -> UpstreamBuilder<Q, L, C, W, H> {
        let Self { said, limits, limiter, circuit, headers, .. } = self;
        UpstreamBuilder { said, limits, repeat, limiter, circuit, headers }
    }
}

impl<L, C, W, H> UpstreamBuilder<Retries, L, C, W, H> {
    /// What retries and hedges are paid from (default: a budget of its own), for stacks before the same upstream.
    pub fn budget(mut self, budget: RetryBudget) -> Self {
        self.repeat.layer = self.repeat.layer.budget(budget);
        self
    }
}

impl<R: Repeat, L: Section, C: Section, W, H> UpstreamBuilder<R, L, C, W, H> {
    /// The layer, if everything fits.
    ///
    /// # Errors
    ///
    /// Everything that is wrong at once, each with what to set.
    pub fn build(self) -> Result<UpstreamLayer<R, L::Part, C::Part, W, H>, Misconfigured> {
        let Checked { found, report } = check::check(&self);
        Misconfigured::unless_none(found)?;
        for finding in report.findings() {
            tracing::warn!(
                target: "tower_upstream",
                upstream = &*self.said.name,
                finding = finding.id().as_str(),
                set = finding.set(),
                "{}", finding.inequality()
            );
        }
        let parts = Parts {
            recorder: Arc::new(Recorder::new()),
            limiter: self.limiter.part(&self.said.name),
            circuit: self.circuit.part(&self.said.name),
        };
        let limits = self.limits.limits().clone();
        let repeat = self.repeat.clone().within(limits.timeouts.until_head());
        let set = Set {
            name: self.said.name.clone(),
            shared: Shared::new(parts, limits),
            repeat,
            classify: self.said.classify.settings().clone(),
            deferred: self.said.classify.clone().deferred().settings().clone(),
            page: self.said.page.clone(),
            mode: Mode::Usual,
        };
        let steering = Arc::new(Steering::new(set));
        let handle = UpstreamHandle::new(&steering, &self);
        Ok(UpstreamLayer { steering, handle, headers: self.headers, border: PhantomData })
    }
}
