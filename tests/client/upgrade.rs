//! Upgrades: a tunnel carries both directions, half-closes included, and its place in the pool is released.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::extract::ws::{self, WebSocketUpgrade};
use axum::routing::any;
use futures_util::{SinkExt, StreamExt};
use http::Request;
use hyper::body::Incoming;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto};
use tokio_tungstenite::tungstenite::Message;
use tower::Layer;
use tower_upstream::cause::Replay;
use tower_upstream::client::{HttpVersion, ReverseProxy, TcpConnector, TlsConnector};
use tower_upstream::forward::ForwardingRules;
use tower_upstream::limit::ConcurrencyLimitLayer;
use tower_upstream::stack::DrainOutcome;
use tower_upstream::timeout::Timeouts;
use tower_upstream::{BadGatewayCause as Cause, ClassifyLayer};

use crate::support::{
    self, Gateway, PATIENCE, StackGateway, Upstream, Wire, app, ask, default_proxy, proxy, soon, stack,
};

const FOO: &str = "GET /foo HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: foo\r\n\r\n";
const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
const SWITCH: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: foo\r\n\r\n";

#[tokio::test]
async fn a_websocket_passes_both_ways() {
    let echo = |upgrade: WebSocketUpgrade| async {
        upgrade.on_upgrade(|mut socket| async move {
            while let Some(Ok(message)) = socket.recv().await {
                // the library itself responds to that one
                if !matches!(message, ws::Message::Close(_)) {
                    socket.send(message).await.unwrap();
                }
            }
        })
    };
    let upstream = app(Router::new().route("/ws", any(echo))).await;
    let gateway = Gateway::before(upstream.address).await;
    let (mut socket, answer) =
        soon(tokio_tungstenite::connect_async(format!("ws://{}/ws", gateway.address))).await.unwrap();
    assert_eq!(answer.headers()["upgrade"], "websocket");
    for text in ["one".to_owned(), "two".to_owned(), "x".repeat(300_000)] {
        socket.send(Message::text(text.clone())).await.unwrap();
        assert_eq!(soon(socket.next()).await.unwrap().unwrap(), Message::text(text));
    }
    socket.close(None).await.unwrap();
    let last = soon(socket.next()).await;
    assert!(matches!(last, Some(Ok(Message::Close(_)))), "{last:?}");
    assert_eq!(gateway.seen.causes(), []);
}

/// Echoes in a tunnel to its end, then sends a last message; responds to other requests without an upgrade.
async fn echo_upstream() -> Upstream {
    Upstream::scripted(|mut wire, _| async move {
        while let Some(request) = wire.request().await {
            if request.get("upgrade") != Some("foo") {
                wire.reply("plain").await;
                continue;
            }
            assert_eq!(request.get("connection"), Some("upgrade"));
            wire.write(SWITCH).await;
            let (mut read, mut write) = wire.into_inner().into_split();
            let _ = tokio::io::copy(&mut read, &mut write).await;
            let _ = tokio::io::AsyncWriteExt::write_all(&mut write, b"good-bye").await;
            return;
        }
    })
    .await
}

async fn tunnel(gateway: &Gateway) -> Wire {
    let mut wire = Wire::connect(gateway.address).await;
    wire.write(FOO).await;
    let head = wire.head().await;
    assert_eq!((head.status(), head.get("upgrade"), head.get("connection")), (101, Some("foo"), Some("upgrade")));
    wire
}

#[tokio::test]
async fn a_tunnel_with_one_direction_ended_still_carries_the_other() {
    let upstream = echo_upstream().await;
    let gateway = Gateway::before(upstream.address).await;
    let mut wire = tunnel(&gateway).await;
    wire.write("ping").await;
    assert_eq!(wire.bytes(4).await, b"ping");
    wire.write("last").await;
    wire.finish_writing().await;
    assert_eq!(wire.bytes(100).await, b"lastgood-bye");
    assert_eq!(gateway.seen.causes(), []);
}

#[tokio::test]
async fn bytes_right_after_the_101_belong_to_the_tunnel() {
    let upstream = Upstream::scripted(|mut wire, _| async move {
        wire.request().await.unwrap();
        wire.write(format!("{SWITCH}hello")).await;
        assert_eq!(wire.bytes(2).await, b"hi");
    })
    .await;
    let gateway = Gateway::before(upstream.address).await;
    let mut wire = tunnel(&gateway).await;
    assert_eq!(wire.bytes(5).await, b"hello");
    wire.write("hi").await;
    assert_eq!(wire.bytes(1).await, b"");
}

#[tokio::test]
async fn a_tunnels_place_in_the_pool_is_released_at_its_end() {
    let upstream = echo_upstream().await;
    let limited = proxy(upstream.address).max_connections(1).queue_timeout(Duration::from_millis(50));
    let gateway = Gateway::start(limited).await;
    let wire = tunnel(&gateway).await;
    assert_eq!(ask(gateway.address, GET).await.status(), 503);
    assert_eq!(gateway.seen.take(), [Cause::QueueTimeout]);
    drop(wire);
    let mut free = false;
    for _ in 0..50 {
        free |= ask(gateway.address, GET).await.status() == 200;
        if free {
            break;
        }
    }
    assert!(free);
}

#[tokio::test]
async fn an_idle_tunnel_is_closed_and_its_place_released() {
    // it switches, and then neither reads nor writes nor closes
    let upstream = Upstream::scripted(|mut wire, _| async move {
        while let Some(request) = wire.request().await {
            if request.get("upgrade") == Some("foo") {
                wire.write(SWITCH).await;
                return std::future::pending().await;
            }
            wire.reply("plain").await;
        }
    })
    .await;
    for half_closed in [false, true] {
        let limited = proxy(upstream.address).max_connections(1).tunnel_idle(Duration::from_millis(300));
        let gateway = Gateway::limited(limited.queue_timeout(PATIENCE), Timeouts::new()).await;
        let mut wire = tunnel(&gateway).await;
        if half_closed {
            wire.finish_writing().await;
        }
        assert_eq!(ask(gateway.address, GET).await.text(), "plain", "its place is free");
        assert!(wire.ends_within(PATIENCE).await);
    }
}

#[tokio::test]
async fn a_tunnel_in_which_one_side_sends_stays_open() {
    let upstream = Upstream::scripted(|mut wire, _| async move {
        wire.request().await.unwrap();
        wire.write(SWITCH).await;
        for _ in 0..30 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            wire.write("x").await;
        }
    })
    .await;
    let gateway = Gateway::start(proxy(upstream.address).tunnel_idle(Duration::from_secs(2))).await;
    let mut wire = tunnel(&gateway).await;
    assert_eq!(wire.bytes(100).await.len(), 30);
}

#[tokio::test]
async fn tunnels_take_at_most_half_of_the_connections() {
    let upstream = echo_upstream().await;
    let gateway = Gateway::start(proxy(upstream.address).max_connections(4)).await;
    let mut tunnels = vec![tunnel(&gateway).await, tunnel(&gateway).await];
    let refused = ask(gateway.address, FOO).await;
    assert_eq!((refused.status(), refused.error()), (503, Some("connection_limit_reached")));
    let failure = gateway.seen.failures().pop().unwrap();
    assert_eq!((failure.cause(), failure.replay()), (Cause::ConnectionLimit, Replay::NotSent));
    assert_eq!(upstream.accepted(), 2, "nothing was sent for it");
    assert_eq!(ask(gateway.address, GET).await.text(), "plain");
    tunnels.pop();
    let mut status = 0;
    for _ in 0..50 {
        let mut wire = Wire::connect(gateway.address).await;
        wire.write(FOO).await;
        status = wire.head().await.status();
        if status == 101 {
            break;
        }
    }
    assert_eq!(status, 101);
}

#[tokio::test]
async fn an_upgrade_that_the_upstream_refuses_does_not_count_as_a_tunnel() {
    let upstream = Upstream::scripted(|mut wire, _| async move {
        while wire.request().await.is_some() {
            wire.reply("no foo here").await;
        }
    })
    .await;
    let gateway = Gateway::start(proxy(upstream.address).max_tunnels(1)).await;
    for _ in 0..3 {
        assert_eq!(Wire::connect(gateway.address).await.ask(FOO).await.status(), 200);
    }
}

#[tokio::test]
async fn upgrades_beyond_the_cap_do_not_lower_the_limit_of_other_calls() {
    let upstream = echo_upstream().await;
    let limit = ConcurrencyLimitLayer::adaptive();
    let proxy = proxy(upstream.address).max_tunnels(0).build::<Incoming>();
    let (layer, listener) = (limit.clone(), support::listener().await);
    let address = listener.local_addr().unwrap();
    let service = move |_| layer.layer(ClassifyLayer::new().layer(proxy.clone()));
    let gateway = tokio::spawn(support::serve(listener, service));
    let before = limit.handle().snapshot().limit;
    for _ in 0..60 {
        assert_eq!(ask(address, FOO).await.status(), 503);
    }
    assert_eq!(limit.handle().snapshot().limit, before);
    gateway.abort();
}

#[tokio::test]
async fn a_tunnel_holds_its_slot_of_the_limiter_only_if_that_is_set() {
    let upstream = echo_upstream().await;
    for holds in [true, false] {
        let limit = ConcurrencyLimitLayer::fixed(5);
        let limit = if holds { limit.hold_slot_during_upgrade() } else { limit };
        let proxy = proxy(upstream.address).build::<Incoming>();
        let (layer, listener) = (limit.clone(), support::listener().await);
        let address = listener.local_addr().unwrap();
        let service = move |_| layer.layer(ClassifyLayer::new().layer(proxy.clone()));
        let gateway = tokio::spawn(support::serve(listener, service));
        let mut wire = Wire::connect(address).await;
        wire.write(FOO).await;
        assert_eq!(wire.head().await.status(), 101);
        wire.write("ping").await;
        assert_eq!(wire.bytes(4).await, b"ping");
        assert_eq!(limit.handle().in_flight(), u32::from(holds));
        drop(wire);
        support::until("the slot is free", || limit.handle().in_flight() == 0).await;
        gateway.abort();
    }
}

#[tokio::test]
async fn a_tunnel_is_in_flight_in_its_stack_until_it_ends() {
    let upstream = echo_upstream().await;
    let gateway = StackGateway::start(stack(), default_proxy(upstream.address)).await;
    let mut wire = Wire::connect(gateway.address).await;
    wire.write(FOO).await;
    assert_eq!(wire.head().await.status(), 101);
    wire.write("ping").await;
    assert_eq!(wire.bytes(4).await, b"ping");
    assert_eq!(gateway.in_flight(), 1);
    assert_eq!(gateway.handle.drain(Duration::from_millis(20)).await, DrainOutcome::TimedOut(1));
    wire.write("pong").await;
    assert_eq!(wire.bytes(4).await, b"pong", "a drain does not cut it");
    drop(wire);
    support::until("the tunnel has ended", || gateway.in_flight() == 0).await;
    assert_eq!(gateway.handle.drain(Duration::ZERO).await, DrainOutcome::Complete);
}

#[tokio::test]
async fn a_client_that_closes_its_tunnel_ends_the_upstreams_side() {
    let (told, mut ended) = mpsc::unbounded_channel();
    let upstream = Upstream::scripted(move |mut wire, _| {
        let told = told.clone();
        async move {
            wire.request().await.unwrap();
            wire.write(SWITCH).await;
            told.send(wire.ends_within(PATIENCE).await).unwrap();
        }
    })
    .await;
    let gateway = Gateway::before(upstream.address).await;
    drop(tunnel(&gateway).await);
    assert!(soon(ended.recv()).await.unwrap());
}

#[tokio::test]
async fn an_upgrade_that_the_upstream_refuses_is_an_ordinary_response() {
    let upstream = Upstream::scripted(|mut wire, _| async move {
        while wire.request().await.is_some() {
            wire.reply("no foo here").await;
        }
    })
    .await;
    let gateway = Gateway::before(upstream.address).await;
    let mut wire = Wire::connect(gateway.address).await;
    for _ in 0..3 {
        let answer = wire.ask(FOO).await;
        assert_eq!((answer.status(), answer.text().as_str()), (200, "no foo here"));
    }
    assert_eq!(upstream.accepted(), 1);
    assert_eq!(gateway.seen.causes(), []);
}

/// Routes that respond with the version of each request, and a WebSocket that echoes once.
fn routes() -> Router {
    let echo = |upgrade: WebSocketUpgrade| async {
        upgrade.on_upgrade(|mut socket| async move {
            if let Some(Ok(message)) = socket.recv().await {
                socket.send(message).await.unwrap();
            }
        })
    };
    let version = |request: Request<axum::body::Body>| async move { format!("{:?}", request.version()) };
    Router::new().route("/ws", any(echo)).fallback(version)
}

/// A gateway before an upstream that speaks these protocols by ALPN, to which it offers these.
async fn before_tls(upstream: &[&[u8]], gateway: &[&[u8]]) -> (Upstream, Gateway) {
    let (upstream, pem) = support::tls_app(routes(), upstream).await;
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()).unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = gateway.iter().map(|protocol| protocol.to_vec()).collect();
    let target = format!("https://localhost:{}", upstream.address.port()).parse().unwrap();
    let builder = ReverseProxy::builder(target, ForwardingRules::new("edge").unwrap());
    let gateway = Gateway::start(builder.connector(TlsConnector::with_config(TcpConnector::new(), config))).await;
    (upstream, gateway)
}

async fn echoes(gateway: &Gateway) {
    let (mut socket, _) = soon(tokio_tungstenite::connect_async(format!("ws://{}/ws", gateway.address))).await.unwrap();
    socket.send(Message::text("one")).await.unwrap();
    assert_eq!(soon(socket.next()).await.unwrap().unwrap(), Message::text("one"));
}

#[tokio::test]
async fn a_websocket_goes_over_http_1_where_the_upstream_also_speaks_http_2() {
    let (upstream, gateway) = before_tls(&[b"h2", b"http/1.1"], &[b"h2", b"http/1.1"]).await;
    echoes(&gateway).await;
    for round in 0..3 {
        assert_eq!(ask(gateway.address, GET).await.text(), "HTTP/2.0");
        // even if another connection could take the request immediately
        echoes(&gateway).await;
        assert_eq!(upstream.accepted(), 3 + round);
    }
    assert_eq!(gateway.seen.causes(), []);
}

#[tokio::test]
async fn an_upgrade_gets_a_connection_though_http_2_connections_fill_the_pool() {
    let (upstream, pem) = support::tls_app(routes(), &[b"h2", b"http/1.1"]).await;
    let target = format!("https://localhost:{}", upstream.address.port()).parse().unwrap();
    let connector = TlsConnector::with_roots(TcpConnector::new(), pem.as_bytes()).unwrap();
    let builder = ReverseProxy::builder(target, ForwardingRules::new("edge").unwrap()).connector(connector);
    let gateway = Gateway::start(builder.max_connections(1)).await;
    for _ in 0..3 {
        assert_eq!(ask(gateway.address, GET).await.text(), "HTTP/2.0");
        echoes(&gateway).await;
    }
    assert_eq!(gateway.seen.causes(), []);
}

#[tokio::test]
async fn an_upgrade_that_only_http_2_could_carry_fails_and_nothing_is_sent() {
    // a connector and an upstream that speak HTTP/2 only
    for (upstream, gateway) in [(&[&b"h2"[..], b"http/1.1"][..], &[&b"h2"[..]][..]), (&[b"h2"], &[b"h2", b"http/1.1"])]
    {
        let (_upstream, gateway) = before_tls(upstream, gateway).await;
        for _ in 0..2 {
            let answer = ask(gateway.address, FOO).await;
            assert_eq!((answer.status(), answer.error()), (502, Some("http_upgrade_failed")));
            let failures = gateway.seen.failures();
            assert_eq!(gateway.seen.take(), [Cause::UpgradeFailed]);
            assert_eq!(failures[0].replay(), Replay::NotSent);
            assert_eq!(ask(gateway.address, GET).await.text(), "HTTP/2.0");
        }
    }
}

#[tokio::test]
async fn an_upgrade_fails_where_http_2_is_spoken_without_asking() {
    let upstream = app(routes()).await;
    let gateway = Gateway::start(proxy(upstream.address).http(HttpVersion::H2)).await;
    assert_eq!(ask(gateway.address, FOO).await.status(), 502);
    assert_eq!(gateway.seen.take(), [Cause::UpgradeFailed]);
    assert_eq!(upstream.accepted(), 0);
    // a protocol that would tunnel HTTP is not an upgrade (RFC 9113 section 3.1)
    let h2c = "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n";
    assert_eq!(ask(gateway.address, h2c).await.text(), "HTTP/2.0");
}

#[tokio::test]
async fn an_http_2_upstream_that_ends_http_1_connections_has_not_failed() {
    // as gRPC servers do if ALPN has not chosen h2: a connection that begins with the preface is HTTP/2
    let upstream = Upstream::accepting(|mut stream, _| async move {
        let mut first = [0; 3];
        let Ok(3) = stream.peek(&mut first).await else { return };
        if &first == b"PRI" {
            let service = TowerToHyperService::new(routes());
            let server = auto::Builder::new(TokioExecutor::new());
            let _ = server.serve_connection(TokioIo::new(stream), service).await;
        } else {
            let _ = tokio::io::AsyncReadExt::read(&mut stream, &mut [0; 4096]).await;
        }
    })
    .await;
    let address = upstream.address;
    // a connector with ALPN: HTTP/2 except for requests that need HTTP/1.1
    let upgrading = Arc::new(AtomicBool::new(false));
    let http1 = upgrading.clone();
    let connector = tower::service_fn(move |_: http::Uri| {
        let http1 = http1.load(SeqCst);
        async move { Ok::<_, std::io::Error>(Negotiated(TokioIo::new(TcpStream::connect(address).await?), !http1)) }
    });
    let gateway = Gateway::start(proxy(address).connector(connector)).await;
    assert_eq!(ask(gateway.address, GET).await.text(), "HTTP/2.0");
    upgrading.store(true, SeqCst);
    assert_eq!(ask(gateway.address, FOO).await.status(), 502);
    assert_eq!(gateway.seen.take(), [Cause::UpgradeFailed]);
}

/// A connection that reports the protocol chosen by ALPN.
struct Negotiated(TokioIo<TcpStream>, bool);

impl Connection for Negotiated {
    fn connected(&self) -> Connected {
        if self.1 { Connected::new().negotiated_h2() } else { Connected::new() }
    }
}

impl Read for Negotiated {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl Write for Negotiated {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// The response of a gateway whose upstream responds with this to this request.
async fn switched(request: &str, answer: &'static str) -> (u16, Vec<Cause>) {
    let upstream = Upstream::scripted(move |mut wire, _| async move {
        wire.request().await.unwrap();
        wire.write(answer).await;
        assert!(wire.ends_within(PATIENCE).await);
    })
    .await;
    let gateway = Gateway::before(upstream.address).await;
    let mut wire = Wire::connect(gateway.address).await;
    wire.write(request).await;
    (wire.head().await.status(), gateway.seen.causes())
}

#[tokio::test]
async fn a_101_without_an_upgrade_in_the_request_is_a_failure() {
    assert_eq!(switched(GET, SWITCH).await, (502, vec![Cause::UpgradeFailed]));
    // an upgrade to HTTP is not forwarded, so that the upstream did not see one
    let h2c = "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n";
    assert_eq!(switched(h2c, SWITCH).await, (502, vec![Cause::UpgradeFailed]));
}

#[tokio::test]
async fn a_101_to_another_protocol_is_a_failure() {
    let other = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: bar\r\n\r\n";
    assert_eq!(switched(FOO, other).await, (502, vec![Cause::UpgradeFailed]));
    let none = "HTTP/1.1 101 Switching Protocols\r\n\r\n";
    assert_eq!(switched(FOO, none).await, (502, vec![Cause::UpgradeFailed]));
}
