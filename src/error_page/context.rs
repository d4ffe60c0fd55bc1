//! The input of an error page.

use http::StatusCode;

use crate::cause::{Advice, BadGatewayCause, Failure, Replay};

/// The failure and the request data that an error page is written from.
#[derive(Clone, Copy, Debug)]
pub struct ErrorContext<'a> {
    pub(super) failure: &'a Failure,
    pub(super) status: StatusCode,
    pub(super) request_id: Option<&'a str>,
    pub(super) time: &'a str,
    pub(super) accept_language: Option<&'a str>,
    /// Whether the request's method is safe.
    pub(super) safe: bool,
}

impl<'a> ErrorContext<'a> {
    /// The record. Do not show its peer, upstream or source to users.
    pub fn failure(&self) -> &'a Failure {
        self.failure
    }

    /// The cause.
    pub fn cause(&self) -> BadGatewayCause {
        self.failure.cause()
    }

    /// The status of the response.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The advice for the user, by the request's method and by what is proven.
    pub fn advice(&self) -> Advice {
        Advice::of(self.failure, self.safe)
    }

    /// Whether it is safe to send the request again: its method is safe (RFC 9110 section 9.2.1), or it was proven not
    /// to be processed.
    pub fn retry_safe(&self) -> bool {
        self.safe || self.failure.replay() == Replay::NotSent
    }

    /// The response's `x-request-id`, at most 128 characters; the client may have chosen it.
    pub fn request_id(&self) -> Option<&'a str> {
        self.request_id
    }

    /// The time of the failure: RFC 3339, UTC, to the second.
    pub fn time(&self) -> &'a str {
        self.time
    }

    /// The request's `Accept-Language`, unchanged.
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

    /// Details that identify the upstream, for a page that may show them.
    pub(super) fn revealed(&self) -> impl Iterator<Item = (&'static str, String)> + use<'a> {
        let failure = self.failure;
        let cause = Some(("cause", failure.cause().to_string()));
        let upstream = failure.upstream().map(|upstream| ("upstream", upstream.to_owned()));
        let peer = failure.peer().map(|peer| ("peer", peer.to_string()));
        [cause, upstream, peer].into_iter().flatten()
    }
}
