//! What a pool survives: full endpoints, factories that panic, and changes at the same moment.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock};

use tokio::time::{Instant, sleep};
use tower::Service;
use tower_upstream::BadGatewayCause;
use tower_upstream::balance::{Balance, BalanceHandle, BalanceSnapshot, Health, Member};
use tower_upstream::body::TrackedUpload;
use tower_upstream::breaker::{BreakerPolicy, State};
use tower_upstream::limit::ConcurrencyLimitLayer;

use crate::pool::{Endpoint, Servers, call, members};
use crate::support::service::{Act, get, ms};

type Plain = Endpoint<TrackedUpload<http_body_util::Full<bytes::Bytes>>>;

fn snapshot(pool: &Balance<Plain>) -> BalanceSnapshot {
    pool.handle().snapshot(Instant::now())
}

#[tokio::test(start_paused = true)]
async fn endpoints_at_their_limit_have_not_failed() {
    let servers = Servers::default();
    let pool = Balance::<Plain>::builder("shop", servers.factory()).members(members(["a", "b", "c"]));
    let pool = pool.limiter(ConcurrencyLimitLayer::fixed(1)).build().unwrap();
    for key in ["a", "b", "c"] {
        servers.set(key, Act::Hangs);
    }
    let calls = [(); 3].map(|()| {
        tokio::spawn({
            let pool = pool.clone();
            async move { call(&pool).await }
        })
    });
    sleep(ms(1)).await;
    for _ in 0..10 {
        assert_eq!(call(&pool).await, 503, "all are at their limit");
    }
    let full = snapshot(&pool);
    assert_eq!((full.panicking, full.unavailable), (0, 0), "they work");
    calls.iter().for_each(tokio::task::JoinHandle::abort);
    for key in ["a", "b", "c"] {
        servers.set(key, Act::Responds(200));
    }
    sleep(ms(1)).await;
    for _ in 0..30 {
        assert_eq!(call(&pool).await, 200);
        sleep(ms(1)).await;
    }
    assert!(["a", "b", "c"].iter().all(|key| servers.calls(key) > 8), "no slow start");
}

#[tokio::test(start_paused = true)]
async fn a_factory_that_panics_changes_nothing() {
    let servers = Servers::default();
    let breaks = Arc::new(AtomicBool::new(true));
    let make = {
        let (make, breaks) = (servers.factory(), breaks.clone());
        move |member: &Member| {
            assert!(&*member.key != "c" || !breaks.load(Relaxed), "no service for this member");
            make(member)
        }
    };
    let pool = Balance::<Plain>::builder("shop", make).members(members(["a", "b"])).build().unwrap();
    let handle = pool.handle();
    let keys = || snapshot(&pool).endpoints.iter().map(|endpoint| endpoint.member.key.to_string()).collect::<Vec<_>>();
    assert!(catch_unwind(AssertUnwindSafe(|| handle.replace(members(["a", "c"])))).is_err());
    assert_eq!(keys(), ["a", "b"]);
    for _ in 0..20 {
        assert_eq!(call(&pool).await, 200);
        sleep(ms(1)).await;
    }
    assert!(servers.calls("a") > 5 && servers.calls("b") > 5);
    breaks.store(false, Relaxed);
    let _ = handle.replace(members(["a", "c"])).unwrap();
    for _ in 0..500 {
        assert_eq!(call(&pool).await, 200);
        sleep(ms(1)).await;
    }
    assert_eq!(keys(), ["a", "c"]);
    assert_eq!((servers.made("a"), servers.calls("c") > 0), (1, true), "a keeps its service");
}

#[tokio::test(start_paused = true)]
async fn newcomers_of_several_levels_take_calls_while_they_are_prepared_if_no_other_does() {
    let servers = Servers::default();
    let pool = Balance::<Plain>::builder("shop", servers.factory()).zone("here").members(members(["old"]));
    let pool = pool.warm_up(|_, _| std::future::pending::<Result<(), std::io::Error>>()).build().unwrap();
    let next = [Member::new("old").weight(0), Member::new("near").zone("here"), Member::new("far")];
    let _ = pool.handle().replace(next).unwrap();
    for _ in 0..10 {
        assert_eq!(call(&pool).await, 200);
    }
    assert_eq!(servers.calls("old"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_change_while_the_shares_are_computed_is_not_lost() {
    let servers = Servers::default();
    let pool = Balance::<Plain>::builder("shop", servers.factory()).members(members(["a", "b", "c", "d"]));
    let pool = pool.build().unwrap();
    // in the middle of a computation, another endpoint fails its checks, and another call computes the shares again
    let hook = Hook(Arc::new({
        let (pool, is_first) = (pool.clone(), AtomicBool::new(true));
        move || {
            if is_first.swap(false, Relaxed) {
                pool.handle().set_health("d", Health::Unhealthy);
                drop(pool.clone().call(get()));
            }
        }
    }));
    let log = tracing_subscriber::fmt().with_writer(move || hook.clone());
    let _log = crate::support::subscribe(log.finish());
    for key in ["a", "b", "c"] {
        pool.handle().set_health(key, Health::Unhealthy);
    }
    for _ in 0..3 {
        call(&pool).await;
    }
    assert_eq!(snapshot(&pool).unavailable, 4);
}

/// Runs a closure when an event is logged.
#[derive(Clone)]
struct Hook(Arc<dyn Fn() + Send + Sync>);

impl std::io::Write for Hook {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        (self.0)();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_policy_that_is_set_while_an_endpoint_is_made_applies_to_it() {
    let servers = Servers::default();
    let handle = Arc::<OnceLock<BalanceHandle>>::default();
    let setter = Arc::<Mutex<Option<std::thread::JoinHandle<()>>>>::default();
    let make = {
        let (make, handle, setter) = (servers.factory(), handle.clone(), setter.clone());
        move |member: &Member| {
            if let Some(handle) = handle.get().cloned() {
                let sets = move || handle.set_circuit_policy(BreakerPolicy::new().consecutive_failures(1));
                *setter.lock().unwrap() = Some(std::thread::spawn(sets));
                // it has the time to end, unless it waits for the endpoint
                std::thread::park_timeout(ms(50));
            }
            make(member)
        }
    };
    let pool = Balance::<Plain>::builder("shop", make).members(members(["a"])).build().unwrap();
    assert!(handle.set(pool.handle()).is_ok());
    let _ = pool.handle().upsert(Member::new("b")).unwrap();
    setter.lock().unwrap().take().unwrap().join().unwrap();
    servers.set("b", Act::Fails(BadGatewayCause::ConnectionRefused));
    for _ in 0..1_000 {
        call(&pool).await;
        sleep(ms(10)).await;
        if servers.calls("b") > 0 {
            break;
        }
    }
    let circuit = pool.handle().circuit("b").unwrap().snapshot(Instant::now());
    assert_eq!((servers.calls("b"), circuit.state), (1, State::Open));
}

#[tokio::test(start_paused = true)]
async fn a_service_may_use_the_pool_when_it_is_dropped() {
    /// Takes a snapshot of its pool when it is dropped.
    struct Observes(Arc<OnceLock<BalanceHandle>>);

    impl Drop for Observes {
        fn drop(&mut self) {
            if let Some(handle) = self.0.get() {
                handle.snapshot(Instant::now());
            }
        }
    }

    let handle = Arc::<OnceLock<BalanceHandle>>::default();
    let make = {
        let handle = handle.clone();
        move |_: &Member| {
            let observes = Arc::new(Observes(handle.clone()));
            tower::service_fn(move |_: http::Request<TrackedUpload<http_body_util::Full<bytes::Bytes>>>| {
                let _ = &observes;
                std::future::ready(Ok::<_, std::io::Error>(http::Response::new(
                    http_body_util::Full::<bytes::Bytes>::default(),
                )))
            })
        }
    };
    let pool = Balance::builder("shop", make).members(members(["a", "b"])).build().unwrap();
    assert!(handle.set(pool.handle()).is_ok());
    // on a thread of its own, because a deadlock would end no test
    let (sender, is_done) = std::sync::mpsc::channel();
    let balance = pool.handle();
    std::thread::spawn(move || {
        let _ = balance.remove("a");
        let _ = sender.send(());
    });
    assert!(is_done.recv_timeout(ms(5_000)).is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_service_that_panics_leaves_no_call_in_flight() {
    for in_call in [true, false] {
        let panics = move |_: &Member| {
            tower::service_fn(move |_: http::Request<TrackedUpload<http_body_util::Full<bytes::Bytes>>>| {
                assert!(!in_call, "of the user");
                async move {
                    assert!(in_call, "of the user");
                    Ok::<_, std::io::Error>(http::Response::new(http_body_util::Full::<bytes::Bytes>::default()))
                }
            })
        };
        let pool = Balance::builder("shop", panics).members(members(["a", "b"]));
        let pool = pool.limiter(ConcurrencyLimitLayer::fixed(1)).build().unwrap();
        for _ in 0..10 {
            let pool = pool.clone();
            assert!(tokio::spawn(async move { call(&pool).await }).await.is_err());
        }
        for endpoint in pool.handle().snapshot(Instant::now()).endpoints {
            assert_eq!((endpoint.in_flight, endpoint.limit.unwrap().in_flight), (0, 0));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_group_share_that_is_no_number_changes_nothing() {
    let servers = Servers::default();
    let pool = Balance::<Plain>::builder("shop", servers.factory()).members([Member::new("a").group("v1")]);
    let pool = pool.build().unwrap();
    pool.handle().set_group_share("v1", f64::NAN);
    assert_eq!(call(&pool).await, 200);
}
