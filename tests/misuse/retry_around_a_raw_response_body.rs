//! Retry around a client whose body is hyper's: it has no `Default`, and `ClassifyLayer` is missing between them.

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use tower::{Layer, Service, service_fn};
use tower_upstream::Failure;
use tower_upstream::body::ReplayBody;
use tower_upstream::retry::RetryLayer;

fn serves(_: impl Service<Request<Full<Bytes>>>) {}

fn main() {
    let client = service_fn(|_: Request<ReplayBody<Full<Bytes>>>| async {
        std::future::pending::<Result<Response<Incoming>, Failure>>().await
    });
    serves(RetryLayer::new().layer(client));
}
