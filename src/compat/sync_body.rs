//! Makes a body `Sync` that is only `Send`.

use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use http_body::{Body, Frame, SizeHint};

/// A `Sync` wrapper around a body that is only `Send`.
///
/// `reqwest::Body::wrap` requires `Sync`; `axum::body::Body` and `tonic::body::Body` are not, nor is a
/// [`ReplayBody`](crate::body::ReplayBody) around them. Frames are read through `&mut` without a lock; an uncontended lock is taken
/// for `is_end_stream` and `size_hint` only.
///
/// ```
/// # use reqwest13 as reqwest;
/// use axum::body::Body;
/// use tower_upstream::compat::SyncBody;
///
/// let body = reqwest::Body::wrap(SyncBody::new(Body::from("order")));
/// # let _ = body;
/// ```
#[derive(Debug, Default)]
pub struct SyncBody<B> {
    body: Mutex<B>,
}

impl<B> SyncBody<B> {
    /// Wraps a body.
    pub fn new(body: B) -> Self {
        Self { body: Mutex::new(body) }
    }

    /// The inner body.
    pub fn into_inner(self) -> B {
        self.body.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    fn look(&self) -> MutexGuard<'_, B> {
        self.body.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<B: Body + Unpin> Body for SyncBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        Pin::new(self.body.get_mut().unwrap_or_else(PoisonError::into_inner)).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.look().is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.look().size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use bytes::Bytes;
    use http_body_util::{BodyExt, Full};

    use super::*;

    #[tokio::test]
    async fn it_is_the_body_that_it_holds() {
        fn is_sync<T: Sync>(_: &T) {}
        is_sync(&SyncBody::new(Cell::new(())));
        let body = SyncBody::new(Full::<Bytes>::from("order"));
        assert_eq!((body.is_end_stream(), body.size_hint().exact()), (false, Some(5)));
        assert_eq!(body.collect().await.unwrap().to_bytes(), "order");
        assert!(SyncBody::new(Full::<Bytes>::default()).is_end_stream());
    }
}
