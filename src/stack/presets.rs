//! Numbers that fit together, for four kinds of traffic.

use std::time::Duration;

use super::builder::UpstreamBuilder;
use crate::breaker::BreakerPolicy;
use crate::limit::ConcurrencyLimitLayer;
use crate::retry::{Hedging, RetryLayer, RetryPolicy};
use crate::timeout::Timeouts;

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Each takes the place of what was set before of the limits, the retry, the circuit and the limiter.
impl UpstreamBuilder {
    /// For calls that a person waits for in a chain of others: short limits, a second attempt beside a late one.
    pub fn latency_critical(self) -> Self {
        let policy = RetryPolicy::new().attempts(2).base_backoff(ms(5)).max_backoff(ms(50)).max_retry_after(s(1));
        self.timeouts(Timeouts::new().response_head(ms(450)).attempt(ms(450)).total(s(1)).body_idle(s(1)))
            .retry(RetryLayer::new().policy(policy).hedging(Hedging::new()))
            .circuit(BreakerPolicy::new().open_duration(ms(500)).max_open_duration(s(5)).probe_timeout(ms(450)))
            .limiter(ConcurrencyLimitLayer::new())
    }

    /// For pages and APIs; what a stack has that is told nothing.
    pub fn standard(self) -> Self {
        self.timeouts(Timeouts::new().response_head(s(9)).attempt(s(9)).total(s(30)).body_idle(s(30)))
            .retry(RetryLayer::new())
            .circuit(BreakerPolicy::new())
            .limiter(ConcurrencyLimitLayer::new())
    }

    /// For jobs, reports and large uploads, which nobody looks at: long limits, long pauses.
    pub fn batch(self) -> Self {
        let policy = RetryPolicy::new().base_backoff(s(1)).max_backoff(s(30));
        self.timeouts(Timeouts::new().response_head(s(120)).attempt(s(300)).total(s(960)).body_idle(s(120)))
            .retry(RetryLayer::new().policy(policy))
            .circuit(BreakerPolicy::new().window(s(60)).open_duration(s(5)).max_open_duration(s(60)))
            .limiter(ConcurrencyLimitLayer::new().bounds(2..=50))
    }

    /// For event streams, WebSocket, gRPC streams and long polls: no end, but a limit on silence.
    pub fn streaming(self) -> Self {
        self.timeouts(Timeouts::new().response_head(s(9)).body_idle(s(90)).unbounded())
            .retry(RetryLayer::new())
            .circuit(BreakerPolicy::new())
            .limiter(ConcurrencyLimitLayer::new().bounds(2..=1000))
    }
}

#[cfg(test)]
mod tests {
    use super::super::UpstreamLayer;
    use super::*;
    use crate::timeout::Topology;

    type Preset = fn(UpstreamBuilder) -> UpstreamBuilder;

    #[test]
    fn every_preset_fits_together_without_a_word() {
        let presets: [Preset; 4] = [
            UpstreamBuilder::latency_critical,
            UpstreamBuilder::standard,
            UpstreamBuilder::batch,
            UpstreamBuilder::streaming,
        ];
        for preset in presets {
            let builder = preset(UpstreamLayer::builder("shop"));
            let report = super::super::validate::check(&builder);
            assert!(report.errors.is_empty(), "{:?}", report.errors);
            assert!(report.report.findings().is_empty(), "{}", report.report);
        }
        let streams = UpstreamLayer::builder("events").streaming().topology(Topology::new().heartbeat(s(30)));
        assert!(streams.build().is_ok());
    }

    #[test]
    fn the_table_in_the_docs_is_the_code() {
        let text = include_str!("mod.rs");
        let table: Vec<_> = text.lines().filter(|line| line.starts_with("//! | `")).collect();
        let cell = |row: &str, column: usize| {
            let line = table.iter().find(|line| line.contains(&format!("| `{row}`"))).expect("a row");
            line.split('|').nth(column + 1).expect("a cell").trim().to_owned()
        };
        let shown = |limit: Option<Duration>| match limit {
            None => "none".to_owned(),
            Some(limit) if limit < s(1) => format!("{} ms", limit.as_millis()),
            Some(limit) => format!("{} s", limit.as_secs()),
        };
        let builders = [
            UpstreamLayer::builder("a").latency_critical(),
            UpstreamLayer::builder("a").standard(),
            UpstreamLayer::builder("a").batch(),
            UpstreamLayer::builder("a").streaming(),
        ];
        for (column, builder) in (1..).zip(&builders) {
            let limits = builder.limits.limits().timeouts;
            assert_eq!(cell("head", column), shown(limits.response_head));
            assert_eq!(cell("attempt", column), shown(limits.attempt));
            assert_eq!(cell("total", column), shown(limits.total));
            assert_eq!(cell("body_idle", column), shown(limits.body_idle));
            assert_eq!(cell("client_idle", column), shown(limits.client_idle));
            let retry = builder.retry.as_ref().expect("a retry").settings();
            assert_eq!(cell("attempts", column), retry.policy.attempts.to_string());
            let pauses =
                format!("{} to {}", shown(Some(retry.policy.base_backoff)), shown(Some(retry.policy.max_backoff)));
            assert_eq!(cell("pauses", column), pauses);
            assert_eq!(cell("hedging", column), if retry.hedging.is_some() { "p95" } else { "none" });
            let circuit = builder.policy.expect("a circuit");
            assert_eq!(cell("window", column), shown(Some(circuit.window)));
            let pauses =
                format!("{} to {}", shown(Some(circuit.open_duration)), shown(Some(circuit.max_open_duration)));
            assert_eq!(cell("open", column), pauses);
            let (least, most) = builder.limiter.as_ref().expect("a limiter").effective_bounds();
            assert_eq!(cell("in flight", column), format!("{least} to {most}"));
        }
    }
}
