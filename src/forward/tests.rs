//! Helpers of the tests.

use http::{HeaderMap, HeaderName, HeaderValue, Request, request};

/// A head with these fields, obs-text included.
pub(in crate::forward) fn head(method: &str, target: &str, fields: &[(&str, &str)]) -> request::Parts {
    let request = Request::builder().method(method).uri(target);
    let (mut parts, ()) = request.body(()).unwrap().into_parts();
    for (name, value) in fields {
        parts.headers.append(HeaderName::try_from(*name).unwrap(), HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }
    parts
}

/// The names in a head, sorted.
pub(in crate::forward) fn names(headers: &HeaderMap) -> Vec<String> {
    let mut names: Vec<String> = headers.keys().map(ToString::to_string).collect();
    names.sort_unstable();
    names
}

/// The lines of a head, sorted.
pub(in crate::forward) fn lines(headers: &HeaderMap) -> Vec<String> {
    let mut lines: Vec<String> =
        headers.iter().map(|(name, value)| format!("{name}: {}", String::from_utf8_lossy(value.as_bytes()))).collect();
    lines.sort_unstable();
    lines
}
