//! New endpoints are prepared before they take calls.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use axum::Router;
use axum::routing::get;
use http_body_util::Full;
use tokio::time::Instant;
use tower_upstream::balance::{Balance, BalanceHandle, EndpointSnapshot, Member};
use tower_upstream::body::TrackedUpload;

use crate::health::{Lines, Plain};
use crate::pool::{Endpoint, Servers, call, members};
use crate::support::service::{get as request, ms};
use crate::support::{app, proxy, soon, until};

type Pool = Balance<Endpoint<Plain>>;

fn state(pool: &BalanceHandle, key: &str) -> EndpointSnapshot {
    let mut endpoints = pool.snapshot(Instant::now()).endpoints.into_iter();
    endpoints.find(|endpoint| &*endpoint.member.key == key).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_newcomer_takes_no_calls_until_it_is_prepared() {
    let servers = Servers::default();
    let pool: Pool = Balance::builder("shop", servers.factory())
        .members(members(["a", "b"]))
        .warm_up(|_, _| async {
            tokio::time::sleep(ms(300)).await;
            Ok::<_, std::io::Error>(())
        })
        .build()
        .unwrap();
    assert_eq!(call(&pool).await, 200, "the first endpoints take calls at once");
    let _ = pool.handle().upsert(Member::new("c")).unwrap();
    for _ in 0..100 {
        assert_eq!(call(&pool).await, 200);
    }
    assert!(servers.calls("c") == 0 && state(&pool.handle(), "c").is_warming_up);
    tokio::time::sleep(ms(301)).await;
    for _ in 0..300 {
        assert_eq!(call(&pool).await, 200);
    }
    let ready = state(&pool.handle(), "c");
    assert!(servers.calls("c") > 0 && !ready.is_warming_up && ready.is_available);
}

#[tokio::test(start_paused = true)]
async fn newcomers_that_are_prepared_cause_no_panic() {
    let servers = Servers::default();
    let pool: Pool = Balance::builder("shop", servers.factory())
        .members(members(["a"]))
        .warm_up(|_, _| std::future::pending::<Result<(), std::io::Error>>())
        .build()
        .unwrap();
    let _ = pool.handle().replace(members(["a", "b", "c", "d", "e"])).unwrap();
    for _ in 0..50 {
        assert_eq!(call(&pool).await, 200);
    }
    assert_eq!((servers.calls("a"), pool.handle().snapshot(Instant::now()).panicking), (50, 0));
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_whose_preparation_fails_panics_or_takes_too_long_takes_calls_unprepared() {
    let lines = Lines::default();
    let _log = lines.subscribe();
    let servers = Servers::default();
    let pool: Pool = Balance::builder("shop", servers.factory())
        .members(members(["a"]))
        .warm_up_timeout(ms(500))
        .warm_up(|_, member: Arc<Member>| async move {
            match &*member.key {
                "fails" => Err(std::io::Error::other("refused")),
                "panics" => panic!("as the test wants it"),
                _ => std::future::pending().await,
            }
        })
        .build()
        .unwrap();
    let _ = pool.handle().replace(members(["a", "fails", "panics", "hangs"])).unwrap();
    tokio::time::sleep(ms(10)).await;
    let warming = |key| state(&pool.handle(), key).is_warming_up;
    assert_eq!((warming("fails"), warming("panics"), warming("hangs")), (false, false, true));
    tokio::time::sleep(ms(500)).await;
    assert!(!warming("hangs"));
    let events = lines.with("the warm-up of a new endpoint failed");
    assert_eq!(events.len(), 3, "the first endpoint is prepared too: {events:?}");
    assert!(events[2].contains("endpoint=\"hangs\"") && events[2].contains("not done within 500ms"), "{}", events[2]);
    for part in ["WARN", "upstream=\"shop\"", "endpoint=\"fails\"", "it takes calls as it is: refused", "duration_ms=0"]
    {
        assert!(events[0].contains(part), "{part}: {}", events[0]);
    }
}

#[tokio::test(start_paused = true)]
async fn endpoints_that_are_prepared_take_calls_if_there_is_no_other() {
    let servers = Servers::default();
    for refuses in [false, true] {
        let pool = Balance::builder("shop", servers.factory()).members(members(["a", "b"]));
        let pool = pool.warm_up(|_, _| std::future::pending::<Result<(), std::io::Error>>());
        let pool: Pool = if refuses { pool.refuse_in_panic() } else { pool }.build().unwrap();
        let _ = pool.handle().replace(members(["c", "d"])).unwrap();
        assert_eq!(call(&pool).await, 200, "all are new");
        let _ = pool.handle().replace(members(["c", "e"])).unwrap();
        pool.handle().circuit("c").unwrap().hold_open();
        let before = servers.calls("e");
        assert_eq!(call(&pool).await, 200, "the other one is ejected");
        assert!(refuses || servers.calls("c") + servers.calls("e") > before);
    }
}

#[tokio::test(start_paused = true)]
async fn at_most_64_endpoints_are_prepared_at_a_time() {
    let (servers, running, most) = (Servers::default(), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (now, peak) = (running.clone(), most.clone());
    let pool: Pool = Balance::builder("shop", servers.factory())
        .members(members(["a"]))
        .warm_up(move |_, _| {
            let (now, peak) = (now.clone(), peak.clone());
            async move {
                peak.fetch_max(now.fetch_add(1, Relaxed) + 1, Relaxed);
                tokio::time::sleep(ms(100)).await;
                now.fetch_sub(1, Relaxed);
                Ok::<_, std::io::Error>(())
            }
        })
        .build()
        .unwrap();
    let many = (0..300).map(|index| Member::new(format!("e{index}"))).chain([Member::new("a")]);
    let _ = pool.handle().replace(many).unwrap();
    tokio::time::sleep(ms(1_000)).await;
    assert_eq!((most.load(Relaxed), running.load(Relaxed)), (64, 0));
    assert!(pool.handle().snapshot(Instant::now()).endpoints.iter().all(|endpoint| !endpoint.is_warming_up));
}

#[tokio::test]
async fn a_proxy_connects_before_its_endpoint_takes_calls() {
    let (old, new) = (
        app(Router::new().route("/cart", get(|| async { "old" }))).await,
        app(Router::new().route("/cart", get(|| async { "new" }))).await,
    );
    let make = |member: &Member| proxy(member.key.parse().unwrap()).build::<TrackedUpload<Full<bytes::Bytes>>>();
    let pool = Balance::builder("shop", make)
        .members([Member::new(old.address.to_string())])
        .warm_up(|proxy, _| async move { proxy.warm_up().await })
        .build()
        .unwrap();
    let _ = pool.handle().upsert(Member::new(new.address.to_string())).unwrap();
    until("the connection", || new.accepted() == 1).await;
    until("the end of the warm-up", || !state(&pool.handle(), &new.address.to_string()).is_warming_up).await;
    let _ = pool.handle().replace([Member::new(new.address.to_string())]).unwrap();
    let mut request = request();
    request.headers_mut().insert("host", "shop.test".parse().unwrap());
    let response = soon(tower::ServiceExt::oneshot(pool.clone(), request)).await.unwrap();
    assert_eq!((response.status(), new.accepted()), (http::StatusCode::OK, 1), "the call uses the connection");
}
