//! A call that succeeds costs no allocation of ours; exact, without valgrind. Instructions are counted by
//! `benches/overhead`.

use std::alloc::System;
use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, Uri};
use http_body_util::Full;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use tower::{Layer, Service, ServiceBuilder, service_fn};
use tower_upstream::admission::AdmissionLayer;
use tower_upstream::balance::{Balance, Member};
use tower_upstream::body::TrackedUpload;
use tower_upstream::breaker::CircuitBreakerLayer;
use tower_upstream::error_page::ErrorPage;
use tower_upstream::limit::ConcurrencyLimitLayer;
use tower_upstream::retry::{RetryLayer, RetryOverride, RetryPolicy};
use tower_upstream::timeout::{TimeoutLayer, Timeouts};
use tower_upstream::{ClassifyLayer, UpstreamLayer};

use crate::ALONE;

#[global_allocator]
pub(crate) static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const CALLS: usize = 1000;
const LIMIT: Duration = Duration::from_secs(30);

type Body = Full<Bytes>;

/// Allocations of `CALLS` calls of a warm service; the requests are made before.
fn allocated<S, B>(mut service: S, request: impl Fn() -> Request<Body>) -> usize
where
    S: Service<Request<Body>, Response = Response<B>>,
{
    let _alone = ALONE.blocking_lock();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let _entered = runtime.enter();
    let mut round = || {
        let requests: Vec<_> = (0..CALLS).map(|_| request()).collect();
        let region = Region::new(ALLOCATOR);
        for request in requests {
            call(&mut service, request);
        }
        let change = region.change();
        change.allocations + change.reallocations
    };
    round();
    // the thread that prints the tests' names allocates now and then; allocations of calls are in every round
    (0..3).map(|_| round()).min().unwrap()
}

/// A call that succeeds after at most two polls.
fn call<S, B>(service: &mut S, request: Request<Body>)
where
    S: Service<Request<Body>, Response = Response<B>>,
{
    let mut cx = Context::from_waker(Waker::noop());
    assert!(matches!(service.poll_ready(&mut cx), Poll::Ready(Ok(()))));
    let mut call = pin!(service.call(request));
    let answer = (0..2).find_map(|_| match call.as_mut().poll(&mut cx) {
        Poll::Ready(answer) => Some(answer),
        Poll::Pending => None,
    });
    let answer = answer.expect("it does not hang");
    assert!(answer.is_ok_and(|answer| answer.status() == StatusCode::OK));
}

/// A static string, whose copy allocates nothing, as that of a target that hyper has parsed.
fn target() -> Uri {
    Uri::from_static("http://svc.internal/items?id=1")
}

fn get() -> Request<Body> {
    Request::get(target()).header("accept", HeaderValue::from_static("*/*")).body(Body::default()).unwrap()
}

/// A request that must not be repeated.
fn post() -> Request<Body> {
    let request = Request::post(target()).extension(RetryOverride::never());
    request.body(Body::from("sixteen bytes ok")).unwrap()
}

/// Responds at the first poll.
fn upstream<B>() -> impl Service<Request<B>, Response = Response<Body>, Error = Infallible, Future: Send> + Clone {
    service_fn(|_| std::future::ready(Ok(Response::new(Body::default()))))
}

/// Responds at the second poll, so that timers are armed.
fn slow<B>() -> impl Service<Request<B>, Response = Response<Body>, Error = Infallible, Future: Send> + Clone {
    service_fn(|_| {
        let mut asked = false;
        poll_fn(move |_| {
            if std::mem::replace(&mut asked, true) {
                return Poll::Ready(Ok(Response::new(Body::default())));
            }
            Poll::Pending
        })
    })
}

fn timeouts() -> Timeouts {
    Timeouts::new().response_head(LIMIT).total(LIMIT)
}

#[test]
fn a_boxed_future_is_counted() {
    let boxed = ServiceBuilder::new().map_future(|future| Box::pin(future) as futures_util::future::BoxFuture<'_, _>);
    assert_eq!(allocated(boxed.service(upstream()), get), 1000);
}

#[test]
fn a_closed_circuit_allocates_nothing() {
    assert_eq!(allocated(CircuitBreakerLayer::new("x").layer(upstream()), get), 0);
}

#[test]
fn a_limiter_allocates_nothing_whether_it_is_adaptive_or_not() {
    assert_eq!(allocated(ConcurrencyLimitLayer::adaptive().layer(upstream()), get), 0);
    assert_eq!(allocated(ConcurrencyLimitLayer::fixed(9).layer(upstream()), get), 0);
}

#[test]
fn admission_allocates_nothing() {
    assert_eq!(allocated(AdmissionLayer::new(9).layer(upstream()), get), 0);
}

#[test]
fn classification_of_a_good_response_allocates_nothing() {
    assert_eq!(allocated(ClassifyLayer::new().layer(upstream()), get), 0);
}

#[test]
fn a_timeout_allocates_nothing_though_its_timer_is_armed() {
    let layer = TimeoutLayer::new(timeouts());
    assert_eq!(allocated(layer.layer(upstream()), get), 0);
    assert_eq!(allocated(layer.layer(slow()), get), 0);
}

#[test]
fn a_tracked_upload_and_its_handle_share_one_allocation() {
    let layer = TimeoutLayer::new(timeouts());
    assert_eq!(allocated(layer.clone().layer(upstream()), post), 1000);
    assert_eq!(allocated(layer.without_upload_tracking().layer(upstream()), post), 0);
}

#[test]
fn retry_allocates_nothing_before_a_retry() {
    assert_eq!(allocated(RetryLayer::new().layer(upstream()), get), 0);
    assert_eq!(allocated(RetryLayer::new().layer(upstream()), post), 0);
    let off = RetryLayer::new().policy(RetryPolicy::new().attempts(1));
    assert_eq!(allocated(off.layer(upstream()), get), 0);
}

#[test]
fn the_recommended_order_allocates_nothing() {
    let order = ServiceBuilder::new()
        .layer(ClassifyLayer::new())
        .layer(ConcurrencyLimitLayer::adaptive())
        .layer(RetryLayer::new().total(LIMIT))
        .layer(CircuitBreakerLayer::new("x"))
        .layer(TimeoutLayer::new(timeouts()).without_upload_tracking());
    assert_eq!(allocated(order.clone().service(upstream()), get), 0);
    assert_eq!(allocated(order.clone().service(upstream()), post), 0);
    assert_eq!(allocated(order.clone().service(slow()), get), 0);
    assert_eq!(allocated(order.service(slow()), post), 0);
}

#[test]
fn the_stack_in_one_piece_allocates_nothing_though_its_timer_is_armed() {
    let layer = UpstreamLayer::builder("shop").error_page(ErrorPage::new()).without_upload_tracking().build().unwrap();
    assert_eq!(allocated(layer.layer(upstream()), get), 0);
    assert_eq!(allocated(layer.layer(upstream()), post), 0);
    assert_eq!(allocated(layer.layer(slow()), get), 0);
}

/// A pool of this many endpoints.
fn pool(endpoints: usize) -> Balance<Endpoint> {
    let make = |_: &Member| {
        let endpoint = service_fn(|_| std::future::ready(Ok(Response::new(Body::from(Bytes::from_static(b"page"))))));
        Endpoint::new(endpoint)
    };
    let members = (0..endpoints).map(|number| Member::new(format!("10.0.{}.{}:80", number / 250, number % 250)));
    Balance::builder("pool", make).members(members).build().unwrap()
}

type Endpoint = tower::util::BoxCloneSyncService<Request<TrackedUpload<Body>>, Response<Body>, Infallible>;

#[test]
fn a_pool_allocates_nothing_beside_its_endpoints() {
    // the future of the boxed service of an endpoint
    for endpoints in [1, 3, 20] {
        assert_eq!(allocated(pool(endpoints), get), CALLS, "{endpoints} endpoints");
    }
}

#[test]
fn an_endpoint_takes_a_few_kb_however_many_there_are() {
    let _alone = ALONE.blocking_lock();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let _entered = runtime.enter();
    // before its first call, and after it has been called
    let bytes = |endpoints: usize| {
        let region = Region::new(ALLOCATOR);
        let size = || region.change().bytes_allocated - region.change().bytes_deallocated;
        let mut pool = pool(endpoints);
        let idle = size();
        (0..8 * endpoints).for_each(|_| call(&mut pool, get()));
        (idle, size())
    };
    let one = bytes(1);
    for endpoints in [10, 100, 1_000, 10_000] {
        let all = bytes(endpoints);
        let (idle, used) = ((all.0 - one.0) / (endpoints - 1), (all.1 - one.1) / (endpoints - 1));
        println!("{endpoints} endpoints: {idle} bytes each, {used} after calls");
        assert!(idle <= 2_500 && used <= 5_000, "{idle}, {used} bytes each of {endpoints} endpoints");
    }
}
