//! Shared HTTP/2 connections.
//!
//! A stream is used only if the peer's `SETTINGS_MAX_CONCURRENT_STREAMS` allows one: beyond it hyper would let the request wait
//! inside the connection, where it cannot be distinguished from one that was sent. A request without a stream
//! waits for a dial, its own or a shared one, or in the pool's queue.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::future::{Either, select};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::client::legacy::connect::Connection;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep, timeout};

use super::connections::{Connections, Entry, H2Connection};
use super::lifetime::Lifetime;
use super::shared_dial::SharedDial;
use super::streams::Streams;
use super::{
    Checkout, Connect, Handoff, Limits, Needs, NextAction, Pool, SendBody, Shared, Slot, State, TrackedUpload,
};
use super::{Waiter, WaitsFor, publishing};
use crate::body::UploadCounters;
use crate::cause::{BadGatewayCause, Failure, Phase};
use crate::classify::{AttemptContext, ConnectionStats};
use crate::client::CountedIo;
use crate::client::frames::PeerState;
use crate::exchange::{CancelReason, drop_reason};

/// hyper's 16 KB is less than an HTTP/1.1 upstream may send.
const MAX_HEADER_LIST: u32 = 64 << 10;
/// The protocol's smallest and default (RFC 9113 section 6.5.2): larger frames would hold up the other streams.
const MAX_FRAME: u32 = 16 << 10;
/// Bytes of a request body that may wait for the upstream, the same as of a response body for the client.
const MAX_SEND_BUFFER: usize = 64 << 10;
/// How long a new connection is given to announce its settings; a peer that takes longer is used without them.
const SETTINGS_WAIT: Duration = Duration::from_millis(250);
/// The error code of a peer that sees excessive load from this side (RFC 9113 section 7).
pub(crate) const ENHANCE_YOUR_CALM: u32 = 0xb;
/// The time that an unused connection gets to close gracefully.
const LINGER: Duration = Duration::from_secs(1);
/// The lease of one stream of a shared connection.
pub(crate) struct H2<B> {
    pub(super) sender: SendRequest<TrackedUpload<B>>,
    pub(super) connection: Arc<H2Connection<B>>,
    pub(super) origin: Weak<Shared<B>>,
    pub(super) stage: StreamStage,
}

/// The progress of a stream's response; a stream that is dropped before its end is reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StreamStage {
    Unsent,
    BeforeHead,
    InBody,
    Ended,
}

impl<B> Drop for H2<B> {
    fn drop(&mut self) {
        if let (StreamStage::BeforeHead | StreamStage::InBody, Some(home)) = (self.stage, self.origin.upgrade()) {
            home.record_reset(&self.connection, self.stage == StreamStage::BeforeHead, Instant::now());
        }
        // after a time limit it takes no more streams, unless the client itself was late
        let late = CancelReason::TimedOut(BadGatewayCause::UploadStalled);
        if !matches!(drop_reason(), CancelReason::Dropped | CancelReason::Superseded) && drop_reason() != late {
            self.evict();
        }
        if self.connection.streams.count() == 1 {
            if let Some(home) = self.origin.upgrade() {
                self.connection.idle_since.store(home.nanos(Instant::now()), Relaxed);
            }
        }
        let end = self.connection.streams.close();
        // no further stream will be opened: a connection that hangs would stay forever
        if end.ends_connection {
            self.connection.stamp.kill();
        }
        if end.awaited {
            if let Some(home) = self.origin.upgrade() {
                home.hand_streams(&self.connection);
            }
        }
    }
}

impl<B> H2<B> {
    pub(crate) fn stamp(&self) -> &ConnectionStats {
        &self.connection.stamp
    }

    /// Sends the stream's request.
    pub(crate) fn sender(&mut self) -> &mut SendRequest<TrackedUpload<B>> {
        self.stage = StreamStage::BeforeHead;
        &mut self.sender
    }

    /// The announcements of the peer so far.
    pub(crate) fn peer(&self) -> PeerState {
        *self.connection.peer.borrow()
    }

    /// The largest head that the peer accepts, in bytes, if it has announced a limit.
    pub(crate) fn max_head(&self) -> Option<usize> {
        let limit = self.peer().max_header_list_size.filter(|limit| *limit < u32::MAX)?;
        usize::try_from(limit).ok()
    }

    /// Whether the peer still takes the stream: its limit may have been lowered since the stream was handed out, and hyper
    /// would let the request wait inside the connection.
    pub(crate) fn is_open(&self) -> bool {
        self.connection.streams.count() <= self.connection.limit(u32::MAX)
    }

    /// Notes that the response head has come.
    pub(crate) fn on_head(&mut self) {
        self.stage = StreamStage::InBody;
    }

    /// Notes that the stream has ended, by the peer or for both sides.
    pub(crate) fn on_end(&mut self) {
        self.stage = StreamStage::Ended;
    }

    /// Whether the peer has ended the connection because streams were reset on it: by clients, not by a fault of its own.
    pub(crate) fn was_ended_for_resets(&self) -> bool {
        self.peer().goaway == Some(ENHANCE_YOUR_CALM) && self.connection.was_reset.load(Relaxed)
    }

    /// Removes this connection from the pool. Its open streams may finish.
    pub(crate) fn evict(&self) {
        if let Some(home) = self.origin.upgrade() {
            let mut state = home.lock();
            let at = state.h2.position(&self.connection);
            let gone = at.map(|at| state.h2.open.swap_remove(at));
            drop(state);
            drop(gone);
        }
        if self.connection.streams.evict() {
            self.connection.stamp.kill();
        }
    }
}

impl<B: Send + 'static> H2<B> {
    /// Keeps the stream's slot until its upload ends, while it makes progress: the response came first.
    ///
    /// The peer counts the stream until then. A stalled upload ends with its connection.
    pub(crate) fn close_after_upload(self, progress: &Arc<UploadCounters>, idle: Duration) {
        let upload = Arc::downgrade(progress);
        let Ok(runtime) = Handle::try_current() else { return };
        runtime.spawn(async move {
            let interval = (idle / 8).clamp(Duration::from_millis(10), Duration::from_secs(1));
            let (mut taken, mut moved) = (0, Instant::now());
            loop {
                sleep(interval).await;
                // hyper drops the body once the peer has reset the stream
                let Some(progress) = upload.upgrade() else { return };
                if progress.ended().is_some() || progress.failed() {
                    return;
                }
                if std::mem::replace(&mut taken, progress.frames()) != taken {
                    moved = Instant::now();
                } else if moved.elapsed() >= idle {
                    return self.evict();
                }
            }
        });
    }
}

impl<B: SendBody> Connections<B> {
    /// Performs the HTTP/2 handshake, and waits for the peer's settings. After a failure, `place` still has the slot.
    pub(super) async fn shake_hands<T>(
        mut io: CountedIo<T>,
        place: &mut Option<Slot<B>>,
        home: &Arc<Shared<B>>,
    ) -> Result<NewConnection<B>, Failure>
    where
        T: hyper::rt::Read + hyper::rt::Write + Connection + Unpin + Send + 'static,
    {
        let stamp = io.stamp().clone();
        stamp.multiplexed();
        let mut peer = io.watch_peer();
        let (sender, connection) = builder(&home.limits).handshake(io).await.map_err(|error| {
            let scene = AttemptContext::default().wire(stamp.wire()).peer(stamp.peer());
            Failure::from_error_with(error.into(), &scene)
        })?;
        let (in_use, unused) = oneshot::channel();
        let shared = Arc::new(H2Connection {
            stamp: stamp.clone(),
            streams: Streams::new(),
            peer: peer.clone(),
            idle_since: AtomicU64::new(home.nanos(Instant::now())),
            was_reset: AtomicBool::new(false),
            _place: place.take(),
            _in_use: in_use,
        });
        let swept = SweptAtEnd(Arc::downgrade(home));
        let driver = Driver { connection, peer: peer.clone(), shared: Arc::downgrade(&shared), swept };
        tokio::spawn(async move {
            driver.run().await;
            // no stream uses it any more; a peer that does not read must not keep the socket open
            let _ = unused.await;
            sleep(LINGER).await;
            stamp.kill();
        });
        // an end of the connection is the first request's to report
        let received = timeout(SETTINGS_WAIT, peer.wait_for(|peer| peer.received));
        let _ = publishing(Phase::Connect, shared.stamp.peer(), received).await;
        Ok(NewConnection { sender, connection: shared })
    }
}

/// hyper's client with explicit values for all settings that affect memory or fairness, so that hyper's defaults may change.
fn builder(limits: &Limits) -> http2::Builder<TokioExecutor> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .adaptive_window(false)
        // data that a client does not read is kept here, up to the stream's window
        .initial_stream_window_size(limits.stream_window)
        // never at the expense of other streams: RFC 9113 section 5.2.2
        .initial_connection_window_size(limits.stream_window * limits.streams)
        .max_frame_size(MAX_FRAME)
        .max_header_list_size(MAX_HEADER_LIST)
        .max_send_buf_size(MAX_SEND_BUFFER)
        .keep_alive_interval(limits.keep_alive.map(|(interval, _)| interval))
        .keep_alive_while_idle(false);
    if let Some((_, timeout)) = limits.keep_alive {
        builder.keep_alive_timeout(timeout);
    }
    builder
}

/// Drives a connection, and cleans up after it; the fields are dropped in this order.
struct Driver<F, B> {
    connection: F,
    peer: watch::Receiver<PeerState>,
    shared: Weak<H2Connection<B>>,
    swept: SweptAtEnd<B>,
}

impl<F: Future, B> Driver<F, B> {
    async fn run(self) {
        let Self { connection, mut peer, shared, swept } = self;
        {
            // its error is reported by the requests that failed
            let mut connection = pin!(connection);
            loop {
                let changed = pin!(peer.changed());
                match select(connection.as_mut(), changed).await {
                    Either::Right((Ok(()), _)) => {
                        if let (Some(home), Some(shared)) = (swept.0.upgrade(), shared.upgrade()) {
                            home.hand_streams(&shared);
                        }
                    }
                    // the I/O is closed
                    Either::Right((Err(_), connection)) => break drop(connection.await),
                    Either::Left(_) => break,
                }
            }
        }
        drop(swept);
    }
}

/// On drop, removes closed connections from the pool, for the waiters that need their slots.
struct SweptAtEnd<B>(Weak<Shared<B>>);

impl<B> Drop for SweptAtEnd<B> {
    fn drop(&mut self) {
        if let Some(home) = self.0.upgrade() {
            let closed = home.lock().h2.take(Entry::is_closed);
            drop(closed);
        }
    }
}

/// A connection that no stream uses yet.
pub(super) struct NewConnection<B> {
    sender: SendRequest<TrackedUpload<B>>,
    connection: Arc<H2Connection<B>>,
}

impl<B> Shared<B> {
    /// Adds a connection and hands out its streams, the first to the caller if it `wants` one.
    pub(super) fn add(self: &Arc<Self>, opened: NewConnection<B>, wants: bool) -> Option<H2<B>>
    where
        B: Send + 'static,
    {
        let NewConnection { sender, connection } = opened;
        let now = Instant::now();
        let lifetime = Lifetime::new(now, self.limits.retire_at(now));
        let mut entry = Entry { sender, connection: connection.clone(), lifetime };
        let mut state = self.lock();
        let limit = connection.limit(self.streams(&state, now));
        let own = (wants && connection.streams.try_open(limit)).then(|| entry.lease(self));
        state.h2.streams_of_a_dial = usize::try_from(limit.max(1)).unwrap_or(usize::MAX);
        state.h2.open.push(entry);
        // even if it is closed already: its requests report why
        let handed = self.hand(&mut state, &connection);
        self.reap(state);
        handed.send();
        own
    }

    /// Hands the free streams of a connection to the waiters, in their order.
    fn hand_streams(self: &Arc<Self>, connection: &Arc<H2Connection<B>>) {
        let mut state = self.lock();
        let handed = self.hand(&mut state, connection);
        drop(state);
        handed.send();
    }

    fn hand(self: &Arc<Self>, state: &mut State<B>, connection: &Arc<H2Connection<B>>) -> Handed<B> {
        let mut handed = Handed { turns: Vec::new(), retired: None };
        let Some(at) = state.h2.position(connection) else { return handed };
        let now = Instant::now();
        let may_replace = state.open < self.limits.connections;
        let limit = connection.limit(self.streams(state, now));
        let entry = &mut state.h2.open[at];
        if may_replace && entry.lifetime.is_retired(now) {
            // the first waiter dials, and the others share the connection
            let first = first_for_a_stream(&mut state.waiters).and_then(|at| state.waiters.remove(at));
            handed.turns.extend(first.map(|waiter| (waiter, Handoff::Retry)));
            handed.retired = Some(state.h2.open.swap_remove(at));
            return handed;
        }
        while let Some(at) = first_for_a_stream(&mut state.waiters) {
            if !connection.streams.try_open_or_wait(limit) {
                return handed;
            }
            let stream = entry.lease(self);
            handed.turns.extend(state.waiters.remove(at).map(|waiter| (waiter, Handoff::Stream(stream))));
        }
        connection.streams.stop_waiting();
        handed
    }
}

/// Handoffs to send after the lock is released: an abandoned waiter drops its value, which takes the lock again.
struct Handed<B> {
    turns: Vec<(Waiter<B>, Handoff<B>)>,
    retired: Option<Entry<B>>,
}

impl<B> Handed<B> {
    fn send(self) {
        drop(self.retired);
        for (waiter, turn) in self.turns {
            let _ = waiter.sender.send(turn);
        }
    }
}

/// The position of the first waiter for a stream; removes abandoned waiters at the front of the queue.
fn first_for_a_stream<B>(waiters: &mut VecDeque<Waiter<B>>) -> Option<usize> {
    while waiters.front().is_some_and(|waiter| waiter.sender.is_closed()) {
        waiters.pop_front();
    }
    waiters.iter().position(|waiter| waiter.waits_for != WaitsFor::Http1 && !waiter.sender.is_closed())
}

impl<C: Connect, B: SendBody> Pool<C, B>
where
    C::Future: 'static,
{
    /// A stream on a shared connection, or what to wait for; `None` if HTTP/1.1 is spoken.
    pub(super) fn next_h2(&self, now: Instant, needs: Needs, may_dial: bool) -> Option<NextAction<B>> {
        let shared = &self.shared;
        if needs.upgrade || !shared.seems_h2.load(Relaxed) {
            return None;
        }
        let mut state = shared.lock();
        let expired = shared.expired(&mut state, now);
        let may_dial = may_dial && !state.h2.is_draining(now);
        let most = if may_dial { shared.streams(&state, now) } else { shared.limits.streams };
        if let Some(stream) = state.h2.share(shared, most).or_else(|| state.h2.share_or_wait(shared, most)) {
            drop(state);
            drop(expired);
            return Some(NextAction::Lease(Checkout::H2(stream)));
        }
        let expected = state.h2.expected(now);
        let served = state.is_served_by(expected);
        let (mut dial, mut room) = (None, None);
        if may_dial && !served {
            match shared.try_take_slot(&mut state) {
                Some(place) => dial = Some(SharedDial::new(self, &mut state, place, now)),
                // their slots come back through the queue
                None => room = Some((state.h2.take_stuck_dial(now), state.idle.pop_front())),
            }
        }
        let dialing = served || dial.is_some();
        let turn = state.queue(if dialing { WaitsFor::Dial } else { WaitsFor::Any });
        drop(state);
        drop((expired, room));
        if let Some(dial) = dial {
            dial.spawn();
        }
        Some(NextAction::Wait(turn, dialing))
    }

    /// Adds a connection that turned out to speak HTTP/2 and opens a stream on it, if the peer accepts any.
    pub(super) fn insert(&self, opened: NewConnection<B>) -> Option<Checkout<B>> {
        self.shared.add(opened, true).map(Checkout::H2)
    }
}
