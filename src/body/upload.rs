//! Tracks a request body while it is sent.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderValue, Request};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::time::Instant;

/// Whether a request has a body, as far as its head tells: HTTP/2 does not announce it.
pub(crate) fn announces_body<B>(request: &Request<B>) -> bool {
    let headers = request.headers();
    match headers.get(CONTENT_LENGTH) {
        Some(length) => *length != HeaderValue::from_static("0"),
        None => headers.contains_key(TRANSFER_ENCODING) || !request.method().is_safe(),
    }
}

/// The progress of an upload, shared with the code that waits for the response.
#[derive(Debug)]
pub(crate) struct UploadCounters {
    started: Instant,
    /// Frames received from the client.
    frames: AtomicU32,
    /// The last poll was pending: the client is slow, not the upstream.
    client_stalled: AtomicBool,
    failed: AtomicBool,
    /// When it ended, in nanoseconds after `started`, plus one; 0 while it has not.
    ended: AtomicU64,
}

impl UploadCounters {
    fn new(begun: Instant) -> Self {
        Self {
            started: begun,
            frames: AtomicU32::new(0),
            client_stalled: AtomicBool::new(false),
            failed: AtomicBool::new(false),
            ended: AtomicU64::new(0),
        }
    }

    pub(crate) fn frames(&self) -> u32 {
        self.frames.load(Relaxed)
    }

    pub(crate) fn client_stalled(&self) -> bool {
        self.client_stalled.load(Relaxed)
    }

    /// When the body ended.
    pub(crate) fn ended(&self) -> Option<Instant> {
        let ended = self.ended.load(Relaxed).checked_sub(1)?;
        Some(self.started + Duration::from_nanos(ended))
    }

    /// Whether the client failed to send it completely.
    pub(crate) fn failed(&self) -> bool {
        self.failed.load(Relaxed)
    }

    fn end(&self) {
        let after = u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX - 1);
        self.ended.store(after + 1, Relaxed);
    }
}

pin_project! {
    /// A request body that is tracked; a body that is empty from the start is not.
    ///
    /// Frames, `size_hint` and `is_end_stream` are those of the body, except for trailers edited by the client module.
    #[derive(Debug)]
    pub struct TrackedUpload<B> {
        // `None`: of a request without a body, which no client has sent
        #[pin]
        body: Option<B>,
        counters: Option<Arc<UploadCounters>>,
        edit_trailers: Option<fn(&mut HeaderMap)>,
    }
}

impl<B: Body> TrackedUpload<B> {
    pub(crate) fn new(body: B, now: Instant) -> Self {
        let progress = (!body.is_end_stream()).then(|| Arc::new(UploadCounters::new(now)));
        Self { body: Some(body), counters: progress, edit_trailers: None }
    }

    /// A body that is not tracked.
    #[inline]
    pub(crate) fn untracked(body: B) -> Self {
        Self { body: Some(body), counters: None, edit_trailers: None }
    }

    /// The body of a request without one.
    pub(crate) fn empty() -> Self {
        Self { body: None, counters: None, edit_trailers: None }
    }

    /// Edits the trailers; a section without fields is not forwarded.
    #[cfg(feature = "client")]
    pub(crate) fn edit_trailers(mut self, edit: fn(&mut HeaderMap)) -> Self {
        self.edit_trailers = Some(edit);
        self
    }

    pub(crate) fn counters(&self) -> Option<Arc<UploadCounters>> {
        self.counters.clone()
    }
}

impl<B: Body> Body for TrackedUpload<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let mut this = self.project();
        let Some(mut body) = this.body.as_mut().as_pin_mut() else { return Poll::Ready(None) };
        let mut polled = body.as_mut().poll_frame(cx);
        let mut has_ended = false;
        if let Poll::Ready(Some(Ok(frame))) = &mut polled {
            if let Some(trailers) = frame.trailers_mut() {
                has_ended = true;
                if let Some(edit) = this.edit_trailers {
                    edit(trailers);
                    if trailers.is_empty() {
                        polled = Poll::Ready(None);
                    }
                }
            }
        }
        let Some(progress) = this.counters else { return polled };
        progress.client_stalled.store(polled.is_pending(), Relaxed);
        match &polled {
            Poll::Ready(Some(Ok(_))) => {
                progress.frames.store(progress.frames.load(Relaxed).wrapping_add(1), Relaxed);
                // the end of an HTTP/2 stream may come long after the last announced byte
                if has_ended || body.is_end_stream() || body.size_hint().exact() == Some(0) {
                    progress.end();
                }
            }
            Poll::Ready(Some(Err(_))) => progress.failed.store(true, Relaxed),
            Poll::Ready(None) if progress.ended().is_none() => progress.end(),
            Poll::Ready(None) | Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}
