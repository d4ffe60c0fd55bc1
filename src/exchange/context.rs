//! The context of a call.

use tokio::time::Instant;

use crate::deadline::Deadline;

/// The context of one call; it travels by value, never in extensions.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct CallContext {
    /// When the call began: the one reading of the clock that all parts share.
    pub now: Instant,
    /// When the answer's head is of no more use to the caller.
    pub deadline: Option<Deadline>,
    /// Which attempt this is, the first is 1.
    pub attempt: u8,
    /// Whether the exchange is expected to end.
    pub kind: CallKind,
    /// The answer was not there at the first poll, as far as that is noted here.
    pub(crate) waited: bool,
    /// The request came by HTTP/2 or later, so that its client can take the head and hold back the body by flow control.
    pub(crate) flow_controlled: bool,
    /// Retry and components stand aside.
    pub(crate) bypass: bool,
}

/// Whether an exchange is expected to end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CallKind {
    /// A request and its answer.
    #[default]
    Bounded,
    /// A stream that was declared one: its times say nothing about others.
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
