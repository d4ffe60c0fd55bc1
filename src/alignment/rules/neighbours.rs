//! Our timeouts against those of the hops around: 4, 6, 7, 8 and 16.

use std::time::Duration;

use super::super::finding::{Finding, FindingId, NamedQuantity, Relation, Severity};
use super::super::peers::{Confidence, HYPER_UTIL_POOL_IDLE};
use super::super::quantity::{HumanDuration, Quantity, below, margin};
use super::super::topology::ClientHop;
use super::check::{Check, Explanation, RuleInput};

/// `Keep-Alive` announces whole seconds, and the two ends may start counting up to a second apart.
const POOL_MARGIN: Duration = Duration::from_secs(1);

pub(super) fn check(scene: &RuleInput<'_>, found: &mut Vec<Finding>) {
    found.extend(caller(scene));
    found.extend(balancer(scene));
    found.extend(pool(scene));
    found.extend(server(scene));
    found.extend(drain(scene));
    found.extend(grace(scene));
}

fn caller(scene: &RuleInput<'_>) -> Option<Finding> {
    if scene.is_unbounded() {
        return None;
    }
    let (limit, severity, deed) = match scene.topology.client? {
        ClientHop::Declared(limit) => (limit, Severity::Refuse, None),
        ClientHop::Deadline(usual) => {
            (usual, Severity::Clamp, Some("the total is reduced to the request's deadline, less the margin"))
        }
    };
    let total = NamedQuantity::new("total", scene.total());
    let theirs = NamedQuantity::new("client's timeout", limit);
    let inequality = Check::new(FindingId::TotalCaller, total, Relation::Below, theirs).with_margin();
    inequality.or_explain(severity, || Explanation {
        reason: "the client leaves first, and the upstream continues to work in vain",
        client_sees: "its own timeout (our log: 499 client_closed), never the cause",
        suggestion: format!("the total below {}", HumanDuration(below(limit))),
        mitigation: deed,
    })
}

fn balancer(scene: &RuleInput<'_>) -> Option<Finding> {
    if scene.is_unbounded() {
        return None;
    }
    let (name, patience) = scene.topology.load_balancer_wait()?;
    let total = NamedQuantity::new("total", scene.total());
    let theirs = NamedQuantity::new(name, patience);
    let inequality = Check::new(FindingId::TotalLoadBalancer, total, Relation::Below, theirs).with_margin();
    let most = HumanDuration(below(patience.time().unwrap_or_default()));
    inequality.or_explain(Severity::Refuse, || Explanation {
        reason: "the load balancer gives up first, and its response says nothing about the upstream",
        client_sees: "the load balancer's 504 or 502 instead of ours",
        suggestion: format!("the total below {most}, or a longer idle limit there"),
        mitigation: None,
    })
}

fn pool(scene: &RuleInput<'_>) -> Option<Finding> {
    let idle = scene.topology.pool_idle?;
    match scene.topology.upstream.and_then(|upstream| upstream.keep_alive) {
        Some(Quantity::Time(keep_alive)) => pool_and(idle, keep_alive, Severity::Refuse),
        Some(_) => None,
        None => pool_alone(idle),
    }
}

/// The finding about a pool that cannot use a learned keep-alive.
///
/// For other clients (hyper-util's pool keeps connections for 90 s): a warning if the pool's idle timeout is too long for that
/// keep-alive, or if none was learned and the timeout is 90 s or more.
pub(crate) fn pool_idle_finding(pool_idle: Duration, learnt: impl Into<Option<Duration>>) -> Option<Finding> {
    match learnt.into() {
        Some(keep_alive) => pool_and(pool_idle, keep_alive, Severity::Warn),
        None => pool_alone(pool_idle),
    }
}

fn pool_and(idle: Duration, keep_alive: Duration, severity: Severity) -> Option<Finding> {
    let ours = NamedQuantity::new("pool's idle limit", idle);
    let theirs = NamedQuantity::new("upstream's keep-alive", keep_alive);
    let inequality = Check::new(FindingId::PoolIdleUpstreamKeepAlive, ours, Relation::Below, theirs);
    let most = below(keep_alive).min(keep_alive.saturating_sub(POOL_MARGIN));
    inequality.with_margin_of(POOL_MARGIN).or_explain(severity, || Explanation {
        reason: "a request is sent on a connection that the upstream is just closing",
        client_sees: "502 stale_connection, the rarer the more traffic there is",
        suggestion: if most.is_zero() {
            format!("a keep-alive above {} at the upstream, or no pool", HumanDuration(POOL_MARGIN))
        } else {
            format!("the pool's idle limit below {}", HumanDuration(most))
        },
        mitigation: Some("this crate's pool learns from Keep-Alive fields and from connections that died"),
    })
}

/// The keep-alive of the upstream is unknown: only the common default is reported.
fn pool_alone(idle: Duration) -> Option<Finding> {
    let ours = NamedQuantity::new("pool's idle limit", idle);
    let theirs = NamedQuantity::new("usual default, of upstreams unknown", HYPER_UTIL_POOL_IDLE);
    let inequality = Check::new(FindingId::PoolIdleUpstreamKeepAlive, ours, Relation::Below, theirs);
    inequality.or_explain(Severity::Warn, || Explanation {
        reason: "few servers keep an idle connection that long (Node.js and Uvicorn 5 s, Gunicorn 2 s, nginx 75 s)",
        client_sees: "502 stale_connection, the rarer the more traffic there is",
        suggestion: "upstream_keep_alive(..), and the pool's idle limit a second below it".to_owned(),
        mitigation: Some("this crate's pool learns from Keep-Alive fields and from connections that died"),
    })
}

fn server(scene: &RuleInput<'_>) -> Option<Finding> {
    let (server, balancer) = (scene.topology.server?, scene.topology.balancer?);
    let pooled = balancer.pool_idle?;
    let ours = NamedQuantity::new(format!("keep-alive of {}", server.name), server.keep_alive?);
    let theirs = NamedQuantity::new(format!("pooled connection of {}", balancer.name), pooled);
    let severity = match server.confidence {
        Confidence::Declared => Severity::Refuse,
        Confidence::Assumed => Severity::Warn,
    };
    let id = FindingId::ServerKeepAliveLoadBalancer;
    let inequality = Check::new(id, ours, Relation::Above, theirs).with_margin();
    let least = pooled.plus(margin(pooled, Quantity::Unlimited)).rounded_up();
    inequality.or_explain(severity, || Explanation {
        reason: "our server closes a connection on which the load balancer is just sending",
        client_sees: "the load balancer's 502, with nothing in our log",
        suggestion: format!("our server's keep-alive (hyper: header_read_timeout) above {least}"),
        mitigation: None,
    })
}

fn drain(scene: &RuleInput<'_>) -> Option<Finding> {
    let delay = NamedQuantity::new("drain delay", scene.topology.drain_delay?);
    let spread = scene.topology.propagation?;
    let theirs = NamedQuantity::new("load balancer's propagation", spread);
    Check::new(FindingId::DrainGrace, delay, Relation::AtLeast, theirs).or_explain(Severity::Refuse, || Explanation {
        reason: "the process stops listening while the load balancer still sends to it",
        client_sees: "the load balancer's 502 at every rollout",
        suggestion: format!("the drain delay to at least {}", HumanDuration(spread)),
        mitigation: None,
    })
}

fn grace(scene: &RuleInput<'_>) -> Option<Finding> {
    if scene.is_unbounded() {
        return None;
    }
    let (grace, delay) = (scene.topology.grace?, scene.topology.drain_delay?);
    let needed = NamedQuantity::new("drain delay and total", scene.total().plus(delay));
    let inequality =
        Check::new(FindingId::DrainGrace, NamedQuantity::new("grace", grace), Relation::AtLeast, needed.clone());
    let least = needed.quantity.plus(margin(needed.quantity, Quantity::Unlimited)).rounded_up();
    inequality.with_margin().or_explain(Severity::Warn, || Explanation {
        reason: "the process ends while the slowest calls still run",
        client_sees: "502 of the load balancer for what was cut, at every rollout",
        suggestion: match least {
            Quantity::Unlimited => "a total, so that there is an end to wait for".to_owned(),
            least => format!("the grace to at least {least}"),
        },
        mitigation: None,
    })
}
