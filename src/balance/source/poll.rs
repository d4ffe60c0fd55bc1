//! Sources that are queried at intervals.

use std::future::Future;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::{sorted, text};
use crate::balance::{BalanceHandle, Member};
use crate::body::BoxError;

const MIN_INTERVAL: Duration = Duration::from_millis(100);
const MAX_INTERVAL: Duration = Duration::from_secs(24 * 60 * 60);

impl BalanceHandle {
    /// Replaces the members by the result of `query`, immediately and then every `interval` +-10 %, until the pool is
    /// dropped.
    ///
    /// The interval is clamped to 100 ms to a day. A query that fails, returns no member or takes longer than the
    /// interval changes nothing and is reported. A result of less than half of the members is reported, and applied if
    /// the next result is equal. The order of the members has no meaning. As a result replaces all members, a pool has
    /// only one such source.
    ///
    /// The task ends when the pool is dropped, or when the returned handle aborts it. A panic of `query` ends it too,
    /// and is reported.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tower_upstream::balance::{BalanceHandle, Member};
    ///
    /// fn follow_registry(pool: &BalanceHandle) {
    ///     pool.poll_source(Duration::from_secs(5), || async {
    ///         // an SRV look-up, or a request to a registry
    ///         Ok::<_, std::io::Error>([Member::new("10.0.0.1:80"), Member::new("10.0.0.2:80")])
    ///     });
    /// }
    /// ```
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn poll_source<Q, F, I, E>(&self, interval: Duration, mut query: Q) -> JoinHandle<()>
    where
        Q: FnMut() -> F + Send + 'static,
        F: Future<Output = Result<I, E>> + Send,
        I: IntoIterator<Item = Member>,
        E: Into<BoxError>,
    {
        let interval = interval.clamp(MIN_INTERVAL, MAX_INTERVAL);
        self.spawn_source(move |mut source| async move {
            loop {
                let result = match timeout(interval, query()).await {
                    Ok(result) => result.map(sorted).map_err(|error| text(&error.into())),
                    Err(_) => Err(format!("the query has no result after {interval:?}")),
                };
                match result {
                    Ok(members) => {
                        // a list that cannot be used is reported by `change`
                        let _ = source.change(|pool| pool.update(members));
                    }
                    Err(problem) => source.report(&problem),
                }
                sleep(interval.mul_f64(0.9 + 0.2 * fastrand::f64())).await;
            }
        })
    }
}
