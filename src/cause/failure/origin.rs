//! The client call that a record is about: "not sent" holds for that call only.

use http::Response;

use super::{Evidence, Failure};
use crate::cause::{ClientCall, ClientCalls, Replay};

/// The source of a record's replay safety, and the call that it applies to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// Stated by code outside of this crate, about the request it was called with.
    Stated,
    /// Stated by this crate, about a call that is not identified here.
    Unclaimed,
    /// Stated about this call by a client of this crate, or by a layer that classified a client's error.
    Client(ClientCall),
    /// A layer of this crate rejected the call; all calls that it rejects may share the record.
    Refusal,
}

impl Failure {
    /// Returns the record as it applies to these client calls: "not sent" of another call becomes `IdempotentOnly`.
    pub(crate) fn about(self, calls: ClientCalls) -> Self {
        if self.is_about(calls) {
            return self;
        }
        self.into_builder().replay(Replay::IdempotentOnly, Evidence::Inferred).build()
    }

    fn is_about(&self, calls: ClientCalls) -> bool {
        let record = &*self.0;
        record.replay != Replay::NotSent
            || match record.origin {
                Origin::Stated => true,
                Origin::Unclaimed => false,
                Origin::Client(call) => calls.is_only(call),
                Origin::Refusal => calls.is_one(),
            }
    }

    /// Identifies a record made from a client's error as one of these client calls.
    pub(crate) fn claimed(self, calls: ClientCalls) -> Self {
        match calls.claim() {
            Some(call) => self.into_builder().call(call).build(),
            None => self.about(calls),
        }
    }

    /// The record of a retry, identified like the first attempt for layers further out.
    pub(crate) fn known_as(self, first: Option<ClientCall>) -> Self {
        match (self.0.origin, first) {
            (Origin::Client(_), Some(first)) => self.into_builder().call(first).build(),
            _ => self,
        }
    }

    /// Corrects the record if the request body was polled: a client that polled it had a connection, so a record that
    /// says "no connection" is about another call.
    pub(crate) fn where_body_was_read(self, read: bool) -> Self {
        let record = &*self.0;
        let unconnected = record.replay == Replay::NotSent && record.evidence == Evidence::NoConnection;
        if read && unconnected && record.origin != Origin::Stated {
            return self.into_builder().replay(Replay::IdempotentOnly, Evidence::Inferred).build();
        }
        self
    }

    /// Like [`about`](Self::about), for the record in a response's extensions; returns whether it changed.
    pub(crate) fn of_calls<B>(response: &mut Response<B>, calls: ClientCalls) -> bool {
        match Self::of(response) {
            Some(failure) if !failure.is_about(calls) => {
                let failure = failure.clone().about(calls);
                response.extensions_mut().insert(failure);
                true
            }
            _ => false,
        }
    }
}
