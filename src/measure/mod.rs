//! What was measured in the last minute: durations in a window of striped, lock-free counters.
//!
//! Nothing here reads a clock: the time is an argument, or the second, counted from an epoch that the owner chose.

mod duty;
mod histogram;
#[cfg(not(all(test, loom)))]
mod minute;
mod ratio;
mod stripes;
pub(crate) mod sync;
mod window;

pub(crate) use self::duty::{Duty, Taken};
pub use self::histogram::Quantile;
pub(crate) use self::histogram::{BUCKETS, Histogram, bucket};
#[cfg(not(all(test, loom)))]
pub(crate) use self::minute::Minute;
pub use self::ratio::Ratio;
pub(crate) use self::stripes::{default_stripes, stripe};
pub(crate) use self::window::{Mark, Window};

/// No instant lies further ahead than can be counted to: `Duration::MAX` must not overflow the clock.
#[cfg(not(all(test, loom)))]
pub(crate) fn reachable(limit: std::time::Duration) -> std::time::Duration {
    const FAR: std::time::Duration = std::time::Duration::from_secs(100 * 365 * 24 * 60 * 60);
    limit.min(FAR)
}
