//! Why a failed request was not retried.

use super::properties::words;

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
        /// The upstream's retry budget had no token left, or none when the call began, so that no copy was kept.
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

impl RetryStop {
    /// The reason in words, for the text of a failure.
    pub(super) const fn reason(self) -> &'static str {
        match self {
            Self::NotRetryable => "a retry would not help",
            Self::LocalRefusal => "rejected by this gateway",
            Self::Method => "the method is not idempotent",
            Self::NotReplayable => "the request body cannot be sent again",
            Self::Attempts => "attempt limit reached",
            Self::Budget => "retry budget exhausted",
            Self::Deadline => "too little time left",
            Self::Pushback => "the upstream asked for no retry, or for a longer wait than allowed",
            Self::Override => "retries are disabled for this request",
            Self::Committed => "the client already has the response head",
        }
    }
}
