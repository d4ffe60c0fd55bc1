//! A ratio in thousandths.

/// A ratio in thousandths: of retries to successes, of failures to calls.
///
/// ```
/// use tower_upstream::breaker::Ratio;
///
/// const TENTH: Ratio = Ratio::per_mille(100);
/// assert_eq!(TENTH, Ratio::CONSERVATIVE);
/// assert!(TENTH < Ratio::USUAL);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ratio(u16);

impl Ratio {
    /// 20 %, the default of a retry budget: adds at most a quarter of the load.
    pub const USUAL: Self = Self(200);
    /// 10 %, as in Google's SRE book: adds at most a ninth of the load.
    pub const CONSERVATIVE: Self = Self(100);

    /// A ratio in thousandths; less than 1 counts as 1, more than 1000 as 1000.
    pub const fn per_mille(per_mille: u16) -> Self {
        let per_mille = if per_mille == 0 { 1 } else { per_mille };
        Self(if per_mille > 1000 { 1000 } else { per_mille })
    }

    /// The thousandths.
    pub const fn as_per_mille(self) -> u16 {
        self.0
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_clamped_to_its_range() {
        let told = [0, 1, 600, 1000, u16::MAX].map(|told| Ratio::per_mille(told).as_per_mille());
        assert_eq!(told, [1, 1, 600, 1000, 1000]);
    }
}
