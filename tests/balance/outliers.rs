//! Outliers are reported, and ejected by opt-in.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use http::{Request, Response};
use http_body_util::Full;
use tokio::time::Instant;
use tower::service_fn;
use tower::util::BoxCloneSyncService;
use tower_upstream::Failure;
use tower_upstream::balance::{Balance, BalanceBuilder, EndpointSnapshot, Member, Outlier};

use crate::health::{Lines, Plain};
use crate::pool::{Endpoint, call, members};
use crate::support::service::ms;

type Pool = Balance<Endpoint<Plain>>;

/// Endpoints of which that with the key `bad` fails in one of so many calls, or takes this time; others take 10 ms.
fn pool(fails_one_in: u32, takes: Duration, keys: &[&str]) -> BalanceBuilder<Endpoint<Plain>> {
    let make = move |member: &Member| -> Endpoint<Plain> {
        let (is_bad, calls) = (&*member.key == "bad", Arc::new(AtomicU32::new(0)));
        BoxCloneSyncService::new(service_fn(move |_: Request<Plain>| {
            let fails = is_bad && calls.fetch_add(1, Relaxed) % fails_one_in == fails_one_in - 1;
            async move {
                tokio::time::sleep(if is_bad { takes } else { ms(10) }).await;
                let status = if fails { 500 } else { 200 };
                Ok::<_, Failure>(Response::builder().status(status).body(Full::default()).unwrap())
            }
        }))
    };
    Balance::builder("shop", make).members(members(keys.iter().copied()))
}

/// Sends bursts of calls every 10 ms. Only large ones reach a bad endpoint: the choice avoids it.
async fn drive(pool: &Pool, burst: u32, time: Duration) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        for _ in 0..burst {
            let pool = pool.clone();
            tokio::spawn(async move { call(&pool).await });
        }
        tokio::time::sleep(ms(10)).await;
    }
    tokio::time::sleep(ms(300)).await;
}

fn bad(pool: &Pool) -> EndpointSnapshot {
    let mut endpoints = pool.handle().snapshot(Instant::now()).endpoints.into_iter();
    endpoints.find(|endpoint| &*endpoint.member.key == "bad").unwrap()
}

const KEYS: [&str; 6] = ["a", "b", "bad", "c", "d", "e"];

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_fails_more_often_than_the_others_is_reported_and_takes_calls() {
    let pool: Pool = pool(20, ms(10), &KEYS).without_circuit().build().unwrap();
    drive(&pool, 160, ms(2_500)).await;
    let found = bad(&pool);
    let Some(Outlier::Failing { success_rate, mean }) = found.outlier else { panic!("{found:?}") };
    assert!((0.9..0.97).contains(&success_rate) && mean > success_rate, "{success_rate} {mean}");
    assert!(found.is_available && !found.is_ejected_as_outlier);
    let others = pool.handle().snapshot(Instant::now()).endpoints;
    assert_eq!(others.iter().filter(|endpoint| endpoint.outlier.is_some()).count(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_is_slower_than_the_others_is_reported() {
    let pool: Pool = pool(u32::MAX, ms(80), &KEYS[..3]).build().unwrap();
    drive(&pool, 40, Duration::from_secs(6)).await;
    let found = bad(&pool);
    let Some(Outlier::Slow { latency, median }) = found.outlier else { panic!("{found:?}") };
    assert!((ms(79)..ms(82)).contains(&latency) && (ms(9)..ms(12)).contains(&median), "{latency:?} {median:?}");
    assert!(found.is_available);
}

#[tokio::test(start_paused = true)]
async fn an_outlier_is_ejected_by_opt_in_and_returns_with_time() {
    let pool: Pool = pool(20, ms(10), &KEYS).without_circuit().eject_outliers().build().unwrap();
    drive(&pool, 160, ms(2_500)).await;
    let found = bad(&pool);
    assert!(found.is_ejected_as_outlier && !found.is_available, "{found:?}");
    assert_eq!(pool.handle().snapshot(Instant::now()).unavailable, 1);
    tokio::time::sleep(Duration::from_secs(11)).await;
    assert_eq!(call(&pool).await, 200);
    assert!(bad(&pool).is_available, "it takes calls again after 10 s");
}

#[tokio::test(start_paused = true)]
async fn outliers_are_ejected_only_while_half_of_the_level_takes_calls() {
    for (held_open, is_ejected) in [(&["a"][..], true), (&["a", "b", "c"], false)] {
        let pool: Pool = pool(u32::MAX, ms(80), &KEYS).eject_outliers().build().unwrap();
        drive(&pool, 80, Duration::from_millis(1_500)).await;
        for key in held_open {
            pool.handle().circuit(key).unwrap().hold_open();
        }
        drive(&pool, 10, Duration::from_secs(1)).await;
        let found = bad(&pool);
        assert_eq!((found.outlier.is_some(), found.is_ejected_as_outlier), (true, is_ejected), "{found:?}");
        assert_eq!(pool.handle().snapshot(Instant::now()).panicking, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn equal_endpoints_are_no_outliers() {
    let pool: Pool = pool(u32::MAX, ms(10), &KEYS).build().unwrap();
    drive(&pool, 20, Duration::from_secs(10)).await;
    assert!(pool.handle().snapshot(Instant::now()).endpoints.iter().all(|endpoint| endpoint.outlier.is_none()));
}

#[tokio::test(start_paused = true)]
async fn an_outlier_and_its_end_are_one_log_event_each() {
    let lines = Lines::default();
    let _log = lines.subscribe();
    let pool: Pool = pool(u32::MAX, ms(80), &KEYS[..3]).eject_outliers().build().unwrap();
    drive(&pool, 40, Duration::from_secs(4)).await;
    tokio::time::sleep(Duration::from_secs(11)).await;
    assert_eq!(call(&pool).await, 200);
    let events = lines.with("endpoint=\"bad\"");
    assert_eq!(events.len(), 2, "{events:?}");
    for part in
        ["WARN", "upstream=\"shop\"", "reason=mean response time 80 ms, median of the level 10 ms", "ejected=true"]
    {
        assert!(events[0].contains(part), "{part}: {}", events[0]);
    }
    assert!(events[1].contains("INFO") && events[1].contains("no longer an outlier"), "{}", events[1]);
}
