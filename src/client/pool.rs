//! One upstream's connections.
//!
//! HTTP/1.1: the last connection given back is the first taken, looked at when it is taken; beyond the
//! cap callers queue. HTTP/2: callers share connections up to a number of streams, and dials are
//! shared too. What ends a connection is told to its [`Stamp`](crate::classify::Stamp), so that its
//! socket goes with it.

mod h1;
#[cfg(feature = "http2")]
mod h2;

use std::collections::VecDeque;
use std::sync::atomic::AtomicBool;
#[cfg(feature = "http2")]
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use http::Uri;
use http_body::Body;
use hyper_util::client::legacy::connect::Connection;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};
use tower_service::Service;

use super::sight::telling;
use super::{BoxError, Connector, Http, Stamped};
use crate::body::Upload;
use crate::cause::{BadGatewayCause, Evidence, Failure, Phase};
use crate::timeout::alignment::KeepAlive;

pub(super) use self::h1::H1;
#[cfg(feature = "http2")]
pub(super) use self::h2::H2;

/// What the pool may hold.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(not(feature = "http2"), allow(dead_code))] // some are of HTTP/2 alone
pub(super) struct Limits {
    /// Connections to one upstream.
    pub(super) connections: usize,
    /// Streams on one HTTP/2 connection.
    pub(super) streams: u32,
    /// How long an idle connection is kept.
    pub(super) idle: Duration,
    /// How long a caller waits for a connection of others.
    pub(super) queue: Duration,
    /// Bytes of a stream's response that may wait for the client.
    pub(super) stream_window: u32,
    /// Interval and timeout of HTTP/2 PINGs.
    pub(super) keep_alive: Option<(Duration, Duration)>,
}

/// A connection to send one request on.
pub(super) enum Lease<B> {
    H1(H1<B>),
    #[cfg(feature = "http2")]
    H2(H2<B>),
}

/// One upstream's connections; cheap to clone.
pub(super) struct Pool<C, B> {
    shared: Arc<Shared<B>>,
    dial: Arc<Dial<C>>,
}

/// How to make a connection.
struct Dial<C> {
    uri: Uri,
    #[cfg_attr(not(feature = "http2"), allow(dead_code))] // without HTTP/2 there is no choice
    http: Http,
    connector: Connector<C>,
}

pub(super) struct Shared<B> {
    limits: Limits,
    /// The age at which idle connections go: the limit, or less as was learnt of the upstream.
    keep_alive: KeepAlive,
    /// The last connection spoke HTTP/2, so that the next dial is worth sharing.
    #[cfg_attr(not(feature = "http2"), allow(dead_code))] // without HTTP/2 there is no choice
    seems_h2: AtomicBool,
    state: Mutex<State<B>>,
}

struct State<B> {
    /// Open connections and those being opened.
    open: usize,
    /// Each with the time it was given back.
    idle: VecDeque<(H1<B>, Instant)>,
    waiters: VecDeque<oneshot::Sender<Turn<B>>>,
    /// The length of the queue at which those that gave up are cleared away.
    clear_at: usize,
    reaping: bool,
    #[cfg(feature = "http2")]
    h2: h2::Connections<B>,
}

/// So many waiters may have given up before anybody looks.
const MIN_CLEAR: usize = 1024;

impl<B> State<B> {
    /// Queues a caller; the queue never holds many more than wait.
    fn queue(&mut self) -> oneshot::Receiver<Turn<B>> {
        if self.waiters.len() >= self.clear_at {
            self.waiters.retain(|waiter| !waiter.is_closed());
            // twice what is left, so that looking at all of them stays rare
            self.clear_at = MIN_CLEAR.max(2 * self.waiters.len());
        }
        let (waiter, turn) = oneshot::channel();
        self.waiters.push_back(waiter);
        turn
    }
}

/// What a caller that waited is given.
enum Turn<B> {
    Connection(H1<B>),
    Place(Place<B>),
}

/// A connection's place under the cap; dropping it makes room.
pub(super) struct Place<B>(Weak<Shared<B>>);

impl<B> Drop for Place<B> {
    fn drop(&mut self) {
        if let Some(shared) = self.0.upgrade() {
            shared.give_place();
        }
    }
}

impl<B> Shared<B> {
    fn lock(&self) -> MutexGuard<'_, State<B>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn give_place(self: &Arc<Self>) {
        let mut state = self.lock();
        state.open -= 1;
        while let Some(waiter) = state.waiters.pop_front() {
            if waiter.is_closed() {
                continue;
            }
            state.open += 1;
            drop(state);
            // a waiter that left meanwhile drops the place, which comes back here
            let _ = waiter.send(Turn::Place(Place(Arc::downgrade(self))));
            return;
        }
    }

    /// Takes a place, if the cap leaves one.
    fn place(self: &Arc<Self>, state: &mut State<B>) -> Option<Place<B>> {
        if state.open >= self.limits.connections {
            return None;
        }
        state.open += 1;
        Some(Place(Arc::downgrade(self)))
    }

    fn idle_limit(&self) -> Duration {
        self.keep_alive.idle_limit()
    }

    /// Lets go of the idle connections that the upstream has closed, and learns from the age they had.
    fn forget_closed(&self, now: Instant) {
        let mut state = self.lock();
        if !state.idle.iter().any(|(connection, _)| connection.is_closed()) {
            return;
        }
        let (closed, open) = state.idle.drain(..).partition(|(connection, _)| connection.is_closed());
        state.idle = open;
        drop(state);
        let closed: VecDeque<(H1<B>, Instant)> = closed;
        // the youngest says the most
        if let Some((_, since)) = closed.back() {
            self.keep_alive.died(now.saturating_duration_since(*since), now);
        }
    }
}

impl<C, B> Clone for Pool<C, B> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone(), dial: self.dial.clone() }
    }
}

impl<C, B> Pool<C, B> {
    pub(super) fn new(uri: Uri, http: Http, connector: Connector<C>, limits: Limits) -> Self {
        let state = State {
            open: 0,
            idle: VecDeque::new(),
            waiters: VecDeque::new(),
            clear_at: MIN_CLEAR,
            reaping: false,
            #[cfg(feature = "http2")]
            h2: h2::Connections::default(),
        };
        let shared = Shared {
            limits,
            keep_alive: KeepAlive::new(limits.idle, Instant::now()),
            seems_h2: AtomicBool::new(http.is_h2()),
            state: Mutex::new(state),
        };
        Self { shared: Arc::new(shared), dial: Arc::new(Dial { uri, http, connector }) }
    }
}

/// A body that can be sent upstream; implemented for all that fit.
pub trait SendBody: Body<Data = Bytes, Error: Into<BoxError>> + Send + Unpin + 'static {}

impl<B: Body<Data = Bytes, Error: Into<BoxError>> + Send + Unpin + 'static> SendBody for B {}

/// A connector whose connections hyper can use.
pub trait Connect:
    Service<Uri, Response = Self::Io, Error: Into<BoxError>, Future: Send> + Clone + Send + Sync + 'static
{
    /// The connection.
    type Io: hyper::rt::Read + hyper::rt::Write + Connection + Unpin + Send + 'static;
}

impl<C, T> Connect for C
where
    C: Service<Uri, Response = T, Error: Into<BoxError>, Future: Send> + Clone + Send + Sync + 'static,
    T: hyper::rt::Read + hyper::rt::Write + Connection + Unpin + Send + 'static,
{
    type Io = T;
}

impl<C: Connect, B: SendBody> Pool<C, B>
where
    C::Future: 'static,
{
    /// A connection: an idle one, a new one, or the next that others give back.
    ///
    /// `fresh` asks for a new one, for a request that a stale one gave back.
    pub(super) async fn lease(&self, now: Instant, fresh: bool) -> Result<Lease<B>, Failure> {
        #[cfg(feature = "http2")]
        if let Some(stream) = self.lease_h2().await? {
            return Ok(stream);
        }
        if !fresh {
            if let Some(connection) = self.idle(now).await {
                return Ok(Lease::H1(connection));
            }
        }
        loop {
            match self.turn().await? {
                Turn::Place(place) => return self.open(place).await,
                Turn::Connection(mut connection) => {
                    if connection.still_open().await {
                        return Ok(Lease::H1(connection));
                    }
                }
            }
        }
    }

    /// A place under the cap, or what others give back.
    async fn turn(&self) -> Result<Turn<B>, Failure> {
        let turn = {
            let mut state = self.shared.lock();
            if let Some(place) = self.shared.place(&mut state) {
                return Ok(Turn::Place(place));
            }
            state.queue()
        };
        match telling(Phase::Pool, None, timeout(self.shared.limits.queue, turn)).await {
            Ok(Ok(turn)) => Ok(turn),
            Ok(Err(_)) => Err(Failure::new(BadGatewayCause::GatewayInternal)),
            Err(_) => {
                let failure = Failure::builder(BadGatewayCause::QueueTimeout);
                Err(failure.unsent(Evidence::LocalRefusal).build())
            }
        }
    }

    /// The youngest idle connection, if it can take a request at once.
    pub(super) fn idle_now(&self, now: Instant) -> Option<H1<B>> {
        let mut state = self.shared.lock();
        let (connection, since) = state.idle.back()?;
        let age = now.saturating_duration_since(*since);
        if !connection.is_ready() || age >= self.shared.idle_limit() {
            return None;
        }
        let (mut connection, _) = state.idle.pop_back()?;
        connection.rested = Some(age);
        Some(connection)
    }

    /// The youngest idle connection that still lives.
    async fn idle(&self, now: Instant) -> Option<H1<B>> {
        loop {
            let (mut connection, since) = {
                let mut state = self.shared.lock();
                let (connection, since) = state.idle.pop_back()?;
                if now.saturating_duration_since(since) >= self.shared.idle_limit() {
                    // the others are older still
                    let old = std::mem::take(&mut state.idle);
                    drop(state);
                    drop((connection, old));
                    return None;
                }
                (connection, since)
            };
            let age = now.saturating_duration_since(since);
            if connection.still_open().await {
                connection.rested = Some(age);
                return Some(connection);
            }
            self.shared.keep_alive.died(age, now);
        }
    }

    async fn open(&self, place: Place<B>) -> Result<Lease<B>, Failure> {
        let io = self.connect().await?;
        #[cfg(feature = "http2")]
        if self.dial.http.is_h2() || io.connected().is_negotiated_h2() {
            self.shared.seems_h2.store(true, Relaxed);
            return Ok(self.adopt(h2::Connections::shake_hands(io, place, &self.shared.limits).await?));
        }
        H1::shake_hands(io, place, &self.shared).await.map(Lease::H1)
    }

    /// Whether the upstream takes a connection now; one that is asked for here is closed at once.
    pub(super) async fn connects(&self) -> bool {
        self.connect().await.is_ok()
    }

    async fn connect(&self) -> Result<Stamped<C::Io>, Failure> {
        let mut connector = self.dial.connector.clone();
        std::future::poll_fn(|cx| connector.poll_ready(cx)).await?;
        connector.call(self.dial.uri.clone()).await
    }
}
