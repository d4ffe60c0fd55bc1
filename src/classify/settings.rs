//! The settings of a `ClassifyLayer`, and the local responses it makes.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body::Body;

use super::ConnectionStats;
use super::attempt_outcome::AttemptOutcome;
use super::classification::{AttemptContext, Classification};
use super::head::{Expected, check_head, fold_length, is_plainly_framed};
use super::markers::{AlreadyReported, RelayedFailure, is_reported, reported};
use crate::body::BoxError;
use crate::cause::{
    self, BadGatewayCause, ClientCalls, CompleteResponse, Detail, Evidence, Failure, FailureBuilder, LocalResponse,
    ProxyStatus, ProxyStatusEntry, RejectedRequest, Replay,
};
use crate::event::{Event, Observer, RequestInfo, TracingObserver};
use crate::exchange::{CancelReason, drop_reason};
use crate::opaque::Opaque;

type Classifier = dyn Fn(&AttemptOutcome<'_>) -> Option<Classification> + Send + Sync;
type ChooseStatus = dyn Fn(&Failure) -> StatusCode + Send + Sync;

pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(super) proxy_status: Option<ProxyStatus>,
    pub(super) failure_statuses: Vec<StatusCode>,
    pub(super) first_frame_timeout: Duration,
    pub(super) classifier: Option<Opaque<Arc<Classifier>>>,
    pub(super) choose_status: Option<Opaque<Arc<ChooseStatus>>>,
    /// Whether failures are written to the log.
    pub(super) logs: bool,
    pub(super) observers: Vec<Opaque<Arc<dyn Observer>>>,
    /// The stack's name for its upstream.
    upstream: Option<Arc<str>>,
    /// The layer that reports failures.
    pub(super) reporter: Reporter,
}

/// The one of two nested classify layers that reports a failure.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Reporter {
    #[default]
    This,
    /// The outer one, which knows how the last attempt ended.
    Outer,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            proxy_status: None,
            failure_statuses: vec![
                StatusCode::BAD_GATEWAY,
                StatusCode::SERVICE_UNAVAILABLE,
                StatusCode::GATEWAY_TIMEOUT,
            ],
            first_frame_timeout: Duration::from_millis(5),
            classifier: None,
            choose_status: None,
            logs: true,
            observers: Vec::new(),
            upstream: None,
            reporter: Reporter::default(),
        }
    }
}

/// The request data needed after the request has been sent.
#[derive(Debug)]
pub(crate) struct RequestSummary {
    pub(crate) request: RequestInfo,
    expected: Expected,
}

impl RequestSummary {
    /// Overwrites the summary field by field, which avoids the move of a large value.
    #[inline]
    pub(crate) fn update<B>(&mut self, request: &Request<B>, asked: Expected, request_id: Option<&HeaderValue>) {
        let method = request.method();
        self.expected = if *method == Method::CONNECT { Expected::Upgrade } else { asked };
        let RequestInfo { method: noted, target, request_id: id } = &mut self.request;
        if noted != method {
            noted.clone_from(method);
        }
        *target = request.uri().path_and_query().cloned();
        if let Some(request_id) = request_id {
            *id = Some(request_id.clone());
        }
    }

    /// A value without a request.
    pub(crate) fn empty() -> Self {
        Self {
            request: RequestInfo { method: Method::GET, target: None, request_id: None },
            expected: Expected::Response,
        }
    }

    /// Releases the references to the request.
    #[inline]
    pub(crate) fn clear(&mut self) {
        let RequestInfo { method, target, request_id } = &mut self.request;
        // an extension method may be on the heap
        if matches!(*method, Method::GET | Method::POST) {
            (*target, *request_id) = (None, None);
        } else {
            (*method, *target, *request_id) = (Method::GET, None, None);
        }
    }
}

impl Default for RequestSummary {
    fn default() -> Self {
        Self::empty()
    }
}

impl Settings {
    /// These settings for a stack that has this name for its upstream.
    pub(crate) fn named(&self, upstream: &Arc<str>) -> Arc<Self> {
        Arc::new(Self { upstream: Some(upstream.clone()), ..self.clone() })
    }

    /// Returns a record under the stack's name for its upstream.
    pub(crate) fn name_upstream(&self, failure: Failure) -> Failure {
        match &self.upstream {
            Some(name) => failure.named(name),
            None => failure,
        }
    }

    /// Whether this layer reports failures.
    pub(crate) fn reports(&self) -> bool {
        self.reporter == Reporter::This
    }

    pub(crate) fn failure_statuses(&self) -> &[StatusCode] {
        &self.failure_statuses
    }

    /// How long a head waits for the body's first frame.
    pub(crate) fn first_frame_timeout(&self) -> Duration {
        self.first_frame_timeout
    }

    /// Classifies the error of a service whose `call` made these client calls.
    pub(crate) fn judge(
        &self,
        request: &RequestInfo,
        error: BoxError,
        scene: &AttemptContext,
        calls: ClientCalls,
    ) -> Failure {
        let verdict = self.classifier.as_ref().and_then(|judge| judge(&AttemptOutcome::error_of(request, &*error)));
        match verdict {
            Some(verdict) => verdict.into_failure(scene).source(error).build(),
            None => Failure::of_call(error, scene, calls),
        }
    }

    pub(crate) fn has_classifier(&self) -> bool {
        self.classifier.is_some()
    }

    /// Attaches the failure of a status that only the user counts as one, before a retry is decided on.
    #[cold]
    pub(crate) fn attach_declared<B>(&self, response: &mut Response<B>) {
        let status = response.status();
        let is_declared = self.failure_statuses.contains(&status) && !matches!(status.as_u16(), 0..=499 | 502..=504);
        let is_classified =
            BadGatewayCause::of(response).is_some() || response.extensions().get::<RejectedRequest>().is_some();
        if is_declared && !is_classified {
            let hop = failed_hop(response.headers());
            let met = response.extensions_mut().remove::<RelayedFailure>();
            let failure = met.map_or_else(|| upstream_status(status), |met| met.0.into_builder());
            cause::attach(response, failure.remote_hop(hop).build());
        }
    }

    /// Asks the user's classifier about a response: an error status gets its failure attached, that of another is returned.
    pub(crate) fn judge_response<B>(&self, request: &RequestInfo, response: &mut Response<B>) -> Option<Failure> {
        let judge = self.classifier.as_ref()?;
        let (status, extensions) = (response.status(), response.extensions());
        let is_classified = BadGatewayCause::of(response).is_some() || extensions.get::<RejectedRequest>().is_some();
        if is_classified || status == StatusCode::SWITCHING_PROTOCOLS {
            return None;
        }
        let verdict = judge(&AttemptOutcome::response_of(request, status, response.headers()))?;
        let peer = extensions.get::<ConnectionStats>().and_then(ConnectionStats::peer);
        let failure = verdict.into_failure(&AttemptContext::default().peer(peer));
        if status.as_u16() < 400 {
            return Some(failure.build());
        }
        let failure = if verdict.has_detail() { failure } else { failure.detail(Detail::Status(status)) };
        cause::attach(response, failure.build());
        None
    }

    /// Whether the head waits for the first frame.
    pub(crate) fn waits_for_first_frame<B: Body>(&self, answer: &Response<B>, ask: &RequestSummary) -> bool {
        let late = answer.body().is_end_stream()
            || self.first_frame_timeout.is_zero()
            || answer.status() == StatusCode::SWITCHING_PROTOCOLS
            || ask.request.method == Method::HEAD;
        !late && !is_event_stream(answer)
    }

    /// Reports a failure; returns its record under the request id of the report.
    pub(crate) fn report(&self, exchange: &mut RequestInfo, failure: Failure) -> Failure {
        if self.reporter == Reporter::Outer || is_reported(&failure) {
            return failure;
        }
        if exchange.request_id.as_ref().is_some_and(|id| !is_fit(id)) {
            exchange.request_id = None;
        }
        // generate an id only when it is reported; not for the many calls an open circuit refuses
        if failure.cause() != BadGatewayCause::CircuitOpen {
            // the failure of an inner layer's call may be known under an id already
            exchange.request_id.get_or_insert_with(|| failure.request_id().cloned().unwrap_or_else(random_id));
        }
        let event = Event::Failed(exchange, &failure);
        if self.logs {
            TracingObserver.on_event(&event);
        }
        self.observers.iter().for_each(|observer| observer.on_event(&event));
        match &exchange.request_id {
            // rejections of an open circuit share one record, which is not copied for each
            Some(id) if failure.cause() != BadGatewayCause::CircuitOpen => {
                failure.into_builder().request_id(id).build()
            }
            _ => failure,
        }
    }

    /// Reports a body's failure and marks it as reported.
    pub(crate) fn mark_reported(&self, exchange: &mut RequestInfo, failure: Failure) -> Failure {
        if self.reporter == Reporter::Outer {
            return failure;
        }
        reported(self.report(exchange, self.name_upstream(failure)))
    }

    /// The call was dropped before its response: the client disconnected, unless a layer of this crate dropped it.
    #[cold]
    pub(crate) fn on_client_gone(&self, ask: &mut RequestSummary) {
        if self.reporter == Reporter::This && drop_reason() == CancelReason::Dropped && !std::thread::panicking() {
            let failure = Failure::builder(BadGatewayCause::ClientClosed).replay(Replay::Never, Evidence::Inferred);
            self.report(&mut ask.request, self.name_upstream(failure.build()));
        }
    }

    /// Makes the local response for a failure.
    pub(crate) fn refuse(&self, ask: &mut RequestSummary, failure: &Failure) -> Response<Bytes> {
        let failure = &self.report(&mut ask.request, failure.clone());
        let status = self.choose_status.as_ref().map_or_else(|| failure.status(), |choose| choose(failure));
        let mut answer = cause::local_response(failure, status, Some(&ask.request.method));
        if self.reporter == Reporter::Outer {
            answer.extensions_mut().insert(LocalResponse);
            return answer;
        }
        if let Some(member) = &self.proxy_status {
            member.append_failure(answer.headers_mut(), failure);
        }
        if let Some(id) = ask.request.request_id.take() {
            answer.headers_mut().insert(REQUEST_ID, id);
        }
        answer.extensions_mut().insert(CompleteResponse);
        answer
    }

    /// Annotates a response with a failure status.
    #[inline]
    pub(crate) fn annotate<B>(&self, answer: &mut Response<B>, ask: &mut RequestSummary) {
        let status = answer.status();
        if status.as_u16() >= 400 && self.reporter == Reporter::This {
            self.annotate_failure(answer, ask);
        }
    }

    /// Completes a local response that an inner layer made.
    fn complete<B>(&self, answer: &mut Response<B>, ask: &mut RequestSummary, failure: &Failure) {
        if let Some(choose) = &self.choose_status {
            *answer.status_mut() = choose(failure);
        }
        if let Some(id) = ask.request.request_id.take() {
            answer.headers_mut().insert(REQUEST_ID, id);
        }
    }

    fn annotate_failure<B>(&self, answer: &mut Response<B>, ask: &mut RequestSummary) {
        let extensions = answer.extensions();
        if extensions.get::<AlreadyReported>().is_some() || extensions.get::<CompleteResponse>().is_some() {
            return;
        }
        let status = answer.status();
        if answer.extensions_mut().remove::<RejectedRequest>().is_some() {
            if let Some(member) = &self.proxy_status {
                member.append_rejection(answer.headers_mut(), status);
            }
            answer.extensions_mut().insert(AlreadyReported);
            return;
        }
        let local = answer.extensions_mut().remove::<LocalResponse>().is_some();
        let told = Failure::of(answer).cloned().or_else(|| BadGatewayCause::of(answer).map(Failure::new));
        let member = self.proxy_status.as_ref();
        // a service of the user's may have attached a cause
        let failure = if let Some(failure) = told {
            if let Some(member) = member {
                member.append_failure(answer.headers_mut(), &failure);
            }
            failure
        } else {
            let counts = self.failure_statuses.contains(&status);
            let hop = if counts { failed_hop(answer.headers()) } else { None };
            if let Some(member) = member {
                member.append_received(answer.headers_mut(), status);
                // an outer layer has nothing to add
                answer.extensions_mut().insert(AlreadyReported);
            }
            if !counts {
                return;
            }
            let met = answer.extensions_mut().remove::<RelayedFailure>();
            met.map_or_else(|| upstream_status(status), |met| met.0.into_builder()).remote_hop(hop).build()
        };
        let failure = self.report(&mut ask.request, self.name_upstream(failure));
        if local {
            self.complete(answer, ask, &failure);
            answer.extensions_mut().insert(CompleteResponse);
        } else {
            answer.extensions_mut().insert(AlreadyReported);
        }
        cause::attach(answer, failure);
    }
}

/// The failure of a failure status of the upstream itself.
pub(crate) fn upstream_status(status: StatusCode) -> FailureBuilder {
    Failure::builder(BadGatewayCause::UpstreamStatus).detail(Detail::Status(status))
}

/// The hop nearest to the origin that reports an error; names too long to log are ignored.
fn failed_hop(headers: &HeaderMap) -> Option<ProxyStatusEntry> {
    let told =
        |member: &ProxyStatusEntry| member.error().is_some_and(|error| error.len() <= 64) && member.name().len() <= 256;
    cause::entries(headers).into_iter().find(told)
}

/// Whether a head needs no further checks.
#[inline]
pub(crate) fn is_plain_head<B>(answer: &Response<B>) -> bool {
    let status = answer.status().as_u16();
    answer.extensions().is_empty() && status < 400 && status != 101 && is_plainly_framed(answer.headers())
}

/// Returns the failure of a local response whose "not sent" belongs to another call: its text has to be written anew.
#[cold]
pub(crate) fn disowned<B>(answer: &mut Response<B>, calls: ClientCalls) -> Option<Failure> {
    if !Failure::of_calls(answer, calls) || !cause::is_local(answer.extensions()) {
        return None;
    }
    let failure = Failure::of(answer)?.clone();
    let complete = answer.extensions().get::<CompleteResponse>().is_some();
    Some(if complete { reported(failure) } else { failure })
}

/// Returns the failure of an invalid head and closes its connection, because the end of the message is unknown.
///
/// In a valid head, equal lengths become one.
pub(crate) fn refused_head<B>(answer: &mut Response<B>, ask: &RequestSummary) -> Option<Failure> {
    let stamp = answer.extensions().get::<ConnectionStats>();
    if let Some(stamp) = stamp {
        stamp.record_response();
        if answer.version() == Version::HTTP_2 {
            stamp.multiplexed();
        }
    }
    let Some(verdict) = check_head(answer, ask.expected) else {
        fold_length(answer.headers_mut());
        return None;
    };
    let scene = stamp.map_or_else(AttemptContext::default, |stamp| {
        stamp.kill();
        AttemptContext::default().wire(stamp.wire()).peer(stamp.peer())
    });
    Some(verdict.into_failure(&scene).build())
}

/// The counters of a failed request's connection, if hyper-util's client used a connector of this crate.
#[cfg(feature = "client")]
pub(crate) fn scene_of(error: &(dyn Error + 'static)) -> AttemptContext {
    let info = error.downcast_ref::<hyper_util::client::legacy::Error>().and_then(|error| error.connect_info());
    let mut extras = http::Extensions::new();
    if let Some(info) = info {
        info.get_extras(&mut extras);
    }
    match extras.get::<ConnectionStats>() {
        Some(stamp) => AttemptContext::default().wire(stamp.wire()).peer(stamp.peer()),
        None => AttemptContext::default(),
    }
}

#[cfg(not(feature = "client"))]
pub(crate) fn scene_of(_: &(dyn Error + 'static)) -> AttemptContext {
    AttemptContext::default()
}

fn is_event_stream<B>(answer: &Response<B>) -> bool {
    let kind = answer.headers().get(CONTENT_TYPE).map(HeaderValue::as_bytes);
    kind.is_some_and(|kind| kind.len() >= 17 && kind[..17].eq_ignore_ascii_case(b"text/event-stream"))
}

/// Whether a client's id can be logged and echoed unchanged: bounded, and a single word.
fn is_fit(id: &HeaderValue) -> bool {
    (1..=128).contains(&id.len()) && id.as_bytes().iter().all(|byte| byte.is_ascii_graphic() && !b"\"'`".contains(byte))
}

/// Generates an id; it can be guessed.
fn random_id() -> HeaderValue {
    let mut id = [0; 32];
    let digits = b"0123456789abcdef";
    let random = fastrand::u128(..);
    for (place, digit) in id.iter_mut().enumerate() {
        *digit = digits[usize::try_from(random >> (4 * place) & 15).unwrap_or_default()];
    }
    HeaderValue::from_bytes(&id).unwrap_or_else(|_| HeaderValue::from_static("none"))
}
