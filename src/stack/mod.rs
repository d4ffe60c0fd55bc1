//! The whole stack in one layer: the recommended order, checked, in one future.
//!
//! [`UpstreamLayer`] does what these layers do one around the other, outermost first; whoever wants another order writes it
//! with a `ServiceBuilder` of the same layers ([`ServiceBuilderExt`]):
//!
//! | | part | left out by |
//! |---|---|---|
//! | 1 | [`ErrorPage`](crate::error_page::ErrorPage) | not asking for one |
//! | 2 | [`ClassifyLayer`](crate::ClassifyLayer): log line, `Proxy-Status`, request id, how the last attempt ended | |
//! | 3 | counts, and the limiter ([`LimitLayer`](crate::limit::LimitLayer)), around all attempts | [`without_limiter`](UpstreamBuilder::without_limiter) |
//! | 4 | [`RetryLayer`](crate::retry::RetryLayer) with its budget | [`without_retry`](UpstreamBuilder::without_retry) |
//! | 5 | the circuit ([`CircuitBreakerLayer`](crate::breaker::CircuitBreakerLayer)), for each attempt | [`without_circuit`](UpstreamBuilder::without_circuit) |
//! | 6 | [`TimeoutLayer`](crate::timeout::TimeoutLayer), for each attempt | |
//! | 7 | a deferred [`ClassifyLayer`](crate::ClassifyLayer): errors and unsafe heads are judged before the retry decides | |
//! | 8 | [`ForwardLayer`](crate::forward::ForwardLayer) | not asking for [`headers`](UpstreamBuilder::headers) |
//!
//! The service never errs; its body is `Default` and `From<Bytes>`. It is always ready: a call waits for the inner service in
//! its own future, under its limits, and a refusal waits for nobody. A first attempt that succeeds is one future with one timer;
//! later attempts, and all attempts where [hedging](crate::retry::Hedging) is on, run in layers of their own in a box.
//!
//! # Presets
//!
//! | | [`latency_critical`](UpstreamBuilder::latency_critical) | [`standard`](UpstreamBuilder::standard), the default | [`batch`](UpstreamBuilder::batch) | [`streaming`](UpstreamBuilder::streaming) |
//! |---|---|---|---|---|
//! | `head` | 450 ms | 9 s | 120 s | 9 s |
//! | `attempt` | 450 ms | 9 s | 300 s | none |
//! | `total` | 1 s | 30 s | 960 s | none |
//! | `body_idle` | 1 s | 30 s | 120 s | 90 s |
//! | `client_idle` | 60 s | 60 s | 60 s | 60 s |
//! | `attempts` | 2 | 3 | 3 | 3 |
//! | `pauses` | 5 ms to 50 ms | 25 ms to 1 s | 1 s to 30 s | 25 ms to 1 s |
//! | `hedging` | p95 | none | none | none |
//! | `window` of the circuit | 10 s | 10 s | 60 s | 10 s |
//! | `open` for | 500 ms to 5 s | 1 s to 10 s | 5 s to 60 s | 1 s to 10 s |
//! | `in flight` | 2 to 200 | 2 to 200 | 2 to 50 | 2 to 1000 |
//!
//! An attempt's limit counts from its call: an upload that takes longer needs [`batch`](UpstreamBuilder::batch), or limits of its
//! own.
//!
//! ```
//! use http::{Request, Response};
//! use http_body_util::Full;
//! use tower::{Layer, ServiceExt, service_fn};
//! use tower_upstream::{BadGatewayCause, UpstreamLayer};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! let layer = UpstreamLayer::builder("payments").proxy_status("shop-edge").build().unwrap();
//! let refused = service_fn(|_: Request<_>| async {
//!     Err::<Response<Full<bytes::Bytes>>, _>(std::io::Error::from(std::io::ErrorKind::ConnectionRefused))
//! });
//! let request = Request::new(Full::<bytes::Bytes>::default());
//! let Ok(answer) = layer.layer(refused).oneshot(request).await;
//! assert_eq!(answer.status(), 502);
//! assert_eq!(answer.headers()["proxy-status"], "shop-edge; error=connection_refused");
//! let counts = layer.handle().snapshot(tokio::time::Instant::now());
//! assert_eq!(counts.failures, [(BadGatewayCause::ConnectionRefused, 1)]);
//! # }
//! ```

// calls that are not inlined move requests and answers about: measured
#![allow(clippy::inline_always)]
// a stack's type says what it is made of, and is never written down
#![allow(clippy::type_complexity)]

mod begin;
mod body;
mod builder;
mod check;
#[cfg(feature = "serde")]
mod config;
mod core;
mod course;
mod ext;
mod future;
mod handle;
mod misconfigured;
mod note;
mod parts;
mod presets;
mod recorder;
mod repeat;
mod steering;
mod waiting;

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use tower_layer::{Identity, Layer};
use tower_service::Service;

use self::begin::{Make, Unused};
use self::future::{Made, Run};
use self::steering::{Origin, Steering};
use crate::breaker::Breaker;
use crate::engine::{Border, Handle, Held, Part, Watched};
use crate::limit::Limit;
use crate::retry::{ByHyper, ByTower};

pub use self::body::UpstreamBody;
pub use self::builder::{Section, UpstreamBuilder};
#[cfg(feature = "serde")]
pub use self::config::UpstreamConfig;
pub use self::core::Attempt;
pub use self::ext::ServiceBuilderExt;
pub use self::future::UpstreamFuture;
pub use self::handle::{Change, Drained, UpstreamHandle, UpstreamSnapshot, UpstreamState};
pub use self::misconfigured::{Misconfiguration, Misconfigured};
pub use self::parts::{Parts, Ticket};
pub use self::recorder::Latency;
pub use self::repeat::{Begins, Care, Once, Repeat, Repeating, Repeats, Retries, Retrying, Rounds, Span};
pub use self::waiting::{Waiting, WaitingFuture};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What the calls of one service share around its attempts.
type AroundOf<S, R, C, W> = <R as Repeat>::Around<Attempt<S, C, W>>;
type RoundOf<T, B, Y> = <T as Repeats<B, Y>>::Round;
type BodyOf<T, B, Y> = <RoundOf<T, B, Y> as Rounds<T>>::Body;
type CoreOf<S, R, L, C, W> = core::Core<R, L, C, AroundOf<S, R, C, W>>;

/// The whole stack; see the [module](self).
#[must_use]
pub struct UpstreamLayer<R = Retries, L = Limit, C = Breaker, W = Watched, H = Identity> {
    steering: Arc<Steering<R, L, C>>,
    handle: UpstreamHandle,
    headers: H,
    border: PhantomData<fn() -> W>,
}

impl UpstreamLayer {
    /// A stack for the upstream of this name, which stands in its log lines, metrics and snapshots.
    pub fn builder(name: impl Into<Arc<str>>) -> UpstreamBuilder {
        UpstreamBuilder::new(name)
    }
}

impl<R, L, C, W, H> UpstreamLayer<R, L, C, W, H> {
    /// Sees into the stack and steers it.
    pub fn handle(&self) -> UpstreamHandle {
        self.handle.clone()
    }
}

impl<R, L, C, W, H: Clone> Clone for UpstreamLayer<R, L, C, W, H> {
    fn clone(&self) -> Self {
        let (steering, handle, headers) = (self.steering.clone(), self.handle.clone(), self.headers.clone());
        Self { steering, handle, headers, border: PhantomData }
    }
}

impl<R, L, C, W, H> fmt::Debug for UpstreamLayer<R, L, C, W, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpstreamLayer").field("handle", &self.handle).finish_non_exhaustive()
    }
}

impl<S, R, L, C, W, H> Layer<S> for UpstreamLayer<R, L, C, W, H>
where
    H: Layer<S>,
    H::Service: Clone,
    R: Repeat,
    L: Part + Clone,
    C: Part + Clone,
{
    type Service = Upstream<H::Service, R, L, C, W>;

    fn layer(&self, inner: S) -> Self::Service {
        let inner = self.headers.layer(inner);
        let (version, set) = self.steering.set();
        let core = Arc::new(set.around(|| inner.clone()));
        let origin = Arc::new(Origin::new(self.steering.clone(), version, core.clone()));
        Upstream { inner, core: Handle::new(core), version, origin, readiness: Readiness::Unasked }
    }
}

/// The service of [`UpstreamLayer`].
pub struct Upstream<S, R: Repeat = Retries, L = Limit, C: Part = Breaker, W = Watched> {
    inner: S,
    core: Handle<CoreOf<S, R, L, C, W>>,
    /// Which set that is.
    version: u32,
    origin: Arc<Origin<R, L, C, CoreOf<S, R, L, C, W>>>,
    readiness: Readiness,
}

/// What the inner service said when it was asked.
#[derive(Default)]
enum Readiness {
    #[default]
    Unasked,
    Ready,
    Pending,
    Broken(BoxError),
}

impl<S: Clone, R: Repeat, L, C: Part, W> Clone for Upstream<S, R, L, C, W> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            core: self.core.clone(),
            version: self.version,
            origin: self.origin.clone(),
            readiness: Readiness::Unasked,
        }
    }
}

impl<S: fmt::Debug, R: Repeat, L, C: Part, W> fmt::Debug for Upstream<S, R, L, C, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upstream").field("inner", &self.inner).field("core", &self.core).finish_non_exhaustive()
    }
}

impl<S, R, L, C, W> Upstream<S, R, L, C, W>
where
    S: Clone,
    R: Repeat,
    L: Part + Clone,
    C: Part + Clone,
{
    /// What calls that begin now share, after a change.
    #[cold]
    fn renewed(&self) -> (u32, Arc<CoreOf<S, R, L, C, W>>) {
        self.origin.latest(|set| set.around(|| self.inner.clone()))
    }
}

impl<S, R, L, C, W, B, X> Service<Request<B>> for Upstream<S, R, L, C, W>
where
    S: Service<Request<W::Body>, Response = Response<X>> + Clone,
    S::Error: Into<BoxError>,
    X: Body<Data = Bytes> + Unpin + 'static,
    X::Error: Into<BoxError>,
    R: Repeat,
    L: Part + Clone,
    C: Part + Clone,
    AroundOf<S, R, C, W>: Repeats<B, ByTower>,
    W: Border<<AroundOf<S, R, C, W> as Repeats<B, ByTower>>::Body>,
    UpstreamBody<X, BodyOf<AroundOf<S, R, C, W>, B, ByTower>, R, L, C, AroundOf<S, R, C, W>>: Send + 'static,
{
    type Response = Response<UpstreamBody<X, BodyOf<AroundOf<S, R, C, W>, B, ByTower>, R, L, C, AroundOf<S, R, C, W>>>;
    type Error = std::convert::Infallible;
    type Future =
        UpstreamFuture<S, W::Body, ByTower, R, L, C, AroundOf<S, R, C, W>, RoundOf<AroundOf<S, R, C, W>, B, ByTower>>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        // what waits here would wait under no limit: a call waits for its service in its own future
        self.readiness = match self.inner.poll_ready(cx) {
            Poll::Ready(Ok(())) => Readiness::Ready,
            Poll::Ready(Err(error)) => Readiness::Broken(error.into()),
            Poll::Pending => Readiness::Pending,
        };
        Poll::Ready(Ok(()))
    }

    #[inline]
    fn call(&mut self, request: Request<B>) -> Self::Future {
        if self.version != self.origin.steering.version() {
            let (version, core) = self.renewed();
            (self.version, self.core) = (version, Handle::new(core));
        }
        let asked = Asked { inner: &mut self.inner, readiness: std::mem::take(&mut self.readiness) };
        UpstreamFuture::begin::<W, B>(self.core.hold(), request, asked)
    }
}

/// A service of tower's, and what it said when it was asked.
struct Asked<'a, S> {
    inner: &'a mut S,
    readiness: Readiness,
}

impl<S, B, X, T, Q> Make<S, B, ByTower, T, Q> for Asked<'_, S>
where
    S: Service<Request<B>, Response = Response<X>> + Clone,
    S::Error: Into<BoxError>,
    Q: Rounds<T>,
{
    #[inline(always)]
    fn make(self, request: Request<B>) -> Made<S, B, ByTower, T, Q> {
        match self.readiness {
            Readiness::Ready => Run::Call { call: self.inner.call(request) },
            // the one that waits keeps its place in whatever line it stands
            Readiness::Pending | Readiness::Unasked => {
                let next = self.inner.clone();
                Run::asking(std::mem::replace(self.inner, next), request)
            }
            Readiness::Broken(error) => Run::broken(error),
        }
    }

    fn unused(self, unused: Unused) {
        // a place in a line that is not used is somebody else's
        if let (Readiness::Ready, Unused::Elsewhere) | (Readiness::Pending, _) = (self.readiness, unused) {
            *self.inner = self.inner.clone();
        }
    }
}

/// A service of hyper's, which is always ready.
struct Direct<'a, S>(&'a S);

impl<S, B, X, T, Q> Make<S, B, ByHyper, T, Q> for Direct<'_, S>
where
    S: hyper::service::Service<Request<B>, Response = Response<X>>,
    Q: Rounds<T>,
{
    #[inline(always)]
    fn make(self, request: Request<B>) -> Made<S, B, ByHyper, T, Q> {
        Run::Call { call: self.0.call(request) }
    }

    fn unused(self, _: Unused) {}
}

/// The same without `&mut`, where the inner service is hyper's: a server calls it without a clone.
impl<S, R, L, C, W, B, X> hyper::service::Service<Request<B>> for Upstream<S, R, L, C, W>
where
    S: hyper::service::Service<Request<W::Body>, Response = Response<X>> + Clone,
    S::Error: Into<BoxError>,
    X: Body<Data = Bytes> + Unpin + 'static,
    X::Error: Into<BoxError>,
    R: Repeat,
    L: Part + Clone,
    C: Part + Clone,
    AroundOf<S, R, C, W>: Repeats<B, ByHyper>,
    W: Border<<AroundOf<S, R, C, W> as Repeats<B, ByHyper>>::Body>,
    UpstreamBody<X, BodyOf<AroundOf<S, R, C, W>, B, ByHyper>, R, L, C, AroundOf<S, R, C, W>>: Send + 'static,
{
    type Response = Response<UpstreamBody<X, BodyOf<AroundOf<S, R, C, W>, B, ByHyper>, R, L, C, AroundOf<S, R, C, W>>>;
    type Error = std::convert::Infallible;
    type Future =
        UpstreamFuture<S, W::Body, ByHyper, R, L, C, AroundOf<S, R, C, W>, RoundOf<AroundOf<S, R, C, W>, B, ByHyper>>;

    #[inline]
    fn call(&self, request: Request<B>) -> Self::Future {
        let core = if self.version == self.origin.steering.version() {
            self.core.hold_own()
        } else {
            Held::new(self.renewed().1)
        };
        UpstreamFuture::begin::<W, B>(core, request, Direct(&self.inner))
    }
}
