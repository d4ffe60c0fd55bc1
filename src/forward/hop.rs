//! Hop-by-hop fields (RFC 9110 section 7.6.1).

use std::str;

use http::header::{self, HeaderMap, HeaderValue};
use http::{Version, request};

use super::header_lists::HeaderLists;
use super::syntax::list;

/// The connection options of a head.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ConnectionOptions {
    count: usize,
    /// Whether they name fields beyond the hop-by-hop ones, which are always removed.
    names_others: bool,
    upgrade: bool,
}

impl ConnectionOptions {
    pub(super) fn read(headers: &HeaderMap, seen: HeaderLists) -> Self {
        let mut options = Self::default();
        if seen.has(HeaderLists::CONNECTION) {
            for option in headers.get_all(header::CONNECTION).iter().flat_map(list) {
                let known = HeaderLists::named(option);
                options.count += 1;
                options.names_others |= known.is_empty() && !option.eq_ignore_ascii_case(b"close");
                options.upgrade |= known.has(HeaderLists::UPGRADE);
            }
        }
        options
    }

    /// The number of options.
    pub(super) fn count(self) -> usize {
        self.count
    }

    /// Whether the sender wants to change the protocol.
    pub(super) fn wants_upgrade(self) -> bool {
        self.upgrade
    }
}

/// Removes the hop-by-hop fields.
///
/// These are the ones that `Connection` names, and `Connection`, `Keep-Alive`, `Proxy-Connection`, `TE`,
/// `Transfer-Encoding`, `Upgrade`, `HTTP2-Settings` and the `Proxy-*` fields of authentication, named or
/// not (RFC 9110 sections 7.6.1 and 11.7). Fields that describe the length, the target and the path of a message are
/// end-to-end, and stay even if named: `Host`, `Content-Length`, `Max-Forwards`, `Via`, the
/// [fields of origin](super#fields-of-origin).
/// `Proxy` is removed too: CGI programs read it as the proxy for their own requests.
/// `Content-Length` is removed if `Transfer-Encoding` overrides it (RFC 9112 section 6.3).
///
/// ```
/// use http::{HeaderMap, HeaderValue};
/// use tower_upstream::forward::strip_hop_by_hop;
///
/// let mut headers = HeaderMap::new();
/// headers.insert("host", HeaderValue::from_static("example.com"));
/// headers.insert("connection", HeaderValue::from_static("close, x-debug, host"));
/// headers.insert("x-debug", HeaderValue::from_static("1"));
/// strip_hop_by_hop(&mut headers);
/// assert_eq!(headers.len(), 1);
/// assert_eq!(headers["host"], "example.com");
/// ```
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let seen = HeaderLists::of(headers);
    strip(headers, seen, ConnectionOptions::read(headers, seen));
}

pub(super) fn strip(headers: &mut HeaderMap, seen: HeaderLists, options: ConnectionOptions) {
    if options.names_others {
        let lines: Vec<HeaderValue> = headers.get_all(header::CONNECTION).iter().cloned().collect();
        let others = lines.iter().flat_map(list).filter(|option| HeaderLists::named(option).is_empty());
        for name in others.filter_map(|option| str::from_utf8(option).ok()) {
            headers.remove(name);
        }
    }
    if seen.has(HeaderLists::TRANSFER_ENCODING) {
        seen.contains(HeaderLists::CONTENT_LENGTH).remove_from(headers);
    }
    seen.contains(HeaderLists::HOP_BY_HOP).remove_from(headers);
}

/// Whether the sender accepts trailers (RFC 9110 section 10.1.4); HTTP/1.0 has none.
pub(super) fn takes_trailers(parts: &request::Parts, seen: HeaderLists) -> bool {
    seen.has(HeaderLists::TE)
        && parts.version > Version::HTTP_10
        && parts
            .headers
            .get_all(header::TE)
            .iter()
            .flat_map(list)
            .any(|member| member.eq_ignore_ascii_case(b"trailers"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forward::tests::{head, names};

    fn stripped(fields: &[(&str, &str)]) -> Vec<String> {
        let mut parts = head("GET", "/", fields);
        strip_hop_by_hop(&mut parts.headers);
        names(&parts.headers)
    }

    #[test]
    fn hop_by_hop_fields_go_whether_named_or_not() {
        let fields = [
            ("connection", "keep-alive"),
            ("http2-settings", "AAMAAABkAAQCAAAAAAIAAAAA"),
            ("keep-alive", "timeout=5"),
            ("proxy-authenticate", "Basic"),
            ("proxy-authentication-info", "a"),
            ("proxy-authorization", "Basic eA=="),
            ("proxy-connection", "keep-alive"),
            ("te", "gzip"),
            ("trailer", "x-sum"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "websocket"),
        ];
        assert_eq!(stripped(&fields), ["trailer"]);
    }

    #[test]
    fn named_fields_go_in_any_case_and_on_any_line() {
        let fields = [
            ("connection", "X-One ,, close"),
            ("connection", "x-two,upgrade,\"x\", x three, \u{e9}"),
            ("x-one", "1"),
            ("x-one", "1"),
            ("x-two", "2"),
            ("x-three", "3"),
        ];
        assert_eq!(stripped(&fields), ["x-three"]);
        assert_eq!(stripped(&[("connection", "x-one"), ("x-one", "1")]), [""; 0]);
    }

    #[test]
    fn naming_host_or_length_does_not_change_the_message() {
        let fields = [
            ("connection", "Host, content-length, VIA, max-forwards, forwarded, x-forwarded-for, x-real-ip"),
            ("content-length", "5"),
            ("forwarded", "for=_a"),
            ("host", "a"),
            ("max-forwards", "1"),
            ("via", "1.1 b"),
            ("x-forwarded-for", "192.0.2.1"),
            ("x-real-ip", "192.0.2.1"),
        ];
        assert_eq!(stripped(&fields).len(), fields.len() - 1);
    }

    #[test]
    fn a_length_that_transfer_encoding_overrides_goes_too() {
        let fields = [("content-length", "5"), ("transfer-encoding", "chunked")];
        assert_eq!(stripped(&fields), [""; 0]);
        assert_eq!(stripped(&fields[..1]), ["content-length"]);
    }

    #[test]
    fn an_option_of_any_length_is_handled() {
        let long = "x".repeat(70_000);
        let fields = [("connection", long.as_str()), ("x-one", "1")];
        assert_eq!(stripped(&fields), ["x-one"]);
    }

    #[test]
    fn trailers_are_one_member_of_te() {
        let takes = |version, value| {
            let mut parts = head("GET", "/", &[("te", value)]);
            parts.version = version;
            takes_trailers(&parts, HeaderLists::of(&parts.headers))
        };
        assert!(takes(Version::HTTP_11, "trailers"));
        assert!(takes(Version::HTTP_2, "gzip;q=0.5, Trailers"));
        assert!(!takes(Version::HTTP_2, "gzip"));
        assert!(!takes(Version::HTTP_2, "trailers;q=1"));
        assert!(!takes(Version::HTTP_10, "trailers"));
    }
}
