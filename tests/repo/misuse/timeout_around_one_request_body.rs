//! A time limit around a client that takes one type of request body: `MapRequestBodyLayer` is missing, or `without_upload_tracking()`.

use std::convert::Infallible;
use std::future::Ready;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use tower::{Layer, Service};
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
    serves(TimeoutLayer::new(Timeouts::new()).layer(Channel));
}
