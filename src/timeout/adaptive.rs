//! An adaptive timeout for the response head, learned from response times.
//!
//! The timeout is twice the 99.5th percentile of the last minute: it leaves room for the slowest normal response, and a
//! hang is detected in a fraction of the time of a fixed timeout. Four rules keep it from locking itself in:
//!
//! - A call that timed out counts as a sample of twice its timeout. Without it, only the fast responses would be left to
//!   learn from, and after the upstream became slower the timeout would stay low.
//! - With fewer than 200 samples the cap applies.
//! - A call is cut at the timeout only if another one of its route that began after it has been answered in time: that proves
//!   that it hangs. Without such proof the whole route may have become slower, and it is cut at 16 times the timeout.
//! - If more than 2 % of a second's calls timed out (of 20 or more), the timeout is the suspect, not the upstream: a guard
//!   doubles it for each such second, up to 16 times, and decays by a tenth per second.
//!
//! The scheme (windowed quantile, timeouts as samples, a cap) is that of Finagle's `BackupRequestFilter`; TCP's
//! retransmission timer (RFC 6298) was measured as well and cuts off 4 to 14 % of normal responses, because response times
//! are not distributed like round-trip times. `tests/layers/adaptive_timeout.rs` prints the table.
mod guard;
mod routes;

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use self::guard::RegressionGuard;
pub use self::routes::{LearningMode, RouteTimeouts, TooManyRoutes};
use crate::stats::{Quantile, WindowedHistogram, default_stripes};

/// The maximum number of stripes: more would take over 32 KiB per key.
const MOST_STRIPES: usize = 8;

const SHORTEST: Duration = Duration::from_millis(1);
const LONGEST: Duration = Duration::from_secs(60 * 60);

/// An adaptive timeout for the response head, learned from the responses of one route.
///
/// | setting | default | |
/// |---|---|---|
/// | cap | | the longest timeout, and the one used while too little is known: 1 ms to 1 h |
/// | [`floor`](Self::floor) | 50 ms | the shortest timeout |
/// | [`quantile`](Self::quantile) | [`Quantile::P99_5`] | of the last minute's samples |
/// | [`factor`](Self::factor) | 2 | the timeout is this multiple of the quantile |
/// | [`min_samples`](Self::min_samples) | 200 | with fewer the cap applies |
/// | [`stripes`](Self::stripes) | the number of cores, at most 8 | stripes of the counters |
///
/// The window covers the current half minute and the one before: 30 to 60 seconds of samples. The estimate is updated once
/// per second by whichever call comes first, and again if the guard trips early; all other calls read one atomic. It takes
/// 3.7 KiB per stripe, at most 30 KiB, and does not allocate after creation.
///
/// ```
/// use std::time::Duration;
/// use tokio::time::Instant;
/// use tower_upstream::timeout::AdaptiveTimeout;
///
/// let limit = AdaptiveTimeout::new(Duration::from_secs(10));
/// let start = Instant::now();
/// for call in 0..1000 {
///     let now = start + Duration::from_millis(20) * call;
///     assert!(limit.limit(now) <= Duration::from_secs(10));
///     limit.record(now, Duration::from_millis(40));
/// }
/// let learned = limit.limit(start + Duration::from_secs(21));
/// assert!(learned > Duration::from_millis(75) && learned < Duration::from_millis(85));
/// ```
#[derive(Debug)]
#[must_use]
pub struct AdaptiveTimeout {
    cap: Duration,
    floor: Duration,
    quantile: Quantile,
    /// The factor in thousandths.
    per_mille: u32,
    min_samples: u64,
    histogram: WindowedHistogram,
    /// In microseconds: one hour fits.
    limit: AtomicU32,
    guard: RegressionGuard,
    /// The first time that was an argument: the origin of `answered`.
    origin: OnceLock<Instant>,
    /// When the last call began that was answered in time, in microseconds.
    answered: AtomicU64,
}

/// A call that may be only slow is cut at this many times the timeout.
const PATIENCE: u32 = 16;

/// Snapshot of an adaptive timeout.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct AdaptiveEstimate {
    /// The samples of the last minute, timed-out calls included.
    pub samples: u64,
    /// The quantile of these samples, within 2.8 %; `None` without samples.
    pub quantile: Option<Duration>,
    /// The current timeout.
    pub limit: Duration,
    /// The factor by which the guard lengthens the timeout: 1 to 16, normally 1.
    pub guard: f64,
}

impl AdaptiveTimeout {
    /// A timeout without samples: the cap. Below 1 ms it counts as 1 ms, above 1 h as 1 h.
    pub fn new(cap: Duration) -> Self {
        let cap = cap.clamp(SHORTEST, LONGEST);
        Self {
            cap,
            floor: Duration::from_millis(50).min(cap),
            quantile: Quantile::P99_5,
            per_mille: 2000,
            min_samples: 200,
            histogram: WindowedHistogram::new(default_stripes().min(MOST_STRIPES)),
            limit: AtomicU32::new(micros(cap)),
            guard: RegressionGuard::new(),
            origin: OnceLock::new(),
            answered: AtomicU64::new(0),
        }
    }

    /// Sets the shortest timeout (default 50 ms); it is never above the cap.
    ///
    /// A higher one spares responses slower than any before, and detects hangs later.
    pub fn floor(mut self, floor: Duration) -> Self {
        self.floor = floor.min(self.cap);
        self
    }

    /// Sets the quantile (default 99.5 %).
    ///
    /// The share above it has to be larger than the share of hangs: if more calls hang, the timeout is the cap.
    pub fn quantile(mut self, quantile: Quantile) -> Self {
        self.quantile = quantile;
        self
    }

    /// Sets the multiple of the quantile (default 2), clamped to 1 to 100.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // clamped, and NaN is 1
    pub fn factor(mut self, factor: f64) -> Self {
        self.per_mille = if factor > 1.0 { (factor.min(100.0) * 1000.0).round() as u32 } else { 1000 };
        self
    }

    /// Sets the minimum number of samples (default 200, at least 1).
    ///
    /// Fewer than a few times the inverse of the share above the quantile make the estimate random.
    pub fn min_samples(mut self, samples: u32) -> Self {
        self.min_samples = u64::from(samples.max(1));
        self
    }

    /// Sets the number of stripes: 1 to 8, rounded up to a power of two (default: the number of cores).
    ///
    /// One stripe saves memory with thousands of keys. Earlier samples are
    /// discarded.
    pub fn stripes(mut self, stripes: usize) -> Self {
        self.histogram = WindowedHistogram::new(stripes.clamp(1, MOST_STRIPES));
        self
    }

    /// The timeout for a call that starts now.
    #[inline]
    pub fn limit(&self, now: Instant) -> Duration {
        self.learn(self.histogram.second(now));
        Duration::from_micros(self.limit.load(Ordering::Relaxed).into())
    }

    /// Records a response head that arrived after this time.
    ///
    /// Do not record responses of routes without a timeout (streams, long polls).
    #[inline]
    pub fn record(&self, now: Instant, elapsed: Duration) {
        let second = self.histogram.second(now);
        self.learn(second);
        self.histogram.record(second, elapsed);
        if micros(elapsed) <= self.limit.load(Ordering::Relaxed) {
            let elapsed = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
            self.answered.fetch_max(self.since_origin(now).saturating_sub(elapsed), Ordering::Relaxed);
        }
    }

    /// The next timeout of a call that has waited since `begun` and may be only slow; `None` if it hangs.
    ///
    /// It hangs if a later one has been answered in time, or if the wait is [`PATIENCE`] times the timeout.
    pub(super) fn more_time(&self, begun: Instant, now: Instant) -> Option<Duration> {
        let limit = self.limit(now);
        let waited = now.saturating_duration_since(begun);
        let overtaken = self.since_origin(begun) < self.answered.load(Ordering::Relaxed);
        let longest = if overtaken { limit } else { limit.saturating_mul(PATIENCE).min(self.cap) };
        (waited < longest).then(|| (waited + limit).min(longest))
    }

    fn since_origin(&self, now: Instant) -> u64 {
        let since = now.saturating_duration_since(*self.origin.get_or_init(|| now));
        u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
    }

    /// Records a call that timed out at this limit, learned or not.
    ///
    /// It counts as a sample of twice the limit. Do not record a call that the client cancelled or that a deadline ended: it says
    /// nothing about the upstream.
    pub fn timed_out(&self, now: Instant, limit: Duration) {
        let second = self.histogram.second(now);
        self.learn(second);
        self.histogram.record(second, limit.saturating_mul(2));
        if self.guard.timed_out() {
            if let Some(_again) = self.histogram.try_relock() {
                self.estimate(second, 0);
            }
        }
    }

    /// The current estimate.
    pub fn snapshot(&self, now: Instant) -> AdaptiveEstimate {
        let limit = self.limit(now);
        let (histogram, _) = self.histogram.read(self.histogram.second(now));
        AdaptiveEstimate {
            samples: histogram.samples(),
            quantile: histogram.quantile(self.quantile),
            limit,
            guard: f64::from(self.guard.per_mille()) / 1000.0,
        }
    }

    #[inline]
    fn learn(&self, second: u32) {
        if let Some(taken) = self.histogram.try_lock(second) {
            self.estimate(second, taken.since());
        }
    }

    /// Updates the timeout, `since` seconds after the last update; 0 if the guard trips early.
    #[cold]
    fn estimate(&self, second: u32, since: u32) {
        let (histogram, mark) = self.histogram.read(second);
        let guard = if since == 0 { self.guard.trip() } else { self.guard.check(mark, since) };
        let learned = match histogram.quantile(self.quantile) {
            Some(quantile) if histogram.samples() >= self.min_samples => {
                times(quantile, self.per_mille).clamp(self.floor, self.cap)
            }
            _ => self.cap,
        };
        self.limit.store(micros(times(learned, guard).min(self.cap)), Ordering::Relaxed);
    }
}

/// A duration times thousandths; cannot overflow for durations up to hours.
fn times(duration: Duration, per_mille: u32) -> Duration {
    duration.saturating_mul(per_mille) / 1000
}

fn micros(limit: Duration) -> u32 {
    u32::try_from(limit.as_micros()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CAP: Duration = Duration::from_secs(10);
    const FLOOR: Duration = Duration::from_millis(50);

    /// Calls at an even pace; each ends immediately from the limit's point of view.
    struct Upstream {
        limit: AdaptiveTimeout,
        now: Instant,
    }

    impl Upstream {
        fn new(limit: AdaptiveTimeout) -> Self {
            Self { limit, now: Instant::now() }
        }

        /// Makes 50 calls a second that take this long, or hang.
        fn runs(&mut self, seconds: u32, takes: impl Into<Option<Duration>>) -> Duration {
            let takes = takes.into();
            for _ in 0..seconds * 50 {
                self.now += Duration::from_millis(20);
                let limit = self.limit.limit(self.now);
                match takes {
                    Some(takes) if takes <= limit => self.limit.record(self.now, takes),
                    _ => self.limit.timed_out(self.now, limit),
                }
            }
            self.limit.limit(self.now)
        }
    }

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// Whether the limit is the expected one, within the error of a bucket.
    fn is_about(limit: Duration, expected: Duration) -> bool {
        (limit.as_secs_f64() / expected.as_secs_f64() - 1.0).abs() <= 0.03
    }

    #[test]
    fn under_two_hundred_samples_the_cap_holds() {
        let mut upstream = Upstream::new(AdaptiveTimeout::new(CAP));
        for _ in 0..199 {
            upstream.limit.record(upstream.now, millis(40));
        }
        upstream.now += Duration::from_secs(1);
        assert_eq!(upstream.limit.limit(upstream.now), CAP);
        upstream.limit.record(upstream.now, millis(40));
        upstream.now += Duration::from_secs(1);
        assert!(is_about(upstream.limit.limit(upstream.now), millis(80)));
    }

    #[test]
    fn no_limit_is_below_the_floor() {
        assert_eq!(Upstream::new(AdaptiveTimeout::new(CAP)).runs(10, millis(1)), FLOOR);
        let floor = millis(700);
        assert_eq!(Upstream::new(AdaptiveTimeout::new(CAP).floor(floor)).runs(10, millis(1)), floor);
    }

    #[test]
    fn a_silence_of_a_minute_brings_the_cap_back() {
        let mut upstream = Upstream::new(AdaptiveTimeout::new(CAP));
        assert!(upstream.runs(30, millis(40)) < CAP);
        upstream.now += Duration::from_secs(60);
        assert_eq!(upstream.limit.limit(upstream.now), CAP);
    }

    #[test]
    fn the_limit_climbs_to_the_cap_while_the_upstream_hangs_and_comes_back() {
        let mut upstream = Upstream::new(AdaptiveTimeout::new(CAP));
        assert!(upstream.runs(60, millis(40)) < millis(100));
        assert_eq!(upstream.runs(5, None), CAP);
        // the timeouts are forgotten after a minute, the guard's 16 after half of one more at most
        assert!(is_about(upstream.runs(120, millis(40)), millis(80)));
        assert!((upstream.limit.snapshot(upstream.now).guard - 1.0).abs() < f64::EPSILON);
    }

    #[test]
    fn a_limit_below_all_response_times_grows_until_they_fit() {
        let mut upstream = Upstream::new(AdaptiveTimeout::new(CAP));
        upstream.runs(60, millis(40));
        let limit = upstream.runs(3, millis(3000));
        assert!(limit >= millis(3000), "{limit:?}");
        assert!(is_about(upstream.runs(120, millis(3000)), millis(6000)));
    }

    #[test]
    fn only_a_call_that_was_overtaken_hangs_at_once() {
        let mut upstream = Upstream::new(AdaptiveTimeout::new(CAP));
        let timeout = upstream.runs(60, millis(40));
        let (begun, limit) = (upstream.now, &upstream.limit);
        let after = |times: u32| begun + timeout * times;
        assert_eq!(limit.more_time(begun, after(1)), Some(timeout * 2), "all may have become slower");
        assert_eq!(limit.more_time(begun, after(15)), Some(timeout * 16));
        assert_eq!(limit.more_time(begun, after(16)), None, "nobody waits for ever");
        limit.record(after(5), timeout * 5);
        assert_eq!(limit.more_time(begun, after(5)), Some(timeout * 6), "they have");
        limit.record(begun + millis(45), millis(40));
        assert_eq!(limit.more_time(begun, after(1)), None, "a later one took 40 ms");
        let later = begun + millis(5);
        assert_eq!(limit.more_time(later, later + timeout), Some(timeout * 2));
    }

    #[test]
    fn the_guard_doubles_once_a_second_and_comes_down_by_a_tenth() {
        // with a constant floor, only the guard moves the limit
        let mut upstream = Upstream::new(AdaptiveTimeout::new(CAP).floor(millis(500)));
        upstream.runs(30, millis(1));
        let guards: Vec<f64> = (0..6)
            .map(|_| {
                for _ in 0..50 {
                    upstream.now += millis(20);
                    upstream.limit.timed_out(upstream.now, Duration::ZERO);
                }
                upstream.limit.snapshot(upstream.now).guard
            })
            .collect();
        assert_eq!(guards, [2.0, 4.0, 8.0, 16.0, 16.0, 16.0]);
        assert_eq!(upstream.limit.limit(upstream.now), millis(500 * 16));
        upstream.runs(2, millis(1));
        assert!((upstream.limit.snapshot(upstream.now).guard - 14.4).abs() < 0.01);
        assert_eq!(upstream.runs(30, millis(1)), millis(500));
    }

    #[test]
    fn the_guard_does_not_wait_for_the_end_of_the_second() {
        let mut upstream = Upstream::new(AdaptiveTimeout::new(CAP));
        let before = upstream.runs(30, millis(100));
        let tenth = upstream.now + millis(100);
        for _ in 0..3 {
            upstream.limit.timed_out(tenth, before);
        }
        assert!(is_about(upstream.limit.limit(tenth), before * 2));
    }

    #[test]
    fn nineteen_calls_prove_nothing_to_the_guard() {
        for (calls, guard) in [(19, 1.0), (20, 2.0)] {
            let limit = AdaptiveTimeout::new(CAP);
            let start = Instant::now();
            for _ in 0..calls {
                limit.timed_out(start, millis(50));
            }
            assert!((limit.snapshot(start + Duration::from_secs(1)).guard - guard).abs() < f64::EPSILON, "{calls}");
        }
    }

    #[test]
    fn two_percent_of_timeouts_are_no_reason_and_more_are() {
        for (timeouts, guard) in [(2, 1.0), (3, 2.0)] {
            let limit = AdaptiveTimeout::new(CAP);
            let start = Instant::now();
            (0..100 - timeouts).for_each(|_| limit.record(start, millis(40)));
            (0..timeouts).for_each(|_| limit.timed_out(start, CAP));
            assert!((limit.snapshot(start + Duration::from_secs(1)).guard - guard).abs() < f64::EPSILON);
        }
    }

    #[test]
    fn a_call_that_was_cut_counts_as_twice_its_limit() {
        let limit = AdaptiveTimeout::new(CAP);
        let start = Instant::now();
        (0..300).for_each(|_| limit.timed_out(start, millis(100)));
        assert!(is_about(limit.snapshot(start).quantile.unwrap(), millis(200)));
    }

    #[test]
    fn an_estimate_has_its_samples_and_quantile() {
        let limit = AdaptiveTimeout::new(CAP);
        let start = Instant::now();
        let nothing = limit.snapshot(start);
        assert_eq!((nothing.samples, nothing.quantile, nothing.limit), (0, None, CAP));
        (0..300).for_each(|_| limit.record(start, millis(100)));
        let estimate = limit.snapshot(start + Duration::from_secs(1));
        assert_eq!(estimate.samples, 300);
        assert!(is_about(estimate.quantile.unwrap(), millis(100)));
        assert!(is_about(estimate.limit, millis(200)));
    }

    #[test]
    fn settings_out_of_range_count_as_the_nearest_in_range() {
        let start = Instant::now();
        for (cap, limit) in [(Duration::ZERO, millis(1)), (Duration::MAX, LONGEST)] {
            assert_eq!(AdaptiveTimeout::new(cap).floor(Duration::MAX).limit(start), limit);
        }
        for (factor, per_mille) in [(f64::NAN, 1000), (-1.0, 1000), (0.0, 1000), (1.5, 1500), (f64::INFINITY, 100_000)]
        {
            assert_eq!(AdaptiveTimeout::new(CAP).factor(factor).per_mille, per_mille, "{factor}");
        }
    }

    #[test]
    fn a_key_takes_thirty_two_kibibytes_at_most() {
        for stripes in [0, 1, 2, 3, 8, 9, usize::MAX] {
            let limit = AdaptiveTimeout::new(CAP).stripes(stripes);
            let bytes = size_of::<AdaptiveTimeout>() + limit.histogram.bytes();
            assert!(bytes <= 32 * 1024, "{stripes} stripes take {bytes} bytes");
        }
        assert_eq!(AdaptiveTimeout::new(CAP).stripes(8).histogram.bytes(), 8 * 2 * crate::stats::BUCKETS * 4);
    }

    proptest! {
        #[test]
        fn the_limit_is_within_floor_and_cap_whatever_comes(
            calls in prop::collection::vec((0_u64..40_000, 0_u64..20_000, any::<bool>()), 1..300),
            floor in 0_u64..20_000,
            cap in 0_u64..20_000,
            factor in -1.0_f64..200.0,
        ) {
            let limit = AdaptiveTimeout::new(millis(cap)).floor(millis(floor)).factor(factor).min_samples(20).stripes(1);
            let cap = millis(cap).max(SHORTEST);
            let within = millis(floor).min(cap)..=cap;
            let mut now = Instant::now();
            for (pause, elapsed, answered) in calls {
                // most calls follow immediately
                now += millis(if pause > 39_000 { pause } else { pause / 1000 });
                if answered { limit.record(now, millis(elapsed)) } else { limit.timed_out(now, millis(elapsed)) }
                let holds = limit.limit(now);
                prop_assert!(within.contains(&holds), "{holds:?} is not in {within:?}");
            }
        }
    }
}
