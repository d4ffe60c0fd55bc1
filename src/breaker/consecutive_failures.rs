//! Consecutive failures, in one atomic word with the epoch they belong to.
//!
//! Invariants under any interleaving (`tests/loom` checks them): failures of one epoch without a success between
//! them all count, and a result from an earlier epoch neither adds to the count nor resets it.

use crate::stats::sync::{AtomicU64, Ordering};

/// The number of low bits that hold the count; the epoch is above them.
const COUNT: u32 = 24;
const LOW: u64 = (1 << COUNT) - 1;

/// The failures since the last success.
#[derive(Debug)]
pub(crate) struct ConsecutiveFailures {
    word: AtomicU64,
}

impl ConsecutiveFailures {
    pub(crate) fn new() -> Self {
        Self { word: AtomicU64::new(0) }
    }

    /// Records a success of this epoch; a single load if the count is zero.
    #[inline]
    pub(crate) fn record_success(&self, epoch: u64) {
        let seen = self.word.load(Ordering::Relaxed);
        if seen & LOW != 0 {
            self.reset(seen, epoch);
        }
    }

    #[cold]
    fn reset(&self, mut seen: u64, epoch: u64) {
        // a count of an earlier epoch is reset as well, so that later successes take the fast path
        while seen & LOW != 0 && seen >> COUNT <= epoch {
            match self.word.compare_exchange_weak(seen, epoch << COUNT, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => seen = now,
            }
        }
    }

    /// Records a failure of this epoch and returns the count with it; 0 if the epoch has ended.
    pub(crate) fn record_failure(&self, epoch: u64) -> u32 {
        let mut seen = self.word.load(Ordering::Relaxed);
        loop {
            let next = match (seen >> COUNT).cmp(&epoch) {
                std::cmp::Ordering::Less => epoch << COUNT | 1,
                std::cmp::Ordering::Equal if seen & LOW == LOW => seen,
                std::cmp::Ordering::Equal => seen + 1,
                std::cmp::Ordering::Greater => return 0,
            };
            match self.word.compare_exchange_weak(seen, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return count_of(next),
                Err(now) => seen = now,
            }
        }
    }

    /// The consecutive failures of this epoch.
    pub(crate) fn count(&self, epoch: u64) -> u32 {
        let seen = self.word.load(Ordering::Relaxed);
        if seen >> COUNT == epoch { count_of(seen) } else { 0 }
    }
}

#[allow(clippy::cast_possible_truncation)] // 24 bits are left
fn count_of(word: u64) -> u32 {
    (word & LOW) as u32
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_success_ends_a_streak() {
        let streak = ConsecutiveFailures::new();
        assert_eq!([streak.record_failure(1), streak.record_failure(1)], [1, 2]);
        streak.record_success(1);
        assert_eq!((streak.count(1), streak.record_failure(1)), (0, 1));
    }

    #[test]
    fn a_result_from_before_a_transition_changes_nothing() {
        let streak = ConsecutiveFailures::new();
        assert_eq!([streak.record_failure(3), streak.record_failure(3)], [1, 2]);
        assert_eq!(streak.record_failure(2), 0);
        streak.record_success(2);
        assert_eq!((streak.count(3), streak.count(2)), (2, 0));
    }

    #[test]
    fn a_new_epoch_begins_without_a_streak() {
        let streak = ConsecutiveFailures::new();
        streak.record_failure(1);
        streak.record_failure(1);
        assert_eq!((streak.count(2), streak.record_failure(2)), (0, 1));
        let other = ConsecutiveFailures::new();
        other.record_failure(1);
        other.record_success(2);
        assert_eq!(other.word.load(Ordering::Relaxed), 2 << COUNT, "the old one no longer slows successes down");
    }

    #[test]
    fn a_full_count_stays_full() {
        let streak = ConsecutiveFailures::new();
        streak.word.store(1 << COUNT | (LOW - 1), Ordering::Relaxed);
        assert_eq!([streak.record_failure(1), streak.record_failure(1)].map(u64::from), [LOW, LOW]);
    }
}
