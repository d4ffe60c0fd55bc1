//! Extracts the deadline as an argument of an axum handler.

use std::convert::Infallible;

use axum_core::extract::{FromRequestParts, OptionalFromRequestParts};
use http::StatusCode;
use http::request::Parts;

use super::Deadline;

const NO_DEADLINE: &str = "this handler needs a deadline, and no layer around it exposes one\n";

/// The deadline that a layer with [`expose`](super::DeadlinePropagation::expose) added to the request's extensions.
///
/// Without one the response is a 500, because the app is misconfigured: use `Option<Deadline>` if clients may send none. A
/// [`TimeoutLayer`](crate::timeout::TimeoutLayer) that exposes it gives every request one.
///
/// ```
/// use axum::{Router, body::Body, routing::get};
/// use http::Request;
/// use std::time::Duration;
/// use tower::ServiceExt;
/// use tower_upstream::Failure;
/// use tower_upstream::deadline::{Deadline, DeadlinePropagation};
/// use tower_upstream::timeout::{TimeoutLayer, Timeouts};
///
/// async fn report(deadline: Deadline) -> Result<&'static str, Failure> {
///     // is cancelled at the deadline
///     deadline.bound(tokio::time::sleep(Duration::from_millis(20))).await?;
///     Ok("all is well")
/// }
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() {
/// let trusting = DeadlinePropagation::new().trust_everyone().expose();
/// let limits = TimeoutLayer::new(Timeouts::new()).without_upload_tracking().deadlines(trusting);
/// let app = Router::new().route("/", get(report)).layer(limits);
/// for (said, status) in [("200", 200), ("10", 504)] {
///     let request = Request::get("/").header("x-request-timeout-ms", said).body(Body::empty()).unwrap();
///     assert_eq!(app.clone().oneshot(request).await.unwrap().status(), status);
/// }
/// # }
/// ```
#[cfg_attr(docsrs, doc(cfg(feature = "axum")))]
impl<S: Sync> FromRequestParts<S> for Deadline {
    type Rejection = (StatusCode, &'static str);

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        Self::of(&parts.extensions).ok_or((StatusCode::INTERNAL_SERVER_ERROR, NO_DEADLINE))
    }
}

/// `None` if the request has no deadline.
#[cfg_attr(docsrs, doc(cfg(feature = "axum")))]
impl<S: Sync> OptionalFromRequestParts<S> for Deadline {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Option<Self>, Infallible> {
        Ok(Self::of(&parts.extensions))
    }
}
