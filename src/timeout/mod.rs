//! Time limits of an exchange, and the watch that tells who let them pass.

// its first user is the client
#[cfg(feature = "client")]
mod watch;

use std::time::Duration;

#[cfg(feature = "client")]
pub(crate) use self::watch::{Finding, Look, Watch};

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
#[cfg_attr(not(feature = "client"), allow(dead_code))] // the client reads it
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
        self.head = limit.into();
        self
    }

    /// Limits each wait for a frame of the response body.
    pub fn body_idle(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.body_idle = limit.into();
        self
    }

    /// Limits the time from the call to the response head.
    pub fn total(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.total = limit.into();
        self
    }
}
