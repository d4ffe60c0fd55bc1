//! Header fields that carry deadlines.

use std::time::{Duration, SystemTime};

use http::{HeaderName, HeaderValue};

/// A header field that carries a deadline, and its format.
///
/// | field | form | zero |
/// |---|---|---|
/// | [`grpc`](Self::grpc) | `grpc-timeout`: 1 to 8 digits and one of `H M S m u n` (gRPC over HTTP/2, "Requests") | elapsed |
/// | [`envoy_expected`](Self::envoy_expected) | `x-envoy-expected-rq-timeout-ms`: milliseconds, sent by Envoy to its upstreams | none |
/// | [`envoy_upstream`](Self::envoy_upstream) | `x-envoy-upstream-rq-timeout-ms`: milliseconds, sent by clients to Envoy | none |
/// | [`linkerd`](Self::linkerd) | `l5d-timeout`: digits and one of `ms s m h d` (linkerd2-proxy, outbound policy) | none |
/// | [`relative`](Self::relative) | any name, by default `x-request-timeout-ms`: milliseconds, a negative number has elapsed | elapsed |
/// | [`absolute`](Self::absolute) | any name: milliseconds since 1970, by the client's clock | elapsed |
///
/// Zero disables the timeout in Envoy and in linkerd. gRPC's grammar has no zero, and servers that receive one treat
/// the deadline as elapsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadlineHeader {
    name: HeaderName,
    format: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Grpc,
    Envoy,
    Linkerd,
    Relative,
    Absolute,
}

/// A parsed field value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Parsed {
    /// The remaining time.
    Remaining(Duration),
    /// The remaining time by the client's clock; zero if it has elapsed.
    RemainingByClientClock(Duration),
    /// The client has no deadline.
    Unlimited,
    /// Malformed, or more than `LONGEST` ahead.
    Invalid,
}

/// The longest plausible deadline: a longer one is taken for a mistake.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

impl DeadlineHeader {
    /// `grpc-timeout`, as gRPC clients send it.
    pub fn grpc() -> Self {
        Self { name: HeaderName::from_static("grpc-timeout"), format: Format::Grpc }
    }

    /// `x-envoy-expected-rq-timeout-ms`, as Envoy sends it to its upstreams.
    pub fn envoy_expected() -> Self {
        Self { name: HeaderName::from_static("x-envoy-expected-rq-timeout-ms"), format: Format::Envoy }
    }

    /// `x-envoy-upstream-rq-timeout-ms`, as clients send it to Envoy.
    pub fn envoy_upstream() -> Self {
        Self { name: HeaderName::from_static("x-envoy-upstream-rq-timeout-ms"), format: Format::Envoy }
    }

    /// `l5d-timeout`, as clients send it to linkerd.
    pub fn linkerd() -> Self {
        Self { name: HeaderName::from_static("l5d-timeout"), format: Format::Linkerd }
    }

    /// `x-request-timeout-ms`, for deployments without a convention of their own.
    pub fn request_timeout() -> Self {
        Self::relative(HeaderName::from_static("x-request-timeout-ms"))
    }

    /// A field with this name that carries the remaining milliseconds.
    pub fn relative(name: HeaderName) -> Self {
        Self { name, format: Format::Relative }
    }

    /// A field with this name that carries a time of day, in milliseconds since 1970 (UTC).
    ///
    /// It is off by the difference of the client's clock and ours; prefer any other field. It is read only if
    /// listed in [`DeadlinePropagation::fields`](super::DeadlinePropagation::fields).
    pub fn absolute(name: HeaderName) -> Self {
        Self { name, format: Format::Absolute }
    }

    /// The field's name.
    pub fn name(&self) -> &HeaderName {
        &self.name
    }

    /// Parses a value; the clock is read only if the format needs it.
    pub(super) fn read(&self, value: &[u8], wall: impl FnOnce() -> SystemTime) -> Parsed {
        self.parse(value, wall).unwrap_or(Parsed::Invalid)
    }

    fn parse(&self, value: &[u8], wall: impl FnOnce() -> SystemTime) -> Option<Parsed> {
        let said = match self.format {
            Format::Grpc => Parsed::Remaining(grpc(value)?),
            Format::Envoy => limited(Duration::from_millis(digits(value)?)),
            Format::Linkerd => limited(linkerd(value)?),
            Format::Relative => match value.strip_prefix(b"-") {
                Some(value) => digits(value).map(|_| Parsed::Remaining(Duration::ZERO))?,
                None => Parsed::Remaining(Duration::from_millis(digits(value)?)),
            },
            Format::Absolute => Parsed::RemainingByClientClock(until(value, wall())?),
        };
        match said {
            Parsed::Remaining(left) | Parsed::RemainingByClientClock(left) if left > LONGEST => None,
            said => Some(said),
        }
    }

    /// The value for this remaining time: at least the field's smallest, because its zero may mean no limit.
    pub(super) fn value(&self, left: Duration, wall: impl FnOnce() -> SystemTime) -> HeaderValue {
        let left = left.min(LONGEST);
        let ms = saturate(left.as_millis()).max(1);
        let text = match self.format {
            Format::Envoy | Format::Relative => return HeaderValue::from(ms),
            Format::Absolute => {
                let at = (wall() + left).duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
                return HeaderValue::from(saturate(at.as_millis()));
            }
            Format::Linkerd => format!("{ms}ms"),
            Format::Grpc => {
                // the finest unit that fits, rounded down, so that the upstream never gets more than the remaining time
                let (ns, us) = (saturate(left.as_nanos()).max(1), saturate(left.as_micros()));
                match (ns <= GRPC_MOST, us <= GRPC_MOST) {
                    (true, _) => format!("{ns}n"),
                    (false, true) => format!("{us}u"),
                    (false, false) => format!("{ms}m"),
                }
            }
        };
        HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("1"))
    }
}

const GRPC_MOST: u64 = 99_999_999;

fn saturate(number: u128) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

/// Up to eight digits: the longest wait has that many in milliseconds.
fn digits(text: &[u8]) -> Option<u64> {
    number(text, 8)
}

fn number(text: &[u8], most: usize) -> Option<u64> {
    if text.is_empty() || text.len() > most || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(text.iter().fold(0, |number, digit| number * 10 + u64::from(digit - b'0')))
}

fn limited(left: Duration) -> Parsed {
    if left.is_zero() { Parsed::Unlimited } else { Parsed::Remaining(left) }
}

fn grpc(value: &[u8]) -> Option<Duration> {
    let (unit, number) = value.split_last()?;
    let number = digits(number)?;
    Some(match unit {
        b'H' => Duration::from_secs(number * 3600),
        b'M' => Duration::from_secs(number * 60),
        b'S' => Duration::from_secs(number),
        b'm' => Duration::from_millis(number),
        b'u' => Duration::from_micros(number),
        b'n' => Duration::from_nanos(number),
        _ => return None,
    })
}

fn linkerd(value: &[u8]) -> Option<Duration> {
    let unit = value.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(value.len());
    let (number, unit) = value.split_at(unit);
    let number = digits(number)?;
    Some(match unit {
        b"ms" => Duration::from_millis(number),
        b"s" => Duration::from_secs(number),
        b"m" => Duration::from_secs(number * 60),
        b"h" => Duration::from_secs(number * 3600),
        b"d" => Duration::from_secs(number * 86400),
        b"" if number == 0 => Duration::ZERO,
        _ => return None,
    })
}

/// The time until a time of day; `None` if it elapsed more than a day ago: not a timestamp in milliseconds.
fn until(value: &[u8], wall: SystemTime) -> Option<Duration> {
    let at = SystemTime::UNIX_EPOCH + Duration::from_millis(number(value, 15)?);
    match at.duration_since(wall) {
        Ok(left) => Some(left),
        Err(past) if past.duration() <= LONGEST => Some(Duration::ZERO),
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: u64 = 1_800_000_000_000;

    fn wall() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(NOW)
    }

    fn all() -> [DeadlineHeader; 6] {
        [
            DeadlineHeader::grpc(),
            DeadlineHeader::envoy_expected(),
            DeadlineHeader::envoy_upstream(),
            DeadlineHeader::linkerd(),
            DeadlineHeader::request_timeout(),
            DeadlineHeader::absolute(HeaderName::from_static("x-deadline")),
        ]
    }

    fn says(field: &DeadlineHeader, value: &str) -> Parsed {
        field.read(value.as_bytes(), wall)
    }

    fn ms(ms: u64) -> Parsed {
        Parsed::Remaining(Duration::from_millis(ms))
    }

    #[test]
    fn each_form_is_read_as_its_owner_wrote_it() {
        let [grpc, envoy, _, linkerd, relative, _] = all();
        for (text, said) in [("1S", 1000), ("250m", 250), ("99999999u", 99_999), ("3M", 180_000), ("24H", 86_400_000)] {
            let Parsed::Remaining(left) = says(&grpc, text) else { panic!("{text}") };
            assert_eq!(left.as_millis(), said, "{text}");
        }
        assert_eq!(says(&grpc, "7n"), Parsed::Remaining(Duration::from_nanos(7)));
        assert_eq!(says(&envoy, "1500"), ms(1500));
        for (text, said) in [("10s", 10_000), ("1500ms", 1500), ("2m", 120_000), ("1h", 3_600_000), ("1d", 86_400_000)]
        {
            assert_eq!(says(&linkerd, text), ms(said), "{text}");
        }
        assert_eq!(says(&relative, "040"), ms(40));
    }

    #[test]
    fn zero_has_the_meaning_of_each_convention() {
        let [grpc, expected, upstream, linkerd, relative, _] = all();
        assert_eq!((says(&grpc, "0S"), says(&relative, "0"), says(&relative, "-20")), (ms(0), ms(0), ms(0)));
        for (field, zero) in [(expected, "0"), (upstream, "0"), (linkerd.clone(), "0"), (linkerd, "0s")] {
            assert_eq!(says(&field, zero), Parsed::Unlimited);
        }
    }

    #[test]
    fn malformed_and_implausible_values_are_invalid() {
        let [grpc, envoy, _, linkerd, relative, absolute] = all();
        for text in ["", "S", "1", "1s", "123456789m", "1 S", "+1S", "-1S", "1.5S", "25H", "99999999H", "1SS", "１S"] {
            assert_eq!(says(&grpc, text), Parsed::Invalid, "{text:?}");
        }
        for text in ["", "-1", "1ms", "0x10", "86400001", "100000000", "1,2", " 1", "1e3"] {
            assert_eq!(says(&envoy, text), Parsed::Invalid, "{text:?}");
        }
        for text in ["", "1", "s", "1S", "1us", "2d", "-1s", "1s1s", "1.5s"] {
            assert_eq!(says(&linkerd, text), Parsed::Invalid, "{text:?}");
        }
        for text in ["", "-", "--1", "-1.5", "86400001", "never"] {
            assert_eq!(says(&relative, text), Parsed::Invalid, "{text:?}");
        }
        // seconds instead of milliseconds, and a century from now
        for text in ["1800000000", "4955000000000", "-1", "9999999999999999"] {
            assert_eq!(says(&absolute, text), Parsed::Invalid, "{text:?}");
        }
    }

    #[test]
    fn a_time_of_day_is_by_the_clients_clock() {
        let absolute = &all()[5];
        let left = |ms| Parsed::RemainingByClientClock(Duration::from_millis(ms));
        assert_eq!(says(absolute, &(NOW + 250).to_string()), left(250));
        assert_eq!(says(absolute, &(NOW - 250).to_string()), left(0));
    }

    #[test]
    fn the_smallest_value_is_written_where_nothing_is_left() {
        let written: Vec<_> = all().map(|field| field.value(Duration::ZERO, wall)).into_iter().collect();
        assert_eq!(written, ["1n", "1", "1", "1ms", "1", &NOW.to_string()]);
    }

    proptest! {
        #[test]
        fn no_input_panics_and_nothing_is_read_as_more_than_a_day(
            value in proptest::collection::vec(any::<u8>(), 0..24),
            text in "-?[0-9]{0,20}(H|M|S|ms|m|u|n|s|h|d|)",
        ) {
            for field in all() {
                for value in [value.as_slice(), text.as_bytes()] {
                    match field.read(value, wall) {
                        Parsed::Remaining(left) | Parsed::RemainingByClientClock(left) => prop_assert!(left <= LONGEST),
                        Parsed::Unlimited | Parsed::Invalid => {}
                    }
                }
            }
        }

        #[test]
        fn a_written_deadline_is_read_as_at_most_that(left in 1_000_000_u64..86_400_000_000_000) {
            let left = Duration::from_nanos(left);
            for field in all() {
                match field.read(field.value(left, wall).as_bytes(), wall) {
                    Parsed::Remaining(read) | Parsed::RemainingByClientClock(read) => {
                        prop_assert!(read <= left && left.saturating_sub(read) < Duration::from_millis(1), "{field:?} {read:?}");
                    }
                    said => prop_assert!(false, "{field:?} {said:?}"),
                }
            }
        }
    }
}
