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
const MAX_PROBE: Duration = Duration::from_secs(30);

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
    pub(super) sum: SampleSum,
}

impl RaiseProbe {
    /// Starts a probe; `limit` is the limit to return to.
    pub(super) fn new(limit: f64, part: u32, now: Instant) -> Self {
        Self { started: now, limit, fraction: part, queued_samples: None, sum: SampleSum::default() }
    }

    /// Adds a call and returns whether the probe is complete, by samples or by time.
    ///
    /// Every call that ends is a sample, whenever it started: counting only calls that started within the probe would
    /// exclude those that take longer than the probe.
    pub(super) fn add(&mut self, sample: &Sample, limit: u32) -> bool {
        match &mut self.queued_samples {
            None if sample.in_flight > limit => {}
            None => self.queued_samples = Some(limit * QUEUED_ROUNDS),
            Some(0) => self.sum.add(sample),
            Some(behind) => *behind -= 1,
        }
        let enough = self.sum.total() * self.fraction >= PROBE_SAMPLES.max(limit * PROBE_ROUNDS);
        enough || self.elapsed(sample.now) >= MAX_PROBE
    }

    pub(super) fn elapsed(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.started)
    }
}
