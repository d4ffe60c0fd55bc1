//! The settings of a `RetryLayer`.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::{Extensions, HeaderName, HeaderValue, Request};
use tokio::time::Instant;

use super::request_template::{ExtensionCopier, carry};
use super::{Hedging, RetryBudget, RetryOverride, RetryPolicy};
use crate::cause::Failure;
use crate::deadline::{Deadline, DeadlinePropagation};
use crate::opaque::Opaque;

const ATTEMPT_COUNT: HeaderName = HeaderName::from_static("x-envoy-attempt-count");

#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) policy: RetryPolicy,
    pub(crate) budget: RetryBudget,
    pub(crate) body_cap: usize,
    pub(crate) extension_copiers: Vec<ExtensionCopier>,
    pub(crate) attempt_count_header: Option<HeaderName>,
    /// From the call to the response head of the last attempt.
    pub(crate) total: Option<Duration>,
    /// The part of the total in which a stack retries, as its preset sets it.
    pub(crate) within: Option<Duration>,
    pub(crate) deadlines: Option<DeadlinePropagation>,
    pub(crate) median: Option<Opaque<Arc<MedianSource>>>,
    pub(crate) hedging: Option<Hedging>,
    /// The stack's name for its upstream.
    pub(crate) upstream: Option<Arc<str>>,
}

/// The source of the median duration of attempts.
type MedianSource = dyn Fn(Instant) -> Option<Duration> + Send + Sync;

impl Default for Settings {
    fn default() -> Self {
        Self {
            policy: RetryPolicy::new(),
            budget: RetryBudget::new(),
            body_cap: 64 * 1024,
            extension_copiers: vec![carry::<Deadline>, carry::<RetryOverride>],
            attempt_count_header: Some(ATTEMPT_COUNT),
            total: None,
            within: None,
            deadlines: None,
            median: None,
            hedging: None,
            upstream: None,
        }
    }
}

impl Settings {
    /// Returns a record under the stack's name for its upstream.
    pub(crate) fn named(&self, failure: Failure) -> Failure {
        match &self.upstream {
            Some(name) => failure.named(name),
            None => failure,
        }
    }

    /// Takes over what a file sets of other settings; the budget is kept if it has the same ratio.
    #[cfg(feature = "serde")]
    pub(crate) fn change(&mut self, other: &Self) {
        (self.policy, self.body_cap) = (other.policy, other.body_cap);
        self.hedging.clone_from(&other.hedging);
        if self.budget.ratio_in_use() != other.budget.ratio_in_use() {
            self.budget = other.budget.clone();
        }
    }

    /// Copies the extensions that a retry has.
    pub(crate) fn carry_extensions(&self, from: &Extensions, to: &mut Extensions) {
        for carry in &self.extension_copiers {
            carry(from, to);
        }
    }

    /// Counts an attempt on its request.
    pub(crate) fn count_attempt<B>(&self, request: &mut Request<B>, attempt: u32) {
        if let Some(name) = &self.attempt_count_header {
            request.headers_mut().insert(name.clone(), HeaderValue::from(attempt));
        }
    }

    /// The time of day, for HTTP dates.
    #[allow(clippy::unused_self)] // settings are where a test would hold it still
    pub(crate) fn now_utc(&self) -> SystemTime {
        SystemTime::now()
    }

    #[allow(clippy::unused_self)] // as above
    pub(crate) fn random(&self) -> u64 {
        fastrand::u64(..)
    }
}
