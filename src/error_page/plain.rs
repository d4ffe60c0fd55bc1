//! The plain-text error response, for terminals and for clients that accept none of the other media types.

use super::{ErrorContext, Messages};

/// Status, summary, advice and details, one per line.
pub(super) fn plain(
    context: &ErrorContext<'_>,
    messages: &Messages,
    contact: &str,
    rows: &[(&'static str, String)],
) -> String {
    let mut out = String::with_capacity(512);
    line(&mut out, &context.status_line());
    out.push('\n');
    line(&mut out, &messages.summary);
    line(&mut out, &messages.advice);
    out.push('\n');
    if let Some(id) = context.request_id() {
        line(&mut out, &format!("{}: {id}", messages.request_label));
    }
    line(&mut out, &format!("{}: {}", messages.time_label, context.time()));
    for (label, value) in rows {
        line(&mut out, &format!("{label}: {value}"));
    }
    line(&mut out, contact);
    out
}

/// Writes one line; drops control characters.
fn line(out: &mut String, text: &str) {
    out.extend(text.chars().filter(|character| !character.is_control()));
    out.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_stays_on_its_line() {
        let mut out = String::new();
        line(&mut out, "a\r\nset-cookie: b\u{1b}[2J\u{9b}");
        assert_eq!(out, "aset-cookie: b[2J\n");
    }
}
