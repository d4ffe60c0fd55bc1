//! Calls with a sticky key, and gateways that use a subset of many members.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use tower::ServiceExt;
use tower_upstream::balance::{Balance, Health, Member};
use tower_upstream::body::TrackedUpload;

use crate::pool::{Endpoint, Servers, call};
use crate::support::service::ms;

type Pool = Balance<Endpoint<TrackedUpload<Full<Bytes>>>>;

fn keys(count: usize) -> Vec<String> {
    (0..count).map(|index| format!("10.0.0.{index}:80")).collect()
}

fn sticky(servers: &Servers, count: usize) -> Pool {
    let builder = Balance::builder("shop", servers.factory()).members(keys(count).into_iter().map(Member::new));
    let hash = |session: &[u8]| {
        let mut hasher = DefaultHasher::new();
        session.hash(&mut hasher);
        hasher.finish()
    };
    builder.sticky(move |head| head.headers.get("x-session").map(|session| hash(session.as_bytes()))).build().unwrap()
}

/// One call of a session; the server that it went to.
async fn session(pool: &Pool, servers: &Servers, count: usize, session: &str) -> String {
    let calls = || keys(count).iter().map(|key| servers.calls(key)).collect::<Vec<_>>();
    let before = calls();
    let request = Request::get("/").header("x-session", session).body(Full::default()).unwrap();
    pool.clone().oneshot(request).await.unwrap();
    let after = calls();
    let index = (0..count).find(|index| after[*index] > before[*index]).unwrap();
    keys(count).swap_remove(index)
}

#[tokio::test(start_paused = true)]
async fn the_calls_of_a_session_go_to_one_endpoint_while_it_is_available() {
    let servers = Servers::default();
    let (pool, other) = (sticky(&servers, 5), sticky(&servers, 5));
    let mut used = BTreeSet::new();
    for name in ["ann", "bob", "cid", "dan", "eva", "flo", "gus", "hal"] {
        let first = session(&pool, &servers, 5, name).await;
        for _ in 0..5 {
            assert_eq!(session(&pool, &servers, 5, name).await, first);
            assert_eq!(session(&other, &servers, 5, name).await, first, "gateways agree");
        }
        pool.handle().set_health(&first, Health::Unhealthy);
        let next = session(&pool, &servers, 5, name).await;
        assert!(next != first && session(&pool, &servers, 5, name).await == next);
        pool.handle().set_health(&first, Health::Healthy);
        assert_eq!(session(&pool, &servers, 5, name).await, first);
        used.insert(first);
    }
    assert!(used.len() >= 3, "{used:?}");
}

#[tokio::test(start_paused = true)]
async fn a_session_with_many_calls_at_once_spills_to_other_endpoints() {
    let servers = Servers::default();
    let pool = sticky(&servers, 5);
    for key in keys(5) {
        servers.takes(&key, ms(100));
    }
    let request = || Request::get("/").header("x-session", "ann").body(Full::<Bytes>::default()).unwrap();
    futures_util::future::join_all((0..100).map(|_| pool.clone().oneshot(request()))).await;
    let calls: Vec<_> = keys(5).iter().map(|key| servers.calls(key)).collect();
    assert!(calls.iter().all(|calls| *calls <= 26), "at most 1.25 times the mean: {calls:?}");
}

#[tokio::test(start_paused = true)]
async fn calls_without_a_session_are_spread() {
    let servers = Servers::default();
    let pool = sticky(&servers, 5);
    for _ in 0..100 {
        call(&pool).await;
        tokio::time::advance(ms(1)).await;
    }
    assert!(keys(5).iter().all(|key| servers.calls(key) >= 10));
}

#[tokio::test(start_paused = true)]
async fn a_gateway_uses_20_of_50_members_or_more_and_all_of_fewer() {
    let servers = Servers::default();
    let pool: Pool = Balance::builder("shop", servers.factory()).subset("edge-1").build().unwrap();
    let endpoints = || pool.handle().snapshot(tokio::time::Instant::now()).endpoints.len();
    for (count, expected) in [(49, 49), (50, 20), (1000, 20)] {
        let _ = pool.handle().replace(keys(count).into_iter().map(Member::new)).unwrap();
        assert_eq!(endpoints(), expected);
    }
    let canary = Member::new("canary").group("new");
    let _ = pool.handle().replace(keys(100).into_iter().map(Member::new).chain([canary])).unwrap();
    assert_eq!(endpoints(), 21, "of each group");
    for _ in 0..100 {
        assert_eq!(call(&pool).await, 200);
    }
}
