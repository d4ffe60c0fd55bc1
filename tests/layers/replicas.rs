//! tower's own balancer over replicas, each with a circuit of its own.

use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::Either;
use http::{Request, Response};
use http_body_util::Full;
use tokio::time::{Instant, advance, sleep, timeout};
use tower::balance::p2c::Balance;
use tower::buffer::Buffer;
use tower::discover::ServiceList;
use tower::load::{CompleteOnResponse, Load, PeakEwma, PendingRequests};
use tower::util::{BoxCloneService, BoxCloneSyncService};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_upstream::breaker::{BreakerPolicy, CircuitBreakerBody, CircuitBreakerLayer, CircuitHandle, State};
use tower_upstream::cause::{Evidence, Replay, RetryStop};
use tower_upstream::stack::RequestBody;
use tower_upstream::{BadGatewayCause, ClassifyLayer, Failure, UpstreamLayer};

use crate::support::service::{Answer, get, look, ms, post, text};

type Body = RequestBody<Full<bytes::Bytes>>;
type Stack = BoxCloneService<
    Request<Full<bytes::Bytes>>,
    Response<tower_upstream::stack::UpstreamBody<Inner>>,
    std::convert::Infallible,
>;
type Inner = tower_upstream::breaker::CircuitBreakerBody<tower_upstream::classify::ClassifiedBody<Full<bytes::Bytes>>>;

#[derive(Default)]
struct Replica {
    is_down: AtomicBool,
    calls: AtomicU32,
}

impl Replica {
    fn respond(self: Arc<Self>) -> impl Future<Output = Result<Answer, Failure>> + Send {
        self.calls.fetch_add(1, Relaxed);
        async move {
            if self.is_down.load(Relaxed) {
                let refused = Failure::builder(BadGatewayCause::ConnectionRefused);
                return Err(refused.replay(Replay::NotSent, Evidence::NoConnection).build());
            }
            sleep(ms(5)).await;
            Ok(Response::new(Full::from("body")))
        }
    }
}

/// The replicas, their circuits, and a stack around a balancer of them.
struct Fleet {
    replicas: Vec<Arc<Replica>>,
    circuits: Vec<CircuitHandle>,
    stack: Stack,
}

#[derive(Clone, Copy)]
enum By {
    PendingRequests,
    PeakEwma,
}

impl Fleet {
    fn new(by: By) -> Self {
        let replicas: Vec<_> = (0..3).map(|_| Arc::new(Replica::default())).collect();
        let layers: Vec<_> = (0..3).map(|number| layer(&format!("replica-{number}"))).collect();
        let circuits = layers.iter().map(CircuitBreakerLayer::handle).collect();
        let services = replicas.iter().zip(layers).map(|(replica, layer)| {
            let replica = replica.clone();
            let service = service_fn(move |_: Request<Body>| replica.clone().respond());
            layer.layer(ClassifyLayer::new().layer(service))
        });
        let stack = match by {
            By::PendingRequests => {
                stack(services.map(|service| PendingRequests::new(service, CompleteOnResponse::default())).collect())
            }
            By::PeakEwma => stack(
                services
                    .map(|service| PeakEwma::new(service, ms(5), 10e9, CompleteOnResponse::default()))
                    .collect::<Vec<_>>(),
            ),
        };
        Self { replicas, circuits, stack }
    }

    fn down(&self, replicas: std::ops::Range<usize>, down: bool) {
        self.replicas[replicas].iter().for_each(|replica| replica.is_down.store(down, Relaxed));
    }

    /// Makes calls, one every 2 ms; those that were no success.
    async fn run(&self, calls: u32) -> Vec<String> {
        let failed = Arc::new(Mutex::new(Vec::new()));
        let mut running = Vec::new();
        for _ in 0..calls {
            let (stack, failed) = (self.stack.clone(), failed.clone());
            running.push(tokio::spawn(async move {
                let Ok(response) = stack.oneshot(get()).await;
                if response.status() != 200 {
                    failed.lock().unwrap().push(Failure::of(&response).unwrap().to_string());
                }
            }));
            sleep(ms(2)).await;
        }
        for call in running {
            call.await.unwrap();
        }
        std::mem::take(&mut *failed.lock().unwrap())
    }
}

fn layer(name: &str) -> CircuitBreakerLayer {
    CircuitBreakerLayer::new(name).policy(BreakerPolicy::new().clustered().consecutive_failures(2))
}

fn stack<S>(replicas: Vec<S>) -> Stack
where
    S: Service<Request<Body>, Response = Response<Inner>, Future: Send, Error: Into<tower::BoxError>>
        + Load<Metric: std::fmt::Debug>
        + Send
        + 'static,
{
    let balance = Balance::new(ServiceList::new(replicas));
    let layer = UpstreamLayer::builder("shop").without_circuit().without_limiter().build().unwrap();
    BoxCloneService::new(layer.layer(Buffer::new(balance, 64)))
}

#[tokio::test(start_paused = true)]
async fn a_dead_replica_of_three_fails_no_call() {
    for by in [By::PendingRequests, By::PeakEwma] {
        let fleet = Fleet::new(by);
        // fills the retry budget
        assert_eq!(fleet.run(100).await, <[&str; 0]>::default());
        fleet.replicas[0].calls.store(0, Relaxed);
        fleet.down(0..1, true);
        assert_eq!(fleet.run(400).await, <[&str; 0]>::default());
        assert!(fleet.replicas[0].calls.load(Relaxed) < 12, "{:?}", fleet.replicas[0].calls);
    }
}

#[tokio::test(start_paused = true)]
async fn calls_end_within_their_timeout_if_all_replicas_are_dead_and_recover_with_a_probe_at_once() {
    for by in [By::PendingRequests, By::PeakEwma] {
        let fleet = Fleet::new(by);
        for (circuit, replica) in fleet.circuits.iter().zip(&fleet.replicas) {
            let replica = replica.clone();
            let probe = move || std::future::ready(!replica.is_down.load(Relaxed));
            tokio::spawn(circuit.clone().active_probe(probe));
        }
        fleet.down(0..3, true);
        let begun = Instant::now();
        let failed = timeout(Duration::from_secs(40), fleet.run(400)).await.unwrap();
        assert_eq!(failed.len(), 400);
        assert!(begun.elapsed() < Duration::from_secs(31), "{:?}", begun.elapsed());
        sleep(Duration::from_secs(60)).await;
        fleet.down(0..3, false);
        sleep(ms(250)).await;
        let begun = Instant::now();
        assert_eq!(fleet.run(100).await, <[&str; 0]>::default());
        assert!(begun.elapsed() < ms(300), "{:?}", begun.elapsed());
    }
}

type Alone<B> = BoxCloneSyncService<Request<B>, Response<CircuitBreakerBody<Full<bytes::Bytes>>>, Failure>;

/// A layer alone, whose circuit has just opened.
async fn open(layer: &CircuitBreakerLayer, replica: &Arc<Replica>) -> Alone<Full<bytes::Bytes>> {
    let mut service = alone(layer, replica);
    replica.is_down.store(true, Relaxed);
    for _ in 0..2 {
        assert!(service.ready().await.unwrap().call(get()).await.is_err());
    }
    assert_eq!(layer.handle().snapshot(Instant::now()).state, State::Open);
    service
}

fn alone<B: Send + 'static>(layer: &CircuitBreakerLayer, replica: &Arc<Replica>) -> Alone<B> {
    let replica = replica.clone();
    BoxCloneSyncService::new(layer.layer(service_fn(move |_: Request<B>| replica.clone().respond())))
}

#[tokio::test(start_paused = true)]
async fn an_open_circuit_is_not_ready_until_its_open_duration_ends() {
    let (layer, replica) = (layer("a"), Arc::default());
    let mut service = open(&layer, &replica).await;
    let begun = Instant::now();
    service.ready().await.unwrap();
    assert!((500..=1000).contains(&begun.elapsed().as_millis()), "{:?}", begun.elapsed());
    replica.is_down.store(false, Relaxed);
    assert_eq!(text(service.call(get()).await.unwrap()).await, "body");
    assert_eq!(layer.handle().snapshot(Instant::now()).state, State::Closed);
}

#[tokio::test(start_paused = true)]
async fn an_open_circuit_is_ready_as_soon_as_it_closes() {
    let (layer, replica) = (layer("a"), Arc::default());
    let mut service = open(&layer, &replica).await;
    {
        let mut ready = std::pin::pin!(service.ready());
        assert!(look(ready.as_mut()).await.is_pending());
        layer.handle().reset();
        let begun = Instant::now();
        assert!(timeout(ms(100), ready).await.is_ok());
        assert_eq!(begun.elapsed(), ms(0));
    }
    // also if it closed while nobody polled
    let mut service = open(&layer, &replica).await;
    assert!(look(std::pin::pin!(service.ready())).await.is_pending());
    layer.handle().reset();
    advance(ms(1)).await;
    assert!(look(std::pin::pin!(service.ready())).await.is_ready());
}

#[tokio::test(start_paused = true)]
async fn without_replicas_a_call_is_rejected_at_once_and_not_repeated() {
    let layer = CircuitBreakerLayer::new("a").policy(BreakerPolicy::new().consecutive_failures(2));
    let replica = Arc::default();
    let service = open(&layer, &replica).await;
    let response = service.oneshot(get()).await.unwrap();
    assert_eq!(Failure::of(&response).unwrap().retry_stop(), Some(RetryStop::LocalRefusal));
}

#[tokio::test(start_paused = true)]
async fn a_rejection_that_happens_all_the_same_is_repeated() {
    // its circuit opens when the balancer has been told that it is ready
    let layer = layer("a");
    layer.handle().hold_open();
    let (first, other) = (Arc::default(), Arc::<Replica>::default());
    let first: Alone<Body> = alone(&layer, &first);
    let turns = Arc::new(AtomicU32::new(0));
    let replicas = service_fn(move |request: Request<Body>| {
        let is_first = turns.fetch_add(1, Relaxed) == 0;
        let (mut first, other) = (first.clone(), other.clone());
        let other = async { other.respond().await.map(|response| response.map(|_| bytes::Bytes::from("body").into())) };
        if is_first { Either::Left(first.call(request)) } else { Either::Right(other) }
    });
    let stack = UpstreamLayer::builder("shop").without_circuit().without_limiter().build().unwrap();
    let replicas = BoxCloneSyncService::new(replicas);
    let begun = Instant::now();
    let Ok(response) = stack.layer(replicas).oneshot(post("order")).await;
    assert_eq!((response.status().as_u16(), begun.elapsed()), (200, ms(5)));
}

#[tokio::test(start_paused = true)]
async fn a_service_that_waits_for_its_circuit_leaves_nothing_behind() {
    let (layer, replica) = (layer("a"), Arc::default());
    let mut service = open(&layer, &replica).await;
    let mut changes = layer.handle().transitions();
    assert_eq!(changes.next().await.unwrap().state, State::Open);
    assert!(look(std::pin::pin!(service.ready())).await.is_pending());
    drop((service, layer));
    assert!(timeout(ms(0), changes.next()).await.unwrap().is_none(), "the circuit is dropped");
    assert_eq!(Arc::strong_count(&replica), 1);
}
