//! Endpoints that are worse than the others of their level. Pure: counts and time are arguments.
//!
//! A circuit detects an endpoint that fails, but not one that fails in one of twenty calls or is five times as slow as
//! the others ("gray failure"). A comparison detects both. The rule for success rates is Envoy's, with two additions: a
//! difference of at least two percentage points, and beyond chance. Without them, 3 % of equal endpoints would be
//! outliers by definition.

use std::fmt;
use std::time::Duration;

/// The time between two reviews, in nanoseconds.
pub(super) const REVIEW: u64 = 2_000_000_000;
/// The number of reviews in the window.
const REVIEWS: usize = 5;
/// The length of the first ejection of an outlier, in nanoseconds; the n-th in a row is n times as long.
const EJECTION: u64 = 10_000_000_000;
/// The longest ejection, as a multiple of the first one.
const MAX_EJECTIONS: u32 = 6;

/// Difference of an endpoint from the others of its level (tier and zone) in the last 10 s; its `Display` is one line.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Outlier {
    /// It fails more often. Among at least 5 endpoints with at least 100 calls each, its success rate is below the mean
    /// by more than each of 1.9 standard deviations, 2 percentage points and 3 standard errors.
    Failing {
        /// Its success rate, 0 to 1.
        success_rate: f64,
        /// The mean of the success rates.
        mean: f64,
    },
    /// It is slower. Among at least 3 endpoints with at least 16 calls each, its mean response time is more than 3
    /// times the median and more than 50 ms above it.
    Slow {
        /// Its mean response time.
        latency: Duration,
        /// The median of the mean response times.
        median: Duration,
    },
}

impl fmt::Display for Outlier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failing { success_rate, mean } => {
                write!(f, "success rate {:.1} %, mean of the level {:.1} %", success_rate * 100.0, mean * 100.0)
            }
            Self::Slow { latency, median } => {
                let [latency, median] = [latency, median].map(|time| time.as_secs_f64() * 1e3);
                write!(f, "mean response time {latency:.0} ms, median of the level {median:.0} ms")
            }
        }
    }
}

/// The counters of an endpoint since it was made; they wrap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Packed: the number of calls as a multiple of [`ONE_CALL`], and below it the sum of response times in [`UNIT`]s.
    pub(super) calls: u64,
    pub(super) failures: u32,
    /// Responses that took longer than the threshold of a shift between groups.
    pub(super) slow: u32,
}

/// The unit of response times in [`Counts::calls`], in nanoseconds; a power of two, so that the division is a shift.
pub(super) const UNIT: u64 = 1024;
/// One call in [`Counts::calls`]: the bits below it hold 12 days of response times in one window.
pub(super) const ONE_CALL: u64 = 1 << 40;

/// Calls of one endpoint in the last 10 s.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Sample {
    pub(super) calls: u32,
    pub(super) failures: u32,
    /// The sum of their response times, in seconds.
    pub(super) time: f64,
}

impl Sample {
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation)] // less than 2^40; less than 2^24
    fn between(before: Counts, after: Counts) -> Self {
        let calls = after.calls.wrapping_sub(before.calls);
        Self {
            calls: (calls / ONE_CALL) as u32,
            failures: after.failures.wrapping_sub(before.failures),
            time: (calls % ONE_CALL) as f64 * (UNIT as f64 * 1e-9),
        }
    }

    fn success_rate(&self) -> f64 {
        // another thread may have counted a failure, but not its call yet
        (1.0 - f64::from(self.failures) / f64::from(self.calls)).max(0.0)
    }
}

/// State of one endpoint's comparison with the others.
#[derive(Debug, Default)]
pub(super) struct Review {
    /// A ring of the counts at the latest reviews, the oldest at `oldest`.
    calls: [u64; REVIEWS],
    failures: [u32; REVIEWS],
    oldest: usize,
    pub(super) finding: Option<Outlier>,
    /// Ejections in a row.
    ejections: u32,
    /// When the latest ejection ends.
    until: u64,
}

impl Review {
    /// Returns the calls of the window that ends now.
    pub(super) fn advance(&mut self, counts: Counts) -> Sample {
        let at = self.oldest;
        let before = Counts { calls: self.calls[at], failures: self.failures[at], slow: 0 };
        (self.calls[at], self.failures[at]) = (counts.calls, counts.failures);
        self.oldest = (self.oldest + 1) % REVIEWS;
        Sample::between(before, counts)
    }

    /// Begins a new window.
    pub(super) fn restart(&mut self, counts: Counts) {
        (self.calls, self.failures) = ([counts.calls; REVIEWS], [counts.failures; REVIEWS]);
    }

    /// Ejects the endpoint: for 10 s, and 10 s more with each ejection in a row, at most 60 s.
    pub(super) fn eject(&mut self, now: u64) {
        // a minute without an ejection ends the row
        if now.saturating_sub(self.until) > EJECTION * u64::from(MAX_EJECTIONS) {
            self.ejections = 0;
        }
        self.ejections = (self.ejections + 1).min(MAX_EJECTIONS);
        self.until = now + EJECTION * u64::from(self.ejections);
    }

    /// Whether the latest ejection has ended.
    pub(super) fn has_ended(&self, now: u64) -> bool {
        now >= self.until
    }
}

/// Finds the outliers among the endpoints of a level.
pub(super) fn find(samples: &[Sample]) -> Vec<Option<Outlier>> {
    let (failing, slow) = (failing_below(samples), slow_above(samples));
    samples.iter().map(|sample| failing(sample).or_else(|| slow(sample))).collect()
}

/// Returns the rule for endpoints that fail more often than others.
fn failing_below(samples: &[Sample]) -> impl Fn(&Sample) -> Option<Outlier> + use<> {
    const ENDPOINTS: usize = 5;
    const CALLS: u32 = 100;
    const DEVIATIONS: f64 = 1.9;
    const LEAST: f64 = 0.02;
    const ERRORS: f64 = 3.0;
    let rates: Vec<_> = samples.iter().filter(|sample| sample.calls >= CALLS).map(Sample::success_rate).collect();
    #[allow(clippy::cast_precision_loss)] // at most 65,536
    let count = rates.len() as f64;
    let mean = rates.iter().sum::<f64>() / count;
    let deviation = (rates.iter().map(|rate| (rate - mean).powi(2)).sum::<f64>() / count).sqrt();
    let applies = rates.len() >= ENDPOINTS;
    move |sample| {
        if !applies || sample.calls < CALLS {
            return None;
        }
        let success_rate = sample.success_rate();
        let error = (mean * (1.0 - mean) / f64::from(sample.calls)).sqrt();
        let below = (DEVIATIONS * deviation).max(LEAST).max(ERRORS * error);
        (success_rate < mean - below).then_some(Outlier::Failing { success_rate, mean })
    }
}

/// Returns the rule for endpoints that are slower than others.
fn slow_above(samples: &[Sample]) -> impl Fn(&Sample) -> Option<Outlier> + use<> {
    const ENDPOINTS: usize = 3;
    const CALLS: u32 = 16;
    const TIMES: f64 = 3.0;
    const MORE: f64 = 0.05;
    let mut times: Vec<_> = samples
        .iter()
        .filter(|sample| sample.calls >= CALLS)
        .map(|sample| sample.time / f64::from(sample.calls))
        .collect();
    let applies = times.len() >= ENDPOINTS;
    let middle = times.len() / 2;
    let median = if applies { *times.select_nth_unstable_by(middle, f64::total_cmp).1 } else { 0.0 };
    move |sample| {
        if !applies || sample.calls < CALLS {
            return None;
        }
        let latency = sample.time / f64::from(sample.calls);
        let is_slow = latency > median * TIMES && latency > median + MORE;
        let [latency, median] = [latency, median].map(Duration::from_secs_f64);
        is_slow.then_some(Outlier::Slow { latency, median })
    }
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation)] // small numbers
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample(calls: u32, failures: u32, millis: u32) -> Sample {
        Sample { calls, failures, time: f64::from(calls) * f64::from(millis) / 1e3 }
    }

    fn found(samples: &[Sample]) -> Vec<usize> {
        find(samples).iter().enumerate().filter_map(|(index, outlier)| outlier.map(|_| index)).collect()
    }

    #[test]
    fn an_endpoint_that_fails_more_often_than_the_others_is_an_outlier() {
        let mut five = [sample(200, 1, 40); 5];
        assert!(found(&five).is_empty());
        five[2] = sample(200, 20, 40);
        assert_eq!(found(&five), [2]);
        let text = find(&five)[2].unwrap().to_string();
        assert_eq!(text, "success rate 90.0 %, mean of the level 97.6 %");
        assert!(found(&five[..4]).is_empty(), "four are too few to compare");
        five[2] = sample(99, 50, 40);
        assert!(found(&five).is_empty(), "99 calls are too few");
        five[2] = sample(200, 4, 40);
        assert!(found(&five).is_empty(), "less than two points");
        assert!(found(&[sample(200, 100, 40); 5]).is_empty(), "all are alike");
    }

    #[test]
    fn an_endpoint_that_is_slower_than_the_others_is_an_outlier() {
        let mut three = [sample(16, 0, 40); 3];
        three[0] = sample(16, 0, 121);
        assert_eq!(found(&three), [0]);
        assert_eq!(find(&three)[0].unwrap().to_string(), "mean response time 121 ms, median of the level 40 ms");
        three[0] = sample(16, 0, 119);
        assert!(found(&three).is_empty(), "less than three times");
        three[0] = sample(15, 0, 500);
        assert!(found(&three).is_empty(), "15 calls are too few");
        let fast = [sample(16, 0, 50), sample(16, 0, 1), sample(16, 0, 1)];
        assert!(found(&fast).is_empty(), "not 50 ms more");
        assert!(found(&[sample(16, 0, 40), sample(16, 0, 400)]).is_empty(), "two are too few to compare");
        assert!(found(&[]).is_empty());
    }

    #[test]
    fn a_window_has_the_calls_of_five_reviews_also_when_counters_wrap() {
        let mut review = Review::default();
        let mut counts = Counts { calls: u64::MAX - 3 * ONE_CALL, failures: u32::MAX - 1, slow: 0 };
        review.restart(counts);
        for reviews in 1..=8_u32 {
            // one call of 10 ms, which fails
            counts.calls = counts.calls.wrapping_add(ONE_CALL + 10_000_000 / UNIT);
            counts.failures = counts.failures.wrapping_add(1);
            let sample = review.advance(counts);
            assert_eq!((sample.calls, sample.failures), (reviews.min(5), reviews.min(5)));
            assert!((sample.time - 0.01 * f64::from(reviews.min(5))).abs() < 1e-5);
        }
        review.restart(counts);
        assert_eq!(review.advance(counts), Sample::default());
    }

    #[test]
    fn ejections_in_a_row_are_longer_and_end() {
        let (mut review, mut now) = (Review::default(), 0);
        for seconds in [10, 20, 30, 40, 50, 60, 60] {
            review.eject(now);
            assert!(!review.has_ended(now + (seconds * 1_000_000_000 - 1)));
            now += seconds * 1_000_000_000;
            assert!(review.has_ended(now));
        }
        review.eject(now + 61_000_000_000);
        assert!(review.has_ended(now + 71_000_000_000), "a minute without an ejection ends the row");
    }

    proptest! {
        #[test]
        fn equal_endpoints_are_seldom_outliers(
            seed in any::<u64>(), endpoints in 5_usize..40, calls in 100_u32..2_000, failing in 0.0_f64..0.3,
        ) {
            let mut random = fastrand::Rng::with_seed(seed);
            let (mut outliers, mut reviews) = (0, 0);
            for _ in 0..40 {
                let samples: Vec<_> = (0..endpoints).map(|_| {
                    let failures = (0..calls.min(300)).filter(|_| random.f64() < failing).count() as u32;
                    sample(calls.min(300), failures, 40)
                }).collect();
                outliers += found(&samples).len();
                reviews += endpoints;
            }
            // 3 standard errors on one side are 0.13 %, and the counts are not normal
            prop_assert!(outliers <= 2 + reviews / 100, "{outliers} of {reviews}");
        }

        #[test]
        fn an_outlier_is_worse_than_the_others_and_never_all_are_outliers(
            samples in proptest::collection::vec((0_u32..400, 0_u32..400, 0_u32..2_000), 0..30),
        ) {
            let samples: Vec<_> =
                samples.into_iter().map(|(calls, failures, ms)| sample(calls, failures.min(calls), ms)).collect();
            let outliers = find(&samples);
            prop_assert_eq!(outliers.len(), samples.len());
            prop_assert!(samples.is_empty() || outliers.contains(&None));
            for (sample, outlier) in samples.iter().zip(outliers) {
                match outlier {
                    Some(Outlier::Failing { success_rate, mean }) => {
                        prop_assert!(sample.calls >= 100 && success_rate <= mean - 0.02);
                    }
                    Some(Outlier::Slow { latency, median }) => {
                        prop_assert!(sample.calls >= 16 && latency > median * 2 && latency > median + Duration::from_millis(49));
                    }
                    None => {}
                }
            }
        }
    }
}
