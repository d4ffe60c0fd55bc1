//! The time of day as RFC 3339 in UTC, to the second.

use std::time::{SystemTime, UNIX_EPOCH};

/// Seconds of a day.
const DAY: u64 = 24 * 60 * 60;

/// The last second of the year 9999: RFC 3339 has no more digits.
const LAST: u64 = 253_402_300_799;

/// `2026-11-22T18:23:40Z`; a clock before 1970 reads as its first second.
///
/// The date is computed like Howard Hinnant's `civil_from_days`, with years that start in March and eras of 400
/// years (<https://howardhinnant.github.io/date_algorithms.html>).
pub(super) fn rfc3339(now: SystemTime) -> String {
    let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()).min(LAST);
    // days since 0000-03-01
    let days = seconds / DAY + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = 400 * era + year + u64::from(month <= 2);
    let (hour, minute, second) = (seconds % DAY / 3600, seconds % 3600 / 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    /// The expected text, derived from httpdate's.
    fn by_httpdate(now: SystemTime) -> String {
        let months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
        let date = httpdate::fmt_http_date(now);
        let month = months.iter().position(|month| *month == &date[8..11]).unwrap() + 1;
        format!("{}-{month:02}-{}T{}Z", &date[12..16], &date[5..7], &date[17..25])
    }

    #[test]
    fn the_first_and_the_last_second_are_written() {
        assert_eq!(rfc3339(UNIX_EPOCH), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(UNIX_EPOCH - Duration::from_secs(9)), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_secs(951_782_400)), "2000-02-29T00:00:00Z");
        assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_secs(LAST)), "9999-12-31T23:59:59Z");
        assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_secs(LAST + 9)), "9999-12-31T23:59:59Z");
    }

    proptest! {
        #[test]
        fn every_second_is_written_as_by_httpdate(seconds in 0..=LAST) {
            let now = UNIX_EPOCH + Duration::from_secs(seconds);
            prop_assert_eq!(rfc3339(now), by_httpdate(now));
        }
    }
}
