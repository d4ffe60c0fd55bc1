//! The tables of a file, their keys, and the types of their values.

use std::time::Duration;

use http::Uri;
use serde::Deserialize;

use super::super::config_error::ConfigError;
use super::super::presets::Preset;
use super::value::{Entries, Fault, Value, cut};
use crate::retry::{Quantile, RetryPolicy};
use crate::stats::Ratio;

#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Root {
    pub(super) name: Option<String>,
    pub(super) preset: Option<Preset>,
    pub(super) proxy_status: Option<String>,
    pub(super) timeouts: Option<Entries>,
    pub(super) retry: Option<Part>,
    pub(super) circuit: Option<Part>,
    pub(super) limiter: Option<Part>,
    pub(super) topology: Option<Entries>,
    pub(super) error_page: Option<Entries>,
    // the rest is read where the whole upstream is built
    pub(super) target: Option<String>,
    pub(super) connect: Option<Entries>,
    pub(super) tls: Option<Entries>,
    pub(super) pool: Option<Entries>,
    pub(super) endpoint: Option<List>,
    pub(super) balance: Option<Entries>,
    pub(super) health: Option<Entries>,
}

impl Root {
    /// Reports the tables that only a whole upstream has.
    pub(super) fn refuse_connection(&self, errors: &mut Vec<ConfigError>) {
        let found = [
            ("target", self.target.is_some()),
            ("connect", self.connect.is_some()),
            ("tls", self.tls.is_some()),
            ("pool", self.pool.is_some()),
            ("endpoint", self.endpoint.is_some()),
            ("balance", self.balance.is_some()),
            ("health", self.health.is_some()),
        ];
        for (key, _) in found.into_iter().filter(|(_, is_set)| *is_set) {
            let problem = "has no effect: the program brings its own client";
            errors.push(ConfigError::new(key, problem, "remove it, or build the upstream by `UpstreamConfig::proxy`"));
        }
    }
}

#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Timeouts {
    pub(super) response_head: Option<Limit>,
    pub(super) attempt: Option<Limit>,
    pub(super) total: Option<Limit>,
    pub(super) body_idle: Option<Limit>,
    pub(super) max_duration: Option<Limit>,
    pub(super) client_idle: Option<Limit>,
    pub(super) unbounded: Option<bool>,
}

#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Retry {
    pub(super) attempts: Option<Count<{ RetryPolicy::MAX_ATTEMPTS as u32 }>>,
    pub(super) base_backoff: Option<Time>,
    pub(super) max_backoff: Option<Time>,
    pub(super) max_retry_after: Option<Time>,
    pub(super) body_cap: Option<ByteSize>,
    pub(super) budget: Option<Fraction>,
    pub(super) hedging: Option<Hedge>,
    pub(super) trust_idempotency_keys: Option<bool>,
    pub(super) repeat_too_many_requests: Option<bool>,
}

#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Circuit {
    pub(super) consecutive_failures: Option<Count>,
    pub(super) ratio: Option<Fraction>,
    pub(super) min_calls: Option<Count>,
    pub(super) window: Option<Time>,
    pub(super) open_duration: Option<Time>,
    pub(super) max_open_duration: Option<Time>,
    pub(super) probe_timeout: Option<Time>,
    pub(super) slow_calls: Option<Time>,
    pub(super) slow_ratio: Option<Fraction>,
    pub(super) probe: Option<Probe>,
}

#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Limiter {
    pub(super) fixed: Option<Count>,
    pub(super) adaptive: Option<bool>,
    pub(super) min: Option<Count>,
    pub(super) max: Option<Count>,
    pub(super) hold_slot_during_upgrade: Option<bool>,
}

#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Topology {
    pub(super) client_timeout: Option<Time>,
    pub(super) client_deadline: Option<Time>,
    pub(super) load_balancer_idle: Option<Time>,
    pub(super) load_balancer_propagation: Option<Time>,
    pub(super) server_keep_alive: Option<Time>,
    pub(super) upstream_keep_alive: Option<Time>,
    pub(super) upstream_timeout: Option<Time>,
    pub(super) connect: Option<Time>,
    pub(super) pool_idle: Option<Time>,
    pub(super) heartbeat: Option<Time>,
    pub(super) streaming: Option<bool>,
    pub(super) drain_delay: Option<Time>,
    pub(super) grace: Option<Time>,
}

#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ErrorPage {
    pub(super) contact: Option<String>,
    pub(super) reveal_upstream: Option<bool>,
}

/// Declares types of values that are converted from any [`Value`].
macro_rules! values {
    ($($(#[$docs:meta])* $name:ident $([const $max:ident: u32 = $all:expr])? ($inner:ty) = $convert:expr;)*) => {
        $(
            $(#[$docs])*
            #[derive(Clone, Debug, Deserialize)]
            #[serde(try_from = "Value")]
            pub(super) struct $name $(<const $max: u32 = $all>)? (pub(super) $inner);

            impl $(<const $max: u32>)? TryFrom<Value> for $name $(<$max>)? {
                type Error = Fault;

                fn try_from(value: Value) -> Result<Self, Fault> {
                    let convert: fn(Value) -> Result<$inner, Fault> = $convert;
                    convert(value).map(Self)
                }
            }
        )*
    };
}

values! {
    /// A part of the stack: its settings, or `None` if it is left out.
    Part (Option<Entries>) = |value| match value {
        Value::Bool(false) => Ok(None),
        Value::Table(entries) => Ok(Some(entries)),
        other => Err(other.expected("a table, or `false` to leave this part out")),
    };

    /// A list of tables.
    #[allow(dead_code)] // read with the features of a whole upstream only
    List (Vec<Entries>) = |value| {
        let Value::List(values) = value else { return Err(value.expected("a list of tables")) };
        let table = |value| match value {
            Value::Table(entries) => Ok(entries),
            other => Err(other.expected("a table")),
        };
        values.into_iter().map(table).collect()
    };

    Time (Duration) = duration;

    /// A timeout, or none.
    Limit (Option<Duration>) = |value| if is_off(&value) { Ok(None) } else { duration(value).map(Some) };

    /// The path of a probe, or none.
    #[derive(PartialEq, Eq)]
    Probe (Option<Uri>) = |value| {
        let path = match &value {
            value if is_off(value) => return Ok(None),
            Value::String(text) if text.starts_with('/') => text.parse().ok(),
            _ => None,
        };
        path.map(Some).ok_or_else(|| value.expected("a path such as \"/health\", or \"off\""))
    };

    Count [const MAX: u32 = { u32::MAX }] (u32) = |value| match value {
        Value::Unsigned(number) if (1..=u64::from(MAX)).contains(&number) => Ok(u32::try_from(number).unwrap_or(MAX)),
        other => Err(other.expected(&format!("a whole number from 1 to {MAX}"))),
    };

    #[allow(dead_code)] // as above
    Number [const MAX: u32 = { u32::MAX }] (u32) = |value| match value {
        Value::Unsigned(number) if number <= u64::from(MAX) => Ok(u32::try_from(number).unwrap_or(MAX)),
        other => Err(other.expected(&format!("a whole number from 0 to {MAX}"))),
    };

    /// A status, or the first and last of a range.
    #[allow(dead_code)] // as above
    Statuses ((u16, u16)) = |value| {
        let status = |text: &str| text.trim().parse().ok().filter(|status| (100..=599).contains(status));
        let range = match &value {
            Value::Unsigned(number) => status(&number.to_string()).map(|status| (status, status)),
            Value::String(text) => match text.split_once('-') {
                Some((first, last)) => status(first).zip(status(last)).filter(|(first, last)| first <= last),
                None => status(text).map(|status| (status, status)),
            },
            _ => None,
        };
        range.ok_or_else(|| value.expected("a status such as 200, or a range such as \"200-299\""))
    };

    Fraction (Ratio) = |value| {
        let fraction = number(&value).filter(|fraction| (0.001..=1.0).contains(fraction));
        fraction.map(|fraction| Ratio::per_mille(whole(fraction * 1000.0))).ok_or_else(|| {
            value.expected("a fraction from 0.001 to 1, or from \"0.1%\" to \"100%\"")
        })
    };

    ByteSize (usize) = |value| bytes(&value).ok_or_else(|| value.expected("a size such as 65536, \"64 KiB\" or \"1 MiB\""));

    Hedge (When) = |value| {
        if is_off(&value) {
            return Ok(When::Never);
        }
        let Value::String(text) = &value else { return duration(value).map(When::After) };
        let Some(percent) = text.strip_prefix('p') else { return duration(value).map(When::After) };
        let percent = percent.parse().ok().filter(|percent| (50.0..=99.9).contains(percent));
        let quantile = percent.map(|percent: f64| When::Quantile(Quantile::per_mille(whole(percent * 10.0))));
        quantile.ok_or_else(|| value.expected("a quantile from \"p50\" to \"p99.9\""))
    };
}

/// When a call is hedged.
#[derive(Clone, Copy, Debug)]
pub(super) enum When {
    Never,
    Quantile(Quantile),
    After(Duration),
}

fn is_off(value: &Value) -> bool {
    matches!(value, Value::String(text) if text == "none" || text == "off")
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // at most 1000
fn whole(per_mille: f64) -> u16 {
    per_mille.round() as u16
}

/// Reads a duration as humantime writes it: `1500ms`, `2s`, `1m 30s`, `1.5s`.
fn duration(value: Value) -> Result<Duration, Fault> {
    const EXPECTED: &str = "a duration such as \"1500ms\", \"2s\" or \"1m 30s\"";
    const CENTURY: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);
    let missing_unit = |number: &str| Fault::new("missing unit", format!("write \"{number}s\" or \"{number}ms\""));
    let text = match value {
        Value::Unsigned(number) => return Err(missing_unit(&number.to_string())),
        Value::Float(number) => return Err(missing_unit(&number.to_string())),
        Value::String(text) => text,
        other => return Err(other.expected(EXPECTED)),
    };
    let expected = || Value::String(text.clone()).expected(EXPECTED);
    // humantime 2.4 panics where the seconds and the nanoseconds overflow together, which takes 20 digits
    if text.bytes().filter(u8::is_ascii_digit).count() > 18 {
        return Err(expected());
    }
    match humantime::parse_duration(&text) {
        Ok(time) if time > CENTURY => Err(Fault::new(format!("{} is more than 100 years", cut(&text)), "write less")),
        Ok(time) => Ok(time),
        Err(humantime::DurationError::UnknownUnit { unit, value, .. }) if unit.is_empty() => {
            let number = if text.trim().parse::<f64>().is_ok() { text.trim().to_owned() } else { value.to_string() };
            Err(missing_unit(&number))
        }
        Err(humantime::DurationError::UnknownUnit { unit, .. }) => {
            Err(Fault::new(format!("unknown unit {:?}", cut(&unit)), "use d, h, m, s, ms or us"))
        }
        Err(_) => Err(expected()),
    }
}

/// Reads a fraction: `0.2` or `20%`.
#[allow(clippy::cast_precision_loss)] // a number as large as that is no fraction
fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Unsigned(number) => Some(*number as f64),
        Value::Float(number) => Some(*number),
        Value::String(text) => match text.strip_suffix('%') {
            Some(percent) => percent.trim().parse().ok().map(|percent: f64| percent / 100.0),
            None => text.parse().ok(),
        },
        _ => None,
    }
}

/// Reads a number of bytes: `65536`, `64 KiB`.
fn bytes(value: &Value) -> Option<usize> {
    const UNITS: [(&str, usize); 7] = [
        ("B", 1),
        ("kB", 1000),
        ("KiB", 1 << 10),
        ("MB", 1_000_000),
        ("MiB", 1 << 20),
        ("GB", 1_000_000_000),
        ("GiB", 1 << 30),
    ];
    match value {
        Value::Unsigned(number) => Some(usize::try_from(*number).unwrap_or(usize::MAX)),
        Value::String(text) => {
            let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
            let unit = UNITS.iter().find(|known| known.0 == unit.trim())?.1;
            Some(number.parse::<usize>().ok()?.saturating_mul(unit))
        }
        _ => None,
    }
}
