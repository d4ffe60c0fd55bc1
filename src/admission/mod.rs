//! Admission control on the upstream's own side: rejects requests whose response would miss their deadline.
//!
//! An overloaded app queues requests, and responses that leave a long queue reach clients that have given up: work is
//! wasted exactly when there is too much of it, and retries keep it so after the cause is gone. [`AdmissionLayer`] stands in
//! front of an axum app (or any service), measures how long a response takes, and immediately refuses requests whose
//! response would come too late, while another instance may still serve them.
//!
//! | refused when | response | cause |
//! |---|---|---|
//! | the deadline has passed on arrival | 504 | `deadline_exceeded` |
//! | the work ahead takes longer than the deadline leaves | 504 | `deadline_exceeded` |
//! | the cap of requests in flight is reached; there is no queue | 503 with `Retry-After` | `gateway_overload` |
//!
//! The replay safety of each is `not_sent` by `local_refusal`. Only the 503 has `Retry-After`, because a client whose
//! deadline has elapsed has no use for it: the estimated drain time of the current load, 1 s to 60 s. An inner service that was ready keeps its place, such as a
//! permit of tower's concurrency limit, until it is called again or dropped: without a clone it cannot give it back.
//! [`UpstreamLayer`](crate::UpstreamLayer) does.
//!
//! | setting | default |
//! |---|---|
//! | cap of requests in flight | given to [`new`](AdmissionLayer::new) |
//! | [`concurrency`](AdmissionLayer::concurrency): requests worked on at the same time | the number of cores |
//! | [`deadlines`](AdmissionLayer::deadlines): clients whose header fields are read | none; a [`Deadline`] in the extensions counts |
//! | [`unbounded`](AdmissionLayer::unbounded) | off: calls are expected to end |
//! | responses before the estimate counts | 16 |
//!
//! **The estimate.** A request is in flight from admission to the end of the response body, and the cap counts it so long. The
//! app works on it until the response head: that time is the sample, and then the request delays no others, however slowly its
//! client reads. An app that works while it sends the body looks faster than it is; there the cap has to suffice. The
//! layer keeps an average of the service time: the sample without the wait for requests ahead, at most four times the
//! average, so that a few slow routes or uploads among many requests say little. With `n` worked on at the
//! same time and this request the `p`th of those without a head, it is admitted if the deadline leaves `service * (2 + 4/3 * (p - n) / n)`:
//! more than the mean, because half of all responses take longer than that. While a worker is free (`p <= n`) only an elapsed
//! deadline refuses, and after a second without an admission the next request is admitted: an estimate cannot
//! outlive its validity. A client that disconnects at its deadline can raise the average; any other disconnect is ignored.
//!
//! In a simulation with 8 workers that continue when a client disconnects, exponential service times of 40 ms, deadlines of
//! 500 ms and twice the load (`tests/layers/admission.rs`, four seeds), 3 to 6 % of the workers' capacity reaches a client without
//! the layer and 94 to 98 % with it, and 97 % of the admitted requests are answered in time.
//!
//! **Concurrency.** Set [`concurrency`](AdmissionLayer::concurrency) if an app mostly waits for others, for example to the size
//! of its connection pool. With the default, such an app looks slower than it is when a burst follows an idle period;
//! the samples of about one service time correct that.
//!
//! **Without deadlines** only the cap refuses. **Deadlines by the client's clock** ([`DeadlineHeader::absolute`]) refuse at most
//! a fifth of those requests within ten seconds, so that a wrong clock cannot shut an app down.
//!
//! Work that outlives its handler (`tokio::spawn`, `spawn_blocking`) is not counted once the client has disconnected: end it at
//! the [`Deadline`], which [`expose`](crate::deadline::DeadlinePropagation::expose) passes to handlers.
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

use http::{Request, StatusCode};
use tokio::time::Instant;
use tower_layer::Layer;

use self::controller::{AdmissionController, RejectReason};
use crate::cause::{BadGatewayCause, Detail, Failure, Phase, RetryStop};
use crate::deadline::{Deadline, DeadlinePropagation};
use crate::exchange::{
    BodyTimeouts, CLIENT_IDLE, CallContext, CallKind, CancelReason, Component, Outcome, Rejection, TimeoutPolicy,
};
use crate::exchange::{Config, PassErrors, SendOnce, middleware_spec, passing_middleware};
use crate::stats::reachable;

use self::controller::Permit;
pub use self::controller::RejectionCounts;

passing_middleware! {
    /// The service of [`AdmissionLayer`].
    Admission,
    /// The future of [`Admission`].
    AdmissionFuture,
    /// The response body of [`Admission`]: the inner service's, or that of a rejection.
    ///
    /// Its error is the inner body's own, boxed, or a [`Failure`] where a limit has passed.
    AdmissionBody,
    AdmissionSpec
}

middleware_spec! {
    /// Admission control alone.
    AdmissionSpec,
    per_call = AdmissionComponent, per_attempt = (), timeouts = DeadlineOnly, requests = SendOnce, errors = PassErrors
}

/// Rejects requests whose response would come too late; see the [module](self).
///
/// All clones share one count, and so do the routes and connections that axum applies a layer to: create one, and clone
/// it where routes need different settings.
#[derive(Clone, Debug)]
#[must_use]
pub struct AdmissionLayer {
    config: Arc<Config<AdmissionSpec>>,
}

impl AdmissionLayer {
    /// Sets the cap of requests in flight; 0 counts as 1.
    ///
    /// It bounds memory, and the wait of requests without a deadline. A good value is the number of requests that the app can
    /// complete within the longest time a client waits.
    pub fn new(in_flight: usize) -> Self {
        let at_once = std::thread::available_parallelism().map_or(1, usize::from);
        let parts = AdmissionComponent {
            controller: Arc::new(AdmissionController::new(in_flight)),
            concurrency: count(at_once),
            rejections: rejection_records(),
        };
        Self { config: Arc::new(Config::new(parts, (), DeadlineOnly::default(), SendOnce, PassErrors)) }
    }

    /// Sets how many requests the app works on at the same time (default: the number of cores); 0 counts as 1.
    ///
    /// Too low a value refuses requests of a burst that could be served; too high a value admits the first requests of a slow
    /// period that cannot be served in time.
    pub fn concurrency(mut self, at_once: usize) -> Self {
        Arc::make_mut(&mut self.config).per_call.concurrency = count(at_once);
        self
    }

    /// Reads deadlines from header fields (default: only from the request's extensions).
    pub fn deadlines(mut self, deadlines: DeadlinePropagation) -> Self {
        Arc::make_mut(&mut self.config).timeouts.deadlines = Some(Arc::new(deadlines));
        self
    }

    /// Declares that calls need not end: event streams, WebSocket, gRPC streams.
    ///
    /// Such a call counts toward the cap, does not delay others, and is not a sample.
    pub fn unbounded(mut self) -> Self {
        Arc::make_mut(&mut self.config).timeouts.kind = CallKind::Unbounded;
        self
    }

    /// Limits how long a client may leave a response body unread (default 60 s; `None`: no limit).
    ///
    /// Then the request no longer counts and the body ends with an error, as described for
    /// [`Timeouts::client_idle`](crate::timeout::Timeouts::client_idle).
    pub fn client_idle(mut self, limit: impl Into<Option<Duration>>) -> Self {
        Arc::make_mut(&mut self.config).timeouts.client_idle = limit.into().map(reachable);
        self
    }

    /// Requests in flight.
    pub fn in_flight(&self) -> usize {
        self.controller().in_flight() as usize
    }

    /// The average service time; `None` before the first 16 responses.
    pub fn service_time(&self) -> Option<Duration> {
        self.controller().service_time()
    }

    /// Requests refused since the layer was created, by reason.
    pub fn rejections(&self) -> RejectionCounts {
        self.controller().rejections()
    }

    fn controller(&self) -> &AdmissionController {
        &self.config.per_call.controller
    }
}

impl<S> Layer<S> for AdmissionLayer {
    type Service = Admission<S>;

    fn layer(&self, inner: S) -> Admission<S> {
        Admission::new(inner, self.config.clone())
    }
}

/// The component of [`AdmissionLayer`].
#[derive(Clone, Debug)]
pub(crate) struct AdmissionComponent {
    controller: Arc<AdmissionController>,
    concurrency: u32,
    rejections: [Failure; 3],
}

impl Component for AdmissionComponent {
    type Permit = Permit;

    #[inline]
    fn admit(&self, call: &CallContext) -> Result<Permit, Rejection> {
        self.controller.admit(call, self.concurrency).map_err(|no| self.rejection(no))
    }

    fn on_response(&self, permit: &mut Permit, call: &CallContext, outcome: &Outcome) {
        if outcome.status() != Some(StatusCode::SWITCHING_PROTOCOLS) {
            self.learn(permit, call, outcome);
        }
    }

    fn complete(&self, mut permit: Permit, call: &CallContext, outcome: &Outcome) {
        // an error of the inner service has no head
        if outcome.status().is_none() {
            self.learn(&mut permit, call, outcome);
        }
        self.controller.release(&permit);
    }

    fn cancel(&self, permit: Permit, call: &CallContext, why: CancelReason) {
        match why {
            CancelReason::Rejected(_) => self.controller.release(&permit),
            _ => self.controller.cancel(&permit, call.deadline, call.now, Instant::now(), self.concurrency),
        }
    }
}

impl AdmissionComponent {
    fn learn(&self, permit: &mut Permit, call: &CallContext, outcome: &Outcome) {
        self.controller.respond(permit, outcome.now().saturating_duration_since(call.now), self.concurrency);
    }

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

/// The records of the three rejections, shared by all calls: a rejection has to be cheap.
fn rejection_records() -> [Failure; 3] {
    let rejection = |cause, text| {
        let failure = Failure::builder(cause).phase(Phase::Gateway).detail(Detail::Text(text));
        failure.refusal().retry_stop(RetryStop::LocalRefusal).build()
    };
    [
        rejection(BadGatewayCause::DeadlineExceeded, "the deadline had elapsed on arrival"),
        rejection(BadGatewayCause::DeadlineExceeded, "the requests ahead take longer than the deadline allows"),
        rejection(BadGatewayCause::GatewayOverload, "too many requests are in flight"),
    ]
}

fn count(at_once: usize) -> u32 {
    u32::try_from(at_once).unwrap_or(u32::MAX).max(1)
}

/// Sets no timer, only the call's deadline from the request.
#[derive(Clone, Debug)]
pub(crate) struct DeadlineOnly {
    deadlines: Option<Arc<DeadlinePropagation>>,
    kind: CallKind,
    client_idle: Option<Duration>,
}

impl Default for DeadlineOnly {
    fn default() -> Self {
        Self { deadlines: None, kind: CallKind::default(), client_idle: Some(CLIENT_IDLE) }
    }
}

impl TimeoutPolicy for DeadlineOnly {
    type State = ();

    #[inline]
    fn on_request<B>(&self, call: &mut CallContext, request: &mut Request<B>) {
        call.kind = self.kind;
        call.deadline = Deadline::of(request.extensions());
        if let Some(deadlines) = &self.deadlines {
            let read = deadlines.extract(request.headers(), request.extensions(), call.now);
            call.deadline = Deadline::min(call.deadline, read);
            deadlines.inject(request, call.deadline, call.now);
        }
    }

    fn body_timeouts(&self, _: &CallContext) -> BodyTimeouts {
        BodyTimeouts { client_idle: self.client_idle, ..BodyTimeouts::default() }
    }
}
