//! However a call ends, it leaves nothing behind: no slot, no probe, no count, no timer.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use proptest::prelude::*;
use tokio::time::{Instant, Sleep, sleep};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_upstream::breaker::{BreakerPolicy, State};
use tower_upstream::limit::ConcurrencyLimitLayer;
use tower_upstream::retry::{Hedging, RetryLayer, RetryPolicy};
use tower_upstream::stack::UpstreamHandle;
use tower_upstream::timeout::Timeouts;
use tower_upstream::{BadGatewayCause as Cause, Failure, UpstreamLayer};

use crate::support::service::{get, look, ms, post};

/// The behaviour of the inner service in one attempt.
#[derive(Clone, Copy, Debug)]
enum Act {
    Answers(u16, After),
    Errs(Cause),
    Hangs,
    PanicsInItsCall,
    PanicsWhenPolled,
}

/// The body after a head.
#[derive(Clone, Copy, Debug)]
enum After {
    Nothing,
    Frames(u8),
    Breaks,
    Stalls,
    Panics,
}

/// The readiness of the inner service.
#[derive(Clone, Copy, Debug)]
enum Asked {
    Ready,
    Late(u64),
    Never,
    Breaks,
    Panics,
}

struct Frames {
    after: After,
    pause: Option<Pin<Box<Sleep>>>,
}

impl Body for Frames {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        match self.after {
            After::Nothing | After::Frames(0) => Poll::Ready(None),
            After::Stalls => Poll::Pending,
            After::Panics => panic!("in its body"),
            After::Breaks => {
                self.after = After::Nothing;
                Poll::Ready(Some(Err(std::io::ErrorKind::ConnectionReset.into())))
            }
            After::Frames(left) => {
                let pause = self.pause.get_or_insert_with(|| Box::pin(sleep(ms(30))));
                std::task::ready!(pause.as_mut().poll(cx));
                self.pause = None;
                self.after = After::Frames(left - 1);
                Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"frame")))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.after, After::Nothing)
    }
}

/// The inner service: its behaviour comes from two lists, whose last items repeat.
struct Inner {
    acts: Arc<Mutex<VecDeque<(u64, Act)>>>,
    asked: Arc<Mutex<VecDeque<Asked>>>,
    late: Option<Pin<Box<Sleep>>>,
    ready: bool,
}

impl Clone for Inner {
    fn clone(&self) -> Self {
        Self { acts: self.acts.clone(), asked: self.asked.clone(), late: None, ready: false }
    }
}

fn next<T: Copy>(list: &Mutex<VecDeque<T>>) -> T {
    let mut list = list.lock().unwrap();
    if list.len() > 1 { list.pop_front().unwrap() } else { list[0] }
}

impl<B> Service<Request<B>> for Inner {
    type Response = Response<Frames>;
    type Error = Failure;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Frames>, Failure>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        if self.late.is_none() && !self.ready {
            match next(&self.asked) {
                Asked::Ready => {}
                Asked::Late(millis) => self.late = Some(Box::pin(sleep(ms(millis)))),
                Asked::Never => self.late = Some(Box::pin(sleep(Duration::from_secs(100_000)))),
                Asked::Breaks => return Poll::Ready(Err(Failure::new(Cause::ConnectionRefused))),
                Asked::Panics => panic!("when it was asked"),
            }
        }
        if let Some(late) = &mut self.late {
            std::task::ready!(late.as_mut().poll(cx));
        }
        (self.late, self.ready) = (None, true);
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<B>) -> Self::Future {
        assert!(std::mem::take(&mut self.ready), "it was called without being ready");
        let (takes, act) = next(&self.acts);
        assert!(!matches!(act, Act::PanicsInItsCall), "in its call");
        Box::pin(async move {
            if takes > 0 {
                sleep(ms(takes)).await;
            }
            match act {
                Act::Answers(status, after) => {
                    Ok(Response::builder().status(status).body(Frames { after, pause: None }).unwrap())
                }
                Act::Errs(cause) => Err(Failure::new(cause)),
                Act::Hangs => std::future::pending().await,
                Act::PanicsInItsCall | Act::PanicsWhenPolled => panic!("when it was polled"),
            }
        })
    }
}

/// A call: its beginning, its request, and the number of polls after which it is dropped.
#[derive(Clone, Copy, Debug)]
struct Calls {
    at: u64,
    posts: bool,
    polls: u32,
}

#[derive(Clone, Copy, Debug)]
enum Steers {
    Bypass(u64),
    Drain(u64),
    Resume,
    HoldOpen,
    Release,
    Reset,
    SetLimiter,
    SetTimeouts,
}

#[derive(Clone, Debug)]
struct Script {
    acts: Vec<(u64, Act)>,
    asked: Vec<Asked>,
    calls: Vec<Calls>,
    steers: Vec<(u64, Steers)>,
    hedges: bool,
}

fn limits(head: u64) -> Timeouts {
    Timeouts::new().response_head(ms(head)).attempt(ms(head)).total(ms(2000)).body_idle(ms(300))
}

async fn steer(handle: &UpstreamHandle, steers: Steers) {
    match steers {
        Steers::Bypass(millis) => handle.bypass(ms(millis)),
        Steers::Drain(millis) => drop(handle.drain(ms(millis)).await),
        Steers::Resume => handle.resume(),
        Steers::HoldOpen => handle.hold_open(),
        Steers::Release => handle.release(),
        Steers::Reset => handle.reset(),
        Steers::SetLimiter => handle.set_limiter(&ConcurrencyLimitLayer::fixed(3)).unwrap(),
        Steers::SetTimeouts => handle.set_timeouts(limits(150)).unwrap(),
    }
}

/// Polls up to the number of polls of the call.
async fn polled<F: Future>(future: F, polls: &mut u32) -> Option<F::Output> {
    let mut future = pin!(future);
    std::future::poll_fn(|cx| {
        if *polls == 0 {
            return Poll::Ready(None);
        }
        *polls -= 1;
        future.as_mut().poll(cx).map(Some)
    })
    .await
}

async fn holds(script: &Script) {
    let retry = RetryLayer::new().policy(RetryPolicy::new().base_backoff(ms(1)).max_backoff(ms(2)));
    let retry = if script.hedges { retry.hedging(Hedging::after(ms(40))) } else { retry };
    let first = ConcurrencyLimitLayer::fixed(3);
    let layer = UpstreamLayer::builder("shop")
        .timeouts(move |_| limits(200))
        .limiter({
            let shared = first.clone();
            move |_| shared
        })
        .retry(move |_| retry)
        // a probe releases its place itself, not after a time
        .circuit(move |_| {
            BreakerPolicy::new()
                .consecutive_failures(3)
                .open_duration(ms(100))
                .max_open_duration(ms(400))
                .probe_timeout(Duration::from_secs(3_600))
        })
        .build()
        .unwrap();
    let acts = Arc::new(Mutex::new(script.acts.iter().copied().collect::<VecDeque<_>>()));
    let asked = Arc::new(Mutex::new(script.asked.iter().copied().collect::<VecDeque<_>>()));
    let service = layer.layer(Inner { acts: acts.clone(), asked: asked.clone(), late: None, ready: false });
    let handle = layer.handle();
    let steers = script.steers.clone();
    let steering = tokio::spawn({
        let handle = handle.clone();
        async move {
            for (pause, steers) in steers {
                sleep(ms(pause)).await;
                steer(&handle, steers).await;
            }
        }
    });
    let calls = script.calls.iter().map(|&calls| {
        let service = service.clone();
        tokio::spawn(async move {
            sleep(ms(calls.at)).await;
            let request = if calls.posts { post("order") } else { get() };
            let mut polls = calls.polls;
            let Some(Ok(answer)) = polled(service.oneshot(request), &mut polls).await else { return };
            let _ = polled(answer.into_body().collect(), &mut polls).await;
        })
    });
    let calls: Vec<_> = calls.collect();
    for call in calls {
        let _ = call.await;
    }
    steering.await.unwrap();

    let shown = handle.snapshot(Instant::now());
    assert_eq!((shown.in_flight, shown.limit.unwrap().in_flight, first.handle().in_flight()), (0, 0, 0));
    // later calls are served: a probe succeeds after the open duration at the latest
    handle.resume();
    *acts.lock().unwrap() = [(0, Act::Answers(200, After::Frames(1)))].into();
    *asked.lock().unwrap() = [Asked::Ready].into();
    if shown.circuit.as_ref().is_some_and(|circuit| circuit.next_probe.is_none()) {
        // held open by an operator
        handle.release();
    }
    sleep(ms(2000)).await;
    let answer = service.clone().oneshot(get()).await.unwrap();
    assert_eq!(answer.status(), 200, "{:?}", handle.snapshot(Instant::now()).circuit);
    answer.into_body().collect().await.unwrap();
    let shown = handle.snapshot(Instant::now());
    assert_eq!((shown.circuit.unwrap().state, shown.in_flight), (State::Closed, 0));
}

fn after() -> impl Strategy<Value = After> {
    prop_oneof![
        3 => Just(After::Nothing),
        3 => (1..4_u8).prop_map(After::Frames),
        1 => Just(After::Breaks),
        1 => Just(After::Stalls),
        1 => Just(After::Panics),
    ]
}

fn script() -> impl Strategy<Value = Script> {
    let status = prop_oneof![4 => Just(200), 1 => Just(404), 2 => Just(503)];
    let act = prop_oneof![
        6 => (status, after()).prop_map(|(status, after)| Act::Answers(status, after)),
        2 => prop::sample::select(Cause::ALL.to_vec()).prop_map(Act::Errs),
        1 => Just(Act::Hangs),
        1 => Just(Act::PanicsInItsCall),
        1 => Just(Act::PanicsWhenPolled),
    ];
    let takes = prop_oneof![2 => Just(0_u64), 2 => 1..100_u64, 1 => 150..260_u64];
    let asked = prop_oneof![
        6 => Just(Asked::Ready),
        2 => (1..300_u64).prop_map(Asked::Late),
        1 => Just(Asked::Never),
        1 => Just(Asked::Breaks),
        1 => Just(Asked::Panics),
    ];
    let polls = prop_oneof![2 => 0..12_u32, 1 => Just(u32::MAX)];
    let calls = (0..800_u64, any::<bool>(), polls).prop_map(|(at, posts, polls)| Calls { at, posts, polls });
    let steers = prop_oneof![
        1 => (1..400_u64).prop_map(Steers::Bypass),
        1 => (0..200_u64).prop_map(Steers::Drain),
        2 => Just(Steers::Resume),
        1 => Just(Steers::HoldOpen),
        1 => Just(Steers::Release),
        1 => Just(Steers::Reset),
        1 => Just(Steers::SetLimiter),
        1 => Just(Steers::SetTimeouts),
    ];
    (
        prop::collection::vec((takes, act), 1..12),
        prop::collection::vec(asked, 1..6),
        prop::collection::vec(calls, 1..10),
        prop::collection::vec((0..200_u64, steers), 0..5),
        prop::bool::weighted(0.3),
    )
        .prop_map(|(acts, asked, calls, steers, hedges)| Script { acts, asked, calls, steers, hedges })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_stays_of_a_call_whatever_happens(script in script()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(holds(&script));
    }
}

/// Counts how often it was woken.
#[derive(Default)]
struct Woken(AtomicU32);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Relaxed);
    }
}

/// A future that is kept after its response wakes no task.
async fn leaves_no_timer(answer: impl Fn() -> Result<Response<Frames>, Failure> + Clone + Send + Sync + 'static) {
    let layer = UpstreamLayer::builder("shop").timeouts(move |_| limits(200)).without_retry().build().unwrap();
    let inner = service_fn(move |_| {
        let answer = answer.clone();
        async move {
            sleep(ms(50)).await;
            answer()
        }
    });
    let mut service = layer.layer(inner);
    service = ServiceExt::<Request<http_body_util::Full<Bytes>>>::ready_oneshot(service).await.unwrap();
    let mut call = pin!(service.call(get()));
    let woken = Arc::<Woken>::default();
    let waker = Waker::from(woken.clone());
    let mut cx = Context::from_waker(&waker);
    assert!(call.as_mut().poll(&mut cx).is_pending());
    tokio::time::advance(ms(51)).await;
    let mut answered = call.as_mut().poll(&mut cx);
    if answered.is_pending() {
        // its head was held
        tokio::time::advance(ms(6)).await;
        answered = call.as_mut().poll(&mut cx);
    }
    assert!(answered.is_ready());
    let before = woken.0.load(Relaxed);
    tokio::time::advance(ms(5000)).await;
    tokio::task::yield_now().await;
    assert_eq!(woken.0.load(Relaxed), before, "a timer was left");
}

#[tokio::test(start_paused = true)]
async fn an_answered_call_leaves_no_timer_though_it_is_kept() {
    let answers =
        |status, after| move || Ok(Response::builder().status(status).body(Frames { after, pause: None }).unwrap());
    leaves_no_timer(answers(200, After::Nothing)).await;
    leaves_no_timer(answers(200, After::Stalls)).await;
    leaves_no_timer(answers(200, After::Breaks)).await;
    leaves_no_timer(answers(404, After::Nothing)).await;
    leaves_no_timer(answers(503, After::Stalls)).await;
    leaves_no_timer(|| Err(Failure::new(Cause::ConnectionRefused))).await;
}

#[tokio::test(start_paused = true)]
async fn a_body_that_is_dropped_gives_its_slot_back_at_once() {
    let limit = ConcurrencyLimitLayer::fixed(1);
    let layer = UpstreamLayer::builder("shop")
        .limiter({
            let shared = limit.clone();
            move |_| shared
        })
        .build()
        .unwrap();
    let inner =
        service_fn(|_| async { Ok::<_, Failure>(Response::new(Frames { after: After::Frames(3), pause: None })) });
    let service = layer.layer(inner);
    let mut answer = service.clone().oneshot(get()).await.unwrap();
    answer.body_mut().frame().await.unwrap().unwrap();
    assert_eq!((limit.handle().in_flight(), layer.handle().in_flight()), (1, 1));
    drop(answer);
    assert_eq!((limit.handle().in_flight(), layer.handle().in_flight()), (0, 0));

    // a call that is dropped before its head too
    let mut call = pin!(service.oneshot(get()));
    assert!(look(call.as_mut()).await.is_pending());
    assert_eq!(limit.handle().in_flight(), 1);
}
