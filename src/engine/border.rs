//! How a request body passes into an engine.

use std::sync::Arc;

use http::Request;
use http_body::Body;
use tokio::time::Instant;

use crate::body::{Progress, Upload};

/// How the request body is handed to the inner service: [`Watched`] or [`Untouched`].
#[diagnostic::on_unimplemented(
    message = "this layer watches request bodies, and `{B}` is none",
    label = "`{B}` does not implement `http_body::Body`",
    note = "`untouched()` lets a layer hand on whatever a request has as its body"
)]
pub trait Border<B>: sealed::Sealed {
    /// What the inner service gets as its body.
    type Body;

    #[doc(hidden)]
    fn body(body: B, now: Instant, seen: &mut Seen) -> Self::Body;

    #[doc(hidden)]
    fn pass(request: Request<B>, now: Instant, seen: &mut Seen) -> Request<Self::Body>;
}

/// What a border lets the engine see of a request body.
#[doc(hidden)]
#[derive(Debug, Default)]
pub struct Seen(pub(super) Option<Arc<Progress>>);

/// The inner service gets `Upload<B>`, so that a slow client is told from a slow upstream.
#[derive(Clone, Copy, Debug)]
pub enum Watched {}

/// The inner service gets the body as it is.
#[derive(Clone, Copy, Debug)]
pub enum Untouched {}

#[diagnostic::do_not_recommend]
impl<B: Body> Border<B> for Watched {
    type Body = Upload<B>;

    #[inline]
    fn body(body: B, now: Instant, seen: &mut Seen) -> Upload<B> {
        let upload = Upload::new(body, now);
        seen.0 = upload.progress();
        upload
    }

    #[inline]
    fn pass(request: Request<B>, now: Instant, seen: &mut Seen) -> Request<Upload<B>> {
        request.map(|body| Self::body(body, now, seen))
    }
}

impl<B> Border<B> for Untouched {
    type Body = B;

    #[inline]
    fn body(body: B, _: Instant, _: &mut Seen) -> B {
        body
    }

    #[inline]
    fn pass(request: Request<B>, _: Instant, _: &mut Seen) -> Request<B> {
        request
    }
}

mod sealed {
    #[allow(unnameable_types)] // that is its purpose
    pub trait Sealed {}
    impl Sealed for super::Watched {}
    impl Sealed for super::Untouched {}
}
