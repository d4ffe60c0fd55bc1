//! How our limits lie to those of the neighbours: 4, 6, 7, 8 and 16.

use std::time::Duration;

use super::super::amount::{Amount, Spoken, below, margin};
use super::super::finding::{Finding, FindingId, Quantity, Relation, Severity};
use super::super::neighbours::{HYPER_UTIL_POOL_IDLE, Standing};
use super::super::topology::Caller;
use super::{Inequality, Said, Scene};

/// Keep-alive is told in whole seconds, and one end's second may begin later than the other's.
const POOL_MARGIN: Duration = Duration::from_secs(1);

pub(super) fn look(scene: &Scene<'_>, found: &mut Vec<Finding>) {
    found.extend(caller(scene));
    found.extend(balancer(scene));
    found.extend(pool(scene));
    found.extend(server(scene));
    found.extend(drain(scene));
    found.extend(grace(scene));
}

fn caller(scene: &Scene<'_>) -> Option<Finding> {
    if scene.is_unbounded() {
        return None;
    }
    let (limit, severity, deed) = match scene.topology.caller? {
        Caller::Declared(limit) => (limit, Severity::Refuse, None),
        Caller::Deadline(usual) => {
            (usual, Severity::Clamp, Some("the total shrinks to what the request's deadline leaves, less the margin"))
        }
    };
    let total = Quantity::new("total", scene.total());
    let theirs = Quantity::new("caller's timeout", limit);
    let inequality = Inequality::new(FindingId::TotalCaller, total, Relation::Below, theirs).with_margin();
    inequality.or(severity, || Said {
        why: "the caller leaves first, and the upstream goes on working for nobody",
        sees: "its own timeout (our log: 499 client_closed), never the cause",
        set: format!("the total below {}", Spoken(below(limit))),
        at_run_time: deed,
    })
}

fn balancer(scene: &Scene<'_>) -> Option<Finding> {
    if scene.is_unbounded() {
        return None;
    }
    let (name, patience) = scene.topology.patience()?;
    let total = Quantity::new("total", scene.total());
    let theirs = Quantity::new(name, patience);
    let inequality = Inequality::new(FindingId::TotalLoadBalancer, total, Relation::Below, theirs).with_margin();
    let most = Spoken(below(patience.time().unwrap_or_default()));
    inequality.or(Severity::Refuse, || Said {
        why: "the load balancer gives up first, and its answer says nothing of the upstream",
        sees: "the load balancer's 504 or 502 in place of ours",
        set: format!("the total below {most}, or a longer idle limit there"),
        at_run_time: None,
    })
}

fn pool(scene: &Scene<'_>) -> Option<Finding> {
    let idle = scene.topology.pool_idle?;
    match scene.topology.upstream.and_then(|upstream| upstream.keep_alive) {
        Some(Amount::Time(keep_alive)) => pool_and(idle, keep_alive, Severity::Refuse),
        Some(_) => None,
        None => pool_alone(idle),
    }
}

/// The finding about a pool that cannot be told what was learnt of its upstream's keep-alive.
///
/// For clients of others (hyper-util's pool keeps 90 s): a warning where the idle limit of their pool is
/// too long for that keep-alive, or where nothing was learnt and the limit is 90 s or more.
///
/// ```
/// use std::time::Duration;
/// use tower_upstream::timeout::alignment::{neighbours::HYPER_UTIL_POOL_IDLE, pool_idle_finding};
///
/// let finding = pool_idle_finding(HYPER_UTIL_POOL_IDLE, Duration::from_secs(5)).unwrap();
/// assert_eq!(finding.set(), "the pool's idle limit below 4 s");
/// assert_eq!(pool_idle_finding(Duration::from_secs(3), Duration::from_secs(5)), None);
/// ```
pub fn pool_idle_finding(pool_idle: Duration, learnt: impl Into<Option<Duration>>) -> Option<Finding> {
    match learnt.into() {
        Some(keep_alive) => pool_and(pool_idle, keep_alive, Severity::Warn),
        None => pool_alone(pool_idle),
    }
}

fn pool_and(idle: Duration, keep_alive: Duration, severity: Severity) -> Option<Finding> {
    let ours = Quantity::new("pool's idle limit", idle);
    let theirs = Quantity::new("upstream's keep-alive", keep_alive);
    let inequality = Inequality::new(FindingId::PoolIdleUpstreamKeepAlive, ours, Relation::Below, theirs);
    let most = below(keep_alive).min(keep_alive.saturating_sub(POOL_MARGIN));
    inequality.with_margin_of(POOL_MARGIN).or(severity, || Said {
        why: "a request goes out on a connection that the upstream is just closing",
        sees: "502 stale_connection, the rarer the more traffic there is",
        set: if most.is_zero() {
            format!("a keep-alive above {} at the upstream, or no pool", Spoken(POOL_MARGIN))
        } else {
            format!("the pool's idle limit below {}", Spoken(most))
        },
        at_run_time: Some("this crate's pool learns from Keep-Alive fields and from connections that died"),
    })
}

/// Nothing is known of the upstream: only the usual default is worth a word.
fn pool_alone(idle: Duration) -> Option<Finding> {
    let ours = Quantity::new("pool's idle limit", idle);
    let theirs = Quantity::new("usual default, of upstreams unknown", HYPER_UTIL_POOL_IDLE);
    let inequality = Inequality::new(FindingId::PoolIdleUpstreamKeepAlive, ours, Relation::Below, theirs);
    inequality.or(Severity::Warn, || Said {
        why: "few servers keep an idle connection so long (Node.js and Uvicorn 5 s, Gunicorn 2 s, nginx 75 s)",
        sees: "502 stale_connection, the rarer the more traffic there is",
        set: "upstream_keep_alive(..), and the pool's idle limit a second below it".to_owned(),
        at_run_time: Some("this crate's pool learns from Keep-Alive fields and from connections that died"),
    })
}

fn server(scene: &Scene<'_>) -> Option<Finding> {
    let (server, balancer) = (scene.topology.server?, scene.topology.balancer?);
    let pooled = balancer.pools?;
    let ours = Quantity::new(format!("keep-alive of {}", server.name), server.keep_alive?);
    let theirs = Quantity::new(format!("pooled connection of {}", balancer.name), pooled);
    let severity = match server.standing {
        Standing::Declared => Severity::Refuse,
        Standing::Assumed => Severity::Warn,
    };
    let id = FindingId::ServerKeepAliveLoadBalancer;
    let inequality = Inequality::new(id, ours, Relation::Above, theirs).with_margin();
    let least = pooled.plus(margin(pooled, Amount::Unlimited)).rounded_up();
    inequality.or(severity, || Said {
        why: "our server closes a connection on which the load balancer just sends",
        sees: "the load balancer's 502, with nothing in our log",
        set: format!("our server's keep-alive (hyper: header_read_timeout) above {least}"),
        at_run_time: None,
    })
}

fn drain(scene: &Scene<'_>) -> Option<Finding> {
    let delay = Quantity::new("drain delay", scene.topology.drain_delay?);
    let spread = scene.topology.propagation?;
    let theirs = Quantity::new("load balancer's propagation", spread);
    Inequality::new(FindingId::DrainGrace, delay, Relation::AtLeast, theirs).or(Severity::Refuse, || Said {
        why: "the process stops to listen while the load balancer still sends to it",
        sees: "the load balancer's 502 at every rollout",
        set: format!("the drain delay to at least {}", Spoken(spread)),
        at_run_time: None,
    })
}

fn grace(scene: &Scene<'_>) -> Option<Finding> {
    if scene.is_unbounded() {
        return None;
    }
    let (grace, delay) = (scene.topology.grace?, scene.topology.drain_delay?);
    let needed = Quantity::new("drain delay and total", scene.total().plus(delay));
    let inequality =
        Inequality::new(FindingId::DrainGrace, Quantity::new("grace", grace), Relation::AtLeast, needed.clone());
    let least = needed.amount.plus(margin(needed.amount, Amount::Unlimited)).rounded_up();
    inequality.with_margin().or(Severity::Warn, || Said {
        why: "the process ends while the slowest exchanges still run",
        sees: "502 of the load balancer for what was cut, at every rollout",
        set: match least {
            Amount::Unlimited => "a total, so that there is an end to wait for".to_owned(),
            least => format!("the grace to at least {least}"),
        },
        at_run_time: None,
    })
}
