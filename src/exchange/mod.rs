//! The driver: one service, one future and one body behind the middleware.
#![allow(clippy::inline_always)]

mod active;
mod body;
mod future;
mod hedge;
mod keyed;
mod later;
mod middleware;
mod pass_on;
mod service;
mod span;
mod spec;
mod timer;

pub(crate) use self::active::{ActiveCall, SpareCalls};
pub(crate) use self::body::{ExchangeBody, set_retry_after};
pub(crate) use self::future::{ExchangeFuture, drain};
pub(crate) use self::keyed::{Key, PerKey, keyed_middleware};
pub(crate) use self::middleware::{
    middleware_body, middleware_future, middleware_service, middleware_spec, passing_middleware,
};
pub(crate) use self::pass_on::{Once, PassOn};
pub(crate) use self::service::{Exchange, call_keyed};
pub(crate) use self::span::AttemptSpan;
pub(crate) use self::spec::*;
pub(crate) use crate::engine::{
    Abandon as CancelReason, BodyLimits as BodyTimeouts, Call as CallContext, Detach, Expired,
    Finding as TimerDecision, Handle, Head as HeadSeen, Held as Ref, Limits as TimeoutPolicy, Outcome,
    Part as Component, Refusal as Rejection, Shown as ResponseSummary, Sight as AttemptProgress, Sweep, Sweepable,
    Swept, Tunnel, UploadSight as UploadProgress, ask as query, leave as drop_with_reason, leaving as drop_reason,
    tell as publish,
};

#[cfg(test)]
mod tests;

type BoxError = Box<dyn std::error::Error + Send + Sync>;
