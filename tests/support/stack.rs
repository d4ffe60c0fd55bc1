//! The default stack around a `ReverseProxy`, as a gateway.

use std::net::SocketAddr;

use hyper::body::Incoming;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tower::Layer;
use tower_upstream::UpstreamLayer;
use tower_upstream::breaker::CircuitSnapshot;
use tower_upstream::client::{Connect, ReverseProxy, ReverseProxyBuilder};
use tower_upstream::forward::{ClientInfo, ForwardingRules, Scheme};
use tower_upstream::stack::{RequestBody, UpstreamBuilder, UpstreamHandle};

use super::gateway::{Seen, listener, serve};

/// A gateway that runs until it is dropped.
pub(crate) struct StackGateway {
    pub(crate) address: SocketAddr,
    pub(crate) handle: UpstreamHandle,
    pub(crate) seen: Seen,
    task: AbortHandle,
}

impl Drop for StackGateway {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The default stack; its proxy tracks uploads.
pub(crate) fn stack() -> UpstreamBuilder {
    UpstreamLayer::builder("shop").without_upload_tracking()
}

/// A proxy with its own defaults.
pub(crate) fn default_proxy(upstream: SocketAddr) -> ReverseProxyBuilder {
    ReverseProxy::builder(upstream.to_string().parse().unwrap(), ForwardingRules::new("edge").unwrap())
}

impl StackGateway {
    pub(crate) async fn start<C>(stack: UpstreamBuilder, proxy: ReverseProxyBuilder<C>) -> Self
    where
        C: Connect,
        C::Future: 'static,
    {
        let seen = Seen::default();
        let layer = stack.observer(seen.clone()).build().unwrap();
        let proxy = proxy.build::<RequestBody<Incoming>>();
        let (handle, listener) = (layer.handle(), listener().await);
        let address = listener.local_addr().unwrap();
        let service =
            move |peer: SocketAddr| layer.layer(proxy.client_info(ClientInfo::new(Some(peer.ip()), Scheme::Http)));
        Self { address, handle, seen, task: tokio::spawn(serve(listener, service)).abort_handle() }
    }

    pub(crate) fn circuit(&self) -> CircuitSnapshot {
        self.handle.snapshot(Instant::now()).circuit.unwrap()
    }

    pub(crate) fn in_flight(&self) -> u64 {
        self.handle.snapshot(Instant::now()).in_flight
    }
}
