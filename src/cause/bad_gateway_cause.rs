//! The causes.

use std::fmt;
use std::str::FromStr;

use http::StatusCode;

use super::table;
use super::{Category, Prospect, Replay, Responsible};

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
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
#[repr(u8)]
pub enum BadGatewayCause {
    /// No upstream is configured for this host or path.
    ///
    /// Its status is 404: most such requests are scanners' and misspelled addresses, which are the client's errors and must not
    /// raise the rate of 5xx that alerts watch. RFC 9209 section 2.3.3 recommends 500 for `destination_not_found`, for proxies
    /// whose every destination is meant to exist; [`choose_status`](crate::ClassifyLayer::choose_status) sets it.
    NoRoute,
    /// The configured upstream address cannot be used: scheme, host or HTTP version.
    InvalidTarget,
    /// The request came back to this gateway: the upstream's address leads to it.
    LoopDetected,
    /// The gateway's own address policy forbids this address (ACL, SSRF guard).
    TargetProhibited,
    /// No endpoint is available: all are ejected or failing health checks.
    NoHealthyUpstream,
    /// Not sent: the circuit is open after earlier failures. The failure that opened it is attached.
    CircuitOpen,
    /// Not sent: the connection or concurrency limit of this upstream is reached.
    ConnectionLimit,
    /// Not sent: no connection became free in time.
    QueueTimeout,
    /// Not sent: this gateway is shedding load (`load_shed`, a limit, a drain).
    GatewayOverload,
    /// The gateway is out of file descriptors (EMFILE), local ports (EADDRNOTAVAIL) or memory.
    GatewayResources,
    /// The DNS resolver did not respond.
    DnsTimeout,
    /// The upstream's name does not resolve (NXDOMAIN, NODATA).
    DnsNotFound,
    /// The DNS resolver reported a failure (SERVFAIL, REFUSED).
    DnsFailure,
    /// Connection refused: nothing listens on that port, or a firewall rejects it.
    ConnectionRefused,
    /// The connection attempt got no response: a firewall drops packets, the host is down, or its accept queue is full.
    ConnectTimeout,
    /// There is no route to the upstream, or a router or firewall rejected the connection (EACCES, ICMP).
    Unroutable,
    /// Connecting to the upstream failed for another reason; see the OS error.
    ConnectFailed,
    /// The upstream's certificate was not accepted: expired, for another name, or from an unknown issuer.
    TlsCertificate,
    /// The upstream rejected the TLS handshake; the alert says why (client certificate, TLS version, ALPN).
    TlsAlert,
    /// The TLS handshake failed.
    TlsFailed,
    /// The TLS handshake did not finish in time.
    TlsTimeout,
    /// The upstream speaks another protocol on this port: TLS, HTTP/2 only, or not HTTP at all.
    WrongProtocol,
    /// The upstream refused the HTTP/2 stream unprocessed (`REFUSED_STREAM`, or GOAWAY with a lower last stream). Or it
    /// ended the connection because clients reset many streams (code 11); then the replay safety says whether the request was
    /// processed.
    StreamRefused,
    /// The pooled connection closed before the first byte of the request was written.
    NotDispatched,
    /// The upstream closed a kept-alive connection while the request was on its way.
    StaleConnection,
    /// The upstream stopped reading the request body.
    WriteTimeout,
    /// The upstream closed a new connection without a response to its first request.
    ClosedBeforeResponse,
    /// The upstream reset the connection after the request was sent.
    ResetBeforeResponse,
    /// The upstream reset the HTTP/2 stream; the error code is attached (`INTERNAL_ERROR`, `ENHANCE_YOUR_CALM`).
    StreamReset,
    /// The upstream stopped responding on an open connection.
    PeerUnresponsive,
    /// The response head was not complete in time: it came too slowly, or interim responses did not end.
    HeadTimeout,
    /// The client stopped sending its request body while the upstream waited for it.
    UploadStalled,
    /// The request was sent, and the upstream did not respond in time.
    FirstByteTimeout,
    /// The total time limit of the request passed, all attempts included.
    DeadlineExceeded,
    /// The upstream's response is not valid HTTP (status line, fields, framing).
    InvalidResponse,
    /// The response head exceeds the gateway's limit.
    HeadTooLarge,
    /// The connection ended within the response head.
    IncompleteHead,
    /// The protocol upgrade failed, or the upstream sent a 101 that was not requested.
    UpgradeFailed,
    /// The response body ended early; the head was already forwarded.
    IncompleteBody,
    /// The response body stalled.
    BodyReadTimeout,
    /// The response body exceeds the configured limit.
    BodyTooLarge,
    /// The response trailers exceed the limit.
    TrailerTooLarge,
    /// The response's chunked framing is broken.
    TransferCoding,
    /// The response body does not match its Content-Encoding.
    ContentCoding,
    /// The response body is valid HTTP, and a handler cannot use its content: JSON that does not parse, a missing field.
    ///
    /// Only handlers report it: `Failure::builder(BadGatewayCause::UnusableBody).source(error)`.
    UnusableBody,
    /// The upstream itself responded with a 5xx; its status is attached.
    UpstreamStatus,
    /// The client's upload failed.
    RequestBodyFailed,
    /// The client disconnected or stopped reading before the response was complete.
    ClientClosed,
    /// The gateway failed: a panic, a cancelled task or a shutdown.
    GatewayInternal,
    /// The failure could not be classified; see the error chain. May become more specific in a later release.
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

    /// The parties that usually have to act, the most likely first.
    pub const fn responsible(self) -> &'static [Responsible] {
        self.facts().responsible
    }

    /// Whether the request may be sent again, if the attempt was observed to fail in this way.
    ///
    /// The value for a particular attempt is [`Failure::replay`](super::Failure::replay): without evidence, it is [`Replay::IdempotentOnly`] at
    /// most.
    pub const fn replay(self) -> Replay {
        self.facts().replay
    }

    /// Whether a retry would help.
    pub const fn prospect(self) -> Prospect {
        self.facts().prospect
    }

    /// Whether a circuit breaker counts it as a failure of the upstream.
    pub const fn is_upstream_failure(self) -> bool {
        self.facts().is_upstream_failure
    }

    /// The summary for operators, in one line: the message of the log event.
    pub const fn summary(self) -> &'static str {
        self.facts().summary
    }

    /// The next step for operators: the field `hint` of the log event.
    pub const fn next_step(self) -> &'static str {
        self.facts().next_step
    }

    pub(super) const fn facts(self) -> &'static table::CauseFacts {
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

/// The error for a name that is not a cause's.
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
    /// [`UnknownCause`] if no cause has that name.
    fn from_str(name: &str) -> Result<Self, UnknownCause> {
        let found = Self::ALL.iter().find(|cause| cause.as_str() == name);
        found.copied().ok_or(UnknownCause(()))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_row_is_at_the_index_of_its_cause() {
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
        // `destination_not_found` is a 404 here, where the registry recommends 500: see `BadGatewayCause::NoRoute`
        let free = ["http_request_error", "proxy_internal_response", "destination_not_found"];
        for cause in BadGatewayCause::ALL {
            let Some(token) = cause.proxy_status_error() else { continue };
            match registry.iter().find(|row| row.0 == token) {
                Some(row) => assert_eq!(cause.status().as_u16(), row.1, "{cause}"),
                None => assert!(free.contains(&token), "{cause}: {token} is not registered"),
            }
        }
    }

    #[test]
    fn texts_for_operators_are_single_lines_that_hold_whatever_the_settings() {
        for cause in BadGatewayCause::ALL {
            for text in [cause.summary(), cause.next_step()] {
                assert!((10..=120).contains(&text.len()) && text.starts_with(char::is_uppercase), "{cause}: {text}");
                assert!(!text.ends_with('.') && !text.contains(['\n', '|', '`']), "{cause}: {text}");
                // by default no PING is sent
                assert!(!text.contains("PING"), "{cause}: {text}");
            }
            assert_ne!(cause.summary(), cause.next_step());
        }
        // a client that stops reading has not disconnected
        assert!(BadGatewayCause::ClientClosed.summary().contains("stopped reading"));
    }

    #[test]
    fn summaries_tell_causes_apart() {
        let summaries: HashSet<_> = BadGatewayCause::ALL.iter().map(|cause| cause.summary()).collect();
        assert_eq!(summaries.len(), BadGatewayCause::ALL.len());
    }

    #[cfg(feature = "serde")]
    #[test]
    fn its_json_is_its_name() {
        for cause in BadGatewayCause::ALL {
            assert_eq!(serde_json::to_value(cause).unwrap(), cause.as_str());
        }
    }

    #[test]
    fn it_is_one_byte() {
        assert_eq!(size_of::<BadGatewayCause>(), 1);
        assert_eq!(size_of::<Option<BadGatewayCause>>(), 1);
    }
}
