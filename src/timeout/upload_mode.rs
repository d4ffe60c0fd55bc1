//! Whether a layer tracks the request body's upload: a type, as the inner service gets another body then.

#![allow(private_interfaces)] // nothing outside implements or calls the sealed traits

use std::marker::PhantomData;
use std::sync::Arc;

use http::Request;
use http_body::Body;
use tokio::time::Instant;

use super::policy::EnforcedTimeouts;
use crate::body::{TrackedUpload, UploadCounters};
use crate::exchange::{ActiveCall, CallContext, PassErrors, RequestMode, SpareCalls, Spec};
use crate::free_list::free_list;

/// How a request body is handed to the inner service: [`TrackUpload`] or [`PassThrough`].
#[diagnostic::on_unimplemented(
    message = "this layer tracks the upload of request bodies, and `{B}` is not a body",
    label = "`{B}` does not implement `http_body::Body`",
    note = "`without_upload_tracking()` makes a layer hand on whatever a request has as its body"
)]
pub trait UploadMode<B>: sealed::Mode + sealed::Wrap<B, Wrapped = Self::Body> {
    /// The request body that the inner service gets.
    type Body;
}

/// The inner service gets [`TrackedUpload<B>`](TrackedUpload), which tells a slow client from a slow upstream.
#[derive(Clone, Copy, Debug)]
pub enum TrackUpload {}

/// The inner service gets the request body as it is.
#[derive(Clone, Copy, Debug)]
pub enum PassThrough {}

#[diagnostic::do_not_recommend]
impl<B: Body> UploadMode<B> for TrackUpload {
    type Body = TrackedUpload<B>;
}

impl<B> UploadMode<B> for PassThrough {
    type Body = B;
}

#[diagnostic::do_not_recommend]
impl<B: Body> sealed::Wrap<B> for TrackUpload {
    type Wrapped = TrackedUpload<B>;

    #[inline]
    fn wrap(body: B, now: Instant, progress: &mut Option<Arc<UploadCounters>>) -> TrackedUpload<B> {
        let body = TrackedUpload::new(body, now);
        *progress = body.counters();
        body
    }
}

impl<B> sealed::Wrap<B> for PassThrough {
    type Wrapped = B;

    #[inline]
    fn wrap(body: B, _: Instant, _: &mut Option<Arc<UploadCounters>>) -> B {
        body
    }
}

/// Timeouts alone.
#[derive(Debug)]
#[allow(unnameable_types)]
pub(crate) struct TimeoutSpec<W>(PhantomData<fn() -> W>);

impl<W: sealed::Mode> Spec for TimeoutSpec<W> {
    type PerCall = ();
    type PerAttempt = ();
    type Timeouts = EnforcedTimeouts;
    type Requests = Uploads<W>;
    type Errors = PassErrors;

    const WAITS: bool = false;
    const SPANS: bool = false;

    #[inline]
    fn spare_calls() -> &'static SpareCalls<Self> {
        W::spare_calls()
    }
}

free_list!(TRACKED: std::pin::Pin<Box<ActiveCall<TimeoutSpec<TrackUpload>>>>);
free_list!(PASSED: std::pin::Pin<Box<ActiveCall<TimeoutSpec<PassThrough>>>>);

impl sealed::Mode for TrackUpload {
    #[inline]
    fn spare_calls() -> &'static SpareCalls<TimeoutSpec<Self>> {
        &TRACKED
    }
}

impl sealed::Mode for PassThrough {
    #[inline]
    fn spare_calls() -> &'static SpareCalls<TimeoutSpec<Self>> {
        &PASSED
    }
}

/// Requests are sent once, with their bodies in this mode.
#[derive(Debug)]
pub(crate) struct Uploads<W>(pub(super) PhantomData<fn() -> W>);

impl<W> Clone for Uploads<W> {
    fn clone(&self) -> Self {
        Self(PhantomData)
    }
}

impl<W: UploadMode<B>, B> RequestMode<B> for Uploads<W> {
    type Body = W::Body;
    type Started = ();
    type RetryState = ();
    type Replay = std::convert::Infallible;

    #[inline]
    fn begin(&self, _: &Request<B>, _: &CallContext, _: bool) {}

    #[inline]
    fn wrap(&self, (): (), body: B, now: Instant, progress: &mut Option<Arc<UploadCounters>>) -> ((), W::Body) {
        ((), W::wrap(body, now, progress))
    }
}

pub(super) mod sealed {
    #![allow(unnameable_types, private_interfaces)] // nothing outside implements or calls these

    use super::{Arc, Instant, SpareCalls, TimeoutSpec, UploadCounters};

    pub trait Mode: Sized + Send + Sync + 'static {
        fn spare_calls() -> &'static SpareCalls<TimeoutSpec<Self>>;
    }

    pub trait Wrap<B> {
        type Wrapped;

        fn wrap(body: B, now: Instant, progress: &mut Option<Arc<UploadCounters>>) -> Self::Wrapped;
    }
}
