//! Refuses at once what cannot be answered in time, on the upstream's own side.
//!
//! An app that is asked for more than it can do queues, and what comes out of a long queue is answered to
//! callers who have left: all work is wasted just when there is too much of it. Retries keep it so after the cause is
//! gone. [`AdmissionLayer`] stands in front of an axum app (or any service), knows from its own measurements how long an
//! answer takes, and answers those who would wait in vain at once, while another instance may still serve them.
//!
//! | refused when | answer | cause |
//! |---|---|---|
//! | the deadline has passed on arrival | 504 | `deadline_exceeded` |
//! | the work ahead takes longer than the deadline leaves | 504 | `deadline_exceeded` |
//! | the cap of requests in flight is reached; there is no queue | 503 with `Retry-After` | `gateway_overload` |
//!
//! Each says `not_sent`, `local_refusal`: nothing was processed. `Retry-After` is on 503 only: to come back later is
//! no use to a caller whose time is up. It is the time in which all that is in flight is worked off, from 1 s to 60 s.
//!
//! | setting | default |
//! |---|---|
//! | cap of requests in flight | given to [`new`](AdmissionLayer::new) |
//! | [`concurrency`](AdmissionLayer::concurrency): worked on at once | the number of cores |
//! | [`deadlines`](AdmissionLayer::deadlines): whose header fields are read | nobody's; a [`Deadline`] in the extensions counts |
//! | [`unbounded`](AdmissionLayer::unbounded) | no: exchanges end |
//! | answers until the estimate counts | 16 |
//!
//! **The estimate.** A place is held from admission to the end of the response body, and that time is the sample. An
//! average is kept of the service time, that is the sample without the wait for what was ahead of it. With `n` worked on
//! at once and this request the `p`th in flight, it is let in if the deadline leaves `service * (2 + 4/3 * (p - n) / n)`:
//! more than the mean, as half of all answers take longer than that. As long as a worker is free (`p <= n`) only a passed
//! deadline refuses, and after a second in which nobody was let in the next one is: so an estimate never outlives its
//! truth. A caller that left at its deadline can raise the average, any other that left proves nothing.
//!
//! Simulated with 8 workers that go on when a caller leaves, exponential service times of 40 ms, deadlines of 500 ms and
//! twice the load (`tests/admission.rs`, four seeds): without the layer 3 to 6 % of what the workers can do reaches a
//! caller, with it 94 to 98 %, and 97 % of what is begun comes in time.
//!
//! **How much at once.** Set [`concurrency`](AdmissionLayer::concurrency) where an app mostly waits for
//! others (to the size of its connection pool, say). With the default such an app looks slower than it is when it wakes
//! from idleness to a burst; the samples of about one service time put it right.
//!
//! **Without deadlines** only the cap refuses. **By a caller's clock** ([`DeadlineHeader::absolute`]) at most a fifth of those requests
//! is refused in ten seconds, so that a wrong clock cannot shut an app down.
//!
//! What outlives its handler (`tokio::spawn`, `spawn_blocking`) is not counted once the caller has left: let
//! it end at the [`Deadline`], which [`expose`](crate::deadline::DeadlinePropagation::expose) puts before handlers.
//!
//! ```
//! use axum::{Router, body::Body, routing::get};
//! use http::Request;
//! use tower::ServiceExt;
//! use tower_upstream::admission::AdmissionLayer;
//! use tower_upstream::deadline::{Deadline, DeadlinePropagation};
//! use tower_upstream::{BadGatewayCause, Failure};
//!
//! # async fn query() -> &'static str { "42" }
//! async fn answer(deadline: Option<Deadline>) -> Result<&'static str, Failure> {
//!     match deadline {
//!         Some(deadline) => Ok(deadline.bound(query()).await?),
//!         None => Ok(query().await),
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! // only our gateways reach this app
//! let deadlines = DeadlinePropagation::new().trust_everyone().expose();
//! let admission = AdmissionLayer::new(200).concurrency(8).deadlines(deadlines);
//! let app = Router::new().route("/", get(answer)).layer(admission.clone());
//!
//! let request = |left: &str| Request::get("/").header("x-request-timeout-ms", left).body(Body::empty()).unwrap();
//! assert_eq!(app.clone().oneshot(request("500")).await.unwrap().status(), 200);
//! let refused = app.oneshot(request("0")).await.unwrap();
//! assert_eq!(refused.status(), 504);
//! assert_eq!(BadGatewayCause::of(&refused), Some(BadGatewayCause::DeadlineExceeded));
//! assert_eq!((admission.in_flight(), admission.rejections().expired), (0, 1));
//! # }
//! ```
//!
//! [`DeadlineHeader::absolute`]: crate::deadline::DeadlineHeader::absolute
//! [`Deadline`]: crate::deadline::Deadline

mod clock_skew_guard;
mod controller;
mod in_flight;
mod service_time;

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use tokio::time::Instant;
use tower_layer::Layer;

use self::controller::{AdmissionController, RejectReason};
use crate::cause::{BadGatewayCause, Detail, Failure, Phase, RetryStop};
use crate::deadline::{DeadlineOnly, DeadlinePropagation};
use crate::exchange::{CallContext, CallKind, CancelReason, Component, Outcome, Rejection};
use crate::exchange::{Config, Once, PassOn, middleware_spec, passing_middleware};
use crate::stats::reachable;

pub use self::controller::{Permit, RejectionCounts};

passing_middleware! {
    /// The service of [`AdmissionLayer`].
    Admitted,
    /// The future of [`Admitted`].
    AdmissionFuture,
    /// The response body of [`Admitted`]: the inner service's, or that of a rejection.
    ///
    /// Its error is the inner body's own, boxed, or a [`Failure`] where a limit has passed.
    AdmissionBody,
    AdmissionSpec
}

middleware_spec! {
    /// Admission control alone.
    AdmissionSpec,
    per_call = AdmissionComponent, per_attempt = (), timeouts = DeadlineOnly, requests = Once, errors = PassOn
}

/// Refuses what cannot be answered in time; see the [module](self).
///
/// All clones share one count, and so do the routes and connections that axum applies a layer to: make one, and clone
/// it where routes need settings of their own.
#[derive(Clone, Debug)]
#[must_use]
pub struct AdmissionLayer {
    config: Arc<Config<AdmissionSpec>>,
}

impl AdmissionLayer {
    /// At most so many requests in flight; 0 counts as 1.
    ///
    /// It bounds memory, and what is ahead of requests that say no deadline. A good value is what can be answered in the
    /// longest time that anybody waits.
    pub fn new(in_flight: usize) -> Self {
        let at_once = std::thread::available_parallelism().map_or(1, usize::from);
        let parts = AdmissionComponent {
            controller: Arc::new(AdmissionController::new(in_flight)),
            concurrency: count(at_once),
            rejections: rejection_records(),
        };
        Self { config: Arc::new(Config::new(parts, (), DeadlineOnly::default(), Once, PassOn)) }
    }

    /// How many requests the app works on at once (default: the number of cores); 0 counts as 1.
    ///
    /// Said too low, bursts after idleness are refused that could be served; said too high, the first of a slow time are
    /// let in that cannot be.
    pub fn concurrency(mut self, at_once: usize) -> Self {
        Arc::make_mut(&mut self.config).per_call.concurrency = count(at_once);
        self
    }

    /// Reads deadlines from header fields (default: only from the request's extensions).
    pub fn deadlines(mut self, deadlines: DeadlinePropagation) -> Self {
        Arc::make_mut(&mut self.config).timeouts.deadlines = Some(Arc::new(deadlines));
        self
    }

    /// Says that exchanges need not end: event streams, WebSocket, gRPC streams.
    ///
    /// Such an exchange holds its place under the cap, is ahead of nobody, and teaches nothing about others.
    pub fn unbounded(mut self) -> Self {
        Arc::make_mut(&mut self.config).timeouts.kind = CallKind::Unbounded;
        self
    }

    /// Limits how long a client may leave a response body unread (default 60 s; `None`: no limit).
    ///
    /// The place is given back then, and the body ends with an error, as
    /// [`Timeouts::client_idle`](crate::timeout::Timeouts::client_idle) says; that it took so long says nothing about others.
    pub fn client_idle(mut self, limit: impl Into<Option<Duration>>) -> Self {
        Arc::make_mut(&mut self.config).timeouts.client_idle = limit.into().map(reachable);
        self
    }

    /// How many requests are in flight.
    pub fn in_flight(&self) -> usize {
        self.controller().in_flight() as usize
    }

    /// The service time as it was learned; `None` before there are 16 answers.
    pub fn service_time(&self) -> Option<Duration> {
        self.controller().service_time()
    }

    /// How many requests were refused since the layer was made.
    pub fn rejections(&self) -> RejectionCounts {
        self.controller().rejections()
    }

    fn controller(&self) -> &AdmissionController {
        &self.config.per_call.controller
    }
}

impl<S> Layer<S> for AdmissionLayer {
    type Service = Admitted<S>;

    fn layer(&self, inner: S) -> Admitted<S> {
        Admitted::new(inner, self.config.clone())
    }
}

/// What [`AdmissionLayer`] adds to a call.
#[derive(Clone, Debug)]
pub(crate) struct AdmissionComponent {
    controller: Arc<AdmissionController>,
    concurrency: u32,
    rejections: [Failure; 3],
}

impl Component for AdmissionComponent {
    type Ticket = Permit;

    #[inline]
    fn admit(&self, call: &CallContext) -> Result<Permit, Rejection> {
        self.controller.admit(call, self.concurrency).map_err(|no| self.rejection(no))
    }

    fn settle(&self, ticket: Permit, call: &CallContext, outcome: &Outcome) {
        if outcome.status() == Some(StatusCode::SWITCHING_PROTOCOLS) {
            return self.controller.release(&ticket);
        }
        self.controller.complete(&ticket, outcome.now().saturating_duration_since(call.now), self.concurrency);
    }

    fn abandon(&self, ticket: Permit, call: &CallContext, why: CancelReason) {
        match why {
            // how long a client takes to read says nothing about an answer
            CancelReason::Rejected(_) | CancelReason::TimedOut(BadGatewayCause::ClientClosed) => {
                self.controller.release(&ticket);
            }
            _ => self.controller.cancel(&ticket, call.deadline, call.now, Instant::now(), self.concurrency),
        }
    }
}

impl AdmissionComponent {
    #[cold]
    fn rejection(&self, reason: RejectReason) -> Rejection {
        let [passed, late, full] = &self.rejections;
        match reason {
            RejectReason::Expired => Rejection::new(passed.clone()),
            RejectReason::TooLate => Rejection::new(late.clone()),
            RejectReason::Overloaded(after) => Rejection::new(full.clone()).retry_after(after),
        }
    }
}

/// The records of the three refusals, one each for all calls: a refusal has to be cheap.
fn rejection_records() -> [Failure; 3] {
    let refusal = |cause, text| {
        let failure = Failure::builder(cause).phase(Phase::Gateway).detail(Detail::Text(text));
        failure.refusal().retry_stop(RetryStop::LocalRefusal).build()
    };
    [
        refusal(BadGatewayCause::DeadlineExceeded, "the deadline had passed on arrival"),
        refusal(BadGatewayCause::DeadlineExceeded, "too much is ahead for the deadline"),
        refusal(BadGatewayCause::GatewayOverload, "too many requests are in flight"),
    ]
}

fn count(at_once: usize) -> u32 {
    u32::try_from(at_once).unwrap_or(u32::MAX).max(1)
}
