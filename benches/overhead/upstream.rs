//! The trivial upstream below every stack, its response body, and the request to it.

use std::cell::Cell;
use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, Uri};
use http_body::{Frame, SizeHint};
use http_body_util::Full;
use tower_service::Service;

use crate::job::Ask;

/// The request body.
pub(crate) type Body = Full<Bytes>;
pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The current behaviour of the upstream; everything is measured on one thread.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Now {
    Answers,
    Pends,
    /// The first frame of the response body is ready at the third poll. The stack polls twice in a row, so a frame that is only
    /// one poll late would not arm a timer.
    IsLate,
    Fails,
    /// Every other call fails, beginning with the first.
    Alternates,
}

/// A response body of 12 bytes in one frame.
#[derive(Default)]
pub(crate) struct Page {
    bytes: Bytes,
    late: u8,
}

impl http_body::Body for Page {
    type Data = Bytes;
    type Error = Infallible;

    #[inline]
    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.late > 0 {
            self.late -= 1;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let bytes = std::mem::take(&mut self.bytes);
        Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))))
    }

    #[inline]
    fn is_end_stream(&self) -> bool {
        self.bytes.is_empty()
    }

    #[inline]
    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.bytes.len() as u64)
    }
}

#[inline]
fn page(late: u8) -> Response<Page> {
    Response::new(Page { bytes: Bytes::from_static(b"twelve bytes"), late })
}

thread_local! {
    static NOW: Cell<Now> = const { Cell::new(Now::Answers) };
    static FAILED: Cell<bool> = const { Cell::new(false) };
}

/// Sets the behaviour of the upstream.
pub(crate) fn now(does: Now) {
    NOW.set(does);
}

/// Makes a stack's error type for an upstream that is down.
pub(crate) trait Down: Sized {
    fn down() -> Result<Response<Page>, Self>;
}

/// The error of an upstream that is down.
#[derive(Clone, Debug)]
pub(crate) struct IsDown;

impl fmt::Display for IsDown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("down")
    }
}

impl std::error::Error for IsDown {}

impl Down for IsDown {
    fn down() -> Result<Response<Page>, Self> {
        Err(Self)
    }
}

impl Down for BoxError {
    fn down() -> Result<Response<Page>, Self> {
        Err(Box::new(IsDown))
    }
}

/// A service without errors reports it by a status.
impl Down for Infallible {
    fn down() -> Result<Response<Page>, Self> {
        let mut answer = page(0);
        *answer.status_mut() = http::StatusCode::SERVICE_UNAVAILABLE;
        Ok(answer)
    }
}

/// An upstream that responds immediately, with the error type that a stack needs.
pub(crate) struct Upstream<E>(PhantomData<fn() -> E>);

impl<E> Upstream<E> {
    pub(crate) const fn new() -> Self {
        Self(PhantomData)
    }
}

impl<E> Clone for Upstream<E> {
    fn clone(&self) -> Self {
        Self::new()
    }
}

/// The future of [`Upstream`].
pub(crate) struct Answer<E>(Now, PhantomData<fn() -> E>);

impl<E: Down> Future for Answer<E> {
    type Output = Result<Response<Page>, E>;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.0 {
            Now::Answers => Poll::Ready(Ok(page(0))),
            Now::IsLate => Poll::Ready(Ok(page(2))),
            Now::Pends => {
                self.0 = Now::Answers;
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Now::Alternates if FAILED.replace(!FAILED.get()) => Poll::Ready(Ok(page(0))),
            Now::Fails | Now::Alternates => Poll::Ready(E::down()),
        }
    }
}

impl<E: Down, B> Service<Request<B>> for Upstream<E> {
    type Response = Response<Page>;
    type Error = E;
    type Future = Answer<E>;

    #[inline]
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), E>> {
        Poll::Ready(Ok(()))
    }

    #[inline]
    fn call(&mut self, _: Request<B>) -> Self::Future {
        Answer(NOW.get(), PhantomData)
    }
}

/// The parts from which the request of each call is made; the cost of that is subtracted.
pub(crate) struct Template {
    headers: HeaderMap,
    uri: Uri,
    ask: Ask,
}

impl Template {
    pub(crate) fn new(ask: Ask) -> Self {
        let mut headers = HeaderMap::with_capacity(8);
        for (name, value) in [
            ("host", "svc.internal"),
            ("accept", "*/*"),
            ("user-agent", "bench/1"),
            ("accept-encoding", "gzip"),
            ("x-request-id", "0123456789abcdef"),
            ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
            ("cache-control", "no-cache"),
            ("cookie", "a=b"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        Self { headers, uri: Uri::from_static("http://svc.internal/api/v1/items?id=1"), ask }
    }

    // not inlined: every row pays the same
    #[inline(never)]
    pub(crate) fn request(&self) -> Request<Body> {
        let mut request = Request::new(Body::default());
        request.headers_mut().clone_from(&self.headers);
        request.uri_mut().clone_from(&self.uri);
        if self.ask == Ask::Post {
            *request.method_mut() = Method::POST;
            *request.body_mut() = Body::from("sixteen bytes ok");
        }
        request
    }
}
