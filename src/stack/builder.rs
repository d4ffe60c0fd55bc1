//! Settings of a stack, until it is built.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::Request;

use super::config_error::{ConfigError, ConfigErrors};
use super::errors::Errors;
use super::handle::Shared;
use super::live_config::{LiveConfig, retries_end};
use super::presets::Preset;
use super::probe::Prober;
use super::requests::TrackUploads;
use super::spec::Config;
use super::stats::StatsRecorder;
use super::validate::{self, Resolved, Validated};
use super::{UpstreamHandle, UpstreamLayer};
use crate::alignment::Topology;
use crate::breaker::{BreakerPolicy, CircuitBreakerLayer};
use crate::cause::ProxyStatus;
use crate::classify::{Classified, ClassifyLayer};
use crate::deadline::DeadlinePropagation;
use crate::error_page::ErrorPage;
use crate::event::Observer;
use crate::exchange::ProbeSource;
use crate::forward::ClientInfo;
use crate::limit::ConcurrencyLimitLayer;
use crate::opaque::Opaque;
use crate::retry::{self, Resend, RetryBudget, RetryLayer, RetryPolicy};
use crate::timeout::{RequestHead, RouteTimeouts, TimeoutLayer, Timeouts};

/// Builds an [`UpstreamLayer`]; see its [module](super) for the defaults.
///
/// The order of the calls does not matter: [`build`](Self::build) applies every change to the settings of the
/// [`Preset`], changes of the same part in the order they were made.
///
/// ```
/// use std::time::Duration;
/// use tower_upstream::UpstreamLayer;
/// use tower_upstream::stack::Preset;
///
/// let layer = UpstreamLayer::builder("payments")
///     .timeouts(|timeouts| timeouts.body_idle(Duration::from_secs(5)))
///     .retry_policy(|policy| policy.attempts(3).max_backoff(Duration::from_millis(20)))
///     .preset(Preset::LatencyCritical)
///     .build()
///     .unwrap();
/// ```
#[derive(Debug)]
#[must_use]
#[allow(clippy::struct_excessive_bools)] // one for each part that can be removed
pub struct UpstreamBuilder {
    pub(super) name: Arc<str>,
    preset: Preset,
    timeouts: Changes<Timeouts>,
    retry: Changes<RetryLayer>,
    retry_policy: Changes<RetryPolicy>,
    budget: Option<RetryBudget>,
    circuit: Changes<BreakerPolicy>,
    limiter: Changes<ConcurrencyLimitLayer>,
    has_retry: bool,
    has_circuit: bool,
    has_limiter: bool,
    /// `None`: no probe is sent.
    probe: Option<ProbeSource>,
    /// Everything about timeouts except the timeouts themselves.
    timeout_layer: TimeoutLayer,
    tracks_uploads: bool,
    has_summary: bool,
    #[cfg(feature = "balance")]
    pool: Option<crate::balance::BalanceHandle>,
    topology: Topology,
    classify: ClassifyLayer,
    /// Changes that the stack applies to `classify`.
    reporting: Changes<ClassifyLayer>,
    page: Option<ErrorPage>,
    pub(super) learned: Option<Arc<RouteTimeouts>>,
    pub(super) found: Vec<ConfigError>,
}

/// Changes of one part, applied in order.
#[derive(Debug)]
struct Changes<T>(Vec<Opaque<Box<Change<T>>>>);

type Change<T> = dyn FnOnce(T) -> T + Send;

impl<T> Changes<T> {
    const fn new() -> Self {
        Self(Vec::new())
    }

    fn push(&mut self, change: impl FnOnce(T) -> T + Send + 'static) {
        self.0.push(Opaque(Box::new(change)));
    }

    fn apply(self, settings: T) -> T {
        self.0.into_iter().fold(settings, |settings, change| (change.0)(settings))
    }
}

impl UpstreamBuilder {
    pub(super) fn new(name: impl Into<Arc<str>>) -> Self {
        Self {
            name: name.into(),
            preset: Preset::Standard,
            timeouts: Changes::new(),
            retry: Changes::new(),
            retry_policy: Changes::new(),
            budget: None,
            circuit: Changes::new(),
            limiter: Changes::new(),
            has_retry: true,
            has_circuit: true,
            has_limiter: true,
            probe: Some(ProbeSource::default()),
            timeout_layer: TimeoutLayer::new(Timeouts::new()),
            tracks_uploads: true,
            has_summary: false,
            #[cfg(feature = "balance")]
            pool: None,
            topology: Topology::new(),
            classify: ClassifyLayer::new(),
            reporting: Changes::new(),
            page: None,
            learned: None,
            found: Vec::new(),
        }
    }

    /// Sets the values that the other settings change (default: [`Preset::Standard`]).
    pub fn preset(mut self, preset: Preset) -> Self {
        self.preset = preset;
        self
    }

    /// Changes the timeouts.
    ///
    /// The preset's timeouts of the head and of an attempt are lowered to a shorter total.
    pub fn timeouts(mut self, change: impl FnOnce(Timeouts) -> Timeouts + Send + 'static) -> Self {
        self.timeouts.push(change);
        self
    }

    /// Declares the timeouts of the neighbours (default: none); [`build`](Self::build) refuses settings that conflict with them.
    ///
    /// Attempts, backoff and hedging are the stack's own, and the idle timeout is that of [`pool_idle`](Self::pool_idle).
    pub fn topology(mut self, topology: Topology) -> Self {
        self.topology = topology;
        self
    }

    /// Reads the client's deadline and writes the one sent upstream (default: neither); see [`TimeoutLayer::deadlines`].
    pub fn deadlines(mut self, deadlines: DeadlinePropagation) -> Self {
        self.timeout_layer = self.timeout_layer.deadlines(deadlines);
        self
    }

    /// Learns the response times of these routes (default: none); see [`TimeoutLayer::learned`].
    pub fn learned(
        mut self,
        limits: Arc<RouteTimeouts>,
        route: impl for<'a> Fn(RequestHead<'a>) -> Option<&'a str> + Send + Sync + 'static,
    ) -> Self {
        self.learned = Some(limits.clone());
        self.timeout_layer = self.timeout_layer.learned(limits, route);
        self
    }

    /// Declares how long the inner client keeps idle connections (default: unknown); see [`TimeoutLayer::pool_idle`].
    pub fn pool_idle(mut self, limit: Duration) -> Self {
        self.topology = self.topology.pool_idle(limit);
        self.timeout_layer = self.timeout_layer.pool_idle(limit);
        self
    }

    /// Sets how errors and unsafe heads become responses (default: [`ClassifyLayer::new`]).
    ///
    /// [`proxy_status`](Self::proxy_status) and [`observer`](Self::observer) add to it.
    pub fn classify(mut self, classify: ClassifyLayer) -> Self {
        self.classify = classify;
        self
    }

    /// Adds this deployment's entry to `Proxy-Status` (RFC 9209) on failures (default: none).
    pub fn proxy_status(mut self, name: &str) -> Self {
        match ProxyStatus::new(name) {
            Ok(entry) => self.reporting.push(|classify| classify.proxy_status(entry)),
            Err(error) => self.found.push(ConfigError::new(
                "proxy_status",
                format!("{name:?} is not a valid name: {error}"),
                "set a token such as \"shop-edge\"",
            )),
        }
        self
    }

    /// Adds an observer of failures (default: [`TracingObserver`](crate::event::TracingObserver) alone, which
    /// [`ClassifyLayer::without_log`] removes).
    pub fn observer(mut self, observer: impl Observer + 'static) -> Self {
        self.reporting.push(|classify| classify.observer(observer));
        self
    }

    /// Writes an error page for local responses (default: a short text).
    pub fn error_page(mut self, page: ErrorPage) -> Self {
        self.page = Some(page);
        self
    }

    /// Removes the concurrency limit.
    pub fn without_limiter(mut self) -> Self {
        self.has_limiter = false;
        self
    }

    /// Removes the circuit breaker.
    pub fn without_circuit(mut self) -> Self {
        self.has_circuit = false;
        self
    }

    /// Tests the upstream with this request while the circuit is open (default: a copy of a refused `GET` or `HEAD`).
    ///
    /// For an upstream whose `GET` requests have effects, or that gets no `GET`, such as gRPC. Choose a request that shows whether
    /// the upstream works, such as `GET /health`: any response that does not count as a failure closes the circuit.
    pub fn probe_request(mut self, request: Request<()>) -> Self {
        self.probe = Some(ProbeSource::Fixed(Arc::new(request)));
        self
    }

    /// Sends no probes while the circuit is open: after each open duration, a call is the probe.
    pub fn without_probe(mut self) -> Self {
        self.probe = None;
        self
    }

    /// Removes the retry: no request is sent twice, and no request body is buffered.
    pub fn without_retry(mut self) -> Self {
        self.has_retry = false;
        self
    }

    /// Changes the concurrency limit: 1,024 calls, as in Envoy.
    ///
    /// One that learns what the upstream can handle is
    /// `.limiter(|_| ConcurrencyLimitLayer::adaptive())`. To share a limit among stacks, return a clone of its layer: `.limiter(|_| shared)`.
    pub fn limiter(
        mut self,
        change: impl FnOnce(ConcurrencyLimitLayer) -> ConcurrencyLimitLayer + Send + 'static,
    ) -> Self {
        self.limiter.push(change);
        self
    }

    /// Changes when the circuit opens, and for how long.
    pub fn circuit(mut self, change: impl FnOnce(BreakerPolicy) -> BreakerPolicy + Send + 'static) -> Self {
        self.circuit.push(change);
        self
    }

    /// Changes which failures are retried, how often, and after what backoff.
    pub fn retry_policy(mut self, change: impl FnOnce(RetryPolicy) -> RetryPolicy + Send + 'static) -> Self {
        self.retry_policy.push(change);
        self
    }

    /// Changes everything else about retries: hedging, buffer size, headers; its total is that of the
    /// [timeouts](Self::timeouts).
    pub fn retry(mut self, change: impl FnOnce(RetryLayer) -> RetryLayer + Send + 'static) -> Self {
        self.retry.push(change);
        self
    }

    /// Pays for retries and hedges from this budget (default: one of its own), for several stacks of one upstream.
    pub fn budget(mut self, budget: RetryBudget) -> Self {
        self.budget = Some(budget);
        self
    }

    /// Adds a [`CallSummary`](super::CallSummary) to the extensions of every response (default: none).
    ///
    /// It costs about 800 instructions and 3 allocations per call, most of them for the map of the extensions.
    pub fn call_summary(mut self) -> Self {
        self.has_summary = true;
        self
    }

    /// Does not track the progress of request bodies, for an inner service that tracks it itself, such as `ReverseProxy`.
    ///
    /// With any other service the timeout of the head then starts at the call, however long the upload takes.
    pub fn without_upload_tracking(mut self) -> Self {
        self.tracks_uploads = false;
        self
    }

    #[cfg(feature = "balance")]
    pub(super) fn pool(mut self, pool: crate::balance::BalanceHandle) -> Self {
        self.pool = Some(pool);
        self
    }

    #[cfg(feature = "balance")]
    fn has_endpoints(&self) -> bool {
        self.pool.is_some()
    }

    #[cfg(not(feature = "balance"))]
    #[allow(clippy::unused_self)] // of a stack with the feature
    fn has_endpoints(&self) -> bool {
        false
    }

    /// Applies all changes to the preset.
    pub(super) fn resolve(self) -> Resolved {
        let (preset, has_endpoints) = (self.preset.timeouts(), self.has_endpoints());
        let timeouts = self.timeouts.apply(preset);
        let window = self.preset.retries_within().filter(|_| timeouts.response_head == preset.response_head);
        // at another endpoint, an attempt that hung is worth a second one
        let window = window.map(|window| if has_endpoints { 2 * window } else { window });
        // the preset's attempts are not meant to follow each other in full length
        let in_full = window.is_none() || timeouts.attempt != preset.attempt;
        let timeouts = within_total(timeouts, &preset);
        let retry = self.has_retry.then(|| {
            let layer = self.retry.apply(self.preset.retry());
            let policy = self.retry_policy.apply(layer.settings().policy);
            let layer = layer.policy(policy);
            self.budget.into_iter().fold(layer, RetryLayer::budget)
        });
        let mut topology = self.topology;
        if let Some(idle) = self.timeout_layer.pool() {
            // `topology` may have been called after `pool_idle`
            topology = topology.pool_idle(idle);
        }
        Resolved {
            timeouts,
            topology: validate::with_retry(topology, retry.as_ref(), in_full),
            retry,
            retries_within: window,
            circuit: self.has_circuit.then(|| self.circuit.apply(self.preset.circuit())),
            limiter: self.has_limiter.then(|| self.limiter.apply(Preset::limiter())),
            probe: self.probe,
            classify: self.reporting.apply(self.classify),
            page: self.page,
            timeout_layer: self.timeout_layer.with(timeouts),
            found: self.found,
        }
    }

    /// Builds the layer.
    ///
    /// # Errors
    ///
    /// Every invalid or conflicting setting at once, each with what to set.
    pub fn build(self) -> Result<UpstreamLayer, ConfigErrors> {
        let (name, learned, tracks_uploads) = (self.name.clone(), self.learned.clone(), self.tracks_uploads);
        #[cfg(feature = "balance")]
        let pool = self.pool.clone();
        let has_summary = self.has_summary;
        let settings = self.resolve();
        let Validated { errors, report } = validate::check(&name, &settings);
        ConfigErrors::into_result(&name, errors)?;
        for finding in report.findings() {
            tracing::warn!(
                target: "tower_upstream",
                upstream = &*name,
                finding = finding.id(),
                "{}: {}; set {}", finding.conflict(), finding.reason(), finding.suggestion()
            );
        }
        let circuit = settings.circuit.map(|policy| CircuitBreakerLayer::for_stack(policy, name.clone()));
        let limiter = settings.limiter.as_ref().map(|limiter| limiter.component().with_upstream(&name));
        let timeouts = settings.timeout_layer.limits().clone();
        let retry = settings.retry.map(carry_client).map(|retry| retry::Settings {
            total: retries_end(&timeouts.timeouts, settings.retries_within),
            within: settings.retries_within,
            upstream: Some(name.clone()),
            ..retry.settings().clone()
        });
        let requests = Resend { settings: retry, wrap: TrackUploads(tracks_uploads) };
        let errors = Errors {
            classify: Classified { settings: settings.classify.settings().named(&name) },
            page: settings.page,
            summaries: has_summary.then(|| name.clone()),
        };
        let recorder = Arc::new(StatsRecorder::new());
        let per_attempt = (circuit.as_ref().map(CircuitBreakerLayer::component), limiter);
        let config = Config::new(recorder.clone(), per_attempt, timeouts, requests, errors);
        let prober = circuit.as_ref().zip(settings.probe);
        let prober = prober.map(|(circuit, source)| Prober::new(circuit.handle(), source, recorder.clone()));
        let live = Arc::new(LiveConfig::new(config));
        let handle = UpstreamHandle::new(Shared {
            name,
            live: live.clone(),
            topology: Mutex::new(settings.topology),
            recorder,
            circuit: circuit.as_ref().map(CircuitBreakerLayer::handle),
            limit: Mutex::new(settings.limiter.as_ref().map(ConcurrencyLimitLayer::handle)),
            learned,
            #[cfg(feature = "balance")]
            pool,
            changes: Mutex::default(),
        });
        Ok(UpstreamLayer { live, prober, handle })
    }
}

/// Copies the client's address to later attempts, for a proxy inside that forwards it.
fn carry_client(retry: RetryLayer) -> RetryLayer {
    let retry = retry.carry::<ClientInfo>();
    #[cfg(feature = "axum")]
    let retry = retry.carry::<axum::extract::ConnectInfo<std::net::SocketAddr>>();
    retry
}

/// Lowers the preset's timeouts of the head and of an attempt to a shorter total, which was set on purpose.
fn within_total(mut timeouts: Timeouts, preset: &Timeouts) -> Timeouts {
    let total = timeouts.until_head();
    let lower = |limit: Option<Duration>| limit.map(|limit| total.map_or(limit, |total| limit.min(total)));
    if timeouts.attempt == preset.attempt {
        timeouts.attempt = lower(timeouts.attempt);
    }
    if timeouts.response_head == preset.response_head {
        timeouts.response_head = lower(timeouts.response_head);
        if let (Some(head), Some(attempt)) = (timeouts.response_head, timeouts.attempt) {
            timeouts.response_head = Some(head.min(attempt));
        }
    }
    timeouts
}
