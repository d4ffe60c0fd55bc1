//! How our own limits lie in each other: 1, 2, 3, 5 and 15.

use std::time::Duration;

use super::super::amount::{Amount, Share, Spoken, below};
use super::super::finding::{Finding, FindingId, Quantity, Relation, Severity};
use super::super::topology::HedgeBudget;
use super::{Inequality, Said, Scene};

pub(super) fn look(scene: &Scene<'_>, found: &mut Vec<Finding>) {
    found.extend(connect(scene));
    found.extend(head(scene));
    found.extend(attempt(scene));
    found.extend(attempts(scene));
    found.extend(upstream_timeout(scene));
    found.extend(hedge_delay(scene));
    found.extend(hedge_budget(scene));
}

fn connect(scene: &Scene<'_>) -> Option<Finding> {
    let connect = scene.topology.connect?;
    let attempt = scene.attempt();
    let whole = Quantity::new("connect", connect);
    let id = FindingId::ConnectAttempt;
    let set = format!("the connect limit to half of an attempt ({}) or less", attempt.amount);
    let refused = Inequality::new(id, whole.clone(), Relation::Below, attempt.clone()).or(Severity::Refuse, || Said {
        why: "the attempt ends while it still connects, so that no answer can tell a dead host from a slow one",
        sees: "504 of the attempt, where a 504 connect_timeout would name the fault",
        set: set.clone(),
        at_run_time: None,
    });
    if refused.is_some() {
        return refused;
    }
    let half = attempt.amount.time()? / 2;
    let half = Quantity::new("half an attempt", half);
    Inequality::new(id, whole, Relation::AtMost, half).or(Severity::Warn, || Said {
        why: "a slow connection eats most of its attempt and leaves little time for the answer",
        sees: "504, though the upstream might have answered in time",
        set,
        at_run_time: None,
    })
}

fn head(scene: &Scene<'_>) -> Option<Finding> {
    let head = scene.timeouts.response_head?;
    let attempt = scene.attempt();
    let set = format!("the head limit to at most {}, or to none", attempt.amount);
    let head = Quantity::new("head", head);
    Inequality::new(FindingId::HeadAttemptTotal, head, Relation::AtMost, attempt).or(Severity::Refuse, || Said {
        why: "the limit around it fires first, so that this one never does",
        sees: "504 deadline_exceeded instead of 504 first_byte_timeout, which names the phase",
        set,
        at_run_time: None,
    })
}

fn attempt(scene: &Scene<'_>) -> Option<Finding> {
    let attempt = Quantity::new("attempt", scene.timeouts.attempt?);
    let total = Quantity::new("total", scene.total());
    let set = format!("the attempt to at most {}, or to none", total.amount);
    Inequality::new(FindingId::HeadAttemptTotal, attempt, Relation::AtMost, total).or(Severity::Refuse, || Said {
        why: "an attempt outlives the exchange it belongs to: the total cuts it and no retry ever runs",
        sees: "504 deadline_exceeded after the first attempt",
        set,
        at_run_time: None,
    })
}

/// How many attempts can run in full, and the time that all of them need.
pub(in super::super) fn full_attempts(scene: &Scene<'_>) -> Option<(u32, Duration)> {
    let (total, each) = (scene.total().time()?, scene.attempt().amount.time()?);
    let pauses = |number| scene.topology.backoff.map_or(Duration::ZERO, |backoff| backoff.sum(number));
    let needed = |number: u32| each.saturating_mul(number).saturating_add(pauses(number.saturating_sub(1)));
    let wanted = scene.attempts();
    if needed(wanted) <= total {
        return Some((wanted, needed(wanted)));
    }
    // what is needed only grows: halve the rest until it fits
    let (mut fits, mut over) = (0, wanted);
    while over - fits > 1 {
        let middle = fits + (over - fits) / 2;
        if needed(middle) <= total { fits = middle } else { over = middle }
    }
    Some((fits, needed(wanted)))
}

fn attempts(scene: &Scene<'_>) -> Option<Finding> {
    if scene.attempts() == 1 {
        return None; // 2 says all that is to be said
    }
    let (full, needed) = full_attempts(scene)?;
    let total = Quantity::new("total", scene.total());
    let needed = Quantity::new(format!("{} attempts and the pauses between them", scene.attempts()), needed);
    let set = match scene.timeouts.attempt {
        None => format!("a limit for the attempt: as long as the total ({}), only one can run", total.amount),
        Some(_) => format!(
            "the total to at least {}, or shorter attempts, or attempts({full}): so many run in full",
            needed.amount
        ),
    };
    Inequality::new(FindingId::AttemptsTotal, needed, Relation::AtMost, total).or(Severity::Warn, || Said {
        why: "the last attempts are cut short by the total, or never run",
        sees: "504 deadline_exceeded, though a retry was left",
        set,
        at_run_time: Some("an attempt gets what remains of the total, at most"),
    })
}

fn upstream_timeout(scene: &Scene<'_>) -> Option<Finding> {
    let own = Quantity::new("upstream's own timeout", scene.topology.upstream_timeout?);
    let attempt = scene.attempt();
    let ours = match scene.timeouts.response_head {
        Some(head) if Amount::Time(head).is_below(attempt.amount) => Quantity::new("head", head),
        _ => attempt,
    };
    let most = Spoken(below(ours.amount.time()?));
    let set = format!("the upstream's timeout to at most {most}, or a longer {} here", ours.name);
    let inequality = Inequality::new(FindingId::UpstreamTimeoutAttempt, own, Relation::AtMost, ours).with_margin();
    inequality.or(Severity::Warn, || Said {
        why: "we give up before the upstream does, and its own answer, which knows the reason, comes too late",
        sees: "504 first_byte_timeout in place of the upstream's own 503",
        set,
        at_run_time: None,
    })
}

fn hedge_delay(scene: &Scene<'_>) -> Option<Finding> {
    let delay = Quantity::new("hedge delay", scene.topology.hedge_delay?);
    let attempt = scene.attempt();
    let set = format!("the hedge delay below {}, best to the latency's p95", attempt.amount);
    Inequality::new(FindingId::HedgeAttempt, delay, Relation::Below, attempt).or(Severity::Refuse, || Said {
        why: "the attempt ends before its hedge begins: what runs then is a retry that nobody counts",
        sees: "504 as without hedging, and twice the load on an upstream that is slow already",
        set,
        at_run_time: None,
    })
}

fn hedge_budget(scene: &Scene<'_>) -> Option<Finding> {
    let share = match scene.topology.hedge_budget? {
        HedgeBudget::Shared => Share::ALL,
        HedgeBudget::Apart => Share::NONE,
    };
    let paid = Quantity::new("hedges paid from the retry budget", Amount::Share(share));
    let all = Quantity::new("all of them", Amount::Share(Share::ALL));
    Inequality::new(FindingId::HedgeAttempt, paid, Relation::AtLeast, all).or(Severity::Refuse, || Said {
        why: "a slow upstream draws retries and hedges at once, each within a bound that knows nothing of the other",
        sees: "503 and 504 of an upstream that gets two storms in place of one",
        set: "one budget for both".to_owned(),
        at_run_time: None,
    })
}
