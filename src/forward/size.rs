//! The size of a head, and its maximum size when encoded for HTTP/2.
//!
//! A head that is too large for an HTTP/2 server may close the whole connection, including the streams of others.

use http::{HeaderMap, HeaderName, HeaderValue, Uri};

/// The overhead of a field in addition to name and value (RFC 9113 section 6.5.2).
const FIELD_OVERHEAD: usize = 32;
/// Up to this size a head fits into six frames of 16 KiB even at the worst compression; h2's servers accept no more.
const HARMLESS: usize = 16 << 10;
/// The maximum encoded size of a larger head.
const MAX_ENCODED: usize = 64 << 10;

/// The size of a field section as HTTP/2 counts it: names, values, and 32 for each field.
pub(crate) fn field_section_size(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| field_size(name, value)).sum()
}

/// The size of one field line in it.
#[inline]
pub(super) fn field_size(name: &HeaderName, value: &HeaderValue) -> usize {
    name.as_str().len() + value.len() + FIELD_OVERHEAD
}

/// The length of a request target, without a scheme.
pub(crate) fn target_size(uri: &Uri) -> usize {
    let authority = uri.authority().map_or(0, |authority| authority.as_str().len());
    authority + uri.path_and_query().map_or(0, |path| path.as_str().len())
}

/// Whether a request head of this size, at most `limit`, stays small enough when encoded.
pub(crate) fn encodes_well(uri: &Uri, headers: &HeaderMap, size: usize, limit: usize) -> bool {
    size <= HARMLESS || encoded(uri, headers) <= MAX_ENCODED.max(limit)
}

/// An upper bound of a request head in HPACK, whose Huffman code takes up to 30 bits for a rare byte (RFC
/// 7541 appendix B); h2 uses it for all strings.
fn encoded(uri: &Uri, headers: &HeaderMap) -> usize {
    // a string starts with its length, a field with its representation
    let fields = headers.iter().map(|(name, value)| bits(name.as_str().as_bytes()) + bits(value.as_bytes()) + 9 * 8);
    let path = uri.path_and_query().map_or(0, |path| bits(path.as_str().as_bytes()));
    (fields.sum::<usize>() + path) / 8
}

fn bits(bytes: &[u8]) -> usize {
    let most = |byte: &u8| match byte {
        b' ' | b'%' | b'&' | b'*' | b',' | b'-' | b'.' | b'/' | b':' | b';' | b'=' | b'_' => 8,
        byte if byte.is_ascii_alphanumeric() => 8,
        b'\\' => 19,
        b' '..=b'~' => 15,
        _ => 30,
    };
    bytes.iter().map(most).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forward::tests::head;

    fn fits(path: &str, value: &str) -> bool {
        let parts = head("GET", &format!("/{path}"), &[("x-a", value)]);
        let size = target_size(&parts.uri) + field_section_size(&parts.headers);
        encodes_well(&parts.uri, &parts.headers, size, 1)
    }

    #[test]
    fn a_head_that_compresses_badly_counts_with_its_encoded_size() {
        assert!(fits("", &"a".repeat(60_000)));
        assert!(fits("", &"~".repeat(30_000)));
        assert!(fits("", &"\u{ff}".repeat(8_000)));
        for rare in ["\u{ff}".repeat(15_000), "\\".repeat(40_000), "~".repeat(40_000)] {
            assert!(!fits("", &rare), "{rare:.4}");
        }
        assert!(fits(&"a".repeat(60_000), ""));
        assert!(!fits(&"|".repeat(40_000), ""));
    }

    #[test]
    fn a_larger_limit_lets_a_larger_head_pass() {
        let parts = head("GET", "/", &[("x-a", &"a".repeat(200_000))]);
        let size = field_section_size(&parts.headers);
        assert_eq!(size, 3 + 200_000 + 32);
        assert!(!encodes_well(&parts.uri, &parts.headers, size, 60 << 10));
        assert!(encodes_well(&parts.uri, &parts.headers, size, 1 << 20));
    }
}
