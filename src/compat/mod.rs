//! Adaptors for clients and services of other crates: their body type, their request type, their addresses.
//!
//! The layers of this crate pass request bodies on as [`TrackedUpload`](crate::body::TrackedUpload) or
//! [`ReplayBody`](crate::body::ReplayBody). Some clients accept only one type of body, one type of request, or absolute
//! addresses. Each adaptor converts one of these and adds nothing else: no new error, and no new future where nothing can
//! fail. Place them below all layers, around the client.
//!
//! | client | accepts | adaptors, outermost first |
//! |---|---|---|
//! | axum's `Router`, `ReverseProxy`, hyper-util's client | any body | nothing; [`OriginLayer`] for the last |
//! | tonic's `Channel` | `tonic::body::Body` | `MapRequestBodyLayer::new(tonic::body::Body::new)` |
//! | reqwest's `Client`, 0.12 and 0.13 | `reqwest::Request` with an absolute URL | [`OriginLayer`] in a gateway, `HttpCompatLayer::new(reqwest::Body::wrap)` |
//!
//! hyper-util's client and reqwest return errors: place [`ClassifyLayer`](crate::ClassifyLayer) around the adaptors, so that
//! every layer above sees causes. hyper's `Incoming` also lacks `Default`, which layers that refuse need; the classified body has it.
//!
//! If an adaptor is missing, `service.oneshot(request)` does not compile, and the compiler does not say why: "the method exists,
//! but its trait bounds were not satisfied". Written as `ServiceExt::oneshot(service, request)`, it names the missing bound and
//! the adaptor. `ServiceBuilder::check_service` does the same without a call.
//!
//! # reqwest under the layers
//!
//! ```
//! # use reqwest13 as reqwest;
//! # use reqwest13::{redirect, retry};
//! use std::time::Duration;
//! use http_body_util::Full;
//! use tower::{ServiceBuilder, ServiceExt};
//! use tower_upstream::compat::HttpCompatLayer;
//! use tower_upstream::retry::RetryLayer;
//! use tower_upstream::timeout::{TimeoutLayer, Timeouts};
//! use tower_upstream::{BadGatewayCause, ClassifyLayer, Failure};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! // disable what the layers do
//! let client = reqwest::Client::builder()
//!     .redirect(redirect::Policy::none())
//!     .retry(retry::never())
//!     .no_proxy()
//!     .pool_idle_timeout(Duration::from_secs(4))
//!     .build()
//!     .unwrap();
//! let client = ServiceBuilder::new()
//!     .layer(RetryLayer::new())
//!     .layer(TimeoutLayer::new(Timeouts::new().response_head(Duration::from_secs(5)).total(Duration::from_secs(20))))
//!     .layer(ClassifyLayer::new())
//!     .layer(HttpCompatLayer::new(reqwest::Body::wrap))
//!     .service(client);
//!
//! let request = http::Request::get("http://127.0.0.1:1/cart").body(Full::<bytes::Bytes>::default()).unwrap();
//! let answer = client.oneshot(request).await.unwrap();
//! assert_eq!(answer.status(), 502);
//! assert_eq!(BadGatewayCause::of(&answer), Some(BadGatewayCause::ConnectionRefused));
//! assert_eq!(Failure::of(&answer).unwrap().attempts(), 3);
//! # }
//! ```
//!
//! | what reqwest does itself | why not below the layers | how to disable |
//! |---|---|---|
//! | follows up to 10 redirects | a 3xx is a response; its target is another upstream, outside of all limits | `redirect(Policy::none())` |
//! | 0.13 retries requests refused by HTTP/2 | retries are counted and paid for in one place | `retry(retry::never())` |
//! | timeouts, if set: `timeout`, `read_timeout` | the layers' timeouts name the phase; reqwest's errors do not | set none but `connect_timeout` |
//! | decompresses, with features `gzip`, `brotli`, `zstd`, `deflate` | a gateway forwards responses unchanged | `no_gzip()` and so on, or disable the features |
//! | uses the proxy of the environment | failures would be the proxy's | `no_proxy()` |
//! | keeps idle connections for 90 s | most servers keep them shorter, which causes 502s | `pool_idle_timeout`, below the upstream's |
//! | adds `Accept: */*` if absent, and `default_headers` | | |
//! | parses the address as a URL (WHATWG): `/a/../b` becomes `/b` | | use `ReverseProxy` where paths must stay unchanged |
//!
//! `reqwest::Body::wrap` requires a body that is `Sync`, which axum's is not: [`HttpCompatLayer`] passes it a [`SyncBody`].
//!
//! # tonic's channel under the layers
//!
//! ```
//! use std::time::Duration;
//! use tonic::transport::Endpoint;
//! use tower::ServiceBuilder;
//! use tower_upstream::compat::MapRequestBodyLayer;
//! use tower_upstream::timeout::{TimeoutLayer, Timeouts};
//! use tower_upstream::{ClassifyLayer, retry::RetryLayer};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! let channel = Endpoint::from_static("http://127.0.0.1:50051").connect_lazy();
//! let channel = ServiceBuilder::new()
//!     .layer(RetryLayer::new())
//!     .layer(TimeoutLayer::new(Timeouts::new().response_head(Duration::from_secs(5))))
//!     .layer(ClassifyLayer::new())
//!     .layer(MapRequestBodyLayer::new(tonic::body::Body::new))
//!     .service(channel);
//! // what a generated client takes: OrdersClient::new(channel)
//! let client = tonic::client::Grpc::new(channel);
//! # fn speaks<S: tonic::client::GrpcService<tonic::body::Body>>(_: tonic::client::Grpc<S>) {}
//! # speaks(client);
//! # }
//! ```

mod http_compat;
mod map_request_body;
mod origin;
mod sync_body;

pub use self::http_compat::{HttpCompat, HttpCompatFuture, HttpCompatLayer};
pub use self::map_request_body::{MapRequestBody, MapRequestBodyLayer};
pub use self::origin::{InvalidOrigin, Origin, OriginLayer};
pub use self::sync_body::SyncBody;
