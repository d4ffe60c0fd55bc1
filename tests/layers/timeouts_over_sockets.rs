//! Timeouts over real sockets: the failure names the phase in which the time passed.

use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::Uri;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::dns::Name;
use hyper_util::rt::TokioExecutor;
use tokio::net::TcpStream;
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_upstream::cause::{Connection, Evidence, Phase, Replay};
use tower_upstream::client::{CaptureLayer, Connect, Connector, ReverseProxy, ReverseProxyBuilder, TcpConnector};
use tower_upstream::forward::ForwardingRules;
use tower_upstream::timeout::{TimeoutLayer, Timeouts};
use tower_upstream::{BadGatewayCause as Cause, Failure};

use crate::support::{Gateway, PATIENCE, Socket, Upstream, Wire, ask, proxy, short, soon};

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const SOON: Duration = Duration::from_millis(300);

/// Reads every request and responds to none.
async fn silent() -> Upstream {
    Upstream::scripted(|mut wire, _| async move { while wire.request().await.is_some() {} }).await
}

#[tokio::test]
async fn the_total_keeps_the_phase_of_a_silent_upstream() {
    let upstream = silent().await;
    let limits = Timeouts::new().total(SOON);
    let gateway = Gateway::limited(proxy(upstream.address), limits).await;
    let answer = ask(gateway.address, GET).await;
    assert_eq!((answer.status(), answer.error()), (504, Some("connection_read_timeout")));
    let failure = gateway.seen.failures().pop().unwrap();
    assert_eq!((failure.cause(), failure.phase()), (Cause::FirstByteTimeout, Phase::Wait));
}

#[tokio::test]
async fn the_total_covers_the_wait_for_a_connection() {
    let upstream = Upstream::scripted(|mut wire, _| async move {
        wire.request().await.unwrap();
        wire.write("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf").await;
        wire.request().await;
    })
    .await;
    let limits = Timeouts::new().total(SOON);
    let patient = proxy(upstream.address).max_connections(1).queue_timeout(Duration::from_secs(60));
    let gateway = Gateway::limited(patient, limits).await;
    // its head has arrived, so that the total no longer applies, and it holds the only connection
    let mut first = Wire::connect(gateway.address).await;
    first.write(GET).await;
    assert_eq!(soon(first.head()).await.status(), 200);
    assert_eq!(ask(gateway.address, GET).await.status(), 503);
    let failure = gateway.seen.failures().pop().unwrap();
    assert_eq!(failure.cause(), Cause::QueueTimeout);
    assert_eq!((failure.phase(), failure.replay()), (Phase::Pool, Replay::NotSent));
}

#[tokio::test]
async fn a_client_that_stops_uploading_is_no_failure_of_the_upstream() {
    let upstream = silent().await;
    let gateway = Gateway::limited(proxy(upstream.address), short()).await;
    let mut client = Wire::connect(gateway.address).await;
    client.write("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nonly this").await;
    let answer = soon(client.answer()).await;
    assert_eq!((answer.status(), answer.error()), (408, Some("http_request_error")));
    assert_eq!(gateway.seen.causes(), [Cause::UploadStalled]);
}

#[tokio::test]
async fn an_upload_that_moves_is_never_late_however_long_it_takes() {
    let upstream = Upstream::scripted(|mut wire, _| async move {
        let whole = wire.request().await.unwrap();
        wire.reply(&whole.body.len().to_string()).await;
    })
    .await;
    let gateway = Gateway::limited(proxy(upstream.address), short()).await;
    let mut client = Wire::connect(gateway.address).await;
    client.write("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 12\r\n\r\n").await;
    // three times the limit for the head
    for _ in 0..12 {
        client.write("x").await;
        tokio::time::sleep(Duration::from_millis(75)).await;
    }
    assert_eq!(soon(client.answer()).await.text(), "12");
}

#[tokio::test]
async fn a_client_that_reads_slowly_is_no_failure_of_the_upstream() {
    const SIZE: usize = 16 << 20;
    let upstream = Upstream::scripted(|mut wire, _| async move {
        wire.request().await.unwrap();
        wire.write(format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n")).await;
        wire.write(vec![b'x'; SIZE]).await;
    })
    .await;
    let gateway = Gateway::limited(proxy(upstream.address), short()).await;
    let mut client = Wire::connect(gateway.address).await;
    client.write(GET).await;
    // four times the limit between two frames
    tokio::time::sleep(4 * SOON).await;
    let answer = soon(client.answer()).await;
    assert_eq!((answer.status(), answer.body.len(), answer.whole), (200, SIZE, true));
    assert_eq!(gateway.seen.causes(), []);
}

#[tokio::test]
async fn without_timeouts_a_response_may_take_any_time() {
    let upstream = Upstream::scripted(|mut wire, _| async move {
        wire.request().await.unwrap();
        tokio::time::sleep(2 * SOON).await;
        wire.reply("late").await;
    })
    .await;
    let limits = Timeouts::new().response_head(None).body_idle(None).total(None);
    let gateway = Gateway::limited(proxy(upstream.address), limits).await;
    assert_eq!(ask(gateway.address, GET).await.text(), "late");
}

/// The timeout of an attempt in each of the phases below.
const PHASE: Duration = Duration::from_millis(100);

/// Makes a call of a proxy under one timeout, for the attempt; returns its failure.
async fn attempt<C>(builder: ReverseProxyBuilder<C>) -> Failure
where
    C: Connect,
    C::Future: 'static,
{
    attempt_of(builder.build::<Body>()).await
}

async fn attempt_of<S, B>(service: S) -> Failure
where
    S: Service<http::Request<Body>, Response = http::Response<B>, Error: std::fmt::Debug + 'static>,
    B: http_body::Body<Data = Bytes, Error: Into<tower::BoxError>>,
{
    let limits = Timeouts::new().attempt(PHASE);
    let request = http::Request::get("http://a.test/").header("host", "a").body(Body::empty()).unwrap();
    let answer =
        soon(TimeoutLayer::new(limits).without_upload_tracking().layer(service).oneshot(request)).await.unwrap();
    assert_eq!(answer.status(), Failure::of(&answer).unwrap().cause().status());
    Failure::of(&answer).unwrap().clone()
}

/// A connector that leaves the connection to the test.
fn dials(to: std::net::SocketAddr) -> ReverseProxyBuilder {
    ReverseProxy::builder(to.to_string().parse().unwrap(), ForwardingRules::new("edge").unwrap())
}

fn told(failure: &Failure) -> (Cause, Phase, Replay, Evidence) {
    (failure.cause(), failure.phase(), failure.replay(), failure.evidence())
}

fn unsent(cause: Cause, phase: Phase) -> (Cause, Phase, Replay, Evidence) {
    (cause, phase, Replay::NotSent, Evidence::NoConnection)
}

#[tokio::test]
async fn a_timeout_during_resolution_names_it() {
    let silent = service_fn(|_: Name| std::future::pending::<Result<std::vec::IntoIter<_>, std::io::Error>>());
    let target = "nowhere.test".parse().unwrap();
    let named = ReverseProxy::builder(target, ForwardingRules::new("edge").unwrap());
    let failure = attempt(named.connector(TcpConnector::with_resolver(silent))).await;
    assert_eq!(told(&failure), unsent(Cause::DnsTimeout, Phase::Resolve));
}

#[tokio::test]
async fn a_timeout_during_the_connect_names_it() {
    let never = service_fn(|_: Uri| std::future::pending::<Result<Socket<TcpStream>, std::io::Error>>());
    let failure = attempt(dials(([127, 0, 0, 1], 1).into()).connector(never)).await;
    assert_eq!(told(&failure), unsent(Cause::ConnectTimeout, Phase::Connect));
}

#[tokio::test]
async fn a_timeout_during_the_tls_handshake_names_it() {
    let upstream = Upstream::scripted(|mut wire, _| async move { drop(wire.bytes(1 << 20).await) }).await;
    let target = format!("https://localhost:{}", upstream.address.port()).parse().unwrap();
    let failure = attempt(ReverseProxy::builder(target, ForwardingRules::new("edge").unwrap())).await;
    assert_eq!(told(&failure), unsent(Cause::TlsTimeout, Phase::Tls));
    assert_eq!(failure.peer(), Some(upstream.address));
}

#[tokio::test]
async fn a_timeout_in_the_queue_of_the_pool_names_it() {
    let upstream = silent().await;
    let mut proxy = dials(upstream.address).max_connections(1).queue_timeout(PATIENCE).build::<Body>();
    let first = http::Request::get("/").header("host", "a").body(Body::empty()).unwrap();
    let mut first = Box::pin(proxy.call(first));
    // it holds the only connection, on which the upstream never responds
    while upstream.accepted() == 0 {
        let _ = tokio::time::timeout(Duration::from_millis(5), &mut first).await;
    }
    let failure = attempt_of(proxy).await;
    assert_eq!(told(&failure), unsent(Cause::QueueTimeout, Phase::Pool));
    assert_eq!(failure.cause().status(), 503);
}

#[tokio::test]
async fn a_timeout_of_a_silent_upstream_names_the_wait_for_the_first_byte() {
    let upstream = silent().await;
    let failure = attempt(dials(upstream.address)).await;
    let (cause, replay) = (Cause::FirstByteTimeout, Replay::IdempotentOnly);
    assert_eq!(told(&failure), (cause, Phase::Wait, replay, Evidence::Counted));
    assert_eq!((failure.peer(), failure.connection()), (Some(upstream.address), Some(Connection::Fresh)));
    assert_eq!(failure.upstream(), Some(upstream.address.to_string().as_str()));
}

/// hyper-util's own client over our connector.
fn legacy<C>(connector: C) -> Client<Connector<C>, Body>
where
    C: Clone,
    Connector<C>: hyper_util::client::legacy::connect::Connect + Clone,
{
    Client::builder(TokioExecutor::new()).build(Connector::new(connector))
}

#[tokio::test]
async fn around_hyper_utils_client_our_connector_reports_the_phases_before_a_connection() {
    let silent = service_fn(|_: Name| std::future::pending::<Result<std::vec::IntoIter<_>, std::io::Error>>());
    let failure = attempt_of(legacy(TcpConnector::with_resolver(silent))).await;
    // the client does not say which connection is meant
    let inferred = |cause, phase| (cause, phase, Replay::IdempotentOnly, Evidence::Inferred);
    assert_eq!(told(&failure), inferred(Cause::DnsTimeout, Phase::Resolve));
    let never = service_fn(|_: Uri| std::future::pending::<Result<Socket<TcpStream>, std::io::Error>>());
    let failure = attempt_of(legacy(never)).await;
    assert_eq!(told(&failure), inferred(Cause::ConnectTimeout, Phase::Connect));
    let captured = tower_upstream::client::CaptureLayer::new();
    let failure = attempt_of(tower::Layer::layer(&captured, legacy(never))).await;
    assert_eq!(told(&failure), unsent(Cause::ConnectTimeout, Phase::Connect));
}

#[tokio::test]
async fn around_hyper_utils_client_later_phases_are_known_if_the_connection_is_captured() {
    let upstream = Upstream::scripted(|mut wire, _| async move {
        wire.request().await.unwrap();
        wire.write("HTTP/1.1 200 OK\r\nA: ").await;
        loop {
            tokio::time::sleep(PHASE / 8).await;
            wire.write("x").await;
        }
    })
    .await;
    let to = upstream.address;
    let dial = service_fn(move |_: Uri| async move { TcpStream::connect(to).await.map(Socket::new) });
    let inferred = attempt_of(legacy(dial)).await;
    assert_eq!((inferred.cause(), inferred.evidence()), (Cause::FirstByteTimeout, Evidence::Inferred));
    let counted = attempt_of(CaptureLayer::new().layer(legacy(dial))).await;
    let (cause, replay) = (Cause::HeadTimeout, Replay::IdempotentOnly);
    assert_eq!(told(&counted), (cause, Phase::Head, replay, Evidence::Counted));
}
