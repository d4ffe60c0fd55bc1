//! When an answer is of no more use to whoever waits for it.

use std::time::Duration;

use http::{Extensions, HeaderMap, Request};
use tokio::time::Instant;

use crate::engine::Call;

/// The time until which an answer is of use; it only ever comes nearer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadline {
    at: Instant,
    clock: Clock,
}

/// Whose clock a deadline was read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// Ours: the caller said how much time is left.
    Own,
    /// The caller's: it said a time of day, which is wrong by as much as the two clocks differ.
    Callers,
}

impl Deadline {
    /// A deadline at this time.
    pub fn at(at: Instant) -> Self {
        Self { at, clock: Clock::Own }
    }

    /// The deadline in a request's extensions.
    pub fn of(extensions: &Extensions) -> Option<Self> {
        extensions.get().copied()
    }

    /// The one that passes first.
    pub fn earlier(one: Option<Self>, other: Option<Self>) -> Option<Self> {
        match (one, other) {
            (Some(one), Some(other)) => Some(if other.at < one.at { other } else { one }),
            (one, other) => one.or(other),
        }
    }

    /// The time at which it passes.
    pub fn instant(&self) -> Instant {
        self.at
    }

    /// Whose clock it was read from.
    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// How much time is left; zero once it has passed.
    pub fn remaining(&self, now: Instant) -> Duration {
        self.at.saturating_duration_since(now)
    }
}

/// Which deadlines are read from callers and written to upstreams.
#[derive(Clone, Debug, Default)]
pub struct Deadlines;

impl Deadlines {
    /// The deadline that a trusted caller's headers tell.
    pub fn read(&self, _headers: &HeaderMap, _extensions: &Extensions, _now: Instant) -> Option<Deadline> {
        None
    }

    /// Writes what is left, less the margin.
    pub fn write<B>(&self, _request: &mut Request<B>, _call: &Call) {}
}
