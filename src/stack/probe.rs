//! The requests with which a stack tests its upstream while the circuit is open.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use http::header::{EXPECT, UPGRADE};
use http::{HeaderMap, Method, Request};
use http_body::Body;
use tokio::time::{Instant, timeout_at};
use tower_service::Service;

use super::BoxError;
use super::errors::Errors;
use super::live_config::LiveConfig;
use super::request_meta::Notes;
use super::requests::{RequestBody, empty};
use super::spec::Config;
use super::stats::StatsRecorder;
use crate::body::WrapBody;
use crate::breaker::{CircuitHandle, RequestProbe};
use crate::cause::{BadGatewayCause, ClientCalls, Failure, Protocol};
use crate::deadline::Deadline;
use crate::exchange::{CallContext, ErrorMode, Outcome, Ref, ResponseMode, ResponseSummary, Template};

/// The largest head that is copied, in bytes.
const MAX_HEAD: usize = 8 << 10;
/// A response body is read up to this size, so that its connection can be reused.
const MAX_BODY: usize = 64 << 10;

/// Which requests a stack sends as probes.
#[derive(Clone, Debug, Default)]
pub(super) enum ProbeSource {
    /// Copies of refused requests.
    #[default]
    Refused,
    /// This request.
    Fixed(Arc<Request<()>>),
}

/// Chooses the probes of a stack.
#[derive(Clone, Debug)]
pub(super) struct Prober {
    circuit: CircuitHandle,
    source: ProbeSource,
    recorder: Arc<StatsRecorder>,
    /// The usual time of a response, in nanoseconds; 0 if unknown. Kept, because it is forgotten during an outage.
    usual: Arc<AtomicU64>,
}

impl Prober {
    pub(super) fn new(circuit: CircuitHandle, source: ProbeSource, recorder: Arc<StatsRecorder>) -> Self {
        Self { circuit, source, recorder, usual: Arc::default() }
    }

    /// Whether the circuit is closed: one load.
    #[inline]
    pub(super) fn is_idle(&self) -> bool {
        self.circuit.is_closed()
    }

    /// The probe that a request may become if it is refused.
    #[inline]
    pub(super) fn draft<B: Body>(&self, request: &Request<B>, live: &LiveConfig) -> Option<Box<ProbeDraft>> {
        if self.circuit.wants_probe() { self.draft_now(request, live) } else { None }
    }

    fn draft_now<B: Body>(&self, request: &Request<B>, live: &LiveConfig) -> Option<Box<ProbeDraft>> {
        let head = match &self.source {
            ProbeSource::Refused if !may_be_copied(request) => return None,
            ProbeSource::Refused => None,
            ProbeSource::Fixed(request) => Some(Request::clone(request)),
        };
        let config = live.current().1;
        let head = head.unwrap_or_else(|| copy(request, &config));
        Some(Box::new(ProbeDraft { head, config }))
    }

    /// The circuit refused a request.
    pub(super) fn on_refused(&self, probe: Option<RequestProbe>) {
        let usual = probe.is_some().then(|| self.usual()).flatten();
        self.circuit.on_refused(probe, usual);
    }

    /// The time within which nine of ten responses came, before the outage.
    fn usual(&self) -> Option<Duration> {
        if let Some(latency) = self.recorder.latency(Instant::now()) {
            self.usual.store(u64::try_from(latency.p90.as_nanos()).unwrap_or(u64::MAX), Relaxed);
        }
        Some(self.usual.load(Relaxed)).filter(|usual| *usual > 0).map(Duration::from_nanos)
    }
}

/// Whether a request is safe, has no body, and is of bounded size.
fn may_be_copied<B: Body>(request: &Request<B>) -> bool {
    let headers = request.headers();
    let is_safe = matches!(*request.method(), Method::GET | Method::HEAD) && request.body().is_end_stream();
    let path = request.uri().path_and_query().map_or(0, |path| path.as_str().len());
    let size = || headers.iter().fold(path, |sum, (name, value)| sum + name.as_str().len() + value.len());
    is_safe && !headers.contains_key(UPGRADE) && !headers.contains_key(EXPECT) && size() <= MAX_HEAD
}

/// Copies the head of a request, with the extensions that a retry would have.
fn copy<B>(request: &Request<B>, config: &Config) -> Request<()> {
    let mut copy = Request::new(());
    copy.method_mut().clone_from(request.method());
    copy.uri_mut().clone_from(request.uri());
    *copy.version_mut() = request.version();
    copy.headers_mut().clone_from(request.headers());
    if let Some(retry) = &config.requests.settings {
        retry.carry_extensions(request.extensions(), copy.extensions_mut());
        // a probe has its own
        copy.extensions_mut().remove::<Deadline>();
    }
    copy
}

/// A service that a task may call.
///
/// A trait of its own, because a bound on the service's future would hide the message of [`WrapBody`].
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a service that the stack can call from a task",
    note = "the stack sends probes while its circuit is open: the service has to be `Send` and `'static`, and its future `Send`"
)]
#[allow(unnameable_types)] // implemented for all suitable services
pub trait SendService<B>: Service<Request<B>, Future: Send> + Send + 'static {}

#[diagnostic::do_not_recommend]
impl<S, B> SendService<B> for S where S: Service<Request<B>, Future: Send> + Send + 'static {}

/// The head of a probe, and the settings that classify its outcome.
pub(super) struct ProbeDraft {
    head: Request<()>,
    config: Arc<Config>,
}

impl ProbeDraft {
    /// A probe that sends the request through a clone of the inner service.
    ///
    /// It passes neither the circuit nor the limiter, and is not counted; what the inner service returns is classified as in a
    /// call.
    pub(super) fn probe<S, B, X, E>(self, template: Ref<Template<S>>) -> RequestProbe
    where
        S: WrapBody<RequestBody<B>, Body = X, ServiceError = E> + SendService<RequestBody<B>>,
        B: Body<Data = Bytes, Error: Into<BoxError>> + 'static,
        X: Body<Data = Bytes, Error: Into<BoxError>> + Send + Unpin + 'static,
        E: Into<BoxError>,
    {
        Box::new(move |deadline| {
            Box::pin(async move {
                let protocol = Protocol::of(self.head.method(), self.head.headers());
                let response = match respond(template, &self.config.errors, self.head, deadline).await {
                    Ok(response) => response,
                    Err(failure) => return Outcome::failure(&failure),
                };
                let mut summary = ResponseSummary::of(
                    &response,
                    &CallContext { protocol: Some(protocol), ..CallContext::new(deadline) },
                );
                match read(response.into_body(), deadline).await {
                    Ok(trailers) => {
                        if let Some(trailers) = trailers {
                            summary.add_fields(&trailers, protocol);
                        }
                        Outcome::of(summary, false)
                    }
                    Err((cause, failure)) => Outcome::of(summary.with_body_failure(cause, failure), false),
                }
            })
        })
    }
}

/// Waits for the response head.
async fn respond<S, B, X, E>(
    template: Ref<Template<S>>,
    errors: &Errors,
    head: Request<()>,
    deadline: Instant,
) -> Result<http::Response<X>, Failure>
where
    S: WrapBody<RequestBody<B>, Body = X, ServiceError = E>,
    B: Body<Data = Bytes, Error: Into<BoxError>>,
    X: Body<Data = Bytes, Error: Into<BoxError>> + Send + Unpin + 'static,
    E: Into<BoxError>,
{
    let notes = Notes::default();
    let failed = |error: E| errors.classify_not_ready(&notes, error.into(), ClientCalls::default());
    let mut service = template.service();
    let ready = timeout_at(deadline, std::future::poll_fn(|cx| service.poll_ready(cx))).await;
    ready.map_err(|_| Failure::new(BadGatewayCause::QueueTimeout))?.map_err(failed)?;
    let call = service.call(head.map(|()| empty()));
    let response = timeout_at(deadline, call).await;
    let mut response = response.map_err(|_| Failure::new(BadGatewayCause::FirstByteTimeout))?.map_err(failed)?;
    let checked = ResponseMode::<E, X>::check(errors, &notes, &mut response, ClientCalls::default(), None);
    checked.map_or(Ok(response), Err)
}

/// Reads and drops a body, up to its bound and until the deadline; returns its trailers.
async fn read<X>(mut body: X, deadline: Instant) -> Result<Option<HeaderMap>, (BadGatewayCause, Option<Failure>)>
where
    X: Body<Data = Bytes, Error: Into<BoxError>> + Unpin,
{
    let mut left = MAX_BODY;
    loop {
        let polled = timeout_at(deadline, std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx))).await;
        // that a body is long is no failure
        let Ok(Some(frame)) = polled else { return Ok(None) };
        let frame = frame.map_err(|error| {
            let (_, cause, failure) = Errors::body_error(error.into());
            (cause, failure)
        })?;
        let Some(rest) = left.checked_sub(frame.data_ref().map_or(0, Bytes::len)) else { return Ok(None) };
        left = rest;
        if let Ok(trailers) = frame.into_trailers() {
            return Ok(Some(trailers));
        }
    }
}
