//! A lock that one thread can take at most once per second, without waiting.

use super::sync::{AtomicU32, Ordering};

/// Set while the lock is held; the second is stored above it.
const BUSY: u32 = 1;

/// The largest second that fits, 68 years.
const LAST: u32 = u32::MAX >> 1;

/// Assigns the periodic work of a second to the first thread that asks.
///
/// While the guard lives, no other thread gets one, whatever second it passes; what the holder writes is visible to the
/// next holder. Other threads continue with the earlier result.
#[derive(Debug)]
pub(crate) struct TickLock {
    word: AtomicU32,
}

impl TickLock {
    pub(crate) fn new() -> Self {
        Self { word: AtomicU32::new(0) }
    }

    /// Takes the lock if the work of this second has not been done and no thread is doing it.
    #[inline]
    pub(crate) fn try_lock(&self, second: u32) -> Option<TickGuard<'_>> {
        let seen = self.word.load(Ordering::Relaxed);
        // the stored second already excludes a busy lock: the hot path need not check the bit
        if seen >> 1 >= second { None } else { self.claim(seen, second.min(LAST)) }
    }

    /// Takes the lock again in the same second, if it is free.
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

/// Holds the lock until dropped.
#[derive(Debug)]
pub(crate) struct TickGuard<'a> {
    lock: &'a TickLock,
    word: u32,
    since: u32,
}

impl TickGuard<'_> {
    /// Seconds since the lock was last taken; 0 if it was retaken in the same second.
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
    fn the_first_thread_of_a_second_gets_the_lock() {
        let duty = TickLock::new();
        assert!(duty.try_lock(0).is_none(), "there is nothing to do yet");
        let taken = duty.try_lock(3).unwrap();
        assert_eq!(taken.since(), 3);
        assert!(duty.try_lock(3).is_none());
        assert!(duty.try_lock(4).is_none(), "the lock is still held");
        drop(taken);
        assert!(duty.try_lock(3).is_none());
        assert!(duty.try_lock(2).is_none(), "a clock that lags has no duty");
        assert_eq!(duty.try_lock(5).unwrap().since(), 2);
    }

    #[test]
    fn the_lock_can_be_taken_again_but_not_twice_at_once() {
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
