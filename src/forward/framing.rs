//! Message framing by the head (RFC 9112 section 6).

use http::header::{CONTENT_LENGTH, HeaderMap, TRANSFER_ENCODING};
use http::{HeaderValue, Method, StatusCode, Version, request};
use http_body::Body;

use super::header_lists::HeaderLists;
use super::local_response::LocalResponse;
use crate::body::{Length, content_length};

/// Checks the framing of a request; returns the one length that replaces repeated ones.
///
/// The gateway frames the message anew, so it must not forward framing that the next hop might read differently
/// (RFC 9112 sections 6.1, 6.3 and 11.2).
pub(super) fn request(parts: &request::Parts, seen: HeaderLists) -> Result<Option<HeaderValue>, LocalResponse> {
    let headers = &parts.headers;
    if seen.has(HeaderLists::TRANSFER_ENCODING) {
        if seen.has(HeaderLists::CONTENT_LENGTH) {
            return Err(LocalResponse::bad_request("the request has both Content-Length and Transfer-Encoding"));
        }
        if parts.version != Version::HTTP_11 {
            return Err(LocalResponse::bad_request("only HTTP/1.1 has a Transfer-Encoding field"));
        }
        let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
        let is_chunked = |value: &HeaderValue| value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked");
        if !codings.next().is_some_and(is_chunked) || codings.next().is_some() {
            let reason = "the only supported transfer coding is a single chunked";
            return Err(LocalResponse::refusal(StatusCode::NOT_IMPLEMENTED, reason));
        }
    }
    if !seen.has(HeaderLists::CONTENT_LENGTH) {
        return Ok(None);
    }
    match content_length(headers) {
        Length::Plain => Ok(None),
        Length::Repeated(length) => Ok(Some(length)),
        Length::Invalid => Err(LocalResponse::bad_request("the Content-Length field is not a single number")),
    }
}

/// Adds the length of a request body where an HTTP/1.1 client would not.
///
/// hyper treats a GET or HEAD of unknown length as one without a body, and drops the body. A POST, PUT or PATCH without
/// a body gets a length of 0, because some servers require one (RFC 9110 section 8.6).
pub(crate) fn name_length<B: Body>(method: &Method, headers: &mut HeaderMap, body: &B) {
    if body.is_end_stream() {
        if matches!(*method, Method::POST | Method::PUT | Method::PATCH) {
            // a full map is forwarded without it
            if let Ok(http::header::Entry::Vacant(entry)) = headers.try_entry(CONTENT_LENGTH) {
                let _ = entry.try_insert(HeaderValue::from(0));
            }
        }
    } else if matches!(*method, Method::GET | Method::HEAD)
        && body.size_hint().exact().is_none()
        && !headers.contains_key(CONTENT_LENGTH)
    {
        let _ = headers.try_insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forward::tests::head;

    fn framed(version: Version, fields: &[(&str, &str)]) -> Result<Option<HeaderValue>, u16> {
        let mut parts = head("POST", "/", fields);
        parts.version = version;
        request(&parts, HeaderLists::of(&parts.headers)).map_err(|answer| answer.status().as_u16())
    }

    #[test]
    fn a_request_of_ambiguous_length_is_refused() {
        let framed = |fields: &[(&str, &str)]| framed(Version::HTTP_11, fields);
        assert_eq!(framed(&[]), Ok(None));
        assert_eq!(framed(&[("content-length", "5")]), Ok(None));
        assert_eq!(framed(&[("transfer-encoding", "Chunked ")]), Ok(None));
        assert_eq!(framed(&[("content-length", "5"), ("content-length", "5")]), Ok(Some(5.into())));
        assert_eq!(framed(&[("content-length", "5"), ("content-length", "6")]), Err(400));
        assert_eq!(framed(&[("content-length", "five")]), Err(400));
        assert_eq!(framed(&[("content-length", "5"), ("transfer-encoding", "chunked")]), Err(400));
        for coding in ["gzip, chunked", "chunked, chunked", "gzip", "identity", "", "chunked;a=1", "xchunked"] {
            assert_eq!(framed(&[("transfer-encoding", coding)]), Err(501), "{coding}");
        }
        assert_eq!(framed(&[("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")]), Err(501));
    }

    #[test]
    fn a_transfer_coding_is_for_http_1_1_alone() {
        for version in [Version::HTTP_10, Version::HTTP_2, Version::HTTP_3] {
            assert_eq!(framed(version, &[("transfer-encoding", "chunked")]), Err(400), "{version:?}");
        }
    }
}
