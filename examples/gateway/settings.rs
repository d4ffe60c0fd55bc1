//! The gateway's settings, from the environment.

use std::env;
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;
use tokio::runtime::{Builder, Runtime};
use tower_upstream::alignment::Topology;
use tower_upstream::breaker::{BreakerPolicy, Ratio};
use tower_upstream::client::Target;
use tower_upstream::stack::UpstreamConfig;
use tracing_subscriber::EnvFilter;

use super::{HEAD, POOL_IDLE};

/// The longest backoff of the default retry policy.
const MAX_BACKOFF: Duration = Duration::from_secs(1);

#[derive(Clone)]
pub(crate) struct Settings {
    pub(crate) listen: SocketAddr,
    pub(crate) upstreams: Vec<Target>,
    /// A file with several upstreams.
    pub(crate) config: Option<PathBuf>,
    /// The path and content of a PEM file.
    pub(crate) roots: Option<(String, Vec<u8>)>,
    pub(crate) http2: bool,
    pub(crate) connect: Duration,
    pub(crate) read: Duration,
    pub(crate) body_idle: Duration,
    pub(crate) total: Duration,
    pub(crate) attempts: u8,
    /// Consecutive failures that open the circuit; 0 for never.
    pub(crate) breaker: u32,
    /// Maximum number of requests in flight.
    pub(crate) limit: u32,
    pub(crate) deadlines: bool,
    pub(crate) topology: Topology,
    pub(crate) name: String,
    pub(crate) workers: NonZeroUsize,
}

impl Settings {
    /// Reads every variable.
    ///
    /// # Errors
    /// The invalid variable, its value and what was expected.
    pub(crate) fn from_env() -> Result<Self, String> {
        let listen: SocketAddr = parsed("LISTEN", "an address like 127.0.0.1:8080")?
            .unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 8080)));
        let upstreams = text("UPSTREAM")?;
        let upstreams = upstreams.iter().flat_map(|list| list.split(',')).map(|text| {
            // a host alone is an address too, but here it is usually a mistake
            if !text.contains(':') {
                return Err(format!("UPSTREAM={text}: expected host:port, or an http or https URL"));
            }
            text.trim().parse().map_err(|error| format!("UPSTREAM={text}: {error}"))
        });
        let roots = match text("UPSTREAM_CA")? {
            None => None,
            Some(path) => {
                let pem = std::fs::read(&path).map_err(|error| format!("UPSTREAM_CA={path}: {error}"))?;
                Some((path, pem))
            }
        };
        let cores = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        Ok(Self {
            listen,
            upstreams: upstreams.collect::<Result<_, _>>()?,
            config: text("CONFIG")?.map(PathBuf::from),
            roots,
            http2: flag("UPSTREAM_HTTP2")?,
            connect: millis("CONNECT_TIMEOUT_MS", 1_000)?,
            // as the preset's: a client is answered within 5 s if the upstream hangs
            read: millis("READ_TIMEOUT_MS", 4_500)?,
            body_idle: millis("READ_TIMEOUT_MS", 15_000)?,
            total: millis("TOTAL_TIMEOUT_MS", 60_000)?,
            attempts: parsed("ATTEMPTS", "a number from 1")?.unwrap_or(3),
            breaker: parsed("BREAKER", "a number of failures, 0 for never")?.unwrap_or(5),
            limit: parsed("LIMIT", "a number of requests from 1")?.unwrap_or(1000),
            deadlines: flag("TRUST_DEADLINES")?,
            topology: topology()?,
            name: text("NAME")?.unwrap_or_else(|| default_name(listen)),
            workers: parsed("WORKERS", "a number of threads from 1")?.unwrap_or(cores),
        })
    }

    /// The timeout of one attempt: its share of the total, so that the retries have time to run.
    pub(crate) fn attempt(&self) -> Duration {
        let attempts = u32::from(self.attempts.max(1));
        let backoff = MAX_BACKOFF * (attempts - 1);
        (self.total.saturating_sub(backoff) / attempts).max(self.read)
    }

    /// When the circuit opens.
    pub(crate) fn circuit(&self) -> BreakerPolicy {
        match self.breaker {
            0 => BreakerPolicy::new().consecutive_failures(u32::MAX).ratio(Ratio::per_mille(1000), u32::MAX),
            failures => BreakerPolicy::new().consecutive_failures(failures),
        }
    }

    /// One upstream with several endpoints.
    pub(crate) fn pool(&self) -> Result<UpstreamConfig, String> {
        if self.deadlines {
            return Err("TRUST_DEADLINES=1: expected a single UPSTREAM".to_owned());
        }
        let ms = |time: Duration| format!("{}ms", time.as_millis());
        let endpoints: Vec<_> = self.upstreams.iter().map(|target| json!({ "address": target.to_string() })).collect();
        let mut config = json!({
            "name": "upstream",
            "proxy_status": self.name,
            "endpoint": endpoints,
            "timeouts": {
                "response_head": ms(self.read),
                "body_idle": ms(self.body_idle),
                "attempt": ms(self.attempt()),
                "total": ms(self.total),
            },
            "retry": { "attempts": self.attempts },
            "connect": { "dns": ms(self.connect), "tcp": ms(self.connect), "tls": ms(self.connect) },
            "pool": { "idle": ms(POOL_IDLE), "http2": self.http2 },
            "limiter": { "fixed": self.limit },
            "error_page": {},
        });
        config["circuit"] = match self.breaker {
            0 => json!(false),
            failures => json!({ "consecutive_failures": failures }),
        };
        if let Some((path, _)) = &self.roots {
            config["tls"] = json!({ "ca": path });
        }
        serde_json::from_value(config).map_err(|error| error.to_string())
    }

    pub(crate) fn init_log() {
        let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
        let colors = std::io::stderr().is_terminal();
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colors).init();
    }

    pub(crate) fn runtime(&self) -> Runtime {
        let mut builder = match self.workers.get() {
            1 => Builder::new_current_thread(),
            _ => Builder::new_multi_thread(),
        };
        builder.worker_threads(self.workers.get()).enable_all().build().expect("a runtime")
    }
}

/// The timeouts of the neighbours, as far as they are known.
fn topology() -> Result<Topology, String> {
    let mut topology = Topology::new().pool_idle(POOL_IDLE).server_keep_alive(HEAD);
    if let Some(limit) = declared("CLIENT_TIMEOUT_MS")? {
        topology = topology.client_timeout(limit);
    }
    if let Some(limit) = declared("BALANCER_IDLE_MS")? {
        topology = topology.load_balancer_idle(limit);
    }
    if let Some(limit) = declared("UPSTREAM_KEEP_ALIVE_MS")? {
        topology = topology.upstream_keep_alive(limit);
    }
    if let Some(limit) = declared("UPSTREAM_TIMEOUT_MS")? {
        topology = topology.upstream_timeout(limit);
    }
    Ok(topology)
}

fn flag(name: &str) -> Result<bool, String> {
    match text(name)?.as_deref() {
        None | Some("0") => Ok(false),
        Some("1") => Ok(true),
        Some(other) => Err(format!("{name}={other}: expected 0 or 1")),
    }
}

fn declared(name: &str) -> Result<Option<Duration>, String> {
    Ok(parsed(name, "a number of milliseconds")?.map(Duration::from_millis))
}

/// Returns a name that is unique among hosts and among gateways on one host, because loop detection compares it.
fn default_name(listen: SocketAddr) -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host: String = host.trim().chars().filter(|c| c.is_ascii_alphanumeric() || "-.".contains(*c)).collect();
    let host = if host.is_empty() { "gateway" } else { &host };
    format!("{host}-{}", listen.port())
}

fn text(name: &str) -> Result<Option<String>, String> {
    match env::var(name) {
        Ok(text) if text.is_empty() => Ok(None),
        Ok(text) => Ok(Some(text)),
        Err(env::VarError::NotPresent) => Ok(None),
        Err(env::VarError::NotUnicode(_)) => Err(format!("{name} is not valid UTF-8")),
    }
}

fn parsed<T: std::str::FromStr>(name: &str, expected: &str) -> Result<Option<T>, String> {
    let Some(text) = text(name)? else { return Ok(None) };
    text.parse().map(Some).map_err(|_| format!("{name}={text}: expected {expected}"))
}

fn millis(name: &str, default: u64) -> Result<Duration, String> {
    let millis = parsed(name, "a number of milliseconds from 1")?.unwrap_or(default);
    if millis == 0 {
        return Err(format!("{name}=0: expected a number of milliseconds from 1"));
    }
    Ok(Duration::from_millis(millis))
}
