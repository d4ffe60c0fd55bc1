//! Which form of an answer a request wants: `Accept` (RFC 9110 section 12.5.1).

/// A longer field is read as if it were absent.
const MAX_FIELD: usize = 4096;

/// The forms in which an answer can be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Plain,
    Html,
    Problem,
}

/// In the order that decides where a request likes several alike, as one with `*/*` does.
const FORMS: [Form; 3] = [Form::Plain, Form::Html, Form::Problem];

/// How much a request likes a form, and by which of its ranges.
#[derive(Clone, Copy, Default)]
struct Liking {
    /// How closely the range names the form; 0 is not at all.
    close: u8,
    /// In thousandths.
    quality: u16,
    /// How many ranges stood before it.
    place: usize,
}

impl Form {
    /// Reads the field; one that is absent, malformed or too long leaves the choice to us: plain text.
    ///
    /// Each form has the quality of the range that names it most closely. The highest wins; among equals the one that
    /// was named more closely, then the one that was named first. Where nothing is acceptable the answer is plain
    /// text, as an error without a word helps nobody (the same section allows it).
    pub(super) fn of(accept: Option<&[u8]>) -> Self {
        accept.and_then(read).unwrap_or(Self::Plain)
    }

    /// How closely a range names this form.
    fn closeness(self, range: &Range<'_>) -> u8 {
        let (kind, subtype): (&[u8], &[u8]) = match self {
            Self::Plain => (b"text", b"plain"),
            Self::Html => (b"text", b"html"),
            Self::Problem => (b"application", b"problem+json"),
        };
        let is = |one: &[u8], other: &[u8]| one.eq_ignore_ascii_case(other);
        match (range.kind, range.subtype) {
            (b"*", b"*") => 1,
            (named, b"*") if is(named, kind) => 2,
            // who reads any JSON reads a problem
            (named, json) if self == Self::Problem && is(named, kind) && is(json, b"json") => 3,
            (named, also) if is(named, kind) && is(also, subtype) => 4,
            _ => 0,
        }
    }
}

fn read(field: &[u8]) -> Option<Form> {
    if field.len() > MAX_FIELD {
        return None;
    }
    let mut liked = [Liking::default(); FORMS.len()];
    for (place, member) in pieces(field, b',').enumerate() {
        if member.is_empty() {
            continue;
        }
        let range = Range::read(member)?;
        for (form, best) in FORMS.iter().zip(&mut liked) {
            let close = form.closeness(&range);
            if close > best.close || close == best.close && range.quality > best.quality {
                *best = Liking { close, quality: range.quality, place };
            }
        }
    }
    let mut best: Option<(Form, Liking)> = None;
    for (form, liking) in FORMS.into_iter().zip(liked) {
        // any JSON is named as closely as text/html is
        let rank = |liking: &Liking| (liking.quality, liking.close.min(3), usize::MAX - liking.place);
        if liking.close > 0 && liking.quality > 0 && best.is_none_or(|(_, best)| rank(&liking) > rank(&best)) {
            best = Some((form, liking));
        }
    }
    best.map(|(form, _)| form)
}

/// One member of the field; parameters other than the weight do not count, as no form has a variant.
struct Range<'a> {
    kind: &'a [u8],
    subtype: &'a [u8],
    quality: u16,
}

impl<'a> Range<'a> {
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

/// What stands between separators, trimmed; none counts inside a quoted string (RFC 9110 section 5.6.4).
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

    fn form(accept: &str) -> Form {
        Form::of(Some(accept.as_bytes()))
    }

    #[test]
    fn the_field_chooses_the_form() {
        let chrome = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8";
        for (accept, wanted) in [
            (chrome, Form::Html),
            ("text/html", Form::Html),
            ("TEXT/Html", Form::Html),
            ("text/html;charset=utf-8", Form::Html),
            ("text/html ; q=0.5 , text/plain; Q=0.4", Form::Html),
            ("text/html;level=\"a,b;\\\"c\";q=1", Form::Html),
            ("application/json, text/html;q=0.9", Form::Problem),
            ("application/json;q=0.9, text/html", Form::Html),
            ("application/json, text/plain, */*", Form::Problem),
            ("text/plain, application/json", Form::Plain),
            ("application/problem+json", Form::Problem),
            ("Application/JSON", Form::Problem),
            ("application/*", Form::Problem),
            ("application/problem+json;q=0, application/json, text/html;q=0.1", Form::Html),
            ("*/*", Form::Plain),
            ("*/*;q=0.001", Form::Plain),
            ("text/*", Form::Plain),
            ("text/*, text/plain;q=0.2", Form::Html),
            ("text/*;q=0.5, application/*;q=0.6", Form::Problem),
            ("*/*, text/plain;q=0", Form::Html),
            ("*/*;q=0.5, text/html;q=0.5", Form::Html),
            ("text/html;q=0", Form::Plain),
            ("text/html;q=0.000, application/json;q=0.001", Form::Problem),
            ("text/html;q=1.000, application/json;q=0.999", Form::Html),
            ("image/png", Form::Plain),
            ("image/avif,image/webp,*/*;q=0.8", Form::Plain),
            (", ,text/html,,", Form::Html),
            ("text/html;;q=0.3;", Form::Html),
        ] {
            assert_eq!(form(accept), wanted, "{accept}");
        }
        assert_eq!(Form::of(None), Form::Plain);
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
            assert_eq!(form(accept), Form::Plain, "{accept}");
        }
    }

    #[test]
    fn a_huge_field_is_no_field() {
        let ranges = |count: usize| format!("{}text/html", "a/b,".repeat(count));
        assert_eq!(form(&ranges(1021)), Form::Html, "4,093 bytes are read");
        assert_eq!(form(&ranges(1022)), Form::Plain);
        assert_eq!(form(&"\"\\".repeat(2000)), Form::Plain);
    }

    proptest! {
        #[test]
        fn no_field_is_too_strange(accept in proptest::collection::vec(any::<u8>(), 0..200)) {
            Form::of(Some(&accept));
        }

        #[test]
        fn a_form_that_is_refused_is_chosen_only_where_nothing_is_left(
            html in 0_u16..=1000, problem in 0_u16..=1000, plain in 0_u16..=1000,
        ) {
            let quality = |thousandths: u16| format!("{}.{:03}", thousandths / 1000, thousandths % 1000);
            let accept = format!(
                "text/html;q={}, application/json;q={}, text/plain;q={}",
                quality(html), quality(problem), quality(plain)
            );
            let chosen = match form(&accept) {
                Form::Html => html,
                Form::Problem => problem,
                Form::Plain => plain,
            };
            prop_assert_eq!(chosen, html.max(problem).max(plain), "{}", accept);
        }
    }
}
