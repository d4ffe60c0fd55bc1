//! `AdmissionLayer` in axum apps, and under twice the load that an app can serve.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::routing::get;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use tokio::net::TcpListener;
use tokio::sync::{Notify, Semaphore};
use tokio::time::{Instant, sleep, timeout};
use tower::{Layer, ServiceExt, service_fn};
use tower_upstream::admission::AdmissionLayer;
use tower_upstream::cause::{Evidence, Phase, Replay};
use tower_upstream::deadline::{Deadline, DeadlineHeader, DeadlinePropagation};
use tower_upstream::timeout::{TimeoutLayer, Timeouts};
use tower_upstream::{BadGatewayCause as Cause, Failure};

use crate::support::{Wire, ask};

/// Waits until a condition holds of which no event tells.
async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    for _ in 0..900 {
        if is_so() {
            return;
        }
        sleep(Duration::from_millis(10)).await;
    }
    panic!("it never came: {what}");
}

/// Serves as axum does, which makes the layers' services anew for every connection.
async fn serve(app: Router) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await });
    address
}

fn trusting() -> DeadlinePropagation {
    DeadlinePropagation::new().trust_everyone().expose()
}

fn get_with(left: Option<&str>) -> Request<Body> {
    let request = Request::get("/");
    let request = left.into_iter().fold(request, |request, left| request.header("x-request-timeout-ms", left));
    request.body(Body::empty()).unwrap()
}

#[tokio::test]
async fn routes_and_fresh_connections_share_one_count() {
    let go = Arc::new(Notify::new());
    let wait = {
        let go = go.clone();
        move || async move { go.notified().await }
    };
    let admission = AdmissionLayer::new(1);
    let app = Router::new().route("/wait", get(wait)).route("/other", get(|| async { "other" }));
    let address = serve(app.layer(admission.clone())).await;
    let mut first = Wire::connect(address).await;
    first.write("GET /wait HTTP/1.1\r\nHost: a\r\n\r\n").await;
    until("the first is in", || admission.in_flight() == 1).await;
    for path in ["/wait", "/other", "/none"] {
        let refused = ask(address, format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")).await;
        assert_eq!((refused.status(), refused.get("retry-after")), (503, Some("1")), "{path}");
    }
    go.notify_one();
    assert_eq!(first.head().await.status(), 200);
    until("the place is free", || admission.in_flight() == 0).await;
    let answer = ask(address, "GET /other HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    assert_eq!((answer.status(), answer.text().as_str()), (200, "other"));
    assert_eq!(admission.rejections().overloaded, 3);
}

#[tokio::test]
async fn a_client_that_disconnects_releases_its_place() {
    let admission = AdmissionLayer::new(1);
    let app = Router::new().route("/", get(std::future::pending::<()>));
    let address = serve(app.layer(admission.clone())).await;
    let mut wire = Wire::connect(address).await;
    wire.write("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    until("it is in", || admission.in_flight() == 1).await;
    drop(wire);
    until("it has left", || admission.in_flight() == 0).await;
}

#[tokio::test]
async fn a_place_is_held_to_the_end_of_the_body() {
    let admission = AdmissionLayer::new(1);
    let body = || async {
        let chunks = stream::iter(["one", "two"]).map(Ok::<_, std::io::Error>);
        Body::from_stream(chunks)
    };
    let app = Router::new().route("/", get(body)).layer(admission.clone());
    let answer = app.clone().oneshot(get_with(None)).await.unwrap();
    assert_eq!(admission.in_flight(), 1);
    assert_eq!(app.clone().oneshot(get_with(None)).await.unwrap().status(), 503);
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "onetwo");
    assert_eq!(admission.in_flight(), 0);
    drop(app.oneshot(get_with(None)).await.unwrap());
    assert_eq!(admission.in_flight(), 0, "a body that is dropped leaves its place too");
}

#[tokio::test]
async fn a_rejection_names_its_cause_and_says_that_nothing_was_processed() {
    let calls = Arc::new(AtomicU32::new(0));
    let handler = {
        let calls = calls.clone();
        move || async move { calls.fetch_add(1, Relaxed).to_string() }
    };
    let app = Router::new().route("/", get(handler)).layer(AdmissionLayer::new(9).deadlines(trusting()));
    let refused = app.clone().oneshot(get_with(Some("0"))).await.unwrap();
    assert_eq!((refused.status().as_u16(), refused.headers().get("retry-after")), (504, None));
    let failure = Failure::of(&refused).unwrap();
    assert_eq!((failure.cause(), failure.phase()), (Cause::DeadlineExceeded, Phase::Gateway));
    assert_eq!((failure.replay(), failure.evidence()), (Replay::NotSent, Evidence::LocalRefusal));
    assert_eq!(calls.load(Relaxed), 0);
    assert_eq!(app.oneshot(get_with(Some("1000"))).await.unwrap().status(), 200);
    assert_eq!(calls.load(Relaxed), 1);
}

#[tokio::test]
async fn streams_hold_places_under_the_same_cap() {
    let admission = AdmissionLayer::new(2);
    let events = || async { Body::from_stream(stream::pending::<Result<Bytes, std::io::Error>>()) };
    let app = Router::new()
        .route("/events", get(events).layer(admission.clone().unbounded()))
        .route("/", get(|| async { "answer" }).layer(admission.clone()));
    let request = || Request::get("/events").body(Body::empty()).unwrap();
    let _first = app.clone().oneshot(request()).await.unwrap();
    assert_eq!(app.clone().oneshot(get_with(None)).await.unwrap().status(), 200);
    let _second = app.clone().oneshot(request()).await.unwrap();
    assert_eq!(app.oneshot(get_with(None)).await.unwrap().status(), 503);
}

#[tokio::test]
async fn a_handler_can_extract_the_deadline_optionally_or_as_required() {
    let asking = |deadline: Option<Deadline>| async move { if deadline.is_some() { "some" } else { "none" } };
    let insisting = |deadline: Deadline| async move {
        let left = deadline.remaining(Instant::now());
        assert!(left <= Duration::from_secs(60));
        "some"
    };
    let text = async |app: Router, left: Option<&str>| {
        let answer = app.oneshot(get_with(left)).await.unwrap();
        let status = answer.status().as_u16();
        let text = answer.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(text.to_vec()).unwrap())
    };
    let app = Router::new().route("/", get(asking)).layer(AdmissionLayer::new(9).deadlines(trusting()));
    assert_eq!(text(app.clone(), None).await, (200, "none".to_owned()));
    assert_eq!(text(app, Some("70")).await, (200, "some".to_owned()));

    let app = Router::new().route("/", get(insisting));
    let (status, reason) = text(app.clone(), Some("70")).await;
    assert_eq!((status, reason.contains("no layer around it exposes one")), (500, true));
    let limits = TimeoutLayer::new(Timeouts::new()).without_upload_tracking().deadlines(trusting());
    assert_eq!(text(app.layer(limits), None).await, (200, "some".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn a_deadline_set_by_an_outer_layer_reaches_the_handler() {
    let app = Router::new().route("/", get(|| async { "answer" })).layer(AdmissionLayer::new(9));
    let limits = TimeoutLayer::new(Timeouts::new().total(Duration::ZERO)).without_upload_tracking();
    let limits = limits.deadlines(DeadlinePropagation::new().expose());
    let answer = app.layer(limits).oneshot(get_with(None)).await.unwrap();
    let failure = Failure::of(&answer).unwrap();
    assert_eq!((answer.status().as_u16(), failure.phase()), (504, Phase::Gateway));
}

#[tokio::test(start_paused = true)]
async fn a_deadline_travels_from_hop_to_hop_and_only_shrinks() {
    let left = |deadline: Deadline| async move { deadline.remaining(Instant::now()).as_millis().to_string() };
    let app = Router::new().route("/", get(left)).layer(AdmissionLayer::new(9).deadlines(trusting()));
    // as a gateway: some time has passed when it sends the request on
    let hop = tower::service_fn(move |request: Request<Body>| {
        let app = app.clone();
        async move {
            let mut onward = Request::new(Body::empty());
            *onward.headers_mut() = request.headers().clone();
            app.oneshot(onward).await
        }
    });
    let hop = Router::new().fallback_service(hop);
    let deadlines = DeadlinePropagation::new().trust_everyone().forward(DeadlineHeader::grpc());
    let gateway =
        TimeoutLayer::new(Timeouts::new().total(Duration::from_secs(2))).without_upload_tracking().deadlines(deadlines);
    let gateway = hop.layer(gateway);
    for (asked, left) in [(None, "1980"), (Some("9000"), "1980"), (Some("500"), "445"), (Some("soon"), "1980")] {
        let answer = gateway.clone().oneshot(get_with(asked)).await.unwrap();
        assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), left, "{asked:?}");
    }
}

const WORKERS: usize = 8;
const SERVICE: f64 = 0.040;
/// Capacity of the workers, in responses per second.
const CAPACITY: f64 = 200.0;
const PATIENCE: Duration = Duration::from_millis(500);

/// When the client of a request cancels; only the test reads it.
#[derive(Clone, Copy)]
struct Leaves(Instant);

/// What became of the work.
#[derive(Debug, Default)]
struct Done {
    good: u32,
    begun: u32,
    /// Begun after the client had cancelled.
    wasted: u32,
}

impl Done {
    /// Good responses as a share of the capacity of the workers in these seconds.
    fn goodput(&self, seconds: f64, slower: f64) -> f64 {
        f64::from(self.good) * slower / (seconds * CAPACITY)
    }
}

/// Whether workers check the deadline before they begin.
#[derive(Clone, Copy, PartialEq)]
enum Workers {
    ReadTheDeadline,
    DoAllTheyGet,
}

/// An app whose work goes on after its client has cancelled, under this rate of calls; service times are exponential.
async fn ask_too_much(
    admission: Option<AdmissionLayer>,
    workers: Workers,
    rate: f64,
    slower: f64,
    seconds: f64,
) -> Done {
    let done = Arc::new(std::sync::Mutex::new(Done::default()));
    let free = Arc::new(Semaphore::new(WORKERS));
    let dice = Arc::new(std::sync::Mutex::new(fastrand::Rng::with_seed(7)));
    let exponential = move || -dice.lock().unwrap().f64().max(1e-9).ln();
    let app = {
        let (done, free, exponential) = (done.clone(), free.clone(), exponential.clone());
        service_fn(move |request: Request<Body>| {
            let (done, free) = (done.clone(), free.clone());
            let takes = Duration::from_secs_f64(exponential() * SERVICE * slower);
            let leaves = request.extensions().get::<Leaves>().unwrap().0;
            let deadline = Deadline::of(request.extensions()).filter(|_| workers == Workers::ReadTheDeadline);
            let work = tokio::spawn(async move {
                let _worker = free.acquire().await;
                let now = Instant::now();
                if deadline.is_some_and(|deadline| deadline.has_elapsed(now)) {
                    return;
                }
                {
                    let mut done = done.lock().unwrap();
                    done.begun += 1;
                    done.wasted += u32::from(leaves <= now);
                }
                sleep(takes).await;
            });
            async move {
                work.await.unwrap();
                Ok::<_, std::convert::Infallible>(Response::new(Full::new(Bytes::from_static(b"done"))))
            }
        })
    };
    let app = match admission {
        Some(layer) => layer.layer(app).map_response(|answer| answer.map(Body::new)).boxed_clone(),
        None => app.map_response(|answer| answer.map(Body::new)).boxed_clone(),
    };
    let end = Instant::now() + Duration::from_secs_f64(seconds);
    while Instant::now() < end {
        sleep(Duration::from_secs_f64(exponential() / rate)).await;
        let (app, done) = (app.clone(), done.clone());
        tokio::spawn(async move {
            let mut request = get_with(Some("500"));
            request.extensions_mut().insert(Leaves(Instant::now() + PATIENCE));
            let whole = async {
                let answer = app.oneshot(request).await.unwrap();
                (answer.status(), answer.into_body().collect().await.unwrap())
            };
            if let Ok((status, _)) = timeout(PATIENCE, whole).await {
                done.lock().unwrap().good += u32::from(status.is_success());
            }
        });
    }
    std::mem::take(&mut done.lock().unwrap())
}

fn admission() -> AdmissionLayer {
    AdmissionLayer::new(10_000).concurrency(WORKERS).deadlines(trusting())
}

#[tokio::test(start_paused = true)]
async fn under_twice_its_capacity_an_app_keeps_its_goodput() {
    let done = ask_too_much(None, Workers::ReadTheDeadline, 2.0 * CAPACITY, 1.0, 30.0).await;
    println!("without: {done:?}, goodput {:.3}", done.goodput(30.0, 1.0));
    assert!(done.goodput(30.0, 1.0) < 0.1, "without the layer it collapses: {done:?}");

    let done = ask_too_much(Some(admission()), Workers::DoAllTheyGet, 2.0 * CAPACITY, 1.0, 30.0).await;
    println!("layer alone: {done:?}, goodput {:.3}", done.goodput(30.0, 1.0));
    assert!(done.goodput(30.0, 1.0) >= 0.9, "{done:?}");
    assert!(done.wasted * 50 < done.begun, "{done:?}");

    let done = ask_too_much(Some(admission()), Workers::ReadTheDeadline, 2.0 * CAPACITY, 1.0, 30.0).await;
    println!("layer and deadline: {done:?}, goodput {:.3}", done.goodput(30.0, 1.0));
    assert!(done.goodput(30.0, 1.0) >= 0.9, "{done:?}");
    assert_eq!(done.wasted, 0, "nothing is begun whose caller has left: {done:?}");
}

#[tokio::test(start_paused = true)]
async fn an_app_below_its_capacity_rejects_nothing() {
    let layer = admission();
    let done = ask_too_much(Some(layer.clone()), Workers::DoAllTheyGet, 0.7 * CAPACITY, 1.0, 30.0).await;
    println!("at 70 %: {done:?} {:?}", layer.rejections());
    assert_eq!((layer.rejections().too_late, layer.rejections().overloaded), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_slow_period_is_noticed_and_its_end_too() {
    let layer = admission();
    for (slower, seconds, at_least) in [(1.0, 10.0, 0.6), (4.0, 20.0, 0.75), (1.0, 10.0, 0.6)] {
        let done = ask_too_much(Some(layer.clone()), Workers::ReadTheDeadline, 0.7 * CAPACITY, slower, seconds).await;
        println!("{slower} times slower: {done:?} goodput {:.3}", done.goodput(seconds, slower));
        assert!(done.goodput(seconds, slower) > at_least, "{slower}: {done:?}");
        sleep(PATIENCE * 2).await;
        assert_eq!(layer.in_flight(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn an_app_that_mostly_waits_is_admitted_more_than_its_workers() {
    // declared with 4 workers, it serves any number concurrently; from idle to 400 in flight
    let layer = AdmissionLayer::new(10_000).concurrency(4).deadlines(trusting());
    let app = service_fn(|_: Request<Body>| async {
        sleep(Duration::from_millis(50)).await;
        Ok::<_, std::convert::Infallible>(Response::new(Full::new(Bytes::new())))
    });
    let app = layer.layer(app);
    let one = |left| {
        let answer = app.clone().oneshot(get_with(left));
        async { answer.await.unwrap().into_body().collect().await.unwrap() }
    };
    for _ in 0..40 {
        one(None).await;
    }
    assert_eq!(layer.service_time().unwrap().as_millis(), 50);
    let mut calls = Vec::new();
    for _ in 0..8_000 {
        sleep(Duration::from_micros(125)).await;
        calls.push(tokio::spawn(one(Some("500"))));
    }
    for call in calls {
        call.await.unwrap();
    }
    println!("an app that waits: {:?}", layer.rejections());
    assert!(layer.rejections().too_late < 1_000, "{:?}", layer.rejections());
}

/// Takes 5 ms, and sends a body of two frames.
async fn answer_in_two_frames(_: Request<Body>) -> Result<Response<Body>, Infallible> {
    sleep(Duration::from_millis(5)).await;
    Ok(Response::new(Body::from_stream(stream::iter(["one", "two"]).map(Ok::<_, std::io::Error>))))
}

#[tokio::test(start_paused = true)]
async fn who_reads_slowly_does_not_make_the_app_look_slow() {
    let layer = AdmissionLayer::new(200).concurrency(4).deadlines(trusting());
    let app = layer.layer(service_fn(answer_in_two_frames));
    let read_after = |pause| {
        let answer = app.clone().oneshot(get_with(None));
        async move {
            let answer = answer.await.unwrap();
            sleep(pause).await;
            answer.into_body().collect().await.unwrap();
        }
    };
    futures_util::future::join_all((0..32).map(|_| read_after(Duration::from_secs(8)))).await;
    assert!(layer.service_time() < Some(Duration::from_millis(10)), "{:?}", layer.service_time());
    let reading = futures_util::future::join_all((0..8).map(|_| app.clone().oneshot(get_with(None)))).await;
    assert_eq!(app.oneshot(get_with(Some("2000"))).await.unwrap().status(), 200);
    drop(reading);
    assert_eq!((layer.in_flight(), layer.rejections().too_late), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn downloads_beside_quick_calls_refuse_none_of_them() {
    let layer = AdmissionLayer::new(200).concurrency(2).deadlines(trusting());
    let app = layer.layer(service_fn(answer_in_two_frames));
    for _ in 0..10 {
        let app = app.clone();
        tokio::spawn(async move {
            loop {
                let answer = app.clone().oneshot(get_with(None)).await.unwrap();
                sleep(Duration::from_secs(5)).await;
                answer.into_body().collect().await.unwrap();
            }
        });
    }
    for _ in 0..1_000 {
        sleep(Duration::from_millis(50)).await;
        assert_eq!(app.clone().oneshot(get_with(Some("1000"))).await.unwrap().status(), 200);
    }
}
