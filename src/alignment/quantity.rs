//! The quantities that are compared, and the margin between them.

use std::cmp::Ordering;
use std::fmt;
use std::time::Duration;

/// One side of an inequality.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Quantity {
    /// A time.
    Time(Duration),
    /// No limit.
    Unlimited,
    /// A number.
    Count(u64),
    /// A size in bytes.
    Bytes(u64),
    /// A fraction of the whole.
    Fraction(Fraction),
}

impl Quantity {
    /// The order among quantities of one kind; `Unlimited` is the largest.
    fn rank(self) -> u128 {
        match self {
            Self::Time(time) => time.as_nanos(),
            Self::Unlimited => u128::MAX,
            Self::Count(number) | Self::Bytes(number) => number.into(),
            Self::Fraction(share) => share.0.into(),
        }
    }

    /// The smaller of two of a kind.
    pub(super) fn min(self, other: Self) -> Self {
        if other.rank() < self.rank() { other } else { self }
    }

    /// The sum; unlimited plus a time is unlimited.
    pub(super) fn plus(self, time: Duration) -> Self {
        match self {
            Self::Time(own) => Self::Time(own.saturating_add(time)),
            other => other,
        }
    }

    /// Rounded up to a millisecond, so that a minimum stays sufficient when printed.
    pub(super) fn rounded_up(self) -> Self {
        match self {
            Self::Time(time) => {
                let millis = time.as_nanos().div_ceil(1_000_000);
                Self::Time(Duration::from_millis(u64::try_from(millis).unwrap_or(u64::MAX)))
            }
            other => other,
        }
    }

    pub(super) fn time(self) -> Option<Duration> {
        match self {
            Self::Time(time) => Some(time),
            _ => None,
        }
    }

    pub(super) fn order(self, other: Self) -> Ordering {
        self.rank().cmp(&other.rank())
    }

    pub(super) fn is_below(self, other: Self) -> bool {
        self.rank() < other.rank()
    }

    pub(super) fn is_unlimited(self) -> bool {
        self == Self::Unlimited
    }
}

impl From<Duration> for Quantity {
    fn from(time: Duration) -> Self {
        Self::Time(time)
    }
}

impl From<Option<Duration>> for Quantity {
    fn from(limit: Option<Duration>) -> Self {
        limit.map_or(Self::Unlimited, Self::Time)
    }
}

/// As an operator reads it: `2.5 s`, `no limit`, `20`, `64 KiB`, `0.2 %`.
impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Time(time) => write!(f, "{}", HumanDuration(*time)),
            Self::Unlimited => f.write_str("no limit"),
            Self::Count(number) => write!(f, "{number}"),
            Self::Bytes(bytes) => match bytes {
                0x4000_0000.. => write!(f, "{} GiB", thousandths(bytes >> 20, 1024)),
                0x10_0000.. => write!(f, "{} MiB", thousandths(bytes >> 10, 1024)),
                0x400.. => write!(f, "{} KiB", thousandths(*bytes, 1024)),
                _ => write!(f, "{bytes} B"),
            },
            Self::Fraction(share) => write!(f, "{share}"),
        }
    }
}

/// A fraction of the whole, exact to a millionth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Fraction(u32);

impl Fraction {
    /// Nothing.
    pub(super) const NONE: Self = Self(0);
    /// The whole.
    pub(super) const ALL: Self = Self(1_000_000);

    /// A fraction in thousandths; more than 1000 counts as the whole.
    pub(super) const fn per_mille(parts: u16) -> Self {
        Self::per_million((parts as u32).saturating_mul(1000))
    }

    /// A fraction in millionths; more than a million counts as the whole.
    pub(super) const fn per_million(parts: u32) -> Self {
        if parts > Self::ALL.0 { Self::ALL } else { Self(parts) }
    }

    /// The whole minus this fraction.
    pub(super) const fn complement(self) -> Self {
        Self(Self::ALL.0 - self.0)
    }
}

impl fmt::Display for Fraction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} %", fraction(u64::from(self.0 / 10_000), u64::from(self.0 % 10_000), 4))
    }
}

/// The margin between two timeouts for messages in flight, clocks and scheduling.
///
/// The larger of 50 ms and 5 % of the smaller timeout: the smaller one has to fire first, and its own delay grows
/// with it.
pub(super) fn margin(one: Quantity, other: Quantity) -> Duration {
    let smaller = one.min(other).time().unwrap_or_default();
    (smaller / 20).max(LEAST_MARGIN)
}

pub(super) const LEAST_MARGIN: Duration = Duration::from_millis(50);

/// The largest timeout that stays below this one with its margin.
pub(super) fn below(limit: Duration) -> Duration {
    let twentieth = limit.as_nanos() * 20 / 21;
    let share = Duration::from_nanos(u64::try_from(twentieth).unwrap_or(u64::MAX));
    share.min(limit.saturating_sub(LEAST_MARGIN))
}

/// A duration in a suitable unit, truncated after three digits so that the printed value is still within the limit.
pub(super) struct HumanDuration(pub(super) Duration);

impl fmt::Display for HumanDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (time, nanos) = (self.0, u64::from(self.0.subsec_nanos()));
        if time >= Duration::from_secs(100 * 24 * 60 * 60) {
            write!(f, "{} d", time.as_secs() / 86_400)
        } else if time >= Duration::from_secs(1) {
            write!(f, "{} s", fraction(time.as_secs(), nanos / 1_000_000, 3))
        } else {
            write!(f, "{} ms", fraction(nanos / 1_000_000, nanos / 1000 % 1000, 3))
        }
    }
}

fn thousandths(amount: u64, unit: u64) -> String {
    fraction(amount / unit, amount % unit * 1000 / unit, 3)
}

/// A decimal without trailing zeros.
fn fraction(whole: u64, part: u64, digits: usize) -> String {
    if part == 0 {
        return whole.to_string();
    }
    format!("{whole}.{part:0digits$}").trim_end_matches('0').to_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ms(number: u64) -> Duration {
        Duration::from_millis(number)
    }

    #[test]
    fn numbers_read_as_an_operator_writes_them() {
        let spoken = |time| HumanDuration(time).to_string();
        assert_eq!(spoken(ms(50)), "50 ms");
        assert_eq!(spoken(Duration::from_micros(1500)), "1.5 ms");
        assert_eq!(spoken(ms(2500)), "2.5 s");
        assert_eq!(spoken(ms(57_142)), "57.142 s");
        assert_eq!(Quantity::Bytes(64 << 10).to_string(), "64 KiB");
        assert_eq!(Quantity::Bytes(3 << 29).to_string(), "1.5 GiB");
        assert_eq!(Fraction::per_mille(995).to_string(), "99.5 %");
        assert_eq!(Fraction::per_million(2020).to_string(), "0.202 %");
        assert_eq!(Quantity::Unlimited.to_string(), "no limit");
    }

    #[test]
    fn the_margin_is_a_twentieth_of_the_smaller_limit_and_50_ms_at_least() {
        let of = |one, other| margin(Quantity::Time(ms(one)), Quantity::Time(ms(other)));
        assert_eq!(of(10_000, 60_000), ms(500));
        assert_eq!(of(60_000, 10_000), ms(500));
        assert_eq!(of(999, 60_000), ms(50));
        assert_eq!(margin(Quantity::Unlimited, Quantity::Time(ms(2000))), ms(100));
    }

    proptest! {
        #[test]
        fn whatever_lies_below_the_bound_keeps_its_margin(limit in 51u64..10_000_000, less in 1u64..10_000) {
            let limit = Duration::from_micros(limit * 1000);
            let bound = below(limit);
            let own = bound.saturating_sub(Duration::from_nanos(less));
            prop_assume!(own < bound);
            prop_assert!(own + margin(Quantity::Time(own), Quantity::Time(limit)) < limit);
            let over = bound + Duration::from_nanos(2);
            prop_assert!(over + margin(Quantity::Time(over), Quantity::Time(limit)) >= limit);
        }
    }
}
