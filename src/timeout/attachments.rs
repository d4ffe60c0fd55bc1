//! Optional functions of the timeout layer: deadlines, learning, and the check of a pool's keep-alive.

use std::sync::Arc;

use http::Request;

use super::keepalive_check::KeepAliveCheck;
use super::route_learner::{Observation, RouteLearner};
use crate::deadline::{Deadline, DeadlinePropagation};
use crate::exchange::{CallContext, CallKind, HeadSeen};

/// All are off by default and behind one pointer, so that a call that needs none checks once.
#[derive(Clone, Debug, Default)]
pub(super) struct TimeoutExtensions {
    pub(super) deadlines: Option<DeadlinePropagation>,
    pub(super) routes: Option<RouteLearner>,
    pub(super) keepalive_check: Option<Arc<KeepAliveCheck>>,
}

impl TimeoutExtensions {
    /// Reads the client's deadline, and writes the earlier of that and `ends`.
    #[cold]
    #[inline(never)]
    pub(super) fn begin<B>(
        &self,
        call: &mut CallContext,
        ends: Option<Deadline>,
        request: &mut Request<B>,
    ) -> Option<Observation> {
        if let Some(deadlines) = &self.deadlines {
            let read = deadlines.extract(request.headers(), request.extensions(), call.now);
            // our own response has to arrive before the client gives up
            let read = read.map(|deadline| deadline.minus_response_margin(call.now));
            call.deadline = Deadline::min(call.deadline, read);
            deadlines.inject(request, Deadline::min(call.deadline, ends), call.now);
        }
        self.routes.as_ref().filter(|_| call.kind == CallKind::Bounded)?.observe(request)
    }

    /// The same for an attempt after the first: the client's deadline has been read, and must not shrink again.
    #[cold]
    pub(super) fn begin_later<B>(
        &self,
        call: &CallContext,
        ends: Option<Deadline>,
        request: &mut Request<B>,
    ) -> Option<Observation> {
        if let Some(deadlines) = &self.deadlines {
            deadlines.inject(request, Deadline::min(call.deadline, ends), call.now);
        }
        self.routes.as_ref().filter(|_| call.kind == CallKind::Bounded)?.observe(request)
    }

    #[cold]
    #[inline(never)]
    pub(super) fn on_response(&self, lesson: Option<Observation>, call: &CallContext, head: &HeadSeen<'_>) {
        let taught = self.routes.as_ref().zip(lesson).filter(|_| head.outcome.is_success());
        if let Some((learner, lesson)) = taught {
            learner.record_response(lesson, call.now, head.uploaded, head.outcome.now());
        }
        if let Some(pool) = &self.keepalive_check {
            pool.observe(head);
        }
    }
}
