//! What one protocol allows and the other's codec refuses is corrected, dropped or rejected by the gateway, and is no
//! failure of the upstream.

use std::convert::Infallible;
use std::fmt::Write;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, Uri, Version};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tower::{Layer, ServiceExt, service_fn};
use tower_upstream::body::ResponseBody;
use tower_upstream::client::HttpVersion;
use tower_upstream::timeout::Timeouts;
use tower_upstream::{BadGatewayCause as Cause, ClassifyLayer};

use crate::support::{self, Gateway, Message, Upstream, Wire, ask, proxy, soon};

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    H1,
    H2,
}

use Protocol::{H1, H2};

const BOTH: [Protocol; 2] = [H1, H2];

impl Protocol {
    fn http(self) -> HttpVersion {
        if self == H1 { HttpVersion::Auto } else { HttpVersion::H2 }
    }
}

type Fields<'a> = &'a [(&'a str, &'a str)];

/// A message to send, from either side.
#[derive(Clone, Copy, Debug, Default)]
struct Sent<'a> {
    /// Method and target, or a status.
    first: &'a str,
    fields: Fields<'a>,
    body: Option<&'a str>,
    trailers: Fields<'a>,
}

impl Sent<'_> {
    /// The message by HTTP/1.1: a request with `Host: a` unless it has another, its body in one chunk unless its fields say
    /// otherwise.
    fn h1(&self, first: &str) -> String {
        let is_framed = |(name, _): &(&str, &str)| matches!(*name, "content-length" | "transfer-encoding");
        let mut message = format!("{first}\r\n");
        if !first.starts_with("HTTP/") && !self.fields.iter().any(|(name, _)| *name == "host") {
            message += "host: a\r\n";
        }
        for (name, value) in self.fields {
            writeln!(message, "{name}: {value}\r").unwrap();
        }
        if self.body.is_some() && !self.fields.iter().any(is_framed) {
            message += "transfer-encoding: chunked\r\n";
        }
        let is_chunked = message.contains("transfer-encoding");
        message += "\r\n";
        match self.body {
            Some(body) if is_chunked => {
                if !body.is_empty() {
                    writeln!(message, "{:x}\r\n{body}\r", body.len()).unwrap();
                }
                message += "0\r\n";
                for (name, value) in self.trailers {
                    writeln!(message, "{name}: {value}\r").unwrap();
                }
                message += "\r\n";
            }
            body => message += body.unwrap_or_default(),
        }
        message
    }

    fn map(fields: Fields<'_>) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in fields {
            map.append(HeaderName::try_from(*name).unwrap(), HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        map
    }

    /// Sends body and trailers on an HTTP/2 stream whose head was sent.
    fn finish_h2(&self, mut stream: h2::SendStream<Bytes>) {
        let Some(body) = self.body else { return };
        let body = Bytes::copy_from_slice(body.as_bytes());
        // a stream that was reset meanwhile takes no more
        let _ = stream.send_data(body, self.trailers.is_empty());
        if !self.trailers.is_empty() && stream.send_trailers(Self::map(self.trailers)).is_err() {
            // the client of these tests refuses some by itself
            let _ = stream.send_data(Bytes::new(), true);
        }
    }

    fn ends_with_head(&self) -> bool {
        self.body.is_none()
    }
}

fn fields(map: &HeaderMap) -> Vec<(String, String)> {
    map.iter().map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned())).collect()
}

/// Reads a body of HTTP/2 to its end.
async fn read(first: String, head: &HeaderMap, mut body: h2::RecvStream) -> Message {
    let mut message = Message { first, fields: fields(head), ..Message::default() };
    while let Some(data) = body.data().await {
        let Ok(data) = data else { return message };
        let _ = body.flow_control().release_capacity(data.len());
        message.body.extend_from_slice(&data);
    }
    let Ok(trailers) = body.trailers().await else { return message };
    message.trailers = trailers.as_ref().map(fields).unwrap_or_default();
    message.whole = body.is_end_stream();
    message
}

/// Sends a request to the gateway; without a response the status is 0.
async fn request(to: SocketAddr, protocol: Protocol, sent: Sent<'_>) -> Message {
    let (method, target) = sent.first.split_once(' ').unwrap();
    if protocol == H1 {
        let mut wire = Wire::connect(to).await;
        let _ = wire.try_write(sent.h1(&format!("{} HTTP/1.1", sent.first))).await;
        return if method == "HEAD" { wire.head().await } else { wire.answer().await };
    }
    let socket = TcpStream::connect(to).await.unwrap();
    let (client, connection) =
        h2::client::Builder::new().max_header_list_size(1 << 20).handshake(socket).await.unwrap();
    let connection = tokio::spawn(connection);
    let mut client: h2::client::SendRequest<Bytes> = client.ready().await.unwrap();
    let head = request_head(method, target, sent.fields);
    let (answer, stream) = client.send_request(head, sent.ends_with_head()).unwrap();
    sent.finish_h2(stream);
    let message = match soon(answer).await {
        Ok(answer) => {
            let (head, body) = answer.into_parts();
            soon(read(format!("HTTP/2 {}", head.status.as_u16()), &head.headers, body)).await
        }
        Err(_) => Message::default(),
    };
    connection.abort();
    message
}

/// A head with `:authority`, or with a `host` field alone.
fn request_head(method: &str, target: &str, fields: Fields<'_>) -> Request<()> {
    let mut head = Request::builder().method(method).body(()).unwrap();
    *head.headers_mut() = Sent::map(fields);
    if fields.iter().any(|(name, _)| *name == "host") {
        // h2 takes an origin-form only of what came by HTTP/1.1
        *head.uri_mut() = target.parse().unwrap();
    } else {
        *head.version_mut() = Version::HTTP_2;
        *head.uri_mut() = Uri::builder().scheme("http").authority("a").path_and_query(target).build().unwrap();
    }
    head
}

/// An upstream that records each request, and sends the same response to all of them.
async fn upstream(protocol: Protocol, answer: impl Fn() -> Sent<'static> + Clone + Send + 'static) -> (Upstream, Seen) {
    let seen = Seen::default();
    let notes = seen.clone();
    let upstream = Upstream::accepting(move |socket, _| {
        let (notes, answer) = (notes.clone(), answer.clone());
        async move {
            match protocol {
                H1 => {
                    let mut wire = Wire::new(socket);
                    while let Some(request) = wire.request().await {
                        let is_head = request.first.starts_with("HEAD");
                        notes.0.lock().unwrap().push(request);
                        let answer = answer();
                        let answer = if is_head { Sent { body: Some(""), ..answer } } else { answer };
                        let bytes = answer.h1(&format!("HTTP/1.1 {} -", answer.first));
                        let bytes = if is_head {
                            bytes.split_once("\r\n\r\n").unwrap().0.to_owned() + "\r\n\r\n"
                        } else {
                            bytes
                        };
                        wire.write(bytes).await;
                    }
                }
                H2 => h2_server(socket, &notes, answer()).await,
            }
        }
    })
    .await;
    (upstream, seen)
}

async fn h2_server(socket: TcpStream, notes: &Seen, answer: Sent<'static>) {
    let mut server = h2::server::handshake(socket).await.unwrap();
    while let Some(Ok((request, mut respond))) = server.accept().await {
        let notes = notes.clone();
        tokio::spawn(async move {
            let (head, body) = request.into_parts();
            let authority = head.uri.authority().map(|authority| ("host".to_owned(), authority.to_string()));
            let first = format!("{} {}", head.method, head.uri.path_and_query().unwrap());
            let mut message = read(first, &head.headers, body).await;
            message.fields.extend(authority);
            // a response to HEAD has no body
            let answer = if head.method == "HEAD" { Sent { body: None, ..answer } } else { answer };
            notes.0.lock().unwrap().push(message);
            let mut response = Response::builder().status(answer.first).body(()).unwrap();
            *response.headers_mut() = Sent::map(answer.fields);
            if let Ok(stream) = respond.send_response(response, answer.ends_with_head()) {
                answer.finish_h2(stream);
            }
        });
    }
}

/// The requests that reached an upstream.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Vec<Message>>>);

impl Seen {
    fn take(&self) -> Vec<Message> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

fn ok() -> Sent<'static> {
    Sent { first: "200", fields: &[("content-length", "2")], body: Some("ok"), trailers: &[] }
}

/// Failures that a breaker would count against the upstream.
fn blamed(causes: &[Cause]) -> bool {
    causes.iter().any(|cause| cause.is_upstream_failure())
}

/// What happens to a request or a response.
#[derive(Clone, Copy, Debug)]
enum Expected {
    /// It arrives with this body, these fields or trailers, and none of these names.
    Arrives(&'static str, Fields<'static>, &'static [&'static str]),
    /// The gateway responds with this status instead.
    Answered(u16),
}

use Expected::{Answered, Arrives};

/// A row of a table: what is sent by either protocol, and what arrives by either.
struct Row {
    sent: Sent<'static>,
    by: &'static [Protocol],
    expected: Expected,
}

impl Row {
    fn check(&self, what: &str, message: &Message) {
        let Arrives(body, has, lacks) = self.expected else { panic!("{what}: it was to be refused: {message:?}") };
        assert!(message.whole, "{what}: {message:?}");
        assert_eq!(message.text(), body, "{what}: {message:?}");
        let all = || message.fields.iter().chain(&message.trailers);
        for (name, value) in has {
            let values: Vec<_> = all().filter(|field| field.0 == *name).map(|field| field.1.as_str()).collect();
            assert_eq!(values, [*value], "{what}: {name} in {message:?}");
        }
        for name in lacks {
            assert!(!all().any(|field| field.0 == *name), "{what}: {name} in {message:?}");
        }
    }
}

fn row(
    by: &'static [Protocol],
    first: &'static str,
    fields: Fields<'static>,
    body: Option<&'static str>,
    trailers: Fields<'static>,
    expected: Expected,
) -> Row {
    Row { sent: Sent { first, fields, body, trailers }, by, expected }
}

const ONLY_H1: &[Protocol] = &[H1];
const ONLY_H2: &[Protocol] = &[H2];

/// Sends each row by its protocols to upstreams of both, and an ordinary request after it.
async fn requests(rows: Vec<Row>) {
    for row in rows {
        for (client, to) in row.by.iter().flat_map(|client| BOTH.map(|to| (*client, to))) {
            let what = format!("{client:?} to {to:?}, {:?}", row.sent);
            let (upstream, seen) = upstream(to, ok).await;
            let gateway = Gateway::start(proxy(upstream.address).http(to.http())).await;
            for _ in 0..2 {
                let answer = request(gateway.address, client, row.sent).await;
                match row.expected {
                    Answered(status) => {
                        assert_eq!(answer.status(), status, "{what}");
                        assert!(seen.take().is_empty(), "{what}: it was sent");
                    }
                    Arrives(..) => {
                        assert_eq!(answer.status(), 200, "{what}: {answer:?} {:?}", gateway.seen.causes());
                        let arrived = seen.take();
                        assert_eq!(arrived.len(), 1, "{what}");
                        row.check(&what, &arrived[0]);
                    }
                }
            }
            assert_eq!(ask(gateway.address, GET).await.status(), 200, "{what}");
            assert_eq!(gateway.seen.causes(), [], "{what}");
            if to == H2 {
                assert_eq!(upstream.accepted(), 1, "{what}: the shared connection was lost");
            }
        }
    }
}

/// Leaks the parts of a row, which live as long as the test.
fn kept<T>(values: Vec<T>) -> &'static [T] {
    values.leak()
}

#[tokio::test]
async fn a_trailer_that_http2_forbids_is_dropped_and_no_failure_of_the_upstream() {
    const SUM: (&str, &str) = ("x-sum", "1");
    const HEAD: Fields<'static> = &[("trailer", "x-sum")];
    const LACKS: &[&str] =
        &["connection", "keep-alive", "upgrade", "proxy-connection", "te", "x-named", "authorization"];
    let mut rows = Vec::new();
    for forbidden in [
        ("connection", "close"),
        ("connection", "x-named"),
        ("transfer-encoding", "chunked"),
        ("keep-alive", "timeout=5"),
        ("upgrade", "websocket"),
        ("proxy-connection", "close"),
        ("te", "gzip"),
        ("content-length", "99"),
        ("host", "b"),
        ("x-forwarded-for", "127.0.0.1"),
        ("x_forwarded_for", "127.0.0.1"),
        ("authorization", "Basic eA=="),
    ] {
        let trailers = kept(vec![forbidden, ("x-named", "1"), SUM]);
        let trailers = if forbidden.1 == "x-named" { trailers } else { kept(vec![forbidden, SUM]) };
        let expected = Arrives("body", &[SUM, ("host", "a")], LACKS);
        rows.push(row(ONLY_H1, "POST /", HEAD, Some("body"), trailers, expected));
        rows.push(row(ONLY_H1, "POST /", HEAD, Some("body"), kept(vec![forbidden]), Arrives("body", &[], LACKS)));
    }
    // the others are refused by the HTTP/2 client of this test
    for forbidden in [("x-forwarded-for", "127.0.0.1"), ("host", "b"), ("content-length", "99")] {
        let expected = Arrives("body", &[SUM, ("host", "a")], &["content-length"]);
        rows.push(row(ONLY_H2, "POST /", HEAD, Some("body"), kept(vec![forbidden, SUM]), expected));
    }
    requests(rows).await;
}

#[tokio::test]
async fn a_trailer_section_that_could_end_the_connection_is_dropped() {
    let value = &*"x".repeat(220).leak();
    let fields = |count: usize| kept((10..10 + count).map(|name| (&*format!("x-{name}").leak(), value)).collect());
    let names = |count: usize| (10..10 + count).map(|name| format!("x-{name}")).collect::<Vec<_>>().join(", ").leak();
    let head = |count| kept(vec![("trailer", &*names(count))]);
    // the limit of 16 KiB is between 63 and 65 fields, counted as HTTP/2 counts them
    let (kept, dropped) = (fields(63), fields(65));
    requests(vec![
        row(&BOTH, "POST /", head(63), Some("body"), kept, Arrives("body", kept, &[])),
        row(ONLY_H1, "POST /", head(65), Some("body"), dropped, Arrives("body", &[], &["x-10", "x-70"])),
    ])
    .await;
}

#[tokio::test]
async fn a_host_that_is_no_valid_authority_is_rejected_before_a_connection_is_taken() {
    let mut rows = Vec::new();
    // an HTTP/2 client sends it without `:authority`
    for host in ["%41", "a%41.example", "%C3%A9.example", "a%", "a@b", "a b", ""] {
        rows.push(row(&BOTH, "GET /", kept(vec![("host", host)]), None, &[], Answered(400)));
    }
    let long = &*"a".repeat(50_000).leak();
    rows.push(row(ONLY_H1, "GET /", kept(vec![("host", long)]), None, &[], Answered(400)));
    for host in ["a:", "[::1]", "[1:2:3:4:5:6:7::]:80", "a!b", "a..b", "a_b", "~", "a$b&c'd(e)f*g+h,i;j=k", "a:65535"] {
        let fields = kept(vec![("host", host)]);
        rows.push(row(&BOTH, "GET /", fields, None, &[], Arrives("", fields, &[])));
    }
    requests(rows).await;
}

#[tokio::test]
async fn an_expectation_is_not_forwarded() {
    const CONTINUE: Fields<'static> = &[("expect", "100-continue")];
    const OTHER: Fields<'static> = &[("expect", "y 100-continue"), ("content-length", "4")];
    for to in BOTH {
        let (upstream, seen) = upstream(to, ok).await;
        let gateway = Gateway::start(proxy(upstream.address).http(to.http())).await;
        let mut wire = Wire::connect(gateway.address).await;
        let head = "POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-Continue\r\nContent-Length: 4\r\n\r\n";
        assert_eq!(wire.ask(head).await.status(), 100);
        assert_eq!(wire.ask("body").await.status(), 200);
        let arrived = seen.take();
        assert_eq!((arrived[0].text(), arrived[0].get("expect")), ("body".to_owned(), None));
    }
    requests(vec![
        row(ONLY_H2, "POST /", CONTINUE, Some("body"), &[], Arrives("body", &[], &["expect"])),
        row(&BOTH, "POST /", OTHER, Some("body"), &[], Answered(417)),
    ])
    .await;
}

#[tokio::test]
async fn a_request_of_ambiguous_length_is_rejected_and_one_of_a_clear_length_is_forwarded_whole() {
    const CHUNKED: (&str, &str) = ("transfer-encoding", "chunked");
    const LENGTH: (&str, &str) = ("content-length", "4");
    let mut rows = Vec::new();
    for coding in ["gzip, chunked", "chunked, chunked", "identity, chunked"] {
        let fields = kept(vec![("transfer-encoding", coding)]);
        rows.push(row(ONLY_H1, "POST /", fields, Some("body"), &[], Answered(501)));
    }
    rows.push(row(ONLY_H1, "POST /", &[CHUNKED, CHUNKED], Some("body"), &[], Answered(501)));
    rows.push(row(&BOTH, "POST /", &[LENGTH, LENGTH], Some("body"), &[], Arrives("body", &[LENGTH], &[])));
    for method in ["GET /", "HEAD /", "DELETE /", "OPTIONS /", "POST /"] {
        rows.push(row(&BOTH, method, &[], Some("body"), &[], Arrives("body", &[], &[])));
        rows.push(row(&BOTH, method, &[], None, &[], Arrives("", &[], &["transfer-encoding"])));
        rows.push(row(&BOTH, method, &[LENGTH], Some("body"), &[], Arrives("body", &[LENGTH], &[])));
    }
    rows.push(row(&BOTH, "OPTIONS *", &[], None, &[], Arrives("", &[("host", "a")], &[])));
    for method in ["POST /", "PUT /", "PATCH /"] {
        rows.push(row(&BOTH, method, &[], None, &[], Arrives("", &[("content-length", "0")], &[])));
    }
    requests(rows).await;
}

#[tokio::test]
async fn a_head_that_is_too_large_is_rejected_by_the_gateway() {
    let large = &*"x".repeat(70_000).leak();
    let target = &*format!("GET /{}", &large[..62_000]).leak();
    // HPACK doubles these
    let rare = &*format!("GET /{}", "|".repeat(40_000)).leak();
    requests(vec![
        row(ONLY_H1, rare, &[], None, &[], Answered(431)),
        row(ONLY_H1, "GET /", kept(vec![("x-a", large)]), None, &[], Answered(431)),
        row(ONLY_H1, target, &[], None, &[], Answered(414)),
        row(&BOTH, "GET /", kept(vec![("x-a", &large[..15_000])]), None, &[], Arrives("", &[], &[])),
    ])
    .await;
}

/// Requests each row's response by both protocols, with this method, from upstreams of its protocols.
#[tokio::test]
async fn trailers_of_a_response_that_are_too_large_truncate_it_on_both_protocols() {
    let value = &*"x".repeat(220).leak();
    let fields = |count: usize| kept((10..10 + count).map(|name| (&*format!("x-{name}").leak(), value)).collect());
    for (protocol, client, count) in [(H1, H1, 66), (H1, H2, 66), (H2, H1, 65), (H2, H2, 65)] {
        let trailers = fields(count);
        let (upstream, _seen) =
            upstream(protocol, move || Sent { first: "200", body: Some("body"), trailers, ..Sent::default() }).await;
        let gateway = Gateway::start(proxy(upstream.address).http(protocol.http())).await;
        let answer = request(gateway.address, client, Sent { first: "GET /", ..Sent::default() }).await;
        assert_eq!((answer.status(), answer.whole), (200, false), "{protocol:?} to {client:?}");
        assert_eq!(gateway.seen.causes(), [Cause::TrailerTooLarge], "{protocol:?} to {client:?}");
    }
}

async fn answers(rows: Vec<(&'static str, Row)>) {
    for (method, row) in rows {
        for (from, client) in row.by.iter().flat_map(|from| BOTH.map(|client| (*from, client))) {
            let what = format!("{from:?} to {client:?}, {method}, {:.300}", format!("{:?}", row.sent));
            let sent = row.sent;
            let (upstream, _seen) = upstream(from, move || sent).await;
            let gateway = Gateway::start(proxy(upstream.address).http(from.http())).await;
            let target = &*format!("{method} /").leak();
            let te: Fields<'static> =
                if client == H1 { &[("connection", "te"), ("te", "trailers")] } else { &[("te", "trailers")] };
            for _ in 0..2 {
                let answer =
                    request(gateway.address, client, Sent { first: target, fields: te, ..Sent::default() }).await;
                let causes = gateway.seen.take();
                if let Answered(status) = row.expected {
                    assert_eq!(answer.status(), status, "{what}");
                    assert_ne!(causes, [], "{what}");
                } else {
                    assert_eq!(answer.status().to_string(), sent.first, "{what} {causes:?}");
                    row.check(&what, &answer);
                    assert_eq!(causes, [], "{what}");
                }
            }
        }
    }
}

#[tokio::test]
async fn a_repeated_length_arrives_once_and_an_invalid_one_not_at_all() {
    const ONE: Fields<'static> = &[("content-length", "3")];
    const TWICE: Fields<'static> = &[("content-length", "3"), ("content-length", "3")];
    let mut rows = Vec::new();
    for fields in [ONE, TWICE, &[("content-length", "3, 3")], &[("content-length", "3,3"), ("content-length", "3")]] {
        // h2 takes no list
        let by: &'static [Protocol] = if fields[0].1.len() > 1 { ONLY_H1 } else { &BOTH };
        rows.push(("GET", row(by, "200", fields, Some("abc"), &[], Arrives("abc", ONE, &[]))));
        rows.push(("HEAD", row(by, "200", fields, None, &[], Arrives("", ONE, &[]))));
        // hyper's HTTP/1.1 server leaves it out
        rows.push(("GET", row(by, "304", fields, None, &[], Arrives("", &[], &[]))));
    }
    for length in ["abc", "+3", "-3", "3, 4", "3 3", "18446744073709551616", ""] {
        let fields = kept(vec![("content-length", length)]);
        for (method, status) in [("GET", "200"), ("HEAD", "200"), ("GET", "304")] {
            rows.push((method, row(ONLY_H1, status, fields, None, &[], Answered(502))));
        }
    }
    let differs: Fields<'static> = &[("content-length", "3"), ("content-length", "4")];
    for (method, status) in [("HEAD", "200"), ("GET", "304")] {
        rows.push((method, row(&BOTH, status, differs, None, &[], Answered(502))));
    }
    answers(rows).await;
}

#[tokio::test]
async fn classify_alone_folds_equal_lengths() {
    for (lengths, status) in [(&["3", "3"][..], 200), (&["3, 3"], 200), (&["3", "4"], 502)] {
        let client = service_fn(|_: Request<()>| async {
            let mut response = Response::new(ResponseBody::<axum::body::Body>::from(Bytes::from_static(b"abc")));
            for length in lengths {
                response.headers_mut().append("content-length", length.parse().unwrap());
            }
            Ok::<_, Infallible>(response)
        });
        let Ok(response) = ClassifyLayer::new().layer(client).oneshot(Request::new(())).await;
        assert_eq!(response.status(), status, "{lengths:?}");
        let folded: Vec<_> = response.headers().get_all("content-length").iter().collect();
        assert_eq!(folded, if status == 200 { vec!["3"] } else { vec![] }, "{lengths:?}");
    }
}

#[tokio::test]
async fn a_response_trailer_that_http2_forbids_does_not_fail_the_response() {
    const HEAD: Fields<'static> = &[("trailer", "x-sum")];
    const SUM: (&str, &str) = ("x-sum", "1");
    const LACKS: &[&str] = &["connection", "keep-alive", "upgrade", "proxy-connection", "te", "content-length"];
    let mut rows = Vec::new();
    for forbidden in [
        ("connection", "close"),
        ("transfer-encoding", "gzip"),
        ("keep-alive", "timeout=5"),
        ("upgrade", "websocket"),
        ("proxy-connection", "close"),
        ("te", "gzip"),
        ("content-length", "99"),
    ] {
        let trailers = kept(vec![forbidden, SUM]);
        rows.push(("GET", row(ONLY_H1, "200", HEAD, Some("body"), trailers, Arrives("body", &[SUM], LACKS))));
        rows.push(("GET", row(ONLY_H1, "200", HEAD, Some("body"), kept(vec![forbidden]), Arrives("body", &[], LACKS))));
    }
    let length = kept(vec![("content-length", "99"), SUM]);
    rows.push(("GET", row(ONLY_H2, "200", HEAD, Some("body"), length, Arrives("body", &[SUM], LACKS))));
    answers(rows).await;
}

#[tokio::test]
async fn a_response_without_content_is_complete_without_reading_its_body() {
    const LENGTH: Fields<'static> = &[("content-length", "1234"), ("etag", "1")];
    const ETAG: Fields<'static> = &[("etag", "1")];
    // a body that is not `None` is an empty DATA frame with END_STREAM
    answers(vec![
        ("GET", row(ONLY_H2, "304", LENGTH, Some(""), &[], Arrives("", ETAG, &[]))),
        ("GET", row(ONLY_H2, "304", ETAG, Some(""), &[], Arrives("", ETAG, &[]))),
        ("GET", row(&BOTH, "304", LENGTH, None, &[], Arrives("", ETAG, &[]))),
        ("GET", row(ONLY_H2, "204", ETAG, Some(""), &[], Arrives("", ETAG, &[]))),
        ("GET", row(&BOTH, "204", LENGTH, None, &[], Arrives("", ETAG, &["content-length"]))),
        ("GET", row(&BOTH, "205", &[("content-length", "0")], Some(""), &[], Arrives("", &[], &[]))),
        ("HEAD", row(&BOTH, "200", LENGTH, None, &[], Arrives("", LENGTH, &[]))),
        ("HEAD", row(&BOTH, "304", LENGTH, None, &[], Arrives("", LENGTH, &[]))),
    ])
    .await;
}

#[tokio::test]
async fn a_response_head_arrives_without_what_the_other_protocol_forbids() {
    const HOP: Fields<'static> = &[
        ("connection", "x-named"),
        ("x-named", "1"),
        ("keep-alive", "timeout=5"),
        ("proxy-connection", "close"),
        ("upgrade", "h2c"),
        ("te", "trailers"),
        ("x-kept", "1"),
    ];
    const LACKS: &[&str] = &["connection", "x-named", "keep-alive", "proxy-connection", "upgrade", "te"];
    let large = &*"x".repeat(70_000).leak();
    answers(vec![
        ("GET", row(ONLY_H1, "200", HOP, Some("body"), &[], Arrives("body", &[("x-kept", "1")], LACKS))),
        // the codec of an HTTP/2 client may end its whole connection for such a head
        ("GET", row(ONLY_H1, "200", kept(vec![("x-a", large)]), Some("body"), &[], Answered(502))),
        ("GET", row(&BOTH, "200", kept(vec![("x-a", &large[..50_000])]), Some("body"), &[], Arrives("body", &[], &[]))),
        ("GET", row(ONLY_H1, "101", &[("connection", "upgrade"), ("upgrade", "x")], None, &[], Answered(502))),
    ])
    .await;
}

/// A gateway before an HTTP/2 server whose streams are left to `script`.
async fn before_h2<F>(
    script: impl Fn(Request<h2::RecvStream>, h2::server::SendResponse<Bytes>) -> F + Clone + Send + 'static,
) -> (Gateway, Upstream)
where
    F: Future<Output = ()> + Send + 'static,
{
    let upstream = Upstream::accepting(move |socket, _| {
        let script = script.clone();
        async move {
            let mut connection = h2::server::handshake(socket).await.unwrap();
            while let Some(Ok((request, respond))) = connection.accept().await {
                tokio::spawn(script(request, respond));
            }
        }
    })
    .await;
    (Gateway::start(proxy(upstream.address).http(HttpVersion::H2)).await, upstream)
}

/// When a server announces that it takes heads up to 8 KiB.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Announces {
    AtOnce,
    WithTheFirstHead,
}

/// An HTTP/2 server, frame by frame, that resets a stream whose head is too large and answers others with 204.
///
/// It counts the heads that it got.
async fn resetting(announces: Announces) -> (Upstream, Arc<AtomicUsize>) {
    const SETTINGS: [u8; 15] = [0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0x20, 0];
    let heads = Arc::new(AtomicUsize::new(0));
    let count = heads.clone();
    let upstream = Upstream::accepting(move |mut socket, _| {
        let heads = count.clone();
        async move {
            let mut begun = [0; 24];
            socket.read_exact(&mut begun).await.unwrap();
            let mut has_announced = announces == Announces::AtOnce;
            if has_announced {
                socket.write_all(&SETTINGS).await.unwrap();
            }
            let mut head = 0;
            let mut header = [0; 9];
            while socket.read_exact(&mut header).await.is_ok() {
                let [a, b, c, kind, flags, stream @ ..] = header;
                let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
                socket.read_exact(&mut payload).await.unwrap();
                // HEADERS, CONTINUATION, and the end of both
                if matches!(kind, 1 | 9) {
                    head += payload.len();
                }
                if !matches!(kind, 1 | 9) || flags & 4 == 0 {
                    continue;
                }
                heads.fetch_add(1, SeqCst);
                if !std::mem::replace(&mut has_announced, true) {
                    socket.write_all(&SETTINGS).await.unwrap();
                }
                let is_large = std::mem::take(&mut head) > 8192;
                let reset = [&[0, 0, 4, 3, 0][..], &stream, &[0, 0, 0, 11]].concat();
                let no_content = [&[0, 0, 1, 1, 5][..], &stream, &[0x89]].concat();
                socket.write_all(if is_large { &reset } else { &no_content }).await.unwrap();
            }
        }
    })
    .await;
    (upstream, heads)
}

#[tokio::test]
async fn a_head_larger_than_the_upstream_accepts_is_rejected_before_it_is_sent() {
    let (upstream, heads) = resetting(Announces::AtOnce).await;
    let gateway = Gateway::start(proxy(upstream.address).http(HttpVersion::H2)).await;
    let cookie = |size: usize| format!("GET / HTTP/1.1\r\nHost: a\r\nCookie: {}\r\n\r\n", "c".repeat(size));
    assert_eq!(ask(gateway.address, GET).await.status(), 204);
    for _ in 0..6 {
        assert_eq!(ask(gateway.address, cookie(20_000)).await.status(), 431);
    }
    assert_eq!(ask(gateway.address, cookie(7_000)).await.status(), 204);
    assert_eq!((gateway.seen.causes(), upstream.accepted(), heads.load(SeqCst)), (vec![], 1, 2));
}

#[tokio::test]
async fn a_reset_for_a_head_that_is_too_large_is_no_failure_of_the_upstream() {
    // the first request is sent before the settings arrive
    let (upstream, heads) = resetting(Announces::WithTheFirstHead).await;
    let gateway = Gateway::start(proxy(upstream.address).http(HttpVersion::H2)).await;
    let cookie = format!("GET / HTTP/1.1\r\nHost: a\r\nCookie: {}\r\n\r\n", "c".repeat(20_000));
    for _ in 0..2 {
        assert_eq!(ask(gateway.address, &cookie).await.status(), 431);
    }
    assert_eq!(ask(gateway.address, GET).await.status(), 204);
    assert_eq!((gateway.seen.causes(), upstream.accepted(), heads.load(SeqCst)), (vec![], 1, 2));
}

#[tokio::test]
async fn a_large_head_does_not_end_the_streams_of_others() {
    // hyper's server ends the connection for a head that is too large
    let upstream = support::app(axum::Router::new().fallback(|body: Bytes| async move { body })).await;
    let gateway = Gateway::start(proxy(upstream.address).http(HttpVersion::H2)).await;
    let mut others = Vec::new();
    for _ in 0..8 {
        let mut wire = Wire::connect(gateway.address).await;
        wire.write("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbo").await;
        others.push(wire);
    }
    support::until("the others share a connection", || upstream.accepted() == 1).await;
    let rare = "\u{ff}".repeat(14_000);
    for large in ["x".repeat(200_000), "x".repeat(64_000), "x".repeat(60_000), "\\".repeat(58_000), rare] {
        let get = format!("GET / HTTP/1.1\r\nHost: a\r\nX-A: {large}\r\n\r\n");
        assert_eq!(ask(gateway.address, get).await.status(), 431, "{}", large.len());
    }
    for mut wire in others {
        assert_eq!(wire.ask("dy").await.text(), "body");
    }
    assert_eq!((gateway.seen.causes(), upstream.accepted()), (vec![], 1));
}

#[tokio::test]
async fn the_number_of_interim_responses_on_http2_is_limited() {
    let (gateway, _upstream) = before_h2(|_, mut respond| async move {
        for _ in 0..100_000 {
            let hint = Response::builder().status(103).header("link", "</a>").body(()).unwrap();
            if respond.send_informational(hint).is_err() {
                return;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(ask(gateway.address, GET).await.status(), 502);
    assert_eq!(gateway.seen.take().len(), 1);

    let (gateway, _upstream) = before_h2(|_, mut respond| async move {
        for _ in 0..64 {
            respond.send_informational(Response::builder().status(103).body(()).unwrap()).unwrap();
        }
        respond.send_response(Response::builder().status(204).body(()).unwrap(), true).unwrap();
    })
    .await;
    for _ in 0..3 {
        assert_eq!(ask(gateway.address, GET).await.status(), 204);
    }
    assert_eq!(gateway.seen.take(), []);
}

#[tokio::test]
async fn a_target_that_is_too_long_after_the_base_path_is_the_clients_error() {
    let (upstream, seen) = upstream(H1, ok).await;
    let base = "b".repeat(10_000);
    let target = format!("http://{}/{base}", upstream.address).parse().unwrap();
    let rules = tower_upstream::forward::ForwardingRules::new("edge").unwrap();
    let gateway = Gateway::start(tower_upstream::client::ReverseProxy::builder(target, rules)).await;
    let get = |length: usize| format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "p".repeat(length));
    assert_eq!(ask(gateway.address, get(57_000)).await.status(), 414);
    assert_eq!((seen.take().len(), gateway.seen.causes()), (0, vec![]));
    assert_eq!(ask(gateway.address, get(50_000)).await.status(), 200);
    assert_eq!(seen.take().len(), 1);
}

/// A request, with all that a client can choose.
#[derive(Clone, Debug)]
struct Chosen {
    method: &'static str,
    target: String,
    fields: Vec<(&'static str, String)>,
    body: Option<String>,
    trailers: Vec<(&'static str, String)>,
}

const NAMES: [&str; 22] = [
    "host",
    "connection",
    "te",
    "transfer-encoding",
    "content-length",
    "expect",
    "upgrade",
    "trailer",
    "cookie",
    "via",
    "forwarded",
    "x-forwarded-for",
    "x_forwarded_for",
    "max-forwards",
    "keep-alive",
    "proxy-connection",
    "http2-settings",
    "accept",
    "authorization",
    "range",
    "x-a",
    "x-b",
];

/// Trailers that HTTP/2 refuses.
const FORBIDDEN: [(&str, &str); 5] = [
    ("connection", "close"),
    ("transfer-encoding", "chunked"),
    ("keep-alive", "timeout=5"),
    ("upgrade", "h2c"),
    ("content-length", "99"),
];

fn value() -> impl Strategy<Value = String> {
    let plain = [
        "",
        "a",
        "close",
        "chunked",
        "gzip, chunked",
        "trailers",
        "4",
        "0",
        "4, 4",
        "100-continue",
        "websocket",
        "h2c",
        "%41",
        "a%41.example",
        "[::1]",
        "a:",
        "x-a, x-b",
        "upgrade, te",
        "1.1 edge",
        "bytes=0-1",
        "identity",
        "-1",
    ];
    prop_oneof![
        5 => prop::sample::select(plain.to_vec()).prop_map(str::to_owned),
        2 => "[ -~]{0,40}",
        1 => "[\u{80}-\u{ff}]{1,20}",
        1 => (1_000usize..12_000).prop_map(|length| "v".repeat(length)),
    ]
}

fn chosen() -> impl Strategy<Value = Chosen> {
    let methods = ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "CONNECT", "FIND"];
    let targets = ["/", "/a?b", "*", "//", "/..", "/%", "/%zz?%", "/a|b{c}\"", "http://a/", "a:80", "?"];
    let target = prop_oneof![
        4 => prop::sample::select(targets.to_vec()).prop_map(str::to_owned),
        1 => "/[!-~\u{80}-\u{ff}]{0,30}",
        1 => (1_000usize..20_000).prop_map(|length| format!("/{}", "t".repeat(length))),
    ];
    let fields = || proptest::collection::vec((prop::sample::select(NAMES.to_vec()), value()), 0..5);
    let body = prop::option::of(prop::sample::select(vec!["", "body", "a longer body"]).prop_map(str::to_owned));
    (prop::sample::select(methods.to_vec()), target, fields(), body, fields())
        .prop_map(|(method, target, fields, body, trailers)| Chosen { method, target, fields, body, trailers })
}

/// Sends it as far as this protocol can express it, and reads what arrives within a moment.
async fn send_chosen(to: SocketAddr, protocol: Protocol, chosen: &Chosen) {
    let borrowed = |fields: &[(&'static str, String)]| -> Vec<(&'static str, String)> { fields.to_vec() };
    let (fields, trailers) = (borrowed(&chosen.fields), borrowed(&chosen.trailers));
    let fields: Vec<_> = fields.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let trailers: Vec<_> = trailers.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let first = format!("{} {}", chosen.method, chosen.target);
    let sent = Sent { first: &first, fields: &fields, body: chosen.body.as_deref(), trailers: &trailers };
    let answered = async {
        match protocol {
            H1 => {
                let mut wire = Wire::connect(to).await;
                // as many bytes as any length in the head asks for
                let bytes = sent.h1(&format!("{first} HTTP/1.1")) + "\r\n\r\n\r\n";
                let _ = wire.try_write(bytes).await;
                let read = async |wire: &mut Wire| {
                    if chosen.method == "HEAD" { wire.head().await } else { wire.answer().await }
                };
                if read(&mut wire).await.status() == 100 {
                    read(&mut wire).await;
                }
            }
            H2 => {
                let (client, connection) = h2::client::handshake(TcpStream::connect(to).await.unwrap()).await.unwrap();
                let connection = tokio::spawn(connection);
                let mut client: h2::client::SendRequest<Bytes> = client.ready().await.unwrap();
                let mut head = Request::new(());
                *head.method_mut() = chosen.method.parse().unwrap();
                *head.headers_mut() = Sent::map(&fields);
                let path = chosen.target.parse::<http::uri::PathAndQuery>();
                let uri = Uri::builder().scheme("http").authority("a");
                let has_host = fields.iter().any(|(name, _)| *name == "host");
                match (path.map(|path| uri.path_and_query(path).build()), chosen.target.parse::<Uri>()) {
                    (Ok(Ok(uri)), _) if !has_host => (*head.uri_mut(), *head.version_mut()) = (uri, Version::HTTP_2),
                    (_, Ok(uri)) => *head.uri_mut() = uri,
                    _ => return,
                }
                // what h2 refuses by itself has no form
                if let Ok((answer, stream)) = client.send_request(head, sent.ends_with_head()) {
                    sent.finish_h2(stream);
                    let _ = answer.await;
                }
                connection.abort();
            }
        }
    };
    let _ = tokio::time::timeout(Duration::from_secs(3), answered).await;
}

#[test]
fn no_head_that_a_client_can_choose_is_a_failure_of_the_upstream() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (gateways, _upstreams): (Vec<_>, Vec<_>) = runtime.block_on(async {
        let mut both = Vec::new();
        for to in BOTH {
            let upstream = support::app(axum::Router::new().fallback(|body: Bytes| async move { body })).await;
            // a busy machine is late, and an upstream that hangs is found before the client cancels
            let limits = Timeouts::new().response_head(Duration::from_secs(2)).body_idle(Duration::from_secs(2));
            let gateway = Gateway::limited(proxy(upstream.address).http(to.http()), limits).await;
            both.push(((to, gateway), upstream));
        }
        both.into_iter().unzip()
    });
    let config = Config { cases: 200, failure_persistence: None, ..Config::default() };
    let outcome = TestRunner::new(config).run(&chosen(), |chosen| {
        runtime.block_on(async {
            for (to, gateway) in &gateways {
                for client in BOTH {
                    send_chosen(gateway.address, client, &chosen).await;
                    let causes = gateway.seen.take();
                    prop_assert!(!blamed(&causes), "{client:?} to {to:?}: {causes:?}");
                }
            }
            Ok(())
        })
    });
    outcome.unwrap();
    runtime.block_on(async {
        for (_, gateway) in &gateways {
            assert_eq!(ask(gateway.address, GET).await.status(), 200);
        }
    });
}

prop_compose! {
    /// The bytes of a response whose lines are well-formed HTTP/1.1.
    fn any_answer()(
        status in prop::sample::select(vec![200, 204, 205, 206, 304, 401, 404, 417, 500, 503, 599]),
        lengths in prop::sample::select(vec![&[][..], &[], &["4"], &["4", "4"], &["4, 4"], &["4", "5"], &["abc"]]),
        fields in proptest::collection::vec((prop::sample::select(NAMES.to_vec()), value()), 0..5),
        body in prop::option::of(prop::sample::select(vec!["", "body", "a longer body"])),
        forbidden in proptest::collection::vec(prop::sample::select(FORBIDDEN.to_vec()), 0..2),
        trailers in proptest::collection::vec((prop::sample::select(NAMES.to_vec()), value()), 0..4),
    ) -> String {
        let lengths = lengths.iter().map(|length| ("content-length", *length));
        let fields: Vec<_> = lengths.chain(fields.iter().map(|(name, value)| (*name, value.as_str()))).collect();
        let trailers = trailers.iter().map(|(name, value)| (*name, value.as_str()));
        let trailers: Vec<_> = forbidden.into_iter().chain(trailers).collect();
        let sent = Sent { first: "", fields: &fields, body, trailers: &trailers };
        sent.h1(&format!("HTTP/1.1 {status} -"))
    }
}

#[test]
fn every_response_head_of_an_upstream_gets_the_client_a_response() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let bytes = Arc::new(Mutex::new(String::new()));
    let answer = bytes.clone();
    let (gateway, _upstream) = runtime.block_on(async {
        let upstream = Upstream::scripted(move |mut wire, _| {
            let answer = answer.clone();
            async move {
                if wire.request().await.is_some() {
                    let bytes = answer.lock().unwrap().clone();
                    let _ = wire.try_write(bytes).await;
                }
            }
        })
        .await;
        (Gateway::before(upstream.address).await, upstream)
    });
    let config = Config { cases: 150, failure_persistence: None, ..Config::default() };
    let outcome = TestRunner::new(config).run(&any_answer(), |answer| {
        runtime.block_on(async {
            answer.clone_into(&mut bytes.lock().unwrap());
            for (client, first) in BOTH.into_iter().flat_map(|client| ["GET /", "HEAD /"].map(|first| (client, first)))
            {
                let fields: Fields<'static> = &[("te", "trailers")];
                let answered = request(gateway.address, client, Sent { first, fields, ..Sent::default() }).await;
                prop_assert!(answered.status() != 0, "{client:?}, {first}: {:?}", gateway.seen.take());
            }
            Ok(())
        })
    });
    outcome.unwrap();
}
