//! Presets: values that fit together, for four kinds of traffic.

use std::time::Duration;

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

/// Values that fit together, for four kinds of traffic; see the [table](super#presets).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Preset {
    /// For calls that a person waits for, in a chain of other calls: short timeouts, hedging.
    LatencyCritical,
    /// For pages and APIs; the default.
    #[default]
    Standard,
    /// For jobs, reports and large uploads that run unattended: long timeouts, long backoff.
    Batch,
    /// For event streams, WebSocket, gRPC streams and long polls: no total, but a timeout for idle bodies.
    Streaming,
}

impl Preset {
    pub(super) fn timeouts(self) -> Timeouts {
        let timeouts = Timeouts::new();
        match self {
            Self::LatencyCritical => timeouts.response_head(ms(450)).attempt(ms(450)).total(s(1)).body_idle(s(1)),
            Self::Standard => timeouts.response_head(ms(4500)).attempt(s(9)).total(s(30)).body_idle(s(30)),
            Self::Batch => timeouts.response_head(s(120)).attempt(s(300)).total(s(960)).body_idle(s(120)),
            Self::Streaming => timeouts.response_head(ms(4500)).body_idle(s(90)).unbounded(),
        }
    }

    /// How long after the start of a call its retries end, as long as the head's timeout is the preset's; `None`: the total.
    ///
    /// A first attempt that hangs is then the last, and the client is answered after the head's timeout. The total is
    /// longer for the sake of uploads.
    pub(super) const fn retries_within(self) -> Option<Duration> {
        match self {
            Self::Standard | Self::Streaming => Some(ms(4500)),
            Self::LatencyCritical | Self::Batch => None,
        }
    }

    pub(super) fn retry(self) -> RetryLayer {
        let policy = RetryPolicy::new();
        match self {
            Self::LatencyCritical => {
                let policy = policy.attempts(2).base_backoff(ms(5)).max_backoff(ms(50));
                RetryLayer::new().policy(policy).hedging(Hedging::new())
            }
            Self::Batch => {
                RetryLayer::new().policy(policy.base_backoff(s(1)).max_backoff(s(30)).max_retry_after(s(30)))
            }
            Self::Standard | Self::Streaming => RetryLayer::new(),
        }
    }

    pub(super) fn circuit(self) -> BreakerPolicy {
        let policy = BreakerPolicy::new();
        match self {
            Self::LatencyCritical => policy.open_duration(ms(500)).max_open_duration(s(5)).probe_timeout(ms(450)),
            Self::Batch => policy.window(s(60)).open_duration(s(5)).max_open_duration(s(60)),
            Self::Standard | Self::Streaming => policy,
        }
    }

    pub(super) fn limiter() -> ConcurrencyLimitLayer {
        ConcurrencyLimitLayer::fixed(1024)
    }
}

#[cfg(test)]
mod tests {
    use super::super::validate;
    use super::super::{UpstreamBuilder, UpstreamLayer};
    use super::*;
    use crate::alignment::Topology;
    use crate::classify::ClassifyLayer;

    const ALL: [Preset; 4] = [Preset::LatencyCritical, Preset::Standard, Preset::Batch, Preset::Streaming];

    #[test]
    fn every_preset_is_valid_without_a_warning() {
        for preset in ALL {
            let settings = UpstreamLayer::builder("shop").preset(preset).resolve();
            let checked = validate::check("shop", &settings);
            assert!(checked.errors.is_empty(), "{:?}", checked.errors);
            assert!(checked.report.findings().is_empty(), "{}", checked.report);
        }
        let streams = UpstreamLayer::builder("events").preset(Preset::Streaming);
        assert!(streams.topology(Topology::new().heartbeat(s(30))).build().is_ok());
    }

    #[test]
    fn a_change_keeps_the_presets_other_values_in_any_order() {
        let change = |timeouts: Timeouts| timeouts.body_idle(s(5));
        let one = UpstreamLayer::builder("shop").preset(Preset::LatencyCritical).timeouts(change);
        let other = UpstreamLayer::builder("shop").timeouts(change).preset(Preset::LatencyCritical);
        let expected = Preset::LatencyCritical.timeouts().body_idle(s(5));
        assert_eq!((one.resolve().timeouts, other.resolve().timeouts), (expected, expected));

        let change = |policy: RetryPolicy| policy.attempts(4);
        let one =
            UpstreamLayer::builder("shop").preset(Preset::Batch).retry_policy(change).retry(|retry| retry.body_cap(9));
        let other =
            UpstreamLayer::builder("shop").retry(|retry| retry.body_cap(9)).retry_policy(change).preset(Preset::Batch);
        for builder in [one, other] {
            let settings = builder.resolve();
            let retry = settings.retry.expect("a retry").settings().clone();
            assert_eq!((retry.policy.attempts, retry.policy.max_backoff, retry.body_cap), (4, s(30), 9));
            assert_eq!(settings.circuit.expect("a circuit").window, s(60));
        }

        let builder = UpstreamLayer::builder("shop").circuit(|policy| policy.window(s(20))).preset(Preset::Batch);
        let circuit = builder.resolve().circuit.expect("a circuit");
        assert_eq!((circuit.window, circuit.open_duration), (s(20), s(5)));
        let builder = UpstreamLayer::builder("shop").without_retry().preset(Preset::Batch).retry(|retry| retry);
        assert!(builder.resolve().retry.is_none());
    }

    #[test]
    fn the_presets_timeouts_give_way_to_a_shorter_total() {
        let settings = UpstreamLayer::builder("shop").timeouts(|timeouts| timeouts.total(s(5))).resolve();
        assert_eq!((settings.timeouts.response_head, settings.timeouts.attempt), (Some(ms(4500)), Some(s(5))));
        let settings = UpstreamLayer::builder("shop").timeouts(|timeouts| timeouts.total(s(3))).resolve();
        assert_eq!((settings.timeouts.response_head, settings.timeouts.attempt), (Some(s(3)), Some(s(3))));
        let settings = UpstreamLayer::builder("shop").timeouts(|timeouts| timeouts.attempt(s(2))).resolve();
        assert_eq!((settings.timeouts.response_head, settings.timeouts.attempt), (Some(s(2)), Some(s(2))));
        // values that were set are checked, not changed
        let settings = UpstreamLayer::builder("shop").timeouts(|timeouts| timeouts.attempt(s(8)).total(s(5))).resolve();
        assert_eq!(settings.timeouts.attempt, Some(s(8)));
    }

    fn findings(builder: UpstreamBuilder) -> Vec<String> {
        let settings = builder.resolve();
        let checked = validate::check("shop", &settings);
        let errors = checked.errors.iter().map(ToString::to_string);
        errors.chain(checked.report.findings().iter().map(ToString::to_string)).collect()
    }

    #[test]
    fn one_change_of_a_preset_yields_no_finding_about_its_other_values() {
        let shop = |preset| UpstreamLayer::builder("shop").preset(preset);
        for seconds in [1, 2, 3, 5, 10, 20, 45, 90] {
            let total = move |timeouts: Timeouts| timeouts.total(s(seconds));
            assert_eq!(findings(shop(Preset::Standard).timeouts(total)), [] as [String; 0], "{seconds} s");
        }
        for attempts in 1..=RetryPolicy::MAX_ATTEMPTS {
            assert_eq!(
                findings(shop(Preset::Standard).retry_policy(move |policy| policy.attempts(attempts))),
                [] as [String; 0]
            );
        }
        // what was set and does not fit is still found
        let three_of_two = |timeouts: Timeouts| timeouts.attempt(s(2)).total(s(5));
        assert!(findings(shop(Preset::Standard).timeouts(three_of_two))[0].contains("attempts_total"));
    }

    type Change = fn(Timeouts) -> Timeouts;

    /// The changes of the timeouts in the examples and the guide.
    #[test]
    fn the_settings_of_examples_and_guide_yield_no_finding() {
        let changes: [(&str, &str, Change); 4] = [
            (
                include_str!("../../examples/axum_app.rs"),
                "timeouts.response_head(ms(700)).attempt(ms(1_200)).total(ms(4_000))",
                |timeouts| timeouts.response_head(ms(700)).attempt(ms(1_200)).total(ms(4_000)),
            ),
            (
                include_str!("../../examples/client.rs"),
                "timeouts.attempt(Duration::from_millis(1_900)).total(Duration::from_secs(6))",
                |timeouts| timeouts.attempt(ms(1_900)).total(s(6)),
            ),
            (
                include_str!("../guide/cookbook.md"),
                "timeouts.attempt(Duration::from_millis(600)).total(Duration::from_secs(2))",
                |timeouts| timeouts.attempt(ms(600)).total(s(2)),
            ),
            (include_str!("../guide/testing.md"), "timeouts.response_head(Duration::from_secs(3))", |timeouts| {
                timeouts.response_head(s(3))
            }),
        ];
        for (text, shown, change) in changes {
            // so that this list follows them
            assert_eq!(text.matches("    .timeouts(|timeouts| ").count(), 1, "{shown}");
            assert!(text.contains(&format!(".timeouts(|timeouts| {shown})")), "{shown}");
            assert_eq!(findings(UpstreamLayer::builder("shop").timeouts(change)), [] as [String; 0], "{shown}");
        }
        for text in [include_str!("../../README.md"), include_str!("../../examples/grpc.rs")] {
            assert!(!text.contains(".timeouts("));
        }
    }

    #[cfg(feature = "serde")]
    #[test]
    fn the_files_in_readme_and_docs_yield_no_finding() {
        let mut files = 0;
        for text in [include_str!("../../README.md"), include_str!("config/mod.rs")] {
            for file in text.split("toml::from_str(r#\"").skip(1) {
                let file = file.split("\"#").next().unwrap().replace("///", "");
                if file.contains("atempts") {
                    // shows the errors
                    continue;
                }
                let config: super::super::UpstreamConfig = toml::from_str(&file).unwrap();
                assert_eq!(findings(config.builder()), [] as [String; 0], "{file}");
                files += 1;
            }
        }
        assert!(files >= 2);
    }

    #[test]
    fn the_window_of_the_retries_belongs_to_the_presets_head_timeout() {
        let within =
            |change: fn(Timeouts) -> Timeouts| UpstreamLayer::builder("shop").timeouts(change).resolve().retries_within;
        assert_eq!(within(|timeouts| timeouts.body_idle(s(5)).total(s(60)).attempt(s(20))), Some(ms(4500)));
        assert_eq!(within(|timeouts| timeouts.response_head(s(10))), None);
        assert_eq!(within(|timeouts| timeouts.response_head(None)), None);
    }

    #[test]
    fn proxy_status_does_not_depend_on_the_order() {
        let classify = || ClassifyLayer::new().first_frame_timeout(ms(3));
        let one = UpstreamLayer::builder("shop").proxy_status("edge").classify(classify());
        let other = UpstreamLayer::builder("shop").classify(classify()).proxy_status("edge");
        for builder in [one, other] {
            let settings = format!("{:?}", builder.resolve().classify);
            assert!(settings.contains("edge") && settings.contains("3ms"), "{settings}");
        }
    }

    #[test]
    fn the_table_in_the_docs_has_the_presets_values() {
        let text = include_str!("mod.rs");
        let table: Vec<_> = text.lines().filter(|line| line.starts_with("//! | `")).collect();
        let cell = |row: &str, column: usize| {
            let line = table.iter().find(|line| line.contains(&format!("| `{row}`"))).expect("a row");
            line.split('|').nth(column + 1).expect("a cell").trim().to_owned()
        };
        let shown = |limit: Option<Duration>| match limit {
            None => "none".to_owned(),
            Some(limit) if limit < s(1) => format!("{} ms", limit.as_millis()),
            Some(limit) => format!("{} s", limit.as_secs_f64()),
        };
        for (column, preset) in (1..).zip(ALL) {
            let settings = UpstreamLayer::builder("a").preset(preset).resolve();
            assert_eq!(cell("response_head", column), shown(settings.timeouts.response_head));
            assert_eq!(cell("attempt", column), shown(settings.timeouts.attempt));
            assert_eq!(cell("total", column), shown(settings.timeouts.total));
            assert_eq!(cell("body_idle", column), shown(settings.timeouts.body_idle));
            assert_eq!(cell("client_idle", column), shown(settings.timeouts.client_idle));
            let retry = settings.retry.as_ref().expect("a retry").settings();
            let range = |from, to| format!("{} to {}", shown(Some(from)), shown(Some(to)));
            assert_eq!(cell("attempts", column), retry.policy.attempts.to_string());
            let within = settings.retries_within.or(settings.timeouts.total);
            assert_eq!(cell("retries within", column), shown(within));
            assert_eq!(cell("backoff", column), range(retry.policy.base_backoff, retry.policy.max_backoff));
            assert_eq!(cell("hedging", column), if retry.hedging.is_some() { "p95" } else { "none" });
            assert_eq!(cell("max_retry_after", column), shown(Some(retry.policy.max_retry_after)));
            let circuit = settings.circuit.expect("a circuit");
            assert_eq!(cell("window", column), shown(Some(circuit.window)));
            assert_eq!(cell("open_duration", column), range(circuit.open_duration, circuit.max_open_duration));
            let (min, max) = settings.limiter.as_ref().expect("a limiter").effective_bounds();
            assert_eq!((min, cell("in flight", column).replace(',', "")), (max, max.to_string()));
        }
    }
}
