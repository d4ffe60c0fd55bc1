//! Requests that test an upstream while its circuit is open: they are sent by a task, outside of any call.
//!
//! The body of a probe is empty, and its response is dropped. It passes through a clone of the inner service, and through none
//! of the components: it takes no slot and is not counted.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{EXPECT, UPGRADE};
use http::{Extensions, HeaderMap, Method, Request};
use http_body::Body;
use tokio::time::{Instant, timeout_at};
use tower_service::Service;

use super::spec::{Config, ErrorMode, NotesOf, ResponseMode, Spec};
use super::{BoxError, CallContext, Exchange, Outcome, Ref, ResponseSummary, Template};
use crate::body::{TrackedUpload, WrapBody};
use crate::cause::{BadGatewayCause, ClientCalls, Failure, Protocol};
use crate::deadline::Deadline;

/// The largest head that is copied, in bytes.
const MAX_HEAD: usize = 8 << 10;
/// A response body is read up to this size, so that its connection can be reused.
const MAX_BODY: usize = 64 << 10;

/// A request to send, within the deadline that is its argument; and its outcome.
pub(crate) type RequestProbe = Box<dyn FnOnce(Instant) -> BoxFuture + Send>;
type BoxFuture = Pin<Box<dyn Future<Output = Outcome> + Send>>;

/// Which requests are sent as probes.
#[derive(Clone, Debug, Default)]
pub(crate) enum ProbeSource {
    /// Copies of requests of clients.
    #[default]
    Copies,
    /// This request.
    Fixed(Arc<Request<()>>),
}

impl ProbeSource {
    /// The head of the probe that a request may become; `carry` copies the extensions that it needs.
    pub(crate) fn head<B: Body>(
        &self,
        request: &Request<B>,
        carry: impl FnOnce(&Extensions, &mut Extensions),
    ) -> Option<Request<()>> {
        match self {
            Self::Fixed(request) => Some(Request::clone(request)),
            Self::Copies if may_be_copied(request) => Some(copy(request, carry)),
            Self::Copies => None,
        }
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

fn copy<B>(request: &Request<B>, carry: impl FnOnce(&Extensions, &mut Extensions)) -> Request<()> {
    let mut copy = Request::new(());
    copy.method_mut().clone_from(request.method());
    copy.uri_mut().clone_from(request.uri());
    *copy.version_mut() = request.version();
    copy.headers_mut().clone_from(request.headers());
    carry(request.extensions(), copy.extensions_mut());
    // a probe has its own
    copy.extensions_mut().remove::<Deadline>();
    copy
}

/// A service that a task may call.
///
/// A trait of its own, because a bound on the service's future would hide the message of [`WrapBody`].
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a service that a task can call",
    note = "probes are sent while a circuit is open: the service has to be `Send` and `'static`, and its future `Send`"
)]
#[allow(unnameable_types)] // implemented for all suitable services
pub trait SendService<B>: Service<Request<B>, Future: Send> + Send + 'static {}

#[diagnostic::do_not_recommend]
impl<S, B> SendService<B> for S where S: Service<Request<B>, Future: Send> + Send + 'static {}

impl<S, P: Spec> Exchange<S, P> {
    /// A probe that sends this head through a clone of the inner service; `None` without a template of that.
    ///
    /// The response or error of the inner service is classified as in a call.
    pub(crate) fn probe<B, X, E>(&self, head: Request<()>) -> Option<RequestProbe>
    where
        P::Errors: ResponseMode<E, X>,
        S: WrapBody<TrackedUpload<B>, Body = X, ServiceError = E> + SendService<TrackedUpload<B>>,
        B: Body + 'static,
        X: Body<Data = Bytes, Error: Into<BoxError>> + Send + Unpin + 'static,
        E: Into<BoxError>,
    {
        let (template, config) = (self.template()?, self.config(&head));
        // a block, because the type of an async function would have to outlive `E`
        Some(Box::new(move |deadline| {
            Box::pin(async move { send::<S, P, B, X, E>(template, config, head, deadline).await })
        }))
    }
}

async fn send<S, P, B, X, E>(
    template: Ref<Template<S>>,
    config: Ref<Config<P>>,
    head: Request<()>,
    deadline: Instant,
) -> Outcome
where
    P: Spec,
    P::Errors: ResponseMode<E, X>,
    S: WrapBody<TrackedUpload<B>, Body = X, ServiceError = E>,
    B: Body,
    X: Body<Data = Bytes, Error: Into<BoxError>> + Unpin,
    E: Into<BoxError>,
{
    let protocol = Protocol::of(head.method(), head.headers());
    let response = match respond::<S, P, B, X, E>(template, &config.errors, head, deadline).await {
        Ok(response) => response,
        Err(failure) => return Outcome::failure(&failure),
    };
    let context = CallContext { protocol: Some(protocol), ..CallContext::new(deadline) };
    let mut summary = ResponseSummary::of(&response, &context);
    match read::<P, X>(response.into_body(), deadline).await {
        Ok(trailers) => {
            if let Some(trailers) = trailers {
                summary.add_fields(&trailers, protocol);
            }
            Outcome::of(summary, false)
        }
        Err((cause, failure)) => Outcome::of(summary.with_body_failure(cause, failure), false),
    }
}

/// Waits for the response head.
async fn respond<S, P, B, X, E>(
    template: Ref<Template<S>>,
    errors: &P::Errors,
    head: Request<()>,
    deadline: Instant,
) -> Result<http::Response<X>, Failure>
where
    P: Spec,
    P::Errors: ResponseMode<E, X>,
    S: WrapBody<TrackedUpload<B>, Body = X, ServiceError = E>,
    B: Body,
    E: Into<BoxError>,
{
    // notes need not be `Sync`
    let notes = NotesOf::<P>::default;
    let failed = |error: E| errors.classify_not_ready(&notes(), error.into(), ClientCalls::default());
    let mut service = template.service();
    let ready = timeout_at(deadline, std::future::poll_fn(|cx| service.poll_ready(cx))).await;
    ready.map_err(|_| Failure::new(BadGatewayCause::QueueTimeout))?.map_err(failed)?;
    let call = service.call(head.map(|()| TrackedUpload::empty()));
    let response = timeout_at(deadline, call).await;
    let mut response = response.map_err(|_| Failure::new(BadGatewayCause::FirstByteTimeout))?.map_err(failed)?;
    let checked = ResponseMode::<E, X>::check(errors, &notes(), &mut response, ClientCalls::default(), None);
    checked.map_or(Ok(response), Err)
}

/// Reads and drops a body, up to its bound and until the deadline; returns its trailers.
async fn read<P, X>(mut body: X, deadline: Instant) -> Result<Option<HeaderMap>, (BadGatewayCause, Option<Failure>)>
where
    P: Spec,
    X: Body<Data = Bytes, Error: Into<BoxError>> + Unpin,
{
    let mut left = MAX_BODY;
    loop {
        let polled = timeout_at(deadline, std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx))).await;
        // that a body is long is no failure
        let Ok(Some(frame)) = polled else { return Ok(None) };
        let frame = frame.map_err(|error| {
            let (_, cause, failure) = P::Errors::body_error(error.into());
            (cause, failure)
        })?;
        let Some(rest) = left.checked_sub(frame.data_ref().map_or(0, Bytes::len)) else { return Ok(None) };
        left = rest;
        if let Ok(trailers) = frame.into_trailers() {
            return Ok(Some(trailers));
        }
    }
}
