//! Why a failed request was not sent again.

use super::words;

words! {
    /// Why no further attempt was made.
    ///
    /// A word beside the cause, never in its place: a spent budget says nothing of what went wrong.
    RetryStop {
        /// The failure is of a kind that no repetition mends, or that no rule repeats.
        NotRetryable = "not_retryable",
        /// The gateway refused the request itself: it was shed, or a circuit or limit was in the way.
        LocalRefusal = "local_refusal",
        /// The request may have been processed, and its method is not idempotent.
        Method = "method",
        /// The body was longer than what is kept of it, or its attempt would not give it back.
        NotReplayable = "not_replayable",
        /// All attempts were made; after a stale connection there is only one more.
        Attempts = "attempts",
        /// The upstream's retry budget had no token left.
        Budget = "budget",
        /// What was left of the time was shorter than an attempt usually takes.
        Deadline = "deadline",
        /// The upstream asked for no further attempt, or for a longer pause than there is time or patience for.
        Pushback = "pushback",
        /// This request had been excepted from retries.
        Override = "override",
        /// An answer's head was on its way to the caller.
        Committed = "committed",
    }
}
