//! The messages of an error page.

use std::borrow::Cow;

use super::ErrorContext;
use crate::cause::user_summary;

type Text = Cow<'static, str>;

/// The messages of an error page, as plain text; each media type escapes them as needed.
///
/// ```
/// use tower_upstream::cause::Advice;
/// use tower_upstream::error_page::{ErrorPage, Messages};
///
/// let page = ErrorPage::new().messages(|context| {
///     let german = context.accept_language().is_some_and(|languages| languages.starts_with("de"));
///     if !german {
///         return Messages::english(context);
///     }
///     let advice = match context.advice() {
///         Advice::Reload => "Sie können die Seite neu laden.",
///         Advice::TryAgain | Advice::TryLater => "Ihre Anfrage wurde nicht ausgeführt. Bitte versuchen Sie es noch einmal.",
///         Advice::Futile => "Neu laden hilft erst, wenn der Fehler behoben ist.",
///         _ => "Wir wissen nicht, ob Ihre Anfrage ausgeführt wurde. Bitte prüfen Sie das zuerst.",
///     };
///     Messages::english(context)
///         .language("de")
///         .summary("Der Dienst ist gestört.")
///         .advice(advice)
///         .labels("Anfrage", "Zeit (UTC)")
///         .contact("Bitte schreiben Sie an hilfe@shop.example, wenn das Problem bleibt.")
/// });
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct Messages {
    pub(super) language: Text,
    pub(super) summary: Text,
    pub(super) advice: Text,
    pub(super) request_label: Text,
    pub(super) time_label: Text,
    pub(super) contact: Option<Text>,
}

impl Messages {
    /// The English messages.
    pub fn english(context: &ErrorContext<'_>) -> Self {
        Self {
            language: Cow::Borrowed("en"),
            summary: Cow::Borrowed(user_summary(context.failure(), context.status())),
            advice: Cow::Borrowed(context.advice().text()),
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

    /// Sets whether it is safe to try again (default: the text of [`ErrorContext::advice`]).
    ///
    /// Claim only what that advice says: it is proven.
    pub fn advice(mut self, sentence: impl Into<Text>) -> Self {
        self.advice = sentence.into();
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
        format!("{} {}", self.summary, self.advice)
    }
}
