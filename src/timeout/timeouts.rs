//! The limits themselves.

use std::time::Duration;

use crate::engine::Kind;

/// How long an exchange may take; see the [table](super).
///
/// `None` switches a limit off; over a hundred years count as a hundred.
///
/// ```
/// use std::time::Duration;
/// use tower_upstream::timeout::Timeouts;
///
/// let pages = Timeouts::new().head(Duration::from_secs(5)).total(Duration::from_secs(20));
/// let events = Timeouts::new().head(Duration::from_secs(5)).body_idle(Duration::from_secs(90)).unbounded();
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Timeouts {
    pub(crate) head: Option<Duration>,
    pub(crate) attempt: Option<Duration>,
    pub(crate) total: Option<Duration>,
    pub(crate) body_idle: Option<Duration>,
    pub(crate) absolute: Option<Duration>,
    pub(crate) kind: Kind,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self::new()
    }
}

impl Timeouts {
    /// The defaults of the [table](super).
    pub const fn new() -> Self {
        let half_a_minute = Some(Duration::from_secs(30));
        Self {
            head: half_a_minute,
            attempt: None,
            total: Some(Duration::from_secs(60)),
            body_idle: half_a_minute,
            absolute: None,
            kind: Kind::Bounded,
        }
    }

    /// Limits the wait for the response head, and how long a request body may stand still (default 30 s).
    pub fn head(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.head = limit.into().map(reachable);
        self
    }

    /// Limits each attempt, from its call to its response head (default: none, what remains of the total).
    pub fn attempt(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.attempt = limit.into().map(reachable);
        self
    }

    /// Limits the time from the call to the response head, all attempts together (default 60 s).
    ///
    /// The default limit on the head gives way to a shorter total.
    pub fn total(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.total = limit.into().map(reachable);
        if let Some(total) = self.total {
            self.kind = Kind::Bounded;
            if self.head == Self::new().head {
                self.head = self.head.map(|head| head.min(total));
            }
        }
        self
    }

    /// Limits each wait in which neither body moves (default 30 s); it rests while nobody reads.
    pub fn body_idle(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.body_idle = limit.into().map(reachable);
        self
    }

    /// Limits the whole exchange, its response body included (default: none).
    ///
    /// It is looked at when the body is polled: a consumer that has stopped reading keeps it open.
    pub fn absolute(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.absolute = limit.into().map(reachable);
        self
    }

    /// Says that exchanges need not end: event streams, WebSocket, gRPC streams.
    ///
    /// There is no total then, and the times of such exchanges teach nothing about others. The limits on the head and
    /// on idleness stay.
    pub fn unbounded(mut self) -> Self {
        self.total = None;
        self.kind = Kind::Unbounded;
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
        let all = Duration::MAX;
        let limits = Timeouts::new().head(all).attempt(all).body_idle(all).total(all).absolute(all);
        for limit in [limits.head, limits.attempt, limits.body_idle, limits.total, limits.absolute] {
            assert!(tokio::time::Instant::now().checked_add(limit.unwrap()).is_some());
        }
    }
}
