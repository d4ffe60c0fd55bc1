//! The code that `tonic-build` generates for one service, written by hand so that no protobuf compiler is needed.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::uri::PathAndQuery;
use tonic::body::Body;
use tonic::client::GrpcService;
use tonic::server::NamedService;
use tonic::{Request, Response, Status};
use tower::{BoxError, Service, service_fn};

use crate::raw::Raw;

/// The server's side; `call` is its one method.
#[derive(Clone)]
pub(crate) struct ShopServer<F> {
    call: F,
}

impl<F> ShopServer<F> {
    pub(crate) fn new(call: F) -> Self {
        Self { call }
    }
}

impl<F> NamedService for ShopServer<F> {
    const NAME: &'static str = "demo.Shop";
}

impl<F, A> Service<http::Request<Body>> for ShopServer<F>
where
    F: FnMut(Request<Bytes>) -> A + Clone + Send + 'static,
    A: Future<Output = Result<Response<Bytes>, Status>> + Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let call = self.call.clone();
        Box::pin(async move { Ok(tonic::server::Grpc::new(Raw).unary(service_fn(call), request).await) })
    }
}

/// The client's side, around a channel with layers or without.
pub(crate) struct ShopClient<S> {
    inner: tonic::client::Grpc<S>,
}

impl<S> ShopClient<S>
where
    S: GrpcService<Body>,
    S::ResponseBody: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    pub(crate) fn new(channel: S) -> Self {
        Self { inner: tonic::client::Grpc::new(channel) }
    }

    /// Orders something that takes the shop this long, with a deadline of `patience`.
    pub(crate) async fn order(&mut self, work: Duration, patience: Duration) -> Result<Bytes, Status> {
        let mut request = Request::new(Bytes::from(work.as_millis().to_string()));
        request.set_timeout(patience);
        self.inner.ready().await.map_err(|error| Status::from_error(error.into()))?;
        let method = PathAndQuery::from_static("/demo.Shop/Order");
        Ok(self.inner.unary(request, method, Raw).await?.into_inner())
    }
}
