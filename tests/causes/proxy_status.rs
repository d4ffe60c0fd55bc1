//! `Proxy-Status` as another implementation of structured fields (RFC 9651), `sfv`, sees it.
//!
//! The parser itself is private; its tests against the httpwg's vectors and against `sfv` stand
//! beside it, in `src/cause/structured/`.

use std::net::SocketAddr;

use http::{HeaderMap, HeaderValue, StatusCode};
use proptest::prelude::*;
use sfv::{BareItem, ListEntry, Parser};
use tower_upstream::cause::{self, Detail, ProxyStatus, ProxyStatusEntry};
use tower_upstream::{BadGatewayCause, Failure};

fn only_item(headers: &HeaderMap) -> sfv::Item {
    let entries: sfv::List = Parser::new(&headers["proxy-status"]).parse().expect("what is written is a List");
    match <[_; 1]>::try_from(entries) {
        Ok([ListEntry::Item(item)]) => item,
        other => panic!("one item was written: {other:?}"),
    }
}

fn text(bare: &BareItem) -> Option<&str> {
    match bare {
        BareItem::Token(token) => Some(token.as_str()),
        BareItem::String(text) => Some(text.as_str()),
        _ => None,
    }
}

fn detail() -> impl Strategy<Value = Option<Detail>> {
    prop_oneof![
        Just(None),
        any::<i32>().prop_map(|errno| Some(Detail::Errno(errno))),
        any::<u8>().prop_map(|alert| Some(Detail::TlsAlert(alert))),
        (100..1_000_u16).prop_map(|status| Some(Detail::Status(StatusCode::from_u16(status).expect("three digits")))),
    ]
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof!["[a-zA-Z*][a-zA-Z0-9.:/-]{0,12}", "[ -~]{1,16}", r#"["\\]{1,6}"#]
}

/// A line that is often a List, with the keys that are looked at.
fn line() -> impl Strategy<Value = String> {
    let value = prop_oneof![
        "[a-z*][a-z0-9_:/]{0,8}",
        r#""([ !#-\[\]-~]|\\["\\]){0,8}""#,
        "\"[a-z_]{0,8}\"",
        "-?[0-9]{1,4}",
        r"[0-9]{1,3}\.[0-9]{1,3}",
        ":([a-zA-Z0-9+/]{4}){0,2}:",
        r"\?[01]",
        "@[0-9]{1,5}",
        "%\"[ a-z]{0,5}\"",
    ];
    let key = prop::sample::select(vec!["error", "received-status", "next-hop", "next-protocol", "details", "else"]);
    let parameter = (key, value.clone()).prop_map(|(key, value)| format!("; {key}={value}"));
    let member = (value.clone(), prop::collection::vec(parameter, 0..6))
        .prop_map(|(value, parameters)| value + &parameters.concat());
    prop_oneof![9 => prop::collection::vec(member, 1..4).prop_map(|members| members.join(", ")), 1 => "[a-z;=,()\" ]{0,9}"]
}

/// The members that RFC 9209 section 2 knows in a List that `sfv` has read.
fn expected(entries: &[ListEntry]) -> Vec<Expected> {
    let read = |entry: &ListEntry| {
        let ListEntry::Item(item) = entry else { return None };
        let parameter = |key| item.params.get(key);
        Some(Expected {
            name: text(&item.bare_item)?.into(),
            error: parameter("error")
                .and_then(text)
                .filter(|error| sfv::TokenRef::from_str(error).is_ok())
                .map(Into::into),
            received_status: parameter("received-status")
                .and_then(BareItem::as_integer)
                .map(i64::from)
                .filter(|status| (100..1_000).contains(status)),
            next_hop: parameter("next-hop").and_then(text).map(Into::into),
            next_protocol: match parameter("next-protocol") {
                Some(BareItem::Token(token)) => Some(token.as_str().into()),
                Some(BareItem::ByteSequence(bytes)) => Some(bytes.clone()),
                _ => None,
            },
            details: parameter("details").and_then(BareItem::as_string).map(|details| details.as_str().into()),
        })
    };
    entries.iter().filter_map(read).collect()
}

#[derive(Debug, PartialEq)]
struct Expected {
    name: String,
    error: Option<String>,
    received_status: Option<i64>,
    next_hop: Option<String>,
    next_protocol: Option<Vec<u8>>,
    details: Option<String>,
}

impl From<&ProxyStatusEntry> for Expected {
    fn from(member: &ProxyStatusEntry) -> Self {
        Self {
            name: member.name().into(),
            error: member.error().map(Into::into),
            received_status: member.received_status().map(Into::into),
            next_hop: member.next_hop().map(Into::into),
            next_protocol: member.next_protocol().map(Into::into),
            details: member.details().map(Into::into),
        }
    }
}

proptest! {
    #[test]
    fn what_is_written_is_what_another_implementation_reads(
        name in name(),
        cause in prop::sample::select(BadGatewayCause::ALL),
        detail in detail(),
        peer in any::<Option<SocketAddr>>(),
        upstream in prop_oneof!["[ -~]{0,12}", any::<String>()],
    ) {
        let failure = Failure::builder(cause).detail(detail).peer(peer).upstream(upstream.clone()).build();
        let status = ProxyStatus::new(&name).unwrap().next_hop().details();
        let mut headers = HeaderMap::new();
        status.append_failure(&mut headers, &failure);

        let item = only_item(&headers);
        let parameter = |key| item.params.get(key);
        prop_assert_eq!(text(&item.bare_item), Some(&name[..]));
        prop_assert_eq!(item.bare_item.as_token().is_some(), sfv::TokenRef::from_str(&name).is_ok());
        prop_assert_eq!(parameter("error").and_then(BareItem::as_token).map(sfv::TokenRef::as_str), cause.proxy_status_error());
        prop_assert_eq!(parameter("details").and_then(BareItem::as_string).map(sfv::StringRef::as_str), Some(cause.as_str()));

        let hop = peer.map_or(upstream, |peer| peer.to_string());
        let hop = sfv::StringRef::from_str(&hop).ok();
        prop_assert_eq!(parameter("next-hop").and_then(BareItem::as_string), hop);

        let received = match detail {
            Some(Detail::Status(status)) => Some(BareItem::from(status.as_u16())),
            _ => None,
        };
        prop_assert_eq!(parameter("received-status"), received.as_ref());
        let alert = match detail {
            Some(Detail::TlsAlert(alert)) if cause == BadGatewayCause::TlsAlert => Some(BareItem::from(alert)),
            _ => None,
        };
        prop_assert_eq!(parameter("alert-id"), alert.as_ref());

        let read = cause::entries(&headers);
        let entries = [ListEntry::Item(item)];
        prop_assert_eq!(read.iter().map(Expected::from).collect::<Vec<_>>(), expected(&entries));
    }

    #[test]
    fn members_are_read_as_another_implementation_reads_them(lines in prop::collection::vec(line(), 0..4)) {
        let mut headers = HeaderMap::new();
        for line in &lines {
            headers.append("proxy-status", HeaderValue::from_str(line).unwrap());
        }
        let entries: Option<sfv::List> = Parser::new(&lines.join(", ")).parse().ok();
        let read = cause::entries(&headers);
        prop_assert_eq!(read.iter().map(Expected::from).collect::<Vec<_>>(), expected(&entries.unwrap_or_default()));
    }

    #[test]
    fn a_member_of_ours_is_the_last_one_read(lines in prop::collection::vec(line(), 0..4), name in name()) {
        let mut headers = HeaderMap::new();
        for line in &lines {
            headers.append("proxy-status", HeaderValue::from_str(line).unwrap());
        }
        let before = cause::entries(&headers);
        ProxyStatus::new(&name).unwrap().append_received(&mut headers, StatusCode::IM_A_TEAPOT);
        let after = cause::entries(&headers);
        // A line of others that breaks the syntax hides ours too.
        if let Some((ours, others)) = after.split_last() {
            prop_assert_eq!(others, &before[..]);
            prop_assert_eq!((ours.name(), ours.received_status()), (&name[..], Some(418)));
        } else {
            prop_assert!(Parser::new(&lines.join(", ")).parse::<sfv::List>().is_err() || lines.iter().any(|line| line.trim().is_empty()));
        }
    }
}
