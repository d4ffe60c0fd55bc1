//! The operator's handle of a circuit, its snapshots and its transitions.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::circuit::{Circuit, CircuitSnapshot};
use super::packed_state::State;
use super::policy::BreakerPolicy;
use super::probe_schedule::RequestProbes;
use super::state_machine::Transition;
use crate::cause::{Detail, Failure};

/// A circuit and the subscribers of its transitions.
pub(super) struct CircuitShared {
    pub(super) circuit: Circuit,
    pub(super) probes: RequestProbes,
    changes: watch::Sender<StateChange>,
    /// Set at each transition, for a pool of which this is the circuit of one endpoint.
    changed: Option<Arc<AtomicBool>>,
}

/// A state transition of a circuit.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct StateChange {
    /// The state.
    pub state: State,
    /// When the state began.
    pub at: Instant,
    /// How long the circuit stays open at least; zero for other states.
    pub open_for: Duration,
    /// The failure that opened the circuit, with peer and errno if known; `None` while closed or held open by an operator.
    pub cause: Option<Failure>,
    /// Increases with every transition, not always by one.
    pub number: u64,
}

impl CircuitShared {
    pub(super) fn new(circuit: Circuit, changed: Option<Arc<AtomicBool>>, now: Instant) -> Self {
        let closed = StateChange { state: State::Closed, at: now, open_for: Duration::ZERO, cause: None, number: 0 };
        Self { circuit, probes: RequestProbes::default(), changes: watch::Sender::new(closed), changed }
    }

    /// Whether there are replicas, and no pool that knows which of them a request was sent to.
    #[inline]
    pub(super) fn is_alone_among_replicas(&self) -> bool {
        self.circuit.is_clustered && self.changed.is_none()
    }

    /// Waits until the circuit admits a call.
    pub(super) async fn admits(self: Arc<Self>) {
        let mut changes = self.changes.subscribe();
        loop {
            let now = Instant::now();
            let (rejected, turn) = self.circuit.rejection(now);
            if let Some(turn) = turn {
                self.publish(&turn);
            }
            let Some(rejected) = rejected else { return };
            let open = Duration::from_nanos(rejected.remaining);
            // the sender is in `self`
            let _ = timeout(open, changes.changed()).await;
        }
    }

    pub(super) fn record_recovery(&self, begun: Instant, now: Instant) {
        if let Some(turn) = self.circuit.record_recovery(begun, now) {
            self.publish(&turn);
        }
    }

    /// No call is used as a probe until this time, where requests are sent as probes and calls have other endpoints.
    pub(super) fn put_off_calls(&self, until: Instant) {
        if self.changed.is_some() {
            self.circuit.put_off_calls(until);
        }
    }

    /// Marks the shares of a pool as stale, also when a probe begins or ends without a transition: the next one is due then.
    #[cold]
    pub(super) fn note_probe(&self) {
        if let Some(changed) = &self.changed {
            changed.store(true, Relaxed);
        }
    }

    /// Logs a transition and sends it to the subscribers.
    #[cold]
    pub(super) fn publish(&self, turn: &Transition<Failure>) {
        if matches!(turn.state, State::Closed | State::HeldOpen) {
            self.probes.end_outage();
        }
        self.note_probe();
        let change = StateChange {
            state: turn.state,
            at: self.circuit.at(turn.at),
            open_for: Duration::from_nanos(turn.open_for),
            cause: turn.cause.as_ref().and_then(|opening| opening.opened_by().cloned()),
            number: turn.epoch,
        };
        let detail = turn.cause.as_ref().and_then(Failure::detail);
        log(self.circuit.name(), &change, detail, self.circuit.refused());
        self.changes.send_if_modified(|last| {
            // two threads may arrive here in another order than their transitions happened
            let newer = last.number < change.number;
            if newer {
                *last = change;
            }
            newer
        });
    }
}

fn log(name: &str, change: &StateChange, detail: Option<Detail>, refused: u64) {
    let (state, why) = (change.state.as_str(), change.cause.as_ref());
    let cause = why.map(|why| why.cause().as_str());
    match change.state {
        State::Open => tracing::warn!(
            target: "tower_upstream",
            upstream = name,
            circuit.state = state,
            error.type = cause,
            phase = why.map(|why| why.phase().as_str()),
            peer = why.and_then(Failure::peer).map(tracing::field::display),
            detail = detail.map(tracing::field::display),
            pause_ms = u64::try_from(change.open_for.as_millis()).unwrap_or(u64::MAX),
            "circuit opened: calls are refused until a probe succeeds"
        ),
        State::HeldOpen => {
            tracing::warn!(target: "tower_upstream", upstream = name, circuit.state = state, "circuit held open by an operator");
        }
        State::HalfOpen => tracing::info!(
            target: "tower_upstream",
            upstream = name,
            circuit.state = state,
            error.type = cause,
            "circuit half-open: one call is admitted as a probe"
        ),
        State::Closed => {
            tracing::info!(target: "tower_upstream", upstream = name, circuit.state = state, refused, "circuit closed");
        }
    }
}

impl fmt::Debug for CircuitShared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.circuit.fmt(f)
    }
}

/// Inspects and controls a circuit; clones refer to the same circuit.
#[derive(Clone, Debug)]
pub struct CircuitHandle {
    pub(super) core: Arc<CircuitShared>,
}

impl CircuitHandle {
    /// The upstream's name, as given to the layer.
    pub fn name(&self) -> &str {
        self.core.circuit.name()
    }

    /// The state and the counters at `now`.
    pub fn snapshot(&self, now: Instant) -> CircuitSnapshot {
        self.core.circuit.snapshot(now)
    }

    /// Refuses all calls until [`release`](Self::release) or [`reset`](Self::reset): for maintenance of the upstream.
    ///
    /// Calls in flight continue. `Retry-After` of the refusals is the maximum open duration.
    pub fn hold_open(&self) {
        self.publish(self.core.circuit.hold(Instant::now()));
    }

    /// Ends the hold: the next call becomes a probe. Does nothing if the circuit is not held open.
    pub fn release(&self) {
        self.publish(self.core.circuit.release(Instant::now()));
    }

    /// Closes the circuit from any state and clears its counts and its backoff.
    pub fn reset(&self) {
        self.publish(self.core.circuit.reset(Instant::now()));
    }

    /// Replaces the policy, and keeps the state.
    ///
    /// An open circuit stays open for as long as it was to be. The counts begin again if the window has another length.
    pub fn set_policy(&self, policy: BreakerPolicy) {
        self.core.circuit.set_policy(policy, Instant::now());
    }

    /// The current state, followed by each transition from now on.
    pub fn transitions(&self) -> Transitions {
        let mut changes = self.core.changes.subscribe();
        changes.mark_changed();
        Transitions { changes }
    }

    /// When the circuit may admit a call as its probe, and how long it is open until then; `None` if it is closed or held open.
    #[cfg(feature = "balance")]
    pub(crate) fn next_call(&self, now: Instant) -> Option<(Instant, Duration)> {
        let (next, turn) = self.core.circuit.next_call(now);
        self.publish(turn);
        next
    }

    /// A call that was sent although the circuit was open has succeeded.
    #[cfg(feature = "balance")]
    pub(crate) fn on_recovery(&self, begun: Instant, now: Instant) {
        self.core.record_recovery(begun, now);
    }

    fn publish(&self, turn: Option<Transition<Failure>>) {
        if let Some(turn) = turn {
            self.core.publish(&turn);
        }
    }
}

/// The transitions of a circuit; see [`CircuitHandle::transitions`].
#[derive(Debug)]
pub struct Transitions {
    changes: watch::Receiver<StateChange>,
}

impl Transitions {
    /// The next transition; `None` once the layer, its services and its handles are dropped.
    ///
    /// A slow receiver skips transitions but always gets the latest one: nothing is buffered.
    pub async fn next(&mut self) -> Option<StateChange> {
        self.changes.changed().await.ok()?;
        Some(self.changes.borrow_and_update().clone())
    }
}
