//! The upstream's address and HTTP version.

use std::fmt;
use std::str::FromStr;

use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderValue, Uri};

use crate::cause::{BadGatewayCause, Detail, Evidence, Failure, Phase};

/// An upstream's address: scheme, authority, and a path that requests' paths are appended to.
///
/// A request cannot leave that path: dot segments (RFC 3986 section 5.2.4) that would do so are rejected with 400. Servers
/// differ in what they take for a dot segment, so the strictest reading counts: percent-encoding is decoded, also if it was
/// applied twice; `%2F`, `\` and `%5C` separate as `/` does; parameters after a `;` do not count; and several slashes are
/// one. Other dot segments are forwarded unchanged, and so are all if the target has no path.
///
/// ```
/// use tower_upstream::client::Target;
///
/// let target: Target = "127.0.0.1:8080".parse().unwrap();
/// assert_eq!(target.to_string(), "http://127.0.0.1:8080");
/// let target: Target = "https://api.example/v2/".parse().unwrap();
/// assert_eq!(target.to_string(), "https://api.example/v2");
/// assert!("ftp://files.example".parse::<Target>().is_err());
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    scheme: Scheme,
    authority: Authority,
    /// Without its trailing slash; empty if none.
    base: String,
}

/// The HTTP version of the upstream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum HttpVersion {
    /// HTTP/1.1, or what TLS negotiates by ALPN.
    #[default]
    Auto,
    /// HTTP/2 with prior knowledge (RFC 9113 section 3.3). Upgrades, WebSocket among them, fail.
    #[cfg(feature = "http2")]
    H2,
}

impl HttpVersion {
    /// Whether HTTP/2 is used without negotiation.
    pub(super) fn is_h2(self) -> bool {
        self != Self::Auto
    }
}

/// The text is not an upstream address; the message says why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidTarget(&'static str);

impl fmt::Display for InvalidTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for InvalidTarget {}

impl InvalidTarget {
    /// The failure of a request to it; nothing is sent.
    pub(super) fn into_failure(self) -> Failure {
        let failure = Failure::builder(BadGatewayCause::InvalidTarget).phase(Phase::Gateway);
        failure.unsent(Evidence::LocalRefusal).detail(Detail::Text(self.0)).build()
    }
}

impl FromStr for Target {
    type Err = InvalidTarget;

    /// Reads `host`, `host:port` or an `http` or `https` URL.
    ///
    /// # Errors
    /// [`InvalidTarget`] for another scheme, a missing host, user information, a query, or dot segments.
    fn from_str(text: &str) -> Result<Self, InvalidTarget> {
        const NO_ADDRESS: InvalidTarget = InvalidTarget("expected host, host:port, or an http or https URL");
        let url = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
        let parts = url.parse::<Uri>().map_err(|_| NO_ADDRESS)?.into_parts();
        let scheme = match parts.scheme {
            Some(scheme) if scheme == Scheme::HTTP || scheme == Scheme::HTTPS => scheme,
            _ => return Err(InvalidTarget("the scheme is neither http nor https")),
        };
        let authority = parts.authority.ok_or(InvalidTarget("no host"))?;
        if authority.host().is_empty() {
            return Err(InvalidTarget("no host"));
        }
        if authority.as_str().contains('@') {
            return Err(InvalidTarget("user information has no place in an upstream's address"));
        }
        let port = authority.as_str()[authority.host().len()..].strip_prefix(':');
        if port.is_some_and(|port| port.parse::<u16>().map_or(true, |port| port == 0)) {
            return Err(InvalidTarget("the port is not between 1 and 65535"));
        }
        let path = parts.path_and_query.as_ref();
        if path.is_some_and(|path| path.query().is_some()) {
            return Err(InvalidTarget("a query has no place in an upstream's address"));
        }
        if path.is_some_and(|path| segments(path.path()).any(|segment| segment != Segment::Name)) {
            return Err(InvalidTarget("dot segments have no place in an upstream's address"));
        }
        let base = path.map_or("", PathAndQuery::path).trim_end_matches('/').to_owned();
        Ok(Self { scheme, authority, base })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", self.scheme, self.authority, self.base)
    }
}

impl Target {
    /// The scheme, `http` or `https`.
    pub fn scheme(&self) -> &Scheme {
        &self.scheme
    }

    /// Host and port as given.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// The URI for the connector.
    pub(super) fn uri(&self) -> Uri {
        let parts = Uri::builder().scheme(self.scheme.clone()).authority(self.authority.clone()).path_and_query("/");
        parts.build().expect("the parts of a URI that was parsed")
    }

    /// The authority as a `Host` field.
    pub(super) fn host(&self) -> HeaderValue {
        HeaderValue::try_from(self.authority.as_str()).expect("an authority is visible ASCII")
    }

    /// The request's path appended to this target's; `None` if the result is not a path.
    pub(super) fn path(&self, asked: &PathAndQuery) -> Option<PathAndQuery> {
        if asked.as_str() == "*" {
            return Some(asked.clone());
        }
        PathAndQuery::try_from(format!("{}{asked}", self.base)).ok()
    }

    /// Whether a path appended to this target's stays under it, under any interpretation by the upstream.
    pub(super) fn confines(&self, asked: &PathAndQuery) -> bool {
        self.keeps_paths() || is_confined(asked.path())
    }

    /// Whether the paths of requests are unchanged.
    pub(super) fn keeps_paths(&self) -> bool {
        self.base.is_empty()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Segment {
    Name,
    /// `.`
    Here,
    /// `..`
    Up,
}

/// Whether no dot segment leads above the start of the path.
fn is_confined(path: &str) -> bool {
    // most paths have no dot segment in any encoding
    if !path.contains("..") && !path.contains('%') {
        return true;
    }
    let mut depth = 0_usize;
    for part in path.split('/') {
        // an encoded slash may or may not separate: count the names around it as one level, the stricter reading
        let mut named = false;
        for segment in segments(part) {
            match segment {
                Segment::Name if !named => (depth, named) = (depth + 1, true),
                Segment::Name | Segment::Here => {}
                Segment::Up => match depth.checked_sub(1) {
                    Some(above) => depth = above,
                    None => return false,
                },
            }
        }
    }
    true
}

/// The non-empty segments, split at everything that may separate them.
fn segments(path: &str) -> impl Iterator<Item = Segment> {
    let mut rest = path.as_bytes();
    std::iter::from_fn(move || {
        while !rest.is_empty() {
            if let Some(segment) = segment(&mut rest) {
                return Some(segment);
            }
        }
        None
    })
}

/// Takes one segment and its separator; `None` for an empty one.
fn segment(rest: &mut &[u8]) -> Option<Segment> {
    let (mut bytes, mut dots, mut has_parameters) = (0, 0, false);
    while let Some(byte) = decoded(rest) {
        match byte {
            b'/' | b'\\' => break,
            // parameters such as ";jsessionid=1" are not part of the name
            b';' => has_parameters = true,
            _ if has_parameters => {}
            b'.' => (bytes, dots) = (bytes + 1, dots + 1),
            _ => bytes += 1,
        }
    }
    match (bytes, dots) {
        (0, _) => None,
        (1, 1) => Some(Segment::Here),
        (2, 2) => Some(Segment::Up),
        _ => Some(Segment::Name),
    }
}

/// Takes one byte, decoded as often as it was encoded.
fn decoded(rest: &mut &[u8]) -> Option<u8> {
    let (first, behind) = rest.split_first()?;
    *rest = behind;
    if *first != b'%' {
        return Some(*first);
    }
    let mut ahead = behind;
    // "%25" is "%"
    while let Some(more) = ahead.strip_prefix(b"25") {
        ahead = more;
    }
    let hex = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    if let [high, low, behind @ ..] = ahead {
        if let (Some(high), Some(low)) = (hex(*high), hex(*low)) {
            *rest = behind;
            return Some(high << 4 | low);
        }
    }
    Some(b'%')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_host_and_port_or_a_url_is_accepted() {
        for text in
            ["", "http://", "http://u@h", "h:0", "h:99999", "h:x", "http://h/?q", "/only/path", "a b", "h:1/a/%2e./b"]
        {
            assert!(text.parse::<Target>().is_err(), "{text:?}");
        }
        for text in ["h", "h:1", "http://h", "h:1/base", "[::1]:80", "https://h:443/base"] {
            assert!(text.parse::<Target>().is_ok(), "{text:?}");
        }
    }

    #[test]
    fn paths_are_appended_to_the_base() {
        let target: Target = "http://h/base/".parse().unwrap();
        assert_eq!(target.path(&PathAndQuery::from_static("/a?b")).unwrap(), "/base/a?b");
        assert_eq!(target.path(&PathAndQuery::from_static("*")).unwrap(), "*");
    }

    #[test]
    fn no_encoding_of_a_dot_segment_leaves_the_base() {
        let target: Target = "http://h/v2/public".parse().unwrap();
        for path in [
            "/..",
            "/../admin",
            "/a/../../admin",
            "/./../admin",
            "//../admin",
            "/a//../../admin",
            "/%2e%2e/admin",
            "/%2E./admin",
            "/.%2e/admin",
            "/%252e%252e/admin",
            "/%25252e./admin",
            "/..%2fadmin",
            "/a%2f..%2f..%2fadmin",
            "/a%2fb/../../admin",
            "/%2e%2e%2fadmin",
            "/..%252fadmin",
            "/..\\admin",
            "/..%5cadmin",
            "/..;/admin",
            "/..;a=b/admin",
            "/..%3b/admin",
            "/%2e%2e;x/admin",
            "/;x/../admin",
            "/../public/a",
        ] {
            assert!(!target.confines(&path.parse().unwrap()), "{path}");
        }
        for path in [
            "/",
            "/a/../b",
            "/a/b/../../c",
            "/...",
            "/..a/b",
            "/a..",
            "/a.b/.c",
            "/.%2ea",
            "/.",
            "/a%2fb",
            "/a%2f..",
            "/100%",
            "/%zz/..",
            "/%25/..",
            "/caf%C3%A9/..",
            "/a?b=/../..",
            "*",
        ] {
            assert!(target.confines(&path.parse().unwrap()), "{path}");
        }
        let plain: Target = "http://h".parse().unwrap();
        assert!(plain.confines(&"/../admin".parse().unwrap()));
    }
}
