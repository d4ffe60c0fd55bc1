//! What of a configuration does not fit.

use std::time::Duration;

use super::builder::{Section, UpstreamBuilder};
use super::misconfigured::Misconfiguration;
use super::repeat::Repeat;
use crate::breaker::BreakerPolicy;
use crate::retry::{Hedging, RetryLayer};
use crate::timeout::alignment::HedgeBudget;
use crate::timeout::{Report, Timeouts, Topology};

/// The longest name: it stands in each log line and metric.
const NAME: usize = 128;
/// A body kept for another attempt is memory for each call in flight.
const BODY: usize = 64 * 1024 * 1024;
/// The most that a limiter counts to.
const LIMIT: u32 = 1_000_000;

/// What a look at a configuration found.
pub(super) struct Checked {
    pub(super) found: Vec<Misconfiguration>,
    pub(super) report: Report,
}

pub(super) fn check<R: Repeat, L: Section, C: Section, W, H>(builder: &UpstreamBuilder<R, L, C, W, H>) -> Checked {
    let timeouts = builder.limits.limits().timeouts;
    let mut found = builder.found.clone();
    name(&builder.name, &mut found);
    if let Some(retry) = builder.repeat.layer() {
        self::retry(retry, &timeouts, &mut found);
    }
    if let Some(policy) = &builder.policy {
        circuit(policy, &timeouts, &mut found);
    }
    if let Some(bounds) = builder.limiter.bounds() {
        limiter(bounds, &mut found);
    }
    classify(builder.classify.settings().hold(), builder.classify.settings().statuses(), &timeouts, &mut found);
    let topology = topology(builder);
    let report = limits(&timeouts, &topology, &mut found);
    Checked { found, report }
}

/// What is declared of the surroundings, with the stack's own numbers.
pub(super) fn topology<R: Repeat, L, C, W, H>(builder: &UpstreamBuilder<R, L, C, W, H>) -> Topology {
    let topology = builder.topology.clone();
    let Some(layer) = builder.repeat.layer() else { return topology.attempts(1) };
    let settings = layer.settings();
    let policy = settings.policy;
    let mut topology = topology.attempts(policy.attempts.into());
    if policy.attempts > 1 {
        topology = topology.backoff(policy.base, policy.max.max(policy.base));
    }
    match settings.hedging.as_ref().and_then(Hedging::fixed) {
        Some(delay) => topology.hedge_delay(delay).hedge_budget(HedgeBudget::Shared),
        None => topology,
    }
}

/// The limits alone: also for a change while it runs.
pub(super) fn limits(timeouts: &Timeouts, topology: &Topology, found: &mut Vec<Misconfiguration>) -> Report {
    let limits = [
        ("timeouts.head", timeouts.head),
        ("timeouts.attempt", timeouts.attempt),
        ("timeouts.total", timeouts.total),
        ("timeouts.body_idle", timeouts.body_idle),
        ("timeouts.absolute", timeouts.absolute),
    ];
    let zeros = limits.iter().filter(|(_, limit)| *limit == Some(Duration::ZERO));
    found.extend(zeros.map(|(setting, _)| {
        Misconfiguration::new(*setting, "no call can be made in no time", "set a time, or `None` for no limit")
    }));
    let report = timeouts.check(topology);
    found.extend(report.refused().map(|finding| {
        let setting = format!("alignment {} {}", finding.id().number(), finding.id().as_str());
        let problem = format!("{} ({})", finding.inequality(), finding.why());
        Misconfiguration::new(setting, problem, format!("set {}", finding.set()))
    }));
    report
}

fn name(name: &str, found: &mut Vec<Misconfiguration>) {
    let set = "set a short name such as \"payments\"";
    if name.trim().is_empty() {
        found.push(Misconfiguration::new("name", "it is empty, and stands in each log line", set));
    } else if name.len() > NAME {
        found.push(Misconfiguration::new("name", format!("it is longer than {NAME} bytes"), set));
    } else if name.chars().any(char::is_control) {
        found.push(Misconfiguration::new("name", "it has control characters in it", set));
    }
}

fn retry(layer: &RetryLayer, timeouts: &Timeouts, found: &mut Vec<Misconfiguration>) {
    let settings = layer.settings();
    let policy = settings.policy;
    let mut bad = |setting: &str, problem: String, set: &str| found.push(Misconfiguration::new(setting, problem, set));
    if policy.max < policy.base {
        let problem = format!("the longest pause, {:?}, is shorter than the first, {:?}", policy.max, policy.base);
        bad(
            "retry.policy",
            problem,
            "set the longest (`max`, in a file `longest_pause`) to the first (`base`, `pause`) or more",
        );
    }
    if let Some(total) = timeouts.total.filter(|total| policy.base >= *total && policy.attempts > 1) {
        let problem = format!("the first pause, {:?}, leaves no time of the total, {total:?}", policy.base);
        bad("retry.policy", problem, "set a shorter `base`, or one attempt");
    }
    if settings.body_cap > BODY {
        let problem = format!("{} bytes of each request body in flight would be kept", settings.body_cap);
        bad("retry.body_cap", problem, "set 64 MiB at most; longer bodies go on and are not repeated");
    }
    if let Some(delay) = settings.hedging.as_ref().and_then(Hedging::fixed) {
        if delay.is_zero() {
            let problem = "each call would be sent twice at once".to_owned();
            bad("retry.hedging", problem, "set a delay near the 95th percentile, or `Hedging::new()` to learn it");
        } else if let Some(total) = timeouts.total.filter(|total| delay >= *total) {
            let problem = format!("the second attempt would begin after {delay:?}, the call ends after {total:?}");
            bad("retry.hedging", problem, "set a delay below the total");
        }
        if policy.attempts == 1 {
            let problem = "one attempt is allowed, and a hedge is a second one".to_owned();
            bad("retry.hedging", problem, "set two attempts, or no hedging");
        }
    }
    if let Some(total) = settings.total.filter(|total| timeouts.total.is_some_and(|all| *total != all)) {
        let problem = format!("the retry's total, {total:?}, is not that of the limits, {:?}", timeouts.total);
        bad("retry.total", problem, "set it in `timeouts` alone");
    }
}

fn circuit(policy: &BreakerPolicy, timeouts: &Timeouts, found: &mut Vec<Misconfiguration>) {
    let mut bad = |problem: String, set: &str| found.push(Misconfiguration::new("circuit", problem, set));
    if policy.pause.is_zero() {
        bad("a pause of no time leaves nothing alone".to_owned(), "set a `pause`, 1 s as a rule");
    }
    if policy.longest < policy.pause {
        let problem = format!("the longest pause, {:?}, is shorter than the first, {:?}", policy.longest, policy.pause);
        bad(problem, "set `longest_pause` above `pause`");
    }
    if policy.probe.is_zero() {
        bad("a probe that keeps its place for no time lets all calls pass".to_owned(), "set a `probe_limit`");
    }
    if policy.ratio.as_per_mille() == 0 {
        bad("a share of no failures is always reached".to_owned(), "set a `ratio` above zero");
    }
    if let Some((slow, share)) = policy.slow {
        if slow.is_zero() || share.as_per_mille() == 0 {
            bad("every call would count as slow".to_owned(), "set `slow_calls` to a time and a share above zero");
        }
        if let Some(limit) = timeouts.attempt.or(timeouts.head).filter(|limit| slow >= *limit) {
            let problem = format!("no call can be slow: one longer than {slow:?} is cut after {limit:?}");
            bad(problem, "set `slow_calls` below the attempt's limit");
        }
    }
}

/// The bounds of a limiter: also for a change while it runs.
pub(super) fn limiter((least, most): (u32, u32), found: &mut Vec<Misconfiguration>) {
    let mut bad = |problem: String, set: &str| found.push(Misconfiguration::new("limiter", problem, set));
    if least == 0 || most == 0 {
        bad("a limit of 0 lets no call pass".to_owned(), "set 1 or more");
    } else if least > most {
        bad(format!("from {least} to {most} is no range"), "set the lower bound first, at most the upper one");
    }
    if least.max(most) > LIMIT {
        bad(format!("{} calls in flight are no limit", least.max(most)), "set a million at most, or build without it");
    }
}

fn classify(hold: Duration, statuses: &[http::StatusCode], timeouts: &Timeouts, found: &mut Vec<Misconfiguration>) {
    let mut bad = |setting: &str, problem: String, set: &str| found.push(Misconfiguration::new(setting, problem, set));
    let limit = timeouts.head.or(timeouts.total).unwrap_or(Duration::MAX).min(Duration::from_secs(1));
    if hold >= limit {
        let problem = format!("heads would wait {hold:?} for a body that comes late");
        bad("classify.hold", problem, "set a few milliseconds");
    }
    if let Some(status) = statuses.iter().find(|status| !status.is_server_error()) {
        let problem = format!("{status} is no failure of the upstream");
        bad("classify.statuses", problem, "list statuses from 500");
    }
}
