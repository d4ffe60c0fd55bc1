//! One request on a connection of its own, and the beginning of its response.

use std::convert::Infallible;
use std::future::Future;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::http1;
#[cfg(feature = "http2")]
use hyper::client::conn::http2;
#[cfg(feature = "http2")]
use hyper_util::rt::TokioExecutor;

use super::dial::Io;
use super::progress::Progress;
use crate::balance::agent_words::MAX_BODY;
use crate::cause::{Failure, Phase};
use crate::classify::{AttemptContext, ConnectionStats};

/// The largest response head, in bytes.
const MAX_HEAD: u32 = 64 << 10;

/// A response, with the first 4 KiB of its body.
#[derive(Debug)]
pub(super) struct CheckResponse {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Vec<u8>,
    #[cfg(feature = "http2")]
    pub(super) trailers: Option<HeaderMap>,
}

/// Sends a request by HTTP/1.1.
pub(super) async fn send(io: Io, request: Request<Content>, progress: &Progress) -> Result<CheckResponse, Failure> {
    let stats = io.stamp().clone();
    progress.enter(Phase::Wait);
    let mut builder = http1::Builder::new();
    builder.max_buf_size(MAX_HEAD as usize);
    let (mut sender, connection) = builder.handshake(io).await.map_err(|error| failed(error, &stats))?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(|error| failed(error, &stats))?;
        read(response, progress, &stats).await
    };
    run_concurrently(exchange, connection).await
}

/// Sends a request by HTTP/2.
#[cfg(feature = "http2")]
pub(super) async fn send_http2(
    io: Io,
    request: Request<Content>,
    progress: &Progress,
) -> Result<CheckResponse, Failure> {
    let stats = io.stamp().clone();
    progress.enter(Phase::Wait);
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder.max_header_list_size(MAX_HEAD);
    let (mut sender, connection) = builder.handshake(io).await.map_err(|error| failed(error, &stats))?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(|error| failed(error, &stats))?;
        read(response, progress, &stats).await
    };
    run_concurrently(exchange, connection).await
}

async fn read(
    response: Response<Incoming>,
    progress: &Progress,
    stats: &ConnectionStats,
) -> Result<CheckResponse, Failure> {
    progress.enter(Phase::Body);
    let (head, mut incoming) = response.into_parts();
    let mut body = Vec::new();
    #[cfg(feature = "http2")]
    let mut trailers = None;
    while body.len() < MAX_BODY {
        let frame = std::future::poll_fn(|cx| Pin::new(&mut incoming).poll_frame(cx)).await;
        let Some(frame) = frame else { break };
        let frame = frame.map_err(|error| Failure::from_body_error_with(error.into(), &context(stats)))?;
        if let Some(data) = frame.data_ref() {
            body.extend_from_slice(&data[..data.len().min(MAX_BODY - body.len())]);
        }
        #[cfg(feature = "http2")]
        if let Ok(found) = frame.into_trailers() {
            trailers = Some(found);
        }
    }
    Ok(CheckResponse {
        status: head.status,
        headers: head.headers,
        body,
        #[cfg(feature = "http2")]
        trailers,
    })
}

/// Drives the connection until the response has been read.
async fn run_concurrently<T>(exchange: impl Future<Output = T>, connection: impl Future) -> T {
    let (mut exchange, mut connection) = (pin!(exchange), pin!(connection));
    let mut is_open = true;
    std::future::poll_fn(|cx| {
        if let Poll::Ready(response) = exchange.as_mut().poll(cx) {
            return Poll::Ready(response);
        }
        if is_open && connection.as_mut().poll(cx).is_ready() {
            is_open = false;
            // the response may wait for the end of the connection
            return exchange.as_mut().poll(cx);
        }
        // the connection may have read the response
        exchange.as_mut().poll(cx)
    })
    .await
}

fn context(stats: &ConnectionStats) -> AttemptContext {
    AttemptContext::default().wire(stats.wire()).peer(stats.peer())
}

fn failed(error: hyper::Error, stats: &ConnectionStats) -> Failure {
    Failure::from_error_with(error.into(), &context(stats))
}

/// The content of a request.
#[derive(Debug, Default)]
pub(super) struct Content(Option<Bytes>);

impl Content {
    #[cfg(feature = "http2")]
    pub(super) fn new(bytes: Vec<u8>) -> Self {
        Self(Some(bytes.into()))
    }
}

impl Body for Content {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.take().map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.as_ref().map_or(0, |bytes| bytes.len() as u64))
    }
}
