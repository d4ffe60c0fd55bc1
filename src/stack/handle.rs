//! The operator's handle of a stack: statistics, bypass, drain, timeouts.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::time::{Instant, sleep_until};

use super::config_error::{ConfigError, ConfigErrors};
#[cfg(feature = "serde")]
use super::live_config::retries_end;
use super::live_config::{LiveConfig, set_timeouts};
use super::stats::{LatencySnapshot, StatsRecorder};
use super::validate;
use crate::alignment::Topology;
use crate::breaker::{self, CircuitHandle};
use crate::cause::{BadGatewayCause, DRAINING, Detail, Failure, RetryStop};
use crate::deadline::Deadline;
use crate::exchange::Handling;
use crate::exchange::Rejection;
use crate::limit::{ConcurrencyLimitLayer, LimitHandle, LimitSnapshot};
use crate::retry::BudgetSnapshot;
use crate::timeout::{AdaptiveEstimate, RouteTimeouts, Timeouts};

/// The number of changes kept.
const CHANGES: usize = 64;
/// The maximum length of a change's description in bytes.
const TEXT: usize = 200;
/// The longest bypass, in case one is forgotten.
const MAX_BYPASS: Duration = Duration::from_secs(3600);

/// Run-time handle of an [`UpstreamLayer`](super::UpstreamLayer): statistics, bypass, drain, timeouts; clones refer to the same stack.
///
/// ```
/// use std::time::Duration;
/// use tower_upstream::UpstreamLayer;
/// use tower_upstream::timeout::Timeouts;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let layer = UpstreamLayer::builder("payments").build().unwrap();
/// let handle = layer.handle();
/// handle.annotate("deploy v42");
/// handle.set_timeouts(Timeouts::new().response_head(Duration::from_secs(3)).total(Duration::from_secs(10))).unwrap();
/// handle.bypass(Duration::from_secs(60));
/// assert_eq!(handle.snapshot(tokio::time::Instant::now()).in_flight, 0);
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct UpstreamHandle {
    shared: Arc<Shared>,
}

/// The parts of a stack that its handles reach.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) name: Arc<str>,
    pub(super) live: Arc<LiveConfig>,
    pub(super) topology: Mutex<Topology>,
    pub(super) recorder: Arc<StatsRecorder>,
    pub(super) circuit: Option<CircuitHandle>,
    pub(super) limit: Mutex<Option<LimitHandle>>,
    pub(super) learned: Option<Arc<RouteTimeouts>>,
    #[cfg(feature = "balance")]
    pub(super) pool: Option<crate::balance::BalanceHandle>,
    pub(super) changes: Mutex<VecDeque<StackChange>>,
}

/// A change that was annotated or made through the handle.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct StackChange {
    /// When, by the runtime's clock.
    pub at: Instant,
    /// When, by the wall clock.
    pub time: SystemTime,
    /// The description, at most 200 bytes.
    pub description: String,
}

/// Snapshot of a stack.
///
/// Each number is exact, but under concurrent calls they may be from slightly different moments.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct UpstreamSnapshot {
    /// The upstream's name.
    pub name: Arc<str>,
    /// How the stack treats calls.
    pub state: UpstreamState,
    /// Calls since the layer was created, refused ones included.
    pub calls: u64,
    /// Calls whose response has not ended, and connections after a 101 (WebSocket) that have not.
    ///
    /// A connection after a 101 is known if its service inserts an [`UpgradeGuard`](crate::body::UpgradeGuard), as
    /// `ReverseProxy` does.
    pub in_flight: u64,
    /// Failed calls by cause; calls whose retry succeeded are not included.
    pub failures: Vec<(BadGatewayCause, u64)>,
    /// Times to the response head; `None` before the first.
    pub latency: Option<LatencySnapshot>,
    /// The current timeouts.
    pub timeouts: Timeouts,
    /// The circuit, if there is one.
    pub circuit: Option<breaker::CircuitSnapshot>,
    /// The concurrency limit, if there is one.
    pub limit: Option<LimitSnapshot>,
    /// The retry budget, if there is one.
    pub budget: Option<BudgetSnapshot>,
    /// The adaptive timeout of each route.
    pub learned: Vec<(String, AdaptiveEstimate)>,
    /// The endpoints, if the stack is [for a pool](super::UpstreamLayer::for_pool).
    #[cfg(feature = "balance")]
    pub pool: Option<crate::balance::BalanceSnapshot>,
    /// The latest changes, the most recent one last.
    pub changes: Vec<StackChange>,
}

/// How a stack treats calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum UpstreamState {
    /// Normal operation.
    Serving,
    /// Retry, circuit breaker and concurrency limit are disabled until this time.
    Bypassed(Instant),
    /// New calls are refused.
    Draining,
}

/// The result of a drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum DrainOutcome {
    /// No call is in flight, and no upgraded connection is open.
    Complete,
    /// This many calls and upgraded connections were still in flight when the time was up.
    TimedOut(u64),
}

/// The rejection of every call while the stack is drained.
fn draining() -> Rejection {
    let failure = Failure::builder(BadGatewayCause::GatewayOverload)
        .refusal()
        .retry_stop(RetryStop::LocalRefusal)
        .detail(Detail::Text(DRAINING));
    Rejection::new(failure.build()).retry_after(Duration::from_secs(1))
}

impl UpstreamHandle {
    pub(super) fn new(shared: Shared) -> Self {
        Self { shared: Arc::new(shared) }
    }

    /// The upstream's name.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// A snapshot at `now`.
    pub fn snapshot(&self, now: Instant) -> UpstreamSnapshot {
        let shared = &*self.shared;
        let config = shared.live.current().1;
        let state = match config.handling {
            Handling::Bypass(until) if now < until => UpstreamState::Bypassed(until),
            Handling::Normal | Handling::Bypass(_) => UpstreamState::Serving,
            Handling::Reject(_) => UpstreamState::Draining,
        };
        let learned = shared.learned.iter().flat_map(|limits| limits.iter());
        UpstreamSnapshot {
            name: shared.name.clone(),
            state,
            calls: shared.recorder.calls(),
            in_flight: shared.recorder.in_flight(),
            failures: shared.recorder.failures(),
            latency: shared.recorder.latency(now),
            timeouts: config.timeouts.timeouts,
            circuit: shared.circuit.as_ref().map(|circuit| circuit.snapshot(now)),
            limit: locked(&shared.limit).as_ref().map(LimitHandle::snapshot),
            budget: config.requests.settings.as_ref().map(|retry| retry.budget.snapshot(now)),
            learned: learned.map(|(route, limit)| (route.to_owned(), limit.snapshot(now))).collect(),
            #[cfg(feature = "balance")]
            pool: shared.pool.as_ref().map(|pool| pool.snapshot(now)),
            changes: locked(&shared.changes).iter().cloned().collect(),
        }
    }

    /// Calls in flight, as in [`UpstreamSnapshot::in_flight`].
    pub fn in_flight(&self) -> u64 {
        self.shared.recorder.in_flight()
    }

    /// The handle of the circuit, if there is one: for its transitions and an active probe.
    pub fn circuit(&self) -> Option<CircuitHandle> {
        self.shared.circuit.clone()
    }

    /// Refuses all calls until [`release`](Self::release) or [`reset`](Self::reset); does nothing without a circuit.
    pub fn hold_open(&self) {
        self.with_circuit("circuit held open by an operator", CircuitHandle::hold_open);
    }

    /// Ends the hold: the next call becomes a probe.
    pub fn release(&self) {
        self.with_circuit("circuit released by an operator", CircuitHandle::release);
    }

    /// Closes the circuit and clears its counts.
    pub fn reset(&self) {
        self.with_circuit("circuit reset by an operator", CircuitHandle::reset);
    }

    fn with_circuit(&self, what: &str, does: impl FnOnce(&CircuitHandle)) {
        if let Some(circuit) = &self.shared.circuit {
            does(circuit);
            self.annotate(what);
        }
    }

    /// Disables retry, circuit breaker and concurrency limit for this time, at most an hour, from now on.
    ///
    /// Use it to find out whether these parts cause a problem. Timeouts and classification remain; calls in flight are not
    /// affected. The bypass ends after its time, or with [`resume`](Self::resume). It has no effect during a drain.
    pub fn bypass(&self, limit: Duration) {
        let limit = limit.min(MAX_BYPASS);
        if matches!(self.shared.live.current().1.handling, Handling::Reject(_)) {
            return;
        }
        self.set_handling(&Handling::Bypass(Instant::now() + limit));
        self.annotate(format!("bypass: retry, circuit breaker and concurrency limit are disabled for {limit:?}"));
    }

    /// Returns to normal operation: ends a bypass or a drain.
    pub fn resume(&self) {
        self.set_handling(&Handling::Normal);
        self.annotate("normal operation resumed");
    }

    fn set_handling(&self, handling: &Handling) {
        self.shared.live.change(|config| config.handling = handling.clone());
    }

    /// Changes the timeouts for calls that start from now on.
    ///
    /// # Errors
    ///
    /// Invalid settings, as [`build`](super::UpstreamBuilder::build) would refuse them; the timeouts are unchanged then.
    pub fn set_timeouts(&self, timeouts: Timeouts) -> Result<(), ConfigErrors> {
        self.check_timeouts(&timeouts)?;
        self.shared.live.change_own(|config| set_timeouts(config, timeouts));
        self.annotate("timeouts changed");
        Ok(())
    }

    fn check_timeouts(&self, timeouts: &Timeouts) -> Result<(), ConfigErrors> {
        let mut found = Vec::new();
        validate::limits(timeouts, &locked(&self.shared.topology), &mut found);
        ConfigErrors::into_result(&self.shared.name, found)
    }

    /// The settings of a layer with other timeouts.
    pub(super) fn variant(&self, base: &LiveConfig, timeouts: Timeouts) -> Result<Arc<LiveConfig>, ConfigErrors> {
        self.check_timeouts(&timeouts)?;
        Ok(self.shared.live.variant(base, timeouts))
    }

    /// Applies the settings of a changed file to calls that start from now on.
    ///
    /// Circuit, budget, statistics and connections are kept; the limiter is replaced if its bounds have changed. What code has
    /// set beside the file stays as it is, except for timeouts, retry policy, hedging, circuit and limiter, which are the file's.
    ///
    /// # Errors
    ///
    /// The settings are invalid, or differ in what cannot change while the stack runs: the name, `proxy_status`, and whether
    /// there are retry, circuit and limiter. Nothing has changed then.
    #[cfg(feature = "serde")]
    pub fn apply(&self, config: super::UpstreamConfig) -> Result<(), ConfigErrors> {
        self.apply_builder(config.builder(), || Ok(()))
    }

    /// Applies the settings of a builder, after `then` has succeeded.
    #[cfg(feature = "serde")]
    pub(super) fn apply_builder(
        &self,
        builder: super::UpstreamBuilder,
        then: impl FnOnce() -> Result<(), ConfigError>,
    ) -> Result<(), ConfigErrors> {
        let shared = &*self.shared;
        #[cfg(feature = "balance")]
        let builder = match shared.pool.clone() {
            Some(pool) => builder.pool(pool),
            None => builder,
        };
        let name = builder.name.clone();
        let settings = builder.resolve();
        let mut found = validate::check(&shared.name, &settings).errors;
        let running = shared.live.current().1;
        for (setting, is_same) in [
            ("name", name == shared.name),
            ("retry", settings.retry.is_some() == running.requests.settings.is_some()),
            ("circuit", settings.circuit.is_some() == shared.circuit.is_some()),
            ("limiter", settings.limiter.is_some() == locked(&shared.limit).is_some()),
        ] {
            if !is_same {
                let suggestion = "leave it as it was, or build the stack again";
                found.push(ConfigError::new(setting, "cannot change while the stack runs", suggestion));
            }
        }
        if found.is_empty() {
            found.extend(then().err());
        }
        ConfigErrors::into_result(&shared.name, found)?;
        if let Some((circuit, policy)) = shared.circuit.as_ref().zip(settings.circuit) {
            circuit.set_policy(policy);
        }
        if let Some(limiter) = settings.limiter.filter(|limiter| !self.has_bounds(limiter)) {
            self.set_limiter(&limiter)?;
        }
        let retry = settings.retry.as_ref().map(|retry| retry.settings().clone());
        let page = settings.page;
        shared.live.change(|config| {
            if let (Some(current), Some(retry)) = (&mut config.requests.settings, &retry) {
                current.change(retry);
            }
            if page.is_some() {
                config.errors.page.clone_from(&page);
            }
        });
        let timeouts = settings.timeouts;
        shared.live.change_own(|config| {
            set_timeouts(config, timeouts);
            if let Some(retry) = &mut config.requests.settings {
                retry.within = settings.retries_within;
                retry.total = retries_end(&timeouts, settings.retries_within);
            }
        });
        *locked(&shared.topology) = settings.topology;
        self.annotate("settings applied");
        Ok(())
    }

    #[cfg(feature = "serde")]
    fn has_bounds(&self, limiter: &ConcurrencyLimitLayer) -> bool {
        let running = self.shared.live.current().1.per_attempt.1.as_ref().map(crate::limit::LimitComponent::bounds);
        running == Some(limiter.effective_bounds())
    }

    /// Replaces the concurrency limit for calls that start from now on.
    ///
    /// Calls in flight keep their slots in the old one, so for a moment as many calls may be in flight as both allow.
    ///
    /// # Errors
    ///
    /// If the stack was built without a limit, or [`build`](super::UpstreamBuilder::build) would refuse this one.
    pub fn set_limiter(&self, limiter: &ConcurrencyLimitLayer) -> Result<(), ConfigErrors> {
        let mut limit = locked(&self.shared.limit);
        if limit.is_none() {
            let problem = "the stack has no limiter";
            let found = ConfigError::new("limiter", problem, "build the stack without `without_limiter`");
            return ConfigErrors::into_result(&self.shared.name, vec![found]);
        }
        let mut found = Vec::new();
        validate::limiter(limiter.configured_bounds(), &mut found);
        ConfigErrors::into_result(&self.shared.name, found)?;
        let component = limiter.component().with_upstream(&self.shared.name);
        self.shared.live.change(|config| config.per_attempt.1 = Some(component.clone()));
        *limit = Some(limiter.handle());
        drop(limit);
        self.annotate("limiter replaced");
        Ok(())
    }

    /// Adds an event that may explain later changes, such as a deployment.
    ///
    /// The latest 64 are kept, at most 200 bytes of each.
    pub fn annotate(&self, what: impl Into<String>) {
        let mut what = what.into();
        let cut = (0..=TEXT.min(what.len())).rev().find(|&end| what.is_char_boundary(end)).unwrap_or(0);
        what.truncate(cut);
        tracing::info!(target: "tower_upstream", upstream = &*self.shared.name, change = %what, "stack changed");
        let mut changes = locked(&self.shared.changes);
        if changes.len() == CHANGES {
            changes.pop_front();
        }
        changes.push_back(StackChange { at: Instant::now(), time: SystemTime::now(), description: what });
    }

    /// Refuses new calls from now on, with 503 and `Retry-After`, and waits until calls in flight have ended or `limit` has elapsed.
    ///
    /// Calls are refused until [`resume`](Self::resume). WebSocket and other upgraded connections count as calls in flight. The
    /// drain does not end them: they end with their client, their upstream, their idle timeout or the process, so a drain with
    /// open ones usually takes the whole `limit`.
    pub async fn drain(&self, limit: Duration) -> DrainOutcome {
        // saturates at a hundred years
        let end = Deadline::after(Instant::now(), limit).instant();
        self.set_handling(&Handling::Reject(draining()));
        self.annotate(DRAINING);
        let mut pause = Duration::from_millis(1);
        loop {
            let left = self.in_flight();
            if left == 0 {
                return DrainOutcome::Complete;
            }
            let now = Instant::now();
            if now >= end {
                return DrainOutcome::TimedOut(left);
            }
            // polled, so that the end of a call need not notify anyone
            sleep_until(end.min(now + pause)).await;
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }
}

fn locked<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}
