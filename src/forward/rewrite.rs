//! Rewrites heads for the inner client, and back.

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, COOKIE, UPGRADE};
use http::{HeaderValue, Response, StatusCode, Version, request, response};

use super::{ClientInfo, ForwardedRequest, ForwardingRules, LocalResponse, Rejection};
use crate::cause::{Detail, RejectedRequest};

static TE: HeaderValue = HeaderValue::from_static("te");

/// A 101 to a protocol that was not requested: neither side could interpret the bytes that follow.
#[derive(Clone, Copy, Debug)]
pub(crate) struct UnsolicitedUpgrade;

impl UnsolicitedUpgrade {
    /// The detail of the failure `upgrade_failed`.
    pub(crate) const DETAIL: Detail = Detail::Text("a 101 to a protocol that was not requested");
}

impl ForwardingRules {
    /// Like [`request`](Self::request); the client is the one in the request's extensions, else this one; see [`ClientInfo`].
    #[inline]
    pub(crate) fn forward_request(
        &self,
        parts: &mut request::Parts,
        caller: &ClientInfo,
        upstream: &HeaderValue,
    ) -> Result<ForwardedRequest, Rejection> {
        let named = ClientInfo::of_request(&parts.extensions, caller);
        self.request(parts, named.as_ref().unwrap_or(caller), upstream)
    }

    /// Like [`response`](Self::response); afterwards the head is complete and of HTTP/1.1.
    #[inline]
    pub(crate) fn forward_response(
        &self,
        parts: &mut response::Parts,
        asked: Option<&HeaderValue>,
    ) -> Result<(), UnsolicitedUpgrade> {
        self.response(parts, asked);
        if parts.status == StatusCode::SWITCHING_PROTOCOLS && !parts.headers.contains_key(UPGRADE) {
            return Err(UnsolicitedUpgrade);
        }
        if parts.status == StatusCode::NO_CONTENT {
            // RFC 9110 section 8.6: a 204 has no content and must not have a length
            parts.headers.remove(CONTENT_LENGTH);
        }
        parts.version = Version::HTTP_11;
        Ok(())
    }
}

impl ForwardedRequest {
    /// Rewrites the head as one of HTTP/1.1.
    #[inline]
    pub(crate) fn downgrade_to_h1(&self, parts: &mut request::Parts) {
        if parts.version >= Version::HTTP_2 {
            join_cookies(parts);
        }
        parts.version = Version::HTTP_11;
        if self.takes_trailers() {
            parts.headers.insert(CONNECTION, TE.clone());
        }
    }
}

impl LocalResponse {
    /// The response, marked as the gateway's own rejection of the request.
    pub(crate) fn into_rejected_response<B: From<Bytes>>(self) -> Response<B> {
        let mut response = self.into_response();
        response.extensions_mut().insert(RejectedRequest);
        response
    }
}

/// Joins the lines of a Cookie field, which HTTP/2 may split (RFC 9113 section 8.2.3).
fn join_cookies(parts: &mut request::Parts) {
    let mut crumbs = parts.headers.get_all(COOKIE).iter();
    let (Some(first), Some(second)) = (crumbs.next(), crumbs.next()) else { return };
    let mut whole = first.as_bytes().to_vec();
    for crumb in std::iter::once(second).chain(crumbs) {
        whole.extend_from_slice(b"; ");
        whole.extend_from_slice(crumb.as_bytes());
    }
    if let Ok(whole) = HeaderValue::from_maybe_shared(Bytes::from(whole)) {
        parts.headers.insert(COOKIE, whole);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forward::tests::head;

    fn passed(version: Version, fields: &[(&str, &str)]) -> request::Parts {
        let mut parts = head("GET", "/", fields);
        parts.version = version;
        let upstream = HeaderValue::from_static("h");
        let passage = ForwardingRules::new("edge")
            .unwrap()
            .forward_request(&mut parts, &ClientInfo::unknown(), &upstream)
            .unwrap();
        passage.downgrade_to_h1(&mut parts);
        parts
    }

    #[test]
    fn cookie_crumbs_are_joined_in_their_order() {
        let crumbs = [("host", "h"), ("cookie", "a=1"), ("cookie", "b=2"), ("cookie", "c=3")];
        let parts = passed(Version::HTTP_2, &crumbs);
        assert_eq!(parts.headers.get_all("cookie").iter().collect::<Vec<_>>(), ["a=1; b=2; c=3"]);
        assert_eq!(parts.version, Version::HTTP_11);
    }

    #[test]
    fn te_is_named_in_connection() {
        assert_eq!(passed(Version::HTTP_2, &[("host", "h"), ("te", "trailers")]).headers["connection"], "te");
        assert!(!passed(Version::HTTP_2, &[("host", "h")]).headers.contains_key("connection"));
    }

    #[test]
    fn a_response_head_is_complete() {
        let back = |status: u16, asked: Option<&'static str>| {
            let answer = Response::builder().status(status).version(Version::HTTP_2).header("content-length", "0");
            let answer = answer.header("connection", "upgrade").header("upgrade", "websocket");
            let (mut parts, ()) = answer.body(()).unwrap().into_parts();
            let asked = asked.map(HeaderValue::from_static);
            let passed = ForwardingRules::new("edge").unwrap().forward_response(&mut parts, asked.as_ref());
            passed.map(|()| parts)
        };
        let answer = back(200, None).unwrap();
        assert_eq!((answer.version, answer.headers.len()), (Version::HTTP_11, 1));
        assert!(back(204, None).unwrap().headers.is_empty());
        assert_eq!(back(101, Some("websocket")).unwrap().headers["upgrade"], "websocket");
        assert!(back(101, Some("other")).is_err());
        assert!(back(101, None).is_err());
    }
}
