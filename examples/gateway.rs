//! A gateway: every failure becomes a response with a cause, and a log event.
//!
//! ```console
//! $ UPSTREAM=127.0.0.1:9000 cargo run --example gateway
//! $ UPSTREAM=127.0.0.1:9000,127.0.0.1:9001 cargo run --example gateway
//! $ CONFIG=gateway.toml cargo run --example gateway
//! $ cargo run --example gateway        # ten upstreams that misbehave, and a curl command for each
//! ```
//!
//! | variable | meaning | default |
//! |---|---|---|
//! | `LISTEN` | address to listen on, HTTP/1.1 and h2c | `127.0.0.1:8080` |
//! | `UPSTREAM` | `host:port` or an `http(s)://` URL; several, with commas between them, are endpoints of one upstream | ten embedded upstreams that misbehave |
//! | `CONFIG` | a TOML file with several upstreams; of the other variables, only `LISTEN`, `NAME`, `WORKERS` and `RUST_LOG` apply then | none |
//! | `UPSTREAM_CA` | PEM file with the roots to trust | the platform's |
//! | `UPSTREAM_HTTP2` | `1`: HTTP/2 with prior knowledge | ALPN decides |
//! | `CONNECT_TIMEOUT_MS` | timeout for each of name resolution, connect and TLS handshake | 1000 |
//! | `READ_TIMEOUT_MS` | timeout for the response head, and for each pause of a body | 4500 for the head, 15000 for a body |
//! | `TOTAL_TIMEOUT_MS` | timeout from the request to the response head; each attempt gets an equal share | 60000 |
//! | `ATTEMPTS` | how often a request is sent at most, from 1 to 10 | 3 |
//! | `BREAKER` | number of consecutive failures that open the circuit; 0: it never opens | 5 |
//! | `LIMIT` | maximum number of requests in flight; above 100 the limit adapts to the upstream | 1000 |
//! | `TRUST_DEADLINES` | `1`: trust the deadline headers of every client, and send `x-request-timeout-ms` upstream | no |
//! | `CLIENT_TIMEOUT_MS`, `BALANCER_IDLE_MS`, `UPSTREAM_KEEP_ALIVE_MS`, `UPSTREAM_TIMEOUT_MS` | timeouts of the neighbours: conflicting settings are refused at start-up | unknown |
//! | `NAME` | name of this deployment in `Via` and `Proxy-Status` | host name and port |
//! | `WORKERS` | number of threads; 1 = a single-threaded runtime | one per core |
//! | `RUST_LOG` | log filter | `info` |
//!
//! A file has an `[[upstream]]` for each upstream, with the keys of
//! [`UpstreamConfig`](https://docs.rs/tower-upstream/latest/tower_upstream/stack/struct.UpstreamConfig.html), and
//! `[[route]]`s with `host`, `path` (a prefix) and `upstream`. The gateway applies the file again on SIGHUP and when it
//! changes. A bad file changes nothing, and is logged with the reasons. `examples/gateway/gateway.toml` has three
//! services:
//!
//! ```toml
//! [[route]]
//! host = "shop.example"
//! path = "/api"
//! upstream = "shop"
//!
//! [[upstream]]
//! name = "shop"
//! timeouts.total = "10s"
//! endpoint = [{ address = "10.0.0.1:8080" }, { address = "10.0.0.2:8080", weight = 2 }]
//! ```

#[path = "gateway/config.rs"]
mod config;
#[path = "gateway/demo.rs"]
mod demo;
#[path = "gateway/head_timer.rs"]
mod head_timer;
#[path = "gateway/server.rs"]
mod server;
#[path = "gateway/settings.rs"]
mod settings;

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use hyper::body::Incoming;
use tokio::net::TcpListener;
use tower::Layer;
use tower_upstream::UpstreamLayer;
use tower_upstream::client::{DefaultConnector, HttpVersion, ReverseProxy, Target, TcpConnector, TlsConnector};
use tower_upstream::deadline::{DeadlineHeader, DeadlinePropagation};
use tower_upstream::error_page::ErrorPage;
use tower_upstream::forward::{ClientInfo, ForwardingRules, Scheme};
use tower_upstream::stack::{RequestBody, Upstream};

use settings::Settings;

type Proxy = ReverseProxy<DefaultConnector, RequestBody<Incoming>>;

/// How long a client may take to send a request head, and may be idle before it.
const HEAD: Duration = Duration::from_secs(30);
/// How long an idle upstream connection is kept.
const POOL_IDLE: Duration = Duration::from_secs(3);
/// The lower bound of the concurrency limit.
const MIN_LIMIT: u32 = 100;

/// The gateway to one upstream: a proxy, and the stack around it.
#[derive(Clone)]
struct Gateway {
    proxy: Proxy,
    stack: UpstreamLayer,
}

impl Gateway {
    fn new(settings: &Settings, target: Target) -> Result<Self, String> {
        let rules = ForwardingRules::new(&settings.name).map_err(|error| format!("NAME={}: {error}", settings.name))?;
        let tcp = TcpConnector::new().dns_timeout(settings.connect).connect_timeout(settings.connect);
        let tls = match &settings.roots {
            None => TlsConnector::new(tcp),
            Some((path, pem)) => {
                TlsConnector::with_roots(tcp, pem).map_err(|error| format!("UPSTREAM_CA={path}: {error}"))?
            }
        };
        let proxy = ReverseProxy::builder(target, rules)
            .connector(tls.timeout(settings.connect))
            .idle_timeout(POOL_IDLE)
            .http(if settings.http2 { HttpVersion::H2 } else { HttpVersion::Auto })
            .build();
        let Settings { connect, read, body_idle, total, attempts, limit, .. } = *settings;
        let (attempt, circuit) = (settings.attempt(), settings.circuit());
        let mut stack = UpstreamLayer::for_proxy(&proxy)
            .timeouts(move |timeouts| timeouts.response_head(read).body_idle(body_idle).attempt(attempt).total(total))
            .topology(settings.topology.clone().connect(connect))
            .retry_policy(move |policy| policy.attempts(attempts))
            .circuit(move |_| circuit)
            .limiter(move |limiter| limiter.bounds(limit.min(MIN_LIMIT)..=limit))
            .proxy_status(&settings.name)
            .error_page(ErrorPage::new());
        if settings.deadlines {
            stack =
                stack.deadlines(DeadlinePropagation::new().trust_everyone().forward(DeadlineHeader::request_timeout()));
        }
        let stack = stack.build().map_err(|errors| errors.to_string())?;
        if let Some(circuit) = stack.handle().circuit() {
            // detects recovery also while no request comes that the stack could copy as a probe
            tokio::spawn(circuit.active_probe(proxy.connect_probe()));
        }
        Ok(Self { proxy, stack })
    }

    /// The service for one accepted connection.
    fn for_client(&self, peer: SocketAddr) -> Upstream<Proxy> {
        self.stack.layer(self.proxy.client_info(ClientInfo::new(Some(peer.ip()), Scheme::Http)))
    }
}

fn main() -> ExitCode {
    if let Some(argument) = std::env::args_os().nth(1) {
        eprintln!(
            "gateway: unexpected argument {argument:?}: all settings are environment variables, such as UPSTREAM and LISTEN"
        );
        return ExitCode::from(2);
    }
    let settings = match Settings::from_env() {
        Ok(settings) => settings,
        Err(error) => {
            eprintln!("gateway: {error}");
            return ExitCode::from(2);
        }
    };
    Settings::init_log();
    let runtime = settings.runtime();
    let ended = runtime.block_on(run(&settings));
    // a hanging name resolution must not keep the process alive
    runtime.shutdown_timeout(Duration::from_millis(100));
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("gateway: {error}");
            ExitCode::from(2)
        }
    }
}

async fn run(settings: &Settings) -> Result<(), String> {
    let listener =
        TcpListener::bind(settings.listen).await.map_err(|error| format!("LISTEN={}: {error}", settings.listen))?;
    if let Some(path) = &settings.config {
        let gateway = config::Gateway::new(config::File::read(path)?, &settings.name)?;
        tracing::info!(listen = %settings.listen, file = %path.display(), name = settings.name, "gateway started");
        tokio::spawn(gateway.clone().reload(path.clone()));
        server::serve(listener, |peer| gateway.for_client(peer), gateway.clone().drain()).await
    } else if let [_, _, ..] = &*settings.upstreams {
        let gateway = config::Gateway::new(config::File::single(settings.pool()?), &settings.name)?;
        let upstreams = settings.upstreams.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        tracing::info!(listen = %settings.listen, upstreams, name = settings.name, "gateway started");
        server::serve(listener, |peer| gateway.for_client(peer), gateway.clone().drain()).await
    } else if let Some(target) = settings.upstreams.first() {
        let gateway = Gateway::new(settings, target.clone())?;
        tracing::info!(listen = %settings.listen, upstream = %target, name = settings.name, "gateway started");
        let handle = gateway.stack.handle();
        let upgraded = async move {
            let _ = handle.drain(Duration::MAX).await;
        };
        server::serve(listener, |peer| gateway.for_client(peer), upgraded).await
    } else {
        let demo = demo::Demo::start(settings).await?;
        demo.introduce(settings.listen);
        server::serve(listener, |peer| demo.for_client(peer), std::future::ready(())).await
    }
}
