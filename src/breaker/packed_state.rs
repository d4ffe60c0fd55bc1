//! The circuit's word: state and epoch, and the permit that a call copies from it.

use std::fmt;
use std::num::NonZeroU64;

/// The number of low bits that hold the state; the epoch is above them.
pub(crate) const KIND_BITS: u32 = 3;
pub(crate) const MASK: u64 = (1 << KIND_BITS) - 1;

pub(crate) const CLOSED: u64 = 0;
pub(crate) const OPEN: u64 = 1;
/// Half-open without a probe in flight.
pub(crate) const AWAITING_PROBE: u64 = 2;
/// Half-open with a probe in flight.
pub(crate) const PROBING: u64 = 3;
pub(crate) const HELD: u64 = 4;

/// The state of a circuit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum State {
    /// Calls are admitted.
    Closed,
    /// Calls are refused until the open duration has elapsed.
    Open,
    /// One call at a time is admitted, as a probe.
    HalfOpen,
    /// Calls are refused until an operator releases the circuit.
    HeldOpen,
}

impl State {
    /// The name in logs, labels and JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
            Self::HeldOpen => "held_open",
        }
    }

    pub(crate) fn of(word: u64) -> Self {
        match word & MASK {
            CLOSED => Self::Closed,
            OPEN => Self::Open,
            HELD => Self::HeldOpen,
            _ => Self::HalfOpen,
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The permit of an admitted call: the state and epoch at admission.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Permit(NonZeroU64);

impl Permit {
    /// The permit for this word; the word is never zero because epochs start at one.
    #[inline]
    pub(crate) fn of(word: u64) -> Option<Self> {
        NonZeroU64::new(word).map(Self)
    }

    /// A permit whose end is recorded already: no word equals it.
    pub(crate) const fn consumed() -> Self {
        Self(NonZeroU64::MAX)
    }

    #[inline]
    pub(crate) fn matches(&self, word: u64) -> bool {
        self.0.get() == word
    }

    #[inline]
    pub(crate) fn epoch(&self) -> u64 {
        self.0.get() >> KIND_BITS
    }

    /// Whether the call is the probe of a half-open circuit.
    #[inline]
    pub(crate) fn is_probe(&self) -> bool {
        self.0.get() & MASK == PROBING
    }
}
