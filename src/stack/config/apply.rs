//! From what a file says to a builder; what contradicts itself is noted for `build`.

use std::time::Duration;

use super::super::builder::UpstreamBuilder;
use super::duration::quoted;
use super::error_list::ErrorList;
use super::suggest::nearest;
use super::tables::{Circuit, HedgeTable, Limit, Limiter, Page, Retry, Root, Timeouts, Topology};
use crate::breaker::BreakerPolicy;
use crate::error_page::ErrorPage;
use crate::exchange::CallKind;
use crate::limit::ConcurrencyLimitLayer;
use crate::retry::{Hedging, Ratio, RetryBudget, RetryLayer, RetryPolicy};
use crate::timeout;

const PRESETS: [&str; 4] = ["latency_critical", "standard", "batch", "streaming"];

impl Root {
    pub(super) fn builder(self) -> UpstreamBuilder {
        let mut found = ErrorList(Vec::new());
        let mut builder =
            preset(UpstreamBuilder::new(self.name.unwrap_or_default()), self.preset.as_deref(), &mut found);
        if let Some(limits) = self.timeouts {
            let timeouts = limits.over(builder.limits.limits().timeouts, &mut found);
            builder = builder.timeouts(timeouts);
        }
        if let Some(retry) = self.retry {
            let layer = retry.over(&builder.retry.clone().unwrap_or_default(), &mut found);
            builder = builder.retry(layer);
        }
        if let Some(circuit) = self.circuit {
            let policy = circuit.over(builder.policy.unwrap_or_default(), &mut found);
            builder = builder.circuit(policy);
        }
        if let Some(limiter) = self.limiter {
            let layer = limiter.over(builder.limiter.clone().unwrap_or_default(), &mut found);
            builder = builder.limiter(layer);
        }
        if let Some(topology) = self.topology {
            let pool_idle = topology.pool_idle;
            builder = builder.topology(topology.declared(&mut found));
            builder = pool_idle.into_iter().fold(builder, UpstreamBuilder::pool_idle);
        }
        if let Some(name) = self.proxy_status {
            builder = builder.proxy_status(&name);
        }
        if let Some(page) = self.error_page {
            builder = builder.error_page(page.page(&mut found));
        }
        builder.found.extend(found.0);
        builder
    }
}

fn preset(builder: UpstreamBuilder, named: Option<&str>, found: &mut ErrorList) -> UpstreamBuilder {
    match named {
        None | Some("standard") => builder,
        Some("latency_critical") => builder.latency_critical(),
        Some("batch") => builder.batch(),
        Some("streaming") => builder.streaming(),
        Some(other) => {
            let set = match nearest(other, &PRESETS) {
                Some(near) => format!("set \"{near}\", if that was meant"),
                None => format!("set one of {}", PRESETS.join(", ")),
            };
            found.bad("preset", format!("there is none of the name {}", quoted(other)), set);
            builder
        }
    }
}

impl Timeouts {
    fn over(self, preset: timeout::Timeouts, found: &mut ErrorList) -> timeout::Timeouts {
        let given = |limit: Option<Limit>, preset| limit.map_or(preset, |limit| limit.0);
        let mut limits = preset;
        limits =
            limits.response_head(given(self.head, preset.response_head)).attempt(given(self.attempt, preset.attempt));
        limits = limits.body_idle(given(self.body_idle, preset.body_idle));
        limits = limits.max_duration(given(self.absolute, preset.max_duration));
        limits = limits.client_idle(given(self.client_idle, preset.client_idle));
        if let Some(Limit(total)) = self.total {
            limits = limits.total(total);
        }
        match (self.unbounded, self.total) {
            (Some(true), Some(Limit(Some(total)))) => {
                let problem = format!("exchanges that need not end have no total, and it is {total:?}");
                found.bad("timeouts.unbounded", problem, "set one of `unbounded` and `total`");
            }
            (Some(true), _) => limits = limits.unbounded(),
            (Some(false), _) if limits.kind == CallKind::Unbounded => {
                let problem = "the preset's exchanges need not end, and no total bounds them";
                found.bad("timeouts.unbounded", problem, "set a `total`, or another preset");
            }
            _ => {}
        }
        limits
    }
}

impl Retry {
    fn over(self, preset: &RetryLayer, found: &mut ErrorList) -> RetryLayer {
        let before = preset.settings();
        let mut policy: RetryPolicy = before.policy;
        let attempts = found.number("retry.attempts", self.attempts, 1, RetryPolicy::MAX_ATTEMPTS.into());
        if let Some(attempts) = attempts.and_then(|attempts| u8::try_from(attempts).ok()) {
            policy = policy.attempts(attempts);
        }
        policy = policy
            .base_backoff(self.pause.unwrap_or(policy.base_backoff))
            .max_backoff(self.longest_pause.unwrap_or(policy.max_backoff));
        policy = policy.max_retry_after(self.longest_retry_after.unwrap_or(policy.max_retry_after));
        if self.trust_idempotency_keys == Some(true) {
            policy = policy.trust_idempotency_keys();
        }
        if self.repeat_too_many_requests == Some(true) {
            policy = policy.repeat_too_many_requests();
        }
        let layer = RetryLayer::new().policy(policy);
        let layer = layer.body_cap(self.body_cap.map_or(before.body_cap, |cap| cap.0));
        let layer = match found.share("retry.budget", self.budget) {
            Some(ratio) => layer.budget(RetryBudget::new().ratio(ratio)),
            None => layer,
        };
        match self.hedge {
            None => before.hedging.clone().into_iter().fold(layer, RetryLayer::hedging),
            Some(HedgeTable::Off) => layer,
            Some(HedgeTable::Learned(quantile)) => layer.hedging(Hedging::new().quantile(quantile)),
            Some(HedgeTable::After(delay)) => layer.hedging(Hedging::after(delay)),
        }
    }
}

impl Circuit {
    fn over(self, preset: BreakerPolicy, found: &mut ErrorList) -> BreakerPolicy {
        const WINDOW: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(3600));
        let mut policy = preset;
        if let Some(failures) = found.number("circuit.consecutive", self.consecutive, 1, u32::MAX) {
            policy = policy.consecutive_failures(failures);
        }
        let ratio = found.share("circuit.ratio", self.ratio).unwrap_or(policy.ratio);
        let least = found.number("circuit.least_calls", self.least_calls, 1, u32::MAX).unwrap_or(policy.min_calls);
        policy = policy.ratio(ratio, least);
        if let Some(window) = self.window {
            if window < WINDOW.0 || window > WINDOW.1 {
                let problem = format!("{window:?} is out of range");
                found.bad("circuit.window", problem, "set a time from \"1s\" to \"1h\"");
            }
            policy = policy.window(window);
        }
        policy = policy.open_duration(self.pause.unwrap_or(policy.open_duration));
        policy = policy.max_open_duration(self.longest_pause.unwrap_or(policy.max_open_duration));
        policy = policy.probe_timeout(self.probe_limit.unwrap_or(policy.probe_timeout));
        if self.slow_calls.is_none() && self.slow_ratio.is_some() {
            found.bad("circuit.slow_ratio", "nothing says which calls are slow", "set `slow_calls` beside it");
        }
        let share = found.share("circuit.slow_ratio", self.slow_ratio).unwrap_or(Ratio::per_mille(500));
        self.slow_calls.map_or(policy, |longer| policy.slow_calls(longer, share))
    }
}

impl Limiter {
    fn over(self, preset: ConcurrencyLimitLayer, found: &mut ErrorList) -> ConcurrencyLimitLayer {
        // what is too large for the limiter is refused by `build`, as what is said in code
        let whole = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
        let (least, most) = preset.configured_bounds();
        let bounds = self.least.map_or(least, whole)..=self.most.map_or(most, whole);
        let layer = match self.fixed {
            Some(fixed) => {
                if self.least.is_some() || self.most.is_some() {
                    let problem = "a fixed limit has no bounds to move in";
                    found.bad("limiter.fixed", problem, "set either `fixed`, or `least` and `most`");
                }
                preset.bounds(whole(fixed)..=whole(fixed))
            }
            None => preset.bounds(bounds),
        };
        if self.hold_upgrades == Some(true) { layer.hold_slot_during_upgrade() } else { layer }
    }
}

impl Topology {
    fn declared(self, found: &mut ErrorList) -> timeout::Topology {
        type ApplyTable = fn(timeout::Topology, Duration) -> timeout::Topology;
        let times: [(Option<Duration>, ApplyTable); 11] = [
            (self.caller_timeout, timeout::Topology::client_timeout),
            (self.caller_deadline, timeout::Topology::client_deadline),
            (self.load_balancer_idle, timeout::Topology::load_balancer_idle),
            (self.load_balancer_propagation, timeout::Topology::load_balancer_propagation),
            (self.server_keep_alive, timeout::Topology::server_keep_alive),
            (self.upstream_keep_alive, timeout::Topology::upstream_keep_alive),
            (self.upstream_timeout, timeout::Topology::upstream_timeout),
            (self.connect, timeout::Topology::connect),
            (self.heartbeat, timeout::Topology::heartbeat),
            (self.drain_delay, timeout::Topology::drain_delay),
            (self.grace, timeout::Topology::grace),
        ];
        if self.caller_timeout.is_some() && self.caller_deadline.is_some() {
            let problem = "a caller brings its deadline with each request, or it does not";
            found.bad("topology.caller_deadline", problem, "set one of `caller_deadline` and `caller_timeout`");
        }
        if self.streaming == Some(false) && self.heartbeat.is_some() {
            found.bad(
                "topology.streaming",
                "a heartbeat is that of a stream",
                "set one of `heartbeat` and `streaming`",
            );
        }
        let topology = times.into_iter().fold(timeout::Topology::new(), |topology, (time, declare)| match time {
            Some(time) => declare(topology, time),
            None => topology,
        });
        if self.streaming == Some(true) { topology.streaming() } else { topology }
    }
}

impl Page {
    fn page(self, found: &mut ErrorList) -> ErrorPage {
        let mut page = ErrorPage::new();
        if let Some(contact) = self.contact {
            if contact.trim().is_empty() {
                let set = "set a whole sentence, or leave it out for the usual one";
                found.bad("error_page.contact", "it says nothing, and stands on the page", set);
            }
            page = page.contact(contact);
        }
        if self.reveal_upstream == Some(true) { page.reveal_upstream() } else { page }
    }
}
