//! The answer that is made here in place of an upstream's.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header::CONTENT_TYPE};

use super::{Failure, attach};

/// In the extensions of an answer that a layer of this crate made.
///
/// A [`ClassifyLayer`](crate::ClassifyLayer) around that layer reports it and completes its fields.
#[derive(Clone, Copy)]
pub(crate) struct LocalAnswer;

/// Status, cause and one line of text.
pub(crate) fn local_answer(failure: &Failure, status: StatusCode) -> Response<Bytes> {
    let reason = status.canonical_reason().unwrap_or("Error");
    let hint = failure.visitor_hint().unwrap_or_default();
    // at its length: a refusal has to be cheap
    let mut text = String::with_capacity(reason.len() + hint.len() + 3);
    for part in [reason, "\n\n", hint, "\n"] {
        text.push_str(part);
    }
    let mut answer = Response::new(Bytes::from(text));
    *answer.status_mut() = status;
    // with room for Retry-After, Proxy-Status, X-Request-Id and what the server adds
    answer.headers_mut().reserve(6);
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    attach(&mut answer, failure.clone());
    answer
}
