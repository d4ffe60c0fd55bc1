//! Checks the timeouts of a gateway against each other and against those of the hops around it.
//!
//! Each timeout may be right by itself; clients get wrong responses when two of them are in the wrong order.
//! [`Timeouts::check`] compares the configured timeouts and the declared environment, a [`Topology`], by 18 inequalities, and
//! reports each one that does not hold: both numbers, the reason, the effect on clients, and a suggestion.
//! [`Timeouts::checked`] returns the same as an error.
//!
//! ```
//! use std::time::Duration;
//! use tower_upstream::alignment::{Severity, peers};
//! use tower_upstream::alignment::Topology;
//! use tower_upstream::timeout::Timeouts;
//!
//! let topology = Topology::new()
//!     .load_balancer(peers::AWS_ALB) // idle limit 60 s
//!     .server(peers::AXUM_NEXT) // closes idle connections after 30 s
//!     .upstream(peers::NODE) // keep-alive 5 s
//!     .pool_idle(peers::HYPER_UTIL_POOL_IDLE); // 90 s
//!
//! // the total is 60 s by default: the load balancer would give up at the same moment
//! let report = Timeouts::new().check(&topology);
//! let found: Vec<_> = report.findings().iter().map(|finding| (finding.severity(), finding.id())).collect();
//! assert_eq!(
//!     found,
//!     [
//!         (Severity::Refuse, "total_load_balancer"),
//!         (Severity::Refuse, "pool_idle_upstream_keep_alive"),
//!         (Severity::Warn, "server_keep_alive_load_balancer"),
//!     ]
//! );
//! assert_eq!(report.findings()[0].suggestion(), "the total below 57.142 s, or a longer idle limit there");
//!
//! let topology = topology.pool_idle(Duration::from_secs(3));
//! let timeouts = Timeouts::new().total(Duration::from_secs(45));
//! assert!(timeouts.checked(&topology).is_ok()); // the warning stays
//! ```
//!
//! # The inequalities
//!
//! `d` is the margin for messages in flight, clocks and scheduling: 5 % of the smaller number, at least 50 ms. *Refuse*
//! means that clients get wrong responses, *warn* that it works but not as intended, *clamp* that the crate corrects it at run
//! time. An attempt without a timeout of its own has the total's; `max_duration` counts as the total if it is shorter. Rules
//! about undeclared numbers are skipped.
//!
//! | no. | id | inequality | otherwise | it prevents |
//! |---|---|---|---|---|
//! | 1 | `connect_attempt` | connect < attempt; connect <= attempt / 2 | refuse; warn | an attempt that is over before it is connected |
//! | 2 | `head_attempt_total` | head <= attempt <= total | refuse | timeouts that never apply |
//! | 3 | `attempts_total` | attempts x attempt + longest backoff <= total | warn, clamped | retries that never run |
//! | 4 | `total_caller` | total + d < client's timeout | refuse; clamp if it comes in a header | work for a client that has disconnected |
//! | 5 | `upstream_timeout_attempt` | upstream's own timeout + d <= attempt and head | warn | a 504 of the gateway that hides the upstream's 503 |
//! | 6 | `total_load_balancer` | total + d < load balancer's idle limit | refuse | a 504 of the load balancer instead of our response |
//! | 7 | `pool_idle_upstream_keep_alive` | pool's idle limit + d < upstream's keep-alive, d >= 1 s | refuse; warn from 90 s if unknown | 502 `stale_connection` |
//! | 8 | `server_keep_alive_load_balancer` | our server's keep-alive > load balancer's idle limit + d | refuse; warn for a library's default | a 502 of the load balancer |
//! | 9 | `body_idle_stream` | longest gap < body idle < load balancer's idle limit | warn | streams that are cut |
//! | 10 | `stream_total` | a streaming route is [`unbounded`](Timeouts::unbounded); its body idle is limited | refuse; warn | streams that end at a fixed age, or never |
//! | 11 | `breaker_attempt` | open >= attempt; window >= 2 x attempt; probe <= attempt | warn | outcomes that fall into a later window |
//! | 12 | `breaker_min_requests` | rate x window >= smallest number of calls | warn | a circuit that can never open |
//! | 13 | `budget_window_total` | budget's window >= total | warn | withdrawals without their deposits |
//! | 14 | `retry_after_total` | longest `Retry-After` <= total | clamp | a wait beyond the deadline |
//! | 15 | `hedge_attempt` | hedge delay < attempt; hedges draw on the retry budget | refuse | twice the load during an overload |
//! | 16 | `drain_grace` | drain delay >= propagation; grace >= drain delay + total + d | refuse; warn | 502s at every rollout |
//! | 17 | `replay_memory` | replay cap x requests in flight <= memory | warn | buffers without a bound |
//! | 18 | `learned_quantile` | 1 - quantile > share of hangs | clamp | a timeout that is learned from hangs |
//!
//! A preset hop declares the documented defaults. Where these depend on a version and on settings that were not declared
//! ([`peers::AXUM_NEXT`], [`peers::HYPER_TIMER`]), number 8 only warns;
//! `AXUM_NEXT.keep_alive(limit)` declares it.
//!
//! # At run time
//!
//! The pool of this crate's client learns how long an upstream keeps idle connections, from `Keep-Alive` fields and from
//! connections that were closed. For other clients, [`TimeoutLayer::pool_idle`](crate::timeout::TimeoutLayer::pool_idle) warns.

mod finding;
#[cfg(feature = "serde")]
mod json;
#[cfg_attr(not(feature = "client"), allow(dead_code))] // without it, fields are only parsed
mod keep_alive;
pub mod peers;
mod quantity;
mod report;
mod rules;
mod timeline;
mod topology;

pub use self::finding::{Finding, Severity};
pub(crate) use self::keep_alive::KeepAliveEstimator;
pub use self::report::{MisalignedTimeouts, Report};
pub(crate) use self::rules::pool_idle_finding;
pub use self::topology::Topology;

use crate::timeout::Timeouts;

impl Timeouts {
    /// Checks these timeouts against each other and against the declared environment.
    pub fn check(&self, topology: &Topology) -> Report {
        Report::new(self, topology)
    }

    /// Like [`check`](Self::check), but returns an error if anything is refused.
    ///
    /// # Errors
    ///
    /// If anything is refused; it prints what to change.
    pub fn checked(&self, topology: &Topology) -> Result<Report, MisalignedTimeouts> {
        let report = self.check(topology);
        if report.is_aligned() { Ok(report) } else { Err(MisalignedTimeouts::new(report)) }
    }
}
