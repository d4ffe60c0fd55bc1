//! What a pool survives: full endpoints, factories that panic, and changes at the same moment.

use tokio::time::{Instant, sleep};
use tower_upstream::balance::{Balance, BalanceSnapshot};
use tower_upstream::body::TrackedUpload;
use tower_upstream::limit::ConcurrencyLimitLayer;

use crate::pool::{Endpoint, Servers, call, members};
use crate::support::service::{Act, ms};

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
