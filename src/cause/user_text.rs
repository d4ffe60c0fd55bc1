//! Texts for users about a failure: a summary, and the advice whether to try again.

use http::{Method, StatusCode};

use super::table::UserSummary;
use super::{BadGatewayCause, Failure, Prospect, Replay};

/// The advice for the user of a failed request, as far as it is proven.
///
/// ```
/// use http::Method;
/// use tower_upstream::cause::{Advice, Evidence, Replay};
/// use tower_upstream::{BadGatewayCause, Failure};
///
/// let lost = Failure::new(BadGatewayCause::FirstByteTimeout);
/// assert_eq!(lost.advice(&Method::GET), Advice::Reload);
/// assert_eq!(lost.advice(&Method::POST), Advice::CheckFirst);
///
/// let refused = Failure::builder(BadGatewayCause::ConnectionRefused);
/// let refused = refused.replay(Replay::NotSent, Evidence::NoConnection).build();
/// assert_eq!(refused.advice(&Method::POST).text(), "Your request was not processed. It is safe to try again.");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[repr(u8)]
pub enum Advice {
    /// The method is safe (RFC 9110 section 9.2.1): the request can be repeated whatever happened.
    Reload,
    /// The method is safe, and the same request fails until an operator acts.
    Futile,
    /// The request was proven not to be processed.
    TryAgain,
    /// The request was proven not to be processed, because there was no capacity for it.
    TryLater,
    /// The request may have been processed.
    CheckFirst,
    /// The request may have been processed, but its body did not arrive completely.
    CheckUpload,
}

impl Advice {
    pub(super) const COUNT: usize = Self::CheckUpload as usize + 1;

    /// The advice in English: one or two sentences.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Reload => "It is safe to reload this page.",
            Self::Futile => "Reloading will not help until the problem is fixed.",
            Self::TryAgain => "Your request was not processed. It is safe to try again.",
            Self::TryLater => "Your request was not processed. Please try again in a moment.",
            Self::CheckFirst => {
                "We do not know whether your request was processed. Check before you repeat an order or a payment."
            }
            Self::CheckUpload => "Your upload stopped part way. Check before you send it again.",
        }
    }

    /// The advice for a failed request; `safe` says whether its method is.
    pub(crate) fn of(failure: &Failure, safe: bool) -> Self {
        let cause = failure.cause();
        if safe {
            return if lasts(cause) { Self::Futile } else { Self::Reload };
        }
        match (failure.replay(), cause) {
            (Replay::NotSent, _) if cause.prospect() == Prospect::AfterDelay => Self::TryLater,
            (Replay::NotSent, _) => Self::TryAgain,
            (_, BadGatewayCause::UploadStalled | BadGatewayCause::RequestBodyFailed) => Self::CheckUpload,
            _ => Self::CheckFirst,
        }
    }
}

impl Failure {
    /// The advice for the user of a request with this method, as far as it is proven.
    pub fn advice(&self, method: &Method) -> Advice {
        Advice::of(self, method.is_safe())
    }
}

/// Whether the same request fails in the same way until an operator changes something.
fn lasts(cause: BadGatewayCause) -> bool {
    use BadGatewayCause as C;
    match cause.facts().user_summary {
        UserSummary::Configuration => true,
        _ => matches!(
            cause,
            C::DnsNotFound
                | C::TlsCertificate
                | C::TlsAlert
                | C::HeadTooLarge
                | C::BodyTooLarge
                | C::TrailerTooLarge
                | C::UpgradeFailed
        ),
    }
}

/// The summary for users, in one sentence; `status` is that of the response.
pub(crate) fn user_summary(failure: &Failure, status: StatusCode) -> &'static str {
    match failure.cause() {
        BadGatewayCause::NoRoute if status == StatusCode::NOT_FOUND => "Page not found.",
        // a gateway that does not forward upgrades: the service was not asked
        BadGatewayCause::UpgradeFailed if failure.replay() == Replay::NotSent => UserSummary::Configuration.text(),
        cause => cause.facts().user_summary.text(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::cause::Evidence;

    const REPLAYS: [(Replay, Evidence); 3] = [
        (Replay::NotSent, Evidence::NoConnection),
        (Replay::IdempotentOnly, Evidence::Inferred),
        (Replay::Never, Evidence::Counted),
    ];

    fn failures() -> impl Iterator<Item = Failure> {
        BadGatewayCause::ALL.iter().flat_map(|cause| {
            REPLAYS.map(|(replay, evidence)| Failure::builder(*cause).replay(replay, evidence).build())
        })
    }

    #[test]
    fn every_cause_and_method_has_one_advice_that_claims_only_what_is_proven() {
        let mut given = HashSet::new();
        for failure in failures() {
            let cause = failure.cause();
            let proven = failure.replay() == Replay::NotSent;
            for method in [Method::GET, Method::HEAD, Method::OPTIONS] {
                let advice = failure.advice(&method);
                assert!(matches!(advice, Advice::Reload | Advice::Futile), "{cause}: {advice:?}");
                assert!(!advice.text().contains("processed"), "{cause}");
                given.insert(advice);
            }
            for method in [Method::POST, Method::PUT, Method::DELETE, Method::PATCH] {
                let advice = failure.advice(&method);
                assert_eq!(matches!(advice, Advice::TryAgain | Advice::TryLater), proven, "{cause}: {advice:?}");
                assert_eq!(advice.text().contains("was not processed"), proven, "{cause}: {advice:?}");
                given.insert(advice);
            }
        }
        assert_eq!(given.len(), Advice::COUNT, "{given:?}");
    }

    #[test]
    fn reloading_is_called_futile_only_if_an_operator_has_to_act() {
        let futile = |cause| Failure::new(cause).advice(&Method::GET) == Advice::Futile;
        assert!(futile(BadGatewayCause::NoRoute) && futile(BadGatewayCause::TlsCertificate));
        for cause in BadGatewayCause::ALL {
            let passes = matches!(cause.prospect(), Prospect::SamePeer | Prospect::AfterDelay);
            assert!(!(passes && futile(*cause)), "{cause}");
        }
    }

    #[test]
    fn an_upload_that_broke_off_has_an_advice_of_its_own() {
        for cause in [BadGatewayCause::UploadStalled, BadGatewayCause::RequestBodyFailed] {
            let failure = Failure::new(cause);
            assert_eq!(failure.advice(&Method::POST), Advice::CheckUpload);
            assert_eq!(user_summary(&failure, failure.status()), "Your request did not arrive completely.");
        }
    }

    #[test]
    fn a_summary_is_one_plain_sentence() {
        let summaries: HashSet<_> = failures().map(|failure| user_summary(&failure, failure.status())).collect();
        // and that of a page that was not found
        assert_eq!(summaries.len(), UserSummary::Internal as usize + 2);
        for summary in summaries {
            assert!(summary.len() < 70 && summary.ends_with('.'), "{summary}");
            assert_eq!(summary.matches('.').count(), 1, "{summary}");
            for word in ["upstream", "gateway", "proxy", "502", "backend", "TCP", "DNS", "TLS", "processed", "again"] {
                assert!(!summary.contains(word), "{summary} is not for users");
            }
        }
    }

    #[test]
    fn a_route_that_does_not_exist_is_a_page_that_was_not_found_where_the_status_is_404() {
        let failure = Failure::new(BadGatewayCause::NoRoute);
        assert_eq!(user_summary(&failure, failure.status()), "Page not found.");
        assert!(user_summary(&failure, StatusCode::INTERNAL_SERVER_ERROR).contains("configuration"));
        let refused = Failure::new(BadGatewayCause::ConnectionRefused);
        assert_eq!(user_summary(&refused, StatusCode::NOT_FOUND), "The service could not be reached.");
    }

    #[test]
    fn an_upgrade_that_was_not_sent_is_no_response_of_the_service() {
        let upgrade = |replay, evidence| {
            let failure = Failure::builder(BadGatewayCause::UpgradeFailed).replay(replay, evidence).build();
            user_summary(&failure, failure.status())
        };
        assert!(upgrade(Replay::NotSent, Evidence::LocalRefusal).contains("configuration"));
        assert!(upgrade(Replay::Never, Evidence::Counted).starts_with("The service sent a response"));
    }
}
