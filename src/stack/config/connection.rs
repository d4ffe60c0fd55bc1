//! The tables for connections and endpoints, which only a whole upstream has.

use std::net::SocketAddr;
use std::time::Duration;

use serde::Deserialize;

use super::super::config_error::ConfigError;
use super::apply::contradiction;
use super::health::{Health, HealthSettings};
use super::tables::{Count, Limit, List, Number, Root, Time};
use super::value::{Entries, read};
use crate::balance::{Member, MemberState};
use crate::client::{HttpVersion, Target};

#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Connect {
    dns: Option<Time>,
    tcp: Option<Time>,
    tls: Option<Time>,
}

#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Tls {
    ca: Option<String>,
}

#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Pool {
    idle: Option<Time>,
    max_age: Option<Limit>,
    max_connections: Option<Count>,
    max_streams: Option<Count>,
    queue: Option<Time>,
    http2: Option<bool>,
}

#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Endpoint {
    address: Option<String>,
    key: Option<String>,
    weight: Option<Number>,
    tier: Option<Number<{ u8::MAX as u32 }>>,
    zone: Option<String>,
    group: Option<String>,
    state: Option<State>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum State {
    Active,
    Draining,
}

#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Balance {
    slow_start: Option<Time>,
    panic: Option<Panic>,
    zone: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub(super) enum Panic {
    #[default]
    UseAll,
    Refuse,
}

/// The settings of an upstream's connections and endpoints that cannot change while it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Connection {
    pub(super) target: Option<Target>,
    pub(super) dns: Duration,
    pub(super) tcp: Duration,
    pub(super) tls: Duration,
    pub(super) ca: Option<String>,
    pub(super) idle: Duration,
    pub(super) max_age: Option<Duration>,
    pub(super) max_connections: Option<usize>,
    pub(super) max_streams: Option<usize>,
    pub(super) queue: Option<Duration>,
    pub(super) http: HttpVersion,
    pub(super) slow_start: Duration,
    pub(super) panic: Panic,
    pub(super) zone: Option<String>,
    pub(super) health: Option<HealthSettings>,
}

impl Connection {
    /// Reads the tables, and removes them from the file.
    pub(super) fn take(root: &mut Root, errors: &mut Vec<ConfigError>) -> Self {
        let connect: Connect = table("connect", root.connect.take(), errors);
        let tls: Tls = table("tls", root.tls.take(), errors);
        let pool: Pool = table("pool", root.pool.take(), errors);
        let balance: Balance = table("balance", root.balance.take(), errors);
        let health = root.health.take().map(|entries| read::<Health>("health", entries, errors));
        let health = health.and_then(|health| health.settings(errors));
        let target = root.target.take().and_then(|text| match text.parse() {
            Ok(target) => Some(target),
            Err(error) => {
                let problem = format!("{text:?} is not a target: {error}");
                contradiction(errors, "target", &problem, "write \"https://shop.internal\" or \"10.0.0.7:8080\"");
                None
            }
        });
        let time = |time: Option<Time>, default: u64| time.map_or(Duration::from_secs(default), |Time(time)| time);
        let count = |count: Option<Count>| count.map(|Count(count)| count as usize);
        Self {
            target,
            dns: time(connect.dns, 1),
            tcp: time(connect.tcp, 1),
            tls: time(connect.tls, 2),
            ca: tls.ca,
            idle: time(pool.idle, 3),
            max_age: pool.max_age.map(|Limit(age)| age.unwrap_or(Duration::MAX)),
            max_connections: count(pool.max_connections),
            max_streams: count(pool.max_streams),
            queue: pool.queue.map(|Time(time)| time),
            http: if pool.http2 == Some(true) { http2(errors) } else { HttpVersion::Auto },
            slow_start: time(balance.slow_start, 10),
            panic: balance.panic.unwrap_or_default(),
            zone: balance.zone,
            health,
        }
    }

    /// Returns the keys and tables in which two upstreams differ.
    pub(super) fn changes<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = &'static str> + 'a {
        let connect = |it: &Self| (it.dns, it.tcp, it.tls);
        let pool = |it: &Self| (it.idle, it.max_age, it.max_connections, it.max_streams, it.queue, it.http);
        let tables = [
            ("target", self.target == other.target),
            ("connect", connect(self) == connect(other)),
            ("tls", self.ca == other.ca),
            ("pool", pool(self) == pool(other)),
            ("balance", (self.slow_start, self.panic, &self.zone) == (other.slow_start, other.panic, &other.zone)),
            ("health", self.health == other.health),
        ];
        tables.into_iter().filter(|(_, is_same)| !is_same).map(|(table, _)| table)
    }

    /// Reads the endpoints; without a table `endpoint`, the target is the only one.
    pub(super) fn members(&self, root: &mut Root, errors: &mut Vec<ConfigError>) -> Vec<Member> {
        let Some(List(tables)) = root.endpoint.take() else {
            let only = self.target.iter().map(|target| Member::new(target.to_string())).collect::<Vec<_>>();
            let is_reported = errors.iter().any(|error| matches!(error.setting(), "target" | "endpoint"));
            if only.is_empty() && !is_reported {
                let problem = "the upstream has neither a target nor endpoints";
                contradiction(errors, "target", problem, "set `target`, or an [[endpoint]] with an `address`");
            }
            return only;
        };
        let mut members = Vec::with_capacity(tables.len());
        for (index, entries) in tables.into_iter().enumerate() {
            let name = format!("endpoint[{index}]");
            let endpoint: Endpoint = read(&name, entries, errors);
            members.extend(self.member(&name, endpoint, errors));
        }
        members
    }

    fn member(&self, name: &str, endpoint: Endpoint, errors: &mut Vec<ConfigError>) -> Option<Member> {
        let Some(address) = endpoint.address else {
            let suggestion = "set a host and port such as \"10.0.0.7:8080\"";
            contradiction(errors, &format!("{name}.address"), "is missing", suggestion);
            return None;
        };
        let socket = address.parse::<SocketAddr>().ok();
        let problem = match (&self.target, socket) {
            (Some(_), None) => {
                Some(format!("{address:?} is not an IP address with a port, as endpoints of a `target` are"))
            }
            (None, _) => address.parse::<Target>().err().map(|error| format!("{address:?}: {error}")),
            (Some(_), Some(_)) => None,
        };
        if let Some(problem) = problem {
            let suggestion = "write \"10.0.0.7:8080\", or remove `target` to write names and URLs";
            contradiction(errors, &format!("{name}.address"), &problem, suggestion);
            return None;
        }
        if self.target.is_none() && endpoint.key.is_some() {
            let problem = "without a `target`, the address is the key";
            contradiction(errors, &format!("{name}.key"), problem, "remove `key`, or set the upstream's `target`");
        }
        let mut member = Member::new(endpoint.key.unwrap_or(address));
        if self.target.is_some() {
            member = member.addresses(socket);
        }
        member.weight = endpoint.weight.map_or(1, |Number(weight)| weight);
        member.tier = endpoint.tier.map_or(0, |Number(tier)| u8::try_from(tier).unwrap_or(u8::MAX));
        member.zone = endpoint.zone.map(Into::into);
        member.group = endpoint.group.map(Into::into);
        if let Some(State::Draining) = endpoint.state {
            member.state = MemberState::Draining;
        }
        Some(member)
    }
}

fn table<T: serde::de::DeserializeOwned + Default>(
    name: &str,
    entries: Option<Entries>,
    errors: &mut Vec<ConfigError>,
) -> T {
    entries.map_or_else(T::default, |entries| read(name, entries, errors))
}

#[cfg(feature = "http2")]
fn http2(_: &mut Vec<ConfigError>) -> HttpVersion {
    HttpVersion::H2
}

#[cfg(not(feature = "http2"))]
fn http2(errors: &mut Vec<ConfigError>) -> HttpVersion {
    contradiction(errors, "pool.http2", "the program was built without HTTP/2", "enable the feature `http2`");
    HttpVersion::Auto
}
