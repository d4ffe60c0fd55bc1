//! Work that one caller does, at most once a second, while nobody waits for it.

use super::sync::{AtomicU32, Ordering};

/// Set while somebody is at work; the second stands above it.
const BUSY: u32 = 1;

/// The longest count of seconds that fits, 68 years.
const LAST: u32 = u32::MAX >> 1;

/// Gives the work of a second to the first who asks.
///
/// Between taking the duty and dropping it one caller alone is at work, whatever seconds others see; what
/// it writes is visible to whoever takes the duty next. Others go on with what was there.
#[derive(Debug)]
pub(crate) struct TickLock {
    word: AtomicU32,
}

impl TickLock {
    pub(crate) fn new() -> Self {
        Self { word: AtomicU32::new(0) }
    }

    /// The duty, if this second's work is still to be done and nobody is at it.
    #[inline]
    pub(crate) fn try_lock(&self, second: u32) -> Option<TickGuard<'_>> {
        let seen = self.word.load(Ordering::Relaxed);
        // busy counts as the second under work: no look at the bit on the way that all take
        if seen >> 1 >= second { None } else { self.claim(seen, second.min(LAST)) }
    }

    /// The duty once more in its second, if nobody is at it.
    pub(crate) fn try_relock(&self) -> Option<TickGuard<'_>> {
        let seen = self.word.load(Ordering::Relaxed);
        if seen & BUSY != 0 {
            return None;
        }
        self.word.compare_exchange(seen, seen | BUSY, Ordering::Acquire, Ordering::Relaxed).ok()?;
        Some(TickGuard { lock: self, word: seen, since: 0 })
    }

    #[cold]
    fn claim(&self, seen: u32, second: u32) -> Option<TickGuard<'_>> {
        let since = second.saturating_sub(seen >> 1);
        if seen & BUSY != 0 || since == 0 {
            return None;
        }
        let word = second << 1;
        self.word.compare_exchange(seen, word | BUSY, Ordering::Acquire, Ordering::Relaxed).ok()?;
        Some(TickGuard { lock: self, word, since })
    }
}

/// The right to do a second's work, until dropped.
#[derive(Debug)]
pub(crate) struct TickGuard<'a> {
    lock: &'a TickLock,
    word: u32,
    since: u32,
}

impl TickGuard<'_> {
    /// Seconds since the work was taken before; none if it is done again.
    pub(crate) fn since(&self) -> u32 {
        self.since
    }
}

impl Drop for TickGuard<'_> {
    fn drop(&mut self) {
        self.lock.word.store(self.word, Ordering::Release);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_first_who_asks_in_a_second_has_its_duty() {
        let duty = TickLock::new();
        assert!(duty.try_lock(0).is_none(), "there is nothing to do yet");
        let taken = duty.try_lock(3).unwrap();
        assert_eq!(taken.since(), 3);
        assert!(duty.try_lock(3).is_none());
        assert!(duty.try_lock(4).is_none(), "somebody is still at it");
        drop(taken);
        assert!(duty.try_lock(3).is_none());
        assert!(duty.try_lock(2).is_none(), "a clock that lags has no duty");
        assert_eq!(duty.try_lock(5).unwrap().since(), 2);
    }

    #[test]
    fn the_duty_can_be_taken_again_but_not_beside_itself() {
        let duty = TickLock::new();
        drop(duty.try_lock(3));
        let again = duty.try_relock().unwrap();
        assert_eq!(again.since(), 0);
        assert!(duty.try_relock().is_none());
        assert!(duty.try_lock(4).is_none());
        drop(again);
        assert!(duty.try_lock(3).is_none(), "the second stays done");
        assert_eq!(duty.try_lock(4).unwrap().since(), 1);
    }

    #[test]
    fn a_panic_at_work_gives_the_duty_back() {
        let duty = TickLock::new();
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _taken = duty.try_lock(3).unwrap();
            panic!("at work");
        }));
        assert!(panicked.is_err());
        assert!(duty.try_relock().is_some());
        assert_eq!(duty.try_lock(4).unwrap().since(), 1);
    }

    #[test]
    fn the_duty_ends_where_its_count_ends() {
        let duty = TickLock::new();
        assert!(duty.try_lock(u32::MAX).is_some());
        assert!(duty.try_lock(u32::MAX).is_none());
    }
}
