//! The average service time, learned from responses, and the estimate for the next response.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// A weighted average of the service time: the time of one request without a queue.
///
/// The measured time, from admission to the end of the response, includes the wait for the requests ahead. The
/// `p`th request in flight, of which `n` are worked on at the same time, waits `(p - n) / n` service times and then takes
/// one. So each sample is divided by `p / n`, and an estimate multiplies by it again. If `n` is configured wrongly, the
/// two errors cancel at the load of the samples: an app that does more at the same time than configured shows a
/// correspondingly shorter service time.
///
/// The first samples have equal weight, later ones one sixteenth each. All state is in one word.
#[derive(Debug, Default)]
pub(super) struct ServiceTime {
    /// The number of samples in the upper 16 bits, nanoseconds below.
    learned: AtomicU64,
}

/// With fewer samples there is no estimate.
const ENOUGH: u64 = 16;
const WEIGHT: u64 = 16;
const NANOSECONDS: u64 = (1 << 48) - 1;

/// A sample counts as at most this many times the average, or as a millisecond: a few clients that call a slow route or
/// upload slowly must not make the app look slow.
const MOST: u64 = 4;
const MILLISECOND: u64 = 1_000_000;

impl ServiceTime {
    /// Adds the sample of a response; `number` is the position of the request among those in flight.
    pub(super) fn learn(&self, took: Duration, number: u32, at_once: u32) {
        self.update(WEIGHT, |_| uncontended(took, number, at_once));
    }

    /// Adds the sample of a call admitted to confirm the average: it has as much weight as all before.
    pub(super) fn confirm(&self, took: Duration, number: u32, at_once: u32) {
        self.update(2, |_| uncontended(took, number, at_once));
    }

    /// Adds the lower bound of a call that was cancelled at its deadline: it can only raise the average.
    pub(super) fn learn_at_least(&self, took: Duration, number: u32, at_once: u32) {
        self.update(WEIGHT, |average| uncontended(took, number, at_once).max(average));
    }

    fn update(&self, weight: u64, sample: impl Fn(u64) -> u64) {
        let update = |learned: u64| {
            let (samples, average) = (learned >> 48, learned & NANOSECONDS);
            let most = if samples < ENOUGH { NANOSECONDS } else { (average * MOST).max(MILLISECOND) };
            let sample = sample(average).min(most);
            let samples = (samples + 1).min(u64::from(u16::MAX));
            let weight = samples.min(weight);
            // both are below 2^50
            let average = (average * (weight - 1) + sample) / weight;
            Some(samples << 48 | average.min(NANOSECONDS))
        };
        // the closure never declines
        let _ = self.learned.fetch_update(Relaxed, Relaxed, update);
    }

    /// The average, once there are enough samples.
    pub(super) fn average(&self) -> Option<Duration> {
        let learned = self.learned.load(Relaxed);
        (learned >> 48 >= ENOUGH).then(|| Duration::from_nanos(learned & NANOSECONDS))
    }

    /// The time a response may take at this position among the calls in flight; `None` if a worker is free or unknown.
    ///
    /// Twice the service time plus 4/3 of the wait, because about half of all service times and waits exceed their mean. The
    /// queue only has to keep all workers busy. With a free worker nothing is refused: its response keeps the average
    /// current.
    pub(super) fn estimate(&self, number: u32, at_once: u32) -> Option<Duration> {
        if number <= at_once {
            return None;
        }
        let service = self.average()?.as_nanos();
        let wait = service * u128::from(number - at_once) * 4 / (u128::from(at_once) * 3);
        Some(Duration::from_nanos(u64::try_from(service * 2 + wait).unwrap_or(u64::MAX)))
    }
}

/// The duration of a call without its wait, in nanoseconds.
fn uncontended(took: Duration, number: u32, at_once: u32) -> u64 {
    let alone = took.as_nanos() * u128::from(at_once) / u128::from(number.max(at_once));
    u64::try_from(alone).unwrap_or(u64::MAX).min(NANOSECONDS)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn learned(took: Duration, number: u32, at_once: u32) -> ServiceTime {
        let service = ServiceTime::default();
        for _ in 0..ENOUGH {
            service.learn(took, number, at_once);
        }
        service
    }

    #[test]
    fn there_is_no_estimate_from_few_responses() {
        let service = ServiceTime::default();
        for _ in 1..ENOUGH {
            service.learn(MS * 900, 1, 1);
            assert_eq!((service.average(), service.estimate(99, 1)), (None, None));
        }
        service.learn(MS * 900, 1, 1);
        assert_eq!(service.average(), Some(MS * 900));
    }

    #[test]
    fn the_wait_ahead_is_taken_out_of_the_samples() {
        // 8 workers and 72 calls in flight: eight rounds of waiting and one of work
        assert_eq!(learned(MS * 360, 72, 8).average(), Some(MS * 40));
        assert_eq!(learned(MS * 40, 3, 8).average(), Some(MS * 40));
    }

    #[test]
    fn an_estimate_grows_with_the_calls_ahead() {
        let service = learned(MS * 30, 1, 8);
        assert_eq!(service.estimate(8, 8), None, "a worker is free");
        assert_eq!(service.estimate(16, 8), Some(MS * 100));
        assert_eq!(service.estimate(32, 8), Some(MS * 180));
    }

    #[test]
    fn a_higher_concurrency_than_configured_shortens_the_estimate() {
        // 200 calls that wait 50 ms for a database, with a configured concurrency of 4
        let service = learned(MS * 50, 200, 4);
        assert!(service.estimate(200, 4) < Some(MS * 70));
    }

    #[test]
    fn the_average_follows_a_change() {
        let service = learned(MS * 40, 1, 8);
        for _ in 0..3 * WEIGHT {
            service.learn(MS * 160, 1, 8);
        }
        assert!(service.average() > Some(MS * 150));
    }

    #[test]
    fn who_left_too_late_can_only_raise_the_average() {
        let service = learned(MS * 40, 1, 8);
        service.learn_at_least(MS * 10, 1, 8);
        assert_eq!(service.average(), Some(MS * 40));
        service.learn_at_least(MS * 160, 1, 8);
        assert_eq!(service.average(), Some(Duration::from_micros(47_500)));
    }

    #[test]
    fn a_few_slow_calls_among_many_say_little_and_many_are_learned_at_once() {
        let service = learned(MS * 5, 1, 8);
        for _ in 0..1_000 {
            service.learn(MS * 5_000, 1, 8);
            (0..9).for_each(|_| service.learn(MS * 5, 1, 8));
        }
        assert!(service.average() < Some(MS * 9), "{:?}", service.average());
        (0..40).for_each(|_| service.learn(MS * 50, 1, 8));
        assert!(service.average() > Some(MS * 40), "{:?}", service.average());
    }

    #[test]
    fn cancelled_calls_raise_the_estimate_of_a_slow_app() {
        let service = ServiceTime::default();
        for number in 0..20 {
            service.learn_at_least(MS * 500, 40 + number, 8);
        }
        assert_eq!(service.average(), Some(MS * 100));
    }

    #[test]
    fn one_proof_counts_as_much_as_all_before() {
        let service = learned(MS * 900, 1, 1);
        service.confirm(MS * 100, 1, 1);
        assert_eq!(service.average(), Some(MS * 500));
    }

    proptest! {
        #[test]
        fn an_average_lies_between_its_samples(samples in proptest::collection::vec(0_u64..1 << 47, 16..80)) {
            let service = ServiceTime::default();
            for sample in &samples {
                service.learn(Duration::from_nanos(*sample), 1, 1);
            }
            let average = u64::try_from(service.average().unwrap().as_nanos()).unwrap();
            prop_assert!(average <= *samples.iter().max().unwrap());
            // each division rounds down
            prop_assert!(average + WEIGHT >= *samples.iter().min().unwrap());
        }

        #[test]
        fn no_numbers_overflow(took in any::<u64>(), number in 1..u32::MAX, at_once in 1..u32::MAX) {
            let service = learned(Duration::from_nanos(took), number, at_once);
            let estimate = service.estimate(number, at_once);
            prop_assert_eq!(estimate.is_none(), number <= at_once);
            service.learn(Duration::MAX, number, at_once);
        }
    }
}
