//! The shared connections of one upstream, and the choice of one for the next stream.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use hyper::client::conn::http2::SendRequest;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use super::h2::{H2, StreamStage};
use super::lifetime::{Lifetime, Sharing};
use super::streams::Streams;
use super::{DIAL_WAIT, Limits, Shared, Slot, State, TrackedUpload};
use crate::classify::ConnectionStats;
use crate::client::frames::PeerState;

/// The shared connections of one upstream.
pub(super) struct Connections<B> {
    pub(super) open: Vec<Entry<B>>,
    /// Shared dials under way: when each began. Dropping the sender cancels the dial.
    pub(super) dialing: Vec<(Instant, oneshot::Sender<Infallible>)>,
    /// The expected number of streams of a new connection.
    pub(super) streams_of_a_dial: usize,
    pub(super) sharing: Sharing,
}

pub(super) struct Entry<B> {
    pub(super) sender: SendRequest<TrackedUpload<B>>,
    pub(super) connection: Arc<H2Connection<B>>,
    pub(super) lifetime: Lifetime,
}

/// The state that the streams of one connection share.
pub(super) struct H2Connection<B> {
    pub(super) stamp: ConnectionStats,
    pub(super) streams: Streams,
    pub(super) peer: watch::Receiver<PeerState>,
    /// When it was last seen without a stream, in nanoseconds since the pool's start; a stream opened since counts too.
    pub(super) idle_since: AtomicU64,
    /// This side has reset a stream.
    pub(super) was_reset: AtomicBool,
    pub(super) _place: Option<Slot<B>>,
    /// Dropped with the last holder, which tells the connection's task.
    pub(super) _in_use: oneshot::Sender<Infallible>,
}

impl<B> H2Connection<B> {
    /// The number of streams that may be open: the peer's limit, or ours if that is less.
    pub(super) fn limit(&self, streams: u32) -> u32 {
        let peer = self.peer.borrow();
        match peer.goaway {
            Some(_) => 0,
            None => peer.max_concurrent_streams.map_or(streams, |peer| peer.min(streams)),
        }
    }
}

impl<B> Connections<B> {
    pub(super) fn new(limits: &Limits) -> Self {
        let streams_of_a_dial = usize::try_from(limits.streams).unwrap_or(usize::MAX);
        Self { open: Vec::new(), dialing: Vec::new(), streams_of_a_dial, sharing: Sharing::default() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    pub(super) fn position(&self, connection: &Arc<H2Connection<B>>) -> Option<usize> {
        self.open.iter().position(|entry| Arc::ptr_eq(&entry.connection, connection))
    }

    /// Opens a stream on the least busy connection that has fewer than `most`.
    pub(super) fn share(&mut self, home: &Arc<Shared<B>>, most: u32) -> Option<H2<B>> {
        let free = |entry: &&mut Entry<B>| entry.connection.streams.count() < entry.connection.limit(most);
        let least = self.open.iter_mut().filter(free).min_by_key(|entry| entry.connection.streams.count())?;
        least.connection.streams.try_open(least.connection.limit(most)).then(|| least.lease(home))
    }

    /// Like [`share`](Self::share); without a free stream, the next one that closes is handed to a waiter.
    pub(super) fn share_or_wait(&mut self, home: &Arc<Shared<B>>, most: u32) -> Option<H2<B>> {
        let free = |entry: &&mut Entry<B>| entry.connection.streams.try_open_or_wait(entry.connection.limit(most));
        self.open.iter_mut().find(free).map(|entry| entry.lease(home))
    }

    /// The expected number of streams from dials in progress; a dial that takes too long counts as none.
    pub(super) fn expected(&self, now: Instant) -> usize {
        let begun_lately = |(since, _): &&(Instant, _)| now.saturating_duration_since(*since) < DIAL_WAIT;
        self.dialing.iter().filter(begun_lately).count().saturating_mul(self.streams_of_a_dial)
    }

    /// Removes a dial that takes too long; dropping the returned sender cancels it.
    pub(super) fn take_stuck_dial(&mut self, now: Instant) -> Option<oneshot::Sender<Infallible>> {
        let is_stuck = |(since, _): &(Instant, _)| now.saturating_duration_since(*since) >= DIAL_WAIT;
        let at = self.dialing.iter().position(is_stuck)?;
        Some(self.dialing.swap_remove(at).1)
    }

    /// Whether a connection opened within the last second has accepted no stream, and accepts none now.
    pub(super) fn is_draining(&self, now: Instant) -> bool {
        self.open.iter().any(|entry| entry.lifetime.is_untried(now) && entry.connection.limit(1) == 0)
    }

    /// Removes a connection without streams, to free its slot for one of the other protocol.
    pub(super) fn take_unused(&mut self) -> Option<impl Sized + use<B>> {
        let at = self.open.iter().position(|entry| entry.connection.streams.count() == 0)?;
        Some(self.open.swap_remove(at))
    }

    pub(super) fn take_all_unused(&mut self) -> impl Sized + use<B> {
        self.take(|entry| entry.connection.streams.count() == 0)
    }

    /// Removes the matching connections; the caller drops them after it has released the lock.
    pub(super) fn take(&mut self, gone: impl Fn(&Entry<B>) -> bool) -> Vec<Entry<B>> {
        // in place; allocates only if there is something to remove
        let mut taken = Vec::new();
        let mut at = 0;
        while let Some(entry) = self.open.get(at) {
            if gone(entry) {
                taken.push(self.open.swap_remove(at));
            } else {
                at += 1;
            }
        }
        taken
    }
}

impl<B> Entry<B> {
    /// The lease of a stream that has been opened.
    pub(super) fn lease(&mut self, home: &Arc<Shared<B>>) -> H2<B> {
        self.lifetime.on_stream();
        H2 {
            sender: self.sender.clone(),
            connection: self.connection.clone(),
            origin: Arc::downgrade(home),
            stage: StreamStage::Unsent,
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        // hyper's handle is open for a moment after a GOAWAY
        let goaway = self.connection.peer.borrow().goaway;
        goaway.is_some() || self.sender.is_closed() || self.connection.stamp.is_killed()
    }
}

impl<B> Shared<B> {
    pub(super) fn nanos(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.start).as_nanos()).unwrap_or(u64::MAX)
    }

    /// Removes connections that accept no further stream: closed, idle for too long, too old, or with too many resets.
    #[must_use]
    pub(super) fn expired(&self, state: &mut State<B>, now: Instant) -> impl Sized + use<B> {
        let (idle_limit, nanos) = (self.idle_limit(), self.nanos(now));
        // if no other connection may be opened, an old one is used until it has no stream
        let may_replace = state.open < self.limits.connections;
        state.h2.take(|entry| {
            if entry.is_closed() {
                return true;
            }
            let unused = entry.connection.streams.count() == 0;
            let idle = Duration::from_nanos(nanos.saturating_sub(entry.connection.idle_since.load(Relaxed)));
            (unused && entry.lifetime.is_idle(idle, idle_limit))
                || (entry.lifetime.is_retired(now) && (unused || may_replace))
        })
    }

    /// The maximum number of streams of a connection; lower after a burst of resets, if another connection may be opened.
    pub(super) fn streams(&self, state: &State<B>, now: Instant) -> u32 {
        let max = self.limits.streams;
        if state.open < self.limits.connections { state.h2.sharing.streams(now, max) } else { max }
    }

    /// Counts a stream that this side resets.
    pub(super) fn record_reset(&self, connection: &Arc<H2Connection<B>>, before_head: bool, now: Instant) {
        connection.was_reset.store(true, Relaxed);
        let mut state = self.lock();
        let Some(at) = state.h2.position(connection) else { return };
        if state.h2.open[at].lifetime.on_reset(now, before_head) {
            state.h2.sharing.on_burst(now);
        }
    }

    /// Whether a stream may still become free, or a dial is under way.
    pub(super) fn shares_any(&self) -> bool {
        let state = self.lock();
        !state.h2.open.is_empty() || !state.h2.dialing.is_empty()
    }
}
