//! What the user set, for all requests and for one.

use std::time::Duration;

/// Which failures are repeated, how often, and after what pauses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    pub(crate) attempts: u8,
    pub(crate) base_backoff: Duration,
    pub(crate) max_backoff: Duration,
    pub(crate) max_retry_after: Duration,
    pub(crate) trusts_keys: bool,
    pub(crate) repeats_too_many: bool,
}

impl RetryPolicy {
    /// The most attempts that a request can be given, the first one counted.
    pub const MAX_ATTEMPTS: u8 = 10;

    /// The defaults: 3 attempts, pauses of 25 ms to 1 s, `Retry-After` up to 60 s, no opt-ins.
    pub const fn new() -> Self {
        Self {
            attempts: 3,
            base_backoff: Duration::from_millis(25),
            max_backoff: Duration::from_secs(1),
            max_retry_after: Duration::from_secs(60),
            trusts_keys: false,
            repeats_too_many: false,
        }
    }

    /// Whether a request may have more than one attempt.
    pub(crate) const fn allows_more(self, exception: Option<RetryOverride>) -> bool {
        match exception {
            Some(RetryOverride { never: true, .. }) => false,
            Some(RetryOverride { attempts: Some(attempts), .. }) => attempts > 1,
            _ => self.attempts > 1,
        }
    }

    /// How many attempts a request has, the first one counted (default 3).
    ///
    /// 0 is taken for 1, that is no retry; more than [`MAX_ATTEMPTS`](Self::MAX_ATTEMPTS) for that.
    pub const fn attempts(mut self, attempts: u8) -> Self {
        self.attempts = clamped(attempts);
        self
    }

    /// The longest pause before a first retry (default 25 ms), doubled before each later one.
    ///
    /// The pause itself is drawn evenly from zero to that (full jitter). Zero makes all retries immediate.
    pub const fn base_backoff(mut self, base: Duration) -> Self {
        self.base_backoff = base;
        self
    }

    /// What the doubling stops at (default 1 s); less than [`base_backoff`](Self::base_backoff) cuts that too.
    pub const fn max_backoff(mut self, max: Duration) -> Self {
        self.max_backoff = max;
        self
    }

    /// The longest pause that is waited for because the upstream asks for it (default 60 s).
    ///
    /// A longer one ends the attempts. The caller's answer is held back for as long as we wait.
    pub const fn max_retry_after(mut self, patience: Duration) -> Self {
        self.max_retry_after = patience;
        self
    }

    /// Repeats a request with an `Idempotency-Key` after a stale connection, whatever its method (default: no).
    ///
    /// For upstreams that are known to honour the field (draft-ietf-httpapi-idempotency-key-header). It is not
    /// applied to requests that a fresh connection lost: those are probably still at work, and their repetition
    /// would be answered with a conflict.
    pub const fn trust_idempotency_keys(mut self) -> Self {
        self.trusts_keys = true;
        self
    }

    /// Repeats idempotent requests answered with 429 or gRPC's `RESOURCE_EXHAUSTED` (default: no).
    pub const fn repeat_too_many_requests(mut self) -> Self {
        self.repeats_too_many = true;
        self
    }
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self::new()
    }
}

const fn clamped(attempts: u8) -> u8 {
    match attempts {
        0 => 1,
        1..=RetryPolicy::MAX_ATTEMPTS => attempts,
        _ => RetryPolicy::MAX_ATTEMPTS,
    }
}

/// What is different for one request: a request extension.
///
/// ```
/// use tower_upstream::retry::RetryOverride;
///
/// // a search that happens to be a POST may be repeated like a GET
/// let request = http::Request::post("/search").extension(RetryOverride::idempotent().attempts(2)).body(()).unwrap();
/// # assert_eq!(request.extensions().get(), Some(&RetryOverride::idempotent().attempts(2)));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryOverride {
    pub(crate) attempts: Option<u8>,
    pub(crate) never: bool,
    pub(crate) idempotent: bool,
}

impl RetryOverride {
    /// The request is never repeated.
    pub const fn never() -> Self {
        Self { attempts: None, never: true, idempotent: false }
    }

    /// The request may be repeated as if its method were idempotent.
    pub const fn idempotent() -> Self {
        Self { attempts: None, never: false, idempotent: true }
    }

    /// The request has so many attempts, clamped like the policy's; its method counts as it is.
    pub const fn with_attempts(attempts: u8) -> Self {
        Self { attempts: None, never: false, idempotent: false }.attempts(attempts)
    }

    /// How many attempts it has, clamped like the policy's.
    pub const fn attempts(mut self, attempts: u8) -> Self {
        self.attempts = Some(clamped(attempts));
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_are_at_least_one_and_at_most_ten() {
        for (set, kept) in [(0, 1), (1, 1), (10, 10), (11, 10), (255, 10)] {
            assert_eq!(RetryPolicy::new().attempts(set).attempts, kept);
            assert_eq!(RetryOverride::with_attempts(set).attempts, Some(kept));
        }
    }
}
