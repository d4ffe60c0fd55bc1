//! Statistics of the last minute: durations in windows of striped, lock-free counters; counters by route.
//!
//! Nothing here reads a clock: time is an argument, or a second counted from an epoch that the owner chooses.

mod histogram;
mod ratio;
#[cfg(not(all(test, loom)))]
mod routes;
mod striped_window;
mod stripes;
pub(crate) mod sync;
mod tick_lock;
#[cfg(not(all(test, loom)))]
mod windowed_histogram;

pub use self::histogram::Quantile;
pub(crate) use self::histogram::{BUCKETS, Histogram, bucket};
pub use self::ratio::Ratio;
#[cfg(not(all(test, loom)))]
pub(crate) use self::routes::{DEPTHS, RouteKey, RouteTable};
pub(crate) use self::striped_window::{Bookmark, StripedWindow};
pub(crate) use self::stripes::{default_stripes, stripe};
pub(crate) use self::tick_lock::{TickGuard, TickLock};
#[cfg(not(all(test, loom)))]
pub(crate) use self::windowed_histogram::WindowedHistogram;

/// Clamps a duration so that adding it to an instant cannot overflow the clock.
#[cfg(not(all(test, loom)))]
pub(crate) fn reachable(limit: std::time::Duration) -> std::time::Duration {
    const FAR: std::time::Duration = std::time::Duration::from_secs(100 * 365 * 24 * 60 * 60);
    limit.min(FAR)
}
