//! The messages of gRPC's health protocol, `grpc.health.v1`. Pure.

use http::HeaderMap;

use crate::balance::check_report::CheckReport;

pub(super) const PATH: &str = "/grpc.health.v1.Health/Check";
/// The longest name of a service, in bytes.
pub(super) const MAX_SERVICE: usize = 1024;

/// Encodes a `HealthCheckRequest`, whose field 1 is the name of the service.
#[allow(clippy::cast_possible_truncation)] // seven bits
pub(super) fn request(service: &str) -> Vec<u8> {
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(0x0a);
        let mut length = service.len();
        while length >= 0x80 {
            message.push((length & 0x7f) as u8 | 0x80);
            length >>= 7;
        }
        message.push((length & 0x7f) as u8);
        message.extend_from_slice(service.as_bytes());
    }
    // the prefix of a gRPC message: not compressed, and its length
    let mut framed = vec![0];
    framed.extend_from_slice(&u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes());
    framed.extend_from_slice(&message);
    framed
}

/// Reads a response: its message, and its status in trailers or headers.
pub(super) fn report(body: &[u8], headers: &HeaderMap, trailers: Option<&HeaderMap>) -> CheckReport {
    let of = |fields: &HeaderMap| fields.get("grpc-status")?.to_str().ok()?.parse::<u16>().ok();
    let status = trailers.and_then(of).or_else(|| of(headers));
    let report = match (status, serving(body)) {
        (Some(0), Some(1)) => CheckReport::passed(),
        (Some(0), Some(2)) => CheckReport::failed("gRPC health status NOT_SERVING"),
        (Some(0), Some(3)) | (Some(5), _) => CheckReport::failed("gRPC health status SERVICE_UNKNOWN"),
        (Some(0), Some(_)) => CheckReport::failed("gRPC health status UNKNOWN"),
        (Some(0), None) => CheckReport::failed("the response is no HealthCheckResponse"),
        (Some(12), _) => CheckReport::failed("the server has no gRPC health service"),
        (Some(status), _) => CheckReport::failed(format!("gRPC status {status}")),
        (None, _) => CheckReport::failed("the response has no gRPC status"),
    };
    CheckReport { status, ..report }
}

/// Reads field 1 of a `HealthCheckResponse`, the status; 0 (unknown) if it is missing.
fn serving(body: &[u8]) -> Option<u64> {
    let (prefix, rest) = body.split_at_checked(5)?;
    let length = usize::try_from(u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]])).ok()?;
    if prefix[0] != 0 {
        return None;
    }
    let mut message = rest.get(..length)?;
    let mut status = 0;
    while !message.is_empty() {
        let tag = varint(&mut message)?;
        match (tag >> 3, tag & 7) {
            (1, 0) => status = varint(&mut message)?,
            (_, 0) => {
                varint(&mut message)?;
            }
            (_, 1) => message = message.get(8..)?,
            (_, 2) => {
                let length = usize::try_from(varint(&mut message)?).ok()?;
                message = message.get(length..)?;
            }
            (_, 5) => message = message.get(4..)?,
            _ => return None,
        }
    }
    Some(status)
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (first, behind) = rest.split_first()?;
        *rest = behind;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss, clippy::cast_sign_loss)] // small numbers
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn trailers(status: &'static str) -> HeaderMap {
        [(http::HeaderName::from_static("grpc-status"), HeaderValue::from_static(status))].into_iter().collect()
    }

    #[test]
    fn a_request_is_a_message_with_the_name_of_the_service() {
        assert_eq!(request(""), [0, 0, 0, 0, 0]);
        assert_eq!(request("shop"), b"\0\0\0\0\x06\x0a\x04shop");
        assert_eq!(request(&"x".repeat(200))[..8], [0, 0, 0, 0, 203, 0x0a, 0xc8, 1]);
    }

    #[test]
    fn only_serving_has_passed() {
        let found = |body: &[u8], status| report(body, &HeaderMap::new(), Some(&trailers(status)));
        assert!(found(b"\0\0\0\0\x02\x08\x01", "0").is_passed());
        assert!(found(b"\0\0\0\0\x06\x12\x02hi\x08\x01", "0").is_passed(), "an unknown field is skipped");
        for (body, status, text) in [
            (&b"\0\0\0\0\x02\x08\x02"[..], "0", "NOT_SERVING"),
            (b"\0\0\0\0\0", "0", "UNKNOWN"),
            (b"\0\0\0\0\x02\x08", "0", "no HealthCheckResponse"),
            (b"", "12", "no gRPC health service"),
            (b"", "5", "SERVICE_UNKNOWN"),
            (b"", "14", "gRPC status 14"),
            (b"\0\0\0\0\x02\x08\x01", "x", "has no gRPC status"),
        ] {
            let report = found(body, status);
            assert!(!report.is_passed() && report.text().contains(text), "{body:?} {status}: {report:?}");
        }
        let headers_only = report(b"", &trailers("12"), None);
        assert_eq!(headers_only.status(), Some(12));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(body in proptest::collection::vec(any::<u8>(), 0..64)) {
            serving(&body);
            let mut framed = vec![0, 0, 0, 0, body.len() as u8];
            framed.extend(body);
            serving(&framed);
        }
    }
}
