//! The settings of one upstream, from a file.

mod apply;
#[cfg(all(feature = "balance", feature = "client"))]
mod connection;
#[cfg(all(feature = "balance", feature = "client"))]
mod health;
#[cfg(all(feature = "balance", feature = "client"))]
mod proxy;
mod tables;
mod value;

use serde::Deserialize;

#[cfg(all(feature = "balance", feature = "client"))]
pub use self::proxy::{UpstreamProxy, UpstreamProxyBody, UpstreamProxyService};
use self::tables::Root;
use self::value::{Entries, keys, read};
use super::builder::UpstreamBuilder;

/// The settings of one upstream, read from TOML, JSON or any other self-describing serde format.
///
/// Every key is optional; a missing one takes the [preset's](super#presets) value. The keys have the names of the builder's
/// methods.
///
/// | table | keys |
/// |---|---|
/// | | `name`, `preset` (`"latency_critical"`, `"standard"`, `"batch"` or `"streaming"`), `proxy_status` |
/// | `timeouts` | `response_head`, `attempt`, `total`, `body_idle`, `max_duration`, `client_idle`: a duration or `"none"`; `unbounded` |
/// | `retry` | `attempts`, `base_backoff`, `max_backoff`, `max_retry_after`, `body_cap`, `budget`, `hedging` (`"p95"`, a duration or `"off"`), `trust_idempotency_keys`, `repeat_too_many_requests` |
/// | `circuit` | `consecutive_failures`, `ratio`, `min_calls`, `window`, `open_duration`, `max_open_duration`, `probe_timeout`, `slow_calls` (a duration), `slow_ratio` (default 50 %), `probe` (a path, or `"off"`) |
/// | `limiter` | `fixed`, or `adaptive`, `min` and `max`; `hold_slot_during_upgrade` |
/// | `topology` | `client_timeout` or `client_deadline`, `load_balancer_idle`, `load_balancer_propagation`, `server_keep_alive`, `upstream_keep_alive`, `upstream_timeout`, `connect`, `pool_idle`, `heartbeat`, `streaming`, `drain_delay`, `grace` |
/// | `error_page` | `contact`, `reveal_upstream`; without the table there is no page, and an empty table is the default page |
///
/// With the features `balance` and `client`, `proxy` builds the whole upstream, and reads these as well:
///
/// | table | keys |
/// |---|---|
/// | | `target`: an `http` or `https` URL, or `host:port`; with endpoints, it names the upstream in `Host` and in TLS |
/// | `endpoint`, a list | `address` (an IP address with a port; without a `target` also a name or URL), `key` (default: the address), `weight`, `tier`, `zone`, `group`, `state` (`"active"` or `"draining"`) |
/// | `balance` | `slow_start`, `zone`, `panic` (`"use_all"` or `"refuse"`) |
/// | `health` | one of `http` (a path), `grpc` (a service) and `tcp` (`true`); `host`, `status` (200, or `"200-299"`), `body` (a word in it), `interval`, `timeout`, `rise`, `fall`: see [`HealthCheck`](crate::balance::HealthCheck) |
/// | `connect` | `dns` (1 s), `tcp` (1 s), `tls` (2 s): the time limits |
/// | `tls` | `ca`: a PEM file with the roots to trust in place of the platform's |
/// | `pool` | of each endpoint: `idle` (3 s), `max_age`, `max_connections`, `max_streams`, `queue`, `http2` |
///
/// `circuit` and `limiter` are then those of each endpoint, and there is no limiter without its table. `topology.connect` and
/// `topology.pool_idle` follow from `connect` and `pool`.
///
/// Durations are strings with units: `"1500ms"`, `"2s"`, `"1m 30s"`, `"1.5s"`. Fractions are `0.2` or `"20%"`, sizes `65536`
/// or `"64 KiB"`. `retry = false`, `circuit = false` and `limiter = false` leave that part out.
///
/// # Errors
///
/// Deserializing fails only if the text is not valid in its format. [`build`](UpstreamBuilder::build) names everything else
/// at once, each with its key: unknown keys, values of a wrong type, and settings that conflict.
///
/// ```
/// use tower_upstream::stack::UpstreamConfig;
///
/// let config: UpstreamConfig = toml::from_str(r#"
///     name = "payments"
///     preset = "standard"
///     proxy_status = "shop-edge"
///
///     [timeouts]
///     response_head = "1500ms"
///     attempt = "2s"
///     total = "5s"
///
///     [retry]
///     attempts = 2
///     budget = "10%"
///
///     [limiter]
///     max = 64
///
///     [topology]
///     client_timeout = "10s"
/// "#)?;
/// let layer = config.builder().build()?;
/// # assert_eq!(layer.handle().name(), "payments");
///
/// let config: UpstreamConfig = toml::from_str(r#"
///     name = "payments"
///     timeouts.total = 30
///     retry.atempts = 2
/// "#)?;
/// let errors = config.builder().build().unwrap_err();
/// assert_eq!(errors.errors()[0].to_string(), r#"timeouts.total: missing unit: write "30s" or "30ms""#);
/// assert_eq!(errors.errors()[1].to_string(), "retry.atempts: unknown key: did you mean `attempts`?");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Deserialize)]
#[serde(transparent)]
#[must_use]
pub struct UpstreamConfig {
    entries: Entries,
}

impl UpstreamConfig {
    /// The upstream's name, if the file has one.
    pub fn name(&self) -> Option<&str> {
        self.entries.text("name")
    }

    /// A builder with these settings, which code may change further, for a program that brings its own client.
    ///
    /// The tables of the second part then have no effect, and are errors.
    pub fn builder(self) -> UpstreamBuilder {
        let mut errors = Vec::new();
        let root: Root = read("", self.entries, &mut errors);
        root.refuse_connection(&mut errors);
        let mut builder = root.apply(&mut errors);
        builder.found.extend(errors);
        builder
    }
}

/// The table that has this key; the empty name is the top level.
fn table_of(key: &str) -> Option<&'static str> {
    all_tables().into_iter().find(|(_, keys)| keys.contains(&key)).map(|(table, _)| table)
}

/// Every table and its keys.
fn all_tables() -> Vec<(&'static str, &'static [&'static str])> {
    vec![
        ("", keys::<Root>()),
        ("timeouts", keys::<tables::Timeouts>()),
        ("retry", keys::<tables::Retry>()),
        ("circuit", keys::<tables::Circuit>()),
        ("limiter", keys::<tables::Limiter>()),
        ("topology", keys::<tables::Topology>()),
        ("error_page", keys::<tables::ErrorPage>()),
        #[cfg(all(feature = "balance", feature = "client"))]
        ("connect", keys::<connection::Connect>()),
        #[cfg(all(feature = "balance", feature = "client"))]
        ("tls", keys::<connection::Tls>()),
        #[cfg(all(feature = "balance", feature = "client"))]
        ("pool", keys::<connection::Pool>()),
        #[cfg(all(feature = "balance", feature = "client"))]
        ("endpoint", keys::<connection::Endpoint>()),
        #[cfg(all(feature = "balance", feature = "client"))]
        ("balance", keys::<connection::Balance>()),
        #[cfg(all(feature = "balance", feature = "client"))]
        ("health", keys::<health::Health>()),
    ]
}

#[cfg(test)]
mod tests;
