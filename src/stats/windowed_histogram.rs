//! The durations of the last minute, by a clock of their own.

use std::sync::OnceLock;
use std::time::Duration;

use tokio::time::Instant;

use super::{BUCKETS, Bookmark, Histogram, StripedWindow, TickGuard, TickLock, bucket, stripe};

/// A window of durations, its epoch, and the duty to look at it once a second.
///
/// The minute is the running half and the one before: 30 to 60 seconds of samples count.
#[derive(Debug)]
pub(crate) struct WindowedHistogram {
    /// The first time that was heard of: seconds count from here.
    epoch: OnceLock<Instant>,
    window: StripedWindow,
    tick_lock: TickLock,
}

impl WindowedHistogram {
    pub(crate) fn new(stripes: usize) -> Self {
        Self { epoch: OnceLock::new(), window: StripedWindow::new(stripes, BUCKETS), tick_lock: TickLock::new() }
    }

    /// Seconds since the first call of all; an earlier time counts as that.
    #[inline]
    pub(crate) fn second(&self, now: Instant) -> u32 {
        let epoch = *self.epoch.get_or_init(|| now);
        u32::try_from(now.saturating_duration_since(epoch).as_secs()).unwrap_or(u32::MAX)
    }

    #[inline]
    pub(crate) fn record(&self, second: u32, elapsed: Duration) {
        self.window.record(second, stripe(), bucket(elapsed));
    }

    /// The duty to make an estimate in this second, for the first who asks.
    #[inline]
    pub(crate) fn try_lock(&self, second: u32) -> Option<TickGuard<'_>> {
        self.tick_lock.try_lock(second)
    }

    /// The duty once more in its second.
    pub(crate) fn try_relock(&self) -> Option<TickGuard<'_>> {
        self.tick_lock.try_relock()
    }

    /// All that counts in this second.
    pub(crate) fn read(&self, second: u32) -> (Histogram, Bookmark) {
        let mut histogram = Histogram::new();
        let mark = self.window.read(second, |bucket, samples| histogram.add(bucket, samples));
        (histogram, mark)
    }

    /// How many bytes the counters take.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        self.window.bytes()
    }
}
