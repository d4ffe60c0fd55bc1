//! Settings of a pool, until it is built.

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

/// Builds a [`Balance`]; see its [module](super).
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

    /// Changes when the circuit of an endpoint opens, and for how long (default: [`BreakerPolicy::clustered`]).
    pub fn circuit(mut self, change: impl FnOnce(BreakerPolicy) -> BreakerPolicy) -> Self {
        self.settings.circuit = self.settings.circuit.map(change);
        self
    }

    /// Removes the circuits: no endpoint is ejected for failed calls.
    pub fn without_circuit(mut self) -> Self {
        self.settings.circuit = None;
        self
    }

    /// Tests endpoints whose circuit is open with this request (default: copies of `GET` and `HEAD` requests that other endpoints
    /// get).
    ///
    /// For endpoints of which a `GET` may have an effect, or that get none, such as gRPC: a request that shows whether an endpoint
    /// works, such as `GET /health`. Any response but those that count as failures closes the circuit.
    pub fn probe_request(mut self, request: Request<()>) -> Self {
        self.settings.probe = Some(ProbeSource::Fixed(Arc::new(request)));
        self
    }

    /// Sends no request of its own to an endpoint whose circuit is open: calls become probes, after each open duration.
    pub fn without_probe(mut self) -> Self {
        self.settings.probe = None;
        self
    }

    /// Limits the calls in flight to each endpoint (default: no limit). An endpoint at its limit is not chosen.
    pub fn limiter(mut self, limiter: ConcurrencyLimitLayer) -> Self {
        self.settings.limiter = Some(limiter);
        self
    }

    /// Sets how errors of endpoints become responses (default: [`ClassifyLayer::new`]). The layer around the pool reports them.
    pub fn classify(mut self, classify: ClassifyLayer) -> Self {
        self.settings.classify = classify;
        self
    }

    /// Sets how long an endpoint takes less than its share of calls after it was added or has returned (default 10 s).
    ///
    /// It begins with 10 %, and does not apply where all endpoints are new.
    pub fn slow_start(mut self, duration: Duration) -> Self {
        self.settings.slow_start = duration;
        self
    }

    /// Prepares a new endpoint before it takes calls, such as by one connection (default: it takes calls at once).
    ///
    /// `prepare` gets the service of the endpoint and its member. With feature `client`,
    /// `|proxy, _| async move { proxy.warm_up().await }` opens a connection of a `ReverseProxy`, including TLS. After an error,
    /// or [1 s](Self::warm_up_timeout), the endpoint takes calls as it is. 64 endpoints are prepared at a time.
    ///
    /// Endpoints take calls at once if there are no others, as the first ones of a pool. They are prepared all the same.
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

    /// Prefers endpoints of this zone (default: none). The others take calls if too few of its endpoints are available.
    ///
    /// Each zone has to bear the calls of its own gateways.
    pub fn zone(mut self, zone: impl Into<Arc<str>>) -> Self {
        self.settings.zone = Some(zone.into());
        self
    }

    /// Ejects endpoints that are [outliers](super::Outlier): they take no calls for 10 s, and longer the more often it happens
    /// in a row, up to 60 s (default: outliers are reported only).
    ///
    /// At most half of a level takes no calls, whatever the reason. What makes one endpoint slower or less successful may be
    /// the calls that it gets: first look at what is reported.
    pub fn eject_outliers(mut self) -> Self {
        self.settings.ejects_outliers = true;
        self
    }

    /// Refuses calls while no endpoint is available, instead of sending them to endpoints that fail.
    pub fn refuse_in_panic(mut self) -> Self {
        self.settings.refuses_in_panic = true;
        self
    }

    /// Sends calls with the same hash to the same endpoint, such as those of a session (default: none; calls without a hash are
    /// spread as usual).
    ///
    /// The endpoint is found by rendezvous hashing of the members' keys: gateways with the same members agree, and when a member
    /// is added or removed only its calls move. An endpoint with more than 1.25 times its share of the calls in flight passes
    /// calls on to the next one, as does one that is not available. The cost of a call grows with the number of endpoints.
    ///
    /// The hash has to be the same in all gateways:
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

    /// Uses 20 of the active members of each tier and group that has 50 or more (default: all).
    ///
    /// It bounds the connections of a gateway, and its calls to an endpoint suffice for an estimate. The name of the gateway, such
    /// as that of its host, decides which members it uses: by rendezvous hashing, so that each member has about as many gateways,
    /// and a change of one member changes at most one of the 20.
    pub fn subset(mut self, gateway: impl Into<Arc<str>>) -> Self {
        self.settings.subset = Some(gateway.into());
        self
    }

    /// Builds the pool.
    ///
    /// # Errors
    ///
    /// The first members cannot be used.
    pub fn build(self) -> Result<Balance<S>, InvalidMembers> {
        let (members, pool) = self.without_members();
        if !members.is_empty() {
            let _ = pool.handle.replace(members)?;
        }
        Ok(pool)
    }

    /// Builds an empty pool; returns also its first members.
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
