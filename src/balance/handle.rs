//! The handle of a pool, and its snapshots.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::check_report::CheckRecord;
use super::endpoint::{EndpointState, Health};
use super::levels::ALL;
use super::member::Member;
use super::membership::{Changes, InvalidMembers, Membership, SnapshotOutcome, SourceStatus};
use super::outlier::Outlier;
use super::pool::{Follow, PoolState, locked};
use crate::breaker::{BreakerPolicy, CircuitHandle, CircuitSnapshot};
use crate::limit::{LimitHandle, LimitSnapshot};

/// Changes and observes the endpoints of a [`Balance`](super::Balance); clones refer to the same pool.
#[derive(Clone)]
pub struct BalanceHandle {
    pub(super) state: Arc<PoolState>,
    pub(super) pool: Arc<dyn Follow>,
}

/// Snapshot of a pool.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct BalanceSnapshot {
    /// The pool's name.
    pub name: Arc<str>,
    /// The endpoints, in the order of the members.
    pub endpoints: Vec<EndpointSnapshot>,
    /// The number of endpoints that are not available.
    pub unavailable: usize,
    /// The number of levels that panic: fewer than half of their endpoints are available, and no other level can take
    /// over.
    pub panicking: usize,
    /// The state of the source of the members.
    pub source: SourceStatus,
}

/// Snapshot of an endpoint.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct EndpointSnapshot {
    /// The member that describes the endpoint.
    pub member: Arc<Member>,
    /// Whether it is available: its circuit is closed, no health check has found it unhealthy or draining, and it is
    /// neither warming up nor ejected as an outlier. At its concurrency limit it counts as available, but is not
    /// chosen.
    pub is_available: bool,
    /// Its health; [`Health::Unknown`] without health checks.
    pub health: Health,
    /// Whether its warm-up is running, before which it takes no calls.
    pub is_warming_up: bool,
    /// The part of its weight, in percent, that it takes, as its health check or
    /// [`set_weight_percent`](BalanceHandle::set_weight_percent) asked for.
    pub weight_percent: u32,
    /// Its latest health check, if there was one.
    pub last_check: Option<Arc<CheckRecord>>,
    /// Its difference from the others of its level, if it is an outlier.
    pub outlier: Option<Outlier>,
    /// Whether it is ejected because it was an outlier.
    pub is_ejected_as_outlier: bool,
    /// The number of calls whose response has not ended.
    pub in_flight: u32,
    /// The moving average of its response times, in which a failure counts as at least 5 s; `None` before the first.
    pub latency: Option<Duration>,
    /// Its circuit, if there is one.
    pub circuit: Option<CircuitSnapshot>,
    /// Its concurrency limit, if there is one.
    pub limit: Option<LimitSnapshot>,
}

impl BalanceHandle {
    /// Returns the pool's name.
    pub fn name(&self) -> &str {
        &self.state.name
    }

    /// Replaces the members.
    ///
    /// Members that keep their key and addresses keep their state. Endpoints of removed members finish their calls.
    ///
    /// # Errors
    ///
    /// The list is empty, has two members with one key or more than 65,536, or every active member has the weight 0.
    /// The members are unchanged then.
    pub fn replace(&self, members: impl IntoIterator<Item = Member>) -> Result<SnapshotOutcome, InvalidMembers> {
        let members = members.into_iter().collect();
        self.change(|membership, now| membership.replace(members, now))
    }

    /// Replaces the members by a snapshot of a source that may be wrong, such as DNS.
    ///
    /// Like [`replace`](Self::replace), but a snapshot of less than half of the current members is applied only if the
    /// next one is equal to it.
    ///
    /// # Errors
    ///
    /// As for [`replace`](Self::replace).
    pub fn update(&self, members: impl IntoIterator<Item = Member>) -> Result<SnapshotOutcome, InvalidMembers> {
        let members = members.into_iter().collect();
        self.change(|membership, now| membership.update(members, now))
    }

    /// Applies changes of a source as one [`update`](Self::update).
    pub(super) fn merge(&self, changes: &Changes) -> Result<SnapshotOutcome, InvalidMembers> {
        self.change(|membership, now| membership.merge(changes, now))
    }

    /// Adds a member, or replaces the one with its key.
    ///
    /// # Errors
    ///
    /// The pool already has 65,536 members.
    pub fn upsert(&self, member: Member) -> Result<SnapshotOutcome, InvalidMembers> {
        self.change(|membership, now| membership.upsert(member, now))
    }

    /// Removes the member with this key, if there is one. The last member of a weight above 0 drains instead,
    /// until another one is added.
    pub fn remove(&self, key: &str) -> SnapshotOutcome {
        let removed = self.change(|membership, now| Ok(membership.remove(key, now)));
        removed.unwrap_or(SnapshotOutcome::Unchanged)
    }

    /// Records and logs that the source of the members has failed or ended: the members stay.
    ///
    /// For a source of your own; those of this crate call it.
    pub fn source_failed(&self, problem: impl fmt::Display) {
        let mut membership = locked(&self.state.membership);
        membership.fail(&problem);
        let (members, age) = (membership.members().len(), membership.status(Instant::now()).age);
        drop(membership);
        tracing::warn!(
            target: "tower_upstream",
            upstream = &*self.state.name,
            members,
            age_s = age.as_secs(),
            "the source of the members failed, they stay as they are: {problem}"
        );
    }

    /// Returns a receiver with the current members, which is notified of each change.
    pub fn members(&self) -> watch::Receiver<Arc<[Arc<Member>]>> {
        self.state.members.subscribe()
    }

    /// Sets the health of the endpoint with this key, as a health check of your own found it; ignored without such an
    /// endpoint.
    ///
    /// [`HealthChecks`](super::HealthChecks) of the pool replace it after each check.
    pub fn set_health(&self, key: &str, health: Health) {
        if self.endpoint(key).is_some_and(|endpoint| endpoint.set_health(health)) {
            self.state.stale.store(true, Relaxed);
        }
    }

    /// Sets the part of its weight, in percent, that the endpoint with this key takes (default 100; at most 1,000);
    /// ignored without such an endpoint.
    pub fn set_weight_percent(&self, key: &str, percent: u32) {
        if self.endpoint(key).is_some_and(|endpoint| endpoint.set_weight_percent(percent.min(1000))) {
            self.follow();
        }
    }

    /// Sets the part of their weight that the members of a group take, clamped to 0 to 1 (default 1). Does nothing if it is NaN.
    ///
    /// A [`Shift`](super::Shift) between two groups sets it by evidence.
    pub fn set_group_share(&self, group: &str, share: f64) {
        self.set_group_shares(&[(group, share)]);
    }

    pub(super) fn set_group_shares(&self, shares: &[(&str, f64)]) {
        let mut groups = locked(&self.state.groups);
        let mut is_change = false;
        // a quotient of nothing by nothing must not stop all calls
        for (group, share) in shares.iter().filter(|(_, share)| !share.is_nan()) {
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a clamped fraction
            let share = (share.clamp(0.0, 1.0) * f64::from(ALL)).ceil() as u32;
            let before = if share == ALL { groups.remove(*group) } else { groups.insert((*group).into(), share) };
            is_change |= before.unwrap_or(ALL) != share;
        }
        drop(groups);
        if is_change {
            self.follow();
        }
    }

    /// Replaces the policy of all circuits, present and later ones. They keep their states.
    ///
    /// Does nothing for a pool without circuits.
    pub fn set_circuit_policy(&self, policy: BreakerPolicy) {
        // no endpoint is made with the policy of before in the meantime
        let _membership = locked(&self.state.membership);
        let endpoints = locked(&self.state.endpoints);
        let mut current = locked(&self.state.circuit);
        if current.is_some() {
            *current = Some(policy);
            endpoints
                .values()
                .filter_map(|endpoint| endpoint.circuit.as_ref())
                .for_each(|circuit| circuit.set_policy(policy));
        }
    }

    /// Returns the circuit of the endpoint with this key; `None` if there is no such endpoint, or a pool without
    /// circuits.
    pub fn circuit(&self, key: &str) -> Option<CircuitHandle> {
        self.endpoint(key)?.circuit.clone()
    }

    /// Returns a snapshot; `now` is the current time of tokio's clock.
    pub fn snapshot(&self, now: Instant) -> BalanceSnapshot {
        let membership = locked(&self.state.membership);
        let (members, source) = (membership.members().clone(), membership.status(now));
        drop(membership);
        let endpoints = locked(&self.state.endpoints);
        let states: Vec<_> = members.iter().filter_map(|member| endpoints.get(&member.key).cloned()).collect();
        drop(endpoints);
        BalanceSnapshot {
            name: self.state.name.clone(),
            endpoints: states.iter().map(|state| state.snapshot(now)).collect(),
            unavailable: self.state.unavailable.load(Relaxed),
            panicking: self.state.panicking.load(Relaxed),
            source,
        }
    }

    pub(super) fn endpoint(&self, key: &str) -> Option<Arc<EndpointState>> {
        locked(&self.state.endpoints).get(key).cloned()
    }

    fn change(
        &self,
        change: impl FnOnce(&mut Membership, Instant) -> Result<SnapshotOutcome, InvalidMembers>,
    ) -> Result<SnapshotOutcome, InvalidMembers> {
        let now = Instant::now();
        // held until the endpoints have followed: concurrent changes take effect in one order
        let mut membership = locked(&self.state.membership);
        let mut changed = membership.clone();
        let mut removed = None;
        let outcome = change(&mut changed, now);
        if outcome == Ok(SnapshotOutcome::Applied) {
            let members = changed.members().clone();
            // the factory of the user may panic: then the members are unchanged
            removed = Some(self.pool.follow(&members, now));
            self.state.members.send_replace(members);
        }
        *membership = changed;
        drop(membership);
        drop(removed);
        outcome
    }

    /// Applies the weights of members again.
    pub(super) fn follow(&self) {
        let membership = locked(&self.state.membership);
        let before = self.pool.follow(membership.members(), Instant::now());
        drop(membership);
        drop(before);
    }
}

impl EndpointState {
    fn snapshot(&self, now: Instant) -> EndpointSnapshot {
        let average = self.load.average(self.at(now));
        EndpointSnapshot {
            member: self.member(),
            is_available: self.is_available(),
            health: self.health(),
            is_warming_up: self.is_warming(),
            weight_percent: self.weight_percent(),
            last_check: locked(&self.last_check).clone(),
            outlier: self.review().finding,
            is_ejected_as_outlier: self.is_ejected(),
            in_flight: self.load.in_flight(),
            latency: (average > 0.0).then(|| Duration::from_secs_f32(average)),
            circuit: self.circuit.as_ref().map(|circuit| circuit.snapshot(now)),
            limit: self.limit.as_ref().map(LimitHandle::snapshot),
        }
    }
}

impl fmt::Debug for BalanceHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BalanceHandle").field("name", &self.state.name).finish_non_exhaustive()
    }
}
