//! What an operator sees of a circuit, and can do to it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::circuit::Circuit;
use super::packed_state::State;
use super::state_machine::Transition;
use crate::cause::{Detail, Failure};

/// A circuit and those who are told of its transitions.
pub(super) struct CircuitShared {
    pub(super) circuit: Circuit,
    changes: watch::Sender<StateChange>,
}

/// A transition of a circuit.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct StateChange {
    /// What it does with calls now.
    pub state: State,
    /// Since when.
    pub at: Instant,
    /// How long it stays open at least; none for other states.
    pub open_for: Duration,
    /// What opened it, with its peer and errno if these are known; `None` while closed, and where it is held by hand.
    pub cause: Option<Failure>,
    /// Grows with every transition, not always by one.
    pub number: u64,
}

/// What a circuit does, why and since when, and what it has counted.
///
/// Each number is exact; beside other threads they may be of different moments.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CircuitSnapshot {
    /// What it does with calls.
    pub state: State,
    /// Since when.
    pub since: Instant,
    /// What opened it; `None` while closed, and where it is held by hand.
    pub cause: Option<Failure>,
    /// When the next call may pass as a probe, while it is open.
    pub next_probe: Option<Instant>,
    /// The window's calls that said something.
    pub calls: u64,
    /// Those of them that failed.
    pub failures: u64,
    /// Those of them that were slow, where that counts.
    pub slow: u64,
    /// The failures in a row.
    pub consecutive_failures: u32,
    /// How often it opened, probes that failed included.
    pub opened: u64,
    /// How many probes there were.
    pub probes: u64,
    /// How many of them had not ended when another took their place.
    pub probes_timed_out: u64,
    /// How many calls were refused.
    pub refused: u64,
}

impl CircuitShared {
    pub(super) fn new(circuit: Circuit, now: Instant) -> Self {
        let closed = StateChange { state: State::Closed, at: now, open_for: Duration::ZERO, cause: None, number: 0 };
        Self { circuit, changes: watch::Sender::new(closed) }
    }

    pub(super) fn record_recovery(&self, begun: Instant, now: Instant) {
        if let Some(turn) = self.circuit.record_recovery(begun, now) {
            self.publish(&turn);
        }
    }

    /// Says what has happened: a line in the log, and the state for whoever waits.
    #[cold]
    pub(super) fn publish(&self, turn: &Transition<Failure>) {
        let change = StateChange {
            state: turn.state,
            at: self.circuit.at(turn.at),
            open_for: Duration::from_nanos(turn.open_for),
            cause: turn.cause.as_ref().and_then(|opening| opening.previous().last().cloned()),
            number: turn.epoch,
        };
        let detail = turn.cause.as_ref().and_then(Failure::detail);
        log(self.circuit.name(), &change, detail, self.circuit.refused());
        self.changes.send_if_modified(|last| {
            // two threads may come here in another order than they came through the gate
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
            "the circuit is open: calls are refused until a probe has succeeded"
        ),
        State::HeldOpen => {
            tracing::warn!(target: "tower_upstream", upstream = name, circuit.state = state, "the circuit is held open");
        }
        State::HalfOpen => tracing::info!(
            target: "tower_upstream",
            upstream = name,
            circuit.state = state,
            error.type = cause,
            "the circuit lets one call pass as a probe"
        ),
        State::Closed => {
            tracing::info!(target: "tower_upstream", upstream = name, circuit.state = state, refused, "the circuit is closed");
        }
    }
}

impl fmt::Debug for CircuitShared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.circuit.fmt(f)
    }
}

/// Sees into a circuit and overrules it; clones are of the same circuit.
#[derive(Clone, Debug)]
pub struct CircuitHandle {
    pub(super) core: Arc<CircuitShared>,
}

impl CircuitHandle {
    /// The upstream's name, as the layer was told.
    pub fn name(&self) -> &str {
        self.core.circuit.name()
    }

    /// What it does now and what it has counted until `now`.
    pub fn snapshot(&self, now: Instant) -> CircuitSnapshot {
        self.core.circuit.snapshot(now)
    }

    /// Refuses all calls until [`release`](Self::release) or [`reset`](Self::reset): for work on the upstream.
    ///
    /// Calls that are under way go on. Refusals say to come back after the longest pause.
    pub fn hold_open(&self) {
        self.publish(self.core.circuit.hold(Instant::now()));
    }

    /// Ends the hold: the next call passes as a probe. Nothing, if it is not held.
    pub fn release(&self) {
        self.publish(self.core.circuit.release(Instant::now()));
    }

    /// Closes it, whatever its state, and forgets what it counted and how often it opened.
    pub fn reset(&self) {
        self.publish(self.core.circuit.reset(Instant::now()));
    }

    /// Its transitions from now on, the present state first.
    pub fn transitions(&self) -> Transitions {
        let mut changes = self.core.changes.subscribe();
        changes.mark_changed();
        Transitions { changes }
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
    /// The next one that has not been seen; `None` once layer, services and handles are gone.
    ///
    /// Whoever is slow misses those in between, but never the latest: there is nothing that fills up.
    pub async fn next(&mut self) -> Option<StateChange> {
        self.changes.changed().await.ok()?;
        Some(self.changes.borrow_and_update().clone())
    }
}
