//! What a `RetryLayer` was told.

use std::time::SystemTime;

use http::{HeaderName, HeaderValue, Method, Request, header::UPGRADE};

use super::kept_head::{Carry, carry};
use super::{RetryBudget, RetryOverride, RetryPolicy};
use crate::deadline::Deadline;

const ATTEMPT_COUNT: HeaderName = HeaderName::from_static("x-envoy-attempt-count");

#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) policy: RetryPolicy,
    pub(super) budget: RetryBudget,
    pub(super) body_cap: usize,
    pub(super) carried: Vec<Carry>,
    pub(super) count: Option<HeaderName>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            policy: RetryPolicy::new(),
            budget: RetryBudget::new(),
            body_cap: 64 * 1024,
            carried: vec![carry::<Deadline>, carry::<RetryOverride>],
            count: Some(ATTEMPT_COUNT),
        }
    }
}

impl Settings {
    /// Whether a copy is worth making: another attempt is allowed, paid for, and no tunnel hangs on this one.
    #[inline]
    pub(super) fn keeps<B>(&self, request: &Request<B>, exception: Option<RetryOverride>) -> bool {
        self.policy.allows_more(exception)
            && self.budget.may_retry()
            && request.method() != Method::CONNECT
            && !request.headers().contains_key(UPGRADE)
    }

    /// Counts an attempt on its request.
    pub(super) fn count<B>(&self, request: &mut Request<B>, attempt: u32) {
        if let Some(name) = &self.count {
            request.headers_mut().insert(name.clone(), HeaderValue::from(attempt));
        }
    }

    /// The time of day, for HTTP dates.
    #[allow(clippy::unused_self)] // settings are where a test would hold it still
    pub(super) fn wall(&self) -> SystemTime {
        SystemTime::now()
    }

    #[allow(clippy::unused_self)] // as above
    pub(super) fn random(&self) -> u64 {
        fastrand::u64(..)
    }
}
