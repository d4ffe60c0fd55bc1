//! The hops around a gateway, with the documented defaults of common ones.
//!
//! A constant holds the *defaults*; override them where yours differ:
//!
//! ```
//! use std::time::Duration;
//! use tower_upstream::alignment::peers::{AWS_ALB, NODE};
//!
//! let balancer = AWS_ALB.idle_timeout(Duration::from_secs(120));
//! let upstream = NODE.keep_alive(Duration::from_secs(65));
//! assert_eq!(upstream.name(), "Node.js");
//! ```

use std::time::Duration;

use super::quantity::Quantity;

/// A hop in front of the gateway, the gateway's own server, or a hop behind it.
///
/// Unknown values stay unknown, and the inequalities about them are skipped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Hop {
    pub(super) name: &'static str,
    /// How long it waits for a response.
    pub(super) response_timeout: Option<Quantity>,
    /// How long it keeps an idle connection to the server behind it.
    pub(super) pool_idle: Option<Quantity>,
    /// How long it keeps an idle connection of a client.
    pub(super) keep_alive: Option<Quantity>,
    pub(super) confidence: Confidence,
}

/// How certain a hop's keep-alive is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Confidence {
    /// Declared by the user, or documented for years.
    Declared,
    /// Depends on a version and on settings that were not declared.
    Assumed,
}

impl Hop {
    /// A hop of which only the name is known.
    pub const fn preset(name: &'static str) -> Self {
        Self { name, response_timeout: None, pool_idle: None, keep_alive: None, confidence: Confidence::Declared }
    }

    /// Its idle timeout, with and without a request in flight.
    pub const fn idle_timeout(self, limit: Duration) -> Self {
        self.response_timeout(limit).pool_idle(limit)
    }

    /// How long it waits for a response before it sends its own.
    pub const fn response_timeout(mut self, limit: Duration) -> Self {
        self.response_timeout = Some(Quantity::Time(limit));
        self
    }

    /// How long it keeps an idle connection to the server behind it.
    pub const fn pool_idle(mut self, limit: Duration) -> Self {
        self.pool_idle = Some(Quantity::Time(limit));
        self
    }

    /// How long it keeps a client's idle connection; declared, and so certain.
    pub const fn keep_alive(mut self, limit: Duration) -> Self {
        self.keep_alive = Some(Quantity::Time(limit));
        self.confidence = Confidence::Declared;
        self
    }

    /// It never closes a client's idle connection.
    pub const fn no_idle_limit(mut self) -> Self {
        self.keep_alive = Some(Quantity::Unlimited);
        self
    }

    /// Its name.
    pub const fn name(&self) -> &'static str {
        self.name
    }

    const fn assumed(mut self) -> Self {
        self.confidence = Confidence::Assumed;
        self
    }
}

const fn secs(number: u64) -> Duration {
    Duration::from_secs(number)
}

/// AWS Application Load Balancer: idle 60 s towards clients and targets.
///
/// Attribute `idle_timeout.timeout_seconds`, 1 to 4000;
/// <https://docs.aws.amazon.com/elasticloadbalancing/latest/application/edit-load-balancer-attributes.html>,
/// which also says that the target's keep-alive has to be longer.
pub const AWS_ALB: Hop = Hop::preset("AWS ALB").idle_timeout(secs(60));

/// nginx: `proxy_read_timeout` 60 s, upstream `keepalive_timeout` 60 s, client `keepalive_timeout` 75 s.
///
/// <https://nginx.org/en/docs/http/ngx_http_proxy_module.html#proxy_read_timeout>,
/// <https://nginx.org/en/docs/http/ngx_http_upstream_module.html#keepalive_timeout> (since 1.15.3),
/// <https://nginx.org/en/docs/http/ngx_http_core_module.html#keepalive_timeout>.
pub const NGINX: Hop = Hop::preset("nginx").idle_timeout(secs(60)).keep_alive(secs(75));

/// Node.js: `server.keepAliveTimeout` 5 s.
///
/// <https://nodejs.org/api/http.html#serverkeepalivetimeout>: 5 s from version 8 to 25; the change
/// nodejs/node#62782 makes it 65 s in later ones, for which use `NODE.keep_alive(..)`.
pub const NODE: Hop = Hop::preset("Node.js").keep_alive(secs(5));

/// Gunicorn: `keepalive` 2 s (threaded and asynchronous workers; the synchronous one keeps nothing).
///
/// <https://docs.gunicorn.org/en/stable/settings.html#keepalive>.
pub const GUNICORN: Hop = Hop::preset("Gunicorn").keep_alive(secs(2));

/// Uvicorn: `--timeout-keep-alive` 5 s.
///
/// <https://www.uvicorn.org/settings/#timeouts>.
pub const UVICORN: Hop = Hop::preset("Uvicorn").keep_alive(secs(5));

/// Puma: `persistent_timeout` 20 s.
///
/// <https://puma.io/puma/Puma/DSL.html#persistent_timeout-instance_method>, up to version 6;
/// `lib/puma/configuration.rs` of later ones says 65 s, for which use `PUMA.keep_alive(..)`.
pub const PUMA: Hop = Hop::preset("Puma").keep_alive(secs(20));

/// hyper's HTTP/1.1 server with a timer: `header_read_timeout` 30 s, which runs while it is idle too.
///
/// <https://docs.rs/hyper/latest/hyper/server/conn/http1/struct.Builder.html#method.header_read_timeout>;
/// measured with hyper 1.12: an idle connection ends after 30.0 s.
pub const HYPER_TIMER: Hop = Hop::preset("hyper with a timer").keep_alive(secs(30)).assumed();

/// hyper's HTTP/1.1 server without a timer: an idle connection is never closed.
///
/// Measured with hyper 1.12: open after 70 s.
pub const HYPER: Hop = Hop::preset("hyper without a timer").no_idle_limit();

/// `axum::serve` up to 0.8: no timer, so that an idle connection is never closed.
///
/// Measured with axum 0.8.9: open after 70 s.
pub const AXUM: Hop = Hop::preset("axum 0.8").no_idle_limit();

/// `axum::serve` after 0.8: a timer, hence [`HYPER_TIMER`]'s 30 s.
///
/// axum's CHANGELOG, "Unreleased", and tokio-rs/axum#3478.
pub const AXUM_NEXT: Hop = Hop::preset("axum after 0.8").keep_alive(secs(30)).assumed();

/// Go's `net/http` server: without `IdleTimeout` and `ReadTimeout` an idle connection is never closed.
///
/// <https://pkg.go.dev/net/http#Server>. Its client's transport pools for 90 s:
/// <https://pkg.go.dev/net/http#DefaultTransport>.
pub const GO: Hop = Hop::preset("Go net/http").pool_idle(secs(90)).no_idle_limit();

/// How long hyper-util's client, and reqwest with it, keeps an idle connection: 90 s.
///
/// <https://docs.rs/hyper-util/latest/hyper_util/client/legacy/struct.Builder.html#method.pool_idle_timeout>.
pub const HYPER_UTIL_POOL_IDLE: Duration = secs(90);
