//! Converts the request body, for services that accept a single body type.

use std::task::{Context, Poll};

use http::Request;
use tower_layer::Layer;
use tower_service::Service;

use crate::opaque::Opaque;

/// Converts the request body by a function, for a service that accepts a single body type.
///
/// Head, extensions, response, error and future are those of the service. tower-http's `MapRequestBodyLayer` does the
/// same; this one needs no further crate.
///
/// ```
/// use http::{Request, Response};
/// use http_body_util::{BodyExt, Full, combinators::BoxBody};
/// use tower::{Layer, ServiceExt, service_fn};
/// use tower_upstream::compat::MapRequestBodyLayer;
/// use tower_upstream::retry::RetryLayer;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// type Body = BoxBody<bytes::Bytes, tower::BoxError>;
/// let takes_one_type = service_fn(|request: Request<Body>| async {
///     let body = request.into_body().collect().await.unwrap();
///     Ok::<_, std::convert::Infallible>(Response::new(Full::new(body.to_bytes())))
/// });
/// // the retry layer passes on a `ReplayBody<_>`
/// let boxed = MapRequestBodyLayer::new(|body| BodyExt::boxed(BodyExt::map_err(body, tower::BoxError::from)));
/// let service = RetryLayer::new().layer(boxed.layer(takes_one_type));
/// let answer = service.oneshot(Request::new(Full::<bytes::Bytes>::from("order"))).await.unwrap();
/// assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "order");
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct MapRequestBodyLayer<F> {
    convert: Opaque<F>,
}

impl<F> MapRequestBodyLayer<F> {
    /// Converts with this function, usually the constructor of the service's body type.
    pub fn new(convert: F) -> Self {
        Self { convert: Opaque(convert) }
    }
}

impl<S, F: Clone> Layer<S> for MapRequestBodyLayer<F> {
    type Service = MapRequestBody<S, F>;

    fn layer(&self, inner: S) -> MapRequestBody<S, F> {
        MapRequestBody { inner, convert: self.convert.clone() }
    }
}

/// The service of [`MapRequestBodyLayer`].
#[derive(Clone, Copy, Debug)]
pub struct MapRequestBody<S, F> {
    inner: S,
    convert: Opaque<F>,
}

impl<S, F, B, C> Service<Request<B>> for MapRequestBody<S, F>
where
    S: Service<Request<C>>,
    F: Fn(B) -> C,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    #[inline]
    fn call(&mut self, request: Request<B>) -> S::Future {
        self.inner.call(request.map(&*self.convert))
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use tower::{ServiceExt, service_fn};

    use super::*;

    #[tokio::test]
    async fn the_body_alone_is_changed() {
        let echo = service_fn(|request: Request<String>| async { Ok::<_, Infallible>(request) });
        let service = MapRequestBodyLayer::new(|body: u32| body.to_string()).layer(echo);
        let request = Request::put("http://a.example/b?c").header("x", "y").extension(5_u8).body(7).unwrap();
        let seen = service.oneshot(request).await.unwrap();
        assert_eq!((seen.method().as_str(), seen.uri().to_string().as_str()), ("PUT", "http://a.example/b?c"));
        assert_eq!(seen.headers()["x"], "y");
        assert_eq!((seen.extensions().get(), seen.body().as_str()), (Some(&5_u8), "7"));
    }

    #[test]
    fn it_waits_for_the_inner_service() {
        let layer = MapRequestBodyLayer::new(|body: u32| body.to_string());
        let (mut service, mut handle) = tower_test::mock::spawn_layer::<Request<String>, (), _>(layer);
        handle.allow(0);
        assert!(service.poll_ready::<Request<u32>>().is_pending());
        handle.allow(1);
        assert!(service.poll_ready::<Request<u32>>().is_ready());
    }
}
