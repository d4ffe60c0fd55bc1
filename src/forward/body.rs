//! The body of a message that is forwarded.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use super::trailers::{strip_request_trailers, strip_response_trailers};
use crate::body::BoxError;
use crate::cause::{BadGatewayCause, Evidence, Failure, Phase, Replay};

pin_project! {
    /// A request or response body that passes a [`ForwardLayer`](super::ForwardLayer).
    ///
    /// Frames, `size_hint` and `is_end_stream` are those of the inner body. Trailers go through
    /// [`strip_trailers`](super::strip_trailers); a section without fields is omitted. Trailers that are larger than 16 KiB
    /// are discarded in a request. In a response they are an error, a [`Failure`] with
    /// [`TrailerTooLarge`](BadGatewayCause::TrailerTooLarge); all other errors are those of the body.
    ///
    /// Implements `Default` and `From<Bytes>` if the inner body does.
    #[derive(Debug)]
    pub struct ForwardBody<B> {
        #[pin]
        body: B,
        direction: Direction,
    }
}

#[derive(Clone, Copy, Debug, Default)]
enum Direction {
    Request,
    #[default]
    Response,
}

impl<B> ForwardBody<B> {
    pub(super) fn request(body: B) -> Self {
        Self { body, direction: Direction::Request }
    }

    pub(super) fn response(body: B) -> Self {
        Self { body, direction: Direction::Response }
    }
}

impl Direction {
    fn strip(self, trailers: &mut HeaderMap) -> Result<(), Failure> {
        match self {
            Self::Request => strip_request_trailers(trailers),
            Self::Response if strip_response_trailers(trailers) => {}
            Self::Response => {
                let failure = Failure::builder(BadGatewayCause::TrailerTooLarge).phase(Phase::Body);
                return Err(failure.replay(Replay::Never, Evidence::Counted).build());
            }
        }
        Ok(())
    }
}

impl<B> Body for ForwardBody<B>
where
    B: Body,
    B::Error: Into<BoxError>,
{
    type Data = B::Data;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, BoxError>>> {
        let this = self.project();
        let mut polled = this.body.poll_frame(cx).map_err(Into::into);
        if let Poll::Ready(Some(Ok(frame))) = &mut polled {
            if let Some(trailers) = frame.trailers_mut() {
                if let Err(failure) = this.direction.strip(trailers) {
                    return Poll::Ready(Some(Err(failure.into())));
                }
                if trailers.is_empty() {
                    return Poll::Ready(None);
                }
            }
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<B: Default> Default for ForwardBody<B> {
    fn default() -> Self {
        Self::response(B::default())
    }
}

impl<B: From<Bytes>> From<Bytes> for ForwardBody<B> {
    fn from(bytes: Bytes) -> Self {
        Self::response(bytes.into())
    }
}
