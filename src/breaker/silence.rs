//! Whether an upstream has been silent for long enough that failures in a row are its own.
//!
//! Failures in a row are evidence only if successes were to be expected among them. A client that calls one route that
//! hangs or crashes makes many of them between two calls of others. So the row counts once the upstream has succeeded
//! with no call for eight times the mean time between two successes, and for twice the longest: for a busy upstream after
//! milliseconds, for a quiet one after a few calls more.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// How many successes must be missing.
const MISSING: u64 = 8;

/// Times are stored with this resolution, in nanoseconds: threads that succeed all the time seldom write.
const RESOLUTION: u64 = 1_000_000;

/// When the upstream succeeded, in nanoseconds since the circuit's origin.
#[derive(Debug, Default)]
pub(super) struct Silence {
    /// One more than the time of the last success; 0 if there was none.
    last: AtomicU64,
    /// The longest time between two successes, and when it ended.
    longest: AtomicU64,
    longest_end: AtomicU64,
    /// When counting began.
    since: AtomicU64,
}

impl Silence {
    /// A call has succeeded.
    #[inline]
    pub(super) fn end(&self, now: u64) {
        let last = self.last.load(Relaxed);
        if last == 0 || now.saturating_sub(last) >= RESOLUTION {
            self.record(last, now);
        }
    }

    // the last one of two threads wins: a millisecond more or less decides nothing
    fn record(&self, last: u64, now: u64) {
        self.last.store(now + 1, Relaxed);
        if last != 0 && now - last.min(now) >= self.longest.load(Relaxed) {
            self.longest.store(now - last.min(now), Relaxed);
            self.longest_end.store(now, Relaxed);
        }
    }

    /// Whether successes are missing, if there were `successes` in the `window` that ends now.
    pub(super) fn is_long(&self, now: u64, window: u64, successes: u64) -> bool {
        let last = self.last.load(Relaxed);
        if last == 0 || successes == 0 {
            return true;
        }
        if now.saturating_sub(self.longest_end.load(Relaxed)) > window {
            self.longest.store(0, Relaxed);
        }
        let counted = now.saturating_sub(self.since.load(Relaxed)).min(window);
        let expected = (counted / successes * MISSING).max(self.longest.load(Relaxed) * 2).min(window);
        now.saturating_sub(last) + RESOLUTION >= expected
    }

    /// Counts from now on.
    pub(super) fn restart(&self, now: u64) {
        self.last.store(0, Relaxed);
        self.longest.store(0, Relaxed);
        self.since.store(now, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;
    const WINDOW: u64 = 10_000 * MS;

    #[test]
    fn an_upstream_that_never_succeeded_is_silent() {
        assert!(Silence::default().is_long(0, WINDOW, 0));
    }

    #[test]
    fn eight_missing_successes_are_silence_whatever_the_rate() {
        for (apart, per_window) in [(MS, 10_000), (143 * MS, 70), (1000 * MS, 10)] {
            let silence = Silence::default();
            silence.end(20_000 * MS);
            assert!(!silence.is_long(20_000 * MS + apart * 6, WINDOW, per_window), "{apart}");
            assert!(silence.is_long(20_000 * MS + apart * 8, WINDOW, per_window), "{apart}");
        }
    }

    #[test]
    fn a_pause_that_is_usual_is_no_silence() {
        let silence = Silence::default();
        for burst in 0..10 {
            (0..100).for_each(|call| silence.end((burst * 1000 + call) * MS));
        }
        assert!(!silence.is_long((9099 + 900) * MS, WINDOW, 1000));
        assert!(silence.is_long((9099 + 1900) * MS, WINDOW, 1000));
        assert!(silence.is_long((8000 + 10_001) * MS, WINDOW, 1000), "longer ago than a window");
    }

    #[test]
    fn a_window_without_a_success_is_always_silence() {
        let silence = Silence::default();
        silence.end(5 * MS);
        assert!(silence.is_long(WINDOW + 5 * MS, WINDOW, 1));
    }

    #[test]
    fn successes_before_a_restart_do_not_count() {
        let silence = Silence::default();
        silence.end(5 * MS);
        silence.restart(6 * MS);
        assert!(silence.is_long(7 * MS, WINDOW, 1000));
        silence.end(8 * MS);
        assert!(!silence.is_long(9 * MS + MS, WINDOW, 1));
    }
}
