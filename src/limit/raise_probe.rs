//! A probe for the baseline: a period with a lower limit, in which responses hardly queue.

use std::time::Duration;

use tokio::time::Instant;

use super::samples::{Sample, SampleSum};

/// Minimum number of samples of a probe, and samples per slot.
const PROBE_SAMPLES: u32 = 64;
const PROBE_ROUNDS: u32 = 3;
/// Samples per slot that are skipped first, because some of them still queued.
const QUEUED_ROUNDS: u32 = 3;
/// A probe that takes longer is aborted.
const MAX_PROBE: Duration = Duration::from_secs(10);

/// A period with fewer calls in flight, to measure the latency without queueing.
#[derive(Debug)]
pub(super) struct RaiseProbe {
    started: Instant,
    /// The limit before the probe.
    pub(super) limit: f64,
    /// Divides the number of samples needed: a probe before the limit may fall further needs fewer.
    fraction: u32,
    /// Samples still expected to have queued; `None` while the limit is exceeded.
    queued_samples: Option<u32>,
}

impl RaiseProbe {
    /// Starts a probe; `limit` is the limit to return to.
    pub(super) fn new(limit: f64, part: u32, now: Instant) -> Self {
        Self { started: now, limit, fraction: part, queued_samples: None }
    }

    /// Adds a call to the probe's `sum`, and returns whether that has enough samples.
    ///
    /// Every call that ends is a sample, whenever it started: counting only calls that started within the probe would
    /// exclude those that take longer than the probe.
    pub(super) fn add(&mut self, sample: &Sample, limit: u32, sum: &mut SampleSum) -> bool {
        match &mut self.queued_samples {
            None if sample.in_flight > limit => {}
            None => self.queued_samples = Some(limit * QUEUED_ROUNDS),
            Some(0) => sum.add(sample),
            Some(behind) => *behind -= 1,
        }
        sum.total() * self.fraction >= PROBE_SAMPLES.max(limit * PROBE_ROUNDS)
    }

    pub(super) fn elapsed(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.started)
    }

    /// Whether the probe has taken so long that it is aborted.
    pub(super) fn is_overdue(&self, now: Instant) -> bool {
        self.elapsed(now) >= MAX_PROBE
    }
}
