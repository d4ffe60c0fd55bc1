//! The backoff before a retry: full jitter under a doubling ceiling.
//!
//! "Exponential Backoff and Jitter" (AWS Architecture Blog, 2015): of the ways to spread retries, a uniform backoff from zero
//! to the ceiling causes the fewest collisions.

use std::time::Duration;

/// The ceiling of the backoff: `base` doubled for each retry made already, at most `max`.
pub(super) fn ceiling(base: Duration, max: Duration, retries: u8) -> Duration {
    let doubled = 1_u32.checked_shl(retries.into()).unwrap_or(u32::MAX);
    base.saturating_mul(doubled).min(max)
}

/// A backoff from zero up to, but not including, the ceiling; `random` is uniform over its range.
pub(super) fn full_jitter(ceiling: Duration, random: u64) -> Duration {
    let nanos = u64::try_from(ceiling.as_nanos()).unwrap_or(u64::MAX);
    let drawn = (u128::from(nanos) * u128::from(random)) >> u64::BITS;
    Duration::from_nanos(u64::try_from(drawn).unwrap_or(nanos))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn the_ceiling_doubles_up_to_its_limit() {
        let ceilings = [0, 1, 2, 5, 6, 31, 32, 255].map(|retries| ceiling(25 * MS, 1000 * MS, retries).as_millis());
        assert_eq!(ceilings, [25, 50, 100, 800, 1000, 1000, 1000, 1000]);
        assert_eq!(ceiling(25 * MS, Duration::MAX, 255), 25 * MS * u32::MAX);
        assert_eq!(ceiling(Duration::MAX, Duration::MAX, 1), Duration::MAX);
    }

    #[test]
    fn the_pause_is_as_even_as_the_numbers_it_is_drawn_from() {
        assert_eq!(full_jitter(100 * MS, 0), Duration::ZERO);
        assert_eq!(full_jitter(100 * MS, u64::MAX / 4 + 1), 25 * MS);
        assert_eq!(full_jitter(100 * MS, u64::MAX / 2 + 1), 50 * MS);
        assert_eq!(full_jitter(100 * MS, u64::MAX), Duration::from_nanos(99_999_999));
    }

    proptest! {
        #[test]
        fn the_pause_stays_under_its_ceiling(nanos in 1..u64::MAX, random: u64) {
            let ceiling = Duration::from_nanos(nanos);
            prop_assert!(full_jitter(ceiling, random) < ceiling);
        }
    }
}
