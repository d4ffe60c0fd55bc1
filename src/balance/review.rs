//! Comparison of the endpoints of a level, and ejection of outliers.

use std::sync::Arc;

use super::endpoint::{Endpoint, EndpointState};
use super::outlier::{self, Outlier};

/// Circumstances of one review.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReviewRules<'a> {
    pub(super) upstream: &'a str,
    /// Whether outliers are ejected while half of the level remains available.
    pub(super) ejects: bool,
    /// Whether the last review is older than the window.
    pub(super) is_late: bool,
    /// Nanoseconds of the pool's clock.
    pub(super) now: u64,
}

/// Reviews the endpoints of a level. Returns whether one was ejected or returned.
pub(super) fn review<S>(endpoints: &[Arc<Endpoint<S>>], rules: ReviewRules<'_>) -> bool {
    let samples: Vec<_> = endpoints.iter().map(|endpoint| sample(&endpoint.state, rules.is_late)).collect();
    let mut has_changed = false;
    let mut unavailable = endpoints.iter().filter(|endpoint| !endpoint.state.is_available()).count();
    for (endpoint, finding) in endpoints.iter().zip(outlier::find(&samples)) {
        let may_eject = rules.ejects && (unavailable + 1) * 2 <= endpoints.len();
        let was_available = endpoint.state.is_available();
        if endpoint.state.judge(finding, may_eject, rules) {
            has_changed = true;
            match (was_available, endpoint.state.is_available()) {
                (true, false) => unavailable += 1,
                (false, true) => unavailable = unavailable.saturating_sub(1),
                _ => {}
            }
        }
    }
    has_changed
}

fn sample(state: &EndpointState, is_late: bool) -> outlier::Sample {
    let counts = state.load.counts();
    let mut review = state.review();
    if is_late {
        review.restart(counts);
    }
    review.advance(counts)
}

impl EndpointState {
    /// Applies the finding of a comparison. Returns whether the endpoint was ejected or returned.
    fn judge(&self, finding: Option<Outlier>, may_eject: bool, rules: ReviewRules<'_>) -> bool {
        let mut review = self.review();
        if self.is_ejected() {
            if !review.has_ended(rules.now) {
                return false;
            }
            // calls from before the end of the ejection do not count
            review.restart(self.load.counts());
            review.finding = None;
            self.set_ejected(false);
            drop(review);
            self.report(None, false, rules.upstream);
            return true;
        }
        let ejects = finding.is_some() && may_eject;
        if ejects {
            review.eject(rules.now);
            self.set_ejected(true);
        }
        let before = std::mem::replace(&mut review.finding, finding);
        drop(review);
        let kind = |finding: &Option<Outlier>| finding.as_ref().map(std::mem::discriminant);
        if ejects || kind(&before) != kind(&finding) {
            self.report(finding, ejects, rules.upstream);
        }
        ejects
    }

    fn report(&self, finding: Option<Outlier>, ejected: bool, upstream: &str) {
        let member = self.member();
        let endpoint = &*member.key;
        if let Some(outlier) = finding {
            tracing::warn!(
                target: "tower_upstream", upstream, endpoint, reason = %outlier, ejected,
                "the endpoint is an outlier: it fails more often or is slower than the others"
            );
        } else {
            tracing::info!(
                target: "tower_upstream", upstream, endpoint,
                "the endpoint is no longer an outlier"
            );
        }
    }
}
