//! A whole upstream from a file: the stack, its pool, and a proxy for each endpoint.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use http_body::Body;

use super::super::builder::UpstreamBuilder;
use super::super::config_error::{ConfigError, ConfigErrors};
use super::super::presets::Preset;
use super::super::requests::RequestBody;
use super::super::{Upstream, UpstreamBody, UpstreamHandle, UpstreamLayer};
use super::UpstreamConfig;
use super::apply::contradiction;
use super::connection::{Connection, Panic};
use super::tables::{Circuit, Limiter, Part, Probe, Root};
use super::value::read;
use crate::balance::{Balance, BalanceBody, BalanceHandle, HealthChecks, Member, reverse_proxies};
use crate::body::{ResponseBody, TrackedUpload};
use crate::breaker::BreakerPolicy;
use crate::client::{DefaultConnector, ProxyBody, ReverseProxy, ReverseProxyBuilder, TcpConnector};
use crate::forward::ForwardingRules;
use crate::limit::ConcurrencyLimitLayer;

/// The service of an endpoint, for requests with the body `B`.
type Endpoint<B> = ReverseProxy<DefaultConnector, TrackedUpload<RequestBody<B>>>;

/// The service of an [`UpstreamProxy`] for requests with the body `B`.
pub type UpstreamProxyService<B> = Upstream<Balance<Endpoint<B>>>;

/// The response body of an [`UpstreamProxyService`].
pub type UpstreamProxyBody<B> = UpstreamBody<BalanceBody<ResponseBody<ProxyBody<TrackedUpload<RequestBody<B>>>>>>;

/// A whole upstream from a file, with its stack, endpoints and connections; see [`UpstreamConfig::proxy`].
///
/// Clones refer to the same upstream. `B` is the body of its requests.
pub struct UpstreamProxy<B> {
    layer: UpstreamLayer,
    pool: Balance<Endpoint<B>>,
    fixed: Arc<Fixed>,
}

/// The settings that cannot change while the upstream runs.
#[derive(Debug, PartialEq, Eq)]
struct Fixed {
    connection: Connection,
    has_circuit: bool,
    /// The path of the probes, or none; `None`: copies of requests.
    probe: Option<Probe>,
    limiter: Option<(u32, u32)>,
}

/// The settings of a file, and its errors.
struct Parsed {
    builder: UpstreamBuilder,
    fixed: Fixed,
    members: Vec<Member>,
    circuit: Option<BreakerPolicy>,
    limiter: Option<ConcurrencyLimitLayer>,
    errors: Vec<ConfigError>,
}

impl UpstreamConfig {
    /// Builds the whole upstream: a stack around a [`Balance`] with a [`ReverseProxy`] for each endpoint.
    ///
    /// The proxies forward the client that a [`ClientInfo`](crate::forward::ClientInfo) in the extensions of a request
    /// names. Health checks begin at once, in a task that ends with the upstream.
    ///
    /// ```
    /// use axum::body::Body;
    /// use tower_upstream::forward::ForwardingRules;
    /// use tower_upstream::stack::UpstreamConfig;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let config: UpstreamConfig = toml::from_str(r#"
    ///     name = "shop"
    ///
    ///     [[endpoint]]
    ///     address = "10.0.0.1:8080"
    ///
    ///     [[endpoint]]
    ///     address = "10.0.0.2:8080"
    ///     weight = 2
    ///
    ///     [timeouts]
    ///     total = "10s"
    /// "#)?;
    /// let shop = config.proxy::<Body>(ForwardingRules::new("edge-1")?)?;
    /// let app = axum::Router::new().fallback_service(shop.service());
    ///
    /// // later, without losing circuits, budgets or connections
    /// let config: UpstreamConfig = toml::from_str(r#"
    ///     name = "shop"
    ///     endpoint = [{ address = "10.0.0.1:8080" }, { address = "10.0.0.3:8080" }]
    ///     timeouts.total = "8s"
    /// "#)?;
    /// shop.apply(config)?;
    /// # let _: axum::Router = app;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Every invalid or conflicting setting, each with a suggestion.
    ///
    /// # Panics
    ///
    /// Outside of a Tokio runtime, if there are health checks.
    pub fn proxy<B>(self, rules: ForwardingRules) -> Result<UpstreamProxy<B>, ConfigErrors>
    where
        B: Body<Data = Bytes> + Send + 'static,
    {
        let mut parsed = self.parse();
        let connection = &parsed.fixed.connection;
        let connector = connection.connector(&mut parsed.errors);
        let checks = connection.checks(&connector, &mut parsed.errors);
        let proxies = connection.proxies(&parsed.members, rules, connector);
        let mut pool = Balance::builder(parsed.builder.name.clone(), reverse_proxies(proxies));
        pool = pool.slow_start(connection.slow_start);
        if let Some(zone) = &connection.zone {
            pool = pool.zone(&**zone);
        }
        if connection.panic == Panic::Refuse {
            pool = pool.refuse_in_panic();
        }
        pool = match parsed.circuit {
            Some(policy) => pool.circuit(|_| policy),
            None => pool.without_circuit(),
        };
        pool = match &parsed.fixed.probe {
            None => pool,
            Some(Probe(None)) => pool.without_probe(),
            Some(Probe(Some(path))) => {
                let mut request = http::Request::new(());
                *request.uri_mut() = path.clone();
                pool.probe_request(request)
            }
        };
        if let Some(limiter) = parsed.limiter {
            pool = pool.limiter(limiter);
        }
        let (_, pool) = pool.without_members();
        if parsed.errors.is_empty() {
            parsed.errors.extend(set_members(&pool.handle(), parsed.members).err());
        }
        parsed.builder.found.extend(parsed.errors);
        let layer = parsed.builder.pool(pool.handle()).build()?;
        if let Some(checks) = checks {
            checks.watch(&pool.handle());
        }
        Ok(UpstreamProxy { layer, pool, fixed: Arc::new(parsed.fixed) })
    }

    fn parse(self) -> Parsed {
        let mut errors = Vec::new();
        let mut root: Root = read("", self.entries, &mut errors);
        let connection = Connection::take(&mut root, &mut errors);
        let members = connection.members(&mut root, &mut errors);
        root.derive_topology(connection.tcp, connection.idle, &mut errors);
        let preset = root.preset.unwrap_or_default();
        let (circuit, probe) = root.take_circuit(preset, &mut errors);
        let limiter = match root.limiter.take() {
            Some(Part(Some(entries))) => {
                let limiter = read::<Limiter>("limiter", entries, &mut errors);
                limiter.check(&mut errors);
                Some(limiter.apply(Preset::limiter()))
            }
            None | Some(Part(None)) => None,
        };
        let fixed = Fixed {
            connection,
            has_circuit: circuit.is_some(),
            probe,
            limiter: limiter.as_ref().map(ConcurrencyLimitLayer::configured_bounds),
        };
        let builder = root.apply(&mut errors).without_circuit().without_limiter().without_upload_tracking();
        Parsed { builder, fixed, members, circuit, limiter, errors }
    }
}

fn set_members(pool: &BalanceHandle, members: Vec<Member>) -> Result<(), ConfigError> {
    let outcome = pool.replace(members);
    outcome.map(drop).map_err(|error| ConfigError::new("endpoint", error.to_string(), "correct the list of endpoints"))
}

impl Root {
    /// The policy of the circuits, and the path of their probes.
    fn take_circuit(
        &mut self,
        preset: Preset,
        errors: &mut Vec<ConfigError>,
    ) -> (Option<BreakerPolicy>, Option<Probe>) {
        let policy = preset.circuit().clustered();
        match self.circuit.take() {
            None => (Some(policy), None),
            Some(Part(None)) => (None, None),
            Some(Part(Some(entries))) => {
                let mut circuit = read::<Circuit>("circuit", entries, errors);
                circuit.check(errors);
                let probe = circuit.probe.take();
                (Some(circuit.apply(policy)), probe)
            }
        }
    }
}

impl Connection {
    /// Returns the builder of the endpoints' proxies.
    fn proxies(&self, members: &[Member], rules: ForwardingRules, connector: DefaultConnector) -> ReverseProxyBuilder {
        // without a target of the upstream, each endpoint replaces this one by its key
        let target = self.target.clone().or_else(|| members.first()?.key.parse().ok());
        let target = target.unwrap_or_else(|| "localhost".parse().expect("a host name is a target"));
        let mut proxy =
            ReverseProxy::builder(target, rules).connector(connector).idle_timeout(self.idle).http(self.http);
        if let Some(age) = self.max_age {
            proxy = proxy.max_age(age);
        }
        if let Some(connections) = self.max_connections {
            proxy = proxy.max_connections(connections);
        }
        if let Some(streams) = self.max_streams {
            proxy = proxy.max_streams(streams);
        }
        if let Some(time) = self.queue {
            proxy = proxy.queue_timeout(time);
        }
        proxy
    }

    /// Returns the health checks, if there is a table `health`.
    fn checks(&self, connector: &DefaultConnector, errors: &mut Vec<ConfigError>) -> Option<HealthChecks> {
        let check = self.health.as_ref()?.check(self.target.as_ref(), errors);
        #[cfg(feature = "rustls")]
        let is_tls = self.target.as_ref().is_some_and(|target| *target.scheme() == http::uri::Scheme::HTTPS);
        #[cfg(feature = "rustls")]
        let check = if is_tls { check.tls(connector) } else { check };
        #[cfg(not(feature = "rustls"))]
        let _ = connector;
        match HealthChecks::new(check) {
            Ok(checks) => Some(checks),
            Err(error) => {
                contradiction(errors, "health", &error.to_string(), "correct the setting");
                None
            }
        }
    }

    fn tcp(&self) -> TcpConnector {
        TcpConnector::new().dns_timeout(self.dns).connect_timeout(self.tcp)
    }

    #[cfg(feature = "rustls")]
    fn connector(&self, errors: &mut Vec<ConfigError>) -> DefaultConnector {
        use crate::client::TlsConnector;

        let tcp = self.tcp();
        let connector = match &self.ca {
            None => TlsConnector::new(tcp),
            Some(path) => {
                let pem = std::fs::read(path).map_err(|error| error.to_string());
                let with_roots =
                    |pem: Vec<u8>| TlsConnector::with_roots(tcp.clone(), &pem).map_err(|error| error.to_string());
                pem.and_then(with_roots).unwrap_or_else(|error| {
                    let problem = format!("{path:?} cannot be used: {error}");
                    contradiction(errors, "tls.ca", &problem, "name a PEM file with certificates");
                    TlsConnector::new(tcp)
                })
            }
        };
        connector.timeout(self.tls)
    }

    #[cfg(not(feature = "rustls"))]
    fn connector(&self, errors: &mut Vec<ConfigError>) -> DefaultConnector {
        if self.ca.is_some() {
            contradiction(errors, "tls.ca", "the program was built without TLS", "enable the feature `rustls`");
        }
        self.tcp()
    }
}

impl<B> UpstreamProxy<B>
where
    B: Body<Data = Bytes> + Send + 'static,
{
    /// Returns the service that sends requests to this upstream.
    pub fn service(&self) -> UpstreamProxyService<B> {
        tower_layer::Layer::layer(&self.layer, self.pool.clone())
    }

    /// Returns the handle of the stack.
    pub fn handle(&self) -> UpstreamHandle {
        self.layer.handle()
    }

    /// Returns the handle of the endpoints.
    pub fn endpoints(&self) -> BalanceHandle {
        self.pool.handle()
    }

    /// Applies a changed file to calls that begin from now on.
    ///
    /// Endpoints that keep their key and address keep their circuit, latency and connections, and the stack keeps its
    /// budget and statistics.
    ///
    /// # Errors
    ///
    /// A setting is invalid, or differs although it cannot change while the upstream runs: `name`, `target`, `connect`,
    /// `tls`, `pool`, `balance`, `health`, `limiter`, `circuit.probe`, or the presence of circuits or retries. Nothing
    /// has changed then: keep the running upstream, or build another one.
    pub fn apply(&self, config: UpstreamConfig) -> Result<(), ConfigErrors> {
        let handle = self.layer.handle();
        let mut parsed = config.parse();
        let (fixed, running) = (&parsed.fixed, &*self.fixed);
        let is_same = fixed.has_circuit == running.has_circuit && fixed.probe == running.probe;
        let circuit = (!is_same).then_some("circuit");
        let limiter = (fixed.limiter != running.limiter).then_some("limiter");
        for setting in fixed.connection.changes(&running.connection).chain(circuit).chain(limiter) {
            let problem = "cannot change while the upstream runs";
            contradiction(&mut parsed.errors, setting, problem, "build the upstream again");
        }
        parsed.builder.found.extend(parsed.errors);
        let members = parsed.members;
        handle.apply_builder(parsed.builder, || set_members(&self.pool.handle(), members))?;
        if let Some(policy) = parsed.circuit {
            self.pool.handle().set_circuit_policy(policy);
        }
        Ok(())
    }
}

impl<B> Clone for UpstreamProxy<B> {
    fn clone(&self) -> Self {
        Self { layer: self.layer.clone(), pool: self.pool.clone(), fixed: self.fixed.clone() }
    }
}

impl<B> fmt::Debug for UpstreamProxy<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpstreamProxy").field("pool", &self.pool).finish_non_exhaustive()
    }
}
