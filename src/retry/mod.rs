//! Whether a failed request is sent again, when, and towards whom.
//!
//! [`decide`] is the one place where that is thought out: from what a response [shows](Shown), the method, the
//! attempts made, what is left of the time, and last the budget. It reads no clock, sends nothing and waits for nothing.
//!
//! | default | value |
//! |---|---|
//! | attempts | 3: the first and two more |
//! | pause before a retry | full jitter, 25 ms doubled to 1 s; none before the first one of a request that was not sent |
//! | longest `Retry-After` that is waited for | 60 s |
//! | `Idempotency-Key`, 429 and `RESOURCE_EXHAUSTED` | not retried until opted in |
//!
//! ```
//! use http::{Method, StatusCode};
//! use tower_upstream::BadGatewayCause;
//! use tower_upstream::cause::RetryStop;
//! use tower_upstream::retry::{Decision, RetryPolicy, Shown, Situation, decide};
//!
//! let policy = RetryPolicy::new();
//! let refused = Situation::new(Shown::Cause(BadGatewayCause::ConnectionRefused), &Method::POST);
//! assert!(matches!(decide(&policy, &refused, 0, || true), Decision::Retry { .. }));
//! let relayed = Situation::new(Shown::Answer(StatusCode::BAD_GATEWAY), &Method::POST);
//! assert_eq!(decide(&policy, &relayed, 0, || true), Decision::Stop(RetryStop::Method));
//! ```

mod attempts;
mod backoff;
mod decision;
mod policy;
mod pushback;
mod retry_after;
mod shown;

pub use self::attempts::Attempts;
pub use self::decision::{Decision, Situation, Spare, Toward, decide};
pub use self::policy::{RetryOverride, RetryPolicy};
pub use self::pushback::Pushback;
pub use self::retry_after::retry_after;
pub use self::shown::{Protocol, Shown};
