//! The client: connectors with specific failures, a connection pool, and the forwarding service.
//!
//! [`ReverseProxy`] is a `Service<Request<B>>` for one upstream, over hyper's connections and a pool of
//! its own. Its error is a [`Failure`](crate::Failure) that already has phase, peer, connection and
//! evidence; [`ClassifyLayer`](crate::ClassifyLayer) around it makes the response:
//!
//! ```
//! use axum::body::Body;
//! use tower::{Layer, ServiceExt};
//! use tower_upstream::{BadGatewayCause, ClassifyLayer, client::ReverseProxy, forward::ForwardingRules};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! let target = "127.0.0.1:1".parse().unwrap(); // nothing listens there
//! let proxy = ReverseProxy::builder(target, ForwardingRules::new("edge-1").unwrap()).build::<Body>();
//! let gateway = ClassifyLayer::new().layer(proxy);
//!
//! let request = http::Request::get("/").header("host", "shop.example").body(Body::empty()).unwrap();
//! let Ok(answer) = gateway.oneshot(request).await;
//! assert_eq!(BadGatewayCause::of(&answer), Some(BadGatewayCause::ConnectionRefused));
//! # }
//! ```

mod address_policy;
mod capture;
mod connector;
mod counted_io;
mod exchange;
mod frames;
#[cfg(feature = "http2")]
mod head_size;
mod interim;
mod pool;
mod progress;
mod proxy;
mod proxy_body;
mod request_target;
mod target;
mod tcp;
#[cfg(feature = "rustls")]
mod tls;
mod tls_info;
mod tunnel;

pub use self::address_policy::AddressPolicy;
pub use self::capture::{Capture, CaptureFuture, CaptureLayer};
pub use self::connector::Connector;
pub use self::counted_io::CountedIo;
pub use self::pool::{Connect, SendBody};
pub use self::proxy::{DefaultConnector, ReverseProxy, ReverseProxyBuilder};
pub use self::proxy_body::ProxyBody;
pub use self::target::{HttpVersion, InvalidTarget, Target};
pub use self::tcp::{ConnectTo, TcpConnector};
#[cfg(feature = "rustls")]
pub use self::tls::{InvalidRoots, MaybeTls, TlsConnector};
pub use self::tls_info::TlsInfo;

use crate::body::BoxError;
