//! The one service behind the layers: parts that admit and settle, one timer, one body under watch.
//!
//! A layer of this crate is an [`Engine`] with its own [`Part`] and [`Limits`]; the whole stack is the same
//! engine with more of them, fused into one future. Most users never name anything here: they add a
//! [`TimeoutLayer`](crate::timeout::TimeoutLayer) and see this as its service type.
//!
//! The exchange ends with its body: a part is settled when the response body has ended, failed, or was
//! found empty at the head. A future or body that is dropped abandons it. The inner future is polled first, and
//! the timer is made only when that is pending, so that an answer that is there beats the clock.
//!
//! Backpressure is passed on: the time that a caller waits in `poll_ready` is not under any limit here, as
//! the call has not begun.

// calls that are not inlined move requests and answers about: measured, 180 of 350 instructions a call
#![allow(clippy::inline_always)]

mod border;
mod call;
mod detachable;
mod entry;
mod future;
mod handle;
mod keyed;
mod limits;
mod part;
mod sight;
mod sweep;
mod tracked;
mod tunnel;
mod upgrade;

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response, Version};
use http_body::Body;
use tokio::time::Instant;
use tower_service::Service;

pub(crate) use self::detachable::{Detach, Detachable};
use self::future::Run;
pub(crate) use self::handle::{Handle, Held};
pub(crate) use self::keyed::{Key, Shares};
pub(crate) use self::part::Shown;
#[cfg(feature = "client")]
pub(crate) use self::sight::sign;
pub(crate) use self::sight::{ask, leave, leaving, tell};
pub(crate) use self::sweep::{CLIENT_IDLE, Expired, Sweep, Sweepable, Swept};
pub(crate) use self::upgrade::asks_for_upgrade;
use crate::body::Accepts;
use crate::cause::ClientCalls;

#[doc(hidden)]
pub use self::border::Seen;
pub use self::border::{Border, Untouched, Watched};
pub use self::call::{Call, Kind};
pub use self::future::EngineFuture;
pub use self::keyed::KeyedEngine;
pub use self::limits::{BodyLimits, Finding, Head, Limits};
pub use self::part::{Abandon, Outcome, Part, Refusal};
pub use self::sight::{Sight, UploadSight};
pub use self::tracked::Tracked;
pub use self::tunnel::{Tunnel, TunnelEnd};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What all clones of an engine share: made by the layer, never by `Layer::layer`.
#[derive(Clone, Debug)]
pub(crate) struct Shared<P, L> {
    pub(crate) parts: P,
    pub(crate) limits: L,
    /// Ends the bodies that nobody reads.
    pub(crate) sweep: Arc<Sweep>,
}

impl<P, L> Shared<P, L> {
    pub(crate) fn new(parts: P, limits: L) -> Self {
        Self { parts, limits, sweep: Arc::default() }
    }
}

/// A service under parts and limits; see the [module](self).
pub struct Engine<S, P, L, W = Untouched> {
    inner: S,
    shared: Handle<Shared<P, L>>,
    /// Made in place of asking the inner service, which must then not be called.
    refusal: Option<(Instant, Refusal)>,
    border: PhantomData<fn() -> W>,
}

impl<S, P, L, W> Engine<S, P, L, W> {
    pub(crate) fn new(inner: S, shared: Arc<Shared<P, L>>) -> Self {
        Self { inner, shared: Handle::new(shared), refusal: None, border: PhantomData }
    }

    /// The service inside.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }

    /// The service inside, to be changed.
    pub fn get_mut(&mut self) -> &mut S {
        &mut self.inner
    }
}

impl<S: Clone, P, L, W> Clone for Engine<S, P, L, W> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), shared: self.shared.clone(), refusal: None, border: PhantomData }
    }
}

impl<S: fmt::Debug, P: fmt::Debug, L: fmt::Debug, W> fmt::Debug for Engine<S, P, L, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("inner", &self.inner).field("shared", &self.shared).finish_non_exhaustive()
    }
}

/// How an exchange finds its parts and limits; the stack's are among other things that its calls share.
pub(crate) trait Keep: Clone {
    type Parts: Part;
    type Limits: Limits;

    fn shared(&self) -> &Shared<Self::Parts, Self::Limits>;
}

impl<P: Part, L: Limits> Keep for Held<Shared<P, L>> {
    type Parts = P;
    type Limits = L;

    #[inline(always)]
    fn shared(&self) -> &Shared<P, L> {
        self
    }
}

pub(crate) type WatchOf<K> = <<K as Keep>::Limits as Limits>::Watch;
type TicketOf<K> = <<K as Keep>::Parts as Part>::Ticket;

/// An exchange that is under way.
///
/// It stays where its future is until its body needs it: moving things about is most of what a layer costs.
pub(crate) struct Open<K: Keep> {
    pub(crate) call: Call,
    /// What has to be settled or abandoned, once.
    ticket: Option<TicketOf<K>>,
    pub(crate) shared: K,
    upload: Seen,
}

impl<K: Keep> Open<K> {
    /// A call that nobody has let in yet.
    #[inline(always)]
    pub(crate) fn new(shared: K, call: Call) -> Self {
        Self { call, ticket: None, shared, upload: Seen::default() }
    }

    /// Asks the parts to let it in.
    #[inline(always)]
    fn admit(&mut self) -> Result<(), Refusal> {
        self.ticket = Some(self.shared.shared().parts.admit(&self.call)?);
        Ok(())
    }

    /// Hands a request's body over the border.
    #[inline(always)]
    fn pass<W: Border<B>, B>(&mut self, request: Request<B>) -> Request<W::Body> {
        W::pass(request, self.call.now, &mut self.upload)
    }

    /// Lets a call in, or not.
    #[inline(always)]
    fn begin<B>(shared: K, request: &mut Request<B>) -> (Self, WatchOf<K>, Option<Refusal>) {
        let mut call = Call::new(Instant::now());
        call.flow_controlled = request.version() >= Version::HTTP_2;
        let limits = &shared.shared().limits;
        let watch = limits.begin(&mut call, request);
        let refusal = limits.refuse(&call);
        let mut open = Self::new(shared, call);
        let refusal = refusal.or_else(|| open.admit().err());
        (open, watch, refusal)
    }

    #[inline(always)]
    pub(crate) fn settle(&mut self, outcome: &Outcome) {
        if let Some(ticket) = self.ticket.take() {
            self.shared.shared().parts.settle(ticket, &self.call, outcome);
        }
    }

    #[cold]
    #[inline(never)]
    fn abandon(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            self.shared.shared().parts.abandon(ticket, &self.call, leaving());
        }
    }
}

impl<P: Part, L: Limits> Open<Held<Shared<P, L>>> {
    /// Lets a call in and makes it, or not.
    #[inline(always)]
    fn start<W: Border<B>, B, F>(
        shared: Held<Shared<P, L>>,
        mut request: Request<B>,
        call: impl FnOnce(Request<W::Body>) -> F,
    ) -> EngineFuture<F, P, L> {
        let (mut open, watch, refusal) = Open::begin(shared, &mut request);
        if let Some(refusal) = refusal {
            return EngineFuture::refused(refusal, open, watch);
        }
        let calls = ClientCalls::begin();
        let call = call(open.pass::<W, B>(request));
        // only who looks at what its call is doing has to know whose word that is
        let calls = if L::LOOKS { calls.end() } else { calls };
        EngineFuture::new(Run::Call { call }, open, watch, calls)
    }
}

/// Whatever ends it, a panic of the inner service too, frees what it held.
impl<K: Keep> Drop for Open<K> {
    #[inline]
    fn drop(&mut self) {
        if self.ticket.is_some() {
            self.abandon();
        }
    }
}

impl<S, P, L, W, ReqBody, ResBody, E> Service<Request<ReqBody>> for Engine<S, P, L, W>
where
    W: Border<ReqBody>,
    S: Accepts<W::Body, Body = ResBody, Fault = E>,
    P: Part,
    L: Limits,
    E: 'static,
    ResBody: Body<Data = Bytes>,
    ResBody::Error: Into<BoxError>,
{
    type Response = Response<Tracked<ResBody, P, L>>;
    type Error = S::Error;
    type Future = EngineFuture<S::Future, P, L>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        if P::REFUSES {
            self.refusal = self.shared.parts.refuses();
            if self.refusal.is_some() {
                return Poll::Ready(Ok(()));
            }
        }
        self.inner.poll_ready(cx)
    }

    #[inline]
    fn call(&mut self, mut request: Request<ReqBody>) -> Self::Future {
        if P::REFUSES {
            if let Some(made) = self.refusal.take() {
                return refused(self.shared.hold(), &mut request, made);
            }
        }
        Open::start::<W, _, _>(self.shared.hold(), request, |request| self.inner.call(request))
    }
}

/// The inner service was not asked whether it is ready: whatever has changed since then, it is not called.
#[cold]
fn refused<F, P: Part, L: Limits, B>(
    shared: Held<Shared<P, L>>,
    request: &mut Request<B>,
    (now, refusal): (Instant, Refusal),
) -> EngineFuture<F, P, L> {
    let mut call = Call::new(now);
    let watch = shared.limits.begin(&mut call, request);
    shared.parts.refused(&refusal);
    EngineFuture::refused(refusal, Open::new(shared, call), watch)
}

/// The same without `&mut`, where the inner service is hyper's: a server calls it without a clone.
impl<S, P, L, W, ReqBody, ResBody> hyper::service::Service<Request<ReqBody>> for Engine<S, P, L, W>
where
    S: hyper::service::Service<Request<W::Body>, Response = Response<ResBody>>,
    P: Part,
    L: Limits,
    W: Border<ReqBody>,
    S::Error: 'static,
    ResBody: Body<Data = Bytes>,
    ResBody::Error: Into<BoxError>,
{
    type Response = Response<Tracked<ResBody, P, L>>;
    type Error = S::Error;
    type Future = EngineFuture<S::Future, P, L>;

    #[inline]
    fn call(&self, request: Request<ReqBody>) -> Self::Future {
        Open::start::<W, _, _>(self.shared.hold_own(), request, |request| self.inner.call(request))
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::future::Future;
    use std::pin::pin;
    use std::sync::Mutex;
    use std::time::Duration;

    use http::StatusCode;
    use http_body_util::{BodyExt, Empty, Full};
    use tower::{ServiceExt, service_fn};

    use super::*;
    use crate::cause::{BadGatewayCause, Failure};
    use crate::timeout::{TimeoutLayer, Timeouts};

    /// What a part was told, in order.
    type Log = Arc<Mutex<Vec<String>>>;

    /// Writes down what it is told; lets nothing pass if it is to refuse.
    struct Witness(&'static str, Log, Option<BadGatewayCause>);

    impl Witness {
        fn say(&self, what: &str) {
            self.1.lock().unwrap().push(format!("{} {what}", self.0));
        }
    }

    impl Part for Witness {
        type Ticket = &'static str;

        fn admit(&self, _: &Call) -> Result<&'static str, Refusal> {
            match self.2 {
                Some(cause) => Err(Refusal::new(Failure::new(cause)).retry_after(Duration::from_millis(1500))),
                None => Ok(self.0),
            }
        }

        fn answered(&self, ticket: &mut &'static str, _: &Call, outcome: &Outcome) {
            assert_eq!(*ticket, self.0);
            self.say(&format!("answered {}", outcome.status().unwrap().as_u16()));
        }

        fn settle(&self, ticket: &'static str, call: &Call, outcome: &Outcome) {
            assert_eq!(ticket, self.0);
            assert!(outcome.now() >= call.now);
            self.say(&format!("settled {:?} {:?}", outcome.status().map(|status| status.as_u16()), outcome.cause()));
        }

        fn abandon(&self, ticket: &'static str, _: &Call, why: Abandon) {
            assert_eq!(ticket, self.0);
            self.say(&format!("abandoned {why:?}"));
        }
    }

    fn engine<S, L: Limits>(inner: S, limits: L) -> (Engine<S, (Witness, Witness), L>, Log) {
        let log = Log::default();
        let parts = (Witness("outer", log.clone(), None), Witness("inner", log.clone(), None));
        (Engine::new(inner, Arc::new(Shared::new(parts, limits))), log)
    }

    fn told(log: &Log) -> Vec<String> {
        std::mem::take(&mut log.lock().unwrap())
    }

    fn answering<B: Clone>(
        body: B,
    ) -> impl Service<Request<()>, Response = Response<B>, Error = Infallible, Future: Future> + Clone {
        service_fn(move |_: Request<()>| std::future::ready(Ok(Response::new(body.clone()))))
    }

    #[tokio::test]
    async fn an_answer_without_a_body_settles_at_its_head_inner_parts_first() {
        let (engine, log) = engine(answering(Empty::<Bytes>::new()), ());
        let answer = engine.oneshot(Request::new(())).await.unwrap();
        let settled = [
            "inner answered 200",
            "outer answered 200",
            "inner settled Some(200) None",
            "outer settled Some(200) None",
        ];
        assert_eq!(told(&log), settled);
        drop(answer);
        assert_eq!(told(&log), [""; 0], "once is enough");
    }

    #[tokio::test]
    async fn an_answer_with_a_body_settles_at_its_last_frame() {
        let (engine, log) = engine(answering(Full::<Bytes>::from("body")), ());
        let mut answer = engine.oneshot(Request::new(())).await.unwrap();
        assert_eq!(told(&log), ["inner answered 200", "outer answered 200"]);
        assert!(answer.frame().await.unwrap().is_ok());
        assert_eq!(told(&log), ["inner settled Some(200) None", "outer settled Some(200) None"]);
        drop(answer);
        assert_eq!(told(&log), [""; 0]);
    }

    #[tokio::test]
    async fn a_body_that_is_dropped_is_abandoned() {
        let (engine, log) = engine(answering(Full::<Bytes>::from("body")), ());
        let answer = engine.oneshot(Request::new(())).await.unwrap();
        told(&log);
        drop(answer);
        assert_eq!(told(&log), ["inner abandoned Left", "outer abandoned Left"]);
    }

    #[tokio::test]
    async fn an_error_settles_and_stays_its_own() {
        let fails = service_fn(|_: Request<()>| async { Err::<Response<Empty<Bytes>>, _>("its own") });
        let (engine, log) = engine(fails, ());
        assert_eq!(engine.oneshot(Request::new(())).await.unwrap_err(), "its own");
        assert_eq!(told(&log), ["inner settled None None", "outer settled None None"]);
    }

    #[tokio::test]
    async fn an_error_that_is_a_record_tells_its_cause() {
        let fails = service_fn(|_: Request<()>| async {
            Err::<Response<Empty<Bytes>>, _>(Failure::new(BadGatewayCause::ConnectionRefused))
        });
        let (engine, log) = engine(fails, ());
        assert_eq!(engine.oneshot(Request::new(())).await.unwrap_err().cause(), BadGatewayCause::ConnectionRefused);
        let settled = "settled Some(502) Some(connection_refused)";
        assert_eq!(told(&log), [format!("inner {settled}"), format!("outer {settled}")]);
    }

    #[tokio::test]
    async fn what_an_inner_part_refuses_its_outer_one_abandons() {
        let log = Log::default();
        let inner = Witness("inner", log.clone(), Some(BadGatewayCause::GatewayOverload));
        let shared = Shared::new((Witness("outer", log.clone(), None), inner), ());
        let never = service_fn(|_: Request<()>| async {
            panic!("it was refused") as Result<Response<Empty<Bytes>>, Infallible>
        });
        let engine: Engine<_, _, _> = Engine::new(never, Arc::new(shared));
        let answer = engine.oneshot(Request::new(())).await.unwrap();
        assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(answer.headers()["retry-after"], "2", "whole seconds, rounded up");
        assert_eq!(BadGatewayCause::of(&answer), Some(BadGatewayCause::GatewayOverload));
        assert_eq!(told(&log), ["outer abandoned Refused(gateway_overload)"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_part_is_told_which_limit_dropped_it() {
        let stuck = service_fn(|_: Request<()>| std::future::pending::<Result<Response<Empty<Bytes>>, Infallible>>());
        let limits = TimeoutLayer::new(Timeouts::new().head(Duration::from_secs(2)));

        // its own: that is an outcome
        let (own, log) = engine(stuck, limits.limits().clone());
        let answer = own.oneshot(Request::new(())).await.unwrap();
        assert_eq!(answer.status(), StatusCode::GATEWAY_TIMEOUT);
        let outcome = "settled Some(504) Some(first_byte_timeout)";
        assert_eq!(told(&log), [format!("inner {outcome}"), format!("outer {outcome}")]);

        // that of a layer around it
        let (inside, log) = engine(stuck, ());
        let around = tower_layer::Layer::layer(&limits.untouched(), inside);
        assert_eq!(around.oneshot(Request::new(())).await.unwrap().status(), StatusCode::GATEWAY_TIMEOUT);
        let why = "abandoned TimedOut(first_byte_timeout)";
        assert_eq!(told(&log), [format!("inner {why}"), format!("outer {why}")]);

        // the caller's leaving
        let (left, log) = engine(stuck, ());
        {
            let mut call = pin!(left.oneshot(Request::new(())));
            let polled = std::future::poll_fn(|cx| Poll::Ready(call.as_mut().poll(cx))).await;
            assert!(polled.is_pending());
        }
        assert_eq!(told(&log), ["inner abandoned Left", "outer abandoned Left"]);
    }

    #[tokio::test]
    async fn a_service_that_panics_when_called_leaves_nothing_held() {
        let panics = service_fn(|_: Request<()>| -> std::future::Ready<Result<Response<Empty<Bytes>>, Infallible>> {
            panic!("in the call itself")
        });
        let (mut engine, log) = engine(panics, ());
        let call = std::panic::AssertUnwindSafe(|| drop(engine.call(Request::new(()))));
        assert!(std::panic::catch_unwind(call).is_err());
        assert_eq!(told(&log), ["inner abandoned Left", "outer abandoned Left"]);
    }

    #[tokio::test]
    async fn a_cause_that_a_users_service_attached_is_the_outcomes() {
        let names_it = service_fn(|_: Request<()>| async {
            let mut answer = Response::new(Empty::<Bytes>::new());
            *answer.status_mut() = StatusCode::BAD_GATEWAY;
            answer.extensions_mut().insert(BadGatewayCause::NoRoute);
            Ok::<_, Infallible>(answer)
        });
        let (engine, log) = engine(names_it, ());
        engine.oneshot(Request::new(())).await.unwrap();
        assert_eq!(told(&log).last().unwrap(), "outer settled Some(502) Some(no_route)");
    }
}
