//! Streaming routes: 9 and 10.

use std::time::Duration;

use super::super::finding::{Finding, FindingId, NamedQuantity, Relation, Severity};
use super::super::quantity::Quantity;
use super::check::{Check, Explanation, RuleInput};

pub(super) fn check(scene: &RuleInput<'_>, found: &mut Vec<Finding>) {
    found.extend(gap(scene));
    found.extend(silence(scene));
    found.extend(bounded(scene));
    found.extend(endless(scene));
}

fn gap(scene: &RuleInput<'_>) -> Option<Finding> {
    let gap = scene.topology.streaming?.gap?;
    let idle = NamedQuantity::new("body idle", scene.timeouts.body_idle);
    let longest = NamedQuantity::new("stream's longest gap", gap);
    Check::new(FindingId::BodyIdleStream, idle, Relation::Above, longest).or_explain(Severity::Warn, || Explanation {
        reason: "a healthy stream that is silent for a while is taken for a dead one",
        client_sees: "a stream that ends in every quiet period (body_read_timeout)",
        suggestion: "a longer body_idle, or a shorter heartbeat".to_owned(),
        mitigation: None,
    })
}

fn silence(scene: &RuleInput<'_>) -> Option<Finding> {
    let (name, patience) = scene.topology.load_balancer_wait()?;
    let idle = NamedQuantity::new("body idle", scene.timeouts.body_idle);
    let theirs = NamedQuantity::new(name, patience);
    Check::new(FindingId::BodyIdleStream, idle, Relation::Below, theirs).or_explain(Severity::Warn, || Explanation {
        reason: "the load balancer cuts a silent body before this gateway detects it",
        client_sees: "a truncated body, and only client_closed in our log",
        suggestion: format!("body_idle below {patience}"),
        mitigation: None,
    })
}

/// A streaming route with a total, or without one but not declared unbounded.
fn bounded(scene: &RuleInput<'_>) -> Option<Finding> {
    if scene.topology.streaming.is_none() || scene.is_unbounded() {
        return None;
    }
    // only `unbounded()` satisfies this rule: a missing total may be an oversight
    let total = scene.total();
    let name = if total.is_unlimited() { "total, perhaps forgotten" } else { "total" };
    let total = NamedQuantity::new(name, total);
    let stream = NamedQuantity::new("length of a stream", Quantity::Unlimited);
    Some(Finding {
        id: FindingId::StreamTotal,
        severity: Severity::Refuse,
        left: total,
        relation: Relation::AtLeast,
        right: stream,
        margin: Duration::ZERO,
        reason: "a missing total may be intended or forgotten, and a total cuts off every stream",
        client_sees: "504, or streams that always end at the same age",
        suggestion: "unbounded() for this route, with body_idle and, if it must end eventually, max_duration"
            .to_owned(),
        mitigation: None,
    })
}

/// Without an idle timeout a dead stream is not detected.
fn endless(scene: &RuleInput<'_>) -> Option<Finding> {
    if scene.topology.streaming.is_none() || !scene.is_unbounded() {
        return None;
    }
    let idle = NamedQuantity::new("body idle", scene.timeouts.body_idle);
    let any = NamedQuantity::new("any limit", Duration::MAX);
    Check::new(FindingId::StreamTotal, idle, Relation::AtMost, any).or_explain(Severity::Warn, || Explanation {
        reason: "a stream whose upstream has vanished silently lasts forever, and so does its connection",
        client_sees: "nothing at all, on a stream that is dead",
        suggestion: "body_idle, to more than the heartbeat's period".to_owned(),
        mitigation: None,
    })
}
