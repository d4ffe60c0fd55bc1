//! Time limits of an exchange, and the watch that tells who let them pass.

pub mod alignment;
// its first user is the client
#[cfg(feature = "client")]
mod watch;

use std::time::Duration;

pub use self::alignment::{Misaligned, Report, Topology};
#[cfg(feature = "client")]
pub(crate) use self::watch::{Finding, Look, Watch};

/// How long an exchange may take.
///
/// | limit | default | begins |
/// |---|---|---|
/// | [`head`](Self::head) | 30 s | when the request body has ended; without one, when the request is sent |
/// | [`body_idle`](Self::body_idle) | 30 s | at the last frame; it rests while nobody reads |
/// | [`total`](Self::total) | 60 s | at the call, up to the response head |
/// | [`attempt`](Self::attempt) | none | when an attempt begins, its connection included, up to its response head |
/// | [`absolute`](Self::absolute) | none | at the call, up to the end of the response body |
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
    pub(crate) attempt: Option<Duration>,
    pub(crate) absolute: Option<Duration>,
    pub(crate) bound: Bound,
}

/// Whether an exchange is meant to end by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bound {
    /// A missing total may be an oversight.
    Usual,
    /// It streams, and has no total on purpose.
    Streaming,
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
        Self {
            head: half_a_minute,
            body_idle: half_a_minute,
            total: Some(Duration::from_secs(60)),
            attempt: None,
            absolute: None,
            bound: Bound::Usual,
        }
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

    /// Limits one attempt, from its connection to its response head.
    pub fn attempt(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.attempt = limit.into().map(reachable);
        self
    }

    /// Limits the whole exchange, its response body included.
    pub fn absolute(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.absolute = limit.into().map(reachable);
        self
    }

    /// Takes the total away on purpose: the route streams, and [`alignment`] asks no more for one.
    pub fn unbounded(mut self) -> Self {
        self.total = None;
        self.bound = Bound::Streaming;
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
