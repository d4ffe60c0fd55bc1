//! tower's own layers.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use http::{Method, Request, Response};
use tower::balance::p2c::Balance;
use tower::buffer::Buffer;
use tower::discover::ServiceList;
use tower::limit::ConcurrencyLimitLayer;
use tower::load::{CompleteOnResponse, PeakEwma};
use tower::load_shed::LoadShedLayer;
use tower::retry::backoff::{Backoff, ExponentialBackoff, ExponentialBackoffMaker, MakeBackoff};
use tower::retry::budget::{Budget, TpsBudget};
use tower::retry::{Policy, RetryLayer};
use tower::timeout::TimeoutLayer;
use tower::util::rng::HasherRng;
use tower::{Layer, ServiceBuilder};
use tower_service::Service;

use crate::job;
use crate::row::Row;
use crate::upstream::{Body, BoxError, Page, Upstream};

const WHO: &str = "tower 0.5";
const LIMIT: Duration = Duration::from_secs(30);
const IN_FLIGHT: usize = 200;

pub(crate) fn rows() -> Vec<Row> {
    vec![
        Row::new(WHO, &job::TIMEOUT, timeout),
        Row::new(WHO, &job::TIMEOUT_PENDING, timeout),
        Row::new(WHO, &job::LIMIT, limit),
        Row::new(WHO, &job::RETRY, |upstream: Bare| RetryLayer::new(Attempts::new(2)).layer(upstream)),
        Row::new(WHO, &job::RETRY_NOT, |upstream: Bare| RetryLayer::new(Attempts::new(2)).layer(upstream)),
        Row::new(WHO, &job::RETRY_OFF, |upstream: Bare| RetryLayer::new(Attempts::new(0)).layer(upstream)),
        Row::new(WHO, &job::POOL_1, pool::<1>),
        Row::new(WHO, &job::POOL_2, pool::<2>),
        Row::new(WHO, &job::POOL_100, pool::<100>),
        Row::new(WHO, &job::POOL_10000, pool::<10_000>),
        Row::new(WHO, &job::STACK, stack),
        Row::new(WHO, &job::STACK_PENDING, stack),
        Row::new(WHO, &job::STACK_LATE, stack),
        Row::new(WHO, &job::STACK_POST, stack),
        Row::new(WHO, &job::STACK_POST_PENDING, stack),
        Row::new(WHO, &job::STACK_POST_LATE, stack),
    ]
}

type Bare = Upstream<BoxError>;
type Asked = Request<Body>;
type Answered = Response<Page>;

fn timeout(upstream: Bare) -> impl Service<Asked, Response = Answered> {
    TimeoutLayer::new(LIMIT).layer(upstream)
}

fn limit(upstream: Bare) -> impl Service<Asked, Response = Answered> {
    LoadShedLayer::new().layer(ConcurrencyLimitLayer::new(IN_FLIGHT).layer(upstream))
}

/// Endpoints that are all the same, in the `Buffer` that shares them between tasks.
fn pool<const ENDPOINTS: usize>(_: Bare) -> impl Service<Asked, Response = Answered> {
    const DECAY_NS: f64 = 10e9;
    let endpoint = |_| PeakEwma::new(Bare::new(), Duration::from_millis(1), DECAY_NS, CompleteOnResponse::default());
    let (buffer, worker) = Buffer::pair(Balance::new(ServiceList::new::<Asked>((0..ENDPOINTS).map(endpoint))), 1024);
    Buffered { buffer, worker: Box::pin(worker) }
}

/// A buffer whose worker is polled by its calls, on their thread: that saves it a change of threads.
struct Buffered<F> {
    buffer: Buffer<Asked, F>,
    worker: Pin<Box<dyn Future<Output = ()>>>,
}

impl<F> Service<Asked> for Buffered<F>
where
    F: Future<Output = Result<Answered, BoxError>> + Send + 'static,
{
    type Response = Answered;
    type Error = BoxError;
    type Future = <Buffer<Asked, F> as Service<Asked>>::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.buffer.poll_ready(cx)
    }

    fn call(&mut self, request: Asked) -> Self::Future {
        let call = self.buffer.call(request);
        let _ = self.worker.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        call
    }
}

/// All layers but a circuit breaker, which tower does not have.
fn stack(upstream: Bare) -> impl Service<Asked, Response = Answered> {
    ServiceBuilder::new()
        .layer(TimeoutLayer::new(LIMIT))
        .layer(LoadShedLayer::new())
        .layer(ConcurrencyLimitLayer::new(IN_FLIGHT))
        .layer(RetryLayer::new(Attempts::new(2)))
        .layer(TimeoutLayer::new(LIMIT))
        .service(upstream)
}

/// Repeats failed requests other than POST, as long as the budget allows it.
#[derive(Clone)]
struct Attempts {
    left: u8,
    budget: Arc<TpsBudget>,
    backoff: ExponentialBackoff,
}

impl Attempts {
    fn new(left: u8) -> Self {
        let budget = Arc::new(TpsBudget::new(Duration::from_secs(10), 10, 0.2));
        let (least, most) = (Duration::from_millis(25), Duration::from_secs(1));
        let backoff = ExponentialBackoffMaker::new(least, most, 0.5, HasherRng::default()).expect("a backoff");
        Self { left, budget, backoff: { backoff }.make_backoff() }
    }
}

impl<E> Policy<Asked, Answered, E> for Attempts {
    type Future = tokio::time::Sleep;

    fn retry(&mut self, _: &mut Asked, result: &mut Result<Answered, E>) -> Option<Self::Future> {
        if result.is_ok() {
            self.budget.deposit();
            return None;
        }
        if self.left == 0 || !self.budget.withdraw() {
            return None;
        }
        self.left -= 1;
        Some(self.backoff.next_backoff())
    }

    fn clone_request(&mut self, request: &Asked) -> Option<Asked> {
        (self.left > 0 && request.method() != Method::POST).then(|| request.clone())
    }
}
