//! What is reported about attempts, and how the parts of a stack count them.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use tokio::time::Instant;
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};
use tower_upstream::breaker::{BreakerPolicy, CircuitBreakerLayer, State};
use tower_upstream::cause::RetryStop;
use tower_upstream::limit::ConcurrencyLimitLayer;
use tower_upstream::retry::{Attempts, Hedging, RetryLayer, RetryPolicy};
use tower_upstream::timeout::{TimeoutLayer, Timeouts};
use tower_upstream::{BadGatewayCause as Cause, ClassifyLayer, Failure, UpstreamLayer};

use crate::support::service::{get, ms, post, seen, text};

/// The spans and events of this crate, in order.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<Vec<String>>>);

struct Fields<'a>(&'a mut String);

impl tracing::field::Visit for Fields<'_> {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        use std::fmt::Write;
        write!(self.0, "{field}={value:?} ").unwrap();
    }
}

impl tracing::Subscriber for Told {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.target() == "tower_upstream"
    }

    fn new_span(&self, span: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        let mut told = self.0.lock().unwrap();
        let mut text = String::from("span ");
        span.record(&mut Fields(&mut text));
        told.push(text);
        tracing::span::Id::from_u64(told.len() as u64)
    }

    fn record(&self, span: &tracing::span::Id, values: &tracing::span::Record<'_>) {
        let mut told = self.0.lock().unwrap();
        values.record(&mut Fields(&mut told[usize::try_from(span.into_u64()).unwrap() - 1]));
    }

    fn event(&self, event: &tracing::Event<'_>) {
        let mut text = format!("{} ", event.metadata().level());
        event.record(&mut Fields(&mut text));
        self.0.lock().unwrap().push(text);
    }

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

/// An attempt: a response with this status, or an error.
type Act = Result<u16, Cause>;

fn upstream<B>(
    acts: &'static [Act],
) -> impl Service<
    Request<B>,
    Response = Response<Full<Bytes>>,
    Error = Failure,
    Future = impl Future<Output = Result<Response<Full<Bytes>>, Failure>> + Send,
> + Clone {
    let calls = Arc::new(AtomicU32::new(0));
    service_fn(move |_: Request<B>| {
        let call = calls.fetch_add(1, Relaxed) as usize;
        async move {
            match acts[call.min(acts.len() - 1)] {
                Ok(status) => Ok(Response::builder().status(status).body(Full::from("hello")).unwrap()),
                Err(cause) => Err(Failure::new(cause)),
            }
        }
    })
}

fn request() -> Request<Full<Bytes>> {
    Request::get("http://shop.internal/cart").header("x-request-id", "7").body(Full::default()).unwrap()
}

async fn by_the_stack(acts: &'static [Act], limit: ConcurrencyLimitLayer, held: bool) -> Vec<String> {
    let policy = RetryPolicy::new().base_backoff(Duration::ZERO).max_backoff(Duration::ZERO);
    let layer = UpstreamLayer::builder("shop")
        .limiter(move |_| limit)
        .retry(move |_| RetryLayer::new().policy(policy))
        .build()
        .unwrap();
    if held {
        layer.handle().circuit().unwrap().hold_open();
    }
    let told = Told::default();
    let _guard = crate::support::subscribe(told.clone());
    let _ = layer.layer(upstream(acts)).oneshot(request()).await;
    std::mem::take(&mut *told.0.lock().unwrap())
}

/// The stack knows the name of its upstream. Single layers around a client without a name know only the request's authority.
fn but_for_the_name(told: &[String]) -> Vec<String> {
    let names = ["upstream=\"shop\" ", "upstream=\"shop.internal\" "];
    told.iter().map(|line| names.iter().fold(line.clone(), |line, name| line.replace(name, ""))).collect()
}

async fn by_layers(acts: &'static [Act], limit: ConcurrencyLimitLayer, held: bool) -> Vec<String> {
    let policy = RetryPolicy::new().base_backoff(Duration::ZERO).max_backoff(Duration::ZERO);
    let breaker = CircuitBreakerLayer::new("shop");
    if held {
        breaker.handle().hold_open();
    }
    let service = ServiceBuilder::new()
        .layer(ClassifyLayer::new().first_frame_timeout(Duration::ZERO))
        .layer(limit)
        .layer(RetryLayer::new().policy(policy))
        .layer(breaker)
        .layer(TimeoutLayer::new(Timeouts::new()))
        .layer(ClassifyLayer::new().report_by_outer())
        .service(upstream(acts));
    let told = Told::default();
    let _guard = crate::support::subscribe(told.clone());
    let _ = service.oneshot(request()).await;
    std::mem::take(&mut *told.0.lock().unwrap())
}

#[tokio::test(start_paused = true)]
async fn spans_and_lines_are_those_of_the_layers() {
    let scripts: [&'static [Act]; 6] = [
        &[Ok(200)],
        &[Ok(404)],
        &[Ok(503), Ok(200)],
        &[Err(Cause::ConnectionRefused), Ok(503), Ok(200)],
        &[Err(Cause::ResetBeforeResponse)],
        &[Ok(503)],
    ];
    for acts in scripts {
        let stack = by_the_stack(acts, ConcurrencyLimitLayer::adaptive(), false).await;
        let layers = by_layers(acts, ConcurrencyLimitLayer::adaptive(), false).await;
        assert_eq!(but_for_the_name(&stack), but_for_the_name(&layers), "{acts:?}");
        let spans = stack.iter().filter(|told| told.starts_with("span")).count();
        assert_eq!(
            spans,
            if acts.len() == 1 && !matches!(acts[0], Ok(200 | 404)) { 3 } else { acts.len() },
            "{stack:#?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_circuit_refuses_is_no_attempt() {
    let stack = by_the_stack(&[Ok(200)], ConcurrencyLimitLayer::adaptive(), true).await;
    assert!(stack.iter().any(|told| told.contains("error.type=\"circuit_open\"")), "{stack:#?}");
    assert!(stack.iter().all(|told| !told.starts_with("span")), "{stack:#?}");
}

#[tokio::test(start_paused = true)]
async fn what_the_limiter_refuses_is_no_attempt() {
    let limit = ConcurrencyLimitLayer::fixed(1);
    let taken = limit
        .layer(service_fn(|_: Request<()>| async { Ok::<_, Failure>(Response::new(Full::<Bytes>::from("hello"))) }));
    let _taken = taken.oneshot(Request::new(())).await.unwrap();
    let stack = by_the_stack(&[Ok(200)], limit.clone(), false).await;
    assert_eq!(but_for_the_name(&stack), but_for_the_name(&by_layers(&[Ok(200)], limit, false).await));
    assert!(stack.iter().all(|told| told.contains("upstream=\"shop\"")), "{stack:#?}");
    assert!(stack.iter().all(|told| !told.starts_with("span")), "{stack:#?}");
}

#[tokio::test(start_paused = true)]
async fn a_response_that_a_classifier_counts_as_a_failure_is_retried() {
    let classify = ClassifyLayer::new().classifier(|attempt| {
        let is_error = attempt.headers().is_some_and(|headers| headers.contains_key("x-error"));
        is_error.then_some(Cause::ClosedBeforeResponse)
    });
    let calls = Arc::new(AtomicU32::new(0));
    let upstream = service_fn(move |_: Request<_>| {
        let is_first = calls.fetch_add(1, Relaxed) == 0;
        let response = Response::builder().header(if is_first { "x-error" } else { "x-fine" }, "1");
        std::future::ready(Ok::<_, Failure>(response.body(Full::<Bytes>::from("tea")).unwrap()))
    });
    let layer = UpstreamLayer::builder("shop").classify(classify).build().unwrap();
    let answer = layer.layer(upstream).oneshot(get()).await.unwrap();
    assert_eq!((answer.status().as_u16(), Cause::of(&answer)), (200, None));
    let attempts = Attempts::of(&answer).unwrap();
    assert_eq!((attempts.count(), attempts.previous()[0].cause()), (2, Cause::ClosedBeforeResponse));
    assert_eq!((seen(&layer).circuit.unwrap().failures, text(answer).await.as_str()), (0, "tea"));
}

#[tokio::test(start_paused = true)]
async fn a_circuit_that_opens_between_attempts_refuses_the_next_one() {
    let layer =
        UpstreamLayer::builder("shop").circuit(move |_| BreakerPolicy::new().consecutive_failures(1)).build().unwrap();
    let answer = layer.layer(upstream(&[Err(Cause::ConnectionRefused)])).oneshot(get()).await.unwrap();
    let failure = Failure::of(&answer).unwrap();
    assert_eq!((failure.cause(), failure.retry_stop()), (Cause::ConnectionRefused, Some(RetryStop::LocalRefusal)));
    assert_eq!((failure.attempts(), failure.previous().len()), (1, 0), "the refused one is no attempt");
    let shown = seen(&layer);
    let circuit = shown.circuit.unwrap();
    assert_eq!((circuit.state, circuit.opened, circuit.calls), (State::Open, 1, 1));
    assert_eq!((shown.in_flight, shown.limit.unwrap().in_flight), (0, 0));
    assert_eq!(shown.failures, [(Cause::ConnectionRefused, 1)]);
}

#[tokio::test]
async fn an_asked_for_tunnel_passes_and_settles_at_its_head() {
    let layer = UpstreamLayer::builder("shop").limiter(move |_| ConcurrencyLimitLayer::fixed(1)).build().unwrap();
    let service = layer.layer(upstream(&[Ok(101)]));
    let upgrade = || {
        let asks = Request::get("/").header("connection", "upgrade").header("upgrade", "websocket");
        asks.body(Full::<Bytes>::default()).unwrap()
    };
    let tunnel = service.clone().oneshot(upgrade()).await.unwrap();
    assert_eq!(tunnel.status(), 101);
    assert_eq!(seen(&layer).limit.unwrap().in_flight, 0, "its slot is given back at the head");
    drop(tunnel);
    // an unrequested 101 is a failure, and a retry does not fix it
    let answer = service.oneshot(get()).await.unwrap();
    assert_eq!(answer.status(), 502);
    assert_eq!(layer.handle().in_flight(), 0);
}

/// Responds late to the first call, and immediately to the others.
fn late_at_first<B: Send + 'static>() -> impl Service<
    Request<B>,
    Response = Response<Full<Bytes>>,
    Error = Failure,
    Future = impl Future<Output = Result<Response<Full<Bytes>>, Failure>> + Send,
> + Clone {
    let calls = Arc::new(AtomicU32::new(0));
    service_fn(move |_: Request<B>| {
        let call = calls.fetch_add(1, Relaxed);
        async move {
            tokio::time::sleep(ms(if call == 0 { 3000 } else { 10 })).await;
            Ok(Response::new(Full::from(if call == 0 { "first" } else { "second" })))
        }
    })
}

#[tokio::test(start_paused = true)]
async fn a_late_first_attempt_gets_a_second_beside_it() {
    let hedged = || {
        let retry = RetryLayer::new().hedging(Hedging::after(ms(50)));
        UpstreamLayer::builder("shop").retry(move |_| retry).build().unwrap()
    };
    let layer = hedged();
    let began = Instant::now();
    let answer = layer.layer(late_at_first()).oneshot(get()).await.unwrap();
    assert_eq!(began.elapsed(), ms(60));
    let attempts = Attempts::of(&answer).unwrap();
    assert_eq!((attempts.count(), attempts.superseded()), (2, 1));
    assert_eq!(text(answer).await, "second");
    let shown = seen(&layer);
    assert_eq!((shown.calls, shown.in_flight, shown.budget.unwrap().withdrawals), (1, 0, 1), "one call, one slot");
    let circuit = shown.circuit.unwrap();
    assert_eq!((circuit.calls, circuit.failures), (1, 0), "the one that was overtaken proves nothing");
    assert_eq!(shown.failures, []);

    // a request that is not idempotent has one attempt at a time
    let layer = hedged();
    let began = Instant::now();
    let answer = layer.layer(late_at_first()).oneshot(post("order")).await.unwrap();
    assert_eq!((began.elapsed(), Attempts::of(&answer).is_none()), (ms(3000), true));
    assert_eq!(text(answer).await, "first");
    // nothing is hedged during a bypass
    let layer = hedged();
    layer.handle().bypass(Duration::from_secs(60));
    let answer = layer.layer(late_at_first()).oneshot(get()).await.unwrap();
    assert_eq!(text(answer).await, "first");
}

#[tokio::test(start_paused = true)]
async fn no_delay_of_a_hedge_is_too_long_for_a_stack() {
    let hedging = RetryLayer::new().hedging(Hedging::after(Duration::MAX));
    let layer = UpstreamLayer::builder("shop")
        .preset(tower_upstream::stack::Preset::Streaming)
        .retry(move |_| hedging)
        .build()
        .unwrap();
    let late = tower::service_fn(|_: Request<_>| async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        Ok::<_, Failure>(Response::new(Full::<Bytes>::from("late")))
    });
    assert_eq!(layer.layer(late).oneshot(get()).await.unwrap().status(), 200);
}
