//! Every timeout in virtual time: just before it, exactly at it, just after it.

#![allow(clippy::unchecked_time_subtraction)] // of constants

use std::convert::Infallible;
use std::error::Error;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use tokio::task::JoinSet;
use tokio::time::{Instant, advance, sleep};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_upstream::body::TrackedUpload;
use tower_upstream::breaker::CircuitBreakerLayer;
use tower_upstream::cause::{Evidence, Phase, Replay};
use tower_upstream::deadline::{Deadline, DeadlineHeader, DeadlinePropagation};
use tower_upstream::timeout::{LearningMode, RouteTimeouts, TimeoutLayer, Timeouts};
use tower_upstream::{BadGatewayCause as Cause, Failure};

const SECOND: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);
const LIMIT: Duration = Duration::from_secs(2);

/// Timeouts that are all off, for tests of one of them.
fn none() -> Timeouts {
    Timeouts::new().response_head(None).total(None).body_idle(None)
}

/// A service that responds after this time.
fn answers_after(
    wait: Duration,
) -> impl Service<Request<()>, Response = Response<Full<Bytes>>, Error = Infallible, Future: Send> + Clone {
    service_fn(move |_: Request<()>| async move {
        sleep(wait).await;
        Ok(Response::new(Full::from("answer")))
    })
}

/// The outcome of a call under these timeouts, and when it came.
async fn ask(timeouts: Timeouts, wait: Duration) -> (StatusCode, Option<Cause>, Duration) {
    asked(timeouts, wait, Request::new(())).await
}

async fn asked(timeouts: Timeouts, wait: Duration, request: Request<()>) -> (StatusCode, Option<Cause>, Duration) {
    let begun = Instant::now();
    let layer = TimeoutLayer::new(timeouts).without_upload_tracking();
    let answer = layer.layer(answers_after(wait)).oneshot(request).await.unwrap();
    let (status, cause) = (answer.status(), Cause::of(&answer));
    assert_eq!(cause, Failure::of(&answer).map(Failure::cause));
    (status, cause, begun.elapsed())
}

/// Checks a limit on the response head just before it, at it and just after it.
async fn holds_exactly(timeouts: Timeouts, cause: Cause) {
    assert_eq!(ask(timeouts, LIMIT - MS).await, (StatusCode::OK, None, LIMIT - MS));
    assert_eq!(
        ask(timeouts, LIMIT).await,
        (StatusCode::OK, None, LIMIT),
        "a response that is there wins over the timer"
    );
    let late = ask(timeouts, LIMIT + MS).await;
    assert_eq!(late, (StatusCode::GATEWAY_TIMEOUT, Some(cause), LIMIT));
}

#[tokio::test(start_paused = true)]
async fn a_response_head_that_is_late_is_a_first_byte_timeout() {
    holds_exactly(none().response_head(LIMIT), Cause::FirstByteTimeout).await;
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_is_late_is_a_first_byte_timeout() {
    holds_exactly(none().attempt(LIMIT), Cause::FirstByteTimeout).await;
}

#[tokio::test(start_paused = true)]
async fn the_total_is_a_deadline() {
    holds_exactly(none().total(LIMIT), Cause::DeadlineExceeded).await;
}

#[tokio::test(start_paused = true)]
async fn the_clients_deadline_applies_if_it_is_earlier_than_the_total() {
    for (deadline, total, until) in [(1, 2, 1), (3, 2, 2)] {
        let mut request = Request::new(());
        request.extensions_mut().insert(Deadline::at(Instant::now() + SECOND * deadline));
        let late = asked(none().total(SECOND * total), SECOND * 9, request).await;
        assert_eq!(late, (StatusCode::GATEWAY_TIMEOUT, Some(Cause::DeadlineExceeded), SECOND * until));
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_whose_deadline_has_passed_is_not_sent() {
    let mut request = Request::new(());
    request.extensions_mut().insert(Deadline::at(Instant::now()));
    let never =
        service_fn(|_: Request<()>| async { panic!("it was begun") as Result<Response<Full<Bytes>>, Infallible> });
    let answer = TimeoutLayer::new(none()).without_upload_tracking().layer(never).oneshot(request).await.unwrap();
    let failure = Failure::of(&answer).unwrap();
    assert_eq!((failure.cause(), failure.phase()), (Cause::DeadlineExceeded, Phase::Gateway));
    assert_eq!((failure.replay(), failure.evidence()), (Replay::NotSent, Evidence::LocalRefusal));
    let text = answer.into_body().collect().await.unwrap().to_bytes();
    assert!(text.ends_with(b"Your request was not processed. It is safe to try again.\n"));
}

/// The deadline that is forwarded to the upstream for this field of the client.
async fn forwarded(timeouts: Timeouts, said: Option<&'static str>) -> Option<String> {
    let deadlines = DeadlinePropagation::new().trust_everyone().forward(DeadlineHeader::request_timeout());
    let echo = service_fn(|request: Request<()>| async move {
        let told = request.headers().get("x-request-timeout-ms").cloned();
        let mut answer = Response::new(Full::<Bytes>::default());
        answer.headers_mut().extend(told.map(|told| (http::header::SERVER, told)));
        Ok::<_, Infallible>(answer)
    });
    let mut request = Request::new(());
    request
        .headers_mut()
        .extend(said.map(|said| (HeaderName::from_static("grpc-timeout"), HeaderValue::from_static(said))));
    let layer = TimeoutLayer::new(timeouts).deadlines(deadlines).without_upload_tracking();
    let answer = layer.layer(echo).oneshot(request).await.unwrap();
    answer.headers().get("server").map(|told| told.to_str().unwrap().to_owned())
}

#[tokio::test(start_paused = true)]
async fn the_upstream_receives_the_remaining_time_less_a_margin() {
    let total = none().total(LIMIT);
    assert_eq!(forwarded(total, None).await.unwrap(), "1980", "the total, without a deadline of the client");
    assert_eq!(forwarded(total, Some("1S")).await.unwrap(), "940", "the client's less 50 ms, if that is less");
    assert_eq!(forwarded(total, Some("5S")).await.unwrap(), "1980", "it never grows");
    assert_eq!(forwarded(total.attempt(SECOND / 2), Some("1S")).await.unwrap(), "495", "one attempt's");
    assert_eq!(forwarded(total, Some("40m")).await.unwrap(), "25", "never less than three quarters of it");
    assert_eq!(forwarded(none(), None).await, None);
}

#[tokio::test(start_paused = true)]
async fn a_deadline_that_was_only_inferred_is_marked_as_such() {
    let layer = TimeoutLayer::new(none().response_head(LIMIT)).without_upload_tracking();
    let answer = layer.layer(answers_after(LIMIT * 2)).oneshot(Request::new(())).await.unwrap();
    let failure = Failure::of(&answer).unwrap();
    assert_eq!((failure.phase(), failure.evidence()), (Phase::Wait, Evidence::Inferred));
    assert_eq!((failure.replay(), failure.elapsed()), (Replay::IdempotentOnly, Some(LIMIT)));
    assert_eq!(answer.headers()["content-type"], "text/plain; charset=utf-8");
    let text = answer.into_body().collect().await.unwrap().to_bytes();
    assert!(text.starts_with(b"Gateway Timeout\n"));
}

#[tokio::test(start_paused = true)]
async fn a_stream_has_no_total_but_its_head_has_the_usual_timeout() {
    let stream = Timeouts::new().response_head(LIMIT).total(SECOND).unbounded();
    assert_eq!(ask(stream, LIMIT).await.0, 200);
    assert_eq!(ask(stream, LIMIT + MS).await.1, Some(Cause::FirstByteTimeout));
}

#[tokio::test(start_paused = true)]
async fn an_error_of_the_service_passes_unchanged() {
    let fails = service_fn(|_: Request<()>| async { Err::<Response<Full<Bytes>>, _>("its own") });
    let layer = TimeoutLayer::new(Timeouts::new()).without_upload_tracking();
    assert_eq!(layer.layer(fails).oneshot(Request::new(())).await.unwrap_err(), "its own");
}

#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[tokio::test(start_paused = true)]
async fn a_dropped_future_leaves_no_timer() {
    let stuck = || service_fn(|_: Request<()>| std::future::pending::<Result<Response<Full<Bytes>>, Infallible>>());
    let layer = TimeoutLayer::new(none().response_head(LIMIT)).without_upload_tracking();
    for (keep, wakes) in [(true, 1), (false, 0)] {
        let woken = Arc::new(Woken::default());
        let mut call = Box::pin(layer.layer(stuck()).call(Request::new(())));
        assert!(call.as_mut().poll(&mut Context::from_waker(&Waker::from(woken.clone()))).is_pending());
        let kept = keep.then_some(call);
        advance(LIMIT / 2 + MS).await;
        assert_eq!(woken.0.load(Ordering::Relaxed), wakes, "the first of two looks is due at half the limit");
        drop(kept);
    }
}

#[tokio::test(start_paused = true)]
async fn a_completed_future_leaves_no_timer() {
    let layer = TimeoutLayer::new(none().response_head(LIMIT)).without_upload_tracking();
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(woken.clone());
    let mut call = pin!(layer.layer(answers_after(MS)).call(Request::new(())));
    assert!(call.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    advance(MS * 2).await;
    assert!(call.as_mut().poll(&mut Context::from_waker(&waker)).is_ready());
    let before = woken.0.load(Ordering::Relaxed);
    advance(LIMIT * 2).await;
    assert_eq!(woken.0.load(Ordering::Relaxed), before, "though it is still held");
}

/// A body of frames, each this long after the one before.
fn frames<const N: usize>(waits: [Duration; N]) -> impl Body<Data = Bytes, Error = Infallible> + Unpin {
    StreamBody::new(Box::pin(stream::iter(waits).then_frame()))
}

trait ThenFrame {
    fn then_frame(self) -> impl stream::Stream<Item = Result<Frame<Bytes>, Infallible>> + Send;
}

impl<S: stream::Stream<Item = Duration> + Send> ThenFrame for S {
    fn then_frame(self) -> impl stream::Stream<Item = Result<Frame<Bytes>, Infallible>> + Send {
        stream::StreamExt::then(self, |wait| async move {
            sleep(wait).await;
            Ok(Frame::data(Bytes::from_static(b"frame")))
        })
    }
}

/// The response's body, under these timeouts.
async fn body<B>(timeouts: Timeouts, body: B) -> impl Body<Data = Bytes, Error = Box<dyn Error + Send + Sync>> + Unpin
where
    B: Body<Data = Bytes, Error = Infallible> + Unpin,
{
    let mut body = Some(body);
    let service = service_fn(move |_: Request<()>| {
        let answer = Response::new(body.take().unwrap());
        async { Ok::<_, Infallible>(answer) }
    });
    let answer =
        TimeoutLayer::new(timeouts).without_upload_tracking().layer(service).oneshot(Request::new(())).await.unwrap();
    answer.into_body()
}

/// Reads a body to its end; returns the number of frames, and how it ended.
async fn read(
    mut body: impl Body<Data = Bytes, Error = Box<dyn Error + Send + Sync>> + Unpin,
) -> (usize, Option<Cause>) {
    let mut frames = 0;
    loop {
        match body.frame().await {
            Some(Ok(_)) => frames += 1,
            Some(Err(error)) => {
                let failure = error.downcast_ref::<Failure>().unwrap();
                assert_eq!((failure.phase(), failure.replay()), (Phase::Body, Replay::Never));
                assert!(body.is_end_stream() && body.frame().await.is_none(), "nothing comes after an error");
                return (frames, Some(failure.cause()));
            }
            None => return (frames, None),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_may_be_idle_for_its_limit_from_the_last_frame_on() {
    let idle = none().body_idle(LIMIT);
    assert_eq!(read(body(idle, frames([LIMIT - MS; 5])).await).await, (5, None));
    assert_eq!(read(body(idle, frames([LIMIT; 5])).await).await, (5, None));
    let begun = Instant::now();
    let stalls = frames([SECOND, SECOND, LIMIT + MS]);
    assert_eq!(read(body(idle, stalls).await).await, (2, Some(Cause::BodyReadTimeout)));
    assert_eq!(begun.elapsed(), SECOND * 2 + LIMIT);
}

#[tokio::test(start_paused = true)]
async fn a_body_whose_end_is_late_is_a_read_timeout() {
    let never_ends = StreamBody::new(Box::pin(stream::once(async { Ok(Frame::data(Bytes::from_static(b"all"))) })))
        .map_err(|never: Infallible| never)
        .boxed_unsync();
    let hangs = Stuck(never_ends);
    assert_eq!(read(body(none().body_idle(LIMIT), hangs).await).await, (1, Some(Cause::BodyReadTimeout)));
}

/// A body that never ends.
struct Stuck<B>(B);

impl<B: Body<Data = Bytes, Error = Infallible> + Unpin> Body for Stuck<B> {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match std::pin::Pin::new(&mut self.0).poll_frame(cx) {
            std::task::Poll::Ready(None) => std::task::Poll::Pending,
            polled => polled,
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_is_not_a_failure_of_the_upstream() {
    let (send, receive) = tokio::sync::mpsc::channel::<Bytes>(8);
    let frames = stream::unfold(receive, |mut receive| async {
        let bytes = receive.recv().await?;
        Some((Ok::<_, Infallible>(Frame::data(bytes)), receive))
    });
    let mut body = body(none().body_idle(LIMIT), StreamBody::new(Box::pin(frames))).await;
    send.send(Bytes::from_static(b"one")).await.unwrap();
    assert!(body.frame().await.unwrap().is_ok());
    advance(LIMIT * 4).await;
    // the body was not polled before: the upstream has the whole time from here
    let late = async {
        sleep(LIMIT - MS).await;
        send.send(Bytes::from_static(b"two")).await.unwrap();
    };
    assert!(tokio::join!(body.frame(), late).0.unwrap().is_ok());
    // it arrived while the body was not polled
    send.send(Bytes::from_static(b"three")).await.unwrap();
    advance(LIMIT * 4).await;
    assert!(body.frame().await.unwrap().is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_frame_that_has_arrived_wins_over_the_idle_timeout_that_has_passed() {
    let (send, receive) = tokio::sync::mpsc::channel::<Bytes>(8);
    let frames = stream::unfold(receive, |mut receive| async {
        let bytes = receive.recv().await?;
        Some((Ok::<_, Infallible>(Frame::data(bytes)), receive))
    });
    let mut body = body(none().body_idle(LIMIT), StreamBody::new(Box::pin(frames))).await;
    let polled = poll_fn(|cx| std::task::Poll::Ready(std::pin::Pin::new(&mut body).poll_frame(cx))).await;
    assert!(polled.is_pending());
    advance(LIMIT * 4).await;
    send.send(Bytes::from_static(b"there")).await.unwrap();
    assert!(body.frame().await.unwrap().is_ok(), "a frame that is there wins over the timer");
}

#[tokio::test(start_paused = true)]
async fn a_dropped_body_leaves_no_timer() {
    let woken = Arc::new(Woken::default());
    let mut stuck = body(none().body_idle(LIMIT), frames([LIMIT * 9])).await;
    let waker = Waker::from(woken.clone());
    assert!(std::pin::Pin::new(&mut stuck).poll_frame(&mut Context::from_waker(&waker)).is_pending());
    drop(stuck);
    advance(LIMIT * 2).await;
    assert_eq!(woken.0.load(Ordering::Relaxed), 0);
}

#[tokio::test(start_paused = true)]
async fn a_call_ends_at_its_max_duration() {
    let whole = none().max_duration(LIMIT);
    assert_eq!(read(body(whole, frames([SECOND, SECOND - MS])).await).await, (2, None));
    assert_eq!(read(body(whole, frames([SECOND, SECOND])).await).await, (2, None));
    let begun = Instant::now();
    let drips = frames([SECOND / 2; 9]);
    let (came, cause) = read(body(whole, drips).await).await;
    assert_eq!((came, cause, begun.elapsed()), (4, Some(Cause::DeadlineExceeded), LIMIT));
}

/// A service that reads its upload, then responds after this time.
fn reads_then<B>(
    wait: Duration,
) -> impl Service<Request<TrackedUpload<B>>, Response = Response<Full<Bytes>>, Error = Infallible>
where
    B: Body<Data = Bytes, Error = Infallible> + Send + Unpin + 'static,
{
    service_fn(move |request: Request<TrackedUpload<B>>| async move {
        request.into_body().collect().await.unwrap();
        sleep(wait).await;
        Ok(Response::new(Full::from("answer")))
    })
}

#[tokio::test(start_paused = true)]
async fn the_response_head_timeout_starts_at_the_end_of_the_upload() {
    for (wait, status) in [(LIMIT - MS, 200), (LIMIT, 200), (LIMIT + MS, 504)] {
        // an upload that takes three times the limit, without a pause as long as the limit
        let request = Request::new(frames([SECOND; 6]));
        let begun = Instant::now();
        let answer =
            TimeoutLayer::new(none().response_head(LIMIT)).layer(reads_then(wait)).oneshot(request).await.unwrap();
        assert_eq!(answer.status(), status, "{wait:?}");
        assert_eq!(begun.elapsed(), SECOND * 6 + wait.min(LIMIT));
    }
}

#[tokio::test(start_paused = true)]
async fn an_upload_that_stops_is_a_stalled_upload() {
    let request = Request::new(frames([SECOND / 4, SECOND * 60]));
    let answer = TimeoutLayer::new(none().response_head(LIMIT)).layer(reads_then(MS)).oneshot(request).await.unwrap();
    assert_eq!((answer.status(), Cause::of(&answer)), (StatusCode::REQUEST_TIMEOUT, Some(Cause::UploadStalled)));
    assert_eq!(Failure::of(&answer).unwrap().phase(), Phase::Send);
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_does_not_take_the_upload_differs_from_one_that_does_not_respond() {
    let deaf = service_fn(|_: Request<TrackedUpload<Full<Bytes>>>| {
        std::future::pending::<Result<Response<Full<Bytes>>, Infallible>>()
    });
    let request = Request::new(Full::from("upload"));
    let answer = TimeoutLayer::new(none().response_head(LIMIT)).layer(deaf).oneshot(request).await.unwrap();
    assert_eq!((answer.status(), Cause::of(&answer)), (StatusCode::GATEWAY_TIMEOUT, Some(Cause::WriteTimeout)));
}

#[tokio::test(start_paused = true)]
async fn progress_of_the_upload_keeps_the_response_alive_too() {
    // the response's body pauses while the upload moves, for three times the idle limit
    let service = service_fn(|request: Request<TrackedUpload<_>>| async {
        let echo = async move {
            BodyExt::collect(request.into_body()).await.unwrap();
            Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"took it all")))
        };
        Ok::<_, Infallible>(Response::new(StreamBody::new(Box::pin(stream::once(echo)))))
    });
    let request = Request::new(frames([SECOND; 6]));
    let answer = TimeoutLayer::new(none().body_idle(LIMIT)).layer(service).oneshot(request).await.unwrap();
    assert_eq!(read(answer.into_body()).await, (1, None));
}

#[tokio::test(start_paused = true)]
async fn an_upload_that_stalls_during_the_response_is_the_clients_failure() {
    let service = service_fn(|request: Request<TrackedUpload<_>>| async {
        let echo = async move {
            BodyExt::collect(request.into_body()).await.unwrap();
            Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"took it all")))
        };
        Ok::<_, Infallible>(Response::new(StreamBody::new(Box::pin(stream::once(echo)))))
    });
    let begun = Instant::now();
    let request = Request::new(frames([SECOND, SECOND * 60]));
    let answer = TimeoutLayer::new(none().body_idle(LIMIT)).layer(service).oneshot(request).await.unwrap();
    assert_eq!(read(answer.into_body()).await, (0, Some(Cause::UploadStalled)));
    assert_eq!(begun.elapsed(), LIMIT * 2, "one look finds that it moved, the next that it stands");
}

#[tokio::test(start_paused = true)]
async fn an_empty_body_is_not_tracked() {
    let answer = TimeoutLayer::new(none().response_head(LIMIT)).layer(reads_then(LIMIT + MS));
    let answer = answer.oneshot(Request::new(Empty::new())).await.unwrap();
    assert_eq!(Cause::of(&answer), Some(Cause::FirstByteTimeout));
}

/// A layer that learns one route, after 300 responses of 40 ms each.
async fn taught(timeouts: Timeouts, mode: LearningMode) -> (TimeoutLayer, Arc<RouteTimeouts>) {
    let limits = Arc::new(RouteTimeouts::new(SECOND * 10, ["/known"]).unwrap().learning(mode));
    let layer = TimeoutLayer::new(timeouts).learned(limits.clone(), |head| Some(head.uri.path()));
    for _ in 0..300 {
        let answer = layer.layer(reads_then(MS * 40)).oneshot(known(Empty::new())).await.unwrap();
        assert_eq!(answer.status(), 200);
    }
    sleep(SECOND).await;
    (layer, limits)
}

fn known<B>(body: B) -> Request<B> {
    Request::get("/known").body(body).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_learned_timeout_ends_calls_only_if_it_is_enforced() {
    for (mode, route, cause) in [
        (LearningMode::Enforce, "/known", Some(Cause::FirstByteTimeout)),
        (LearningMode::Enforce, "/other", None),
        (LearningMode::Report, "/known", None),
    ] {
        let (layer, limits) = taught(none().response_head(SECOND * 5), mode).await;
        let learned = limits.get("/known").unwrap().snapshot(Instant::now());
        assert_eq!(learned.samples, 300);
        assert!(learned.limit >= MS * 78 && learned.limit <= MS * 84, "{learned:?}");
        let begun = Instant::now();
        let request = Request::get(route).body(Empty::new()).unwrap();
        // another call, which begins later, is answered in time
        let quick = async {
            sleep(MS).await;
            layer.layer(reads_then(MS * 40)).oneshot(known(Empty::new())).await
        };
        let (answer, _) = tokio::join!(layer.layer(reads_then(SECOND)).oneshot(request), quick);
        assert_eq!(Cause::of(&answer.unwrap()), cause);
        if cause.is_some() {
            assert!(begun.elapsed() <= learned.limit + MS, "{:?}", begun.elapsed());
            let samples = limits.get("/known").unwrap().snapshot(Instant::now()).samples;
            assert_eq!(samples, 302, "what was cut is a sample");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_hangs_is_found_in_sixteen_times_its_learned_timeout() {
    let (layer, limits) = taught(none().response_head(SECOND * 5), LearningMode::Enforce).await;
    let learned = limits.get("/known").unwrap().limit(Instant::now());
    let begun = Instant::now();
    let answer = layer.layer(reads_then(SECOND * 9)).oneshot(known(Empty::new())).await.unwrap();
    assert_eq!(Cause::of(&answer), Some(Cause::FirstByteTimeout));
    assert!(begun.elapsed() >= learned * 16 && begun.elapsed() <= learned * 16 + MS * 2, "{:?}", begun.elapsed());
}

/// A circuit around a learned timeout, asked ten times a second: how many calls fail in this time.
async fn failures_of(
    layer: &TimeoutLayer,
    breaker: &CircuitBreakerLayer,
    takes: Duration,
    status: u16,
    calls: u32,
) -> u32 {
    let mut tasks = JoinSet::new();
    for _ in 0..calls {
        sleep(MS * 10).await;
        let service =
            breaker.layer(layer.layer(service_fn(move |_: Request<TrackedUpload<Empty<Bytes>>>| async move {
                sleep(takes).await;
                Ok::<_, Infallible>(Response::builder().status(status).body(Empty::<Bytes>::new()).unwrap())
            })));
        tasks.spawn(async move { service.oneshot(known(Empty::new())).await.unwrap().status().as_u16() });
    }
    let mut failed = 0;
    while let Some(got) = tasks.join_next().await {
        failed += u32::from(got.unwrap() != status);
    }
    failed
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_becomes_slower_for_good_loses_no_call_and_no_circuit_opens() {
    for (before, quick) in [(200, MS), (404, MS), (429, MS), (500, MS)] {
        let limits = Arc::new(RouteTimeouts::new(SECOND * 10, ["/known"]).unwrap().learning(LearningMode::Enforce));
        let layer =
            TimeoutLayer::new(none().response_head(SECOND * 5)).learned(limits.clone(), |head| Some(head.uri.path()));
        let breaker = CircuitBreakerLayer::new("shop");
        assert_eq!(failures_of(&layer, &breaker, quick, before, 3_000).await, 0);
        assert_eq!(failures_of(&layer, &breaker, MS * 400, 200, 3_000).await, 0, "after {before}");
        assert_eq!(breaker.handle().snapshot(Instant::now()).opened, 0);
        let learned = limits.get("/known").unwrap().limit(Instant::now());
        assert!(learned >= MS * 780 && learned <= MS * 840, "{learned:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_learned_latency_starts_at_the_end_of_the_upload() {
    let (layer, limits) = taught(none(), LearningMode::Enforce).await;
    // the upload takes as long as the response, which is not later than the others
    for _ in 0..300 {
        let answer = layer.layer(reads_then(MS * 40)).oneshot(known(frames([MS * 10; 4]))).await.unwrap();
        assert_eq!(answer.status(), 200);
    }
    sleep(SECOND).await;
    let learned = limits.get("/known").unwrap().snapshot(Instant::now());
    assert!(learned.samples >= 300 && learned.limit <= MS * 84, "{learned:?}");
}

#[tokio::test(start_paused = true)]
async fn streams_teach_nothing() {
    let (_, limits) = taught(none().unbounded(), LearningMode::Report).await;
    assert_eq!(limits.get("/known").unwrap().snapshot(Instant::now()).samples, 0);
}

#[tokio::test(start_paused = true)]
async fn an_upload_that_has_ended_does_not_extend_the_body_idle_timeout() {
    // it reads the upload, responds, and then sends nothing more of the body
    let service = service_fn(|request: Request<TrackedUpload<_>>| async {
        BodyExt::collect(request.into_body()).await.unwrap();
        Ok::<_, Infallible>(Response::new(frames([LIMIT * 9])))
    });
    let request = Request::new(frames([MS; 5]));
    let answer = TimeoutLayer::new(none().body_idle(LIMIT)).layer(service).oneshot(request).await.unwrap();
    let begun = Instant::now();
    assert_eq!(read(answer.into_body()).await, (0, Some(Cause::BodyReadTimeout)));
    assert_eq!(begun.elapsed(), LIMIT);
}
