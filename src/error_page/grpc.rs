//! The error response for gRPC: an HTTP 200 with the gRPC status in its head and no body.

use std::fmt::Write as _;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use super::negotiation::ErrorFormat;
use crate::cause::{BadGatewayCause, Detail, Failure, Replay};

/// The gRPC status codes that a gateway uses (`statuscodes.md`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Code {
    Cancelled = 1,
    Unknown = 2,
    DeadlineExceeded = 4,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
}

impl Code {
    /// The code for a failure.
    ///
    /// `Unavailable` invites clients to retry, so it is for temporary failures. A relayed status has the code of
    /// `http-grpc-status-mapping.md`, a reset stream that of its HTTP/2 error (`PROTOCOL-HTTP2.md`, Errors). A request that was
    /// sent and got no response in time is `DeadlineExceeded`, whichever timeout fired.
    pub(super) fn of(failure: &Failure) -> Self {
        use BadGatewayCause as C;
        match failure.cause() {
            C::NoRoute => Self::Unimplemented,
            C::InvalidTarget
            | C::LoopDetected
            | C::TargetProhibited
            | C::WrongProtocol
            | C::InvalidResponse
            | C::UpgradeFailed
            | C::TransferCoding
            | C::ContentCoding
            | C::UnusableBody
            | C::GatewayInternal => Self::Internal,
            C::ConnectionLimit
            | C::QueueTimeout
            | C::GatewayOverload
            | C::GatewayResources
            | C::HeadTooLarge
            | C::BodyTooLarge
            | C::TrailerTooLarge => Self::ResourceExhausted,
            C::NoHealthyUpstream
            | C::CircuitOpen
            | C::DnsTimeout
            | C::DnsNotFound
            | C::DnsFailure
            | C::ConnectionRefused
            | C::ConnectTimeout
            | C::Unroutable
            | C::ConnectFailed
            | C::TlsCertificate
            | C::TlsAlert
            | C::TlsFailed
            | C::TlsTimeout
            | C::StreamRefused
            | C::NotDispatched
            | C::StaleConnection
            | C::ClosedBeforeResponse
            | C::ResetBeforeResponse
            | C::PeerUnresponsive
            | C::IncompleteHead
            | C::IncompleteBody => Self::Unavailable,
            C::WriteTimeout | C::HeadTimeout | C::FirstByteTimeout | C::DeadlineExceeded | C::BodyReadTimeout => {
                Self::DeadlineExceeded
            }
            C::UploadStalled | C::RequestBodyFailed | C::ClientClosed => Self::Cancelled,
            C::StreamReset => Self::of_reset(failure.detail()),
            C::UpstreamStatus => Self::of_status(failure.status()),
            C::Unknown => Self::Unknown,
        }
    }

    fn of_reset(detail: Option<Detail>) -> Self {
        match detail {
            Some(Detail::H2(7)) => Self::Unavailable,
            Some(Detail::H2(8)) => Self::Cancelled,
            Some(Detail::H2(11)) => Self::ResourceExhausted,
            Some(Detail::H2(12)) => Self::PermissionDenied,
            _ => Self::Internal,
        }
    }

    fn of_status(status: StatusCode) -> Self {
        match status.as_u16() {
            400 => Self::Internal,
            403 => Self::PermissionDenied,
            404 => Self::Unimplemented,
            429 | 502..=504 => Self::Unavailable,
            _ => Self::Unknown,
        }
    }
}

/// The status, the message and the pushback, under gRPC's names.
struct Trailers {
    code: Code,
    message: String,
    pushback: Option<u32>,
}

impl Trailers {
    fn of(failure: &Failure, message: &str, headers: &HeaderMap) -> Self {
        let proven = failure.replay() == Replay::NotSent;
        let pushback = if proven { pushback(headers) } else { None };
        Self { code: Code::of(failure), message: percent_encoded(message), pushback }
    }

    fn lines(self) -> impl Iterator<Item = (&'static str, String)> {
        let status = Some(("grpc-status", (self.code as u8).to_string()));
        let message = Some(("grpc-message", self.message));
        let pushback = self.pushback.map(|millis| ("grpc-retry-pushback-ms", millis.to_string()));
        [status, message, pushback].into_iter().flatten()
    }
}

/// Rewrites the head as that of a failed call and returns its body.
///
/// gRPC has no body (`Trailers-Only` of `PROTOCOL-HTTP2.md`). gRPC-Web has its trailers in the body
/// (`PROTOCOL-WEB.md`), where browsers can read them without CORS permission for the fields of the head.
pub(super) fn write(headers: &mut HeaderMap, protocol: ErrorFormat, failure: &Failure, message: &str) -> Bytes {
    let trailers = Trailers::of(failure, message, headers);
    let (kind, body) = match protocol {
        ErrorFormat::GrpcWeb => ("application/grpc-web+proto", Bytes::from(frame(trailers))),
        ErrorFormat::GrpcWebText => ("application/grpc-web-text+proto", Bytes::from(base64(&frame(trailers)))),
        ErrorFormat::Grpc | ErrorFormat::Http | ErrorFormat::Head => {
            for (name, value) in trailers.lines() {
                if let Ok(value) = HeaderValue::try_from(value) {
                    headers.insert(HeaderName::from_static(name), value);
                }
            }
            ("application/grpc", Bytes::new())
        }
    };
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    body
}

/// `Retry-After` in milliseconds: a signed 32-bit number (gRPC proposal A6).
fn pushback(headers: &HeaderMap) -> Option<u32> {
    let seconds: u32 = headers.get(RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(seconds.saturating_mul(1000).min(i32::MAX.unsigned_abs()))
}

/// A trailer frame of gRPC-Web: the first bit set, then the length and the lines.
fn frame(trailers: Trailers) -> Vec<u8> {
    let mut block = String::new();
    for (name, value) in trailers.lines() {
        let _ = write!(block, "{name}: {value}\r\n");
    }
    let length = u32::try_from(block.len()).unwrap_or_default();
    [&[0x80][..], &length.to_be_bytes(), block.as_bytes()].concat()
}

/// `Status-Message`: everything but visible ASCII and space is written as `%XX`, and so is `%` (`PROTOCOL-HTTP2.md`, Responses).
fn percent_encoded(message: &str) -> String {
    let mut out = String::with_capacity(message.len());
    for byte in message.bytes() {
        if matches!(byte, b' '..=b'~') && byte != b'%' {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

/// Base64 with padding (RFC 4648 section 4).
pub(super) fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let word = three.iter().zip([16, 8, 0]).fold(0_u32, |word, (byte, shift)| word | u32::from(*byte) << shift);
        for (place, shift) in [18, 12, 6, 0].into_iter().enumerate() {
            let digit = char::from(DIGITS[(word >> shift & 63) as usize]);
            out.push(if place <= three.len() { digit } else { '=' });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_failure_that_must_not_be_retried_is_not_unavailable() {
        for &cause in BadGatewayCause::ALL {
            // gRPC too maps a connection that broke within a response to Unavailable
            if cause.replay() == Replay::Never && cause != BadGatewayCause::IncompleteBody {
                assert_ne!(Code::of(&Failure::new(cause)), Code::Unavailable, "{cause}");
            }
        }
    }

    #[test]
    fn the_codes_are_those_of_the_table() {
        use BadGatewayCause as C;
        for (cause, code) in [
            (C::ConnectionRefused, 14),
            (C::CircuitOpen, 14),
            (C::FirstByteTimeout, 4),
            (C::DeadlineExceeded, 4),
            (C::ConnectTimeout, 14),
            (C::GatewayOverload, 8),
            (C::ConnectionLimit, 8),
            (C::ClientClosed, 1),
            (C::GatewayInternal, 13),
            (C::LoopDetected, 13),
            (C::NoRoute, 12),
            (C::UpstreamStatus, 14),
            (C::Unknown, 2),
        ] {
            assert_eq!(Code::of(&Failure::new(cause)) as u8, code, "{cause}");
        }
        for (reset, code) in [(0, 13), (2, 13), (7, 14), (8, 1), (11, 8), (12, 7)] {
            let failure = Failure::builder(C::StreamReset).detail(Detail::H2(reset)).build();
            assert_eq!(Code::of(&failure) as u8, code, "h2 code {reset}");
        }
        for (status, code) in [(400, 13), (403, 7), (404, 12), (429, 14), (500, 2), (503, 14), (504, 14)] {
            let status = Detail::Status(StatusCode::from_u16(status).unwrap());
            let failure = Failure::builder(C::UpstreamStatus).detail(status).build();
            assert_eq!(Code::of(&failure) as u8, code, "{status}");
        }
    }

    #[test]
    fn a_pushback_is_sent_only_if_a_retry_is_safe() {
        // a rejection by a layer of this crate, or a failure without proof
        let failure = |cause| match cause {
            BadGatewayCause::CircuitOpen => Failure::builder(cause).refusal().build(),
            cause => Failure::new(cause),
        };
        let told = |cause, after: &'static str| {
            let mut headers = HeaderMap::from_iter([(RETRY_AFTER, HeaderValue::from_static(after))]);
            write(&mut headers, ErrorFormat::Grpc, &failure(cause), "");
            headers.get("grpc-retry-pushback-ms").map(|value| value.to_str().unwrap().to_owned())
        };
        assert_eq!(told(BadGatewayCause::CircuitOpen, "2").as_deref(), Some("2000"));
        assert_eq!(told(BadGatewayCause::CircuitOpen, "4294967295").as_deref(), Some("2147483647"));
        assert_eq!(told(BadGatewayCause::CircuitOpen, "Sun, 06 Nov 1994 08:49:37 GMT"), None);
        assert_eq!(told(BadGatewayCause::FirstByteTimeout, "2"), None);
        assert_eq!(told(BadGatewayCause::ConnectionRefused, "2"), None);
    }

    #[test]
    fn web_trailers_are_a_frame_of_the_body() {
        let failure = Failure::new(BadGatewayCause::ConnectionRefused);
        let mut headers = HeaderMap::new();
        let body = write(&mut headers, ErrorFormat::GrpcWeb, &failure, "50 % off\u{e9}");
        assert_eq!(&body[..5], [0x80, 0, 0, 0, 49]);
        assert_eq!(&body[5..], b"grpc-status: 14\r\ngrpc-message: 50 %25 off%C3%A9\r\n");
        assert_eq!(
            (headers.len(), &headers[CONTENT_TYPE]),
            (1, &HeaderValue::from_static("application/grpc-web+proto"))
        );
        let text = write(&mut headers, ErrorFormat::GrpcWebText, &failure, "50 % off\u{e9}");
        assert_eq!(text, base64(&body));
        assert_eq!(headers[CONTENT_TYPE], "application/grpc-web-text+proto");
    }

    #[test]
    fn base64_is_that_of_the_rfc() {
        for (plain, coded) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg==")] {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
        assert_eq!(base64(&[0xfb, 0xff, 0xbf]), "+/+/");
    }

    proptest! {
        #[test]
        fn any_message_is_a_field_and_comes_back(message in any::<String>()) {
            let coded = percent_encoded(&message);
            prop_assert!(HeaderValue::try_from(&coded).is_ok());
            let mut bytes = Vec::new();
            let mut rest = coded.as_bytes();
            while let Some((&first, after)) = rest.split_first() {
                let (byte, after) = match first {
                    b'%' => (u8::from_str_radix(std::str::from_utf8(&after[..2]).unwrap(), 16).unwrap(), &after[2..]),
                    plain => (plain, after),
                };
                bytes.push(byte);
                rest = after;
            }
            prop_assert_eq!(String::from_utf8(bytes).unwrap(), message);
        }
    }
}
