//! Retry around a service whose error tells nothing: `ClassifyLayer` is missing between them.

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use tower::{Layer, Service, service_fn};
use tower_upstream::body::ReplayBody;
use tower_upstream::retry::RetryLayer;

fn serves(_: impl Service<Request<Full<Bytes>>>) {}

fn main() {
    let client = service_fn(|_: Request<ReplayBody<Full<Bytes>>>| async {
        Err::<Response<Full<Bytes>>, _>(std::io::Error::other("refused"))
    });
    serves(RetryLayer::new().layer(client));
}
