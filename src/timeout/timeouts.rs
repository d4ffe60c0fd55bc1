//! The timeout settings.

use std::time::Duration;

use crate::stats::reachable;

use crate::exchange::{CLIENT_IDLE, CallKind};

/// How long a call may take; see the [table](super).
///
/// `None` disables a timeout; more than a hundred years count as a hundred.
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

    /// Limits the wait for the response head, and each stall of the request body (default 30 s).
    pub fn response_head(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.response_head = limit.into().map(reachable);
        self
    }

    /// Limits each attempt, from its start to its response head (default: none, the rest of the total).
    pub fn attempt(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.attempt = limit.into().map(reachable);
        self
    }

    /// Limits the time from the call to the response head, all attempts together (default 60 s).
    ///
    /// The default of `response_head` is lowered to a shorter total.
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

    /// Limits each period in which neither body makes progress (default 30 s); paused while the response body is not polled.
    pub fn body_idle(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.body_idle = limit.into().map(reachable);
        self
    }

    /// Limits the whole call, to the end of the response body (default: none).
    ///
    /// It applies in every state: while the inner service is not ready, during the upload, before the head, in a body that never
    /// ends, and in one that is not polled (there up to 250 ms later). A tunnel after a 101 is not limited.
    pub fn max_duration(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.max_duration = limit.into().map(reachable);
        self
    }

    /// Limits how long the client may leave the response body unread (default 60 s; nginx calls it `send_timeout`).
    ///
    /// It starts with each frame the client takes, and ends the body even if the server no longer polls it, as a server does whose
    /// buffer or window is full. The resources held by the body are released, and the upstream is not blamed; a client that
    /// continues to read sees a truncated body, never a complete one. It fires within 9/8 of the limit. It is paused while the
    /// upstream is waited for, where [`body_idle`](Self::body_idle) applies.
    ///
    /// The stack and `ReverseProxy` own their bodies, so the connection ends as well. A single layer releases what the layer
    /// holds; the inner body ends when it is next polled or dropped. A single layer assumes that a body of known length up to
    /// 16 KiB is read at once, and does not count the time before its first frame.
    pub fn client_idle(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.client_idle = limit.into().map(reachable);
        self
    }

    /// The timeout of the response head.
    pub const fn get_response_head(&self) -> Option<Duration> {
        self.response_head
    }

    /// The timeout of an attempt.
    pub const fn get_attempt(&self) -> Option<Duration> {
        self.attempt
    }

    /// The timeout of all attempts together.
    pub const fn get_total(&self) -> Option<Duration> {
        self.total
    }

    /// The timeout of idle bodies.
    pub const fn get_body_idle(&self) -> Option<Duration> {
        self.body_idle
    }

    /// The limit of the whole call.
    pub const fn get_max_duration(&self) -> Option<Duration> {
        self.max_duration
    }

    /// The timeout of a client that does not read.
    pub const fn get_client_idle(&self) -> Option<Duration> {
        self.client_idle
    }

    /// The limit on all attempts together: the total, or the maximum duration if that is shorter.
    pub(crate) fn until_head(&self) -> Option<Duration> {
        match (self.total, self.max_duration) {
            (Some(total), Some(absolute)) => Some(total.min(absolute)),
            (total, absolute) => total.or(absolute),
        }
    }

    /// Declares that calls need not end: event streams, WebSocket, gRPC streams.
    ///
    /// It removes the total, and such calls are not samples. The timeouts of the head and of idle bodies
    /// remain.
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
