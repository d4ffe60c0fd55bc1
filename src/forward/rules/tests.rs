use bytes::Bytes;
use http::{Uri, Version};
use proptest::prelude::*;

use super::*;
use crate::forward::Scheme;
use crate::forward::forwarded::tests::is_valid_forwarded;
use crate::forward::tests::{head, lines};

fn rules() -> ForwardingRules {
    ForwardingRules::new("edge-1").unwrap()
}

fn pass(rules: &ForwardingRules, parts: &mut request::Parts) -> Result<ForwardedRequest, Rejection> {
    let caller = ClientInfo::new(Some("192.0.2.60".parse().unwrap()), Scheme::Http);
    rules.request(parts, &caller, &HeaderValue::from_static("10.0.0.7:8080"))
}

fn status(result: Result<ForwardedRequest, Rejection>) -> u16 {
    match result {
        Err(Rejection::Respond(answer)) => answer.status().as_u16(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_ordinary_request_is_forwarded_with_four_more_fields() {
    let mut parts = head("GET", "/a?b", &[("host", "example.com"), ("connection", "keep-alive"), ("accept", "*/*")]);
    let passage = pass(&rules(), &mut parts).unwrap();
    assert_eq!((passage.authority(), passage.upgrade(), passage.takes_trailers()), (Some("example.com"), None, false));
    assert_eq!(parts.uri, "/a?b");
    assert_eq!(
        lines(&parts.headers),
        [
            "accept: */*",
            "host: example.com",
            "via: 1.1 edge-1",
            "x-forwarded-for: 192.0.2.60",
            "x-forwarded-host: example.com",
            "x-forwarded-proto: http"
        ]
    );
}

#[test]
fn the_host_is_the_clients_or_by_rule_the_upstreams() {
    let mut parts = head("GET", "http://a.example/x", &[("host", "b.example")]);
    let passage = pass(&rules(), &mut parts).unwrap();
    assert_eq!(parts.headers["host"], "a.example");
    assert_eq!((passage.authority(), parts.uri), (Some("a.example"), Uri::from_static("/x")));

    let mut parts = head("GET", "/", &[("host", "b.example")]);
    let passage = pass(&rules().host(HostPolicy::Upstream), &mut parts).unwrap();
    assert_eq!(parts.headers["host"], "10.0.0.7:8080");
    assert_eq!(parts.headers["x-forwarded-host"], "b.example");
    assert_eq!(passage.authority(), Some("b.example"));

    let mut parts = head("GET", "/", &[]);
    parts.version = Version::HTTP_10;
    let passage = pass(&rules(), &mut parts).unwrap();
    assert_eq!(parts.headers["host"], "10.0.0.7:8080");
    assert_eq!(parts.headers["via"], "1.0 edge-1");
    assert!(!parts.headers.contains_key("x-forwarded-host"));
    assert_eq!(passage.authority(), None);
}

#[test]
fn a_request_over_http_2_gets_a_host_for_its_authority() {
    let mut parts = head("GET", "https://a.example/x", &[("te", "trailers")]);
    parts.version = Version::HTTP_2;
    let passage = pass(&rules(), &mut parts).unwrap();
    assert_eq!(parts.headers["host"], "a.example");
    assert_eq!(parts.headers["via"], "2 edge-1");
    assert_eq!(parts.headers["te"], "trailers");
    assert!(passage.takes_trailers());
    assert_eq!(parts.uri, "/x");
}

#[test]
fn connection_can_neither_smuggle_nor_hide_a_loop() {
    let fields = [
        ("host", "a"),
        ("content-length", "3"),
        ("connection", "close, host, content-length, x-forwarded-for, x-auth"),
        ("x-auth", "1"),
    ];
    let mut parts = head("POST", "/", &fields);
    pass(&rules(), &mut parts).unwrap();
    assert_eq!(parts.headers["host"], "a");
    assert_eq!(parts.headers["content-length"], "3");
    assert_eq!(parts.headers["x-forwarded-for"], "192.0.2.60");
    assert!(!parts.headers.contains_key("x-auth"));

    let mut parts = head("GET", "/", &[("host", "a"), ("connection", "via"), ("via", "1.1 Edge-1")]);
    assert!(matches!(pass(&rules(), &mut parts), Err(Rejection::Loop)));
}

#[test]
fn the_thirty_third_connection_option_is_refused() {
    let options = ["a"; 32].join(",,");
    let mut parts = head("GET", "/", &[("host", "a"), ("connection", &options)]);
    pass(&rules(), &mut parts).unwrap();
    let mut parts = head("GET", "/", &[("host", "a"), ("connection", &options), ("connection", "b")]);
    assert_eq!(status(pass(&rules(), &mut parts)), 400);
}

#[test]
fn via_is_appended_even_to_a_malformed_field() {
    let mut parts = head("GET", "/", &[("host", "a"), ("via", "\u{e9}(")]);
    pass(&rules(), &mut parts).unwrap();
    let via: Vec<_> = parts.headers.get_all("via").iter().map(HeaderValue::as_bytes).collect();
    assert_eq!(via, ["\u{e9}(".as_bytes(), b"1.1 edge-1"]);
}

#[test]
fn an_upgrade_and_its_101_are_forwarded() {
    let fields = [("host", "a"), ("connection", "Upgrade, x-one"), ("upgrade", "websocket"), ("te", "trailers")];
    let mut parts = head("GET", "/", &fields);
    let passage = pass(&rules(), &mut parts).unwrap();
    assert_eq!(passage.upgrade().unwrap(), "websocket");
    assert!(!passage.takes_trailers());
    assert_eq!((&parts.headers["connection"], &parts.headers["upgrade"]), (&UPGRADE, passage.upgrade().unwrap()));
    assert!(!parts.headers.contains_key("te"));

    let answered = |status: u16, asked| {
        let response = http::Response::builder().status(status).header("connection", "x-one, Upgrade");
        let response = response.header("upgrade", "websocket").header("x-one", "1").header("trailer", "x-sum");
        let (mut parts, ()) = response.body(()).unwrap().into_parts();
        rules().response(&mut parts, asked);
        lines(&parts.headers)
    };
    let kept = ["connection: upgrade", "trailer: x-sum", "upgrade: websocket"];
    assert_eq!(answered(101, passage.upgrade()), kept);
    for (status, asked) in [(101, None), (200, passage.upgrade()), (426, passage.upgrade())] {
        assert_eq!(answered(status, asked), ["trailer: x-sum"]);
    }
}

#[test]
fn trace_is_refused_unless_it_is_allowed() {
    let fields = [("host", "a"), ("cookie", "id=secret"), ("max-forwards", "0")];
    let Err(Rejection::Respond(answer)) = pass(&rules(), &mut head("TRACE", "/", &fields)) else { panic!("it passed") };
    let response = answer.into_response::<Bytes>();
    assert_eq!((response.status(), response.headers().contains_key("allow")), (StatusCode::METHOD_NOT_ALLOWED, true));
    assert!(!response.headers()["allow"].to_str().unwrap().contains("TRACE"));
    let mut parts = head("TRACE", "/", &fields[..2]);
    assert!(pass(&rules().allow_trace(), &mut parts).is_ok());
}

#[test]
fn a_request_that_does_not_go_on_is_left_as_it_was() {
    let fields = [("host", "a"), ("connection", "x-one"), ("x-one", "1"), ("max-forwards", "0")];
    for via in ["1.1 other", "1.1 edge-1"] {
        let mut parts = head("OPTIONS", "http://a/", &fields);
        parts.headers.append("via", via.parse().unwrap());
        let before = parts.clone();
        assert_eq!(status(pass(&rules(), &mut parts)), 200);
        assert_eq!((parts.headers, parts.uri), (before.headers, before.uri));
    }
}

#[test]
fn options_is_forwarded_with_a_decremented_max_forwards() {
    let mut parts = head("OPTIONS", "*", &[("host", "a"), ("max-forwards", "7")]);
    pass(&rules(), &mut parts).unwrap();
    assert_eq!(parts.headers["max-forwards"], "6");
    assert_eq!(parts.uri, "*");
    let mut parts = head("CONNECT", "a:443", &[("host", "a:443")]);
    assert_eq!(status(pass(&rules(), &mut parts)), 501);
}

#[test]
fn ten_thousand_fields_do_no_harm() {
    let mut parts = head("GET", "/", &[("host", "a")]);
    for _ in 0..10_000 {
        parts.headers.append("x-forwarded-for", HeaderValue::from_static("192.0.2.1"));
    }
    assert_eq!(status(pass(&rules(), &mut parts.clone())), 431);
    let rules = rules().max_head_size(usize::MAX);
    pass(&rules.clone().trust(Trust::Client), &mut parts.clone()).unwrap();
    pass(&rules, &mut parts).unwrap();
    assert_eq!(parts.headers.len(), 5);
    for number in 0..10_000 {
        parts.headers.append(HeaderName::try_from(format!("x-{number}")).unwrap(), HeaderValue::from_static("1"));
    }
    assert_eq!(status(pass(&rules, &mut parts)), 431);
    let (mut response, ()) = http::Response::new(()).into_parts();
    response.headers = parts.headers;
    rules.response(&mut response, None);
}

/// Names that `HeaderMap`'s first hash, FNV-1a cut to 15 bits, cannot tell apart.
fn colliding_names() -> Vec<String> {
    let step = |state: u32, byte: u8| ((state ^ u32::from(byte)) * 0x1b3) & 0x7fff;
    let letters = b'a'..=b'z';
    let triples =
        || letters.clone().flat_map(|a| (b'a'..=b'z').flat_map(move |b| (b'a'..=b'z').map(move |c| [a, b, c])));
    // `HeaderName` hashes a custom name after the number of its variant, which has eight bytes
    let mut state = [1, 0, 0, 0, 0, 0, 0, 0].into_iter().fold(0x2325, step);
    let mut names = vec![String::new()];
    while names.len() < MAX_FIELDS {
        let mut seen = std::collections::HashMap::new();
        let (next, one, other) = triples()
            .find_map(|triple| {
                let next = triple.into_iter().fold(state, step);
                seen.insert(next, triple).map(|earlier| (next, earlier, triple))
            })
            .unwrap();
        let longer = |triple: [u8; 3]| {
            let triple = String::from_utf8(triple.to_vec()).unwrap();
            names.iter().map(move |name| format!("{name}{triple}")).collect::<Vec<_>>()
        };
        names = [longer(one), longer(other)].concat();
        state = next;
    }
    names
}

#[test]
fn a_full_head_of_colliding_names_still_takes_our_fields() {
    let mut parts = head("GET", "/", &[("host", "a")]);
    for name in colliding_names().into_iter().skip(1) {
        parts.headers.append(HeaderName::try_from(name).unwrap(), HeaderValue::from_static("1"));
    }
    assert_eq!(parts.headers.keys_len(), MAX_FIELDS);
    let rules = rules().fields(ForwardedFields::Both).max_head_size(usize::MAX);
    pass(&rules, &mut parts).unwrap();
    assert_eq!(parts.headers.keys_len(), MAX_FIELDS + 5);
}

#[test]
fn a_head_that_is_too_large_is_refused_for_its_target_or_its_fields() {
    let rules = rules().max_head_size(1000);
    let passed = |path: usize, field: usize| {
        let mut parts = head("GET", &format!("/{}", "p".repeat(path)), &[("host", "a"), ("x-a", &"f".repeat(field))]);
        rules.request(&mut parts, &ClientInfo::unknown(), &HeaderValue::from_static("b")).map(|_| ())
    };
    // the fields' names, the host and 32 for each field come to 72
    assert!(passed(9, 918).is_ok());
    for (path, field, refusal) in [(9, 919, 431), (927, 1, 431), (1000, 1, 414)] {
        let Err(Rejection::Respond(answer)) = passed(path, field) else { panic!("{path} and {field} go on") };
        assert_eq!(answer.status(), refusal);
    }
    let mut parts = head("GET", "/", &[("host", "a"), ("x-a", &"f".repeat(60 << 10))]);
    assert_eq!(status(pass(&self::rules(), &mut parts)), 431);
}

#[test]
fn an_expectation_is_met_here_or_refused() {
    for expectation in ["100-continue", "100-Continue", "", "100-continue, 100-continue"] {
        let mut parts = head("POST", "/", &[("host", "a"), ("content-length", "3"), ("expect", expectation)]);
        pass(&rules(), &mut parts).unwrap();
        assert!(!parts.headers.contains_key("expect"), "{expectation:?}");
    }
    for expectation in ["y 100-continue", "100-continue=1", "200-ok", "100-continue, x"] {
        let mut parts = head("POST", "/", &[("host", "a"), ("expect", expectation)]);
        assert_eq!(status(pass(&rules(), &mut parts)), 417, "{expectation}");
    }
}

#[test]
fn a_name_is_checked_and_returned() {
    assert_eq!(rules().name(), "edge-1");
    assert!(ForwardingRules::new("edge 1").unwrap_err().to_string().starts_with("the name is no token"));
}

const NAMES: [&str; 20] = [
    "host",
    "connection",
    "te",
    "upgrade",
    "via",
    "max-forwards",
    "forwarded",
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-forwarded-host",
    "x_forwarded_for",
    "x-real-ip",
    "content-length",
    "transfer-encoding",
    "keep-alive",
    "proxy-connection",
    "proxy-authorization",
    "x-one",
    "x-two",
    "cookie",
];

const HOP_BY_HOP: [&str; 6] =
    ["keep-alive", "proxy-connection", "proxy-authenticate", "proxy-authorization", "transfer-encoding", "x-one"];

fn value() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        proptest::collection::vec(prop_oneof![Just(b'\t'), 0x20..=0x7eu8, 0x80..=0xffu8], 0..40),
        r#"(a|\[::1\]|1\.1 |edge-1|x-one|trailers|upgrade|websocket|for=|"|\(|\)|,|;|\\|[0-9]| ){0,12}"#
            .prop_map(Vec::from),
    ]
}

prop_compose! {
    fn any_head()(
        method in prop::sample::select(vec!["GET", "POST", "OPTIONS", "TRACE", "CONNECT"]),
        target in prop::sample::select(vec!["/", "/a?b", "*", "a:1", "http://a/", "https://u@a", "http://a?b"]),
        version in prop::sample::select(vec![Version::HTTP_10, Version::HTTP_11, Version::HTTP_2, Version::HTTP_3]),
        host in prop::option::weighted(0.9, Just("a.example")),
        fields in proptest::collection::vec((prop::sample::select(NAMES.to_vec()), value()), 0..12),
    ) -> request::Parts {
        let mut parts = head(method, target, &[]);
        parts.version = version;
        let fields = fields.iter().map(|(name, value)| (*name, value.as_slice()));
        for (name, value) in host.iter().map(|host| ("host", host.as_bytes())).chain(fields) {
            parts.headers.append(name, HeaderValue::from_bytes(value).unwrap());
        }
        parts
    }
}

fn any_rules() -> impl Strategy<Value = ForwardingRules> {
    let trust = prop::sample::select(vec![Trust::None, Trust::Client]);
    let host = prop::sample::select(vec![HostPolicy::Preserve, HostPolicy::Upstream]);
    let fields = prop::sample::select(vec![
        ForwardedFields::XForwarded,
        ForwardedFields::Forwarded,
        ForwardedFields::Both,
        ForwardedFields::None,
    ]);
    (trust, host, fields).prop_map(|(trust, host, fields)| rules().trust(trust).host(host).fields(fields).allow_trace())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_head_is_rejected_or_becomes_one_that_can_be_sent(rules in any_rules(), received in any_head()) {
        let mut parts = received.clone();
        let passage = match pass(&rules, &mut parts) {
            Ok(passage) => passage,
            Err(rejection) => {
                prop_assert_eq!(&parts.headers, &received.headers);
                prop_assert_eq!(&parts.uri, &received.uri);
                if let Rejection::Respond(answer) = rejection {
                    answer.into_response::<Bytes>();
                }
                return Ok(());
            }
        };
        let headers = &parts.headers;
        let named: Vec<&[u8]> = received.headers.get_all("connection").iter().flat_map(syntax::list).collect();
        let is_named = |name: &str| named.iter().any(|option| option.eq_ignore_ascii_case(name.as_bytes()));
        for name in HOP_BY_HOP {
            prop_assert!(!headers.contains_key(name) || name == "x-one" && !is_named(name), "{}", name);
        }
        prop_assert!(headers.get_all("te").iter().all(|te| te == "trailers"));
        prop_assert_eq!(headers.contains_key("te"), passage.takes_trailers());
        prop_assert_eq!(headers.get("upgrade"), passage.upgrade());
        prop_assert_eq!(headers.get("connection"), passage.upgrade().map(|_| &UPGRADE));
        prop_assert!(!headers.contains_key("x_forwarded_for"));
        prop_assert!(parts.uri.authority().is_none() && parts.uri.scheme().is_none());
        prop_assert!(parts.uri.path().starts_with('/') || parts.method == Method::OPTIONS && parts.uri == "*");

        let hosts: Vec<_> = headers.get_all("host").iter().collect();
        prop_assert_eq!(hosts.len(), 1);
        prop_assert!(host::split(hosts[0].as_bytes()).is_some());
        let via = headers.get_all("via").iter().next_back().unwrap().to_str().unwrap();
        prop_assert!(["1.0 edge-1", "1.1 edge-1", "2 edge-1", "3 edge-1"].contains(&via));
        for forwarded in headers.get_all("forwarded") {
            prop_assert!(is_valid_forwarded(forwarded.as_bytes()));
        }
        if rules.forwarded.trust == Trust::None {
            prop_assert!(headers.get_all("x-forwarded-for").iter().all(|value| value == "192.0.2.60"));
            prop_assert!(!headers.contains_key("x-real-ip"));
        }
        let counts_forwards = parts.method == Method::OPTIONS || parts.method == Method::TRACE;
        let again = pass(&rules, &mut parts);
        prop_assert!(matches!(again, Err(Rejection::Loop)) || counts_forwards && again.is_err());
    }

    #[test]
    fn no_response_head_keeps_hop_by_hop_fields(
        received in any_head(),
        status in prop::sample::select(vec![101, 200, 407]),
    ) {
        let (mut parts, ()) = http::Response::builder().status(status).body(()).unwrap().into_parts();
        parts.headers = received.headers;
        let asked = HeaderValue::from_static("websocket");
        rules().response(&mut parts, Some(&asked));
        for name in HOP_BY_HOP.iter().filter(|name| **name != "x-one").chain(&["te"]) {
            prop_assert!(!parts.headers.contains_key(*name));
        }
        prop_assert!(status == 101 || !parts.headers.contains_key("upgrade"));
    }
}
