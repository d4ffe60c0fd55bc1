//! The open duration: exponential with jitter, and reduced again after a healthy period.

/// Computes the open durations of one circuit; times in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OpenBackoff {
    pub(crate) first: u64,
    pub(crate) max: u64,
    /// After being closed for this long, one doubling is undone.
    pub(crate) decay_after: u64,
}

impl OpenBackoff {
    /// The open duration after `rung` consecutive openings: half of it is fixed, the other half is random.
    ///
    /// The random half spreads the probes of many gateways ("equal jitter"; AWS Architecture Blog, 2015), the fixed half
    /// gives the upstream time to recover. It never exceeds the configured maximum.
    pub(crate) fn open_duration(&self, rung: u32, random: u64) -> u64 {
        let doubled = self.first.saturating_mul(1_u64.checked_shl(rung).unwrap_or(u64::MAX));
        let most = doubled.min(self.max);
        let drawn = (u128::from(most / 2) * u128::from(random)) >> u64::BITS;
        most - most / 2 + u64::try_from(drawn).unwrap_or(0)
    }

    /// Counts one more opening; stops at the maximum duration so that decay does not take longer.
    pub(crate) fn escalate(&self, rung: u32) -> u32 {
        let at_longest = self.first.saturating_mul(1_u64.checked_shl(rung).unwrap_or(u64::MAX)) >= self.max;
        if at_longest { rung } else { rung + 1 }
    }

    /// The count of consecutive openings after the circuit was closed for this long.
    pub(crate) fn decay(&self, rung: u32, closed: u64) -> u32 {
        let steps = closed / self.decay_after.max(1);
        rung.saturating_sub(u32::try_from(steps).unwrap_or(u32::MAX))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PAUSES: OpenBackoff = OpenBackoff { first: 1000, max: 10_000, decay_after: 10_000 };

    #[test]
    fn a_pause_doubles_up_to_the_longest() {
        let most = |rung| PAUSES.open_duration(rung, u64::MAX);
        assert_eq!([0, 1, 2, 3, 4, 70].map(most), [999, 1999, 3999, 7999, 9999, 9999]);
        assert_eq!([0, 3, 4].map(|rung| PAUSES.open_duration(rung, 0)), [500, 4000, 5000]);
    }

    #[test]
    fn each_healthy_window_takes_one_doubling_back() {
        let rung = (0..99).fold(0, |rung, _| PAUSES.escalate(rung));
        assert_eq!(rung, 4);
        assert_eq!([0, 9_999, 10_000, 35_000, 999_999].map(|closed| PAUSES.decay(rung, closed)), [4, 4, 3, 1, 0]);
    }

    proptest! {
        #[test]
        fn an_open_duration_is_between_half_and_all_of_the_setting(
            first: u64, longest: u64, rung in 0_u32..99, random: u64,
        ) {
            let pauses = OpenBackoff { first, max: longest, decay_after: 1 };
            let pause = pauses.open_duration(rung, random);
            prop_assert!(pause <= longest && pause >= first.min(longest) / 2);
        }
    }
}
