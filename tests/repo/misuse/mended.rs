//! The same mistakes, mended as the compiler was told to say.

use std::convert::Infallible;
use std::future::{Pending, Ready, pending, ready};
use std::io;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::body::{Body, Incoming};
use tower::{BoxError, Layer, Service, ServiceExt, service_fn};
use tower_upstream::compat::MapRequestBodyLayer;
use tower_upstream::retry::RetryLayer;
use tower_upstream::timeout::{TimeoutLayer, Timeouts};
use tower_upstream::{ClassifyLayer, UpstreamLayer};

type OneBody = BoxBody<Bytes, BoxError>;

/// As tonic's `Channel`.
#[derive(Clone)]
struct Channel;

impl Service<Request<OneBody>> for Channel {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Ready<Result<Response<Full<Bytes>>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<OneBody>) -> Self::Future {
        ready(Ok(Response::default()))
    }
}

fn one_body<B>(body: B) -> OneBody
where
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + Sync + 'static,
{
    body.map_err(Into::into).boxed()
}

fn raw<B>(_: Request<B>) -> Pending<Result<Response<Incoming>, io::Error>> {
    pending()
}

fn serves(_: impl Service<Request<Full<Bytes>>>) {}

fn serves_numbers(_: impl Service<Request<u32>>) {}

fn main() {
    serves(RetryLayer::new().layer(ClassifyLayer::new().layer(service_fn(raw))));
    serves(RetryLayer::new().layer(MapRequestBodyLayer::new(one_body).layer(Channel)));
    serves(TimeoutLayer::new(Timeouts::new()).layer(MapRequestBodyLayer::new(one_body).layer(Channel)));
    serves_numbers(TimeoutLayer::new(Timeouts::new()).without_upload_tracking().layer(service_fn(raw)));
    let stack = UpstreamLayer::builder("shop").build().unwrap();
    let channel = stack.layer(MapRequestBodyLayer::new(one_body).layer(Channel));
    let _ = channel.oneshot(Request::new(Full::<Bytes>::default()));
}
