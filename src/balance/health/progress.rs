//! The phases of a running check.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::cause::Phase;

/// Phases of one check with their durations; shared by the check and by the code that limits its time.
#[derive(Clone, Debug)]
pub(super) struct Progress(Arc<Mutex<Phases>>);

#[derive(Debug)]
struct Phases {
    current: Option<Phase>,
    since: Instant,
    done: Vec<(Phase, Duration)>,
}

impl Progress {
    pub(super) fn new(now: Instant) -> Self {
        Self(Arc::new(Mutex::new(Phases { current: None, since: now, done: Vec::new() })))
    }

    fn change<T>(&self, change: impl FnOnce(&mut Phases) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Begins another phase.
    #[cfg(feature = "client")]
    pub(super) fn enter(&self, phase: Phase) {
        self.change(|phases| {
            phases.end(Instant::now());
            phases.current = Some(phase);
        });
    }

    /// Returns the current phase.
    pub(super) fn current(&self) -> Option<Phase> {
        self.change(|phases| phases.current)
    }

    /// Ends the current phase, and returns all phases.
    pub(super) fn end(&self, now: Instant) -> Vec<(Phase, Duration)> {
        self.change(|phases| {
            phases.end(now);
            std::mem::take(&mut phases.done)
        })
    }
}

impl Phases {
    fn end(&mut self, now: Instant) {
        if let Some(phase) = self.current.take() {
            self.done.push((phase, now.saturating_duration_since(self.since)));
        }
        self.since = now;
    }
}
