//! The forwarding rules, and their application to heads.

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header, request, response};

use super::client_info::ClientInfo;
use super::forwarded::{ForwardedBuilder, ForwardedFields, Trust};
use super::header_lists::HeaderLists;
use super::hop::{ConnectionOptions, strip, takes_trailers};
use super::host::Target;
use super::local_response::{LocalResponse, Rejection};
use super::size::{encodes_well, target_size};
use super::via::Pseudonym;
use super::{framing, host, methods, syntax, upgrade};
use crate::body::{Length, content_length};
use crate::cause;
use crate::cause::InvalidProxyName;

/// Far below the capacity of a `HeaderMap`, so that adding a field never fails, even if names collide.
const MAX_FIELDS: usize = 4096;

/// Below 64 KiB, to leave capacity for the fields that are added.
const MAX_HEAD_SIZE: usize = 60 << 10;

/// The maximum number of names in `Connection`; each costs a lookup.
const MAX_OPTIONS: usize = 32;

static TRAILERS: HeaderValue = HeaderValue::from_static("trailers");
static UPGRADE: HeaderValue = HeaderValue::from_static("upgrade");

/// The authority that is sent in `Host`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HostPolicy {
    /// The client's; the target's if an HTTP/1.0 request has none.
    #[default]
    Preserve,
    /// The target's.
    Upstream,
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
    pub fn new(name: &str) -> Result<Self, InvalidProxyName> {
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
            return Err(LocalResponse::refusal(status, "this gateway does not forward TRACE").into());
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
            let reason = "the only supported expectation is 100-continue";
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
mod tests;
