//! Inner services that are not ready: a call waits in its own future, under its limits.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use tokio::time::Instant;
use tower::limit::GlobalConcurrencyLimitLayer;
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};
use tower_upstream::cause::{Phase, Replay, RetryStop};
use tower_upstream::deadline::Deadline;
use tower_upstream::limit::ConcurrencyLimitLayer;
use tower_upstream::retry::{Hedging, RetryLayer, RetryPolicy};
use tower_upstream::timeout::Timeouts;
use tower_upstream::{BadGatewayCause as Cause, Failure, UpstreamLayer};

use crate::support::service::{Act, Scripted, get, look, ms, post, ready, seen, text};

fn limits() -> Timeouts {
    Timeouts::new().response_head(ms(400)).attempt(ms(400)).total(ms(1500)).body_idle(ms(400))
}

fn shop() -> UpstreamLayer {
    UpstreamLayer::builder("shop").timeouts(move |_| limits()).build().unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_service_that_is_ready_after_three_polls_is_called_then() {
    let (inner, script) = Scripted::new();
    script.pending_polls.store(3, Relaxed);
    let began = Instant::now();
    let answer = shop().layer(inner).oneshot(get()).await.unwrap();
    assert_eq!((answer.status().as_u16(), began.elapsed()), (200, Duration::ZERO), "it waits for no timer");
}

#[tokio::test(start_paused = true)]
async fn a_service_that_opens_late_is_called_when_it_opens() {
    let (inner, script) = Scripted::new();
    script.close();
    let layer = shop();
    let mut call = pin!(layer.layer(inner).oneshot(get()));
    assert!(look(call.as_mut()).await.is_pending());
    tokio::time::advance(ms(100)).await;
    assert!(look(call.as_mut()).await.is_pending());
    script.open();
    let Poll::Ready(Ok(answer)) = look(call.as_mut()).await else { panic!("it is open") };
    assert_eq!(answer.status(), 200);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_begins_late_is_polled_at_once_and_has_what_is_left_of_its_limits() {
    let (inner, script) = Scripted::new();
    script.close();
    *script.takes.lock().unwrap() = ms(50);
    let layer = shop();
    let mut call = pin!(layer.layer(inner).oneshot(get()));
    assert!(look(call.as_mut()).await.is_pending());
    tokio::time::advance(ms(100)).await;
    script.open();
    let began = Instant::now();
    assert_eq!(call.await.unwrap().status(), 200);
    assert_eq!(began.elapsed(), ms(50), "the call's own timer woke it");
}

#[tokio::test(start_paused = true)]
async fn a_clone_that_nobody_asked_is_asked_before_it_is_called() {
    let (inner, script) = Scripted::new();
    let mut service = shop().layer(inner);
    // tower's contract requires poll_ready; a caller that forgets it gets a response nevertheless
    assert_eq!(service.clone().call(get()).await.unwrap().status(), 200);
    script.pending_polls.store(2, Relaxed);
    assert_eq!(service.call(get()).await.unwrap().status(), 200);
    assert_eq!(service.call(get()).await.unwrap().status(), 200);
    assert_eq!(script.calls(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_wait_for_the_service_ends_at_the_limit_and_says_that_nothing_was_sent() {
    let (inner, script) = Scripted::new();
    script.close();
    let layer = shop();
    let began = Instant::now();
    let answer = layer.layer(inner).oneshot(post("order")).await.unwrap();
    let failure = Failure::of(&answer).unwrap();
    assert_eq!((failure.cause(), failure.phase()), (Cause::QueueTimeout, Phase::Pool));
    assert_eq!((failure.replay(), failure.retry_stop()), (Replay::NotSent, Some(RetryStop::LocalRefusal)));
    assert_eq!((failure.elapsed(), failure.attempts()), (Some(ms(400)), 1));
    assert_eq!(began.elapsed(), ms(400));
    let snapshot = seen(&layer);
    assert_eq!((snapshot.in_flight, snapshot.limit.unwrap().in_flight), (0, 0));
    assert_eq!(script.calls(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_deadline_that_passes_while_the_service_is_not_ready_leaves_nothing_sent() {
    let (inner, script) = Scripted::new();
    script.close();
    let limits = Timeouts::new().response_head(ms(900)).attempt(ms(900)).total(ms(1000)).body_idle(ms(400));
    let layer = UpstreamLayer::builder("shop").timeouts(move |_| limits).build().unwrap();
    let mut request = post("order");
    request.extensions_mut().insert(tower_upstream::deadline::Deadline::after(Instant::now(), ms(300)));
    let answer = layer.layer(inner).oneshot(request).await.unwrap();
    let failure = Failure::of(&answer).unwrap();
    assert_eq!((failure.cause(), failure.phase()), (Cause::DeadlineExceeded, Phase::Pool));
    assert_eq!(failure.replay(), Replay::NotSent, "a POST can be tried again");
}

#[tokio::test(start_paused = true)]
async fn a_service_that_breaks_is_a_failure_with_its_cause() {
    let (inner, script) = Scripted::new();
    script.is_broken.store(true, Relaxed);
    let layer = shop();
    let answer = layer.layer(inner.clone()).oneshot(get()).await.unwrap();
    let failure = Failure::of(&answer).unwrap();
    assert_eq!((failure.cause(), failure.attempts()), (Cause::ConnectionRefused, 3), "and is asked again");

    // the inner service breaks while a call waits for it
    script.is_broken.store(false, Relaxed);
    script.close();
    let mut call = pin!(layer.layer(inner).oneshot(get()));
    assert!(look(call.as_mut()).await.is_pending());
    script.is_broken.store(true, Relaxed);
    script.open();
    let answer = call.await.unwrap();
    assert_eq!(Failure::of(&answer).unwrap().cause(), Cause::ConnectionRefused);
    assert_eq!(script.calls(), 0);
    assert_eq!(seen(&layer).in_flight, 0);
}

#[tokio::test(start_paused = true)]
async fn an_open_circuit_refuses_at_once_though_the_service_is_not_ready() {
    let (inner, script) = Scripted::new();
    script.close();
    let layer = shop();
    layer.handle().hold_open();
    let began = Instant::now();
    let answer = layer.layer(inner).oneshot(get()).await.unwrap();
    assert_eq!((answer.status().as_u16(), began.elapsed()), (503, Duration::ZERO));
    assert_eq!(Cause::of(&answer), Some(Cause::CircuitOpen));
}

#[tokio::test(start_paused = true)]
async fn a_later_attempt_waits_for_its_service_under_its_limits_too() {
    let (inner, script) = Scripted::new();
    script.play([Act::Responds(503); 1]);
    let layer = shop();
    let mut service = layer.layer(inner);
    ready(&mut service).await;
    // the first attempt finds it ready, the next one does not
    script.close();
    let began = Instant::now();
    let answer =
        tokio::time::timeout(Duration::from_secs(60), service.call(get())).await.expect("no call hangs").unwrap();
    let failure = Failure::of(&answer).unwrap();
    assert_eq!(
        (failure.cause(), failure.phase(), failure.replay()),
        // the first attempt may have been processed, so the call may have been
        (Cause::QueueTimeout, Phase::Pool, Replay::IdempotentOnly)
    );
    assert_eq!((failure.attempts(), failure.previous().len()), (2, 1));
    assert!(began.elapsed() < ms(1500), "{:?}", began.elapsed());
    assert_eq!((script.calls(), seen(&layer).in_flight), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_later_attempt_goes_on_when_its_service_opens() {
    let (inner, script) = Scripted::new();
    script.play([Act::Responds(503); 1]);
    let layer = shop();
    let mut service = layer.layer(inner);
    ready(&mut service).await;
    script.close();
    let call = tokio::spawn(service.call(get()));
    tokio::time::sleep(ms(100)).await;
    script.open();
    assert_eq!(call.await.unwrap().unwrap().status(), 200);
    assert_eq!(script.calls(), 2);
}

/// Responds when the test allows it, one call at a time.
fn one_at_a_time(
    takes: Duration,
) -> impl Service<
    Request<tower_upstream::body::TrackedUpload<tower_upstream::body::ReplayBody<Full<Bytes>>>>,
    Response = Response<Full<Bytes>>,
    Error = Failure,
    Future: Send,
> + Clone
+ Send
+ Sync
+ 'static {
    ServiceBuilder::new().concurrency_limit(1).service(service_fn(move |_| async move {
        tokio::time::sleep(takes).await;
        Ok(Response::new(Full::from("hello")))
    }))
}

#[tokio::test(start_paused = true)]
async fn calls_stand_in_the_line_of_a_concurrency_limit_in_their_order() {
    let layer = shop();
    let service = layer.layer(one_at_a_time(ms(100)));
    let began = Instant::now();
    let calls: Vec<_> = (0..3).map(|_| tokio::spawn(service.clone().oneshot(get()))).collect();
    let mut ends = Vec::new();
    for call in calls {
        assert_eq!(text(call.await.unwrap().unwrap()).await, "hello");
        ends.push(began.elapsed());
    }
    assert_eq!(ends, [ms(100), ms(200), ms(300)]);
}

#[tokio::test(start_paused = true)]
async fn a_service_that_is_kept_holds_no_place_that_its_call_does_not_use() {
    let policy = RetryPolicy::new().attempts(2);
    let retry = RetryLayer::new().policy(policy).hedging(Hedging::after(ms(300)));
    let layer = UpstreamLayer::builder("shop").timeouts(move |_| limits()).retry(move |_| retry).build().unwrap();
    let mut service = layer.layer(one_at_a_time(ms(100)));
    for _ in 0..2 {
        // the first attempt is made by a clone, as it may be hedged
        let answer = ready(&mut service).await.call(get()).await.unwrap();
        assert_eq!(answer.status(), 200);
    }
}

#[tokio::test(start_paused = true)]
async fn a_refused_call_leaves_the_line() {
    let layer = shop();
    let service = layer.layer(one_at_a_time(ms(100)));
    let running = tokio::spawn(service.clone().oneshot(get()));
    tokio::time::sleep(ms(10)).await;
    let mut kept = service.clone();
    ready(&mut kept).await;
    layer.handle().hold_open();
    assert_eq!(kept.call(get()).await.unwrap().status(), 503);
    layer.handle().reset();
    assert_eq!(running.await.unwrap().unwrap().status(), 200);
    // `kept` is in the queue, and no longer polled
    assert_eq!(service.oneshot(get()).await.unwrap().status(), 200);
}

#[tokio::test(start_paused = true)]
async fn a_buffer_is_waited_for() {
    let (inner, script) = Scripted::new();
    script.close();
    let layer = shop();
    let service = layer.layer(ServiceBuilder::new().buffer(1).service(inner));
    let calls: Vec<_> = (0..4).map(|_| tokio::spawn(service.clone().oneshot(get()))).collect();
    tokio::time::sleep(ms(100)).await;
    script.open();
    for call in calls {
        assert_eq!(call.await.unwrap().unwrap().status(), 200);
    }
    assert_eq!(seen(&layer).in_flight, 0);
}

#[tokio::test(start_paused = true)]
async fn a_refused_call_gives_back_its_place_beneath() {
    let places = Arc::new(tokio::sync::Semaphore::new(2));
    let shared = GlobalConcurrencyLimitLayer::with_semaphore(places.clone());
    let (inner, script) = Scripted::new();
    *script.takes.lock().unwrap() = ms(100);
    let layer = UpstreamLayer::builder("shop").limiter(|_| ConcurrencyLimitLayer::fixed(1)).build().unwrap();
    let service = layer.layer(shared.layer(inner));

    let running = tokio::spawn(service.clone().oneshot(get()));
    tokio::task::yield_now().await;
    // the services of refused calls, which are kept
    let mut refused = Vec::new();
    for reason in ["limit", "circuit", "deadline", "drain"] {
        let mut other = service.clone();
        let mut request = get();
        match reason {
            "circuit" => layer.handle().hold_open(),
            "deadline" => {
                layer.handle().reset();
                request.extensions_mut().insert(Deadline::at(Instant::now()));
            }
            "drain" => drop(layer.handle().drain(ms(0)).await),
            _ => {}
        }
        let answer = ready(&mut other).await.call(request).await.unwrap();
        assert!(matches!(answer.status().as_u16(), 503 | 504), "{reason}: {}", answer.status());
        assert_eq!(places.available_permits(), 1, "{reason}: one place is the running call's");
        refused.push(other);
    }
    layer.handle().resume();
    assert_eq!(running.await.unwrap().unwrap().status(), 200);
    for mut other in refused {
        assert_eq!(ready(&mut other).await.call(get()).await.unwrap().status(), 200, "it can be called again");
    }
    assert_eq!((places.available_permits(), script.calls()), (2, 5));
}
