//! The fields of a record: phase, evidence, connection, detail.

use std::fmt;

use http::StatusCode;

use crate::cause::properties::words;

words! {
    /// The phase that an attempt reached.
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

/// The detail of a call that is refused during a drain: planned, and not a sign of overload.
pub(crate) const DRAINING: &str = "draining: new requests are refused";

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
