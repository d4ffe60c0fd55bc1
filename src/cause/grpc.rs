//! gRPC's status, which a response carries in addition to HTTP's: in the head if nothing else follows, else in a trailer.

use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

pub(crate) const DEADLINE_EXCEEDED: u8 = 4;
pub(crate) const RESOURCE_EXHAUSTED: u8 = 8;
pub(crate) const UNAVAILABLE: u8 = 14;

/// The protocol of a request, as far as it decides where the status of a response is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// The HTTP status only.
    #[default]
    Http,
    /// `grpc-status` as well.
    Grpc {
        /// The client set a deadline (`grpc-timeout`).
        has_deadline: bool,
    },
}

impl Protocol {
    /// The protocol of a request, by its method and `Content-Type`.
    #[inline]
    pub(crate) fn of(method: &Method, headers: &HeaderMap) -> Self {
        // gRPC uses POST; skip the header lookup for other methods
        if *method == Method::POST { Self::of_post(headers) } else { Self::Http }
    }

    fn of_post(headers: &HeaderMap) -> Self {
        match headers.get(CONTENT_TYPE) {
            Some(kind) if is_grpc(kind.as_bytes()) => Self::Grpc { has_deadline: headers.contains_key(GRPC_TIMEOUT) },
            _ => Self::Http,
        }
    }

    /// The gRPC status in these header or trailer fields.
    pub(crate) fn status(self, fields: &HeaderMap) -> Option<u8> {
        match self {
            Self::Http => None,
            Self::Grpc { .. } => fields.get(GRPC_STATUS).and_then(code),
        }
    }

    /// The HTTP status with the same meaning, for the codes that count like one.
    ///
    /// `DEADLINE_EXCEEDED` under the client's own deadline says nothing about the upstream.
    pub(crate) fn http_equivalent(self, code: u8) -> Option<StatusCode> {
        match (code, self) {
            (UNAVAILABLE, _) => Some(StatusCode::SERVICE_UNAVAILABLE),
            (RESOURCE_EXHAUSTED, _) => Some(StatusCode::TOO_MANY_REQUESTS),
            (DEADLINE_EXCEEDED, Self::Grpc { has_deadline: false }) => Some(StatusCode::GATEWAY_TIMEOUT),
            _ => None,
        }
    }
}

/// `application/grpc`, alone or with a format (`+proto`) or parameters; gRPC-Web is another protocol.
fn is_grpc(kind: &[u8]) -> bool {
    const GRPC: &[u8] = b"application/grpc";
    let named = kind.get(..GRPC.len()).is_some_and(|start| start.eq_ignore_ascii_case(GRPC));
    named && matches!(kind.get(GRPC.len()), None | Some(b'+' | b';' | b' ' | b'\t'))
}

fn code(value: &HeaderValue) -> Option<u8> {
    value.to_str().ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn protocol(method: &Method, fields: &[(HeaderName, &'static str)]) -> Protocol {
        let fields = fields.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value)));
        Protocol::of(method, &fields.collect())
    }

    #[test]
    fn grpc_is_told_by_its_content_type() {
        for kind in ["application/grpc", "Application/gRPC+proto", "application/grpc; charset=utf-8"] {
            let told = protocol(&Method::POST, &[(CONTENT_TYPE, kind)]);
            assert_eq!(told, Protocol::Grpc { has_deadline: false }, "{kind}");
            let told = protocol(&Method::POST, &[(CONTENT_TYPE, kind), (GRPC_TIMEOUT, "1S")]);
            assert_eq!(told, Protocol::Grpc { has_deadline: true }, "{kind}");
        }
        for kind in ["application/grpc-web", "application/grpcish", "application/json", "application/grp"] {
            assert_eq!(protocol(&Method::POST, &[(CONTENT_TYPE, kind)]), Protocol::Http, "{kind}");
        }
        assert_eq!(protocol(&Method::GET, &[(CONTENT_TYPE, "application/grpc")]), Protocol::Http);
        assert_eq!(protocol(&Method::POST, &[]), Protocol::Http);
    }

    #[test]
    fn a_status_is_read_only_of_grpc_calls() {
        let grpc = Protocol::Grpc { has_deadline: false };
        for (value, code) in [("14", Some(14)), ("8", Some(8)), ("0", Some(0)), ("", None), ("x", None), ("999", None)]
        {
            let fields = HeaderMap::from_iter([(GRPC_STATUS, HeaderValue::from_static(value))]);
            assert_eq!((grpc.status(&fields), Protocol::Http.status(&fields)), (code, None), "{value:?}");
        }
    }

    #[test]
    fn a_deadline_of_the_client_is_no_fault_of_the_upstream() {
        let [own, none] = [true, false].map(|has_deadline| Protocol::Grpc { has_deadline });
        assert_eq!(none.http_equivalent(DEADLINE_EXCEEDED), Some(StatusCode::GATEWAY_TIMEOUT));
        assert_eq!(own.http_equivalent(DEADLINE_EXCEEDED), None);
        for protocol in [own, none] {
            assert_eq!(protocol.http_equivalent(UNAVAILABLE), Some(StatusCode::SERVICE_UNAVAILABLE));
            assert_eq!(protocol.http_equivalent(RESOURCE_EXHAUSTED), Some(StatusCode::TOO_MANY_REQUESTS));
            assert_eq!(protocol.http_equivalent(5), None);
        }
    }
}
