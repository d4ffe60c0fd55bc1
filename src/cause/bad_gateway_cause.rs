//! The causes.

use std::fmt;

/// The cause of a failure: why the gateway could not return a good response.
///
/// One byte, `Copy`, and the vocabulary of the whole crate: [`as_str`](Self::as_str) is the tracing field
/// `error.type`, the metric label, the JSON value and the name on the page. Causes may be added and
/// [`Unknown`](Self::Unknown) may become more specific in any release.
///
/// ```
/// use tower_upstream::BadGatewayCause;
///
/// let cause = BadGatewayCause::StaleConnection;
/// assert_eq!((cause.as_str(), cause.proxy_status_error()), ("stale_connection", Some("connection_terminated")));
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
