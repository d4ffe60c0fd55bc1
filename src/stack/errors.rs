//! The error mode of a stack: classification and the error page.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{Extensions, Request, Response, Version};
use http_body::Body;

use super::request_meta::{Notes, note};
use super::summary::summarize;
use crate::cause::{BadGatewayCause, ClientCall, ClientCalls, Failure, is_local};
use crate::classify::{Classified, SharedBody};
use crate::error_page::ErrorPage;
use crate::exchange::{BodyMode, ErrorMode, FirstFrame, ResponseMode};
use crate::exchange::{Detach, Expired, Outcome};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A stack's error mode.
#[derive(Clone)]
pub(super) struct Errors {
    pub(super) classify: Classified,
    pub(super) page: Option<ErrorPage>,
    /// The name of the stack, if its responses carry a summary.
    pub(super) summaries: Option<Arc<str>>,
}

impl ErrorMode for Errors {
    type Notes = Notes;
    type BodyError = Failure;

    const FLUSHES: bool = Classified::FLUSHES;
    const SWEEPS_SHORT: bool = Classified::SWEEPS_SHORT;

    #[inline]
    fn note<B>(&self, notes: &mut Notes, request: &Request<B>) {
        note(notes, request, self.page.as_ref());
    }

    #[inline]
    fn forget(notes: &mut Notes) {
        notes.summary.clear();
        if notes.preferences.is_some() {
            notes.preferences = None;
        }
    }

    #[inline]
    fn count(calls: ClientCalls) -> ClientCalls {
        Classified::count(calls)
    }

    fn classify_not_ready(&self, notes: &Notes, error: BoxError, calls: ClientCalls) -> Failure {
        self.classify.classify_not_ready(&notes.summary, error, calls)
    }

    fn complete_failure(&self, failure: Failure) -> Failure {
        self.classify.complete_failure(failure)
    }

    fn on_cancel(&self, notes: &mut Notes) {
        self.classify.on_cancel(&mut notes.summary);
    }

    #[inline]
    fn finish_head(&self, extensions: &mut Extensions) {
        if let Some(upstream) = &self.summaries {
            summarize(upstream, extensions);
        }
    }

    fn annotate<R>(&self, notes: &mut Notes, response: &mut Response<R>) {
        self.classify.annotate(&mut notes.summary, response);
    }

    fn render_page<R>(&self, notes: &mut Notes, response: &mut Response<R>) -> Option<Bytes> {
        let page = self.page.as_ref()?;
        let preferences = notes.preferences.take()?;
        let failure = if is_local(response.extensions()) { Failure::of(response)?.clone() } else { return None };
        Some(page.write(&preferences, &failure, response, SystemTime::now()))
    }

    fn local_response(&self, notes: &mut Notes, failure: &Failure, after: Option<Duration>) -> Response<Bytes> {
        self.classify.local_response(&mut notes.summary, failure, after)
    }

    fn body_error(error: BoxError) -> (Failure, BadGatewayCause, Option<Failure>) {
        Classified::body_error(error)
    }

    fn report_body(&self, notes: &mut Notes, failure: Failure) -> Failure {
        self.classify.report_body(&mut notes.summary, failure)
    }

    fn report_expired(&self, notes: &mut Notes, expired: Expired, failure: Failure) -> Failure {
        self.classify.report_expired(&mut notes.summary, expired, failure)
    }
}

impl<E, X> ResponseMode<E, X> for Errors
where
    E: Into<BoxError>,
    X: Body<Data = Bytes> + Unpin + Send + 'static,
    X::Error: Into<BoxError>,
{
    type Error = std::convert::Infallible;
    type Inner = SharedBody<X>;

    fn failure(&self, notes: &Notes, error: E, calls: ClientCalls) -> Result<Failure, Self::Error> {
        Ok(self.classify_not_ready(notes, error.into(), calls))
    }

    fn error_outcome(error: &Self::Error) -> Outcome {
        match *error {}
    }

    fn not_ready(error: E) -> Result<BoxError, Self::Error> {
        Ok(error.into())
    }

    #[inline]
    fn is_ordinary(&self, response: &Response<X>) -> bool {
        <Classified as ResponseMode<E, X>>::is_ordinary(&self.classify, response)
    }

    fn check(
        &self,
        notes: &Notes,
        response: &mut Response<X>,
        calls: ClientCalls,
        known_as: Option<ClientCall>,
    ) -> Option<Failure> {
        <Classified as ResponseMode<E, X>>::check(&self.classify, &notes.summary, response, calls, known_as)
    }

    #[inline]
    fn waits_for_first_frame(&self, notes: &Notes, response: &Response<X>) -> bool {
        <Classified as ResponseMode<E, X>>::waits_for_first_frame(&self.classify, &notes.summary, response)
    }

    fn first_frame_timeout(&self) -> Duration {
        <Classified as ResponseMode<E, X>>::first_frame_timeout(&self.classify)
    }

    #[inline]
    fn poll_first_frame(body: &mut X, version: Version, cx: &mut Context<'_>) -> Poll<FirstFrame> {
        <Classified as ResponseMode<E, X>>::poll_first_frame(body, version, cx)
    }

    #[inline]
    fn inner(body: X) -> SharedBody<X> {
        <Classified as ResponseMode<E, X>>::inner(body)
    }
}

impl<X: Body + Send + 'static> BodyMode<SharedBody<X>> for Errors {
    fn share(body: &mut SharedBody<X>) -> Option<Arc<dyn Detach>> {
        <Classified as BodyMode<SharedBody<X>>>::share(body)
    }

    #[inline]
    fn was_cut(body: &SharedBody<X>, version: Version) -> bool {
        <Classified as BodyMode<SharedBody<X>>>::was_cut(body, version)
    }

    fn cut() -> Failure {
        <Classified as BodyMode<SharedBody<X>>>::cut()
    }
}
