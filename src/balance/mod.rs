//! Many endpoints behind one service: choice by load, ejection of endpoints that fail, and a membership that changes.
//!
//! [`Balance`] sends each call to one endpoint of an upstream that has replicas. A [`Member`] describes an endpoint,
//! and a factory makes its service: a [`ReverseProxy`](crate::client::ReverseProxy), reqwest, tonic's channel, or any
//! other service that is `Clone + Send + Sync`. Each endpoint has a circuit, an estimate of its latency and, by opt-in,
//! a concurrency limit of its own.
//!
//! Retry, timeouts, error page and statistics stand once around all endpoints, so that a second attempt goes to another
//! endpoint: [`UpstreamLayer::for_pool`](crate::UpstreamLayer::for_pool) builds that layer.
//!
//! ```
//! use bytes::Bytes;
//! use http::{Request, Response};
//! use http_body_util::Full;
//! use tokio::time::Instant;
//! use tower::{Layer, ServiceExt, service_fn};
//! use tower_upstream::UpstreamLayer;
//! use tower_upstream::balance::{Balance, Member};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // the factory makes the service of an endpoint; this one responds with the endpoint's key
//! let make = |member: &Member| {
//!     let key = member.key.clone();
//!     service_fn(move |_: Request<_>| {
//!         let response = Response::new(Full::new(Bytes::copy_from_slice(key.as_bytes())));
//!         std::future::ready(Ok::<_, std::io::Error>(response))
//!     })
//! };
//! let members = [Member::new("10.0.0.1:80"), Member::new("10.0.0.2:80")];
//! let pool = Balance::builder("shop", make).members(members).build()?;
//! let endpoints = pool.handle();
//! let shop = UpstreamLayer::for_pool(&pool).build()?.layer(pool);
//!
//! for _ in 0..10 {
//!     let Ok(response) = shop.clone().oneshot(Request::new(Full::<Bytes>::default())).await;
//!     assert_eq!(response.status(), 200);
//! }
//! endpoints.remove("10.0.0.1:80"); // it finishes its calls and gets no new ones
//! assert_eq!(endpoints.snapshot(Instant::now()).endpoints.len(), 1);
//! # Ok(())
//! # }
//! ```
//!
//! The [cookbook](crate::guide::cookbook#many-endpoints) has pools of `ReverseProxy` and of other clients, and the
//! repository's `examples/gateway.rs` is a gateway whose pools come from a file
//! ([`UpstreamConfig::proxy`](crate::stack::UpstreamConfig#method.proxy)).
//!
//! A pool has no queue and no task for calls. It is always ready. A call for which it has no endpoint gets a 503 at
//! once, with the cause [`no_healthy_upstream`](crate::BadGatewayCause::NoHealthyUpstream).
//!
//! # Choice
//!
//! | step | rule |
//! |---|---|
//! | level | A level is a [tier](Member::tier), or the part of a tier inside or outside of the pool's own [zone](BalanceBuilder::zone). Calls go to the first level: the lowest tier, own zone first. If fewer than 1/1.4 of its endpoints are available, the rest of the calls goes to the next level. [Draining](MemberState::Draining) members come last. |
//! | candidates | two of the level, drawn at random by [weight](Member::weight); all of it, if it has fewer than four |
//! | latency | peak-sensitive moving average of the response times (time constant 10 s), or the age of a call that has no response yet, if that is longer |
//! | failure | counts as a response time of at least 5 s, so that an endpoint that fails fast attracts no calls |
//! | cost | latency x (calls in flight / relative weight + 1); if both latencies are within a factor of 2, the calls in flight alone |
//! | equal costs | the candidate that was unused for longer; with different weights, in proportion to them |
//! | newcomer | starts with the median latency of the others and with 10 % of its share, which grows to all of it during its [slow start](BalanceBuilder::slow_start) |
//! | later attempt | prefers an endpoint that the call was not sent to yet |
//! | [`sticky`](BalanceBuilder::sticky) call | goes to the first available endpoint in the order of its key that has at most 1.25 times its share of the calls in flight |
//!
//! The sources of these rules are in `src/balance/choice.rs`, `load.rs` and `levels.rs`; `tests/balance/simulation.rs`
//! measures them beside other balancers.
//!
//! # Ejection and panic
//!
//! An endpoint is available if its [circuit](crate::breaker) is closed, no health check has found it unhealthy or
//! draining, and it is neither warming up nor ejected as an [outlier](#outliers). Other endpoints take no calls, except
//! for probes. An endpoint at its [concurrency limit](BalanceBuilder::limiter) counts as available, but is not chosen.
//!
//! A level *panics* if fewer than half of its endpoints are available and no other level can take over: calls are sent
//! to all of its endpoints, because when most endpoints fail at once, the reason is seldom in each of them (Envoy's
//! panic threshold). A level of one endpoint does not panic. With [`refuse_in_panic`](BalanceBuilder::refuse_in_panic),
//! calls go to the available endpoints only, and are refused without one.
//!
//! # Probes
//!
//! While the circuit of an endpoint is open, the pool tests the endpoint with copies of the `GET` and `HEAD` requests
//! that go to others, as a [stack](crate::stack#probes) tests its only upstream: one copy at a time, at most one for 32
//! calls of the pool, at the same intervals, within the
//! [`probe_timeout`](crate::breaker::BreakerPolicy::probe_timeout). The response of a probe is dropped. Any response
//! but those that count as failures closes the circuit, and the endpoint returns with a slow start. Of a request's
//! extensions, a probe has the [`ClientInfo`](crate::forward::ClientInfo) only.
//!
//! | probe | when |
//! |---|---|
//! | a copy of a request, or the [`probe_request`](BalanceBuilder::probe_request) | from the opening of the circuit on; never with [`without_probe`](BalanceBuilder::without_probe) |
//! | the first attempt of a call with a safe method | after the open duration, and 5 s after the last copy that failed; in any case after the maximum open duration |
//! | any other call, such as gRPC's | after twice that time without a call with a safe method; like a safe one if no other endpoint is available |
//!
//! # Health checks
//!
//! [`HealthChecks`] check endpoints in the background, by opt-in: `checks.watch(&pool.handle())`. A [`HealthCheck`] is
//! a future of the user or, with feature `client`, an HTTP request, a call of gRPC's health protocol or a TCP
//! connection. It reads the [words](CheckReport::from_words) by which an endpoint asks for no new calls, or for a part
//! of its weight.
//!
//! | state | rule |
//! |---|---|
//! | a new endpoint | takes calls until three checks in a row have failed |
//! | unhealthy | after three failed checks in a row, however many endpoints are ejected; in a panic it takes calls all the same |
//! | healthy again | after two passed checks in a row |
//! | draining (words `drain`, `maint`) | from that check on, until a check passes |
//! | many endpoints | one task, 64 checks at a time, and one check for each address however many pools name it |
//!
//! Health and circuit are separate: a passed check never closes a circuit that calls have opened, because it may not
//! see what they have seen.
//!
//! [`HealthCheck::verify`] checks every endpoint once, such as when a process starts, and reports how far each check
//! has come: resolved, connected, TLS, response head.
//!
//! # Outliers
//!
//! Every 2 s, a pool compares each endpoint with the others of its level: an [`Outlier`] failed more often or was
//! slower than they were in the last 10 s. It is reported in the [snapshot](EndpointSnapshot::outlier) and as a log
//! event. With [`eject_outliers`](BalanceBuilder::eject_outliers) it takes no calls for a while.
//!
//! # Membership
//!
//! The [`BalanceHandle`] changes members at run time, [all](BalanceHandle::replace) or [one](BalanceHandle::upsert) at
//! a [time](BalanceHandle::remove). A member that keeps its key and its addresses keeps its endpoint, with circuit,
//! latency and connections. A removed endpoint gets no new calls and finishes those it has. By opt-in, a new endpoint
//! is [prepared](BalanceBuilder::warm_up) before it takes calls, such as by a connection.
//!
//! # Sources
//!
//! A source keeps the members up to date. It runs in a task of its own, whether there are calls or not, and ends with
//! the pool:
//!
//! | method | source |
//! |---|---|
//! | [`follow_changes`](BalanceHandle::follow_changes) | a stream of tower's `discover::Change` |
//! | [`follow_snapshots`](BalanceHandle::follow_snapshots) | a stream of lists, such as those of Kubernetes, etcd and xDS |
//! | [`follow_dns`](BalanceHandle#method.follow_dns) (feature `client`) | all addresses of a name, resolved every 5 s |
//! | [`watch_file`](BalanceHandle::watch_file) | a file, checked every second |
//! | [`poll_source`](BalanceHandle::poll_source) | an async closure, such as a query for SRV records or of a registry |
//!
//! A source that fails, ends or has no members changes nothing: the pool keeps its members, and reports the problem in
//! a log event and, with the age of the members, in [`SourceStatus`]. A snapshot that lacks more than half of the
//! members has to be confirmed. The repository's `examples/` follow DNS, etcd, Kubernetes and xDS.
//!
//! # Releases
//!
//! A [`Shift`] moves calls from one [group](Member::group) of members to another in steps, as in a canary or blue-green
//! release, and takes them back if the new group fails more often than the old one.
//!
//! # Defaults
//!
//! | setting | default |
//! |---|---|
//! | [`members`](BalanceBuilder::members) | none: calls are refused |
//! | [`circuit`](BalanceBuilder::circuit) of each endpoint | [`BreakerPolicy::clustered`](crate::breaker::BreakerPolicy::clustered) |
//! | [`limiter`](BalanceBuilder::limiter) of each endpoint | none |
//! | [`slow_start`](BalanceBuilder::slow_start) | 10 s |
//! | [`zone`](BalanceBuilder::zone) | none: all zones are equal |
//! | [`sticky`](BalanceBuilder::sticky) calls | none |
//! | [`subset`](BalanceBuilder::subset) of the members | all of them |
//! | [`warm_up`](BalanceBuilder::warm_up) of new endpoints | none; at most [1 s](BalanceBuilder::warm_up_timeout) |
//! | [`refuse_in_panic`](BalanceBuilder::refuse_in_panic) | off |
//! | [`eject_outliers`](BalanceBuilder::eject_outliers) | off: outliers are reported |
//! | [`HealthCheck::interval`], [`timeout`](HealthCheck::timeout) | none unless watched; 5 s +-20 % (1 s while results differ from the health), 1 s |
//! | [`rise`](HealthCheck::rise), [`fall`](HealthCheck::fall) | 2 passed, 3 failed checks in a row |
//! | [`Shift::steps`], [`step_time`](Shift::step_time) | 1, 5, 25 and 50 % of the calls, 60 s each |
//! | weight, tier and state of a [`Member`] | 1, 0, active |
//!
//! # Telemetry
//!
//! [`BalanceHandle::snapshot`] has the state, calls in flight and latency of every endpoint, and the state of the
//! source. Log events have the target `tower_upstream` and the pool's name as `upstream`:
//!
//! | event | level | fields |
//! |---|---|---|
//! | a circuit opens or closes | those of the [circuit](crate::breaker) | `upstream` = `pool/key` |
//! | a level panics; no longer | WARN; INFO | `tier`, `endpoints` |
//! | the source of the members fails; works again | WARN; INFO | `members`, `age_s` |
//! | the health of an endpoint changes | WARN; INFO | `endpoint`, `reason`, `status`, `duration_ms` |
//! | the warm-up of an endpoint fails | WARN | `endpoint`, `duration_ms` |
//! | an endpoint is an outlier; no longer | WARN; INFO | `endpoint`, `reason`, `ejected` |
//! | a shift is rolled back; is held, continues, is completed | WARN; INFO | `from`, `to`, the counts or the share |

mod agent_words;
mod builder;
mod check_report;
mod choice;
mod endpoint;
mod future;
mod handle;
mod health;
mod levels;
mod load;
mod member;
mod membership;
mod outlier;
mod pool;
mod probe;
#[cfg(feature = "client")]
mod proxies;
mod rendezvous;
mod review;
mod settings;
mod shift;
mod source;
mod warm_up;

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use tokio::time::Instant;
use tower_service::Service;

use self::pool::Pool;
use crate::body::{BoxError, TrackedUpload, WrapBody};
use crate::cause::{BadGatewayCause, Failure, Phase};
use crate::exchange::{ChosenEndpoint, Exchange, Rejection, SendService, TriedEndpoints, note_endpoint};
use crate::timeout::RequestHead;

pub use self::builder::BalanceBuilder;
pub use self::check_report::{CheckRecord, CheckReport};
pub use self::endpoint::Health;
pub use self::future::{BalanceBody, BalanceFuture};
pub use self::handle::{BalanceHandle, BalanceSnapshot, EndpointSnapshot};
pub use self::health::{EndpointReport, HealthCheck, HealthChecks, InvalidHealthCheck, Verification};
pub use self::member::{Member, MemberState};
pub use self::membership::{InvalidMembers, SnapshotOutcome, SourceStatus};
pub use self::outlier::Outlier;
#[cfg(feature = "client")]
pub use self::proxies::reverse_proxies;
pub use self::shift::{CallCounts, Evidence, Shift, ShiftHandle, ShiftReason, ShiftSnapshot, ShiftState};

/// Sends each call to one of many endpoints; see the [module](self).
///
/// The service is always ready and infallible: a call waits for its endpoint in its own future, and every failure is a
/// response with a cause. Clones share the endpoints.
///
/// The service of an endpoint gets the request body as [`TrackedUpload`]: behind a stack, a request with the body `B`
/// is a `Request<TrackedUpload<RequestBody<B>>>` ([`RequestBody`](crate::stack::RequestBody)).
pub struct Balance<S> {
    pool: Arc<Pool<S>>,
    handle: BalanceHandle,
}

impl<S> Clone for Balance<S> {
    fn clone(&self) -> Self {
        Self { pool: self.pool.clone(), handle: self.handle.clone() }
    }
}

impl<S: Clone + Send + Sync + 'static> Balance<S> {
    /// Returns a builder for a pool of this name, which labels its log events and snapshots.
    ///
    /// `make` makes the service of an endpoint. It is called once for each new endpoint, by the thread that changes the
    /// members, and has to return quickly: connect in the service's `call`, or in [`warm_up`](BalanceBuilder::warm_up).
    /// The members are locked meanwhile, so that a use of the pool's [handle](Self::handle) in `make` would wait for itself.
    /// A panic of `make` is passed on to that thread, and the members stay as they are.
    pub fn builder(
        name: impl Into<Arc<str>>,
        make: impl Fn(&Member) -> S + Send + Sync + 'static,
    ) -> BalanceBuilder<S> {
        BalanceBuilder::new(name.into(), Box::new(make))
    }
}

impl<S> Balance<S> {
    /// Returns the handle that changes and observes the endpoints.
    pub fn handle(&self) -> BalanceHandle {
        self.handle.clone()
    }
}

impl<S, B, X, E> Service<Request<B>> for Balance<S>
where
    S: WrapBody<TrackedUpload<B>, Body = X, ServiceError = E> + SendService<TrackedUpload<B>> + Clone + Sync,
    B: Body + 'static,
    X: Body<Data = Bytes, Error: Into<BoxError>> + Send + Unpin + 'static,
    E: Into<BoxError>,
{
    type Response = Response<BalanceBody<X>>;
    type Error = Infallible;
    type Future = BalanceFuture<S, B>;

    #[inline]
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    #[inline]
    fn call(&mut self, request: Request<B>) -> Self::Future {
        let now = Instant::now();
        let extensions = request.extensions();
        let tried = if extensions.is_empty() { None } else { extensions.get::<TriedEndpoints>() };
        let tried = tried.map_or(&[][..], |tried| &tried.0);
        let tried_count = tried.len();
        let key = self.pool.state.settings.sticky.as_ref().and_then(|sticky| {
            let (method, uri, headers) = (request.method(), request.uri(), request.headers());
            sticky(RequestHead { method, uri, headers, extensions })
        });
        let chosen = self.pool.choose(now, tried, request.method().is_safe(), key);
        if self.pool.has_ejected() {
            self.pool.offer_probe(now, chosen.as_deref(), &request);
        }
        match chosen {
            Some(endpoint) => {
                let call = endpoint.exchange.call_shared(None, request);
                let has_others = self.pool.has_others(tried_count);
                note_endpoint(ChosenEndpoint { id: endpoint.state.id, has_others });
                BalanceFuture::new(call)
            }
            None => BalanceFuture::new(self.reject(now, request)),
        }
    }
}

impl<S> Balance<S> {
    /// Refuses a call for which there is no endpoint.
    #[cold]
    fn reject<B, X, E>(&self, now: Instant, request: Request<B>) -> future::Call<S, B>
    where
        S: WrapBody<TrackedUpload<B>, Body = X, ServiceError = E> + Clone,
        B: Body,
        X: Body<Data = Bytes, Error: Into<BoxError>> + Send + Unpin + 'static,
        E: Into<BoxError>,
    {
        let failure = Failure::builder(BadGatewayCause::NoHealthyUpstream).phase(Phase::Gateway).refusal();
        let rejection = Rejection::new(failure.upstream(self.pool.state.name.clone()).build());
        Exchange::reject(self.pool.rejecting.clone(), now, rejection, request)
    }
}

impl<S> fmt::Debug for Balance<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Balance").field("name", &self.pool.state.name).finish_non_exhaustive()
    }
}
