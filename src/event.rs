//! What the layers report, and to whom.

use std::fmt;
use std::time::Duration;

use http::{HeaderValue, Method, uri::PathAndQuery};

use crate::cause::{BadGatewayCause, Connection, Failure, Member, RetryStop};

/// Something worth an operator's attention.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// An exchange failed, or the upstream's own answer was a failure.
    Failed(&'a Exchange, &'a Failure),
}

/// Which exchange an event is about.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Exchange {
    /// The request's method.
    pub method: Method,
    /// The request's path and query; the query is never logged.
    pub target: Option<PathAndQuery>,
    /// The request's `x-request-id`.
    pub request_id: Option<HeaderValue>,
}

impl Exchange {
    /// The request's path, without its query.
    pub fn path(&self) -> &str {
        self.target.as_ref().map_or("", PathAndQuery::path)
    }
}

/// Receives events. Called on failures only, from wherever they happen: it must not block.
///
/// ```
/// use std::sync::atomic::{AtomicUsize, Ordering};
/// use tower_upstream::event::{Event, Observer};
///
/// #[derive(Default)]
/// struct Count(AtomicUsize);
///
/// impl Observer for Count {
///     fn on_event(&self, event: &Event<'_>) {
///         if let Event::Failed(..) = event {
///             self.0.fetch_add(1, Ordering::Relaxed);
///         }
///     }
/// }
/// ```
pub trait Observer: Send + Sync {
    /// Takes note of `event`.
    fn on_event(&self, event: &Event<'_>);
}

/// Writes each failure as one `tracing` event at level `WARN`, target `tower_upstream`.
///
/// A client that left before its answer is one at level `INFO`: many of these mean that an upstream is slow. What an open
/// circuit refuses is one at level `DEBUG`: its opening and its closing have lines of their own.
///
/// | field | value |
/// |---|---|
/// | `error.type` | the cause, e.g. `stale_connection` |
/// | `class` | its RFC 9209 error type |
/// | `hop`, `hop.error` | the hop behind the upstream that failed, as its own `Proxy-Status` says |
/// | `phase`, `peer`, `upstream`, `elapsed_ms`, `detail` | from the [`Failure`] |
/// | `attempts`, `retry_stop` | how many there were, if more than one, and why there was no further one |
/// | `http.request.method`, `url.path` | of the request; the query is left out |
/// | `http.response.status_code` | the status answered, or that of the cut answer's cause |
/// | `request_id` | the request's `x-request-id` |
#[derive(Clone, Copy, Debug, Default)]
pub struct Log;

/// A failure's line at this level; `tracing` wants the level where the line stands.
macro_rules! line {
    ($level:ident, $exchange:ident, $failure:ident) => {
        tracing::$level!(
            target: "tower_upstream",
            request_id = $exchange.request_id.as_ref().map(Lossy).map(tracing::field::display),
            http.request.method = $exchange.method.as_str(),
            url.path = $exchange.path(),
            error.type = $failure.cause().as_str(),
            class = $failure.cause().proxy_status_error(),
            phase = $failure.phase().as_str(),
            http.response.status_code = $failure.status().as_u16(),
            upstream = $failure.upstream(),
            hop = $failure.hop().map(Member::name),
            hop.error = $failure.hop().and_then(Member::error),
            peer = $failure.peer().map(tracing::field::display),
            connection = $failure.connection().map(Connection::as_str),
            elapsed_ms = $failure.elapsed().map(millis),
            attempts = ($failure.attempts() > 1).then(|| $failure.attempts()),
            retry_stop = $failure.retry_stop().map(RetryStop::as_str),
            detail = $failure.detail().map(tracing::field::display),
            "{}", $failure.cause().operator_hint()
        )
    };
}

impl Observer for Log {
    fn on_event(&self, event: &Event<'_>) {
        let Event::Failed(exchange, failure) = event;
        match failure.cause() {
            // no upstream failed and nobody is left to be told
            BadGatewayCause::ClientClosed => line!(info, exchange, failure),
            // the opening has a line of its own, and what it refuses would drown the log
            BadGatewayCause::CircuitOpen => line!(debug, exchange, failure),
            _ => line!(warn, exchange, failure),
        }
    }
}

/// Milliseconds to three places.
fn millis(elapsed: Duration) -> f64 {
    let micros = u32::try_from(elapsed.as_micros()).unwrap_or(u32::MAX);
    f64::from(micros) / 1e3
}

/// A header value as far as it is text.
struct Lossy<'a>(&'a HeaderValue);

impl fmt::Display for Lossy<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.to_str().unwrap_or("(not text)"))
    }
}
