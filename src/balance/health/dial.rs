//! Connections for checks, whose phases are reported.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use http::uri::{Authority, Scheme};
use hyper_util::client::legacy::connect::dns::{GaiResolver, Name};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tower_service::Service;

use super::progress::Progress;
use crate::balance::member::Member;
use crate::body::BoxError;
use crate::cause::{BadGatewayCause, Evidence, Failure, Phase};
use crate::client::{Connector, CountedIo, Target, TcpConnector};

#[cfg(feature = "rustls")]
use crate::client::{MaybeTls, TlsConnector};

/// The connection of a check.
#[cfg(feature = "rustls")]
pub(super) type Io = CountedIo<MaybeTls<TokioIo<TcpStream>>>;
/// The connection of a check.
#[cfg(not(feature = "rustls"))]
pub(super) type Io = CountedIo<TokioIo<TcpStream>>;

/// The limit of each phase, which the check's own timeout makes unnecessary.
const UNLIMITED: Duration = Duration::from_secs(24 * 60 * 60);

/// How a check connects to members.
#[derive(Clone, Debug, Default)]
pub(super) struct Peer {
    /// The name of the server, with or without a port; `None`: the member's own.
    pub(super) host: Option<Arc<str>>,
    pub(super) is_tls: bool,
    #[cfg(feature = "rustls")]
    pub(super) tls: Option<TlsConnector<()>>,
}

impl Peer {
    /// Returns the scheme and authority of requests to this member.
    pub(super) fn uri(&self, member: &Member) -> Result<Uri, Failure> {
        let (scheme, authority) = if let Some(first) = member.addresses.first() {
            (Scheme::HTTP, first.to_string().parse().map_err(invalid)?)
        } else {
            let target: Target = member.key.parse().map_err(invalid)?;
            (target.scheme().clone(), target.authority().clone())
        };
        let scheme = if self.is_tls { Scheme::HTTPS } else { scheme };
        let authority = match &self.host {
            None => authority,
            Some(host) => {
                let named: Authority = host.parse().map_err(invalid)?;
                let port = authority.port_u16().filter(|_| named.port().is_none());
                match port {
                    Some(port) => format!("{named}:{port}").parse().map_err(invalid)?,
                    None => named,
                }
            }
        };
        Uri::builder().scheme(scheme).authority(authority).path_and_query("/").build().map_err(invalid)
    }

    /// Connects to a member; `uri` comes from [`uri`](Self::uri).
    pub(super) async fn connect(&self, member: &Member, uri: &Uri, progress: &Progress) -> Result<Io, Failure> {
        let is_tls = uri.scheme() == Some(&Scheme::HTTPS);
        let tcp = Tcp { target: tcp_target(member, is_tls)?, progress: progress.clone(), is_tls };
        let tcp = TcpDial { tcp, addresses: member.addresses.as_slice().into() };
        #[cfg(feature = "rustls")]
        let dial = match &self.tls {
            Some(tls) => tls.over(tcp),
            None => TlsConnector::new(tcp).timeout(UNLIMITED),
        };
        #[cfg(not(feature = "rustls"))]
        let dial = tcp;
        Connector::new(dial).call(uri.clone()).await
    }
}

/// Returns the target of the TCP connection: the member's own addresses, or its key.
fn tcp_target(member: &Member, is_tls: bool) -> Result<Uri, Failure> {
    let authority = if let Some(first) = member.addresses.first() {
        // `Resolver` returns the addresses for this name
        format!("addresses.invalid:{}", first.port())
    } else {
        let target: Target = member.key.parse().map_err(invalid)?;
        let authority = target.authority();
        let port = authority.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        format!("{}:{port}", authority.host())
    };
    Uri::builder().scheme(Scheme::HTTP).authority(authority).path_and_query("/").build().map_err(invalid)
}

fn invalid(error: impl Into<BoxError>) -> Failure {
    let failure = Failure::builder(BadGatewayCause::InvalidTarget).phase(Phase::Gateway);
    failure.unsent(Evidence::LocalRefusal).source(error).build()
}

#[derive(Clone)]
struct Tcp {
    target: Uri,
    progress: Progress,
    is_tls: bool,
}

/// Opens the TCP connection to the member, whatever name the TLS connector around it has.
#[derive(Clone)]
struct TcpDial {
    tcp: Tcp,
    addresses: Arc<[SocketAddr]>,
}

impl Service<Uri> for TcpDial {
    type Response = TokioIo<TcpStream>;
    type Error = Failure;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Failure>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let Tcp { target, progress, is_tls } = self.tcp.clone();
        let host = target.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
        if host.parse::<IpAddr>().is_ok() {
            progress.enter(Phase::Connect);
        }
        let resolver = Resolver { addresses: self.addresses.clone(), progress: progress.clone() };
        let dial = TcpConnector::with_resolver(resolver).dns_timeout(UNLIMITED).connect_timeout(UNLIMITED).call(target);
        Box::pin(async move {
            let io = dial.await?;
            if is_tls {
                progress.enter(Phase::Tls);
            }
            Ok(io)
        })
    }
}

/// Resolves every name to the addresses of a member, or by the system if it has none.
#[derive(Clone)]
struct Resolver {
    addresses: Arc<[SocketAddr]>,
    progress: Progress,
}

impl Service<Name> for Resolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let (addresses, progress) = (self.addresses.clone(), self.progress.clone());
        Box::pin(async move {
            let found = if addresses.is_empty() {
                progress.enter(Phase::Resolve);
                GaiResolver::new().call(name).await?.collect()
            } else {
                addresses.to_vec()
            };
            progress.enter(Phase::Connect);
            Ok(found.into_iter())
        })
    }
}
