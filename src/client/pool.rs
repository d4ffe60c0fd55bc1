//! The connection pool of one upstream.
//!
//! HTTP/1.1: the most recently used connection is taken first and checked then; beyond the cap, requests queue. HTTP/2:
//! requests share connections up to the number of streams that both sides allow, and dials are shared too. The idle timeout and
//! the maximum age apply to both. A connection is closed through its
//! [`ConnectionStats`](crate::classify::ConnectionStats), so that its socket is closed with it.

#[cfg(feature = "http2")]
mod connections;
mod h1;
#[cfg(feature = "http2")]
mod h2;
#[cfg(feature = "http2")]
mod lifetime;
mod reaper;
#[cfg(feature = "http2")]
mod shared_dial;
#[cfg(feature = "http2")]
mod streams;

use std::collections::VecDeque;
use std::future::Future;
use std::pin::pin;
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

use super::progress::publishing;
#[cfg(feature = "rustls")]
use super::tls::http1_only;
use super::{BoxError, Connector, CountedIo, HttpVersion};
use crate::alignment::KeepAliveEstimator;
use crate::body::TrackedUpload;
use crate::cause::{BadGatewayCause, Detail, Evidence, Failure, Phase};

pub(super) use self::h1::H1;
#[cfg(feature = "http2")]
pub(super) use self::h2::{ENHANCE_YOUR_CALM, H2};

/// The limits of the pool.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Connections to one upstream.
    pub(super) connections: usize,
    /// Streams on one HTTP/2 connection.
    pub(super) streams: u32,
    /// How long an idle connection is kept.
    pub(super) idle: Duration,
    /// How long a request waits for a connection.
    pub(super) queue: Duration,
    /// The age at which a connection accepts no further request.
    pub(super) max_age: Duration,
    /// Bytes of a stream's response that may wait for the client.
    pub(super) stream_window: u32,
    /// Interval and timeout of HTTP/2 PINGs.
    pub(super) keep_alive: Option<(Duration, Duration)>,
}

impl Limits {
    /// When a connection opened `now` is too old for further requests; `None` if that is out of the clock's range.
    ///
    /// Ages differ by 10 % either way, so that connections opened together do not end together.
    fn retire_at(&self, now: Instant) -> Option<Instant> {
        let tenth = self.max_age / 10;
        let jitter = tenth.mul_f64(2.0 * fastrand::f64());
        now.checked_add(self.max_age.saturating_sub(tenth).checked_add(jitter)?)
    }
}

/// The requirements of a request for its connection.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Needs {
    /// A new connection, for a request returned by a stale one.
    pub(super) fresh: bool,
    /// HTTP/1.1, for a request that changes the protocol (RFC 9110 section 7.8).
    pub(super) upgrade: bool,
}

/// A connection to send one request on.
pub(super) enum Checkout<B> {
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
    http: HttpVersion,
    connector: Connector<C>,
}

pub(super) struct Shared<B> {
    limits: Limits,
    /// Estimates the age at which idle connections are closed: the limit, or less as learned from the upstream.
    keep_alive: KeepAliveEstimator,
    /// The last connection spoke HTTP/2, so that the next dial is worth sharing.
    seems_h2: AtomicBool,
    /// HTTP/2 connections count their idle time from it.
    #[cfg(feature = "http2")]
    start: Instant,
    state: Mutex<State<B>>,
}

struct State<B> {
    /// Open connections and those being opened.
    open: usize,
    /// Idle connections, each with the time it was returned.
    idle: VecDeque<(H1<B>, Instant)>,
    waiters: VecDeque<Waiter<B>>,
    /// The length of the queue at which abandoned waiters are removed.
    clear_at: usize,
    reaping: bool,
    #[cfg(feature = "http2")]
    h2: connections::Connections<B>,
}

/// The minimum length of the queue at which abandoned waiters are removed.
const MIN_CLEAR: usize = 1024;

/// A request in the queue.
struct Waiter<B> {
    sender: oneshot::Sender<Handoff<B>>,
    #[cfg_attr(not(feature = "http2"), expect(dead_code, reason = "without HTTP/2 all wait for the same"))]
    waits_for: WaitsFor,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WaitsFor {
    /// An HTTP/1.1 connection, or a slot for one.
    Http1,
    /// Any of these, whichever is available first.
    Any,
    /// Any of these, usually a stream of the shared dial in progress.
    #[cfg(feature = "http2")]
    Dial,
}

impl<B> State<B> {
    /// Queues a request; abandoned waiters are removed from time to time.
    fn queue(&mut self, waits_for: WaitsFor) -> oneshot::Receiver<Handoff<B>> {
        if self.waiters.len() >= self.clear_at {
            self.waiters.retain(|waiter| !waiter.sender.is_closed());
            // twice the rest, so that checking all of them stays rare
            self.clear_at = MIN_CLEAR.max(2 * self.waiters.len());
        }
        let (turn, receiver) = oneshot::channel();
        self.waiters.push_back(Waiter { sender: turn, waits_for });
        receiver
    }

    /// Removes the first waiter that may use a slot; those that wait for a dial have one.
    fn next_waiter_for_slot(&mut self) -> Option<Waiter<B>> {
        #[cfg(feature = "http2")]
        let at = self.waiters.iter().position(|waiter| waiter.waits_for != WaitsFor::Dial)?;
        #[cfg(not(feature = "http2"))]
        let at = 0;
        self.waiters.remove(at)
    }
}

/// The message to a waiting request.
enum Handoff<B> {
    Connection(H1<B>),
    Slot(Slot<B>),
    #[cfg(feature = "http2")]
    Stream(H2<B>),
    /// The shared dial has no stream for this request, which may dial itself.
    #[cfg(feature = "http2")]
    Retry,
    /// The shared dial failed.
    #[cfg(feature = "http2")]
    DialFailed(Failure),
    /// The shared dial's task ended without a result: it panicked, or its runtime has ended.
    #[cfg(feature = "http2")]
    DialLost,
}

/// A connection's slot under the cap; released on drop.
pub(super) struct Slot<B>(Weak<Shared<B>>);

impl<B> Drop for Slot<B> {
    fn drop(&mut self) {
        if let Some(shared) = self.0.upgrade() {
            shared.release_slot();
        }
    }
}

impl<B> Shared<B> {
    fn lock(&self) -> MutexGuard<'_, State<B>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn release_slot(self: &Arc<Self>) {
        let mut state = self.lock();
        state.open -= 1;
        while let Some(waiter) = state.next_waiter_for_slot() {
            if waiter.sender.is_closed() {
                continue;
            }
            state.open += 1;
            drop(state);
            // an abandoned waiter drops the slot, which calls this again
            let _ = waiter.sender.send(Handoff::Slot(Slot(Arc::downgrade(self))));
            return;
        }
    }

    /// Takes a slot, if one is free.
    fn try_take_slot(self: &Arc<Self>, state: &mut State<B>) -> Option<Slot<B>> {
        if state.open >= self.limits.connections {
            return None;
        }
        state.open += 1;
        Some(Slot(Arc::downgrade(self)))
    }

    fn idle_limit(&self) -> Duration {
        self.keep_alive.idle_limit()
    }

    /// Removes idle connections that the upstream has closed, and learns from their age.
    fn forget_closed(&self, now: Instant) {
        let mut state = self.lock();
        if !state.idle.iter().any(|(connection, _)| connection.is_closed()) {
            return;
        }
        let (closed, open) = state.idle.drain(..).partition(|(connection, _)| connection.is_closed());
        state.idle = open;
        drop(state);
        let closed: VecDeque<(H1<B>, Instant)> = closed;
        // the most recent one is the best estimate
        if let Some((_, since)) = closed.back() {
            self.keep_alive.observe_stale(now.saturating_duration_since(*since), now);
        }
    }
}

impl<C, B> Clone for Pool<C, B> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone(), dial: self.dial.clone() }
    }
}

impl<C, B> Pool<C, B> {
    pub(super) fn new(uri: Uri, http: HttpVersion, connector: Connector<C>, limits: Limits) -> Self {
        let state = State {
            open: 0,
            idle: VecDeque::new(),
            waiters: VecDeque::new(),
            clear_at: MIN_CLEAR,
            reaping: false,
            #[cfg(feature = "http2")]
            h2: connections::Connections::new(&limits),
        };
        let start = Instant::now();
        let shared = Shared {
            limits,
            keep_alive: KeepAliveEstimator::new(limits.idle, start),
            seems_h2: AtomicBool::new(http.is_h2()),
            #[cfg(feature = "http2")]
            start,
            state: Mutex::new(state),
        };
        Self { shared: Arc::new(shared), dial: Arc::new(Dial { uri, http, connector }) }
    }
}

/// A body that can be sent upstream; implemented for all suitable types.
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

/// The next action of a request to get a connection.
enum NextAction<B> {
    #[cfg(feature = "http2")]
    Lease(Checkout<B>),
    Open(Slot<B>),
    /// Wait, for a shared dial (`true`) or for a returned connection.
    Wait(oneshot::Receiver<Handoff<B>>, bool),
    /// A connection was returned, or closed to free a slot.
    LookAgain,
}

/// A shared dial is waited for this long; then the next request dials concurrently.
///
/// More than the limits of [`TcpConnector`](super::TcpConnector) and [`TlsConnector`](super::TlsConnector) together, so
/// that only a connector without limits takes longer.
const DIAL_WAIT: Duration = Duration::from_secs(5);
/// How many shared dials may end without a result before the request that waits for them fails.
#[cfg(feature = "http2")]
const MAX_LOST_DIALS: u32 = 2;

impl<C: Connect, B: SendBody> Pool<C, B>
where
    C::Future: 'static,
{
    /// Returns a connection: an idle one, a new one, or the next one that is returned to the pool.
    pub(super) async fn lease(&self, now: Instant, needs: Needs) -> Result<Checkout<B>, Failure> {
        if needs.upgrade && self.dial.http.is_h2() {
            return Err(upgrade_failed("the upstream is spoken to in HTTP/2 alone"));
        }
        let mut look_at_idle = !needs.fresh;
        // the total time in the queue is limited, however often the request is woken
        let mut queued_since = None;
        #[cfg(feature = "http2")]
        let (mut now, mut may_dial, mut lost_dials) = (now, true, 0);
        loop {
            #[cfg(feature = "http2")]
            let by_h2 = self.next_h2(now, needs, may_dial);
            #[cfg(feature = "http2")]
            let shares = by_h2.is_some();
            #[cfg(not(feature = "http2"))]
            let shares = false;
            if !shares && std::mem::take(&mut look_at_idle) {
                if let Some(connection) = self.idle(now).await {
                    return Ok(Checkout::H1(connection));
                }
            }
            #[cfg(feature = "http2")]
            let next = by_h2.unwrap_or_else(|| self.next_h1(needs));
            #[cfg(not(feature = "http2"))]
            let next = self.next_h1(needs);
            let (turn, dialing) = match next {
                #[cfg(feature = "http2")]
                NextAction::Lease(lease) => return Ok(lease),
                NextAction::Open(place) => match self.open(place, needs.upgrade).await? {
                    Some(lease) => return Ok(lease),
                    None => continue,
                },
                NextAction::Wait(turn, dialing) => (turn, dialing),
                NextAction::LookAgain => {
                    look_at_idle = !needs.fresh;
                    continue;
                }
            };
            let waited = if dialing {
                publishing(Phase::Connect, None, timeout(DIAL_WAIT, turn)).await
            } else {
                let since: &mut Instant = queued_since.get_or_insert_with(Instant::now);
                let left = self.shared.limits.queue.saturating_sub(since.elapsed());
                publishing(Phase::Pool, None, timeout(left, turn)).await
            };
            match waited {
                Ok(Ok(Handoff::Connection(mut connection))) => {
                    if connection.still_open().await {
                        return Ok(Checkout::H1(connection));
                    }
                }
                #[cfg(feature = "http2")]
                Ok(Ok(Handoff::Slot(place))) if shares => self.dial_shared(place),
                Ok(Ok(Handoff::Slot(place))) => {
                    if let Some(lease) = self.open(place, needs.upgrade).await? {
                        return Ok(lease);
                    }
                }
                #[cfg(feature = "http2")]
                Ok(Ok(Handoff::Stream(stream))) => return Ok(Checkout::H2(stream)),
                #[cfg(feature = "http2")]
                Ok(Ok(Handoff::Retry)) => {}
                #[cfg(feature = "http2")]
                Ok(Ok(Handoff::DialFailed(failure))) => {
                    // a stream of an existing connection may still become free
                    may_dial = false;
                    if !self.shared.shares_any() {
                        return Err(failure);
                    }
                }
                #[cfg(feature = "http2")]
                Ok(Ok(Handoff::DialLost)) => {
                    lost_dials += 1;
                    if lost_dials > MAX_LOST_DIALS {
                        return Err(Failure::new(BadGatewayCause::GatewayInternal));
                    }
                }
                Ok(Err(_)) => return Err(Failure::new(BadGatewayCause::GatewayInternal)),
                Err(_) if dialing => {}
                Err(_) => {
                    let failure = Failure::builder(BadGatewayCause::QueueTimeout);
                    return Err(failure.unsent(Evidence::LocalRefusal).build());
                }
            }
            #[cfg(feature = "http2")]
            {
                now = Instant::now();
            }
        }
    }

    /// A slot under the cap, or a returned connection.
    fn next_h1(&self, needs: Needs) -> NextAction<B> {
        let mut state = self.shared.lock();
        if let Some(place) = self.shared.try_take_slot(&mut state) {
            return NextAction::Open(place);
        }
        #[cfg(feature = "http2")]
        if let Some(unused) = state.h2.take_unused() {
            drop(state);
            drop(unused);
            return NextAction::LookAgain;
        }
        if !state.idle.is_empty() {
            // returned in the meantime, or not usable for this request
            let useless = needs.fresh.then(|| state.idle.pop_front());
            drop(state);
            drop(useless);
            return NextAction::LookAgain;
        }
        let waits_for = if needs.upgrade { WaitsFor::Http1 } else { WaitsFor::Any };
        NextAction::Wait(state.queue(waits_for), false)
    }

    /// The most recently used idle connection, if it can take a request immediately.
    pub(super) fn take_idle(&self, now: Instant) -> Option<H1<B>> {
        let mut state = self.shared.lock();
        let (connection, since) = state.idle.back()?;
        let age = now.saturating_duration_since(*since);
        if !connection.is_ready() || age >= self.shared.idle_limit() || connection.is_retired(now) {
            return None;
        }
        let (mut connection, _) = state.idle.pop_back()?;
        connection.idle_for = Some(age);
        Some(connection)
    }

    /// The most recently used idle connection that is still alive.
    async fn idle(&self, now: Instant) -> Option<H1<B>> {
        loop {
            let (mut connection, since) = {
                let mut state = self.shared.lock();
                let (connection, since) = state.idle.pop_back()?;
                if now.saturating_duration_since(since) >= self.shared.idle_limit() {
                    // the others have been idle for longer
                    let old = std::mem::take(&mut state.idle);
                    drop(state);
                    drop((connection, old));
                    return None;
                }
                (connection, since)
            };
            if connection.is_retired(now) {
                continue;
            }
            let age = now.saturating_duration_since(since);
            if connection.still_open().await {
                connection.idle_for = Some(age);
                return Some(connection);
            }
            self.shared.keep_alive.observe_stale(age, now);
        }
    }

    /// Opens a connection; `None` if its peer accepts no stream now, so that it is left in the pool.
    async fn open(&self, place: Slot<B>, upgrade: bool) -> Result<Option<Checkout<B>>, Failure> {
        let io = self.connect(upgrade).await?;
        #[cfg(feature = "http2")]
        if self.dial.http.is_h2() || io.connected().is_negotiated_h2() {
            if upgrade {
                return Err(upgrade_failed("the upstream's connector negotiates HTTP/2 alone"));
            }
            self.shared.seems_h2.store(true, Relaxed);
            let opened = connections::Connections::shake_hands(io, &mut Some(place), &self.shared).await?;
            return Ok(self.insert(opened));
        }
        H1::shake_hands(io, place, &self.shared).await.map(|h1| Some(Checkout::H1(h1)))
    }

    /// Opens a connection for the next request.
    pub(super) async fn warm_up(&self) -> Result<(), Failure> {
        let needs = Needs { fresh: true, upgrade: false };
        match self.lease(Instant::now(), needs).await? {
            Checkout::H1(connection) => connection.put_idle(Instant::now()),
            // it was opened for a stream that is not used
            #[cfg(feature = "http2")]
            Checkout::H2(stream) => drop(stream),
        }
        Ok(())
    }

    /// Whether the upstream accepts a connection now; the test connection is closed immediately.
    pub(super) async fn connects(&self) -> bool {
        self.connect(false).await.is_ok()
    }

    async fn connect(&self, upgrade: bool) -> Result<CountedIo<C::Io>, Failure> {
        let mut connector = self.dial.connector.clone();
        std::future::poll_fn(|cx| connector.poll_ready(cx)).await?;
        if !upgrade {
            return connector.call(self.dial.uri.clone()).await;
        }
        let mut dial = pin!(http1_only(|| connector.call(self.dial.uri.clone())));
        let connected = std::future::poll_fn(|cx| http1_only(|| dial.as_mut().poll(cx))).await;
        connected.map_err(|failure| match failure.detail() {
            // the server accepts none of the offered protocols (RFC 7301 section 3.2)
            Some(Detail::TlsAlert(NO_APPLICATION_PROTOCOL)) => upgrade_failed("the upstream does not speak HTTP/1.1"),
            _ => failure,
        })
    }

    /// Whether the upstream is known to speak HTTP/2.
    pub(super) fn seems_h2(&self) -> bool {
        self.shared.seems_h2.load(std::sync::atomic::Ordering::Relaxed)
    }
}

const NO_APPLICATION_PROTOCOL: u8 = 120;

/// The failure of an upgrade that HTTP/2 cannot carry; nothing was sent.
fn upgrade_failed(detail: &'static str) -> Failure {
    let failure = Failure::builder(BadGatewayCause::UpgradeFailed).detail(Detail::Text(detail));
    failure.unsent(Evidence::LocalRefusal).build()
}

/// Without this crate's TLS there is no ALPN to restrict.
#[cfg(not(feature = "rustls"))]
fn http1_only<T>(dial: impl FnOnce() -> T) -> T {
    dial()
}
