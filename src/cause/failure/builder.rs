//! Builds a record.

use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;

use super::origin::Origin;
use super::{Connection, Detail, Evidence, Failure, Phase, Record};
#[cfg(feature = "client")]
use crate::cause::BadGatewayCause;
use crate::cause::{ClientCall, ProxyStatusEntry, Replay, RetryStop};

/// Builds a failure record.
#[derive(Debug)]
#[must_use]
pub struct FailureBuilder(pub(super) Record);

impl FailureBuilder {
    /// Sets the phase that the attempt had reached (default: the cause's usual one).
    pub fn phase(mut self, phase: Phase) -> Self {
        self.0.phase = phase;
        self
    }

    /// Sets whether the request may be sent again, and the evidence (default: those of the cause, inferred).
    ///
    /// Use [`Replay::NotSent`] only with proof, and only about the very request that gets this failure:
    /// [inferred](Evidence::Inferred) it is [`Replay::IdempotentOnly`] at most. A failure that a client of this crate made for
    /// another request proves nothing about this one, and the layers around a handler that returns it account for that.
    pub fn replay(mut self, replay: Replay, evidence: Evidence) -> Self {
        self.0.replay = if evidence == Evidence::Inferred { replay.inferred() } else { replay };
        self.0.evidence = evidence;
        self.0.origin = Origin::Stated;
        self
    }

    /// Marks the request as proven not sent; the call is yet to be identified.
    pub(crate) fn unsent(mut self, evidence: Evidence) -> Self {
        (self.0.replay, self.0.evidence, self.0.origin) = (Replay::NotSent, evidence, Origin::Unclaimed);
        self
    }

    /// Identifies the call of this record.
    pub(crate) fn call(mut self, call: ClientCall) -> Self {
        self.0.origin = Origin::Client(call);
        self
    }

    /// Marks the call as refused by a layer of this crate.
    pub(crate) fn refusal(mut self) -> Self {
        (self.0.replay, self.0.evidence, self.0.origin) = (Replay::NotSent, Evidence::LocalRefusal, Origin::Refusal);
        self
    }

    /// Marks a failure that says nothing about the upstream, such as the client's own deadline.
    pub(crate) fn neutral(mut self) -> Self {
        self.0.neutral = true;
        self
    }

    /// Sets whether another endpoint can take the request.
    pub(crate) fn repeat_elsewhere(mut self, repeat: bool) -> Self {
        self.0.repeat_elsewhere = repeat;
        self
    }

    /// Sets a detail that makes the cause more specific.
    pub fn detail(mut self, detail: impl Into<Option<Detail>>) -> Self {
        self.0.detail = detail.into();
        self
    }

    /// Sets whether the connection was reused.
    pub fn connection(mut self, connection: impl Into<Option<Connection>>) -> Self {
        self.0.connection = connection.into();
        self
    }

    /// Sets the address that was tried.
    pub fn peer(mut self, peer: impl Into<Option<SocketAddr>>) -> Self {
        self.0.peer = peer.into();
        self
    }

    /// Sets the upstream's name as configured by the deployment.
    pub fn upstream(mut self, name: impl Into<Arc<str>>) -> Self {
        self.0.upstream = Some(name.into());
        self.0.named_by_client = false;
        self
    }

    /// Sets the name by which the client knows the upstream, often its address.
    pub(crate) fn client_upstream(mut self, name: impl Into<Arc<str>>) -> Self {
        self.0.upstream = Some(name.into());
        self.0.named_by_client = true;
        self
    }

    /// Sets the time from the start of this attempt to the failure.
    pub fn elapsed(mut self, elapsed: Duration) -> Self {
        self.0.elapsed = Some(elapsed);
        self
    }

    /// Sets the time from the start of the call to the failure of its last attempt.
    pub(crate) fn total_elapsed(mut self, elapsed: Duration) -> Self {
        self.0.total_elapsed = Some(elapsed);
        self
    }

    /// Sets the request id under which the failure is reported.
    pub(crate) fn request_id(mut self, id: &HeaderValue) -> Self {
        self.0.request_id = Some(id.clone());
        self
    }

    /// Sets the number of attempts, this one included (default 1).
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.0.attempts = attempts;
        self
    }

    /// Sets why no further attempt is made, which makes the failure final.
    pub fn retry_stop(mut self, stop: impl Into<Option<RetryStop>>) -> Self {
        self.0.retry_stop = stop.into();
        self
    }

    /// Sets the hop behind the upstream that failed.
    pub fn remote_hop(mut self, hop: impl Into<Option<ProxyStatusEntry>>) -> Self {
        self.0.remote_hop = hop.into().map(Box::new);
        self
    }

    /// Adds an earlier attempt's failure; beyond four the oldest is dropped.
    pub fn previous(mut self, earlier: Failure) -> Self {
        if self.0.previous.len() == Failure::MAX_PREVIOUS {
            self.0.previous.remove(0);
        }
        self.0.previous.push(earlier);
        self
    }

    /// Sets the failure that opened the circuit.
    pub(crate) fn opened_by(mut self, failure: Failure) -> Self {
        self.0.opened_by = Some(failure);
        self
    }

    /// Sets the source error.
    pub fn source(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.0.source = Some(source.into().into());
        self
    }

    /// Replaces the cause, and keeps everything else.
    #[cfg(feature = "client")]
    pub(crate) fn cause(mut self, cause: BadGatewayCause) -> Self {
        self.0.cause = cause;
        self
    }

    /// Adds data that was unknown where the record was made.
    pub(crate) fn fill(mut self, peer: Option<SocketAddr>, connection: Option<Connection>) -> Self {
        self.0.peer = self.0.peer.or(peer);
        self.0.connection = self.0.connection.or(connection);
        self
    }

    /// Builds the record.
    pub fn build(self) -> Failure {
        Failure(Arc::new(self.0))
    }
}
