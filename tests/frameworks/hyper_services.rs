//! hyper: served through `TowerToHyperService` and as its own `Service`; hyper-util's client inside.

use std::convert::Infallible;
use std::net::SocketAddr;

use axum::Router;
use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tower::{BoxError, Layer, ServiceBuilder};
use tower_upstream::BadGatewayCause as Cause;
use tower_upstream::breaker::State;
use tower_upstream::compat::{MapRequestBodyLayer, OriginLayer};

use crate::stack::Stack;
use crate::support::{Message, Upstream, Wire, ask, listener, proxy, upstream};

/// Serves every connection by a clone, HTTP/1.1 and h2c.
async fn serve<S, B>(service: S) -> SocketAddr
where
    S: hyper::service::Service<Request<Incoming>, Response = Response<B>, Error = Infallible, Future: Send>
        + Clone
        + Send
        + 'static,
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    let listener = listener().await;
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = service.clone();
            tokio::spawn(async move {
                let server = auto::Builder::new(TokioExecutor::new());
                let _ = server.serve_connection_with_upgrades(TokioIo::new(stream), service).await;
            });
        }
    });
    address
}

async fn get(address: SocketAddr, path: &str) -> Message {
    ask(address, format!("GET {path} HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n\r\n")).await
}

/// Responds with the target and the host of the request.
async fn echo() -> Upstream {
    let say = |request: axum::extract::Request| async move {
        let host = request.headers().get("host").map(|host| host.to_str().unwrap().to_owned());
        let (parts, body) = request.into_parts();
        let body = axum::body::to_bytes(body, 99).await.unwrap();
        format!("{} {} {} {}", parts.method, parts.uri, host.unwrap_or_default(), String::from_utf8_lossy(&body))
    };
    upstream::app(Router::new().fallback(say)).await
}

#[tokio::test]
async fn towers_service_is_served_by_hypers_server() {
    let upstream = echo().await;
    let stack = Stack::new("edge");
    let address = serve(TowerToHyperService::new(stack.around(proxy(upstream.address).build()))).await;
    for _ in 0..3 {
        let answer = get(address, "/cart?item=3").await;
        assert_eq!((answer.status(), answer.text().as_str()), (200, "GET /cart?item=3 shop.example "));
    }
    assert_eq!((upstream.accepted(), stack.in_flight()), (1, 0));
}

#[tokio::test]
async fn hypers_own_service_is_called_without_a_clone() {
    let upstream = echo().await;
    let stack = Stack::new("edge");
    let address = serve(stack.around_hyper(proxy(upstream.address).build())).await;
    let mut wire = Wire::connect(address).await;
    let post = "POST /order HTTP/1.1\r\nHost: shop.example\r\nTransfer-Encoding: chunked\r\n\r\n3\r\ntea\r\n0\r\n\r\n";
    for _ in 0..3 {
        assert_eq!(wire.ask(post).await.text(), "POST /order shop.example tea");
    }
    assert_eq!((upstream.accepted(), stack.in_flight(), stack.circuit().calls), (1, 0, 3));
}

#[tokio::test]
async fn the_circuit_opens_over_fresh_connections_both_ways() {
    let dead = listener().await.local_addr().unwrap();
    let (tower, hyper) = (Stack::new("tower"), Stack::new("hyper"));
    let served = [
        (&tower, serve(TowerToHyperService::new(tower.around(proxy(dead).build()))).await),
        (&hyper, serve(hyper.around_hyper(proxy(dead).build())).await),
    ];
    for (stack, address) in served {
        let mut answers = Vec::new();
        for _ in 0..10 {
            answers.push(get(address, "/").await.status());
        }
        assert_eq!((answers[0], answers[9], stack.circuit().state), (502, 503, State::Open));
        assert_eq!(stack.circuit().failures, 5, "not one attempt more");
        assert_eq!(stack.seen().causes().last(), Some(&Cause::CircuitOpen));
    }
}

#[tokio::test]
async fn hyper_utils_client_sends_a_gateways_requests_to_its_origin() {
    let upstream = echo().await;
    let stack = Stack::new("edge");
    let origin: OriginLayer = format!("http://{}", upstream.address).parse().unwrap();
    let client = origin.layer(Client::builder(TokioExecutor::new()).build_http());
    let address = serve(TowerToHyperService::new(stack.around(client))).await;
    let answer = get(address, "/a//b?c=d").await;
    assert_eq!((answer.status(), answer.text().as_str()), (200, "GET /a//b?c=d shop.example "));
    // the host in the target is chosen by the client
    let absolute = "GET http://evil.example/a HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n\r\n";
    assert_eq!(ask(address, absolute).await.text(), "GET /a shop.example ");
    let put = "PUT /order HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 3\r\nConnection: close\r\n\r\ntea";
    assert_eq!(ask(address, put).await.text(), "PUT /order shop.example tea");
    assert_eq!(stack.in_flight(), 0);
}

#[tokio::test]
async fn hyper_utils_client_gets_an_absolute_target() {
    let stack = Stack::new("edge");
    let address = serve(TowerToHyperService::new(
        stack.around(Client::builder(TokioExecutor::new()).build_http::<crate::stack::Sent<Incoming>>()),
    ))
    .await;
    let answer = get(address, "/no/host").await;
    assert_eq!((answer.status(), stack.seen().causes().last()), (500, Some(&Cause::InvalidTarget)));
    assert_eq!(stack.circuit().failures, 0, "the upstream was never asked");
}

#[tokio::test]
async fn a_client_of_one_body_type_gets_a_converted_body() {
    let upstream = echo().await;
    let stack = Stack::new("edge");
    let origin: OriginLayer = format!("http://{}", upstream.address).parse().unwrap();
    let client = ServiceBuilder::new()
        .layer(MapRequestBodyLayer::new(axum::body::Body::new))
        .layer(origin)
        .service(Client::builder(TokioExecutor::new()).build_http::<axum::body::Body>());
    let address = serve(TowerToHyperService::new(stack.around(client))).await;
    let put = "PUT /order HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 3\r\nConnection: close\r\n\r\ntea";
    assert_eq!(ask(address, put).await.text(), "PUT /order shop.example tea");
}
