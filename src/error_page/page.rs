//! The error page's settings, and how it is written into a response.

use std::fmt;
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
#[derive(Clone, Default)]
#[must_use]
pub struct ErrorPage {
    settings: Arc<Settings>,
}

#[derive(Clone, Default)]
struct Settings {
    messages: Option<Arc<MessageProvider>>,
    template: Option<Arc<Template>>,
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
        self.settings().messages = Some(Arc::new(write));
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
        self.settings().template = Some(Arc::new(write));
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

impl fmt::Debug for ErrorPage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Settings { contact, types, upstream, .. } = &*self.settings;
        f.debug_struct("ErrorPage")
            .field("contact", contact)
            .field("problem_types", types)
            .field("upstream", upstream)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use http::Method;

    use super::*;
    use crate::cause::{BadGatewayCause, Evidence, Replay};

    const HTML: &str = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_795_372_020)
    }

    fn request_with(method: Method, name: &str, value: &str) -> Request<()> {
        Request::builder().method(method).uri("/").header(name, value).body(()).unwrap()
    }

    /// The response to a failure, as text.
    fn response_with_page(page: &ErrorPage, request: &Request<()>, failure: &Failure, id: &str) -> Response<String> {
        let mut response = Response::builder().status(failure.status()).header("proxy-status", "edge; error=x");
        response = response.header("x-request-id", id).header("content-encoding", "gzip").header("content-length", "3");
        let mut response = response.body(()).unwrap();
        let preferences = page.preferences(request);
        let body = page.write(&preferences, failure, &mut response, now());
        response.map(|()| String::from_utf8(body.to_vec()).unwrap())
    }

    fn html(failure: &Failure, id: &str) -> Response<String> {
        response_with_page(&ErrorPage::new(), &request_with(Method::GET, "accept", HTML), failure, id)
    }

    fn refused() -> Failure {
        let failure = Failure::builder(BadGatewayCause::ConnectionRefused).upstream("payments");
        let failure = failure.replay(Replay::NotSent, Evidence::NoConnection);
        failure.peer(std::net::SocketAddr::from(([10, 0, 0, 7], 8080))).build()
    }

    #[test]
    fn a_user_reads_what_happened_whether_to_try_again_when_and_whom_to_contact() {
        let response = html(&refused(), "f00");
        let page = response.body();
        for part in [
            "<!DOCTYPE html>\n<html lang=\"en\" dir=\"auto\">",
            "<title>502 Bad Gateway</title>",
            "<h1>The service could not be reached.</h1>",
            "<p>It is safe to reload this page.</p>",
            "<dt>Request ID</dt><dd>f00</dd>",
            "<time datetime=\"2026-11-22T18:27:00Z\">2026-11-22T18:27:00Z</time>",
            "<p>If the problem continues, contact the site and give the time and the request ID.</p>",
            "<meta name=\"color-scheme\" content=\"light dark\">",
            "prefers-color-scheme:dark",
        ] {
            assert!(page.contains(part), "{part} is not in\n{page}");
        }
        assert!(page.len() < 3000, "{}", page.len());
        for part in
            ["<script", "http", "src=", "href", "@import", "url(", "payments", "10.0.0.7", "refused", "upstream"]
        {
            assert!(!page.contains(part), "{part} is in\n{page}");
        }
        let headers = response.headers();
        assert_eq!(response.status(), 502);
        assert_eq!(headers["content-type"], "text/html; charset=utf-8");
        assert_eq!(headers["content-length"], page.len().to_string());
        assert_eq!(headers["content-language"], "en");
        assert_eq!(headers["cache-control"], "no-store");
        assert_eq!(headers["vary"], "accept");
        assert_eq!(headers["x-content-type-options"], "nosniff");
        assert_eq!(headers["proxy-status"], "edge; error=x");
        assert!(headers["content-security-policy"].to_str().unwrap().starts_with("default-src 'none'; style-src 'sha"));
        assert!(!headers.contains_key("content-encoding"));
    }

    #[test]
    fn every_cause_has_a_page_that_says_what_is_proven_and_no_more() {
        for &cause in BadGatewayCause::ALL {
            for (replay, evidence) in [
                (Replay::NotSent, Evidence::NoConnection),
                (Replay::IdempotentOnly, Evidence::Counted),
                (Replay::Never, Evidence::Inferred),
            ] {
                let failure = Failure::builder(cause).replay(replay, evidence).build();
                let proven = replay == Replay::NotSent;
                for method in [Method::GET, Method::HEAD, Method::POST, Method::PUT] {
                    let advice = failure.advice(&method).text();
                    let response = |accept| {
                        response_with_page(
                            &ErrorPage::new(),
                            &request_with(method.clone(), "accept", accept),
                            &failure,
                            "f00",
                        )
                    };
                    if method == Method::HEAD {
                        assert_eq!(response(HTML).body(), "");
                        continue;
                    }
                    let page = response(HTML).into_body();
                    assert!(page.contains(&format!("</h1>\n<p>{advice}</p>\n<dl>")), "{cause}: {page}");
                    assert!(response("*/*").body().contains(&format!(".\n{advice}\n\nRequest ID")), "{cause}");
                    let json: serde_json::Value = serde_json::from_str(response("application/json").body()).unwrap();
                    assert!(json["detail"].as_str().unwrap().ends_with(&format!(". {advice}")), "{cause}: {json}");
                    assert_eq!(json["retry_safe"], proven || method.is_safe(), "{cause}");
                    assert_eq!(page.contains("was not processed"), proven && !method.is_safe(), "{cause}: {page}");
                }
                let call = request_with(Method::POST, "content-type", "application/grpc");
                let call = response_with_page(&ErrorPage::new(), &call, &failure, "f00");
                let message = call.headers()["grpc-message"].to_str().unwrap();
                assert!(message.ends_with(failure.advice(&Method::POST).text()), "{cause}: {message}");
            }
        }
    }

    #[test]
    fn a_request_id_is_asked_for_only_if_the_response_has_one() {
        let page = ErrorPage::new();
        for accept in [HTML, "*/*"] {
            let mut response = Response::builder().status(502).body(()).unwrap();
            let preferences = page.preferences(&request_with(Method::GET, "accept", accept));
            let body = page.write(&preferences, &refused(), &mut response, now());
            let text = std::str::from_utf8(&body).unwrap();
            assert!(text.contains("contact the site and give the time."), "{text}");
            assert!(!text.to_lowercase().contains("request id"), "{text}");
        }
    }

    #[test]
    fn a_missing_route_is_a_page_not_found_if_its_status_is_404() {
        let page = ErrorPage::new();
        let mut response = Response::builder().status(404).body(()).unwrap();
        let preferences = page.preferences(&request_with(Method::GET, "accept", HTML));
        let body = page.write(&preferences, &Failure::new(BadGatewayCause::NoRoute), &mut response, now());
        let text = std::str::from_utf8(&body).unwrap();
        assert!(text.contains("<h1>Page not found.</h1>\n<p>Reloading will not help"), "{text}");
    }

    #[test]
    fn a_request_id_is_escaped_and_bounded() {
        for id in ["<script>alert(1)</script>", "\"><img onerror=x>", "' onload='x", "&lt;", "a\\\"}"] {
            let page = html(&refused(), id).into_body();
            let shown = page.split("<dt>Request ID</dt><dd>").nth(1).unwrap().split("</dd>").next().unwrap();
            assert!(!shown.contains(['<', '>', '"', '\'']), "{shown}");
            let json = request_with(Method::GET, "accept", "application/json");
            let json = response_with_page(&ErrorPage::new(), &json, &refused(), id).into_body();
            let json: serde_json::Value = serde_json::from_str(&json).unwrap();
            assert_eq!(json["request_id"], id);
        }
        let long = html(&refused(), &"x".repeat(9000)).into_body();
        assert!(long.contains(&format!("<dd>{}\u{2026}</dd>", "x".repeat(MAX_ID))), "{long}");
        assert!(html(&refused(), &"x".repeat(MAX_ID)).body().contains(&format!("<dd>{}</dd>", "x".repeat(MAX_ID))));
        assert!(!html(&refused(), "\u{e9}").body().contains("Request ID<"), "what is no ASCII is not shown");
    }

    #[test]
    fn a_program_reads_a_problem() {
        let request = request_with(Method::POST, "accept", "application/json");
        let response = response_with_page(&ErrorPage::new(), &request, &refused(), "f00");
        assert_eq!(response.headers()["content-type"], "application/problem+json");
        assert!(!response.headers().contains_key("content-security-policy"));
        let json: serde_json::Value = serde_json::from_str(response.body()).unwrap();
        let expected = serde_json::json!({
            "title": "Bad Gateway",
            "status": 502,
            "detail": "The service could not be reached. Your request was not processed. It is safe to try again.",
            "request_id": "f00",
            "time": "2026-11-22T18:27:00Z",
            "retry_safe": true,
        });
        assert_eq!(json, expected);
        let page = ErrorPage::new().problem_types("https://shop.example/problems/").reveal_upstream();
        let json: serde_json::Value =
            serde_json::from_str(response_with_page(&page, &request, &refused(), "f00").body()).unwrap();
        assert_eq!(json["type"], "https://shop.example/problems/connection_refused");
        assert_eq!((&json["upstream"], &json["peer"]), (&"payments".into(), &"10.0.0.7:8080".into()));
        assert_eq!(json["cause"], "connection_refused");
    }

    #[test]
    fn a_terminal_reads_lines() {
        let curl = request_with(Method::GET, "accept", "*/*");
        let response = response_with_page(&ErrorPage::new().contact("Call 5117."), &curl, &refused(), "f00");
        let text = "502 Bad Gateway\n\nThe service could not be reached.\nIt is safe to reload this page.\n\n\
                    Request ID: f00\nTime (UTC): 2026-11-22T18:27:00Z\nCall 5117.\n";
        assert_eq!(response.body(), text);
        let response = response_with_page(&ErrorPage::new().reveal_upstream(), &curl, &refused(), "f00");
        assert!(response.body().contains("cause: connection_refused\nupstream: payments\npeer: 10.0.0.7:8080\n"));
    }

    #[test]
    fn a_head_has_the_fields_of_the_get_and_no_body() {
        let get = html(&refused(), "f00");
        let head =
            response_with_page(&ErrorPage::new(), &request_with(Method::HEAD, "accept", HTML), &refused(), "f00");
        assert_eq!(head.headers(), get.headers());
        assert_eq!(head.body(), "");
    }

    #[test]
    fn a_grpc_call_has_a_status_in_the_head_of_a_200_for_every_cause() {
        for &cause in BadGatewayCause::ALL {
            let call = request_with(Method::POST, "content-type", "application/grpc+proto");
            let response = response_with_page(&ErrorPage::new(), &call, &Failure::new(cause), "f00");
            assert_eq!((response.status().as_u16(), response.body().as_str()), (200, ""), "{cause}");
            let headers = response.headers();
            assert_eq!(headers["content-type"], "application/grpc");
            let code: u8 = headers["grpc-status"].to_str().unwrap().parse().unwrap();
            assert!((1..=16).contains(&code), "{cause}");
            assert!(headers["grpc-message"].to_str().unwrap().ends_with('.'));
            assert_eq!(headers["x-request-id"], "f00");
            for absent in ["content-length", "vary", "content-language", "x-content-type-options"] {
                assert!(!headers.contains_key(absent), "{absent}");
            }
        }
        let call = request_with(Method::POST, "content-type", "application/grpc");
        let response = response_with_page(&ErrorPage::new().reveal_upstream(), &call, &refused(), "f00");
        let message = "The service could not be reached. Your request was not processed. It is safe to try again. \
                       cause=connection_refused upstream=payments peer=10.0.0.7:8080";
        assert_eq!(response.headers()["grpc-status"], "14");
        assert_eq!(response.headers()["grpc-message"], message);
    }

    #[test]
    fn a_status_without_content_gets_none() {
        for status in [101, 204, 205, 304] {
            let mut response = Response::builder().status(status).body(()).unwrap();
            let page = ErrorPage::new();
            let preferences = page.preferences(&request_with(Method::GET, "accept", HTML));
            assert!(page.write(&preferences, &refused(), &mut response, now()).is_empty());
            assert!(response.headers().is_empty(), "{status}");
        }
    }

    #[test]
    fn messages_and_templates_can_be_replaced() {
        let page = ErrorPage::new().contact("Call 5117.").messages(|context| {
            assert_eq!(context.accept_language(), Some("de-CH, en;q=0.5"));
            Messages::english(context).language("de").summary("Der <Dienst> ist gestört.").labels("Anfrage", "Zeit")
        });
        let mut request = request_with(Method::GET, "accept", HTML);
        request.headers_mut().insert("accept-language", HeaderValue::from_static("de-CH, en;q=0.5"));
        let response = response_with_page(&page, &request, &refused(), "f00");
        for part in ["<html lang=\"de\"", "<h1>Der &lt;Dienst&gt; ist gestört.</h1>", "<dt>Anfrage</dt>", "Call 5117."]
        {
            assert!(response.body().contains(part), "{part}");
        }
        assert_eq!(response.headers()["content-language"], "de");
        assert_eq!(response.headers().get_all("vary").iter().collect::<Vec<_>>(), ["accept", "accept-language"]);

        let page = ErrorPage::new()
            .template(|context, messages| format!("{} {}", context.status().as_u16(), messages.summary));
        let response = response_with_page(&page, &request_with(Method::GET, "accept", HTML), &refused(), "f00");
        assert_eq!(response.body(), "502 The service could not be reached.");
        assert!(response.headers()["content-security-policy"].to_str().unwrap().contains("style-src 'unsafe-inline'"));
    }

    #[test]
    fn vary_keeps_its_members_and_gets_each_name_once() {
        let varies = |lines: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append(VARY, HeaderValue::from_static(line));
            }
            vary(&mut headers, ACCEPT);
            let lines = headers.get_all(VARY).iter().map(|line| line.to_str().unwrap().to_owned());
            lines.collect::<Vec<_>>()
        };
        assert_eq!(varies(&[]), ["accept"]);
        assert_eq!(varies(&["origin, accept-language"]), ["origin, accept-language", "accept"]);
        assert_eq!(varies(&["origin", "x, Accept"]), ["origin", "x, Accept"]);
        assert_eq!(varies(&["*"]), ["*"]);
    }
}
