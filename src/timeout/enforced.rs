//! One layer's limits, as its engine asks for them.

use std::sync::Arc;

use http::Request;
use tokio::time::Instant;

use super::Timeouts;
use super::watch::{Stall, named, phase};
use crate::cause::BadGatewayCause;
use crate::deadline::{Deadline, Deadlines};
use crate::engine::{BodyLimits, Call, Finding, Kind, Limits, Sight};

/// What a [`TimeoutLayer`](super::TimeoutLayer) was told.
#[derive(Clone, Debug)]
pub struct Enforced {
    pub(super) timeouts: Timeouts,
    pub(super) deadlines: Option<Arc<Deadlines>>,
}

/// What one call remembers; most of it is made at the first look.
#[derive(Debug)]
pub struct Watch {
    stall: Option<Box<Stall>>,
}

impl Enforced {
    /// The caller's deadline or the end of the total, whichever comes first.
    fn deadline(&self, call: &Call) -> Option<Instant> {
        let total = self.timeouts.total.map(|total| call.now + total);
        earlier(total, call.deadline.map(|deadline| deadline.instant()))
    }

    fn attempt_end(&self, call: &Call) -> Option<Instant> {
        self.timeouts.attempt.map(|attempt| call.now + attempt)
    }
}

fn earlier(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

impl Limits for Enforced {
    type Watch = Watch;

    #[inline]
    fn begin<B>(&self, call: &mut Call, request: &mut Request<B>) -> Watch {
        if self.timeouts.unbounded {
            call.kind = Kind::Unbounded;
        }
        call.deadline = Deadline::of(request.extensions());
        if let Some(deadlines) = &self.deadlines {
            call.deadline =
                Deadline::earlier(call.deadline, deadlines.read(request.headers(), request.extensions(), call.now));
        }
        if let Some(deadlines) = &self.deadlines {
            deadlines.write(request, call);
        }
        Watch { stall: None }
    }

    fn first(&self, _: &Watch, call: &Call) -> Option<Instant> {
        let head = self.timeouts.head.map(|limit| Stall::first(call.now, limit));
        earlier(earlier(head, self.attempt_end(call)), self.deadline(call))
    }

    fn look(&self, watch: &mut Watch, call: &Call, now: Instant, sight: &Sight) -> Finding {
        let (deadline, attempt) = (self.deadline(call), self.attempt_end(call));
        if deadline.is_some_and(|deadline| deadline <= now) {
            return Finding::Passed(BadGatewayCause::DeadlineExceeded, phase(sight));
        }
        if attempt.is_some_and(|attempt| attempt <= now) {
            let read = watch.stall.as_ref().map_or(0, |stall| stall.read());
            let (cause, phase) = named(sight, read);
            return Finding::Passed(cause, phase);
        }
        let next = earlier(attempt, deadline);
        let Some(limit) = self.timeouts.head else { return Finding::Again(next.unwrap_or(now)) };
        let stall = watch.stall.get_or_insert_with(|| Box::new(Stall::new(call.now, limit)));
        match stall.look(now, sight) {
            Finding::Again(at) => Finding::Again(earlier(Some(at), next).unwrap_or(at)),
            passed @ Finding::Passed(..) => passed,
        }
    }

    fn body(&self, call: &Call) -> BodyLimits {
        BodyLimits { idle: self.timeouts.body_idle, end: self.timeouts.absolute.map(|absolute| call.now + absolute) }
    }
}
