//! `Retry-After`: seconds, or a date (RFC 9110 section 10.2.3).

use std::time::{Duration, SystemTime};

use http::HeaderMap;
use http::header::RETRY_AFTER;

/// How long to wait before a retry, by the first valid `Retry-After`.
///
/// A date in the past means zero, and a number of seconds beyond `u64` means the longest wait there is. Malformed fields
/// are skipped. `now` is the time of day, to which dates refer.
///
/// ```
/// use std::time::{Duration, SystemTime};
/// use http::{HeaderMap, HeaderValue, header::RETRY_AFTER};
/// use tower_upstream::retry::retry_after;
///
/// let mut headers = HeaderMap::new();
/// headers.append(RETRY_AFTER, HeaderValue::from_static("soon"));
/// headers.append(RETRY_AFTER, HeaderValue::from_static("120"));
/// assert_eq!(retry_after(&headers, SystemTime::now()), Some(Duration::from_secs(120)));
/// ```
pub fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    headers.get_all(RETRY_AFTER).iter().find_map(|value| read(value.as_bytes(), now))
}

fn read(value: &[u8], now: SystemTime) -> Option<Duration> {
    let text = std::str::from_utf8(value).ok()?.trim_matches([' ', '\t']);
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // digits alone fail to parse only if there are too many of them: a long wait, not an absent field
        return Some(Duration::from_secs(text.parse().unwrap_or(u64::MAX)));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    Some(date.duration_since(now).unwrap_or(Duration::ZERO))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const YEAR: Duration = Duration::from_secs(366 * 86_400);

    /// The example of RFC 9110 section 5.6.7: Sun, 06 Nov 1994 08:49:37 GMT.
    fn noon() -> SystemTime {
        SystemTime::UNIX_EPOCH + 784_111_777 * SECOND
    }

    fn at(value: &str, now: SystemTime) -> Option<Duration> {
        read(value.as_bytes(), now)
    }

    #[test]
    fn seconds_are_read() {
        for (value, seconds) in [("0", 0), ("1", 1), ("007", 7), (" 120\t", 120), ("31622401", 31_622_401)] {
            assert_eq!(at(value, noon()), Some(SECOND * seconds), "{value:?}");
        }
    }

    #[test]
    fn a_date_is_read_in_each_of_its_three_forms() {
        let before = noon() - 90 * SECOND;
        // RFC 850's two digits are a year of the past here: 1994 in all three
        for date in ["Sun, 06 Nov 1994 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"] {
            assert_eq!(at(date, before), Some(90 * SECOND), "{date}");
        }
    }

    #[test]
    fn a_date_that_has_passed_means_now() {
        assert_eq!(at("Sun, 06 Nov 1994 08:49:37 GMT", noon()), Some(Duration::ZERO));
        assert_eq!(at("Thu, 01 Jan 1970 00:00:00 GMT", noon()), Some(Duration::ZERO));
    }

    #[test]
    fn a_number_too_large_to_represent_is_a_long_wait() {
        let (nines, zeros) = ("9".repeat(400), format!("{}7", "0".repeat(400)));
        for value in ["18446744073709551615", "18446744073709551616", &nines] {
            assert_eq!(at(value, noon()), Some(Duration::from_secs(u64::MAX)), "{value}");
        }
        assert_eq!(at(&zeros, noon()), Some(7 * SECOND));
        // the last date that can be written
        assert!(at("Fri, 31 Dec 9999 23:59:59 GMT", noon()).unwrap() > YEAR * 7000);
    }

    #[test]
    fn a_malformed_field_is_ignored() {
        for value in [
            "",
            "-1",
            "+1",
            "1.5",
            "1e3",
            "5, 10",
            "soon",
            "99999999999999999999 s",
            "Sun, 32 Nov 1994 08:49:37 GMT",
            "Sun, 06 Nov 1994 08:49:37 CET",
            "\u{0661}",
        ] {
            assert_eq!(at(value, noon()), None, "{value:?}");
        }
        assert_eq!(read(b"\xff", noon()), None);
    }

    #[test]
    fn of_several_fields_the_first_that_can_be_read_counts() {
        let mut headers = HeaderMap::new();
        assert_eq!(retry_after(&headers, noon()), None);
        for value in ["soon", "7", "3"] {
            headers.append(RETRY_AFTER, HeaderValue::from_static(value));
        }
        assert_eq!(retry_after(&headers, noon()), Some(7 * SECOND));
    }

    proptest! {
        #[test]
        fn reading_never_panics(value in prop::collection::vec(any::<u8>(), 0..40), now in 0..u32::MAX) {
            let _ = read(&value, SystemTime::UNIX_EPOCH + SECOND * now);
        }

        #[test]
        fn reading_what_looks_like_a_date_never_panics(
            value in "[A-Z][a-z]{2,8},? ?[0-9]{0,2}[ -]?[A-Za-z]{3}[ -][0-9 ]{1,5} [0-9]{2}:[0-9]{2}:[0-9]{2} ?(GMT|[0-9]{4}|)",
            now in 0..u32::MAX,
        ) {
            let read = read(value.as_bytes(), SystemTime::UNIX_EPOCH + SECOND * now);
            prop_assert!(read.is_none_or(|pause| pause <= YEAR * 10_000));
        }

        #[test]
        fn a_date_is_read_to_the_second(now in 0..4_000_000_000_u32, ahead in 0..31_000_000_u32) {
            let now = SystemTime::UNIX_EPOCH + SECOND * now;
            let pause = SECOND * ahead;
            prop_assert_eq!(at(&httpdate::fmt_http_date(now + pause), now), Some(pause));
        }
    }
}
