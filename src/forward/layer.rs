//! A layer that applies the forwarding rules around any client.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::uri::Authority;
use http::{HeaderValue, Request, Response};
use http_body::Body;
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use super::framing::name_length;
use super::settings::{ClientProtocol, Settings};
use super::{ClientInfo, ForwardBody, ForwardingRules, Scheme};
use crate::cause::ClientCall;
use crate::exchange::{LocalArc, Ref};

/// Applies [`ForwardingRules`] around a client, or around an axum handler that stands in for one.
///
/// A request rejected by the rules gets a local response: with the status of the rule, or for a loop with 502 and
/// [`LoopDetected`](crate::BadGatewayCause::LoopDetected). An unsolicited 101 becomes a 502 with
/// [`UpgradeFailed`](crate::BadGatewayCause::UpgradeFailed). A requested 101 and all other extensions are left unchanged: another
/// service has to carry the bytes that follow. Errors are passed on.
///
/// A GET or HEAD whose body has no known length goes on as `Transfer-Encoding: chunked`, without which hyper's clients
/// drop the body. Bodies become [`ForwardBody`], which edits their trailers.
///
/// Place it around the client, inside of [`ClassifyLayer`](crate::ClassifyLayer).
/// [`ReverseProxy`](https://docs.rs/tower-upstream/latest/tower_upstream/client/struct.ReverseProxy.html) does not need it.
///
/// | setting | default |
/// |---|---|
/// | [`upstream`](Self::upstream) | none: the forwarded URI is in origin-form, for a handler or hyper's own connections |
/// | [`http2`](Self::http2) | off: the forwarded head is one of HTTP/1.1 |
/// | [`client_info`](Self::client_info), if the request's extensions have no [`ClientInfo`] | [`ClientInfo::unknown`] |
///
/// ```
/// use bytes::Bytes;
/// use http_body_util::Full;
/// use hyper_util::client::legacy::Client;
/// use hyper_util::rt::TokioExecutor;
/// use tower::{Service, ServiceBuilder};
/// use tower_upstream::ClassifyLayer;
/// use tower_upstream::forward::{ForwardBody, ForwardLayer, ForwardingRules, Scheme};
/// # use tower_upstream::body::ResponseBody;
///
/// let forward = ForwardLayer::new(ForwardingRules::new("edge-1").unwrap()).upstream(Scheme::Http, "10.0.0.7:8080".parse().unwrap());
/// let client = Client::builder(TokioExecutor::new()).build_http::<ForwardBody<Full<Bytes>>>();
/// let gateway = ServiceBuilder::new()
///     .layer(ClassifyLayer::new())
///     .layer(forward)
///     // hyper's own body cannot hold an answer that is made here
///     .map_response(|answer: http::Response<_>| answer.map(ResponseBody::<hyper::body::Incoming>::upstream))
///     .service(client);
/// # fn serves(_: impl Service<http::Request<Full<Bytes>>>) {}
/// # serves(gateway);
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct ForwardLayer {
    settings: Arc<Settings>,
}

impl ForwardLayer {
    /// A layer with these rules, for a client that accepts a URI in origin-form.
    pub fn new(rules: ForwardingRules) -> Self {
        Self { settings: Arc::new(Settings::new(rules)) }
    }

    fn settings(&mut self) -> &mut Settings {
        Arc::make_mut(&mut self.settings)
    }

    /// Sends to this upstream: the forwarded URI is absolute, as hyper-util's client and reqwest require.
    ///
    /// It is also the `Host` by [`HostPolicy::Upstream`](super::HostPolicy::Upstream), which without it leaves the field
    /// empty. Otherwise `Host` follows the rules; an HTTP/2 client sends the URI's authority in addition.
    pub fn upstream(mut self, scheme: Scheme, authority: Authority) -> Self {
        self.settings().send_to(scheme, authority);
        self
    }

    /// The inner client speaks HTTP/2: connection-specific fields and upgrades are not forwarded.
    pub fn http2(mut self) -> Self {
        self.settings().protocol = ClientProtocol::Http2;
        self
    }

    /// The client of requests without a [`ClientInfo`] in their extensions (default: unknown).
    pub fn client_info(mut self, caller: ClientInfo) -> Self {
        self.settings().client_info = caller;
        self
    }
}

impl<S> Layer<S> for ForwardLayer {
    type Service = Forward<S>;

    fn layer(&self, inner: S) -> Forward<S> {
        Forward { inner, settings: LocalArc::new(self.settings.clone()) }
    }
}

/// The service of [`ForwardLayer`].
#[derive(Clone, Debug)]
pub struct Forward<S> {
    inner: S,
    settings: LocalArc<Settings>,
}

impl<S, ReqBody, ResBody> Service<Request<ReqBody>> for Forward<S>
where
    S: Service<Request<ForwardBody<ReqBody>>, Response = Response<ResBody>>,
    ReqBody: Body,
    ResBody: From<Bytes>,
{
    type Response = Response<ForwardBody<ResBody>>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future, ResBody>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        let settings = self.settings.acquire_mut();
        ResponseFuture::of(settings, request, |request| self.inner.call(request))
    }
}

pin_project! {
    /// The future of [`Forward`].
    #[derive(Debug)]
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<F, B> {
        #[pin]
        state: State<F, B>,
    }
}

pin_project! {
    #[project = StateProjection]
    #[derive(Debug)]
    enum State<F, B> {
        Call { #[pin] call: F, asked: Option<HeaderValue>, settings: Ref<Settings> },
        // boxed, as few requests are rejected
        Rejected { answer: Option<Box<Response<B>>> },
    }
}

impl<F, B: From<Bytes>> ResponseFuture<F, B> {
    fn of<R: Body>(
        settings: Ref<Settings>,
        request: Request<R>,
        call: impl FnOnce(Request<ForwardBody<R>>) -> F,
    ) -> Self {
        let (mut parts, body) = request.into_parts();
        let state = match settings.forward_request(&mut parts) {
            Ok(asked) => {
                if let ClientProtocol::Http1 = settings.protocol {
                    name_length(&parts.method, &mut parts.headers, &body);
                }
                State::Call { call: call(Request::from_parts(parts, ForwardBody::request(body))), asked, settings }
            }
            Err(answer) => {
                // counts as the one client call of the layers around this one
                ClientCall::next();
                State::Rejected { answer: Some(Box::new(answer)) }
            }
        };
        Self { state }
    }
}

impl<F, B, E> Future for ResponseFuture<F, B>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: From<Bytes>,
{
    type Output = Result<Response<ForwardBody<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = match self.project().state.project() {
            StateProjection::Call { call, asked, settings } => {
                settings.forward_response(ready!(call.poll(cx))?, asked.as_ref())
            }
            StateProjection::Rejected { answer } => *answer.take().expect("a future is not polled after it was ready"),
        };
        Poll::Ready(Ok(answer.map(ForwardBody::response)))
    }
}
