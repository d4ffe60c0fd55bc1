//! An HTTP/1.1 connection and its return to the pool.

use std::sync::{Arc, Weak};
use std::time::Duration;

use http::{HeaderMap, HeaderName};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::client::legacy::connect::Connection;
use tokio::runtime::Handle;
use tokio::time::Instant;

use super::{Handoff, SendBody, Shared, Slot, TrackedUpload};
use crate::cause::{BadGatewayCause, Detail, Failure};
use crate::classify::{AttemptContext, ConnectionStats};
use crate::client::CountedIo;

/// The largest response head, the same as for HTTP/2 upstreams.
const MAX_HEADER_LIST: usize = 64 << 10;
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");

/// A connection used exclusively by one request; closed on drop.
pub(crate) struct H1<B> {
    /// `None` once the connection has been handed over.
    sender: Option<SendRequest<TrackedUpload<B>>>,
    stamp: ConnectionStats,
    slot: Option<Slot<B>>,
    origin: Weak<Shared<B>>,
    /// How long the connection had been idle when taken; `None` for a new one.
    pub(super) idle_for: Option<Duration>,
    /// When it is too old for further requests.
    retire_at: Option<Instant>,
}

impl<B> Drop for H1<B> {
    fn drop(&mut self) {
        if self.sender.is_some() {
            self.stamp.kill();
        }
    }
}

impl<B> H1<B> {
    pub(crate) fn stamp(&self) -> &ConnectionStats {
        &self.stamp
    }

    /// Whether the previous request is completely done.
    pub(crate) fn is_ready(&self) -> bool {
        self.sender.as_ref().is_some_and(SendRequest::is_ready)
    }

    /// Learns from the response's `Keep-Alive`.
    pub(crate) fn learn(&self, headers: &HeaderMap) {
        // most responses have none, and iterating over few names is cheaper than hashing one
        if !headers.keys().any(|name| *name == KEEP_ALIVE) {
            return;
        }
        let Some(value) = headers.get(KEEP_ALIVE) else { return };
        if let (Some(home), Ok(value)) = (self.origin.upgrade(), value.to_str()) {
            home.keep_alive.observe_header(value);
        }
    }

    /// Learns from a connection that was closed before the request was written. Returns the failure, which is another one if
    /// the request was written and the upstream's keep-alive does not explain that it was lost.
    pub(crate) fn failed(&self, failure: Failure) -> Failure {
        let Some(home) = self.origin.upgrade() else { return failure };
        match (failure.cause(), self.idle_for) {
            (BadGatewayCause::NotDispatched, Some(age)) => home.keep_alive.observe_stale(age, Instant::now()),
            (BadGatewayCause::StaleConnection, age) if !home.keep_alive.explains(age.unwrap_or_default()) => {
                return crashed(failure);
            }
            _ => {}
        }
        failure
    }

    pub(super) fn is_closed(&self) -> bool {
        self.sender.as_ref().is_none_or(SendRequest::is_closed)
    }

    /// Whether it is too old for a further request.
    pub(super) fn is_retired(&self, now: Instant) -> bool {
        self.retire_at.is_some_and(|at| at <= now)
    }

    /// Hands the connection over to its upgraded protocol; the slot is held as long as the returned value.
    pub(crate) fn into_tunnel(mut self) -> Option<Slot<B>> {
        self.sender = None;
        self.slot.take()
    }
}

/// The failure of a request on a connection that was idle for too short a time to be closed as idle: a crash.
fn crashed(stale: Failure) -> Failure {
    let cause = match stale.detail() {
        Some(Detail::Errno(_)) => BadGatewayCause::ResetBeforeResponse,
        _ => BadGatewayCause::ClosedBeforeResponse,
    };
    stale.into_builder().cause(cause).build()
}

impl<B: SendBody> H1<B> {
    pub(super) async fn shake_hands<T>(io: CountedIo<T>, place: Slot<B>, home: &Arc<Shared<B>>) -> Result<Self, Failure>
    where
        T: hyper::rt::Read + hyper::rt::Write + Connection + Unpin + Send + 'static,
    {
        let stamp = io.stamp().clone();
        let (sender, connection) =
            http1::Builder::new().max_buf_size(MAX_HEADER_LIST).handshake(io.with_short_reads()).await.map_err(
                |error| {
                    let scene = AttemptContext::default().wire(stamp.wire()).peer(stamp.peer());
                    Failure::from_error_with(error.into(), &scene)
                },
            )?;
        let of = Arc::downgrade(home);
        tokio::spawn(async move {
            // its error is reported by the request that failed
            let _ = connection.with_upgrades().await;
            // the moment an idle connection ends reveals the upstream's keep-alive
            if let Some(home) = of.upgrade() {
                home.forget_closed(Instant::now());
            }
        });
        let retire_at = home.limits.retire_at(Instant::now());
        Ok(Self {
            sender: Some(sender),
            stamp,
            slot: Some(place),
            origin: Arc::downgrade(home),
            idle_for: None,
            retire_at,
        })
    }

    pub(crate) fn sender(&mut self) -> &mut SendRequest<TrackedUpload<B>> {
        self.sender.as_mut().expect("only a connection that is given up has no sender")
    }

    /// Whether it can take a request; waits while its task finishes the previous one.
    pub(super) async fn still_open(&mut self) -> bool {
        let sender = self.sender();
        sender.is_ready() || (!sender.is_closed() && sender.ready().await.is_ok())
    }

    /// Returns the connection, to the next waiter or to the idle ones.
    pub(crate) fn put_idle(self, now: Instant) {
        let Some(home) = self.origin.upgrade() else { return };
        if self.is_closed() || self.is_retired(now) {
            return;
        }
        let mut connection = self;
        // a waiter that gets it directly meets no idle connection
        connection.idle_for = None;
        let mut state = home.lock();
        while let Some(waiter) = state.waiters.pop_front() {
            match waiter.sender.send(Handoff::Connection(connection)) {
                // the waiter was abandoned
                Err(Handoff::Connection(back)) => connection = back,
                Ok(()) | Err(_) => return,
            }
        }
        state.idle.push_back((connection, now));
        home.reap(state);
    }

    /// Returns the connection once the upload has been written completely.
    pub(crate) fn put_idle_after_upload(mut self, idle: Duration) {
        let Ok(runtime) = Handle::try_current() else { return };
        runtime.spawn(async move {
            if self.takes_upload(idle).await {
                self.put_idle(Instant::now());
            }
        });
    }

    /// Closes the connection once it has accepted the rest of an upload, or the upload stalls.
    ///
    /// The complete response came first; the upstream may still want the upload (RFC 9112 section 9.3).
    pub(crate) fn end_after_upload(mut self, idle: Duration) {
        let Ok(runtime) = Handle::try_current() else { return };
        if !self.is_ready() && !self.is_closed() {
            runtime.spawn(async move { self.takes_upload(idle).await });
        }
    }

    /// Waits until an upload is written completely; returns `false` if it stalls for this time.
    async fn takes_upload(&mut self, idle: Duration) -> bool {
        let mut written = self.stamp.wire().written;
        loop {
            match tokio::time::timeout(idle, self.sender().ready()).await {
                Ok(ready) => return ready.is_ok(),
                Err(_) if self.stamp.wire().written == written => return false,
                Err(_) => written = self.stamp.wire().written,
            }
        }
    }
}
