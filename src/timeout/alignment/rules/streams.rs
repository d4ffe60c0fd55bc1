//! What a body without an end needs: 9 and 10.

use std::time::Duration;

use super::super::amount::Amount;
use super::super::finding::{Finding, FindingId, Quantity, Relation, Severity};
use super::{Inequality, Said, Scene};

pub(super) fn look(scene: &Scene<'_>, found: &mut Vec<Finding>) {
    found.extend(gap(scene));
    found.extend(silence(scene));
    found.extend(bounded(scene));
    found.extend(endless(scene));
}

fn gap(scene: &Scene<'_>) -> Option<Finding> {
    let gap = scene.topology.streaming?.gap?;
    let idle = Quantity::new("body idle", scene.timeouts.body_idle);
    let longest = Quantity::new("stream's longest gap", gap);
    Inequality::new(FindingId::BodyIdleStream, idle, Relation::Above, longest).or(Severity::Warn, || Said {
        why: "a healthy stream that says nothing for a while is taken for a dead one",
        sees: "a stream that breaks off in every quiet time (body_read_timeout)",
        set: "a longer body_idle, or a shorter heartbeat".to_owned(),
        at_run_time: None,
    })
}

fn silence(scene: &Scene<'_>) -> Option<Finding> {
    let (name, patience) = scene.topology.patience()?;
    let idle = Quantity::new("body idle", scene.timeouts.body_idle);
    let theirs = Quantity::new(name, patience);
    Inequality::new(FindingId::BodyIdleStream, idle, Relation::Below, theirs).or(Severity::Warn, || Said {
        why: "the load balancer cuts a silent body before we notice that it is one",
        sees: "a cut body, and nothing in our log but client_closed",
        set: format!("body_idle below {patience}"),
        at_run_time: None,
    })
}

/// A total, or none by oversight, on a route that streams.
fn bounded(scene: &Scene<'_>) -> Option<Finding> {
    if scene.topology.streaming.is_none() || scene.is_unbounded() {
        return None;
    }
    // nothing but `unbounded()` satisfies this one: a missing total may be an oversight
    let total = scene.total();
    let name = if total.is_unlimited() { "total, perhaps forgotten" } else { "total" };
    let total = Quantity::new(name, total);
    let stream = Quantity::new("length of a stream", Amount::Unlimited);
    Some(Finding {
        id: FindingId::StreamTotal,
        severity: Severity::Refuse,
        left: total,
        relation: Relation::AtLeast,
        right: stream,
        margin: Duration::ZERO,
        why: "nobody can tell a stream's total from a forgotten one, and some gateways cut every stream by it",
        sees: "504, or a stream that ends at the same age each time",
        set: "unbounded() for this route, with body_idle and, if it may not last for ever, absolute".to_owned(),
        at_run_time: None,
    })
}

/// Without an idle limit nobody notices that a stream has died.
fn endless(scene: &Scene<'_>) -> Option<Finding> {
    if scene.topology.streaming.is_none() || !scene.is_unbounded() {
        return None;
    }
    let idle = Quantity::new("body idle", scene.timeouts.body_idle);
    let any = Quantity::new("any limit", Duration::MAX);
    Inequality::new(FindingId::StreamTotal, idle, Relation::AtMost, any).or(Severity::Warn, || Said {
        why: "a stream whose upstream has gone silently lasts for ever, and so does its connection",
        sees: "nothing at all, on a stream that is dead",
        set: "body_idle, to more than the heartbeat's period".to_owned(),
        at_run_time: None,
    })
}
