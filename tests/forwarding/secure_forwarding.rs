//! What leaves the gateway: no request for TLS in clear text, no unbounded or forged text of a client or an upstream.

use std::io;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use http::{Request, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::Connect;
use hyper_util::rt::TokioExecutor;
use tokio::net::TcpStream;
use tower::{Layer, service_fn};
use tower_upstream::client::{Connector, ReverseProxy, ReverseProxyBuilder, TcpConnector};
use tower_upstream::error_page::ErrorPage;
use tower_upstream::forward::{ForwardingRules, Trust};
use tower_upstream::{BadGatewayCause as Cause, Failure, UpstreamLayer};

use crate::support::{Gateway, Message, Socket, Upstream, ask, listener, soon, until};

/// The bytes that reached an upstream, and the number of its connections that have ended.
type Received = Arc<Mutex<(Vec<u8>, usize)>>;

/// An upstream that responds to any bytes.
async fn listening() -> (Upstream, Received) {
    let received = Received::default();
    let seen = received.clone();
    let upstream = Upstream::scripted(move |mut wire, _| {
        let seen = seen.clone();
        async move {
            while let Some(request) = wire.request().await {
                seen.lock().unwrap().0.extend_from_slice(request.first.as_bytes());
                wire.reply("in clear").await;
            }
            let rest = wire.bytes(1 << 16).await;
            let mut seen = seen.lock().unwrap();
            seen.0.extend(rest);
            seen.1 += 1;
        }
    })
    .await;
    (upstream, received)
}

fn over_tls(upstream: &Upstream) -> ReverseProxyBuilder {
    ReverseProxy::builder(
        format!("https://{}", upstream.address).parse().unwrap(),
        ForwardingRules::new("edge").unwrap(),
    )
}

const SECRET: &str = "GET / HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer secret\r\n\r\n";

/// A connector that ignores the scheme, as an application might write it.
macro_rules! tcp {
    ($upstream:expr) => {{
        let to = $upstream.address;
        service_fn(move |_: Uri| async move { TcpStream::connect(to).await.map(Socket::new) })
    }};
}

#[tokio::test]
async fn a_request_for_an_https_target_never_goes_out_over_a_tcp_connector() {
    let (upstream, received) = listening().await;
    let gateway = Gateway::start(over_tls(&upstream).connector(TcpConnector::new())).await;
    let answer = ask(gateway.address, SECRET).await;
    assert_eq!((answer.status(), answer.error()), (500, Some("proxy_configuration_error")));
    let failures = gateway.seen.failures();
    assert_eq!(failures[0].cause(), Cause::InvalidTarget);
    let why = failures[0].detail().unwrap().to_string();
    assert!(why.contains("TlsConnector") && why.contains("assume_tls"), "{why}");
    assert_eq!((upstream.accepted(), received.lock().unwrap().0.len()), (0, 0));
}

#[tokio::test]
async fn no_byte_is_written_to_a_connection_that_does_not_say_that_it_is_tls() {
    let (upstream, received) = listening().await;
    let gateway = Gateway::start(over_tls(&upstream).connector(tcp!(upstream))).await;
    let answer = ask(gateway.address, SECRET).await;
    assert_eq!((answer.status(), gateway.seen.take()), (500, vec![Cause::InvalidTarget]));
    // also where it stands under TLS by its own setting, and there is none
    let under_nothing = TcpConnector::new().enforce_http(false);
    let gateway = Gateway::start(over_tls(&upstream).connector(under_nothing)).await;
    assert_eq!((ask(gateway.address, SECRET).await.status(), gateway.seen.take()), (500, vec![Cause::InvalidTarget]));
    until("both connections end", || received.lock().unwrap().1 == 2).await;
    assert_eq!(received.lock().unwrap().0.len(), 0);
}

/// The error of hyper-util's client for a request to this upstream over TLS.
async fn refused_by<C: Connect + Clone + Send + Sync + 'static>(connector: C, upstream: &Upstream) -> Cause {
    let client = Client::builder(TokioExecutor::new()).build::<_, Body>(connector);
    let target = format!("https://{}/", upstream.address);
    let request = Request::get(target).header("authorization", "Bearer secret").body(Body::empty()).unwrap();
    Failure::from_error(soon(client.request(request)).await.unwrap_err()).cause()
}

#[tokio::test]
async fn hyper_utils_client_sends_nothing_in_clear_text_either() {
    let (upstream, received) = listening().await;
    assert_eq!(refused_by(Connector::new(TcpConnector::new()), &upstream).await, Cause::InvalidTarget);
    assert_eq!(refused_by(Connector::new(tcp!(upstream)), &upstream).await, Cause::InvalidTarget);
    until("the connection ends", || received.lock().unwrap().1 == 1).await;
    assert_eq!(received.lock().unwrap().0.len(), 0);
}

#[tokio::test]
async fn a_connector_that_is_marked_or_declared_as_tls_is_trusted() {
    let (upstream, _) = listening().await;
    let to = upstream.address;
    let marked = service_fn(move |_: Uri| async move { TcpStream::connect(to).await.map(Socket::marked_as_tls) });
    let gateway = Gateway::start(over_tls(&upstream).connector(marked)).await;
    assert_eq!(ask(gateway.address, SECRET).await.status(), 200);
    let declared = Connector::new(tcp!(upstream)).assume_tls();
    let gateway = Gateway::start(over_tls(&upstream).stamped_connector(declared)).await;
    assert_eq!(ask(gateway.address, SECRET).await.status(), 200);
}

/// Collects the log while the guard lives.
struct Log {
    lines: Arc<Mutex<Vec<u8>>>,
    _guard: tracing::subscriber::DefaultGuard,
}

impl Log {
    fn new() -> Self {
        #[derive(Clone)]
        struct Writer(Arc<Mutex<Vec<u8>>>);
        impl io::Write for Writer {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0.lock().unwrap().extend_from_slice(bytes);
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let lines = Arc::new(Mutex::new(Vec::new()));
        let writer = Writer(lines.clone());
        let log =
            tracing_subscriber::fmt().with_ansi(false).without_time().with_writer(move || writer.clone()).finish();
        Self { lines, _guard: crate::support::subscribe(log) }
    }

    fn text(&self) -> String {
        String::from_utf8(self.lines.lock().unwrap().clone()).unwrap()
    }
}

#[tokio::test]
async fn a_proxy_that_cannot_speak_tls_to_its_https_target_says_so_as_it_is_built() {
    let (upstream, _) = listening().await;
    let log = Log::new();
    drop(over_tls(&upstream).build::<Body>());
    drop(over_tls(&upstream).stamped_connector(Connector::new(TcpConnector::new()).assume_tls()).build::<Body>());
    assert_eq!(log.text(), "");
    drop(over_tls(&upstream).connector(TcpConnector::new()).build::<Body>());
    let line = log.text();
    assert!(line.starts_with("ERROR") && line.contains("TlsConnector"), "{line}");
}

#[tokio::test]
async fn a_request_that_would_leave_the_path_of_its_target_is_not_sent() {
    let (upstream, _) = listening().await;
    let target = format!("http://{}/v2/public", upstream.address).parse().unwrap();
    let gateway = Gateway::start(ReverseProxy::builder(target, ForwardingRules::new("edge").unwrap())).await;
    for path in ["/../admin", "/%2e%2e/admin", "/..%2fadmin", "/a/..;/../admin"] {
        let answer = ask(gateway.address, format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n")).await;
        assert_eq!((answer.status(), answer.error()), (400, Some("http_request_error")), "{path}");
    }
    assert_eq!(upstream.accepted(), 0);
    assert_eq!(ask(gateway.address, "GET /a/../b HTTP/1.1\r\nHost: a\r\n\r\n").await.status(), 200);
}

/// A gateway whose failures are logged, before an upstream that refuses; and the answer to these bytes.
async fn logged(request: &str) -> (Message, String) {
    let log = Log::new();
    let proxy = ReverseProxy::builder("127.0.0.1:1".parse().unwrap(), ForwardingRules::new("edge").unwrap()).build();
    let stack = UpstreamLayer::builder("shop")
        .error_page(ErrorPage::new())
        .without_upload_tracking()
        .build()
        .unwrap()
        .layer(proxy);
    let listener = listener().await;
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(async move { axum::serve(listener, Router::new().fallback_service(stack)).await });
    let answer = ask(address, request).await;
    server.abort();
    (answer, log.text())
}

#[tokio::test]
async fn a_log_line_is_short_whatever_the_client_sent() {
    let (path, id, method) = ("/p".repeat(20_000), "i".repeat(10_000), "M".repeat(4000));
    let head = format!("{method} {path}?{} HTTP/1.1\r\nHost: a\r\nX-Request-Id: {id}\r\n\r\n", "q".repeat(2000));
    let (answer, log) = logged(&head).await;
    assert_eq!(answer.status(), 502);
    let lines: Vec<_> = log.lines().collect();
    assert!(!lines.is_empty() && lines.iter().all(|line| line.len() < 2000), "{} bytes", log.len());
    let failed = lines.last().unwrap();
    assert_eq!(failed.matches('\u{2026}').count(), 2, "{failed}");
    assert!(answer.text().len() < 10_000 && answer.get("x-request-id").unwrap().len() == 32);
}

#[tokio::test]
async fn a_failure_is_logged_as_what_happened_with_the_next_step_as_its_hint() {
    let (answer, log) = logged("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(answer.status(), 502);
    let failed = log.lines().last().unwrap();
    let (summary, next_step) = (Cause::ConnectionRefused.summary(), Cause::ConnectionRefused.next_step());
    assert!(failed.contains(&format!("tower_upstream: {summary} ")), "{failed}");
    assert!(failed.contains(&format!(" hint={next_step:?}")), "{failed}");
}

#[tokio::test]
async fn a_request_id_writes_no_fields_of_its_own() {
    let forged = "f00 error.type=\"none\" http.response.status_code=200";
    for id in [forged, "a\u{e9}", "a\tb", "", "\"", &"i".repeat(129)] {
        let (answer, log) = logged(&format!("GET / HTTP/1.1\r\nHost: a\r\nX-Request-Id: {id}\r\n\r\n")).await;
        let ours = answer.get("x-request-id").unwrap();
        assert!(ours.len() == 32 && ours.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id:?}: {ours}");
        let failed = log.lines().last().unwrap();
        assert!(failed.contains(&format!("request_id=\"{ours}\"")), "{failed}");
        assert_eq!(failed.matches("error.type=").count(), 1, "{failed}");
    }
    for id in ["f00", "3e4d;v=1,a/b\\", &"i".repeat(128)] {
        let (answer, log) = logged(&format!("GET / HTTP/1.1\r\nHost: a\r\nX-Request-Id: {id}\r\n\r\n")).await;
        assert_eq!(answer.get("x-request-id"), Some(id));
        assert!(log.lines().last().unwrap().contains(&format!("request_id={id:?}")), "{log}");
    }
}

#[tokio::test]
async fn fields_about_inner_hops_are_reduced_if_the_rules_say_so() {
    let upstream = Upstream::scripted(|mut wire, _| async move {
        while let Some(request) = wire.request().await {
            let status = if request.first.contains("/ok") { "200 OK" } else { "502 Bad Gateway" };
            let member = "inner; error=connection_refused; next-hop=\"10.0.0.7:5432\"; details=\"x\"";
            wire.write(format!("HTTP/1.1 {status}\r\nProxy-Status: {member}\r\nContent-Length: 0\r\n\r\n")).await;
        }
    })
    .await;
    let rules = ForwardingRules::new("edge").unwrap();
    for (rules, kept) in [(rules.clone(), true), (rules.reduce_proxy_status(), false)] {
        let target = upstream.address.to_string().parse().unwrap();
        let gateway = Gateway::start(ReverseProxy::builder(target, rules)).await;
        for path in ["/ok", "/bad"] {
            let answer = ask(gateway.address, format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n")).await;
            let inner = answer.all("proxy-status")[0];
            assert_eq!(inner.contains("10.0.0.7"), kept, "{path}: {inner}");
            assert!(inner.starts_with("inner; error=connection_refused"), "{path}: {inner}");
        }
        assert_eq!(gateway.seen.failures()[0].remote_hop().unwrap().error(), Some("connection_refused"));
    }
}

/// The fields that reach the upstream of a request with these fields.
async fn passed(rules: ForwardingRules, fields: &[&str]) -> Vec<String> {
    let upstream = Upstream::scripted(|mut wire, _| async move {
        let request = wire.request().await.unwrap();
        let names: Vec<_> = request.fields.iter().map(|field| field.0.clone()).collect();
        wire.reply(&names.join(" ")).await;
    })
    .await;
    let gateway = Gateway::start(ReverseProxy::builder(upstream.address.to_string().parse().unwrap(), rules)).await;
    let fields = fields.iter().map(|name| format!("{name}: forged\r\n")).collect::<Vec<_>>().concat();
    let answer = ask(gateway.address, format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n")).await;
    let ours = ["host", "via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto"];
    let mut names: Vec<_> = answer.text().split(' ').filter(|name| !ours.contains(name)).map(str::to_owned).collect();
    names.sort_unstable();
    names
}

fn sorted(names: &[&[&'static str]]) -> Vec<&'static str> {
    let mut names = names.concat();
    names.sort_unstable();
    names
}

#[tokio::test]
async fn no_field_that_a_client_could_forge_reaches_the_upstream() {
    let origin = [
        "x-forwarded-user",
        "x-forwarded-access-token",
        "x-forwarded-client-cert",
        "x-forwarded-uri",
        "x-original-url",
        "x-client-ip",
        "true-client-ip",
        "cf-connecting-ip",
        "x-ssl-client-verify",
        "x-envoy-external-address",
        "client-cert",
    ];
    let disguised = ["x_forwarded_user", "X-Forwarded_Client-Cert", "true_client_ip", "X.Real.IP"];
    let others = ["x-client-version", "x-http-method-override", "x-envoy-expected-rq-timeout-ms"];
    let all = [&origin[..], &disguised, &others, &["proxy"]].concat();
    let rules = ForwardingRules::new("edge").unwrap();
    assert_eq!(passed(rules.clone(), &all).await, sorted(&[&others]));
    let vouched = rules.clone().keep_field("x-forwarded-user".parse().unwrap());
    assert_eq!(passed(vouched, &all).await, sorted(&[&others, &["x-forwarded-user"]]));
    assert_eq!(passed(rules.trust(Trust::Client), &all).await, sorted(&[&others, &origin]));
}
