//! A call in progress: its permits, its timer, and the notes of its request, in one box that later calls reuse.

use std::pin::Pin;
use std::sync::Arc;

use http::response::Parts;
use http::{HeaderMap, Response, StatusCode, Version};
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep};

use super::progress::set_upload;
use super::span::AttemptSpan;
use super::spec::{Config, ErrorMode, NotesOf, PermitOf, Spec, TimeoutState};
use super::{
    AttemptProgress, CallContext, CancelReason, ChosenEndpoint, Component, HeadSeen, Outcome, Ref, ResponseSummary,
    TimeoutPolicy, UploadProgress, drop_reason,
};
use crate::body::{UpgradeGuard, UploadCounters};
use crate::cause::{ClientCall, ClientCalls, Failure};
use crate::free_list::FreeList;

/// The boxes of earlier calls on this thread.
pub(crate) type SpareCalls<P> = FreeList<Pin<Box<ActiveCall<P>>>>;

pin_project! {
    /// A call's state. It stays where it is: moving it from the future to the body moves one pointer.
    #[project = ActiveCallProjection]
    pub(crate) struct ActiveCall<P: Spec> {
        // the one timer: of an attempt, a pause, a held head, a response body
        #[pin]
        pub(super) timer: Option<Sleep>,
        pub(super) state: CallState<P>,
    }
}

/// The state of a call that is not pinned.
pub(crate) struct CallState<P: Spec> {
    /// `None` in an unused box.
    config: Option<Ref<Config<P>>>,
    pub(super) context: CallContext,
    permit: Option<PermitOf<P::PerCall>>,
    pub(super) attempt: AttemptState<P>,
    pub(super) notes: NotesOf<P>,
    /// The client call as outer layers know it, if this is a later attempt.
    pub(super) known_as: Option<ClientCall>,
    /// The head that waits for the first frame of its body.
    pub(super) head: Option<Parts>,
    pub(super) body: BodyState,
    /// The head was returned.
    pub(super) responded: bool,
}

/// The state that a call keeps for its body.
pub(super) struct BodyState {
    pub(super) summary: Option<ResponseSummary>,
    pub(super) version: Version,
    /// The last poll found no frame.
    pub(super) waiting: bool,
    /// When the wait began, or the request body last moved.
    pub(super) since: Instant,
    /// The frames of the request body at that time; `None` if only another layer tracks it.
    pub(super) taken: Option<u32>,
}

impl BodyState {
    fn new(now: Instant) -> Self {
        Self { summary: None, version: Version::HTTP_11, waiting: false, since: now, taken: None }
    }

    /// A response is returned whose body is open.
    #[inline]
    pub(super) fn begin(&mut self, version: Version, summary: ResponseSummary) {
        (self.version, self.summary, self.waiting) = (version, Some(summary), false);
    }
}

/// One attempt of a call.
pub(super) struct AttemptState<P: Spec> {
    /// `None`: that of the call, as for the first attempt.
    pub(super) context: Option<CallContext>,
    permit: Option<PermitOf<P::PerAttempt>>,
    pub(super) timeouts: TimeoutState<P>,
    /// The client calls made by the call of the inner service.
    pub(super) calls: ClientCalls,
    /// The endpoint of a pool to which it was sent.
    pub(super) endpoint: Option<ChosenEndpoint>,
    pub(super) upload: Option<Arc<UploadCounters>>,
    pub(super) span: AttemptSpan,
}

impl<P: Spec> Default for AttemptState<P> {
    fn default() -> Self {
        Self {
            context: None,
            permit: None,
            timeouts: TimeoutState::<P>::default(),
            calls: ClientCalls::default(),
            endpoint: None,
            upload: None,
            span: AttemptSpan::default(),
        }
    }
}

impl<P: Spec> AttemptState<P> {
    pub(super) fn context<'a>(&'a self, call: &'a CallContext) -> &'a CallContext {
        self.context.as_ref().unwrap_or(call)
    }

    /// Asks the components of an attempt to admit it.
    #[inline]
    pub(super) fn admit(&mut self, config: &Config<P>, call: &CallContext) -> Result<(), super::Rejection> {
        self.permit = Some(config.per_attempt.admit(self.context.as_ref().unwrap_or(call))?);
        Ok(())
    }

    /// A concurrent attempt of the same request has ended with this failure: one request is one vote.
    pub(super) fn on_concurrent_failure(&mut self, call: &CallContext, failure: &Failure) {
        let mut context = *self.context(call);
        context.vote.counted |= failure.counts_against_upstream();
        self.context = Some(context);
    }

    /// The attempt is pending.
    #[inline]
    pub(super) fn on_pending(&mut self, config: &Config<P>) {
        if let (Some(upload), Some(permit)) = (&self.upload, &mut self.permit) {
            config.per_attempt.on_upload(permit, upload.ended().is_none() && upload.client_stalled());
        }
    }

    /// A response head was received.
    #[inline]
    pub(super) fn on_head<X>(
        &mut self,
        config: &Config<P>,
        call: &CallContext,
        response: &Response<X>,
        outcome: &Outcome,
    ) {
        let mut context = self.context.as_ref().unwrap_or(call);
        let head = head_seen(outcome, Some(response.headers()), self.upload.as_ref());
        config.timeouts.on_response(&self.timeouts, context, &head);
        let after_upload;
        if head.uploaded.is_some() {
            after_upload = CallContext { uploaded: head.uploaded, ..*context };
            context = &after_upload;
        }
        if let Some(permit) = &mut self.permit {
            if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                if let Some(guard) = response.extensions().get::<UpgradeGuard>() {
                    config.per_attempt.on_upgrade(permit, guard);
                }
            }
            config.per_attempt.on_response(permit, context, outcome);
        }
        self.span.on_response(response);
    }

    /// The attempt has ended without a response head.
    pub(super) fn on_no_head(&self, config: &Config<P>, call: &CallContext, outcome: &Outcome) {
        let head = head_seen(outcome, None, self.upload.as_ref());
        config.timeouts.on_response(&self.timeouts, self.context(call), &head);
    }

    /// The attempt has ended.
    #[inline]
    pub(super) fn complete(&mut self, config: &Config<P>, call: &CallContext, outcome: &Outcome) {
        if let Some(permit) = self.permit.take() {
            config.per_attempt.complete(permit, self.context.as_ref().unwrap_or(call), outcome);
        }
    }

    /// The attempt was dropped before its end.
    pub(super) fn cancel(&mut self, config: &Config<P>, call: &CallContext, reason: CancelReason) {
        if let Some(permit) = self.permit.take() {
            config.per_attempt.cancel(permit, self.context.as_ref().unwrap_or(call), reason);
        }
    }

    /// Adds the progress of the request body, if it is tracked here.
    pub(super) fn merge_upload(&self, progress: &mut AttemptProgress) {
        progress.upload = progress.upload.or(self.upload_progress());
    }

    /// Publishes the progress of the request body, if it is tracked here and queried.
    pub(super) fn publish_upload(&self) {
        if let Some(upload) = self.upload_progress() {
            set_upload(upload);
        }
    }

    fn upload_progress(&self) -> Option<UploadProgress> {
        let upload = self.upload.as_ref()?;
        Some(UploadProgress { frames: upload.frames(), client_stalled: upload.client_stalled(), ended: upload.ended() })
    }
}

fn head_seen<'a>(
    outcome: &'a Outcome,
    headers: Option<&'a HeaderMap>,
    upload: Option<&Arc<UploadCounters>>,
) -> HeadSeen<'a> {
    HeadSeen { outcome, headers, uploaded: upload.and_then(|upload| upload.ended()) }
}

impl<P: Spec> CallState<P> {
    fn new(now: Instant) -> Self {
        Self {
            config: None,
            context: CallContext::new(now),
            permit: None,
            attempt: AttemptState::default(),
            notes: NotesOf::<P>::default(),
            known_as: None,
            head: None,
            body: BodyState::new(now),
            responded: false,
        }
    }

    /// The settings with which the call began.
    #[inline]
    pub(super) fn config(&self) -> &Config<P> {
        self.config.as_deref().expect(IN_USE)
    }

    /// Borrows the settings and the rest separately.
    #[inline]
    pub(super) fn split(&mut self) -> Split<'_, P> {
        let Self { config, context, permit, attempt, notes, .. } = self;
        Split { config: config.as_deref().expect(IN_USE), context, permit, attempt, notes }
    }

    /// Another reference to the settings.
    pub(super) fn config_ref(&self) -> Ref<Config<P>> {
        self.config.clone().expect(IN_USE)
    }

    /// The head of the call's response goes to the client.
    #[inline]
    pub(super) fn on_response(&mut self, outcome: &Outcome) {
        let Split { config, context, permit, attempt, .. } = self.split();
        if let Some(permit) = permit {
            context.uploaded = attempt.upload.as_ref().and_then(|upload| upload.ended());
            config.per_call.on_response(permit, context, outcome);
        }
    }

    /// The call's response is a 101.
    #[cold]
    pub(super) fn on_upgrade<X>(&mut self, response: &Response<X>) {
        let Split { config, permit, .. } = self.split();
        if let (Some(permit), Some(guard)) = (permit, response.extensions().get::<UpgradeGuard>()) {
            config.per_call.on_upgrade(permit, guard);
        }
    }

    #[inline]
    fn complete(&mut self, outcome: &Outcome) {
        let Split { config, context, permit, attempt, .. } = self.split();
        attempt.complete(config, context, outcome);
        if let Some(permit) = permit.take() {
            config.per_call.complete(permit, context, outcome);
        }
    }

    #[cold]
    fn cancel(&mut self) {
        let responded = self.responded;
        let Split { config, context, permit, attempt, notes } = self.split();
        let reason = drop_reason();
        if !responded {
            config.errors.on_cancel(notes);
        }
        attempt.cancel(config, context, reason);
        if let Some(permit) = permit.take() {
            config.per_call.cancel(permit, context, reason);
        }
    }
}

/// The parts of a call, borrowed separately.
pub(super) struct Split<'a, P: Spec> {
    pub(super) config: &'a Config<P>,
    pub(super) context: &'a mut CallContext,
    pub(super) permit: &'a mut Option<PermitOf<P::PerCall>>,
    pub(super) attempt: &'a mut AttemptState<P>,
    pub(super) notes: &'a mut NotesOf<P>,
}

const IN_USE: &str = "a call has its settings until it ends";

/// The handle of a call in progress: the call is completed, or cancelled when this is dropped, never both.
///
/// A panic of the inner service cancels it as well.
pub(crate) struct Active<P: Spec>(Option<Pin<Box<ActiveCall<P>>>>);

impl<P: Spec> Active<P> {
    /// A call that begins now.
    #[inline]
    pub(super) fn begin(config: Ref<Config<P>>, now: Instant) -> Self {
        let mut call = P::spare_calls()
            .acquire()
            .unwrap_or_else(|| Box::pin(ActiveCall { timer: None, state: CallState::new(now) }));
        let state = call.as_mut().project().state;
        state.config = Some(config);
        state.context = CallContext::new(now);
        Self(Some(call))
    }

    #[inline]
    fn call(&mut self) -> ActiveCallProjection<'_, P> {
        self.0.as_mut().expect(IN_USE).as_mut().project()
    }

    #[inline]
    pub(super) fn state(&mut self) -> &mut CallState<P> {
        self.call().state
    }

    #[inline]
    pub(super) fn get(&self) -> &CallState<P> {
        &self.0.as_ref().expect(IN_USE).as_ref().get_ref().state
    }

    #[inline]
    pub(super) fn timer(&mut self) -> Pin<&mut Option<Sleep>> {
        self.call().timer
    }

    /// Borrows the timer and the state.
    #[inline]
    pub(super) fn parts(&mut self) -> (Pin<&mut Option<Sleep>>, &mut CallState<P>) {
        let ActiveCallProjection { timer, state } = self.call();
        (timer, state)
    }

    /// The call has ended.
    #[inline]
    pub(super) fn complete(mut self, outcome: &Outcome) {
        self.state().complete(outcome);
        if let Some(call) = self.0.take() {
            recycle(call);
        }
    }

    /// Moves the call from a future to its body.
    #[inline]
    pub(super) fn take(&mut self) -> Self {
        Self(self.0.take())
    }
}

impl<P: Spec> Drop for Active<P> {
    #[inline]
    fn drop(&mut self) {
        if let Some(call) = self.0.take() {
            cancel(call);
        }
    }
}

#[cold]
#[inline(never)]
fn cancel<P: Spec>(mut call: Pin<Box<ActiveCall<P>>>) {
    call.as_mut().project().state.cancel();
    recycle(call);
}

/// Returns a box to the free list; values that the next call overwrites stay, unless they hold a reference.
#[inline]
fn recycle<P: Spec>(mut call: Pin<Box<ActiveCall<P>>>) {
    let ActiveCallProjection { mut timer, state } = call.as_mut().project();
    if timer.is_some() {
        timer.set(None);
    }
    P::Errors::forget(&mut state.notes);
    state.responded = false;
    if state.context.waited {
        state.reset();
    }
    state.attempt.upload = None;
    state.attempt.span = AttemptSpan::default();
    state.config = None;
    P::spare_calls().recycle(call);
}

impl<P: Spec> CallState<P> {
    /// Resets the state that only calls that were pending have changed.
    #[cold]
    #[inline(never)]
    fn reset(&mut self) {
        self.attempt.context = None;
        self.attempt.timeouts = TimeoutState::<P>::default();
        self.known_as = None;
        self.head = None;
    }
}
