//! How our own timeouts nest: 1, 2, 3, 5 and 15.

use std::time::Duration;

use super::super::finding::{Finding, FindingId, NamedQuantity, Relation, Severity};
use super::super::quantity::{Fraction, HumanDuration, Quantity, below};
use super::check::{Check, Explanation, RuleInput};

pub(super) fn check(scene: &RuleInput<'_>, found: &mut Vec<Finding>) {
    found.extend(connect(scene));
    found.extend(head(scene));
    found.extend(attempt(scene));
    found.extend(attempts(scene));
    found.extend(upstream_timeout(scene));
    found.extend(hedge_delay(scene));
    found.extend(hedge_budget(scene));
}

fn connect(scene: &RuleInput<'_>) -> Option<Finding> {
    let connect = scene.topology.connect?;
    let attempt = scene.attempt();
    let whole = NamedQuantity::new("connect", connect);
    let id = FindingId::ConnectAttempt;
    let set = format!("the connect limit to half of an attempt ({}) or less", attempt.quantity);
    let refused =
        Check::new(id, whole.clone(), Relation::Below, attempt.clone()).or_explain(Severity::Refuse, || Explanation {
            reason: "the attempt ends while it still connects, so a dead host looks like a slow one",
            client_sees: "504 of the attempt instead of a specific 504 connect_timeout",
            suggestion: set.clone(),
            mitigation: None,
        });
    if refused.is_some() {
        return refused;
    }
    let half = attempt.quantity.time()? / 2;
    let half = NamedQuantity::new("half an attempt", half);
    Check::new(id, whole, Relation::AtMost, half).or_explain(Severity::Warn, || Explanation {
        reason: "a slow connect uses most of its attempt and leaves little time for the response",
        client_sees: "504, although the upstream might have responded in time",
        suggestion: set,
        mitigation: None,
    })
}

fn head(scene: &RuleInput<'_>) -> Option<Finding> {
    let head = scene.timeouts.response_head?;
    let attempt = scene.attempt();
    let set = format!("the head limit to at most {}, or to none", attempt.quantity);
    let head = NamedQuantity::new("head", head);
    Check::new(FindingId::HeadAttemptTotal, head, Relation::AtMost, attempt).or_explain(Severity::Refuse, || {
        Explanation {
            reason: "the timeout around it fires first, so this one never does",
            client_sees: "504 deadline_exceeded instead of the more specific 504 first_byte_timeout",
            suggestion: set,
            mitigation: None,
        }
    })
}

fn attempt(scene: &RuleInput<'_>) -> Option<Finding> {
    let attempt = NamedQuantity::new("attempt", scene.timeouts.attempt?);
    let total = NamedQuantity::new("total", scene.total());
    let set = format!("the attempt to at most {}, or to none", total.quantity);
    Check::new(FindingId::HeadAttemptTotal, attempt, Relation::AtMost, total).or_explain(Severity::Refuse, || {
        Explanation {
            reason: "an attempt outlives its call: the total cuts it off and no retry ever runs",
            client_sees: "504 deadline_exceeded after the first attempt",
            suggestion: set,
            mitigation: None,
        }
    })
}

/// The number of attempts that can run in full, and the time that all configured attempts need.
pub(in super::super) fn full_attempts(scene: &RuleInput<'_>) -> Option<(u32, Duration)> {
    let (total, each) = (scene.total().time()?, scene.attempt().quantity.time()?);
    let pauses = |number| scene.topology.backoff.map_or(Duration::ZERO, |backoff| backoff.sum(number));
    let needed = |number: u32| each.saturating_mul(number).saturating_add(pauses(number.saturating_sub(1)));
    let wanted = scene.attempts();
    if needed(wanted) <= total {
        return Some((wanted, needed(wanted)));
    }
    // bisect: the time needed grows with the number of attempts
    let (mut fits, mut over) = (0, wanted);
    while over - fits > 1 {
        let middle = fits + (over - fits) / 2;
        if needed(middle) <= total { fits = middle } else { over = middle }
    }
    Some((fits, needed(wanted)))
}

fn attempts(scene: &RuleInput<'_>) -> Option<Finding> {
    if scene.attempts() == 1 {
        return None; // covered by number 2
    }
    let (full, needed) = full_attempts(scene)?;
    let total = NamedQuantity::new("total", scene.total());
    let needed = NamedQuantity::new(format!("{} attempts plus backoff", scene.attempts()), needed);
    let set = match scene.timeouts.attempt {
        None => format!("a limit for the attempt: as long as the total ({}), only one can run", total.quantity),
        Some(_) => format!(
            "the total to at least {}, or shorter attempts, or attempts({full}), the number that runs in full",
            needed.quantity
        ),
    };
    Check::new(FindingId::AttemptsTotal, needed, Relation::AtMost, total).or_explain(Severity::Warn, || Explanation {
        reason: "the last attempts are cut short by the total, or never run",
        client_sees: "504 deadline_exceeded, although a retry was left",
        suggestion: set,
        mitigation: Some("an attempt gets at most the rest of the total"),
    })
}

fn upstream_timeout(scene: &RuleInput<'_>) -> Option<Finding> {
    let own = NamedQuantity::new("upstream's own timeout", scene.topology.upstream_timeout?);
    let attempt = scene.attempt();
    let ours = match scene.timeouts.response_head {
        Some(head) if Quantity::Time(head).is_below(attempt.quantity) => NamedQuantity::new("head", head),
        _ => attempt,
    };
    let most = HumanDuration(below(ours.quantity.time()?));
    let set = format!("the upstream's timeout to at most {most}, or a longer {} here", ours.name);
    let inequality = Check::new(FindingId::UpstreamTimeoutAttempt, own, Relation::AtMost, ours).with_margin();
    inequality.or_explain(Severity::Warn, || Explanation {
        reason: "this gateway gives up first, and the upstream's own response, which has the reason, comes too late",
        client_sees: "504 first_byte_timeout instead of the upstream's own 503",
        suggestion: set,
        mitigation: None,
    })
}

fn hedge_delay(scene: &RuleInput<'_>) -> Option<Finding> {
    let delay = NamedQuantity::new("hedge delay", scene.topology.hedge_delay?);
    let attempt = scene.attempt();
    let set = format!("the hedge delay below {}, best to the latency's p95", attempt.quantity);
    Check::new(FindingId::HedgeAttempt, delay, Relation::Below, attempt).or_explain(Severity::Refuse, || Explanation {
        reason: "the attempt ends before its hedge begins: the hedge is then an uncounted retry",
        client_sees: "504 as without hedging, and twice the load on a slow upstream",
        suggestion: set,
        mitigation: None,
    })
}

fn hedge_budget(scene: &RuleInput<'_>) -> Option<Finding> {
    if !scene.topology.separate_hedge_budget {
        return None;
    }
    let paid = NamedQuantity::new("hedges paid from the retry budget", Quantity::Fraction(Fraction::NONE));
    let all = NamedQuantity::new("all of them", Quantity::Fraction(Fraction::ALL));
    Check::new(FindingId::HedgeAttempt, paid, Relation::AtLeast, all).or_explain(Severity::Refuse, || Explanation {
        reason: "a slow upstream causes retries and hedges at the same time, each limited independently of the other",
        client_sees: "503 and 504 of an upstream under two retry storms instead of one",
        suggestion: "one budget for both".to_owned(),
        mitigation: None,
    })
}
