//! Writes `Forwarded` (RFC 7239) and the `X-Forwarded-*` fields.

use http::header::{FORWARDED, HeaderMap, HeaderName, HeaderValue};

use super::client_info::ClientInfo;
use super::header_lists::HeaderLists;
use super::syntax::{is_token, joined, token_length};

static X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
static X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
static X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Whose fields of origin are trusted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Trust {
    /// The client's [fields of origin](super#fields-of-origin) are removed or overwritten.
    #[default]
    None,
    /// The client is a gateway of ours.
    ///
    /// Its chain is extended, and its scheme and host are kept.
    Client,
}

/// The fields that report to the upstream where a request came from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ForwardedFields {
    /// `X-Forwarded-For`, `X-Forwarded-Host` and `X-Forwarded-Proto`.
    #[default]
    XForwarded,
    /// `Forwarded` (RFC 7239), which costs an allocation per request.
    Forwarded,
    /// All four.
    Both,
    /// None of them.
    None,
}

/// Settings: the fields to write, and whether the client's are trusted.
#[derive(Clone, Debug, Default)]
pub(super) struct ForwardedBuilder {
    pub(super) trust: Trust,
    pub(super) fields: ForwardedFields,
    /// Fields that a layer in front of the gateway sets or removes on every request.
    pub(super) kept: Vec<HeaderName>,
}

impl ForwardedBuilder {
    /// Overwrites the fields, or appends to trusted ones.
    pub(super) fn put(
        &self,
        headers: &mut HeaderMap,
        seen: HeaderLists,
        caller: &ClientInfo,
        authority: Option<&HeaderValue>,
    ) {
        let kept = match self.trust {
            Trust::None => {
                seen.contains(HeaderLists::ORIGIN).remove_except(&self.kept, headers);
                HeaderLists::NONE
            }
            Trust::Client => {
                seen.contains(HeaderLists::UNDERSCORE_VARIANTS).remove_from(headers);
                if seen.has(HeaderLists::FORWARDED)
                    && !headers.get_all(FORWARDED).iter().all(|line| is_valid(line.as_bytes()))
                {
                    headers.remove(FORWARDED);
                }
                seen
            }
        };
        if let ForwardedFields::XForwarded | ForwardedFields::Both = self.fields {
            put_x_forwarded(headers, kept, caller, authority);
        }
        if let ForwardedFields::Forwarded | ForwardedFields::Both = self.fields {
            let element = element(caller, authority);
            let value = if kept.has(HeaderLists::FORWARDED) { behind(headers, &FORWARDED, &element) } else { None };
            headers.insert(FORWARDED, value.unwrap_or(element));
        }
    }
}

fn put_x_forwarded(headers: &mut HeaderMap, kept: HeaderLists, caller: &ClientInfo, authority: Option<&HeaderValue>) {
    if kept.has(HeaderLists::X_FORWARDED_FOR) {
        // if omitted, our client would look like the hop before it
        let address = caller.address().cloned().unwrap_or(HeaderValue::from_static("unknown"));
        let value = behind(headers, &X_FORWARDED_FOR, &address).unwrap_or(address);
        headers.insert(&X_FORWARDED_FOR, value);
    } else if let Some(address) = caller.address() {
        headers.insert(&X_FORWARDED_FOR, address.clone());
    }
    if !kept.has(HeaderLists::X_FORWARDED_PROTO) {
        if let Some(proto) = caller.proto() {
            headers.insert(&X_FORWARDED_PROTO, proto);
        }
    }
    if !kept.has(HeaderLists::X_FORWARDED_HOST) {
        if let Some(authority) = authority {
            headers.insert(&X_FORWARDED_HOST, authority.clone());
        }
    }
}

/// The field with one more member; `None` if it would be too long.
fn behind(headers: &HeaderMap, name: &HeaderName, last: &HeaderValue) -> Option<HeaderValue> {
    joined(headers.get_all(name).iter().chain([last]).map(HeaderValue::as_bytes))
}

/// Our element of `Forwarded` (RFC 7239 section 4).
fn element(caller: &ClientInfo, authority: Option<&HeaderValue>) -> HeaderValue {
    let Some(authority) = authority.map(HeaderValue::as_bytes) else {
        return caller.element().clone();
    };
    let quote: &[u8] = if is_token(authority) { b"" } else { b"\"" };
    // An authority has neither quotes nor backslashes to escape.
    let element = [caller.element().as_bytes(), b";host=", quote, authority, quote].concat();
    HeaderValue::from_bytes(&element).unwrap_or_else(|_| caller.element().clone())
}

/// Whether a line conforms to the grammar (RFC 7239 section 4): valid pairs, no duplicate in an element.
fn is_valid(line: &[u8]) -> bool {
    let mut rest = line;
    let mut known = 0;
    let mut pairs = 0;
    loop {
        if let Some(after) = pair(rest, &mut known) {
            pairs += 1;
            rest = after;
        }
        match rest.first() {
            Some(b';') => {
                rest = &rest[1..];
                continue;
            }
            _ => rest = rest.trim_ascii_start(),
        }
        match rest.first() {
            Some(b',') => {
                rest = rest[1..].trim_ascii_start();
                known = 0;
            }
            Some(_) => return false,
            None => return pairs > 0,
        }
    }
}

/// The rest after `token "=" value`; `None` if the input does not start with that.
fn pair<'a>(input: &'a [u8], known: &mut u8) -> Option<&'a [u8]> {
    const PARAMETERS: [&[u8]; 4] = [b"by", b"for", b"host", b"proto"];
    let (name, rest) = input.split_at(token_length(input));
    let value = rest.strip_prefix(b"=").filter(|_| !name.is_empty())?;
    if let Some(index) = PARAMETERS.iter().position(|parameter| parameter.eq_ignore_ascii_case(name)) {
        if *known & 1 << index != 0 {
            return None;
        }
        *known |= 1 << index;
    }
    match value.strip_prefix(b"\"") {
        Some(quoted) => after_quotes(quoted),
        None => Some(&value[token_length(value)..]).filter(|rest| rest.len() < value.len()),
    }
}

/// The rest after the closing quote (RFC 9110 section 5.6.4).
fn after_quotes(quoted: &[u8]) -> Option<&[u8]> {
    let mut escaped = false;
    let end = quoted.iter().position(|&byte| {
        let closes = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        closes
    })?;
    Some(&quoted[end + 1..])
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::forward::Scheme;
    use crate::forward::tests::{head, lines};

    pub(in crate::forward) fn is_valid_forwarded(line: &[u8]) -> bool {
        is_valid(line)
    }

    fn stamped(trust: Trust, fields: ForwardedFields, caller: &ClientInfo, received: &[(&str, &str)]) -> Vec<String> {
        let mut parts = head("GET", "/", received);
        let (seen, _) = HeaderLists::of_request(&parts.headers);
        let authority = HeaderValue::from_static("example.com:8080");
        ForwardedBuilder { trust, fields, kept: vec![HeaderName::from_static("x-forwarded-user")] }.put(
            &mut parts.headers,
            seen,
            caller,
            Some(&authority),
        );
        lines(&parts.headers)
    }

    fn caller() -> ClientInfo {
        ClientInfo::new(Some("2001:db8::17".parse().unwrap()), Scheme::Https)
    }

    const SPOOFED: [(&str, &str); 16] = [
        ("forwarded", "for=10.0.0.1"),
        ("x-forwarded-for", "10.0.0.1"),
        ("x-forwarded-for", "10.0.0.2"),
        ("x-forwarded-host", "admin.internal"),
        ("x-forwarded-port", "1"),
        ("x-forwarded-prefix", "//evil"),
        ("x-forwarded-proto", "http"),
        ("x-forwarded-server", "a"),
        ("x-forwarded-ssl", "on"),
        ("x-real-ip", "10.0.0.1"),
        ("x_forwarded_for", "10.0.0.1"),
        ("x-forwarded-email", "admin@internal"),
        ("x-forwarded-client-cert", "Subject=\"CN=admin\""),
        ("x-original-url", "/admin"),
        ("x-client-ip", "10.0.0.1"),
        ("x_forwarded_user", "admin"),
    ];

    const X: [&str; 3] =
        ["x-forwarded-for: 2001:db8::17", "x-forwarded-host: example.com:8080", "x-forwarded-proto: https"];
    const F: &str = "forwarded: for=\"[2001:db8::17]\";proto=https;host=\"example.com:8080\"";

    #[test]
    fn claims_of_an_untrusted_client_are_removed() {
        let stamped = |fields| stamped(Trust::None, fields, &caller(), &SPOOFED);
        assert_eq!(stamped(ForwardedFields::XForwarded), X);
        assert_eq!(stamped(ForwardedFields::Forwarded), [F]);
        assert_eq!(stamped(ForwardedFields::Both), [&[F], &X[..]].concat());
        assert_eq!(stamped(ForwardedFields::None), [""; 0]);
    }

    #[test]
    fn an_unknown_client_is_reported_as_unknown() {
        let stamped = |fields| stamped(Trust::None, fields, &ClientInfo::unknown(), &SPOOFED);
        assert_eq!(stamped(ForwardedFields::XForwarded), [X[1]]);
        assert_eq!(stamped(ForwardedFields::Forwarded), ["forwarded: for=unknown;host=\"example.com:8080\""]);
    }

    #[test]
    fn claims_of_a_trusted_client_are_kept_and_extended() {
        let received = [
            ("forwarded", "for=192.0.2.43, for=\"[2001:db8:cafe::17]:4711\""),
            ("x-forwarded-for", "192.0.2.43"),
            ("x-forwarded-for", "198.51.100.1"),
            ("x-forwarded-host", "a.example"),
            ("x-forwarded-port", "444"),
            ("x-forwarded-proto", "http"),
            ("x-real-ip", "192.0.2.43"),
            ("x_real_ip", "10.0.0.1"),
        ];
        let appended = [
            "forwarded: for=192.0.2.43, for=\"[2001:db8:cafe::17]:4711\", \
             for=\"[2001:db8::17]\";proto=https;host=\"example.com:8080\"",
            "x-forwarded-for: 192.0.2.43, 198.51.100.1, 2001:db8::17",
            "x-forwarded-host: a.example",
            "x-forwarded-port: 444",
            "x-forwarded-proto: http",
            "x-real-ip: 192.0.2.43",
        ];
        assert_eq!(stamped(Trust::Client, ForwardedFields::Both, &caller(), &received), appended);
        assert_eq!(stamped(Trust::Client, ForwardedFields::Both, &caller(), &[]), [&[F], &X[..]].concat());
        let kept = stamped(Trust::Client, ForwardedFields::None, &caller(), &received[..7]);
        assert_eq!(kept.len(), 7);
        let unknown = stamped(Trust::Client, ForwardedFields::XForwarded, &ClientInfo::unknown(), &received[1..2]);
        assert_eq!(unknown[0], "x-forwarded-for: 192.0.2.43, unknown");
    }

    #[test]
    fn a_field_that_a_layer_before_us_vouches_for_is_kept() {
        let received = [("x-forwarded-user", "ann"), ("x_forwarded_user", "admin"), ("x-forwarded-email", "admin")];
        assert_eq!(stamped(Trust::None, ForwardedFields::None, &caller(), &received), ["x-forwarded-user: ann"]);
    }

    #[test]
    fn a_chain_longer_than_anybody_needs_is_begun_anew() {
        let long = "192.0.2.1, ".repeat(800);
        let received = [("x-forwarded-for", long.as_str())];
        assert_eq!(stamped(Trust::Client, ForwardedFields::XForwarded, &caller(), &received), X);
        let long = format!("for={}", "a".repeat(8192));
        let received = [("forwarded", long.as_str())];
        assert_eq!(stamped(Trust::Client, ForwardedFields::Forwarded, &caller(), &received), [F]);
    }

    #[test]
    fn a_malformed_forwarded_field_is_dropped() {
        let received = [("forwarded", "for=192.0.2.43"), ("forwarded", "for=\"192.0.2.43")];
        assert_eq!(stamped(Trust::Client, ForwardedFields::Forwarded, &caller(), &received), [F]);
        assert_eq!(stamped(Trust::Client, ForwardedFields::None, &caller(), &received), [""; 0]);
    }

    #[test]
    fn the_grammar_of_forwarded_is_kept_strictly() {
        for good in [
            &b"for=192.0.2.60;proto=http;by=203.0.113.43"[..],
            b"For=\"[2001:db8:cafe::17]:4711\"",
            b"for=192.0.2.43,for=198.51.100.17;by=203.0.113.60;proto=http;host=example.com",
            b"for=_gazonk , , for=unknown",
            b"for=\"a\\\"b, c\";secret=x;secret=y;",
            b";for=a;;by=b",
            b"x=\"caf\xe9\\\\\"",
        ] {
            assert!(is_valid(good), "{good:?}");
        }
        for bad in [
            &b""[..],
            b" , ",
            b";",
            b"for",
            b"for=",
            b"=a",
            b"for=a;for=b",
            b"for=a;FOR=b",
            b"for =a",
            b"for= a",
            b"for=a; by=b",
            b"for=a ;by=b",
            b"for=a by=b",
            b"for=[::1]",
            b"for=a:80",
            b"for=\"a",
            b"for=\"a\\\"",
            b"for=\"a\"b",
            b"for=caf\xe9",
        ] {
            assert!(!is_valid(bad), "{bad:?}");
        }
    }
}
