//! Determines the authority a request is for (RFC 9110 section 7.2, RFC 9112 sections 3.2 and 3.3).

use std::net::Ipv6Addr;

use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderValue, Method, Uri, Version, header, request};

use super::header_lists::HeaderLists;
use super::local_response::LocalResponse;
use super::syntax::{number, set};

static PLAIN: [bool; 256] = set(b"-._");
/// Without percent-encoding: `http::uri::Authority` and with it `:authority` cannot carry it.
const REG_NAME: [bool; 256] = set(b"-._~!$&'()*+,;=");
/// The longest accepted `Host`: four times the longest DNS name. It is copied to up to three forwarded fields.
const MAX_HOST: usize = 1024;

/// The authority by a request's target and its `Host`.
pub(super) enum Target {
    /// Origin-form or asterisk-form; HTTP/1.0 may name no host.
    Field(Option<HeaderValue>),
    /// The target had an authority, which wins over `Host`; the rest of it is in origin-form.
    Absolute(HeaderValue, Uri),
}

/// Reads the authority and checks it.
pub(super) fn target(parts: &request::Parts, seen: HeaderLists) -> Result<Target, LocalResponse> {
    if let Some(authority) = parts.uri.authority() {
        return absolute(parts, seen, authority);
    }
    let path = parts.uri.path();
    if path.starts_with('/') || path == "*" && parts.method == Method::OPTIONS {
        Ok(Target::Field(field(parts, seen)?.cloned()))
    } else {
        Err(LocalResponse::bad_request("the form of the request target is not allowed here"))
    }
}

/// Absolute-form, or the pseudo-fields of HTTP/2 and HTTP/3 (RFC 9113 section 8.3.1, RFC 9114 section 4.3.1).
fn absolute(parts: &request::Parts, seen: HeaderLists, authority: &Authority) -> Result<Target, LocalResponse> {
    match parts.uri.scheme() {
        Some(scheme) if *scheme == Scheme::HTTP || *scheme == Scheme::HTTPS => {}
        Some(_) => return Err(LocalResponse::bad_request("the scheme is neither http nor https")),
        None => return Err(LocalResponse::bad_request("only CONNECT may have an authority for its target")),
    }
    if split(authority.as_str().as_bytes()).is_none() {
        return Err(LocalResponse::bad_request("the authority of the request target is malformed"));
    }
    // RFC 9112 section 3.2 requires one valid Host even where it is ignored
    let field = if parts.version <= Version::HTTP_11 { field(parts, seen)? } else { None };
    let value = match field {
        Some(value) if value.as_bytes() == authority.as_str().as_bytes() => value.clone(),
        _ => HeaderValue::from_str(authority.as_str())
            .map_err(|_| LocalResponse::bad_request("the authority of the request target is malformed"))?,
    };
    Ok(Target::Absolute(value, origin_form(parts)?))
}

/// The path and query alone (RFC 9112 section 3.2.1), or `*` (section 3.2.4).
fn origin_form(parts: &request::Parts) -> Result<Uri, LocalResponse> {
    let malformed = LocalResponse::bad_request("the path of the request target is malformed");
    let Some(path) = parts.uri.path_and_query() else {
        return Err(malformed);
    };
    let path = match path.as_str().as_bytes() {
        [b'/', ..] => path.clone(),
        [b'*'] if parts.method == Method::OPTIONS => path.clone(),
        [b'?', ..] => PathAndQuery::try_from(format!("/{path}", path = path.as_str())).map_err(|_| malformed)?,
        _ => return Err(malformed),
    };
    Ok(Uri::from(path))
}

fn field(parts: &request::Parts, seen: HeaderLists) -> Result<Option<&HeaderValue>, LocalResponse> {
    if !seen.has(HeaderLists::HOST) {
        return match parts.version {
            Version::HTTP_09 | Version::HTTP_10 => Ok(None),
            _ => Err(LocalResponse::bad_request("the request has no Host field")),
        };
    }
    let (headers, host) = (&parts.headers, header::HOST);
    // most heads have no duplicate field
    if headers.keys_len() != headers.len() && headers.get_all(&host).iter().nth(1).is_some() {
        return Err(LocalResponse::bad_request("the request has two Host fields"));
    }
    // usually it is the first field: cheaper than hashing
    match headers.iter().find(|(name, _)| *name == host).map(|(_, value)| value) {
        Some(value) if split(value.as_bytes()).is_some() => Ok(Some(value)),
        _ => Err(LocalResponse::bad_request("the Host field is malformed")),
    }
}

/// Splits `uri-host [":" port]`; `None` if it is malformed or the host is empty.
///
/// An http URI without a host is invalid (RFC 9110 section 4.2.1), and so is one with userinfo (section 4.2.4).
/// Every accepted value is a valid [`Authority`] too: one field has one grammar in all protocols.
pub(super) fn split(authority: &[u8]) -> Option<(&[u8], Option<&[u8]>)> {
    if authority.len() > MAX_HOST {
        return None;
    }
    // nearly every host is a plain name without a port: check each byte once
    if !authority.is_empty() && authority.iter().all(|&byte| PLAIN[usize::from(byte)]) {
        return Some((authority, None));
    }
    let end = if authority.first() == Some(&b'[') {
        authority.iter().position(|&byte| byte == b']')? + 1
    } else {
        authority.iter().position(|&byte| byte == b':').unwrap_or(authority.len())
    };
    let (host, rest) = authority.split_at(end);
    let port = match rest {
        [] => None,
        [b':', port @ ..] if port.is_empty() || number(port).is_some_and(|port| u16::try_from(port).is_ok()) => {
            Some(port)
        }
        _ => return None,
    };
    let valid = match host {
        [b'[', address @ .., b']'] => std::str::from_utf8(address).is_ok_and(|text| text.parse::<Ipv6Addr>().is_ok()),
        name => is_reg_name(name),
    };
    valid.then_some((host, port))
}

/// `reg-name`, which IPv4 addresses are too (RFC 3986 section 3.2.2), without percent-encoding.
fn is_reg_name(name: &[u8]) -> bool {
    !name.is_empty() && name.iter().all(|&byte| REG_NAME[usize::from(byte)])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::forward::tests::head;

    fn read(parts: &request::Parts) -> Result<(Option<String>, Option<String>), &'static str> {
        let text = |value: &HeaderValue| value.to_str().unwrap().to_owned();
        match target(parts, HeaderLists::of(&parts.headers)) {
            Ok(Target::Field(value)) => Ok((value.as_ref().map(text), None)),
            Ok(Target::Absolute(value, uri)) => Ok((Some(text(&value)), Some(uri.to_string()))),
            Err(answer) => {
                assert_eq!(answer.status(), 400);
                Err(answer.reason())
            }
        }
    }

    fn host(value: &str) -> Result<(Option<String>, Option<String>), &'static str> {
        read(&head("GET", "/", &[("host", value)]))
    }

    #[test]
    fn a_host_is_a_name_or_an_address_and_perhaps_a_port() {
        for good in ["a", "example.com:8080", "[::1]:80", "[2001:db8::1]", "192.0.2.1:65535", "a_b.c", "a!b", "a:"] {
            assert_eq!(host(good), Ok((Some(good.to_owned()), None)));
        }
    }

    #[test]
    fn a_malformed_host_is_refused() {
        let bad = [
            "",
            " ",
            "a b",
            "user@x",
            "user:pw@x:80",
            ":80",
            "a:65536",
            "a:99999999999999999999",
            "a:-1",
            "a:8x",
            "a:80:80",
            "::1",
            "[::1",
            "[::1]80",
            "[::1]x:80",
            "[]",
            "[a]",
            "[::1%25eth0]",
            "a/b",
            "a?b",
            "a#b",
            "a\\b",
            "http://a",
            "%41.d",
            "a%41.example",
            "a%",
            "a%4",
            "a%4g",
            "<a>",
            "a\"b",
        ];
        for bad in bad {
            assert_eq!(host(bad), Err("the Host field is malformed"), "{bad:?}");
        }
        let mut parts = head("GET", "/", &[]);
        parts.headers.insert("host", HeaderValue::from_bytes(b"caf\xc3\xa9.example").unwrap());
        assert_eq!(read(&parts), Err("the Host field is malformed"));
    }

    #[test]
    fn a_host_is_as_long_as_a_name_in_dns_may_be_and_not_without_end() {
        assert!(host(&format!("{}.example:8080", "a".repeat(253))).is_ok());
        assert_eq!(host(&"a".repeat(70_000)), Err("the Host field is malformed"));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, cases: 2000, ..ProptestConfig::default() })]

        #[test]
        fn an_authority_can_carry_every_host_that_passes(
            host in r"[!-~]{1,20}|(a|1|\.|:|%|%41|@|\[|\]|\[::1\]|::|ffff|-|_|,|;|=){1,24}",
        ) {
            if split(host.as_bytes()).is_some() {
                prop_assert!(Authority::try_from(host.as_bytes()).is_ok_and(|authority| authority.as_str() == host));
            }
        }
    }

    #[test]
    fn two_hosts_are_refused_even_when_they_agree() {
        let parts = head("GET", "/", &[("host", "a"), ("host", "a")]);
        assert_eq!(read(&parts), Err("the request has two Host fields"));
        let parts = head("GET", "http://a/", &[("host", "a"), ("host", "b")]);
        assert_eq!(read(&parts), Err("the request has two Host fields"));
    }

    #[test]
    fn only_http_1_0_may_leave_the_host_out() {
        let mut parts = head("GET", "/", &[]);
        assert_eq!(read(&parts), Err("the request has no Host field"));
        parts.version = Version::HTTP_2;
        assert_eq!(read(&parts), Err("the request has no Host field"));
        parts.version = Version::HTTP_10;
        assert_eq!(read(&parts), Ok((None, None)));
        assert_eq!(read(&head("GET", "http://a/", &[])), Err("the request has no Host field"));
    }

    #[test]
    fn the_absolute_form_wins_over_the_host() {
        let parts = head("GET", "http://a:81/p?q=1", &[("host", "b")]);
        assert_eq!(read(&parts), Ok((Some("a:81".to_owned()), Some("/p?q=1".to_owned()))));
        let parts = head("GET", "https://a?q", &[("host", "a")]);
        assert_eq!(read(&parts), Ok((Some("a".to_owned()), Some("/?q".to_owned()))));
    }

    #[test]
    fn the_absolute_form_does_not_excuse_a_bad_host() {
        for bad in ["", "a b", "user@a"] {
            assert_eq!(read(&head("GET", "http://a/", &[("host", bad)])), Err("the Host field is malformed"));
        }
    }

    #[test]
    fn an_authority_with_userinfo_or_a_bad_port_is_refused() {
        for bad in ["http://user@a/", "http://user:pw@a:80/", "http://a:99999/"] {
            let parts = head("GET", bad, &[("host", "a")]);
            assert_eq!(read(&parts), Err("the authority of the request target is malformed"), "{bad}");
        }
    }

    #[test]
    fn http_2_takes_the_authority_and_ignores_the_host() {
        let mut parts = head("GET", "https://a/x", &[("host", "b"), ("host", "c d")]);
        parts.version = Version::HTTP_2;
        assert_eq!(read(&parts), Ok((Some("a".to_owned()), Some("/x".to_owned()))));
    }

    #[test]
    fn other_schemes_and_a_bare_authority_are_refused() {
        let parts = head("GET", "ftp://a/", &[("host", "a")]);
        assert_eq!(read(&parts), Err("the scheme is neither http nor https"));
        let parts = head("GET", "a:80", &[("host", "a")]);
        assert_eq!(read(&parts), Err("only CONNECT may have an authority for its target"));
    }

    #[test]
    fn the_asterisk_is_for_options_alone() {
        assert_eq!(read(&head("OPTIONS", "*", &[("host", "a")])), Ok((Some("a".to_owned()), None)));
        assert!(read(&head("GET", "*", &[("host", "a")])).is_err());
        let mut parts = head("OPTIONS", "/", &[]);
        let mut uri = Uri::from_static("https://a/").into_parts();
        uri.path_and_query = Some(PathAndQuery::from_static("*"));
        parts.uri = Uri::from_parts(uri).unwrap();
        parts.version = Version::HTTP_2;
        assert_eq!(read(&parts), Ok((Some("a".to_owned()), Some("*".to_owned()))));
        parts.method = Method::GET;
        assert!(read(&parts).is_err());
    }
}
