//! When a circuit opens, for how long, and which statuses speak against an upstream.

use std::fmt;
use std::time::Duration;

use http::StatusCode;

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
#[derive(Clone, Copy)]
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
            statuses: gateway_errors,
        }
    }

    /// Opens after so many failures in a row (default 5); 0 counts as 1, `u32::MAX` means never.
    ///
    /// More of them let more calls fail before a dead upstream is left alone.
    pub const fn consecutive_failures(mut self, failures: u32) -> Self {
        self.consecutive_failures = if failures == 0 { 1 } else { failures };
        self
    }

    /// Opens when this share of the window's calls failed, of so many at least (default 50 % of 20).
    ///
    /// A larger number keeps a quiet upstream from being judged by a few calls.
    pub const fn ratio(mut self, failed: Ratio, calls: u32) -> Self {
        self.ratio = failed;
        self.min_calls = if calls == 0 { 1 } else { calls };
        self
    }

    /// How far back shares are counted (default 10 s), in ten steps; between 1 s and an hour.
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

    /// Opens also when this share of the window's calls took longer than this (default: it does not).
    ///
    /// Long answers that are meant to be long count as slow: not for downloads and event streams. It costs a look at the
    /// clock for each call. The least number of calls is that of [`ratio`](Self::ratio); a slow probe has failed.
    pub const fn slow_calls(mut self, longer: Duration, share: Ratio) -> Self {
        self.slow = Some((longer, share));
        self
    }

    /// The first pause (default 1 s); each further opening in a row doubles it.
    pub const fn open_duration(mut self, first: Duration) -> Self {
        self.open_duration = first;
        self
    }

    /// The longest pause (default 10 s): so long an upstream may be back before anybody is sent to it.
    pub const fn max_open_duration(mut self, longest: Duration) -> Self {
        self.max_open_duration = longest;
        self
    }

    /// Pauses of up to a minute, for one of many upstreams that stand in for each other.
    pub const fn clustered(self) -> Self {
        self.max_open_duration(Duration::from_secs(60))
    }

    /// How long a probe keeps its place (default 1 s); after that the next call is a probe as well.
    ///
    /// It ends no call. A longer one sends fewer probes to an upstream that hangs, and comes back later where a
    /// probe was lost.
    pub const fn probe_timeout(mut self, limit: Duration) -> Self {
        self.probe_timeout = limit;
        self
    }

    /// Which statuses count as failures where the upstream itself answered (default 502, 503 and 504).
    ///
    /// A 500 is an answer: one broken route says nothing about the others. Say `StatusCode::is_server_error`,
    /// as `|status| status.is_server_error()`, where all calls are alike. A 429, and a 503 with `Retry-After`, never count.
    pub const fn statuses(mut self, failures: fn(StatusCode) -> bool) -> Self {
        self.statuses = failures;
        self
    }
}

fn gateway_errors(status: StatusCode) -> bool {
    matches!(status.as_u16(), 502..=504)
}

impl Default for BreakerPolicy {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for BreakerPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BreakerPolicy")
            .field("consecutive_failures", &self.consecutive_failures)
            .field("ratio", &self.ratio)
            .field("min_calls", &self.min_calls)
            .field("window", &self.window)
            .field("slow", &self.slow)
            .field("open_duration", &self.open_duration)
            .field("max_open_duration", &self.max_open_duration)
            .field("probe_timeout", &self.probe_timeout)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_never_work_cannot_be_said() {
        let policy =
            BreakerPolicy::new().consecutive_failures(0).ratio(Ratio::per_mille(100), 0).window(Duration::ZERO);
        assert_eq!((policy.consecutive_failures, policy.min_calls, policy.window), (1, 1, Duration::from_secs(1)));
        let week = Duration::from_secs(7 * 24 * 3600);
        assert_eq!(BreakerPolicy::new().window(week).window, Duration::from_secs(3600));
    }
}
