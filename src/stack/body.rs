//! The one body of a stack: it settles what the head had opened, and tells what it failed of.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{Response, Version};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use super::core::Core;
use super::note::Note;
use super::repeat::Repeat;
use crate::cause::{BadGatewayCause, Failure};
use crate::classify::{Scene, Stage, cut, was_cut};
use crate::engine::{Abandon, Expired, Followed, Following, Held, Part, Sweepable, Swept, leave};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

pin_project! {
    /// The response body of an [`Upstream`](super::Upstream): the inner service's, or a local answer's.
    ///
    /// Its error is a [`Failure`], reported once. `Default` and `From<Bytes>`.
    pub struct UpstreamBody<B, A, R: Repeat, L: Part, C: Part, T> {
        #[pin]
        kind: Kind<B, A>,
        stage: Stage,
        left: Option<Left<B, A, R, L, C, T>>,
    }
}

pin_project! {
    #[project = KindProjection]
    enum Kind<B, A> {
        First { #[pin] body: B },
        // a later attempt's has its own limits
        Later { body: Pin<Box<A>> },
        // all there is lies in the stage
        Local,
    }
}

/// What is left to do for a body that is still coming.
enum Left<B, A, R: Repeat, L: Part, C: Part, T> {
    Own(Open<R, L, C, T>),
    // the whole body lies there, shared with the stack's sweep
    Swept(Swept<UpstreamBody<B, A, R, L, C, T>>),
}

/// A call whose body is still coming.
struct Open<R: Repeat, L: Part, C: Part, T> {
    following: Following<Held<Core<R, L, C, T>>>,
    note: Box<Note>,
    version: Version,
}

impl<B, A, R: Repeat, L: Part, C: Part, T> UpstreamBody<B, A, R, L, C, T> {
    /// A body that has ended with its head.
    #[inline(always)]
    pub(super) fn ended(body: B, stage: Stage) -> Self {
        Self { kind: Kind::First { body }, stage, left: None }
    }

    /// The first attempt's body.
    #[inline(never)]
    pub(super) fn first(
        body: B,
        stage: Stage,
        version: Version,
        following: Following<Held<Core<R, L, C, T>>>,
        note: Box<Note>,
    ) -> Self
    where
        Self: Sweepable + Send + 'static,
    {
        let left = Some(Left::Own(Open { following, note, version }));
        Self { kind: Kind::First { body }, stage, left }.shared()
    }

    /// A later attempt's.
    pub(super) fn later(
        answer: Response<A>,
        left: Option<(Following<Held<Core<R, L, C, T>>>, Box<Note>)>,
    ) -> Response<Self>
    where
        Self: Sweepable + Send + 'static,
    {
        let version = answer.version();
        let left = left.map(|(following, note)| Left::Own(Open { following, note, version }));
        answer.map(|body| Self { kind: Kind::Later { body: Box::pin(body) }, stage: Stage::Reading, left }.shared())
    }

    /// Shares a body that stays open with the sweep, where a limit says so.
    fn shared(self) -> Self
    where
        Self: Sweepable + Send + 'static,
    {
        let Some(Left::Own(open)) = &self.left else { return self };
        let limits = open.following.limits();
        if !limits.are_swept() {
            return self;
        }
        let sweep = open.following.sweep().clone();
        let left = Some(Left::Swept(sweep.register(self, limits)));
        Self { kind: Kind::Local, stage: Stage::Reading, left }
    }
}

impl<B, A, R: Repeat, L: Part, C: Part, T> Sweepable for UpstreamBody<B, A, R, L, C, T> {
    const OWNS_BODY: bool = true;

    fn expire(mut self, expired: Expired) -> Failure {
        let Some(Left::Own(Open { following, mut note, .. })) = self.left.take() else {
            return Failure::new(BadGatewayCause::GatewayInternal);
        };
        let set = &following.keep().set;
        let failure = following.failure(expired).into_builder().upstream(set.name.clone()).build();
        // first the body: its connection may not be used again
        leave(expired.abandons(), || drop(self));
        let told = set.classify.told(&mut note.ask.exchange, failure.clone());
        following.expire(expired, failure);
        note.shelve();
        told
    }
}

impl<B, A, R: Repeat, L: Part, C: Part, T> From<Bytes> for UpstreamBody<B, A, R, L, C, T> {
    fn from(bytes: Bytes) -> Self {
        let stage = if bytes.is_empty() { Stage::Done } else { Stage::Data(bytes) };
        Self { kind: Kind::Local, stage, left: None }
    }
}

impl<B, A, R: Repeat, L: Part, C: Part, T> Default for UpstreamBody<B, A, R, L, C, T> {
    fn default() -> Self {
        Bytes::new().into()
    }
}

/// What came of a look at the body.
enum Came {
    Frame(Frame<Bytes>),
    Last(Frame<Bytes>),
    End,
    Failed(Failure),
    /// The whole exchange has taken too long, though the upstream keeps up.
    Expired,
}

impl<B, A, R, L, C, T> Body for UpstreamBody<B, A, R, L, C, T>
where
    B: Body<Data = Bytes> + Unpin + 'static,
    B::Error: Into<BoxError>,
    A: Body<Data = Bytes>,
    A::Error: Into<BoxError>,
    R: Repeat,
    L: Part,
    C: Part,
{
    type Data = Bytes;
    type Error = Failure;

    #[inline]
    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        let mut this = self.project();
        if let Some(Left::Swept(swept)) = this.left {
            let mut over = None;
            let polled = swept.poll(cx, |body, cx| {
                let polled = Pin::new(&mut *body).poll_frame(cx);
                if body.left.is_none() {
                    over = Some(std::mem::replace(&mut body.stage, Stage::Done));
                }
                polled
            });
            let Ok(polled) = polled.map_err(|failure| {
                *this.left = None;
                *this.stage = Stage::Failing(failure);
                cx.waker().wake_by_ref();
            }) else {
                return Poll::Pending;
            };
            if let Some(stage) = over {
                *this.left = None;
                *this.stage = if let Stage::Failing(_) = stage { stage } else { Stage::Done };
            }
            return polled;
        }
        let came = match std::mem::replace(this.stage, Stage::Reading) {
            Stage::Reading => ready!(look(this.kind.as_mut(), own(this.left), cx)),
            // it came before the head was handed on
            Stage::Data(data) => held(Frame::data(data), &this.kind),
            Stage::Trailers(trailers) => held(Frame::trailers(*trailers), &this.kind),
            Stage::Failing(failure) => {
                *this.stage = Stage::Done;
                return Poll::Ready(Some(Err(failure)));
            }
            Stage::Done => {
                *this.stage = Stage::Done;
                return Poll::Ready(None);
            }
        };
        let frame = match came {
            Came::Frame(frame) => return Poll::Ready(Some(Ok(frame))),
            Came::Last(frame) => Some(Ok(frame)),
            Came::End => None,
            Came::Failed(failure) => {
                // hyper's server flushes what came before, and cuts the connection then
                leave(Abandon::TimedOut(failure.cause()), || this.kind.set(Kind::Local));
                *this.stage = Stage::Failing(over(this.left.take(), Some(failure.clone())).unwrap_or(failure));
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            Came::Expired => {
                let kind = std::mem::replace(this.kind.as_mut().get_mut(), Kind::Local);
                let body = Self { kind, stage: Stage::Reading, left: this.left.take() };
                *this.stage = Stage::Failing(body.expire(Expired::Absolute { waiting: false }));
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
        };
        if frame.is_none() || matches!(*this.kind, Kind::Local) {
            *this.stage = Stage::Done;
        }
        over(this.left.take(), None);
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        if let Some(Left::Swept(swept)) = &self.left {
            return swept.show(Self::is_end_stream).unwrap_or(false);
        }
        match (&self.stage, &self.kind) {
            (Stage::Reading, Kind::First { body }) => body.is_end_stream(),
            (Stage::Reading, Kind::Later { body }) => body.is_end_stream(),
            (Stage::Reading, Kind::Local) | (Stage::Done, _) => true,
            _ => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        if let Some(Left::Swept(swept)) = &self.left {
            return swept.show(Self::size_hint).unwrap_or_default();
        }
        let held = if let Stage::Data(data) = &self.stage { data.len() as u64 } else { 0 };
        let rest = match (&self.stage, &self.kind) {
            (Stage::Done, _) | (_, Kind::Local) => SizeHint::with_exact(0),
            (_, Kind::First { body }) => body.size_hint(),
            (_, Kind::Later { body }) => body.size_hint(),
        };
        let mut hint = SizeHint::new();
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper.saturating_add(held));
        }
        hint.set_lower(rest.lower().saturating_add(held));
        hint
    }
}

/// A frame that was polled with the head.
fn held<B: Body, A: Body>(frame: Frame<Bytes>, kind: &Kind<B, A>) -> Came {
    let more = match kind {
        Kind::First { body } => !body.is_end_stream(),
        Kind::Later { body } => !body.is_end_stream(),
        Kind::Local => false,
    };
    if more { Came::Frame(frame) } else { Came::Last(frame) }
}

/// The call that a body has in its own hands.
fn own<B, A, R: Repeat, L: Part, C: Part, T>(
    left: &mut Option<Left<B, A, R, L, C, T>>,
) -> Option<&mut Open<R, L, C, T>> {
    match left {
        Some(Left::Own(open)) => Some(open),
        _ => None,
    }
}

/// Polls the body, an attempt's own under its limits.
#[inline]
fn look<B, A, R, L, C, T>(
    kind: Pin<&mut Kind<B, A>>,
    left: Option<&mut Open<R, L, C, T>>,
    cx: &mut Context<'_>,
) -> Poll<Came>
where
    B: Body<Data = Bytes> + 'static,
    B::Error: Into<BoxError>,
    A: Body<Data = Bytes>,
    A::Error: Into<BoxError>,
    R: Repeat,
    L: Part,
    C: Part,
{
    let broken = |error: BoxError| Came::Failed(Failure::from_body_error(error, &Scene::default()));
    match (kind.project(), left) {
        (KindProjection::First { mut body }, Some(left)) => {
            let version = left.version;
            let came = ready!(left.following.poll(body.as_mut(), cx));
            Poll::Ready(match came {
                Followed::Frame(frame) => Came::Frame(frame),
                Followed::Last(frame) => Came::Last(frame),
                Followed::End if was_cut(&*body, version) => Came::Failed(cut()),
                Followed::End => Came::End,
                Followed::Failed(error) => broken(error),
                Followed::Passed(failure) => Came::Failed(failure),
                Followed::Expired(_) => Came::Expired,
            })
        }
        (KindProjection::First { body }, None) => body.poll_frame(cx).map(|frame| match frame {
            Some(Ok(frame)) => Came::Frame(frame),
            Some(Err(error)) => broken(error.into()),
            None => Came::End,
        }),
        (KindProjection::Later { body }, left) => body.as_mut().poll_frame(cx).map(|frame| match frame {
            Some(Ok(frame)) if body.is_end_stream() => Came::Last(frame),
            Some(Ok(_)) if left.is_some_and(|open| open.following.is_overdue()) => Came::Expired,
            Some(Ok(frame)) => Came::Frame(frame),
            Some(Err(error)) => broken(error.into()),
            None => Came::End,
        }),
        (KindProjection::Local, _) => Poll::Ready(Came::End),
    }
}

/// The body is over: tells what it failed of, and settles the call.
fn over<B, A, R: Repeat, L: Part, C: Part, T>(
    left: Option<Left<B, A, R, L, C, T>>,
    failure: Option<Failure>,
) -> Option<Failure> {
    let Some(Left::Own(Open { following, mut note, .. })) = left else { return None };
    let told = match failure {
        None => {
            following.settle(None);
            None
        }
        Some(failure) => {
            let told = following.keep().set.classify.told(&mut note.ask.exchange, failure.clone());
            following.settle(Some((failure.cause(), Some(failure))));
            Some(told)
        }
    };
    note.shelve();
    told
}

impl<B, A, R: Repeat, L: Part, C: Part, T> fmt::Debug for UpstreamBody<B, A, R, L, C, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpstreamBody").finish_non_exhaustive()
    }
}
