//! The limits themselves.

use std::time::Duration;

use crate::stats::reachable;

use crate::exchange::{CLIENT_IDLE, CallKind};

/// How long an exchange may take; see the [table](super).
///
/// `None` switches a limit off; over a hundred years count as a hundred.
///
/// ```
/// use std::time::Duration;
/// use tower_upstream::timeout::Timeouts;
///
/// let pages = Timeouts::new().response_head(Duration::from_secs(5)).total(Duration::from_secs(20));
/// let events = Timeouts::new().response_head(Duration::from_secs(5)).body_idle(Duration::from_secs(90)).unbounded();
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Timeouts {
    pub(crate) response_head: Option<Duration>,
    pub(crate) attempt: Option<Duration>,
    pub(crate) total: Option<Duration>,
    pub(crate) body_idle: Option<Duration>,
    pub(crate) max_duration: Option<Duration>,
    pub(crate) client_idle: Option<Duration>,
    pub(crate) kind: CallKind,
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
            response_head: half_a_minute,
            attempt: None,
            total: Some(Duration::from_secs(60)),
            body_idle: half_a_minute,
            max_duration: None,
            client_idle: Some(CLIENT_IDLE),
            kind: CallKind::Bounded,
        }
    }

    /// Limits the wait for the response head, and how long a request body may stand still (default 30 s).
    pub fn response_head(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.response_head = limit.into().map(reachable);
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
            self.kind = CallKind::Bounded;
            if self.response_head == Self::new().response_head {
                self.response_head = self.response_head.map(|head| head.min(total));
            }
        }
        self
    }

    /// Limits each wait in which neither body moves (default 30 s); it rests while nobody reads.
    pub fn body_idle(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.body_idle = limit.into().map(reachable);
        self
    }

    /// Limits the whole exchange, from the call to the end of the response body (default: none).
    ///
    /// It holds in every state: while nothing is ready, in an upload, before the head, in a body that never stops, and in one
    /// that nobody polls (there up to a quarter of a second later). A tunnel after a 101 is not part of the exchange.
    pub fn max_duration(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.max_duration = limit.into().map(reachable);
        self
    }

    /// Limits how long the client may leave the response body unread (default 60 s; nginx calls it `send_timeout`).
    ///
    /// It begins with each frame that is taken, and ends the body also where its server does not poll it any more: a server
    /// whose buffer or window is full does not. What the body holds is given back then, with the upstream not blamed; a client
    /// that reads on sees a body that was cut, never a complete one. It passes within 9/8 of the limit. It rests while the
    /// upstream is waited for, where [`body_idle`](Self::body_idle) applies.
    ///
    /// The stack and `ReverseProxy` own their bodies, so that the connection ends as well. A layer alone gives back what the layer
    /// holds; the body inside ends when it is polled or dropped next. A layer alone takes a body of known length up to 16 KiB
    /// for one that is read at once, and does not count the time before its first frame.
    pub fn client_idle(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.client_idle = limit.into().map(reachable);
        self
    }

    /// The limit on all attempts together: an exchange that ends has had its head.
    pub(crate) fn until_head(&self) -> Option<Duration> {
        match (self.total, self.max_duration) {
            (Some(total), Some(absolute)) => Some(total.min(absolute)),
            (total, absolute) => total.or(absolute),
        }
    }

    /// Says that exchanges need not end: event streams, WebSocket, gRPC streams.
    ///
    /// There is no total then, and the times of such exchanges teach nothing about others. The limits on the head and
    /// on idleness stay.
    pub fn unbounded(mut self) -> Self {
        self.total = None;
        self.kind = CallKind::Unbounded;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_limit_there_is_still_has_an_end_on_the_clock() {
        let all = Duration::MAX;
        let limits = Timeouts::new().response_head(all).attempt(all).body_idle(all).total(all).max_duration(all);
        let limits = limits.client_idle(all);
        let all = [
            limits.response_head,
            limits.attempt,
            limits.body_idle,
            limits.total,
            limits.max_duration,
            limits.client_idle,
        ];
        for limit in all {
            assert!(tokio::time::Instant::now().checked_add(limit.unwrap()).is_some());
        }
    }
}
