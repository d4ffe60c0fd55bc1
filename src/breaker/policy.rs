//! Settings: when a circuit opens, for how long, and which statuses count as failures.

use std::time::Duration;

use http::StatusCode;

use crate::cause::is_gateway_error;
use crate::stats::Ratio;

/// When a circuit opens and for how long; the defaults are in the [module's table](super).
///
/// ```
/// use std::time::Duration;
/// use tower_upstream::breaker::{BreakerPolicy, Ratio};
///
/// // a tenth of all calls may fail, and more than half may not take a second
/// const STRICT: BreakerPolicy =
///     BreakerPolicy::new().ratio(Ratio::per_mille(100), 50).slow_calls(Duration::from_secs(1), Ratio::per_mille(500));
/// # let _ = STRICT;
/// ```
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct BreakerPolicy {
    pub(crate) consecutive_failures: u32,
    pub(crate) ratio: Ratio,
    pub(crate) min_calls: u32,
    pub(crate) window: Duration,
    pub(crate) slow: Option<(Duration, Ratio)>,
    pub(crate) open_duration: Duration,
    pub(crate) max_open_duration: Duration,
    pub(crate) probe_timeout: Duration,
    pub(crate) clustered: bool,
    pub(crate) statuses: fn(StatusCode) -> bool,
}

impl BreakerPolicy {
    /// The defaults, for an upstream that has no other beside it.
    pub const fn new() -> Self {
        Self {
            consecutive_failures: 5,
            ratio: Ratio::per_mille(500),
            min_calls: 20,
            window: Duration::from_secs(10),
            slow: None,
            open_duration: Duration::from_secs(1),
            max_open_duration: Duration::from_secs(10),
            probe_timeout: Duration::from_secs(1),
            clustered: false,
            statuses: is_gateway_error,
        }
    }

    /// Opens after this many consecutive failures (default 5); 0 counts as 1, `u32::MAX` means never.
    ///
    /// Error responses of the upstream itself are not among them; the [module](super) says when a row counts.
    /// A higher value lets more calls fail before the circuit of a dead upstream opens.
    pub const fn consecutive_failures(mut self, failures: u32) -> Self {
        self.consecutive_failures = if failures == 0 { 1 } else { failures };
        self
    }

    /// Opens when this share of at least `calls` calls in the window failed (default 50 % of 20).
    ///
    /// A higher number of calls keeps a few failures from opening the circuit of an upstream with little traffic.
    pub const fn ratio(mut self, failed: Ratio, calls: u32) -> Self {
        self.ratio = failed;
        self.min_calls = if calls == 0 { 1 } else { calls };
        self
    }

    /// The length of the window, in ten cells (default 10 s); clamped to 1 s to 1 h.
    pub const fn window(mut self, window: Duration) -> Self {
        let seconds = window.as_secs();
        self.window = if seconds < 1 {
            Duration::from_secs(1)
        } else if seconds >= 3600 {
            Duration::from_secs(3600)
        } else {
            window
        };
        self
    }

    /// Also opens when this share of the window's calls took longer than `longer` to their response head (default: off).
    ///
    /// The time starts at the end of an upload that is tracked, and ends before the body: how fast clients send and read does
    /// not count. It reads the clock once more per call. The minimum number of calls is that of [`ratio`](Self::ratio); a slow probe counts as failed.
    pub const fn slow_calls(mut self, longer: Duration, share: Ratio) -> Self {
        self.slow = Some((longer, share));
        self
    }

    /// The first open duration (default 1 s); each consecutive opening doubles it.
    pub const fn open_duration(mut self, first: Duration) -> Self {
        self.open_duration = first;
        self
    }

    /// The maximum open duration (default 10 s): an upstream that recovers may stay unused for this long.
    pub const fn max_open_duration(mut self, longest: Duration) -> Self {
        self.max_open_duration = longest;
        self
    }

    /// For one of several interchangeable upstreams: raises the maximum open duration to one minute, and lets a
    /// [`CircuitBreakerLayer`](super::CircuitBreakerLayer) not be ready while its circuit is open; see [Replicas](super#replicas).
    pub const fn clustered(mut self) -> Self {
        self.clustered = true;
        self.max_open_duration(Duration::from_secs(60))
    }

    /// With or without others that could take a rejected call.
    pub(super) const fn with_others(mut self, clustered: bool) -> Self {
        self.clustered = clustered;
        self
    }

    /// How long a probe may take until its response head (default 1 s); after that it counts as failed, and the circuit is open
    /// again for the next, longer open duration.
    ///
    /// It does not end the call, whose success closes the circuit also later. A longer timeout delays recovery when a probe
    /// is lost.
    pub const fn probe_timeout(mut self, limit: Duration) -> Self {
        self.probe_timeout = limit;
        self
    }

    /// Sets the statuses of the upstream's own responses that count as failures (default 502, 503 and 504).
    ///
    /// A 500 does not count by default: one broken route says nothing about the others. Use `|status| status.is_server_error()`
    /// where all calls are alike. A 429, and a 503 with `Retry-After`, never count.
    pub const fn statuses(mut self, failures: fn(StatusCode) -> bool) -> Self {
        self.statuses = failures;
        self
    }
}

impl Default for BreakerPolicy {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_could_never_work_are_clamped() {
        let policy =
            BreakerPolicy::new().consecutive_failures(0).ratio(Ratio::per_mille(100), 0).window(Duration::ZERO);
        assert_eq!((policy.consecutive_failures, policy.min_calls, policy.window), (1, 1, Duration::from_secs(1)));
        let week = Duration::from_secs(7 * 24 * 3600);
        assert_eq!(BreakerPolicy::new().window(week).window, Duration::from_secs(3600));
    }
}
