//! What an operator sees of a stack, and can do to it while it runs.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::time::{Instant, sleep_until};

use super::builder::{Section, UpstreamBuilder};
use super::check;
use super::core::{Mode, Set};
use super::misconfigured::{Misconfiguration, Misconfigured};
use super::recorder::{Latency, Recorder};
use super::repeat::Repeat;
use super::steering::Steering;
use crate::breaker::{self, CircuitHandle};
use crate::cause::BadGatewayCause;
use crate::deadline::Deadline;
use crate::limit::{LimitHandle, LimitLayer, LimitSnapshot};
use crate::retry::{Balance, RetryBudget};
use crate::timeout::{Estimate, LearnedLimits, Timeouts, Topology};

/// So many changes are remembered, the latest.
const CHANGES: usize = 64;
/// A change's text is cut here, in bytes.
const TEXT: usize = 200;
/// No bypass lasts longer: one that was forgotten must end.
const LONGEST_BYPASS: Duration = Duration::from_secs(3600);

/// Sees into an [`UpstreamLayer`](super::UpstreamLayer) and steers it; clones are of the same stack.
///
/// ```
/// use std::time::Duration;
/// use tower_upstream::UpstreamLayer;
/// use tower_upstream::timeout::Timeouts;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let layer = UpstreamLayer::builder("payments").build().unwrap();
/// let handle = layer.handle();
/// handle.note_change("deploy v42");
/// handle.set_timeouts(Timeouts::new().head(Duration::from_secs(3)).total(Duration::from_secs(10))).unwrap();
/// handle.bypass(Duration::from_secs(60));
/// assert_eq!(handle.snapshot(tokio::time::Instant::now()).in_flight, 0);
/// # }
/// ```
#[derive(Clone)]
pub struct UpstreamHandle {
    shared: Arc<Shared>,
}

struct Shared {
    name: Arc<str>,
    steer: Arc<dyn Steer>,
    topology: Topology,
    recorder: Arc<Recorder>,
    circuit: Option<CircuitHandle>,
    limit: Mutex<Option<LimitHandle>>,
    budget: Option<RetryBudget>,
    learned: Option<Arc<LearnedLimits>>,
    changes: Mutex<VecDeque<Change>>,
}

/// A change that was noted, or made by hand.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Change {
    /// When, by the runtime's clock.
    pub at: Instant,
    /// When, by the wall's.
    pub time: SystemTime,
    /// What, 200 bytes at most.
    pub what: String,
}

/// How a stack stands.
///
/// Each number is exact; beside other threads they may be of different moments.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct UpstreamSnapshot {
    /// The upstream's name.
    pub name: Arc<str>,
    /// What it does with calls.
    pub state: UpstreamState,
    /// Calls since the layer was made, those refused included.
    pub calls: u64,
    /// Calls whose answer has not ended.
    pub in_flight: u64,
    /// What calls ended with, where they failed; retries that succeeded are not among them.
    pub failures: Vec<(BadGatewayCause, u64)>,
    /// How long heads take; none before the first that was waited for.
    pub latency: Option<Latency>,
    /// The present limits.
    pub timeouts: Timeouts,
    /// The circuit, where there is one.
    pub circuit: Option<breaker::Snapshot>,
    /// The limiter, where there is one.
    pub limit: Option<LimitSnapshot>,
    /// What retries are paid from, where there are any.
    pub budget: Option<Balance>,
    /// What was learned of each route.
    pub learned: Vec<(String, Estimate)>,
    /// The latest changes, the last one at the end.
    pub changes: Vec<Change>,
}

/// What a stack does with calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum UpstreamState {
    /// What it was built for.
    Serving,
    /// Retry, breaker and limiter stand aside until then.
    Bypassed(Instant),
    /// New calls are refused.
    Draining,
}

/// What is left after a drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Drained {
    /// No call is running.
    All,
    /// So many calls were still running when the time was up.
    Left(u64),
}

/// What can be changed, whatever the stack is made of.
trait Steer: Send + Sync {
    fn timeouts(&self) -> Timeouts;
    fn mode(&self) -> Mode;
    fn set_timeouts(&self, timeouts: Timeouts);
    fn set_mode(&self, mode: Mode);
    fn set_limit(&self, limit: &LimitLayer);
}

/// The limiter that takes another's place, where there is one.
struct Steered<R, L: Section, C: Section>(Arc<Steering<R, L::Part, C::Part>>);

impl<R: Repeat, L: Section, C: Section> Steered<R, L, C> {
    fn change(&self, change: impl FnOnce(&mut Set<R, L::Part, C::Part>)) {
        self.0.change(change);
    }
}

impl<R: Repeat, L: Section, C: Section> Steer for Steered<R, L, C> {
    fn timeouts(&self) -> Timeouts {
        self.0.set().1.shared.limits.timeouts
    }

    fn mode(&self) -> Mode {
        self.0.set().1.mode
    }

    fn set_timeouts(&self, timeouts: Timeouts) {
        self.change(|set| {
            set.shared.limits.timeouts = timeouts;
            set.repeat = set.repeat.clone().within(timeouts.until_head());
        });
    }

    fn set_mode(&self, mode: Mode) {
        self.change(|set| set.mode = mode);
    }

    fn set_limit(&self, limit: &LimitLayer) {
        self.change(|set| {
            if let Some(part) = L::limited(limit, &set.name) {
                set.shared.parts.limiter = part;
            }
        });
    }
}

impl UpstreamHandle {
    pub(super) fn new<R: Repeat, L: Section, C: Section, W, H>(
        steering: &Arc<Steering<R, L::Part, C::Part>>,
        builder: &UpstreamBuilder<R, L, C, W, H>,
    ) -> Self {
        let shared = Shared {
            name: builder.said.name.clone(),
            steer: Arc::new(Steered::<R, L, C>(steering.clone())),
            topology: check::topology(builder),
            recorder: steering.set().1.shared.parts.recorder.clone(),
            circuit: builder.circuit.circuit(),
            limit: Mutex::new(builder.limiter.limit()),
            budget: builder.repeat.layer().map(|layer| layer.settings().budget.clone()),
            learned: builder.said.learned.clone(),
            changes: Mutex::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// The upstream's name.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// How things stand at `now`.
    pub fn snapshot(&self, now: Instant) -> UpstreamSnapshot {
        let shared = &*self.shared;
        let state = match shared.steer.mode() {
            Mode::Bypass(until) if now < until => UpstreamState::Bypassed(until),
            Mode::Usual | Mode::Bypass(_) => UpstreamState::Serving,
            Mode::Drain => UpstreamState::Draining,
        };
        let learned = shared.learned.iter().flat_map(|limits| limits.iter());
        UpstreamSnapshot {
            name: shared.name.clone(),
            state,
            calls: shared.recorder.calls(),
            in_flight: shared.recorder.in_flight(),
            failures: shared.recorder.failures(),
            latency: shared.recorder.latency(now),
            timeouts: shared.steer.timeouts(),
            circuit: shared.circuit.as_ref().map(|circuit| circuit.snapshot(now)),
            limit: locked(&shared.limit).as_ref().map(LimitHandle::snapshot),
            budget: shared.budget.as_ref().map(|budget| budget.snapshot(now)),
            learned: learned.map(|(route, limit)| (route.to_owned(), limit.snapshot(now))).collect(),
            changes: locked(&shared.changes).iter().cloned().collect(),
        }
    }

    /// How many calls are under way: their answers have not ended.
    pub fn in_flight(&self) -> u64 {
        self.shared.recorder.in_flight()
    }

    /// The circuit's own handle, where there is a circuit: its transitions, and a background probe.
    pub fn circuit(&self) -> Option<CircuitHandle> {
        self.shared.circuit.clone()
    }

    /// Refuses all calls until [`release`](Self::release) or [`reset`](Self::reset); without a circuit nothing happens.
    pub fn hold_open(&self) {
        self.with_circuit("the circuit is held open by hand", CircuitHandle::hold_open);
    }

    /// Ends the hold: the next call passes as a probe.
    pub fn release(&self) {
        self.with_circuit("the circuit is released by hand", CircuitHandle::release);
    }

    /// Closes the circuit, and forgets what it counted.
    pub fn reset(&self) {
        self.with_circuit("the circuit is reset by hand", CircuitHandle::reset);
    }

    fn with_circuit(&self, what: &str, does: impl FnOnce(&CircuitHandle)) {
        if let Some(circuit) = &self.shared.circuit {
            does(circuit);
            self.note_change(what);
        }
    }

    /// Lets retry, breaker and limiter stand aside for this time (an hour at most), beginning now.
    ///
    /// For the "temporary bypass" in which one finds out whether it is they who refuse. Time limits and classification
    /// stay; calls that are under way go on as they began. It ends by itself, or with [`resume`](Self::resume). Where calls are
    /// being drained, nothing happens.
    pub fn bypass(&self, limit: Duration) {
        let limit = limit.min(LONGEST_BYPASS);
        if self.shared.steer.mode() == Mode::Drain {
            return;
        }
        self.shared.steer.set_mode(Mode::Bypass(Instant::now() + limit));
        self.note_change(format!("retry, breaker and limiter stand aside for {limit:?}"));
    }

    /// Serves as it was built to: ends a bypass or a drain.
    pub fn resume(&self) {
        self.shared.steer.set_mode(Mode::Usual);
        self.note_change("it serves as it was built to");
    }

    /// Changes the time limits for calls that begin from now on.
    ///
    /// # Errors
    ///
    /// What does not fit, as [`build`](UpstreamBuilder::build) would refuse it; the limits stay as they are then.
    pub fn set_timeouts(&self, timeouts: Timeouts) -> Result<(), Misconfigured> {
        let mut found = Vec::new();
        check::limits(&timeouts, &self.shared.topology, &mut found);
        Misconfigured::unless_none(found)?;
        self.shared.steer.set_timeouts(timeouts);
        self.note_change("the time limits are others");
        Ok(())
    }

    /// Puts another limiter in the place of the present one, for calls that begin from now on.
    ///
    /// Those under way keep their slots in the old one, so that for a moment there may be as many in flight as both allow.
    ///
    /// # Errors
    ///
    /// Where the stack was built without a limiter, and what [`build`](UpstreamBuilder::build) would refuse of this one.
    pub fn set_limiter(&self, limiter: &LimitLayer) -> Result<(), Misconfigured> {
        let mut limit = locked(&self.shared.limit);
        if limit.is_none() {
            let problem = "the stack was built without one";
            let found = Misconfiguration::new("limiter", problem, "build it with `limiter`");
            return Misconfigured::unless_none(vec![found]);
        }
        let mut found = Vec::new();
        check::limiter(limiter.asked(), &mut found);
        Misconfigured::unless_none(found)?;
        self.shared.steer.set_limit(limiter);
        *limit = Some(limiter.handle());
        drop(limit);
        self.note_change("the limiter is another");
        Ok(())
    }

    /// Marks the time line: a deploy, a switch, whatever may explain what follows.
    ///
    /// The last 64 are kept, 200 bytes of each.
    pub fn note_change(&self, what: impl Into<String>) {
        let mut what = what.into();
        let cut = (0..=TEXT.min(what.len())).rev().find(|&end| what.is_char_boundary(end)).unwrap_or(0);
        what.truncate(cut);
        tracing::info!(target: "tower_upstream", upstream = &*self.shared.name, change = %what, "a change");
        let mut changes = locked(&self.shared.changes);
        if changes.len() == CHANGES {
            changes.pop_front();
        }
        changes.push_back(Change { at: Instant::now(), time: SystemTime::now(), what });
    }

    /// Refuses new calls from now on, with 503 and `Retry-After`, and waits for those that run; at most so long.
    ///
    /// It goes on refusing until [`resume`](Self::resume).
    pub async fn drain(&self, limit: Duration) -> Drained {
        // no limit at all counts as a hundred years
        let end = Deadline::after(Instant::now(), limit).instant();
        self.shared.steer.set_mode(Mode::Drain);
        self.note_change("it is being drained");
        let mut pause = Duration::from_millis(1);
        loop {
            let left = self.in_flight();
            if left == 0 {
                return Drained::All;
            }
            let now = Instant::now();
            if now >= end {
                return Drained::Left(left);
            }
            // nobody counts how many are left at each end of a call, so that calls stay cheap
            sleep_until(end.min(now + pause)).await;
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }
}

fn locked<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for UpstreamHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpstreamHandle").field("name", &self.shared.name).finish_non_exhaustive()
    }
}
