//! Response bodies, upstream's or local, and request bodies that are tracked or kept for a replay.

mod buffered;
mod length;
mod loan;
mod replay;
mod response;
mod upgrade_guard;
mod upload;

use http::{Request, Response};
use tower_service::Service;

pub(crate) use self::length::{Length, content_length, is_plain_number};
pub use self::replay::ReplayBody;
pub(crate) use self::replay::ReplayHandle;
pub use self::response::ResponseBody;
pub use self::upgrade_guard::{UpgradeEnd, UpgradeGuard};
pub use self::upload::TrackedUpload;
pub(crate) use self::upload::{UploadCounters, announces_body};

/// The error of a body of any type.
pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A service that takes requests with this body.
///
/// Layers that track or buffer request bodies pass them on in a type of their own.
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not accept requests with the body `{B}`, which this layer passes on",
    label = "the layer around it passes on `Request<{B}>`",
    note = "put `compat::MapRequestBodyLayer` around a client that accepts a single body type: \
            `MapRequestBodyLayer::new(tonic::body::Body::new)`; around reqwest, `HttpCompatLayer::new(reqwest::Body::wrap)`",
    note = "a `TimeoutLayer` passes the body on unchanged if it is `without_upload_tracking()`"
)]
pub trait WrapBody<B>: Service<Request<B>, Response = Response<Self::Body>, Error = Self::ServiceError> {
    /// The response body.
    type Body;
    /// The service's error.
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
