//! What a layer further in saw of a call, asked for only when a timer has fired.
//!
//! A layer that gives up has to name the phase that ate the time, and only the client at the bottom
//! knows it. The question travels with a poll: the layer sets a mark on its thread and polls the inner
//! future once more; whoever of ours is pending inside answers. A call that succeeds pays nothing. The same
//! way the reason for which a future is dropped reaches those inside.

use std::cell::Cell;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Poll;

use tokio::time::Instant;

use super::CancelReason;
use crate::cause::{ClientCall, Connection, Phase};

/// What was seen of a call that is still waiting.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub(crate) struct AttemptProgress {
    /// A client of ours looked at its connection; without it all is inferred.
    pub reported: bool,
    /// The client call that this is of; `None` where nobody knows.
    pub(crate) call: Option<ClientCall>,
    /// The phase before there was a connection; `None` once the request was handed to one.
    pub stage: Option<Phase>,
    /// Bytes written to the upstream.
    pub written: u64,
    /// Bytes read from the upstream since the request began.
    pub read: u64,
    /// The connection took no more bytes.
    pub blocked: bool,
    /// What is known of the request body, if somebody watches it.
    pub upload: Option<UploadProgress>,
    /// The address that was tried.
    pub peer: Option<SocketAddr>,
    /// Whether the connection was reused.
    pub connection: Option<Connection>,
    /// The upstream's name as the deployment calls it.
    pub upstream: Option<Arc<str>>,
}

/// What was seen of a request body.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub(crate) struct UploadProgress {
    /// Frames that came from the client.
    pub frames: u32,
    /// The upload waits for the client, not for the upstream.
    pub client_stalled: bool,
    /// When it was through.
    pub ended: Option<Instant>,
}

impl AttemptProgress {
    /// Nothing has been handed to a connection yet.
    pub(crate) fn before(stage: Phase) -> Self {
        Self { reported: true, stage: Some(stage), ..Self::default() }
    }
}

thread_local! {
    static QUERIED: Cell<bool> = const { Cell::new(false) };
    static REPORTED: Cell<Option<AttemptProgress>> = const { Cell::new(None) };
    static REASON: Cell<Option<CancelReason>> = const { Cell::new(None) };
}

/// Puts a thread's mark back as it was, also when a poll panics.
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

/// Polls with the query set; a layer around this one that queries too gets the same answer.
pub(crate) fn query<T>(poll: impl FnOnce() -> Poll<T>) -> (Poll<T>, AttemptProgress) {
    REPORTED.set(None);
    let polled = {
        let _asked = ScopeGuard::set(&QUERIED, true);
        poll()
    };
    let told = REPORTED.take();
    if QUERIED.get() {
        REPORTED.set(told.clone());
    }
    (polled, told.unwrap_or_default())
}

/// Answers the question, if it is asked; the first to answer stands nearest to the wire.
#[inline]
pub(crate) fn publish(sight: impl FnOnce() -> AttemptProgress) {
    if QUERIED.get() {
        let told = REPORTED.take().unwrap_or_else(sight);
        REPORTED.set(Some(told));
    }
}

/// Says of which client call that is which was told further in, unless it is said already.
#[cfg(feature = "client")]
#[inline]
pub(crate) fn set_call(call: ClientCall) {
    if QUERIED.get() {
        let told = REPORTED.take().map(|told| AttemptProgress { call: told.call.or(Some(call)), ..told });
        REPORTED.set(told);
    }
}

/// Drops something for this reason.
pub(crate) fn drop_with_reason(why: CancelReason, drop: impl FnOnce()) {
    let _leaving = ScopeGuard::set(&REASON, Some(why));
    drop();
}

/// Why what is being dropped is dropped: a layer's reason, or its caller has left.
pub(crate) fn drop_reason() -> CancelReason {
    REASON.get().unwrap_or(CancelReason::Dropped)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cause::BadGatewayCause;

    #[test]
    fn only_who_is_asked_answers_and_the_innermost_is_heard() {
        publish(|| panic!("nobody asked"));
        let (polled, sight) = query(|| {
            publish(|| AttemptProgress::before(Phase::Tls));
            publish(|| AttemptProgress::before(Phase::Pool));
            Poll::<()>::Pending
        });
        assert!(polled.is_pending());
        assert_eq!(sight.stage, Some(Phase::Tls));
        publish(|| panic!("nobody asks any more"));
    }

    #[test]
    fn two_who_ask_at_the_same_time_hear_the_same() {
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
    fn a_question_ends_with_a_panic() {
        let panicked = std::panic::catch_unwind(|| query(|| -> Poll<()> { panic!("inside") }));
        assert!(panicked.is_err());
        publish(|| panic!("nobody asks any more"));
    }

    #[test]
    fn the_innermost_reason_is_the_one_that_drops() {
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
