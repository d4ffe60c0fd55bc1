//! Servers with workers and a queue, and the calls of gateways to them, as a discrete-event simulation.
//!
//! The gateways are real services. They are polled by hand at the time of each event, to which tokio's paused clock is
//! advanced: so a nanosecond counts, where a timer of tokio has a grain of a millisecond.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;
use futures_util::FutureExt;
use http::{Request, Response, StatusCode};
use http_body_util::Empty;
use tower::Service;

pub(crate) type Body = Empty<Bytes>;

/// Nanoseconds of the simulation.
type Nanos = u64;

/// The running call of a gateway.
pub(crate) type Running = Pin<Box<dyn Future<Output = StatusCode>>>;

/// Makes the gateway's call.
pub(crate) type Gateway = Box<dyn FnMut() -> Running>;

/// How a server behaves at a time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Behaviour {
    /// The mean service time, which is distributed exponentially.
    pub(crate) mean: Duration,
    /// The part of its calls that fail within a millisecond.
    pub(crate) fails: f64,
}

/// What is simulated.
pub(crate) struct Scene {
    pub(crate) servers: usize,
    pub(crate) workers: usize,
    /// Calls per second of all gateways.
    pub(crate) rate: f64,
    /// How long calls arrive.
    pub(crate) length: Duration,
    /// Calls that begin before are not measured.
    pub(crate) warm_up: Duration,
    pub(crate) behaviour: fn(server: usize, at: Duration) -> Behaviour,
}

/// The end of a call, and whether it failed; `None` is an arrival.
type Event = Option<(usize, usize, bool)>;

#[derive(Default)]
struct Server {
    busy: usize,
    queue: VecDeque<usize>,
    calls: u64,
    in_flight: u32,
}

/// The state of the servers.
struct State {
    now: Nanos,
    order: u64,
    events: BinaryHeap<Reverse<(Nanos, u64, Event)>>,
    servers: Vec<Server>,
    /// The current call.
    current: usize,
    responses: Vec<Option<StatusCode>>,
    rng: Rng,
}

/// The servers; clones are the same.
#[derive(Clone)]
pub(crate) struct World {
    state: Arc<Mutex<State>>,
    scene: Arc<Scene>,
}

impl State {
    fn schedule(&mut self, after: Duration, event: Event) {
        self.order += 1;
        let at = self.now + u64::try_from(after.as_nanos()).unwrap();
        self.events.push(Reverse((at, self.order, event)));
    }

    fn exponential(&mut self, mean: f64) -> Duration {
        Duration::from_secs_f64(-(1.0 - self.rng.f64()).ln() * mean)
    }
}

impl World {
    pub(crate) fn new(scene: Scene, seed: u64) -> Self {
        let state = State {
            now: 0,
            order: 0,
            events: BinaryHeap::new(),
            servers: (0..scene.servers).map(|_| Server::default()).collect(),
            current: 0,
            responses: Vec::new(),
            rng: Rng::with_seed(seed),
        };
        Self { state: Arc::new(Mutex::new(state)), scene: Arc::new(scene) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(crate) fn scene(&self) -> &Scene {
        &self.scene
    }

    /// The service of a server.
    pub(crate) fn server(&self, server: usize) -> ServerService {
        ServerService { world: self.clone(), server }
    }

    /// The calls that a server has of all gateways.
    pub(crate) fn in_flight(&self, server: usize) -> u32 {
        self.state().servers[server].in_flight
    }

    /// The server takes the current call.
    pub(crate) fn send(&self, server: usize) -> Reply {
        let mut state = self.state();
        let call = state.current;
        let target = &mut state.servers[server];
        target.calls += 1;
        target.in_flight += 1;
        if target.busy < self.scene.workers {
            target.busy += 1;
            self.start(&mut state, server, call);
        } else {
            target.queue.push_back(call);
        }
        Reply { world: self.clone(), call }
    }

    fn start(&self, state: &mut State, server: usize, call: usize) {
        let behaviour = (self.scene.behaviour)(server, Duration::from_nanos(state.now));
        let fails = state.rng.f64() < behaviour.fails;
        let took = if fails { Duration::from_millis(1) } else { state.exponential(behaviour.mean.as_secs_f64()) };
        state.schedule(took, Some((server, call, fails)));
    }

    /// Ends a call at its server, which takes the next one of its queue.
    fn end(&self, server: usize, call: usize, failed: bool) {
        let mut state = self.state();
        state.responses[call] = Some(if failed { StatusCode::INTERNAL_SERVER_ERROR } else { StatusCode::OK });
        state.servers[server].in_flight -= 1;
        match state.servers[server].queue.pop_front() {
            Some(next) => self.start(&mut state, server, next),
            None => state.servers[server].busy -= 1,
        }
    }

    fn next(&self) -> Option<(Nanos, Event, Duration)> {
        let mut state = self.state();
        let Reverse((at, _, event)) = state.events.pop()?;
        let waited = Duration::from_nanos(at - state.now);
        state.now = at;
        Some((at, event, waited))
    }

    /// The gateway at which this call arrives.
    fn arrive(&self, call: usize, gateways: usize) -> usize {
        let mut state = self.state();
        let wait = state.exponential(1.0 / self.scene.rate);
        state.schedule(wait, None);
        state.current = call;
        state.responses.push(None);
        state.rng.usize(..gateways)
    }

    /// Lets calls arrive at random gateways, and returns their results.
    pub(crate) async fn run(&self, gateways: &mut [Gateway]) -> Measured {
        let mut cx = Context::from_waker(Waker::noop());
        let mut running: Vec<Option<(Nanos, Running)>> = Vec::new();
        let mut measured = Measured::default();
        self.state().schedule(Duration::ZERO, None);
        let length = u64::try_from(self.scene.length.as_nanos()).unwrap();
        let warm_up = u64::try_from(self.scene.warm_up.as_nanos()).unwrap();
        while let Some((at, event, waited)) = self.next() {
            // a poll advances the clock; the pool's tasks run every few polls
            let _ = tokio::time::advance(waited).now_or_never();
            if running.len() % 256 == 0 {
                tokio::task::yield_now().await;
            }
            if let Some((server, call, failed)) = event {
                self.end(server, call, failed);
                let (begun, mut future) = running[call].take().unwrap();
                let Poll::Ready(status) = future.as_mut().poll(&mut cx) else { panic!("its server has responded") };
                if begun >= warm_up {
                    measured.latencies.push(Duration::from_nanos(at - begun));
                    measured.failed += u64::from(status != StatusCode::OK);
                }
            } else if at < length {
                let gateway = self.arrive(running.len(), gateways.len());
                let mut call = gateways[gateway]();
                assert!(call.as_mut().poll(&mut cx).is_pending(), "no server responds at once");
                running.push(Some((at, call)));
            }
        }
        measured.calls = self.state().servers.iter().map(|server| server.calls).collect();
        measured.latencies.sort_unstable();
        measured
    }
}

/// What became of the calls.
#[derive(Debug, Default)]
pub(crate) struct Measured {
    /// In ascending order.
    pub(crate) latencies: Vec<Duration>,
    pub(crate) failed: u64,
    /// The calls to each server.
    pub(crate) calls: Vec<u64>,
}

#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)] // small counts
impl Measured {
    /// The latency below which this part of the calls is, in milliseconds.
    pub(crate) fn quantile(&self, part: f64) -> f64 {
        self.latencies[(self.latencies.len() as f64 * part) as usize].as_secs_f64() * 1e3
    }

    pub(crate) fn failed_share(&self) -> f64 {
        self.failed as f64 / self.latencies.len() as f64
    }

    /// The calls of the busiest and of the least busy server, as multiples of the mean.
    pub(crate) fn spread(&self) -> (f64, f64) {
        let mean = self.calls.iter().sum::<u64>() as f64 / self.calls.len() as f64;
        let of = |calls: Option<&u64>| *calls.unwrap() as f64 / mean;
        (of(self.calls.iter().max()), of(self.calls.iter().min()))
    }
}

/// The service of a server.
#[derive(Clone)]
pub(crate) struct ServerService {
    world: World,
    pub(crate) server: usize,
}

impl<B> Service<Request<B>> for ServerService {
    type Response = Response<Body>;
    type Error = std::io::Error;
    type Future = Reply;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<B>) -> Reply {
        self.world.send(self.server)
    }
}

/// The response of a server: pending until the event of its end.
pub(crate) struct Reply {
    world: World,
    call: usize,
}

impl Future for Reply {
    type Output = Result<Response<Body>, std::io::Error>;

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
        match self.world.state().responses[self.call] {
            Some(status) => Poll::Ready(Ok(Response::builder().status(status).body(Body::new()).unwrap())),
            None => Poll::Pending,
        }
    }
}
