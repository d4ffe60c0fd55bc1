//! What of a configuration does not fit.

use std::time::Duration;

use super::builder::UpstreamBuilder;
use super::config_error::ConfigError;
use crate::alignment::HedgeBudget;
use crate::breaker::BreakerPolicy;
use crate::exchange::CallKind;
use crate::retry::{Hedging, RetryLayer};
use crate::timeout::{Report, Timeouts, Topology};

/// The longest name: it stands in each log line and metric.
const MAX_NAME: usize = 128;
/// A body kept for another attempt is memory for each call in flight.
const MAX_BODY_CAP: usize = 64 * 1024 * 1024;
/// What timers can tell apart.
const TICK: Duration = Duration::from_millis(1);
/// Who is left alone for longer has to be looked after by people.
const MAX_OPEN_DURATION: Duration = Duration::from_secs(3600);
/// The most that a limiter counts to.
const MAX_LIMIT: u32 = 1_000_000;

/// What a look at a configuration found.
pub(super) struct Validated {
    pub(super) errors: Vec<ConfigError>,
    pub(super) report: Report,
}

pub(super) fn check(builder: &UpstreamBuilder) -> Validated {
    let told = builder.limits.limits().timeouts;
    let timeouts = usable(&told);
    let mut found = builder.found.clone();
    name(&builder.name, &mut found);
    if let Some(retry) = &builder.retry {
        self::retry(retry, &timeouts, &mut found);
    }
    if let Some(policy) = &builder.policy {
        circuit(policy, &timeouts, &mut found);
    }
    if let Some(layer) = &builder.limiter {
        limiter(layer.configured_bounds(), &mut found);
    }
    let settings = builder.classify.settings();
    classify(settings.first_frame_timeout(), settings.failure_statuses(), &timeouts, &mut found);
    if !settings.reports() {
        let problem = "no layer of the stack would log a failure, nor add `Proxy-Status`";
        found.push(ConfigError::new(
            "classify.report_by_outer",
            problem,
            "leave it out: the stack defers what stands inside",
        ));
    }
    let topology = topology(builder);
    let report = limits(&told, &topology, &mut found);
    Validated { errors: found, report }
}

/// What is declared of the surroundings, with the stack's own numbers.
pub(super) fn topology(builder: &UpstreamBuilder) -> Topology {
    let mut topology = builder.topology.clone();
    if let Some(idle) = builder.limits.pool() {
        // a topology that was given after it does not know of it
        topology = topology.pool_idle(idle);
    }
    let Some(layer) = &builder.retry else { return topology.attempts(1) };
    let settings = layer.settings();
    let policy = settings.policy;
    let mut topology = topology.attempts(policy.attempts.into());
    if policy.attempts > 1 {
        topology = topology.backoff(policy.base_backoff, policy.max_backoff.max(policy.base_backoff));
    }
    match settings.hedging.as_ref().and_then(Hedging::fixed) {
        Some(delay) => topology.hedge_delay(delay).hedge_budget(HedgeBudget::Shared),
        None => topology,
    }
}

/// The limits without those that are none: what follows from a slip is not told as well.
fn usable(timeouts: &Timeouts) -> Timeouts {
    let usable = |limit: Option<Duration>| limit.filter(|limit| *limit >= TICK);
    Timeouts {
        response_head: usable(timeouts.response_head),
        attempt: usable(timeouts.attempt),
        total: usable(timeouts.total),
        body_idle: usable(timeouts.body_idle),
        max_duration: usable(timeouts.max_duration),
        client_idle: usable(timeouts.client_idle),
        kind: timeouts.kind,
    }
}

/// The limits alone: also for a change while it runs.
pub(super) fn limits(timeouts: &Timeouts, topology: &Topology, found: &mut Vec<ConfigError>) -> Report {
    let limits = [
        ("timeouts.head", timeouts.response_head),
        ("timeouts.attempt", timeouts.attempt),
        ("timeouts.total", timeouts.total),
        ("timeouts.body_idle", timeouts.body_idle),
        ("timeouts.absolute", timeouts.max_duration),
        ("timeouts.client_idle", timeouts.client_idle),
    ];
    for (setting, limit) in limits {
        let problem = match limit {
            Some(Duration::ZERO) => "a timeout of 0 fails every call".to_owned(),
            Some(limit) if limit < TICK => format!("timers have a resolution of 1 ms, and {limit:?} is less than one"),
            _ => continue,
        };
        found.push(ConfigError::new(
            setting,
            problem,
            "use at least 1 ms, or `None` (`\"none\"` in a file) to disable it",
        ));
    }
    let of_the_body = ["timeouts.body_idle", "timeouts.client_idle"];
    if limits.iter().all(|(setting, limit)| limit.is_none() || of_the_body.contains(setting)) {
        let problem = "no timeout ends a call whose upstream never responds";
        found.push(ConfigError::new(
            "timeouts",
            problem,
            "set at least one of `response_head`, `attempt`, `total` and `max_duration`",
        ));
    }
    let report = usable(timeouts).check(topology);
    found.extend(report.refused().map(|finding| {
        let setting = format!("alignment {} {}", finding.id().number(), finding.id().as_str());
        let problem = format!("{} ({})", finding.inequality(), finding.reason());
        ConfigError::new(setting, problem, format!("set {}", finding.suggestion()))
    }));
    report
}

fn name(name: &str, found: &mut Vec<ConfigError>) {
    let set = "set a short name such as \"payments\"";
    if name.trim().is_empty() {
        found.push(ConfigError::new("name", "it is empty, but it has to label logs and metrics", set));
    } else if name.len() > MAX_NAME {
        found.push(ConfigError::new("name", format!("it is longer than {MAX_NAME} bytes"), set));
    } else if name.chars().any(char::is_control) {
        found.push(ConfigError::new("name", "it contains control characters", set));
    } else if name.trim() != name {
        found.push(ConfigError::new("name", "it starts or ends with a space", set));
    }
}

fn retry(layer: &RetryLayer, timeouts: &Timeouts, found: &mut Vec<ConfigError>) {
    let settings = layer.settings();
    let policy = settings.policy;
    let mut bad = |setting: &str, problem: String, set: &str| found.push(ConfigError::new(setting, problem, set));
    if policy.max_backoff < policy.base_backoff {
        let problem = format!(
            "the longest pause, {:?}, is shorter than the first, {:?}",
            policy.max_backoff, policy.base_backoff
        );
        bad(
            "retry.policy",
            problem,
            "set the longest (`max`, in a file `longest_pause`) to the first (`base`, `pause`) or more",
        );
    }
    if let Some(total) = timeouts.total.filter(|total| policy.base_backoff >= *total && policy.attempts > 1) {
        let problem = format!("the first pause, {:?}, leaves no time of the total, {total:?}", policy.base_backoff);
        bad("retry.policy", problem, "set a shorter `base`, or one attempt");
    }
    if settings.body_cap > MAX_BODY_CAP {
        let problem = format!("{} bytes of each request body in flight would be kept", settings.body_cap);
        bad("retry.body_cap", problem, "set 64 MiB at most; longer bodies go on and are not repeated");
    }
    // one that begins after its attempt has ended is inequality 15's
    if let Some(hedging) = &settings.hedging {
        let delay = hedging.min_delay();
        let ends = timeouts.attempt.or(timeouts.total).filter(|_| hedging.fixed().is_none());
        if let Some(ends) = ends.filter(|ends| delay >= *ends) {
            let problem = format!("no delay is shorter than {delay:?}, and an attempt ends after {ends:?}");
            bad("retry.hedging", problem, "set a shorter `at_least`");
        }
        if hedging.fixed().is_some_and(|delay| delay.is_zero()) {
            let problem = "each call would immediately be sent twice".to_owned();
            bad("retry.hedging", problem, "set a delay near the 95th percentile, or `Hedging::new()` to learn it");
        }
        if policy.attempts == 1 {
            let problem = "one attempt is allowed, and a hedge is a second one".to_owned();
            bad("retry.hedging", problem, "set two attempts, or no hedging");
        }
    }
    if let Some(total) = settings.total.filter(|total| timeouts.total != Some(*total)) {
        let limit = timeouts.total.map_or("none".to_owned(), |limit| format!("{limit:?}"));
        let problem = format!("the retry's total, {total:?}, is not that of the limits, {limit}");
        bad("retry.total", problem, "set it in `timeouts` alone");
    }
}

fn circuit(policy: &BreakerPolicy, timeouts: &Timeouts, found: &mut Vec<ConfigError>) {
    let mut bad = |problem: String, set: &str| found.push(ConfigError::new("circuit", problem, set));
    if policy.open_duration.is_zero() {
        bad(
            "`open_duration` (`pause` in a file) is 0, so the circuit would never stay open".to_owned(),
            "set it, usually to 1 s",
        );
    }
    if policy.max_open_duration < policy.open_duration {
        let problem = format!(
            "the maximum open duration, {:?}, is shorter than the first, {:?}",
            policy.max_open_duration, policy.open_duration
        );
        bad(problem, "set `max_open_duration` (`longest_pause` in a file) to `open_duration` (`pause`) or more");
    }
    if policy.probe_timeout.is_zero() {
        bad(
            "with a probe timeout of 0 every call would become a probe".to_owned(),
            "set `probe_timeout` (`probe_limit` in a file)",
        );
    }
    if policy.max_open_duration.max(policy.open_duration) > MAX_OPEN_DURATION {
        let problem = format!(
            "a recovered upstream could stay unused for {:?}",
            policy.max_open_duration.max(policy.open_duration)
        );
        bad(problem, "set `max_open_duration` (`longest_pause` in a file) to an hour at most, usually to 10 s");
    }
    if policy.probe_timeout > MAX_OPEN_DURATION {
        let problem = format!("a lost probe would block all others for {:?}", policy.probe_timeout);
        bad(
            problem,
            "set `probe_timeout` (`probe_limit` in a file) to an hour at most, usually to the length of an attempt",
        );
    }
    // a call's time goes on to the end of its body: the limits on the head do not end it
    if let Some((slow, _)) = policy.slow {
        if slow.is_zero() {
            bad("every call would count as slow".to_owned(), "set `slow_calls` to a time above zero");
        } else if timeouts.kind == CallKind::Unbounded {
            let problem = format!("exchanges that need not end would count as slow after {slow:?}");
            bad(problem, "leave `slow_calls` out, or set a total");
        } else if let Some(limit) = timeouts.max_duration.filter(|limit| slow >= *limit) {
            let problem = format!("no call can be slow: one longer than {slow:?} is cut after {limit:?}");
            bad(problem, "set `slow_calls` below the absolute limit");
        }
    }
}

/// The bounds of a limiter: also for a change while it runs.
pub(super) fn limiter((least, most): (u32, u32), found: &mut Vec<ConfigError>) {
    let mut bad = |problem: String, set: &str| found.push(ConfigError::new("limiter", problem, set));
    if least == 0 || most == 0 {
        bad("a limit of 0 lets no call pass".to_owned(), "set 1 or more");
    } else if least > most {
        bad(format!("from {least} to {most} is no range"), "set the lower bound first, at most the upper one");
    }
    if least.max(most) > MAX_LIMIT {
        bad(format!("{} calls in flight are no limit", least.max(most)), "set a million at most, or build without it");
    }
}

fn classify(hold: Duration, statuses: &[http::StatusCode], timeouts: &Timeouts, found: &mut Vec<ConfigError>) {
    let mut bad = |setting: &str, problem: String, set: &str| found.push(ConfigError::new(setting, problem, set));
    let limit = timeouts
        .response_head
        .or(timeouts.attempt)
        .or(timeouts.total)
        .unwrap_or(Duration::MAX)
        .min(Duration::from_secs(1));
    if hold >= limit {
        let problem = format!("heads would wait {hold:?} for a body that comes late, of {limit:?} there are");
        bad("classify.first_frame_timeout", problem, "set less, a few milliseconds as a rule");
    }
    if let Some(status) = statuses.iter().find(|status| !status.is_server_error()) {
        let problem = format!("{status} is no failure of the upstream");
        bad("classify.failure_statuses", problem, "list statuses from 500");
    }
}
