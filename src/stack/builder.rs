//! What a stack is told before it is built.

use std::sync::Arc;
use std::time::Duration;

use super::config_error::{ConfigError, ConfigErrors};
use super::errors::Errors;
use super::live_config::LiveConfig;
use super::requests::TrackUploads;
use super::spec::{Config, PerCall};
use super::stats::StatsRecorder;
use super::validate::{self, Validated};
use super::{UpstreamHandle, UpstreamLayer};
use crate::breaker::{BreakerPolicy, CircuitBreakerLayer};
use crate::cause::ProxyStatus;
use crate::classify::{Classified, ClassifyLayer};
use crate::deadline::DeadlinePropagation;
use crate::error_page::ErrorPage;
use crate::event::Observer;
use crate::limit::ConcurrencyLimitLayer;
use crate::retry::{self, Resend, RetryBudget, RetryLayer};
use crate::timeout::{RequestHead, RouteTimeouts, TimeoutLayer, Timeouts, Topology};

/// Builds an [`UpstreamLayer`]; see its [module](super) for the defaults.
#[derive(Clone, Debug)]
#[must_use]
pub struct UpstreamBuilder {
    pub(super) name: Arc<str>,
    pub(super) limits: TimeoutLayer,
    pub(super) retry: Option<RetryLayer>,
    pub(super) limiter: Option<ConcurrencyLimitLayer>,
    pub(super) circuit: Option<CircuitBreakerLayer>,
    /// For the checks: a layer does not show its policy.
    pub(super) policy: Option<BreakerPolicy>,
    pub(super) tracks_uploads: bool,
    pub(super) topology: Topology,
    pub(super) classify: ClassifyLayer,
    pub(super) page: Option<ErrorPage>,
    pub(super) learned: Option<Arc<RouteTimeouts>>,
    pub(super) found: Vec<ConfigError>,
}

impl UpstreamBuilder {
    pub(super) fn new(name: impl Into<Arc<str>>) -> Self {
        let name = name.into();
        let builder = Self {
            limits: TimeoutLayer::new(Timeouts::new()),
            retry: Some(RetryLayer::new()),
            limiter: Some(ConcurrencyLimitLayer::new()),
            circuit: Some(CircuitBreakerLayer::new(name.clone())),
            policy: Some(BreakerPolicy::new()),
            tracks_uploads: true,
            topology: Topology::new(),
            classify: ClassifyLayer::new(),
            page: None,
            learned: None,
            found: Vec::new(),
            name,
        };
        builder.standard()
    }

    /// The time limits (default: the preset's).
    pub fn timeouts(mut self, timeouts: Timeouts) -> Self {
        self.limits = self.limits.with(timeouts);
        self
    }

    /// What is known of the neighbours' limits (default: nothing): what does not fit is refused by [`build`](Self::build).
    ///
    /// Attempts, pauses and hedging are taken from the stack itself, and the idle limit of [`pool_idle`](Self::pool_idle).
    pub fn topology(mut self, topology: Topology) -> Self {
        self.topology = topology;
        self
    }

    /// Reads the caller's deadline and writes the one that goes out (default: neither), as
    /// [`TimeoutLayer::deadlines`] says.
    pub fn deadlines(mut self, deadlines: DeadlinePropagation) -> Self {
        self.limits = self.limits.deadlines(deadlines);
        self
    }

    /// Learns how long the heads of these routes take (default: not at all), as [`TimeoutLayer::learned`] says.
    pub fn learned(
        mut self,
        limits: Arc<RouteTimeouts>,
        route: impl for<'a> Fn(RequestHead<'a>) -> Option<&'a str> + Send + Sync + 'static,
    ) -> Self {
        self.learned = Some(limits.clone());
        self.limits = self.limits.learned(limits, route);
        self
    }

    /// Says how long the client inside keeps idle connections (default: not known), as [`TimeoutLayer::pool_idle`] says.
    pub fn pool_idle(mut self, limit: Duration) -> Self {
        self.topology = self.topology.pool_idle(limit);
        self.limits = self.limits.pool_idle(limit);
        self
    }

    /// How errors and unsafe heads become answers (default: [`ClassifyLayer::new`]).
    ///
    /// It takes the place of what [`proxy_status`](Self::proxy_status) and [`observer`](Self::observer) said before.
    pub fn classify(mut self, classify: ClassifyLayer) -> Self {
        self.classify = classify;
        self
    }

    /// Adds this deployment's member to `Proxy-Status` (RFC 9209) on failures (default: none).
    pub fn proxy_status(mut self, name: &str) -> Self {
        match ProxyStatus::new(name) {
            Ok(member) => self.classify = self.classify.proxy_status(member),
            Err(error) => self.found.push(ConfigError::new(
                "proxy_status",
                format!("{name:?} cannot stand in the field: {error}"),
                "set a token such as \"shop-edge\"",
            )),
        }
        self
    }

    /// Tells this one of failures as well (default: [`TracingObserver`](crate::event::TracingObserver) alone).
    pub fn observer(mut self, observer: impl Observer + 'static) -> Self {
        self.classify = self.classify.also(observer);
        self
    }

    /// Writes a page in place of the short text of our own answers (default: none).
    pub fn error_page(mut self, page: ErrorPage) -> Self {
        self.page = Some(page);
        self
    }

    /// Leaves the limiter out.
    pub fn without_limiter(mut self) -> Self {
        self.limiter = None;
        self
    }

    /// Leaves the circuit breaker out.
    pub fn without_circuit(mut self) -> Self {
        (self.circuit, self.policy) = (None, None);
        self
    }

    /// Leaves the retry out: no request is sent twice, and no request body is kept.
    pub fn without_retry(mut self) -> Self {
        self.retry = None;
        self
    }

    /// How many calls may be in flight (default: [`ConcurrencyLimitLayer::new`], from 2 to 200 as the upstream can bear).
    pub fn limiter(mut self, limiter: ConcurrencyLimitLayer) -> Self {
        self.limiter = Some(limiter);
        self
    }

    /// When the circuit opens, and for how long (default: [`BreakerPolicy::new`]).
    pub fn circuit(mut self, policy: BreakerPolicy) -> Self {
        self.circuit = Some(CircuitBreakerLayer::new(self.name.clone()).policy(policy));
        self.policy = Some(policy);
        self
    }

    /// What is sent again (default: [`RetryLayer::new`]); its total is that of the [time limits](Self::timeouts).
    pub fn retry(mut self, retry: RetryLayer) -> Self {
        self.retry = Some(retry);
        self
    }

    /// What retries and hedges are paid from (default: a budget of its own), for stacks before the same upstream.
    ///
    /// Without a retry it is not used.
    pub fn budget(mut self, budget: RetryBudget) -> Self {
        self.retry = self.retry.map(|retry| retry.budget(budget));
        self
    }

    /// Does not track the progress of request bodies, for an inner service that tracks it itself, as `ReverseProxy` does.
    ///
    /// For others the limit on the head begins at the call then, however long the upload takes.
    pub fn without_upload_tracking(mut self) -> Self {
        self.tracks_uploads = false;
        self
    }

    /// The layer, if everything fits.
    ///
    /// # Errors
    ///
    /// Everything that is wrong at once, each with what to set.
    pub fn build(self) -> Result<UpstreamLayer, ConfigErrors> {
        let Validated { errors: found, report } = validate::check(&self);
        ConfigErrors::into_result(&self.name, found)?;
        for finding in report.findings() {
            tracing::warn!(
                target: "tower_upstream",
                upstream = &*self.name,
                finding = finding.id().as_str(),
                set = finding.suggestion(),
                "{}", finding.conflict()
            );
        }
        let recorder = Arc::new(StatsRecorder::new());
        let limiter = self.limiter.as_ref().map(|limiter| limiter.component().with_upstream(&self.name));
        let timeouts = self.limits.limits().clone();
        let until_head = timeouts.timeouts.until_head();
        let retry = self.retry.as_ref().map(|retry| retry::Settings { total: until_head, ..retry.settings().clone() });
        let requests = Resend { settings: retry, wrap: TrackUploads(self.tracks_uploads) };
        let errors = Errors {
            name: self.name.clone(),
            classify: Classified { settings: self.classify.settings().clone() },
            page: self.page.clone(),
        };
        let circuit = self.circuit.as_ref().map(CircuitBreakerLayer::component);
        let config = Config::new(PerCall { recorder, limiter }, circuit, timeouts, requests, errors);
        let live = Arc::new(LiveConfig::new(config));
        let handle = UpstreamHandle::new(&live, &self);
        Ok(UpstreamLayer { live, handle })
    }
}
