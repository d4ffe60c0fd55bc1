//! Why a failed request was not retried.

use super::words;

words! {
    /// Why no further attempt was made.
    ///
    /// Reported in addition to the cause: an exhausted budget says nothing about what went wrong.
    RetryStop {
        /// A retry would not help, or no rule allows one for this failure.
        NotRetryable = "not_retryable",
        /// The gateway refused the request itself: shed load, an open circuit, or a limit.
        LocalRefusal = "local_refusal",
        /// The request may have been processed, and its method is not idempotent.
        Method = "method",
        /// The body exceeded the replay buffer, or its attempt did not return it.
        NotReplayable = "not_replayable",
        /// All attempts were made; after a stale connection there is only one more.
        Attempts = "attempts",
        /// The upstream's retry budget had no token left.
        Budget = "budget",
        /// The remaining time was shorter than an attempt usually takes.
        Deadline = "deadline",
        /// The upstream requested no further attempt, or a longer wait than allowed.
        Pushback = "pushback",
        /// Retries were disabled for this request.
        Override = "override",
        /// A response head had been returned to the client.
        Committed = "committed",
    }
}
