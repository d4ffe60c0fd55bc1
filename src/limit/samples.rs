//! What calls that have ended tell, added up.

use tokio::time::Instant;

/// The share of answers that may be bad, as one of so many.
const ONE_OF: u32 = 10;

/// One call that has ended, told while it still holds its slot.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    pub(super) started: Instant,
    pub(super) now: Instant,
    /// How many were in flight, this one among them.
    pub(super) in_flight: u32,
    pub(super) kind: SampleKind,
}

/// What the end of a call tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SampleKind {
    /// An answer, which took its time.
    Success,
    /// The upstream had too much to do, or took too long.
    Overloaded,
}

/// What a stretch of samples adds up to.
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
        // no time at all would be no measure for anything
        (self.successes > 0).then(|| (self.seconds / f64::from(self.successes)).max(1e-6))
    }

    pub(super) fn is_overloaded(&self) -> bool {
        self.overloaded * ONE_OF > self.total()
    }
}
