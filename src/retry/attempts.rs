//! The attempts of one call.

use http::Response;

use crate::cause::{BadGatewayCause, Evidence, Failure, Replay, RetryStop};

/// The attempts of a call: an extension of responses that took more than one.
#[derive(Clone, Debug, Default)]
pub struct Attempts {
    failed: u32,
    /// Attempts that were superseded by a concurrent one.
    pub(super) superseded: u32,
    /// Also true for attempts that are no longer in the list.
    stale: bool,
    /// One of the attempts may have been processed.
    sent: bool,
    previous: Vec<Failure>,
}

impl Attempts {
    /// Adds an attempt that failed and is followed by another.
    ///
    /// Beyond [`Failure::MAX_PREVIOUS`] the oldest is dropped from the list, but still counted.
    pub(crate) fn record_failure(&mut self, failure: Failure) {
        self.failed = self.failed.saturating_add(1);
        self.sent |= failure.replay() != Replay::NotSent;
        self.stale |= failure.cause() == BadGatewayCause::StaleConnection;
        if self.previous.len() == Failure::MAX_PREVIOUS {
            self.previous.remove(0);
        }
        self.previous.push(failure);
    }

    /// The number of attempts, the last one included.
    pub fn count(&self) -> u32 {
        self.failed.saturating_add(self.superseded).saturating_add(1)
    }

    /// The number of attempts that were dropped because a concurrent one completed first.
    pub fn superseded(&self) -> u32 {
        self.superseded
    }

    /// The failures before the last attempt, oldest first.
    pub fn previous(&self) -> &[Failure] {
        &self.previous
    }

    /// Whether one of the earlier attempts met a stale connection.
    pub(crate) fn saw_stale_connection(&self) -> bool {
        self.stale
    }

    /// The attempts behind a response; `None` if there was only one.
    pub fn of<B>(response: &Response<B>) -> Option<&Self> {
        response.extensions().get()
    }

    /// Like [`into_final_failure`](Self::into_final_failure), if the retry that was decided on is not made.
    pub(super) fn end(mut self, stop: RetryStop) -> Option<Failure> {
        let last = self.previous.pop()?;
        self.failed = self.failed.saturating_sub(1);
        Some(self.into_final_failure(last, stop))
    }

    /// The record of the last attempt, with the earlier failures and the reason why there is no further attempt.
    ///
    /// A `retry_stop` set by an inner layer is kept. "Not sent" remains only if it holds for all attempts.
    pub(crate) fn into_final_failure(self, last: Failure, stop: RetryStop) -> Failure {
        let (count, stop) = (self.count(), last.retry_stop().unwrap_or(stop));
        // an unsent last attempt says nothing about the earlier ones
        let proven = last.replay() == Replay::NotSent && (self.sent || self.superseded > 0);
        let mut last = last.into_builder().attempts(count).retry_stop(stop);
        if proven {
            last = last.replay(Replay::IdempotentOnly, Evidence::Inferred);
        }
        self.previous.into_iter().fold(last, crate::cause::FailureBuilder::previous).build()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(attempt: u32) -> Failure {
        Failure::builder(BadGatewayCause::ConnectTimeout).attempts(attempt).build()
    }

    #[test]
    fn only_the_latest_are_kept_and_all_are_counted() {
        let mut attempts = Attempts::default();
        assert_eq!((attempts.count(), attempts.previous().len()), (1, 0));
        attempts.record_failure(Failure::new(BadGatewayCause::StaleConnection));
        for attempt in 2..=6 {
            attempts.record_failure(failure(attempt));
        }
        assert_eq!(attempts.count(), 7);
        assert_eq!(attempts.previous().iter().map(Failure::attempts).collect::<Vec<_>>(), [3, 4, 5, 6]);
        assert!(attempts.saw_stale_connection());
    }

    #[test]
    fn that_nothing_was_sent_is_said_only_of_all_attempts() {
        let unsent = Failure::builder(BadGatewayCause::ConnectionRefused);
        let unsent = unsent.replay(Replay::NotSent, Evidence::NoConnection).build();
        let mut attempts = Attempts::default();
        attempts.record_failure(unsent.clone());
        assert_eq!(attempts.clone().into_final_failure(unsent.clone(), RetryStop::Attempts).replay(), Replay::NotSent);
        attempts.record_failure(Failure::new(BadGatewayCause::ClosedBeforeResponse));
        assert_eq!(attempts.into_final_failure(unsent, RetryStop::Attempts).replay(), Replay::IdempotentOnly);
    }

    #[test]
    fn the_last_failure_carries_those_before_it_and_why_it_is_the_last() {
        let mut attempts = Attempts::default();
        attempts.record_failure(failure(1));
        attempts.record_failure(failure(2));
        let last =
            attempts.clone().into_final_failure(Failure::new(BadGatewayCause::ConnectionRefused), RetryStop::Attempts);
        assert_eq!((last.cause(), last.attempts()), (BadGatewayCause::ConnectionRefused, 3));
        assert_eq!(last.previous().iter().map(Failure::attempts).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(last.retry_stop(), Some(RetryStop::Attempts));
        let last = attempts.into_final_failure(last, RetryStop::Budget);
        assert_eq!(last.retry_stop(), Some(RetryStop::Attempts));
    }
}
