//! A sequential test of two groups of calls: whether the part of one that fails is larger than that of the other. Pure.
//!
//! The statistic is the logarithm of an e-value for 2 x 2 tables: Turner, Ly, Grünwald, "Generic E-variables for exact
//! sequential k-sample tests that allow for optional stopping" (2024). For the calls since the last look it is the ratio of
//! their likelihood under the alternative, `new` fails with `p` and `old` with `q`, to that under the best null hypothesis,
//! where both fail with the mean `m` of `p` and `q`, weighted by their calls. `p` and `q` come from earlier looks only.
//!
//! Whatever the true rate is, if both groups share it, the expectation of each ratio is at most 1 (by the inequality of
//! arithmetic and geometric means), so the product exceeds 1/a at any time with probability `a` at most (Ville). It may be
//! looked at after every call, unlike a p-value.
//!
//! The logarithm falls no further than a bound, as in a CUSUM chart: a release that begins to fail after a good hour is found as
//! soon. The probability above then holds from each such bound.
//!
//! A group is accepted by Wald's sequential probability ratio test: its calls are much less likely under the alternative, which
//! has a least effect, than under the old group's rate, taken as known. (The statistic above cannot tell: where the new group
//! has few of the calls, a null hypothesis between both rates fits all of them.)

use super::Evidence;

/// A test without a difference reaches this logarithm, of 1,000, with a probability of 0.1 % at most.
const REJECT: f64 = 6.907_755_278_982_137;
/// The logarithm of 1/20: the least effect is 20 times less likely than none.
const ACCEPT: f64 = -2.995_732_273_553_991;
/// Before it, a difference counts as chance.
const MIN_SAMPLES: u64 = 20;

/// Calls, and those of them that failed.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sample {
    pub(super) calls: u64,
    pub(super) failed: u64,
}

/// What a test has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TestResult {
    /// `new` fails more often.
    Worse,
    /// It does not fail more often by the least effect.
    Accepted,
    Undecided,
}

/// The state of a test.
#[derive(Clone, Copy, Debug)]
pub(super) struct Test {
    /// The least effect: `new` fails this much more often than by twice the odds of `old`.
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

    /// Adds the calls since the last look.
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

    /// The rates of failures of `old` and `new` under the alternative, from the calls before.
    fn alternative(&self) -> (f64, f64) {
        let rate = |sample: Sample| (sample.failed as f64 + 0.1) / (sample.calls as f64 + 10.0);
        let old = rate(self.old).clamp(0.001, 0.95);
        // twice the odds, about
        let least = old + old * (1.0 - old) + self.effect;
        (old, rate(self.new).max(least).min(0.999))
    }

    pub(super) fn verdict(&self) -> TestResult {
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

/// The logarithm of the ratio of a sample's likelihoods under two rates.
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

    /// One look after each of `looks` with these calls and rates; the verdict and the look of the first decision.
    fn decide(rates: (f64, f64), calls: (u64, u64), looks: u64, rng: &mut Rng) -> (TestResult, u64) {
        let mut test = Test::new(0.02);
        let mut sample = |calls, rate| Sample { calls, failed: (0..calls).filter(|_| rng.f64() < rate).count() as u64 };
        for look in 1..=looks {
            test.add(sample(calls.0, rates.0), sample(calls.1, rates.1));
            if test.verdict() != TestResult::Undecided {
                return (test.verdict(), look);
            }
        }
        (TestResult::Undecided, looks)
    }

    #[test]
    fn equal_groups_are_seldom_rejected_however_often_one_looks() {
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
                let (verdict, looks) = decide((0.001, rate), (99, 1), 1000, &mut rng);
                assert!(verdict == TestResult::Worse && looks <= most, "{verdict:?} after {looks} calls at {rate}");
            }
        }
    }

    #[test]
    fn a_group_that_does_not_differ_is_accepted_within_hundreds_of_calls() {
        let mut rng = Rng::with_seed(3);
        for rate in [0.0, 0.001, 0.01] {
            let accepted = (0..100).filter(|_| {
                let (verdict, looks) = decide((rate, rate), (99, 1), 1500, &mut rng);
                verdict == TestResult::Accepted && looks >= MIN_SAMPLES
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
        assert_eq!(test.verdict(), TestResult::Accepted);
        let looks = (1..100).find(|_| {
            test.add(Sample { calls: 10, failed: 0 }, Sample { calls: 10, failed: 3 });
            test.verdict() == TestResult::Worse
        });
        assert!(looks.is_some_and(|looks| looks <= 10), "{looks:?}");
    }
}
