//! Time limits of an exchange, the watch that tells who let them pass, and limits that are learned.

mod learned;
// its first user is the client
#[cfg(feature = "client")]
mod watch;

use std::time::Duration;

pub use self::learned::{Estimate, LearnedLimit, LearnedLimits, Learning, TooManyRoutes};
#[cfg(feature = "client")]
pub(crate) use self::watch::{Finding, Look, Watch};
pub use crate::measure::Quantile;

/// How long an exchange may take.
///
/// | limit | default | begins |
/// |---|---|---|
/// | [`head`](Self::head) | 30 s | when the request body has ended; without one, when the request is sent |
/// | [`body_idle`](Self::body_idle) | 30 s | at the last frame; it rests while nobody reads |
/// | [`total`](Self::total) | 60 s | at the call, up to the response head |
///
/// ```
/// use std::time::Duration;
/// use tower_upstream::timeout::Timeouts;
///
/// let timeouts = Timeouts::new().head(Duration::from_secs(5)).total(None);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
#[cfg_attr(not(feature = "client"), allow(dead_code))] // the client alone reads it, as yet
pub struct Timeouts {
    pub(crate) head: Option<Duration>,
    pub(crate) body_idle: Option<Duration>,
    pub(crate) total: Option<Duration>,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self::new()
    }
}

impl Timeouts {
    /// The defaults of the table.
    pub const fn new() -> Self {
        let half_a_minute = Some(Duration::from_secs(30));
        Self { head: half_a_minute, body_idle: half_a_minute, total: Some(Duration::from_secs(60)) }
    }

    /// Limits the wait for the response head; a request body that stands still is under the same limit.
    pub fn head(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.head = limit.into().map(reachable);
        self
    }

    /// Limits each wait for a frame of the response body.
    pub fn body_idle(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.body_idle = limit.into().map(reachable);
        self
    }

    /// Limits the time from the call to the response head; over a hundred years count as a hundred.
    pub fn total(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.total = limit.into().map(reachable);
        self
    }
}

/// No instant lies further ahead than can be counted to: `Duration::MAX` must not overflow the clock.
fn reachable(limit: Duration) -> Duration {
    const FAR: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);
    limit.min(FAR)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_limit_there_is_still_has_an_end_on_the_clock() {
        let limits = Timeouts::new().head(Duration::MAX).body_idle(Duration::MAX).total(Duration::MAX);
        for limit in [limits.head, limits.body_idle, limits.total] {
            assert!(tokio::time::Instant::now().checked_add(limit.unwrap()).is_some());
        }
    }
}
