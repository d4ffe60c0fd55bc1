//! The context of a call.

use std::time::Duration;

use tokio::time::Instant;

use crate::cause::Protocol;
use crate::deadline::Deadline;
use crate::stats::RouteKey;

/// The context of one call; passed by value, not in extensions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CallContext {
    /// When the call began: one reading of the clock, which all components share.
    pub(crate) now: Instant,
    /// When the client no longer waits for the response head.
    pub(crate) deadline: Option<Deadline>,
    /// The number of the attempt; the first is 1.
    pub(crate) attempt: u8,
    /// Whether the call is expected to end.
    pub(crate) kind: CallKind,
    /// The response was pending at the first poll.
    pub(crate) waited: bool,
    /// The request came over HTTP/2 or later: its client can take the head and hold back the body by flow control.
    pub(crate) flow_controlled: bool,
    /// Neither retry nor components apply.
    pub(crate) bypass: bool,
    /// The protocol, if a component asks for it.
    pub(crate) protocol: Option<Protocol>,
    /// How the end of the attempt counts.
    pub(crate) vote: Vote,
    /// When the request body had ended, if its upload is tracked.
    pub(crate) uploaded: Option<Instant>,
    /// The facts that an adaptive limit reads, if there is one.
    pub(crate) load: Option<RequestLoad>,
}

/// How the end of an attempt counts for a circuit.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Vote {
    /// The route, if it is recorded.
    pub(crate) route: Option<RouteKey>,
    /// An earlier attempt of the same request has counted against the upstream.
    pub(crate) counted: bool,
}

/// The facts about a request that an adaptive limit reads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RequestLoad {
    pub(crate) route: RouteKey,
    /// It has a body.
    pub(crate) uploads: bool,
}

/// Whether a call is expected to end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum CallKind {
    /// A request and its response.
    #[default]
    Bounded,
    /// A declared stream: its duration says nothing about other calls.
    Unbounded,
}

impl CallContext {
    /// A first attempt that begins now.
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            now,
            deadline: None,
            attempt: 1,
            kind: CallKind::Bounded,
            waited: false,
            flow_controlled: false,
            bypass: false,
            protocol: None,
            vote: Vote::default(),
            uploaded: None,
            load: None,
        }
    }

    /// How long the upstream has worked at `now`: since the end of the upload, if there was one.
    pub(crate) fn work_time(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.uploaded.unwrap_or(self.now))
    }

    /// Whether it is known when the upstream had the whole request.
    pub(crate) fn knows_upload(&self) -> bool {
        self.uploaded.is_some() || !self.load.is_some_and(|load| load.uploads)
    }
}

impl Vote {
    /// Whether a success is only counted: its route is not recorded, and no earlier attempt has counted.
    #[inline]
    pub(crate) fn is_plain(self) -> bool {
        self.route.is_none() && !self.counted
    }
}
