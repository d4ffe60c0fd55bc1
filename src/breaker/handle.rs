//! What an operator sees of a circuit, and can do to it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::circuit::Circuit;
use super::gate::Turn;
use super::word::State;
use crate::cause::{Detail, Failure};

/// A circuit and those who are told of its transitions.
pub(super) struct Core {
    pub(super) circuit: Circuit,
    changes: watch::Sender<Change>,
}

/// A transition of a circuit.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Change {
    /// What it does with calls now.
    pub state: State,
    /// Since when.
    pub at: Instant,
    /// How long it stays open at least; none for other states.
    pub pause: Duration,
    /// What opened it, with its peer and errno if these are known; `None` while closed, and where it is held by hand.
    pub why: Option<Failure>,
    /// Grows with every transition, not always by one.
    pub number: u64,
}

/// What a circuit does, why and since when, and what it has counted.
///
/// Each number is exact; beside other threads they may be of different moments.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Snapshot {
    /// What it does with calls.
    pub state: State,
    /// Since when.
    pub since: Instant,
    /// What opened it; `None` while closed, and where it is held by hand.
    pub why: Option<Failure>,
    /// When the next call may pass as a probe, while it is open.
    pub next_probe: Option<Instant>,
    /// The window's calls that said something.
    pub calls: u64,
    /// Those of them that failed.
    pub failures: u64,
    /// Those of them that were slow, where that counts.
    pub slow: u64,
    /// The failures in a row.
    pub streak: u32,
    /// How often it opened, probes that failed included.
    pub opened: u64,
    /// How many probes there were.
    pub probes: u64,
    /// How many of them had not ended when another took their place.
    pub probes_given_up: u64,
    /// How many calls were refused.
    pub refused: u64,
}

impl Core {
    pub(super) fn new(circuit: Circuit, now: Instant) -> Self {
        let closed = Change { state: State::Closed, at: now, pause: Duration::ZERO, why: None, number: 0 };
        Self { circuit, changes: watch::Sender::new(closed) }
    }

    pub(super) fn recovered(&self, begun: Instant, now: Instant) {
        if let Some(turn) = self.circuit.recovered(begun, now) {
            self.tell(&turn);
        }
    }

    /// Says what has happened: a line in the log, and the state for whoever waits.
    #[cold]
    pub(super) fn tell(&self, turn: &Turn<Failure>) {
        let change = Change {
            state: turn.state,
            at: self.circuit.at(turn.at),
            pause: Duration::from_nanos(turn.rest),
            why: turn.why.as_ref().and_then(|opening| opening.previous().last().cloned()),
            number: turn.epoch,
        };
        let detail = turn.why.as_ref().and_then(Failure::detail);
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

fn log(name: &str, change: &Change, detail: Option<Detail>, refused: u64) {
    let (state, why) = (change.state.as_str(), change.why.as_ref());
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
            pause_ms = u64::try_from(change.pause.as_millis()).unwrap_or(u64::MAX),
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

impl fmt::Debug for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.circuit.fmt(f)
    }
}

/// Sees into a circuit and overrules it; clones are of the same circuit.
#[derive(Clone, Debug)]
pub struct CircuitHandle {
    pub(super) core: Arc<Core>,
}

impl CircuitHandle {
    /// The upstream's name, as the layer was told.
    pub fn name(&self) -> &str {
        self.core.circuit.name()
    }

    /// What it does now and what it has counted until `now`.
    pub fn snapshot(&self, now: Instant) -> Snapshot {
        self.core.circuit.snapshot(now)
    }

    /// Refuses all calls until [`release`](Self::release) or [`reset`](Self::reset): for work on the upstream.
    ///
    /// Calls that are under way go on. Refusals say to come back after the longest pause.
    pub fn hold_open(&self) {
        self.tell(self.core.circuit.hold(Instant::now()));
    }

    /// Ends the hold: the next call passes as a probe. Nothing, if it is not held.
    pub fn release(&self) {
        self.tell(self.core.circuit.release(Instant::now()));
    }

    /// Closes it, whatever its state, and forgets what it counted and how often it opened.
    pub fn reset(&self) {
        self.tell(self.core.circuit.reset(Instant::now()));
    }

    /// Its transitions from now on, the present state first.
    pub fn transitions(&self) -> Transitions {
        let mut changes = self.core.changes.subscribe();
        changes.mark_changed();
        Transitions { changes }
    }

    fn tell(&self, turn: Option<Turn<Failure>>) {
        if let Some(turn) = turn {
            self.core.tell(&turn);
        }
    }
}

/// The transitions of a circuit; see [`CircuitHandle::transitions`].
#[derive(Debug)]
pub struct Transitions {
    changes: watch::Receiver<Change>,
}

impl Transitions {
    /// The next one that has not been seen; `None` once layer, services and handles are gone.
    ///
    /// Whoever is slow misses those in between, but never the latest: there is nothing that fills up.
    pub async fn next(&mut self) -> Option<Change> {
        self.changes.changed().await.ok()?;
        Some(self.changes.borrow_and_update().clone())
    }
}
