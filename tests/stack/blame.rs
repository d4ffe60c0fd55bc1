//! Blame: neither what clients do nor a single broken route makes the stack refuse the calls of other clients.

use std::convert::Infallible;
use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::{Body, Frame};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use tokio::time::{Instant, sleep};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_upstream::breaker::{CircuitBreakerLayer, CircuitHandle, State};
use tower_upstream::deadline::{Deadline, DeadlinePropagation};
use tower_upstream::limit::ConcurrencyLimitLayer;
use tower_upstream::retry::{Hedging, RetryLayer, RetryPolicy};
use tower_upstream::stack::UpstreamBuilder;
use tower_upstream::timeout::{TimeoutLayer, Timeouts};
use tower_upstream::{BadGatewayCause as Cause, ClassifyLayer, Failure, UpstreamLayer};

use crate::support::service::{ms, seen};

type ClientBody = BoxBody<Bytes, Infallible>;

/// The status of the response to a path, and when it comes.
type Act = fn(&str) -> (u16, Duration);

const SECOND: Duration = Duration::from_secs(1);

fn request(path: &str) -> Request<ClientBody> {
    Request::get(path).body(ClientBody::default()).unwrap()
}

fn grpc(path: &str) -> Request<ClientBody> {
    Request::post(path).header("content-type", "application/grpc").body(ClientBody::default()).unwrap()
}

/// An upload of one byte each `pause`, without an end.
fn dripping(pause: Duration) -> Request<ClientBody> {
    let frames = futures_util::stream::unfold((), move |()| async move {
        sleep(pause).await;
        Some((Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"."))), ()))
    });
    Request::post("/").body(BodyExt::boxed(StreamBody::new(frames))).unwrap()
}

/// Responds to each path with its status, after its time.
fn upstream<B: Body<Data = Bytes, Error: std::fmt::Debug> + Send + 'static>(
    act: impl Fn(&str) -> (u16, Duration) + Clone + Send + 'static,
) -> impl Service<Request<B>, Response = Response<Full<Bytes>>, Error = Infallible, Future: Send> + Clone + Send + 'static
{
    service_fn(move |request: Request<B>| {
        let (status, after) = act(request.uri().path());
        async move {
            let mut body = std::pin::pin!(request.into_body());
            while body.as_mut().frame().await.is_some() {}
            sleep(after).await;
            Ok(Response::builder().status(status).body(Full::from("ok")).unwrap())
        }
    })
}

fn circuit(layer: &UpstreamLayer) -> State {
    seen(layer).circuit.unwrap().state
}

/// The number of good responses to other clients, while one client makes `rate` calls per second for its own path.
async fn served(hostile: &'static str, rate: u32, others: u32, seconds: u32, act: Act) -> (u32, u32) {
    let layer = UpstreamLayer::builder("shop").build().unwrap();
    let service = layer.layer(upstream(act));
    let calls = |path: &'static str, rate: u32| {
        let service = service.clone();
        tokio::spawn(async move {
            let mut tasks = tokio::task::JoinSet::new();
            for _ in 0..rate * seconds {
                sleep(SECOND / rate).await;
                let call = service.clone().oneshot(request(path));
                tasks.spawn(async move {
                    let response = call.await.unwrap();
                    let status = response.status();
                    response.into_body().collect().await.unwrap();
                    status
                });
            }
            let statuses = tasks.join_all().await;
            u32::try_from(statuses.iter().filter(|status| status.is_success()).count()).unwrap()
        })
    };
    let (hostile, served) = tokio::join!(calls(hostile, rate), calls("/", others));
    hostile.unwrap();
    (served.unwrap(), others * seconds)
}

#[tokio::test(start_paused = true)]
async fn one_route_that_fails_takes_no_other_route_away_however_often_it_is_called() {
    let fails: [(&'static str, Act); 3] = [
        ("/partner", |path| if path == "/partner" { (503, ms(2)) } else { (200, ms(2)) }),
        ("/api/partner/7", |path| if path == "/api/partner/7" { (502, ms(2)) } else { (200, ms(2)) }),
        ("/report", |path| if path == "/report" { (200, SECOND * 60) } else { (200, ms(2)) }),
    ];
    for (path, act) in fails {
        for (rate, others) in [(46, 7), (20, 20), (185, 20)] {
            let (served, all) = served(path, rate, others, 20, act).await;
            assert!(served * 100 >= all * 99, "{path} at {rate}/s: {served} of {all} at {others}/s");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_upstream_whose_every_route_fails_is_left_alone() {
    let layer = UpstreamLayer::builder("shop").build().unwrap();
    let service = layer.layer(upstream(|_| (503, ms(2))));
    for number in 0..30 {
        let path = ["/", "/cart", "/partner"][number % 3];
        drop(service.clone().oneshot(request(path)).await.unwrap());
        sleep(ms(50)).await;
    }
    assert_eq!(circuit(&layer), State::Open);
}

#[tokio::test(start_paused = true)]
async fn one_request_is_one_vote_however_many_attempts_it_took() {
    let layer = UpstreamLayer::builder("shop").build().unwrap();
    let service = layer.layer(upstream(|path| if path == "/" { (200, ms(2)) } else { (503, ms(2)) }));
    for _ in 0..20 {
        service.clone().oneshot(request("/")).await.unwrap().into_body().collect().await.unwrap();
    }
    for _ in 0..2 {
        drop(service.clone().oneshot(request("/partner")).await.unwrap());
    }
    let shown = seen(&layer).circuit.unwrap();
    assert_eq!((shown.state, shown.failures), (State::Closed, 2));

    // a request that succeeds with its last attempt counts as a success
    let calls = Arc::new(AtomicU32::new(0));
    let first_fails = service_fn(move |_: Request<_>| {
        let first = calls.fetch_add(1, Relaxed) % 2 == 0;
        let response = Response::builder().status(if first { 503 } else { 200 });
        std::future::ready(Ok::<_, Infallible>(response.body(Full::<Bytes>::default()).unwrap()))
    });
    let layer = UpstreamLayer::builder("shop").build().unwrap();
    let service = layer.layer(first_fails);
    // as many as a new budget allows
    for _ in 0..3 {
        assert_eq!(service.clone().oneshot(request("/")).await.unwrap().status(), 200);
    }
    let shown = seen(&layer).circuit.unwrap();
    assert_eq!((shown.state, shown.calls, shown.failures), (State::Closed, 3, 0));

    // the same with the single layers
    let breaker = CircuitBreakerLayer::new("shop");
    let inner = ClassifyLayer::new().report_by_outer().layer(upstream(|_| (503, ms(2))));
    let service = RetryLayer::new().layer(breaker.layer(inner));
    drop(service.oneshot(request("/")).await.unwrap());
    assert_eq!(breaker.handle().snapshot(Instant::now()).failures, 1);
}

#[tokio::test(start_paused = true)]
async fn calls_that_wait_to_be_sent_again_hold_no_slot() {
    let limit = ConcurrencyLimitLayer::fixed(1);
    let layer = UpstreamLayer::builder("shop")
        .limiter(move |_| limit)
        .retry_policy(|policy| policy.max_retry_after(SECOND * 20))
        .build()
        .unwrap();
    let service = layer.layer(service_fn(|request: Request<_>| {
        let in_maintenance = request.uri().path() == "/later";
        let _: Request<tower_upstream::stack::RequestBody<ClientBody>> = request;
        let response = Response::builder().status(if in_maintenance { 503 } else { 200 });
        let response = if in_maintenance { response.header("retry-after", "15") } else { response };
        std::future::ready(Ok::<_, Infallible>(response.body(Full::<Bytes>::default()).unwrap()))
    }));
    let waiting: Vec<_> = (0..30).map(|_| tokio::spawn(service.clone().oneshot(request("/later")))).collect();
    sleep(SECOND).await;
    assert_eq!(seen(&layer).limit.unwrap().in_flight, 0);
    for _ in 0..100 {
        assert_eq!(service.clone().oneshot(request("/")).await.unwrap().status(), 200);
    }
    for call in waiting {
        assert_eq!(call.await.unwrap().unwrap().status(), 503);
    }
}

#[tokio::test(start_paused = true)]
async fn an_upload_that_waits_for_its_client_holds_no_slot() {
    let limit = ConcurrencyLimitLayer::fixed(2);
    let layer = UpstreamLayer::builder("shop").limiter(move |_| limit).build().unwrap();
    let service = layer.layer(upstream(|_| (200, SECOND)));
    let in_flight = || seen(&layer).limit.unwrap().in_flight;
    let frames = |count| {
        let frames = futures_util::stream::unfold(count, move |left: u32| async move {
            sleep(SECOND).await;
            left.checked_sub(1).map(|left| (Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"."))), left))
        });
        Request::post("/").body(BodyExt::boxed(StreamBody::new(frames))).unwrap()
    };
    let slow: Vec<_> = (0..20)
        .map(|_| {
            let service = service.clone();
            let call = service.oneshot(frames(1));
            tokio::spawn(call)
        })
        .collect();
    sleep(ms(1500)).await;
    assert_eq!(in_flight(), 0);
    assert_eq!(service.clone().oneshot(request("/")).await.unwrap().status(), 200);
    // they were admitted: once they are sent they count, also above the limit
    sleep(ms(100)).await;
    let (admitted, refused): (Vec<_>, Vec<_>) = {
        let mut statuses = Vec::new();
        for call in slow {
            statuses.push(call.await.unwrap().unwrap().status().as_u16());
        }
        statuses.into_iter().partition(|status| *status == 200)
    };
    assert!(admitted.len() >= 2 && refused.iter().all(|status| *status == 503), "{refused:?}");
    assert_eq!(in_flight(), 0);
}

fn with_timeouts(change: impl FnOnce(Timeouts) -> Timeouts + Send + 'static) -> UpstreamBuilder {
    UpstreamLayer::builder("shop").without_retry().timeouts(change)
}

#[tokio::test(start_paused = true)]
async fn an_upload_that_its_client_does_not_finish_is_the_clients_whichever_limit_passes() {
    let limits: [fn(Timeouts) -> Timeouts; 4] = [
        |limits| limits.response_head(SECOND * 5).attempt(None).total(SECOND * 20),
        |limits| limits.response_head(SECOND * 5).attempt(SECOND * 5).total(SECOND * 20),
        |limits| limits.response_head(None).attempt(None).total(SECOND * 5),
        |limits| limits.response_head(None).attempt(None).total(None).max_duration(SECOND * 5),
    ];
    for limit in limits {
        for pause in [ms(250), SECOND * 3600] {
            let layer = with_timeouts(limit).build().unwrap();
            let service = layer.layer(upstream(|_| (200, ms(2))));
            for _ in 0..30 {
                let response = service.clone().oneshot(dripping(pause)).await.unwrap();
                assert_eq!((response.status().as_u16(), Cause::of(&response)), (408, Some(Cause::UploadStalled)));
            }
            assert_eq!((circuit(&layer), seen(&layer).circuit.unwrap().failures), (State::Closed, 0));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_upload_without_an_end_that_moves_is_no_failure_of_the_upstream() {
    let layer = with_timeouts(|limits| limits.attempt(SECOND * 5).total(SECOND * 20)).build().unwrap();
    let slow = service_fn(|request: Request<tower_upstream::stack::RequestBody<ClientBody>>| async move {
        let mut body = std::pin::pin!(request.into_body());
        while body.as_mut().frame().await.is_some() {
            sleep(ms(100)).await;
        }
        Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
    });
    let service = layer.layer(slow);
    for _ in 0..5 {
        let frames =
            futures_util::stream::repeat_with(|| Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"data"))));
        let endless = Request::post("/").body(BodyExt::boxed(StreamBody::new(frames))).unwrap();
        let response = service.clone().oneshot(endless).await.unwrap();
        assert_eq!((response.status().as_u16(), Cause::of(&response)), (408, Some(Cause::UploadStalled)));
    }
    assert_eq!(circuit(&layer), State::Closed);
    // an upload that the upstream does not read is a failure
    let stuck =
        layer.layer(service_fn(|request: Request<tower_upstream::stack::RequestBody<ClientBody>>| async move {
            let _unread = request.into_body();
            pending::<Result<Response<Full<Bytes>>, Infallible>>().await
        }));
    let response = stuck.oneshot(dripping(ms(1))).await.unwrap();
    assert_eq!(Cause::of(&response), Some(Cause::WriteTimeout));
    assert_eq!(seen(&layer).circuit.unwrap().failures, 1);
}

#[tokio::test(start_paused = true)]
async fn a_limit_that_passes_while_the_upstream_is_silent_keeps_its_phase() {
    for head in [5, 9] {
        let layer =
            with_timeouts(move |limits| limits.attempt(None).response_head(SECOND * head.min(5)).total(SECOND * 5));
        let layer = layer.build().unwrap();
        let response = layer.layer(upstream(|_| (200, SECOND * 3600))).oneshot(request("/")).await.unwrap();
        assert_eq!(Cause::of(&response), Some(Cause::FirstByteTimeout));
    }
    let response = TimeoutLayer::new(Timeouts::new().total(SECOND * 5))
        .layer(upstream(|_| (200, SECOND * 3600)))
        .oneshot(request("/"))
        .await
        .unwrap();
    assert_eq!(Cause::of(&response), Some(Cause::FirstByteTimeout));
}

#[tokio::test(start_paused = true)]
async fn impatient_clients_open_no_circuit() {
    let layer = UpstreamLayer::builder("shop").deadlines(DeadlinePropagation::new().trust_everyone()).build().unwrap();
    let service = layer.layer(upstream(|_| (200, ms(200))));
    for _ in 0..50 {
        let mut impatient = request("/");
        impatient.headers_mut().insert("x-request-timeout-ms", HeaderValue::from_static("100"));
        let response = service.clone().oneshot(impatient).await.unwrap();
        assert_eq!(Cause::of(&response), Some(Cause::DeadlineExceeded));
    }
    assert_eq!((circuit(&layer), seen(&layer).circuit.unwrap().failures), (State::Closed, 0));
}

#[tokio::test(start_paused = true)]
async fn a_hung_upstream_under_a_deadline_of_the_program_is_left_alone() {
    let breaker = CircuitBreakerLayer::new("shop");
    let service =
        breaker.layer(service_fn(|_: Request<ClientBody>| pending::<Result<Response<Full<Bytes>>, Infallible>>()));
    for _ in 0..5 {
        let deadline = Deadline::after(Instant::now(), ms(100));
        assert!(deadline.bound(service.clone().oneshot(request("/"))).await.is_err());
    }
    assert_eq!(state(&breaker.handle()), State::Open);
}

fn state(circuit: &CircuitHandle) -> State {
    circuit.snapshot(Instant::now()).state
}

#[tokio::test(start_paused = true)]
async fn a_service_that_never_becomes_ready_is_left_alone() {
    struct Broken;

    impl Service<Request<ClientBody>> for Broken {
        type Response = Response<Full<Bytes>>;
        type Error = std::io::Error;
        type Future = std::future::Pending<Result<Self::Response, Self::Error>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), std::io::Error>> {
            Poll::Ready(Err(std::io::ErrorKind::ConnectionRefused.into()))
        }

        fn call(&mut self, _: Request<ClientBody>) -> Self::Future {
            unreachable!("it is never ready")
        }
    }

    let breaker = CircuitBreakerLayer::new("shop");
    for _ in 0..5 {
        assert!(breaker.layer(Broken).oneshot(request("/")).await.is_err());
    }
    assert_eq!(state(&breaker.handle()), State::Open);
}

/// A gRPC response with this status, in the head or in the trailers.
fn grpc_response(status: &'static str, in_trailers: bool) -> Response<ClientBody> {
    let fields = HeaderMap::from_iter([("grpc-status".parse().unwrap(), HeaderValue::from_static(status))]);
    if in_trailers {
        let frames = [Frame::data(Bytes::from_static(b"message")), Frame::trailers(fields)].map(Ok::<_, Infallible>);
        return Response::new(BodyExt::boxed(StreamBody::new(futures_util::stream::iter(frames))));
    }
    let mut response = Response::new(ClientBody::default());
    response.headers_mut().extend(fields);
    response
}

#[tokio::test(start_paused = true)]
async fn the_status_of_a_grpc_call_counts_as_the_http_status_with_its_meaning() {
    for in_trailers in [false, true] {
        for (status, failures, end) in
            [("14", 20, State::Open), ("4", 20, State::Open), ("8", 0, State::Closed), ("5", 0, State::Closed)]
        {
            let layer = UpstreamLayer::builder("shop").build().unwrap();
            let call = move |_: Request<_>| std::future::ready(Ok::<_, Infallible>(grpc_response(status, in_trailers)));
            let service = layer.layer(service_fn(call));
            for _ in 0..100 {
                let response = service.clone().oneshot(grpc("/shop.Carts/Get")).await.unwrap();
                response.into_body().collect().await.unwrap();
            }
            let shown = seen(&layer).circuit.unwrap();
            assert_eq!((shown.failures, shown.state), (failures, end), "{status}, in trailers: {in_trailers}");
            // a probe with the same status does not close the circuit
            sleep(SECOND).await;
            let response = service.clone().oneshot(grpc("/shop.Carts/Get")).await.unwrap();
            response.into_body().collect().await.unwrap();
            assert_eq!(circuit(&layer), end, "{status}, in trailers: {in_trailers}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_grpc_probe_closes_the_circuit_once_it_is_told_ok_and_not_before() {
    for in_trailers in [false, true] {
        let is_down = Arc::new(AtomicBool::new(true));
        let down = is_down.clone();
        let health = Request::post("/grpc.health.v1.Health/Check").header("content-type", "application/grpc");
        let layer = UpstreamLayer::builder("shop").probe_request(health.body(()).unwrap()).build().unwrap();
        let service = layer.layer(service_fn(move |_: Request<_>| {
            let status = if down.load(Relaxed) { "14" } else { "0" };
            std::future::ready(Ok::<_, Infallible>(grpc_response(status, in_trailers)))
        }));
        let calls = async |count: u32| {
            for _ in 0..count {
                let response = service.clone().oneshot(grpc("/shop.Carts/Get")).await.unwrap();
                response.into_body().collect().await.unwrap();
                sleep(ms(1)).await;
            }
        };
        calls(200).await;
        let shown = seen(&layer).circuit.unwrap();
        assert!(shown.state == State::Open && shown.probes > 0, "{shown:?}");
        is_down.store(false, Relaxed);
        calls(100).await;
        assert_eq!(circuit(&layer), State::Closed, "in trailers: {in_trailers}");
    }
}

#[tokio::test(start_paused = true)]
async fn two_concurrent_attempts_of_one_request_are_one_vote() {
    for first_fails_first in [true, false] {
        let calls = Arc::new(AtomicU32::new(0));
        let policy = |policy: RetryPolicy| policy.attempts(2);
        let layer = UpstreamLayer::builder("shop")
            .retry(|retry| retry.hedging(Hedging::after(ms(100))))
            .retry_policy(policy)
            .build()
            .unwrap();
        let service = layer.layer(service_fn(move |_: Request<_>| {
            let is_first = calls.fetch_add(1, Relaxed) == 0;
            async move {
                sleep(if is_first == first_fails_first { ms(200) } else { ms(400) }).await;
                Err::<Response<Full<Bytes>>, _>(Failure::new(Cause::ResetBeforeResponse))
            }
        }));
        let response = service.oneshot(request("/")).await.unwrap();
        assert_eq!(Failure::of(&response).unwrap().attempts(), 2);
        assert_eq!(seen(&layer).circuit.unwrap().failures, 1, "the first fails first: {first_fails_first}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_grpc_deadline_of_the_client_is_no_failure_of_the_upstream() {
    let layer = UpstreamLayer::builder("shop").build().unwrap();
    let service =
        layer.layer(service_fn(|_: Request<_>| std::future::ready(Ok::<_, Infallible>(grpc_response("4", true)))));
    for _ in 0..100 {
        let mut request = grpc("/shop.Carts/Get");
        request.headers_mut().insert("grpc-timeout", HeaderValue::from_static("1m"));
        service.clone().oneshot(request).await.unwrap().into_body().collect().await.unwrap();
    }
    assert_eq!(circuit(&layer), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_is_answered_closes_a_circuit_that_connections_opened() {
    let breaker = CircuitBreakerLayer::new("shop");
    let down = Arc::new(AtomicBool::new(true));
    let is_down = down.clone();
    let service = breaker.layer(service_fn(move |_: Request<ClientBody>| {
        let refused = is_down.load(Relaxed);
        let response = Response::builder().status(503).body(Full::<Bytes>::default()).unwrap();
        std::future::ready(if refused {
            Err(std::io::Error::from(std::io::ErrorKind::ConnectionRefused))
        } else {
            Ok(response)
        })
    }));
    for _ in 0..5 {
        assert!(service.clone().oneshot(request("/")).await.is_err());
    }
    assert_eq!(state(&breaker.handle()), State::Open);
    down.store(false, Relaxed);
    sleep(SECOND).await;
    assert_eq!(service.clone().oneshot(request("/")).await.unwrap().status(), 503);
    assert_eq!(state(&breaker.handle()), State::Closed);
}
