//! The progress of an attempt, which an inner layer publishes when a timer of an outer one has fired.
//!
//! A layer that times out has to name the phase that took the time, which only the client at the bottom knows. The query
//! travels with a poll: the layer sets a thread-local flag and polls the inner future once more; the innermost pending future
//! of this crate publishes its progress. A call that succeeds pays nothing. The reason for which a future is dropped reaches
//! the inner layers in the same way.

use std::cell::Cell;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Poll;

use tokio::time::Instant;

use super::CancelReason;
use crate::cause::{ClientCall, Connection, Phase};

/// The progress of an attempt that is pending.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub(crate) struct AttemptProgress {
    /// Published by a client of this crate, from its connection; otherwise everything is inferred.
    pub reported: bool,
    /// The client call that this belongs to, if known.
    pub(crate) call: Option<ClientCall>,
    /// The phase before the request had a connection; `None` once it has one.
    pub stage: Option<Phase>,
    /// Bytes written to the upstream.
    pub written: u64,
    /// Bytes read from the upstream since the request began.
    pub read: u64,
    /// The connection accepted no more bytes.
    pub blocked: bool,
    /// The progress of the request body, if it is tracked.
    pub upload: Option<UploadProgress>,
    /// The address that was tried.
    pub peer: Option<SocketAddr>,
    /// Whether the connection was reused.
    pub connection: Option<Connection>,
    /// The upstream's configured name.
    pub upstream: Option<Arc<str>>,
}

/// The progress of a request body.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub(crate) struct UploadProgress {
    /// The number of frames received from the client.
    pub frames: u32,
    /// Whether the upload waits for the client, not for the upstream.
    pub client_stalled: bool,
    /// When the body ended.
    pub ended: Option<Instant>,
}

impl AttemptProgress {
    /// In a phase before the request has a connection.
    pub(crate) fn before(stage: Phase) -> Self {
        Self { reported: true, stage: Some(stage), ..Self::default() }
    }
}

thread_local! {
    static QUERIED: Cell<bool> = const { Cell::new(false) };
    static REPORTED: Cell<Option<AttemptProgress>> = const { Cell::new(None) };
    static REASON: Cell<Option<CancelReason>> = const { Cell::new(None) };
}

/// Restores the previous value of a thread-local cell, also after a panic.
pub(super) struct ScopeGuard<T: Copy + 'static>(&'static std::thread::LocalKey<Cell<T>>, T);

impl<T: Copy> ScopeGuard<T> {
    pub(super) fn set(key: &'static std::thread::LocalKey<Cell<T>>, value: T) -> Self {
        Self(key, key.replace(value))
    }
}

impl<T: Copy> Drop for ScopeGuard<T> {
    fn drop(&mut self) {
        self.0.set(self.1);
    }
}

/// Polls with the query set; an outer layer that queries too gets the same progress.
pub(crate) fn query<T>(poll: impl FnOnce() -> Poll<T>) -> (Poll<T>, AttemptProgress) {
    REPORTED.set(None);
    let polled = {
        let _queried = ScopeGuard::set(&QUERIED, true);
        poll()
    };
    let told = REPORTED.take();
    if QUERIED.get() {
        REPORTED.set(told.clone());
    }
    (polled, told.unwrap_or_default())
}

/// Publishes the progress if it is queried; the innermost layer publishes first, and is kept.
#[inline]
pub(crate) fn publish(progress: impl FnOnce() -> AttemptProgress) {
    if QUERIED.get() {
        let told = REPORTED.take().unwrap_or_else(progress);
        REPORTED.set(Some(told));
    }
}

/// Adds the client call to the published progress, unless it has one.
#[cfg(feature = "client")]
#[inline]
pub(crate) fn set_call(call: ClientCall) {
    if QUERIED.get() {
        let told = REPORTED.take().map(|told| AttemptProgress { call: told.call.or(Some(call)), ..told });
        REPORTED.set(told);
    }
}

/// Adds the progress of the request body to the published progress, unless it has one.
pub(super) fn set_upload(upload: UploadProgress) {
    if QUERIED.get() {
        let told = REPORTED.take().unwrap_or_default();
        REPORTED.set(Some(AttemptProgress { upload: told.upload.or(Some(upload)), ..told }));
    }
}

/// Drops a value with this reason set.
pub(crate) fn drop_with_reason(reason: CancelReason, drop: impl FnOnce()) {
    let _reason = ScopeGuard::set(&REASON, Some(reason));
    drop();
}

/// The reason of the drop that is under way: [`CancelReason::Dropped`] unless a layer has set one.
pub(crate) fn drop_reason() -> CancelReason {
    REASON.get().unwrap_or(CancelReason::Dropped)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cause::BadGatewayCause;

    #[test]
    fn progress_is_published_only_if_queried_and_the_innermost_is_kept() {
        publish(|| panic!("not queried"));
        let (polled, progress) = query(|| {
            publish(|| AttemptProgress::before(Phase::Tls));
            publish(|| AttemptProgress::before(Phase::Pool));
            Poll::<()>::Pending
        });
        assert!(polled.is_pending());
        assert_eq!(progress.stage, Some(Phase::Tls));
        publish(|| panic!("no longer queried"));
    }

    #[test]
    fn two_layers_that_query_at_once_get_the_same_progress() {
        let (_, outer) = query(|| {
            let (_, inner) = query(|| {
                publish(|| AttemptProgress::before(Phase::Connect));
                Poll::<()>::Pending
            });
            assert_eq!(inner.stage, Some(Phase::Connect));
            Poll::<()>::Pending
        });
        assert_eq!(outer.stage, Some(Phase::Connect));
    }

    #[test]
    fn a_query_ends_with_a_panic() {
        let panicked = std::panic::catch_unwind(|| query(|| -> Poll<()> { panic!("inside") }));
        assert!(panicked.is_err());
        publish(|| panic!("no longer queried"));
    }

    #[test]
    fn the_innermost_drop_reason_is_reported() {
        let why = CancelReason::TimedOut(BadGatewayCause::FirstByteTimeout);
        assert_eq!(drop_reason(), CancelReason::Dropped);
        drop_with_reason(why, || {
            assert_eq!(drop_reason(), why);
            let other = CancelReason::TimedOut(BadGatewayCause::DeadlineExceeded);
            drop_with_reason(other, || assert_eq!(drop_reason(), other));
            assert_eq!(drop_reason(), why);
        });
        assert_eq!(drop_reason(), CancelReason::Dropped);
    }
}
