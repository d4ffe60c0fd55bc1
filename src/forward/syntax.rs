//! Tokens and lists (RFC 9110 section 5.6).

use bytes::Bytes;
use http::HeaderValue;

/// The maximum size in bytes of several lines of one field when joined.
const MAX_JOINED: usize = 8 * 1024;

const TCHAR: [bool; 256] = set(b"!#$%&'*+-.^_`|~");

/// Letters, digits and `others`, as a table.
pub(super) const fn set(others: &[u8]) -> [bool; 256] {
    let mut table = [false; 256];
    let mut byte = 0_u8;
    while byte < 128 {
        table[byte as usize] = byte.is_ascii_alphanumeric();
        byte += 1;
    }
    let mut index = 0;
    while index < others.len() {
        table[others[index] as usize] = true;
        index += 1;
    }
    table
}

/// Whether this is a token (RFC 9110 section 5.6.2).
pub(super) fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty() && token_length(bytes) == bytes.len()
}

/// The length of the token at the start.
pub(super) fn token_length(bytes: &[u8]) -> usize {
    bytes.iter().take_while(|&&byte| TCHAR[usize::from(byte)]).count()
}

/// The members of a list of tokens, without empty ones (RFC 9110 section 5.6.1).
pub(super) fn list(value: &HeaderValue) -> impl Iterator<Item = &[u8]> {
    value.as_bytes().split(|&byte| byte == b',').map(<[u8]>::trim_ascii).filter(|member| !member.is_empty())
}

/// `1*DIGIT` of any length; saturates.
pub(super) fn number(digits: &[u8]) -> Option<u32> {
    let add = |number: u32, digit: &u8| number.saturating_mul(10).saturating_add(u32::from(digit - b'0'));
    (!digits.is_empty() && digits.iter().all(u8::is_ascii_digit)).then(|| digits.iter().fold(0, add))
}

/// Joins several field lines (RFC 9110 section 5.3); `None` if the result is longer than 8 KiB.
pub(super) fn joined<'a>(lines: impl Iterator<Item = &'a [u8]>) -> Option<HeaderValue> {
    let mut all = Vec::new();
    for line in lines.map(<[u8]>::trim_ascii).filter(|line| !line.is_empty()) {
        if !all.is_empty() {
            all.extend_from_slice(b", ");
        }
        if all.len() + line.len() > MAX_JOINED {
            return None;
        }
        all.extend_from_slice(line);
    }
    HeaderValue::from_maybe_shared(Bytes::from(all)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_has_no_separator_and_is_not_empty() {
        assert!(is_token(b"edge-1.example_a~|"));
        for no in [&b""[..], b"a b", b"a,b", b"a/b", b"a:b", b"\"a\"", b"a(b)", b"a\xe9", b"a\x7f"] {
            assert!(!is_token(no), "{no:?}");
        }
    }

    #[test]
    fn empty_members_of_a_list_do_not_count() {
        let value = HeaderValue::from_static(" ,a ,\t, b,,");
        assert_eq!(list(&value).collect::<Vec<_>>(), [b"a", b"b"]);
    }

    #[test]
    fn lines_are_joined_up_to_eight_kilobytes() {
        let lines = [&b"a"[..], b" ", b"\xff, b"];
        assert_eq!(joined(lines.into_iter()).unwrap().as_bytes(), b"a, \xff, b");
        let long = [b'x'; MAX_JOINED];
        assert_eq!(joined([&long[..]].into_iter()).unwrap().len(), MAX_JOINED);
        assert_eq!(joined([&long[..], b"y"].into_iter()), None);
        assert_eq!(joined([&long[..4095], &long[..4095]].into_iter()).unwrap().len(), MAX_JOINED);
        assert_eq!(joined([&long[..4095], &long[..4096]].into_iter()), None);
    }
}
