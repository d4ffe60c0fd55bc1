//! Compares the endpoints of a level with each other, and ejects outliers.

use std::sync::Arc;

use super::endpoint::{Endpoint, EndpointState};
use super::outlier::{self, Outlier};

/// How the endpoints of a level are compared.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReviewRules<'a> {
    pub(super) upstream: &'a str,
    /// Outliers are ejected, as long as half of the level takes calls.
    pub(super) ejects: bool,
    /// The last review is so long ago that its counts are not of the window.
    pub(super) is_late: bool,
    /// Nanoseconds of the pool's clock.
    pub(super) now: u64,
}

/// Reviews the endpoints of a level. Returns whether some are ejected, or no longer.
pub(super) fn review<S>(endpoints: &[Arc<Endpoint<S>>], rules: ReviewRules<'_>) -> bool {
    let samples: Vec<_> = endpoints.iter().map(|endpoint| sample(&endpoint.state, rules.is_late)).collect();
    let mut has_changed = false;
    let count_unavailable = || endpoints.iter().filter(|endpoint| !endpoint.state.is_available()).count();
    let mut unavailable = count_unavailable();
    for (endpoint, finding) in endpoints.iter().zip(outlier::find(&samples)) {
        let may_eject = rules.ejects && (unavailable + 1) * 2 <= endpoints.len();
        if endpoint.state.judge(finding, may_eject, rules) {
            has_changed = true;
            unavailable = count_unavailable();
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
    /// Takes what the comparison has found. Returns whether the endpoint is ejected now, or no longer.
    fn judge(&self, finding: Option<Outlier>, may_eject: bool, rules: ReviewRules<'_>) -> bool {
        let mut review = self.review();
        if self.is_ejected() {
            if !review.has_ended(rules.now) {
                return false;
            }
            // what came before counts no more
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
                "the endpoint is worse than the others"
            );
        } else {
            tracing::info!(
                target: "tower_upstream", upstream, endpoint,
                "the endpoint is no longer worse than the others"
            );
        }
    }
}
