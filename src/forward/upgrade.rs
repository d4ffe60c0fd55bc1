//! Changing the protocol of a connection (RFC 9110 section 7.8).

use http::header::{self, HeaderMap, HeaderValue};
use http::{Version, request};

use super::header_lists::HeaderLists;
use super::hop::ConnectionOptions;
use super::syntax::{is_token, joined, list};

/// Protocols that would carry further requests past this gateway's rules (RFC 9113 section 3.1, RFC 2817).
const TUNNELS: [&[u8]; 4] = [b"h2", b"h2c", b"http", b"tls"];

/// The protocols a request wants to upgrade to; `None` if the field is to be ignored.
pub(super) fn requested(parts: &request::Parts, seen: HeaderLists, options: ConnectionOptions) -> Option<HeaderValue> {
    if parts.version != Version::HTTP_11 || !options.wants_upgrade() || !seen.has(HeaderLists::UPGRADE) {
        return None;
    }
    let protocols = protocols(&parts.headers)?;
    (list(&protocols).next().is_some() && list(&protocols).all(may_pass)).then_some(protocols)
}

/// The protocols a 101 switches to; `None` if one was not requested.
pub(super) fn accepted(headers: &HeaderMap, asked: &HeaderValue) -> Option<HeaderValue> {
    let protocols = protocols(headers)?;
    let was_asked = |protocol: &[u8]| list(asked).any(|asked| asked.eq_ignore_ascii_case(protocol));
    // comparing the lists is quadratic: accept at most two protocols, one over the other
    let few = list(&protocols).take(3).count();
    ((1..3).contains(&few) && list(&protocols).all(was_asked)).then_some(protocols)
}

fn protocols(headers: &HeaderMap) -> Option<HeaderValue> {
    let mut lines = headers.get_all(header::UPGRADE).iter();
    match (lines.next(), lines.next()) {
        (Some(line), None) => Some(line.clone()),
        _ => joined(headers.get_all(header::UPGRADE).iter().map(HeaderValue::as_bytes)),
    }
}

/// Whether this is `protocol-name ["/" protocol-version]` and no tunnel.
fn may_pass(protocol: &[u8]) -> bool {
    let end = protocol.iter().position(|&byte| byte == b'/').unwrap_or(protocol.len());
    let (name, version) = protocol.split_at(end);
    is_token(name)
        && (version.is_empty() || is_token(&version[1..]))
        && !TUNNELS.iter().any(|tunnel| tunnel.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forward::tests::head;

    fn asks(version: Version, fields: &[(&str, &str)]) -> Option<HeaderValue> {
        let mut parts = head("GET", "/", fields);
        parts.version = version;
        let seen = HeaderLists::of(&parts.headers);
        requested(&parts, seen, ConnectionOptions::read(&parts.headers, seen))
    }

    #[test]
    fn http_1_1_may_ask_for_another_protocol() {
        let fields = [("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")];
        assert_eq!(asks(Version::HTTP_11, &fields).unwrap(), "websocket");
        assert_eq!(asks(Version::HTTP_10, &fields), None);
        assert_eq!(asks(Version::HTTP_2, &fields), None);
        assert_eq!(asks(Version::HTTP_11, &fields[1..]), None);
        assert_eq!(asks(Version::HTTP_11, &fields[..1]), None);
    }

    #[test]
    fn several_protocols_go_on_as_they_are() {
        let fields = [("connection", "upgrade"), ("upgrade", "foo/2 , websocket"), ("upgrade", "IRC/6.9")];
        assert_eq!(asks(Version::HTTP_11, &fields[..2]).unwrap(), "foo/2 , websocket");
        assert_eq!(asks(Version::HTTP_11, &fields).unwrap(), "foo/2 , websocket, IRC/6.9");
    }

    #[test]
    fn a_tunnel_of_http_and_an_invalid_protocol_are_ignored() {
        for bad in ["h2c", "websocket, H2C", "HTTP/2.0", "TLS/1.0", "", ",", "web socket", "a/", "/1", "a/b/c"] {
            assert_eq!(asks(Version::HTTP_11, &[("connection", "upgrade"), ("upgrade", bad)]), None, "{bad}");
        }
    }

    #[test]
    fn only_a_requested_protocol_is_accepted() {
        let asked = HeaderValue::from_static("foo/2, websocket");
        let accepts = |answer: &str| accepted(&head("GET", "/", &[("upgrade", answer)]).headers, &asked);
        assert_eq!(accepts("WebSocket").unwrap(), "WebSocket");
        assert_eq!(accepts("websocket, foo/2").unwrap(), "websocket, foo/2");
        for bad in ["foo", "websocket, bar", "", "websocket, websocket, websocket"] {
            assert_eq!(accepts(bad), None, "{bad}");
        }
    }
}
