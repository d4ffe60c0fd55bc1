//! The endpoint to which a pool inside has sent an attempt, so that the next attempt goes to another one.
//!
//! A pool chooses in its `call`, on the thread of the caller, and notes its choice in a thread-local, which the driver reads
//! when that call has returned. The response cannot carry it: an attempt that times out has none.

use std::cell::Cell;

/// An endpoint of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ChosenEndpoint {
    /// Its number, which is unique in the process.
    pub(crate) id: u64,
    /// Whether the pool has others.
    pub(crate) has_others: bool,
}

/// The endpoints that earlier attempts of a request were sent to: an extension of its later attempts.
#[derive(Clone, Debug, Default)]
pub(crate) struct TriedEndpoints(pub(crate) Vec<u64>);

thread_local! {
    static CHOSEN: Cell<Option<ChosenEndpoint>> = const { Cell::new(None) };
}

/// A pool has chosen an endpoint for the call that it is about to return.
#[cfg(feature = "balance")]
#[inline]
pub(crate) fn note_endpoint(endpoint: ChosenEndpoint) {
    CHOSEN.set(Some(endpoint));
}

/// Forgets the choice of an earlier call, before an inner service is called.
#[inline]
pub(super) fn forget_endpoint() {
    CHOSEN.set(None);
}

/// The endpoint that a pool inside the service that was just called has chosen.
#[inline]
pub(super) fn last_endpoint() -> Option<ChosenEndpoint> {
    CHOSEN.get()
}

/// Calls a service; returns also the endpoint that a pool inside has chosen.
pub(super) fn with_endpoint<T>(call: impl FnOnce() -> T) -> (T, Option<ChosenEndpoint>) {
    forget_endpoint();
    (call(), last_endpoint())
}
