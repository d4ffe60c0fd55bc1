//! What a page is written from.

use http::StatusCode;

use crate::cause::{BadGatewayCause, Failure, Replay};

/// What is known of a failure when its page is written.
#[derive(Clone, Copy, Debug)]
pub struct ErrorContext<'a> {
    pub(super) failure: &'a Failure,
    pub(super) status: StatusCode,
    pub(super) request_id: Option<&'a str>,
    pub(super) time: &'a str,
    pub(super) accept_language: Option<&'a str>,
}

impl<'a> ErrorContext<'a> {
    /// The record. A visitor should read nothing of its peer, upstream or source.
    pub fn failure(&self) -> &'a Failure {
        self.failure
    }

    /// What went wrong.
    pub fn cause(&self) -> BadGatewayCause {
        self.failure.cause()
    }

    /// The status of the answer.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// Whether it is proven that nothing was processed: whatever the method, sending it again does no harm.
    pub fn retry_safe(&self) -> bool {
        self.failure.replay() == Replay::NotSent
    }

    /// The answer's `x-request-id`, of which 128 characters count; it may be the client's own.
    pub fn request_id(&self) -> Option<&'a str> {
        self.request_id
    }

    /// When it failed: RFC 3339, UTC, to the second.
    pub fn time(&self) -> &'a str {
        self.time
    }

    /// The request's `Accept-Language`, as it came.
    pub fn accept_language(&self) -> Option<&'a str> {
        self.accept_language
    }

    /// The status with its name: `502 Bad Gateway`.
    pub(super) fn status_line(&self) -> String {
        match self.status.canonical_reason() {
            Some(reason) => format!("{} {reason}", self.status.as_u16()),
            None => self.status.as_u16().to_string(),
        }
    }

    /// What names the upstream, for a page that is allowed to.
    pub(super) fn revealed(&self) -> impl Iterator<Item = (&'static str, String)> + use<'a> {
        let failure = self.failure;
        let cause = Some(("cause", failure.cause().to_string()));
        let upstream = failure.upstream().map(|upstream| ("upstream", upstream.to_owned()));
        let peer = failure.peer().map(|peer| ("peer", peer.to_string()));
        [cause, upstream, peer].into_iter().flatten()
    }
}
