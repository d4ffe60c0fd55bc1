//! Finds invalid and conflicting settings.

use std::time::Duration;

use super::config_error::ConfigError;
use crate::alignment::Report;
use crate::alignment::Topology;
use crate::breaker::BreakerPolicy;
use crate::classify::ClassifyLayer;
use crate::error_page::ErrorPage;
use crate::exchange::{CallKind, ProbeSource};
use crate::limit::ConcurrencyLimitLayer;
use crate::retry::{Hedging, RetryLayer};
use crate::timeout::{TimeoutLayer, Timeouts};

/// The longest name in bytes: every log event and metric carries it.
const MAX_NAME: usize = 128;
/// The largest replay buffer: each call in flight may fill one.
const MAX_BODY_CAP: usize = 64 * 1024 * 1024;
/// The resolution of tokio's timers.
const TICK: Duration = Duration::from_millis(1);
/// Longer open durations need an operator, not a timer.
const MAX_OPEN_DURATION: Duration = Duration::from_secs(3600);
/// The highest concurrency limit.
const MAX_LIMIT: u32 = 1_000_000;

/// The result of a check: errors that refuse the settings, and a report that may hold warnings.
pub(super) struct Validated {
    pub(super) errors: Vec<ConfigError>,
    pub(super) report: Report,
}

/// The settings after all changes; `None` for a part that is left out.
pub(super) struct Resolved {
    pub(super) timeouts: Timeouts,
    pub(super) retry: Option<RetryLayer>,
    /// How long after the start of a call its retries end; `None`: the total.
    pub(super) retries_within: Option<Duration>,
    pub(super) circuit: Option<BreakerPolicy>,
    pub(super) limiter: Option<ConcurrencyLimitLayer>,
    pub(super) probe: Option<ProbeSource>,
    pub(super) classify: ClassifyLayer,
    /// As declared, with the stack's own attempts, backoff, hedging and idle timeout.
    pub(super) topology: Topology,
    pub(super) page: Option<ErrorPage>,
    pub(super) timeout_layer: TimeoutLayer,
    pub(super) found: Vec<ConfigError>,
}

pub(super) fn check(name: &str, settings: &Resolved) -> Validated {
    let given = settings.timeouts;
    let timeouts = usable(&given);
    let mut found = settings.found.clone();
    self::name(name, &mut found);
    if let Some(layer) = &settings.retry {
        retry(layer, &timeouts, &mut found);
    }
    if let Some(policy) = &settings.circuit {
        circuit(policy, &timeouts, &mut found);
    }
    if let Some(layer) = &settings.limiter {
        limiter(layer.configured_bounds(), &mut found);
    }
    let classifier = settings.classify.settings();
    classify(classifier.first_frame_timeout(), classifier.failure_statuses(), &timeouts, &mut found);
    if !classifier.reports() {
        let problem = "the stack would neither log failures nor add `Proxy-Status`";
        let suggestion = "remove it: the stack reports failures itself";
        found.push(ConfigError::new("classify.report_by_outer", problem, suggestion));
    }
    let report = limits(&given, &settings.topology, &mut found);
    Validated { errors: found, report }
}

/// Completes a declared topology with the stack's own attempts, backoff and hedging.
///
/// `in_full`: whether an attempt may follow one that took its whole time, so that the total has to hold them all.
pub(super) fn with_retry(topology: Topology, retry: Option<&RetryLayer>, in_full: bool) -> Topology {
    let Some(layer) = retry else { return topology.attempts(1) };
    let settings = layer.settings();
    let policy = settings.policy;
    let mut topology = topology.attempts(if in_full { policy.attempts.into() } else { 1 });
    if policy.attempts > 1 {
        topology = topology.backoff(policy.base_backoff, policy.max_backoff.max(policy.base_backoff));
    }
    match settings.hedging.as_ref().and_then(Hedging::fixed) {
        Some(delay) => topology.hedge_delay(delay),
        None => topology,
    }
}

/// Removes timeouts that are too short, so that one mistake is reported once and not by every check that compares it.
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

/// Checks the timeouts; also for a change at run time.
pub(super) fn limits(timeouts: &Timeouts, topology: &Topology, found: &mut Vec<ConfigError>) -> Report {
    let limits = [
        ("timeouts.response_head", timeouts.response_head),
        ("timeouts.attempt", timeouts.attempt),
        ("timeouts.total", timeouts.total),
        ("timeouts.body_idle", timeouts.body_idle),
        ("timeouts.max_duration", timeouts.max_duration),
        ("timeouts.client_idle", timeouts.client_idle),
    ];
    for (setting, limit) in limits {
        let problem = match limit {
            Some(Duration::ZERO) => "a timeout of 0 fails every call".to_owned(),
            Some(limit) if limit < TICK => format!("{limit:?} is below the timer resolution of 1 ms"),
            _ => continue,
        };
        found.push(ConfigError::new(
            setting,
            problem,
            "use at least 1 ms, or `None` (in a file `\"none\"`) to disable it",
        ));
    }
    let body_only = ["timeouts.body_idle", "timeouts.client_idle"];
    if limits.iter().all(|(setting, limit)| limit.is_none() || body_only.contains(setting)) {
        let problem = "no timeout ends a call whose upstream never responds";
        found.push(ConfigError::new(
            "timeouts",
            problem,
            "set at least one of `response_head`, `attempt`, `total` and `max_duration`",
        ));
    }
    let report = usable(timeouts).check(topology);
    found.extend(report.refused().map(|finding| {
        let setting = format!("alignment {} {}", finding.number(), finding.id());
        let problem = format!("{} ({})", finding.conflict(), finding.reason());
        ConfigError::new(setting, problem, format!("set {}", finding.suggestion()))
    }));
    report
}

fn name(name: &str, found: &mut Vec<ConfigError>) {
    let set = "set a short name such as \"payments\"";
    if name.trim().is_empty() {
        found.push(ConfigError::new("name", "is empty, but has to label logs and metrics", set));
    } else if name.len() > MAX_NAME {
        found.push(ConfigError::new("name", format!("is longer than {MAX_NAME} bytes"), set));
    } else if name.chars().any(char::is_control) {
        found.push(ConfigError::new("name", "contains control characters", set));
    } else if name.trim() != name {
        found.push(ConfigError::new("name", "starts or ends with a space", set));
    }
}

fn retry(layer: &RetryLayer, timeouts: &Timeouts, found: &mut Vec<ConfigError>) {
    let settings = layer.settings();
    let policy = settings.policy;
    let mut bad = |setting: &str, problem: String, set: &str| found.push(ConfigError::new(setting, problem, set));
    if policy.max_backoff < policy.base_backoff {
        let problem = format!("{:?} is shorter than `base_backoff`, {:?}", policy.max_backoff, policy.base_backoff);
        bad("retry.max_backoff", problem, "set it to `base_backoff` or more");
    }
    if let Some(total) = timeouts.total.filter(|total| policy.base_backoff >= *total && policy.attempts > 1) {
        let problem = format!("{:?} leaves no time for a retry: `timeouts.total` is {total:?}", policy.base_backoff);
        bad("retry.base_backoff", problem, "set it below the total, or allow one attempt only");
    }
    if settings.body_cap > MAX_BODY_CAP {
        let problem = format!("each call in flight could buffer {} bytes of its request body", settings.body_cap);
        bad("retry.body_cap", problem, "set at most 64 MiB; longer bodies are sent, but not repeated");
    }
    // inequality 15 reports a fixed delay that is longer than an attempt
    if let Some(hedging) = &settings.hedging {
        let delay = hedging.min_delay();
        let ends = timeouts.attempt.or(timeouts.total).filter(|_| hedging.fixed().is_none());
        if let Some(ends) = ends.filter(|ends| delay >= *ends) {
            let problem =
                format!("no hedge is sent: the shortest delay is {delay:?}, and an attempt ends after {ends:?}");
            bad("retry.hedging", problem, "set `at_least` below the attempt's timeout");
        }
        if hedging.fixed().is_some_and(|delay| delay.is_zero()) {
            let problem = "with a delay of 0 every call is sent twice".to_owned();
            bad("retry.hedging", problem, "set a delay near the 95th percentile, or `Hedging::new()` to learn it");
        }
        if policy.attempts == 1 {
            let problem = "a hedge is a second attempt, and only one is allowed".to_owned();
            bad("retry.hedging", problem, "allow two attempts, or disable hedging");
        }
    }
    if let Some(total) = settings.total.filter(|total| timeouts.total != Some(*total)) {
        let limit = timeouts.total.map_or("none".to_owned(), |limit| format!("{limit:?}"));
        let problem = format!("{total:?} differs from `timeouts.total`, {limit}");
        bad("retry.total", problem, "remove it: the stack uses `timeouts.total`");
    }
}

fn circuit(policy: &BreakerPolicy, timeouts: &Timeouts, found: &mut Vec<ConfigError>) {
    let mut bad = |setting: &str, problem: String, set: &str| {
        found.push(ConfigError::new(format!("circuit.{setting}"), problem, set));
    };
    if policy.open_duration.is_zero() {
        bad("open_duration", "with 0 the circuit would never stay open".to_owned(), "set it, usually to 1 s");
    }
    if policy.max_open_duration < policy.open_duration {
        let (max, first) = (policy.max_open_duration, policy.open_duration);
        let problem = format!("{max:?} is shorter than `open_duration`, {first:?}");
        bad("max_open_duration", problem, "set it to `open_duration` or more");
    }
    let longest = policy.max_open_duration.max(policy.open_duration);
    if longest > MAX_OPEN_DURATION {
        let problem = format!("a recovered upstream could stay unused for {longest:?}");
        bad("max_open_duration", problem, "set at most an hour, usually 10 s");
    }
    if policy.probe_timeout.is_zero() {
        bad("probe_timeout", "with 0 every call would become a probe".to_owned(), "set it to the length of an attempt");
    }
    if policy.probe_timeout > MAX_OPEN_DURATION {
        let problem = format!("a lost probe would block all others for {:?}", policy.probe_timeout);
        bad("probe_timeout", problem, "set at most an hour, usually the length of an attempt");
    }
    // the breaker times a call to the end of its body, which the timeouts of the head do not limit
    if let Some((slow, _)) = policy.slow {
        if slow.is_zero() {
            bad("slow_calls", "with 0 every call counts as slow".to_owned(), "set a duration above 0");
        } else if timeouts.kind == CallKind::Unbounded {
            let problem = format!("unbounded calls would count as slow after {slow:?}");
            bad("slow_calls", problem, "remove it, or set `timeouts.total`");
        } else if let Some(limit) = timeouts.max_duration.filter(|limit| slow >= *limit) {
            let problem = format!("no call lasts {slow:?}: `timeouts.max_duration` is {limit:?}");
            bad("slow_calls", problem, "set it below `timeouts.max_duration`");
        }
    }
}

/// Checks the bounds of a limiter; also for a change at run time.
pub(super) fn limiter((min, max): (u32, u32), found: &mut Vec<ConfigError>) {
    let mut bad = |problem: String, set: &str| found.push(ConfigError::new("limiter", problem, set));
    if min == 0 || max == 0 {
        bad("a limit of 0 refuses every call".to_owned(), "set 1 or more");
    } else if min > max {
        bad(format!("the lower bound, {min}, is above the upper bound, {max}"), "set the lower bound first");
    }
    if min.max(max) > MAX_LIMIT {
        let problem = format!("a limit of {} calls in flight never applies", min.max(max));
        bad(problem, "set at most a million, or leave the limiter out");
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
        let problem = format!("a response head could be held for {hold:?} of its {limit:?}");
        bad("classify.first_frame_timeout", problem, "set a few milliseconds, 5 ms by default");
    }
    if let Some(status) = statuses.iter().find(|status| !status.is_server_error()) {
        let problem = format!("{status} is not a failure of the upstream");
        bad("classify.failure_statuses", problem, "list only statuses from 500");
    }
}
