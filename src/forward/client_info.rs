//! The client's connection: address and scheme.

use std::net::IpAddr;

use http::HeaderValue;

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
        let node = match address.map(|address| address.to_canonical()) {
            Some(IpAddr::V4(address)) => address.to_string(),
            // brackets and colons are not allowed in a token, hence the quotes (RFC 7239 section 6)
            Some(IpAddr::V6(address)) => format!("\"[{address}]\""),
            None => "unknown".to_owned(),
        };
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

#[cfg(test)]
mod tests {
    use super::*;

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
