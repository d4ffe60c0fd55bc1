//! Processes with workers and a queue in virtual time, and clients that call them at random times.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;
use http::{Method, Request, Response};
use http_body_util::Full;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tower::util::BoxCloneSyncService;
use tower::{Layer, ServiceExt, service_fn};
use tower_upstream::balance::{Balance, Member};
use tower_upstream::cause::{Evidence, Replay};
use tower_upstream::stack::Upstream;
use tower_upstream::{BadGatewayCause, Failure, UpstreamLayer};

use crate::pool::{Body, Endpoint};
use crate::support::service::{Answer, ms};

pub(crate) type Stack = Upstream<Balance<Endpoint<Body>>>;

const WORKERS: usize = 8;
const SERVICE: Duration = Duration::from_millis(40);
/// Calls that wait for a worker; more are refused with 503.
const QUEUE: usize = 400;
/// How long a client waits.
const PATIENCE: Duration = Duration::from_secs(2);

/// How a process behaves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct State {
    /// Nothing listens, and calls in flight are reset.
    pub(crate) down: bool,
    /// Its service times are multiplied by this.
    pub(crate) slower: f64,
    /// The part of its calls that it responds to with 500.
    pub(crate) fails: f64,
}

pub(crate) const UP: State = State { down: false, slower: 1.0, fails: 0.0 };
pub(crate) const DOWN: State = State { down: true, ..UP };

struct Process {
    state: watch::Sender<State>,
    workers: Semaphore,
    queued: AtomicUsize,
    in_flight: AtomicUsize,
    calls: AtomicU64,
    rng: Mutex<Rng>,
}

/// The processes behind a pool, by the key of their member.
#[derive(Clone, Default)]
pub(crate) struct Site(Arc<Mutex<BTreeMap<String, Arc<Process>>>>);

impl Site {
    fn process(&self, key: &str) -> Arc<Process> {
        let mut processes = self.0.lock().unwrap();
        let seed = processes.len() as u64;
        let process = || Process {
            state: watch::Sender::new(UP),
            workers: Semaphore::new(WORKERS),
            queued: AtomicUsize::new(0),
            in_flight: AtomicUsize::new(0),
            calls: AtomicU64::new(0),
            rng: Mutex::new(Rng::with_seed(seed)),
        };
        processes.entry(key.to_owned()).or_insert_with(|| Arc::new(process())).clone()
    }

    pub(crate) fn set(&self, key: &str, state: State) {
        self.process(key).state.send_replace(state);
    }

    /// The calls that a process has.
    pub(crate) fn in_flight(&self, key: &str) -> usize {
        self.process(key).in_flight.load(Relaxed)
    }

    /// The calls that were sent to all processes.
    pub(crate) fn all_calls(&self) -> u64 {
        self.0.lock().unwrap().values().map(|process| process.calls.load(Relaxed)).sum()
    }

    /// A pool of these members with the defaults.
    pub(crate) fn pool(&self, members: impl IntoIterator<Item = Member>) -> Balance<Endpoint<Body>> {
        let site = self.clone();
        let make = move |member: &Member| {
            let process = site.process(&member.key);
            BoxCloneSyncService::new(service_fn(move |_| respond(process.clone())))
        };
        Balance::builder("shop", make).members(members).build().unwrap()
    }
}

/// A stack around a pool, with a limit of 0.5 s for each attempt.
pub(crate) fn stack(pool: &Balance<Endpoint<Body>>) -> Stack {
    let timeouts = UpstreamLayer::for_pool(pool)
        .timeouts(|timeouts| timeouts.response_head(ms(500)).attempt(ms(500)).total(PATIENCE));
    timeouts.build().unwrap().layer(pool.clone())
}

/// Counts while it lives.
struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Relaxed);
        Self(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

async fn respond(process: Arc<Process>) -> Result<Answer, Failure> {
    process.calls.fetch_add(1, Relaxed);
    let mut state = process.state.subscribe();
    if state.borrow().down {
        let refused = Failure::builder(BadGatewayCause::ConnectionRefused);
        return Err(refused.replay(Replay::NotSent, Evidence::NoConnection).build());
    }
    if process.queued.load(Relaxed) >= QUEUE {
        return Ok(Response::builder().status(503).body(Full::default()).unwrap());
    }
    let _in_flight = Counted::new(&process.in_flight);
    tokio::select! {
        biased;
        _ = state.wait_for(|state| state.down) => Err(Failure::new(BadGatewayCause::ResetBeforeResponse)),
        response = work(&process) => Ok(response),
    }
}

async fn work(process: &Process) -> Answer {
    let queued = Counted::new(&process.queued);
    let _worker = process.workers.acquire().await.unwrap();
    drop(queued);
    let state = *process.state.borrow();
    let (draw, fails) = {
        let mut rng = process.rng.lock().unwrap();
        (rng.f64(), rng.f64() < state.fails)
    };
    sleep(SERVICE.mul_f64(-(1.0 - draw).ln() * state.slower)).await;
    Response::builder().status(if fails { 500 } else { 200 }).body(Full::default()).unwrap()
}

/// Result of a client's call.
#[derive(Clone, Debug)]
pub(crate) struct Ended {
    pub(crate) begun: Duration,
    pub(crate) method: Method,
    /// `None` if the client has timed out.
    pub(crate) status: Option<u16>,
    pub(crate) cause: Option<BadGatewayCause>,
    /// The upstream may have processed it.
    pub(crate) maybe_processed: bool,
}

impl Ended {
    pub(crate) fn is_success(&self) -> bool {
        self.status == Some(200)
    }
}

/// Calls a stack `rate` times a second, at random times, for `length`; every other call is a POST if `posts`.
pub(crate) async fn clients(stack: Stack, rate: f64, length: Duration, posts: bool, seed: u64) -> Vec<Ended> {
    let (begin, mut rng) = (Instant::now(), Rng::with_seed(seed));
    let (mut next, mut calls) = (begin, JoinSet::new());
    loop {
        next += Duration::from_secs_f64(-(1.0 - rng.f64()).ln() / rate);
        if next >= begin + length {
            break;
        }
        sleep_until(next).await;
        let method = if posts && rng.bool() { Method::POST } else { Method::GET };
        calls.spawn(client(stack.clone(), method, begin));
    }
    let mut ended = calls.join_all().await;
    ended.sort_by_key(|ended| ended.begun);
    ended
}

async fn client(stack: Stack, method: Method, origin: Instant) -> Ended {
    let begun = origin.elapsed();
    let request = Request::builder().method(method.clone()).uri("/cart").body(Full::<Bytes>::default()).unwrap();
    let response = timeout(PATIENCE, stack.oneshot(request)).await.ok().map(Result::unwrap);
    let failure = response.as_ref().and_then(|response| Failure::of(response));
    Ended {
        begun,
        method,
        status: response.as_ref().map(|response| response.status().as_u16()),
        cause: failure.map(Failure::cause),
        maybe_processed: failure.is_some_and(|failure| failure.replay() != Replay::NotSent),
    }
}
