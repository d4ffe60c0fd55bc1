//! The stack under test: the one file that knows how it is composed.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response};
use http_body::Body;
use tonic::Code;
use tower::layer::layer_fn;
use tower::{BoxError, Layer, Service};
use tower_upstream::body::{ReplayBody, TrackedUpload};
use tower_upstream::breaker::{BreakerPolicy, CircuitSnapshot};
use tower_upstream::deadline::DeadlinePropagation;
use tower_upstream::error_page::ErrorPage;
use tower_upstream::event::{Event, Observer};
use tower_upstream::timeout::Timeouts;
use tower_upstream::{BadGatewayCause as Cause, Failure, UpstreamLayer};

/// What the service inside gets as its request's body.
pub type Sent<B> = TrackedUpload<ReplayBody<B>>;

/// An answer of the stack; its body is `impl Body`.
pub trait Answering<B>:
    Service<Request<B>, Response = Response<Self::Body>, Error = Infallible, Future: Send> + Clone + Send + Sync + 'static
{
    type Body: Body<Data = Bytes, Error: Into<BoxError> + Send + Sync> + Default + Send + Unpin + 'static;
}

impl<S, B, R> Answering<B> for S
where
    S: Service<Request<B>, Response = Response<R>, Error = Infallible, Future: Send> + Clone + Send + Sync + 'static,
    R: Body<Data = Bytes, Error: Into<BoxError> + Send + Sync> + Default + Send + Unpin + 'static,
{
    type Body = R;
}

/// The same, called by hyper's `Service`.
pub trait AnsweringByHyper<B>:
    hyper::service::Service<Request<B>, Response = Response<Self::Body>, Error = Infallible, Future: Send>
    + Clone
    + Send
    + 'static
{
    type Body: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static;
}

impl<S, B, R> AnsweringByHyper<B> for S
where
    S: hyper::service::Service<Request<B>, Response = Response<R>, Error = Infallible, Future: Send>
        + Clone
        + Send
        + 'static,
    R: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    type Body = R;
}

/// The stack before one upstream: every service made of it shares one state.
#[derive(Clone)]
pub struct Stack {
    layer: UpstreamLayer,
    seen: Seen,
}

impl Stack {
    /// What a gRPC client is told of an upstream that is down, or left alone.
    pub const DOWN: Code = Code::Unavailable;
    /// What a gRPC client is told when its deadline has passed.
    pub const LATE: Code = Code::DeadlineExceeded;

    pub fn new(name: &str) -> Self {
        // a minute, so that nothing here happens by the pause's end
        Self::made(name, Duration::from_secs(60))
    }

    fn made(name: &str, pause: Duration) -> Self {
        let seen = Seen::default();
        let times = Timeouts::new().response_head(Duration::from_secs(3)).body_idle(Duration::from_secs(3));
        let layer = UpstreamLayer::builder(name)
            .timeouts(move |_| times.total(Duration::from_secs(20)))
            .deadlines(trusting())
            .circuit(move |_| BreakerPolicy::new().open_duration(pause).max_open_duration(Duration::from_secs(60)))
            .proxy_status(name)
            .error_page(ErrorPage::new())
            .observer(seen.clone())
            .build()
            .unwrap();
        Self { layer, seen }
    }

    /// The circuit lets a probe pass so much later.
    pub fn pause(self, pause: Duration) -> Self {
        Self::made(self.layer.handle().name(), pause)
    }

    /// Around a service that may err, or not.
    pub fn around<S, B, R>(&self, inner: S) -> impl Answering<B> + use<S, B, R>
    where
        S: Service<Request<Sent<B>>, Response = Response<R>> + Clone + Send + Sync + 'static,
        S::Error: Into<BoxError> + 'static,
        S::Future: Send + 'static,
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
        R: Body<Data = Bytes, Error: Into<BoxError>> + Send + Unpin + 'static,
    {
        self.layer.layer(inner)
    }

    /// The same, for a server that calls it by hyper's `Service`.
    pub fn around_hyper<S, B, R>(&self, inner: S) -> impl AnsweringByHyper<B> + use<S, B, R>
    where
        S: Service<Request<Sent<B>>, Response = Response<R>> + Clone + Send + Sync + 'static,
        S::Error: Into<BoxError> + 'static,
        S::Future: Send + 'static,
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
        R: Body<Data = Bytes, Error: Into<BoxError>> + Send + Unpin + 'static,
    {
        self.layer.layer(inner)
    }

    /// As a layer for axum's `Router`, which makes services of it for each route and connection.
    pub fn for_routes(
        &self,
    ) -> impl Layer<axum::routing::Route, Service = impl Answering<axum::body::Body>> + Clone + Send + Sync + 'static
    {
        let stack = self.clone();
        layer_fn(move |route| stack.around::<axum::routing::Route, _, _>(route))
    }

    /// As a layer for tonic's `Server`.
    pub fn for_tonic(
        &self,
    ) -> impl Layer<tonic::service::Routes, Service = impl Answering<tonic::body::Body>> + Clone + Send + Sync + 'static
    {
        let stack = self.clone();
        layer_fn(move |routes| stack.around::<tonic::service::Routes, _, _>(routes))
    }

    /// What the circuit shows.
    pub fn circuit(&self) -> CircuitSnapshot {
        self.layer.handle().snapshot(tokio::time::Instant::now()).circuit.unwrap()
    }

    /// Calls that hold a slot.
    pub fn in_flight(&self) -> u64 {
        self.layer.handle().in_flight()
    }

    /// What was reported.
    pub fn seen(&self) -> &Seen {
        &self.seen
    }
}

fn trusting() -> DeadlinePropagation {
    DeadlinePropagation::new().trust_everyone()
}

/// The failures that were reported, each with its request's id.
#[derive(Clone, Default)]
pub struct Seen(Arc<Mutex<Vec<Reported>>>);

type Reported = (Failure, Option<HeaderValue>);

impl Observer for Seen {
    fn on_event(&self, event: &Event<'_>) {
        if let Event::Failed(exchange, failure) = event {
            self.0.lock().unwrap().push(((*failure).clone(), exchange.request_id.clone()));
        }
    }
}

impl Seen {
    /// The causes in the order in which they were reported, each attempt's and the call's.
    pub fn causes(&self) -> Vec<Cause> {
        self.0.lock().unwrap().iter().map(|(failure, _)| failure.cause()).collect()
    }

    /// The ids of the requests that failed.
    pub fn ids(&self) -> Vec<String> {
        let id = |id: &Option<HeaderValue>| id.as_ref().unwrap().to_str().unwrap().to_owned();
        self.0.lock().unwrap().iter().map(|(_, seen)| id(seen)).collect()
    }
}
