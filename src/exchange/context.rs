//! The context of a call.

use tokio::time::Instant;

use crate::deadline::Deadline;

/// The context of one call; passed by value, not in extensions.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct CallContext {
    /// When the call began: one reading of the clock, which all components share.
    pub now: Instant,
    /// When the client no longer waits for the response head.
    pub deadline: Option<Deadline>,
    /// The number of the attempt; the first is 1.
    pub attempt: u8,
    /// Whether the call is expected to end.
    pub kind: CallKind,
    /// The response was pending at the first poll.
    pub(crate) waited: bool,
    /// The request came over HTTP/2 or later: its client can take the head and hold back the body by flow control.
    pub(crate) flow_controlled: bool,
    /// Neither retry nor components apply.
    pub(crate) bypass: bool,
}

/// Whether a call is expected to end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CallKind {
    /// A request and its response.
    #[default]
    Bounded,
    /// A declared stream: its duration says nothing about other calls.
    Unbounded,
}

impl CallContext {
    /// A first attempt that begins now.
    pub fn new(now: Instant) -> Self {
        Self {
            now,
            deadline: None,
            attempt: 1,
            kind: CallKind::Bounded,
            waited: false,
            flow_controlled: false,
            bypass: false,
        }
    }
}
