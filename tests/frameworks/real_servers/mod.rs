//! Real servers behind the default stack: gRPC, and WebSocket over TLS that also offers HTTP/2.
//!
//! `tests/grpcio/run` asks grpc-core the same, in real time.

mod ping_policy;

use std::convert::Infallible;
use std::future::{Future, ready};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::extract::WebSocketUpgrade;
use axum::extract::ws;
use axum::routing::{any, get};
use bytes::Bytes;
use futures_util::{SinkExt, Stream, StreamExt, stream};
use http::Version;
use http::uri::PathAndQuery;
use tokio_tungstenite::tungstenite::Message;
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Code, Request, Response, Status};
use tower::{Service, service_fn};
use tower_upstream::client::{HttpVersion, ReverseProxy, TcpConnector, TlsConnector};
use tower_upstream::forward::ForwardingRules;
use tower_upstream::timeout::Timeouts;

use self::ping_policy::PingPolicy;
use crate::raw::Raw;
use crate::support::{self, StackGateway, default_proxy, listener, skip, soon, stack, tls_app};

const SECOND: Duration = Duration::from_secs(1);

/// Responds after as many seconds as the request's message says; a stream sends a message before and after.
#[derive(Clone, Copy)]
struct Late;

impl NamedService for Late {
    const NAME: &'static str = "test.Late";
}

type Messages = Pin<Box<dyn Stream<Item = Result<Bytes, Status>> + Send>>;

async fn wait(request: Request<Bytes>) {
    let seconds = std::str::from_utf8(request.get_ref()).unwrap().parse().unwrap();
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

impl Service<http::Request<Body>> for Late {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(async move {
            let mut grpc = tonic::server::Grpc::new(Raw);
            if request.uri().path() == "/test.Late/Unary" {
                let late = |request: Request<Bytes>| async {
                    wait(request).await;
                    Ok::<_, Status>(Response::new(Bytes::from_static(b"done")))
                };
                return Ok(grpc.unary(service_fn(late), request).await);
            }
            let late = |request: Request<Bytes>| {
                let last = stream::once(async {
                    wait(request).await;
                    Ok(Bytes::from_static(b"done"))
                });
                let all = stream::iter([Ok(Bytes::from_static(b"begun"))]).chain(last);
                ready(Ok::<_, Status>(Response::new(Box::pin(all) as Messages)))
            };
            Ok(grpc.server_streaming(service_fn(late), request).await)
        })
    }
}

/// A gateway with long limits before a gRPC server with the PING policy of grpc-core, and a channel to it.
async fn grpc() -> (StackGateway, PingPolicy, tonic::client::Grpc<Channel>) {
    let listener = listener().await;
    let server = listener.local_addr().unwrap();
    let routes = tonic::service::Routes::new(Late);
    tokio::spawn(Server::builder().serve_with_incoming(routes, TcpIncoming::from(listener)));

    let policy = PingPolicy::before(server).await;
    let long = Duration::from_secs(2 * 60 * 60);
    let limits = Timeouts::new().response_head(long).attempt(long).body_idle(long).total(long);
    let gateway =
        StackGateway::start(stack().timeouts(move |_| limits), default_proxy(policy.address).http(HttpVersion::H2))
            .await;
    let channel = Endpoint::try_from(format!("http://{}", gateway.address)).unwrap().connect().await.unwrap();
    (gateway, policy, tonic::client::Grpc::new(channel))
}

/// A message that says how long the server is silent.
fn silence(seconds: u32) -> Request<Bytes> {
    Request::new(Bytes::from(seconds.to_string()))
}

async fn unary_call_is_answered(seconds: u32, step: u32) {
    let (gateway, policy, mut client) = grpc().await;
    client.ready().await.unwrap();
    let method = PathAndQuery::from_static("/test.Late/Unary");
    let call = tokio::spawn(async move { client.unary(silence(seconds), method, Raw).await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    skip(seconds / step + 1, SECOND * step).await;
    let answer = soon(call).await.unwrap();
    assert_eq!(answer.map(Response::into_inner).map_err(|status| status.code()), Ok(Bytes::from_static(b"done")));
    assert_eq!((policy.violations(), gateway.circuit().failures), (0, 0));
}

#[tokio::test]
async fn a_grpc_call_that_is_silent_for_45_s_is_answered() {
    unary_call_is_answered(45, 1).await;
}

#[tokio::test]
async fn a_grpc_call_that_is_silent_for_an_hour_is_answered() {
    unary_call_is_answered(60 * 60, 5).await;
}

#[tokio::test]
async fn a_grpc_stream_that_is_silent_for_45_s_goes_on() {
    let (gateway, policy, mut client) = grpc().await;
    client.ready().await.unwrap();
    let method = PathAndQuery::from_static("/test.Late/Stream");
    let mut messages = soon(client.server_streaming(silence(45), method, Raw)).await.unwrap().into_inner();
    assert_eq!(soon(messages.message()).await.unwrap().unwrap(), "begun");
    skip(46, SECOND).await;
    let last: Result<Option<Bytes>, Code> = soon(messages.message()).await.map_err(|status| status.code());
    assert_eq!(last, Ok(Some(Bytes::from_static(b"done"))));
    assert_eq!(soon(messages.message()).await.unwrap(), None);
    assert_eq!((policy.violations(), gateway.circuit().failures, gateway.in_flight()), (0, 0, 0));
}

/// A WebSocket echo, and a page that says by which protocol it was requested.
fn chat() -> Router {
    let echo = |upgrade: WebSocketUpgrade| async {
        upgrade.on_upgrade(|mut socket| async move {
            while let Some(Ok(message)) = socket.recv().await {
                if !matches!(message, ws::Message::Close(_)) {
                    socket.send(message).await.unwrap();
                }
            }
        })
    };
    let version = |version: Version| async move { format!("{version:?}") };
    Router::new().route("/chat", any(echo)).route("/version", get(version))
}

async fn tls_gateway(protocols: &[&[u8]]) -> (StackGateway, support::Upstream) {
    let (upstream, pem) = tls_app(chat(), protocols).await;
    let target = format!("https://localhost:{}", upstream.address.port()).parse().unwrap();
    let connector = TlsConnector::with_roots(TcpConnector::new(), pem.as_bytes()).unwrap();
    let proxy = ReverseProxy::builder(target, ForwardingRules::new("edge").unwrap()).connector(connector);
    (StackGateway::start(stack(), proxy).await, upstream)
}

async fn echoes(gateway: SocketAddr) {
    let connect = tokio_tungstenite::connect_async(format!("ws://{gateway}/chat"));
    let (mut socket, _) = soon(connect).await.unwrap();
    for text in ["one".to_owned(), "x".repeat(200_000)] {
        socket.send(Message::text(text.clone())).await.unwrap();
        assert_eq!(soon(socket.next()).await.unwrap().unwrap(), Message::text(text));
    }
    socket.close(None).await.unwrap();
}

async fn version(gateway: SocketAddr) -> String {
    support::ask(gateway, "GET /version HTTP/1.1\r\nHost: a\r\n\r\n").await.text()
}

#[tokio::test]
async fn a_websocket_passes_where_alpn_offers_http2_as_well() {
    let (gateway, _upstream) = tls_gateway(&[b"h2", b"http/1.1"]).await;
    echoes(gateway.address).await;
    // other requests still use HTTP/2, on a connection that is kept
    assert_eq!(version(gateway.address).await, "HTTP/2.0");
    echoes(gateway.address).await;
    assert_eq!(version(gateway.address).await, "HTTP/2.0");
    assert_eq!(gateway.seen.causes(), []);
}

#[tokio::test]
async fn a_websocket_passes_where_alpn_offers_http1_alone() {
    for protocols in [&[b"http/1.1".as_slice()][..], &[]] {
        let (gateway, _upstream) = tls_gateway(protocols).await;
        echoes(gateway.address).await;
        assert_eq!(version(gateway.address).await, "HTTP/1.1");
        assert_eq!(gateway.seen.causes(), []);
    }
}
