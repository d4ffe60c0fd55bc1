//! tonic: a channel inside the stack, and a server inside it; a unary call, a stream, trailers-only, a deadline.

use std::convert::Infallible;
use std::future::{Future, ready};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use http::uri::PathAndQuery;
use tonic::body::Body;
use tonic::client::GrpcService;
use tonic::server::NamedService;
use tonic::transport::Endpoint;
use tonic::transport::server::TcpIncoming;
use tonic::{Code, Request, Response, Status};
use tower::{Layer, Service, service_fn};
use tower_upstream::BadGatewayCause as Cause;
use tower_upstream::breaker::State;
use tower_upstream::compat::MapRequestBodyLayer;

use crate::raw::Raw;
use crate::stack::Stack;
use crate::support::{listener, soon, until};

/// A service as `tonic-build` generates it.
#[derive(Clone, Default)]
struct Shop {
    called: Arc<AtomicUsize>,
}

impl NamedService for Shop {
    const NAME: &'static str = "test.Shop";
}

type Messages = Pin<Box<dyn Stream<Item = Result<Bytes, Status>> + Send>>;
type Answer = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

impl Service<http::Request<Body>> for Shop {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Answer {
        self.called.fetch_add(1, Relaxed);
        Box::pin(async move {
            let mut grpc = tonic::server::Grpc::new(Raw);
            Ok(match request.uri().path() {
                "/test.Shop/Echo" => {
                    grpc.unary(
                        service_fn(|asked: Request<Bytes>| ready(Ok(Response::new(asked.into_inner())))),
                        request,
                    )
                    .await
                }
                "/test.Shop/Limit" => {
                    // the client's remaining time, as the upstream sees it
                    let left = request.headers().get("grpc-timeout").map(|left| left.as_bytes().to_vec());
                    let left = Bytes::from(left.unwrap_or_default());
                    grpc.unary(service_fn(move |_: Request<Bytes>| ready(Ok(Response::new(left.clone())))), request)
                        .await
                }
                "/test.Shop/Sold" => {
                    let sold = |_: Request<Bytes>| ready(Err::<Response<Bytes>, _>(Status::not_found("sold out")));
                    grpc.unary(service_fn(sold), request).await
                }
                "/test.Shop/Watch" => {
                    let events = |asked: Request<Bytes>| {
                        let first = stream::iter([Ok(asked.into_inner()), Ok(Bytes::from("second"))]);
                        ready(Ok(Response::new(Box::pin(first.chain(stream::pending())) as Messages)))
                    };
                    grpc.server_streaming(service_fn(events), request).await
                }
                _ => {
                    let stuck = |_: Request<Bytes>| std::future::pending::<Result<Response<Bytes>, Status>>();
                    grpc.unary(service_fn(stuck), request).await
                }
            })
        })
    }
}

async fn served(shop: Shop) -> SocketAddr {
    let listener = listener().await;
    let address = listener.local_addr().unwrap();
    let routes = tonic::service::Routes::new(shop);
    tokio::spawn(tonic::transport::Server::builder().serve_with_incoming(routes, TcpIncoming::from(listener)));
    address
}

/// A generated client's channel, with the stack around.
fn channel(stack: &Stack, address: SocketAddr) -> impl Calls {
    let channel = Endpoint::try_from(format!("http://{address}")).unwrap().connect_lazy();
    tonic::client::Grpc::new(stack.around::<_, Body, _>(MapRequestBodyLayer::new(Body::new).layer(channel)))
}

trait Calls {
    async fn unary(&mut self, method: &'static str, request: Request<Bytes>) -> Result<Response<Bytes>, Status>;

    async fn watch(&mut self, message: &'static str) -> Result<tonic::Streaming<Bytes>, Status>;
}

impl<S> Calls for tonic::client::Grpc<S>
where
    S: GrpcService<Body>,
    S::ResponseBody: http_body::Body<Data = Bytes> + Send + 'static,
    <S::ResponseBody as http_body::Body>::Error: Into<tower::BoxError>,
{
    async fn unary(&mut self, method: &'static str, request: Request<Bytes>) -> Result<Response<Bytes>, Status> {
        self.ready().await.map_err(|error| Status::from_error(error.into()))?;
        soon(Self::unary(self, request, PathAndQuery::from_static(method), Raw)).await
    }

    async fn watch(&mut self, message: &'static str) -> Result<tonic::Streaming<Bytes>, Status> {
        self.ready().await.map_err(|error| Status::from_error(error.into()))?;
        let method = PathAndQuery::from_static("/test.Shop/Watch");
        let answer = soon(Self::server_streaming(self, Request::new(Bytes::from(message)), method, Raw)).await?;
        Ok(answer.into_inner())
    }
}

fn message(text: &'static str) -> Request<Bytes> {
    Request::new(Bytes::from(text))
}

#[tokio::test]
async fn a_unary_call_passes_both_ways() {
    let (stack, shop) = (Stack::new("shop"), Shop::default());
    let mut client = channel(&stack, served(shop).await);
    for _ in 0..3 {
        let answer = client.unary("/test.Shop/Echo", message("tea")).await.unwrap();
        assert_eq!(answer.into_inner(), "tea");
    }
    assert_eq!((stack.in_flight(), stack.circuit().calls, stack.circuit().failures), (0, 3, 0));
}

#[tokio::test]
async fn a_stream_passes_message_by_message_and_holds_its_slot() {
    let (stack, shop) = (Stack::new("shop"), Shop::default());
    let mut client = channel(&stack, served(shop).await);
    let mut events = client.watch("first").await.unwrap();
    for text in ["first", "second"] {
        assert_eq!(soon(events.message()).await.unwrap().unwrap(), text);
    }
    assert_eq!(stack.in_flight(), 1);
    drop(events);
    assert_eq!((stack.in_flight(), stack.circuit().failures), (0, 0));
}

#[tokio::test]
async fn a_trailers_only_response_passes_unchanged() {
    let (stack, shop) = (Stack::new("shop"), Shop::default());
    let mut client = channel(&stack, served(shop.clone()).await);
    for _ in 0..8 {
        let status = client.unary("/test.Shop/Sold", message("")).await.unwrap_err();
        assert_eq!((status.code(), status.message()), (Code::NotFound, "sold out"));
    }
    assert_eq!((shop.called.load(Relaxed), stack.circuit().state), (8, State::Closed));
    assert_eq!(stack.seen().causes(), []);
}

#[tokio::test]
async fn an_unimplemented_method_is_no_failure_of_the_upstream() {
    let (stack, shop) = (Stack::new("shop"), Shop::default());
    let mut client = channel(&stack, served(shop).await);
    let status = client.unary("/test.Other/Echo", message("tea")).await.unwrap_err();
    assert_eq!((status.code(), stack.circuit().failures), (Code::Unimplemented, 0));
}

#[tokio::test]
async fn a_deadline_is_passed_on_and_ends_the_call() {
    let (stack, shop) = (Stack::new("shop"), Shop::default());
    let mut client = channel(&stack, served(shop).await);

    let mut request = message("");
    request.set_timeout(Duration::from_secs(2));
    let told = client.unary("/test.Shop/Limit", request).await.unwrap().into_inner();
    assert!(!told.is_empty(), "the upstream is told as well");

    let mut request = message("");
    request.set_timeout(Duration::from_millis(200));
    let status = client.unary("/test.Shop/Stuck", request).await.unwrap_err();
    assert_eq!(status.code(), Stack::LATE);
    assert_eq!(stack.seen().causes().last(), Some(&Cause::DeadlineExceeded));
    assert_eq!(stack.in_flight(), 0);
}

#[tokio::test]
async fn an_upstream_that_is_down_is_unavailable_and_opens_the_circuit() {
    let dead = listener().await.local_addr().unwrap();
    let stack = Stack::new("shop");
    let mut client = channel(&stack, dead);
    for _ in 0..10 {
        let status = client.unary("/test.Shop/Echo", message("tea")).await.unwrap_err();
        assert_eq!(status.code(), Stack::DOWN);
    }
    assert_eq!((stack.circuit().failures, stack.circuit().state), (5, State::Open));
    assert_eq!(stack.circuit().cause.unwrap().cause(), Cause::ConnectionRefused);
    assert_eq!(stack.in_flight(), 0);
}

#[tokio::test]
async fn a_channel_whose_upstream_recovers_is_used_again() {
    let free = listener().await;
    let address = free.local_addr().unwrap();
    drop(free);
    let stack = Stack::new("shop").pause(Duration::from_millis(20));
    let mut client = channel(&stack, address);
    for _ in 0..5 {
        client.unary("/test.Shop/Echo", message("tea")).await.unwrap_err();
    }
    assert_eq!(stack.circuit().opened, 1);
    tokio::spawn(tonic::transport::Server::builder().serve(address, tonic::service::Routes::new(Shop::default())));
    for _ in 0..900 {
        if client.unary("/test.Shop/Echo", message("tea")).await.is_ok() {
            assert_eq!(stack.circuit().state, State::Closed);
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the circuit never closed");
}

#[tokio::test]
async fn the_stack_is_a_layer_of_tonics_server() {
    let (stack, shop) = (Stack::new("server"), Shop::default());
    let listener = listener().await;
    let address = listener.local_addr().unwrap();
    let mut server = tonic::transport::Server::builder().layer(stack.for_tonic());
    let router = server.add_service(shop.clone());
    tokio::spawn(router.serve_with_incoming(TcpIncoming::from(listener)));
    for _ in 0..2 {
        let plain = Endpoint::try_from(format!("http://{address}")).unwrap().connect().await.unwrap();
        let mut client = tonic::client::Grpc::new(plain);
        let answer = Calls::unary(&mut client, "/test.Shop/Echo", message("tea")).await.unwrap();
        assert_eq!(answer.into_inner(), "tea");
        let status = Calls::unary(&mut client, "/test.Shop/Sold", message("")).await.unwrap_err();
        assert_eq!((status.code(), status.message()), (Code::NotFound, "sold out"));
        let mut events = client.watch("first").await.unwrap();
        assert_eq!(soon(events.message()).await.unwrap().unwrap(), "first");
        drop(events);
        until("the stream's slot is free", || stack.in_flight() == 0).await;
    }
    assert_eq!(
        (shop.called.load(Relaxed), stack.circuit().calls, stack.circuit().failures),
        (6, 4, 0),
        "a stream that its client left proves nothing"
    );
}
