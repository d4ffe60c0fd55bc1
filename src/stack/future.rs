//! The one future of a stack.

use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep};

use super::body::UpstreamBody;
use super::course::Course;
use super::parts::Parts;
use super::repeat::{Repeat, Rounds};
use super::waiting::ask;
use crate::cause::{self, ClientCalls, Failure, is_local};
use crate::classify::{First, Stage, disowned, first_look, is_plain_head, refused_head, scene_of};
use crate::engine::{Abandon, Outcome, Part, Shown, Waited, come_back, disarm, leave};
use crate::retry::{Way, drain};
use crate::timeout::Watch;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

pin_project! {
    /// The future of an [`Upstream`](super::Upstream).
    #[project = Projection]
    #[must_use = "futures do nothing unless polled"]
    pub struct UpstreamFuture<S, B, Y: Way<S, B>, R: Repeat, L: Part, C: Part, T, Q: Rounds<T>> {
        #[pin]
        pub(super) run: Run<Y::Future, S, B, Y::Body, Q::Rest>,
        // made when the first poll finds no answer, and left where it is
        #[pin]
        pub(super) timer: Option<Sleep>,
        pub(super) course: Course<R, L, C, T>,
        pub(super) watch: Watch,
        pub(super) round: Q,
    }
}

pin_project! {
    #[project = RunProjection]
    pub(super) enum Run<F, S, B, X, A> {
        Call { #[pin] call: F },
        // the service was not ready
        Asking { asking: Option<Box<Asking<S, B>>> },
        // the head has come, its body's first frame has not
        Holding { answer: Option<Box<Response<X>>> },
        // attempts after the first one
        Rest { rest: Pin<Box<A>> },
        // why stands in the note
        Refused,
        // the service will never be ready
        Broken { error: Option<Box<BoxError>> },
        Over,
    }
}

/// How the first attempt was begun.
pub(super) type Made<S, B, Y, T, Q> =
    Run<<Y as Way<S, B>>::Future, S, B, <Y as Way<S, B>>::Body, <Q as Rounds<T>>::Rest>;

impl<F, S, B, X, A> Run<F, S, B, X, A> {
    /// The service will never be ready.
    #[cold]
    pub(super) fn broken(error: BoxError) -> Self {
        Self::Broken { error: Some(Box::new(error)) }
    }

    /// The service is to be asked again whether it is ready.
    #[cold]
    pub(super) fn asking(service: S, request: Request<B>) -> Self {
        Self::Asking { asking: Some(Box::new(Asking { service, request })) }
    }
}

/// A service that is not ready, and what it is to be called with.
pub(super) struct Asking<S, B> {
    service: S,
    request: Request<B>,
}

pub(super) const POLLED_AGAIN: &str = "a future is not polled after it was ready";

type CallResult<S, B, Y> = Result<Response<<Y as Way<S, B>>::Body>, <Y as Way<S, B>>::Error>;
type Answer<S, B, Y, R, L, C, T, Q> =
    Response<UpstreamBody<<Y as Way<S, B>>::Body, <Q as Rounds<T>>::Body, R, L, C, T>>;
type Answered<S, B, Y, R, L, C, T, Q> = Poll<Result<Answer<S, B, Y, R, L, C, T, Q>, Infallible>>;

impl<S, B, Y, R, L, C, T, Q> Future for UpstreamFuture<S, B, Y, R, L, C, T, Q>
where
    Y: Way<S, B>,
    Y::Error: Into<BoxError>,
    Y::Body: Body<Data = Bytes> + Unpin + 'static,
    <Y::Body as Body>::Error: Into<BoxError>,
    R: Repeat,
    L: Part,
    C: Part,
    Q: Rounds<T>,
    UpstreamBody<Y::Body, Q::Body, R, L, C, T>: Send + 'static,
{
    type Output = Result<Answer<S, B, Y, R, L, C, T, Q>, Infallible>;

    #[inline(always)]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        if let RunProjection::Call { call } = this.run.as_mut().project() {
            let entered = this.course.enter();
            let polled = call.poll(cx);
            drop(entered);
            if polled.is_ready() && this.timer.is_some() {
                disarm(this.timer.as_mut());
            }
            if let Poll::Ready(Ok(answer)) = polled {
                // the plain case in place: an answer is large
                return if this.passes(&answer) {
                    this.hand_on(answer, Stage::Reading)
                } else {
                    this.answered(answer, cx)
                };
            }
            if let Poll::Ready(Err(error)) = polled {
                return this.erred(error.into(), cx);
            }
            this.course.open.call.waited = true;
        }
        this.elsewhere(cx)
    }
}

impl<S, B, Y, R, L, C, T, Q> Projection<'_, S, B, Y, R, L, C, T, Q>
where
    Y: Way<S, B>,
    Y::Error: Into<BoxError>,
    Y::Body: Body<Data = Bytes> + Unpin + 'static,
    <Y::Body as Body>::Error: Into<BoxError>,
    R: Repeat,
    L: Part,
    C: Part,
    Q: Rounds<T>,
    UpstreamBody<Y::Body, Q::Body, R, L, C, T>: Send + 'static,
{
    /// All that is not an answer that was there at once.
    #[inline(never)]
    fn elsewhere(mut self, cx: &mut Context<'_>) -> Answered<S, B, Y, R, L, C, T, Q> {
        let open = &self.course.open;
        match self.run.as_mut().project() {
            RunProjection::Call { mut call } => {
                let course = &*self.course;
                let poll = |cx: &mut Context<'_>| {
                    let _entered = course.enter();
                    call.as_mut().poll(cx)
                };
                match ready!(open.wait(self.watch, course.calls, self.timer.as_mut(), cx, poll)) {
                    Waited::Came(result) => self.came(result, cx),
                    Waited::Passed(failure, now) => self.passed(failure, now, cx),
                }
            }
            RunProjection::Asking { asking } => {
                let asked = asking.as_mut().expect(POLLED_AGAIN);
                let calls = self.course.calls;
                let mut poll = |cx: &mut Context<'_>| ask(Y::poll_ready(&mut asked.service, cx), calls.claim());
                let waited = match poll(cx) {
                    Poll::Ready(asked) => Waited::Came(asked),
                    Poll::Pending => ready!(open.wait(self.watch, calls.promised(), self.timer.as_mut(), cx, poll)),
                };
                match waited {
                    Waited::Came(Ok(())) => {
                        let Asking { mut service, request } = *asking.take().expect(POLLED_AGAIN);
                        let entered = self.course.enter();
                        let made = ClientCalls::begin();
                        let call = match calls.claim() {
                            Some(number) => number.make(|| Y::call(&mut service, request)),
                            None => Y::call(&mut service, request),
                        };
                        let made = made.end();
                        drop(entered);
                        self.course.calls = calls.made(made);
                        self.run.set(Run::Call { call });
                        self.course.open.call.waited = true;
                        // the timer goes on: the call had begun before
                        self.called(cx)
                    }
                    Waited::Came(Err(error)) => {
                        self.timer.set(None);
                        self.erred(error.into(), cx)
                    }
                    Waited::Passed(failure, now) => self.passed(failure, now, cx),
                }
            }
            RunProjection::Holding { answer } => {
                let first = first_look(answer.as_mut().expect(POLLED_AGAIN), cx);
                if first.is_pending() {
                    if let Some(timer) = self.timer.as_mut().as_pin_mut() {
                        ready!(timer.poll(cx));
                    }
                }
                let answer = *answer.take().expect(POLLED_AGAIN);
                self.timer.set(None);
                self.looked_at(answer, first, cx)
            }
            RunProjection::Rest { rest } => {
                let Ok(answer) = ready!(rest.as_mut().poll(cx));
                Poll::Ready(Ok(self.last(answer)))
            }
            RunProjection::Refused => {
                let refusal = self.course.note.as_mut().and_then(|note| note.refusal.take());
                let (failure, after) = refusal.expect(POLLED_AGAIN).into_parts();
                Poll::Ready(Ok(self.failure(&failure, after)))
            }
            RunProjection::Broken { error } => {
                let error = error.take().expect(POLLED_AGAIN);
                self.erred(*error, cx)
            }
            RunProjection::Over => panic!("{POLLED_AGAIN}"),
        }
    }

    /// A call that nobody has polled yet: only what was found pending is waited for.
    fn called(mut self, cx: &mut Context<'_>) -> Answered<S, B, Y, R, L, C, T, Q> {
        let RunProjection::Call { call } = self.run.as_mut().project() else { return self.elsewhere(cx) };
        let entered = self.course.enter();
        let polled = call.poll(cx);
        drop(entered);
        match polled {
            Poll::Ready(result) => self.came(result, cx),
            Poll::Pending => self.elsewhere(cx),
        }
    }

    /// The call was waited for, and has ended.
    fn came(mut self, result: CallResult<S, B, Y>, cx: &mut Context<'_>) -> Answered<S, B, Y, R, L, C, T, Q> {
        self.timer.set(None);
        match result {
            Ok(answer) => self.answered(answer, cx),
            Err(error) => self.erred(error.into(), cx),
        }
    }

    /// A head of which nothing more is to be asked: it may go to the caller.
    #[inline(always)]
    fn passes(&self, answer: &Response<Y::Body>) -> bool {
        let Some(note) = &self.course.note else { return false };
        let settings = self.course.settings();
        is_plain_head(answer) && !settings.holds(answer, &note.ask) && self.round.passes(answer)
    }

    /// A head has come.
    #[cold]
    #[inline(never)]
    fn answered(mut self, mut answer: Response<Y::Body>, cx: &mut Context<'_>) -> Answered<S, B, Y, R, L, C, T, Q> {
        let settings = &*self.course.open.shared.set.classify;
        let Some(note) = &self.course.note else { panic!("{POLLED_AGAIN}") };
        if let Some(failure) = refused_head(&mut answer, &note.ask) {
            return self.failed(failure, cx);
        }
        if let Some(failure) = disowned(&mut answer, self.course.calls) {
            return self.failed(failure, cx);
        }
        if !settings.holds(&answer, &note.ask) {
            return self.pass_on(answer, Stage::Reading, cx);
        }
        let first = first_look(&mut answer, cx);
        if first.is_pending() {
            self.timer.set(Some(sleep(settings.hold())));
            self.course.open.call.waited = true;
            self.run.set(Run::Holding { answer: Some(Box::new(answer)) });
            return self.elsewhere(cx);
        }
        self.looked_at(answer, first, cx)
    }

    /// The body's first frame was looked for.
    fn looked_at(
        self,
        answer: Response<Y::Body>,
        first: Poll<First>,
        cx: &mut Context<'_>,
    ) -> Answered<S, B, Y, R, L, C, T, Q> {
        match first {
            Poll::Ready(First::Failed(failure)) => self.failed(failure, cx),
            Poll::Ready(First::Frame(frame)) => self.pass_on(answer, Stage::after(frame), cx),
            Poll::Ready(First::End) => self.pass_on(answer, Stage::Done, cx),
            Poll::Pending => self.pass_on(answer, Stage::Reading, cx),
        }
    }

    /// A head that may go to the caller, unless another attempt could mend what it says.
    fn pass_on(
        mut self,
        mut answer: Response<Y::Body>,
        stage: Stage,
        cx: &mut Context<'_>,
    ) -> Answered<S, B, Y, R, L, C, T, Q> {
        if self.round.passes(&answer) {
            return self.hand_on(answer, stage);
        }
        let outcome = Outcome::of(Shown::of(&answer), false);
        self.course.open.head(self.watch, &answer, &outcome);
        self.course.ended(&answer);
        if let Some(rest) = self.round.answered(&self.course.open.shared.repeat, &mut answer, self.course.calls) {
            self.discard(answer, &stage, &outcome, cx);
            return self.go_on(rest, cx);
        }
        let outcome = Outcome::of(Shown::of(&answer), false);
        self.look_at(answer, stage, outcome)
    }

    /// The head goes to the caller: whatever there is shows no failure that another attempt could mend.
    #[inline(always)]
    fn hand_on(self, mut answer: Response<Y::Body>, stage: Stage) -> Answered<S, B, Y, R, L, C, T, Q> {
        let outcome = Outcome::of(Shown::of(&answer), !self.course.open.call.waited);
        self.course.open.head(self.watch, &answer, &outcome);
        self.course.ended(&answer);
        self.round.succeeded(&self.course.open.shared.repeat, &mut answer);
        if answer.status().as_u16() >= 400 {
            return self.look_at(answer, stage, outcome);
        }
        self.finish(answer, stage, outcome)
    }

    /// An answer that tells of a failure, the upstream's or one of our own from further in.
    #[cold]
    #[inline(never)]
    fn look_at(
        self,
        mut answer: Response<Y::Body>,
        stage: Stage,
        outcome: Outcome,
    ) -> Answered<S, B, Y, R, L, C, T, Q> {
        let course = &mut *self.course;
        let mut note = course.note();
        course.settings().look_at(&mut answer, &mut note.ask);
        // an answer of the upstream's own has its name only now
        let outcome = match outcome.cause() {
            Some(_) => outcome,
            None => Outcome::of(Shown::of(&answer), !course.open.call.waited),
        };
        let Some(page) = course.paged(&mut note, &mut answer) else {
            course.note = Some(note);
            return self.finish(answer, stage, outcome);
        };
        course.open.held(|parts, ticket, call| parts.head(ticket, call, &outcome));
        course.open.settle(&outcome);
        note.shelve();
        Poll::Ready(Ok(answer.map(|_| page.into())))
    }

    #[inline(always)]
    fn finish(self, answer: Response<Y::Body>, stage: Stage, outcome: Outcome) -> Answered<S, B, Y, R, L, C, T, Q> {
        let course = &mut *self.course;
        let Some(note) = course.note.take() else { panic!("{POLLED_AGAIN}") };
        course.open.held(|parts, ticket, call| parts.head(ticket, call, &outcome));
        // a frame that came with the head is in hand: nothing of the upstream is held any more if it is the last
        let ended = match stage {
            Stage::Done => true,
            Stage::Reading => answer.body().is_end_stream(),
            _ => answer.body().is_end_stream() && course.open.shared.set.shared.limits.ends_unread(),
        };
        if ended {
            course.open.settle(&outcome);
            note.shelve();
            return Poll::Ready(Ok(answer.map(|body| UpstreamBody::ended(body, stage))));
        }
        let following = course.open.follow(outcome);
        let version = answer.version();
        Poll::Ready(Ok(answer.map(|body| UpstreamBody::first(body, stage, version, following, note))))
    }

    /// The inner service returned its error, or never becomes ready.
    #[cold]
    fn erred(self, error: BoxError, cx: &mut Context<'_>) -> Answered<S, B, Y, R, L, C, T, Q> {
        let scene = scene_of(&*error);
        let failure = self.course.settings().judge(error, &scene, self.course.calls);
        self.failed(failure, cx)
    }

    /// A limit has passed.
    #[cold]
    fn passed(mut self, failure: Failure, now: Instant, cx: &mut Context<'_>) -> Answered<S, B, Y, R, L, C, T, Q> {
        self.timer.set(None);
        leave(Abandon::TimedOut(failure.cause()), || self.run.set(Run::Over));
        self.attempted(&Outcome::failure(&failure).at(now));
        self.judged(failure, cx)
    }

    /// The attempt has no head, or none that may go on.
    #[cold]
    fn failed(self, failure: Failure, cx: &mut Context<'_>) -> Answered<S, B, Y, R, L, C, T, Q> {
        let mut this = self;
        let outcome = Outcome::failure(&failure);
        this.course.open.no_head(this.watch, &outcome);
        this.attempted(&outcome);
        this.judged(failure, cx)
    }

    fn attempted(&mut self, outcome: &Outcome) {
        self.course.open.held(|parts, ticket, call| parts.attempted(ticket, call, outcome));
    }

    fn judged(self, failure: Failure, cx: &mut Context<'_>) -> Answered<S, B, Y, R, L, C, T, Q> {
        let failure = self.course.named(failure);
        if let Some(note) = &self.course.note {
            note.span.failed(&failure);
        }
        match self.round.failed(&self.course.open.shared.repeat, failure, self.course.calls) {
            Ok(rest) => self.go_on(rest, cx),
            Err(failure) => Poll::Ready(Ok(self.failure(&failure, None))),
        }
    }

    /// Goes on with further attempts.
    fn go_on(mut self, rest: Pin<Box<Q::Rest>>, cx: &mut Context<'_>) -> Answered<S, B, Y, R, L, C, T, Q> {
        self.timer.set(None);
        self.run.set(Run::Rest { rest });
        self.course.open.call.waited = true;
        self.elsewhere(cx)
    }

    /// The answer of an attempt that is to be repeated: its connection can be used again once it is read.
    fn discard(&mut self, answer: Response<Y::Body>, stage: &Stage, outcome: &Outcome, cx: &mut Context<'_>) {
        let ended = matches!(stage, Stage::Done) || answer.body().is_end_stream();
        if ended || drain(answer, cx) {
            return self.attempted(outcome);
        }
        self.course.open.held(Parts::given_up);
    }

    /// The answer of a later attempt.
    fn last(self, mut answer: Response<Q::Body>) -> Answer<S, B, Y, R, L, C, T, Q> {
        let course = &mut *self.course;
        let mut note = course.note();
        if let Some(failure) = Failure::of(&answer).filter(|failure| failure.upstream().is_none()).cloned() {
            cause::attach(&mut answer, course.named(failure));
        }
        course.settings().look_at(&mut answer, &mut note.ask);
        let outcome = Outcome::of(Shown::of(&answer), false);
        course.open.held(|parts, ticket, call| parts.head(ticket, call, &outcome));
        if let Some(page) = course.paged(&mut note, &mut answer) {
            course.open.settle(&outcome);
            note.shelve();
            return answer.map(|_| page.into());
        }
        // a text of our own says nothing by its end
        if answer.body().is_end_stream() || is_local(answer.extensions()) {
            course.open.settle(&outcome);
            note.shelve();
            return UpstreamBody::later(answer, None);
        }
        let following = course.open.follow(outcome);
        UpstreamBody::later(answer, Some((following, note)))
    }

    /// The answer to a failure.
    fn failure(self, failure: &Failure, after: Option<Duration>) -> Answer<S, B, Y, R, L, C, T, Q> {
        let course = &mut *self.course;
        let mut note = course.note();
        let outcome = Outcome::failure(failure);
        course.open.held(|parts, ticket, call| parts.head(ticket, call, &outcome));
        course.open.settle(&outcome);
        let mut answer = course.settings().refuse(&mut note.ask, failure);
        come_back(answer.headers_mut(), after);
        if let Some(page) = course.paged(&mut note, &mut answer) {
            *answer.body_mut() = page;
        }
        note.shelve();
        answer.map(UpstreamBody::from)
    }
}

impl<S, B, Y: Way<S, B>, R: Repeat, L: Part, C: Part, T, Q: Rounds<T>> fmt::Debug
    for UpstreamFuture<S, B, Y, R, L, C, T, Q>
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpstreamFuture").finish_non_exhaustive()
    }
}
