//! The outcome of an attempt, as a custom classifier gets it.

use std::error::Error;

use http::{HeaderMap, StatusCode};

use super::Chain;
use crate::event::RequestInfo;

/// How an attempt ended, for a [classifier](super::ClassifyLayer::classifier): with an error or a response head.
#[derive(Debug)]
pub struct AttemptOutcome<'a> {
    request: &'a RequestInfo,
    end: Result<(StatusCode, &'a HeaderMap), &'a (dyn Error + 'static)>,
}

impl<'a> AttemptOutcome<'a> {
    pub(super) fn error_of(request: &'a RequestInfo, error: &'a (dyn Error + 'static)) -> Self {
        Self { request, end: Err(error) }
    }

    pub(super) fn response_of(request: &'a RequestInfo, status: StatusCode, headers: &'a HeaderMap) -> Self {
        Self { request, end: Ok((status, headers)) }
    }

    /// Method, path and id of the request.
    pub fn request(&self) -> &'a RequestInfo {
        self.request
    }

    /// The status of the response, if there is one.
    pub fn status(&self) -> Option<StatusCode> {
        self.end.ok().map(|(status, _)| status)
    }

    /// The header fields of the response, if there is one.
    pub fn headers(&self) -> Option<&'a HeaderMap> {
        self.end.ok().map(|(_, headers)| headers)
    }

    /// The error, if there is no response.
    pub fn error(&self) -> Option<&'a (dyn Error + 'static)> {
        self.end.err()
    }

    /// The first error of this type in the chain of [`error`](Self::error) and its sources.
    pub fn find_error<T: Error + 'static>(&self) -> Option<&'a T> {
        Chain::new(self.error()?).find_map(|link| link.downcast_ref())
    }
}
