//! `ConcurrencyLimitLayer` around services, in axum apps, and before an upstream that has become slow.

use std::convert::Infallible;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::routing::get;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{Request, Response, StatusCode, Version};
use http_body_util::{BodyExt, Full};
use tokio::net::TcpListener;
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_upstream::body::UpgradeGuard;
use tower_upstream::cause::{Evidence, Phase, Replay};
use tower_upstream::limit::ConcurrencyLimitLayer;
use tower_upstream::timeout::{TimeoutLayer, Timeouts};
use tower_upstream::{BadGatewayCause as Cause, Failure};

use crate::support::{Wire, ask};

fn request() -> Request<Body> {
    Request::get("/").body(Body::empty()).unwrap()
}

fn chunks() -> Body {
    Body::from_stream(stream::iter(["one", "two"]).map(Ok::<_, std::io::Error>))
}

fn answers(body: Body) -> std::future::Ready<Result<Response<Body>, Infallible>> {
    std::future::ready(Ok(Response::new(body)))
}

/// Waits until a condition holds, by polling it.
async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    for _ in 0..900 {
        if is_so() {
            return;
        }
        sleep(Duration::from_millis(10)).await;
    }
    panic!("it never came: {what}");
}

#[tokio::test(start_paused = true)]
async fn a_short_body_that_an_http2_client_never_reads_releases_its_slot() {
    let limit = ConcurrencyLimitLayer::fixed(1);
    let service = limit.layer(service_fn(|_: Request<Body>| answers(Body::from("short"))));
    let mut request = request();
    *request.version_mut() = Version::HTTP_2;
    // as hyper's server holds it while the stream's window is 0
    let answer = service.oneshot(request).await.unwrap();
    sleep(Duration::from_secs(59)).await;
    assert_eq!(limit.handle().in_flight(), 1);
    sleep(Duration::from_secs(10)).await;
    assert_eq!(limit.handle().in_flight(), 0);
    let error = answer.into_body().collect().await.unwrap_err();
    assert_eq!(error.downcast_ref::<Failure>().unwrap().cause(), Cause::ClientClosed);
}

#[tokio::test]
async fn a_slot_is_held_until_the_body_has_ended() {
    let limit = ConcurrencyLimitLayer::fixed(1);
    let service = limit.layer(service_fn(|_: Request<Body>| answers(chunks())));
    let answer = service.clone().oneshot(request()).await.unwrap();
    assert_eq!(limit.handle().in_flight(), 1);
    assert_eq!(service.clone().oneshot(request()).await.unwrap().status(), 503);
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "onetwo");
    assert_eq!(limit.handle().in_flight(), 0);
    drop(service.clone().oneshot(request()).await.unwrap());
    assert_eq!(limit.handle().in_flight(), 0, "a body that is dropped gives it back");
    assert_eq!(service.oneshot(request()).await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_body_that_fails_releases_its_slot() {
    let limit = ConcurrencyLimitLayer::fixed(1);
    let broken = || Body::from_stream(stream::iter([Ok("one"), Err(std::io::Error::other("broken"))]));
    let service = limit.layer(service_fn(move |_: Request<Body>| answers(broken())));
    let mut body = service.oneshot(request()).await.unwrap().into_body();
    assert!(body.frame().await.unwrap().is_ok());
    assert_eq!(limit.handle().in_flight(), 1);
    assert!(body.frame().await.unwrap().is_err());
    assert_eq!(limit.handle().in_flight(), 0, "though it is still held");
}

#[tokio::test]
async fn an_error_releases_its_slot() {
    let limit = ConcurrencyLimitLayer::fixed(1);
    let fails = service_fn(|_: Request<Body>| async { Err::<Response<Body>, _>("its own") });
    assert_eq!(limit.layer(fails).oneshot(request()).await.unwrap_err(), "its own");
    assert_eq!(limit.handle().in_flight(), 0);
}

#[tokio::test]
async fn a_call_that_is_dropped_releases_its_slot() {
    let limit = ConcurrencyLimitLayer::fixed(1);
    let stuck = service_fn(|_: Request<Body>| std::future::pending::<Result<Response<Body>, Infallible>>());
    let mut service = limit.layer(stuck);
    {
        let mut call = pin!(service.call(request()));
        assert!(call.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        assert_eq!(limit.handle().in_flight(), 1);
    }
    assert_eq!(limit.handle().in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_timeout_inside_or_outside_releases_the_slot() {
    let limits = || TimeoutLayer::new(Timeouts::new().response_head(Duration::from_secs(2))).without_upload_tracking();
    let stuck = service_fn(|_: Request<Body>| std::future::pending::<Result<Response<Body>, Infallible>>());
    let limit = ConcurrencyLimitLayer::fixed(1);
    let around = limits().layer(limit.layer(stuck));
    let inside = limit.layer(limits().layer(stuck));
    for _ in 0..2 {
        assert_eq!(around.clone().oneshot(request()).await.unwrap().status(), StatusCode::GATEWAY_TIMEOUT);
        assert_eq!(limit.handle().in_flight(), 0);
        assert_eq!(inside.clone().oneshot(request()).await.unwrap().status(), StatusCode::GATEWAY_TIMEOUT);
        assert_eq!(limit.handle().in_flight(), 0);
    }
    assert_eq!(limit.handle().snapshot().refused, 0);
}

#[tokio::test]
async fn a_panic_of_the_inner_service_releases_the_slot() {
    let limit = ConcurrencyLimitLayer::fixed(1);
    let panics = service_fn(|_: Request<Body>| async { panic!("inside") as Result<Response<Body>, Infallible> });
    assert!(tokio::spawn(limit.layer(panics).oneshot(request())).await.unwrap_err().is_panic());
    assert_eq!(limit.handle().in_flight(), 0);
}

#[tokio::test]
async fn a_101_releases_the_slot_at_the_head() {
    let limit = ConcurrencyLimitLayer::fixed(1);
    let upgrades = service_fn(|_: Request<Body>| async {
        let mut answer = Response::new(chunks());
        *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        Ok::<_, Infallible>(answer)
    });
    let answer = limit.layer(upgrades).oneshot(request()).await.unwrap();
    assert_eq!(limit.handle().in_flight(), 0);
    drop(answer);
    assert_eq!(limit.handle().in_flight(), 0, "once is enough");
}

#[tokio::test]
async fn a_slot_that_is_held_during_an_upgrade_is_released_at_the_tunnels_end() {
    let limit = ConcurrencyLimitLayer::fixed(1).hold_slot_during_upgrade();
    let (tunnel, end) = UpgradeGuard::new();
    let upgrades = service_fn(move |_: Request<Body>| {
        let mut answer = Response::new(chunks());
        *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        answer.extensions_mut().insert(tunnel.clone());
        std::future::ready(Ok::<_, Infallible>(answer))
    });
    let service = limit.layer(upgrades);
    drop(service.clone().oneshot(request()).await.unwrap());
    assert_eq!(limit.handle().in_flight(), 1);
    assert_eq!(service.oneshot(request()).await.unwrap().status(), 503);
    drop(end);
    assert_eq!(limit.handle().in_flight(), 0);
}

#[tokio::test]
async fn of_a_thousand_concurrent_calls_exactly_the_limit_is_admitted() {
    let go = Arc::new(Semaphore::new(0));
    let calls = Arc::new(AtomicU32::new(0));
    let limit = ConcurrencyLimitLayer::fixed(10);
    let service = {
        let (go, calls) = (go.clone(), calls.clone());
        limit.layer(service_fn(move |_: Request<Body>| {
            calls.fetch_add(1, SeqCst);
            let go = go.clone();
            async move {
                drop(go.acquire().await);
                answers(Body::empty()).await
            }
        }))
    };
    let all: Vec<_> = (0..1_000).map(|_| tokio::spawn(service.clone().oneshot(request()))).collect();
    until("nine hundred and ninety are refused", || limit.handle().snapshot().refused == 990).await;
    assert_eq!((limit.handle().in_flight(), calls.load(SeqCst)), (10, 10));
    go.add_permits(1_000);
    let mut passed = 0;
    for each in all {
        let answer = each.await.unwrap().unwrap();
        if answer.status() == 200 {
            passed += 1;
            continue;
        }
        assert_eq!(answer.status(), 503);
        assert_eq!(answer.headers()["retry-after"], "1");
        let failure = Failure::of(&answer).unwrap();
        assert_eq!((failure.cause(), failure.phase()), (Cause::ConnectionLimit, Phase::Gateway));
        assert_eq!((failure.replay(), failure.evidence()), (Replay::NotSent, Evidence::LocalRefusal));
    }
    assert_eq!((passed, calls.load(SeqCst), limit.handle().in_flight()), (10, 10, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn several_threads_together_never_exceed_the_limit() {
    const LIMIT: u32 = 5;
    let inside = Arc::new(AtomicU32::new(0));
    let limit = ConcurrencyLimitLayer::fixed(LIMIT);
    let service = {
        let inside = inside.clone();
        limit.layer(service_fn(move |_: Request<Body>| {
            let inside = inside.clone();
            async move {
                assert!(inside.fetch_add(1, SeqCst) < LIMIT);
                tokio::task::yield_now().await;
                inside.fetch_sub(1, SeqCst);
                answers(Body::empty()).await
            }
        }))
    };
    let tasks: Vec<_> = (0..16)
        .map(|_| {
            let mut service = service.clone();
            tokio::spawn(async move {
                let mut passed = 0;
                for _ in 0..2_000 {
                    let answer = service.ready().await.unwrap().call(request()).await.unwrap();
                    passed += u64::from(answer.status() == 200);
                    tokio::task::yield_now().await;
                }
                passed
            })
        })
        .collect();
    let mut passed = 0;
    for task in tasks {
        passed += task.await.unwrap();
    }
    let seen = limit.handle().snapshot();
    assert_eq!((seen.in_flight, seen.refused + passed), (0, 32_000));
    assert!(passed > 0);
}

#[tokio::test]
async fn routes_and_fresh_connections_share_one_limit() {
    let go = Arc::new(Notify::new());
    let wait = {
        let go = go.clone();
        move || async move { go.notified().await }
    };
    let limit = ConcurrencyLimitLayer::fixed(1);
    let app = Router::new().route("/wait", get(wait)).route("/other", get(|| async { "other" })).layer(limit.clone());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await });
    let mut first = Wire::connect(address).await;
    first.write("GET /wait HTTP/1.1\r\nHost: a\r\n\r\n").await;
    until("the first is in", || limit.handle().in_flight() == 1).await;
    for path in ["/wait", "/other", "/none"] {
        let refused = ask(address, format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")).await;
        assert_eq!((refused.status(), refused.get("retry-after")), (503, Some("1")), "{path}");
    }
    go.notify_one();
    assert_eq!(first.head().await.status(), 200);
    until("the slot is free", || limit.handle().in_flight() == 0).await;
    assert_eq!(ask(address, "GET /other HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await.status(), 200);
    assert_eq!(limit.handle().snapshot().refused, 3);
}

#[tokio::test(start_paused = true)]
async fn failures_lower_the_limit_wherever_the_timeout_is_and_cancelled_calls_do_not() {
    let head = Duration::from_millis(200);
    let limits = || TimeoutLayer::new(Timeouts::new().response_head(head)).without_upload_tracking();
    let stuck = service_fn(|_: Request<Body>| std::future::pending::<Result<Response<Body>, Infallible>>());
    let shed = service_fn(|_: Request<Body>| async {
        sleep(Duration::from_millis(20)).await;
        let mut answer = Response::new(Body::empty());
        *answer.status_mut() = StatusCode::TOO_MANY_REQUESTS;
        Ok::<_, Infallible>(answer)
    });
    let (around, inside, refusing, left) = (
        ConcurrencyLimitLayer::adaptive(),
        ConcurrencyLimitLayer::adaptive(),
        ConcurrencyLimitLayer::adaptive(),
        ConcurrencyLimitLayer::adaptive(),
    );
    for _ in 0..400 {
        let impatient = timeout(head, left.layer(stuck).oneshot(request()));
        let one = limits().layer(around.layer(stuck)).oneshot(request());
        let other = inside.layer(limits().layer(stuck)).oneshot(request());
        let _ = tokio::join!(one, other, refusing.layer(shed).oneshot(request()), impatient);
    }
    for lowered in [around, inside, refusing] {
        assert_eq!(lowered.handle().snapshot().limit, 2, "{:?}", lowered.handle());
    }
    assert_eq!(left.handle().snapshot().limit, 1024);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_stalls_is_a_failed_sample_and_a_stream_is_no_sample() {
    let inner = TimeoutLayer::new(Timeouts::new().body_idle(Duration::from_millis(100))).without_upload_tracking();
    let stalls = || Body::from_stream(stream::pending::<Result<Bytes, std::io::Error>>());
    let service = inner.layer(service_fn(move |_: Request<Body>| answers(stalls())));
    let (bounded, streams) = (ConcurrencyLimitLayer::adaptive(), ConcurrencyLimitLayer::adaptive().unbounded());
    for _ in 0..100 {
        for limit in [&bounded, &streams] {
            let answer = limit.layer(service.clone()).oneshot(request()).await.unwrap();
            assert!(answer.into_body().collect().await.is_err());
        }
    }
    assert!(bounded.handle().snapshot().limit < 20);
    assert_eq!((streams.handle().snapshot().limit, streams.handle().snapshot().latency), (1024, None));
}

#[tokio::test]
async fn each_upstream_has_its_limit_and_invented_names_grow_no_map() {
    let limits = ConcurrencyLimitLayer::fixed(1).keyed();
    let service = limits.layer(service_fn(|_: Request<Body>| answers(chunks())));
    let of = |uri: &str, host: &str| {
        let request = Request::get(uri).header("host", host).body(Body::empty()).unwrap();
        let service = service.clone();
        async move { service.oneshot(request).await.unwrap() }
    };
    let held = of("http://A.example/", "ignored").await;
    for (uri, host) in [("http://a.example/path", "other"), ("/", "a.example"), ("/", "A.EXAMPLE")] {
        let refused = of(uri, host).await;
        assert_eq!(refused.status(), 503, "{uri} {host}");
        assert_eq!(Failure::of(&refused).unwrap().upstream(), Some("a.example"));
    }
    for name in 0..2_000 {
        assert_eq!(of("/", &format!("{name}.example")).await.status(), 200);
    }
    assert_eq!(limits.all().len(), 1024);
    assert_eq!(limits.get("a.example").unwrap().handle().snapshot().refused, 3, "it had a call in flight");
    drop(held);
    assert_eq!(limits.get("a.example").unwrap().handle().snapshot().in_flight, 0);

    // names beyond the capacity of the map share one limit
    let mut bodies = Vec::new();
    for name in 0..1_024 {
        bodies.push(of("/", &format!("{name}.example")).await);
    }
    let (first, second) = (of("/", "b.example").await, of("/", "c.example").await);
    assert_eq!((first.status().as_u16(), second.status().as_u16()), (200, 503));
    assert_eq!((limits.all().len(), limits.fallback().handle().in_flight()), (1024, 1));
}

const WORKERS: usize = 40;
const SERVICE: f64 = 0.040;

/// Good responses as a share of the capacity, during a slow period and from a second after it.
#[derive(Debug)]
struct Storm {
    during: f64,
    after: f64,
    lowest: u32,
}

/// 40 workers under a load of 70 % are four times slower for ten seconds; clients cancel after two seconds, the work
/// goes on.
async fn storm(limit: Option<ConcurrencyLimitLayer>) -> Storm {
    let free = Arc::new(Semaphore::new(WORKERS));
    let slower = Arc::new(AtomicU32::new(1));
    let dice = Arc::new(std::sync::Mutex::new(fastrand::Rng::with_seed(7)));
    let exponential = move || -dice.lock().unwrap().f64().max(1e-9).ln();
    let upstream = {
        let (slower, exponential) = (slower.clone(), exponential.clone());
        service_fn(move |_: Request<Body>| {
            let (free, slower, takes) = (free.clone(), slower.clone(), SERVICE * exponential());
            let work = tokio::spawn(async move {
                let _worker = free.acquire().await;
                sleep(Duration::from_secs_f64(takes * f64::from(slower.load(SeqCst)))).await;
            });
            async move {
                work.await.unwrap();
                Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"done"))))
            }
        })
    };
    let handle = limit.as_ref().map(ConcurrencyLimitLayer::handle);
    let service = match limit {
        Some(limit) => limit.layer(upstream).map_response(|answer| answer.map(Body::new)).boxed_clone(),
        None => upstream.map_response(|answer| answer.map(Body::new)).boxed_clone(),
    };
    let good = Arc::new(AtomicU32::new(0));
    let (mut share, mut lowest) = ([0.0; 4], u32::MAX);
    // before, the slow period, a second to recover, after
    for (stretch, (seconds, factor)) in [(10.0, 1), (10.0, 4), (1.0, 1), (10.0, 1)].into_iter().enumerate() {
        slower.store(factor, SeqCst);
        good.store(0, SeqCst);
        // by the clock of the arrivals: a sleep is rounded up to whole milliseconds
        let (mut next, mut asked) = (Instant::now(), 0);
        let end = next + Duration::from_secs_f64(seconds);
        while next < end {
            next += Duration::from_secs_f64(exponential() / 700.0);
            sleep_until(next).await;
            asked += 1;
            lowest = lowest.min(handle.as_ref().map_or(0, |handle| handle.snapshot().limit));
            let (service, good) = (service.clone(), good.clone());
            tokio::spawn(async move {
                if let Ok(Ok(answer)) = timeout(Duration::from_secs(2), service.oneshot(request())).await {
                    good.fetch_add(u32::from(answer.status() == 200), SeqCst);
                }
            });
        }
        #[allow(clippy::cast_precision_loss)]
        let could = f64::from(asked).min(seconds * WORKERS as f64 / (SERVICE * f64::from(factor)));
        share[stretch] = f64::from(good.load(SeqCst)) / could;
    }
    Storm { during: share[1], after: share[3], lowest }
}

#[tokio::test(start_paused = true)]
async fn the_upstream_keeps_its_goodput_in_a_slow_period_and_recovers_within_a_second() {
    let without = storm(None).await;
    let with = storm(Some(ConcurrencyLimitLayer::adaptive())).await;
    println!("without: {without:?}\nwith: {with:?}");
    assert!(without.during < 0.4 && without.after < 0.7, "{without:?}");
    assert!(with.during > 0.7 && with.after > 0.98, "{with:?}");
    assert!(with.lowest > 2, "{with:?}");
}

#[tokio::test]
async fn a_rejected_call_never_reaches_the_inner_service_whose_readiness_passes_through() {
    let limit = ConcurrencyLimitLayer::fixed(1);
    let (service, mut handle) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
    let mut service = limit.layer(service);
    handle.allow(0);
    let ready = |service: &mut tower_upstream::limit::ConcurrencyLimit<_>| {
        Service::<Request<Body>>::poll_ready(service, &mut Context::from_waker(Waker::noop()))
    };
    assert!(ready(&mut service).is_pending(), "the inner service is not ready");
    handle.allow(2);
    assert!(matches!(ready(&mut service), Poll::Ready(Ok(()))));
    let first = service.call(request());
    assert!(matches!(ready(&mut service), Poll::Ready(Ok(()))), "full is no matter of readiness");
    assert_eq!(service.call(request()).await.unwrap().status(), 503);
    let (_, respond) = handle.next_request().await.unwrap();
    respond.send_response(Response::new(Body::empty()));
    assert_eq!(first.await.unwrap().status(), 200);
}

/// Answers in virtual time: `/slow` after this time, `/503` and `/quick` at once, others after 10 ms; reads the upload first.
fn routes(
    slow: Duration,
) -> impl Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send> + Clone + Send {
    service_fn(move |request: Request<Body>| async move {
        let path = request.uri().path().to_owned();
        let _ = request.into_body().collect().await;
        let mut answer = Response::new(Body::empty());
        match path.as_str() {
            "/slow" => sleep(slow).await,
            "/503" => *answer.status_mut() = StatusCode::SERVICE_UNAVAILABLE,
            "/quick" => {}
            _ => sleep(Duration::from_millis(10)).await,
        }
        Ok(answer)
    })
}

/// Calls `/` so many times, this often a second, and returns how many were refused.
async fn refused<S>(service: &S, calls: u32, rate: u32) -> usize
where
    S: Service<Request<Body>, Error = Infallible, Future: Send> + Clone + Send + 'static,
    S: Service<Request<Body>, Response: AnyResponse>,
{
    let (mut tasks, mut next) = (JoinSet::new(), Instant::now());
    for _ in 0..calls {
        next += Duration::from_secs(1) / rate;
        sleep_until(next).await;
        tasks.spawn(service.clone().oneshot(request()));
    }
    tasks.join_all().await.into_iter().filter(|answer| answer.as_ref().unwrap().code() == 503).count()
}

trait AnyResponse: Send + 'static {
    fn code(&self) -> u16;
}

impl<B: Send + 'static> AnyResponse for Response<B> {
    fn code(&self) -> u16 {
        self.status().as_u16()
    }
}

/// So many callers that each call as soon as their last call has ended.
fn callers<S, R>(service: &S, count: usize, request: R) -> JoinSet<()>
where
    S: Service<Request<Body>, Error = Infallible, Future: Send, Response: Send> + Clone + Send + 'static,
    R: Fn() -> Request<Body> + Clone + Send + 'static,
{
    let mut tasks = JoinSet::new();
    for _ in 0..count {
        let (service, request) = (service.clone(), request.clone());
        tasks.spawn(async move {
            loop {
                let _ = service.clone().oneshot(request()).await;
                sleep(Duration::from_millis(5)).await;
            }
        });
    }
    tasks
}

/// A body of 30 bytes, one each 100 ms.
fn drips() -> Body {
    Body::from_stream(stream::unfold(0, |sent| async move {
        sleep(Duration::from_millis(100)).await;
        (sent < 30).then(|| (Ok::<_, Infallible>(Bytes::from_static(b"x")), sent + 1))
    }))
}

#[tokio::test(start_paused = true)]
async fn slow_routes_and_slow_uploads_beside_a_fast_route_lower_no_limit() {
    for (slow, rate) in [(1, 100), (5, 100), (5, 500)] {
        let limit = ConcurrencyLimitLayer::adaptive().bounds(2..=200);
        let service = limit.layer(routes(Duration::from_secs(slow)));
        let _slow = callers(&service, 20, || Request::get("/slow").body(Body::empty()).unwrap());
        let _uploads = callers(&service, 20, || Request::post("/").body(drips()).unwrap());
        assert_eq!(refused(&service, 20 * rate, rate).await, 0, "{slow} s at {rate}/s");
        assert_eq!(limit.handle().snapshot().limit, 200, "{slow} s at {rate}/s");
    }
}

#[tokio::test(start_paused = true)]
async fn a_route_in_maintenance_or_one_that_hangs_does_not_limit_the_others() {
    let limit = ConcurrencyLimitLayer::adaptive();
    let timeouts = TimeoutLayer::new(Timeouts::new().response_head(Duration::from_secs(1))).without_upload_tracking();
    let service = limit.layer(timeouts.layer(routes(Duration::from_secs(3600))));
    for path in ["/503", "/slow"] {
        let _failing = callers(&service, 20, move || Request::get(path).body(Body::empty()).unwrap());
        assert_eq!(refused(&service, 300, 20).await, 0, "{path}");
        assert_eq!(limit.handle().snapshot().limit, 1024, "{path}");
    }
}

#[tokio::test(start_paused = true)]
async fn no_client_takes_slots_from_the_others_by_what_it_calls_and_when_it_stops() {
    let limit = ConcurrencyLimitLayer::adaptive();
    let service = limit.layer(routes(Duration::from_secs(1)));
    let others = {
        let service = service.clone();
        tokio::spawn(async move {
            let mut refused = 0;
            for _ in 0..600 {
                sleep(Duration::from_millis(50)).await;
                let burst = futures_util::future::join_all((0..20).map(|_| service.clone().oneshot(request()))).await;
                refused += burst.iter().filter(|answer| answer.as_ref().unwrap().status() == 503).count();
            }
            refused
        })
    };
    while !others.is_finished() {
        for path in ["/quick", "/slow", "/503", "/other"] {
            let hostile = callers(&service, 20, move || Request::get(path).body(Body::empty()).unwrap());
            sleep(Duration::from_millis(1_700)).await;
            drop(hostile);
            sleep(Duration::from_millis(1_300)).await;
        }
    }
    assert_eq!(others.await.unwrap(), 0, "{:?}", limit.handle());
}

#[tokio::test(start_paused = true)]
async fn a_limit_that_overload_has_lowered_grows_again_whatever_the_statuses() {
    for status in [200, 304, 401, 404, 500] {
        let limit = ConcurrencyLimitLayer::adaptive().bounds(2..=200);
        let now = Arc::new(AtomicU32::new(429));
        let service = {
            let now = now.clone();
            limit.layer(service_fn(move |_: Request<Body>| {
                let status = u16::try_from(now.load(SeqCst)).unwrap();
                async move {
                    sleep(Duration::from_millis(50)).await;
                    Ok::<_, Infallible>(Response::builder().status(status).body(Body::empty()).unwrap())
                }
            }))
        };
        let _callers = callers(&service, 100, request);
        sleep(Duration::from_secs(10)).await;
        assert_eq!(limit.handle().snapshot().limit, 2);
        now.store(status, SeqCst);
        sleep(Duration::from_secs(4)).await;
        let before = limit.handle().snapshot();
        assert!(before.limit >= 100, "{status}: {before:?}");
        sleep(Duration::from_secs(10)).await;
        assert_eq!(limit.handle().snapshot().refused, before.refused, "{status}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_lowered_limit_refuses_nothing_a_minute_after_the_overload_however_few_calls_there_are() {
    for (at_once, pause) in [(1, 30), (4, 10), (20, 10), (20, 30)] {
        let limit = ConcurrencyLimitLayer::adaptive();
        let busy = Arc::new(AtomicU32::new(1));
        let service = {
            let busy = busy.clone();
            limit.layer(service_fn(move |_: Request<Body>| {
                let busy = busy.load(SeqCst) == 1;
                async move {
                    sleep(Duration::from_millis(20)).await;
                    let status = if busy { 429 } else { 200 };
                    Ok::<_, Infallible>(Response::builder().status(status).body(Body::empty()).unwrap())
                }
            }))
        };
        let burst = || futures_util::future::join_all((0..at_once).map(|_| service.clone().oneshot(request())));
        for _ in 0..600 {
            burst().await;
            sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(limit.handle().snapshot().limit, 2);
        busy.store(0, SeqCst);
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(600) {
            let statuses = burst().await;
            let refused = statuses.iter().filter(|answer| answer.as_ref().unwrap().status() == 503).count();
            assert!(refused == 0 || began.elapsed() < Duration::from_secs(60), "{at_once} each {pause} s");
            sleep(Duration::from_secs(pause)).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn grpc_statuses_of_overload_lower_the_limit_in_the_head_and_in_the_trailers() {
    for in_trailers in [false, true] {
        for (code, lowered) in [("8", true), ("14", true), ("5", false)] {
            let limit = ConcurrencyLimitLayer::adaptive();
            let service = limit.layer(service_fn(move |_: Request<Body>| async move {
                sleep(Duration::from_millis(20)).await;
                let mut status = http::HeaderMap::new();
                status.insert("grpc-status", code.parse().unwrap());
                let mut answer = Response::new(Body::empty());
                if in_trailers {
                    let frames = [Ok::<_, Infallible>(http_body::Frame::trailers(status))];
                    *answer.body_mut() = Body::new(http_body_util::StreamBody::new(stream::iter(frames)));
                } else {
                    answer.headers_mut().extend(status);
                }
                Ok::<_, Infallible>(answer)
            }));
            for _ in 0..300 {
                let request = Request::post("/").header("content-type", "application/grpc").body(Body::empty());
                let answer = service.clone().oneshot(request.unwrap()).await.unwrap();
                answer.into_body().collect().await.unwrap();
            }
            let seen = limit.handle().snapshot();
            assert_eq!(seen.limit < 1024, lowered, "{code}, in trailers: {in_trailers}: {seen:?}");
        }
    }
}
