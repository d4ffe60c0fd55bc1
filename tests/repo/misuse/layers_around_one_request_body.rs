//! Layers in the usual order around a client that takes one type of request body: `MapRequestBodyLayer` is missing.

use std::convert::Infallible;
use std::future::Ready;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use tower::{Service, ServiceBuilder};
use tower_upstream::ClassifyLayer;
use tower_upstream::retry::RetryLayer;
use tower_upstream::timeout::{TimeoutLayer, Timeouts};

/// As tonic's `Channel`.
#[derive(Clone)]
struct Channel;

impl Service<Request<Full<Bytes>>> for Channel {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Ready<Result<Response<Full<Bytes>>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<Full<Bytes>>) -> Self::Future {
        std::future::ready(Ok(Response::default()))
    }
}

fn serves(_: impl Service<Request<Full<Bytes>>>) {}

fn main() {
    let stack = ServiceBuilder::new()
        .layer(RetryLayer::new())
        .layer(TimeoutLayer::new(Timeouts::new()))
        .layer(ClassifyLayer::new())
        .service(Channel);
    serves(stack);
}
