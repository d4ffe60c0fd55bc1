//! The length of a body by the head of its message (RFC 9110 section 8.6).

use http::HeaderValue;
use http::header::{CONTENT_LENGTH, HeaderMap};

/// The combined meaning of a head's `Content-Length` fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Length {
    /// No field, or one number.
    Plain,
    /// The same number several times, in lines or a list: to be sent once (RFC 9112 section 6.3).
    Repeated(HeaderValue),
    /// Not a number, different numbers, or a number out of range.
    Invalid,
}

/// Reads all `Content-Length` fields of a head.
pub(crate) fn content_length(headers: &HeaderMap) -> Length {
    if headers.keys_len() != headers.len() {
        return agreed(headers.get_all(CONTENT_LENGTH).iter());
    }
    // iterating over all names is cheaper than hashing one
    match headers.iter().find(|(name, _)| **name == CONTENT_LENGTH) {
        Some((_, value)) if !is_plain_number(value) => agreed([value].into_iter()),
        _ => Length::Plain,
    }
}

/// Whether a value is a single number that fits into 64 bits.
#[inline]
pub(crate) fn is_plain_number(value: &HeaderValue) -> bool {
    let digits = value.as_bytes();
    // all numbers of 19 digits fit into 64 bits
    matches!(digits.len(), 1..=19) && digits.iter().all(u8::is_ascii_digit)
}

fn agreed<'a>(lines: impl Iterator<Item = &'a HeaderValue>) -> Length {
    let (mut length, mut count) = (None, 0);
    for member in lines.flat_map(|line| line.as_bytes().split(|&byte| byte == b',')) {
        match (number(member.trim_ascii()), length) {
            (Some(number), None) => length = Some(number),
            (Some(number), Some(first)) if number == first => {}
            _ => return Length::Invalid,
        }
        count += 1;
    }
    match length {
        Some(length) if count > 1 => Length::Repeated(length.into()),
        _ => Length::Plain,
    }
}

/// `1*DIGIT`, as long as it is a length that a codec can count.
fn number(digits: &[u8]) -> Option<u64> {
    let add = |number: u64, digit: &u8| {
        digit.is_ascii_digit().then(|| number.checked_mul(10)?.checked_add(u64::from(digit - b'0')))?
    };
    // hyper reserves the two largest numbers
    let number = digits.iter().try_fold(0, add).filter(|&number| number < u64::MAX - 1);
    if digits.is_empty() { None } else { number }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn length(values: &[&str]) -> Length {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(CONTENT_LENGTH, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        content_length(&headers)
    }

    #[test]
    fn lengths_that_agree_become_one() {
        for plain in [&[][..], &["0"], &["3"], &["0003"], &["18446744073709551613"]] {
            assert_eq!(length(plain), Length::Plain, "{plain:?}");
        }
        for repeated in [&["3", "3"][..], &["3, 3"], &["3,3", " 3"], &["3", "03"]] {
            assert_eq!(length(repeated), Length::Repeated(HeaderValue::from_static("3")), "{repeated:?}");
        }
    }

    #[test]
    fn anything_but_a_single_number_is_an_invalid_length() {
        for invalid in [
            &[""][..],
            &["abc"],
            &["+3"],
            &["-3"],
            &["3 3"],
            &["0x3"],
            &["3,"],
            &[",3"],
            &["3, 4"],
            &["3", "4"],
            &["3", "3", "x"],
            &["3", ""],
            &["18446744073709551614"],
            &["18446744073709551616"],
            &["99999999999999999999999"],
            &["\u{663}"],
        ] {
            assert_eq!(length(invalid), Length::Invalid, "{invalid:?}");
        }
    }
}
