//! Fits clients and services of other crates under the layers: their body type, their request type, their addresses.
//!
//! The layers of this crate hand request bodies on under watch ([`Upload`](crate::body::TrackedUpload)) or kept
//! ([`ReplayBody`](crate::body::ReplayBody)). Some clients take one type of body alone, or one type of request, or absolute
//! addresses. Each adaptor mends one of these and adds nothing else: no error of its own where there was none, no future
//! but the inner one where nothing can fail. They stand below all layers, right around the client.
//!
//! | client | takes | what stands around it, outermost first |
//! |---|---|---|
//! | axum's `Router`, `ReverseProxy`, hyper-util's client | any body | nothing; [`OriginLayer`] for the last |
//! | tonic's `Channel` | `tonic::body::Body` | `MapRequestBodyLayer::new(tonic::body::Body::new)` |
//! | reqwest's `Client`, 0.12 and 0.13 | `reqwest::Request` with an absolute URL | `MapRequestBodyLayer::new(reqwest::Body::wrap)`, [`OriginLayer`] in a gateway, [`HttpCompatLayer`] |
//!
//! hyper-util's client and reqwest answer with errors: [`ClassifyLayer`](crate::ClassifyLayer) stands right around the adaptors, so that
//! every layer above sees causes. hyper's `Incoming` also has no `Default`, which layers that refuse need; the classified body has.
//!
//! # reqwest under the layers
//!
//! ```
//! # use reqwest13 as reqwest;
//! # use reqwest13::{redirect, retry};
//! use std::time::Duration;
//! use http_body_util::Full;
//! use tower::{ServiceBuilder, ServiceExt};
//! use tower_upstream::compat::{HttpCompatLayer, MapRequestBodyLayer};
//! use tower_upstream::retry::RetryLayer;
//! use tower_upstream::timeout::{TimeoutLayer, Timeouts};
//! use tower_upstream::{BadGatewayCause, ClassifyLayer, Failure};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! // what the layers do, it must not do as well
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
//!     .layer(MapRequestBodyLayer::new(reqwest::Body::wrap))
//!     .layer(HttpCompatLayer::new())
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
//! | what reqwest does by itself | why not below the layers | how |
//! |---|---|---|
//! | follows redirects, 10 at most | a 3xx is an answer; what it leads to is another upstream, and its time is nobody's | `redirect(Policy::none())` |
//! | 0.13 repeats what HTTP/2 refused | retries are counted and paid for in one place | `retry(retry::never())` |
//! | limits, if set: `timeout`, `read_timeout` | the layers' limits name the phase; reqwest's errors do not | set none but `connect_timeout` |
//! | decompresses, by features `gzip`, `brotli`, `zstd`, `deflate` | a gateway hands on what came | `no_gzip()` and so on, or leave the features out |
//! | uses the proxy that the environment names | failures would be the proxy's | `no_proxy()` |
//! | keeps idle connections for 90 s | most servers keep them shorter, and 502s come of it | `pool_idle_timeout`, below the upstream's |
//! | adds `Accept: */*` where there is none, and what `default_headers` names | | |
//! | reads the address as a URL (WHATWG): `/a/../b` becomes `/b` | | use `ReverseProxy` where paths must stay as they are |
//!
//! A request body that is not `Sync`, as axum's is not, is wrapped once more, as `reqwest::Body::wrap` wants `Sync`:
//! `MapRequestBodyLayer::new(|body| reqwest::Body::wrap(SyncBody::new(body)))`; see [`SyncBody`].
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
