//! The guard of a learned limit: when many calls time out at once, the limit is the suspect.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use crate::stats::Bookmark;

/// Fewer calls a second prove nothing.
const ENOUGH: u32 = 20;

/// The share of a second's calls that may time out, as one of so many.
const ONE_OF: u32 = 50;

const ONE: u32 = 1000;
const MOST: u32 = 16 * ONE;

/// No timeouts are too many: there are too few calls, or the verdict has fallen.
const UNLIMITED: u32 = u32::MAX;

/// Lengthens the limit while it cuts too many calls.
///
/// Each second has one verdict. It falls early where the second has more timeouts already than the calls
/// of the one before allow: in a brown-out each tenth of a second costs calls.
///
/// One caller at a time judges, which is `Duty`'s business; any number report.
#[derive(Debug)]
pub(super) struct RegressionGuard {
    timed_out: AtomicU32,
    /// So many timeouts pass before the second is judged early.
    allowed: AtomicU32,
    per_mille: AtomicU32,
    /// Whether this second's verdict has fallen.
    early: AtomicBool,
    /// The mark of the second before, in two words.
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

    /// Counts a timeout, and says whether it is one too many to wait for the second's end.
    pub(super) fn timed_out(&self) -> bool {
        let before = self.timed_out.fetch_add(1, Ordering::Relaxed);
        before >= self.allowed.load(Ordering::Relaxed)
    }

    /// How much longer the limit is made, in thousandths.
    pub(super) fn per_mille(&self) -> u32 {
        self.per_mille.load(Ordering::Relaxed)
    }

    /// The verdict before the second's end: it has had too many timeouts.
    pub(super) fn trip(&self) -> u32 {
        if self.early.swap(true, Ordering::Relaxed) {
            return self.per_mille();
        }
        self.allowed.store(UNLIMITED, Ordering::Relaxed);
        self.set((self.per_mille() * 2).min(MOST))
    }

    /// The verdict at the second's end, so many seconds after the last.
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
            // from 16 down to 1 it is 27 seconds
            self.set((0..seconds.min(30)).fold(factor, |factor, _| factor * 9 / 10).max(ONE))
        }
    }

    fn set(&self, per_mille: u32) -> u32 {
        self.per_mille.store(per_mille, Ordering::Relaxed);
        per_mille
    }

    /// The calls since the mark before, which this one replaces.
    fn calls_until(&self, mark: Bookmark) -> u32 {
        #[allow(clippy::cast_possible_truncation)] // a generation has 8 bits
        let generation = self.generation.swap(mark.generation.into(), Ordering::Relaxed) as u8;
        let running = self.running.swap(mark.running, Ordering::Relaxed);
        mark.since(Bookmark { generation, running, before: 0 })
    }
}
