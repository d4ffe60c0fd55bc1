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

mod border;
mod call;
mod future;
mod handle;
mod limits;
mod part;
mod sight;
mod tracked;

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use tokio::time::Instant;
use tower_service::Service;

use self::future::Run;
use self::handle::{Handle, Held};
#[cfg(feature = "client")]
pub(crate) use self::sight::tell;
pub(crate) use self::sight::{leave, leaving};

#[doc(hidden)]
pub use self::border::Seen;
pub use self::border::{Border, Untouched, Watched};
pub use self::call::{Call, Kind};
pub use self::future::EngineFuture;
pub use self::limits::{BodyLimits, Finding, Limits};
pub use self::part::{Abandon, Outcome, Part, Refusal};
pub use self::sight::{Sight, UploadSight};
pub use self::tracked::Tracked;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What all clones of an engine share: made by the layer, never by `Layer::layer`.
#[derive(Clone, Debug)]
pub(crate) struct Shared<P, L> {
    pub(crate) parts: P,
    pub(crate) limits: L,
}

/// A service under parts and limits; see the [module](self).
pub struct Engine<S, P, L, W = Untouched> {
    inner: S,
    shared: Handle<Shared<P, L>>,
    border: PhantomData<fn() -> W>,
}

impl<S, P, L, W> Engine<S, P, L, W> {
    pub(crate) fn new(inner: S, shared: Arc<Shared<P, L>>) -> Self {
        Self { inner, shared: Handle::new(shared), border: PhantomData }
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
        Self { inner: self.inner.clone(), shared: self.shared.clone(), border: PhantomData }
    }
}

impl<S: fmt::Debug, P: fmt::Debug, L: fmt::Debug, W> fmt::Debug for Engine<S, P, L, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("inner", &self.inner).field("shared", &self.shared).finish_non_exhaustive()
    }
}

/// An exchange that is under way.
///
/// It stays where its future is until its body needs it: moving things about is most of what a layer costs.
struct Open<P: Part, L> {
    call: Call,
    /// What has to be settled or abandoned, once.
    ticket: Option<P::Ticket>,
    shared: Held<Shared<P, L>>,
    upload: Seen,
}

impl<P: Part, L: Limits> Open<P, L> {
    /// Lets a call in, or not.
    #[inline(always)]
    fn begin<B>(shared: Held<Shared<P, L>>, request: &mut Request<B>) -> (Self, L::Watch, Option<Refusal>) {
        let mut call = Call::new(Instant::now());
        let watch = shared.limits.begin(&mut call, request);
        let (ticket, refusal) = match shared.parts.admit(&call) {
            Ok(ticket) => (Some(ticket), None),
            Err(refusal) => (None, Some(refusal)),
        };
        (Self { call, ticket, shared, upload: Seen::default() }, watch, refusal)
    }
}

impl<P: Part, L> Open<P, L> {
    #[inline(always)]
    fn settle(&mut self, outcome: &Outcome) {
        if let Some(ticket) = self.ticket.take() {
            self.shared.parts.settle(ticket, &self.call, outcome);
        }
    }

    #[inline]
    fn abandon(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            self.shared.parts.abandon(ticket, &self.call, leaving());
        }
    }
}

impl<S, P, L, W, ReqBody, ResBody> Service<Request<ReqBody>> for Engine<S, P, L, W>
where
    S: Service<Request<W::Body>, Response = Response<ResBody>>,
    P: Part,
    L: Limits,
    W: Border<ReqBody>,
    ResBody: Body<Data = Bytes>,
    ResBody::Error: Into<BoxError>,
{
    type Response = Response<Tracked<ResBody, P, L>>;
    type Error = S::Error;
    type Future = EngineFuture<S::Future, P, L>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    #[inline]
    fn call(&mut self, mut request: Request<ReqBody>) -> Self::Future {
        let (mut open, watch, refusal) = Open::begin(self.shared.hold(), &mut request);
        let run = match refusal {
            None => Run::Call { call: self.inner.call(W::pass(request, open.call.now, &mut open.upload)) },
            Some(refusal) => Run::Refused { refusal: Some(refusal) },
        };
        EngineFuture::new(run, open, watch)
    }
}

/// The same without `&mut`, where the inner service is hyper's: a server calls it without a clone.
impl<S, P, L, W, ReqBody, ResBody> hyper::service::Service<Request<ReqBody>> for Engine<S, P, L, W>
where
    S: hyper::service::Service<Request<W::Body>, Response = Response<ResBody>>,
    P: Part,
    L: Limits,
    W: Border<ReqBody>,
    ResBody: Body<Data = Bytes>,
    ResBody::Error: Into<BoxError>,
{
    type Response = Response<Tracked<ResBody, P, L>>;
    type Error = S::Error;
    type Future = EngineFuture<S::Future, P, L>;

    #[inline]
    fn call(&self, mut request: Request<ReqBody>) -> Self::Future {
        let (mut open, watch, refusal) = Open::begin(self.shared.hold_own(), &mut request);
        let run = match refusal {
            None => Run::Call { call: self.inner.call(W::pass(request, open.call.now, &mut open.upload)) },
            Some(refusal) => Run::Refused { refusal: Some(refusal) },
        };
        EngineFuture::new(run, open, watch)
    }
}
