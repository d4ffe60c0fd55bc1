//! Captures the connection that hyper-util's client uses for a request.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use http::{Extensions, Request};
use hyper_util::client::legacy::connect::{CaptureConnection, capture_connection};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use super::progress::{publish_poll, snapshot};
use crate::cause::ClientCall;
use crate::classify::ConnectionStats;
use crate::exchange::{self, AttemptProgress};

/// Lets a timeout around hyper-util's client report what its connection was doing.
///
/// For [`TimeoutLayer`](crate::timeout::TimeoutLayer) around `hyper_util::client::legacy::Client` over this crate's
/// [`Connector`](super::Connector): it then distinguishes sending, waiting, and a slow head, by the connection's
/// counters. Resolving, connecting and TLS are distinguished without it. It costs each request an entry in its extensions
/// (about 800 instructions and 3 allocations), so it is off by default; [`ReverseProxy`](super::ReverseProxy)
/// does not need it.
///
/// ```
/// use hyper_util::{client::legacy::Client, rt::TokioExecutor};
/// use tower::ServiceBuilder;
/// use tower_upstream::client::{CaptureLayer, Connector, TcpConnector};
/// use tower_upstream::timeout::{TimeoutLayer, Timeouts};
///
/// let client = Client::builder(TokioExecutor::new()).build(Connector::new(TcpConnector::new()));
/// let client = ServiceBuilder::new()
///     .layer(TimeoutLayer::new(Timeouts::new()).without_upload_tracking())
///     .layer(CaptureLayer::new())
///     .service(client);
/// # fn is_service(_: impl tower::Service<http::Request<axum::body::Body>>) {}
/// # is_service(client);
/// ```
#[derive(Clone, Copy, Debug, Default)]
#[must_use]
pub struct CaptureLayer(());

impl CaptureLayer {
    /// The layer; it has no settings.
    pub fn new() -> Self {
        Self(())
    }
}

impl<S> Layer<S> for CaptureLayer {
    type Service = Capture<S>;

    fn layer(&self, inner: S) -> Capture<S> {
        Capture { inner }
    }
}

/// The service of [`CaptureLayer`].
#[derive(Clone, Debug)]
pub struct Capture<S> {
    inner: S,
}

impl<S, B> Service<Request<B>> for Capture<S>
where
    S: Service<Request<B>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = CaptureFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let captured = capture_connection(&mut request);
        CaptureFuture { number: ClientCall::next(), call: self.inner.call(request), captured }
    }
}

pin_project! {
    /// The future of [`Capture`].
    #[derive(Debug)]
    pub struct CaptureFuture<F> {
        #[pin]
        call: F,
        captured: CaptureConnection,
        number: ClientCall,
    }
}

impl<F: Future> Future for CaptureFuture<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let polled = publish_poll(this.call.poll(cx), || progress(this.captured).unwrap_or_default());
        if polled.is_pending() {
            exchange::set_call(*this.number);
        }
        polled
    }
}

/// The progress of the connection, if there is one and it has [`ConnectionStats`].
fn progress(captured: &CaptureConnection) -> Option<AttemptProgress> {
    let mut extras = Extensions::new();
    captured.connection_metadata().as_ref()?.get_extras(&mut extras);
    extras.get::<ConnectionStats>().map(|stamp| snapshot(stamp, None))
}
