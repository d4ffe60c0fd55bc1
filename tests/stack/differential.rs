//! The stack in one piece beside the same layers in the same order, before the same upstream: whatever happens, both show
//! the same.
//!
//! Six differences are meant. A call whose deadline has passed on arrival is told so by the stack, in layers by whichever of
//! limiter, open circuit and deadline is asked first. The text of an answer that is made here settles the stack's call at its
//! head, and a nested limiter's at its end: here such a text is always read. A head that is held for its body's first frame is
//! past its limits in the stack, and still under them in layers: here the hold is off but in a test of its own. A retry layer
//! that reads deadlines tells its budget of calls that are never repeated, the stack does not: here none reads them for such.
//! The text of a refusal that follows a failed attempt tells in layers of that refusal alone.
//! An `absolute` limit that passes while nobody polls ends all that the stack holds, in layers what its own layer and those
//! inside hold: here there is none where an answer is kept.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use proptest::prelude::*;
use tokio::time::{Instant, Sleep, sleep, timeout};
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};
use tower_upstream::breaker::{BreakerPolicy, CircuitBreakerLayer};
use tower_upstream::cause::ProxyStatus;
use tower_upstream::deadline::{Deadline, DeadlineHeader, DeadlinePropagation};
use tower_upstream::event::{Event, Observer};
use tower_upstream::limit::ConcurrencyLimitLayer;
use tower_upstream::retry::{Attempts, Hedging, RetryBudget, RetryLayer, RetryOverride, RetryPolicy};
use tower_upstream::stack::UpstreamBuilder;
use tower_upstream::timeout::{TimeoutLayer, Timeouts};
use tower_upstream::{BadGatewayCause as Cause, ClassifyLayer, Failure, UpstreamLayer};

use crate::support::service::ms;

/// What the upstream does with one attempt.
#[derive(Clone, Debug)]
struct Act {
    /// Reads so many frames of the request body first.
    reads: u8,
    takes: u64,
    does: Does,
}

#[derive(Clone, Debug)]
enum Does {
    Answers {
        status: u16,
        retry_after: Option<u16>,
        body: Vec<Step>,
        tells_its_end: bool,
    },
    Errs(Cause),
    /// With an error that only the chain tells.
    Breaks,
    Hangs,
}

/// What a body does, of the request or of an answer.
#[derive(Clone, Copy, Debug)]
enum Step {
    Data,
    Waits(u64),
    Trailers,
    Fails,
    Stalls,
}

/// One request and what becomes of its caller.
#[derive(Clone, Debug)]
struct Ask {
    method: &'static str,
    body: Vec<Step>,
    exception: Option<u8>,
    deadline: Option<u64>,
    /// In a field.
    says: Option<u64>,
    keyed: bool,
    pause: u64,
    client: Client,
}

#[derive(Clone, Copy, Debug)]
enum Client {
    Reads,
    /// Waits so long for the head.
    Leaves(u64),
    /// Reads so many frames.
    Stops(u8),
    /// Keeps the answer and reads no more.
    Keeps,
}

/// A body that does these steps.
struct Steps {
    left: VecDeque<Step>,
    waits: Option<Pin<Box<Sleep>>>,
    tells_its_end: bool,
}

impl Steps {
    fn new(steps: &[Step], tells_its_end: bool) -> Self {
        Self { left: steps.iter().copied().collect(), waits: None, tells_its_end }
    }
}

impl Body for Steps {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        loop {
            if let Some(waits) = &mut self.waits {
                ready!(waits.as_mut().poll(cx));
                self.waits = None;
            }
            match self.left.front() {
                Some(Step::Waits(millis)) => self.waits = Some(Box::pin(sleep(ms(*millis)))),
                Some(Step::Stalls) => return Poll::Pending,
                _ => {}
            }
            return Poll::Ready(match self.left.pop_front() {
                None => None,
                Some(Step::Data) => Some(Ok(Frame::data(Bytes::from_static(b"data ")))),
                Some(Step::Trailers) => {
                    self.left.clear();
                    Some(Ok(Frame::trailers(http::HeaderMap::from_iter([(
                        http::HeaderName::from_static("x-sum"),
                        http::HeaderValue::from_static("7"),
                    )]))))
                }
                Some(Step::Fails) => {
                    self.left.clear();
                    Some(Err(std::io::ErrorKind::ConnectionReset.into()))
                }
                Some(Step::Waits(_) | Step::Stalls) => continue,
            });
        }
    }

    fn is_end_stream(&self) -> bool {
        self.tells_its_end && self.left.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

/// What the upstream and the observer saw, in words.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    fn say(&self, what: String) {
        self.0.lock().unwrap().push(what);
    }
}

impl Observer for Log {
    fn on_event(&self, event: &Event<'_>) {
        if let Event::Failed(exchange, failure) = event {
            self.say(format!("reported {} {}", exchange.method, told(failure)));
        }
    }
}

fn told(failure: &Failure) -> String {
    format!(
        "{} {:?} {:?} {:?} {:?} {:?} {} {:?} {:?} [{}]",
        failure.cause(),
        failure.phase(),
        failure.replay(),
        failure.evidence(),
        failure.detail(),
        failure.elapsed(),
        failure.attempts(),
        failure.retry_stop(),
        failure.status(),
        failure.previous().iter().map(told).collect::<Vec<_>>().join(", ")
    )
}

/// The upstream: one act an attempt, the last one for ever.
#[derive(Clone)]
struct Upstream {
    acts: Arc<Mutex<VecDeque<Act>>>,
    log: Log,
    began: Instant,
    reads_no_fields: bool,
}

impl Upstream {
    async fn answer<B>(self, request: Request<B>) -> Result<Response<Steps>, std::io::Error>
    where
        B: Body<Data = Bytes> + Unpin,
        B::Error: std::fmt::Debug,
    {
        let act = {
            let mut acts = self.acts.lock().unwrap();
            if acts.len() > 1 { acts.pop_front().unwrap() } else { acts[0].clone() }
        };
        // a retry layer that reads a field leaves what it read for the layer inside, in a first attempt too
        let shown = self.reads_no_fields || request.headers().contains_key("x-envoy-attempt-count");
        let left = Deadline::of(request.extensions()).filter(|_| shown);
        let left = left.map(|deadline| deadline.remaining(Instant::now()));
        let at = self.began.elapsed();
        let (head, mut body) = request.into_parts();
        let mut read = String::new();
        for _ in 0..act.reads {
            match body.frame().await {
                Some(Ok(frame)) => {
                    read.push_str(std::str::from_utf8(frame.data_ref().map_or(b"", |data| data)).unwrap());
                }
                Some(Err(_)) => read.push('!'),
                None => break,
            }
        }
        self.log.say(format!("{at:?} {} {} {read:?} {left:?}", head.method, fields(&head.headers)));
        sleep(ms(act.takes)).await;
        match act.does {
            Does::Answers { status, retry_after, body, tells_its_end } => {
                let mut answer = Response::builder().status(status);
                if let Some(after) = retry_after {
                    answer = answer.header("retry-after", after);
                }
                Ok(answer.body(Steps::new(&body, tells_its_end)).unwrap())
            }
            Does::Errs(cause) => Err(std::io::Error::other(Failure::new(cause))),
            Does::Breaks => Err(std::io::ErrorKind::ConnectionReset.into()),
            Does::Hangs => std::future::pending().await,
        }
    }
}

/// Fields in the order of their names, which is of no meaning.
fn fields(headers: &http::HeaderMap) -> String {
    let mut fields: Vec<_> =
        headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
    fields.sort();
    format!("{fields:?}")
}

/// A script for both.
#[derive(Clone, Debug)]
struct Script {
    acts: Vec<Act>,
    asks: Vec<Ask>,
    hold: u64,
    hedges: Option<u64>,
    deadlines: Option<DeadlinePropagation>,
}

impl Script {
    /// Whether a client keeps an answer that it does not read.
    fn keeps(&self) -> bool {
        self.asks.iter().any(|ask| matches!(ask.client, Client::Keeps))
    }
}

const TOTAL: Duration = ms(4000);

struct Parts {
    limit: ConcurrencyLimitLayer,
    budget: RetryBudget,
    circuit: BreakerPolicy,
    retry: RetryLayer,
    times: Timeouts,
    classify: ClassifyLayer,
}

impl Parts {
    fn new(log: &Log, script: &Script) -> Self {
        let budget = RetryBudget::new();
        let policy =
            RetryPolicy::new().base_backoff(Duration::ZERO).max_backoff(Duration::ZERO).max_retry_after(ms(3000));
        let retry = RetryLayer::new().policy(policy).budget(budget.clone()).body_cap(12);
        let hedges = script.hedges.map(|after| Hedging::after(ms(after)));
        let retry = hedges.into_iter().fold(retry, RetryLayer::hedging);
        Self {
            limit: ConcurrencyLimitLayer::fixed(2),
            budget,
            circuit: BreakerPolicy::new(),
            retry,
            times: Timeouts::new()
                .response_head(ms(300))
                .attempt(ms(500))
                .total(TOTAL)
                .body_idle(ms(400))
                .max_duration((!script.keeps()).then_some(ms(6000))),
            classify: ClassifyLayer::new()
                .first_frame_timeout(ms(script.hold))
                .observer(log.clone())
                .proxy_status(ProxyStatus::new("edge").unwrap()),
        }
    }
}

/// Runs the script through a service, and says all that was seen.
async fn run<S, R>(service: S, asks: &[Ask], log: &Log, stands: impl Fn() -> String) -> Vec<String>
where
    S: Service<Request<Steps>, Response = Response<R>, Error = Infallible> + Clone,
    R: Body<Data = Bytes>,
    R::Error: Into<tower::BoxError>,
{
    let mut kept = Vec::new();
    for (number, ask) in asks.iter().enumerate() {
        fastrand::seed(number as u64);
        sleep(ms(ask.pause)).await;
        let mut request = Request::builder().method(Method::from_bytes(ask.method.as_bytes()).unwrap()).uri("/cart");
        // one that is made takes from the same chance as a circuit's pause
        request = request.header("x-request-id", number);
        if ask.keyed {
            request = request.header("idempotency-key", "7");
        }
        if let Some(says) = ask.says {
            request = request.header("x-request-timeout-ms", says);
        }
        let mut request = request.body(Steps::new(&ask.body, true)).unwrap();
        match ask.exception {
            Some(0) => drop(request.extensions_mut().insert(RetryOverride::never())),
            Some(1) => drop(request.extensions_mut().insert(RetryOverride::idempotent())),
            Some(attempts) => drop(request.extensions_mut().insert(RetryOverride::with_attempts(attempts))),
            None => {}
        }
        let began = Instant::now();
        if let Some(deadline) = ask.deadline {
            request.extensions_mut().insert(Deadline::after(began, ms(deadline)));
        }
        let waits = if let Client::Leaves(after) = ask.client { ms(after) } else { Duration::from_secs(3600) };
        let Ok(answer) = timeout(waits, service.clone().oneshot(request)).await else {
            log.say("left".into());
            log.say(stands());
            continue;
        };
        let Ok(answer) = answer;
        log.say(format!(
            "{:?} {} {} cause {:?} failure {:?} attempts {:?}",
            began.elapsed(),
            answer.status(),
            fields(answer.headers()),
            Cause::of(&answer),
            Failure::of(&answer).map(told),
            Attempts::of(&answer).map(|attempts| {
                let earlier: Vec<_> = attempts.previous().iter().map(told).collect();
                (attempts.count(), attempts.superseded(), earlier)
            }),
        ));
        let local = Failure::of(&answer).is_some_and(|failure| failure.cause() != Cause::UpstreamStatus);
        let frames = match ask.client {
            Client::Stops(frames) if !local => frames,
            Client::Keeps if !local => {
                kept.push(answer);
                log.say(stands());
                continue;
            }
            _ => u8::MAX,
        };
        let mut body = std::pin::pin!(answer.into_body());
        for _ in 0..frames {
            match body.frame().await {
                Some(Ok(_)) if local => log.say(format!("{:?} a text", began.elapsed())),
                Some(Ok(frame)) => log.say(format!("{:?} {frame:?}", began.elapsed())),
                Some(Err(error)) => {
                    let error: tower::BoxError = error.into();
                    let failure = error.downcast::<Failure>().unwrap();
                    log.say(format!("{:?} broken by {}", began.elapsed(), told(&failure)));
                }
                None => {
                    log.say(format!("{:?} end {}", began.elapsed(), body.is_end_stream()));
                    break;
                }
            }
        }
        log.say(stands());
    }
    drop(kept);
    drop(service);
    log.say(stands());
    std::mem::take(&mut log.0.lock().unwrap())
}

/// What the parts show, in words.
fn stands(
    circuit: &tower_upstream::breaker::CircuitSnapshot,
    limit: &ConcurrencyLimitLayer,
    budget: &RetryBudget,
    began: Instant,
) -> String {
    let budget = budget.snapshot(Instant::now());
    let limit = limit.handle().snapshot();
    format!(
        "circuit {:?} since {:?} why {:?} probe {:?} calls {} failures {} streak {} opened {} probes {} given up {} refused {} \
         in flight {} refused {} withdrawn {} refunded {} deposited {} refused {} rate {:.3} tokens {:.3}",
        circuit.state,
        circuit.since.saturating_duration_since(began),
        circuit.cause.as_ref().map(told),
        circuit.next_probe.map(|at| at.saturating_duration_since(began)),
        circuit.calls,
        circuit.failures,
        circuit.consecutive_failures,
        circuit.opened,
        circuit.probes,
        circuit.probes_timed_out,
        circuit.refused,
        limit.in_flight,
        limit.refused,
        budget.withdrawals,
        budget.refunds,
        budget.deposits,
        budget.refusals,
        budget.rate,
        budget.tokens,
    )
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap()
}

/// All that was seen of the stack in one piece.
fn fused(script: &Script) -> Vec<String> {
    runtime().block_on(async {
        let (log, began) = (Log::default(), Instant::now());
        let upstream = upstream(script, &log);
        let parts = Parts::new(&log, script);
        let builder = UpstreamLayer::builder("shop");
        let builder = script.deadlines.iter().cloned().fold(builder, UpstreamBuilder::deadlines);
        let layer = builder
            .timeouts(move |_| parts.times)
            .limiter({
                let shared = parts.limit.clone();
                move |_| shared
            })
            .retry(move |_| parts.retry)
            .circuit(move |_| parts.circuit)
            .classify(parts.classify)
            .build()
            .unwrap();
        let handle = layer.handle();
        let service = layer.layer(service_fn(move |request| upstream.clone().answer(request)));
        let seen = run(service, &script.asks, &log, || {
            let circuit = handle.circuit().unwrap().snapshot(Instant::now());
            stands(&circuit, &parts.limit, &parts.budget, began)
        });
        let seen = seen.await;
        assert_eq!(handle.in_flight(), 0, "{script:#?}");
        seen
    })
}

/// All that was seen of the same layers, one around the other.
fn nested(script: &Script) -> Vec<String> {
    runtime().block_on(async {
        let (log, began) = (Log::default(), Instant::now());
        let upstream = upstream(script, &log);
        let parts = Parts::new(&log, script);
        let breaker = CircuitBreakerLayer::new("shop").policy(parts.circuit);
        let retry = parts.retry.total(TOTAL);
        let retry = script.deadlines.iter().cloned().fold(retry, RetryLayer::deadlines);
        let limits = TimeoutLayer::new(parts.times);
        let limits = script.deadlines.iter().cloned().fold(limits, TimeoutLayer::deadlines);
        let service = ServiceBuilder::new()
            .layer(parts.classify.clone().first_frame_timeout(Duration::ZERO))
            .layer(parts.limit.clone())
            .layer(retry)
            .layer(breaker.clone())
            .layer(limits)
            .layer(parts.classify.report_by_outer())
            .service(service_fn(move |request| upstream.clone().answer(request)));
        let handle = breaker.handle();
        let seen = run(service, &script.asks, &log, || {
            stands(&handle.snapshot(Instant::now()), &parts.limit, &parts.budget, began)
        });
        seen.await
    })
}

fn upstream(script: &Script, log: &Log) -> Upstream {
    let acts = Arc::new(Mutex::new(script.acts.iter().cloned().collect()));
    Upstream { acts, log: log.clone(), began: Instant::now(), reads_no_fields: script.deadlines.is_none() }
}

#[track_caller]
fn same(script: &Script) {
    let (fused, nested) = (fused(script), nested(script));
    let differs = fused.iter().zip(&nested).position(|(one, other)| one != other);
    if let Some(at) = differs {
        panic!("after {:#?}\nfused  {}\nnested {}\nof {script:#?}", &fused[..at], fused[at], nested[at]);
    }
    assert_eq!(fused.len(), nested.len(), "{fused:#?} {nested:#?} {script:#?}");
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => Just(Step::Data),
        3 => prop_oneof![Just(1_u64), Just(7), Just(150), Just(390), Just(450)].prop_map(Step::Waits),
        1 => Just(Step::Trailers),
        1 => Just(Step::Fails),
        1 => Just(Step::Stalls),
    ]
}

fn act() -> impl Strategy<Value = Act> {
    let status = prop_oneof![
        6 => Just(200_u16), 1 => Just(204), 1 => Just(404), 1 => Just(429), 1 => Just(500), 1 => Just(502),
        2 => Just(503), 1 => Just(504)
    ];
    let after = prop_oneof![4 => Just(None), 1 => Just(Some(0)), 1 => Just(Some(1)), 1 => Just(Some(9))];
    // that one is an answer's and no error's
    let causes = Cause::ALL.iter().copied().filter(|cause| *cause != Cause::UpstreamStatus);
    let causes = prop::sample::select(causes.collect::<Vec<_>>());
    let does = prop_oneof![
        8 => (status, after, prop::collection::vec(step(), 0..4), any::<bool>()).prop_map(
            |(status, retry_after, body, tells_its_end)| Does::Answers { status, retry_after, body, tells_its_end }
        ),
        4 => causes.prop_map(Does::Errs),
        1 => Just(Does::Breaks),
        1 => Just(Does::Hangs),
    ];
    let takes = prop_oneof![4 => Just(0_u64), 1 => Just(20), 1 => Just(290), 1 => Just(310), 1 => Just(900)];
    (0..4_u8, takes, does).prop_map(|(reads, takes, does)| Act { reads, takes, does })
}

fn asks() -> impl Strategy<Value = Ask> {
    let method = prop_oneof![4 => Just("GET"), 2 => Just("POST"), 1 => Just("PUT"), 1 => Just("HEAD")];
    let body = prop_oneof![2 => Just(Vec::new()), 2 => prop::collection::vec(step(), 1..4)];
    let exception = prop_oneof![6 => Just(None), 1 => (0..6_u8).prop_map(Some)];
    let deadline = prop_oneof![4 => Just(None), 1 => Just(Some(200)), 1 => Just(Some(1200))];
    let says = prop_oneof![6 => Just(None), 1 => Just(Some(300)), 1 => Just(Some(1000))];
    let client = prop_oneof![
        6 => Just(Client::Reads),
        1 => prop_oneof![Just(0_u64), Just(10), Just(295), Just(600)].prop_map(Client::Leaves),
        1 => (0..3_u8).prop_map(Client::Stops),
        1 => Just(Client::Keeps),
    ];
    let pause = prop_oneof![4 => Just(0_u64), 1 => Just(30), 1 => Just(700), 1 => Just(2500)];
    (method, body, exception, deadline, says, any::<bool>(), pause, client).prop_map(
        |(method, body, exception, deadline, says, keyed, pause, client)| Ask {
            method,
            body,
            exception,
            deadline,
            says,
            keyed,
            pause,
            client,
        },
    )
}

fn deadlines() -> impl Strategy<Value = Option<DeadlinePropagation>> {
    let trusting = DeadlinePropagation::new().trust_everyone();
    prop_oneof![
        2 => Just(None),
        1 => Just(Some(trusting.clone())),
        1 => Just(Some(trusting.forward(DeadlineHeader::envoy_expected()))),
        1 => Just(Some(DeadlinePropagation::new().forward(DeadlineHeader::request_timeout()))),
    ]
}

fn script() -> impl Strategy<Value = Script> {
    let hedges = prop_oneof![3 => Just(None), 1 => Just(Some(15)), 1 => Just(Some(250))];
    (prop::collection::vec(act(), 1..10), prop::collection::vec(asks(), 1..8), deadlines(), hedges).prop_map(
        |(mut acts, mut asks, deadlines, hedges)| {
            // Only the stack blames a cut response on the client's failed upload before it classifies: a layer around
            // `ClassifyLayer` gets its verdict.
            if asks.iter().any(|ask| ask.body.iter().any(|step| matches!(step, Step::Fails))) {
                for act in &mut acts {
                    if let Does::Answers { body, .. } = &mut act.does {
                        body.retain(|step| !matches!(step, Step::Fails));
                    }
                }
            }
            if deadlines.is_some() {
                for ask in &mut asks {
                    ask.exception = ask.exception.filter(|exception| *exception > 0);
                }
            }
            Script { acts, asks, hold: 0, hedges, deadlines }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_stack_and_its_layers_show_the_same(script in script()) {
        same(&script);
    }
}

fn plain(status: u16) -> Act {
    Act {
        reads: 1,
        takes: 0,
        does: Does::Answers { status, retry_after: None, body: vec![Step::Data], tells_its_end: true },
    }
}

fn ask(method: &'static str) -> Ask {
    Ask {
        method,
        body: Vec::new(),
        exception: None,
        deadline: None,
        says: None,
        keyed: false,
        pause: 0,
        client: Client::Reads,
    }
}

#[test]
fn a_script_that_is_known_shows_what_it_should() {
    let script =
        Script { acts: vec![plain(503), plain(200)], asks: vec![ask("GET")], hold: 0, hedges: None, deadlines: None };
    let seen = fused(&script).join("\n");
    for word in ["x-envoy-attempt-count: 2", "attempts Some((2, 0, [", "200 OK", "withdrawn 1"] {
        assert!(seen.contains(word), "{word} is not in {seen}");
    }
    same(&script);
    assert_ne!(fused(&script), fused(&Script { acts: vec![plain(200)], ..script }));
}

#[test]
fn what_is_left_of_a_callers_time_is_told_to_each_attempt_once() {
    let trusting = DeadlinePropagation::new().trust_everyone();
    let deadlines = Some(trusting.forward(DeadlineHeader::request_timeout()));
    for hedges in [None, Some(15)] {
        let asks = vec![Ask { says: Some(1000), ..ask("GET") }];
        let acts = vec![plain(503), plain(503), plain(200)];
        let script = Script { acts, asks, hold: 0, hedges, deadlines: deadlines.clone() };
        let seen = fused(&script).join("\n");
        // an attempt's 500 ms, less 1 % for the upstream's answer
        assert_eq!(seen.matches("x-request-timeout-ms: 495").count(), 3, "{seen}");
        same(&script);
    }
}

/// With its default hold too, where no limit passes meanwhile.
#[test]
fn a_held_first_frame_shows_the_same() {
    for body in [
        vec![Step::Fails],
        vec![Step::Waits(3), Step::Fails],
        vec![Step::Waits(3), Step::Data],
        vec![Step::Stalls],
        vec![Step::Trailers],
        vec![Step::Data, Step::Fails],
        vec![Step::Waits(7), Step::Fails],
        vec![],
    ] {
        for status in [StatusCode::OK, StatusCode::SERVICE_UNAVAILABLE, StatusCode::NOT_FOUND] {
            for tells_its_end in [false, true] {
                for method in ["GET", "POST", "HEAD"] {
                    let does =
                        Does::Answers { status: status.as_u16(), retry_after: None, body: body.clone(), tells_its_end };
                    let acts = vec![Act { reads: 0, takes: 0, does }, plain(200)];
                    same(&Script {
                        acts,
                        asks: vec![ask(method), ask(method)],
                        hold: 5,
                        hedges: None,
                        deadlines: None,
                    });
                }
            }
        }
    }
}
