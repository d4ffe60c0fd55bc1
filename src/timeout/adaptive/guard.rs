//! The guard of an adaptive timeout: if many calls time out at once, the timeout is the suspect.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use crate::stats::Bookmark;

/// The minimum number of calls per second to check.
const ENOUGH: u32 = 20;

/// At most one call in this many may time out per second.
const ONE_OF: u32 = 50;

const ONE: u32 = 1000;
const MOST: u32 = 16 * ONE;

/// Any number of timeouts is allowed: too few calls, or this second was checked already.
const UNLIMITED: u32 = u32::MAX;

/// Lengthens the timeout while it cuts off too many calls.
///
/// Each second is checked once: at its end, or early if it has more timeouts already than the previous second's calls
/// allow, because during a brown-out each tenth of a second costs calls.
///
/// Only one thread at a time checks, which `TickLock` ensures; any number record.
#[derive(Debug)]
pub(super) struct RegressionGuard {
    timed_out: AtomicU32,
    /// Number of timeouts after which the second is checked early.
    allowed: AtomicU32,
    per_mille: AtomicU32,
    /// Whether this second was checked early.
    early: AtomicBool,
    /// The bookmark of the previous second, in two words.
    generation: AtomicU32,
    running: AtomicU32,
}

impl RegressionGuard {
    pub(super) fn new() -> Self {
        Self {
            timed_out: AtomicU32::new(0),
            allowed: AtomicU32::new(UNLIMITED),
            per_mille: AtomicU32::new(ONE),
            early: AtomicBool::new(false),
            generation: AtomicU32::new(0),
            running: AtomicU32::new(0),
        }
    }

    /// Counts a timeout and returns whether the guard should trip before the end of the second.
    pub(super) fn timed_out(&self) -> bool {
        let before = self.timed_out.fetch_add(1, Ordering::Relaxed);
        before >= self.allowed.load(Ordering::Relaxed)
    }

    /// The factor of the timeout, in thousandths.
    pub(super) fn per_mille(&self) -> u32 {
        self.per_mille.load(Ordering::Relaxed)
    }

    /// Trips before the end of the second, because of too many timeouts; returns the new factor.
    pub(super) fn trip(&self) -> u32 {
        if self.early.swap(true, Ordering::Relaxed) {
            return self.per_mille();
        }
        self.allowed.store(UNLIMITED, Ordering::Relaxed);
        self.set((self.per_mille() * 2).min(MOST))
    }

    /// Checks at the end of a second; `seconds` is the time since the last check. Returns the new factor.
    pub(super) fn check(&self, mark: Bookmark, seconds: u32) -> u32 {
        let calls = self.calls_until(mark);
        let timed_out = self.timed_out.swap(0, Ordering::Relaxed);
        let allowed = if calls >= ENOUGH { calls / ONE_OF } else { UNLIMITED };
        self.allowed.store(allowed, Ordering::Relaxed);
        let factor = self.per_mille();
        if self.early.swap(false, Ordering::Relaxed) {
            factor
        } else if timed_out > allowed {
            self.set((factor * 2).min(MOST))
        } else {
            // decaying from 16 to 1 takes 27 seconds
            self.set((0..seconds.min(30)).fold(factor, |factor, _| factor * 9 / 10).max(ONE))
        }
    }

    fn set(&self, per_mille: u32) -> u32 {
        self.per_mille.store(per_mille, Ordering::Relaxed);
        per_mille
    }

    /// The calls since the previous bookmark, which this one replaces.
    fn calls_until(&self, mark: Bookmark) -> u32 {
        #[allow(clippy::cast_possible_truncation)] // a generation has 8 bits
        let generation = self.generation.swap(mark.generation.into(), Ordering::Relaxed) as u8;
        let running = self.running.swap(mark.running, Ordering::Relaxed);
        mark.since(Bookmark { generation, running, before: 0 })
    }
}
