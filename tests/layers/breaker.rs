//! `CircuitBreakerLayer` around services, in axum apps, and together with timeouts.

use std::convert::Infallible;
use std::future::{Future, pending, poll_fn, ready};
use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::routing::get;
use bytes::Bytes;
use futures_util::stream;
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use tokio::net::TcpListener;
use tokio::time::{Instant, advance, sleep};
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};
use tower_upstream::breaker::{BreakerPolicy, CircuitBreakerLayer, CircuitHandle, CircuitSnapshot, Ratio, State};
use tower_upstream::cause::{Evidence, Phase, Replay};
use tower_upstream::timeout::{TimeoutLayer, Timeouts};
use tower_upstream::{BadGatewayCause as Cause, ClassifyLayer, Failure};

use crate::support::service::{self as scripted, Act, Scripted};
use crate::support::{self, ask};

const SECOND: Duration = Duration::from_secs(1);

/// Responds as it was last set to, and counts its calls.
#[derive(Clone)]
struct Upstream {
    says: Arc<Mutex<Says>>,
    called: Arc<AtomicUsize>,
}

#[derive(Clone, Copy)]
enum Says {
    Status(u16),
    Busy,
    Cause(Cause),
    Error,
    /// A head, and a body that breaks off.
    HalfABody,
    /// A head, and a body that never ends.
    EndlessBody,
    Hang,
}

impl Upstream {
    fn new(says: Says) -> Self {
        Self { says: Arc::new(Mutex::new(says)), called: Arc::default() }
    }

    fn say(&self, says: Says) {
        *self.says.lock().unwrap() = says;
    }

    fn called(&self) -> usize {
        self.called.load(Relaxed)
    }

    fn service(
        &self,
    ) -> impl Service<Request<Body>, Response = Response<Body>, Error = io::Error, Future: Send> + Clone + Send + 'static
    {
        let own = self.clone();
        service_fn(move |_: Request<Body>| {
            own.called.fetch_add(1, Relaxed);
            let says = *own.says.lock().unwrap();
            async move {
                let mut answer = Response::new(Body::empty());
                let first = || Ok::<_, io::Error>(Bytes::from("half"));
                match says {
                    Says::Status(status) => *answer.status_mut() = StatusCode::from_u16(status).unwrap(),
                    Says::Busy => {
                        *answer.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
                        answer.headers_mut().insert("retry-after", "1".parse().unwrap());
                    }
                    Says::Cause(cause) => {
                        *answer.status_mut() = cause.status();
                        answer.extensions_mut().insert(cause);
                    }
                    Says::Error => return Err(io::ErrorKind::ConnectionRefused.into()),
                    Says::HalfABody => {
                        let broken = Err(io::ErrorKind::ConnectionReset.into());
                        *answer.body_mut() = Body::from_stream(stream::iter([first(), broken]));
                    }
                    Says::EndlessBody => {
                        let frames = stream::unfold(0, |sent| async move {
                            if sent > 0 {
                                pending::<()>().await;
                            }
                            Some((Ok::<_, io::Error>(Bytes::from("half")), sent + 1))
                        });
                        *answer.body_mut() = Body::from_stream(frames);
                    }
                    Says::Hang => pending().await,
                }
                Ok(answer)
            }
        })
    }
}

fn request() -> Request<Body> {
    Request::new(Body::empty())
}

fn told(circuit: &CircuitHandle) -> CircuitSnapshot {
    circuit.snapshot(Instant::now())
}

/// Makes a call and reads its body to the end; returns the status, if there is one.
async fn call<S, B>(service: &S) -> Option<StatusCode>
where
    S: Service<Request<Body>, Response = Response<B>> + Clone,
    B: http_body::Body,
{
    let answer = service.clone().oneshot(request()).await.ok()?;
    let status = answer.status();
    let _ = answer.into_body().collect().await;
    Some(status)
}

/// Makes calls; returns how many of them reach the upstream.
async fn reach<S, B>(upstream: &Upstream, service: &S, calls: usize) -> usize
where
    S: Service<Request<Body>, Response = Response<B>> + Clone,
    B: http_body::Body,
{
    let before = upstream.called();
    for _ in 0..calls {
        call(service).await;
    }
    upstream.called() - before
}

#[tokio::test(start_paused = true)]
async fn five_failed_calls_open_the_circuit_whatever_came_before() {
    let upstream = Upstream::new(Says::Status(200));
    let layer = CircuitBreakerLayer::new("test");
    let service = layer.layer(upstream.service());
    assert_eq!(reach(&upstream, &service, 20_000).await, 20_000);
    upstream.say(Says::Error);
    assert_eq!(reach(&upstream, &service, 9000).await, 5);
}

#[tokio::test(start_paused = true)]
async fn only_failures_of_the_upstream_open_the_circuit() {
    let failures = [
        (Says::Error, 5),
        (Says::Cause(Cause::ConnectionRefused), 5),
        (Says::Cause(Cause::FirstByteTimeout), 5),
        (Says::HalfABody, 5),
        // a response proves that the upstream lives: it takes as many as for a share
        (Says::Status(502), 20),
        (Says::Status(503), 20),
        (Says::Status(504), 20),
    ];
    for (says, calls) in failures {
        let upstream = Upstream::new(says);
        let service = CircuitBreakerLayer::new("test").layer(upstream.service());
        assert_eq!(reach(&upstream, &service, 50).await, calls);
    }
    let others = [
        Says::Status(101),
        Says::Status(404),
        Says::Status(429),
        Says::Status(500),
        Says::Busy,
        Says::Cause(Cause::GatewayOverload),
        Says::Cause(Cause::ClientClosed),
        Says::Cause(Cause::StaleConnection),
    ];
    for says in others {
        let upstream = Upstream::new(says);
        let service = CircuitBreakerLayer::new("test").layer(upstream.service());
        assert_eq!(reach(&upstream, &service, 50).await, 50);
    }
    let upstream = Upstream::new(Says::Status(500));
    let all = BreakerPolicy::new().statuses(|status| status.is_server_error());
    let service = CircuitBreakerLayer::new("test").policy(all).layer(upstream.service());
    assert_eq!(reach(&upstream, &service, 50).await, 20);
}

#[tokio::test(start_paused = true)]
async fn a_rejection_names_the_failure_that_opened_the_circuit() {
    let upstream = Upstream::new(Says::Error);
    let layer = CircuitBreakerLayer::new("payments");
    let service = layer.layer(ClassifyLayer::new().layer(upstream.service()));
    reach(&upstream, &service, 5).await;
    let answer = service.oneshot(request()).await.unwrap();
    assert_eq!(
        (answer.status(), &answer.headers()["retry-after"]),
        (StatusCode::SERVICE_UNAVAILABLE, &"1".parse().unwrap())
    );
    let failure = Failure::of(&answer).unwrap();
    assert_eq!((failure.cause(), failure.phase()), (Cause::CircuitOpen, Phase::Gateway));
    assert_eq!((failure.replay(), failure.evidence()), (Replay::NotSent, Evidence::LocalRefusal));
    assert_eq!((failure.upstream(), failure.previous().len()), (Some("payments"), 0));
    let opened_by = failure.opened_by().unwrap();
    assert_eq!((opened_by.cause(), opened_by.phase()), (Cause::ConnectionRefused, Phase::Connect));
    assert!(failure.to_string().contains(", opened by connection_refused"), "{failure}");
    let told = told(&layer.handle());
    assert_eq!((told.state, told.refused, told.opened), (State::Open, 1, 1));
    assert!(told.next_probe.unwrap() - Instant::now() >= SECOND / 2);
    assert!(!answer.into_body().collect().await.unwrap().to_bytes().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_rejected_call_neither_calls_nor_waits_for_the_upstream() {
    let (inner, script) = Scripted::new();
    script.play([Act::Responds(502); 20]);
    let layer = CircuitBreakerLayer::new("test");
    let mut service = layer.layer(inner);
    for _ in 0..20 {
        assert_eq!(scripted::ready(&mut service).await.call(request()).await.unwrap().status(), 502);
    }
    script.close();
    let polls = script.polls();
    for _ in 0..100 {
        assert_eq!(scripted::ready(&mut service).await.call(request()).await.unwrap().status(), 503);
    }
    assert_eq!((script.calls(), script.polls()), (20, polls));
    assert_eq!(told(&layer.handle()).refused, 100);

    // ready while the circuit was open, called after the open duration: the readiness of the upstream was not polled
    script.open();
    scripted::ready(&mut service).await;
    advance(SECOND).await;
    assert_eq!(service.call(request()).await.unwrap().status(), 503);
    let before = told(&layer.handle());
    assert_eq!((script.calls(), before.state, before.probes), (20, State::Open, 0));
    let answer = scripted::ready(&mut service).await.call(request()).await.unwrap();
    assert_eq!(answer.status(), 200);
    answer.into_body().collect().await.unwrap();
    assert_eq!(told(&layer.handle()).state, State::Closed);
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_is_not_ready_after_the_open_duration_holds_no_probe() {
    let (inner, script) = Scripted::new();
    script.play([Act::Responds(502); 20]);
    let layer = CircuitBreakerLayer::new("test");
    let mut service = layer.layer(inner);
    for _ in 0..20 {
        scripted::ready(&mut service).await.call(request()).await.unwrap();
    }
    script.close();
    advance(SECOND).await;
    let waits = poll_fn(|cx| Poll::Ready(Service::<Request<Body>>::poll_ready(&mut service, cx).is_pending())).await;
    assert!(waits, "backpressure is passed on");
    assert_eq!((told(&layer.handle()).probes, script.calls()), (0, 20));
}

#[tokio::test(start_paused = true)]
async fn one_of_a_thousand_concurrent_calls_is_the_probe() {
    let upstream = Upstream::new(Says::Error);
    let layer = CircuitBreakerLayer::new("test");
    let service = layer.layer(upstream.service());
    reach(&upstream, &service, 5).await;
    upstream.say(Says::Hang);
    advance(SECOND).await;
    let (before, mut calls) = (upstream.called(), tokio::task::JoinSet::new());
    for _ in 0..1000 {
        let service = service.clone();
        calls.spawn(async move { service.oneshot(request()).await.unwrap().headers()["retry-after"].clone() });
    }
    for _ in 0..999 {
        assert_eq!(calls.join_next().await.unwrap().unwrap(), "1");
    }
    assert_eq!((upstream.called() - before, told(&layer.handle()).state), (1, State::HalfOpen));
    // the client of the probe cancels
    calls.shutdown().await;
    upstream.say(Says::Status(200));
    assert_eq!(call(&service).await, Some(StatusCode::OK));
    assert_eq!(told(&layer.handle()).state, State::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_hangs_lets_another_call_be_the_probe() {
    let upstream = Upstream::new(Says::Error);
    let layer = CircuitBreakerLayer::new("test");
    let service = layer.layer(upstream.service());
    reach(&upstream, &service, 5).await;
    upstream.say(Says::Hang);
    advance(SECOND).await;
    let hung = tokio::spawn(service.clone().oneshot(request()));
    sleep(SECOND / 2).await;
    upstream.say(Says::Status(200));
    assert_eq!(call(&service).await, Some(StatusCode::SERVICE_UNAVAILABLE));
    // the rest of its timeout, then the next open duration
    sleep(SECOND / 2 + SECOND * 2).await;
    assert_eq!(call(&service).await, Some(StatusCode::OK));
    assert_eq!(reach(&upstream, &service, 100).await, 100);
    hung.abort();
    assert!(hung.await.unwrap_err().is_cancelled());
    assert_eq!(told(&layer.handle()).state, State::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_timeout_counts_whether_it_is_outside_or_inside_the_breaker() {
    let limits = || TimeoutLayer::new(Timeouts::new().response_head(SECOND)).without_upload_tracking();
    let upstream = Upstream::new(Says::Hang);
    let layer = CircuitBreakerLayer::new("test");
    let below = layer.layer(limits().layer(upstream.service()));
    assert_eq!(reach(&upstream, &below, 20).await, 5);
    assert_eq!(told(&layer.handle()).cause.unwrap().cause(), Cause::FirstByteTimeout);

    let layer = CircuitBreakerLayer::new("test");
    let above = limits().layer(layer.layer(upstream.service()));
    assert_eq!(reach(&upstream, &above, 20).await, 5);
    assert_eq!(told(&layer.handle()).cause.unwrap().cause(), Cause::FirstByteTimeout);

    let upstream = Upstream::new(Says::EndlessBody);
    let layer = CircuitBreakerLayer::new("test");
    let limits = TimeoutLayer::new(Timeouts::new().body_idle(SECOND)).without_upload_tracking();
    let above = limits.layer(layer.layer(upstream.service()));
    assert_eq!(reach(&upstream, &above, 20).await, 5);
    assert_eq!(told(&layer.handle()).cause.unwrap().cause(), Cause::BodyReadTimeout);
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_call_counts_neither_way() {
    let upstream = Upstream::new(Says::EndlessBody);
    let layer = CircuitBreakerLayer::new("test");
    let service = layer.layer(upstream.service());
    for _ in 0..50 {
        let mut answer = service.clone().oneshot(request()).await.unwrap();
        assert!(answer.frame().await.unwrap().is_ok());
    }
    upstream.say(Says::Hang);
    for _ in 0..50 {
        let mut call = pin!(service.clone().oneshot(request()));
        assert!(poll_fn(|cx| Poll::Ready(call.as_mut().poll(cx).is_pending())).await);
    }
    let told = told(&layer.handle());
    assert_eq!((told.state, told.calls, upstream.called()), (State::Closed, 0, 100));
}

#[tokio::test(start_paused = true)]
async fn a_probes_long_download_rejects_others_only_until_the_probe_timeout() {
    let upstream = Upstream::new(Says::Error);
    let layer = CircuitBreakerLayer::new("test");
    let service = layer.layer(upstream.service());
    reach(&upstream, &service, 5).await;
    upstream.say(Says::EndlessBody);
    advance(SECOND).await;
    let download = service.clone().oneshot(request()).await.unwrap();
    assert_eq!(told(&layer.handle()).state, State::HalfOpen);
    upstream.say(Says::Status(200));
    assert_eq!(reach(&upstream, &service, 10).await, 0);
    advance(SECOND).await;
    assert_eq!(reach(&upstream, &service, 10).await, 10);
    drop(download);
    assert_eq!(told(&layer.handle()).state, State::Closed);
}

#[tokio::test(start_paused = true)]
async fn slow_calls_count_to_the_response_head_and_not_to_the_end_of_a_body_that_its_client_reads_slowly() {
    let slow = service_fn(|request: Request<Body>| async move {
        if request.uri().path() == "/slow" {
            sleep(SECOND * 2).await;
        }
        let late = stream::once(async {
            sleep(SECOND * 2).await;
            Ok::<_, Infallible>(Bytes::from("late"))
        });
        Ok::<_, Infallible>(Response::new(Body::from_stream(late)))
    });
    let policy = BreakerPolicy::new().slow_calls(SECOND, Ratio::per_mille(500)).ratio(Ratio::per_mille(500), 3);
    let layer = CircuitBreakerLayer::new("test").policy(policy);
    let service = layer.layer(slow);
    for _ in 0..20 {
        assert_eq!(call(&service).await.unwrap(), 200);
    }
    layer.handle().reset();
    for status in [200, 200, 200, 503] {
        let request = Request::get("/slow").body(Body::empty()).unwrap();
        let answer = service.clone().oneshot(request).await.unwrap();
        assert_eq!(answer.status(), status);
        answer.into_body().collect().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn clones_share_one_circuit() {
    let upstream = Upstream::new(Says::Error);
    let layer = CircuitBreakerLayer::new("test");
    let builder = ServiceBuilder::new().layer(layer.clone());
    let services: Vec<_> = (0..50).map(|_| builder.clone().service(upstream.service())).collect();
    for service in &services {
        call(&service.clone()).await;
    }
    assert_eq!(upstream.called(), 5);
    assert_eq!(told(&layer.clone().handle()).refused, 45);
}

#[tokio::test(start_paused = true)]
async fn a_service_under_hypers_server_is_rejected_without_a_poll_of_readiness() {
    let called = Arc::<AtomicUsize>::default();
    let counts = called.clone();
    let inner = service_fn(move |_: Request<Body>| {
        counts.fetch_add(1, Relaxed);
        ready(Err::<Response<Body>, io::Error>(io::ErrorKind::ConnectionRefused.into()))
    });
    let service = hyper_util::service::TowerToHyperService::new(CircuitBreakerLayer::new("test").layer(inner));
    let mut refused = 0;
    for _ in 0..50 {
        if let Ok(answer) = hyper::service::Service::call(&service, request()).await {
            assert_eq!(answer.status(), 503);
            refused += 1;
        }
    }
    assert_eq!((called.load(Relaxed), refused), (5, 45));
}

/// Three routes that all fail, behind one circuit.
fn app(layer: &CircuitBreakerLayer) -> (Router, Arc<AtomicUsize>) {
    let called = Arc::<AtomicUsize>::default();
    let handler = || {
        let called = called.clone();
        get(move || {
            called.fetch_add(1, Relaxed);
            ready(StatusCode::BAD_GATEWAY)
        })
    };
    let app = Router::new().route("/a", handler()).route("/b", handler()).route("/c", handler());
    (app.layer(layer.clone()), called)
}

/// The defaults, with an open duration longer than any test.
fn long() -> CircuitBreakerLayer {
    let pause = Duration::from_secs(1800);
    CircuitBreakerLayer::new("app").policy(BreakerPolicy::new().open_duration(pause).max_open_duration(pause))
}

#[tokio::test]
async fn routes_and_fresh_connections_share_one_circuit() {
    let expected: Vec<_> = [502; 20].into_iter().chain([503; 30]).collect();
    for made in [false, true] {
        let layer = long();
        let (app, called) = app(&layer);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        if made {
            tokio::spawn(async move { axum::serve(listener, app.into_make_service()).await });
        } else {
            tokio::spawn(async move { axum::serve(listener, app).await });
        }
        let mut statuses = Vec::new();
        for at in 0..50 {
            let path = ["/a", "/b", "/c"][at % 3];
            let get = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
            let answer = ask(address, &get).await;
            let after: Option<u64> = answer.get("retry-after").map(|seconds| seconds.parse().unwrap());
            assert!(after.is_none_or(|seconds| (800..=1800).contains(&seconds)), "{after:?}");
            statuses.push(answer.status());
        }
        assert_eq!((&statuses, called.load(Relaxed)), (&expected, 20));
        assert_eq!(told(&layer.handle()).refused, 30);
    }
}

#[tokio::test]
async fn a_tonic_servers_connections_share_one_circuit() {
    let (layer, called) = (long(), Arc::<AtomicUsize>::default());
    let address = {
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
        free.local_addr().unwrap()
    };
    let count = called.clone();
    let broken = Router::new().fallback(move || {
        count.fetch_add(1, Relaxed);
        ready(StatusCode::BAD_GATEWAY)
    });
    let mut server = tonic::transport::Server::builder().accept_http1(true).layer(layer.clone());
    tokio::spawn(server.add_routes(broken.into()).serve(address));
    support::until("it listens", || std::net::TcpStream::connect(address).is_ok()).await;
    for _ in 0..30 {
        let post = "POST /test.Broken/Do HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        ask(address, post).await;
    }
    assert_eq!((called.load(Relaxed), told(&layer.handle()).refused), (20, 10));
}

#[tokio::test]
async fn a_failed_response_counts_though_its_body_is_not_read() {
    let layer = long();
    let service = layer.layer(service_fn(|_: Request<Body>| {
        ready(Ok::<_, Infallible>(Response::builder().status(502).body(Body::from("a page")).unwrap()))
    }));
    for _ in 0..20 {
        drop(service.clone().oneshot(request()).await.unwrap());
    }
    assert_eq!(told(&layer.handle()).state, State::Open);
}

#[tokio::test(start_paused = true)]
async fn each_upstream_has_its_circuit_and_an_open_one_is_evicted_last() {
    let service = service_fn(|request: Request<Body>| async move {
        match request.uri().host() {
            Some("dead.example") => Err(Failure::new(Cause::ConnectionRefused)),
            _ => Ok(Response::new(Body::empty())),
        }
    });
    let circuits = long().keyed();
    let service = circuits.layer(service);
    let ask =
        |host: &str| service.clone().oneshot(Request::get(format!("http://{host}/")).body(Body::empty()).unwrap());
    for _ in 0..5 {
        assert!(ask("dead.example").await.is_err());
    }
    for other in 0..1500 {
        assert_eq!(ask(&format!("h{other}.example")).await.unwrap().status(), 200);
    }
    let now = tokio::time::Instant::now();
    assert_eq!(circuits.all().len(), 1024);
    assert_eq!(ask("DEAD.example").await.unwrap().status(), 503, "and names have no case");
    let dead = circuits.get("dead.example").unwrap().handle();
    dead.reset();
    assert!(ask("dead.example").await.is_err());
    assert!(circuits.get("h0.example").is_none());
    assert_eq!(circuits.fallback().handle().snapshot(now).calls, 0);

    // by another name
    let routes = long().keyed().key(|uri, _| uri.path().split('/').nth(1));
    let service = routes.layer(service_fn(|_: Request<Body>| async { Err::<Response<Body>, _>("its own") }));
    for _ in 0..5 {
        assert!(service.clone().oneshot(Request::get("/a/1").body(Body::empty()).unwrap()).await.is_err());
    }
    assert_eq!(service.clone().oneshot(Request::get("/a/2").body(Body::empty()).unwrap()).await.unwrap().status(), 503);
    assert!(service.oneshot(Request::get("/b/1").body(Body::empty()).unwrap()).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn an_operator_holds_a_circuit_open_and_releases_it() {
    let upstream = Upstream::new(Says::Status(200));
    let layer = CircuitBreakerLayer::new("test");
    let (service, circuit) = (layer.layer(upstream.service()), layer.handle());
    circuit.hold_open();
    assert_eq!(reach(&upstream, &service, 9).await, 0);
    advance(SECOND * 3600).await;
    let answer = service.clone().oneshot(request()).await.unwrap();
    assert_eq!(answer.headers()["retry-after"], "10");
    assert_eq!(Cause::of(&answer), Some(Cause::CircuitOpen));
    circuit.release();
    assert_eq!(told(&circuit).state, State::HalfOpen);
    assert_eq!(reach(&upstream, &service, 9).await, 9);
    circuit.hold_open();
    circuit.reset();
    assert_eq!(reach(&upstream, &service, 9).await, 9);
    assert_eq!((told(&circuit).state, circuit.name()), (State::Closed, "test"));
}

#[tokio::test(start_paused = true)]
async fn a_subscriber_to_transitions_sees_the_latest() {
    let upstream = Upstream::new(Says::Error);
    let layer = CircuitBreakerLayer::new("test");
    let service = layer.layer(upstream.service());
    let mut transitions = layer.handle().transitions();
    assert_eq!(transitions.next().await.unwrap().state, State::Closed);
    reach(&upstream, &service, 5).await;
    let open = transitions.next().await.unwrap();
    assert_eq!((open.state, open.cause.unwrap().cause()), (State::Open, Cause::Unknown));
    assert!(open.open_for >= SECOND / 2 && open.open_for <= SECOND);
    upstream.say(Says::Status(200));
    sleep(SECOND).await;
    call(&service).await;
    let latest = transitions.next().await.unwrap();
    assert_eq!((latest.state, latest.cause.is_none()), (State::Closed, true));
    drop((service, layer));
    assert!(transitions.next().await.is_none());
}

/// Collects the log.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn every_transition_is_one_log_event() {
    let lines = Lines::default();
    let writer = lines.clone();
    let log = tracing_subscriber::fmt().with_ansi(false).without_time().with_writer(move || writer.clone()).finish();
    let _log = crate::support::subscribe(log);
    let upstream = Upstream::new(Says::Error);
    let service = CircuitBreakerLayer::new("payments").layer(ClassifyLayer::new().layer(upstream.service()));
    reach(&upstream, &service, 50).await;
    upstream.say(Says::Status(200));
    sleep(SECOND).await;
    reach(&upstream, &service, 50).await;
    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    let about: Vec<_> = text.lines().filter(|line| line.contains("circuit.state")).collect();
    assert_eq!(about.len(), 3, "{text}");
    for part in [
        "WARN tower_upstream: ",
        "upstream=\"payments\"",
        "circuit.state=\"open\"",
        "error.type=\"connection_refused\"",
    ] {
        assert!(about[0].contains(part), "{}", about[0]);
    }
    assert!(about[1].trim_start().starts_with("INFO") && about[1].contains("\"half_open\""), "{}", about[1]);
    assert!(about[2].trim_start().starts_with("INFO") && about[2].contains("\"closed\""), "{}", about[2]);
    assert!(about[2].contains("refused=45"), "{}", about[2]);
}
