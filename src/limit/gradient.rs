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

use super::baseline::{Baseline, Seen};

const WINDOW: Duration = Duration::from_millis(100);
/// A mean answer time above this no longer lengthens the window.
const LONGEST: Duration = Duration::from_secs(10);
const ENOUGH: u32 = 16;

/// A window that has not filled by then begins anew: its first samples tell of another time.
const STALE: Duration = Duration::from_secs(60);

/// The share of answers that may be bad, as one of so many.
const ONE_OF: u32 = 10;
const CUT: f64 = 0.7;
const TOLERANCE: f64 = 2.0;

/// A probe goes on with this part of the limit, and takes so many samples at least, and so many to a slot.
const PROBE: f64 = 0.25;
const PROBE_SAMPLES: u32 = 64;
const PROBE_ROUNDS: u32 = 3;
/// So many to a slot are let go before, as some of them had a line before them.
const BEHIND_ROUNDS: u32 = 3;
/// A probe that takes longer is broken off.
const LONGEST_PROBE: Duration = Duration::from_secs(30);

/// Where the limit begins, if the bounds allow.
const INITIAL: f64 = 20.0;

/// One call that has ended, told while it still holds its slot.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    pub(super) began: Instant,
    pub(super) now: Instant,
    /// How many were in flight, this one among them.
    pub(super) in_flight: u32,
    pub(super) end: End,
}

/// What the end of a call tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// An answer, which took its time.
    Answered,
    /// The upstream had too much to do, or took too long.
    Overloaded,
}

/// Why the limit moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Move {
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

impl Move {
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

/// What a stretch of samples adds up to.
#[derive(Clone, Copy, Debug, Default)]
struct Sum {
    answered: u32,
    overloaded: u32,
    seconds: f64,
    most: u32,
}

impl Sum {
    fn add(&mut self, sample: &Sample) {
        self.most = self.most.max(sample.in_flight);
        match sample.end {
            End::Answered => {
                self.answered += 1;
                self.seconds += sample.now.saturating_duration_since(sample.began).as_secs_f64();
            }
            End::Overloaded => self.overloaded += 1,
        }
    }

    fn all(&self) -> u32 {
        self.answered + self.overloaded
    }

    fn mean(&self) -> Option<f64> {
        // no time at all would be no measure for anything
        (self.answered > 0).then(|| (self.seconds / f64::from(self.answered)).max(1e-6))
    }

    fn is_overloaded(&self) -> bool {
        self.overloaded * ONE_OF > self.all()
    }
}

#[derive(Debug)]
struct Probe {
    began: Instant,
    /// What the limit was before.
    limit: f64,
    /// One that the limit must not go on falling without is over with this part of the samples.
    part: u32,
    /// So many samples still have a line before them; none while too many are in flight.
    behind: Option<u32>,
    sum: Sum,
}

impl Probe {
    /// Takes in a call; whether that is enough.
    ///
    /// Whatever ends is a sample, whenever it began: to count only what began after the probe would leave out what takes
    /// longer than the probe.
    fn add(&mut self, sample: &Sample, limit: u32) -> bool {
        match &mut self.behind {
            None if sample.in_flight > limit => {}
            None => self.behind = Some(limit * BEHIND_ROUNDS),
            Some(0) => self.sum.add(sample),
            Some(behind) => *behind -= 1,
        }
        self.sum.all() * self.part >= PROBE_SAMPLES.max(limit * PROBE_ROUNDS)
    }

    fn took(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.began)
    }
}

/// The limit, and what it is learned from.
#[derive(Debug)]
pub(super) struct Gradient {
    least: f64,
    most: f64,
    limit: f64,
    baseline: Baseline,
    opened: Option<Instant>,
    sum: Sum,
    mean: Option<f64>,
    probe: Option<Probe>,
    /// The limit when windows began to be pressed, or of the last probe.
    unpressed: f64,
    moved: Option<Move>,
}

impl Gradient {
    /// A limit between these bounds, which begins at 20.
    pub(super) fn new(least: u32, most: u32) -> Self {
        let (least, most) = (f64::from(least.max(1)), f64::from(most.max(least).max(1)));
        Self {
            least,
            most,
            limit: INITIAL.clamp(least, most),
            baseline: Baseline::new(),
            opened: None,
            sum: Sum::default(),
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
    pub(super) fn moved(&self) -> Option<Move> {
        self.moved
    }

    /// Takes in a call; how long its window took and how many samples it had, if it has ended with it.
    pub(super) fn sample(&mut self, sample: &Sample) -> Option<(Duration, u32)> {
        let limit = self.limit();
        if let Some(probe) = &mut self.probe {
            if !probe.add(sample, limit) && probe.took(sample.now) < LONGEST_PROBE {
                return None;
            }
            let (took, samples) = (probe.took(sample.now), probe.sum.all());
            self.end_probe(sample.now);
            return Some((took, samples));
        }
        let opened = *self.opened.get_or_insert(sample.now);
        self.sum.add(sample);
        let open = sample.now.saturating_duration_since(opened);
        let long = self.mean.map_or(WINDOW, |mean| duration(mean).clamp(WINDOW, LONGEST));
        if open < long || self.sum.all() < ENOUGH {
            if open > STALE && self.sum.all() < ENOUGH {
                self.reopen(sample.now);
            }
            return None;
        }
        let sum = self.reopen(sample.now);
        self.turn(&sum, sample.now);
        Some((open, sum.all()))
    }

    fn reopen(&mut self, now: Instant) -> Sum {
        self.opened = Some(now);
        std::mem::take(&mut self.sum)
    }

    fn turn(&mut self, sum: &Sum, now: Instant) {
        self.mean = sum.mean().or(self.mean);
        if sum.is_overloaded() {
            return self.set(self.limit * CUT, Move::Overloaded);
        }
        let Some(mean) = sum.mean() else { return };
        let full = sum.most >= self.limit();
        let asks = self.baseline.follow(Seen { mean, samples: sum.answered, full }, now);
        let gradient = self.baseline.get().map_or(1.0, |baseline| TOLERANCE * baseline / mean).clamp(0.5, 1.0);
        if !self.baseline.is_pressed() {
            self.unpressed = self.limit;
        }
        let limit = self.limit * gradient + self.limit.sqrt();
        if limit < self.limit {
            self.set(limit, Move::Slow);
        } else if f64::from(sum.most) * 2.0 >= self.limit.floor() {
            self.set(limit, Move::Grew);
        }
        // so far down it is a probe as it is, and has to be one before it goes further
        let down = self.limit <= self.unpressed * PROBE;
        if asks || down {
            let (probe, part) = if down { (self.limit, 2) } else { (self.limit * PROBE, 1) };
            self.probe = Some(Probe { began: now, limit: self.limit, part, behind: None, sum: Sum::default() });
            self.set(probe, Move::Probe);
        }
    }

    fn end_probe(&mut self, now: Instant) {
        let Some(probe) = self.probe.take() else { return };
        let took = probe.took(now);
        match probe.sum.mean() {
            Some(mean) if probe.sum.all() >= ENOUGH && !probe.sum.is_overloaded() => {
                self.mean = Some(mean);
                self.baseline.prove(mean, took, now);
            }
            _ => self.baseline.rest(took, now),
        }
        self.set(probe.limit, Move::Probed);
        self.unpressed = self.limit;
        self.reopen(now);
    }

    fn set(&mut self, limit: f64, why: Move) {
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
