//! The builder of a pool.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use tokio::time::Instant;

use super::Balance;
use super::handle::BalanceHandle;
use super::member::Member;
use super::membership::InvalidMembers;
use super::pool::{Pool, PoolState};
use super::settings::Settings;
use super::warm_up::WarmUp;
use crate::breaker::BreakerPolicy;
use crate::classify::ClassifyLayer;
use crate::exchange::ProbeSource;
use crate::limit::ConcurrencyLimitLayer;
use crate::opaque::Opaque;
use crate::timeout::RequestHead;

type Factory<S> = Box<dyn Fn(&Member) -> S + Send + Sync>;

/// Builds a [`Balance`]; its [module](super#defaults) lists the defaults.
#[must_use]
pub struct BalanceBuilder<S> {
    name: Arc<str>,
    make: Factory<S>,
    members: Vec<Member>,
    settings: Settings,
    warm_up: Option<WarmUp<S>>,
    warm_up_limit: Duration,
}

impl<S: Clone + Send + Sync + 'static> BalanceBuilder<S> {
    pub(super) fn new(name: Arc<str>, make: Factory<S>) -> Self {
        Self {
            name,
            make,
            members: Vec::new(),
            settings: Settings::default(),
            warm_up: None,
            warm_up_limit: Duration::from_secs(1),
        }
    }

    /// Sets the first members (default: none, until the [handle](Balance::handle) gets some).
    pub fn members(mut self, members: impl IntoIterator<Item = Member>) -> Self {
        self.members = members.into_iter().collect();
        self
    }

    /// Changes the policy of the endpoints' circuits: when they open, and for how long (default:
    /// [`BreakerPolicy::clustered`]).
    pub fn circuit(mut self, change: impl FnOnce(BreakerPolicy) -> BreakerPolicy) -> Self {
        self.settings.circuit = self.settings.circuit.map(change);
        self
    }

    /// Removes the circuits: no endpoint is ejected for failed calls.
    pub fn without_circuit(mut self) -> Self {
        self.settings.circuit = None;
        self
    }

    /// Tests endpoints whose circuit is open with this request (default: copies of the `GET` and `HEAD` requests that
    /// go to other endpoints).
    ///
    /// Use it if a `GET` may have an effect, or if the calls are not `GET` or `HEAD`, such as gRPC's. The response to
    /// the request has to show whether the endpoint works, as that to `GET /health` does: any response but those that
    /// count as failures closes the circuit.
    pub fn probe_request(mut self, request: Request<()>) -> Self {
        self.settings.probe = Some(ProbeSource::Fixed(Arc::new(request)));
        self
    }

    /// Sends no probe requests to endpoints whose circuit is open: after each open duration, a call is the probe.
    pub fn without_probe(mut self) -> Self {
        self.settings.probe = None;
        self
    }

    /// Limits the calls in flight to each endpoint (default: no limit). An endpoint at its limit is not chosen.
    pub fn limiter(mut self, limiter: ConcurrencyLimitLayer) -> Self {
        self.settings.limiter = Some(limiter);
        self
    }

    /// Sets how errors of endpoints become responses (default: [`ClassifyLayer::new`]). The layer around the pool
    /// reports them.
    pub fn classify(mut self, classify: ClassifyLayer) -> Self {
        self.settings.classify = classify;
        self
    }

    /// Sets how long an endpoint takes less than its share of the calls after it was added or has returned (default 10
    /// s).
    ///
    /// The endpoint begins with 10 % of its share, which grows linearly. There is no slow start while all endpoints of
    /// a level are new. `Duration::ZERO` turns it off.
    pub fn slow_start(mut self, duration: Duration) -> Self {
        self.settings.slow_start = duration;
        self
    }

    /// Prepares a new endpoint before it takes calls, such as by one connection (default: it takes calls at once).
    ///
    /// `prepare` gets the service of the endpoint and its member. For a `ReverseProxy`,
    /// `|proxy, _| async move { proxy.warm_up().await }` opens a connection, including TLS. After an error, or after
    /// [1 s](Self::warm_up_timeout), the endpoint takes calls unprepared. At most 64 endpoints are prepared at a time.
    ///
    /// While all endpoints of a pool are new, they take calls at once and are prepared concurrently.
    pub fn warm_up<T, E>(mut self, prepare: impl Fn(S, Arc<Member>) -> T + Send + Sync + 'static) -> Self
    where
        T: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        self.warm_up = Some(WarmUp::new(prepare));
        self
    }

    /// Limits the time for which [`warm_up`](Self::warm_up) keeps a new endpoint from taking calls (default 1 s).
    pub fn warm_up_timeout(mut self, limit: Duration) -> Self {
        self.warm_up_limit = limit;
        self
    }

    /// Sets the zone of this gateway: in each tier, calls go to its endpoints first (default: all zones are equal).
    ///
    /// Endpoints of other zones take calls if less than 1/1.4 of those in the zone are available. The endpoints of each
    /// zone have to bear the calls of the gateways in it.
    pub fn zone(mut self, zone: impl Into<Arc<str>>) -> Self {
        self.settings.zone = Some(zone.into());
        self
    }

    /// Ejects [outliers](super::Outlier): they take no calls for 10 s, then 20 s and so on with each ejection in a row,
    /// at most 60 s (default: outliers are reported only).
    ///
    /// No outlier is ejected if fewer than half of its level would remain available. Watch the reports before you turn
    /// this on: an endpoint may be slower or fail more often because of the calls that it gets.
    pub fn eject_outliers(mut self) -> Self {
        self.settings.ejects_outliers = true;
        self
    }

    /// Refuses calls while no endpoint is available (default: a level that panics uses all of its endpoints).
    pub fn refuse_in_panic(mut self) -> Self {
        self.settings.refuses_in_panic = true;
        self
    }

    /// Sends calls with the same hash to the same endpoint, such as those of a session (default: off). A call for which
    /// the function returns `None` is sent to any endpoint.
    ///
    /// Rendezvous hashing of the members' keys orders the endpoints for each hash: gateways with the same members
    /// agree, and a change of one member moves only its own calls. The call goes to the first endpoint that is
    /// available and has at most 1.25 times its share of the calls in flight. The cost of a call grows with the number
    /// of endpoints.
    ///
    /// The hash has to be the same in all gateways. That of `DefaultHasher` is, if they are built with one version of
    /// Rust:
    ///
    /// ```
    /// # fn f(builder: tower_upstream::balance::BalanceBuilder<()>) -> tower_upstream::balance::BalanceBuilder<()> {
    /// use std::hash::{DefaultHasher, Hash, Hasher};
    ///
    /// builder.sticky(|head| {
    ///     let mut hasher = DefaultHasher::new();
    ///     head.headers.get("x-session")?.as_bytes().hash(&mut hasher);
    ///     Some(hasher.finish())
    /// })
    /// # }
    /// ```
    pub fn sticky(mut self, hash: impl Fn(RequestHead<'_>) -> Option<u64> + Send + Sync + 'static) -> Self {
        self.settings.sticky = Some(Opaque(Arc::new(hash)));
        self
    }

    /// Uses only 20 of the active members of each tier and group that has 50 or more (default: all members).
    ///
    /// A subset bounds the connections of a gateway, and gives it enough calls to each endpoint for an estimate of the
    /// latency. `gateway` is a name that is unique among the gateways, such as that of the host. It selects the members
    /// by rendezvous hashing: each member is used by about equally many gateways, and a change of one member changes at
    /// most one of the 20.
    pub fn subset(mut self, gateway: impl Into<Arc<str>>) -> Self {
        self.settings.subset = Some(gateway.into());
        self
    }

    /// Builds the pool.
    ///
    /// # Errors
    ///
    /// [`InvalidMembers`] if the first members are refused.
    pub fn build(self) -> Result<Balance<S>, InvalidMembers> {
        let (members, pool) = self.without_members();
        if !members.is_empty() {
            pool.handle.replace(members)?;
        }
        Ok(pool)
    }

    /// Builds an empty pool, and returns the first members beside it.
    pub(crate) fn without_members(self) -> (Vec<Member>, Balance<S>) {
        let Self { name, make, members, mut settings, warm_up, warm_up_limit } = self;
        let warm_up = warm_up.map(|warm_up| warm_up.limited(warm_up_limit));
        settings.classify = settings.classify.report_by_outer();
        let state = Arc::new(PoolState::new(name, settings, Instant::now()));
        let pool = Arc::new(Pool::new(state.clone(), make, warm_up));
        let handle = BalanceHandle { state, pool: pool.clone() };
        (members, Balance { pool, handle })
    }
}

impl<S> fmt::Debug for BalanceBuilder<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BalanceBuilder").field("name", &self.name).finish_non_exhaustive()
    }
}
