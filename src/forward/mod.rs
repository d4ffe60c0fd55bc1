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
mod rules;
mod settings;
mod size;
mod syntax;
#[cfg(test)]
mod tests;
mod trailers;
mod upgrade;
mod via;

pub use self::body::ForwardBody;
pub use self::client_info::{ClientInfo, Scheme};
pub use self::forwarded::{ForwardedFields, Trust};
#[cfg(feature = "client")]
pub(crate) use self::framing::name_length;
pub use self::hop::strip_hop_by_hop;
pub use self::layer::{Forward, ForwardLayer, ResponseFuture};
pub use self::local_response::{LocalResponse, Rejection};
#[cfg(feature = "client")]
pub(crate) use self::rewrite::UnsolicitedUpgrade;
pub use self::rules::{ForwardedRequest, ForwardingRules, HostPolicy};
#[cfg(all(feature = "client", feature = "http2"))]
pub(crate) use self::size::{encodes_well, field_section_size, target_size};
pub use self::trailers::strip_trailers;
#[cfg(feature = "client")]
pub(crate) use self::trailers::{strip_request_trailers, strip_response_trailers};
