//! Whether a request asks for another protocol.

use http::header::{CONNECTION, UPGRADE};
use http::{HeaderMap, HeaderValue, Version};

/// Protocols that would carry further requests past a gateway's rules (RFC 9113 section 3.1, RFC 2817).
const TUNNELS: [&[u8]; 4] = [b"h2", b"h2c", b"http", b"tls"];

/// Whether a request asks to change the protocol of its connection (RFC 9110 section 7.8).
///
/// [`forward`](crate::forward) ignores an `Upgrade` that `Connection` does not name, that came by another version than HTTP/1.1,
/// or that asks for a protocol which no gateway may change to: such a request counts as an ordinary one.
#[cold]
pub(crate) fn asks_for_upgrade(version: Version, headers: &HeaderMap) -> bool {
    version == Version::HTTP_11
        && members(headers, &CONNECTION).any(|option| option.eq_ignore_ascii_case(b"upgrade"))
        && members(headers, &UPGRADE).next().is_some()
        && !members(headers, &UPGRADE).any(is_tunnel)
}

fn is_tunnel(protocol: &[u8]) -> bool {
    let name = protocol.split(|&byte| byte == b'/').next().unwrap_or_default();
    TUNNELS.iter().any(|tunnel| tunnel.eq_ignore_ascii_case(name))
}

fn members<'a>(headers: &'a HeaderMap, name: &http::HeaderName) -> impl Iterator<Item = &'a [u8]> + use<'a> {
    let lines = headers.get_all(name).iter().map(HeaderValue::as_bytes);
    lines.flat_map(|line| line.split(|&byte| byte == b',')).map(<[u8]>::trim_ascii).filter(|member| !member.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asks(version: Version, fields: &[(&'static str, &'static str)]) -> bool {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_static(value));
        }
        asks_for_upgrade(version, &headers)
    }

    #[test]
    fn only_an_upgrade_that_a_gateway_hands_on_is_asked_for() {
        let websocket = [("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")];
        assert!(asks(Version::HTTP_11, &websocket));
        assert!(!asks(Version::HTTP_10, &websocket) && !asks(Version::HTTP_2, &websocket));
        assert!(!asks(Version::HTTP_11, &websocket[1..]), "`Connection` does not name it");
        for tunnel in ["h2c", "H2C", "websocket, h2c", "TLS/1.0", "HTTP/2.0", "", ","] {
            assert!(!asks(Version::HTTP_11, &[("connection", "upgrade"), ("upgrade", tunnel)]), "{tunnel}");
        }
    }
}
