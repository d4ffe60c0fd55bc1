//! The messages of an error page.

use std::borrow::Cow;

use super::ErrorContext;
use crate::cause::BadGatewayCause;

type Text = Cow<'static, str>;

/// The messages of an error page, as plain text; each media type escapes them as needed.
///
/// ```
/// use tower_upstream::error_page::{ErrorPage, Messages};
///
/// let page = ErrorPage::new().messages(|facts| {
///     let german = facts.accept_language().is_some_and(|languages| languages.starts_with("de"));
///     if !german {
///         return Messages::english(facts);
///     }
///     let advice = match facts.retry_safe() {
///         true => "Es wurde nichts ausgeführt. Bitte versuchen Sie es noch einmal.",
///         false => "Wir wissen nicht, ob Ihre Anfrage ausgeführt wurde. Bitte prüfen Sie das zuerst.",
///     };
///     Messages::english(facts)
///         .language("de")
///         .summary("Der Dienst ist gestört.")
///         .advice(advice)
///         .labels("Anfrage", "Zeit (UTC)")
///         .contact("Wenn das wiederkehrt, schreiben Sie bitte an hilfe@shop.example.")
/// });
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct Messages {
    pub(super) language: Text,
    pub(super) summary: Text,
    pub(super) advice: Option<Text>,
    pub(super) request_label: Text,
    pub(super) time_label: Text,
    pub(super) contact: Option<Text>,
}

impl Messages {
    /// The English messages.
    pub fn english(facts: &ErrorContext<'_>) -> Self {
        Self {
            language: Cow::Borrowed("en"),
            summary: Cow::Borrowed(summary_of(facts.cause(), facts.retry_safe())),
            advice: facts.failure().user_hint().map(Cow::Borrowed),
            request_label: Cow::Borrowed("Request ID"),
            time_label: Cow::Borrowed("Time (UTC)"),
            contact: None,
        }
    }

    /// Sets the language of the other messages, as a BCP 47 tag (default: `en`).
    pub fn language(mut self, tag: impl Into<Text>) -> Self {
        self.language = tag.into();
        self
    }

    /// Sets what happened, in one sentence.
    pub fn summary(mut self, sentence: impl Into<Text>) -> Self {
        self.summary = sentence.into();
        self
    }

    /// Sets whether it is safe to try again (default: [`Failure::user_hint`](crate::Failure::user_hint)).
    ///
    /// Say only what is proven: that nothing was processed is known only if
    /// [`retry_safe`](ErrorContext::retry_safe) is true.
    pub fn advice(mut self, sentence: impl Into<Text>) -> Self {
        self.advice = Some(sentence.into());
        self
    }

    /// Sets the labels of the request id and the time (default: `Request ID`, `Time (UTC)`).
    pub fn labels(mut self, request: impl Into<Text>, time: impl Into<Text>) -> Self {
        self.request_label = request.into();
        self.time_label = time.into();
        self
    }

    /// Sets the contact (default: that of [`ErrorPage::contact`](super::ErrorPage::contact)).
    pub fn contact(mut self, sentence: impl Into<Text>) -> Self {
        self.contact = Some(sentence.into());
        self
    }

    /// The summary and the advice, in one line.
    pub(super) fn detail(&self) -> String {
        match &self.advice {
            Some(advice) => format!("{} {advice}", self.summary),
            None => self.summary.to_string(),
        }
    }
}

fn summary_of(cause: BadGatewayCause, not_sent: bool) -> &'static str {
    use BadGatewayCause as C;
    match cause {
        // the service has not been asked
        C::UpgradeFailed if not_sent => "Your request could not be passed on.",
        C::NoRoute
        | C::InvalidTarget
        | C::LoopDetected
        | C::TargetProhibited
        | C::DnsNotFound
        | C::TlsCertificate
        | C::TlsAlert
        | C::WrongProtocol => "Your request could not be passed on.",
        C::NoHealthyUpstream | C::CircuitOpen => "The service is out of order at the moment.",
        C::ConnectionLimit | C::QueueTimeout | C::GatewayOverload | C::GatewayResources => {
            "There are more requests than can be answered right now."
        }
        C::DnsTimeout
        | C::DnsFailure
        | C::ConnectionRefused
        | C::ConnectTimeout
        | C::Unroutable
        | C::ConnectFailed
        | C::TlsFailed
        | C::TlsTimeout
        | C::StreamRefused
        | C::NotDispatched => "The service could not be reached.",
        C::StaleConnection | C::ClosedBeforeResponse | C::ResetBeforeResponse | C::StreamReset | C::IncompleteHead => {
            "The service broke off before it had answered."
        }
        C::WriteTimeout | C::PeerUnresponsive | C::HeadTimeout | C::FirstByteTimeout | C::DeadlineExceeded => {
            "The service did not answer in time."
        }
        C::InvalidResponse | C::HeadTooLarge | C::UpgradeFailed => {
            "The service gave an answer that cannot be passed on."
        }
        C::IncompleteBody
        | C::BodyReadTimeout
        | C::BodyTooLarge
        | C::TrailerTooLarge
        | C::TransferCoding
        | C::ContentCoding => "The service's answer did not arrive in full.",
        C::UpstreamStatus => "The service reported an error.",
        C::UploadStalled | C::RequestBodyFailed => "Your request did not arrive in full.",
        C::ClientClosed => "The request was broken off.",
        C::GatewayInternal | C::Unknown => "Something went wrong on our side.",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn what_happened_is_one_plain_sentence() {
        let sentences: HashSet<_> = BadGatewayCause::ALL.iter().map(|cause| summary_of(*cause, false)).collect();
        assert!(sentences.len() > 10);
        for sentence in sentences {
            assert!(sentence.len() < 60 && sentence.ends_with('.'), "{sentence}");
            assert_eq!(sentence.matches('.').count(), 1, "{sentence}");
            for word in ["upstream", "gateway", "proxy", "502", "backend", "TCP", "DNS", "TLS", "processed", "again"] {
                assert!(!sentence.contains(word), "{sentence} is not for visitors");
            }
        }
    }

    #[test]
    fn an_upgrade_that_was_not_sent_is_no_answer_of_the_service() {
        use crate::cause::{Evidence, Replay};
        for (replay, evidence, detail) in [
            (
                Replay::NotSent,
                Evidence::LocalRefusal,
                "Your request could not be passed on. Nothing was processed. Trying again will not help.",
            ),
            (
                Replay::Never,
                Evidence::Counted,
                "The service gave an answer that cannot be passed on. We cannot tell whether your request was carried out. \
                 Check before sending it again.",
            ),
        ] {
            let failure = crate::Failure::builder(BadGatewayCause::UpgradeFailed).replay(replay, evidence).build();
            let status = failure.status();
            let facts = ErrorContext { failure: &failure, status, request_id: None, time: "", accept_language: None };
            assert_eq!(Messages::english(&facts).detail(), detail);
        }
    }

    #[test]
    fn only_the_advice_speaks_of_trying_again() {
        for &cause in BadGatewayCause::ALL {
            let failure = crate::Failure::new(cause);
            let facts = ErrorContext {
                failure: &failure,
                status: cause.status(),
                request_id: None,
                time: "",
                accept_language: None,
            };
            let texts = Messages::english(&facts);
            assert_eq!(texts.advice.as_deref(), failure.user_hint());
            let proven = failure.replay() == crate::cause::Replay::NotSent;
            assert!(proven || !texts.detail().contains("Nothing was processed"), "{cause}");
        }
    }
}
