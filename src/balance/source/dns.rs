//! DNS as a source.

use std::collections::BTreeSet;
use std::future::poll_fn;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::uri::Scheme;
use hyper_util::client::legacy::connect::dns::{GaiResolver, InvalidNameError, Name};
use tokio::task::JoinHandle;
use tower_service::Service;

use crate::balance::membership::MAX_MEMBERS;
use crate::balance::{BalanceHandle, Member};
use crate::body::BoxError;
use crate::client::Target;

/// The interval of queries: `getaddrinfo` reports no TTL.
const INTERVAL: Duration = Duration::from_secs(5);

impl BalanceHandle {
    /// Resolves the target's host by `getaddrinfo`, now and every 5 s +-10 %, until the pool is dropped. Each address
    /// is an endpoint, whose key is `ip:port`.
    ///
    /// A query that fails, finds nothing or takes longer than 5 s changes nothing and is reported; see
    /// [`poll_source`](Self::poll_source). [`reverse_proxies`](crate::balance::reverse_proxies) of a builder for the
    /// same target connect to these addresses under the target's name. A host that is an IP address is the only
    /// endpoint.
    ///
    /// ```
    /// use axum::body::Body;
    /// use tower_upstream::balance::{Balance, reverse_proxies};
    /// use tower_upstream::client::{ReverseProxy, Target};
    /// use tower_upstream::forward::ForwardingRules;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let target: Target = "http://localhost:8080".parse().unwrap();
    /// let proxy = ReverseProxy::builder(target.clone(), ForwardingRules::new("edge-1").unwrap());
    /// let shop = Balance::builder("shop", reverse_proxies::<_, Body>(proxy)).build().unwrap();
    /// shop.handle().follow_dns(&target);
    /// // calls are refused until the first query has found an address
    /// shop.handle().members().wait_for(|members| !members.is_empty()).await.unwrap();
    /// # }
    /// ```
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn follow_dns(&self, target: &Target) -> JoinHandle<()> {
        self.follow_dns_with(target, GaiResolver::new())
    }

    /// Like [`follow_dns`](Self::follow_dns), with a resolver of your own, such as one for
    /// [`TcpConnector::with_resolver`](crate::client::TcpConnector::with_resolver). The port of each address is the
    /// target's.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn follow_dns_with<R>(&self, target: &Target, resolver: R) -> JoinHandle<()>
    where
        R: Service<Name> + Clone + Send + 'static,
        R::Response: Iterator<Item = SocketAddr>,
        R::Error: Into<BoxError>,
        R::Future: Send,
    {
        let (host, port) = host_and_port(target);
        self.poll_source(INTERVAL, move || {
            let (host, mut resolver) = (host.clone(), resolver.clone());
            async move {
                if let Ok(ip) = host.parse::<IpAddr>() {
                    return Ok(members([SocketAddr::new(ip, port)], port));
                }
                let name: Name = host.parse().map_err(|error: InvalidNameError| BoxError::from(error))?;
                poll_fn(|cx| resolver.poll_ready(cx)).await.map_err(Into::into)?;
                let found = resolver.call(name).await.map_err(Into::into)?;
                Ok::<_, BoxError>(members(found, port))
            }
        })
    }
}

fn host_and_port(target: &Target) -> (Arc<str>, u16) {
    let authority = target.authority();
    let default = if *target.scheme() == Scheme::HTTPS { 443 } else { 80 };
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    (host.into(), authority.port_u16().unwrap_or(default))
}

fn members(found: impl IntoIterator<Item = SocketAddr>, port: u16) -> Vec<Member> {
    // one more than a pool takes, so that it refuses the list with the reason
    let addresses: BTreeSet<_> =
        found.into_iter().take(MAX_MEMBERS + 1).map(|address| SocketAddr::new(address.ip(), port)).collect();
    addresses.into_iter().map(|address| Member::new(address.to_string()).addresses([address])).collect()
}
