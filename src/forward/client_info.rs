//! The client's connection: address and scheme.

use std::net::IpAddr;

use http::{Extensions, HeaderValue};

/// The scheme of the client's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// Without TLS.
    Http,
    /// Over TLS.
    Https,
}

impl Scheme {
    /// The name in lower case, as in a URI.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

/// The client of a request; create one per connection, with its field values prepared.
///
/// A request's own is the one in its extensions, else that of the proxy or layer. With the feature `axum`, where neither is
/// known, it is axum's `ConnectInfo<SocketAddr>`: serve the app by `into_make_service_with_connect_info::<SocketAddr>()`.
/// It says nothing about the scheme, so that `X-Forwarded-Proto` is not written.
#[derive(Clone, Debug)]
pub struct ClientInfo {
    address: Option<HeaderValue>,
    scheme: Option<Scheme>,
    element: HeaderValue,
}

impl ClientInfo {
    /// A client with this address, if known, and scheme.
    ///
    /// An IPv4-mapped address of a dual-stack socket is written as IPv4.
    pub fn new(address: Option<IpAddr>, scheme: Scheme) -> Self {
        let node = node(address);
        Self {
            address: address.and_then(|address| HeaderValue::try_from(address.to_canonical().to_string()).ok()),
            scheme: Some(scheme),
            element: HeaderValue::try_from(format!("for={node};proto={}", scheme.as_str()))
                .unwrap_or(HeaderValue::from_static("for=unknown")),
        }
    }

    /// A client with unknown address and scheme.
    pub fn unknown() -> Self {
        Self { address: None, scheme: None, element: HeaderValue::from_static("for=unknown") }
    }

    /// The client of this request, unless `known` is all that is known of it.
    pub(super) fn of_request(extensions: &Extensions, known: &Self) -> Option<Self> {
        let own = extensions.get::<Self>().cloned();
        own.or_else(
            || if known.address.is_none() && known.scheme.is_none() { Self::accepted(extensions) } else { None },
        )
    }

    /// The client that axum's server accepted.
    #[cfg(feature = "axum")]
    fn accepted(extensions: &Extensions) -> Option<Self> {
        use axum::extract::ConnectInfo;

        let ConnectInfo(client) = extensions.get::<ConnectInfo<std::net::SocketAddr>>()?;
        Some(Self::at(client.ip()))
    }

    #[cfg(not(feature = "axum"))]
    fn accepted(_: &Extensions) -> Option<Self> {
        None
    }

    /// A client with this address and an unknown scheme.
    #[cfg(feature = "axum")]
    fn at(address: IpAddr) -> Self {
        let element = format!("for={}", node(Some(address)));
        Self {
            address: HeaderValue::try_from(address.to_canonical().to_string()).ok(),
            scheme: None,
            element: HeaderValue::try_from(element).unwrap_or(HeaderValue::from_static("for=unknown")),
        }
    }

    /// The value for `X-Forwarded-For`.
    pub(super) fn address(&self) -> Option<&HeaderValue> {
        self.address.as_ref()
    }

    /// The value for `X-Forwarded-Proto`.
    pub(super) fn proto(&self) -> Option<HeaderValue> {
        self.scheme.map(|scheme| HeaderValue::from_static(scheme.as_str()))
    }

    /// The element for `Forwarded`, without the host (RFC 7239 section 5).
    pub(super) fn element(&self) -> &HeaderValue {
        &self.element
    }
}

/// The node of `Forwarded` (RFC 7239 section 6).
fn node(address: Option<IpAddr>) -> String {
    match address.map(|address| address.to_canonical()) {
        Some(IpAddr::V4(address)) => address.to_string(),
        // brackets and colons are not allowed in a token, hence the quotes
        Some(IpAddr::V6(address)) => format!("\"[{address}]\""),
        None => "unknown".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(feature = "axum")]
    #[test]
    fn the_client_that_axum_accepted_is_used_where_no_other_is_known() {
        use std::net::SocketAddr;

        let mut extensions = Extensions::new();
        extensions.insert(axum::extract::ConnectInfo(SocketAddr::from(([192, 0, 2, 7], 4711))));
        let of = |extensions: &Extensions, known| {
            let client = ClientInfo::of_request(extensions, &known)?;
            Some((client.address()?.to_str().unwrap().to_owned(), client.element().to_str().unwrap().to_owned()))
        };
        let accepted = Some(("192.0.2.7".to_owned(), "for=192.0.2.7".to_owned()));
        assert_eq!(of(&extensions, ClientInfo::unknown()), accepted);
        assert_eq!(of(&extensions, ClientInfo::new(Some([192, 0, 2, 9].into()), Scheme::Http)), None);
        extensions.insert(ClientInfo::new(Some([192, 0, 2, 8].into()), Scheme::Https));
        assert_eq!(of(&extensions, ClientInfo::unknown()).unwrap().1, "for=192.0.2.8;proto=https");
    }

    fn said(address: &str, scheme: Scheme) -> (String, String) {
        let caller = ClientInfo::new(Some(address.parse().unwrap()), scheme);
        let text = |value: &HeaderValue| value.to_str().unwrap().to_owned();
        (text(caller.address().unwrap()), text(caller.element()))
    }

    #[test]
    fn an_ipv6_address_is_bracketed_and_quoted_in_forwarded_alone() {
        let (address, element) = said("2001:db8::17", Scheme::Https);
        assert_eq!(address, "2001:db8::17");
        assert_eq!(element, "for=\"[2001:db8::17]\";proto=https");
    }

    #[test]
    fn an_ipv4_address_is_written_as_one_even_from_a_dual_stack_socket() {
        for address in ["192.0.2.60", "::ffff:192.0.2.60"] {
            assert_eq!(said(address, Scheme::Http), ("192.0.2.60".to_owned(), "for=192.0.2.60;proto=http".to_owned()));
        }
    }

    #[test]
    fn an_unknown_client_has_no_values() {
        let caller = ClientInfo::unknown();
        assert_eq!((caller.address(), caller.proto()), (None, None));
        assert_eq!(caller.element(), "for=unknown");
        assert_eq!(ClientInfo::new(None, Scheme::Https).element(), "for=unknown;proto=https");
    }
}
