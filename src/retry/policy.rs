//! The retry policy, and the override for a single request.

use std::time::Duration;

/// The rules for retries: which failures, how often, and with which backoff.
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
    /// The maximum number of attempts, the first one included.
    pub(crate) const MAX_ATTEMPTS: u8 = 10;

    /// The defaults: 3 attempts, backoff of 25 ms to 1 s, `Retry-After` up to 1 s, no opt-ins.
    pub const fn new() -> Self {
        Self {
            attempts: 3,
            base_backoff: Duration::from_millis(25),
            max_backoff: Duration::from_secs(1),
            max_retry_after: Duration::from_secs(1),
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

    /// Sets the number of attempts, the first one included (default 3).
    ///
    /// Clamped to 1 (no retry) and 10.
    pub const fn attempts(mut self, attempts: u8) -> Self {
        self.attempts = clamped(attempts);
        self
    }

    /// Sets the maximum backoff before the first retry (default 25 ms); it doubles for each further one.
    ///
    /// The backoff is uniform from zero to that (full jitter). Zero makes all retries immediate.
    pub const fn base_backoff(mut self, base: Duration) -> Self {
        self.base_backoff = base;
        self
    }

    /// Sets the limit of the doubling (default 1 s); it also caps [`base_backoff`](Self::base_backoff).
    pub const fn max_backoff(mut self, max: Duration) -> Self {
        self.max_backoff = max;
        self
    }

    /// Sets the longest `Retry-After` that is waited for (default 1 s).
    ///
    /// A longer one ends the attempts: the client gets the upstream's response with its `Retry-After` at once, and decides
    /// itself. A gateway that waits instead keeps the client waiting without a word, and holds its request in memory.
    pub const fn max_retry_after(mut self, patience: Duration) -> Self {
        self.max_retry_after = patience;
        self
    }

    /// Retries a request with an `Idempotency-Key` after a stale connection with any method (default: off).
    ///
    /// For upstreams that honour the field (draft-ietf-httpapi-idempotency-key-header). It does not apply to requests lost on a
    /// fresh connection: those are probably still being processed, and a retry would get a
    /// conflict.
    pub const fn trust_idempotency_keys(mut self) -> Self {
        self.trusts_keys = true;
        self
    }

    /// Retries idempotent requests after a 429 or gRPC's `RESOURCE_EXHAUSTED` (default: off).
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

/// Overrides the policy for one request: a request extension.
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
    /// The request is never retried.
    pub const fn never() -> Self {
        Self { attempts: None, never: true, idempotent: false }
    }

    /// The request may be retried as if its method were idempotent.
    pub const fn idempotent() -> Self {
        Self { attempts: None, never: false, idempotent: true }
    }

    /// The request has this many attempts, clamped like the policy's; its method is not overridden.
    pub const fn with_attempts(attempts: u8) -> Self {
        Self { attempts: None, never: false, idempotent: false }.attempts(attempts)
    }

    /// Sets the number of attempts, clamped like the policy's.
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
