//! The words by which an endpoint reports its state: those of `HAProxy`'s agent checks, and the `status` of a JSON
//! document. Pure.
//!
//! A text counts as words only if each of its words is known, so that a page that happens to contain "down" does not.

/// The largest part of a response that is read, in bytes.
pub(super) const MAX_BODY: usize = 4096;
/// The deepest nesting of a JSON document that is read.
const MAX_DEPTH: usize = 32;

/// Result of one check of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CheckResult {
    Pass,
    Fail,
    /// The endpoint asks for no new calls.
    Drain,
}

/// State that an endpoint reports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Words {
    pub(super) verdict: Option<CheckResult>,
    pub(super) weight_percent: Option<u32>,
}

/// Reads the body or a header field of a response. A text that is not understood has no words.
pub(super) fn read(text: &[u8]) -> Words {
    let text = text.trim_ascii_start();
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    if text.first() == Some(&b'{') {
        let verdict = Json { rest: &text[1..] }.status().as_deref().and_then(of_status);
        return Words { verdict, weight_percent: None };
    }
    // an agent's response is one line, and a description may follow '#'
    let line = text.split(|byte| matches!(byte, b'\r' | b'\n' | b'#')).next().unwrap_or_default();
    std::str::from_utf8(line).ok().and_then(words).unwrap_or_default()
}

/// Reads the words of a line, if all of them are known.
fn words(line: &str) -> Option<Words> {
    let mut found = Words::default();
    for word in line.split([' ', '\t', ',']).filter(|word| !word.is_empty()) {
        let word = word.to_ascii_lowercase();
        if let Some(verdict) = of_word(&word) {
            // the worst word counts, in any order
            found.verdict = Some(found.verdict.map_or(verdict, |other| worse(verdict, other)));
        } else if let Some(percent) = percent(word.strip_prefix("weight:").unwrap_or(&word)) {
            found.weight_percent = Some(percent);
        } else if !word.starts_with("maxconn:") {
            return None;
        }
    }
    Some(found)
}

fn percent(word: &str) -> Option<u32> {
    let digits = word.strip_suffix('%')?;
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some(digits.parse().unwrap_or(u32::MAX).min(1000))
}

fn of_word(word: &str) -> Option<CheckResult> {
    Some(match word {
        "up" | "ready" => CheckResult::Pass,
        "drain" | "maint" => CheckResult::Drain,
        "down" | "fail" | "failed" | "stopped" => CheckResult::Fail,
        _ => return None,
    })
}

/// Reads the status of a health document: draft-inadarei-api-health-check, and words that frameworks use.
fn of_status(status: &str) -> Option<CheckResult> {
    Some(match &*status.to_ascii_lowercase() {
        "pass" | "ok" | "up" | "ready" | "warn" | "healthy" | "degraded" => CheckResult::Pass,
        "drain" | "draining" | "maint" | "maintenance" | "out_of_service" => CheckResult::Drain,
        "fail" | "error" | "down" | "unhealthy" => CheckResult::Fail,
        _ => return None,
    })
}

fn worse(one: CheckResult, other: CheckResult) -> CheckResult {
    let rank = |verdict: CheckResult| match verdict {
        CheckResult::Pass => 0,
        CheckResult::Drain => 1,
        CheckResult::Fail => 2,
    };
    if rank(one) >= rank(other) { one } else { other }
}

/// A JSON object after its opening brace, which may be cut off anywhere.
struct Json<'a> {
    rest: &'a [u8],
}

impl Json<'_> {
    /// Returns the value of the object's own member `status`, if it is a string.
    fn status(&mut self) -> Option<String> {
        loop {
            self.skip_space();
            let name = self.string()?;
            self.skip_space();
            self.expect(b':')?;
            self.skip_space();
            if name == "status" {
                return self.string();
            }
            self.skip_value()?;
            self.skip_space();
            self.expect(b',')?;
        }
    }

    fn next(&mut self) -> Option<u8> {
        let (first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(*first)
    }

    fn expect(&mut self, byte: u8) -> Option<()> {
        (self.next()? == byte).then_some(())
    }

    fn skip_space(&mut self) {
        self.rest = self.rest.trim_ascii_start();
    }

    /// Reads a string, and replaces escaped characters: no known word has one.
    fn string(&mut self) -> Option<String> {
        self.expect(b'"')?;
        let mut text = Vec::new();
        loop {
            match self.next()? {
                b'"' => return String::from_utf8(text).ok(),
                b'\\' => {
                    self.next()?;
                    text.push(b'?');
                }
                byte => text.push(byte),
            }
        }
    }

    /// Skips a value without validating it.
    fn skip_value(&mut self) -> Option<()> {
        let mut depth = 0_usize;
        loop {
            match self.rest.first()? {
                b'"' => {
                    self.string()?;
                }
                b'{' | b'[' => {
                    depth += 1;
                    self.next()?;
                }
                b'}' | b']' => {
                    depth = depth.checked_sub(1)?;
                    self.next()?;
                }
                b',' if depth == 0 => return Some(()),
                _ => {
                    self.next()?;
                    continue;
                }
            }
            match depth {
                0 => return Some(()),
                MAX_DEPTH.. => return None,
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn verdict(text: &str) -> Option<CheckResult> {
        read(text.as_bytes()).verdict
    }

    #[test]
    fn agents_words_are_understood() {
        for (text, expected, weight) in [
            ("ready", Some(CheckResult::Pass), None),
            ("up\n", Some(CheckResult::Pass), None),
            ("DRAIN", Some(CheckResult::Drain), None),
            ("maint # until 3 a.m.", Some(CheckResult::Drain), None),
            ("down", Some(CheckResult::Fail), None),
            ("up ready 75%", Some(CheckResult::Pass), Some(75)),
            ("weight:50%", None, Some(50)),
            ("up, weight:50%, maxconn:30\r\n", Some(CheckResult::Pass), Some(50)),
            ("drain ready", Some(CheckResult::Drain), None),
            ("weight:99999999999999%", None, Some(1000)),
            ("0%", None, Some(0)),
        ] {
            assert_eq!(read(text.as_bytes()), Words { verdict: expected, weight_percent: weight }, "{text:?}");
        }
    }

    #[test]
    fn a_text_that_is_not_all_words_says_nothing() {
        for text in ["", "OK", "the server is down", "<html>drain</html>", "weight:x%", "%", "weight:50", "drained"] {
            assert_eq!(read(text.as_bytes()), Words::default(), "{text:?}");
        }
    }

    #[test]
    fn the_status_of_a_health_document_is_understood() {
        for (text, expected) in [
            (r#"{"status":"pass"}"#, Some(CheckResult::Pass)),
            (r#" { "version": "1", "status" : "fail", "checks": {"#, Some(CheckResult::Fail)),
            (r#"{"checks":{"db":[{"status":"fail"}]},"notes":["}","\"]"],"status":"warn"}"#, Some(CheckResult::Pass)),
            (r#"{"status":"UP","components":{"db":{"status":"DOWN"}}}"#, Some(CheckResult::Pass)),
            (r#"{"status":"OUT_OF_SERVICE"}"#, Some(CheckResult::Drain)),
            (r#"{"a":-1.5e3,"status":"draining"}"#, Some(CheckResult::Drain)),
            (r#"{"status":"maint"}"#, Some(CheckResult::Drain)),
            (r#"{"components":{"db":{"status":"DOWN"}}}"#, None),
            (r#"{"status":"sideways"}"#, None),
            (r#"{"status":200}"#, None),
            (r#"{"sta"#, None),
            ("{}", None),
            ("{", None),
        ] {
            assert_eq!(verdict(text), expected, "{text}");
        }
        let deep = format!(r#"{{"a":{}{},"status":"fail"}}"#, "[".repeat(1000), "]".repeat(1000));
        assert_eq!(verdict(&deep), None);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..MAX_BODY)) {
            read(&bytes);
        }

        #[test]
        fn no_document_panics(text in r#"[{}\[\]",:\\ a-z#%0-9éx]{0,200}"#) {
            read(format!("{{{text}").as_bytes());
            read(text.as_bytes());
        }

        #[test]
        fn a_document_cut_off_anywhere_never_says_something_else(cut in 0_usize..70) {
            let text = br#"{"a":{"status":"fail"},"b":["fail"],"status":"pass","c":"fail"}"#;
            let words = read(&text[..cut.min(text.len())]);
            prop_assert!(matches!(words.verdict, None | Some(CheckResult::Pass)));
        }
    }
}
