//! Turns errors and unsafe heads into responses that carry a cause.
//!
//! [`ClassifyLayer`] is the layer nearest to the client that does the I/O. An error, and a response head that is unsafe to
//! forward, become a response with a [`Failure`] and its [`BadGatewayCause`](crate::BadGatewayCause) in the
//! extensions; the error type is [`Infallible`]. A relayed 502, 503 or 504 is passed on unchanged and
//! carries [`UpstreamStatus`](crate::BadGatewayCause::UpstreamStatus).
//!
//! The response head is held while the first poll of the body is pending, at most 5 ms, so that a crash
//! right after the head still is a 502 (hyper's server would send an empty reply). After a later failure the
//! data received so far is flushed, and the body ends with an error, so that it does not look complete. There are two
//! exceptions. For an HTTP/1.0 client, a body without a length ends with its connection: hyper's server can only close the
//! connection, and only over TLS does the missing `close_notify` show the truncation. And if the upstream's body has no
//! length and ends with its connection, its truncation cannot be detected.
//!
//! Local responses carry the request's `x-request-id`, or a generated one in place of an
//! [unfit one](crate::event::RequestInfo::request_id); the upstream receives the request's own.
//!
//! A call that is dropped before its response, other than by a layer of this crate, is reported as
//! [`ClientClosed`](crate::BadGatewayCause::ClientClosed).
//!
//! | setting | default |
//! |---|---|
//! | [`failure_statuses`](ClassifyLayer::failure_statuses) that count as the upstream's failure | 502, 503, 504 |
//! | [`first_frame_timeout`](ClassifyLayer::first_frame_timeout): the head, until the first frame | 5 ms; not for HEAD, 101, event streams |
//! | [`proxy_status`](ClassifyLayer::proxy_status) | off: needs the name of the deployment |
//! | [`observer`](ClassifyLayer::observer), [`without_log`](ClassifyLayer::without_log) | [`TracingObserver`](crate::event::TracingObserver): one `tracing` event per failure |
//!
//! ```
//! use std::convert::Infallible;
//! use http::{Request, Response};
//! use tower::{Layer, ServiceExt, service_fn};
//! use tower_upstream::{BadGatewayCause, ClassifyLayer, body::ResponseBody, cause::ProxyStatus};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! let layer = ClassifyLayer::new().proxy_status(ProxyStatus::new("edge.example").unwrap());
//! let refused = service_fn(|_: Request<()>| async {
//!     Err::<Response<ResponseBody<axum::body::Body>>, _>(std::io::Error::from(std::io::ErrorKind::ConnectionRefused))
//! });
//! let Ok(answer) = layer.layer(refused).oneshot(Request::new(())).await;
//! assert_eq!(answer.status(), 502);
//! assert_eq!(answer.headers()["proxy-status"], "edge.example; error=connection_refused");
//! assert_eq!(BadGatewayCause::of(&answer), Some(BadGatewayCause::ConnectionRefused));
//! # }
//! ```

mod attempt_outcome;
mod body;
mod chain;
mod classification;
#[cfg_attr(not(feature = "client"), allow(dead_code))] // without it, nothing fills them
mod connection_stats;
mod error_strings;
mod evidence;
mod facts;
#[cfg(feature = "http2")]
mod h2;
mod head;
mod hyper;
mod markers;
mod mode;
mod rules;
mod settings;

use std::convert::Infallible;
use std::error::Error;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use ::http_body::Body;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use tower_layer::Layer;
use tower_service::Service;

#[cfg(feature = "client")]
pub(crate) use self::markers::RelayedFailure;
use self::settings::Reporter;
#[cfg(feature = "client")]
pub(crate) use self::settings::upstream_status;
pub(crate) use self::settings::{REQUEST_ID, RequestSummary, Settings};
use crate::body::{BoxError, WrapBody};
use crate::cause::{ClientCalls, Failure, ProxyStatus, Replay};
use crate::event::Observer;
use crate::exchange::{Config, SendOnce, middleware_body, middleware_future, middleware_service, middleware_spec};
use crate::opaque::Opaque;

pub use self::attempt_outcome::AttemptOutcome;
pub(crate) use self::body::SharedBody;
use self::body::{truncated, was_truncated};
pub(crate) use self::chain::Chain;
pub(crate) use self::classification::AttemptContext;
pub use self::classification::Classification;
#[cfg(feature = "client")]
pub(crate) use self::classification::UploadState;
pub(crate) use self::connection_stats::ConnectionStats;
pub(crate) use self::head::Expected;
#[cfg(feature = "client")]
pub(crate) use self::head::check_head;
pub(crate) use self::mode::Classified;

impl Failure {
    /// Classifies any error that a client or service returned instead of a response.
    ///
    /// A record already in the chain is used; the error becomes the
    /// [`source`](Error::source).
    ///
    /// ```
    /// use tower_upstream::{BadGatewayCause, Failure};
    ///
    /// let error = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
    /// assert_eq!(Failure::from_error(error).cause(), BadGatewayCause::ConnectionRefused);
    /// ```
    pub fn from_error(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::from_error_with(error.into(), &AttemptContext::default())
    }

    /// Like [`from_error`](Self::from_error), with the context of the attempt.
    pub(crate) fn from_error_with(error: BoxError, scene: &AttemptContext) -> Self {
        Self::classified(error, |clues| rules::before_head(clues, scene), scene)
    }

    /// Classifies an error that ended a response body.
    pub fn from_body_error(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::from_body_error_with(error.into(), &AttemptContext::default())
    }

    /// Like [`from_body_error`](Self::from_body_error), with the context of the attempt.
    pub(crate) fn from_body_error_with(error: BoxError, scene: &AttemptContext) -> Self {
        Self::classified(error, |clues| rules::in_body(clues, scene), scene)
    }

    /// Classifies an error of a connector: there was no connection.
    #[cfg(feature = "client")]
    pub(crate) fn connecting(error: BoxError, peer: impl Into<Option<std::net::SocketAddr>>) -> Self {
        let scene = AttemptContext::default().peer(peer);
        Self::classified_by_connector(error, rules::connecting, &scene)
    }

    /// Classifies an error of a TCP connect without a protocol on top.
    #[cfg(feature = "client")]
    pub(crate) fn connecting_tcp(error: std::io::Error, peer: std::net::SocketAddr) -> Self {
        let judge = |clues: &facts::ErrorFacts| {
            rules::connecting(&facts::ErrorFacts { tcp: true, io: clues.io, ..Default::default() })
        };
        Self::classified_by_connector(error.into(), judge, &AttemptContext::default().peer(peer))
    }

    /// Classifies an error of a TLS handshake.
    #[cfg(all(feature = "client", feature = "rustls"))]
    pub(crate) fn handshaking(error: std::io::Error, peer: Option<std::net::SocketAddr>) -> Self {
        Self::classified_by_connector(error.into(), rules::handshaking, &AttemptContext::default().peer(peer))
    }

    /// Like [`from_error_with`](Self::from_error_with), by the layer that made these client calls.
    pub(crate) fn of_call(error: BoxError, scene: &AttemptContext, calls: ClientCalls) -> Self {
        let clues = facts::ErrorFacts::collect(&*error);
        // a connector's record belongs to the client whose error it is in; any other may belong to another call
        let foreign = clues.failure.is_some() && !clues.typed;
        let failure = Self::from_facts(error, &clues, |clues| rules::before_head(clues, scene), scene);
        if foreign { failure.about(calls) } else { failure.claimed(calls) }
    }

    fn classified(
        error: BoxError,
        judge: impl FnOnce(&facts::ErrorFacts) -> Classification,
        scene: &AttemptContext,
    ) -> Self {
        let clues = facts::ErrorFacts::collect(&*error);
        Self::from_facts(error, &clues, judge, scene)
    }

    /// Like [`classified`](Self::classified), for an error of a connector.
    #[cfg(feature = "client")]
    fn classified_by_connector(
        error: BoxError,
        judge: impl FnOnce(&facts::ErrorFacts) -> Classification,
        scene: &AttemptContext,
    ) -> Self {
        let clues = facts::ErrorFacts::collect_connecting(&*error);
        Self::from_facts(error, &clues, judge, scene)
    }

    fn from_facts(
        error: BoxError,
        clues: &facts::ErrorFacts,
        judge: impl FnOnce(&facts::ErrorFacts) -> Classification,
        scene: &AttemptContext,
    ) -> Self {
        if let Some(failure) = &clues.failure {
            return failure.clone().into_builder().fill(scene.peer, scene.connection()).build();
        }
        let failure = judge(clues).into_failure(scene).source(error).build();
        match (failure.replay(), failure.evidence()) {
            (Replay::NotSent, evidence) => failure.into_builder().unsent(evidence).build(),
            _ => failure,
        }
    }
}

#[cfg(feature = "axum")]
impl axum_core::response::IntoResponse for Failure {
    /// The local response that [`ClassifyLayer`] would return: status, cause and a short text.
    ///
    /// A [`ClassifyLayer`] around the handler completes it like its own. A failure that a stack or a [`ClassifyLayer`] has
    /// reported keeps the request id of that report, in `x-request-id`.
    fn into_response(self) -> Response<axum_core::body::Body> {
        let mut answer = crate::cause::local_response(&self, self.status(), None);
        if let Some(id) = self.request_id() {
            answer.headers_mut().insert(REQUEST_ID, id.clone());
        }
        answer.extensions_mut().insert(crate::cause::LocalResponse);
        answer.map(axum_core::body::Body::from)
    }
}

/// Turns errors and unsafe heads into responses; see the [module](self).
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct ClassifyLayer {
    settings: Arc<Settings>,
}

impl ClassifyLayer {
    /// The defaults of the [module's table](self).
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the deployment's member to `Proxy-Status` (RFC 9209) on failures and relayed statuses >= 400.
    pub fn proxy_status(mut self, member: ProxyStatus) -> Self {
        Arc::make_mut(&mut self.settings).proxy_status = Some(member);
        self
    }

    /// Sets which relayed statuses count as the upstream's failure (default 502, 503, 504): they are reported, and a retry layer
    /// sends an idempotent request again after them.
    ///
    /// After a 502, 503 or 504 it does so in any case. Which statuses count for a circuit is
    /// [`BreakerPolicy::statuses`](crate::breaker::BreakerPolicy::statuses).
    pub fn failure_statuses(mut self, statuses: impl IntoIterator<Item = StatusCode>) -> Self {
        Arc::make_mut(&mut self.settings).failure_statuses = statuses.into_iter().collect();
        self
    }

    /// Sets how long the head waits for the body's first frame (default 5 ms; zero: not at all).
    ///
    /// A longer time turns more crashes into a true 502, and delays responses whose body comes late.
    pub fn first_frame_timeout(mut self, limit: Duration) -> Self {
        Arc::make_mut(&mut self.settings).first_frame_timeout = limit;
        self
    }

    /// Sets a classifier that is called first, for every error and response head; if it returns `None`, the crate's rules decide.
    ///
    /// It returns a [`BadGatewayCause`](crate::BadGatewayCause), or a [`Classification`] with more detail, which counts as a failure
    /// for the log, the retry layer and the circuit. An error and a response with a status below 400 are replaced by a local
    /// response; another response is relayed unchanged and carries the cause. A response that has a cause already, and one with
    /// status 101, is not classified again.
    ///
    /// ```
    /// use tower_upstream::{BadGatewayCause, ClassifyLayer, classify::AttemptOutcome};
    ///
    /// let layer = ClassifyLayer::new().classifier(|attempt: &AttemptOutcome<'_>| {
    ///     let failed = attempt.headers().is_some_and(|headers| headers.contains_key("x-error"));
    ///     let refused = attempt.find_error::<std::num::ParseIntError>().is_some();
    ///     (failed || refused).then_some(BadGatewayCause::UpstreamStatus)
    /// });
    /// # let _ = layer;
    /// ```
    pub fn classifier<J, C>(mut self, judge: J) -> Self
    where
        J: Fn(&AttemptOutcome<'_>) -> Option<C> + Send + Sync + 'static,
        C: Into<Classification>,
    {
        let judge = move |attempt: &AttemptOutcome<'_>| judge(attempt).map(Into::into);
        Arc::make_mut(&mut self.settings).classifier = Some(Opaque(Arc::new(judge)));
        self
    }

    /// Chooses the status of local responses (default: [`Failure::status`], as RFC 9209 recommends).
    pub fn choose_status(mut self, choose: impl Fn(&Failure) -> StatusCode + Send + Sync + 'static) -> Self {
        Arc::make_mut(&mut self.settings).choose_status = Some(Opaque(Arc::new(choose)));
        self
    }

    /// Lets an outer `ClassifyLayer` do the reporting (default: this one reports).
    ///
    /// For the inner one of two around a retry layer: it turns errors and unsafe heads into responses, on which the retry layer
    /// decides. The outer one sees how the last attempt ended, logs it, and adds `Proxy-Status`.
    pub fn report_by_outer(mut self) -> Self {
        Arc::make_mut(&mut self.settings).reporter = Reporter::Outer;
        self
    }

    pub(crate) fn settings(&self) -> &Arc<Settings> {
        &self.settings
    }

    /// Adds an observer of failures (default: [`TracingObserver`](crate::event::TracingObserver) alone).
    pub fn observer(mut self, observer: impl Observer + 'static) -> Self {
        Arc::make_mut(&mut self.settings).observers.push(Opaque(Arc::new(observer)));
        self
    }

    /// Removes the [`TracingObserver`](crate::event::TracingObserver): failures reach the added observers only.
    pub fn without_log(mut self) -> Self {
        Arc::make_mut(&mut self.settings).logs = false;
        self
    }
}

impl<S> Layer<S> for ClassifyLayer {
    type Service = Classify<S>;

    fn layer(&self, inner: S) -> Classify<S> {
        let errors = Classified { settings: self.settings.clone() };
        Classify::new(inner, Arc::new(Config::new((), (), (), SendOnce, errors)))
    }
}

middleware_spec! {
    /// Classification alone.
    ClassifySpec,
    per_call = (), per_attempt = (), timeouts = (), requests = SendOnce, errors = Classified
}

middleware_service! {
    /// The service of [`ClassifyLayer`].
    Classify [] ClassifySpec, once
}

middleware_future! {
    /// The future of [`Classify`].
    ClassifyFuture<S, B> ClassifySpec, B where {}
}

middleware_body! {
    /// The response body of [`Classify`]: the upstream's, or that of a local response.
    ///
    /// Its error is a [`Failure`], reported once. Before an error it returns `Pending` once and wakes itself: hyper's server
    /// then flushes what came before it cuts the connection, instead of dropping both.
    ClassifiedBody<X> ClassifySpec, SharedBody<X>, Failure,
    { X: Body<Data = Bytes> + Unpin + Send + 'static, X::Error: Into<BoxError>, }
}

impl<S, B, X, E> Service<Request<B>> for Classify<S>
where
    S: WrapBody<B, Body = X, ServiceError = E>,
    E: Into<BoxError>,
    X: Body<Data = Bytes> + Unpin + Send + 'static,
    X::Error: Into<BoxError>,
{
    type Response = Response<ClassifiedBody<X>>;
    type Error = Infallible;
    type Future = ClassifyFuture<S, B>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.exchange.poll_ready::<B, X, E>(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        ClassifyFuture::new(self.exchange.call(request))
    }
}

impl<S, B, X, E> Future for ClassifyFuture<S, B>
where
    S: WrapBody<B, Body = X, ServiceError = E>,
    E: Into<BoxError>,
    X: Body<Data = Bytes> + Unpin + Send + 'static,
    X::Error: Into<BoxError>,
{
    type Output = Result<Response<ClassifiedBody<X>>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.project().call.poll_as(cx)
    }
}
