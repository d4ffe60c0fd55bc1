//! The proxy before real servers: hyper, axum, TLS, a Unix socket, nginx.

use std::fmt::Write;
use std::io;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::IntoResponse;
use axum::routing::{any, get, post};
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, HeaderValue, Response, StatusCode, Uri, Version};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto};
use tower::service_fn;
use tower_upstream::BadGatewayCause as Cause;
use tower_upstream::UpstreamLayer;
use tower_upstream::client::{Connector, HttpVersion, ReverseProxy, TcpConnector, TlsConnector};
use tower_upstream::forward::{ForwardingRules, HostPolicy};

use crate::support::{self, Gateway, Socket, Upstream, Wire, app, ask, proxy, short, soon, until};

/// What the upstream saw of a request: its head line by line, then its body.
async fn mirror(request: Request) -> String {
    let (parts, body) = request.into_parts();
    let mut seen = format!("{} {} {:?}\n", parts.method, parts.uri, parts.version);
    for (name, value) in &parts.headers {
        writeln!(seen, "{name}: {}", value.to_str().unwrap()).unwrap();
    }
    let body = body.collect().await.unwrap();
    for (name, value) in body.trailers().into_iter().flatten() {
        writeln!(seen, "trailer {name}: {}", value.to_str().unwrap()).unwrap();
    }
    seen.push('\n');
    seen + std::str::from_utf8(&body.to_bytes()).unwrap()
}

async fn with_trailers() -> impl IntoResponse {
    let trailers = HeaderMap::from_iter([("x-sum".parse().unwrap(), HeaderValue::from_static("42"))]);
    let frames = [Ok::<_, io::Error>(Frame::data(Bytes::from("body"))), Ok(Frame::trailers(trailers))];
    Response::builder().header("trailer", "x-sum").body(Body::new(StreamBody::new(stream::iter(frames)))).unwrap()
}

fn routes() -> Router {
    let pieces = || async { Body::from_stream(stream::iter((0..100).map(|n| Ok::<_, io::Error>(format!("{n},"))))) };
    Router::new()
        .route("/hello", get(|| async { "hello" }))
        .route("/pieces", get(pieces))
        .route("/echo", post(|body: Body| async { body }))
        .route("/nothing", any(|| async { StatusCode::NO_CONTENT }))
        .route("/trailers", get(with_trailers))
        .fallback(mirror)
}

/// A gateway before an app.
async fn pair() -> (Gateway, Upstream) {
    let upstream = app(routes()).await;
    (Gateway::before(upstream.address).await, upstream)
}

async fn h2_client(to: SocketAddr) -> SendRequest<Body> {
    let stream = TcpStream::connect(to).await.unwrap();
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (sender, connection) = handshake.await.unwrap();
    tokio::spawn(connection);
    sender
}

async fn text(answer: Response<Incoming>) -> String {
    String::from_utf8(answer.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

#[tokio::test]
async fn answers_of_every_shape_come_through_on_one_connection() {
    let (gateway, upstream) = pair().await;
    let mut wire = Wire::connect(gateway.address).await;

    assert_eq!(wire.ask("GET /hello HTTP/1.1\r\nHost: a\r\n\r\n").await.text(), "hello");
    let pieces = wire.ask("GET /pieces HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(pieces.get("transfer-encoding"), Some("chunked"));
    assert_eq!((pieces.text().split(',').count(), pieces.whole), (101, true));

    wire.write("HEAD /hello HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let head = wire.head().await;
    assert_eq!((head.status(), head.get("content-length")), (200, Some("5")));

    let nothing = wire.ask("DELETE /nothing HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!((nothing.status(), nothing.get("content-length")), (204, None));
    // a gateway may omit itself in responses (RFC 9110 section 7.6.3)
    assert_eq!(nothing.get("via"), None);

    let echo = wire.ask("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nwhat").await;
    assert_eq!(echo.text(), "what");
    let chunked =
        "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nmore\r\n6\r\n of it\r\n0\r\n\r\n";
    assert_eq!(wire.ask(chunked).await.text(), "more of it");

    assert_eq!(upstream.accepted(), 1);
    assert_eq!(gateway.seen.causes(), []);
}

#[tokio::test]
async fn the_upstream_sees_who_asked_for_what() {
    let (gateway, _upstream) = pair().await;
    let seen =
        ask(gateway.address, "GET /a?b HTTP/1.1\r\nHost: shop.example\r\nX-Forwarded-For: 6.6.6.6\r\n\r\n").await;
    let seen = seen.text();
    assert!(seen.starts_with("GET /a?b HTTP/1.1\n"), "{seen}");
    for line in [
        "host: shop.example",
        "x-forwarded-for: 127.0.0.1",
        "x-forwarded-proto: http",
        "x-forwarded-host: shop.example",
        "via: 1.1 edge",
    ] {
        assert!(seen.lines().any(|seen| seen == line), "{line} in {seen}");
    }
    assert!(!seen.contains("6.6.6.6"));
}

#[tokio::test]
async fn a_target_in_absolute_form_reaches_the_upstream_in_origin_form() {
    let (gateway, _upstream) = pair().await;
    let seen = ask(gateway.address, "GET http://shop.example/a?b HTTP/1.1\r\nHost: other\r\n\r\n").await.text();
    assert!(seen.starts_with("GET /a?b HTTP/1.1\n"), "{seen}");
    assert!(seen.contains("host: shop.example\n") && !seen.contains("other"), "{seen}");
}

#[tokio::test]
async fn the_targets_path_comes_first_and_its_host_where_that_is_the_rule() {
    let upstream = app(routes()).await;
    let target = format!("http://{}/base/", upstream.address).parse().unwrap();
    let rules = ForwardingRules::new("edge").unwrap().host(HostPolicy::Upstream);
    let gateway = Gateway::limited(ReverseProxy::builder(target, rules), short()).await;
    let seen = ask(gateway.address, "GET /a?b HTTP/1.1\r\nHost: shop.example\r\n\r\n").await.text();
    assert!(seen.starts_with("GET /base/a?b HTTP/1.1\n"), "{seen}");
    assert!(seen.contains(&format!("host: {}\n", upstream.address)), "{seen}");
    assert!(seen.contains("x-forwarded-host: shop.example\n"), "{seen}");
}

#[tokio::test]
async fn an_http_2_client_needs_no_host() {
    let (gateway, _upstream) = pair().await;
    let request = Request::get("http://shop.example/a?b").body(Body::empty()).unwrap();
    let answer = h2_client(gateway.address).await.send_request(request).await.unwrap();
    assert_eq!((answer.status(), answer.version()), (StatusCode::OK, Version::HTTP_2));
    let seen = text(answer).await;
    assert!(seen.starts_with("GET /a?b HTTP/1.1\n"), "{seen}");
    assert!(seen.contains("host: shop.example\n") && seen.contains("via: 2 edge\n"), "{seen}");
}

#[tokio::test]
async fn the_cookies_of_an_http_2_client_are_one_line_again() {
    let upstream = app(routes()).await;
    for http in [HttpVersion::Auto, HttpVersion::H2] {
        let gateway = Gateway::start(proxy(upstream.address).http(http)).await;
        let request = Request::get("http://a/").header("host", "a").header("cookie", "a=1").header("cookie", "b=2");
        let request = request.header("cookie", "c=3").body(Body::empty()).unwrap();
        let seen = text(h2_client(gateway.address).await.send_request(request).await.unwrap()).await;
        let cookies: Vec<_> = seen.lines().filter(|line| line.starts_with("cookie")).collect();
        assert_eq!(cookies, ["cookie: a=1; b=2; c=3"]);
    }
}

#[tokio::test]
async fn trailers_pass_both_ways_between_http_2_peers() {
    let upstream = app(routes()).await;
    let gateway = Gateway::start(proxy(upstream.address).http(HttpVersion::H2)).await;
    let mut client = h2_client(gateway.address).await;
    let request = Request::get("http://a/trailers").header("host", "a").header("te", "trailers");
    let answer = client.send_request(request.body(Body::empty()).unwrap()).await.unwrap();
    let body = answer.into_body().collect().await.unwrap();
    assert_eq!(body.trailers().unwrap()["x-sum"], "42");
    assert_eq!(body.to_bytes(), "body");

    let trailers = HeaderMap::from_iter([("x-sum".parse().unwrap(), HeaderValue::from_static("43"))]);
    let frames = [Ok::<_, io::Error>(Frame::data(Bytes::from("up"))), Ok(Frame::trailers(trailers))];
    let body = Body::new(StreamBody::new(stream::iter(frames)));
    let request = Request::post("http://a/mirror").header("host", "a").body(body).unwrap();
    let seen = text(client.send_request(request).await.unwrap()).await;
    assert!(seen.starts_with("POST http://a/mirror HTTP/2.0\n"), "{seen}");
    assert!(seen.ends_with("trailer x-sum: 43\n\nup"), "{seen}");
    assert_eq!(upstream.accepted(), 1);
}

#[tokio::test]
async fn trailers_of_an_http_1_upstream_reach_an_http_2_client() {
    let (gateway, _upstream) = pair().await;
    let request = Request::get("http://a/trailers").header("host", "a").header("te", "trailers");
    let answer = h2_client(gateway.address).await.send_request(request.body(Body::empty()).unwrap()).await.unwrap();
    let body = answer.into_body().collect().await.unwrap();
    assert_eq!(body.trailers().unwrap()["x-sum"], "42");
}

#[tokio::test]
async fn an_http_2_upstream_serves_http_1_clients() {
    let upstream = app(routes()).await;
    let gateway = Gateway::start(proxy(upstream.address).http(HttpVersion::H2)).await;
    let mut wire = Wire::connect(gateway.address).await;
    let seen = wire.ask("GET /a?b HTTP/1.1\r\nHost: shop.example\r\nConnection: keep-alive\r\n\r\n").await.text();
    assert!(seen.starts_with("GET http://shop.example/a?b HTTP/2.0\n"), "{seen}");
    let chunked = "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nmore\r\n0\r\n\r\n";
    assert_eq!(wire.ask(chunked).await.text(), "more");
    assert_eq!(wire.ask("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n").await.status(), 200);
    wire.write("HEAD /hello HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(wire.head().await.get("content-length"), Some("5"));
    assert_eq!(upstream.accepted(), 1);
    assert_eq!(gateway.seen.causes(), []);
}

async fn speaks_by_alpn(protocols: &[&[u8]], wanted: &str) {
    let (upstream, pem) = support::tls_app(routes(), protocols).await;
    let target = format!("https://localhost:{}", upstream.address.port()).parse().unwrap();
    let connector = TlsConnector::with_roots(TcpConnector::new(), pem.as_bytes()).unwrap();
    let builder = ReverseProxy::builder(target, ForwardingRules::new("edge").unwrap()).connector(connector);
    let gateway = Gateway::start(builder).await;
    for _ in 0..3 {
        let seen = ask(gateway.address, "POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody").await.text();
        assert!(seen.lines().next().unwrap().ends_with(wanted), "{seen}");
        assert!(seen.ends_with("body"), "{seen}");
    }
    assert_eq!(upstream.accepted(), 1);
}

#[tokio::test]
async fn http_2_is_spoken_where_tls_negotiates_it() {
    speaks_by_alpn(&[b"h2", b"http/1.1"], "HTTP/2.0").await;
}

#[tokio::test]
async fn http_1_is_spoken_where_tls_negotiates_it_or_nothing() {
    speaks_by_alpn(&[b"http/1.1"], "HTTP/1.1").await;
    speaks_by_alpn(&[], "HTTP/1.1").await;
}

#[tokio::test]
async fn a_tls_connector_of_another_crate_speaks_it_over_ours() {
    let (upstream, pem) = support::tls_app(routes(), &[]).await;
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let tls = HttpsConnectorBuilder::new().with_tls_config(config).https_only().enable_http1();
    let connector = Connector::new(tls.wrap_connector(TcpConnector::new().enforce_http(false))).assume_tls();
    let target = format!("https://localhost:{}", upstream.address.port()).parse().unwrap();
    let builder = ReverseProxy::builder(target, ForwardingRules::new("edge").unwrap()).stamped_connector(connector);
    let gateway = Gateway::start(builder).await;
    assert_eq!(ask(gateway.address, "GET /hello HTTP/1.1\r\nHost: a\r\n\r\n").await.text(), "hello");
}

#[tokio::test]
async fn a_certificate_of_nobody_we_trust_is_refused() {
    let (upstream, _) = support::tls_app(routes(), &[]).await;
    let (_, other) = support::tls_app(routes(), &[]).await;
    let target = format!("https://localhost:{}", upstream.address.port()).parse().unwrap();
    let connector = TlsConnector::with_roots(TcpConnector::new(), other.as_bytes()).unwrap();
    let builder = ReverseProxy::builder(target, ForwardingRules::new("edge").unwrap()).connector(connector);
    let gateway = Gateway::start(builder).await;
    let answer = ask(gateway.address, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!((answer.status(), answer.error()), (502, Some("tls_certificate_error")));
    assert_eq!(gateway.seen.causes(), [Cause::TlsCertificate]);
}

#[tokio::test]
async fn a_connector_of_ones_own_reaches_a_unix_socket() {
    let folder = Folder::new("socket");
    let path = folder.0.join("app");
    let builder = ReverseProxy::builder("app.local".parse().unwrap(), ForwardingRules::new("edge").unwrap());
    let there = path.clone();
    let connector = service_fn(move |_: Uri| {
        let path = there.clone();
        async move { UnixStream::connect(path).await.map(Socket::new) }
    });
    let gateway = Gateway::start(builder.connector(connector)).await;
    let answer = ask(gateway.address, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!((answer.status(), gateway.seen.take()), (502, vec![Cause::ConnectionRefused]));

    let listener = UnixListener::bind(&path).unwrap();
    let server = tokio::spawn(async move { axum::serve(listener, routes()).await });
    let seen = ask(gateway.address, "POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody").await.text();
    assert!(seen.starts_with("POST /a HTTP/1.1\n") && seen.ends_with("body"), "{seen}");
    server.abort();
}

/// A directory that is removed after the test.
struct Folder(std::path::PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        // tests of one process run concurrently
        static MADE: AtomicUsize = AtomicUsize::new(0);
        let (process, made) = (std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(format!("tower-upstream-{name}-{process}-{made}"));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A free address below the ephemeral ports, so that no connection takes it.
fn quiet_address() -> SocketAddr {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let start = std::process::id() as usize * 16;
    loop {
        let port = 15_000 + (start + NEXT.fetch_add(1, Ordering::Relaxed)) % 15_000;
        let address = SocketAddr::from(([127, 0, 0, 1], u16::try_from(port).unwrap()));
        if std::net::TcpListener::bind(address).is_ok() {
            return address;
        }
    }
}

/// Debian's nginx in one process, killed by its id.
struct Nginx {
    child: Child,
    address: SocketAddr,
    _folder: Folder,
}

impl Nginx {
    async fn start() -> Option<Self> {
        const PROGRAM: &str = "/usr/sbin/nginx";
        if !std::path::Path::new(PROGRAM).exists() {
            println!("skipped: no nginx");
            return None;
        }
        let folder = Folder::new("nginx");
        let root = folder.0.display();
        let address = quiet_address();
        std::fs::write(folder.0.join("page.txt"), "a line that compresses well\n".repeat(1000)).unwrap();
        let config = format!(
            "daemon off; master_process off; error_log {root}/error.log; pid {root}/pid;
            events {{ worker_connections 256; }}
            http {{
                access_log off; root {root}; keepalive_timeout 1s 1s; default_type text/plain;
                client_body_temp_path {root}/body; proxy_temp_path {root}/proxy; fastcgi_temp_path {root}/fastcgi;
                uwsgi_temp_path {root}/uwsgi; scgi_temp_path {root}/scgi;
                gzip on; gzip_proxied any; gzip_types text/plain; gzip_http_version 1.0;
                server {{
                    listen {address};
                    location /count {{ return 200 \"$connection $connection_requests\"; }}
                    location /post {{ return 200 \"$request_method $content_length $host\"; }}
                }}
            }}"
        );
        std::fs::write(folder.0.join("conf"), config).unwrap();
        let child = Command::new(PROGRAM)
            .args(["-p", &root.to_string(), "-c", "conf", "-e", "error.log"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // assigned before the wait, so that a failed wait ends it too
        let nginx = Self { child, address, _folder: folder };
        until("nginx listens", || std::net::TcpStream::connect(address).is_ok()).await;
        Some(nginx)
    }

    fn stop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        self.stop();
    }
}

#[tokio::test]
async fn nginx_is_asked_over_connections_kept_alive_until_it_is_gone() {
    let Some(mut nginx) = Nginx::start().await else { return };
    let gateway = Gateway::before(nginx.address).await;
    let mut wire = Wire::connect(gateway.address).await;
    let mut connections = Vec::new();
    for round in 1..=5 {
        let answer = wire.ask("GET /count HTTP/1.1\r\nHost: a\r\n\r\n").await.text();
        let (connection, requests) = answer.split_once(' ').unwrap();
        assert_eq!(requests, round.to_string());
        connections.push(connection.to_owned());
    }
    connections.dedup();
    assert_eq!(connections.len(), 1);

    let post = "POST /post HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 4\r\n\r\nbody";
    assert_eq!(wire.ask(post).await.text(), "POST 4 shop.example");

    let get = "GET /page.txt HTTP/1.1\r\nHost: a\r\nAccept-Encoding: gzip\r\n\r\n";
    let (direct, through) = (ask(nginx.address, get).await, wire.ask(get).await);
    assert_eq!(through.get("content-encoding"), Some("gzip"));
    assert_eq!(through.body, direct.body);
    assert_eq!(wire.ask("GET /page.txt HTTP/1.1\r\nHost: a\r\n\r\n").await.body.len(), 28_000);

    nginx.stop();
    until("its connections are gone", || std::net::TcpStream::connect(nginx.address).is_err()).await;
    let answer = wire.ask(get).await;
    assert_eq!((answer.status(), answer.error()), (502, Some("connection_refused")));
    assert_eq!(gateway.seen.causes(), [Cause::ConnectionRefused]);
}

#[tokio::test]
async fn nginx_that_keeps_connections_for_a_second_never_makes_a_stale_one() {
    let Some(nginx) = Nginx::start().await else { return };
    let gateway = Gateway::before(nginx.address).await;
    let address = gateway.address;
    let callers: Vec<_> = (0..8)
        .map(|caller| {
            tokio::spawn(async move {
                let mut wire = Wire::connect(address).await;
                for round in 0..6 {
                    let answer = wire.ask("POST /count HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi").await;
                    assert_eq!(answer.status(), 200);
                    // around the ages at which nginx, and the gateway, end an idle connection
                    tokio::time::sleep(Duration::from_millis(460 + 20 * caller + 100 * round)).await;
                }
            })
        })
        .collect();
    for caller in callers {
        soon(caller).await.unwrap();
    }
    assert_eq!(gateway.seen.causes(), []);
}

#[test]
fn a_stack_for_a_proxy_has_the_name_of_the_proxy() {
    let rules = || ForwardingRules::new("edge").unwrap();
    let proxy: ReverseProxy<_, ()> = ReverseProxy::builder("127.0.0.1:9000".parse().unwrap(), rules()).build();
    assert_eq!(UpstreamLayer::for_proxy(&proxy).build().unwrap().handle().name(), "127.0.0.1:9000");
    let builder = ReverseProxy::builder("127.0.0.1:9000".parse().unwrap(), rules()).name("shop");
    let proxy: ReverseProxy<_, ()> = builder.build();
    assert_eq!(UpstreamLayer::for_proxy(&proxy).build().unwrap().handle().name(), "shop");
}
