//! The declared environment of the gateway.

use std::time::Duration;

use super::peers::Hop;
use super::quantity::Quantity;
use crate::stats::{Quantile, Ratio};

/// The declared environment of the gateway, with which its [`Timeouts`](crate::timeout::Timeouts) have to agree.
///
/// A number that is not declared is unknown, and the inequalities that need it are skipped. Each setter names, in
/// brackets, the inequalities that use its number.
///
/// ```
/// use std::time::Duration;
/// use tower_upstream::alignment::peers;
/// use tower_upstream::alignment::Topology;
///
/// let topology = Topology::new()
///     .client_timeout(Duration::from_secs(10))
///     .load_balancer(peers::AWS_ALB)
///     .server(peers::AXUM)
///     .upstream(peers::NODE)
///     .pool_idle(Duration::from_secs(3));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Topology {
    pub(super) client: Option<ClientHop>,
    pub(super) balancer: Option<Hop>,
    pub(super) propagation: Option<Duration>,
    pub(super) server: Option<Hop>,
    pub(super) upstream: Option<Hop>,
    pub(super) upstream_timeout: Option<Duration>,
    pub(super) connect: Option<Duration>,
    pub(super) pool_idle: Option<Duration>,
    pub(super) attempts: Option<u32>,
    pub(super) backoff: Option<Backoff>,
    pub(super) retry_after: Option<Duration>,
    pub(super) hedge_delay: Option<Duration>,
    pub(super) separate_hedge_budget: bool,
    pub(super) budget_window: Option<Duration>,
    pub(super) breaker: Option<Breaker>,
    pub(super) probe: Option<Duration>,
    pub(super) min_requests: Option<u64>,
    pub(super) rate: Option<(u64, Duration)>,
    pub(super) streaming: Option<Streaming>,
    pub(super) drain_delay: Option<Duration>,
    pub(super) grace: Option<Duration>,
    pub(super) replay: Option<Replay>,
    pub(super) quantile: Option<Quantile>,
    pub(super) hangs: Option<Ratio>,
}

/// How long the client waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ClientHop {
    Declared(Duration),
    /// Each request carries the remaining time.
    Deadline(Duration),
}

/// The longest backoff before each retry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Backoff {
    pub(super) first: Duration,
    pub(super) longest: Duration,
}

impl Backoff {
    /// The largest sum of this many backoffs: each twice the previous one, up to the longest.
    pub(super) fn sum(self, pauses: u32) -> Duration {
        let (mut sum, mut pause) = (Duration::ZERO, self.first.min(self.longest));
        for done in 0..pauses {
            if pause == self.longest || pause.is_zero() {
                return sum.saturating_add(pause.saturating_mul(pauses - done));
            }
            sum = sum.saturating_add(pause);
            pause = pause.saturating_mul(2).min(self.longest);
        }
        sum
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Breaker {
    pub(super) open: Duration,
    pub(super) window: Duration,
}

/// A route whose responses are endless streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Streaming {
    /// The longest gap in a healthy stream.
    pub(super) gap: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Replay {
    pub(super) cap: u64,
    pub(super) in_flight: u64,
    pub(super) memory: u64,
}

macro_rules! declares {
    ($($(#[$doc:meta])* $method:ident => $field:ident: $kind:ty;)*) => {
        $($(#[$doc])*
        pub const fn $method(mut self, $method: $kind) -> Self {
            self.$field = Some($method);
            self
        })*
    };
}

impl Topology {
    /// An empty topology: nothing is known.
    pub fn new() -> Self {
        Self::default()
    }

    /// How long the client waits for its response (4).
    pub const fn client_timeout(mut self, limit: Duration) -> Self {
        self.client = Some(ClientHop::Declared(limit));
        self
    }

    /// The usual deadline of the client, which each request carries in a header (4).
    pub const fn client_deadline(mut self, usual: Duration) -> Self {
        self.client = Some(ClientHop::Deadline(usual));
        self
    }

    /// The idle timeout of the load balancer in front (6, 8, 9).
    pub const fn load_balancer_idle(self, limit: Duration) -> Self {
        self.load_balancer(Hop::preset("load balancer").idle_timeout(limit))
    }

    /// How long our own server keeps an idle connection, by keep-alive or by its header timer (8).
    pub const fn server_keep_alive(self, limit: Duration) -> Self {
        self.server(Hop::preset("our server").keep_alive(limit))
    }

    /// How long the upstream keeps an idle connection (7).
    pub const fn upstream_keep_alive(self, limit: Duration) -> Self {
        self.upstream(Hop::preset("upstream").keep_alive(limit))
    }

    declares! {
        /// The load balancer in front of the gateway (6, 8, 9).
        load_balancer => balancer: Hop;
        /// The time until the load balancer stops sending to a draining instance (16).
        load_balancer_propagation => propagation: Duration;
        /// The gateway's own server (8).
        server => server: Hop;
        /// The upstream (7).
        upstream => upstream: Hop;
        /// The upstream's own timeout, after which it responds with a 503 or similar (5).
        upstream_timeout => upstream_timeout: Duration;
        /// The timeout of a connection attempt, TLS included (1).
        connect => connect: Duration;
        /// How long our pool keeps an idle connection (7).
        pool_idle => pool_idle: Duration;
        /// The number of attempts, the first one included (3).
        attempts => attempts: u32;
        /// The longest `Retry-After` that is waited for (14).
        retry_after => retry_after: Duration;
        /// The time after which a hedge starts (15).
        hedge_delay => hedge_delay: Duration;
        /// The length of the retry budget's window (13).
        budget_window => budget_window: Duration;
        /// The timeout of a circuit breaker's probe (11).
        probe_timeout => probe: Duration;
        /// The number of calls that the circuit breaker needs to open by their failure ratio (12).
        breaker_min_requests => min_requests: u64;
        /// The time from failing readiness checks until no more requests are accepted (16).
        drain_delay => drain_delay: Duration;
        /// The time from the signal to the end of the process (16).
        grace => grace: Duration;
        /// The latency quantile that a learned timeout is based on (18).
        learned_quantile => quantile: Quantile;
        /// The share of calls that hang (18).
        hang_share => hangs: Ratio;
    }

    /// Hedges do not draw on the budget of retries: they have one of their own, or none (15).
    pub const fn separate_hedge_budget(mut self) -> Self {
        self.separate_hedge_budget = true;
        self
    }

    /// The longest backoff before the first retry; it doubles with each further retry, up to `longest` (3).
    ///
    /// With full jitter, these are the upper bounds of the random backoff.
    pub const fn backoff(mut self, first: Duration, longest: Duration) -> Self {
        self.backoff = Some(Backoff { first, longest });
        self
    }

    /// The shortest open duration of the circuit breaker, and the length of its window (11, 12).
    pub const fn breaker(mut self, open: Duration, window: Duration) -> Self {
        self.breaker = Some(Breaker { open, window });
        self
    }

    /// The request rate in a quiet hour: this many requests in this time (12).
    pub const fn rate(mut self, requests: u64, per: Duration) -> Self {
        self.rate = Some((requests, per));
        self
    }

    /// Declares that the route streams: events, long polls, downloads without an end (10).
    pub const fn streaming(mut self) -> Self {
        if self.streaming.is_none() {
            self.streaming = Some(Streaming { gap: None });
        }
        self
    }

    /// Declares that the route streams, with the longest gap of a healthy stream: the heartbeat's period (9, 10).
    pub const fn heartbeat(mut self, longest_gap: Duration) -> Self {
        self.streaming = Some(Streaming { gap: Some(longest_gap) });
        self
    }

    /// The cap of a replay buffer in bytes, the number of calls in flight, and the memory for all buffers in bytes (17).
    pub const fn replay(mut self, cap: u64, in_flight: u64, memory: u64) -> Self {
        self.replay = Some(Replay { cap, in_flight, memory });
        self
    }

    /// The load balancer's idle timeout, and its name.
    pub(super) fn load_balancer_wait(&self) -> Option<(String, Quantity)> {
        let balancer = self.balancer?;
        Some((format!("idle limit of {}", balancer.name), balancer.response_timeout?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest() {
        let ms = Duration::from_millis;
        let backoff = Backoff { first: ms(25), longest: ms(150) };
        let sums: Vec<_> = (0..6).map(|pauses| backoff.sum(pauses).as_millis()).collect();
        assert_eq!(sums, [0, 25, 75, 175, 325, 475]);
        assert_eq!(backoff.sum(u32::MAX), ms(175) + ms(150) * (u32::MAX - 3));
        assert_eq!(Backoff { first: ms(9), longest: ms(2) }.sum(2), ms(4));
        assert_eq!(Backoff { first: ms(0), longest: ms(2) }.sum(u32::MAX), ms(0));
    }
}
