//! Failure causes and the record behind each.
//!
//! [`BadGatewayCause`] says *what* went wrong; [`Failure`] is the record: phase, replay safety and its
//! evidence, peer, elapsed time, source error. Both travel in the response's extensions:
//!
//! ```
//! use tower_upstream::{BadGatewayCause, Failure, cause};
//!
//! let mut response = http::Response::new(());
//! cause::attach(&mut response, Failure::new(BadGatewayCause::ConnectionRefused));
//! assert_eq!(response.extensions().get::<BadGatewayCause>(), Some(&BadGatewayCause::ConnectionRefused));
//! assert_eq!(BadGatewayCause::of(&response).unwrap().status(), 502);
//! ```
//!
//! The causes, their RFC 9209 classes and their hints are data in one static table.

mod client_call;
mod failure;
mod markers;
mod proxy_status;
mod retry_stop;
mod structured_fields;
mod table;

use std::fmt;
use std::str::FromStr;

use http::{Response, StatusCode};

pub(crate) use self::client_call::{ClientCall, ClientCalls};
pub(crate) use self::failure::TUNNEL_LIMIT;
pub(crate) use self::markers::{CompleteResponse, LocalResponse, RejectedRequest, is_local, local_response};

pub use self::failure::{Connection, Detail, Evidence, Failure, FailureBuilder, Phase};
pub(crate) use self::proxy_status::reduce as reduce_proxy_status;
pub use self::proxy_status::{InvalidProxyName, ProxyStatus, ProxyStatusEntry, entries};
pub use self::retry_stop::RetryStop;

/// The cause of a failure: why the gateway could not return a good response.
///
/// One byte, `Copy`, and the vocabulary of the whole crate: [`as_str`](Self::as_str) is the tracing field
/// `error.type`, the metric label, the JSON value and the name on the page. Causes may be added and
/// [`Unknown`](Self::Unknown) may become more specific in any release.
///
/// ```
/// use tower_upstream::BadGatewayCause;
///
/// let cause: BadGatewayCause = "stale_connection".parse().unwrap();
/// assert_eq!(cause.proxy_status_error(), Some("connection_terminated"));
/// assert!(BadGatewayCause::ALL.contains(&cause));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[repr(u8)]
pub enum BadGatewayCause {
    /// No upstream is configured for this host or path. Check the route table.
    NoRoute,
    /// The upstream address is unusable (scheme, host, HTTP version). Fix the target.
    InvalidTarget,
    /// The request came back to this gateway. The upstream address points at ourselves.
    LoopDetected,
    /// The gateway's own address policy (ACL, SSRF guard) forbids this address.
    TargetProhibited,
    /// Every endpoint is ejected or failed its health check. Look at the checks first.
    NoHealthyUpstream,
    /// The breaker is open after earlier failures; the cause that opened it is attached.
    CircuitOpen,
    /// The per-upstream connection or concurrency limit is used up. Scale, or raise it.
    ConnectionLimit,
    /// Waited too long for a free slot. Upstream too slow for the offered load.
    QueueTimeout,
    /// This gateway shed the request (`load_shed`, limit). Add gateway capacity.
    GatewayOverload,
    /// The gateway ran out of descriptors, local ports or memory (EMFILE, EADDRNOTAVAIL).
    GatewayResources,
    /// The resolver did not answer. Test it from this host.
    DnsTimeout,
    /// The name has no address (NXDOMAIN/NODATA). Typo, or the record is gone.
    DnsNotFound,
    /// The resolver failed (SERVFAIL/REFUSED). Try another resolver.
    DnsFailure,
    /// Connection refused: nothing listens on that port, or a firewall rejects it. Check that the process runs.
    ConnectionRefused,
    /// SYN unanswered: packet filter, dead host, or full accept queue. If this peer worked minutes ago, suspect load.
    ConnectTimeout,
    /// No route, a prohibiting route (EACCES), or an ICMP reject came back (a filter can do that too).
    Unroutable,
    /// Connecting failed for another reason; see the OS error.
    ConnectFailed,
    /// The upstream certificate is expired, for another name, or from an unknown issuer.
    TlsCertificate,
    /// The upstream refused the handshake; the alert says why (client certificate, version, ALPN).
    TlsAlert,
    /// The TLS handshake failed.
    TlsFailed,
    /// TCP connected, the handshake never finished. CPU-starved peer, or a middlebox.
    TlsTimeout,
    /// The peer speaks another protocol (TLS on a plain port, HTTP/2 only, SSH...). Scheme or port is wrong.
    WrongProtocol,
    /// HTTP/2 `REFUSED_STREAM` or GOAWAY below our stream: drain or stream limit, not processed. Or the connection was ended
    /// for the streams that clients had reset on it (code 11); then the replay says whether it was processed.
    StreamRefused,
    /// The pooled connection died before one byte of this request was written.
    NotDispatched,
    /// A reused connection closed without one response byte: the upstream's keep-alive is shorter than ours. Align idle timeouts.
    StaleConnection,
    /// The upstream stopped reading the request body.
    WriteTimeout,
    /// A fresh connection accepted the request and closed without a response: crash, OOM kill, restart. Read the app log at this second.
    ClosedBeforeResponse,
    /// RST after the request was sent: crash, or a WAF/IDS cut the flow. Compare with the filter log.
    ResetBeforeResponse,
    /// HTTP/2 `RST_STREAM`; the code is attached (`INTERNAL_ERROR`, `ENHANCE_YOUR_CALM`...).
    StreamReset,
    /// The upstream stopped responding on an open connection: the network path is half open, or the host is frozen.
    PeerUnresponsive,
    /// Bytes keep coming but the response head never ends (drip, endless interim responses).
    HeadTimeout,
    /// The client stopped sending its upload; the upstream was waiting for it. Not the upstream's fault.
    UploadStalled,
    /// Request delivered, no response in time: slow query, lock, deadlock. Profile this route; align timeouts.
    FirstByteTimeout,
    /// The total time budget (all attempts) is used up.
    DeadlineExceeded,
    /// Not a valid HTTP response (status line, header, framing).
    InvalidResponse,
    /// Response head over the gateway's limit. Raise the buffer or shrink cookies.
    HeadTooLarge,
    /// The connection ended in the middle of the response head.
    IncompleteHead,
    /// Upgrade not negotiated, or an unsolicited 101.
    UpgradeFailed,
    /// The body ended early; headers were already forwarded.
    IncompleteBody,
    /// The body stalled.
    BodyReadTimeout,
    /// Response body over the configured limit.
    BodyTooLarge,
    /// Response trailers over the limit (hyper tells by text only).
    TrailerTooLarge,
    /// Broken chunked framing.
    TransferCoding,
    /// Content-Encoding does not match the bytes.
    ContentCoding,
    /// The upstream itself responded with a 5xx; received-status is attached. Read its logs, not ours.
    UpstreamStatus,
    /// The client's upload failed. Not the upstream's fault.
    RequestBodyFailed,
    /// The client disconnected, or stopped reading the response.
    ClientClosed,
    /// Gateway fault: task gone, panic, runtime shutdown.
    GatewayInternal,
    /// Unclassified; read the source chain. May become more specific in a later release.
    Unknown,
}

impl BadGatewayCause {
    /// Every cause, in the order of the table.
    pub const ALL: &'static [Self] = &table::ALL;

    /// The name in snake case, stable across releases.
    pub const fn as_str(self) -> &'static str {
        self.facts().name
    }

    /// The status of the gateway's response, as RFC 9209 section 2.3 recommends.
    ///
    /// [`UpstreamStatus`](Self::UpstreamStatus) is 502 here; a relayed response keeps its own status.
    /// [`ClientClosed`](Self::ClientClosed) is 499, for logs only: no client is left to read it.
    ///
    /// # Panics
    /// Never: the table's numbers are all valid status codes, as a test proves.
    pub const fn status(self) -> StatusCode {
        match StatusCode::from_u16(self.facts().status) {
            Ok(status) => status,
            Err(_) => StatusCode::BAD_GATEWAY,
        }
    }

    /// The coarser class: the `error` token of RFC 9209, `None` if none fits.
    pub const fn proxy_status_error(self) -> Option<&'static str> {
        self.facts().error
    }

    /// The likeliest of the operator's categories.
    pub const fn category(self) -> Category {
        self.facts().categories[0]
    }

    /// The other categories that look the same from the gateway, likeliest first.
    pub fn also_possible(self) -> &'static [Category] {
        &self.facts().categories[1..]
    }

    /// Who usually has to act, the most likely first.
    pub const fn responsible(self) -> &'static [Responsible] {
        self.facts().responsible
    }

    /// Whether the request may be sent again, if the attempt was observed to fail in this way.
    ///
    /// [`Failure::replay`] is the answer for a particular attempt: without evidence it is [`Replay::IdempotentOnly`] at
    /// most.
    pub const fn replay(self) -> Replay {
        self.facts().replay
    }

    /// Whether a retry would help.
    pub const fn prospect(self) -> Prospect {
        self.facts().prospect
    }

    /// How a circuit breaker counts it.
    pub const fn breaker_verdict(self) -> BreakerVerdict {
        self.facts().breaker
    }

    /// What it means and what to check first, for the operator.
    pub const fn operator_hint(self) -> &'static str {
        self.facts().operator_hint
    }

    /// The hint for the user; `None` if no user is left to read it.
    pub const fn user_hint(self) -> Option<&'static str> {
        self.facts().user_hint
    }

    /// The cause attached to a response, by this crate or by a user's own service.
    pub fn of<B>(response: &Response<B>) -> Option<Self> {
        let extensions = response.extensions();
        match extensions.get::<Failure>() {
            Some(failure) => Some(failure.cause()),
            None => extensions.get::<Self>().copied(),
        }
    }

    const fn facts(self) -> &'static table::CauseFacts {
        &table::FACTS[self as usize]
    }
}

impl fmt::Display for BadGatewayCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for BadGatewayCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A word that names no cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownCause(());

impl fmt::Display for UnknownCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not the name of a bad gateway cause")
    }
}

impl std::error::Error for UnknownCause {}

impl FromStr for BadGatewayCause {
    type Err = UnknownCause;

    /// Reads what [`as_str`](Self::as_str) writes.
    ///
    /// # Errors
    /// [`UnknownCause`] where no kind has that name.
    fn from_str(name: &str) -> Result<Self, UnknownCause> {
        let found = Self::ALL.iter().find(|cause| cause.as_str() == name);
        found.copied().ok_or(UnknownCause(()))
    }
}

#[cfg(feature = "serde")]
impl serde::Serialize for BadGatewayCause {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// Puts a failure and its cause into a response's extensions, where every layer looks for them.
pub fn attach<B>(response: &mut Response<B>, failure: Failure) {
    let extensions = response.extensions_mut();
    extensions.insert(failure.cause());
    extensions.insert(failure);
}

macro_rules! words {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum $name {
            $($(#[$doc])* $variant,)*
        }

        impl $name {
            /// The word for logs, labels and JSON.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)*
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }

        #[cfg(feature = "serde")]
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }
    };
}
use words;

words! {
    /// Where an operator looks first, in the words of the usual 502 checklist.
    Category {
        /// The backend is down or crashed.
        BackendDown = "backend_down",
        /// Something has more work than it can do.
        Overload = "overload",
        /// The gateway is set up wrongly: address, port, protocol, limits, headers.
        ProxyConfig = "proxy_config",
        /// A firewall or another filter is in the way.
        Blocked = "blocked",
        /// Names or routes do not lead to the backend.
        DnsRouting = "dns_routing",
        /// The backend's code is slow or answers wrongly.
        SlowOrBroken = "slow_or_broken",
        /// Our own client broke off.
        Client = "client",
        /// The fault is the gateway's own.
        Gateway = "gateway",
        /// Nothing is known.
        Unknown = "unknown",
    }
}

words! {
    /// Who usually fixes it.
    Responsible {
        /// The owner of the site.
        SiteOwner = "site_owner",
        /// The operator of the hosts.
        Host = "host",
        /// The administrator of the gateway.
        Admin = "admin",
        /// The developer of the backend.
        Developer = "developer",
        /// The operator of network and DNS.
        Network = "network",
        /// The owner of firewall and filter rules.
        Security = "security",
        /// The user, or the calling program.
        Visitor = "visitor",
    }
}

words! {
    /// Whether the request may be sent again (RFC 9110 section 9.2.2, RFC 9113 section 8.7).
    Replay {
        /// Proven that no server started to process it: any method may be retried.
        NotSent = "not_sent",
        /// It may have been processed: only idempotent methods may be retried.
        IdempotentOnly = "idempotent_only",
        /// A retry would be wrong or pointless.
        Never = "never",
    }
}

impl Replay {
    /// The replay safety without evidence from the wire.
    pub(crate) const fn inferred(self) -> Self {
        match self {
            Self::NotSent => Self::IdempotentOnly,
            other => other,
        }
    }
}

words! {
    /// Whether a retry would help.
    Prospect {
        /// The same peer will probably answer at once.
        SamePeer = "same_peer",
        /// Another peer may answer.
        OtherPeer = "other_peer",
        /// Later, not now.
        AfterDelay = "after_delay",
        /// No.
        Futile = "futile",
    }
}

words! {
    /// How a circuit breaker counts a failure.
    BreakerVerdict {
        /// As a failure of the upstream.
        Failure = "failure",
        /// Not at all: it says nothing about the upstream's health.
        Neutral = "neutral",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_row_stands_at_its_own_kind() {
        for (at, cause) in BadGatewayCause::ALL.iter().enumerate() {
            assert_eq!(*cause as usize, at);
            assert_eq!(cause.facts().cause, *cause);
        }
        assert_eq!(BadGatewayCause::ALL.len(), BadGatewayCause::Unknown as usize + 1);
    }

    #[test]
    fn names_are_unique_and_read_back() {
        let names: HashSet<_> = BadGatewayCause::ALL.iter().map(|cause| cause.as_str()).collect();
        assert_eq!(names.len(), BadGatewayCause::ALL.len());
        for cause in BadGatewayCause::ALL {
            assert_eq!(cause.as_str().parse(), Ok(*cause));
        }
        assert!("retry_budget_spent".parse::<BadGatewayCause>().is_err());
    }

    #[test]
    fn statuses_are_those_of_the_table() {
        for cause in BadGatewayCause::ALL {
            assert_eq!(cause.status().as_u16(), cause.facts().status, "{cause}");
        }
    }

    /// The registry of RFC 9209 section 2.3: token and recommended status.
    #[test]
    fn statuses_are_those_that_rfc_9209_recommends() {
        let registry = [
            ("dns_timeout", 504),
            ("dns_error", 502),
            ("destination_not_found", 500),
            ("destination_unavailable", 503),
            ("destination_ip_prohibited", 502),
            ("destination_ip_unroutable", 502),
            ("connection_refused", 502),
            ("connection_terminated", 502),
            ("connection_timeout", 504),
            ("connection_read_timeout", 504),
            ("connection_write_timeout", 504),
            ("connection_limit_reached", 503),
            ("tls_protocol_error", 502),
            ("tls_certificate_error", 502),
            ("tls_alert_received", 502),
            ("http_response_incomplete", 502),
            ("http_response_header_section_size", 502),
            ("http_response_body_size", 502),
            ("http_response_trailer_section_size", 502),
            ("http_response_transfer_coding", 502),
            ("http_response_content_coding", 502),
            ("http_response_timeout", 504),
            ("http_upgrade_failed", 502),
            ("http_protocol_error", 502),
            ("proxy_internal_error", 500),
            ("proxy_configuration_error", 500),
            ("proxy_loop_detected", 502),
        ];
        let free = ["http_request_error", "proxy_internal_response"];
        for cause in BadGatewayCause::ALL {
            let Some(token) = cause.proxy_status_error() else { continue };
            match registry.iter().find(|row| row.0 == token) {
                Some(row) => assert_eq!(cause.status().as_u16(), row.1, "{cause}"),
                None => assert!(free.contains(&token), "{cause}: {token} is not registered"),
            }
        }
    }

    #[test]
    fn only_a_proven_unsent_request_is_told_to_be_unprocessed() {
        for cause in BadGatewayCause::ALL {
            let hint = cause.user_hint().unwrap_or_default();
            if hint.contains("Nothing was processed") {
                assert_eq!(cause.replay(), Replay::NotSent, "{cause}");
            }
        }
    }

    #[test]
    fn operator_hints_hold_whatever_the_settings() {
        // by default no PING is sent, and a client that stops reading has not left
        assert!(BadGatewayCause::ALL.iter().all(|cause| !cause.operator_hint().contains("PING")));
        assert!(BadGatewayCause::ClientClosed.operator_hint().contains("stopped reading"));
    }

    #[test]
    fn it_is_one_byte() {
        assert_eq!(size_of::<BadGatewayCause>(), 1);
        assert_eq!(size_of::<Option<BadGatewayCause>>(), 1);
    }

    #[test]
    fn a_bare_cause_of_a_users_own_service_is_understood() {
        let mut response = Response::new(());
        assert_eq!(BadGatewayCause::of(&response), None);
        response.extensions_mut().insert(BadGatewayCause::NoRoute);
        assert_eq!(BadGatewayCause::of(&response), Some(BadGatewayCause::NoRoute));
    }
}
