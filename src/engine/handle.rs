//! The way from a call to what its layer shares, without a count that two threads write.

use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, OnceLock};

/// A pointer to shared state, whose clones for calls count for this clone of the service alone.
///
/// One count for all clones would be written by every thread at every call (measured: 1.43 instead of 1.95
/// times the throughput on two threads). A clone that is called only once, as axum makes them, never pays for
/// a count of its own.
pub(super) struct Handle<T> {
    shared: Arc<T>,
    own: OnceLock<Arc<Local<T>>>,
    used: bool,
}

/// What a call holds of the shared state.
pub(super) enum Held<T> {
    Shared(Arc<T>),
    Own(Arc<Local<T>>),
}

/// What one clone's calls count on.
pub(super) struct Local<T>(Arc<T>);

impl<T> Handle<T> {
    pub(super) fn new(shared: Arc<T>) -> Self {
        Self { shared, own: OnceLock::new(), used: false }
    }

    /// For a call by a service that is cloned for one call as often as for many.
    #[inline]
    pub(super) fn hold(&mut self) -> Held<T> {
        if let Some(own) = self.own.get() {
            return Held::Own(own.clone());
        }
        if std::mem::replace(&mut self.used, true) {
            return self.hold_own();
        }
        Held::Shared(self.shared.clone())
    }

    /// For a call by a service that lives as long as its connection.
    #[inline]
    pub(super) fn hold_own(&self) -> Held<T> {
        Held::Own(self.own.get_or_init(|| Arc::new(Local(self.shared.clone()))).clone())
    }
}

impl<T> Deref for Handle<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.shared
    }
}

impl<T> Clone for Handle<T> {
    fn clone(&self) -> Self {
        Self::new(self.shared.clone())
    }
}

impl<T: fmt::Debug> fmt::Debug for Handle<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.shared.fmt(f)
    }
}

impl<T> Deref for Held<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        match self {
            Self::Shared(shared) => shared,
            Self::Own(own) => &own.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_call_of_a_clone_counts_for_itself() {
        let shared = Arc::new(7);
        let mut handle = Handle::new(shared.clone());
        let first = handle.hold();
        assert_eq!((*first, Arc::strong_count(&shared)), (7, 3));
        let later: Vec<_> = (0..9).map(|_| handle.hold()).collect();
        assert_eq!((*later[8], Arc::strong_count(&shared)), (7, 4), "nine calls count as one");
        let other = handle.clone();
        drop((first, later, handle));
        assert_eq!((*other, Arc::strong_count(&shared)), (7, 2));
    }
}
