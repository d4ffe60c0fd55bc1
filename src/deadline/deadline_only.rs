//! The timeout policy of layers without timeouts of their own.

use std::sync::Arc;
use std::time::Duration;

use http::Request;

use super::{Deadline, DeadlinePropagation};
use crate::exchange::{BodyTimeouts, CLIENT_IDLE, CallContext, CallKind, TimeoutPolicy};

/// Sets no timer, only the call's deadline from the request.
#[derive(Clone, Debug)]
pub struct DeadlineOnly {
    pub(crate) deadlines: Option<Arc<DeadlinePropagation>>,
    pub(crate) kind: CallKind,
    pub(crate) client_idle: Option<Duration>,
}

impl Default for DeadlineOnly {
    fn default() -> Self {
        Self { deadlines: None, kind: CallKind::default(), client_idle: Some(CLIENT_IDLE) }
    }
}

impl TimeoutPolicy for DeadlineOnly {
    type State = ();

    #[inline]
    fn on_request<B>(&self, call: &mut CallContext, request: &mut Request<B>) {
        call.kind = self.kind;
        call.deadline = Deadline::of(request.extensions());
        if let Some(deadlines) = &self.deadlines {
            let read = deadlines.extract(request.headers(), request.extensions(), call.now);
            call.deadline = Deadline::min(call.deadline, read);
            deadlines.inject(request, call);
        }
    }

    fn body_timeouts(&self, _: &CallContext) -> BodyTimeouts {
        BodyTimeouts { client_idle: self.client_idle, ..BodyTimeouts::default() }
    }
}
