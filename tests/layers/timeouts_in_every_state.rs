//! Every timeout in every state of a call: the cause, and when it ends; for `TimeoutLayer` alone, for layers, for the
//! stack.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use tokio::time::{Instant, Sleep, sleep, timeout};
use tower::util::BoxCloneService;
use tower::{BoxError, Layer, Service, ServiceBuilder, ServiceExt, service_fn};
use tower_upstream::admission::AdmissionLayer;
use tower_upstream::breaker::{BreakerPolicy, CircuitBreakerLayer};
use tower_upstream::deadline::Deadline;
use tower_upstream::limit::ConcurrencyLimitLayer;
use tower_upstream::retry::{RetryLayer, RetryPolicy};
use tower_upstream::timeout::{TimeoutLayer, Timeouts};
use tower_upstream::{BadGatewayCause as Cause, ClassifyLayer, Failure, UpstreamLayer};

const SECOND: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);
const LIMIT: Duration = Duration::from_secs(2);
/// A call that has not ended by then has no timeout.
const NEVER: Duration = Duration::from_secs(60);

/// The state of the call when the timeout passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The service inside is not ready.
    Readiness,
    /// The upload progresses, and never ends.
    Upload,
    /// No response arrives.
    Head,
    /// The upstream sends nothing more of the body.
    BodySilent,
    /// A frame is always there, and one is read each second.
    BodySlowlyRead,
    /// A frame is always there, and read at once.
    BodyEndless,
    /// The first frame was read, and no other.
    BodyUnread,
    /// The body was never polled.
    BodyUntouched,
    /// The next attempt is not due.
    Pause,
}

use State::{BodyEndless, BodySilent, BodySlowlyRead, BodyUnread, BodyUntouched, Head, Pause, Readiness};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Limit {
    Head,
    Attempt,
    Total,
    BodyIdle,
    Absolute,
    ClientIdle,
    Deadline,
}

const LIMITS: [Limit; 7] =
    [Limit::Head, Limit::Attempt, Limit::Total, Limit::BodyIdle, Limit::Absolute, Limit::ClientIdle, Limit::Deadline];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Around {
    Alone,
    Layers,
    Stack,
}

impl Limit {
    fn timeouts(self) -> Timeouts {
        let none = Timeouts::new().response_head(None).total(None).body_idle(None).client_idle(None);
        match self {
            Self::Head => none.response_head(LIMIT),
            Self::Attempt => none.attempt(LIMIT),
            Self::Total => none.total(LIMIT),
            Self::BodyIdle => none.body_idle(LIMIT),
            Self::Absolute => none.max_duration(LIMIT),
            Self::ClientIdle => none.client_idle(LIMIT),
            Self::Deadline => none,
        }
    }
}

/// Number of the upstream's bodies that have not been dropped.
type Bodies = Arc<AtomicU32>;

struct Frames {
    silent: bool,
    left: u32,
    bodies: Bodies,
}

impl Drop for Frames {
    fn drop(&mut self) {
        self.bodies.fetch_sub(1, Relaxed);
    }
}

impl Body for Frames {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.left == 0 {
            return if self.silent { Poll::Pending } else { Poll::Ready(None) };
        }
        self.left -= 1;
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"frame")))))
    }
}

/// The service inside.
fn upstream<B>(
    state: State,
    bodies: &Bodies,
) -> impl Service<Request<B>, Response = Response<Frames>, Error = Failure, Future: Send> + Clone + Send + Sync + 'static
where
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    let bodies = bodies.clone();
    let service = service_fn(move |request: Request<B>| {
        let bodies = bodies.clone();
        async move {
            match state {
                State::Upload => drop(Box::pin(request.into_body()).collect().await),
                Head => std::future::pending().await,
                Pause => return Err(Failure::new(Cause::ConnectionRefused)),
                _ => {}
            }
            bodies.fetch_add(1, Relaxed);
            let left = if state == BodySilent { 1 } else { u32::MAX };
            Ok(Response::new(Frames { silent: state == BodySilent, left, bodies }))
        }
    });
    // a limit of 0 is never ready
    let unready = (state == Readiness).then(|| tower::limit::ConcurrencyLimitLayer::new(0));
    ServiceBuilder::new().option_layer(unready).service(service)
}

/// An upload of a frame each half second.
struct Drips(Option<Pin<Box<Sleep>>>);

impl Body for Drips {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        std::task::ready!(self.0.get_or_insert_with(|| Box::pin(sleep(SECOND / 2))).as_mut().poll(cx));
        self.0 = None;
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"x")))))
    }
}

type Upload = UnsyncBoxBody<Bytes, Infallible>;

fn request(limit: Limit, state: State) -> Request<Upload> {
    let body = if state == State::Upload { Drips(None).boxed_unsync() } else { Full::default().boxed_unsync() };
    let mut request = Request::get("/").body(body).unwrap();
    if limit == Limit::Deadline {
        request.extensions_mut().insert(Deadline::at(Instant::now() + LIMIT));
    }
    request
}

/// How a call ended: its cause, and its duration.
#[derive(Debug)]
struct Ended {
    cause: Option<Cause>,
    after: Duration,
}

type Answer = Response<UnsyncBoxBody<Bytes, BoxError>>;
type Client = BoxCloneService<Request<Upload>, Answer, BoxError>;
/// Number of what is held: slots, places, calls under way, bodies of the upstream.
type Held = Box<dyn Fn() -> u32>;

fn boxed<S, B>(service: S) -> Client
where
    S: Service<Request<Upload>, Response = Response<B>, Future: Send> + Clone + Send + 'static,
    S::Error: Into<BoxError>,
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    let service =
        service.map_response(|answer: Response<B>| answer.map(|body| body.map_err(Into::into).boxed_unsync()));
    BoxCloneService::new(service.map_err(Into::into))
}

fn service(around: Around, limit: Limit, state: State) -> (Client, Held) {
    let bodies = Bodies::default();
    let timeouts = limit.timeouts();
    let unread = (limit == Limit::ClientIdle).then_some(LIMIT);
    let slots = ConcurrencyLimitLayer::fixed(9).client_idle(unread);
    match around {
        Around::Alone => (boxed(TimeoutLayer::new(timeouts).layer(upstream(state, &bodies))), Box::new(|| 0)),
        Around::Layers => {
            let places = AdmissionLayer::new(9).client_idle(unread);
            let held = (slots.handle(), places.clone());
            let service = ServiceBuilder::new()
                .layer(places)
                .layer(ClassifyLayer::new())
                .layer(slots)
                .layer(CircuitBreakerLayer::new("shop"))
                .layer(TimeoutLayer::new(timeouts))
                .layer(ClassifyLayer::new().report_by_outer())
                .service(upstream(state, &bodies));
            (boxed(service), Box::new(move || held.0.in_flight() + u32::try_from(held.1.in_flight()).unwrap()))
        }
        Around::Stack => {
            let ends = [Limit::Head, Limit::Attempt, Limit::Total, Limit::Absolute].contains(&limit);
            let timeouts = if ends { timeouts } else { timeouts.response_head(NEVER * 2) };
            let attempts = if state == Pause { 2 } else { 1 };
            let policy = RetryPolicy::new().attempts(attempts).base_backoff(SECOND * 60).max_backoff(SECOND * 60);
            let builder = UpstreamLayer::builder("shop").timeouts(move |_| timeouts).limiter({
                let shared = slots.clone();
                move |_| shared
            });
            let layer = builder.retry(move |_| RetryLayer::new().policy(policy)).build().unwrap();
            let (handle, limit) = (layer.handle(), slots.handle());
            let service = boxed(layer.layer(upstream(state, &bodies)));
            let held = move || {
                let calls = u32::try_from(handle.in_flight()).unwrap();
                let failures = handle.snapshot(Instant::now()).circuit.unwrap().failures;
                assert!(failures == 0 || !is_clients(state), "the client's doing is not the upstream's");
                limit.in_flight() + calls + bodies.load(Relaxed)
            };
            (service, Box::new(held))
        }
    }
}

fn is_clients(state: State) -> bool {
    matches!(state, BodySlowlyRead | BodyUnread | BodyUntouched)
}

async fn run(around: Around, limit: Limit, state: State) -> Ended {
    let begun = Instant::now();
    let (service, held) = service(around, limit, state);
    let never = || Ended { cause: None, after: begun.elapsed() };
    let Ok(answer) = timeout(NEVER, service.oneshot(request(limit, state))).await else { return never() };
    let answer = answer.unwrap();
    if answer.status() != 200 {
        return Ended { cause: Cause::of(&answer), after: begun.elapsed() };
    }
    let mut body = answer.into_body();
    let pace = match state {
        BodySlowlyRead => SECOND,
        BodyUnread | BodyUntouched => {
            if state == BodyUnread {
                body.frame().await.unwrap().unwrap();
            }
            if around == Around::Alone {
                sleep(LIMIT + SECOND).await;
            }
            let given_back = async {
                while held() > 0 {
                    sleep(MS * 100).await;
                }
            };
            if timeout(NEVER, given_back).await.is_err() {
                return never();
            }
            Duration::ZERO
        }
        _ => MS * 100,
    };
    let given_back = begun.elapsed();
    let mut frames = 0;
    loop {
        match timeout(NEVER, body.frame()).await {
            Err(_) => return never(),
            Ok(None) => panic!("{around:?} {limit:?} {state:?}: a cut body has ended as if it were whole"),
            Ok(Some(Ok(_))) => {
                frames += 1;
                if is_unread(state) && frames > 1 {
                    return never();
                }
            }
            Ok(Some(Err(error))) => {
                let failure = error.downcast::<Failure>().unwrap();
                assert!(around == Around::Alone || held() == 0, "{around:?} {limit:?} {state:?}");
                assert!(body.frame().await.is_none());
                let after = if is_unread(state) { given_back } else { begun.elapsed() };
                return Ended { cause: Some(failure.cause()), after };
            }
        }
        if begun.elapsed() > NEVER {
            return never();
        }
        sleep(pace).await;
    }
}

fn is_unread(state: State) -> bool {
    matches!(state, BodyUnread | BodyUntouched)
}

/// The causes that may end it, and the latest time; `None` if nothing ends it.
fn expected(around: Around, limit: Limit, state: State) -> Option<(&'static [Cause], Duration)> {
    use Limit as L;
    let late: &[Cause] = &[Cause::DeadlineExceeded];
    let of_an_upload: &[Cause] = &[Cause::DeadlineExceeded, Cause::WriteTimeout, Cause::UploadStalled];
    Some(match (state, limit) {
        // no timeout of a layer applies before the call
        (Readiness, _) if around != Around::Stack => return None,
        (Readiness, L::Head | L::Attempt) => (&[Cause::QueueTimeout], LIMIT),
        (Head, L::Head | L::Attempt) => (&[Cause::FirstByteTimeout], LIMIT),
        // the timeout of the head starts at the end of an upload that progresses, which is never here
        (State::Upload, L::Attempt | L::Total | L::Absolute | L::Deadline) => (of_an_upload, LIMIT),
        (Readiness | Head, L::Total | L::Absolute | L::Deadline) => (late, LIMIT),
        (BodySilent, L::BodyIdle) => (&[Cause::BodyReadTimeout], LIMIT + MS * 100),
        (BodySilent | BodyEndless, L::Absolute) => (late, LIMIT + MS * 100),
        (BodySlowlyRead, L::Absolute) => (late, LIMIT + SECOND),
        (BodyUnread | BodyUntouched, L::Absolute) if around != Around::Layers => (late, LIMIT + SECOND),
        (BodyUnread | BodyUntouched, L::ClientIdle) => (&[Cause::ClientClosed], LIMIT + SECOND),
        (Pause, L::Absolute | L::Deadline) => (&[Cause::ConnectionRefused], LIMIT),
        _ => return None,
    })
}

async fn holds(around: Around, states: &[State]) {
    for &state in states {
        for limit in LIMITS {
            let ended = run(around, limit, state).await;
            let place = format!("{around:?}: {limit:?} in {state:?}: {ended:?}");
            match expected(around, limit, state) {
                None => assert_eq!(ended.cause, None, "{place}"),
                Some((causes, latest)) => {
                    assert!(ended.cause.is_some_and(|cause| causes.contains(&cause)), "{place}");
                    let earliest = if state == Pause { Duration::ZERO } else { LIMIT };
                    assert!(ended.after >= earliest && ended.after <= latest, "{place}");
                }
            }
        }
    }
}

const STATES: [State; 8] =
    [Readiness, State::Upload, Head, BodySilent, BodySlowlyRead, BodyEndless, BodyUnread, BodyUntouched];

#[tokio::test(start_paused = true)]
async fn every_timeout_of_a_layer_alone_applies_in_every_state() {
    holds(Around::Alone, &STATES).await;
}

#[tokio::test(start_paused = true)]
async fn every_timeout_of_nested_layers_applies_in_every_state() {
    holds(Around::Layers, &STATES).await;
}

#[tokio::test(start_paused = true)]
async fn every_timeout_of_a_stack_applies_in_every_state() {
    holds(Around::Stack, &STATES).await;
    for limit in [Limit::Absolute, Limit::Deadline] {
        let ended = run(Around::Stack, limit, Pause).await;
        assert!(ended.cause == Some(Cause::ConnectionRefused) && ended.after <= LIMIT, "{limit:?}: {ended:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn clients_that_stop_reading_hold_nothing_after_a_minute_and_others_are_served() {
    let bodies = Bodies::default();
    let layer = UpstreamLayer::builder("shop").limiter(|_| ConcurrencyLimitLayer::fixed(20)).build().unwrap();
    let service = boxed(layer.layer(upstream(BodyUnread, &bodies)));
    let get = || request(Limit::Absolute, BodyUnread);
    let mut stuck = Vec::new();
    for _ in 0..20 {
        stuck.push(service.clone().oneshot(get()).await.unwrap());
    }
    assert_eq!(service.clone().oneshot(get()).await.unwrap().status(), 503);
    sleep(SECOND * 70).await;
    let snapshot = layer.handle().snapshot(Instant::now());
    assert_eq!((snapshot.in_flight, snapshot.limit.unwrap().in_flight, bodies.load(Relaxed)), (0, 0, 0));
    assert_eq!(snapshot.circuit.unwrap().failures, 0);
    assert_eq!(snapshot.failures, [(Cause::ConnectionLimit, 1)], "who does not read is no failure of the upstream");
    assert_eq!(service.oneshot(get()).await.unwrap().status(), 200);
    for answer in stuck {
        let error = answer.into_body().collect().await.unwrap_err();
        assert_eq!(error.downcast::<Failure>().unwrap().cause(), Cause::ClientClosed);
    }
}

#[tokio::test(start_paused = true)]
async fn a_response_whose_only_frame_came_with_its_head_holds_nothing() {
    let layer = UpstreamLayer::builder("shop").build().unwrap();
    let short = service_fn(|_: Request<_>| async { Ok::<_, Infallible>(Response::new(Full::<Bytes>::from("short"))) });
    let answer = layer.layer(short).oneshot(request(Limit::Absolute, Head)).await.unwrap();
    assert_eq!(layer.handle().in_flight(), 0);
    sleep(SECOND * 600).await;
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "short");
}

/// A service that is never done; it counts the polls of its calls.
fn pending<B>(
    polls: &AtomicU32,
) -> impl Service<Request<B>, Response = Response<Full<Bytes>>, Error = Infallible, Future: Send> {
    service_fn(|_| {
        poll_fn(|_| {
            polls.fetch_add(1, Relaxed);
            Poll::Pending
        })
    })
}

const EXTREMES: [Duration; 3] = [Duration::ZERO, Duration::from_nanos(1), Duration::MAX];

#[tokio::test(start_paused = true)]
async fn no_timeout_spins_or_panics_however_short_or_long() {
    type Set = fn(Timeouts, Duration) -> Timeouts;
    let sets: [Set; 6] = [
        Timeouts::response_head,
        Timeouts::attempt,
        Timeouts::total,
        Timeouts::body_idle,
        Timeouts::max_duration,
        Timeouts::client_idle,
    ];
    let none = Timeouts::new().response_head(None).total(None).body_idle(None).client_idle(None);
    for (at, set) in sets.iter().enumerate() {
        for extreme in EXTREMES {
            let timeouts = set(none, extreme);
            let polls = AtomicU32::new(0);
            let layer = TimeoutLayer::new(timeouts).without_upload_tracking();
            let ended = timeout(NEVER, layer.layer(pending(&polls)).oneshot(Request::new(()))).await;
            assert!(polls.load(Relaxed) < 20, "{at} {extreme:?}: {} polls", polls.load(Relaxed));
            let ends = at != 3 && at != 5 && extreme < SECOND;
            assert_eq!(ended.is_ok(), ends, "{at} {extreme:?}");
            // a body too
            let silent = upstream(BodySilent, &Bodies::default());
            let answer = TimeoutLayer::new(timeouts)
                .without_upload_tracking()
                .layer(silent)
                .oneshot(request(Limit::Head, BodySilent));
            let _ = timeout(NEVER, async { answer.await.unwrap().into_body().collect().await.is_err() }).await;
            // the stack accepts it or says why not
            let changed = set(none.response_head(SECOND), extreme);
            match UpstreamLayer::builder("shop").timeouts(move |_| changed).build() {
                Ok(layer) => {
                    let silent = upstream(Head, &Bodies::default());
                    drop(timeout(NEVER, layer.layer(silent).oneshot(request(Limit::Head, Head))).await);
                }
                Err(refused) => assert!(refused.to_string().contains("timeouts") && extreme < SECOND, "{refused}"),
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn every_other_duration_is_accepted_or_refused_with_a_reason() {
    for extreme in EXTREMES {
        let policies = [
            BreakerPolicy::new().open_duration(extreme),
            BreakerPolicy::new().max_open_duration(extreme),
            BreakerPolicy::new().window(extreme),
            BreakerPolicy::new().probe_timeout(extreme),
            BreakerPolicy::new().slow_calls(extreme, tower_upstream::breaker::Ratio::per_mille(500)),
        ];
        for policy in policies {
            let fails = upstream(Pause, &Bodies::default());
            let layer = CircuitBreakerLayer::new("shop").policy(policy);
            for _ in 0..20 {
                let _ = layer.layer(fails.clone()).oneshot(request(Limit::Head, Pause)).await;
            }
            if let Err(refused) = UpstreamLayer::builder("shop").circuit(move |_| policy).build() {
                assert!(!refused.errors().is_empty(), "{refused}");
            }
        }
        for client_idle in [None, Some(extreme)] {
            let admission = AdmissionLayer::new(3).client_idle(client_idle);
            let limit = ConcurrencyLimitLayer::fixed(3).client_idle(client_idle);
            let unread = upstream(BodyUnread, &Bodies::default());
            let service = ServiceBuilder::new().layer(admission.clone()).layer(limit.clone()).service(unread);
            let answer = service.oneshot(request(Limit::Head, BodyUnread)).await.unwrap();
            sleep(SECOND * 5).await;
            let held = usize::from(client_idle.is_none_or(|limit| limit > SECOND));
            assert_eq!((admission.in_flight(), limit.handle().in_flight() as usize), (held, held), "{client_idle:?}");
            drop(answer);
        }
        let hold = ClassifyLayer::new().first_frame_timeout(extreme);
        let silent = upstream(BodySilent, &Bodies::default());
        let _ = timeout(NEVER, hold.layer(silent).oneshot(request(Limit::Head, BodySilent))).await.unwrap();
        let deadline = Deadline::after(Instant::now(), extreme);
        let mut late = request(Limit::Head, Head);
        late.extensions_mut().insert(deadline);
        let polls = AtomicU32::new(0);
        let layer = TimeoutLayer::new(Timeouts::new().response_head(None).total(None));
        let _ = timeout(NEVER, layer.layer(pending(&polls)).oneshot(late)).await;
        assert!(polls.load(Relaxed) < 20, "{extreme:?}");
    }
}
