//! What the layers report, and to whom.

use std::borrow::Cow;
use std::time::Duration;

use http::{HeaderValue, Method, uri::PathAndQuery};

use crate::cause::{BadGatewayCause, Connection, Failure, ProxyStatusEntry, RetryStop};

/// Something worth an operator's attention.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// An exchange failed, or the upstream's own answer was a failure.
    Failed(&'a RequestInfo, &'a Failure),
}

/// Which exchange an event is about.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RequestInfo {
    /// The request's method.
    pub method: Method,
    /// The request's path and query; the query is never logged.
    pub target: Option<PathAndQuery>,
    /// The request's `x-request-id`, or one that the gateway made.
    ///
    /// The client's own is taken if it is 1 to 128 visible ASCII characters without quotes. In place of any other, and of
    /// none, the gateway makes one of 32 hexadecimal digits. Such an id can be guessed: it is no secret and proves nothing.
    pub request_id: Option<HeaderValue>,
}

impl RequestInfo {
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
/// | `request_id` | the request's [`x-request-id`](RequestInfo::request_id); it goes on the answer as well, if that is the gateway's |
///
/// What a client or an upstream chose is written as a quoted string, so that it cannot pass for fields of its own, and is cut
/// at 256 bytes, which an ellipsis marks.
#[derive(Clone, Copy, Debug, Default)]
pub struct TracingObserver;

/// A failure's line at this level; `tracing` wants the level where the line stands.
macro_rules! line {
    ($level:ident, $exchange:ident, $failure:ident) => {
        tracing::$level!(
            target: "tower_upstream",
            request_id = $exchange.request_id.as_ref().map(|id| excerpt(id.to_str().unwrap_or("(not text)"))).as_deref(),
            http.request.method = &*excerpt($exchange.method.as_str()),
            url.path = &*excerpt($exchange.path()),
            error.type = $failure.cause().as_str(),
            class = $failure.cause().proxy_status_error(),
            phase = $failure.phase().as_str(),
            http.response.status_code = $failure.status().as_u16(),
            upstream = $failure.upstream().map(excerpt).as_deref(),
            hop = $failure.remote_hop().map(ProxyStatusEntry::name).map(excerpt).as_deref(),
            hop.error = $failure.remote_hop().and_then(ProxyStatusEntry::error).map(excerpt).as_deref(),
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

impl Observer for TracingObserver {
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

/// The most bytes of a field that a client or an upstream chose.
const MAX_EXCERPT: usize = 256;

/// The text, cut with a mark where it is too long for a log line.
pub(crate) fn excerpt(text: &str) -> Cow<'_, str> {
    if text.len() <= MAX_EXCERPT {
        return Cow::Borrowed(text);
    }
    let mut end = MAX_EXCERPT;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    Cow::Owned(format!("{}\u{2026}", &text[..end]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_is_cut_between_characters_and_marked() {
        assert_eq!(excerpt(&"a".repeat(256)), "a".repeat(256));
        assert_eq!(excerpt(&"a".repeat(257)), format!("{}\u{2026}", "a".repeat(256)));
        let two_bytes_each = "\u{e9}".repeat(1000);
        assert_eq!(excerpt(&two_bytes_each), format!("{}\u{2026}", "\u{e9}".repeat(128)));
        assert_eq!(excerpt(&format!("a{two_bytes_each}")), format!("a{}\u{2026}", "\u{e9}".repeat(127)));
    }
}
