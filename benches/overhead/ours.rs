//! This crate's layers, each alone and in the recommended order.

use std::convert::Infallible;
use std::time::Duration;

use http::{Request, Response};
use tower::{Layer, ServiceBuilder};
use tower_service::Service;
use tower_upstream::admission::AdmissionLayer;
use tower_upstream::breaker::{BreakerPolicy, CircuitBreakerLayer};
use tower_upstream::limit::LimitLayer;
use tower_upstream::retry::{RetryLayer, RetryOverride, RetryPolicy};
use tower_upstream::timeout::{TimeoutLayer, Timeouts};
use tower_upstream::{BadGatewayCause, ClassifyLayer, Failure, UpstreamLayer};

use crate::job;
use crate::row::Row;
use crate::upstream::{Body, Down, IsDown, Upstream};

const WHO: &str = "tower-upstream";
const WHOLE: &str = "`UpstreamLayer`";
const LIMIT: Duration = Duration::from_secs(30);
const IN_FLIGHT: u32 = 200;
/// Longer than any run.
const PAUSE: Duration = Duration::from_secs(3600);

pub(crate) fn rows() -> Vec<Row> {
    let mut rows = layers();
    rows.extend(stack());
    rows.extend(whole());
    rows
}

fn layers() -> Vec<Row> {
    vec![
        Row::new(WHO, &job::TIMEOUT, timeout),
        Row::new(WHO, &job::TIMEOUT_PENDING, timeout),
        Row::new(WHO, &job::BREAKER, |upstream: Bare| breaker().layer(upstream)),
        Row::new(WHO, &job::BREAKER_OPEN, |upstream: Bare| breaker().layer(upstream)),
        Row::new(WHO, &job::LIMIT, |upstream: Bare| LimitLayer::fixed(IN_FLIGHT).layer(upstream)),
        Row::new(WHO, &job::LIMIT_ADAPTIVE, |upstream: Bare| LimitLayer::new().layer(upstream)),
        Row::new(WHO, &job::RETRY, |upstream: Told| RetryLayer::new().layer(upstream)),
        Row::dressed(WHO, &job::RETRY_NOT, not_again, |upstream: Told| RetryLayer::new().layer(upstream)),
        Row::new(WHO, &job::RETRY_OFF, retry_off),
        Row::new(WHO, &job::ADMISSION, |upstream: Bare| AdmissionLayer::new(200).layer(upstream)),
        Row::new(WHO, &job::CLASSIFY, |upstream: Bare| ClassifyLayer::new().layer(upstream)),
    ]
}

/// The layers in a `ServiceBuilder`.
fn stack() -> Vec<Row> {
    vec![
        Row::new(WHO, &job::STACK, layered::<Infallible>),
        Row::new(WHO, &job::STACK_PENDING, layered::<Infallible>),
        Row::dressed(WHO, &job::STACK_POST, not_again, layered::<Infallible>),
        Row::dressed(WHO, &job::STACK_POST_PENDING, not_again, layered::<Infallible>),
        Row::dressed(WHO, &job::STACK_OPEN, not_again, layered::<Failure>),
    ]
}

/// The stack in one layer.
fn whole() -> Vec<Row> {
    vec![
        Row::new(WHOLE, &job::STACK, fused),
        Row::new(WHOLE, &job::STACK_PENDING, fused),
        Row::dressed(WHOLE, &job::STACK_POST, not_again, fused),
        Row::dressed(WHOLE, &job::STACK_POST_PENDING, not_again, fused),
        Row::dressed(WHOLE, &job::STACK_OPEN, not_again, fused),
    ]
}

type Bare = Upstream<IsDown>;
/// Retry stands around what cannot err.
type Told = Upstream<Infallible>;

impl Down for Failure {
    fn down() -> Result<Response<Body>, Self> {
        Err(Failure::new(BadGatewayCause::ConnectionRefused))
    }
}

/// What a request carries that must not be repeated.
fn not_again(request: &mut Request<Body>) {
    request.extensions_mut().insert(RetryOverride::none());
}

fn timeout(upstream: Bare) -> impl Service<Request<Body>, Response = Response<impl Sized>> {
    TimeoutLayer::new(Timeouts::new().head(LIMIT)).layer(upstream)
}

fn breaker() -> CircuitBreakerLayer {
    CircuitBreakerLayer::new("bench").policy(BreakerPolicy::new().pause(PAUSE).longest_pause(PAUSE))
}

fn retry_off(upstream: Told) -> impl Service<Request<Body>, Response = Response<impl Sized>> {
    RetryLayer::new().policy(RetryPolicy::new().attempts(1)).layer(upstream)
}

fn layered<E>(upstream: Upstream<E>) -> impl Service<Request<Body>, Response = Response<impl Sized>>
where
    E: Down + tower_upstream::retry::Told + Into<tower::BoxError> + 'static,
{
    ServiceBuilder::new()
        .layer(ClassifyLayer::new())
        .layer(LimitLayer::new())
        .layer(RetryLayer::new().total(LIMIT))
        .layer(breaker())
        .layer(TimeoutLayer::new(Timeouts::new().head(LIMIT)).untouched())
        .service(upstream)
}

fn fused(upstream: Bare) -> impl Service<Request<Body>, Response = Response<impl Sized>> {
    let circuit = BreakerPolicy::new().pause(PAUSE).longest_pause(PAUSE);
    let layer = UpstreamLayer::builder("bench").circuit(circuit).untouched().build().expect("it fits");
    layer.layer(upstream)
}
