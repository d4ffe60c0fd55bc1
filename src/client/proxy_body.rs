//! The upstream's response body, which returns its connection to the pool.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::Instant;

use super::exchange::Exchange;
use super::pool::{Checkout, SendBody};
use super::progress::{publish_poll, snapshot};
use crate::body::UploadCounters;
use crate::cause::{BadGatewayCause, Detail, Evidence, Failure, FailureBuilder, Phase, Replay};
use crate::classify::{AttemptContext, ConnectionStats};
use crate::exchange::{AttemptProgress, Detachable};
use crate::forward::strip_response_trailers;

/// The upstream's body.
///
/// Its connection is returned to the pool with the last frame. The connection is closed if the body fails or is dropped
/// earlier, or if the response came before the upload was complete.
///
/// A body that the client does not read keeps its connection: limit this by a stack or layer around, with
/// [`client_idle`](crate::timeout::Timeouts::client_idle).
pub struct ProxyBody<B> {
    transfer: Detachable<Transfer<B>>,
}

impl<B: SendBody> ProxyBody<B> {
    pub(super) fn new<C>(incoming: Incoming, lease: Checkout<B>, exchange: &Exchange<C, B>) -> Self {
        Self { transfer: Detachable::new(Transfer::new(incoming, lease, exchange)) }
    }
}

impl<B: SendBody> Body for ProxyBody<B> {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        Pin::new(&mut self.transfer).poll_frame(cx)
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

/// The state of a body in progress.
struct OpenResponse<B> {
    lease: Checkout<B>,
    upstream: Arc<str>,
    begun: Instant,
    scene: AttemptContext,
    progress: Option<Arc<UploadCounters>>,
    upload: UploadPhase,
    upload_idle: Duration,
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
    fn new<C>(incoming: Incoming, lease: Checkout<B>, exchange: &Exchange<C, B>) -> Self {
        let upload_idle = exchange.upstream.upload_idle;
        let upload = UploadPhase::of(exchange.progress.as_deref(), lease.stamp());
        if incoming.is_end_stream() {
            lease.stamp().record_response();
            release(lease, upload, exchange.progress.as_ref(), upload_idle);
            return Self { incoming, open: None };
        }
        let scene = exchange.scene(lease.stamp());
        lease.stamp().record_response();
        let open = OpenResponse {
            lease,
            upstream: exchange.upstream.name.clone(),
            begun: exchange.begun,
            scene,
            progress: exchange.progress.clone(),
            upload,
            upload_idle,
        };
        Self { incoming, open: Some(Box::new(open)) }
    }

    /// The body is complete: releases the connection.
    fn release(&mut self) {
        if let Some(open) = self.open.take() {
            release(open.lease, open.upload, open.progress.as_ref(), open.upload_idle);
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
        self.scene.wire.is_some_and(|wire| wire.multiplexed) && !incoming.is_end_stream()
    }

    /// Whether the client's upload failed, upon which our codec closes the connection or the stream.
    fn upload_failed(&self) -> bool {
        self.progress.as_ref().is_some_and(|progress| progress.failed())
    }

    /// A failure for which there is no error value.
    fn broken(&self, cause: BadGatewayCause) -> FailureBuilder {
        let failure = Failure::builder(cause).phase(Phase::Body).replay(Replay::Never, Evidence::Counted);
        failure.peer(self.scene.peer).connection(self.scene.connection())
    }

    /// Ends the connection, or the stream on it.
    fn failed(mut self, failure: Failure) -> Failure {
        let failure = self.lease.failed(failure);
        failure.into_builder().client_upstream(self.upstream).elapsed(self.begun.elapsed()).build()
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
            Poll::Ready(Some(Err(error))) => Failure::from_body_error_with(error.into(), &open.scene),
            Poll::Ready(None) if open.was_cut(&this.incoming) => {
                open.broken(BadGatewayCause::IncompleteBody).detail(Detail::H2(0)).build()
            }
            Poll::Ready(None) => {
                this.release();
                return Poll::Ready(None);
            }
            Poll::Pending => {
                return publish_poll(Poll::Pending, || AttemptProgress {
                    upstream: Some(open.upstream.clone()),
                    ..snapshot(open.lease.stamp(), open.progress.as_deref())
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

impl<B> fmt::Debug for ProxyBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProxyBody").finish_non_exhaustive()
    }
}

/// Classifies errors of a body whose connection was returned already.
fn ended(polled: Poll<Option<Result<Frame<Bytes>, hyper::Error>>>) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
    polled.map_err(Failure::from_body_error)
}
