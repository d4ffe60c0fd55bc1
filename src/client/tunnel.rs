//! What follows a 101: bytes, both ways.

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::copy_bidirectional;

use super::pool::Lease;
use crate::engine::Tunnel;

/// Joins caller and upstream once both have changed protocols, until both have ended.
///
/// The connection keeps its place in the pool's count as long as the tunnel lives, and so does what layers give into it.
pub(super) fn spawn<B: Send + 'static>(caller: OnUpgrade, upstream: OnUpgrade, lease: Lease<B>) -> Tunnel {
    let (tunnel, end) = Tunnel::new();
    let place = match lease {
        Lease::H1(h1) => h1.into_tunnel(),
        #[cfg(feature = "http2")]
        Lease::H2(_) => return tunnel,
    };
    tokio::spawn(async move {
        let _held = (place, end);
        let Ok((caller, upstream)) = futures_util::future::try_join(caller, upstream).await else { return };
        // an end on either side is how tunnels end
        let _ = copy_bidirectional(&mut TokioIo::new(caller), &mut TokioIo::new(upstream)).await;
    });
    tunnel
}
