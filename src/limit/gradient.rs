//! The adaptive limit.
//!
//! A gradient limiter like Netflix' `Gradient2` and Envoy's adaptive concurrency: the ratio of the current latency to the
//! latency without queueing shows how long the upstream's queue is. It works on windows instead of single samples, so that noise
//! does not move the limit.
//!
//! A window ends after 100 ms and one mean latency, with at least 16 samples. Then
//!
//! > limit = limit x clamp(2 x baseline / mean, 1/2, 1) + sqrt(limit)
//!
//! or, if more than a tenth of the samples were refusals or timeouts, limit x 0.7. The limit grows only if at least half of
//! it was in flight at some sample of the window: a limit that is not used has not been tested.
//!
//! **Equilibrium.** An upstream with `K` workers and a service time of `S` that is always busy completes `K / S` calls per
//! second, and by Little's law `L` calls in flight take `L * S / K` each. The limit is stable where that equals
//! `2 * S / (1 - 1 / sqrt(L))`, so at `L = 2 * K / (1 - 1 / sqrt(L))`: slightly more than twice the workers. All
//! workers are busy, and about one call waits for each.
//!
//! In simulations with 8 and 40 workers, twice the load and three seeds each, starting idle or overloaded, the limit is within 5 %
//! of that for constant service times and 13 % for exponential and lognormal ones (sigma 1), and workers are busy for 98 % of the
//! time. If one call in ten takes twenty times as long as the others, windows with more of those resemble queueing: the limit is
//! up to a third lower, and workers are busy for 96 % of the time.
use std::time::Duration;

use tokio::time::Instant;

use super::baseline::{LatencyBaseline, LatencySample};
use super::raise_probe::RaiseProbe;
use super::samples::{Sample, SampleSum};

const WINDOW: Duration = Duration::from_millis(100);
/// The longest window, whatever the mean latency.
const LONGEST: Duration = Duration::from_secs(10);
const ENOUGH: u32 = 16;

/// A window that is not filled by then restarts: its first samples are outdated.
const STALE: Duration = Duration::from_secs(60);

const CUT: f64 = 0.7;
const TOLERANCE: f64 = 2.0;

/// The fraction of the limit during a probe.
const PROBE: f64 = 0.25;

/// The initial limit, clamped to the bounds.
const INITIAL: f64 = 20.0;

/// Why the limit changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LimitChangeReason {
    /// Responses were fast, and at least half of the limit was in use.
    Grew,
    /// Responses took more than twice the baseline.
    Slow,
    /// More than a tenth of the calls were refused by the upstream or timed out.
    Overloaded,
    /// Lowered for a moment, to measure the latency without queueing.
    Probe,
    /// A probe ended: the limit is back at its earlier value.
    Probed,
}

impl LimitChangeReason {
    /// The name in snake case.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Grew => "grew",
            Self::Slow => "slow",
            Self::Overloaded => "overloaded",
            Self::Probe => "probe",
            Self::Probed => "probed",
        }
    }
}

/// The limit and the measurements it is based on.
#[derive(Debug)]
pub(super) struct Gradient {
    least: f64,
    most: f64,
    limit: f64,
    baseline: LatencyBaseline,
    opened: Option<Instant>,
    sum: SampleSum,
    mean: Option<f64>,
    probe: Option<RaiseProbe>,
    /// The limit when saturation began, or after the last probe.
    unpressed: f64,
    moved: Option<LimitChangeReason>,
}

impl Gradient {
    /// A limit between these bounds, initially 20.
    pub(super) fn new(least: u32, most: u32) -> Self {
        let (least, most) = (f64::from(least.max(1)), f64::from(most.max(least).max(1)));
        Self {
            least,
            most,
            limit: INITIAL.clamp(least, most),
            baseline: LatencyBaseline::new(),
            opened: None,
            sum: SampleSum::default(),
            mean: None,
            probe: None,
            unpressed: 0.0,
            moved: None,
        }
    }

    /// The limit, in whole calls.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // it lies between the bounds
    pub(super) fn limit(&self) -> u32 {
        self.limit as u32
    }

    /// Mean time to the response head in the last window; `None` before the first.
    pub(super) fn mean(&self) -> Option<Duration> {
        self.mean.map(duration)
    }

    /// Time to the response head without queueing; `None` before the first window.
    pub(super) fn baseline(&self) -> Option<Duration> {
        self.baseline.get().map(duration)
    }

    /// Why the limit changed last.
    pub(super) fn moved(&self) -> Option<LimitChangeReason> {
        self.moved
    }

    /// Adds a sample. If it completes a window or a probe, returns its duration and number of samples.
    pub(super) fn sample(&mut self, sample: &Sample) -> Option<(Duration, u32)> {
        let limit = self.limit();
        if let Some(probe) = &mut self.probe {
            if !probe.add(sample, limit) {
                return None;
            }
            let (took, samples) = (probe.elapsed(sample.now), probe.sum.total());
            self.end_probe(sample.now);
            return Some((took, samples));
        }
        let opened = *self.opened.get_or_insert(sample.now);
        self.sum.add(sample);
        let open = sample.now.saturating_duration_since(opened);
        let long = self.mean.map_or(WINDOW, |mean| duration(mean).clamp(WINDOW, LONGEST));
        if open < long || self.sum.total() < ENOUGH {
            if open > STALE && self.sum.total() < ENOUGH {
                self.reopen(sample.now);
            }
            return None;
        }
        let sum = self.reopen(sample.now);
        self.end_window(&sum, sample.now);
        Some((open, sum.total()))
    }

    fn reopen(&mut self, now: Instant) -> SampleSum {
        self.opened = Some(now);
        std::mem::take(&mut self.sum)
    }

    fn end_window(&mut self, sum: &SampleSum, now: Instant) {
        self.mean = sum.mean().or(self.mean);
        if sum.is_overloaded() {
            return self.set(self.limit * CUT, LimitChangeReason::Overloaded);
        }
        let Some(mean) = sum.mean() else { return };
        let full = sum.max_in_flight >= self.limit();
        let asks = self.baseline.update(LatencySample { mean, samples: sum.successes, full }, now);
        let gradient = self.baseline.get().map_or(1.0, |baseline| TOLERANCE * baseline / mean).clamp(0.5, 1.0);
        if !self.baseline.is_saturated() {
            self.unpressed = self.limit;
        }
        let limit = self.limit * gradient + self.limit.sqrt();
        if limit < self.limit {
            self.set(limit, LimitChangeReason::Slow);
        } else if f64::from(sum.max_in_flight) * 2.0 >= self.limit.floor() {
            self.set(limit, LimitChangeReason::Grew);
        }
        // a limit this low acts as a probe already, and has to complete as one before it falls further
        let down = self.limit <= self.unpressed * PROBE;
        if asks || down {
            let (probe, part) = if down { (self.limit, 2) } else { (self.limit * PROBE, 1) };
            self.probe = Some(RaiseProbe::new(self.limit, part, now));
            self.set(probe, LimitChangeReason::Probe);
        }
    }

    fn end_probe(&mut self, now: Instant) {
        let Some(probe) = self.probe.take() else { return };
        let took = probe.elapsed(now);
        match probe.sum.mean() {
            Some(mean) if probe.sum.total() >= ENOUGH && !probe.sum.is_overloaded() => {
                self.mean = Some(mean);
                self.baseline.confirm(mean, took, now);
            }
            _ => self.baseline.reset(took, now),
        }
        self.set(probe.limit, LimitChangeReason::Probed);
        self.unpressed = self.limit;
        self.reopen(now);
    }

    fn set(&mut self, limit: f64, why: LimitChangeReason) {
        let limit = limit.clamp(self.least, self.most);
        // only whole calls are visible outside
        if limit.floor() < self.limit.floor() || limit.floor() > self.limit.floor() {
            self.moved = Some(why);
        }
        self.limit = limit;
    }
}

fn duration(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
}

#[cfg(test)]
mod tests;
