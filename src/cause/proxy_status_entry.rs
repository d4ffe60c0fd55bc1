//! Reads the members of other hops, as found in practice.

use std::borrow::Cow;

use http::header::HeaderName;
use http::{HeaderMap, HeaderValue};

use crate::cause::structured_fields::{Entry, Item, Value, is_token, joined, list};

pub(super) const PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");

/// One hop's member, as read (RFC 9209 section 2).
///
/// Missing values and values of an implausible type are `None`. All of it is untrusted: a
/// hop may omit, rename or invent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyStatusEntry {
    name: Box<str>,
    error: Option<Box<str>>,
    received_status: Option<u16>,
    next_hop: Option<Box<str>>,
    next_protocol: Option<Box<[u8]>>,
    details: Option<Box<str>>,
}

impl ProxyStatusEntry {
    /// The name of the intermediary.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The error type, which need not be registered (RFC 9209 section 2.3).
    ///
    /// A String is accepted in place of a Token, because some send it so.
    pub fn error(&self) -> Option<&str> {
        self.error.as_deref()
    }

    /// The status it received from the next hop, 100 to 999.
    pub fn received_status(&self) -> Option<u16> {
        self.received_status
    }

    /// Where it sent the request: a name, an address, in practice also a URL.
    pub fn next_hop(&self) -> Option<&str> {
        self.next_hop.as_deref()
    }

    /// The ALPN identifier of the protocol it spoke there, such as `h2` (RFC 9209 section 2.1.3).
    pub fn next_protocol(&self) -> Option<&[u8]> {
        self.next_protocol.as_deref()
    }

    /// Details about the error, for people.
    pub fn details(&self) -> Option<&str> {
        self.details.as_deref()
    }

    fn read(entry: Entry<'_>) -> Option<Self> {
        let Entry::Item(Item { value, parameters }) = entry else { return None };
        let mut member = Self {
            name: text(value)?,
            error: None,
            received_status: None,
            next_hop: None,
            next_protocol: None,
            details: None,
        };
        for (key, value) in parameters {
            match key {
                "error" => member.error = text(value).filter(|error| is_token(error)),
                "received-status" => member.received_status = status(&value),
                "next-hop" => member.next_hop = text(value),
                "next-protocol" => member.next_protocol = protocol(value),
                "details" => member.details = string(value),
                _ => {}
            }
        }
        Some(member)
    }
}

/// Reads `Proxy-Status`: one member per hop that wrote one, nearest to the origin first.
///
/// Every field line counts as a part of one List. A syntax error anywhere means no members at all
/// (RFC 9651 section 4.2), and so do more than 16 KiB or more than 1024 members. Members that are
/// neither Token nor String are skipped, and so is any parameter of the wrong type.
///
/// ```
/// use http::{HeaderMap, HeaderValue};
/// use tower_upstream::cause;
///
/// let mut headers = HeaderMap::new();
/// headers.append("proxy-status", HeaderValue::from_static("inner; error=connection_refused; next-hop=\"db:5432\""));
/// headers.append("proxy-status", HeaderValue::from_static("edge; received-status=502"));
///
/// let [inner, edge] = &cause::entries(&headers)[..] else { panic!("two hops wrote") };
/// assert_eq!((inner.name(), inner.error(), inner.next_hop()), ("inner", Some("connection_refused"), Some("db:5432")));
/// assert_eq!((edge.name(), edge.error(), edge.received_status()), ("edge", None, Some(502)));
/// ```
pub fn entries(headers: &HeaderMap) -> Vec<ProxyStatusEntry> {
    let lines = headers.get_all(PROXY_STATUS).iter().map(HeaderValue::as_bytes);
    let Some(value) = joined(lines) else { return Vec::new() };
    let entries = list(&value).unwrap_or_default();
    entries.into_iter().filter_map(ProxyStatusEntry::read).collect()
}

fn text(value: Value<'_>) -> Option<Box<str>> {
    match value {
        Value::Token(token) => Some(token.into()),
        other => string(other),
    }
}

fn string(value: Value<'_>) -> Option<Box<str>> {
    match value {
        Value::String(Cow::Borrowed(text)) => Some(text.into()),
        Value::String(Cow::Owned(text)) => Some(text.into()),
        _ => None,
    }
}

fn status(value: &Value<'_>) -> Option<u16> {
    match value {
        Value::Integer(status @ 100..=999) => u16::try_from(*status).ok(),
        _ => None,
    }
}

fn protocol(value: Value<'_>) -> Option<Box<[u8]>> {
    match value {
        Value::Token(token) => Some(token.as_bytes().into()),
        Value::Bytes(bytes) => Some(bytes.into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(lines: &[&[u8]]) -> Vec<ProxyStatusEntry> {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(PROXY_STATUS, HeaderValue::from_bytes(line).unwrap());
        }
        entries(&headers)
    }

    fn one(line: &str) -> ProxyStatusEntry {
        let entries = read(&[line.as_bytes()]);
        let [member] = &entries[..] else { panic!("{line}: {entries:?}") };
        member.clone()
    }

    #[test]
    fn the_order_of_the_hops_is_kept_over_lines_and_commas() {
        let entries = read(&[b"origin-side, \"in the middle\"; error=dns_timeout", b"nearest"]);
        let names: Vec<_> = entries.iter().map(ProxyStatusEntry::name).collect();
        assert_eq!(names, ["origin-side", "in the middle", "nearest"]);
        assert_eq!(entries[1].error(), Some("dns_timeout"));
    }

    #[test]
    fn every_parameter_is_read() {
        let member =
            one(r#"gw;error=dns_error;received-status=503;next-hop=db;next-protocol=h2;details="a \"b\"";rcode="X""#);
        assert_eq!(member.name(), "gw");
        assert_eq!(member.error(), Some("dns_error"));
        assert_eq!(member.received_status(), Some(503));
        assert_eq!(member.next_hop(), Some("db"));
        assert_eq!(member.next_protocol(), Some(&b"h2"[..]));
        assert_eq!(member.details(), Some("a \"b\""));
    }

    #[test]
    fn an_error_sent_as_a_string_counts_where_it_could_be_a_token() {
        assert_eq!(one("gw; error=\"connection_refused\"").error(), Some("connection_refused"));
        for other in ["\"it broke\"", "\"\"", "502", "?1", "1.5", ":YQ==:", "@5", "%\"a\""] {
            assert_eq!(one(&format!("gw; error={other}")).error(), None, "{other}");
        }
        assert_eq!(one("gw; error").error(), None);
    }

    #[test]
    fn an_unregistered_error_is_kept_as_it_is() {
        assert_eq!(one("gw; error=source_addr_in_use").error(), Some("source_addr_in_use"));
        assert_eq!(one("gw; error=Some:Thing/else").error(), Some("Some:Thing/else"));
    }

    #[test]
    fn a_received_status_is_an_integer_of_three_digits() {
        for (sent, read) in [("100", Some(100)), ("999", Some(999)), ("99", None), ("1000", None), ("-200", None)] {
            assert_eq!(one(&format!("gw; received-status={sent}")).received_status(), read, "{sent}");
        }
        for other in ["\"502\"", "502.0", "ok", "?1", "999999999999999"] {
            assert_eq!(one(&format!("gw; received-status={other}")).received_status(), None, "{other}");
        }
    }

    #[test]
    fn a_next_hop_may_be_a_url() {
        assert_eq!(one("gw; next-hop=\"https://db:5432/a?b\"").next_hop(), Some("https://db:5432/a?b"));
        assert_eq!(one("gw; next-hop=https://db/").next_hop(), Some("https://db/"));
        assert_eq!(one("gw; next-hop=5").next_hop(), None);
    }

    #[test]
    fn a_protocol_may_come_as_bytes() {
        assert_eq!(one("gw; next-protocol=:aDI=:").next_protocol(), Some(&b"h2"[..]));
        assert_eq!(one("gw; next-protocol=http/1.1").next_protocol(), Some(&b"http/1.1"[..]));
        assert_eq!(one("gw; next-protocol=\"h2\"").next_protocol(), None);
    }

    #[test]
    fn a_repeated_parameter_counts_as_it_was_last_sent() {
        assert_eq!(one("gw; error=a; error=b").error(), Some("b"));
        assert_eq!(one("gw; error=a; error=5").error(), None);
    }

    #[test]
    fn a_bad_parameter_does_not_spoil_its_member() {
        let member = one("gw; error=5; received-status=abc; details=token; next-hop=db");
        assert_eq!((member.error(), member.received_status(), member.details()), (None, None, None));
        assert_eq!(member.next_hop(), Some("db"));
    }

    #[test]
    fn the_same_proxy_twice_is_two_members() {
        let entries = read(&[b"gw; error=a, gw; error=b"]);
        let errors: Vec<_> = entries.iter().map(|member| (member.name(), member.error())).collect();
        assert_eq!(errors, [("gw", Some("a")), ("gw", Some("b"))]);
    }

    #[test]
    fn what_cannot_be_a_hop_is_skipped() {
        let entries = read(&[b"1, (a b);error=x, gw, 1.5;error=x, ?1, :YQ==:, @5, %\"a\""]);
        assert_eq!(entries.iter().map(ProxyStatusEntry::name).collect::<Vec<_>>(), ["gw"]);
    }

    #[test]
    fn a_syntax_error_means_no_members() {
        for broken in
            [&b"gw, inner; error=\"open"[..], b"gw,", b"gw; Error=a", b"gw inner", b"gw, caf\xe9", b"\xff\xfe", b"g\tw"]
        {
            assert_eq!(read(&[b"fine; error=a", broken]), [], "{broken:?}");
        }
    }

    #[test]
    fn nothing_is_read_from_nothing() {
        assert_eq!(read(&[]), []);
        assert_eq!(read(&[b""]), []);
    }

    #[test]
    fn a_field_of_a_megabyte_is_not_read() {
        let long = "a, ".repeat(400_000) + "a";
        assert_eq!(read(&[long.as_bytes()]), []);
        assert_eq!(read(&[&[b'a'; 1_000][..]; 20]), []);
        assert_eq!(read(&[&[b'a'; 1_000][..]; 16]).len(), 16);
    }
}
