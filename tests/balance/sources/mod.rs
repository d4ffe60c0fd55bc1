//! Sources of members, in virtual time.

mod changes;
mod file;
mod poll;
mod proxies;
mod snapshots;

use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::Instant;
use tower_upstream::balance::{Balance, BalanceHandle, Member, SourceStatus};

/// The service of an endpoint that is never called.
type Uncalled = ();

fn pool(keys: &[&str]) -> Balance<Uncalled> {
    Balance::builder("shop", |_: &Member| ()).members(keys.iter().map(|key| Member::new(*key))).build().unwrap()
}

fn keys(pool: &BalanceHandle) -> Vec<String> {
    pool.members().borrow().iter().map(|member| member.key.to_string()).collect()
}

fn source(pool: &BalanceHandle) -> SourceStatus {
    pool.snapshot(Instant::now()).source
}

fn problem(pool: &BalanceHandle) -> String {
    source(pool).problem.unwrap_or_default()
}

/// Counts the changes of a pool.
fn count(pool: &BalanceHandle) -> Arc<std::sync::atomic::AtomicU32> {
    let counter = Arc::new(std::sync::atomic::AtomicU32::new(0));
    let (count, mut members): (_, watch::Receiver<_>) = (counter.clone(), pool.members());
    tokio::spawn(async move {
        while members.changed().await.is_ok() {
            count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
    });
    counter
}
