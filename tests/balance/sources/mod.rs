//! Sources of members, in virtual time.

mod changes;
mod file;
mod poll;
mod proxies;
mod snapshots;

use std::io;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

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

/// The log events of this thread.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Log {
    fn record() -> (Self, tracing::subscriber::DefaultGuard) {
        let log = Self::default();
        let writer = log.clone();
        let lines = tracing_subscriber::fmt().with_ansi(false).without_time().with_writer(move || writer.clone());
        (log, crate::support::subscribe(lines.finish()))
    }

    fn lines(&self) -> Vec<String> {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap().lines().map(|line| line.trim().to_owned()).collect()
    }
}

/// Counts the changes of a pool.
fn count(pool: &BalanceHandle) -> Arc<AtomicU32> {
    let counter = Arc::new(AtomicU32::new(0));
    let (count, mut members): (_, watch::Receiver<_>) = (counter.clone(), pool.members());
    tokio::spawn(async move {
        while members.changed().await.is_ok() {
            count.fetch_add(1, Relaxed);
        }
    });
    counter
}
