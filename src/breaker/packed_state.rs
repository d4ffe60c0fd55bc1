//! The word of a circuit: its state and its epoch, and the permit that a call takes of it.

use std::fmt;
use std::num::NonZeroU64;

/// The low bits of the word say the state, above them is the epoch.
pub(crate) const KIND_BITS: u32 = 3;
pub(crate) const MASK: u64 = (1 << KIND_BITS) - 1;

pub(crate) const CLOSED: u64 = 0;
pub(crate) const OPEN: u64 = 1;
/// Half-open, and the place of the probe is free.
pub(crate) const AWAITING_PROBE: u64 = 2;
/// Half-open, and a probe is out.
pub(crate) const PROBING: u64 = 3;
pub(crate) const HELD: u64 = 4;

/// What a circuit does with calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum State {
    /// They pass.
    Closed,
    /// They are refused until the pause is over.
    Open,
    /// One at a time passes, as a probe.
    HalfOpen,
    /// They are refused until the circuit is released by hand.
    HeldOpen,
}

impl State {
    /// The word for logs, labels and JSON.
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

/// What an admitted call holds: the state and the epoch in which it was let in.
#[derive(Debug, PartialEq, Eq)]
pub struct Permit(NonZeroU64);

impl Permit {
    /// A permit of this word, which is never zero: epochs begin with one.
    #[inline]
    pub(crate) fn of(word: u64) -> Option<Self> {
        NonZeroU64::new(word).map(Self)
    }

    /// One whose end is known: no word is ever this one.
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

    /// Whether it is a probe of a half-open circuit.
    #[inline]
    pub fn is_probe(&self) -> bool {
        self.0.get() & MASK == PROBING
    }
}
