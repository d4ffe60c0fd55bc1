//! What is changed while it runs, and how calls come to know.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use super::core::Set;

/// The present set of one stack.
///
/// A service compares one word at each call; a call keeps the set it began with.
pub(super) struct Steering<R, L, C> {
    version: AtomicU32,
    set: RwLock<Arc<Set<R, L, C>>>,
}

impl<R, L, C> Steering<R, L, C> {
    pub(super) fn new(set: Set<R, L, C>) -> Self {
        Self { version: AtomicU32::new(0), set: RwLock::new(Arc::new(set)) }
    }

    #[inline(always)]
    pub(super) fn version(&self) -> u32 {
        self.version.load(Ordering::Relaxed)
    }

    /// The set, and which it is.
    pub(super) fn set(&self) -> (u32, Arc<Set<R, L, C>>) {
        let set = self.set.read().unwrap_or_else(PoisonError::into_inner);
        // written under the lock
        (self.version.load(Ordering::Relaxed), set.clone())
    }
}

impl<R: Clone, L: Clone, C: Clone> Steering<R, L, C> {
    /// Changes the set for calls that begin from now on.
    pub(super) fn change(&self, change: impl FnOnce(&mut Set<R, L, C>)) {
        let mut set = self.set.write().unwrap_or_else(PoisonError::into_inner);
        let mut next = Set::clone(&set);
        change(&mut next);
        *set = Arc::new(next);
        self.version.fetch_add(1, Ordering::Relaxed);
    }
}

/// What the services of one `layer()` share of their making.
pub(super) struct Origin<R, L, C, K> {
    pub(super) steering: Arc<Steering<R, L, C>>,
    /// The last one that was made, for clones that still have an older.
    latest: Mutex<(u32, Arc<K>)>,
}

impl<R, L, C, K> Origin<R, L, C, K> {
    pub(super) fn new(steering: Arc<Steering<R, L, C>>, version: u32, core: Arc<K>) -> Self {
        Self { steering, latest: Mutex::new((version, core)) }
    }

    /// The core of the present set, made by the first who asks for it.
    pub(super) fn latest(&self, make: impl FnOnce(&Set<R, L, C>) -> K) -> (u32, Arc<K>) {
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        let (version, set) = self.steering.set();
        if latest.0 != version {
            *latest = (version, Arc::new(make(&set)));
        }
        latest.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tower::{Layer, service_fn};

    use super::super::UpstreamLayer;

    #[test]
    fn a_core_is_made_once_for_each_change_and_the_old_one_goes() {
        let layer = UpstreamLayer::builder("shop").build().unwrap();
        let inner = service_fn(|_: http::Request<()>| std::future::pending::<Result<http::Response<String>, String>>());
        let service = layer.layer(inner);
        let (first, core) = service.renewed();
        assert_eq!(first, service.renewed().0);
        let old = Arc::downgrade(&core);
        drop(core);
        layer.handle().resume();
        layer.handle().resume();
        assert_eq!(layer.steering.version(), first + 2);
        let (second, one) = service.renewed();
        let (third, other) = service.clone().renewed();
        assert_eq!((second, third), (first + 2, first + 2));
        assert!(Arc::ptr_eq(&one, &other), "clones share what the first of them made");
        assert!(old.strong_count() > 0, "a service keeps it until its next call");
        drop(service);
        assert_eq!(old.strong_count(), 0, "nothing grows with the changes");
    }
}
