//! Rewrites the request target for each protocol.

use http::header::{CONNECTION, HOST, UPGRADE};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderValue, Request, Uri, Version, request};

use super::Target;

/// Appends the path to the target's; `None` if the result is not a path.
pub(super) fn rewrite(target: &Target, parts: &mut request::Parts) -> Option<()> {
    if !target.keeps_paths() {
        parts.uri = target.path(parts.uri.path_and_query()?)?.into();
    }
    Some(())
}

/// Restores origin-form and `Host`, if the request was returned by an HTTP/2 connection.
pub(super) fn to_h1<B>(request: &mut Request<B>) {
    if request.version() != Version::HTTP_2 {
        return;
    }
    *request.version_mut() = Version::HTTP_11;
    let parts = std::mem::take(request.uri_mut()).into_parts();
    if let Some(host) = parts.authority.and_then(|authority| HeaderValue::try_from(authority.as_str()).ok()) {
        request.headers_mut().insert(HOST, host);
    }
    *request.uri_mut() = parts.path_and_query.unwrap_or(PathAndQuery::from_static("/")).into();
}

/// `:scheme`, `:authority` and `:path` from the URI, no connection fields (RFC 9113 sections 8.2.2, 8.3.1).
#[cfg_attr(not(feature = "http2"), expect(dead_code, reason = "requests stay HTTP/1.1"))]
pub(super) fn to_h2<B>(request: &mut Request<B>, scheme: &Scheme) {
    *request.version_mut() = Version::HTTP_2;
    let headers = request.headers_mut();
    headers.remove(CONNECTION);
    headers.remove(UPGRADE);
    // the rules let no other pass; h2 would refuse a request without an authority
    let Some(Ok(authority)) = headers.get(HOST).map(|host| Authority::try_from(host.as_bytes())) else { return };
    headers.remove(HOST);
    let path = request.uri().path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));
    let uri = Uri::builder().scheme(scheme.clone()).authority(authority).path_and_query(path).build();
    if let Ok(uri) = uri {
        *request.uri_mut() = uri;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_changes_protocol_and_back() {
        let mut request = Request::get("/a?b").header("host", "h.example").header("upgrade", "x").body(()).unwrap();
        to_h2(&mut request, &Scheme::HTTPS);
        assert_eq!(request.uri(), "https://h.example/a?b");
        assert!(request.headers().is_empty());
        to_h1(&mut request);
        assert_eq!(request.uri(), "/a?b");
        assert_eq!(request.headers()["host"], "h.example");
    }
}
