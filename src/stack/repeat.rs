//! Whether a stack repeats calls: a retry with its budget, or nothing.

use std::convert::Infallible;
use std::fmt;
use std::future::{Future, Pending};
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use tokio::time::Instant;

use crate::body::ReplayBody;
use crate::cause::{ClientCalls, Failure};
use crate::deadline::Deadline;
use crate::engine::Held;
use crate::retry::{self, AttemptSpan, Begun, Next, RetryFuture, RetryLayer, Round, Way};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Whether a stack repeats calls: [`Retries`], or `()` where that is left out.
pub trait Repeat: Clone + fmt::Debug + Send + Sync + 'static {
    /// What the calls of one service share, around the attempts `A`.
    type Around<A>;

    #[doc(hidden)]
    fn around<A>(&self, attempt: impl FnOnce() -> A) -> Self::Around<A>;

    /// With this total for all attempts.
    #[doc(hidden)]
    fn within(self, total: Option<Duration>) -> Self;

    #[doc(hidden)]
    fn layer(&self) -> Option<&RetryLayer> {
        None
    }
}

/// Calls are repeated, as a [`RetryLayer`] would.
#[derive(Clone, Debug)]
pub struct Retries {
    pub(super) layer: RetryLayer,
}

/// What the calls of one service share of [`Retries`].
pub struct Retrying<A>(Held<retry::Core<A>>);

impl Repeat for () {
    type Around<A> = ();

    fn around<A>(&self, _: impl FnOnce() -> A) {}

    fn within(self, _: Option<Duration>) {}
}

impl Repeat for Retries {
    type Around<A> = Retrying<A>;

    fn around<A>(&self, attempt: impl FnOnce() -> A) -> Retrying<A> {
        Retrying(Held::new(Arc::new(retry::Core::new(self.layer.settings().clone(), attempt()))))
    }

    fn within(self, total: Option<Duration>) -> Self {
        Self { layer: self.layer.within(total) }
    }

    fn layer(&self) -> Option<&RetryLayer> {
        Some(&self.layer)
    }
}

impl<A> fmt::Debug for Retrying<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Retrying").field(&self.0.settings).finish()
    }
}

/// How much is done for a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Care {
    /// All that was configured.
    Full,
    /// Retry, breaker and limiter stand aside.
    Bare,
    /// Nothing: it is refused before an attempt.
    Refusal,
}

/// How the requests with a body `B` are repeated, by a service that is called in the way `Y`.
pub trait Repeats<B, Y>: Sized {
    /// The body that an attempt gets.
    type Body;
    /// What one call keeps for it.
    type Round: Rounds<Self>;
    /// A call whose body was not looked at yet.
    #[doc(hidden)]
    type Begun;

    #[doc(hidden)]
    fn begin(&self, request: &Request<B>, now: Instant, deadline: Option<Deadline>, care: Care) -> Self::Begun;

    /// Opens the attempt's span, where somebody listens.
    #[doc(hidden)]
    fn open(request: &Request<B>, span: &mut Span);

    /// A second attempt may be sent beside the first one.
    #[doc(hidden)]
    fn hedges(begun: &Self::Begun) -> bool;

    /// Takes the body as well; the request is no argument and no result, as moving it is most of what a layer costs.
    #[doc(hidden)]
    fn with(&self, begun: Self::Begun, body: B) -> (Self::Round, Self::Body);

    /// All attempts of a call whose first one cannot be made here.
    #[doc(hidden)]
    fn apart(
        &self,
        round: &mut Self::Round,
        request: Request<Self::Body>,
        calls: ClientCalls,
    ) -> RestOf<Self::Round, Self>;
}

type RestOf<Q, T> = Pin<Box<<Q as Rounds<T>>::Rest>>;

/// The span of a call's first attempt, where somebody listens.
#[derive(Default)]
pub struct Span(pub(super) AttemptSpan);

impl Span {
    /// There was no answer.
    pub(super) fn failed(&self, failure: &Failure) {
        self.0.ended::<(), Failure>(Err(failure));
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Span").finish_non_exhaustive()
    }
}

/// What one call keeps for its further attempts.
pub trait Rounds<T> {
    /// The body that their answer has.
    type Body: Body<Data = Bytes, Error: Into<BoxError>>;
    /// The further attempts.
    type Rest: Future<Output = Result<Response<Self::Body>, Infallible>>;

    /// The answer shows nothing that another attempt could mend.
    #[doc(hidden)]
    fn passes<R>(&self, answer: &Response<R>) -> bool;

    #[doc(hidden)]
    fn succeeded<R>(&mut self, shared: &T, answer: &mut Response<R>);

    /// The answer may be a failure: what follows it, if it is not the last.
    #[doc(hidden)]
    fn answered<R>(&mut self, shared: &T, answer: &mut Response<R>, calls: ClientCalls) -> Option<RestOf<Self, T>>
    where
        Self: Sized;

    /// The attempt has failed: what follows.
    ///
    /// # Errors
    /// The failure, where it is the last.
    #[doc(hidden)]
    fn failed(&mut self, shared: &T, failure: Failure, calls: ClientCalls) -> Result<RestOf<Self, T>, Failure>
    where
        Self: Sized;
}

/// The one attempt of a call that is not repeated.
#[derive(Clone, Copy, Debug)]
pub struct Once(());

impl<B, Y> Repeats<B, Y> for () {
    type Body = B;
    type Round = Once;
    type Begun = ();

    #[inline(always)]
    fn begin(&self, _: &Request<B>, _: Instant, _: Option<Deadline>, _: Care) {}

    #[inline(always)]
    fn open(_: &Request<B>, _: &mut Span) {}

    #[inline(always)]
    fn hedges((): &()) -> bool {
        false
    }

    #[inline(always)]
    fn with(&self, (): (), body: B) -> (Once, B) {
        (Once(()), body)
    }

    fn apart(&self, _: &mut Once, _: Request<B>, _: ClientCalls) -> RestOf<Once, ()> {
        unreachable!("nothing is repeated")
    }
}

impl Rounds<()> for Once {
    // there is none, and this is a body
    type Body = String;
    type Rest = Pending<Result<Response<Self::Body>, Infallible>>;

    #[inline(always)]
    fn passes<R>(&self, _: &Response<R>) -> bool {
        true
    }

    #[inline(always)]
    fn succeeded<R>(&mut self, (): &(), _: &mut Response<R>) {}

    fn answered<R>(&mut self, (): &(), _: &mut Response<R>, _: ClientCalls) -> Option<RestOf<Self, ()>> {
        None
    }

    fn failed(&mut self, (): &(), failure: Failure, _: ClientCalls) -> Result<RestOf<Self, ()>, Failure> {
        Err(failure)
    }
}

/// A call whose body was not looked at yet.
pub struct Begins {
    begun: Begun,
}

impl fmt::Debug for Begins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Begins").finish_non_exhaustive()
    }
}

/// The attempts of one call.
pub struct Repeating<A, B, Y> {
    round: Round<B>,
    of: PhantomData<fn() -> (A, Y)>,
}

impl<A, B, Y> fmt::Debug for Repeating<A, B, Y> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Repeating").finish_non_exhaustive()
    }
}

impl<A, B, Y> Repeats<B, Y> for Retrying<A>
where
    A: Clone,
    B: Body<Data = Bytes>,
    Y: Way<A, ReplayBody<B>, Error = Infallible>,
    Y::Body: Body<Data = Bytes, Error: Into<BoxError>> + Default,
{
    type Body = ReplayBody<B>;
    type Round = Repeating<A, B, Y>;
    type Begun = Begins;

    #[inline(always)]
    fn begin(&self, request: &Request<B>, now: Instant, deadline: Option<Deadline>, care: Care) -> Begins {
        let begun = match care {
            Care::Full => retry::begin_at(&self.0.settings, request, now, deadline),
            Care::Bare | Care::Refusal => Begun::once(request),
        };
        Begins { begun }
    }

    #[inline(always)]
    fn open(request: &Request<B>, span: &mut Span) {
        span.0 = AttemptSpan::open(request, 0);
    }

    #[inline(always)]
    fn hedges(begins: &Begins) -> bool {
        begins.begun.hedges()
    }

    #[inline(always)]
    fn with(&self, Begins { begun }: Begins, body: B) -> (Repeating<A, B, Y>, ReplayBody<B>) {
        let (round, body) = begun.with(&self.0.settings, body);
        (Repeating { round, of: PhantomData }, body)
    }

    fn apart(
        &self,
        round: &mut Repeating<A, B, Y>,
        request: Request<ReplayBody<B>>,
        calls: ClientCalls,
    ) -> RestOf<Self::Round, Self> {
        Box::pin(RetryFuture::all(self.0.clone(), round.take(), request, calls))
    }
}

impl<A, B, Y> Rounds<Retrying<A>> for Repeating<A, B, Y>
where
    A: Clone,
    B: Body<Data = Bytes>,
    Y: Way<A, ReplayBody<B>, Error = Infallible>,
    Y::Body: Body<Data = Bytes, Error: Into<BoxError>> + Default,
{
    type Body = Y::Body;
    type Rest = RetryFuture<A, B, Y>;

    #[inline(always)]
    fn passes<R>(&self, answer: &Response<R>) -> bool {
        self.round.passes(answer)
    }

    #[inline(always)]
    fn succeeded<R>(&mut self, shared: &Retrying<A>, answer: &mut Response<R>) {
        self.round.succeeded(&shared.0.settings, answer);
    }

    #[cold]
    fn answered<R>(
        &mut self,
        shared: &Retrying<A>,
        answer: &mut Response<R>,
        calls: ClientCalls,
    ) -> Option<RestOf<Self, Retrying<A>>> {
        match self.round.response(&shared.0.settings, answer) {
            Next::Answer => None,
            Next::Again(at) => Some(self.after(shared, at, calls)),
        }
    }

    #[cold]
    fn failed(
        &mut self,
        shared: &Retrying<A>,
        failure: Failure,
        calls: ClientCalls,
    ) -> Result<RestOf<Self, Retrying<A>>, Failure> {
        let failure = failure.where_body_was_read(self.round.body_was_read());
        match self.round.error(&shared.0.settings, failure.clone())? {
            Next::Answer => Err(failure),
            Next::Again(at) => Ok(self.after(shared, at, calls)),
        }
    }
}

impl<A, B, Y: Way<A, ReplayBody<B>>> Repeating<A, B, Y> {
    /// For whoever goes on with it.
    fn take(&mut self) -> Round<B> {
        std::mem::replace(&mut self.round, Round::over())
    }

    fn after(
        &mut self,
        shared: &Retrying<A>,
        at: Option<Instant>,
        calls: ClientCalls,
    ) -> Pin<Box<RetryFuture<A, B, Y>>> {
        Box::pin(RetryFuture::after(shared.0.clone(), self.take(), at, calls))
    }
}
