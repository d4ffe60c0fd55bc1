//! Any head: the rules neither panic nor let a hop-by-hop field through.
//!
//! The first bytes choose rules, method, version and target; the rest are field lines, `name: value`, one a line.
#![no_main]

use std::net::{IpAddr, Ipv4Addr};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, Response, StatusCode, Uri, Version};
use libfuzzer_sys::fuzz_target;
use tower_upstream::forward::{ClientInfo, ForwardedFields, ForwardingRules, HostPolicy, Rejection, Scheme, Trust};

const METHODS: [&str; 4] = ["GET", "OPTIONS", "TRACE", "CONNECT"];
const VERSIONS: [Version; 4] = [Version::HTTP_10, Version::HTTP_11, Version::HTTP_2, Version::HTTP_3];
const FIELDS: [ForwardedFields; 4] =
    [ForwardedFields::XForwarded, ForwardedFields::Forwarded, ForwardedFields::Both, ForwardedFields::None];
const HOP_BY_HOP: [&str; 5] =
    ["keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "transfer-encoding"];

fuzz_target!(|data: &[u8]| {
    let [choice, exchange, rest @ ..] = data else { return };
    let mut lines = rest.split(|&byte| byte == b'\n');

    let trust = if choice & 1 == 0 { Trust::None } else { Trust::Client };
    let host = if choice & 2 == 0 { HostPolicy::Preserve } else { HostPolicy::Upstream };
    let fields = FIELDS[usize::from(choice >> 2 & 3)];
    let rules = ForwardingRules::new("edge-1").unwrap().trust(trust).host(host).fields(fields);
    let caller = match choice >> 4 & 1 {
        0 => ClientInfo::unknown(),
        _ => ClientInfo::new(Some(IpAddr::V4(Ipv4Addr::LOCALHOST)), Scheme::Https),
    };

    let (mut parts, ()) = Request::new(()).into_parts();
    parts.method = METHODS[usize::from(exchange & 3)].parse().unwrap();
    parts.version = VERSIONS[usize::from(exchange >> 2 & 3)];
    let Some(Ok(uri)) = lines.next().map(Uri::try_from) else { return };
    parts.uri = uri;
    for line in lines.take(10_000) {
        let colon = line.iter().position(|&byte| byte == b':').unwrap_or(line.len());
        let value = line.get(colon + 1..).unwrap_or_default().trim_ascii();
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(&line[..colon]), HeaderValue::from_bytes(value)) {
            if parts.headers.try_append(name, value).is_err() {
                return;
            }
        }
    }

    let (mut answer, ()) = Response::new(()).into_parts();
    answer.headers = parts.headers.clone();
    answer.status = if exchange & 16 == 0 { StatusCode::OK } else { StatusCode::SWITCHING_PROTOCOLS };

    let asked = match rules.request(&mut parts, &caller, &HeaderValue::from_static("10.0.0.7:8080")) {
        Ok(passage) => {
            assert!(HOP_BY_HOP.iter().all(|name| !parts.headers.contains_key(*name)));
            assert_eq!(parts.headers.get_all("host").iter().count(), 1);
            assert!(parts.uri.authority().is_none());
            let asked = passage.upgrade().cloned();
            let again = rules.request(&mut parts, &caller, &HeaderValue::from_static("10.0.0.7:8080"));
            // Max-Forwards may have come down to 0.
            assert!(matches!(again, Err(Rejection::Loop)) || exchange & 3 != 0 && again.is_err());
            asked
        }
        Err(Rejection::Respond(refusal)) => {
            refusal.into_response::<Bytes>();
            None
        }
        Err(_) => None,
    };
    rules.response(&mut answer, asked.as_ref());
    assert!(HOP_BY_HOP.iter().all(|name| !answer.headers.contains_key(*name)));
});
