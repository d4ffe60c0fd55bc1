//! The adaptive limit.
//!
//! A gradient limiter like Netflix' `Gradient2` and Envoy's adaptive concurrency: the ratio of the current latency to the
//! latency without queueing shows how long the upstream's queue is. It works on windows instead of single samples, so that noise
//! does not move the limit, and on the latency that a quarter of the calls do not exceed, so that slow routes do not. It
//! begins at its upper bound.
//!
//! A window ends after 100 ms and one latency, with at least 16 samples. Then
//!
//! > limit = limit x clamp(2 x baseline / latency, 1/2, 1) + sqrt(limit)
//!
//! or, if more than a tenth of the samples were refusals or timeouts of more than one route, the lower of the limit and of
//! twice the calls in flight, x 0.7. The limit grows only if at least half of it was in flight at some sample of the window, and
//! it never falls below twice the calls in flight and an eighth of the upper bound unless all of it was in use. It doubles every five seconds without
//! evidence of overload, whatever was in use: at the latest a minute after the upstream is healthy, nothing is refused.
//!
//! **Equilibrium.** An upstream with `K` workers and a service time of `S` that is always busy completes `K / S` calls per
//! second, and by Little's law `L` calls in flight wait `(L / K - 1) * S` and take `q * S` more if a quarter of the service
//! times do not exceed that. The limit is stable where that equals `2 * q * S / (1 - 1 / sqrt(L))`, so at
//! `L = K * (1 - q + 2 * q / (1 - 1 / sqrt(L)))`: slightly more than twice the workers for constant service times
//! (`q = 1`), and 1.4 to 1.6 times for exponential and lognormal ones (`q = 0.3`). All workers are busy.
//!
//! In simulations with 8 and 40 workers, twice the load and three seeds each, starting idle or overloaded, the limit is within 10 %
//! of that for constant service times and 20 % for exponential and lognormal ones (sigma 1). Workers are busy for 94 to 99 % of
//! the time. If one call in ten takes twenty times as long as the others, the limit is up to a third higher.
use std::time::Duration;

use tokio::time::Instant;

use super::baseline::{LatencyBaseline, LatencySample};
use super::raise_probe::RaiseProbe;
use super::samples::{Sample, SampleSum};

const WINDOW: Duration = Duration::from_millis(100);
/// The longest window, whatever the mean latency.
const LONGEST: Duration = Duration::from_secs(10);
const ENOUGH: u32 = 16;

/// A window that takes longer than this to fill shows a burst of calls, unless each of them takes long.
const IDLE: Duration = Duration::from_secs(1);

/// A window that is not filled by then restarts: its first samples are outdated.
const STALE: Duration = Duration::from_secs(60);

const CUT: f64 = 0.7;
const TOLERANCE: f64 = 2.0;

/// The fraction of the limit during a probe.
const PROBE: f64 = 0.25;

/// A limit is at least this many times what is in flight, until something presses against it.
const HEADROOM: f64 = 2.0;

/// Nor is it less than the upper bound divided by this.
const ROOM: f64 = 8.0;

/// The time without evidence of overload after which the limit doubles.
const CALM: Duration = Duration::from_secs(5);

/// Why the limit changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LimitChangeReason {
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
    /// There was no evidence of overload for five seconds.
    Recovered,
}

impl LimitChangeReason {
    /// The name in snake case.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Grew => "grew",
            Self::Slow => "slow",
            Self::Overloaded => "overloaded",
            Self::Probe => "probe",
            Self::Probed => "probed",
            Self::Recovered => "recovered",
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
    /// The samples of the window, or of the probe.
    sum: SampleSum,
    latency: Option<f64>,
    probe: Option<RaiseProbe>,
    /// The limit when saturation began, or after the last probe.
    unpressed: f64,
    /// When there was evidence of overload, or the limit last grew for want of it.
    calm_since: Option<Instant>,
    moved: Option<LimitChangeReason>,
}

impl Gradient {
    /// A limit between these bounds, at first the upper one.
    pub(super) fn new(least: u32, most: u32) -> Self {
        let (least, most) = (f64::from(least.max(1)), f64::from(most.max(least).max(1)));
        Self {
            least,
            most,
            limit: most,
            baseline: LatencyBaseline::new(),
            opened: None,
            sum: SampleSum::new(),
            latency: None,
            probe: None,
            unpressed: most,
            calm_since: None,
            moved: None,
        }
    }

    /// The limit, in whole calls.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // it lies between the bounds
    pub(super) fn limit(&self) -> u32 {
        self.limit as u32
    }

    /// The latency of the last window; `None` before the first.
    pub(super) fn latency(&self) -> Option<Duration> {
        self.latency.map(duration)
    }

    /// The latency without queueing; `None` before the first window.
    pub(super) fn baseline(&self) -> Option<Duration> {
        self.baseline.get().map(duration)
    }

    /// Why the limit changed last.
    pub(super) fn moved(&self) -> Option<LimitChangeReason> {
        self.moved
    }

    /// Whether a window has far fewer samples than it needs.
    pub(super) fn is_starved(&self, now: Instant) -> bool {
        let open = self.opened.map(|opened| now.saturating_duration_since(opened));
        self.sum.total() < ENOUGH && open.is_none_or(|open| open > WINDOW * 2)
    }

    /// Adds a sample. If it completes a window or a probe, returns its duration and number of healthy samples.
    pub(super) fn sample(&mut self, sample: &Sample) -> Option<(Duration, u32)> {
        self.recover(sample.now);
        let limit = self.limit();
        if let Some(probe) = &mut self.probe {
            if !probe.add(sample, limit, &mut self.sum) {
                return None;
            }
            let (took, samples) = (probe.elapsed(sample.now), self.sum.healthy());
            self.end_probe(sample.now);
            return Some((took, samples));
        }
        let opened = *self.opened.get_or_insert(sample.now);
        self.sum.add(sample);
        let open = sample.now.saturating_duration_since(opened);
        let enough = self.sum.total() >= ENOUGH;
        // the last latency, unless it was that of an outage
        let last = self.latency.unwrap_or_default();
        let long = |sum: &mut SampleSum| {
            duration(sum.latency().map_or(0.0, |latency| last.min(latency * HEADROOM))).clamp(WINDOW, LONGEST)
        };
        if enough && open >= WINDOW && open >= long(&mut self.sum) {
            let samples = self.sum.healthy();
            self.end_window(open, sample.now);
            self.reopen(sample.now);
            return Some((open, samples));
        }
        if !enough && open > STALE {
            self.reopen(sample.now);
        }
        None
    }

    /// Doubles the limit for each [`CALM`] that has passed without evidence of overload.
    ///
    /// Called for samples and for refusals: a limit that is too low admits few calls, which may never fill a window.
    pub(super) fn recover(&mut self, now: Instant) {
        if self.probe.as_ref().is_some_and(|probe| probe.is_overdue(now)) {
            self.end_probe(now);
        }
        let since = *self.calm_since.get_or_insert(now);
        let calm = now.saturating_duration_since(since);
        if self.probe.is_some() || calm < CALM {
            return;
        }
        let times = calm.as_secs() / CALM.as_secs();
        self.calm_since = Some(now);
        self.set(self.limit * 2_f64.powi(i32::try_from(times).unwrap_or(i32::MAX)), LimitChangeReason::Recovered);
    }

    fn reopen(&mut self, now: Instant) {
        self.opened = Some(now);
        self.sum.clear();
    }

    fn end_window(&mut self, open: Duration, now: Instant) {
        let latency = self.sum.latency();
        self.latency = latency.or(self.latency);
        let in_use = f64::from(self.sum.max_in_flight);
        if self.sum.is_overloaded(now) {
            self.calm_since = Some(now);
            return self.set(self.limit.min(in_use * HEADROOM) * CUT, LimitChangeReason::Overloaded);
        }
        // of two slots that are always in use, 16 calls take eight latencies
        let is_idle = open >= IDLE && latency.is_none_or(|latency| open.as_secs_f64() > latency * f64::from(ENOUGH));
        let full = self.sum.max_in_flight >= self.limit() && !is_idle;
        let is_used = in_use * HEADROOM >= self.limit.floor();
        let Some(latency) = latency else {
            if is_used {
                self.set(self.limit + self.limit.sqrt(), LimitChangeReason::Grew);
            }
            return;
        };
        let asks = self.baseline.update(LatencySample { latency, samples: self.sum.successes, full }, now);
        let gradient = self.baseline.get().map_or(1.0, |baseline| TOLERANCE * baseline / latency).clamp(0.5, 1.0);
        if !self.baseline.is_saturated() {
            self.unpressed = self.limit;
        }
        if full && gradient < 1.0 {
            self.calm_since = Some(now);
        }
        let limit = self.limit * gradient + self.limit.sqrt();
        if limit < self.limit && !full {
            // nothing is refused: only bounds by how much more may be in flight
            let least = (in_use * HEADROOM).max(self.most / ROOM);
            self.set(limit.max(least).min(self.limit), LimitChangeReason::Slow);
            self.unpressed = self.limit;
        } else if limit < self.limit {
            self.set(limit, LimitChangeReason::Slow);
        } else if is_used {
            self.set(limit, LimitChangeReason::Grew);
        }
        // a limit this low acts as a probe already, and has to complete as one before it falls further
        let down = self.limit <= self.unpressed * PROBE || (asks_little(self.limit) && gradient < 1.0 && full);
        if asks || down {
            let (probe, part) = if down { (self.limit, 2) } else { (self.limit * PROBE, 1) };
            self.probe = Some(RaiseProbe::new(self.limit, part, now));
            self.set(probe, LimitChangeReason::Probe);
        }
    }

    fn end_probe(&mut self, now: Instant) {
        let Some(probe) = self.probe.take() else { return };
        let took = probe.elapsed(now);
        let is_complete = self.sum.total() >= ENOUGH && !self.sum.is_overloaded(now);
        match self.sum.latency() {
            Some(latency) if is_complete => {
                self.latency = Some(latency);
                self.baseline.confirm(latency, took, now);
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

/// Whether so few calls hardly queue in any upstream.
fn asks_little(limit: f64) -> bool {
    limit < 6.0
}

fn duration(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
}

#[cfg(test)]
mod tests;
