//! Resolves names and opens TCP connections, each phase with its own timeout.

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_util::client::legacy::connect::dns::{GaiResolver, Name};
use hyper_util::rt::TokioIo;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tower_service::Service;

use super::progress::publishing;
use super::tls_info::{not_tls, wants_tls};
use super::{AddressPolicy, BoxError};
use crate::cause::{BadGatewayCause, Detail, Evidence, Failure, FailureBuilder, Phase};

/// How long the next address waits for the one before it (RFC 8305 section 5).
const STAGGER: Duration = Duration::from_millis(250);
/// The maximum number of addresses tried per name.
const MAX_ADDRESSES: usize = 16;

/// Opens TCP connections: resolves, tries every address, and names the phase that failed.
///
/// | limit | default |
/// |---|---|
/// | [`dns_timeout`](Self::dns_timeout) | 1 s |
/// | [`connect_timeout`](Self::connect_timeout), over all addresses of the name | 1 s |
///
/// No TCP keep-alive probes are sent, unless [`keep_alive`](Self::keep_alive) asks for them.
///
/// IPv6 and IPv4 addresses take turns, each next one starting when the last failed or after 250 ms
/// (RFC 8305); at most 16 are tried. Its error is a [`Failure`] whose replay safety is proven: there was no
/// connection. A target whose scheme is `https` is an [`InvalidTarget`](BadGatewayCause::InvalidTarget), unless the
/// connector is used under TLS ([`enforce_http`](Self::enforce_http)). The resolver is any `Service<Name>`, as for
/// hyper-util's `HttpConnector`.
///
/// ```
/// use std::time::Duration;
/// use tower_upstream::client::{AddressPolicy, TcpConnector};
///
/// let connector = TcpConnector::new()
///     .connect_timeout(Duration::from_millis(500))
///     .policy(AddressPolicy::public_only());
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct TcpConnector<R = GaiResolver> {
    resolver: R,
    dns_timeout: Duration,
    connect_timeout: Duration,
    policy: AddressPolicy,
    enforce_http: bool,
    keep_alive: Option<Duration>,
    /// Connected to in place of the target's host; empty if that is to be resolved.
    addresses: Arc<[SocketAddr]>,
}

/// A connector that can connect to given addresses in place of those of the target's host.
///
/// For connectors that wrap [`TcpConnector`]: [`ReverseProxyBuilder::connect_to`](super::ReverseProxyBuilder::connect_to) needs it.
pub trait ConnectTo {
    /// Connects to these addresses, with their ports. If there are none, the target's host is resolved.
    #[must_use]
    fn connect_to(self, addresses: &[SocketAddr]) -> Self;
}

impl<R> ConnectTo for TcpConnector<R> {
    /// They are tried in turns as the addresses of a name are; the [policy](TcpConnector::policy) and the time limit apply.
    fn connect_to(mut self, addresses: &[SocketAddr]) -> Self {
        self.addresses = addresses.into();
        self
    }
}

impl Default for TcpConnector {
    fn default() -> Self {
        Self::new()
    }
}

impl TcpConnector {
    /// Resolves by `getaddrinfo` on a blocking thread.
    pub fn new() -> Self {
        Self::with_resolver(GaiResolver::new())
    }
}

impl<R> TcpConnector<R> {
    /// Resolves with a custom resolver.
    pub fn with_resolver(resolver: R) -> Self {
        let second = Duration::from_secs(1);
        let policy = AddressPolicy::allow_all();
        let (enforce_http, keep_alive, addresses) = (true, None, Arc::new([]));
        Self { resolver, dns_timeout: second, connect_timeout: second, policy, enforce_http, keep_alive, addresses }
    }

    /// Limits the resolution (default 1 s).
    pub fn dns_timeout(mut self, limit: Duration) -> Self {
        self.dns_timeout = limit;
        self
    }

    /// Limits connecting, over all addresses of the name (default 1 s).
    pub fn connect_timeout(mut self, limit: Duration) -> Self {
        self.connect_timeout = limit;
        self
    }

    /// Sends a TCP keep-alive probe on a connection after each `time` without a byte (default: none are sent, as by nginx,
    /// Envoy and hyper-util), in whole seconds and at least 1 s.
    ///
    /// For calls and tunnels that are silent for longer than a NAT or a firewall on the way remembers a connection: 350 s
    /// with AWS, 4 min with Azure. Idle connections of the pool do not live as long. How often and how fast a probe without a
    /// response is repeated is the operating system's setting.
    pub fn keep_alive(mut self, time: impl Into<Option<Duration>>) -> Self {
        // Linux takes at most 32,767 s
        self.keep_alive = time.into().map(|time| time.clamp(Duration::from_secs(1), Duration::from_secs(32_767)));
        self
    }

    /// Sets the addresses that may be connected to (default: all).
    pub fn policy(mut self, policy: AddressPolicy) -> Self {
        self.policy = policy;
        self
    }

    /// Whether targets whose scheme is `https` are refused (default: yes), as by hyper-util's `HttpConnector`.
    ///
    /// Its connections are plain. Set it to `false` under a connector that speaks TLS over this one and passes targets on
    /// unchanged, such as hyper-rustls'.
    /// [`TlsConnector`](https://docs.rs/tower-upstream/latest/tower_upstream/client/struct.TlsConnector.html) needs no such
    /// setting.
    pub fn enforce_http(mut self, enforce: bool) -> Self {
        self.enforce_http = enforce;
        self
    }
}

impl<R> Service<Uri> for TcpConnector<R>
where
    R: Service<Name> + Clone + Send + 'static,
    R::Response: Iterator<Item = SocketAddr>,
    R::Error: Into<BoxError>,
    R::Future: Send,
{
    type Response = TokioIo<TcpStream>;
    type Error = Failure;
    // compared with connecting, a box is cheap
    type Future = Pin<Box<dyn Future<Output = Result<TokioIo<TcpStream>, Failure>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        if !self.addresses.is_empty() {
            return Poll::Ready(Ok(()));
        }
        self.resolver.poll_ready(cx).map_err(|error| name_failure(error.into()))
    }

    fn call(&mut self, target: Uri) -> Self::Future {
        // use the resolver that was polled ready, and keep the clone
        let clone = self.clone();
        let mut this = std::mem::replace(self, clone);
        Box::pin(async move {
            if this.enforce_http && wants_tls(&target) {
                return Err(not_tls());
            }
            let addresses = if this.addresses.is_empty() {
                let (host, port) = host_and_port(&target)?;
                match host.parse::<IpAddr>() {
                    Ok(address) => VecDeque::from([SocketAddr::new(address, port)]),
                    Err(_) => this.resolve(host, port).await?,
                }
            } else {
                take_turns(this.addresses.iter().copied().take(MAX_ADDRESSES))
            };
            let first = addresses.front().copied();
            let allowed: VecDeque<_> = addresses.into_iter().filter(|peer| this.policy.allows(peer.ip())).collect();
            if allowed.is_empty() {
                return Err(no_connection(BadGatewayCause::TargetProhibited, Evidence::LocalRefusal)
                    .peer(first)
                    .build());
            }
            let first = allowed[0];
            match publishing(Phase::Connect, Some(first), timeout(this.connect_timeout, connect_any(allowed))).await {
                Ok(connected) => {
                    let stream = connected?;
                    if let Some(time) = this.keep_alive {
                        // a system that has no such option sends no probes
                        let _ = SockRef::from(&stream).set_tcp_keepalive(&TcpKeepalive::new().with_time(time));
                    }
                    Ok(TokioIo::new(stream))
                }
                Err(_) => {
                    Err(no_connection(BadGatewayCause::ConnectTimeout, Evidence::NoConnection).peer(first).build())
                }
            }
        })
    }
}

impl<R> TcpConnector<R>
where
    R: Service<Name>,
    R::Response: Iterator<Item = SocketAddr>,
    R::Error: Into<BoxError>,
{
    async fn resolve(&mut self, host: &str, port: u16) -> Result<VecDeque<SocketAddr>, Failure> {
        let name: Name = host.parse().map_err(|_| invalid_target("the host is no name"))?;
        let found = match publishing(Phase::Resolve, None, timeout(self.dns_timeout, self.resolver.call(name))).await {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => return Err(name_failure(error.into())),
            Err(_) => return Err(no_connection(BadGatewayCause::DnsTimeout, Evidence::NoConnection).build()),
        };
        let found = found.take(MAX_ADDRESSES).map(|mut address| {
            address.set_port(port);
            address
        });
        let addresses = take_turns(found);
        if addresses.is_empty() {
            return Err(no_connection(BadGatewayCause::DnsNotFound, Evidence::NoConnection).build());
        }
        Ok(addresses)
    }
}

fn host_and_port(target: &Uri) -> Result<(&str, u16), Failure> {
    let host = target.host().filter(|host| !host.is_empty()).ok_or_else(|| invalid_target("the target has no host"))?;
    let port = target.port_u16().unwrap_or(if wants_tls(target) { 443 } else { 80 });
    Ok((host.trim_start_matches('[').trim_end_matches(']'), port))
}

/// IPv6 and IPv4 in turns, beginning with the resolver's first choice (RFC 8305 section 4).
fn take_turns(found: impl Iterator<Item = SocketAddr>) -> VecDeque<SocketAddr> {
    let found: Vec<_> = found.collect();
    let Some(first) = found.first().map(SocketAddr::is_ipv6) else { return VecDeque::new() };
    let (mut same, mut other): (VecDeque<_>, VecDeque<_>) =
        found.into_iter().partition(|address| address.is_ipv6() == first);
    let mut turns = VecDeque::with_capacity(same.len() + other.len());
    while let Some(address) = same.pop_front() {
        turns.push_back(address);
        std::mem::swap(&mut same, &mut other);
        if same.is_empty() {
            std::mem::swap(&mut same, &mut other);
        }
    }
    turns
}

/// Connects by Happy Eyeballs; reports the failure of the first address.
async fn connect_any(mut left: VecDeque<SocketAddr>) -> Result<TcpStream, Failure> {
    let mut dialing = JoinSet::new();
    let mut told = None;
    loop {
        if let Some(peer) = left.pop_front() {
            dialing.spawn(async move { (peer, TcpStream::connect(peer).await) });
        }
        let done = if left.is_empty() {
            dialing.join_next().await
        } else {
            match timeout(STAGGER, dialing.join_next()).await {
                Ok(done) => done,
                Err(_) => continue,
            }
        };
        match done {
            Some(Ok((_, Ok(stream)))) => {
                // a gateway writes complete heads; Nagle's algorithm would only delay them
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Some(Ok((peer, Err(error)))) => {
                told.get_or_insert_with(|| connect_failure(error, peer));
            }
            None if left.is_empty() => {
                return Err(told.unwrap_or_else(|| Failure::new(BadGatewayCause::GatewayInternal)));
            }
            // ignore a dial that panicked
            Some(Err(_)) | None => {}
        }
    }
}

fn connect_failure(error: io::Error, peer: SocketAddr) -> Failure {
    Failure::connecting_tcp(error, peer)
}

fn name_failure(error: BoxError) -> Failure {
    let judged = Failure::from_error(error);
    let cause = match judged.cause() {
        cause @ (BadGatewayCause::DnsNotFound | BadGatewayCause::DnsTimeout) => cause,
        _ => BadGatewayCause::DnsFailure,
    };
    no_connection(cause, Evidence::NoConnection).source(judged).build()
}

fn invalid_target(why: &'static str) -> Failure {
    no_connection(BadGatewayCause::InvalidTarget, Evidence::LocalRefusal).detail(Detail::Text(why)).build()
}

fn no_connection(cause: BadGatewayCause, evidence: Evidence) -> FailureBuilder {
    let phase = match cause {
        BadGatewayCause::DnsNotFound | BadGatewayCause::DnsTimeout | BadGatewayCause::DnsFailure => Phase::Resolve,
        BadGatewayCause::InvalidTarget => Phase::Gateway,
        _ => Phase::Connect,
    };
    Failure::builder(cause).phase(phase).unsent(evidence)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use tower::{ServiceExt, service_fn};

    use super::*;

    fn turns(addresses: &[&str]) -> Vec<String> {
        let found = addresses.iter().map(|address| SocketAddr::new(address.parse().unwrap(), 0));
        take_turns(found).iter().map(|address| address.ip().to_string()).collect()
    }

    #[test]
    fn families_take_turns() {
        assert_eq!(turns(&["::1", "::2", "::3", "1.1.1.1"]), ["::1", "1.1.1.1", "::2", "::3"]);
        assert_eq!(turns(&["1.1.1.1", "2.2.2.2", "::1"]), ["1.1.1.1", "::1", "2.2.2.2"]);
        assert!(turns(&[]).is_empty());
    }

    fn resolver(
        addresses: &'static [&'static str],
    ) -> impl Service<Name, Response = std::vec::IntoIter<SocketAddr>, Error = Infallible, Future: Send> + Clone + Send
    {
        service_fn(move |_: Name| async move {
            let addresses: Vec<_> = addresses.iter().map(|ip| SocketAddr::new(ip.parse().unwrap(), 0)).collect();
            Ok(addresses.into_iter())
        })
    }

    #[tokio::test]
    async fn a_dead_address_does_not_hide_a_living_one() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let connector = TcpConnector::with_resolver(resolver(&["127.0.0.2", "127.0.0.1"]));
        let stream = connector.oneshot(format!("http://two.test:{port}").parse().unwrap()).await.unwrap();
        assert_eq!(stream.inner().peer_addr().unwrap().ip().to_string(), "127.0.0.1");
    }

    #[tokio::test]
    async fn given_addresses_are_connected_to_without_resolving_the_target() {
        let never = || service_fn(|_: Name| async { Err::<std::vec::IntoIter<_>, _>(io::Error::other("resolved")) });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let living = listener.local_addr().unwrap();
        let dead = SocketAddr::from(([127, 0, 0, 2], living.port()));
        let connector = TcpConnector::with_resolver(never()).connect_to(&[dead, living]);
        let stream = connector.clone().oneshot("http://shop.test".parse().unwrap()).await.unwrap();
        assert_eq!(stream.inner().peer_addr().unwrap(), living);

        let refused = connector.clone().policy(AddressPolicy::public_only());
        let failure = refused.oneshot("http://shop.test".parse().unwrap()).await.unwrap_err();
        assert_eq!((failure.cause(), failure.peer()), (BadGatewayCause::TargetProhibited, Some(dead)));

        let failure = connector.connect_to(&[]).oneshot("http://shop.test".parse().unwrap()).await.unwrap_err();
        assert_eq!(failure.cause(), BadGatewayCause::DnsFailure);
    }

    #[tokio::test]
    async fn keep_alive_probes_are_sent_if_configured() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target: Uri = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        for (time, probes) in [
            (None, false),
            (Some(Duration::ZERO), true),
            (Some(Duration::from_secs(60)), true),
            (Some(Duration::MAX), true),
        ] {
            let stream = TcpConnector::new().keep_alive(time).oneshot(target.clone()).await.unwrap();
            assert_eq!(SockRef::from(stream.inner()).keepalive().unwrap(), probes, "{time:?}");
        }
    }

    #[tokio::test]
    async fn the_policy_checks_resolved_addresses() {
        let connector = TcpConnector::with_resolver(resolver(&["127.0.0.1"])).policy(AddressPolicy::public_only());
        let failure = connector.oneshot("http://rebound.test".parse().unwrap()).await.unwrap_err();
        assert_eq!(failure.cause(), BadGatewayCause::TargetProhibited);
        assert_eq!(failure.replay(), crate::cause::Replay::NotSent);
        assert_eq!(failure.peer().unwrap().port(), 80);
    }

    #[tokio::test]
    async fn a_target_over_tls_is_refused_before_its_name_is_resolved() {
        let never = || service_fn(|_: Name| async { Err::<std::vec::IntoIter<_>, _>(io::Error::other("resolved")) });
        for target in ["https://x.test", "HTTPS://x.test", "wss://x.test:80"] {
            let failure = TcpConnector::with_resolver(never()).oneshot(target.parse().unwrap()).await.unwrap_err();
            assert_eq!(
                (failure.cause(), failure.replay()),
                (BadGatewayCause::InvalidTarget, crate::cause::Replay::NotSent),
                "{target}"
            );
            assert!(failure.detail().unwrap().to_string().contains("TlsConnector"));
            let under_tls = TcpConnector::with_resolver(never()).enforce_http(false);
            let failure = under_tls.oneshot(target.parse().unwrap()).await.unwrap_err();
            assert_eq!(failure.cause(), BadGatewayCause::DnsFailure, "{target}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_resolver_is_a_dns_timeout() {
        let silent = service_fn(|_: Name| std::future::pending::<Result<std::vec::IntoIter<SocketAddr>, Infallible>>());
        let failure = TcpConnector::with_resolver(silent).oneshot("http://x.test".parse().unwrap()).await.unwrap_err();
        assert_eq!((failure.cause(), failure.phase()), (BadGatewayCause::DnsTimeout, Phase::Resolve));
    }

    #[test]
    fn a_reset_while_connecting_is_no_handshakes() {
        let peer = SocketAddr::from(([127, 0, 0, 1], 1));
        let failure = connect_failure(io::Error::from_raw_os_error(104), peer);
        assert_eq!((failure.cause(), failure.peer()), (BadGatewayCause::ConnectFailed, Some(peer)));
    }

    #[tokio::test]
    async fn a_name_without_addresses_is_not_found() {
        let failure =
            TcpConnector::with_resolver(resolver(&[])).oneshot("http://x.test".parse().unwrap()).await.unwrap_err();
        assert_eq!(failure.cause(), BadGatewayCause::DnsNotFound);
    }
}
