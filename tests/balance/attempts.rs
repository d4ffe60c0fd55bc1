//! A stack around a pool: later attempts go to other endpoints.

use tokio::time::Instant;
use tower::{Layer, ServiceExt};
use tower_upstream::balance::Balance;
use tower_upstream::retry::{Attempts, Hedging};
use tower_upstream::stack::Upstream;
use tower_upstream::{BadGatewayCause, Failure, UpstreamLayer};

use crate::pool::{Body, Endpoint, Servers, members};
use crate::support::service::{Act, get, ms, post};

type Stack = Upstream<Balance<Endpoint<Body>>>;

fn stack(servers: &Servers, keys: &[&'static str]) -> Stack {
    let pool = Balance::builder("shop", servers.factory()).members(members(keys.iter().copied())).build().unwrap();
    UpstreamLayer::for_pool(&pool).build().unwrap().layer(pool)
}

#[tokio::test(start_paused = true)]
async fn a_call_whose_endpoint_refuses_is_sent_to_another_one_immediately() {
    for keys in [&["a", "b"][..], &["a", "b", "c", "d", "e", "f"]] {
        let servers = Servers::default();
        let stack = stack(&servers, keys);
        servers.set("a", Act::Fails(BadGatewayCause::ConnectionRefused));
        let begun = Instant::now();
        for _ in 0..60 {
            assert_eq!(stack.clone().oneshot(get()).await.unwrap().status(), 200);
        }
        assert_eq!(begun.elapsed(), ms(0));
        assert!(servers.calls("a") > 0);
    }
}

#[tokio::test(start_paused = true)]
async fn each_attempt_goes_to_an_endpoint_that_was_not_tried() {
    let servers = Servers::default();
    let stack = stack(&servers, &["a", "b", "c"]);
    for key in ["a", "b", "c"] {
        servers.set(key, Act::Fails(BadGatewayCause::ResetBeforeResponse));
    }
    let response = stack.oneshot(get()).await.unwrap();
    assert_eq!(Failure::of(&response).unwrap().attempts(), 3);
    assert_eq!(["a", "b", "c"].map(|key| servers.calls(key)), [1, 1, 1]);
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_timed_out_is_repeated_elsewhere() {
    let servers = Servers::default();
    let pool = Balance::builder("shop", servers.factory()).members(members(["a", "b"])).build().unwrap();
    let stack = UpstreamLayer::for_pool(&pool)
        .timeouts(|timeouts| timeouts.response_head(ms(500)).attempt(ms(500)).total(ms(2000)))
        .build()
        .unwrap()
        .layer(pool);
    servers.set("a", Act::Hangs);
    for _ in 0..6 {
        let response = stack.clone().oneshot(get()).await.unwrap();
        assert_eq!(response.status(), 200);
    }
    assert!(servers.calls("a") > 0);
}

#[tokio::test(start_paused = true)]
async fn by_default_one_attempt_that_hung_is_repeated_elsewhere() {
    let servers = Servers::default();
    let stack = stack(&servers, &["a", "b"]);
    servers.set("a", Act::Hangs);
    let mut longest = ms(0);
    for _ in 0..4 {
        let begun = Instant::now();
        assert_eq!(stack.clone().oneshot(get()).await.unwrap().status(), 200);
        longest = longest.max(begun.elapsed());
    }
    assert!(longest >= ms(4500) && longest < ms(4600), "{longest:?}");
    servers.set("b", Act::Hangs);
    let begun = Instant::now();
    assert_eq!(stack.oneshot(get()).await.unwrap().status(), 504);
    assert!(begun.elapsed() <= ms(9010), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_hedge_goes_to_another_endpoint() {
    let servers = Servers::default();
    let pool = Balance::builder("shop", servers.factory()).members(members(["a", "b"])).build().unwrap();
    let stack = UpstreamLayer::for_pool(&pool)
        .retry(|retry| retry.hedging(Hedging::after(ms(20))))
        .build()
        .unwrap()
        .layer(pool);
    servers.set("a", Act::Hangs);
    for _ in 0..4 {
        let begun = Instant::now();
        let response = stack.clone().oneshot(get()).await.unwrap();
        assert_eq!(
            response.status(),
            200,
            "{:?} {} {}",
            Failure::of(&response),
            servers.calls("a"),
            servers.calls("b")
        );
        assert!(begun.elapsed() < ms(40));
        tokio::time::advance(ms(1000)).await;
    }
    assert!(servers.calls("a") > 0);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_may_have_been_processed_is_not_sent_to_another_endpoint() {
    let servers = Servers::default();
    let stack = stack(&servers, &["a", "b"]);
    for key in ["a", "b"] {
        servers.set(key, Act::Fails(BadGatewayCause::ResetBeforeResponse));
    }
    let response = stack.oneshot(post("order")).await.unwrap();
    assert_eq!(response.status(), 502);
    assert_eq!(servers.calls("a") + servers.calls("b"), 1);
}

#[tokio::test(start_paused = true)]
async fn the_snapshot_of_a_stack_shows_its_endpoints() {
    let servers = Servers::default();
    let pool = Balance::<Endpoint<Body>>::builder("shop", servers.factory()).members(members(["a", "b"])).build();
    let layer = UpstreamLayer::for_pool(&pool.unwrap()).build().unwrap();
    let pool = layer.handle().snapshot(Instant::now()).pool.unwrap();
    assert_eq!((&*pool.name, pool.endpoints.len(), pool.unavailable), ("shop", 2, 0));
}

#[tokio::test(start_paused = true)]
async fn a_success_after_another_endpoint_failed_carries_its_attempts() {
    let servers = Servers::default();
    let stack = stack(&servers, &["a", "b"]);
    servers.set("a", Act::Responds(503));
    let mut repeated = 0;
    for _ in 0..4 {
        let response = stack.clone().oneshot(get()).await.unwrap();
        assert_eq!(response.status(), 200);
        repeated += u32::from(Attempts::of(&response).is_some());
    }
    assert!(repeated > 0);
}
