//! The one body under watch: it settles what the head had opened.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, header::RETRY_AFTER};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep_until};

use super::future::{Waited, told};
use super::part::Shown;
use super::sight::ask;
use super::{
    Abandon, BodyLimits, BoxError, Expired, Held, Keep, Limits, Open, Outcome, Part, Shared, Sight, Sweep, Sweepable,
    Swept, UploadSight, leave,
};
use crate::cause::{self, BadGatewayCause, ClientCalls, Detail, Evidence, Failure, Phase, Replay};

pin_project! {
    /// The inner service's body, or a local answer's, under an engine's watch.
    ///
    /// Its error is the body's own, boxed, or a [`Failure`] where a limit passed. `Default` and
    /// `From<Bytes>`, as layers that answer by themselves need it.
    pub struct Tracked<B, P: Part, L: Limits> {
        #[pin]
        kind: Kind<B>,
        following: Option<Rest<Held<Shared<P, L>>>>,
    }
}

/// What a body has to settle, in its own hands or shared with the sweep of its layer.
enum Rest<K: Keep> {
    Own(Following<K>),
    Swept(Swept<Following<K>>),
}

/// A body of known length up to this one is registered only if its first frame is not its last, as servers of HTTP/1.1 take it
/// as a whole when they have written the head. A client of HTTP/2 can hold it back before that.
const ORDINARY: u64 = 16 << 10;

pin_project! {
    #[project = KindProjection]
    enum Kind<B> {
        Inner { #[pin] body: B },
        Local { bytes: Bytes },
    }
}

/// What a body that is still coming has to settle, and how long it has been waited for.
pub(crate) struct Following<K: Keep> {
    open: Open<K>,
    head: Shown,
    /// The last poll found no frame.
    waiting: bool,
    idle: Option<Pin<Box<Idle>>>,
}

pin_project! {
    /// One timer, made at the first wait and left where it is: frames only note that they came.
    ///
    /// The wait begins when somebody polls and finds no frame: a consumer that does not poll is not waiting.
    struct Idle {
        since: Instant,
        // frames of the upload when that was last looked at; none while only somebody further in could tell
        taken: Option<u32>,
        #[pin]
        timer: Sleep,
    }
}

impl<B, P: Part, L: Limits> Tracked<B, P, L> {
    /// The answer to a failure, in place of the inner service's.
    pub(super) fn local(failure: &Failure, retry_after: Option<Duration>) -> Response<Self> {
        let mut answer = cause::local_answer(failure, failure.status());
        come_back(answer.headers_mut(), retry_after);
        answer.extensions_mut().insert(cause::LocalAnswer);
        answer.map(Self::from)
    }
}

/// Says when it is worth asking again.
pub(crate) fn come_back(headers: &mut HeaderMap, after: Option<Duration>) {
    if let Some(after) = after {
        headers.insert(RETRY_AFTER, seconds(after));
    }
}

/// Whole seconds, rounded up; the usual ones need no allocation.
fn seconds(after: Duration) -> HeaderValue {
    const USUAL: [&str; 11] = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10"];
    let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
    let usual = usize::try_from(seconds).ok().and_then(|seconds| USUAL.get(seconds));
    usual.map_or_else(|| HeaderValue::from(seconds), |seconds| HeaderValue::from_static(seconds))
}

impl<B: Body<Data = Bytes>, P: Part, L: Limits> Tracked<B, P, L> {
    /// An answer whose body settles what is left.
    #[inline(always)]
    pub(super) fn over(answer: Response<B>, following: Option<Following<Held<Shared<P, L>>>>) -> Response<Self> {
        let following = match following {
            None => None,
            Some(following) => Some(Rest::of(following, answer.body())),
        };
        answer.map(|body| Self { kind: Kind::Inner { body }, following })
    }
}

impl<K: Keep + Send + 'static> Rest<K> {
    #[inline(never)]
    fn of<B: Body>(following: Following<K>, body: &B) -> Self {
        let is_short = body.size_hint().exact().is_some_and(|length| length <= ORDINARY);
        if is_short && !following.open.call.flow_controlled {
            return Self::Own(following);
        }
        Self::register(following)
    }

    /// The body stays open: where a limit says so, it is shared with the sweep.
    fn register(following: Following<K>) -> Self {
        let limits = following.limits();
        if !limits.are_swept() {
            return Self::Own(following);
        }
        let sweep = following.sweep().clone();
        Self::Swept(sweep.register(following, limits))
    }

    /// What is left to settle; `None` if the sweep has settled it.
    fn take(self) -> Option<Following<K>> {
        match self {
            Self::Own(following) => Some(following),
            Self::Swept(swept) => swept.take(),
        }
    }
}

impl<K: Keep> Following<K> {
    #[inline]
    pub(super) fn new(open: Open<K>, head: Shown) -> Self {
        Self { open, head, waiting: false, idle: None }
    }

    /// Polls the body under the limits.
    #[inline]
    pub(crate) fn poll<B>(&mut self, mut body: Pin<&mut B>, cx: &mut Context<'_>) -> Poll<Followed>
    where
        B: Body<Data = Bytes>,
        B::Error: Into<BoxError>,
    {
        let mut polled = body.as_mut().poll_frame(cx);
        if polled.is_pending() {
            match ready!(self.wait(cx, |cx| body.as_mut().poll_frame(cx))) {
                Waited::Came(frame) => polled = Poll::Ready(frame),
                Waited::Passed(failure, _) => return Poll::Ready(Followed::Passed(failure)),
            }
        }
        self.waiting = false;
        polled.map(|frame| match frame {
            Some(Ok(frame)) if body.is_end_stream() => Followed::Last(frame),
            // the upstream keeps up, so this is no fault of its own
            Some(Ok(_)) if self.is_overdue() => Followed::Expired(self.failure(Expired::Absolute { waiting: false })),
            Some(Ok(frame)) => Followed::Frame(frame),
            Some(Err(error)) => Followed::Failed(self.blame(error.into())),
            None => Followed::End,
        })
    }

    /// The error of a body that broke off; with the client's upload, it is the client's.
    fn blame(&self, error: BoxError) -> BoxError {
        if error.is::<Failure>() || !self.open.upload.0.as_ref().is_some_and(|progress| progress.failed()) {
            return error;
        }
        let failure = Failure::builder(BadGatewayCause::RequestBodyFailed).phase(Phase::Body);
        failure.replay(Replay::Never, Evidence::Counted).source(error).build().into()
    }

    pub(crate) fn limits(&self) -> BodyLimits {
        self.open.shared.shared().limits.body(&self.open.call)
    }

    /// The sweep of its layer or stack.
    pub(crate) fn sweep(&self) -> &Arc<Sweep> {
        &self.open.shared.shared().sweep
    }

    /// Whether the whole exchange has taken too long; without such a limit no clock is read.
    pub(crate) fn is_overdue(&self) -> bool {
        self.limits().end.is_some_and(|end| end < Instant::now())
    }

    /// The record of a limit that passed while nobody polled, or though the upstream kept up.
    pub(crate) fn failure(&self, expired: Expired) -> Failure {
        let (call, now) = (&self.open.call, Instant::now());
        match expired {
            Expired::ClientIdle(_) => {
                let failure = Failure::builder(BadGatewayCause::ClientClosed).phase(Phase::Body);
                let failure = failure.replay(Replay::Never, Evidence::Inferred).attempts(call.attempt.into());
                let failure = failure.elapsed(now.saturating_duration_since(call.now));
                failure.detail(Detail::Text("the client does not read the response body")).build()
            }
            Expired::Absolute { .. } => passed(true, Sight::default(), &self.open, now),
        }
    }

    /// Ends it early: only an upstream that kept the consumer waiting is judged by that.
    pub(crate) fn expire(self, expired: Expired, failure: Failure) {
        match expired {
            Expired::Absolute { waiting: true } => self.settle(Some((failure.cause(), Some(failure)))),
            _ => self.cancel(),
        }
    }

    /// Ends it early, for the client's doing.
    fn cancel(self) {
        leave(Abandon::TimedOut(BadGatewayCause::ClientClosed), || drop(self));
    }

    /// The body is over; `broken` says if it failed, and of what.
    pub(crate) fn settle(mut self, broken: Option<(BadGatewayCause, Option<Failure>)>) {
        let shown = match broken {
            None => self.head,
            Some((cause, failure)) => self.head.broken(cause, failure),
        };
        self.open.settle(&Outcome::of(shown, false));
    }

    /// Waits under the limits; `poll` asks the body once more before one counts as passed.
    fn wait<T>(&mut self, cx: &mut Context<'_>, mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>) -> Poll<Waited<T>> {
        let limits = self.open.shared.shared().limits.body(&self.open.call);
        if limits.idle.is_none() && limits.end.is_none() {
            return Poll::Pending;
        }
        let due = |since: Instant| match (limits.idle.map(|idle| since + idle), limits.end) {
            (Some(idle), Some(end)) => idle.min(end),
            (idle, end) => idle.or(end).unwrap_or(since),
        };
        if !std::mem::replace(&mut self.waiting, true) {
            let (since, taken) = (Instant::now(), self.open.taken());
            match &mut self.idle {
                Some(idle) => {
                    let idle = idle.as_mut().project();
                    (*idle.since, *idle.taken) = (since, taken);
                }
                None => self.idle = Some(Box::pin(Idle { since, taken, timer: sleep_until(due(since)) })),
            }
        }
        let Some(idle) = &mut self.idle else { return Poll::Pending };
        let mut idle = idle.as_mut().project();
        loop {
            ready!(idle.timer.as_mut().poll(cx));
            let now = Instant::now();
            let (polled, mut sight) = ask(|| poll(cx));
            if let Poll::Ready(frame) = polled {
                return Poll::Ready(Waited::Came(frame));
            }
            self.open.see(&mut sight);
            // it may move the other way; what was through before the wait began did not
            match sight.upload {
                Some(UploadSight { ended: Some(ended), .. }) => *idle.since = ended.max(*idle.since),
                Some(upload) if idle.taken.replace(upload.taken) != Some(upload.taken) => *idle.since = now,
                _ => {}
            }
            let due = due(*idle.since);
            if due > now {
                idle.timer.as_mut().reset(due);
                continue;
            }
            let over = limits.end.is_some_and(|end| end <= now);
            return Poll::Ready(Waited::Passed(passed(over, sight, &self.open, now), now));
        }
    }
}

/// What came of a body under limits.
pub(crate) enum Followed {
    /// A frame, and there may be more.
    Frame(Frame<Bytes>),
    /// The last frame.
    Last(Frame<Bytes>),
    /// The end, after the last frame.
    End,
    /// The body's own error.
    Failed(BoxError),
    /// A limit has passed: the body is of no more use.
    Passed(Failure),
    /// The same, and it says nothing about the upstream.
    Expired(Failure),
}

impl<K: Keep + Send + 'static> Sweepable for Following<K> {
    const OWNS_BODY: bool = false;

    fn expire(self, expired: Expired) -> Failure {
        let failure = self.failure(expired);
        tracing::info!(
            target: "tower_upstream",
            limit = expired.name(),
            error.type = failure.cause().as_str(),
            "response body ended: {}", expired.reason()
        );
        Self::expire(self, expired, failure.clone());
        failure
    }
}

/// The failure of a body whose limit has passed.
fn passed<K: Keep>(over: bool, sight: Sight, open: &Open<K>, now: Instant) -> Failure {
    let late = sight.upload.is_some_and(|upload| upload.ended.is_none() && upload.client_late);
    let (cause, phase) = match (over, late) {
        (true, _) => (BadGatewayCause::DeadlineExceeded, Phase::Body),
        (false, true) => (BadGatewayCause::UploadStalled, Phase::Body),
        (false, false) => (BadGatewayCause::BodyReadTimeout, Phase::Body),
    };
    let evidence = if sight.told { Evidence::Counted } else { Evidence::Inferred };
    // the head was handed on: whatever the cause, it is never sent again
    told(cause, phase, sight, ClientCalls::default(), &open.call, now)
        .into_builder()
        .replay(Replay::Never, evidence)
        .build()
}

impl<B, P, L> Body for Tracked<B, P, L>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
    P: Part,
    L: Limits,
{
    type Data = Bytes;
    type Error = BoxError;

    #[inline]
    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let mut this = self.project();
        let mut body = match this.kind.as_mut().project() {
            KindProjection::Inner { body } => body,
            KindProjection::Local { bytes } if bytes.is_empty() => return Poll::Ready(None),
            KindProjection::Local { bytes } => return Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
        };
        let followed = match this.following.as_mut() {
            None => return body.poll_frame(cx).map_err(Into::into),
            Some(Rest::Own(following)) => ready!(following.poll(body.as_mut(), cx)),
            Some(Rest::Swept(swept)) => match swept.poll(cx, |following, cx| following.poll(body.as_mut(), cx)) {
                Ok(polled) => ready!(polled),
                Err(failure) => Followed::Expired(failure),
            },
        };
        let (frame, broken) = match followed {
            Followed::Frame(frame) => {
                if let Some(Rest::Own(_)) = &this.following {
                    *this.following = this.following.take().and_then(Rest::take).map(Rest::register);
                }
                return Poll::Ready(Some(Ok(frame)));
            }
            Followed::Expired(failure) => {
                // first the body, whose connection may not be used again, then what it held
                this.kind.set(Kind::Local { bytes: Bytes::new() });
                if let Some(following) = this.following.take().and_then(Rest::take) {
                    following.cancel();
                }
                return Poll::Ready(Some(Err(failure.into())));
            }
            Followed::Last(frame) => (Some(Ok(frame)), None),
            Followed::End => (None, None),
            Followed::Failed(error) => {
                let failure = error.downcast_ref::<Failure>().cloned();
                let cause = failure.as_ref().map_or(BadGatewayCause::IncompleteBody, Failure::cause);
                (Some(Err(error)), Some((cause, failure)))
            }
            Followed::Passed(failure) => {
                let cause = failure.cause();
                leave(Abandon::TimedOut(cause), || this.kind.set(Kind::Local { bytes: Bytes::new() }));
                (Some(Err(failure.clone().into())), Some((cause, Some(failure))))
            }
        };
        if let Some(following) = this.following.take().and_then(Rest::take) {
            following.settle(broken);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Inner { body } => body.is_end_stream(),
            Kind::Local { bytes } => bytes.is_empty(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Inner { body } => body.size_hint(),
            Kind::Local { bytes } => SizeHint::with_exact(bytes.len() as u64),
        }
    }
}

impl<B, P: Part, L: Limits> Default for Tracked<B, P, L> {
    fn default() -> Self {
        Bytes::new().into()
    }
}

impl<B, P: Part, L: Limits> From<Bytes> for Tracked<B, P, L> {
    fn from(bytes: Bytes) -> Self {
        Self { kind: Kind::Local { bytes }, following: None }
    }
}

impl<B, P: Part, L: Limits> fmt::Debug for Tracked<B, P, L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tracked").finish_non_exhaustive()
    }
}
