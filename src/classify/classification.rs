//! The input and the result of a classification.

use std::net::SocketAddr;

use super::connection_stats::WireSnapshot;
use crate::cause::{BadGatewayCause, Connection, Detail, Evidence, Failure, FailureBuilder, Phase, Replay};

/// The data about an attempt in addition to its error.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct AttemptContext {
    /// The connection's counters, if it has [`ConnectionStats`](super::ConnectionStats).
    pub(crate) wire: Option<WireSnapshot>,
    /// The peer's address.
    pub(crate) peer: Option<SocketAddr>,
    /// Whether the client's request body failed.
    pub(crate) upload: UploadState,
}

/// The state of the request body, as far as tracked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum UploadState {
    /// It was not tracked.
    #[default]
    Unwatched,
    /// It was tracked and did not fail.
    Sound,
    /// It failed while it was read from the client.
    Failed,
}

impl AttemptContext {
    /// Adds the connection's counters.
    pub(crate) fn wire(mut self, wire: impl Into<Option<WireSnapshot>>) -> Self {
        self.wire = wire.into();
        self
    }

    /// Adds the peer's address.
    pub(crate) fn peer(mut self, peer: impl Into<Option<SocketAddr>>) -> Self {
        self.peer = peer.into();
        self
    }

    /// Adds the state of the request body.
    #[cfg(feature = "client")]
    pub(crate) fn upload(mut self, upload: UploadState) -> Self {
        self.upload = upload;
        self
    }

    /// Whether the connection was reused; `None` without counters.
    pub(crate) fn connection(&self) -> Option<Connection> {
        let served = self.wire?.served;
        Some(if served > 0 { Connection::Reused } else { Connection::Fresh })
    }
}

/// The classification of an error: the cause, and data that overrides the cause's defaults.
///
/// ```
/// use tower_upstream::{BadGatewayCause, classify::Classification};
///
/// let verdict: Classification = BadGatewayCause::ContentCoding.into();
/// assert_eq!(verdict.cause(), BadGatewayCause::ContentCoding);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Classification {
    cause: BadGatewayCause,
    phase: Option<Phase>,
    replay: Option<(Replay, Evidence)>,
    detail: Option<Detail>,
}

impl Classification {
    /// A classification with only a cause.
    pub const fn new(cause: BadGatewayCause) -> Self {
        Self { cause, phase: None, replay: None, detail: None }
    }

    /// Sets the phase that the attempt had reached (default: the cause's usual one).
    pub const fn phase(mut self, phase: Phase) -> Self {
        self.phase = Some(phase);
        self
    }

    /// Sets whether the request may be sent again, and the evidence (default: those of the cause, inferred).
    ///
    /// Inferred, it is [`Replay::IdempotentOnly`] at most, as in [`FailureBuilder::replay`].
    pub const fn replay(mut self, replay: Replay, evidence: Evidence) -> Self {
        self.replay = Some((replay, evidence));
        self
    }

    /// The same with the replay safety inferred.
    pub(super) const fn inferred(self) -> Self {
        match self.replay {
            Some((replay, _)) => self.replay(replay.inferred(), Evidence::Inferred),
            None => self,
        }
    }

    /// Sets a detail that makes the cause more specific.
    pub const fn detail(mut self, detail: Detail) -> Self {
        self.detail = Some(detail);
        self
    }

    pub(super) const fn has_detail(&self) -> bool {
        self.detail.is_some()
    }

    /// The cause.
    pub const fn cause(&self) -> BadGatewayCause {
        self.cause
    }

    /// Builds the record from the classification and its context.
    pub(crate) fn into_failure(self, scene: &AttemptContext) -> FailureBuilder {
        let mut failure =
            Failure::builder(self.cause).connection(scene.connection()).peer(scene.peer).detail(self.detail);
        if let Some(phase) = self.phase {
            failure = failure.phase(phase);
        }
        match self.replay {
            Some((replay, evidence)) => failure.replay(replay, evidence),
            None => failure,
        }
    }
}

impl From<BadGatewayCause> for Classification {
    fn from(cause: BadGatewayCause) -> Self {
        Self::new(cause)
    }
}
