//! tonic: its codes mislead, the chain below them does not.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::uri::PathAndQuery;
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint};
use tower_upstream::BadGatewayCause as Cause;
use tower_upstream::cause::Evidence;

use super::client::{ask, failed, url};
use super::frames::{REFUSED_STREAM, h2_upstream, reset};
use super::peer::{FullQueue, Peer, closed_port};
use super::raw::Raw;
use super::table::{Got, cause, check, no_connection, row};

const A_LITTLE: Duration = Duration::from_millis(100);

fn endpoint(address: SocketAddr) -> Endpoint {
    Endpoint::try_from(url(address)).expect("a good target")
}

async fn call(channel: Channel) -> Got {
    let mut client = Grpc::new(channel);
    if let Err(error) = client.ready().await {
        return failed(error);
    }
    let method = PathAndQuery::from_static("/shop.Orders/Get");
    let called = client.unary(tonic::Request::new(Bytes::new()), method, Raw).await;
    failed(called.expect_err("nobody serves gRPC here"))
}

async fn call_connected(script: fn(&mut Peer)) -> Got {
    call(endpoint(h2_upstream(script)).connect().await.expect("the upstream listens")).await
}

async fn call_limited() -> Got {
    let endpoint = endpoint(h2_upstream(Peer::silence)).timeout(A_LITTLE);
    call(endpoint.connect().await.expect("the upstream listens")).await
}

async fn connect_to_a_closed_port() -> Got {
    let (_reserved, address) = closed_port();
    failed(endpoint(address).connect().await.expect_err("nobody listens"))
}

async fn connect_to_a_full_queue() -> Got {
    let full = FullQueue::new();
    failed(endpoint(full.address).connect_timeout(A_LITTLE).connect().await.expect_err("no SYN is answered"))
}

async fn call_a_closed_port() -> Got {
    let (_reserved, address) = closed_port();
    call(endpoint(address).connect_lazy()).await
}

async fn ask_a_closed_port() -> Got {
    let (_reserved, address) = closed_port();
    let request = http::Request::post("/shop.Orders/Get").body(tonic::body::Body::empty()).expect("a good target");
    ask(endpoint(address).connect_lazy(), request).await
}

#[test]
fn tonic_is_read_by_its_chain_not_by_its_codes() {
    let refused = || no_connection(Cause::ConnectionRefused).errno(111);
    check(vec![
        row("H12", "connect, port closed", connect_to_a_closed_port(), refused()),
        row("H13", "connect, queue full", connect_to_a_full_queue(), no_connection(Cause::ConnectTimeout)),
        row(
            "H14",
            "REFUSED_STREAM",
            call_connected(|peer| peer.say(reset(1, REFUSED_STREAM)).silence()),
            cause(Cause::StreamRefused).not_sent(Evidence::RefusedStream).h2(REFUSED_STREAM),
        ),
        row("H15", "FIN", call_connected(Peer::fin), cause(Cause::ClosedBeforeResponse).idempotent_only()),
        row("H16", "its own limit", call_limited(), cause(Cause::DeadlineExceeded).idempotent_only()),
        row("H17", "lazy, port closed", call_a_closed_port(), refused()),
        row("H18", "a channel as a service", ask_a_closed_port(), refused()),
    ]);
}
