//! The share of the calls that each level of a pool takes. Pure.
//!
//! A level is a priority tier, or the part of a tier inside or outside of the own zone. It takes as many calls as its
//! available endpoints can bear; the rest goes to the next level. If fewer than half of its endpoints are available,
//! and no other level can take over, a level panics: all of its endpoints are used, because when most endpoints fail at
//! once, the reason is seldom in each of them (Envoy's panic threshold; AWS Builders' Library, "Implementing health
//! checks"). A level of one endpoint does not panic: its circuit rejects calls as it does without a pool.

/// Available endpoints are assumed to bear this many times their usual load (Envoy's overprovisioning factor, 140 %).
const OVERPROVISIONING: f64 = 1.4;
/// A level may panic if less than this part of it is available.
const PANIC: f64 = 0.5;
/// The scale of [`LevelShare::up_to`].
pub(super) const ALL: u32 = 1 << 16;

/// The endpoints of a level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LevelCount {
    pub(super) available: usize,
    pub(super) total: usize,
}

/// The share of a level.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct LevelShare {
    /// The sum of the shares of this level and of all levels before it, of [`ALL`].
    pub(super) up_to: u32,
    /// Whether all endpoints are used, available or not.
    pub(super) panics: bool,
}

/// Returns the shares of levels, in order. The last one ends at [`ALL`], if there is a level with endpoints.
pub(super) fn shares(levels: &[LevelCount]) -> Vec<LevelShare> {
    let mut left = 1.0;
    let mut shares: Vec<f64> = levels
        .iter()
        .map(|level| {
            let share = (part(*level) * OVERPROVISIONING).min(left);
            left -= share;
            share
        })
        .collect();
    let is_short = left > 1e-9;
    let panics: Vec<_> = levels.iter().map(|level| is_short && level.total > 1 && part(*level) < PANIC).collect();
    if is_short {
        // a level that panics bears its calls with all of its endpoints
        let first = levels.iter().position(|level| level.total > 0);
        if let Some(first) = panics.iter().position(|panics| *panics).or(first) {
            shares[first] += left;
        }
    }
    let mut up_to = 0.0;
    let mut shares: Vec<_> = shares
        .iter()
        .zip(&panics)
        .map(|(share, panics)| {
            up_to += share;
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // at most `ALL`
            let up_to = (up_to * f64::from(ALL)).round() as u32;
            LevelShare { up_to, panics: *panics }
        })
        .collect();
    // a rounding error must not lead to an empty level at the end
    if let Some(last) = shares.iter().zip(levels).rposition(|(_, level)| level.total > 0) {
        shares[last..].iter_mut().for_each(|share| share.up_to = ALL);
    }
    shares
}

/// The part of a level that is available.
#[allow(clippy::cast_precision_loss)] // at most 65,536 endpoints
fn part(level: LevelCount) -> f64 {
    if level.total == 0 { 0.0 } else { level.available as f64 / level.total as f64 }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn percent(levels: &[(usize, usize)]) -> Vec<(u32, bool)> {
        let levels: Vec<_> = levels.iter().map(|&(available, total)| LevelCount { available, total }).collect();
        let mut before = 0;
        let shares = shares(&levels).into_iter().map(|share| {
            let own = share.up_to - before;
            before = share.up_to;
            ((own * 100 + ALL / 2) / ALL, share.panics)
        });
        shares.collect()
    }

    #[test]
    fn a_tier_spills_over_when_its_healthy_share_times_1_4_is_less_than_one() {
        assert_eq!(percent(&[(10, 10), (5, 5)]), [(100, false), (0, false)]);
        assert_eq!(percent(&[(8, 10), (5, 5)]), [(100, false), (0, false)]);
        assert_eq!(percent(&[(5, 10), (5, 5)]), [(70, false), (30, false)]);
        assert_eq!(percent(&[(1, 10), (5, 5)]), [(14, false), (86, false)]);
        assert_eq!(percent(&[(0, 10), (5, 5), (5, 5)]), [(0, false), (100, false), (0, false)]);
    }

    #[test]
    fn all_endpoints_are_used_if_less_than_half_of_them_are_available_and_no_tier_takes_over() {
        assert_eq!(percent(&[(5, 10)]), [(100, false)]);
        assert_eq!(percent(&[(4, 10)]), [(100, true)]);
        assert_eq!(percent(&[(0, 1)]), [(100, false)]);
        assert_eq!(percent(&[(2, 10), (2, 10)]), [(72, true), (28, true)]);
        assert_eq!(percent(&[(6, 10), (1, 10)]), [(84, false), (16, true)]);
        assert_eq!(percent(&[(0, 0), (1, 10)]), [(0, false), (100, true)]);
        assert_eq!(percent(&[(0, 0)]), [(0, false)]);
    }

    proptest! {
        #[test]
        fn every_call_has_a_level_that_can_take_it(
            levels in proptest::collection::vec((0_usize..20, 0_usize..20), 1..6),
        ) {
            let levels: Vec<_> =
                levels.into_iter().map(|(a, b)| LevelCount { available: a.min(b), total: a.max(b) }).collect();
            let shares = shares(&levels);
            let mut before = 0;
            for (share, level) in shares.iter().zip(&levels) {
                prop_assert!(share.up_to >= before);
                prop_assert!(share.up_to == before || level.available > 0 || share.panics || level.total == 1);
                before = share.up_to;
            }
            prop_assert_eq!(before, if levels.iter().any(|level| level.total > 0) { ALL } else { 0 });
        }
    }
}
