//! The JSON error response: a problem (RFC 9457).

use std::fmt::Write as _;

use super::{ErrorContext, Messages};

/// The members `type` (without it the problem is `about:blank`), `title`, `status`, `detail`, `request_id`, `time`,
/// `retry_safe`, and the revealed details.
pub(super) fn problem(
    context: &ErrorContext<'_>,
    messages: &Messages,
    base: Option<&str>,
    revealed: &[(&'static str, String)],
) -> String {
    let mut out = String::with_capacity(512);
    out.push('{');
    if let Some(base) = base {
        member(&mut out, "type", &format!("{base}{}", context.cause()));
    }
    if let Some(title) = context.status().canonical_reason() {
        member(&mut out, "title", title);
    }
    member(&mut out, "detail", &messages.detail());
    if let Some(id) = context.request_id() {
        member(&mut out, "request_id", id);
    }
    member(&mut out, "time", context.time());
    for (name, value) in revealed {
        member(&mut out, name, value);
    }
    let _ = write!(out, "\"status\":{},\"retry_safe\":{}}}", context.status().as_u16(), context.retry_safe());
    out
}

fn member(out: &mut String, name: &str, value: &str) {
    string(out, name);
    out.push(':');
    string(out, value);
    out.push(',');
}

/// A string (RFC 8259 section 7); drops control characters and escapes markup.
fn string(out: &mut String, text: &str) {
    out.push('"');
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '<' => out.push_str("\\u003c"),
            control if control.is_control() => {}
            plain => out.push(plain),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_json_parser_reads_the_text_again(text in any::<String>()) {
            let mut out = String::new();
            string(&mut out, &text);
            let kept: String = text.chars().filter(|character| !character.is_control()).collect();
            prop_assert_eq!(serde_json::from_str::<String>(&out).unwrap(), kept);
            prop_assert!(!out.contains('<'));
        }
    }
}
