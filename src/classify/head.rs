//! Checks for response heads that are unsafe to forward although hyper accepts them.

use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, Response, StatusCode, Version};

use super::classification::Classification;
use crate::body::{Length, content_length, is_plain_number};
use crate::cause::{BadGatewayCause as Cause, Detail};

/// The kind of response the request allows, as far as framing depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expected {
    /// An ordinary response.
    Response,
    /// An upgrade of the connection (RFC 9110 section 7.8).
    Upgrade,
}

/// Checks a parsed response head; `None` if it is valid.
///
/// An unrequested 101, `Content-Length` beside `Transfer-Encoding`, codings other than one `chunked`,
/// invalid or conflicting lengths (RFC 9112 sections 6.1 to 6.3) and a status above 599 (RFC 9110 section 15) are
/// refused: the end of such a message cannot be determined, so the connection must not be used again.
pub(crate) fn check_head<B>(head: &Response<B>, expected: Expected) -> Option<Classification> {
    let status = head.status();
    if status == StatusCode::SWITCHING_PROTOCOLS {
        return (expected == Expected::Response)
            .then(|| Classification::new(Cause::UpgradeFailed).detail(Detail::Text("a 101 that was not requested")));
    }
    if status.as_u16() > 599 {
        return Some(Classification::new(Cause::InvalidResponse).detail(Detail::Status(status)));
    }
    check_framing(head.headers(), head.version())
}

/// Whether a head has no coding, no duplicate field and a valid length, as most heads do.
#[inline]
pub(super) fn is_plainly_framed(headers: &HeaderMap) -> bool {
    // hashing a name costs as much as iterating over ten, which are compared by number
    headers.keys_len() == headers.len()
        && headers.iter().all(|(name, value)| match *name {
            TRANSFER_ENCODING => false,
            CONTENT_LENGTH => is_plain_number(value),
            _ => true,
        })
}

/// Folds equal `Content-Length` values into one, as servers refuse to send several (RFC 9112 section 6.3).
pub(super) fn fold_length(headers: &mut HeaderMap) {
    if let Length::Repeated(length) = content_length(headers) {
        headers.insert(CONTENT_LENGTH, length);
    }
}

fn check_framing(headers: &HeaderMap, version: Version) -> Option<Classification> {
    if is_plainly_framed(headers) {
        return None;
    }
    let invalid = |why| Some(Classification::new(Cause::InvalidResponse).detail(Detail::Text(why)));
    let coding = if version < Version::HTTP_2 { headers.get(TRANSFER_ENCODING) } else { None };
    let Some(coding) = coding else {
        return match content_length(headers) {
            Length::Invalid => invalid("a Content-Length that is not a single number"),
            Length::Plain | Length::Repeated(_) => None,
        };
    };
    if headers.contains_key(CONTENT_LENGTH) {
        return invalid("both Content-Length and Transfer-Encoding");
    }
    let once = headers.get_all(TRANSFER_ENCODING).iter().count() == 1;
    if once && coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked") && version == Version::HTTP_11 {
        return None;
    }
    Some(Classification::new(Cause::TransferCoding).detail(Detail::Text("a transfer coding other than one chunked")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(status: u16, fields: &[(&str, &str)]) -> Option<Cause> {
        let mut response = http::Response::builder().status(status);
        for (name, value) in fields {
            response = response.header(*name, *value);
        }
        let head = response.body(()).unwrap();
        check_head(&head, Expected::Response).map(|verdict| verdict.cause())
    }

    #[test]
    fn ordinary_heads_pass() {
        for fields in [&[][..], &[("content-length", "5")], &[("transfer-encoding", "Chunked ")]] {
            assert_eq!(check(200, fields), None, "{fields:?}");
        }
        assert_eq!(check(599, &[]), None);
        assert_eq!(check(200, &[("content-length", "5"), ("content-length", "5")]), None);
        assert_eq!(check(200, &[("content-length", "5, 5")]), None);
    }

    #[test]
    fn heads_that_cannot_be_delimited_are_refused() {
        let rows: [(&[(&str, &str)], Cause); 9] = [
            (&[("content-length", "abc")], Cause::InvalidResponse),
            (&[("content-length", "+5")], Cause::InvalidResponse),
            (&[("content-length", "5, 6")], Cause::InvalidResponse),
            (&[("content-length", "5"), ("transfer-encoding", "chunked")], Cause::InvalidResponse),
            (&[("content-length", "5"), ("content-length", "6")], Cause::InvalidResponse),
            (&[("transfer-encoding", "chunked, chunked")], Cause::TransferCoding),
            (&[("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")], Cause::TransferCoding),
            (&[("transfer-encoding", "chunked, identity")], Cause::TransferCoding),
            (&[("transfer-encoding", "gzip, chunked")], Cause::TransferCoding),
        ];
        for (fields, cause) in rows {
            assert_eq!(check(200, fields), Some(cause), "{fields:?}");
        }
        assert_eq!(check(600, &[]), Some(Cause::InvalidResponse));
        assert_eq!(check(101, &[]), Some(Cause::UpgradeFailed));
    }

    #[test]
    fn the_length_of_an_http_2_response_is_checked_too() {
        for (length, cause) in [("5", None), ("5, 5", None), ("abc", Some(Cause::InvalidResponse))] {
            let response = http::Response::builder().version(Version::HTTP_2).header("content-length", length);
            let verdict = check_head(&response.body(()).unwrap(), Expected::Response);
            assert_eq!(verdict.map(|verdict| verdict.cause()), cause, "{length}");
        }
    }

    #[test]
    fn an_http_1_0_response_has_no_transfer_coding() {
        let response = http::Response::builder().version(Version::HTTP_10).header("transfer-encoding", "chunked");
        let head = response.body(()).unwrap();
        assert!(check_head(&head, Expected::Response).is_some());
    }
}
