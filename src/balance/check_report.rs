//! Results of health checks.

use std::time::Duration;

use tokio::time::Instant;

use super::agent_words::{self, CheckResult};

/// The largest size of the text of a report, in bytes.
const MAX_TEXT: usize = 200;

/// Result of a health check: passed, failed, or a request of the endpoint for no new calls.
///
/// `()` and `true` convert into a passed check, `false` into a failed one, so that a check of your own may return them.
///
/// ```
/// use tower_upstream::balance::CheckReport;
///
/// let report = CheckReport::passed().weight_percent(50);
/// assert!(report.is_passed() && !CheckReport::failed("disk full").is_passed());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct CheckReport {
    pub(super) verdict: CheckResult,
    pub(super) weight_percent: Option<u32>,
    pub(super) status: Option<u16>,
    pub(super) text: String,
}

impl CheckReport {
    /// Creates the report of a passed check.
    pub fn passed() -> Self {
        Self::new(CheckResult::Pass, "")
    }

    /// Creates the report of a check that failed for this reason, of which the first 200 bytes are kept.
    pub fn failed(reason: impl AsRef<str>) -> Self {
        Self::new(CheckResult::Fail, reason.as_ref())
    }

    /// Creates the report of an endpoint that asks for no new calls. It gets none from this check on, until one has
    /// passed.
    pub fn draining() -> Self {
        Self::new(CheckResult::Drain, "")
    }

    /// Reads the state that an endpoint reports, in the words of `HAProxy`'s agent checks or as the `status` of a JSON
    /// document (draft-inadarei-api-health-check).
    ///
    /// | words | meaning |
    /// |---|---|
    /// | `up`, `ready`; JSON `{"status": "pass"}`, `"warn"`, `"ok"`, `"up"` | passed |
    /// | `down`, `fail`, `failed`, `stopped`; `"fail"`, `"error"`, `"down"` | failed |
    /// | `drain`, `maint`; `"draining"`, `"maint"`, `"out_of_service"` | asks for no new calls |
    /// | `50%`, `weight:50%` | asks for half of its weight (0 to 1,000 %) |
    ///
    /// A text with any other word is ignored, and the check has passed. At most 4 KiB are read.
    pub fn from_words(text: &[u8]) -> Self {
        Self::passed().with_words(text)
    }

    /// Adds the state that an endpoint reports. No word turns a failed check into a passed one.
    pub(super) fn with_words(mut self, text: &[u8]) -> Self {
        let text = &text[..text.len().min(agent_words::MAX_BODY)];
        let found = agent_words::read(text);
        match found.verdict {
            Some(verdict @ (CheckResult::Fail | CheckResult::Drain)) => {
                self.verdict = verdict;
                if self.text.is_empty() {
                    self.text = printable(&String::from_utf8_lossy(text));
                }
            }
            Some(CheckResult::Pass) | None => {}
        }
        match found.weight_percent {
            Some(percent) => self.weight_percent(percent),
            None => self,
        }
    }

    pub(super) fn new(verdict: CheckResult, text: &str) -> Self {
        Self { verdict, weight_percent: None, status: None, text: printable(text) }
    }

    /// Sets the part of its weight, in percent, that the endpoint takes (default 100, at most 1,000); 0 is
    /// [`draining`](Self::draining).
    pub fn weight_percent(mut self, percent: u32) -> Self {
        if percent > 0 {
            self.weight_percent = Some(percent);
        } else if self.verdict == CheckResult::Pass {
            self.verdict = CheckResult::Drain;
        }
        self
    }

    /// Returns whether the check has passed.
    pub fn is_passed(&self) -> bool {
        self.verdict == CheckResult::Pass
    }

    /// Returns whether the endpoint asks for no new calls.
    pub fn is_draining(&self) -> bool {
        self.verdict == CheckResult::Drain
    }

    /// Returns the HTTP or gRPC status, if there was one.
    pub fn status(&self) -> Option<u16> {
        self.status
    }

    /// Returns the reason of the failure or the endpoint's words: at most 200 bytes, without control characters.
    pub fn text(&self) -> &str {
        &self.text
    }
}

impl From<()> for CheckReport {
    fn from((): ()) -> Self {
        Self::passed()
    }
}

impl From<bool> for CheckReport {
    fn from(passed: bool) -> Self {
        if passed { Self::passed() } else { Self::failed("the check has failed") }
    }
}

/// The latest check of an endpoint.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CheckRecord {
    /// When the check ended.
    pub at: Instant,
    /// The duration of the check.
    pub took: Duration,
    /// The result.
    pub report: CheckReport,
}

/// Returns the beginning of a text on one line and without control characters, because peers' texts are logged.
pub(super) fn printable(text: &str) -> String {
    let mut kept = String::with_capacity(text.len().min(MAX_TEXT));
    for char in text.trim().chars().map(|char| if char.is_control() { ' ' } else { char }) {
        if kept.len() + char.len_utf8() > MAX_TEXT {
            break;
        }
        kept.push(char);
    }
    kept
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_weight_of_nothing_is_a_request_for_no_calls() {
        assert!(CheckReport::passed().weight_percent(0).is_draining());
        assert_eq!(CheckReport::passed().weight_percent(50).weight_percent, Some(50));
        assert!(!CheckReport::failed("x").weight_percent(0).is_draining());
        for report in [CheckReport::failed("x").weight_percent(0), CheckReport::from_words(b"drain 0%")] {
            assert_eq!(report.weight_percent, None, "without a weight it would not take calls in a panic");
        }
    }

    #[test]
    fn words_make_a_report_worse_and_never_better() {
        assert!(CheckReport::from_words(b"ready").is_passed() && CheckReport::from_words(b"hello").is_passed());
        assert!(CheckReport::from_words(b"maint").is_draining());
        assert_eq!(CheckReport::from_words(b"down # disk full").text(), "down # disk full");
        assert_eq!(CheckReport::from_words(b"up 50%").weight_percent, Some(50));
        assert!(!CheckReport::failed("503").with_words(b"ready").is_passed());
        assert!(CheckReport::failed("503").with_words(b"drain").is_draining());
        assert!(CheckReport::from_words(&[b' '; 9000]).is_passed());
    }

    proptest! {
        #[test]
        fn a_text_is_short_and_has_no_control_characters(text in ".{0,400}|[\u{0}-\u{9f}é]{0,400}") {
            let report = CheckReport::failed(&text);
            prop_assert!(report.text().len() <= MAX_TEXT && !report.text().chars().any(char::is_control));
        }
    }
}
