//! Control of a stack at run time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::service::Service as _;
use tokio::time::Instant;
use tower::{Layer, ServiceExt, service_fn};
use tower_upstream::body::UpgradeGuard;
use tower_upstream::breaker::State;
use tower_upstream::cause::{Detail, Replay};
use tower_upstream::limit::ConcurrencyLimitLayer;
use tower_upstream::stack::{DrainOutcome, UpstreamBuilder, UpstreamState};
use tower_upstream::timeout::Timeouts;
use tower_upstream::{BadGatewayCause as Cause, ClassifyLayer, Failure, UpstreamLayer};

use crate::support::service::{Act, Scripted, get, ms, ready, seen, text};

fn shop() -> UpstreamLayer {
    open_answers().build().unwrap()
}

/// A stack that does not wait for the first frame before it returns the head: a short response is open until it is read.
fn open_answers() -> UpstreamBuilder {
    UpstreamLayer::builder("shop").classify(ClassifyLayer::new().first_frame_timeout(Duration::ZERO))
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_shows_what_was_counted_and_what_is_set() {
    let (inner, script) = Scripted::new();
    let layer = shop();
    let service = layer.layer(inner);
    *script.takes.lock().unwrap() = ms(20);
    let kept = service.clone().oneshot(get()).await.unwrap();
    script.play([Act::Responds(503); 9]);
    let answer = service.clone().oneshot(get()).await.unwrap();
    assert_eq!(text(answer).await, "hello");
    layer.handle().annotate("deploy v42");

    let shown = seen(&layer);
    assert_eq!((&*shown.name, shown.state), ("shop", UpstreamState::Serving));
    assert_eq!((shown.calls, shown.in_flight), (2, 1));
    assert_eq!(shown.failures, [(Cause::UpstreamStatus, 1)], "one for the call, whatever its attempts");
    let latency = shown.latency.unwrap();
    assert_eq!(latency.samples, 1, "a failure is none");
    assert!(latency.p50 > ms(19) && latency.p99 < ms(22), "{latency:?}");
    let circuit = shown.circuit.unwrap();
    assert_eq!((circuit.state, circuit.failures, circuit.calls), (State::Closed, 1, 1));
    assert_eq!(shown.limit.unwrap().in_flight, 1);
    assert_eq!(shown.budget.unwrap().withdrawals, 2);
    assert!(shown.learned.is_empty());
    assert_eq!(shown.changes.last().unwrap().description, "deploy v42");
    drop(kept);
    assert_eq!(layer.handle().in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_circuit_is_held_released_and_reset_by_hand() {
    let (inner, script) = Scripted::new();
    let layer = shop();
    let (service, handle) = (layer.layer(inner), layer.handle());
    let cause = async || Cause::of(&service.clone().oneshot(get()).await.unwrap());
    handle.hold_open();
    assert_eq!(cause().await, Some(Cause::CircuitOpen));
    tokio::time::advance(Duration::from_secs(3600)).await;
    assert_eq!(cause().await, Some(Cause::CircuitOpen), "no probe passes");
    handle.release();
    assert_eq!(cause().await, None, "the next call is the probe");
    assert_eq!(cause().await, None);
    handle.hold_open();
    handle.reset();
    assert_eq!((cause().await, script.calls()), (None, 3));
    let what: Vec<_> = seen(&layer).changes.into_iter().map(|change| change.description).collect();
    assert_eq!(what.len(), 4, "{what:?}");
}

#[tokio::test(start_paused = true)]
async fn a_bypass_lets_all_pass_and_ends_by_itself() {
    let (inner, script) = Scripted::new();
    let layer = open_answers().limiter(move |_| ConcurrencyLimitLayer::fixed(1)).build().unwrap();
    let (service, handle) = (layer.layer(inner), layer.handle());
    let slot = service.clone().oneshot(get()).await.unwrap();
    handle.hold_open();
    script.play([Act::Responds(503); 9]);
    handle.bypass(Duration::from_secs(60));
    assert!(matches!(seen(&layer).state, UpstreamState::Bypassed(_)));
    let answer = service.clone().oneshot(get()).await.unwrap();
    assert_eq!(answer.status(), 503);
    assert_eq!(Cause::of(&answer), Some(Cause::UpstreamStatus), "the upstream's own answer");
    assert_eq!(script.calls(), 2, "once each");
    let shown = seen(&layer);
    assert_eq!((shown.in_flight, shown.limit.unwrap().in_flight), (2, 1));
    drop(answer);

    tokio::time::advance(Duration::from_secs(60)).await;
    assert_eq!(seen(&layer).state, UpstreamState::Serving);
    let answer = service.clone().oneshot(get()).await.unwrap();
    assert_eq!(Cause::of(&answer), Some(Cause::CircuitOpen));
    handle.reset();
    let answer = service.clone().oneshot(get()).await.unwrap();
    assert_eq!(Cause::of(&answer), Some(Cause::ConnectionLimit));
    drop(slot);
    assert_eq!(layer.handle().in_flight(), 0);

    handle.bypass(Duration::MAX);
    let UpstreamState::Bypassed(until) = seen(&layer).state else { panic!("it is bypassed") };
    assert_eq!(until, Instant::now() + Duration::from_secs(3600));
    handle.resume();
    assert_eq!(seen(&layer).state, UpstreamState::Serving);
}

#[tokio::test(start_paused = true)]
async fn a_call_keeps_the_limits_that_it_began_with() {
    let stuck = service_fn(|_| std::future::pending::<Result<Response<Full<Bytes>>, Failure>>());
    let layer = UpstreamLayer::builder("shop").without_retry().build().unwrap();
    let service = layer.layer(stuck);
    let before = service.clone();
    let took = |service: tower::util::BoxCloneService<_, _, _>| async move {
        let began = Instant::now();
        let answer: Response<_> = service.oneshot(get()).await.unwrap();
        assert_eq!(Cause::of(&answer), Some(Cause::FirstByteTimeout));
        began.elapsed()
    };
    let running = tokio::spawn(took(tower::util::BoxCloneService::new(service.clone())));
    tokio::task::yield_now().await;
    let limits = Timeouts::new().response_head(ms(2000)).attempt(ms(2000)).total(ms(30_000)).body_idle(ms(2000));
    layer.handle().set_timeouts(limits).unwrap();
    assert_eq!(seen(&layer).timeouts, limits);
    assert_eq!(
        took(tower::util::BoxCloneService::new(before)).await,
        ms(2000),
        "a clone of before takes them at its next call"
    );
    assert_eq!(running.await.unwrap(), ms(4500));
}

#[tokio::test]
async fn limits_that_do_not_fit_are_refused_and_change_nothing() {
    let layer = shop();
    let before = seen(&layer).timeouts;
    let refused = layer
        .handle()
        .set_timeouts(Timeouts::new().response_head(Duration::ZERO).body_idle(Duration::ZERO))
        .unwrap_err();
    let named: Vec<_> = refused.errors().iter().map(|found| found.setting().to_owned()).collect();
    assert!(
        named.contains(&"timeouts.response_head".to_owned()) && named.contains(&"timeouts.body_idle".to_owned()),
        "{named:?}"
    );
    assert!(refused.errors().iter().all(|found| !found.suggestion().is_empty()));
    assert_eq!(seen(&layer).timeouts, before);
    assert!(seen(&layer).changes.is_empty());
}

#[tokio::test]
async fn a_limiter_is_swapped_while_calls_hold_the_old_one() {
    let (inner, _) = Scripted::new();
    let old = ConcurrencyLimitLayer::fixed(1);
    let layer = open_answers()
        .limiter({
            let shared = old.clone();
            move |_| shared
        })
        .build()
        .unwrap();
    let service = layer.layer(inner);
    let kept = service.clone().oneshot(get()).await.unwrap();
    assert_eq!(service.clone().oneshot(get()).await.unwrap().status(), 503);
    layer.handle().set_limiter(&ConcurrencyLimitLayer::fixed(1)).unwrap();
    let new = service.clone().oneshot(get()).await.unwrap();
    assert_eq!(new.status(), 200);
    assert_eq!((old.handle().in_flight(), seen(&layer).limit.unwrap().in_flight), (1, 1));
    drop((kept, new));
    assert_eq!((old.handle().in_flight(), seen(&layer).limit.unwrap().in_flight), (0, 0));

    let none = UpstreamLayer::builder("shop").without_limiter().build().unwrap();
    assert_eq!(none.handle().set_limiter(&old).unwrap_err().errors()[0].setting(), "limiter");
}

#[tokio::test]
async fn the_last_changes_are_kept_each_cut_at_a_character() {
    let handle = shop().handle();
    for change in 0..70 {
        handle.annotate(format!("{change} {}", "é".repeat(150)));
    }
    let changes = handle.snapshot(Instant::now()).changes;
    assert_eq!(changes.len(), 64);
    assert!(changes[0].description.starts_with("6 ") && changes[63].description.starts_with("69 "));
    assert!(changes.iter().all(|change| (199..=200).contains(&change.description.len())));
    handle.annotate("");
    assert_eq!(handle.snapshot(Instant::now()).changes[63].description, "");
}

#[tokio::test(start_paused = true)]
async fn a_drain_refuses_new_calls_and_waits_for_bodies() {
    let (inner, script) = Scripted::new();
    let layer = shop();
    let (service, handle) = (layer.layer(inner), layer.handle());
    let running = service.clone().oneshot(get()).await.unwrap();
    let left = handle.drain(ms(200)).await;
    assert_eq!(left, DrainOutcome::TimedOut(1));
    assert_eq!(seen(&layer).state, UpstreamState::Draining);

    // a bypass does not end the drain
    handle.bypass(Duration::from_secs(60));
    let answer = service.clone().oneshot(get()).await.unwrap();
    assert_eq!((answer.status().as_u16(), answer.headers()["retry-after"].as_bytes()), (503, b"1".as_slice()));
    let failure = Failure::of(&answer).unwrap();
    assert_eq!((failure.cause(), failure.replay()), (Cause::GatewayOverload, Replay::NotSent));
    assert!(matches!(failure.detail(), Some(Detail::Text(text)) if text.contains("draining")));

    let waiting = tokio::spawn({
        let handle = handle.clone();
        async move { handle.drain(Duration::MAX).await }
    });
    tokio::time::sleep(ms(5000)).await;
    assert!(!waiting.is_finished());
    assert_eq!(text(running).await, "hello");
    assert_eq!(waiting.await.unwrap(), DrainOutcome::Complete);
    assert_eq!(service.clone().oneshot(get()).await.unwrap().status(), 503, "until somebody resumes");
    handle.resume();
    assert_eq!(service.oneshot(get()).await.unwrap().status(), 200);
    assert_eq!(script.calls(), 2);
    assert_eq!(seen(&layer).failures, [(Cause::GatewayOverload, 2)]);
}

#[tokio::test(start_paused = true)]
async fn a_drain_waits_for_upgraded_connections() {
    let (guard, end) = UpgradeGuard::new();
    let upgrades = tower::service_fn(move |_| {
        let guard = guard.clone();
        async move {
            let mut switch = Response::builder().status(101).body(Full::<Bytes>::default()).unwrap();
            switch.extensions_mut().insert(guard);
            Ok::<_, Failure>(switch)
        }
    });
    let layer = shop();
    let handle = layer.handle();
    let request = Request::get("/ws").header("connection", "upgrade").header("upgrade", "websocket");
    let switch = layer.layer(upgrades).oneshot(request.body(Full::<Bytes>::default()).unwrap()).await.unwrap();
    assert_eq!(switch.status(), 101);
    drop(switch);
    assert_eq!((handle.in_flight(), seen(&layer).in_flight), (1, 1));
    assert_eq!(handle.drain(Duration::from_secs(30)).await, DrainOutcome::TimedOut(1));

    let waiting = tokio::spawn(async move { handle.drain(Duration::MAX).await });
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(!waiting.is_finished());
    drop(end);
    assert_eq!(waiting.await.unwrap(), DrainOutcome::Complete);
    assert_eq!((seen(&layer).in_flight, seen(&layer).calls), (0, 1));
}

#[tokio::test]
async fn a_change_reaches_every_route_and_connection_of_axum() {
    let layer = shop();
    let app = axum::Router::new()
        .route("/a", axum::routing::get(|| async { "a" }))
        .route("/b", axum::routing::get(|| async { "b" }))
        .layer(layer.clone());
    let status = async |path: &str| {
        let request = Request::get(path).body(axum::body::Body::empty()).unwrap();
        app.clone().oneshot(request).await.unwrap().status().as_u16()
    };
    assert_eq!((status("/a").await, status("/b").await), (200, 200));
    layer.handle().hold_open();
    assert_eq!((status("/a").await, status("/b").await), (503, 503));
    layer.handle().bypass(Duration::from_secs(1));
    assert_eq!((status("/a").await, status("/b").await), (200, 200));
    let DrainOutcome::Complete = layer.handle().drain(ms(50)).await else { panic!("none is running") };
    assert_eq!((status("/a").await, status("/b").await), (503, 503));
}

#[tokio::test]
async fn a_change_reaches_a_service_that_hyper_calls_without_cloning_it() {
    let calls = Arc::new(AtomicU32::new(0));
    let counted = calls.clone();
    let inner = tower::service_fn(move |_| {
        counted.fetch_add(1, Relaxed);
        async { Ok::<_, Failure>(Response::new(Full::<Bytes>::from("hello"))) }
    });
    let layer = shop();
    let service = layer.layer(inner);
    let status = async || {
        let answer = service.call(get()).await.unwrap();
        let status = answer.status().as_u16();
        answer.into_body().collect().await.unwrap();
        status
    };
    assert_eq!(status().await, 200);
    layer.handle().hold_open();
    assert_eq!(status().await, 503);
    layer.handle().bypass(Duration::from_secs(60));
    assert_eq!(status().await, 200);
    layer.handle().resume();
    assert_eq!(status().await, 503);
    assert_eq!((calls.load(Relaxed), seen(&layer).calls, layer.handle().in_flight()), (2, 4, 0));
}

#[tokio::test]
async fn a_service_that_was_asked_before_a_change_is_called_after_it() {
    let (inner, _) = Scripted::new();
    let layer = shop();
    let mut service = layer.layer(inner);
    ready(&mut service).await;
    layer.handle().bypass(Duration::from_secs(60));
    assert_eq!(tower::Service::call(&mut service, get()).await.unwrap().status(), 200);
    layer.handle().resume();
    assert_eq!(tower::Service::call(&mut service, get()).await.unwrap().status(), 200);
}

/// A stack whose upstream takes `takes` for each response, and a request that is not repeated.
fn slow(takes: Duration) -> (UpstreamLayer, Scripted) {
    let (inner, script) = Scripted::new();
    *script.takes.lock().unwrap() = takes;
    let layer = UpstreamLayer::builder("shop").timeouts(|timeouts| timeouts.attempt(ms(100)).total(ms(900)));
    (layer.without_retry().build().unwrap(), inner)
}

#[tokio::test(start_paused = true)]
async fn a_layer_with_other_timeouts_shares_everything_else() {
    let (layer, inner) = slow(ms(300));
    let patient = layer.with_timeouts(|timeouts| timeouts.response_head(ms(500)).attempt(ms(500))).unwrap();
    let (service, reports) = (layer.layer(inner.clone()), patient.layer(inner));
    let timed_out = service.clone().oneshot(get()).await.unwrap();
    assert_eq!(timed_out.status(), 504);
    assert_eq!(text(reports.clone().oneshot(get()).await.unwrap()).await, "hello");
    assert_eq!((seen(&layer).calls, seen(&patient).calls), (2, 2));
    assert_eq!(seen(&layer).circuit.unwrap().calls, 2);

    layer.handle().hold_open();
    let refused = reports.clone().oneshot(get()).await.unwrap();
    assert_eq!(Cause::of(&refused), Some(Cause::CircuitOpen));
    layer.handle().reset();
    // a change by the handle applies to both, and their timeouts stay separate
    layer.handle().set_timeouts(Timeouts::new().response_head(ms(50)).total(ms(50))).unwrap();
    assert_eq!(text(reports.clone().oneshot(get()).await.unwrap()).await, "hello");
    let _ = layer.handle().drain(Duration::ZERO).await;
    let refused = reports.oneshot(get()).await.unwrap();
    assert_eq!(Cause::of(&refused), Some(Cause::GatewayOverload));

    let invalid = layer.with_timeouts(|timeouts| timeouts.total(Duration::ZERO)).unwrap_err();
    assert_eq!(invalid.errors()[0].setting(), "timeouts.total");
}

#[tokio::test(start_paused = true)]
async fn timeouts_in_the_extensions_of_a_request_replace_the_stacks_for_its_call() {
    let (layer, inner) = slow(ms(300));
    let mut service = layer.layer(inner);
    let timeouts = Timeouts::new().response_head(ms(500)).total(ms(900));
    let request = || {
        let mut request = get();
        request.extensions_mut().insert(timeouts);
        request
    };
    assert_eq!(text(tower::Service::call(&mut service, request()).await.unwrap()).await, "hello");
    assert_eq!(tower::Service::call(&mut service, get()).await.unwrap().status(), 504);
    assert_eq!(text(hyper::service::Service::call(&service, request()).await.unwrap()).await, "hello");
    assert_eq!(hyper::service::Service::call(&service, get()).await.unwrap().status(), 504);
    assert_eq!(seen(&layer).circuit.unwrap().calls, 4);
}
