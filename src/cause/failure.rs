//! The failure record behind a cause.

mod builder;
mod fields;
mod format;
mod origin;

use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, Response, StatusCode};

pub use self::builder::FailureBuilder;
pub use self::fields::{Connection, Detail, Evidence, Phase};
pub(crate) use self::fields::{DRAINING, TUNNEL_LIMIT};
use self::origin::Origin;
use super::{BadGatewayCause, ProxyStatusEntry, Replay, RetryStop};

type SharedError = Arc<dyn Error + Send + Sync>;

#[derive(Clone, Debug)]
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
    /// The client named the upstream, and a stack around it may have another name for it.
    named_by_client: bool,
    elapsed: Option<Duration>,
    total_elapsed: Option<Duration>,
    attempts: u32,
    retry_stop: Option<RetryStop>,
    /// It says nothing about the upstream, whatever its cause usually says.
    neutral: bool,
    /// Another endpoint can take the request, though this one has refused it.
    repeat_elsewhere: bool,
    remote_hop: Option<Box<ProxyStatusEntry>>,
    previous: Vec<Failure>,
    opened_by: Option<Failure>,
    request_id: Option<HeaderValue>,
    source: Option<SharedError>,
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
#[derive(Clone, Debug)]
pub struct Failure(Arc<Record>);

impl Failure {
    /// The maximum number of [`previous`](Self::previous) failures kept.
    pub(crate) const MAX_PREVIOUS: usize = 4;

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
            named_by_client: false,
            elapsed: None,
            total_elapsed: None,
            attempts: 1,
            retry_stop: None,
            neutral: false,
            repeat_elsewhere: false,
            remote_hop: None,
            previous: Vec::new(),
            opened_by: None,
            request_id: None,
            source: None,
        })
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

    /// The phase that the attempt had reached.
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

    /// The errno, h2 code, TLS alert, status or text that makes the cause more specific.
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

    /// The upstream's name as configured by the deployment.
    pub fn upstream(&self) -> Option<&str> {
        self.0.upstream.as_deref()
    }

    /// Time from the start of this attempt to the failure.
    pub fn elapsed(&self) -> Option<Duration> {
        self.0.elapsed
    }

    /// Time from the start of the call to the failure of its last attempt; `None` if there was only one attempt.
    pub fn total_elapsed(&self) -> Option<Duration> {
        self.0.total_elapsed
    }

    /// The request id under which the failure was reported.
    pub(crate) fn request_id(&self) -> Option<&HeaderValue> {
        self.0.request_id.as_ref()
    }

    /// The record under the stack's name for the upstream, unless it has a name other than the client's.
    pub(crate) fn named(self, name: &Arc<str>) -> Self {
        match &self.0.upstream {
            Some(_) if !self.0.named_by_client => self,
            _ => self.into_builder().upstream(name.clone()).build(),
        }
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

    /// Whether it says nothing about the upstream, whatever its cause usually says.
    pub(crate) fn is_neutral(&self) -> bool {
        self.0.neutral
    }

    /// Whether a layer of this crate has refused the request for one of several endpoints, so that another one can take it.
    pub(crate) fn repeats_elsewhere(&self) -> bool {
        self.0.repeat_elsewhere
    }

    /// Whether a circuit breaker counts it as a failure of the upstream.
    pub(crate) fn counts_against_upstream(&self) -> bool {
        let cause = self.cause();
        !self.is_neutral() && (cause.is_upstream_failure() || cause == BadGatewayCause::UpstreamStatus)
    }

    /// The hop behind the upstream that failed, according to the upstream's own `Proxy-Status`.
    pub fn remote_hop(&self) -> Option<&ProxyStatusEntry> {
        self.0.remote_hop.as_deref()
    }

    /// Earlier attempts' failures, oldest first, at most four.
    pub fn previous(&self) -> &[Failure] {
        &self.0.previous
    }

    /// The failure that opened the circuit, for the cause `circuit_open`; `None` if an operator holds the circuit open.
    pub fn opened_by(&self) -> Option<&Failure> {
        self.0.opened_by.as_ref()
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
        | C::ContentCoding
        | C::UnusableBody => Phase::Body,
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
        let failure = failure.into_builder().attempts(3).retry_stop(RetryStop::Attempts).build();
        assert!(failure.to_string().contains(", gave up after 3 attempts (attempt limit reached): "), "{failure}");
    }

    #[test]
    fn the_text_tells_the_time_of_the_call_from_that_of_its_last_attempt() {
        let failure = Failure::builder(BadGatewayCause::FirstByteTimeout).elapsed(Duration::from_secs(2));
        let once = failure.build();
        assert!(once.to_string().contains(", after 2.0s: "), "{once}");
        let failure = once.into_builder().attempts(3).retry_stop(RetryStop::Attempts);
        let failure = failure.total_elapsed(Duration::from_millis(6060)).build();
        let text = ", gave up after 3 attempts (attempt limit reached), the last took 2.0s of 6.1s in all: ";
        assert!(failure.to_string().contains(text), "{failure}");
    }

    #[test]
    fn a_name_given_by_the_user_is_kept_and_that_of_the_client_replaced() {
        let stack: Arc<str> = "backend".into();
        let failure = || Failure::builder(BadGatewayCause::ConnectionRefused);
        let named = |failure: FailureBuilder| failure.build().named(&stack).upstream().unwrap().to_owned();
        assert_eq!(named(failure()), "backend");
        assert_eq!(named(failure().client_upstream("127.0.0.1:1")), "backend");
        assert_eq!(named(failure().upstream("database")), "database");
        let inner = failure().client_upstream("127.0.0.1:1").build().named(&"database".into());
        assert_eq!(named(inner.into_builder()), "database", "of a stack inside");
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
        let refused = Failure::builder(BadGatewayCause::CircuitOpen).opened_by(failure).build();
        assert_eq!(serde_json::to_value(&refused).unwrap()["opened_by"], "stale_connection");
    }
}
