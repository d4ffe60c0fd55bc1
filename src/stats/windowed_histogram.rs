//! A histogram of the durations of the last minute.

use std::sync::OnceLock;
use std::time::Duration;

use tokio::time::Instant;

use super::{BUCKETS, Bookmark, Histogram, StripedWindow, TickGuard, TickLock, bucket, stripe};

/// A window of durations with its epoch, and the lock for the estimate made once per second.
///
/// It covers the current half minute and the one before: 30 to 60 seconds of samples.
#[derive(Debug)]
pub(crate) struct WindowedHistogram {
    /// The first time passed in; seconds count from it.
    epoch: OnceLock<Instant>,
    window: StripedWindow,
    tick_lock: TickLock,
}

impl WindowedHistogram {
    pub(crate) fn new(stripes: usize) -> Self {
        Self { epoch: OnceLock::new(), window: StripedWindow::new(stripes, BUCKETS), tick_lock: TickLock::new() }
    }

    /// Seconds since the epoch; an earlier time counts as 0.
    #[inline]
    pub(crate) fn second(&self, now: Instant) -> u32 {
        let epoch = *self.epoch.get_or_init(|| now);
        u32::try_from(now.saturating_duration_since(epoch).as_secs()).unwrap_or(u32::MAX)
    }

    #[inline]
    pub(crate) fn record(&self, second: u32, elapsed: Duration) {
        self.window.record(second, stripe(), bucket(elapsed));
    }

    /// Takes the lock to make this second's estimate, once per second.
    #[inline]
    pub(crate) fn try_lock(&self, second: u32) -> Option<TickGuard<'_>> {
        self.tick_lock.try_lock(second)
    }

    /// Takes the lock again in the same second.
    pub(crate) fn try_relock(&self) -> Option<TickGuard<'_>> {
        self.tick_lock.try_relock()
    }

    /// The histogram of the window that ends with this second.
    pub(crate) fn read(&self, second: u32) -> (Histogram, Bookmark) {
        let mut histogram = Histogram::new();
        let mark = self.window.read(second, |bucket, samples| histogram.add(bucket, samples));
        (histogram, mark)
    }

    /// The size of the counters in bytes.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        self.window.bytes()
    }
}
