//! This crate's layers, each alone and in the recommended order.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use tower::{Layer, ServiceBuilder};
use tower_service::Service;
use tower_upstream::admission::AdmissionLayer;
use tower_upstream::balance::{Balance, Member};
use tower_upstream::breaker::{BreakerPolicy, CircuitBreakerLayer, Ratio};
use tower_upstream::limit::ConcurrencyLimitLayer;

use tower_upstream::cause::{Evidence, Replay};
use tower_upstream::retry::{RetryBudget, RetryLayer, RetryOverride, RetryPolicy};
use tower_upstream::timeout::{TimeoutLayer, Timeouts};
use tower_upstream::{BadGatewayCause, ClassifyLayer, Failure, UpstreamLayer};

use crate::job;
use crate::row::Row;
use crate::upstream::{Body, Down, IsDown, Page, Upstream};

const WHO: &str = "tower-upstream";
const WHOLE: &str = "`UpstreamLayer`";
const LIMIT: Duration = Duration::from_secs(30);
const IN_FLIGHT: u32 = 200;
/// A timeout longer than any run.
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
        Row::new(WHO, &job::LIMIT, |upstream: Bare| ConcurrencyLimitLayer::fixed(IN_FLIGHT).layer(upstream)),
        Row::new(WHO, &job::LIMIT_ADAPTIVE, |upstream: Bare| ConcurrencyLimitLayer::adaptive().layer(upstream)),
        Row::new(WHO, &job::RETRY, |upstream: Told| RetryLayer::new().layer(upstream)),
        Row::dressed(WHO, &job::RETRY_NOT, not_again, |upstream: Told| RetryLayer::new().layer(upstream)),
        Row::new(WHO, &job::RETRY_OFF, retry_off),
        Row::new(WHO, &job::ADMISSION, |upstream: Bare| AdmissionLayer::new(200).layer(upstream)),
        Row::new(WHO, &job::CLASSIFY, |upstream: Bare| ClassifyLayer::new().layer(upstream)),
        Row::new(WHO, &job::POOL_1, pool::<1>),
        Row::new(WHO, &job::POOL_2, pool::<2>),
        Row::new(WHO, &job::POOL_100, pool::<100>),
        Row::new(WHO, &job::POOL_10000, pool::<10_000>),
    ]
}

/// The layers in a `ServiceBuilder`.
fn stack() -> Vec<Row> {
    vec![
        Row::new(WHO, &job::STACK, layered::<Infallible>),
        Row::new(WHO, &job::STACK_PENDING, layered::<Infallible>),
        Row::new(WHO, &job::STACK_LATE, layered::<Infallible>),
        Row::new(WHO, &job::STACK_REPEATED, layered_repeating),
        Row::dressed(WHO, &job::STACK_POST, not_again, layered::<Infallible>),
        Row::dressed(WHO, &job::STACK_POST_PENDING, not_again, layered::<Infallible>),
        Row::dressed(WHO, &job::STACK_POST_LATE, not_again, layered::<Infallible>),
        Row::dressed(WHO, &job::STACK_OPEN, not_again, layered::<Failure>),
    ]
}

/// The stack in one layer.
fn whole() -> Vec<Row> {
    vec![
        Row::new(WHOLE, &job::STACK, fused),
        Row::new(WHOLE, &job::STACK_PENDING, fused),
        Row::new(WHOLE, &job::STACK_LATE, fused),
        Row::new(WHOLE, &job::STACK_REPEATED, fused_repeating),
        Row::dressed(WHOLE, &job::STACK_POST, not_again, fused),
        Row::dressed(WHOLE, &job::STACK_POST_PENDING, not_again, fused),
        Row::dressed(WHOLE, &job::STACK_POST_LATE, not_again, fused),
        Row::dressed(WHOLE, &job::STACK_OPEN, not_again, fused),
    ]
}

/// A response body that the bench can read to its end.
trait ResponseBody: http_body::Body<Data = Bytes> {}

impl<B: http_body::Body<Data = Bytes>> ResponseBody for B {}

type Bare = Upstream<IsDown>;
/// The service around which the retry layer is measured: its errors are failures.
type Told = Upstream<Infallible>;

impl Down for Failure {
    fn down() -> Result<Response<Page>, Self> {
        let failure = Failure::builder(BadGatewayCause::ConnectionRefused);
        // proven not sent: the first retry then has no backoff, as nothing drives a timer here
        Err(failure.replay(Replay::NotSent, Evidence::NoConnection).build())
    }
}

/// The extension of a request that must not be repeated.
fn not_again(request: &mut Request<Body>) {
    request.extensions_mut().insert(RetryOverride::never());
}

fn timeout(upstream: Bare) -> impl Service<Request<Body>, Response = Response<impl ResponseBody>> {
    TimeoutLayer::new(Timeouts::new().response_head(LIMIT)).layer(upstream)
}

/// Endpoints that are all the same, each with its circuit.
fn pool<const ENDPOINTS: usize>(_: Bare) -> impl Service<Request<Body>, Response = Response<impl ResponseBody>> {
    let members = (0..ENDPOINTS).map(|number| Member::new(number.to_string()));
    Balance::builder("bench", |_: &Member| Bare::new()).members(members).without_probe().build().expect("valid members")
}

fn breaker() -> CircuitBreakerLayer {
    CircuitBreakerLayer::new("bench").policy(stays_open())
}

fn stays_open() -> BreakerPolicy {
    BreakerPolicy::new().open_duration(PAUSE).max_open_duration(PAUSE)
}

/// A policy under which the circuit stays closed although half of all attempts fail.
fn stays_closed() -> BreakerPolicy {
    BreakerPolicy::new().ratio(Ratio::per_mille(1000), 20)
}

fn retry_off(upstream: Told) -> impl Service<Request<Body>, Response = Response<impl ResponseBody>> {
    RetryLayer::new().policy(RetryPolicy::new().attempts(1)).layer(upstream)
}

fn layered<E>(upstream: Upstream<E>) -> impl Service<Request<Body>, Response = Response<impl ResponseBody>>
where
    E: Down + tower_upstream::retry::HasFailure + Into<tower::BoxError> + 'static,
{
    layers_with(RetryLayer::new(), breaker(), upstream)
}

/// The same for calls that all need a retry, which a budget by ratio would not allow.
fn layered_repeating(
    upstream: Upstream<Failure>,
) -> impl Service<Request<Body>, Response = Response<impl ResponseBody>> {
    let breaker = CircuitBreakerLayer::new("bench").policy(stays_closed());
    layers_with(RetryLayer::new().budget(RetryBudget::unlimited()), breaker, upstream)
}

fn layers_with<E>(
    retry: RetryLayer,
    breaker: CircuitBreakerLayer,
    upstream: Upstream<E>,
) -> impl Service<Request<Body>, Response = Response<impl ResponseBody>>
where
    E: Down + tower_upstream::retry::HasFailure + Into<tower::BoxError> + 'static,
{
    ServiceBuilder::new()
        .layer(ClassifyLayer::new())
        .layer(ConcurrencyLimitLayer::adaptive())
        .layer(retry.total(LIMIT))
        .layer(breaker)
        .layer(TimeoutLayer::new(Timeouts::new().response_head(LIMIT)).without_upload_tracking())
        .service(upstream)
}

fn fused(upstream: Bare) -> impl Service<Request<Body>, Response = Response<impl ResponseBody>> {
    let layer = UpstreamLayer::builder("bench")
        .circuit(move |_| stays_open())
        .without_upload_tracking()
        .build()
        .expect("it fits");
    layer.layer(upstream)
}

/// The same for calls that all need a retry.
fn fused_repeating(upstream: Upstream<Failure>) -> impl Service<Request<Body>, Response = Response<impl ResponseBody>> {
    let builder = UpstreamLayer::builder("bench").circuit(move |_| stays_closed()).budget(RetryBudget::unlimited());
    builder.without_upload_tracking().build().expect("it fits").layer(upstream)
}
