//! Which requests are sent again, when, and with what; in virtual time, over scripted services.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use tokio::time::{Instant, sleep};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_upstream::body::ReplayBody;
use tower_upstream::cause::{Evidence, Replay, RetryStop};
use tower_upstream::deadline::{Deadline, DeadlinePropagation};
use tower_upstream::retry::{Attempts, Hedging, RetryBody, RetryBudget, RetryLayer, RetryOverride, RetryPolicy};
use tower_upstream::timeout::{TimeoutLayer, Timeouts};
use tower_upstream::{BadGatewayCause as Cause, Failure};

use crate::support::service::{self as scripted, Scripted};

/// What one attempt meets.
#[derive(Clone)]
enum Act {
    /// It fails before anything of its body was read.
    Fails(Failure),
    /// It fails once it has read this number of frames.
    FailsAfter(usize, Failure),
    /// It responds with this status and `Retry-After`.
    Says(u16, Option<&'static str>),
    /// It reads all, and responds.
    Answers,
}

/// Attempts that reached the service.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Vec<Attempt>>>);

#[derive(Clone, Debug)]
struct Attempt {
    at: Instant,
    body: Bytes,
    count: Option<String>,
    text: Option<&'static str>,
}

impl Seen {
    fn all(&self) -> Vec<Attempt> {
        self.0.lock().unwrap().clone()
    }

    fn bodies(&self) -> Vec<Bytes> {
        self.all().into_iter().map(|attempt| attempt.body).collect()
    }
}

fn failure(cause: Cause) -> Failure {
    Failure::new(cause)
}

fn refused() -> Failure {
    Failure::builder(Cause::ConnectionRefused).replay(Replay::NotSent, Evidence::NoConnection).build()
}

/// A service that plays one of these acts per attempt, and repeats the last one.
fn plays<B>(
    acts: &[Act],
) -> (impl Service<Request<ReplayBody<B>>, Response = Response<Full<Bytes>>, Error = Failure, Future: Send> + Clone, Seen)
where
    B: Body<Data = Bytes, Error: Into<tower::BoxError>> + Send + 'static,
{
    let (script, seen) = (Arc::new(Mutex::new(VecDeque::from(acts.to_vec()))), Seen::default());
    let log = seen.clone();
    let service = service_fn(move |request: Request<ReplayBody<B>>| {
        let act = {
            let mut script = script.lock().unwrap();
            if script.len() > 1 { script.pop_front().unwrap() } else { script[0].clone() }
        };
        let log = log.clone();
        async move {
            let count = request.headers().get("x-envoy-attempt-count").map(|count| count.to_str().unwrap().to_owned());
            let text = request.extensions().get::<&'static str>().copied();
            let at = Instant::now();
            let frames = match act {
                Act::Fails(_) | Act::Says(..) => 0,
                Act::FailsAfter(frames, _) => frames,
                Act::Answers => usize::MAX,
            };
            let mut body = Box::pin(request.into_body());
            let mut read = Vec::new();
            for _ in 0..frames {
                match body.frame().await {
                    Some(frame) => read.extend(frame.unwrap().into_data().unwrap()),
                    None => break,
                }
            }
            log.0.lock().unwrap().push(Attempt { at, body: read.into(), count, text });
            match act {
                Act::Fails(failure) | Act::FailsAfter(_, failure) => Err(failure),
                Act::Says(status, after) => {
                    let answer = Response::builder().status(status);
                    let answer = after.into_iter().fold(answer, |answer, after| answer.header("retry-after", after));
                    Ok(answer.body(Full::from("said")).unwrap())
                }
                Act::Answers => Ok(Response::new(Full::from("answer"))),
            }
        }
    });
    (service, seen)
}

fn request<B>(method: Method, body: B) -> Request<B> {
    Request::builder().method(method).uri("/").body(body).unwrap()
}

/// A body of these frames, each a second after the one before.
fn slowly(frames: &'static [&'static str]) -> impl Body<Data = Bytes, Error = Infallible> + Send + 'static {
    let frames = futures_util::stream::iter(frames);
    StreamBody::new(Box::pin(futures_util::StreamExt::then(frames, |frame| async move {
        sleep(Duration::from_secs(1)).await;
        Ok(Frame::data(Bytes::from_static(frame.as_bytes())))
    })))
}

type Got = Result<Response<RetryBody<Full<Bytes>>>, Failure>;

async fn send<B>(layer: &RetryLayer, acts: &[Act], request: Request<B>) -> (Got, Seen)
where
    B: Body<Data = Bytes, Error = Infallible> + Send + 'static,
{
    let (service, seen) = plays(acts);
    (layer.layer(service).oneshot(request).await, seen)
}

#[tokio::test(start_paused = true)]
async fn a_request_that_was_not_sent_is_sent_again_immediately_whatever_its_method() {
    let begun = Instant::now();
    let acts = [Act::Fails(refused()), Act::Answers];
    let (answer, seen) = send(&RetryLayer::new(), &acts, request(Method::POST, Full::from("order"))).await;
    let answer = answer.unwrap();
    assert_eq!(answer.status(), 200);
    let attempts = Attempts::of(&answer).unwrap();
    assert_eq!((attempts.count(), attempts.previous()[0].cause()), (2, Cause::ConnectionRefused));
    assert_eq!(seen.bodies(), ["", "order"]);
    assert_eq!((seen.all()[1].at, seen.all()[1].count.as_deref()), (begun, Some("2")));
}

#[tokio::test(start_paused = true)]
async fn a_body_that_was_not_read_has_no_size_limit() {
    let large = Bytes::from(vec![b'x'; 1 << 20]);
    let acts = [Act::Fails(refused()), Act::Answers];
    let post = request(Method::POST, Full::from(large.clone()));
    let (answer, seen) = send(&RetryLayer::new().body_cap(16), &acts, post).await;
    assert_eq!((answer.unwrap().status().as_u16(), seen.bodies()[1].len()), (200, large.len()));
}

#[tokio::test(start_paused = true)]
async fn a_body_that_was_read_in_part_is_sent_again_whole() {
    for frames in 0..=3 {
        let acts = [Act::FailsAfter(frames, failure(Cause::ResetBeforeResponse)), Act::Answers];
        let put = request(Method::PUT, slowly(&["one ", "two ", "three"]));
        let (answer, seen) = send(&RetryLayer::new(), &acts, put).await;
        assert_eq!(answer.unwrap().status(), 200);
        assert_eq!(seen.bodies()[1], "one two three", "after {frames} frames");
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_was_read_beyond_the_limit_is_not_sent_again() {
    let acts = [Act::FailsAfter(2, failure(Cause::ResetBeforeResponse)), Act::Answers];
    let put = request(Method::PUT, slowly(&["one ", "two ", "three"]));
    let (answer, seen) = send(&RetryLayer::new().body_cap(6), &acts, put).await;
    let failure = answer.unwrap_err();
    assert_eq!((failure.cause(), failure.retry_stop()), (Cause::ResetBeforeResponse, Some(RetryStop::NotReplayable)));
    assert_eq!(seen.bodies(), ["one two "]);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_may_have_been_processed_is_repeated_only_if_it_is_idempotent() {
    let acts = [Act::Fails(failure(Cause::ResetBeforeResponse)), Act::Answers];
    for (method, status) in [(Method::GET, Some(200)), (Method::DELETE, Some(200)), (Method::POST, None)] {
        let (answer, seen) = send(&RetryLayer::new(), &acts, request(method.clone(), Empty::new())).await;
        assert_eq!(answer.as_ref().ok().map(|answer| answer.status().as_u16()), status, "{method}");
        if let Err(failure) = answer {
            assert_eq!((failure.retry_stop(), seen.all().len()), (Some(RetryStop::Method), 1));
        }
    }
    // unless the request is declared idempotent
    let mut search = request(Method::POST, Empty::new());
    search.extensions_mut().insert(RetryOverride::idempotent());
    assert!(send(&RetryLayer::new(), &acts, search).await.0.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_final_failure_lists_all_attempts_and_stops_outer_retries() {
    let acts = [Act::Fails(failure(Cause::ConnectTimeout)), Act::Fails(refused())];
    let layer = RetryLayer::new();
    let (service, seen) = plays(&acts);
    // an outer retry layer in the same process
    let inner = layer.clone();
    let outer =
        layer.layer(service_fn(move |request: Request<ReplayBody<_>>| inner.layer(service.clone()).oneshot(request)));
    let failure = outer.oneshot(request(Method::GET, Empty::<Bytes>::new())).await.unwrap_err();
    assert_eq!((failure.cause(), failure.attempts()), (Cause::ConnectionRefused, 3));
    assert_eq!(failure.retry_stop(), Some(RetryStop::Attempts));
    let causes: Vec<_> = failure.previous().iter().map(Failure::cause).collect();
    assert_eq!(causes, [Cause::ConnectTimeout, Cause::ConnectionRefused]);
    assert_eq!(seen.all().len(), 3, "not nine");
}

#[tokio::test(start_paused = true)]
async fn a_retry_waits_as_long_as_retry_after_says() {
    let begun = Instant::now();
    let acts = [Act::Says(503, Some("1")), Act::Answers];
    let (answer, seen) = send(&RetryLayer::new(), &acts, request(Method::GET, Empty::new())).await;
    assert_eq!(answer.unwrap().status(), 200);
    // and a jitter more, since all clients with the same Retry-After would come back at the same moment
    let after = seen.all()[1].at - begun;
    assert!(after >= Duration::from_secs(1) && after <= Duration::from_millis(1026), "{after:?}");
}

#[tokio::test(start_paused = true)]
async fn a_long_retry_after_is_passed_on_at_once_with_the_response() {
    let begun = Instant::now();
    let digits: &'static str = "9".repeat(400).leak();
    for (status, after) in [
        (502, "7"),
        (503, "2"),
        (504, "60"),
        (503, "18446744073709551616"),
        (502, digits),
        (503, "Fri, 31 Dec 9999 23:59:59 GMT"),
    ] {
        let acts = [Act::Says(status, Some(after)), Act::Answers];
        let (answer, seen) = send(&RetryLayer::new(), &acts, request(Method::GET, Empty::new())).await;
        let answer = answer.unwrap();
        assert_eq!((answer.status().as_u16(), answer.headers()["retry-after"].to_str().unwrap()), (status, after));
        assert_eq!((begun.elapsed(), seen.all().len()), (Duration::ZERO, 1), "{after}");
    }
    // a client that has the time says so by the policy
    let patient = RetryLayer::new().policy(RetryPolicy::new().max_retry_after(Duration::from_secs(10)));
    let (answer, _) =
        send(&patient, &[Act::Says(502, Some("7")), Act::Answers], request(Method::GET, Empty::new())).await;
    assert_eq!(answer.unwrap().status(), 200);
    assert!(begun.elapsed() >= Duration::from_secs(7));
}

#[tokio::test(start_paused = true)]
async fn a_malformed_retry_after_does_not_keep_a_request_from_its_retry() {
    for after in ["-1", "7.5", "soon", "1e9", ""] {
        let acts = [Act::Says(503, Some(after)), Act::Answers];
        let (answer, seen) = send(&RetryLayer::new(), &acts, request(Method::GET, Empty::new())).await;
        assert_eq!((answer.unwrap().status().as_u16(), seen.all().len()), (200, 2), "{after:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn no_retry_waits_beyond_the_deadline() {
    let mut get = request(Method::GET, Empty::new());
    get.extensions_mut().insert(Deadline::after(Instant::now(), Duration::from_millis(900)));
    let begun = Instant::now();
    let (answer, seen) = send(&RetryLayer::new(), &[Act::Says(503, Some("1")), Act::Answers], get).await;
    let answer = answer.unwrap();
    assert_eq!((answer.status().as_u16(), begun.elapsed(), seen.all().len()), (503, Duration::ZERO, 1));
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "said", "relayed as it came");
}

#[tokio::test(start_paused = true)]
async fn backoffs_grow_and_are_drawn_below_their_ceiling() {
    let policy =
        RetryPolicy::new().attempts(4).base_backoff(Duration::from_millis(100)).max_backoff(Duration::from_secs(1));
    let layer = RetryLayer::new().policy(policy).budget(RetryBudget::unlimited());
    for _ in 0..50 {
        let acts = [Act::Fails(failure(Cause::ResetBeforeResponse))];
        let (_, seen) = send(&layer, &acts, request(Method::GET, Empty::new())).await;
        let seen = seen.all();
        assert_eq!(seen.len(), 4);
        for (pair, ceiling) in seen.windows(2).zip([100, 200, 400]) {
            assert!(pair[1].at - pair[0].at <= Duration::from_millis(ceiling));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_empty_budget_ends_the_retries_of_all_clones() {
    let budget = RetryBudget::new();
    let layer = RetryLayer::new().budget(budget.clone());
    let acts = [Act::Fails(failure(Cause::ResetBeforeResponse))];
    let mut attempts = 0;
    let mut stops = Vec::new();
    for _ in 0..9 {
        let (answer, seen) = send(&layer.clone(), &acts, request(Method::GET, Empty::new())).await;
        attempts += seen.all().len();
        stops.push(answer.unwrap_err().retry_stop().unwrap());
    }
    assert_eq!(attempts, 9 + 3, "three to begin with");
    assert_eq!(stops[0], RetryStop::Attempts);
    assert!(stops[1..].iter().all(|stop| *stop == RetryStop::Budget), "{stops:?}");
    let budget = budget.snapshot(Instant::now());
    assert_eq!((budget.withdrawals, budget.refusals), (3, 8));
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_was_refused_unprocessed_is_sent_again_once_without_the_budget() {
    let refused = |evidence| {
        let failure = Failure::builder(Cause::StreamRefused).replay(Replay::NotSent, evidence).build();
        [Act::Fails(failure), Act::Answers]
    };
    let budget = RetryBudget::new();
    // a new budget has three tokens, and a success pays for a fifth of one
    for act in (0..20).map(|n| refused(if n % 2 == 0 { Evidence::GoAway } else { Evidence::RefusedStream })) {
        let (service, seen) = plays(&act);
        let retry = RetryLayer::new().budget(budget.clone()).layer(service);
        let post = Request::post("/").body(Full::from("once")).unwrap();
        assert_eq!(retry.oneshot(post).await.unwrap().status(), 200);
        assert_eq!(seen.all().len(), 2);
    }
    assert_eq!(budget.snapshot(Instant::now()).withdrawals, 0);

    let [goaway, _] = refused(Evidence::GoAway);
    let act = [goaway];
    let (service, seen) = plays(&act);
    let retry = RetryLayer::new().budget(budget.clone()).layer(service);
    let failure = retry.oneshot(Request::post("/").body(Full::from("once")).unwrap()).await.unwrap_err();
    assert_eq!((failure.retry_stop(), seen.all().len()), (Some(RetryStop::Attempts), 3));
    assert_eq!(budget.snapshot(Instant::now()).withdrawals, 1, "the second is an ordinary retry");

    // it may have been processed
    let lost = Failure::builder(Cause::StreamRefused).replay(Replay::IdempotentOnly, Evidence::Counted).build();
    let act = [Act::Fails(lost), Act::Answers];
    let (service, _) = plays(&act);
    let retry = RetryLayer::new().budget(budget.clone()).layer(service);
    assert_eq!(retry.oneshot(Request::get("/").body(Full::from("")).unwrap()).await.unwrap().status(), 200);
    assert_eq!(budget.snapshot(Instant::now()).withdrawals, 2);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_dropped_in_its_backoff_returns_its_token() {
    let budget = RetryBudget::new();
    let (service, seen) = plays(&[Act::Says(503, Some("1")), Act::Answers]);
    let layer = RetryLayer::new().budget(budget.clone());
    let call = layer.layer(service).oneshot(request(Method::GET, Empty::<Bytes>::new()));
    assert!(tokio::time::timeout(Duration::from_millis(500), call).await.is_err());
    let balance = budget.snapshot(Instant::now());
    assert_eq!((balance.withdrawals, balance.refunds, seen.all().len()), (1, 1, 1));
    sleep(Duration::from_secs(60)).await;
    assert_eq!(seen.all().len(), 1, "nothing goes on by itself");
}

#[tokio::test(start_paused = true)]
async fn only_listed_extensions_are_copied_to_another_attempt() {
    for (layer, texts) in [
        (RetryLayer::new(), [Some("mine"), None]),
        (RetryLayer::new().carry::<&'static str>(), [Some("mine"), Some("mine")]),
    ] {
        let mut get = request(Method::GET, Empty::new());
        get.extensions_mut().insert("mine");
        let (_, seen) = send(&layer, &[Act::Fails(refused()), Act::Answers], get).await;
        let seen: Vec<_> = seen.all().iter().map(|attempt| attempt.text).collect();
        assert_eq!(seen, texts);
    }
}

#[tokio::test(start_paused = true)]
async fn an_upgrade_is_never_sent_twice() {
    let mut upgrade = request(Method::GET, Empty::new());
    upgrade.headers_mut().insert("connection", http::HeaderValue::from_static("upgrade"));
    upgrade.headers_mut().insert("upgrade", http::HeaderValue::from_static("websocket"));
    let (answer, seen) = send(&RetryLayer::new(), &[Act::Fails(refused()), Act::Answers], upgrade).await;
    assert_eq!((answer.unwrap_err().retry_stop(), seen.all().len()), (Some(RetryStop::NotReplayable), 1));
}

#[tokio::test(start_paused = true)]
async fn a_request_can_be_exempt_from_retries() {
    let acts = [Act::Fails(refused())];
    for (exception, attempts) in
        [(RetryOverride::never(), 1), (RetryOverride::with_attempts(2), 2), (RetryOverride::with_attempts(5), 4)]
    {
        let mut get = request(Method::GET, Empty::new());
        get.extensions_mut().insert(exception);
        let (_, seen) = send(&RetryLayer::new(), &acts, get).await;
        // three tokens pay for three retries
        assert_eq!(seen.all().len(), attempts, "{exception:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_response_that_is_not_a_failure_passes_unchanged() {
    for status in [200, 204, 304, 404, 429, 500] {
        let (answer, seen) =
            send(&RetryLayer::new(), &[Act::Says(status, None)], request(Method::GET, Empty::new())).await;
        let answer = answer.unwrap();
        assert_eq!((answer.status().as_u16(), seen.all().len()), (status, 1));
        assert!(Attempts::of(&answer).is_none() && Failure::of(&answer).is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn the_total_bounds_all_attempts_through_the_timeouts_inside() {
    // each attempt hangs; its head may take two seconds, all attempts three
    let begun = Instant::now();
    let hangs = service_fn(|_: Request<ReplayBody<Empty<Bytes>>>| {
        std::future::pending::<Result<Response<Full<Bytes>>, Failure>>()
    });
    let limits = Timeouts::new().response_head(Duration::from_secs(2)).total(Duration::from_secs(3));
    let service = TimeoutLayer::new(limits).without_upload_tracking().layer(hangs);
    let policy = RetryPolicy::new().base_backoff(Duration::ZERO);
    let service = RetryLayer::new().policy(policy).total(Duration::from_secs(3)).layer(service);
    let answer = service.oneshot(request(Method::GET, Empty::new())).await.unwrap();
    let failure = Failure::of(&answer).unwrap();
    assert_eq!(begun.elapsed(), Duration::from_secs(3));
    assert_eq!((failure.cause(), failure.attempts()), (Cause::DeadlineExceeded, 2));
    assert_eq!(failure.previous()[0].cause(), Cause::FirstByteTimeout);
    assert_eq!(failure.retry_stop(), Some(RetryStop::Deadline));
}

#[tokio::test(start_paused = true)]
async fn a_clients_deadline_is_passed_to_each_attempt() {
    let begun = Instant::now();
    let hangs = service_fn(|_: Request<ReplayBody<Empty<Bytes>>>| {
        std::future::pending::<Result<Response<Full<Bytes>>, Failure>>()
    });
    let service = TimeoutLayer::new(Timeouts::new()).without_upload_tracking().layer(hangs);
    let service = RetryLayer::new().deadlines(DeadlinePropagation::new().trust_everyone()).layer(service);
    let mut get = request(Method::GET, Empty::new());
    get.headers_mut().insert("grpc-timeout", http::HeaderValue::from_static("2S"));
    let answer = service.oneshot(get).await.unwrap();
    assert_eq!(Cause::of(&answer), Some(Cause::DeadlineExceeded));
    assert_eq!(begun.elapsed(), Duration::from_millis(1900), "less 5 %, so that the answer is in time");
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_would_come_too_late_is_not_made() {
    for (median, attempts) in [(900, 2), (1100, 1)] {
        let mut get = request(Method::GET, Empty::new());
        get.extensions_mut().insert(Deadline::after(Instant::now(), Duration::from_secs(1)));
        let layer = RetryLayer::new().median(move |_| Some(Duration::from_millis(median)));
        let (_, seen) = send(&layer, &[Act::Fails(refused()), Act::Answers], get).await;
        assert_eq!(seen.all().len(), attempts, "{median}");
    }
}

/// Attempts that each take a given time, and then respond with a given status, or fail.
#[derive(Clone, Default)]
struct Slow {
    begun: Arc<Mutex<Vec<Instant>>>,
    running: Arc<std::sync::atomic::AtomicUsize>,
}

/// Counts an attempt until it is dropped.
struct Running(Arc<std::sync::atomic::AtomicUsize>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, std::sync::atomic::Ordering::Relaxed);
    }
}

impl Slow {
    fn begun(&self) -> usize {
        self.begun.lock().unwrap().len()
    }

    fn running(&self) -> usize {
        self.running.load(std::sync::atomic::Ordering::Relaxed)
    }

    fn service(
        &self,
        script: &'static [(u64, u16)],
    ) -> impl Service<Request<ReplayBody<Full<Bytes>>>, Response = Response<Full<Bytes>>, Error = Failure, Future: Send>
    + Clone {
        let slow = self.clone();
        service_fn(move |request: Request<ReplayBody<Full<Bytes>>>| {
            let attempt = {
                let mut begun = slow.begun.lock().unwrap();
                begun.push(Instant::now());
                begun.len()
            };
            slow.running.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let running = Running(slow.running.clone());
            let (takes, status) = script[(attempt - 1).min(script.len() - 1)];
            async move {
                let _running = running;
                let count = request.headers().get("x-envoy-attempt-count").cloned();
                drop(request.into_body().collect().await);
                sleep(Duration::from_millis(takes)).await;
                match status {
                    0 => Err(failure(Cause::ResetBeforeResponse)),
                    status => {
                        let mut answer = Response::builder().status(status);
                        if let Some(count) = count {
                            answer = answer.header("attempt", count);
                        }
                        Ok(answer.body(Full::from("answer")).unwrap())
                    }
                }
            }
        })
    }
}

fn hedged(after: u64) -> RetryLayer {
    RetryLayer::new().hedging(Hedging::after(Duration::from_millis(after)))
}

#[tokio::test(start_paused = true)]
async fn a_hedged_attempt_wins_over_a_late_first_one_which_is_dropped() {
    let (slow, begun) = (Slow::default(), Instant::now());
    let service = hedged(50).layer(slow.service(&[(10_000, 200), (20, 200)]));
    let answer = service.oneshot(request(Method::GET, Full::default())).await.unwrap();
    assert_eq!(begun.elapsed(), Duration::from_millis(70));
    assert_eq!((slow.begun(), slow.running()), (2, 0), "the first is gone");
    assert_eq!(answer.headers()["attempt"], "2");
    let attempts = Attempts::of(&answer).unwrap();
    assert_eq!((attempts.count(), attempts.superseded(), attempts.previous().len()), (2, 1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_first_attempt_in_time_is_not_hedged_and_one_that_is_faster_after_all_wins() {
    let slow = Slow::default();
    let answer = hedged(50).layer(slow.service(&[(49, 200)])).oneshot(request(Method::GET, Full::default())).await;
    assert_eq!((slow.begun(), Attempts::of(&answer.unwrap()).is_none()), (1, true));

    let (slow, begun) = (Slow::default(), Instant::now());
    let service = hedged(50).layer(slow.service(&[(60, 200), (30, 200)]));
    let answer = service.oneshot(request(Method::GET, Full::default())).await.unwrap();
    assert_eq!((begun.elapsed(), slow.running()), (Duration::from_millis(60), 0));
    assert_eq!((answer.headers().get("attempt"), Attempts::of(&answer).unwrap().superseded()), (None, 1));
}

#[tokio::test(start_paused = true)]
async fn if_one_of_two_attempts_fails_the_other_is_awaited() {
    for (script, takes) in [(&[(60, 503), (30, 200)], 80), (&[(90, 200), (5, 0)], 90)] {
        let (slow, begun) = (Slow::default(), Instant::now());
        let answer = hedged(50).layer(slow.service(script)).oneshot(request(Method::GET, Full::default())).await;
        let answer = answer.unwrap();
        assert_eq!((answer.status().as_u16(), begun.elapsed(), slow.begun()), (200, Duration::from_millis(takes), 2));
        let attempts = Attempts::of(&answer).unwrap();
        assert_eq!((attempts.count(), attempts.superseded(), attempts.previous().len()), (2, 0, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn if_both_attempts_fail_the_later_failure_decides_and_an_attempt_is_left() {
    let slow = Slow::default();
    let script = &[(60, 0), (20, 0), (1, 200)];
    let answer = hedged(50).layer(slow.service(script)).oneshot(request(Method::GET, Full::default())).await.unwrap();
    assert_eq!((slow.begun(), Attempts::of(&answer).unwrap().count()), (3, 3));

    let slow = Slow::default();
    let last = hedged(50).layer(slow.service(&[(60, 0)])).oneshot(request(Method::GET, Full::default())).await;
    let last = last.unwrap_err();
    assert_eq!((slow.begun(), last.attempts(), last.previous().len()), (3, 3, 2));
    assert_eq!(last.retry_stop(), Some(RetryStop::Attempts));
}

#[tokio::test(start_paused = true)]
async fn a_request_that_must_not_be_sent_twice_is_not_hedged() {
    // a POST, a body that is still being sent, a budget that is spent, one attempt
    let late = &[(500, 200)];
    let slow = Slow::default();
    hedged(50).layer(slow.service(late)).oneshot(request(Method::POST, Full::default())).await.unwrap();
    assert_eq!(slow.begun(), 1);

    let budget = RetryBudget::new();
    while let Some(token) = budget.try_withdraw(Instant::now()) {
        token.sent();
    }
    let slow = Slow::default();
    let spent = hedged(50).budget(budget).layer(slow.service(late));
    spent.oneshot(request(Method::GET, Full::default())).await.unwrap();
    let once = hedged(50).policy(RetryPolicy::new().attempts(1)).layer(slow.service(late));
    once.oneshot(request(Method::GET, Full::default())).await.unwrap();
    assert_eq!(slow.begun(), 2);

    // a body that was read to its end can be replayed
    let slow = Slow::default();
    let mut order = request(Method::PUT, Full::from("order"));
    order.extensions_mut().insert(RetryOverride::idempotent());
    hedged(50).layer(slow.service(late)).oneshot(order).await.unwrap();
    assert_eq!(slow.begun(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_hedged_call_that_is_dropped_drops_both_attempts_and_returns_the_token_of_an_unsent_one() {
    let budget = RetryBudget::new();
    let slow = Slow::default();
    let service = hedged(50).budget(budget.clone()).layer(slow.service(&[(10_000, 200)]));
    let call = tokio::time::timeout(Duration::from_secs(1), service.oneshot(request(Method::GET, Full::default())));
    assert!(call.await.is_err());
    assert_eq!((slow.begun(), slow.running()), (2, 0));
    assert_eq!(budget.snapshot(Instant::now()).withdrawals, 1);
}

#[tokio::test(start_paused = true)]
async fn the_hedging_delay_is_learned_from_the_responses() {
    let slow = Slow::default();
    let layer = RetryLayer::new().hedging(Hedging::new());
    let quick = layer.layer(slow.service(&[(40, 200)]));
    for _ in 0..300 {
        quick.clone().oneshot(request(Method::GET, Full::default())).await.unwrap();
    }
    assert_eq!(slow.begun(), 300, "nothing is hedged that is as fast as it was");
    let slow = Slow::default();
    let begun = Instant::now();
    let late = layer.layer(slow.service(&[(10_000, 200), (40, 200)]));
    late.oneshot(request(Method::GET, Full::default())).await.unwrap();
    assert!(begun.elapsed() > Duration::from_millis(75) && begun.elapsed() < Duration::from_millis(90));
}

/// Records the fields of the spans that are opened.
#[derive(Clone, Default)]
struct Spans(Arc<Mutex<Vec<String>>>);

impl tracing::Subscriber for Spans {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.target() == "tower_upstream" && metadata.is_span()
    }

    fn new_span(&self, span: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        let mut spans = self.0.lock().unwrap();
        let mut text = String::new();
        span.record(&mut |field: &tracing::field::Field, value: &dyn std::fmt::Debug| {
            use std::fmt::Write;
            write!(text, "{field}={value:?} ").unwrap();
        });
        spans.push(text);
        tracing::span::Id::from_u64(spans.len() as u64)
    }

    fn record(&self, span: &tracing::span::Id, values: &tracing::span::Record<'_>) {
        let mut spans = self.0.lock().unwrap();
        let text = &mut spans[usize::try_from(span.into_u64()).unwrap() - 1];
        values.record(&mut |field: &tracing::field::Field, value: &dyn std::fmt::Debug| {
            use std::fmt::Write;
            write!(text, "{field}={value:?} ").unwrap();
        });
    }

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, _: &tracing::Event<'_>) {}
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

#[tokio::test(start_paused = true)]
async fn each_attempt_has_a_span_with_the_number_of_its_resend() {
    let spans = Spans::default();
    let guard = crate::support::subscribe(spans.clone());
    let acts = [Act::Fails(failure(Cause::ResetBeforeResponse)), Act::Says(503, None), Act::Answers];
    let get = Request::get("http://shop.internal/cart").body(Empty::new()).unwrap();
    send(&RetryLayer::new(), &acts, get).await.0.unwrap();
    drop(guard);
    let head = "otel.kind=\"client\" http.request.method=\"GET\" server.address=\"shop.internal\" ";
    assert_eq!(
        *spans.0.lock().unwrap(),
        [
            format!("{head}error.type=\"reset_before_response\" "),
            format!("{head}http.request.resend_count=1 http.response.status_code=503 "),
            format!("{head}http.request.resend_count=2 http.response.status_code=200 "),
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn only_safe_methods_are_hedged_unless_the_request_is_declared_idempotent() {
    let late = &[(500, 200)];
    for (method, attempts) in [
        (Method::GET, 2),
        (Method::HEAD, 2),
        (Method::OPTIONS, 2),
        (Method::PUT, 1),
        (Method::DELETE, 1),
        (Method::POST, 1),
    ] {
        let slow = Slow::default();
        let sent = request(method.clone(), Full::default());
        hedged(50).layer(slow.service(late)).oneshot(sent).await.unwrap();
        assert_eq!(slow.begun(), attempts, "{method}");

        let slow = Slow::default();
        let mut sent = request(method.clone(), Full::default());
        sent.extensions_mut().insert(RetryOverride::idempotent());
        hedged(50).layer(slow.service(late)).oneshot(sent).await.unwrap();
        assert_eq!(slow.begun(), 2, "{method}, as it was asked for");
    }
}

#[tokio::test(start_paused = true)]
async fn a_write_with_a_precondition_is_repeated_only_if_it_was_not_sent() {
    let lost = || failure(Cause::ClosedBeforeResponse);
    for field in ["if-match", "if-none-match", "if-unmodified-since"] {
        for method in [Method::PUT, Method::DELETE, Method::GET] {
            let conditional = || {
                let mut sent = request(method.clone(), Empty::new());
                sent.headers_mut().insert(field, http::HeaderValue::from_static("\"1\""));
                sent
            };
            let safe = method == Method::GET;
            let relayed = &[Act::Says(503, None), Act::Answers];
            for acts in [&[Act::Fails(lost()), Act::Answers], relayed] {
                let (_, seen) = send(&RetryLayer::new(), acts, conditional()).await;
                assert_eq!(seen.all().len(), if safe { 2 } else { 1 }, "{method} {field}");
            }
            let (_, seen) = send(&RetryLayer::new(), &[Act::Fails(refused()), Act::Answers], conditional()).await;
            assert_eq!(seen.all().len(), 2, "{method} {field}: nothing was sent");
        }
    }
    let (_, seen) =
        send(&RetryLayer::new(), &[Act::Fails(lost()), Act::Answers], request(Method::PUT, Empty::new())).await;
    assert_eq!(seen.all().len(), 2, "without one");
}

#[tokio::test(start_paused = true)]
async fn an_upgrade_that_the_upstream_ignores_is_retried_as_any_request() {
    let ignored: [&[(&str, &str)]; 3] = [
        &[("connection", "Upgrade, HTTP2-Settings"), ("upgrade", "h2c")],
        &[("upgrade", "websocket")],
        &[("connection", "keep-alive"), ("upgrade", "websocket")],
    ];
    for fields in ignored {
        let mut sent = request(Method::GET, Empty::new());
        for (name, value) in fields {
            let name = http::HeaderName::try_from(*name).unwrap();
            sent.headers_mut().insert(name, value.parse().unwrap());
        }
        let acts = [Act::Fails(failure(Cause::StaleConnection)), Act::Answers];
        let (answer, seen) = send(&RetryLayer::new(), &acts, sent).await;
        assert!(answer.is_ok() && seen.all().len() == 2, "{fields:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn no_duration_is_too_short_or_too_long_for_a_retry() {
    const DURATIONS: [Duration; 3] = [Duration::ZERO, Duration::from_nanos(1), Duration::MAX];
    let policy = RetryPolicy::new;
    for duration in DURATIONS {
        let layers = [
            RetryLayer::new().policy(policy().base_backoff(duration)),
            RetryLayer::new().policy(policy().max_backoff(duration)),
            RetryLayer::new().policy(policy().max_retry_after(duration)),
            RetryLayer::new().policy(policy().base_backoff(duration).max_backoff(duration).max_retry_after(duration)),
            RetryLayer::new().total(duration),
            RetryLayer::new().median(move |_| Some(duration)),
            RetryLayer::new().total(duration).median(move |_| Some(duration)),
            RetryLayer::new().hedging(Hedging::after(duration)),
            RetryLayer::new().hedging(Hedging::new().min_samples(1).at_least(duration)),
            RetryLayer::new().hedging(Hedging::after(duration)).total(duration),
        ];
        for (at, layer) in layers.iter().enumerate() {
            for acts in [
                vec![Act::Answers],
                vec![Act::Fails(failure(Cause::ResetBeforeResponse)), Act::Answers],
                vec![Act::Says(503, Some("1")), Act::Answers],
                vec![Act::Says(503, Some("31622400")), Act::Answers],
            ] {
                let (_, seen) = send(layer, &acts, request(Method::GET, Empty::new())).await;
                assert!(matches!(seen.all().len(), 1 | 2), "{duration:?}, layer {at}");
            }
            // a late one, twice: the learned delay applies to the second
            let slow = Slow::default();
            let service = layer.layer(slow.service(&[(500, 200)]));
            for _ in 0..2 {
                service.clone().oneshot(request(Method::GET, Full::default())).await.unwrap();
                sleep(Duration::from_secs(2)).await;
            }
            let most = if duration == Duration::MAX { 2 } else { 4 };
            assert!((2..=most).contains(&slow.begun()), "{duration:?}, layer {at}: {}", slow.begun());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_retry_that_waits_for_its_service_ends_at_the_deadline_with_the_last_failure() {
    let second = Duration::from_secs(1);
    for by_caller in [false, true] {
        let mut sent = request(Method::GET, Full::default());
        let layer = if by_caller {
            sent.extensions_mut().insert(Deadline::after(Instant::now(), second * 5));
            RetryLayer::new()
        } else {
            RetryLayer::new().total(second * 5)
        };
        let begun = Instant::now();
        let (inner, script) = Scripted::new();
        script.play([scripted::Act::Fails(Cause::ResetBeforeResponse)]);
        script.close_after(1);
        let service = layer.layer(inner);
        let failure = tokio::time::timeout(second * 60, service.oneshot(sent)).await.expect("it ends").unwrap_err();
        assert_eq!(begun.elapsed(), second * 5);
        assert_eq!((failure.cause(), failure.attempts()), (Cause::ResetBeforeResponse, 1));
        assert_eq!(failure.retry_stop(), Some(RetryStop::Deadline));
    }
}
