//! Time limits of an exchange; the one that passes names the phase that ate the time.
//!
//! [`TimeoutLayer`] stands around whatever does the work: a hyper client, a
//! [`ReverseProxy`](https://docs.rs/tower-upstream/latest/tower_upstream/client/struct.ReverseProxy.html),
//! an axum handler, a `service_fn`. What passes a limit is answered with 504 (408 where the client itself stalled), a
//! [`Failure`](crate::Failure) and its cause in the extensions; the work is dropped, and with it the connection that hung.
//! A body that passes its limit is cut: its error is the [`Failure`](crate::Failure).
//!
//! | limit | default | begins | ends | cause |
//! |---|---|---|---|---|
//! | [`head`](Timeouts::head) | 30 s | when the request body has ended; without one, at the call | at the response head | by phase, below |
//! | [`attempt`](Timeouts::attempt) | none | at the call | at the response head | by phase, below |
//! | [`total`](Timeouts::total), and the caller's [`Deadline`](crate::deadline::Deadline) less a margin | 60 s | at the call | at the response head | `deadline_exceeded` |
//! | [`body_idle`](Timeouts::body_idle) | 30 s | when a frame is waited for | at any progress, either way | `body_read_timeout`, or `upload_stalled` |
//! | [`absolute`](Timeouts::absolute) | none | at the call | with the response body | `deadline_exceeded` |
//! | [`client_idle`](Timeouts::client_idle) | 60 s | when the client has taken a frame | when it takes the next | `client_closed` |
//!
//! | phase | cause |
//! |---|---|
//! | waiting for a pooled connection | `queue_timeout` |
//! | resolving, connecting, TLS | `dns_timeout`, `connect_timeout`, `tls_timeout`: nothing was sent |
//! | sending, and the upstream does not take it | `write_timeout` |
//! | sending, and the client does not go on | `upload_stalled`, 408: the client's own fault |
//! | sent, no byte of an answer | `first_byte_timeout` |
//! | in the head, and bytes keep coming | `head_timeout` |
//!
//! The phases are told by a client of this crate ([`ReverseProxy`], or a
//! [`Connector`] while it connects); of any other service only the request body is seen, and the failure's
//! evidence says `inferred`. An upload is judged by two looks half a limit apart, so that no clock is read at each
//! frame: one that moves is never late.
//!
//! The time that a caller waits for `poll_ready` is under no limit, as no call has begun.
//!
//! ```
//! use std::time::Duration;
//! use http::{Request, Response};
//! use http_body_util::Full;
//! use tower::{Layer, ServiceExt, service_fn};
//! use tower_upstream::{BadGatewayCause, timeout::{TimeoutLayer, Timeouts}};
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() {
//! let stuck = service_fn(|_: Request<()>| std::future::pending::<Result<Response<Full<bytes::Bytes>>, std::io::Error>>());
//! let layer = TimeoutLayer::new(Timeouts::new().head(Duration::from_secs(2))).untouched();
//! let answer = layer.layer(stuck).oneshot(Request::new(())).await.unwrap();
//! assert_eq!(answer.status(), 504);
//! assert_eq!(BadGatewayCause::of(&answer), Some(BadGatewayCause::FirstByteTimeout));
//! # }
//! ```
//!
//! [`ReverseProxy`]: https://docs.rs/tower-upstream/latest/tower_upstream/client/struct.ReverseProxy.html
//! [`Connector`]: https://docs.rs/tower-upstream/latest/tower_upstream/client/struct.Connector.html

pub mod alignment;
mod enforced;
mod extras;
mod learned;
mod learner;
mod pool_watch;
mod timeouts;
mod watch;

use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use tower_layer::Layer;

use self::extras::Extras;
use self::learner::Learner;
use self::pool_watch::PoolWatch;
use crate::deadline::Deadlines;
use crate::engine::{Engine, Part, Shared, Tracked, Untouched, Watched};

pub use self::alignment::{Misaligned, Report, Topology};
pub use self::enforced::{Enforced, Watch};
pub use self::learned::{Estimate, LearnedLimit, LearnedLimits, Learning, TooManyRoutes};
pub use self::learner::RequestHead;
pub use self::timeouts::Timeouts;
pub use crate::measure::Quantile;

/// The service of [`TimeoutLayer`].
pub type Timeout<S, W = Watched, P = ()> = Engine<S, P, Enforced, W>;

/// The response body of [`TimeoutLayer`].
pub type TimeoutBody<B, P = ()> = Tracked<B, P, Enforced>;

/// Limits the time of an exchange; see the [module](self).
#[derive(Clone, Debug)]
#[must_use]
pub struct TimeoutLayer<W = Watched, P = ()> {
    shared: Arc<Shared<P, Enforced>>,
    border: PhantomData<fn() -> W>,
}

impl TimeoutLayer {
    /// Enforces these limits. The inner service gets its request body as [`Upload`](crate::body::Upload).
    pub fn new(timeouts: Timeouts) -> Self {
        let limits = Enforced { timeouts, extras: None };
        Self { shared: Arc::new(Shared::new((), limits)), border: PhantomData }
    }
}

impl<W, P: Part + Clone> TimeoutLayer<W, P> {
    pub(crate) fn limits(&self) -> &Enforced {
        &self.shared.limits
    }

    /// The same with other limits.
    pub(crate) fn with(mut self, timeouts: Timeouts) -> Self {
        Arc::make_mut(&mut self.shared).limits.timeouts = timeouts;
        self
    }

    /// Hands the request body on as it is, for a service that takes one type of body only.
    ///
    /// The limit on the head then begins at the call, unless the service watches the upload itself, as
    /// `ReverseProxy` does.
    pub fn untouched(self) -> TimeoutLayer<Untouched, P> {
        TimeoutLayer { shared: self.shared, border: PhantomData }
    }

    /// Takes another layer's part into this one: one future, one timer and one body under watch for both.
    ///
    /// The same as that layer around this one, for less: answers and requests are not moved once more. It sees
    /// the limits of this layer as what they are, failures of the call.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tower_upstream::breaker::CircuitBreakerLayer;
    /// use tower_upstream::timeout::{TimeoutLayer, Timeouts};
    ///
    /// let breaker = CircuitBreakerLayer::new("payments");
    /// let attempt = TimeoutLayer::new(Timeouts::new().head(Duration::from_secs(5))).part(breaker.part());
    /// # let _: TimeoutLayer<_, _> = attempt;
    /// ```
    pub fn part<Q: Part + Clone>(self, part: Q) -> TimeoutLayer<W, (Q, P)> {
        let Shared { parts, limits, .. } = Arc::unwrap_or_clone(self.shared);
        TimeoutLayer { shared: Arc::new(Shared::new((part, parts), limits)), border: PhantomData }
    }

    fn extras(&mut self) -> &mut Extras {
        let extras = &mut Arc::make_mut(&mut self.shared).limits.extras;
        Arc::make_mut(extras.get_or_insert_with(Arc::default))
    }

    /// Reads the caller's deadline, and writes the one that goes out (default: neither).
    ///
    /// A deadline from a header passes here so much earlier that our 504 reaches the caller in time: 5 % of
    /// what is left, 50 ms at least, a quarter at most. What goes out is what is left then, less the margin of
    /// [`Deadlines`].
    pub fn deadlines(mut self, deadlines: Deadlines) -> Self {
        self.extras().deadlines = Some(deadlines);
        self
    }

    /// Says how long the pool of the client inside keeps idle connections (default: not known).
    ///
    /// For clients that cannot be told, as hyper-util's (90 s unless it was set). When an upstream says in `Keep-Alive` that it
    /// keeps them no longer, or a reused connection proves to be dead, one `tracing` warning names the
    /// [finding](alignment::FindingId) and what to set. [`ReverseProxy`] needs none of it: its own pool learns.
    ///
    /// [`ReverseProxy`]: https://docs.rs/tower-upstream/latest/tower_upstream/client/struct.ReverseProxy.html
    pub fn pool_idle(mut self, limit: Duration) -> Self {
        self.extras().pool = Some(Arc::new(PoolWatch::new(limit)));
        self
    }

    /// How long that is, where it was said.
    pub(crate) fn pool(&self) -> Option<Duration> {
        Some(self.limits().extras.as_ref()?.pool.as_ref()?.idle())
    }

    /// Learns how long the response heads of these routes take (default: not at all).
    ///
    /// `route` names a request's route: one of those that `limits` were made for, or it teaches nothing. The
    /// limits only report until they are told to [enforce](Learning::Enforce). Exchanges that are
    /// [unbounded](Timeouts::unbounded) are no samples, nor is an answer that came before its upload was through.
    ///
    /// ```
    /// use std::{sync::Arc, time::Duration};
    /// use axum::extract::MatchedPath;
    /// use tower_upstream::timeout::{LearnedLimits, TimeoutLayer, Timeouts};
    ///
    /// let limits = Arc::new(LearnedLimits::new(Duration::from_secs(10), ["/cart/{id}", "/search"]).unwrap());
    /// let layer = TimeoutLayer::new(Timeouts::new())
    ///     .learned(limits.clone(), |head| head.extensions.get().map(MatchedPath::as_str));
    /// // and now and then, for whoever looks at it
    /// for (route, limit) in limits.iter() {
    ///     println!("{route}: {:?}", limit.snapshot(tokio::time::Instant::now()));
    /// }
    /// ```
    pub fn learned(
        mut self,
        limits: Arc<LearnedLimits>,
        route: impl for<'a> Fn(RequestHead<'a>) -> Option<&'a str> + Send + Sync + 'static,
    ) -> Self {
        self.extras().learner = Some(Learner::new(limits, route));
        self
    }
}

impl<S, W, P> Layer<S> for TimeoutLayer<W, P> {
    type Service = Timeout<S, W, P>;

    fn layer(&self, inner: S) -> Timeout<S, W, P> {
        Engine::new(inner, self.shared.clone())
    }
}
