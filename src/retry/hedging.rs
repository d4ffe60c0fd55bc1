//! Hedging: a second, concurrent attempt if the first is late.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::stats::{Quantile, WindowedHistogram, default_stripes};

/// Marks an unknown delay: larger than any real one.
const UNKNOWN: u32 = u32::MAX;

/// The maximum number of stripes: more would take over 32 KiB.
const MOST_STRIPES: usize = 8;

/// When to start a second attempt while the first is in flight ("hedged requests", Dean and Barroso, "The Tail at
/// Scale", 2013).
///
/// | setting | default | |
/// |---|---|---|
/// | [`quantile`](Self::quantile) | [`Quantile::P95`] | of the last minute's responses: a call slower than that is hedged |
/// | [`min_samples`](Self::min_samples) | 200 | with fewer nothing is hedged |
/// | [`at_least`](Self::at_least) | 10 ms | the shortest delay |
///
/// Only safe requests (RFC 9110 section 9.2.1) are hedged, and those that [`RetryOverride::idempotent`](super::RetryOverride::idempotent)
/// allows: a late PUT or DELETE could undo a later write. Only the first attempt is hedged, and only while the whole request body
/// is available: usually requests without one. The second attempt withdraws a token from the budget like a retry, counts as one
/// of the attempts, and is boxed when it starts. The first response that is not a failure is returned, and the other attempt is
/// dropped; if one fails, the other is waited for, and the later failure is decided on as usual.
///
/// Samples are the times from the call to the response head of responses below 400. A superseded first attempt counts with the time it had taken
/// so far. The delay is updated once per second. Clones share their samples.
///
/// ```
/// use std::time::Duration;
/// use tower_upstream::retry::{Hedging, Quantile, RetryLayer};
///
/// let layer = RetryLayer::new().hedging(Hedging::new().quantile(Quantile::P99).at_least(Duration::from_millis(50)));
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct Hedging {
    quantile: Quantile,
    min_samples: u64,
    at_least: Duration,
    learned: Option<Arc<LearnedDelay>>,
}

/// The state shared by clones.
#[derive(Debug)]
struct LearnedDelay {
    histogram: WindowedHistogram,
    /// In microseconds.
    delay: AtomicU32,
}

impl Hedging {
    /// Hedges after the learned 95th percentile.
    pub fn new() -> Self {
        let minute = WindowedHistogram::new(default_stripes().min(MOST_STRIPES));
        Self {
            quantile: Quantile::P95,
            min_samples: 200,
            at_least: Duration::from_millis(10),
            learned: Some(Arc::new(LearnedDelay { histogram: minute, delay: AtomicU32::new(UNKNOWN) })),
        }
    }

    /// Hedges after a fixed delay; one beyond the range of the clock never elapses.
    pub fn after(delay: Duration) -> Self {
        Self { quantile: Quantile::P95, min_samples: 0, at_least: delay, learned: None }
    }

    /// The delay, if it is fixed.
    pub(crate) fn fixed(&self) -> Option<Duration> {
        if self.learned.is_none() { Some(self.at_least) } else { None }
    }

    /// The shortest delay, learned or not.
    pub(crate) fn min_delay(&self) -> Duration {
        self.at_least
    }

    /// Sets the quantile of response times after which a call is hedged.
    ///
    /// The share above it is the extra load: 5 % by default, and never more than the budget allows.
    pub fn quantile(mut self, quantile: Quantile) -> Self {
        self.quantile = quantile;
        self
    }

    /// Sets the number of samples needed to know the delay, at least 1.
    pub fn min_samples(mut self, samples: u32) -> Self {
        self.min_samples = u64::from(samples.max(1));
        self
    }

    /// Sets the shortest delay: if all responses are fast, hedging gains nothing.
    pub fn at_least(mut self, delay: Duration) -> Self {
        self.at_least = delay;
        self
    }

    /// The delay at this time; `None` while too little is known.
    pub fn delay(&self, now: Instant) -> Option<Duration> {
        let Some(learned) = &self.learned else { return Some(self.at_least) };
        let second = learned.histogram.second(now);
        if let Some(_taken) = learned.histogram.try_lock(second) {
            self.estimate(learned, second);
        }
        match learned.delay.load(Ordering::Relaxed) {
            UNKNOWN => None,
            micros => Some(Duration::from_micros(micros.into()).max(self.at_least)),
        }
    }

    /// Records the duration of a first attempt, or its duration so far if it was superseded.
    pub(super) fn record(&self, now: Instant, elapsed: Duration) {
        if let Some(learned) = &self.learned {
            learned.histogram.record(learned.histogram.second(now), elapsed);
        }
    }

    #[cold]
    fn estimate(&self, learned: &LearnedDelay, second: u32) {
        let (histogram, _) = learned.histogram.read(second);
        let delay = match histogram.quantile(self.quantile) {
            Some(quantile) if histogram.samples() >= self.min_samples => {
                u32::try_from(quantile.as_micros()).unwrap_or(UNKNOWN - 1).min(UNKNOWN - 1)
            }
            _ => UNKNOWN,
        };
        learned.delay.store(delay, Ordering::Relaxed);
    }
}

impl Default for Hedging {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// Records 100 responses a second: 24 of 25 take this long, the others ten times that.
    fn learns(hedging: &Hedging, mut now: Instant, answers: u32, takes: Duration) -> Instant {
        for answer in 0..answers {
            now += millis(10);
            hedging.record(now, if answer % 25 == 0 { takes * 10 } else { takes });
        }
        now
    }

    #[test]
    fn nothing_is_hedged_before_it_is_known_what_is_late() {
        let hedging = Hedging::new();
        let now = learns(&hedging, Instant::now(), 199, millis(40));
        assert_eq!(hedging.delay(now), None);
        let now = learns(&hedging, now, 101, millis(40));
        let delay = hedging.delay(now).unwrap();
        assert!(delay > millis(38) && delay < millis(42), "{delay:?}");
    }

    #[test]
    fn the_delay_follows_the_answers_and_clones_learn_together() {
        let hedging = Hedging::new().at_least(millis(1));
        let now = learns(&hedging.clone(), Instant::now(), 1000, millis(40));
        assert!(hedging.delay(now).unwrap() < millis(42));
        // a minute later none of those count
        let now = learns(&hedging, now, 6200, millis(100));
        let delay = hedging.clone().delay(now).unwrap();
        assert!(delay > millis(95) && delay < millis(105), "{delay:?}");
        assert_eq!(hedging.delay(now + Duration::from_secs(120)), None, "and after a silence nothing is known");
    }

    #[test]
    fn fast_answers_do_not_make_a_storm() {
        let hedging = Hedging::new();
        let now = learns(&hedging, Instant::now(), 1000, Duration::from_micros(300));
        assert_eq!(hedging.delay(now), Some(millis(10)));
        assert_eq!(Hedging::after(millis(3)).delay(now), Some(millis(3)));
    }
}
