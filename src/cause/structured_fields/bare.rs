//! Bare items (RFC 9651 sections 4.2.4 to 4.2.10).

use std::borrow::Cow;

use super::{Reader, Value};

impl<'a> Reader<'a> {
    pub(super) fn value(&mut self) -> Option<Value<'a>> {
        match self.rest.bytes().next()? {
            b'-' | b'0'..=b'9' => self.number(),
            b'"' => self.string().map(Value::String),
            b':' => self.byte_sequence().map(Value::Bytes),
            b'?' => self.boolean().map(Value::Boolean),
            b'@' => self.date().map(Value::Date),
            b'%' => self.display_string().map(Value::Display),
            _ => self.token().map(Value::Token),
        }
    }

    pub(super) fn token(&mut self) -> Option<&'a str> {
        if !self.rest.starts_with(|c: char| c.is_ascii_alphabetic() || c == '*') {
            return None;
        }
        Some(self.take(|c| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~:/".contains(c)))
    }

    fn number(&mut self) -> Option<Value<'a>> {
        let sign = if self.eat('-') { -1 } else { 1 };
        let whole = self.take(|c| c.is_ascii_digit());
        if !self.eat('.') {
            let digits = (1..=15).contains(&whole.len());
            return digits.then(|| whole.parse().ok())?.map(|number: i64| Value::Integer(sign * number));
        }
        let fraction = self.take(|c| c.is_ascii_digit());
        let unit = match fraction.len() {
            1 => 100,
            2 => 10,
            3 => 1,
            _ => return None,
        };
        if whole.len() > 12 {
            return None;
        }
        let (whole, fraction): (i64, i64) = (whole.parse().ok()?, fraction.parse().ok()?);
        Some(Value::Decimal(sign * (whole * 1000 + fraction * unit)))
    }

    fn string(&mut self) -> Option<Cow<'a, str>> {
        let mut rest = self.rest.strip_prefix('"')?;
        let mut unescaped = String::new();
        loop {
            let (plain, tail) = rest.split_at(rest.find(|c| !matches!(c, ' ' | '!' | '#'..='[' | ']'..='~'))?);
            match tail.as_bytes() {
                [b'"', ..] => {
                    self.rest = &tail[1..];
                    if unescaped.is_empty() {
                        return Some(Cow::Borrowed(plain));
                    }
                    unescaped.push_str(plain);
                    return Some(Cow::Owned(unescaped));
                }
                [b'\\', escaped @ (b'"' | b'\\'), ..] => {
                    unescaped.push_str(plain);
                    unescaped.push(char::from(*escaped));
                    rest = &tail[2..];
                }
                _ => return None,
            }
        }
    }

    fn byte_sequence(&mut self) -> Option<Vec<u8>> {
        let (encoded, rest) = self.rest.strip_prefix(':')?.split_once(':')?;
        self.rest = rest;
        base64(encoded)
    }

    fn boolean(&mut self) -> Option<bool> {
        self.eat('?').then_some(())?;
        let truth = self.eat('1');
        (truth || self.eat('0')).then_some(truth)
    }

    fn date(&mut self) -> Option<i64> {
        self.eat('@').then_some(())?;
        match self.number()? {
            Value::Integer(seconds) => Some(seconds),
            _ => None,
        }
    }

    fn display_string(&mut self) -> Option<String> {
        let mut rest = self.rest.strip_prefix("%\"")?;
        let mut decoded = Vec::new();
        loop {
            let (plain, tail) = rest.split_at(rest.find(|c| !matches!(c, ' ' | '!' | '#' | '$' | '&'..='~'))?);
            decoded.extend_from_slice(plain.as_bytes());
            match tail.as_bytes() {
                [b'"', ..] => {
                    self.rest = &tail[1..];
                    return String::from_utf8(decoded).ok();
                }
                [b'%', high, low, ..] => {
                    decoded.push(hex_digit(*high)? << 4 | hex_digit(*low)?);
                    rest = &tail[3..];
                }
                _ => return None,
            }
        }
    }
}

/// Lower case only (RFC 9651 section 4.2.10).
fn hex_digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    }
}

/// Missing padding and non-zero trailing bits are accepted, as RFC 9651 section 4.2.7 requires.
fn base64(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim_end_matches('=');
    let padding = text.len() - digits.len();
    let most = match digits.len() % 4 {
        0 => 0,
        2 => 2,
        3 => 1,
        _ => return None,
    };
    if padding > most {
        return None;
    }
    let mut decoded = Vec::with_capacity(digits.len() / 4 * 3 + 2);
    for group in digits.as_bytes().chunks(4) {
        let mut bits = 0;
        for place in 0..4 {
            bits = bits << 6 | group.get(place).map_or(Some(0), |digit| base64_digit(*digit))?;
        }
        decoded.extend_from_slice(&u32::to_be_bytes(bits)[1..group.len()]);
    }
    Some(decoded)
}

fn base64_digit(byte: u8) -> Option<u32> {
    let digit = match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => return None,
    };
    Some(u32::from(digit))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(input: &str) -> Option<Value<'_>> {
        let mut reader = Reader { rest: input };
        let value = reader.value()?;
        reader.rest.is_empty().then_some(value)
    }

    #[test]
    fn integers_have_fifteen_digits_and_decimals_twelve_and_three() {
        assert_eq!(value("-999999999999999"), Some(Value::Integer(-999_999_999_999_999)));
        assert_eq!(value("-999999999999.999"), Some(Value::Decimal(-999_999_999_999_999)));
        assert_eq!(value("007"), Some(Value::Integer(7)));
        assert_eq!(value("0.05"), Some(Value::Decimal(50)));
        for broken in ["-", "--1", "1000000000000000", "1000000000000.0", "1.", ".1", "1.0000", "1.-1", "+1", "1e3"] {
            assert_eq!(value(broken), None, "{broken}");
        }
    }

    #[test]
    fn a_plain_string_is_borrowed_and_an_escaped_one_is_not() {
        assert!(matches!(value("\"it's\""), Some(Value::String(Cow::Borrowed("it's")))));
        assert_eq!(value(r#""\"a\\b\"c""#), Some(Value::String(Cow::Borrowed(r#""a\b"c"#))));
        assert_eq!(value("\"\""), Some(Value::String(Cow::Borrowed(""))));
        for broken in ["\"", "\"a", "\"\\", "\"\\\"", r#""\a""#, "\"\t\"", "\"\u{7f}\""] {
            assert_eq!(value(broken), None, "{broken:?}");
        }
    }

    #[test]
    fn bytes_come_out_of_base64_with_or_without_padding() {
        for (text, bytes) in
            [("", ""), ("YQ==", "a"), ("YQ=", "a"), ("YQ", "a"), ("YWI=", "ab"), ("YWJj", "abc"), ("YWJjZA", "abcd")]
        {
            assert_eq!(value(&format!(":{text}:")), Some(Value::Bytes(bytes.into())), "{text}");
        }
        for broken in ["=", "Y", "Y===", "YQ===", "YWJj=", "YQ==YQ==", "YQ-_", "Y Q=", "YQ=a"] {
            assert_eq!(value(&format!(":{broken}:")), None, "{broken}");
        }
        assert_eq!(value(":YQ=="), None);
    }

    #[test]
    fn booleans_and_dates_are_short() {
        assert_eq!(value("?1"), Some(Value::Boolean(true)));
        assert_eq!(value("?0"), Some(Value::Boolean(false)));
        assert_eq!(value("@-5"), Some(Value::Date(-5)));
        for broken in ["?", "?2", "?10", "@", "@1.5", "@x"] {
            assert_eq!(value(broken), None, "{broken}");
        }
    }

    #[test]
    fn a_display_string_is_utf_8_behind_lower_case_hex() {
        assert_eq!(value("%\"f%c3%bc %22\\\""), Some(Value::Display("f\u{fc} \"\\".into())));
        for broken in
            ["%", "%\"", "%\"a", "%\"%\"", "%\"%C3%BC\"", "%\"%6g\"", "%\"%c3\"", "%\"%ff\"", "%\"\u{fc}\"", "%\"\t\""]
        {
            assert_eq!(value(broken), None, "{broken:?}");
        }
    }
}
