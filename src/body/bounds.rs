//! What layers ask of the services inside, in words that the compiler repeats.

use http::{Request, Response};
use tower_service::Service;

/// A service that takes requests with this body.
///
/// Layers that watch request bodies or keep them hand them on in a type of their own.
#[diagnostic::on_unimplemented(
    message = "`{Self}` takes no request whose body is `{B}`, which is what this layer hands on",
    label = "the layer around it hands on `Request<{B}>`",
    note = "put `compat::MapRequestBodyLayer` right around a client that takes one type of body: \
            `MapRequestBodyLayer::new(tonic::body::Body::new)`, `MapRequestBodyLayer::new(reqwest::Body::wrap)`",
    note = "a `TimeoutLayer` hands the body on as it is when it is `untouched()`"
)]
pub trait WrapBody<B>: Service<Request<B>, Response = Response<Self::Body>, Error = Self::ServiceError> {
    /// The body of its answers.
    type Body;
    /// Its error.
    type ServiceError;
}

#[diagnostic::do_not_recommend]
impl<S, B, R> WrapBody<B> for S
where
    S: Service<Request<B>, Response = Response<R>>,
{
    type Body = R;
    type ServiceError = S::Error;
}
