//! Durations as people write them: `1500ms`, `2s`, `1m 30s`, `1.5s`.

use std::time::Duration;

/// From long to short, as they may follow each other.
const UNITS: [(&str, u64); 6] = [
    ("d", 86_400_000_000_000),
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
];
const CENTURY: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// Reads a duration; what is wrong with it else.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let (mut rest, mut nanos, mut place) = (text.trim(), 0_u128, 0);
    if rest.is_empty() {
        return Err("no time is given; write \"30s\"".to_owned());
    }
    while !rest.is_empty() {
        let (number, after) = Decimal::first(rest).ok_or_else(|| unread(text))?;
        let digits = &rest[..rest.len() - after.len()];
        let after = after.trim_start();
        let (unit, after) = after.split_at(after.find(|c: char| !c.is_alphabetic()).unwrap_or(after.len()));
        if unit.is_empty() {
            let ends = after.chars().next().is_none_or(|next| next.is_ascii_digit());
            return Err(if ends { bare(digits) } else { unread(text) });
        }
        let found = UNITS.iter().position(|known| known.0 == unit).ok_or_else(|| {
            let units = UNITS.map(|known| known.0).join(", ");
            format!("{} has a unit that is none of {units}", quoted(text))
        })?;
        if found < place {
            return Err(format!("{} goes not from long to short, each unit once; write \"1m 30s\"", quoted(text)));
        }
        nanos += number.times(UNITS[found].1);
        (rest, place) = (after.trim_start(), found + 1);
    }
    let seconds = u64::try_from(nanos / 1_000_000_000).unwrap_or(u64::MAX);
    let time = Duration::new(seconds, u32::try_from(nanos % 1_000_000_000).unwrap_or(0));
    if time > CENTURY {
        return Err(format!(
            "{} is longer than a hundred years; write \"none\" where a limit may be none",
            quoted(text)
        ));
    }
    Ok(time)
}

/// What is said to a number without a unit.
pub(super) fn bare(number: &str) -> String {
    let number = cut(number.trim());
    format!("{number} what? write \"{number}s\" for seconds, \"{number}ms\" for thousandths")
}

fn unread(text: &str) -> String {
    format!("{} is no duration; write one as \"1500ms\", \"2s\" or \"1m 30s\"", quoted(text))
}

/// A number with a fraction that is kept exactly, to nine places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Decimal {
    whole: u64,
    billionths: u64,
}

impl Decimal {
    /// The number that a text begins with, and what follows it.
    pub(super) fn first(text: &str) -> Option<(Self, &str)> {
        let digits = |text: &str| text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (whole, rest) = text.split_at(digits(text));
        let whole = whole.parse().ok()?;
        let Some(fraction) = rest.strip_prefix('.') else { return Some((Self { whole, billionths: 0 }, rest)) };
        let (fraction, rest) = fraction.split_at(digits(fraction));
        if fraction.is_empty() {
            return None;
        }
        let places = fraction.bytes().map(|digit| u64::from(digit - b'0')).chain(std::iter::repeat(0)).take(9);
        Some((Self { whole, billionths: places.fold(0, |sum, digit| sum * 10 + digit) }, rest))
    }

    /// So many of a unit, rounded down.
    pub(super) fn times(self, unit: u64) -> u128 {
        let unit = u128::from(unit);
        u128::from(self.whole) * unit + u128::from(self.billionths) * unit / 1_000_000_000
    }
}

/// A text to be shown, not longer than anybody wants to read.
pub(super) fn cut(text: &str) -> &str {
    text.char_indices().nth(40).map_or(text, |(end, _)| &text[..end])
}

pub(super) fn quoted(text: &str) -> String {
    let shown = cut(text);
    if shown.len() < text.len() { format!("{shown:?} and so on") } else { format!("{shown:?}") }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_are_read_as_people_write_them() {
        for (text, millis) in [
            ("1500ms", 1500),
            ("2s", 2000),
            ("1m 30s", 90_000),
            ("1m30s", 90_000),
            ("1.5s", 1500),
            (" 30 s ", 30_000),
            ("1h 0.5m", 3_630_000),
            ("1d", 86_400_000),
            ("0s", 0),
            ("2500us", 2),
        ] {
            assert_eq!(duration(text).unwrap().as_millis(), millis, "{text}");
        }
        assert_eq!(duration("0.000000001s"), Ok(Duration::from_nanos(1)));
        assert_eq!(duration("0.00000000199s"), Ok(Duration::from_nanos(1)));
    }

    #[test]
    fn what_is_no_duration_is_told_how_to_write_one() {
        for (text, part) in [
            ("30", "30 what? write \"30s\""),
            ("1m 30", "30 what?"),
            ("", "no time is given"),
            ("soon", "write one as"),
            ("-2s", "write one as"),
            (".5s", "write one as"),
            ("1.s", "write one as"),
            ("1,5s", "write one as"),
            ("1 500ms", "1 what?"),
            ("3 fortnights", "none of d, h, m, s, ms, us"),
            ("2S", "none of"),
            ("30s 1m", "from long to short"),
            ("1s 1s", "each unit once"),
            ("99999999999d", "a hundred years"),
            ("99999999999999999999s", "write one as"),
        ] {
            let told = duration(text).unwrap_err();
            assert!(told.contains(part), "{text}: {told}");
        }
        let long = duration(&"ä".repeat(1000)).unwrap_err();
        assert!(long.len() < 200 && long.contains("and so on"), "{long}");
    }

    proptest! {
        #[test]
        fn any_text_has_an_answer(text in any::<String>(), like in "[0-9. dhmsu]{0,40}") {
            let _ = duration(&text);
            let _ = duration(&like);
        }

        #[test]
        fn what_is_written_out_is_read_back(seconds in 0_u64..3_000_000_000, millis in 0_u64..1000) {
            let time = Duration::from_secs(seconds) + Duration::from_millis(millis);
            prop_assert_eq!(duration(&format!("{seconds}s {millis}ms")), Ok(time));
            prop_assert_eq!(duration(&format!("{seconds}.{millis:03}s")), Ok(time));
        }
    }
}
