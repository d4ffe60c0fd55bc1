//! Circuit breaker, budget, backoff, memory and learned timeouts: 11, 12, 13, 14, 17 and 18.

use super::super::finding::{Finding, FindingId, NamedQuantity, Relation, Severity};
use super::super::quantity::{Fraction, Quantity};
use super::check::{Check, Explanation, RuleInput};

pub(super) fn check(scene: &RuleInput<'_>, found: &mut Vec<Finding>) {
    found.extend(breaker_open(scene));
    found.extend(breaker_window(scene));
    found.extend(probe(scene));
    found.extend(min_requests(scene));
    found.extend(budget_window(scene));
    found.extend(retry_after(scene));
    found.extend(replay(scene));
    found.extend(quantile(scene));
}

fn breaker_open(scene: &RuleInput<'_>) -> Option<Finding> {
    let open = NamedQuantity::new("breaker's open time", scene.topology.breaker?.open);
    let attempt = scene.attempt();
    // an unlimited attempt cannot be satisfied by any setting of the breaker
    attempt.quantity.time()?;
    let set = format!("the breaker's open time to at least {}", attempt.quantity);
    Check::new(FindingId::BreakerAttempt, open, Relation::AtLeast, attempt).or_explain(Severity::Warn, || Explanation {
        reason: "it admits a probe while attempts from before it opened are still in flight",
        client_sees: "503 circuit_open and 504 in turn, as the breaker flaps",
        suggestion: set,
        mitigation: None,
    })
}

fn breaker_window(scene: &RuleInput<'_>) -> Option<Finding> {
    let window = NamedQuantity::new("breaker's window", scene.topology.breaker?.window);
    let twice = NamedQuantity::new("two attempts", scene.attempt().quantity.time()?.saturating_mul(2));
    let set = format!("the breaker's window to at least {}", twice.quantity);
    Check::new(FindingId::BreakerAttempt, window, Relation::AtLeast, twice).or_explain(Severity::Warn, || Explanation {
        reason: "a slow failure counts in another window than its concurrent requests, so the ratio is wrong",
        client_sees: "504 after 504, where the breaker should have refused immediately",
        suggestion: set,
        mitigation: None,
    })
}

fn probe(scene: &RuleInput<'_>) -> Option<Finding> {
    let probe = NamedQuantity::new("probe's timeout", scene.topology.probe?);
    let attempt = scene.attempt();
    let set = format!("the probe's timeout to at most {}", attempt.quantity);
    Check::new(FindingId::BreakerAttempt, probe, Relation::AtMost, attempt).or_explain(Severity::Warn, || Explanation {
        reason: "a probe that hangs keeps the breaker open longer than an attempt would have taken",
        client_sees: "503 circuit_open, although the upstream has recovered",
        suggestion: set,
        mitigation: None,
    })
}

fn min_requests(scene: &RuleInput<'_>) -> Option<Finding> {
    let (topology, window) = (scene.topology, scene.topology.breaker?.window);
    let (requests, per) = topology.rate?;
    let seen = u128::from(requests).saturating_mul(window.as_nanos()) / per.as_nanos().max(1);
    let seen = Quantity::Count(u64::try_from(seen).unwrap_or(u64::MAX));
    let seen = NamedQuantity::new("requests in a window", seen);
    let least = NamedQuantity::new("breaker's least number", Quantity::Count(topology.min_requests?));
    let set = format!("the least number to at most {}, or a longer window", seen.quantity);
    Check::new(FindingId::BreakerMinRequests, seen, Relation::AtLeast, least).or_explain(Severity::Warn, || {
        Explanation {
            reason: "the breaker never sees enough requests, and cannot open by their failure ratio",
            client_sees: "502 and 504, each after its full wait",
            suggestion: set,
            mitigation: None,
        }
    })
}

fn budget_window(scene: &RuleInput<'_>) -> Option<Finding> {
    if scene.is_unbounded() {
        return None;
    }
    let window = NamedQuantity::new("budget's window", scene.topology.budget_window?);
    let total = NamedQuantity::new("total", scene.total());
    let set = match total.quantity {
        Quantity::Unlimited => "a total".to_owned(),
        least => format!("the budget's window to at least {least}"),
    };
    Check::new(FindingId::BudgetWindowTotal, window, Relation::AtLeast, total).or_explain(Severity::Warn, || {
        Explanation {
            reason: "a retry is paid from a window that no longer contains the deposits of its calls",
            client_sees: "502 or 504, although the budget had tokens for a retry",
            suggestion: set,
            mitigation: None,
        }
    })
}

fn retry_after(scene: &RuleInput<'_>) -> Option<Finding> {
    let pause = NamedQuantity::new("longest Retry-After", scene.topology.retry_after?);
    let total = NamedQuantity::new("total", scene.total());
    let set = format!("the longest Retry-After to at most {}", total.quantity);
    Check::new(FindingId::RetryAfterTotal, pause, Relation::AtMost, total).or_explain(Severity::Clamp, || Explanation {
        reason: "a wait that is longer than the remaining time ends after the deadline",
        client_sees: "504 after the whole total instead of the upstream's immediate 503",
        suggestion: set,
        mitigation: Some("no retry if Retry-After is longer than the remaining time"),
    })
}

fn replay(scene: &RuleInput<'_>) -> Option<Finding> {
    let replay = scene.topology.replay?;
    let all = Quantity::Bytes(replay.cap.saturating_mul(replay.in_flight));
    let all = NamedQuantity::new("all replay buffers together", all);
    let memory = NamedQuantity::new("memory for them", Quantity::Bytes(replay.memory));
    let each = Quantity::Bytes(replay.memory / replay.in_flight.max(1));
    Check::new(FindingId::ReplayMemory, all, Relation::AtMost, memory).or_explain(Severity::Warn, || Explanation {
        reason: "uploads waiting for a slow upstream may fill the memory together",
        client_sees: "a gateway killed for its memory: a 502 for every client",
        suggestion: format!("the replay cap to at most {each}, or fewer requests in flight"),
        mitigation: None,
    })
}

fn quantile(scene: &RuleInput<'_>) -> Option<Finding> {
    let (quantile, hangs) = (scene.topology.quantile?, scene.topology.hangs?);
    let hangs = Fraction::per_mille(hangs.as_per_mille());
    let room = NamedQuantity::new(
        "room above the quantile",
        Quantity::Fraction(Fraction::per_mille(quantile.as_per_mille()).complement()),
    );
    let share = NamedQuantity::new("share that hangs", Quantity::Fraction(hangs));
    Check::new(FindingId::LearnedQuantile, room, Relation::Above, share).or_explain(Severity::Clamp, || Explanation {
        reason: "the quantile itself is a hang, so the learned timeout is as long as the longest wait",
        client_sees: "504 after the cap, as if nothing had been learned",
        suggestion: format!("a quantile below {}", hangs.complement()),
        mitigation: Some("the cap applies instead of the learned timeout"),
    })
}
