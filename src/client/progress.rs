//! Publishes the client's progress to an outer layer that is about to time out.

use std::future::Future;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::task::Poll;

use crate::body::UploadCounters;
use crate::cause::{ClientCall, Connection, Phase};
use crate::classify::ConnectionStats;
use crate::exchange::{self, AttemptProgress, UploadProgress};

/// Runs a future as one phase of getting a connection.
pub(super) async fn publishing<F: Future>(phase: Phase, peer: Option<SocketAddr>, future: F) -> F::Output {
    let mut future: Pin<&mut F> = pin!(future);
    poll_fn(|cx| {
        let polled = future.as_mut().poll(cx);
        if polled.is_pending() {
            exchange::publish(|| AttemptProgress { peer, ..AttemptProgress::before(phase) });
        }
        polled
    })
    .await
}

/// Passes the poll through; on `Pending`, publishes the connection's progress.
#[inline]
pub(super) fn publish_poll<T>(polled: Poll<T>, progress: impl FnOnce() -> AttemptProgress) -> Poll<T> {
    publish(&polled, progress);
    polled
}

/// The same by reference, for values that are too large to move.
#[inline]
pub(super) fn publish<T>(polled: &Poll<T>, progress: impl FnOnce() -> AttemptProgress) {
    if polled.is_pending() {
        exchange::publish(progress);
    }
}

/// Runs a future as part of this client call.
pub(super) async fn signing<F: Future>(call: ClientCall, future: F) -> F::Output {
    let mut future: Pin<&mut F> = pin!(future);
    poll_fn(|cx| {
        let polled = future.as_mut().poll(cx);
        if polled.is_pending() {
            exchange::set_call(call);
        }
        polled
    })
    .await
}

/// The progress of a request, by the counters of its connection.
pub(super) fn snapshot(stamp: &ConnectionStats, progress: Option<&UploadCounters>) -> AttemptProgress {
    let wire = stamp.wire();
    let upload = progress.map(|progress| UploadProgress {
        frames: progress.frames(),
        client_stalled: progress.client_stalled(),
        ended: progress.ended(),
    });
    let connection = if wire.served > 0 { Connection::Reused } else { Connection::Fresh };
    let mut progress = AttemptProgress { reported: true, written: wire.written, upload, ..AttemptProgress::default() };
    (progress.peer, progress.connection) = (stamp.peer(), Some(connection));
    if !wire.multiplexed {
        // the bytes of other streams do not belong to this one
        (progress.read, progress.blocked) = (wire.read, wire.blocked);
    }
    progress
}
