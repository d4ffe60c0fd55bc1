//! Error pages: the response to a failure, in a media type that the client accepts.
//!
//! [`ErrorPageLayer`] is the outermost layer, around [`ClassifyLayer`](crate::ClassifyLayer). Where a layer of this crate
//! responded in the upstream's place, or a handler returned a [`Failure`], it replaces the plain text by an
//! [`ErrorPage`]. It never changes relayed responses, pages written by a service of your own, the 400 and 501 of
//! [`forward`](crate::forward), or errors.
//!
//! | the request | the response |
//! |---|---|
//! | accepts `text/html`, as browsers do | a page without scripts or external resources, light and dark: what happened, whether it is safe to try again, the request id if the response has one, the time, a contact |
//! | accepts `application/problem+json` or `application/json` | a problem (RFC 9457) with `title`, `status`, `detail`, `request_id`, `time` and `retry_safe` |
//! | accepts anything, or has no `Accept` | plain text |
//! | is a POST of `application/grpc` | HTTP 200 with `grpc-status`, `grpc-message` and, with a `Retry-After` where a retry is safe, `grpc-retry-pushback-ms` in its head |
//! | is a POST of `application/grpc-web`, `-web-text` | HTTP 200 and the same as trailers in the body |
//! | is a HEAD | the head that a GET would get |
//!
//! Users read one of six [pieces of advice](crate::cause::Advice), by the request's method and by what is proven: a GET can be
//! reloaded whatever happened, and "was not processed" is said only with proof. `retry_safe` agrees with it: the method is
//! safe, or it is proven that nothing was processed. No media type names the upstream, address, cause or software unless
//! [configured](ErrorPage::reveal_upstream). `Accept` is parsed (RFC 9110 section 12.5.1) only once a request has failed.
//!
//! Status, `Retry-After`, `Proxy-Status` and `x-request-id` are kept; `cache-control: no-store`, `vary`,
//! `x-content-type-options` and, for HTML, `content-security-policy` are added. The cause remains in the extensions. Because
//! the response to a gRPC call has status 200, layers that act on statuses belong inside this layer.
//!
//! ```
//! use bytes::Bytes;
//! use http::{Request, Response};
//! use http_body_util::{BodyExt, Full};
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//! use tower_upstream::cause::{Evidence, Replay};
//! use tower_upstream::{BadGatewayCause, ClassifyLayer, Failure};
//! use tower_upstream::error_page::{ErrorPage, ErrorPageLayer};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! let refused = service_fn(|_: Request<()>| async {
//!     let refused = Failure::builder(BadGatewayCause::ConnectionRefused);
//!     Err::<Response<Full<Bytes>>, _>(refused.replay(Replay::NotSent, Evidence::NoConnection).build())
//! });
//! let gateway = ServiceBuilder::new()
//!     .layer(ErrorPageLayer::new(ErrorPage::new().contact("Write to help@shop.example.")))
//!     .layer(ClassifyLayer::new())
//!     .service(refused);
//!
//! let request = Request::get("/cart").header("accept", "text/html").body(()).unwrap();
//! let Ok(response) = gateway.oneshot(request).await;
//! assert_eq!(response.status(), 502);
//! assert_eq!(response.headers()["content-type"], "text/html; charset=utf-8");
//! let page = response.into_body().collect().await.unwrap().to_bytes();
//! let page = std::str::from_utf8(&page).unwrap();
//! assert!(page.contains("<h1>The service could not be reached.</h1>"));
//! assert!(page.contains("It is safe to reload this page."));
//! assert!(page.contains("Write to help@shop.example."));
//! # }
//! ```

mod accept;
mod context;
mod grpc;
mod html;
mod json;
mod messages;
mod negotiation;
mod page;
mod plain;
mod rfc3339;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::SystemTime;

use bytes::Bytes;
use http::{Request, Response};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use crate::cause::{ClientCalls, Failure, is_local};
use crate::exchange::{LocalArc, Ref};

pub use self::context::ErrorContext;
pub use self::messages::Messages;
pub(crate) use self::negotiation::ResponsePreferences;
pub use self::page::ErrorPage;

/// Replaces local responses to failures by an error page; see the [module](self).
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct ErrorPageLayer {
    page: Arc<ErrorPage>,
}

impl ErrorPageLayer {
    /// A layer with this page.
    pub fn new(page: ErrorPage) -> Self {
        Self { page: Arc::new(page) }
    }
}

impl<S> Layer<S> for ErrorPageLayer {
    type Service = ErrorPageService<S>;

    fn layer(&self, inner: S) -> ErrorPageService<S> {
        ErrorPageService { inner, page: LocalArc::new(self.page.clone()) }
    }
}

/// The service of [`ErrorPageLayer`].
#[derive(Clone, Debug)]
pub struct ErrorPageService<S> {
    inner: S,
    page: LocalArc<ErrorPage>,
}

impl<S, ReqBody, ResBody> Service<Request<ReqBody>> for ErrorPageService<S>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
    ResBody: From<Bytes>,
{
    type Response = Response<ResBody>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        let preferences = self.page.preferences(&request);
        let calls = ClientCalls::begin();
        let call = self.inner.call(request);
        ResponseFuture { call, calls: calls.end(), preferences, page: self.page.acquire_mut() }
    }
}

pin_project! {
    /// The future of [`ErrorPageService`].
    #[derive(Debug)]
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<F> {
        #[pin]
        call: F,
        calls: ClientCalls,
        preferences: ResponsePreferences,
        page: Ref<ErrorPage>,
    }
}

impl<F, B, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: From<Bytes>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        match this.call.poll(cx) {
            Poll::Ready(Ok(response)) if response.status().as_u16() >= 400 => {
                Poll::Ready(Ok(paged(this.page, this.preferences, *this.calls, response)))
            }
            other => other,
        }
    }
}

/// Adds the page if the response is local.
#[cold]
fn paged<B: From<Bytes>>(
    page: &ErrorPage,
    preferences: &ResponsePreferences,
    calls: ClientCalls,
    mut response: Response<B>,
) -> Response<B> {
    Failure::of_calls(&mut response, calls);
    let failure = if is_local(response.extensions()) { Failure::of(&response).cloned() } else { None };
    let Some(failure) = failure else { return response };
    let body = page.write(preferences, &failure, &mut response, SystemTime::now());
    response.map(|_| body.into())
}
