//! The limit that follows what the upstream can do.
//!
//! A gradient limiter, as Netflix' `Gradient2` and Envoy's adaptive concurrency: how much longer an answer takes than when
//! nothing waits in line tells how long the line is. Windows take the place of their single samples, so that noise moves
//! nothing.
//!
//! A window ends after 100 ms and one mean answer time, with 16 samples at least. Then
//!
//! > limit = limit x clamp(2 x baseline / mean, 1/2, 1) + sqrt(limit)
//!
//! or, where more than a tenth of the answers were refusals or timeouts, limit x 0.7. It grows only if at one sample in the window
//! at least half of it was in flight: a limit that nobody needs proves nothing.
//!
//! **Where it comes to rest.** An upstream with `K` workers and a service time of `S` that always has work does `K / S` a
//! second, and by Little's law `L` in flight take `L * S / K` each. The limit stands still where that is
//! `2 * S / (1 - 1 / sqrt(L))`, so at `L = 2 * K / (1 - 1 / sqrt(L))`: twice the workers and a little more. All
//! workers are busy, about one call waits for each.
//!
//! Simulated with 8 and 40 workers, twice the load and three seeds each, whether it began in peace or in the overload: within 5 %
//! of that for constant service times, 13 % for exponential and lognormal ones (sigma 1), and 98 % of the workers' time is used. Where one
//! in ten takes twenty times as long as the others, a window with more of those looks like a line: up to a third lower, 96 %.

use std::time::Duration;

use tokio::time::Instant;

use super::baseline::{LatencyBaseline, LatencySample};
use super::raise_probe::RaiseProbe;
use super::samples::{Sample, SampleSum};

const WINDOW: Duration = Duration::from_millis(100);
/// A mean answer time above this no longer lengthens the window.
const LONGEST: Duration = Duration::from_secs(10);
const ENOUGH: u32 = 16;

/// A window that has not filled by then begins anew: its first samples tell of another time.
const STALE: Duration = Duration::from_secs(60);

const CUT: f64 = 0.7;
const TOLERANCE: f64 = 2.0;

/// A probe goes on with this part of the limit.
const PROBE: f64 = 0.25;

/// Where the limit begins, if the bounds allow.
const INITIAL: f64 = 20.0;

/// Why the limit moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LimitChangeReason {
    /// Answers were quick, and at least half of the limit was in use.
    Grew,
    /// Answers took more than twice as long as the baseline.
    Slow,
    /// More than a tenth of the answers were refusals or timeouts.
    Overloaded,
    /// It is lowered for a moment, to see how long an answer takes with no line before it.
    Probe,
    /// The probe is over: it is what it was before, or what follows from the new baseline.
    Probed,
}

impl LimitChangeReason {
    /// The move's name in snake case.
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

/// The limit, and what it is learned from.
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
    /// The limit when windows began to be pressed, or of the last probe.
    unpressed: f64,
    moved: Option<LimitChangeReason>,
}

impl Gradient {
    /// A limit between these bounds, which begins at 20.
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

    /// The mean answer time of the last window; none before there was one.
    pub(super) fn mean(&self) -> Option<Duration> {
        self.mean.map(duration)
    }

    /// How long an answer takes when nothing waits in line for it; none before the first window.
    pub(super) fn baseline(&self) -> Option<Duration> {
        self.baseline.get().map(duration)
    }

    /// Why the limit moved last.
    pub(super) fn moved(&self) -> Option<LimitChangeReason> {
        self.moved
    }

    /// Takes in a call; how long its window took and how many samples it had, if it has ended with it.
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
        // so far down it is a probe as it is, and has to be one before it goes further
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
        // whole calls are what others see
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
