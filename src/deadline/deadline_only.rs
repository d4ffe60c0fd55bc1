//! The limits of a layer that has none of its own.

use std::sync::Arc;
use std::time::Duration;

use http::Request;
use tokio::time::Instant;

use super::{Deadline, DeadlinePropagation};
use crate::engine::{BodyLimits, CLIENT_IDLE, Call, Finding, Kind, Limits, Sight};

/// No timer: only the deadline that came with the request.
#[derive(Clone, Debug)]
pub struct DeadlineOnly {
    pub(crate) deadlines: Option<Arc<DeadlinePropagation>>,
    pub(crate) kind: Kind,
    pub(crate) client_idle: Option<Duration>,
}

impl Default for DeadlineOnly {
    fn default() -> Self {
        Self { deadlines: None, kind: Kind::default(), client_idle: Some(CLIENT_IDLE) }
    }
}

impl Limits for DeadlineOnly {
    type Watch = ();

    #[inline]
    fn begin<B>(&self, call: &mut Call, request: &mut Request<B>) {
        call.kind = self.kind;
        call.deadline = Deadline::of(request.extensions());
        if let Some(deadlines) = &self.deadlines {
            let read = deadlines.extract(request.headers(), request.extensions(), call.now);
            call.deadline = Deadline::min(call.deadline, read);
            deadlines.inject(request, call);
        }
    }

    fn first(&self, (): &(), _: &Call) -> Option<Instant> {
        None
    }

    fn look(&self, (): &mut (), _: &Call, _: Instant, _: &Sight) -> Finding {
        unreachable!("no look was ever due")
    }

    fn body(&self, _: &Call) -> BodyLimits {
        BodyLimits { client_idle: self.client_idle, ..BodyLimits::default() }
    }
}
