//! Timeouts of client, gateway and upstream around each other, over real sockets: the shortest decides which of them
//! ends the call. A keep-alive that is shorter than the pool's idle limit is in `alignment`.

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use hyper::body::Incoming;
use tokio::time::{sleep, timeout};
use tower::Layer;
use tower_upstream::alignment::Finding;
use tower_upstream::alignment::Topology;
use tower_upstream::cause::ProxyStatus;
use tower_upstream::client::ReverseProxy;
use tower_upstream::deadline::{DeadlineHeader, DeadlinePropagation};
use tower_upstream::forward::ForwardingRules;
use tower_upstream::timeout::{TimeoutLayer, Timeouts};
use tower_upstream::{BadGatewayCause as Cause, ClassifyLayer};

use crate::support::gateway::{listener, serve};
use crate::support::{Seen, Upstream, Wire, app};

const SECOND: Duration = Duration::from_secs(1);

/// An upstream that works for three seconds, and responds with 504 after its own limit.
async fn upstream(own_limit: Duration) -> Upstream {
    let work = move || async move {
        match timeout(own_limit, sleep(SECOND * 3)).await {
            Ok(()) => (StatusCode::OK, "the answer"),
            Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "the upstream's own limit"),
        }
    };
    app(Router::new().route("/", get(work))).await
}

/// A gateway with a total of two seconds that trusts its clients' deadlines.
async fn gateway(upstream: SocketAddr) -> (SocketAddr, Seen) {
    let target = upstream.to_string().parse().unwrap();
    let proxy = ReverseProxy::builder(target, ForwardingRules::new("edge").unwrap()).build::<Incoming>();
    let deadlines = DeadlinePropagation::new().trust_everyone().forward(DeadlineHeader::request_timeout());
    let limits = TimeoutLayer::new(limits()).deadlines(deadlines).without_upload_tracking();
    let seen = Seen::default();
    let classify = ClassifyLayer::new().proxy_status(ProxyStatus::new("edge").unwrap()).observer(seen.clone());
    let listener = listener().await;
    let address = listener.local_addr().unwrap();
    let service = classify.layer(limits.layer(proxy));
    tokio::spawn(serve(listener, move |_| service.clone()));
    (address, seen)
}

fn limits() -> Timeouts {
    Timeouts::new().total(SECOND * 2)
}

/// The status and the gateway's error that a client gets, or nothing if it cancels before, after this time.
async fn call(gateway: SocketAddr, leaves: Duration, fields: &str) -> Option<(u16, Option<String>)> {
    let mut wire = Wire::connect(gateway).await;
    wire.write(format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n")).await;
    let answer = timeout(leaves, wire.answer()).await.ok()?;
    Some((answer.status(), answer.error().map(str::to_owned)))
}

fn refused(topology: &Topology) -> Vec<&'static str> {
    limits().check(topology).refused().map(Finding::id).collect()
}

#[tokio::test]
async fn a_client_of_one_second_cancels_before_a_gateway_of_two_unless_it_sends_its_deadline() {
    let upstream = upstream(SECOND * 9).await;
    let (gateway, seen) = gateway(upstream.address).await;
    assert_eq!(refused(&Topology::new().client_timeout(SECOND)), ["total_caller"]);
    assert_eq!(call(gateway, SECOND, "").await, None, "nobody told it why");

    let told = call(gateway, SECOND, "X-Request-Timeout-Ms: 1000\r\n").await;
    assert_eq!(told, Some((504, Some("http_response_timeout".to_owned()))));
    // the cause is the client's, not the upstream's
    assert_eq!(seen.causes(), [Cause::ClientClosed, Cause::DeadlineExceeded]);
}

#[tokio::test]
async fn a_gateway_of_two_seconds_responds_to_a_client_of_three() {
    let upstream = upstream(SECOND * 9).await;
    let (gateway, seen) = gateway(upstream.address).await;
    assert!(refused(&Topology::new().client_timeout(SECOND * 3)).is_empty());
    let told = call(gateway, SECOND * 3, "").await;
    assert_eq!(told, Some((504, Some("connection_read_timeout".to_owned()))));
    assert_eq!(seen.causes(), [Cause::FirstByteTimeout]);
}

#[tokio::test]
async fn an_upstream_of_one_second_responds_with_its_own_504() {
    let upstream = upstream(SECOND).await;
    let (gateway, seen) = gateway(upstream.address).await;
    let topology = Topology::new().client_timeout(SECOND * 3).upstream_timeout(SECOND);
    assert!(limits().check(&topology).is_aligned());
    let told = call(gateway, SECOND * 3, "").await;
    assert_eq!(told, Some((503, None)), "relayed, and nobody's failure but its own");
    assert_eq!(seen.causes(), [Cause::UpstreamStatus]);
    // while one of three seconds would be hidden behind our 504
    let topology = topology.upstream_timeout(SECOND * 3);
    let warned: Vec<_> = limits().check(&topology).findings().iter().map(Finding::id).collect();
    assert_eq!(warned, ["upstream_timeout_attempt"]);
}
