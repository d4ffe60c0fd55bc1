//! A stack whose type names neither its client nor the client's response body.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use tower_layer::Layer;
use tower_service::Service;

use super::{BoxError, RequestBody, Upstream, UpstreamLayer};
use crate::body::WrapBody;
use crate::cause::Failure;
use crate::exchange::SendService;
use crate::opaque::Opaque;

type BoxFuture = Pin<Box<dyn Future<Output = Result<Response<BoxUpstreamBody>, Infallible>> + Send>>;

/// The response body of a [`BoxUpstream`].
pub type BoxUpstreamBody = Pin<Box<dyn Body<Data = Bytes, Error = Failure> + Send>>;

/// An [`Upstream`] in a box, for a field of a struct: its type names only the request body.
///
/// A call costs two allocations more than that of an `Upstream`: one for its future, and one for the response body.
#[derive(Debug)]
pub struct BoxUpstream<B> {
    service: Opaque<Box<dyn Call<B>>>,
}

impl UpstreamLayer {
    /// Puts the stack around a client, in a box.
    ///
    /// ```
    /// use axum::body::Body;
    /// use http::{Request, Response};
    /// use tower::{ServiceExt, service_fn};
    /// use tower_upstream::UpstreamLayer;
    /// use tower_upstream::stack::BoxUpstream;
    ///
    /// #[derive(Clone)]
    /// struct Shop {
    ///     api: BoxUpstream<Body>,
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let client = service_fn(|_: Request<_>| async { Ok::<_, std::io::Error>(Response::new(Body::from("3 items"))) });
    /// let shop = Shop { api: UpstreamLayer::builder("shop").build().unwrap().boxed(client) };
    /// let Ok(response) = shop.api.clone().oneshot(Request::new(Body::empty())).await;
    /// assert_eq!(response.status(), 200);
    /// # }
    /// ```
    pub fn boxed<S, B, X, E>(&self, client: S) -> BoxUpstream<B>
    where
        S: WrapBody<RequestBody<B>, Body = X, ServiceError = E> + SendService<RequestBody<B>> + Clone + Sync,
        B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
        X: Body<Data = Bytes, Error: Into<BoxError>> + Send + Unpin + 'static,
        E: Into<BoxError>,
    {
        BoxUpstream { service: Opaque(Box::new(self.layer(client))) }
    }
}

/// A stack around a client of any type.
trait Call<B>: Send + Sync {
    fn call(&mut self, request: Request<B>) -> BoxFuture;

    fn clone_box(&self) -> Box<dyn Call<B>>;
}

impl<S, B, X, E> Call<B> for Upstream<S>
where
    S: WrapBody<RequestBody<B>, Body = X, ServiceError = E> + SendService<RequestBody<B>> + Clone + Sync,
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    X: Body<Data = Bytes, Error: Into<BoxError>> + Send + Unpin + 'static,
    E: Into<BoxError>,
{
    fn call(&mut self, request: Request<B>) -> BoxFuture {
        let call = Service::call(self, request);
        Box::pin(async move {
            let Ok(response) = call.await;
            Ok(response.map(|body| -> BoxUpstreamBody { Box::pin(body) }))
        })
    }

    fn clone_box(&self) -> Box<dyn Call<B>> {
        Box::new(self.clone())
    }
}

impl<B> Service<Request<B>> for BoxUpstream<B> {
    type Response = Response<BoxUpstreamBody>;
    type Error = Infallible;
    type Future = BoxFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // a stack is always ready
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        self.service.0.call(request)
    }
}

impl<B> Clone for BoxUpstream<B> {
    fn clone(&self) -> Self {
        Self { service: Opaque(self.service.clone_box()) }
    }
}
