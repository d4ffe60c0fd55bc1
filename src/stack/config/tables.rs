//! What a file says of one upstream: its tables, and the kinds of their values.

use std::time::Duration;

use serde::de::{Error, MapAccess};

use super::de::{DeError, KeyName, PathSeed, ScalarValue, Value, tables};
use super::duration::{self, Decimal, bare, duration, quoted};
use crate::retry::Quantile;

tables! {
    Root "" expected "a table with the settings of one upstream" {
        name: String,
        preset: String,
        proxy_status: String,
        timeouts: Timeouts,
        retry: Retry,
        circuit: Circuit,
        limiter: Limiter,
        topology: Topology,
        error_page: Page,
    }
    Timeouts "timeouts." expected "a table" {
        head: Limit,
        attempt: Limit,
        total: Limit,
        body_idle: Limit,
        absolute: Limit,
        client_idle: Limit,
        unbounded: bool,
    }
    Retry "retry." expected "a table (a part is left out in code, with `without_retry`)" {
        attempts: u64,
        pause: Duration,
        longest_pause: Duration,
        longest_retry_after: Duration,
        body_cap: ByteSize,
        budget: Fraction,
        hedge: HedgeTable,
        trust_idempotency_keys: bool,
        repeat_too_many_requests: bool,
    }
    Circuit "circuit." expected "a table (a part is left out in code, with `without_circuit`)" {
        consecutive: u64,
        ratio: Fraction,
        least_calls: u64,
        window: Duration,
        pause: Duration,
        longest_pause: Duration,
        probe_limit: Duration,
        slow_calls: Duration,
        slow_ratio: Fraction,
    }
    Limiter "limiter." expected "a table (a part is left out in code, with `without_limiter`)" {
        least: u64,
        most: u64,
        fixed: u64,
        hold_upgrades: bool,
    }
    Topology "topology." expected "a table" {
        caller_timeout: Duration,
        caller_deadline: Duration,
        load_balancer_idle: Duration,
        load_balancer_propagation: Duration,
        server_keep_alive: Duration,
        upstream_keep_alive: Duration,
        upstream_timeout: Duration,
        connect: Duration,
        pool_idle: Duration,
        heartbeat: Duration,
        streaming: bool,
        drain_delay: Duration,
        grace: Duration,
    }
    Page "error_page." expected "a table (without one there is no page)" {
        contact: String,
        reveal_upstream: bool,
    }
}

/// A limit, or none on purpose.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limit(pub(super) Option<Duration>);

/// A share as it was written, 1 for the whole; it may be any number.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fraction(pub(super) f64);

#[derive(Clone, Copy, Debug)]
pub(super) struct ByteSize(pub(super) usize);

/// When a second attempt is sent beside a first one.
#[derive(Clone, Copy, Debug)]
pub(super) enum HedgeTable {
    Off,
    Learned(Quantile),
    After(Duration),
}

impl Value for String {
    const EXPECTED: &'static str = "a text";

    fn of(scalar: &ScalarValue<'_>) -> Result<Self, DeError> {
        if let ScalarValue::Text(text) = scalar { Ok((*text).to_owned()) } else { Err(DeError::Kind) }
    }
}

impl Value for bool {
    const EXPECTED: &'static str = "true or false";

    fn of(scalar: &ScalarValue<'_>) -> Result<Self, DeError> {
        if let ScalarValue::Flag(flag) = scalar { Ok(*flag) } else { Err(DeError::Kind) }
    }
}

impl Value for u64 {
    const EXPECTED: &'static str = "a whole number";

    fn of(scalar: &ScalarValue<'_>) -> Result<Self, DeError> {
        if let ScalarValue::Whole(number) = scalar { Ok(*number) } else { Err(DeError::Kind) }
    }
}

impl Value for Duration {
    const EXPECTED: &'static str = "a duration such as \"1500ms\" or \"2s\"";

    fn of(scalar: &ScalarValue<'_>) -> Result<Self, DeError> {
        match scalar {
            ScalarValue::Text(text) => duration(text).map_err(DeError::Because),
            ScalarValue::Whole(number) => Err(DeError::Because(bare(&number.to_string()))),
            ScalarValue::Real(number) => Err(DeError::Because(bare(&number.to_string()))),
            _ => Err(DeError::Kind),
        }
    }
}

impl Value for Limit {
    const EXPECTED: &'static str = "a duration such as \"1500ms\", or \"none\"";

    fn of(scalar: &ScalarValue<'_>) -> Result<Self, DeError> {
        match scalar {
            ScalarValue::Text(text) if is_off(text) => Ok(Self(None)),
            other => Duration::of(other).map(|limit| Self(Some(limit))),
        }
    }
}

impl Value for Fraction {
    const EXPECTED: &'static str = "a share such as 0.2 or \"20%\"";

    #[allow(clippy::cast_precision_loss)] // what is so large is no share
    fn of(scalar: &ScalarValue<'_>) -> Result<Self, DeError> {
        let unread = |text| DeError::Because(format!("{} is no share; write one as 0.2 or \"20%\"", quoted(text)));
        match scalar {
            ScalarValue::Whole(number) => Ok(Self(*number as f64)),
            ScalarValue::Below(number) => Ok(Self(*number as f64)),
            ScalarValue::Real(number) => Ok(Self(*number)),
            ScalarValue::Text(text) => {
                let (number, whole) = text.trim().strip_suffix('%').map_or((*text, 1.0), |number| (number, 100.0));
                number.trim().parse().map(|number: f64| Self(number / whole)).map_err(|_| unread(text))
            }
            ScalarValue::Flag(_) => Err(DeError::Kind),
        }
    }
}

impl Value for ByteSize {
    const EXPECTED: &'static str = "a number of bytes such as 65536 or \"64 KiB\"";

    fn of(scalar: &ScalarValue<'_>) -> Result<Self, DeError> {
        match scalar {
            ScalarValue::Whole(number) => Ok(Self(usize::try_from(*number).unwrap_or(usize::MAX))),
            ScalarValue::Text(text) => bytes(text).map(Self).map_err(DeError::Because),
            _ => Err(DeError::Kind),
        }
    }
}

fn bytes(text: &str) -> Result<usize, String> {
    const UNITS: [(&str, u64); 8] = [
        ("", 1),
        ("B", 1),
        ("kB", 1000),
        ("KiB", 1 << 10),
        ("MB", 1_000_000),
        ("MiB", 1 << 20),
        ("GB", 1_000_000_000),
        ("GiB", 1 << 30),
    ];
    let read = Decimal::first(text.trim()).and_then(|(number, unit)| {
        let unit = UNITS.iter().find(|known| known.0 == unit.trim())?;
        Some(usize::try_from(number.times(unit.1)).unwrap_or(usize::MAX))
    });
    read.ok_or_else(|| format!("{} is no size; write one as 65536, \"64 KiB\" or \"1 MiB\"", quoted(text)))
}

impl Value for HedgeTable {
    const EXPECTED: &'static str = "\"p95\", a duration or \"off\"";

    fn of(scalar: &ScalarValue<'_>) -> Result<Self, DeError> {
        let ScalarValue::Text(text) = scalar else { return Duration::of(scalar).map(Self::After) };
        if is_off(text) {
            return Ok(Self::Off);
        }
        let Some(quantile) = text.trim().strip_prefix('p') else {
            return duration(text).map(Self::After).map_err(DeError::Because);
        };
        let per_mille = Decimal::first(quantile).filter(|(_, rest)| rest.is_empty()).map(|(part, _)| part.times(10));
        match per_mille.and_then(|parts| u16::try_from(parts).ok()).filter(|parts| (500..1000).contains(parts)) {
            Some(parts) => Ok(Self::Learned(Quantile::per_mille(parts))),
            None => Err(DeError::Because(format!("{} is none of \"p50\" to \"p99.9\"", duration::quoted(text)))),
        }
    }
}

fn is_off(text: &str) -> bool {
    matches!(text.trim(), "none" | "off")
}
