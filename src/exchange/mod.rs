//! The driver: the one service, future and response body behind every middleware.
//!
//! An `Exchange` drives a *call*: a client's request with all its *attempts*. A middleware is a `Spec` of it: a component
//! around the call (statistics), one around each attempt (a circuit, a limiter), timeouts, a `RequestMode` (requests are sent once,
//! tracked, or kept for another attempt) and an `ErrorMode` (errors are passed on, or classified). A single middleware leaves
//! the other components empty (`()`); the stack has all of them. No step has a second implementation.
//!
//! ```text
//!              +-------------------- one call -------------------------------------------+
//!  request --> | admit per call --> request kept if another attempt is possible           |
//!              |   +---------------- one attempt ------------------------------------+    |
//!              |   | admit per attempt -> timeouts -> inner.call -> check head/error | <--+-- retry decision (pure)
//!              |   +------------------------------------------------------------------+    |
//!              | respond: local response | head + body --> complete at the body's end     |
//!              +--------------------------------------------------------------------------+
//! ```
//!
//! # Where state lives
//!
//! | what | where |
//! |---|---|
//! | settings of all calls | `Config`, behind a `Ref` whose count belongs to one clone of the service |
//! | a call's permits, notes, timer | `ActiveCall`, one pinned box that the thread reuses: it moves from the future to the body as one pointer |
//! | the current attempt | `State`, in the future; every attempt runs in the same place |
//! | the input of another attempt | `RequestMode::RetryState`, and a `Template` of the inner service, if another attempt is possible |
//! | a hedged attempt | `HedgeFuture`, in a box of its own, with its own permit and timer |
//!
//! The states of the future:
//!
//! | state | waits for | then |
//! |---|---|---|
//! | `Attempt` | the inner future, under the attempt's timeouts; the hedge runs concurrently | a head, an error, a timeout |
//! | `HoldHead` | the first frame of the body, so that a crash after the head is still a 502 | the response |
//! | `Backoff` | the pause before another attempt | `ReclaimBody` |
//! | `ReclaimBody` | the request body, which the previous attempt may still have, at most a second | `Attempt` or `NotReady` |
//! | `NotReady` | the inner service, under the attempt's timeouts | `Attempt` |
//! | `HedgeOnly` | the hedged attempt, after the first has failed | as `Attempt` |
//! | `Failed`, `Rejected` | nothing | the failure |
//!
//! # Permits and the order of drops
//!
//! `Active` is the handle of a call. It is completed once, or cancelled when it is dropped, and never both; a panic of the inner
//! service cancels it. An attempt's permit is completed when the attempt has failed, and with the call otherwise. In the future
//! and in the body the handle is declared after the inner future or body: these are dropped first, and release the upstream
//! before the permits. A new attempt begins after the future of the previous one was dropped, which releases its connection
//! and the request body. A timeout drops the inner future with a reason, which inner layers read by `drop_reason`.
//!
//! A call ends with its response body: at the head, if the inner body has ended already. A body that stays open is registered
//! with the `Sweep` of its layer, so that `client_idle` and `absolute` apply also while it is not polled; the sweep and the
//! consumer share the call in a mutex, and the first that locks it takes it.
//!
//! The inner future is polled first, and the timer is armed only when it is pending. An ordinary response (no sign of a
//! failure, first frame available) takes the straight path: one branch, no box, no lock, no second reading of the clock.
//! Everything else is in cold functions, which return `None` if the call goes on.

mod active;
mod body;
mod bound;
mod component;
mod context;
mod detachable;
mod endpoint;
mod entry;
mod future;
mod hedge;
mod keyed;
mod local_arc;
mod middleware;
mod next_attempt;
mod probe;
mod progress;
mod service;
mod single_attempt;
mod span;
mod spec;
mod sweep;
mod timeout_policy;
mod timer;
mod upgrade;

pub(crate) use self::active::{ActiveCall, SpareCalls};
pub(crate) use self::body::{ExchangeBody, MakeBody, set_retry_after};
pub(crate) use self::component::{Admission, CancelReason, Component, Outcome, Rejection, ResponseSummary};
pub(crate) use self::detachable::{Detach, Detachable};
#[cfg(feature = "balance")]
pub(crate) use self::endpoint::note_endpoint;
pub(crate) use self::endpoint::{ChosenEndpoint, TriedEndpoints};
pub(crate) use self::future::ExchangeFuture;
pub use self::keyed::KeyedLayer;
pub(crate) use self::keyed::{ConfigSource, PerUpstream};
pub(crate) use self::local_arc::{LocalArc, Ref};
pub(crate) use self::middleware::{
    middleware_body, middleware_future, middleware_service, middleware_spec, passing_middleware,
};
pub(crate) use self::next_attempt::Template;
pub(crate) use self::probe::{ProbeSource, RequestProbe, SendService};
#[cfg(feature = "client")]
pub(crate) use self::progress::set_call;
pub(crate) use self::progress::{AttemptProgress, UploadProgress, drop_reason, drop_with_reason, publish, query};
pub(crate) use self::service::Exchange;
pub(crate) use self::single_attempt::{PassErrors, SendOnce};
pub(crate) use self::spec::*;
pub(crate) use self::sweep::{CLIENT_IDLE, Expired, Sweep, Sweepable, Swept};
pub(crate) use self::timeout_policy::{BodyTimeouts, HeadSeen, TimeoutPolicy, TimerDecision};
pub(crate) use self::upgrade::asks_for_upgrade;
#[cfg(feature = "balance")]
pub(crate) use crate::body::UpgradeGuard;

pub(crate) use self::context::{CallContext, CallKind, RequestLoad, Vote};

#[cfg(test)]
mod tests;

type BoxError = Box<dyn std::error::Error + Send + Sync>;
