//! The response body of an exchange: it completes the call when it ends, fails or is dropped.

use std::fmt;
use std::future::Future as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::RETRY_AFTER;
use http::{HeaderMap, HeaderValue};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep_until};

use super::active::{Active, CallState, Split};
use super::spec::{BodyErrorOf, BodyMode, ErrorMode, Spec};
use super::timer::timeout_failure;
use super::{
    AttemptProgress, BodyTimeouts, BoxError, CancelReason, Detach, Expired, Outcome, Sweepable, Swept, TimeoutPolicy,
    UploadProgress, drop_with_reason, query,
};
use crate::cause::{BadGatewayCause, ClientCalls, Detail, Evidence, Failure, Phase, Replay};

/// A body of known length up to this one is usually taken as a whole: without [`ErrorMode::SWEEPS_SHORT`] it is
/// registered with the sweep only if its first frame is not its last, or if its client can hold it back by the flow
/// control of HTTP/2.
const SHORT: u64 = 16 << 10;

pin_project! {
    #[project = Projection]
    /// The inner service's body, or that of a local response.
    pub(crate) struct ExchangeBody<Y, P: Spec> {
        #[pin]
        inner: Option<Y>,
        stage: BodyStage<BodyErrorOf<P>>,
        // after the inner body: its hold on the upstream goes before the permits
        call: BodyCall<P>,
    }
}

/// Makes the response body of a middleware from that of the driver.
pub(crate) trait MakeBody<T> {
    fn make(body: T) -> Self;
}

impl<T> MakeBody<T> for T {
    #[inline]
    fn make(body: T) -> Self {
        body
    }
}

/// The frame or error that the next poll of a body returns.
pub(crate) enum BodyStage<E> {
    /// The inner body's next frame.
    Reading,
    /// Bytes that were read before the head was returned.
    Data(Bytes),
    /// Trailers that were read before the head was returned; boxed, as they are large and rare.
    Trailers(Box<HeaderMap>),
    /// An error that was reported and is returned by the next poll.
    Failing(E),
    Done,
}

impl<E> BodyStage<E> {
    /// With a frame that was read before the head was returned.
    pub(super) fn after(frame: Frame<Bytes>) -> Self {
        match frame.into_data().map_err(Frame::into_trailers) {
            Ok(data) => Self::Data(data),
            Err(Ok(trailers)) => Self::Trailers(Box::new(trailers)),
            Err(Err(_)) => Self::Reading,
        }
    }

    /// Takes the frame or error that the next poll returns without polling the inner body.
    fn take(&mut self) -> Option<Result<Frame<Bytes>, E>> {
        let (frame, next) = match std::mem::replace(self, Self::Done) {
            Self::Reading => (None, Self::Reading),
            Self::Data(data) => (Some(Ok(Frame::data(data))), Self::Reading),
            Self::Trailers(trailers) => (Some(Ok(Frame::trailers(*trailers))), Self::Reading),
            Self::Failing(error) => (Some(Err(error)), Self::Done),
            Self::Done => (None, Self::Done),
        };
        *self = next;
        frame
    }
}

/// The call of a body.
enum BodyCall<P: Spec> {
    /// It has ended.
    Over,
    Own(Active<P>),
    /// Shared with the sweep.
    Swept(Swept<Active<P>>),
}

/// The result of a poll of the inner body.
enum BodyEvent {
    /// A frame that may be followed by others.
    Frame(Frame<Bytes>),
    Last(Frame<Bytes>),
    /// The end, after the last frame.
    End,
    /// The inner body's own error.
    Failed(BoxError),
    /// The end of a body that was cut.
    Cut,
    TimedOut(Failure),
    /// The client has taken too long, though the upstream keeps up.
    Overdue,
}

impl<Y, P: Spec> ExchangeBody<Y, P> {
    /// The response body of a call that goes on; `None`: the call is over with its head.
    #[inline]
    pub(super) fn new(mut inner: Y, stage: BodyStage<BodyErrorOf<P>>, call: Option<Active<P>>) -> Self
    where
        Y: Body<Data = Bytes>,
        P::Errors: BodyMode<Y>,
    {
        let call = match call {
            None => BodyCall::Over,
            Some(call) if P::Errors::SWEEPS_SHORT || call.get().context.flow_controlled || !is_short(&inner) => {
                register(call, || P::Errors::share(&mut inner))
            }
            Some(call) => BodyCall::Own(call),
        };
        Self { inner: Some(inner), stage, call }
    }
}

/// Whether a body has a known length of at most [`SHORT`].
fn is_short(body: &impl Body) -> bool {
    body.size_hint().exact().is_some_and(|length| length <= SHORT)
}

/// Shares the call with the sweep, where a timeout applies also while nothing polls the body.
#[inline(never)]
fn register<P: Spec>(mut call: Active<P>, share: impl FnOnce() -> Option<Arc<dyn Detach>>) -> BodyCall<P> {
    let state = call.get();
    let timeouts = state.body_timeouts();
    if !timeouts.need_sweep() {
        return BodyCall::Own(call);
    }
    let sweep = state.config().sweep.clone();
    BodyCall::Swept(sweep.register(call.take(), timeouts, share()))
}

impl<P: Spec> BodyCall<P> {
    /// Takes the call, as its body has ended; `None` if the call has ended before.
    fn take(&mut self) -> Option<Active<P>> {
        match std::mem::replace(self, Self::Over) {
            Self::Over => None,
            Self::Own(call) => Some(call),
            Self::Swept(swept) => swept.take(),
        }
    }
}

impl<P: Spec> CallState<P> {
    fn body_timeouts(&self) -> BodyTimeouts {
        self.config().timeouts.body_timeouts(&self.context)
    }

    /// The failure of a timeout that has passed while the body was not polled, or though the upstream kept up.
    fn expired(&self, expired: Expired) -> Failure {
        let (call, now) = (&self.context, Instant::now());
        match expired {
            Expired::ClientIdle(_) => {
                let failure = Failure::builder(BadGatewayCause::ClientClosed).phase(Phase::Body);
                let failure = failure.replay(Replay::Never, Evidence::Inferred).attempts(call.attempt.into());
                let failure = failure.elapsed(now.saturating_duration_since(call.now));
                failure.detail(Detail::Text("the client does not read the response body")).build()
            }
            Expired::Absolute { .. } => self.body_timed_out(true, AttemptProgress::default(), now),
        }
    }

    /// The failure of a body whose timeout has passed: the one of the whole call, or the idle timeout.
    fn body_timed_out(&self, whole_call: bool, progress: AttemptProgress, now: Instant) -> Failure {
        let client_late = progress.upload.is_some_and(|upload| upload.ended.is_none() && upload.client_stalled);
        let cause = match (whole_call, client_late) {
            (true, _) => BadGatewayCause::DeadlineExceeded,
            (false, true) => BadGatewayCause::UploadStalled,
            (false, false) => BadGatewayCause::BodyReadTimeout,
        };
        let evidence = if progress.reported { Evidence::Counted } else { Evidence::Inferred };
        let context = if whole_call { &self.context } else { self.attempt.context(&self.context) };
        // the head was returned: whatever the cause, the request is never sent again
        let failure = timeout_failure(cause, Phase::Body, progress, ClientCalls::default(), context, now)
            .into_builder()
            .replay(Replay::Never, evidence);
        // a long response is no failure; one that stood still for most of the call is
        let stood_still = self.body.waiting && (now - self.body.since) * 2 >= now - self.context.now;
        if whole_call && !stood_still { failure.neutral().build() } else { failure.build() }
    }

    /// Polls the inner body under the timeouts.
    #[inline]
    fn poll_body<Y>(
        &mut self,
        timer: Pin<&mut Option<Sleep>>,
        mut inner: Pin<&mut Y>,
        cx: &mut Context<'_>,
    ) -> Poll<BodyEvent>
    where
        Y: Body<Data = Bytes>,
        Y::Error: Into<BoxError>,
    {
        let mut polled = inner.as_mut().poll_frame(cx);
        if polled.is_pending() {
            match ready!(self.wait_for_frame(timer, cx, |cx| inner.as_mut().poll_frame(cx))) {
                Ok(frame) => polled = Poll::Ready(frame),
                Err(failure) => return Poll::Ready(BodyEvent::TimedOut(failure)),
            }
        }
        self.body.waiting = false;
        polled.map(|frame| match frame {
            Some(Ok(frame)) if inner.is_end_stream() || frame.is_trailers() => {
                self.note_trailers(&frame);
                BodyEvent::Last(frame)
            }
            Some(Ok(_)) if self.is_overdue() => BodyEvent::Overdue,
            Some(Ok(frame)) => BodyEvent::Frame(frame),
            Some(Err(error)) => BodyEvent::Failed(self.blame(error.into())),
            None => BodyEvent::End,
        })
    }

    /// Notes the gRPC status in the trailers.
    #[inline]
    fn note_trailers(&mut self, frame: &Frame<Bytes>) {
        if let (Some(trailers), Some(protocol)) = (frame.trailers_ref(), self.context.protocol) {
            if let Some(summary) = &mut self.body.summary {
                summary.add_fields(trailers, protocol);
            }
        }
    }

    /// Classifies the error of a body that was cut as the client's, if the client's upload has failed.
    #[cold]
    fn blame(&self, error: BoxError) -> BoxError {
        if error.is::<Failure>() || !self.attempt.upload.as_ref().is_some_and(|upload| upload.failed()) {
            return error;
        }
        let failure = Failure::builder(BadGatewayCause::RequestBodyFailed).phase(Phase::Body);
        failure.replay(Replay::Never, Evidence::Counted).source(error).build().into()
    }

    /// Whether the whole call has taken too long; the clock is read only if it has such a timeout.
    fn is_overdue(&self) -> bool {
        self.body_timeouts().end.is_some_and(|end| end < Instant::now())
    }

    /// Waits under the timeouts; `poll` polls the body once more before a timeout counts as passed.
    #[cold]
    fn wait_for_frame<T>(
        &mut self,
        mut timer: Pin<&mut Option<Sleep>>,
        cx: &mut Context<'_>,
        mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<Result<T, Failure>> {
        let timeouts = self.body_timeouts();
        if timeouts.idle.is_none() && timeouts.end.is_none() {
            return Poll::Pending;
        }
        let due = |since: Instant| match (timeouts.idle.map(|idle| since + idle), timeouts.end) {
            (Some(idle), Some(end)) => idle.min(end),
            (idle, end) => idle.or(end).unwrap_or(since),
        };
        if !std::mem::replace(&mut self.body.waiting, true) {
            self.body.since = Instant::now();
            self.body.taken = self.attempt.upload.as_ref().map(|upload| upload.frames());
            // a frame does not reset an armed timer: it only updates `since`
            if timer.is_none() {
                timer.set(Some(sleep_until(due(self.body.since))));
            }
        }
        loop {
            let Some(mut sleep) = timer.as_mut().as_pin_mut() else { return Poll::Pending };
            ready!(sleep.as_mut().poll(cx));
            let now = Instant::now();
            let (polled, mut progress) = query(|| poll(cx));
            if let Poll::Ready(value) = polled {
                return Poll::Ready(Ok(value));
            }
            self.attempt.merge_upload(&mut progress);
            let body = &mut self.body;
            // the upload may have moved since, unless it had ended before the wait
            match progress.upload {
                Some(UploadProgress { ended: Some(ended), .. }) => body.since = ended.max(body.since),
                Some(upload) if body.taken.replace(upload.frames) != Some(upload.frames) => body.since = now,
                _ => {}
            }
            let due = due(body.since);
            if due > now {
                sleep.reset(due);
                continue;
            }
            let whole_call = timeouts.end.is_some_and(|end| end <= now);
            return Poll::Ready(Err(self.body_timed_out(whole_call, progress, now)));
        }
    }
}

impl<P: Spec> Active<P> {
    /// The body has ended; `broken`: with this failure.
    #[inline]
    fn complete_body(mut self, broken: Option<(BadGatewayCause, Option<Failure>)>) {
        let Some(summary) = self.state().body.summary.take() else { return };
        let summary = match broken {
            None => summary,
            Some((cause, failure)) => summary.with_body_failure(cause, failure),
        };
        self.complete(&Outcome::of(summary, false));
    }

    /// The client has ended the call early.
    fn cancel_for_client(self) {
        drop_with_reason(CancelReason::TimedOut(BadGatewayCause::ClientClosed), || drop(self));
    }
}

impl<P: Spec> Sweepable for Active<P> {
    fn expire(mut self, expired: Expired) -> Failure {
        let failure = self.get().config().errors.complete_failure(self.get().expired(expired));
        let Split { config, notes, .. } = self.state().split();
        let reported = config.errors.report_expired(notes, expired, failure.clone());
        match expired {
            // counts against the upstream only if the client waited for it
            Expired::Absolute { waiting: true } => self.complete_body(Some((failure.cause(), Some(failure)))),
            _ => self.cancel_for_client(),
        }
        reported
    }
}

impl<Y, P> Body for ExchangeBody<Y, P>
where
    P: Spec,
    P::Errors: BodyMode<Y>,
    Y: Body<Data = Bytes>,
    Y::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BodyErrorOf<P>;

    #[inline]
    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyErrorOf<P>>>> {
        let mut this = self.project();
        let event = match this.stage {
            BodyStage::Reading => ready!(this.poll_inner(cx)),
            _ => match this.stage.take() {
                Some(Ok(frame)) => this.held(frame, cx),
                last => return Poll::Ready(last),
            },
        };
        let frame = match event {
            Ok(BodyEvent::Frame(frame)) => {
                if let BodyCall::Own(call) = this.call {
                    *this.call = register(call.take(), || None);
                }
                return Poll::Ready(Some(Ok(frame)));
            }
            Ok(BodyEvent::Last(frame)) => Some(Ok(frame)),
            Ok(BodyEvent::End) => None,
            other => return this.fail(other, cx),
        };
        if frame.is_none() || this.inner.is_none() {
            *this.stage = BodyStage::Done;
        }
        if let Some(call) = this.call.take() {
            call.complete_body(None);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match (&self.stage, &self.inner) {
            (BodyStage::Reading, Some(inner)) => !self.is_expired() && inner.is_end_stream(),
            (BodyStage::Reading, None) | (BodyStage::Done, _) => true,
            _ => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        let held = if let BodyStage::Data(data) = &self.stage { data.len() as u64 } else { 0 };
        let rest = match (&self.stage, &self.inner) {
            (BodyStage::Done, _) | (_, None) => SizeHint::with_exact(0),
            _ if self.is_expired() => return SizeHint::default(),
            (_, Some(inner)) => inner.size_hint(),
        };
        let mut hint = SizeHint::new();
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper.saturating_add(held));
        }
        hint.set_lower(rest.lower().saturating_add(held));
        hint
    }
}

impl<Y, P: Spec> ExchangeBody<Y, P> {
    /// Whether the sweep has ended the call.
    fn is_expired(&self) -> bool {
        matches!(&self.call, BodyCall::Swept(swept) if swept.show(|_| ()).is_none())
    }
}

impl<Y, P> Projection<'_, Y, P>
where
    P: Spec,
    P::Errors: BodyMode<Y>,
    Y: Body<Data = Bytes>,
    Y::Error: Into<BoxError>,
{
    /// Polls the inner body; the failure, if the sweep has ended the call.
    #[inline]
    fn poll_inner(&mut self, cx: &mut Context<'_>) -> Poll<Result<BodyEvent, Failure>> {
        let Some(mut inner) = self.inner.as_mut().as_pin_mut() else { return Poll::Ready(Ok(BodyEvent::End)) };
        let mut poll = |call: &mut Active<P>, cx: &mut Context<'_>| {
            let (timer, state) = call.parts();
            let event = ready!(state.poll_body(timer, inner.as_mut(), cx));
            let cut = matches!(event, BodyEvent::End) && P::Errors::was_cut(&*inner, state.body.version);
            Poll::Ready(if cut { BodyEvent::Cut } else { event })
        };
        match self.call {
            BodyCall::Own(call) => poll(call, cx).map(Ok),
            BodyCall::Swept(swept) => match swept.poll(cx, poll) {
                Ok(polled) => polled.map(Ok),
                Err(failure) => Poll::Ready(Err(failure)),
            },
            BodyCall::Over => inner.poll_frame(cx).map(|frame| {
                Ok(match frame {
                    Some(Ok(frame)) => BodyEvent::Frame(frame),
                    Some(Err(error)) => BodyEvent::Failed(error.into()),
                    None => BodyEvent::End,
                })
            }),
        }
    }

    /// A frame that was read before the head was returned.
    fn held(&mut self, frame: Frame<Bytes>, cx: &mut Context<'_>) -> Result<BodyEvent, Failure> {
        if let BodyCall::Swept(swept) = self.call {
            // the client reads
            let _ = swept.poll(cx, |_, _| Poll::Ready(()))?;
        }
        let more = self.inner.as_ref().as_pin_ref().is_some_and(|inner| !inner.is_end_stream());
        Ok(if more { BodyEvent::Frame(frame) } else { BodyEvent::Last(frame) })
    }

    /// The body has failed: completes the call, and returns the error.
    #[cold]
    #[inline(never)]
    fn fail(
        mut self,
        event: Result<BodyEvent, Failure>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyErrorOf<P>>>> {
        let (error, cause, failure) = match event {
            Ok(BodyEvent::Failed(error)) => P::Errors::body_error(error),
            Ok(BodyEvent::TimedOut(failure)) => self.broken_by(failure),
            Ok(BodyEvent::Cut) => self.broken_by(P::Errors::cut()),
            Ok(BodyEvent::Overdue) => {
                // drops the inner body, whose connection is not used again, before the permits
                let expired = Expired::Absolute { waiting: false };
                drop_with_reason(expired.drop_reason(), || self.inner.set(None));
                let Some(call) = self.call.take() else { return Poll::Ready(None) };
                let failure = Sweepable::expire(call, expired);
                return self.deliver(failure.into(), cx);
            }
            Err(failure) => {
                self.inner.set(None);
                *self.call = BodyCall::Over;
                return self.deliver(failure.into(), cx);
            }
            // not failures
            Ok(BodyEvent::Frame(_) | BodyEvent::Last(_) | BodyEvent::End) => return Poll::Ready(None),
        };
        if P::Errors::FLUSHES {
            drop_with_reason(CancelReason::TimedOut(cause), || self.inner.set(None));
        }
        let Some(mut call) = self.call.take() else { return self.deliver(error, cx) };
        let Split { config, notes, .. } = call.state().split();
        let error = config.errors.report_body(notes, error);
        call.complete_body(Some((cause, failure)));
        self.deliver(error, cx)
    }

    /// Completes a failure of this layer itself, and drops the inner body.
    fn broken_by(&mut self, failure: Failure) -> (BodyErrorOf<P>, BadGatewayCause, Option<Failure>) {
        let failure = match self.call {
            BodyCall::Own(call) => call.get().config().errors.complete_failure(failure),
            BodyCall::Over | BodyCall::Swept(_) => failure,
        };
        let cause = failure.cause();
        drop_with_reason(CancelReason::of(&failure), || self.inner.set(None));
        (failure.clone().into(), cause, Some(failure))
    }

    fn deliver(
        self,
        error: BodyErrorOf<P>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyErrorOf<P>>>> {
        if P::Errors::FLUSHES {
            // hyper's server first flushes earlier frames, then cuts the connection
            *self.stage = BodyStage::Failing(error);
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(Some(Err(error)))
    }
}

impl<Y, P: Spec> From<Bytes> for ExchangeBody<Y, P> {
    fn from(bytes: Bytes) -> Self {
        let stage = if bytes.is_empty() { BodyStage::Done } else { BodyStage::Data(bytes) };
        Self { inner: None, stage, call: BodyCall::Over }
    }
}

impl<Y, P: Spec> Default for ExchangeBody<Y, P> {
    fn default() -> Self {
        Bytes::new().into()
    }
}

impl<Y, P: Spec> fmt::Debug for ExchangeBody<Y, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExchangeBody").finish_non_exhaustive()
    }
}

/// Adds `Retry-After` to a response.
pub(crate) fn set_retry_after(headers: &mut HeaderMap, after: Option<Duration>) {
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
