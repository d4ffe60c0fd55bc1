//! Classification as the driver's error mode: every error is a failure, and every failure a response.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::UPGRADE;
use http::{Request, Response, Version};
use http_body::Body;

use super::head::Expected;
use super::settings::REQUEST_ID;
use super::settings::{RequestSummary, Settings, disowned, is_plain_head, refused_head, scene_of};
use super::{SharedBody, truncated, was_truncated};
use crate::body::BoxError;
use crate::cause::{BadGatewayCause, ClientCall, ClientCalls, Failure};
use crate::exchange::{BodyMode, ErrorMode, FirstFrame, ResponseMode};
use crate::exchange::{Detach, Expired, Outcome, asks_for_upgrade};

/// Ends all errors.
#[derive(Clone)]
pub(crate) struct Classified {
    pub(crate) settings: Arc<Settings>,
}

impl ErrorMode for Classified {
    type Notes = RequestSummary;
    type BodyError = Failure;

    const FLUSHES: bool = true;
    const SWEEPS_SHORT: bool = true;

    fn note<B>(&self, notes: &mut RequestSummary, request: &Request<B>) {
        // one walk past all names is cheaper than to hash two
        let (mut upgrade, mut request_id) = (false, None);
        for (name, value) in request.headers() {
            if *name == UPGRADE {
                upgrade = true;
            } else if *name == REQUEST_ID {
                request_id.get_or_insert(value);
            }
        }
        let upgrade = upgrade && asks_for_upgrade(request.version(), request.headers());
        notes.update(request, if upgrade { Expected::Upgrade } else { Expected::Response }, request_id);
    }

    #[inline]
    fn forget(notes: &mut RequestSummary) {
        notes.clear();
    }

    #[inline]
    fn count(calls: ClientCalls) -> ClientCalls {
        calls.end_or_claim()
    }

    fn classify_not_ready(&self, notes: &RequestSummary, error: BoxError, calls: ClientCalls) -> Failure {
        let scene = scene_of(&*error);
        self.settings.judge(&notes.request, error, &scene, calls)
    }

    fn complete_failure(&self, failure: Failure) -> Failure {
        self.settings.name_upstream(failure)
    }

    fn on_cancel(&self, notes: &mut RequestSummary) {
        self.settings.on_client_gone(notes);
    }

    fn annotate<R>(&self, notes: &mut RequestSummary, response: &mut Response<R>) {
        self.settings.annotate(response, notes);
    }

    fn local_response(&self, notes: &mut RequestSummary, failure: &Failure, _: Option<Duration>) -> Response<Bytes> {
        self.settings.refuse(notes, failure)
    }

    fn body_error(error: BoxError) -> (Failure, BadGatewayCause, Option<Failure>) {
        let failure = Failure::from_body_error(error);
        (failure.clone(), failure.cause(), Some(failure))
    }

    fn report_body(&self, notes: &mut RequestSummary, failure: Failure) -> Failure {
        self.settings.mark_reported(&mut notes.request, failure)
    }

    fn report_expired(&self, notes: &mut RequestSummary, _: Expired, failure: Failure) -> Failure {
        self.settings.mark_reported(&mut notes.request, failure)
    }
}

impl<E, X> ResponseMode<E, X> for Classified
where
    E: Into<BoxError>,
    X: Body<Data = Bytes> + Unpin + Send + 'static,
    X::Error: Into<BoxError>,
{
    type Error = std::convert::Infallible;
    type Inner = SharedBody<X>;

    fn failure(&self, notes: &RequestSummary, error: E, calls: ClientCalls) -> Result<Failure, Self::Error> {
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
        !self.settings.has_classifier() && is_plain_head(response)
    }

    fn check(
        &self,
        notes: &RequestSummary,
        response: &mut Response<X>,
        calls: ClientCalls,
        known_as: Option<ClientCall>,
    ) -> Option<Failure> {
        if let Some(failure) = refused_head(response, notes) {
            return Some(failure);
        }
        if let Some(failure) = disowned(response, calls) {
            return Some(failure);
        }
        if known_as.is_some() {
            if let Some(failure) = Failure::of(response).cloned() {
                response.extensions_mut().insert(failure.known_as(known_as));
            }
        }
        let failure = self.settings.judge_response(&notes.request, response);
        if failure.is_none() {
            self.settings.attach_declared(response);
        }
        failure
    }

    #[inline]
    fn waits_for_first_frame(&self, notes: &RequestSummary, response: &Response<X>) -> bool {
        self.settings.waits_for_first_frame(response, notes)
    }

    fn first_frame_timeout(&self) -> Duration {
        self.settings.first_frame_timeout()
    }

    #[inline]
    fn poll_first_frame(body: &mut X, version: Version, cx: &mut Context<'_>) -> Poll<FirstFrame> {
        Pin::new(&mut *body).poll_frame(cx).map(|frame| match frame {
            Some(Ok(frame)) => FirstFrame::Frame(frame),
            Some(Err(error)) => FirstFrame::Failed(Failure::from_body_error(error)),
            None if was_truncated(body, version) => FirstFrame::Failed(truncated()),
            None => FirstFrame::End,
        })
    }

    #[inline]
    fn inner(body: X) -> SharedBody<X> {
        SharedBody::new(body)
    }
}

impl<X: Body + Send + 'static> BodyMode<SharedBody<X>> for Classified {
    fn share(body: &mut SharedBody<X>) -> Option<Arc<dyn Detach>> {
        Some(body.share())
    }

    #[inline]
    fn was_cut(body: &SharedBody<X>, version: Version) -> bool {
        version == Version::HTTP_2 && body.show(|body| was_truncated(body, version)).unwrap_or(false)
    }

    fn cut() -> Failure {
        truncated()
    }
}
