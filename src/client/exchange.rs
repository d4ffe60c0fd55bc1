//! One request on its way to the upstream and back.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Poll, ready};

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, COOKIE, HOST, UPGRADE};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Uri, Version, request};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use hyper::upgrade::OnUpgrade;
use tokio::time::{Instant, Sleep, sleep_until};

use super::pool::{Lease, SendBody};
use super::proxy::Upstream;
use super::upload::{Progress, Upload};
use super::{Connect, Download, tunnel};
use crate::body::AnswerBody;
use crate::cause::{BadGatewayCause, Detail, Evidence, Failure, Phase, Replay};
use crate::classify::{Asked, Scene, Stamp, Told, Verdict, check_head};
use crate::forward::{Caller, Rejection};
use crate::timeout::{Finding, Look, Timeouts, Watch};

type Answer<B> = Response<AnswerBody<Download<B>>>;
type Sent<B> = Result<Response<Incoming>, TrySendError<Request<Upload<B>>>>;

/// How often a request that came back unsent goes out again before its failure is told.
const MAX_RETURNS: u32 = 2;

pub(super) async fn run<C, B>(
    upstream: Arc<Upstream<C, B>>,
    caller: Arc<Caller>,
    request: Request<B>,
) -> Result<Answer<B>, Failure>
where
    C: Connect,
    C::Future: 'static,
    B: SendBody,
{
    let begun = Instant::now();
    let (mut parts, body) = request.into_parts();
    let named = parts.extensions.get::<Caller>();
    let passage = match named {
        None => upstream.rules.request(&mut parts, &caller, &upstream.host),
        Some(named) => {
            let named = named.clone();
            upstream.rules.request(&mut parts, &named, &upstream.host)
        }
    };
    let passage = match passage {
        Ok(passage) => passage,
        Err(Rejection::Answer(answer)) => {
            let mut answer = answer.into_response();
            answer.extensions_mut().insert(Told);
            return Ok(answer);
        }
        Err(Rejection::Loop) => return Err(refusal(&upstream, BadGatewayCause::LoopDetected)),
    };
    if let Err(cause) = address(&upstream, &mut parts) {
        return Err(refusal(&upstream, cause));
    }
    if passage.takes_trailers() {
        parts.headers.insert(CONNECTION, HeaderValue::from_static("te"));
    }
    let tunnel = match passage.upgrade() {
        Some(_) => parts.extensions.remove::<OnUpgrade>(),
        None => None,
    };
    let asked = if tunnel.is_some() { Asked::Upgrade } else { Asked::Answer };
    let upload = Upload::new(body, begun);
    let progress = upload.progress();
    let exchange = Exchange { upstream: &upstream, begun, progress, asked };

    let Arrived { mut answer, lease, scene } = exchange.send(Request::from_parts(parts, upload)).await?;
    let behind = (answer.status() == StatusCode::SWITCHING_PROTOCOLS).then(|| hyper::upgrade::on(&mut answer));
    let (mut parts, incoming) = answer.into_parts();
    upstream.rules.response(&mut parts, passage.upgrade());
    if behind.is_some() && !parts.headers.contains_key(UPGRADE) {
        let verdict = Verdict::new(BadGatewayCause::UpgradeFailed);
        let verdict = verdict.detail(Detail::Text("a 101 to a protocol that nobody had asked for"));
        return Err(exchange.told(verdict.into_failure(&scene).build()));
    }
    if parts.status == StatusCode::NO_CONTENT {
        // RFC 9110 section 8.6: it has no content to have a length
        parts.headers.remove(CONTENT_LENGTH);
    }
    parts.version = Version::HTTP_11;
    let body = match behind {
        None => AnswerBody::upstream(Download::new(incoming, lease, scene, &exchange)),
        Some(behind) => {
            tunnel::spawn(tunnel, behind, lease);
            AnswerBody::default()
        }
    };
    Ok(Response::from_parts(parts, body))
}

fn refusal<C, B>(upstream: &Upstream<C, B>, cause: BadGatewayCause) -> Failure {
    let failure = Failure::builder(cause).phase(Phase::Gateway);
    failure.replay(Replay::NotSent, Evidence::LocalRefusal).upstream(upstream.name.clone()).build()
}

/// Makes the head one of HTTP/1.1, with the path under the target's.
fn address<C, B>(upstream: &Upstream<C, B>, parts: &mut request::Parts) -> Result<(), BadGatewayCause> {
    if !upstream.target.keeps_paths() {
        let asked = parts.uri.path_and_query().ok_or(BadGatewayCause::InvalidTarget)?;
        parts.uri = upstream.target.path(asked).ok_or(BadGatewayCause::InvalidTarget)?.into();
    }
    if parts.version >= Version::HTTP_2 {
        join_cookies(parts);
    }
    parts.version = Version::HTTP_11;
    Ok(())
}

/// HTTP/2 may split a Cookie field; elsewhere it is one line (RFC 9113 section 8.2.3).
fn join_cookies(parts: &mut request::Parts) {
    let mut crumbs = parts.headers.get_all(COOKIE).iter();
    let (Some(first), Some(second)) = (crumbs.next(), crumbs.next()) else { return };
    let mut whole = first.as_bytes().to_vec();
    for crumb in std::iter::once(second).chain(crumbs) {
        whole.extend_from_slice(b"; ");
        whole.extend_from_slice(crumb.as_bytes());
    }
    if let Ok(whole) = HeaderValue::from_maybe_shared(Bytes::from(whole)) {
        parts.headers.insert(COOKIE, whole);
    }
}

/// A response head, the connection it came on, and what that had seen before.
struct Arrived<B> {
    answer: Response<Incoming>,
    lease: Lease<B>,
    scene: Scene,
}

/// What one exchange knows while it lasts.
pub(super) struct Exchange<'a, C, B> {
    pub(super) upstream: &'a Upstream<C, B>,
    pub(super) begun: Instant,
    pub(super) progress: Option<Arc<Progress>>,
    asked: Asked,
}

impl<C, B> Exchange<'_, C, B>
where
    C: Connect,
    C::Future: 'static,
    B: SendBody,
{
    /// Sends the request and waits for the head; what comes back unsent goes out on another connection.
    async fn send(&self, mut request: Request<Upload<B>>) -> Result<Arrived<B>, Failure> {
        let timeouts = self.upstream.timeouts;
        let deadline = timeouts.total.map(|total| self.begun + total);
        let mut returns = 0;
        loop {
            let lease = self.upstream.pool.lease(self.begun, returns > 0);
            let mut lease = match before(deadline, lease).await {
                Some(lease) => lease.map_err(|failure| self.told(failure))?,
                None => return Err(self.late_before_sending()),
            };
            let stamp = lease.stamp().clone();
            // on a connection just made the wait for it is over; on a pooled one there was none
            let now = if stamp.wire().served == 0 { Instant::now() } else { self.begun };
            stamp.begin();
            let wait = Wait { timeouts, now, deadline, stamp: &stamp, progress: self.progress.as_deref() };
            let sent = match &mut lease {
                Lease::H1(h1) => {
                    to_h1(&mut request);
                    wait.head(h1.sender().try_send_request(request)).await
                }
                #[cfg(feature = "http2")]
                Lease::H2(h2) => {
                    to_h2(&mut request, self.upstream.target.scheme());
                    wait.head(h2.sender().try_send_request(request)).await
                }
            };
            let scene = self.scene(&stamp);
            let mut error = match sent {
                Ok(Ok(answer)) => {
                    stamp.answered();
                    if let Some(verdict) = check_head(&answer, self.asked) {
                        // what follows such a head cannot be delimited: the connection goes with it
                        return Err(self.told(verdict.into_failure(&scene).build()));
                    }
                    lease.learn(answer.headers());
                    return Ok(Arrived { answer, lease, scene });
                }
                Ok(Err(error)) => error,
                Err((cause, phase)) => {
                    lease.hung(cause);
                    let failure = Failure::builder(cause).phase(phase).peer(stamp.peer());
                    let replay = if cause == BadGatewayCause::UploadStalled { Replay::Never } else { cause.replay() };
                    let failure = failure.replay(replay, Evidence::Counted).connection(scene.connection());
                    return Err(self.told(failure.build()));
                }
            };
            let message = error.take_message();
            let failure = Failure::seen(error.into_error().into(), &scene);
            lease.failed(&failure);
            match message {
                // a pooled connection had died: nobody saw the request
                Some(unsent) if returns < MAX_RETURNS && scene.wire.is_some_and(|wire| wire.served > 0) => {
                    returns += 1;
                    request = unsent;
                }
                _ => return Err(self.told(failure)),
            }
        }
    }

    fn late_before_sending(&self) -> Failure {
        let failure = Failure::builder(BadGatewayCause::DeadlineExceeded).phase(Phase::Pool);
        self.told(failure.replay(Replay::NotSent, Evidence::NothingWritten).build())
    }
}

impl<C, B> Exchange<'_, C, B> {
    pub(super) fn scene(&self, stamp: &Stamp) -> Scene {
        let upload = self.progress.as_ref().map(|progress| progress.verdict()).unwrap_or_default();
        Scene::default().wire(stamp.wire()).peer(stamp.peer()).upload(upload)
    }

    fn told(&self, failure: Failure) -> Failure {
        failure.into_builder().upstream(self.upstream.name.clone()).elapsed(self.begun.elapsed()).build()
    }
}

/// Runs `future` up to `deadline`; the timer is made only when it has to wait.
async fn before<F: Future>(deadline: Option<Instant>, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut timer = None;
    poll_fn(|cx| {
        if let Poll::Ready(output) = future.as_mut().poll(cx) {
            return Poll::Ready(Some(output));
        }
        let Some(deadline) = deadline else { return Poll::Pending };
        let timer = timer.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        timer.as_mut().poll(cx).map(|()| None)
    })
    .await
}

/// The wait for a response head, under its limits.
struct Wait<'a> {
    timeouts: Timeouts,
    now: Instant,
    deadline: Option<Instant>,
    stamp: &'a Stamp,
    progress: Option<&'a Progress>,
}

impl Wait<'_> {
    /// One timer, made when the first poll finds no answer, polled after the answer.
    async fn head<B>(&self, sent: impl Future<Output = Sent<B>>) -> Result<Sent<B>, (BadGatewayCause, Phase)> {
        let mut sent = pin!(sent);
        let mut watch = self.timeouts.head.map(|limit| Watch::new(self.now, limit));
        let mut timer = pin!(None::<Sleep>);
        poll_fn(|cx| {
            if let Poll::Ready(sent) = sent.as_mut().poll(cx) {
                return Poll::Ready(Ok(sent));
            }
            if timer.is_none() {
                let Some(first) = earlier(watch.as_ref().map(Watch::first), self.deadline) else {
                    return Poll::Pending;
                };
                timer.set(Some(sleep_until(first)));
            }
            loop {
                let Some(mut armed) = timer.as_mut().as_pin_mut() else { return Poll::Pending };
                ready!(armed.as_mut().poll(cx));
                let now = Instant::now();
                if self.deadline.is_some_and(|deadline| deadline <= now) {
                    return Poll::Ready(Err((BadGatewayCause::DeadlineExceeded, self.phase())));
                }
                let Some(watch) = &mut watch else { return Poll::Pending };
                match watch.look(now, self.look(), self.progress.and_then(Progress::ended)) {
                    Finding::Passed(cause, phase) => return Poll::Ready(Err((cause, phase))),
                    Finding::Again(at) => armed.reset(earlier(Some(at), self.deadline).unwrap_or(at)),
                }
            }
        })
        .await
    }

    fn look(&self) -> Look {
        let wire = self.stamp.wire();
        let uploading = self.progress.filter(|progress| progress.ended().is_none());
        Look {
            written: wire.written,
            // other streams' bytes say nothing about this one
            read: if wire.multiplexed { 0 } else { wire.read },
            taken: self.progress.map_or(0, Progress::taken),
            uploading: uploading.is_some(),
            client_late: uploading.is_some_and(Progress::client_late),
            blocked: wire.blocked && !wire.multiplexed,
        }
    }

    fn phase(&self) -> Phase {
        let look = self.look();
        match look {
            Look { uploading: true, .. } | Look { blocked: true, .. } => Phase::Send,
            Look { read: 0, .. } => Phase::Wait,
            _ => Phase::Head,
        }
    }
}

fn earlier(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

/// Origin-form and `Host`, should the request come back from an HTTP/2 connection.
fn to_h1<B>(request: &mut Request<B>) {
    if request.version() != Version::HTTP_2 {
        return;
    }
    *request.version_mut() = Version::HTTP_11;
    let parts = std::mem::take(request.uri_mut()).into_parts();
    if let Some(host) = parts.authority.and_then(|authority| HeaderValue::try_from(authority.as_str()).ok()) {
        request.headers_mut().insert(HOST, host);
    }
    *request.uri_mut() = parts.path_and_query.unwrap_or(PathAndQuery::from_static("/")).into();
}

/// `:scheme`, `:authority` and `:path` from the URI, no connection fields (RFC 9113 sections 8.2.2, 8.3.1).
#[cfg(feature = "http2")]
fn to_h2<B>(request: &mut Request<B>, scheme: &Scheme) {
    *request.version_mut() = Version::HTTP_2;
    let headers = request.headers_mut();
    headers.remove(CONNECTION);
    headers.remove(UPGRADE);
    let Some(host) = headers.remove(HOST) else { return };
    let Ok(authority) = Authority::try_from(host.as_bytes()) else { return };
    let path = request.uri().path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));
    let uri = Uri::builder().scheme(scheme.clone()).authority(authority).path_and_query(path).build();
    if let Ok(uri) = uri {
        *request.uri_mut() = uri;
    }
}

impl<B> Lease<B> {
    fn stamp(&self) -> &Stamp {
        match self {
            Self::H1(h1) => h1.stamp(),
            #[cfg(feature = "http2")]
            Self::H2(h2) => h2.stamp(),
        }
    }

    fn learn(&self, headers: &HeaderMap) {
        match self {
            Self::H1(h1) => h1.learn(headers),
            #[cfg(feature = "http2")]
            Self::H2(_) => {}
        }
    }

    /// After a time limit: an HTTP/1.1 connection ends as it is dropped, a shared one takes no more streams.
    #[cfg_attr(not(feature = "http2"), allow(clippy::unused_self))]
    fn hung(&self, cause: BadGatewayCause) {
        #[cfg(feature = "http2")]
        if let (Self::H2(h2), true) = (self, cause != BadGatewayCause::UploadStalled) {
            h2.evict();
        }
        #[cfg(not(feature = "http2"))]
        let _ = cause;
    }

    /// After an error: a shared connection stays only if the error was its stream's alone.
    #[cfg_attr(not(feature = "http2"), allow(clippy::unused_self))]
    pub(super) fn failed(&self, failure: &Failure) {
        #[cfg(feature = "http2")]
        if let Self::H2(h2) = self {
            let streams_own = match failure.cause() {
                BadGatewayCause::StreamReset | BadGatewayCause::RequestBodyFailed => true,
                BadGatewayCause::StreamRefused => failure.evidence() == Evidence::RefusedStream,
                BadGatewayCause::IncompleteBody => matches!(failure.detail(), Some(Detail::H2(_))),
                _ => false,
            };
            if !streams_own {
                h2.evict();
            }
        }
        #[cfg(not(feature = "http2"))]
        let _ = failure;
    }
}
