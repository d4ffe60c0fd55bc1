//! Structured fields (RFC 9651): a List of Items with Parameters, read strictly.
//!
//! A syntax error anywhere makes the whole field unreadable (RFC 9651 section 4.2), and so does a
//! field beyond these bounds. No recursion, no quadratic search; plain tokens and strings are borrowed.
//!
//! | bound | value | |
//! |---|---|---|
//! | [`MAX_BYTES`] | 16 KiB | all lines together |
//! | [`MAX_MEMBERS`] | 1024 | the number every parser has to support (RFC 9651 section 3.1) |

mod bare;
#[cfg(test)]
mod oracle;
#[cfg(test)]
mod vectors;

use std::borrow::Cow;
use std::mem;

/// The maximum size of a field in bytes, all its lines together.
pub(super) const MAX_BYTES: usize = 16 * 1024;

/// The maximum number of members of one List.
pub(super) const MAX_MEMBERS: usize = 1024;

/// A bare item (RFC 9651 section 3.3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value<'a> {
    Token(&'a str),
    String(Cow<'a, str>),
    Integer(i64),
    /// In thousandths, which is exact: a decimal has at most three digits after the point.
    Decimal(i64),
    Bytes(Vec<u8>),
    Boolean(bool),
    /// Seconds since 1970.
    Date(i64),
    Display(String),
}

/// Parameters without duplicates: each key at its first position, with its last value (RFC 9651 section 4.2.3.2).
pub(super) type Parameters<'a> = Vec<(&'a str, Value<'a>)>;

/// A bare item with its parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Item<'a> {
    pub(super) value: Value<'a>,
    pub(super) parameters: Parameters<'a>,
}

/// One member of a List.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Entry<'a> {
    Item(Item<'a>),
    InnerList(Vec<Item<'a>>, Parameters<'a>),
}

/// A field's lines as one value (RFC 9110 section 5.3), `None` beyond [`MAX_BYTES`].
pub(super) fn joined<'a>(mut lines: impl Iterator<Item = &'a [u8]>) -> Option<Cow<'a, [u8]>> {
    let first = lines.next().unwrap_or_default();
    let mut value = Cow::Borrowed(first);
    for line in lines {
        if value.len() + line.len() > MAX_BYTES {
            return None;
        }
        let value = value.to_mut();
        value.extend_from_slice(b", ");
        value.extend_from_slice(line);
    }
    (value.len() <= MAX_BYTES).then_some(value)
}

/// Reads a List (RFC 9651 section 4.2.1); `None` means that the field is to be ignored.
pub(super) fn list(input: &[u8]) -> Option<Vec<Entry<'_>>> {
    if input.len() > MAX_BYTES || !input.is_ascii() {
        return None;
    }
    let mut reader = Reader { rest: std::str::from_utf8(input).ok()?.trim_matches(' ') };
    let mut entries = Vec::new();
    while !reader.rest.is_empty() {
        if entries.len() == MAX_MEMBERS {
            return None;
        }
        entries.push(reader.entry()?);
        reader.skip([' ', '\t']);
        if reader.rest.is_empty() {
            break;
        }
        reader.eat(',').then_some(())?;
        reader.skip([' ', '\t']);
        if reader.rest.is_empty() {
            return None;
        }
    }
    Some(entries)
}

/// Whether a text can be sent as a Token (RFC 9651 section 3.3.4).
pub(super) fn is_token(text: &str) -> bool {
    let mut reader = Reader { rest: text };
    reader.token().is_some() && reader.rest.is_empty()
}

/// Whether a text can be sent as a String (RFC 9651 section 3.3.3).
pub(super) fn is_string(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b' '..=b'~'))
}

/// The unread rest of a field; a field is ASCII, so that it can be split at any byte.
struct Reader<'a> {
    rest: &'a str,
}

impl<'a> Reader<'a> {
    fn entry(&mut self) -> Option<Entry<'a>> {
        if !self.eat('(') {
            return self.item().map(Entry::Item);
        }
        let mut items = Vec::new();
        loop {
            self.skip([' ']);
            if self.eat(')') {
                return Some(Entry::InnerList(items, self.parameters()?));
            }
            items.push(self.item()?);
            if !self.rest.starts_with([' ', ')']) {
                return None;
            }
        }
    }

    fn item(&mut self) -> Option<Item<'a>> {
        Some(Item { value: self.value()?, parameters: self.parameters()? })
    }

    fn parameters(&mut self) -> Option<Parameters<'a>> {
        let mut parameters = Parameters::new();
        while self.eat(';') {
            self.skip([' ']);
            let key = self.key()?;
            let value = if self.eat('=') { self.value()? } else { Value::Boolean(true) };
            parameters.push((key, value));
        }
        if parameters.len() > 1 {
            settle(&mut parameters);
        }
        Some(parameters)
    }

    fn key(&mut self) -> Option<&'a str> {
        if !self.rest.starts_with(|c: char| c.is_ascii_lowercase() || c == '*') {
            return None;
        }
        Some(self.take(|c| matches!(c, 'a'..='z' | '0'..='9' | '_' | '-' | '.' | '*')))
    }

    fn eat(&mut self, wanted: char) -> bool {
        match self.rest.strip_prefix(wanted) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn skip<const N: usize>(&mut self, blanks: [char; N]) {
        self.rest = self.rest.trim_start_matches(blanks);
    }

    /// Takes the longest prefix of matching characters.
    fn take(&mut self, fits: impl Fn(char) -> bool) -> &'a str {
        let end = self.rest.find(|c| !fits(c)).unwrap_or(self.rest.len());
        let (taken, rest) = self.rest.split_at(end);
        self.rest = rest;
        taken
    }
}

/// Removes duplicate keys. Sorts instead of searching, to avoid quadratic time.
fn settle(parameters: &mut Parameters<'_>) {
    parameters.sort_by_key(|(key, _)| *key);
    parameters.dedup_by(|later, kept| {
        let repeated = later.0 == kept.0;
        if repeated {
            mem::swap(&mut later.1, &mut kept.1);
        }
        repeated
    });
    // keys are slices of one text: the order of their addresses is their order in the text
    parameters.sort_by_key(|(key, _)| key.as_ptr());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(lines: &[&str]) -> Option<String> {
        let value = joined(lines.iter().map(|line| line.as_bytes()))?;
        Some(String::from_utf8(value.into_owned()).unwrap())
    }

    /// The parameters of a List with one item, as `(key, value)`; the bare item comes first, without a key.
    fn parts(input: &str) -> Option<Vec<(&str, Value<'_>)>> {
        let entries = list(input.as_bytes())?;
        let [Entry::Item(item)] = &entries[..] else { panic!("{input} is not one item") };
        let mut parts = vec![("", item.value.clone())];
        parts.extend(item.parameters.iter().cloned());
        Some(parts)
    }

    #[test]
    fn lines_become_one_value() {
        assert_eq!(lines(&["a;b", "c"]).as_deref(), Some("a;b, c"));
        assert_eq!(lines(&[]).as_deref(), Some(""));
        assert!(matches!(joined([&b"alone"[..]].into_iter()), Some(Cow::Borrowed(_))));
    }

    #[test]
    fn an_empty_line_between_others_is_an_error_and_alone_an_empty_list() {
        assert_eq!(list(lines(&["a", "", "b"]).unwrap().as_bytes()), None);
        assert_eq!(list(b""), Some(Vec::new()));
        assert_eq!(list(b"   "), Some(Vec::new()));
    }

    #[test]
    fn a_repeated_key_keeps_its_place_and_its_last_value() {
        let expected = vec![
            ("", Value::Token("a")),
            ("b", Value::Integer(3)),
            ("c", Value::Boolean(true)),
            ("d", Value::Decimal(-1_500)),
        ];
        assert_eq!(parts("a;b=1;c;d=-1.5;b=2;b=3"), Some(expected));
    }

    #[test]
    fn an_inner_list_is_read_and_distinguished_from_an_item() {
        let entries = list(b"(a;x \"b\");y, c").unwrap();
        assert!(matches!(&entries[0], Entry::InnerList(items, own) if items.len() == 2 && own.len() == 1));
        assert!(matches!(&entries[1], Entry::Item(item) if item.value == Value::Token("c")));
        for broken in ["(", "(a", "(a,b)", "((a))", "(a)b", "(a\tb)", "(a)(b)"] {
            assert_eq!(list(broken.as_bytes()), None, "{broken}");
        }
    }

    #[test]
    fn one_error_spoils_the_whole_field() {
        for broken in
            ["a,", ",a", "a,,b", "a b", "a;", "a;B", "a;b=", "a; b =1", "a;b= 1", "a\n", "\u{e4}", "a;b=\u{e4}"]
        {
            assert_eq!(list(format!("good;x=1, {broken}").as_bytes()), None, "{broken:?}");
        }
        assert_eq!(list(b"\ta"), None);
        assert!(list(b"good;x=1,\t b \t").is_some());
    }

    #[test]
    fn a_field_of_the_largest_size_is_read_and_one_byte_more_is_not() {
        let long = "a".repeat(MAX_BYTES);
        assert!(list(long.as_bytes()).is_some());
        assert!(lines(&[&long]).is_some());
        assert_eq!(list(format!("{long}a").as_bytes()), None);
        assert_eq!(lines(&[&format!("{long}a")]), None);
        assert_eq!(lines(&[&long[2..], "b"]), None);
        assert_eq!(lines(&[&long[3..], "b"]).unwrap().len(), MAX_BYTES);
    }

    #[test]
    fn lines_beyond_the_bound_are_not_read() {
        let mut asked = 0;
        let endless = std::iter::repeat_n(&b""[..], 1_000_000).inspect(|_| asked += 1);
        assert_eq!(joined(endless), None);
        assert!(asked <= MAX_BYTES, "{asked}");
    }

    #[test]
    fn members_are_counted() {
        let members = |count| vec!["a"; count].join(",");
        assert_eq!(list(members(MAX_MEMBERS).as_bytes()).unwrap().len(), MAX_MEMBERS);
        assert_eq!(list(members(MAX_MEMBERS + 1).as_bytes()), None);
    }

    #[test]
    fn a_great_many_parameters_keep_their_places() {
        let item = (0..1_400).fold("a".to_owned(), |item, number| format!("{item};k{}={number}", number * 7 % 1_000));
        let parts = parts(&item).unwrap();
        assert_eq!(parts.len(), 1 + 1_000);
        assert_eq!(parts[1], ("k0", Value::Integer(1_000)));
        assert_eq!(parts[401], ("k800", Value::Integer(400)));
        assert_eq!(parts[400], ("k793", Value::Integer(1_399)));
    }

    #[test]
    fn a_token_is_distinguished_from_other_text() {
        for token in ["gw", "*", "A:/b", "http/1.1", "a!#$%&'*+-.^_`|~0"] {
            assert!(is_token(token), "{token}");
        }
        for other in ["", "1a", "a b", "a,b", "a=b", "a;", "\"a\"", "\u{e4}", "a\u{e4}", "a\n"] {
            assert!(!is_token(other), "{other:?}");
        }
    }
}
