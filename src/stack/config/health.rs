//! The table `health`: how the endpoints of a whole upstream are checked.

use std::time::Duration;

use serde::Deserialize;

use super::super::config_error::ConfigError;
use super::apply::contradiction;
use super::tables::{Count, Statuses, Time};
use crate::balance::HealthCheck;
use crate::client::Target;

#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Health {
    http: Option<String>,
    grpc: Option<String>,
    tcp: Option<bool>,
    host: Option<String>,
    status: Option<Statuses>,
    body: Option<String>,
    interval: Option<Time>,
    timeout: Option<Time>,
    rise: Option<Count>,
    fall: Option<Count>,
}

/// The settings of the table `health`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HealthSettings {
    kind: HealthKind,
    host: Option<String>,
    status: Option<(u16, u16)>,
    body: Option<String>,
    interval: Option<Duration>,
    timeout: Option<Duration>,
    rise: Option<u32>,
    fall: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum HealthKind {
    Http(String),
    Grpc(String),
    Tcp,
}

impl Health {
    pub(super) fn settings(self, errors: &mut Vec<ConfigError>) -> Option<HealthSettings> {
        let kind = match (self.http, self.grpc, self.tcp == Some(true)) {
            (Some(path), None, false) => HealthKind::Http(path),
            (None, Some(service), false) => HealthKind::Grpc(service),
            (None, None, true) => HealthKind::Tcp,
            _ => {
                let suggestion = "set one of `http = \"/healthz\"`, `grpc = \"\"` and `tcp = true`";
                contradiction(errors, "health", "exactly one kind of check is needed", suggestion);
                return None;
            }
        };
        let (time, count) =
            (|time: Option<Time>| time.map(|Time(time)| time), |count: Option<Count>| count.map(|count| count.0));
        Some(HealthSettings {
            kind,
            host: self.host,
            status: self.status.map(|Statuses(range)| range),
            body: self.body,
            interval: time(self.interval),
            timeout: time(self.timeout),
            rise: count(self.rise),
            fall: count(self.fall),
        })
    }
}

impl HealthSettings {
    /// Returns the check for an upstream with this target.
    pub(super) fn check(&self, target: Option<&Target>, errors: &mut Vec<ConfigError>) -> HealthCheck {
        let mut check = match &self.kind {
            HealthKind::Http(path) => HealthCheck::http(path.as_str()),
            HealthKind::Grpc(service) => grpc(service, errors),
            HealthKind::Tcp => HealthCheck::tcp(),
        };
        if let Some(host) = self.host.as_deref().or(target.map(|target| target.authority().as_str())) {
            check = check.host(host);
        }
        if let Some((first, last)) = self.status {
            check = check.expect_status(first..=last);
        }
        if let Some(word) = &self.body {
            check = check.expect_body(word.as_str());
        }
        if let Some(interval) = self.interval {
            check = check.interval(interval).transition_interval(interval.min(Duration::from_secs(1)));
        }
        if let Some(limit) = self.timeout {
            check = check.timeout(limit);
        }
        if let Some(rise) = self.rise {
            check = check.rise(rise);
        }
        if let Some(fall) = self.fall {
            check = check.fall(fall);
        }
        check
    }
}

#[cfg(feature = "http2")]
fn grpc(service: &str, _: &mut Vec<ConfigError>) -> HealthCheck {
    HealthCheck::grpc(service)
}

#[cfg(not(feature = "http2"))]
fn grpc(_: &str, errors: &mut Vec<ConfigError>) -> HealthCheck {
    contradiction(errors, "health.grpc", "the program was built without HTTP/2", "enable the feature `http2`");
    HealthCheck::tcp()
}
