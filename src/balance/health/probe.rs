//! The state of the checks of one address, and its publication to the pools that name it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::time::Instant;

use super::machine::{Machine, Schedule};
use super::schedule::Lane;
use crate::balance::agent_words::CheckResult;
use crate::balance::check_report::CheckRecord;
use crate::balance::endpoint::Health;
use crate::balance::handle::BalanceHandle;
use crate::balance::member::Member;
use crate::balance::pool::locked;

/// Identity of a checked address: the addresses of a member, or its key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Address {
    Key(Arc<str>),
    Addresses(Box<[SocketAddr]>),
}

impl Address {
    pub(super) fn of(member: &Member) -> Self {
        if member.addresses.is_empty() {
            return Self::Key(member.key.clone());
        }
        let mut addresses: Box<[_]> = member.addresses.as_slice().into();
        addresses.sort_unstable();
        Self::Addresses(addresses)
    }
}

/// The checks of one address.
pub(super) struct Probe {
    pub(super) address: Address,
    pub(super) member: Arc<Member>,
    machine: Machine,
    weight_percent: u32,
    last: Option<Arc<CheckRecord>>,
    pub(super) lane: Lane,
    /// When the next check is due; `None` while one runs.
    pub(super) due: Option<Instant>,
    /// The pools that name the address, each with the key of the member.
    pub(super) users: Vec<(u64, Arc<str>)>,
}

impl Probe {
    pub(super) fn new(address: Address, member: Arc<Member>, due: Instant, user: (u64, Arc<str>)) -> Self {
        Self {
            address,
            member,
            machine: Machine::new(),
            weight_percent: 100,
            last: None,
            lane: Lane::Slow,
            due: Some(due),
            users: vec![user],
        }
    }

    /// Records the result of a check. Returns the health before and after it, if it has changed.
    pub(super) fn record(&mut self, record: &Arc<CheckRecord>, schedule: &Schedule) -> Option<[Health; 2]> {
        let before = self.machine.health();
        let change = self.machine.on_result(record.report.verdict, schedule);
        if let Some(percent) = record.report.weight_percent {
            self.weight_percent = percent;
        } else if record.report.verdict == CheckResult::Pass {
            self.weight_percent = 100;
        }
        self.last = Some(record.clone());
        change.map(|health| [before, health])
    }

    /// Returns the time from the beginning of the last check to the beginning of the next one.
    pub(super) fn interval(&self, schedule: &Schedule) -> Duration {
        self.machine.interval(schedule, fastrand::u32(..))
    }

    /// Publishes health and weight to a pool, but never touches its circuits: only calls close what calls have opened.
    ///
    /// Returns whether the weight has changed.
    pub(super) fn publish(&self, pool: &BalanceHandle, key: &str) -> bool {
        let Some(endpoint) = pool.endpoint(key) else { return false };
        if endpoint.set_health(self.machine.health()) {
            pool.state.stale.store(true, Relaxed);
        }
        if let Some(record) = &self.last {
            *locked(&endpoint.last_check) = Some(record.clone());
        }
        endpoint.set_weight_percent(self.weight_percent.min(1000))
    }
}

/// Logs a change of health.
pub(super) fn report(upstream: &str, endpoint: &str, [before, health]: [Health; 2], record: &CheckRecord) {
    let (reason, duration_ms) = (record.report.text(), u64::try_from(record.took.as_millis()).unwrap_or(u64::MAX));
    let status = record.report.status();
    match health {
        Health::Unhealthy => tracing::warn!(
            target: "tower_upstream", upstream, endpoint, reason, status, duration_ms,
            "health checks failed: the endpoint takes no calls"
        ),
        Health::Draining => tracing::warn!(
            target: "tower_upstream", upstream, endpoint, reason, status, duration_ms,
            "the endpoint asked for no new calls"
        ),
        // the usual case of a newcomer
        _ if before == Health::Unknown => tracing::debug!(
            target: "tower_upstream", upstream, endpoint, status, duration_ms,
            "health checks passed"
        ),
        _ => tracing::info!(
            target: "tower_upstream", upstream, endpoint, status, duration_ms,
            "health checks passed: the endpoint takes calls again"
        ),
    }
}
