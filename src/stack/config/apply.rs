//! Applies the tables of a file to a builder, which reports contradictions when it builds.

use std::time::Duration;

use super::super::builder::UpstreamBuilder;
use super::super::config_error::ConfigError;
use super::super::presets::Preset;
use super::tables::{
    Circuit, ErrorPage, Hedge, Limit, Limiter, Part, Probe, Retry, Root, Time, Timeouts, Topology, When,
};
#[cfg(all(feature = "balance", feature = "client"))]
use super::value::Value;
use super::value::read;
use crate::alignment;
use crate::breaker::BreakerPolicy;
use crate::error_page;
use crate::exchange::CallKind;
use crate::limit::ConcurrencyLimitLayer;
use crate::retry::{Hedging, RetryBudget, RetryLayer};
use crate::stats::Ratio;
use crate::timeout;

#[cfg(all(feature = "balance", feature = "client"))]
impl Root {
    /// Declares the timeouts of the connections, which the file sets itself.
    pub(super) fn derive_topology(&mut self, connect: Duration, idle: Duration, errors: &mut Vec<ConfigError>) {
        let topology = self.topology.get_or_insert_default();
        for (key, time, table) in [("connect", connect, "connect.tcp"), ("pool_idle", idle, "pool.idle")] {
            if topology.contains(key) {
                let problem = format!("follows from `{table}`");
                contradiction(errors, &format!("topology.{key}"), &problem, "remove it");
            } else {
                topology.insert(key, Value::String(humantime::format_duration(time).to_string()));
            }
        }
    }
}

impl Root {
    pub(super) fn apply(self, errors: &mut Vec<ConfigError>) -> UpstreamBuilder {
        let preset = self.preset.unwrap_or_default();
        let mut builder = UpstreamBuilder::new(self.name.unwrap_or_default()).preset(preset);
        if let Some(entries) = self.timeouts {
            let timeouts = read::<Timeouts>("timeouts", entries, errors);
            timeouts.check(preset, errors);
            builder = builder.timeouts(|base| timeouts.apply(base));
        }
        match self.retry {
            None => {}
            Some(Part(None)) => builder = builder.without_retry(),
            Some(Part(Some(entries))) => {
                let retry = read::<Retry>("retry", entries, errors);
                builder = builder.retry(|layer| retry.apply(layer));
            }
        }
        match self.circuit {
            None => {}
            Some(Part(None)) => builder = builder.without_circuit(),
            Some(Part(Some(entries))) => {
                let circuit = read::<Circuit>("circuit", entries, errors);
                circuit.check(errors);
                builder = set(builder, circuit.probe.clone(), |builder, Probe(path)| match path {
                    Some(path) => {
                        let mut request = http::Request::new(());
                        *request.uri_mut() = path;
                        builder.probe_request(request)
                    }
                    None => builder.without_probe(),
                });
                builder = builder.circuit(|policy| circuit.apply(policy));
            }
        }
        match self.limiter {
            None => {}
            Some(Part(None)) => builder = builder.without_limiter(),
            Some(Part(Some(entries))) => {
                let limiter = read::<Limiter>("limiter", entries, errors);
                limiter.check(errors);
                builder = builder.limiter(|layer| limiter.apply(layer));
            }
        }
        if let Some(entries) = self.topology {
            let topology = read::<Topology>("topology", entries, errors);
            if let Some(Time(idle)) = topology.pool_idle {
                builder = builder.pool_idle(idle);
            }
            builder = builder.topology(topology.apply(errors));
        }
        if let Some(name) = self.proxy_status {
            builder = builder.proxy_status(&name);
        }
        match self.error_page {
            Some(entries) => builder.error_page(read::<ErrorPage>("error_page", entries, errors).apply(errors)),
            None => builder,
        }
    }
}

pub(super) fn contradiction(errors: &mut Vec<ConfigError>, setting: &str, problem: &str, suggestion: &str) {
    errors.push(ConfigError::new(setting, problem, suggestion));
}

/// Applies a setter if the file has its key.
fn set<S, T>(settings: S, value: Option<T>, setter: impl FnOnce(S, T) -> S) -> S {
    match value {
        Some(value) => setter(settings, value),
        None => settings,
    }
}

impl Timeouts {
    fn check(&self, preset: Preset, errors: &mut Vec<ConfigError>) {
        match (self.unbounded, &self.total) {
            (Some(true), Some(Limit(Some(_)))) => {
                let problem = "an unbounded call cannot have a total";
                contradiction(errors, "timeouts.unbounded", problem, "set one of `unbounded` and `total`");
            }
            (Some(false), None | Some(Limit(None))) if preset.timeouts().kind == CallKind::Unbounded => {
                let problem = "the preset's calls are unbounded, and no total limits them";
                contradiction(errors, "timeouts.unbounded", problem, "set a `total`, or another preset");
            }
            _ => {}
        }
    }

    fn apply(self, mut timeouts: timeout::Timeouts) -> timeout::Timeouts {
        type Setter = fn(timeout::Timeouts, Option<Duration>) -> timeout::Timeouts;
        let limits: [(Option<Limit>, Setter); 6] = [
            (self.response_head, timeout::Timeouts::response_head),
            (self.attempt, timeout::Timeouts::attempt),
            (self.body_idle, timeout::Timeouts::body_idle),
            (self.max_duration, timeout::Timeouts::max_duration),
            (self.client_idle, timeout::Timeouts::client_idle),
            (self.total, timeout::Timeouts::total),
        ];
        for (limit, setter) in limits {
            timeouts = set(timeouts, limit, |timeouts, Limit(limit)| setter(timeouts, limit));
        }
        if self.unbounded == Some(true) { timeouts.unbounded() } else { timeouts }
    }
}

impl Retry {
    fn apply(self, layer: RetryLayer) -> RetryLayer {
        let mut policy = layer.settings().policy;
        policy =
            set(policy, self.attempts, |policy, attempts| policy.attempts(attempts.0.try_into().unwrap_or(u8::MAX)));
        policy = set(policy, self.base_backoff, |policy, time| policy.base_backoff(time.0));
        policy = set(policy, self.max_backoff, |policy, time| policy.max_backoff(time.0));
        policy = set(policy, self.max_retry_after, |policy, time| policy.max_retry_after(time.0));
        if self.trust_idempotency_keys == Some(true) {
            policy = policy.trust_idempotency_keys();
        }
        if self.repeat_too_many_requests == Some(true) {
            policy = policy.repeat_too_many_requests();
        }
        let layer = set(layer.policy(policy), self.body_cap, |layer, cap| layer.body_cap(cap.0));
        let layer = set(layer, self.budget, |layer, ratio| layer.budget(RetryBudget::new().ratio(ratio.0)));
        set(layer, self.hedging, |layer, Hedge(when)| match when {
            When::Never => layer.hedging(None),
            When::Quantile(quantile) => layer.hedging(Hedging::new().quantile(quantile)),
            When::After(delay) => layer.hedging(Hedging::after(delay)),
        })
    }
}

impl Circuit {
    pub(super) fn check(&self, errors: &mut Vec<ConfigError>) {
        let window = self.window.as_ref().map(|window| window.0);
        if let Some(window) =
            window.filter(|window| !(Duration::from_secs(1)..=Duration::from_secs(3600)).contains(window))
        {
            let problem = format!("{window:?} is out of range");
            contradiction(errors, "circuit.window", &problem, "set a duration from \"1s\" to \"1h\"");
        }
        if self.slow_calls.is_none() && self.slow_ratio.is_some() {
            let problem = "no setting says which calls are slow";
            contradiction(errors, "circuit.slow_ratio", problem, "set `slow_calls` as well");
        }
    }

    pub(super) fn apply(self, policy: BreakerPolicy) -> BreakerPolicy {
        let ratio = self.ratio.map_or(policy.ratio, |ratio| ratio.0);
        let min_calls = self.min_calls.map_or(policy.min_calls, |calls| calls.0);
        let mut policy = policy.ratio(ratio, min_calls);
        policy = set(policy, self.consecutive_failures, |policy, failures| policy.consecutive_failures(failures.0));
        policy = set(policy, self.window, |policy, time| policy.window(time.0));
        policy = set(policy, self.open_duration, |policy, time| policy.open_duration(time.0));
        policy = set(policy, self.max_open_duration, |policy, time| policy.max_open_duration(time.0));
        policy = set(policy, self.probe_timeout, |policy, time| policy.probe_timeout(time.0));
        let ratio = self.slow_ratio.map_or(Ratio::per_mille(500), |ratio| ratio.0);
        set(policy, self.slow_calls, |policy, time| policy.slow_calls(time.0, ratio))
    }
}

impl Limiter {
    pub(super) fn check(&self, errors: &mut Vec<ConfigError>) {
        let is_bounded = self.min.is_some() || self.max.is_some();
        if self.fixed.is_some() && (is_bounded || self.adaptive == Some(true)) {
            let problem = "a fixed limit has no `min` and no `max`, and is not adaptive";
            contradiction(errors, "limiter.fixed", problem, "set either `fixed`, or `adaptive`, `min` and `max`");
        }
        if self.adaptive == Some(false) && is_bounded {
            let problem = "only an adaptive limit has a `min` and a `max`";
            contradiction(errors, "limiter.adaptive", problem, "set `fixed`, or leave `adaptive = false` out");
        }
    }

    pub(super) fn apply(self, layer: ConcurrencyLimitLayer) -> ConcurrencyLimitLayer {
        let layer = match (self.fixed, self.min, self.max) {
            (Some(fixed), ..) => layer.bounds(fixed.0..=fixed.0),
            (None, None, None) if self.adaptive != Some(true) => layer,
            (None, min, max) => {
                let (least, most) = ConcurrencyLimitLayer::adaptive().configured_bounds();
                layer.bounds(min.map_or(least, |min| min.0)..=max.map_or(most, |max| max.0))
            }
        };
        if self.hold_slot_during_upgrade == Some(true) { layer.hold_slot_during_upgrade() } else { layer }
    }
}

impl Topology {
    fn apply(self, errors: &mut Vec<ConfigError>) -> alignment::Topology {
        type Setter = fn(alignment::Topology, Duration) -> alignment::Topology;
        if self.client_timeout.is_some() && self.client_deadline.is_some() {
            let problem = "a client either sends its deadline with each request, or it does not";
            let suggestion = "set one of `client_deadline` and `client_timeout`";
            contradiction(errors, "topology.client_deadline", problem, suggestion);
        }
        if self.streaming == Some(false) && self.heartbeat.is_some() {
            let suggestion = "set one of `heartbeat` and `streaming`";
            contradiction(errors, "topology.streaming", "only streams have a heartbeat", suggestion);
        }
        let times: [(Option<Time>, Setter); 11] = [
            (self.client_timeout, alignment::Topology::client_timeout),
            (self.client_deadline, alignment::Topology::client_deadline),
            (self.load_balancer_idle, alignment::Topology::load_balancer_idle),
            (self.load_balancer_propagation, alignment::Topology::load_balancer_propagation),
            (self.server_keep_alive, alignment::Topology::server_keep_alive),
            (self.upstream_keep_alive, alignment::Topology::upstream_keep_alive),
            (self.upstream_timeout, alignment::Topology::upstream_timeout),
            (self.connect, alignment::Topology::connect),
            (self.heartbeat, alignment::Topology::heartbeat),
            (self.drain_delay, alignment::Topology::drain_delay),
            (self.grace, alignment::Topology::grace),
        ];
        let mut topology = alignment::Topology::new();
        for (time, setter) in times {
            topology = set(topology, time, |topology, Time(time)| setter(topology, time));
        }
        if self.streaming == Some(true) { topology.streaming() } else { topology }
    }
}

impl ErrorPage {
    fn apply(self, errors: &mut Vec<ConfigError>) -> error_page::ErrorPage {
        let page = set(error_page::ErrorPage::new(), self.contact, |page, contact| {
            if contact.trim().is_empty() {
                let suggestion = "write a sentence, or leave the key out for the default";
                contradiction(errors, "error_page.contact", "is empty, but is shown on the page", suggestion);
            }
            page.contact(contact)
        });
        if self.reveal_upstream == Some(true) { page.reveal_upstream() } else { page }
    }
}
