//! The settings of one upstream, from a file.

mod apply;
mod de;
mod duration;
mod error_list;
mod suggest;
mod tables;

use serde::de::{Deserialize, DeserializeSeed, Deserializer};

use self::de::PathSeed;
use self::tables::Root;
use super::builder::UpstreamBuilder;

/// The settings of one upstream, read from TOML, JSON or any other serde format that describes itself.
///
/// Every setting may be left out; what is not said is the [preset's](super#presets).
///
/// | table | keys |
/// |---|---|
/// | | `name`, `preset` (`"latency_critical"`, `"standard"`, `"batch"` or `"streaming"`), `proxy_status` |
/// | `timeouts` | `head`, `attempt`, `total`, `body_idle`, `absolute`, `client_idle`: a duration or `"none"`; `unbounded` |
/// | `retry` | `attempts`, `pause`, `longest_pause`, `longest_retry_after`, `body_cap`, `budget`, `hedge` (`"p95"`, a duration or `"off"`), `trust_idempotency_keys`, `repeat_too_many_requests` |
/// | `circuit` | `consecutive`, `ratio`, `least_calls`, `window`, `pause`, `longest_pause`, `probe_limit`, `slow_calls` (a duration), `slow_ratio` (half, if nothing is said) |
/// | `limiter` | `least` and `most`, or `fixed`; `hold_upgrades` |
/// | `topology` | `caller_timeout` or `caller_deadline`, `load_balancer_idle`, `load_balancer_propagation`, `server_keep_alive`, `upstream_keep_alive`, `upstream_timeout`, `connect`, `pool_idle`, `heartbeat`, `streaming`, `drain_delay`, `grace` |
/// | `error_page` | `contact`, `reveal_upstream`; an empty table is a page with the defaults, and without the table there is none |
///
/// Durations are texts with units (`d`, `h`, `m`, `s`, `ms`, `us`): `"1500ms"`, `"2s"`, `"1m 30s"`, `"1.5s"`. Shares are `0.2`
/// or `"20%"`, sizes `65536` or `"64 KiB"`.
///
/// A part cannot be left out by a file: the stack is a type, with its parts in it. Leave it out in code, as in
/// `config.builder().without_retry()`.
///
/// # Errors
///
/// Deserialising stops at the first key that is unknown, with the nearest one that is not, and at the first value that is of
/// another kind, with its place (`retry.attempts`). What can be read but not be meant, such as a share of 20,
/// [`build`](UpstreamBuilder::build) refuses, together with all else that does not fit.
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
///     head = "1500ms"
///     attempt = "2s"
///     total = "5s"
///
///     [retry]
///     attempts = 2
///     budget = "10%"
///
///     [limiter]
///     most = 64
///
///     [topology]
///     caller_timeout = "10s"
/// "#)?;
/// let layer = config.builder().build()?;
/// # assert_eq!(layer.handle().name(), "payments");
///
/// let bare = toml::from_str::<UpstreamConfig>("timeouts.head = 30").unwrap_err();
/// assert!(bare.message().contains("timeouts.head: 30 what? write \"30s\""));
/// let slip = toml::from_str::<UpstreamConfig>("retry.atempts = 2").unwrap_err();
/// assert!(slip.message().contains("did you mean `attempts`?"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct UpstreamConfig {
    root: Root,
}

impl UpstreamConfig {
    /// A builder with these settings, for code to go on with.
    pub fn builder(self) -> UpstreamBuilder {
        self.root.builder()
    }
}

impl<'de> Deserialize<'de> for UpstreamConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let root = PathSeed::<Root>::new("").deserialize(deserializer)?;
        Ok(Self { root })
    }
}

#[cfg(test)]
mod tests;
