//! Responses that the gateway makes itself, without calling the upstream.

use std::error::Error;
use std::fmt;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderValue, Response, StatusCode};

/// The reason why a request is not forwarded.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Rejection {
    /// The gateway responds itself: a rejection, or the last hop of `Max-Forwards`.
    Respond(LocalResponse),
    /// A loop: the request has passed this gateway before, because the upstream's address leads back to it.
    Loop,
}

/// A response of the gateway itself: a status, a reason and a short body.
///
/// ```
/// use bytes::Bytes;
/// use tower_upstream::forward::{ClientInfo, Rejection, ForwardingRules};
///
/// let (mut parts, ()) = http::Request::get("/").body(()).unwrap().into_parts();
/// let upstream = "10.0.0.7:8080".parse().unwrap();
/// let rejection = ForwardingRules::new("edge").unwrap().request(&mut parts, &ClientInfo::unknown(), &upstream).unwrap_err();
/// let Rejection::Respond(answer) = rejection else { panic!("no loop") };
/// let response = answer.into_response::<Bytes>();
/// assert_eq!(response.status(), 400);
/// assert_eq!(response.body(), "Bad Request: the request has no Host field\n");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalResponse {
    status: StatusCode,
    reason: &'static str,
    content: BodyKind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum BodyKind {
    Reason,
    Empty,
    /// A request head, as `message/http` (RFC 9112 section 10.1).
    Head(Bytes),
}

impl LocalResponse {
    pub(super) const fn refusal(status: StatusCode, reason: &'static str) -> Self {
        Self { status, reason, content: BodyKind::Reason }
    }

    pub(crate) const fn bad_request(reason: &'static str) -> Self {
        Self::refusal(StatusCode::BAD_REQUEST, reason)
    }

    pub(crate) const fn too_long() -> Self {
        Self::refusal(StatusCode::URI_TOO_LONG, "the request target is too long")
    }

    pub(crate) const fn too_large() -> Self {
        Self::refusal(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "the fields of the request are too large")
    }

    pub(super) const fn empty(reason: &'static str) -> Self {
        Self { status: StatusCode::OK, reason, content: BodyKind::Empty }
    }

    pub(super) const fn reflection(head: Bytes, reason: &'static str) -> Self {
        Self { status: StatusCode::OK, reason, content: BodyKind::Head(head) }
    }

    /// The status of the response.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The reason, as a fixed text that never quotes the request.
    pub fn reason(&self) -> &'static str {
        self.reason
    }

    /// The whole response.
    ///
    /// The server that sends it adds the length of a body that is not empty.
    pub fn into_response<B: From<Bytes>>(self) -> Response<B> {
        let (field, value, body) = match self.content {
            BodyKind::Reason => {
                let phrase = self.status.canonical_reason().unwrap_or_default();
                let text = Bytes::from(format!("{phrase}: {}\n", self.reason));
                (CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"), text)
            }
            BodyKind::Empty => (CONTENT_LENGTH, HeaderValue::from_static("0"), Bytes::new()),
            BodyKind::Head(head) => (CONTENT_TYPE, HeaderValue::from_static("message/http"), head),
        };
        let mut response = Response::new(B::from(body));
        *response.status_mut() = self.status;
        response.headers_mut().insert(field, value);
        if self.status == StatusCode::METHOD_NOT_ALLOWED {
            // RFC 9110 section 15.5.6: a 405 lists the allowed methods, here those that are forwarded
            let allowed = HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS");
            response.headers_mut().insert(ALLOW, allowed);
        }
        response
    }
}

impl fmt::Display for LocalResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.status.as_u16(), self.reason)
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Respond(answer) => answer.fmt(f),
            Self::Loop => f.write_str("the request came back to this gateway"),
        }
    }
}

impl Error for Rejection {}

impl From<LocalResponse> for Rejection {
    fn from(answer: LocalResponse) -> Self {
        Self::Respond(answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rejection_has_its_reason_in_plain_text() {
        let answer = LocalResponse::bad_request("the request has two Host fields");
        assert_eq!(Rejection::from(answer.clone()).to_string(), "400: the request has two Host fields");
        let response = answer.into_response::<Bytes>();
        assert_eq!(response.status(), 400);
        assert_eq!(response.headers()[CONTENT_TYPE], "text/plain; charset=utf-8");
        assert_eq!(response.body(), "Bad Request: the request has two Host fields\n");
        assert!(!response.headers().contains_key(CONTENT_LENGTH));
    }

    #[test]
    fn an_empty_response_has_a_length_of_zero() {
        let response = LocalResponse::empty("here ends Max-Forwards").into_response::<Bytes>();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()[CONTENT_LENGTH], "0");
        assert_eq!(response.headers().len(), 1);
        assert!(response.body().is_empty());
    }
}
