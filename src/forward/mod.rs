//! Forwarding rules for message heads: pure, without I/O or clock.
//!
//! [`ForwardingRules::request`] checks a request head and rewrites it for the next hop; [`ForwardingRules::response`] does the
//! same for the response. [`ForwardLayer`] applies both around any client; `ReverseProxy` does so itself. Every rule is one of
//! HTTP's own:
//!
//! | subject | request | response | source |
//! |---|---|---|---|
//! | target, `Host` | checked; 400 if malformed, missing or duplicate; the target's authority wins; forwarded in origin-form | | RFC 9112 section 3.2 |
//! | CONNECT | 501, or 400 without a host and port | | RFC 9110 section 9.3.6 |
//! | TRACE | 405, unless [allowed](ForwardingRules::allow_trace) | | RFC 9110 sections 9.3.8 and 15.5.6 |
//! | `Max-Forwards` of OPTIONS and TRACE | decremented; at 0 the gateway responds itself, to TRACE with harmless fields only | | RFC 9110 sections 7.6.2 and 9.3.8 |
//! | content of TRACE | 400 | | RFC 9110 section 9.3.8 |
//! | `Connection` and the fields it names, `Keep-Alive`, `Proxy-*` of authentication, `Transfer-Encoding` | removed; 400 for more than 32 options | removed | RFC 9110 sections 7.6.1 and 11.7 |
//! | `Content-Length` | 400 if it is not a number, has different values, or comes with `Transfer-Encoding`; equal values become one | equal values become one; removed if it comes with `Transfer-Encoding` | RFC 9112 section 6.3 |
//! | `Transfer-Encoding` other than one `chunked` | 501; 400 in other versions than HTTP/1.1 | | RFC 9112 section 6.1 |
//! | `Expect` | `100-continue` is removed, because the gateway's server has requested the body already; 417 for any other value | | RFC 9110 section 10.1.1 |
//! | `TE` | `trailers` is kept, unless the request asks for an upgrade | removed | RFC 9110 section 10.1.4 |
//! | `Trailer` | kept | kept | RFC 9110 section 6.6.2 |
//! | `Upgrade` | kept in HTTP/1.1 if `Connection` names it, unless it would tunnel HTTP or TLS | kept in a 101 to a requested protocol | RFC 9110 section 7.8 |
//! | `Via` | this gateway's member is added; a loop if it is there already, or if there are more than 64 | kept; no member is added, which is optional for gateways | RFC 9110 section 7.6.3 |
//! | `Forwarded`, `X-Forwarded-*` and other [fields of origin](#fields-of-origin) | removed or overwritten; for a trusted client ([`Trust`]) kept or extended | | RFC 7239 section 8.1 |
//! | `Proxy` | removed | removed | CVE-2016-5385 |
//! | `Proxy-Status` | | kept, or [reduced](ForwardingRules::reduce_proxy_status) | RFC 9209 section 4 |
//! | more than 4,096 different fields, or 60 KiB of head | 431, or 414 for the target alone | | RFC 6585 section 5, RFC 9110 section 15.5.15 |
//! | trailers | see [`strip_trailers`]; discarded if larger than 16 KiB | see [`strip_trailers`]; `trailer_too_large` if larger than 16 KiB | RFC 9110 section 6.5 |
//!
//! For an HTTP/1.0 client, a body without a length ends with its connection, so that a truncated body looks complete.
//!
//! A client may name any other field in `Connection`, including one that a layer before this module added. Add fields that the
//! upstream has to trust after [`ForwardingRules::request`], or handle the client's `Connection` first, with
//! [`strip_hop_by_hop`].
//!
//! # Fields of origin
//!
//! With these fields, gateways report to an upstream where a request came from, how, and who sent it. A client that is not
//! a gateway of ours can forge them, so by default ([`Trust::None`]) they are not forwarded:
//!
//! | reports | fields |
//! |---|---|
//! | address, host, scheme and path of the first request | `Forwarded*`, `X-Forwarded*`, `X-Real-*`, `X-Original-*`, `X-Originating-IP`, `X-Rewrite-URL`, `X-Replaced-Path`, `X-Scheme`, `X-URL-Scheme`, `Front-End-Https`, `X-Client-` with `Addr`, `Address`, `Host`, `IP`, `Port`, `Proto` or `Scheme`, `Client-IP`, `True-Client-IP`, `CF-Connecting-IP`, `CF-Connecting-IPv6`, `CF-Pseudo-IPv4`, `Fastly-Client-IP`, `Fly-Client-IP`, `X-Cluster-Client-IP`, `X-Appengine-User-IP`, `X-Azure-ClientIP`, `X-Azure-SocketIP`, `X-Envoy-External-Address`, `X-Envoy-Internal`, `X-Envoy-IP-Tags`, `X-Envoy-Original-*` |
//! | the client's certificate | `Client-Cert*` (RFC 9440), `SSL-Client-*`, `X-SSL*`, `X-Client-` with `Cert`, `Certificate`, `DN`, `I-DN`, `Issuer`, `S-DN`, `Serial`, `SSL`, `Subject`, `TLS`, `Verified` or `Verify`, `X-ARR-ClientCert`, `X-ARR-SSL`, `X-Amzn-Mtls-*` |
//! | the user or service | `Remote-*`, `X-Remote-*`, `X-Auth-Request-*`, `X-Authenticated-*`, `X-Consumer-*`, `X-WebAuth-*`, `X-Amzn-Oidc-*`, `CF-Access-Authenticated-User-*`, `X-Goog-Authenticated-User-*`, `X-MS-Client-Principal*`, `X-Envoy-Downstream-Service-*`, `X-Envoy-Peer-Metadata*` |
//!
//! Each name also stands for all that continue it after a dash. CGI, WSGI and Rack treat other punctuation like dashes:
//! names such as `X_Forwarded_For` are always removed, even from a trusted client. [`ForwardingRules::keep_field`] keeps a field
//! that a layer in front of the gateway sets. Any other field is forwarded: fields trusted only by your own upstreams, and
//! `X-HTTP-Method-Override` and the like, which let a GET act as a POST, are yours to remove.
//!
//! ```
//! use tower_upstream::forward::{ClientInfo, ForwardingRules, Scheme};
//!
//! let rules = ForwardingRules::new("edge-1").unwrap();
//! let caller = ClientInfo::new(Some([192, 0, 2, 60].into()), Scheme::Https);
//! let upstream = "10.0.0.7:8080".parse().unwrap();
//!
//! let request = http::Request::get("/cart").header("host", "shop.example").header("connection", "close");
//! let (mut parts, ()) = request.header("x-forwarded-for", "127.0.0.1").body(()).unwrap().into_parts();
//! let passage = rules.request(&mut parts, &caller, &upstream).unwrap();
//!
//! assert_eq!(passage.authority(), Some("shop.example"));
//! assert_eq!(parts.headers["host"], "shop.example");
//! assert_eq!(parts.headers["via"], "1.1 edge-1");
//! assert_eq!(parts.headers["x-forwarded-for"], "192.0.2.60");
//! assert_eq!(parts.headers["x-forwarded-proto"], "https");
//! assert!(!parts.headers.contains_key("connection"));
//! ```

mod body;
mod client_info;
mod forwarded;
mod framing;
mod header_lists;
mod hop;
mod host;
mod layer;
mod local_response;
mod methods;
mod rewrite;
mod settings;
mod size;
mod syntax;
mod trailers;
mod upgrade;
mod via;

use std::error::Error;
use std::fmt;

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header, request, response};

pub use self::body::ForwardBody;
pub use self::client_info::{ClientInfo, Scheme};
use self::forwarded::ForwardedBuilder;
#[cfg(feature = "client")]
pub(crate) use self::framing::name_length;
use self::header_lists::HeaderLists;
pub use self::hop::strip_hop_by_hop;
use self::hop::{ConnectionOptions, strip, takes_trailers};
use self::host::Target;
pub use self::layer::{Forward, ForwardLayer, ResponseFuture};
pub use self::local_response::{LocalResponse, Rejection};
#[cfg(feature = "client")]
pub(crate) use self::rewrite::UnsolicitedUpgrade;
#[cfg(all(feature = "client", feature = "http2"))]
pub(crate) use self::size::field_section_size;
pub(crate) use self::size::{encodes_well, target_size};
pub use self::trailers::strip_trailers;
#[cfg(feature = "client")]
pub(crate) use self::trailers::{strip_request_trailers, strip_response_trailers};
use self::via::Pseudonym;
use crate::body::{Length, content_length};
use crate::cause;

/// Far below the capacity of a `HeaderMap`, so that adding a field never fails, even if names collide.
const MAX_FIELDS: usize = 4096;

/// Below 64 KiB, to leave capacity for the fields that are added.
const MAX_HEAD_SIZE: usize = 60 << 10;

/// The maximum number of names in `Connection`; each costs a lookup.
const MAX_OPTIONS: usize = 32;

static TRAILERS: HeaderValue = HeaderValue::from_static("trailers");
static UPGRADE: HeaderValue = HeaderValue::from_static("upgrade");

/// The name is not a token (RFC 9110 section 5.6.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidPseudonym(());

impl fmt::Display for InvalidPseudonym {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name is no token: letters, digits and !#$%&'*+-.^_`|~ only")
    }
}

impl Error for InvalidPseudonym {}

/// Whose fields of origin are trusted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Trust {
    /// The client's [fields of origin](self#fields-of-origin) are removed or overwritten.
    #[default]
    None,
    /// The client is a gateway of ours.
    ///
    /// Its chain is extended, and its scheme and host are kept.
    Client,
}

/// Which authority is sent in `Host`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HostPolicy {
    /// The client's; the target's if an HTTP/1.0 request has none.
    #[default]
    Preserve,
    /// The target's.
    Upstream,
}

/// Which fields report to the upstream where a request came from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ForwardedFields {
    /// `X-Forwarded-For`, `X-Forwarded-Host` and `X-Forwarded-Proto`.
    #[default]
    XForwarded,
    /// `Forwarded` (RFC 7239), which costs an allocation per request.
    Forwarded,
    /// All four.
    Both,
    /// None of them.
    None,
}

/// A gateway's rules for the heads it forwards.
///
/// | rule | default |
/// |---|---|
/// | [`trust`](Self::trust) | [`Trust::None`] |
/// | [`host`](Self::host) | [`HostPolicy::Preserve`] |
/// | [`fields`](Self::fields) | [`ForwardedFields::XForwarded`] |
/// | [`keep_field`](Self::keep_field) | none |
/// | [`allow_trace`](Self::allow_trace) | TRACE is rejected with 405 |
/// | [`reduce_proxy_status`](Self::reduce_proxy_status) | `Proxy-Status` of upstream hops is forwarded unchanged |
/// | [`max_head_size`](Self::max_head_size) | 60 KiB |
///
/// A clone has reference counts of its own: clone the rules per thread or connection, not per request.
#[derive(Clone, Debug)]
pub struct ForwardingRules {
    pseudonym: Pseudonym,
    host: HostPolicy,
    forwarded: ForwardedBuilder,
    allows_trace: bool,
    reduces_proxy_status: bool,
    max_head_size: usize,
}

/// Data about a forwarded request.
#[derive(Clone, Debug)]
pub struct ForwardedRequest {
    authority: Option<HeaderValue>,
    upgrade: Option<HeaderValue>,
    te: Te,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Te {
    Absent,
    Trailers,
}

impl ForwardingRules {
    /// The rules of the deployment with this name, which is sent in `Via`.
    ///
    /// A request that already carries the name is a loop, so each hop needs a different name; instances that never forward
    /// requests to each other may share one.
    ///
    /// # Errors
    ///
    /// If the name is not a token (RFC 9110 section 7.6.3).
    pub fn new(name: &str) -> Result<Self, InvalidPseudonym> {
        Ok(Self {
            pseudonym: Pseudonym::new(name)?,
            host: HostPolicy::default(),
            forwarded: ForwardedBuilder::default(),
            allows_trace: false,
            reduces_proxy_status: false,
            max_head_size: MAX_HEAD_SIZE,
        })
    }

    /// Sets whose fields of origin are trusted (default: no client's).
    pub const fn trust(mut self, trust: Trust) -> Self {
        self.forwarded.trust = trust;
        self
    }

    /// Sets which authority is sent in `Host` (default: the client's).
    pub const fn host(mut self, host: HostPolicy) -> Self {
        self.host = host;
        self
    }

    /// Sets which fields report where a request came from (default: the three `X-Forwarded-*`).
    pub const fn fields(mut self, fields: ForwardedFields) -> Self {
        self.forwarded.fields = fields;
        self
    }

    /// Forwards a field that [`Trust::None`] would remove, such as `x-forwarded-user` (default: none).
    ///
    /// For fields set by a layer in front of the gateway: it has to set or remove the field on *every* request, or the client can
    /// set it. `Forwarded` and `X-Forwarded-For`, `-Host` and `-Proto` follow [`trust`](Self::trust) alone.
    pub fn keep_field(mut self, name: HeaderName) -> Self {
        self.forwarded.kept.push(name);
        self
    }

    /// Forwards TRACE (default: it is rejected with 405).
    ///
    /// The server that responds to a TRACE reflects all fields it received, including cookies and fields added by this gateway. If
    /// `Max-Forwards` ends here, only fields that describe the path are reflected.
    pub const fn allow_trace(mut self) -> Self {
        self.allows_trace = true;
        self
    }

    /// Reduces `Proxy-Status` in responses to the name and the `error` of each hop behind this one (default: off).
    ///
    /// For clients that should not learn internals (RFC 9209 section 4): `next-hop` shows addresses, `details` any text. The
    /// name is kept, because a member needs one. The reduced data is also lost for layers further out: a
    /// [`Failure::remote_hop`](crate::Failure::remote_hop) then has only a name and an error. The gateway's own member is not
    /// affected: it is configured by [`ProxyStatus`](crate::cause::ProxyStatus).
    pub const fn reduce_proxy_status(mut self) -> Self {
        self.reduces_proxy_status = true;
        self
    }

    /// Sets the maximum size of a request head in bytes (default 60 KiB).
    ///
    /// The size is that of HTTP/2 (RFC 9113 section 6.5.2): names, values and 32 for each field, plus the target. A larger head is
    /// rejected with 414 for its target or 431 for its fields, and so is one over 16 KiB that HPACK would expand beyond
    /// 64 KiB. HTTP/2 servers close the whole connection at some size, including the streams of others; hyper's do from
    /// 64 KiB on.
    pub const fn max_head_size(mut self, bytes: usize) -> Self {
        self.max_head_size = bytes;
        self
    }

    fn check_size(&self, parts: &request::Parts, fields: usize) -> Result<(), LocalResponse> {
        let target = target_size(&parts.uri);
        if target > self.max_head_size {
            return Err(LocalResponse::too_long());
        }
        let size = target + fields;
        if size > self.max_head_size || !encodes_well(&parts.uri, &parts.headers, size, self.max_head_size) {
            return Err(LocalResponse::too_large());
        }
        Ok(())
    }

    /// The name in `Via`.
    pub fn name(&self) -> &str {
        self.pseudonym.as_str()
    }

    /// Rewrites a request head for `upstream`, the target's authority.
    ///
    /// Afterwards the URI is in origin-form or `*`, and `Host` has the authority.
    ///
    /// # Errors
    ///
    /// If the request is not forwarded: the gateway responds itself, or it is a loop. The head is then unchanged.
    pub fn request(
        &self,
        parts: &mut request::Parts,
        caller: &ClientInfo,
        upstream: &HeaderValue,
    ) -> Result<ForwardedRequest, Rejection> {
        if parts.method == Method::CONNECT {
            return Err(methods::connect(parts).into());
        }
        if parts.method == Method::TRACE && !self.allows_trace {
            let status = StatusCode::METHOD_NOT_ALLOWED;
            return Err(LocalResponse::refusal(status, "this gateway passes no TRACE on").into());
        }
        if parts.headers.keys_len() > MAX_FIELDS {
            let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
            return Err(LocalResponse::refusal(status, "the request has more than 4096 different fields").into());
        }
        let (seen, size) = HeaderLists::of_request(&parts.headers);
        self.check_size(parts, size)?;
        let target = host::target(parts, seen)?;
        let length = framing::request(parts, seen)?;
        if seen.has(HeaderLists::EXPECT) && !expects_only_100(&parts.headers) {
            let reason = "the only expectation that is met here is 100-continue";
            return Err(LocalResponse::refusal(StatusCode::EXPECTATION_FAILED, reason).into());
        }
        let options = ConnectionOptions::read(&parts.headers, seen);
        if options.count() > MAX_OPTIONS {
            return Err(LocalResponse::bad_request("the Connection field names more than 32 options").into());
        }
        let forwards = methods::max_forwards(parts, seen)?;
        if seen.has(HeaderLists::VIA) && self.pseudonym.is_in(&parts.headers) {
            return Err(Rejection::Loop);
        }
        let upgrade = upgrade::requested(parts, seen, options);
        let te = if upgrade.is_none() && takes_trailers(parts, seen) { Te::Trailers } else { Te::Absent };

        let headers = &mut parts.headers;
        strip(headers, seen, options);
        // our server has requested the body already; a client that does not wait for a 100 must not announce it
        seen.contains(HeaderLists::EXPECT).remove_from(headers);
        if let Some(length) = length {
            headers.insert(header::CONTENT_LENGTH, length);
        }
        if let Some(protocols) = &upgrade {
            headers.insert(header::CONNECTION, UPGRADE.clone());
            headers.insert(header::UPGRADE, protocols.clone());
        }
        if te == Te::Trailers {
            headers.insert(header::TE, TRAILERS.clone());
        }
        if let Some(forwards) = forwards {
            headers.insert(header::MAX_FORWARDS, forwards);
        }
        let (authority, host) = match target {
            Target::Field(authority) => {
                let host = if authority.is_none() { Some(upstream) } else { None };
                (authority, host.cloned())
            }
            Target::Absolute(authority, uri) => {
                parts.uri = uri;
                (Some(authority.clone()), Some(authority))
            }
        };
        let host = if self.host == HostPolicy::Upstream { Some(upstream.clone()) } else { host };
        if let Some(host) = host {
            headers.insert(header::HOST, host);
        }
        // grow the map once, not twice
        headers.reserve(4);
        self.forwarded.put(headers, seen, caller, authority.as_ref());
        headers.append(header::VIA, self.pseudonym.member(parts.version));
        Ok(ForwardedRequest { authority, upgrade, te })
    }

    /// Rewrites a response head for the client.
    ///
    /// `asked` is the result of [`ForwardedRequest::upgrade`]: a 101 to one of these protocols keeps `Upgrade` and `Connection`;
    /// a 101 without them must not be forwarded.
    pub fn response(&self, parts: &mut response::Parts, asked: Option<&HeaderValue>) {
        let headers = &mut parts.headers;
        let seen = HeaderLists::of(headers);
        let accepted = match asked {
            Some(asked) if parts.status == StatusCode::SWITCHING_PROTOCOLS => upgrade::accepted(headers, asked),
            _ => None,
        };
        strip(headers, seen, ConnectionOptions::read(headers, seen));
        if self.reduces_proxy_status {
            cause::reduce_proxy_status(headers);
        }
        if seen.has(HeaderLists::CONTENT_LENGTH) {
            if let Length::Repeated(length) = content_length(headers) {
                headers.insert(header::CONTENT_LENGTH, length);
            }
        }
        // the upstream's head may fill the map, and is then forwarded without these
        if let Some(protocols) = accepted {
            let _ = headers.try_insert(header::CONNECTION, UPGRADE.clone());
            let _ = headers.try_insert(header::UPGRADE, protocols);
        }
    }
}

/// Whether a request expects nothing but `100-continue` (RFC 9110 section 10.1.1).
fn expects_only_100(headers: &HeaderMap) -> bool {
    let mut expectations = headers.get_all(header::EXPECT).iter().flat_map(syntax::list);
    expectations.all(|expectation| expectation.eq_ignore_ascii_case(b"100-continue"))
}

impl ForwardedRequest {
    /// The authority requested by the client; only HTTP/1.0 may have none.
    pub fn authority(&self) -> Option<&str> {
        self.authority.as_ref().and_then(|authority| authority.to_str().ok())
    }

    /// The protocols the client wants to upgrade to.
    ///
    /// The head then has `Connection: upgrade` and `Upgrade`, for an upstream that speaks HTTP/1.1.
    pub fn upgrade(&self) -> Option<&HeaderValue> {
        self.upgrade.as_ref()
    }

    /// Whether `TE: trailers` is forwarded (RFC 9110 section 10.1.4).
    ///
    /// A client that speaks HTTP/1.1 to the upstream adds `Connection: te`.
    pub fn takes_trailers(&self) -> bool {
        self.te == Te::Trailers
    }
}

#[cfg(test)]
pub(in crate::forward) mod tests {
    use bytes::Bytes;
    use http::{Request, Uri, Version};
    use proptest::prelude::*;

    use super::forwarded::tests::is_valid_forwarded;
    use super::*;

    /// A head with these fields, obs-text included.
    pub(in crate::forward) fn head(method: &str, target: &str, fields: &[(&str, &str)]) -> request::Parts {
        let request = Request::builder().method(method).uri(target);
        let (mut parts, ()) = request.body(()).unwrap().into_parts();
        for (name, value) in fields {
            parts
                .headers
                .append(HeaderName::try_from(*name).unwrap(), HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        parts
    }

    /// The names in a head, sorted.
    pub(in crate::forward) fn names(headers: &HeaderMap) -> Vec<String> {
        let mut names: Vec<String> = headers.keys().map(ToString::to_string).collect();
        names.sort_unstable();
        names
    }

    /// The lines of a head, sorted.
    pub(in crate::forward) fn lines(headers: &HeaderMap) -> Vec<String> {
        let mut lines: Vec<String> = headers
            .iter()
            .map(|(name, value)| format!("{name}: {}", String::from_utf8_lossy(value.as_bytes())))
            .collect();
        lines.sort_unstable();
        lines
    }

    fn rules() -> ForwardingRules {
        ForwardingRules::new("edge-1").unwrap()
    }

    fn pass(rules: &ForwardingRules, parts: &mut request::Parts) -> Result<ForwardedRequest, Rejection> {
        let caller = ClientInfo::new(Some("192.0.2.60".parse().unwrap()), Scheme::Http);
        rules.request(parts, &caller, &HeaderValue::from_static("10.0.0.7:8080"))
    }

    fn status(result: Result<ForwardedRequest, Rejection>) -> u16 {
        match result {
            Err(Rejection::Respond(answer)) => answer.status().as_u16(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_ordinary_request_goes_on_with_four_fields_more() {
        let mut parts =
            head("GET", "/a?b", &[("host", "example.com"), ("connection", "keep-alive"), ("accept", "*/*")]);
        let passage = pass(&rules(), &mut parts).unwrap();
        assert_eq!(
            (passage.authority(), passage.upgrade(), passage.takes_trailers()),
            (Some("example.com"), None, false)
        );
        assert_eq!(parts.uri, "/a?b");
        assert_eq!(
            lines(&parts.headers),
            [
                "accept: */*",
                "host: example.com",
                "via: 1.1 edge-1",
                "x-forwarded-for: 192.0.2.60",
                "x-forwarded-host: example.com",
                "x-forwarded-proto: http"
            ]
        );
    }

    #[test]
    fn the_host_is_the_callers_or_by_rule_the_upstreams() {
        let mut parts = head("GET", "http://a.example/x", &[("host", "b.example")]);
        let passage = pass(&rules(), &mut parts).unwrap();
        assert_eq!(parts.headers["host"], "a.example");
        assert_eq!((passage.authority(), parts.uri), (Some("a.example"), Uri::from_static("/x")));

        let mut parts = head("GET", "/", &[("host", "b.example")]);
        let passage = pass(&rules().host(HostPolicy::Upstream), &mut parts).unwrap();
        assert_eq!(parts.headers["host"], "10.0.0.7:8080");
        assert_eq!(parts.headers["x-forwarded-host"], "b.example");
        assert_eq!(passage.authority(), Some("b.example"));

        let mut parts = head("GET", "/", &[]);
        parts.version = Version::HTTP_10;
        let passage = pass(&rules(), &mut parts).unwrap();
        assert_eq!(parts.headers["host"], "10.0.0.7:8080");
        assert_eq!(parts.headers["via"], "1.0 edge-1");
        assert!(!parts.headers.contains_key("x-forwarded-host"));
        assert_eq!(passage.authority(), None);
    }

    #[test]
    fn a_request_over_http_2_gets_a_host_for_its_authority() {
        let mut parts = head("GET", "https://a.example/x", &[("te", "trailers")]);
        parts.version = Version::HTTP_2;
        let passage = pass(&rules(), &mut parts).unwrap();
        assert_eq!(parts.headers["host"], "a.example");
        assert_eq!(parts.headers["via"], "2 edge-1");
        assert_eq!(parts.headers["te"], "trailers");
        assert!(passage.takes_trailers());
        assert_eq!(parts.uri, "/x");
    }

    #[test]
    fn connection_can_neither_smuggle_nor_hide_a_loop() {
        let fields = [
            ("host", "a"),
            ("content-length", "3"),
            ("connection", "close, host, content-length, x-forwarded-for, x-auth"),
            ("x-auth", "1"),
        ];
        let mut parts = head("POST", "/", &fields);
        pass(&rules(), &mut parts).unwrap();
        assert_eq!(parts.headers["host"], "a");
        assert_eq!(parts.headers["content-length"], "3");
        assert_eq!(parts.headers["x-forwarded-for"], "192.0.2.60");
        assert!(!parts.headers.contains_key("x-auth"));

        let mut parts = head("GET", "/", &[("host", "a"), ("connection", "via"), ("via", "1.1 Edge-1")]);
        assert!(matches!(pass(&rules(), &mut parts), Err(Rejection::Loop)));
    }

    #[test]
    fn the_thirty_third_connection_option_is_refused() {
        let options = ["a"; 32].join(",,");
        let mut parts = head("GET", "/", &[("host", "a"), ("connection", &options)]);
        pass(&rules(), &mut parts).unwrap();
        let mut parts = head("GET", "/", &[("host", "a"), ("connection", &options), ("connection", "b")]);
        assert_eq!(status(pass(&rules(), &mut parts)), 400);
    }

    #[test]
    fn via_is_added_behind_what_is_there_even_if_that_is_malformed() {
        let mut parts = head("GET", "/", &[("host", "a"), ("via", "\u{e9}(")]);
        pass(&rules(), &mut parts).unwrap();
        let via: Vec<_> = parts.headers.get_all("via").iter().map(HeaderValue::as_bytes).collect();
        assert_eq!(via, ["\u{e9}(".as_bytes(), b"1.1 edge-1"]);
    }

    #[test]
    fn an_upgrade_goes_on_and_its_101_comes_back() {
        let fields = [("host", "a"), ("connection", "Upgrade, x-one"), ("upgrade", "websocket"), ("te", "trailers")];
        let mut parts = head("GET", "/", &fields);
        let passage = pass(&rules(), &mut parts).unwrap();
        assert_eq!(passage.upgrade().unwrap(), "websocket");
        assert!(!passage.takes_trailers());
        assert_eq!((&parts.headers["connection"], &parts.headers["upgrade"]), (&UPGRADE, passage.upgrade().unwrap()));
        assert!(!parts.headers.contains_key("te"));

        let answered = |status: u16, asked| {
            let response = http::Response::builder().status(status).header("connection", "x-one, Upgrade");
            let response = response.header("upgrade", "websocket").header("x-one", "1").header("trailer", "x-sum");
            let (mut parts, ()) = response.body(()).unwrap().into_parts();
            rules().response(&mut parts, asked);
            lines(&parts.headers)
        };
        let kept = ["connection: upgrade", "trailer: x-sum", "upgrade: websocket"];
        assert_eq!(answered(101, passage.upgrade()), kept);
        for (status, asked) in [(101, None), (200, passage.upgrade()), (426, passage.upgrade())] {
            assert_eq!(answered(status, asked), ["trailer: x-sum"]);
        }
    }

    #[test]
    fn trace_is_refused_unless_it_is_allowed() {
        let fields = [("host", "a"), ("cookie", "id=secret"), ("max-forwards", "0")];
        let Err(Rejection::Respond(answer)) = pass(&rules(), &mut head("TRACE", "/", &fields)) else {
            panic!("it passed")
        };
        let response = answer.into_response::<Bytes>();
        assert_eq!(
            (response.status(), response.headers().contains_key("allow")),
            (StatusCode::METHOD_NOT_ALLOWED, true)
        );
        assert!(!response.headers()["allow"].to_str().unwrap().contains("TRACE"));
        let mut parts = head("TRACE", "/", &fields[..2]);
        assert!(pass(&rules().allow_trace(), &mut parts).is_ok());
    }

    #[test]
    fn a_request_that_does_not_go_on_is_left_as_it_was() {
        let fields = [("host", "a"), ("connection", "x-one"), ("x-one", "1"), ("max-forwards", "0")];
        for via in ["1.1 other", "1.1 edge-1"] {
            let mut parts = head("OPTIONS", "http://a/", &fields);
            parts.headers.append("via", via.parse().unwrap());
            let before = parts.clone();
            assert_eq!(status(pass(&rules(), &mut parts)), 200);
            assert_eq!((parts.headers, parts.uri), (before.headers, before.uri));
        }
    }

    #[test]
    fn options_goes_on_one_forward_less() {
        let mut parts = head("OPTIONS", "*", &[("host", "a"), ("max-forwards", "7")]);
        pass(&rules(), &mut parts).unwrap();
        assert_eq!(parts.headers["max-forwards"], "6");
        assert_eq!(parts.uri, "*");
        let mut parts = head("CONNECT", "a:443", &[("host", "a:443")]);
        assert_eq!(status(pass(&rules(), &mut parts)), 501);
    }

    #[test]
    fn ten_thousand_fields_do_no_harm() {
        let mut parts = head("GET", "/", &[("host", "a")]);
        for _ in 0..10_000 {
            parts.headers.append("x-forwarded-for", HeaderValue::from_static("192.0.2.1"));
        }
        assert_eq!(status(pass(&rules(), &mut parts.clone())), 431);
        let rules = rules().max_head_size(usize::MAX);
        pass(&rules.clone().trust(Trust::Client), &mut parts.clone()).unwrap();
        pass(&rules, &mut parts).unwrap();
        assert_eq!(parts.headers.len(), 5);
        for number in 0..10_000 {
            parts.headers.append(HeaderName::try_from(format!("x-{number}")).unwrap(), HeaderValue::from_static("1"));
        }
        assert_eq!(status(pass(&rules, &mut parts)), 431);
        let (mut response, ()) = http::Response::new(()).into_parts();
        response.headers = parts.headers;
        rules.response(&mut response, None);
    }

    /// Names that `HeaderMap`'s first hash, FNV-1a cut to 15 bits, cannot tell apart.
    fn colliding_names() -> Vec<String> {
        let step = |state: u32, byte: u8| ((state ^ u32::from(byte)) * 0x1b3) & 0x7fff;
        let letters = b'a'..=b'z';
        let triples =
            || letters.clone().flat_map(|a| (b'a'..=b'z').flat_map(move |b| (b'a'..=b'z').map(move |c| [a, b, c])));
        // `HeaderName` hashes a custom name after the number of its variant, which has eight bytes
        let mut state = [1, 0, 0, 0, 0, 0, 0, 0].into_iter().fold(0x2325, step);
        let mut names = vec![String::new()];
        while names.len() < MAX_FIELDS {
            let mut seen = std::collections::HashMap::new();
            let (next, one, other) = triples()
                .find_map(|triple| {
                    let next = triple.into_iter().fold(state, step);
                    seen.insert(next, triple).map(|earlier| (next, earlier, triple))
                })
                .unwrap();
            let longer = |triple: [u8; 3]| {
                let triple = String::from_utf8(triple.to_vec()).unwrap();
                names.iter().map(move |name| format!("{name}{triple}")).collect::<Vec<_>>()
            };
            names = [longer(one), longer(other)].concat();
            state = next;
        }
        names
    }

    #[test]
    fn a_full_head_of_colliding_names_still_takes_our_fields() {
        let mut parts = head("GET", "/", &[("host", "a")]);
        for name in colliding_names().into_iter().skip(1) {
            parts.headers.append(HeaderName::try_from(name).unwrap(), HeaderValue::from_static("1"));
        }
        assert_eq!(parts.headers.keys_len(), MAX_FIELDS);
        let rules = rules().fields(ForwardedFields::Both).max_head_size(usize::MAX);
        pass(&rules, &mut parts).unwrap();
        assert_eq!(parts.headers.keys_len(), MAX_FIELDS + 5);
    }

    #[test]
    fn a_head_that_is_too_large_is_refused_for_its_target_or_its_fields() {
        let rules = rules().max_head_size(1000);
        let passed = |path: usize, field: usize| {
            let mut parts =
                head("GET", &format!("/{}", "p".repeat(path)), &[("host", "a"), ("x-a", &"f".repeat(field))]);
            rules.request(&mut parts, &ClientInfo::unknown(), &HeaderValue::from_static("b")).map(|_| ())
        };
        // the fields' names, the host and 32 for each field come to 72
        assert!(passed(9, 918).is_ok());
        for (path, field, refusal) in [(9, 919, 431), (927, 1, 431), (1000, 1, 414)] {
            let Err(Rejection::Respond(answer)) = passed(path, field) else { panic!("{path} and {field} go on") };
            assert_eq!(answer.status(), refusal);
        }
        let mut parts = head("GET", "/", &[("host", "a"), ("x-a", &"f".repeat(60 << 10))]);
        assert_eq!(status(pass(&self::rules(), &mut parts)), 431);
    }

    #[test]
    fn an_expectation_is_met_here_or_refused() {
        for expectation in ["100-continue", "100-Continue", "", "100-continue, 100-continue"] {
            let mut parts = head("POST", "/", &[("host", "a"), ("content-length", "3"), ("expect", expectation)]);
            pass(&rules(), &mut parts).unwrap();
            assert!(!parts.headers.contains_key("expect"), "{expectation:?}");
        }
        for expectation in ["y 100-continue", "100-continue=1", "200-ok", "100-continue, x"] {
            let mut parts = head("POST", "/", &[("host", "a"), ("expect", expectation)]);
            assert_eq!(status(pass(&rules(), &mut parts)), 417, "{expectation}");
        }
    }

    #[test]
    fn a_name_is_told_and_checked() {
        assert_eq!(rules().name(), "edge-1");
        assert!(ForwardingRules::new("edge 1").unwrap_err().to_string().starts_with("the name is no token"));
    }

    const NAMES: [&str; 20] = [
        "host",
        "connection",
        "te",
        "upgrade",
        "via",
        "max-forwards",
        "forwarded",
        "x-forwarded-for",
        "x-forwarded-proto",
        "x-forwarded-host",
        "x_forwarded_for",
        "x-real-ip",
        "content-length",
        "transfer-encoding",
        "keep-alive",
        "proxy-connection",
        "proxy-authorization",
        "x-one",
        "x-two",
        "cookie",
    ];

    const HOP_BY_HOP: [&str; 6] =
        ["keep-alive", "proxy-connection", "proxy-authenticate", "proxy-authorization", "transfer-encoding", "x-one"];

    fn value() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            proptest::collection::vec(prop_oneof![Just(b'\t'), 0x20..=0x7eu8, 0x80..=0xffu8], 0..40),
            r#"(a|\[::1\]|1\.1 |edge-1|x-one|trailers|upgrade|websocket|for=|"|\(|\)|,|;|\\|[0-9]| ){0,12}"#
                .prop_map(Vec::from),
        ]
    }

    prop_compose! {
        fn any_head()(
            method in prop::sample::select(vec!["GET", "POST", "OPTIONS", "TRACE", "CONNECT"]),
            target in prop::sample::select(vec!["/", "/a?b", "*", "a:1", "http://a/", "https://u@a", "http://a?b"]),
            version in prop::sample::select(vec![Version::HTTP_10, Version::HTTP_11, Version::HTTP_2, Version::HTTP_3]),
            host in prop::option::weighted(0.9, Just("a.example")),
            fields in proptest::collection::vec((prop::sample::select(NAMES.to_vec()), value()), 0..12),
        ) -> request::Parts {
            let mut parts = head(method, target, &[]);
            parts.version = version;
            let fields = fields.iter().map(|(name, value)| (*name, value.as_slice()));
            for (name, value) in host.iter().map(|host| ("host", host.as_bytes())).chain(fields) {
                parts.headers.append(name, HeaderValue::from_bytes(value).unwrap());
            }
            parts
        }
    }

    fn any_rules() -> impl Strategy<Value = ForwardingRules> {
        let trust = prop::sample::select(vec![Trust::None, Trust::Client]);
        let host = prop::sample::select(vec![HostPolicy::Preserve, HostPolicy::Upstream]);
        let fields = prop::sample::select(vec![
            ForwardedFields::XForwarded,
            ForwardedFields::Forwarded,
            ForwardedFields::Both,
            ForwardedFields::None,
        ]);
        (trust, host, fields)
            .prop_map(|(trust, host, fields)| rules().trust(trust).host(host).fields(fields).allow_trace())
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn whatever_comes_in_what_goes_out_is_fit_to_send(rules in any_rules(), received in any_head()) {
            let mut parts = received.clone();
            let passage = match pass(&rules, &mut parts) {
                Ok(passage) => passage,
                Err(rejection) => {
                    prop_assert_eq!(&parts.headers, &received.headers);
                    prop_assert_eq!(&parts.uri, &received.uri);
                    if let Rejection::Respond(answer) = rejection {
                        answer.into_response::<Bytes>();
                    }
                    return Ok(());
                }
            };
            let headers = &parts.headers;
            let named: Vec<&[u8]> = received.headers.get_all("connection").iter().flat_map(syntax::list).collect();
            let is_named = |name: &str| named.iter().any(|option| option.eq_ignore_ascii_case(name.as_bytes()));
            for name in HOP_BY_HOP {
                prop_assert!(!headers.contains_key(name) || name == "x-one" && !is_named(name), "{}", name);
            }
            prop_assert!(headers.get_all("te").iter().all(|te| te == "trailers"));
            prop_assert_eq!(headers.contains_key("te"), passage.takes_trailers());
            prop_assert_eq!(headers.get("upgrade"), passage.upgrade());
            prop_assert_eq!(headers.get("connection"), passage.upgrade().map(|_| &UPGRADE));
            prop_assert!(!headers.contains_key("x_forwarded_for"));
            prop_assert!(parts.uri.authority().is_none() && parts.uri.scheme().is_none());
            prop_assert!(parts.uri.path().starts_with('/') || parts.method == Method::OPTIONS && parts.uri == "*");

            let hosts: Vec<_> = headers.get_all("host").iter().collect();
            prop_assert_eq!(hosts.len(), 1);
            prop_assert!(host::split(hosts[0].as_bytes()).is_some());
            let via = headers.get_all("via").iter().next_back().unwrap().to_str().unwrap();
            prop_assert!(["1.0 edge-1", "1.1 edge-1", "2 edge-1", "3 edge-1"].contains(&via));
            for forwarded in headers.get_all("forwarded") {
                prop_assert!(is_valid_forwarded(forwarded.as_bytes()));
            }
            if rules.forwarded.trust == Trust::None {
                prop_assert!(headers.get_all("x-forwarded-for").iter().all(|value| value == "192.0.2.60"));
                prop_assert!(!headers.contains_key("x-real-ip"));
            }
            let counts_forwards = parts.method == Method::OPTIONS || parts.method == Method::TRACE;
            let again = pass(&rules, &mut parts);
            prop_assert!(matches!(again, Err(Rejection::Loop)) || counts_forwards && again.is_err());
        }

        #[test]
        fn no_response_head_keeps_what_was_for_us(
            received in any_head(),
            status in prop::sample::select(vec![101, 200, 407]),
        ) {
            let (mut parts, ()) = http::Response::builder().status(status).body(()).unwrap().into_parts();
            parts.headers = received.headers;
            let asked = HeaderValue::from_static("websocket");
            rules().response(&mut parts, Some(&asked));
            for name in HOP_BY_HOP.iter().filter(|name| **name != "x-one").chain(&["te"]) {
                prop_assert!(!parts.headers.contains_key(*name));
            }
            prop_assert!(status == 101 || !parts.headers.contains_key("upgrade"));
        }
    }
}
