//! The failure record behind a cause.

use std::error::Error;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, Response, StatusCode};

use super::client_call::{ClientCall, ClientCalls};
use super::{Advice, BadGatewayCause, ProxyStatusEntry, Replay, RetryStop, words};

type SharedError = Arc<dyn Error + Send + Sync>;

words! {
    /// How far an attempt got.
    Phase {
        /// In the gateway, before any attempt: routing, policy, its own limits.
        Gateway = "gateway",
        /// Waiting for a pooled connection or a free slot.
        Pool = "pool",
        /// Resolving the upstream's name.
        Resolve = "resolve",
        /// Opening the transport connection.
        Connect = "connect",
        /// In the TLS handshake.
        Tls = "tls",
        /// Sending the request.
        Send = "send",
        /// The request was sent; no byte of a response had arrived.
        Wait = "wait",
        /// Part of the response head had arrived.
        Head = "head",
        /// The head was complete, the body not.
        Body = "body",
    }
}

words! {
    /// The evidence for whether a request was processed.
    Evidence {
        /// No connection had been opened.
        NoConnection = "no_connection",
        /// The HTTP client gave the request back unsent.
        Returned = "returned",
        /// No byte of the request had been written to the connection.
        NothingWritten = "nothing_written",
        /// HTTP/2 `REFUSED_STREAM` (RFC 9113 section 8.7).
        RefusedStream = "refused_stream",
        /// HTTP/2 `GOAWAY` with a lower last stream (RFC 9113 section 6.8).
        GoAway = "go_away",
        /// The server refused the client's certificate before it read the request (RFC 8446 section 4.4.2).
        TlsRefusal = "tls_refusal",
        /// The gateway refused the request itself.
        LocalRefusal = "local_refusal",
        /// The connection's byte counters.
        Counted = "counted",
        /// Only the kind of the error; no counters were available.
        Inferred = "inferred",
    }
}

words! {
    /// Whether the connection had served a request before.
    Connection {
        /// This was the connection's first request.
        Fresh = "fresh",
        /// It had already carried at least one response.
        Reused = "reused",
    }
}

/// A detail that makes a cause more specific.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Detail {
    /// The operating system's error number.
    Errno(i32),
    /// An HTTP/2 error code (RFC 9113 section 7).
    H2(u32),
    /// A TLS alert number (RFC 8446 section 6).
    TlsAlert(u8),
    /// The status the upstream sent.
    Status(StatusCode),
    /// A fixed text, never taken from the wire.
    Text(&'static str),
}

/// The detail of a refused upgrade: caused by clients, not a sign of an overloaded upstream.
pub(crate) const TUNNEL_LIMIT: &str = "the limit of open tunnels is reached";

impl fmt::Display for Detail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Errno(errno) => write!(f, "errno {errno}"),
            Self::H2(code) => write!(f, "h2 code {code}"),
            Self::TlsAlert(alert) => write!(f, "tls alert {alert}"),
            Self::Status(status) => write!(f, "status {}", status.as_u16()),
            Self::Text(text) => f.write_str(text),
        }
    }
}

#[cfg(feature = "serde")]
impl serde::Serialize for Detail {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[derive(Clone)]
struct Record {
    cause: BadGatewayCause,
    phase: Phase,
    replay: Replay,
    evidence: Evidence,
    origin: Origin,
    detail: Option<Detail>,
    connection: Option<Connection>,
    peer: Option<SocketAddr>,
    upstream: Option<Arc<str>>,
    elapsed: Option<Duration>,
    attempts: u32,
    retry_stop: Option<RetryStop>,
    remote_hop: Option<Box<ProxyStatusEntry>>,
    previous: Vec<Failure>,
    source: Option<SharedError>,
}

/// The source of a record's replay safety, and the call that it applies to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    /// Stated by code outside of this crate, about the request it was called with.
    Stated,
    /// Stated by this crate, about a call that is not identified here.
    Unclaimed,
    /// Stated about this call by a client of this crate, or by a layer that classified a client's error.
    Client(ClientCall),
    /// A layer of this crate rejected the call; all calls that it rejects may share the record.
    Refusal,
}

/// The record of one failed call: one `Arc`, cheap to clone.
///
/// It is an [`Error`], so that services can return it, and it prints as one line an operator can
/// read, without the text of its source (which may quote what a peer sent).
///
/// ```
/// use tower_upstream::{BadGatewayCause, Failure, cause::Phase};
///
/// let failure = Failure::builder(BadGatewayCause::ConnectTimeout).upstream("payments").build();
/// assert_eq!(failure.phase(), Phase::Connect);
/// assert!(failure.to_string().starts_with("connect_timeout (connection_timeout) in phase connect, upstream payments"));
/// ```
#[derive(Clone)]
pub struct Failure(Arc<Record>);

impl Failure {
    /// The maximum number of [`previous`](Self::previous) failures kept.
    pub const MAX_PREVIOUS: usize = 4;

    /// A failure with only a cause.
    pub fn new(cause: BadGatewayCause) -> Self {
        Self::builder(cause).build()
    }

    /// Starts a record: phase, replay safety and status follow from the cause until set.
    ///
    /// A cause alone proves nothing: unless [`replay`](FailureBuilder::replay) is set, the request may have been sent.
    pub fn builder(cause: BadGatewayCause) -> FailureBuilder {
        FailureBuilder(Record {
            cause,
            phase: usual_phase(cause),
            replay: cause.replay().inferred(),
            evidence: Evidence::Inferred,
            origin: Origin::Stated,
            detail: None,
            connection: None,
            peer: None,
            upstream: None,
            elapsed: None,
            attempts: 1,
            retry_stop: None,
            remote_hop: None,
            previous: Vec::new(),
            source: None,
        })
    }

    /// Returns the record as it applies to these client calls: "not sent" of another call becomes `IdempotentOnly`.
    pub(crate) fn about(self, calls: ClientCalls) -> Self {
        if self.is_about(calls) {
            return self;
        }
        self.into_builder().replay(Replay::IdempotentOnly, Evidence::Inferred).build()
    }

    fn is_about(&self, calls: ClientCalls) -> bool {
        let record = &*self.0;
        record.replay != Replay::NotSent
            || match record.origin {
                Origin::Stated => true,
                Origin::Unclaimed => false,
                Origin::Client(call) => calls.is_only(call),
                Origin::Refusal => calls.is_one(),
            }
    }

    /// Identifies a record made from a client's error as one of these client calls.
    pub(crate) fn claimed(self, calls: ClientCalls) -> Self {
        match calls.claim() {
            Some(call) => self.into_builder().call(call).build(),
            None => self.about(calls),
        }
    }

    /// The record of a retry, identified like the first attempt for layers further out.
    pub(crate) fn known_as(self, first: Option<ClientCall>) -> Self {
        match (self.0.origin, first) {
            (Origin::Client(_), Some(first)) => self.into_builder().call(first).build(),
            _ => self,
        }
    }

    /// Corrects the record if the request body was polled: a client that polled it had a connection, so a record that
    /// says "no connection" is about another call.
    pub(crate) fn where_body_was_read(self, read: bool) -> Self {
        let record = &*self.0;
        let unconnected = record.replay == Replay::NotSent && record.evidence == Evidence::NoConnection;
        if read && unconnected && record.origin != Origin::Stated {
            return self.into_builder().replay(Replay::IdempotentOnly, Evidence::Inferred).build();
        }
        self
    }

    /// Like [`about`](Self::about), for the record in a response's extensions; returns whether it changed.
    pub(crate) fn of_calls<B>(response: &mut Response<B>, calls: ClientCalls) -> bool {
        match Self::of(response) {
            Some(failure) if !failure.is_about(calls) => {
                let failure = failure.clone().about(calls);
                response.extensions_mut().insert(failure);
                true
            }
            _ => false,
        }
    }

    /// Reopens the record as a builder.
    pub fn into_builder(self) -> FailureBuilder {
        FailureBuilder(Arc::unwrap_or_clone(self.0))
    }

    /// The record attached to a response.
    pub fn of<B>(response: &Response<B>) -> Option<&Self> {
        response.extensions().get()
    }

    /// The cause.
    pub fn cause(&self) -> BadGatewayCause {
        self.0.cause
    }

    /// The status of the response: the cause's, or for a relayed response the upstream's own.
    pub fn status(&self) -> StatusCode {
        match (self.0.cause, self.0.detail) {
            (BadGatewayCause::UpstreamStatus, Some(Detail::Status(status))) => status,
            (cause, _) => cause.status(),
        }
    }

    /// How far the attempt had come.
    pub fn phase(&self) -> Phase {
        self.0.phase
    }

    /// Whether this request may be sent again.
    pub fn replay(&self) -> Replay {
        self.0.replay
    }

    /// The evidence for [`replay`](Self::replay).
    pub fn evidence(&self) -> Evidence {
        self.0.evidence
    }

    /// The advice for the user of a request with this method, as far as it is proven.
    pub fn advice(&self, method: &Method) -> Advice {
        Advice::of(self, method.is_safe())
    }

    /// Errno, h2 code, TLS alert or status, if there is one.
    pub fn detail(&self) -> Option<Detail> {
        self.0.detail
    }

    /// Whether the connection was reused; `None` if unknown.
    pub fn connection(&self) -> Option<Connection> {
        self.0.connection
    }

    /// The address that was tried.
    pub fn peer(&self) -> Option<SocketAddr> {
        self.0.peer
    }

    /// The upstream's name as the deployment calls it.
    pub fn upstream(&self) -> Option<&str> {
        self.0.upstream.as_deref()
    }

    /// Time from the start of this attempt to the failure.
    pub fn elapsed(&self) -> Option<Duration> {
        self.0.elapsed
    }

    /// The number of attempts, this one included.
    pub fn attempts(&self) -> u32 {
        self.0.attempts
    }

    /// Why no further attempt was made; `None` if no retry layer has decided.
    ///
    /// A failure with a reason is final: an outer retry layer makes no further attempt either.
    pub fn retry_stop(&self) -> Option<RetryStop> {
        self.0.retry_stop
    }

    /// The hop behind the upstream that failed, according to the upstream's own `Proxy-Status`.
    pub fn remote_hop(&self) -> Option<&ProxyStatusEntry> {
        self.0.remote_hop.as_deref()
    }

    /// Earlier attempts' failures, oldest first, at most [`MAX_PREVIOUS`](Self::MAX_PREVIOUS).
    pub fn previous(&self) -> &[Failure] {
        &self.0.previous
    }
}

/// The usual phase of a cause.
fn usual_phase(cause: BadGatewayCause) -> Phase {
    use BadGatewayCause as C;
    match cause {
        C::DnsTimeout | C::DnsNotFound | C::DnsFailure => Phase::Resolve,
        C::ConnectionRefused | C::ConnectTimeout | C::Unroutable | C::ConnectFailed => Phase::Connect,
        C::TlsCertificate | C::TlsAlert | C::TlsFailed | C::TlsTimeout => Phase::Tls,
        C::ConnectionLimit | C::QueueTimeout => Phase::Pool,
        C::StreamRefused | C::NotDispatched | C::WriteTimeout | C::UploadStalled | C::RequestBodyFailed => Phase::Send,
        C::StaleConnection
        | C::ClosedBeforeResponse
        | C::ResetBeforeResponse
        | C::StreamReset
        | C::PeerUnresponsive
        | C::FirstByteTimeout
        | C::DeadlineExceeded
        | C::ClientClosed
        | C::Unknown => Phase::Wait,
        C::WrongProtocol
        | C::HeadTimeout
        | C::InvalidResponse
        | C::HeadTooLarge
        | C::IncompleteHead
        | C::UpgradeFailed
        | C::UpstreamStatus => Phase::Head,
        C::IncompleteBody
        | C::BodyReadTimeout
        | C::BodyTooLarge
        | C::TrailerTooLarge
        | C::TransferCoding
        | C::ContentCoding => Phase::Body,
        C::NoRoute
        | C::InvalidTarget
        | C::LoopDetected
        | C::TargetProhibited
        | C::NoHealthyUpstream
        | C::CircuitOpen
        | C::GatewayOverload
        | C::GatewayResources
        | C::GatewayInternal => Phase::Gateway,
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let record = &*self.0;
        f.write_str(record.cause.as_str())?;
        if let Some(class) = record.cause.proxy_status_error() {
            write!(f, " ({class})")?;
        }
        write!(f, " in phase {}", record.phase)?;
        if let Some(upstream) = &record.upstream {
            write!(f, ", upstream {upstream}")?;
        }
        if let Some(peer) = record.peer {
            write!(f, ", peer {peer}")?;
        }
        if let Some(connection) = record.connection {
            write!(f, ", {connection} connection")?;
        }
        if let Some(detail) = record.detail {
            write!(f, ", {detail}")?;
        }
        if let Some(hop) = &record.remote_hop {
            write!(f, ", {:?} says {}", hop.name(), hop.error().unwrap_or("nothing"))?;
        }
        match (record.attempts, record.retry_stop) {
            (..=1, None) => {}
            (..=1, Some(stop)) => write!(f, ", not retried ({})", stop.reason())?,
            (attempts, None) => write!(f, ", attempt {attempts}")?,
            (attempts, Some(stop)) => write!(f, ", gave up after {attempts} attempts ({})", stop.reason())?,
        }
        match record.elapsed {
            Some(elapsed) if record.attempts > 1 => write!(f, ", the last took {elapsed:.1?}")?,
            Some(elapsed) => write!(f, ", after {elapsed:.1?}")?,
            None => {}
        }
        write!(f, ": {}. {}.", record.cause.summary(), record.cause.next_step())
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let record = &*self.0;
        f.debug_struct("Failure")
            .field("cause", &record.cause)
            .field("phase", &record.phase)
            .field("replay", &record.replay)
            .field("evidence", &record.evidence)
            .field("detail", &record.detail)
            .field("connection", &record.connection)
            .field("peer", &record.peer)
            .field("upstream", &record.upstream)
            .field("elapsed", &record.elapsed)
            .field("attempts", &record.attempts)
            .field("retry_stop", &record.retry_stop)
            .field("hop", &record.remote_hop)
            .field("previous", &record.previous)
            .field("source", &record.source)
            .finish()
    }
}

impl Error for Failure {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source.as_deref().map(|source| source as &(dyn Error + 'static))
    }
}

impl From<BadGatewayCause> for Failure {
    fn from(cause: BadGatewayCause) -> Self {
        Self::new(cause)
    }
}

#[cfg(feature = "serde")]
impl serde::Serialize for Failure {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeStruct;
        let record = &*self.0;
        let mut out = serializer.serialize_struct("Failure", 15)?;
        out.serialize_field("cause", &record.cause)?;
        out.serialize_field("class", &record.cause.proxy_status_error())?;
        out.serialize_field("status", &self.status().as_u16())?;
        out.serialize_field("phase", &record.phase)?;
        out.serialize_field("replay", &record.replay)?;
        out.serialize_field("evidence", &record.evidence)?;
        out.serialize_field("detail", &record.detail)?;
        out.serialize_field("connection", &record.connection)?;
        out.serialize_field("peer", &record.peer.map(|peer| peer.to_string()))?;
        out.serialize_field("upstream", &record.upstream.as_deref())?;
        out.serialize_field("hop", &record.remote_hop.as_ref().map(|hop| hop.name()))?;
        out.serialize_field("hop_error", &record.remote_hop.as_ref().and_then(|hop| hop.error()))?;
        out.serialize_field("attempts", &record.attempts)?;
        out.serialize_field("retry_stop", &record.retry_stop)?;
        out.serialize_field("elapsed_ms", &record.elapsed.map(|elapsed| elapsed.as_secs_f64() * 1e3))?;
        out.end()
    }
}

/// Builds a failure record.
#[must_use]
pub struct FailureBuilder(Record);

impl FailureBuilder {
    /// How far the attempt had come (default: the cause's usual phase).
    pub fn phase(mut self, phase: Phase) -> Self {
        self.0.phase = phase;
        self
    }

    /// Whether the request may be sent again, and why (default: the cause's row, inferred).
    ///
    /// Use [`Replay::NotSent`] only with proof, and only about the very request that gets this failure:
    /// [inferred](Evidence::Inferred) it is [`Replay::IdempotentOnly`] at most. A failure that a client of this crate made for
    /// another request proves nothing about this one, and the layers around a handler that returns it account for that.
    pub fn replay(mut self, replay: Replay, evidence: Evidence) -> Self {
        self.0.replay = if evidence == Evidence::Inferred { replay.inferred() } else { replay };
        self.0.evidence = evidence;
        self.0.origin = Origin::Stated;
        self
    }

    /// Marks the request as proven not sent; the call is yet to be identified.
    pub(crate) fn unsent(mut self, evidence: Evidence) -> Self {
        (self.0.replay, self.0.evidence, self.0.origin) = (Replay::NotSent, evidence, Origin::Unclaimed);
        self
    }

    /// Identifies the call of this record.
    pub(crate) fn call(mut self, call: ClientCall) -> Self {
        self.0.origin = Origin::Client(call);
        self
    }

    /// Marks the call as refused by a layer of this crate.
    pub(crate) fn refusal(mut self) -> Self {
        (self.0.replay, self.0.evidence, self.0.origin) = (Replay::NotSent, Evidence::LocalRefusal, Origin::Refusal);
        self
    }

    /// A detail that makes the cause more specific.
    pub fn detail(mut self, detail: impl Into<Option<Detail>>) -> Self {
        self.0.detail = detail.into();
        self
    }

    /// Whether the connection was reused.
    pub fn connection(mut self, connection: impl Into<Option<Connection>>) -> Self {
        self.0.connection = connection.into();
        self
    }

    /// The address that was tried.
    pub fn peer(mut self, peer: impl Into<Option<SocketAddr>>) -> Self {
        self.0.peer = peer.into();
        self
    }

    /// The upstream's name as the deployment calls it.
    pub fn upstream(mut self, name: impl Into<Arc<str>>) -> Self {
        self.0.upstream = Some(name.into());
        self
    }

    /// Time from the start of this attempt to the failure.
    pub fn elapsed(mut self, elapsed: Duration) -> Self {
        self.0.elapsed = Some(elapsed);
        self
    }

    /// The number of attempts, this one included (default 1).
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.0.attempts = attempts;
        self
    }

    /// Why no further attempt is made: the failure is final.
    pub fn retry_stop(mut self, stop: impl Into<Option<RetryStop>>) -> Self {
        self.0.retry_stop = stop.into();
        self
    }

    /// The hop behind the upstream that failed.
    pub fn remote_hop(mut self, hop: impl Into<Option<ProxyStatusEntry>>) -> Self {
        self.0.remote_hop = hop.into().map(Box::new);
        self
    }

    /// Adds an earlier attempt's failure; beyond [`Failure::MAX_PREVIOUS`] the oldest is dropped.
    pub fn previous(mut self, earlier: Failure) -> Self {
        if self.0.previous.len() == Failure::MAX_PREVIOUS {
            self.0.previous.remove(0);
        }
        self.0.previous.push(earlier);
        self
    }

    /// The source error.
    pub fn source(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.0.source = Some(source.into().into());
        self
    }

    /// Adds data that was unknown where the record was made.
    pub(crate) fn fill(mut self, peer: Option<SocketAddr>, connection: Option<Connection>) -> Self {
        self.0.peer = self.0.peer.or(peer);
        self.0.connection = self.0.connection.or(connection);
        self
    }

    /// The record.
    pub fn build(self) -> Failure {
        Failure(Arc::new(self.0))
    }
}

impl fmt::Debug for FailureBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FailureBuilder").field("cause", &self.0.cause).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_eight_bytes() {
        assert_eq!(size_of::<Failure>(), 8);
    }

    #[test]
    fn the_text_for_operators_does_not_quote_the_source() {
        let failure = Failure::builder(BadGatewayCause::InvalidResponse).source("GET /secret").build();
        assert!(!failure.to_string().contains("secret"));
        assert!(!failure.to_string().contains('\n'));
        assert_eq!(failure.source().unwrap().to_string(), "GET /secret");
    }

    #[test]
    fn earlier_attempts_are_bounded() {
        let mut builder = Failure::builder(BadGatewayCause::DeadlineExceeded);
        for _ in 0..9 {
            builder = builder.previous(Failure::new(BadGatewayCause::ConnectionRefused));
        }
        assert_eq!(builder.build().previous().len(), Failure::MAX_PREVIOUS);
    }

    #[test]
    fn a_final_failure_names_the_reason_why_it_is_not_retried() {
        let failure = Failure::new(BadGatewayCause::ConnectTimeout);
        assert_eq!(failure.retry_stop(), None);
        let failure = failure.into_builder().retry_stop(RetryStop::Budget).build();
        assert_eq!(failure.retry_stop(), Some(RetryStop::Budget));
        assert!(failure.to_string().contains(", not retried (retry budget exhausted): "), "{failure}");
        let failure = failure.into_builder().attempts(3).retry_stop(RetryStop::Attempts);
        let failure = failure.elapsed(Duration::from_secs(2)).build().to_string();
        assert!(
            failure.contains(", gave up after 3 attempts (attempt limit reached), the last took 2.0s: "),
            "{failure}"
        );
    }

    #[test]
    fn a_relayed_status_is_the_upstreams_own() {
        let failure = Failure::builder(BadGatewayCause::UpstreamStatus).detail(Detail::Status(StatusCode::IM_A_TEAPOT));
        assert_eq!(failure.build().status(), StatusCode::IM_A_TEAPOT);
    }

    #[cfg(feature = "serde")]
    #[test]
    fn it_serializes_under_the_names_of_the_log() {
        let failure = Failure::builder(BadGatewayCause::StaleConnection).elapsed(Duration::from_millis(3)).build();
        let json = serde_json::to_value(&failure).unwrap();
        assert_eq!(json["cause"], "stale_connection");
        assert_eq!(json["class"], "connection_terminated");
        assert_eq!(json["replay"], "idempotent_only");
        assert_eq!(json["retry_stop"], serde_json::Value::Null);
        assert_eq!(json["elapsed_ms"], 3.0);
    }
}
