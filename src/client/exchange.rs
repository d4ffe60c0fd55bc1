//! One request on its way to the upstream and back.

use std::future::{Future, ready};
use std::pin::Pin;
use std::sync::Arc;

use http::header::{CONNECTION, CONTENT_LENGTH};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use hyper::upgrade::OnUpgrade;
use tokio::time::Instant;

use super::pool::{H1, Lease, SendBody};
use super::proxy::Upstream;
use super::upload::{Progress, Upload};
use super::wait::{Wait, before};
use super::{Connect, Download, address, tunnel};
use crate::body::AnswerBody;
#[cfg(feature = "http2")]
use crate::cause::Detail;
use crate::cause::{BadGatewayCause, Evidence, Failure, Phase, Replay};
use crate::classify::{Asked, Scene, Stamp, check_head};
use crate::forward::{Caller, Rejection};

pub(super) type Outcome<B> = Result<Response<AnswerBody<Download<B>>>, Failure>;
pub(super) type BoxFuture<B> = Pin<Box<dyn Future<Output = Outcome<B>> + Send>>;
pub(super) type Sent<B> = Result<Response<Incoming>, TrySendError<Request<Upload<B>>>>;

/// How often a request that came back unsent goes out again before its failure is told.
const MAX_RETURNS: u32 = 2;

/// Begins an exchange: on an idle connection at once, else once there is a connection.
///
/// The first way is the common one and holds little: what waits for a connection is a future of its own.
pub(super) fn start<C, B>(upstream: &Arc<Upstream<C, B>>, caller: &Caller, request: Request<B>) -> BoxFuture<B>
where
    C: Connect,
    C::Future: 'static,
    B: SendBody,
{
    let begun = Instant::now();
    let (exchange, mut request) = match prepare(upstream, caller, request, begun) {
        Ok(prepared) => prepared,
        Err(outcome) => return Box::pin(ready(*outcome)),
    };
    let Some(mut h1) = upstream.pool.idle_now(begun) else {
        return Box::pin(exchange.run(request, 0));
    };
    address::to_h1(&mut request);
    h1.stamp().begin();
    let sent = h1.sender().try_send_request(request);
    Box::pin(exchange.after(sent, h1))
}

/// Makes the head the upstream's, or answers here; the answer is boxed as it is rare.
#[allow(clippy::type_complexity)]
fn prepare<C, B: SendBody>(
    upstream: &Arc<Upstream<C, B>>,
    caller: &Caller,
    request: Request<B>,
    begun: Instant,
) -> Result<(Exchange<C, B>, Request<Upload<B>>), Box<Outcome<B>>> {
    let (mut parts, body) = request.into_parts();
    let named = parts.extensions.get::<Caller>().cloned();
    let passage = upstream.rules.request(&mut parts, named.as_ref().unwrap_or(caller), &upstream.host);
    let passage = passage.map_err(|rejection| {
        Box::new(match rejection {
            Rejection::Answer(answer) => Ok(answer.into_response()),
            Rejection::Loop => Err(upstream.refusal(BadGatewayCause::LoopDetected)),
        })
    })?;
    if address::rewrite(&upstream.target, &mut parts).is_none() {
        return Err(Box::new(Err(upstream.refusal(BadGatewayCause::InvalidTarget))));
    }
    if passage.takes_trailers() {
        parts.headers.insert(CONNECTION, HeaderValue::from_static("te"));
    }
    let upgrade = passage.upgrade().cloned();
    let tunnel = upgrade.is_some().then(|| parts.extensions.remove::<OnUpgrade>()).flatten();
    let upload = Upload::new(body, begun);
    let exchange = Exchange { upstream: upstream.clone(), begun, progress: upload.progress(), upgrade, tunnel };
    Ok((exchange, Request::from_parts(parts, upload)))
}

/// What one exchange knows while it lasts.
pub(super) struct Exchange<C, B> {
    pub(super) upstream: Arc<Upstream<C, B>>,
    pub(super) begun: Instant,
    pub(super) progress: Option<Arc<Progress>>,
    /// The protocols that the caller would change to, and its side of the change.
    upgrade: Option<HeaderValue>,
    tunnel: Option<OnUpgrade>,
}

/// What an attempt ended with.
enum Ended<B> {
    Answer(Outcome<B>),
    /// Nobody saw the request.
    Unsent(Request<Upload<B>>),
}

impl<C, B> Exchange<C, B>
where
    C: Connect,
    C::Future: 'static,
    B: SendBody,
{
    /// Waits for the answer to what was sent on a pooled connection.
    async fn after(mut self, sent: impl Future<Output = Sent<B>>, h1: H1<B>) -> Outcome<B> {
        let wait = self.wait(self.begun, h1.stamp());
        let sent = wait.head(sent).await;
        match self.ended(sent, Lease::H1(h1), 0) {
            Ended::Answer(outcome) => outcome,
            Ended::Unsent(request) => Box::pin(self.run(request, 1)).await,
        }
    }

    /// Gets a connection, sends, and waits; what comes back unsent goes out on another connection.
    async fn run(mut self, mut request: Request<Upload<B>>, mut returns: u32) -> Outcome<B> {
        loop {
            let lease = self.upstream.pool.lease(self.begun, returns > 0);
            let mut lease = match before(self.deadline(), lease).await {
                Some(lease) => lease.map_err(|failure| self.told(failure))?,
                None => return Err(self.late_before_sending()),
            };
            let stamp = lease.stamp().clone();
            stamp.begin();
            let wait = self.wait(Instant::now(), &stamp);
            let sent = match &mut lease {
                Lease::H1(h1) => {
                    address::to_h1(&mut request);
                    wait.head(h1.sender().try_send_request(request)).await
                }
                #[cfg(feature = "http2")]
                Lease::H2(h2) => {
                    address::to_h2(&mut request, self.upstream.target.scheme());
                    wait.head(h2.sender().try_send_request(request)).await
                }
            };
            match self.ended(sent, lease, returns) {
                Ended::Answer(outcome) => return outcome,
                Ended::Unsent(unsent) => (request, returns) = (unsent, returns + 1),
            }
        }
    }

    fn ended(&mut self, sent: Result<Sent<B>, (BadGatewayCause, Phase)>, lease: Lease<B>, returns: u32) -> Ended<B> {
        let scene = self.scene(lease.stamp());
        let mut error = match sent {
            Ok(Ok(answer)) => return Ended::Answer(self.answered(answer, lease, scene)),
            Ok(Err(error)) => error,
            Err((cause, phase)) => {
                lease.hung(cause);
                let failure = Failure::builder(cause).phase(phase).replay(cause.replay(), Evidence::Counted);
                let failure = failure.peer(scene.peer).connection(scene.connection()).build();
                return Ended::Answer(Err(self.told(failure)));
            }
        };
        let message = error.take_message();
        let failure = Failure::seen(error.into_error().into(), &scene);
        lease.failed(&failure);
        match message {
            // a pooled connection had died: nobody saw the request
            Some(unsent) if returns < MAX_RETURNS && scene.wire.is_some_and(|wire| wire.served > 0) => {
                Ended::Unsent(unsent)
            }
            _ => Ended::Answer(Err(self.told(failure))),
        }
    }

    fn answered(&mut self, mut answer: Response<Incoming>, lease: Lease<B>, scene: Scene) -> Outcome<B> {
        lease.stamp().answered();
        let asked = if self.tunnel.is_some() { Asked::Upgrade } else { Asked::Answer };
        if let Some(verdict) = check_head(&answer, asked) {
            // what follows such a head cannot be delimited: the connection goes with it
            return Err(self.told(verdict.into_failure(&scene).build()));
        }
        lease.learn(answer.headers());
        let switched = answer.status() == StatusCode::SWITCHING_PROTOCOLS;
        let behind = switched.then(|| hyper::upgrade::on(&mut answer));
        let (mut parts, incoming) = answer.into_parts();
        self.upstream.rules.response(&mut parts, self.upgrade.as_ref());
        if parts.status == StatusCode::NO_CONTENT {
            // RFC 9110 section 8.6: it has no content to have a length
            parts.headers.remove(CONTENT_LENGTH);
        }
        parts.version = Version::HTTP_11;
        let body = match (behind, self.tunnel.take()) {
            (Some(behind), Some(caller)) => {
                tunnel::spawn(caller, behind, lease);
                AnswerBody::default()
            }
            _ => AnswerBody::upstream(Download::new(incoming, lease, scene, self)),
        };
        Ok(Response::from_parts(parts, body))
    }

    fn late_before_sending(&self) -> Failure {
        let failure = Failure::builder(BadGatewayCause::DeadlineExceeded).phase(Phase::Pool);
        self.told(failure.replay(Replay::NotSent, Evidence::NothingWritten).build())
    }
}

impl<C, B> Exchange<C, B> {
    fn deadline(&self) -> Option<Instant> {
        self.upstream.timeouts.total.map(|total| self.begun + total)
    }

    fn wait(&self, now: Instant, stamp: &Stamp) -> Wait {
        let head = self.upstream.timeouts.head;
        Wait { head, now, deadline: self.deadline(), stamp: stamp.clone(), progress: self.progress.clone() }
    }

    fn scene(&self, stamp: &Stamp) -> Scene {
        let upload = self.progress.as_ref().map(|progress| progress.verdict()).unwrap_or_default();
        Scene::default().wire(stamp.wire()).peer(stamp.peer()).upload(upload)
    }

    fn told(&self, failure: Failure) -> Failure {
        failure.into_builder().upstream(self.upstream.name.clone()).elapsed(self.begun.elapsed()).build()
    }
}

impl<C, B> Upstream<C, B> {
    fn refusal(&self, cause: BadGatewayCause) -> Failure {
        let failure = Failure::builder(cause).phase(Phase::Gateway).upstream(self.name.clone());
        failure.replay(Replay::NotSent, Evidence::LocalRefusal).build()
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
    fn hung(&self, cause: BadGatewayCause) {
        match self {
            Self::H1(_) => {}
            #[cfg(feature = "http2")]
            Self::H2(_) if cause == BadGatewayCause::UploadStalled => {}
            #[cfg(feature = "http2")]
            Self::H2(h2) => h2.evict(),
        }
        #[cfg(not(feature = "http2"))]
        let _ = cause;
    }

    /// After an error: a shared connection stays only if the error was its stream's alone.
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
