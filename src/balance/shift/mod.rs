//! Shifts of calls from one group of members to another: blue-green and canary releases.

mod machine;
mod test;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt;
use std::ops::Add;
use std::pin::pin;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use futures_util::future::{Either, select};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout};

use self::machine::{Machine, Observation, SlowAfter, group_shares};
use super::endpoint::EndpointState;
use super::handle::BalanceHandle;
use super::member::MemberState;
use super::outlier::{Counts, ONE_CALL};
use super::pool::{Follow, PoolState, locked};

/// The time between two observations of the calls.
const INTERVAL: Duration = Duration::from_secs(1);

/// A shift of calls from one group of members to another, step by step.
///
/// In each step the new group takes a part of the calls. Sequential tests compare two rates of both groups: of failed
/// calls, and of calls slower than the old group's 99th percentile.
///
/// | result for the new group in this step | state |
/// |---|---|
/// | fewer than 20 calls, or no clear result | [undecided](ShiftState::Undecided): the step goes on |
/// | it fails more often, beyond chance (0.1 %) | [rolled back](ShiftState::RolledBack): the old group takes all calls |
/// | it is slower, beyond chance | [held](ShiftState::Held): the step goes on until it is no longer slower |
/// | twice the old odds of a failure and 2 percentage points more are excluded, and likewise for slow calls (3 points) | [accepted](ShiftState::Accepted): the next step begins when the time of this one has passed |
///
/// The old group is the control: an outage that affects both groups equally rolls nothing back. An error of the client,
/// such as a 404, counts as a success of the endpoint; a call that the client cancelled does not count.
///
/// The new group never takes more than its available endpoints can bear: 1.4 times their weight, relative to that of
/// the old group. Without an available member of the new group, the shift is held.
///
/// ```
/// # async fn f(handle: tower_upstream::balance::BalanceHandle) {
/// use std::time::Duration;
/// use tower_upstream::balance::Shift;
///
/// // members of the group `v2` may be added now or later
/// let shift = handle.shift(Shift::new("v1", "v2").steps([0.05, 0.5]).step_time(Duration::from_secs(300)));
/// let mut snapshots = shift.snapshots();
/// while !snapshots.borrow_and_update().state.is_over() {
///     println!("{:?}", *snapshots.borrow());
///     if snapshots.changed().await.is_err() {
///         break;
///     }
/// }
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct Shift {
    from: Arc<str>,
    to: Arc<str>,
    steps: Vec<f64>,
    step_time: Duration,
}

impl Shift {
    /// Creates a shift from one group to another, in steps of 1 %, 5 %, 25 % and 50 % of the calls, of at least 60 s
    /// each.
    pub fn new(from: impl Into<Arc<str>>, to: impl Into<Arc<str>>) -> Self {
        let steps = vec![0.01, 0.05, 0.25, 0.5];
        Self { from: from.into(), to: to.into(), steps, step_time: Duration::from_secs(60) }
    }

    /// Sets the part of the calls that the new group takes in each step, clamped to 0 to 1 (default 0.01, 0.05, 0.25
    /// and 0.5). After the last step it takes all calls.
    pub fn steps(mut self, shares: impl IntoIterator<Item = f64>) -> Self {
        self.steps = shares.into_iter().map(|share| if share.is_nan() { 0.0 } else { share.clamp(0.0, 1.0) }).collect();
        self
    }

    /// Sets the shortest time of a step (default 60 s).
    pub fn step_time(mut self, time: Duration) -> Self {
        self.step_time = time;
        self
    }
}

/// State of a [`Shift`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ShiftState {
    /// There is no clear result for this step yet.
    Undecided,
    /// The new group is accepted, and the time of this step has not passed.
    Accepted,
    /// The shift stays at its step.
    Held(ShiftReason),
    /// The old group takes all calls.
    RolledBack(ShiftReason),
    /// The new group takes all calls.
    Completed,
}

impl ShiftState {
    /// Returns whether the shift has ended: no further step follows.
    pub fn is_over(self) -> bool {
        matches!(self, Self::RolledBack(_) | Self::Completed)
    }
}

/// Reason why a shift is held or rolled back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ShiftReason {
    /// A method of [`ShiftHandle`] was called.
    Requested,
    /// The new group fails more often than the old one.
    Failures,
    /// The new group is slower than the old one.
    Latency,
    /// Too few endpoints of the new group are available for the calls of the step.
    Capacity,
}

/// Snapshot of a shift.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ShiftSnapshot {
    /// The state.
    pub state: ShiftState,
    /// The index of the step, from 0.
    pub step: usize,
    /// The time since the step began.
    pub step_age: Duration,
    /// The part of the calls that the new group takes.
    pub share: f64,
    /// The calls of the old group in this step.
    pub old: CallCounts,
    /// The calls of the new group in this step.
    pub new: CallCounts,
    /// The evidence that the new group fails more often.
    pub failures: Evidence,
    /// The evidence that the new group is slower.
    pub latency: Evidence,
    /// The response time that about 1 % of the old group's calls exceed; `None` while it is not known.
    pub slow_after: Option<Duration>,
}

/// Numbers of calls of one group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CallCounts {
    /// Calls that endpoints ended, by a response or a failure. Calls that a client or this gateway ended do not count.
    pub calls: u64,
    /// Failed calls among them: errors, 5xx and 429.
    pub failures: u64,
    /// Successes with a response time above [`slow_after`](ShiftSnapshot::slow_after).
    pub slow: u64,
}

impl CallCounts {
    fn between(before: Counts, after: Counts) -> Self {
        let failures = u64::from(after.failures.wrapping_sub(before.failures));
        let calls = after.calls.wrapping_sub(before.calls) / ONE_CALL;
        // a call whose response body fails is taken back before it is counted again
        let calls = if calls > u64::MAX / ONE_CALL / 2 { 0 } else { calls };
        Self { calls: calls.max(failures), failures, slow: u64::from(after.slow.wrapping_sub(before.slow)) }
    }
}

impl Add for CallCounts {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { calls: self.calls + other.calls, failures: self.failures + other.failures, slow: self.slow + other.slow }
    }
}

/// Evidence of a sequential test: logarithms of likelihood ratios, 0 at first.
///
/// Both ratios are those of the hypothesis that the new group is worse to another hypothesis. Sources: Turner, Ly,
/// Grünwald, "Generic E-variables for exact sequential k-sample tests that allow for optional stopping" (2024); Wald,
/// "Sequential tests of statistical hypotheses" (1945).
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Evidence {
    /// The ratio to the hypothesis that both groups have the same rate, whatever it is. It is an e-value: valid at any
    /// time.
    pub worse: f64,
    /// The value of `worse` from which on the new group is rejected: ln 1,000.
    pub reject_at: f64,
    /// The ratio to the hypothesis that the new group has the rate of the old one (Wald's test).
    pub alike: f64,
    /// The value of `alike` at or below which the new group is accepted: ln 1/20.
    pub accept_at: f64,
}

/// Observes and controls a [`Shift`]; clones refer to the same one.
///
/// The shift continues without its handle. As long as a handle exists, its methods take effect also after the end: a
/// completed shift can be rolled back.
#[derive(Clone)]
pub struct ShiftHandle {
    shared: Arc<Shared>,
}

struct Shared {
    machine: Mutex<Machine>,
    verdict: Notify,
    snapshots: watch::Sender<ShiftSnapshot>,
}

impl ShiftHandle {
    /// Returns a receiver with the latest snapshot, which is notified of each new one (about one a second).
    pub fn snapshots(&self) -> watch::Receiver<ShiftSnapshot> {
        self.shared.snapshots.subscribe()
    }

    /// Holds the shift at its step. It is still rolled back if the new group fails more often.
    pub fn hold(&self) {
        self.decide(|machine| machine.hold(true));
    }

    /// Ends a [`hold`](Self::hold).
    pub fn resume(&self) {
        self.decide(|machine| machine.hold(false));
    }

    /// Rolls the shift back: the old group takes all calls.
    pub fn roll_back(&self) {
        self.decide(|machine| machine.end(ShiftState::RolledBack(ShiftReason::Requested)));
    }

    /// Completes the shift: the new group takes all calls, or as many as its available endpoints can bear.
    pub fn complete(&self) {
        self.decide(|machine| machine.end(ShiftState::Completed));
    }

    fn decide(&self, verdict: impl FnOnce(&mut Machine)) {
        verdict(&mut locked(&self.shared.machine));
        self.shared.verdict.notify_one();
    }
}

impl BalanceHandle {
    /// Starts a shift between two groups of members, in a task that ends with the pool.
    ///
    /// The first step takes effect at once. Members of other groups, and without a group, keep their weights. A group
    /// may be empty at first: the shift waits for its members and their calls. Run one shift at a time for a group:
    /// each sets the weights of its groups.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn shift(&self, shift: Shift) -> ShiftHandle {
        let now = Instant::now();
        let machine = Machine::new(shift.steps, shift.step_time, now);
        let driver = Driver { from: shift.from, to: shift.to, seen: HashMap::new(), slow_after: SlowAfter::default() };
        let snapshots = watch::Sender::new(snapshot(&machine, None, now));
        let shared = Arc::new(Shared { machine: Mutex::new(machine), verdict: Notify::new(), snapshots });
        let mut driver = driver;
        driver.advance(self, &shared);
        let (state, pool) = (Arc::downgrade(&self.state), Arc::downgrade(&self.pool));
        tokio::spawn(driver.run(state, pool, shared.clone()));
        ShiftHandle { shared }
    }
}

/// Applies a machine's decisions to a pool.
struct Driver {
    from: Arc<str>,
    to: Arc<str>,
    /// The counts of each endpoint at the last observation.
    seen: HashMap<u64, Counts>,
    slow_after: SlowAfter,
}

impl Driver {
    async fn run(mut self, state: Weak<PoolState>, pool: Weak<dyn Follow>, shared: Arc<Shared>) {
        let Some(mut members) = state.upgrade().map(|state| state.members.subscribe()) else { return };
        loop {
            // also after a change of members: a group with more members would take more calls
            let (verdict, changed) = (pin!(shared.verdict.notified()), pin!(members.changed()));
            if let Ok(Either::Right((Err(_), _))) = timeout(INTERVAL, select(verdict, changed)).await {
                return;
            }
            let (Some(state), Some(pool)) = (state.upgrade(), pool.upgrade()) else { return };
            self.advance(&BalanceHandle { state, pool }, &shared);
            if locked(&shared.machine).is_over() && Arc::strong_count(&shared) == 1 {
                return;
            }
        }
    }

    /// Counts the calls since the last observation, and applies the decision.
    fn advance(&mut self, pool: &BalanceHandle, shared: &Shared) {
        let now = Instant::now();
        let (observed, new_weight, average) = self.observe(pool, now);
        self.slow_after.on_observation(observed.old, average);
        let mut machine = locked(&shared.machine);
        let before = (machine.state, machine.step());
        machine.on_observation(observed, now);
        let (share, after) = (machine.share(), (machine.state, machine.step()));
        let snapshot = snapshot(&machine, self.slow_after.get(), now);
        drop(machine);
        let (old_share, new_share) = group_shares(share, observed.old_weight, new_weight);
        pool.set_group_shares(&[(&self.from, old_share), (&self.to, new_share)]);
        if before != after {
            self.report(pool, &snapshot);
        }
        shared.snapshots.send_replace(snapshot);
    }

    /// Returns the calls since the last observation, the weight of the new group, and the median response time of the
    /// old one's endpoints in seconds.
    fn observe(&mut self, pool: &BalanceHandle, now: Instant) -> (Observation, f64, Option<f64>) {
        let endpoints: Vec<_> = locked(&pool.state.endpoints).values().cloned().collect();
        let slow_after = self.slow_after.get().map_or(f32::INFINITY, |slow_after| slow_after.as_secs_f32());
        let (mut observed, mut new_weight, mut averages) = (Observation::default(), 0.0, Vec::new());
        let mut seen = HashMap::with_capacity(self.seen.len());
        for endpoint in &endpoints {
            let member = endpoint.member();
            let is_new = match member.group.as_ref() {
                Some(group) if *group == self.to => true,
                Some(group) if *group == self.from => false,
                _ => continue,
            };
            let counts = endpoint.load.counts();
            // calls from before the shift do not count
            let more = CallCounts::between(self.seen.get(&endpoint.id).copied().unwrap_or(counts), counts);
            seen.insert(endpoint.id, counts);
            endpoint.load.set_slow_after(slow_after);
            let weight = if member.state == MemberState::Active { weight(endpoint, member.weight) } else { 0.0 };
            if is_new {
                observed.new = observed.new + more;
                new_weight += weight;
                observed.available_weight += if endpoint.is_available() { weight } else { 0.0 };
            } else {
                observed.old = observed.old + more;
                observed.old_weight += weight;
                averages.push(f64::from(endpoint.load.average(endpoint.at(now))));
            }
        }
        self.seen = seen;
        averages.retain(|average| *average > 0.0);
        averages.sort_by(f64::total_cmp);
        (observed, new_weight, averages.get(averages.len() / 2).copied())
    }

    fn report(&self, pool: &BalanceHandle, snapshot: &ShiftSnapshot) {
        let (upstream, from, to) = (pool.name(), &*self.from, &*self.to);
        let ShiftSnapshot { state, share, old, new, .. } = snapshot;
        if let ShiftState::RolledBack(reason) = state {
            tracing::warn!(
                target: "tower_upstream", upstream, from, to, ?reason, calls = new.calls, failures = new.failures,
                old_calls = old.calls, old_failures = old.failures, "the shift is rolled back: the old group takes all calls"
            );
        } else {
            let message = match state {
                ShiftState::Held(_) => "the shift is held at its step",
                ShiftState::Completed => "the shift is completed: the new group takes all calls",
                _ => "the shift continues",
            };
            tracing::info!(target: "tower_upstream", upstream, from, to, ?state, share, "{message}");
        }
    }
}

fn weight(endpoint: &EndpointState, weight: u32) -> f64 {
    f64::from(weight) * f64::from(endpoint.weight_percent()) / 100.0
}

fn snapshot(machine: &Machine, slow_after: Option<Duration>, now: Instant) -> ShiftSnapshot {
    ShiftSnapshot {
        state: machine.state,
        step: machine.step(),
        step_age: machine.age(now),
        share: machine.share(),
        old: machine.old,
        new: machine.new,
        failures: machine.failure_evidence(),
        latency: machine.latency_evidence(),
        slow_after,
    }
}

impl fmt::Debug for ShiftHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShiftHandle").field("snapshot", &*self.shared.snapshots.borrow()).finish_non_exhaustive()
    }
}
