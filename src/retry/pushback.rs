//! The upstream's statement about when to retry.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName};

use super::retry_after;
use crate::cause::Protocol;

const GRPC_PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");

/// The upstream's statement about further attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pushback {
    /// Retry not before this time has elapsed.
    After(Duration),
    /// Do not retry.
    Never,
}

impl Pushback {
    /// Reads `grpc-retry-pushback-ms` of a gRPC response (gRPC proposal A6), else `Retry-After`.
    ///
    /// A pushback that is negative, malformed or too large for 32 bits rules out further attempts, as A6 specifies.
    pub(crate) fn of(headers: &HeaderMap, protocol: Protocol, now: SystemTime) -> Option<Self> {
        let told = match protocol {
            Protocol::Grpc { .. } => headers.get(GRPC_PUSHBACK),
            Protocol::Http => None,
        };
        match told {
            Some(value) => Some(millis(value.as_bytes()).map_or(Self::Never, Self::After)),
            None => retry_after(headers, now).map(Self::After),
        }
    }
}

/// A signed 32-bit integer without leading zeros; `None` if it is negative or too large.
fn millis(value: &[u8]) -> Option<Duration> {
    let (digits, padded) = (value.iter().all(u8::is_ascii_digit), value.len() > 1 && value[0] == b'0');
    if !digits || padded {
        return None;
    }
    let millis: i32 = std::str::from_utf8(value).ok()?.parse().ok()?;
    Some(Duration::from_millis(millis.unsigned_abs().into()))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use http::header::RETRY_AFTER;

    use super::*;

    fn grpc(value: &'static str) -> Option<Pushback> {
        let headers = HeaderMap::from_iter([(GRPC_PUSHBACK, HeaderValue::from_static(value))]);
        assert_eq!(Pushback::of(&headers, Protocol::Http, SystemTime::UNIX_EPOCH), None);
        Pushback::of(&headers, Protocol::Grpc { has_deadline: false }, SystemTime::UNIX_EPOCH)
    }

    #[test]
    fn a_pause_in_milliseconds_is_read() {
        for (value, millis) in [("0", 0), ("1", 1), ("2147483647", 2_147_483_647)] {
            assert_eq!(grpc(value), Some(Pushback::After(Duration::from_millis(millis))), "{value}");
        }
    }

    #[test]
    fn what_is_negative_or_cannot_be_read_asks_for_no_further_attempt() {
        // a number too large is as final as a pushback longer than any wait: it is not absent
        for value in ["-1", "", "soon", "+1", "01", "1.5", "2147483648", "18446744073709551616", " "] {
            assert_eq!(grpc(value), Some(Pushback::Never), "{value:?}");
        }
    }

    #[test]
    fn without_it_retry_after_counts() {
        let headers = HeaderMap::from_iter([(RETRY_AFTER, HeaderValue::from_static("2"))]);
        for protocol in [Protocol::Http, Protocol::Grpc { has_deadline: false }] {
            let pushback = Pushback::of(&headers, protocol, SystemTime::UNIX_EPOCH);
            assert_eq!(pushback, Some(Pushback::After(Duration::from_secs(2))));
        }
        assert_eq!(
            Pushback::of(&HeaderMap::new(), Protocol::Grpc { has_deadline: false }, SystemTime::UNIX_EPOCH),
            None
        );
    }
}
