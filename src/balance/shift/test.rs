//! A sequential test of two groups of calls: whether one fails more often than the other. Pure.
//!
//! The statistic is the logarithm of an e-value for 2 x 2 tables: Turner, Ly, Grünwald, "Generic E-variables for exact
//! sequential k-sample tests that allow for optional stopping" (2024). For the calls since the last observation it is
//! the ratio of their likelihood under the alternative, `new` fails with `p` and `old` with `q`, to that under the best
//! null hypothesis, where both fail with the mean `m` of `p` and `q`, weighted by their calls. `p` and `q` come from
//! earlier observations only.
//!
//! If both groups have the same rate, whatever it is, the expectation of each ratio is at most 1 (by the inequality of
//! arithmetic and geometric means), so the product ever exceeds 1/a with probability `a` at most (Ville). Unlike a
//! p-value, it may be evaluated after every call.
//!
//! The logarithm has a lower bound, as in a CUSUM chart, so that a release that begins to fail after a good hour is
//! detected as soon as another. The probability above then holds from each time at which the bound was reached.
//!
//! A group is accepted by Wald's sequential probability ratio test: its calls are much less likely under the
//! alternative, with the least effect, than under the old group's rate, taken as known. The statistic above cannot
//! accept a group that has few of the calls, because a null hypothesis between both rates fits all calls.

use super::Evidence;

/// The logarithm of 1,000: without a difference, a test reaches it with a probability of at most 0.1 %.
const REJECT: f64 = 6.907_755_278_982_137;
/// The logarithm of 1/20: the least effect is 20 times less likely than no effect.
const ACCEPT: f64 = -2.995_732_273_553_991;
/// The number of calls of a group below which there is no result.
const MIN_SAMPLES: u64 = 20;

/// Calls of a group, and how many of them failed.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sample {
    pub(super) calls: u64,
    pub(super) failed: u64,
}

/// Result of a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TestResult {
    /// `new` fails more often.
    Worse,
    /// `new` does not fail more often by the least effect.
    Accepted,
    Undecided,
}

/// The state of a test.
#[derive(Clone, Copy, Debug)]
pub(super) struct Test {
    /// The least effect: the failure rate of `new` exceeds the one of twice the odds of `old` by this much.
    effect: f64,
    old: Sample,
    new: Sample,
    worse: f64,
    alike: f64,
    accepted: bool,
}

#[allow(clippy::cast_precision_loss)] // numbers of calls
impl Test {
    pub(super) fn new(effect: f64) -> Self {
        let none = Sample::default();
        Self { effect, old: none, new: none, worse: 0.0, alike: 0.0, accepted: false }
    }

    /// Adds the calls since the last observation.
    pub(super) fn add(&mut self, old: Sample, new: Sample) {
        let calls = (old.calls + new.calls) as f64;
        if calls > 0.0 {
            let (q, p) = self.alternative();
            let mean = (q * old.calls as f64 + p * new.calls as f64) / calls;
            self.worse = (self.worse + ratio(old, q, mean) + ratio(new, p, mean)).max(ACCEPT);
            self.alike += ratio(new, p, q);
        }
        for (sum, more) in [(&mut self.old, old), (&mut self.new, new)] {
            sum.calls += more.calls;
            sum.failed += more.failed;
        }
        self.accepted |= self.alike <= ACCEPT && self.new.calls >= MIN_SAMPLES && self.old.calls >= MIN_SAMPLES;
    }

    /// Returns the failure rates of `old` and `new` under the alternative, from earlier calls.
    fn alternative(&self) -> (f64, f64) {
        let rate = |sample: Sample| (sample.failed as f64 + 0.1) / (sample.calls as f64 + 10.0);
        let old = rate(self.old).clamp(0.001, 0.95);
        // twice the odds, about
        let least = old + old * (1.0 - old) + self.effect;
        (old, rate(self.new).max(least).min(0.999))
    }

    pub(super) fn result(&self) -> TestResult {
        if self.new.calls < MIN_SAMPLES {
            TestResult::Undecided
        } else if self.worse >= REJECT {
            TestResult::Worse
        } else if self.accepted && self.worse < 1.0 {
            TestResult::Accepted
        } else {
            TestResult::Undecided
        }
    }

    pub(super) fn evidence(&self) -> Evidence {
        Evidence { worse: self.worse, reject_at: REJECT, alike: self.alike, accept_at: ACCEPT }
    }
}

/// Returns the logarithm of the ratio of a sample's likelihoods under two rates.
#[allow(clippy::cast_precision_loss)]
fn ratio(sample: Sample, rate: f64, null: f64) -> f64 {
    let failed = sample.failed as f64;
    let others = sample.calls as f64 - failed;
    failed * (rate / null).ln() + others * ((1.0 - rate) / (1.0 - null)).ln()
}

#[cfg(test)]
mod tests {
    use fastrand::Rng;

    use super::*;

    /// Adds calls with these rates up to `rounds` times; returns the first decision, and after how many times it came.
    fn decide(rates: (f64, f64), calls: (u64, u64), rounds: u64, rng: &mut Rng) -> (TestResult, u64) {
        let mut test = Test::new(0.02);
        let mut sample = |calls, rate| Sample { calls, failed: (0..calls).filter(|_| rng.f64() < rate).count() as u64 };
        for look in 1..=rounds {
            test.add(sample(calls.0, rates.0), sample(calls.1, rates.1));
            if test.result() != TestResult::Undecided {
                return (test.result(), look);
            }
        }
        (TestResult::Undecided, rounds)
    }

    #[test]
    fn equal_groups_are_seldom_rejected_however_often_they_are_tested() {
        let mut rng = Rng::with_seed(1);
        for rate in [0.0, 0.001, 0.01, 0.1, 0.5] {
            for calls in [(99, 1), (10, 10), (0, 5)] {
                let worse =
                    (0..200).filter(|_| decide((rate, rate), calls, 300, &mut rng).0 == TestResult::Worse).count();
                assert!(worse <= 2, "{worse} of 200 at {rate}, {calls:?}");
            }
        }
    }

    #[test]
    fn a_group_that_fails_much_more_often_is_found_within_tens_of_calls() {
        let mut rng = Rng::with_seed(2);
        for (rate, most) in [(1.0, 20), (0.3, 40), (0.1, 200)] {
            for _ in 0..100 {
                let (result, rounds) = decide((0.001, rate), (99, 1), 1000, &mut rng);
                assert!(result == TestResult::Worse && rounds <= most, "{result:?} after {rounds} calls at {rate}");
            }
        }
    }

    #[test]
    fn a_group_that_does_not_differ_is_accepted_within_hundreds_of_calls() {
        let mut rng = Rng::with_seed(3);
        for rate in [0.0, 0.001, 0.01] {
            let accepted = (0..100).filter(|_| {
                let (result, rounds) = decide((rate, rate), (99, 1), 1500, &mut rng);
                result == TestResult::Accepted && rounds >= MIN_SAMPLES
            });
            let accepted = accepted.count();
            assert!(accepted >= 95, "{accepted} of 100 at {rate}");
        }
    }

    #[test]
    fn a_group_that_is_worse_in_an_outage_of_both_is_found() {
        let mut rng = Rng::with_seed(4);
        let worse = (0..100).filter(|_| decide((0.4, 0.7), (50, 5), 300, &mut rng).0 == TestResult::Worse).count();
        assert!(worse >= 99, "{worse}");
    }

    #[test]
    fn a_failure_after_a_long_good_time_is_found_as_soon() {
        let mut test = Test::new(0.02);
        for _ in 0..10_000 {
            test.add(Sample { calls: 10, failed: 0 }, Sample { calls: 10, failed: 0 });
        }
        assert_eq!(test.result(), TestResult::Accepted);
        let rounds = (1..100).find(|_| {
            test.add(Sample { calls: 10, failed: 0 }, Sample { calls: 10, failed: 3 });
            test.result() == TestResult::Worse
        });
        assert!(rounds.is_some_and(|rounds| rounds <= 10), "{rounds:?}");
    }
}
