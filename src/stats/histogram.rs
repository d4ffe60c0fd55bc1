//! Durations in log-linear buckets: 18 per octave, equally wide within it.
//!
//! The scheme is that of `HdrHistogram` (Gil Tene) with another number of buckets per octave: the bucket of a duration of
//! `n` nanoseconds is `floor(18 n / 2^e)` with `e = floor(log2 n)`, so one shift and one multiplication find it. There are
//! 26 octaves, from 65.5 us to 73 min; shorter and longer durations count in the first and the last bucket. A duration is
//! reported as the middle of its bucket, at most 1/36 (2.8 %) off.

use std::time::Duration;

const OCTAVES: usize = 26;
const TO_THE_OCTAVE: usize = 18;

/// The logarithm of the lowest octave's beginning, in nanoseconds.
const LOWEST: u32 = 16;

/// The number of buckets.
pub(crate) const BUCKETS: usize = OCTAVES * TO_THE_OCTAVE;

/// The bucket of a duration.
#[inline]
pub(crate) fn bucket(elapsed: Duration) -> usize {
    const LONGEST: u64 = (1 << (LOWEST as usize + OCTAVES)) - 1;
    let nanos = u64::try_from(elapsed.as_nanos()).unwrap_or(LONGEST).clamp(1 << LOWEST, LONGEST);
    let octave = nanos.ilog2();
    let within = (nanos * TO_THE_OCTAVE as u64) >> octave;
    // `within` is 18 to 35
    (octave - LOWEST) as usize * TO_THE_OCTAVE + usize::try_from(within).unwrap_or_default() - TO_THE_OCTAVE
}

/// The middle of a bucket.
fn middle(bucket: usize) -> Duration {
    let (octave, within) = (bucket / TO_THE_OCTAVE, bucket % TO_THE_OCTAVE);
    let twice = 2 * (TO_THE_OCTAVE + within) as u64 + 1;
    Duration::from_nanos((twice << (LOWEST as usize + octave)) / (2 * TO_THE_OCTAVE as u64))
}

/// A quantile: the share of samples that are not longer.
///
/// ```
/// use tower_upstream::retry::Quantile;
///
/// assert_eq!(Quantile::per_mille(995), Quantile::P99_5);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Quantile {
    per_mille: u16,
}

impl Quantile {
    /// 95 %.
    pub const P95: Self = Self { per_mille: 950 };
    /// 99 %.
    pub const P99: Self = Self { per_mille: 990 };
    /// 99.5 %.
    pub const P99_5: Self = Self { per_mille: 995 };
    /// 99.9 %.
    pub const P99_9: Self = Self { per_mille: 999 };

    /// A quantile in thousandths; less than 1 counts as 1, more than 999 as 999.
    pub const fn per_mille(per_mille: u16) -> Self {
        let per_mille = if per_mille == 0 { 1 } else { per_mille };
        Self { per_mille: if per_mille > 999 { 999 } else { per_mille } }
    }

    /// The thousandths.
    pub(crate) const fn as_per_mille(self) -> u16 {
        self.per_mille
    }

    /// The rank of this quantile among the samples, from 1; 0 without samples.
    fn rank(self, samples: u64) -> u64 {
        (samples * u64::from(self.per_mille)).div_ceil(1000)
    }
}

/// The samples of a window, summed over its stripes and slices.
#[derive(Clone, Debug)]
pub(crate) struct Histogram {
    counts: [u64; BUCKETS],
    samples: u64,
}

impl Histogram {
    pub(crate) fn new() -> Self {
        Self { counts: [0; BUCKETS], samples: 0 }
    }

    /// Adds samples to a bucket; an index out of range is ignored.
    pub(crate) fn add(&mut self, bucket: usize, samples: u32) {
        if let Some(count) = self.counts.get_mut(bucket) {
            *count += u64::from(samples);
            self.samples += u64::from(samples);
        }
    }

    pub(crate) fn samples(&self) -> u64 {
        self.samples
    }

    /// The duration that this share of the samples does not exceed, within 2.8 %; `None` without samples.
    pub(crate) fn quantile(&self, quantile: Quantile) -> Option<Duration> {
        let rank = quantile.rank(self.samples);
        let mut passed = 0;
        let found = self.counts.iter().position(|count| {
            passed += count;
            passed >= rank && *count > 0
        });
        found.map(middle)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SHORTEST: u64 = 1 << LOWEST;
    const LONGEST: u64 = (1 << 42) - 1;

    #[test]
    fn every_bucket_holds_its_own_middle() {
        for each in 0..BUCKETS {
            assert_eq!(bucket(middle(each)), each);
        }
    }

    #[test]
    fn durations_out_of_range_are_clamped() {
        let inner = 1..BUCKETS - 1;
        assert!(inner.contains(&bucket(Duration::from_micros(100))));
        assert!(inner.contains(&bucket(Duration::from_secs(3600))));
        assert_eq!(bucket(Duration::ZERO), 0);
        assert_eq!(bucket(Duration::from_nanos(SHORTEST)), 0);
        assert_eq!(bucket(Duration::from_nanos(LONGEST)), BUCKETS - 1);
        assert_eq!(bucket(Duration::MAX), BUCKETS - 1);
    }

    #[test]
    fn no_samples_have_no_quantile() {
        assert_eq!(Histogram::new().quantile(Quantile::P99), None);
    }

    #[test]
    fn one_slow_sample_of_two_hundred_is_beyond_p99_5_and_two_are_not() {
        let mut histogram = Histogram::new();
        histogram.add(bucket(Duration::from_millis(40)), 199);
        histogram.add(bucket(Duration::from_secs(9)), 1);
        assert!(histogram.quantile(Quantile::P99_5).unwrap() < Duration::from_millis(42));
        histogram.add(bucket(Duration::from_secs(9)), 1);
        assert!(histogram.quantile(Quantile::P99_5).unwrap() > Duration::from_secs(8));
    }

    #[test]
    fn a_quantile_is_never_nothing_nor_all() {
        assert_eq!(Quantile::per_mille(0), Quantile::per_mille(1));
        assert_eq!(Quantile::per_mille(u16::MAX), Quantile::P99_9);
    }

    proptest! {
        #[test]
        fn a_longer_duration_is_in_no_lower_bucket(a in 0..2 * LONGEST, b in 0..2 * LONGEST) {
            let (short, long) = (a.min(b), a.max(b));
            prop_assert!(bucket(Duration::from_nanos(short)) <= bucket(Duration::from_nanos(long)));
        }

        #[test]
        fn a_quantile_is_within_three_percent_of_the_sorted_samples(
            // even over the octaves, as latencies are, rather than over the nanoseconds
            samples in prop::collection::vec((16.0_f64..41.9).prop_map(f64::exp2), 1..400),
            per_mille in 1_u16..1000,
        ) {
            let mut histogram = Histogram::new();
            let mut sorted: Vec<_> = samples.iter().map(|nanos| Duration::from_secs_f64(nanos / 1e9)).collect();
            sorted.sort();
            for sample in &sorted {
                histogram.add(bucket(*sample), 1);
            }
            let rank = (sorted.len() * usize::from(per_mille)).div_ceil(1000);
            let exact = sorted[rank - 1].as_secs_f64();
            let told = histogram.quantile(Quantile::per_mille(per_mille)).unwrap().as_secs_f64();
            prop_assert!((told / exact - 1.0).abs() <= 0.03, "{told} for {exact}");
        }
    }
}
