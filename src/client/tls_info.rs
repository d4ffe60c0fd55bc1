//! Whether a connection has to be TLS, and whether it is.

use http::Uri;

use crate::cause::{BadGatewayCause, Detail, Evidence, Failure, Phase};

/// Marks a connection as TLS, among the extras of [`Connected`](hyper_util::client::legacy::connect::Connected).
///
/// [`TlsConnector`](https://docs.rs/tower-upstream/latest/tower_upstream/client/struct.TlsConnector.html) marks its
/// connections; a TLS connector of your own does so with
/// [`Connected::extra`](hyper_util::client::legacy::connect::Connected::extra), or is declared by
/// [`Connector::assume_tls`](super::Connector::assume_tls).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TlsInfo;

impl TlsInfo {
    /// The connection is TLS.
    pub const fn new() -> Self {
        Self
    }
}

/// Whether a target's scheme requires TLS.
pub(super) fn wants_tls(target: &Uri) -> bool {
    // a scheme that was not parsed within a URI keeps its case
    let tls = |scheme: &str| ["https", "wss"].iter().any(|known| scheme.eq_ignore_ascii_case(known));
    target.scheme_str().is_some_and(tls)
}

/// The detail for an `https` target and a connection that is not TLS.
pub(super) const NOT_TLS: &str = if cfg!(feature = "rustls") {
    "an https target over a connection that is not TLS: connect by TlsConnector, or declare a TLS connector with Connector::assume_tls"
} else {
    "an https target over a connection that is not TLS: enable the feature `rustls`, or declare a TLS connector with Connector::assume_tls"
};

/// The failure that prevents sending a request for an `https` target in clear.
pub(super) fn not_tls() -> Failure {
    Failure::builder(BadGatewayCause::InvalidTarget)
        .phase(Phase::Gateway)
        .unsent(Evidence::LocalRefusal)
        .detail(Detail::Text(NOT_TLS))
        .build()
}
