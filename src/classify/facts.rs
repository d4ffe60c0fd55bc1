//! The facts that the rules need about an error.

use std::io;

use crate::cause::Failure;

/// The facts for the rules; each is taken from the outermost link that has it.
#[allow(clippy::struct_excessive_bools)] // independent facts, no state
#[derive(Debug, Default)]
pub(super) struct ErrorFacts {
    /// A record made further inside.
    pub(super) failure: Option<Failure>,
    pub(super) hyper: Option<HyperFacts>,
    /// The error occurred while connecting ...
    pub(super) connecting: bool,
    /// ... according to a type that only a client without a connection returns.
    pub(super) typed: bool,
    /// ... in the TCP connect itself, not a protocol on top of it.
    pub(super) tcp: bool,
    /// ... or in the resolver.
    pub(super) dns: bool,
    pub(super) io: Option<IoFacts>,
    pub(super) tls: Option<TlsFacts>,
    pub(super) h2: Option<H2Facts>,
    /// A timeout of the inner stack fired.
    pub(super) elapsed: bool,
    pub(super) text: Option<TextFacts>,
}

/// The kind of a `hyper::Error`, by its predicates or else its text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HyperFacts {
    User,
    TaskGone,
    Canceled,
    Closed,
    TooLarge,
    Parse,
    Unexpected,
    Incomplete,
    /// The connection ended as it could not be written to, or because the request body failed.
    WriteFailed,
    Timeout,
    Other,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct IoFacts {
    /// The innermost kind that is neither `Other` nor unnamed.
    pub(super) kind: io::ErrorKind,
    pub(super) errno: Option<i32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TlsFacts {
    Certificate,
    Alert(u8),
    /// The peer's first record was not TLS.
    Foreign,
    Other,
}

#[cfg_attr(not(feature = "http2"), expect(dead_code, reason = "only h2's errors have them"))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum H2Facts {
    /// The peer's GOAWAY excluded our stream.
    GoAway(u32),
    /// The peer reset our stream.
    Reset(u32),
    /// Our side closed the stream or connection because of what the peer sent.
    Ours(u32),
    /// We reset the stream ourselves: hyper does where the request body fails.
    Cancelled(u32),
    /// h2 refused to send what this crate passed to it; the peer is not involved.
    User,
    Io,
}

/// Errors recognized by their text alone: private types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TextFacts {
    NameNotFound,
    NameFailure,
    NameTimeout,
    BadTarget,
    Overloaded,
    LengthLimit,
    ChunkFraming,
    TrailersTooLarge,
    Trailers,
    ContentCoding,
    BodyTimeout,
}
