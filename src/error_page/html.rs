//! The HTML error page: no scripts, no external resources, light and dark.

use super::{ErrorContext, Messages};

/// System fonts and two palettes; every text has a contrast of 6:1 or more.
const STYLE: &str = "\
:root{color-scheme:light dark}\
body{margin:0;padding:12vh 1.5rem 3rem;background:#fff;color:#1b1f24;font:1.0625rem/1.6 system-ui,sans-serif}\
main{max-width:36rem;margin:auto}\
h1{font-size:1.6rem;line-height:1.25;margin:0 0 1rem}\
dl{margin:2rem 0;padding:1rem 0;border:solid #8c959f;border-width:1px 0;font-size:.9375rem}\
dt{color:#57606a}dd{margin:0 0 .5rem;overflow-wrap:anywhere;font-family:ui-monospace,monospace}\
@media(prefers-color-scheme:dark){body{background:#14171a;color:#e8eaed}dt{color:#a8b1bb}}";

/// The content security policy: only this style sheet, by its hash.
pub(super) const POLICY: &str = "default-src 'none'; style-src 'sha256-0yggin+tgA8K7c7t6nkCZSOLtxwaNvEUonz1235VqiQ='; \
     base-uri 'none'; form-action 'none'; frame-ancestors 'self'";

/// The policy for a page of the deployment's own template: inline styles and embedded pictures.
pub(super) const OWN_POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; \
     base-uri 'none'; form-action 'none'; frame-ancestors 'self'";

/// The whole page; `rows` are additional entries of the list.
pub(super) fn html(
    context: &ErrorContext<'_>,
    messages: &Messages,
    contact: &str,
    rows: &[(&'static str, String)],
) -> String {
    let mut page = HtmlPage(String::with_capacity(2048));
    page.raw("<!DOCTYPE html>\n<html lang=\"").text(&messages.language);
    page.raw("\" dir=\"auto\">\n<head>\n<meta charset=\"utf-8\">\n");
    page.raw("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n");
    page.raw("<meta name=\"color-scheme\" content=\"light dark\">\n<meta name=\"robots\" content=\"noindex\">\n");
    page.raw("<title>").text(&context.status_line()).raw("</title>\n");
    page.raw("<style>").raw(STYLE).raw("</style>\n</head>\n<body>\n<main>\n");
    page.raw("<h1>").text(&messages.summary).raw("</h1>\n");
    page.raw("<p>").text(&messages.advice).raw("</p>\n");
    page.raw("<dl>\n");
    if let Some(id) = context.request_id() {
        page.raw("<dt>").text(&messages.request_label).raw("</dt><dd>").text(id).raw("</dd>\n");
    }
    page.raw("<dt>").text(&messages.time_label).raw("</dt><dd><time datetime=\"").text(context.time()).raw("\">");
    page.text(context.time()).raw("</time></dd>\n");
    for (label, value) in rows {
        page.raw("<dt>").text(label).raw("</dt><dd>").text(value).raw("</dd>\n");
    }
    page.raw("</dl>\n<p>").text(contact).raw("</p>\n</main>\n</body>\n</html>\n");
    page.0
}

struct HtmlPage(String);

impl HtmlPage {
    fn raw(&mut self, markup: &str) -> &mut Self {
        self.0.push_str(markup);
        self
    }

    fn text(&mut self, text: &str) -> &mut Self {
        escape(&mut self.0, text);
        self
    }
}

/// Escapes text for elements and quoted attributes; drops control characters.
fn escape(out: &mut String, text: &str) {
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            control if control.is_control() => {}
            plain => out.push(plain),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn escaped(text: &str) -> String {
        let mut out = String::new();
        escape(&mut out, text);
        out
    }

    fn unescaped(text: &str) -> String {
        let pairs = [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&#39;", "'"), ("&amp;", "&")];
        pairs.iter().fold(text.to_owned(), |text, (entity, character)| text.replace(entity, character))
    }

    #[test]
    fn markup_is_text() {
        assert_eq!(
            escaped("<a href='x' t=\"&amp;\">\u{0}\u{7f}\n"),
            "&lt;a href=&#39;x&#39; t=&quot;&amp;amp;&quot;&gt;"
        );
    }

    #[cfg(feature = "rustls")]
    #[test]
    fn the_policy_names_the_style_sheet() {
        let suite = rustls::crypto::ring::cipher_suite::TLS13_AES_128_GCM_SHA256;
        let hash = suite.tls13().unwrap().common.hash_provider.hash(STYLE.as_bytes());
        let hash = super::super::grpc::base64(hash.as_ref());
        assert!(POLICY.contains(&format!("style-src 'sha256-{hash}';")), "{hash}");
    }

    proptest! {
        #[test]
        fn no_special_character_survives_and_nothing_else_is_lost(text in any::<String>()) {
            let out = escaped(&text);
            prop_assert!(!out.contains(['<', '>', '"', '\'']));
            prop_assert!(!out.contains(char::is_control));
            for (at, _) in out.match_indices('&') {
                let entity = ["&amp;", "&lt;", "&gt;", "&quot;", "&#39;"].iter().any(|entity| out[at..].starts_with(entity));
                prop_assert!(entity, "{}", out);
            }
            let kept: String = text.chars().filter(|character| !character.is_control()).collect();
            prop_assert_eq!(unescaped(&out), kept);
        }
    }
}
