//! Samples of completed calls, and their sums.

use tokio::time::Instant;

/// More than one overloaded sample in this many means overload.
const ONE_OF: u32 = 10;

/// One completed call, recorded while it still holds its slot.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    pub(super) started: Instant,
    pub(super) now: Instant,
    /// Calls in flight, this one included.
    pub(super) in_flight: u32,
    pub(super) kind: SampleKind,
}

/// The kind of a sample: what it shows about the load of the upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SampleKind {
    /// A response whose latency counts.
    Success,
    /// The upstream refused the call for load, or timed out.
    Overloaded,
}

/// The sum of a series of samples.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SampleSum {
    pub(super) successes: u32,
    overloaded: u32,
    seconds: f64,
    pub(super) max_in_flight: u32,
}

impl SampleSum {
    pub(super) fn add(&mut self, sample: &Sample) {
        self.max_in_flight = self.max_in_flight.max(sample.in_flight);
        match sample.kind {
            SampleKind::Success => {
                self.successes += 1;
                self.seconds += sample.now.saturating_duration_since(sample.started).as_secs_f64();
            }
            SampleKind::Overloaded => self.overloaded += 1,
        }
    }

    pub(super) fn total(&self) -> u32 {
        self.successes + self.overloaded
    }

    pub(super) fn mean(&self) -> Option<f64> {
        // zero would make the gradient meaningless
        (self.successes > 0).then(|| (self.seconds / f64::from(self.successes)).max(1e-6))
    }

    pub(super) fn is_overloaded(&self) -> bool {
        self.overloaded * ONE_OF > self.total()
    }
}
