//! A look at how long an answer takes with next to no line before it.

use std::time::Duration;

use tokio::time::Instant;

use super::samples::{Sample, SampleSum};

/// A probe takes so many samples at least, and so many to a slot.
const PROBE_SAMPLES: u32 = 64;
const PROBE_ROUNDS: u32 = 3;
/// So many to a slot are let go before, as some of them had a line before them.
const QUEUED_ROUNDS: u32 = 3;
/// A probe that takes longer is broken off.
const MAX_PROBE: Duration = Duration::from_secs(30);

/// A stretch of time with fewer calls in flight, to see how long an answer takes.
#[derive(Debug)]
pub(super) struct RaiseProbe {
    started: Instant,
    /// What the limit was before.
    pub(super) limit: f64,
    /// One that the limit must not go on falling without is over with this part of the samples.
    fraction: u32,
    /// So many samples still have a line before them; none while too many are in flight.
    queued_samples: Option<u32>,
    pub(super) sum: SampleSum,
}

impl RaiseProbe {
    /// Begins where the limit was this.
    pub(super) fn new(limit: f64, part: u32, now: Instant) -> Self {
        Self { started: now, limit, fraction: part, queued_samples: None, sum: SampleSum::default() }
    }

    /// Takes in a call; whether that is enough, or it took too long.
    ///
    /// Whatever ends is a sample, whenever it began: to count only what began after the probe would leave out what takes
    /// longer than the probe.
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
