//! HTTP/2 connections that callers share.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Weak};

use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::client::legacy::connect::Connection;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::{Connect, H1, Lease, Limits, Place, Pool, SendBody, Shared, Turn, Upload, telling};
use crate::cause::{BadGatewayCause, Evidence, Failure, Phase};
use crate::classify::{Scene, Stamp};
use crate::client::Stamped;
use crate::engine::{Abandon, leaving};

/// hyper's 16 KB is less than an HTTP/1.1 upstream may send.
const MAX_HEADER_LIST: u32 = 64 << 10;
/// The protocol's smallest and default (RFC 9113 section 6.5.2): larger frames would hold up the other streams.
const MAX_FRAME: u32 = 16 << 10;
/// Bytes of a request body that may wait for the upstream, as of a response body for the client.
const MAX_SEND_BUFFER: usize = 64 << 10;

/// The shared connections of one upstream.
pub(super) struct Connections<B> {
    open: Vec<Entry<B>>,
    /// Callers that wait for the one dial under way.
    dialing: Option<Vec<oneshot::Sender<Result<(), Failure>>>>,
}

impl<B> Default for Connections<B> {
    fn default() -> Self {
        Self { open: Vec::new(), dialing: None }
    }
}

struct Entry<B> {
    sender: SendRequest<Upload<B>>,
    connection: Arc<Shape<B>>,
}

/// What the streams of one connection share.
struct Shape<B> {
    stamp: Stamp,
    streams: AtomicUsize,
    evicted: AtomicBool,
    _place: Place<B>,
}

/// One stream's hold on a shared connection.
pub(crate) struct H2<B> {
    sender: SendRequest<Upload<B>>,
    connection: Arc<Shape<B>>,
    home: Weak<Shared<B>>,
}

impl<B> Drop for H2<B> {
    fn drop(&mut self) {
        // after a time limit it takes no more streams, unless the client itself was late
        let late = Abandon::TimedOut(BadGatewayCause::UploadStalled);
        if !matches!(leaving(), Abandon::Left | Abandon::Outrun) && leaving() != late {
            self.evict();
        }
        let others = self.connection.streams.fetch_sub(1, Relaxed) - 1;
        // nobody new will come: a connection that hangs would stay for ever
        if others == 0 && self.connection.evicted.load(Relaxed) {
            self.connection.stamp.kill();
        }
    }
}

impl<B> H2<B> {
    pub(crate) fn stamp(&self) -> &Stamp {
        &self.connection.stamp
    }

    pub(crate) fn sender(&mut self) -> &mut SendRequest<Upload<B>> {
        &mut self.sender
    }

    /// Takes the connection, and no other, out of the pool. Streams that run may end.
    pub(crate) fn evict(&self) {
        let Some(home) = self.home.upgrade() else { return };
        let mut state = home.lock();
        let at = state.h2.open.iter().position(|entry| Arc::ptr_eq(&entry.connection, &self.connection));
        let gone = at.map(|at| state.h2.open.swap_remove(at));
        drop(state);
        self.connection.evicted.store(true, Relaxed);
        drop(gone);
    }
}

impl<B: SendBody> Connections<B> {
    pub(super) async fn shake_hands<T>(io: Stamped<T>, place: Place<B>, limits: &Limits) -> Result<Opened<B>, Failure>
    where
        T: hyper::rt::Read + hyper::rt::Write + Connection + Unpin + Send + 'static,
    {
        let stamp = io.stamp().clone();
        stamp.multiplexed();
        let (sender, connection) = builder(limits).handshake(io).await.map_err(|error| {
            let scene = Scene::default().wire(stamp.wire()).peer(stamp.peer());
            Failure::seen(error.into(), &scene)
        })?;
        tokio::spawn(async move {
            // its error is told by the requests it failed
            let _ = connection.await;
        });
        Ok(Opened { sender, stamp, place })
    }

    /// A stream on the least busy connection, if that has fewer than `streams`.
    fn share(&self, home: &Arc<Shared<B>>, streams: usize) -> Option<H2<B>> {
        let least = self.open.iter().min_by_key(|entry| entry.connection.streams.load(Relaxed))?;
        if least.connection.streams.load(Relaxed) >= streams {
            return None;
        }
        Some(least.lease(home))
    }

    fn add(&mut self, opened: Opened<B>) {
        let Opened { sender, stamp, place } = opened;
        let shape = Shape { stamp, streams: AtomicUsize::new(0), evicted: AtomicBool::new(false), _place: place };
        self.open.push(Entry { sender, connection: Arc::new(shape) });
    }

    /// Takes out what has closed, for the caller to drop without the lock.
    #[must_use]
    fn closed(&mut self) -> Vec<Entry<B>> {
        let mut closed = Vec::new();
        let mut at = 0;
        while let Some(entry) = self.open.get(at) {
            if entry.sender.is_closed() || entry.connection.stamp.is_killed() {
                closed.push(self.open.swap_remove(at));
            } else {
                at += 1;
            }
        }
        closed
    }
}

/// hyper's client with every setting that bears on memory or fairness, so that none of them changes with its defaults.
fn builder(limits: &Limits) -> http2::Builder<TokioExecutor> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .adaptive_window(false)
        // what a client does not read is kept here, up to the stream's window
        .initial_stream_window_size(limits.stream_window)
        // and never at the cost of the other streams: RFC 9113 section 5.2.2
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

impl<B> Entry<B> {
    fn lease(&self, home: &Arc<Shared<B>>) -> H2<B> {
        self.connection.streams.fetch_add(1, Relaxed);
        H2 { sender: self.sender.clone(), connection: self.connection.clone(), home: Arc::downgrade(home) }
    }
}

/// A connection that no stream uses yet.
pub(super) struct Opened<B> {
    sender: SendRequest<Upload<B>>,
    stamp: Stamp,
    place: Place<B>,
}

/// What a caller has to do for its stream.
enum Next<B> {
    Lease(H2<B>),
    Dialed(oneshot::Receiver<Result<(), Failure>>),
    Room(oneshot::Receiver<Turn<B>>),
}

impl<C: Connect, B: SendBody> Pool<C, B>
where
    C::Future: 'static,
{
    /// A stream on a shared connection; `None` once the upstream turned out to speak HTTP/1.1.
    pub(super) async fn lease_h2(&self) -> Result<Option<Lease<B>>, Failure> {
        while self.shared.seems_h2.load(Relaxed) {
            let queue = self.shared.limits.queue;
            match self.next_h2() {
                Next::Lease(stream) => return Ok(Some(Lease::H2(stream))),
                // the dial has limits of its own
                Next::Dialed(dialed) => {
                    telling(Phase::Connect, None, dialed)
                        .await
                        .map_err(|_| Failure::new(BadGatewayCause::GatewayInternal))??;
                }
                Next::Room(turn) => {
                    // the place or connection goes back at once, and whoever is first takes it
                    if telling(Phase::Pool, None, timeout(queue, turn)).await.is_err() {
                        let failure = Failure::builder(BadGatewayCause::QueueTimeout);
                        return Err(failure.unsent(Evidence::LocalRefusal).build());
                    }
                }
            }
        }
        Ok(None)
    }

    fn next_h2(&self) -> Next<B> {
        let shared = &self.shared;
        let mut state = shared.lock();
        let closed = state.h2.closed();
        let next = if let Some(stream) =
            state.h2.share(shared, usize::try_from(shared.limits.streams).unwrap_or(usize::MAX))
        {
            Next::Lease(stream)
        } else if let Some(waiters) = &mut state.h2.dialing {
            let (waiter, dialed) = oneshot::channel();
            waiters.push(waiter);
            Next::Dialed(dialed)
        } else if let Some(place) = shared.place(&mut state) {
            let (waiter, dialed) = oneshot::channel();
            state.h2.dialing = Some(vec![waiter]);
            tokio::spawn(self.clone().dial_h2(place));
            Next::Dialed(dialed)
        } else if let Some(stream) = state.h2.share(shared, usize::MAX) {
            // h2 itself queues it behind the server's limit
            Next::Lease(stream)
        } else {
            Next::Room(state.queue())
        };
        drop(state);
        drop(closed);
        next
    }

    /// Dials for all who wait; a task of its own, so that no caller's leaving takes it from the others.
    async fn dial_h2(self, place: Place<B>) {
        struct Settle<B>(Arc<Shared<B>>, Option<Result<(), Failure>>);
        impl<B> Drop for Settle<B> {
            fn drop(&mut self) {
                let waiters = self.0.lock().h2.dialing.take();
                for waiter in waiters.into_iter().flatten() {
                    if let Some(outcome) = self.1.clone() {
                        let _ = waiter.send(outcome);
                    }
                }
            }
        }
        let mut settle = Settle(self.shared.clone(), None);
        settle.1 = Some(self.dial_once(place).await);
    }

    async fn dial_once(&self, place: Place<B>) -> Result<(), Failure> {
        let io = self.connect().await?;
        if self.dial.http.is_h2() || io.connected().is_negotiated_h2() {
            let opened = Connections::shake_hands(io, place, &self.shared.limits).await?;
            self.shared.lock().h2.add(opened);
        } else {
            self.shared.seems_h2.store(false, Relaxed);
            H1::shake_hands(io, place, &self.shared).await?.give_back(tokio::time::Instant::now());
        }
        Ok(())
    }

    /// Keeps a connection that turned out to speak HTTP/2 and takes a stream on it.
    pub(super) fn adopt(&self, opened: Opened<B>) -> Lease<B> {
        let mut state = self.shared.lock();
        state.h2.add(opened);
        let entry = state.h2.open.last().expect("it was just added");
        Lease::H2(entry.lease(&self.shared))
    }
}
