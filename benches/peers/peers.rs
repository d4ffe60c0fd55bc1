//! The next peer's layers, measured like ours: `benches/overhead` runs this and prints the table.

#![allow(dead_code)] // the peers use only a part of the bench's files

#[path = "../overhead/cell.rs"]
mod cell;
#[path = "../overhead/count.rs"]
mod count;
#[path = "../overhead/job.rs"]
mod job;
#[path = "../overhead/row.rs"]
mod row;
#[path = "../overhead/upstream.rs"]
mod upstream;

use std::env;
use std::time::Duration;

use http::{Method, Request, Response};
use tower::{Layer, ServiceBuilder};
use tower_resilience_adaptive::{AdaptiveLimiterLayer, Aimd};
use tower_resilience_bulkhead::BulkheadLayer;
use tower_resilience_circuitbreaker::{CircuitBreaker, CircuitBreakerLayer, DefaultClassifier};
use tower_resilience_retry::{RetryBudgetBuilder, RetryLayer};
use tower_resilience_timelimiter::TimeLimiterLayer;
use tower_service::Service;

use row::Row;
use upstream::{Body, IsDown, Page, Upstream};

const WHO: &str = "tower-resilience 0.14";
const LIMIT: Duration = Duration::from_secs(30);
const IN_FLIGHT: usize = 200;
/// Longer than any run.
const PAUSE: Duration = Duration::from_secs(3600);

type Bare = Upstream<IsDown>;
type Asked = Request<Body>;
type Answered = Response<Page>;

fn rows() -> Vec<Row> {
    vec![
        Row::new(WHO, &job::TIMEOUT, |upstream: Bare| timeout().layer(upstream)),
        Row::new(WHO, &job::TIMEOUT_PENDING, |upstream: Bare| timeout().layer(upstream)),
        Row::new(WHO, &job::BREAKER, |upstream: Bare| breaker(upstream)),
        Row::new(WHO, &job::BREAKER_OPEN, |upstream: Bare| breaker(upstream)),
        Row::new(WHO, &job::LIMIT, |upstream: Bare| bulkhead().layer(upstream)),
        Row::new(WHO, &job::LIMIT_ADAPTIVE, adaptive),
        Row::new(WHO, &job::RETRY, |upstream: Bare| retry(3).layer(upstream)),
        Row::new(WHO, &job::RETRY_NOT, |upstream: Bare| retry(3).layer(upstream)),
        Row::new(WHO, &job::RETRY_OFF, |upstream: Bare| retry(1).layer(upstream)),
        Row::new(WHO, &job::STACK, stack),
        Row::new(WHO, &job::STACK_PENDING, stack),
        Row::new(WHO, &job::STACK_LATE, stack),
        Row::new(WHO, &job::STACK_POST, stack),
        Row::new(WHO, &job::STACK_POST_PENDING, stack),
        Row::new(WHO, &job::STACK_POST_LATE, stack),
        Row::new(WHO, &job::STACK_OPEN, stack),
    ]
}

fn timeout() -> TimeLimiterLayer {
    TimeLimiterLayer::builder().timeout_duration(LIMIT).build()
}

fn bulkhead() -> BulkheadLayer {
    BulkheadLayer::builder().max_concurrent_calls(IN_FLIGHT).build().expect("a bulkhead")
}

fn adaptive(upstream: Bare) -> impl Service<Asked, Response = Answered> {
    let limit = Aimd::builder().initial_limit(20).max_limit(IN_FLIGHT).build().expect("a limit");
    AdaptiveLimiterLayer::new(limit).layer(upstream)
}

fn breaker<S>(inner: S) -> CircuitBreaker<S, DefaultClassifier> {
    let layer = CircuitBreakerLayer::standard().sliding_window_size(10).wait_duration_in_open(PAUSE).build();
    layer.expect("a breaker").layer_fn(inner)
}

/// So many attempts, one of a POST.
fn retry<E: Send + 'static>(attempts: usize) -> RetryLayer<Asked, Answered, E> {
    let budget = RetryBudgetBuilder::new().token_bucket().tokens_per_second(10.0).max_tokens(100);
    RetryLayer::builder()
        .max_attempts_fn(move |request: &Asked| if request.method() == Method::POST { 1 } else { attempts })
        .exponential_backoff(Duration::from_millis(25))
        .budget(budget.build().expect("a budget"))
        .build()
}

/// The same parts as in our stack, but for the classification.
fn stack(upstream: Bare) -> impl Service<Asked, Response = Answered> {
    ServiceBuilder::new()
        .layer(timeout())
        .layer(bulkhead())
        .layer(retry(3))
        .layer_fn(breaker)
        .layer(timeout())
        .service(upstream)
}

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let _entered = runtime.enter();
    if count::looped(rows) {
        return;
    }
    let job = env::args().nth(1).unwrap_or_default();
    for cell in count::cells(rows(), &job) {
        println!("{cell}");
    }
}
