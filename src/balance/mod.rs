//! Many endpoints behind one service: choice by load, ejection of endpoints that fail, and a membership that changes.
//!
//! [`Balance`] sends each call to one of the endpoints of an upstream. Each endpoint has a circuit, a latency estimate and, by
//! opt-in, a concurrency limit of its own. It has no queue and no background task for calls: an empty pool responds at once.
//!
//! Retry, timeouts, error page and statistics belong around all endpoints, so that a second attempt goes to another one:
//! [`UpstreamLayer::for_pool`](crate::UpstreamLayer::for_pool) builds that layer.
//!
//! # Choice
//!
//! | step | rule |
//! |---|---|
//! | level | members of the lowest tier, of the own [zone](BalanceBuilder::zone) first; if less than 1/1.4 of them are available, the rest of the calls goes to the next level; draining members last |
//! | candidates | two at random by weight; of fewer than four endpoints, all |
//! | latency | peak-sensitive average of the response times (time constant 10 s), or the time that a call without a response has taken, if that is longer |
//! | cost | latency x (calls in flight / relative weight + 1); with latencies within a factor of 2, the calls in flight alone |
//! | failures | count as a response time of at least 5 s, so that an endpoint that fails fast attracts no calls |
//! | equal costs | in proportion to the weights; if these are equal, the endpoint that was unused for longer |
//! | newcomers | start with the median of the others' response times, and with 10 % of their share, which grows to all of it in [`slow_start`](BalanceBuilder::slow_start) |
//! | later attempts | an endpoint that the call was not sent to yet |
//! | [`sticky`](BalanceBuilder::sticky) calls | the first available endpoint in the order of the key that has at most 1.25 times its share of the calls in flight |
//!
//! # Ejection
//!
//! An endpoint takes no calls while its [circuit](crate::breaker) is open or a health check has found it unhealthy. If less
//! than half of a level is available and no other level can take over, the level *panics*: calls are sent to all of its
//! endpoints, because most endpoints seldom fail for reasons of their own; one endpoint alone does not panic. With
//! [`refuse_in_panic`](BalanceBuilder::refuse_in_panic), calls are sent to what is available, and refused if nothing is.
//!
//! # Probes
//!
//! While the circuit of an endpoint is open, it is tested with copies of the `GET` and `HEAD` requests that go to other endpoints,
//! as a [stack](crate::stack#probes) tests its only upstream: one copy at a time, at most one for 32 calls of the pool, at the
//! same intervals. Its limit is the [`probe_timeout`](crate::breaker::BreakerPolicy::probe_timeout). Any response but those that
//! count as failures closes the circuit, and the endpoint returns with its slow start. The response is dropped. Of the request's
//! extensions, a probe has the [`ClientInfo`](crate::forward::ClientInfo) only.
//!
//! | probe | when |
//! |---|---|
//! | a copy of a request, or [`probe_request`](BalanceBuilder::probe_request) | at once; not [`without_probe`](BalanceBuilder::without_probe) |
//! | a call with a safe method, in its first attempt | after the open duration, and 5 s after the last copy that failed; in any case after the maximum open duration |
//! | any other call, such as gRPC's | after twice that time without a call with a safe method, or if no other endpoint is available |
//!
//! A call without an endpoint is refused with a 503 and the cause `no_healthy_upstream`.
//!
//! # Health checks
//!
//! [`HealthChecks`] check endpoints in the background, by opt-in: `checks.watch(&balance.handle())`. A [`HealthCheck`] is a
//! future of the user's or, with feature `client`, an HTTP request, gRPC's health protocol or a TCP connection; it reads the
//! [words](CheckReport::from_words) by which an endpoint asks for no new calls or for a part of its weight.
//!
//! | | |
//! |---|---|
//! | interval | 5 s +-20 %; 1 s while results differ from the health, or nothing is known |
//! | time limit | 1 s, then the check has failed |
//! | a new endpoint | takes calls until three checks in a row have failed |
//! | unhealthy | after three failed checks in a row, whatever number of endpoints is ejected; a level that panics uses it |
//! | healthy again | after two passed checks in a row |
//! | asks for no calls (`drain`, `maint`) | counts at once; it ends with the next passed check |
//! | many endpoints | one check per address however many pools name it, one task, 64 checks at a time |
//!
//! Health and circuit are separate: a check that passes never ends an ejection that calls have caused, as it may not see what
//! they have seen. An endpoint takes calls if both allow it.
//!
//! [`HealthCheck::verify`] makes one check of every endpoint, as at the start of a process, and reports how far each has come:
//! resolved, connected, TLS, response head.
//!
//! # Outliers
//!
//! Every 2 s, endpoints are compared with the others of their level: an [`Outlier`] fails more often or is slower than they are,
//! in the last 10 s. It is reported in the [snapshot](EndpointSnapshot::outlier) and as a log event; with
//! [`eject_outliers`](BalanceBuilder::eject_outliers) it takes no calls for a while.
//!
//! # Membership
//!
//! A [`Member`] describes an endpoint; a factory makes its service. The members change through the [`BalanceHandle`]: as a
//! whole or one by one. Members that keep their key keep their state. A removed endpoint gets no new calls and finishes those
//! it has.
//!
//! By opt-in, a new endpoint is [prepared](BalanceBuilder::warm_up) before it takes calls, such as by a connection.
//!
//! # Sources
//!
//! A source keeps the members up to date in a task of its own, which ends with the pool and polls whether there are calls or
//! not:
//!
//! | source | |
//! |---|---|
//! | [`follow_changes`](BalanceHandle::follow_changes) | a stream of tower's `discover::Change` |
//! | [`follow_snapshots`](BalanceHandle::follow_snapshots) | a stream of lists, as Kubernetes, xDS and most engines have |
//! | `follow_dns` (feature `client`) | all addresses of a name, asked for every 5 s |
//! | [`watch_file`](BalanceHandle::watch_file) | a file, checked every second |
//! | [`poll_source`](BalanceHandle::poll_source) | anything that an async closure returns, such as SRV records or a registry |
//!
//! A source that fails, ends or loses all members changes nothing: the pool keeps the members it has, says so in a log event
//! and in [`SourceStatus`], with their age. Half of the members do not leave on one answer alone.
//! The repository's `examples/` follow DNS, etcd, Kubernetes and xDS.
//!
//! `reverse_proxies` (feature `client`) makes the factory of a pool of [`ReverseProxy`](crate::client::ReverseProxy)s.
//!
//! # Releases
//!
//! A [`Shift`] moves calls from one [group](Member::group) of members to another in steps, and takes them back if the new group
//! fails more often than the old one.
//!
//! | telemetry | |
//! |---|---|
//! | an endpoint is ejected or returns | the events of its [circuit](crate::breaker), with `upstream` = `pool/key` |
//! | a level panics, or no longer does | an event at level WARN or INFO, target `tower_upstream`, with `upstream`, `tier`, `endpoints` |
//! | the source of the members fails | an event at level WARN with `members`, `age_s` |
//! | it works again | an event at level INFO |
//! | the health of an endpoint changes | an event at level WARN or INFO, with `upstream`, `endpoint`, `reason`, `status`, `duration_ms` |
//! | the warm-up of an endpoint fails | an event at level WARN, with `upstream`, `endpoint`, `duration_ms` |
//! | an endpoint is an outlier, or no longer | an event at level WARN or INFO, with `upstream`, `endpoint`, `reason`, `ejected` |
//! | a shift goes on or is rolled back | an event at level INFO or WARN with `from`, `to`, the share or the counts |
//! | [`BalanceHandle::snapshot`] | endpoints with state, calls in flight and latency; the source's state |
//!
//! ```
//! use http::{Request, Response};
//! use http_body_util::Full;
//! use tower::{Service, ServiceExt, service_fn};
//! use tower_upstream::balance::{Balance, Member};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! // a factory makes the service of each endpoint; here it responds with the endpoint's key
//! let make = |member: &Member| {
//!     let key = member.key.clone();
//!     service_fn(move |_: Request<_>| {
//!         let response = Response::new(Full::new(bytes::Bytes::copy_from_slice(key.as_bytes())));
//!         std::future::ready(Ok::<_, std::io::Error>(response))
//!     })
//! };
//! let members = [Member::new("10.0.0.1:80"), Member::new("10.0.0.2:80")];
//! let mut balance = Balance::builder("shop", make).members(members).build().unwrap();
//! for _ in 0..10 {
//!     let request = Request::new(Full::<bytes::Bytes>::default());
//!     let Ok(response) = balance.ready().await.unwrap().call(request).await;
//!     assert_eq!(response.status(), 200);
//! }
//! balance.handle().remove("10.0.0.1:80");
//! assert_eq!(balance.handle().snapshot(tokio::time::Instant::now()).endpoints.len(), 1);
//! # }
//! ```

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
/// It is always ready and never errs: a call waits for its endpoint in its own future, and every failure is a response.
/// Clones share the endpoints. The service of an endpoint gets its request body as [`TrackedUpload`].
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
    /// Builds a pool of this name, whose endpoints have the services that `make` returns.
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
            self.pool.offer_probe(chosen.as_deref(), &request);
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
    /// Responds to a call for which there is no endpoint.
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
