//! Methods with rules of their own for intermediaries: CONNECT, OPTIONS and TRACE (RFC 9110 sections 7.6.2 and 9.3.6 to 9.3.8).

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, StatusCode, Version, header, request};

use super::header_lists::HeaderLists;
use super::host;
use super::local_response::LocalResponse;
use super::syntax::number;

/// Rejects CONNECT: a reverse proxy is not a tunnel, nor with extended CONNECT (RFC 9110 section 9.3.6, RFC 8441 section 4).
pub(super) fn connect(parts: &request::Parts) -> LocalResponse {
    let has_port = |authority: &str| {
        host::split(authority.as_bytes()).and_then(|(_, port)| port).is_some_and(|port| !port.is_empty())
    };
    let is_extended = parts.version >= Version::HTTP_2 && parts.uri.scheme().is_some();
    let names_a_port = parts.uri.scheme().is_none() && parts.uri.authority().is_some_and(|it| has_port(it.as_str()));
    if is_extended || names_a_port {
        LocalResponse::refusal(StatusCode::NOT_IMPLEMENTED, "this gateway does not support CONNECT")
    } else {
        LocalResponse::bad_request("the target of CONNECT is not a host with a port")
    }
}

/// The value of `Max-Forwards` to forward, or the local response if the request goes no further.
///
/// An invalid value is forwarded unchanged. One too large to represent is forwarded as the largest supported, as RFC 9110
/// section 7.6.2 specifies.
pub(super) fn max_forwards(parts: &request::Parts, seen: HeaderLists) -> Result<Option<HeaderValue>, LocalResponse> {
    let is_trace = parts.method == Method::TRACE;
    if !is_trace && parts.method != Method::OPTIONS {
        return Ok(None);
    }
    if is_trace && has_content(parts, seen) {
        return Err(LocalResponse::bad_request("a TRACE request must not have content"));
    }
    if !seen.has(HeaderLists::MAX_FORWARDS) {
        return Ok(None);
    }
    let mut lines = parts.headers.get_all(header::MAX_FORWARDS).iter();
    let number = match (lines.next(), lines.next()) {
        (Some(line), None) => number(line.as_bytes()),
        _ => None,
    };
    match number {
        Some(0) if is_trace => Err(LocalResponse::reflection(reflection(parts), "Max-Forwards ends here")),
        Some(0) => Err(LocalResponse::empty("Max-Forwards ends here")),
        Some(number) => Ok(Some(HeaderValue::from(number - 1))),
        None => Ok(None),
    }
}

fn has_content(parts: &request::Parts, seen: HeaderLists) -> bool {
    seen.has(HeaderLists::TRANSFER_ENCODING)
        || seen.has(HeaderLists::CONTENT_LENGTH)
            && parts.headers.get_all(header::CONTENT_LENGTH).iter().any(|line| number(line.as_bytes()) != Some(0))
}

/// Fields that a TRACE reflects: they describe the path and the client's preferences and are not secret.
const SHOWN: [HeaderName; 13] = [
    header::ACCEPT,
    header::ACCEPT_ENCODING,
    header::ACCEPT_LANGUAGE,
    header::CACHE_CONTROL,
    header::CONNECTION,
    header::DATE,
    header::HOST,
    header::MAX_FORWARDS,
    header::PRAGMA,
    header::TE,
    header::UPGRADE,
    header::USER_AGENT,
    header::VIA,
];

/// The received head without secrets (RFC 9110 section 9.3.8).
///
/// Secrets have different names in every deployment (`X-Api-Key`), so this is an allow-list.
fn reflection(parts: &request::Parts) -> Bytes {
    let mut head = format!("{} {} {:?}\r\n", parts.method, parts.uri, parts.version).into_bytes();
    for (name, value) in &parts.headers {
        if SHOWN.contains(name) && !value.is_sensitive() {
            for piece in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
                head.extend_from_slice(piece);
            }
        }
    }
    head.extend_from_slice(b"\r\n");
    Bytes::from(head)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forward::tests::head;

    fn forwards(method: &str, fields: &[(&str, &str)]) -> Result<Option<HeaderValue>, LocalResponse> {
        let parts = head(method, "/x?q", fields);
        max_forwards(&parts, HeaderLists::of(&parts.headers))
    }

    fn sent_on(method: &str, value: &str) -> Option<String> {
        let value = forwards(method, &[("max-forwards", value)]).unwrap();
        value.map(|value| value.to_str().unwrap().to_owned())
    }

    #[test]
    fn max_forwards_is_decremented() {
        assert_eq!(sent_on("OPTIONS", "1").unwrap(), "0");
        assert_eq!(sent_on("TRACE", "0000000000000000010").unwrap(), "9");
    }

    #[test]
    fn a_number_too_large_is_forwarded_as_the_largest_supported() {
        assert_eq!(sent_on("TRACE", "99999999999999999999").unwrap(), "4294967294");
        assert_eq!(sent_on("TRACE", &"9".repeat(10_000)).unwrap(), "4294967294");
    }

    #[test]
    fn an_invalid_number_is_forwarded_unchanged() {
        for odd in ["", "-1", "+1", "1.0", "0x1", "1, 2", "\u{661}"] {
            assert_eq!(sent_on("OPTIONS", odd), None, "{odd}");
        }
        assert_eq!(forwards("OPTIONS", &[("max-forwards", "0"), ("max-forwards", "0")]), Ok(None));
    }

    #[test]
    fn other_methods_do_not_count_forwards() {
        assert_eq!(sent_on("GET", "0"), None);
    }

    #[test]
    fn options_at_zero_gets_an_empty_response_from_the_gateway() {
        let response = forwards("OPTIONS", &[("max-forwards", "0")]).unwrap_err().into_response::<Bytes>();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-length"], "0");
        assert!(!response.headers().contains_key("allow"));
    }

    #[test]
    fn trace_ends_here_with_its_own_head_and_no_secrets() {
        let fields = [
            ("host", "a"),
            ("authorization", "Basic c2VjcmV0"),
            ("cookie", "id=c2VjcmV0"),
            ("proxy-authorization", "Basic c2VjcmV0"),
            ("x-api-key", "c2VjcmV0"),
            ("x-auth-token", "c2VjcmV0"),
            ("max-forwards", "00"),
            ("via", "1.1 b"),
        ];
        let response = forwards("TRACE", &fields).unwrap_err().into_response::<Bytes>();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "message/http");
        assert_eq!(response.body(), "TRACE /x?q HTTP/1.1\r\nhost: a\r\nmax-forwards: 00\r\nvia: 1.1 b\r\n\r\n");
    }

    #[test]
    fn a_value_marked_as_sensitive_is_a_secret_too() {
        let mut parts = head("TRACE", "/", &[]);
        let mut key = HeaderValue::from_static("c2VjcmV0");
        key.set_sensitive(true);
        parts.headers.insert("host", key);
        assert_eq!(reflection(&parts), "TRACE / HTTP/1.1\r\n\r\n");
    }

    #[test]
    fn a_trace_with_content_is_refused() {
        for field in [("content-length", "1"), ("content-length", "x"), ("transfer-encoding", "chunked")] {
            let answer = forwards("TRACE", &[field, ("max-forwards", "0")]).unwrap_err();
            assert_eq!(answer.status(), 400);
        }
        assert_eq!(forwards("TRACE", &[("content-length", "0")]), Ok(None));
        assert_eq!(forwards("OPTIONS", &[("content-length", "1")]), Ok(None));
    }

    #[test]
    fn connect_is_refused_as_not_implemented_or_malformed() {
        let status = |target: &str, version| {
            let mut parts = head("CONNECT", target, &[("host", "a")]);
            parts.version = version;
            connect(&parts).status().as_u16()
        };
        for good in ["a:443", "[::1]:443", "192.0.2.1:1"] {
            assert_eq!(status(good, Version::HTTP_11), 501, "{good}");
        }
        for bad in ["a", "a:", "a:99999", "u@a:443", "/x", "*", "http://a:80/"] {
            assert_eq!(status(bad, Version::HTTP_11), 400, "{bad}");
        }
        assert_eq!(status("https://a/chat", Version::HTTP_2), 501);
    }
}
