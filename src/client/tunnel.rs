//! What follows a 101: bytes, both ways.

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::copy_bidirectional;

use super::pool::Lease;

/// Joins caller and upstream once both have changed protocols, until both have ended.
///
/// The connection keeps its place in the pool's count as long as the tunnel lives.
pub(super) fn spawn<B: Send + 'static>(caller: OnUpgrade, upstream: OnUpgrade, lease: Lease<B>) {
    let place = match lease {
        Lease::H1(h1) => h1.into_tunnel(),
        #[cfg(feature = "http2")]
        Lease::H2(_) => return,
    };
    tokio::spawn(async move {
        let _place = place;
        let Ok((caller, upstream)) = futures_util::future::try_join(caller, upstream).await else { return };
        // an end on either side is how tunnels end
        let _ = copy_bidirectional(&mut TokioIo::new(caller), &mut TokioIo::new(upstream)).await;
    });
}
