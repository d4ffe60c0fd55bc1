//! One layer's limits, as its engine asks for them.

use std::sync::Arc;
use std::time::Duration;

use http::Request;
use tokio::time::Instant;

use super::Timeouts;
use super::learner::{Learner, Lesson};
use super::watch::{Stall, named, phase};
use crate::cause::BadGatewayCause;
use crate::deadline::{Deadline, Deadlines};
use crate::engine::{BodyLimits, Call, Finding, Kind, Limits, Outcome, Sight};

/// What a [`TimeoutLayer`](super::TimeoutLayer) was told.
#[derive(Clone, Debug)]
pub struct Enforced {
    pub(super) timeouts: Timeouts,
    pub(super) deadlines: Option<Arc<Deadlines>>,
    pub(super) learner: Option<Learner>,
}

/// What one call remembers; most of it is made at the first look.
#[derive(Debug)]
pub struct Watch {
    stall: Option<Box<Stall>>,
    lesson: Option<Lesson>,
}

impl Enforced {
    /// The caller's deadline or the end of the total, whichever comes first.
    fn deadline(&self, call: &Call) -> Option<Instant> {
        let total = self.timeouts.total.map(|total| call.now + total);
        earlier(total, call.deadline.map(|deadline| deadline.instant()))
    }

    /// The learner, for a call that has something to teach.
    fn lesson(&self, watch: &Watch) -> Option<(&Learner, Lesson)> {
        self.learner.as_ref().zip(watch.lesson)
    }

    /// The limit on the head.
    fn head(&self, watch: &Watch, now: Instant) -> Option<Duration> {
        match self.lesson(watch) {
            Some((learner, lesson)) => learner.head(lesson, self.timeouts.head, now),
            None => self.timeouts.head,
        }
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
        call.kind = self.timeouts.kind;
        call.deadline = Deadline::of(request.extensions());
        if let Some(deadlines) = &self.deadlines {
            call.deadline =
                Deadline::earlier(call.deadline, deadlines.read(request.headers(), request.extensions(), call.now));
        }
        if let Some(deadlines) = &self.deadlines {
            deadlines.write(request, call);
        }
        let bounded = call.kind == Kind::Bounded;
        let lesson = self.learner.as_ref().filter(|_| bounded).and_then(|learner| learner.lesson(request));
        Watch { stall: None, lesson }
    }

    fn first(&self, watch: &Watch, call: &Call) -> Option<Instant> {
        let head = self.head(watch, call.now).map(|limit| Stall::first(call.now, limit));
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
        let begun = watch.stall.as_ref().map(|stall| stall.limit());
        let Some(limit) = begun.or_else(|| self.head(watch, now)) else { return Finding::Again(next.unwrap_or(now)) };
        let stall = watch.stall.get_or_insert_with(|| Box::new(Stall::new(call.now, limit)));
        match stall.look(now, sight) {
            Finding::Again(at) => Finding::Again(earlier(Some(at), next).unwrap_or(at)),
            Finding::Passed(cause, phase) => {
                // only what the upstream let pass says something about it
                let its_own = matches!(cause, BadGatewayCause::FirstByteTimeout | BadGatewayCause::HeadTimeout);
                if let Some((learner, lesson)) = self.lesson(watch).filter(|_| its_own) {
                    learner.timed_out(lesson, limit, now);
                }
                Finding::Passed(cause, phase)
            }
        }
    }

    #[inline]
    fn answered(&self, watch: &Watch, call: &Call, uploaded: Option<Instant>, outcome: &Outcome) {
        if let Some((learner, lesson)) = self.lesson(watch).filter(|_| outcome.status().is_some()) {
            learner.answered(lesson, call.now, uploaded, outcome.now());
        }
    }

    fn body(&self, call: &Call) -> BodyLimits {
        BodyLimits { idle: self.timeouts.body_idle, end: self.timeouts.absolute.map(|absolute| call.now + absolute) }
    }
}
