//! The record behind a cause.

use std::error::Error;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{Response, StatusCode};

use super::client_call::{ClientCall, ClientCalls};
use super::{BadGatewayCause, ProxyStatusEntry, Replay, RetryStop, words};

type SharedError = Arc<dyn Error + Send + Sync>;

words! {
    /// How far an attempt had come.
    Phase {
        /// The gateway had not tried yet: routing, policy, its own limits.
        Gateway = "gateway",
        /// Waiting for a pooled connection or a free place.
        Pool = "pool",
        /// Resolving the upstream's name.
        Resolve = "resolve",
        /// Opening the transport connection.
        Connect = "connect",
        /// In the TLS handshake.
        Tls = "tls",
        /// Sending the request.
        Send = "send",
        /// The request was sent, no byte of an answer had come.
        Wait = "wait",
        /// Bytes of the response head had come.
        Head = "head",
        /// The head was complete, the body was not.
        Body = "body",
    }
}

words! {
    /// What proves, or only suggests, that a request was or was not processed.
    Evidence {
        /// No connection had been opened.
        NoConnection = "no_connection",
        /// The HTTP client gave the request back unsent.
        Returned = "returned",
        /// No byte of the request had been written to the connection.
        NothingWritten = "nothing_written",
        /// HTTP/2 said so: `REFUSED_STREAM` (RFC 9113 section 8.7).
        RefusedStream = "refused_stream",
        /// HTTP/2 said so: `GOAWAY` with a lower last stream (RFC 9113 section 6.8).
        GoAway = "go_away",
        /// The server refused the client's certificate before it read the request (RFC 8446 section 4.4.2).
        TlsRefusal = "tls_refusal",
        /// The gateway refused the request itself.
        LocalRefusal = "local_refusal",
        /// The connection's byte counters.
        Counted = "counted",
        /// Only the kind of the error; no counter was at hand.
        Inferred = "inferred",
    }
}

words! {
    /// Whether the connection had served a request before.
    Connection {
        /// This was its first request.
        Fresh = "fresh",
        /// It had already carried at least one answer.
        Reused = "reused",
    }
}

/// A number or name that makes a cause more exact.
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

/// Why an upgrade is refused: a client's doing, and no sign that the upstream has too much to do.
pub(crate) const TUNNEL_LIMIT: &str = "as many tunnels are open as may be";

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

/// Whose word the replay safety is, and about which call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    /// Code outside of this crate said so of the very request that it was called with.
    Stated,
    /// Code of this crate said so of a call that nobody knows here.
    Unclaimed,
    /// A client of ours, or a layer that judged a client's error, said so of this call.
    Client(ClientCall),
    /// A layer of ours did not make the call; such a record may be shared by all calls that it refuses.
    Refusal,
}

/// What is known about one failed exchange: one `Arc`, cheap to clone.
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
    /// The most [`previous`](Self::previous) attempts that are kept.
    pub const MAX_PREVIOUS: usize = 4;

    /// A failure of which only the cause is known.
    pub fn new(cause: BadGatewayCause) -> Self {
        Self::builder(cause).build()
    }

    /// Begins a record: phase, replay safety and status follow from the cause until set.
    ///
    /// A cause alone proves nothing: until [`replay`](FailureBuilder::replay) says what does, the request may have been sent.
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

    /// The record as it counts for whoever made these client calls: "not sent" of another call is no proof for them.
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

    /// A record that was made here, of a client's error, for these client calls.
    pub(crate) fn claimed(self, calls: ClientCalls) -> Self {
        match calls.claim() {
            Some(call) => self.into_builder().call(call).build(),
            None => self.about(calls),
        }
    }

    /// The record of a later attempt, as whoever made the first one is known to layers further out.
    pub(crate) fn known_as(self, first: Option<ClientCall>) -> Self {
        match (self.0.origin, first) {
            (Origin::Client(_), Some(first)) => self.into_builder().call(first).build(),
            _ => self,
        }
    }

    /// The record as it counts where somebody has asked for the request's body: who did had the request, so that a client
    /// which says that it had no connection had another one.
    pub(crate) fn where_body_was_read(self, read: bool) -> Self {
        let record = &*self.0;
        let unconnected = record.replay == Replay::NotSent && record.evidence == Evidence::NoConnection;
        if read && unconnected && record.origin != Origin::Stated {
            return self.into_builder().replay(Replay::IdempotentOnly, Evidence::Inferred).build();
        }
        self
    }

    /// As [`about`](Self::about), for the record in a response's extensions; whether it is another one now.
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

    /// Takes the record up again, to add to it.
    pub fn into_builder(self) -> FailureBuilder {
        FailureBuilder(Arc::unwrap_or_clone(self.0))
    }

    /// The record attached to a response.
    pub fn of<B>(response: &Response<B>) -> Option<&Self> {
        response.extensions().get()
    }

    /// What went wrong.
    pub fn cause(&self) -> BadGatewayCause {
        self.0.cause
    }

    /// The status to answer with: the cause's, or for a relayed answer the upstream's own.
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

    /// What [`replay`](Self::replay) rests on.
    pub fn evidence(&self) -> Evidence {
        self.0.evidence
    }

    /// What to tell the visitor; `None` where no visitor is left.
    ///
    /// As the cause's, but it never leaves open what is proven: a request that was not sent was not carried out.
    pub fn user_hint(&self) -> Option<&'static str> {
        let (cause, proven) = (self.0.cause, self.0.replay == Replay::NotSent);
        match cause.user_hint() {
            Some(_) if proven && cause.replay() != Replay::NotSent => Some(match cause {
                // the upstream, or its settings, know no upgrade
                BadGatewayCause::UpgradeFailed => "Nothing was processed. Trying again will not help.",
                _ => "Nothing was processed. Try again.",
            }),
            Some(hint) if !proven && hint.contains("Nothing was processed") => {
                Some("We cannot tell whether your request was carried out. Check before sending it again.")
            }
            hint => hint,
        }
    }

    /// Errno, h2 code, TLS alert or status, where there is one.
    pub fn detail(&self) -> Option<Detail> {
        self.0.detail
    }

    /// Whether the connection was reused; `None` where nobody knows.
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

    /// Time from the call to the failure.
    pub fn elapsed(&self) -> Option<Duration> {
        self.0.elapsed
    }

    /// How many attempts were made, this one counted.
    pub fn attempts(&self) -> u32 {
        self.0.attempts
    }

    /// Why no further attempt was made; `None` where no retry layer has had its say.
    ///
    /// A failure that has it is final: a retry layer around the one that said so makes no further attempt either.
    pub fn retry_stop(&self) -> Option<RetryStop> {
        self.0.retry_stop
    }

    /// The hop behind the upstream that failed, as the upstream's own `Proxy-Status` tells.
    pub fn remote_hop(&self) -> Option<&ProxyStatusEntry> {
        self.0.remote_hop.as_deref()
    }

    /// Earlier attempts' failures, oldest first, at most [`MAX_PREVIOUS`](Self::MAX_PREVIOUS).
    pub fn previous(&self) -> &[Failure] {
        &self.0.previous
    }
}

/// The phase a kind belongs to when nobody saw the attempt.
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
        if record.attempts > 1 {
            write!(f, ", {} attempts", record.attempts)?;
        }
        if let Some(stop) = record.retry_stop {
            write!(f, ", no further attempt: {stop}")?;
        }
        if let Some(elapsed) = record.elapsed {
            write!(f, ", after {elapsed:.1?}")?;
        }
        write!(f, ": {}", record.cause.operator_hint())
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

/// Collects what is known about a failure.
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
    /// [`Replay::NotSent`] is for whoever saw it, and of the very request that is answered with this failure: what is
    /// [inferred](Evidence::Inferred) is [`Replay::IdempotentOnly`] at most. A failure that a client of this crate made for
    /// another request says nothing about this one, and the layers around a handler that returns it know that.
    pub fn replay(mut self, replay: Replay, evidence: Evidence) -> Self {
        self.0.replay = if evidence == Evidence::Inferred { replay.inferred() } else { replay };
        self.0.evidence = evidence;
        self.0.origin = Origin::Stated;
        self
    }

    /// Says that it is proven that the request was not sent; of which call is yet to be said.
    pub(crate) fn unsent(mut self, evidence: Evidence) -> Self {
        (self.0.replay, self.0.evidence, self.0.origin) = (Replay::NotSent, evidence, Origin::Unclaimed);
        self
    }

    /// Says of which call this record is.
    pub(crate) fn call(mut self, call: ClientCall) -> Self {
        self.0.origin = Origin::Client(call);
        self
    }

    /// Says that a layer of ours refused the call.
    pub(crate) fn refusal(mut self) -> Self {
        (self.0.replay, self.0.evidence, self.0.origin) = (Replay::NotSent, Evidence::LocalRefusal, Origin::Refusal);
        self
    }

    /// What makes the cause more exact.
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

    /// Time from the call to the failure.
    pub fn elapsed(mut self, elapsed: Duration) -> Self {
        self.0.elapsed = Some(elapsed);
        self
    }

    /// How many attempts were made, this one counted (default 1).
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

    /// Adds an earlier attempt's failure; beyond [`Failure::MAX_PREVIOUS`] the oldest goes.
    pub fn previous(mut self, earlier: Failure) -> Self {
        if self.0.previous.len() == Failure::MAX_PREVIOUS {
            self.0.previous.remove(0);
        }
        self.0.previous.push(earlier);
        self
    }

    /// The error that told.
    pub fn source(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.0.source = Some(source.into().into());
        self
    }

    /// Adds what a record made further down could not know.
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
    fn a_visitor_is_told_that_nothing_was_processed_only_where_that_is_proven() {
        let late = || Failure::builder(BadGatewayCause::DeadlineExceeded);
        let proven = late().replay(Replay::NotSent, Evidence::NoConnection).build();
        assert_eq!(proven.user_hint(), Some("Nothing was processed. Try again."));
        assert!(late().build().user_hint().unwrap().starts_with("We cannot tell"));
        let futile = Failure::builder(BadGatewayCause::UpgradeFailed);
        let proven = futile.replay(Replay::NotSent, Evidence::LocalRefusal).build();
        assert_eq!(proven.user_hint(), Some("Nothing was processed. Trying again will not help."));
        let nobody = Failure::builder(BadGatewayCause::ClientClosed).replay(Replay::NotSent, Evidence::LocalRefusal);
        assert_eq!(nobody.build().user_hint(), None);
    }

    #[test]
    fn it_is_eight_bytes() {
        assert_eq!(size_of::<Failure>(), 8);
    }

    #[test]
    fn the_line_for_operators_keeps_the_source_to_itself() {
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
    fn a_final_failure_says_why_it_is_final() {
        let failure = Failure::new(BadGatewayCause::ConnectTimeout);
        assert_eq!(failure.retry_stop(), None);
        let failure = failure.into_builder().retry_stop(RetryStop::Budget).build();
        assert_eq!(failure.retry_stop(), Some(RetryStop::Budget));
        assert!(failure.to_string().contains(", no further attempt: budget: "), "{failure}");
    }

    #[test]
    fn a_relayed_status_is_the_upstreams_own() {
        let failure = Failure::builder(BadGatewayCause::UpstreamStatus).detail(Detail::Status(StatusCode::IM_A_TEAPOT));
        assert_eq!(failure.build().status(), StatusCode::IM_A_TEAPOT);
    }

    #[cfg(feature = "serde")]
    #[test]
    fn it_serialises_in_the_one_vocabulary() {
        let failure = Failure::builder(BadGatewayCause::StaleConnection).elapsed(Duration::from_millis(3)).build();
        let json = serde_json::to_value(&failure).unwrap();
        assert_eq!(json["cause"], "stale_connection");
        assert_eq!(json["class"], "connection_terminated");
        assert_eq!(json["replay"], "idempotent_only");
        assert_eq!(json["retry_stop"], serde_json::Value::Null);
        assert_eq!(json["elapsed_ms"], 3.0);
    }
}
