//! Adds scheme and authority to a request's path, for clients that require absolute addresses.

use std::fmt;
use std::str::FromStr;
use std::task::{Context, Poll};

use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Request, Uri};
use tower_layer::Layer;
use tower_service::Service;

/// Sends every request to one origin: scheme, host and port (RFC 9110 section 4.3.1).
///
/// A server receives requests with a path only, or with the public name of the site; hyper-util's client and reqwest need the
/// address to connect to. This layer writes the origin into the request's address and keeps its path and query. Any host in
/// the request's address is replaced: it is chosen by the client, and a gateway that followed it would
/// connect wherever its clients like. The `Host` field and all others are unchanged; hop-by-hop fields are handled by
/// [`forward`](crate::forward).
///
/// ```
/// use http::{Request, Response};
/// use tower::{Layer, ServiceExt, service_fn};
/// use tower_upstream::compat::OriginLayer;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let client = service_fn(|request: Request<()>| async move { Ok::<_, std::io::Error>(request.uri().to_string()) });
/// let origin: OriginLayer = "http://10.0.0.7:9000".parse().unwrap();
/// let asked = origin.layer(client).oneshot(Request::get("/cart?item=3").body(()).unwrap()).await.unwrap();
/// assert_eq!(asked, "http://10.0.0.7:9000/cart?item=3");
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct OriginLayer {
    scheme: Scheme,
    authority: Authority,
}

/// The address is not an origin; the text says why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidOrigin(&'static str);

impl fmt::Display for InvalidOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for InvalidOrigin {}

impl OriginLayer {
    fn new(uri: Uri) -> Result<Self, InvalidOrigin> {
        let parts = uri.into_parts();
        let scheme = match parts.scheme {
            Some(scheme) if scheme == Scheme::HTTP || scheme == Scheme::HTTPS => scheme,
            _ => return Err(InvalidOrigin("the scheme is neither http nor https")),
        };
        let authority = match parts.authority {
            Some(authority) if !authority.host().is_empty() => authority,
            _ => return Err(InvalidOrigin("no host")),
        };
        if authority.as_str().contains('@') {
            return Err(InvalidOrigin("user information has no place in an origin"));
        }
        if parts.path_and_query.is_some_and(|path| path != "/") {
            return Err(InvalidOrigin("an origin has neither path nor query"));
        }
        Ok(Self { scheme, authority })
    }

    fn put_before(&self, uri: &mut Uri) {
        let mut parts = std::mem::take(uri).into_parts();
        parts.scheme = Some(self.scheme.clone());
        parts.authority = Some(self.authority.clone());
        // CONNECT has no path
        parts.path_and_query.get_or_insert_with(|| PathAndQuery::from_static("/"));
        *uri = Uri::from_parts(parts).expect("scheme, authority and path are a URI");
    }
}

impl FromStr for OriginLayer {
    type Err = InvalidOrigin;

    /// Parses `http://host:port` or `https://host:port`; the port is optional.
    ///
    /// # Errors
    /// [`InvalidOrigin`] for another scheme than `http` and `https`, a missing host, user information, a path or a query, and if the
    /// text is not an address.
    fn from_str(text: &str) -> Result<Self, InvalidOrigin> {
        Self::new(text.parse().map_err(|_| InvalidOrigin("not a URL"))?)
    }
}

impl<S> Layer<S> for OriginLayer {
    type Service = Origin<S>;

    fn layer(&self, inner: S) -> Origin<S> {
        Origin { inner, origin: self.clone() }
    }
}

/// The service of [`OriginLayer`].
#[derive(Clone, Debug)]
pub struct Origin<S> {
    inner: S,
    origin: OriginLayer,
}

impl<S, B> Service<Request<B>> for Origin<S>
where
    S: Service<Request<B>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> S::Future {
        self.origin.put_before(request.uri_mut());
        self.inner.call(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent_to(uri: &str) -> String {
        let origin: OriginLayer = "http://10.0.0.7:9000".parse().unwrap();
        let mut uri = uri.parse().unwrap();
        origin.put_before(&mut uri);
        uri.to_string()
    }

    #[test]
    fn path_and_query_stay() {
        assert_eq!(sent_to("/"), "http://10.0.0.7:9000/");
        assert_eq!(sent_to("/a//b/?c=d&e"), "http://10.0.0.7:9000/a//b/?c=d&e");
    }

    #[test]
    fn whatever_host_a_request_names_it_goes_to_the_origin() {
        for named in ["https://evil.example/a", "http://169.254.169.254:80/a", "http://u:p@evil.example/a"] {
            assert_eq!(sent_to(named), "http://10.0.0.7:9000/a", "{named}");
        }
        // CONNECT
        assert_eq!(sent_to("evil.example:443"), "http://10.0.0.7:9000/");
    }

    #[test]
    fn an_asterisk_stays_one() {
        let origin: OriginLayer = "http://a.example".parse().unwrap();
        let mut uri = "*".parse().unwrap();
        origin.put_before(&mut uri);
        assert_eq!((uri.path(), uri.host()), ("*", Some("a.example")));
    }

    #[test]
    fn addresses_that_are_no_origin_are_refused() {
        for text in ["", "/path", "host:80", "ftp://h", "http://u@h", "http://h/p", "http://h/?q", "a b"] {
            assert!(text.parse::<OriginLayer>().is_err(), "{text:?}");
        }
        for text in ["http://h", "https://h:8443/", "http://[::1]:80"] {
            assert!(text.parse::<OriginLayer>().is_ok(), "{text:?}");
        }
    }
}
