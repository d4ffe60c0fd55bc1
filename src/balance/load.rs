//! The load of one endpoint: calls in flight, and a peak-sensitive moving average of its response times.
//!
//! The average is that of Finagle's `PeakEwma`: a longer response time replaces it; shorter ones, and time without
//! responses, lower it with a time constant of 10 s. Of 1 s, 3 s and 10 s, only 10 s keeps a hundred gateways, each of
//! which sees 1.4 calls per second and endpoint, away from a slow endpoint.
//!
//! A call that has no response yet counts with its age. So gateways detect an endpoint that has become slow before its
//! first slow response. With a hundred gateways, that lowers the p99 from 5.9 to 1.5 times that of a choice that knows
//! the calls of all gateways (`tests/balance/simulation.rs`).
//!
//! A failure counts as a response time of 5 s (linkerd's penalty), because fast failures would attract calls. It is no
//! peak, but adds to the average by its share of the calls: as peaks, one failure in a hundred calls at every endpoint
//! would outweigh all differences of response times.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::outlier::{Counts, ONE_CALL, UNIT};

/// The time constant of the average, in seconds.
const DECAY: f32 = 10.0;
/// The least response time that a failure counts as.
const PENALTY: Duration = Duration::from_secs(5);
/// The shortest average, in seconds: with one near 0, an endpoint would look idle however many calls it has.
const MIN: f32 = 0.000_1;
/// One call whose response head is awaited, in [`Load::calls`].
const AWAITED: u64 = 1 << 32;
/// The longest response time that is counted, in [`UNIT`]s: 73 minutes.
const LONGEST: u64 = 1 << 32;
/// The average's clock has ticks of 2^23 ns, 8.4 ms.
const TICK_BITS: u32 = 23;

/// The load of one endpoint; times are nanoseconds of the pool's clock.
#[derive(Debug)]
#[repr(align(64))]
pub(super) struct Load {
    /// The number of calls whose response has not ended, and in the upper 32 bits, of those whose response head is
    /// awaited.
    calls: AtomicU64,
    /// When the latest call was sent here.
    used_at: AtomicU64,
    /// While response heads are awaited: a time at which, or before which, one of these calls was sent.
    awaited_since: AtomicU64,
    /// The average in seconds as the bits of an `f32`, and above it the tick of its last change.
    average: AtomicU64,
    /// See [`Counts`].
    counted: AtomicU64,
    failures: AtomicU32,
    slow: AtomicU32,
    /// The response time above which a call counts as slow, in seconds, as the bits of an `f32`.
    slow_after: AtomicU32,
}

impl Load {
    /// Sets the first average, in seconds; 0 means that it is unknown.
    pub(super) fn new(average: f32, now: u64) -> Self {
        Self {
            calls: AtomicU64::new(0),
            used_at: AtomicU64::new(0),
            awaited_since: AtomicU64::new(0),
            average: AtomicU64::new(pack(average, now)),
            counted: AtomicU64::new(0),
            failures: AtomicU32::new(0),
            slow: AtomicU32::new(0),
            slow_after: AtomicU32::new(f32::INFINITY.to_bits()),
        }
    }

    /// Records that a call is sent here.
    #[inline]
    pub(super) fn begin(&self, now: u64) {
        if self.calls.fetch_add(AWAITED + 1, Relaxed) < AWAITED {
            self.awaited_since.store(now, Relaxed);
        }
        self.used_at.store(now, Relaxed);
    }

    /// Records that the response head of a call has arrived, or depends on the client as well.
    #[inline]
    pub(super) fn respond(&self) {
        self.calls.fetch_sub(AWAITED, Relaxed);
        // this call may have been the oldest one, and no awaited call was sent after `used_at`
        self.awaited_since.store(self.used_at(), Relaxed);
    }

    /// Records the end of a call; `awaited`: without a response head.
    #[inline]
    pub(super) fn end(&self, awaited: bool) {
        if awaited {
            self.respond();
        }
        self.calls.fetch_sub(1, Relaxed);
    }

    #[inline]
    #[allow(clippy::cast_possible_truncation)] // the lower half
    pub(super) fn in_flight(&self) -> u32 {
        self.calls.load(Relaxed) as u32
    }

    /// Returns when the latest call was sent here; 0 before the first.
    #[inline]
    pub(super) fn used_at(&self) -> u64 {
        self.used_at.load(Relaxed)
    }

    /// Replaces the average, in seconds.
    pub(super) fn reset(&self, average: f32, now: u64) {
        self.average.store(pack(average, now), Relaxed);
    }

    /// Records that a response would have taken longer than `took`.
    pub(super) fn record_peak(&self, took: Duration, now: u64) {
        if took.as_secs_f32() > self.average(now) {
            self.record(took, now);
        }
    }

    /// Records a failure after this time.
    pub(super) fn record_failure(&self, took: Duration, now: u64) {
        let average = self.average.load(Relaxed);
        self.failures.fetch_add(1, Relaxed);
        self.count(took);
        // at least one tick: failures in a burst count too
        let (before, weight) = decay(average, now.max(tick_after(average, now)));
        let next = before + took.max(PENALTY).as_secs_f32() * (1.0 - weight);
        self.average.store(pack(next, now), Relaxed);
    }

    /// Records a response time. Of two that threads record concurrently, one may be lost in the average.
    #[inline]
    pub(super) fn record(&self, took: Duration, now: u64) {
        let average = self.average.load(Relaxed);
        let (before, weight) = decay(average, now);
        self.count(took);
        let took = took.as_secs_f32();
        if took > f32::from_bits(self.slow_after.load(Relaxed)) {
            self.slow.fetch_add(1, Relaxed);
        }
        // a peak counts in full, a shorter time by the time since the last sample
        let next = if took >= before { took } else { before + took * (1.0 - weight) };
        if next.to_bits() != value(average).to_bits() || weight < 1.0 {
            self.average.store(pack(next, now), Relaxed);
        }
    }

    /// Counts a call that took this time, for the comparison with other endpoints.
    #[inline]
    fn count(&self, took: Duration) {
        let nanos = took.as_secs().saturating_mul(1_000_000_000).saturating_add(u64::from(took.subsec_nanos()));
        self.counted.fetch_add(ONE_CALL + (nanos / UNIT).min(LONGEST), Relaxed);
    }

    /// Takes back the count of a call, which is counted again when it has ended with a failure.
    pub(super) fn uncount(&self) {
        self.counted.fetch_sub(ONE_CALL, Relaxed);
    }

    /// Sets the response time above which a call counts as slow, in seconds (default: infinite).
    pub(super) fn set_slow_after(&self, seconds: f32) {
        self.slow_after.store(seconds.to_bits(), Relaxed);
    }

    /// Returns the counts of calls, response times, failures and slow calls.
    pub(super) fn counts(&self) -> Counts {
        let (failures, slow) = (self.failures.load(Relaxed), self.slow.load(Relaxed));
        Counts { calls: self.counted.load(Relaxed), failures, slow }
    }

    /// Returns the average at `now`, in seconds; 0 before the first response.
    #[inline]
    pub(super) fn average(&self, now: u64) -> f32 {
        decay(self.average.load(Relaxed), now).0
    }

    /// Returns the estimate of the response time at `now`, in seconds: the average, or the age of a call without a
    /// response if that is longer.
    #[inline]
    #[allow(clippy::cast_precision_loss)] // of nanoseconds
    pub(super) fn latency(&self, now: u64) -> f32 {
        let average = self.average(now).max(MIN);
        if self.calls.load(Relaxed) < AWAITED {
            return average;
        }
        // later calls do not move `awaited_since` while the endpoint hangs
        average.max(now.saturating_sub(self.awaited_since.load(Relaxed)) as f32 * 1e-9)
    }
}

/// Returns a time at least one tick after the last change of an average, and not before `now`.
fn tick_after(average: u64, now: u64) -> u64 {
    let changed = average >> 32;
    if (now >> TICK_BITS) & u64::from(u32::MAX) == changed { now + (1 << TICK_BITS) } else { now }
}

fn pack(average: f32, now: u64) -> u64 {
    #[allow(clippy::cast_possible_truncation)] // ticks wrap after 417 days, and their difference with them
    let tick = (now >> TICK_BITS) as u32;
    u64::from(tick) << 32 | u64::from(average.to_bits())
}

#[allow(clippy::cast_possible_truncation)] // the lower half
fn value(average: u64) -> f32 {
    f32::from_bits(average as u32)
}

/// Returns the average at `now`, and the factor by which it has decayed.
#[inline]
#[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss)] // the upper half; hours of ticks are exact
fn decay(average: u64, now: u64) -> (f32, f32) {
    let ticks = ((now >> TICK_BITS) as u32).wrapping_sub((average >> 32) as u32);
    // another thread may have recorded a later time
    if ticks == 0 || ticks > u32::MAX / 2 {
        return (value(average), 1.0);
    }
    let weight = factor(ticks as f32 * ((1_u64 << TICK_BITS) as f32 * 1e-9 / DECAY));
    (value(average) * weight, weight)
}

/// Approximates `exp(-x)` as (1 + x/16)^-16, without a call of `exp`; it decays more slowly after long pauses.
fn factor(x: f32) -> f32 {
    let base = 1.0 + x / 16.0;
    let (square, times) = (base * base, |value: f32| value * value);
    1.0 / times(times(times(square)))
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss, clippy::cast_sign_loss)] // small numbers
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000_000;
    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_peak_counts_at_once_and_fades_within_tens_of_seconds() {
        let load = Load::new(0.0, 0);
        load.record(40 * MS, 0);
        load.record(200 * MS, SECOND);
        assert!((load.average(SECOND) - 0.2).abs() < 0.001);
        let mut now = SECOND;
        for _ in 0..300 {
            now += SECOND / 10;
            load.record(40 * MS, now);
        }
        let average = load.average(now);
        assert!((0.04..0.06).contains(&average), "{average}");
        assert!(load.average(now + 60 * SECOND) < 0.01, "an endpoint that is not used is tried again");
    }

    #[test]
    fn failures_count_by_their_share_of_the_calls() {
        let average = |every: u32| {
            let load = Load::new(0.04, 0);
            for call in 1..=3_000_u32 {
                let now = u64::from(call) * SECOND / 100;
                if call % every == 0 { load.record_failure(MS, now) } else { load.record(40 * MS, now) }
            }
            load.average(30 * SECOND)
        };
        let (rare, often) = (average(100), average(2));
        assert!((0.06..0.12).contains(&rare), "{rare}");
        assert!((2.0..3.0).contains(&often), "{often}");
        let burst = Load::new(0.0, 0);
        (0..10).for_each(|_| burst.record_failure(MS, 7));
        assert!(burst.average(7) > 0.02, "{}", burst.average(7));
    }

    #[test]
    fn a_call_without_a_response_counts_with_the_time_that_it_has_taken() {
        let load = Load::new(0.04, 0);
        load.begin(0);
        load.begin(SECOND / 10);
        assert_eq!((load.in_flight(), load.used_at()), (2, SECOND / 10));
        assert!((load.latency(SECOND / 5) - 0.2).abs() < 1e-6);
        load.respond();
        assert!((load.latency(SECOND / 5) - 0.1).abs() < 1e-6, "the other one is at least as old");
        load.end(true);
        assert!(load.latency(SECOND / 5) < 0.04, "a long response body is not slow");
        load.end(false);
        assert_eq!((load.in_flight(), load.calls.load(Relaxed)), (0, 0));
    }

    #[test]
    fn an_endpoint_that_hangs_is_as_slow_as_its_oldest_call() {
        let load = Load::new(0.01, 0);
        for call in 0..10 {
            load.begin(SECOND + call * SECOND / 10);
        }
        assert!((load.latency(2 * SECOND) - 1.0).abs() < 0.001, "{}", load.latency(2 * SECOND));
        load.respond();
        load.begin(2 * SECOND);
        assert!((load.latency(2 * SECOND) - 0.1).abs() < 0.001, "which of them has a response is not known");
        (0..10).for_each(|_| load.end(true));
        load.begin(9 * SECOND);
        assert!(load.latency(9 * SECOND) < 0.01);
    }

    proptest! {
        #[test]
        fn the_average_stays_between_zero_and_the_longest_response_time(
            samples in proptest::collection::vec((0_u64..10_000, 0_u64..20_000), 1..50),
        ) {
            let load = Load::new(0.0, 0);
            let (mut now, mut longest) = (0, 0);
            for (took, pause) in samples {
                now += pause * 1_000_000;
                load.record(took as u32 * MS, now);
                longest = longest.max(took);
                let average = load.average(now);
                prop_assert!(average >= took as f32 / 1e3 * 0.999 || average > 0.0 || took == 0);
                prop_assert!(average <= longest as f32 / 1e3 * 1.001 && average >= 0.0);
            }
        }
    }
}
