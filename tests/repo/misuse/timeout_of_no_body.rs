//! A time limit watches what is no body: `without_upload_tracking()` is missing.

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use tower::{Layer, Service, service_fn};
use tower_upstream::timeout::{TimeoutLayer, Timeouts};

fn serves(_: impl Service<Request<u32>>) {}

fn main() {
    let client = service_fn(|_: Request<_>| async { Ok::<_, std::io::Error>(Response::new(Full::<Bytes>::default())) });
    serves(TimeoutLayer::new(Timeouts::new()).layer(client));
}
