//! The limits of a layer that has none of its own.

use std::sync::Arc;
use std::time::Duration;

use http::Request;
use tokio::time::Instant;

use super::{Deadline, Deadlines};
use crate::engine::{BodyLimits, CLIENT_IDLE, Call, Finding, Kind, Limits, Sight};

/// No timer: only the deadline that came with the request.
#[derive(Clone, Debug)]
pub struct Inherited {
    pub(crate) deadlines: Option<Arc<Deadlines>>,
    pub(crate) kind: Kind,
    pub(crate) client_idle: Option<Duration>,
}

impl Default for Inherited {
    fn default() -> Self {
        Self { deadlines: None, kind: Kind::default(), client_idle: Some(CLIENT_IDLE) }
    }
}

impl Limits for Inherited {
    type Watch = ();

    #[inline]
    fn begin<B>(&self, call: &mut Call, request: &mut Request<B>) {
        call.kind = self.kind;
        call.deadline = Deadline::of(request.extensions());
        if let Some(deadlines) = &self.deadlines {
            let read = deadlines.read(request.headers(), request.extensions(), call.now);
            call.deadline = Deadline::earlier(call.deadline, read);
            deadlines.write(request, call);
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
