//! The error page's settings, and how it is written into a response.

use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use http::header::{
    ACCEPT, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_LENGTH, CONTENT_SECURITY_POLICY, CONTENT_TYPE,
    TRANSFER_ENCODING, VARY, X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};

use super::accept::MediaType;
use super::negotiation::{ErrorFormat, LanguageChoice, ResponsePreferences};
use super::rfc3339::rfc3339;
use super::{ErrorContext, Messages, grpc, html, json, plain};
use crate::cause::Failure;
use crate::opaque::Opaque;

type MessageProvider = dyn Fn(&ErrorContext<'_>) -> Messages + Send + Sync;
type Template = dyn Fn(&ErrorContext<'_>, &Messages) -> String + Send + Sync;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The maximum length of a shown request id: the client may have chosen it.
const MAX_ID: usize = 128;

const CONTACT: &str = "If the problem continues, contact the site and give the time and the request ID.";

/// The contact of a page without a request id.
const CONTACT_WITHOUT_ID: &str = "If the problem continues, contact the site and give the time.";

/// The settings of an error page.
///
/// | setting | default |
/// |---|---|
/// | [`messages`](Self::messages) | English, by cause |
/// | [`contact`](Self::contact) | asks to contact the site and give the time and, if the response has one, the request id |
/// | [`reveal_upstream`](Self::reveal_upstream) | off: no cause, upstream or address is named |
/// | [`problem_types`](Self::problem_types) | `about:blank` |
/// | [`template`](Self::template) | a page of less than 3 KB |
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct ErrorPage {
    settings: Arc<Settings>,
}

#[derive(Clone, Debug, Default)]
struct Settings {
    messages: Option<Opaque<Arc<MessageProvider>>>,
    template: Option<Opaque<Arc<Template>>>,
    contact: Option<Arc<str>>,
    types: Option<Arc<str>>,
    upstream: Upstream,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Upstream {
    #[default]
    Hidden,
    Revealed,
}

/// The content of a response, with the fields that describe it.
struct Content {
    kind: &'static str,
    text: String,
    language: Option<HeaderValue>,
    policy: Option<&'static str>,
}

impl ErrorPage {
    /// The defaults of the table.
    pub fn new() -> Self {
        Self::default()
    }

    fn settings(&mut self) -> &mut Settings {
        Arc::make_mut(&mut self.settings)
    }

    /// Sets the messages, for other wording or languages (default: [`Messages::english`]).
    ///
    /// Each request's `Accept-Language` is then kept, which costs an allocation.
    pub fn messages(mut self, write: impl Fn(&ErrorContext<'_>) -> Messages + Send + Sync + 'static) -> Self {
        self.settings().messages = Some(Opaque(Arc::new(write)));
        self
    }

    /// Sets the contact, as a whole sentence (default: see the table).
    pub fn contact(mut self, sentence: impl Into<String>) -> Self {
        self.settings().contact = Some(sentence.into().into());
        self
    }

    /// Shows cause, upstream and peer in every media type (default: none of them).
    ///
    /// For internal clients only: it reveals the structure of the deployment.
    pub fn reveal_upstream(mut self) -> Self {
        self.settings().upstream = Upstream::Revealed;
        self
    }

    /// Sets a problem's `type` to this URI followed by the cause (default: `about:blank`).
    pub fn problem_types(mut self, base: impl Into<String>) -> Self {
        self.settings().types = Some(base.into().into());
        self
    }

    /// Sets a function that writes the whole HTML page (default: the crate's own).
    ///
    /// The function has to escape what it takes from the context: the client may have chosen the request id. The policy
    /// of such a page allows inline styles and pictures in `data:`, and nothing else.
    ///
    /// ```
    /// use tower_upstream::error_page::ErrorPage;
    ///
    /// let page = ErrorPage::new().template(|context, _| format!("<!DOCTYPE html><title>{}</title>", context.status()));
    /// ```
    pub fn template(mut self, write: impl Fn(&ErrorContext<'_>, &Messages) -> String + Send + Sync + 'static) -> Self {
        self.settings().template = Some(Opaque(Arc::new(write)));
        self
    }

    /// Collects the preferences of a request: two lookups and a reference count.
    #[inline]
    pub(crate) fn preferences<B>(&self, request: &Request<B>) -> ResponsePreferences {
        self.preferences_with(request, request.headers().get(ACCEPT))
    }

    /// The same, if the caller has looked up `Accept` already.
    #[inline]
    pub(crate) fn preferences_with<B>(
        &self,
        request: &Request<B>,
        accept: Option<&HeaderValue>,
    ) -> ResponsePreferences {
        let languages = if self.settings.messages.is_some() { LanguageChoice::Several } else { LanguageChoice::One };
        ResponsePreferences::of(request.method(), request.headers(), accept, languages)
    }

    /// Rewrites the head for the error page and returns its body.
    ///
    /// The status is kept, except for gRPC, where it is 200 and `grpc-status` has the code; so are `Retry-After`,
    /// `Proxy-Status` and `x-request-id`. A status without content keeps its head. `now` is the time of day.
    pub(crate) fn write<T>(
        &self,
        preferences: &ResponsePreferences,
        failure: &Failure,
        response: &mut Response<T>,
        now: SystemTime,
    ) -> Bytes {
        let status = response.status();
        if has_no_content(status) {
            return Bytes::new();
        }
        let body = self.compose(preferences, failure, status, response.headers_mut(), now);
        if !matches!(preferences.protocol, ErrorFormat::Http | ErrorFormat::Head) {
            *response.status_mut() = StatusCode::OK;
        }
        body
    }

    fn compose(
        &self,
        preferences: &ResponsePreferences,
        failure: &Failure,
        status: StatusCode,
        headers: &mut HeaderMap,
        now: SystemTime,
    ) -> Bytes {
        let id = headers.get(REQUEST_ID).and_then(|id| id.to_str().ok()).map(shortened);
        let context = ErrorContext {
            failure,
            status,
            request_id: id.as_deref(),
            time: &rfc3339(now),
            accept_language: preferences.language.as_ref().and_then(|language| language.to_str().ok()),
            safe: preferences.safe,
        };
        let messages =
            self.settings.messages.as_ref().map_or_else(|| Messages::english(&context), |write| write(&context));
        // fields that described the replaced content
        for stale in [CONTENT_ENCODING, CONTENT_LENGTH, TRANSFER_ENCODING] {
            headers.remove(stale);
        }
        let body = match preferences.protocol {
            ErrorFormat::Http | ErrorFormat::Head => {
                let form = MediaType::of(preferences.accept.as_ref().map(HeaderValue::as_bytes));
                self.content(form, &context, &messages).put(headers)
            }
            protocol => grpc::write(headers, protocol, failure, &self.message(&context, &messages)),
        };
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if preferences.protocol == ErrorFormat::Grpc {
            return body;
        }
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.insert(CONTENT_LENGTH, body.len().into());
        if matches!(preferences.protocol, ErrorFormat::Http | ErrorFormat::Head) {
            vary(headers, ACCEPT);
            if self.settings.messages.is_some() {
                vary(headers, http::header::ACCEPT_LANGUAGE);
            }
        }
        if preferences.protocol == ErrorFormat::Head { Bytes::new() } else { body }
    }

    fn content(&self, form: MediaType, context: &ErrorContext<'_>, messages: &Messages) -> Content {
        let Settings { template, contact, types, .. } = &*self.settings;
        let default = if context.request_id().is_some() { CONTACT } else { CONTACT_WITHOUT_ID };
        let contact = messages.contact.as_deref().or(contact.as_deref()).unwrap_or(default);
        let revealed = self.revealed(context);
        let (kind, text, policy) = match (form, template) {
            (MediaType::Plain, _) => {
                ("text/plain; charset=utf-8", plain::plain(context, messages, contact, &revealed), None)
            }
            (MediaType::Problem, _) => {
                ("application/problem+json", json::problem(context, messages, types.as_deref(), &revealed), None)
            }
            (MediaType::Html, None) => {
                let page = html::html(context, messages, contact, &revealed);
                ("text/html; charset=utf-8", page, Some(html::POLICY))
            }
            (MediaType::Html, Some(write)) => {
                ("text/html; charset=utf-8", write(context, messages), Some(html::OWN_POLICY))
            }
        };
        Content { kind, text, policy, language: HeaderValue::from_str(&messages.language).ok() }
    }

    fn revealed(&self, context: &ErrorContext<'_>) -> Vec<(&'static str, String)> {
        match self.settings.upstream {
            Upstream::Hidden => Vec::new(),
            Upstream::Revealed => context.revealed().collect(),
        }
    }

    /// The single-line message for gRPC.
    fn message(&self, context: &ErrorContext<'_>, messages: &Messages) -> String {
        let revealed = self.revealed(context);
        let rows = revealed.iter().map(|(name, value)| format!(" {name}={value}"));
        messages.detail() + &rows.collect::<String>()
    }
}

impl Content {
    fn put(self, headers: &mut HeaderMap) -> Bytes {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(self.kind));
        if let Some(language) = self.language {
            headers.insert(CONTENT_LANGUAGE, language);
        }
        if let Some(policy) = self.policy {
            headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy));
        }
        self.text.into()
    }
}

/// RFC 9110 section 6.4.1 (RFC 9110 section 15.3.6 for 205).
fn has_no_content(status: StatusCode) -> bool {
    status.is_informational() || matches!(status.as_u16(), 204 | 205 | 304)
}

fn shortened(id: &str) -> String {
    match id.get(..MAX_ID) {
        Some(start) if id.len() > MAX_ID => format!("{start}\u{2026}"),
        _ => id.to_owned(),
    }
}

/// Adds a field name to `Vary`, unless present.
fn vary(headers: &mut HeaderMap, field: HeaderName) {
    let lines = headers.get_all(VARY).iter().filter_map(|line| line.to_str().ok());
    let mut named = lines.flat_map(|line| line.split(',')).map(str::trim);
    if !named.any(|name| name == "*" || name.eq_ignore_ascii_case(field.as_str())) {
        let _ = headers.try_append(VARY, field.into());
    }
}

#[cfg(test)]
mod tests;
