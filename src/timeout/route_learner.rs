//! Maps calls to routes and decides whether their latency is a sample.

use std::sync::Arc;
use std::time::Duration;

use http::{Extensions, HeaderMap, Method, Request, Uri};
use tokio::time::Instant;

use super::{AdaptiveTimeout, LearningMode, RouteTimeouts};
use crate::body::announces_body;
use crate::opaque::Opaque;

/// The request data from which its route is derived.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct RequestHead<'a> {
    /// The method.
    pub method: &'a Method,
    /// The target.
    pub uri: &'a Uri,
    /// The fields.
    pub headers: &'a HeaderMap,
    /// The request's extensions, such as axum's `MatchedPath`.
    pub extensions: &'a Extensions,
}

type Route = dyn for<'a> Fn(RequestHead<'a>) -> Option<&'a str> + Send + Sync;

/// Learns and applies timeouts per route.
#[derive(Clone, Debug)]
pub(super) struct RouteLearner {
    limits: Arc<RouteTimeouts>,
    route: Opaque<Arc<Route>>,
}

/// The route of a call that has an adaptive timeout.
#[derive(Clone, Copy, Debug)]
pub(super) struct Observation {
    route: u16,
    /// The request has a body: unless it is tracked, the start of the wait for the response is unknown.
    uploads: bool,
}

impl RouteLearner {
    pub(super) fn new(
        limits: Arc<RouteTimeouts>,
        route: impl for<'a> Fn(RequestHead<'a>) -> Option<&'a str> + Send + Sync + 'static,
    ) -> Self {
        Self { limits, route: Opaque(Arc::new(route)) }
    }

    pub(super) fn observe<B>(&self, request: &Request<B>) -> Option<Observation> {
        let (uri, headers) = (request.uri(), request.headers());
        let head = RequestHead { method: request.method(), uri, headers, extensions: request.extensions() };
        let route = self.limits.index((self.route)(head)?)?;
        Some(Observation { route, uploads: announces_body(request) })
    }

    fn limit(&self, lesson: Observation) -> Option<&AdaptiveTimeout> {
        self.limits.at(lesson.route)
    }

    /// The timeout of a call, if it hangs: the learned one if enforced, at most the configured one.
    pub(super) fn response_head_limit(
        &self,
        lesson: Observation,
        configured: Option<Duration>,
        now: Instant,
    ) -> Option<Duration> {
        if self.limits.mode() == LearningMode::Report {
            return configured;
        }
        let learned = self.limit(lesson).map(|limit| limit.limit(now));
        match (learned, configured) {
            (Some(learned), Some(configured)) => Some(learned.min(configured)),
            (learned, configured) => learned.or(configured),
        }
    }

    /// Records a response head; `uploaded` is the time when the request body ended, if that was tracked.
    pub(super) fn record_response(&self, lesson: Observation, begun: Instant, uploaded: Option<Instant>, now: Instant) {
        if lesson.uploads && uploaded.is_none() {
            return;
        }
        if let Some(limit) = self.limit(lesson) {
            limit.record(now, now.saturating_duration_since(uploaded.unwrap_or(begun)));
        }
    }

    /// The timeout of a call that has waited since `begun` for its response head, but is not cut yet.
    pub(super) fn more_time(&self, lesson: Observation, begun: Instant, now: Instant) -> Option<Duration> {
        if self.limits.mode() == LearningMode::Report {
            return None;
        }
        self.limit(lesson)?.more_time(begun, now)
    }

    /// Records a call that timed out at this limit.
    pub(super) fn timed_out(&self, lesson: Observation, limit: Duration, now: Instant) {
        if let Some(learned) = self.limit(lesson) {
            learned.timed_out(now, limit);
        }
    }
}
