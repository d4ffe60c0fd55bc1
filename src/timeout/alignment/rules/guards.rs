//! Breaker, budget, pauses, memory, and what was learnt: 11, 12, 13, 14, 17 and 18.

use std::time::Duration;

use super::super::amount::Amount;
use super::super::finding::{Finding, FindingId, Quantity, Relation, Severity};
use super::{Inequality, Said, Scene};

/// No `Retry-After` is waited for longer.
const RETRY_AFTER_CAP: Duration = Duration::from_secs(60);

pub(super) fn look(scene: &Scene<'_>, found: &mut Vec<Finding>) {
    found.extend(breaker_open(scene));
    found.extend(breaker_window(scene));
    found.extend(probe(scene));
    found.extend(min_requests(scene));
    found.extend(budget_window(scene));
    found.extend(retry_after(scene));
    found.extend(replay(scene));
    found.extend(quantile(scene));
}

fn breaker_open(scene: &Scene<'_>) -> Option<Finding> {
    let open = Quantity::new("breaker's open time", scene.topology.breaker?.open);
    let attempt = scene.attempt();
    // no breaker suits an attempt without an end; that it has none is not the breaker's fault
    attempt.amount.time()?;
    let set = format!("the breaker's open time to at least {}", attempt.amount);
    Inequality::new(FindingId::BreakerAttempt, open, Relation::AtLeast, attempt).or(Severity::Warn, || Said {
        why: "it lets a probe through while attempts from before it opened still run, and hears of them late",
        sees: "503 circuit_open in turn with 504, as the breaker flaps",
        set,
        at_run_time: None,
    })
}

fn breaker_window(scene: &Scene<'_>) -> Option<Finding> {
    let window = Quantity::new("breaker's window", scene.topology.breaker?.window);
    let twice = Quantity::new("two attempts", scene.attempt().amount.time()?.saturating_mul(2));
    let set = format!("the breaker's window to at least {}", twice.amount);
    Inequality::new(FindingId::BreakerAttempt, window, Relation::AtLeast, twice).or(Severity::Warn, || Said {
        why: "a slow failure is counted in another window than the requests beside it, and the share is wrong",
        sees: "504 after 504, where the breaker should have answered at once",
        set,
        at_run_time: None,
    })
}

fn probe(scene: &Scene<'_>) -> Option<Finding> {
    let probe = Quantity::new("probe's timeout", scene.topology.probe?);
    let attempt = scene.attempt();
    let set = format!("the probe's timeout to at most {}", attempt.amount);
    Inequality::new(FindingId::BreakerAttempt, probe, Relation::AtMost, attempt).or(Severity::Warn, || Said {
        why: "a probe that hangs keeps the breaker open longer than an attempt would have taken",
        sees: "503 circuit_open, though the upstream is back",
        set,
        at_run_time: None,
    })
}

fn min_requests(scene: &Scene<'_>) -> Option<Finding> {
    let (topology, window) = (scene.topology, scene.topology.breaker?.window);
    let (requests, per) = topology.rate?;
    let seen = u128::from(requests).saturating_mul(window.as_nanos()) / per.as_nanos().max(1);
    let seen = Amount::Count(u64::try_from(seen).unwrap_or(u64::MAX));
    let seen = Quantity::new("requests in a window", seen);
    let least = Quantity::new("breaker's least number", Amount::Count(topology.min_requests?));
    let set = format!("the least number to at most {}, or a longer window", seen.amount);
    Inequality::new(FindingId::BreakerMinRequests, seen, Relation::AtLeast, least).or(Severity::Warn, || Said {
        why: "the breaker never sees as many requests as it wants, and cannot trip by their share",
        sees: "502 and 504, each after its full wait",
        set,
        at_run_time: None,
    })
}

fn budget_window(scene: &Scene<'_>) -> Option<Finding> {
    if scene.is_unbounded() {
        return None;
    }
    let window = Quantity::new("budget's window", scene.topology.budget_window?);
    let total = Quantity::new("total", scene.total());
    let set = match total.amount {
        Amount::Unlimited => "a total".to_owned(),
        least => format!("the budget's window to at least {least}"),
    };
    Inequality::new(FindingId::BudgetWindowTotal, window, Relation::AtLeast, total).or(Severity::Warn, || Said {
        why: "a retry is paid for in a window that has forgotten what its requests had paid in",
        sees: "502 or 504, though the budget had room for a retry",
        set,
        at_run_time: None,
    })
}

fn retry_after(scene: &Scene<'_>) -> Option<Finding> {
    let pause = Quantity::new("longest Retry-After", scene.topology.retry_after?);
    let total = scene.total();
    let most = Amount::Time(RETRY_AFTER_CAP);
    let bound = match total {
        total if total.is_below(most) => Quantity::new("total", total),
        _ => Quantity::new("cap", most),
    };
    let set = format!("the longest Retry-After to at most {}", bound.amount);
    Inequality::new(FindingId::RetryAfterTotal, pause, Relation::AtMost, bound).or(Severity::Clamp, || Said {
        why: "a pause that is longer than what remains ends after the deadline",
        sees: "504 after the whole total, where the upstream's 503 was there at once",
        set,
        at_run_time: Some("no retry where Retry-After is longer than what remains, or than 60 s"),
    })
}

fn replay(scene: &Scene<'_>) -> Option<Finding> {
    let replay = scene.topology.replay?;
    let all = Amount::Bytes(replay.cap.saturating_mul(replay.in_flight));
    let all = Quantity::new("all replay buffers at once", all);
    let memory = Quantity::new("memory for them", Amount::Bytes(replay.memory));
    let each = Amount::Bytes(replay.memory / replay.in_flight.max(1));
    Inequality::new(FindingId::ReplayMemory, all, Relation::AtMost, memory).or(Severity::Warn, || Said {
        why: "uploads that wait for a slow upstream may fill the memory all together",
        sees: "a gateway that is killed for its memory: a 502 for everybody",
        set: format!("the replay cap to at most {each}, or fewer requests in flight"),
        at_run_time: None,
    })
}

fn quantile(scene: &Scene<'_>) -> Option<Finding> {
    let (quantile, hangs) = (scene.topology.quantile?, scene.topology.hangs?);
    let room = Quantity::new("room above the quantile", Amount::Share(quantile.rest()));
    let share = Quantity::new("share that hangs", Amount::Share(hangs));
    Inequality::new(FindingId::LearnedQuantile, room, Relation::Above, share).or(Severity::Clamp, || Said {
        why: "the quantile itself is a hang, so that the learned timeout is as long as the longest wait",
        sees: "504 after the cap, as if nothing had been learnt",
        set: format!("a quantile below {}", hangs.rest()),
        at_run_time: Some("the cap holds in place of what was learnt"),
    })
}
