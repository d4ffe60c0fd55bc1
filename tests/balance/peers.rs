//! Defects of other balancers, each named after what goes right here: L1 to L14 of the project's reading of their
//! sources and issues. Those of sources (L3, L4, L8) and of health checks (L10, L11) are in the files of these.

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::stream;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use tokio::time::{Instant, advance, sleep};
use tower::{Service, ServiceExt, service_fn};
use tower_upstream::balance::{Balance, EndpointSnapshot, Member};
use tower_upstream::body::TrackedUpload;
use tower_upstream::{BadGatewayCause, Failure};

use crate::pool::{Endpoint, Servers, call, members};
use crate::support::service::{Act, get, ms};

type Pool = Balance<Endpoint<TrackedUpload<Full<Bytes>>>>;

fn pool(servers: &Servers, keys: &[&str]) -> Pool {
    Balance::builder("shop", servers.factory()).members(members(keys.iter().copied())).build().unwrap()
}

fn endpoint<S>(pool: &Balance<S>, key: &str) -> EndpointSnapshot {
    let snapshot = pool.handle().snapshot(Instant::now());
    snapshot.endpoints.into_iter().find(|endpoint| &*endpoint.member.key == key).unwrap()
}

/// L1, tower #856: the index of the chosen endpoint outlived the removal of another one.
#[tokio::test(start_paused = true)]
async fn a_removal_between_two_calls_sends_none_to_another_endpoint() {
    let (servers, mut rng) = (Servers::default(), fastrand::Rng::with_seed(1));
    let pool = pool(&servers, &["a", "b", "c", "d", "e", "f"]);
    let names: Vec<_> = ["a", "b", "c", "d", "e", "f"].into();
    for _ in 0..200 {
        // a service that was ready before the removal
        let mut ready = pool.clone();
        let ready = ready.ready().await.unwrap();
        let removed = names[rng.usize(1..6)];
        let _ = pool.handle().remove(removed);
        let before = servers.calls(removed);
        assert!(ready.call(get()).await.unwrap().status().is_success());
        assert_eq!(servers.calls(removed), before);
        let _ = pool.handle().upsert(Member::new(removed)).unwrap();
        advance(ms(10)).await;
    }
}

/// Its readiness fails while it is broken.
#[derive(Clone)]
struct Flaky {
    is_broken: Arc<AtomicBool>,
    calls: Arc<AtomicU32>,
}

impl<B> Service<Request<B>> for Flaky {
    type Response = Response<Full<Bytes>>;
    type Error = Failure;
    type Future = std::future::Ready<Result<Response<Full<Bytes>>, Failure>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        let broken = self.is_broken.load(Relaxed);
        Poll::Ready(if broken { Err(Failure::new(BadGatewayCause::ConnectionRefused)) } else { Ok(()) })
    }

    fn call(&mut self, _: Request<B>) -> Self::Future {
        self.calls.fetch_add(1, Relaxed);
        std::future::ready(Ok(Response::default()))
    }
}

/// L2, grpc-rust #2839: an endpoint whose readiness fails was gone for good.
#[tokio::test(start_paused = true)]
async fn an_endpoint_whose_readiness_failed_takes_calls_again() {
    let broken = Flaky { is_broken: Arc::new(AtomicBool::new(true)), calls: Arc::default() };
    let well = Flaky { is_broken: Arc::default(), calls: Arc::default() };
    let (one, other) = (broken.clone(), well.clone());
    let make = move |member: &Member| if &*member.key == "a" { one.clone() } else { other.clone() };
    let pool = Balance::builder("shop", make).members(members(["a", "b", "c"])).build().unwrap();
    for _ in 0..50 {
        pool.clone().oneshot(get()).await.unwrap();
        sleep(ms(10)).await;
    }
    assert_eq!(broken.calls.load(Relaxed), 0);
    broken.is_broken.store(false, Relaxed);
    for _ in 0..5_000 {
        assert!(pool.clone().oneshot(get()).await.unwrap().status().is_success());
        sleep(ms(10)).await;
    }
    assert!(broken.calls.load(Relaxed) > 100, "{}", broken.calls.load(Relaxed));
}

/// L5, axum-reverse-proxy: a second entry that no removal could reach.
#[tokio::test(start_paused = true)]
async fn a_member_that_is_added_twice_is_one_endpoint_that_one_removal_removes() {
    let servers = Servers::default();
    let pool = pool(&servers, &["a", "b"]);
    for weight in [1, 5, 1] {
        let _ = pool.handle().upsert(Member::new("a").weight(weight)).unwrap();
    }
    assert_eq!((pool.handle().snapshot(Instant::now()).endpoints.len(), servers.made("a")), (2, 1));
    let _ = pool.handle().remove("a");
    for _ in 0..50 {
        call(&pool).await;
    }
    assert_eq!((servers.calls("a"), servers.calls("b")), (0, 50));
}

/// L6, axum-reverse-proxy: metrics by index, which a removal shifted.
#[tokio::test(start_paused = true)]
async fn an_endpoint_keeps_its_latency_and_its_calls_when_its_neighbour_is_removed() {
    let servers = Servers::default();
    let pool = pool(&servers, &["a", "b", "c"]);
    for (key, takes) in [("a", 10), ("b", 200), ("c", 15)] {
        servers.takes(key, ms(takes));
    }
    for _ in 0..12 {
        call(&pool).await;
    }
    servers.set("c", Act::Hangs);
    let running: Vec<_> = (0..12).map(|_| tokio::spawn(pool.clone().oneshot(get()))).collect();
    sleep(ms(1)).await;
    let before = ["b", "c"].map(|key| endpoint(&pool, key));
    assert!(before[0].latency > Some(ms(150)) && before[1].latency < Some(ms(50)) && before[1].in_flight > 0);
    let _ = pool.handle().remove("a");
    let after = ["b", "c"].map(|key| endpoint(&pool, key));
    for (before, after) in before.iter().zip(&after) {
        assert_eq!((before.latency, before.in_flight), (after.latency, after.in_flight));
    }
    for call in running {
        call.abort();
    }
}

/// L7, axum-reverse-proxy and ingress-nginx #9882: a 502 was a fast response.
#[tokio::test(start_paused = true)]
async fn an_endpoint_that_fails_fast_attracts_no_calls() {
    for act in [Act::Responds(502), Act::Fails(BadGatewayCause::ConnectionRefused)] {
        let servers = Servers::default();
        let keys = ["a", "b", "c", "d", "e"];
        let pool = Balance::<Endpoint<TrackedUpload<Full<Bytes>>>>::builder("shop", servers.factory());
        let pool = pool.members(members(keys)).without_circuit().build().unwrap();
        for key in keys {
            servers.takes(key, ms(if key == "a" { 1 } else { 40 }));
        }
        servers.set("a", act);
        let running: Vec<_> = (0..1000)
            .map(|call| {
                let pool = pool.clone();
                tokio::spawn(async move {
                    sleep(ms(10 * call)).await;
                    pool.oneshot(get()).await.unwrap().status()
                })
            })
            .collect();
        for call in running {
            call.await.unwrap();
        }
        assert!(servers.calls("a") < 50, "a quarter of its share: {}", servers.calls("a"));
    }
}

/// L9, axum-reverse-proxy: each call took the lock under which members were changed.
#[test]
fn calls_do_not_wait_for_a_change_of_members() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _entered = runtime.enter();
    let (proceed, gate) = mpsc::channel::<()>();
    let (reached, arrivals) = mpsc::channel();
    let gate = Mutex::new(gate);
    let make = move |member: &Member| {
        if &*member.key == "slow" {
            reached.send(()).unwrap();
            gate.lock().unwrap().recv().unwrap();
        }
        service_fn(|_: Request<_>| std::future::ready(Ok::<_, Failure>(Response::new(Full::<Bytes>::default()))))
    };
    let pool = Balance::builder("shop", make).members(members(["a", "b"])).build().unwrap();
    let handle = pool.handle();
    let change = std::thread::spawn(move || {
        let _ = handle.upsert(Member::new("slow")).unwrap();
    });
    arrivals.recv().unwrap();
    for _ in 0..100 {
        let response = runtime.block_on(pool.clone().oneshot(Request::new(Full::<Bytes>::default()))).unwrap();
        assert!(response.status().is_success());
    }
    proceed.send(()).unwrap();
    change.join().unwrap();
}

/// L9: calls counted as ended with their response head.
#[tokio::test(start_paused = true)]
async fn a_call_is_in_flight_until_its_body_has_ended() {
    let make = |_: &Member| {
        service_fn(|_: Request<_>| async {
            let frame = async {
                sleep(ms(1_000)).await;
                Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"late")))
            };
            Ok::<_, Failure>(Response::new(StreamBody::new(Box::pin(stream::once(frame)))))
        })
    };
    let pool = Balance::builder("shop", make).members(members(["a"])).build().unwrap();
    let response = pool.clone().oneshot(get()).await.unwrap();
    assert_eq!(endpoint(&pool, "a").in_flight, 1);
    response.into_body().collect().await.unwrap();
    assert_eq!(endpoint(&pool, "a").in_flight, 0);
    let response = pool.clone().oneshot(get()).await.unwrap();
    assert_eq!(endpoint(&pool, "a").in_flight, 1);
    drop(response);
    assert_eq!(endpoint(&pool, "a").in_flight, 0);
}

/// L13, pingora: another weight was another identity.
#[tokio::test(start_paused = true)]
async fn an_endpoint_whose_weight_changes_keeps_its_service_its_circuit_and_its_latency() {
    let servers = Servers::default();
    let pool = pool(&servers, &["a", "b", "c"]);
    for key in ["a", "b", "c"] {
        servers.takes(key, ms(10));
    }
    for _ in 0..10 {
        call(&pool).await;
    }
    pool.handle().circuit("a").unwrap().hold_open();
    let before = endpoint(&pool, "b");
    for key in ["a", "b"] {
        let _ = pool.handle().upsert(Member::new(key).weight(3).tier(0).zone("x").metadata("k", "v")).unwrap();
    }
    assert!(!endpoint(&pool, "a").is_available);
    assert_eq!((endpoint(&pool, "b").latency, servers.made("a"), servers.made("b")), (before.latency, 1, 1));
}

/// The calls to an endpoint in a second of 500 calls.
async fn calls_in_a_second(pool: &Pool, servers: &Servers, key: &str) -> u32 {
    let before = servers.calls(key);
    for _ in 0..500 {
        call(pool).await;
        advance(ms(2)).await;
    }
    servers.calls(key) - before
}

/// L14, Envoy #29008: the slow start of an endpoint ended when another one joined.
#[tokio::test(start_paused = true)]
async fn a_slow_start_is_ended_by_its_time_alone() {
    let servers = Servers::default();
    let pool = pool(&servers, &["a", "b", "c", "d", "e"]);
    let share = |count: u32, of: u32| f64::from(count) / (500.0 / f64::from(of));
    calls_in_a_second(&pool, &servers, "a").await;
    let _ = pool.handle().upsert(Member::new("new")).unwrap();
    let first = share(calls_in_a_second(&pool, &servers, "new").await, 6);
    assert!(first < 0.6, "{first}");
    let _ = pool.handle().upsert(Member::new("newer")).unwrap();
    let second = share(calls_in_a_second(&pool, &servers, "new").await, 7);
    assert!(second < 0.8, "another newcomer ends nothing: {second}");
    let _ = pool.handle().remove("newer");
    for _ in 0..9 {
        calls_in_a_second(&pool, &servers, "new").await;
    }
    let last = share(calls_in_a_second(&pool, &servers, "new").await, 6);
    assert!((0.6..1.5).contains(&last), "{last}");
}

/// L14: an endpoint among others that are new is not held back, and neither is the first of a pool.
#[tokio::test(start_paused = true)]
async fn a_pool_of_which_all_endpoints_are_new_has_no_slow_start() {
    let servers = Servers::default();
    let pool = pool(&servers, &["a", "b"]);
    calls_in_a_second(&pool, &servers, "a").await;
    // all at once are replaced
    let _ = pool.handle().replace(members(["c", "d", "e", "f", "g"])).unwrap();
    for key in ["c", "g"] {
        let calls = calls_in_a_second(&pool, &servers, key).await;
        assert!((80..=120).contains(&calls), "{key}: {calls}");
    }
}
