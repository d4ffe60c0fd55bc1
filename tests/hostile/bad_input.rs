//! Invalid input of clients and upstreams: a clear response, no panic, and the next request is served.

use std::sync::{Arc, Mutex, Once};

use tower_upstream::BadGatewayCause as Cause;

use crate::support::{Gateway, Message, Upstream, Wire, ask, gateway, proxy};

static PANICS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Records every panic outside of the tests' own code.
fn note_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let others = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !panic.location().is_some_and(|at| at.file().contains("tests/")) {
                PANICS.lock().unwrap().push(panic.to_string());
            }
            others(panic);
        }));
    });
}

/// A gateway before an upstream that reports the requests it read.
struct Stage {
    gateway: Gateway,
    _upstream: Upstream,
    /// The heads that reached the upstream, by the upstream's own framing.
    heads: Arc<Mutex<Vec<String>>>,
}

impl Stage {
    async fn new() -> Self {
        note_panics();
        let heads = Arc::new(Mutex::new(Vec::new()));
        let seen = heads.clone();
        let upstream = Upstream::scripted(move |mut wire, _| {
            let seen = seen.clone();
            async move {
                while let Some(request) = wire.request().await {
                    let head = lines(&request);
                    seen.lock().unwrap().push(head.clone());
                    wire.reply(&format!("{head}\n{}", request.text())).await;
                }
            }
        })
        .await;
        Self { gateway: Gateway::before(upstream.address).await, _upstream: upstream, heads }
    }

    /// Sends any bytes as a request, and returns the response; checks that the gateway works afterwards.
    async fn answer(&self, request: impl AsRef<[u8]>) -> Message {
        let mut wire = Wire::connect(self.gateway.address).await;
        // the server may stop reading early
        let _ = wire.try_write(request).await;
        let answer = wire.answer().await;
        assert_eq!(ask(self.gateway.address, "GET /after HTTP/1.1\r\nHost: a\r\n\r\n").await.status(), 200);
        for head in &*self.heads.lock().unwrap() {
            assert!(head.contains("\nvia: 1.1 edge\n"), "this did not come through the gateway's rules: {head}");
        }
        assert_eq!(*PANICS.lock().unwrap(), [""; 0]);
        answer
    }

    async fn status(&self, request: impl AsRef<[u8]>) -> u16 {
        self.answer(request).await.status()
    }
}

fn lines(message: &Message) -> String {
    let fields = message.fields.iter().map(|(name, value)| format!("{name}: {value}\n"));
    format!("{}\n{}", message.first, fields.collect::<String>())
}

#[tokio::test]
async fn a_host_that_is_missing_doubled_or_malformed_is_a_bad_request() {
    let stage = Stage::new().await;
    for fields in [
        "",
        "Host: a\r\nHost: b\r\n",
        "Host: a\r\nHost: a\r\n",
        "Host:\r\n",
        "Host: a b\r\n",
        "Host: a/b\r\n",
        "Host: u@a\r\n",
        "Host: a:99999\r\n",
        "Host: [::1\r\n",
        "Host: a, b\r\n",
    ] {
        assert_eq!(stage.status(format!("GET / HTTP/1.1\r\n{fields}\r\n")).await, 400, "{fields:?}");
    }
    assert_eq!(stage.gateway.seen.causes(), []);
}

#[tokio::test]
async fn a_rejection_by_the_gateway_has_no_received_status() {
    let stage = Stage::new().await;
    let answer = stage.answer("GET / HTTP/1.1\r\n\r\n").await;
    let member = "edge; error=http_request_error; status-code=400; status-phrase=\"Bad Request\"";
    assert_eq!((answer.status(), answer.all("proxy-status")), (400, vec![member]));
}

#[tokio::test]
async fn a_target_of_the_wrong_form_is_a_bad_request() {
    let stage = Stage::new().await;
    for target in ["http://u:p@a/", "ftp://a/", "http:///x", "a:80", "a", "*", "", "/a b", "/\x01"] {
        let status = stage.status(format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n")).await;
        assert_eq!(status, 400, "{target:?}");
    }
}

#[tokio::test]
async fn a_tunnel_is_not_opened() {
    let stage = Stage::new().await;
    assert_eq!(stage.status("CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n").await, 501);
    for target in ["a", "/x", "http://a/", "*"] {
        assert_eq!(stage.status(format!("CONNECT {target} HTTP/1.1\r\nHost: a\r\n\r\n")).await, 400, "{target}");
    }
}

#[tokio::test]
async fn a_trace_is_not_forwarded_and_echoes_nothing() {
    let stage = Stage::new().await;
    for field in ["", "Max-Forwards: 0\r\n", "Max-Forwards: 9\r\n", "Content-Length: 0\r\n"] {
        let trace = format!("TRACE /x HTTP/1.1\r\nHost: a\r\nX-Api-Key: secret\r\n{field}\r\n");
        let answer = stage.answer(trace).await;
        assert_eq!((answer.status(), answer.text().contains("secret")), (405, false), "{field}");
        assert!(answer.get("allow").is_some_and(|allowed| allowed.contains("GET") && !allowed.contains("TRACE")));
        assert_eq!(answer.error(), Some("http_request_error"));
    }
    assert!(!stage.heads.lock().unwrap().iter().any(|head| head.starts_with("TRACE")));
}

#[tokio::test]
async fn options_of_the_server_go_to_the_upstream() {
    let stage = Stage::new().await;
    let answer = stage.answer("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(answer.text().starts_with("OPTIONS * HTTP/1.1\n"), "{}", answer.text());
}

#[tokio::test]
async fn heads_beyond_the_servers_limits_are_rejected_with_the_reason() {
    let stage = Stage::new().await;
    let with = |fields: String| format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
    let many = |count: u32| {
        let fields: Vec<_> = (0..count).map(|number| format!("x-{number}: y\r\n")).collect();
        with(fields.concat())
    };
    assert_eq!(stage.status(many(90)).await, 200);
    assert_eq!(stage.status(many(200)).await, 431);
    assert_eq!(stage.status(many(20_000)).await, 431);
    assert_eq!(stage.status(with(format!("x: {}\r\n", "y".repeat(1 << 20)))).await, 431);
    let long = stage.status(format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "y".repeat(1 << 20))).await;
    assert!(matches!(long, 414 | 431), "{long}");
}

#[tokio::test]
async fn bytes_beyond_ascii_in_a_field_pass_unchanged() {
    let stage = Stage::new().await;
    let answer = stage.answer(b"GET / HTTP/1.1\r\nHost: a\r\nX-Odd: a\xc3\xa9b\r\nX-Odd: \t\r\n\r\n").await;
    assert!(answer.text().contains("x-odd: a\u{e9}b\n"), "{}", answer.text());
    for bad in [&b"GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n"[..], b"GET / HTTP/1.1\r\nHost: a\r\nX\xff: b\r\n\r\n"]
    {
        assert_eq!(stage.status(bad).await, 400);
    }
}

#[tokio::test]
async fn connection_removes_neither_host_nor_length() {
    let stage = Stage::new().await;
    let fields = "Connection: host, content-length, via, x-forwarded-for, x-mine\r\nX-Mine: 1\r\n";
    let request = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n{fields}\r\nbody");
    let seen = stage.answer(request).await.text();
    for line in ["host: a", "content-length: 4", "x-forwarded-for: 127.0.0.1"] {
        assert!(seen.lines().any(|seen| seen == line), "{line} in {seen}");
    }
    assert!(seen.ends_with("\nbody") && !seen.contains("x-mine"), "{seen}");
    let options = "x,".repeat(3000);
    assert_eq!(stage.status(format!("GET / HTTP/1.1\r\nHost: a\r\nConnection: {options}\r\n\r\n")).await, 400);
}

#[tokio::test]
async fn a_chain_of_hops_that_cannot_be_parsed_does_not_reject_the_request() {
    let stage = Stage::new().await;
    for field in
        ["Via: ,,;;\"unclosed (((", "Via: \u{fc}\u{fc}", "Forwarded: for=\"unclosed;;,=", "X-Forwarded-For: ,,,"]
    {
        let answer = stage.answer(format!("GET / HTTP/1.1\r\nHost: a\r\n{field}\r\n\r\n")).await;
        assert_eq!(answer.status(), 200, "{field}");
        assert!(!answer.text().contains("forwarded: for"), "{}", answer.text());
    }
    let hops = "1.1 other, ".repeat(200);
    let answer = stage.answer(format!("GET / HTTP/1.1\r\nHost: a\r\nVia: {hops}\r\n\r\n")).await;
    assert_eq!((answer.status(), answer.error()), (502, Some("proxy_loop_detected")));
}

#[tokio::test]
async fn our_member_is_appended_to_a_proxy_status_that_cannot_be_parsed() {
    note_panics();
    let upstream = Upstream::scripted(|mut wire, _| async move {
        while wire.request().await.is_some() {
            let odd = "Proxy-Status: ;;;\"un\\closed, =\u{e9}\r\nProxy-Status:\r\n";
            wire.write(format!("HTTP/1.1 503 Busy\r\n{odd}Content-Length: 4\r\n\r\nbusy")).await;
        }
    })
    .await;
    let gateway = Gateway::before(upstream.address).await;
    let answer = ask(gateway.address, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!((answer.status(), answer.text().as_str()), (503, "busy"));
    assert_eq!(answer.all("proxy-status").last(), Some(&"edge; received-status=503"));
    assert_eq!(gateway.seen.causes(), [Cause::UpstreamStatus]);
    assert_eq!(*PANICS.lock().unwrap(), [""; 0]);
}

#[tokio::test]
async fn a_gateway_before_itself_detects_the_loop() {
    note_panics();
    let listener = gateway::listener().await;
    let own = listener.local_addr().unwrap();
    let gateway = Gateway::bound(listener, proxy(own));
    let answer = ask(gateway.address, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(answer.status(), 502);
    let members = answer.all("proxy-status");
    assert_eq!(members, ["edge; error=proxy_loop_detected", "edge; received-status=502"]);
    assert_eq!(gateway.seen.causes(), [Cause::LoopDetected, Cause::UpstreamStatus]);
    let relayed = gateway.seen.failures().pop().unwrap();
    let hop = relayed.remote_hop().unwrap();
    assert_eq!((hop.name(), hop.error()), ("edge", Some("proxy_loop_detected")));
    assert_eq!((relayed.peer(), relayed.elapsed().is_some()), (Some(own), true));
    assert_eq!(*PANICS.lock().unwrap(), [""; 0]);
}

#[tokio::test]
async fn no_framing_smuggles_a_request_past_the_rules() {
    let stage = Stage::new().await;
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
    for (fields, body) in [
        ("Content-Length: 6\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
        ("Transfer-Encoding: chunked\r\nContent-Length: 6\r\n", "0\r\n\r\n"),
        ("Content-Length: 3\r\nContent-Length: 4\r\n", "abc"),
        ("Content-Length: 3, 4\r\n", "abc"),
        ("Content-Length: 3\r\nContent-Length: 3\r\n", "abc"),
        ("Content-Length: +3\r\n", "abc"),
        ("Content-Length: 0x3\r\n", "abc"),
        ("Content-Length: -1\r\n", ""),
        ("Content-Length: 99999999999999999999\r\n", "abc"),
        ("Content-Length : 3\r\n", "abc"),
        ("Transfer-Encoding: xchunked\r\n", "0\r\n\r\n"),
        ("Transfer-Encoding: chunked, identity\r\n", "0\r\n\r\n"),
        ("Transfer-Encoding: identity\r\nContent-Length: 3\r\n", "abc"),
        ("Transfer-Encoding:\r\n chunked\r\n", "0\r\n\r\n"),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
        ("Transfer-Encoding: chunked\r\n", "zz\r\nabc\r\n0\r\n\r\n"),
        ("Transfer-Encoding: chunked\r\n", "-1\r\nabc\r\n0\r\n\r\n"),
        ("Transfer-Encoding: chunked\r\n", "ffffffffffffffffff\r\nabc\r\n0\r\n\r\n"),
        ("Transfer-Encoding: chunked\r\n", "3;\nabc\r\n0\r\n\r\n"),
        ("Transfer-Encoding: chunked\r\n", "3\r\nabcdef\r\n0\r\n\r\n"),
        ("Connection: transfer-encoding\r\nTransfer-Encoding: chunked\r\n", "3\r\nabc\r\n0\r\n\r\n"),
        ("Connection: content-length\r\nContent-Length: 3\r\n", "abc"),
    ] {
        let status = stage.status(format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n{body}{smuggled}")).await;
        assert!(matches!(status, 200 | 400..=499 | 501), "{status} to {fields:?} {body:?}");
        for head in &*stage.heads.lock().unwrap() {
            let framings = head.matches("content-length: ").count() + head.matches("transfer-encoding: ").count();
            assert!(framings <= 1, "{fields:?}: {head}");
        }
    }
    for request in
        ["\0\0\0", "GET\r\n\r\n", "GET / HTTP/9.9\r\n\r\n", "\r\n\r\n\r\nGARBAGE\r\n\r\n", "GET / HTTP/1.1\r\nHost: a"]
    {
        let mut wire = Wire::connect(stage.gateway.address).await;
        let _ = wire.try_write(request).await;
        wire.finish_writing().await;
        let status = wire.answer().await.status();
        assert!(matches!(status, 0 | 400..=499 | 505), "{status} to {request:?}");
    }
    assert_eq!(stage.status("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await, 200);
}
