//! Closes idle connections that have become too old.

use std::sync::{Arc, MutexGuard, Weak};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::Instant;

use super::{Shared, State};

/// The minimum interval between two checks, whatever the idle timeout.
const MIN_INTERVAL: Duration = Duration::from_millis(100);

/// Held by the reaping task; dropping it allows another task.
///
/// Created before its task and moved into it: a task that is dropped unpolled, panics or loses its runtime releases it
/// and closes the connections that no task would close any more.
struct Reaper<B> {
    pool: Weak<Shared<B>>,
    armed: bool,
}

impl<B> Drop for Reaper<B> {
    fn drop(&mut self) {
        let (true, Some(pool)) = (self.armed, self.pool.upgrade()) else { return };
        let mut state = pool.lock();
        state.reaping = false;
        let idle = std::mem::take(&mut state.idle);
        #[cfg(feature = "http2")]
        let idle = (idle, state.h2.take_all_unused());
        drop(state);
        drop(idle);
    }
}

impl<B: Send + 'static> Shared<B> {
    /// Ensures that a task closes the idle connections, and releases the lock.
    pub(super) fn reap(self: &Arc<Self>, mut state: MutexGuard<'_, State<B>>) {
        if state.reaping {
            return;
        }
        state.reaping = true;
        drop(state);
        let reaper = Reaper { pool: Arc::downgrade(self), armed: true };
        // a body may be polled outside of a runtime
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(reaper.run());
        }
    }
}

impl<B> Reaper<B> {
    async fn run(mut self) {
        loop {
            let Some(limit) = self.pool.upgrade().map(|pool| pool.idle_limit()) else { return };
            tokio::time::sleep(limit.max(MIN_INTERVAL)).await;
            let Some(pool) = self.pool.upgrade() else { return };
            let now = Instant::now();
            pool.keep_alive.relax(now);
            let limit = pool.idle_limit();
            let mut old = Vec::new();
            let mut state = pool.lock();
            while state.idle.front().is_some_and(|(_, since)| now.saturating_duration_since(*since) >= limit) {
                old.extend(state.idle.pop_front());
            }
            #[cfg(feature = "http2")]
            let old = (old, pool.expired(&mut state, now));
            #[cfg(feature = "http2")]
            let done = state.idle.is_empty() && state.h2.is_empty();
            #[cfg(not(feature = "http2"))]
            let done = state.idle.is_empty();
            // under the lock: a connection returned after this starts another task
            state.reaping = !done;
            self.armed = !done;
            drop(state);
            drop(old);
            if done {
                return;
            }
        }
    }
}
