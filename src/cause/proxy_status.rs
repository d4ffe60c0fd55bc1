//! Reads and writes the `Proxy-Status` field (RFC 9209).
//!
//! Every intermediary adds one member that reports what happened at its hop: the first member is nearest to the origin, the
//! last one nearest to the reader.

mod member;

use std::fmt;
use std::sync::Arc;

use http::header::HeaderValue;
use http::{HeaderMap, StatusCode};

use self::member::{ProxyStatusMember, alert_name, quote};
use super::proxy_status_entry::{PROXY_STATUS, entries};
use super::structured_fields::{is_string, is_token};
use super::{BadGatewayCause, Detail, Failure};

/// Writes this deployment's member of `Proxy-Status` (RFC 9209).
///
/// The name is the deployment's, not the product's, and the same in all its responses. Addresses and our own
/// cause names reveal internals, so both are off by default (RFC 9209 section 4). The parts common to all failures of a
/// cause are prepared once, in [`new`](Self::new).
///
/// | parameter | when |
/// |---|---|
/// | `error` | the cause has a [class](BadGatewayCause::proxy_status_error) |
/// | `status-code`, `status-phrase` | `http_request_error`: the gateway's status |
/// | `alert-id`, `alert-message` | `tls_alert_received`, if the alert is known |
/// | `received-status` | the upstream sent a status |
/// | `next-hop` | [`next_hop`](Self::next_hop), if the failure has a peer or an upstream |
/// | `details` | [`details`](Self::details) |
///
/// ```
/// use http::HeaderMap;
/// use tower_upstream::{BadGatewayCause, Failure, cause::ProxyStatus};
///
/// let gateway = ProxyStatus::new("edge-1")?.next_hop();
/// let failure = Failure::builder(BadGatewayCause::ConnectionRefused).upstream("payments").build();
///
/// let mut headers = HeaderMap::new();
/// gateway.append_failure(&mut headers, &failure);
/// assert_eq!(headers["proxy-status"], "edge-1; error=connection_refused; next-hop=\"payments\"");
/// # Ok::<(), tower_upstream::cause::InvalidProxyName>(())
/// ```
#[derive(Clone, Debug)]
pub struct ProxyStatus {
    name: HeaderValue,
    /// The constant part of the member, by cause.
    by_cause: Arc<[HeaderValue]>,
    next_hop: bool,
}

impl ProxyStatus {
    /// Sets the name of the deployment: a Token if possible, else a String (RFC 9209 section 2).
    ///
    /// # Errors
    /// [`InvalidProxyName`] if the name is empty or not printable ASCII.
    pub fn new(name: &str) -> Result<Self, InvalidProxyName> {
        if name.is_empty() || !is_string(name) {
            return Err(NOT_PRINTABLE);
        }
        let mut text = Vec::with_capacity(name.len());
        if is_token(name) {
            text.extend_from_slice(name.as_bytes());
        } else {
            quote(&mut text, name);
        }
        let name = HeaderValue::try_from(text).map_err(|_| NOT_PRINTABLE)?;
        let by_cause = BadGatewayCause::ALL.iter().map(|cause| member_of(&name, *cause).finish()).collect();
        Ok(Self { name, by_cause, next_hop: false })
    }

    /// Adds `next-hop`: the peer's address, else the upstream's name (RFC 9209 section 2.1.2).
    ///
    /// Off by default: it reveals the internal network to every client.
    pub fn next_hop(mut self) -> Self {
        self.next_hop = true;
        self
    }

    /// Adds `details`: the [name of the cause](BadGatewayCause::as_str) (RFC 9209 section 2.1.5).
    ///
    /// Off by default. It is more specific than `error`, which several causes share.
    pub fn details(mut self) -> Self {
        let detailed = |cause: &BadGatewayCause| {
            let mut member = member_of(&self.name, *cause);
            member.string("details", cause.as_str());
            member.finish()
        };
        self.by_cause = BadGatewayCause::ALL.iter().map(detailed).collect();
        self
    }

    /// Appends our member to a failure response, after those of the hops before.
    ///
    /// It is a separate field line; existing lines are unchanged. A full map is left
    /// unchanged.
    pub fn append_failure(&self, headers: &mut HeaderMap, failure: &Failure) {
        let cause = failure.cause();
        let mut member = ProxyStatusMember::new(&self.by_cause[cause as usize]);
        match failure.detail() {
            Some(Detail::TlsAlert(alert)) if cause.proxy_status_error() == Some("tls_alert_received") => {
                member.parameter("alert-id", &alert.to_string());
                if let Some(name) = alert_name(alert) {
                    member.parameter("alert-message", name);
                }
            }
            Some(Detail::Status(status)) => member.parameter("received-status", status.as_str()),
            _ => {}
        }
        if self.next_hop {
            match (failure.peer(), failure.upstream()) {
                (Some(peer), _) => member.string("next-hop", &peer.to_string()),
                (None, Some(upstream)) => member.string("next-hop", upstream),
                (None, None) => {}
            }
        }
        append(headers, member.finish());
    }

    /// Appends our member to the gateway's response to a request that it did not forward.
    ///
    /// A 4xx is a `http_request_error` with its status (RFC 9209 section 2.3.16), any other a
    /// `proxy_internal_response` (section 2.3.29). A full map is left unchanged.
    pub fn append_rejection(&self, headers: &mut HeaderMap, status: StatusCode) {
        let mut member = ProxyStatusMember::new(&self.name);
        if status.is_client_error() {
            request_error(&mut member, status);
        } else {
            member.parameter("error", "proxy_internal_response");
        }
        append(headers, member.finish());
    }

    /// Appends our member to a relayed response, with the status it was received with.
    ///
    /// Useful if the gateway responds with another status (RFC 9209 section 2.1.4). A full map is left
    /// unchanged.
    ///
    /// ```
    /// use http::{HeaderMap, StatusCode};
    /// use tower_upstream::cause::ProxyStatus;
    ///
    /// let mut headers = HeaderMap::new();
    /// ProxyStatus::new("edge-1")?.append_received(&mut headers, StatusCode::SERVICE_UNAVAILABLE);
    /// assert_eq!(headers["proxy-status"], "edge-1; received-status=503");
    /// # Ok::<(), tower_upstream::cause::InvalidProxyName>(())
    /// ```
    pub fn append_received(&self, headers: &mut HeaderMap, status: StatusCode) {
        let mut member = ProxyStatusMember::new(&self.name);
        member.parameter("received-status", status.as_str());
        append(headers, member.finish());
    }
}

/// Reduces each member in a head to its name and `error`, for clients that should not learn internals (RFC 9209 section 4).
///
/// A malformed field is removed.
pub(crate) fn reduce(headers: &mut HeaderMap) {
    if !headers.contains_key(PROXY_STATUS) {
        return;
    }
    let mut text = Vec::new();
    for member in entries(headers) {
        if !text.is_empty() {
            text.extend_from_slice(b", ");
        }
        if is_token(member.name()) {
            text.extend_from_slice(member.name().as_bytes());
        } else {
            quote(&mut text, member.name());
        }
        if let Some(error) = member.error() {
            text.extend_from_slice(b"; error=");
            text.extend_from_slice(error.as_bytes());
        }
    }
    headers.remove(PROXY_STATUS);
    if let (false, Ok(value)) = (text.is_empty(), HeaderValue::try_from(text)) {
        append(headers, value);
    }
}

/// The error of a name that is empty or not printable ASCII.
const NOT_PRINTABLE: InvalidProxyName =
    InvalidProxyName::new("a name in Proxy-Status has to be printable ASCII, and not empty");

/// The name of a proxy cannot be sent in its field; the text says why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidProxyName(&'static str);

impl InvalidProxyName {
    pub(crate) const fn new(why: &'static str) -> Self {
        Self(why)
    }
}

impl fmt::Display for InvalidProxyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for InvalidProxyName {}

fn append(headers: &mut HeaderMap, member: HeaderValue) {
    // `append` panics on a full map, and an upstream may have filled it
    let _ = headers.try_append(PROXY_STATUS, member);
}

fn member_of(name: &HeaderValue, cause: BadGatewayCause) -> ProxyStatusMember<'_> {
    let mut member = ProxyStatusMember::new(name);
    if let Some(error) = cause.proxy_status_error() {
        if error == "http_request_error" {
            request_error(&mut member, cause.status());
        } else {
            member.parameter("error", error);
        }
    }
    member
}

fn request_error(member: &mut ProxyStatusMember<'_>, status: StatusCode) {
    member.parameter("error", "http_request_error");
    member.parameter("status-code", status.as_str());
    member.string("status-phrase", status.canonical_reason().unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use http::HeaderName;

    use super::*;

    fn written(status: &ProxyStatus, failure: impl Into<Failure>) -> String {
        let mut headers = HeaderMap::new();
        status.append_failure(&mut headers, &failure.into());
        headers[PROXY_STATUS].to_str().unwrap().to_owned()
    }

    fn gw() -> ProxyStatus {
        ProxyStatus::new("gw").unwrap()
    }

    #[test]
    fn a_cause_is_reported_as_its_rfc_9209_error() {
        assert_eq!(written(&gw(), BadGatewayCause::ConnectionRefused), "gw; error=connection_refused");
        assert_eq!(written(&gw(), BadGatewayCause::DnsNotFound), "gw; error=dns_error");
        for cause in BadGatewayCause::ALL {
            let written = written(&gw(), *cause);
            let class = written.strip_prefix("gw; error=").and_then(|rest| rest.split(';').next());
            assert_eq!(class, cause.proxy_status_error(), "{written}");
        }
    }

    #[test]
    fn a_cause_without_a_class_is_just_the_name() {
        for cause in [BadGatewayCause::ClientClosed, BadGatewayCause::Unknown, BadGatewayCause::UpstreamStatus] {
            assert_eq!(written(&gw(), cause), "gw");
        }
        assert_eq!(written(&gw().details(), BadGatewayCause::Unknown), "gw; details=\"unknown\"");
    }

    #[test]
    fn a_status_of_the_upstream_is_no_error() {
        let failure = Failure::builder(BadGatewayCause::UpstreamStatus).detail(Detail::Status(StatusCode::BAD_GATEWAY));
        assert_eq!(written(&gw(), failure.build()), "gw; received-status=502");
    }

    #[test]
    fn a_received_status_is_reported_with_any_error() {
        let failure = Failure::builder(BadGatewayCause::UpgradeFailed).detail(Detail::Status(StatusCode::OK));
        assert_eq!(written(&gw(), failure.build()), "gw; error=http_upgrade_failed; received-status=200");
    }

    #[test]
    fn a_request_error_has_the_status_of_the_response() {
        assert_eq!(
            written(&gw(), BadGatewayCause::UploadStalled),
            "gw; error=http_request_error; status-code=408; status-phrase=\"Request Timeout\""
        );
        assert_eq!(
            written(&gw().details(), BadGatewayCause::RequestBodyFailed),
            "gw; error=http_request_error; status-code=400; status-phrase=\"Bad Request\"; details=\"request_body_failed\""
        );
    }

    #[test]
    fn a_tls_alert_is_reported_by_number_and_name() {
        let alert = |cause, alert| Failure::builder(cause).detail(Detail::TlsAlert(alert)).build();
        assert_eq!(
            written(&gw(), alert(BadGatewayCause::TlsAlert, 116)),
            "gw; error=tls_alert_received; alert-id=116; alert-message=certificate_required"
        );
        assert_eq!(written(&gw(), alert(BadGatewayCause::TlsAlert, 255)), "gw; error=tls_alert_received; alert-id=255");
        assert_eq!(written(&gw(), alert(BadGatewayCause::TlsFailed, 40)), "gw; error=tls_protocol_error");
        assert!((0..=255).filter_map(alert_name).all(is_token));
        assert_eq!((0..=255).filter_map(alert_name).count(), 27);
    }

    #[test]
    fn internals_are_revealed_only_if_configured() {
        let builder = Failure::builder(BadGatewayCause::StaleConnection).upstream("pay \"ments\"\\");
        let named = builder.build();
        let addressed = named.clone().into_builder().peer("[::1]:80".parse::<std::net::SocketAddr>().ok()).build();
        assert_eq!(written(&gw(), addressed.clone()), "gw; error=connection_terminated");
        assert_eq!(
            written(&gw().next_hop(), named.clone()),
            r#"gw; error=connection_terminated; next-hop="pay \"ments\"\\""#
        );
        assert_eq!(
            written(&gw().next_hop().details().details(), addressed),
            r#"gw; error=connection_terminated; details="stale_connection"; next-hop="[::1]:80""#
        );
        assert_eq!(written(&gw().next_hop(), BadGatewayCause::NoRoute), "gw; error=destination_not_found");
    }

    #[test]
    fn other_hops_are_reduced_to_name_and_error() {
        let reduced = |lines: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append(PROXY_STATUS, HeaderValue::from_static(line));
            }
            reduce(&mut headers);
            headers.get_all(PROXY_STATUS).iter().map(|line| line.to_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        let inner = "db-proxy; error=connection_refused; next-hop=\"10.0.0.7:5432\"; details=\"pg_hba\"";
        assert_eq!(
            reduced(&[inner, "\"a \\\"b\\\"\"; received-status=502, c; x=1"]),
            ["db-proxy; error=connection_refused, \"a \\\"b\\\"\", c"]
        );
        assert_eq!(reduced(&["gw; error=\"own words, 10.0.0.7\""]), ["gw"]);
        assert_eq!(reduced(&["gw; next-hop=\"open"]), [""; 0]);
        assert_eq!(reduced(&[]), [""; 0]);
    }

    #[test]
    fn a_value_that_is_not_a_string_is_omitted() {
        for name in ["caf\u{e9}", "a\nb", "a\u{7f}"] {
            let failure = Failure::builder(BadGatewayCause::NoRoute).upstream(name).build();
            assert_eq!(written(&gw().next_hop(), failure), "gw; error=destination_not_found", "{name:?}");
        }
    }

    #[test]
    fn a_name_is_a_token_or_a_string_or_refused() {
        for (name, sent) in
            [("gw", "gw"), ("r34.example.net", "r34.example.net"), ("1a", "\"1a\""), ("my \"gw\"", r#""my \"gw\"""#)]
        {
            assert_eq!(written(&ProxyStatus::new(name).unwrap(), BadGatewayCause::Unknown), sent);
        }
        for name in ["", "caf\u{e9}", "a\nb", "a\tb", "\u{7f}"] {
            let refused = ProxyStatus::new(name).unwrap_err();
            assert!(refused.to_string().contains("printable ASCII"));
        }
    }

    #[test]
    fn existing_members_are_unchanged() {
        let mut headers = HeaderMap::new();
        headers.append(PROXY_STATUS, HeaderValue::from_static("origin; error=\"broken"));
        headers.append(PROXY_STATUS, HeaderValue::from_static("inner;error=dns_timeout"));
        gw().append_received(&mut headers, StatusCode::NOT_FOUND);
        let lines: Vec<_> = headers.get_all(PROXY_STATUS).iter().collect();
        assert_eq!(lines, ["origin; error=\"broken", "inner;error=dns_timeout", "gw; received-status=404"]);
    }

    #[test]
    fn a_full_map_is_left_unchanged() {
        let mut headers = HeaderMap::new();
        let mut count = 0;
        while headers
            .try_append(HeaderName::try_from(format!("x-{count}")).unwrap(), HeaderValue::from_static(""))
            .is_ok()
        {
            count += 1;
        }
        let before = headers.len();
        gw().append_failure(&mut headers, &Failure::new(BadGatewayCause::NoRoute));
        gw().append_received(&mut headers, StatusCode::OK);
        assert_eq!(headers.len(), before);
    }
}
