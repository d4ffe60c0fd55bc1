//! The stack around a client that takes one type of request body, called by a method: the compiler names no bound.

use std::convert::Infallible;
use std::future::Ready;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use tower::{Layer, Service, ServiceExt};
use tower_upstream::UpstreamLayer;

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

fn main() {
    let stack = UpstreamLayer::builder("shop").build().unwrap().layer(Channel);
    let _ = stack.oneshot(Request::new(Full::<Bytes>::default()));
}
