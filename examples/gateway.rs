//! A gateway in front of one upstream: every failure gets an answer, a cause and a log line.
//!
//! ```console
//! $ UPSTREAM=127.0.0.1:9000 cargo run --example gateway
//! $ cargo run --example gateway        # no upstream at hand: ten that misbehave, and a curl line for each
//! ```
//!
//! | variable | meaning | default |
//! |---|---|---|
//! | `LISTEN` | address to listen on, HTTP/1.1 and h2c | `127.0.0.1:8080` |
//! | `UPSTREAM` | `host:port` or an `http(s)://` URL | ten embedded ones |
//! | `UPSTREAM_CA` | PEM file with the roots to trust | the platform's |
//! | `UPSTREAM_HTTP2` | `1`: HTTP/2 without asking | ALPN decides |
//! | `CONNECT_TIMEOUT_MS` | limit for each of name, connect and TLS | 1000 |
//! | `READ_TIMEOUT_MS` | limit for the response head, and for each wait in the body | 30000 |
//! | `TOTAL_TIMEOUT_MS` | limit from the request to the response head | 60000 |
//! | `ATTEMPTS` | how often a request is sent at most | 3 |
//! | `BREAKER` | so many failures in a row open the circuit; 0: it never opens | 5 |
//! | `LIMIT` | most requests in flight; from 100 up to it the limit follows what the upstream can do | 1000 |
//! | `TRUST_DEADLINES` | `1`: every caller's deadline fields count, and `x-request-timeout-ms` goes upstream | no |
//! | `CALLER_TIMEOUT_MS`, `BALANCER_IDLE_MS`, `UPSTREAM_KEEP_ALIVE_MS`, `UPSTREAM_TIMEOUT_MS` | what the neighbours do: limits that do not fit are refused at the start | not known |
//! | `NAME` | this deployment in `Via` and `Proxy-Status` | the host's name and the port |
//! | `WORKERS` | threads; 1 = a single-threaded runtime | one a core |
//! | `RUST_LOG` | what is logged | `info` |

#[path = "gateway/demo.rs"]
mod demo;
#[path = "gateway/drain.rs"]
mod drain;
#[path = "gateway/patience.rs"]
mod patience;
#[path = "gateway/settings.rs"]
mod settings;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::Service;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tower::Layer;
use tower_upstream::UpstreamLayer;
use tower_upstream::client::{DefaultConnector, HttpVersion, ReverseProxy, Target, TcpConnector, TlsConnector};
use tower_upstream::deadline::{DeadlineHeader, DeadlinePropagation};
use tower_upstream::error_page::ErrorPage;
use tower_upstream::forward::{ClientInfo, ForwardingRules, Scheme};
use tower_upstream::limit::ConcurrencyLimitLayer;
use tower_upstream::retry::{RetryLayer, RetryPolicy};
use tower_upstream::stack::{RequestBody, Upstream};
use tower_upstream::timeout::Timeouts;

use drain::Drain;
use patience::Patience;
use settings::Settings;

type Proxy = ReverseProxy<DefaultConnector, RequestBody<Incoming>>;

/// What serves one accepted connection: the proxy watches its uploads itself.
type Stack = Upstream<Proxy>;
type Body = <<Stack as Service<Request<Incoming>>>::Response as Answer>::Body;

/// How long a client may take to send a request head, and be idle before it.
const HEAD: Duration = Duration::from_secs(30);
/// How long an upstream connection is kept that nobody uses.
const POOL_IDLE: Duration = Duration::from_secs(3);
/// As many requests may be in flight in any case.
const LEAST: u32 = 100;
/// The largest request head, and the most that is kept of a response for a client that does not read.
const BUFFER: usize = 16 << 10;
/// How long running requests may take once SIGTERM has come.
const DRAIN: Duration = Duration::from_secs(30);

/// One upstream's gateway: the proxy, and around it the stack.
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
        let timeouts = Timeouts::new().response_head(settings.read).body_idle(settings.read).total(settings.total);
        let mut stack = UpstreamLayer::builder(target.authority().to_string())
            .timeouts(timeouts)
            .topology(settings.topology.clone().connect(settings.connect))
            .retry(RetryLayer::new().policy(RetryPolicy::new().attempts(settings.attempts)))
            .circuit(settings.policy())
            .limiter(ConcurrencyLimitLayer::new().bounds(settings.limit.min(LEAST)..=settings.limit))
            .proxy_status(&settings.name)
            .error_page(ErrorPage::new())
            .without_upload_tracking();
        if settings.deadlines {
            stack =
                stack.deadlines(DeadlinePropagation::new().trust_everyone().forward(DeadlineHeader::request_timeout()));
        }
        let stack = stack.build().map_err(|misconfigured| misconfigured.to_string())?;
        let proxy = ReverseProxy::builder(target, rules)
            .connector(tls.timeout(settings.connect))
            .idle_timeout(POOL_IDLE)
            .http(if settings.http2 { HttpVersion::H2 } else { HttpVersion::Auto })
            .build();
        if let Some(circuit) = stack.handle().circuit() {
            // so that no request has to find out whether the upstream is back
            tokio::spawn(circuit.active_probe(proxy.connect_probe()));
        }
        Ok(Self { proxy, stack })
    }

    /// The service for one accepted connection.
    fn for_caller(&self, peer: SocketAddr) -> Stack {
        self.stack.layer(self.proxy.client_info(ClientInfo::new(Some(peer.ip()), Scheme::Http)))
    }
}

/// The body of an answer, whose type nobody wants to write down.
trait Answer {
    type Body;
}

impl<B> Answer for Response<B> {
    type Body = B;
}

fn main() -> ExitCode {
    let settings = match Settings::from_env() {
        Ok(settings) => settings,
        Err(complaint) => {
            eprintln!("gateway: {complaint}");
            return ExitCode::from(2);
        }
    };
    Settings::init_log();
    let runtime = settings.runtime();
    let ended = runtime.block_on(run(&settings));
    // a resolver that hangs must not keep the process
    runtime.shutdown_timeout(Duration::from_millis(100));
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(complaint) => {
            eprintln!("gateway: {complaint}");
            ExitCode::from(2)
        }
    }
}

async fn run(settings: &Settings) -> Result<(), String> {
    let listener =
        TcpListener::bind(settings.listen).await.map_err(|error| format!("LISTEN={}: {error}", settings.listen))?;
    if let Some(target) = settings.upstream.clone() {
        let gateway = Gateway::new(settings, target.clone())?;
        tracing::info!(listen = %settings.listen, upstream = %target, name = settings.name, "gateway is up");
        serve(listener, |peer| gateway.for_caller(peer)).await
    } else {
        let demo = demo::Demo::start(settings).await?;
        demo.introduce(settings.listen);
        serve(listener, |peer| demo.for_caller(peer)).await
    }
}

/// Accepts until SIGTERM or ctrl-c, then lets what runs end.
async fn serve<S, B>(listener: TcpListener, mut service: impl FnMut(SocketAddr) -> S) -> Result<(), String>
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Send + Sync + 'static,
    S::Future: Send,
    B: http_body::Body<Data = bytes::Bytes, Error: Into<tower::BoxError>> + Send + 'static,
{
    let draining = Drain::default();
    let mut term = signal(SignalKind::terminate()).map_err(|error| format!("SIGTERM: {error}"))?;
    let mut ctrl_c = signal(SignalKind::interrupt()).map_err(|error| format!("ctrl-c: {error}"))?;
    loop {
        let (stream, peer) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // out of descriptors, mostly: those that close make room
                    tracing::error!(%error, "accept");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
            _ = term.recv() => break,
            _ = ctrl_c.recv() => break,
        };
        tokio::spawn(connection(stream, service(peer), draining.clone()));
    }
    drop(listener);
    tracing::info!("draining");
    if tokio::time::timeout(DRAIN, draining.finish()).await.is_err() {
        tracing::warn!("requests were still running");
    }
    Ok(())
}

/// Serves one connection in the protocol it begins with.
async fn connection<S, B>(stream: TcpStream, service: S, draining: Drain)
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Send + Sync + 'static,
    S::Future: Send,
    B: http_body::Body<Data = bytes::Bytes, Error: Into<tower::BoxError>> + Send + 'static,
{
    let _ = stream.set_nodelay(true);
    let first = tokio::select! {
        first = tokio::time::timeout(HEAD, speaks_h2(&stream)) => first,
        () = draining.begun() => return,
    };
    let Ok(Ok(h2)) = first else { return };
    let io = TokioIo::new(stream);
    let ended = if h2 {
        let mut server = http2::Builder::new(TokioExecutor::new());
        server.timer(TokioTimer::new()).keep_alive_interval(HEAD).max_send_buf_size(BUFFER);
        draining.watch(server.serve_connection(io, service), http2::Connection::graceful_shutdown).await
    } else {
        let mut server = http1::Builder::new();
        server.timer(Patience::default()).header_read_timeout(HEAD).max_buf_size(BUFFER);
        let connection = server.serve_connection(io, service).with_upgrades();
        draining.watch(connection, http1::UpgradeableConnection::graceful_shutdown).await
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "connection");
    }
}

/// Looks at the first bytes and leaves them where they are (RFC 9113 section 3.4).
async fn speaks_h2(stream: &TcpStream) -> std::io::Result<bool> {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let mut first = [0; PREFACE.len()];
    loop {
        let seen = stream.peek(&mut first).await?;
        if seen == 0 || !PREFACE.starts_with(&first[..seen]) {
            return Ok(false);
        }
        // no method begins like this
        if seen >= 4 {
            return Ok(true);
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
