//! The summary of a call, for middleware around a stack.

use std::net::SocketAddr;
use std::sync::Arc;

use http::{Extensions, Response};

use crate::cause::{BadGatewayCause, Failure, PeerAddress};
use crate::retry::Attempts;

/// What happened to a call: an extension of every response of a stack with [`call_summary`](super::UpstreamBuilder::call_summary).
///
/// ```
/// use http::{Request, Response};
/// use http_body_util::Full;
/// use tower::{Layer, ServiceExt, service_fn};
/// use tower_upstream::UpstreamLayer;
/// use tower_upstream::stack::CallSummary;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let layer = UpstreamLayer::builder("shop").call_summary().build().unwrap();
/// let upstream = service_fn(|_: Request<_>| async { Ok::<_, std::io::Error>(Response::new(Full::<bytes::Bytes>::default())) });
/// let Ok(response) = layer.layer(upstream).oneshot(Request::new(Full::<bytes::Bytes>::default())).await;
/// let summary = CallSummary::of(&response).unwrap();
/// assert_eq!((summary.upstream(), summary.attempts(), summary.cause()), ("shop", 1, None));
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct CallSummary {
    upstream: Arc<str>,
    peer: Option<SocketAddr>,
    attempts: u32,
    cause: Option<BadGatewayCause>,
}

impl CallSummary {
    /// The summary of the call behind a response.
    pub fn of<B>(response: &Response<B>) -> Option<&Self> {
        response.extensions().get()
    }

    /// The name of the stack.
    pub fn upstream(&self) -> &str {
        &self.upstream
    }

    /// The address of the peer of the last attempt, if its client reports it.
    ///
    /// A `ReverseProxy` does with `expose_peer`, and for each failure; so do hyper-util's client and reqwest, with feature
    /// `client`.
    pub fn peer(&self) -> Option<SocketAddr> {
        self.peer
    }

    /// The number of attempts; 1 also for a call that was rejected before its first.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// The cause of the failure, if it is one.
    pub fn cause(&self) -> Option<BadGatewayCause> {
        self.cause
    }
}

/// Adds the summary to the head of a response.
#[cold]
pub(super) fn summarize(upstream: &Arc<str>, extensions: &mut Extensions) {
    let failure = extensions.get::<Failure>();
    let summary = CallSummary {
        upstream: upstream.clone(),
        peer: failure.and_then(Failure::peer).or_else(|| peer(extensions)),
        attempts: match (extensions.get::<Attempts>(), failure) {
            (Some(attempts), _) => attempts.count(),
            (None, Some(failure)) => failure.attempts(),
            (None, None) => 1,
        },
        cause: failure.map(Failure::cause).or_else(|| extensions.get().copied()),
    };
    extensions.insert(summary);
}

fn peer(extensions: &Extensions) -> Option<SocketAddr> {
    let own = extensions.get::<PeerAddress>().map(|peer| peer.0);
    #[cfg(feature = "client")]
    let own = own.or_else(|| {
        let info = extensions.get::<hyper_util::client::legacy::connect::HttpInfo>();
        info.map(hyper_util::client::legacy::connect::HttpInfo::remote_addr)
    });
    own
}
