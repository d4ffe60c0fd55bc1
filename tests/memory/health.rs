//! What health checks keep of an endpoint.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use http_body_util::Full;
use tower::service_fn;
use tower_upstream::balance::{Balance, HealthCheck, HealthChecks, Member};

use crate::ALONE;
use crate::allocations::ALLOCATOR;

/// Bytes that are held now.
fn held() -> usize {
    let stats = ALLOCATOR.stats();
    stats.bytes_allocated.saturating_sub(stats.bytes_deallocated)
}

/// The bytes that a pool holds per endpoint, and those that its health checks hold beside it.
async fn bytes_per_endpoint(endpoints: usize) -> (usize, usize) {
    let members: Vec<_> =
        (0..endpoints).map(|index| Member::new(format!("10.0.{}.{}:80", index / 256, index % 256))).collect();
    let make = |_: &Member| {
        service_fn(|_: http::Request<tower_upstream::body::TrackedUpload<Full<bytes::Bytes>>>| async {
            Ok::<_, std::io::Error>(http::Response::new(Full::<bytes::Bytes>::default()))
        })
    };
    let before = held();
    let pool = Balance::builder("shop", make).members(members).build().unwrap();
    let with_pool = held();
    let checked = Arc::new(AtomicUsize::new(0));
    let count = checked.clone();
    let checks = HealthChecks::new(HealthCheck::new(move |_: &Member| {
        count.fetch_add(1, Relaxed);
        std::future::ready(Ok::<_, std::io::Error>(()))
    }));
    let checks = checks.unwrap();
    checks.watch(&pool.handle());
    while checked.load(Relaxed) < endpoints {
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    let with_checks = held();
    drop(pool);
    ((with_pool - before) / endpoints, (with_checks - with_pool) / endpoints)
}

#[tokio::test(start_paused = true)]
async fn health_checks_hold_less_than_a_kibibyte_per_endpoint_from_ten_to_ten_thousand() {
    let _alone = ALONE.lock().await;
    for endpoints in [100, 1_000, 10_000] {
        let (pool, checks) = bytes_per_endpoint(endpoints).await;
        println!("{endpoints} endpoints: {pool} bytes each, and {checks} for health checks");
        assert!(checks < 1024, "{endpoints}: {checks}");
    }
}
