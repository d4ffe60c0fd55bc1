//! Warns if another client's pool keeps idle connections longer than its upstream does.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use crate::alignment::{Finding, KeepAliveEstimator, pool_idle_finding};
use crate::cause::BadGatewayCause;
use crate::exchange::HeadSeen;

/// The idle timeout of another client's pool, and whether a warning was logged.
#[derive(Debug)]
pub(super) struct KeepAliveCheck {
    pool_idle: Duration,
    warned: AtomicBool,
}

impl KeepAliveCheck {
    pub(super) fn new(idle: Duration) -> Self {
        Self { pool_idle: idle, warned: AtomicBool::new(false) }
    }

    pub(super) fn idle(&self) -> Duration {
        self.pool_idle
    }

    /// Warns, once.
    pub(super) fn observe(&self, head: &HeadSeen<'_>) {
        if let Some(finding) = self.finding(head) {
            tracing::warn!(
                target: "tower_upstream",
                finding = finding.id(),
                "{}: {}; set {}", finding.conflict(), finding.reason(), finding.suggestion()
            );
        }
    }

    /// The finding to warn about, once: after the upstream's `Keep-Alive`, or after a stale connection.
    fn finding(&self, head: &HeadSeen<'_>) -> Option<Finding> {
        if self.warned.load(Relaxed) {
            return None;
        }
        let told = head.headers.and_then(|headers| headers.get("keep-alive")?.to_str().ok());
        let learnt = told.and_then(KeepAliveEstimator::parse);
        let died =
            matches!(head.outcome.cause(), Some(BadGatewayCause::StaleConnection | BadGatewayCause::NotDispatched));
        if learnt.is_none() && !died {
            return None;
        }
        let finding = pool_idle_finding(self.pool_idle, learnt)?;
        // only one of several concurrent observers logs it
        (!self.warned.swap(true, Relaxed)).then_some(finding)
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue, StatusCode};

    use super::*;
    use crate::exchange::Outcome;

    const MINUTE_AND_A_HALF: Duration = Duration::from_secs(90);

    fn warned(pool: &KeepAliveCheck, says: &'static str, cause: Option<BadGatewayCause>) -> Option<Finding> {
        let mut headers = HeaderMap::new();
        if !says.is_empty() {
            headers.insert("keep-alive", HeaderValue::from_static(says));
        }
        let outcome = Outcome::response(StatusCode::OK, cause);
        pool.finding(&HeadSeen { outcome: &outcome, headers: Some(&headers), uploaded: None })
    }

    #[test]
    fn a_keep_alive_shorter_than_the_pools_is_warned_of_once() {
        let pool = KeepAliveCheck::new(MINUTE_AND_A_HALF);
        assert_eq!(warned(&pool, "", None), None);
        assert_eq!(warned(&pool, "timeout=120", None), None);
        assert_eq!(warned(&pool, "nonsense", None), None);
        let finding = warned(&pool, "timeout=5, max=100", None).unwrap();
        assert_eq!(finding.id(), "pool_idle_upstream_keep_alive");
        assert_eq!(warned(&pool, "timeout=5", None), None, "once is enough");
    }

    #[test]
    fn a_stale_connection_is_warned_of_too() {
        let pool = KeepAliveCheck::new(MINUTE_AND_A_HALF);
        assert_eq!(warned(&pool, "", Some(BadGatewayCause::ConnectionRefused)), None);
        assert!(warned(&pool, "", Some(BadGatewayCause::StaleConnection)).is_some());
    }
}
