//! Content negotiation: which media type a request prefers, by `Accept` (RFC 9110 section 12.5.1).

/// A longer field is ignored.
const MAX_FIELD: usize = 4096;

/// The media types in which an error can be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MediaType {
    Plain,
    Html,
    Problem,
}

/// The media types, in order of preference if a request prefers none of them (`*/*`).
const MEDIA_TYPES: [MediaType; 3] = [MediaType::Plain, MediaType::Html, MediaType::Problem];

/// How much a request prefers a media type, and by which range.
#[derive(Clone, Copy, Default)]
struct Preference {
    /// The specificity of the range for this media type; 0 if it does not match.
    specificity: u8,
    /// In thousandths.
    quality: u16,
    /// The number of ranges before it.
    position: usize,
}

impl MediaType {
    /// Reads the field. If it is absent, malformed or too long, the result is plain text.
    ///
    /// Each media type has the quality of the most specific range that matches it. The highest quality wins; among equals the more
    /// specific range, then the earlier one. If nothing is acceptable the result is plain text, because an error without a
    /// message helps no one (the same section allows it).
    pub(super) fn of(accept: Option<&[u8]>) -> Self {
        accept.and_then(read).unwrap_or(Self::Plain)
    }

    /// The specificity of a range for this media type.
    fn specificity(self, range: &MediaRange<'_>) -> u8 {
        let (kind, subtype): (&[u8], &[u8]) = match self {
            Self::Plain => (b"text", b"plain"),
            Self::Html => (b"text", b"html"),
            Self::Problem => (b"application", b"problem+json"),
        };
        let is = |one: &[u8], other: &[u8]| one.eq_ignore_ascii_case(other);
        match (range.kind, range.subtype) {
            (b"*", b"*") => 1,
            (named, b"*") if is(named, kind) => 2,
            // a client that accepts JSON can read a problem
            (named, json) if self == Self::Problem && is(named, kind) && is(json, b"json") => 3,
            (named, also) if is(named, kind) && is(also, subtype) => 4,
            _ => 0,
        }
    }
}

fn read(field: &[u8]) -> Option<MediaType> {
    if field.len() > MAX_FIELD {
        return None;
    }
    let mut preferences = [Preference::default(); MEDIA_TYPES.len()];
    for (position, member) in pieces(field, b',').enumerate() {
        if member.is_empty() {
            continue;
        }
        let range = MediaRange::read(member)?;
        for (media_type, best) in MEDIA_TYPES.iter().zip(&mut preferences) {
            let specificity = media_type.specificity(&range);
            if specificity > best.specificity || specificity == best.specificity && range.quality > best.quality {
                *best = Preference { specificity, quality: range.quality, position };
            }
        }
    }
    let mut best: Option<(MediaType, Preference)> = None;
    for (media_type, preference) in MEDIA_TYPES.into_iter().zip(preferences) {
        // `application/json` is as specific as `text/html`
        let rank = |preference: &Preference| {
            (preference.quality, preference.specificity.min(3), usize::MAX - preference.position)
        };
        if preference.specificity > 0
            && preference.quality > 0
            && best.is_none_or(|(_, best)| rank(&preference) > rank(&best))
        {
            best = Some((media_type, preference));
        }
    }
    best.map(|(media_type, _)| media_type)
}

/// One member of the field; parameters other than the weight are ignored.
struct MediaRange<'a> {
    kind: &'a [u8],
    subtype: &'a [u8],
    quality: u16,
}

impl<'a> MediaRange<'a> {
    fn read(member: &'a [u8]) -> Option<Self> {
        let mut parts = pieces(member, b';');
        let name = parts.next()?;
        let slash = name.iter().position(|&byte| byte == b'/')?;
        let (kind, subtype) = (&name[..slash], &name[slash + 1..]);
        if !is_token(kind) || !is_token(subtype) || kind == b"*" && subtype != b"*" {
            return None;
        }
        let mut quality = None;
        for parameter in parts.filter(|parameter| !parameter.is_empty()) {
            let equals = parameter.iter().position(|&byte| byte == b'=')?;
            let (name, value) = (&parameter[..equals], &parameter[equals + 1..]);
            if name.eq_ignore_ascii_case(b"q") && quality.is_none() {
                quality = Some(weight(value)?);
            } else if !is_token(name) || !is_token(value) && !is_quoted(value) {
                return None;
            }
        }
        Some(Self { kind, subtype, quality: quality.unwrap_or(1000) })
    }
}

/// A `qvalue` in thousandths (RFC 9110 section 12.4.2).
fn weight(value: &[u8]) -> Option<u16> {
    let (&whole, rest) = value.split_first()?;
    let digits = match rest {
        [] => rest,
        [b'.', digits @ ..] if digits.len() <= 3 && digits.iter().all(u8::is_ascii_digit) => digits,
        _ => return None,
    };
    let part = digits.iter().zip([100, 10, 1]).map(|(digit, worth)| u16::from(digit - b'0') * worth).sum();
    match (whole, part) {
        (b'0', part) => Some(part),
        (b'1', 0) => Some(1000),
        _ => None,
    }
}

/// Splits at separators outside of quoted strings and trims (RFC 9110 section 5.6.4).
fn pieces(field: &[u8], separator: u8) -> impl Iterator<Item = &[u8]> {
    let (mut quoted, mut escaped) = (false, false);
    let separates = move |&byte: &u8| {
        let separates = byte == separator && !quoted;
        if byte == b'"' && !escaped {
            quoted = !quoted;
        }
        escaped = quoted && byte == b'\\' && !escaped;
        separates
    };
    field.split(separates).map(<[u8]>::trim_ascii)
}

fn is_token(bytes: &[u8]) -> bool {
    let is_tchar = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    !bytes.is_empty() && bytes.iter().all(is_tchar)
}

fn is_quoted(value: &[u8]) -> bool {
    value.len() >= 2 && value.starts_with(b"\"") && value.ends_with(b"\"")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn media_type(accept: &str) -> MediaType {
        MediaType::of(Some(accept.as_bytes()))
    }

    #[test]
    fn the_field_chooses_the_media_type() {
        let chrome = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8";
        for (accept, wanted) in [
            (chrome, MediaType::Html),
            ("text/html", MediaType::Html),
            ("TEXT/Html", MediaType::Html),
            ("text/html;charset=utf-8", MediaType::Html),
            ("text/html ; q=0.5 , text/plain; Q=0.4", MediaType::Html),
            ("text/html;level=\"a,b;\\\"c\";q=1", MediaType::Html),
            ("application/json, text/html;q=0.9", MediaType::Problem),
            ("application/json;q=0.9, text/html", MediaType::Html),
            ("application/json, text/plain, */*", MediaType::Problem),
            ("text/plain, application/json", MediaType::Plain),
            ("application/problem+json", MediaType::Problem),
            ("Application/JSON", MediaType::Problem),
            ("application/*", MediaType::Problem),
            ("application/problem+json;q=0, application/json, text/html;q=0.1", MediaType::Html),
            ("*/*", MediaType::Plain),
            ("*/*;q=0.001", MediaType::Plain),
            ("text/*", MediaType::Plain),
            ("text/*, text/plain;q=0.2", MediaType::Html),
            ("text/*;q=0.5, application/*;q=0.6", MediaType::Problem),
            ("*/*, text/plain;q=0", MediaType::Html),
            ("*/*;q=0.5, text/html;q=0.5", MediaType::Html),
            ("text/html;q=0", MediaType::Plain),
            ("text/html;q=0.000, application/json;q=0.001", MediaType::Problem),
            ("text/html;q=1.000, application/json;q=0.999", MediaType::Html),
            ("image/png", MediaType::Plain),
            ("image/avif,image/webp,*/*;q=0.8", MediaType::Plain),
            (", ,text/html,,", MediaType::Html),
            ("text/html;;q=0.3;", MediaType::Html),
        ] {
            assert_eq!(media_type(accept), wanted, "{accept}");
        }
        assert_eq!(MediaType::of(None), MediaType::Plain);
    }

    #[test]
    fn a_malformed_field_is_no_field() {
        for accept in [
            "",
            "html",
            "text/",
            "/html",
            "*/html",
            "text/html;q=2",
            "text/html;q=1.001",
            "text/html;q=0.1234",
            "text/html;q=.5",
            "text/html;q=-0",
            "text/html;q=",
            "text/html;q",
            "text/html;q=0.5;q=0.6;a",
            "text/html;a=b c",
            "text/html;a=\"b",
            "text html",
            "text/html, *; q=.2, */*; q=.2",
            "text/html;=x",
            "text/html\u{e9}",
        ] {
            assert_eq!(media_type(accept), MediaType::Plain, "{accept}");
        }
    }

    #[test]
    fn a_huge_field_is_no_field() {
        let ranges = |count: usize| format!("{}text/html", "a/b,".repeat(count));
        assert_eq!(media_type(&ranges(1021)), MediaType::Html, "4,093 bytes are read");
        assert_eq!(media_type(&ranges(1022)), MediaType::Plain);
        assert_eq!(media_type(&"\"\\".repeat(2000)), MediaType::Plain);
    }

    proptest! {
        #[test]
        fn no_field_is_too_strange(accept in proptest::collection::vec(any::<u8>(), 0..200)) {
            MediaType::of(Some(&accept));
        }

        #[test]
        fn a_refused_media_type_is_chosen_only_if_nothing_else_is_left(
            html in 0_u16..=1000, problem in 0_u16..=1000, plain in 0_u16..=1000,
        ) {
            let quality = |thousandths: u16| format!("{}.{:03}", thousandths / 1000, thousandths % 1000);
            let accept = format!(
                "text/html;q={}, application/json;q={}, text/plain;q={}",
                quality(html), quality(problem), quality(plain)
            );
            let chosen = match media_type(&accept) {
                MediaType::Html => html,
                MediaType::Problem => problem,
                MediaType::Plain => plain,
            };
            prop_assert_eq!(chosen, html.max(problem).max(plain), "{}", accept);
        }
    }
}
