//! The request body of a stack: kept for another attempt, and tracked.

use std::sync::Arc;

use bytes::Bytes;
use http_body::Body;
use tokio::time::Instant;

use crate::body::{ReplayBody, TrackedUpload, UploadCounters};
use crate::retry::WrapReplay;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The request body of the service inside an [`Upstream`](super::Upstream).
///
/// The body is kept while it is sent, so that it can be sent again, and its progress is tracked, so that a slow client is not
/// taken for a slow upstream. Without retry and without upload tracking the body passes through unchanged.
pub type RequestBody<B> = TrackedUpload<ReplayBody<B>>;

/// Tracks the upload of request bodies, unless it is off.
#[derive(Clone, Copy, Debug)]
pub(super) struct TrackUploads(pub(super) bool);

impl<B: Body<Data = Bytes, Error: Into<BoxError>>> WrapReplay<B> for TrackUploads {
    type Body = RequestBody<B>;

    fn wrap(&self, body: ReplayBody<B>, now: Instant, upload: &mut Option<Arc<UploadCounters>>) -> RequestBody<B> {
        if !self.0 {
            return TrackedUpload::untracked(body);
        }
        let body = TrackedUpload::new(body, now);
        *upload = body.counters();
        body
    }
}
