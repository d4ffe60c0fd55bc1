//! Preparation of new endpoints before they take calls.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

use super::endpoint::EndpointState;
use super::member::Member;
use crate::body::BoxError;

/// The largest number of endpoints that are prepared at a time.
const MOST: usize = 64;

type Prepare<S> = dyn Fn(S, Arc<Member>) -> Pin<Box<dyn Future<Output = Result<(), BoxError>> + Send>> + Send + Sync;

/// The preparation of a pool's new endpoints.
pub(super) struct WarmUp<S> {
    prepare: Box<Prepare<S>>,
    limit: Duration,
    slots: Arc<Semaphore>,
}

/// Guard of a running preparation: the endpoint takes no calls until it is dropped, also by a panic.
struct Warming {
    endpoint: Arc<EndpointState>,
    /// Set when the shares of the pool have to be computed again.
    stale: Arc<AtomicBool>,
}

impl Drop for Warming {
    fn drop(&mut self) {
        self.endpoint.set_warming(false);
        self.stale.store(true, Relaxed);
    }
}

impl<S> WarmUp<S> {
    pub(super) fn new<T, E>(prepare: impl Fn(S, Arc<Member>) -> T + Send + Sync + 'static) -> Self
    where
        T: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<BoxError>,
    {
        let prepare = Box::new(move |service, member| -> Pin<Box<dyn Future<Output = _> + Send>> {
            let prepared = prepare(service, member);
            Box::pin(async move { prepared.await.map_err(Into::into) })
        });
        Self { prepare, limit: Duration::from_secs(1), slots: Arc::new(Semaphore::new(MOST)) }
    }

    pub(super) fn limited(self, limit: Duration) -> Self {
        Self { limit, ..self }
    }

    /// Prepares an endpoint, which takes no calls until the preparation has succeeded, failed or timed out.
    pub(super) fn start(&self, service: S, endpoint: Arc<EndpointState>, upstream: Arc<str>, stale: Arc<AtomicBool>) {
        // without a runtime there is no I/O to wait for
        let Ok(runtime) = Handle::try_current() else { return };
        let member = endpoint.member();
        let prepared = (self.prepare)(service, member.clone());
        let (limit, slots, began) = (self.limit, self.slots.clone(), Instant::now());
        endpoint.set_warming(true);
        let warming = Warming { endpoint, stale };
        runtime.spawn(async move {
            let prepared = timeout(limit, async {
                // the semaphore is never closed; without a slot in time, the endpoint takes calls unprepared
                let _slot = slots.acquire().await;
                prepared.await
            });
            let problem: BoxError = match prepared.await {
                Ok(Ok(())) => return,
                Ok(Err(error)) => error,
                Err(_) => format!("not done within {limit:?}").into(),
            };
            drop(warming);
            tracing::warn!(
                target: "tower_upstream",
                upstream = &*upstream,
                endpoint = &*member.key,
                duration_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
                "the warm-up of a new endpoint failed, it takes calls as it is: {problem}"
            );
        });
    }
}
