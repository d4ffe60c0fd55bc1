//! tower's own layers.

use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request, Response};
use tower::limit::ConcurrencyLimitLayer;
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
