//! The parts of a request that a stack needs until its response.

use http::header::{ACCEPT, UPGRADE};
use http::{HeaderMap, HeaderValue, Request, Version};

use crate::classify::{Expected, REQUEST_ID, RequestSummary};
use crate::error_page::{ErrorPage, ResponsePreferences};
use crate::exchange::asks_for_upgrade;

/// The parts of a request that are needed after it has been sent.
#[derive(Debug, Default)]
pub(super) struct Notes {
    pub(super) summary: RequestSummary,
    /// The input of the error page, if there is one.
    pub(super) preferences: Option<ResponsePreferences>,
}

/// The header fields that the stack reads.
struct RelevantHeaders<'a> {
    expected: Expected,
    request_id: Option<&'a HeaderValue>,
    accept: Option<&'a HeaderValue>,
}

impl<'a> RelevantHeaders<'a> {
    /// One iteration over all names is cheaper than hashing three: standard names compare as integers.
    #[inline]
    fn of(version: Version, headers: &'a HeaderMap) -> Self {
        let mut upgrade = false;
        let mut seen = Self { expected: Expected::Response, request_id: None, accept: None };
        for (name, value) in headers {
            if *name == ACCEPT {
                seen.accept.get_or_insert(value);
            } else if *name == UPGRADE {
                upgrade = true;
            } else if *name == REQUEST_ID {
                seen.request_id.get_or_insert(value);
            }
        }
        if upgrade && asks_for_upgrade(version, headers) {
            seen.expected = Expected::Upgrade;
        }
        seen
    }
}

/// Overwrites the notes of the previous request.
#[inline]
pub(super) fn note<B>(notes: &mut Notes, request: &Request<B>, page: Option<&ErrorPage>) {
    let seen = RelevantHeaders::of(request.version(), request.headers());
    notes.summary.update(request, seen.expected, seen.request_id);
    if let Some(page) = page {
        notes.preferences = Some(page.preferences_with(request, seen.accept));
    }
}
