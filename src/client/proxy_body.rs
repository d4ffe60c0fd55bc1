//! The upstream's response body, which returns its connection to the pool.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::Instant;

use super::pool::{Checkout, SendBody};
use super::progress::{publish_poll, snapshot};
use crate::body::UploadCounters;
use crate::cause::{BadGatewayCause, Detail, Evidence, Failure, FailureBuilder, Phase, Replay};
use crate::classify::{AttemptContext, ConnectionStats};
use crate::exchange::{AttemptProgress, Detachable};
use crate::forward::strip_response_trailers;
use crate::opaque::Opaque;

/// The upstream's body.
///
/// Its connection is returned to the pool with the last frame. The connection is closed if the body fails or is dropped
/// earlier, or if the response came before the upload was complete.
///
/// A body that the client does not read keeps its connection: limit this by a stack or layer around, with
/// [`client_idle`](crate::timeout::Timeouts::client_idle).
#[derive(Debug)]
pub struct ProxyBody<B> {
    transfer: Opaque<Detachable<Transfer<B>>>,
}

impl<B: SendBody> ProxyBody<B> {
    pub(super) fn new(incoming: Incoming, lease: Checkout<B>, request: SentRequest) -> Self {
        Self { transfer: Opaque(Detachable::new(Transfer::new(incoming, lease, request))) }
    }
}

impl<B: SendBody> Body for ProxyBody<B> {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        Pin::new(&mut self.transfer.0).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.transfer.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.transfer.size_hint()
    }
}

/// The incoming body and the state it needs.
struct Transfer<B> {
    incoming: Incoming,
    /// `None` after the body's end, and for responses without a body.
    open: Option<Box<OpenResponse<B>>>,
}

/// The request that a body responds to.
pub(super) struct SentRequest {
    pub(super) upstream: Arc<str>,
    pub(super) begun: Instant,
    pub(super) scene: AttemptContext,
    pub(super) progress: Option<Arc<UploadCounters>>,
    pub(super) upload_idle: Duration,
}

/// The state of a body in progress.
struct OpenResponse<B> {
    lease: Checkout<B>,
    upload: UploadPhase,
    request: SentRequest,
}

/// The state of the upload when the response head arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum UploadPhase {
    /// There was none, or it was written completely.
    Complete,
    /// The upstream may misread the rest of it as a request, or leave it unread before one.
    InProgress,
}

impl UploadPhase {
    fn of(progress: Option<&UploadCounters>, stamp: &ConnectionStats) -> Self {
        match progress {
            Some(progress) if progress.ended().is_none() || stamp.wire().blocked => Self::InProgress,
            _ => Self::Complete,
        }
    }
}

impl<B: SendBody> Transfer<B> {
    fn new(incoming: Incoming, lease: Checkout<B>, request: SentRequest) -> Self {
        let upload = UploadPhase::of(request.progress.as_deref(), lease.stamp());
        lease.stamp().record_response();
        if incoming.is_end_stream() {
            release(lease, upload, request.progress.as_ref(), request.upload_idle);
            return Self { incoming, open: None };
        }
        Self { incoming, open: Some(Box::new(OpenResponse { lease, upload, request })) }
    }

    /// The body is complete: releases the connection.
    fn release(&mut self) {
        if let Some(open) = self.open.take() {
            release(open.lease, open.upload, open.request.progress.as_ref(), open.request.upload_idle);
        }
    }
}

fn release<B: SendBody>(
    lease: Checkout<B>,
    upload: UploadPhase,
    progress: Option<&Arc<UploadCounters>>,
    upload_idle: Duration,
) {
    match lease {
        Checkout::H1(h1) => match upload {
            // the upstream may still want the rest (RFC 9112 section 9.3), but could misread it
            UploadPhase::InProgress => h1.end_after_upload(upload_idle),
            // unwritten data would delay the next request
            UploadPhase::Complete if progress.is_some() && !h1.is_ready() => h1.put_idle_after_upload(upload_idle),
            UploadPhase::Complete => h1.put_idle(Instant::now()),
        },
        #[cfg(feature = "http2")]
        Checkout::H2(mut h2) => {
            h2.on_end();
            if let Some(progress) = progress.filter(|progress| progress.ended().is_none()) {
                h2.close_after_upload(progress, upload_idle);
            }
        }
    }
}

impl<B> OpenResponse<B> {
    /// `RST_STREAM(NO_ERROR)` looks like an end (RFC 9113 section 8.1).
    fn was_cut(&self, incoming: &Incoming) -> bool {
        self.request.scene.wire.is_some_and(|wire| wire.multiplexed) && !incoming.is_end_stream()
    }

    /// Whether the client's upload failed, upon which our codec closes the connection or the stream.
    fn upload_failed(&self) -> bool {
        self.request.progress.as_ref().is_some_and(|progress| progress.failed())
    }

    /// A failure for which there is no error value.
    fn broken(&self, cause: BadGatewayCause) -> FailureBuilder {
        let failure = Failure::builder(cause).phase(Phase::Body).replay(Replay::Never, Evidence::Counted);
        failure.peer(self.request.scene.peer).connection(self.request.scene.connection())
    }

    /// Ends the connection, or the stream on it.
    fn failed(mut self, failure: Failure) -> Failure {
        let failure = self.lease.failed(failure);
        failure.into_builder().client_upstream(self.request.upstream).elapsed(self.request.begun.elapsed()).build()
    }
}

impl<B: SendBody> Body for Transfer<B> {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        let this = &mut *self;
        let mut polled = Pin::new(&mut this.incoming).poll_frame(cx);
        let mut fits = true;
        if let Poll::Ready(Some(Ok(frame))) = &mut polled {
            if let Some(trailers) = frame.trailers_mut() {
                fits = strip_response_trailers(trailers);
                if trailers.is_empty() {
                    this.release();
                    return Poll::Ready(None);
                }
            }
        }
        let Some(open) = &mut this.open else { return ended(polled) };
        let failure = match polled {
            Poll::Ready(Some(Ok(_))) if !fits => open.broken(BadGatewayCause::TrailerTooLarge).build(),
            Poll::Ready(Some(Ok(frame))) => {
                if this.incoming.is_end_stream() {
                    this.release();
                }
                return Poll::Ready(Some(Ok(frame)));
            }
            Poll::Ready(Some(Err(error))) if open.upload_failed() => {
                open.broken(BadGatewayCause::RequestBodyFailed).source(error).build()
            }
            Poll::Ready(Some(Err(error))) => Failure::from_body_error_with(error.into(), &open.request.scene),
            Poll::Ready(None) if open.was_cut(&this.incoming) => {
                open.broken(BadGatewayCause::IncompleteBody).detail(Detail::H2(0)).build()
            }
            Poll::Ready(None) => {
                this.release();
                return Poll::Ready(None);
            }
            Poll::Pending => {
                return publish_poll(Poll::Pending, || AttemptProgress {
                    upstream: Some(open.request.upstream.clone()),
                    ..snapshot(open.lease.stamp(), open.request.progress.as_deref())
                });
            }
        };
        let failure = this.open.take().map_or(failure.clone(), |open| open.failed(failure));
        Poll::Ready(Some(Err(failure)))
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

/// Classifies errors of a body whose connection was returned already.
fn ended(polled: Poll<Option<Result<Frame<Bytes>, hyper::Error>>>) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
    polled.map_err(Failure::from_body_error)
}
