//! `ReverseProxy`s as endpoints.

use super::member::Member;
use crate::body::TrackedUpload;
use crate::client::{ConnectTo, ReverseProxy, ReverseProxyBuilder, Target};

/// Makes the factory of a pool whose endpoints are [`ReverseProxy`]s, for
/// [`Balance::builder`](super::Balance::builder).
///
/// | member | connects to | scheme, path, name in TLS, and `Host` with [`HostPolicy::Upstream`](crate::forward::HostPolicy::Upstream) |
/// |---|---|---|
/// | with addresses | these addresses | those of the builder's target |
/// | without addresses | its key: `host`, `host:port`, or an `http` or `https` URL | those of its key |
///
/// A key that is no target is logged, and each call to that endpoint fails with the cause
/// [`InvalidTarget`](crate::BadGatewayCause::InvalidTarget) before anything is sent.
///
/// Every endpoint has a connection pool of its own, with the limits of the builder. `B` is the body of the pool's
/// requests.
///
/// ```
/// use axum::body::Body;
/// use tower_upstream::balance::{Balance, Member, reverse_proxies};
/// use tower_upstream::client::ReverseProxy;
/// use tower_upstream::forward::ForwardingRules;
///
/// let target = "https://shop.example".parse().unwrap();
/// let proxy = ReverseProxy::builder(target, ForwardingRules::new("edge-1").unwrap()).max_connections(100);
/// let members = ["10.0.0.1:443", "10.0.0.2:443"].map(|address| Member::new(address).addresses([address.parse().unwrap()]));
/// let shop = Balance::builder("shop", reverse_proxies::<_, Body>(proxy)).members(members).build().unwrap();
/// ```
pub fn reverse_proxies<C, B>(
    builder: ReverseProxyBuilder<C>,
) -> impl Fn(&Member) -> ReverseProxy<C, TrackedUpload<B>> + Send + Sync + 'static
where
    C: ConnectTo + Clone + Send + Sync + 'static,
    B: 'static,
{
    move |member| {
        let builder = builder.clone();
        if !member.addresses.is_empty() {
            return builder.connect_to(&member.addresses).build();
        }
        match member.key.parse::<Target>() {
            Ok(target) => builder.target(target).build(),
            Err(error) => {
                let member = &*member.key;
                tracing::error!(target: "tower_upstream", member, "calls to this member fail, its key is not a target: {error}");
                builder.refuse(error).build()
            }
        }
    }
}
