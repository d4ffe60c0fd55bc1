//! Where requests go.

use std::fmt;
use std::str::FromStr;

use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderValue, Uri};

/// An upstream's address: scheme, authority, and a path that requests' paths are appended to.
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
    /// Without its last slash; empty for none.
    base: String,
}

/// The text is no upstream address; it says why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidTarget(&'static str);

impl fmt::Display for InvalidTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for InvalidTarget {}

impl FromStr for Target {
    type Err = InvalidTarget;

    /// Reads `host:port` or an `http` or `https` URL.
    ///
    /// # Errors
    /// [`InvalidTarget`] for another scheme, a missing host, user information or a query.
    fn from_str(text: &str) -> Result<Self, InvalidTarget> {
        let url = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
        let uri: Uri = url.parse().map_err(|_| InvalidTarget("not host:port, nor a URL"))?;
        let parts = uri.into_parts();
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

    /// Host and port as they were written.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// What a connector is asked for.
    pub(super) fn uri(&self) -> Uri {
        let parts = Uri::builder().scheme(self.scheme.clone()).authority(self.authority.clone()).path_and_query("/");
        parts.build().expect("the parts of a URI that was parsed")
    }

    /// The authority as a `Host` field.
    pub(super) fn host(&self) -> HeaderValue {
        HeaderValue::try_from(self.authority.as_str()).expect("an authority is visible ASCII")
    }

    /// The request's path under this target's; `None` where both together are no path.
    pub(super) fn path(&self, asked: &PathAndQuery) -> Option<PathAndQuery> {
        if asked.as_str() == "*" {
            return Some(asked.clone());
        }
        PathAndQuery::try_from(format!("{}{asked}", self.base)).ok()
    }

    /// Whether requests' paths stay as they are.
    pub(super) fn keeps_paths(&self) -> bool {
        self.base.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_are_none_are_refused() {
        for text in ["", "http://", "http://u@h", "h:0", "h:99999", "h:x", "http://h/?q", "/only/path", "a b"] {
            assert!(text.parse::<Target>().is_err(), "{text:?}");
        }
        for text in ["h", "h:1", "[::1]:80", "https://h:443/base"] {
            assert!(text.parse::<Target>().is_ok(), "{text:?}");
        }
    }

    #[test]
    fn paths_are_appended_to_the_base() {
        let target: Target = "http://h/base/".parse().unwrap();
        assert_eq!(target.path(&PathAndQuery::from_static("/a?b")).unwrap(), "/base/a?b");
        assert_eq!(target.path(&PathAndQuery::from_static("*")).unwrap(), "*");
    }
}
