//! Sends one request to the upstream and returns its response.

use std::future::{self, Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, request};
use http_body::Body;
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use hyper::upgrade::OnUpgrade;
use pin_project_lite::pin_project;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

#[cfg(feature = "http2")]
use super::head_size;
use super::pool::{Checkout, Needs, Pool, SendBody};
#[cfg(feature = "http2")]
use super::pool::{ENHANCE_YOUR_CALM, H2};
use super::progress::{publish, publish_poll, signing, snapshot};
use super::proxy_body::SentRequest;
use super::tunnel::{self, Terms};
use super::{Connect, ProxyBody, Target, request_target};
use crate::body::{ResponseBody, TrackedUpload, UploadCounters};
use crate::cause::{
    BadGatewayCause, ClientCall, Detail, Evidence, Failure, PeerAddress, Phase, RetryStop, TUNNEL_LIMIT,
};
use crate::classify::{
    self, AttemptContext, Classification, ConnectionStats, Expected, RelayedFailure, check_head, upstream_status,
};
use crate::exchange::AttemptProgress;
use crate::forward::{
    ClientInfo, ForwardingRules, LocalResponse, Rejection, UnsolicitedUpgrade, name_length, strip_request_trailers,
};

pub(super) type Outcome<B> = Result<Response<ResponseBody<ProxyBody<B>>>, Failure>;
pub(super) type BoxFuture<B> = Pin<Box<dyn Future<Output = Outcome<B>> + Send>>;
pub(super) type Sent<B> = Result<Response<Incoming>, TrySendError<Request<TrackedUpload<B>>>>;

/// The value of an `Upgrade` field; boxed because few requests have one.
type UpgradeProtocols = Box<HeaderValue>;
/// The protocols the client wants to upgrade to, its side of the upgrade, and a slot for the tunnel.
type UpgradeRequest = (Option<UpgradeProtocols>, Option<(OnUpgrade, OwnedSemaphorePermit)>);

/// How often a request returned unsent by a stale connection is sent again before its failure is returned.
const MAX_STALE_RETRIES: u32 = 2;

/// The shared state of all exchanges.
pub(super) struct ProxyTarget<C, B> {
    pub(super) name: Arc<str>,
    pub(super) target: Target,
    pub(super) host: HeaderValue,
    pub(super) rules: ForwardingRules,
    pub(super) upload_idle: Duration,
    pub(super) tunnel_idle: Option<Duration>,
    pub(super) exposes_peer: bool,
    /// Slots for tunnels, fewer than the pool's.
    pub(super) tunnels: Arc<Semaphore>,
    pub(super) pool: Pool<C, B>,
}

/// Starts an exchange: immediately on an idle connection, else once there is a connection.
///
/// The first path is the common one and small; waiting for a connection is a separate future.
pub(super) fn start<C, B>(upstream: &Arc<ProxyTarget<C, B>>, caller: &ClientInfo, request: Request<B>) -> BoxFuture<B>
where
    C: Connect,
    C::Future: 'static,
    B: SendBody,
{
    let (begun, call) = (Instant::now(), ClientCall::next());
    let (mut parts, body) = request.into_parts();
    let (upgrade, tunnel) = match prepare(upstream, caller, &mut parts, call) {
        Ok(prepared) => prepared,
        Err(outcome) => return Box::pin(future::ready(*outcome)),
    };
    let upload = TrackedUpload::new(body, begun).edit_trailers(strip_request_trailers);
    let exchange = Exchange {
        upstream: upstream.clone(),
        begun,
        call,
        progress: upload.counters(),
        upgrade,
        tunnel,
        #[cfg(feature = "http2")]
        head_size: 0,
    };
    let Some(mut h1) = upstream.pool.take_idle(begun) else {
        return Box::pin(exchange.drive(Request::from_parts(parts, upload), 0));
    };
    h1.stamp().begin();
    name_length(&parts.method, &mut parts.headers, &upload);
    let sent = h1.sender().try_send_request(Request::from_parts(parts, upload));
    Box::pin(InFlight { sent, exchange: Some(exchange), lease: Some(Checkout::H1(h1)), again: None })
}

/// Rewrites the head for the upstream, or responds locally; that response is boxed because it is rare.
fn prepare<C, B: SendBody>(
    upstream: &ProxyTarget<C, B>,
    caller: &ClientInfo,
    parts: &mut request::Parts,
    call: ClientCall,
) -> Result<UpgradeRequest, Box<Outcome<B>>> {
    let passage = upstream.rules.forward_request(parts, caller, &upstream.host).map_err(|rejection| {
        Box::new(match rejection {
            Rejection::Respond(answer) => Ok(answer.into_rejected_response()),
            Rejection::Loop => Err(upstream.refusal(BadGatewayCause::LoopDetected, call)),
        })
    })?;
    if !parts.uri.path_and_query().is_none_or(|path| upstream.target.confines(path)) {
        let answer = LocalResponse::bad_request("the path leads outside of the upstream's path");
        return Err(Box::new(Ok(answer.into_rejected_response())));
    }
    if request_target::rewrite(&upstream.target, parts).is_none() {
        // both parts are paths, but too long together
        return Err(Box::new(Ok(LocalResponse::too_long().into_rejected_response())));
    }
    passage.downgrade_to_h1(parts);
    let Some(upgrade) = passage.upgrade() else { return Ok((None, None)) };
    let tunnel = match parts.extensions.remove::<OnUpgrade>() {
        None => None,
        Some(caller) => match upstream.tunnels.clone().try_acquire_owned() {
            Ok(permit) => Some((caller, permit)),
            Err(_) => return Err(Box::new(Err(upstream.too_many_tunnels(call)))),
        },
    };
    Ok((Some(Box::new(upgrade.clone())), tunnel))
}

pin_project! {
    /// Waits for the response to a request sent on a pooled connection.
    struct InFlight<F, C, B> {
        #[pin]
        sent: F,
        exchange: Option<Exchange<C, B>>,
        lease: Option<Checkout<B>>,
        // the connection had died; the request is sent again
        again: Option<BoxFuture<B>>,
    }
}

impl<F, C, B> Future for InFlight<F, C, B>
where
    F: Future<Output = Sent<B>>,
    C: Connect,
    C::Future: 'static,
    B: SendBody,
{
    type Output = Outcome<B>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Outcome<B>> {
        let this = self.project();
        if let (Some(exchange), Some(lease)) = (this.exchange.as_mut(), this.lease.as_ref()) {
            let polled = this.sent.poll(cx);
            publish(&polled, || exchange.progress(lease.stamp()));
            let Poll::Ready(sent) = polled else { return Poll::Pending };
            let Some(lease) = this.lease.take() else { return Poll::Pending };
            let request = match exchange.ended(sent, lease, 0) {
                Completion::Response(outcome) => return Poll::Ready(outcome),
                Completion::Unsent(request) => request,
            };
            *this.again = this.exchange.take().map(|exchange| Box::pin(exchange.drive(request, 1)) as BoxFuture<B>);
        }
        let again = this.again.as_mut().expect("a future is not polled after it was ready");
        again.as_mut().poll(cx)
    }
}

/// The state of one exchange.
struct Exchange<C, B> {
    upstream: Arc<ProxyTarget<C, B>>,
    begun: Instant,
    call: ClientCall,
    progress: Option<Arc<UploadCounters>>,
    upgrade: Option<UpgradeProtocols>,
    tunnel: Option<(OnUpgrade, OwnedSemaphorePermit)>,
    /// The size of the head sent by HTTP/2.
    #[cfg(feature = "http2")]
    head_size: usize,
}

/// How sending a request ended.
enum Completion<B> {
    Response(Outcome<B>),
    /// The request was not sent.
    Unsent(Request<TrackedUpload<B>>),
}

impl<C, B> Exchange<C, B>
where
    C: Connect,
    C::Future: 'static,
    B: SendBody,
{
    /// Gets a connection, sends and waits; a request returned unsent is sent on another connection.
    async fn drive(mut self, mut request: Request<TrackedUpload<B>>, mut returns: u32) -> Outcome<B> {
        loop {
            let needs = Needs { fresh: returns > 0, upgrade: self.upgrade.is_some() };
            let leased = signing(self.call, self.upstream.pool.lease(self.begun, needs)).await;
            let mut lease = leased.map_err(|failure| self.complete(failure))?;
            if !lease.is_open() {
                // look for a stream on another connection, or queue
                continue;
            }
            let stamp = lease.stamp().clone();
            stamp.begin();
            let sent = match &mut lease {
                Checkout::H1(h1) => {
                    request_target::to_h1(&mut request);
                    let (mut parts, body) = request.into_parts();
                    name_length(&parts.method, &mut parts.headers, &body);
                    let request = Request::from_parts(parts, body);
                    self.head(h1.sender().try_send_request(request), &stamp).await
                }
                #[cfg(feature = "http2")]
                Checkout::H2(h2) => {
                    request_target::to_h2(&mut request, self.upstream.target.scheme());
                    self.head_size = head_size::of(&request);
                    if !head_size::fits(&request, self.head_size, h2.max_head()) {
                        return Ok(LocalResponse::too_large().into_rejected_response());
                    }
                    self.head(h2.sender().try_send_request(request), &stamp).await
                }
            };
            match self.ended(sent, lease, returns) {
                Completion::Response(outcome) => return outcome,
                Completion::Unsent(unsent) => (request, returns) = (unsent, returns + 1),
            }
        }
    }

    fn ended(&mut self, sent: Sent<B>, mut lease: Checkout<B>, returns: u32) -> Completion<B> {
        match sent {
            Ok(answer) => Completion::Response(self.on_response(answer, lease)),
            Err(error) => self.on_broken(error, &mut lease, returns),
        }
    }

    fn on_broken(
        &self,
        mut error: TrySendError<Request<TrackedUpload<B>>>,
        lease: &mut Checkout<B>,
        returns: u32,
    ) -> Completion<B> {
        let scene = self.scene(lease.stamp());
        let message = error.take_message();
        let mut failure = Failure::from_error_with(error.into_error().into(), &scene);
        failure = lease.failed(failure);
        #[cfg(feature = "http2")]
        if let Checkout::H2(h2) = lease {
            if failure.cause() == BadGatewayCause::StreamReset && h2.max_head().is_some_and(|max| self.head_size > max)
            {
                // the limit came after the request was sent
                return Completion::Response(Ok(LocalResponse::too_large().into_rejected_response()));
            }
        }
        if self.was_refused_http1(&failure, &scene) {
            let refused = Failure::builder(BadGatewayCause::UpgradeFailed).replay(failure.replay(), failure.evidence());
            let refused =
                refused.detail(Detail::Text("the upstream, which speaks HTTP/2, ended an HTTP/1.1 connection"));
            failure = refused.peer(failure.peer()).connection(failure.connection()).source(failure).build();
        }
        match message {
            // a pooled connection had died: the request was not sent
            Some(unsent) if returns < MAX_STALE_RETRIES && scene.wire.is_some_and(|wire| wire.served > 0) => {
                Completion::Unsent(unsent)
            }
            _ => Completion::Response(Err(self.complete(failure))),
        }
    }

    /// Whether an upstream that speaks HTTP/2 closed the HTTP/1.1 connection opened for an upgrade.
    ///
    /// Only the client's request needs HTTP/1.1: this is not a failure of the upstream.
    fn was_refused_http1(&self, failure: &Failure, scene: &AttemptContext) -> bool {
        let is_new = scene.wire.is_some_and(|wire| wire.served == 0 && wire.read == 0 && !wire.multiplexed);
        let ended =
            matches!(failure.cause(), BadGatewayCause::ClosedBeforeResponse | BadGatewayCause::ResetBeforeResponse);
        self.upgrade.is_some() && is_new && ended && self.upstream.pool.seems_h2()
    }

    fn on_response(&mut self, mut answer: Response<Incoming>, mut lease: Checkout<B>) -> Outcome<B> {
        lease.on_head();
        let asked = if self.tunnel.is_some() { Expected::Upgrade } else { Expected::Response };
        if let Some(verdict) = check_head(&answer, asked) {
            // the end of such a message is unknown: close the connection
            return Err(self.complete(verdict.into_failure(&self.scene(lease.stamp())).build()));
        }
        lease.learn(answer.headers());
        let status = answer.status();
        if status.is_client_error() || status.is_server_error() {
            let scene = self.scene(lease.stamp());
            let failure = upstream_status(status).peer(scene.peer).connection(scene.connection()).build();
            answer.extensions_mut().insert(RelayedFailure(self.complete(failure)));
        }
        let peer = if self.upstream.exposes_peer { lease.stamp().peer() } else { None };
        let switched = status == StatusCode::SWITCHING_PROTOCOLS;
        let behind = switched.then(|| hyper::upgrade::on(&mut answer));
        let (mut parts, incoming) = answer.into_parts();
        if self.upstream.rules.forward_response(&mut parts, self.upgrade.as_deref()).is_err() {
            let verdict = Classification::new(BadGatewayCause::UpgradeFailed).detail(UnsolicitedUpgrade::DETAIL);
            return Err(self.complete(verdict.into_failure(&self.scene(lease.stamp())).build()));
        }
        let body = match (behind, self.tunnel.take()) {
            (Some(behind), Some((caller, permit))) => {
                let terms = Terms { permit, idle: self.upstream.tunnel_idle };
                parts.extensions.insert(tunnel::spawn(caller, behind, lease, terms));
                ResponseBody::default()
            }
            // a 304 has no content, whatever its length (RFC 9110 section 15.4.5); h2 treats an empty DATA frame after a length as a
            // broken body
            _ if status == StatusCode::NOT_MODIFIED && !incoming.is_end_stream() => {
                lease.stamp().record_response();
                lease.on_end();
                ResponseBody::default()
            }
            _ => {
                let request = self.sent(lease.stamp());
                ResponseBody::upstream(ProxyBody::new(incoming, lease, request))
            }
        };
        if let Some(peer) = peer {
            parts.extensions.insert(PeerAddress(peer));
        }
        Ok(Response::from_parts(parts, body))
    }
}

impl<C, B> Exchange<C, B> {
    async fn head<F: Future>(&self, sent: F, stamp: &ConnectionStats) -> F::Output {
        let mut sent = pin!(sent);
        poll_fn(|cx| publish_poll(sent.as_mut().poll(cx), || self.progress(stamp))).await
    }

    fn progress(&self, stamp: &ConnectionStats) -> AttemptProgress {
        AttemptProgress {
            upstream: Some(self.upstream.name.clone()),
            call: Some(self.call),
            ..snapshot(stamp, self.progress.as_deref())
        }
    }

    fn sent(&self, stamp: &ConnectionStats) -> SentRequest {
        SentRequest {
            upstream: self.upstream.name.clone(),
            begun: self.begun,
            scene: self.scene(stamp),
            progress: self.progress.clone(),
            upload_idle: self.upstream.upload_idle,
        }
    }

    fn scene(&self, stamp: &ConnectionStats) -> AttemptContext {
        let failed = self.progress.as_ref().is_some_and(|progress| progress.failed());
        let upload = if failed { classify::UploadState::Failed } else { classify::UploadState::Sound };
        AttemptContext::default().wire(stamp.wire()).peer(stamp.peer()).upload(upload)
    }

    fn complete(&self, failure: Failure) -> Failure {
        let failure = failure.into_builder().client_upstream(self.upstream.name.clone());
        failure.elapsed(self.begun.elapsed()).call(self.call).build()
    }
}

impl<C, B> ProxyTarget<C, B> {
    #[cold]
    fn too_many_tunnels(&self, call: ClientCall) -> Failure {
        let failure = self.refusal(BadGatewayCause::ConnectionLimit, call).into_builder();
        failure.retry_stop(RetryStop::LocalRefusal).detail(Detail::Text(TUNNEL_LIMIT)).build()
    }

    fn refusal(&self, cause: BadGatewayCause, call: ClientCall) -> Failure {
        let failure = Failure::builder(cause).phase(Phase::Gateway).client_upstream(self.name.clone());
        failure.unsent(Evidence::LocalRefusal).call(call).build()
    }
}

impl<B> Checkout<B> {
    pub(super) fn stamp(&self) -> &ConnectionStats {
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

    /// Whether the upstream still takes the request.
    fn is_open(&self) -> bool {
        match self {
            Self::H1(_) => true,
            #[cfg(feature = "http2")]
            Self::H2(h2) => h2.is_open(),
        }
    }

    /// Notes that the response head has come.
    fn on_head(&mut self) {
        match self {
            Self::H1(_) => {}
            #[cfg(feature = "http2")]
            Self::H2(h2) => h2.on_head(),
        }
    }

    /// Notes that the response has ended, or that the rest of it is not read.
    fn on_end(&mut self) {
        match self {
            Self::H1(_) => {}
            #[cfg(feature = "http2")]
            Self::H2(h2) => h2.on_end(),
        }
    }

    /// Handles an error: a shared connection is kept only if the error was that of its stream alone. Returns the failure,
    /// which is another one if the connection was ended because of other clients, or was not idle for long enough to be stale.
    pub(super) fn failed(&mut self, failure: Failure) -> Failure {
        match self {
            Self::H1(h1) => h1.failed(failure),
            #[cfg(feature = "http2")]
            Self::H2(h2) => stream_failed(h2, failure),
        }
    }
}

#[cfg(feature = "http2")]
fn stream_failed<B>(h2: &mut H2<B>, failure: Failure) -> Failure {
    let cause = failure.cause();
    if cause != BadGatewayCause::RequestBodyFailed {
        h2.on_end();
    }
    let is_streams_own = match cause {
        BadGatewayCause::StreamReset | BadGatewayCause::RequestBodyFailed => true,
        // refused before a byte was written: the connection is still usable
        BadGatewayCause::GatewayInternal => failure.evidence() == Evidence::LocalRefusal,
        BadGatewayCause::StreamRefused => failure.evidence() == Evidence::RefusedStream,
        BadGatewayCause::IncompleteBody => matches!(failure.detail(), Some(Detail::H2(_))),
        _ => false,
    };
    if is_streams_own {
        return failure;
    }
    h2.evict();
    let is_lost = matches!(
        cause,
        BadGatewayCause::ClosedBeforeResponse | BadGatewayCause::ResetBeforeResponse | BadGatewayCause::IncompleteBody
    );
    if !is_lost || !h2.was_ended_for_resets() {
        return failure;
    }
    // it may have been processed (RFC 9113 section 6.8), but the connection's end is no fault of the upstream
    let refused = Failure::builder(BadGatewayCause::StreamRefused).phase(failure.phase());
    let refused = refused.replay(failure.replay(), failure.evidence()).detail(Detail::H2(ENHANCE_YOUR_CALM));
    refused.peer(failure.peer()).connection(failure.connection()).source(failure).build()
}
