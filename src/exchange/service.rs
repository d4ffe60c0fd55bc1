//! The one service, and how a call begins.

use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Version};
use tokio::time::Instant;

use super::active::{Active, Split};
use super::endpoint::{forget_endpoint, last_endpoint};
use super::future::{ExchangeFuture, State};
use super::keyed::ConfigSource;
use super::next_attempt::Template;
use super::spec::{Config, ErrorMode, ErrorOf, RequestBodyOf, RequestMode, ResponseMode, RetryStateOf, Spec};
use super::{Admission, BoxError, CallContext, Component, LocalArc, Outcome, Ref, Rejection, TimeoutPolicy};
use crate::body::WrapBody;
use crate::cause::{ClientCall, ClientCalls};

/// A service under the components, timeouts and modes of `P`.
pub(crate) struct Exchange<S, P: Spec> {
    inner: S,
    config: ConfigSource<P>,
    /// For attempts after the first; `None` if there are none and backpressure is passed on.
    template: Option<LocalArc<Template<S>>>,
    readiness: Readiness,
}

/// The result of `poll_ready`.
#[derive(Default)]
enum Readiness {
    #[default]
    NotPolled,
    Ready,
    Pending,
    /// The inner service never becomes ready.
    Failed(Box<BoxError>),
    /// Calls are rejected, and callers wait until they are not.
    NotAdmitted(Admission),
    /// Calls are rejected, so that the inner service was not polled: it must not be called.
    Rejected(Box<(Instant, Rejection)>),
}

impl<S, P: Spec> Exchange<S, P> {
    /// For a spec with one attempt, which passes backpressure on.
    pub(crate) fn once(inner: S, config: impl Into<ConfigSource<P>>) -> Self {
        Self { inner, config: config.into(), template: None, readiness: Readiness::NotPolled }
    }

    /// For a spec with several attempts, or one that waits for the inner service.
    pub(crate) fn repeating(inner: S, config: impl Into<ConfigSource<P>>) -> Self
    where
        S: Clone,
    {
        let template = Some(LocalArc::new(Arc::new(Template::new(inner.clone()))));
        Self { inner, config: config.into(), template, readiness: Readiness::NotPolled }
    }

    /// The template of later attempts, if there are any; the probes of a stack use it too.
    pub(crate) fn template(&self) -> Option<Ref<Template<S>>> {
        self.template.as_ref().map(LocalArc::acquire)
    }

    /// The settings of a request with this head.
    pub(super) fn config<B>(&self, head: &Request<B>) -> Ref<Config<P>> {
        self.config.acquire(head.uri(), head.headers())
    }

    pub(crate) fn get_ref(&self) -> &S {
        &self.inner
    }

    pub(crate) fn get_mut(&mut self) -> &mut S {
        &mut self.inner
    }

    pub(crate) fn into_inner(self) -> S {
        self.inner
    }

    /// A call that is rejected without an inner service.
    #[cfg(feature = "balance")]
    pub(crate) fn reject<B>(
        config: Arc<Config<P>>,
        now: Instant,
        rejection: Rejection,
        request: Request<B>,
    ) -> ExchangeFuture<S, B, P>
    where
        P::Requests: RequestMode<B>,
        S: WrapBody<RequestBodyOf<P, B>>,
    {
        begin_rejected(Ref::new(config), now, rejection, request)
    }

    /// Replaces the settings for calls that begin from now on.
    pub(crate) fn set_config(&mut self, config: Arc<Config<P>>) {
        self.config = config.into();
    }

    #[inline]
    pub(crate) fn poll_ready<B, X, E>(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ErrorOf<P, E, X>>>
    where
        P::Requests: RequestMode<B>,
        P::Errors: ResponseMode<E, X>,
        S: WrapBody<RequestBodyOf<P, B>, Body = X, ServiceError = E>,
    {
        if P::PerAttempt::REJECTS_EARLY && !P::WAITS {
            if let ConfigSource::Shared(config) = &self.config {
                if let Some(rejected) = config.per_attempt.reject_early() {
                    match Self::poll_admission(&mut self.readiness, &config.per_attempt, cx) {
                        Poll::Pending => return Poll::Pending,
                        Poll::Ready(true) => {}
                        Poll::Ready(false) => {
                            self.readiness = Readiness::Rejected(Box::new(rejected));
                            return Poll::Ready(Ok(()));
                        }
                    }
                }
            }
        }
        if matches!(self.readiness, Readiness::Failed(_)) && !P::WAITS {
            return Poll::Ready(Ok(()));
        }
        self.readiness = match self.inner.poll_ready(cx) {
            Poll::Ready(Ok(())) => Readiness::Ready,
            Poll::Ready(Err(error)) => match P::Errors::not_ready(error) {
                Ok(error) => Readiness::Failed(Box::new(error)),
                Err(error) => {
                    self.record_not_ready(&P::Errors::error_outcome(&error));
                    return Poll::Ready(Err(error));
                }
            },
            // a call waits in its own future, under its timeouts
            Poll::Pending if P::WAITS => Readiness::Pending,
            Poll::Pending => return Poll::Pending,
        };
        Poll::Ready(Ok(()))
    }

    /// Calls are rejected: waits until they are not, if callers should choose another service meanwhile, and returns whether.
    #[cold]
    fn poll_admission(readiness: &mut Readiness, component: &P::PerAttempt, cx: &mut Context<'_>) -> Poll<bool> {
        let waiting = match std::mem::take(readiness) {
            Readiness::NotAdmitted(admission) => Some(admission),
            _ => component.admission(),
        };
        let Some(mut admission) = waiting else { return Poll::Ready(false) };
        if admission.as_mut().poll(cx).is_pending() {
            *readiness = Readiness::NotAdmitted(admission);
            return Poll::Pending;
        }
        Poll::Ready(true)
    }

    /// Reports to the components that the inner service never becomes ready, although no call begins.
    #[cold]
    fn record_not_ready(&self, outcome: &Outcome) {
        let ConfigSource::Shared(config) = &self.config else { return };
        let call = CallContext::new(outcome.now());
        if let Ok(permit) = config.per_attempt.admit(&call) {
            config.per_attempt.complete(permit, &call, outcome);
        }
    }

    #[inline]
    pub(crate) fn call<B, X, E>(&mut self, request: Request<B>) -> ExchangeFuture<S, B, P>
    where
        P::Requests: RequestMode<B>,
        P::Errors: ResponseMode<E, X>,
        S: WrapBody<RequestBodyOf<P, B>, Body = X, ServiceError = E>,
    {
        let readiness = std::mem::take(&mut self.readiness);
        let config = self.config.acquire_mut(request.uri(), request.headers());
        let template = self.template.as_mut().map(|template| move || template.acquire_mut());
        begin(&mut self.inner, readiness, config, template, request)
    }

    /// A call through a shared reference, as hyper's servers make it.
    ///
    /// `config`: settings that have changed since this service was made.
    pub(crate) fn call_shared<B, X, E>(
        &self,
        config: Option<Arc<Config<P>>>,
        request: Request<B>,
    ) -> ExchangeFuture<S, B, P>
    where
        P::Requests: RequestMode<B>,
        P::Errors: ResponseMode<E, X>,
        S: WrapBody<RequestBodyOf<P, B>, Body = X, ServiceError = E> + Clone,
    {
        let mut inner = self.inner.clone();
        // a pending service is polled again by the call, with its own waker
        let readiness = match inner.poll_ready(&mut Context::from_waker(std::task::Waker::noop())) {
            Poll::Ready(Ok(())) => Readiness::Ready,
            Poll::Ready(Err(error)) => match P::Errors::not_ready(error) {
                Ok(error) => Readiness::Failed(Box::new(error)),
                Err(_) => Readiness::NotPolled,
            },
            Poll::Pending => Readiness::Pending,
        };
        let config = config.map_or_else(|| self.config.acquire(request.uri(), request.headers()), Ref::new);
        let template = self.template.as_ref().map(|template| || template.acquire());
        begin(&mut inner, readiness, config, template, request)
    }
}

/// Begins a call.
#[inline]
fn begin<S, B, P, X, E>(
    inner: &mut S,
    readiness: Readiness,
    config: Ref<Config<P>>,
    template: Option<impl FnOnce() -> Ref<Template<S>>>,
    mut request: Request<B>,
) -> ExchangeFuture<S, B, P>
where
    P: Spec,
    P::Requests: RequestMode<B>,
    P::Errors: ResponseMode<E, X>,
    S: WrapBody<RequestBodyOf<P, B>, Body = X, ServiceError = E>,
{
    if let Readiness::Rejected(rejected) = readiness {
        let (now, rejection) = *rejected;
        return begin_rejected(config, now, rejection, request);
    }
    let now = Instant::now();
    let mut active = Active::begin(config, now);
    let Split { config, context, permit, attempt, notes } = active.state().split();
    context.flow_controlled = request.version() >= Version::HTTP_2;
    attempt.timeouts = config.timeouts.on_request(context, &mut request);
    config.errors.note(notes, &request);
    let mut rejection = config.timeouts.reject(context);
    if rejection.is_none() {
        match config.handling.bypasses(now) {
            Ok(bypasses) => context.bypass = bypasses,
            Err(all) => rejection = Some(all),
        }
    }
    if rejection.is_none() {
        match config.per_call.admit(context) {
            Ok(admitted) => *permit = Some(admitted),
            Err(own) => rejection = Some(own),
        }
    }
    if rejection.is_none() && !context.bypass {
        config.per_attempt.on_request(context, &request);
        rejection = attempt.admit(config, context).err();
    }
    if P::SPANS && rejection.is_none() {
        attempt.span = super::span::AttemptSpan::open(&request, 0);
    }
    // the retry budget does not count a rejected call, and its request is not copied
    let once = rejection.is_some() || context.bypass;
    let started = config.requests.begin(&request, context, once);
    if let Some(rejection) = rejection {
        give_back(inner, template, &readiness);
        return reject(active, started, request.into_body(), rejection);
    }
    let mut retry_state = None;
    // in one move: a request is large
    let request = request.map(|body| {
        let (kept, body) = config.requests.wrap(started, body, now, &mut attempt.upload);
        retry_state = Some(kept);
        body
    });
    let Some(retry_state) = retry_state else { unreachable!("the body was mapped") };
    let Readiness::Ready = readiness else {
        return begin_slow(inner, readiness, active, retry_state, template, request);
    };
    let may_repeat = config.requests.may_repeat(&retry_state);
    let entered = attempt.span.enter();
    let calls = ClientCalls::begin();
    if may_repeat {
        forget_endpoint();
    }
    let call = inner.call(request);
    if may_repeat {
        attempt.endpoint = last_endpoint();
    }
    drop(entered);
    attempt.calls = P::Errors::count(calls);
    let template = if may_repeat { template.map(|hold| hold()) } else { None };
    ExchangeFuture::new(State::Attempt { call }, active, Some(retry_state), template)
}

/// Begins a call whose inner service is not known to be ready.
#[cold]
#[inline(never)]
fn begin_slow<S, B, P>(
    inner: &mut S,
    readiness: Readiness,
    mut active: Active<P>,
    retry_state: RetryStateOf<P, B>,
    template: Option<impl FnOnce() -> Ref<Template<S>>>,
    request: Request<RequestBodyOf<P, B>>,
) -> ExchangeFuture<S, B, P>
where
    P: Spec,
    P::Requests: RequestMode<B>,
    S: WrapBody<RequestBodyOf<P, B>>,
{
    let template = template.map(|hold| hold());
    let attempt = &mut active.state().attempt;
    attempt.endpoint = None;
    let entered = attempt.span.enter();
    let calls = ClientCalls::begin();
    let state = match (readiness, &template) {
        (Readiness::Failed(error), _) => State::Failed { error: Some(error) },
        // the service that was polled keeps its place in the queue
        (Readiness::Pending | Readiness::NotPolled, Some(template)) if P::WAITS => {
            let next = (template.clone)(inner);
            let waiting = (std::mem::replace(inner, next), request);
            State::NotReady { waiting: Some(Box::new(waiting)) }
        }
        // calling a service that was not polled is an error of the caller
        _ => State::Attempt { call: inner.call(request) },
    };
    drop(entered);
    attempt.calls = P::Errors::count(calls);
    ExchangeFuture::new(state, active, Some(retry_state), template)
}

/// Drops the readiness of an inner service that is not called, so that another call can use it.
///
/// A service without a template is not cloned: it keeps its readiness for its next call.
#[cold]
fn give_back<S>(inner: &mut S, template: Option<impl FnOnce() -> Ref<Template<S>>>, readiness: &Readiness) {
    if let (Readiness::Ready | Readiness::Pending, Some(hold)) = (readiness, template) {
        *inner = (hold().clone)(inner);
    }
}

/// Begins a call with a local response.
#[cold]
fn reject<S, B, P>(
    mut active: Active<P>,
    started: <P::Requests as RequestMode<B>>::Started,
    body: B,
    rejection: Rejection,
) -> ExchangeFuture<S, B, P>
where
    P: Spec,
    P::Requests: RequestMode<B>,
    S: WrapBody<RequestBodyOf<P, B>>,
{
    // outer layers count this rejection as one client call
    ClientCall::next();
    let Split { config, permit, attempt, .. } = active.state().split();
    if permit.is_none() {
        config.per_call.on_rejected(&rejection);
    }
    let now = Instant::now();
    let (retry_state, body) = config.requests.wrap(started, body, now, &mut attempt.upload);
    drop(body);
    attempt.span.on_failure(rejection.failure());
    ExchangeFuture::new(State::Rejected { rejection: Some(Box::new(rejection)) }, active, Some(retry_state), None)
}

/// Begins a call that was rejected before the inner service was polled: it must not be called.
#[cold]
fn begin_rejected<S, B, P>(
    config: Ref<Config<P>>,
    now: Instant,
    rejection: Rejection,
    mut request: Request<B>,
) -> ExchangeFuture<S, B, P>
where
    P: Spec,
    P::Requests: RequestMode<B>,
    S: WrapBody<RequestBodyOf<P, B>>,
{
    let mut active = Active::begin(config, now);
    let Split { config, context, attempt, notes, .. } = active.state().split();
    context.flow_controlled = request.version() >= Version::HTTP_2;
    attempt.timeouts = config.timeouts.on_request(context, &mut request);
    config.errors.note(notes, &request);
    config.per_attempt.on_rejected(&rejection);
    let started = config.requests.begin(&request, context, true);
    reject(active, started, request.into_body(), rejection)
}

impl<S: Clone, P: Spec> Clone for Exchange<S, P> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            config: self.config.clone(),
            template: self.template.clone(),
            readiness: Readiness::NotPolled,
        }
    }
}

impl<S: fmt::Debug, P: Spec> fmt::Debug for Exchange<S, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exchange").field("inner", &self.inner).finish_non_exhaustive()
    }
}
