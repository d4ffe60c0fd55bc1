//! Fields that must not be forwarded in trailers (RFC 9110 section 6.5.1).

use http::header::{self, HeaderMap, HeaderName};

use super::header_lists::is_origin;
use super::hop::strip_hop_by_hop;
use super::size::field_section_size;

/// Fields of framing, routing, authentication, request control and content format, in addition to the hop-by-hop ones.
static HEAD_ONLY: [HeaderName; 14] = [
    header::AUTHORIZATION,
    header::CACHE_CONTROL,
    header::CONTENT_ENCODING,
    header::CONTENT_LENGTH,
    header::CONTENT_RANGE,
    header::CONTENT_TYPE,
    header::COOKIE,
    header::EXPECT,
    header::HOST,
    header::MAX_FORWARDS,
    header::RANGE,
    header::SET_COOKIE,
    header::TRAILER,
    header::VIA,
];

/// Removes the fields that must not appear in a trailer section.
///
/// These are the hop-by-hop fields of [`strip_hop_by_hop`], which HTTP/2 forbids (RFC 9113 section 8.2.2); fields of
/// framing, routing, authentication and content format such as `Host`, `Content-Length` and `Authorization` (RFC 9110
/// section 6.5.1); and the `Forwarded` family, which a recipient might merge into the head.
///
/// `ReverseProxy` and [`ForwardLayer`](super::ForwardLayer) apply it both ways. Between other clients and servers, map the
/// frames of both bodies:
///
/// ```
/// use bytes::Bytes;
/// use http::HeaderMap;
/// use http_body_util::{BodyExt, Full};
/// use tower_upstream::forward::strip_trailers;
///
/// let mut trailers = HeaderMap::new();
/// trailers.insert("connection", "close".parse().unwrap());
/// trailers.insert("x-checksum", "1".parse().unwrap());
///
/// let body = Full::new(Bytes::from("text")).with_trailers(async move { Some(Ok(trailers)) });
/// let body = body.map_frame(|mut frame| {
///     frame.trailers_mut().map(strip_trailers);
///     frame
/// });
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// let received = body.collect().await.unwrap().trailers().unwrap().clone();
/// assert_eq!(received.len(), 1);
/// assert_eq!(received["x-checksum"], "1");
/// # });
/// ```
pub fn strip_trailers(trailers: &mut HeaderMap) {
    strip_hop_by_hop(trailers);
    for name in &HEAD_ONLY {
        trailers.remove(name);
    }
    let origins: Vec<HeaderName> = trailers.keys().filter(|name| is_origin(name)).cloned().collect();
    for name in origins {
        trailers.remove(name);
    }
}

/// The maximum size of a forwarded trailer section, counted as in HTTP/2: hyper's servers and clients accept this much by
/// default. A larger section could make the peer close the connection with all its streams.
const MAX_SIZE: usize = 16 << 10;

/// Like [`strip_trailers`], for a client's trailers: a section that is too large is discarded, as RFC 9110 section 6.5
/// allows.
pub(crate) fn strip_request_trailers(trailers: &mut HeaderMap) {
    if !strip_response_trailers(trailers) {
        trailers.clear();
    }
}

/// Like [`strip_trailers`], for an upstream's trailers; returns whether the remaining section is small enough.
///
/// A larger section is not discarded: it may contain a checksum or the status of a gRPC call.
pub(crate) fn strip_response_trailers(trailers: &mut HeaderMap) -> bool {
    strip_trailers(trailers);
    field_section_size(trailers) <= MAX_SIZE
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::forward::tests::{head, names};

    fn stripped(fields: &[(&str, &str)]) -> Vec<String> {
        let mut trailers = head("GET", "/", fields).headers;
        strip_trailers(&mut trailers);
        names(&trailers)
    }

    #[test]
    fn fields_of_a_head_or_a_connection_are_removed_from_trailers() {
        let fields = [
            ("authorization", "Basic eA=="),
            ("connection", "close, x-named"),
            ("content-length", "99"),
            ("forwarded", "for=192.0.2.1"),
            ("grpc-status", "0"),
            ("host", "a"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "close"),
            ("te", "gzip"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "websocket"),
            ("via", "1.1 a"),
            ("x-checksum", "1"),
            ("x-forwarded-for", "127.0.0.1"),
            ("x-named", "1"),
            ("x_forwarded_for", "127.0.0.1"),
        ];
        assert_eq!(stripped(&fields), ["grpc-status", "x-checksum"]);
        assert_eq!(stripped(&[("connection", "close")]), [""; 0]);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn http2_takes_any_trailers_that_are_left(
            fields in proptest::collection::vec((prop::sample::select(vec![
                "connection", "te", "transfer-encoding", "upgrade", "keep-alive", "proxy-connection", "host",
                "content-length", "x-one", "x-two", "x-real-ip", "x-forwarded-proto",
            ]), "[ -~]{0,12}"), 0..8),
        ) {
            let fields: Vec<_> = fields.iter().map(|(name, value)| (*name, value.as_str())).collect();
            let left = stripped(&fields);
            prop_assert!(left.iter().all(|name| name.starts_with("x-one") || name.starts_with("x-two")), "{:?}", left);
        }
    }
}
